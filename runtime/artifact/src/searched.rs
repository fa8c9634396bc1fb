//! Scales of matrices of which values and scales are made apart, searched for once.
//!
//! Invariants: what is made has the same bits with and without; a row's scales are kept from when one part is made until the
//! other is, and no longer.

use crate::{plan::DType, quantize::Scheme};
use half::f16;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

/// A tensor of the checkpoint, and the values and groups that it is quantised to.
type Key = (String, DType, Option<u64>);

/// Matrices of which one part is yet to be resolved.
#[derive(Debug, Default)]
pub(crate) struct Searched(Mutex<HashMap<Key, Arc<Matrix>>>);

impl Searched {
    /// The rows of the tensor `name`, which has so many, for one of its two parts. The other part gets the same.
    pub(crate) fn matrix(&self, name: &str, scheme: Scheme, rows: u64) -> Arc<Matrix> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (name.to_string(), scheme.to, scheme.group);
        waiting.remove(&key).unwrap_or_else(|| {
            let matrix = Arc::new(Matrix((0..rows).map(|_| Mutex::default()).collect()));
            waiting.insert(key, matrix.clone());
            matrix
        })
    }
}

/// The scales of a row, where one part alone has been made of it.
type Row = Mutex<Option<Box<[f16]>>>;

/// The rows of a matrix.
#[derive(Debug)]
pub(crate) struct Matrix(Box<[Row]>);

impl Matrix {
    /// The scales of a row: those that were found for its other part, else what `search` finds, which is kept for that.
    ///
    /// # Errors
    /// Those of `search`.
    pub(crate) fn scales<E>(&self, row: u64, search: impl FnOnce() -> Result<Box<[f16]>, E>) -> Result<Box<[f16]>, E> {
        let Some(place) = self.0.get(row as usize) else { return search() };
        let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
        match place.take() {
            Some(known) => Ok(known),
            None => Ok(place.insert(search()?).clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        dummy::DummySource,
        execute::{self, Rows},
        recipe::{Part, Recipe},
    };
    use std::{collections::BTreeMap, error::Error};

    #[test]
    fn parts_made_side_by_side_have_the_bits_of_parts_made_alone() -> Result<(), Box<dyn Error>> {
        let tensors = BTreeMap::from([("a".to_string(), vec![300, 64]), ("b".to_string(), vec![50, 64])]);
        let source = DummySource::new(7, DType::Bf16, tensors)?;
        let quantized = |name: &str, part| {
            let of = Box::new(Recipe::Tensor(name.to_string()));
            Recipe::Quantize { to: DType::U4, group: Some(32), part, of }
        };
        let both = |part| Recipe::Concat(vec![quantized("a", part), quantized("b", part)]);
        let recipes = [Part::Values, Part::Scales].map(both);
        let alone = recipes.each_ref().map(|recipe| Rows::resolve(recipe, &source));
        let searched = Searched::default();
        let shared = recipes.each_ref().map(|recipe| Rows::sharing(recipe, &source, Some(&searched)));
        for (alone, shared) in alone.into_iter().zip(shared) {
            let made = |rows, chunk| -> crate::Result<Vec<u8>> {
                let mut made = vec![];
                execute::chunks(rows, 3, chunk, &mut |bytes| {
                    made.extend_from_slice(bytes);
                    Ok(())
                })?;
                Ok(made)
            };
            let (of_alone, of_shared) = (made(alone?, 999)?, made(shared?, 1234)?);
            assert!(of_alone == of_shared && of_alone.iter().any(|byte| *byte != 0));
        }
        assert!(searched.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty(), "both parts were resolved");
        Ok(())
    }

    #[test]
    fn scales_are_searched_for_once_and_kept_until_used() {
        let (searched, scheme) = (Searched::default(), Scheme { to: DType::U4, group: Some(32) });
        let found = |n: f32| Ok::<_, ()>(vec![f16::from_f32(n)].into_boxed_slice());
        let values = searched.matrix("a", scheme, 2);
        assert_eq!(values.scales(1, || found(3.0)), found(3.0));
        let scales = searched.matrix("a", scheme, 2);
        assert_eq!(scales.scales(1, || Err(())), found(3.0), "no second search");
        assert_eq!(scales.scales(1, || found(4.0)), found(4.0), "nothing is kept after its last use");
        assert_eq!(scales.scales(0, || Err(())), Err(()));
        let again = searched.matrix("a", scheme, 2);
        assert_eq!(again.scales(1, || found(5.0)), found(5.0), "a third part is the first of another pair");
        let other = searched.matrix("a", Scheme { group: Some(64), ..scheme }, 2);
        assert_eq!(other.scales(1, || found(6.0)), found(6.0));
    }
}

//! Recipes on tensors in memory.

use super::{Error, Tensor, quantize};
use crate::{
    recipe::Recipe,
    types::{DType, TensorType},
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

/// Tensors of a checkpoint and what recipes made of them, each once.
#[derive(Debug, Default)]
pub struct Checkpoint {
    tensors: HashMap<String, Arc<Tensor>>,
    made: Mutex<HashMap<String, Arc<Tensor>>>,
}

impl FromIterator<(String, Tensor)> for Checkpoint {
    fn from_iter<I: IntoIterator<Item = (String, Tensor)>>(tensors: I) -> Checkpoint {
        let tensors = tensors.into_iter().map(|(key, t)| (key, Arc::new(t))).collect();
        Checkpoint { tensors, made: Mutex::default() }
    }
}

impl Checkpoint {
    /// What `recipe` makes, which must have type `ty`. Packing leaves the logical tensor as it is.
    pub fn weight(&self, recipe: &Recipe, ty: &TensorType) -> Result<Arc<Tensor>, Error> {
        let key = recipe.to_string();
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        let tensor = match made {
            Some(tensor) => tensor,
            None => self.evaluate(recipe)?,
        };
        let found = TensorType::new(tensor.dims.iter().copied(), tensor.dtype);
        if found != *ty {
            return Err(error(recipe, format!("the checkpoint gives {found} but the graph needs {ty}")));
        }
        self.made.lock().unwrap_or_else(PoisonError::into_inner).insert(key, tensor.clone());
        Ok(tensor)
    }

    fn evaluate(&self, recipe: &Recipe) -> Result<Arc<Tensor>, Error> {
        match recipe {
            Recipe::Tensor(key) => {
                let missing = || error(recipe, "the checkpoint has no such tensor".to_string());
                self.tensors.get(key).cloned().ok_or_else(missing)
            }
            Recipe::Concat(parts) => {
                let parts = parts.iter().map(|p| self.evaluate(p)).collect::<Result<Vec<_>, _>>()?;
                concat(&parts).map(Arc::new).ok_or_else(|| error(recipe, misfit(&parts)))
            }
            Recipe::Cast(dtype, of) => {
                let of = self.evaluate(of)?;
                if of.dtype == *dtype { Ok(of) } else { Ok(Arc::new(Tensor::clone(&of).rounded(*dtype))) }
            }
            Recipe::Quantize { to, group, part, of } => {
                let of = self.evaluate(of)?;
                let made = quantize::weight(&of, *to, *group, *part);
                made.map(Arc::new).ok_or_else(|| error(recipe, misfit(&[of])))
            }
            Recipe::Pack { of, .. } | Recipe::Blocks { of, .. } | Recipe::Fragments { of, .. } => self.evaluate(of),
            Recipe::RopeTable { rope, positions } => {
                let dims = [*positions, 2, rope.dim / 2];
                Ok(Arc::new(Tensor::float(&dims, DType::F32, rope.table(*positions))))
            }
        }
    }
}

fn error(recipe: &Recipe, message: String) -> Error {
    Error::Weight { recipe: recipe.to_string(), message }
}

fn misfit(parts: &[Arc<Tensor>]) -> String {
    let types: Vec<String> = parts.iter().map(|p| format!("{:?}{}", p.dims, p.dtype)).collect();
    format!("{} do not fit it", types.join(" and "))
}

/// Along dimension 0, where the rest agrees.
fn concat(parts: &[Arc<Tensor>]) -> Option<Tensor> {
    let first = parts.first().filter(|p| !p.dims.is_empty())?;
    let fits = |p: &Arc<Tensor>| p.dtype == first.dtype && !p.dims.is_empty() && p.dims[1..] == first.dims[1..];
    if !parts.iter().all(fits) {
        return None;
    }
    let mut dims = first.dims.clone();
    dims[0] = parts.iter().map(|p| p.dims[0]).sum();
    let data = parts.iter().flat_map(|p| p.floats()).copied().collect();
    Some(Tensor::float(&dims, first.dtype, data))
}

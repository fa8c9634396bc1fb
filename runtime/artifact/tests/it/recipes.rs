//! Recipes against code that makes one element at a time.

use half::bf16;
use proptest::prelude::*;
use rvllm_artifact::{Error, Result, Source, TensorType, execute, plan::DType, recipe::Recipe};
use std::{borrow::Cow, collections::BTreeMap, ops::Range};

/// f32 tensors in memory.
#[derive(Clone, Debug)]
struct Tensors(BTreeMap<String, (Vec<u64>, Vec<f32>)>);

impl Source for Tensors {
    fn tensor(&self, name: &str) -> Result<TensorType> {
        let missing = || Error::MissingTensor { place: "test".into(), tensor: name.into() };
        Ok(TensorType { dtype: DType::F32, shape: self.0.get(name).ok_or_else(missing)?.0.clone() })
    }

    fn bytes(&self, name: &str, range: Range<u64>) -> Result<Cow<'_, [u8]>> {
        let bytes: Vec<u8> = self.0[name].1.iter().flat_map(|v| v.to_le_bytes()).collect();
        Ok(Cow::Owned(bytes[range.start as usize..range.end as usize].to_vec()))
    }
}

/// Shape and elements, by the definitions.
fn naive(recipe: &Recipe, tensors: &Tensors) -> (Vec<u64>, Vec<f32>) {
    match recipe {
        Recipe::Tensor(name) => tensors.0[name].clone(),
        Recipe::Concat(parts) => {
            let parts: Vec<_> = parts.iter().map(|part| naive(part, tensors)).collect();
            let mut shape = parts[0].0.clone();
            shape[0] = parts.iter().map(|(shape, _)| shape[0]).sum();
            (shape, parts.into_iter().flat_map(|(_, values)| values).collect())
        }
        Recipe::Cast(DType::Bf16, of) => {
            let (shape, values) = naive(of, tensors);
            (shape, values.into_iter().map(|v| bf16::from_f32(v).to_f32()).collect())
        }
        Recipe::Pack { n, k, of } => naive_pack(u64::from(*n), u64::from(*k), naive(of, tensors)),
        Recipe::Blocks { k, matrices, of } => naive_blocks(u64::from(*k), u64::from(*matrices), naive(of, tensors)),
        Recipe::Fragments { k, matrices, of } => {
            naive_fragments(u64::from(*k), u64::from(*matrices), naive(of, tensors))
        }
        Recipe::RopeTable { inv_freq, factor, positions } => {
            let angle = |p: u32, f: &f32| f64::from(p as f32 * f);
            let row = |p: u32| {
                let cos = inv_freq.iter().map(move |f| angle(p, f).cos() as f32 * factor);
                cos.chain(inv_freq.iter().map(move |f| angle(p, f).sin() as f32 * factor))
            };
            (vec![u64::from(*positions), 2, inv_freq.len() as u64], (0..*positions).flat_map(row).collect())
        }
        Recipe::Cast(..) | Recipe::Quantize { .. } => panic!("only casts to bf16 are made here"),
    }
}

fn naive_pack(n: u64, k: u64, (shape, values): (Vec<u64>, Vec<f32>)) -> (Vec<u64>, Vec<f32>) {
    let [rows, columns] = shape[..] else { panic!("two dimensions") };
    let packed = [rows.div_ceil(n), columns.div_ceil(k), n, k];
    let mut out = vec![];
    for (panel, group) in (0..packed[0]).flat_map(|p| (0..packed[1]).map(move |g| (p, g))) {
        for (r, c) in (0..n).flat_map(|r| (0..k).map(move |c| (r, c))) {
            let (row, column) = (panel * n + r, group * k + c);
            let inside = row < rows && column < columns;
            out.push(if inside { values[(row * columns + column) as usize] } else { 0.0 });
        }
    }
    (packed.to_vec(), out)
}

fn naive_blocks(k: u64, matrices: u64, (shape, values): (Vec<u64>, Vec<f32>)) -> (Vec<u64>, Vec<f32>) {
    let [rows, columns] = shape[..] else { panic!("two dimensions") };
    let each = rows / matrices;
    let stored = [(each.div_ceil(8) * 8 * matrices).div_ceil(64), columns.div_ceil(k), 64, k];
    let mut out = vec![0.0; stored.iter().product::<u64>() as usize];
    for (row, column) in (0..rows).flat_map(|r| (0..columns).map(move |c| (r, c))) {
        let (matrix, r) = (row / each, row % each);
        let at = (r / 8 * matrices + matrix) * 8 + r % 8;
        let (piece, within) = (column % k / (k / 8), column % (k / 8));
        let place = ((at / 64 * stored[1] + column / k) * 64 + at % 64) * k + (piece ^ (at % 8)) * (k / 8) + within;
        out[place as usize] = values[(row * columns + column) as usize];
    }
    (stored.to_vec(), out)
}

fn naive_fragments(k: u64, matrices: u64, (shape, values): (Vec<u64>, Vec<f32>)) -> (Vec<u64>, Vec<f32>) {
    let [rows, columns] = shape[..] else { panic!("two dimensions") };
    let each = rows / matrices;
    let stored = [each.div_ceil(32) * matrices, columns.div_ceil(k), 32, k];
    let mut out = vec![0.0; stored.iter().product::<u64>() as usize];
    for (row, column) in (0..rows).flat_map(|r| (0..columns).map(move |c| (r, c))) {
        let (matrix, r) = (row / each, row % each);
        let piece = (r / 32 * matrices + matrix) * stored[1] + column / k;
        out[((piece * 32 + r % 32) * k + column % k) as usize] = values[(row * columns + column) as usize];
    }
    (stored.to_vec(), out)
}

fn decode(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        DType::Bf16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        _ => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
    }
}

fn matrices() -> impl Strategy<Value = (Tensors, u64)> {
    (1u64..40, 1u64..40, 1u64..40).prop_map(|(a, b, columns)| {
        let values = |rows: u64, scale: f32| (0..rows * columns).map(|i| (i as f32 - 7.3) * scale).collect();
        let tensors =
            [("a".into(), (vec![a, columns], values(a, 0.37))), ("b".into(), (vec![b, columns], values(b, -1.1)))];
        (Tensors(tensors.into()), columns)
    })
}

fn recipes() -> impl Strategy<Value = Recipe> {
    let tensor = |name: &str| Recipe::Tensor(name.into());
    let dense = prop_oneof![
        Just(tensor("a")),
        Just(tensor("b")),
        Just(Recipe::Concat(vec![tensor("a"), tensor("b")])),
        Just(Recipe::Concat(vec![tensor("a"), tensor("a")])),
        Just(Recipe::Concat(vec![tensor("b"), Recipe::Concat(vec![tensor("a"), tensor("a")])])),
    ];
    (dense, any::<bool>(), any::<bool>(), 1u32..20, 1u32..6, 0..4).prop_map(|(of, inner, outer, n, k, layout)| {
        let cast = |yes: bool, of: Recipe| if yes { Recipe::Cast(DType::Bf16, Box::new(of)) } else { of };
        let of = cast(inner, of);
        // as many matrices as parts of one shape make the tensor
        let matrices = |of: &Recipe| if of.sources().windows(2).all(|s| s[0] == s[1]) { of.sources().len() } else { 1 };
        let laid_out = match layout {
            0 => Recipe::Pack { n, k, of: Box::new(of) },
            1 => Recipe::Blocks { k: 8 * k, matrices: matrices(&of) as u32, of: Box::new(of) },
            2 => Recipe::Fragments { k, matrices: matrices(&of) as u32, of: Box::new(of) },
            _ => of,
        };
        cast(outer, laid_out)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn recipes_make_what_their_definition_says((tensors, _) in matrices(), recipe in recipes(), threads in 1usize..4, chunk in 1usize..5000) {
        let (shape, values) = naive(&recipe, &tensors);
        let ty = execute::infer(&recipe, &tensors).unwrap();
        prop_assert_eq!(&ty.shape, &shape);
        let mut out = vec![0xaa; ty.bytes().unwrap() as usize];
        execute::execute(&recipe, &tensors, threads, &mut out).unwrap();
        prop_assert_eq!(decode(ty.dtype, &out), values);
        let mut streamed: Vec<u8> = vec![];
        execute::execute_chunks(&recipe, &tensors, threads, chunk, &mut |bytes| { streamed.extend(bytes); Ok(()) }).unwrap();
        prop_assert_eq!(streamed, out);
    }

    #[test]
    fn rope_tables_are_those_of_the_definition(positions in 1u32..500, inv_freq in prop::collection::vec(1e-6f32..1.0, 1..20), factor in 0.5f32..2.0) {
        let recipe = Recipe::RopeTable { inv_freq, factor, positions };
        let tensors = Tensors(BTreeMap::new());
        let (shape, values) = naive(&recipe, &tensors);
        let mut out = vec![0; values.len() * 4];
        execute::execute(&recipe, &tensors, 2, &mut out).unwrap();
        prop_assert_eq!(execute::infer(&recipe, &tensors).unwrap().shape, shape);
        prop_assert_eq!(decode(DType::F32, &out), values);
    }
}

#[test]
fn bytes_do_not_depend_on_threads() {
    let shape = BTreeMap::from([("w".to_string(), vec![3000, 700])]);
    let source = rvllm_artifact::DummySource::new(3, DType::F32, shape).unwrap();
    let of = Box::new(Recipe::Cast(DType::Bf16, Box::new(Recipe::Tensor("w".into()))));
    let recipe = Recipe::Pack { n: 32, k: 2, of };
    let outs = [1, 2, 7].map(|threads| {
        let mut out = vec![0; execute::infer(&recipe, &source).unwrap().bytes().unwrap() as usize];
        execute::execute(&recipe, &source, threads, &mut out).unwrap();
        out
    });
    assert!(outs[0] == outs[1] && outs[1] == outs[2]);
}

#[test]
fn the_first_element_that_is_not_finite_is_named() {
    let mut values = vec![1.0; 2_000_000];
    (values[1_234_567], values[1_999_999]) = (f32::NAN, f32::INFINITY);
    let tensors = Tensors([("w".to_string(), (vec![2000, 1000], values))].into());
    let recipe = Recipe::Pack { n: 32, k: 1, of: Box::new(Recipe::Tensor("w".into())) };
    let mut out = vec![0; 2016 * 4000];
    for threads in [1, 3] {
        let error = execute::execute(&recipe, &tensors, threads, &mut out).unwrap_err();
        assert!(
            matches!(&error, Error::NotFinite { tensor, index: 1_234_567, dtype: DType::F32 } if tensor == "w"),
            "{error}"
        );
    }
}

#[test]
fn a_value_that_overflows_when_cast_is_named() {
    let tensors = Tensors([("w".to_string(), (vec![2], vec![65504.0, 65520.0]))].into());
    let recipe = Recipe::Cast(DType::F16, Box::new(Recipe::Tensor("w".into())));
    let error = execute::execute(&recipe, &tensors, 1, &mut [0; 4]).unwrap_err();
    assert!(error.to_string().starts_with("tensor w: element 1 is not a finite f16"), "{error}");
}

#[test]
fn recipes_that_make_no_sense_say_why() {
    let tensors =
        Tensors([("a".to_string(), (vec![2, 3], vec![0.0; 6])), ("v".to_string(), (vec![4], vec![0.0; 4]))].into());
    let tensor = |name: &str| Box::new(Recipe::Tensor(name.into()));
    let deep = (0..20).fold(*tensor("a"), |of, _| Recipe::Cast(DType::F32, Box::new(of)));
    let cases = [
        (*tensor("x"), "test: no tensor x"),
        (Recipe::Concat(vec![]), "recipe: concat of nothing"),
        (Recipe::Concat(vec![*tensor("a"), *tensor("v")]), "recipe: concat of [2, 3]f32 and [4]f32"),
        (Recipe::Cast(DType::I8, tensor("a")), "recipe: no cast from f32 to i8"),
        (Recipe::Pack { n: 4, k: 1, of: tensor("v") }, "recipe: pack of [4]f32, expected two dimensions"),
        (Recipe::Pack { n: 0, k: 1, of: tensor("a") }, "recipe: pack[0, 1], expected 1 to 4096 each"),
        (
            Recipe::Blocks { k: 64, matrices: 3, of: tensor("a") },
            "recipe: blocks of [2, 3]f32, expected 3 matrices of as many rows",
        ),
        (Recipe::Blocks { k: 64, matrices: 1, of: tensor("v") }, "recipe: blocks of [4]f32, expected two dimensions"),
        (
            Recipe::Blocks { k: 9, matrices: 1, of: tensor("a") },
            "recipe: blocks[9, 1], expected a multiple of 8 to 4096 columns of 1 to 64 matrices",
        ),
        (
            Recipe::Fragments { k: 0, matrices: 1, of: tensor("a") },
            "recipe: fragments[0, 1], expected 1 to 4096 columns of 1 to 64 matrices",
        ),
        (deep, "recipe: nested deeper than 16"),
        (
            Recipe::RopeTable { inv_freq: vec![f32::NAN], factor: 1.0, positions: 1 },
            "recipe: rope table with a frequency or factor that is not finite",
        ),
    ];
    for (recipe, expected) in cases {
        assert_eq!(execute::infer(&recipe, &tensors).unwrap_err().to_string(), expected);
    }
    let error = execute::execute(&tensor("a"), &tensors, 1, &mut [0; 5]).unwrap_err();
    assert_eq!(error.to_string(), "recipe: rows 0..2 of [2, 3]f32 take 24 bytes, got 5");
}

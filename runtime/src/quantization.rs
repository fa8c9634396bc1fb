//! How the weights of a plan are quantised, in words.
//!
//! Invariants: told from the plan alone, so that it is what kernels read, whatever was asked for at compile time.

use rvllm_artifact::{
    plan::{Plan, Weight},
    quantized::Part,
};
use std::collections::BTreeMap;

/// How many matrices are values of which scheme: `u4 in groups of 32`, `u4 in groups of 128 with zeros`, `i8 in rows` …;
/// nothing where all are numbers.
pub fn schemes(plan: &Plan) -> BTreeMap<String, usize> {
    let by_name: BTreeMap<&str, &Weight> = plan.weights.iter().map(|w| (w.name.as_str(), w)).collect();
    let mut schemes = BTreeMap::new();
    for values in &plan.weights {
        let Some(name) = values.name.strip_suffix(&Part::Values.name("")) else { continue };
        let part = |part: Part| by_name.get(part.name(name).as_str()).copied();
        let Some(scales) = part(Part::Scales) else { continue };
        *schemes.entry(scheme(values, scales, part(Part::Zeros).is_some())).or_insert(0) += 1;
    }
    schemes
}

fn scheme(values: &Weight, scales: &Weight, zeros: bool) -> String {
    let dtype = values.dtype.name();
    match group(values, scales) {
        None => format!("{dtype} in rows"),
        Some(group) => format!("{dtype} in groups of {group}{}", if zeros { " with zeros" } else { "" }),
    }
}

/// Columns that share a scale; nothing where a row has one.
fn group(values: &Weight, scales: &Weight) -> Option<u64> {
    columns(values)?.checked_div(columns(scales)?)
}

/// Columns of a matrix, of which panels `[N/n, K/k, n, k]` may hold a few more.
fn columns(weight: &Weight) -> Option<u64> {
    match weight.shape[..] {
        [_, columns] => Some(columns),
        [_, runs, _, run] => runs.checked_mul(run),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rvllm_artifact::{plan::DType, recipe::Recipe};

    fn weight(name: &str, dtype: DType, shape: &[u64]) -> Weight {
        Weight { name: name.into(), dtype, shape: shape.to_vec(), recipe: Recipe::Tensor(name.into()) }
    }

    #[test]
    fn a_scheme_is_told_from_shapes() {
        let rows = weight("a.scales", DType::F32, &[96]);
        assert_eq!(scheme(&weight("a.values", DType::I8, &[3, 17, 32, 4]), &rows, false), "i8 in rows");
        let values = weight("a.values", DType::U4, &[3, 32, 32, 8]);
        let packed = weight("a.scales", DType::F16, &[3, 8, 32, 1]);
        assert_eq!(scheme(&values, &packed, false), "u4 in groups of 32");
        let dense = (weight("a.values", DType::U4, &[96, 256]), weight("a.scales", DType::Bf16, &[96, 2]));
        assert_eq!(scheme(&dense.0, &dense.1, true), "u4 in groups of 128 with zeros");
        let none = (weight("a.values", DType::U4, &[96, 0]), weight("a.scales", DType::F16, &[96, 0]));
        assert_eq!(scheme(&none.0, &none.1, false), "u4 in rows");
    }
}

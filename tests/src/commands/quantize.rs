//! `test quantize int8|int4|fp8`, `test quantize int4 weight_only` where activations stay as they are, or `test quantize stored VALUES GROUP SCALES [zeros] [weight_only]` for tensors that are stored so (but those
//! whose key begins with `plain`): the graph of kernel calls with its products quantised, or those that cannot be.

use super::passes::problems;
use crate::filetest::Case;
use anyhow::{Context, bail};
use rvllm_artifact::{plan, quantized::Stored};
use rvllm_compiler::{
    options::QuantizeChoice,
    passes::{
        check,
        quantize::{Wanted, quantize},
    },
};

pub(super) fn run(case: &Case<'_>) -> anyhow::Result<String> {
    let (mut stored, mut weight_only) = (None, false);
    let choice = match case.args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["int8"] => Some(QuantizeChoice::Int8),
        ["int4"] => Some(QuantizeChoice::Int4),
        ["int4", "weight_only"] => {
            weight_only = true;
            Some(QuantizeChoice::Int4)
        }
        ["fp8"] => Some(QuantizeChoice::Fp8),
        ["stored", values, group, scales, ref zeros @ ..] => {
            let [values, scales] = [values, scales].map(dtype);
            weight_only = zeros.contains(&"weight_only");
            let zeros = zeros.contains(&"zeros");
            stored = Some(Stored { values: values?, group: group.parse().ok(), scales: scales?, zeros });
            None
        }
        _ => bail!("`test quantize` takes int8, int4, fp8, or stored VALUES GROUP SCALES, not {:?}", case.args),
    };
    let stored = |name: &str| stored.filter(|_| !name.starts_with("plain"));
    match quantize(case.graph()?.clone(), Wanted { choice, stored: &stored, kept: true, weight_only }) {
        Ok(graph) => Ok(check("quantize", graph)?.to_string()),
        Err(errors) => problems(case, &errors),
    }
}

fn dtype(name: &str) -> anyhow::Result<plan::DType> {
    serde_json::from_value(name.into()).with_context(|| format!("`{name}` is no element type"))
}

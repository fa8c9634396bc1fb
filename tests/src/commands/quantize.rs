//! `test quantize int8|int4|fp8`: the graph of kernel calls with its products quantised, or those that cannot be.

use super::passes::problems;
use crate::filetest::Case;
use anyhow::bail;
use rvllm_compiler::{
    options::QuantizeChoice,
    passes::{check, quantize::quantize},
};

pub(super) fn run(case: &Case<'_>) -> anyhow::Result<String> {
    let choice = match case.args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["int8"] => QuantizeChoice::Int8,
        ["int4"] => QuantizeChoice::Int4,
        ["fp8"] => QuantizeChoice::Fp8,
        _ => bail!("`test quantize` takes int8, int4 or fp8, not {:?}", case.args),
    };
    match quantize(case.graph()?.clone(), choice) {
        Ok(graph) => Ok(check("quantize", graph)?.to_string()),
        Err(errors) => problems(case, &errors),
    }
}

//! `test merge`: the graph after linears of one input became one.

use crate::filetest::Case;
use rvllm_compiler::passes::{check, merge_linear::merge_linear};

pub(super) fn run(case: &Case<'_>) -> anyhow::Result<String> {
    Ok(check("merge_linear", merge_linear(case.graph()?.clone(), &|_| None))?.to_string())
}

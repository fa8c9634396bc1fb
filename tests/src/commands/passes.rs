//! What the commands of the compiler's passes share: limits from a file's arguments, and how results are written.

use crate::filetest::Case;
use anyhow::{Context, bail};
use rvllm_compiler::{
    passes::{Diagnostics, select::select},
    program::{Limits, Program},
};

/// Limits of the file's `name=N` arguments; small where it names none.
pub(super) fn limits(case: &Case<'_>) -> anyhow::Result<Limits> {
    let mut limits = Limits { max_model_len: 64, max_num_batched_tokens: 32, max_num_seqs: 4, max_logits: 4 };
    for arg in case.args {
        let (name, value) = arg.split_once('=').with_context(|| format!("`{arg}` is not limit=N"))?;
        let limit = match name {
            "max_model_len" => &mut limits.max_model_len,
            "max_num_batched_tokens" => &mut limits.max_num_batched_tokens,
            "max_num_seqs" => &mut limits.max_num_seqs,
            "max_logits" => &mut limits.max_logits,
            _ => bail!("there is no limit `{name}`"),
        };
        *limit = value.parse()?;
    }
    Ok(limits)
}

/// The item's program on the file's target, or what is wrong.
pub(super) fn program(case: &Case<'_>, limits: &Limits) -> anyhow::Result<Result<Program, String>> {
    let target = rvllm_targets::find(case.target()?, &|_| false)?;
    match select(case.graph()?, &target, limits, None) {
        Ok(program) => Ok(Ok(program)),
        Err(errors) => Ok(Err(problems(case, &errors)?)),
    }
}

/// Errors, one a line, each with the line of the item that it is about, counted from the first operation.
pub(super) fn problems(case: &Case<'_>, errors: &Diagnostics) -> anyhow::Result<String> {
    let graph = case.graph()?;
    let lines = graph.dag().node_weights().filter_map(|n| n.loc.as_ref().map(|loc| loc.line));
    let first = lines.min().context("no operation has a line")?;
    let at = |loc: &rvllm_ir::Loc| format!(" (operation {})", loc.line - first + 1);
    let text = |e: &rvllm_ir::Diagnostic| format!("error: {}{}\n", e.message, e.loc.as_ref().map_or(String::new(), at));
    Ok(errors.0.iter().map(text).collect())
}

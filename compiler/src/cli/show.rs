//! A finished compile, for people and for programs.

use crate::{
    cache::Cached,
    report::{Report, TargetReport},
};
use rvllm_artifact::amount::{count, size};
use serde_json::{Value, json};
use std::io::Write;

/// Prints a report, as JSON with what scoring came to.
pub(super) fn report(report: &Report, evaluation: Option<&Value>, json: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match json {
        true => {
            let mut value = value(report);
            if let Some(evaluation) = evaluation {
                value["evaluation"] = evaluation.clone();
            }
            writeln!(out, "{value:#}")?;
        }
        false => write!(out, "{}", table(report))?,
    }
    Ok(())
}

/// Prints where a cached artifact is: the path is the last line.
pub(super) fn cached(cached: &Cached, json: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        let report = cached.report.as_ref().map(value);
        let hit = report.is_none();
        return Ok(writeln!(out, "{}", json!({ "path": cached.path, "cached": hit, "report": report }))?);
    }
    if let Some(report) = &cached.report {
        write!(out, "{}", table(report))?;
    }
    Ok(writeln!(out, "{}", cached.path.display())?)
}

fn value(report: &Report) -> Value {
    let limits = &report.limits;
    json!({
        "artifact": report.artifact,
        "bytes": report.bytes,
        "model": report.model,
        "dtype": report.dtype,
        "parameters": report.parameters,
        "weight_bytes": report.weight_bytes,
        "products": report.products,
        "widened": report.widened,
        "kv_bytes_per_token": report.kv_bytes_per_token,
        "max_model_len": limits.max_model_len,
        "max_num_batched_tokens": limits.max_num_batched_tokens,
        "max_num_seqs": limits.max_num_seqs,
        "max_logits": limits.max_logits,
        "targets": report.targets.iter().map(target).collect::<Vec<_>>(),
        "seconds": report.elapsed.as_secs_f64(),
    })
}

fn target(target: &TargetReport) -> Value {
    json!({
        "name": target.name,
        "kernels": target.kernels,
        "launches": target.launches,
        "kernel_bytes": target.kernel_bytes,
        "arena_bytes": target.arena_bytes,
        "assembler": target.assembler,
    })
}

fn table(report: &Report) -> String {
    let limits = &report.limits;
    let mut rows = vec![];
    if let Some(path) = &report.artifact {
        rows.push(("artifact", format!("{} ({})", path.display(), size(report.bytes))));
    }
    rows.push(("model", format!("{}, {} parameters, {}", report.model, count(report.parameters), report.dtype)));
    rows.push(("weights", size(report.weight_bytes)));
    rows.push(("products", products(report)));
    if report.widened > 0 {
        rows.push(("widened", format!("{} matrices that the checkpoint stores quantised", report.widened)));
    }
    rows.push(("KV cache", format!("{} per token", size(report.kv_bytes_per_token))));
    for t in &report.targets {
        let (kernels, object, arena) = (t.kernels, size(t.kernel_bytes), size(t.arena_bytes));
        rows.push(("target", format!("{}: {kernels} kernels ({object}), arena {arena}", t.name)));
        rows.extend(t.assembler.iter().map(|assembler| ("assembler", assembler.clone())));
    }
    let (len, tokens, seqs) = (limits.max_model_len, limits.max_num_batched_tokens, limits.max_num_seqs);
    rows.push(("limits", format!("{len} tokens a sequence, {tokens} tokens and {seqs} sequences a step")));
    rows.push(("compiled in", format!("{:.1} s", report.elapsed.as_secs_f64())));
    rows.into_iter().map(|(key, value)| format!("{key:12} {value}\n")).collect()
}

/// How many products have which weights.
fn products(report: &Report) -> String {
    let kinds: Vec<String> = report.products.iter().map(|(kind, n)| format!("{n} with weights of {kind}")).collect();
    let rounds = |kind: &String| kind.contains(" in ") && !kind.contains("activations");
    let rounded = match report.products.keys().any(rounds) {
        true => "; quantised ones round activations to 8 bits",
        false => "",
    };
    kinds.join(", ") + rounded
}

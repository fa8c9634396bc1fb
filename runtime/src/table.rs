//! The text of `rvllm inspect`.

use crate::{
    inspect::{Fit, Memory, Report, TargetReport},
    model::dtype_name,
};
pub use rvllm_artifact::amount::size;
use rvllm_artifact::{
    amount::count,
    gpu::GpuKernel,
    manifest::Weights,
    parsers::{Parsers, ReasoningParser, ToolParser},
    plan::{Expr, Plan, Variant},
};
use serde_json::Value;
use std::fmt::Write;

/// A report as aligned text.
pub fn of(report: &Report<'_>) -> String {
    let mut text = header(report);
    for target in &report.targets {
        text += &of_target(target);
    }
    text += &of_memory(&report.memory, report.model.max_model_len);
    text += "\nentries\n";
    text += &columns(report.entries.iter().map(|e| vec![e.name.to_string(), size(e.bytes)]));
    for target in &report.targets {
        text += &details(target);
    }
    text
}

fn header(report: &Report<'_>) -> String {
    let (m, kv) = (report.model, report.kv_cache);
    let row = |name: &str, value: String| vec![name.to_string(), value];
    let rows = [
        row("file", report.file.to_string()),
        row("format", format!("{}, written by {}", report.format, report.compiler)),
        row("model", format!("{} ({})", m.name, m.architecture)),
        row("parameters", format!("{} in {}", count(m.parameters), report.dtype())),
        row("layers", format!("{} × {} wide, vocabulary {}", m.num_hidden_layers, m.hidden_size, m.vocab_size)),
        row("max_model_len", m.max_model_len.to_string()),
        row(
            "KV cache",
            format!(
                "blocks of {} tokens, {} layers × {} heads × {} in {}{}",
                kv.block_size,
                kv.num_layers,
                kv.num_kv_heads,
                kv.head_dim,
                dtype_name(kv.dtype),
                if kv.scale_bytes > 0 { " with a scale a token and head" } else { "" }
            ),
        ),
        row("weights", weights(report.weights)),
        row("parsers", m.parsers.map_or_else(|| "not recorded".to_string(), parsers)),
    ];
    let rows = rows.into_iter().chain(report.perplexity.as_ref().map(|p| row("perplexity", perplexity(p))));
    // Without the margin of tables below a heading.
    columns(rows).lines().map(|l| l.trim_start().to_string() + "\n").collect()
}

/// What the stored report says first.
fn perplexity(report: &Value) -> String {
    let number = |v: &Value, digits| v.as_f64().map_or("?".to_string(), |n| format!("{n:.digits$}"));
    let of = number(&report["perplexity"], 4);
    match &report["reference"] {
        Value::Null => of,
        reference => format!(
            "{of}, of the reference {}; KL divergence {}",
            number(&reference["perplexity"], 4),
            number(&reference["kl_divergence"]["mean"], 6)
        ),
    }
}

fn parsers(parsers: Parsers) -> String {
    let tool_call = parsers.tool_call.map_or("none", ToolParser::name);
    let reasoning = parsers.reasoning.map_or("none", ReasoningParser::name);
    format!("{tool_call} for tool calls, {reasoning} for reasoning")
}

fn weights(weights: &Weights) -> String {
    match weights {
        Weights::Embed { files } => format!("in the artifact ({})", plural(files.len() as u64, "file")),
        Weights::External { path, files } => {
            format!("in the checkpoint {path} ({})", plural(files.len() as u64, "file"))
        }
        Weights::None => "none: named at load with --weights-path".to_string(),
        Weights::Dummy { seed } => format!("random, from seed {seed}"),
    }
}

fn of_target(t: &TargetReport<'_>) -> String {
    let fits = match (t.fits, t.missing.is_empty()) {
        (true, _) => "fits this machine".to_string(),
        (false, true) => format!("does not fit this machine, which is {}", std::env::consts::ARCH),
        (false, false) => format!("does not fit this machine, which lacks {}", t.missing.join(", ")),
    };
    let (kernels, launches) = (t.num_kernels, t.num_launches);
    let steps = format!("steps of up to {} tokens, {} sequences", t.max_num_batched_tokens, t.max_num_seqs);
    format!(
        "\ntarget {}: {fits}\n  {} with {}\n  {}\n  {kernels} kernels ({}), {launches} launches a step, {steps}\n",
        t.target.name,
        t.target.arch,
        if t.target.features.is_empty() { "no features".to_string() } else { t.target.features.join(", ") },
        quantization(t),
        size(t.kernel_bytes as u64),
    )
}

/// How its weights are quantised.
fn quantization(t: &TargetReport<'_>) -> String {
    let schemes: Vec<String> = t.quantization.iter().map(|(scheme, n)| format!("{n} of {scheme}")).collect();
    if schemes.is_empty() {
        "no matrix quantised".to_string()
    } else {
        format!("matrices quantised: {}", schemes.join(", "))
    }
}

fn of_memory(m: &Memory, max_model_len: u32) -> String {
    let row = |name: &str, value: String| vec![name.to_string(), value];
    let mut text = format!("\nmemory of target {}\n", m.target);
    let fixed = [
        row("weights", size(m.weights)),
        row("arena", size(m.arena)),
        row("KV cache", format!("{} a token", size(m.kv_per_token))),
        row("", format!("{} a sequence of {max_model_len} tokens", size(m.kv_per_sequence))),
    ];
    text += &columns(fixed.into_iter().chain(m.fits.iter().map(|f| of_fit(f, max_model_len))));
    text
}

fn of_fit(fit: &Fit, max_model_len: u32) -> Vec<String> {
    let what = match (fit.tokens, fit.sequences) {
        (Some(tokens), Some(sequences)) => {
            format!("{tokens} tokens: {} of {max_model_len}", plural(sequences, "sequence"))
        }
        _ => "too little for weights and arena".to_string(),
    };
    vec![format!("in {}", size(fit.memory)), what]
}

/// What a kernel takes of a multiprocessor; what only an assembler tells is missing where the code is PTX.
fn of_kernel(symbol: &str, gpu: &GpuKernel) -> Vec<String> {
    let told = |what: &str, n: Option<u32>| n.map_or("PTX".to_string(), |n| format!("{n} {what}"));
    vec![
        symbol.to_string(),
        format!("{} threads", gpu.threads),
        told("registers", gpu.registers),
        told("B spilled", gpu.spill_bytes),
        format!("{} shared", size(gpu.shared_bytes.into())),
        gpu.occupancy.map_or(String::new(), |n| format!("{n} a multiprocessor")),
    ]
}

fn details(target: &TargetReport<'_>) -> String {
    let mut text = String::new();
    let name = &target.target.name;
    if let Some(kernels) = &target.kernels {
        let _ = writeln!(text, "\nkernels of target {name}");
        match &target.gpu_kernels {
            Some(gpu) => text += &columns(kernels.iter().zip(gpu).map(|(k, gpu)| of_kernel(k, gpu))),
            None => kernels.iter().for_each(|k| text += &format!("  {k}\n")),
        }
    }
    if let Some(plan) = target.plan {
        let _ = writeln!(text, "\nlaunches of target {name}");
        text += &columns(plan.launches.iter().enumerate().map(|(i, l)| {
            let variants = l.variants.iter().map(|v| of_variant(v, plan)).collect::<Vec<_>>().join(" | ");
            vec![i.to_string(), l.name.clone(), variants]
        }));
        let _ = writeln!(text, "\nbuffers of target {name}: offset, size, first and last launch");
        text += &columns(plan.buffers.iter().map(|b| {
            vec![b.name.clone(), b.offset.to_string(), b.bytes.to_string(), format!("{}–{}", b.live[0], b.live[1])]
        }));
        let _ = writeln!(text, "\nweights of target {name}");
        text += &columns(
            plan.weights.iter().map(|w| vec![w.name.clone(), format!("{:?}{}", w.shape, dtype_name(w.dtype))]),
        );
    }
    text
}

fn of_variant(variant: &Variant, plan: &Plan) -> String {
    let kernel = plan.kernels.get(variant.kernel as usize).map_or("?", |k| k.symbol.as_str());
    let grid = variant.grid.iter().map(expr).collect::<Vec<_>>().join(", ");
    match variant.at_most {
        Some((symbol, n)) => format!("{symbol:?} ≤ {n}: {kernel} [{grid}]"),
        None => format!("{kernel} [{grid}]"),
    }
}

fn expr(e: &Expr) -> String {
    match e {
        Expr::Const(n) => n.to_string(),
        Expr::Sym(s) => format!("{s:?}"),
        Expr::Add(a, b) => format!("({} + {})", expr(a), expr(b)),
        Expr::Mul(a, b) => format!("{}·{}", expr(a), expr(b)),
        Expr::CeilDiv(a, n) => format!("⌈{}/{n}⌉", expr(a)),
        Expr::Min(a, n) => format!("min({}, {n})", expr(a)),
    }
}

/// Rows with their columns aligned, two spaces before and between.
pub fn columns(rows: impl Iterator<Item = Vec<String>>) -> String {
    let rows: Vec<Vec<String>> = rows.collect();
    let width = |column: usize| rows.iter().filter_map(|r| r.get(column)).map(|c| c.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows.iter().map(Vec::len).max().unwrap_or(0)).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: String = row.iter().zip(&widths).map(|(cell, w)| format!("  {cell:<w$}")).collect();
        cells.trim_end().to_string() + "\n"
    };
    rows.iter().map(line).collect()
}

fn plural(n: u64, what: &str) -> String {
    if n == 1 { format!("{n} {what}") } else { format!("{n} {what}s") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rvllm_artifact::plan::Sym;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["a".to_string(), "b".into()], vec!["ccc".into(), "d".into()]];
        assert_eq!(columns(rows.into_iter()), "  a    b\n  ccc  d\n");
        assert_eq!(columns(std::iter::empty()), "");
    }

    #[test]
    fn grids_read_as_formulas() {
        let t = || Box::new(Expr::Sym(Sym::T));
        let e = Expr::Mul(Box::new(Expr::CeilDiv(t(), 16)), Box::new(Expr::Add(t(), Box::new(Expr::Const(1)))));
        assert_eq!(expr(&e), "⌈T/16⌉·(T + 1)");
        assert_eq!(expr(&Expr::Min(t(), 16)), "min(T, 16)");
    }
}

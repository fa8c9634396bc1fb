//! Writes a graph as text; [`super::parse`] reads it back.
//!
//! One statement per line, in dependency order, result types always written:
//! `y = linear x, w, b {parallel = cols} : [T, 4096]bf16`. A call's operands stand in parentheses.

use super::{Attention, Call, Dequantize, Epilogue, Graph, Op, Parallel, Quantize, Scales, ValueId};
use crate::types::DType;
use petgraph::graph::NodeIndex;
use std::fmt;

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "graph @{} {{", self.name)?;
        for node in self.order() {
            writeln!(f, "  {}", statement(self, node))?;
        }
        if !self.outputs.is_empty() {
            writeln!(f, "  return {}", names(self, &self.outputs))?;
        }
        f.write_str("}\n")
    }
}

fn names(graph: &Graph, values: &[ValueId]) -> String {
    let names: Vec<&str> = values.iter().map(|v| graph.result(*v).name.as_str()).collect();
    names.join(", ")
}

/// One line of the text form, without its indentation.
pub fn statement(graph: &Graph, index: NodeIndex) -> String {
    let node = graph.node(index);
    let results: Vec<&str> = node.results.iter().map(|r| r.name.as_str()).collect();
    let types: Vec<String> = node.results.iter().map(|r| r.ty.to_string()).collect();
    let operands = names(graph, &graph.operands(index));
    let operands = match &node.op {
        Op::Input(input) => format!(" {}", input.name()),
        Op::Weight(recipe) => format!(" {recipe}"),
        Op::Call(_) => format!("({operands})"),
        _ => format!(" {operands}"),
    };
    let attrs = match attributes(&node.op).join(", ") {
        none if none.is_empty() => none,
        some => format!(" {{{some}}}"),
    };
    format!("{} = {}{operands}{attrs} : {}", results.join(", "), node.op.name(), types.join(", "))
}

/// `key = value` or flags, in the order in which they are written.
fn attributes(op: &Op) -> Vec<String> {
    match op {
        Op::Linear { parallel, out } => linear(*parallel, *out),
        Op::RmsNorm { eps } => vec![format!("eps = {eps:?}")],
        Op::SplitHeads { heads } => vec![format!("heads = {heads}")],
        Op::Slice { start, len } => vec![format!("start = {start}"), format!("len = {len}")],
        Op::Rope(rope) => vec![rope.to_string()],
        Op::Attend(attention) => attend(attention),
        Op::Call(call) => call_attributes(call),
        Op::Input(_) | Op::Weight(_) | Op::Gather | Op::Add | Op::Mul | Op::Silu | Op::MergeHeads | Op::Rows => vec![],
    }
}

fn call_attributes(call: &Call) -> Vec<String> {
    match call {
        Call::Embed { values: None } | Call::LogitStats | Call::Draw | Call::Rank | Call::TopK => vec![],
        Call::Embed { values: Some(Dequantize { group, out }) } => {
            let scales = group.map_or(Scales::Rows, Scales::Groups);
            scales_of(scales).chain([format!("out = {out}")]).collect()
        }
        Call::RmsNorm { eps, residual, rows, quantize: how } => {
            let mut attrs = vec![format!("eps = {eps:?}")];
            attrs.extend(residual.then(|| "residual".to_string()));
            attrs.extend(rows.then(|| "rows".to_string()));
            attrs.extend(how.iter().flat_map(|how| quantize(*how)));
            attrs
        }
        Call::QuantizeRows(how) => quantize(*how),
        Call::Gemm { epilogue, scales, out } => gemm(*epilogue, *scales, *out),
        Call::RopeKvWrite { attention, qk_norm, rope_dim } => {
            let mut attrs = attend(attention);
            attrs.extend(qk_norm.map(|eps| format!("qk_norm = {eps:?}")));
            attrs.push(format!("rope_dim = {rope_dim}"));
            attrs
        }
        Call::PagedAttention(attention) => attend(attention),
    }
}

fn linear(parallel: Parallel, out: Option<DType>) -> Vec<String> {
    let parallel = match parallel {
        Parallel::Replicated => None,
        Parallel::Cols => Some("parallel = cols".to_string()),
        Parallel::Rows => Some("parallel = rows".to_string()),
    };
    parallel.into_iter().chain(out.map(|d| format!("out = {d}"))).collect()
}

fn quantize(how: Quantize) -> Vec<String> {
    let Quantize { to, group } = how;
    [format!("to = {to}")].into_iter().chain(group.map(|n| format!("group = {n}"))).collect()
}

fn gemm(epilogue: Epilogue, scales: Scales, out: DType) -> Vec<String> {
    let Epilogue { bias, silu_mul, residual } = epilogue;
    let flags = [(bias, "bias"), (silu_mul, "silu_mul"), (residual, "residual")];
    let flags = flags.into_iter().filter(|(on, _)| *on).map(|(_, name)| name.to_string());
    flags.chain(scales_of(scales)).chain([format!("out = {out}")]).collect()
}

fn scales_of(scales: Scales) -> impl Iterator<Item = String> {
    let (columns, flags) = match scales {
        Scales::None => (None, [false; 3]),
        Scales::Rows => (Some("rows".to_string()), [false; 3]),
        Scales::Groups(n) => (Some(n.to_string()), [false; 3]),
        Scales::GroupsWithZeros(n) => (Some(n.to_string()), [true, false, false]),
        Scales::FloatGroups(n) => (Some(n.to_string()), [false, false, true]),
        Scales::WeightOnly { group, zeros } => (Some(group.to_string()), [zeros, true, false]),
    };
    let flags = flags.into_iter().zip(["zeros", "weight_only", "floats"]);
    let flags = flags.filter(|(on, _)| *on).map(|(_, name)| name.to_string());
    columns.map(|columns| format!("scales = {columns}")).into_iter().chain(flags)
}

fn attend(a: &Attention) -> Vec<String> {
    let Attention { layer, heads, kv_heads, head_dim, scale, window, softcap } = a;
    let mut attrs = vec![
        format!("layer = {layer}"),
        format!("heads = {heads}"),
        format!("kv_heads = {kv_heads}"),
        format!("head_dim = {head_dim}"),
        format!("scale = {scale:?}"),
    ];
    attrs.extend(window.map(|w| format!("window = {w}")));
    attrs.extend(softcap.map(|c| format!("softcap = {c:?}")));
    attrs
}

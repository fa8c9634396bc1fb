//! Maps the tensor operations to kernel calls: pattern → kernel + prologue + epilogue, largest patterns first.
//!
//! Invariants:
//! - a rule fires only where nobody else reads what it swallows, so nothing is computed twice;
//! - what is left are inputs, weights, calls, and slices (views); anything else is an error that names it;
//! - the outputs are logits, max, logsumexp, block_max, block_sum, draws, ranks, most_likely.

mod attention;
mod linear;
mod norm;

use super::{Diagnostics, add, forget_name};
use petgraph::stable_graph::NodeIndex;
use rvllm_ir::{
    Diagnostic,
    graph::{Call, Graph, Input, Op, ValueId},
};

/// Rewrites what a node ends; false where it does not match.
type Rule = fn(&mut Graph, NodeIndex) -> bool;

/// The rules, each over the whole graph before the next: larger patterns before the smaller ones they contain.
const RULES: [Rule; 7] = [
    embed,
    linear::gated_linears,
    linear::linear_residual,
    linear::linear,
    norm::norm_of_rows,
    norm::norm_of_sum,
    norm::norm,
];

/// The graph in kernel calls, for sequences of at most `max_model_len` tokens; or every operation that no rule
/// maps.
pub fn fuse(mut graph: Graph, max_model_len: usize) -> Result<Graph, Diagnostics> {
    for n in graph.order() {
        attention::attention(&mut graph, n, max_model_len);
    }
    for rule in RULES {
        graph.remove_dead();
        for n in graph.order() {
            rule(&mut graph, n);
        }
    }
    choice(&mut graph);
    graph.remove_dead();
    match unmapped(&graph) {
        errors if errors.is_empty() => Ok(graph),
        errors => Err(Diagnostics(errors)),
    }
}

/// Why: a lookup is a kernel of its own; there is nothing before it to fuse with.
fn embed(graph: &mut Graph, n: NodeIndex) -> bool {
    if graph.node(n).op != Op::Gather {
        return false;
    }
    let operands = graph.operands(n);
    replace_by_call(graph, first(n), Call::Embed { values: None }, &operands);
    true
}

/// Why: the sampler's first pass over a row of logits is bound by memory, so it runs while the row is in cache; and what is
/// drawn where the row is need not leave the device.
fn choice(graph: &mut Graph) {
    let [logits] = graph.outputs[..] else { return };
    let names = ["max", "logsumexp", "block_max", "block_sum"].map(|what| format!("logits.{what}"));
    let loc = graph.node(logits.node).loc.clone();
    let temperature = attention::input(graph, Input::Temperature);
    let node = add(graph, Op::Call(Call::LogitStats), &[logits, temperature], &names, loc.clone());
    let stats = [0, 1, 2, 3].map(|result| ValueId { node, result });
    let [max, _, block_max, block_sum] = stats;
    let uniform = attention::input(graph, Input::Uniform);
    let operands = [logits, max, block_max, block_sum, temperature, uniform];
    let draws = first(add(graph, Op::Call(Call::Draw), &operands, &["logits.draws".into()], loc.clone()));
    let ranked = attention::input(graph, Input::Ranked);
    let operands = [logits, max, block_max, block_sum, temperature, draws, ranked];
    let ranks = first(add(graph, Op::Call(Call::Rank), &operands, &["logits.ranks".into()], loc.clone()));
    let operands = [logits, block_max, attention::input(graph, Input::TopK)];
    let most_likely = first(add(graph, Op::Call(Call::TopK), &operands, &["logits.most_likely".into()], loc));
    graph.outputs.extend(stats.into_iter().chain([draws, ranks, most_likely]));
}

fn unmapped(graph: &Graph) -> Vec<Diagnostic> {
    let mapped = |op: &Op| matches!(op, Op::Input(_) | Op::Weight(_) | Op::Slice { .. } | Op::Call(_));
    let order = graph.order().into_iter().map(|n| graph.node(n));
    let left = order.filter(|node| !mapped(&node.op)).map(|node| {
        let name = node.results.first().map_or("", |r| r.name.as_str());
        Diagnostic::new(format!("no kernel computes `{}` where `{name}` uses it", node.op.name()), node.loc.clone())
    });
    let outputs = (graph.outputs.len() != 8).then(|| {
        Diagnostic::new(format!("graph @{} returns {} values, not logits alone", graph.name, graph.outputs.len()), None)
    });
    left.chain(outputs).collect()
}

/// The first result of a node.
fn first(node: NodeIndex) -> ValueId {
    ValueId { node, result: 0 }
}

fn op(graph: &Graph, value: ValueId) -> &Op {
    &graph.node(value.node).op
}

/// Whether `user` is the only one that reads `value`.
fn only_for(graph: &Graph, value: ValueId, user: NodeIndex) -> bool {
    graph.sole_user(value) == Some(user)
}

/// Replaces `old` by the first result of a call, which takes its name and line.
fn replace_by_call(graph: &mut Graph, old: ValueId, call: Call, operands: &[ValueId]) -> NodeIndex {
    let loc = graph.node(old.node).loc.clone();
    let name = forget_name(graph, old);
    let node = add(graph, Op::Call(call), operands, &[name], loc);
    graph.replace(old, first(node));
    node
}

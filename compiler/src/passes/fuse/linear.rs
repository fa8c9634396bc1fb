//! Rules that end in a matrix product's epilogue.

use super::{first, forget_name, only_for, op, replace_by_call};
use petgraph::stable_graph::NodeIndex;
use rvllm_ir::{
    DType,
    graph::{Call, Epilogue, Graph, Op, Scales, ValueId},
};

/// `silu(y[.., ..n]) * y[.., n..]` of one linear `y`. Why: gates and ups meet in registers, and the result is half
/// as wide as what would be stored and read again.
pub(super) fn gated_linears(graph: &mut Graph, n: NodeIndex) -> bool {
    let Some(y) = gated_source(graph, n) else { return false };
    let operands = graph.operands(y.node);
    let epilogue = Epilogue { bias: operands.len() > 2, silu_mul: true, residual: false };
    let call = Call::Gemm { epilogue, scales: Scales::None, out: graph.tensor(y).dtype };
    rename(graph, y, first(n));
    replace_by_call(graph, first(n), call, &operands);
    true
}

/// The linear whose two halves the product `n` combines and nobody else reads.
fn gated_source(graph: &Graph, n: NodeIndex) -> Option<ValueId> {
    if graph.node(n).op != Op::Mul {
        return None;
    }
    let [a, b] = graph.operands(n)[..] else { return None };
    let (silu, up) = if *op(graph, a) == Op::Silu { (a, b) } else { (b, a) };
    if *op(graph, silu) != Op::Silu || !only_for(graph, silu, n) || !only_for(graph, up, n) {
        return None;
    }
    let gate = *graph.operands(silu.node).first()?;
    let ((y, 0, half), (same, start, len)) = (slice(graph, gate)?, slice(graph, up)?) else { return None };
    let halves = y == same && start == half && len == half && graph.tensor(y).last() == Some(2 * half);
    let private = only_for(graph, gate, silu.node) && graph.users(y).len() == 2 && !graph.outputs.contains(&y);
    (halves && private && is_linear(graph, y)).then_some(y)
}

fn slice(graph: &Graph, value: ValueId) -> Option<(ValueId, usize, usize)> {
    match op(graph, value) {
        Op::Slice { start, len } => Some((*graph.operands(value.node).first()?, *start, *len)),
        _ => None,
    }
}

/// `x + linear(..)`, where only the sum reads the product. Why: the residual is added before the accumulator is
/// rounded and stored. Of two products the later operand takes the sum: by then the other one is there.
pub(super) fn linear_residual(graph: &mut Graph, n: NodeIndex) -> bool {
    if graph.node(n).op != Op::Add {
        return false;
    }
    let [a, b] = graph.operands(n)[..] else { return false };
    let takes = |y: ValueId| is_linear(graph, y) && only_for(graph, y, n);
    let (y, residual) = match (takes(b), takes(a)) {
        (true, _) => (b, a),
        (_, true) => (a, b),
        _ => return false,
    };
    let mut operands = graph.operands(y.node);
    let epilogue = Epilogue { bias: operands.len() > 2, silu_mul: false, residual: true };
    operands.push(residual);
    let call = Call::Gemm { epilogue, scales: Scales::None, out: graph.tensor(y).dtype };
    rename(graph, y, first(n));
    replace_by_call(graph, first(n), call, &operands);
    true
}

/// A linear with its bias. Why: what is left of the products; the bias is added before the accumulator is rounded.
pub(super) fn linear(graph: &mut Graph, n: NodeIndex) -> bool {
    if !is_linear(graph, first(n)) {
        return false;
    }
    let operands = graph.operands(n);
    let epilogue = Epilogue { bias: operands.len() > 2, silu_mul: false, residual: false };
    let out: DType = graph.tensor(first(n)).dtype;
    replace_by_call(graph, first(n), Call::Gemm { epilogue, scales: Scales::None, out }, &operands);
    true
}

fn is_linear(graph: &Graph, value: ValueId) -> bool {
    matches!(op(graph, value), Op::Linear { .. })
}

/// Gives `to` the name of the linear `from`, which says more than the name of a sum or a product.
fn rename(graph: &mut Graph, from: ValueId, to: ValueId) {
    let name = forget_name(graph, from);
    graph.node_mut(to.node).results[to.result as usize].name = name;
}

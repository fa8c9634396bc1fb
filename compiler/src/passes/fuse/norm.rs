//! Rules that end in an RMS norm.

use super::{add, first, forget_name, only_for, op, replace_by_call};
use petgraph::stable_graph::NodeIndex;
use rvllm_ir::graph::{Call, Graph, Op, ValueId};

/// `rms_norm(rows(x))`. Why: the rows are read once, straight from where they lie.
pub(super) fn norm_of_rows(graph: &mut Graph, n: NodeIndex) -> bool {
    let Some((eps, rows, weight)) = norm_operands(graph, n) else { return false };
    if *op(graph, rows) != Op::Rows || !only_for(graph, rows, n) {
        return false;
    }
    let [x, indices] = graph.operands(rows.node)[..] else { return false };
    replace_by_call(
        graph,
        first(n),
        Call::RmsNorm { eps, residual: false, rows: true, quantize: None },
        &[x, weight, indices],
    );
    true
}

/// `rms_norm(a + b)`, where no epilogue took the sum; others may read it. Why: the sum is still in registers.
pub(super) fn norm_of_sum(graph: &mut Graph, n: NodeIndex) -> bool {
    let Some((eps, sum, weight)) = norm_operands(graph, n) else { return false };
    let (Op::Add, [x, residual]) = (op(graph, sum), &graph.operands(sum.node)[..]) else { return false };
    let operands = [*x, *residual, weight];
    let loc = graph.node(n).loc.clone();
    let names = [forget_name(graph, first(n)), forget_name(graph, sum)];
    let node = add(
        graph,
        Op::Call(Call::RmsNorm { eps, residual: true, rows: false, quantize: None }),
        &operands,
        &names,
        loc,
    );
    graph.replace(first(n), first(node));
    graph.replace(sum, ValueId { node, result: 1 });
    true
}

/// A norm alone. Why: its input has other readers, or comes from a kernel that ends in another epilogue.
pub(super) fn norm(graph: &mut Graph, n: NodeIndex) -> bool {
    let Some((eps, x, weight)) = norm_operands(graph, n) else { return false };
    replace_by_call(graph, first(n), Call::RmsNorm { eps, residual: false, rows: false, quantize: None }, &[x, weight]);
    true
}

/// Epsilon, input and weight of a norm over the rows of a matrix.
fn norm_operands(graph: &Graph, n: NodeIndex) -> Option<(f32, ValueId, ValueId)> {
    let Op::RmsNorm { eps } = graph.node(n).op else { return None };
    let [x, weight] = graph.operands(n)[..] else { return None };
    (graph.tensor(x).rank() == 2).then_some((eps, x, weight))
}

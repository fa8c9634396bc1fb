//! The rule that ends in attention: one kernel writes the cache, one reads it.

use super::{add, first, op};
use petgraph::stable_graph::NodeIndex;
use rvllm_ir::{
    DType, TensorType,
    graph::{Attention, Call, Graph, Input, Op, ResultInfo, ValueId, ValueType, builder::input_type},
    recipe::Recipe,
    rope::Rope,
};

/// Queries or keys on their way to attention: `rope(rms_norm?(split_heads(x)))`.
struct Rotated {
    x: ValueId,
    /// Epsilon and weight of the norm over each head.
    norm: Option<(f32, ValueId)>,
    rope: Rope,
    positions: ValueId,
}

/// What attention of one layer reads.
struct Matched {
    attention: Attention,
    q: Rotated,
    k: Rotated,
    v: ValueId,
    kv: ValueId,
    /// The `merge_heads` that ends it.
    merged: ValueId,
}

/// `merge_heads(attend(rope(norm?(q)), rope(norm?(k)), v, kv))`. Why: norm, rotation and the cache write touch each
/// element of q, k and v once; heads are columns, so splitting and merging them moves nothing.
pub(super) fn attention(graph: &mut Graph, n: NodeIndex, max_model_len: usize) -> bool {
    let Some(m) = matched(graph, n) else { return false };
    let table = rope_table(graph, &m.q.rope, max_model_len);
    let (q, kv) = rope_kv_write(graph, &m, table);
    let step = [Input::TileSeq, Input::TileStart, Input::QueryStartLoc, Input::SeqLens, Input::BlockTable];
    let operands: Vec<ValueId> = [q, kv].into_iter().chain(step.map(|i| input(graph, i))).collect();
    let (loc, name) = (graph.node(n).loc.clone(), format!("layers.{}.attention", m.attention.layer));
    let call = add(graph, Op::Call(Call::PagedAttention(m.attention)), &operands, &[name], loc);
    graph.replace(m.merged, first(call));
    true
}

fn matched(graph: &Graph, n: NodeIndex) -> Option<Matched> {
    let Op::Attend(attention) = &graph.node(n).op else { return None };
    let [q, k, v, kv] = graph.operands(n)[..] else { return None };
    let merged = first(graph.sole_user(first(n))?);
    let (q, k, v) = (rotated(graph, q)?, rotated(graph, k)?, split(graph, v)?);
    let norms = match (q.norm, k.norm) {
        (Some((a, _)), Some((b, _))) => a == b,
        (a, b) => a.is_none() && b.is_none(),
    };
    let fits = q.rope == k.rope && q.positions == k.positions && norms && *op(graph, merged) == Op::MergeHeads;
    fits.then(|| Matched { attention: attention.clone(), q, k, v, kv, merged })
}

fn rotated(graph: &Graph, value: ValueId) -> Option<Rotated> {
    let Op::Rope(rope) = op(graph, value) else { return None };
    let [heads, positions] = graph.operands(value.node)[..] else { return None };
    let (norm, heads) = match (op(graph, heads), &graph.operands(heads.node)[..]) {
        (Op::RmsNorm { eps }, [x, weight]) => (Some((*eps, *weight)), *x),
        _ => (None, heads),
    };
    Some(Rotated { x: split(graph, heads)?, norm, rope: rope.clone(), positions })
}

/// The columns that `split_heads` views as heads.
fn split(graph: &Graph, value: ValueId) -> Option<ValueId> {
    match op(graph, value) {
        Op::SplitHeads { .. } => graph.operands(value.node).first().copied(),
        _ => None,
    }
}

fn rope_kv_write(graph: &mut Graph, m: &Matched, table: ValueId) -> (ValueId, ValueId) {
    let slot_mapping = input(graph, Input::SlotMapping);
    let norms = [&m.q, &m.k].into_iter().filter_map(|r| r.norm.map(|(_, weight)| weight));
    let operands: Vec<ValueId> =
        [m.q.x, m.k.x, m.v, table, m.q.positions, slot_mapping, m.kv].into_iter().chain(norms).collect();
    let call = Call::RopeKvWrite {
        attention: m.attention.clone(),
        qk_norm: m.q.norm.map(|(eps, _)| eps),
        rope_dim: m.q.rope.dim,
    };
    let names = ["q", "kv"].map(|result| format!("layers.{}.{result}", m.attention.layer));
    let loc = graph.node(m.merged.node).loc.clone();
    let node = add(graph, Op::Call(call), &operands, &names, loc);
    (first(node), ValueId { node, result: 1 })
}

/// The table of cosines and sines, one weight for every distinct rotation.
fn rope_table(graph: &mut Graph, rope: &Rope, positions: usize) -> ValueId {
    let recipe = Recipe::RopeTable { rope: rope.clone(), positions };
    let ty = TensorType::new([positions, 2, rope.dim / 2], DType::F32);
    enter(graph, Op::Weight(recipe), "rope_table", ValueType::Tensor(ty))
}

/// The step's input of this name.
pub(super) fn input(graph: &mut Graph, input: Input) -> ValueId {
    enter(graph, Op::Input(input), &input.name(), input_type(input))
}

/// The node without operands that has this operation; added where there is none.
fn enter(graph: &mut Graph, op: Op, name: &str, ty: ValueType) -> ValueId {
    let found = graph.dag().node_indices().find(|n| graph.node(*n).op == op);
    let info = || ResultInfo { name: name.to_string(), ty };
    first(found.unwrap_or_else(|| graph.add(op, &[], vec![info()], None)))
}

//! Merges linears that read the same input: q|k|v and gate|up become one linear whose weight is a recipe, and the
//! old results become views of its columns.
//!
//! Why: one launch reads the activations once and fills the machine better than three small ones.
//!
//! Invariants:
//! - merged linears agree in input, parent path, element types, parallelism and in having a bias, and nobody else
//!   reads their weights, so no weight is stored twice;
//! - so do they in how the checkpoint stores their weights, where kernels multiply with them as they are stored;
//! - columns keep the order in which the model made the linears.

use super::{add, forget_name, quantize::stored_alike};
use rvllm_artifact::quantized::Stored;
use rvllm_ir::{
    DType, TensorType,
    graph::{Graph, Op, Parallel, ValueId, ValueType},
    recipe::Recipe,
};
use std::collections::HashMap;

/// What linears must share to be merged.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Kind {
    x: ValueId,
    parent: String,
    parallel: Parallel,
    out: Option<DType>,
    weight: DType,
    stored: Option<Stored>,
    bias: bool,
}

/// One linear of the graph.
#[derive(Clone, Debug)]
struct Linear {
    value: ValueId,
    /// Weight, then bias where there is one.
    weights: Vec<ValueId>,
}

/// The graph with sibling linears merged. `stored` is how the checkpoint stores a tensor that may be multiplied with as it is
/// stored.
pub fn merge_linear(mut graph: Graph, stored: &dyn Fn(&str) -> Option<Stored>) -> Graph {
    for (kind, linears) in siblings(&graph, stored) {
        merge(&mut graph, &kind, &linears);
    }
    graph.remove_dead();
    graph
}

/// Groups of at least two, in the order of their first members.
fn siblings(graph: &Graph, stored: &dyn Fn(&str) -> Option<Stored>) -> Vec<(Kind, Vec<Linear>)> {
    let mut groups: Vec<(Kind, Vec<Linear>)> = vec![];
    let mut index = HashMap::new();
    let of = |n| mergeable(graph, ValueId { node: n, result: 0 }, stored);
    for (kind, linear) in graph.order().into_iter().filter_map(of) {
        let at = *index.entry(kind.clone()).or_insert(groups.len());
        match groups.get_mut(at) {
            Some((_, members)) => members.push(linear),
            None => groups.push((kind, vec![linear])),
        }
    }
    groups.retain(|(_, members)| members.len() > 1);
    groups
}

fn mergeable(graph: &Graph, value: ValueId, stored: &dyn Fn(&str) -> Option<Stored>) -> Option<(Kind, Linear)> {
    let Op::Linear { parallel, out } = graph.node(value.node).op else { return None };
    let operands = graph.operands(value.node);
    let (x, weights) = operands.split_first()?;
    let own = |w: &ValueId| matches!(graph.node(w.node).op, Op::Weight(_)) && graph.sole_user(*w).is_some();
    let (parent, _) = graph.result(value).name.rsplit_once('.')?;
    let first = *weights.first()?;
    let stored = match &graph.node(first.node).op {
        Op::Weight(recipe) => stored_alike(recipe, stored),
        _ => None,
    };
    let (parent, weight, bias) = (parent.to_string(), graph.tensor(first).dtype, weights.len() > 1);
    let kind = Kind { x: *x, parent, parallel, out, weight, stored, bias };
    weights.iter().all(own).then(|| (kind, Linear { value, weights: weights.to_vec() }))
}

fn merge(graph: &mut Graph, kind: &Kind, linears: &[Linear]) {
    let name = format!("{}.{}", kind.parent, merged_name(&names(graph, linears)));
    let mut operands = vec![kind.x];
    for (i, part) in ["weight", "bias"].iter().take(1 + usize::from(kind.bias)).enumerate() {
        let parts: Vec<ValueId> = linears.iter().map(|l| l.weights[i]).collect();
        operands.push(concat(graph, &parts, &format!("{name}.{part}")));
    }
    let loc = graph.node(linears[0].value.node).loc.clone();
    let op = Op::Linear { parallel: kind.parallel, out: kind.out };
    let merged = ValueId { node: add(graph, op, &operands, &[name], loc), result: 0 };
    replace_by_slices(graph, merged, linears);
}

fn names(graph: &Graph, linears: &[Linear]) -> Vec<String> {
    let last = |name: &str| name.rsplit('.').next().unwrap_or(name).to_string();
    linears.iter().map(|l| last(&graph.result(l.value).name)).collect()
}

/// `q_proj`, `k_proj`, `v_proj`: `qkv_proj`; `gate_proj`, `up_proj`: `gate_up_proj`.
fn merged_name(names: &[String]) -> String {
    let stems: Option<Vec<&str>> = names.iter().map(|n| n.strip_suffix("_proj")).collect();
    let (stems, suffix) = match stems {
        Some(stems) => (stems, "_proj"),
        None => (names.iter().map(String::as_str).collect(), ""),
    };
    let separator = if stems.iter().all(|s| s.len() == 1) { "" } else { "_" };
    format!("{}{suffix}", stems.join(separator))
}

/// The weight that holds all `parts`, one after another along dimension 0.
fn concat(graph: &mut Graph, parts: &[ValueId], name: &str) -> ValueId {
    let recipes = parts.iter().filter_map(|w| match &graph.node(w.node).op {
        Op::Weight(recipe) => Some(recipe.clone()),
        _ => None,
    });
    let recipe = Recipe::Concat(recipes.collect());
    let mut dims = graph.tensor(parts[0]).dims.clone();
    dims[0] = parts.iter().filter_map(|w| graph.tensor(*w).dims[0].constant()).sum::<usize>().into();
    let ty = TensorType { dims, dtype: graph.tensor(parts[0]).dtype };
    let info = rvllm_ir::graph::ResultInfo { name: name.to_string(), ty: ValueType::Tensor(ty) };
    let loc = graph.node(parts[0].node).loc.clone();
    ValueId { node: graph.add(Op::Weight(recipe), &[], vec![info], loc), result: 0 }
}

fn replace_by_slices(graph: &mut Graph, merged: ValueId, linears: &[Linear]) {
    let mut start = 0;
    for linear in linears {
        let len = graph.tensor(linear.value).last().unwrap_or(0);
        let loc = graph.node(linear.value.node).loc.clone();
        let name = forget_name(graph, linear.value);
        let slice = add(graph, Op::Slice { start, len }, &[merged], &[name], loc);
        graph.replace(linear.value, ValueId { node: slice, result: 0 });
        start += len;
    }
}

#[cfg(test)]
mod tests {
    use super::merged_name;

    #[test]
    fn merged_names_follow_the_parts() {
        let name = |parts: &[&str]| merged_name(&parts.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(name(&["q_proj", "k_proj", "v_proj"]), "qkv_proj");
        assert_eq!(name(&["gate_proj", "up_proj"]), "gate_up_proj");
        assert_eq!(name(&["w1", "w3"]), "w1_w3");
    }
}

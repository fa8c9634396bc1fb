//! Whether a graph is legal: every error it has, each with the line that made the node.
//!
//! What is verified:
//! - the graph is acyclic, returns something, and every use names a result that exists;
//! - each node's operands are numbered 0, 1, 2 … without gaps, and its result types are what [`infer`] says;
//! - result names are identifiers of the text form and unique;
//! - weights have static shapes, and the shape and element type that their recipe fixes, where it fixes one;
//! - the KV cache of a layer enters once and is consumed by exactly one writer; nothing else reads it unwritten.

mod calls;
mod infer;
mod operands;
#[cfg(test)]
mod tests;

pub use infer::infer;

use super::{Graph, Input, Op, Use, ValueId, ValueType};
use crate::{
    diag::Diagnostic,
    recipe::{Part, Recipe, scale_dtype},
    text,
    types::DType,
};
use petgraph::{Direction, graph::NodeIndex, visit::EdgeRef};
use std::collections::{HashMap, HashSet};

/// The type that a builder records where [`infer`] fails: the verifier reports the node.
pub fn fallback(operands: &[&ValueType]) -> ValueType {
    operands.first().map_or(ValueType::Kv(0), |t| (*t).clone())
}

/// Everything that is wrong with `graph`, in node order; empty where it is legal.
pub fn verify(graph: &Graph) -> Vec<Diagnostic> {
    let mut v = Verifier { graph, errors: vec![] };
    for node in graph.dag().node_indices() {
        if v.uses(node) {
            v.types(node);
        }
        v.weight(node);
        v.kv_input(node);
    }
    v.names();
    v.cycles();
    v.outputs();
    v.errors
}

struct Verifier<'g> {
    graph: &'g Graph,
    errors: Vec<Diagnostic>,
}

impl Verifier<'_> {
    fn error(&mut self, node: NodeIndex, message: String) {
        self.errors.push(Diagnostic::new(message, self.graph.node(node).loc.clone()));
    }

    /// A node's first name, to tell the same line of a model in different layers apart.
    fn label(&self, node: NodeIndex) -> &str {
        self.graph.node(node).results.first().map_or("", |r| &r.name)
    }

    /// Operands without gaps and with existing sources; whether [`Graph::operands`] and types can be trusted.
    fn uses(&mut self, node: NodeIndex) -> bool {
        let graph = self.graph;
        let edges: Vec<(Use, NodeIndex)> =
            graph.dag().edges_directed(node, Direction::Incoming).map(|e| (*e.weight(), e.source())).collect();
        let numbers: HashSet<u32> = edges.iter().map(|(u, _)| u.operand).collect();
        let ordered = numbers.len() == edges.len() && numbers.iter().all(|n| (*n as usize) < edges.len());
        if !ordered {
            self.error(node, format!("operands of `{}` are not numbered 0 to {}", self.label(node), edges.len() - 1));
        }
        let dangling = edges.iter().find(|(u, source)| u.result as usize >= graph.node(*source).results.len());
        if let Some((u, source)) = dangling {
            let (label, source) = (self.label(node), self.label(*source));
            self.error(node, format!("`{label}` uses result {} of `{source}`, which has fewer", u.result));
        }
        ordered && dangling.is_none()
    }

    fn types(&mut self, index: NodeIndex) {
        let graph = self.graph;
        let node = graph.node(index);
        if matches!(node.op, Op::Weight(_)) {
            return;
        }
        let operands = graph.operands(index);
        let types: Vec<&ValueType> = operands.iter().map(|v| graph.ty(*v)).collect();
        match infer(&node.op, &types) {
            Err(message) => self.error(index, format!("{message} (in `{}`)", self.label(index))),
            Ok(inferred) => self.declared(index, &inferred),
        }
    }

    fn declared(&mut self, index: NodeIndex, inferred: &[ValueType]) {
        let node = self.graph.node(index);
        if node.results.len() != inferred.len() {
            let (name, n, declared) = (node.op.name(), inferred.len(), node.results.len());
            return self.error(index, format!("`{name}` has {n} results but {declared} are named"));
        }
        for (r, ty) in node.results.iter().zip(inferred).filter(|(r, ty)| r.ty != **ty) {
            self.error(index, format!("`{}` is declared {} but `{}` gives {ty}", r.name, r.ty, node.op.name()));
        }
    }

    fn weight(&mut self, index: NodeIndex) {
        let node = self.graph.node(index);
        let Op::Weight(recipe) = &node.op else { return };
        let [result] = node.results.as_slice() else {
            return self.error(index, format!("`weight` has 1 result but {} are named", node.results.len()));
        };
        if let Some(message) = weight_error(recipe, &result.ty) {
            self.error(index, format!("weight `{}` {message}", result.name));
        }
    }

    fn kv_input(&mut self, index: NodeIndex) {
        let graph = self.graph;
        let Op::Input(Input::Kv(layer)) = graph.node(index).op else { return };
        let twin = graph.dag().node_indices().find(|n| graph.node(*n).op == Op::Input(Input::Kv(layer)));
        if twin != Some(index) {
            self.error(index, format!("the KV cache of layer {layer} enters the graph twice"));
        }
        let users = graph.users(ValueId { node: index, result: 0 });
        let (writers, readers): (Vec<_>, Vec<_>) =
            users.into_iter().partition(|(n, operand)| graph.node(*n).op.written_kv() == Some(*operand));
        if writers.len() != 1 {
            self.error(index, format!("the KV cache of layer {layer} needs exactly one writer, not {}", writers.len()));
        }
        for (reader, _) in readers {
            let (label, op) = (self.label(reader), graph.node(reader).op.name());
            self.error(
                reader,
                format!("`{op}` reads the KV cache of layer {layer} before it is written (in `{label}`)"),
            );
        }
    }

    fn names(&mut self) {
        let graph = self.graph;
        let mut first: HashMap<&str, NodeIndex> = HashMap::new();
        for node in graph.dag().node_indices() {
            for r in &graph.node(node).results {
                if !text::is_identifier(&r.name) {
                    self.error(node, format!("`{}` is not an identifier (letters, digits, `_` and `.`)", r.name));
                }
                if first.insert(&r.name, node).is_some() {
                    self.error(node, format!("`{}` is defined twice", r.name));
                }
            }
        }
    }

    fn cycles(&mut self) {
        let ordered: HashSet<NodeIndex> = self.graph.order().into_iter().collect();
        for node in self.graph.dag().node_indices().filter(|n| !ordered.contains(n)) {
            self.error(node, format!("`{}` depends on itself", self.label(node)));
        }
    }

    fn outputs(&mut self) {
        let graph = self.graph;
        if graph.outputs.is_empty() {
            self.errors.push(Diagnostic::new(format!("graph @{} returns nothing", graph.name), None));
        }
        for out in &graph.outputs {
            let node = graph.dag().node_weight(out.node);
            if node.is_none_or(|n| out.result as usize >= n.results.len()) {
                self.errors.push(Diagnostic::new(format!("graph @{} returns a value that is gone", graph.name), None));
            }
        }
    }
}

/// What is wrong with a weight's type.
fn weight_error(recipe: &Recipe, ty: &ValueType) -> Option<String> {
    let ValueType::Tensor(ty) = ty else { return Some(format!("is {ty}, not a tensor")) };
    if ty.dims.iter().any(|d| d.constant().is_none()) {
        return Some(format!("has shape {ty}, which is not static"));
    }
    if let Some(dtype) = recipe_dtype(recipe).filter(|d| *d != ty.dtype) {
        return Some(format!("is {ty} but its recipe gives {dtype}"));
    }
    match recipe {
        Recipe::RopeTable { rope, positions } => {
            let shape = crate::TensorType::new([*positions, 2, rope.dim / 2], DType::F32);
            (shape != *ty).then(|| format!("is {ty} but its recipe gives {shape}"))
        }
        Recipe::Quantize { to, group, part, .. } => quantized_error(*to, *group, *part, ty),
        Recipe::Pack { .. } | Recipe::Blocks { .. } | Recipe::Fragments { .. } if ty.rank() != 2 => {
            Some(format!("is {ty}, but only [N, K] tensors are packed"))
        }
        Recipe::Concat(parts) if parts.is_empty() => Some("joins no tensors".to_string()),
        _ => None,
    }
}

/// What is wrong with the type of one of the two tensors of a quantised matrix.
fn quantized_error(to: DType, group: Option<usize>, part: Part, ty: &crate::TensorType) -> Option<String> {
    let fits = match (group, to) {
        (None, DType::I8 | DType::F8e4m3) => true,
        (Some(n), DType::U4 | DType::U8 | DType::F8e4m3) => n > 0,
        _ => false,
    };
    if !fits {
        let of = group.map_or("whole rows".to_string(), |n| format!("groups of {n}"));
        return Some(format!("quantises {of} to {to}: rows go to i8 or f8e4m3, groups to u4, u8 or f8e4m3"));
    }
    let rank = if part == Part::Scales && group.is_none() { 1 } else { 2 };
    let uneven = part == Part::Values && group.is_some_and(|n| !ty.last().is_some_and(|k| k.is_multiple_of(n)));
    match uneven || ty.rank() != rank {
        true => Some(format!("is {ty}, which its recipe does not give")),
        false => None,
    }
}

/// The element type that a recipe fixes; a checkpoint tensor's is only known to the checkpoint.
fn recipe_dtype(recipe: &Recipe) -> Option<DType> {
    match recipe {
        Recipe::Tensor(_) => None,
        Recipe::Concat(parts) => parts.iter().find_map(recipe_dtype),
        Recipe::Cast(dtype, _) => Some(*dtype),
        Recipe::Quantize { to, part: Part::Values, .. } => Some(*to),
        Recipe::Quantize { to, group, part: Part::Scales, .. } => Some(scale_dtype(*to, *group)),
        Recipe::Pack { of, .. } | Recipe::Blocks { of, .. } | Recipe::Fragments { of, .. } => recipe_dtype(of),
        Recipe::RopeTable { .. } => Some(DType::F32),
    }
}

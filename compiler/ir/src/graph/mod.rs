//! The graph IR: what a network computes on one ragged step, as a DAG of tensor operations.
//!
//! Storage is a `petgraph` DAG whose edges are uses; an edge knows which result of its source feeds
//! which operand of its target, and is the only place where that is written down. The KV cache is an
//! SSA value per layer, so that side effects are ordinary data dependencies.
//!
//! Invariants (checked by [`verify`]):
//! - acyclic; every operand present; result types are what [`op::Op`] infers from operand types;
//! - result names are unique: they are the identifiers of the text form;
//! - each layer's KV value is consumed by exactly one writer.

pub mod builder;
pub mod interp;
pub mod op;
pub mod parse;
pub mod print;
pub mod verify;

use crate::{diag::Loc, types::TensorType};
pub use op::{Attention, Call, Dequantize, Epilogue, Input, Op, Parallel, Quantize, Scales};
use petgraph::{
    Direction,
    stable_graph::{NodeIndex, StableDiGraph},
    visit::EdgeRef,
};
use std::{collections::BinaryHeap, fmt};

/// One result of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId {
    /// The node that defines it.
    pub node: NodeIndex,
    /// Which of the node's results.
    pub result: u32,
}

/// Type of a value: a tensor, or the opaque KV cache of a layer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ValueType {
    /// A tensor.
    Tensor(TensorType),
    /// The KV cache of this layer.
    Kv(usize),
}

impl ValueType {
    /// The tensor type, if it is one.
    pub fn tensor(&self) -> Option<&TensorType> {
        match self {
            ValueType::Tensor(t) => Some(t),
            ValueType::Kv(_) => None,
        }
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ValueType::Tensor(t) => t.fmt(f),
            ValueType::Kv(layer) => write!(f, "kv<{layer}>"),
        }
    }
}

/// Name and type of a result.
#[derive(Clone, Debug, PartialEq)]
pub struct ResultInfo {
    /// Identifier in text, unique in the graph: letters, digits, `_`, `.`.
    pub name: String,
    /// Its type.
    pub ty: ValueType,
}

/// An operation, its results and where it came from. Operands are the incoming edges.
#[derive(Clone, Debug)]
pub struct Node {
    /// What it computes.
    pub op: Op,
    /// Its results.
    pub results: Vec<ResultInfo>,
    /// The model's or the text's line.
    pub loc: Option<Loc>,
}

/// An edge: result `result` of the source is operand `operand` of the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use {
    /// Index among the source's results.
    pub result: u32,
    /// Index among the target's operands.
    pub operand: u32,
}

/// A graph: one `forward` over one step.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// Its name, as in `graph @name`.
    pub name: String,
    dag: StableDiGraph<Node, Use>,
    /// What it returns.
    pub outputs: Vec<ValueId>,
}

impl Graph {
    /// An empty graph.
    pub fn new(name: impl Into<String>) -> Graph {
        Graph { name: name.into(), ..Graph::default() }
    }

    /// The underlying DAG, for traversals (`petgraph::algo`, `petgraph::visit`).
    pub fn dag(&self) -> &StableDiGraph<Node, Use> {
        &self.dag
    }

    /// Adds a node. Names that are taken get a numeric suffix.
    pub fn add(&mut self, op: Op, operands: &[ValueId], mut results: Vec<ResultInfo>, loc: Option<Loc>) -> NodeIndex {
        for r in &mut results {
            r.name = self.unique(&r.name);
        }
        let node = self.dag.add_node(Node { op, results, loc });
        for (i, v) in operands.iter().enumerate() {
            self.dag.add_edge(v.node, node, Use { result: v.result, operand: i as u32 });
        }
        node
    }

    fn unique(&self, name: &str) -> String {
        let taken = |n: &str| self.dag.node_weights().any(|w| w.results.iter().any(|r| r.name == n));
        if !taken(name) {
            return name.to_string();
        }
        (1..).map(|i| format!("{name}_{i}")).find(|n| !taken(n)).unwrap_or_default()
    }

    /// The node at `index`. Panics if it was removed.
    pub fn node(&self, index: NodeIndex) -> &Node {
        &self.dag[index]
    }

    /// The node at `index`, to change. Panics if it was removed.
    pub fn node_mut(&mut self, index: NodeIndex) -> &mut Node {
        &mut self.dag[index]
    }

    /// Operands in order.
    pub fn operands(&self, node: NodeIndex) -> Vec<ValueId> {
        let mut edges: Vec<(u32, ValueId)> = self
            .dag
            .edges_directed(node, Direction::Incoming)
            .map(|e| (e.weight().operand, ValueId { node: e.source(), result: e.weight().result }))
            .collect();
        edges.sort();
        edges.into_iter().map(|(_, v)| v).collect()
    }

    /// Nodes that use `value` with the operand index, in node order.
    pub fn users(&self, value: ValueId) -> Vec<(NodeIndex, u32)> {
        let mut users: Vec<(NodeIndex, u32)> = self
            .dag
            .edges_directed(value.node, Direction::Outgoing)
            .filter(|e| e.weight().result == value.result)
            .map(|e| (e.target(), e.weight().operand))
            .collect();
        users.sort();
        users
    }

    /// The only user of `value`, if it has one and is not an output.
    pub fn sole_user(&self, value: ValueId) -> Option<NodeIndex> {
        match self.users(value).as_slice() {
            [(node, _)] if !self.outputs.contains(&value) => Some(*node),
            _ => None,
        }
    }

    /// Type of a value.
    pub fn ty(&self, value: ValueId) -> &ValueType {
        &self.result(value).ty
    }

    /// Tensor type of a value. Panics on a KV value: a compiler bug, as the verifier excludes it.
    #[track_caller]
    pub fn tensor(&self, value: ValueId) -> &TensorType {
        self.ty(value).tensor().expect("value is a tensor")
    }

    /// Name and type of a value.
    pub fn result(&self, value: ValueId) -> &ResultInfo {
        &self.dag[value.node].results[value.result as usize]
    }

    /// Makes every user and output of `old` use `new` instead.
    pub fn replace(&mut self, old: ValueId, new: ValueId) {
        let edges: Vec<_> = self
            .dag
            .edges_directed(old.node, Direction::Outgoing)
            .filter(|e| e.weight().result == old.result && e.target() != new.node)
            .map(|e| (e.id(), e.target(), e.weight().operand))
            .collect();
        for (edge, target, operand) in edges {
            self.dag.remove_edge(edge);
            self.dag.add_edge(new.node, target, Use { result: new.result, operand });
        }
        for out in &mut self.outputs {
            if *out == old {
                *out = new;
            }
        }
    }

    /// Removes every node that no output depends on.
    pub fn remove_dead(&mut self) {
        let mut live = std::collections::HashSet::new();
        let mut work: Vec<NodeIndex> = self.outputs.iter().map(|v| v.node).collect();
        while let Some(n) = work.pop() {
            if live.insert(n) {
                work.extend(self.dag.neighbors_directed(n, Direction::Incoming));
            }
        }
        self.dag.retain_nodes(|_, n| live.contains(&n));
    }

    /// Nodes in dependency order; among those that are ready, the oldest first. A cycle's nodes are left out.
    pub fn order(&self) -> Vec<NodeIndex> {
        let mut missing: std::collections::HashMap<NodeIndex, usize> =
            self.dag.node_indices().map(|n| (n, self.dag.edges_directed(n, Direction::Incoming).count())).collect();
        let mut ready: BinaryHeap<std::cmp::Reverse<NodeIndex>> =
            missing.iter().filter(|(_, m)| **m == 0).map(|(n, _)| std::cmp::Reverse(*n)).collect();
        let mut order = Vec::with_capacity(missing.len());
        while let Some(std::cmp::Reverse(n)) = ready.pop() {
            order.push(n);
            for e in self.dag.edges_directed(n, Direction::Outgoing) {
                if let Some(m) = missing.get_mut(&e.target()) {
                    *m -= 1;
                    if *m == 0 {
                        ready.push(std::cmp::Reverse(e.target()));
                    }
                }
            }
        }
        order
    }
}

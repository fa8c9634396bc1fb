//! The passes, in the order in which they run: [`merge_linear`], [`fuse`], [`quantize`] where it
//! was asked for, [`bucket`], [`select`], [`plan_memory`].
//!
//! The first three are target independent and map a graph to a graph; [`select`] makes the launch list of one target,
//! with [`bucket`]'s variants; [`plan_memory`] gives its buffers their places.
//!
//! Invariants:
//! - a pass is a pure function; the driver verifies the graph after each;
//! - the same graph gives the same result: no pass iterates over a hash table.

pub mod bucket;
pub mod fuse;
pub mod merge_linear;
pub mod plan_memory;
pub mod quantize;
pub mod select;

use petgraph::stable_graph::NodeIndex;
use rvllm_ir::{
    Diagnostic, Loc,
    graph::{Graph, Op, ResultInfo, ValueId, ValueType, verify},
};
use std::fmt;

/// A graph that a pass broke: a bug of the compiler. Prints the errors, then the graph.
#[derive(Clone, Debug, thiserror::Error)]
#[error("compiler bug: the graph is not legal after {pass}; please report it with this output\n{errors}\n{graph}")]
pub struct PassBug {
    pass: &'static str,
    errors: Diagnostics,
    graph: String,
}

/// All errors of a program, one a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostics(pub Vec<Diagnostic>);

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(Diagnostic::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for Diagnostics {}

/// The graph, if it is legal after `pass`.
pub fn check(pass: &'static str, graph: Graph) -> Result<Graph, PassBug> {
    let errors = verify::verify(&graph);
    match errors.is_empty() {
        true => Ok(graph),
        false => Err(PassBug { pass, errors: Diagnostics(errors), graph: graph.to_string() }),
    }
}

/// Adds an operation whose result types are inferred, with result `i` named `names[i]`. Where the operands do not
/// fit, the node gets a type that makes the verifier report it.
pub(crate) fn add(graph: &mut Graph, op: Op, operands: &[ValueId], names: &[String], loc: Option<Loc>) -> NodeIndex {
    let types: Vec<&ValueType> = operands.iter().map(|v| graph.ty(*v)).collect();
    let types = verify::infer(&op, &types).unwrap_or_else(|_| vec![verify::fallback(&types)]);
    let results = types.into_iter().zip(names).map(|(ty, name)| ResultInfo { name: name.clone(), ty }).collect();
    graph.add(op, operands, results, loc)
}

/// Takes a value's name away, for the value that replaces it.
pub(crate) fn forget_name(graph: &mut Graph, value: ValueId) -> String {
    std::mem::take(&mut graph.node_mut(value.node).results[value.result as usize].name)
}

//! A plain interpreter of graphs: the oracle that passes and kernels are checked against.
//!
//! Invariants:
//! - arithmetic is in f32, sums of products and of squares in f64; a result is rounded once, to its value's
//!   element type, so that inside one kernel call nothing is rounded;
//! - a call means what its tensor operations mean: a graph before and after a pass gives the same numbers in f32;
//! - illegal graphs and inconsistent steps are errors, never panics.

mod attention;
mod calls;
mod kv;
mod math;
mod ops;
mod quantize;
mod step;
mod tensor;
#[cfg(test)]
mod tests;
mod weights;

pub use kv::KvState;
pub use step::{Sequence, StepInputs};
pub use tensor::{Data, Tensor};
pub use weights::Checkpoint;

use super::{Graph, Op, ValueId, ValueType, verify};
use crate::{
    diag::Diagnostic,
    expr::Sym,
    recipe::Recipe,
    types::{Dim, TensorType},
};
use petgraph::graph::NodeIndex;
use std::{collections::HashMap, sync::Arc};

/// Why a graph could not be run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller's: the graph does not verify.
    #[error("graph @{graph} is illegal: {}", .errors.iter().map(|e| e.message.as_str()).collect::<Vec<_>>().join("; "))]
    Illegal {
        /// The graph's name.
        graph: String,
        /// All that is wrong.
        errors: Vec<Diagnostic>,
    },
    /// The checkpoint's: a weight is missing or has another shape.
    #[error("weight {recipe}: {message}")]
    Weight {
        /// The weight's recipe, as text.
        recipe: String,
        /// What is wrong.
        message: String,
    },
    /// The step's: an index points outside of what it indexes.
    #[error("{what} {index} is not below {limit}")]
    Index {
        /// What the index is.
        what: &'static str,
        /// Its value.
        index: i64,
        /// One past the largest.
        limit: usize,
    },
    /// The step's: its arrays disagree.
    #[error("the step is inconsistent: {0}")]
    Step(String),
    /// A bug in the interpreter: a result has not the shape that its type has in this step.
    #[error("`{value}` is {ty} but the interpreter computed {found}")]
    Shape {
        /// Name of the value.
        value: String,
        /// Its type.
        ty: String,
        /// The computed shape and element type.
        found: String,
    },
}

/// Where weights come from: [`Checkpoint::weight`], or values that a test makes up.
pub type Weights<'w> = dyn Fn(&Recipe, &TensorType) -> Result<Arc<Tensor>, Error> + 'w;

/// What `graph` returns for one step. Writes the step's keys and values into `kv`.
pub fn run(
    graph: &Graph,
    weights: &Weights<'_>,
    step: &StepInputs,
    kv: &mut KvState,
) -> Result<Vec<Arc<Tensor>>, Error> {
    let errors = verify::verify(graph);
    if !errors.is_empty() {
        return Err(Error::Illegal { graph: graph.name.clone(), errors });
    }
    step.check(kv)?;
    let mut frame = Frame { graph, weights, step, kv, values: HashMap::new() };
    for node in graph.order() {
        frame.execute(node)?;
    }
    graph.outputs.iter().map(|out| frame.output(*out)).collect()
}

/// What a graph's run knows so far. KV values have no tensor: they stand for states of `kv`.
struct Frame<'a> {
    graph: &'a Graph,
    weights: &'a Weights<'a>,
    step: &'a StepInputs,
    kv: &'a mut KvState,
    values: HashMap<ValueId, Arc<Tensor>>,
}

impl Frame<'_> {
    fn execute(&mut self, index: NodeIndex) -> Result<(), Error> {
        let node = self.graph.node(index);
        let results = match &node.op {
            Op::Weight(recipe) => {
                let ty = self.graph.tensor(ValueId { node: index, result: 0 });
                vec![(self.weights)(recipe, ty)?]
            }
            op => {
                let operands: Vec<Arc<Tensor>> =
                    self.graph.operands(index).iter().filter_map(|v| self.values.get(v).cloned()).collect();
                let operands: Vec<&Tensor> = operands.iter().map(Arc::as_ref).collect();
                let results = ops::evaluate(op, &operands, self.step, self.kv)?;
                let types = node.results.iter().filter_map(|r| r.ty.tensor());
                results.into_iter().zip(types).map(|(t, ty)| Arc::new(t.rounded(ty.dtype))).collect()
            }
        };
        let tensors = node.results.iter().enumerate().filter(|(_, r)| r.ty.tensor().is_some());
        for ((result, _), tensor) in tensors.zip(results) {
            self.define(ValueId { node: index, result: result as u32 }, tensor)?;
        }
        Ok(())
    }

    fn define(&mut self, value: ValueId, tensor: Arc<Tensor>) -> Result<(), Error> {
        let (ty, name) = (self.graph.tensor(value), &self.graph.result(value).name);
        let dims: Vec<usize> = ty.dims.iter().map(|d| self.size(*d)).collect();
        if dims != tensor.dims || ty.dtype != tensor.dtype {
            let found = format!("{:?}{}", tensor.dims, tensor.dtype);
            return Err(Error::Shape { value: name.clone(), ty: ty.to_string(), found });
        }
        self.values.insert(value, tensor);
        Ok(())
    }

    fn size(&self, dim: Dim) -> usize {
        let symbol = |s: Sym| if s == Sym::P { self.kv.blocks() } else { self.step.symbol(s) };
        match dim {
            Dim::Const(n) => n,
            Dim::Sym(s) => symbol(s),
            Dim::SymPlusOne(s) => symbol(s) + 1,
        }
    }

    fn output(&self, value: ValueId) -> Result<Arc<Tensor>, Error> {
        self.values.get(&value).cloned().ok_or_else(|| {
            let ty = self.graph.ty(value);
            debug_assert!(matches!(ty, ValueType::Kv(_)), "every tensor of a legal graph has a value");
            Error::Step(format!("`{}` is {ty}, which no graph can return", self.graph.result(value).name))
        })
    }
}

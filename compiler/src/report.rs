//! What a compile made.

use crate::program::Limits;
use rvllm_artifact::Checkpoint;
use rvllm_ir::graph::{Call, Graph, Op, Scales};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

/// What a compile made.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The artifact, where one was written.
    pub artifact: Option<PathBuf>,
    /// Its size.
    pub bytes: u64,
    /// Name of the model.
    pub model: String,
    /// Element type of activations and weights.
    pub dtype: &'static str,
    /// Parameters of the model.
    pub parameters: u64,
    /// Bytes of the weights as kernels read them, over all targets.
    pub weight_bytes: u64,
    /// What weights of products are, and how many products have such.
    pub products: BTreeMap<String, usize>,
    /// Matrices that the checkpoint stores quantised and that were widened to numbers.
    pub widened: usize,
    /// Bytes of KV cache that a token takes.
    pub kv_bytes_per_token: u64,
    /// Bounds of a step.
    pub limits: Limits,
    /// One for each target.
    pub targets: Vec<TargetReport>,
    /// How long it took.
    pub elapsed: Duration,
}

/// What was made for one target.
#[derive(Clone, Debug, PartialEq)]
pub struct TargetReport {
    /// Its name.
    pub name: String,
    /// Distinct kernels.
    pub kernels: usize,
    /// Launches of a step.
    pub launches: usize,
    /// Size of the object code.
    pub kernel_bytes: u64,
    /// Size of the arena.
    pub arena_bytes: u64,
    /// For a GPU what assembled the code: `ptxas 13.0.88`, or that nothing did.
    pub assembler: Option<String>,
}

/// What weights of a graph's products are: `bf16`, `u4 in groups of 128 with zeros` …
pub(crate) fn products(graph: &Graph) -> BTreeMap<String, usize> {
    let mut products = BTreeMap::new();
    for n in graph.order() {
        if let (Op::Call(Call::Gemm { scales, .. }), Some(weight)) = (&graph.node(n).op, graph.operands(n).get(1)) {
            let values = graph.tensor(*weight).dtype;
            let kind = match scales {
                Scales::None => values.to_string(),
                Scales::Rows => format!("{values} in rows"),
                Scales::Groups(columns) | Scales::FloatGroups(columns) => format!("{values} in groups of {columns}"),
                Scales::GroupsWithZeros(columns) => format!("{values} in groups of {columns} with zeros"),
                Scales::WeightOnly { group, zeros } => {
                    let zeros = if *zeros { " with zeros" } else { "" };
                    format!("{values} in groups of {group}{zeros}, activations as they are")
                }
            };
            *products.entry(kind).or_insert(0) += 1;
        }
    }
    products
}

/// How many matrices a graph reads as numbers that the checkpoint stores quantised.
pub(crate) fn widened(graph: &Graph, checkpoint: Option<&Checkpoint>) -> usize {
    let Some(checkpoint) = checkpoint else { return 0 };
    let order = graph.order();
    let recipes = order.iter().filter_map(|n| match &graph.node(*n).op {
        Op::Weight(recipe) => Some(recipe.sources()),
        _ => None,
    });
    recipes.flatten().filter(|name| checkpoint.is_quantized(name)).collect::<BTreeSet<_>>().len()
}

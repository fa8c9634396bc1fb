//! What a compile made.

use crate::program::Limits;
use std::{path::PathBuf, time::Duration};

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

//! `manifest.json`: what the artifact is, for which hardware, with which weights.

use crate::{parsers::Parsers, plan::DType};
use serde::{Deserialize, Serialize};

/// Version of the format. Readers take the same major and older minors.
///
/// 2.0: a step brings temperatures and random numbers, its outputs are sums and drawn tokens too
/// ([`crate::plan::Outputs::draws`]), and grids may be bounded ([`crate::plan::Expr::Min`]).
///
/// 2.2: a step may take tokens from the one before it ([`crate::plan::Plan::feeds`]).
///
/// 2.3: the most likely tokens of a row are found ([`crate::plan::Outputs::most_likely`]); groups of weights are quantised to floats too
/// ([`crate::recipe::Recipe::Quantize`]).
pub const FORMAT: &str = "2.3";

/// [`Target::arch`] of NVIDIA GPUs.
pub const NVPTX: &str = "nvptx64";

/// The manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// `major.minor` of the format; read before anything else.
    pub format: String,
    /// Name and version of the compiler: `rvllm 0.1.0`.
    pub compiler: String,
    /// The model.
    pub model: Model,
    /// The KV cache.
    pub kv_cache: KvCache,
    /// Where the weights are.
    pub weights: Weights,
    /// Shape of every checkpoint tensor that a recipe reads, by name: what a checkpoint named at load has to
    /// bring, and what random weights are made for.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub tensors: std::collections::BTreeMap<String, Vec<u64>>,
    /// Compiled targets, in the order asked for.
    pub targets: Vec<Target>,
    /// SHA-256 of every other entry but the weights, by entry name, sorted.
    pub entries: std::collections::BTreeMap<String, String>,
}

/// Facts of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Directory or hub name that it was compiled from: the default of `--served-model-name`.
    pub name: String,
    /// `architectures[0]` of the config.
    pub architecture: String,
    /// Element type of activations and weights.
    pub dtype: DType,
    /// Number of parameters.
    pub parameters: u64,
    /// Rows of the embedding.
    pub vocab_size: u32,
    /// Width of the residual stream.
    pub hidden_size: u32,
    /// Decoder layers.
    pub num_hidden_layers: u32,
    /// Longest sequence, prompt and answer together.
    pub max_model_len: u32,
    /// First token of a text, where the config names one.
    pub bos_token_id: Option<u32>,
    /// Tokens that end an answer, from generation_config.json, else from config.json.
    pub eos_token_ids: Vec<u32>,
    /// How it writes tool calls and reasoning, told from its chat template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parsers: Option<Parsers>,
}

/// Shape of the paged KV cache.
///
/// Memory: for each layer all K blocks, then all V blocks, then the scales of all K blocks, then those of all V blocks. With
/// `L = num_blocks * (k_bytes + v_bytes + 2 * scale_bytes)`, block b of layer l starts at `l * L + b * k_bytes` and
/// `l * L + num_blocks * k_bytes + b * v_bytes`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KvCache {
    /// Tokens of a block.
    pub block_size: u32,
    /// Layers that have a cache.
    pub num_layers: u32,
    /// Heads.
    pub num_kv_heads: u32,
    /// Elements of a head.
    pub head_dim: u32,
    /// Element type: of values with scales where it has 8 bits.
    pub dtype: DType,
    /// Bytes of a block of K of one layer, padding of its layout included.
    pub k_bytes: u64,
    /// Bytes of a block of V of one layer, padding of its layout included.
    pub v_bytes: u64,
    /// Bytes of the scales of a block of K of one layer, f32 `[num_kv_heads, block_size]`, and of as many of V; 0 where
    /// blocks hold numbers.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub scale_bytes: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl KvCache {
    /// Bytes of one block over all layers.
    pub fn bytes_per_block(&self) -> u64 {
        let sizes = [self.k_bytes, self.v_bytes, self.scale_bytes, self.scale_bytes];
        u64::from(self.num_layers).saturating_mul(sizes.into_iter().fold(0, u64::saturating_add))
    }
}

/// Where the weights are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "snake_case", deny_unknown_fields)]
pub enum Weights {
    /// In the artifact, after their recipes.
    Embed {
        /// Entry names, in order.
        files: Vec<String>,
    },
    /// In a checkpoint: recipes run at load.
    External {
        /// Directory of the checkpoint when it was compiled; `--weights-path` overrides it.
        path: String,
        /// The checkpoint's files.
        files: Vec<CheckpointFile>,
    },
    /// Not said: the user names a checkpoint (or dummy weights) at load.
    None,
    /// Random, from this seed: for measuring without a checkpoint.
    Dummy {
        /// Seed.
        seed: u64,
    },
}

impl Weights {
    /// Entries that hold weights.
    pub fn embedded(&self) -> &[String] {
        match self {
            Weights::Embed { files } => files,
            Weights::External { .. } | Weights::None | Weights::Dummy { .. } => &[],
        }
    }
}

/// A file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointFile {
    /// File name in the checkpoint's directory.
    pub name: String,
    /// Size.
    pub bytes: u64,
    /// SHA-256 of the safetensors header (names, types, shapes and offsets of all tensors).
    pub header_sha256: String,
}

/// One compiled target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Name as given to `--target`.
    pub name: String,
    /// `x86_64`, `aarch64`; `nvptx64` for an NVIDIA GPU.
    pub arch: String,
    /// CPU features that the code uses, by Rust's names (`avx512f`, `avx512bf16`, `amx-bf16`); of a GPU the compute
    /// architecture (`sm_90a`).
    pub features: Vec<String>,
    /// Entry of the plan.
    pub plan: String,
    /// Entry of the object code.
    pub kernels: String,
}

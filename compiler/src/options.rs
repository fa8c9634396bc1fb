//! What a compile is asked for.

use std::{fmt, path::PathBuf, str::FromStr};

/// Everything that a compile is asked for. What is absent has a default that follows from the model.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Directory of a checkpoint (or of a config alone), or hub id (`org/name`).
    pub model: String,
    /// Names of targets, or `native`.
    pub targets: Vec<String>,
    /// Where the artifact goes; `NAME.TARGET.rvllm` in the working directory where absent.
    pub output: Option<PathBuf>,
    /// Element type of activations and weights.
    pub dtype: DTypeChoice,
    /// Element type of the KV cache.
    pub kv_cache_dtype: KvCacheChoice,
    /// How weights and the activations that they are multiplied with are quantised, where they are.
    pub quantize: Option<QuantizeChoice>,
    /// Whether weights that the checkpoint stores quantised are multiplied with as they are stored, where the targets can;
    /// else they are widened to [`Options::dtype`].
    pub as_stored: bool,
    /// Longest sequence; the model's `max_position_embeddings` where absent.
    pub max_model_len: Option<usize>,
    /// Most tokens of a step; where absent what the target's facts say of a GPU, and on CPUs `max_model_len`, but at least 512 and
    /// at most 2048.
    pub max_num_batched_tokens: Option<usize>,
    /// Most sequences of a step; where absent what the target's facts say of a GPU, and 256 on CPUs.
    pub max_num_seqs: Option<usize>,
    /// Most rows of logits of a step; `max_num_seqs`, but at least 256, or on CPUs fewer where the vocabulary is large, where
    /// absent.
    pub max_logits: Option<usize>,
    /// Where weights go.
    pub weights: WeightsMode,
    /// Random weights from this seed instead of a checkpoint's.
    pub dummy_weights: Option<u64>,
    /// Expected outputs for `rvllm verify`; the checkpoint's `goldens.json` where absent.
    pub goldens: Option<PathBuf>,
    /// Stages to dump.
    pub emit: Vec<Stage>,
    /// Whether to write an artifact: dumping alone needs none.
    pub artifact: bool,
}

impl Options {
    /// An artifact of `model` for this machine, with every default.
    pub fn new(model: impl Into<String>) -> Options {
        Options {
            model: model.into(),
            targets: vec!["native".into()],
            output: None,
            dtype: DTypeChoice::Auto,
            kv_cache_dtype: KvCacheChoice::Auto,
            quantize: None,
            as_stored: true,
            max_model_len: None,
            max_num_batched_tokens: None,
            max_num_seqs: None,
            max_logits: None,
            weights: WeightsMode::Embed,
            dummy_weights: None,
            goldens: None,
            emit: vec![],
            artifact: true,
        }
    }
}

/// Element type of activations and weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DTypeChoice {
    /// bf16 for checkpoints in bf16 or f16, f32 for those in f32.
    #[default]
    Auto,
    /// bfloat16 with f32 accumulation.
    Bf16,
    /// f32 throughout.
    F32,
}

/// Element type of the KV cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KvCacheChoice {
    /// That of activations.
    #[default]
    Auto,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// f32.
    F32,
    /// e4m3, with an f32 scale for each token and KV head.
    Fp8,
    /// 8-bit integers, with an f32 scale for each token and KV head.
    Int8,
}

/// How products are quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QuantizeChoice {
    /// Weights to i8 with a scale for each output, activations to i8 with a scale for each token.
    Int8,
    /// Weights to 4 bits with an f16 scale for 32 inputs of an output, activations to i8 with a scale for each token.
    Int4,
    /// Weights to e4m3 with a scale for each output, activations to e4m3 with a scale for each token; not the product that
    /// gives logits.
    Fp8,
}

impl fmt::Display for QuantizeChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            QuantizeChoice::Int8 => "int8",
            QuantizeChoice::Int4 => "int4",
            QuantizeChoice::Fp8 => "fp8",
        })
    }
}

/// Where weights go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WeightsMode {
    /// Into the artifact, after their recipes.
    #[default]
    Embed,
    /// They stay in the checkpoint; recipes run at load.
    External,
    /// Nowhere: a checkpoint is named at load.
    None,
}

/// A stage of the compiler that can be dumped as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// The model's graph.
    Graph,
    /// The graph in kernel calls.
    Fused,
    /// Kernels in tile IR.
    Tile,
    /// Kernels in MLIR, before lowering.
    Mlir,
    /// Kernels in optimised LLVM IR.
    Llvm,
    /// Kernels in assembly.
    Asm,
}

impl Stage {
    /// Every stage, in order.
    pub const ALL: [Stage; 6] = [Stage::Graph, Stage::Fused, Stage::Tile, Stage::Mlir, Stage::Llvm, Stage::Asm];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Graph => "graph",
            Stage::Fused => "fused",
            Stage::Tile => "tile",
            Stage::Mlir => "mlir",
            Stage::Llvm => "llvm",
            Stage::Asm => "asm",
        }
    }

    /// Extension of a file that holds it; no two are alike.
    pub fn extension(self) -> &'static str {
        match self {
            Stage::Graph => "graph.rir",
            Stage::Fused => "fused.rir",
            Stage::Tile => "tile.rir",
            Stage::Mlir => "mlir",
            Stage::Llvm => "ll",
            Stage::Asm => "s",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Stage {
    type Err = String;

    fn from_str(text: &str) -> Result<Stage, String> {
        let names = || Stage::ALL.map(Stage::name).join(", ");
        Stage::ALL.into_iter().find(|s| s.name() == text).ok_or_else(|| format!("expected one of {}", names()))
    }
}

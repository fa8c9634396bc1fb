//! `rvllm inspect`: what an artifact holds, which targets fit this machine, and what memory it needs.
//!
//! Invariants: nothing is loaded but the manifest and the plans, so it is as fast for a large model as for a small one.

use crate::{cli, eval, model::dtype_name, quantization};
use anyhow::{Context, Result};
use rvllm_artifact::{
    Artifact, cpu,
    gpu::GpuKernel,
    manifest::{KvCache, Model, NVPTX, Target, Weights},
    plan::Plan,
};
use rvllm_engine::device::cuda;
use serde::Serialize;
use serde_json::Value;
use std::{collections::BTreeMap, env, io, io::Write};

/// Runs the command.
pub fn run(args: &cli::Inspect) -> Result<()> {
    let artifact = Artifact::open(&args.artifact)?;
    let report = Report::new(&artifact, args)?;
    let text = match args.json {
        true => serde_json::to_string_pretty(&report)? + "\n",
        false => crate::table::of(&report),
    };
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("cannot write the report")
}

/// All that is told about an artifact.
#[derive(Serialize)]
pub struct Report<'a> {
    /// Its path.
    pub file: &'a str,
    /// Version of the format.
    pub format: &'a str,
    /// What wrote it.
    pub compiler: &'a str,
    /// The model.
    pub model: &'a Model,
    /// Shape of the KV cache.
    pub kv_cache: &'a KvCache,
    /// Where the weights are.
    pub weights: &'a Weights,
    /// The compiled targets.
    pub targets: Vec<TargetReport<'a>>,
    /// Memory that the target needs which this machine would choose, or the first.
    pub memory: Memory,
    /// What `rvllm eval perplexity --store` put there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<Value>,
    /// Every entry of the file.
    pub entries: Vec<Entry<'a>>,
}

/// One target.
#[derive(Serialize)]
pub struct TargetReport<'a> {
    /// Name, architecture, features.
    #[serde(flatten)]
    pub target: &'a Target,
    /// Whether this machine runs it.
    pub fits: bool,
    /// Features that this machine lacks.
    pub missing: Vec<&'a str>,
    /// Bytes of object code.
    pub kernel_bytes: usize,
    /// Bytes of the arena.
    pub arena_bytes: u64,
    /// Bytes of weights as its kernels read them.
    pub weights_bytes: u64,
    /// How many matrices are values of which scheme, in words; empty where all are numbers.
    pub quantization: BTreeMap<String, usize>,
    /// Number of kernels.
    pub num_kernels: usize,
    /// Number of launches of a step.
    pub num_launches: usize,
    /// Most tokens of a step.
    pub max_num_batched_tokens: u32,
    /// Most sequences of a step.
    pub max_num_seqs: u32,
    /// The plan, where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<&'a Plan>,
    /// The kernels' symbols, where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernels: Option<Vec<&'a str>>,
    /// What each kernel takes of a GPU, in the same order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_kernels: Option<Vec<&'a GpuKernel>>,
}

/// Where memory goes, in bytes.
#[derive(Debug, PartialEq, Serialize)]
pub struct Memory {
    /// Target that the figures are of.
    pub target: String,
    /// Weights.
    pub weights: u64,
    /// Arena: every intermediate value of the largest step.
    pub arena: u64,
    /// KV cache of one token.
    pub kv_per_token: u64,
    /// KV cache of one sequence of the model's length.
    pub kv_per_sequence: u64,
    /// What fits in some amounts of memory.
    pub fits: Vec<Fit>,
}

/// What fits in an amount of memory, beside weights and arena.
#[derive(Debug, PartialEq, Serialize)]
pub struct Fit {
    /// The amount, in bytes.
    pub memory: u64,
    /// Tokens of KV cache; `None` where weights and arena alone do not fit.
    pub tokens: Option<u64>,
    /// Sequences of the model's length.
    pub sequences: Option<u64>,
}

/// An entry of the file.
#[derive(Serialize)]
pub struct Entry<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its size.
    pub bytes: u64,
}

impl<'a> Report<'a> {
    fn new(artifact: &'a Artifact, args: &cli::Inspect) -> Result<Report<'a>> {
        let manifest = artifact.manifest();
        let targets =
            manifest.targets.iter().map(|t| TargetReport::new(artifact, t, args)).collect::<Result<Vec<_>>>()?;
        let chosen = artifact.target(&cpu::has_feature).ok().map(|t| t.name.as_str());
        let target = targets.iter().find(|t| Some(t.target.name.as_str()) == chosen).or(targets.first());
        let target = target.context("the artifact has no target")?;
        let memory = Memory::new(target, &manifest.kv_cache, u64::from(manifest.model.max_model_len), &args.memory);
        Ok(Report {
            file: artifact.file(),
            format: &manifest.format,
            compiler: &manifest.compiler,
            model: &manifest.model,
            kv_cache: &manifest.kv_cache,
            weights: &manifest.weights,
            targets,
            memory,
            perplexity: artifact.entry(eval::ENTRY).and_then(|json| serde_json::from_slice(json).ok()),
            entries: artifact.entries().map(|(name, bytes)| Entry { name, bytes }).collect(),
        })
    }

    /// The element type of activations and weights.
    pub fn dtype(&self) -> String {
        dtype_name(self.model.dtype)
    }
}

impl<'a> TargetReport<'a> {
    fn new(artifact: &'a Artifact, target: &'a Target, args: &cli::Inspect) -> Result<TargetReport<'a>> {
        let plan = artifact.plan(target)?;
        let on_gpu = target.arch == NVPTX;
        let gpu = if on_gpu { cuda::probe(0, "the target").ok() } else { None };
        let has = |f: &str| gpu.as_ref().map_or_else(|| cpu::has_feature(f), |gpu| gpu.runs(f));
        let missing: Vec<&str> = target.features.iter().map(String::as_str).filter(|f| !has(f)).collect();
        Ok(TargetReport {
            target,
            fits: (target.arch == env::consts::ARCH || gpu.is_some()) && missing.is_empty(),
            missing,
            kernel_bytes: artifact.kernels(target)?.len(),
            arena_bytes: plan.arena_bytes,
            weights_bytes: plan.weights.iter().map(|w| w.bytes().unwrap_or(u64::MAX)).fold(0, u64::saturating_add),
            quantization: quantization::schemes(plan),
            num_kernels: plan.kernels.len(),
            num_launches: plan.launches.len(),
            max_num_batched_tokens: plan.max_num_batched_tokens,
            max_num_seqs: plan.max_num_seqs,
            plan: args.plan.then_some(plan),
            kernels: args.kernels.then(|| plan.kernels.iter().map(|k| k.symbol.as_str()).collect()),
            gpu_kernels: (args.kernels && on_gpu).then(|| plan.kernels.iter().filter_map(|k| k.gpu.as_ref()).collect()),
        })
    }
}

impl Memory {
    fn new(target: &TargetReport<'_>, kv: &KvCache, max_model_len: u64, amounts: &[u64]) -> Memory {
        let block = kv.bytes_per_block().max(1);
        let blocks_per_sequence = max_model_len.div_ceil(u64::from(kv.block_size).max(1)).max(1);
        let fixed = target.weights_bytes.saturating_add(target.arena_bytes);
        let per_sequence = blocks_per_sequence.saturating_mul(block);
        let fit = |memory: u64| {
            let blocks = memory.checked_sub(fixed).map(|left| left / block);
            let tokens = blocks.map(|b| b.saturating_mul(u64::from(kv.block_size)));
            Fit { memory, tokens, sequences: blocks.map(|b| b / blocks_per_sequence) }
        };
        let amounts =
            if amounts.is_empty() { usual_amounts(fixed.saturating_add(per_sequence)) } else { amounts.to_vec() };
        Memory {
            target: target.target.name.clone(),
            weights: target.weights_bytes,
            arena: target.arena_bytes,
            kv_per_token: block / u64::from(kv.block_size).max(1),
            kv_per_sequence: per_sequence,
            fits: amounts.into_iter().map(fit).collect(),
        }
    }
}

/// Four powers of two, the first with room for one sequence.
fn usual_amounts(needed: u64) -> Vec<u64> {
    let first = needed.checked_next_power_of_two().unwrap_or(u64::MAX);
    (0..4).map(|n| first.saturating_mul(1 << n)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rvllm_artifact::plan::DType;

    fn kv() -> KvCache {
        let (k_bytes, v_bytes) = (1000, 1000);
        KvCache {
            block_size: 16,
            num_layers: 2,
            num_kv_heads: 1,
            head_dim: 8,
            dtype: DType::F32,
            k_bytes,
            v_bytes,
            scale_bytes: 0,
        }
    }

    fn target(target: &Target) -> TargetReport<'_> {
        TargetReport {
            target,
            fits: true,
            missing: vec![],
            kernel_bytes: 0,
            arena_bytes: 3000,
            weights_bytes: 5000,
            quantization: BTreeMap::new(),
            num_kernels: 0,
            num_launches: 0,
            max_num_batched_tokens: 0,
            max_num_seqs: 0,
            plan: None,
            kernels: None,
            gpu_kernels: None,
        }
    }

    #[test]
    fn memory_is_counted_in_whole_blocks() {
        let name = |s: &str| s.to_string();
        let t = Target { name: name("t"), arch: name("a"), features: vec![], plan: name("p"), kernels: name("k") };
        let memory = Memory::new(&target(&t), &kv(), 40, &[7999, 8000, 20_000, 32_001]);
        assert_eq!((memory.kv_per_token, memory.kv_per_sequence), (250, 12_000));
        let fits: Vec<_> = memory.fits.iter().map(|f| (f.tokens, f.sequences)).collect();
        assert_eq!(fits, [(None, None), (Some(0), Some(0)), (Some(48), Some(1)), (Some(96), Some(2))]);
        let usual = Memory::new(&target(&t), &kv(), 40, &[]);
        assert_eq!(usual.fits.iter().map(|f| f.memory).collect::<Vec<_>>(), [32_768, 65_536, 131_072, 262_144]);
        assert_eq!(usual.fits[0].sequences, Some(2));
    }
}

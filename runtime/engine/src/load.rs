//! An engine from an artifact: target, weights, memory, device, tokenizer.

mod cuda;
mod target;

use crate::{
    device::{self, CpuDevice, CpuSize, Numa, cuda::CudaDevice},
    engine::{Engine, EngineParts},
    error::EngineError,
    executor::Executor,
    forward::{Forward, Limits},
    memory::{self, BlockBudget, MemoryTable},
    scheduler::SchedulingPolicy,
    tokenizer::Tokenizer,
};
use rvllm_artifact::{
    Artifact, LoadedWeights, WeightsFrom,
    manifest::{KvCache, Target},
    plan::Plan,
};
use std::{ops::Range, path::PathBuf, sync::Arc};
use target::Chosen;

/// Most threads of an engine.
const MAX_THREADS: u64 = 1024;

/// Where the weights come from.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum WeightsOption {
    /// What the artifact says.
    #[default]
    Manifest,
    /// A checkpoint's directory: `--weights-path`.
    Checkpoint(PathBuf),
    /// Random, from this seed: `--dummy-weights`.
    Dummy(u64),
}

/// What runs a model: `--device`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// A GPU where the artifact has code for one that is there, else this CPU.
    #[default]
    Auto,
    /// This CPU.
    Cpu,
    /// The GPU of this number, of those that the process sees.
    Cuda(u32),
}

/// What may be chosen when an artifact is loaded; absent values have defaults.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EngineOptions {
    /// Which of the artifact's targets; the best that this machine can run.
    pub target: Option<String>,
    /// What runs it.
    pub device: DeviceChoice,
    /// Launches every step kernel by kernel on a GPU, instead of graphs for steps of few tokens.
    pub enforce_eager: bool,
    /// Threads that compute, and that load weights; the physical cores that this process may use.
    pub threads: Option<usize>,
    /// Whether weights lie on the memory nodes of the threads that read them, where those are on several; they do.
    pub numa: Numa,
    /// Most sequences of a step; what the artifact was compiled for, which is also the most.
    pub max_num_seqs: Option<u32>,
    /// Most tokens of a step; what the artifact was compiled for, which is also the most.
    pub max_num_batched_tokens: Option<u32>,
    /// Longest sequence; what the artifact was compiled for, which is also the most.
    pub max_model_len: Option<u32>,
    /// Bytes of the KV cache; on a CPU enough for `max_num_seqs` sequences of `max_model_len` within
    /// `memory_utilization`, on a GPU all that this leaves.
    pub kv_cache_memory_bytes: Option<u64>,
    /// Blocks of the KV cache, instead of bytes.
    pub num_blocks: Option<u32>,
    /// Fraction, in (0, 1]: on a CPU of the memory left by weights and arena, that the KV cache may take (0.5); on a GPU
    /// of all its memory, that this process may take (0.9).
    pub memory_utilization: Option<f32>,
    /// Whether sequences find the KV of prompts that begin alike instead of computing it; they do.
    pub enable_prefix_caching: Option<bool>,
    /// In which order requests are served.
    pub scheduling_policy: SchedulingPolicy,
    /// Where the weights come from.
    pub weights: WeightsOption,
    /// Makes answers to requests without a seed repeatable: theirs are drawn from this one and their id.
    pub seed: Option<u64>,
}

impl EngineOptions {
    fn weights_from(&self) -> WeightsFrom<'_> {
        match &self.weights {
            WeightsOption::Manifest => WeightsFrom::Manifest,
            WeightsOption::Checkpoint(path) => WeightsFrom::Checkpoint(path),
            WeightsOption::Dummy(seed) => WeightsFrom::Dummy(*seed),
        }
    }
}

impl Engine {
    /// Loads an artifact: kernels, weights, KV cache, tokenizer.
    ///
    /// # Errors
    /// The artifact does not fit this machine, an option is out of range, or memory does not suffice.
    pub fn load(artifact: &Artifact, options: EngineOptions) -> Result<Engine, EngineError> {
        let manifest = artifact.manifest();
        let chosen = target::choose(artifact, &options)?;
        let (Chosen::Cpu(target) | Chosen::Cuda(target, _)) = &chosen;
        let plan = Arc::new(artifact.plan(target)?.clone());
        let limits = limits(&options, &plan, artifact)?;
        check_range("threads", options.threads.map_or(1, |n| n as u64), MAX_THREADS, "")?;
        let Loaded { forward, memory, threads } = match &chosen {
            Chosen::Cpu(target) => cpu(artifact, target, plan, limits, &options)?,
            Chosen::Cuda(target, gpu) => cuda::load(artifact, target, gpu, plan, limits, &options)?,
        };
        let mut engine = Engine::new(EngineParts {
            forward,
            tokenizer: artifact.entry("tokenizer.json").map(Tokenizer::from_bytes).transpose()?.map(Arc::new),
            eos_token_ids: manifest.model.eos_token_ids.clone(),
            seed: options.seed,
            memory,
            threads,
        });
        engine.set_scheduling_policy(options.scheduling_policy);
        engine.set_prefix_caching(options.enable_prefix_caching.unwrap_or(true));
        Ok(engine)
    }
}

/// A model on a GPU without what requests need: for measuring its launches.
///
/// # Errors
/// As [`Engine::load`]; the artifact's best target here is not a GPU's.
pub fn cuda_executor(artifact: &Artifact, options: &EngineOptions) -> Result<Executor<CudaDevice>, EngineError> {
    let Chosen::Cuda(target, gpu) = target::choose(artifact, options)? else {
        let allowed = "cuda: launches are timed on a GPU".to_string();
        return Err(EngineError::Option { name: "device", value: "cpu".to_string(), allowed });
    };
    let plan = Arc::new(artifact.plan(target)?.clone());
    let limits = limits(options, &plan, artifact)?;
    Ok(cuda::executor(artifact, target, &gpu, plan, limits, options)?.0)
}

/// A model on this CPU without what requests need: for measuring its launches.
///
/// # Errors
/// As [`Engine::load`]; the artifact's best target here is not this CPU's.
pub fn cpu_executor(artifact: &Artifact, options: &EngineOptions) -> Result<Executor<CpuDevice>, EngineError> {
    let Chosen::Cpu(target) = target::choose(artifact, options)? else {
        let allowed = "cpu: launches are timed on this CPU".to_string();
        return Err(EngineError::Option { name: "device", value: "cuda".to_string(), allowed });
    };
    let plan = Arc::new(artifact.plan(target)?.clone());
    let limits = limits(options, &plan, artifact)?;
    Ok(on_cpu(artifact, target, plan, limits, options)?.0)
}

/// A model on its device.
struct Loaded {
    forward: Box<dyn Forward>,
    memory: MemoryTable,
    threads: usize,
}

/// A model on this CPU.
fn cpu(
    artifact: &Artifact,
    target: &Target,
    plan: Arc<Plan>,
    limits: Limits,
    options: &EngineOptions,
) -> Result<Loaded, EngineError> {
    let (executor, memory) = on_cpu(artifact, target, plan, limits, options)?;
    let threads = executor.device().threads();
    Ok(Loaded { forward: Box::new(executor), memory, threads })
}

/// The model with its device, which can do more than run steps.
fn on_cpu(
    artifact: &Artifact,
    target: &Target,
    plan: Arc<Plan>,
    mut limits: Limits,
    options: &EngineOptions,
) -> Result<(Executor<CpuDevice>, MemoryTable), EngineError> {
    let kv_cache = &artifact.manifest().kv_cache;
    let threads = options.threads.unwrap_or_else(device::available_cores);
    let available = memory::available_bytes();
    let weights = load_weights(artifact, &plan, options, threads, available)?;
    let mut memory = memory_table(&plan, &weights, kv_cache);
    limits.num_blocks = num_blocks(options, &limits, &memory, kv_cache, available)?;
    memory.num_blocks = limits.num_blocks;
    let max_blocks = limits.max_model_len.div_ceil(limits.block_size);
    let size = CpuSize { num_blocks: limits.num_blocks, max_blocks, threads };
    let code = artifact.kernels(target)?;
    let device = CpuDevice::new(plan.clone(), code, &target.features, weights, kv_cache, size)?;
    Ok((Executor::new(plan, device, limits)?, memory))
}

/// The weights, on the memory nodes of the threads that read them where those are on several. What the artifact holds is
/// then copied, if there is memory for that and all else.
fn load_weights(
    artifact: &Artifact,
    plan: &Plan,
    options: &EngineOptions,
    threads: usize,
    available: u64,
) -> Result<LoadedWeights, EngineError> {
    let (nodes, from) = (options.numa.of_threads(threads), options.weights_from());
    if nodes.is_empty() {
        return Ok(LoadedWeights::load(artifact, plan, from, threads)?);
    }
    let beside = plan.arena_bytes.saturating_add(asked_cache_bytes(options, &artifact.manifest().kv_cache));
    let placing = |memory: &mut [u8], places: &[Range<usize>]| {
        let placed = device::place(memory, &plan.weights, places, &nodes);
        placed && (memory.len() as u64).saturating_add(beside) <= available
    };
    Ok(LoadedWeights::load_placed(artifact, plan, from, threads, Some(&placing))?)
}

/// Bytes of the KV cache where options say how many; else it takes what is left.
fn asked_cache_bytes(options: &EngineOptions, kv_cache: &KvCache) -> u64 {
    let blocks = options.num_blocks.map(|n| u64::from(n).saturating_mul(kv_cache.bytes_per_block()));
    blocks.or(options.kv_cache_memory_bytes).unwrap_or(0)
}

/// The plan's bounds, or the smaller ones asked for.
fn limits(options: &EngineOptions, plan: &Plan, artifact: &Artifact) -> Result<Limits, EngineError> {
    let manifest = artifact.manifest();
    let within = |name, option: Option<u32>, most: u32| {
        let value = option.unwrap_or(most);
        let help = if value > most { " · help: compile the artifact for more" } else { "" };
        check_range(name, value.into(), most.into(), help).map(|()| value)
    };
    let seqs = plan.max_num_seqs.min(plan.max_logits);
    Ok(Limits {
        vocab_size: manifest.model.vocab_size,
        max_model_len: within("max_model_len", options.max_model_len, manifest.model.max_model_len)?,
        max_num_seqs: within("max_num_seqs", options.max_num_seqs, seqs)?,
        max_num_batched_tokens: within(
            "max_num_batched_tokens",
            options.max_num_batched_tokens,
            plan.max_num_batched_tokens,
        )?,
        max_logits: plan.max_logits,
        query_tile: plan.query_tile.max(1),
        block_size: manifest.kv_cache.block_size.max(1),
        num_blocks: 0,
    })
}

/// `help` follows the range.
fn check_range(name: &'static str, value: u64, most: u64, help: &str) -> Result<(), EngineError> {
    if (1..=most).contains(&value) {
        return Ok(());
    }
    Err(EngineError::Option { name, value: value.to_string(), allowed: format!("from 1 to {most}{help}") })
}

fn memory_table(plan: &Plan, weights: &LoadedWeights, kv_cache: &KvCache) -> MemoryTable {
    let block_size = kv_cache.block_size.max(1);
    MemoryTable {
        weights_bytes: plan.weights.iter().filter_map(|w| w.bytes()).sum(),
        weights_resident_bytes: weights.resident_bytes(),
        arena_bytes: plan.arena_bytes,
        kv_bytes_per_token: kv_cache.bytes_per_block().div_ceil(block_size.into()),
        num_blocks: 0,
        block_size,
        device: None,
    }
}

/// `available` bytes were there before weights were loaded: mapped or not, they and the arena take theirs.
fn num_blocks(
    options: &EngineOptions,
    limits: &Limits,
    memory: &MemoryTable,
    kv: &KvCache,
    available: u64,
) -> Result<u32, EngineError> {
    let weights = memory.weights_bytes.max(memory.weights_resident_bytes);
    let budget = BlockBudget {
        max_num_seqs: limits.max_num_seqs,
        max_model_len: limits.max_model_len,
        free_bytes: available.saturating_sub(weights).saturating_sub(memory.arena_bytes),
        num_blocks: options.num_blocks,
        kv_cache_memory_bytes: options.kv_cache_memory_bytes,
        memory_utilization: options.memory_utilization,
    };
    budget.num_blocks(kv)
}

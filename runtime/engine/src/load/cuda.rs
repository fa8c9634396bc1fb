//! A model on a GPU: kernels, then exactly as much memory as the plan says, then weights.
//!
//! Invariants: nothing is tried out to learn how much memory it takes, and what does not fit is said before weights move.

use super::{EngineOptions, Loaded};
use crate::{
    device::{
        self, DeviceError,
        cuda::{CudaDevice, DeviceWeights, Gpu, LoadedKernel, overhead_bytes, weights_bytes},
    },
    error::EngineError,
    executor::Executor,
    forward::Limits,
    memory::{BlockBudget, DeviceTable, MemoryTable},
};
use rvllm_artifact::{
    Artifact,
    manifest::{KvCache, Target},
    plan::Plan,
};
use std::sync::Arc;

/// Part of the GPU's memory that this process may take unless told otherwise.
const UTILIZATION: f32 = 0.9;

pub(super) fn load(
    artifact: &Artifact,
    target: &Target,
    gpu: &Gpu,
    plan: Arc<Plan>,
    limits: Limits,
    options: &EngineOptions,
) -> Result<Loaded, EngineError> {
    let (executor, memory) = executor(artifact, target, gpu, plan, limits, options)?;
    Ok(Loaded { forward: Box::new(executor), memory, threads: 1 })
}

/// The model with its device, which can do more than run steps.
pub(super) fn executor(
    artifact: &Artifact,
    target: &Target,
    gpu: &Gpu,
    plan: Arc<Plan>,
    mut limits: Limits,
    options: &EngineOptions,
) -> Result<(Executor<CudaDevice>, MemoryTable), EngineError> {
    let kv_cache = &artifact.manifest().kv_cache;
    let threads = options.threads.unwrap_or_else(device::available_cores);
    let code = artifact.kernels(target)?;
    let load = |kernel| LoadedKernel::new(gpu, kernel, code).map_err(failed);
    let kernels = plan.kernels.iter().map(load).collect::<Result<Vec<_>, _>>()?;
    let mut memory = table(gpu, target, &plan, kv_cache, &limits, options)?;
    limits.num_blocks = num_blocks(options, &limits, &memory, kv_cache)?;
    memory.num_blocks = limits.num_blocks;
    let weights = DeviceWeights::load(gpu, artifact, &plan, options.weights_from(), threads)?;
    let device = CudaDevice::new(plan.clone(), kernels, weights, kv_cache, limits, !options.enforce_eager)?;
    Ok((Executor::new(plan, device, limits)?, memory))
}

fn failed(error: device::cuda::CudaError) -> EngineError {
    EngineError::Device(DeviceError::Cuda(error))
}

/// Where the GPU's memory goes, but for the KV cache.
fn table(
    gpu: &Gpu,
    target: &Target,
    plan: &Plan,
    kv_cache: &KvCache,
    limits: &Limits,
    options: &EngineOptions,
) -> Result<MemoryTable, EngineError> {
    let facts = gpu.facts();
    let free = gpu.free_bytes().map_err(failed)?;
    let utilization = crate::memory::checked_utilization(options.memory_utilization.unwrap_or(UTILIZATION))?;
    let allowed = (facts.total_bytes as f64 * f64::from(utilization)) as u64;
    let block_size = kv_cache.block_size.max(1);
    Ok(MemoryTable {
        weights_bytes: weights_bytes(plan),
        weights_resident_bytes: 0,
        arena_bytes: plan.arena_bytes,
        kv_bytes_per_token: kv_cache.bytes_per_block().div_ceil(block_size.into()),
        num_blocks: 0,
        block_size,
        device: Some(DeviceTable {
            name: facts.name.clone(),
            architecture: facts.architecture(),
            target: target.name.clone(),
            total_bytes: facts.total_bytes,
            allowed_bytes: allowed,
            taken_bytes: facts.total_bytes.saturating_sub(free),
            overhead_bytes: overhead_bytes(plan, limits),
        }),
    })
}

/// All that the other parts leave of what this process may take: the more blocks, the more prompts find their beginnings
/// computed.
fn num_blocks(
    options: &EngineOptions,
    limits: &Limits,
    memory: &MemoryTable,
    kv: &KvCache,
) -> Result<u32, EngineError> {
    let Some(device) = &memory.device else { return Ok(0) };
    let fixed = memory.weights_bytes.saturating_add(memory.arena_bytes).saturating_add(device.overhead_bytes);
    let left = device.allowed_bytes.saturating_sub(device.taken_bytes);
    let free = device.total_bytes.saturating_sub(device.taken_bytes);
    let per_block = kv.bytes_per_block().max(1);
    let asked = match (options.num_blocks, options.kv_cache_memory_bytes) {
        (Some(blocks), _) => Some(per_block.saturating_mul(blocks.into())),
        (None, asked) => asked,
    };
    // Who names the cache's size may take all that is free.
    let most = if asked.is_some() { free } else { left };
    if fixed.saturating_add(asked.unwrap_or(0)) > most {
        return Err(EngineError::GpuMemory {
            name: device.name.clone(),
            weights: memory.weights_bytes,
            arena: memory.arena_bytes,
            overhead: device.overhead_bytes,
            kv_cache: asked.unwrap_or(0),
            left: most,
            total: device.total_bytes,
        });
    }
    let budget = BlockBudget {
        max_num_seqs: limits.max_num_seqs,
        max_model_len: limits.max_model_len,
        free_bytes: 0,
        num_blocks: options.num_blocks,
        kv_cache_memory_bytes: Some(asked.unwrap_or(left - fixed)),
        memory_utilization: None,
    };
    budget.num_blocks(kv)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rvllm_artifact::plan::DType;

    const KV: KvCache = KvCache {
        block_size: 16,
        num_layers: 2,
        num_kv_heads: 1,
        head_dim: 8,
        dtype: DType::F32,
        k_bytes: 512,
        v_bytes: 512,
        scale_bytes: 0,
    };

    const LIMITS: Limits = Limits {
        vocab_size: 300,
        max_model_len: 100,
        max_num_seqs: 4,
        max_num_batched_tokens: 64,
        max_logits: 4,
        query_tile: 4,
        block_size: 16,
        num_blocks: 0,
    };

    fn memory(total: u64, taken: u64) -> MemoryTable {
        let device = DeviceTable {
            name: "NVIDIA H200".into(),
            architecture: "sm_90".into(),
            target: "sm_90a".into(),
            total_bytes: total,
            allowed_bytes: total * 9 / 10,
            taken_bytes: taken,
            overhead_bytes: 1000,
        };
        MemoryTable { weights_bytes: 50_000, arena_bytes: 9000, device: Some(device), ..MemoryTable::default() }
    }

    #[test]
    fn the_cache_takes_what_is_left_of_the_share() {
        let blocks = |memory, options: EngineOptions| num_blocks(&options, &LIMITS, &memory, &KV);
        assert_eq!(
            blocks(memory(200_000, 10_000), EngineOptions::default()).unwrap(),
            (180_000 - 10_000 - 60_000) / 2048
        );
        let asked = EngineOptions { kv_cache_memory_bytes: Some(20_480), ..EngineOptions::default() };
        assert_eq!(blocks(memory(81_000, 0), asked.clone()).unwrap(), 10);
        assert!(blocks(memory(80_000, 0), asked).is_err());
        let few = EngineOptions { num_blocks: Some(3), ..EngineOptions::default() };
        assert!(blocks(memory(200_000, 0), few).unwrap_err().to_string().starts_with("a sequence of 100 tokens needs"));
    }

    #[test]
    fn what_does_not_fit_is_said_with_the_numbers() {
        let error = num_blocks(&EngineOptions::default(), &LIMITS, &memory(70_000, 10_000), &KV).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the model needs 60000 bytes of GPU memory (weights 50000, arena 9000, inputs and graphs 1000, KV cache 0 or \
             more), but 53000 of NVIDIA H200's 70000 are left for it · help: free memory of the GPU, raise \
             --gpu-memory-utilization, or compile with a lower --max-num-batched-tokens"
        );
    }
}

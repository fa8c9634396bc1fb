//! How much memory there is, and how many KV blocks it gets.

use crate::error::EngineError;
use rvllm_artifact::manifest::KvCache;
use std::fs;

/// Part of the memory that weights and arena leave, which the KV cache takes unless told otherwise.
const UTILIZATION: f32 = 0.5;

/// Where the memory goes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MemoryTable {
    /// Bytes of weights, mapped or not.
    pub weights_bytes: u64,
    /// Bytes of weights in anonymous memory: 0 where they are mapped from the artifact.
    pub weights_resident_bytes: u64,
    /// Bytes of the arena.
    pub arena_bytes: u64,
    /// Bytes of KV cache for one token.
    pub kv_bytes_per_token: u64,
    /// Blocks of the KV cache.
    pub num_blocks: u32,
    /// Tokens of a block.
    pub block_size: u32,
    /// The GPU that all of this lies on; absent on a CPU.
    pub device: Option<DeviceTable>,
}

/// A GPU's memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeviceTable {
    /// `NVIDIA H200`.
    pub name: String,
    /// `sm_90`.
    pub architecture: String,
    /// The artifact's target that runs on it.
    pub target: String,
    /// Bytes that it has.
    pub total_bytes: u64,
    /// Bytes that may be taken, what others took included.
    pub allowed_bytes: u64,
    /// Bytes that were taken before weights were loaded: by others, by the driver, by code.
    pub taken_bytes: u64,
    /// Bytes for a step's inputs and for recorded launches.
    pub overhead_bytes: u64,
}

/// What decides the number of blocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockBudget {
    pub(crate) max_num_seqs: u32,
    pub(crate) max_model_len: u32,
    /// Memory that weights and arena leave.
    pub(crate) free_bytes: u64,
    pub(crate) num_blocks: Option<u32>,
    pub(crate) kv_cache_memory_bytes: Option<u64>,
    pub(crate) memory_utilization: Option<f32>,
}

impl BlockBudget {
    /// Blocks of the KV cache: as many as were asked for, else enough for `max_num_seqs` of the longest sequences
    /// within a fraction of the free memory.
    pub(crate) fn num_blocks(&self, kv_cache: &KvCache) -> Result<u32, EngineError> {
        let (block_size, bytes) = (u64::from(kv_cache.block_size.max(1)), kv_cache.bytes_per_block().max(1));
        let longest = u64::from(self.max_model_len).div_ceil(block_size);
        let utilization = checked_utilization(self.memory_utilization.unwrap_or(UTILIZATION))?;
        let blocks = match (self.num_blocks, self.kv_cache_memory_bytes) {
            (Some(blocks), _) => u64::from(blocks),
            (None, Some(given)) => given / bytes,
            (None, None) => {
                let within = (self.free_bytes as f64 * f64::from(utilization)) as u64 / bytes;
                longest.saturating_mul(self.max_num_seqs.into()).min(within)
            }
        };
        if blocks < longest {
            return Err(EngineError::KvCacheTooSmall {
                max_model_len: self.max_model_len,
                needed: longest.saturating_mul(bytes),
                given: blocks.saturating_mul(bytes),
                fits: blocks * block_size,
            });
        }
        // Slots are i32.
        Ok(blocks.min(i32::MAX as u64 / block_size) as u32)
    }
}

/// A fraction of memory that can be had.
pub(crate) fn checked_utilization(value: f32) -> Result<f32, EngineError> {
    if value > 0.0 && value <= 1.0 {
        return Ok(value);
    }
    let allowed = "above 0 and at most 1".to_string();
    Err(EngineError::Option { name: "memory_utilization", value: value.to_string(), allowed })
}

/// Memory that this process can still get without swapping: the system's, and its control group's.
pub fn available_bytes() -> u64 {
    system_available().unwrap_or(0).min(group_available().unwrap_or(u64::MAX))
}

fn system_available() -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.saturating_mul(1024))
}

fn group_available() -> Option<u64> {
    let read = |name: &str| fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?.trim().parse::<u64>().ok();
    Some(read("memory.max")?.saturating_sub(read("memory.current")?))
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

    fn budget() -> BlockBudget {
        BlockBudget {
            max_num_seqs: 4,
            max_model_len: 100,
            free_bytes: 1 << 20,
            num_blocks: None,
            kv_cache_memory_bytes: None,
            memory_utilization: None,
        }
    }

    #[test]
    fn enough_for_all_sequences_or_half_of_what_is_free() {
        assert_eq!(budget().num_blocks(&KV).unwrap(), 4 * 7);
        assert_eq!(BlockBudget { free_bytes: 40 * 1024, ..budget() }.num_blocks(&KV).unwrap(), 10);
        assert_eq!(
            BlockBudget { free_bytes: 40 * 1024, memory_utilization: Some(1.0), ..budget() }.num_blocks(&KV).unwrap(),
            20
        );
        assert_eq!(BlockBudget { kv_cache_memory_bytes: Some(1 << 20), ..budget() }.num_blocks(&KV).unwrap(), 512);
        assert_eq!(BlockBudget { num_blocks: Some(9), ..budget() }.num_blocks(&KV).unwrap(), 9);
    }

    #[test]
    fn too_little_memory_states_the_numbers() {
        let message =
            BlockBudget { kv_cache_memory_bytes: Some(5000), ..budget() }.num_blocks(&KV).unwrap_err().to_string();
        let start = "a sequence of 100 tokens needs 14336 bytes of KV cache, but there are 4096 · help: lower --max-model-len to at most 32, or raise --kv-cache-memory-bytes to at least 14336";
        assert_eq!(message, start);
        let message = BlockBudget { num_blocks: Some(0), ..budget() }.num_blocks(&KV).unwrap_err().to_string();
        let end = "there are 0 · help: raise --kv-cache-memory-bytes to at least 14336";
        assert!(message.ends_with(end), "{message}");
        let wrong = BlockBudget { memory_utilization: Some(1.5), ..budget() }.num_blocks(&KV).unwrap_err().to_string();
        assert_eq!(wrong, "memory_utilization is 1.5, but must be above 0 and at most 1");
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(available_bytes() > 1 << 20);
    }
}

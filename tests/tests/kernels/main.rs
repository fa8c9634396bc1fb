//! Compiled kernels against the tile interpreter, on every target that this machine can run.

#![expect(clippy::unwrap_used, reason = "what fails here is a test")]

mod attention;
mod gemm;
mod math;
mod object;
mod rows;

use rvllm_ir::{DType, tile::MemLayout};
use rvllm_kernels::KvLayout;
use rvllm_targets::Target;

/// Relative to 1 + |expected|: a rounding of the result, and sums in another order.
fn tolerance(dtype: DType) -> f32 {
    match dtype {
        DType::Bf16 => 8e-3,
        _ => 1e-5,
    }
}

/// How weights lie.
fn panel(target: &Target, dtype: DType) -> MemLayout {
    target.panel.map_or(MemLayout::DENSE, |n| MemLayout::Panel { n, k: pair(dtype) })
}

/// How the KV cache lies.
fn kv_layout(target: &Target, dtype: DType) -> KvLayout {
    match target.panel {
        Some(_) => KvLayout::Panels { panel: target.block_size, pair: pair(dtype) },
        None => KvLayout::Tokens,
    }
}

fn pair(dtype: DType) -> usize {
    if dtype == DType::Bf16 { 2 } else { 1 }
}

//! Launches of every kernel over odd shapes, for whatever target: what tests compare with the interpreter on CPUs, and
//! what is carried to a GPU.
//!
//! Invariants: a target's cases depend on its facts alone; kernels' names are unique within a target.

pub mod attention;
pub mod gemm;
pub mod math;
pub mod rows;

use crate::launch::Launch;
use rvllm_ir::{DType, tile::MemLayout};
use rvllm_kernels::KvLayout;
use rvllm_targets::Target;

/// A launch, and how far its results may be off.
#[derive(Clone, Debug)]
pub struct Case {
    /// The launch.
    pub launch: Launch,
    /// Relative to 1 + |expected|.
    pub tolerance: f32,
    /// Launches of one group write the same bits.
    pub group: Option<String>,
}

impl Case {
    /// A case of no group.
    pub fn new(launch: Launch, tolerance: f32) -> Case {
        Case { launch, tolerance, group: None }
    }
}

/// Every case of a target.
pub fn all(target: &Target) -> Vec<Case> {
    let lists = [
        gemm::cases(target),
        attention::cases(target),
        rows::embed(target),
        rows::rms_norm(target),
        if target.panel.is_some() { rows::embed_values(target) } else { vec![] },
        rows::quantize_rows(target),
        rows::logit_stats(),
        rows::draw(),
        rows::feed(),
        rows::rank(),
        rows::top_k(),
        rows::rope_kv_write(target),
        math::cases(),
    ];
    lists.concat()
}

/// Relative to 1 + |expected|: a rounding of the result, and sums in another order.
pub fn tolerance(dtype: DType) -> f32 {
    match dtype {
        DType::Bf16 => 8e-3,
        _ => 1e-5,
    }
}

/// The same for sums of `k` products.
pub fn sum_tolerance(dtype: DType, k: usize) -> f32 {
    let longer = if dtype == DType::F32 { k.div_ceil(128) } else { 1 };
    tolerance(dtype) * longer as f32
}

/// How weights lie.
pub fn panel(target: &Target, dtype: DType) -> MemLayout {
    match (target.panel, &target.gpu) {
        (Some(n), _) => MemLayout::Panel { n, k: pair(dtype) },
        (None, Some(_)) if dtype == DType::U4 => MemLayout::Fragments { k: 64 },
        (None, Some(_)) if dtype.bits() <= 16 => MemLayout::Blocks { k: 1024 / dtype.bits() },
        _ => MemLayout::DENSE,
    }
}

/// How activations of so many columns lie that products read.
pub fn activations(target: &Target, dtype: DType, columns: usize) -> MemLayout {
    match target.activation_panel(dtype.bits()) {
        Some([n, k]) if columns.is_multiple_of(k) => MemLayout::Panel { n, k },
        _ => MemLayout::DENSE,
    }
}

/// How the KV cache lies.
pub fn kv_layout(target: &Target, dtype: DType) -> KvLayout {
    match target.panel {
        Some(_) => KvLayout::Panels { panel: target.block_size, pair: pair(dtype) },
        None => KvLayout::Tokens,
    }
}

fn pair(dtype: DType) -> usize {
    if dtype == DType::Bf16 { 2 } else { 1 }
}

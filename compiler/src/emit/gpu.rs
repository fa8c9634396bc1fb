//! How a GPU launches kernels, from the lowering's types to the artifact's.

use super::{dtype, expr};
use rvllm_artifact::gpu;
use rvllm_mlir::{GpuLaunch, Swizzle, TensorMap};
use rvllm_targets::Gpu;

/// Shared memory of a CTA that the hardware keeps for itself.
const RESERVED_SHARED: u32 = 1024;
/// Registers are given to a warp in units of this many.
const REGISTER_UNIT: u32 = 256;

/// The plan's entry of a kernel whose code lies at `code`.
pub(crate) fn kernel(launch: &GpuLaunch, code: gpu::Code, target: &Gpu) -> gpu::GpuKernel {
    let GpuLaunch { threads, shared_bytes, cluster, ctas_per_program, max_ctas, registers, spill_bytes, tensor_maps } =
        launch;
    gpu::GpuKernel {
        code,
        threads: *threads,
        shared_bytes: *shared_bytes,
        cluster: *cluster,
        ctas_per_program: *ctas_per_program,
        max_ctas: *max_ctas,
        registers: *registers,
        spill_bytes: *spill_bytes,
        occupancy: registers.map(|registers| occupancy(*threads, *shared_bytes, registers, target)),
        tensor_maps: tensor_maps.iter().map(tensor_map).collect(),
    }
}

fn tensor_map(map: &TensorMap) -> gpu::TensorMap {
    let TensorMap { tensor, dtype: of, dims, strides, block, swizzle: placed } = map;
    gpu::TensorMap {
        tensor: *tensor,
        dtype: dtype(*of),
        extents: dims.iter().map(expr).collect(),
        strides: strides.iter().map(expr).collect(),
        tile: block.clone(),
        swizzle: swizzle(*placed),
    }
}

fn swizzle(of: Swizzle) -> gpu::Swizzle {
    match of {
        Swizzle::None => gpu::Swizzle::None,
        Swizzle::B32 => gpu::Swizzle::B32,
        Swizzle::B64 => gpu::Swizzle::B64,
        Swizzle::B128 => gpu::Swizzle::B128,
    }
}

/// CTAs that a multiprocessor holds at once.
fn occupancy(threads: u32, shared_bytes: u32, registers: u32, target: &Gpu) -> u32 {
    let warps = threads.div_ceil(target.warp.max(1)).max(1);
    let of_warp = (registers * target.warp).next_multiple_of(REGISTER_UNIT).max(REGISTER_UNIT);
    let by_registers = target.registers / (of_warp * warps);
    let by_threads = target.max_threads / (warps * target.warp.max(1));
    let by_shared = (target.shared_bytes + RESERVED_SHARED) / (shared_bytes + RESERVED_SHARED);
    by_registers.min(by_threads).min(by_shared)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_scarcest_resource_bounds_occupancy() {
        let target = rvllm_targets::find("sm_90a", &|_| false).unwrap().gpu.unwrap();
        let occupancy = |threads, shared, registers| super::occupancy(threads, shared, registers, &target);
        assert_eq!(occupancy(384, 200 << 10, 168), 1);
        assert_eq!(occupancy(128, 0, 128), 4);
        assert_eq!(occupancy(1024, 0, 32), 2);
        assert_eq!(occupancy(128, 100 << 10, 64), 2);
    }
}

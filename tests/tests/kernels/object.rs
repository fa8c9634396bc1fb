//! Object code as such: for every target, reproducible, and with no undefined symbol.

use rvllm_ir::{DType, graph::Epilogue, tile::Kernel};
use rvllm_kernels::{Draw, Gemm, KvCache, LogitStats, PagedAttention, draw, gemm, logit_stats, paged_attention};
use rvllm_mlir::{compile, link};
use rvllm_targets::Target;

/// Kernels that between them use every elementwise function and every kind of access.
fn kernels(target: &Target) -> Vec<Kernel> {
    let dtype = DType::Bf16;
    let cache = KvCache {
        kv_heads: 2,
        head_dim: 64,
        block_size: 32,
        dtype,
        stored: dtype,
        layout: rvllm_tests::cases::kv_layout(target, dtype),
    };
    let attention = PagedAttention {
        heads: 4,
        cache,
        scale: 0.1,
        window: Some(9),
        softcap: Some(5.0),
        query_tile: 2,
        pass: 2,
        blocks: 1,
        stages: 2,
        split: rvllm_tests::cases::attention::split(target),
        result: rvllm_ir::tile::MemLayout::DENSE,
    };
    let row = target.gemm_rows("bf16", true, 70, 50).pop().unwrap();
    let product = Gemm {
        m: rvllm_ir::Sym::T,
        n: 70,
        k: 50,
        dtype,
        quantized: None,
        a: rvllm_ir::tile::MemLayout::DENSE,
        weight: rvllm_tests::cases::panel(target, dtype),
        out: dtype,
        result: rvllm_ir::tile::MemLayout::DENSE,
        epilogue: Epilogue { bias: true, silu_mul: true, residual: true },
        block_m: row.block_m,
        block_n: row.block_n,
        block_k: row.block_k,
        stages: row.stages,
    };
    let [vocab, runs, parts] = if target.gpu.is_some() { [100_000, 16, 4] } else { [1000, 1, 1] };
    let stats = logit_stats("stats", &LogitStats { vocab, runs, parts });
    vec![gemm("gemm", &product), paged_attention("attention", &attention), stats, draw("draw", &Draw { vocab })]
}

#[test]
fn every_target_compiles_and_links_to_the_same_bytes_each_time() {
    for target in rvllm_targets::all() {
        let kernels = kernels(&target);
        let [a, b] = [0, 1].map(|_| compile(&kernels, &target).unwrap_or_else(|e| panic!("{}: {e}", target.name)));
        assert!(a == b, "{}: objects differ", target.name);
        if target.gpu.is_some() {
            let spilled = a.parts.iter().filter_map(|p| p.launch.as_ref()?.spill_bytes).sum::<u32>();
            assert_eq!(spilled, 0, "{}: registers go to memory", target.name);
            continue;
        }
        let [x, y] = [&a, &b].map(|o| link(o, &target).unwrap_or_else(|e| panic!("{}: {e}", target.name)));
        assert!(x == y, "{}: shared objects differ", target.name);
        assert!(!String::from_utf8_lossy(&x).contains("/tmp"), "{}: a path leaked", target.name);
    }
}

#[test]
fn a_part_of_several_kernels_is_the_kernel_alone() {
    let target = rvllm_targets::find("x86-64-v3", &|_| false).unwrap();
    let kernels = kernels(&target);
    let together = compile(&kernels, &target).unwrap();
    for (kernel, part) in kernels.iter().zip(&together.parts) {
        let alone = compile(std::slice::from_ref(kernel), &target).unwrap();
        assert!(alone.parts[0] == *part, "{}", kernel.name);
    }
}

//! `gemm` on one thread at Llama-3.2-1B's shapes, each beside its floor: weights streamed from memory (GB/s, next to a plain
//! read loop over as many bytes) for few rows, arithmetic (GFLOP/s) for many.
//!
//! `cargo bench -p rvllm-benches --bench kernels`

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rvllm_ir::{DType, Sym, graph::Epilogue, tile::MemLayout};
use rvllm_kernels::{Gemm, gemm};
use rvllm_targets::{GemmRow, Target};
use rvllm_tests::launch::{Code, Launch, Prepared, Symbols, targets};
use std::hint::black_box;

/// Name, N, K, gated.
const SHAPES: [(&str, usize, usize, bool); 4] =
    [("qkv", 3072, 2048, false), ("o", 2048, 2048, false), ("gate_up", 8192, 2048, true), ("down", 2048, 8192, false)];

/// Bytes that no cache holds.
const COLD: usize = 128 << 20;

fn row(target: &Target, t: usize, (n, k, gated): (usize, usize, bool)) -> &GemmRow {
    let mut rows = target.gemm_rows("bf16", gated, n, k).into_iter();
    rows.find(|r| r.at_most.is_none_or(|most| t <= most)).expect("invariant: the last row of a kind has no bound")
}

fn kernel(target: &Target, t: usize, (n, k, gated): (usize, usize, bool)) -> rvllm_ir::tile::Kernel {
    let row = row(target, t, (n, k, gated));
    let s = Gemm {
        m: Sym::T,
        n,
        k,
        dtype: DType::Bf16,
        quantized: None,
        a: MemLayout::DENSE,
        weight: target.panel.map_or(MemLayout::DENSE, |n| MemLayout::Panel { n, k: 2 }),
        out: DType::Bf16,
        result: MemLayout::DENSE,
        epilogue: Epilogue { bias: false, silu_mul: gated, residual: false },
        block_m: row.block_m,
        block_n: row.block_n,
        block_k: row.block_k,
        stages: row.stages,
    };
    gemm("gemm", &s)
}

/// Enough copies of one launch that none finds its weights in a cache.
fn copies(launch: &Launch, bytes: usize) -> Vec<Prepared> {
    (0..COLD.div_ceil(bytes)).map(|_| launch.prepare()).collect()
}

fn products(c: &mut Criterion) {
    let target = targets().swap_remove(0);
    for t in [1, 8, 512] {
        let mut group = c.benchmark_group(format!("gemm {} T={t}", target.name));
        for (name, n, k, gated) in SHAPES {
            let kernel = kernel(&target, t, (n, k, gated));
            let code = Code::new(std::slice::from_ref(&kernel), &target);
            let weights = n * k * if gated { 2 } else { 1 };
            let launch = Launch::new(kernel, Symbols { t, ..Symbols::default() }, 1);
            let mut calls = if t > 64 { vec![launch.prepare()] } else { copies(&launch, 2 * weights) };
            let work = if t > 64 {
                Throughput::Elements((2 * t * weights) as u64)
            } else {
                Throughput::Bytes(2 * weights as u64)
            };
            group.throughput(work);
            group.sample_size(10);
            let mut next = 0;
            group.bench_function(BenchmarkId::from_parameter(name), |b| {
                b.iter(|| {
                    next = (next + 1) % calls.len();
                    calls[next].run(&code, (0, u64::MAX));
                });
            });
        }
    }
}

/// The floor of few rows: reading, and nothing else.
fn read(c: &mut Criterion) {
    let memory = vec![1u64; COLD / 8];
    let mut group = c.benchmark_group("read");
    group.throughput(Throughput::Bytes(COLD as u64));
    group.bench_function("one thread", |b| {
        b.iter(|| black_box(&memory).iter().fold(0u64, |sum, x| sum.wrapping_add(*x)));
    });
}

criterion_group!(kernels, read, products);
criterion_main!(kernels);

//! `gemm` on one thread at Llama-3.2-1B's shapes, of bf16, int8 and int4 weights, each beside its floor: weights streamed from memory
//! (GB/s, scales included, next to a plain read loop over as many bytes) for few rows, arithmetic (GOP/s) for many.
//!
//! `cargo bench -p rvllm-benches --bench kernels`

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rvllm_ir::{DType, Sym, graph::Epilogue, tile::MemLayout};
use rvllm_kernels::{Gemm, Quantized, gemm};
use rvllm_targets::{GemmRow, Target};
use rvllm_tests::launch::{Code, Launch, Prepared, Symbols, targets};
use std::hint::black_box;

/// Name, N, K, gated.
const SHAPES: [(&str, usize, usize, bool); 4] =
    [("qkv", 3072, 2048, false), ("o", 2048, 2048, false), ("gate_up", 8192, 2048, true), ("down", 2048, 8192, false)];

/// Bytes that no cache holds.
const COLD: usize = 128 << 20;

/// Columns of an int4 weight that share a scale: those of `--quantize int4`.
const GROUP: usize = 32;

/// Element types of weights.
const WEIGHTS: [DType; 3] = [DType::Bf16, DType::I8, DType::U4];

fn row(target: &Target, weight: DType, t: usize, (n, k, gated): (usize, usize, bool)) -> &GemmRow {
    let mut rows = target.gemm_rows(weight.name(), gated, n, k).into_iter();
    rows.find(|r| r.at_most.is_none_or(|most| t <= most)).expect("invariant: the last row of a kind has no bound")
}

fn panel(target: &Target, k: usize) -> MemLayout {
    target.panel.map_or(MemLayout::DENSE, |n| MemLayout::Panel { n, k })
}

fn kernel(target: &Target, weight: DType, t: usize, (n, k, gated): (usize, usize, bool)) -> rvllm_ir::tile::Kernel {
    let row = row(target, weight, t, (n, k, gated));
    let group = (weight == DType::U4).then_some(GROUP);
    let how =
        Quantized { weight, group, scales: panel(target, 1), scale: DType::F16, zeros: false, weight_only: false };
    // values of whole rows are read as one run where there are tiles of them
    let tiled = (weight == DType::I8).then(|| target.activation_panel(8)).flatten();
    let s = Gemm {
        m: Sym::T,
        n,
        k,
        dtype: DType::Bf16,
        quantized: (weight != DType::Bf16).then_some(how),
        a: tiled.map_or(MemLayout::DENSE, |[n, k]| MemLayout::Panel { n, k }),
        weight: panel(target, 32 / weight.bits()),
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

/// Bytes of `count` weights and their scales.
fn weight_bytes(weight: DType, count: usize) -> usize {
    let scales = if weight == DType::U4 { count / GROUP * 2 } else { 0 };
    count * weight.bits() / 8 + scales
}

/// Enough copies of one launch that none finds its weights in a cache.
fn copies(launch: &Launch, bytes: usize) -> Vec<Prepared> {
    (0..COLD.div_ceil(bytes)).map(|_| launch.prepare()).collect()
}

fn products(c: &mut Criterion) {
    let target = targets().swap_remove(0);
    for weight in WEIGHTS {
        for t in [1, 8, 32, 512] {
            of_rows(c, &target, weight, t);
        }
    }
}

/// Products of `t` rows.
fn of_rows(c: &mut Criterion, target: &Target, weight: DType, t: usize) {
    let mut group = c.benchmark_group(format!("gemm {} {weight} T={t}", target.name));
    group.sample_size(10);
    for (name, n, k, gated) in SHAPES {
        let kernel = kernel(target, weight, t, (n, k, gated));
        let code = Code::new(std::slice::from_ref(&kernel), target);
        let weights = n * k * if gated { 2 } else { 1 };
        let bytes = weight_bytes(weight, weights);
        let launch = Launch::new(kernel, Symbols { t, ..Symbols::default() }, 1);
        let mut calls = if t > 64 { vec![launch.prepare()] } else { copies(&launch, bytes) };
        let work =
            if t > 64 { Throughput::Elements((2 * t * weights) as u64) } else { Throughput::Bytes(bytes as u64) };
        group.throughput(work);
        let mut next = 0;
        group.bench_function(BenchmarkId::from_parameter(name), |b| {
            b.iter(|| {
                next = (next + 1) % calls.len();
                calls[next].run(&code, (0, u64::MAX));
            });
        });
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

//! Products for Hopper, as far as they show without one: every schedule row is a product on the warpgroup's instruction fed by
//! the copy engine, fits a multiprocessor, and keeps everything in registers.

use rvllm_ir::{DType, Sym, graph::Epilogue, tile::MemLayout};
use rvllm_kernels::{Gemm, Quantized, gemm};
use rvllm_mlir::{asm, assembler, compile};
use rvllm_targets::{GemmRow, Target};

/// Columns and k: whole tiles, and tails of both.
const SHAPES: [(usize, usize); 5] = [(4096, 512), (6144, 512), (16384, 512), (1000, 80), (32001, 144)];

fn product(row: &GemmRow, (n, k): (usize, usize), residual: bool, out: DType) -> Gemm {
    let weight = DType::parse(&row.dtype).unwrap();
    let scaled = Quantized {
        weight,
        group: None,
        scales: MemLayout::DENSE,
        scale: DType::F32,
        zeros: false,
        weight_only: false,
    };
    Gemm {
        m: Sym::T,
        n,
        k,
        dtype: DType::Bf16,
        quantized: (weight != DType::Bf16).then_some(scaled),
        a: MemLayout::DENSE,
        weight: MemLayout::Blocks { k: 1024 / weight.bits() },
        out,
        result: MemLayout::DENSE,
        epilogue: Epilogue { bias: residual, silu_mul: row.gated, residual },
        block_m: row.block_m,
        block_n: row.block_n,
        block_k: row.block_k,
        stages: row.stages,
    }
}

/// A product with a weight of 4 bits.
fn packed(row: &GemmRow, (n, k): (usize, usize), group: usize, zeros: bool) -> Gemm {
    let scales = MemLayout::Fragments { k: (64 / group).max(1) };
    let weight = DType::U4;
    let how = Quantized { weight, group: Some(group), scales, scale: DType::F16, zeros, weight_only: true };
    // what follows gates and ups is the next product
    let whole = product(row, (n, k), zeros && !row.gated, if zeros { DType::Bf16 } else { DType::F32 });
    Gemm { quantized: Some(how), weight: MemLayout::Fragments { k: 64 }, ..whole }
}

/// A product of e4m3 values with scales of groups.
fn scaled(row: &GemmRow, shape: (usize, usize), scale: DType) -> Gemm {
    let residual = shape.0.is_multiple_of(64) && !row.gated;
    let whole = product(row, shape, residual, if residual { DType::Bf16 } else { DType::F32 });
    let scales = MemLayout::Fragments { k: 1 };
    let how = whole.quantized.map(|how| Quantized { group: Some(128), scales, scale, ..how });
    Gemm { quantized: how, ..whole }
}

fn products(target: &Target) -> Vec<Gemm> {
    let mut all = vec![];
    for (n, k) in SHAPES {
        let kinds = ["bf16", "f8e4m3"].into_iter().flat_map(|dtype| [(dtype, false), (dtype, true)]);
        // rows of a result that are no whole units are written by narrow tiles, which e4m3's largest are not
        let kinds = kinds.filter(|(dtype, _)| *dtype == "bf16" || n.is_multiple_of(8));
        for row in kinds.flat_map(|(dtype, gated)| target.gemm_rows(dtype, gated, n, k)) {
            let whole = n.is_multiple_of(64);
            all.push(product(row, (n, k), whole, if whole { DType::Bf16 } else { DType::F32 }));
        }
    }
    for (n, k, group, zeros) in
        [(4096, 512, 32, false), (4096, 512, 128, true), (16384, 512, 32, true), (1000, 96, 32, false)]
    {
        let rows = [false, true].into_iter().flat_map(|gated| target.gemm_rows("u4", gated, n, k));
        all.extend(rows.map(|row| packed(row, (n, k), group, zeros)));
    }
    for (n, k, scale) in
        [(4096, 4096, DType::F32), (6144, 4096, DType::Bf16), (28672, 512, DType::F32), (1000, 384, DType::F32)]
    {
        let rows = [false, true].into_iter().flat_map(|gated| target.gemm_rows("f8e4m3", gated, n, k));
        all.extend(rows.map(|row| scaled(row, (n, k), scale)));
    }
    all
}

#[test]
fn every_schedule_row_multiplies_by_warpgroups_and_spills_nothing() {
    let target = rvllm_targets::find("sm_90a", &|_| false).unwrap();
    let all = products(&target);
    let kernels: Vec<_> = all.iter().enumerate().map(|(i, s)| gemm(&format!("gemm_{i}"), s)).collect();
    let object = compile(&kernels, &target).unwrap();
    for (s, part) in all.iter().zip(&object.parts) {
        let launch = part.launch.as_ref().unwrap();
        assert!(!launch.tensor_maps.is_empty(), "{s:?} reads no rows by tensor map");
        assert!(launch.shared_bytes <= target.gpu.as_ref().unwrap().shared_bytes, "{s:?}");
        if assembler().is_some() {
            assert_eq!(launch.spill_bytes, Some(0), "{s:?}");
        }
    }
}

#[test]
fn code_is_the_same_each_time() {
    let target = rvllm_targets::find("sm_90a", &|_| false).unwrap();
    let s = &products(&target)[0];
    let [a, b] = [0, 1].map(|_| asm(&gemm("gemm", s), &target).unwrap());
    assert_eq!(a, b);
}

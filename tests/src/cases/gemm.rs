//! `gemm`: all schedule rows over shapes with edges.

use super::{Case, panel, tolerance};
use crate::launch::{Launch, Symbols};
use rvllm_ir::{
    DType, Sym,
    graph::Epilogue,
    tile::{Kernel, MemLayout},
};
use rvllm_kernels::{Gemm, gemm};
use rvllm_targets::{GemmRow, Target};

/// Columns, k, and what follows the product.
pub type Shape = (usize, usize, Epilogue);

const PLAIN: Epilogue = Epilogue { bias: false, silu_mul: false, residual: false };
const BIAS: Epilogue = Epilogue { bias: true, ..PLAIN };
const RESIDUAL: Epilogue = Epilogue { residual: true, ..PLAIN };
const GATED: Epilogue = Epilogue { silu_mul: true, ..PLAIN };
const ALL: Epilogue = Epilogue { bias: true, silu_mul: true, residual: true };

/// Shapes with edges of every kind.
pub const SHAPES: [Shape; 7] = [
    (96, 128, PLAIN),
    (70, 50, PLAIN),
    (40, 33, BIAS),
    (64, 1, RESIDUAL),
    (7, 70, ALL),
    (64, 96, GATED),
    (32, 31, PLAIN),
];

/// Numbers of tokens.
pub const ROWS: [usize; 5] = [1, 2, 7, 13, 33];

fn rows<'t>(target: &'t Target, dtype: DType, (n, k, epilogue): &Shape) -> Vec<&'t GemmRow> {
    target.gemm_rows(dtype.name(), epilogue.silu_mul, *n, *k)
}

/// The kernel of a schedule row.
pub fn kernel(target: &Target, name: &str, dtype: DType, (n, k, epilogue): Shape, row: &GemmRow) -> Kernel {
    // a GPU's copy engine takes rows that are whole units of 16 bytes
    let row_len = if target.gpu.is_some() { k.next_multiple_of(8) + 8 } else { k + 3 };
    let a = MemLayout::Strided { row: Some(row_len) };
    let (block_m, block_n, block_k, stages) = (row.block_m, row.block_n, row.block_k, row.stages);
    let s = Gemm {
        m: Sym::T,
        n,
        k,
        dtype,
        a,
        weight: panel(target, dtype),
        out: dtype,
        epilogue,
        block_m,
        block_n,
        block_k,
        stages,
    };
    gemm(name, &s)
}

/// The kernels of every schedule row, shape by shape.
pub fn variants(target: &Target, dtype: DType) -> Vec<Vec<Kernel>> {
    let variants = |(i, shape): (usize, &Shape)| {
        let rows = rows(target, dtype, shape);
        let named = |(j, row): (usize, &&GemmRow)| {
            kernel(target, &format!("gemm_{}_{i}_{j}", dtype.name()), dtype, *shape, row)
        };
        rows.iter().enumerate().map(named).collect()
    };
    SHAPES.iter().enumerate().map(variants).collect()
}

/// The launch of `t` tokens.
pub fn launch(kernel: &Kernel, t: usize) -> Launch {
    Launch::new(kernel.clone(), Symbols { t, ..Symbols::default() }, t as u64)
}

/// Every variant of every shape with every number of tokens; variants of one problem write the same bits.
pub fn cases(target: &Target) -> Vec<Case> {
    let mut cases = vec![];
    for dtype in [DType::F32, DType::Bf16] {
        for kernels in variants(target, dtype) {
            for t in ROWS {
                let first = launch(&kernels[0], t);
                cases.extend(kernels.iter().map(|kernel| Case {
                    launch: first.with(kernel),
                    tolerance: tolerance(dtype),
                    group: Some(format!("{} T={t}", kernels[0].name)),
                }));
            }
        }
    }
    cases
}

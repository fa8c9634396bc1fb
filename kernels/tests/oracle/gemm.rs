//! `gemm`: tails of every dimension, and each epilogue.

use crate::{Numbers, Run, Symbols, assert_close, tolerance};
use rvllm_ir::{DType, Sym, graph::Epilogue, tile::MemLayout};
use rvllm_kernels::{Gemm, gemm};

pub(crate) const PLAIN: Epilogue = Epilogue { bias: false, silu_mul: false, residual: false };

fn spec(n: usize, k: usize, dtype: DType, epilogue: Epilogue) -> Gemm {
    let weight = MemLayout::Panel { n: 4, k: if dtype == DType::Bf16 { 2 } else { 1 } };
    let (a, out) = (MemLayout::DENSE, dtype);
    Gemm {
        m: Sym::T,
        n,
        k,
        dtype,
        quantized: None,
        a,
        weight,
        out,
        result: MemLayout::DENSE,
        epilogue,
        block_m: 3,
        block_n: 4,
        block_k: 6,
        stages: 2,
    }
}

/// Inputs of a product of `m` rows.
struct Inputs {
    a: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    residual: Vec<f32>,
}

impl Inputs {
    fn new(s: &Gemm, m: usize) -> Inputs {
        let mut numbers = Numbers(4);
        let rows = if s.epilogue.silu_mul { 2 * s.n } else { s.n };
        Inputs {
            a: numbers.take(m * s.k, s.dtype),
            weight: numbers.take(rows * s.k, s.dtype),
            bias: numbers.take(rows, s.dtype),
            residual: numbers.take(m * s.n, s.out),
        }
    }

    fn run(&self, s: &Gemm, m: usize) -> Vec<f32> {
        let mut run = Run::new(gemm("gemm", s), Symbols { t: m, l: m, ..Symbols::default() });
        run.set("a", &self.a).set("weight", &self.weight);
        finish(run, s, [&self.bias, &self.residual])
    }

    /// Row `row` of the weight times row `i` of a, with its bias.
    fn product(&self, s: &Gemm, i: usize, row: usize) -> f64 {
        let (a, w) = (&self.a[i * s.k..][..s.k], &self.weight[row * s.k..][..s.k]);
        let dot: f64 = a.iter().zip(w).map(|(a, w)| f64::from(*a) * f64::from(*w)).sum();
        if s.epilogue.bias { dot + f64::from(self.bias[row]) } else { dot }
    }

    fn expected(&self, s: &Gemm, m: usize) -> Vec<f32> {
        with_epilogue(s, m, |i, row| self.product(s, i, row), &self.residual)
    }
}

/// The product of a run that has all but its epilogue's operands.
pub(super) fn finish(mut run: Run, s: &Gemm, [bias, residual]: [&[f32]; 2]) -> Vec<f32> {
    if s.epilogue.bias {
        run.set("bias", bias);
    }
    if s.epilogue.residual {
        run.set("residual", residual);
    }
    run.go().get("c").to_vec()
}

/// What a product of `m` rows leaves; `product` is row `i` of a times row `row` of the weight, with its bias.
pub(crate) fn with_epilogue(s: &Gemm, m: usize, product: impl Fn(usize, usize) -> f64, residual: &[f32]) -> Vec<f32> {
    let element = |at: usize| {
        let (i, j) = (at / s.n, at % s.n);
        let mut c = product(i, j);
        if s.epilogue.silu_mul {
            c = c / (1.0 + (-c).exp()) * product(i, s.n + j);
        }
        if s.epilogue.residual {
            c += f64::from(residual[at]);
        }
        c as f32
    };
    (0..m * s.n).map(element).collect()
}

#[test]
fn gemm_with_every_epilogue_and_tail() {
    for dtype in [DType::F32, DType::Bf16] {
        for flags in 0..8 {
            let epilogue = Epilogue { bias: flags & 1 != 0, silu_mul: flags & 2 != 0, residual: flags & 4 != 0 };
            for (m, n, k) in [(1, 4, 6), (3, 9, 7), (7, 3, 13), (4, 12, 1)] {
                let s = spec(n, k, dtype, epilogue);
                let inputs = Inputs::new(&s, m);
                assert_close(&inputs.run(&s, m), &inputs.expected(&s, m), tolerance(dtype));
            }
        }
    }
}

#[test]
fn logits_are_f32_of_bf16_weights() {
    let s = Gemm { m: Sym::L, out: DType::F32, ..spec(10, 20, DType::Bf16, PLAIN) };
    let inputs = Inputs::new(&s, 5);
    assert_close(&inputs.run(&s, 5), &inputs.expected(&s, 5), 3e-6);
}

#[test]
fn tile_sizes_and_other_rows_do_not_change_a_row() {
    let s = spec(9, 31, DType::F32, PLAIN);
    let inputs = Inputs::new(&s, 8);
    let all = inputs.run(&s, 8);
    for (block_m, block_n, block_k) in [(1, 4, 6), (8, 8, 16), (5, 4, 31)] {
        let s = Gemm { block_m, block_n, block_k, ..s.clone() };
        assert_eq!(inputs.run(&s, 8), all);
    }
    for row in 0..8 {
        let alone = Inputs { a: inputs.a[row * s.k..][..s.k].to_vec(), ..Inputs::new(&s, 1) };
        let alone = Inputs { weight: inputs.weight.clone(), ..alone };
        assert_eq!(alone.run(&s, 1), all[row * s.n..][..s.n]);
    }
}

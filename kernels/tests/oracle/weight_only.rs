//! `gemm` of numbers with weights of 4-bit values in groups.

use crate::{
    Numbers, Run, Symbols, assert_close,
    gemm::{PLAIN, finish, with_epilogue},
};
use rvllm_ir::{DType, Sym, graph::Epilogue, tile::MemLayout};
use rvllm_kernels::{Gemm, Quantized, gemm};

const ALL: Epilogue = Epilogue { bias: true, silu_mul: true, residual: true };

fn spec((n, k): (usize, usize), group: usize, scale: DType, zeros: bool, epilogue: Epilogue) -> Gemm {
    let scales = MemLayout::Fragments { k: (64 / group).max(1) };
    let how = Quantized { weight: DType::U4, group: Some(group), scales, scale, zeros, weight_only: true };
    Gemm {
        m: Sym::T,
        n,
        k,
        dtype: DType::Bf16,
        quantized: Some(how),
        a: MemLayout::DENSE,
        weight: MemLayout::Fragments { k: 64 },
        out: DType::F32,
        result: MemLayout::DENSE,
        epilogue,
        block_m: 3,
        block_n: 4,
        block_k: 128,
        stages: 2,
    }
}

struct Operands {
    a: Vec<f32>,
    weight: Vec<f32>,
    scales: Vec<f32>,
    zeros: Vec<f32>,
    bias: Vec<f32>,
    residual: Vec<f32>,
}

impl Operands {
    fn new(s: &Gemm, m: usize) -> Operands {
        let mut numbers = Numbers(17);
        let how = s.quantized.expect("a quantised weight");
        let rows = if s.epilogue.silu_mul { 2 * s.n } else { s.n };
        let groups = rows * s.k / how.group.expect("groups");
        let mut values = |n: usize| (0..n).map(|_| (numbers.next() * 7.5 + 7.5).round()).collect::<Vec<f32>>();
        let (weight, zeros) = (values(rows * s.k), values(groups));
        Operands {
            a: numbers.take(m * s.k, s.dtype),
            weight,
            scales: (0..groups).map(|_| how.scale.round(numbers.next() / 64.0)).collect(),
            zeros: if how.zeros { zeros } else { vec![8.0; groups] },
            bias: numbers.take(rows, s.dtype),
            residual: numbers.take(m * s.n, s.out),
        }
    }

    fn run(&self, s: &Gemm, m: usize) -> Vec<f32> {
        let mut run = Run::new(gemm("gemm", s), Symbols { t: m, ..Symbols::default() });
        run.set("a", &self.a).set("weight", &self.weight).set("weight_scale", &self.scales);
        if s.quantized.is_some_and(|how| how.zeros) {
            run.set("weight_zero", &self.zeros);
        }
        finish(run, s, [&self.bias, &self.residual])
    }

    /// Row `row` of the weight's numbers times row `i` of a, with its bias.
    fn product(&self, s: &Gemm, i: usize, row: usize) -> f64 {
        let group = s.quantized.and_then(|how| how.group).expect("groups");
        let term = |c: usize| {
            let g = (row * s.k + c) / group;
            let number = (self.weight[row * s.k + c] - self.zeros[g]) * DType::Bf16.round(self.scales[g]);
            f64::from(DType::Bf16.round(number)) * f64::from(self.a[i * s.k + c])
        };
        let product: f64 = (0..s.k).map(term).sum();
        if s.epilogue.bias { product + f64::from(self.bias[row]) } else { product }
    }
}

#[test]
fn values_become_numbers_before_they_are_multiplied() {
    for epilogue in [PLAIN, ALL] {
        for (m, shape, group) in [(1, (4, 32), 32), (3, (9, 96), 32), (7, (3, 320), 64), (4, (13, 256), 128)] {
            for (scale, zeros) in [(DType::F16, false), (DType::Bf16, true), (DType::F32, true)] {
                let s = spec(shape, group, scale, zeros, epilogue);
                let operands = Operands::new(&s, m);
                let expected = with_epilogue(&s, m, |i, row| operands.product(&s, i, row), &operands.residual);
                assert_close(&operands.run(&s, m), &expected, 2e-5);
            }
        }
    }
}

#[test]
fn tiles_and_other_rows_do_not_change_a_row() {
    let s = spec((9, 320), 32, DType::F16, true, ALL);
    let operands = Operands::new(&s, 8);
    let all = operands.run(&s, 8);
    for (block_m, block_n, block_k) in [(1, 4, 64), (8, 8, 256)] {
        assert_eq!(operands.run(&Gemm { block_m, block_n, block_k, stages: 1, ..s.clone() }, 8), all);
    }
    let pieces = spec((9, 256), 128, DType::F16, true, ALL);
    let whole = Operands::new(&pieces, 3);
    assert_eq!(whole.run(&Gemm { block_k: 64, ..pieces.clone() }, 3), whole.run(&pieces, 3), "parts of a group");
    let first = Operands { a: operands.a[..s.k].to_vec(), residual: operands.residual[..s.n].to_vec(), ..operands };
    assert_eq!(first.run(&s, 1), all[..s.n]);
}

//! Kernels of quantised values: products of int8 rows, of int4 and int8 groups with and without zeros, rows of activations to values,
//! lookups in a quantised table.
//!
//! Sums in f64 are exact: what they must be of integers, whose products only scaling rounds.

use crate::{
    Numbers, Run, Symbols, assert_close,
    gemm::{PLAIN, finish, with_epilogue},
};
use rvllm_ir::{
    DType, Sym,
    graph::{Epilogue, Quantize},
    tile::MemLayout,
};
use rvllm_kernels::{Embed, Gemm, QuantizeRows, Quantized, embed, gemm, quantize_rows};

const ALL: Epilogue = Epilogue { bias: true, silu_mul: true, residual: true };

/// `n` values of a type, of all of its range; of integers of this one.
fn values(numbers: &mut Numbers, n: usize, dtype: DType, range: [f32; 2]) -> Vec<f32> {
    match dtype {
        DType::F8e4m3 => (0..n).map(|_| dtype.saturate(numbers.next() * 448.0)).collect(),
        _ => integers(numbers, n, range),
    }
}

/// `n` integers of all of this range.
fn integers(numbers: &mut Numbers, n: usize, [least, most]: [f32; 2]) -> Vec<f32> {
    (0..n).map(|_| ((numbers.next() + 1.0) / 2.0 * (most - least) + least).round()).collect()
}

/// `n` positive scales as `dtype` holds them.
fn scales(numbers: &mut Numbers, n: usize, dtype: DType) -> Vec<f32> {
    (0..n).map(|_| dtype.round(numbers.next().abs() / 64.0 + 1.0 / 256.0)).collect()
}

fn spec(n: usize, k: usize, how: Quantized, epilogue: Epilogue) -> Gemm {
    Gemm {
        m: Sym::T,
        n,
        k,
        dtype: DType::Bf16,
        quantized: Some(how),
        a: MemLayout::Strided { row: Some(k + 5) },
        weight: MemLayout::Panel { n: 4, k: 32 / how.weight.bits() },
        out: DType::F32,
        result: MemLayout::DENSE,
        epilogue,
        block_m: 3,
        block_n: 4,
        block_k: 24,
        stages: 2,
    }
}

/// Operands of a product of `m` rows.
struct Operands {
    a: Vec<f32>,
    weight: Vec<f32>,
    a_scale: Vec<f32>,
    weight_scale: Vec<f32>,
    zeros: Vec<f32>,
    bias: Vec<f32>,
    residual: Vec<f32>,
}

/// How many columns share a scale.
fn group(s: &Gemm) -> usize {
    s.quantized.and_then(|how| how.group).unwrap_or(s.k)
}

impl Operands {
    fn new(s: &Gemm, m: usize) -> Operands {
        let how = s.quantized.expect("a quantised product");
        let mut numbers = Numbers(11);
        let rows = if s.epilogue.silu_mul { 2 * s.n } else { s.n };
        let groups = rows * s.k / group(s);
        let most = how.weight.largest();
        let least = if how.weight == DType::I8 { -128.0 } else { 0.0 };
        let of_a = if how.weight.is_float() { how.weight } else { DType::I8 };
        let zero = if how.group.is_some() && !how.weight.is_float() { (most + 1.0) / 2.0 } else { 0.0 };
        let scale = if how.group.is_some() { how.scale } else { DType::F32 };
        Operands {
            a: values(&mut numbers, m * s.k, of_a, [-128.0, 127.0]),
            weight: values(&mut numbers, rows * s.k, how.weight, [least, most]),
            a_scale: scales(&mut numbers, m, DType::F32),
            weight_scale: scales(&mut numbers, groups, scale),
            zeros: if how.zeros { integers(&mut numbers, groups, [0.0, most]) } else { vec![zero; groups] },
            bias: numbers.take(rows, s.dtype),
            residual: numbers.take(m * s.n, s.out),
        }
    }

    fn run(&self, s: &Gemm, m: usize) -> Vec<f32> {
        let how = s.quantized.expect("a quantised product");
        let mut run = Run::new(gemm("gemm", s), Symbols { t: m, ..Symbols::default() });
        run.set("a", &self.a).set("weight", &self.weight);
        run.set("a_scale", &self.a_scale).set("weight_scale", &self.weight_scale);
        if how.group.is_some() && !how.weight.is_float() {
            let sums: Vec<f32> = self.a.chunks(group(s)).map(|values| values.iter().sum()).collect();
            run.set("a_sums", &sums);
        }
        if how.zeros {
            run.set("weight_zero", &self.zeros);
        }
        finish(run, s, [&self.bias, &self.residual])
    }

    /// Row `row` of the weight's numbers times row `i` of a's, with its bias.
    fn product(&self, s: &Gemm, i: usize, row: usize) -> f64 {
        let (each, groups) = (group(s), s.k / group(s));
        let of_group = |g: usize| {
            let at = row * groups + g;
            let (a, w) = (&self.a[i * s.k + g * each..][..each], &self.weight[row * s.k + g * each..][..each]);
            let zero = f64::from(self.zeros[at]);
            let dot: f64 = a.iter().zip(w).map(|(a, w)| f64::from(*a) * (f64::from(*w) - zero)).sum();
            dot * f64::from(self.weight_scale[at])
        };
        let product = (0..groups).map(of_group).sum::<f64>() * f64::from(self.a_scale[i]);
        if s.epilogue.bias { product + f64::from(self.bias[row]) } else { product }
    }

    fn expected(&self, s: &Gemm, m: usize) -> Vec<f32> {
        with_epilogue(s, m, |i, row| self.product(s, i, row), &self.residual)
    }

    /// Row `i` alone.
    fn row(&self, s: &Gemm, i: usize) -> Operands {
        Operands {
            a: self.a[i * s.k..][..s.k].to_vec(),
            a_scale: vec![self.a_scale[i]],
            residual: self.residual[i * s.n..][..s.n].to_vec(),
            weight: self.weight.clone(),
            weight_scale: self.weight_scale.clone(),
            zeros: self.zeros.clone(),
            bias: self.bias.clone(),
        }
    }
}

fn rows_of(weight: DType) -> Quantized {
    Quantized { weight, group: None, scales: MemLayout::DENSE, scale: DType::F32, zeros: false, weight_only: false }
}

fn groups_of(weight: DType, group: usize, scale: DType, zeros: bool) -> Quantized {
    Quantized { weight, group: Some(group), scales: MemLayout::Panel { n: 4, k: 1 }, scale, zeros, weight_only: false }
}

fn check(s: &Gemm, m: usize) {
    let operands = Operands::new(s, m);
    assert_close(&operands.run(s, m), &operands.expected(s, m), 2e-5);
}

#[test]
fn int8_products_of_odd_shapes() {
    for flags in 0..8 {
        let epilogue = Epilogue { bias: flags & 1 != 0, silu_mul: flags & 2 != 0, residual: flags & 4 != 0 };
        for (m, n, k) in [(1, 4, 24), (3, 9, 7), (7, 3, 53), (4, 13, 1)] {
            check(&spec(n, k, rows_of(DType::I8), epilogue), m);
        }
    }
}

#[test]
fn int4_products_in_groups_of_odd_shapes() {
    for epilogue in [PLAIN, ALL] {
        for (m, n, k, group) in [(1, 4, 32, 32), (3, 9, 96, 32), (7, 3, 160, 32), (4, 13, 256, 128), (5, 7, 24, 8)] {
            for (weight, scale) in [(DType::U4, DType::F16), (DType::U4, DType::Bf16), (DType::U8, DType::F32)] {
                for zeros in [false, true] {
                    check(&spec(n, k, groups_of(weight, group, scale, zeros), epilogue), m);
                }
            }
        }
    }
}

#[test]
fn e4m3_products_in_groups_of_odd_shapes() {
    for epilogue in [PLAIN, ALL] {
        for (m, n, k, group) in [(1, 4, 128, 128), (3, 9, 384, 128), (7, 3, 640, 128), (5, 13, 96, 32)] {
            for scale in [DType::F32, DType::Bf16] {
                let how = Quantized {
                    scales: MemLayout::Fragments { k: 1 },
                    ..groups_of(DType::F8e4m3, group, scale, false)
                };
                check(&spec(n, k, how, epilogue), m);
            }
        }
    }
}

#[test]
fn zeros_of_the_middle_change_no_bit() {
    let middle = spec(9, 96, groups_of(DType::U4, 32, DType::F16, false), ALL);
    let named = Gemm { quantized: Some(groups_of(DType::U4, 32, DType::F16, true)), ..middle.clone() };
    let operands = Operands::new(&middle, 5);
    assert_eq!(operands.run(&named, 5), operands.run(&middle, 5));
}

#[test]
fn tiles_and_other_rows_do_not_change_a_quantised_row() {
    let e4m3 = groups_of(DType::F8e4m3, 32, DType::F32, false);
    for how in [rows_of(DType::I8), groups_of(DType::U4, 32, DType::F16, true), e4m3] {
        let s = spec(9, 96, how, ALL);
        let operands = Operands::new(&s, 8);
        let all = operands.run(&s, 8);
        for (block_m, block_n, block_k) in [(1, 4, 8), (8, 8, 96), (5, 4, 40)] {
            assert_eq!(operands.run(&Gemm { block_m, block_n, block_k, stages: 1, ..s.clone() }, 8), all);
        }
        for i in 0..8 {
            assert_eq!(operands.row(&s, i).run(&s, 1), all[i * s.n..][..s.n]);
        }
    }
}

/// Values, scale and sums of a row.
fn quantized_row(x: &[f32], how: Quantize) -> (Vec<f32>, f32, Vec<f32>) {
    let largest = x.iter().fold(1e-30f32, |a, x| a.max(x.abs()));
    let inverse = how.to.largest() / largest;
    let values: Vec<f32> = x.iter().map(|x| (x * inverse).round_ties_even()).collect();
    let sums = values.chunks(how.group.unwrap_or(x.len())).map(|group| group.iter().sum()).collect();
    (values, largest / how.to.largest(), sums)
}

#[test]
fn rows_become_values_scales_and_sums() {
    for dtype in [DType::F32, DType::Bf16] {
        for (n, group, chunk) in
            [(13, None, 4), (64, None, 64), (96, Some(32), 32), (96, Some(32), 64), (40, Some(8), 16)]
        {
            let (t, how) = (4, Quantize { to: DType::I8, group });
            let x = MemLayout::Strided { row: Some(n + 3) };
            let s = QuantizeRows { m: Sym::T, n, dtype, x, how, values: MemLayout::DENSE, chunk };
            let mut rows = Numbers(5).take(t * n, dtype);
            rows[2 * n..3 * n].fill(0.0);
            let mut run = Run::new(quantize_rows("quantize", &s), Symbols { t, ..Symbols::default() });
            run.set("x", &rows).go();
            let expected: Vec<_> = rows.chunks(n).map(|row| quantized_row(row, how)).collect();
            let values: Vec<f32> = expected.iter().flat_map(|(values, ..)| values).copied().collect();
            let scale: Vec<f32> = expected.iter().map(|(_, scale, _)| *scale).collect();
            assert_eq!((run.get("values"), run.get("scale")), (&values[..], &scale[..]), "{s:?}");
            assert!(values[2 * n..3 * n].iter().all(|v| *v == 0.0), "a row of zeros has values of zero");
            if group.is_some() {
                let sums: Vec<f32> = expected.iter().flat_map(|(.., sums)| sums).copied().collect();
                assert_eq!(run.get("sums"), sums);
            }
        }
    }
}

#[test]
fn rows_of_a_quantised_table() {
    let of_rows = (rows_of(DType::I8), [-128.0, 127.0], 0.0);
    let of_groups = (groups_of(DType::U4, 32, DType::F16, false), [0.0, 15.0], 8.0);
    for ((how, range, zero), (vocab, hidden, chunk)) in
        [(of_rows, (7, 13, 4)), (of_rows, (3, 96, 64)), (of_groups, (9, 96, 32)), (of_groups, (5, 160, 64))]
    {
        let table = MemLayout::Panel { n: 4, k: 32 / how.weight.bits() };
        let s = Embed { vocab, hidden, dtype: DType::Bf16, values: Some(how), table, chunk };
        let (mut numbers, group) = (Numbers(6), how.group.unwrap_or(hidden));
        let values = integers(&mut numbers, vocab * hidden, range);
        let scale = scales(&mut numbers, vocab * hidden / group, how.scale);
        let ids = [2, 0, 1, 2];
        let mut run = Run::new(embed("embed", &s), Symbols { t: ids.len(), ..Symbols::default() });
        run.set("table", &values).set("table_scale", &scale).set_i32("token_ids", &ids).go();
        let number = |id: i32, j: usize| {
            let at = id as usize * hidden + j;
            DType::Bf16.round((values[at] - zero) * scale[at / group])
        };
        let expected: Vec<f32> = ids.iter().flat_map(|id| (0..hidden).map(|j| number(*id, j))).collect();
        assert_eq!(run.get("out"), expected, "{s:?}");
    }
}

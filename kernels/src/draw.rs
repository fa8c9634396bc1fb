//! Tokens drawn from rows of logits, by the statistics that [`super::logit_stats()`] leaves of them.

use crate::logit_stats::{BLOCK, LOWEST};
use rvllm_ir::{
    DType, Dim, Sym, TensorType,
    graph::op::DRAWS,
    tile::{
        Cmp, Kernel, KernelBuilder, Layout,
        MapOp::{Add, Div, Exp, Max, Min, Mul, Sub},
        ReduceOp, Val,
        builder::TensorRef,
    },
};

/// Columns of the matrix that weights are seen as: a place is looked for among rows, then within one.
const COLUMNS: usize = 16;

/// Numbers of [`draw`].
#[derive(Clone, Debug, PartialEq)]
pub struct Draw {
    /// V: logits of a row.
    pub vocab: usize,
}

/// How logits of a row become weights: 1 for the largest.
struct Scale {
    max: Val,
    /// One over the temperature.
    inverse: Val,
}

/// Parameters: logits `[L, V]f32`, max `[L]f32`, block_max `[L, ceil(V/256)]f32`, block_sum of the same shape, temperature
/// `[L]f32`, uniform `[L, 2 * DRAWS]f32`, draws `[L, DRAWS]f32`. The first of a draw's two numbers chooses a block by what the
/// blocks weigh, the second a token of it: a row is not read but for one block. One program per row and draw.
pub fn draw(name: &str, s: &Draw) -> Kernel {
    let mut k = KernelBuilder::new(name);
    let blocks = s.vocab.div_ceil(BLOCK);
    let matrix = |cols: usize| TensorType::new([Dim::Sym(Sym::L), Dim::Const(cols)], DType::F32);
    let list = TensorType::new([Sym::L], DType::F32);
    let logits = k.input("logits", matrix(s.vocab));
    let max = k.input("max", list.clone());
    let [block_max, block_sum] = ["block_max", "block_sum"].map(|name| k.input(name, matrix(blocks)));
    let temperature = k.step_input("temperature", list);
    let uniform = k.step_input("uniform", matrix(2 * DRAWS));
    let draws = k.output("draws", matrix(DRAWS));

    let row = k.grid("row", Sym::L);
    let of = k.grid("draw", DRAWS as i64);
    let first = k.scale(of, 2);
    let second = k.offset(first, 1);
    let fractions = [first, second].map(|i| k.load(uniform, &[row, i], &[]));
    let scale = scale(&mut k, row, max, temperature);
    let weights = block_weights(&mut k, &scale, row, blocks, [block_max, block_sum]);
    let block = place(&mut k, weights, fractions[0]);
    let start = k.to_index(block);
    let start = k.scale(start, BLOCK);
    let weights = token_weights(&mut k, &scale, [row, start], s.vocab, logits);
    let token = place(&mut k, weights, fractions[1]);
    let before = k.map_const(Mul, block, BLOCK as f32);
    let id = k.map(Add, &[before, token]);
    k.store(draws, &[row, of], id);
    k.finish()
}

fn scale(k: &mut KernelBuilder, row: Val, max: TensorRef, temperature: TensorRef) -> Scale {
    let temperature = k.load(temperature, &[row], &[]);
    let one = k.full(1.0, &[]);
    let inverse = k.map(Div, &[one, temperature]);
    let max = k.load(max, &[row], &[]);
    Scale { max: k.map_const(Max, max, LOWEST), inverse }
}

/// Rows of a matrix of `n` weights.
fn rows(n: usize) -> usize {
    n.div_ceil(COLUMNS)
}

/// `exp((logit - max) / temperature)`, at most 1.
fn weigh(k: &mut KernelBuilder, of: &Scale, logits: Val) -> Val {
    let n = k.tile(logits).shape[0];
    let [max, inverse] = [of.max, of.inverse].map(|v| k.broadcast(v, 0, n, Layout::Reg));
    let below = k.map(Sub, &[logits, max]);
    let below = k.map_const(Min, below, 0.0); // zeros past the end, too
    let scaled = k.map(Mul, &[below, inverse]);
    k.map(Exp, &[scaled])
}

/// `[rows, COLUMNS]`: what each block weighs; 0 past the last, where a load gives sums of 0.
fn block_weights(k: &mut KernelBuilder, of: &Scale, row: Val, blocks: usize, [max, sum]: [TensorRef; 2]) -> Val {
    let n = rows(blocks) * COLUMNS;
    let zero = k.index(0);
    let [max, sum] = [max, sum].map(|t| k.load(t, &[row, zero], &[n]));
    let largest = weigh(k, of, max);
    let weights = k.map(Mul, &[sum, largest]);
    k.reshape(weights, &[rows(blocks), COLUMNS])
}

/// `[rows, COLUMNS]`: what each token of the block from `start` on weighs; 0 past the vocabulary's end.
fn token_weights(k: &mut KernelBuilder, of: &Scale, [row, start]: [Val; 2], vocab: usize, logits: TensorRef) -> Val {
    let x = k.load(logits, &[row, start], &[BLOCK]);
    let weights = weigh(k, of, x);
    let id = k.iota(start, 1, BLOCK);
    let end = k.index(vocab as i64);
    let end = k.iota(end, BLOCK, BLOCK); // the same number everywhere
    let none = k.full(0.0, &[BLOCK]);
    let weights = k.select(Cmp::Lt, id, end, weights, none);
    k.reshape(weights, &[BLOCK / COLUMNS, COLUMNS])
}

/// Which of the weights, put one after the other, lies at this fraction of them all; of rank 0, and less than their number.
/// One of no weight only where none has any.
fn place(k: &mut KernelBuilder, weights: Val, fraction: Val) -> Val {
    let n = k.tile(weights).shape[0];
    let sums = k.reduce(ReduceOp::Sum, weights, 1);
    let total = k.reduce(ReduceOp::Sum, sums, 0);
    let target = k.map(Mul, &[fraction, total]);
    let (row, before) = reached(k, sums, target);
    let rest = k.map(Sub, &[target, before]);
    let chosen = row_of(k, weights, row, n);
    let (column, _) = reached(k, chosen, rest);
    let start = k.map_const(Mul, row, COLUMNS as f32);
    k.map(Add, &[start, column])
}

/// `[COLUMNS]`: row `row` of `n` rows.
fn row_of(k: &mut KernelBuilder, weights: Val, row: Val, n: usize) -> Val {
    let ids = numbers(k, n);
    let row = k.broadcast(row, 0, n, Layout::Reg);
    let [one, none] = [1.0, 0.0].map(|c| k.full(c, &[n]));
    let is = k.select(Cmp::Eq, ids, row, one, none);
    let is = k.broadcast(is, 1, COLUMNS, Layout::Reg);
    let chosen = k.map(Mul, &[weights, is]);
    k.reduce(ReduceOp::Sum, chosen, 0)
}

/// The first of the weights `[n]` with which their sum is more than `target`, and the sum before it. The last of any weight,
/// where rounding leaves none.
fn reached(k: &mut KernelBuilder, weights: Val, target: Val) -> (Val, Val) {
    let n = k.tile(weights).shape[0];
    let ids = numbers(k, n);
    let none = k.full(0.0, &[n]);
    let sums = running_sums(k, weights, ids);
    let target = k.broadcast(target, 0, n, Layout::Reg);
    let one = k.full(1.0, &[n]);
    let passed = k.select(Cmp::Le, sums, target, one, none);
    let count = k.reduce(ReduceOp::Sum, passed, 0);
    let before = k.select(Cmp::Le, sums, target, sums, none);
    let before = k.reduce(ReduceOp::Max, before, 0);
    let last = k.select(Cmp::Lt, none, weights, ids, none);
    let last = k.reduce(ReduceOp::Max, last, 0);
    (k.map(Min, &[count, last]), before)
}

/// `[n]`: the sum of each of the weights and those before it.
fn running_sums(k: &mut KernelBuilder, weights: Val, ids: Val) -> Val {
    let n = k.tile(weights).shape[0];
    let added = k.broadcast(weights, 0, n, Layout::Reg);
    let of = k.broadcast(ids, 0, n, Layout::Reg);
    let to = k.broadcast(ids, 1, n, Layout::Reg);
    let none = k.full(0.0, &[n, n]);
    let added = k.select(Cmp::Le, of, to, added, none);
    k.reduce(ReduceOp::Sum, added, 1)
}

/// `[n]f32`: 0, 1, 2 …
fn numbers(k: &mut KernelBuilder, n: usize) -> Val {
    let zero = k.index(0);
    let ids = k.iota(zero, 1, n);
    k.cast(ids, DType::F32)
}

//! Tokens drawn from rows of logits, by the statistics that [`super::logit_stats()`] leaves of them, and where they stand among
//! the others.

use crate::logit_stats::{BLOCK, LOWEST};
use rvllm_ir::{
    DType, Dim, Sym, TensorType,
    graph::op::{DRAWS, RANK},
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

/// Parameters: logits `[L, V]f32`, max `[L]f32`, block_max `[L, ceil(V/256)]f32`, block_sum of the same shape, temperature
/// `[L]f32`, draws `[L, DRAWS]f32`, ranked `[L]i32`, ranks `[L, RANK * DRAWS]f32`. Blocks are read whose largest logit is at least the
/// token's. One program per row and draw.
pub fn rank(name: &str, s: &Draw) -> Kernel {
    let mut k = KernelBuilder::new(name);
    let blocks = s.vocab.div_ceil(BLOCK);
    let matrix = |cols: usize| TensorType::new([Dim::Sym(Sym::L), Dim::Const(cols)], DType::F32);
    let list = |dtype| TensorType::new([Sym::L], dtype);
    let logits = k.input("logits", matrix(s.vocab));
    let max = k.input("max", list(DType::F32));
    let [block_max, block_sum] = ["block_max", "block_sum"].map(|name| k.input(name, matrix(blocks)));
    let temperature = k.step_input("temperature", list(DType::F32));
    let draws = k.input("draws", matrix(DRAWS));
    let ranked = k.step_input("ranked", list(DType::I32));
    let ranks = k.output("ranks", matrix(RANK * DRAWS));

    let row = k.grid("row", Sym::L);
    let of = k.grid("draw", DRAWS as i64);
    let ranked = k.read(ranked, &[row]);
    let left = k.sub(ranked, of);
    let [zero, one] = [0, 1].map(|i| k.index(i));
    let left = k.max(left, zero);
    let is_ranked = k.min(left, one);
    let none = [0.0; RANK].map(|c| k.full(c, &[]));
    let found = k.pipeline(zero, is_ranked, 1, &none, |k, _, _| {
        let scale = scale(k, row, max, temperature);
        let weights = block_weights(k, &scale, row, blocks, [block_max, block_sum]);
        let weights = k.reduce(ReduceOp::Sum, weights, 1);
        let total = k.reduce(ReduceOp::Sum, weights, 0);
        let id = k.load(draws, &[row, of], &[]);
        let at = k.to_index(id);
        let logit = k.load(logits, &[row, at], &[]);
        let token = Token { scale, row, vocab: s.vocab, logits, block_max, id: at, logit };
        let [count, before] = before(k, &token, blocks);
        vec![logit, count, before, total]
    });
    let first = k.scale(of, RANK);
    for (i, number) in found.into_iter().enumerate() {
        let at = k.offset(first, i as i64);
        k.store(ranks, &[row, at], number);
    }
    k.finish()
}

/// A token of a row of logits.
struct Token {
    scale: Scale,
    row: Val,
    vocab: usize,
    logits: TensorRef,
    block_max: TensorRef,
    id: Val,
    logit: Val,
}

/// How many logits are larger than the token's, and what the tokens before it weigh.
fn before(k: &mut KernelBuilder, of: &Token, blocks: usize) -> [Val; 2] {
    let none = [0.0; 2].map(|c| k.full(c, &[]));
    let [zero, groups] = [0, rows(blocks)].map(|i| k.index(i as i64));
    let sums = k.pipeline(zero, groups, 1, &none, |k, group, sums| {
        let first = k.scale(group, COLUMNS);
        let largest = k.load(of.block_max, &[of.row, first], &[COLUMNS]);
        let largest = k.reduce(ReduceOp::Max, largest, 0);
        // Zeros past the last block only make it look at those before.
        where_at_least(k, of.logit, largest, sums, |k, sums| {
            let end = k.offset(first, COLUMNS as i64);
            let blocks = k.index(blocks as i64);
            let end = k.min(end, blocks);
            k.pipeline(first, end, 1, sums, |k, block, sums| {
                let largest = k.load(of.block_max, &[of.row, block], &[]);
                where_at_least(k, of.logit, largest, sums, |k, sums| before_in(k, of, block, sums))
            })
        })
    });
    [sums[0], sums[1]]
}

/// What `body` makes of `state` where `largest` is at least `logit`; else `state`.
fn where_at_least(
    k: &mut KernelBuilder,
    logit: Val,
    largest: Val,
    state: &[Val],
    body: impl FnOnce(&mut KernelBuilder, &[Val]) -> Vec<Val>,
) -> Vec<Val> {
    let [none, one] = [0.0, 1.0].map(|c| k.full(c, &[]));
    let times = k.select(Cmp::Le, logit, largest, one, none);
    let times = k.to_index(times);
    let zero = k.index(0);
    k.pipeline(zero, times, 1, state, |k, _, state| body(k, state))
}

/// The sums with what a block adds to them.
fn before_in(k: &mut KernelBuilder, of: &Token, block: Val, sums: &[Val]) -> Vec<Val> {
    let start = k.scale(block, BLOCK);
    let x = k.load(of.logits, &[of.row, start], &[BLOCK]);
    let [one, none] = [1.0, 0.0].map(|c| k.full(c, &[BLOCK]));
    let logit = k.broadcast(of.logit, 0, BLOCK, Layout::Reg);
    let id = k.iota(start, 1, BLOCK);
    let larger = k.select(Cmp::Lt, logit, x, one, none);
    let token = k.iota(of.id, BLOCK, BLOCK); // the same number everywhere
    let first = k.select(Cmp::Lt, id, token, one, none);
    let equal = k.select(Cmp::Eq, logit, x, first, none);
    let precedes = k.map(Add, &[larger, equal]);
    let end = k.index(of.vocab as i64);
    let end = k.iota(end, BLOCK, BLOCK);
    let [larger, precedes] = [larger, precedes].map(|v| k.select(Cmp::Lt, id, end, v, none));
    let weights = weigh(k, &of.scale, x);
    let weights = k.map(Mul, &[weights, precedes]);
    let added = [larger, weights].map(|v| k.reduce(ReduceOp::Sum, v, 0));
    (0..2).map(|i| k.map(Add, &[sums[i], added[i]])).collect()
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
pub(crate) fn numbers(k: &mut KernelBuilder, n: usize) -> Val {
    let zero = k.index(0);
    let ids = k.iota(zero, 1, n);
    k.cast(ids, DType::F32)
}

//! The most likely tokens of rows of logits, by the largest logits that [`super::logit_stats()`] leaves of their blocks.

use crate::{
    draw::{Draw, numbers},
    logit_stats::BLOCK,
};
use rvllm_ir::{
    DType, Dim, Sym, TensorType,
    graph::op::TOP_K,
    tile::{
        Cmp, Kernel, KernelBuilder, Layout,
        MapOp::{Add, Min, Mul, Neg, Sub},
        ReduceOp, Val,
    },
};

/// Maxima of blocks are loaded as many at a time as vectors are wide.
const LANES: usize = 16;

/// What is left of a row's blocks.
#[derive(Clone, Copy)]
struct Left {
    /// `[n]`: each one's largest logit.
    largest: Val,
    /// `[n]f32`: the first place in it where an equal one is left.
    from: Val,
}

/// A token.
struct Found {
    logit: Val,
    /// Its block.
    block: Val,
    /// Its place in that.
    place: Val,
    /// The largest logit that its block has left, and from where on.
    left: [Val; 2],
}

/// Parameters: logits `[L, V]f32`, block_max `[L, ceil(V/256)]f32`, top_k `[L]i32`, most_likely `[L, 2 * TOP_K]f32`: ids, then
/// logits, of larger ones first and of equal ones the smaller id first. One token after the other: each reads one block, that
/// of the largest logit that is left. One program per row.
pub fn top_k(name: &str, s: &Draw) -> Kernel {
    let mut k = KernelBuilder::new(name);
    let blocks = s.vocab.div_ceil(BLOCK);
    let matrix = |cols: usize| TensorType::new([Dim::Sym(Sym::L), Dim::Const(cols)], DType::F32);
    let logits = k.input("logits", matrix(s.vocab));
    let block_max = k.input("block_max", matrix(blocks));
    let count = k.step_input("top_k", TensorType::new([Sym::L], DType::I32));
    let most_likely = k.output("most_likely", matrix(2 * TOP_K));

    let row = k.grid("row", Sym::L);
    let [zero, most] = [0, TOP_K.min(s.vocab)].map(|i| k.index(i as i64));
    let count = k.read(count, &[row]);
    let count = k.min(count, most);
    let n = blocks.next_multiple_of(LANES);
    let largest = k.load(block_max, &[row, zero], &[n]);
    let largest = before_end(&mut k, largest, zero, blocks);
    let state = [largest, k.full(0.0, &[n]), k.full(0.0, &[TOP_K]), k.full(0.0, &[TOP_K])];
    let state = k.pipeline(zero, count, 1, &state, |k, i, state| {
        let left = Left { largest: state[0], from: state[1] };
        let found = left.next(k, blocks, |k, start| {
            let x = k.load(logits, &[row, start], &[BLOCK]);
            before_end(k, x, start, s.vocab)
        });
        let Left { largest, from } = left.without(k, &found);
        let start = k.map_const(Mul, found.block, BLOCK as f32);
        let id = k.map(Add, &[start, found.place]);
        let i = k.iota(i, TOP_K, TOP_K); // the same number everywhere
        let i = k.cast(i, DType::F32);
        let [ids, logits] = [(state[2], id), (state[3], found.logit)].map(|(all, one)| put(k, all, i, one));
        vec![largest, from, ids, logits]
    });
    let second = k.index(TOP_K as i64);
    k.store(most_likely, &[row, zero], state[2]);
    k.store(most_likely, &[row, second], state[3]);
    k.finish()
}

impl Left {
    /// The next token, where there is one; `load` brings the logits from one on.
    fn next(&self, k: &mut KernelBuilder, blocks: usize, load: impl FnOnce(&mut KernelBuilder, Val) -> Val) -> Found {
        let n = k.tile(self.largest).shape[0];
        let logit = k.reduce(ReduceOp::Max, self.largest, 0);
        let all = k.full(0.0, &[n]);
        let block = first_equal(k, self.largest, logit, all);
        // what is no number is equal to nothing
        let block = k.map_const(Min, block, (blocks - 1) as f32);
        let from = at(k, self.from, block);
        let start = k.to_index(block);
        let start = k.scale(start, BLOCK);
        let x = load(k, start);
        let from = k.broadcast(from, 0, BLOCK, Layout::Reg);
        let place = first_equal(k, x, logit, from);
        let place = k.map_const(Min, place, (BLOCK - 1) as f32);
        let left = left_in(k, x, logit, place);
        Found { logit, block, place, left }
    }

    fn without(&self, k: &mut KernelBuilder, found: &Found) -> Left {
        let [largest, from] = found.left;
        Left { largest: put(k, self.largest, found.block, largest), from: put(k, self.from, found.block, from) }
    }
}

/// The largest logit that a block has left behind a token, and the first place where an equal one is.
fn left_in(k: &mut KernelBuilder, x: Val, logit: Val, place: Val) -> [Val; 2] {
    let n = k.tile(x).shape[0];
    let [logits, places] = [logit, place].map(|v| k.broadcast(v, 0, n, Layout::Reg));
    let ids = numbers(k, n);
    let [none, one] = [0.0, 1.0].map(|c| k.full(c, &[n]));
    let behind = k.select(Cmp::Lt, places, ids, one, none);
    let equal = k.select(Cmp::Eq, x, logits, behind, none);
    let equal = k.reduce(ReduceOp::Max, equal, 0);
    let lowest = k.full(f32::NEG_INFINITY, &[n]);
    let smaller = k.select(Cmp::Lt, x, logits, x, lowest);
    let smaller = k.reduce(ReduceOp::Max, smaller, 0);
    let [zero, one] = [0.0, 1.0].map(|c| k.full(c, &[]));
    let largest = k.select(Cmp::Eq, equal, one, logit, smaller);
    let next = k.map_const(Add, place, 1.0);
    [largest, k.select(Cmp::Eq, equal, one, next, zero)]
}

/// The first place from `from` on, which is `[n]` as `x` is, where `x` is `value`; beyond `x` where it is not. Of rank 0.
fn first_equal(k: &mut KernelBuilder, x: Val, value: Val, from: Val) -> Val {
    let n = k.tile(x).shape[0];
    let value = k.broadcast(value, 0, n, Layout::Reg);
    let ids = numbers(k, n);
    let beyond = k.full(n as f32, &[n]);
    let eligible = k.select(Cmp::Le, from, ids, ids, beyond);
    let places = k.select(Cmp::Eq, x, value, eligible, beyond);
    let largest = k.map(Neg, &[places]);
    let largest = k.reduce(ReduceOp::Max, largest, 0);
    let none = k.full(0.0, &[]);
    k.map(Sub, &[none, largest])
}

/// The element of `all` at a place.
fn at(k: &mut KernelBuilder, all: Val, place: Val) -> Val {
    let n = k.tile(all).shape[0];
    let none = k.full(0.0, &[n]);
    let place = k.broadcast(place, 0, n, Layout::Reg);
    let ids = numbers(k, n);
    let one = k.select(Cmp::Eq, ids, place, all, none);
    k.reduce(ReduceOp::Max, one, 0)
}

/// `all` with `one` at a place, which is of rank 0 or of the shape of `all`.
fn put(k: &mut KernelBuilder, all: Val, place: Val, one: Val) -> Val {
    let n = k.tile(all).shape[0];
    let place = if k.tile(place).shape.is_empty() { k.broadcast(place, 0, n, Layout::Reg) } else { place };
    let one = k.broadcast(one, 0, n, Layout::Reg);
    let ids = numbers(k, n);
    k.select(Cmp::Eq, ids, place, one, all)
}

/// `x`, whose first element is number `start`; nothing is as small as what is at `end` and beyond.
fn before_end(k: &mut KernelBuilder, x: Val, start: Val, end: usize) -> Val {
    let n = k.tile(x).shape[0];
    let id = k.iota(start, 1, n);
    let end = k.index(end as i64);
    let end = k.iota(end, n, n); // the same number everywhere
    let lowest = k.full(f32::NEG_INFINITY, &[n]);
    k.select(Cmp::Lt, id, end, x, lowest)
}

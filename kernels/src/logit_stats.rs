//! Statistics of rows of logits that the sampler works from.

use rvllm_ir::{
    DType, Dim, Sym, TensorType,
    tile::{
        Cmp, Kernel, KernelBuilder, Layout,
        MapOp::{Add, Exp, Log, Max, Mul, Sub},
        ReduceOp, Val,
    },
};

/// Logits that one entry of `block_max` covers.
pub const BLOCK: usize = 256;

/// Below every logit, and finite, so that no difference of infinities arises.
const LOWEST: f32 = -1e30;

/// Numbers of [`logit_stats`].
#[derive(Clone, Debug, PartialEq)]
pub struct LogitStats {
    /// V: logits of a row.
    pub vocab: usize,
    /// Runs of [`BLOCK`] logits per iteration.
    pub runs: usize,
}

/// Parameters: logits `[L, V]f32`, max `[L]f32`, logsumexp `[L]f32`, block_max `[L, ceil(V/256)]f32`: what greedy choice,
/// log-probabilities and an exact top-k need without another pass over the row. One program per row.
pub fn logit_stats(name: &str, s: &LogitStats) -> Kernel {
    let mut k = KernelBuilder::new(name);
    let blocks = s.vocab.div_ceil(BLOCK);
    let matrix = |cols: usize| TensorType::new([Dim::Sym(Sym::L), Dim::Const(cols)], DType::F32);
    let list = TensorType::new([Sym::L], DType::F32);
    let logits = k.input("logits", matrix(s.vocab));
    let max = k.output("max", list.clone());
    let logsumexp = k.output("logsumexp", list);
    let block_max = k.output("block_max", matrix(blocks));

    let row = k.grid("row", Sym::L);
    let shape = [s.runs.min(blocks), BLOCK];
    let (m, l) = (k.full(LOWEST, &shape[..1]), k.full(0.0, &shape[..1]));
    let state = k.fold(blocks.div_ceil(shape[0]), 1, &[m, l], |k, i, state| {
        let block = k.scale(i, shape[0]);
        let first = k.scale(block, BLOCK);
        let x = k.load(logits, &[row, first], &[shape[0] * BLOCK]);
        let x = mask(k, s, first, x);
        let x = k.reshape(x, &shape);
        let largest = k.reduce(ReduceOp::Max, x, 1);
        k.store(block_max, &[row, block], largest);
        update(k, [state[0], state[1]], largest, x)
    });
    let (m, l) = join(&mut k, state[0], state[1]);
    k.store(max, &[row], m);
    let log = k.map(Log, &[l]);
    let sum = k.map(Add, &[m, log]);
    k.store(logsumexp, &[row], sum);
    k.finish()
}

/// -inf past the vocabulary's end, where a load gives zeros.
fn mask(k: &mut KernelBuilder, s: &LogitStats, first: Val, x: Val) -> Val {
    let n = k.tile(x).shape[0];
    if s.vocab.is_multiple_of(n) {
        return x;
    }
    let id = k.iota(first, 1, n);
    let vocab = k.index(s.vocab as i64);
    let end = k.iota(vocab, n, n); // the same number everywhere
    let none = k.full(f32::NEG_INFINITY, &[n]);
    k.select(Cmp::Lt, id, end, x, none)
}

/// Running maxima and sums of `exp(x - maximum)` after the blocks `x`, whose maxima are `largest`.
fn update(k: &mut KernelBuilder, [m, l]: [Val; 2], largest: Val, x: Val) -> Vec<Val> {
    let new = k.map(Max, &[m, largest]);
    let change = k.map(Sub, &[m, new]);
    let alpha = k.map(Exp, &[change]);
    let shift = k.broadcast(new, 1, BLOCK, Layout::Reg);
    let below = k.map(Sub, &[x, shift]);
    let p = k.map(Exp, &[below]);
    let sum = k.reduce(ReduceOp::Sum, p, 1);
    let l = k.map(Mul, &[l, alpha]);
    vec![new, k.map(Add, &[l, sum])]
}

/// Maximum and sum of a row, from those of every so many blocks.
fn join(k: &mut KernelBuilder, m: Val, l: Val) -> (Val, Val) {
    let n = k.tile(m).shape[0];
    let max = k.reduce(ReduceOp::Max, m, 0);
    let shift = k.broadcast(max, 0, n, Layout::Reg);
    let below = k.map(Sub, &[m, shift]);
    let factor = k.map(Exp, &[below]);
    let l = k.map(Mul, &[l, factor]);
    (max, k.reduce(ReduceOp::Sum, l, 0))
}

//! Statistics of rows of logits that the sampler works from.

use rvllm_ir::{
    DType, Dim, Sym, TensorType,
    tile::{
        Cmp, Kernel, KernelBuilder, Layout,
        MapOp::{Add, Div, Exp, Log, Max, Mul, Sub},
        ReduceOp, Val,
        builder::TensorRef,
    },
};

/// Logits that one entry of `block_max` and of `block_sum` covers.
pub const BLOCK: usize = 256;

/// Below every logit, and finite, so that no difference of infinities arises.
pub(crate) const LOWEST: f32 = -1e30;

/// Numbers of [`logit_stats`].
#[derive(Clone, Debug, PartialEq)]
pub struct LogitStats {
    /// V: logits of a row.
    pub vocab: usize,
    /// Runs of [`BLOCK`] logits per iteration.
    pub runs: usize,
    /// Parts of a row that can be worked on at once.
    pub parts: usize,
}

impl LogitStats {
    fn blocks(&self) -> usize {
        self.vocab.div_ceil(BLOCK)
    }

    /// Runs of an iteration.
    fn tile(&self) -> usize {
        self.runs.min(self.blocks())
    }
}

/// What one program works on.
struct Row {
    logits: TensorRef,
    block_max: TensorRef,
    block_sum: TensorRef,
    row: Val,
    /// One over the temperature.
    inverse: Val,
}

/// Parameters: logits `[L, V]f32`, temperature `[L]f32`, max `[L]f32`, logsumexp `[L]f32`, block_max `[L, ceil(V/256)]f32`,
/// block_sum of the same shape, of `exp((logit - block_max) / temperature)`: what a choice, greedy or at random, and
/// log-probabilities need without another pass over the row. One program per row.
pub fn logit_stats(name: &str, s: &LogitStats) -> Kernel {
    let mut k = KernelBuilder::new(name);
    let matrix = |cols: usize| TensorType::new([Dim::Sym(Sym::L), Dim::Const(cols)], DType::F32);
    let list = TensorType::new([Sym::L], DType::F32);
    let logits = k.input("logits", matrix(s.vocab));
    let temperature = k.step_input("temperature", list.clone());
    let max = k.output("max", list.clone());
    let logsumexp = k.output("logsumexp", list);
    let [block_max, block_sum] = ["block_max", "block_sum"].map(|name| k.output(name, matrix(s.blocks())));

    let row = k.grid("row", Sym::L);
    let temperature = k.load(temperature, &[row], &[]);
    let one = k.full(1.0, &[]);
    let inverse = k.map(Div, &[one, temperature]);
    let of = Row { logits, block_max, block_sum, row, inverse };
    let none = [k.full(LOWEST, &[]), k.full(0.0, &[])];
    let state = k.fold(s.parts, s.parts, &none, |k, part, state| {
        let found = part_of_row(k, s, &of, part);
        merge(k, [state[0], state[1]], found)
    });
    let (m, l) = (state[0], state[1]);
    k.store(max, &[row], m);
    let log = k.map(Log, &[l]);
    let sum = k.map(Add, &[m, log]);
    k.store(logsumexp, &[row], sum);
    k.finish()
}

/// Maximum and sum of one part of a row, whose runs' maxima and sums are written; of a part past the row's end, those of
/// nothing.
fn part_of_row(k: &mut KernelBuilder, s: &LogitStats, of: &Row, part: Val) -> [Val; 2] {
    let shape = [s.tile(), BLOCK];
    let iterations = s.blocks().div_ceil(shape[0]);
    let each = iterations.div_ceil(s.parts);
    let first = k.scale(part, each);
    let (zero, most, all) = (k.index(0), k.index(each as i64), k.index(iterations as i64));
    let left = k.sub(all, first);
    let end = k.min(left, most);
    let none = [k.full(LOWEST, &shape[..1]), k.full(0.0, &shape[..1])];
    let state = k.pipeline(zero, end, 1, &none, |k, i, state| {
        let i = k.add(first, i);
        let block = k.scale(i, shape[0]);
        let first = k.scale(block, BLOCK);
        let x = k.load(of.logits, &[of.row, first], &[shape[0] * BLOCK]);
        let x = mask(k, s, first, x);
        let x = k.reshape(x, &shape);
        let largest = k.reduce(ReduceOp::Max, x, 1);
        k.store(of.block_max, &[of.row, block], largest);
        let sum = block_sum(k, of.inverse, largest, x);
        k.store(of.block_sum, &[of.row, block], sum);
        update(k, [state[0], state[1]], largest, x)
    });
    join(k, state[0], state[1])
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

/// Sums of `exp((x - largest) * inverse)` over the blocks `x`, whose maxima are `largest`.
fn block_sum(k: &mut KernelBuilder, inverse: Val, largest: Val, x: Val) -> Val {
    let runs = k.tile(largest).shape[0];
    let lowest = k.full(LOWEST, &[runs]);
    let largest = k.map(Max, &[largest, lowest]);
    let shift = k.broadcast(largest, 1, BLOCK, Layout::Reg);
    let inverse = k.broadcast(inverse, 0, runs, Layout::Reg); // [runs]
    let inverse = k.broadcast(inverse, 1, BLOCK, Layout::Reg); // [runs, BLOCK]
    let below = k.map(Sub, &[x, shift]);
    let scaled = k.map(Mul, &[below, inverse]);
    let weights = k.map(Exp, &[scaled]);
    k.reduce(ReduceOp::Sum, weights, 1)
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

/// Maximum and sum over all runs, from those of every so many.
fn join(k: &mut KernelBuilder, m: Val, l: Val) -> [Val; 2] {
    let n = k.tile(m).shape[0];
    let max = k.reduce(ReduceOp::Max, m, 0);
    let shift = k.broadcast(max, 0, n, Layout::Reg);
    let below = k.map(Sub, &[m, shift]);
    let factor = k.map(Exp, &[below]);
    let l = k.map(Mul, &[l, factor]);
    [max, k.reduce(ReduceOp::Sum, l, 0)]
}

/// Maximum and sum of two parts together.
fn merge(k: &mut KernelBuilder, a: [Val; 2], b: [Val; 2]) -> Vec<Val> {
    let max = k.map(Max, &[a[0], b[0]]);
    let weighed = [a, b].map(|[m, l]| {
        let below = k.map(Sub, &[m, max]);
        let factor = k.map(Exp, &[below]);
        k.map(Mul, &[l, factor])
    });
    vec![max, k.map(Add, &weighed)]
}

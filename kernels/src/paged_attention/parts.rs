//! Parts of a sequence: which iterations belong to which, and what becomes of parts that are worked on apart.
//!
//! Parts are worked on apart by programs of their own, one for each part, KV head and query tile. They leave their state in
//! memory, and [`join_parts`], the next launch, joins it in the order in which the other kernels do.
//!
//! Invariants:
//! - which part an iteration belongs to depends on its position in the sequence alone;
//! - every kernel of one split writes the same bits.

use super::{PagedAttention, Program, Scope, Softmax, Tile};
use rvllm_ir::{
    DType, Dim, Expr, Sym, TensorType,
    tile::{Access, Kernel, KernelBuilder, MemLayout, Val, builder::TensorRef},
};

/// How the iterations over a sequence's blocks are dealt out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// How many parts there are.
    pub parts: usize,
    /// Neighbouring iterations of one part.
    pub iterations: usize,
    /// Who works on the parts. Changes no bit.
    pub spread: Spread,
    /// Tokens of a step whose parts may be worked on apart: for so many there is memory. 0 where none ever are.
    pub room: usize,
}

/// Who works on the parts of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// One program on all, one after another.
    InTurn,
    /// One program on all, at once.
    Together,
    /// A program on each, one token at a time ([`PagedAttention::pass`] is 1); where the step's sequences have one part, that program does the rest too.
    Apart,
}

impl Split {
    /// How many iterations of a part come before the `i`th of all.
    pub(super) fn before(&self, k: &mut KernelBuilder, part: Val, i: Val) -> Val {
        let turn = self.parts * self.iterations;
        let (turns, rest) = (k.div(i, turn), k.rem(i, turn));
        let first = k.scale(part, self.iterations);
        let own = k.sub(rest, first);
        let (zero, most) = (k.index(0), k.index(self.iterations as i64));
        let own = k.max(own, zero);
        let own = k.min(own, most);
        let whole = k.scale(turns, self.iterations);
        k.add(whole, own)
    }

    /// Which of all iterations is the `i`th of a part.
    pub(super) fn iteration(&self, k: &mut KernelBuilder, part: Val, i: Val) -> Val {
        let (turn, rest) = (k.div(i, self.iterations), k.rem(i, self.iterations));
        let turn = k.scale(turn, self.parts);
        let run = k.add(turn, part);
        let first = k.scale(run, self.iterations);
        k.add(first, rest)
    }

    /// How many parts the iterations before the `end`th may belong to.
    pub(super) fn seen(&self, k: &mut KernelBuilder, end: Val) -> Val {
        let runs = k.offset(end, self.iterations as i64 - 1);
        let (runs, most) = (k.div(runs, self.iterations), k.index(self.parts as i64));
        k.min(runs, most)
    }

    /// The largest number of parts that a sequence of the step has.
    fn of_step(&self, blocks: usize) -> Expr {
        let run = (self.iterations * blocks) as i64;
        Expr::Sym(Sym::M).ceil_div(run).at_most(self.parts as i64)
    }

    /// The same as an index.
    fn of_step_index(&self, k: &mut KernelBuilder, blocks: usize) -> Val {
        let blocks_of_step = k.sym(Sym::M);
        let up = k.offset(blocks_of_step, blocks as i64 - 1);
        let iterations = k.div(up, blocks);
        self.seen(k, iterations)
    }
}

/// The state of parts that are worked on apart.
#[derive(Clone, Copy)]
pub(super) struct States {
    /// `[tokens, heads, parts, G, D]`: sums of weighted values.
    sums: TensorRef,
    /// `[tokens, heads, parts, 2, G]`: largest scores, and sums of weights.
    weights: TensorRef,
}

/// Types of the tensors that hold the state of parts.
pub fn part_states(s: &PagedAttention) -> Option<[TensorType; 2]> {
    let split = s.split.filter(|split| split.room > 0)?;
    let of = |last: [usize; 2]| {
        let dims = [split.room, s.cache.kv_heads, split.parts, last[0], last[1]];
        TensorType::new(dims.map(Dim::Const), DType::F32)
    };
    Some([of([s.group(), s.cache.head_dim]), of([2, s.group()])])
}

impl States {
    pub(super) fn declare(k: &mut KernelBuilder, s: &PagedAttention, access: Access) -> Option<States> {
        let [sums, weights] = part_states(s)?;
        let sums = k.tensor("part_sums", sums, MemLayout::DENSE, access);
        Some(States { sums, weights: k.tensor("part_weights", weights, MemLayout::DENSE, access) })
    }

    fn store(&self, k: &mut KernelBuilder, [token, head, part]: [Val; 3], softmax: &Softmax) {
        let (zero, one) = (k.index(0), k.index(1));
        k.store(self.sums, &[token, head, part, zero, zero], softmax.o);
        k.store(self.weights, &[token, head, part, zero, zero], softmax.m);
        k.store(self.weights, &[token, head, part, one, zero], softmax.l);
    }

    fn load(&self, k: &mut KernelBuilder, s: &PagedAttention, [token, head, part]: [Val; 3]) -> Softmax {
        let (zero, one, group) = (k.index(0), k.index(1), s.group());
        Softmax {
            m: k.load(self.weights, &[token, head, part, zero, zero], &[group]),
            l: k.load(self.weights, &[token, head, part, one, zero], &[group]),
            o: k.load_acc(self.sums, &[token, head, part, zero, zero], &[group, s.cache.head_dim]),
        }
    }
}

/// The grid's dimension of parts, where they are worked on apart.
pub(super) fn part_of_grid(k: &mut KernelBuilder, s: &PagedAttention) -> Option<Val> {
    let split = s.split.filter(|split| split.spread == Spread::Apart)?;
    Some(k.grid("part", split.of_step(s.blocks)))
}

impl Program {
    /// One part of all, left in memory or, where the step has but one, finished by `finish`.
    pub(super) fn attend_apart(
        &self,
        k: &mut KernelBuilder,
        s: &PagedAttention,
        bounds: (Val, Val),
        (split, part, states): (Split, Val, States),
        finish: impl FnOnce(&mut KernelBuilder, Softmax),
    ) {
        let softmax = self.attend_part(k, s, bounds, split, part);
        let parts = split.of_step_index(k, s.blocks);
        let (one, two) = (k.index(1), k.index(2));
        let some = k.min(parts, two);
        let at = [self.tile.start, self.head, part];
        k.pipeline(one, some, 1, &[], |k, _, _| {
            states.store(k, at, &softmax);
            vec![]
        });
        k.pipeline(some, two, 1, &[], |k, _, _| {
            finish(k, softmax);
            vec![]
        });
    }
}

/// What is left of [`super::paged_attention`] where parts were worked on apart: joins them. Parameters: tile_seq, tile_start,
/// query_start_loc, seq_lens and the states of parts, then out. One program per KV head and query tile.
pub fn join_parts(name: &str, s: &PagedAttention) -> Kernel {
    let mut k = KernelBuilder::new(name);
    let step = super::Step::declare(&mut k);
    let states = States::declare(&mut k, s, Access::In);
    let out = s.declare_result(&mut k);
    let Scope { head, tile } = Scope::of_program(&mut k, s, &step);
    if let (Some(states), Some(split)) = (states, s.split) {
        let zero = k.index(0);
        k.pipeline(zero, tile.tokens, 1, &[], |k, i, _| {
            let tile = tile.pass(k, s, i);
            let softmax = states.joined(k, s, split, (&tile, head));
            softmax.store(k, s, out, (&tile, head));
            vec![]
        });
    }
    k.finish()
}

impl States {
    /// The state after all parts of a token's sequence.
    fn joined(&self, k: &mut KernelBuilder, s: &PagedAttention, split: Split, (tile, head): (&Tile, Val)) -> Softmax {
        let (_, last) = super::seen(k, s, tile, s.span());
        let end = k.offset(last, 1);
        let parts = split.seen(k, end);
        let (zero, one) = (k.index(0), k.index(1));
        let first = self.load(k, s, [tile.start, head, zero]);
        let state = k.pipeline(one, parts, 1, &first.state(), |k, part, state| {
            let softmax = self.load(k, s, [tile.start, head, part]);
            Softmax::from(state).join(k, &softmax).state().to_vec()
        });
        Softmax::from(&state)
    }
}

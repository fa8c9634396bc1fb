//! Causal attention over a paged KV cache, prefill chunks and decodes in one ragged launch.
//!
//! A *query tile* is a run of at most `query_tile` tokens of one sequence; the step lists them. A program takes one
//! tile and one KV head: its rows are the tile's tokens times the G query heads that share the KV head, so that
//! each block is read once for all of them.
//!
//! # Batch invariance
//! A token's row is the same bits whatever shares its tile, whichever row it is in and however the prompt was cut:
//! - blocks are visited in ascending order, as many at a time as the schedule says from the sequence's start on, each time with
//!   the same tile shapes, and rows never mix: `mma`, the reductions and the elementwise operations compute a row from that
//!   row of their operands;
//! - what is visited depends on the tile's first and last token, but an iteration in which a row sees nothing leaves
//!   that row's state as it was: its scores are all -inf, so the maximum m stays (it starts at the finite -1e30, never
//!   -inf, so no difference of infinities arises); the factor exp(m - m) is exactly 1; the probabilities are exp(-inf - m),
//!   exactly 0; and l + 0 and o + 0·v are exact.
//!
//! # Splits
//! With [`Split`] (see [`parts`]), the iterations are dealt out to parts, some neighbouring ones at a time: which part an iteration
//! belongs to depends on its position alone. Each part has a softmax of its own, and they are joined in ascending order; joining
//! one that has seen nothing changes nothing but the sign of zeros, which the result does without; so parts that cannot have
//! seen anything are left out, and a short sequence is the same bits as without splits.
//!
//! The last point of batch invariance needs finite values: whatever lies in the slots of an allocated block that no token was written
//! to must be finite in the value cache and in its scales (fresh memory is zero). Keys there, and their scales, may hold anything.

pub mod parts;

use crate::{KvCache, kv_cache::CacheRefs};
use parts::{Split, Spread, States};
use rvllm_ir::{
    DType, Dim, Sym, TensorType,
    tile::{
        Access, Cmp, Kernel, KernelBuilder, Layout,
        MapOp::{Add, Div, Exp, Max, Mul, Sub, Tanh},
        MemLayout, ReduceOp, Val,
        builder::TensorRef,
    },
};

/// The running maximum of a row that has seen nothing: below every score, and finite.
const NOTHING_SEEN: f32 = -1e30;

/// Numbers of [`paged_attention`].
#[derive(Clone, Debug, PartialEq)]
pub struct PagedAttention {
    /// H: query heads, a multiple of the cache's.
    pub heads: usize,
    /// The cache; its `dtype` is that of q and the result too.
    pub cache: KvCache,
    /// Factor on `q·k`.
    pub scale: f32,
    /// Keys seen by a query, itself included; all when absent.
    pub window: Option<usize>,
    /// `cap * tanh(score / cap)` on scores when present.
    pub softcap: Option<f32>,
    /// Tokens of a query tile; at most [`rvllm_ir::tile::PAD_ROWS`] + 1, as a tile is loaded whole.
    pub query_tile: usize,
    /// Tokens that are worked on at once: fewer than a tile may have where most have few. Changes no bit.
    pub pass: usize,
    /// Neighbouring blocks that an iteration visits together.
    pub blocks: usize,
    /// How many iterations loads run ahead.
    pub stages: usize,
    /// How a sequence is cut, where it is.
    pub split: Option<Split>,
    /// How the result lies: with panels as the matrix `[T, H·D]` that it is to a product.
    pub result: MemLayout,
}

impl PagedAttention {
    /// G: query heads of one KV head.
    fn group(&self) -> usize {
        self.heads / self.cache.kv_heads
    }

    /// Rows that are worked on at once: tokens times G.
    fn rows(&self) -> usize {
        self.pass * self.group()
    }

    /// Tokens of the cache that an iteration visits.
    fn span(&self) -> usize {
        self.blocks * self.cache.block_size
    }

    fn declare_result(&self, k: &mut KernelBuilder) -> TensorRef {
        let (h, d) = (self.heads, self.cache.head_dim);
        let dims = match self.result {
            MemLayout::Strided { .. } => vec![Dim::Sym(Sym::T), Dim::Const(h), Dim::Const(d)],
            MemLayout::Panel { .. } | MemLayout::Blocks { .. } | MemLayout::Fragments { .. } => {
                vec![Dim::Sym(Sym::T), Dim::Const(h * d)]
            }
        };
        k.tensor("out", TensorType::new(dims, self.cache.dtype), self.result, Access::Out)
    }
}

/// The tensors that say what to attend to.
struct Step {
    tile_seq: TensorRef,
    tile_start: TensorRef,
    query_start_loc: TensorRef,
    seq_lens: TensorRef,
}

impl Step {
    fn declare(k: &mut KernelBuilder) -> Step {
        let list = |dim: Dim| TensorType::new([dim], DType::I32);
        Step {
            tile_seq: k.step_input("tile_seq", list(Sym::Q.into())),
            tile_start: k.step_input("tile_start", list(Sym::Q.into())),
            query_start_loc: k.step_input("query_start_loc", list(Dim::SymPlusOne(Sym::R))),
            seq_lens: k.step_input("seq_lens", list(Sym::R.into())),
        }
    }
}

/// What a program works on, besides its part.
struct Scope {
    /// Its KV head.
    head: Val,
    /// Its query tile.
    tile: Tile,
}

impl Scope {
    /// Of one program per KV head and query tile.
    fn of_program(k: &mut KernelBuilder, s: &PagedAttention, step: &Step) -> Scope {
        let head = k.grid("head", s.cache.kv_heads as i64);
        let tile = k.grid("tile", Sym::Q);
        Scope { head, tile: query_tile(k, s, step, tile) }
    }
}

/// One query tile.
#[derive(Clone, Copy)]
struct Tile {
    /// Its sequence.
    seq: Val,
    /// Its first token, as an index into the step.
    start: Val,
    /// How many tokens it has.
    tokens: Val,
    /// Position of its first token.
    position: Val,
}

/// `out = softmax(scale · q kᵀ, causal) v` per head. Parameters: q `[T, H, D]`, keys and values (see [`KvCache`]),
/// tile_seq `[Q]i32`, tile_start `[Q]i32`, query_start_loc `[R+1]i32`, seq_lens `[R]i32`, block_table `[R, M]i32`,
/// out `[T, H, D]`, and the states of parts where they may be worked on apart ([`parts::part_states`]). One program per KV
/// head and query tile, and per part where they are.
pub fn paged_attention(name: &str, s: &PagedAttention) -> Kernel {
    let mut k = KernelBuilder::new(name);
    let heads = [Dim::Sym(Sym::T), Dim::Const(s.heads), Dim::Const(s.cache.head_dim)];
    let q = k.input("q", TensorType::new(heads, s.cache.dtype));
    let cache = s.cache.declare(&mut k, Access::In);
    let step = Step::declare(&mut k);
    let block_table = k.step_input("block_table", TensorType::new([Sym::R, Sym::M], DType::I32));
    let out = s.declare_result(&mut k);
    let states = States::declare(&mut k, s, Access::Out);
    let Scope { head, tile } = Scope::of_program(&mut k, s, &step);
    let part = parts::part_of_grid(&mut k, s);
    let tensors = Tensors { q, cache, block_table, out, part: part.zip(states) };
    if s.pass >= s.query_tile {
        tensors.pass(&mut k, s, tile, head);
    } else {
        let (zero, passes) = (k.index(0), k.offset(tile.tokens, s.pass as i64 - 1));
        let passes = k.div(passes, s.pass);
        k.pipeline(zero, passes, 1, &[], |k, i, _| {
            let tile = tile.pass(k, s, i);
            tensors.pass(k, s, tile, head);
            vec![]
        });
    }
    k.finish()
}

/// What programs read and write.
struct Tensors {
    q: TensorRef,
    cache: CacheRefs,
    block_table: TensorRef,
    out: TensorRef,
    /// The program's part and where its state goes, where parts are worked on apart.
    part: Option<(Val, States)>,
}

impl Tensors {
    /// Attention of a tile's tokens, which are at most as many as are worked on at once.
    fn pass(&self, k: &mut KernelBuilder, s: &PagedAttention, tile: Tile, head: Val) {
        let (d, group) = (s.cache.head_dim, s.group());
        let (first, zero) = (k.scale(head, group), k.index(0));
        let q = k.load_operand(self.q, &[tile.start, first, zero], &[s.pass, group, d]);
        let q = k.reshape(q, &[s.rows(), d]);
        let (lo, last) = seen(k, s, &tile, s.span());
        let bounds = (lo, k.offset(last, 1));
        let Tensors { cache, block_table, out, .. } = *self;
        let program = Program { tile, q, cache, block_table, head };
        let softmax = match (s.split, self.part) {
            (None, _) => program.attend(k, s, bounds, |_, i| i),
            (Some(split), None) => program.attend_parts(k, s, bounds, split),
            (Some(split), Some((part, states))) => {
                let finish = |k: &mut KernelBuilder, softmax: Softmax| softmax.store(k, s, out, (&tile, head));
                return program.attend_apart(k, s, bounds, (split, part, states), finish);
            }
        };
        softmax.store(k, s, out, (&tile, head));
    }
}

impl Tile {
    /// The tokens of the `i`th pass.
    fn pass(&self, k: &mut KernelBuilder, s: &PagedAttention, i: Val) -> Tile {
        let done = k.scale(i, s.pass);
        let left = k.sub(self.tokens, done);
        let most = k.index(s.pass as i64);
        Tile {
            seq: self.seq,
            start: k.add(self.start, done),
            tokens: k.min(most, left),
            position: k.add(self.position, done),
        }
    }
}

/// What a program attends with, and to.
struct Program {
    tile: Tile,
    q: Val,
    cache: CacheRefs,
    block_table: TensorRef,
    head: Val,
}

/// What an iteration visits.
struct Visited {
    /// `[span, D]`.
    keys: Val,
    /// `[D, span]`.
    values: Val,
    /// `[span]` of keys and of values, where they are values with scales.
    scales: Option<[Val; 2]>,
}

impl Program {
    /// The state after iterations `lo..hi`, the `i`th of which visits what `visit(i)` does without parts.
    fn attend(
        &self,
        k: &mut KernelBuilder,
        s: &PagedAttention,
        (lo, hi): (Val, Val),
        visit: impl Fn(&mut KernelBuilder, Val) -> Val,
    ) -> Softmax {
        let softmax = Softmax::new(k, s.rows(), s.cache.head_dim);
        let state = k.pipeline(lo, hi, s.stages, &softmax.state(), |k, i, state| {
            let i = visit(k, i);
            let visited = self.load(k, s, i);
            let scores = Scores::new(k, s, self.q, &visited).mask(k, s, &self.tile, i);
            Softmax::from(state).update(k, scores, &visited, s.cache.dtype).state().to_vec()
        });
        Softmax::from(&state)
    }

    /// Keys and values that iteration `i` visits.
    fn load(&self, k: &mut KernelBuilder, s: &PagedAttention, i: Val) -> Visited {
        let (d, size) = (s.cache.head_dim, s.cache.block_size);
        let (zero, first) = (k.index(0), k.scale(i, s.blocks));
        let (mut keys, mut values, mut scales) = (vec![], vec![], [vec![], vec![]]);
        for n in 0..s.blocks {
            let block = k.offset(first, n as i64);
            let block = self.existing(k, s, block);
            let block = k.read(self.block_table, &[self.tile.seq, block]);
            keys.push(k.load_operand(self.cache.keys, &[block, self.head, zero, zero], &[size, d]));
            values.push(k.load_operand(self.cache.values, &[block, self.head, zero, zero], &[d, size]));
            for (of, scales) in self.cache.scales.into_iter().flatten().zip(&mut scales) {
                scales.push(k.load(of, &[block, self.head, zero], &[size]));
            }
        }
        let (keys, values) = (k.concat(&keys, 0), k.concat(&values, 1));
        let [keys, values] = [keys, values].map(|v| k.cast(v, s.cache.dtype));
        let scales = self.cache.scales.map(|_| scales.map(|scales| k.concat(&scales, 0)));
        Visited { keys, values, scales }
    }

    /// The block itself, or the nearest that the tile sees: an iteration's others may not exist.
    fn existing(&self, k: &mut KernelBuilder, s: &PagedAttention, block: Val) -> Val {
        if s.blocks == 1 {
            return block;
        }
        let (first, last) = seen(k, s, &self.tile, s.cache.block_size);
        let block = k.min(block, last);
        k.max(block, first)
    }

    /// The same, part by part.
    fn attend_parts(&self, k: &mut KernelBuilder, s: &PagedAttention, bounds: (Val, Val), split: Split) -> Softmax {
        if split.spread == Spread::Together {
            let softmax = Softmax::new(k, s.rows(), s.cache.head_dim);
            let (zero, parts) = (k.index(0), split.seen(k, bounds.1));
            let state = k.pipeline(zero, parts, split.parts, &softmax.state(), |k, i, state| {
                let softmax = self.attend_part(k, s, bounds, split, i);
                Softmax::from(state).join(k, &softmax).state().to_vec()
            });
            return Softmax::from(&state);
        }
        let (zero, one) = (k.index(0), k.index(1));
        let first = self.attend_part(k, s, bounds, split, zero);
        let parts = split.seen(k, bounds.1);
        let state = k.pipeline(one, parts, 1, &first.state(), |k, i, state| {
            let softmax = self.attend_part(k, s, bounds, split, i);
            Softmax::from(state).join(k, &softmax).state().to_vec()
        });
        Softmax::from(&state)
    }

    /// One part of it.
    fn attend_part(
        &self,
        k: &mut KernelBuilder,
        s: &PagedAttention,
        (lo, hi): (Val, Val),
        split: Split,
        part: Val,
    ) -> Softmax {
        let bounds = (split.before(k, part, lo), split.before(k, part, hi));
        self.attend(k, s, bounds, |k, i| split.iteration(k, part, i))
    }
}

/// The step's tensors as one tile's numbers. A tile ends with its sequence's tokens of this step, the last of which is at
/// position `seq_len - 1`.
fn query_tile(k: &mut KernelBuilder, s: &PagedAttention, step: &Step, tile: Val) -> Tile {
    let seq = k.read(step.tile_seq, &[tile]);
    let start = k.read(step.tile_start, &[tile]);
    let next = k.offset(seq, 1);
    let end = k.read(step.query_start_loc, &[next]);
    let left = k.sub(end, start);
    let most = k.index(s.query_tile as i64);
    let tokens = k.min(most, left);
    let len = k.read(step.seq_lens, &[seq]);
    let position = k.sub(len, left);
    Tile { seq, start, tokens, position }
}

/// The first and the last run of `size` tokens that holds a key which some row of the tile sees.
fn seen(k: &mut KernelBuilder, s: &PagedAttention, tile: &Tile, size: usize) -> (Val, Val) {
    let end = k.add(tile.position, tile.tokens);
    let last = k.offset(end, -1);
    let last = k.div(last, size);
    let zero = k.index(0);
    let Some(window) = s.window else { return (zero, last) };
    let first = k.offset(tile.position, 1 - window as i64);
    let first = k.max(first, zero);
    (k.div(first, size), last)
}

/// Scores of an iteration, `[rows, span]`.
struct Scores {
    /// Before [`Scores::scale`] is put to them.
    raw: Val,
    /// What is left to multiply them with: above 0, so that the largest stays the largest.
    scale: Option<f32>,
}

impl Scores {
    /// Scaled and capped `q kᵀ`; where no cap needs it earlier, the scale is left for when the largest is known.
    fn new(k: &mut KernelBuilder, s: &PagedAttention, q: Val, visited: &Visited) -> Scores {
        let zero = k.zeros(&[s.rows(), s.span()]);
        let raw = k.mma(q, visited.keys, zero);
        let raw = columns_scaled(k, raw, visited.scales.map(|[of_keys, _]| of_keys));
        let Some(cap) = s.softcap else {
            if s.scale > 0.0 {
                return Scores { raw, scale: Some(s.scale) };
            }
            return Scores { raw: k.map_const(Mul, raw, s.scale), scale: None };
        };
        let scores = k.map_const(Mul, raw, s.scale);
        let scaled = k.map_const(Div, scores, cap);
        let bounded = k.map(Tanh, &[scaled]);
        Scores { raw: k.map_const(Mul, bounded, cap), scale: None }
    }

    fn scaled(&self, k: &mut KernelBuilder, v: Val) -> Val {
        self.scale.map_or(v, |scale| k.map_const(Mul, v, scale))
    }

    /// -inf where the key is after the query's position, or before its window.
    fn mask(self, k: &mut KernelBuilder, s: &PagedAttention, tile: &Tile, i: Val) -> Scores {
        let (rows, size) = (s.rows(), s.span());
        let first = k.scale(i, size);
        let query = k.iota(tile.position, s.group(), rows);
        let query = k.broadcast(query, 1, size, Layout::Acc);
        let key = k.iota(first, 1, size);
        let key = k.broadcast(key, 0, rows, Layout::Acc);
        let none = k.full_acc(f32::NEG_INFINITY, &[rows, size]);
        let causal = k.select(Cmp::Le, key, query, self.raw, none);
        let Some(window) = s.window else { return Scores { raw: causal, ..self } };
        let end = k.offset(first, window as i64);
        let end = k.iota(end, 1, size); // the first position that no longer sees the key
        let end = k.broadcast(end, 0, rows, Layout::Acc);
        Scores { raw: k.select(Cmp::Lt, query, end, causal, none), ..self }
    }
}

/// `[rows, span]` times the scales of its columns, where there are some.
fn columns_scaled(k: &mut KernelBuilder, v: Val, scales: Option<Val>) -> Val {
    let Some(scales) = scales else { return v };
    let rows = k.tile(v).shape[0];
    let scales = k.broadcast(scales, 0, rows, Layout::Acc);
    k.map(Mul, &[v, scales])
}

/// State of the online softmax (arXiv:1805.02867) of every row.
struct Softmax {
    /// `[rows]`: the largest score so far.
    m: Val,
    /// `[rows]`: sum of `exp(score - m)`.
    l: Val,
    /// `[rows, D]`: sum of `exp(score - m) · v`.
    o: Val,
}

impl Softmax {
    fn new(k: &mut KernelBuilder, rows: usize, d: usize) -> Softmax {
        Softmax { m: k.full(NOTHING_SEEN, &[rows]), l: k.full(0.0, &[rows]), o: k.zeros(&[rows, d]) }
    }

    fn from(state: &[Val]) -> Softmax {
        Softmax { m: state[0], l: state[1], o: state[2] }
    }

    fn state(&self) -> [Val; 3] {
        [self.m, self.l, self.o]
    }

    /// The state after an iteration's scores with its values.
    fn update(&self, k: &mut KernelBuilder, scores: Scores, visited: &Visited, dtype: DType) -> Softmax {
        let (size, d) = (k.tile(scores.raw).shape[1], k.tile(self.o).shape[1]);
        let largest = k.reduce(ReduceOp::Max, scores.raw, 1);
        let largest = scores.scaled(k, largest);
        let m = k.map(Max, &[self.m, largest]);
        let change = k.map(Sub, &[self.m, m]);
        let alpha = k.map(Exp, &[change]);
        let max = k.broadcast(m, 1, size, Layout::Acc);
        let scaled = scores.scaled(k, scores.raw);
        let below = k.map(Sub, &[scaled, max]);
        let p = k.map(Exp, &[below]);
        let sum = k.reduce(ReduceOp::Sum, p, 1);
        let l = k.map(Mul, &[self.l, alpha]);
        let l = k.map(Add, &[l, sum]);
        let alpha = k.broadcast(alpha, 1, d, Layout::Acc);
        let o = k.map(Mul, &[self.o, alpha]);
        let p = columns_scaled(k, p, visited.scales.map(|[_, of_values]| of_values));
        let p = k.stage(p, dtype);
        Softmax { m, l, o: k.mma(p, visited.values, o) }
    }

    /// The state after what both have seen.
    fn join(&self, k: &mut KernelBuilder, other: &Softmax) -> Softmax {
        let d = k.tile(self.o).shape[1];
        let m = k.map(Max, &[self.m, other.m]);
        let mut weigh = |state: &Softmax| {
            let change = k.map(Sub, &[state.m, m]);
            let factor = k.map(Exp, &[change]);
            let l = k.map(Mul, &[state.l, factor]);
            let factor = k.broadcast(factor, 1, d, Layout::Acc);
            (l, k.map(Mul, &[state.o, factor]))
        };
        let ((l, o), (other_l, other_o)) = (weigh(self), weigh(other));
        Softmax { m, l: k.map(Add, &[l, other_l]), o: k.map(Add, &[o, other_o]) }
    }

    /// Writes the rows of a tile's tokens.
    fn store(&self, k: &mut KernelBuilder, s: &PagedAttention, out: TensorRef, (tile, head): (&Tile, Val)) {
        let (d, group) = (s.cache.head_dim, s.group());
        let (first, zero) = (k.scale(head, group), k.index(0));
        let o = self.finish(k, s.split.is_some());
        match s.result {
            MemLayout::Strided { .. } => {
                let o = k.reshape(o, &[s.pass, group, d]);
                k.store_rows(out, &[tile.start, first, zero], o, Some(tile.tokens));
            }
            MemLayout::Panel { .. } | MemLayout::Blocks { .. } | MemLayout::Fragments { .. } => {
                let o = k.reshape(o, &[s.pass, group * d]);
                let column = k.scale(first, d);
                k.store_rows(out, &[tile.start, column], o, Some(tile.tokens));
            }
        }
    }

    /// `o / l`, zeros without a sign: joining with what has seen nothing would take it.
    fn finish(&self, k: &mut KernelBuilder, parts: bool) -> Val {
        let d = k.tile(self.o).shape[1];
        let l = k.broadcast(self.l, 1, d, Layout::Acc);
        let o = if parts { k.map_const(Add, self.o, 0.0) } else { self.o };
        k.map(Div, &[o, l])
    }
}

//! Causal attention over a paged KV cache, prefill chunks and decodes in one ragged launch.
//!
//! A *query tile* is a run of at most `query_tile` tokens of one sequence; the step lists them. A program takes one
//! tile and one KV head: its rows are the tile's tokens times the G query heads that share the KV head, so that
//! each block is read once for all of them.
//!
//! # Batch invariance
//! A token's row is the same bits whatever shares its tile, whichever row it is in and however the prompt was cut:
//! - blocks are visited in ascending order, each with the same tile shapes, and rows never mix: `mma`, the
//!   reductions and the elementwise operations compute a row from that row of their operands;
//! - the blocks visited depend on the tile's first and last token, but a block in which a row sees nothing leaves
//!   that row's state as it was: its scores are all -inf, so the maximum m stays (it starts at the finite -1e30, never
//!   -inf, so no difference of infinities arises); the factor exp(m - m) is exactly 1; the probabilities are exp(-inf - m),
//!   exactly 0; and l + 0 and o + 0·v are exact.
//!
//! # Splits
//! With [`Split`], the blocks of a sequence are dealt out to parts, some neighbouring blocks at a time: which part a block
//! belongs to depends on its position alone. Each part has a softmax of its own, and they are joined in ascending order; joining
//! one that has seen nothing changes nothing, so a short sequence is the same bits as without splits.
//!
//! The last point of batch invariance needs finite values: whatever lies in the slots of an allocated block that no token was written
//! to must be finite in the value cache (fresh memory is zero). Keys there may hold anything.

use crate::KvCache;
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
    /// The cache; its element type is that of q and the result too.
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
    /// How many blocks loads run ahead.
    pub stages: usize,
    /// How a sequence is cut, where it is.
    pub split: Option<Split>,
    /// How the result lies: with panels as the matrix `[T, H·D]` that it is to a product.
    pub result: MemLayout,
}

/// How the blocks of a sequence are dealt out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// How many parts there are.
    pub parts: usize,
    /// Neighbouring blocks of one part.
    pub blocks: usize,
    /// Whether the parts are worth computing at once, rather than one after another. Changes no bit.
    pub spread: bool,
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
}

/// The tensors that say what to attend to.
struct Step {
    tile_seq: TensorRef,
    tile_start: TensorRef,
    query_start_loc: TensorRef,
    seq_lens: TensorRef,
}

/// One query tile.
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
/// out `[T, H, D]`. One program per KV head and query tile.
pub fn paged_attention(name: &str, s: &PagedAttention) -> Kernel {
    let mut k = KernelBuilder::new(name);
    let d = s.cache.head_dim;
    let heads = TensorType::new([Dim::Sym(Sym::T), Dim::Const(s.heads), Dim::Const(d)], s.cache.dtype);
    let list = |dim: Dim| TensorType::new([dim], DType::I32);
    let q = k.input("q", heads.clone());
    let [keys, values] = s.cache.declare(&mut k, Access::In);
    let step = Step {
        tile_seq: k.input("tile_seq", list(Sym::Q.into())),
        tile_start: k.input("tile_start", list(Sym::Q.into())),
        query_start_loc: k.input("query_start_loc", list(Dim::SymPlusOne(Sym::R))),
        seq_lens: k.input("seq_lens", list(Sym::R.into())),
    };
    let block_table = k.input("block_table", TensorType::new([Sym::R, Sym::M], DType::I32));
    let out = match s.result {
        MemLayout::Strided { .. } => heads,
        MemLayout::Panel { .. } | MemLayout::Blocks { .. } => {
            TensorType::new([Dim::Sym(Sym::T), Dim::Const(s.heads * d)], s.cache.dtype)
        }
    };
    let out = k.tensor("out", out, s.result, Access::Out);

    let head = k.grid("head", s.cache.kv_heads as i64);
    let tile = k.grid("tile", Sym::Q);
    let tile = query_tile(&mut k, s, &step, tile);
    let tensors = Tensors { q, keys, values, block_table, out };
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
    keys: TensorRef,
    values: TensorRef,
    block_table: TensorRef,
    out: TensorRef,
}

impl Tensors {
    /// Attention of a tile's tokens, which are at most as many as are worked on at once.
    fn pass(&self, k: &mut KernelBuilder, s: &PagedAttention, tile: Tile, head: Val) {
        let (d, group) = (s.cache.head_dim, s.group());
        let (first, zero) = (k.scale(head, group), k.index(0));
        let q = k.load_operand(self.q, &[tile.start, first, zero], &[s.pass, group, d]);
        let q = k.reshape(q, &[s.rows(), d]);
        let bounds = blocks(k, s, &tile);
        let Tile { start, tokens, .. } = tile;
        let Tensors { keys, values, block_table, .. } = *self;
        let program = Program { tile, q, keys, values, block_table, head };
        let softmax = match s.split {
            None => program.attend(k, s, bounds, |_, i| i),
            Some(split) => program.attend_parts(k, s, bounds, split),
        };
        let o = softmax.finish(k);
        match s.result {
            MemLayout::Strided { .. } => {
                let o = k.reshape(o, &[s.pass, group, d]);
                k.store_rows(self.out, &[start, first, zero], o, Some(tokens));
            }
            MemLayout::Panel { .. } | MemLayout::Blocks { .. } => {
                let o = k.reshape(o, &[s.pass, group * d]);
                let column = k.scale(first, d);
                k.store_rows(self.out, &[start, column], o, Some(tokens));
            }
        }
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
    keys: TensorRef,
    values: TensorRef,
    block_table: TensorRef,
    head: Val,
}

impl Program {
    /// The state after iterations `lo..hi`, the `i`th of which visits block `block(i)`.
    fn attend(
        &self,
        k: &mut KernelBuilder,
        s: &PagedAttention,
        (lo, hi): (Val, Val),
        block: impl Fn(&mut KernelBuilder, Val) -> Val,
    ) -> Softmax {
        let d = s.cache.head_dim;
        let (zero, softmax) = (k.index(0), Softmax::new(k, s.rows(), d));
        let state = k.pipeline(lo, hi, s.stages, &softmax.state(), |k, i, state| {
            let i = block(k, i);
            let block = k.read(self.block_table, &[self.tile.seq, i]);
            let keys = k.load_operand(self.keys, &[block, self.head, zero, zero], &[s.cache.block_size, d]);
            let values = k.load_operand(self.values, &[block, self.head, zero, zero], &[d, s.cache.block_size]);
            let scores = scores(k, s, self.q, keys);
            let scores = mask(k, s, &self.tile, i, scores);
            Softmax::from(state).update(k, scores, values, s.cache.dtype).state().to_vec()
        });
        Softmax::from(&state)
    }

    /// The same, part by part.
    fn attend_parts(&self, k: &mut KernelBuilder, s: &PagedAttention, (lo, hi): (Val, Val), split: Split) -> Softmax {
        let softmax = Softmax::new(k, s.rows(), s.cache.head_dim);
        let ahead = if split.spread { split.parts } else { 1 };
        let state = k.fold(split.parts, ahead, &softmax.state(), |k, part, state| {
            let bounds = (split.before(k, part, lo), split.before(k, part, hi));
            let softmax = self.attend(k, s, bounds, |k, i| split.block(k, part, i));
            Softmax::from(state).join(k, &softmax).state().to_vec()
        });
        Softmax::from(&state)
    }
}

impl Split {
    /// How many blocks of a part come before block `i`.
    fn before(&self, k: &mut KernelBuilder, part: Val, i: Val) -> Val {
        let turn = self.parts * self.blocks;
        let (turns, rest) = (k.div(i, turn), k.rem(i, turn));
        let first = k.scale(part, self.blocks);
        let own = k.sub(rest, first);
        let (zero, most) = (k.index(0), k.index(self.blocks as i64));
        let own = k.max(own, zero);
        let own = k.min(own, most);
        let whole = k.scale(turns, self.blocks);
        k.add(whole, own)
    }

    /// The `i`th block of a part.
    fn block(&self, k: &mut KernelBuilder, part: Val, i: Val) -> Val {
        let (turn, rest) = (k.div(i, self.blocks), k.rem(i, self.blocks));
        let turn = k.scale(turn, self.parts);
        let run = k.add(turn, part);
        let first = k.scale(run, self.blocks);
        k.add(first, rest)
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

/// The logical blocks that hold a key which some row of the tile sees: `lo..hi`.
fn blocks(k: &mut KernelBuilder, s: &PagedAttention, tile: &Tile) -> (Val, Val) {
    let end = k.add(tile.position, tile.tokens);
    let last = k.offset(end, -1);
    let last = k.div(last, s.cache.block_size);
    let hi = k.offset(last, 1);
    let zero = k.index(0);
    let Some(window) = s.window else { return (zero, hi) };
    let first = k.offset(tile.position, 1 - window as i64);
    let first = k.max(first, zero);
    (k.div(first, s.cache.block_size), hi)
}

/// `[rows, BS]`: scaled and capped `q kᵀ`.
fn scores(k: &mut KernelBuilder, s: &PagedAttention, q: Val, keys: Val) -> Val {
    let zero = k.zeros(&[s.rows(), s.cache.block_size]);
    let product = k.mma(q, keys, zero);
    let scores = k.map_const(Mul, product, s.scale);
    let Some(cap) = s.softcap else { return scores };
    let scaled = k.map_const(Div, scores, cap);
    let bounded = k.map(Tanh, &[scaled]);
    k.map_const(Mul, bounded, cap)
}

/// -inf where the key is after the query's position, or before its window.
fn mask(k: &mut KernelBuilder, s: &PagedAttention, tile: &Tile, block: Val, scores: Val) -> Val {
    let (rows, size) = (s.rows(), s.cache.block_size);
    let first = k.scale(block, size);
    let query = k.iota(tile.position, s.group(), rows);
    let query = k.broadcast(query, 1, size, Layout::Acc);
    let key = k.iota(first, 1, size);
    let key = k.broadcast(key, 0, rows, Layout::Acc);
    let none = k.full_acc(f32::NEG_INFINITY, &[rows, size]);
    let causal = k.select(Cmp::Le, key, query, scores, none);
    let Some(window) = s.window else { return causal };
    let end = k.offset(first, window as i64);
    let end = k.iota(end, 1, size); // the first position that no longer sees the key
    let end = k.broadcast(end, 0, rows, Layout::Acc);
    k.select(Cmp::Lt, query, end, causal, none)
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

    /// The state after a block of scores `[rows, BS]` with its values `[D, BS]`.
    fn update(&self, k: &mut KernelBuilder, scores: Val, values: Val, dtype: DType) -> Softmax {
        let (size, d) = (k.tile(scores).shape[1], k.tile(self.o).shape[1]);
        let block_m = k.reduce(ReduceOp::Max, scores, 1);
        let m = k.map(Max, &[self.m, block_m]);
        let change = k.map(Sub, &[self.m, m]);
        let alpha = k.map(Exp, &[change]);
        let max = k.broadcast(m, 1, size, Layout::Acc);
        let below = k.map(Sub, &[scores, max]);
        let p = k.map(Exp, &[below]);
        let sum = k.reduce(ReduceOp::Sum, p, 1);
        let l = k.map(Mul, &[self.l, alpha]);
        let l = k.map(Add, &[l, sum]);
        let alpha = k.broadcast(alpha, 1, d, Layout::Acc);
        let o = k.map(Mul, &[self.o, alpha]);
        let p = k.stage(p, dtype);
        Softmax { m, l, o: k.mma(p, values, o) }
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

    /// `o / l`.
    fn finish(&self, k: &mut KernelBuilder) -> Val {
        let d = k.tile(self.o).shape[1];
        let l = k.broadcast(self.l, 1, d, Layout::Acc);
        k.map(Div, &[self.o, l])
    }
}

//! Rotary position embedding of queries and keys, and the write of keys and values into the paged cache.

use crate::{KvCache, kv_cache::CacheRefs};
use rvllm_ir::{
    DType, Dim, Sym, TensorType,
    tile::{
        Access, Kernel, KernelBuilder, Layout,
        MapOp::{Add, Div, Mul, Rsqrt, Sub},
        MemLayout, ReduceOp, Val,
        builder::TensorRef,
    },
};

/// Numbers of [`rope_kv_write`].
#[derive(Clone, Debug, PartialEq)]
pub struct RopeKvWrite {
    /// H: query heads.
    pub heads: usize,
    /// The cache; its `dtype` is that of q, k and v too.
    pub cache: KvCache,
    /// Rotated elements at the start of a head, even; the rest passes through.
    pub rope_dim: usize,
    /// Rows of the rotation table: the compiled `max_model_len`.
    pub positions: usize,
    /// Epsilon of the norm over each head of q and k, where there is one.
    pub qk_norm: Option<f32>,
    /// Elements between tokens of q, k and v, where they are views of a wider buffer.
    pub strides: [Option<usize>; 3],
    /// Most heads per iteration.
    pub head_block: usize,
}

impl RopeKvWrite {
    /// Origin and size of the tiles of a head: the two rotated halves, then what passes through. No origin breaks
    /// the rule for tiles that do not divide a dimension.
    fn parts(&self) -> Vec<(usize, usize)> {
        let half = self.rope_dim / 2;
        let step = gcd(self.rope_dim, self.cache.head_dim);
        let rest = (self.rope_dim..self.cache.head_dim).step_by(step).map(|at| (at, step));
        [(0, half), (half, half)].into_iter().chain(rest).collect()
    }

    fn view(&self, heads: usize) -> TensorType {
        TensorType::new([Dim::Sym(Sym::T), Dim::Const(heads), Dim::Const(self.cache.head_dim)], self.cache.dtype)
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// What the heads of one token share.
struct Token<'s> {
    s: &'s RopeKvWrite,
    t: Val,
    /// `[rope_dim / 2]` each.
    cos: Val,
    sin: Val,
}

/// Some neighbouring heads of a tensor.
#[derive(Clone, Copy)]
struct Heads {
    of: TensorRef,
    /// Weight of their norm.
    norm: Option<TensorRef>,
    first: Val,
    count: usize,
}

/// Parameters: q `[T, H, D]`, k `[T, KV, D]`, v `[T, KV, D]`, rope_table `[positions, 2, rope_dim/2]f32` (cosines,
/// sines), positions `[T]i32`, slot_mapping `[T]i32`, keys and values (see [`KvCache`], read-write), q_norm `[D]`?,
/// k_norm `[D]`?, q_out `[T, H, D]`.
///
/// Element `i` rotates with element `i + rope_dim/2`. Norm and rotation are in f32 with one rounding at the end.
/// The token of slot -1 is not written to the cache. One program per token.
pub fn rope_kv_write(name: &str, s: &RopeKvWrite) -> Kernel {
    let mut k = KernelBuilder::new(name);
    let strided = |i: usize| MemLayout::Strided { row: s.strides[i] };
    let q = k.tensor("q", s.view(s.heads), strided(0), Access::In);
    let key = k.tensor("k", s.view(s.cache.kv_heads), strided(1), Access::In);
    let value = k.tensor("v", s.view(s.cache.kv_heads), strided(2), Access::In);
    let table = k.weight("rope_table", TensorType::new([s.positions, 2, s.rope_dim / 2], DType::F32));
    let positions = k.step_input("positions", TensorType::new([Sym::T], DType::I32));
    let slot_mapping = k.step_input("slot_mapping", TensorType::new([Sym::T], DType::I32));
    let cache = s.cache.declare(&mut k, Access::InOut);
    let norm = TensorType::new([s.cache.head_dim], s.cache.dtype);
    let q_norm = s.qk_norm.map(|_| k.weight("q_norm", norm.clone()));
    let k_norm = s.qk_norm.map(|_| k.weight("k_norm", norm));
    let q_out = k.output("q_out", s.view(s.heads));

    let t = k.grid("t", Sym::T);
    let token = rotation(&mut k, s, t, table, positions);
    // read again: the heads of keys are a tile of another shape
    let key_token = rotation(&mut k, s, t, table, positions);
    let slot = k.read(slot_mapping, &[t]);
    let slot = Slot::new(&mut k, &s.cache, slot);
    let [count, key_count] = [s.heads, s.cache.kv_heads].map(|n| s.head_block.min(n));
    let queries = |first| Heads { of: q, norm: q_norm, first, count };
    let cached = Cached { s, token: &key_token, slot, key, norm: k_norm, value, cache, count: key_count };
    if s.head_block >= s.heads.max(s.cache.kv_heads) {
        // all that the token has, before anything is written
        let first = k.index(0);
        let (parts, loaded) = (token.load(&mut k, queries(first)), cached.load(&mut k, first));
        token.store(&mut k, queries(first), parts, q_out);
        cached.store(&mut k, first, loaded);
        return k.finish();
    }
    k.for_each(s.heads.div_ceil(count), |k, i| {
        let first = k.scale(i, count);
        let parts = token.load(k, queries(first));
        token.store(k, queries(first), parts, q_out);
    });
    k.for_each(s.cache.kv_heads.div_ceil(key_count), |k, i| {
        let first = k.scale(i, key_count);
        let loaded = cached.load(k, first);
        cached.store(k, first, loaded);
    });
    k.finish()
}

fn rotation<'s>(
    k: &mut KernelBuilder,
    s: &'s RopeKvWrite,
    t: Val,
    table: TensorRef,
    positions: TensorRef,
) -> Token<'s> {
    let position = k.read(positions, &[t]);
    let (zero, one) = (k.index(0), k.index(1));
    let cos = k.load(table, &[position, zero, zero], &[s.rope_dim / 2]);
    let sin = k.load(table, &[position, one, zero], &[s.rope_dim / 2]);
    Token { s, t, cos, sin }
}

impl Token<'_> {
    /// Heads as `[count, _]` tiles: see [`RopeKvWrite::parts`].
    fn load(&self, k: &mut KernelBuilder, heads: Heads) -> Vec<Val> {
        let load = |(at, len): (usize, usize)| {
            let at = k.index(at as i64);
            k.load(heads.of, &[self.t, heads.first, at], &[heads.count, len])
        };
        self.s.parts().into_iter().map(load).collect()
    }

    /// The parts of heads, normed and rotated.
    fn turn(&self, k: &mut KernelBuilder, heads: Heads, mut parts: Vec<Val>) -> Vec<Val> {
        if let (Some(weight), Some(eps)) = (heads.norm, self.s.qk_norm) {
            parts = self.norm(k, &parts, weight, eps);
        }
        let [a, b] = self.rotate(k, parts[0], parts[1]);
        parts[..2].copy_from_slice(&[a, b]);
        parts
    }

    /// Writes heads, normed and rotated.
    fn store(&self, k: &mut KernelBuilder, heads: Heads, parts: Vec<Val>, to: TensorRef) {
        let parts = self.turn(k, heads, parts);
        for (x, (at, _)) in parts.into_iter().zip(self.s.parts()) {
            let at = k.index(at as i64);
            k.store(to, &[self.t, heads.first, at], x);
        }
    }

    /// `(a cos - b sin, b cos + a sin)`.
    fn rotate(&self, k: &mut KernelBuilder, a: Val, b: Val) -> [Val; 2] {
        let count = k.tile(a).shape[0];
        let [cos, sin] = [self.cos, self.sin].map(|x| k.broadcast(x, 0, count, Layout::Reg));
        let a_cos = k.map(Mul, &[a, cos]);
        let b_sin = k.map(Mul, &[b, sin]);
        let b_cos = k.map(Mul, &[b, cos]);
        let a_sin = k.map(Mul, &[a, sin]);
        [k.map(Sub, &[a_cos, b_sin]), k.map(Add, &[b_cos, a_sin])]
    }

    /// RMS norm over each whole head.
    fn norm(&self, k: &mut KernelBuilder, parts: &[Val], weight: TensorRef, eps: f32) -> Vec<Val> {
        let count = k.tile(parts[0]).shape[0];
        let mut total = k.full(0.0, &[count]);
        for x in parts {
            let square = k.map(Mul, &[*x, *x]);
            let sum = k.reduce(ReduceOp::Sum, square, 1);
            total = k.map(Add, &[total, sum]);
        }
        let mean = k.map_const(Div, total, self.s.cache.head_dim as f32);
        let shifted = k.map_const(Add, mean, eps);
        let factor = k.map(Rsqrt, &[shifted]); // [count]
        let scale = |(x, (at, len)): (&Val, (usize, usize))| {
            let factor = k.broadcast(factor, 1, len, Layout::Reg);
            let at = k.index(at as i64);
            let w = k.load(weight, &[at], &[len]);
            let w = k.broadcast(w, 0, count, Layout::Reg);
            let scaled = k.map(Mul, &[*x, factor]);
            k.map(Mul, &[scaled, w])
        };
        parts.iter().zip(self.s.parts()).map(scale).collect()
    }
}

/// What of a token goes into the cache.
struct Cached<'s> {
    s: &'s RopeKvWrite,
    token: &'s Token<'s>,
    slot: Slot,
    key: TensorRef,
    norm: Option<TensorRef>,
    value: TensorRef,
    cache: CacheRefs,
    /// Heads of an iteration.
    count: usize,
}

impl Cached<'_> {
    fn heads(&self, first: Val) -> Heads {
        Heads { of: self.key, norm: self.norm, first, count: self.count }
    }

    /// The parts of keys, and values.
    fn load(&self, k: &mut KernelBuilder, first: Val) -> (Vec<Val>, Val) {
        let keys = self.token.load(k, self.heads(first));
        let zero = k.index(0);
        (keys, k.load(self.value, &[self.token.t, first, zero], &[self.count, self.s.cache.head_dim]))
    }

    /// Keys as rows of their block, values each as a column; and their scales.
    fn store(&self, k: &mut KernelBuilder, first: Val, (keys, value): (Vec<Val>, Val)) {
        let (cache, at) = (&self.s.cache, self.place(k));
        let keys = self.token.turn(k, self.heads(first), keys);
        let (keys, key_scale) = cache.quantize(k, &keys);
        for (x, (from, len)) in keys.into_iter().zip(self.s.parts()) {
            let from = k.index(from as i64);
            let x = k.reshape(x, &[self.count, 1, len]);
            k.store_rows(self.cache.keys, &[at.block, first, at.offset, from], x, Some(at.written));
        }
        let (value, value_scale) = cache.quantize(k, &[value]);
        let zero = k.index(0);
        let columns = k.reshape(value[0], &[self.count, cache.head_dim, 1]);
        k.store_rows(self.cache.values, &[at.block, first, zero, at.offset], columns, Some(at.written));
        let scales = [key_scale, value_scale].into_iter().flatten();
        for (to, scale) in self.cache.scales.into_iter().flatten().zip(scales) {
            let scale = k.reshape(scale, &[self.count, 1]);
            k.store_rows(to, &[at.block, first, at.offset], scale, Some(at.written));
        }
    }

    /// The slot, with how many of an iteration's heads are written.
    fn place(&self, k: &mut KernelBuilder) -> Slot {
        Slot { written: k.scale(self.slot.written, self.count), ..self.slot }
    }
}

/// Where a token lies in the cache.
#[derive(Clone, Copy)]
struct Slot {
    block: Val,
    /// Index within the block.
    offset: Val,
    /// 1, or 0 for a token that has no slot.
    written: Val,
}

impl Slot {
    fn new(k: &mut KernelBuilder, cache: &KvCache, slot: Val) -> Slot {
        let (zero, one) = (k.index(0), k.index(1));
        let next = k.add(slot, one);
        let written = k.min(next, one);
        let valid = k.max(slot, zero);
        Slot { block: k.div(valid, cache.block_size), offset: k.rem(valid, cache.block_size), written }
    }
}

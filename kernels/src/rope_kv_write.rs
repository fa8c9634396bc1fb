//! Rotary position embedding of queries and keys, and the write of keys and values into the paged cache.

use crate::KvCache;
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
    /// The cache; its element type is that of q, k and v too.
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
    let positions = k.input("positions", TensorType::new([Sym::T], DType::I32));
    let slot_mapping = k.input("slot_mapping", TensorType::new([Sym::T], DType::I32));
    let [keys, values] = s.cache.declare(&mut k, Access::InOut);
    let norm = TensorType::new([s.cache.head_dim], s.cache.dtype);
    let q_norm = s.qk_norm.map(|_| k.weight("q_norm", norm.clone()));
    let k_norm = s.qk_norm.map(|_| k.weight("k_norm", norm));
    let q_out = k.output("q_out", s.view(s.heads));

    let t = k.grid("t", Sym::T);
    let token = rotation(&mut k, s, t, table, positions);
    let count = s.head_block.min(s.heads);
    k.for_each(s.heads.div_ceil(count), |k, i| {
        let first = k.scale(i, count);
        let heads = token.heads(k, Heads { of: q, norm: q_norm, first, count });
        for (x, (at, _)) in heads.into_iter().zip(s.parts()) {
            let at = k.index(at as i64);
            k.store(q_out, &[t, first, at], x);
        }
    });
    // read again: the heads of keys are a tile of another shape
    let token = rotation(&mut k, s, t, table, positions);
    let slot = k.read(slot_mapping, &[t]);
    let slot = Slot::new(&mut k, &s.cache, slot);
    let count = s.head_block.min(s.cache.kv_heads);
    k.for_each(s.cache.kv_heads.div_ceil(count), |k, i| {
        let first = k.scale(i, count);
        let heads = Heads { of: key, norm: k_norm, first, count };
        let written = k.scale(slot.written, count);
        for (x, (at, len)) in token.heads(k, heads).into_iter().zip(s.parts()) {
            let at = k.index(at as i64);
            let x = k.reshape(x, &[count, 1, len]);
            k.store_rows(keys, &[slot.block, first, slot.offset, at], x, Some(written));
        }
        slot.write_values(k, s, [t, first, written], value, values);
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
    /// Heads, normed and rotated, as `[count, _]` tiles: see [`RopeKvWrite::parts`].
    fn heads(&self, k: &mut KernelBuilder, heads: Heads) -> Vec<Val> {
        let load = |(at, len): (usize, usize)| {
            let at = k.index(at as i64);
            k.load(heads.of, &[self.t, heads.first, at], &[heads.count, len])
        };
        let mut parts: Vec<Val> = self.s.parts().into_iter().map(load).collect();
        if let (Some(weight), Some(eps)) = (heads.norm, self.s.qk_norm) {
            parts = self.norm(k, &parts, weight, eps);
        }
        let [a, b] = self.rotate(k, parts[0], parts[1]);
        parts[0] = a;
        parts[1] = b;
        parts
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

/// Where a token lies in the cache.
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

    /// Values of heads of token `t`, from the first on, each as a column of its block.
    fn write_values(
        &self,
        k: &mut KernelBuilder,
        s: &RopeKvWrite,
        [t, first, written]: [Val; 3],
        value: TensorRef,
        values: TensorRef,
    ) {
        let (zero, d) = (k.index(0), s.cache.head_dim);
        let count = s.head_block.min(s.cache.kv_heads);
        let v = k.load(value, &[t, first, zero], &[count, d]);
        let columns = k.reshape(v, &[count, d, 1]);
        k.store_rows(values, &[self.block, first, zero, self.offset], columns, Some(written));
    }
}

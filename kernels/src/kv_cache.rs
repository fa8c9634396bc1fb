//! How the KV cache lies, and how its elements become numbers again: the one place that its writer and its reader share.
//!
//! A cache of another element type than what attention computes with holds numbers rounded to it or, where the type has
//! a largest one, values with a scale for each token and KV head: the head's largest magnitude over the type's. So what is
//! stored of a token depends on the token alone, and no calibration is needed.

use crate::quantize_rows::{LEAST, magnitude};
use rvllm_ir::{
    DType, Dim, Sym, TensorType,
    tile::{
        Access, KernelBuilder, Layout,
        MapOp::{Div, Max, Mul},
        MemLayout, ReduceOp, Val,
        builder::TensorRef,
    },
};

/// Where the elements of a block lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvLayout {
    /// As vector units multiply: panels of tokens for keys, panels of elements of a head for values.
    Panels {
        /// Rows of a panel of values (along D).
        panel: usize,
        /// Adjacent elements that one lane holds, in both.
        pair: usize,
    },
    /// Token after token in both, each the D elements of its head.
    Tokens,
}

/// The cache of one layer: P blocks of BS tokens. Both halves have the shapes that the matrix products of attention
/// read: keys `[BS, D]` (D is summed over), values `[D, BS]` (tokens are summed over).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KvCache {
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// D: elements of a head.
    pub head_dim: usize,
    /// BS: tokens of a block.
    pub block_size: usize,
    /// Element type of what attention computes with: of queries, of keys and values before they are stored, of the result.
    pub dtype: DType,
    /// Element type in the cache: `dtype`, or one with fewer bits whose elements `dtype` holds exactly.
    pub stored: DType,
    /// How a block lies in memory.
    pub layout: KvLayout,
}

/// The tensors of a layer's cache.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CacheRefs {
    pub(crate) keys: TensorRef,
    pub(crate) values: TensorRef,
    /// Of keys and of values, where the cache has scales.
    pub(crate) scales: Option<[TensorRef; 2]>,
}

impl KvCache {
    /// `[P, KV, BS, D]`.
    pub fn keys(&self) -> TensorType {
        self.ty(self.block_size, self.head_dim)
    }

    /// `[P, KV, D, BS]`.
    pub fn values(&self) -> TensorType {
        self.ty(self.head_dim, self.block_size)
    }

    /// `[P, KV, BS]`, of keys and of values each, where the cache holds values with scales.
    pub fn scales(&self) -> Option<TensorType> {
        let dims = [Dim::Sym(Sym::P), self.kv_heads.into(), self.block_size.into()];
        self.stored.largest().is_finite().then(|| TensorType::new(dims, DType::F32))
    }

    fn ty(&self, rows: usize, cols: usize) -> TensorType {
        let dims = [Dim::Sym(Sym::P), self.kv_heads.into(), rows.into(), cols.into()];
        TensorType::new(dims, self.stored)
    }

    /// Layout of the keys: with panels, one per block.
    pub fn keys_layout(&self) -> MemLayout {
        match self.layout {
            KvLayout::Panels { pair, .. } => MemLayout::Panel { n: self.block_size, k: pair },
            KvLayout::Tokens => MemLayout::DENSE,
        }
    }

    /// Layout of the values.
    pub fn values_layout(&self) -> MemLayout {
        match self.layout {
            KvLayout::Panels { panel, pair } => MemLayout::Panel { n: panel, k: pair },
            // one panel that holds the whole head: a token is its D adjacent elements
            KvLayout::Tokens => MemLayout::Panel { n: self.head_dim, k: 1 },
        }
    }

    /// Declares `keys` and `values`, then `key_scales` and `value_scales` where there are some.
    pub(crate) fn declare(&self, k: &mut KernelBuilder, access: Access) -> CacheRefs {
        CacheRefs {
            keys: k.tensor("keys", self.keys(), self.keys_layout(), access),
            values: k.tensor("values", self.values(), self.values_layout(), access),
            scales: self.scales().map(|ty| {
                ["key_scales", "value_scales"].map(|name| k.tensor(name, ty.clone(), MemLayout::DENSE, access))
            }),
        }
    }

    /// Numbers of heads as the cache holds them. `parts` are `[count, _]`, together all elements of `count` heads; with
    /// scales what comes back are values, and the scales `[count]`.
    pub(crate) fn quantize(&self, k: &mut KernelBuilder, parts: &[Val]) -> (Vec<Val>, Option<Val>) {
        if self.scales().is_none() {
            return (parts.to_vec(), None);
        }
        let largest = parts.iter().map(|x| {
            let size = magnitude(k, *x);
            k.reduce(ReduceOp::Max, size, 1)
        });
        let largest: Vec<Val> = largest.collect();
        let largest = largest[1..].iter().fold(largest[0], |a, b| k.map(Max, &[a, *b]));
        let largest = k.map_const(Max, largest, LEAST);
        let scale = k.map_const(Div, largest, self.stored.largest());
        let most = k.full(self.stored.largest(), &k.tile(largest).shape.clone());
        let inverse = k.map(Div, &[most, largest]);
        let values = parts.iter().map(|x| {
            let inverse = k.broadcast(inverse, 1, k.tile(*x).shape[1], Layout::Reg);
            k.map(Mul, &[*x, inverse])
        });
        (values.collect(), Some(scale))
    }
}

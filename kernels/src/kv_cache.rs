//! How the KV cache lies: the one place that its writer and its reader share.

use rvllm_ir::{
    DType, Dim, Sym, TensorType,
    tile::{Access, KernelBuilder, MemLayout, builder::TensorRef},
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
    /// Element type.
    pub dtype: DType,
    /// How a block lies in memory.
    pub layout: KvLayout,
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

    fn ty(&self, rows: usize, cols: usize) -> TensorType {
        let dims = [Dim::Sym(Sym::P), self.kv_heads.into(), rows.into(), cols.into()];
        TensorType::new(dims, self.dtype)
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

    /// Declares `keys` and `values`, in this order.
    pub(crate) fn declare(&self, k: &mut KernelBuilder, access: Access) -> [TensorRef; 2] {
        [
            k.tensor("keys", self.keys(), self.keys_layout(), access),
            k.tensor("values", self.values(), self.values_layout(), access),
        ]
    }
}

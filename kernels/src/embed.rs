//! Embedding lookup.

use rvllm_ir::{
    DType, Dim, Sym, TensorType,
    tile::{Access, Kernel, KernelBuilder, MemLayout},
};

/// Numbers of [`embed`].
#[derive(Clone, Debug, PartialEq)]
pub struct Embed {
    /// V: rows of the table.
    pub vocab: usize,
    /// H: columns of the table.
    pub hidden: usize,
    /// Element type of table and result.
    pub dtype: DType,
    /// How the table lies: panels where it is also the weight of the last projection.
    pub table: MemLayout,
    /// Columns per iteration.
    pub chunk: usize,
}

/// `out[t, :] = table[token_ids[t], :]`. Parameters: table `[V, H]`, token_ids `[T]i32`, out `[T, H]`.
/// One program per token.
pub fn embed(name: &str, s: &Embed) -> Kernel {
    let mut k = KernelBuilder::new(name);
    let table = k.tensor("table", TensorType::new([s.vocab, s.hidden], s.dtype), s.table, Access::Weight);
    let token_ids = k.input("token_ids", TensorType::new([Sym::T], DType::I32));
    let out = k.output("out", TensorType::new([Dim::Sym(Sym::T), Dim::Const(s.hidden)], s.dtype));
    let t = k.grid("t", Sym::T);
    let id = k.read(token_ids, &[t]);
    k.for_each(s.hidden.div_ceil(s.chunk), |k, i| {
        let col = k.scale(i, s.chunk);
        let x = k.load(table, &[id, col], &[s.chunk]);
        k.store(out, &[t, col], x);
    });
    k.finish()
}

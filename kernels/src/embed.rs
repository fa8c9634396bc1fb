//! Embedding lookup.

use crate::gemm::Quantized;
use rvllm_ir::{
    DType, Dim, Sym, TensorType,
    tile::{
        Access, Kernel, KernelBuilder, Layout,
        MapOp::{Mul, Sub},
        MemLayout, Val,
        builder::TensorRef,
    },
};

/// Numbers of [`embed`].
#[derive(Clone, Debug, PartialEq)]
pub struct Embed {
    /// V: rows of the table.
    pub vocab: usize,
    /// H: columns of the table.
    pub hidden: usize,
    /// Element type of the result, and of a table of numbers.
    pub dtype: DType,
    /// How a table of values is quantised.
    pub values: Option<Quantized>,
    /// How the table lies: panels where it is also the weight of the last projection.
    pub table: MemLayout,
    /// Columns per iteration.
    pub chunk: usize,
}

/// `out[t, :] = table[token_ids[t], :]`. Parameters: table `[V, H]`, token_ids `[T]i32`, table_scale (`[V]f32`, or
/// `[V, H/group]f16`)?, out `[T, H]`. One program per token.
pub fn embed(name: &str, s: &Embed) -> Kernel {
    let mut k = KernelBuilder::new(name);
    let stored = s.values.map_or(s.dtype, |q| q.weight);
    let table = k.tensor("table", TensorType::new([s.vocab, s.hidden], stored), s.table, Access::Weight);
    // Not as what no launch writes: `feed` may.
    let token_ids = k.input("token_ids", TensorType::new([Sym::T], DType::I32));
    let scales = s.values.map(|q| (q, scales(&mut k, s, q)));
    let out = k.output("out", TensorType::new([Dim::Sym(Sym::T), Dim::Const(s.hidden)], s.dtype));
    let t = k.grid("t", Sym::T);
    let id = k.read(token_ids, &[t]);
    k.for_each(s.hidden.div_ceil(s.chunk), |k, i| {
        let col = k.scale(i, s.chunk);
        let mut x = k.load(table, &[id, col], &[s.chunk]);
        if let Some((q, scales)) = scales {
            x = numbers(k, s, q, scales, [id, i], x);
        }
        k.store(out, &[t, col], x);
    });
    k.finish()
}

fn scales(k: &mut KernelBuilder, s: &Embed, q: Quantized) -> TensorRef {
    match q.group {
        None => k.weight("table_scale", TensorType::new([s.vocab], DType::F32)),
        Some(group) => {
            let ty = TensorType::new([s.vocab, s.hidden / group], DType::F16);
            k.tensor("table_scale", ty, q.scales, Access::Weight)
        }
    }
}

/// The numbers that the values `x` of iteration `i` stand for.
fn numbers(k: &mut KernelBuilder, s: &Embed, q: Quantized, scales: TensorRef, [id, i]: [Val; 2], x: Val) -> Val {
    let Some(group) = q.group else {
        let scale = k.load(scales, &[id], &[]);
        let scale = k.broadcast(scale, 0, s.chunk, Layout::Reg);
        return k.map(Mul, &[x, scale]);
    };
    let groups = s.chunk / group;
    let first = k.scale(i, groups);
    let scale = k.load(scales, &[id, first], &[groups]);
    let scale = k.broadcast(scale, 1, group, Layout::Reg);
    let scale = k.reshape(scale, &[s.chunk]);
    let x = k.map_const(Sub, x, q.zero());
    k.map(Mul, &[x, scale])
}

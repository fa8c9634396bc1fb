//! Tokens that a step takes from the one before it, on the device.

use rvllm_ir::{
    DType, Dim, Sym, TensorType,
    graph::op::DRAWS,
    tile::{Access, Kernel, KernelBuilder, MemLayout},
};

/// Numbers of [`feed`].
#[derive(Clone, Debug, PartialEq)]
pub struct Feed {
    /// V: tokens that there are.
    pub vocab: usize,
    /// Most rows of logits of a step: how many that before had is not known here.
    pub rows: usize,
}

/// Where `token_ids[t]` is `-1 - row`, the first token drawn from `row` by the step before takes its place. Parameters: draws `[rows,
/// DRAWS]f32`, as that step left them, token_ids `[T]i32`. One program per token.
pub fn feed(name: &str, s: &Feed) -> Kernel {
    let mut k = KernelBuilder::new(name);
    let draws = k.input("draws", TensorType::new([Dim::Const(s.rows), Dim::Const(DRAWS)], DType::F32));
    let ids = TensorType::new([Sym::T], DType::I32);
    let token_ids = k.tensor("token_ids", ids, MemLayout::DENSE, Access::InOut);
    let t = k.grid("t", Sym::T);
    let id = k.read(token_ids, &[t]);
    let [zero, one, minus_one, last] = [0, 1, -1, s.rows as i64 - 1].map(|i| k.index(i));
    let row = k.sub(minus_one, id);
    let from = k.sub(zero, id);
    let from = k.max(from, zero);
    let is_fed = k.min(from, one);
    k.pipeline(zero, is_fed, 1, &[], |k, _, _| {
        let row = k.min(row, last);
        let token = k.load(draws, &[row, zero], &[]);
        let token = k.to_index(token);
        let token = k.max(token, zero);
        let most = k.index(s.vocab as i64 - 1);
        let token = k.min(token, most);
        let token = k.iota(token, 1, 1);
        k.store(token_ids, &[t], token);
        vec![]
    });
    k.finish()
}

//! Products of numbers with weights of values in groups: each value becomes a number in a's element type, which is multiplied
//! as any other.
//!
//! A number is `(value - zero) * scale` with zero and scale in a's type, rounded to it after each operation, so that a GPU's
//! 16-bit instructions give its bits. The difference is exact where zeros are integers, as checkpoints' are.

use super::{Gemm, Program, Quantized};
use rvllm_ir::{
    DType,
    tile::{
        KernelBuilder, Layout,
        MapOp::{Mul, Sub},
        Val,
        builder::TensorRef,
    },
};

/// Tensors of the weight beside its values.
pub(super) struct Groups {
    pub(super) scales: TensorRef,
    pub(super) zeros: Option<TensorRef>,
    /// Columns of a group.
    pub(super) group: usize,
    /// What stands for zero where no group has a zero of its own.
    pub(super) middle: f32,
}

impl Groups {
    /// Those of a weight that alone is quantised.
    pub(super) fn of(q: Quantized, scales: TensorRef, zeros: Option<TensorRef>) -> Option<Groups> {
        let group = q.group.filter(|_| q.weight_only)?;
        Some(Groups { scales, zeros, group, middle: q.zero() })
    }
}

/// One `[block_m, block_n]` accumulator per half, in f32.
pub(super) fn multiply(k: &mut KernelBuilder, s: &Gemm, p: &Program, g: &Groups) -> Vec<Val> {
    let init: Vec<Val> = (0..p.halves.len().max(1)).map(|_| k.zeros(&[s.block_m, s.block_n])).collect();
    k.fold(s.k.div_ceil(s.block_k), s.stages, &init, |k, i, acc| {
        let at = k.scale(i, s.block_k);
        let first = if s.block_k < g.group { k.div(at, g.group) } else { k.scale(i, s.block_k / g.group) };
        let a = k.load_operand(p.a, &[p.row, at], &[s.block_m, s.block_k]);
        let product = |(half, acc): (usize, &Val)| {
            let values = k.load(p.weight, &p.half(half, &[p.col, at]), &[s.block_n, s.block_k]);
            let numbers = numbers(k, s, g, values, &p.half(half, &[p.col, first]));
            let w = k.stage(numbers, s.dtype);
            k.mma(a, w, *acc)
        };
        acc.iter().enumerate().map(product).collect()
    })
}

/// The numbers of `[block_n, block_k]` values whose first group is at `origin`.
fn numbers(k: &mut KernelBuilder, s: &Gemm, g: &Groups, values: Val, origin: &[Val]) -> Val {
    let difference = match g.zeros {
        None => k.map_const(Sub, values, g.middle),
        Some(zeros) => {
            let zeros = each(k, s, g, zeros, origin);
            let difference = k.map(Sub, &[values, zeros]);
            rounded(k, difference, s.dtype)
        }
    };
    let scales = each(k, s, g, g.scales, origin);
    k.map(Mul, &[difference, scales])
}

/// What groups have one of, at every column.
fn each(k: &mut KernelBuilder, s: &Gemm, g: &Groups, of: TensorRef, origin: &[Val]) -> Val {
    let (count, columns) = ((s.block_k / g.group).max(1), g.group.min(s.block_k));
    let groups = k.load(of, origin, &[s.block_n, count]);
    let groups = rounded(k, groups, s.dtype);
    let columns = k.broadcast(groups, 2, columns, Layout::Reg);
    k.reshape(columns, &[s.block_n, s.block_k])
}

fn rounded(k: &mut KernelBuilder, v: Val, dtype: DType) -> Val {
    let v = k.cast(v, dtype);
    k.cast(v, DType::F32)
}

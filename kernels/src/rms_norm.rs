//! RMS norm with an optional residual sum before it and an optional choice of rows.
//!
//! All arithmetic is in f32 with one rounding per result. (transformers rounds twice in bf16: the normalised
//! value, then its product with the weight. Rounding once is closer to the exact value.)

use rvllm_ir::{
    DType, Dim, Sym, TensorType,
    tile::{
        Access, Kernel, KernelBuilder, Layout,
        MapOp::{Add, Div, Mul, Rsqrt},
        MemLayout, ReduceOp, Val,
        builder::TensorRef,
    },
};

/// Numbers of [`rms_norm`].
#[derive(Clone, Debug, PartialEq)]
pub struct RmsNorm {
    /// H: elements of a row.
    pub n: usize,
    /// Element type of everything.
    pub dtype: DType,
    /// How x lies: strided where it is a view.
    pub x: MemLayout,
    /// Added to the mean of squares.
    pub eps: f32,
    /// Whether a residual is added first and the sum returned.
    pub residual: bool,
    /// Whether row `i` of the results is that of row `indices[i]`.
    pub rows: bool,
    /// Elements per iteration.
    pub chunk: usize,
}

/// What one program reads: the row's `x` (and residual) in chunks.
struct Row {
    x: TensorRef,
    residual: Option<TensorRef>,
    row: Val,
    dtype: DType,
    chunk: usize,
}

impl Row {
    /// `[chunk]` of `x + residual`, rounded as it is stored: the norm is that of the stored sum.
    fn chunk(&self, k: &mut KernelBuilder, col: Val) -> Val {
        let x = k.load(self.x, &[self.row, col], &[self.chunk]);
        let Some(residual) = self.residual else { return x };
        let r = k.load(residual, &[self.row, col], &[self.chunk]);
        let sum = k.map(Add, &[x, r]);
        let rounded = k.cast(sum, self.dtype);
        k.cast(rounded, DType::F32)
    }
}

/// `normed = sum * weight / sqrt(mean(sum²) + eps)`, `sum = x + residual`. Parameters: x `[T, H]`, residual
/// `[T, H]`?, weight `[H]`, indices `[L]i32`?, normed `[T|L, H]`, sum `[T|L, H]`?. One program per row.
pub fn rms_norm(name: &str, s: &RmsNorm) -> Kernel {
    let mut k = KernelBuilder::new(name);
    let matrix = |rows: Sym| TensorType::new([Dim::Sym(rows), Dim::Const(s.n)], s.dtype);
    let rows = if s.rows { Sym::L } else { Sym::T };
    let x = k.tensor("x", matrix(Sym::T), s.x, Access::In);
    let residual = s.residual.then(|| k.input("residual", matrix(Sym::T)));
    let weight = k.weight("weight", TensorType::new([s.n], s.dtype));
    let indices = s.rows.then(|| k.input("indices", TensorType::new([Sym::L], DType::I32)));
    let normed = k.output("normed", matrix(rows));
    let sum = s.residual.then(|| k.output("sum", matrix(rows)));

    let out_row = k.grid("row", rows);
    let row = indices.map_or(out_row, |indices| k.read(indices, &[out_row]));
    let row = Row { x, residual, row, dtype: s.dtype, chunk: s.chunk };
    let factor = inverse_rms(&mut k, s, &row);
    let factor = k.broadcast(factor, 0, s.chunk, Layout::Reg); // [chunk]
    k.for_each(s.n.div_ceil(s.chunk), |k, i| {
        let col = k.scale(i, s.chunk);
        let x = row.chunk(k, col);
        if let Some(sum) = sum {
            k.store(sum, &[out_row, col], x);
        }
        let w = k.load(weight, &[col], &[s.chunk]);
        let scaled = k.map(Mul, &[x, factor]);
        let y = k.map(Mul, &[scaled, w]);
        k.store(normed, &[out_row, col], y);
    });
    k.finish()
}

/// `1 / sqrt(mean(row²) + eps)`, of rank 0. Squares are summed per position in the chunk, then across it: an
/// order that the shape alone gives.
fn inverse_rms(k: &mut KernelBuilder, s: &RmsNorm, row: &Row) -> Val {
    let zero = k.full(0.0, &[s.chunk]);
    let squares = k.fold(s.n.div_ceil(s.chunk), 1, &[zero], |k, i, acc| {
        let col = k.scale(i, s.chunk);
        let x = row.chunk(k, col);
        let square = k.map(Mul, &[x, x]);
        vec![k.map(Add, &[acc[0], square])]
    });
    let total = k.reduce(ReduceOp::Sum, squares[0], 0);
    let mean = k.map_const(Div, total, s.n as f32);
    let shifted = k.map_const(Add, mean, s.eps);
    k.map(Rsqrt, &[shifted])
}

//! RMS norm with an optional residual sum before it, an optional choice of rows, and optionally quantised.
//!
//! All arithmetic is in f32 with one rounding per result. (transformers rounds twice in bf16: the normalised
//! value, then its product with the weight. Rounding once is closer to the exact value.)

use crate::quantize_rows::{Columns, Quantized, magnitude};
use rvllm_ir::{
    DType, Dim, Sym, TensorType,
    graph::Quantize,
    tile::{
        Access, Kernel, KernelBuilder, Layout,
        MapOp::{Add, Div, Max, Mul, Rsqrt},
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
    /// How the normed rows lie.
    pub normed: MemLayout,
    /// Added to the mean of squares.
    pub eps: f32,
    /// Whether a residual is added first and the sum returned.
    pub residual: bool,
    /// Whether row `i` of the results is that of row `indices[i]`.
    pub rows: bool,
    /// How what is normed is quantised, where it is.
    pub quantize: Option<Quantize>,
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
/// `[T, H]`?, weight `[H]`, indices `[L]i32`?, normed `[T|L, H]` (or values, scale and sums, as
/// [`crate::quantize_rows()`] has them), sum `[T|L, H]`?. One program per row.
pub fn rms_norm(name: &str, s: &RmsNorm) -> Kernel {
    let mut k = KernelBuilder::new(name);
    let matrix = |rows: Sym| TensorType::new([Dim::Sym(rows), Dim::Const(s.n)], s.dtype);
    let rows = if s.rows { Sym::L } else { Sym::T };
    let x = k.tensor("x", matrix(Sym::T), s.x, Access::In);
    let residual = s.residual.then(|| k.input("residual", matrix(Sym::T)));
    let weight = k.weight("weight", TensorType::new([s.n], s.dtype));
    let indices = s.rows.then(|| k.step_input("indices", TensorType::new([Sym::L], DType::I32)));
    let normed = match s.quantize {
        None => Normed::Numbers(k.tensor("normed", matrix(rows), s.normed, Access::Out)),
        Some(how) => Normed::Values(Quantized::params(&mut k, [Dim::Sym(rows), Dim::Const(s.n)], s.normed, how)),
    };
    let sum = s.residual.then(|| k.output("sum", matrix(rows)));

    let out_row = k.grid("row", rows);
    let row = indices.map_or(out_row, |indices| k.read(indices, &[out_row]));
    let row = Row { x, residual, row, dtype: s.dtype, chunk: s.chunk };
    let norm = Norm { row, weight, sum, out_row };
    match normed {
        Normed::Numbers(normed) => norm.store(&mut k, s, normed),
        Normed::Values(values) => norm.store_values(&mut k, s, &values),
    }
    k.finish()
}

/// Where the norm goes.
enum Normed {
    Numbers(TensorRef),
    Values(Quantized),
}

/// What one program makes a norm of.
struct Norm {
    row: Row,
    weight: TensorRef,
    /// Where the sum with the residual is stored.
    sum: Option<TensorRef>,
    out_row: Val,
}

impl Norm {
    fn store(&self, k: &mut KernelBuilder, s: &RmsNorm, normed: TensorRef) {
        if s.n <= s.chunk {
            return self.store_whole(k, s, normed);
        }
        let factor = inverse_rms(k, s, &self.row);
        let factor = k.broadcast(factor, 0, s.chunk, Layout::Reg); // [chunk]
        k.for_each(s.n.div_ceil(s.chunk), |k, i| {
            let col = k.scale(i, s.chunk);
            let y = self.chunk(k, s, factor, col);
            k.store(normed, &[self.out_row, col], y);
        });
    }

    /// A row that an iteration holds stays in registers; its weights, which are not waited for, come first.
    fn store_whole(&self, k: &mut KernelBuilder, s: &RmsNorm, normed: TensorRef) {
        let col = k.index(0);
        let w = k.load(self.weight, &[col], &[s.chunk]);
        let x = self.row.chunk(k, col);
        let squares = k.map(Mul, &[x, x]);
        let factor = inverse_root(k, s, squares);
        let factor = k.broadcast(factor, 0, s.chunk, Layout::Reg); // [chunk]
        let y = self.scale(k, col, [x, w, factor]);
        k.store(normed, &[self.out_row, col], y);
    }

    fn store_values(&self, k: &mut KernelBuilder, s: &RmsNorm, values: &Quantized) {
        let (factor, largest) = self.statistics(k, s);
        let largest = k.map(Mul, &[largest, factor]);
        let factor = k.broadcast(factor, 0, s.chunk, Layout::Reg); // [chunk]
        let columns = Columns { row: self.out_row, n: s.n, chunk: s.chunk };
        values.store(k, &columns, largest, |k, col| self.chunk(k, s, factor, col));
    }

    /// `[chunk]` of the norm; stores the sum on the way.
    fn chunk(&self, k: &mut KernelBuilder, s: &RmsNorm, factor: Val, col: Val) -> Val {
        let x = self.row.chunk(k, col);
        let w = k.load(self.weight, &[col], &[s.chunk]);
        self.scale(k, col, [x, w, factor])
    }

    /// `[chunk]` of the norm of `x`, which is stored where it is a sum.
    fn scale(&self, k: &mut KernelBuilder, col: Val, [x, w, factor]: [Val; 3]) -> Val {
        if let Some(sum) = self.sum {
            k.store(sum, &[self.out_row, col], x);
        }
        let scaled = k.map(Mul, &[x, factor]);
        k.map(Mul, &[scaled, w])
    }

    /// `1 / sqrt(mean(row²) + eps)` and the largest magnitude of `row * weight`, in one pass.
    fn statistics(&self, k: &mut KernelBuilder, s: &RmsNorm) -> (Val, Val) {
        let zero = k.full(0.0, &[s.chunk]);
        let state = k.fold(s.n.div_ceil(s.chunk), 1, &[zero, zero], |k, i, state| {
            let col = k.scale(i, s.chunk);
            let x = self.row.chunk(k, col);
            let square = k.map(Mul, &[x, x]);
            let w = k.load(self.weight, &[col], &[s.chunk]);
            let product = k.map(Mul, &[x, w]);
            let product = magnitude(k, product);
            vec![k.map(Add, &[state[0], square]), k.map(Max, &[state[1], product])]
        });
        let largest = k.reduce(ReduceOp::Max, state[1], 0);
        (inverse_root(k, s, state[0]), largest)
    }
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
    inverse_root(k, s, squares[0])
}

/// `1 / sqrt(mean + eps)` of the squares summed per position in the chunk.
fn inverse_root(k: &mut KernelBuilder, s: &RmsNorm, squares: Val) -> Val {
    let total = k.reduce(ReduceOp::Sum, squares, 0);
    let mean = k.map_const(Div, total, s.n as f32);
    let shifted = k.map_const(Add, mean, s.eps);
    k.map(Rsqrt, &[shifted])
}

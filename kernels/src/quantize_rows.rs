//! Rows of activations as values with a scale each: the largest magnitude of a row becomes the largest value.

use rvllm_ir::{
    DType, Dim, Sym, TensorType,
    graph::Quantize,
    tile::{
        Access, Kernel, KernelBuilder, Layout,
        MapOp::{Div, Max, Mul, Neg},
        MemLayout, ReduceOp, Val,
        builder::TensorRef,
    },
};

/// A row whose largest magnitude is below this is scaled as if it had it, so that no scale's inverse is infinite.
pub(crate) const LEAST: f32 = 1e-30;

/// Numbers of [`quantize_rows`].
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizeRows {
    /// How many rows there are, T or L.
    pub m: Sym,
    /// K: elements of a row.
    pub n: usize,
    /// Element type of x.
    pub dtype: DType,
    /// How x lies: strided where it is a view.
    pub x: MemLayout,
    /// What is made.
    pub how: Quantize,
    /// How the values lie.
    pub values: MemLayout,
    /// Elements per iteration: whole groups.
    pub chunk: usize,
}

/// `values = round(x / scale)`, `scale = max |x| / largest value`. Parameters: x `[M, K]`, values `[M, K]`, scale
/// `[M]f32`, sums `[M, K/group]f32`?: of each group of values. One program per row.
pub fn quantize_rows(name: &str, s: &QuantizeRows) -> Kernel {
    let mut k = KernelBuilder::new(name);
    let x = k.tensor("x", TensorType::new([Dim::Sym(s.m), Dim::Const(s.n)], s.dtype), s.x, Access::In);
    let values = Quantized::params(&mut k, [Dim::Sym(s.m), Dim::Const(s.n)], s.values, s.how);
    let row = k.grid("row", s.m);
    let zero = k.full(0.0, &[s.chunk]);
    let largest = k.fold(s.n.div_ceil(s.chunk), 1, &[zero], |k, i, largest| {
        let col = k.scale(i, s.chunk);
        let x = k.load(x, &[row, col], &[s.chunk]);
        let x = magnitude(k, x);
        vec![k.map(Max, &[largest[0], x])]
    });
    let largest = k.reduce(ReduceOp::Max, largest[0], 0);
    let columns = Columns { row, n: s.n, chunk: s.chunk };
    values.store(&mut k, &columns, largest, |k, col| k.load(x, &[row, col], &[s.chunk]));
    k.finish()
}

/// `|x|`.
pub(crate) fn magnitude(k: &mut KernelBuilder, x: Val) -> Val {
    let negative = k.map(Neg, &[x]);
    k.map(Max, &[x, negative])
}

/// The row that a program writes, and how it walks along it.
pub(crate) struct Columns {
    pub(crate) row: Val,
    pub(crate) n: usize,
    pub(crate) chunk: usize,
}

/// Tensors that values of rows go to.
pub(crate) struct Quantized {
    values: TensorRef,
    scale: TensorRef,
    sums: Option<TensorRef>,
    how: Quantize,
}

impl Quantized {
    /// Declares them: values of this shape and layout.
    pub(crate) fn params(k: &mut KernelBuilder, shape: [Dim; 2], values: MemLayout, how: Quantize) -> Quantized {
        let [rows, columns] = shape;
        let groups = how.group.map(|group| Dim::Const(columns.constant().unwrap_or(0) / group));
        Quantized {
            values: k.tensor("values", TensorType::new(shape, how.to), values, Access::Out),
            scale: k.output("scale", TensorType::new([rows], DType::F32)),
            sums: groups.map(|groups| k.output("sums", TensorType::new([rows, groups], DType::F32))),
            how,
        }
    }

    /// Stores a row whose `[chunk]` from a column on `numbers` gives, and whose largest magnitude is `largest`.
    pub(crate) fn store(
        &self,
        k: &mut KernelBuilder,
        columns: &Columns,
        largest: Val,
        numbers: impl Fn(&mut KernelBuilder, Val) -> Val,
    ) {
        let Columns { row, n, chunk } = *columns;
        let largest = k.map_const(Max, largest, LEAST);
        let scale = k.map_const(Div, largest, self.how.to.largest());
        k.store(self.scale, &[row], scale);
        let most = k.full(self.how.to.largest(), &[]);
        let inverse = k.map(Div, &[most, largest]);
        let inverse = k.broadcast(inverse, 0, chunk, Layout::Reg);
        k.for_each(n.div_ceil(chunk), |k, i| {
            let col = k.scale(i, chunk);
            let x = numbers(k, col);
            let scaled = k.map(Mul, &[x, inverse]);
            let values = k.cast(scaled, self.how.to);
            k.store(self.values, &[row, col], values);
            self.store_sums(k, [row, i], values, chunk);
        });
    }

    fn store_sums(&self, k: &mut KernelBuilder, [row, i]: [Val; 2], values: Val, chunk: usize) {
        let (Some(sums), Some(group)) = (self.sums, self.how.group) else { return };
        let groups = chunk / group;
        let values = k.cast(values, DType::F32);
        let values = k.reshape(values, &[groups, group]);
        let sum = k.reduce(ReduceOp::Sum, values, 1);
        let first = k.scale(i, groups);
        k.store(sums, &[row, first], sum);
    }
}

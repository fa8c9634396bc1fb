//! Matrix product with an epilogue.
//!
//! Quantised operands are multiplied as they are, integers exactly, and scaled after: over all of k with a scale for each row
//! of both operands, or group by group in ascending k with scales for groups of the weight, which are integers or floats. Where the weight alone is
//! quantised, its values become numbers first ([`weight_only`]).

mod weight_only;

use rvllm_ir::{
    DType, Dim, Expr, Sym, TensorType,
    graph::{Epilogue, Scales},
    tile::{
        Access, Kernel, KernelBuilder, Layout,
        MapOp::{Add, Div, Exp, Mul, Neg, Sub},
        MemLayout, Val,
        builder::TensorRef,
    },
};
use weight_only::Groups;

/// Numbers of [`gemm`].
#[derive(Clone, Debug, PartialEq)]
pub struct Gemm {
    /// M: how many rows a has, T or L.
    pub m: Sym,
    /// N: columns of the result. A gated weight has twice as many rows.
    pub n: usize,
    /// K: what is summed over.
    pub k: usize,
    /// Element type of a, weight and bias; of the bias alone where operands come with scales.
    pub dtype: DType,
    /// Element type of the weight's values, and which scales they and a's values come with.
    pub quantized: Option<Quantized>,
    /// How a lies: strided where it is a view.
    pub a: MemLayout,
    /// How the weight lies.
    pub weight: MemLayout,
    /// Element type of the result and the residual.
    pub out: DType,
    /// How the result lies.
    pub result: MemLayout,
    /// What happens before the store.
    pub epilogue: Epilogue,
    /// Rows of the accumulator tile.
    pub block_m: usize,
    /// Columns of the accumulator tile.
    pub block_n: usize,
    /// k per iteration.
    pub block_k: usize,
    /// How many iterations loads run ahead.
    pub stages: usize,
}

/// How operands are quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantized {
    /// Element type of the weight's values; a's are i8 where these are integers, else the same.
    pub weight: DType,
    /// Columns of the weight that share a scale; all where absent.
    pub group: Option<usize>,
    /// How scales of groups lie, and their zeros.
    pub scales: MemLayout,
    /// Element type of scales of groups.
    pub scale: DType,
    /// Whether each group has a value that stands for zero.
    pub zeros: bool,
    /// Whether a holds numbers: 4-bit groups of the weight become numbers too.
    pub weight_only: bool,
}

impl Quantized {
    /// What the graph calls it.
    pub fn kind(self) -> Scales {
        match self.group {
            Some(group) if self.weight_only => Scales::WeightOnly { group, zeros: self.zeros },
            _ => Scales::of(self.weight, self.group, self.zeros),
        }
    }

    /// Element type of a's values, or of its numbers, which is `dtype`.
    fn a(self, dtype: DType) -> DType {
        match self.weight {
            _ if self.weight_only => dtype,
            weight if weight.is_float() => weight,
            _ => DType::I8,
        }
    }

    /// The value of a weight in groups that stands for zero.
    pub(crate) fn zero(self) -> f32 {
        (self.weight.largest() + 1.0) / 2.0
    }
}

/// Scales of the operands, and the sums of groups of a's values.
struct ScaleRefs {
    a: Option<TensorRef>,
    weight: TensorRef,
    sums: Option<TensorRef>,
    zeros: Option<TensorRef>,
}

/// Tensors and origins of one program.
struct Program {
    a: TensorRef,
    weight: TensorRef,
    bias: Option<TensorRef>,
    scales: Option<ScaleRefs>,
    row: Val,
    col: Val,
    /// The leading index of a gated weight: 0 selects gates, 1 ups. Empty without gating.
    halves: Vec<Val>,
}

impl Program {
    /// Origins that select one half of a gated weight or bias, before those within the half.
    fn half(&self, i: usize, within: &[Val]) -> Vec<Val> {
        self.halves.get(i).into_iter().chain(within).copied().collect()
    }
}

/// `c = epilogue(a · weightᵀ)`: bias, then `silu(gate) * up`, then residual.
///
/// Parameters: a `[M, K]`, weight `[N, K]`, bias `[N]`?, residual `[M, N]`?, then where operands are quantised a_scale
/// `[M]f32`?, weight_scale `[N]f32` or `[N, K/group]`, a_sums `[M, K/group]f32`?, weight_zero `[N, K/group]f16`?, then c
/// `[M, N]`; where the weight alone is, neither a_scale nor a_sums. With `silu_mul` the weight is `[2, N, K]` (gates, ups) and so are its bias and scales: each half is packed by itself, so that N need not divide into
/// panels; one program multiplies its rows of a with the gate tile and the up tile.
///
/// One program per tile of c; row tiles vary fastest, so that programs that run together share weights. Tails of N
/// and K are zeros by the rule for static bounds; rows past M stay rows past M.
pub fn gemm(name: &str, s: &Gemm) -> Kernel {
    let mut k = KernelBuilder::new(name);
    let matrix = |cols: usize, dtype| TensorType::new([Dim::Sym(s.m), Dim::Const(cols)], dtype);
    let (a_type, weight_type) = s.quantized.map_or((s.dtype, s.dtype), |q| (q.a(s.dtype), q.weight));
    let a = k.tensor("a", matrix(s.k, a_type), s.a, Access::In);
    let weight = k.tensor("weight", gated(s, &[s.n, s.k], weight_type), s.weight, Access::Weight);
    let bias = s.epilogue.bias.then(|| k.weight("bias", gated(s, &[s.n], s.dtype)));
    let residual = s.epilogue.residual.then(|| k.input("residual", matrix(s.n, s.out)));
    let scales = s.quantized.map(|q| scale_params(&mut k, s, q));
    let c = k.tensor("c", matrix(s.n, s.out), s.result, Access::Out);

    let n = k.grid("n", s.n.div_ceil(s.block_n) as i64);
    let m = k.grid("m", Expr::from(s.m).ceil_div(s.block_m as i64));
    let (row, col) = (k.scale(m, s.block_m), k.scale(n, s.block_n));
    let halves = if s.epilogue.silu_mul { vec![k.index(0), k.index(1)] } else { vec![] };
    let p = Program { a, weight, bias, scales, row, col, halves };

    let products = match (&p.scales, s.quantized) {
        (Some(scales), Some(q)) => match Groups::of(q, scales.weight, scales.zeros) {
            Some(groups) => weight_only::multiply(&mut k, s, &p, &groups),
            None => multiply_quantized(&mut k, s, &p, scales, q),
        },
        _ => multiply(&mut k, s, &p),
    };
    let products = add_bias(&mut k, s, &p, products);
    let mut result = match products[..] {
        [gate, up] => silu_mul(&mut k, gate, up),
        _ => products[0],
    };
    if let Some(residual) = residual {
        let r = k.load_acc(residual, &[row, col], &[s.block_m, s.block_n]);
        result = k.map(Add, &[result, r]);
    }
    k.store(c, &[row, col], result);
    k.finish()
}

/// The type of a weight, of which a gated one has two.
fn gated(s: &Gemm, dims: &[usize], dtype: DType) -> TensorType {
    let two = s.epilogue.silu_mul.then_some(2);
    TensorType::new(two.into_iter().chain(dims.iter().copied()), dtype)
}

fn scale_params(k: &mut KernelBuilder, s: &Gemm, q: Quantized) -> ScaleRefs {
    let values = !q.weight_only;
    let a = values.then(|| k.input("a_scale", TensorType::new([s.m], DType::F32)));
    let groups = q.group.map(|group| s.k / group);
    let weight = match groups {
        None => k.weight("weight_scale", gated(s, &[s.n], DType::F32)),
        Some(groups) => k.tensor("weight_scale", gated(s, &[s.n, groups], q.scale), q.scales, Access::Weight),
    };
    let sums = groups
        .filter(|_| values && !q.weight.is_float())
        .map(|groups| k.input("a_sums", TensorType::new([Dim::Sym(s.m), groups.into()], DType::F32)));
    let zeros = groups
        .filter(|_| q.zeros)
        .map(|groups| k.tensor("weight_zero", gated(s, &[s.n, groups], DType::F16), q.scales, Access::Weight));
    ScaleRefs { a, weight, sums, zeros }
}

/// One `[block_m, block_n]` accumulator per half, in f32.
fn multiply(k: &mut KernelBuilder, s: &Gemm, p: &Program) -> Vec<Val> {
    let init: Vec<Val> = (0..p.halves.len().max(1)).map(|_| k.zeros(&[s.block_m, s.block_n])).collect();
    sum_products(k, s, p, &init)
}

/// The products of all of k, added to `init`.
fn sum_products(k: &mut KernelBuilder, s: &Gemm, p: &Program, init: &[Val]) -> Vec<Val> {
    k.fold(s.k.div_ceil(s.block_k), s.stages, init, |k, i, acc| {
        let at = k.scale(i, s.block_k);
        let a = k.load_operand(p.a, &[p.row, at], &[s.block_m, s.block_k]);
        let product = |(half, acc): (usize, &Val)| {
            let w = k.load_operand(p.weight, &p.half(half, &[p.col, at]), &[s.block_n, s.block_k]);
            k.mma(a, w, *acc)
        };
        acc.iter().enumerate().map(product).collect()
    })
}

/// Products of values, scaled: `[block_m, block_n]` in f32 per half.
fn multiply_quantized(k: &mut KernelBuilder, s: &Gemm, p: &Program, scales: &ScaleRefs, q: Quantized) -> Vec<Val> {
    let shape = [s.block_m, s.block_n];
    let sums = match (q.group, scales.sums) {
        (Some(group), Some(sums)) => {
            let (scales, zeros) = (scales.weight, scales.zeros);
            grouped(k, s, p, &SummedGroups { group, sums, scales, middle: q.zero(), zeros })
        }
        (Some(group), None) => float_groups(k, s, p, group, scales.weight),
        _ => {
            let zeros =
                |k: &mut KernelBuilder| if q.weight.is_float() { k.zeros(&shape) } else { k.integer_zeros(&shape) };
            let init: Vec<Val> = (0..p.halves.len().max(1)).map(|_| zeros(k)).collect();
            let sums = sum_products(k, s, p, &init);
            sums.into_iter()
                .enumerate()
                .map(|(half, sum)| scaled_columns(k, s, p, scales.weight, (half, sum)))
                .collect()
        }
    };
    let Some(a) = scales.a else { return sums };
    let a = k.load(a, &[p.row], &shape[..1]);
    let a = k.broadcast(a, 1, s.block_n, Layout::Acc);
    sums.into_iter().map(|sum| k.map(Mul, &[sum, a])).collect()
}

/// A product of values times the scales of its columns.
fn scaled_columns(k: &mut KernelBuilder, s: &Gemm, p: &Program, scales: TensorRef, (half, sum): (usize, Val)) -> Val {
    let scale = k.load(scales, &p.half(half, &[p.col]), &[s.block_n]);
    let scale = k.broadcast(scale, 0, s.block_m, Layout::Acc);
    let floats = s.quantized.is_some_and(|q| q.weight.is_float());
    let sum = if floats { sum } else { k.cast(sum, DType::F32) };
    k.map(Mul, &[sum, scale])
}

/// What scales groups of k.
struct SummedGroups {
    group: usize,
    /// Of a's values.
    sums: TensorRef,
    /// Of the weight.
    scales: TensorRef,
    /// The weight's value that stands for zero, where no group has one of its own.
    middle: f32,
    /// Those of groups.
    zeros: Option<TensorRef>,
}

/// Sums over groups in ascending order: `scale * (values · values - zero * sum)`, whose parentheses are exact.
fn grouped(k: &mut KernelBuilder, s: &Gemm, p: &Program, g: &SummedGroups) -> Vec<Val> {
    let shape = [s.block_m, s.block_n];
    let init: Vec<Val> = (0..p.halves.len().max(1)).map(|_| k.zeros(&shape)).collect();
    k.fold(s.k / g.group, s.stages, &init, |k, i, acc| {
        let at = k.scale(i, g.group);
        let a = k.load_operand(p.a, &[p.row, at], &[s.block_m, g.group]);
        let sums = k.load(g.sums, &[p.row, i], &[s.block_m, 1]);
        let sums = if g.zeros.is_none() { k.map_const(Mul, sums, g.middle) } else { sums };
        let sums = k.reshape(sums, &shape[..1]);
        let sums = k.broadcast(sums, 1, s.block_n, Layout::Acc);
        let product = |(half, acc): (usize, &Val)| {
            let w = k.load_operand(p.weight, &p.half(half, &[p.col, at]), &[s.block_n, g.group]);
            let origin = p.half(half, &[p.col, i]);
            let scale = of_columns(k, s, g.scales, &origin);
            let zeros_sum = g.zeros.map_or(sums, |zeros| {
                let zeros = of_columns(k, s, zeros, &origin);
                k.map(Mul, &[sums, zeros])
            });
            let zeros = k.integer_zeros(&shape);
            let dot = k.mma(a, w, zeros);
            let dot = k.cast(dot, DType::F32);
            let dot = k.map(Sub, &[dot, zeros_sum]);
            let scaled = k.map(Mul, &[dot, scale]);
            k.map(Add, &[*acc, scaled])
        };
        acc.iter().enumerate().map(product).collect()
    })
}

/// What a group of each column has one of, along the rows of the result.
fn of_columns(k: &mut KernelBuilder, s: &Gemm, of: TensorRef, origin: &[Val]) -> Val {
    let each = k.load(of, origin, &[s.block_n, 1]);
    let each = k.reshape(each, &[s.block_n]);
    k.broadcast(each, 0, s.block_m, Layout::Acc)
}

/// Sums over groups in ascending order: `scale * (values · values)`.
fn float_groups(k: &mut KernelBuilder, s: &Gemm, p: &Program, group: usize, scales: TensorRef) -> Vec<Val> {
    let shape = [s.block_m, s.block_n];
    let init: Vec<Val> = (0..p.halves.len().max(1)).map(|_| k.zeros(&shape)).collect();
    k.fold(s.k / group, s.stages, &init, |k, i, acc| {
        let at = k.scale(i, group);
        let a = k.load_operand(p.a, &[p.row, at], &[s.block_m, group]);
        let product = |(half, acc): (usize, &Val)| {
            let w = k.load_operand(p.weight, &p.half(half, &[p.col, at]), &[s.block_n, group]);
            let scale = of_columns(k, s, scales, &p.half(half, &[p.col, i]));
            let zeros = k.zeros(&shape);
            let dot = k.mma(a, w, zeros);
            let scaled = k.map(Mul, &[dot, scale]);
            k.map(Add, &[*acc, scaled])
        };
        acc.iter().enumerate().map(product).collect()
    })
}

fn add_bias(k: &mut KernelBuilder, s: &Gemm, p: &Program, products: Vec<Val>) -> Vec<Val> {
    let Some(bias) = p.bias else { return products };
    let add = |(half, product): (usize, &Val)| {
        let b = k.load(bias, &p.half(half, &[p.col]), &[s.block_n]);
        let b = k.broadcast(b, 0, s.block_m, Layout::Acc);
        k.map(Add, &[*product, b])
    };
    products.iter().enumerate().map(add).collect()
}

/// `gate / (1 + exp(-gate)) * up`.
fn silu_mul(k: &mut KernelBuilder, gate: Val, up: Val) -> Val {
    let negative = k.map(Neg, &[gate]);
    let e = k.map(Exp, &[negative]);
    let denominator = k.map_const(Add, e, 1.0);
    let silu = k.map(Div, &[gate, denominator]);
    k.map(Mul, &[silu, up])
}

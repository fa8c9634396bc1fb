//! Matrix product with an epilogue.

use rvllm_ir::{
    DType, Dim, Expr, Sym, TensorType,
    graph::Epilogue,
    tile::{
        Access, Kernel, KernelBuilder, Layout,
        MapOp::{Add, Div, Exp, Mul, Neg},
        MemLayout, Val,
        builder::TensorRef,
    },
};

/// Numbers of [`gemm`].
#[derive(Clone, Debug, PartialEq)]
pub struct Gemm {
    /// M: how many rows a has, T or L.
    pub m: Sym,
    /// N: columns of the result. A gated weight has twice as many rows.
    pub n: usize,
    /// K: what is summed over.
    pub k: usize,
    /// Element type of a, weight and bias.
    pub dtype: DType,
    /// How a lies: strided where it is a view.
    pub a: MemLayout,
    /// How the weight lies.
    pub weight: MemLayout,
    /// Element type of the result and the residual.
    pub out: DType,
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

/// Tensors and origins of one program.
struct Program {
    a: TensorRef,
    weight: TensorRef,
    bias: Option<TensorRef>,
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
/// Parameters: a `[M, K]`, weight `[N, K]`, bias `[N]`?, residual `[M, N]`?, c `[M, N]`. With `silu_mul` the weight
/// is `[2, N, K]` (gates, ups) and the bias `[2, N]`: each half is packed by itself, so that N need not divide into
/// panels; one program multiplies its rows of a with the gate tile and the up tile.
///
/// One program per tile of c; row tiles vary fastest, so that programs that run together share weights. Tails of N
/// and K are zeros by the rule for static bounds; rows past M stay rows past M.
pub fn gemm(name: &str, s: &Gemm) -> Kernel {
    let mut k = KernelBuilder::new(name);
    let matrix = |cols: usize, dtype| TensorType::new([Dim::Sym(s.m), Dim::Const(cols)], dtype);
    let gated = |dims: &[usize]| {
        let two = s.epilogue.silu_mul.then_some(2);
        TensorType::new(two.into_iter().chain(dims.iter().copied()), s.dtype)
    };
    let a = k.tensor("a", matrix(s.k, s.dtype), s.a, Access::In);
    let weight = k.tensor("weight", gated(&[s.n, s.k]), s.weight, Access::Weight);
    let bias = s.epilogue.bias.then(|| k.weight("bias", gated(&[s.n])));
    let residual = s.epilogue.residual.then(|| k.input("residual", matrix(s.n, s.out)));
    let c = k.output("c", matrix(s.n, s.out));

    let n = k.grid("n", s.n.div_ceil(s.block_n) as i64);
    let m = k.grid("m", Expr::from(s.m).ceil_div(s.block_m as i64));
    let (row, col) = (k.scale(m, s.block_m), k.scale(n, s.block_n));
    let halves = if s.epilogue.silu_mul { vec![k.index(0), k.index(1)] } else { vec![] };
    let p = Program { a, weight, bias, row, col, halves };

    let products = multiply(&mut k, s, &p);
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

/// One `[block_m, block_n]` accumulator per half.
fn multiply(k: &mut KernelBuilder, s: &Gemm, p: &Program) -> Vec<Val> {
    let init: Vec<Val> = (0..p.halves.len().max(1)).map(|_| k.zeros(&[s.block_m, s.block_n])).collect();
    k.fold(s.k.div_ceil(s.block_k), s.stages, &init, |k, i, acc| {
        let at = k.scale(i, s.block_k);
        let a = k.load_operand(p.a, &[p.row, at], &[s.block_m, s.block_k]);
        let product = |(half, acc): (usize, &Val)| {
            let w = k.load_operand(p.weight, &p.half(half, &[p.col, at]), &[s.block_n, s.block_k]);
            k.mma(a, w, *acc)
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

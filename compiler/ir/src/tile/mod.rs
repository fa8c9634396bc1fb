//! The tile IR: what one kernel computes. A kernel is a grid of independent programs; each works on
//! statically shaped tiles of tensors. The algorithm is here; tile sizes come from schedules, instructions
//! from targets.
//!
//! # Semantics
//! - A *tensor* parameter lives in memory and has a [`MemLayout`]. A *tile* is an SSA value whose
//!   [`Layout`] is part of its type: `reg` (elementwise work), `acc` (what `mma` accumulates in), `operand`
//!   (what `mma` reads: shared memory on a GPU, packed or strided memory on a CPU). There is no layout
//!   inference: operands of an elementwise instruction agree in layout, `load`, `full` and `broadcast` make a tile in the
//!   layout that is wanted, and [`Inst::Stage`] is the only way from `reg`/`acc` to `operand`, and [`Inst::Cast`] widens one where it is.
//! - Arithmetic is in f32 whatever the tile's dtype: loads of bf16 and of small integers widen exactly, [`Inst::Cast`] rounds
//!   to nearest even, to i8 and f8e4m3 with saturation (NaN becomes the smallest i8). `reg` and `acc` tiles are f32 or i32, or
//!   bf16/f16/i8/f8e4m3 right before a store or a `stage`.
//! - Products of integers are exact: `mma` of i8 with i8, u8 or u4 adds up in i32, which a program must not overflow.
//! - Bounds: elements past a *static* dimension load as zero and are not stored. In a dimension that the tile does not
//!   divide, tile origins must be multiples of the tile's size; in one that it divides, tiles lie inside. Elements past
//!   T or L lie in padding (every token buffer has [`PAD_ROWS`] spare rows): they may be loaded and stored, hold
//!   anything, and a program must not let them reach an element inside the bounds. A tile that starts inside may stick out
//!   further on a target that leaves such elements alone. Other symbols have no padding.
//! - Reduction order is a function of static shapes and of positions only, never of the grid: batch
//!   invariance holds by construction. `mma` adds products in ascending k.
//! - Programs of one launch never read what another stores, except a program's own stores.
//!
//! Invariants are listed in [`verify`].

pub mod builder;
pub mod interp;
pub mod memory;
mod names;
pub mod parse;
pub mod print;
pub mod verify;

#[cfg(test)]
mod tests;

pub use builder::KernelBuilder;

use crate::{
    diag::Loc,
    expr::{Expr, Sym},
    types::{DType, TensorType},
};

/// Spare rows past the symbolic first dimension of every activation buffer.
pub const PAD_ROWS: usize = 32;

/// An SSA value of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Val(pub u32);

/// How a tensor lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemLayout {
    /// Row-major and dense, but for the distance between indices of dimension 0, where `row` gives it
    /// in elements (a view of some columns of a wider buffer).
    Strided {
        /// Elements between consecutive indices of dimension 0.
        row: Option<usize>,
    },
    /// The last two dimensions `[N, K]` in panels of `n` rows: `[ceil(N/n)][ceil(K/k)][n][k]`, zero padded;
    /// outer dimensions dense around that. With k = 2 and 16-bit elements one 32-bit lane holds two adjacent
    /// k values (the VNNI layout that dot-product and AMX instructions read). Of the `k` values of 4 bits of a row, the first
    /// half lie in the low nibbles of their bytes, the second half in the high ones.
    Panel {
        /// Rows of a panel.
        n: usize,
        /// Adjacent k values of one row.
        k: usize,
    },
    /// The last two dimensions `[N, K]` in blocks of [`BLOCK_ROWS`] rows by `k` columns, `k` elements being the 128 bytes
    /// of a line of shared memory, with the 16-byte pieces of a line permuted as a copy engine's 128-byte swizzle leaves
    /// them there: `[ceil(rows/64)][ceil(K/k)][64][k]`, zero padded, piece `p` of row `r` at `p ^ (r % 8)`. Matrices of
    /// outer dimensions share blocks, eight rows of each in turn, so that a thread that holds an element of one holds
    /// that of the others.
    Blocks {
        /// Columns of a block.
        k: usize,
    },
    /// The last two dimensions `[N, K]` in pieces of [`FRAGMENT_ROWS`] rows by `k` columns, next to each other:
    /// `[ceil(rows/32)][ceil(K/k)][32][k]`, zero padded. Matrices of outer dimensions share pieces: 32 rows of each in turn.
    /// A piece of 4-bit elements, of 64 columns, is in the order in which the 128 threads of a warpgroup hold them as a matrix
    /// instruction's operand: thread `32 w + 4 r + c` has of row `8 w + r` the columns `16 s + 8 h + 2 c + e` in its 16
    /// half bytes `8 (s / 2) + 4 e + 2 (s % 2) + h`.
    Fragments {
        /// Columns of a piece.
        k: usize,
    },
}

/// Rows of a block of [`MemLayout::Blocks`].
pub const BLOCK_ROWS: usize = 64;
/// Adjacent rows of one matrix in a block.
pub const BLOCK_GROUP: usize = 8;
/// Rows of a piece of [`MemLayout::Fragments`].
pub const FRAGMENT_ROWS: usize = 32;
/// Columns of a piece of [`MemLayout::Fragments`] whose elements have 4 bits.
pub const FRAGMENT_COLUMNS: usize = 64;

impl MemLayout {
    /// Row-major and dense.
    pub const DENSE: MemLayout = MemLayout::Strided { row: None };
}

/// What a kernel may do with a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Read only; never aliased by a written tensor.
    In,
    /// Read only, and written by no launch of any step: may be read before the launches before this one end.
    Weight,
    /// Read only, and brought by the step: as `Weight`, but another step brings others.
    Step,
    /// Written only.
    Out,
    /// Read and written (the KV cache).
    InOut,
}

impl Access {
    /// Whether a kernel only reads the tensor.
    pub fn is_read_only(self) -> bool {
        matches!(self, Access::In | Access::Weight | Access::Step)
    }

    /// Whether no launch of the step writes the tensor.
    pub fn is_fixed(self) -> bool {
        matches!(self, Access::Weight | Access::Step)
    }
}

/// A tensor parameter.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Param {
    /// Its identifier in text.
    pub name: String,
    /// Shape and element type.
    pub ty: TensorType,
    /// How it lies in memory.
    pub layout: MemLayout,
    /// What the kernel does with it.
    pub access: Access,
}

/// Where a tile lives: see the module's semantics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// Registers, for elementwise work.
    Reg,
    /// Accumulators of `mma`.
    Acc,
    /// Memory that `mma` reads.
    Operand,
}

/// Type of a tile: rank 0 to 3, static shape.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TileType {
    /// Where it lives.
    pub layout: Layout,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Element type.
    pub dtype: DType,
}

/// Type of an SSA value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    /// A scalar integer: tile origins, loop bounds, lengths.
    Index,
    /// A tile.
    Tile(TileType),
}

/// Integer operations on index values. Division truncates; operands are non-negative where it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IndexOp {
    /// Sum.
    Add,
    /// Difference.
    Sub,
    /// Product.
    Mul,
    /// Quotient.
    Div,
    /// Remainder.
    Rem,
    /// Smaller.
    Min,
    /// Larger.
    Max,
}

/// Elementwise operations on tiles of one shape, in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MapOp {
    /// `a + b`.
    Add,
    /// `a - b`.
    Sub,
    /// `a * b`.
    Mul,
    /// `a / b`.
    Div,
    /// Larger.
    Max,
    /// Smaller.
    Min,
    /// `-a`.
    Neg,
    /// e to the power a; `exp(0)` is exactly 1 and `exp(-inf)` exactly 0.
    Exp,
    /// Natural logarithm of a positive number.
    Log,
    /// `1 / sqrt(a)`, correctly rounded operations.
    Rsqrt,
    /// Hyperbolic tangent.
    Tanh,
}

impl MapOp {
    /// Number of operands.
    pub fn arity(self) -> usize {
        match self {
            MapOp::Add | MapOp::Sub | MapOp::Mul | MapOp::Div | MapOp::Max | MapOp::Min => 2,
            MapOp::Neg | MapOp::Exp | MapOp::Log | MapOp::Rsqrt | MapOp::Tanh => 1,
        }
    }
}

/// Comparison of a select.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cmp {
    /// `a < b`.
    Lt,
    /// `a <= b`.
    Le,
    /// `a == b`.
    Eq,
}

/// Reduction of one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReduceOp {
    /// Sum, in an order fixed by the shape.
    Sum,
    /// Largest element.
    Max,
}

/// An instruction. `at` lists one origin (in elements) per tensor dimension; a tile of smaller rank covers
/// the trailing dimensions, with size one in the leading ones.
#[derive(Clone, Debug, PartialEq)]
pub enum Inst {
    /// Index of this program along grid dimension `0`.
    ProgramId(usize),
    /// An index constant.
    Const(i64),
    /// A symbol of the step.
    Sym(Sym),
    /// Integer arithmetic.
    Index(IndexOp, Val, Val),
    /// One element of an i32 tensor, as an index.
    Read {
        /// Parameter number.
        tensor: usize,
        /// One origin per dimension.
        at: Vec<Val>,
    },
    /// The one element of an f32 tile of rank 0 as an index: a whole number, of at most 2^24 in size.
    ToIndex(Val),
    /// A tile of a tensor, as `reg` or `acc` (widened to f32) or `operand` (element type kept).
    Load {
        /// Parameter number.
        tensor: usize,
        /// One origin per dimension.
        at: Vec<Val>,
    },
    /// Writes a tile; its dtype is the tensor's.
    Store {
        /// Parameter number.
        tensor: usize,
        /// One origin per dimension.
        at: Vec<Val>,
        /// What to write.
        value: Val,
        /// Only the first `rows` indices of the tile's dimension 0 are written; none when `rows <= 0`.
        rows: Option<Val>,
    },
    /// Every element is this; an integer in an i32 tile.
    Full(f32),
    /// i32 tile of rank 1: element i is `start + i / div`.
    Iota {
        /// Added to every element.
        start: Val,
        /// Divisor of the element number.
        div: usize,
    },
    /// `acc[m, n] + a[m, k] · b[n, k]ᵀ`; a and b are `operand`s: of one floating-point dtype, where acc is f32, or a of i8
    /// and b of i8, u8 or u4, where acc is i32.
    Mma {
        /// `[m, k]`.
        a: Val,
        /// `[n, k]`.
        b: Val,
        /// `[m, n]`.
        acc: Val,
    },
    /// Elementwise.
    Map(MapOp, Vec<Val>),
    /// Elementwise `a cmp b ? x : y`; a and b of one dtype (f32 or i32), x and y f32.
    Select {
        /// The comparison.
        cmp: Cmp,
        /// Compared.
        a: Val,
        /// Compared.
        b: Val,
        /// Where true.
        x: Val,
        /// Where false.
        y: Val,
    },
    /// Another element type: f32 to bf16/f16/i8/f8e4m3 rounds to nearest even, back is exact, i32 to f32 rounds. Of an
    /// `operand` of rank 2, which stays one: i8/f8e4m3 to bf16 or f32, bf16/f16 to f32, all exact.
    Cast(Val),
    /// Reduction of `axis`, which disappears.
    Reduce(ReduceOp, Val, usize),
    /// Inserts `axis` and repeats along it.
    Broadcast(Val, usize),
    /// Same elements in row-major order, another shape.
    Reshape(Val),
    /// A `reg` or `acc` tile as an `operand`.
    Stage(Val),
    /// `operand`s of one type and rank 2 side by side along an axis: one that `mma` reads as a whole. Or `reg` tiles of one
    /// type and rank 1 one after the other: what goes with its rows or columns.
    Concat(Vec<Val>, usize),
    /// `for i in lo..hi`, carrying values: the only loop, and the only scheduling construct. Loads in it may run
    /// ahead by `stages` iterations.
    Pipeline {
        /// First index.
        lo: Val,
        /// One past the last index.
        hi: Val,
        /// How far loads may run ahead; 1 is not at all.
        stages: usize,
        /// Carried values on entry; the results are those on exit.
        init: Vec<Val>,
        /// Parameters: the index, then the carried values. Yields the carried values.
        body: Block,
    },
}

impl Inst {
    /// Every value that an instruction reads, a pipeline's body apart.
    pub fn operands(&self) -> Vec<Val> {
        match self {
            Inst::ProgramId(_) | Inst::Const(_) | Inst::Sym(_) | Inst::Full(_) => vec![],
            Inst::Index(_, a, b) => vec![*a, *b],
            Inst::Read { at, .. } | Inst::Load { at, .. } => at.clone(),
            Inst::Store { at, value, rows, .. } => at.iter().copied().chain([*value]).chain(*rows).collect(),
            Inst::Iota { start: v, .. }
            | Inst::ToIndex(v)
            | Inst::Cast(v)
            | Inst::Reduce(_, v, _)
            | Inst::Broadcast(v, _)
            | Inst::Reshape(v)
            | Inst::Stage(v) => vec![*v],
            Inst::Mma { a, b, acc } => vec![*a, *b, *acc],
            Inst::Map(_, args) | Inst::Concat(args, _) => args.clone(),
            Inst::Select { a, b, x, y, .. } => vec![*a, *b, *x, *y],
            Inst::Pipeline { lo, hi, init, .. } => [*lo, *hi].into_iter().chain(init.iter().copied()).collect(),
        }
    }
}

/// An instruction with its results.
#[derive(Clone, Debug, PartialEq)]
pub struct Stmt {
    /// Results.
    pub results: Vec<Val>,
    /// The instruction.
    pub inst: Inst,
    /// The kernel's or the text's line.
    pub loc: Option<Loc>,
}

/// A sequence of statements.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Block {
    /// Values that the enclosing instruction defines on entry.
    pub params: Vec<Val>,
    /// In order.
    pub stmts: Vec<Stmt>,
    /// What the block hands back.
    pub yields: Vec<Val>,
}

/// Name and type of a value.
#[derive(Clone, Debug, PartialEq)]
pub struct ValInfo {
    /// Identifier in text; unique in the kernel.
    pub name: String,
    /// Its type.
    pub ty: Type,
}

/// A kernel.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Kernel {
    /// Its name: also the object code's symbol, so letters, digits and `_` only.
    pub name: String,
    /// Tensor parameters.
    pub params: Vec<Param>,
    /// Grid: identifier and extent of each dimension; the last varies fastest in launch order.
    pub grid: Vec<(String, Expr)>,
    /// All values, indexed by [`Val`].
    pub vals: Vec<ValInfo>,
    /// What one program does.
    pub body: Block,
}

impl Kernel {
    /// Type of a value.
    pub fn ty(&self, v: Val) -> &Type {
        &self.vals[v.0 as usize].ty
    }

    /// Tile type of a value. Panics on an index: excluded by the verifier.
    #[track_caller]
    pub fn tile(&self, v: Val) -> &TileType {
        match self.ty(v) {
            Type::Tile(t) => t,
            Type::Index => panic!("%{} is an index", self.vals[v.0 as usize].name),
        }
    }

    /// Symbols that the kernel receives after its tensors, in [`Sym::ALL`]'s order: those in its grid, in its
    /// parameters' shapes and in its body.
    pub fn symbols(&self) -> Vec<Sym> {
        let mut used = std::collections::BTreeSet::new();
        self.grid.iter().for_each(|(_, e)| expr_symbols(e, &mut used));
        self.params.iter().flat_map(|p| &p.ty.dims).for_each(|d| expr_symbols(&d.expr(), &mut used));
        block_symbols(&self.body, &mut used);
        Sym::ALL.into_iter().filter(|s| used.contains(s)).collect()
    }
}

fn expr_symbols(e: &Expr, used: &mut std::collections::BTreeSet<Sym>) {
    match e {
        Expr::Const(_) => {}
        Expr::Sym(s) => {
            used.insert(*s);
        }
        Expr::Add(a, b) | Expr::Mul(a, b) => {
            expr_symbols(a, used);
            expr_symbols(b, used);
        }
        Expr::CeilDiv(a, _) | Expr::Min(a, _) => expr_symbols(a, used),
    }
}

fn block_symbols(b: &Block, used: &mut std::collections::BTreeSet<Sym>) {
    for s in &b.stmts {
        match &s.inst {
            Inst::Sym(sym) => {
                used.insert(*sym);
            }
            Inst::Pipeline { body, .. } => block_symbols(body, used),
            _ => {}
        }
    }
}

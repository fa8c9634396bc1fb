//! The plan: buffers at fixed offsets in one arena, weights by recipe, and launches whose grids and kernel
//! choices are expressions over the step's symbols. Data, no code: the runtime interprets it and nothing else.

use crate::{gpu::GpuKernel, recipe::Recipe};
use serde::{Deserialize, Serialize};

/// Element types, named as everywhere in rvllm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum DType {
    F32,
    F16,
    Bf16,
    F8e4m3,
    F8e5m2,
    I8,
    U4,
    U8,
    I32,
}

impl DType {
    /// Size of one element in bits.
    pub fn bits(self) -> u64 {
        match self {
            DType::F32 | DType::I32 => 32,
            DType::F16 | DType::Bf16 => 16,
            DType::F8e4m3 | DType::F8e5m2 | DType::I8 | DType::U8 => 8,
            DType::U4 => 4,
        }
    }

    /// The name used in text and in artifacts.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
            DType::F8e4m3 => "f8e4m3",
            DType::F8e5m2 => "f8e5m2",
            DType::I8 => "i8",
            DType::U4 => "u4",
            DType::U8 => "u8",
            DType::I32 => "i32",
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A quantity that only a step knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Sym {
    /// Tokens in the step.
    T,
    /// Sequences in the step.
    R,
    /// Rows of logits.
    L,
    /// Query tiles.
    Q,
    /// Columns of the block table.
    M,
    /// Blocks in the KV pool.
    P,
}

/// An integer expression over symbols.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expr {
    /// A constant.
    Const(i64),
    /// A symbol.
    Sym(Sym),
    /// Sum.
    Add(Box<Expr>, Box<Expr>),
    /// Product.
    Mul(Box<Expr>, Box<Expr>),
    /// Quotient by a positive constant, rounded up.
    CeilDiv(Box<Expr>, i64),
    /// The smaller of an expression and a constant.
    Min(Box<Expr>, i64),
}

impl Expr {
    /// The value where `symbols` gives each symbol's; `None` where it is negative or overflows.
    ///
    /// Expressions of an open artifact have values at every step that their plan allows.
    pub fn eval(&self, symbols: &dyn Fn(Sym) -> u64) -> Option<u64> {
        match self {
            Expr::Const(c) => u64::try_from(*c).ok(),
            Expr::Sym(s) => Some(symbols(*s)),
            Expr::Add(a, b) => a.eval(symbols)?.checked_add(b.eval(symbols)?),
            Expr::Mul(a, b) => a.eval(symbols)?.checked_mul(b.eval(symbols)?),
            Expr::Min(a, most) => Some(a.eval(symbols)?.min(u64::try_from(*most).ok()?)),
            Expr::CeilDiv(a, d) => Some(a.eval(symbols)?.div_ceil(u64::try_from(*d).ok().filter(|d| *d > 0)?)),
        }
    }
}

/// The plan of one target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Most tokens of a step (`max_num_batched_tokens`): bound of T.
    pub max_num_batched_tokens: u32,
    /// Most sequences of a step: bound of R.
    pub max_num_seqs: u32,
    /// Most rows of logits of a step: bound of L.
    pub max_logits: u32,
    /// Tokens of a query tile.
    pub query_tile: u32,
    /// Size of the arena.
    pub arena_bytes: u64,
    /// Ranges of the arena. Lifetimes that do not overlap share bytes.
    pub buffers: Vec<Buffer>,
    /// Every weight that a launch reads.
    pub weights: Vec<Weight>,
    /// Every kernel, by symbol.
    pub kernels: Vec<Kernel>,
    /// The launches of a step, in order; a barrier lies between two.
    pub launches: Vec<Launch>,
    /// What a step yields.
    pub outputs: Outputs,
    /// Whether a step may leave tokens to the one before it: an entry `-1 - row` of [`Input::TokenIds`] then stands for the first
    /// of [`Outputs::draws`] of that step's row.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub feeds: bool,
}

/// A range of the arena, 64-byte aligned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Buffer {
    /// The graph value that lies there.
    pub name: String,
    /// Byte offset in the arena.
    pub offset: u64,
    /// Size at the largest step, padding rows included.
    pub bytes: u64,
    /// First and last launch that touch it.
    pub live: [u32; 2],
}

/// A weight as kernels read it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weight {
    /// Its name: the key in the artifact's safetensors files.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Dimensions as stored: after packing.
    pub shape: Vec<u64>,
    /// How it is made from the checkpoint.
    pub recipe: Recipe,
}

impl Weight {
    /// Size in bytes; `None` on overflow.
    pub fn bytes(&self) -> Option<u64> {
        let n = self.shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d))?;
        Some(n.checked_mul(self.dtype.bits())?.div_ceil(8))
    }
}

/// A kernel of the object code.
///
/// On a CPU: `extern "C" fn(args: *const u64, begin: u64, end: u64)` runs programs `begin..end` of the
/// linearised grid (last dimension fastest). `args` holds one pointer per tensor, then one integer per symbol
/// of `symbols`, in order. On a GPU: see [`crate::gpu`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// Symbol in the object code.
    pub symbol: String,
    /// Number of tensor arguments.
    pub tensors: u32,
    /// Symbols passed after the tensors, on a CPU.
    pub symbols: Vec<Sym>,
    /// How it is launched on a GPU; absent in a plan for a CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuKernel>,
}

/// One launch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Launch {
    /// What it computes: the graph value's name.
    pub name: String,
    /// Tensor arguments, in the kernel's order.
    pub args: Vec<Arg>,
    /// The first variant whose condition holds is launched. The last has none.
    pub variants: Vec<Variant>,
}

/// A kernel with a grid, under a condition.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// Holds when the symbol is at most the number; always when absent.
    pub at_most: Option<(Sym, u32)>,
    /// Index into `kernels`.
    pub kernel: u32,
    /// Extents, outermost first.
    pub grid: Vec<Expr>,
}

/// A tensor argument.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arg {
    /// A buffer, from this byte on.
    Buffer {
        /// Index into `buffers`.
        id: u32,
        /// Byte offset within the buffer (a view of some columns).
        offset: u64,
    },
    /// A weight: index into `weights`.
    Weight(u32),
    /// A step input, by name: see [`Input`].
    Input(Input),
    /// The K blocks of a layer.
    KeyCache(u32),
    /// The V blocks of a layer.
    ValueCache(u32),
    /// The scales of a layer's K blocks.
    KeyScales(u32),
    /// The scales of a layer's V blocks.
    ValueScales(u32),
}

/// What the step brings, all i32 but the temperature and the random numbers: shapes as in the graph IR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// `[T]`.
    TokenIds,
    /// `[T]`.
    Positions,
    /// `[T]`: `block * block_size + offset`, -1 is not written.
    SlotMapping,
    /// `[R+1]`.
    QueryStartLoc,
    /// `[R]`: with this step's tokens.
    SeqLens,
    /// `[R, M]`.
    BlockTable,
    /// `[L]`: indices of tokens in the step.
    LogitsIndices,
    /// `[L]`, f32: at which a token is drawn from each row of logits, 1 where none is.
    Temperature,
    /// `[L, 2 * DRAWS]`, f32: random numbers in [0, 1), two for each of the tokens drawn from a row.
    Uniform,
    /// `[L]`: how many of the tokens drawn from a row are ranked.
    Ranked,
    /// `[L]`: how many of the most likely tokens of a row are found.
    TopK,
    /// `[Q]`: sequence of each query tile.
    TileSeq,
    /// `[Q]`: first token (index in the step) of each query tile.
    TileStart,
}

/// Buffers that the runtime reads after a step: all f32.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outputs {
    /// `[L, vocab]`.
    pub logits: u32,
    /// `[L]`: largest logit of each row.
    pub max: u32,
    /// `[L]`: log of the sum of exponentials of each row.
    pub logsumexp: u32,
    /// `[L, ceil(vocab / 256)]`: largest logit of each run of 256.
    pub block_max: u32,
    /// `[L, ceil(vocab / 256)]`: of each run of 256, the sum of `exp((logit - largest of the run) / temperature)`.
    pub block_sum: u32,
    /// `[L, DRAWS]`: tokens drawn from each row at its temperature.
    pub draws: u32,
    /// `[L, RANK * DRAWS]`: of each drawn token that is ranked its logit, how many logits are larger, what the tokens before it
    /// weigh, and what all weigh, at the row's temperature and where the most likely token weighs 1; of others zeros.
    pub ranks: u32,
    /// `[L, 2 * TOP_K]`: ids of the most likely tokens, of equals the smallest first, then their logits; zeros behind both. Artifacts
    /// of older formats leave none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub most_likely: Option<u32>,
}

/// Numbers of a token that is ranked.
pub const RANK: usize = 4;

/// Most likely tokens that are found of a row of logits, at most.
pub const TOP_K: usize = 32;

/// Tokens drawn from each row of logits.
pub const DRAWS: usize = 8;

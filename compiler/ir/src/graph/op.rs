//! Operations of the graph IR.

use crate::{recipe::Recipe, rope::Rope, types::DType};
use std::borrow::Cow;

/// What a step brings: filled in one place of the runtime, only read here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Input {
    /// `[T]i32`: token ids.
    TokenIds,
    /// `[T]i32`: position of each token in its sequence.
    Positions,
    /// `[T]i32`: where each token's K and V go: `block * block_size + offset`; -1 is not written.
    SlotMapping,
    /// `[R+1]i32`: prefix sum of the sequences' query lengths.
    QueryStartLoc,
    /// `[R]i32`: length of each sequence with this step's tokens.
    SeqLens,
    /// `[R, M]i32`: physical block of each logical block.
    BlockTable,
    /// `[L]i32`: tokens whose logits are wanted.
    LogitsIndices,
    /// `[L]f32`: the temperature at which a token is drawn from each row of logits; 1 where none is.
    Temperature,
    /// `[L, 2 * DRAWS]f32`: random numbers in [0, 1), two for each of the tokens drawn from a row of logits.
    Uniform,
    /// `[L]i32`: how many of the tokens drawn from a row of logits are ranked.
    Ranked,
    /// `[L]i32`: how many of the most likely tokens of a row of logits are found, at most TOP_K.
    TopK,
    /// `[Q]i32`: the sequence of each query tile.
    TileSeq,
    /// `[Q]i32`: the first token (index into the step) of each query tile.
    TileStart,
    /// The KV cache of a layer.
    Kv(usize),
}

impl Input {
    /// Every tensor input.
    pub const TENSORS: [Input; 13] = [
        Input::TokenIds,
        Input::Positions,
        Input::SlotMapping,
        Input::QueryStartLoc,
        Input::SeqLens,
        Input::BlockTable,
        Input::LogitsIndices,
        Input::Temperature,
        Input::Uniform,
        Input::Ranked,
        Input::TopK,
        Input::TileSeq,
        Input::TileStart,
    ];

    /// Name in text and plans; a KV cache's is `kv.<layer>`.
    pub fn name(self) -> String {
        match self {
            Input::TokenIds => "token_ids".into(),
            Input::Positions => "positions".into(),
            Input::SlotMapping => "slot_mapping".into(),
            Input::QueryStartLoc => "query_start_loc".into(),
            Input::SeqLens => "seq_lens".into(),
            Input::BlockTable => "block_table".into(),
            Input::LogitsIndices => "logits_indices".into(),
            Input::Temperature => "temperature".into(),
            Input::Uniform => "uniform".into(),
            Input::Ranked => "ranked".into(),
            Input::TopK => "top_k".into(),
            Input::TileSeq => "tile_seq".into(),
            Input::TileStart => "tile_start".into(),
            Input::Kv(layer) => format!("kv.{layer}"),
        }
    }

    /// The input with this name.
    pub fn parse(name: &str) -> Option<Input> {
        match name.strip_prefix("kv.") {
            Some(layer) => layer.parse().ok().map(Input::Kv),
            None => Input::TENSORS.into_iter().find(|i| i.name() == name),
        }
    }
}

/// How a linear layer is split over ranks (tensor parallelism, Megatron's words).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Parallel {
    /// Every rank holds all of it.
    #[default]
    Replicated,
    /// Split over output features.
    Cols,
    /// Split over input features; results are summed over ranks.
    Rows,
}

/// Parameters of causal attention of one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Layer, which names the KV cache.
    pub layer: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Factor on `q·k`.
    pub scale: f32,
    /// Keys seen by a query, itself included; all when absent.
    pub window: Option<usize>,
    /// `cap * tanh(score / cap)` on scores when present.
    pub softcap: Option<f32>,
}

/// What a `gemm` does to its accumulator before the store, in this order: bias, activation, residual.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Epilogue {
    /// Adds a `[N]` operand.
    pub bias: bool,
    /// `silu(gate) * up`, where the weight's rows are all gates, then all ups: the result has N/2 columns.
    pub silu_mul: bool,
    /// Adds an operand of the result's type.
    pub residual: bool,
}

/// Columns of logits that share one of [`Call::LogitStats`]'s block maxima.
pub const STATS_BLOCK: usize = 256;

/// Tokens that [`Call::Draw`] draws from each row of logits: of what leaves some tokens out, one of so many is rarely none.
pub const DRAWS: usize = 8;

/// Tokens that [`Call::TopK`] finds of each row of logits, at most: above what clients are given log-probabilities of.
pub const TOP_K: usize = 32;

impl Epilogue {
    /// Operands of a product up to its scales: x, weight, bias, residual.
    pub fn operands(self) -> usize {
        2 + usize::from(self.bias) + usize::from(self.residual)
    }
}

/// How rows of activations are quantised: each to values of one scale, the row's largest magnitude over the type's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Quantize {
    /// Element type of the values.
    pub to: DType,
    /// Columns whose values are also summed up, for weights that are unsigned; a divisor of the row's length.
    pub group: Option<usize>,
}

impl Quantize {
    /// How many tensors it makes: values, scales, and the groups' sums.
    pub fn results(self) -> usize {
        2 + usize::from(self.group.is_some())
    }
}

/// How values become numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dequantize {
    /// Columns that share a scale; a whole row where absent.
    pub group: Option<usize>,
    /// Element type of the numbers.
    pub out: DType,
}

/// Which scales the operands of a product come with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Scales {
    /// None: they are numbers.
    #[default]
    None,
    /// One for each row of x and one for each row of the weight; both hold values of one type.
    Rows,
    /// One for each row of x, and one for so many columns of a row of the weight, which holds unsigned values: what stands
    /// for zero is the middle of their range.
    Groups(usize),
    /// As [`Scales::Groups`], with a value for each that stands for zero.
    GroupsWithZeros(usize),
    /// One for each row of x, and one for so many columns of a row of the weight; both hold values of one floating-point type.
    FloatGroups(usize),
    /// None for x, which holds numbers, and one for so many columns of a row of the weight, which holds unsigned values.
    WeightOnly {
        /// Columns that share a scale.
        group: usize,
        /// Whether each group has a value that stands for zero; else the middle of the values' range does.
        zeros: bool,
    },
}

impl Scales {
    /// Those of a weight of this type: a scale for `group` columns, or for all of a row where absent, and zeros where there
    /// are some.
    pub fn of(weight: DType, group: Option<usize>, zeros: bool) -> Scales {
        match (group, zeros) {
            (None, _) => Scales::Rows,
            (Some(n), _) if weight.is_float() => Scales::FloatGroups(n),
            (Some(n), false) => Scales::Groups(n),
            (Some(n), true) => Scales::GroupsWithZeros(n),
        }
    }

    /// Columns of a weight that share a scale, where they are less than all of a row.
    pub fn group(self) -> Option<usize> {
        match self {
            Scales::None | Scales::Rows => None,
            Scales::Groups(group)
            | Scales::GroupsWithZeros(group)
            | Scales::FloatGroups(group)
            | Scales::WeightOnly { group, .. } => Some(group),
        }
    }

    /// How many operands they are.
    pub fn operands(self) -> usize {
        match self {
            Scales::None => 0,
            Scales::Rows | Scales::FloatGroups(_) => 2,
            Scales::Groups(_) => 3,
            Scales::GroupsWithZeros(_) => 4,
            Scales::WeightOnly { zeros, .. } => 1 + usize::from(zeros),
        }
    }

    /// Which of them are the weight's, of every row and group: its scales, and its zeros.
    pub fn of_weight(self) -> Vec<usize> {
        match self {
            Scales::None | Scales::Rows => vec![],
            Scales::Groups(_) | Scales::FloatGroups(_) => vec![1],
            Scales::GroupsWithZeros(_) => vec![1, 3],
            Scales::WeightOnly { zeros, .. } => (0..1 + usize::from(zeros)).collect(),
        }
    }
}

/// A call of one kernel: what `fuse` makes of the tensor operations.
#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    /// `(table [V, H], token_ids [T], table_scale?) -> [T, H]`, where a table of values has the scales that it has as a
    /// product's weight: `[V]f32`, or `[V, H/group]f16`.
    Embed {
        /// Which scales a table of values has.
        values: Option<Dequantize>,
    },
    /// `(x, residual?, weight [H], indices [L]?) -> (normed, sum?)`: `sum = x + residual` where `residual`,
    /// else only `normed` of `x`; where `rows`, row `i` of the results is that of row `indices[i]`; where `quantize`, what
    /// [`Call::QuantizeRows`] makes of `normed` stands in its place.
    RmsNorm {
        /// Added to the mean of squares.
        eps: f32,
        /// Whether a residual is added first and the sum returned.
        residual: bool,
        /// Whether rows are picked by indices.
        rows: bool,
        /// How `normed` is quantised, where it is.
        quantize: Option<Quantize>,
    },
    /// `(x [.., K]) -> (values [.., K], scale [..]f32, sums [.., K/group]f32?)`: `x ≈ values * scale`.
    QuantizeRows(Quantize),
    /// `(x [.., K], weight [N, K], bias?, residual?, scales..) -> [.., N or N/2]`, in `out`. The scales are
    /// `x_scale [..]f32, weight_scale [N]f32` with [`Scales::Rows`]; `x_scale, weight_scale [N, K/group]` in f16, bf16 or f32,
    /// `x_sums [.., K/group]f32` with [`Scales::Groups`], and after them with [`Scales::GroupsWithZeros`]
    /// `weight_zero [N, K/group]f16`; `x_scale, weight_scale [N, K/group]` with [`Scales::FloatGroups`]; `weight_scale [N, K/group], weight_zero [N, K/group]f16?` with [`Scales::WeightOnly`].
    Gemm {
        /// What happens before the store.
        epilogue: Epilogue,
        /// Which scales the operands come with.
        scales: Scales,
        /// Element type of the result.
        out: DType,
    },
    /// `(q [T, H*D], k [T, KV*D], v [T, KV*D], rope_table, positions, slot_mapping, kv, q_norm [D]?, k_norm [D]?)
    /// -> (q [T, H, D], kv)`: norms and rotates q and k, writes k and v into the cache.
    RopeKvWrite {
        /// The layer's attention.
        attention: Attention,
        /// Epsilon of the norm over each head of q and k, where there is one.
        qk_norm: Option<f32>,
        /// Rotated elements of a head.
        rope_dim: usize,
    },
    /// `(q [T, H, D], kv, tile_seq, tile_start, query_start_loc, seq_lens, block_table) -> [T, H*D]`.
    PagedAttention(Attention),
    /// `(logits [L, V], temperature [L]) -> (max [L], logsumexp [L], block_max [L, B], block_sum [L, B])`, all f32, where B
    /// is `ceil(V/STATS_BLOCK)` and a sum is of `exp((logit - maximum of its block) / temperature)`: what a choice, greedy or
    /// at random, and log-probabilities need without another pass over the row.
    LogitStats,
    /// `(logits [L, V], max [L], block_max [L, B], block_sum [L, B], temperature [L], uniform [L, 2 * DRAWS]) -> draws
    /// [L, DRAWS]`, all f32: ids of tokens, each drawn with probability proportional to `exp(logit / temperature)` by two
    /// numbers, the first of which chooses a block and the second a token of it. Where the numbers are 0 and the temperature
    /// is next to none, the first of the most likely.
    Draw,
    /// `(logits [L, V], max [L], block_max [L, B], block_sum [L, B], temperature [L], draws [L, DRAWS], ranked [L]) -> ranks
    /// [L, RANK * DRAWS]`, all f32 but `ranked`: of the first so many tokens drawn from a row each one's logit, how many logits are
    /// larger, what the tokens weigh that come before it (those of larger logits, and of equal ones those of smaller ids), and
    /// what all tokens weigh, where the most likely token weighs 1; else zeros.
    Rank,
    /// `(logits [L, V], block_max [L, B], top_k [L]) -> most_likely [L, 2 * TOP_K]`, all f32 but `top_k`: ids of the first so many
    /// tokens of a row in order (larger logits first, of equal ones smaller ids), then their logits; zeros behind both.
    TopK,
}

/// Numbers that [`Call::Rank`] finds of a token.
pub const RANK: usize = 4;

impl Call {
    /// The kernel's name in text: `call @<name>`.
    pub fn name(&self) -> &'static str {
        match self {
            Call::Embed { .. } => "embed",
            Call::RmsNorm { .. } => "rms_norm",
            Call::QuantizeRows(_) => "quantize_rows",
            Call::Gemm { .. } => "gemm",
            Call::RopeKvWrite { .. } => "rope_kv_write",
            Call::PagedAttention(_) => "paged_attention",
            Call::LogitStats => "logit_stats",
            Call::Draw => "draw",
            Call::Rank => "rank",
            Call::TopK => "top_k",
        }
    }
}

/// An operation. Operand and result types are checked and inferred in [`super::verify`].
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// A step input.
    Input(Input),
    /// A weight; its recipe says how it is made from the checkpoint.
    Weight(Recipe),
    /// `(table [V, H], ids [T]) -> [T, H]`.
    Gather,
    /// `(x [.., K], w [N, K], bias [N]?) -> [.., N]`, in `out` when given, else in x's element type.
    Linear {
        /// Split over ranks.
        parallel: Parallel,
        /// Element type of the result, when not x's.
        out: Option<DType>,
    },
    /// Elementwise sum.
    Add,
    /// Elementwise product.
    Mul,
    /// `x * sigmoid(x)`.
    Silu,
    /// `(x [.., D], w [D])`: `x * w / sqrt(mean(x²) + eps)` over the last dimension, in f32.
    RmsNorm {
        /// Added to the mean of squares.
        eps: f32,
    },
    /// `[T, H*D] -> [T, H, D]`.
    SplitHeads {
        /// H.
        heads: usize,
    },
    /// `[T, H, D] -> [T, H*D]`.
    MergeHeads,
    /// Columns `start..start+len` of the last dimension: a view.
    Slice {
        /// First column.
        start: usize,
        /// Number of columns.
        len: usize,
    },
    /// `(x [T, H, D], positions [T]) -> [T, H, D]`.
    Rope(Rope),
    /// `(q [T, H, D], k [T, KV, D], v [T, KV, D], kv) -> [T, H, D]`: writes k and v, then attends causally.
    Attend(Attention),
    /// `(x [T, ..], indices [L]) -> [L, ..]`.
    Rows,
    /// One kernel.
    Call(Call),
}

impl Op {
    /// The operation's word in text; a call's has its kernel: `call @gemm`.
    pub fn name(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Op::Input(_) => "input",
            Op::Weight(_) => "weight",
            Op::Gather => "gather",
            Op::Linear { .. } => "linear",
            Op::Add => "add",
            Op::Mul => "mul",
            Op::Silu => "silu",
            Op::RmsNorm { .. } => "rms_norm",
            Op::SplitHeads { .. } => "split_heads",
            Op::MergeHeads => "merge_heads",
            Op::Slice { .. } => "slice",
            Op::Rope(_) => "rope",
            Op::Attend(_) => "attend",
            Op::Rows => "rows",
            Op::Call(call) => return Cow::Owned(format!("call @{}", call.name())),
        })
    }

    /// Which operand is a KV cache that this operation writes.
    pub fn written_kv(&self) -> Option<u32> {
        match self {
            Op::Attend(_) => Some(3),
            Op::Call(Call::RopeKvWrite { .. }) => Some(6),
            _ => None,
        }
    }
}

//! Weight recipes: how a weight is made from tensors of a checkpoint. The same code runs when the compiler
//! embeds weights and when the runtime loads an artifact with external ones.

use crate::plan::DType;
use serde::{Deserialize, Serialize};

/// An expression over checkpoint tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recipe {
    /// A tensor of the checkpoint.
    Tensor(String),
    /// Concatenation along dimension 0.
    Concat(Vec<Recipe>),
    /// Another element type, rounded to nearest even.
    Cast(DType, Box<Recipe>),
    /// What `[N, K]` is quantised to, row by row: with a `group`, unsigned values around the middle of their range and an
    /// f16 scale for so many columns, or floats and an f32 scale; else values and one f32 scale a row.
    Quantize {
        /// Element type of the values: i8 or f8e4m3 for rows, u4, u8 or f8e4m3 for groups.
        to: DType,
        /// Columns that share a scale.
        group: Option<u32>,
        /// What is made.
        part: Part,
        /// The tensor to quantise.
        of: Box<Recipe>,
    },
    /// `[N, K]` into `[ceil(N/n)][ceil(K/k)][n][k]`, zero padded.
    Pack {
        /// Rows of a panel.
        n: u32,
        /// Adjacent k values of one row.
        k: u32,
        /// The tensor to pack.
        of: Box<Recipe>,
    },
    /// `[matrices * N, K]` into `[ceil(matrices * ceil8(N) / 64)][ceil(K/k)][64][k]`, zero padded: eight rows of each
    /// matrix in turn, and in row `r` of a block the eighth `p` of its columns at `p ^ (r % 8)`.
    Blocks {
        /// Columns of a block.
        k: u32,
        /// Matrices that lie one after the other in the tensor.
        matrices: u32,
        /// The tensor to lay out.
        of: Box<Recipe>,
    },
    /// `[matrices * N, K]` into `[ceil(N / 32) * matrices][ceil(K/k)][32][k]`, zero padded: 32 rows of each matrix in turn.
    /// Elements of 4 bits, 64 columns of them, are in the order of a matrix instruction's operand: see `fragment::deal`.
    Fragments {
        /// Columns of a piece.
        k: u32,
        /// Matrices that lie one after the other in the tensor.
        matrices: u32,
        /// The tensor to lay out.
        of: Box<Recipe>,
    },
    /// `[positions, 2, dim/2]f32`: cosines, then sines, of `position * inv_freq`, times `factor`.
    RopeTable {
        /// Inverse frequencies, `dim/2` of them.
        inv_freq: Vec<f32>,
        /// Factor on cosines and sines.
        factor: f32,
        /// Number of positions.
        positions: u32,
    },
}

/// One of the two tensors that a matrix is quantised to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// `[N, K]`.
    Values,
    /// `[N]f32`, or `[N, K/group]`: f16 of integers, f32 of floats.
    Scales,
}

/// Deepest nesting of a recipe.
const MAX_DEPTH: usize = 16;
/// Columns that may share a scale.
const GROUP: std::ops::RangeInclusive<u32> = 2..=4096;
/// Largest panel: rows, and adjacent k values.
const MAX_PANEL: u32 = 4096;
/// Pieces of a block's row that are permuted, and rows of one matrix next to each other.
pub(crate) const BLOCK_PIECES: u32 = 8;
/// Most matrices that share blocks.
const MAX_MATRICES: u32 = 64;

impl Recipe {
    /// What is wrong with it whatever the tensors: nesting, panel sizes, frequencies.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.check_below(MAX_DEPTH)
    }

    fn check_below(&self, depth: usize) -> Result<(), String> {
        let below = depth.checked_sub(1).ok_or_else(|| format!("nested deeper than {MAX_DEPTH}"))?;
        match self {
            Recipe::Tensor(_) => Ok(()),
            Recipe::Concat(parts) if parts.is_empty() => Err("concat of nothing".into()),
            Recipe::Concat(parts) => parts.iter().try_for_each(|part| part.check_below(below)),
            Recipe::Cast(_, of) => of.check_below(below),
            Recipe::Quantize { to, group, of, .. } => {
                let known = match group {
                    None => matches!(to, DType::I8 | DType::F8e4m3),
                    Some(n) => {
                        let known = matches!(to, DType::U4 | DType::U8 | DType::F8e4m3);
                        known && GROUP.contains(n) && n.is_multiple_of(2)
                    }
                };
                if !known {
                    let rule = "rows to i8 or f8e4m3, or groups of 2 to 4096, an even number, to u4, u8 or f8e4m3";
                    return Err(format!("quantisation of {group:?} columns to {to}, expected {rule}"));
                }
                of.check_below(below)
            }
            Recipe::Pack { n, k, of } => {
                let sane = |extent: u32| (1..=MAX_PANEL).contains(&extent);
                if !sane(*n) || !sane(*k) {
                    return Err(format!("pack[{n}, {k}], expected 1 to {MAX_PANEL} each"));
                }
                of.check_below(below)
            }
            Recipe::Blocks { k, matrices, of } => {
                let sane = k.is_multiple_of(BLOCK_PIECES) && (1..=MAX_PANEL).contains(k);
                if !sane || !(1..=MAX_MATRICES).contains(matrices) {
                    let columns = format!("a multiple of {BLOCK_PIECES} to {MAX_PANEL} columns");
                    return Err(format!("blocks[{k}, {matrices}], expected {columns} of 1 to {MAX_MATRICES} matrices"));
                }
                of.check_below(below)
            }
            Recipe::Fragments { k, matrices, of } => {
                if !(1..=MAX_PANEL).contains(k) || !(1..=MAX_MATRICES).contains(matrices) {
                    let expected = format!("1 to {MAX_PANEL} columns of 1 to {MAX_MATRICES} matrices");
                    return Err(format!("fragments[{k}, {matrices}], expected {expected}"));
                }
                of.check_below(below)
            }
            Recipe::RopeTable { inv_freq, factor, .. } => {
                let finite = factor.is_finite() && inv_freq.iter().all(|f| f.is_finite());
                if finite { Ok(()) } else { Err("rope table with a frequency or factor that is not finite".into()) }
            }
        }
    }

    /// Keys of all checkpoint tensors it reads, in order.
    pub fn sources(&self) -> Vec<&str> {
        match self {
            Recipe::Tensor(name) => vec![name],
            Recipe::Concat(parts) => parts.iter().flat_map(Recipe::sources).collect(),
            Recipe::Cast(_, of)
            | Recipe::Quantize { of, .. }
            | Recipe::Pack { of, .. }
            | Recipe::Blocks { of, .. }
            | Recipe::Fragments { of, .. } => of.sources(),
            Recipe::RopeTable { .. } => vec![],
        }
    }
}

//! Matrices that a checkpoint stores quantised, in the layouts of GPTQ, AWQ, compressed-tensors and Transformers' fp8.
//!
//! | module | what |
//! |---|---|
//! | [`config`] | `quantization_config` of a config.json |
//! | [`fields`] | small integers packed into words |
//! | [`matrix`] | one matrix: its tensors, its values, the numbers that they stand for |
//! | [`layout`] | which tensors of a checkpoint are which part of a matrix |
//!
//! A matrix is given out under the name of the tensor that it stands for (`….weight`) as the numbers that its values stand
//! for, in f32; and, where kernels can multiply with them, its parts under names of their own ([`Part`]): the values bit for
//! bit, with their scales and zeros.
//!
//! Sources of the layouts: AutoGPTQ's and GPTQModel's `QuantLinear.pack`, AutoAWQ's `WQLinear_GEMM.from_linear`, and
//! compressed-tensors' `pack_to_int32`, and the DeepSeek-V3 technical report's blocks of 128 × 128; of the formulas: `number = scale * (value - zero)` in all of them.

pub mod config;
mod fields;
pub(crate) mod layout;
mod matrix;

pub(crate) use layout::Quantized;

use crate::plan::DType;

/// What of a quantised matrix a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The numbers `[N, K]f32`.
    Numbers,
    /// `[N, K]` of [`Stored::values`].
    Values,
    /// `[N, K/group]` of [`Stored::scales`], or `[N]f32` without groups.
    Scales,
    /// `[N, K/group]f16`: the values that stand for zero, which are integers.
    Zeros,
}

impl Part {
    /// Every part.
    pub const ALL: [Part; 4] = [Part::Numbers, Part::Values, Part::Scales, Part::Zeros];

    /// The name of this part of the matrix `name`.
    pub fn name(self, name: &str) -> String {
        match self {
            Part::Numbers => name.to_string(),
            Part::Values => format!("{name}.values"),
            Part::Scales => format!("{name}.scales"),
            Part::Zeros => format!("{name}.zeros"),
        }
    }
}

/// How a matrix is stored whose parts kernels can multiply with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stored {
    /// Element type of its values: i8 or e4m3 with a scale a row, e4m3 with one for each 128 columns of a row, u4 or u8 with one
    /// for each group of columns.
    pub values: DType,
    /// Columns that share a scale; all of a row where absent.
    pub group: Option<u32>,
    /// Element type of the scales.
    pub scales: DType,
    /// Whether each group has a zero of its own; else the middle of the values' range stands for zero, and 0 of i8.
    pub zeros: bool,
}

/// The largest group of values that kernels take at a time: larger ones are handed out as several of one scale.
const LARGEST_GROUP: u64 = 128;
/// The smallest.
const SMALLEST_GROUP: u64 = 32;

/// Columns that share a scale in what is given out, where they are stored in groups of `group`.
fn group_given(group: u64, columns: u64) -> Option<u64> {
    let whole = |n: &u64| group.is_multiple_of(*n) && columns.is_multiple_of(*n);
    let exact =
        Some(group).filter(|n| (SMALLEST_GROUP..=LARGEST_GROUP).contains(n) && n.is_multiple_of(SMALLEST_GROUP));
    exact.into_iter().chain([LARGEST_GROUP, LARGEST_GROUP / 2, SMALLEST_GROUP]).find(whole)
}

#[cfg(test)]
mod tests {
    use super::group_given;

    #[test]
    fn groups_are_given_out_whole_or_in_equal_pieces() {
        let given = [(32, 64), (128, 256), (96, 192), (256, 512), (192, 192), (320, 320), (16, 64), (128, 192)];
        let given = given.map(|(group, columns)| group_given(group, columns));
        assert_eq!(given, [Some(32), Some(128), Some(96), Some(128), Some(64), Some(64), None, Some(64)]);
    }
}

//! Quantisation: numbers to values with scales, and back.
//!
//! Invariants: a row's values depend on that row alone; numbers that some values and scales stand for exactly are kept by
//! [`weight`] where their scales are those of this scheme.

use super::Tensor;
use crate::{graph::Quantize, recipe::Part, types::DType};

/// A row whose largest magnitude is below this is scaled as if it had it, so that no scale's inverse is infinite.
const LEAST: f32 = 1e-30;

/// What rows of activations are quantised to: values, scales, and the groups' sums.
pub(super) fn rows(x: &Tensor, how: Quantize) -> Vec<Tensor> {
    let k = x.last();
    let (values, scales): (Vec<Vec<f32>>, Vec<f32>) =
        x.floats().chunks_exact(k.max(1)).map(|row| symmetric(row, how.to)).unzip();
    let (values, dims) = (values.concat(), &x.dims[..x.dims.len() - 1]);
    let sums = how.group.map(|group| {
        let sums = values.chunks_exact(group).map(|values| values.iter().sum()).collect();
        Tensor::f32(&[dims, &[k / group]].concat(), sums)
    });
    [Tensor::float(&x.dims, how.to, values), Tensor::f32(dims, scales)].into_iter().chain(sums).collect()
}

/// The numbers that values in groups of `group` stand for; scales lie in the row-major order of the groups.
pub(super) fn numbers(values: &Tensor, group: usize, scales: &Tensor) -> Tensor {
    let zero = zero_point(values.dtype);
    let groups = values.floats().chunks_exact(group.max(1)).zip(scales.floats());
    Tensor::f32(&values.dims, groups.flat_map(|(group, s)| group.iter().map(move |q| (q - zero) * s)).collect())
}

/// What stands for zero.
fn zero_point(dtype: DType) -> f32 {
    match dtype {
        DType::U4 | DType::U8 => (dtype.largest() + 1.0) / 2.0,
        _ => 0.0,
    }
}

/// One of the two tensors that the matrix `of` is quantised to; nothing where its shape does not allow it.
pub(super) fn weight(of: &Tensor, to: DType, group: Option<usize>, part: Part) -> Option<Tensor> {
    let [n, k] = of.dims[..] else { return None };
    let run = group.unwrap_or(k);
    if run == 0 || !k.is_multiple_of(run) {
        return None;
    }
    let quantized = of.floats().chunks_exact(run).map(|run| match to {
        DType::U4 => grouped(run, 8),
        DType::U8 => grouped(run, 128),
        _ => symmetric(run, to),
    });
    let (values, scales): (Vec<Vec<f32>>, Vec<f32>) = quantized.unzip();
    Some(match (part, group) {
        (Part::Values, _) => Tensor::float(&of.dims, to, values.concat()),
        (Part::Scales, None) => Tensor::f32(&[n], scales),
        (Part::Scales, Some(_)) => Tensor::float(&[n, k / run], DType::F16, scales),
    })
}

/// Values and scale where the largest magnitude becomes the type's largest.
fn symmetric(x: &[f32], to: DType) -> (Vec<f32>, f32) {
    let largest = x.iter().fold(LEAST, |a, x| a.max(x.abs()));
    let inverse = to.largest() / largest;
    (x.iter().map(|x| to.saturate(x * inverse)).collect(), largest / to.largest())
}

/// Unsigned values around `zero` and the f16 scale, of those that map the number of the largest magnitude to an integer
/// and the best of them, the one with the smallest squared error; of equals the first.
fn grouped(x: &[f32], zero: i32) -> (Vec<f32>, f32) {
    let extreme = x.iter().fold(0f32, |a, x| if x.abs() > a.abs() { *x } else { a });
    let quantize = |scale: f32| -> (Vec<f32>, f32, f32) {
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let level = |x: &f32| (x * inverse).round_ties_even().clamp(-zero as f32, (zero - 1) as f32);
        let levels: Vec<f32> = x.iter().map(level).collect();
        let error = x.iter().zip(&levels).fold(0f32, |sum, (x, q)| sum + (x - q * scale) * (x - q * scale));
        (levels, scale, error)
    };
    let mut best = quantize(DType::F16.round(extreme / -zero as f32));
    for level in candidates(zero) {
        let other = quantize(DType::F16.round(extreme / level as f32));
        if other.2 < best.2 {
            best = other;
        }
    }
    (best.0.iter().map(|q| q + zero as f32).collect(), best.1)
}

/// Levels that the extreme may take beside the lowest: all of 4 bits, the highest of 8.
fn candidates(zero: i32) -> impl Iterator<Item = i32> {
    let least = if zero == 8 { 1 } else { zero - 1 };
    (least..zero).rev().flat_map(move |level| [level, -level])
}

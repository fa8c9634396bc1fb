//! Quantisation: numbers to values with scales, and back.
//!
//! Invariants: a row's values depend on that row alone; numbers that some values and scales stand for exactly are kept by
//! [`weight`] where their scales are those of this scheme.

use super::Tensor;
use crate::{
    graph::Quantize,
    recipe::{Part, scale_dtype},
    types::DType,
};

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

/// The numbers that values in groups of `group` stand for; scales, and zeros, lie in the row-major order of the groups.
pub(super) fn numbers(values: &Tensor, group: usize, scales: &Tensor, zeros: Option<&Tensor>) -> Tensor {
    let middle = zero_point(values.dtype);
    let zero = |i: usize| zeros.map_or(middle, |zeros| zeros.floats()[i]);
    let groups = values.floats().chunks_exact(group.max(1)).zip(scales.floats()).enumerate();
    let numbers = groups.flat_map(|(i, (group, s))| group.iter().map(move |q| (q - zero(i)) * s));
    Tensor::f32(&values.dims, numbers.collect())
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
        DType::U4 => grouped(run, 8.0),
        DType::U8 => grouped(run, 128.0),
        _ => symmetric(run, to),
    });
    let (values, scales): (Vec<Vec<f32>>, Vec<f32>) = quantized.unzip();
    Some(match (part, group) {
        (Part::Values, _) => Tensor::float(&of.dims, to, values.concat()),
        (Part::Scales, None) => Tensor::f32(&[n], scales),
        (Part::Scales, Some(_)) => Tensor::float(&[n, k / run], scale_dtype(to, group), scales),
    })
}

/// Values and scale where the largest magnitude becomes the type's largest.
fn symmetric(x: &[f32], to: DType) -> (Vec<f32>, f32) {
    let largest = x.iter().fold(LEAST, |a, x| a.max(x.abs()));
    let inverse = to.largest() / largest;
    (x.iter().map(|x| to.saturate(x * inverse)).collect(), largest / to.largest())
}

/// Levels that the number of the largest magnitude may take beside the lowest, of 4 bits.
const LEVELS: [f32; 18] =
    [7.0, 7.5, -7.5, -8.5, -9.0, -7.0, 6.0, -6.0, 5.0, -5.0, 4.0, -4.0, 3.0, -3.0, 2.0, -2.0, 1.0, -1.0];
/// How many of them are refined.
const REFINED: usize = 6;

/// Unsigned values around `zero` and the f16 scale, of those that map the number of the largest magnitude to one of some
/// levels and their least-squares refinements the one with the smallest squared error; of equals the first.
fn grouped(x: &[f32], zero: f32) -> (Vec<f32>, f32) {
    let extreme = x.iter().fold(0f32, |a, x| if x.abs() > a.abs() { *x } else { a });
    let levels: &[f32] = if zero == 8.0 { &LEVELS } else { &[zero - 1.0, 1.0 - zero] };
    let lowest = DType::F16.round(extreme / -zero);
    let mut scales = vec![lowest, refined(x, zero, lowest)];
    for (i, level) in levels.iter().enumerate() {
        let scale = DType::F16.round(extreme / level);
        scales.push(scale);
        scales.extend((i < REFINED).then(|| refined(x, zero, scale)));
    }
    let error = |scale: f32| {
        let levels = levels_of(x, zero, scale);
        sum(x.iter().zip(levels).map(|(x, q)| (x - q * scale) * (x - q * scale)).collect())
    };
    let mut best = (lowest, error(lowest));
    for scale in scales {
        let found = error(scale);
        if found < best.1 {
            best = (scale, found);
        }
    }
    (levels_of(x, zero, best.0).iter().map(|q| q + zero).collect(), best.0)
}

fn levels_of(x: &[f32], zero: f32, scale: f32) -> Vec<f32> {
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    x.iter().map(|x| (x * inverse).round_ties_even().clamp(-zero, zero - 1.0)).collect()
}

/// The scale with which the levels that `scale` gives have the smallest squared error.
fn refined(x: &[f32], zero: f32, scale: f32) -> f32 {
    let levels = levels_of(x, zero, scale);
    let squares = sum(levels.iter().map(|q| q * q).collect());
    let products = sum(x.iter().zip(&levels).map(|(x, q)| x * q).collect());
    if squares == 0.0 { scale } else { DType::F16.round(products / squares) }
}

/// Sixteen sums side by side, then their sum: the order that makes scales those of an artifact.
fn sum(terms: Vec<f32>) -> f32 {
    let (lanes, rest) = terms.as_chunks::<16>();
    let mut sums = [0f32; 16];
    for lane in lanes {
        sums.iter_mut().zip(lane).for_each(|(sum, x)| *sum += x);
    }
    sums.iter().sum::<f32>() + rest.iter().sum::<f32>()
}

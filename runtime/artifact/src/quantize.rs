//! Quantisation of weights: rows of f32 numbers to values, or to the scales of the values.
//!
//! Invariants: a row's bytes depend on that row alone; numbers that are stored so already (ggml's Q4_0 and Q8_0) keep their
//! value bit for bit, as the scale with the smallest error has none.

use crate::{convert, plan::DType, recipe::Part};
use half::f16;

/// Which values, and which numbers share a scale.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scheme {
    /// Element type of the values.
    pub(crate) to: DType,
    /// Columns that share a scale; a whole row where absent.
    pub(crate) group: Option<u64>,
}

/// Largest value of an i8, of either sign.
const I8: f32 = 127.0;
/// Largest value of E4M3.
const E4M3: f32 = 448.0;

/// A row whose largest magnitude is below this is scaled as if it had it, so that no scale's inverse is infinite.
const LEAST: f32 = 1e-30;

impl Scheme {
    /// Whether the scales of a row are searched for, which takes as long as all else: those of groups of integers, in f16.
    pub(crate) fn searches(self) -> bool {
        self.group.is_some() && self.to != DType::F8e4m3
    }
}

/// Numbers of a row, little-endian f32.
pub(crate) fn numbers(row: &[u8]) -> Vec<f32> {
    row.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// Makes values or scales of a row; `out` holds exactly these.
///
/// # Errors
/// A scale that f16 does not hold.
pub(crate) fn row(scheme: Scheme, part: Part, numbers: &[f32], out: &mut [u8]) -> Result<(), String> {
    if scheme.searches() {
        scaled(scheme, part, numbers, &search(scheme, numbers)?, out);
        return Ok(());
    }
    let run = scheme.group.map_or(numbers.len(), |group| group as usize).max(1);
    let made = if part == Part::Values { run } else { size_of::<f32>() };
    for (numbers, out) in numbers.chunks_exact(run).zip(out.chunks_exact_mut(made)) {
        whole(numbers, scheme.to, part, out);
    }
    Ok(())
}

/// One scale: the largest magnitude becomes the largest value.
fn whole(numbers: &[f32], to: DType, part: Part, out: &mut [u8]) {
    let most = if to == DType::F8e4m3 { E4M3 } else { I8 };
    let largest = numbers.iter().fold(LEAST, |a, x| a.max(x.abs()));
    match part {
        Part::Scales => out.copy_from_slice(&(largest / most).to_le_bytes()),
        Part::Values => {
            let inverse = most / largest;
            let integer = |x: f32| (round_to_integer(x.clamp(-128.0, I8)) as i8).cast_unsigned();
            let pairs = out.iter_mut().zip(numbers);
            match to {
                DType::F8e4m3 => pairs.for_each(|(out, x)| *out = convert::e4m3_bits(x * inverse)),
                _ => pairs.for_each(|(out, x)| *out = integer(x * inverse)),
            }
        }
    }
}

/// The scale of each group of a row.
///
/// # Errors
/// A scale that f16 does not hold.
pub(crate) fn search(scheme: Scheme, numbers: &[f32]) -> Result<Box<[f16]>, String> {
    let group = scheme.group.map_or(numbers.len(), |group| group as usize).max(1);
    let best = if scheme.to == DType::U4 { best_scale::<8> } else { best_scale::<128> };
    let scale = |numbers| {
        let scale = f16::from_f32(best(numbers));
        scale.is_finite().then_some(scale).ok_or("numbers whose scale is larger than f16 holds")
    };
    Ok(numbers.chunks_exact(group).map(scale).collect::<Result<_, _>>()?)
}

/// Makes values or scales of a row whose groups have these scales; for scales, `numbers` may be empty.
pub(crate) fn scaled(scheme: Scheme, part: Part, numbers: &[f32], scales: &[f16], out: &mut [u8]) {
    let each = (out.len() / scales.len().max(1)).max(1);
    let group = (numbers.len() / scales.len().max(1)).max(1);
    let of_values = if scheme.to == DType::U4 { values::<8> } else { values::<128> };
    for (i, (scale, out)) in scales.iter().zip(out.chunks_exact_mut(each)).enumerate() {
        match part {
            Part::Scales => out.copy_from_slice(&scale.to_le_bytes()),
            Part::Values => of_values(&numbers[i * group..][..group], scale.to_f32(), out),
        }
    }
}

/// Unsigned values around `ZERO`: bytes, or pairs of 4 bits, the first in the low ones.
fn values<const ZERO: i32>(numbers: &[f32], scale: f32, out: &mut [u8]) {
    let inverse = inverse(scale);
    let value = |x: f32| (level::<ZERO>(x, inverse) as i32 + ZERO) as u8;
    match ZERO {
        8 => {
            let pairs = numbers.as_chunks::<2>().0;
            out.iter_mut().zip(pairs).for_each(|(out, [a, b])| *out = value(*a) | value(*b) << 4);
        }
        _ => out.iter_mut().zip(numbers).for_each(|(out, x)| *out = value(*x)),
    }
}

fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// The signed level of a number.
fn level<const ZERO: i32>(x: f32, inverse: f32) -> f32 {
    round_to_integer((x * inverse).clamp(-ZERO as f32, (ZERO - 1) as f32))
}

/// A number of magnitude below 2^22 rounded to nearest even. Why not by its own instruction: the oldest x86-64 has none, and a call for
/// each number takes most of the search's time; next to 1.5 * 2^23 numbers are integers.
fn round_to_integer(x: f32) -> f32 {
    const INTEGERS: f32 = 12_582_912.0;
    (x + INTEGERS) - INTEGERS
}

/// Levels that the number of the largest magnitude may take, the lowest first: then those around the ends of the range,
/// and of 4 bits every other, so that whatever 4-bit values made the numbers is found.
const LEVELS: [f32; 18] =
    [7.0, 7.5, -7.5, -8.5, -9.0, -7.0, 6.0, -6.0, 5.0, -5.0, 4.0, -4.0, 3.0, -3.0, 2.0, -2.0, 1.0, -1.0];
/// How many of them are worth refining.
const REFINED: usize = 6;

/// The f16 scale with the smallest squared error of those that [`LEVELS`] give and of their least-squares refinements; of
/// equals the first.
fn best_scale<const ZERO: i32>(numbers: &[f32]) -> f32 {
    let extreme = numbers.iter().fold(0f32, |a, x| if x.abs() > a.abs() { *x } else { a });
    let mut best = Best { scale: round(extreme / -ZERO as f32), error: f32::INFINITY };
    best.offer::<ZERO>(numbers, best.scale);
    let more: &[f32] = if ZERO == 8 { &LEVELS } else { &[(ZERO - 1) as f32, 1.0 - ZERO as f32] };
    if best.error > 0.0 {
        best.offer::<ZERO>(numbers, refined::<ZERO>(numbers, best.scale));
    }
    for (i, level) in more.iter().enumerate() {
        if best.error == 0.0 {
            break;
        }
        let scale = round(extreme / level);
        best.offer::<ZERO>(numbers, scale);
        if i < REFINED && best.error > 0.0 {
            best.offer::<ZERO>(numbers, refined::<ZERO>(numbers, scale));
        }
    }
    best.scale
}

fn round(scale: f32) -> f32 {
    f16::from_f32(scale).to_f32()
}

/// The best scale so far.
struct Best {
    scale: f32,
    error: f32,
}

impl Best {
    fn offer<const ZERO: i32>(&mut self, numbers: &[f32], scale: f32) {
        let inverse = inverse(scale);
        let error = sum(numbers, |x| {
            let difference = x - level::<ZERO>(x, inverse) * scale;
            difference * difference
        });
        if error < self.error {
            *self = Best { scale, error };
        }
    }
}

/// The scale with which the levels that `scale` gives have the smallest squared error.
fn refined<const ZERO: i32>(numbers: &[f32], scale: f32) -> f32 {
    let inverse = inverse(scale);
    let level = |x: f32| level::<ZERO>(x, inverse);
    let squares = sum(numbers, |x| level(x) * level(x));
    if squares == 0.0 { scale } else { round(sum(numbers, |x| x * level(x)) / squares) }
}

/// A sum in a fixed order that vector units can follow.
fn sum(numbers: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let (lanes, rest) = numbers.as_chunks::<16>();
    let mut sums = [0f32; 16];
    for lane in lanes {
        sums.iter_mut().zip(lane).for_each(|(sum, x)| *sum += term(*x));
    }
    sums.iter().sum::<f32>() + rest.iter().map(|x| term(*x)).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_rounded_to_nearest_even() {
        for x in (-1100..=1100).map(|n| n as f32 / 8.0).chain([0.499_999_97, -0.499_999_97, 127.499_99, 1e-30]) {
            assert_eq!(round_to_integer(x), x.round_ties_even(), "{x}");
        }
    }
}

//! Runs of logits at once: which may be chosen, the largest, and weights: exponentials of what they lie below the largest,
//! and lines on which weights lie one after the other.
//!
//! Invariants: every processor computes the same bits, as sums have one order and nothing is contracted.

use crate::forward::LOGITS_BLOCK;
use multiversion::multiversion;

/// Partial sums of a run, and weights of a line that are summed beforehand.
const LANES: usize = 16;
/// Groups that the largest of are found at once.
pub(crate) const GROUPS: usize = 4 * LANES;
/// Below this a weight is 0.
const LOWEST: f32 = -87.0;

/// From logits to weights: 1 for the largest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    /// The largest logit.
    pub(crate) max: f32,
    /// One over the temperature.
    pub(crate) inverse: f32,
}

impl Scale {
    /// The weight of a logit.
    #[inline(always)]
    pub(crate) fn weight(&self, logit: f32) -> f32 {
        exp((logit - self.max) * self.inverse)
    }
}

/// Weights one after the other on a line. Memory is used again.
#[derive(Default)]
pub(crate) struct Line {
    /// Zeros behind, up to whole groups.
    weights: Vec<f32>,
    groups: Vec<f64>,
    total: f64,
}

impl Line {
    /// Lays out the weights of logits.
    pub(crate) fn lay_logits(&mut self, scale: Scale, logits: &[f32]) {
        self.resize(logits.len());
        weigh(scale, logits, &mut self.weights, &mut self.groups);
        self.total = self.groups.iter().sum();
    }

    /// Lays out the weights of runs, of which the largest logits are known, and the sums of weights relative to those.
    pub(crate) fn lay_runs(&mut self, scale: Scale, max: &[f32], sum: &[f32]) {
        self.resize(max.len().min(sum.len()));
        weigh_runs(scale, max, sum, &mut self.weights, &mut self.groups);
        self.total = self.groups.iter().sum();
    }

    /// The line's length.
    pub(crate) fn total(&self) -> f64 {
        self.total
    }

    /// Weight `i`.
    pub(crate) fn weight(&self, i: usize) -> f64 {
        self.weights.get(i).copied().map_or(0.0, f64::from)
    }

    /// Which weight is at this fraction of the line. The last that weighs anything, where rounding leaves none.
    pub(crate) fn find(&self, fraction: f64) -> Option<usize> {
        let (group, rest) = at(self.groups.iter().copied(), fraction * self.total)?;
        let first = group * LANES;
        let (i, _) = at(self.weights[first..][..LANES].iter().copied().map(f64::from), rest)?;
        Some(first + i)
    }

    fn resize(&mut self, weights: usize) {
        let groups = weights.div_ceil(LANES);
        self.groups.resize(groups, 0.0);
        self.weights.resize(groups * LANES, 0.0);
        self.weights[weights..].fill(0.0);
    }
}

/// Which of the weights is at this place on their line, and how far within it.
pub(crate) fn at(weights: impl Iterator<Item = f64>, place: f64) -> Option<(usize, f64)> {
    let (mut rest, mut last) = (place, None);
    for (i, weight) in weights.enumerate().filter(|(_, weight)| *weight > 0.0) {
        last = Some((i, rest));
        if rest < weight {
            break;
        }
        rest -= weight;
    }
    last
}

/// The weight of each logit, and of each group of them.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx2", "x86_64+avx2"))]
fn weigh(scale: Scale, logits: &[f32], weights: &mut [f32], groups: &mut [f64]) {
    for (weight, logit) in weights.iter_mut().zip(logits) {
        *weight = scale.weight(*logit);
    }
    sum_groups(weights, groups);
}

/// Makes weights of logits.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx2", "x86_64+avx2"))]
pub(crate) fn to_weights(scale: Scale, logits: &mut [f32]) {
    logits.iter_mut().for_each(|logit| *logit = scale.weight(*logit));
}

/// The weight of each run, and of each group of them.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx2", "x86_64+avx2"))]
fn weigh_runs(scale: Scale, max: &[f32], sum: &[f32], weights: &mut [f32], groups: &mut [f64]) {
    for (weight, (max, sum)) in weights.iter_mut().zip(max.iter().zip(sum)) {
        *weight = sum * scale.weight(*max);
    }
    sum_groups(weights, groups);
}

/// How many logits are above `logit`, and the weight of those that are at least `bound`.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx2", "x86_64+avx2"))]
pub(crate) fn above(scale: Scale, logits: &[f32], logit: f32, bound: f32) -> (u32, f64) {
    let mut lanes = [0.0f32; LANES];
    let (whole, rest) = logits.as_chunks::<LANES>();
    for chunk in whole {
        for (lane, l) in lanes.iter_mut().zip(chunk) {
            *lane += if *l >= bound { scale.weight(*l) } else { 0.0 };
        }
    }
    for (lane, l) in lanes.iter_mut().zip(rest) {
        *lane += if *l >= bound { scale.weight(*l) } else { 0.0 };
    }
    (logits.iter().map(|l| u32::from(*l > logit)).sum(), lanes.iter().map(|lane| f64::from(*lane)).sum())
}

/// The largest logit of each run and, where one over a temperature is given, the sum of weights relative to it.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx2", "x86_64+avx2"))]
pub(crate) fn block_stats(inverse: Option<f32>, logits: &[f32], max: &mut [f32], sum: &mut [f32]) {
    for (logits, max) in logits.chunks(LOGITS_BLOCK).zip(&mut *max) {
        *max = largest(logits);
    }
    let Some(inverse) = inverse else { return };
    for ((logits, max), sum) in logits.chunks(LOGITS_BLOCK).zip(max).zip(sum) {
        *sum = sum_weights(Scale { max: *max, inverse }, logits);
    }
}

/// Of groups of weights, in the order of a tree.
#[inline(always)]
fn sum_groups(weights: &[f32], groups: &mut [f64]) {
    for (group, sum) in weights.as_chunks::<LANES>().0.iter().zip(groups) {
        let by_8: [f32; 8] = std::array::from_fn(|i| group[i] + group[i + 8]);
        let by_4: [f32; 4] = std::array::from_fn(|i| by_8[i] + by_8[i + 4]);
        *sum = f64::from((by_4[0] + by_4[2]) + (by_4[1] + by_4[3]));
    }
}

#[inline(always)]
fn sum_weights(scale: Scale, logits: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (whole, rest) = logits.as_chunks::<LANES>();
    for chunk in whole {
        for (lane, logit) in lanes.iter_mut().zip(chunk) {
            *lane += scale.weight(*logit);
        }
    }
    for (lane, logit) in lanes.iter_mut().zip(rest) {
        *lane += scale.weight(*logit);
    }
    lanes.iter().sum()
}

/// The largest of these; negative infinity of none.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx2", "x86_64+avx2"))]
pub(crate) fn largest(logits: &[f32]) -> f32 {
    // Maxima of lanes, as one maximum after the other waits for the one before.
    let (whole, rest) = logits.as_chunks::<GROUPS>();
    let lanes = largest_of_lanes(whole);
    let mut few = [f32::NEG_INFINITY; LANES];
    for part in lanes.as_chunks::<LANES>().0 {
        for (lane, other) in few.iter_mut().zip(part) {
            *lane = if *other > *lane { *other } else { *lane };
        }
    }
    rest.iter().chain(&few).copied().fold(f32::NEG_INFINITY, f32::max)
}

/// The largest of each group of these, of which number `i` is in group `i % GROUPS`; negative infinity of none.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx2", "x86_64+avx2"))]
pub(crate) fn largest_of_groups(values: &[f32]) -> [f32; GROUPS] {
    let (whole, rest) = values.as_chunks::<GROUPS>();
    let mut lanes = largest_of_lanes(whole);
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane = lane.max(*value);
    }
    lanes
}

#[inline(always)]
fn largest_of_lanes(chunks: &[[f32; GROUPS]]) -> [f32; GROUPS] {
    let mut lanes = [f32::NEG_INFINITY; GROUPS];
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = if *value > *lane { *value } else { *lane };
        }
    }
    lanes
}

/// Copies those logits into `kept` whose bits are set, 32 to a word from the lowest on.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx2", "x86_64+avx2"))]
pub(crate) fn keep(words: &[u32], logits: &[f32], kept: &mut [f32]) {
    const WORD: usize = u32::BITS as usize;
    let ((logits, rest), (kept, kept_rest)) = (logits.as_chunks::<WORD>(), kept.as_chunks_mut::<WORD>());
    for ((logits, kept), bits) in logits.iter().zip(kept).zip(words).filter(|(_, bits)| **bits != 0) {
        for i in 0..WORD {
            kept[i] = if bits >> i & 1 != 0 { logits[i] } else { kept[i] };
        }
    }
    let last = words.get(logits.len()).copied().unwrap_or(0);
    for (i, (logit, kept)) in rest.iter().zip(kept_rest).enumerate() {
        *kept = if last >> i & 1 != 0 { *logit } else { *kept };
    }
}

/// e to the power of `x`, which is at most 0, to three units in the last place; 0 far below and for what is no number.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // Added and taken away again it rounds to a whole number, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts, the first of few bits, so that its product with a whole number is exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    let clamped = x.max(LOWEST);
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * LN_2[0] - n * LN_2[1];
    // Taylor's series as far as half of ln 2 needs it.
    let series = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    let p = series.into_iter().fold(0.0, |p, c| p * r + c);
    let power = f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23));
    if x >= LOWEST { power } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn exponentials_are_exact_to_rounding(x in -87.0f32..=0.0) {
            let expected = f64::from(x).exp();
            prop_assert!((f64::from(exp(x)) - expected).abs() <= 4e-7 * expected, "{x}: {} {expected}", exp(x));
        }

        #[test]
        fn runs_weigh_what_their_logits_do(
            logits in proptest::collection::vec(-40.0f32..1.0, 1..900), temperature in 0.01f32..2.5,
        ) {
            let scale = Scale { max: largest(&logits), inverse: temperature.recip() };
            let runs = logits.len().div_ceil(LOGITS_BLOCK);
            let (mut max, mut sum, mut line) = (vec![0.0; runs], vec![0.0; runs], Line::default());
            block_stats(Some(scale.inverse), &logits, &mut max, &mut sum);
            line.lay_runs(scale, &max, &sum);
            let weight = |l: &f32| (f64::from(l - scale.max) * f64::from(scale.inverse)).exp();
            for (i, run) in logits.chunks(LOGITS_BLOCK).enumerate() {
                prop_assert_eq!(max[i], largest(run));
                let expected: f64 = run.iter().map(weight).sum();
                prop_assert!((line.weight(i) - expected).abs() <= 2e-5 * expected + 1e-30, "{} {expected}", line.weight(i));
            }
            let expected: f64 = logits.iter().map(weight).sum();
            prop_assert!((line.total() - expected).abs() <= 2e-5 * expected);
        }

        #[test]
        fn a_place_on_a_line_is_in_the_weight_that_lies_there(
            logits in proptest::collection::vec(-6.0f32..0.0, 1..300), fraction in 0.0f64..1.0,
        ) {
            let (scale, mut line) = (Scale { max: 0.0, inverse: 1.0 }, Line::default());
            line.lay_logits(scale, &[0.0; 300]);
            line.lay_logits(scale, &logits);
            let i = line.find(fraction).unwrap();
            let start: f64 = (0..i).map(|i| line.weight(i)).sum();
            let (place, rounding) = (fraction * line.total(), 1e-5 * line.total());
            prop_assert!(i < logits.len() && start - rounding < place && place < start + line.weight(i) + rounding);
        }

        #[test]
        fn what_is_above_a_logit_is_counted_and_weighed(
            logits in proptest::collection::vec((-20i32..0).prop_map(|l| l as f32 / 4.0), 1..300), at: usize,
        ) {
            let (scale, logit) = (Scale { max: 0.0, inverse: 1.5 }, logits[at % logits.len()]);
            let weigh = |bound: f32| logits.iter().filter(|l| **l >= bound).map(|l| f64::from(scale.weight(*l))).sum::<f64>();
            let count = logits.iter().filter(|l| **l > logit).count() as u32;
            for bound in [logit, logit.next_up()] {
                let (found, weight) = above(scale, &logits, logit, bound);
                prop_assert_eq!(found, count);
                prop_assert!((weight - weigh(bound)).abs() <= 1e-5 * weight);
            }
        }
    }

    proptest! {
        #[test]
        fn the_largest_is_the_largest(logits in proptest::collection::vec(-40.0f32..1.0, 0..300)) {
            prop_assert_eq!(largest(&logits), logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }

        #[test]
        fn what_has_a_bit_is_kept(logits in proptest::collection::vec(-40.0f32..1.0, 0..300), words in proptest::collection::vec(prop_oneof![Just(0), Just(u32::MAX), any::<u32>()], 0..11)) {
            let mut kept = vec![f32::NEG_INFINITY; logits.len()];
            keep(&words, &logits, &mut kept);
            let has = |i: usize| words.get(i / 32).is_some_and(|w| w >> (i % 32) & 1 != 0);
            let expected = (0..logits.len()).map(|i| if has(i) { logits[i] } else { f32::NEG_INFINITY });
            prop_assert_eq!(kept, expected.collect::<Vec<f32>>());
        }
    }

    #[test]
    fn what_is_forbidden_weighs_nothing() {
        assert_eq!([exp(0.0), exp(f32::NEG_INFINITY), exp(f32::NAN), exp(-1e30)], [1.0, 0.0, 0.0, 0.0]);
        let (mut max, mut sum, mut line) = ([0.0; 2], [1.0; 2], Line::default());
        block_stats(Some(1.0), &[f32::NEG_INFINITY; 300], &mut max, &mut sum);
        assert_eq!((max, sum), ([f32::NEG_INFINITY; 2], [0.0; 2]));
        line.lay_runs(Scale { max: 0.0, inverse: 1.0 }, &max, &sum);
        assert_eq!((line.total(), line.find(0.5)), (0.0, None));
    }
}

//! Runs of logits at once: which may be chosen, the largest, and weights: exponentials of what they lie below the largest.
//!
//! Invariants: every processor computes the same bits, as sums have one order and nothing is contracted.

use multiversion::multiversion;

/// Partial sums of a run.
const LANES: usize = 16;
/// Below this a weight is 0.
const LOWEST: f32 = -87.0;

/// From logits to weights: 1 for the largest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    /// The largest logit.
    pub(crate) max: f32,
    /// One over the temperature.
    pub(crate) inverse: f32,
    /// Smaller weights are 0.
    pub(crate) min: f32,
}

impl Scale {
    /// The weight of a logit.
    #[inline(always)]
    pub(crate) fn weight(&self, logit: f32) -> f32 {
        let weight = exp((logit - self.max) * self.inverse);
        if weight >= self.min { weight } else { 0.0 }
    }
}

/// The weight of all logits of a run.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx2", "x86_64+avx2"))]
pub(crate) fn sum(scale: Scale, logits: &[f32]) -> f64 {
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
    lanes.iter().map(|lane| f64::from(*lane)).sum()
}

/// The largest of these; negative infinity of none.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx2", "x86_64+avx2"))]
pub(crate) fn largest(logits: &[f32]) -> f32 {
    // Maxima of lanes, as one maximum after the other waits for the one before.
    let mut lanes = [f32::NEG_INFINITY; 4 * LANES];
    let (whole, rest) = logits.as_chunks::<{ 4 * LANES }>();
    for chunk in whole {
        for (lane, logit) in lanes.iter_mut().zip(chunk) {
            *lane = if *logit > *lane { *logit } else { *lane };
        }
    }
    rest.iter().chain(&lanes).copied().fold(f32::NEG_INFINITY, f32::max)
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
        fn a_run_weighs_what_its_logits_do(logits in proptest::collection::vec(-40.0f32..1.0, 0..300), inverse in 0.4f32..90.0, min in 0.0f32..0.1) {
            let scale = Scale { max: 1.0, inverse, min };
            let expected: f64 = logits.iter().map(|l| f64::from(scale.weight(*l))).sum();
            prop_assert!((sum(scale, &logits) - expected).abs() <= 1e-5 * expected);
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
    }
}

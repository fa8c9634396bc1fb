//! From a row of logits to a token at random, reading as little of the row as the choice needs.
//!
//! Tokens are looked at by depth below the most likely one. How much the others weigh in all is either known from the
//! row's statistics or lies between bounds; a choice is made as soon as it is the same at both, else the next depth is
//! looked at, and at last the whole row.
//!
//! Invariants:
//! - a choice is a function of the row, the parameters and the random number alone;
//! - a token of zero probability is never chosen.

use crate::{forward::Row, params::SamplingParams, row::TokenLogit};

/// Depths at which tokens are looked at: what lies deeper weighs less than e to the minus this.
const DEPTHS: [f32; 4] = [4.0, 12.0, 24.0, f32::INFINITY];
/// First number of candidates looked at for top_p; eight times as many where they do not suffice.
const FIRST_CANDIDATES: usize = 64;

/// A token with its probability, up to a factor.
type Weighted = (u32, f64);

/// Probabilities, up to a factor: 1 for the most likely token.
pub(crate) struct Weights<'a> {
    row: Row<'a>,
    temperature: f32,
    /// Smallest that is kept.
    min: f32,
}

/// Between these lies the weight of all tokens.
#[derive(Clone, Copy, Debug)]
struct Total {
    low: f64,
    high: f64,
}

impl<'a> Weights<'a> {
    /// Of a row at a temperature above 0.
    pub(crate) fn new(row: &Row<'a>, p: &SamplingParams) -> Weights<'a> {
        Weights { row: *row, temperature: p.temperature, min: p.min_p }
    }

    /// The token at fraction `u` of what top_k and top_p leave.
    pub(crate) fn choose(&self, p: &SamplingParams, u: f64) -> u32 {
        if p.top_k == 0 && p.top_p >= 1.0 {
            return self.choose_of_all(u);
        }
        let kept = self.candidates(p);
        let target = u * kept.iter().map(|(_, w)| w).sum::<f64>();
        let found = at(&kept, Total { low: target, high: target });
        found.or(kept.last().map(|(id, _)| *id)).unwrap_or_else(|| self.row.argmax())
    }

    fn of(&self, logit: f32) -> f64 {
        let weight = ((logit - self.row.max) / self.temperature).exp();
        if weight >= self.min { f64::from(weight) } else { 0.0 }
    }

    /// The logit from which on a depth looks.
    fn bound(&self, depth: f32) -> f32 {
        self.row.max - depth * self.temperature
    }

    /// The weight of all tokens, where the row's statistics tell it.
    fn known_total(&self) -> Option<Total> {
        let Row { max, logsumexp, .. } = self.row;
        let total = (f64::from(logsumexp) - f64::from(max)).exp();
        let told = self.temperature == 1.0 && self.min == 0.0 && logsumexp.is_finite();
        told.then_some(Total { low: total, high: total })
    }

    /// The weight of all tokens, of which `unseen` lie deeper than `depth` and the others weigh `seen`.
    fn total(&self, seen: f64, unseen: usize, depth: f32) -> Total {
        let most = (-depth).exp();
        // What weighs less than the least that is kept weighs nothing.
        let rest = if most < self.min { 0.0 } else { f64::from(most) * unseen as f64 };
        Total { low: seen, high: seen + rest }
    }

    /// The logits from `from` on and below `below`, in order of ids.
    fn between(&self, from: f32, below: f32) -> impl Iterator<Item = TokenLogit> + '_ {
        let tokens = move |block| self.row.tokens(block).filter(move |t| t.logit >= from && t.logit < below);
        self.row.blocks_from(from).flat_map(tokens)
    }

    /// The token at fraction `u` of the whole weight, in order of depths, then ids.
    fn choose_of_all(&self, u: f64) -> u32 {
        let (mut seen, mut sum, mut count, mut below) = (vec![], 0.0, 0, f32::INFINITY);
        for depth in DEPTHS {
            for TokenLogit { id, logit } in self.between(self.bound(depth), below) {
                let weight = self.of(logit);
                count += 1;
                sum += weight;
                seen.push((id, weight));
            }
            let unseen = self.row.logits.len() - count;
            let total = self.known_total().unwrap_or_else(|| self.total(sum, unseen, depth));
            if let Some(token) = at(&seen, Total { low: u * total.low, high: u * total.high }) {
                return token;
            }
            below = self.bound(depth);
        }
        // Rounding may leave none: then the last that can be.
        seen.iter().rfind(|(_, w)| *w > 0.0).map_or_else(|| self.row.argmax(), |(id, _)| *id)
    }

    /// Tokens that top_k and top_p keep, in order.
    fn candidates(&self, p: &SamplingParams) -> Vec<Weighted> {
        if p.top_k == 0 {
            return self.nucleus(f64::from(p.top_p));
        }
        let mut kept = self.weighted(self.row.top_and_equals(p.top_k as usize));
        if p.top_p < 1.0 {
            let total: f64 = kept.iter().map(|(_, w)| w).sum();
            kept.truncate(end(&kept, f64::from(p.top_p) * total).unwrap_or(kept.len()));
        }
        kept
    }

    fn weighted(&self, tokens: Vec<TokenLogit>) -> Vec<Weighted> {
        tokens.into_iter().map(|t| (t.id, self.of(t.logit))).filter(|(_, w)| *w > 0.0).collect()
    }

    /// The fewest of the most likely tokens that have `top_p` of the whole weight.
    fn nucleus(&self, top_p: f64) -> Vec<Weighted> {
        let mut count = FIRST_CANDIDATES;
        let mut kept = self.weighted(self.row.top(count));
        for depth in DEPTHS {
            let total = self.known_total().unwrap_or_else(|| self.total_to(depth));
            while end(&kept, top_p * total.low).is_none() && kept.len() == count {
                count *= 8;
                kept = self.weighted(self.row.top(count));
            }
            match (end(&kept, top_p * total.low), end(&kept, top_p * total.high)) {
                (low, high) if low == high && (low.is_some() || total.low == total.high) => {
                    kept.truncate(low.unwrap_or(kept.len()));
                    return kept;
                }
                _ => {}
            }
        }
        kept
    }

    /// The weight of all tokens, as far as those to a depth tell.
    fn total_to(&self, depth: f32) -> Total {
        let (mut sum, mut count) = (0.0, 0);
        for token in self.between(self.bound(depth), f32::INFINITY) {
            count += 1;
            sum += self.of(token.logit);
        }
        self.total(sum, self.row.logits.len() - count, depth)
    }
}

/// The token at whose end the running sum exceeds both targets, the lower one for the first time.
fn at(tokens: &[Weighted], target: Total) -> Option<u32> {
    let mut sum = 0.0;
    let found = tokens.iter().filter(|(_, w)| *w > 0.0).find(|(_, w)| {
        sum += w;
        sum > target.low
    });
    found.filter(|_| sum > target.high).map(|(id, _)| *id)
}

/// How many tokens it takes to reach a weight; `None` where all do not.
fn end(sorted: &[Weighted], weight: f64) -> Option<usize> {
    let mut sum = 0.0;
    let last = sorted.iter().position(|(_, w)| {
        sum += w;
        sum >= weight
    });
    last.map(|i| i + 1)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::sampler::Scratch;
    use proptest::prelude::*;

    /// Ids of the tokens that top_k and top_p keep.
    pub(crate) fn kept(row: &Row<'_>, p: &SamplingParams) -> Vec<usize> {
        Weights::new(row, p).candidates(p).iter().map(|(id, _)| *id as usize).collect()
    }

    proptest! {
        /// What is read of the row, and whether its sum is known beforehand, does not change what is chosen.
        #[test]
        fn the_choice_is_that_of_a_whole_reading(
            logits in proptest::collection::vec(-30.0f32..6.0, 1..900), temperature in 0.2f32..2.0, u in 0.0f64..1.0,
            min_p in prop_oneof![Just(0.0f32), 0.0f32..0.5], plain: bool,
        ) {
            let temperature = if plain { 1.0 } else { temperature };
            let p = SamplingParams { temperature, min_p, ..SamplingParams::default() };
            let mut scratch = Scratch::default();
            let changed = scratch.row_of(&logits);
            let sum = logits.iter().map(|l| f64::from(*l - changed.max).exp()).sum::<f64>();
            let told = Row { logsumexp: (sum.ln() + f64::from(changed.max)) as f32, ..changed };
            let weights = Weights::new(&told, &p);
            // In order of depths, then ids.
            let depth = |l: f32| DEPTHS.iter().position(|d| l >= weights.bound(*d)).unwrap_or(DEPTHS.len());
            let mut order: Vec<usize> = (0..logits.len()).collect();
            order.sort_by_key(|i| depth(logits[*i]));
            let total: f64 = order.iter().map(|i| weights.of(logits[*i])).sum();
            let mut sums = order.iter().scan(0.0, |sum, i| { *sum += weights.of(logits[*i]); Some((*i, *sum)) });
            let (expected, end) = sums.find(|(_, sum)| *sum > u * total).unwrap_or((order[0], total));
            let edge = (end - u * total).min(u * total - (end - weights.of(logits[expected])));
            prop_assume!(edge > 1e-5 * total, "rounding decides");
            prop_assert_eq!(weights.choose(&p, u) as usize, expected);
            prop_assert_eq!(Weights::new(&changed, &p).choose(&p, u) as usize, expected);
        }

        #[test]
        fn a_nucleus_is_that_of_a_whole_sort(
            logits in proptest::collection::vec(-30.0f32..6.0, 1..900), temperature in 0.2f32..2.0, top_p in 0.05f32..1.0,
        ) {
            let p = SamplingParams { temperature, top_p, ..SamplingParams::default() };
            let mut scratch = Scratch::default();
            let row = scratch.row_of(&logits);
            let weights = Weights::new(&row, &p);
            let mut sorted: Vec<f64> = logits.iter().map(|l| weights.of(*l)).collect();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let target = f64::from(top_p) * sorted.iter().sum::<f64>();
            let mut sum = 0.0;
            let count = 1 + sorted.iter().position(|w| { sum += w; sum >= target }).unwrap_or(sorted.len() - 1);
            prop_assert!(kept(&row, &p).len().abs_diff(count) <= 1);
        }
    }
}

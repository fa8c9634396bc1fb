//! From a row of logits to a token at random, reading as little of the row as the choice needs.
//!
//! How much a run of logits weighs is known once it has been read; before, its largest logit bounds it. Runs are read
//! until the choice is certain: where all tokens may be chosen, a place is drawn on the runs as they are known, and drawn
//! again where it is beyond what the run there turns out to weigh.
//!
//! Invariants:
//! - a choice is a function of the row, the parameters and the random number alone;
//! - a token is chosen with the probability that it has, whatever was read before;
//! - a token of zero probability is never chosen.

use crate::{
    forward::Row,
    params::SamplingParams,
    random,
    row::TokenLogit,
    softmax::{self, Scale},
};

/// Depths below the most likely token, in units of the temperature, to which runs are read at once.
const DEPTHS: [f32; 4] = [4.0, 12.0, 24.0, f32::INFINITY];
/// First number of candidates looked at for top_p; eight times as many where they do not suffice.
const FIRST_CANDIDATES: usize = 64;
/// Runs whose weights are summed beforehand.
const GROUP: usize = 32;

/// A token with its probability, up to a factor.
type Weighted = (u32, f64);

/// Probabilities, up to a factor: 1 for the most likely token.
pub(crate) struct Weights<'a> {
    row: Row<'a>,
    temperature: f32,
    scale: Scale,
}

/// Between these lies the weight of all tokens.
#[derive(Clone, Copy, Debug)]
struct Total {
    low: f64,
    high: f64,
}

/// What each run weighs, or at most weighs, with sums over groups of them.
struct Runs {
    weights: Vec<f64>,
    known: Vec<bool>,
    groups: Vec<f64>,
}

impl Runs {
    fn new(most: impl Iterator<Item = f64>) -> Runs {
        let weights: Vec<f64> = most.collect();
        let groups = weights.chunks(GROUP).map(|group| group.iter().sum()).collect();
        Runs { known: vec![false; weights.len()], weights, groups }
    }

    /// Notes what a run weighs.
    fn set(&mut self, run: usize, weight: f64) {
        (self.weights[run], self.known[run]) = (weight, true);
        let first = run / GROUP * GROUP;
        self.groups[run / GROUP] = self.weights[first..self.weights.len().min(first + GROUP)].iter().sum();
    }

    /// The weight of all runs, as far as it is known.
    fn total(&self) -> Total {
        let known: f64 = self.weights.iter().zip(&self.known).filter(|(_, known)| **known).map(|(w, _)| w).sum();
        Total { low: known, high: if self.known.contains(&false) { self.sum() } else { known } }
    }

    fn sum(&self) -> f64 {
        self.groups.iter().sum()
    }

    /// The run at this place on the line of all, and how far within it. The last that weighs anything, where rounding
    /// leaves none.
    fn find(&self, place: f64) -> Option<(usize, f64)> {
        let (group, rest) = at(&self.groups, place)?;
        let first = group * GROUP;
        let (run, rest) = at(&self.weights[first..self.weights.len().min(first + GROUP)], rest)?;
        Some((first + run, rest))
    }
}

/// Which of the weights is at this place on their line, and how far within it.
fn at(weights: &[f64], place: f64) -> Option<(usize, f64)> {
    let (mut rest, mut last) = (place, None);
    for (i, weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
        last = Some((i, rest));
        if rest < *weight {
            break;
        }
        rest -= weight;
    }
    last
}

impl<'a> Weights<'a> {
    /// Of a row at a temperature above 0.
    pub(crate) fn new(row: &Row<'a>, p: &SamplingParams) -> Weights<'a> {
        let scale = Scale { max: row.max, inverse: p.temperature.recip(), min: p.min_p };
        Weights { row: *row, temperature: p.temperature, scale }
    }

    /// The token at fraction `u` of what top_k and top_p leave.
    pub(crate) fn choose(&self, p: &SamplingParams, u: f64) -> u32 {
        let chosen = if p.top_k != 0 || p.top_p < 1.0 {
            self.choose_of(&self.candidates(p), u)
        } else if let Some(total) = self.known_total() {
            self.choose_by_total(u * total)
        } else {
            self.choose_by_bounds(u)
        };
        chosen.unwrap_or_else(|| self.row.argmax())
    }

    fn choose_of(&self, kept: &[Weighted], u: f64) -> Option<u32> {
        let weights: Vec<f64> = kept.iter().map(|(_, w)| *w).collect();
        let (i, _) = at(&weights, u * weights.iter().sum::<f64>())?;
        Some(kept[i].0)
    }

    fn of(&self, logit: f32) -> f64 {
        f64::from(self.scale.weight(logit))
    }

    /// The logit from which on a depth looks.
    fn bound(&self, depth: f32) -> f32 {
        self.row.max - depth * self.temperature
    }

    /// The weight of all tokens, where the row's statistics tell it.
    fn known_total(&self) -> Option<f64> {
        let Row { max, logsumexp, .. } = self.row;
        let told = self.temperature == 1.0 && self.scale.min == 0.0 && logsumexp.is_finite();
        told.then(|| (f64::from(logsumexp) - f64::from(max)).exp())
    }

    fn sum_of(&self, run: usize) -> f64 {
        softmax::sum(self.scale, self.row.block(run))
    }

    /// What each run weighs at most; those that lie to a depth are read.
    fn runs(&self, depth: f32) -> Runs {
        let most = |(run, max): (usize, &f32)| self.of(*max) * self.row.block(run).len() as f64;
        let mut runs = Runs::new(self.row.block_max.iter().enumerate().map(most));
        self.read(&mut runs, depth);
        runs
    }

    /// Reads the runs that lie to a depth.
    fn read(&self, runs: &mut Runs, depth: f32) {
        for run in self.row.blocks_from(self.bound(depth)) {
            if !runs.known[run] {
                runs.set(run, self.sum_of(run));
            }
        }
    }

    /// The token at this place of the whole weight: the likeliest runs come first, so that most choices end there.
    fn choose_by_total(&self, place: f64) -> Option<u32> {
        let (mut rest, mut last, near) = (place, None, self.bound(DEPTHS[0]));
        let nearest = self.row.blocks_from(near);
        for run in nearest.chain((0..self.row.block_max.len()).filter(|run| self.row.block_max[*run] < near)) {
            let sum = self.sum_of(run);
            if rest < sum {
                return self.within(run, rest);
            }
            rest -= sum;
            last = if sum > 0.0 { Some(run) } else { last };
        }
        // Rounding may leave none.
        last.and_then(|run| self.within(run, f64::INFINITY))
    }

    /// Each place that is drawn, but the last, makes another run known.
    fn choose_by_bounds(&self, u: f64) -> Option<u32> {
        let mut runs = self.runs(DEPTHS[0]);
        for attempt in 0..=runs.weights.len() as u64 {
            let u = if attempt == 0 { u } else { random::uniform(u.to_bits(), 0, attempt) };
            let (run, rest) = runs.find(u * runs.sum())?;
            if !runs.known[run] {
                runs.set(run, self.sum_of(run));
                if rest >= runs.weights[run] {
                    continue;
                }
            }
            return self.within(run, rest);
        }
        None
    }

    /// The token at this place of a run's weight; the last that weighs anything, where rounding leaves none.
    fn within(&self, run: usize, place: f64) -> Option<u32> {
        let weights: Vec<f64> = self.row.block(run).iter().map(|logit| self.of(*logit)).collect();
        let (i, _) = at(&weights, place)?;
        Some(self.row.first_id(run) + i as u32)
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
        let known = self.known_total().map(|total| Total { low: total, high: total });
        let mut runs = if known.is_none() { Some(self.runs(DEPTHS[0])) } else { None };
        for depth in DEPTHS {
            let total = known.or_else(|| runs.as_mut().map(|runs| self.total_to(runs, depth)));
            let Some(total) = total else { break };
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

    /// The weight of all tokens, as far as the runs to a depth tell.
    fn total_to(&self, runs: &mut Runs, depth: f32) -> Total {
        self.read(runs, depth);
        runs.total()
    }
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
    use crate::{forward::LOGITS_BLOCK, sampler::Scratch};
    use proptest::prelude::*;

    /// Ids of the tokens that top_k and top_p keep.
    pub(crate) fn kept(row: &Row<'_>, p: &SamplingParams) -> Vec<usize> {
        Weights::new(row, p).candidates(p).iter().map(|(id, _)| *id as usize).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Over many places every token is chosen as often as it should be: the statistic of Pearson's test, of tokens that
        /// are expected at least 20 times, lies within six standard deviations.
        #[test]
        fn tokens_are_chosen_as_often_as_they_weigh(
            logits in proptest::collection::vec(prop_oneof![4 => -9.0f32..0.0, 1 => -2.0f32..3.0], 1..1500),
            temperature in 0.2f32..2.0, min_p in prop_oneof![Just(0.0f32), 0.0f32..0.3], seed: u64,
        ) {
            const DRAWS: u64 = 8_000;
            let p = SamplingParams { temperature, min_p, ..SamplingParams::default() };
            let mut scratch = Scratch::default();
            let weights = Weights::new(&scratch.row_of(&logits), &p);
            let mut counts = vec![0u32; logits.len()];
            for draw in 0..DRAWS {
                counts[weights.choose(&p, random::uniform(seed, 1, draw)) as usize] += 1;
            }
            let total: f64 = logits.iter().map(|l| weights.of(*l)).sum();
            let expected = |i: usize| weights.of(logits[i]) / total * DRAWS as f64;
            prop_assert!((0..logits.len()).all(|i| counts[i] == 0 || expected(i) > 0.0));
            let common: Vec<usize> = (0..logits.len()).filter(|i| expected(*i) >= 20.0).collect();
            let squares = common.iter().map(|i| (f64::from(counts[*i]) - expected(*i)).powi(2) / expected(*i));
            let (statistic, freedom) = (squares.sum::<f64>(), common.len() as f64);
            prop_assert!(statistic < freedom + 6.0 * (2.0 * freedom).sqrt() + 20.0, "{statistic} of {freedom}");
        }
    }

    proptest! {
        /// The row's sum, where it is known, is the length of a line on which each token has its weight.
        #[test]
        fn a_choice_by_the_sum_is_a_place_on_a_line(
            logits in proptest::collection::vec(-30.0f32..6.0, 1..900), u in 0.0f64..1.0,
        ) {
            let p = SamplingParams::default();
            let mut scratch = Scratch::default();
            let changed = scratch.row_of(&logits);
            let sum = logits.iter().map(|l| f64::from(*l - changed.max).exp()).sum::<f64>();
            let weights = Weights::new(&Row { logsumexp: (sum.ln() + f64::from(changed.max)) as f32, ..changed }, &p);
            let mut order: Vec<usize> = (0..logits.len()).collect();
            let far = |i: usize| changed.block_max[i / LOGITS_BLOCK] < weights.bound(DEPTHS[0]);
            order.sort_by_key(|i| far(*i));
            let total: f64 = order.iter().map(|i| weights.of(logits[*i])).sum();
            let mut sums = order.iter().scan(0.0, |sum, i| { *sum += weights.of(logits[*i]); Some((*i, *sum)) });
            let (expected, end) = sums.find(|(_, sum)| *sum > u * total).unwrap_or((order[0], total));
            let edge = (end - u * total).min(u * total - (end - weights.of(logits[expected])));
            prop_assume!(edge > 1e-5 * total, "rounding decides");
            prop_assert_eq!(weights.choose(&p, u) as usize, expected);
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

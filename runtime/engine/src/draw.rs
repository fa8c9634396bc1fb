//! From a row of logits to a token at random, reading as little of the row as the choice needs.
//!
//! What each run of logits weighs is known, so that a place drawn on the line of all runs tells which run to read. Where
//! min_p, top_k or top_p leave only some tokens, or a grammar permits only some, a token is drawn of all, and taken if it is
//! one of those: that reads the runs with likelier tokens alone. Which tokens they are is found out where several draws fail,
//! or one is undecided.
//!
//! Invariants:
//! - a choice is a function of the row, the parameters and the random number alone;
//! - a token is chosen with the probability that it has among those that are left, whatever was read before;
//! - a token of zero probability is never chosen.

use crate::{
    forward::Row,
    params::SamplingParams,
    random,
    row::TokenLogit,
    softmax::{self, Line, Scale, at},
};

/// Tokens drawn of all before those that are left are found out.
const DRAWS: u64 = 4;
/// First number of candidates looked at for top_p; eight times as many where they do not suffice.
const FIRST_CANDIDATES: usize = 8;
/// From so many runs on they are bounded by what is known of them before they are read.
const MANY_RUNS: usize = 16;

/// A token with its probability, up to a factor.
type Weighted = (u32, f64);

/// Memory of a choice, kept between choices.
#[derive(Default)]
pub(crate) struct Lines {
    /// Of all runs.
    runs: Line,
    /// Of the tokens of one.
    run: Line,
}

/// Probabilities, up to a factor: 1 for the most likely token.
pub(crate) struct Weights<'a> {
    row: Row<'a>,
    params: &'a SamplingParams,
    scale: Scale,
}

impl<'a> Weights<'a> {
    /// Of a row at a temperature above 0, at which its runs' sums are.
    pub(crate) fn new(row: &Row<'a>, params: &'a SamplingParams) -> Weights<'a> {
        let scale = Scale { max: row.max, inverse: params.temperature.recip() };
        Weights { row: *row, params, scale }
    }

    /// The token at fraction `u` of what min_p, top_k and top_p leave.
    pub(crate) fn choose(&self, lines: &mut Lines, u: f64) -> u32 {
        lines.runs.lay_runs(self.scale, self.row.block_max, self.row.block_sum);
        let mut undecided = None;
        for draw in 0..DRAWS {
            let Some(token) = self.draw(lines, again(u, draw)) else { return self.row.argmax() };
            match self.keeps(token, &lines.runs) {
                Some(true) => return token.id,
                Some(false) => {}
                None => {
                    undecided = Some(token.id);
                    break;
                }
            }
        }
        let kept = self.candidates(lines.runs.total());
        let drawn = undecided.filter(|id| kept.iter().any(|(kept, _)| kept == id));
        drawn.or_else(|| choose_of(&kept, again(u, DRAWS))).unwrap_or_else(|| self.row.argmax())
    }

    /// The token at fraction `u` of those that are permitted, where few draws of all find one; else the fraction for a
    /// choice from the row without the others. A draw that is taken has the probability that it has among those permitted.
    pub(crate) fn choose_permitted(
        &self,
        lines: &mut Lines,
        u: f64,
        permits: impl Fn(u32) -> bool,
    ) -> Result<u32, f64> {
        if !self.leaves_all() || self.params.top_p < 1.0 {
            return Err(u);
        }
        lines.runs.lay_runs(self.scale, self.row.block_max, self.row.block_sum);
        let drawn = (0..DRAWS).find_map(|draw| self.draw(lines, again(u, draw)).filter(|token| permits(token.id)));
        drawn.map(|token| token.id).ok_or_else(|| again(u, DRAWS))
    }

    /// The token at fraction `u` of all.
    fn draw(&self, Lines { runs, run }: &mut Lines, u: f64) -> Option<TokenLogit> {
        let (block, within) = runs.find(u)?;
        let logits = self.row.block(block);
        run.lay_logits(self.scale, logits);
        let (i, _) = run.find(within)?;
        Some(TokenLogit { id: self.row.first_id(block) + i as u32, logit: logits[i] })
    }

    /// Whether a token is of those that are left; `None` where that takes to know them all.
    fn keeps(&self, token: TokenLogit, runs: &Line) -> Option<bool> {
        let SamplingParams { min_p, top_k, .. } = *self.params;
        if self.of(token.logit) < f64::from(min_p) {
            return Some(false);
        }
        if top_k == 0 && self.params.top_p >= 1.0 {
            return Some(true);
        }
        let most = if top_k == 0 { u32::MAX } else { top_k.unsigned_abs() };
        if top_k != 0 && self.has_runs_above(token.logit, most) {
            return Some(false);
        }
        // Without top_p the rounding of sums leaves none out.
        let target = if self.params.top_p < 1.0 { self.top_p() * runs.total() } else { f64::INFINITY };
        let all = self.leaves_all();
        if all && self.most_before(token.logit, runs) < target {
            return Some(true);
        }
        let (count, before) = self.before(token);
        match () {
            () if count >= most || before >= target => Some(false),
            () if all || self.params.top_p >= 1.0 => Some(true),
            () if before < self.top_p() * (before + self.of(token.logit)).max(self.least()) => Some(true),
            () => None,
        }
    }

    /// What the tokens that min_p and top_k leave weigh at least: as much as the largest of as many runs.
    fn least(&self) -> f64 {
        let count = usize::try_from(self.params.top_k).unwrap_or(0);
        let weights = self.row.largest_of_blocks(count).into_iter().map(|max| self.of(max));
        weights.filter(|weight| *weight >= f64::from(self.params.min_p)).sum()
    }

    /// Whether nothing but top_p leaves tokens out.
    fn leaves_all(&self) -> bool {
        self.params.top_k == 0 && self.params.min_p == 0.0
    }

    fn top_p(&self) -> f64 {
        f64::from(self.params.top_p)
    }

    fn of(&self, logit: f32) -> f64 {
        f64::from(self.scale.weight(logit))
    }

    /// Whether so many runs have a likelier token.
    fn has_runs_above(&self, logit: f32, most: u32) -> bool {
        let above: u32 = self.row.block_max.iter().map(|max| u32::from(*max > logit)).sum();
        above >= most
    }

    /// What the tokens before one with this logit weigh at most; more than all where few runs tell it exactly.
    fn most_before(&self, logit: f32, runs: &Line) -> f64 {
        if self.row.blocks_from(logit).nth(MANY_RUNS).is_none() {
            return f64::INFINITY;
        }
        self.row.blocks_from(logit).map(|run| runs.weight(run)).sum()
    }

    /// How many tokens are likelier than this one, and the weight of those that come before it in order.
    fn before(&self, token: TokenLogit) -> (u32, f64) {
        let TokenLogit { id, logit } = token;
        let above = |logits: &[f32], bound| softmax::above(self.scale, logits, logit, bound);
        let (mut count, mut weight) = (0, 0.0);
        for run in self.row.blocks_from(logit) {
            // Of equal ones those with smaller ids come before it.
            let logits = self.row.block(run);
            let (smaller, larger) =
                logits.split_at(logits.len().min(id.saturating_sub(self.row.first_id(run)) as usize));
            for (n, w) in [above(smaller, logit), above(larger, logit.next_up())] {
                count += n;
                weight += w;
            }
        }
        (count, weight)
    }

    /// Tokens that min_p, top_k and top_p leave of all, whose weight is `total`; in order.
    fn candidates(&self, total: f64) -> Vec<Weighted> {
        let SamplingParams { min_p, top_k, top_p, .. } = *self.params;
        if self.leaves_all() {
            return self.nucleus(self.top_p() * total);
        }
        let mut kept = self.weighted(match usize::try_from(top_k) {
            Ok(count) if count > 0 => self.row.top_and_equals(count),
            // Rounding must not leave one out that its weight leaves.
            _ => self.row.from(self.row.max + (min_p.ln() - 1e-3) * self.params.temperature),
        });
        if top_p < 1.0 {
            let total: f64 = kept.iter().map(|(_, w)| w).sum();
            kept.truncate(end(&kept, self.top_p() * total).unwrap_or(kept.len()));
        }
        kept
    }

    fn weighted(&self, tokens: Vec<TokenLogit>) -> Vec<Weighted> {
        let weighs = |w: f64| w > 0.0 && w >= f64::from(self.params.min_p);
        tokens.into_iter().map(|t| (t.id, self.of(t.logit))).filter(|(_, w)| weighs(*w)).collect()
    }

    /// The fewest of the most likely tokens that together weigh this.
    fn nucleus(&self, weight: f64) -> Vec<Weighted> {
        let mut count = FIRST_CANDIDATES;
        loop {
            let mut kept = self.weighted(self.row.top(count));
            let end = end(&kept, weight);
            if end.is_some() || kept.len() < count {
                kept.truncate(end.unwrap_or(kept.len()));
                return kept;
            }
            count *= 8;
        }
    }
}

/// The random number of a choice's further draw; the first is its own.
fn again(u: f64, draw: u64) -> f64 {
    if draw == 0 { u } else { random::uniform(u.to_bits(), 0, draw) }
}

/// The token at fraction `u` of those kept.
fn choose_of(kept: &[Weighted], u: f64) -> Option<u32> {
    let weights = || kept.iter().map(|(_, w)| *w);
    let (i, _) = at(weights(), u * weights().sum::<f64>())?;
    Some(kept[i].0)
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
    use crate::row::Blocks;
    use proptest::prelude::*;

    /// Ids of the tokens that min_p, top_k and top_p keep.
    pub(crate) fn kept(row: &Row<'_>, p: &SamplingParams) -> Vec<usize> {
        let weights = Weights::new(row, p);
        let total = row.logits.iter().map(|l| weights.of(*l)).sum();
        weights.candidates(total).iter().map(|(id, _)| *id as usize).collect()
    }

    /// Pearson's test of tokens that are expected at least 20 times: its statistic lies within six standard deviations.
    fn check_frequencies(counts: &[u32], expected: impl Fn(usize) -> f64) -> Result<(), TestCaseError> {
        let common: Vec<usize> = (0..counts.len()).filter(|i| expected(*i) >= 20.0).collect();
        let squares = common.iter().map(|i| (f64::from(counts[*i]) - expected(*i)).powi(2) / expected(*i));
        let (statistic, freedom) = (squares.sum::<f64>(), common.len() as f64);
        prop_assert!(statistic < freedom + 6.0 * (2.0 * freedom).sqrt() + 20.0, "{statistic} of {freedom}");
        Ok(())
    }

    fn logits() -> impl Strategy<Value = Vec<f32>> {
        proptest::collection::vec(prop_oneof![4 => -9.0f32..0.0, 1 => -2.0f32..3.0], 1..1500)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Over many places every token is chosen as often as it should be.
        #[test]
        fn tokens_are_chosen_as_often_as_they_weigh(
            logits in logits(), temperature in 0.2f32..2.0, min_p in prop_oneof![Just(0.0f32), 0.0f32..0.9],
            top_k in prop_oneof![2 => Just(0i32), 1 => 1i32..60], top_p in prop_oneof![Just(1.0f32), 0.05f32..1.0],
            seed: u64,
        ) {
            const DRAWS: u64 = 8_000;
            let p = SamplingParams { temperature, min_p, top_k, top_p, ..SamplingParams::default() };
            let (mut blocks, mut lines) = (Blocks::default(), Lines::default());
            let row = Row::of_changed(&logits, Some(temperature), &mut blocks);
            let weights = Weights::new(&row, &p);
            let mut counts = vec![0u32; logits.len()];
            for draw in 0..DRAWS {
                counts[weights.choose(&mut lines, random::uniform(seed, 1, draw)) as usize] += 1;
            }
            let mut left = vec![min_p == 0.0 && top_k == 0 && top_p >= 1.0; logits.len()];
            if !left[0] {
                kept(&row, &p).iter().for_each(|id| left[*id] = true);
            }
            let weight = |i: usize| if left[i] { weights.of(logits[i]) } else { 0.0 };
            let total: f64 = (0..logits.len()).map(weight).sum();
            let expected = |i: usize| weight(i) / total * DRAWS as f64;
            // The sums are in different orders: a token on the very edge of top_p may fall on either side.
            let others = (0..logits.len()).filter(|i| counts[*i] > 0 && expected(*i) <= 0.0).count();
            prop_assert!(others <= usize::from(top_p < 1.0), "{others} others");
            prop_assume!(others == 0);
            check_frequencies(&counts, expected)?;
        }
    }

    proptest! {
        /// Without anything left out, a choice is the place on a line on which each token has its weight.
        #[test]
        fn a_choice_of_all_is_a_place_on_a_line(logits in logits(), temperature in 0.2f32..2.0, u in 0.0f64..1.0) {
            let p = SamplingParams { temperature, ..SamplingParams::default() };
            let mut blocks = Blocks::default();
            let row = Row::of_changed(&logits, Some(temperature), &mut blocks);
            let weights = Weights::new(&row, &p);
            let total: f64 = logits.iter().map(|l| weights.of(*l)).sum();
            let mut end = 0.0;
            let reached = |l: &f32| {
                end += weights.of(*l);
                end > u * total
            };
            let expected = logits.iter().position(reached).unwrap_or(logits.len() - 1);
            let edge = (end - u * total).min(u * total - (end - weights.of(logits[expected])));
            prop_assume!(edge > 1e-5 * total, "rounding decides");
            prop_assert_eq!(weights.choose(&mut Lines::default(), u) as usize, expected);
        }

        /// So are those that are permitted, of which few draws may find none.
        #[test]
        fn permitted_tokens_are_chosen_as_often_as_they_weigh(
            logits in logits(), temperature in 0.2f32..2.0, every in 2usize..40, seed: u64,
        ) {
            const DRAWS: u64 = 8_000;
            let p = SamplingParams { temperature, ..SamplingParams::default() };
            let permits = |id: usize| id.is_multiple_of(every);
            let masked: Vec<f32> =
                logits.iter().enumerate().map(|(i, l)| if permits(i) { *l } else { f32::NEG_INFINITY }).collect();
            let (mut blocks, mut masked_blocks, mut lines) = (Blocks::default(), Blocks::default(), Lines::default());
            let row = Row::of_changed(&logits, Some(temperature), &mut blocks);
            let masked_row = Row::of_changed(&masked, Some(temperature), &mut masked_blocks);
            let (weights, masked_weights) = (Weights::new(&row, &p), Weights::new(&masked_row, &p));
            let mut counts = vec![0u32; logits.len()];
            for draw in 0..DRAWS {
                let found = weights.choose_permitted(&mut lines, random::uniform(seed, 1, draw), |id| permits(id as usize));
                counts[found.unwrap_or_else(|u| masked_weights.choose(&mut lines, u)) as usize] += 1;
            }
            let weight = |i: usize| if permits(i) { weights.of(logits[i]) } else { 0.0 };
            let total: f64 = (0..logits.len()).map(weight).sum();
            let expected = |i: usize| weight(i) / total * DRAWS as f64;
            prop_assert!((0..logits.len()).all(|i| counts[i] == 0 || expected(i) > 0.0));
            check_frequencies(&counts, expected)?;
        }

        /// Whether a token is left is told, where it is told, as the definitions of min_p, top_k and top_p have it.
        #[test]
        fn tokens_are_kept_that_are_candidates(
            logits in logits(), temperature in 0.2f32..2.0, min_p in prop_oneof![Just(0.0f32), 0.0f32..0.9],
            top_k in prop_oneof![Just(0i32), 1i32..60], top_p in prop_oneof![Just(1.0f32), 0.05f32..1.0], at: usize,
        ) {
            let p = SamplingParams { temperature, min_p, top_k, top_p, ..SamplingParams::default() };
            prop_assume!(min_p > 0.0 || top_k > 0 || top_p < 1.0);
            // Of few values, so that many are equal.
            let logits: Vec<f32> = logits.iter().map(|l| (l * 8.0).round() / 8.0).collect();
            let (mut blocks, mut runs) = (Blocks::default(), Line::default());
            let row = Row::of_changed(&logits, Some(temperature), &mut blocks);
            let weights = Weights::new(&row, &p);
            runs.lay_runs(weights.scale, row.block_max, row.block_sum);
            let mut order = row.top(logits.len());
            let most = usize::try_from(top_k).ok().filter(|k| *k > 0).unwrap_or(usize::MAX);
            let likelier = |token: &TokenLogit| logits.iter().filter(|l| **l > token.logit).count();
            let left: Vec<_> =
                order.iter().filter(|t| weights.of(t.logit) >= f64::from(min_p) && likelier(t) < most).copied().collect();
            let total: f64 = left.iter().map(|t| weights.of(t.logit)).sum();
            let candidates = kept(&row, &p);
            order.rotate_left(at % logits.len());
            for token in order.into_iter().take(40) {
                let before: f64 = left.iter().take_while(|t| t.id != token.id).map(|t| weights.of(t.logit)).sum();
                let (told, target) = (weights.keeps(token, &runs), f64::from(top_p) * total);
                // Sums in different orders differ; without top_p there is none to reach.
                let edge = top_p < 1.0 && (before - target).abs() < 1e-5 * total;
                let is = left.iter().any(|t| t.id == token.id) && (top_p >= 1.0 || before < target);
                prop_assert!(told.is_none_or(|told| told == is) || edge, "{token:?}: {told:?}, {is} by definition");
                let listed = candidates.contains(&(token.id as usize));
                prop_assert!(listed == is || edge, "{token:?}: {listed} listed, {is} by definition");
            }
        }

        #[test]
        fn a_nucleus_is_that_of_a_whole_sort(
            logits in proptest::collection::vec(-30.0f32..6.0, 1..900), temperature in 0.2f32..2.0, top_p in 0.05f32..1.0,
        ) {
            let p = SamplingParams { temperature, top_p, ..SamplingParams::default() };
            let mut blocks = Blocks::default();
            let row = Row::of_changed(&logits, Some(temperature), &mut blocks);
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

//! From a row of logits to a token at random, reading as little of the row as the choice needs.
//!
//! Tokens are drawn of all, and ranked, where the row is computed: kernels leave that beside it. Where they do not, what each
//! run of logits weighs is known, so that a place on the line of all runs tells which run to read. Where min_p, top_k or top_p
//! leave only some tokens, or penalties and a grammar leave some less likely, a drawn token is taken if it is one of those, or
//! as often as it still weighs. Which tokens are left is found out where several draws fail, or one is undecided.
//!
//! Invariants:
//! - a choice is a function of the row, the parameters and the random number alone;
//! - a token is chosen with the probability that it has among those that are left, whatever was read before;
//! - a token of zero probability is never chosen.

use crate::{
    forward::Row,
    params::SamplingParams,
    random,
    row::{TokenLogit, TokenRank},
    softmax::{self, Line, Scale, at},
};
use rvllm_artifact::plan::{DRAWS, RANK, TOP_K};

/// A temperature at which the most likely token is drawn, and of equals, by numbers of 0, the first.
pub(crate) const NEXT_TO_NONE: f32 = 1e-30;
/// First number of candidates looked at for top_p; eight times as many where they do not suffice.
const FIRST_CANDIDATES: usize = 8;
/// What sums of weights in different orders differ by at most, relative to them.
const ROUNDING: f64 = 1e-5;
/// From so many runs on they are bounded by what is known of them before they are read.
const MANY_RUNS: usize = 16;

/// Random numbers in [0, 1) that draw tokens of a row: the first of each two chooses a run of logits by what the runs weigh,
/// the second a token of it.
pub type Numbers = [f32; 2 * DRAWS];

/// A token with its probability, up to a factor.
type Weighted = (u32, f64);

/// Memory of a choice, kept between choices.
#[derive(Default)]
pub(crate) struct Lines {
    /// Of all runs, once they were asked for.
    runs: Line,
    laid: bool,
    /// Of the tokens of one.
    run: Line,
}

/// The numbers that a choice's tokens are drawn by.
pub(crate) fn numbers(u: f64) -> Numbers {
    let pairs: [[f32; 2]; DRAWS] = std::array::from_fn(|draw| pair(u, draw));
    std::array::from_fn(|i| pairs[i / 2][i % 2])
}

/// Those of one draw, with 24 bits each.
fn pair(u: f64, draw: usize) -> [f32; 2] {
    let word = random::word(u.to_bits(), 1, draw as u64);
    [word >> 40, word & 0xff_ffff].map(|bits| bits as f32 / (1 << 24) as f32)
}

/// What kernels find of tokens drawn from a row.
pub fn rank(row: &Row<'_>, temperature: f32, draws: &[f32; DRAWS]) -> [f32; RANK * DRAWS] {
    let params = SamplingParams { temperature, ..SamplingParams::default() };
    let (weights, mut lines) = (Weights::new(row, &params), Lines::default());
    let total = weights.runs(&mut lines).total() as f32;
    let ranks = draws.map(|id| {
        let logit = row.logits[id as usize];
        let (larger, before) = weights.before(TokenLogit { id: id as u32, logit });
        [logit, larger as f32, before as f32, total]
    });
    std::array::from_fn(|i| ranks[i / RANK][i % RANK])
}

/// What kernels find of the most likely tokens of a row, so many of which are asked for.
pub fn top_k(row: &Row<'_>, count: i32) -> [f32; 2 * TOP_K] {
    let found = row.top(usize::try_from(count).unwrap_or(0).min(TOP_K));
    let part = |of: fn(&TokenLogit) -> f32, i: usize| found.get(i).map_or(0.0, of);
    std::array::from_fn(|i| if i < TOP_K { part(|t| t.id as f32, i) } else { part(|t| t.logit, i - TOP_K) })
}

/// What kernels draw from a row at a temperature: the same tokens, but where rounding decides.
pub fn draw(row: &Row<'_>, temperature: f32, numbers: &Numbers) -> [f32; DRAWS] {
    let params = SamplingParams { temperature, ..SamplingParams::default() };
    let (weights, mut lines) = (Weights::new(row, &params), Lines::default());
    let pairs = numbers.as_chunks().0;
    std::array::from_fn(|i| weights.draw(&mut lines, pairs[i]).map_or(0.0, |token| token.id as f32))
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

    /// A token of those that min_p, top_k and top_p leave, by the random number `u`.
    pub(crate) fn choose(&self, lines: &mut Lines, u: f64) -> u32 {
        lines.laid = false;
        let undecided = match self.first_kept(lines, u) {
            Ok(id) => return id,
            Err(undecided) => undecided,
        };
        let kept = self.candidates(self.runs(lines).total());
        let drawn = undecided.filter(|id| kept.iter().any(|(kept, _)| kept == id));
        drawn.or_else(|| choose_of(&kept, again(u, 0))).unwrap_or_else(|| self.row.argmax())
    }

    /// Whether what is known of the tokens that were drawn tells the choice, without the row.
    pub(crate) fn is_decided(&self) -> bool {
        let known =
            self.leaves_everything() && !self.row.draws.is_empty() || self.row.rank_of_drawn(DRAWS - 1).is_some();
        known && self.first_kept(&mut Lines::default(), 0.0).is_ok()
    }

    /// The first token drawn of all that is left; else one of which that takes to know all those that are, if there is one.
    fn first_kept(&self, lines: &mut Lines, u: f64) -> Result<u32, Option<u32>> {
        if let Some(id) = self.row.drawn(0).filter(|_| self.leaves_everything()) {
            return Ok(id);
        }
        for draw in 0..DRAWS {
            let kept = match (self.row.drawn(draw), self.row.rank_of_drawn(draw)) {
                (Some(id), Some(rank)) => (id, self.keeps_ranked(&rank)),
                _ => match self.drawn(lines, u, draw) {
                    Some(token) => (token.id, self.keeps(token, lines)),
                    None => return Ok(self.row.argmax()),
                },
            };
            match kept {
                (id, Some(true)) => return Ok(id),
                (_, Some(false)) => {}
                (id, None) => return Err(Some(id)),
            }
        }
        Err(None)
    }

    /// A token of all, each taken with the probability that `accepts` gives of it, where `most` draws find one; else the number
    /// for a choice from a row in which each weighs as much less. What is taken has the probability that it has there.
    pub(crate) fn choose_accepted(
        &self,
        lines: &mut Lines,
        u: f64,
        most: usize,
        accepts: impl Fn(u32) -> f64,
    ) -> Result<u32, f64> {
        if !self.leaves_everything() {
            return Err(u);
        }
        lines.laid = false;
        let taken = |draw: usize, id: u32| match accepts(id) {
            p if p >= 1.0 => true,
            p => p > 0.0 && again(u, 1 + draw as u64) < p,
        };
        // Where it was drawn already, its logit is not read: each is in memory that nobody has touched.
        let drawn = (0..most).find_map(|draw| {
            let id = self.row.drawn(draw).or_else(|| Some(self.draw(lines, pair(u, draw))?.id));
            id.filter(|id| taken(draw, *id))
        });
        drawn.ok_or_else(|| again(u, 0))
    }

    /// Token number `draw` of those drawn of all, where the row was computed or here.
    fn drawn(&self, lines: &mut Lines, u: f64, draw: usize) -> Option<TokenLogit> {
        match self.row.drawn(draw) {
            Some(id) => Some(TokenLogit { id, logit: self.row.logits[id as usize] }),
            None => self.draw(lines, pair(u, draw)),
        }
    }

    /// The token of all that two numbers choose.
    fn draw(&self, lines: &mut Lines, [of_runs, of_run]: [f32; 2]) -> Option<TokenLogit> {
        let block = self.runs(lines).find(of_runs.into())?;
        let logits = self.row.block(block);
        lines.run.lay_logits(self.scale, logits);
        let i = lines.run.find(of_run.into())?;
        Some(TokenLogit { id: self.row.first_id(block) + i as u32, logit: logits[i] })
    }

    /// The line of all runs.
    fn runs<'l>(&self, lines: &'l mut Lines) -> &'l Line {
        if !std::mem::replace(&mut lines.laid, true) {
            lines.runs.lay_runs(self.scale, self.row.block_max, self.row.block_sum);
        }
        &lines.runs
    }

    /// Whether a token is of those that are left; `None` where that takes to know them all.
    fn keeps(&self, token: TokenLogit, lines: &mut Lines) -> Option<bool> {
        if self.of(token.logit) < f64::from(self.params.min_p) {
            return Some(false);
        }
        if self.params.top_k == 0 && self.params.top_p >= 1.0 {
            return Some(true);
        }
        let most = self.most();
        if self.params.top_k != 0 && self.has_runs_above(token.logit, most) {
            return Some(false);
        }
        let runs = self.runs(lines);
        let total = runs.total();
        if self.leaves_all() && self.most_before(token.logit, runs) < self.target(total) {
            return Some(true);
        }
        let (larger, before) = self.before(token);
        self.keeps_ranked(&TokenRank { logit: token.logit, larger, before, total })
    }

    /// The same of a token of which it is known where it stands.
    fn keeps_ranked(&self, token: &TokenRank) -> Option<bool> {
        let (weight, before) = (self.of(token.logit), token.before);
        let enough = |least: f64| before < self.top_p() * least;
        match () {
            () if weight < f64::from(self.params.min_p) || token.larger >= self.most() => Some(false),
            () if before >= self.target(token.total) => Some(false),
            () if self.leaves_all() || self.params.top_p >= 1.0 => Some(true),
            () if enough(before + weight) || enough(self.least_drawn()) => Some(true),
            () => match self.bounds() {
                [least, _] if enough(least) => Some(true),
                [_, most] if before >= self.top_p() * most => Some(false),
                _ => None,
            },
        }
    }

    /// How many of the most likely tokens top_k leaves.
    fn most(&self) -> u32 {
        if self.params.top_k == 0 { u32::MAX } else { self.params.top_k.unsigned_abs() }
    }

    /// What tokens before one that top_p leaves weigh less than. Without top_p the rounding of sums leaves none out.
    fn target(&self, total: f64) -> f64 {
        if self.params.top_p < 1.0 { self.top_p() * total } else { f64::INFINITY }
    }

    /// What the tokens that min_p and top_k leave weigh at least: as much as one of them that was drawn and those before it.
    fn least_drawn(&self) -> f64 {
        let left = |t: &TokenRank| t.larger < self.most() && self.of(t.logit) >= f64::from(self.params.min_p);
        let ranks = (0..DRAWS).filter_map(|draw| self.row.rank_of_drawn(draw)).filter(left);
        ranks.map(|t| t.before + self.of(t.logit)).fold(0.0, f64::max)
    }

    /// What the tokens that min_p and top_k leave weigh at least: as much as the largest of as many runs; and at most: as much
    /// as all of those runs, as no other run has one of them.
    fn bounds(&self) -> [f64; 2] {
        let count = usize::try_from(self.params.top_k).unwrap_or(0);
        let runs = self.row.largest_runs(count);
        if runs.is_empty() {
            return [0.0, f64::INFINITY];
        }
        let Row { block_max, block_sum, .. } = self.row;
        let mut weights: Vec<f32> = runs.iter().map(|run| block_max[*run as usize]).collect();
        softmax::to_weights(self.scale, &mut weights);
        let left = weights[..count].iter().filter(|weight| **weight >= self.params.min_p);
        let of_runs =
            runs.iter().zip(&weights).map(|(run, weight)| f64::from(block_sum[*run as usize]) * f64::from(*weight));
        [left.copied().map(f64::from).sum(), of_runs.sum::<f64>() * (1.0 + ROUNDING)]
    }

    /// Whether nothing but top_p leaves tokens out.
    fn leaves_all(&self) -> bool {
        self.params.top_k == 0 && self.params.min_p == 0.0
    }

    /// Whether nothing leaves tokens out.
    fn leaves_everything(&self) -> bool {
        self.params.leaves_everything()
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

/// Random numbers of a choice besides those that tokens are drawn by.
fn again(u: f64, which: u64) -> f64 {
    random::uniform(u.to_bits(), 0, which)
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
    use crate::{forward::LOGITS_BLOCK, row::Blocks};
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
        /// The first of a draw's numbers is a place on the line of runs, the second one on the line of a run's tokens.
        #[test]
        fn a_token_is_at_a_place_on_two_lines(logits in logits(), temperature in 0.2f32..2.0, u in 0.0f64..1.0) {
            let mut blocks = Blocks::default();
            let row = Row::of_changed(&logits, Some(temperature), &mut blocks);
            let weight = |l: &f32| (f64::from(l - row.max) / f64::from(temperature)).exp();
            let runs: Vec<f64> = logits.chunks(LOGITS_BLOCK).map(|run| run.iter().map(weight).sum()).collect();
            let numbers = numbers(u);
            for (id, numbers) in draw(&row, temperature, &numbers).into_iter().zip(numbers.chunks(2)) {
                let (run, i) = (id as usize / LOGITS_BLOCK, id as usize % LOGITS_BLOCK);
                let tokens: Vec<f64> = row.block(run).iter().map(weight).collect();
                for (weights, i, number) in [(&runs, run, numbers[0]), (&tokens, i, numbers[1])] {
                    let (total, before) = (weights.iter().sum::<f64>(), weights[..i].iter().sum::<f64>());
                    let place = f64::from(number) * total;
                    prop_assert!(before - 1e-5 * total <= place && place <= before + weights[i] + 1e-5 * total);
                }
            }
        }

        /// Tokens that were drawn where the row was computed are chosen like those that are drawn here.
        #[test]
        fn drawn_tokens_are_chosen_as_if_drawn_here(
            logits in logits(), temperature in 0.2f32..2.0, top_k in prop_oneof![Just(0i32), 1i32..60],
            top_p in prop_oneof![Just(1.0f32), 0.05f32..1.0], seed: u64,
        ) {
            let p = SamplingParams { temperature, top_k, top_p, ..SamplingParams::default() };
            let (mut blocks, mut lines) = (Blocks::default(), Lines::default());
            let row = Row::of_changed(&logits, Some(temperature), &mut blocks);
            for i in 0..50 {
                let u = random::uniform(seed, 1, i);
                let draws = draw(&row, temperature, &numbers(u));
                let ranks = rank(&row, temperature, &draws);
                let here = Weights::new(&row, &p).choose(&mut lines, u);
                let drawn = Row { draws: &draws, ..row };
                prop_assert_eq!(Weights::new(&drawn, &p).choose(&mut lines, u), here);
                let ranked = Row { ranks: &ranks, ..drawn };
                let weights = Weights::new(&ranked, &p);
                let near = |r: TokenRank| (r.before - weights.target(r.total)).abs() < 1e-5 * r.total;
                let edge = (0..DRAWS).filter_map(|i| ranked.rank_of_drawn(i)).any(near);
                prop_assert!(weights.choose(&mut lines, u) == here || edge);
                // What is decided by ranks alone is what the row says.
                let blind = vec![f32::NAN; logits.len()];
                let unseen = Row { logits: &blind, ..ranked };
                let weights = Weights::new(&unseen, &p);
                prop_assert!(!weights.is_decided() || weights.choose(&mut lines, u) == here || edge);
            }
        }

        /// So are those that are accepted with some probability, of which few draws may find none.
        #[test]
        fn accepted_tokens_are_chosen_as_often_as_they_weigh(
            logits in logits(), temperature in 0.2f32..2.0, every in 2usize..40, lowered in 0.0f32..3.0, most in 1usize..40, seed: u64,
        ) {
            const DRAWS: u64 = 8_000;
            let p = SamplingParams { temperature, ..SamplingParams::default() };
            let changed = |id: usize| match id % every {
                0 => logits[id],
                1 => logits[id] - lowered,
                _ => f32::NEG_INFINITY,
            };
            let masked: Vec<f32> = (0..logits.len()).map(changed).collect();
            let (mut blocks, mut masked_blocks, mut lines) = (Blocks::default(), Blocks::default(), Lines::default());
            let row = Row::of_changed(&logits, Some(temperature), &mut blocks);
            let masked_row = Row::of_changed(&masked, Some(temperature), &mut masked_blocks);
            let (weights, masked_weights) = (Weights::new(&row, &p), Weights::new(&masked_row, &p));
            let accepts = |id: u32| f64::from((masked[id as usize] - logits[id as usize]) / temperature).exp();
            let mut counts = vec![0u32; logits.len()];
            for draw in 0..DRAWS {
                let found = weights.choose_accepted(&mut lines, random::uniform(seed, 1, draw), most, accepts);
                counts[found.unwrap_or_else(|u| masked_weights.choose(&mut lines, u)) as usize] += 1;
            }
            let weight = |i: usize| masked_weights.of(masked[i]);
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
            let (mut blocks, mut lines) = (Blocks::default(), Lines::default());
            let row = Row::of_changed(&logits, Some(temperature), &mut blocks);
            let weights = Weights::new(&row, &p);
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
                let (told, target) = (weights.keeps(token, &mut lines), f64::from(top_p) * total);
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

//! Questions to a row of logits, answered exactly without reading most of it: runs of 256 whose largest logit is too
//! small are skipped.
//!
//! Invariants:
//! - order is by logit, largest first, and by token id, smallest first, where logits are equal;
//! - answers do not depend on how the statistics were computed, as they are maxima.

use crate::{
    forward::{LOGITS_BLOCK, Row},
    softmax::{self, GROUPS, largest},
};
use rvllm_artifact::plan::{DRAWS, RANK};
use std::cmp::Ordering;

/// Values that are compared before it is asked whether one was equal.
const EQUAL_RUN: usize = 32;

/// A token with its logit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenLogit {
    /// The token.
    pub id: u32,
    /// Its logit.
    pub logit: f32,
}

/// Where a token stands in a row of which the most likely one weighs 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenRank {
    /// Its logit.
    pub logit: f32,
    /// How many logits are larger.
    pub larger: u32,
    /// What the tokens before it weigh: the likelier ones, and of equal ones those with smaller ids.
    pub before: f64,
    /// What all weigh.
    pub total: f64,
}

impl TokenLogit {
    fn order(&self, other: &TokenLogit) -> Ordering {
        other.logit.total_cmp(&self.logit).then(self.id.cmp(&other.id))
    }
}

/// Statistics of rows that were computed on the host: those of each run, in order.
#[derive(Clone, Debug, Default)]
pub struct Blocks {
    /// As [`crate::forward::Logits::block_max`].
    pub max: Vec<f32>,
    /// As [`crate::forward::Logits::block_sum`]; without those of rows from which no token will be drawn.
    pub sum: Vec<f32>,
}

impl Blocks {
    /// Forgets all rows.
    pub fn clear(&mut self) {
        self.max.clear();
        self.sum.clear();
    }

    /// Adds a row. `temperature` is that at which a token will be drawn from it, if one will be.
    pub fn push(&mut self, logits: &[f32], temperature: Option<f32>) {
        let [max, sum] = [self.max.len(), self.sum.len()];
        let blocks = logits.len().div_ceil(LOGITS_BLOCK);
        self.max.resize(max + blocks, f32::NEG_INFINITY);
        self.sum.resize(sum + temperature.map_or(0, |_| blocks), 0.0);
        softmax::block_stats(temperature.map(f32::recip), logits, &mut self.max[max..], &mut self.sum[sum..]);
    }
}

impl<'a> Row<'a> {
    /// A row whose statistics are computed into `blocks`. `temperature` is that at which a token will be drawn from it, if
    /// one will be. Its log-probabilities are not asked for.
    pub fn of_changed(logits: &'a [f32], temperature: Option<f32>, blocks: &'a mut Blocks) -> Row<'a> {
        blocks.clear();
        blocks.push(logits, temperature);
        let Blocks { max, sum } = blocks;
        Row {
            logits,
            max: largest(max),
            logsumexp: f32::NAN,
            block_max: max,
            block_sum: sum,
            draws: &[],
            ranks: &[],
            most_likely: [&[]; 2],
        }
    }

    /// Token number `i` of those drawn where the row was computed.
    pub fn drawn(&self, i: usize) -> Option<u32> {
        self.draws.get(i).map(|id| (*id as u32).min(self.logits.len().saturating_sub(1) as u32))
    }

    /// Where token number `i` of those drawn stands, where it was ranked.
    pub fn rank_of_drawn(&self, i: usize) -> Option<TokenRank> {
        let [logit, larger, before, total] = *self.ranks.as_chunks::<RANK>().0.get(i)?;
        (total > 0.0).then_some(TokenRank { logit, larger: larger as u32, before: before.into(), total: total.into() })
    }

    /// The most likely token; of equal ones the smallest id.
    pub fn argmax(&self) -> u32 {
        let block = first_equal(self.block_max, self.max);
        (block * LOGITS_BLOCK + first_equal(self.block(block), self.max)) as u32
    }

    /// A token's logit and its rank: how many logits are larger, and one, so that the most likely has 1.
    pub fn standing(&self, id: u32) -> (f32, u32) {
        let drawn = (0..DRAWS).find(|i| self.drawn(*i) == Some(id)).and_then(|i| self.rank_of_drawn(i));
        drawn.map_or_else(|| (self.logits[id as usize], self.rank(id)), |found| (found.logit, found.larger + 1))
    }

    /// The same rank, by reading the row.
    pub fn rank(&self, id: u32) -> u32 {
        let logit = self.logits[id as usize];
        // Of 32 bits, so that many are counted at once.
        let larger = |block: usize| self.block(block).iter().map(|l| u32::from(*l > logit)).sum::<u32>();
        1 + self.blocks_from(logit).map(larger).sum::<u32>()
    }

    /// The rank of each of some tokens, in one pass.
    pub fn ranks(&self, ids: &[u32]) -> Vec<u32> {
        let mut bounds: Vec<f32> = ids.iter().map(|id| self.logits[*id as usize]).collect();
        bounds.sort_unstable_by(f32::total_cmp);
        // Entry `i` counts the logits that are above bound `i - 1`, and at most bound `i`.
        let mut counts = vec![0; bounds.len() + 1];
        let least = bounds.first().copied().unwrap_or(f32::INFINITY);
        for logit in self.blocks_from(least).flat_map(|b| self.block(b)) {
            counts[bounds.partition_point(|bound| bound < logit)] += 1;
        }
        let larger = |i: usize| counts[i..].iter().sum::<u32>();
        ids.iter().map(|id| 1 + larger(bounds.partition_point(|b| *b <= self.logits[*id as usize]))).collect()
    }

    /// Whether the `count` most likely tokens are known without reading the row.
    pub(crate) fn has_found(&self, count: usize) -> bool {
        count.min(self.logits.len()) <= self.most_likely[0].len()
    }

    /// The `count` most likely tokens, in order.
    pub fn top(&self, count: usize) -> Vec<TokenLogit> {
        if self.has_found(count) {
            let [ids, logits] = self.most_likely;
            let found = ids.iter().zip(logits).take(count);
            return found.map(|(id, logit)| TokenLogit { id: *id as u32, logit: *logit }).collect();
        }
        let mut top = self.top_and_equals(count);
        top.truncate(count);
        top
    }

    /// The tokens with a logit of at least `bound`, in order.
    pub fn from(&self, bound: f32) -> Vec<TokenLogit> {
        let mut found: Vec<TokenLogit> = vec![];
        for block in self.blocks_from(bound) {
            self.find(block, bound, &mut found);
        }
        found.sort_unstable_by(TokenLogit::order);
        found
    }

    /// The `count` most likely tokens and those as likely as the last of them, in order.
    pub fn top_and_equals(&self, count: usize) -> Vec<TokenLogit> {
        let mut found = self.from(self.lower_bound(count));
        let last = count.min(found.len()).checked_sub(1).map(|i| found[i].logit);
        found.truncate(last.map_or(0, |last| found.partition_point(|t| t.logit >= last)));
        found
    }

    /// At most the `count`-th largest logit: as many runs have a maximum of at least this.
    fn lower_bound(&self, count: usize) -> f32 {
        if count == 0 || count > self.block_max.len() {
            return f32::NEG_INFINITY;
        }
        if let Some(run) = self.largest_runs(count).get(count - 1) {
            return self.block_max[*run as usize];
        }
        let mut maxima = self.block_max.to_vec();
        *maxima.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a)).1
    }

    /// The runs of the `count` largest maxima, of which the smallest is number `count - 1`, and behind them others where that is as
    /// large; none where there are not as many runs, or where that is not few.
    pub(crate) fn largest_runs(&self, count: usize) -> Vec<u32> {
        if count > self.block_max.len() || !(1..=GROUPS).contains(&count) {
            return vec![];
        }
        // Each group's largest is one of the maxima: as many of these as are asked for reach what bounds the others.
        let mut of_groups = softmax::largest_of_groups(self.block_max);
        let bound = *of_groups.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a)).1;
        let mut runs = reaching(self.block_max, bound);
        let max = |run: u32| self.block_max[run as usize];
        let (_, last, behind) = runs.select_nth_unstable_by(count - 1, |a, b| max(*b).total_cmp(&max(*a)));
        let equal = behind.iter().filter(|run| max(**run) >= max(*last)).count();
        behind.sort_unstable_by(|a, b| max(*b).total_cmp(&max(*a)));
        runs.truncate(count + equal);
        runs
    }

    /// The tokens of run `block` with a logit of at least `bound`.
    fn find(&self, block: usize, bound: f32, found: &mut Vec<TokenLogit>) {
        for (part, logits) in self.block(block).chunks(EQUAL_RUN).enumerate() {
            // without an early end all of them are compared at once
            if logits.iter().fold(false, |found, l| found | (*l >= bound)) {
                let first = self.first_id(block) + (part * EQUAL_RUN) as u32;
                let tokens = (first..).zip(logits).map(|(id, logit)| TokenLogit { id, logit: *logit });
                found.extend(tokens.filter(|t| t.logit >= bound));
            }
        }
    }

    /// Runs with a logit of at least `bound`.
    pub(crate) fn blocks_from(&self, bound: f32) -> impl Iterator<Item = usize> + '_ {
        // Without an early end within a part, all of it is compared at once.
        let reaches = move |part: &[f32]| part.iter().fold(false, |found, max| found | (*max >= bound));
        let parts = self.block_max.chunks(EQUAL_RUN).enumerate().filter(move |(_, part)| reaches(part));
        let within = move |(i, part): (usize, &'a [f32])| {
            (i * EQUAL_RUN..).zip(part).filter(move |(_, max)| **max >= bound).map(|(run, _)| run)
        };
        parts.flat_map(within)
    }

    /// The first token of run `i`.
    pub(crate) fn first_id(&self, i: usize) -> u32 {
        (i * LOGITS_BLOCK) as u32
    }

    /// The logits of run `i`.
    pub(crate) fn block(&self, i: usize) -> &'a [f32] {
        let start = i * LOGITS_BLOCK;
        &self.logits[start..self.logits.len().min(start + LOGITS_BLOCK)]
    }
}

/// Which of the values are at least `bound`.
fn reaching(values: &[f32], bound: f32) -> Vec<u32> {
    let (mut found, mut count) = (vec![0; values.len() + 1], 0);
    for (i, value) in (0..).zip(values) {
        // Written whether it is one or not: which are is hard to predict.
        found[count] = i;
        count += usize::from(*value >= bound);
    }
    found.truncate(count);
    found
}

/// Where a value stands first; 0 where it does not.
fn first_equal(values: &[f32], value: f32) -> usize {
    // Without an early end within a run, all of it is compared at once.
    let holds = |run: &[f32]| run.iter().fold(false, |found, v| found | (*v == value));
    let run = values.chunks(EQUAL_RUN).position(holds).unwrap_or(0) * EQUAL_RUN;
    run + values[run..].iter().position(|v| *v == value).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Few distinct values, so that ties are common.
    fn logits() -> impl Strategy<Value = Vec<f32>> {
        proptest::collection::vec(
            (-8i32..8).prop_map(|v| if v == -8 { f32::NEG_INFINITY } else { v as f32 / 4.0 }),
            1..900,
        )
    }

    proptest! {
        #[test]
        fn answers_are_those_of_a_full_sort(logits in logits(), count in 0usize..40, id in any::<usize>()) {
            let mut blocks = Blocks::default();
            let row = Row::of_changed(&logits, None, &mut blocks);
            let mut sorted: Vec<u32> = (0..logits.len() as u32).collect();
            sorted.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
            prop_assert_eq!(row.argmax(), sorted[0]);
            let top: Vec<u32> = row.top(count).iter().map(|t| t.id).collect();
            prop_assert_eq!(&top[..], &sorted[..count.min(sorted.len())]);
            let with_equals = row.top_and_equals(count);
            let last = top.last().map(|id| logits[*id as usize]);
            let expected = last.map_or(0, |last| logits.iter().filter(|l| **l >= last).count());
            prop_assert_eq!(with_equals.len(), expected);
            let id = id % logits.len();
            let rank = 1 + logits.iter().filter(|l| **l > logits[id]).count();
            prop_assert_eq!(row.rank(id as u32) as usize, rank);
            let some: Vec<u32> = (0..logits.len() as u32).step_by(count + 1).collect();
            prop_assert_eq!(row.ranks(&some), some.iter().map(|id| row.rank(*id)).collect::<Vec<_>>());
        }

        #[test]
        fn the_largest_maxima_are_those_of_a_sort(
            max in proptest::collection::vec(prop_oneof![4 => (-30i32..30).prop_map(|v| v as f32), 1 => Just(f32::NEG_INFINITY)], 1..700),
            count in 0usize..80, bound in -31i32..31,
        ) {
            let none = &[][..];
            let row = Row { logits: none, max: 0.0, logsumexp: 0.0, block_max: &max, block_sum: none, draws: none, ranks: none, most_likely: [none; 2] };
            let mut sorted = max.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let runs = row.largest_runs(count);
            if (1..=GROUPS.min(max.len())).contains(&count) {
                let last = sorted[count - 1];
                prop_assert_eq!(max[runs[count - 1] as usize], last);
                let (mut found, mut all) = (runs, (0..max.len() as u32).filter(|i| max[*i as usize] >= last).collect::<Vec<_>>());
                prop_assert!(found[count..].iter().all(|run| max[*run as usize] == last));
                found.sort_unstable();
                all.sort_unstable();
                prop_assert_eq!(found, all);
            } else {
                prop_assert_eq!(runs, Vec::<u32>::new());
            }
            let from: Vec<usize> = row.blocks_from(bound as f32).collect();
            prop_assert_eq!(from, (0..max.len()).filter(|i| max[*i] >= bound as f32).collect::<Vec<_>>());
        }
    }
}

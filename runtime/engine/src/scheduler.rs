//! Continuous batching: which tokens of which sequences a step computes.
//!
//! Running sequences come first, oldest first, each with as many uncomputed tokens as the budget allows: one for a
//! decode, a chunk for a prefill. Then waiting ones are admitted; they begin behind the KV that is found of them. Where
//! blocks run out, the newest running sequence is preempted: it loses its blocks and computes its tokens again later.
//! What waits is admitted where that leaves a free block to each sequence that runs, so that it is not preempted for
//! their next tokens, nor they for its. The beams of a request are admitted, preempted and given blocks as one: each waits for the others between two steps
//! of the search, so it must not be that some hold blocks that the others wait for.
//!
//! Invariants:
//! - `running` is sorted by [`SequenceKey`]; only running sequences hold blocks;
//! - the beams of a request all run or all wait, and have the indices from 0 on;
//! - a step has at most `max_num_batched_tokens` tokens, `max_num_seqs` sequences and `max_logits` rows of logits;
//! - a running sequence holds the blocks of all its tokens, computed or not;
//! - the oldest sequence goes on in every step, so every sequence finishes.

use crate::{
    block_table::{BlockCopy, BlockTables},
    forward::Limits,
    output::RequestId,
    sequence::{Sequence, SequenceKey},
    stats::Stats,
};
use std::{collections::BTreeMap, ops::Range};

/// In which order requests are served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SchedulingPolicy {
    /// By arrival. Requests bring no priority.
    #[default]
    Fcfs,
    /// By the priority that requests bring, smaller first; equal ones by arrival.
    Priority,
}

/// What is left of a step's bounds.
struct Budget {
    tokens: usize,
    rows: usize,
    seqs: usize,
}

impl Budget {
    fn of(limits: &Limits) -> Budget {
        Budget {
            tokens: limits.max_num_batched_tokens as usize,
            rows: limits.max_logits as usize,
            seqs: limits.max_num_seqs as usize,
        }
    }

    fn is_spent(&self) -> bool {
        self.tokens == 0 || self.seqs == 0
    }

    fn chunk(&self, sequence: &Sequence) -> usize {
        if self.is_spent() { 0 } else { sequence.tokens_within(self.tokens, self.rows) }
    }

    fn spend(&mut self, sequence: &mut Sequence) {
        let chunk = self.chunk(sequence);
        sequence.num_scheduled_tokens = chunk;
        self.tokens -= chunk;
        self.rows -= sequence.rows(chunk).count();
        self.seqs -= usize::from(chunk > 0);
    }
}

/// The queues and the blocks.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    tables: BlockTables,
    waiting: BTreeMap<SequenceKey, Sequence>,
    running: Vec<Sequence>,
    preempted: Vec<RequestId>,
    counted: Stats,
}

impl Scheduler {
    /// Empty queues over free blocks.
    pub fn new(limits: Limits) -> Scheduler {
        let tables = BlockTables::new(limits.num_blocks, limits.block_size);
        let (waiting, running, preempted) = (BTreeMap::new(), vec![], vec![]);
        Scheduler { limits, tables, waiting, running, preempted, counted: Stats::default() }
    }

    /// Whether sequences find blocks that others computed; they do unless told otherwise.
    pub fn set_prefix_caching(&mut self, enabled: bool) {
        self.tables.set_prefix_caching(enabled);
    }

    /// Queues a sequence.
    pub fn add(&mut self, sequence: Sequence) {
        self.waiting.insert(sequence.key, sequence);
    }

    /// How it fares.
    pub fn stats(&self) -> Stats {
        let mut stats = Stats { num_running: self.running.len(), num_waiting: self.waiting.len(), ..self.counted };
        self.tables.report(&mut stats);
        stats
    }

    /// Whose sequences lost their blocks in the last [`Scheduler::schedule`].
    pub fn preempted(&self) -> &[RequestId] {
        &self.preempted
    }

    /// Which sequences hold blocks, and which wait for them, in order.
    #[cfg(test)]
    pub(crate) fn keys(&self) -> (Vec<SequenceKey>, Vec<SequenceKey>) {
        (self.running.iter().map(|s| s.key).collect(), self.waiting.keys().copied().collect())
    }

    /// Chooses the tokens of the next step: sets `num_scheduled_tokens`, and returns the copies to make before it.
    pub fn schedule(&mut self) -> Vec<BlockCopy> {
        let (mut budget, mut copies) = (Budget::of(&self.limits), vec![]);
        self.preempted.clear();
        self.schedule_running(&mut budget, &mut copies);
        if self.preempted.is_empty() {
            self.admit_waiting(&mut budget);
        }
        copies
    }

    /// The sequences of the step, in its order.
    pub fn scheduled(&self) -> impl Iterator<Item = &Sequence> + Clone {
        self.running.iter().filter(|s| s.num_scheduled_tokens > 0)
    }

    /// Notes that the step has been computed.
    pub fn advance(&mut self) {
        self.counted.num_steps += 1;
        for sequence in &mut self.running {
            self.counted.num_scheduled_tokens += sequence.num_scheduled_tokens as u64;
            sequence.num_computed_tokens += std::mem::take(&mut sequence.num_scheduled_tokens);
            sequence.prompt_rows_from = sequence.prompt_rows_from.max(sequence.num_computed_tokens);
        }
    }

    /// A sequence, running or waiting.
    pub fn sequence_mut(&mut self, key: SequenceKey) -> Option<&mut Sequence> {
        match self.position(key) {
            Ok(i) => Some(&mut self.running[i]),
            Err(_) => self.waiting.get_mut(&key),
        }
    }

    /// Starts another sequence of the same request with the tokens of running sequence `key`. It shares the blocks where
    /// the step has room for it, else it waits and computes them itself.
    pub fn fork(&mut self, key: SequenceKey, index: u32) {
        let Ok(parent) = self.position(key) else { return };
        let mut child = self.running[parent].clone();
        child.key.index = index;
        if self.running.len() < self.limits.max_num_seqs as usize {
            self.tables.share(&child);
            self.insert_running(child);
        } else {
            child.block_table.clear();
            child.num_computed_tokens = 0;
            self.add(child);
        }
    }

    /// Replaces the running beams of the request that `key` is of: the new beam `i` is what beam `next[i].0` was, and the
    /// token `next[i].1`.
    pub fn branch(&mut self, key: SequenceKey, next: &[(u32, u32)]) {
        let all = self.running_of(key);
        let start = all.start;
        let mut old: Vec<Option<Sequence>> = self.running.drain(all).map(Some).collect();
        let mut new = vec![];
        for (i, (parent, token)) in next.iter().enumerate() {
            let parent = *parent as usize;
            let last_use = next[i + 1..].iter().all(|(other, _)| *other as usize != parent);
            let Some(mut beam) = (if last_use { old[parent].take() } else { old[parent].clone() }) else { continue };
            if !last_use {
                self.tables.share(&beam);
            }
            beam.key.index = i as u32;
            beam.token_ids.push(*token);
            new.push(beam);
        }
        old.into_iter().flatten().for_each(|mut beam| self.tables.release(&mut beam));
        self.running.splice(start..start, new);
    }

    /// Takes a sequence out and frees what it held.
    pub fn remove(&mut self, key: SequenceKey) -> Option<Sequence> {
        let mut sequence = match self.position(key) {
            Ok(i) => self.running.remove(i),
            Err(_) => self.waiting.remove(&key)?,
        };
        self.tables.release(&mut sequence);
        Some(sequence)
    }

    fn position(&self, key: SequenceKey) -> Result<usize, usize> {
        self.running.binary_search_by_key(&key, |s| s.key)
    }

    fn insert_running(&mut self, sequence: Sequence) {
        let at = self.running.partition_point(|s| s.key < sequence.key);
        self.running.insert(at, sequence);
    }

    /// The running sequences of the request that `key` is of.
    fn running_of(&self, key: SequenceKey) -> Range<usize> {
        let request = key.request();
        let start = self.running.partition_point(|s| s.key.request() < request);
        start..start + self.running[start..].partition_point(|s| s.key.request() == request)
    }

    /// The running sequences that hold blocks together with sequence `i`: itself, or all beams.
    fn together(&self, i: usize) -> Range<usize> {
        match &self.running[i] {
            beam if beam.beam => self.running_of(beam.key),
            _ => i..i + 1,
        }
    }

    fn schedule_running(&mut self, budget: &mut Budget, copies: &mut Vec<BlockCopy>) {
        let mut i = 0;
        while i < self.running.len() && !budget.is_spent() {
            let together = self.together(i);
            let beams = &mut self.running[together.clone()];
            if !beams.iter_mut().all(|s| reserve(&mut self.tables, s, budget, copies)) {
                self.preempt_newest();
                continue;
            }
            for sequence in beams {
                budget.spend(sequence);
                self.tables.remember(sequence);
            }
            i = together.end;
        }
    }

    fn admit_waiting(&mut self, budget: &mut Budget) {
        while !budget.is_spent() {
            let mut together = self.next_waiting();
            if !self.admit(&mut together, budget) {
                return self.waiting.extend(together.into_iter().map(|s| (s.key, s)));
            }
            together.into_iter().for_each(|s| self.insert_running(s));
        }
    }

    /// Takes the oldest waiting sequence out, or all beams of its request.
    fn next_waiting(&mut self) -> Vec<Sequence> {
        let mut next: Vec<Sequence> = self.waiting.pop_first().into_iter().map(|(_, s)| s).collect();
        while let Some(entry) = self.waiting.first_entry() {
            if next.first().is_none_or(|s| !s.beam || s.key.request() != entry.key().request()) {
                break;
            }
            next.push(entry.remove());
        }
        next
    }

    /// Gives waiting sequences blocks, and chunks as far as the step has room. False, and nothing done, where there are
    /// none, or not enough of either.
    fn admit(&mut self, together: &mut [Sequence], budget: &mut Budget) -> bool {
        let fits = self.running.len() + together.len() <= self.limits.max_num_seqs as usize;
        match together {
            [] => false,
            [sequence] => fits && self.admit_one(sequence, budget),
            // Together they may need more sequences than a step has; then they are computed in several.
            beams => {
                let room = fits || self.running.is_empty();
                room && self.tables.have_room_for(beams, self.running.len())
                    && beams.iter_mut().all(|s| self.admit_beam(s, budget))
            }
        }
    }

    /// Gives a waiting sequence blocks and a chunk. False, and nothing done, where there is no room for it.
    fn admit_one(&mut self, sequence: &mut Sequence, budget: &mut Budget) -> bool {
        let found = self.tables.find(sequence);
        sequence.num_computed_tokens = found.len() * self.limits.block_size as usize;
        if budget.chunk(sequence) == 0 || !self.tables.admit(sequence, &found, self.running.len()) {
            sequence.num_computed_tokens = 0;
            return false;
        }
        budget.spend(sequence);
        self.tables.remember(sequence);
        true
    }

    /// Gives a waiting beam blocks, which are there, and a chunk where the step has room.
    fn admit_beam(&mut self, beam: &mut Sequence, budget: &mut Budget) -> bool {
        let found = self.tables.find(beam);
        beam.num_computed_tokens = found.len() * self.limits.block_size as usize;
        let admitted = self.tables.admit(beam, &found, 0);
        budget.spend(beam);
        self.tables.remember(beam);
        admitted
    }

    fn preempt_newest(&mut self) {
        let Some(newest) = self.running.len().checked_sub(1) else { return };
        for mut sequence in self.running.drain(self.together(newest)).collect::<Vec<_>>() {
            self.tables.release(&mut sequence);
            self.preempted.push(sequence.request_id);
            self.counted.num_preemptions += 1;
            self.add(sequence);
        }
    }
}

/// Gives a running sequence the blocks of all its tokens, where it has any to compute. False where there are too few.
fn reserve(tables: &mut BlockTables, s: &mut Sequence, budget: &Budget, copies: &mut Vec<BlockCopy>) -> bool {
    let wanted = if s.beam { s.num_uncomputed_tokens() > 0 } else { budget.chunk(s) > 0 };
    !wanted || tables.reserve(s, copies)
}

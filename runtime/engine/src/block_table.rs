//! The block tables of sequences: which blocks each gets, and which it finds filled already.
//!
//! Only full blocks are found again, from the moment in which a step is to fill them: a step writes KV before it reads
//! any (see [`crate::forward::Forward`]), so its sequences share what one of them computes.
//!
//! Invariants:
//! - what is found was computed from the same tokens, under the same salt, and is never written again;
//! - nobody writes a block that another holds: it is copied first;
//! - where blocks do not suffice, nothing has changed.

use crate::{
    block_hash::BlockHasher,
    block_pool::{BlockId, BlockPool},
    sequence::Sequence,
    stats::Stats,
};

/// Copy the KV of one block to another, before the step, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCopy {
    /// Source.
    pub from: BlockId,
    /// Destination.
    pub to: BlockId,
}

/// Gives blocks to sequences and takes them back.
#[derive(Debug)]
pub struct BlockTables {
    pool: BlockPool,
    block_size: usize,
    hasher: BlockHasher,
    prefix_caching: bool,
    queries: u64,
    hits: u64,
}

impl BlockTables {
    /// Free blocks of `block_size` tokens.
    pub fn new(num_blocks: u32, block_size: u32) -> BlockTables {
        BlockTables {
            pool: BlockPool::new(num_blocks),
            block_size: block_size as usize,
            hasher: BlockHasher::new(),
            prefix_caching: true,
            queries: 0,
            hits: 0,
        }
    }

    /// Whether sequences find blocks that others computed.
    pub fn set_prefix_caching(&mut self, enabled: bool) {
        self.prefix_caching = enabled;
    }

    /// Fills in what is known here.
    pub fn report(&self, stats: &mut Stats) {
        stats.num_blocks = self.pool.num_blocks();
        stats.num_free_blocks = self.pool.num_free();
        stats.prefix_cache_queries = self.queries;
        stats.prefix_cache_hits = self.hits;
    }

    /// The blocks that hold the first tokens of a waiting sequence: as many as are found, short of the first token
    /// whose logits are wanted.
    pub fn find(&self, sequence: &mut Sequence) -> Vec<BlockId> {
        if !self.prefix_caching {
            return vec![];
        }
        let blocks = sequence.num_skippable_tokens() / self.block_size;
        let hashes = sequence.block_hashes(&self.hasher, blocks, self.block_size);
        hashes.iter().map_while(|hash| self.pool.find(*hash)).collect()
    }

    /// Gives a waiting sequence blocks for all its tokens, the first of them `found`. False where they do not suffice, or
    /// fewer than `spare` would be left.
    pub fn admit(&mut self, sequence: &mut Sequence, found: &[BlockId], spare: usize) -> bool {
        let more = self.blocks_of(sequence) - found.len();
        let found_free = found.iter().filter(|block| self.pool.ref_count(**block) == 0).count();
        if more + found_free + spare > self.pool.num_free() {
            return false;
        }
        // Held before any is allocated: a free block that was found may be the next to be taken.
        found.iter().for_each(|block| self.pool.share(*block));
        sequence.block_table.extend(found);
        self.extend(sequence, more);
        self.count(sequence, found.len() * self.block_size);
        true
    }

    /// Whether there are blocks for all tokens of several sequences, even if they share none, and `spare` ones beside.
    pub fn have_room_for(&self, sequences: &[Sequence], spare: usize) -> bool {
        sequences.iter().map(|s| self.blocks_of(s)).sum::<usize>() + spare <= self.pool.num_free()
    }

    /// Gives a running sequence the blocks for all its tokens, and its own copy of the block that it writes first.
    /// False where they do not suffice.
    pub fn reserve(&mut self, sequence: &mut Sequence, copies: &mut Vec<BlockCopy>) -> bool {
        let first = sequence.num_computed_tokens / self.block_size;
        let shared = sequence.block_table.get(first).copied().filter(|b| self.pool.ref_count(*b) > 1);
        let more = self.blocks_of(sequence).saturating_sub(sequence.block_table.len());
        if more + usize::from(shared.is_some()) > self.pool.num_free() {
            return false;
        }
        if let (Some(from), Some(to)) = (shared, shared.and_then(|_| self.pool.allocate())) {
            self.pool.release(from);
            sequence.block_table[first] = to;
            copies.push(BlockCopy { from, to });
        }
        self.extend(sequence, more);
        true
    }

    /// Makes the blocks findable that the sequence's scheduled tokens fill; where the last of them was not known when it was computed,
    /// that is now.
    pub fn remember(&mut self, sequence: &mut Sequence) {
        let from = sequence.num_computed_tokens.saturating_sub(1) / self.block_size;
        let to = sequence.scheduled_end().min(sequence.num_known_tokens()) / self.block_size;
        if !self.prefix_caching || from >= to {
            return;
        }
        let hashes = sequence.block_hashes(&self.hasher, to, self.block_size)[from..].to_vec();
        for (block, hash) in sequence.block_table[from..to].iter().zip(hashes) {
            self.pool.remember(*block, hash);
        }
    }

    /// Holds the blocks of a sequence once more, for a copy of it.
    pub fn share(&mut self, sequence: &Sequence) {
        sequence.block_table.iter().for_each(|block| self.pool.share(*block));
    }

    /// Takes a sequence's blocks. The last are freed first: the start of a sequence is worth keeping for longest.
    pub fn release(&mut self, sequence: &mut Sequence) {
        sequence.block_table.drain(..).rev().for_each(|block| self.pool.release(block));
        sequence.num_computed_tokens = 0;
        sequence.num_scheduled_tokens = 0;
    }

    fn blocks_of(&self, sequence: &Sequence) -> usize {
        sequence.token_ids.len().div_ceil(self.block_size)
    }

    fn extend(&mut self, sequence: &mut Sequence, more: usize) {
        sequence.block_table.extend((0..more).map_while(|_| self.pool.allocate()));
    }

    /// Counts the prompt once: what is found after a preemption is the sequence's own.
    fn count(&mut self, sequence: &mut Sequence, found: usize) {
        if sequence.num_cached_tokens.is_none() {
            sequence.num_cached_tokens = Some(found);
            self.queries += if self.prefix_caching { sequence.num_skippable_tokens() as u64 } else { 0 };
            self.hits += found as u64;
        }
    }
}

//! The KV cache's blocks: who holds which, which are free, and which contents can be found again.
//!
//! Invariants:
//! - a block is on the free list exactly while nobody holds it;
//! - a free block keeps its contents and their name until it is allocated; at most one block has a name;
//! - the free list begins with blocks without a name; those with one follow by time of release, oldest first: what was
//!   used last survives longest;
//! - every operation is O(1).

use crate::block_hash::BlockHash;
use rustc_hash::FxHashMap;
use std::collections::hash_map::Entry;

/// A block of the KV cache.
pub type BlockId = u32;

/// Ends the free list.
const NONE: u32 = u32::MAX;

/// Neighbours on the free list.
#[derive(Clone, Copy, Debug)]
struct Link {
    previous: u32,
    next: u32,
}

/// Reference-counted blocks. Several sequences hold a block whose tokens they share.
#[derive(Debug)]
pub struct BlockPool {
    ref_counts: Vec<u32>,
    /// The free list, threaded through the blocks; entry `num_blocks` is its head and tail.
    links: Vec<Link>,
    num_free: usize,
    /// What each block holds, where it can be found by that.
    hashes: Vec<Option<BlockHash>>,
    by_hash: FxHashMap<BlockHash, BlockId>,
}

impl BlockPool {
    /// A pool of free blocks, taken from 0 on.
    pub fn new(num_blocks: u32) -> BlockPool {
        let mut pool = BlockPool {
            ref_counts: vec![0; num_blocks as usize],
            links: vec![Link { previous: NONE, next: NONE }; num_blocks as usize + 1],
            num_free: 0,
            hashes: vec![None; num_blocks as usize],
            by_hash: FxHashMap::default(),
        };
        let ends = pool.ends();
        pool.links[ends as usize] = Link { previous: ends, next: ends };
        (0..num_blocks).for_each(|block| pool.insert_free(block, ends));
        pool
    }

    /// All blocks.
    pub fn num_blocks(&self) -> usize {
        self.ref_counts.len()
    }

    /// Blocks that nobody holds.
    pub fn num_free(&self) -> usize {
        self.num_free
    }

    /// How many hold a block.
    pub fn ref_count(&self, block: BlockId) -> u32 {
        self.ref_counts[block as usize]
    }

    /// Takes the free block whose contents are worth least, and forgets them; `None` where none is free.
    pub fn allocate(&mut self) -> Option<BlockId> {
        let block = self.links[self.ends() as usize].next;
        if block == self.ends() {
            return None;
        }
        self.share(block);
        self.forget(block);
        Some(block)
    }

    /// Makes a held block's contents findable until it is allocated again. Where another block of these contents is
    /// found already, that one stays the one found.
    pub fn remember(&mut self, block: BlockId, hash: BlockHash) {
        debug_assert!(self.ref_count(block) > 0, "block {block} gets a name from nobody who holds it");
        if let Entry::Vacant(entry) = self.by_hash.entry(hash) {
            entry.insert(block);
            self.forget(block);
            self.hashes[block as usize] = Some(hash);
        }
    }

    /// The block of these contents, held or free.
    pub fn find(&self, hash: BlockHash) -> Option<BlockId> {
        self.by_hash.get(&hash).copied()
    }

    /// Holds a block once more. A free one is held again with its contents.
    pub fn share(&mut self, block: BlockId) {
        if self.ref_count(block) == 0 {
            self.unlink(block);
        }
        self.ref_counts[block as usize] += 1;
    }

    /// Gives a held block up; the last holder frees it.
    pub fn release(&mut self, block: BlockId) {
        let count = &mut self.ref_counts[block as usize];
        debug_assert!(*count > 0, "block {block} is released by nobody who holds it");
        *count -= 1;
        if *count == 0 {
            let (ends, first) = (self.ends(), self.links[self.ends() as usize].next);
            self.insert_free(block, if self.hashes[block as usize].is_some() { ends } else { first });
        }
    }

    fn ends(&self) -> u32 {
        self.ref_counts.len() as u32
    }

    fn forget(&mut self, block: BlockId) {
        if let Some(hash) = self.hashes[block as usize].take() {
            self.by_hash.remove(&hash);
        }
    }

    /// Puts a block on the free list before another, or before its end.
    fn insert_free(&mut self, block: BlockId, next: BlockId) {
        let previous = self.links[next as usize].previous;
        self.links[block as usize] = Link { previous, next };
        self.links[previous as usize].next = block;
        self.links[next as usize].previous = block;
        self.num_free += 1;
    }

    fn unlink(&mut self, block: BlockId) {
        let Link { previous, next } = self.links[block as usize];
        self.links[previous as usize].next = next;
        self.links[next as usize].previous = previous;
        self.num_free -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block_hash::BlockHasher;
    use proptest::prelude::*;

    fn names<const N: usize>() -> [BlockHash; N] {
        let hasher = BlockHasher::new();
        std::array::from_fn(|i| hasher.child(hasher.root(None), &[i as u32]))
    }

    fn allocate<const N: usize>(pool: &mut BlockPool) -> [Option<BlockId>; N] {
        std::array::from_fn(|_| pool.allocate())
    }

    #[test]
    fn blocks_without_a_name_are_taken_first_then_the_longest_unused() {
        let (mut pool, [a, b, c]) = (BlockPool::new(4), names());
        assert_eq!(allocate(&mut pool), [Some(0), Some(1), Some(2), Some(3), None]);
        [(0, a), (1, b), (2, c)].into_iter().for_each(|(block, name)| pool.remember(block, name));
        [2, 3, 0, 1].into_iter().for_each(|block| pool.release(block));
        pool.share(2);
        pool.release(2);
        assert_eq!(allocate(&mut pool), [Some(3), Some(0), Some(1), Some(2), None]);
    }

    #[test]
    fn contents_are_found_until_their_block_is_allocated() {
        let (mut pool, [a, b]) = (BlockPool::new(2), names());
        allocate::<2>(&mut pool);
        pool.remember(0, a);
        pool.remember(1, b);
        pool.release(1);
        pool.release(0);
        assert_eq!((pool.find(a), pool.find(b), pool.num_free()), (Some(0), Some(1), 2));
        assert_eq!(pool.allocate(), Some(1));
        assert_eq!((pool.find(a), pool.find(b)), (Some(0), None));
        pool.share(0);
        assert_eq!((pool.allocate(), pool.find(a)), (None, Some(0)));
    }

    #[test]
    fn of_equal_contents_the_first_is_found() {
        let (mut pool, [a]) = (BlockPool::new(2), names());
        allocate::<2>(&mut pool);
        pool.remember(1, a);
        pool.remember(0, a);
        assert_eq!(pool.find(a), Some(1));
        pool.release(1);
        pool.release(0);
        assert_eq!((pool.allocate(), pool.find(a)), (Some(0), Some(1)));
    }

    /// What the pool should be: lists, searched.
    #[derive(Default)]
    struct Model {
        /// In the order in which they are taken.
        free: Vec<BlockId>,
        /// A block as often as it is held.
        held: Vec<BlockId>,
        names: Vec<(BlockId, BlockHash)>,
    }

    impl Model {
        fn named(&self, block: BlockId) -> bool {
            self.names.iter().any(|(b, _)| *b == block)
        }

        fn allocate(&mut self) -> Option<BlockId> {
            let block = (!self.free.is_empty()).then(|| self.free.remove(0))?;
            self.names.retain(|(b, _)| *b != block);
            self.held.push(block);
            Some(block)
        }

        fn share(&mut self, block: BlockId) {
            self.free.retain(|b| *b != block);
            self.held.push(block);
        }

        fn remember(&mut self, block: BlockId, name: BlockHash) {
            if self.names.iter().all(|(_, n)| *n != name) {
                self.names.retain(|(b, _)| *b != block);
                self.names.push((block, name));
            }
        }

        fn release(&mut self, i: usize) -> BlockId {
            let block = self.held.swap_remove(i);
            if !self.held.contains(&block) {
                let at = if self.named(block) { self.free.len() } else { 0 };
                self.free.insert(at, block);
            }
            block
        }
    }

    /// Applies operation `op` to both, on what `pick` chooses.
    fn apply(op: u8, pick: usize, pool: &mut BlockPool, model: &mut Model, names: &[BlockHash]) {
        match op {
            0 => assert_eq!(pool.allocate(), model.allocate()),
            1 if pool.num_blocks() > 0 => {
                let block = (pick % pool.num_blocks()) as u32;
                pool.share(block);
                model.share(block);
            }
            2 if !model.held.is_empty() => pool.release(model.release(pick % model.held.len())),
            3 if !model.held.is_empty() => {
                let (block, name) = (model.held[pick % model.held.len()], names[pick / 7 % names.len()]);
                pool.remember(block, name);
                model.remember(block, name);
            }
            _ => {}
        }
    }

    fn check(pool: &BlockPool, model: &Model, names: &[BlockHash]) {
        assert_eq!(pool.num_free(), model.free.len());
        for block in 0..pool.num_blocks() as u32 {
            assert_eq!(pool.ref_count(block) as usize, model.held.iter().filter(|b| **b == block).count());
        }
        for name in names {
            assert_eq!(pool.find(*name), model.names.iter().find(|(_, n)| n == name).map(|(b, _)| *b));
        }
    }

    proptest! {
        /// Counts, order and names agree with the lists; nothing leaks; a held block is never handed out.
        #[test]
        fn the_pool_does_what_lists_would(
            num_blocks in 0u32..12,
            ops in proptest::collection::vec((0u8..4, any::<usize>()), 0..300),
        ) {
            let (mut pool, names) = (BlockPool::new(num_blocks), names::<9>());
            let mut model = Model { free: (0..num_blocks).collect(), ..Model::default() };
            for (op, pick) in ops {
                apply(op, pick, &mut pool, &mut model, &names);
                check(&pool, &model, &names);
            }
            while let Some(i) = model.held.len().checked_sub(1) {
                pool.release(model.release(i));
            }
            let mut all: Vec<u32> = std::iter::from_fn(|| pool.allocate()).collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..num_blocks).collect::<Vec<_>>());
            prop_assert!(pool.by_hash.is_empty() && pool.hashes.iter().all(Option::is_none));
        }
    }
}

//! A sequence: one token stream being extended, as the scheduler sees it.
//!
//! Invariants:
//! - `num_computed_tokens + num_scheduled_tokens <= token_ids.len()`;
//! - a sequence that holds no blocks has nothing computed;
//! - names of blocks are only added, as tokens are;
//! - the KV of token `i` lies at offset `i % block_size` of `block_table[i / block_size]`.

use crate::{
    block_hash::{BlockHash, BlockHasher},
    block_pool::BlockId,
    output::RequestId,
};
use std::sync::Arc;

/// Order of service: smaller priority first, then earlier arrival, then smaller index within the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceKey {
    /// As the request says.
    pub priority: i32,
    /// Counts requests.
    pub arrival: u64,
    /// Which of the request's `n`.
    pub index: u32,
}

/// A token stream.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// Its place in the order of service.
    pub key: SequenceKey,
    /// Whose it is.
    pub request_id: RequestId,
    /// Prompt, then answer.
    pub token_ids: Vec<u32>,
    /// The row of the step under way that chooses its last token, while that is not known: then `token_ids` has a 0 there.
    pub fed_by: Option<usize>,
    /// How many of them are the prompt.
    pub num_prompt_tokens: usize,
    /// Tokens whose KV is in the cache.
    pub num_computed_tokens: usize,
    /// Tokens that the present step computes, after those.
    pub num_scheduled_tokens: usize,
    /// Blocks that hold the KV, in order.
    pub block_table: Vec<BlockId>,
    /// First position whose logits are still wanted for `prompt_logprobs`; `num_prompt_tokens` where none are.
    pub prompt_rows_from: usize,
    /// Tokens whose KV was found when it first ran; `None` before.
    pub num_cached_tokens: Option<usize>,
    /// Shares KV only with sequences of the same salt.
    pub cache_salt: Option<Arc<str>>,
    /// Whether it is a beam: the beams of a request hold blocks together or not at all.
    pub beam: bool,
    /// Of its first full blocks, as far as anybody asked.
    block_hashes: Vec<BlockHash>,
}

impl SequenceKey {
    /// Names the request: all its sequences have it.
    pub fn request(self) -> (i32, u64) {
        (self.priority, self.arrival)
    }
}

impl Sequence {
    /// A sequence of which nothing is computed.
    pub fn new(key: SequenceKey, request_id: RequestId, prompt: Vec<u32>, prompt_logprobs: bool) -> Sequence {
        let num_prompt_tokens = prompt.len();
        Sequence {
            key,
            request_id,
            token_ids: prompt,
            fed_by: None,
            num_prompt_tokens,
            num_computed_tokens: 0,
            num_scheduled_tokens: 0,
            block_table: vec![],
            prompt_rows_from: if prompt_logprobs { 0 } else { num_prompt_tokens },
            num_cached_tokens: None,
            cache_salt: None,
            beam: false,
            block_hashes: vec![],
        }
    }

    /// Tokens whose KV is not in the cache yet.
    pub fn num_uncomputed_tokens(&self) -> usize {
        self.token_ids.len() - self.num_computed_tokens
    }

    /// How many of its tokens are known.
    pub fn num_known_tokens(&self) -> usize {
        self.token_ids.len() - usize::from(self.fed_by.is_some())
    }

    /// Adds the token that is chosen from a row of the step under way.
    pub fn expect_token(&mut self, row: usize) {
        self.fed_by = Some(row);
        self.token_ids.push(0);
    }

    /// Adds tokens of its answer, the one that was expected first.
    pub fn add_tokens(&mut self, tokens: &[u32]) {
        if self.fed_by.take().is_some() {
            self.token_ids.pop();
        }
        self.token_ids.extend(tokens);
    }

    /// One past the last token that the present step computes.
    pub fn scheduled_end(&self) -> usize {
        self.num_computed_tokens + self.num_scheduled_tokens
    }

    /// Whether the present step computes its last token, so that the next can be chosen.
    pub fn samples(&self) -> bool {
        self.num_scheduled_tokens > 0 && self.scheduled_end() == self.token_ids.len()
    }

    /// Positions whose logits are wanted where a step computes `num_tokens` tokens, ascending: those of the prompt that
    /// `prompt_logprobs` asks for, and the last one of the sequence.
    pub fn rows(&self, num_tokens: usize) -> impl Iterator<Item = usize> + use<> {
        let (start, end) = (self.num_computed_tokens, self.num_computed_tokens + num_tokens);
        let (from, until) = (start.max(self.prompt_rows_from), end.min(self.num_prompt_tokens - 1));
        let last = (num_tokens > 0 && end == self.token_ids.len()).then_some(end.saturating_sub(1));
        (from..until).chain(last)
    }

    /// Leading tokens whose logits nobody wants, so that their KV may be found instead of computed: never all, as the
    /// last one's logits choose the next.
    pub fn num_skippable_tokens(&self) -> usize {
        let first = self.prompt_rows_from;
        if first + 1 < self.num_prompt_tokens { first } else { self.token_ids.len() - 1 }
    }

    /// Names of its first `num_blocks` blocks, all of them full.
    pub fn block_hashes(&mut self, hasher: &BlockHasher, num_blocks: usize, block_size: usize) -> &[BlockHash] {
        for i in self.block_hashes.len()..num_blocks {
            let parent = self.block_hashes.last().copied();
            let parent = parent.unwrap_or_else(|| hasher.root(self.cache_salt.as_deref()));
            self.block_hashes.push(hasher.child(parent, &self.token_ids[i * block_size..][..block_size]));
        }
        &self.block_hashes[..num_blocks]
    }

    /// The most tokens, at most `limit`, whose rows are at most `rows`.
    pub fn tokens_within(&self, limit: usize, rows: usize) -> usize {
        let (mut within, mut beyond) = (0, limit.min(self.num_uncomputed_tokens()) + 1);
        while beyond - within > 1 {
            let middle = (within + beyond) / 2;
            *(if self.rows(middle).count() <= rows { &mut within } else { &mut beyond }) = middle;
        }
        within
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_largest_chunk_within_the_rows_is_found(
            prompt in 1usize..20, output in 0usize..5, computed in 0usize..25, from in 0usize..25, limit in 0usize..30, rows in 0usize..12,
        ) {
            let key = SequenceKey { priority: 0, arrival: 0, index: 0 };
            let mut s = Sequence::new(key, 0, vec![1; prompt], true);
            s.token_ids.extend(vec![2; output]);
            s.num_computed_tokens = computed.min(s.token_ids.len() - 1);
            s.prompt_rows_from = from.min(prompt);
            let most = limit.min(s.num_uncomputed_tokens());
            let skipped = Sequence { num_computed_tokens: 0, ..s.clone() };
            prop_assert_eq!(skipped.rows(s.token_ids.len()).next(), Some(skipped.num_skippable_tokens()));
            let best = (0..=most).rev().find(|n| s.rows(*n).count() <= rows).unwrap();
            prop_assert_eq!(s.tokens_within(limit, rows), best);
        }
    }
}

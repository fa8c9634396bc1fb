//! The step: one ragged batch of prefill chunks and decodes. The one place that fills these arrays; kernels only read.

use crate::{draw::Numbers, forward::Reads, sequence::Sequence};
use rvllm_artifact::plan::{DRAWS, Input};

/// Entries of `slot_mapping` for tokens whose KV is not written.
pub const PAD_SLOT: i32 = -1;

/// The arrays of a step. T tokens, R sequences, L rows of logits, Q query tiles, M columns of the block table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// `[T]`; `-1 - row` stands for the first token drawn from that row of the step before.
    pub token_ids: Vec<i32>,
    /// `[T]`: of the token in its sequence.
    pub positions: Vec<i32>,
    /// `[T]`: `block * block_size + offset` where the token's KV is written.
    pub slot_mapping: Vec<i32>,
    /// `[R+1]`: where each sequence's tokens begin.
    pub query_start_loc: Vec<i32>,
    /// `[R]`: tokens of each sequence, those of this step included.
    pub seq_lens: Vec<i32>,
    /// `[R, M]`: each sequence's blocks, zeros behind.
    pub block_table: Vec<i32>,
    /// `[L]`: tokens (index in the step) whose logits are wanted.
    pub logits_indices: Vec<i32>,
    /// `[L]`: what will be read of each row of logits; all of every row where it is empty.
    pub reads: Vec<Reads>,
    /// `[L]`: at which a token is drawn from each row of logits; 1 where none is.
    pub temperature: Vec<f32>,
    /// `[L, 2 * DRAWS]`: random numbers in [0, 1), two for each of the tokens drawn from a row; 0 where none is.
    pub uniform: Vec<f32>,
    /// `[L]`: how many of the tokens drawn from a row are ranked.
    pub ranked: Vec<i32>,
    /// `[L]`: how many of the most likely tokens of a row are found, at most TOP_K.
    pub top_k: Vec<i32>,
    /// `[Q]`: sequence of each query tile, those that see most tokens first.
    pub tile_seq: Vec<i32>,
    /// `[Q]`: first token (index in the step) of each query tile.
    pub tile_start: Vec<i32>,
    /// M.
    pub max_blocks: usize,
}

/// What a step asks of a row of logits.
pub(crate) struct RowInputs<'a> {
    pub(crate) temperature: &'a mut f32,
    pub(crate) uniform: &'a mut Numbers,
    pub(crate) ranked: &'a mut i32,
    pub(crate) top_k: &'a mut i32,
}

impl Step {
    /// Fills the arrays for sequences with `num_scheduled_tokens` set. Memory of the last step is used again.
    pub fn fill<'a>(
        &mut self,
        sequences: impl Iterator<Item = &'a Sequence> + Clone,
        block_size: usize,
        query_tile: usize,
    ) {
        self.clear();
        let blocks = |s: &Sequence| s.scheduled_end().div_ceil(block_size);
        self.max_blocks = sequences.clone().map(blocks).max().unwrap_or(0);
        self.query_start_loc.push(0);
        for sequence in sequences {
            self.push_tiles(sequence, query_tile);
            self.push_logits_indices(sequence);
            self.push_tokens(sequence, block_size);
            self.push_sequence(sequence, blocks(sequence));
        }
        self.order_tiles(query_tile);
    }

    /// The values of an input of the plan, or the bits of numbers.
    pub fn input(&self, input: Input) -> &[i32] {
        match input {
            Input::TokenIds => &self.token_ids,
            Input::Positions => &self.positions,
            Input::SlotMapping => &self.slot_mapping,
            Input::QueryStartLoc => &self.query_start_loc,
            Input::SeqLens => &self.seq_lens,
            Input::BlockTable => &self.block_table,
            Input::LogitsIndices => &self.logits_indices,
            Input::Temperature => bytemuck::cast_slice(&self.temperature),
            Input::Uniform => bytemuck::cast_slice(&self.uniform),
            Input::Ranked => &self.ranked,
            Input::TopK => &self.top_k,
            Input::TileSeq => &self.tile_seq,
            Input::TileStart => &self.tile_start,
        }
    }

    /// What it asks of each row of logits.
    pub(crate) fn rows(&mut self) -> impl Iterator<Item = RowInputs<'_>> {
        let Step { temperature, uniform, ranked, top_k, .. } = self;
        let rows = temperature.iter_mut().zip(uniform.as_chunks_mut().0).zip(ranked).zip(top_k);
        rows.map(|(((temperature, uniform), ranked), top_k)| RowInputs { temperature, uniform, ranked, top_k })
    }

    /// T: tokens in the step.
    pub fn num_tokens(&self) -> usize {
        self.token_ids.len()
    }

    /// R: sequences in the step.
    pub fn num_seqs(&self) -> usize {
        self.seq_lens.len()
    }

    fn clear(&mut self) {
        self.reads.clear();
        self.temperature.clear();
        self.uniform.clear();
        self.ranked.clear();
        self.top_k.clear();
        let Step { token_ids, positions, slot_mapping, query_start_loc, seq_lens, .. } = self;
        [token_ids, positions, slot_mapping, query_start_loc, seq_lens].into_iter().for_each(Vec::clear);
        let Step { block_table, logits_indices, tile_seq, tile_start, .. } = self;
        [block_table, logits_indices, tile_seq, tile_start].into_iter().for_each(Vec::clear);
    }

    fn push_tiles(&mut self, sequence: &Sequence, query_tile: usize) {
        let (seq, first) = (self.num_seqs() as i32, self.num_tokens());
        for start in (0..sequence.num_scheduled_tokens).step_by(query_tile) {
            self.tile_seq.push(seq);
            self.tile_start.push((first + start) as i32);
        }
    }

    /// Tiles that see most tokens first: what shares them out in turn ends everywhere at about the same time.
    fn order_tiles(&mut self, query_tile: usize) {
        let tiles = self.tile_seq.iter().zip(&self.tile_start);
        let seen = |(seq, start): (&i32, &i32)| {
            let end = self.query_start_loc[*seq as usize + 1];
            let unseen = (end - start - query_tile as i32).max(0);
            (self.seq_lens[*seq as usize] - unseen, *seq, *start)
        };
        let falls = |a: &(i32, i32, i32), b: &(i32, i32, i32)| a.0 >= b.0;
        if tiles.clone().map(seen).is_sorted_by(falls) {
            return;
        }
        let mut all: Vec<_> = tiles.map(seen).collect();
        all.sort_by_key(|(seen, ..)| std::cmp::Reverse(*seen));
        self.tile_seq.clear();
        self.tile_start.clear();
        for (_, seq, start) in all {
            self.tile_seq.push(seq);
            self.tile_start.push(start);
        }
    }

    fn push_logits_indices(&mut self, sequence: &Sequence) {
        let first = self.num_tokens();
        let rows = sequence.rows(sequence.num_scheduled_tokens);
        self.logits_indices.extend(rows.map(|p| (first + p - sequence.num_computed_tokens) as i32));
        self.temperature.resize(self.logits_indices.len(), 1.0);
        self.uniform.resize(2 * DRAWS * self.logits_indices.len(), 0.0);
        self.ranked.resize(self.logits_indices.len(), 0);
        self.top_k.resize(self.logits_indices.len(), 0);
    }

    fn push_tokens(&mut self, sequence: &Sequence, block_size: usize) {
        for position in sequence.num_computed_tokens..sequence.scheduled_end() {
            let block = sequence.block_table[position / block_size] as usize;
            let fed_by = sequence.fed_by.filter(|_| position >= sequence.num_known_tokens());
            self.token_ids.push(fed_by.map_or(sequence.token_ids[position] as i32, |row| -1 - row as i32));
            self.positions.push(position as i32);
            self.slot_mapping.push((block * block_size + position % block_size) as i32);
        }
    }

    fn push_sequence(&mut self, sequence: &Sequence, blocks: usize) {
        self.query_start_loc.push(self.num_tokens() as i32);
        self.seq_lens.push(sequence.scheduled_end() as i32);
        self.block_table.extend(sequence.block_table[..blocks].iter().map(|b| *b as i32));
        let row = self.num_seqs() * self.max_blocks;
        self.block_table.resize(row, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::SequenceKey;

    fn sequence(tokens: &[u32], prompt: usize, computed: usize, scheduled: usize, blocks: &[u32]) -> Sequence {
        let key = SequenceKey { priority: 0, arrival: 0, index: 0 };
        let mut s = Sequence::new(key, 0, tokens[..prompt].to_vec(), false);
        s.token_ids = tokens.to_vec();
        (s.num_computed_tokens, s.num_scheduled_tokens) = (computed, scheduled);
        s.block_table = blocks.to_vec();
        s
    }

    #[test]
    fn chunks_and_decodes_share_a_step() {
        let decode = sequence(&[10, 11, 12], 2, 2, 1, &[5]);
        let chunk = sequence(&[20, 21, 22, 23, 24, 25, 26], 7, 1, 5, &[3, 9]);
        let mut step = Step::default();
        step.fill([&decode, &chunk].into_iter(), 4, 2);
        let expected = Step {
            token_ids: vec![12, 21, 22, 23, 24, 25],
            positions: vec![2, 1, 2, 3, 4, 5],
            slot_mapping: vec![22, 13, 14, 15, 36, 37],
            query_start_loc: vec![0, 1, 6],
            seq_lens: vec![3, 6],
            block_table: vec![5, 0, 3, 9],
            logits_indices: vec![0],
            reads: vec![],
            temperature: vec![1.0],
            uniform: vec![0.0; 2 * DRAWS],
            ranked: vec![0],
            top_k: vec![0],
            tile_seq: vec![1, 1, 0, 1],
            tile_start: vec![5, 3, 0, 1],
            max_blocks: 2,
        };
        assert_eq!(step, expected);
    }

    #[test]
    fn a_token_that_is_not_known_is_named_by_its_row() {
        let mut s = sequence(&[1, 2, 3], 3, 1, 3, &[0]);
        s.expect_token(4);
        let mut step = Step::default();
        step.fill([&s].into_iter(), 4, 8);
        assert_eq!((&step.token_ids, &step.positions), (&vec![2, 3, -5], &vec![1, 2, 3]));
        s.add_tokens(&[9]);
        step.fill([&s].into_iter(), 4, 8);
        assert_eq!(step.token_ids, [2, 3, 9]);
    }

    #[test]
    fn prompt_logprobs_take_a_row_for_each_token() {
        let mut s = sequence(&[1, 2, 3, 4], 4, 1, 3, &[0]);
        s.prompt_rows_from = 1;
        let mut step = Step::default();
        step.fill([&s].into_iter(), 4, 8);
        assert_eq!(step.logits_indices, [0, 1, 2]);
        s.prompt_rows_from = 4;
        step.fill([&s].into_iter(), 4, 8);
        assert_eq!(step.logits_indices, [2]);
    }
}

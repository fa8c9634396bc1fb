//! Inputs of one step, as the runtime's step builder fills them.

use super::{Error, KvState, Tensor};
use crate::{
    expr::Sym,
    graph::{
        Input,
        op::{DRAWS, TOP_K},
    },
};

/// What one sequence brings to a step.
#[derive(Clone, Copy, Debug)]
pub struct Sequence<'a> {
    /// Tokens of this step.
    pub token_ids: &'a [u32],
    /// Tokens before them whose keys and values are in the cache.
    pub num_computed_tokens: usize,
    /// Physical block of each logical block; enough for all tokens.
    pub blocks: &'a [u32],
}

/// One ragged batch; see [`Input`] for each array.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepInputs {
    /// `[T]`.
    pub token_ids: Vec<i32>,
    /// `[T]`.
    pub positions: Vec<i32>,
    /// `[T]`.
    pub slot_mapping: Vec<i32>,
    /// `[R+1]`.
    pub query_start_loc: Vec<i32>,
    /// `[R]`.
    pub seq_lens: Vec<i32>,
    /// `[R, M]`, rows padded with 0.
    pub block_table: Vec<i32>,
    /// M: columns of the block table.
    pub max_blocks: usize,
    /// `[L]`.
    pub logits_indices: Vec<i32>,
    /// `[L]`.
    pub temperature: Vec<f32>,
    /// `[L, 2 * DRAWS]`.
    pub uniform: Vec<f32>,
    /// `[L]`.
    pub ranked: Vec<i32>,
    /// `[L]`.
    pub top_k: Vec<i32>,
    /// `[Q]`.
    pub tile_seq: Vec<i32>,
    /// `[Q]`.
    pub tile_start: Vec<i32>,
    /// Positions that the graph is compiled for: fixes the base of a dynamic rotary embedding.
    pub max_model_len: usize,
}

impl StepInputs {
    /// A batch of `sequences`, in query tiles of at most `query_tile` tokens, that asks for the logits of each
    /// sequence's last token, at temperature 1 and with random numbers of 0, ranks all that is drawn and finds TOP_K tokens of each row. `max_model_len` is the longest sequence's length.
    pub fn ragged(sequences: &[Sequence<'_>], block_size: usize, query_tile: usize) -> StepInputs {
        let block_size = block_size.max(1);
        let max_blocks = sequences.iter().map(|s| s.blocks.len()).max().unwrap_or(0);
        let mut step = StepInputs { max_blocks, query_start_loc: vec![0], ..StepInputs::default() };
        for sequence in sequences {
            step.append(sequence, block_size, query_tile.max(1));
        }
        step
    }

    /// One sequence from its first token on, in blocks 0, 1, 2 …
    pub fn prefill(token_ids: &[u32], block_size: usize) -> StepInputs {
        StepInputs::chunk(token_ids, 0, block_size)
    }

    /// The next token of a sequence of which `num_computed_tokens` are in blocks 0, 1, 2 …
    pub fn decode(token_id: u32, num_computed_tokens: usize, block_size: usize) -> StepInputs {
        StepInputs::chunk(&[token_id], num_computed_tokens, block_size)
    }

    /// The next tokens of a sequence of which `num_computed_tokens` are in blocks 0, 1, 2 …
    pub fn chunk(token_ids: &[u32], num_computed_tokens: usize, block_size: usize) -> StepInputs {
        let blocks = (num_computed_tokens + token_ids.len()).div_ceil(block_size.max(1));
        let blocks: Vec<u32> = (0..blocks as u32).collect();
        let query_tile = token_ids.len();
        StepInputs::ragged(&[Sequence { token_ids, num_computed_tokens, blocks: &blocks }], block_size, query_tile)
    }

    /// The same step, asking for the logits of every token.
    pub fn with_all_logits(self) -> StepInputs {
        let tokens = self.token_ids.len();
        let (temperature, uniform) = (vec![1.0; tokens], vec![0.0; 2 * DRAWS * tokens]);
        let (ranked, top_k) = (vec![DRAWS as i32; tokens], vec![TOP_K as i32; tokens]);
        StepInputs { logits_indices: (0..tokens as i32).collect(), temperature, uniform, ranked, top_k, ..self }
    }

    fn append(&mut self, s: &Sequence<'_>, block_size: usize, query_tile: usize) {
        let (start, len) = (self.token_ids.len(), s.num_computed_tokens + s.token_ids.len());
        for (position, id) in (s.num_computed_tokens..len).zip(s.token_ids) {
            let block = s.blocks.get(position / block_size);
            let slot = block.map_or(-1, |b| (*b as usize * block_size + position % block_size) as i32);
            self.token_ids.push(*id as i32);
            self.positions.push(position as i32);
            self.slot_mapping.push(slot);
        }
        let end = self.token_ids.len();
        self.tile_start.extend((start..end).step_by(query_tile).map(|t| t as i32));
        self.tile_seq.resize(self.tile_start.len(), self.seq_lens.len() as i32);
        self.query_start_loc.push(end as i32);
        self.seq_lens.push(len as i32);
        self.logits_indices.extend(end.checked_sub(1).filter(|_| end > start).map(|last| last as i32));
        self.temperature.resize(self.logits_indices.len(), 1.0);
        self.uniform.resize(2 * DRAWS * self.logits_indices.len(), 0.0);
        self.ranked.resize(self.logits_indices.len(), DRAWS as i32);
        self.top_k.resize(self.logits_indices.len(), TOP_K as i32);
        let padding = std::iter::repeat_n(0, self.max_blocks - s.blocks.len());
        self.block_table.extend(s.blocks.iter().map(|b| *b as i32).chain(padding));
        self.max_model_len = self.max_model_len.max(len);
    }

    /// Value of a symbol; P is the cache's.
    pub fn symbol(&self, sym: Sym) -> usize {
        match sym {
            Sym::T => self.token_ids.len(),
            Sym::R => self.seq_lens.len(),
            Sym::L => self.logits_indices.len(),
            Sym::Q => self.tile_seq.len(),
            Sym::M => self.max_blocks,
            Sym::P => 0,
        }
    }

    /// The tensor of an input; none for a KV cache.
    pub fn tensor(&self, input: Input) -> Option<Tensor> {
        let data = match input {
            Input::TokenIds => &self.token_ids,
            Input::Positions => &self.positions,
            Input::SlotMapping => &self.slot_mapping,
            Input::QueryStartLoc => &self.query_start_loc,
            Input::SeqLens => &self.seq_lens,
            Input::BlockTable => {
                return Some(Tensor::i32(&[self.seq_lens.len(), self.max_blocks], self.block_table.clone()));
            }
            Input::LogitsIndices => &self.logits_indices,
            Input::Temperature => return Some(Tensor::f32(&[self.temperature.len()], self.temperature.clone())),
            Input::Uniform => {
                return Some(Tensor::f32(&[self.temperature.len(), 2 * DRAWS], self.uniform.clone()));
            }
            Input::Ranked => &self.ranked,
            Input::TopK => &self.top_k,
            Input::TileSeq => &self.tile_seq,
            Input::TileStart => &self.tile_start,
            Input::Kv(_) => return None,
        };
        Some(Tensor::i32(&[data.len()], data.clone()))
    }

    /// That arrays have lengths that fit each other, and every sequence fits its blocks.
    pub(super) fn check(&self, kv: &KvState) -> Result<(), Error> {
        let (t, r) = (self.token_ids.len(), self.seq_lens.len());
        let lengths = [
            ("positions", self.positions.len(), t),
            ("slot_mapping", self.slot_mapping.len(), t),
            ("query_start_loc", self.query_start_loc.len(), r + 1),
            ("block_table", self.block_table.len(), r * self.max_blocks),
            ("temperature", self.temperature.len(), self.logits_indices.len()),
            ("uniform", self.uniform.len(), 2 * DRAWS * self.logits_indices.len()),
            ("ranked", self.ranked.len(), self.logits_indices.len()),
            ("top_k", self.top_k.len(), self.logits_indices.len()),
            ("tile_start", self.tile_start.len(), self.tile_seq.len()),
        ];
        for (name, found, expected) in lengths {
            if found != expected {
                return Err(Error::Step(format!("{name} has {found} elements, not {expected}")));
            }
        }
        (0..r).try_for_each(|sequence| self.check_sequence(sequence, kv.block_size()))
    }

    fn check_sequence(&self, r: usize, block_size: usize) -> Result<(), Error> {
        let (start, end, len) = (self.query_start_loc[r], self.query_start_loc[r + 1], self.seq_lens[r]);
        if start < 0 || end < start || end as usize > self.token_ids.len() || len < end - start {
            return Err(Error::Step(format!("sequence {r} of length {len} has tokens {start}..{end} of the step")));
        }
        if len as usize > self.max_blocks * block_size {
            let (blocks, tokens) = (self.max_blocks, self.max_blocks * block_size);
            return Err(Error::Step(format!("sequence {r} of length {len} has {blocks} blocks for {tokens} tokens")));
        }
        Ok(())
    }
}

//! Where a device keeps what a step brings, and the blocks of the KV cache.

use rvllm_artifact::{
    manifest::KvCache,
    plan::{DRAWS, Input, Plan},
};

/// Entries behind each input that hold its padding, for kernels that take several tokens at once.
pub(super) const PADDING: usize = 64;
/// Alignment of inputs.
const LINE: u64 = 64;

/// All inputs, in the order of their ranges. The block table is last: only what a step uses of it has to be moved.
pub(super) const INPUTS: [Input; 13] = [
    Input::TokenIds,
    Input::Positions,
    Input::SlotMapping,
    Input::QueryStartLoc,
    Input::SeqLens,
    Input::LogitsIndices,
    Input::Temperature,
    Input::Uniform,
    Input::Ranked,
    Input::TopK,
    Input::TileSeq,
    Input::TileStart,
    Input::BlockTable,
];

/// An input's place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct InputRange {
    /// Bytes before it.
    pub(super) offset: u64,
    /// Entries that it has room for, its padding aside.
    pub(super) capacity: usize,
}

/// The places of all inputs, for steps of at most so many tokens.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct InputLayout {
    ranges: [InputRange; INPUTS.len()],
    /// Bytes of all.
    pub(super) bytes: u64,
}

impl InputLayout {
    /// Places from byte `start` on. `max_blocks` is the longest row of the block table.
    pub(super) fn new(plan: &Plan, tokens: usize, max_blocks: u32, start: u64) -> InputLayout {
        let (seqs, rows) = (tokens.min(plan.max_num_seqs as usize), tokens.min(plan.max_logits as usize));
        let mut bytes = start;
        let ranges = INPUTS.map(|input| {
            let capacity = match input {
                Input::TokenIds | Input::Positions | Input::SlotMapping | Input::TileSeq | Input::TileStart => tokens,
                Input::QueryStartLoc => seqs + 1,
                Input::SeqLens => seqs,
                Input::BlockTable => seqs * max_blocks as usize,
                Input::LogitsIndices | Input::Temperature | Input::Ranked | Input::TopK => rows,
                Input::Uniform => 2 * DRAWS * rows,
            };
            let offset = bytes;
            bytes = (offset + 4 * (capacity + PADDING) as u64).next_multiple_of(LINE);
            InputRange { offset, capacity }
        });
        InputLayout { ranges, bytes }
    }

    /// The place of an input.
    pub(super) fn range(&self, input: Input) -> InputRange {
        let index = INPUTS.iter().position(|i| *i == input).unwrap_or_default();
        self.ranges[index]
    }
}

/// What an input's padding holds.
pub(super) fn padding(input: Input) -> i32 {
    if input == Input::SlotMapping { crate::step::PAD_SLOT } else { 0 }
}

/// The blocks of all layers.
#[derive(Clone, Copy, Debug)]
pub(super) struct CacheLayout {
    pub(super) num_blocks: u64,
    pub(super) num_layers: u64,
    /// Bytes of a layer's part of a block: of K, of V, of the scales of either.
    sizes: [u64; 4],
}

/// What the cache of a layer is made of, in the order in which it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Keys,
    Values,
    KeyScales,
    ValueScales,
}

impl CacheLayout {
    /// `num_blocks` blocks.
    pub(super) fn new(kv_cache: &KvCache, num_blocks: u32) -> CacheLayout {
        CacheLayout {
            num_blocks: num_blocks.into(),
            num_layers: kv_cache.num_layers.into(),
            sizes: [kv_cache.k_bytes, kv_cache.v_bytes, kv_cache.scale_bytes, kv_cache.scale_bytes],
        }
    }

    /// Bytes of all; `None` on overflow.
    pub(super) fn bytes(&self) -> Option<u64> {
        self.layer_bytes()?.checked_mul(self.num_layers)
    }

    fn layer_bytes(&self) -> Option<u64> {
        let block = self.sizes.into_iter().try_fold(0, u64::checked_add)?;
        self.num_blocks.checked_mul(block)
    }

    /// Where a part of a layer's blocks begins.
    pub(super) fn offset(&self, layer: u32, part: Part) -> Option<u64> {
        let start = self.layer_bytes()?.checked_mul(u64::from(layer))?;
        let before: u64 = self.sizes[..part as usize].iter().sum();
        (u64::from(layer) < self.num_layers).then_some(start + self.num_blocks * before)
    }

    /// Ranges of a block in all layers: for each its offset, as block `from` and as block `to`, and its bytes.
    pub(super) fn copies(&self, from: u32, to: u32) -> impl Iterator<Item = Option<[u64; 3]>> {
        let layout = *self;
        let inside = u64::from(from.max(to)) < self.num_blocks;
        (0..self.num_layers as u32).flat_map(move |layer| {
            let parts = [Part::Keys, Part::Values, Part::KeyScales, Part::ValueScales];
            parts.into_iter().filter(move |part| layout.sizes[*part as usize] > 0).map(move |part| {
                let start = layout.offset(layer, part).filter(|_| inside)?;
                let bytes = layout.sizes[part as usize];
                Some([start + u64::from(from) * bytes, start + u64::from(to) * bytes, bytes])
            })
        })
    }
}

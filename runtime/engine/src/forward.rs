//! What the engine asks of a model: logits for a step. Behind a trait, so that scheduling is tested without a device.

use crate::{block_pool::BlockId, device::DeviceError, step::Step, team::Team};
use rvllm_artifact::plan::{DRAWS, RANK, TOP_K};

/// Logits that one entry of [`Logits::block_max`] and [`Logits::block_sum`] covers.
pub const LOGITS_BLOCK: usize = 256;

/// The bounds of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tokens that the model knows.
    pub vocab_size: u32,
    /// Longest sequence, prompt and answer together.
    pub max_model_len: u32,
    /// Most sequences of a step.
    pub max_num_seqs: u32,
    /// Most tokens of a step.
    pub max_num_batched_tokens: u32,
    /// Most rows of logits of a step.
    pub max_logits: u32,
    /// Tokens of a query tile.
    pub query_tile: u32,
    /// Tokens of a KV block.
    pub block_size: u32,
    /// Blocks of the KV cache.
    pub num_blocks: u32,
}

/// What will be read of a row of logits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reads {
    /// Any of it.
    #[default]
    All,
    /// The tokens drawn from it, and the statistics of the whole row: [`Logits::max`], [`Logits::logsumexp`].
    Draws,
    /// Besides those the tokens' ranks, and the largest logit and the sum of each run; rarely all of it.
    Ranks,
}

/// Rows of logits with statistics that spare passes over them.
#[derive(Clone, Copy, Debug)]
pub struct Logits<'a> {
    /// V: entries of a row.
    pub vocab_size: usize,
    /// `[L, V]`.
    pub logits: &'a [f32],
    /// `[L]`: largest of each row.
    pub max: &'a [f32],
    /// `[L]`: log of the sum of exponentials of each row.
    pub logsumexp: &'a [f32],
    /// `[L, ceil(V / 256)]`: largest of each run of 256.
    pub block_max: &'a [f32],
    /// `[L, ceil(V / 256)]`: of each run, the sum of `exp((logit - largest of the run) / temperature)`, at the step's
    /// temperature of the row. It is read where a token is drawn.
    pub block_sum: &'a [f32],
    /// `[L, DRAWS]`: tokens drawn from each row at the step's temperature of the row, by its random numbers of the step;
    /// or empty where none are.
    pub draws: &'a [f32],
    /// `[L, RANK * DRAWS]`: of each drawn token its logit, how many logits are larger, what the tokens before it weigh, and what
    /// all weigh; zeros where it was not ranked. Or empty.
    pub ranks: &'a [f32],
    /// `[L, 2 * TOP_K]`: ids of the most likely tokens of a row, as many as the step asks for, in order, then their logits. Or empty.
    pub most_likely: &'a [f32],
}

/// One row of logits.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// `[V]`.
    pub logits: &'a [f32],
    /// Largest logit.
    pub max: f32,
    /// Log of the sum of exponentials.
    pub logsumexp: f32,
    /// `[ceil(V / 256)]`.
    pub block_max: &'a [f32],
    /// `[ceil(V / 256)]`, or empty where no token will be drawn.
    pub block_sum: &'a [f32],
    /// `[DRAWS]`: tokens drawn from it, or empty.
    pub draws: &'a [f32],
    /// `[RANK * DRAWS]`: their ranks, or empty.
    pub ranks: &'a [f32],
    /// Ids of the most likely tokens, in order, and their logits: as many as were found where the row was computed.
    pub most_likely: [&'a [f32]; 2],
}

impl<'a> Logits<'a> {
    /// Row `i`, of which the step asked for so many of the most likely tokens.
    pub fn row_with_top(&self, i: usize, top_k: i32) -> Row<'a> {
        let found = self.most_likely.get(2 * i * TOP_K..2 * (i + 1) * TOP_K).unwrap_or_default();
        let (ids, logits) = found.split_at(found.len() / 2);
        let count = usize::try_from(top_k).unwrap_or(0).min(ids.len());
        Row { most_likely: [&ids[..count], &logits[..count]], ..self.row(i) }
    }

    /// Row `i`, without its most likely tokens.
    pub fn row(&self, i: usize) -> Row<'a> {
        let blocks = self.vocab_size.div_ceil(LOGITS_BLOCK);
        Row {
            logits: &self.logits[i * self.vocab_size..][..self.vocab_size],
            max: self.max[i],
            logsumexp: self.logsumexp[i],
            block_max: &self.block_max[i * blocks..][..blocks],
            block_sum: &self.block_sum[i * blocks..][..blocks],
            draws: self.draws.get(i * DRAWS..(i + 1) * DRAWS).unwrap_or_default(),
            ranks: self.ranks.get(i * RANK * DRAWS..(i + 1) * RANK * DRAWS).unwrap_or_default(),
            most_likely: [&[]; 2],
        }
    }
}

/// A model with its KV cache.
pub trait Forward: Send {
    /// The bounds of a step.
    fn limits(&self) -> &Limits;

    /// The threads that compute, where they are this machine's: between forwards they have nothing else to do, and
    /// during one, other threads would only hold them up.
    fn team(&mut self) -> Option<&mut Team> {
        None
    }

    /// Whether a step that has begun is computed while the caller does something else.
    fn runs_ahead(&self) -> bool {
        false
    }

    /// Whether a step may begin while the one before it runs, and take tokens from it: see [`Step::token_ids`].
    fn feeds(&self) -> bool {
        false
    }

    /// Begins a step. Those that have begun are computed in order, and had with [`Forward::forward`] in order; two at most where
    /// [`Forward::feeds`], else one.
    ///
    /// # Errors
    /// The device failed.
    fn begin(&mut self, _step: &Step) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Computes a step, or waits for it where one has begun, which is this then: writes the KV of its tokens, and returns one row for each of `step.logits_indices`. In each
    /// layer all KV is written before any is read: a sequence may read what the same step computes for another.
    ///
    /// # Errors
    /// The device failed.
    fn forward(&mut self, step: &Step) -> Result<Logits<'_>, DeviceError>;

    /// Whether rows of which it was said that less is read are not whole: whoever needs more of one has to [`Forward::bring`] it.
    fn leaves_out(&self) -> bool {
        false
    }

    /// The rows of the step that was had last, after which none has begun, with all of those of which less was said to be read.
    ///
    /// # Errors
    /// The device failed.
    fn bring(&mut self, step: &Step, _rows: &[usize]) -> Result<Logits<'_>, DeviceError> {
        self.forward(step)
    }

    /// Copies the KV of a block, in all layers.
    ///
    /// # Errors
    /// The device failed.
    fn copy_block(&mut self, from: BlockId, to: BlockId) -> Result<(), DeviceError>;
}

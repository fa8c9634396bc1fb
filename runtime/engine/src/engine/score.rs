//! Scoring a text: the logits at every position, a chunk at a time, without sampling.
//!
//! Invariants: a scored text has the engine to itself, and gives its blocks back when it is done or dropped.

use super::Engine;
use crate::{
    admission::check_text,
    error::EngineError,
    forward::Logits,
    sequence::{Sequence, SequenceKey},
    step::Step,
};

/// A text being scored: see [`Engine::score`].
pub struct Scoring<'e> {
    engine: &'e mut Engine,
    key: SequenceKey,
    num_tokens: usize,
    scored: usize,
    step: Step,
}

/// The logits of neighbouring positions.
#[derive(Clone, Copy, Debug)]
pub struct Scored<'a> {
    /// Position of the first row: its logits are for the token behind it.
    pub first: usize,
    /// How many rows there are.
    pub rows: usize,
    /// The rows.
    pub logits: Logits<'a>,
}

impl Engine {
    /// Begins to score a text, of at most [`Engine::max_model_len`] tokens.
    ///
    /// # Errors
    /// Requests are unfinished; the text is empty, too long or has unknown tokens, or does not fit the KV cache.
    pub fn score(&mut self, token_ids: &[u32]) -> Result<Scoring<'_>, EngineError> {
        if self.has_unfinished() {
            return Err(EngineError::Busy);
        }
        check_text(token_ids, self.forward.limits())?;
        self.finish_begun()?;
        let key = SequenceKey { priority: 0, arrival: self.num_arrived, index: 0 };
        self.num_arrived += 1;
        self.queue.scheduler.add(Sequence::new(key, 0, token_ids.to_vec(), true));
        Ok(Scoring { engine: self, key, num_tokens: token_ids.len(), scored: 0, step: Step::default() })
    }
}

impl Scoring<'_> {
    /// The rows of the next positions, in order; `None` when all were had.
    ///
    /// # Errors
    /// The device failed, or the logits are not finite.
    pub fn next_rows(&mut self) -> Result<Option<Scored<'_>>, EngineError> {
        if self.scored == self.num_tokens {
            return Ok(None);
        }
        let (Engine { forward, queue, .. }, step) = (&mut *self.engine, &mut self.step);
        for copy in queue.scheduler.schedule() {
            forward.copy_block(copy.from, copy.to)?;
        }
        let limits = *forward.limits();
        step.fill(queue.scheduler.scheduled(), limits.block_size as usize, limits.query_tile as usize);
        let logits = forward.forward(step)?;
        queue.scheduler.advance();
        let (first, rows) = (self.scored, step.logits_indices.len());
        let finite = |i: &usize| logits.max[*i].is_finite() && logits.logsumexp[*i].is_finite();
        if let Some(i) = (0..rows).find(|i| !finite(i)) {
            return Err(EngineError::LogitsNotFinite { request: 0, position: first + i });
        }
        self.scored += rows;
        Ok(Some(Scored { first, rows, logits }))
    }
}

impl Drop for Scoring<'_> {
    fn drop(&mut self) {
        self.engine.queue.scheduler.remove(self.key);
    }
}

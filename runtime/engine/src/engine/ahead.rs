//! Steps that begin before the one before them is had.
//!
//! The one rule: a step begins while the one before it runs where the device can feed it, and each row of the one before decides
//! its token on the device: the first one drawn from it. Then nothing of what is to be computed next depends on the host: how many
//! tokens an answer may have is known, and who ends for another reason has computed a token too many, which nobody reads.
//! In every other case the step begins when the tokens of the one before are chosen.
//!
//! Invariants:
//! - at most two steps have begun, and only the last token of a sequence may be unknown, until the first of them is had;
//! - the device computes steps, and copies blocks, in the order in which they begin: so blocks that an answer leaves when it ends are
//!   given to others though the step that runs still writes one of them. What the others write and read comes after it. It writes
//!   behind the last token that is known, which is in no block that can be found: those are full of known tokens.

use super::{Engine, EngineError, Queue, RowUse};
use crate::{forward::Reads, step::Step};
use std::time::Instant;

/// A step that is computed next, or has begun.
pub(super) struct UnderWay {
    /// Since when it is computed, as far as is known here.
    pub(super) start: Instant,
    pub(super) step: Step,
    /// What each row of its logits is about.
    pub(super) uses: Vec<RowUse>,
    /// Whether the scheduler counts it as computed.
    pub(super) advanced: bool,
}

impl Engine {
    /// Begins the next step of the requests that there are, where the device computes while this thread goes on: with what
    /// [`Engine::take_outputs`] does, and with what becomes of it.
    ///
    /// # Errors
    /// The device failed.
    pub fn run_ahead(&mut self) -> Result<(), EngineError> {
        if self.forward.runs_ahead() && self.begun.is_empty() {
            self.begin_next()?;
        }
        Ok(())
    }

    /// The step that has begun first; else the next, which has begun where another may be fed by it.
    pub(super) fn first(&mut self) -> Result<UnderWay, EngineError> {
        if self.begun.is_empty() && self.forward.feeds() {
            self.begin_next()?;
        }
        self.begun.pop_front().map_or_else(|| self.prepare(), Ok)
    }

    /// Begins the step after `of`, which runs, where that feeds it.
    pub(super) fn feed(&mut self, of: &mut UnderWay) -> Result<(), EngineError> {
        if !self.forward.feeds() || !self.begun.is_empty() || !self.queue.decided_by_draws(of) {
            return Ok(());
        }
        self.queue.scheduler.advance();
        of.advanced = true;
        self.queue.expect_tokens(&of.uses);
        self.begin_next()
    }

    fn begin_next(&mut self) -> Result<(), EngineError> {
        let next = self.prepare()?;
        if next.step.num_tokens() == 0 {
            self.spare = next.step;
            return Ok(());
        }
        self.forward.begin(&next.step)?;
        self.begun.push_back(next);
        Ok(())
    }

    /// Waits for what has begun, of which nobody reads anything.
    pub(super) fn finish_begun(&mut self) -> Result<(), EngineError> {
        while !self.begun.is_empty() {
            self.compute()?;
        }
        Ok(())
    }
}

impl Queue {
    /// Whether the first token drawn from each row is the one that is chosen.
    fn decided_by_draws(&self, step: &UnderWay) -> bool {
        step.uses.iter().zip(&step.step.reads).all(|(row_use, reads)| {
            let request = self.requests.get(&row_use.request_id);
            *reads == Reads::Draws && request.is_none_or(|r| r.takes_first_draw(row_use.key.index))
        })
    }

    /// Lengthens the sequences that go on by the token that each row chooses, which is not known yet.
    fn expect_tokens(&mut self, uses: &[RowUse]) {
        for (row, row_use) in uses.iter().enumerate() {
            let goes_on = self.requests.get(&row_use.request_id).is_some_and(|r| r.goes_on(row_use.key.index));
            if let Some(sequence) = self.scheduler.sequence_mut(row_use.key).filter(|_| goes_on) {
                sequence.expect_token(row);
            }
        }
    }
}

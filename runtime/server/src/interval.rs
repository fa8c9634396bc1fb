//! Streams whose pieces hold several tokens: fewer events, each worth more.
//!
//! Invariants: an answer's first token and its end are never held back; joined, the pieces are the same.

use crate::{
    answer::extend,
    api::{ApiError, completion::Common},
};
use rvllm_engine::{Output, SequenceOutput};
use std::collections::HashMap;

/// What is held back of an answer.
#[derive(Default)]
struct Held {
    begun: bool,
    sequence: Option<SequenceOutput>,
}

/// Holds tokens back until there are enough of them.
pub struct Interval {
    tokens: usize,
    /// By prompt and answer.
    held: HashMap<(usize, u32), Held>,
}

impl Interval {
    /// What a request asks for, or the server's own where it does not.
    ///
    /// # Errors
    /// Its interval is below 1.
    pub fn of(common: &Common, own: i32) -> Result<Interval, ApiError> {
        match common.stream_interval.unwrap_or(own) {
            tokens @ ..1 => {
                Err(ApiError::field("stream_interval", format!("stream_interval is {tokens}, but must be at least 1")))
            }
            tokens => Ok(Interval { tokens: tokens as usize, held: HashMap::new() }),
        }
    }

    /// What goes out when a step has added `output` to prompt `prompt`.
    pub fn pass(&mut self, prompt: usize, mut output: Output) -> Output {
        if self.tokens > 1 {
            let sequences = std::mem::take(&mut output.sequences);
            output.sequences = sequences.into_iter().filter_map(|added| self.pass_one(prompt, added)).collect();
        }
        output
    }

    fn pass_one(&mut self, prompt: usize, added: SequenceOutput) -> Option<SequenceOutput> {
        let held = self.held.entry((prompt, added.index)).or_default();
        let all = match held.sequence.take() {
            Some(mut before) => {
                extend(&mut before, added);
                before
            }
            None => added,
        };
        let first = !std::mem::replace(&mut held.begun, true);
        if first || all.finish.is_some() || all.token_ids.len() >= self.tokens {
            return Some(all);
        }
        held.sequence = Some(all);
        None
    }
}

//! The text of an answer: tokens to characters, stop strings, the end.
//!
//! Invariants:
//! - text is given out only when no stop string can take it back;
//! - where an answer ends is a function of its tokens and of the request alone.

use crate::{
    detokenize::Detokenizer,
    output::{Finish, FinishReason, StopReason},
    params::SamplingParams,
    stop::StopStrings,
    tokenizer::{Tokenizer, TokenizerError},
};
use std::sync::Arc;

/// Text of an answer.
#[derive(Clone)]
pub(crate) struct Text {
    detokenizer: Detokenizer,
    stops: StopStrings,
    include_stop: bool,
    min_tokens: usize,
    num_tokens: usize,
}

impl Text {
    /// Continues after `prompt`.
    pub(crate) fn new(
        tokenizer: Arc<Tokenizer>,
        prompt: &[u32],
        params: &SamplingParams,
    ) -> Result<Text, TokenizerError> {
        let SamplingParams { skip_special_tokens, spaces_between_special_tokens, .. } = *params;
        let stops = params.stop.iter().map(|s| Arc::from(s.as_str())).collect();
        let include_stop = params.include_stop_str_in_output;
        let detokenizer = Detokenizer::new(tokenizer, prompt, skip_special_tokens, spaces_between_special_tokens)?;
        Ok(Text {
            detokenizer: detokenizer.keeping(params.kept_special_tokens.clone())?,
            stops: StopStrings::new(stops, include_stop),
            include_stop,
            min_tokens: params.min_tokens as usize,
            num_tokens: 0,
        })
    }

    /// Takes a token and returns certain text; sets `finish` where a stop string ends the answer.
    pub(crate) fn push(&mut self, token: u32, finish: &mut Option<Finish>) -> Result<String, TokenizerError> {
        self.num_tokens += 1;
        let ended = finish.as_ref().is_some_and(|f| f.reason == FinishReason::Stop);
        let mut piece = if ended && !self.include_stop { String::new() } else { self.detokenizer.push(token)? };
        if finish.is_some() {
            piece += &self.detokenizer.finish()?;
        }
        let released = self.stops.push(&piece, self.num_tokens > self.min_tokens);
        if let Some(stop) = released.stopped_by {
            *finish = Some(Finish { reason: FinishReason::Stop, stop_reason: Some(StopReason::Text(stop)) });
            return Ok(released.text);
        }
        Ok(if finish.is_some() { released.text + &self.stops.finish() } else { released.text })
    }
}

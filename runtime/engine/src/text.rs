//! The text of answers: tokens to characters, stop strings, the end. Made beside the engine, where answers are read.
//!
//! Invariants:
//! - text is given out only when no stop string can take it back;
//! - what an answer says and where it ends is a function of its tokens and of the request alone: tokens that come after a
//!   stop string, before the engine hears of it, are dropped.

use crate::{
    detokenize::Detokenizer,
    output::{Finish, FinishReason, Logprob, Output, SequenceOutput, StopReason},
    params::SamplingParams,
    stop::StopStrings,
    tokenizer::{Decode, TokenizerError},
};
use std::{collections::HashMap, sync::Arc};

/// Text of an answer.
#[derive(Clone)]
pub(crate) struct Text {
    detokenizer: Detokenizer,
    stops: StopStrings,
    include_stop: bool,
    /// Tokens that stop an answer and are not part of it.
    end_tokens: Arc<[u32]>,
    min_tokens: usize,
    num_tokens: usize,
}

impl Text {
    /// Continues after `prompt`. The model's own end tokens are `eos_token_ids`.
    pub(crate) fn new(
        tokenizer: Arc<dyn Decode>,
        eos_token_ids: &[u32],
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
            end_tokens: eos_token_ids.iter().chain(&params.stop_token_ids).copied().collect(),
            min_tokens: params.min_tokens as usize,
            num_tokens: 0,
        })
    }

    /// Takes a token and returns certain text; sets `finish` where a stop string ends the answer.
    pub(crate) fn push(&mut self, token: u32, finish: &mut Option<Finish>) -> Result<String, TokenizerError> {
        self.num_tokens += 1;
        // The last token of what a grammar asks for stops an answer, too, and is part of it.
        let stopped = finish.as_ref().is_some_and(|f| f.reason == FinishReason::Stop);
        let ended = stopped && self.end_tokens.contains(&token);
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

/// An answer that a stop string ended, which the engine does not know yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Stopped {
    /// Which of the request's `n`.
    pub index: u32,
    /// How it ended.
    pub finish: Finish,
}

/// The text of a request's answers.
pub struct Transcript {
    tokenizer: Arc<dyn Decode>,
    /// Of an answer that has no token yet.
    start: Text,
    /// Of answers that have begun; `None` where they have ended.
    answers: HashMap<u32, Option<Text>>,
    n: usize,
}

impl Transcript {
    /// Of a request that has not been answered yet. The model's own end tokens are `eos_token_ids`.
    ///
    /// # Errors
    /// The tokenizer's decoder refuses the prompt.
    pub fn new(
        tokenizer: Arc<dyn Decode>,
        eos_token_ids: &[u32],
        prompt: &[u32],
        params: &SamplingParams,
    ) -> Result<Transcript, TokenizerError> {
        let start = Text::new(tokenizer.clone(), eos_token_ids, prompt, params)?;
        Ok(Transcript { tokenizer, start, answers: HashMap::new(), n: params.n as usize })
    }

    /// Fills in the text of what a step added, in the order of the steps; what answers have behind their end is dropped.
    /// Returns what [`crate::Engine::stop`] is to be told.
    ///
    /// # Errors
    /// The tokenizer's decoder refuses the tokens.
    pub fn write(&mut self, output: &mut Output) -> Result<Vec<Stopped>, TokenizerError> {
        let mut stopped = vec![];
        output.sequences.retain(|s| self.answers.get(&s.index).is_none_or(Option::is_some));
        for sequence in &mut output.sequences {
            stopped.extend(self.write_one(sequence)?);
        }
        let positions = output.sequences.iter_mut().flat_map(|s| &mut s.logprobs);
        let of_prompt = output.prompt_logprobs.iter_mut().flatten().flatten();
        for logprob in positions.chain(of_prompt).flatten() {
            self.name(logprob)?;
        }
        Ok(stopped)
    }

    /// Whether all answers have ended, whatever the engine still says.
    pub fn is_over(&self) -> bool {
        self.answers.values().filter(|a| a.is_none()).count() == self.n
    }

    fn name(&self, logprob: &mut Logprob) -> Result<(), TokenizerError> {
        logprob.decoded_token = Some(self.tokenizer.decode(&[logprob.token_id], false)?);
        Ok(())
    }

    fn write_one(&mut self, sequence: &mut SequenceOutput) -> Result<Option<Stopped>, TokenizerError> {
        let answer = self.answers.entry(sequence.index).or_insert_with(|| Some(self.start.clone()));
        let Some(text) = answer else { return Ok(None) };
        // A stop string that the engine has found is found again.
        let given = sequence.finish.take();
        let told = given.clone().filter(|f| !is_by_text(f));
        let (mut end, count) = (None, sequence.token_ids.len());
        for (i, token) in (1..).zip(&sequence.token_ids) {
            end = told.clone().filter(|_| i == count);
            sequence.text += &text.push(*token, &mut end)?;
            if end.is_some() {
                sequence.logprobs.truncate(i);
                sequence.token_ids.truncate(i);
                break;
            }
        }
        sequence.finish = end.or(given.clone());
        if sequence.finish.is_some() {
            *answer = None;
        }
        let news = given.is_none() || sequence.token_ids.len() < count;
        let finish = sequence.finish.clone().filter(|_| news);
        Ok(finish.map(|finish| Stopped { index: sequence.index, finish }))
    }
}

fn is_by_text(finish: &Finish) -> bool {
    finish.reason == FinishReason::Stop && matches!(finish.stop_reason, Some(StopReason::Text(_)))
}

//! A request: one prompt and the answers to it.
//!
//! Invariants:
//! - its first sequence computes the prompt; the others start when that is done;
//! - an answer that has finished takes no more tokens;
//! - a beam search has no answers before it ends, and then all.

use crate::{
    beam::{BeamSearch, Turn},
    draw::NEXT_TO_NONE,
    error::EngineError,
    forward::{Reads, Row},
    grammar::GrammarError,
    output::{Finish, FinishReason, Logprob, Logprobs, Metrics, SequenceOutput, StopReason},
    sampler::{self, RankedToken, Sampler, SamplingRules, Scratch},
    sequence::{Sequence, SequenceKey},
    step::RowInputs,
    text::Text,
};
use std::{ops::Range, sync::Arc, time::Instant};

/// The stop reason of an answer that repeats itself, in vLLM's words.
const REPETITION: &str = "repetition_detected";

/// What all answers of a request share.
#[derive(Clone)]
pub(crate) struct Rules {
    pub(crate) sampling: Arc<SamplingRules>,
    /// The model's own end tokens, the principal one first; empty where they are ignored.
    pub(crate) eos_token_ids: Arc<[u32]>,
    /// Most tokens of an answer, the model's length considered.
    pub(crate) max_tokens: usize,
}

impl Rules {
    /// Whether an answer has come to repeat itself.
    fn repetition(&self, output: &[u32]) -> Option<Finish> {
        let repeats = self.sampling.params.repetition_detection.as_ref().is_some_and(|r| r.finds(output));
        let stop_reason = Some(StopReason::Text(REPETITION.into()));
        repeats.then_some(Finish { reason: FinishReason::Repetition, stop_reason })
    }

    /// Whether the last of `num_tokens` tokens ends an answer, and how.
    pub(crate) fn finish(&self, token: u32, num_tokens: usize) -> Option<Finish> {
        let params = &self.sampling.params;
        let principal = self.eos_token_ids.first() == Some(&token);
        let ends = self.eos_token_ids.contains(&token) || params.stop_token_ids.contains(&token);
        if ends && num_tokens >= params.min_tokens as usize {
            let stop_reason = (!principal).then_some(StopReason::Token(token));
            return Some(Finish { reason: FinishReason::Stop, stop_reason });
        }
        (num_tokens >= self.max_tokens).then_some(Finish { reason: FinishReason::Length, stop_reason: None })
    }
}

pub(crate) fn report(tokens: Vec<RankedToken>) -> Logprobs {
    let report = |t: RankedToken| Logprob { token_id: t.id, logprob: t.logprob, rank: t.rank, decoded_token: None };
    tokens.into_iter().map(report).collect()
}

/// One answer.
struct Answer {
    index: u32,
    sampler: Sampler,
    finished: bool,
}

impl Answer {
    fn new(index: u32, rules: &Rules) -> Answer {
        Answer { index, sampler: Sampler::new(rules.sampling.clone(), index), finished: false }
    }

    fn choose(&mut self, rules: &Rules, row: &Row<'_>, scratch: &mut Scratch) -> SequenceOutput {
        let params = &rules.sampling.params;
        let token = match self.sampler.sample(row, scratch) {
            Ok(token) => token,
            Err(error) => return self.fail(&error),
        };
        let finish = rules.finish(token, self.sampler.output().len());
        let mut finish = finish.or_else(|| rules.repetition(self.sampler.output()));
        if self.sampler.has_ended() && finish.as_ref().is_none_or(|f| f.reason == FinishReason::Length) {
            // What the grammar asks for is whole.
            finish = Some(Finish { reason: FinishReason::Stop, stop_reason: None });
        }
        let ranked = params.logprobs.map(|count| sampler::logprobs(row, token, count, &params.logprob_token_ids));
        self.finished = finish.is_some();
        let logprobs = ranked.map(report).into_iter().collect();
        SequenceOutput { index: self.index, token_ids: vec![token], text: String::new(), logprobs, finish }
    }
}

impl Answer {
    /// Ends where nothing can follow that the grammar allows.
    fn fail(&mut self, error: &GrammarError) -> SequenceOutput {
        self.finished = true;
        let stop_reason = Some(StopReason::Text(error.to_string().into()));
        let finish = Some(Finish { reason: FinishReason::Error, stop_reason });
        SequenceOutput { index: self.index, token_ids: vec![], text: String::new(), logprobs: vec![], finish }
    }
}

/// A request that has not finished.
pub(crate) struct Request {
    /// Of its first sequence.
    pub(crate) key: SequenceKey,
    /// When it is given up.
    pub(crate) deadline: Option<Instant>,
    rules: Rules,
    prompt: Vec<u32>,
    answers: Vec<Answer>,
    /// Instead of answers, while a beam search goes on.
    beams: Option<BeamSearch>,
    prompt_logprobs: Option<Vec<Option<Logprobs>>>,
    metrics: Metrics,
}

impl Request {
    /// `seeker` looks for stop strings where beams need that.
    pub(crate) fn new(key: SequenceKey, rules: Rules, prompt: Vec<u32>, seeker: Option<Text>) -> Request {
        let now = Instant::now();
        let metrics = Metrics {
            arrival: now,
            first_scheduled: None,
            first_token: None,
            finished: now,
            num_prompt_tokens: prompt.len() as u32,
            num_generated_tokens: 0,
            num_cached_tokens: 0,
            num_preemptions: 0,
        };
        let prompt_logprobs = rules.sampling.params.prompt_logprobs.map(|_| vec![None]);
        let (answers, beams) = match rules.sampling.params.use_beam_search {
            true => (vec![], Some(BeamSearch::new(&rules, prompt.len(), seeker))),
            false => (vec![Answer::new(0, &rules)], None),
        };
        Request { key, deadline: None, rules, prompt, answers, beams, prompt_logprobs, metrics }
    }

    /// The key of its sequence `index`.
    pub(crate) fn key_of(&self, index: u32) -> SequenceKey {
        SequenceKey { index, ..self.key }
    }

    /// Notes that a step computes a part of a sequence.
    pub(crate) fn note_scheduled(&mut self, sequence: &Sequence, now: Instant) {
        self.metrics.first_scheduled.get_or_insert(now);
        self.metrics.num_cached_tokens = sequence.num_cached_tokens.unwrap_or(0) as u32;
    }

    pub(crate) fn note_preempted(&mut self) {
        self.metrics.num_preemptions += 1;
        self.beams.iter_mut().for_each(BeamSearch::forget_offers);
    }

    /// Whether its sequences are beams.
    pub(crate) fn searches(&self) -> bool {
        self.beams.is_some()
    }

    /// Takes the logits after the last token of beam `index`.
    pub(crate) fn offer(
        &mut self,
        index: u32,
        row: &Row<'_>,
        scratch: &mut Scratch,
    ) -> Result<(Turn, Option<Metrics>), EngineError> {
        let now = Instant::now();
        self.metrics.first_token.get_or_insert(now);
        let Some(beams) = &mut self.beams else { return Ok((Turn::Waits, None)) };
        let turn = beams.offer(&self.rules, index, row, scratch)?;
        let Turn::Ends(answers) = &turn else { return Ok((turn, None)) };
        self.metrics.num_generated_tokens = answers.iter().map(|a| a.token_ids.len() as u32).sum();
        Ok((turn, Some(Metrics { finished: now, ..self.metrics })))
    }

    /// Which sequences the logits after the last token of sequence `index` are for: all where the prompt has just been
    /// computed, else this one. All have an answer afterwards.
    pub(crate) fn start_answers(&mut self, index: u32) -> Range<u32> {
        if self.metrics.first_token.is_some() {
            return index..index + 1;
        }
        self.metrics.first_token = Some(Instant::now());
        let n = self.rules.sampling.params.n;
        self.answers.extend((1..n).map(|i| Answer::new(i, &self.rules)));
        0..n
    }

    /// Chooses the next token of answer `index`.
    pub(crate) fn choose(&mut self, index: u32, row: &Row<'_>, scratch: &mut Scratch) -> SequenceOutput {
        self.metrics.num_generated_tokens += 1;
        self.answers[index as usize].choose(&self.rules, row, scratch)
    }

    /// What will be read of a row that the next token of any of its sequences is chosen from.
    pub(crate) fn reads(&self) -> Reads {
        let params = &self.rules.sampling.params;
        let reports = params.prompt_logprobs.is_some();
        let begins = params.n > 1 && self.metrics.first_token.is_none();
        let of_answers = || self.answers.iter().map(|a| a.sampler.reads());
        match () {
            () if reports || begins || self.searches() || of_answers().any(|r| r == Reads::All) => Reads::All,
            () if of_answers().any(|r| r == Reads::Ranks) => Reads::Ranks,
            () => Reads::Draws,
        }
    }

    /// Whether answer `index` needs all of a row of which it was said that it reads ranks.
    pub(crate) fn needs_all(&self, index: u32, row: &Row<'_>) -> bool {
        self.answers.get(index as usize).is_none_or(|a| a.sampler.needs_all(row))
    }

    /// Whether answer `index` takes the first token drawn from its row, whatever that is.
    pub(crate) fn takes_first_draw(&self, index: u32) -> bool {
        self.answers.get(index as usize).is_some_and(|a| a.sampler.takes_first_draw())
    }

    /// Whether answer `index` may have tokens after its next one.
    pub(crate) fn goes_on(&self, index: u32) -> bool {
        let most = self.rules.max_tokens;
        self.answers.get(index as usize).is_some_and(|a| !a.finished && a.sampler.output().len() + 1 < most)
    }

    /// What is asked of a row for answer `index`, which is that of every row where it has no such answer. Where it is `fed`, its last
    /// token is not known yet.
    pub(crate) fn draw(&self, index: u32, fed: bool, row: RowInputs<'_>) {
        if let Some(answer) = self.answers.get(index as usize) {
            *row.ranked = answer.sampler.ranked() as i32;
            *row.top_k = answer.sampler.top_k().unwrap_or(0) as i32;
            *row.temperature = self.rules.sampling.params.drawn_at().unwrap_or(NEXT_TO_NONE);
            *row.uniform = answer.sampler.numbers(usize::from(fed));
        }
    }

    /// Notes the logits at `position` of the prompt: they are about the token after it.
    pub(crate) fn add_prompt_logprobs(&mut self, position: usize, row: &Row<'_>) {
        let Some(count) = self.rules.sampling.params.prompt_logprobs else { return };
        let reported = report(sampler::logprobs(row, self.prompt[position + 1], count, &[]));
        self.prompt_logprobs.get_or_insert_default().push(Some(reported));
    }

    /// Times and counts by now.
    pub(crate) fn metrics(&self) -> Metrics {
        self.metrics
    }

    /// Ends answer `index`. False where it has ended, or not begun.
    pub(crate) fn stop(&mut self, index: u32) -> bool {
        let answer = self.answers.get_mut(index as usize);
        answer.is_some_and(|a| !std::mem::replace(&mut a.finished, true))
    }

    /// The prompt's log-probabilities, once.
    pub(crate) fn take_prompt_logprobs(&mut self) -> Option<Vec<Option<Logprobs>>> {
        self.prompt_logprobs.take()
    }

    /// Present when every answer has finished.
    pub(crate) fn finished(&mut self) -> Option<Metrics> {
        let started = self.metrics.first_token.is_some();
        let done = started && self.answers.iter().all(|a| a.finished);
        done.then(|| Metrics { finished: Instant::now(), ..self.metrics })
    }

    /// Ends every unfinished answer, those not yet started too.
    pub(crate) fn abort(&mut self) -> (Vec<SequenceOutput>, Metrics) {
        let aborted = |index| SequenceOutput {
            index,
            token_ids: vec![],
            text: String::new(),
            logprobs: vec![],
            finish: Some(Finish { reason: FinishReason::Abort, stop_reason: None }),
        };
        let unfinished = |i: &u32| self.answers.get(*i as usize).is_none_or(|a| !a.finished);
        let outputs = (0..self.rules.sampling.params.n).filter(unfinished).map(aborted).collect();
        (outputs, Metrics { finished: Instant::now(), ..self.metrics })
    }
}

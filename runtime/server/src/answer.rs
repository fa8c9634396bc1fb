//! What an engine yields, gathered, counted and put into the API's words.
//!
//! Invariants: the parts of a streamed answer, joined, are the answer that comes at once.

use crate::{
    api::{
        ApiError,
        completion::{PromptLogprob, PromptLogprobs, StopReasonValue, Usage},
    },
    engine_loop::{EngineHandle, Job, Outputs},
    prompt::{Prompt, beside},
    request_log::RequestLog,
};
use axum::http::StatusCode;
use rvllm_engine::{
    Finish, FinishReason, Logprob, Logprobs, Metrics, Output, SequenceOutput, StopReason, TokenizerError, Transcript,
};
use serde::Serialize;
use std::{
    collections::HashSet,
    panic::{self, AssertUnwindSafe},
    sync::Arc,
    time::{Duration, Instant},
};

/// Stands for the log-probability of what is impossible: JSON has no infinity.
const IMPOSSIBLE: f32 = -9999.0;

/// What every answer to a request begins with.
#[derive(Clone, Debug)]
pub struct Head {
    /// Names the request.
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The model's name, as the request had it.
    pub model: String,
    /// Tells one build from another.
    pub fingerprint: String,
}

/// What answers have beside their text.
#[derive(Clone, Debug)]
pub struct Extras {
    /// The prompts.
    pub prompts: Arc<[Prompt]>,
    /// Names tokens by their ids.
    pub tokens_as_ids: bool,
    /// Has token ids.
    pub token_ids: bool,
    /// Has the prompt's text.
    pub prompt_text: bool,
    /// Has the prompt's log-probabilities.
    pub prompt_logprobs: bool,
    /// Tokens whose log-probabilities are given, likely or not.
    pub named: Arc<[u32]>,
    /// Answers of which a piece has been written: (prompt, index).
    pub begun: HashSet<(usize, u32)>,
}

/// Writes answers of one kind.
pub trait Writer: Send + 'static {
    /// An answer, or a piece of one.
    type Answer: Serialize + Send;

    /// The pieces before the first token.
    fn open(&self) -> Vec<Self::Answer>;

    /// Sees what a step added to an answer that comes at once, before it is joined to what other steps added.
    fn see(&mut self, _output: &Output) {}

    /// The usage, with what the writer knows of it.
    fn detailed(&self, usage: Usage) -> Usage {
        usage
    }

    /// What a step added to prompt `prompt`.
    ///
    /// # Errors
    /// Tokens have no text.
    fn pieces(&mut self, prompt: usize, output: Output) -> Result<Vec<Self::Answer>, ApiError>;

    /// The answers of all prompts at once.
    ///
    /// # Errors
    /// Tokens have no text.
    fn whole(&mut self, outputs: Vec<Output>, usage: Usage) -> Result<Self::Answer, ApiError>;

    /// A piece with the usage and no answer.
    fn last(&self, usage: Usage) -> Self::Answer;

    /// Adds the usage so far to a piece.
    fn set_usage(piece: &mut Self::Answer, usage: Usage);
}

/// A request on its way through the engine. Its text is made here, in its own task: what fails there fails alone.
pub struct Running {
    outputs: Outputs,
    /// Of each prompt that is not answered yet.
    prompts: Vec<Option<Answering>>,
    usage: Usage,
    /// The client's own.
    deadline: Option<Instant>,
    engine: Arc<EngineHandle>,
    log: Arc<RequestLog>,
}

/// What is kept of a prompt while it is answered.
struct Answering {
    /// Absent while it is at work elsewhere, or where no text is wanted.
    transcript: Option<Transcript>,
}

impl Running {
    /// Hands a job to the engine. It is given up after `timeout`, or after the server's own where that is shorter.
    ///
    /// # Errors
    /// It is refused.
    pub async fn start(
        engine: &Arc<EngineHandle>,
        job: Job,
        timeout: Option<Duration>,
        log: Arc<RequestLog>,
    ) -> Result<Running, ApiError> {
        let prompt_tokens = job.prompts.iter().map(|p| p.len() as u64).sum();
        let answering = |prompt: &Vec<u32>| -> Result<_, ApiError> {
            let transcript = caught(|| engine.transcript(prompt, &job.params))?;
            Ok(Some(Answering { transcript }))
        };
        let prompts = job.prompts.iter().map(answering).collect::<Result<_, _>>()?;
        let deadline = timeout.map(|t| Instant::now() + t);
        let outputs = engine.submit(job, timeout).await?;
        let usage = Usage { prompt_tokens, total_tokens: prompt_tokens, ..Usage::default() };
        Ok(Running { outputs, prompts, usage, deadline, engine: engine.clone(), log })
    }

    /// What the next step adds, with the index of its prompt; `None` when all is said.
    ///
    /// # Errors
    /// The request was given up, its text cannot be made, or the engine has failed.
    pub async fn next(&mut self) -> Result<Option<(usize, Output)>, ApiError> {
        while !self.is_finished() {
            let next = self.outputs.recv().await;
            let seen = self.see(next.ok_or_else(|| self.engine.failure())?).await?;
            if seen.is_some() {
                return Ok(seen);
            }
        }
        Ok(None)
    }

    /// What further steps have added already.
    ///
    /// # Errors
    /// The request was given up, or its text cannot be made.
    pub async fn try_next(&mut self) -> Result<Option<(usize, Output)>, ApiError> {
        while let Ok(next) = self.outputs.try_recv() {
            let seen = self.see(next).await?;
            if seen.is_some() {
                return Ok(seen);
            }
        }
        Ok(None)
    }

    /// Makes the text, and counts. `None` where an output is about answers that have ended.
    async fn see(&mut self, (prompt, output): (usize, Output)) -> Result<Option<(usize, Output)>, ApiError> {
        if self.prompts[prompt].is_none() {
            return Ok(None);
        }
        let output = self.write(prompt, output).await?;
        let tokens: usize = output.sequences.iter().map(|s| s.token_ids.len()).sum();
        self.usage.completion_tokens += tokens as u64;
        self.usage.total_tokens += tokens as u64;
        let over = |a: &Answering| a.transcript.as_ref().is_some_and(Transcript::is_over);
        if output.finished.is_some() || self.prompts[prompt].as_ref().is_some_and(over) {
            self.prompts[prompt] = None;
            self.log.note_engine(&Metrics { finished: Instant::now(), ..output.so_far });
            let details = self.usage.prompt_tokens_details.get_or_insert_default();
            details.cached_tokens += u64::from(output.so_far.num_cached_tokens);
        }
        let finishes = output.sequences.iter().filter_map(|s| s.finish.as_ref());
        finishes.clone().for_each(|f| self.log.note_finish(f.reason.as_str()));
        self.log.note_usage(&self.usage);
        match finishes.clone().find_map(|finish| failure(finish, self.deadline)) {
            Some(error) => Err(error),
            None if output.sequences.is_empty() && output.finished.is_none() => Ok(None),
            None => Ok(Some((prompt, output))),
        }
    }

    /// Makes the text of an output, and ends the answers in the engine that a stop string has ended.
    async fn write(&mut self, prompt: usize, output: Output) -> Result<Output, ApiError> {
        let transcript = self.prompts[prompt].as_mut().and_then(|a| a.transcript.take());
        let Some(mut transcript) = transcript else { return Ok(output) };
        let (id, weight) = (output.request_id, weight(&output));
        let work = move || {
            let mut output = output;
            let stopped = caught(|| transcript.write(&mut output))?;
            Ok((transcript, output, stopped))
        };
        let (transcript, output, stopped) = beside(weight, work).await?;
        stopped.into_iter().for_each(|s| self.engine.stop(id, s));
        if let Some(answering) = &mut self.prompts[prompt] {
            answering.transcript = Some(transcript);
        }
        Ok(output)
    }

    /// Tokens taken so far.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// Whether all is said.
    pub fn is_finished(&self) -> bool {
        self.prompts.iter().all(Option::is_none)
    }

    /// All outputs of each prompt, seen by the writer and joined, its answers in order.
    ///
    /// # Errors
    /// See [`Running::next`].
    pub async fn gather(&mut self, writer: &mut impl Writer) -> Result<Vec<Output>, ApiError> {
        let mut all: Vec<Option<Output>> = self.prompts.iter().map(|_| None).collect();
        while let Some((prompt, output)) = self.next().await? {
            writer.see(&output);
            match &mut all[prompt] {
                Some(before) => join(before, output),
                empty => *empty = Some(output),
            }
        }
        let mut all: Vec<Output> = all.into_iter().flatten().collect();
        all.iter_mut().for_each(|o| o.sequences.sort_by_key(|s| s.index));
        Ok(all)
    }
}

/// Bytes of a prompt, about, whose encoding takes as long as the text of this output.
fn weight(output: &Output) -> usize {
    let alternatives = |s: &SequenceOutput| s.logprobs.iter().map(Vec::len).sum::<usize>();
    let answers: usize = output.sequences.iter().map(|s| s.token_ids.len() + alternatives(s)).sum();
    let of_prompt: usize = output.prompt_logprobs.iter().flatten().flatten().map(Vec::len).sum();
    8 * (answers + of_prompt)
}

/// Does what makes text; a panic there is an error of this request.
fn caught<T>(work: impl FnOnce() -> Result<T, TokenizerError>) -> Result<T, ApiError> {
    let failed = |_| ApiError::internal("the tokens of the answer could not be turned into text");
    Ok(panic::catch_unwind(AssertUnwindSafe(work)).map_err(failed)??)
}

fn join(all: &mut Output, more: Output) {
    all.prompt_logprobs = all.prompt_logprobs.take().or(more.prompt_logprobs);
    all.finished = more.finished;
    for added in more.sequences {
        match all.sequences.iter_mut().find(|s| s.index == added.index) {
            Some(before) => extend(before, added),
            None => all.sequences.push(added),
        }
    }
}

/// Adds what is new of an answer to what there was.
pub fn extend(all: &mut SequenceOutput, added: SequenceOutput) {
    all.token_ids.extend(added.token_ids);
    all.text.push_str(&added.text);
    all.logprobs.extend(added.logprobs);
    all.finish = added.finish;
}

/// What a client is told of an answer that will not be whole. `deadline` is the client's own.
fn failure(finish: &Finish, deadline: Option<Instant>) -> Option<ApiError> {
    match (finish.reason, &finish.stop_reason) {
        (FinishReason::Stop | FinishReason::Length | FinishReason::Repetition, _) => None,
        (FinishReason::Error, Some(StopReason::Text(why))) => Some(ApiError::field("structured_outputs", why.as_ref())),
        (FinishReason::Error, _) => Some(ApiError::internal("the answer could not go on")),
        (FinishReason::Abort, _) if deadline.is_some_and(|deadline| deadline <= Instant::now()) => Some(ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            "the request took longer than its X-Request-Timeout and was given up",
        )),
        (FinishReason::Abort, _) => {
            Some(ApiError::new(StatusCode::GATEWAY_TIMEOUT, "the request took too long and was given up"))
        }
    }
}

/// `finish_reason` and `stop_reason`.
pub fn finish_words(finish: Option<&Finish>) -> (Option<&'static str>, Option<StopReasonValue>) {
    let reason = finish.and_then(|f| f.stop_reason.as_ref()).map(|r| match r {
        StopReason::Token(id) => StopReasonValue::Token(*id),
        StopReason::Text(text) => StopReasonValue::Text(text.to_string()),
    });
    (finish.map(|f| f.reason.as_str()), reason)
}

/// A token as log-probabilities name it.
pub fn token_text(token: &Logprob, as_id: bool) -> String {
    match &token.decoded_token {
        Some(text) if !as_id => text.clone(),
        _ => format!("token_id:{}", token.token_id),
    }
}

/// A log-probability that JSON can hold.
pub fn finite(logprob: f32) -> f32 {
    logprob.max(IMPOSSIBLE)
}

/// The likeliest `count` of the alternatives at a position, and the `named` ones, likeliest first.
pub fn likeliest<'a>(alternatives: &'a [Logprob], count: usize, named: &[u32]) -> Vec<&'a Logprob> {
    let mut all: Vec<&Logprob> = alternatives.iter().collect();
    all.sort_by_key(|l| l.rank);
    let likely = (0..).zip(all).filter(|(i, l)| *i < count || named.binary_search(&l.token_id).is_ok());
    likely.map(|(_, l)| l).collect()
}

/// vLLM's `prompt_logprobs`: at each position the alternatives by token id.
pub fn prompt_logprobs(positions: &[Option<Logprobs>]) -> PromptLogprobs {
    let entry = |l: &Logprob| {
        let decoded_token = l.decoded_token.clone();
        (l.token_id.to_string(), PromptLogprob { logprob: finite(l.logprob), rank: l.rank, decoded_token })
    };
    positions.iter().map(|position| position.as_ref().map(|all| all.iter().map(entry).collect())).collect()
}

//! What an engine yields, gathered, counted and put into the API's words.
//!
//! Invariants: the parts of a streamed answer, joined, are the answer that comes at once.

use crate::{
    api::{
        ApiError,
        completion::{PromptLogprob, PromptLogprobs, PromptTokensDetails, StopReasonValue, Usage},
    },
    engine_loop::{EngineHandle, Job, Outputs},
    prompt::Prompt,
    request_log::RequestLog,
};
use axum::http::StatusCode;
use rvllm_engine::{Finish, FinishReason, Logprob, Logprobs, Output, SequenceOutput, StopReason};
use serde::Serialize;
use std::{collections::HashSet, sync::Arc};

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

/// A request on its way through the engine.
pub struct Running {
    outputs: Outputs,
    unfinished: usize,
    usage: Usage,
    engine: Arc<EngineHandle>,
    log: Arc<RequestLog>,
}

impl Running {
    /// Hands a job to the engine.
    ///
    /// # Errors
    /// It is refused.
    pub async fn start(engine: &Arc<EngineHandle>, job: Job, log: Arc<RequestLog>) -> Result<Running, ApiError> {
        let unfinished = job.prompts.len();
        let prompt_tokens = job.prompts.iter().map(|p| p.len() as u64).sum();
        let outputs = engine.submit(job).await?;
        let usage = Usage { prompt_tokens, total_tokens: prompt_tokens, ..Usage::default() };
        Ok(Running { outputs, unfinished, usage, engine: engine.clone(), log })
    }

    /// What the next step adds, with the index of its prompt; `None` when all is said.
    ///
    /// # Errors
    /// The request was given up, or the engine has failed.
    pub async fn next(&mut self) -> Result<Option<(usize, Output)>, ApiError> {
        if self.unfinished == 0 {
            return Ok(None);
        }
        let next = self.outputs.recv().await;
        self.see(next.ok_or_else(|| self.engine.failure())?).map(Some)
    }

    /// What further steps have added already.
    ///
    /// # Errors
    /// The request was given up.
    pub fn try_next(&mut self) -> Result<Option<(usize, Output)>, ApiError> {
        self.outputs.try_recv().ok().map(|next| self.see(next)).transpose()
    }

    fn see(&mut self, (prompt, output): (usize, Output)) -> Result<(usize, Output), ApiError> {
        let tokens: usize = output.sequences.iter().map(|s| s.token_ids.len()).sum();
        self.usage.completion_tokens += tokens as u64;
        self.usage.total_tokens += tokens as u64;
        if let Some(metrics) = &output.finished {
            self.unfinished -= 1;
            self.log.note_engine(metrics);
            let details = self.usage.prompt_tokens_details.get_or_insert_default();
            *details =
                PromptTokensDetails { cached_tokens: details.cached_tokens + u64::from(metrics.num_cached_tokens) };
        }
        let finishes = output.sequences.iter().filter_map(|s| s.finish.as_ref());
        finishes.clone().for_each(|f| self.log.note_finish(f.reason.as_str()));
        self.log.note_usage(&self.usage);
        match finishes.clone().find_map(failure) {
            Some(error) => Err(error),
            None => Ok((prompt, output)),
        }
    }

    /// Tokens taken so far.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// Whether all is said.
    pub fn is_finished(&self) -> bool {
        self.unfinished == 0
    }

    /// All outputs of each prompt, seen by the writer and joined, its answers in order.
    ///
    /// # Errors
    /// See [`Running::next`].
    pub async fn gather(&mut self, writer: &mut impl Writer) -> Result<Vec<Output>, ApiError> {
        let mut all: Vec<Option<Output>> = (0..self.unfinished).map(|_| None).collect();
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

fn extend(all: &mut SequenceOutput, added: SequenceOutput) {
    all.token_ids.extend(added.token_ids);
    all.text.push_str(&added.text);
    all.logprobs.extend(added.logprobs);
    all.finish = added.finish;
}

/// What a client is told of an answer that will not be whole.
fn failure(finish: &Finish) -> Option<ApiError> {
    match (finish.reason, &finish.stop_reason) {
        (FinishReason::Stop | FinishReason::Length, _) => None,
        (FinishReason::Error, Some(StopReason::Text(why))) => Some(ApiError::field("structured_outputs", why.as_ref())),
        (FinishReason::Error, _) => Some(ApiError::internal("the answer could not go on")),
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

/// The likeliest `count` of the alternatives at a position, likeliest first.
pub fn likeliest(alternatives: &[Logprob], count: usize) -> Vec<&Logprob> {
    let mut all: Vec<&Logprob> = alternatives.iter().collect();
    all.sort_by_key(|l| l.rank);
    all.truncate(count);
    all
}

/// vLLM's `prompt_logprobs`: at each position the alternatives by token id.
pub fn prompt_logprobs(positions: &[Option<Logprobs>]) -> PromptLogprobs {
    let entry = |l: &Logprob| {
        let decoded_token = l.decoded_token.clone();
        (l.token_id.to_string(), PromptLogprob { logprob: finite(l.logprob), rank: l.rank, decoded_token })
    };
    positions.iter().map(|position| position.as_ref().map(|all| all.iter().map(entry).collect())).collect()
}

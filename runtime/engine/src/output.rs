//! What a step yields to whoever asked: deltas, never the whole answer again.

use std::{sync::Arc, time::Instant};

/// Names a request; chosen by the caller, unique among unfinished ones.
pub type RequestId = u64;

/// What one step added to one request.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// The request.
    pub request_id: RequestId,
    /// Log-probabilities of the prompt's tokens, `null` first: once, when the prompt is computed.
    pub prompt_logprobs: Option<Vec<Option<Logprobs>>>,
    /// What was added to its sequences; those without news are absent.
    pub sequences: Vec<SequenceOutput>,
    /// Times and counts by now, of the request's steps: whoever ends its answers knows them without waiting.
    pub so_far: Metrics,
    /// Present when the last sequence has finished: nothing more comes.
    pub finished: Option<Metrics>,
}

/// What one step added to one sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct SequenceOutput {
    /// Which of the request's `n`, from 0.
    pub index: u32,
    /// New tokens.
    pub token_ids: Vec<u32>,
    /// New text, which a [`crate::text::Transcript`] fills in. Tokens whose characters are incomplete, or that may begin a stop string, show up later.
    pub text: String,
    /// One per new token, where asked for.
    pub logprobs: Vec<Logprobs>,
    /// Present when the sequence has finished.
    pub finish: Option<Finish>,
}

/// Log-probabilities at one position: the token that stands there first, then the most likely, without repetition.
pub type Logprobs = Vec<Logprob>;

/// One alternative.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprob {
    /// The token.
    pub token_id: u32,
    /// Its logit less the log of the sum of exponentials, before any sampling parameter.
    pub logprob: f32,
    /// 1 for the most likely.
    pub rank: u32,
    /// Its text alone, which a [`crate::text::Transcript`] fills in; `None` where the request does not detokenize.
    pub decoded_token: Option<String>,
}

/// How a sequence ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Finish {
    /// In vLLM's words.
    pub reason: FinishReason,
    /// What stopped it: a stop string or a stop token; `None` for the model's own end token.
    pub stop_reason: Option<StopReason>,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// An end token, a stop token or a stop string.
    Stop,
    /// `max_tokens` or the model's length.
    Length,
    /// Its tokens repeat, as `repetition_detection` says.
    Repetition,
    /// The caller gave up.
    Abort,
    /// The answer could not go on; the stop reason says why.
    Error,
}

impl FinishReason {
    /// As in vLLM's and OpenAI's answers: `stop`, `length`, `repetition`, `abort`, `error`.
    pub fn as_str(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Repetition => "repetition",
            FinishReason::Abort => "abort",
            FinishReason::Error => "error",
        }
    }
}

/// What stopped a sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// A token.
    Token(u32),
    /// A stop string.
    Text(Arc<str>),
}

/// Times and counts of a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Metrics {
    /// When it was added.
    pub arrival: Instant,
    /// When a step first computed a part of it.
    pub first_scheduled: Option<Instant>,
    /// When its first token was there.
    pub first_token: Option<Instant>,
    /// When its last sequence finished.
    pub finished: Instant,
    /// Tokens of the prompt, after truncation.
    pub num_prompt_tokens: u32,
    /// Tokens generated, over all sequences.
    pub num_generated_tokens: u32,
    /// Tokens of the prompt whose KV was found instead of computed.
    pub num_cached_tokens: u32,
    /// How often a sequence lost its blocks and was computed again.
    pub num_preemptions: u32,
}

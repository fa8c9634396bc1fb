//! `/v1/completions`: its request and its answers.

use super::{
    ApiError,
    bounds::{AnswerTokens, ModelName, NumAlternatives, NumAnswers, Suffix, TruncatedLength},
    request::{self, Request, merged, names, part},
    sampling::Sampling,
    structured::FormFields,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{collections::BTreeMap, sync::LazyLock};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{RefOr, Schema},
};

/// The prompt or prompts of a completion.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string, a list of strings, a list of token ids, or a list of such lists")]
pub enum Prompts {
    /// A text.
    Text(String),
    /// Tokens.
    TokenIds(Vec<u32>),
    /// Texts.
    Texts(Vec<String>),
    /// Lists of tokens.
    TokenIdLists(Vec<Vec<u32>>),
}

/// What is added to a stream.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(default)]
pub struct StreamOptions {
    /// Ends the stream with the request's usage.
    pub include_usage: bool,
    /// Has the usage so far in each chunk.
    pub continuous_usage_stats: bool,
}

/// Which end of a prompt `truncate_prompt_tokens` keeps away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum TruncationSide {
    /// The first tokens go.
    #[default]
    Left,
    /// The last tokens go.
    Right,
}

/// What both kinds of requests say beside their prompt and how to sample.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct Common {
    /// The model's name; the first that is served where absent.
    #[schema(value_type = Option<ModelName>)]
    pub model: Option<String>,
    /// Sends the answer in pieces, as server-sent events.
    pub stream: Option<bool>,
    /// What is added to a stream.
    pub stream_options: Option<StreamOptions>,
    /// Puts the prompt, or the last message that the answer continues, before the answer.
    pub echo: Option<bool>,
    /// Keeps only this many tokens of the prompt; -1 is as many as fit.
    #[schema(value_type = Option<TruncatedLength>)]
    pub truncate_prompt_tokens: Option<i64>,
    /// Tokens of an answer between the pieces of a stream; the first token comes at once. 1 where absent.
    #[schema(minimum = 1, maximum = 2147483647)]
    pub stream_interval: Option<i32>,
    /// Which end of the prompt goes.
    pub truncation_side: Option<TruncationSide>,
    /// Names tokens by their ids, as `token_id:N`, wherever log-probabilities name them.
    pub return_tokens_as_token_ids: Option<bool>,
    /// Has the token ids of prompt and answers in the answer.
    pub return_token_ids: Option<bool>,
    /// Has the prompt as the model reads it in the answer.
    pub return_prompt_text: Option<bool>,
    /// Names the request; the header X-Request-Id does, too.
    #[schema(pattern = "^[!-~]{1,128}$")]
    pub request_id: Option<String>,
}

/// Fields that completions alone have.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct CompletionFields {
    /// What to continue: texts or tokens.
    pub prompt: Prompts,
    /// What follows the answer, where the model fills in the middle.
    #[schema(value_type = Option<Suffix>)]
    pub suffix: Option<String>,
    /// Most tokens of an answer; 16 where absent. 0 only with echo.
    #[schema(value_type = Option<AnswerTokens>)]
    pub max_tokens: Option<u32>,
    /// Alternatives reported for each token; -1 is the whole vocabulary.
    #[schema(value_type = Option<NumAlternatives>)]
    pub logprobs: Option<i32>,
    /// Answers computed, of which the `n` most likely are given.
    #[schema(value_type = Option<NumAnswers>)]
    pub best_of: Option<u32>,
    /// Adds the tokens that the model puts around a text; true where absent.
    pub add_special_tokens: Option<bool>,
}

/// A completion's request.
#[derive(Clone, Debug)]
pub struct CompletionRequest {
    /// Its own fields.
    pub own: CompletionFields,
    /// Fields of every request.
    pub common: Common,
    /// How to sample.
    pub sampling: Sampling,
    /// The form of answers.
    pub form: FormFields,
}

fn schemas() -> [RefOr<Schema>; 4] {
    [CompletionFields::schema(), Common::schema(), Sampling::schema(), FormFields::schema()]
}

impl PartialSchema for CompletionRequest {
    fn schema() -> RefOr<Schema> {
        merged(&schemas(), "A completion's request.")
    }
}

impl ToSchema for CompletionRequest {
    fn schemas(all: &mut Vec<(String, RefOr<Schema>)>) {
        CompletionFields::schemas(all);
        Common::schemas(all);
        Sampling::schemas(all);
        FormFields::schemas(all);
    }
}

impl Request for CompletionRequest {
    fn read(fields: &Value) -> Result<Self, ApiError> {
        let (own, common, sampling) = (part(fields)?, part(fields)?, part(fields)?);
        Ok(CompletionRequest { own, common, sampling, form: part(fields)? })
    }

    fn names() -> &'static [String] {
        static NAMES: LazyLock<Vec<String>> = LazyLock::new(|| names(&schemas()));
        &NAMES
    }
}

/// Tokens that a request took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct Usage {
    /// Of its prompts.
    pub prompt_tokens: u64,
    /// Of both.
    pub total_tokens: u64,
    /// Of its answers.
    pub completion_tokens: u64,
    /// More about the prompts; known when they are computed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_tokens_details: Option<PromptTokensDetails>,
    /// More about the answers; where reasoning is told from the rest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_tokens_details: Option<CompletionTokensDetails>,
}

/// More about the tokens of answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct CompletionTokensDetails {
    /// Those of what was thought.
    pub reasoning_tokens: u64,
}

/// More about the tokens of prompts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct PromptTokensDetails {
    /// Those whose KV was found instead of computed.
    pub cached_tokens: u64,
}

/// Why an answer ended: a stop string or a stop token.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum StopReasonValue {
    /// A token.
    Token(u32),
    /// A stop string.
    Text(String),
}

/// Log-probabilities of a prompt: at each position the alternatives by token id; none at the first.
pub type PromptLogprobs = Vec<Option<BTreeMap<String, PromptLogprob>>>;

/// An alternative at a position of a prompt.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct PromptLogprob {
    /// Natural logarithm; -9999 where it is impossible.
    pub logprob: f32,
    /// 1 for the likeliest.
    pub rank: u32,
    /// The token's text.
    pub decoded_token: Option<String>,
}

/// Log-probabilities of a completion's tokens, one entry for each.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct CompletionLogprobs {
    /// Where each token's text begins, in characters.
    pub text_offset: Vec<usize>,
    /// Of each token; none of a prompt's first.
    pub token_logprobs: Vec<Option<f32>>,
    /// Texts of the tokens.
    pub tokens: Vec<String>,
    /// The likeliest tokens there, by text.
    pub top_logprobs: Vec<Option<BTreeMap<String, f32>>>,
}

/// One answer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct CompletionChoice {
    /// Answer `i` of prompt `p` is `p * n + i`.
    pub index: u32,
    /// Its text, or what is new of it.
    pub text: String,
    /// Log-probabilities, where asked for.
    pub logprobs: Option<CompletionLogprobs>,
    /// `stop`, `length`; null while the answer goes on.
    pub finish_reason: Option<&'static str>,
    /// What stopped it; null where that is the model's own end token.
    pub stop_reason: Option<StopReasonValue>,
    /// Log-probabilities of the prompt: by token id, null first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<PromptLogprobs>,
    /// Tokens of the answer, where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
    /// Tokens of the prompt, where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
    /// The prompt, where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_text: Option<String>,
}

/// A completion, or a piece of one.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Completion {
    /// Names the request.
    pub id: String,
    /// `text_completion`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// The model's name, as the request had it.
    pub model: String,
    /// The answers.
    pub choices: Vec<CompletionChoice>,
    /// Tells one build from another.
    pub system_fingerprint: String,
    /// Tokens taken; in a stream only where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// Reads a completion's request.
///
/// # Errors
/// See [`request::parse`].
pub fn parse(body: &[u8], strict: bool) -> Result<request::Parsed<CompletionRequest>, ApiError> {
    request::parse(body, strict)
}

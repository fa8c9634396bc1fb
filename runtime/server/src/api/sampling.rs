//! Sampling parameters that completions and chats share, by vLLM's names.
//!
//! Invariants: what is absent leaves the server's default alone.

use super::{
    ApiError,
    bounds::{LogitBias, NumAlternatives, NumAnswers, NumTokens, Priority, Seed, TokenId, Word},
    number,
};
use rvllm_engine::{RepetitionDetection, SamplingParams};
use serde::Deserialize;
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// Most texts of `stop` and `bad_words`, and most tokens with a bias.
pub(super) const MOST_ENTRIES: usize = 1024;
/// Most bytes of all texts of `stop`, or of `bad_words`.
pub(super) const MOST_TEXT: usize = 1 << 16;

/// How tokens are chosen and when an answer ends.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct Sampling {
    /// Answers to each prompt; under beam search also the number of beams.
    #[schema(value_type = Option<NumAnswers>)]
    pub n: Option<u32>,
    /// Looks for the likeliest answers instead of drawing them: temperature, top_p, top_k, min_p and seed have no say. A
    /// stream has each answer whole.
    pub use_beam_search: Option<bool>,
    /// Beams are ranked by log-probability / length ^ this, the prompt counted; only with use_beam_search.
    #[serde(default, deserialize_with = "number::float")]
    pub length_penalty: Option<f32>,
    /// Divides the logits; 0 is greedy.
    #[schema(minimum = 0.0)]
    #[serde(default, deserialize_with = "number::float")]
    pub temperature: Option<f32>,
    /// Mass of the most likely tokens that are kept.
    #[schema(exclusive_minimum = 0.0, maximum = 1.0)]
    #[serde(default, deserialize_with = "number::float")]
    pub top_p: Option<f32>,
    /// Number of most likely tokens that are kept; 0 and -1 keep all.
    #[schema(minimum = -1, maximum = 2147483647)]
    pub top_k: Option<i32>,
    /// Least probability kept, relative to the most likely token's.
    #[schema(minimum = 0.0, maximum = 1.0)]
    #[serde(default, deserialize_with = "number::float")]
    pub min_p: Option<f32>,
    /// Divides positive and multiplies negative logits of tokens that prompt or answer have; 1 is off.
    #[schema(exclusive_minimum = 0.0)]
    #[serde(default, deserialize_with = "number::float")]
    pub repetition_penalty: Option<f32>,
    /// Subtracted from logits of tokens that the answer has.
    #[schema(minimum = -2.0, maximum = 2.0)]
    #[serde(default, deserialize_with = "number::float")]
    pub presence_penalty: Option<f32>,
    /// Subtracted once for each time that the answer has the token.
    #[schema(minimum = -2.0, maximum = 2.0)]
    #[serde(default, deserialize_with = "number::float")]
    pub frequency_penalty: Option<f32>,
    /// Added to the logits of these tokens.
    #[schema(value_type = Option<LogitBias>)]
    pub logit_bias: Option<BTreeMap<u32, f32>>,
    /// Makes the answer repeatable; -1 is a random one.
    #[schema(value_type = Option<Seed>)]
    pub seed: Option<i64>,
    /// Texts that end an answer.
    pub stop: Option<Texts>,
    /// Tokens that end an answer, beside the model's own.
    #[schema(value_type = Option<Vec<TokenId>>, max_items = 1024)]
    pub stop_token_ids: Option<Vec<u32>>,
    /// Keeps what ended an answer in its text.
    pub include_stop_str_in_output: Option<bool>,
    /// Tokens before which nothing ends an answer.
    #[schema(value_type = Option<NumTokens>)]
    pub min_tokens: Option<u32>,
    /// Goes on after the model's end token.
    pub ignore_eos: Option<bool>,
    /// Texts that are not written.
    #[schema(value_type = Option<Vec<Word>>, max_items = 1024)]
    pub bad_words: Option<Vec<String>>,
    /// The only tokens that may be chosen.
    #[schema(value_type = Option<Vec<TokenId>>, min_items = 1)]
    pub allowed_token_ids: Option<Vec<u32>>,
    /// Tokens whose log-probabilities are reported beside each token, likely or not, where log-probabilities are.
    #[schema(value_type = Option<Vec<TokenId>>, max_items = 128)]
    pub logprob_token_ids: Option<Vec<u32>>,
    /// Ends an answer that repeats itself, with the finish_reason `repetition`.
    pub repetition_detection: Option<Repetition>,
    /// Most tokens that the model thinks: behind them the end of its reasoning is written for it.
    #[schema(value_type = Option<NumTokens>)]
    pub thinking_token_budget: Option<u32>,
    /// Alternatives reported for each token of the prompt; -1 is the whole vocabulary.
    #[schema(value_type = Option<NumAlternatives>)]
    pub prompt_logprobs: Option<i32>,
    /// Leaves special tokens out of the text.
    pub skip_special_tokens: Option<bool>,
    /// Puts spaces between adjacent special tokens.
    pub spaces_between_special_tokens: Option<bool>,
    /// Smaller is served first, under `--scheduling-policy priority`; else refused unless 0.
    #[schema(value_type = Option<Priority>)]
    pub priority: Option<i32>,
    /// Shares cached prefixes only with requests that bring the same text.
    #[schema(min_length = 1)]
    pub cache_salt: Option<String>,
}

/// When an answer counts as repeating itself: its last tokens are one pattern, over and over.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct Repetition {
    /// Tokens of the longest pattern; 0 looks for none.
    #[schema(maximum = 1024)]
    #[serde(deserialize_with = "number::whole")]
    pub max_pattern_size: u32,
    /// Tokens of the shortest pattern; 1 where absent or 0.
    #[serde(default, deserialize_with = "number::whole")]
    pub min_pattern_size: Option<u32>,
    /// Times that the pattern must stand there.
    #[schema(minimum = 2, maximum = 1024)]
    #[serde(deserialize_with = "number::whole")]
    pub min_count: u32,
}

impl From<Repetition> for RepetitionDetection {
    fn from(repetition: Repetition) -> RepetitionDetection {
        let Repetition { max_pattern_size, min_pattern_size, min_count } = repetition;
        RepetitionDetection { max_pattern_size, min_pattern_size: min_pattern_size.unwrap_or(0), min_count }
    }
}

/// One text or several.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
pub enum Texts {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl Texts {
    fn list(self) -> Vec<String> {
        match self {
            Texts::One(text) => vec![text],
            Texts::Many(texts) => texts,
        }
    }
}

fn set<T>(to: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *to = value;
    }
}

impl Sampling {
    /// These over the server's defaults.
    ///
    /// # Errors
    /// A list is longer than the server takes.
    pub fn over(self, defaults: &SamplingParams) -> Result<SamplingParams, ApiError> {
        self.check_sizes()?;
        let mut p = defaults.clone();
        set(&mut p.n, self.n);
        set(&mut p.use_beam_search, self.use_beam_search);
        set(&mut p.length_penalty, self.length_penalty);
        set(&mut p.temperature, self.temperature);
        set(&mut p.top_p, self.top_p);
        set(&mut p.top_k, self.top_k);
        set(&mut p.min_p, self.min_p);
        set(&mut p.repetition_penalty, self.repetition_penalty);
        set(&mut p.presence_penalty, self.presence_penalty);
        set(&mut p.frequency_penalty, self.frequency_penalty);
        set(&mut p.stop, self.stop.map(Texts::list));
        set(&mut p.stop_token_ids, self.stop_token_ids);
        set(&mut p.include_stop_str_in_output, self.include_stop_str_in_output);
        set(&mut p.min_tokens, self.min_tokens);
        set(&mut p.ignore_eos, self.ignore_eos);
        set(&mut p.bad_words, self.bad_words);
        set(&mut p.skip_special_tokens, self.skip_special_tokens);
        set(&mut p.spaces_between_special_tokens, self.spaces_between_special_tokens);
        set(&mut p.priority, self.priority);
        set(&mut p.logprob_token_ids, self.logprob_token_ids);
        p.repetition_detection = self.repetition_detection.map(Into::into).or(p.repetition_detection);
        p.logit_bias = self.logit_bias.or(p.logit_bias);
        p.seed = self.seed.or(p.seed);
        p.allowed_token_ids = self.allowed_token_ids.or(p.allowed_token_ids);
        p.cache_salt = self.cache_salt.or(p.cache_salt);
        p.thinking_token_budget = self.thinking_token_budget.or(p.thinking_token_budget);
        p.prompt_logprobs = self.prompt_logprobs.or(p.prompt_logprobs);
        Ok(p)
    }

    fn check_sizes(&self) -> Result<(), ApiError> {
        let stop = match &self.stop {
            Some(Texts::Many(texts)) => texts.as_slice(),
            Some(Texts::One(text)) => std::slice::from_ref(text),
            None => &[],
        };
        check_texts("stop", stop)?;
        check_texts("bad_words", self.bad_words.as_deref().unwrap_or_default())?;
        check_count("logit_bias", self.logit_bias.as_ref().map_or(0, BTreeMap::len))?;
        check_count("logprob_token_ids", self.logprob_token_ids.as_ref().map_or(0, Vec::len))?;
        check_count("stop_token_ids", self.stop_token_ids.as_ref().map_or(0, Vec::len))
    }
}

fn check_count(name: &str, count: usize) -> Result<(), ApiError> {
    if count <= MOST_ENTRIES {
        return Ok(());
    }
    Err(ApiError::field(name, format!("{name} has {count} entries, but at most {MOST_ENTRIES} are taken")))
}

fn check_texts(name: &str, texts: &[String]) -> Result<(), ApiError> {
    check_count(name, texts.len())?;
    let bytes: usize = texts.iter().map(String::len).sum();
    if bytes <= MOST_TEXT {
        return Ok(());
    }
    Err(ApiError::field(name, format!("{name} has {bytes} bytes, but at most {MOST_TEXT} are taken")))
}

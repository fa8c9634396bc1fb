//! Sampling parameters, by vLLM's names and with vLLM's meanings.
//!
//! Invariants:
//! - parameters that passed [`SamplingParams::validate`] never make the sampler or the scheduler fail;
//! - an unknown name, a wrong type and a value out of range each name the parameter, the value and what is allowed.

use crate::grammar::StructuredOutputs;
use crate::{repetition::RepetitionDetection, thinking::Thinking};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use std::{collections::BTreeMap, sync::Arc};

/// Most sequences of one request.
pub const MAX_N: u32 = 16384;
/// Most tokens that `logprob_token_ids` may name.
pub const MAX_LOGPROB_TOKEN_IDS: usize = 128;
/// Most beams of one request.
pub const MAX_BEAM_WIDTH: u32 = 256;
/// Below this a positive temperature overflows the softmax's range; it is raised to it.
const MIN_TEMPERATURE: f32 = 1e-2;
/// Above this its reciprocal vanishes; it is lowered to it.
const MAX_TEMPERATURE: f32 = 1e30;

/// A parameter that is unknown, of the wrong type or out of range.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{name} is {value}, but must be {allowed}")]
pub struct ParamError {
    /// The parameter.
    pub name: String,
    /// What it was given.
    pub value: String,
    /// What it takes.
    pub allowed: String,
}

/// How a request chooses its tokens and when it stops. Defaults are vLLM's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingParams {
    /// Sequences generated from the one prompt; under beam search also the number of beams.
    pub n: u32,
    /// Looks for the likeliest answers, `n` beams wide, instead of drawing them: temperature, top_p, top_k, min_p and
    /// seed have no say. Answers come when all are known, the best first.
    pub use_beam_search: bool,
    /// Beams are ranked by their log-probability, divided by the number of tokens, those of the prompt included and an
    /// end token not, to this power.
    pub length_penalty: f32,
    /// Divides the logits; 0 is greedy.
    pub temperature: f32,
    /// Mass of the most likely tokens that are kept, in (0, 1].
    pub top_p: f32,
    /// Number of most likely tokens that are kept; 0 and -1 keep all.
    pub top_k: i32,
    /// Least probability kept, relative to the most likely token's, in [0, 1].
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens that the prompt or the output has; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted from logits of tokens that the output has, in [-2, 2].
    pub presence_penalty: f32,
    /// Subtracted once for each time that the output has the token, in [-2, 2].
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens; limited to [-100, 100].
    pub logit_bias: Option<BTreeMap<u32, f32>>,
    /// Makes the choice repeatable; absent (or -1), the operating system gives one.
    pub seed: Option<i64>,
    /// Texts that end an answer: one or a list.
    #[serde(deserialize_with = "one_or_many")]
    pub stop: Vec<String>,
    /// Tokens that end an answer, beside the model's own.
    #[serde(deserialize_with = "null_is_default")]
    pub stop_token_ids: Vec<u32>,
    /// Keeps the stop string, or the stop token's text, in the answer.
    pub include_stop_str_in_output: bool,
    /// Tokens before which neither an end token nor a stop string ends the answer.
    pub min_tokens: u32,
    /// Most tokens of an answer; null is up to the model's length.
    pub max_tokens: Option<u32>,
    /// Goes on after the model's end token.
    pub ignore_eos: bool,
    /// Texts whose last token is not chosen where it would complete them.
    #[serde(deserialize_with = "null_is_default")]
    pub bad_words: Vec<String>,
    /// The only tokens that may be chosen.
    pub allowed_token_ids: Option<Vec<u32>>,
    /// Alternatives reported beside each token: 0 to 20, or -1 for the whole vocabulary.
    pub logprobs: Option<i32>,
    /// Tokens whose log-probabilities are reported beside each token, likely or not, where `logprobs` is given.
    #[serde(deserialize_with = "null_is_default")]
    pub logprob_token_ids: Vec<u32>,
    /// Ends an answer that repeats itself.
    pub repetition_detection: Option<RepetitionDetection>,
    /// The same as `logprobs` for each token of the prompt.
    pub prompt_logprobs: Option<i32>,
    /// Leaves special tokens out of the text.
    pub skip_special_tokens: bool,
    /// Special tokens that are not left out: markup which whoever reads the text looks for.
    #[serde(skip)]
    pub kept_special_tokens: Arc<[u32]>,
    /// Puts spaces between adjacent special tokens, where the tokenizer does.
    pub spaces_between_special_tokens: bool,
    /// Makes text; without it there are token ids only.
    pub detokenize: bool,
    /// Keeps only the last tokens of the prompt, this many; -1 is as many as fit the model.
    pub truncate_prompt_tokens: Option<i64>,
    /// Smaller is served first; equal ones in order of arrival.
    pub priority: i32,
    /// Shares what is kept of computed prompts only with requests that bring the same text; absent, with those that
    /// bring none.
    pub cache_salt: Option<String>,
    /// The form of answers: a JSON schema, a regular expression, choices or a grammar.
    pub structured_outputs: Option<StructuredOutputs>,
    /// Most tokens that a model thinks: behind them the end of its reasoning is written for it.
    pub thinking_token_budget: Option<u32>,
    /// How the model marks what it thinks, where that is known.
    #[serde(skip)]
    pub thinking: Option<Arc<Thinking>>,
}

impl Default for SamplingParams {
    fn default() -> SamplingParams {
        SamplingParams {
            n: 1,
            use_beam_search: false,
            length_penalty: 1.0,
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: None,
            seed: None,
            stop: vec![],
            stop_token_ids: vec![],
            include_stop_str_in_output: false,
            min_tokens: 0,
            max_tokens: Some(16),
            ignore_eos: false,
            bad_words: vec![],
            allowed_token_ids: None,
            logprobs: None,
            logprob_token_ids: vec![],
            repetition_detection: None,
            prompt_logprobs: None,
            skip_special_tokens: true,
            kept_special_tokens: Arc::default(),
            spaces_between_special_tokens: true,
            detokenize: true,
            truncate_prompt_tokens: None,
            priority: 0,
            cache_salt: None,
            structured_outputs: None,
            thinking_token_budget: None,
            thinking: None,
        }
    }
}

/// Reads a null as what is absent.
pub(crate) fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(d: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

fn one_or_many<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a string or a list of strings")]
    enum Stop {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Option::<Stop>::deserialize(d)? {
        None => vec![],
        Some(Stop::One(s)) => vec![s],
        Some(Stop::Many(list)) => list,
    })
}

impl SamplingParams {
    /// Whether the most likely token is always chosen.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Whether min_p, top_k and top_p leave every token.
    pub fn leaves_everything(&self) -> bool {
        self.min_p == 0.0 && self.top_k == 0 && self.top_p >= 1.0
    }

    /// The temperature at which tokens are drawn, if they are.
    pub fn drawn_at(&self) -> Option<f32> {
        (!self.is_greedy() && !self.use_beam_search).then_some(self.temperature)
    }

    /// The names of all parameters, in order.
    pub fn names() -> Vec<String> {
        defaults().keys().cloned().collect()
    }

    /// These parameters with some replaced, by name: what a line of input says over what the flags say.
    /// A null means "no value" where a parameter may have none, else "as it was".
    pub fn overridden(&self, values: &Map<String, Value>) -> Result<SamplingParams, ParamError> {
        let known = defaults();
        let mut params = self.clone();
        for (name, value) in values {
            if !known.contains_key(name) {
                return Err(unknown(name, value));
            }
            params = match params.with(name, value) {
                Err(_) if value.is_null() => params,
                replaced => replaced?,
            };
        }
        Ok(params)
    }

    fn with(&self, name: &str, value: &Value) -> Result<SamplingParams, ParamError> {
        let mut all = object(self);
        all.insert(name.to_string(), value.clone());
        serde_json::from_value(Value::Object(all)).map_err(|e| error(name, value, what_serde_expects(&e.to_string())))
    }

    /// Checks every parameter against the model's vocabulary and longest sequence, and brings those to their
    /// canonical form that have several spellings (`top_k` -1, `seed` -1, a tiny temperature, a huge bias).
    pub fn validate(&mut self, vocab_size: u32, max_model_len: u32) -> Result<(), ParamError> {
        self.check_numbers()?;
        self.check_lengths(max_model_len)?;
        self.check_tokens(vocab_size)?;
        self.check_texts()?;
        self.check_named()?;
        self.normalize();
        Ok(())
    }

    fn check_numbers(&self) -> Result<(), ParamError> {
        let within = |name: &str, value: f32, ok: bool, allowed: &str| {
            if ok && value.is_finite() { Ok(()) } else { Err(error(name, value, allowed)) }
        };
        let p = self;
        within("temperature", p.temperature, p.temperature >= 0.0, "at least 0")?;
        within("top_p", p.top_p, p.top_p > 0.0 && p.top_p <= 1.0, "above 0 and at most 1")?;
        within("min_p", p.min_p, (0.0..=1.0).contains(&p.min_p), "from 0 to 1")?;
        within("repetition_penalty", p.repetition_penalty, p.repetition_penalty > 0.0, "above 0")?;
        within("presence_penalty", p.presence_penalty, p.presence_penalty.abs() <= 2.0, "from -2 to 2")?;
        within("frequency_penalty", p.frequency_penalty, p.frequency_penalty.abs() <= 2.0, "from -2 to 2")?;
        check(p.top_k >= -1, "top_k", p.top_k, "at least 1, or 0 or -1 for all tokens")?;
        check(p.seed.is_none_or(|s| s >= -1), "seed", p.seed.unwrap_or(0), "at least 0, or -1 for a random one")?;
        check((1..=MAX_N).contains(&p.n), "n", p.n, format!("from 1 to {MAX_N}"))?;
        self.check_beams()
    }

    fn check_beams(&self) -> Result<(), ParamError> {
        let SamplingParams { n, length_penalty, .. } = *self;
        if !self.use_beam_search {
            check(length_penalty == 1.0, "length_penalty", length_penalty, "1 unless use_beam_search is true")?;
            let alike = "1 when temperature is 0 (greedy answers are all the same)";
            return check(n == 1 || !self.is_greedy(), "n", n, alike);
        }
        check(length_penalty.is_finite(), "length_penalty", length_penalty, "a finite number")?;
        let formed = self.structured_outputs.is_some();
        check(!formed, "structured_outputs", "set", "empty with use_beam_search, whose beams follow no grammar")?;
        check(n <= MAX_BEAM_WIDTH, "n", n, format!("from 1 to {MAX_BEAM_WIDTH} with use_beam_search"))
    }

    fn check_lengths(&self, max_model_len: u32) -> Result<(), ParamError> {
        check(self.max_tokens != Some(0), "max_tokens", 0, "at least 1")?;
        let most = self.max_tokens.unwrap_or(max_model_len);
        check(self.min_tokens <= most, "min_tokens", self.min_tokens, format!("at most max_tokens, which is {most}"))?;
        let longest = format!("at most {max_model_len} (max_model_len)");
        check(self.min_tokens <= max_model_len, "min_tokens", self.min_tokens, longest.as_str())?;
        self.check_thinking(max_model_len, &longest)?;
        let keep = self.truncate_prompt_tokens.unwrap_or(-1);
        let range = format!("from 1 to {max_model_len} (max_model_len), or -1 for as many as fit");
        check(keep == -1 || (1..=i64::from(max_model_len)).contains(&keep), "truncate_prompt_tokens", keep, range)
    }

    fn check_thinking(&self, max_model_len: u32, longest: &str) -> Result<(), ParamError> {
        let Some(budget) = self.thinking_token_budget else { return Ok(()) };
        let name = "thinking_token_budget";
        check(budget <= max_model_len, name, budget, longest)?;
        check(!self.use_beam_search, name, budget, "absent with use_beam_search")?;
        let known = self.thinking.as_ref().is_some_and(|marks| !marks.open.is_empty() && !marks.close.is_empty());
        check(
            known,
            name,
            budget,
            "absent where it is not known how the model marks its reasoning (--reasoning-parser)",
        )
    }

    fn check_tokens(&self, vocab_size: u32) -> Result<(), ParamError> {
        let below = format!("token ids below {vocab_size}, the size of the vocabulary");
        let check_ids = |name, mut ids: Box<dyn Iterator<Item = &u32> + '_>| match ids.find(|id| **id >= vocab_size) {
            Some(id) => Err(error(name, id, below.as_str())),
            None => Ok(()),
        };
        check_ids("stop_token_ids", Box::new(self.stop_token_ids.iter()))?;
        check_ids("logprob_token_ids", Box::new(self.logprob_token_ids.iter()))?;
        check_ids("allowed_token_ids", Box::new(self.allowed_token_ids.iter().flatten()))?;
        check_ids("logit_bias", Box::new(self.logit_bias.iter().flat_map(|b| b.keys())))?;
        self.check_alternatives(vocab_size)?;
        let empty = self.allowed_token_ids.as_ref().is_some_and(Vec::is_empty);
        check(!empty, "allowed_token_ids", "empty", "a list of at least one token id")?;
        let not_finite = self.logit_bias.iter().flatten().find(|(_, bias)| bias.is_nan());
        check(not_finite.is_none(), "logit_bias", "not a number", "a number for each token id")
    }

    fn check_alternatives(&self, vocab_size: u32) -> Result<(), ParamError> {
        let allowed = format!("from 0 to {vocab_size}, the size of the vocabulary, or -1 for all of it");
        for (name, value) in [("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)] {
            let count = i64::from(value.unwrap_or(0));
            check((-1..=i64::from(vocab_size)).contains(&count), name, count, allowed.as_str())?;
        }
        Ok(())
    }

    fn check_named(&self) -> Result<(), ParamError> {
        let (count, most) = (self.logprob_token_ids.len(), format!("at most {MAX_LOGPROB_TOKEN_IDS} token ids"));
        check(count <= MAX_LOGPROB_TOKEN_IDS, "logprob_token_ids", format!("a list of {count}"), most)?;
        let reported = count == 0 || self.logprobs.is_some();
        check(reported, "logprob_token_ids", "set", "empty unless logprobs are asked for")?;
        let Some(detection) = &self.repetition_detection else { return Ok(()) };
        check(!self.use_beam_search, "repetition_detection", "set", "absent with use_beam_search")?;
        detection.check()
    }

    fn check_texts(&self) -> Result<(), ParamError> {
        check(!self.stop.iter().any(String::is_empty), "stop", "an empty string", "texts of at least one character")?;
        check(self.stop.is_empty() || self.detokenize, "stop", "set", "empty when detokenize is false")?;
        let salted = self.cache_salt.as_ref().is_none_or(|salt| !salt.is_empty());
        check(salted, "cache_salt", "an empty string", "a text of at least one character")?;
        let blank = self.bad_words.iter().any(|w| w.trim().is_empty());
        check(!blank, "bad_words", "an empty string", "texts of at least one character")
    }

    fn normalize(&mut self) {
        self.logprob_token_ids.sort_unstable();
        self.logprob_token_ids.dedup();
        self.top_k = self.top_k.max(0);
        self.seed = self.seed.filter(|s| *s >= 0);
        if self.temperature > 0.0 {
            self.temperature = self.temperature.clamp(MIN_TEMPERATURE, MAX_TEMPERATURE);
        }
        for bias in self.logit_bias.iter_mut().flat_map(|b| b.values_mut()) {
            *bias = bias.clamp(-100.0, 100.0);
        }
    }
}

pub(crate) fn check(ok: bool, name: &str, value: impl ToString, allowed: impl Into<String>) -> Result<(), ParamError> {
    if ok { Ok(()) } else { Err(error(name, value, allowed)) }
}

fn error(name: &str, value: impl ToString, allowed: impl Into<String>) -> ParamError {
    ParamError { name: name.to_string(), value: value.to_string(), allowed: allowed.into() }
}

fn unknown(name: &str, value: &Value) -> ParamError {
    error(name, value, format!("one of the sampling parameters {}", SamplingParams::names().join(", ")))
}

/// Serde says `invalid type: string "x", expected f32`: the value is named already, so only what follows is kept.
fn what_serde_expects(message: &str) -> String {
    message.split_once("expected ").map_or(message, |(_, expected)| expected).to_string()
}

fn object(params: &SamplingParams) -> Map<String, Value> {
    match serde_json::to_value(params) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

fn defaults() -> Map<String, Value> {
    object(&SamplingParams::default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn overridden(values: Value) -> Result<SamplingParams, ParamError> {
        SamplingParams::default().overridden(values.as_object().unwrap())
    }

    #[test]
    fn a_line_overrides_flags_by_name() {
        let p = overridden(json!({
            "temperature": 0, "stop": "END", "stop_token_ids": [1, 2], "logit_bias": {"7": -5.5}, "max_tokens": null,
            "seed": 3, "top_p": null, "allowed_token_ids": [4]
        }))
        .unwrap();
        let expected = SamplingParams {
            temperature: 0.0,
            stop: vec!["END".into()],
            stop_token_ids: vec![1, 2],
            logit_bias: Some(BTreeMap::from([(7, -5.5)])),
            max_tokens: None,
            seed: Some(3),
            allowed_token_ids: Some(vec![4]),
            ..SamplingParams::default()
        };
        assert_eq!(p, expected);
    }

    #[test]
    fn every_name_is_read_back() {
        let p = SamplingParams { n: 2, logprobs: Some(-1), bad_words: vec!["x".into()], ..SamplingParams::default() };
        assert_eq!(SamplingParams::default().overridden(&object(&p)).unwrap(), p);
        assert_eq!(SamplingParams::names().len(), 32);
    }

    #[test]
    fn unreadable_values_name_the_parameter() {
        let message = |v| overridden(v).unwrap_err().to_string();
        assert_eq!(message(json!({"temperature": "hot"})), "temperature is \"hot\", but must be f32");
        assert_eq!(message(json!({"stop": 3})), "stop is 3, but must be a string or a list of strings");
        assert!(
            message(json!({"temprature": 1}))
                .starts_with("temprature is 1, but must be one of the sampling parameters n, ")
        );
        assert!(message(json!({"n": -1})).starts_with("n is -1, but must be u32"));
    }

    #[test]
    fn values_out_of_range_name_the_range() {
        let fails = |v: Value| overridden(v).unwrap().validate(100, 50).unwrap_err().to_string();
        for (values, message) in [
            (json!({"temperature": -1}), "temperature is -1, but must be at least 0"),
            (json!({"top_p": 0}), "top_p is 0, but must be above 0 and at most 1"),
            (json!({"top_p": 1.5}), "top_p is 1.5, but must be above 0 and at most 1"),
            (json!({"top_k": -2}), "top_k is -2, but must be at least 1, or 0 or -1 for all tokens"),
            (json!({"min_p": 2}), "min_p is 2, but must be from 0 to 1"),
            (json!({"repetition_penalty": 0}), "repetition_penalty is 0, but must be above 0"),
            (json!({"presence_penalty": 2.5}), "presence_penalty is 2.5, but must be from -2 to 2"),
            (json!({"frequency_penalty": -3}), "frequency_penalty is -3, but must be from -2 to 2"),
            (json!({"n": 0}), "n is 0, but must be from 1 to 16384"),
            (
                json!({"n": 2, "temperature": 0}),
                "n is 2, but must be 1 when temperature is 0 (greedy answers are all the same)",
            ),
            (json!({"max_tokens": 0}), "max_tokens is 0, but must be at least 1"),
            (json!({"min_tokens": 17}), "min_tokens is 17, but must be at most max_tokens, which is 16"),
            (
                json!({"logprobs": 101}),
                "logprobs is 101, but must be from 0 to 100, the size of the vocabulary, or -1 for all of it",
            ),
            (
                json!({"stop_token_ids": [5, 100]}),
                "stop_token_ids is 100, but must be token ids below 100, the size of the vocabulary",
            ),
            (
                json!({"logit_bias": {"100": 1}}),
                "logit_bias is 100, but must be token ids below 100, the size of the vocabulary",
            ),
            (
                json!({"allowed_token_ids": []}),
                "allowed_token_ids is empty, but must be a list of at least one token id",
            ),
            (json!({"stop": ""}), "stop is an empty string, but must be texts of at least one character"),
            (json!({"cache_salt": ""}), "cache_salt is an empty string, but must be a text of at least one character"),
            (json!({"stop": "x", "detokenize": false}), "stop is set, but must be empty when detokenize is false"),
            (
                json!({"truncate_prompt_tokens": 51}),
                "truncate_prompt_tokens is 51, but must be from 1 to 50 (max_model_len), or -1 for as many as fit",
            ),
            (json!({"seed": -2}), "seed is -2, but must be at least 0, or -1 for a random one"),
        ] {
            assert_eq!(fails(values), message);
        }
    }

    #[test]
    fn several_spellings_have_one_meaning() {
        let mut p =
            overridden(json!({"top_k": -1, "seed": -1, "temperature": 1e-6, "logit_bias": {"1": 1000}})).unwrap();
        p.validate(100, 50).unwrap();
        assert_eq!((p.top_k, p.seed, p.temperature), (0, None, 1e-2));
        assert_eq!(p.logit_bias, Some(BTreeMap::from([(1, 100.0)])));
    }
}

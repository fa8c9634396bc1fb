//! Sampling parameters as flags: one flag for each parameter of the engine, by the same name with `-` for `_`.
//!
//! Invariants: a flag that is not given says nothing, so that a line of input, the flags, generation_config.json and
//! the engine's defaults can be laid over one another, in this order.

use crate::error::Failure;
use anyhow::Result;
use clap::Args;
use rvllm_engine::{RepetitionDetection, SamplingParams};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::{collections::BTreeMap, str::FromStr};

/// Sampling parameters that were asked for.
#[derive(Args, Clone, Debug, Default, Serialize)]
#[command(next_help_heading = "Sampling")]
pub struct Sampling {
    /// Answers per prompt, each with its own randomness; under beam search also the number of beams [default: 1]
    #[arg(short = 'n', long = "n", value_name = "N")]
    pub n: Option<u32>,
    /// Look for the likeliest answers, with n beams, instead of drawing them
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub use_beam_search: Option<bool>,
    /// Rank beams by log-probability / length ^ X, the prompt counted; above 0 favours long answers [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub length_penalty: Option<f32>,
    /// Randomness: 0 is greedy [default: 1]
    #[arg(long, value_name = "X")]
    pub temperature: Option<f32>,
    /// Sample among the likeliest tokens that together reach this probability [default: 1]
    #[arg(long, value_name = "X")]
    pub top_p: Option<f32>,
    /// Sample among this many likeliest tokens; 0 or -1 for all [default: 0]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub top_k: Option<i32>,
    /// Drop tokens less likely than this fraction of the likeliest [default: 0]
    #[arg(long, value_name = "X")]
    pub min_p: Option<f32>,
    /// Divide positive logits of tokens seen in prompt or answer, multiply negative ones [default: 1]
    #[arg(long, value_name = "X")]
    pub repetition_penalty: Option<f32>,
    /// Subtract from the logits of tokens seen in the answer [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub presence_penalty: Option<f32>,
    /// Subtract, times their count, from the logits of tokens seen in the answer [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub frequency_penalty: Option<f32>,
    /// Makes a request's tokens repeatable, whatever else runs beside it [default: random]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub seed: Option<i64>,
    /// Added to logits before sampling: '{"<token id>": <number>, …}'
    #[arg(long, value_name = "JSON")]
    pub logit_bias: Option<LogitBias>,
    /// A text that must not be generated; repeatable
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub bad_words: Option<Vec<String>>,
    /// The only tokens that may be generated: ids, comma-separated
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    pub allowed_token_ids: Option<Vec<u32>>,

    /// Most tokens of an answer [default: max_new_tokens of generation_config.json, else 256; in a chat, as many as fit]
    #[arg(long, value_name = "N", help_heading = "Stopping")]
    pub max_tokens: Option<u32>,
    /// No end of answer before this many tokens [default: 0]
    #[arg(long, value_name = "N", help_heading = "Stopping")]
    pub min_tokens: Option<u32>,
    /// A text that ends the answer; repeatable
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, help_heading = "Stopping")]
    pub stop: Option<Vec<String>>,
    /// Tokens that end the answer, besides the model's own: ids, comma-separated
    #[arg(long, value_name = "IDS", value_delimiter = ',', help_heading = "Stopping")]
    pub stop_token_ids: Option<Vec<u32>>,
    /// Go on after the model's end token
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Stopping")]
    pub ignore_eos: Option<bool>,
    /// End an answer that repeats itself: '{"max_pattern_size": N, "min_pattern_size": N, "min_count": N}'
    #[arg(long, value_name = "JSON", help_heading = "Stopping")]
    pub repetition_detection: Option<Repetition>,
    /// End the model's reasoning behind this many tokens [default: never]
    #[arg(long, value_name = "N", help_heading = "Stopping")]
    pub thinking_token_budget: Option<u32>,
    /// Keep the stop text in the answer
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Stopping")]
    pub include_stop_str_in_output: Option<bool>,

    /// Log-probabilities of each token and of this many likeliest ones; -1 for all
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = "Log-probabilities")]
    pub logprobs: Option<i32>,
    /// Tokens whose log-probabilities are reported beside each token, likely or not: ids, comma-separated
    #[arg(long, value_name = "IDS", value_delimiter = ',', help_heading = "Log-probabilities")]
    pub logprob_token_ids: Option<Vec<u32>>,
    /// The same as --logprobs for the tokens of the prompt
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = "Log-probabilities")]
    pub prompt_logprobs: Option<i32>,

    /// Keep only this many tokens of a prompt, its last ones; -1 for as many as fit
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = "Text")]
    pub truncate_prompt_tokens: Option<i64>,
    /// Leave special tokens out of the text [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Text")]
    pub skip_special_tokens: Option<bool>,
    /// Put spaces between adjacent special tokens, where the tokenizer does [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Text")]
    pub spaces_between_special_tokens: Option<bool>,
    /// Make text of the tokens [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Text")]
    pub detokenize: Option<bool>,
    /// Smaller is served first, under --scheduling-policy priority [default: 0]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub priority: Option<i32>,
    /// Share kept KV only among prompts of the same salt
    #[arg(long, value_name = "TEXT")]
    pub cache_salt: Option<String>,
    /// Laid over the checkpoint's generation_config.json, by its names: '{"temperature": 0.5, "max_new_tokens": 100}'
    #[arg(long, value_name = "JSON", value_parser = parse_overrides)]
    #[serde(skip)]
    pub override_generation_config: Option<Map<String, Value>>,
    /// The form of answers: a JSON object with one of json (a schema), regex, choice, grammar, json_object, structural_tag
    #[arg(long, value_name = "JSON", value_parser = |text: &str| serde_json::from_str::<Value>(text))]
    pub structured_outputs: Option<Value>,
}

/// Additions to logits by token id. As text: a JSON object whose keys are ids.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LogitBias(pub BTreeMap<u32, f32>);

impl FromStr for LogitBias {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        serde_json::from_str(text).map_err(|e| format!("{e}; write '{{\"<token id>\": <number>}}'"))
    }
}

/// When an answer counts as repeating itself. As text: a JSON object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Repetition(pub RepetitionDetection);

impl FromStr for Repetition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        serde_json::from_str(text).map_err(|e| e.to_string())
    }
}

impl Sampling {
    /// The flags that were given, by the parameters' names.
    pub fn given(&self) -> Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(all)) => all.into_iter().filter(|(_, v)| !v.is_null()).collect(),
            _ => Map::new(),
        }
    }

    /// These flags over the checkpoint's generation_config.json (where it counts) over the defaults, of which
    /// `max_tokens` is the caller's; `None` is up to the model's length.
    pub fn over(&self, generation_config: Option<&[u8]>, max_tokens: Option<u32>) -> Result<SamplingParams> {
        let mut keys = generation_config.map(checkpoint_defaults).transpose()?.unwrap_or_default();
        keys.extend(self.override_generation_config.as_ref().map(taken).unwrap_or_default());
        keys.extend(self.given());
        let defaults = SamplingParams { max_tokens, ..SamplingParams::default() };
        defaults.overridden(&keys).map_err(|e| Failure::usage(e.to_string()).into())
    }
}

/// What of a generation_config.json vLLM takes as sampling defaults, and its name here. Other keys are about other ways to
/// decode.
const TAKEN: [(&str, &str); 6] = [
    ("temperature", "temperature"),
    ("top_p", "top_p"),
    ("top_k", "top_k"),
    ("min_p", "min_p"),
    ("repetition_penalty", "repetition_penalty"),
    ("max_new_tokens", "max_tokens"),
];

fn parse_overrides(text: &str) -> Result<Map<String, Value>, String> {
    let given = crate::parsers::object(text)?;
    match given.keys().find(|key| TAKEN.iter().all(|(theirs, _)| theirs != key)) {
        Some(key) => Err(format!("`{key}` is none of {}", TAKEN.map(|(theirs, _)| theirs).join(", "))),
        None => Ok(given),
    }
}

fn checkpoint_defaults(text: &[u8]) -> Result<Map<String, Value>> {
    let config: Map<String, Value> = serde_json::from_slice(text).map_err(|e| {
        Failure::new(format!("generation_config.json is not a JSON object: {e}"))
            .help("--generation-config vllm does without it")
    })?;
    Ok(taken(&config))
}

fn taken(config: &Map<String, Value>) -> Map<String, Value> {
    let taken = TAKEN.iter().filter_map(|(theirs, ours)| Some((ours.to_string(), config.get(*theirs)?.clone())));
    taken.filter(|(_, v)| !v.is_null()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_flag_for_each_parameter() {
        let Ok(Value::Object(flags)) = serde_json::to_value(Sampling::default()) else { panic!("an object") };
        let mut flags: Vec<String> = flags.keys().cloned().collect();
        let mut params = SamplingParams::names();
        flags.sort();
        params.sort();
        assert_eq!(flags, params);
    }

    #[test]
    fn flags_lie_over_the_checkpoint() {
        let config = br#"{"temperature": 0.7, "top_k": 40, "max_new_tokens": 9, "do_sample": true, "num_beams": 1}"#;
        let flags = Sampling { temperature: Some(0.5), stop: Some(vec!["x".into()]), ..Sampling::default() };
        let all = flags.over(Some(config), Some(256)).unwrap();
        assert_eq!((all.temperature, all.top_k, all.max_tokens), (0.5, 40, Some(9)));
        let overrides = parse_overrides(r#"{"temperature": 0.9, "top_k": 7}"#).unwrap();
        let over =
            Sampling { override_generation_config: Some(overrides), ..flags.clone() }.over(Some(config), None).unwrap();
        assert_eq!((over.temperature, over.top_k, over.max_tokens), (0.5, 7, Some(9)));
        assert!(parse_overrides(r#"{"num_beams": 2}"#).unwrap_err().starts_with("`num_beams` is none of temperature"));
        let neutral = flags.over(None, Some(256)).unwrap();
        assert_eq!((neutral.top_k, neutral.max_tokens, neutral.stop), (0, Some(256), vec!["x".to_string()]));
    }

    #[test]
    fn a_broken_generation_config_says_how_to_go_on() {
        let error = Sampling::default().over(Some(b"[1]"), None).unwrap_err();
        assert!(error.to_string().contains("generation_config.json is not a JSON object"));
    }

    #[test]
    fn bias_is_read_from_a_flag() {
        assert_eq!("{\"5\": -2.5}".parse::<LogitBias>().unwrap().0, BTreeMap::from([(5, -2.5)]));
        assert!("[]".parse::<LogitBias>().is_err());
    }
}

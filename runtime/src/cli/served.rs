//! Flags of every command that serves a model, over HTTP or from a file.

use super::counts;
use crate::parsers;
use clap::Args;
use rvllm_server::Config;
use serde_json::{Map, Value};
use std::path::PathBuf;

/// What is run, as an argument or by vLLM's flag.
#[derive(Args, Clone, Debug)]
#[group(skip)]
pub struct Named {
    /// An artifact, or a model (directory or hub id), which is compiled into a cache first
    #[arg(value_name = "ARTIFACT|MODEL", required_unless_present = "model")]
    pub artifact: Option<String>,
    /// The same, by vLLM's flag
    #[arg(long, value_name = "ARTIFACT|MODEL", conflicts_with = "artifact")]
    pub model: Option<String>,
}

impl Named {
    /// The artifact or model.
    pub fn name(&self) -> &str {
        self.artifact.as_deref().or(self.model.as_deref()).unwrap_or_default()
    }
}

/// What requests call the model, and how its chats are written and read.
#[derive(Args, Clone, Debug)]
pub struct Served {
    /// What requests call the model, the principal name first; repeatable [default: the model as named here]
    #[arg(long, value_name = "NAME", num_args = 1..)]
    pub served_model_name: Vec<String>,
    /// A chat template instead of the model's, or its text in one line
    #[arg(long, value_name = "FILE|TEXT")]
    pub chat_template: Option<PathBuf>,
    /// Most tokens of an answer that requests may ask for [default: as many as fit]
    #[arg(long, value_name = "N", value_parser = counts::read)]
    pub max_output_tokens: Option<u32>,
    /// Most alternatives to a token that requests may ask the log-probabilities of; -1 for the whole vocabulary
    #[arg(long, value_name = "N", default_value_t = 20, allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(-1..))]
    pub max_logprobs: i32,
    /// Refuse fields that the API does not know, instead of telling of them
    #[arg(long)]
    pub strict: bool,
    /// Name tokens as token_id:N wherever log-probabilities do
    #[arg(long)]
    pub return_tokens_as_token_ids: bool,
    /// Leave tools out of the prompts of requests that choose none
    #[arg(long)]
    pub exclude_tools_when_tool_choice_none: bool,
    /// Variables of the chat template in requests that do not set them, such as {"enable_thinking": false}
    #[arg(long, value_name = "JSON", value_parser = parsers::object)]
    pub default_chat_template_kwargs: Option<Map<String, Value>>,
    /// The role of chat answers
    #[arg(long, value_name = "ROLE", default_value = "assistant")]
    pub response_role: String,
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group has no help of its own")]
    pub parsers: parsers::Flags,
}

impl Served {
    /// What these say of how requests are answered; all else is as it is by itself.
    pub fn config(&self) -> Config {
        Config {
            strict: self.strict,
            max_output_tokens: self.max_output_tokens,
            max_logprobs: self.max_logprobs,
            return_tokens_as_token_ids: self.return_tokens_as_token_ids,
            exclude_tools_when_none: self.exclude_tools_when_tool_choice_none,
            chat_template_kwargs: self.default_chat_template_kwargs.clone().unwrap_or_default(),
            response_role: self.response_role.clone(),
            ..Config::default()
        }
    }

    /// What requests call the model that is named `root` here.
    pub fn names(&self, root: &str) -> Vec<String> {
        if self.served_model_name.is_empty() { vec![root.to_string()] } else { self.served_model_name.clone() }
    }
}

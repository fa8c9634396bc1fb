//! Prompts to tokens.
//!
//! Invariants: no state, so that threads share one encoder; the chat template is read only where messages come.

use crate::{error::Failure, input::Prompt};
use anyhow::{Context, Result};
use rvllm_artifact::Artifact;
use rvllm_engine::{ChatTemplate, Tokenizer, chat::Conversation};
use serde_json::Value;
use std::{fs, path::Path, sync::Arc};

/// A model's tokenizer and chat template.
pub struct Encoder {
    tokenizer: Option<Arc<Tokenizer>>,
    template: Option<ChatTemplate>,
}

impl Encoder {
    /// An encoder for prompts; for `messages` too, where they come and the artifact has a chat template.
    ///
    /// # Errors
    /// There is a template that does not parse.
    pub fn new(artifact: &Artifact, tokenizer: Option<&Arc<Tokenizer>>, messages: bool) -> Result<Encoder> {
        let template = if messages { read_template(artifact)? } else { None };
        Ok(Encoder { tokenizer: tokenizer.cloned(), template })
    }

    /// Whether it can render conversations.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// A prompt's text, where it has one, and its tokens.
    ///
    /// # Errors
    /// The artifact lacks a tokenizer or a template that it needs, or the template refuses the messages.
    pub fn encode(&self, prompt: &Prompt) -> Result<(Option<String>, Vec<u32>)> {
        match prompt {
            Prompt::TokenIds(ids) => Ok((None, ids.clone())),
            Prompt::Text(text) => Ok((Some(text.clone()), self.tokenizer()?.encode(text, true)?)),
            Prompt::Messages(messages) => {
                let text = self.render(messages)?;
                // The template writes special tokens itself.
                let ids = self.tokenizer()?.encode(&text, false)?;
                Ok((Some(text), ids))
            }
        }
    }

    fn render(&self, messages: &[Value]) -> Result<String> {
        let missing = || Failure::usage("the artifact has no chat template · help: give a prompt instead of messages");
        let template = self.template.as_ref().ok_or_else(missing)?;
        let conversation = Conversation { messages, add_generation_prompt: true, ..Conversation::default() };
        Ok(template.render(&conversation)?)
    }

    fn tokenizer(&self) -> Result<&Tokenizer> {
        let missing = || Failure::usage("the artifact has no tokenizer · help: give prompts as token ids");
        Ok(self.tokenizer.as_deref().ok_or_else(missing)?)
    }
}

/// The artifact's chat template, if it has one.
///
/// # Errors
/// It does not parse.
pub fn read_template(artifact: &Artifact) -> Result<Option<ChatTemplate>> {
    let config = artifact.entry("tokenizer_config.json");
    let template = artifact.entry("chat_template.jinja").map(std::str::from_utf8).transpose();
    let template = template.context("the artifact's chat_template.jinja is not UTF-8")?;
    if template.is_none() && !config.is_some_and(names_template) {
        return Ok(None);
    }
    Ok(Some(ChatTemplate::new(template, config)?))
}

/// A chat template in a file, or its text, instead of the artifact's.
///
/// # Errors
/// The file cannot be read, or it does not parse.
pub fn template_from(artifact: &Artifact, given: &Path) -> Result<ChatTemplate> {
    let text = template_text(given)?;
    Ok(ChatTemplate::new(Some(&text), artifact.entry("tokenizer_config.json"))?)
}

/// The text of a template: what a file holds, or what is given where it is a template and no file's name.
///
/// # Errors
/// The file cannot be read.
pub fn template_text(given: &Path) -> Result<String> {
    let literal = given.to_str().filter(|text| !given.exists() && text.contains(['{', '}', '\n']));
    match literal {
        Some(text) => Ok(text.to_string()),
        None => fs::read_to_string(given).with_context(|| format!("cannot read the template {}", given.display())),
    }
}

fn names_template(tokenizer_config: &[u8]) -> bool {
    let config: Option<Value> = serde_json::from_slice(tokenizer_config).ok();
    config.is_some_and(|c| c.get("chat_template").is_some_and(|t| !t.is_null()))
}

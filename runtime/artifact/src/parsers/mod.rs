//! How a model writes tool calls and reasoning: notations by vLLM's names, told from its chat template.
//!
//! The compiler records them in the manifest; the server reads answers by them.

mod detect;
mod names;
#[cfg(test)]
mod tests;

pub use names::{ReasoningParser, ToolParser, UnknownParser};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The notations of a model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parsers {
    /// Of tool calls, where the model has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call: Option<ToolParser>,
    /// Of reasoning, where the model has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<ReasoningParser>,
}

impl Parsers {
    /// The notations that a chat template shows.
    pub fn of_template(template: &str) -> Parsers {
        let (tool_call, reasoning) = detect::detect(template);
        Parsers { tool_call, reasoning }
    }

    /// The notations that a model's files show: `chat_template.jinja`, else the templates in `tokenizer_config.json`.
    /// Files that cannot be read show none.
    pub fn of_files(template: Option<&[u8]>, tokenizer_config: Option<&[u8]>) -> Parsers {
        let own = template.map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        let text = own.or_else(|| Some(templates(&serde_json::from_slice(tokenizer_config?).ok()?)));
        text.map_or_else(Parsers::default, |text| Parsers::of_template(&text))
    }
}

/// `chat_template` is a text, or a list of named ones: all of them together show what the model writes.
fn templates(tokenizer_config: &Value) -> String {
    match &tokenizer_config["chat_template"] {
        Value::String(text) => text.clone(),
        Value::Array(named) => {
            let texts: Vec<&str> = named.iter().filter_map(|t| t["template"].as_str()).collect();
            texts.join("\n")
        }
        _ => String::new(),
    }
}

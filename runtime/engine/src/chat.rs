//! Chat templates: Jinja programs that come with a model and turn a conversation into its text.
//!
//! Invariants:
//! - a template is untrusted: it runs with bounded work and depth, and reads nothing but the conversation;
//! - text is as transformers renders it: Python's string methods, its JSON, blocks trimmed;
//! - messages reach the template in the form that it reads: see [`messages`];
//! - the text has its own special tokens: it is encoded without adding any.

mod json;
mod messages;
mod strftime;

use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior};
use serde_json::{Map, Value};

/// Most instructions of one rendering: a thousand messages take some hundred thousand.
const FUEL: u64 = 20_000_000;
/// Deepest nesting of calls and blocks.
const RECURSION: usize = 100;
/// Largest template that is read.
const MAX_BYTES: usize = 4 << 20;
/// Named tokens of tokenizer_config.json that templates read.
const SPECIAL_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Why a conversation cannot be rendered.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// The model has none.
    #[error("the model has no chat template · help: give a prompt instead of messages")]
    NoTemplate,
    /// tokenizer_config.json is not what it should be.
    #[error("tokenizer_config.json: {0}")]
    Config(String),
    /// The template does not parse.
    #[error("chat template: {0}")]
    Template(String),
    /// The template refuses the conversation, in its own words, or fails.
    #[error("the chat template refuses the conversation: {0}")]
    Render(String),
}

/// What a template renders.
#[derive(Clone, Debug, Default)]
pub struct Conversation<'a> {
    /// Objects with `role` and `content` and whatever else the template reads; arguments of tool calls are objects.
    pub messages: &'a [Value],
    /// Ends the text with the start of the assistant's turn.
    pub add_generation_prompt: bool,
    /// Tools that the model may call, as in OpenAI's API.
    pub tools: Option<&'a [Value]>,
    /// Further variables of the template (`enable_thinking` …).
    pub variables: Option<&'a Map<String, Value>>,
}

/// A model's chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: Map<String, Value>,
    has_tool_use: bool,
    /// It asks whether a message has content.
    knows_null: bool,
}

impl ChatTemplate {
    /// The text of the template that conversations without tools are rendered by.
    pub fn source(&self) -> String {
        self.environment.get_template("default").map(|template| template.source().to_string()).unwrap_or_default()
    }

    /// Reads a template. `tokenizer_config` is tokenizer_config.json, for the special tokens and, where `template`
    /// (chat_template.jinja) is absent, the template itself.
    ///
    /// # Errors
    /// There is no template, or it does not parse.
    pub fn new(template: Option<&str>, tokenizer_config: Option<&[u8]>) -> Result<ChatTemplate, ChatError> {
        let config: Map<String, Value> = match tokenizer_config {
            Some(json) => serde_json::from_slice(json).map_err(|e| ChatError::Config(e.to_string()))?,
            None => Map::new(),
        };
        let templates = match template {
            Some(text) => vec![("default".to_string(), text.to_string())],
            None => templates(config.get("chat_template")),
        };
        let mut environment = environment();
        for (name, text) in &templates {
            add(&mut environment, name, text)?;
        }
        if templates.is_empty() {
            return Err(ChatError::NoTemplate);
        }
        let has_tool_use = templates.iter().any(|(name, _)| name == "tool_use");
        let knows_null = templates.iter().any(|(_, text)| messages::asks_for_null(text));
        Ok(ChatTemplate { environment, special_tokens: special_tokens(&config), has_tool_use, knows_null })
    }

    /// The conversation as text; encode it without adding special tokens.
    ///
    /// # Errors
    /// The template refuses the conversation (its own message), or exceeds its limits.
    pub fn render(&self, conversation: &Conversation<'_>) -> Result<String, ChatError> {
        let told = messages::with_content(conversation.messages, self.knows_null);
        let rendered = self.render_messages(conversation, &told);
        match messages::with_text_arguments(&told).filter(|_| rendered.is_err()) {
            // The first error is about the form that most templates read.
            Some(told) => self.render_messages(conversation, &told).or(rendered),
            None => rendered,
        }
    }

    fn render_messages(&self, conversation: &Conversation<'_>, messages: &[Value]) -> Result<String, ChatError> {
        let name = if self.has_tool_use && conversation.tools.is_some() { "tool_use" } else { "default" };
        let mut variables = self.special_tokens.clone();
        variables.insert("messages".to_string(), messages.into());
        variables.insert("tools".to_string(), conversation.tools.map_or(Value::Null, Value::from));
        variables.insert("documents".to_string(), Value::Null);
        variables.insert("add_generation_prompt".to_string(), conversation.add_generation_prompt.into());
        variables.extend(conversation.variables.into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())));
        let template = self.environment.get_template(name).map_err(|e| ChatError::Template(message(&e)))?;
        template.render(minijinja::Value::from_serialize(&variables)).map_err(|e| ChatError::Render(message(&e)))
    }
}

/// `chat_template` is a text, or a list of named ones.
fn templates(value: Option<&Value>) -> Vec<(String, String)> {
    let named = |t: &Value| Some((t.get("name")?.as_str()?.to_string(), t.get("template")?.as_str()?.to_string()));
    match value {
        Some(Value::String(text)) => vec![("default".to_string(), text.clone())],
        Some(Value::Array(list)) => list.iter().filter_map(named).collect(),
        _ => vec![],
    }
}

fn add(environment: &mut Environment<'static>, name: &str, text: &str) -> Result<(), ChatError> {
    if text.len() > MAX_BYTES {
        return Err(ChatError::Template(format!("{} bytes, but at most {MAX_BYTES} are read", text.len())));
    }
    let added = environment.add_template_owned(name.to_string(), text.to_string());
    added.map_err(|e| ChatError::Template(message(&e)))
}

/// Special tokens are texts, or objects with a `content`.
fn special_tokens(config: &Map<String, Value>) -> Map<String, Value> {
    let text = |name: &str| {
        let token = config.get(name)?;
        Some((name.to_string(), token.get("content").unwrap_or(token).as_str()?.into()))
    };
    SPECIAL_TOKENS.into_iter().filter_map(text).collect()
}

fn environment() -> Environment<'static> {
    let mut e = Environment::new();
    e.set_trim_blocks(true);
    e.set_lstrip_blocks(true);
    e.set_fuel(Some(FUEL));
    e.set_recursion_limit(RECURSION);
    e.set_undefined_behavior(UndefinedBehavior::Lenient);
    e.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    e.add_filter("tojson", json::tojson);
    e.add_function("raise_exception", raise_exception);
    e.add_function("strftime_now", |format: &str| time(format));
    e
}

fn raise_exception(message: String) -> Result<String, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// What went wrong and in which line, without the kind of error for what a template says itself.
fn message(error: &Error) -> String {
    let text = match (error.kind(), error.detail()) {
        (ErrorKind::InvalidOperation, Some(detail)) => detail.to_string(),
        (ErrorKind::OutOfFuel, _) => format!("it does more than {FUEL} steps"),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    };
    error.line().map_or(text.clone(), |line| format!("{text} (line {line})"))
}

/// The time in a format of Python's `strftime`, such as `%d %b %Y`, in UTC.
pub fn time(format: &str) -> String {
    strftime::format(format, std::time::SystemTime::now())
}

#[cfg(test)]
mod tests;

//! Documented fields that nothing here can honour: each is taken where it asks for what happens anyway, else refused
//! by name.

use super::ApiError;
use serde_json::{Value, json};

/// A field, and the values of it that ask for nothing.
pub struct Rule {
    name: &'static str,
    neutral: Neutral,
}

/// Values that ask for nothing.
enum Neutral {
    /// Any: the field is a label, and changes no answer.
    Any,
    /// None but null.
    Null,
    /// False.
    False,
    /// False, an empty list or an empty object.
    Empty,
    /// One of these texts.
    Text(&'static [&'static str]),
    /// A list of texts, all of them this.
    Texts(&'static str),
}

const fn rule(name: &'static str, neutral: Neutral) -> Rule {
    Rule { name, neutral }
}

/// In the order of their origin: OpenAI, then vLLM.
const RULES: &[Rule] = &[
    rule("user", Neutral::Any),
    rule("metadata", Neutral::Any),
    rule("safety_identifier", Neutral::Any),
    rule("prompt_cache_key", Neutral::Any),
    rule("audio", Neutral::Null),
    rule("modalities", Neutral::Texts("text")),
    rule("prediction", Neutral::Null),
    rule("service_tier", Neutral::Text(&["auto", "default"])),
    rule("store", Neutral::False),
    rule("verbosity", Neutral::Null),
    rule("web_search_options", Neutral::Null),
    rule("ec_transfer_params", Neutral::Empty),
    rule("kv_transfer_params", Neutral::Empty),
    rule("media_io_kwargs", Neutral::Empty),
    rule("mm_processor_kwargs", Neutral::Empty),
    rule("prompt_embeds", Neutral::Empty),
    rule("return_mm_kwargs", Neutral::False),
    rule("return_token_offsets", Neutral::False),
    rule("routed_experts_prompt_start", Neutral::Null),
    rule("session_id", Neutral::Null),
    rule("vllm_xargs", Neutral::Empty),
    rule("watermarking", Neutral::Null),
];

/// Each field with the schema of the values of it that are taken.
pub fn schemas() -> impl Iterator<Item = (&'static str, Value)> {
    RULES.iter().map(|rule| (rule.name, rule.neutral.schema(rule.name)))
}

/// The rule about a field.
pub fn rule_of(name: &str) -> Option<&'static Rule> {
    RULES.iter().find(|r| r.name == name)
}

impl Rule {
    /// Whether the value asks for nothing.
    ///
    /// # Errors
    /// It asks for something.
    pub fn check(&self, value: &Value) -> Result<(), ApiError> {
        if self.neutral.holds(value) {
            return Ok(());
        }
        let (name, help) = (self.name, self.neutral.to_string());
        Err(ApiError::field(name, format!("{name} is not supported by this server · help: {help}")))
    }
}

impl Neutral {
    fn holds(&self, value: &Value) -> bool {
        match self {
            Neutral::Any => true,
            Neutral::Null => value.is_null(),
            Neutral::False => value == &Value::Bool(false),
            Neutral::Empty => is_empty(value),
            Neutral::Text(texts) => value.as_str().is_some_and(|v| texts.contains(&v)),
            Neutral::Texts(text) => value.as_array().is_some_and(|all| all.iter().all(|v| v == text)),
        }
    }
}

impl Neutral {
    fn schema(&self, name: &str) -> Value {
        let mut schema = match self {
            Neutral::Any => return json!({"description": "A label: it changes no answer."}),
            Neutral::Null => json!({"type": "null"}),
            Neutral::False => json!({"enum": [false, null]}),
            Neutral::Empty => {
                let lists = [json!({"type": "array", "maxItems": 0}), json!({"type": "object", "maxProperties": 0})];
                json!({"anyOf": [{"enum": [false, null]}, lists[0], lists[1]]})
            }
            Neutral::Text(texts) => {
                json!({"enum": texts.iter().map(|t| json!(t)).chain([Value::Null]).collect::<Vec<_>>()})
            }
            Neutral::Texts(text) => json!({"type": ["array", "null"], "items": {"const": text}}),
        };
        schema["description"] = format!("{name} is not supported by this server: {self}.").into();
        schema
    }
}

impl std::fmt::Display for Neutral {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Neutral::Any | Neutral::Null => f.write_str("leave it out"),
            Neutral::False => f.write_str("leave it out, or set it to false"),
            Neutral::Empty => f.write_str("leave it out, or empty"),
            Neutral::Text(texts) => write!(f, "leave it out, or set it to one of {texts:?}"),
            Neutral::Texts(text) => write!(f, "leave it out, or set it to [{text:?}]"),
        }
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Bool(b) => !b,
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        _ => false,
    }
}

//! Bounds of values that a type does not tell: the served model's, the server's own. Each kind of value is a component of
//! the schema.
//!
//! Invariants: every kind has its row in [`table`], so that the schema takes exactly what the server takes,
//! field by field.

use super::sampling::{MOST_ENTRIES, MOST_TEXT};
use crate::{config::Config, infill, model::Served};
use rvllm_engine::SchedulingPolicy;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// A name of a served model.
#[derive(ToSchema)]
pub struct ModelName(pub String);

/// A token of the model's vocabulary.
#[derive(ToSchema)]
pub struct TokenId(pub u32);

/// A number of tokens that fits the model's longest sequence.
#[derive(ToSchema)]
pub struct NumTokens(pub u32);

/// A number of tokens of an answer.
#[derive(ToSchema)]
pub struct AnswerTokens(pub u32);

/// A number of tokens of an answer; at least one.
#[derive(ToSchema)]
pub struct PositiveTokens(pub u32);

/// A number of answers to one prompt.
#[derive(ToSchema)]
pub struct NumAnswers(pub u32);

/// A number of alternatives to a token; -1 is the whole vocabulary.
#[derive(ToSchema)]
pub struct NumAlternatives(pub i32);

/// What makes an answer repeatable; -1 is a random one.
#[derive(ToSchema)]
pub struct Seed(pub i64);

/// A place in the order of service.
#[derive(ToSchema)]
pub struct Priority(pub i32);

/// A length that a prompt is cut to; -1 is as many tokens as fit.
#[derive(ToSchema)]
pub struct TruncatedLength(pub i64);

/// A text that follows the answer.
#[derive(ToSchema)]
pub struct Suffix(pub String);

/// A text that is not written.
#[derive(ToSchema)]
pub struct Word(pub String);

/// Numbers by token id.
#[derive(ToSchema)]
pub struct LogitBias(pub BTreeMap<String, f64>);

/// Adds the bounds of what is served to the description of the API.
pub fn complete(api: &mut Value, served: &Served, config: &Config) {
    for (component, bounds) in table(served, config) {
        let schema = api.pointer_mut(&format!("/components/schemas/{component}")).and_then(Value::as_object_mut);
        if let (Some(schema), Value::Object(bounds)) = (schema, bounds) {
            schema.extend(bounds);
        }
    }
}

fn table(served: &Served, config: &Config) -> [(&'static str, Value); 16] {
    let longest = served.limits.max_model_len;
    let answer = config.max_output_tokens.map_or(longest, |most| most.min(longest));
    let last = served.limits.vocab_size.saturating_sub(1);
    let list = |items: &Value| json!({"type": "array", "items": items, "minItems": 1, "maxItems": config.max_n});
    let tokens = json!({"type": "array", "items": {"$ref": "#/components/schemas/TokenId"}, "minItems": 1});
    let text = json!({"type": "string", "minLength": 1});
    let stop = json!({"type": "string", "minLength": 1, "maxLength": MOST_TEXT});
    let priority = match served.policy {
        SchedulingPolicy::Fcfs => json!({"minimum": 0, "maximum": 0}),
        SchedulingPolicy::Priority => json!({"minimum": i32::MIN, "maximum": i32::MAX}),
    };
    let alternatives = match config.max_logprobs {
        -1 => json!({"minimum": -1, "maximum": served.limits.vocab_size}),
        most => json!({"minimum": 0, "maximum": i64::from(most).min(served.limits.vocab_size.into())}),
    };
    let infills = served.encoder.tokenizer().is_ok_and(|tokenizer| infill::is_known(tokenizer));
    let part =
        |kind: &str| json!({"required": [kind], "properties": {"type": {"const": kind}, kind: {"type": "string"}}});
    [
        ("ContentPart", json!({"oneOf": [part("text"), part("refusal")]})),
        ("ModelName", json!({"enum": served.names})),
        ("TokenId", json!({"minimum": 0, "maximum": last})),
        ("NumTokens", json!({"minimum": 0, "maximum": longest})),
        ("AnswerTokens", json!({"minimum": 0, "maximum": answer})),
        ("PositiveTokens", json!({"minimum": 1, "maximum": answer})),
        ("NumAnswers", json!({"minimum": 1, "maximum": config.max_n})),
        ("NumAlternatives", alternatives),
        ("Priority", priority),
        ("Seed", json!({"minimum": -1, "maximum": i64::MAX})),
        ("Suffix", if infills { json!({}) } else { json!({"maxLength": 0}) }),
        ("TruncatedLength", json!({"anyOf": [{"const": -1}, {"minimum": 1, "maximum": longest}]})),
        ("Prompts", json!({"oneOf": [text, list(&tokens), list(&text), tokens]})),
        ("Texts", json!({"oneOf": [stop, {"type": "array", "items": stop, "maxItems": MOST_ENTRIES}]})),
        ("Word", json!({"pattern": "\\S", "maxLength": MOST_TEXT})),
        ("LogitBias", json!({"propertyNames": {"pattern": digits_up_to(last)}, "maxProperties": MOST_ENTRIES})),
    ]
}

/// A pattern of the decimal numbers from 0 to `most`.
fn digits_up_to(most: u32) -> String {
    let digits = most.to_string();
    let mut forms: Vec<String> = (1..digits.len()).map(|len| format!("[1-9][0-9]{{{}}}", len - 1)).collect();
    for (i, digit) in digits.bytes().enumerate() {
        let least = if i == 0 { b'1' } else { b'0' };
        if digit > least {
            let (same, rest) = (&digits[..i], digits.len() - i - 1);
            forms.push(format!("{same}[{}-{}][0-9]{{{rest}}}", char::from(least), char::from(digit - 1)));
        }
    }
    format!("^(0|{}|{digits})$", forms.join("|"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_patterns() {
        assert_eq!(
            digits_up_to(258),
            "^(0|[1-9][0-9]{0}|[1-9][0-9]{1}|[1-1][0-9]{2}|2[0-4][0-9]{1}|25[0-7][0-9]{0}|258)$"
        );
        assert_eq!(digits_up_to(7), "^(0|[1-6][0-9]{0}|7)$");
    }
}

//! What callers ask for: vLLM's `structured_outputs`.
//!
//! Invariants: exactly one kind of grammar can be followed; more or none is an error, not a choice.

use super::{ebnf, error::GrammarError, schema, tags};
use crate::params::null_is_default;
use llguidance::{
    JsonCompileOptions,
    api::{GrammarWithLexer, TopLevelGrammar},
    regex_to_lark,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Whitespace between the parts of a JSON text, where the request does not say: a run ends, so that a model cannot fill
/// an answer with it.
const WHITESPACE: &str = r"[\x20\x0A\x0D\x09]{1,40}";

/// What an answer must look like: exactly one of `json`, `regex`, `choice`, `grammar`, `json_object` and `structural_tag`,
/// and how JSON is written. Fields have vLLM's names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
pub struct StructuredOutputs {
    /// A JSON schema that the answer fulfils: an object, or its text.
    pub json: Option<Value>,
    /// A regular expression that matches the whole answer.
    pub regex: Option<String>,
    /// The answer is one of these texts.
    pub choice: Option<Vec<String>>,
    /// A grammar in Lark's notation (its start is `start`) or in EBNF as xgrammar and llama.cpp write it (its start is
    /// `root`).
    pub grammar: Option<String>,
    /// The answer is a JSON object.
    pub json_object: Option<bool>,
    /// Free text with parts that follow schemas: the text of an object of type `structural_tag`.
    pub structural_tag: Option<String>,
    /// JSON without whitespace between its parts.
    #[cfg_attr(feature = "schema", schema(value_type = Option<bool>))]
    #[serde(deserialize_with = "null_is_default")]
    pub disable_any_whitespace: bool,
    /// Objects have no properties but those that the schema names.
    #[cfg_attr(feature = "schema", schema(value_type = Option<bool>))]
    #[serde(deserialize_with = "null_is_default")]
    pub disable_additional_properties: bool,
    /// A regular expression for the whitespace between the parts of a JSON text.
    pub whitespace_pattern: Option<String>,
    /// Refuses to fall back to another backend. There is one, so nothing falls back either way.
    #[cfg_attr(feature = "schema", schema(value_type = Option<bool>))]
    #[serde(deserialize_with = "null_is_default")]
    pub disable_fallback: bool,
    /// Tokens after which the grammar begins, such as the end of reasoning; empty, it begins with the answer.
    #[serde(skip)]
    pub after: Vec<u32>,
    /// The field of the request that asks for this, where it is not `structured_outputs`.
    #[serde(skip)]
    pub param: Option<&'static str>,
}

impl StructuredOutputs {
    /// The answer fulfils a JSON schema.
    pub fn json_schema(schema: Value) -> StructuredOutputs {
        StructuredOutputs { json: Some(schema), ..StructuredOutputs::default() }
    }

    /// The answer is of the language of a grammar in Lark's notation.
    pub fn lark(grammar: String) -> StructuredOutputs {
        StructuredOutputs { grammar: Some(grammar), ..StructuredOutputs::default() }
    }

    /// Bytes of what is asked for, about.
    pub fn num_bytes(&self) -> usize {
        self.text().len()
    }

    /// All that decides the grammar, as a text. Properties keep their order, as answers follow it.
    pub(super) fn text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The kinds that are given.
    pub fn kinds(&self) -> Vec<&'static str> {
        let given = [
            ("json", self.json.is_some()),
            ("regex", self.regex.is_some()),
            ("choice", self.choice.is_some()),
            ("grammar", self.grammar.is_some()),
            ("json_object", self.json_object == Some(true)),
            ("structural_tag", self.structural_tag.is_some()),
        ];
        given.into_iter().filter(|(_, given)| *given).map(|(name, _)| name).collect()
    }

    /// Checks that there is exactly one kind, and returns it.
    ///
    /// # Errors
    /// There is none, or several.
    pub fn kind(&self) -> Result<&'static str, GrammarError> {
        match self.kinds()[..] {
            [one] => Ok(one),
            [] => Err(GrammarError::NotOne { given: "none".to_string() }),
            ref several => Err(GrammarError::NotOne { given: several.join(" and ") }),
        }
    }

    /// The grammar in llguidance's form.
    ///
    /// # Errors
    /// There is not exactly one kind, or it cannot be followed.
    pub(super) fn to_grammar(&self) -> Result<TopLevelGrammar, GrammarError> {
        self.kind()?;
        if let Some(json) = &self.json {
            return Ok(of_schema(self.schema(json)?));
        }
        if let Some(regex) = &self.regex {
            return Ok(TopLevelGrammar::from_grammar(GrammarWithLexer::from_regex(regex)));
        }
        if let Some(choice) = &self.choice {
            return of_choice(choice);
        }
        if let Some(grammar) = &self.grammar {
            return of_text(grammar);
        }
        if let Some(tag) = &self.structural_tag {
            return Ok(TopLevelGrammar::from_lark(tags::to_lark(tag, self)?));
        }
        Ok(of_schema(self.schema(&json!({"type": "object"}))?))
    }

    /// A checked schema, with how its JSON is written.
    ///
    /// # Errors
    /// A keyword cannot be honoured.
    pub fn schema(&self, given: &Value) -> Result<Value, GrammarError> {
        let parsed = match given {
            Value::String(text) => serde_json::from_str(text)
                .map_err(|e| GrammarError::invalid("JSON schema", format!("it is no JSON: {e}")))?,
            other => other.clone(),
        };
        let mut schema = schema::checked(parsed, self.disable_additional_properties)?;
        let options = JsonCompileOptions {
            whitespace_flexible: !self.disable_any_whitespace,
            whitespace_pattern: match (self.disable_any_whitespace, &self.whitespace_pattern) {
                (true, _) => None,
                (false, Some(pattern)) => Some(regex_to_lark(pattern, "")),
                (false, None) => Some(WHITESPACE.to_string()),
            },
            ..JsonCompileOptions::default()
        };
        options.apply_to(&mut schema);
        Ok(schema)
    }
}

fn of_schema(schema: Value) -> TopLevelGrammar {
    TopLevelGrammar::from_grammar(GrammarWithLexer::from_json_schema(schema))
}

/// A text as a literal of Lark's: JSON's notation, but without any control character as it is, U+007F among them.
pub fn lark_literal(text: &str) -> String {
    Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

fn of_choice(choice: &[String]) -> Result<TopLevelGrammar, GrammarError> {
    if choice.is_empty() {
        return Err(GrammarError::invalid("choice", "the list is empty"));
    }
    let quoted: Vec<String> = choice.iter().map(|c| lark_literal(c)).collect();
    Ok(TopLevelGrammar::from_lark(format!("start: CHOICE\nCHOICE: {}", quoted.join(" | "))))
}

fn of_text(grammar: &str) -> Result<TopLevelGrammar, GrammarError> {
    if ebnf::is_ebnf(grammar) {
        return Ok(TopLevelGrammar::from_lark(ebnf::to_lark(grammar)?));
    }
    ebnf::check_nesting(grammar)?;
    Ok(TopLevelGrammar::from_lark(grammar.to_string()))
}

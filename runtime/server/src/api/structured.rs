//! The form of answers: OpenAI's `response_format`, vLLM's `structured_outputs`, and the older `guided_*` names.
//!
//! Invariants: a request asks for one form by one name; two are an error, as is a name that the other would hide.

use super::ApiError;
use rvllm_engine::StructuredOutputs;
use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

/// Backends that requests may name: what they ask for is followed the same way whichever is named.
const BACKENDS: &[&str] = &["auto", "guidance", "lm-format-enforcer", "outlines", "xgrammar"];

/// The form of answers.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct FormFields {
    /// The form of answers, as OpenAI's clients ask for it.
    pub response_format: Option<ResponseFormat>,
    /// The form of answers, as vLLM's clients ask for it.
    pub structured_outputs: Option<StructuredOutputs>,
    /// The older name of `structured_outputs.json`.
    pub guided_json: Option<Value>,
    /// The older name of `structured_outputs.regex`.
    pub guided_regex: Option<String>,
    /// The older name of `structured_outputs.choice`.
    #[schema(min_items = 1)]
    pub guided_choice: Option<Vec<String>>,
    /// The older name of `structured_outputs.grammar`.
    pub guided_grammar: Option<String>,
    /// `auto`, or the name of a backend; options behind a colon, as `xgrammar:disable-any-whitespace`.
    #[schema(
        pattern = "^(auto|guidance|lm-format-enforcer|outlines|xgrammar)(:(disable-any-whitespace|no-additional-properties|disable-additional-properties|no-fallback|disable-fallback)(,(disable-any-whitespace|no-additional-properties|disable-additional-properties|no-fallback|disable-fallback))*)?$"
    )]
    pub guided_decoding_backend: Option<String>,
    /// The older name of `structured_outputs.whitespace_pattern`.
    pub guided_whitespace_pattern: Option<String>,
}

/// The form of answers, as OpenAI's clients ask for it.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct ResponseFormat {
    /// `text`, `json_object`, `json_schema` or `structural_tag`.
    #[serde(rename = "type")]
    #[schema(pattern = "^(text|json_object|json_schema|structural_tag)$")]
    pub kind: String,
    /// The schema, of type `json_schema`.
    pub json_schema: Option<JsonSchemaFormat>,
    /// The tags, of type `structural_tag`: each with `begin`, `schema` and `end`.
    pub structures: Option<Vec<Value>>,
    /// Texts at which a tag must begin, of type `structural_tag`.
    pub triggers: Option<Vec<String>>,
    /// The newer form of type `structural_tag`.
    pub format: Option<Value>,
}

/// A JSON schema with its name.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct JsonSchemaFormat {
    /// Its name: a label.
    pub name: String,
    /// What it is for: a label.
    pub description: Option<String>,
    /// The schema.
    #[serde(alias = "json_schema")]
    pub schema: Option<Value>,
    /// Whether answers must fulfil it; they do, either way.
    pub strict: Option<bool>,
}

impl ResponseFormat {
    /// The form that it asks for; none for `text`.
    fn form(self) -> Result<Option<StructuredOutputs>, ApiError> {
        let wrong = |message: String| ApiError::field("response_format", message);
        let empty = StructuredOutputs::default();
        match self.kind.as_str() {
            "text" => Ok(None),
            "json_object" => Ok(Some(StructuredOutputs { json_object: Some(true), ..empty })),
            "json_schema" => {
                let schema = self.json_schema.and_then(|s| s.schema);
                let schema = schema
                    .ok_or_else(|| wrong("response_format of type json_schema needs json_schema.schema".to_string()))?;
                Ok(Some(StructuredOutputs::json_schema(schema)))
            }
            "structural_tag" => Ok(Some(StructuredOutputs { structural_tag: Some(self.tag()), ..empty })),
            other => Err(wrong(format!(
                "response_format is of type {other:?}, but must be of type text, json_object, json_schema or \
                 structural_tag"
            ))),
        }
    }

    fn tag(self) -> String {
        let mut tag = serde_json::Map::from_iter([("type".to_string(), Value::from("structural_tag"))]);
        let parts = [
            ("structures", self.structures.map(Value::from)),
            ("triggers", self.triggers.map(Value::from)),
            ("format", self.format),
        ];
        tag.extend(parts.into_iter().filter_map(|(name, part)| Some((name.to_string(), part?))));
        Value::from(tag).to_string()
    }
}

impl FormFields {
    /// The form that answers must have, if any.
    ///
    /// # Errors
    /// It is asked for twice, or is not what it says.
    pub fn form(self) -> Result<Option<StructuredOutputs>, ApiError> {
        let guided = self.guided()?;
        let asked = self.response_format.map(ResponseFormat::form).transpose()?.flatten();
        let given = [
            asked.map(|form| ("response_format", form)),
            self.structured_outputs.map(|form| ("structured_outputs", form)),
            guided,
        ];
        let Some((name, form)) = only(given.into_iter().flatten())? else { return Ok(None) };
        form.kind().map_err(|e| ApiError::field(name, e.to_string()))?;
        Ok(Some(StructuredOutputs { param: Some(name), ..form }))
    }

    /// What the older names ask for, and by which.
    fn guided(&self) -> Result<Option<(&'static str, StructuredOutputs)>, ApiError> {
        let how = self.how()?;
        let form = |name, form: StructuredOutputs| (name, form);
        let with = |kind: StructuredOutputs| StructuredOutputs {
            disable_any_whitespace: how.disable_any_whitespace,
            disable_additional_properties: how.disable_additional_properties,
            whitespace_pattern: how.whitespace_pattern.clone(),
            ..kind
        };
        let none = StructuredOutputs::default;
        let given = [
            self.guided_json.clone().map(|json| form("guided_json", StructuredOutputs::json_schema(json))),
            self.guided_regex.clone().map(|r| form("guided_regex", StructuredOutputs { regex: Some(r), ..none() })),
            self.guided_choice.clone().map(|c| form("guided_choice", StructuredOutputs { choice: Some(c), ..none() })),
            self.guided_grammar.clone().map(|g| form("guided_grammar", StructuredOutputs::lark(g))),
        ];
        Ok(only(given.into_iter().flatten())?.map(|(name, form)| (name, with(form))))
    }

    /// How JSON is written, by the older names.
    fn how(&self) -> Result<StructuredOutputs, ApiError> {
        let mut how = StructuredOutputs {
            whitespace_pattern: self.guided_whitespace_pattern.clone(),
            ..StructuredOutputs::default()
        };
        let Some(named) = &self.guided_decoding_backend else { return Ok(how) };
        let (backend, options) = named.split_once(':').map_or((named.as_str(), None), |(b, o)| (b, Some(o)));
        let mut wrong = Some(backend).filter(|b| !BACKENDS.contains(b));
        for option in options.into_iter().flat_map(|o| o.split(',')) {
            match option {
                "disable-any-whitespace" => how.disable_any_whitespace = true,
                "no-additional-properties" | "disable-additional-properties" => {
                    how.disable_additional_properties = true
                }
                "no-fallback" | "disable-fallback" => {}
                other => wrong = Some(other),
            }
        }
        match wrong {
            None => Ok(how),
            Some(name) => Err(ApiError::field(
                "guided_decoding_backend",
                format!("guided_decoding_backend says {name:?}, which is none of {}", BACKENDS.join(", ")),
            )),
        }
    }
}

/// The only one of the forms asked for, with its name.
fn only(
    mut given: impl Iterator<Item = (&'static str, StructuredOutputs)>,
) -> Result<Option<(&'static str, StructuredOutputs)>, ApiError> {
    let first = given.next();
    if let (Some((name, _)), Some((other, _))) = (&first, given.next()) {
        let message = format!("{name} and {other} both say what form answers have, but only one of them can");
        return Err(ApiError::field(other, message));
    }
    Ok(first)
}

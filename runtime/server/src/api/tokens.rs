//! `/tokenize`, `/detokenize`, and the small answers: `/v1/models`, `/version`, `/load`.

use super::{
    ApiError,
    bounds::{ModelName, TokenId},
    chat::ConversationFields,
    request::{Request, merged, names, part},
};
use crate::model::ArtifactCard;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::LazyLock;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{Object, OneOfBuilder, Ref, RefOr, Schema, Type},
};

/// Fields of `/tokenize` for a text.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct TokenizeFields {
    /// The model's name.
    #[schema(value_type = Option<ModelName>)]
    pub model: Option<String>,
    /// The text; or `messages` instead.
    pub prompt: Option<String>,
    /// Adds the tokens that the model puts around a text; true for a prompt, false for messages where absent.
    pub add_special_tokens: Option<bool>,
    /// Has the tokens' texts in the answer.
    pub return_token_strs: Option<bool>,
}

/// A text or a conversation to turn into tokens.
#[derive(Clone, Debug)]
pub struct TokenizeRequest {
    /// What texts need.
    pub own: TokenizeFields,
    /// What conversations need.
    pub conversation: Option<ConversationFields>,
}

fn schemas() -> [RefOr<Schema>; 2] {
    [TokenizeFields::schema(), ConversationFields::schema()]
}

/// A body that has the fields of `parts`, needs `needed` and must not have `other`.
fn either(parts: &[RefOr<Schema>], needed: &str, other: &str, description: &str) -> RefOr<Schema> {
    let mut schema = merged(parts, description);
    if let RefOr::T(Schema::Object(object)) = &mut schema {
        object.properties.insert(other.to_string(), Object::with_type(Type::Null).into());
        object.required = vec![needed.to_string()];
    }
    schema
}

fn text_schema() -> RefOr<Schema> {
    let mut schema = either(&schemas()[..1], "prompt", "messages", "A text to turn into tokens.");
    if let RefOr::T(Schema::Object(object)) = &mut schema {
        object.properties.insert("prompt".to_string(), Object::with_type(Type::String).into());
    }
    schema
}

impl PartialSchema for TokenizeRequest {
    fn schema() -> RefOr<Schema> {
        let shape = Ref::from_schema_name;
        OneOfBuilder::new().item(shape("TokenizeText")).item(shape("TokenizeChat")).into()
    }
}

impl ToSchema for TokenizeRequest {
    fn schemas(all: &mut Vec<(String, RefOr<Schema>)>) {
        TokenizeFields::schemas(all);
        ConversationFields::schemas(all);
        all.push(("TokenizeText".to_string(), text_schema()));
        let chat = either(&schemas(), "messages", "prompt", "A conversation to turn into tokens.");
        all.push(("TokenizeChat".to_string(), chat));
    }
}

impl Request for TokenizeRequest {
    fn read(fields: &Value) -> Result<Self, ApiError> {
        let own: TokenizeFields = part(fields)?;
        let conversation = fields.get("messages").map(|_| part(fields)).transpose()?;
        if own.prompt.is_some() == conversation.is_some() {
            return Err(ApiError::field("prompt", "exactly one of prompt and messages is needed"));
        }
        Ok(TokenizeRequest { own, conversation })
    }

    fn names() -> &'static [String] {
        static NAMES: LazyLock<Vec<String>> = LazyLock::new(|| names(&schemas()));
        &NAMES
    }
}

/// Tokens of a text or a conversation.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct TokenizeResponse {
    /// How many.
    pub count: usize,
    /// Longest sequence that the model takes.
    pub max_model_len: u32,
    /// The tokens.
    pub tokens: Vec<u32>,
    /// Their texts, where asked for.
    pub token_strs: Option<Vec<String>>,
}

/// Tokens to turn into text.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct DetokenizeRequest {
    /// The model's name.
    #[schema(value_type = Option<ModelName>)]
    pub model: Option<String>,
    /// The tokens.
    #[schema(value_type = Vec<TokenId>)]
    pub tokens: Vec<u32>,
}

impl Request for DetokenizeRequest {
    fn read(fields: &Value) -> Result<Self, ApiError> {
        part(fields)
    }

    fn names() -> &'static [String] {
        static NAMES: LazyLock<Vec<String>> = LazyLock::new(|| names(&[DetokenizeRequest::schema()]));
        &NAMES
    }
}

/// The text of tokens.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct DetokenizeResponse {
    /// The text.
    pub prompt: String,
}

/// A model that is served.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ModelCard {
    /// Its name.
    pub id: String,
    /// `model`.
    pub object: &'static str,
    /// Seconds since 1970 when it was loaded.
    pub created: u64,
    /// `rvllm`.
    pub owned_by: &'static str,
    /// Where it came from.
    pub root: String,
    /// The model that this one adapts.
    pub parent: Option<String>,
    /// Longest sequence, prompt and answer together.
    pub max_model_len: u32,
    /// What may be done with it.
    pub permission: Vec<ModelPermission>,
    /// The artifact that runs.
    pub artifact: ArtifactCard,
}

/// What may be done with a model.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[expect(missing_docs, reason = "OpenAI's own words, which it does not explain")]
pub struct ModelPermission {
    pub id: String,
    pub object: &'static str,
    pub created: u64,
    pub allow_create_engine: bool,
    pub allow_sampling: bool,
    pub allow_logprobs: bool,
    pub allow_search_indices: bool,
    pub allow_view: bool,
    pub allow_fine_tuning: bool,
    pub organization: &'static str,
    pub group: Option<String>,
    pub is_blocking: bool,
}

/// The models that are served.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ModelList {
    /// `list`.
    pub object: &'static str,
    /// One entry for each name.
    pub data: Vec<ModelCard>,
}

/// `/version`.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Version {
    /// This server's.
    pub version: &'static str,
}

/// `/load`.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Load {
    /// Prompts accepted and not yet answered.
    pub server_load: usize,
    /// Sequences that run.
    pub running: usize,
    /// Sequences that wait.
    pub waiting: usize,
}

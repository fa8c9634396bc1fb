//! `/v1/chat/completions`: its request and its answers.

use super::{
    ApiError,
    bounds::{NumAlternatives, PositiveTokens},
    completion::{Common, PromptLogprobs, StopReasonValue, Usage},
    request::{Request, merged, names, part},
    sampling::Sampling,
    structured::FormFields,
    tools::{
        Function, FunctionCall, FunctionCallDelta, FunctionCallField, Tool, ToolCall, ToolCallDelta, ToolChoiceField,
    },
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::sync::LazyLock;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{RefOr, Schema},
};

/// A message's content.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or a list of parts")]
pub enum Content {
    /// A text.
    Text(String),
    /// Parts; only texts are taken.
    Parts(Vec<ContentPart>),
}

/// A part of a message's content.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct ContentPart {
    /// `text`; other types are refused.
    #[serde(rename = "type")]
    pub kind: String,
    /// The text.
    #[serde(default)]
    pub text: Option<String>,
    /// The text of a refusal.
    #[serde(default)]
    pub refusal: Option<String>,
}

/// A message. Fields beside these reach the chat template as they are.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct Message {
    /// `system`, `developer`, `user`, `assistant`, `tool`, or another that the chat template knows.
    #[schema(pattern = "^[A-Za-z0-9_.-]{1,64}$")]
    pub role: String,
    /// What it says.
    #[serde(default)]
    pub content: Option<Content>,
    /// Calls that the assistant made, each with `id`, `type` and `function`, whose `arguments` are a JSON text.
    #[serde(default)]
    pub tool_calls: Option<Vec<Map<String, Value>>>,
    /// What the assistant thought before.
    #[serde(default)]
    pub reasoning: Option<String>,
    /// The same: the name that many clients know.
    #[serde(default)]
    pub reasoning_content: Option<String>,
    #[serde(flatten)]
    #[schema(ignore)]
    #[expect(missing_docs, reason = "not a field but the others")]
    pub others: Map<String, Value>,
}

/// Fields of a conversation, which `/tokenize` takes, too.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct ConversationFields {
    /// The conversation so far.
    #[schema(min_items = 1)]
    pub messages: Vec<Message>,
    /// Ends the prompt with the start of the assistant's turn; true where absent.
    pub add_generation_prompt: Option<bool>,
    /// Leaves the last message open, so that the answer continues it.
    pub continue_final_message: Option<bool>,
    /// Adds the tokens that the model puts around a text, beside the template's; false where absent.
    pub add_special_tokens: Option<bool>,
    /// A template instead of the model's.
    pub chat_template: Option<String>,
    /// Further variables of the template.
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// Documents that the template may show.
    pub documents: Option<Vec<Map<String, Value>>>,
    /// Tools that the model may call.
    #[schema(value_type = Option<Vec<Tool>>, max_items = 1024)]
    pub tools: Option<Vec<Value>>,
}

/// Fields that chats alone have.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct ChatFields {
    /// Most tokens of an answer; as many as fit where absent. The older name of `max_completion_tokens`.
    #[schema(value_type = Option<PositiveTokens>)]
    pub max_tokens: Option<u32>,
    /// Most tokens of an answer; as many as fit where absent.
    #[schema(value_type = Option<PositiveTokens>)]
    pub max_completion_tokens: Option<u32>,
    /// Reports log-probabilities.
    pub logprobs: Option<bool>,
    /// Alternatives reported for each token; -1 is the whole vocabulary.
    #[schema(value_type = Option<NumAlternatives>)]
    pub top_logprobs: Option<i32>,
    /// How much the model thinks: `none`, `minimal`, `low`, `medium`, `high`, `xhigh` or `max`, a variable of the chat
    /// template; `none` also sets its variables `enable_thinking` and `thinking` to false.
    pub reasoning_effort: Option<ReasoningEffort>,
    /// Has what the model thinks in the answer; true where absent.
    pub include_reasoning: Option<bool>,
    /// Which tool is called: `none`, `auto` (the model chooses; the default), `required` (at least one), or one by name.
    pub tool_choice: Option<ToolChoiceField>,
    /// Whether an answer may have several calls; true where absent. Where not, calls after the first are left out.
    pub parallel_tool_calls: Option<bool>,
    /// The older name of `tools`: a list of functions.
    #[schema(value_type = Option<Vec<Function>>, max_items = 1024)]
    pub functions: Option<Vec<Value>>,
    /// The older name of `tool_choice`.
    pub function_call: Option<FunctionCallField>,
}

/// How much the model thinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "OpenAI's own words, which models read as they are")]
pub enum ReasoningEffort {
    None,
    Minimal,
    Low,
    Medium,
    High,
    Xhigh,
    Max,
}

/// A chat's request.
#[derive(Clone, Debug)]
pub struct ChatRequest {
    /// The conversation.
    pub conversation: ConversationFields,
    /// Its own fields.
    pub own: ChatFields,
    /// Fields of every request.
    pub common: Common,
    /// How to sample.
    pub sampling: Sampling,
    /// The form of answers.
    pub form: FormFields,
}

fn schemas() -> [RefOr<Schema>; 5] {
    let (common, sampling) = (Common::schema(), Sampling::schema());
    [ConversationFields::schema(), ChatFields::schema(), common, sampling, FormFields::schema()]
}

impl PartialSchema for ChatRequest {
    fn schema() -> RefOr<Schema> {
        merged(&schemas(), "A chat's request.")
    }
}

impl ToSchema for ChatRequest {
    fn schemas(all: &mut Vec<(String, RefOr<Schema>)>) {
        ConversationFields::schemas(all);
        ChatFields::schemas(all);
        Common::schemas(all);
        Sampling::schemas(all);
        FormFields::schemas(all);
    }
}

impl Request for ChatRequest {
    fn read(fields: &Value) -> Result<Self, ApiError> {
        let (conversation, own) = (part(fields)?, part(fields)?);
        let (common, sampling, form) = (part(fields)?, part(fields)?, part(fields)?);
        Ok(ChatRequest { conversation, own, common, sampling, form })
    }

    fn names() -> &'static [String] {
        static NAMES: LazyLock<Vec<String>> = LazyLock::new(|| names(&schemas()));
        &NAMES
    }
}

/// A token with its log-probability.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct ChatToken {
    /// Its text.
    pub token: String,
    /// Natural logarithm; -9999 where it is impossible.
    pub logprob: f32,
    /// Its text in UTF-8.
    pub bytes: Vec<u8>,
}

/// A token of an answer, and the likeliest in its place.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct ChatPosition {
    /// The token.
    #[serde(flatten)]
    pub token: ChatToken,
    /// The likeliest, where asked for.
    pub top_logprobs: Vec<ChatToken>,
}

/// Log-probabilities of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct ChatLogprobs {
    /// One entry a token.
    pub content: Vec<ChatPosition>,
}

/// A message of the assistant.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct AnswerMessage {
    /// The assistant's role.
    pub role: String,
    /// Its text; null where there is only what was thought or called.
    pub content: Option<String>,
    /// What was thought before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// The same: the name that many clients know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<ToolCall>>,
    /// The call, where the request has `functions`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function_call: Option<FunctionCall>,
}

/// What is new of a message of the assistant.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct AnswerDelta {
    /// The assistant's role; only in the first piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// Its text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// What was thought before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// The same: the name that many clients know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<ToolCallDelta>>,
    /// The call, where the request has `functions`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function_call: Option<FunctionCallDelta>,
}

/// One answer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ChatChoice {
    /// Which of the `n`.
    pub index: u32,
    /// The whole message, where the answer comes at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<AnswerMessage>,
    /// What is new, where the answer comes in pieces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delta: Option<AnswerDelta>,
    /// Log-probabilities, where asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// `stop`, `length`, `tool_calls` (`function_call` for `functions`); null while the answer goes on. `stop`, where a
    /// call was forced by name.
    pub finish_reason: Option<&'static str>,
    /// What stopped it; null where that is the model's own end token.
    pub stop_reason: Option<StopReasonValue>,
    /// Tokens of the answer, where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
}

/// A chat's answers, or a piece of them.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ChatCompletion {
    /// Names the request.
    pub id: String,
    /// `chat.completion`, or `chat.completion.chunk`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// The model's name, as the request had it.
    pub model: String,
    /// The answers.
    pub choices: Vec<ChatChoice>,
    /// Tells one build from another.
    pub system_fingerprint: String,
    /// Tokens taken; in a stream only where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// Log-probabilities of the prompt: by token id, null first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<PromptLogprobs>,
    /// Tokens of the prompt, where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
    /// The prompt, where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_text: Option<String>,
}

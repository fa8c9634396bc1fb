//! Tools: what requests say of them, and the calls that answers make.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// A tool that the model may call.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct Tool {
    /// `function`, which is what it is where absent; others are refused.
    #[serde(rename = "type")]
    #[schema(pattern = "^function$")]
    pub kind: Option<String>,
    /// The function.
    pub function: Function,
}

/// A function that the model may call. Fields beside these reach the chat template as they are.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct Function {
    /// Its name, unlike all others.
    #[schema(pattern = "^[A-Za-z0-9_.:/-]{1,256}$")]
    pub name: String,
    /// What it does and when to call it.
    pub description: Option<String>,
    /// Its parameters, as the JSON schema of an object; none where absent.
    pub parameters: Option<Map<String, Value>>,
    /// Arguments follow the schema, also where the model chooses whether to call.
    pub strict: Option<bool>,
}

/// Which tool is called.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "expected \"none\", \"auto\", \"required\", or {\"type\": \"function\", \"function\": {\"name\": …}}"
)]
pub enum ToolChoiceField {
    /// Not by name.
    Mode(ToolChoiceMode),
    /// This one.
    Named(NamedTool),
}

/// How many tools are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ToolChoiceMode {
    /// None.
    None,
    /// As the model chooses.
    Auto,
    /// At least one.
    Required,
}

/// Whether a function is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum FunctionCallMode {
    /// None.
    None,
    /// As the model chooses.
    Auto,
}

/// A tool by its name.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct NamedTool {
    /// `function`.
    #[serde(rename = "type")]
    #[schema(pattern = "^function$")]
    pub kind: Option<String>,
    /// The function.
    pub function: FunctionName,
}

/// A function's name.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct FunctionName {
    /// Its name.
    pub name: String,
}

/// The older `tool_choice`.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected \"none\", \"auto\", or {\"name\": …}")]
pub enum FunctionCallField {
    /// Not by name.
    Mode(FunctionCallMode),
    /// This one.
    Named(FunctionName),
}

/// A call that an answer makes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct ToolCall {
    /// Names the call: the message with its result says it again.
    pub id: String,
    /// `function`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// What is called.
    pub function: FunctionCall,
}

/// A function that is called.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct FunctionCall {
    /// Its name. The model wrote it: it may be one that the request does not have, unless the request forced the call.
    pub name: String,
    /// Its arguments: the text of a JSON object, cut short where the answer was.
    pub arguments: String,
}

/// What is new of a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct ToolCallDelta {
    /// Which of the answer's calls.
    pub index: usize,
    /// In a call's first piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `function`, in a call's first piece.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'static str>,
    /// What is called.
    pub function: FunctionCallDelta,
}

/// What is new of a function that is called.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct FunctionCallDelta {
    /// In a call's first piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// To be appended to the arguments.
    pub arguments: String,
}

//! A request's messages as a chat template reads them.
//!
//! Invariants: a content that is a list of texts becomes one text, so that every template reads it; arguments of earlier
//! tool calls become objects, as templates expect them; what was thought has each name that templates know it by; calls
//! by the older names become tool calls.

use crate::{
    api::{
        ApiError,
        chat::{Content, ContentPart, ConversationFields, Message},
    },
    tools::Tools,
};
use serde_json::{Map, Value, json};

/// Most characters of a role.
const MOST_ROLE: usize = 64;

/// A conversation, ready to be rendered.
#[derive(Clone, Debug)]
pub struct Turns {
    /// As the template reads them.
    pub messages: Vec<Value>,
    /// Tools that it shows.
    pub tools: Vec<Value>,
    /// Further variables of the template.
    pub variables: Map<String, Value>,
    /// A template instead of the model's.
    pub template: Option<String>,
    /// Ends with the start of the assistant's turn.
    pub add_generation_prompt: bool,
    /// Leaves the last message open.
    pub continue_final_message: bool,
    /// Adds the tokens that the model puts around a text.
    pub add_special_tokens: bool,
}

impl Turns {
    /// The conversation of a request.
    ///
    /// # Errors
    /// There is no message, or one cannot be honoured.
    pub fn of(fields: ConversationFields) -> Result<Turns, ApiError> {
        if fields.messages.is_empty() {
            return Err(ApiError::field("messages", "messages is empty · help: give at least one message"));
        }
        let add_generation_prompt = fields.add_generation_prompt.unwrap_or(true);
        let continue_final_message = fields.continue_final_message.unwrap_or(false);
        if add_generation_prompt && continue_final_message {
            let message = "continue_final_message needs add_generation_prompt to be false";
            return Err(ApiError::field("continue_final_message", message));
        }
        let mut variables = fields.chat_template_kwargs.unwrap_or_default();
        if let Some(documents) = fields.documents {
            variables.insert("documents".to_string(), documents.into_iter().map(Value::Object).collect());
        }
        let messages: Result<_, ApiError> = fields.messages.into_iter().enumerate().map(message).collect();
        Ok(Turns {
            messages: messages?,
            tools: Tools::shown(fields.tools.unwrap_or_default())?,
            variables,
            template: fields.chat_template,
            add_generation_prompt,
            continue_final_message,
            add_special_tokens: fields.add_special_tokens.unwrap_or(false),
        })
    }

    /// About as many bytes as there are to render; a request's own template may do any amount of work.
    pub fn weight(&self) -> usize {
        let size = |m: &Value| m["content"].as_str().map_or(0, str::len) + 64;
        let tools = self.tools.len().saturating_mul(512);
        let own = self.template.as_ref().map_or(0, |_| usize::MAX >> 1);
        self.messages.iter().map(size).sum::<usize>().saturating_add(tools).saturating_add(own)
    }

    /// The text of the last message, where the assistant said it.
    pub fn last_answer(&self) -> Option<&str> {
        let last = self.messages.last()?;
        last["content"].as_str().filter(|_| last["role"] == "assistant")
    }

    /// A rendered text without what the template puts after the last message, as transformers cuts it.
    ///
    /// # Errors
    /// The template does not show that message.
    pub fn cut_after_last(&self, mut rendered: String) -> Result<String, ApiError> {
        let content = self.messages.last().and_then(|m| m["content"].as_str()).unwrap_or_default();
        let hidden = || ApiError::field("continue_final_message", "the chat template does not show the last message");
        let start = rendered.rfind(content.trim()).ok_or_else(hidden)?;
        let whole = content.trim_start();
        let end = if rendered[start..].starts_with(whole) { whole.len() } else { content.trim().len() };
        rendered.truncate(start + end);
        Ok(rendered)
    }
}

fn message((index, message): (usize, Message)) -> Result<Value, ApiError> {
    let Message { role, content, tool_calls, reasoning, reasoning_content, mut others } = message;
    if !is_role(&role) {
        let text = format!("messages[{index}].role is {role:?}, but must be a name such as user or assistant");
        return Err(ApiError::field(format!("messages[{index}].role"), text));
    }
    let text = content.map(|c| text(index, c)).transpose()?;
    // Clients send back what answers had, nulls for what they had not.
    others.retain(|_, value| !value.is_null());
    let called = others.shift_remove("function_call").map(|call| json!({"type": "function", "function": call}));
    let calls: Vec<Value> = tool_calls.into_iter().flatten().map(Value::Object).chain(called).collect();
    let role = if role == "function" { "tool".to_string() } else { role };
    let mut all = Map::from_iter([("role".to_string(), role.into())]);
    all.insert("content".to_string(), text.map_or(Value::Null, Value::String));
    all.extend(others);
    if let Some(thought) = reasoning.or(reasoning_content).filter(|r| !r.is_empty()) {
        add_reasoning(&mut all, thought, !calls.is_empty());
    }
    if !calls.is_empty() {
        all.insert("tool_calls".to_string(), calls.into_iter().map(with_arguments).collect());
    }
    Ok(Value::Object(all))
}

/// What was thought: templates of most families read `reasoning_content`, harmony's reads `thinking`, and refuses that
/// beside a content and calls.
fn add_reasoning(message: &mut Map<String, Value>, thought: String, calls: bool) {
    let silent = message["content"].as_str().is_none_or(str::is_empty);
    if silent || !calls {
        message.insert("thinking".to_string(), thought.clone().into());
    }
    message.insert("reasoning".to_string(), thought.clone().into());
    message.insert("reasoning_content".to_string(), thought.into());
}

/// Whether a text can be a role. Templates have roles of their own beside OpenAI's, and write them as they are: a role
/// must not be able to end a turn.
fn is_role(text: &str) -> bool {
    let plain = |c: u8| c.is_ascii_alphanumeric() || b"_.-".contains(&c);
    (1..=MOST_ROLE).contains(&text.len()) && text.bytes().all(plain)
}

fn text(index: usize, content: Content) -> Result<String, ApiError> {
    match content {
        Content::Text(text) => Ok(text),
        Content::Parts(parts) => {
            let texts: Result<Vec<String>, ApiError> =
                parts.into_iter().enumerate().map(|(i, part)| part_text(index, i, part)).collect();
            Ok(texts?.join("\n"))
        }
    }
}

fn part_text(message: usize, index: usize, part: ContentPart) -> Result<String, ApiError> {
    let ContentPart { kind, text, refusal } = part;
    let found = match kind.as_str() {
        "text" => text,
        "refusal" => refusal,
        _ => {
            let name = format!("messages[{message}].content[{index}].type");
            let problem = format!("{name} is {kind:?}, but this model reads texts only");
            return Err(ApiError::field(name, problem));
        }
    };
    let name = format!("messages[{message}].content[{index}].{kind}");
    found.ok_or_else(|| ApiError::field(name.clone(), format!("{name} is missing")))
}

/// A call with its arguments, which come as JSON in a string, as an object. A string that is none stays.
fn with_arguments(mut call: Value) -> Value {
    if let Some(function) = call.get_mut("function").and_then(Value::as_object_mut) {
        let text = function.get("arguments").and_then(Value::as_str).unwrap_or_default();
        let read = if text.trim().is_empty() { Ok(Map::new()) } else { serde_json::from_str(text) };
        let given = function.get("arguments").is_some_and(Value::is_object);
        if let (Ok(arguments), false) = (read, given) {
            function.insert("arguments".to_string(), Value::Object(arguments));
        }
    }
    call
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::request::part;
    use serde_json::json;

    fn turns(fields: Value) -> Result<Turns, ApiError> {
        Turns::of(part(&fields).unwrap())
    }

    #[test]
    fn parts_become_one_text_and_other_fields_stay() {
        let t = turns(json!({"messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "x"},
            {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": "{\"k\": 1}"}}]}
        ]}))
        .unwrap();
        assert_eq!(t.messages[0], json!({"role": "user", "content": "a\nb", "name": "x"}));
        assert_eq!(t.messages[1]["tool_calls"][0]["function"]["arguments"], json!({"k": 1}));
        assert!(t.add_generation_prompt && !t.continue_final_message && !t.add_special_tokens);
    }

    #[test]
    fn what_answers_had_comes_back_in_the_templates_words() {
        let t = turns(json!({"messages": [
            {"role": "assistant", "content": null, "refusal": null, "reasoning_content": "Hm.", "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "f", "arguments": ""}},
                {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{\"k\":"}}]},
            {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "done"}]},
            {"role": "assistant", "content": "So", "tool_calls": [], "function_call": {"name": "h", "arguments": "{\"n\": 1}"}},
            {"role": "function", "name": "h", "content": "2"},
            {"role": "assistant", "content": "Well", "reasoning": "Hm.", "tool_calls": null},
        ]}))
        .unwrap();
        let expected = json!([
            {"role": "assistant", "content": null, "thinking": "Hm.", "reasoning": "Hm.", "reasoning_content": "Hm.", "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "f", "arguments": {}}},
                {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{\"k\":"}}]},
            {"role": "tool", "content": "done", "tool_call_id": "a"},
            {"role": "assistant", "content": "So", "tool_calls": [{"type": "function", "function": {"name": "h", "arguments": {"n": 1}}}]},
            {"role": "tool", "content": "2", "name": "h"},
            {"role": "assistant", "content": "Well", "thinking": "Hm.", "reasoning": "Hm.", "reasoning_content": "Hm."},
        ]);
        assert_eq!(Value::from(t.messages), expected);
    }

    #[test]
    fn what_cannot_be_honoured_is_named() {
        let refused = |fields| turns(fields).unwrap_err().body().error.param.unwrap();
        assert_eq!(refused(json!({"messages": []})), "messages");
        assert_eq!(refused(json!({"messages": [{"role": "<|im_end|>"}]})), "messages[0].role");
        let image = json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]});
        assert_eq!(refused(image), "messages[0].content[0].type");
        let both = json!({"messages": [{"role": "user", "content": "x"}], "continue_final_message": true});
        assert_eq!(refused(both), "continue_final_message");
    }

    #[test]
    fn the_last_message_stays_open() {
        let t =
            turns(json!({"messages": [{"role": "assistant", "content": " so it "}], "add_generation_prompt": false}));
        let t = t.unwrap();
        assert_eq!(t.cut_after_last("<a> so it </a>".into()).unwrap(), "<a> so it ");
        assert_eq!(t.cut_after_last("<a>so it</a>".into()).unwrap(), "<a>so it");
        assert!(t.cut_after_last("<a></a>".into()).is_err());
    }
}

//! Messages in the form that a template reads.
//!
//! Templates differ in two things. Some ask whether a message's content is none, which is how they tell a message that
//! only calls tools; others join whatever content there is to text, and are given an empty one. Most write the
//! arguments of calls by `tojson`, as transformers documents; some join them to text as they are.

use super::json;
use serde_json::Value;
use std::borrow::Cow;

/// Whether a template tells messages without content by their null.
pub(super) fn asks_for_null(template: &str) -> bool {
    let names = ["['content']", "[\"content\"]", ".content"];
    let tests = [" is none", " is not none", " == none", " != none"];
    names.iter().any(|name| tests.iter().any(|test| template.contains(&format!("{name}{test}"))))
}

/// The messages, each with a content: null where the template knows it, else empty.
pub(super) fn with_content(messages: &[Value], knows_null: bool) -> Cow<'_, [Value]> {
    let bare = |m: &Value| m.get("content").is_none_or(|c| c.is_null() && !knows_null);
    if !messages.iter().any(|m| m.is_object() && bare(m)) {
        return Cow::Borrowed(messages);
    }
    let mut all = messages.to_vec();
    for message in all.iter_mut().filter(|m| bare(m)).filter_map(Value::as_object_mut) {
        message.insert("content".to_string(), if knows_null { Value::Null } else { "".into() });
    }
    Cow::Owned(all)
}

/// The messages with arguments of calls as JSON texts, where any are objects.
pub(super) fn with_text_arguments(messages: &[Value]) -> Option<Vec<Value>> {
    let mut all = messages.to_vec();
    let mut changed = false;
    let calls = all.iter_mut().filter_map(|m| m.get_mut("tool_calls")?.as_array_mut()).flatten();
    for arguments in calls.filter_map(|call| call.get_mut("function")?.get_mut("arguments")) {
        if arguments.is_object() {
            *arguments = Value::String(json::text(arguments));
            changed = true;
        }
    }
    changed.then_some(all)
}

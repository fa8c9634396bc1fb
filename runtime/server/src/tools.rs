//! What a request says of tools, checked and in one form: OpenAI's `tools`, and the older `functions`.
//!
//! Invariants: functions have names that every notation can write, each once; a choice among no tools is refused.

use crate::{
    api::{
        ApiError,
        chat::ChatFields,
        request::part,
        tools::{Function, FunctionCallField, FunctionCallMode, Tool, ToolChoiceField, ToolChoiceMode},
    },
    parsers::ToolChoice,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::HashSet;

/// Most tools of a request.
const MOST_TOOLS: usize = 1024;
/// Most bytes of a function's name.
const MOST_NAME: usize = 256;

/// Which tool is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// None.
    None,
    /// Whichever the model likes, if any.
    Auto,
    /// At least one.
    Required,
    /// This one.
    Named(String),
}

impl Choice {
    /// Whether an answer can be nothing but calls.
    pub fn is_forced(&self) -> bool {
        matches!(self, Choice::Required | Choice::Named(_))
    }

    /// In the parsers' words.
    pub fn of_parser(&self) -> ToolChoice<'_> {
        match self {
            Choice::None => ToolChoice::None,
            Choice::Auto => ToolChoice::Auto,
            Choice::Required => ToolChoice::Required,
            Choice::Named(name) => ToolChoice::Named(name),
        }
    }
}

/// A request's tools.
#[derive(Clone, Debug)]
pub struct Tools {
    /// As the chat template reads them: at least one.
    pub list: Vec<Value>,
    /// The same, read.
    pub functions: Vec<Function>,
    /// Which is called.
    pub choice: Choice,
    /// Whether an answer may have several calls.
    pub parallel: bool,
    /// By the older names: `functions`, `function_call`.
    pub legacy: bool,
}

/// The lists of a request, each by its name so that errors name it.
#[derive(Deserialize)]
struct Lists {
    #[serde(default)]
    tools: Vec<Tool>,
    #[serde(default)]
    functions: Vec<Function>,
}

impl Tools {
    /// The tools of a request; none where it has none, or an empty list.
    ///
    /// # Errors
    /// A tool, or the choice among them, is not what it must be.
    pub fn of(tools: Option<Vec<Value>>, own: &ChatFields) -> Result<Option<Tools>, ApiError> {
        // Where one has none, the other counts.
        let given = |list: &Option<Vec<Value>>| list.as_ref().is_some_and(|l| !l.is_empty());
        if given(&tools) && given(&own.functions) {
            return Err(ApiError::field("functions", "functions is the older name of tools · help: give one of them"));
        }
        let legacy = own.functions.is_some() && !given(&tools);
        let missing = tools.is_none() && !legacy;
        let choice = choice(own)?.unwrap_or(Choice::Auto);
        if missing && (own.tool_choice.is_some() || own.function_call.is_some()) && choice != Choice::None {
            let name = if own.tool_choice.is_some() { "tools" } else { "functions" };
            return Err(ApiError::field(name, format!("{name} must be given where one is to be chosen")));
        }
        let (list, functions) = match &own.functions {
            Some(functions) if legacy => read_functions(functions)?,
            _ => read_tools(tools.unwrap_or_default())?,
        };
        check_names(&functions, if legacy { "functions" } else { "tools" }, legacy)?;
        if let Choice::Named(name) = &choice {
            check_choice(name, &functions, legacy)?;
        }
        if functions.is_empty() {
            return Ok(None);
        }
        let parallel = own.parallel_tool_calls.unwrap_or(true) && !legacy;
        Ok(Some(Tools { list, functions, choice, parallel, legacy }))
    }

    /// The tools that `/tokenize` shows to the template.
    ///
    /// # Errors
    /// A tool is not what it must be.
    pub fn shown(tools: Vec<Value>) -> Result<Vec<Value>, ApiError> {
        let (list, functions) = read_tools(tools)?;
        check_names(&functions, "tools", false)?;
        Ok(list)
    }
}

fn choice(own: &ChatFields) -> Result<Option<Choice>, ApiError> {
    match (&own.tool_choice, &own.function_call) {
        (Some(_), Some(_)) => Err(ApiError::field(
            "function_call",
            "function_call is the older name of tool_choice · help: give one of them",
        )),
        (Some(ToolChoiceField::Mode(mode)), None) => Ok(Some(match mode {
            ToolChoiceMode::None => Choice::None,
            ToolChoiceMode::Auto => Choice::Auto,
            ToolChoiceMode::Required => Choice::Required,
        })),
        (None, Some(FunctionCallField::Mode(mode))) => Ok(Some(match mode {
            FunctionCallMode::None => Choice::None,
            FunctionCallMode::Auto => Choice::Auto,
        })),
        (None, Some(FunctionCallField::Named(function))) => Ok(Some(Choice::Named(function.name.clone()))),
        (Some(ToolChoiceField::Named(tool)), None) => {
            check_kind(tool.kind.as_deref(), "tool_choice.type")?;
            Ok(Some(Choice::Named(tool.function.name.clone())))
        }
        (None, None) => Ok(None),
    }
}

fn check_kind(kind: Option<&str>, name: &str) -> Result<(), ApiError> {
    match kind {
        None | Some("function") => Ok(()),
        Some(other) => Err(ApiError::field(name, format!("{name} is {other:?}, but must be \"function\""))),
    }
}

fn check_count(name: &str, count: usize) -> Result<(), ApiError> {
    if count <= MOST_TOOLS {
        return Ok(());
    }
    Err(ApiError::field(name, format!("{name} has {count} entries, but at most {MOST_TOOLS} are taken")))
}

fn read_tools(tools: Vec<Value>) -> Result<(Vec<Value>, Vec<Function>), ApiError> {
    check_count("tools", tools.len())?;
    let Lists { tools: read, .. } = part(&json!({ "tools": tools }))?;
    for (i, tool) in read.iter().enumerate() {
        check_kind(tool.kind.as_deref(), &format!("tools[{i}].type"))?;
    }
    let list = tools.into_iter().map(|mut tool| {
        let function = tool.get_mut("function").map(Value::take).unwrap_or_default();
        let others = tool.as_object_mut().map(std::mem::take).unwrap_or_default();
        let mut shown = Map::from_iter([("type".to_string(), "function".into())]);
        shown.extend(others);
        shown.insert("function".to_string(), told(function));
        Value::Object(shown)
    });
    Ok((list.collect(), read.into_iter().map(|tool| tool.function).collect()))
}

fn read_functions(functions: &[Value]) -> Result<(Vec<Value>, Vec<Function>), ApiError> {
    check_count("functions", functions.len())?;
    let Lists { functions: read, .. } = part(&json!({ "functions": functions }))?;
    let list = functions.iter().map(|f| json!({"type": "function", "function": told(f.clone())}));
    Ok((list.collect(), read))
}

/// A function as models know them: `strict` is said to the server alone.
fn told(mut function: Value) -> Value {
    if let Some(fields) = function.as_object_mut() {
        fields.shift_remove("strict");
    }
    function
}

fn check_names(functions: &[Function], list: &str, legacy: bool) -> Result<(), ApiError> {
    let mut known = HashSet::new();
    for (i, function) in functions.iter().enumerate() {
        let place = if legacy { format!("{list}[{i}].name") } else { format!("{list}[{i}].function.name") };
        let name = &function.name;
        if !is_name(name) {
            let message = format!(
                "{place} is {name:?}, but must have from 1 to {MOST_NAME} letters, digits and characters of _ - . : /"
            );
            return Err(ApiError::field(place, message));
        }
        if !known.insert(name) {
            return Err(ApiError::field(&place, format!("{place} is {name:?}, the name of another function, too")));
        }
    }
    Ok(())
}

fn is_name(name: &str) -> bool {
    let known = |b: u8| b.is_ascii_alphanumeric() || b"_-.:/".contains(&b);
    (1..=MOST_NAME).contains(&name.len()) && name.bytes().all(known)
}

fn check_choice(name: &str, functions: &[Function], legacy: bool) -> Result<(), ApiError> {
    if functions.iter().any(|f| f.name == name) {
        return Ok(());
    }
    let (field, list) = if legacy { ("function_call", "functions") } else { ("tool_choice", "tools") };
    Err(ApiError::field(field, format!("{field} names the function {name:?}, which {list} does not have")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools(fields: Value) -> Result<Option<Tools>, ApiError> {
        let list = fields.get("tools").and_then(Value::as_array).cloned();
        Tools::of(list, &part(&fields).unwrap())
    }

    fn function(name: &str) -> Value {
        json!({"type": "function", "function": {"name": name, "strict": true, "parameters": {"type": "object"}}})
    }

    #[test]
    fn both_names_mean_the_same() {
        let new =
            tools(json!({"tools": [function("f")], "tool_choice": {"type": "function", "function": {"name": "f"}}}));
        let old = tools(json!({"functions": [function("f")["function"]], "function_call": {"name": "f"}}));
        let (new, old) = (new.unwrap().unwrap(), old.unwrap().unwrap());
        assert_eq!((&new.list, &new.choice), (&old.list, &old.choice));
        assert_eq!(
            new.list,
            [json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}})]
        );
        assert_eq!((new.legacy, new.parallel, old.legacy, old.parallel), (false, true, true, false));
        assert_eq!((new.functions[0].strict, &new.choice), (Some(true), &Choice::Named("f".into())));
    }

    #[test]
    fn no_tools_are_no_tools() {
        for fields in [
            json!({}),
            json!({"tool_choice": "none"}),
            json!({"tools": []}),
            json!({"tools": [], "tool_choice": "auto"}),
            json!({"tools": [], "tool_choice": "required"}),
            json!({"function_call": "none"}),
        ] {
            assert!(tools(fields.clone()).unwrap().is_none(), "{fields}");
        }
        assert_eq!(tools(json!({"tools": [function("f")]})).unwrap().unwrap().choice, Choice::Auto);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let f = || function("f");
        for (fields, param) in [
            (json!({"tool_choice": "auto"}), "tools"),
            (json!({"tool_choice": "required"}), "tools"),
            (json!({"function_call": "auto"}), "functions"),
            (json!({"tools": [f()], "tool_choice": {"type": "function", "function": {"name": "g"}}}), "tool_choice"),
            (json!({"tools": [], "tool_choice": {"type": "function", "function": {"name": "g"}}}), "tool_choice"),
            (json!({"tools": [f()], "tool_choice": {"type": "file", "function": {"name": "f"}}}), "tool_choice.type"),
            (json!({"tools": [f()], "functions": [f()["function"]]}), "functions"),
            (json!({"tools": [f(), f()]}), "tools[1].function.name"),
            (json!({"tools": [function("a b")]}), "tools[0].function.name"),
            (json!({"tools": [function("")]}), "tools[0].function.name"),
            (json!({"tools": [{"type": "function"}]}), "tools[0]"),
            (json!({"tools": [{"type": "web_search", "function": {"name": "f"}}]}), "tools[0].type"),
            (json!({"tools": [{"function": {"name": "f", "parameters": []}}]}), "tools[0].function.parameters"),
            (json!({"functions": [{"name": 3}]}), "functions[0].name"),
            (json!({"tools": vec![f(); 1025]}), "tools"),
        ] {
            let error = tools(fields.clone()).unwrap_err();
            assert_eq!(error.body().error.param.as_deref(), Some(param), "{fields}");
        }
    }
}

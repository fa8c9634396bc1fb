//! The form of answers that must call tools, and of arguments that must follow a schema, as a grammar in Lark's notation.
//!
//! A model is held to the notation that it knows, where that consists of fixed text around the arguments; else to vLLM's
//! forms, a JSON list of `{"name", "parameters"}` or the arguments alone.
//!
//! Invariants: whatever fulfils the grammar is read as calls by the parser of the same notation; reasoning stays free.

use crate::{
    api::{ApiError, tools::Function},
    parsers::{markers, open_reasoning},
    tools::{Choice, Tools},
};
use rvllm_artifact::parsers::{Parsers, ReasoningParser, ToolParser};
use rvllm_engine::{StructuredOutputs, Tokenizer, lark_literal};
use serde_json::{Map, Value, json};
use std::fmt::Write;

/// Most calls of an answer that must call.
const MOST_CALLS: usize = 128;

/// Text around calls. `NAME` stands for the function's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    /// Before the first call.
    open: &'static str,
    /// Before the arguments.
    begin: &'static str,
    /// After the arguments.
    end: &'static str,
    between: &'static str,
    /// After the last call.
    close: &'static str,
    /// One call at a time.
    single: bool,
}

const PLAIN: Layout = Layout {
    open: "",
    begin: "{\"name\": \"NAME\", \"arguments\": ",
    end: "}",
    between: ", ",
    close: "",
    single: false,
};
const HERMES: Layout = Layout {
    begin: "<tool_call>\n{\"name\": \"NAME\", \"arguments\": ",
    end: "}\n</tool_call>",
    between: "\n",
    ..PLAIN
};
const LLAMA3_JSON: Layout = Layout { begin: "{\"name\": \"NAME\", \"parameters\": ", between: "; ", ..PLAIN };
const MISTRAL: Layout = Layout { open: "[TOOL_CALLS] [", close: "]", ..PLAIN };
/// Since tokenizer version 11.
const MISTRAL_ARGS: Layout = Layout { begin: "[TOOL_CALLS]NAME[ARGS]", end: "", between: "", ..PLAIN };
const DEEPSEEK_V3: Layout = Layout {
    open: "<｜tool▁calls▁begin｜>",
    begin: "<｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n```json\n",
    end: "\n```<｜tool▁call▁end｜>",
    between: "\n",
    close: "<｜tool▁calls▁end｜>",
    single: false,
};
const DEEPSEEK_V31: Layout =
    Layout {
        begin: "<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>", end: "<｜tool▁call▁end｜>", between: "", ..DEEPSEEK_V3
    };
const JAMBA: Layout = Layout { open: "<tool_calls>[", close: "]</tool_calls>", ..PLAIN };
const PHI4_MINI: Layout = Layout { open: "functools[", close: "]", ..PLAIN };
const HARMONY: Layout = Layout {
    begin: "<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>",
    end: "",
    single: true,
    ..PLAIN
};
/// vLLM's form of `required`.
const LIST: Layout = Layout { open: "[", begin: "{\"name\": \"NAME\", \"parameters\": ", close: "]", ..PLAIN };
/// vLLM's form of a function by name.
const ARGUMENTS: Layout = Layout { begin: "", end: "", single: true, ..PLAIN };

/// The notation's layout; none where calls are more than fixed text around the arguments.
fn layout(parsers: Parsers, tokenizer: &Tokenizer) -> Option<Layout> {
    match parsers.tool_call? {
        ToolParser::Hermes => Some(HERMES),
        ToolParser::Llama3Json => Some(LLAMA3_JSON),
        ToolParser::Mistral if tokenizer.token_to_id("[ARGS]").is_some() => Some(MISTRAL_ARGS),
        ToolParser::Mistral => Some(MISTRAL),
        ToolParser::DeepseekV3 if parsers.reasoning == Some(ReasoningParser::DeepseekV3) => Some(DEEPSEEK_V31),
        ToolParser::DeepseekV3 => Some(DEEPSEEK_V3),
        ToolParser::Jamba => Some(JAMBA),
        ToolParser::Phi4Mini => Some(PHI4_MINI),
        ToolParser::Openai => Some(HARMONY),
        ToolParser::Qwen3Coder | ToolParser::Pythonic | ToolParser::Olmo3 | ToolParser::KimiK2 | ToolParser::Glm45 => {
            None
        }
    }
}

/// Whether a model with these parsers is held to its own notation.
pub fn is_own(parsers: Parsers, tokenizer: &Tokenizer) -> bool {
    layout(parsers, tokenizer).is_some()
}

/// The form that answers must have for their calls; none where they are free.
///
/// # Errors
/// A schema, or `strict` in this notation, cannot be followed.
pub fn form(
    parsers: Parsers,
    tokenizer: &Tokenizer,
    tools: &Tools,
    prompt: &str,
) -> Result<Option<StructuredOutputs>, ApiError> {
    let own = layout(parsers, tokenizer);
    let mut rules = Rules { lark: String::new(), marks: marks(parsers, tokenizer) };
    let (start, after, param) = match &tools.choice {
        Choice::None => return Ok(None),
        Choice::Auto => match tools.functions.iter().position(|f| f.strict == Some(true)) {
            None => return Ok(None),
            Some(strict) => (rules.free(own, tools, strict)?, vec![], "tools"),
        },
        Choice::Required | Choice::Named(_) => {
            let named = matches!(tools.choice, Choice::Named(_));
            let layout = own.unwrap_or(if named { ARGUMENTS } else { LIST });
            let (thought, after) = rules.reasoning(parsers, tokenizer, prompt);
            (format!("{thought} {}", rules.calls(layout, tools)?), after, "tools")
        }
    };
    let lark = format!("start: {start}\nTEXT: /(\\n|.)*/\nBLANKS: /[ \\n]{{1,4}}/\n{}", rules.lark);
    Ok(Some(StructuredOutputs { after, param: Some(param), ..StructuredOutputs::lark(lark) }))
}

/// Markers that are special tokens, with their ids.
fn marks(parsers: Parsers, tokenizer: &Tokenizer) -> Vec<(&'static str, u32)> {
    let all = markers(parsers.tool_call, parsers.reasoning).into_iter();
    let mut marks: Vec<_> = all.filter_map(|m| Some((m, tokenizer.token_to_id(m)?))).collect();
    marks.retain(|(_, id)| tokenizer.is_special(*id));
    marks.sort_unstable();
    marks.dedup();
    marks
}

/// A grammar in the making.
struct Rules {
    lark: String,
    marks: Vec<(&'static str, u32)>,
}

impl Rules {
    fn rule(&mut self, name: &str, body: &str) {
        // Writing to a text does not fail.
        let _ = writeln!(self.lark, "{name}: {body}");
    }

    /// Fixed text: special tokens by their ids, all else in quotes.
    fn literal(&self, text: &str) -> String {
        let mut parts = vec![];
        let mut rest = text;
        while !rest.is_empty() {
            let first = self.marks.iter().filter_map(|(mark, id)| Some((rest.find(mark)?, mark.len(), id))).min();
            let (before, after) = match first {
                Some((at, length, _)) => (&rest[..at], &rest[at + length..]),
                None => (rest, ""),
            };
            if !before.is_empty() {
                parts.push(lark_literal(before));
            }
            parts.extend(first.map(|(_, _, id)| format!("<[{id}]>")));
            rest = after;
        }
        parts.join(" ")
    }

    /// What may be thought first, and the tokens behind which the grammar begins.
    fn reasoning(&mut self, parsers: Parsers, tokenizer: &Tokenizer, prompt: &str) -> (String, Vec<u32>) {
        let (open, close) = match parsers.reasoning {
            None => return (String::new(), vec![]),
            Some(ReasoningParser::OpenaiGptoss) => ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant"),
            Some(ReasoningParser::Mistral) => ("[THINK]", "[/THINK]"),
            Some(_) => ("<think>", "</think>"),
        };
        let begun = parsers.reasoning.is_some_and(|family| open_reasoning(family, prompt).is_some());
        match tokenizer.token_to_id(close).filter(|_| begun) {
            Some(id) => ("BLANKS?".to_string(), vec![id]),
            None if prompt.trim_end().ends_with(close) => ("BLANKS?".to_string(), vec![]),
            None => {
                let closing = self.literal(close);
                if closing.starts_with('<') {
                    self.rule("thought", &format!("TEXT {closing}"));
                } else {
                    self.rule(&format!("thought[suffix={closing}]"), "TEXT");
                }
                let opening = if begun { String::new() } else { self.literal(open) };
                let thought = format!("{opening} thought BLANKS?");
                (if begun { thought } else { format!("({thought})?") }, vec![])
            }
        }
    }

    /// At least one call.
    fn calls(&mut self, layout: Layout, tools: &Tools) -> Result<String, ApiError> {
        let named = |f: &&Function| !matches!(&tools.choice, Choice::Named(name) if *name != f.name);
        for (i, function) in tools.functions.iter().enumerate().filter(|(_, f)| named(f)) {
            self.call(i, function, layout.begin, layout.end, true)?;
        }
        let names: Vec<String> =
            tools.functions.iter().enumerate().filter(|(_, f)| named(f)).map(|(i, _)| format!("call{i}")).collect();
        self.rule("call", &names.join(" | "));
        let single = layout.single || !tools.parallel || matches!(tools.choice, Choice::Named(_));
        let between = self.literal(layout.between);
        let more = if single { String::new() } else { format!("({between} call){{0,{}}}", MOST_CALLS - 1) };
        Ok(format!("{} call {more} {}", self.literal(layout.open), self.literal(layout.close)))
    }

    /// A call whose arguments follow the schema where it is `held` to it.
    fn call(&mut self, i: usize, function: &Function, begin: &str, end: &str, held: bool) -> Result<(), ApiError> {
        let schema = if held { schema(function) } else { json!({"type": "object"}) };
        let checked = StructuredOutputs::default().schema(&schema).map_err(|error| {
            let name = format!("tools[{i}].function.parameters");
            ApiError::field(&name, format!("{name}: {error}"))
        })?;
        self.rule(&format!("arguments{i}"), &format!("%json {checked}"));
        let (begin, end) = (self.literal(&begin.replace("NAME", &function.name)), self.literal(end));
        self.rule(&format!("call{i}"), &format!("{begin} arguments{i} {end}"));
        Ok(())
    }

    /// Free text, in which the marker that opens a call is always followed by one.
    fn free(&mut self, own: Option<Layout>, tools: &Tools, strict: usize) -> Result<String, ApiError> {
        let opened = own.and_then(|layout| Some((layout, trigger(layout)?)));
        let Some((layout, trigger)) = opened else {
            let name = format!("tools[{strict}].function.strict");
            let message = format!(
                "{name} cannot be honoured where the model chooses, in the notation of this one · help: set tool_choice to \
                 \"required\" or to a function, or leave it out"
            );
            return Err(ApiError::field(name, message));
        };
        let (open, begin) = (layout.open, layout.begin);
        let begin = if open.is_empty() { begin.strip_prefix(trigger).unwrap_or(begin) } else { begin };
        for (i, function) in tools.functions.iter().enumerate() {
            self.call(i, function, begin, layout.end, function.strict == Some(true))?;
        }
        let names: Vec<String> = (0..tools.functions.len()).map(|i| format!("call{i}")).collect();
        self.rule("call", &names.join(" | "));
        let opening = self.literal(trigger);
        let special = opening.starts_with('<');
        self.rule(if special { "head" } else { "head[lazy]" }, &format!("TEXT {opening}"));
        let body = if open.is_empty() {
            "call".to_string()
        } else {
            let (rest, between) =
                (self.literal(open.strip_prefix(trigger).unwrap_or(open)), self.literal(layout.between));
            format!("{rest} call ({between} call){{0,{}}} {}", MOST_CALLS - 1, self.literal(layout.close))
        };
        let others: Vec<String> =
            self.marks.iter().filter(|(mark, _)| *mark != trigger).map(|(_, id)| id.to_string()).collect();
        let others = if others.is_empty() { String::new() } else { format!(" | TEXT <[{}]>", others.join(",")) };
        Ok(format!("(head {body}{others})* TEXT"))
    }
}

/// The text that nothing but a call begins with, where there is one.
fn trigger(layout: Layout) -> Option<&'static str> {
    ["<tool_call>", "[TOOL_CALLS]", "<｜tool▁calls▁begin｜>", "<tool_calls>", "functools["]
        .into_iter()
        .find(|mark| layout.open.starts_with(mark) || (layout.open.is_empty() && layout.begin.starts_with(mark)))
}

/// A function's parameters as the schema of an object.
fn schema(function: &Function) -> Value {
    let mut schema = function.parameters.clone().unwrap_or_else(|| {
        Map::from_iter([("properties".to_string(), json!({})), ("additionalProperties".to_string(), false.into())])
    });
    schema.entry("type").or_insert("object".into());
    Value::Object(schema)
}

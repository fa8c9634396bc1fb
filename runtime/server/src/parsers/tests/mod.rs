//! Tests of the parsers: what each model family writes, what breaks it, and independence of how text is cut.

mod chunking;
mod families;
mod malformed;
mod streaming;

use serde_json::{Value, json};

use super::{Event, Request, StreamParser, ToolChoice, parser};
use rvllm_artifact::parsers::{ReasoningParser, ToolParser};

/// A call of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Call {
    id: String,
    name: String,
    arguments: String,
    complete: Option<bool>,
}

/// An answer with its pieces joined.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Answer {
    content: String,
    reasoning: String,
    calls: Vec<Call>,
}

impl Answer {
    fn add(&mut self, event: Event) {
        match event {
            Event::Content(text) => self.content.push_str(&text),
            Event::Reasoning(text) => self.reasoning.push_str(&text),
            Event::ToolCallStart { index, id, name } => {
                assert_eq!(index, self.calls.len(), "calls are numbered in order");
                assert!(self.calls.iter().all(|call| call.complete.is_some()), "calls do not overlap");
                self.calls.push(Call { id, name, ..Call::default() });
            }
            Event::ToolCallArguments { index, delta } => self.open(index).arguments.push_str(&delta),
            Event::ToolCallEnd { index, complete } => self.open(index).complete = Some(complete),
        }
    }

    fn open(&mut self, index: usize) -> &mut Call {
        let call = &mut self.calls[index];
        assert_eq!(call.complete, None, "an ended call takes no more");
        call
    }

    fn names(&self) -> Vec<(&str, Value)> {
        self.calls.iter().map(|call| (call.name.as_str(), serde_json::from_str(&call.arguments).unwrap())).collect()
    }
}

/// A model's notations and what the request says.
#[derive(Debug, Clone, Copy)]
struct Model {
    tool: Option<ToolParser>,
    reasoning: Option<ReasoningParser>,
    prompt: &'static str,
    choice: ToolChoice<'static>,
}

impl Model {
    fn tool(tool: ToolParser) -> Self {
        Self { tool: Some(tool), reasoning: None, prompt: "", choice: ToolChoice::Auto }
    }

    fn new(tool: ToolParser, reasoning: ReasoningParser) -> Self {
        Self { reasoning: Some(reasoning), ..Self::tool(tool) }
    }

    fn parser(self) -> Box<dyn StreamParser> {
        let tools = tools();
        let request = Request { prompt: self.prompt, tools: &tools, choice: self.choice, id_seed: 7 };
        parser(self.tool, self.reasoning, &request)
    }

    fn read<'a>(self, deltas: impl IntoIterator<Item = &'a str>) -> Answer {
        let mut parser = self.parser();
        let mut answer = Answer::default();
        deltas
            .into_iter()
            .flat_map(|delta| parser.push(delta))
            .collect::<Vec<_>>()
            .into_iter()
            .for_each(|e| answer.add(e));
        parser.finish().into_iter().for_each(|event| answer.add(event));
        assert!(answer.calls.iter().all(|call| call.complete.is_some()), "every call ends: {answer:?}");
        answer
    }

    /// Reads the text whole and a character at a time, which must agree.
    fn answer(self, text: &str) -> Answer {
        let whole = self.read([text]);
        assert_eq!(whole, self.read(text.split_inclusive(|_| true)), "cut into characters: {text}");
        whole
    }

    /// Reads a text that is well formed.
    fn calls(self, text: &str) -> Answer {
        let answer = self.answer(text);
        assert!(answer.calls.iter().all(|call| call.complete == Some(true)), "{answer:?}");
        answer
    }
}

/// Tools of the requests: one of each declared type.
fn tools() -> Vec<Value> {
    let parameters = json!({"type": "object", "properties": {
        "city": {"type": "string"}, "days": {"type": "integer"}, "exact": {"type": "boolean"},
        "near": {"type": "array", "items": {"type": "number"}}, "note": {"type": ["string", "null"]},
        "code": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    }});
    vec![json!({"type": "function", "function": {"name": "get_weather", "parameters": parameters}})]
}

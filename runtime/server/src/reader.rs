//! Reads one answer: its text as it comes, into content, reasoning and calls.
//!
//! Invariants: how an answer is cut into pieces does not change the pieces joined; tokens are counted as reasoning when
//! what they wrote is.

use crate::{
    api::tools::{FunctionCall, FunctionCallDelta, ToolCall, ToolCallDelta},
    parsers::{Event, StreamParser},
};

/// `type` of a call.
const FUNCTION: &str = "function";

/// What is new of an answer, or all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// Its text.
    pub content: String,
    /// What was thought before.
    pub reasoning: String,
    /// Calls, each once.
    pub calls: Vec<ToolCallDelta>,
}

/// State of the reading.
pub struct Reader {
    /// None where all text is content.
    parser: Option<Box<dyn StreamParser>>,
    /// It tells reasoning from the rest.
    reasons: bool,
    first_call_only: bool,
    show_reasoning: bool,
    num_calls: usize,
    reasoning: Counted,
}

/// Tokens of reasoning: those that wrote it, and those without text between them.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    tokens: u64,
    /// Read since the last text, if that was reasoning.
    pending: Option<u64>,
}

impl Counted {
    fn see(&mut self, tokens: u64, last: Option<&Event>) {
        match last {
            Some(Event::Reasoning(_)) => {
                self.tokens += self.pending.unwrap_or(0) + tokens;
                self.pending = Some(0);
            }
            Some(_) => self.pending = None,
            None => self.pending = self.pending.map(|pending| pending + tokens),
        }
    }
}

impl Reader {
    /// All text is content.
    pub fn of_content() -> Reader {
        Reader {
            parser: None,
            reasons: false,
            first_call_only: false,
            show_reasoning: true,
            num_calls: 0,
            reasoning: Counted::default(),
        }
    }

    /// Reads by `parser`, which tells reasoning from the rest where the model `reasons`.
    pub fn new(parser: Box<dyn StreamParser>, reasons: bool) -> Reader {
        Reader { parser: Some(parser), reasons, ..Reader::of_content() }
    }

    /// Leaves out calls after the first.
    pub fn first_call_only(self, first_call_only: bool) -> Reader {
        Reader { first_call_only, ..self }
    }

    /// Leaves out what is thought, or does not.
    pub fn show_reasoning(self, show_reasoning: bool) -> Reader {
        Reader { show_reasoning, ..self }
    }

    /// Whether reasoning is told from the rest.
    pub fn counts_reasoning(&self) -> bool {
        self.reasons
    }

    /// Calls made so far.
    pub fn num_calls(&self) -> usize {
        self.num_calls
    }

    /// Tokens of reasoning so far.
    pub fn reasoning_tokens(&self) -> u64 {
        self.reasoning.tokens
    }

    /// Reads the next text, written by this many tokens; `last` ends the answer.
    pub fn read(&mut self, text: &str, tokens: usize, last: bool) -> Parts {
        let Some(parser) = &mut self.parser else {
            return Parts { content: text.to_string(), ..Parts::default() };
        };
        let mut events = parser.push(text);
        self.reasoning.see(tokens as u64, events.last());
        if last {
            events.extend(parser.finish());
        }
        let mut parts = Parts::default();
        events.into_iter().for_each(|event| self.take(event, &mut parts));
        parts
    }

    fn take(&mut self, event: Event, parts: &mut Parts) {
        match event {
            Event::Content(text) => parts.content.push_str(&text),
            Event::Reasoning(text) if self.show_reasoning => parts.reasoning.push_str(&text),
            Event::Reasoning(_) | Event::ToolCallEnd { .. } => {}
            Event::ToolCallStart { index, id, name } => {
                self.num_calls += 1;
                if self.gives(index) {
                    let function = FunctionCallDelta { name: Some(name), arguments: String::new() };
                    parts.calls.push(ToolCallDelta { index, id: Some(id), kind: Some(FUNCTION), function });
                }
            }
            Event::ToolCallArguments { index, delta } if self.gives(index) => parts.add_arguments(index, &delta),
            Event::ToolCallArguments { .. } => {}
        }
    }

    fn gives(&self, index: usize) -> bool {
        index == 0 || !self.first_call_only
    }
}

impl Parts {
    /// Whether there is nothing new.
    pub fn is_empty(&self) -> bool {
        self.content.is_empty() && self.reasoning.is_empty() && self.calls.is_empty()
    }

    /// Adds what comes after.
    pub fn extend(&mut self, more: Parts) {
        self.content.push_str(&more.content);
        self.reasoning.push_str(&more.reasoning);
        for call in more.calls {
            match call.id {
                Some(_) => self.calls.push(call),
                None => self.add_arguments(call.index, &call.function.arguments),
            }
        }
    }

    fn add_arguments(&mut self, index: usize, text: &str) {
        match self.calls.iter_mut().find(|c| c.index == index) {
            Some(call) => call.function.arguments.push_str(text),
            None => {
                let function = FunctionCallDelta { name: None, arguments: text.to_string() };
                self.calls.push(ToolCallDelta { index, id: None, kind: None, function });
            }
        }
    }
}

/// The calls of a whole answer.
pub fn whole(calls: Vec<ToolCallDelta>) -> Vec<ToolCall> {
    let call = |call: ToolCallDelta| ToolCall {
        id: call.id.unwrap_or_default(),
        kind: FUNCTION,
        function: FunctionCall { name: call.function.name.unwrap_or_default(), arguments: call.function.arguments },
    };
    calls.into_iter().map(call).collect()
}

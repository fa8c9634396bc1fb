//! Puts the parsers of one answer together: reasoning first, then calls in what remains.

use std::sync::Arc;

use super::calls::Calls;
use super::grammar::{self, NAMED, REQUIRED};
use super::harmony::{self, Harmony};
use super::schemas::Schemas;
use super::sink::{Ids, Sink};
use super::think::{MISTRAL_THINK, Split, THINK, Tags, Think};
use super::{Event, StreamParser};
use rvllm_artifact::parsers::{ReasoningParser, ToolParser};

/// What a request says that its answer's parser needs.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The rendered prompt, or its end: whether it leaves a block of reasoning open.
    pub prompt: &'a str,
    /// The request's `tools`; their declared types decide how untyped values read.
    pub tools: &'a [serde_json::Value],
    /// The request's `tool_choice`.
    pub choice: ToolChoice<'a>,
    /// Makes the identities of calls; must differ between answers.
    pub id_seed: u64,
}

/// The request's `tool_choice`, as far as it decides what the model writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolChoice<'a> {
    /// No calls: their markup is content.
    None,
    /// The model's own notation.
    Auto,
    /// The model is held to a JSON array of `{"name", "parameters"}`.
    Required,
    /// The model is held to the arguments of this function.
    Named(&'a str),
}

/// A parser of one answer of a model whose notations are `tool` and `reasoning`.
///
/// The text must be decoded with special tokens kept, since most markup consists of them, and without the token that
/// ended the answer. With neither notation, all text is content. Harmony is one format: when either names it, messages are taken apart and
/// `analysis` is reasoning, and calls are recognised when `tool` names it and the choice is not [`ToolChoice::None`].
pub fn parser(
    tool: Option<ToolParser>,
    reasoning: Option<ReasoningParser>,
    request: &Request<'_>,
) -> Box<dyn StreamParser> {
    let short = tool.and_then(grammar::of).is_some_and(|grammar| grammar.short_ids);
    let sink = Sink::new(Ids { seed: request.id_seed, short });
    if tool == Some(ToolParser::Openai) || reasoning == Some(ReasoningParser::OpenaiGptoss) {
        let calls = tool == Some(ToolParser::Openai) && request.choice != ToolChoice::None;
        return Box::new(Messages { harmony: Harmony::new(calls), sink });
    }
    let think = reasoning.map(|family| think(family, tool, request));
    Box::new(Tagged { think, calls: calls(tool, request), sink })
}

fn think(family: ReasoningParser, tool: Option<ToolParser>, request: &Request<'_>) -> Think {
    let own_notation = tool.filter(|_| request.choice == ToolChoice::Auto).and_then(grammar::of);
    let enders = match (family, own_notation) {
        (ReasoningParser::Qwen3, Some(grammar)) => grammar.openers().map(|(mark, _)| mark).collect(),
        _ => Vec::new(),
    };
    Think::new(tags(family), request.prompt, family == ReasoningParser::DeepseekR1, enders)
}

fn tags(family: ReasoningParser) -> Tags {
    if family == ReasoningParser::Mistral { MISTRAL_THINK } else { THINK }
}

/// The tag that ends the reasoning which a model of this family begins right after `prompt`; none where it does not, or
/// says so itself.
pub fn open_reasoning(family: ReasoningParser, prompt: &str) -> Option<&'static str> {
    if family == ReasoningParser::OpenaiGptoss {
        return None;
    }
    let [open, close] = tags(family).both();
    let tail = prompt.trim_end();
    let begins = family == ReasoningParser::DeepseekR1 && !tail.ends_with(close);
    (begins || tail.ends_with(open)).then_some(close)
}

/// What begins and ends the reasoning of a model of this family, and whether its answers begin with it where nothing
/// says so.
pub fn thinking(family: ReasoningParser) -> ([&'static str; 2], bool) {
    match family {
        ReasoningParser::OpenaiGptoss => (["<|channel|>analysis<|message|>", "<|end|>"], false),
        other => (tags(other).both(), other == ReasoningParser::DeepseekR1),
    }
}

/// The markers that a parser of these notations looks for; where a model's tokenizer has special tokens of these names,
/// they must be kept in the text.
pub fn markers(tool: Option<ToolParser>, reasoning: Option<ReasoningParser>) -> Vec<&'static str> {
    if tool == Some(ToolParser::Openai) || reasoning == Some(ReasoningParser::OpenaiGptoss) {
        return harmony::MARKS.to_vec();
    }
    let think = reasoning.map(|family| tags(family).both());
    let calls = tool.and_then(grammar::of).map(grammar::Grammar::markers);
    think.into_iter().flatten().chain(calls.into_iter().flatten()).collect()
}

fn calls(tool: Option<ToolParser>, request: &Request<'_>) -> Option<Calls> {
    let (grammar, name) = match request.choice {
        ToolChoice::None => return None,
        ToolChoice::Auto => (grammar::of(tool?)?, None),
        ToolChoice::Required => (&REQUIRED, None),
        ToolChoice::Named(name) => (&NAMED, Some(name.to_owned())),
    };
    Some(Calls::new(grammar, Arc::new(Schemas::new(request.tools)), name))
}

/// Formats of tags within one text.
#[derive(Debug)]
struct Tagged {
    think: Option<Think>,
    calls: Option<Calls>,
    sink: Sink,
}

impl Tagged {
    fn rest(&mut self, text: &str) {
        match &mut self.calls {
            Some(calls) => calls.push(text, &mut self.sink),
            None => self.sink.plain(text),
        }
    }

    fn split(&mut self, split: &Split) {
        self.sink.reasoning(&split.reasoning);
        self.rest(&split.rest);
    }
}

impl StreamParser for Tagged {
    fn push(&mut self, text_delta: &str) -> Vec<Event> {
        match self.think.as_mut().map(|think| think.push(text_delta)) {
            Some(split) => self.split(&split),
            None => self.rest(text_delta),
        }
        self.sink.take()
    }

    fn finish(&mut self) -> Vec<Event> {
        if let Some(split) = self.think.as_mut().map(Think::finish) {
            self.split(&split);
        }
        if let Some(calls) = &mut self.calls {
            calls.finish(&mut self.sink);
        }
        self.sink.finish();
        self.sink.take()
    }
}

/// Harmony's messages.
#[derive(Debug)]
struct Messages {
    harmony: Harmony,
    sink: Sink,
}

impl StreamParser for Messages {
    fn push(&mut self, text_delta: &str) -> Vec<Event> {
        self.harmony.push(text_delta, &mut self.sink);
        self.sink.take()
    }

    fn finish(&mut self) -> Vec<Event> {
        self.harmony.finish(&mut self.sink);
        self.sink.finish();
        self.sink.take()
    }
}

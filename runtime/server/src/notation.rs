//! How the served model writes reasoning and tool calls, and what reads its answers accordingly.
//!
//! Invariants: where an answer is read, the special tokens that its markup consists of stay in its text, and all others
//! leave it as the request says.

use crate::{
    parsers::{self, StreamParser, markers},
    reader::Reader,
    tools::{Choice, Tools},
};
use rvllm_artifact::parsers::Parsers;
use rvllm_engine::{SamplingParams, Tokenizer};
use std::sync::Arc;

/// How a model's answers are read.
#[derive(Clone, Debug, Default)]
pub struct Notation {
    parsers: Parsers,
    /// Special tokens of the markup of reasoning and calls.
    markup: Arc<[u32]>,
    /// Of reasoning alone.
    reasoning_markup: Arc<[u32]>,
}

impl Notation {
    /// What reads answers in these notations, of a model with this tokenizer.
    pub fn new(parsers: Parsers, tokenizer: Option<&Tokenizer>) -> Notation {
        let special = |t: &Tokenizer, mark: &str| t.token_to_id(mark).filter(|id| t.is_special(*id));
        let of = |parsers: Parsers| {
            let marks = markers(parsers.tool_call, parsers.reasoning);
            let mut ids: Vec<u32> = tokenizer.iter().flat_map(|t| marks.iter().filter_map(|m| special(t, m))).collect();
            ids.sort_unstable();
            ids.dedup();
            ids.into()
        };
        Notation { parsers, markup: of(parsers), reasoning_markup: of(Parsers { tool_call: None, ..parsers }) }
    }

    /// The parsers that it reads with.
    pub fn parsers(&self) -> Parsers {
        self.parsers
    }

    /// Keeps in the text of answers what reading them needs.
    pub fn keep_markup(&self, tools: Option<&Tools>, params: &mut SamplingParams) {
        let calls = tools.is_some_and(|t| t.choice != Choice::None);
        params.kept_special_tokens = if calls { self.markup.clone() } else { self.reasoning_markup.clone() };
    }

    /// What reads one answer to `prompt`. `id_seed` must differ between answers; `show_reasoning`: the client wants it.
    pub fn reader(&self, tools: Option<&Tools>, prompt: &str, id_seed: u64, show_reasoning: bool) -> Reader {
        let Some(parser) = self.parser(tools, prompt, id_seed) else { return Reader::of_content() };
        let reader = Reader::new(parser, self.parsers.reasoning.is_some()).show_reasoning(show_reasoning);
        reader.first_call_only(tools.is_some_and(|t| !t.parallel))
    }

    fn parser(&self, tools: Option<&Tools>, prompt: &str, id_seed: u64) -> Option<Box<dyn StreamParser>> {
        let Parsers { tool_call, reasoning } = self.parsers;
        let choice = tools.map_or(&Choice::None, |t| &t.choice);
        if reasoning.is_none() && *choice == Choice::None {
            return None;
        }
        let list = tools.map_or(&[][..], |t| &t.list);
        let request = parsers::Request { prompt, tools: list, choice: choice.of_parser(), id_seed };
        Some(parsers::parser(tool_call.filter(|_| *choice != Choice::None), reasoning, &request))
    }
}

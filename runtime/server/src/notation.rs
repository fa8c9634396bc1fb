//! How the served model writes reasoning and tool calls, and what reads its answers accordingly.
//!
//! Invariants: where an answer is read, the special tokens that its markup consists of stay in its text, and all others
//! leave it as the request says.

use crate::{
    api::ApiError,
    call_form,
    parsers::{self, StreamParser, ToolChoice, markers},
    reader::Reader,
    tools::{Choice, Tools},
};
use rvllm_artifact::parsers::Parsers;
use rvllm_engine::{SamplingParams, StructuredOutputs, Tokenizer, TokenizerError, thinking::Thinking};
use std::sync::Arc;

/// How a model's answers are read.
#[derive(Clone, Debug, Default)]
pub struct Notation {
    parsers: Parsers,
    /// Special tokens of the markup of reasoning and calls.
    markup: Arc<[u32]>,
    /// Of reasoning alone.
    reasoning_markup: Arc<[u32]>,
    /// A model that must call is held to its own notation.
    own: bool,
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
        let own = tokenizer.is_some_and(|t| call_form::is_own(parsers, t));
        Notation { parsers, markup: of(parsers), reasoning_markup: of(Parsers { tool_call: None, ..parsers }), own }
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

    /// How the model marks what it thinks, where that is known.
    ///
    /// # Errors
    /// The tokenizer refuses the marks.
    pub fn thinking(&self, tokenizer: &Tokenizer) -> Result<Option<Arc<Thinking>>, TokenizerError> {
        let Some(family) = self.parsers.reasoning else { return Ok(None) };
        let ([open, close], implicit) = parsers::thinking(family);
        let (open, close) = (tokenizer.encode(open, false)?, tokenizer.encode(close, false)?);
        Ok(Some(Arc::new(Thinking { open, close, implicit })))
    }

    /// The form that answers to `prompt` must have: `asked` for by the request, behind what is thought; else the one that
    /// its tools ask for.
    ///
    /// # Errors
    /// Both are asked for, or what the tools ask for cannot be followed.
    pub fn form(
        &self,
        asked: Option<StructuredOutputs>,
        tools: Option<&Tools>,
        prompt: &str,
        tokenizer: &Tokenizer,
    ) -> Result<Option<StructuredOutputs>, ApiError> {
        let forced = tools.is_some_and(|t| t.choice.is_forced());
        match asked {
            Some(form) if forced => {
                let name = form.param.unwrap_or("structured_outputs");
                Err(ApiError::field(name, format!("{name} and tool_choice ask for different forms of the answer")))
            }
            Some(form) => Ok(Some(StructuredOutputs { after: self.after_reasoning(prompt, tokenizer), ..form })),
            None => tools.map_or(Ok(None), |t| call_form::form(self.parsers, tokenizer, t, prompt)),
        }
    }

    /// The token behind which the answer proper begins, where `prompt` leaves reasoning open.
    fn after_reasoning(&self, prompt: &str, tokenizer: &Tokenizer) -> Vec<u32> {
        let tags = self.parsers.reasoning.and_then(|family| parsers::open_reasoning(family, prompt));
        tags.and_then(|close| tokenizer.token_to_id(close)).into_iter().collect()
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
        let choice = if choice.is_forced() && self.own { ToolChoice::Auto } else { choice.of_parser() };
        let request = parsers::Request { prompt, tools: list, choice, id_seed };
        Some(parsers::parser(tool_call.filter(|_| choice != ToolChoice::None), reasoning, &request))
    }
}

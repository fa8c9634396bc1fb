//! `/v1/chat/completions`: from a request to a job, and from outputs to messages.

use crate::{
    answer::{Extras, Head, Writer, finish_words, finite, likeliest, prompt_logprobs, token_text},
    api::{
        ApiError,
        chat::{
            AnswerDelta, AnswerMessage, ChatChoice, ChatCompletion, ChatFields, ChatLogprobs, ChatPosition,
            ChatRequest, ChatToken, ReasoningEffort,
        },
        completion::{CompletionTokensDetails, Usage},
    },
    app::App,
    conversation::Turns,
    engine_loop::Job,
    prompt::{self, Asked, Fits, Prompt},
    reader::{self, Parts, Reader},
    tools::{Choice, Tools},
};
use rvllm_engine::{
    Finish, FinishReason, Logprob, Logprobs, Output, SamplingParams, SequenceOutput, StructuredOutputs,
};
use serde_json::Value;
use std::collections::BTreeMap;

/// Reads a request: what the engine does, and what becomes of it.
///
/// # Errors
/// It cannot be honoured.
pub async fn prepare(app: &App, request: ChatRequest, head: Head) -> Result<(Job, ChatWriter), ApiError> {
    let ChatRequest { mut conversation, own, common, sampling, form } = request;
    let mut params = sampling.over(&app.served().defaults)?;
    app.check_n(params.n)?;
    check(app, &own, &params)?;
    let asked = asked(&own)?;
    params.max_tokens = app.max_tokens(asked, params.max_tokens)?;
    params.logprobs = own.logprobs.unwrap_or(false).then(|| own.top_logprobs.unwrap_or(0));
    let tools = Tools::of(conversation.tools.take(), &own)?;
    check_tools(app, tools.as_ref())?;
    let mut turns = Turns::of(conversation)?;
    set_variables(app, &mut turns, own.reasoning_effort);
    turns.tools = shown(app, tools.as_ref());
    let echo = common.echo.unwrap_or(false).then(|| turns.last_answer().unwrap_or_default().to_string());
    let encoder = app.served().encoder.clone();
    let fits = Fits::of("messages", &app.served().limits, common.truncate_prompt_tokens);
    let mut prompt = prompt::beside(turns.weight(), move || encoder.encode_turns(&turns, fits)).await?;
    let side = common.truncation_side.unwrap_or_default();
    prompt::truncate(&mut prompt.token_ids, common.truncate_prompt_tokens, side, &app.served().limits);
    prompt::check_length(&prompt.token_ids, asked, &app.served().limits)?;
    params.truncate_prompt_tokens = common.truncate_prompt_tokens;
    let top_logprobs = params.logprobs.map(|n| usize::try_from(n).unwrap_or(usize::MAX));
    let notation = &app.served().notation;
    params.structured_outputs = set_form(app, form.form()?.or(params.structured_outputs), tools.as_ref(), &prompt)?;
    notation.keep_markup(tools.as_ref(), &mut params);
    app.served().tell_thinking(&mut params)?;
    let (text, show) = (prompt.text.as_deref().unwrap_or_default(), own.include_reasoning.unwrap_or(true));
    let reader = |_| notation.reader(tools.as_ref(), text, app.call_seed(), show);
    let readers = (0..params.n).map(reader).collect();
    let extras = app.extras(&common, &params, vec![prompt]);
    let role = app.config().response_role.clone();
    let job = Job { prompts: extras.prompts.iter().map(|p| p.token_ids.clone()).collect(), params };
    let (echo, calls) = (echo.filter(|e| !e.is_empty()), CallWords::of(tools.as_ref()));
    Ok((job, ChatWriter { head, extras, role, readers, whole: BTreeMap::new(), calls, echo, top_logprobs }))
}

/// Refuses tools that the model has no way to call.
fn check_tools(app: &App, tools: Option<&Tools>) -> Result<(), ApiError> {
    let Some(tools) = tools else { return Ok(()) };
    let known = app.served().notation.parsers().tool_call.is_some();
    match &tools.choice {
        Choice::None => Ok(()),
        Choice::Auto if known => Ok(()),
        Choice::Auto => Err(ApiError::field(
            "tools",
            "the model's chat template shows no way of calling tools · help: start the server with --tool-call-parser, \
             or set tool_choice to \"required\", to a function, or to \"none\"",
        )),
        // The answer's form needs no notation of the model's own.
        Choice::Required | Choice::Named(_) => Ok(()),
    }
}

/// The form of answers that the request asks for, or its tools.
fn set_form(
    app: &App,
    asked: Option<StructuredOutputs>,
    tools: Option<&Tools>,
    prompt: &Prompt,
) -> Result<Option<StructuredOutputs>, ApiError> {
    let served = app.served();
    if asked.is_none() && tools.is_none() {
        return Ok(None);
    }
    let text = prompt.text.as_deref().unwrap_or_default();
    served.notation.form(asked, tools, text, served.encoder.tokenizer()?)
}

/// Tools as the template shows them.
fn shown(app: &App, tools: Option<&Tools>) -> Vec<Value> {
    let hidden = |t: &&Tools| t.choice == Choice::None && app.config().exclude_tools_when_none;
    tools.filter(|t| !hidden(t)).map(|t| t.list.clone()).unwrap_or_default()
}

/// The template's variables: the request's own, those that follow from its fields, the server's.
fn set_variables(app: &App, turns: &mut Turns, effort: Option<ReasoningEffort>) {
    let variables = &mut turns.variables;
    if let Some(effort) = effort {
        let word = serde_json::to_value(effort).unwrap_or_default();
        variables.entry("reasoning_effort").or_insert(word);
        if effort == ReasoningEffort::None {
            variables.entry("enable_thinking").or_insert(false.into());
            variables.entry("thinking").or_insert(false.into());
        }
    }
    for (name, value) in &app.config().chat_template_kwargs {
        variables.entry(name.as_str()).or_insert(value.clone());
    }
}

/// The answer's length, by the name that the request gives it.
fn asked(own: &ChatFields) -> Result<Asked, ApiError> {
    let field = if own.max_completion_tokens.is_some() { "max_completion_tokens" } else { "max_tokens" };
    let tokens = own.max_completion_tokens.or(own.max_tokens);
    match tokens {
        Some(0) => Err(ApiError::field(field, format!("{field} is 0, but must be at least 1"))),
        _ => Ok(Asked { field, tokens }),
    }
}

fn check(app: &App, own: &ChatFields, params: &SamplingParams) -> Result<(), ApiError> {
    app.check_alternatives("prompt_logprobs", params.prompt_logprobs)?;
    match own.top_logprobs {
        Some(n) if n != 0 && !own.logprobs.unwrap_or(false) => {
            Err(ApiError::field("top_logprobs", "top_logprobs needs logprobs to be true"))
        }
        Some(n) if n < -1 => {
            Err(ApiError::field("top_logprobs", format!("top_logprobs is {n}, but must be at least 0, or -1 for all")))
        }
        all => app.check_alternatives("top_logprobs", all),
    }
}

/// How answers say that they have called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CallWords {
    /// `tool_calls`.
    Tools,
    /// `tool_calls`, one of them forced: the answer ends as any other.
    Named,
    /// `function_call`.
    Legacy,
}

impl CallWords {
    fn of(tools: Option<&Tools>) -> CallWords {
        match tools {
            Some(t) if t.legacy => CallWords::Legacy,
            Some(t) if matches!(t.choice, Choice::Named(_)) => CallWords::Named,
            _ => CallWords::Tools,
        }
    }

    /// Why an answer with calls has ended.
    fn finish_reason(self) -> &'static str {
        match self {
            CallWords::Tools => "tool_calls",
            CallWords::Named => "stop",
            CallWords::Legacy => "function_call",
        }
    }
}

/// Writes chat completions.
pub struct ChatWriter {
    head: Head,
    extras: Extras,
    role: String,
    /// One an answer.
    readers: Vec<Reader>,
    /// Of answers that come at once: what was read so far.
    whole: BTreeMap<u32, Parts>,
    calls: CallWords,
    /// What stands before each answer.
    echo: Option<String>,
    /// Alternatives a token, where log-probabilities were asked for.
    top_logprobs: Option<usize>,
}

impl ChatWriter {
    fn completion(&self, object: &'static str, choices: Vec<ChatChoice>, usage: Option<Usage>) -> ChatCompletion {
        let Head { id, created, model, fingerprint } = self.head.clone();
        ChatCompletion {
            id,
            object,
            created,
            model,
            choices,
            system_fingerprint: fingerprint,
            usage,
            prompt_logprobs: None,
            prompt_token_ids: None,
            prompt_text: None,
        }
    }

    fn chunk(&self, choice: ChatChoice) -> ChatCompletion {
        self.completion("chat.completion.chunk", vec![choice], None)
    }

    fn choice(&self, added: SequenceOutput, message: Option<AnswerMessage>, delta: Option<AnswerDelta>) -> ChatChoice {
        let (finish_reason, stop_reason) = finish_words(added.finish.as_ref());
        let called = self.readers.get(added.index as usize).is_some_and(|r| r.num_calls() > 0);
        let stopped = matches!(added.finish, Some(Finish { reason: FinishReason::Stop, .. }));
        ChatChoice {
            index: added.index,
            message,
            delta,
            logprobs: self.logprobs(&added.logprobs),
            finish_reason: if called && stopped { Some(self.calls.finish_reason()) } else { finish_reason },
            stop_reason,
            token_ids: self.extras.token_ids.then_some(added.token_ids),
        }
    }

    fn read(&mut self, added: &SequenceOutput) -> Parts {
        match self.readers.get_mut(added.index as usize) {
            Some(reader) => reader.read(&added.text, added.token_ids.len(), added.finish.is_some()),
            None => Parts { content: added.text.clone(), ..Parts::default() },
        }
    }

    fn delta(&self, parts: Parts) -> AnswerDelta {
        let Parts { content, reasoning, calls } = parts;
        let some = |text: String| Some(text).filter(|t| !t.is_empty());
        let reasoning = some(reasoning);
        let mut delta = AnswerDelta {
            content: some(content),
            reasoning_content: reasoning.clone(),
            reasoning,
            ..AnswerDelta::default()
        };
        if self.calls == CallWords::Legacy {
            delta.function_call = calls.into_iter().next().map(|call| call.function);
        } else {
            delta.tool_calls = Some(calls).filter(|c| !c.is_empty());
        }
        delta
    }

    fn message(&self, parts: Parts) -> AnswerMessage {
        let Parts { content, reasoning, calls } = parts;
        let reasoning = Some(reasoning).filter(|t| !t.is_empty());
        let content = self.echo.clone().unwrap_or_default() + &content;
        let bare = content.is_empty() && (reasoning.is_some() || !calls.is_empty());
        let mut message = AnswerMessage {
            role: self.role.clone(),
            content: Some(content).filter(|_| !bare),
            reasoning_content: reasoning.clone(),
            reasoning,
            ..AnswerMessage::default()
        };
        let calls = reader::whole(calls);
        if self.calls == CallWords::Legacy {
            message.function_call = calls.into_iter().next().map(|call| call.function);
        } else {
            message.tool_calls = Some(calls).filter(|c| !c.is_empty());
        }
        message
    }

    fn logprobs(&self, positions: &[Logprobs]) -> Option<ChatLogprobs> {
        let count = self.top_logprobs?;
        let token = |l: &Logprob| {
            let token = token_text(l, self.extras.tokens_as_ids);
            let bytes = token.clone().into_bytes();
            ChatToken { token, logprob: finite(l.logprob), bytes }
        };
        let position = |all: &Logprobs| {
            let top_logprobs = likeliest(all, count, &self.extras.named).into_iter().map(token).collect();
            Some(ChatPosition { token: token(all.first()?), top_logprobs })
        };
        Some(ChatLogprobs { content: positions.iter().filter_map(position).collect() })
    }

    fn add_prompt(&self, answer: &mut ChatCompletion, positions: Option<&[Option<Logprobs>]>) {
        let Some(prompt) = self.extras.prompts.first() else { return };
        answer.prompt_logprobs = positions.filter(|_| self.extras.prompt_logprobs).map(prompt_logprobs);
        answer.prompt_token_ids = self.extras.token_ids.then(|| prompt.token_ids.clone());
        answer.prompt_text = prompt.text.clone().filter(|_| self.extras.prompt_text);
    }
}

fn nothing_of(index: u32) -> SequenceOutput {
    SequenceOutput { index, token_ids: vec![], text: String::new(), logprobs: vec![], finish: None }
}

impl Writer for ChatWriter {
    type Answer = ChatCompletion;

    fn open(&self) -> Vec<ChatCompletion> {
        let first = |index| {
            let content = self.echo.clone().unwrap_or_default();
            let delta = AnswerDelta { role: Some(self.role.clone()), content: Some(content), ..AnswerDelta::default() };
            let choice = self.choice(nothing_of(index), None, Some(delta));
            ChatChoice { logprobs: None, token_ids: None, ..choice }
        };
        let mut pieces: Vec<ChatCompletion> =
            (0..self.readers.len() as u32).map(|index| self.chunk(first(index))).collect();
        if let Some(piece) = pieces.first_mut() {
            self.add_prompt(piece, None);
        }
        pieces
    }

    fn pieces(&mut self, _: usize, mut output: Output) -> Result<Vec<ChatCompletion>, ApiError> {
        let mut positions = output.prompt_logprobs.take();
        let mut pieces = vec![];
        for added in output.sequences {
            let parts = self.read(&added);
            let silent = parts.is_empty() && added.finish.is_none() && positions.is_none();
            if silent && self.top_logprobs.is_none() && !self.extras.token_ids {
                continue;
            }
            let delta = self.delta(parts);
            let mut piece = self.chunk(self.choice(added, None, Some(delta)));
            let shown = positions.take().filter(|_| self.extras.prompt_logprobs);
            piece.prompt_logprobs = shown.map(|p| prompt_logprobs(&p));
            pieces.push(piece);
        }
        Ok(pieces)
    }

    fn see(&mut self, output: &Output) {
        for added in &output.sequences {
            let parts = self.read(added);
            self.whole.entry(added.index).or_default().extend(parts);
        }
    }

    fn detailed(&self, usage: Usage) -> Usage {
        let counted = self.readers.iter().any(Reader::counts_reasoning);
        let reasoning_tokens = self.readers.iter().map(Reader::reasoning_tokens).sum();
        let details = counted.then_some(CompletionTokensDetails { reasoning_tokens });
        Usage { completion_tokens_details: details, ..usage }
    }

    fn whole(&mut self, outputs: Vec<Output>, usage: Usage) -> Result<ChatCompletion, ApiError> {
        let (mut choices, mut positions) = (vec![], None);
        for output in outputs {
            positions = positions.or(output.prompt_logprobs);
            for added in output.sequences {
                let parts = self.whole.remove(&added.index).unwrap_or_default();
                let message = self.message(parts);
                choices.push(self.choice(added, Some(message), None));
            }
        }
        let mut answer = self.completion("chat.completion", choices, Some(usage));
        self.add_prompt(&mut answer, positions.as_deref());
        Ok(answer)
    }

    fn last(&self, usage: Usage) -> ChatCompletion {
        self.completion("chat.completion.chunk", vec![], Some(usage))
    }

    fn set_usage(piece: &mut ChatCompletion, usage: Usage) {
        piece.usage = Some(usage);
    }
}

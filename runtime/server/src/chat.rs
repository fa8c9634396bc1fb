//! `/v1/chat/completions`: from a request to a job, and from outputs to messages.

use crate::{
    answer::{Extras, Head, Writer, finish_words, finite, likeliest, prompt_logprobs, token_text},
    api::{
        ApiError,
        chat::{
            AnswerMessage, ChatChoice, ChatCompletion, ChatFields, ChatLogprobs, ChatPosition, ChatRequest, ChatToken,
        },
        completion::Usage,
    },
    app::App,
    conversation::Turns,
    engine_loop::Job,
    prompt,
};
use rvllm_engine::{Logprob, Logprobs, Output, SamplingParams, SequenceOutput};
use serde_json::{Map, Value};

/// Reads a request: what the engine does, and what becomes of it.
///
/// # Errors
/// It cannot be honoured.
pub async fn prepare(app: &App, request: ChatRequest, head: Head) -> Result<(Job, ChatWriter), ApiError> {
    let ChatRequest { conversation, own, common, sampling, form } = request;
    let mut params = sampling.over(&app.served().defaults)?;
    app.check_n(params.n)?;
    check(&own)?;
    let asked = own.max_completion_tokens.or(own.max_tokens);
    set_params(&mut params, &own, asked);
    params.structured_outputs = form.form()?.or(params.structured_outputs);
    let mut turns = Turns::of(conversation)?;
    if let Some(effort) = own.reasoning_effort {
        turns.variables.entry("reasoning_effort").or_insert(effort.into());
    }
    let echo = common.echo.unwrap_or(false).then(|| turns.last_answer().unwrap_or_default().to_string());
    let encoder = app.served().encoder.clone();
    let mut prompt = prompt::beside(turns.weight(), move || encoder.encode_turns(&turns)).await?;
    let side = common.truncation_side.unwrap_or_default();
    prompt::truncate(&mut prompt.token_ids, common.truncate_prompt_tokens, side, &app.served().limits);
    prompt::check_length(&prompt.token_ids, asked, &app.served().limits)?;
    params.truncate_prompt_tokens = common.truncate_prompt_tokens;
    let top_logprobs = params.logprobs.map(|n| n as usize);
    let extras = app.extras(&common, &params, vec![prompt]);
    let role = app.config().response_role.clone();
    let n = params.n;
    let job = Job { prompts: extras.prompts.iter().map(|p| p.token_ids.clone()).collect(), params };
    Ok((job, ChatWriter { head, extras, role, n, echo: echo.filter(|e| !e.is_empty()), top_logprobs }))
}

fn check(own: &ChatFields) -> Result<(), ApiError> {
    if own.tools.as_ref().is_some_and(|t| !t.is_empty()) {
        return Err(ApiError::field("tools", "tools are not supported by this server · help: leave them out"));
    }
    let chosen = own.tool_choice.as_ref().is_none_or(|c| c == "none" || c == "auto");
    if !chosen {
        return Err(ApiError::field(
            "tool_choice",
            "tool_choice must be \"none\" or \"auto\", since there are no tools",
        ));
    }
    match own.top_logprobs {
        Some(n) if n > 0 && !own.logprobs.unwrap_or(false) => {
            Err(ApiError::field("top_logprobs", "top_logprobs needs logprobs to be true"))
        }
        Some(n) if n < 0 => {
            Err(ApiError::field("top_logprobs", format!("top_logprobs is {n}, but must be at least 0")))
        }
        _ => Ok(()),
    }
}

fn set_params(params: &mut SamplingParams, own: &ChatFields, asked: Option<u32>) {
    params.max_tokens = asked.or(params.max_tokens);
    params.logprobs = own.logprobs.unwrap_or(false).then(|| own.top_logprobs.unwrap_or(0));
}

/// Writes chat completions.
pub struct ChatWriter {
    head: Head,
    extras: Extras,
    role: String,
    n: u32,
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

    fn choice(
        &self,
        added: SequenceOutput,
        message: Option<AnswerMessage>,
        delta: Option<AnswerMessage>,
    ) -> ChatChoice {
        let (finish_reason, stop_reason) = finish_words(added.finish.as_ref());
        ChatChoice {
            index: added.index,
            message,
            delta,
            logprobs: self.logprobs(&added.logprobs),
            finish_reason,
            stop_reason,
            token_ids: self.extras.token_ids.then_some(added.token_ids),
        }
    }

    fn logprobs(&self, positions: &[Logprobs]) -> Option<ChatLogprobs> {
        let count = self.top_logprobs?;
        let token = |l: &Logprob| {
            let token = token_text(l, self.extras.tokens_as_ids);
            let bytes = token.clone().into_bytes();
            ChatToken { token, logprob: finite(l.logprob), bytes }
        };
        let position = |all: &Logprobs| {
            let top_logprobs = likeliest(all, count).into_iter().map(token).collect();
            Some(ChatPosition { token: token(all.first()?), top_logprobs })
        };
        Some(ChatLogprobs { content: positions.iter().filter_map(position).collect() })
    }

    fn add_prompt(&self, answer: &mut ChatCompletion, positions: Option<&[Option<Logprobs>]>) {
        let Some(prompt) = self.extras.prompts.first() else { return };
        let shown: Option<Vec<Option<Map<String, Value>>>> = positions.map(prompt_logprobs);
        answer.prompt_logprobs = shown.filter(|_| self.extras.prompt_logprobs);
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
            let delta = AnswerMessage { role: Some(self.role.clone()), content: Some(content) };
            let choice = self.choice(nothing_of(index), None, Some(delta));
            ChatChoice { logprobs: None, token_ids: None, ..choice }
        };
        let mut pieces: Vec<ChatCompletion> = (0..self.n).map(|index| self.chunk(first(index))).collect();
        if let Some(piece) = pieces.first_mut() {
            self.add_prompt(piece, None);
        }
        pieces
    }

    fn pieces(&mut self, _: usize, mut output: Output) -> Result<Vec<ChatCompletion>, ApiError> {
        let mut positions = output.prompt_logprobs.take();
        let mut pieces = vec![];
        for added in output.sequences {
            let silent = added.text.is_empty() && added.finish.is_none() && positions.is_none();
            if silent && self.top_logprobs.is_none() && !self.extras.token_ids {
                continue;
            }
            let content = Some(added.text.clone()).filter(|t| !t.is_empty());
            let mut piece = self.chunk(self.choice(added, None, Some(AnswerMessage { role: None, content })));
            let shown = positions.take().filter(|_| self.extras.prompt_logprobs);
            piece.prompt_logprobs = shown.map(|p| prompt_logprobs(&p));
            pieces.push(piece);
        }
        Ok(pieces)
    }

    fn whole(&mut self, outputs: Vec<Output>, usage: Usage) -> Result<ChatCompletion, ApiError> {
        let (mut choices, mut positions) = (vec![], None);
        for output in outputs {
            positions = positions.or(output.prompt_logprobs);
            for added in output.sequences {
                let content = self.echo.clone().unwrap_or_default() + &added.text;
                let message = AnswerMessage { role: Some(self.role.clone()), content: Some(content) };
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

//! `/v1/completions`: from a request to a job, and from outputs to completions.

use crate::{
    answer::{Extras, Head, Writer, finish_words, finite, prompt_logprobs, token_text},
    api::{
        ApiError,
        completion::{
            Common, Completion, CompletionChoice, CompletionFields, CompletionLogprobs, CompletionRequest, Prompts,
            Usage,
        },
    },
    app::App,
    engine_loop::Job,
    prompt::{self, Asked, Encoder, Fits, Prompt},
};
use rvllm_engine::{Logprob, Logprobs, Output, SamplingParams, SequenceOutput};
use std::sync::Arc;

/// `max_tokens` of a completion that says none.
const MAX_TOKENS: u32 = 16;
/// Most answers of a request, or those of one prompt where more are allowed of that: all are gathered in one body.
const MOST_ANSWERS: u32 = 1024;

/// Reads a request: what the engine does, and what becomes of it.
///
/// # Errors
/// It cannot be honoured.
pub async fn prepare(app: &App, request: CompletionRequest, head: Head) -> Result<(Job, CompletionWriter), ApiError> {
    let CompletionRequest { own, common, sampling, form } = request;
    let echo = common.echo.unwrap_or(false);
    let mut params = sampling.over(&app.served().defaults)?;
    let n = params.n;
    check(app, &own, &common, &params)?;
    let asked = Asked { field: "max_tokens", tokens: own.max_tokens };
    params.max_tokens = app.max_tokens(asked, Some(MAX_TOKENS))?.map(|tokens| tokens.max(1));
    set_params(&mut params, &own, echo);
    params.structured_outputs = form.form()?.or(params.structured_outputs);
    let (logprobs, prompt_only) = (own.logprobs.is_some(), own.max_tokens == Some(0));
    let suffix = own.suffix.filter(|s| !s.is_empty());
    let fits = Fits::of("prompt", &app.served().limits, common.truncate_prompt_tokens);
    let mut prompts = encode(app, own.prompt, suffix, own.add_special_tokens.unwrap_or(true), fits).await?;
    for p in &mut prompts {
        let side = common.truncation_side.unwrap_or_default();
        prompt::truncate(&mut p.token_ids, common.truncate_prompt_tokens, side, &app.served().limits);
        prompt::check_length(&p.token_ids, asked, &app.served().limits)?;
    }
    params.truncate_prompt_tokens = common.truncate_prompt_tokens;
    app.served().tell_thinking(&mut params)?;
    let extras = app.extras(&common, &params, prompts);
    let job = Job { prompts: extras.prompts.iter().map(|p| p.token_ids.clone()).collect(), params };
    let offsets = vec![0; job.prompts.len() * job.params.n as usize];
    let (encoder, beams) = (app.served().encoder.clone(), job.params.use_beam_search);
    Ok((job, CompletionWriter { head, extras, encoder, n, echo, prompt_only, beams, logprobs, offsets }))
}

fn check(app: &App, own: &CompletionFields, common: &Common, params: &SamplingParams) -> Result<(), ApiError> {
    let n = params.n;
    let (best_of, most) = (own.best_of.unwrap_or(n), app.config().max_n);
    app.check_n(n)?;
    app.check_alternatives("logprobs", own.logprobs)?;
    app.check_alternatives("prompt_logprobs", params.prompt_logprobs)?;
    if best_of < n || best_of > most {
        return Err(ApiError::field("best_of", format!("best_of is {best_of}, but must be from n, {n}, to {most}")));
    }
    if best_of > n && params.is_greedy() && !params.use_beam_search {
        let message =
            format!("best_of is {best_of}, but must be {n} when temperature is 0 (greedy answers are all the same)");
        return Err(ApiError::field("best_of", message));
    }
    if best_of > n && common.stream.unwrap_or(false) {
        return Err(ApiError::field("best_of", "best_of cannot be streamed: the best is known when all have ended"));
    }
    if own.max_tokens == Some(0) && !common.echo.unwrap_or(false) {
        return Err(ApiError::field("max_tokens", "max_tokens is 0, but must be at least 1 unless echo is true"));
    }
    let prompts = match &own.prompt {
        Prompts::Texts(all) => all.len(),
        Prompts::TokenIdLists(all) => all.len(),
        Prompts::Text(_) | Prompts::TokenIds(_) => 1,
    };
    if prompts == 0 || prompts > most as usize {
        return Err(ApiError::field("prompt", format!("there are {prompts} prompts, but must be from 1 to {most}")));
    }
    check_answers(prompts, best_of, MOST_ANSWERS.max(most))
}

fn check_answers(prompts: usize, each: u32, most: u32) -> Result<(), ApiError> {
    let all = prompts.saturating_mul(each as usize);
    if all <= most as usize {
        return Ok(());
    }
    let message = format!(
        "{prompts} prompts with {each} answers each are {all} answers, but must be at most {most}; send fewer prompts in a \
         request"
    );
    Err(ApiError::field("prompt", message))
}

fn set_params(params: &mut SamplingParams, own: &CompletionFields, echo: bool) {
    params.logprobs = own.logprobs;
    if echo {
        params.prompt_logprobs = params.prompt_logprobs.or(own.logprobs);
    }
    let best_of = own.best_of.unwrap_or(params.n);
    if best_of > params.n {
        // The best is told by its log-probabilities; beams come with the best first.
        if !params.use_beam_search {
            params.logprobs.get_or_insert(0);
        }
        params.n = best_of;
    }
}

async fn encode(
    app: &App,
    prompts: Prompts,
    suffix: Option<String>,
    add_special_tokens: bool,
    fits: Fits,
) -> Result<Vec<Prompt>, ApiError> {
    let bytes = match &prompts {
        Prompts::Text(text) => text.len(),
        Prompts::Texts(texts) => texts.iter().map(String::len).sum(),
        Prompts::TokenIds(_) | Prompts::TokenIdLists(_) => 0,
    };
    let encoder = app.served().encoder.clone();
    let bytes = bytes + suffix.as_ref().map_or(0, String::len);
    let work = move || match suffix {
        Some(suffix) => encoder.encode_infill(prompts, &suffix, add_special_tokens, fits),
        None => encoder.encode_all(prompts, add_special_tokens, fits),
    };
    prompt::beside(bytes, work).await
}

/// Writes completions.
pub struct CompletionWriter {
    head: Head,
    extras: Extras,
    encoder: Arc<Encoder>,
    /// Answers given of each prompt.
    n: u32,
    echo: bool,
    /// The answer is the prompt alone.
    prompt_only: bool,
    /// Whether the answers are beams.
    beams: bool,
    /// Whether log-probabilities were asked for.
    logprobs: bool,
    /// Of each choice: characters written so far.
    offsets: Vec<usize>,
}

impl CompletionWriter {
    fn completion(&self, choices: Vec<CompletionChoice>, usage: Option<Usage>) -> Completion {
        let Head { id, created, model, fingerprint } = self.head.clone();
        Completion { id, object: "text_completion", created, model, choices, system_fingerprint: fingerprint, usage }
    }

    /// The choice that a sequence's output is about. `positions` are the prompt's, with a sequence's first output.
    fn choice(
        &mut self,
        prompt: usize,
        mut added: SequenceOutput,
        positions: Option<&[Option<Logprobs>]>,
    ) -> Result<CompletionChoice, ApiError> {
        let index = prompt as u32 * self.n + added.index;
        let first = positions.is_some();
        if self.prompt_only {
            (added.text, added.token_ids, added.logprobs) = (String::new(), vec![], vec![]);
        }
        let logprobs = self.logprobs.then(|| self.position_logprobs(prompt, index as usize, &added, positions));
        let mut text = added.text;
        if self.echo && first {
            text = self.prompt_text(prompt)? + &text;
        }
        let (finish_reason, stop_reason) = finish_words(added.finish.as_ref());
        let extras = &self.extras;
        let given = &extras.prompts[prompt];
        let shown = positions.filter(|p| extras.prompt_logprobs && !p.is_empty());
        Ok(CompletionChoice {
            index,
            text,
            logprobs: logprobs.transpose()?,
            finish_reason: finish_reason.map(|r| if self.prompt_only { "length" } else { r }),
            stop_reason: stop_reason.filter(|_| !self.prompt_only),
            prompt_logprobs: shown.map(prompt_logprobs),
            token_ids: extras.token_ids.then_some(added.token_ids),
            prompt_token_ids: (extras.token_ids && first).then(|| given.token_ids.clone()),
            prompt_text: if extras.prompt_text && first { Some(self.prompt_text(prompt)?) } else { None },
        })
    }

    fn prompt_text(&self, prompt: usize) -> Result<String, ApiError> {
        let Prompt { text, token_ids } = &self.extras.prompts[prompt];
        text.clone().map_or_else(|| self.encoder.decode(token_ids), Ok)
    }

    fn position_logprobs(
        &mut self,
        prompt: usize,
        choice: usize,
        added: &SequenceOutput,
        positions: Option<&[Option<Logprobs>]>,
    ) -> Result<CompletionLogprobs, ApiError> {
        let mut all = CompletionLogprobs::default();
        let as_ids = self.extras.tokens_as_ids;
        for (i, position) in positions.filter(|_| self.echo).into_iter().flatten().enumerate() {
            match position {
                Some(alternatives) => push(&mut all, alternatives, as_ids),
                None => push_bare(&mut all, self.bare_token(prompt, i)?),
            }
        }
        added.logprobs.iter().for_each(|alternatives| push(&mut all, alternatives, as_ids));
        let offset = &mut self.offsets[choice];
        for token in &all.tokens {
            all.text_offset.push(*offset);
            *offset += token.chars().count();
        }
        Ok(all)
    }

    /// A token of the prompt that has no log-probability.
    fn bare_token(&self, prompt: usize, index: usize) -> Result<String, ApiError> {
        let id = self.extras.prompts[prompt].token_ids[index];
        if self.extras.tokens_as_ids { Ok(format!("token_id:{id}")) } else { self.encoder.decode(&[id]) }
    }

    /// The `n` likeliest answers of those computed, in the order of their likelihood per token; of beams the first.
    fn pick(&self, output: &mut Output) {
        if self.beams || output.sequences.len() <= self.n as usize {
            return output.sequences.truncate(self.n as usize);
        }
        output.sequences.sort_by(|a, b| mean_logprob(b).total_cmp(&mean_logprob(a)));
        output.sequences.truncate(self.n as usize);
        (0..).zip(&mut output.sequences).for_each(|(i, s)| s.index = i);
    }
}

fn push(all: &mut CompletionLogprobs, alternatives: &[Logprob], as_ids: bool) {
    let Some(token) = alternatives.first() else { return };
    all.tokens.push(token_text(token, as_ids));
    all.token_logprobs.push(Some(finite(token.logprob)));
    // Of tokens with one text the first is kept, which is the token itself or the likeliest.
    let entries = alternatives.iter().rev().map(|l| (token_text(l, as_ids), finite(l.logprob)));
    all.top_logprobs.push(Some(entries.collect()));
}

fn push_bare(all: &mut CompletionLogprobs, token: String) {
    all.tokens.push(token);
    all.token_logprobs.push(None);
    all.top_logprobs.push(None);
}

fn mean_logprob(sequence: &SequenceOutput) -> f64 {
    let sum: f64 = sequence.logprobs.iter().filter_map(|all| all.first()).map(|l| f64::from(l.logprob)).sum();
    sum / sequence.logprobs.len().max(1) as f64
}

impl Writer for CompletionWriter {
    type Answer = Completion;

    fn open(&self) -> Vec<Completion> {
        vec![]
    }

    fn pieces(&mut self, prompt: usize, output: Output) -> Result<Vec<Completion>, ApiError> {
        let mut pieces = vec![];
        for added in output.sequences {
            // All answers of a prompt begin in the step that ends it.
            let begins = self.extras.begun.insert((prompt, added.index));
            let positions = begins.then(|| output.prompt_logprobs.as_deref().unwrap_or_default());
            let silent = added.text.is_empty() && added.finish.is_none() && !begins;
            if silent && !self.logprobs && !self.extras.token_ids {
                continue;
            }
            let choice = self.choice(prompt, added, positions)?;
            pieces.push(self.completion(vec![choice], None));
        }
        Ok(pieces)
    }

    fn whole(&mut self, outputs: Vec<Output>, mut usage: Usage) -> Result<Completion, ApiError> {
        let mut choices = vec![];
        for (prompt, mut output) in outputs.into_iter().enumerate() {
            self.pick(&mut output);
            let positions = output.prompt_logprobs.unwrap_or_default();
            for added in output.sequences {
                choices.push(self.choice(prompt, added, Some(&positions))?);
            }
        }
        if self.prompt_only {
            usage = Usage { completion_tokens: 0, total_tokens: usage.prompt_tokens, ..usage };
        }
        Ok(self.completion(choices, Some(usage)))
    }

    fn last(&self, usage: Usage) -> Completion {
        self.completion(vec![], Some(usage))
    }

    fn set_usage(piece: &mut Completion, usage: Usage) {
        piece.usage = Some(usage);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_answers_of_a_request_are_bounded_together() {
        assert!(check_answers(8, 128, 1024).is_ok() && check_answers(1024, 1, 1024).is_ok());
        assert!(check_answers(9, 128, 1024).is_err() && check_answers(usize::MAX, 2, 1024).is_err());
    }
}

//! A request as spans: `llm_request` with what vLLM says of one, and its stages where they are asked for.

use crate::{
    span::{Attribute, Caller, Context, Span},
    traces::Exporter,
};
use axum::http::HeaderMap;
use rvllm_engine::{Metrics, SamplingParams};
use std::{sync::Arc, time::Instant};

/// The trace that a request is kept in.
pub struct Trace {
    exporter: Arc<Exporter>,
    context: Context,
}

impl Trace {
    /// The trace that a request's headers name, or a new one; `None` where its caller does not keep it.
    pub fn of(exporter: &Arc<Exporter>, headers: &HeaderMap) -> Option<Trace> {
        let context = match Caller::of(headers) {
            Caller::Unsampled => return None,
            Caller::Sampled(context) => context,
            Caller::None => Context { trace_id: exporter.new_trace_id(), parent: None, state: None },
        };
        Some(Trace { exporter: exporter.clone(), context })
    }
}

/// What a request was, whatever it asked for.
pub struct Request<'a> {
    /// Its name.
    pub id: &'a str,
    /// Its path.
    pub path: &'a str,
    /// What it was answered with; 0 where its client went before.
    pub status: u16,
    /// Tokens of prompts and of answers.
    pub usage: (u64, u64),
    /// When it came.
    pub start: Instant,
}

/// What a request asked for and how the engine fared with it.
#[derive(Debug, Default)]
pub struct Told {
    /// How its answers ended.
    pub finish_reasons: Vec<&'static str>,
    asked: Option<Asked>,
    stages: Option<Stages>,
}

#[derive(Debug)]
struct Asked {
    model: String,
    n: u32,
    max_tokens: Option<u32>,
    temperature: f32,
    top_p: f32,
}

/// When all prompts of a request reached what.
#[derive(Clone, Copy, Debug)]
struct Stages {
    arrival: Instant,
    first_scheduled: Option<Instant>,
    first_token: Option<Instant>,
    finished: Instant,
    cached_tokens: u64,
}

impl Told {
    /// Notes the model and the parameters.
    pub fn note_job(&mut self, model: &str, params: &SamplingParams) {
        let SamplingParams { n, max_tokens, temperature, top_p, .. } = *params;
        self.asked = Some(Asked { model: model.to_string(), n, max_tokens, temperature, top_p });
    }

    /// Notes how the engine fared with a prompt.
    pub fn note_engine(&mut self, m: &Metrics) {
        let Metrics { arrival, first_scheduled, first_token, finished, .. } = *m;
        let cached_tokens = m.num_cached_tokens.into();
        let one = Stages { arrival, first_scheduled, first_token, finished, cached_tokens };
        self.stages = Some(self.stages.map_or(one, |all| all.with(one)));
    }
}

impl Stages {
    /// What began first and ended last.
    fn with(self, other: Stages) -> Stages {
        let first = |a: Option<Instant>, b: Option<Instant>| a.into_iter().chain(b).min();
        Stages {
            arrival: self.arrival.min(other.arrival),
            first_scheduled: first(self.first_scheduled, other.first_scheduled),
            first_token: first(self.first_token, other.first_token),
            finished: self.finished.max(other.finished),
            cached_tokens: self.cached_tokens + other.cached_tokens,
        }
    }

    /// Each stage that was reached.
    fn spans(&self) -> Vec<(&'static str, Instant, Instant)> {
        let after = |from: Option<Instant>| from.unwrap_or(self.finished);
        let queue = ("queue", self.arrival, after(self.first_scheduled));
        let prefill = self.first_scheduled.map(|from| ("prefill", from, after(self.first_token)));
        let decode = self.first_token.map(|from| ("decode", from, self.finished));
        [Some(queue), prefill, decode].into_iter().flatten().collect()
    }

    fn attributes(&self, all: &mut Vec<(&'static str, Attribute)>) {
        let mut add = |name, from: Option<Instant>, to: Option<Instant>| {
            let seconds = from.zip(to).map(|(from, to)| to.saturating_duration_since(from).as_secs_f64());
            all.extend(seconds.map(|s| (name, s.into())));
        };
        let (arrival, finished) = (Some(self.arrival), Some(self.finished));
        add("gen_ai.latency.time_in_queue", arrival, self.first_scheduled);
        add("gen_ai.latency.time_to_first_token", arrival, self.first_token);
        add("gen_ai.latency.e2e", arrival, finished);
        add("gen_ai.latency.time_in_model_prefill", self.first_scheduled, self.first_token);
        add("gen_ai.latency.time_in_model_decode", self.first_token, finished);
        add("gen_ai.latency.time_in_model_inference", self.first_scheduled, finished);
        all.push(("gen_ai.usage.cached_tokens", self.cached_tokens.into()));
    }
}

impl Asked {
    fn attributes(&self, all: &mut Vec<(&'static str, Attribute)>) {
        all.extend([
            ("gen_ai.request.model", self.model.as_str().into()),
            ("gen_ai.response.model", self.model.as_str().into()),
            ("gen_ai.request.n", self.n.into()),
            ("gen_ai.request.temperature", f64::from(self.temperature).into()),
            ("gen_ai.request.top_p", f64::from(self.top_p).into()),
        ]);
        all.extend(self.max_tokens.map(|n| ("gen_ai.request.max_tokens", n.into())));
    }
}

/// Hands a request's spans over.
pub fn send(trace: Trace, request: Request, told: Told) {
    let (exporter, context, end) = (trace.exporter, trace.context, Instant::now());
    let id = exporter.new_id();
    if let Some(stages) = told.stages.filter(|_| exporter.detailed()) {
        for (name, start, end) in stages.spans() {
            let context = Context { parent: Some(id), ..context.clone() };
            let id = exporter.new_id();
            exporter.send(Span { context, id, name, server: false, start, end, attributes: vec![], error: None });
        }
    }
    let error = error(request.status);
    let attributes = attributes(&request, told);
    exporter.send(Span {
        context,
        id,
        name: "llm_request",
        server: true,
        start: request.start,
        end,
        attributes,
        error,
    });
}

/// A server's span has failed where the server has, not where its client was told so.
fn error(status: u16) -> Option<String> {
    match status {
        0 => Some("the client has gone".to_string()),
        500.. => Some(format!("answered {status}")),
        _ => None,
    }
}

fn attributes(request: &Request, told: Told) -> Vec<(&'static str, Attribute)> {
    let operation = if request.path.contains("/chat/") { "chat" } else { "text_completion" };
    let (prompt, completion) = request.usage;
    let mut all = vec![
        ("gen_ai.operation.name", operation.into()),
        ("gen_ai.request.id", request.id.into()),
        ("gen_ai.usage.prompt_tokens", prompt.into()),
        ("gen_ai.usage.input_tokens", prompt.into()),
        ("gen_ai.usage.completion_tokens", completion.into()),
        ("gen_ai.usage.output_tokens", completion.into()),
        ("gen_ai.usage.num_sequences", (told.finish_reasons.len() as u64).into()),
        ("url.path", request.path.into()),
        ("http.response.status_code", u32::from(request.status).into()),
    ];
    let reasons = told.finish_reasons.iter().map(|r| r.to_string()).collect();
    all.push(("gen_ai.response.finish_reasons", Attribute::Texts(reasons)));
    if let Some(asked) = &told.asked {
        asked.attributes(&mut all);
    }
    if let Some(stages) = &told.stages {
        stages.attributes(&mut all);
    }
    all
}

//! What is known of each request when its last byte is written or its client has gone: a line of log, and spans where
//! traces are kept.

use crate::{
    api::completion::Usage,
    request_span::{self, Told, Trace},
};
use rvllm_engine::{Metrics, SamplingParams};
use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

/// What is known of a request so far.
#[derive(Debug, Default)]
struct Known {
    status: u16,
    prompt_tokens: u64,
    completion_tokens: u64,
    finish: Option<&'static str>,
    /// What only traces tell.
    told: Told,
}

/// A request's line of log: written when the last who holds it lets go.
pub struct RequestLog {
    id: String,
    method: &'static str,
    path: String,
    start: Instant,
    trace: Option<Trace>,
    quiet: bool,
    known: Mutex<Known>,
}

impl RequestLog {
    /// A request that has just come, and the trace that it is kept in. A `quiet` one has no line of log.
    pub fn new(id: String, method: &'static str, path: String, trace: Option<Trace>, quiet: bool) -> RequestLog {
        RequestLog { id, method, path, start: Instant::now(), trace, quiet, known: Mutex::default() }
    }

    /// The request's name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Time since the request came.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Notes the status that it is answered with.
    pub fn note_status(&self, status: u16) {
        self.note(|known| known.status = status);
    }

    /// Notes the tokens that it took so far.
    pub fn note_usage(&self, usage: &Usage) {
        self.note(|known| {
            (known.prompt_tokens, known.completion_tokens) = (usage.prompt_tokens, usage.completion_tokens);
        });
    }

    /// Notes how an answer ended.
    pub fn note_finish(&self, reason: &'static str) {
        let traced = self.trace.is_some();
        self.note(|known| {
            known.finish = Some(reason);
            if traced {
                known.told.finish_reasons.push(reason);
            }
        });
    }

    /// Notes the model that it names, and what is asked of it.
    pub fn note_job(&self, model: &str, params: &SamplingParams) {
        if self.trace.is_some() {
            self.note(|known| known.told.note_job(model, params));
        }
    }

    /// Notes how the engine fared with a prompt.
    pub fn note_engine(&self, metrics: &Metrics) {
        if self.trace.is_some() {
            self.note(|known| known.told.note_engine(metrics));
        }
    }

    fn note(&self, change: impl FnOnce(&mut Known)) {
        if let Ok(mut known) = self.known.lock() {
            change(&mut known);
        }
    }
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        let known = self.known.get_mut().map(std::mem::take).unwrap_or_default();
        let (id, method, path) = (&self.id, self.method, &self.path);
        let seconds = self.start.elapsed().as_secs_f64();
        let Known { status, prompt_tokens, completion_tokens, finish, told } = known;
        // A request without a status was dropped before it was answered.
        let finish = finish.unwrap_or(if status == 0 { "disconnect" } else { "-" });
        if !self.quiet {
            tracing::info!(id, method, path, status, seconds, prompt_tokens, completion_tokens, finish, "request");
        }
        if let Some(trace) = self.trace.take() {
            let usage = (prompt_tokens, completion_tokens);
            request_span::send(trace, request_span::Request { id, path, status, usage, start: self.start }, told);
        }
    }
}

//! Answers in pieces: server-sent events, as OpenAI's clients read them.
//!
//! Invariants:
//! - a stream ends with `[DONE]`, after an error too, which is an event of its own;
//! - a reader that is slow gets several steps at once; one that is gone ends the request.

use crate::{
    answer::{Running, Writer},
    api::{ApiError, completion::StreamOptions},
    interval::Interval,
};
use axum::{
    body::{Body, Bytes},
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use futures_util::stream;
use serde::Serialize;
use std::convert::Infallible;

/// Bytes of events that are sent at once, about.
const MOST_AT_ONCE: usize = 1 << 16;

/// Where a stream is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Opening,
    Running,
    Ended,
}

struct Streaming<W> {
    running: Running,
    writer: W,
    options: StreamOptions,
    interval: Interval,
    stage: Stage,
}

/// The answer to a request, in pieces.
pub fn respond<W: Writer>(running: Running, writer: W, options: StreamOptions, interval: Interval) -> Response {
    let streaming = Streaming { running, writer, options, interval, stage: Stage::Opening };
    let frames = stream::unfold(streaming, |mut s| async move {
        let frame = s.frame().await?;
        Some((Ok::<Bytes, Infallible>(frame.into()), s))
    });
    let mut response = Body::from_stream(frames).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies would hold events back.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

impl<W: Writer> Streaming<W> {
    /// The next bytes; `None` after the last.
    async fn frame(&mut self) -> Option<String> {
        let mut frame = String::new();
        while frame.is_empty() {
            match self.stage {
                Stage::Ended => return None,
                Stage::Opening => self.open(&mut frame),
                Stage::Running => self.run(&mut frame).await,
            }
        }
        Some(frame)
    }

    fn open(&mut self, frame: &mut String) {
        self.stage = Stage::Running;
        let pieces = self.writer.open();
        self.write(pieces, frame);
    }

    async fn run(&mut self, frame: &mut String) {
        if let Err(error) = self.advance(frame).await {
            event(&error.body(), frame);
            self.end(frame);
        }
    }

    /// Waits for a step, and takes those that came meanwhile.
    async fn advance(&mut self, frame: &mut String) -> Result<(), ApiError> {
        let mut next = self.running.next().await?;
        while let Some((prompt, output)) = next {
            let pieces = self.writer.pieces(prompt, self.interval.pass(prompt, output))?;
            self.write(pieces, frame);
            if frame.len() >= MOST_AT_ONCE {
                return Ok(());
            }
            next = self.running.try_next().await?;
        }
        if self.running.is_finished() {
            if self.options.include_usage {
                event(&self.writer.last(self.writer.detailed(self.running.usage())), frame);
            }
            self.end(frame);
        }
        Ok(())
    }

    fn end(&mut self, frame: &mut String) {
        frame.push_str("data: [DONE]\n\n");
        self.stage = Stage::Ended;
    }

    fn write(&self, pieces: Vec<W::Answer>, frame: &mut String) {
        for mut piece in pieces {
            if self.options.continuous_usage_stats {
                W::set_usage(&mut piece, self.writer.detailed(self.running.usage()));
            }
            event(&piece, frame);
        }
    }
}

fn event(piece: &impl Serialize, frame: &mut String) {
    // Types of the API have string keys and finite numbers, so each can be written.
    let json = serde_json::to_string(piece).unwrap_or_else(|e| format!("{{\"error\": {:?}}}", e.to_string()));
    frame.push_str("data: ");
    frame.push_str(&json);
    frame.push_str("\n\n");
}

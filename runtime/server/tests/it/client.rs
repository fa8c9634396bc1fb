//! A server in process, and what tests say to it.

use axum::{
    body::Body,
    http::{HeaderMap, Request, StatusCode, header},
    response::Response,
};
use http_body_util::BodyExt;
use rvllm_engine::{Decode, Engine, Forward, Limits, SamplingParams};
use rvllm_server::{App, Config, Served, app, mock, model::ArtifactCard};
use serde_json::Value;
use std::{sync::Arc, thread::JoinHandle, time::Duration};
use tower::ServiceExt;

/// A server.
pub(crate) struct Server(pub(crate) Arc<App>);

/// An answer that is not streamed.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    /// Status and `error.param`.
    pub(crate) fn error(&self) -> (u16, String) {
        let error = &self.json()["error"];
        assert!(error["message"].as_str().is_some_and(|m| !m.is_empty()) && error["type"].is_string(), "{error}");
        assert_eq!(error["code"], self.status.as_u16());
        (self.status.as_u16(), error["param"].as_str().unwrap_or_default().to_string())
    }

    /// The events of a stream; the last is `[DONE]`, which is left out.
    pub(crate) fn events(&self) -> Vec<Value> {
        assert!(self.text.ends_with("data: [DONE]\n\n"), "{}", self.text);
        let events = self.text.split_terminator("\n\n").map(|e| e.strip_prefix("data: ").unwrap());
        events.filter(|e| *e != "[DONE]").map(|e| serde_json::from_str(e).unwrap()).collect()
    }
}

pub(crate) fn limits() -> Limits {
    Limits { max_model_len: 256, num_blocks: 64, max_num_seqs: 4, ..mock::limits() }
}

impl Server {
    pub(crate) fn new(config: Config) -> Server {
        Server::of(config, Box::new(mock::MockForward::new(limits(), Duration::ZERO)))
    }

    /// Steps take a while, so that requests meet.
    pub(crate) fn slow(config: Config) -> Server {
        Server::of(config, Box::new(mock::MockForward::new(limits(), Duration::from_millis(5))))
    }

    pub(crate) fn of(config: Config, forward: Box<dyn Forward>) -> Server {
        Server::with_engine(config, forward).0
    }

    pub(crate) fn with_engine(config: Config, forward: Box<dyn Forward>) -> (Server, JoinHandle<()>) {
        let engine: Engine = mock::engine(forward).unwrap();
        let decoder = engine.tokenizer().unwrap().clone();
        Server::with_decoder(config, engine, decoder)
    }

    pub(crate) fn with_decoder(config: Config, engine: Engine, decoder: Arc<dyn Decode>) -> (Server, JoinHandle<()>) {
        let encoder = mock::encoder(&engine);
        let defaults = SamplingParams { max_tokens: None, temperature: 0.0, ..SamplingParams::default() };
        let names = vec!["mock".to_string(), "alias".to_string()];
        let served = Served::new(&engine, names, "root".into(), encoder, defaults, ArtifactCard::default());
        let (app, thread) = App::start_with_decoder(engine, Some(decoder), served, config).unwrap();
        (Server(app), thread)
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Response {
        app::router(&self.0).oneshot(request).await.unwrap()
    }

    pub(crate) async fn answer(&self, request: Request<Body>) -> Answer {
        let (parts, body) = self.send(request).await.into_parts();
        let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        Answer { status: parts.status, headers: parts.headers, text }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.answer(Request::get(path).body(Body::empty()).unwrap()).await
    }

    pub(crate) async fn post(&self, path: &str, body: impl ToString) -> Answer {
        self.answer(post(path, body)).await
    }

    pub(crate) async fn complete(&self, body: Value) -> Answer {
        self.post("/v1/completions", body).await
    }

    pub(crate) async fn chat(&self, body: Value) -> Answer {
        self.post("/v1/chat/completions", body).await
    }

    /// Waits until the engine has nothing to do.
    pub(crate) async fn idle(&self) {
        for _ in 0..1000 {
            if self.0.engine().num_unfinished() == 0 && self.0.engine().num_running_and_waiting() == (0, 0) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("the engine does not come to rest");
    }
}

pub(crate) fn post(path: &str, body: impl ToString) -> Request<Body> {
    let request = Request::post(path).header(header::CONTENT_TYPE, "application/json");
    request.body(body.to_string().into()).unwrap()
}

/// What the mock says after a prompt of this many tokens.
pub(crate) fn said(prompt: usize, tokens: usize) -> String {
    (prompt..prompt + tokens).map(|p| mock::TEXT.as_bytes()[p % mock::TEXT.len()] as char).collect()
}

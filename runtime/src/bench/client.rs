//! An HTTP client for OpenAI-compatible servers that notes when each token arrives.
//!
//! Invariants: whatever a server sends, a request ends as an [`Outcome`]; bodies that are read whole are bounded.

use super::{sse::Events, tls};
use crate::error::Failure;
use anyhow::{Context, Result};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode, Uri,
    body::{Bytes, Incoming},
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue},
};
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client as Http, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use serde_json::Value;
use std::time::{Duration, Instant};

/// Most bytes of an answer that is read whole.
const MOST_BODY: usize = 64 << 20;
/// Connections that wait for the next request.
const MOST_IDLE: usize = 4096;

/// What became of a streamed request. Times are in seconds.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// When it left, counted from the start of the run.
    pub start: f64,
    /// From leaving to the first token.
    pub ttft: f64,
    /// Between one piece of text and the next.
    pub itls: Vec<f64>,
    /// From leaving to the last token.
    pub latency: f64,
    /// Tokens of the prompt: by the server's count, where it gives one.
    pub prompt_tokens: u64,
    /// Tokens generated: by the server's count, else pieces of text.
    pub output_tokens: u64,
    /// The answer.
    pub text: String,
    /// What went wrong.
    pub error: Option<String>,
}

impl Outcome {
    /// Time per output token after the first; none where there is but one.
    pub fn tpot(&self) -> Option<f64> {
        (self.output_tokens > 1).then(|| (self.latency - self.ttft) / (self.output_tokens - 1) as f64)
    }

    /// When each piece of text arrived, counted from the start of the run.
    pub fn arrivals(&self) -> impl Iterator<Item = f64> {
        let mut at = self.start + self.ttft;
        let later = self.itls.iter().map(move |gap| {
            at += gap;
            at
        });
        std::iter::once(self.start + self.ttft).chain(later)
    }
}

/// A server, and what every request to it brings.
#[derive(Clone)]
pub struct Client {
    http: Http<HttpsConnector<HttpConnector>, Full<Bytes>>,
    base: String,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Client {
    /// A client of the server at `base`, such as `http://127.0.0.1:8000`, with headers and a key for every request. `insecure`: whatever
    /// certificate it shows.
    ///
    /// # Errors
    /// The address is none that it can reach, or a header is malformed.
    pub fn new(base: &str, headers: &[(String, String)], key: Option<&str>, insecure: bool) -> Result<Client> {
        let base = base.trim_end_matches('/').to_string();
        check_base(&base)?;
        let key = key.map(|k| (AUTHORIZATION.to_string(), format!("Bearer {k}")));
        let headers = headers.iter().cloned().chain(key).map(header).collect::<Result<_>>()?;
        let mut http = Http::builder(TokioExecutor::new());
        http.pool_max_idle_per_host(MOST_IDLE).pool_timer(TokioTimer::new());
        Ok(Client { http: http.build(tls::connector(insecure)?), base, headers })
    }

    /// The answer to a request, as JSON.
    ///
    /// # Errors
    /// The server cannot be reached, refuses, or answers with something else.
    pub async fn json(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let response = self.send(method, path, body, None).await?;
        let status = response.status();
        let bytes = whole(response).await?;
        if !status.is_success() {
            anyhow::bail!("{}{path} answered {status}: {}", self.base, told(&bytes));
        }
        serde_json::from_slice(&bytes).with_context(|| format!("{}{path} did not answer with JSON", self.base))
    }

    /// Posts a request whose answer is streamed; `epoch` is the start of the run.
    pub async fn stream(&self, path: &str, body: &Value, id: Option<&str>, epoch: Instant) -> Outcome {
        let start = Instant::now();
        let mut reading = Reading { start, last: start, outcome: Outcome::default(), counted: None };
        reading.outcome.start = (start - epoch).as_secs_f64();
        if let Err(error) = self.read_stream(path, body, id, &mut reading).await {
            reading.outcome.error = Some(crate::error::message(&error));
        }
        reading.finish()
    }

    async fn read_stream(&self, path: &str, body: &Value, id: Option<&str>, reading: &mut Reading) -> Result<()> {
        let response = self.send(Method::POST, path, Some(body), id).await?;
        let status = response.status();
        if status != StatusCode::OK {
            anyhow::bail!("{status}: {}", told(&whole(response).await?));
        }
        let (mut events, mut body) = (Events::default(), response.into_body());
        while let Some(frame) = body.frame().await {
            let frame = frame.context("the stream broke off")?;
            let Some(bytes) = frame.data_ref() else { continue };
            let now = Instant::now();
            for data in events.push(bytes)? {
                reading.take(&data, now)?;
            }
        }
        anyhow::ensure!(reading.outcome.output_tokens > 0 || reading.counted.is_some(), "the stream held no token");
        Ok(())
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        id: Option<&str>,
    ) -> Result<Response<Incoming>> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        if let Some(id) = id {
            request = request.header("x-request-id", id);
        }
        let body = body.map(|b| Bytes::from(b.to_string()));
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(body.unwrap_or_default())).context("the request is malformed")?;
        self.http.request(request).await.with_context(|| format!("cannot reach {}", self.base))
    }

    /// Waits until the server answers at all.
    ///
    /// # Errors
    /// It does not in this time.
    pub async fn wait(&self, patience: Duration) -> Result<()> {
        let start = Instant::now();
        loop {
            let refused = match self.send(Method::GET, "/v1/models", None, None).await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            if start.elapsed() >= patience {
                let help = "start it, or name it with --base-url, or --host and --port";
                return Err(Failure::new(crate::error::message(&refused)).help(help).into());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

fn check_base(base: &str) -> Result<(), Failure> {
    let uri: Option<Uri> = base.parse().ok();
    match uri.as_ref().and_then(Uri::scheme_str) {
        Some("http" | "https") => Ok(()),
        _ => Err(Failure::usage(format!("`{base}` is no server's address"))
            .help("write http://HOST:PORT or https://HOST:PORT")),
    }
}

fn header((name, value): (String, String)) -> Result<(HeaderName, HeaderValue)> {
    let wrong = || Failure::usage(format!("`{name}={value}` is no HTTP header"));
    let parsed = (name.parse().ok(), HeaderValue::from_str(&value).ok());
    match parsed {
        (Some(name), Some(value)) => Ok((name, value)),
        _ => Err(wrong().into()),
    }
}

async fn whole(response: Response<Incoming>) -> Result<Bytes> {
    let body = Limited::new(response.into_body(), MOST_BODY).collect().await;
    Ok(body.map_err(|e| anyhow::anyhow!("cannot read the answer: {e}"))?.to_bytes())
}

/// The message of an error body, else its beginning.
fn told(bytes: &[u8]) -> String {
    let json: Option<Value> = serde_json::from_slice(bytes).ok();
    let message = json.as_ref().and_then(|v| v["error"]["message"].as_str().or(v["message"].as_str()));
    message.map_or_else(|| String::from_utf8_lossy(&bytes[..bytes.len().min(300)]).into_owned(), str::to_string)
}

/// A stream being read.
struct Reading {
    start: Instant,
    last: Instant,
    outcome: Outcome,
    /// Tokens by the server's count.
    counted: Option<u64>,
}

impl Reading {
    fn take(&mut self, data: &str, now: Instant) -> Result<()> {
        if data == "[DONE]" {
            return Ok(());
        }
        let event: Value = serde_json::from_str(data).context("an event of the stream is no JSON")?;
        if let Some(message) = event["error"]["message"].as_str() {
            anyhow::bail!("{message}");
        }
        let usage = &event["usage"];
        self.counted = usage["completion_tokens"].as_u64().or(self.counted);
        self.outcome.prompt_tokens = usage["prompt_tokens"].as_u64().unwrap_or(self.outcome.prompt_tokens);
        if let Some(choice) = event["choices"].get(0) {
            self.piece(choice, now);
        }
        Ok(())
    }

    /// A piece of text, of reasoning or of a tool call.
    fn piece(&mut self, choice: &Value, now: Instant) {
        let delta = &choice["delta"];
        let texts = [&choice["text"], &delta["content"], &delta["reasoning"], &delta["reasoning_content"]];
        let text = texts.into_iter().find_map(|t| t.as_str().filter(|t| !t.is_empty()));
        let ends = !choice["finish_reason"].is_null();
        if text.is_none() && delta["tool_calls"].is_null() && !ends {
            return;
        }
        let gap = (now - self.last).as_secs_f64();
        match (self.outcome.output_tokens, text) {
            // An end without text is a token only where it is the first.
            (0, _) => self.outcome.ttft = gap,
            (_, None) if ends => return,
            _ => self.outcome.itls.push(gap),
        }
        self.last = now;
        self.outcome.output_tokens += 1;
        self.outcome.text += text.unwrap_or_default();
    }

    fn finish(mut self) -> Outcome {
        self.outcome.latency = (self.last - self.start).as_secs_f64();
        self.outcome.output_tokens = self.counted.unwrap_or(self.outcome.output_tokens);
        self.outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(events: &[&str]) -> Outcome {
        let start = Instant::now();
        let mut reading = Reading { start, last: start, outcome: Outcome::default(), counted: None };
        for (i, event) in events.iter().enumerate() {
            reading.take(event, start + Duration::from_millis(100 * (i as u64 + 1))).unwrap();
        }
        reading.finish()
    }

    #[test]
    fn times_and_counts_of_a_stream() {
        let outcome = read(&[
            r#"{"choices":[{"text":"a","finish_reason":null}]}"#,
            r#"{"choices":[{"text":"b","finish_reason":null}]}"#,
            r#"{"choices":[{"text":"","finish_reason":"length"}]}"#,
            r#"{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}"#,
            "[DONE]",
        ]);
        assert_eq!((outcome.prompt_tokens, outcome.output_tokens, outcome.text.as_str()), (7, 3, "ab"));
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} {b}");
        near(outcome.ttft, 0.1);
        near(outcome.latency, 0.2);
        near(outcome.tpot().unwrap(), 0.05);
        assert_eq!(outcome.itls.len(), 1);
        assert_eq!(outcome.arrivals().count(), 2);
    }

    #[test]
    fn chat_deltas_count_and_roles_do_not() {
        let outcome = read(&[
            r#"{"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#,
            r#"{"choices":[{"delta":{"reasoning":"hm"},"finish_reason":null}]}"#,
            r#"{"choices":[{"delta":{"content":"x"},"finish_reason":"stop"}]}"#,
        ]);
        assert_eq!((outcome.output_tokens, outcome.text.as_str()), (2, "hmx"));
        assert!((outcome.ttft - 0.2).abs() < 1e-9);
    }

    #[test]
    fn addresses_are_checked() {
        let message = |base: &str| Client::new(base, &[], None, false).map(|_| ()).unwrap_err().to_string();
        assert!(Client::new("https://x", &[], None, false).is_ok());
        assert!(message("localhost:8000").contains("no server's address"));
        assert!(Client::new("http://[::1]:8000/", &[("a".into(), "b".into())], Some("key"), false).is_ok());
        assert!(Client::new("http://x", &[("a b".into(), "c".into())], None, false).is_err());
    }
}

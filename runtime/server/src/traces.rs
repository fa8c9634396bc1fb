//! OpenTelemetry traces: a span for each request, sent to a collector as OTLP over HTTP (JSON).
//!
//! Invariants: serving never waits for a collector. The queue is bounded, what does not fit is dropped and counted, and
//! a collector that is slow, gone or hostile costs one thread some time and nothing else.

use crate::span::{self, Clock, Span};
use axum::{
    body::Bytes,
    http::{HeaderName, HeaderValue, Request, header, uri::Scheme},
};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use prometheus::IntCounterVec;
use rvllm_engine::random;
use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};
use tokio::{
    net::TcpStream,
    runtime,
    sync::{
        mpsc::{self, error::TrySendError},
        oneshot,
    },
    time::{Instant, timeout, timeout_at},
};

pub use axum::http::Uri;

/// Spans that wait for a collector.
const QUEUE: usize = 4096;
/// Spans that are sent at once.
const BATCH: usize = 512;
/// Time in which spans come together before they are sent.
const GATHER: Duration = Duration::from_millis(500);
/// Time that a collector has to take them.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of a collector's answer that are read.
const ANSWER: usize = 64 << 10;

/// Where spans go, and what is said with them.
#[derive(Clone, Debug)]
pub struct TraceConfig {
    /// The collector: `http://HOST:PORT`, `/v1/traces` where there is no path.
    pub endpoint: Uri,
    /// What is said of this process: `service.name` and the like.
    pub resource: Vec<(String, String)>,
    /// Headers that the collector asks for.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Whether a request's stages have spans of their own.
    pub detailed: bool,
}

impl TraceConfig {
    /// A collector, and what OpenTelemetry's variables say: `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`,
    /// `OTEL_EXPORTER_OTLP_HEADERS` and `OTEL_EXPORTER_OTLP_TRACES_HEADERS`, as `variable` has them.
    ///
    /// # Errors
    /// A header is none.
    pub fn new(
        endpoint: Uri,
        detailed: bool,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<TraceConfig, String> {
        let mut resource = pairs(&variable("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default());
        let given = |name: &str| resource.iter().any(|(key, _)| key == name);
        match variable("OTEL_SERVICE_NAME") {
            Some(name) => {
                resource.retain(|(key, _)| key != "service.name");
                resource.push(("service.name".to_string(), name));
            }
            None if given("service.name") => {}
            None => resource.push(("service.name".to_string(), "rvllm".to_string())),
        }
        resource.push(("service.version".to_string(), env!("CARGO_PKG_VERSION").to_string()));
        let names = ["OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"];
        let (name, text) = names.iter().find_map(|n| Some((*n, variable(n)?))).unwrap_or_default();
        let headers = pairs(&text).into_iter().map(|(key, value)| {
            let header = key.parse().ok().zip(value.parse().ok());
            header.ok_or_else(|| format!("{name} has `{key}`, which is no header"))
        });
        Ok(TraceConfig { endpoint, resource, headers: headers.collect::<Result<_, _>>()?, detailed })
    }
}

/// `KEY=VALUE`, with commas between them.
fn pairs(text: &str) -> Vec<(String, String)> {
    let pair = |part: &str| part.split_once('=').map(|(k, v)| (k.trim().to_string(), v.trim().to_string()));
    text.split(',').filter_map(pair).collect()
}

/// Reads a collector's address.
///
/// # Errors
/// It is none that spans can be sent to; says which are.
pub fn endpoint(text: &str) -> Result<Uri, String> {
    let help = "write http://HOST:4318/v1/traces, where a collector takes OTLP over HTTP";
    let uri: Uri = text.parse().map_err(|e| format!("`{text}` is no address: {e} · help: {help}"))?;
    if uri.scheme() != Some(&Scheme::HTTP) || uri.authority().is_none_or(|a| a.host().is_empty()) {
        return Err(format!("`{text}` cannot be sent to: neither gRPC nor https is spoken · help: {help}"));
    }
    if uri.path_and_query().is_some_and(|p| p.as_str() != "/") {
        return Ok(uri);
    }
    format!("{}/v1/traces", text.trim_end_matches('/')).parse().map_err(|e| format!("`{text}` is no address: {e}"))
}

enum Message {
    Span(Box<Span>),
    /// Answered when all that came before is sent or dropped.
    Flush(oneshot::Sender<()>),
}

/// The way to the collector.
pub struct Exporter {
    queue: mpsc::Sender<Message>,
    outcomes: IntCounterVec,
    detailed: bool,
    seed: u64,
    num_ids: AtomicU64,
}

impl Exporter {
    /// Starts the thread that sends. It ends with the exporter.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn start(config: TraceConfig, outcomes: IntCounterVec) -> io::Result<Exporter> {
        let (queue, received) = mpsc::channel(QUEUE);
        let detailed = config.detailed;
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let sending = Sending { config, received, outcomes: outcomes.clone(), failing: false };
        thread::Builder::new().name("rvllm-traces".to_string()).spawn(move || runtime.block_on(sending.run()))?;
        Ok(Exporter { queue, outcomes, detailed, seed: random::seed_from_system(), num_ids: AtomicU64::new(0) })
    }

    /// Names a span: never 0.
    pub fn new_id(&self) -> u64 {
        self.word(0).max(1)
    }

    /// Names a trace: never 0.
    pub fn new_trace_id(&self) -> u128 {
        u128::from(self.word(1)) << 64 | u128::from(self.new_id())
    }

    fn word(&self, stream: u64) -> u64 {
        random::word(self.seed, stream, self.num_ids.fetch_add(1, Ordering::Relaxed))
    }

    /// Whether a request's stages have spans of their own.
    pub fn detailed(&self) -> bool {
        self.detailed
    }

    /// Hands a span over, or drops it.
    pub fn send(&self, span: Span) {
        if let Err(TrySendError::Full(_) | TrySendError::Closed(_)) = self.queue.try_send(Message::Span(Box::new(span)))
        {
            self.outcomes.with_label_values(&["dropped"]).inc();
        }
    }

    /// Waits until what was handed over is gone, for as long as `limit`.
    pub async fn flush(&self, limit: Duration) {
        let (done, is_done) = oneshot::channel();
        let flushed = async {
            if self.queue.send(Message::Flush(done)).await.is_ok() {
                // A thread that has ended has nothing left to send.
                let _ = is_done.await;
            }
        };
        // What a collector has not taken by then is lost.
        let _ = timeout(limit, flushed).await;
    }
}

/// The thread that sends.
struct Sending {
    config: TraceConfig,
    received: mpsc::Receiver<Message>,
    outcomes: IntCounterVec,
    /// Whether the last batch could not be sent, so that a log says it once.
    failing: bool,
}

impl Sending {
    async fn run(mut self) {
        while let Some((spans, flushed)) = self.batch().await {
            if !spans.is_empty() {
                self.send(&spans).await;
            }
            // Whoever asked may be gone.
            flushed.map(|done| done.send(()));
        }
    }

    /// Spans that came within a while, and who waits for them to be sent. `None` when there is no exporter any more.
    async fn batch(&mut self) -> Option<(Vec<Span>, Option<oneshot::Sender<()>>)> {
        let (mut spans, mut next) = (vec![], self.received.recv().await?);
        let deadline = Instant::now() + GATHER;
        loop {
            match next {
                Message::Flush(done) => return Some((spans, Some(done))),
                Message::Span(span) => spans.push(*span),
            }
            if spans.len() >= BATCH {
                return Some((spans, None));
            }
            match timeout_at(deadline, self.received.recv()).await {
                Ok(Some(message)) => next = message,
                Ok(None) | Err(_) => return Some((spans, None)),
            }
        }
    }

    async fn send(&mut self, spans: &[Span]) {
        let body = span::export(&self.config.resource, spans, Clock::now()).to_string();
        let sent =
            timeout(PATIENCE, post(&self.config, body)).await.unwrap_or_else(|_| Err("no answer in time".into()));
        let outcome = if sent.is_ok() { "exported" } else { "failed" };
        self.outcomes.with_label_values(&[outcome]).inc_by(spans.len() as u64);
        match (&sent, self.failing) {
            (Err(error), false) => tracing::warn!(endpoint = %self.config.endpoint, error, "traces cannot be sent"),
            (Ok(()), true) => tracing::info!(endpoint = %self.config.endpoint, "traces can be sent again"),
            _ => {}
        }
        self.failing = sent.is_err();
    }
}

async fn post(config: &TraceConfig, body: String) -> Result<(), String> {
    let (host, port) = (config.endpoint.host().unwrap_or_default(), config.endpoint.port_u16().unwrap_or(80));
    let told = |e: &dyn std::fmt::Display| e.to_string();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((host, port)).await.map_err(|e| told(&e))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| told(&e))?;
    let mut request = Request::post(config.endpoint.path_and_query().map_or("/", |p| p.as_str()))
        .header(header::HOST, config.endpoint.authority().map_or("", |a| a.as_str()))
        .header(header::CONTENT_TYPE, "application/json");
    for (name, value) in &config.headers {
        request = request.header(name, value);
    }
    let request = request.body(Full::new(Bytes::from(body))).map_err(|e| told(&e))?;
    let answered = async {
        let response = sender.send_request(request).await.map_err(|e| told(&e))?;
        let status = response.status();
        // Its words are of no use, but a connection ends well when they are read.
        let _ = Limited::new(response.into_body(), ANSWER).collect().await;
        if status.is_success() { Ok(()) } else { Err(format!("the collector answers {status}")) }
    };
    tokio::select! {
        answer = answered => answer,
        Err(error) = connection => Err(told(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_opentelemetrys() {
        let read = |variables: &[(&str, &str)]| {
            let find = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string());
            TraceConfig::new("http://otel/".parse().unwrap(), false, find)
        };
        let version = ("service.version".to_string(), env!("CARGO_PKG_VERSION").to_string());
        let of = |key: &str, value: &str| (key.to_string(), value.to_string());
        assert_eq!(read(&[]).unwrap().resource, [of("service.name", "rvllm"), version.clone()]);
        let attributes = ("OTEL_RESOURCE_ATTRIBUTES", "a=b, service.name = x");
        assert_eq!(read(&[attributes]).unwrap().resource, [of("a", "b"), of("service.name", "x"), version.clone()]);
        let named = read(&[attributes, ("OTEL_SERVICE_NAME", "y")]).unwrap().resource;
        assert_eq!(named, [of("a", "b"), of("service.name", "y"), version]);
        let headers = read(&[("OTEL_EXPORTER_OTLP_HEADERS", "api-key=s=t,b=c")]).unwrap().headers;
        assert_eq!(headers, [("api-key", "s=t"), ("b", "c")].map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap())));
        assert!(read(&[("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "a b=c")]).unwrap_err().contains("TRACES_HEADERS"));
    }

    #[test]
    fn endpoints_are_http_and_have_a_path() {
        for (given, read) in [
            ("http://localhost:4318", "http://localhost:4318/v1/traces"),
            ("http://[::1]:4318/", "http://[::1]:4318/v1/traces"),
            ("http://otel/my/traces", "http://otel/my/traces"),
        ] {
            assert_eq!(endpoint(given).unwrap().to_string(), read);
        }
        for wrong in ["", "localhost:4317", "grpc://localhost:4317", "https://otel:4318", "/v1/traces", "http://"] {
            assert!(endpoint(wrong).unwrap_err().contains("help: write http://"), "{wrong}");
        }
    }
}

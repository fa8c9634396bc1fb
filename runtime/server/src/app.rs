//! What all requests share, and the layers around every route: names, logs, counts, keys.

use crate::{
    answer::Extras,
    api::{ApiError, completion::Common},
    auth::{Keyring, KeysError},
    config::{Config, Cors},
    engine_loop::EngineHandle,
    metrics::Metrics,
    model::Served,
    openapi,
    prompt::{Asked, Prompt},
    request_log::RequestLog,
    request_span::Trace,
    routes,
    traces::Exporter,
};
use axum::{
    Router,
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use rvllm_engine::{Decode, Engine, SamplingParams, random};
use std::{
    collections::HashSet,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
};
use tower::util::MapRequest;
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer};

/// The header that names a request.
const REQUEST_ID: &str = "x-request-id";
/// Routes whose requests go to the engine.
const TRACED: [&str; 3] = ["/v1/completions", "/v1/chat/completions", "/invocations"];
/// Most characters of a request's name.
const MOST_ID: usize = 128;

/// Why an app could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Keys cannot be used.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// Two metrics have one name.
    #[error("metrics cannot be kept: {0}")]
    Metrics(#[from] prometheus::Error),
    /// The system refuses a thread.
    #[error("a thread cannot be started: {0}")]
    Thread(#[from] std::io::Error),
}

/// What all requests share.
pub struct App {
    config: Config,
    served: Served,
    engine: Arc<EngineHandle>,
    metrics: Arc<Metrics>,
    keys: Keyring,
    traces: Option<Arc<Exporter>>,
    seed: u64,
    num_requests: AtomicU64,
    openapi: OnceLock<String>,
}

impl App {
    /// Starts the engine's thread, which ends when the app is gone and all jobs have finished.
    ///
    /// # Errors
    /// The keys cannot be read, two metrics have one name, or the system refuses a thread.
    pub fn start(engine: Engine, served: Served, config: Config) -> Result<(Arc<App>, JoinHandle<()>), StartError> {
        let decoder = engine.tokenizer().map(|t| t.clone() as Arc<dyn Decode>);
        App::start_with_decoder(engine, decoder, served, config)
    }

    /// Starts the engine's thread, and makes text of its tokens with a decoder of the caller's.
    ///
    /// # Errors
    /// See [`App::start`].
    pub fn start_with_decoder(
        engine: Engine,
        decoder: Option<Arc<dyn Decode>>,
        served: Served,
        config: Config,
    ) -> Result<(Arc<App>, JoinHandle<()>), StartError> {
        let (metrics, keys) = (Arc::new(Metrics::new(&served)?), config.keyring()?);
        let (engine, thread) = EngineHandle::start(engine, decoder, &config, metrics.clone())?;
        let traces = match config.traces.clone() {
            Some(to) => Some(Arc::new(Exporter::start(to, metrics.spans()?)?)),
            None => None,
        };
        let seed = random::seed_from_system();
        let app = App {
            config,
            served,
            engine: Arc::new(engine),
            metrics,
            keys,
            traces,
            seed,
            num_requests: AtomicU64::new(0),
            openapi: OnceLock::new(),
        };
        Ok((Arc::new(app), thread))
    }

    /// How the server behaves.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What is served.
    pub fn served(&self) -> &Served {
        &self.served
    }

    /// The way to the engine.
    pub fn engine(&self) -> &Arc<EngineHandle> {
        &self.engine
    }

    /// The keys of guarded routes.
    pub fn keys(&self) -> &Keyring {
        &self.keys
    }

    /// The way to the collector of traces.
    pub fn traces(&self) -> Option<&Exporter> {
        self.traces.as_deref()
    }

    /// The metrics.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The description of the API, as JSON.
    pub fn openapi(&self) -> &str {
        self.openapi.get_or_init(|| openapi::describe(&self.served, &self.config, |path| self.is_open(path)))
    }

    /// The model that a request names, as it names it.
    ///
    /// # Errors
    /// It is not served.
    pub fn model(&self, name: Option<&str>) -> Result<String, ApiError> {
        match name {
            None => Ok(self.served.name().to_string()),
            Some(name) if self.served.names.iter().any(|n| n == name) => Ok(name.to_string()),
            Some(name) => {
                let message = format!("The model `{name}` does not exist.");
                Err(ApiError::new(StatusCode::NOT_FOUND, message).about("model"))
            }
        }
    }

    /// Refuses more answers to a prompt than the server gives.
    ///
    /// # Errors
    /// `n` is over the limit.
    pub fn check_n(&self, n: u32) -> Result<(), ApiError> {
        let most = self.config.max_n;
        if (1..=most).contains(&n) {
            return Ok(());
        }
        Err(ApiError::field("n", format!("n is {n}, but must be from 1 to {most}")))
    }

    /// The tokens of an answer that a request asks for, or `absent` where it does not, within what the server gives.
    ///
    /// # Errors
    /// It asks for more.
    pub fn max_tokens(&self, asked: Asked, absent: Option<u32>) -> Result<Option<u32>, ApiError> {
        let Some(most) = self.config.max_output_tokens else { return Ok(asked.tokens.or(absent)) };
        match asked.tokens {
            Some(tokens) if tokens > most => {
                let field = asked.field;
                Err(ApiError::field(
                    field,
                    format!("{field} is {tokens}, but must be at most {most} (--max-output-tokens)"),
                ))
            }
            Some(tokens) => Ok(Some(tokens)),
            None => Ok(Some(absent.map_or(most, |tokens| tokens.min(most)))),
        }
    }

    /// Refuses more alternatives to a token than the server tells of.
    ///
    /// # Errors
    /// The field's value is over the limit.
    pub fn check_alternatives(&self, field: &str, count: Option<i32>) -> Result<(), ApiError> {
        let (count, most) = (count.unwrap_or(0), self.config.max_logprobs);
        if most == -1 || (0..=most).contains(&count) {
            return Ok(());
        }
        let all =
            if count == -1 { " · help: --max-logprobs -1 lets requests ask for the whole vocabulary" } else { "" };
        Err(ApiError::field(field, format!("{field} is {count}, but must be from 0 to {most} (--max-logprobs){all}")))
    }

    /// What a request's answers have beside their text.
    pub fn extras(&self, common: &Common, params: &SamplingParams, prompts: Vec<Prompt>) -> Extras {
        Extras {
            prompts: prompts.into(),
            tokens_as_ids: common.return_tokens_as_token_ids.unwrap_or(self.config.return_tokens_as_token_ids),
            token_ids: common.return_token_ids.unwrap_or(false),
            prompt_text: common.return_prompt_text.unwrap_or(false),
            prompt_logprobs: params.prompt_logprobs.is_some(),
            named: sorted(&params.logprob_token_ids),
            begun: HashSet::new(),
        }
    }

    /// The request's own name, where it is one, else a new one.
    fn request_id(&self, headers: &HeaderMap) -> String {
        let given = headers.get(REQUEST_ID).and_then(|v| v.to_str().ok()).filter(|id| is_id(id));
        given.map_or_else(|| self.new_id(), str::to_string)
    }

    /// A number unlike all others, for the ids of calls.
    pub fn call_seed(&self) -> u64 {
        random::word(self.seed, 2, self.num_requests.fetch_add(1, Ordering::Relaxed))
    }

    fn new_id(&self) -> String {
        let count = self.num_requests.fetch_add(1, Ordering::Relaxed);
        format!("{:016x}{:016x}", random::word(self.seed, 0, count), random::word(self.seed, 1, count))
    }

    fn is_open(&self, path: &str) -> bool {
        match path {
            "/health" | "/ready" | "/ping" => true,
            "/metrics" => !self.config.guard_metrics,
            _ => false,
        }
    }
}

fn sorted(ids: &[u32]) -> Arc<[u32]> {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids.into()
}

/// Whether a text can name a request: in headers, in logs.
pub fn is_id(text: &str) -> bool {
    (1..=MOST_ID).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

/// All routes, with what guards and watches them.
pub fn router(app: &Arc<App>) -> Router {
    let guarded = routes::all(&app.config)
        .fallback(nowhere)
        .method_not_allowed_fallback(not_so)
        .layer(middleware::from_fn_with_state(app.clone(), guard));
    let shared = match &app.config.cors {
        Some(cors) => guarded.layer(cors_layer(cors)),
        None => guarded,
    };
    let all = shared.layer(middleware::from_fn_with_state(app.clone(), watch)).with_state(app.clone());
    if app.config.root_path.is_empty() {
        return all;
    }
    let root = app.config.root_path.clone();
    Router::new().fallback_service(MapRequest::new(all, move |request| below(&root, request)))
}

/// A request without the path under which a proxy shows the server, where it has it.
fn below<B>(root: &str, mut request: axum::http::Request<B>) -> axum::http::Request<B> {
    let path = request.uri().path_and_query().map(|path| path.as_str()).unwrap_or_default();
    let rest = path.strip_prefix(root).filter(|rest| rest.is_empty() || rest.starts_with(['/', '?']));
    let rest = rest.map(|rest| if rest.starts_with('/') { rest.to_string() } else { format!("/{rest}") });
    if let Some(uri) = rest.and_then(|rest| rest.parse().ok()) {
        *request.uri_mut() = uri;
    }
    request
}

async fn nowhere(request: Request) -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        format!("there is nothing at {} · help: /docs lists what there is", request.uri().path()),
    )
}

async fn not_so(request: Request) -> ApiError {
    let message = format!("{} does not take {}", request.uri().path(), request.method());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message)
}

async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if app.is_open(request.uri().path()) || app.keys.admit(request.headers()) {
        return next.run(request).await;
    }
    let message = "a key is needed · help: send the header `Authorization: Bearer KEY`";
    ApiError::new(StatusCode::UNAUTHORIZED, message).into_response()
}

/// Names the request, counts it, and writes its line of log when it is over.
async fn watch(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let (id, method) = (app.request_id(request.headers()), method_name(request.method()));
    let path = request.uri().path();
    let trace = app.traces.as_ref().filter(|_| TRACED.contains(&path)).and_then(|e| Trace::of(e, request.headers()));
    let quiet = !app.config.access_log || app.config.unlogged.iter().any(|p| p == path);
    let log = Arc::new(RequestLog::new(id, method, path.to_string(), trace, quiet));
    let handler = request.extensions().get::<MatchedPath>().map(|p| p.as_str().to_string());
    request.extensions_mut().insert(log.clone());
    let mut response = next.run(request).await;
    log.note_status(response.status().as_u16());
    app.metrics.note_http(handler.as_deref().unwrap_or("none"), method, response.status().as_u16(), log.elapsed());
    if let Ok(id) = HeaderValue::from_str(log.id()) {
        response.headers_mut().entry(REQUEST_ID).or_insert(id);
    }
    response
}

/// Methods by name: a metric's label must not be the client's choice.
fn method_name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::PATCH => "PATCH",
        _ => "OTHER",
    }
}

fn cors_layer(cors: &Cors) -> CorsLayer {
    // A browser takes no `*` beside credentials: what was asked for is named instead.
    let any = |list: &[String]| list.iter().any(|v| v == "*");
    let origins = match (any(&cors.origins), cors.credentials) {
        (true, true) => AllowOrigin::mirror_request(),
        (true, false) => AllowOrigin::any(),
        (false, _) => AllowOrigin::list(cors.origins.iter().filter_map(|o| HeaderValue::from_str(o).ok())),
    };
    let methods = match (any(&cors.methods), cors.credentials) {
        (true, true) => AllowMethods::mirror_request(),
        (true, false) => AllowMethods::any(),
        (false, _) => AllowMethods::list(cors.methods.iter().filter_map(|m| m.parse::<Method>().ok())),
    };
    let headers = match (any(&cors.headers), cors.credentials) {
        (true, true) => AllowHeaders::mirror_request(),
        (true, false) => AllowHeaders::any(),
        (false, _) => AllowHeaders::list(cors.headers.iter().filter_map(|h| h.parse::<HeaderName>().ok())),
    };
    let exposed = HeaderName::from_static(REQUEST_ID);
    let layer = CorsLayer::new().allow_origin(origins).allow_methods(methods).allow_headers(headers);
    layer.allow_credentials(cors.credentials).expose_headers([exposed])
}

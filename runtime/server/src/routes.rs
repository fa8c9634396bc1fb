//! The routes: what each path answers.

use crate::{
    answer::{Head, Running, Writer},
    api::{
        ApiError, Request,
        bounds::ModelName,
        chat::{ChatCompletion, ChatRequest},
        completion::{Common, Completion, CompletionRequest},
        error::ErrorBody,
        request::{self, Parsed},
        tokens::{
            DetokenizeRequest, DetokenizeResponse, Load, ModelCard, ModelList, ModelPermission, TokenizeRequest,
            TokenizeResponse, Version,
        },
    },
    app::{self, App},
    chat, completions,
    config::Config,
    conversation::Turns,
    engine_loop::Job,
    interval::Interval,
    openapi,
    prompt::{Fits, beside},
    request_log::RequestLog,
    stream,
};
use axum::{
    Extension, Json, Router,
    body::{Body, Bytes},
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;

/// Time that the rest of a body which is too long is read and forgotten, so that its sender hears the answer.
const LINGER: Duration = Duration::from_secs(5);
/// The header with the seconds after which a client wants its request given up.
const REQUEST_TIMEOUT: &str = "x-request-timeout";
/// What a longer time is as good as, in seconds.
const LONGEST_TIMEOUT: f64 = 365.0 * 24.0 * 3600.0;
/// The page at `/`.
const PAGE: &str = include_str!("page.html");

type Shared = State<Arc<App>>;
type Log = Extension<Arc<RequestLog>>;

/// All routes.
pub fn all(config: &Config) -> Router<Arc<App>> {
    let routes = Router::new()
        .route("/", get(page))
        .route("/health", get(health))
        .route("/ping", get(health).post(health))
        .route("/ready", get(ready))
        .route("/version", get(version))
        .route("/load", get(load))
        .route("/metrics", get(metrics))
        .route("/v1/models", get(models))
        .route("/v1/models/{*model}", get(model))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/v1/completions", post(completion))
        .route("/v1/chat/completions", post(chat_completion))
        .route("/invocations", post(invocations));
    let routes = match config.tokenizer_info {
        true => routes.route("/tokenizer_info", get(tokenizer_info)),
        false => routes,
    };
    if !config.docs {
        return routes;
    }
    routes.route("/openapi.json", get(openapi_json)).route("/docs", get(docs_page))
}

async fn page() -> Html<&'static str> {
    Html(PAGE)
}

async fn docs_page() -> Html<&'static str> {
    Html(openapi::PAGE)
}

async fn openapi_json(State(app): Shared) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], app.openapi().to_string()).into_response()
}

/// Whether the process lives and its engine has not failed.
#[utoipa::path(get, path = "/health", responses(
    (status = 200, description = "alive"), (status = 503, description = "the engine has failed", body = ErrorBody)))]
pub async fn health(State(app): Shared) -> Result<(), ApiError> {
    match app.engine().is_alive() {
        true => Ok(()),
        false => Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, app.engine().failure().to_string())),
    }
}

/// Whether the model is loaded and another request would be taken.
#[utoipa::path(get, path = "/ready", responses(
    (status = 200, description = "takes requests"), (status = 503, description = "does not now", body = ErrorBody)))]
pub async fn ready(State(app): Shared) -> Result<(), ApiError> {
    match app.engine().is_ready() {
        true => Ok(()),
        false => Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the server takes no requests now")),
    }
}

/// The server's version.
#[utoipa::path(get, path = "/version", responses((status = 200, body = Version)))]
pub async fn version() -> Json<Version> {
    Json(Version { version: env!("CARGO_PKG_VERSION") })
}

/// How much there is to do.
#[utoipa::path(get, path = "/load", responses((status = 200, body = Load)))]
pub async fn load(State(app): Shared) -> Json<Load> {
    let (running, waiting) = app.engine().num_running_and_waiting();
    Json(Load { server_load: app.engine().num_unfinished(), running, waiting })
}

/// Metrics in Prometheus's text format.
#[utoipa::path(get, path = "/metrics", responses((status = 200, body = String, content_type = "text/plain")))]
pub async fn metrics(State(app): Shared) -> Result<Response, ApiError> {
    let text = app.metrics().text().map_err(|e| ApiError::internal(e.to_string()))?;
    Ok(([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response())
}

/// The models that are served.
#[utoipa::path(get, path = "/v1/models", responses((status = 200, body = ModelList)))]
pub async fn models(State(app): Shared) -> Json<ModelList> {
    Json(ModelList { object: "list", data: app.served().names.iter().map(|name| card(&app, name)).collect() })
}

/// A model that is served.
#[utoipa::path(get, path = "/v1/models/{model}", params(("model" = ModelName, Path, description = "its name")), responses(
    (status = 200, body = ModelCard), (status = 404, description = "it is not served", body = ErrorBody)))]
pub async fn model(State(app): Shared, Path(name): Path<String>) -> Result<Json<ModelCard>, ApiError> {
    Ok(Json(card(&app, &app.model(Some(&name))?)))
}

fn card(app: &App, name: &str) -> ModelCard {
    let served = app.served();
    ModelCard {
        id: name.to_string(),
        object: "model",
        created: served.created,
        owned_by: "rvllm",
        root: served.root.clone(),
        parent: None,
        max_model_len: served.limits.max_model_len,
        permission: vec![permission(name, served.created)],
        artifact: served.artifact.clone(),
    }
}

fn permission(name: &str, created: u64) -> ModelPermission {
    ModelPermission {
        id: format!("modelperm-{name}"),
        object: "model_permission",
        created,
        allow_create_engine: false,
        allow_sampling: true,
        allow_logprobs: true,
        allow_search_indices: false,
        allow_view: true,
        allow_fine_tuning: false,
        organization: "*",
        group: None,
        is_blocking: false,
    }
}

/// The tokens of a text or a conversation.
#[utoipa::path(post, path = "/tokenize", request_body = TokenizeRequest, responses(
    (status = 200, body = TokenizeResponse), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)))]
pub async fn tokenize(State(app): Shared, headers: HeaderMap, body: Body) -> Result<Response, ApiError> {
    let Parsed { request, unknown } = read::<TokenizeRequest>(&app, &headers, body).await?;
    app.model(request.own.model.as_deref())?;
    let encoder = app.served().encoder.clone();
    let TokenizeRequest { own, conversation } = request;
    let turns = conversation.map(Turns::of).transpose()?;
    let bytes = own.prompt.as_ref().map_or(0, String::len) + turns.as_ref().map_or(0, Turns::weight);
    let max_model_len = app.served().limits.max_model_len;
    let answer = beside(bytes, move || {
        let prompt = match turns {
            Some(turns) => encoder.encode_turns(&turns, Fits::default())?,
            None => {
                let special = own.add_special_tokens.unwrap_or(true);
                encoder.encode(own.prompt.unwrap_or_default(), special, Fits::default())?
            }
        };
        let tokenizer = encoder.tokenizer()?;
        let texts = || prompt.token_ids.iter().map(|id| tokenizer.id_to_token(*id).unwrap_or_default()).collect();
        let token_strs = own.return_token_strs.unwrap_or(false).then(texts);
        Ok(TokenizeResponse { count: prompt.token_ids.len(), max_model_len, tokens: prompt.token_ids, token_strs })
    });
    Ok(warned(Json(answer.await?).into_response(), &unknown))
}

/// The text of tokens.
#[utoipa::path(post, path = "/detokenize", request_body = DetokenizeRequest, responses(
    (status = 200, body = DetokenizeResponse), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)))]
pub async fn detokenize(State(app): Shared, headers: HeaderMap, body: Body) -> Result<Response, ApiError> {
    let Parsed { request, unknown } = read::<DetokenizeRequest>(&app, &headers, body).await?;
    app.model(request.model.as_deref())?;
    let vocab_size = app.served().limits.vocab_size;
    if let Some(token) = request.tokens.iter().find(|t| **t >= vocab_size) {
        let message = format!("tokens has {token}, but the vocabulary has {vocab_size} tokens");
        return Err(ApiError::field("tokens", message));
    }
    let encoder = app.served().encoder.clone();
    let prompt = beside(request.tokens.len() * 4, move || encoder.decode(&request.tokens)).await?;
    Ok(warned(Json(DetokenizeResponse { prompt }).into_response(), &unknown))
}

/// Continues prompts.
#[utoipa::path(post, path = "/v1/completions", request_body = CompletionRequest, params(
    ("X-Request-Timeout" = Option<f64>, Header, exclusive_minimum = 0, example = 30.0, description = "seconds after which the request is given up")), responses(
    (status = 200, content((Completion = "application/json"), (String = "text/event-stream"))),
    (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)))]
pub async fn completion(
    State(app): Shared,
    Extension(log): Log,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let Parsed { request, unknown } = read::<CompletionRequest>(&app, &headers, body).await?;
    let (common, head) = (request.common.clone(), head(&app, &request.common, &log, "cmpl")?);
    let (job, writer) = completions::prepare(&app, request, head).await?;
    let until = Until { timeout: request_timeout(&headers)?, log };
    Ok(warned(answer(&app, &common, job, writer, until).await?, &unknown))
}

/// Continues a conversation.
#[utoipa::path(post, path = "/v1/chat/completions", request_body = ChatRequest, params(
    ("X-Request-Timeout" = Option<f64>, Header, exclusive_minimum = 0, example = 30.0, description = "seconds after which the request is given up")), responses(
    (status = 200, content((ChatCompletion = "application/json"), (String = "text/event-stream"))),
    (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)))]
pub async fn chat_completion(
    State(app): Shared,
    Extension(log): Log,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let Parsed { request, unknown } = read::<ChatRequest>(&app, &headers, body).await?;
    let (common, head) = (request.common.clone(), head(&app, &request.common, &log, "chatcmpl")?);
    let (job, writer) = chat::prepare(&app, request, head).await?;
    let until = Until { timeout: request_timeout(&headers)?, log };
    Ok(warned(answer(&app, &common, job, writer, until).await?, &unknown))
}

/// SageMaker's only route: a conversation where the body has one, else prompts.
async fn invocations(state: Shared, log: Log, headers: HeaderMap, body: Body) -> Result<Response, ApiError> {
    #[derive(Deserialize)]
    struct Kind {
        messages: Option<IgnoredAny>,
    }
    let bytes = receive(&state, body).await?;
    let chats = serde_json::from_slice(&bytes).is_ok_and(|kind: Kind| kind.messages.is_some());
    match chats {
        true => chat_completion(state, log, headers, bytes.into()).await,
        false => completion(state, log, headers, bytes.into()).await,
    }
}

/// The tokenizer's configuration, with the chat template that is used.
async fn tokenizer_info(State(app): Shared) -> Json<Value> {
    Json(app.served().encoder.info())
}

fn head(app: &App, common: &Common, log: &RequestLog, kind: &str) -> Result<Head, ApiError> {
    let model = app.model(common.model.as_deref())?;
    let id = common.request_id.as_deref().unwrap_or(log.id());
    if !app::is_id(id) {
        return Err(ApiError::field("request_id", "request_id must have from 1 to 128 visible ASCII characters"));
    }
    if common.stream_options.is_some() && !common.stream.unwrap_or(false) {
        return Err(ApiError::field("stream_options", "stream_options needs stream to be true"));
    }
    let created = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_secs());
    Ok(Head { id: format!("{kind}-{id}"), created, model, fingerprint: app.served().fingerprint.clone() })
}

/// How long a request may take, and what is told of it when it is over.
struct Until {
    timeout: Option<Duration>,
    log: Arc<RequestLog>,
}

/// The time that a client gives its request.
fn request_timeout(headers: &HeaderMap) -> Result<Option<Duration>, ApiError> {
    let Some(value) = headers.get(REQUEST_TIMEOUT) else { return Ok(None) };
    let seconds = value.to_str().ok().and_then(|text| text.trim().parse::<f64>().ok());
    let wrong = || ApiError::field(REQUEST_TIMEOUT, "X-Request-Timeout must be a number of seconds above 0");
    let seconds = seconds.filter(|s| *s > 0.0 && s.is_finite()).ok_or_else(wrong)?;
    Ok(Some(Duration::from_secs_f64(seconds.min(LONGEST_TIMEOUT))))
}

async fn answer<W: Writer>(
    app: &Arc<App>,
    common: &Common,
    job: Job,
    mut writer: W,
    until: Until,
) -> Result<Response, ApiError> {
    until.log.note_job(common.model.as_deref().unwrap_or(app.served().name()), &job.params);
    let interval = Interval::of(common, app.config().stream_interval)?;
    let mut running = Running::start(app.engine(), job, until.timeout, until.log).await?;
    if common.stream.unwrap_or(false) {
        let mut options = common.stream_options.unwrap_or_default();
        options.include_usage |= app.config().force_include_usage;
        return Ok(stream::respond(running, writer, options, interval));
    }
    let outputs = running.gather(&mut writer).await?;
    let usage = writer.detailed(running.usage());
    Ok(Json(writer.whole(outputs, usage)?).into_response())
}

/// Reads a request's body.
async fn read<T: Request>(app: &App, headers: &HeaderMap, body: Body) -> Result<Parsed<T>, ApiError> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        let message = format!("the body's type is {essence:?}, but must be application/json");
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    }
    request::parse(&receive(app, body).await?, app.config().strict)
}

async fn receive(app: &App, body: Body) -> Result<Bytes, ApiError> {
    let config = app.config();
    let late = |_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time");
    timeout(config.patience.body, collect(body, config.max_body_bytes)).await.map_err(late)?
}

async fn collect(mut body: Body, most: usize) -> Result<Bytes, ApiError> {
    let error = match Limited::new(&mut body, most).collect().await {
        Ok(whole) => return Ok(whole.to_bytes()),
        Err(error) => error,
    };
    if !error.is::<LengthLimitError>() {
        return Err(ApiError::bad_request(format!("the body cannot be read: {error}")));
    }
    // A sender that finds the connection closed before it has sent all would not read why.
    let _ = timeout(LINGER, async { while let Some(Ok(_)) = body.frame().await {} }).await;
    Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body has more than {most} bytes")))
}

/// Names the fields that were ignored in a header.
fn warned(mut response: Response, unknown: &[String]) -> Response {
    if !unknown.is_empty() {
        let visible = |c: char| if c.is_ascii_graphic() && c != '"' && c != '\\' { c } else { '?' };
        let names: String = unknown.join(",").chars().take(512).map(visible).collect();
        if let Ok(value) = HeaderValue::from_str(&format!("299 rvllm \"ignored unknown fields: {names}\"")) {
            response.headers_mut().insert(header::WARNING, value);
        }
    }
    response
}

//! Errors as OpenAI's clients read them: `{"error": {"message", "type", "param", "code"}}`, with vLLM's types.

use crate::engine_loop::Refusal;
use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use rvllm_engine::{ChatError, EngineError, TokenizerError};
use serde::Serialize;
use utoipa::ToSchema;

/// Seconds after which a client may try again when the queue is full.
const RETRY_AFTER: u64 = 1;

/// An error, as the body of an answer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorDetail,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct ErrorDetail {
    /// In words, with the next step where there is one.
    pub message: String,
    /// The kind of error.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The field of the request that it is about.
    pub param: Option<String>,
    /// The HTTP status.
    pub code: u16,
}

/// A request's failure.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError {
    status: StatusCode,
    message: String,
    param: Option<String>,
}

impl ApiError {
    /// An error with this status.
    pub fn new(status: StatusCode, message: impl Into<String>) -> ApiError {
        ApiError { status, message: message.into(), param: None }
    }

    /// The request cannot be honoured.
    pub fn bad_request(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, message)
    }

    /// A field of the request cannot be honoured.
    pub fn field(name: impl Into<String>, message: impl Into<String>) -> ApiError {
        ApiError::bad_request(message).about(name)
    }

    /// Something broke that is not the client's fault.
    pub fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// Names the field.
    pub fn about(self, name: impl Into<String>) -> ApiError {
        ApiError { param: Some(name.into()), ..self }
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The body of the answer.
    pub fn body(&self) -> ErrorBody {
        let ApiError { status, message, param } = self.clone();
        ErrorBody { error: ErrorDetail { message, kind: kind(status), param, code: status.as_u16() } }
    }
}

fn kind(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "AuthenticationError",
        StatusCode::NOT_FOUND => "NotFoundError",
        StatusCode::TOO_MANY_REQUESTS => "RateLimitError",
        StatusCode::GATEWAY_TIMEOUT | StatusCode::REQUEST_TIMEOUT => "TimeoutError",
        StatusCode::SERVICE_UNAVAILABLE => "ServiceUnavailableError",
        s if s.is_client_error() => "BadRequestError",
        _ => "InternalServerError",
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        let retry = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE].contains(&self.status);
        if retry {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            // Browsers ask for a password, which is the key; clients of the API know what to send. A header for each:
            // browsers read but the first scheme of one.
            for scheme in ["Bearer", "Basic realm=\"rvllm\""] {
                response.headers_mut().append(header::WWW_AUTHENTICATE, HeaderValue::from_static(scheme));
            }
        }
        response
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> ApiError {
        let message = refusal.to_string();
        match refusal {
            Refusal::Full { .. } => ApiError::new(StatusCode::TOO_MANY_REQUESTS, message),
            Refusal::TooMany { .. } => ApiError::field("prompt", message),
            Refusal::Ending => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message),
            Refusal::Failed(_) => ApiError::internal(message),
            Refusal::Engine(error) => error.into(),
            Refusal::Form { param, .. } | Refusal::SlowForm { param } | Refusal::LargeForm { param, .. } => {
                ApiError::field(param, message)
            }
        }
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> ApiError {
        let message = error.to_string();
        match error {
            EngineError::Param(p) => ApiError::field(p.name, message),
            EngineError::Grammar(_) => ApiError::field("structured_outputs", message),
            EngineError::Tokenizer(e) => e.into(),
            EngineError::EmptyPrompt | EngineError::PromptTooLong { .. } | EngineError::NoSuchToken { .. } => {
                ApiError::field("prompt", message)
            }
            EngineError::NeverFits { .. } => ApiError::field("max_tokens", message),
            EngineError::BeamsNeverFit { .. } => ApiError::field("n", message),
            EngineError::NoTokenizer(_) => ApiError::bad_request(message),
            _ => ApiError::internal(message),
        }
    }
}

impl From<TokenizerError> for ApiError {
    fn from(error: TokenizerError) -> ApiError {
        ApiError::bad_request(error.to_string())
    }
}

impl From<ChatError> for ApiError {
    fn from(error: ChatError) -> ApiError {
        ApiError::field("messages", error.to_string())
    }
}

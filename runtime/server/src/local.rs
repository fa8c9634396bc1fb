//! Requests of this process: the routes without a socket.
//!
//! Invariants: a request goes through every layer that one from the network goes through, but for the connection's.

use crate::app::{self, App};
use axum::{
    Router,
    body::Body,
    http::{
        HeaderName, Request,
        header::{CONTENT_TYPE, WARNING},
    },
};
use http_body_util::BodyExt;
use std::{convert::Infallible, sync::Arc};
use tower::ServiceExt;

/// The routes.
#[derive(Clone)]
pub struct Local {
    routes: Router,
}

/// An answer, read whole.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP's status.
    pub status: u16,
    /// The request's name.
    pub request_id: String,
    /// What a header tells of fields that were ignored.
    pub warning: Option<String>,
    /// What was said.
    pub body: Vec<u8>,
}

impl Local {
    /// The routes of an app.
    pub fn new(app: &Arc<App>) -> Local {
        Local { routes: app::router(app) }
    }

    /// Posts JSON.
    pub async fn post(&self, path: &str, json: Vec<u8>) -> Answer {
        let request = Request::post(path).header(CONTENT_TYPE, "application/json").body(Body::from(json));
        let Ok(request) = request else {
            return Answer { status: 404, request_id: String::new(), warning: None, body: vec![] };
        };
        let response = match self.routes.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => absurd(never),
        };
        let (parts, body) = response.into_parts();
        let header = |name| parts.headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_string);
        let (id, warning) = (header(HeaderName::from_static("x-request-id")), header(WARNING));
        // A body that breaks off is as long as it got: its reader finds it is no JSON.
        let bytes = body.collect().await.map(|b| b.to_bytes().to_vec()).unwrap_or_default();
        Answer { status: parts.status.as_u16(), request_id: id.unwrap_or_default(), warning, body: bytes }
    }
}

fn absurd<T>(never: Infallible) -> T {
    match never {}
}

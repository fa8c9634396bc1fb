//! The engine over HTTP, as OpenAI's clients and vLLM's dashboards expect it.
//!
//! | module | what |
//! |---|---|
//! | [`config`], [`model`] | what is served, and how |
//! | [`engine_loop`] | the one thread that owns the engine |
//! | [`api`] | requests and answers as types: fields, schemas, errors |
//! | [`prompt`], [`conversation`] | what a request says, in tokens |
//! | [`tools`], [`notation`], [`call_form`], [`parsers`], [`reader`] | tool calls and reasoning: what is asked, and what an answer's text has of them |
//! | [`answer`], [`completions`], [`chat`], [`stream`] | what an engine says, in the API's words |
//! | [`app`], [`routes`], [`auth`], [`request_log`], [`openapi`] | routes and what guards them |
//! | [`serve`], [`listen`], [`tls`], [`local`] | connections, and how they end; routes without one |
//! | [`reload`] | keys and certificates that change |
//! | [`metrics`] | Prometheus, under vLLM's names |
//! | [`traces`], [`span`], [`request_span`] | OpenTelemetry, under vLLM's names |
//! | [`mock`] | an engine without a model |
//!
//! Invariants:
//! - the engine's thread never waits for HTTP, and HTTP never for the engine's thread but through bounded channels;
//! - every documented field of a request is honoured, or refused by name;
//! - every accepted request ends: with an answer, an error, or because its client has gone.

pub mod answer;
pub mod api;
pub mod app;
pub mod auth;
pub mod call_form;
pub mod chat;
pub mod completions;
pub mod config;
pub mod conversation;
pub mod engine_loop;
mod infill;
pub mod interval;
pub mod listen;
pub mod local;
pub mod metrics;
pub mod mock;
pub mod model;
pub mod notation;
pub mod openapi;
pub mod parsers;
pub mod prompt;
pub mod reader;
pub mod reload;
pub mod request_log;
pub mod request_span;
pub mod routes;
pub mod serve;
pub mod span;
pub mod stream;
pub mod tls;
pub mod tools;
pub mod traces;

pub use app::App;
pub use config::{Config, Cors};
pub use model::Served;
pub use serve::{Ended, ServeError};

//! The server over an engine whose answers are known: requests through all of its layers, in process.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod answers;
mod beams;
mod behind;
mod client;
mod fields;
mod forced;
mod guards;
mod lifecycle;
mod metrics;
mod refusals;
mod schema;
mod script;
mod structured;
mod texts;
mod tls;
mod tools;
mod traces;
mod wire;

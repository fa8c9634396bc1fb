//! Tests of the artifact crate from outside, in one binary.

#![expect(clippy::unwrap_used, reason = "a test that unwraps fails with the error")]

mod gguf;
mod gpu;
mod hostile;
mod model;
mod quantized;
mod recipes;
mod round_trip;

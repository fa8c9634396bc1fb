//! The two program levels of rvllm and everything that needs no device to reason about them.
//!
//! - [`graph`]: what a network computes, on tensors with symbolic dimensions.
//! - [`tile`]: what a kernel computes, on statically shaped tiles, one program per grid point.
//!
//! Each level has a builder, a writer, a reader, a verifier that returns all errors, and a plain
//! interpreter that is the oracle of every test.
//!
//! Invariants:
//! - no LLVM, no device, no file formats: this crate builds in seconds and nothing in it is `Serialize`;
//! - reading what was written gives the same program, and every filetest checks it;
//! - interpreters compute in f32 (reductions in f64) and round only where a value's dtype says so.

pub mod diag;
pub mod expr;
pub mod graph;
pub mod recipe;
pub mod rope;
mod round;
pub mod text;
pub mod tile;
pub mod types;

pub use diag::{Diagnostic, Loc};
pub use expr::{Expr, Sym};
pub use round::{e4m3_bits, e4m3_number};
pub use types::{DType, Dim, TensorType};

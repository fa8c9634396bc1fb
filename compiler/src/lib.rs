//! The compiler: a model and targets in, an artifact out. [`compile`] does all of it; the command is [`cli`].
//!
//! ```text
//! MODEL ─ import ─► graph ─ merge_linear, fuse ─► calls ─ select ─► program ─ plan_memory, emit ─► plan
//!                                                           └─ kernels ─ codegen ─► object code
//! ```
//!
//! Invariants:
//! - the same inputs give the same bytes, from any directory, on any number of threads;
//! - every pass is followed by the verifier, and what it finds is reported as a bug of the compiler;
//! - a compile that fails or is stopped leaves no file;
//! - only [`cli`] prints.

pub mod cache;
pub mod cli;
mod codegen;
mod compile;
mod emit;
mod error;
mod gguf;
mod hub;
mod import;
mod kv_cache;
mod limits;
pub mod options;
pub mod passes;
pub mod program;
pub mod progress;
pub mod report;

pub use codegen::gpu_kernels;
pub use compile::{compile, targets};
pub use emit::{plan as emit_plan, recipe as emit_recipe};
pub use error::{Error, Result};
pub use options::Options;
pub use progress::Progress;
pub use report::Report;

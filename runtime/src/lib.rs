//! The rvllm command as a library, so that tests can drive it with another engine.
//!
//! | module | what |
//! |---|---|
//! | [`cli`], [`sampling`] | the command line |
//! | [`model`], [`encode`] | from a name to a loaded engine; prompts to tokens |
//! | [`generate`], [`input`], [`output`] | prompts in, answers out |
//! | [`destination`], [`sink`], [`partial`], [`fingerprint`] | where answers go, and how none is lost |
//! | [`drive`], [`progress`], [`interrupt`] | the loop over steps, what it shows, how it stops |
//! | [`chat`], [`terminal`] | `rvllm run` |
//! | [`run_batch`] | `rvllm run-batch` |
//! | [`bench`] | `rvllm bench` |
//! | [`serve`], [`parsers`], [`log`] | `rvllm serve` |
//! | [`inspect`], [`table`], [`verify`] | what an artifact holds, and whether it computes what it should |
//! | [`error`] | exit codes and messages |
//!
//! Invariants: no panic on any input; nothing is printed but by commands; nothing is compiled.

pub mod bench;
pub mod chat;
pub mod cli;
pub mod destination;
pub mod drive;
pub mod encode;
pub mod error;
pub mod eval;
pub mod fingerprint;
pub mod generate;
pub mod input;
pub mod inspect;
pub mod interrupt;
pub mod log;
pub mod model;
pub mod output;
pub mod parsers;
pub mod partial;
pub mod progress;
pub mod quantization;
pub mod run_batch;
pub mod sampling;
pub mod serve;
pub mod sink;
pub mod table;
pub mod terminal;
pub mod verify;

//! The engine: tokens in, tokens and text out.
//!
//! | module | what |
//! |---|---|
//! | [`engine`], [`load`] | requests in, deltas out: the loop over the modules below |
//! | [`params`], [`output`], [`error`] | what callers say and hear |
//! | [`tokenizer`], [`detokenize`], [`stop`], [`text`], [`chat`] | text to tokens and back |
//! | [`scheduler`], [`sequence`], [`stats`] | which tokens a step computes |
//! | [`block_table`], [`block_pool`], [`block_hash`], [`memory`] | where their KV lies, and what of it is found again |
//! | [`step`] | the one place that fills the step's arrays |
//! | [`executor`], [`forward`] | interprets the plan for a step, behind a trait |
//! | [`device`], [`team`] | memory, kernels and threads |
//! | [`sampler`], [`row`], [`random`] | logits to tokens and log-probabilities |
//! | [`grammar`] | which tokens may come next, where an answer has a form |
//!
//! Invariants:
//! - the tokens and log-probabilities of a request do not depend on which requests share its steps, on chunking, on
//!   what is found of its KV, on preemption or on the number of threads;
//! - nothing is compiled here: kernels come from the artifact;
//! - `unsafe` stands in [`device`] only.

mod admission;
mod beam;
pub mod block_hash;
pub mod block_pool;
pub mod block_table;
pub mod chat;
pub mod detokenize;
pub mod device;
pub mod draw;
pub mod engine;
pub mod error;
pub mod executor;
pub mod forward;
pub mod grammar;
pub mod load;
pub mod memory;
pub mod output;
pub mod params;
pub mod random;
pub mod repetition;
mod request;
pub mod row;
pub mod sampler;
pub mod scheduler;
pub mod sequence;
mod softmax;
pub mod stats;
pub mod step;
pub mod stop;
pub mod team;
pub mod text;
pub mod thinking;
pub mod tokenizer;

pub use chat::{ChatError, ChatTemplate, Conversation};
pub use device::Numa;
pub use engine::{Engine, EngineParts, Scored, Scoring};
pub use error::EngineError;
pub use forward::{Forward, Limits};
pub use grammar::{Grammar, GrammarCompiler, GrammarError, StructuredOutputs, lark_literal};
pub use load::{DeviceChoice, EngineOptions, WeightsOption};
pub use memory::{DeviceTable, MemoryTable};
pub use output::{Finish, FinishReason, Logprob, Logprobs, Metrics, Output, RequestId, SequenceOutput, StopReason};
pub use params::{ParamError, SamplingParams};
pub use repetition::RepetitionDetection;
pub use scheduler::SchedulingPolicy;
pub use stats::Stats;
pub use text::Transcript;
pub use tokenizer::{Decode, Tokenizer, TokenizerError};

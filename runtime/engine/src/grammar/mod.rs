//! Structured output: answers that a grammar describes.
//!
//! | module | what |
//! |---|---|
//! | [`request`] | what callers ask for: a schema, a regular expression, choices, a grammar |
//! | [`schema`], [`ebnf`], [`tags`] | what is refused of it, and what is translated |
//! | [`vocabulary`] | the bytes of each token |
//! | [`compiler`] | requests to grammars, kept for the next request |
//! | [`matcher`], [`workers`] | which tokens may come next, computed beside the forward |
//!
//! Invariants:
//! - which tokens may come next is a function of the grammar and the sequence's own tokens;
//! - a grammar is untrusted: compiling it and asking it are bounded in time and memory, and a failure of either ends
//!   one request, never another.

pub mod compiler;
pub mod ebnf;
mod error;
pub mod matcher;
pub mod request;
pub mod schema;
pub mod tags;
pub mod vocabulary;
pub mod workers;

pub use compiler::{Grammar, GrammarCompiler};
pub use error::GrammarError;
pub use matcher::{Mask, Matcher};
pub use request::{StructuredOutputs, lark_literal};

#[cfg(test)]
mod tests;

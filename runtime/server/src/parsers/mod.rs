//! Streaming parsers of model text: splits what a model writes into content, reasoning and tool calls.
//!
//! Pure: no I/O, no clock, no randomness; the ids of calls follow from [`Request::id_seed`].
//!
//! Invariants:
//! - A parser reads one character at a time, so how text is cut into deltas never changes the concatenated result.
//! - Text that may still become markup is held back; text that turns out not to be markup comes out as content.
//! - A call is announced once its name is known and its arguments have begun. A call that breaks before that is
//!   content, markup included; one that breaks later ends with `complete: false` and the rest is content.
//! - No input makes a parser panic, and held text never exceeds the text read.
//!
//! Which notations there are, by vLLM's names, is said in [`rvllm_artifact::parsers`].

mod call;
mod call_object;
mod calls;
mod grammar;
mod harmony;
mod json;
mod keywords;
mod marks;
mod output;
mod parameters;
mod schemas;
mod sink;
#[cfg(test)]
mod tests;
mod think;

pub use output::{Request, ToolChoice, markers, open_reasoning, parser, thinking};

/// What a parser recognised, in the order of the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The next piece of the answer's text.
    Content(String),
    /// The next piece of the reasoning.
    Reasoning(String),
    /// A tool call begins. Calls are numbered from 0 and do not overlap.
    ToolCallStart {
        /// Position among the answer's calls.
        index: usize,
        /// Identity of the call: the model's own where its format has one, else made from [`Request::id_seed`].
        id: String,
        /// Name of the function.
        name: String,
    },
    /// The next piece of a call's arguments, which are the text of one JSON object.
    ToolCallArguments {
        /// The call that it belongs to.
        index: usize,
        /// Text to append to the arguments.
        delta: String,
    },
    /// No more arguments follow for a call.
    ToolCallEnd {
        /// The call that ends.
        index: usize,
        /// Whether the arguments are a whole JSON object; false when the text broke off or broke the format.
        complete: bool,
    },
}

/// Splits one answer's text into events. One parser serves one answer.
pub trait StreamParser: Send {
    /// Reads the next text and returns what became certain.
    fn push(&mut self, text_delta: &str) -> Vec<Event>;

    /// Ends the text: what was held back comes out, an open call ends. To be called once.
    fn finish(&mut self) -> Vec<Event>;
}

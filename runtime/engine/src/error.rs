//! What can go wrong in the engine. Each message names both sides and, where there is one, the next step.

use crate::params::ParamError;

/// Why the engine, or a request, was refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The artifact, its weights or the machine do not fit.
    #[error(transparent)]
    Artifact(#[from] rvllm_artifact::Error),
    /// The device cannot run the artifact's code.
    #[error(transparent)]
    Device(#[from] crate::device::DeviceError),
    /// tokenizer.json is not one.
    #[error(transparent)]
    Tokenizer(#[from] crate::tokenizer::TokenizerError),
    /// A sampling parameter.
    #[error(transparent)]
    Param(#[from] ParamError),
    /// A grammar that cannot be followed.
    #[error(transparent)]
    Grammar(#[from] crate::grammar::GrammarError),
    /// An option of the engine.
    #[error("{name} is {value}, but must be {allowed}")]
    Option {
        /// The option.
        name: &'static str,
        /// What it was given.
        value: String,
        /// What it takes.
        allowed: String,
    },
    /// Not even one sequence of the model's length fits the memory for KV blocks.
    #[error(
        "a sequence of {max_model_len} tokens needs {needed} bytes of KV cache, but there are {given} \
         · help: {}raise --kv-cache-memory-bytes to at least {needed}",
        shorter(*.fits)
    )]
    KvCacheTooSmall {
        /// Longest sequence.
        max_model_len: u32,
        /// Bytes that it needs.
        needed: u64,
        /// Bytes that there are.
        given: u64,
        /// Longest sequence that would fit; 0 where not even a block does.
        fits: u64,
    },
    /// Weights, arena and the rest do not fit a GPU.
    #[error(
        "the model needs {} bytes of GPU memory (weights {weights}, arena {arena}, inputs and graphs {overhead}, KV cache \
         {kv_cache}{}), but {left} of {name}'s {total} are left for it · help: free memory of the GPU, raise \
         --gpu-memory-utilization, or compile with a lower --max-num-batched-tokens",
        weights + arena + overhead + kv_cache,
        if *kv_cache == 0 { " or more" } else { "" }
    )]
    GpuMemory {
        /// The GPU.
        name: String,
        /// Bytes of weights.
        weights: u64,
        /// Bytes of the arena.
        arena: u64,
        /// Bytes of inputs and graphs.
        overhead: u64,
        /// Bytes asked for the KV cache; 0 where it takes what is left.
        kv_cache: u64,
        /// Bytes left.
        left: u64,
        /// Bytes that the GPU has.
        total: u64,
    },
    /// A request that would not fit the KV cache even alone.
    #[error(
        "the request may take {tokens} tokens, prompt and answer together, but the KV cache has room for {capacity} \
         · help: lower max_tokens, shorten the prompt, or raise --kv-cache-memory-bytes"
    )]
    NeverFits {
        /// Tokens of the prompt and of the longest answer asked for.
        tokens: usize,
        /// Tokens whose KV fits.
        capacity: usize,
    },
    /// A beam search that would not fit the KV cache even alone.
    #[error(
        "each of {beams} beams may take {tokens} tokens, prompt and answer together, but the KV cache has room for \
         {capacity} of each · help: lower n or max_tokens, shorten the prompt, or raise --kv-cache-memory-bytes"
    )]
    BeamsNeverFit {
        /// Beams of the request.
        beams: u32,
        /// Tokens of the prompt and of the longest answer asked for.
        tokens: usize,
        /// Tokens whose KV fits, for each beam.
        capacity: usize,
    },
    /// An empty prompt.
    #[error("the prompt is empty · help: give at least one token")]
    EmptyPrompt,
    /// A prompt that leaves no room for an answer.
    #[error(
        "the prompt has {tokens} tokens, but the model takes {max_model_len}, one of the answer included \
         · help: shorten it, or set truncate_prompt_tokens"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Longest sequence.
        max_model_len: u32,
    },
    /// A text to score that is longer than a sequence may be.
    #[error("the text has {tokens} tokens, but the model and its KV cache take {most} · help: score it in pieces")]
    TextTooLong {
        /// Tokens of the text.
        tokens: usize,
        /// Longest text.
        most: u64,
    },
    /// A text to score while requests are being answered.
    #[error("requests are unfinished · help: a text is scored by an engine that has nothing else to do")]
    Busy,
    /// A token that the model does not have.
    #[error("the prompt has token id {token}, but the vocabulary has {vocab_size} tokens")]
    NoSuchToken {
        /// The token.
        token: u32,
        /// Size of the vocabulary.
        vocab_size: u32,
    },
    /// Two unfinished requests of one name.
    #[error("request {0} is not finished yet, so its id cannot be used again")]
    DuplicateRequest(u64),
    /// A request needs text, but the artifact has no tokenizer.
    #[error("{0} needs a tokenizer, but the artifact has none · help: set detokenize to false, and give token ids")]
    NoTokenizer(&'static str),
    /// The model computed NaN or infinity.
    #[error(
        "request {request}: the logits at position {position} are not finite · help: check the weights (rvllm verify)"
    )]
    LogitsNotFinite {
        /// The request.
        request: u64,
        /// Index of the token in the sequence.
        position: usize,
    },
}

/// The way out that is a shorter sequence, where there is one.
fn shorter(fits: u64) -> String {
    if fits > 0 { format!("lower --max-model-len to at most {fits}, or ") } else { String::new() }
}

//! What is served: a model's names, its tokenizer and template, and what requests get that say nothing.

use crate::{api::ApiError, notation::Notation, prompt::Encoder};
use rvllm_artifact::parsers::Parsers;
use rvllm_engine::{Engine, Limits, MemoryTable, SamplingParams, SchedulingPolicy};
use serde::Serialize;
use std::{sync::Arc, time::SystemTime};
use utoipa::ToSchema;

/// What is served.
pub struct Served {
    /// What requests call it, the principal name first.
    pub names: Vec<String>,
    /// Where it came from: a path or a hub id.
    pub root: String,
    /// Text to tokens.
    pub encoder: Arc<Encoder>,
    /// How answers are read.
    pub notation: Notation,
    /// Sampling parameters of a request that says none. `max_tokens` is a chat's.
    pub defaults: SamplingParams,
    /// Bounds of steps and sequences.
    pub limits: Limits,
    /// In which order requests are served.
    pub policy: SchedulingPolicy,
    /// Where the memory goes.
    pub memory: MemoryTable,
    /// What `/v1/models` tells about the artifact.
    pub artifact: ArtifactCard,
    /// Seconds since 1970 when it was loaded.
    pub created: u64,
    /// Tells one build and artifact from another in answers.
    pub fingerprint: String,
}

/// What is known of the artifact that runs.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct ArtifactCard {
    /// Its file.
    pub file: String,
    /// The target whose kernels run.
    pub target: String,
    /// Element type of the weights.
    pub dtype: String,
    /// Element type of the KV cache.
    pub kv_cache_dtype: String,
    /// Tokens that the KV cache holds.
    pub kv_cache_tokens: u64,
}

impl Served {
    /// What `engine` serves under these names.
    pub fn new(
        engine: &Engine,
        names: Vec<String>,
        root: String,
        encoder: Encoder,
        defaults: SamplingParams,
        artifact: ArtifactCard,
    ) -> Served {
        let memory = engine.memory().clone();
        let (limits, policy) = (*engine.limits(), engine.scheduling_policy());
        let kv_cache_tokens = u64::from(limits.num_blocks) * u64::from(limits.block_size);
        let created = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_secs());
        let fingerprint = format!("rvllm-{}-{}", env!("CARGO_PKG_VERSION"), artifact.target);
        let artifact = ArtifactCard { kv_cache_tokens, ..artifact };
        let (encoder, notation) = (Arc::new(encoder), Notation::default());
        Served { names, root, encoder, notation, defaults, limits, policy, memory, artifact, created, fingerprint }
    }

    /// Reads answers by these parsers; else all text is content.
    pub fn with_parsers(self, parsers: Parsers) -> Served {
        let notation = Notation::new(parsers, self.encoder.tokenizer().ok().map(AsRef::as_ref));
        Served { notation, ..self }
    }

    /// Adds how the model marks what it thinks, where a budget of that is asked for.
    ///
    /// # Errors
    /// The tokenizer refuses the marks.
    pub fn tell_thinking(&self, params: &mut SamplingParams) -> Result<(), ApiError> {
        if params.thinking_token_budget.is_some() && self.notation.parsers().reasoning.is_some() {
            params.thinking = self.notation.thinking(self.encoder.tokenizer()?)?;
        }
        Ok(())
    }

    /// The principal name.
    pub fn name(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }
}

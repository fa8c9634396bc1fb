//! What scoring came to, for people and as JSON.

use super::divergence::Divergence;
use crate::model::dtype_name;
use rvllm_artifact::Artifact;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::fmt;

/// The artifact's entry that holds a report.
pub const ENTRY: &str = "perplexity.json";

/// Negative log-likelihoods of scored tokens.
#[derive(Clone, Debug, Default)]
pub(super) struct Score {
    tokens: u64,
    nll: f64,
    squares: f64,
}

impl Score {
    /// Counts a token of this log-probability.
    pub(super) fn add(&mut self, logprob: f32) {
        let nll = -f64::from(logprob);
        self.tokens += 1;
        self.nll += nll;
        self.squares += nll * nll;
    }

    fn mean(&self) -> f64 {
        self.nll / self.tokens.max(1) as f64
    }

    /// `exp` of the mean negative log-likelihood.
    pub(super) fn perplexity(&self) -> f64 {
        self.mean().exp()
    }

    /// The perplexity's standard error: that of the mean, carried through `exp`.
    fn error(&self) -> f64 {
        let n = self.tokens.max(2) as f64;
        let variance = (self.squares / n - self.mean() * self.mean()).max(0.0);
        (variance / (n - 1.0)).sqrt() * self.perplexity()
    }
}

/// The reference on the same tokens, and the divergences from it.
#[derive(Clone, Debug, Default)]
pub(super) struct Compared {
    score: Score,
    kl: Vec<f64>,
    same_top: u64,
}

impl Compared {
    /// Counts a token of this log-probability for the reference.
    pub(super) fn add(&mut self, logprob: f32, divergence: Divergence) {
        self.score.add(logprob);
        self.kl.push(divergence.kl);
        self.same_top += u64::from(divergence.same_top);
    }
}

/// The text and how it was cut.
#[derive(Debug, Serialize)]
pub(super) struct Text {
    sha256: String,
    bytes: usize,
    tokens: usize,
    ctx_size: usize,
    stride: usize,
    windows: usize,
}

impl Text {
    /// Of a text and its windows.
    pub(super) fn new(text: &str, tokens: usize, ctx_size: usize, stride: usize, windows: usize) -> Text {
        let sha256 = Sha256::digest(text).iter().map(|b| format!("{b:02x}")).collect();
        Text { sha256, bytes: text.len(), tokens, ctx_size, stride, windows }
    }
}

/// A model's score.
#[derive(Debug, Serialize)]
struct OfModel {
    model: String,
    dtype: String,
    scored_tokens: u64,
    nll: f64,
    perplexity: f64,
    perplexity_stderr: f64,
}

impl OfModel {
    fn new(artifact: &Artifact, score: &Score) -> OfModel {
        let model = &artifact.manifest().model;
        OfModel {
            model: model.name.clone(),
            dtype: dtype_name(model.dtype),
            scored_tokens: score.tokens,
            nll: score.nll,
            perplexity: score.perplexity(),
            perplexity_stderr: score.error(),
        }
    }
}

/// Distances from the reference, in nats.
#[derive(Debug, Serialize)]
struct KlDivergence {
    mean: f64,
    median: f64,
    p99: f64,
    max: f64,
}

impl KlDivergence {
    fn of(kl: &[f64]) -> KlDivergence {
        let mut sorted = kl.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        let at = |share: f64| sorted.get(((sorted.len() - 1) as f64 * share).round() as usize).copied().unwrap_or(0.0);
        let mean = kl.iter().sum::<f64>() / kl.len().max(1) as f64;
        KlDivergence { mean, median: at(0.5), p99: at(0.99), max: at(1.0) }
    }
}

#[derive(Debug, Serialize)]
struct OfReference {
    #[serde(flatten)]
    score: OfModel,
    /// The model's perplexity over the reference's.
    perplexity_ratio: f64,
    kl_divergence: KlDivergence,
    /// Share of positions at which both think the same token the most likely.
    same_top: f64,
}

/// What scoring came to.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    #[serde(flatten)]
    score: OfModel,
    text: Text,
    #[serde(skip_serializing_if = "Option::is_none")]
    reference: Option<OfReference>,
}

impl Report {
    /// Of a model, and its reference where there is one.
    pub(super) fn new(
        artifact: &Artifact,
        text: Text,
        score: &Score,
        reference: Option<(&Artifact, &Compared)>,
    ) -> Report {
        let of_reference = |(artifact, compared): (&Artifact, &Compared)| OfReference {
            score: OfModel::new(artifact, &compared.score),
            perplexity_ratio: score.perplexity() / compared.score.perplexity(),
            kl_divergence: KlDivergence::of(&compared.kl),
            same_top: compared.same_top as f64 / compared.kl.len().max(1) as f64,
        };
        Report { score: OfModel::new(artifact, score), text, reference: reference.map(of_reference) }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (s, t) = (&self.score, &self.text);
        let (model, dtype) = (&s.model, &s.dtype);
        writeln!(f, "{model} ({dtype}): perplexity {:.4} ± {:.4}", s.perplexity, s.perplexity_stderr)?;
        writeln!(f, "{} tokens scored in {} windows of {}", s.scored_tokens, t.windows, t.ctx_size)?;
        let Some(r) = &self.reference else { return Ok(()) };
        let (model, dtype) = (&r.score.model, &r.score.dtype);
        writeln!(
            f,
            "reference {model} ({dtype}): perplexity {:.4}, ratio {:.5}",
            r.score.perplexity, r.perplexity_ratio
        )?;
        let KlDivergence { mean, median, p99, max } = r.kl_divergence;
        writeln!(f, "KL divergence: mean {mean:.6}, median {median:.6}, p99 {p99:.6}, max {max:.6} nats")?;
        writeln!(f, "same most likely token: {:.2} %", 100.0 * r.same_top)
    }
}

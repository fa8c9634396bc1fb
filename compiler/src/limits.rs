//! Bounds of a step, from the options or from the model.

use crate::{
    error::{Error, Result},
    options::Options,
    program::Limits,
};
use rvllm_models::Facts;
use rvllm_targets::Target;

/// Bytes that the default number of rows of logits may take on a CPU: 256 rows of a vocabulary of 64 Ki.
const LOGITS_BYTES: usize = 64 << 20;
/// Bounds and step of that default.
const LOGITS: std::ops::RangeInclusive<usize> = 32..=256;
/// Default sequences of a step on a CPU.
const SEQS: usize = 256;
/// Bounds of the default tokens of a step on a CPU.
const TOKENS: std::ops::RangeInclusive<usize> = 512..=2048;
/// Largest bound of anything: indices into buffers stay far below what 32 bits hold.
const MAX: usize = 1 << 24;

/// The limits that `options` and the model give for these targets.
///
/// # Errors
/// A limit of zero, above 2^24, or a sequence longer than the model's positions.
pub(crate) fn limits(options: &Options, facts: &Facts, targets: &[Target]) -> Result<Limits> {
    let longest = facts.max_position_embeddings.max(facts.context_length);
    let max_model_len = bounded("--max-model-len", options.max_model_len.unwrap_or(facts.max_position_embeddings))?;
    if max_model_len > longest {
        return Err(Error::Options(format!(
            "--max-model-len {max_model_len} is longer than the model's {longest} positions"
        )));
    }
    // targets of one artifact are all GPUs or all CPUs: others lay the KV cache out differently
    let gpu = targets.iter().filter_map(|t| t.gpu.as_ref()).min_by_key(|gpu| gpu.max_num_seqs);
    let some = max_model_len.clamp(*TOKENS.start(), *TOKENS.end());
    let tokens = options.max_num_batched_tokens.unwrap_or_else(|| gpu.map_or(some, |gpu| gpu.max_num_batched_tokens));
    let seqs = options.max_num_seqs.unwrap_or_else(|| gpu.map_or(SEQS, |gpu| gpu.max_num_seqs));
    let max_num_seqs = bounded("--max-num-seqs", seqs)?;
    let rows =
        || if gpu.is_some() { max_num_seqs.max(*LOGITS.end()) } else { max_logits(facts.vocab_size, max_num_seqs) };
    Ok(Limits {
        max_model_len,
        max_num_batched_tokens: bounded("--max-num-batched-tokens", tokens)?,
        max_num_seqs,
        max_logits: bounded("--max-logits", options.max_logits.unwrap_or_else(rows))?,
    })
}

fn bounded(flag: &str, value: usize) -> Result<usize> {
    match (1..=MAX).contains(&value) {
        true => Ok(value),
        false => Err(Error::Options(format!("{flag} is {value}, expected 1 to {MAX}"))),
    }
}

/// Rows of logits on a CPU: as many as sequences, at least 256 for prompt log-probabilities, but fewer where the vocabulary
/// makes them large. The plan states the number and the scheduler keeps to it.
fn max_logits(vocab: usize, max_num_seqs: usize) -> usize {
    let affordable = LOGITS_BYTES / (4 * vocab.max(1)) / LOGITS.start() * LOGITS.start();
    max_num_seqs.max(*LOGITS.end()).min(affordable.max(*LOGITS.start()))
}

#[cfg(test)]
mod tests {
    use super::max_logits;

    #[test]
    fn logits_stay_small() {
        assert_eq!(max_logits(8192, 256), 256);
        assert_eq!(max_logits(128_256, 256), 128);
        assert_eq!(max_logits(151_936, 256), 96);
        assert_eq!(max_logits(1_000_000, 256), 32);
        assert_eq!(max_logits(1000, 1024), 1024);
    }
}

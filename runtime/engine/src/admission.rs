//! Which requests are taken: what can never run is refused when it comes, not when it fails.
//!
//! Invariants: a prompt that passed has known tokens and leaves room for at least one more, in the model and in the KV
//! cache; the beams of a request all have room at once, even where they share nothing.

use crate::{error::EngineError, forward::Limits, params::SamplingParams};

/// Longest sequence, as far as the model and a beam's part of the KV cache have room.
pub(crate) fn capacity(params: &SamplingParams, limits: &Limits) -> usize {
    let beams = if params.use_beam_search { params.n } else { 1 };
    let cached = u64::from(limits.num_blocks / beams) * u64::from(limits.block_size);
    cached.min(limits.max_model_len.into()) as usize
}

/// The last tokens of the prompt, as many as asked for; -1 is as many as leave room for an answer.
pub(crate) fn truncate(mut prompt: Vec<u32>, params: &SamplingParams, limits: &Limits) -> Vec<u32> {
    let room = capacity(params, limits).saturating_sub(1);
    if let Some(keep) = params.truncate_prompt_tokens {
        let keep = usize::try_from(keep).unwrap_or(room).min(room);
        prompt.drain(..prompt.len().saturating_sub(keep));
    }
    prompt
}

pub(crate) fn check_prompt(prompt: &[u32], limits: &Limits) -> Result<(), EngineError> {
    let Limits { vocab_size, max_model_len, .. } = *limits;
    check_tokens(prompt, vocab_size)?;
    if prompt.len() >= max_model_len as usize {
        return Err(EngineError::PromptTooLong { tokens: prompt.len(), max_model_len });
    }
    Ok(())
}

/// A text that is only scored: it leaves no room for an answer.
pub(crate) fn check_text(text: &[u32], limits: &Limits) -> Result<(), EngineError> {
    let Limits { vocab_size, max_model_len, num_blocks, block_size, .. } = *limits;
    check_tokens(text, vocab_size)?;
    let most = (u64::from(num_blocks) * u64::from(block_size)).min(max_model_len.into());
    if text.len() as u64 > most {
        return Err(EngineError::TextTooLong { tokens: text.len(), most });
    }
    Ok(())
}

fn check_tokens(tokens: &[u32], vocab_size: u32) -> Result<(), EngineError> {
    if tokens.is_empty() {
        return Err(EngineError::EmptyPrompt);
    }
    match tokens.iter().copied().find(|t| *t >= vocab_size) {
        Some(token) => Err(EngineError::NoSuchToken { token, vocab_size }),
        None => Ok(()),
    }
}

/// An answer of no stated length takes what room there is; one of stated length must have it.
pub(crate) fn check_fits(prompt: usize, params: &SamplingParams, limits: &Limits) -> Result<(), EngineError> {
    let (answer, capacity) = (params.max_tokens.unwrap_or(1) as usize, capacity(params, limits));
    let tokens = (prompt + answer).min(limits.max_model_len as usize);
    match params.use_beam_search {
        _ if tokens <= capacity => Ok(()),
        true => Err(EngineError::BeamsNeverFit { beams: params.n, tokens, capacity }),
        false => Err(EngineError::NeverFits { tokens, capacity }),
    }
}

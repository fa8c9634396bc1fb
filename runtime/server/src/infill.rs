//! Filling in the middle: prompts of what stands before and behind an answer, for models that were trained to it.
//!
//! Which tokens mark the parts, and in which order these come, is told by the names that the vocabulary has. Where a
//! vocabulary has none, or those of several models, the first row that is complete counts.

use crate::api::ApiError;
use rvllm_engine::{Tokenizer, TokenizerError};

/// How a family of models marks the parts.
struct Marks {
    prefix: &'static str,
    suffix: &'static str,
    /// Behind both parts; with none, the suffix comes first.
    middle: Option<&'static str>,
}

const fn marks(prefix: &'static str, suffix: &'static str, middle: &'static str) -> Marks {
    Marks { prefix, suffix, middle: Some(middle) }
}

const FAMILIES: [Marks; 6] = [
    // Qwen2.5-Coder, Qwen3-Coder, CodeGemma, Granite
    marks("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    // StarCoder, StarCoder2
    marks("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    // SantaCoder
    marks("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    // DeepSeek-Coder
    marks("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    // CodeLlama
    marks("▁<PRE>", "▁<SUF>", "▁<MID>"),
    // Codestral
    Marks { prefix: "[PREFIX]", suffix: "[SUFFIX]", middle: None },
];

/// Stands before a text whose first word is not to be taken for the beginning of a line.
const ANCHOR: &str = "☺";

/// Tokens that mark the parts: before the prefix, before the suffix, and behind both.
type Tokens = (u32, u32, Option<u32>);

fn tokens(tokenizer: &Tokenizer) -> Option<Tokens> {
    let id = |token: &str| tokenizer.token_to_id(token);
    let of =
        |m: &Marks| Some((id(m.prefix)?, id(m.suffix)?, m.middle.map(|middle| id(middle).ok_or(())).transpose().ok()?));
    FAMILIES.iter().find_map(of)
}

/// Whether the model's vocabulary has marks for it.
pub(crate) fn is_known(tokenizer: &Tokenizer) -> bool {
    tokens(tokenizer).is_some()
}

/// A prompt that asks for what stands between `prefix` and `suffix`. `before` are the tokens that every text begins with.
///
/// # Errors
/// The model's vocabulary has no marks for it, or the suffix has no tokens.
pub(crate) fn fill(
    tokenizer: &Tokenizer,
    before: Vec<u32>,
    prefix: Vec<u32>,
    suffix: &str,
) -> Result<Vec<u32>, ApiError> {
    let Some((pre, suf, middle)) = tokens(tokenizer) else {
        let message = "suffix needs a model that fills in the middle, and this one's vocabulary has no tokens for that \
                       · help: leave it out";
        return Err(ApiError::field("suffix", message));
    };
    let suffix = inner(tokenizer, suffix)?;
    Ok(match middle {
        Some(middle) => [before, vec![pre], prefix, vec![suf], suffix, vec![middle]].concat(),
        None => [before, vec![suf], suffix, vec![pre], prefix].concat(),
    })
}

/// The tokens of a text that stands within another.
fn inner(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, TokenizerError> {
    let (anchor, anchored) = (tokenizer.encode(ANCHOR, false)?, tokenizer.encode(&format!("{ANCHOR}{text}"), false)?);
    match anchored.strip_prefix(anchor.as_slice()) {
        Some(rest) => Ok(rest.to_vec()),
        None => tokenizer.encode(text, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock;

    fn tokenizer(tokens: &[&str]) -> Tokenizer {
        let json = mock::tokenizer_json(tokens);
        Tokenizer::from_bytes(json.to_string().as_bytes()).unwrap()
    }

    fn filled(tokens: &[&str]) -> Result<String, ApiError> {
        let t = tokenizer(tokens);
        let ids = fill(&t, vec![], t.encode("ab", false).unwrap(), "c é")?;
        Ok(t.decode(&ids, false).unwrap())
    }

    #[test]
    fn parts_come_as_the_model_learned_them() {
        let qwen = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"];
        assert_eq!(filled(&qwen).unwrap(), "<|fim_prefix|>ab<|fim_suffix|>c é<|fim_middle|>");
        let deepseek = ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"];
        assert_eq!(filled(&deepseek).unwrap(), "<｜fim▁begin｜>ab<｜fim▁hole｜>c é<｜fim▁end｜>");
        assert_eq!(filled(&["[PREFIX]", "[SUFFIX]"]).unwrap(), "[SUFFIX]c é[PREFIX]ab");
    }

    #[test]
    fn models_that_did_not_are_told_of() {
        for tokens in [&[][..], &["<fim_prefix>", "<fim_suffix>"]] {
            assert_eq!(filled(tokens).unwrap_err().body().error.param.unwrap(), "suffix");
        }
    }
}

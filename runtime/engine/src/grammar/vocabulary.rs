//! The bytes of each token, from a tokenizer's own tables.
//!
//! Invariants:
//! - special tokens have bytes that no text has, so that only a grammar that names one allows it;
//! - a token that cannot be told has no bytes, and is never allowed.

use super::error::GrammarError;
use crate::tokenizer::Tokenizer;
use llguidance::toktrie::{INVALID_TOKEN, TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};
use std::{collections::HashMap, sync::Arc};

/// Longest token that the trie takes.
const MAX_TOKEN_BYTES: usize = 1000;

/// How a vocabulary writes bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Notation {
    /// Each byte is a printable character: GPT-2's way.
    ByteLevel,
    /// Texts with a mark for the space, and `<0x0A>` for single bytes: SentencePiece's way.
    ByteFallback {
        /// Stands for a space.
        space: char,
    },
}

/// A model's tokens as grammars see them.
struct Vocabulary {
    trie: TokTrie,
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.trie.greedy_tokenize(bytes)
    }

    /// No text is forced upon the model token by token: it may spell what must come as it likes, and no time is spent
    /// on following a text that has no end.
    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}

/// The tokens below `vocab_size`, those of them that end an answer named.
///
/// # Errors
/// The tokenizer writes its tokens in a way that is not known.
pub(super) fn environment(
    tokenizer: &Tokenizer,
    eos_token_ids: &[u32],
    vocab_size: u32,
) -> Result<TokEnv, GrammarError> {
    let words = token_bytes(tokenizer, notation(tokenizer)?, vocab_size);
    let eos: Vec<u32> = eos_token_ids.iter().copied().filter(|id| *id < vocab_size).collect();
    let info = TokRxInfo::new(vocab_size, eos.first().copied().unwrap_or(INVALID_TOKEN));
    let mut trie = TokTrie::from(&info, &words);
    if !eos.is_empty() {
        trie = trie.with_eos_tokens(&eos);
    }
    Ok(Arc::new(Vocabulary { trie }))
}

fn notation(tokenizer: &Tokenizer) -> Result<Notation, GrammarError> {
    let decoder = tokenizer.decoder_json();
    let unknown = || GrammarError::Vocabulary("a tokenizer whose decoder is byte-level or falls back to bytes".into());
    let parts: Vec<&serde_json::Value> = match decoder["decoders"].as_array() {
        Some(parts) => parts.iter().collect(),
        None => vec![&decoder],
    };
    let is = |name: &str| parts.iter().any(|p| p["type"] == name);
    if is("ByteLevel") {
        return Ok(Notation::ByteLevel);
    }
    let replaced = parts.iter().find(|p| p["type"] == "Replace" && p["content"] == " ");
    let mark = replaced.and_then(|p| p["pattern"]["String"].as_str()).and_then(|s| s.chars().next());
    let metaspace = parts.iter().find(|p| p["type"] == "Metaspace");
    let metaspace = metaspace.and_then(|p| p["replacement"].as_str()).and_then(|s| s.chars().next());
    match mark.or(metaspace) {
        Some(space) => Ok(Notation::ByteFallback { space }),
        None if is("ByteFallback") => Ok(Notation::ByteFallback { space: ' ' }),
        None => Err(unknown()),
    }
}

fn token_bytes(tokenizer: &Tokenizer, notation: Notation, vocab_size: u32) -> Vec<Vec<u8>> {
    let letters = letters();
    let mut words = vec![vec![]; vocab_size as usize];
    for (token, id) in tokenizer.vocabulary() {
        if let Some(word) = words.get_mut(id as usize) {
            *word = bytes_of(&token, notation, &letters).unwrap_or_default();
        }
    }
    for (id, content, special) in tokenizer.added_tokens() {
        if let Some(word) = words.get_mut(id as usize) {
            *word = if special { vec![TokTrie::SPECIAL_TOKEN_MARKER] } else { vec![] };
            word.extend_from_slice(content.as_bytes());
        }
    }
    words.iter_mut().filter(|w| w.len() > MAX_TOKEN_BYTES).for_each(Vec::clear);
    words
}

fn bytes_of(token: &str, notation: Notation, letters: &HashMap<char, u8>) -> Option<Vec<u8>> {
    match notation {
        Notation::ByteLevel => token.chars().map(|c| letters.get(&c).copied()).collect(),
        Notation::ByteFallback { space } => {
            let byte = token.strip_prefix("<0x").and_then(|t| t.strip_suffix('>')).filter(|t| t.len() == 2);
            match byte.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                Some(byte) => Some(vec![byte]),
                None => Some(token.replace(space, " ").into_bytes()),
            }
        }
    }
}

/// The characters that stand for bytes in byte-level vocabularies (GPT-2, `bytes_to_unicode`).
fn letters() -> HashMap<char, u8> {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let others = (0..=255u8).filter(|b| !printable(*b));
    let others = others.zip(256u32..).filter_map(|(b, c)| Some((char::from_u32(c)?, b)));
    (0..=255u8).filter(|b| printable(*b)).map(|b| (char::from(b), b)).chain(others).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::fakes::{byte_fallback, byte_level};

    #[test]
    fn bytes_are_what_tokens_decode_to() {
        let env = environment(&byte_level(), &[257], 300).unwrap();
        let trie = env.tok_trie();
        let t = byte_level();
        for text in ["a", "é", "{\"a\": [1]}\n\u{1f600}"] {
            let ids = t.encode(text, false).unwrap();
            assert_eq!(trie.decode_raw(&ids), text.as_bytes());
        }
        assert_eq!((trie.token(257), trie.token(280)), (&b"\xff</s>"[..], &b""[..]));
        assert_eq!(trie.eos_tokens(), [257]);
    }

    #[test]
    fn byte_fallback_has_spaces_and_bytes() {
        let env = environment(&byte_fallback(), &[], 263).unwrap();
        let trie = env.tok_trie();
        assert_eq!((trie.token(10), trie.token(256), trie.token(260)), (&b"\n"[..], &b" "[..], &b" b"[..]));
        assert_eq!(trie.token(262), b"\xff<s>");
    }
}

//! Text to tokens and back, by the model's tokenizer.json.
//!
//! Invariants:
//! - the bytes are untrusted: a file that is too large or no tokenizer is an error, never a crash;
//! - no state: every call stands alone, so one tokenizer serves all threads.

use std::collections::BTreeSet;

/// Largest tokenizer.json that is read: the largest in the field are a tenth of it.
const MAX_BYTES: usize = 256 << 20;

/// Bytes of text for each token that may be, of which a text that may be too long is looked at first: prose has a quarter
/// of them.
const BYTES_PER_TOKEN: usize = 16;

/// Why text and tokens cannot be turned into each other.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// Larger than any tokenizer.
    #[error("tokenizer.json has {bytes} bytes, but at most {MAX_BYTES} are read")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// No tokenizer.
    #[error("tokenizer.json cannot be used: {0}")]
    Unreadable(String),
    /// A text that has no tokens.
    #[error("cannot turn the text into tokens: {0}")]
    Encode(String),
    /// Tokens that have no text.
    #[error("cannot turn the tokens into text: {0}")]
    Decode(String),
}

/// Turns tokens into text.
pub trait Decode: Send + Sync {
    /// The text of tokens. Tokens that the vocabulary lacks have none.
    ///
    /// # Errors
    /// The tokens are refused.
    fn decode(&self, token_ids: &[u32], skip_special_tokens: bool) -> Result<String, TokenizerError>;

    /// Whether the token was added to the vocabulary whole, as special tokens are.
    fn is_added(&self, id: u32) -> bool;

    /// Whether the token is one that texts are decoded without.
    fn is_special(&self, id: u32) -> bool;
}

impl Decode for Tokenizer {
    fn decode(&self, token_ids: &[u32], skip_special_tokens: bool) -> Result<String, TokenizerError> {
        Tokenizer::decode(self, token_ids, skip_special_tokens)
    }

    fn is_added(&self, id: u32) -> bool {
        Tokenizer::is_added(self, id)
    }

    fn is_special(&self, id: u32) -> bool {
        Tokenizer::is_special(self, id)
    }
}

/// A tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    added: BTreeSet<u32>,
    special: BTreeSet<u32>,
}

impl Tokenizer {
    /// Reads a tokenizer.json.
    ///
    /// # Errors
    /// The bytes are no tokenizer, or too many.
    pub fn from_bytes(json: &[u8]) -> Result<Tokenizer, TokenizerError> {
        if json.len() > MAX_BYTES {
            return Err(TokenizerError::TooLarge { bytes: json.len() });
        }
        let mut inner =
            tokenizers::Tokenizer::from_bytes(json).map_err(|e| TokenizerError::Unreadable(e.to_string()))?;
        // Files carry the truncation and padding of their training; a prompt is encoded whole.
        inner.with_truncation(None).map_err(|e| TokenizerError::Unreadable(e.to_string()))?;
        inner.with_padding(None);
        let tokens = inner.get_added_tokens_decoder();
        let special = tokens.iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect();
        Ok(Tokenizer { added: tokens.keys().copied().collect(), special, inner })
    }

    /// The tokens of a text. `add_special_tokens` adds what the model's post-processor says, such as the first token
    /// of a text; a rendered chat template has them already.
    ///
    /// # Errors
    /// The tokenizer has no token for a part of the text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TokenizerError> {
        let encoding =
            self.inner.encode_fast(text, add_special_tokens).map_err(|e| TokenizerError::Encode(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Whether a text has more than `most` tokens by far, told from its beginning: a text of megabytes is not encoded to
    /// find that it never fits. Of one that is false for, the length is known when it is encoded.
    ///
    /// # Errors
    /// The tokenizer has no token for a part of the text.
    pub fn is_far_longer(&self, text: &str, most: usize) -> Result<bool, TokenizerError> {
        let mut bytes = most.saturating_mul(BYTES_PER_TOKEN);
        while bytes < text.len() {
            let beginning = &text[..text.floor_char_boundary(bytes)];
            // Twice as many: what the cut does to the tokens beside it is nothing to that.
            if self.encode(beginning, false)?.len() > 2 * most {
                return Ok(true);
            }
            bytes = bytes.saturating_mul(4).max(1);
        }
        Ok(false)
    }

    /// The text of tokens. Tokens that the vocabulary lacks have none.
    ///
    /// # Errors
    /// The tokenizer's decoder refuses the tokens.
    pub fn decode(&self, token_ids: &[u32], skip_special_tokens: bool) -> Result<String, TokenizerError> {
        self.inner.decode(token_ids, skip_special_tokens).map_err(|e| TokenizerError::Decode(e.to_string()))
    }

    /// The id of a token by its exact content: `<|im_end|>`.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The content of a token, special or not, as its vocabulary writes it.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether the token was added to the vocabulary whole, as special tokens are.
    pub fn is_added(&self, id: u32) -> bool {
        self.added.contains(&id)
    }

    /// Whether the token is special: left out of a text where special tokens are skipped.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// All tokens as the vocabulary writes them, with their ids.
    pub fn vocabulary(&self) -> impl Iterator<Item = (String, u32)> + use<> {
        self.inner.get_vocab(true).into_iter()
    }

    /// Tokens that were added to the vocabulary whole: id, text, and whether it is special.
    pub fn added_tokens(&self) -> impl Iterator<Item = (u32, String, bool)> + use<> {
        let added = self.inner.get_added_tokens_decoder();
        added.into_iter().map(|(id, token)| (id, token.content, token.special))
    }

    /// The decoder, as tokenizer.json has it.
    pub fn decoder_json(&self) -> serde_json::Value {
        self.inner.get_decoder().and_then(|d| serde_json::to_value(d).ok()).unwrap_or_default()
    }

    /// Tokens of the vocabulary, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }
}

/// Small tokenizers for tests: the two ways in which the field turns bytes into text.
#[cfg(test)]
pub(crate) mod fakes {
    use super::Tokenizer;
    use serde_json::{Map, Value, json};

    fn added(tokens: &[(u32, &str)]) -> Value {
        let token = |(id, content): &(u32, &str)| json!({"id": id, "content": content, "special": true, "normalized": false, "lstrip": false, "rstrip": false, "single_word": false});
        tokens.iter().map(token).collect()
    }

    fn bpe(added_tokens: Value, vocab: Map<String, Value>, parts: Value) -> Tokenizer {
        let mut json = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added_tokens,
            "post_processor": null,
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": true, "vocab": vocab, "merges": []}
        });
        json.as_object_mut().unwrap().extend(parts.as_object().unwrap().clone());
        Tokenizer::from_bytes(json.to_string().as_bytes()).unwrap()
    }

    /// GPT-2's way: each byte has a printable character. Ids: 256 bytes, then `<s>`, `</s>`, `<sep>`.
    pub(crate) fn byte_level() -> Tokenizer {
        let mut alphabet: Vec<char> =
            tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().collect();
        alphabet.sort_unstable();
        let vocab = alphabet.iter().enumerate().map(|(id, c)| (c.to_string(), json!(id))).collect();
        let byte_level =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        let parts = json!({"normalizer": null, "pre_tokenizer": byte_level, "decoder": byte_level});
        bpe(added(&[(256, "<s>"), (257, "</s>"), (258, "<sep>")]), vocab, parts)
    }

    /// Llama 2's way: words begin with a mark, unknown characters are spelled in bytes.
    pub(crate) fn byte_fallback() -> Tokenizer {
        let bytes = (0..256).map(|b| (format!("<0x{b:02X}>"), json!(b)));
        let letters = ["▁", "a", "b", "▁a", "▁b", "x"].iter().zip(256..).map(|(s, id)| (s.to_string(), json!(id)));
        let parts = json!({
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
            "pre_tokenizer": null,
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
                {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
        });
        let mut tokenizer = bpe(added(&[(262, "<s>")]), bytes.chain(letters).collect(), json!(parts));
        tokenizer.added.insert(262);
        tokenizer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_tokenizer_are_an_error() {
        for bytes in [&b""[..], b"{}", b"\xff\xfe", b"[[[[", br#"{"version":"1.0","model":{"type":"BPE"}}"#] {
            let message = Tokenizer::from_bytes(bytes).map(|_| ()).unwrap_err().to_string();
            assert!(message.starts_with("tokenizer.json cannot be used: "), "{message}");
        }
    }

    #[test]
    fn texts_that_are_far_too_long_are_told_from_their_beginning() {
        let t = fakes::byte_level();
        let longer = |text: &str, most| t.is_far_longer(text, most).unwrap();
        assert!(longer(&"é".repeat(1000), 10));
        assert!(!longer(&"a".repeat(160), 10), "so short a text is encoded, whatever its length");
        // Tokens of many bytes: the beginning has few of them, and the text is looked at on.
        let sparse = "<sep>".repeat(400);
        assert!(!longer(&sparse, 400) && longer(&sparse, 100));
    }

    #[test]
    fn special_tokens_have_ids_and_are_skipped() {
        let t = fakes::byte_level();
        let ids = t.encode("<s>hi", false).unwrap();
        assert_eq!((ids[0], t.token_to_id("</s>"), t.is_added(257), t.is_added(3)), (256, Some(257), true, false));
        assert_eq!((t.decode(&ids, true).unwrap(), t.decode(&ids, false).unwrap()), ("hi".into(), "<s>hi".into()));
        assert_eq!((t.vocab_size(), t.decode(&[9999], true).unwrap()), (259, String::new()));
    }
}

//! Tokens to text as they come, never half a character.
//!
//! A tokenizer's decoder sees a window of recent tokens; what its text has beyond what was given out already is new.
//! A trailing run of at most three replacement characters may be a character of which bytes are missing: it is held
//! back until it changes or something follows.
//!
//! Invariants:
//! - the texts given out, joined, are what decoding all tokens at once adds to the prompt's text, wherever the tokens
//!   are valid text (invalid bytes of a byte-fallback tokenizer are replaced one by one);
//! - the window stays short: it restarts where its text is complete.

use crate::tokenizer::{Decode, TokenizerError};
use std::sync::Arc;

/// Tokens of the prompt that the first window begins with, so that the answer's first space is kept.
const CONTEXT: usize = 8;
/// Windows of more tokens restart even amid replacement characters.
const LONG_WINDOW: usize = 64;
/// The longest beginning of a character that is not one, in replacement characters.
const MOST_HELD: usize = 3;

/// The text of one sequence.
#[derive(Clone)]
pub struct Detokenizer {
    tokenizer: Arc<dyn Decode>,
    skip_special_tokens: bool,
    /// Special tokens that are not skipped.
    kept: Arc<[u32]>,
    space_between_added: bool,
    window: Vec<u32>,
    /// Tokens at the window's start whose text has been given out.
    read: usize,
    /// Text of the window that has been given out.
    given: String,
    last_was_added: bool,
}

impl Detokenizer {
    /// Continues after `prompt`.
    ///
    /// # Errors
    /// The tokenizer's decoder refuses the prompt.
    pub fn new(
        tokenizer: Arc<dyn Decode>,
        prompt: &[u32],
        skip_special_tokens: bool,
        spaces_between_special_tokens: bool,
    ) -> Result<Detokenizer, TokenizerError> {
        let window = prompt[prompt.len().saturating_sub(CONTEXT)..].to_vec();
        let text = tokenizer.decode(&window, skip_special_tokens)?;
        Ok(Detokenizer {
            given: complete(&text).to_string(),
            read: window.len(),
            last_was_added: window.last().is_some_and(|id| tokenizer.is_added(*id)),
            space_between_added: skip_special_tokens || spaces_between_special_tokens,
            tokenizer,
            skip_special_tokens,
            kept: Arc::default(),
            window,
        })
    }

    /// Keeps these special tokens in the text while others are skipped. To be said before the first token.
    ///
    /// # Errors
    /// The tokenizer's decoder refuses the prompt.
    pub fn keeping(mut self, kept: Arc<[u32]>) -> Result<Detokenizer, TokenizerError> {
        self.kept = kept;
        self.given = complete(&self.decode(&self.window)?).to_string();
        Ok(self)
    }

    /// Takes the next token and returns the text that is certain by now.
    ///
    /// # Errors
    /// The tokenizer's decoder refuses the tokens.
    pub fn push(&mut self, token: u32) -> Result<String, TokenizerError> {
        self.window.push(token);
        let mut text = self.decode(&self.window)?;
        if !(complete(&text).starts_with(&self.given) || self.given.starts_with(complete(&text))) {
            text = self.forget_read()?;
        }
        let certain = complete(&text);
        let new = self.give(certain);
        // A window of skipped tokens alone has no text to tell a word's first space by, so it is not restarted at.
        if certain.len() == text.len() && !new.is_empty() {
            self.restart(self.read)?;
        } else if self.window.len() > LONG_WINDOW {
            self.shorten(&text)?;
        }
        Ok(self.without_added_space(token, new))
    }

    /// The text that was held back: nothing more comes.
    ///
    /// # Errors
    /// The tokenizer's decoder refuses the tokens.
    pub fn finish(&mut self) -> Result<String, TokenizerError> {
        let mut text = self.decode(&self.window)?;
        if !text.starts_with(&self.given) {
            text = self.forget_read()?;
        }
        Ok(self.give(&text))
    }

    fn decode(&self, tokens: &[u32]) -> Result<String, TokenizerError> {
        if !self.skip_special_tokens || self.kept.is_empty() {
            return self.tokenizer.decode(tokens, self.skip_special_tokens);
        }
        let shown = |id: &u32| self.kept.contains(id) || !self.tokenizer.is_special(*id);
        let shown: Vec<u32> = tokens.iter().copied().filter(shown).collect();
        self.tokenizer.decode(&shown, false)
    }

    /// What `text` has beyond what was given out, which grows by it.
    fn give(&mut self, text: &str) -> String {
        let new = text.strip_prefix(self.given.as_str()).unwrap_or_default().to_string();
        self.given.push_str(&new);
        new
    }

    /// Later bytes made earlier ones, already given out, invalid: those stay, and the rest is read by itself.
    fn forget_read(&mut self) -> Result<String, TokenizerError> {
        self.window.drain(..std::mem::take(&mut self.read));
        self.given.clear();
        self.decode(&self.window)
    }

    /// Begins the next window at `from`, a token at whose end all text was given out.
    fn restart(&mut self, from: usize) -> Result<(), TokenizerError> {
        self.window.drain(..from);
        self.read = self.window.len();
        self.given = self.decode(&self.window)?;
        Ok(())
    }

    /// Keeps the last tokens only, if what is held back reads the same without the others.
    fn shorten(&mut self, text: &str) -> Result<(), TokenizerError> {
        let held = text.strip_prefix(self.given.as_str()).unwrap_or(text);
        let from = self.window.len() - CONTEXT;
        let short = self.decode(&self.window[from..])?;
        if let Some(given) = short.strip_suffix(held) {
            self.given = given.to_string();
            self.window.drain(..from);
            self.read = 0;
        }
        Ok(())
    }

    fn without_added_space(&mut self, token: u32, text: String) -> String {
        let added = self.tokenizer.is_added(token);
        let between = std::mem::replace(&mut self.last_was_added, added) && added;
        match text.strip_prefix(' ') {
            Some(rest) if between && !self.space_between_added => rest.to_string(),
            _ => text,
        }
    }
}

/// The text without the replacement characters at its end that may still become others.
fn complete(text: &str) -> &str {
    let replaced = text.chars().rev().take(MOST_HELD).take_while(|c| *c == char::REPLACEMENT_CHARACTER).count();
    &text[..text.len() - replaced * char::REPLACEMENT_CHARACTER.len_utf8()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::fakes::{byte_fallback, byte_level};
    use proptest::prelude::*;

    fn stream(tokenizer: impl Decode + 'static, prompt: &[u32], tokens: &[u32]) -> Vec<String> {
        let mut d = Detokenizer::new(Arc::new(tokenizer), prompt, true, true).unwrap();
        let mut texts: Vec<String> = tokens.iter().map(|t| d.push(*t).unwrap()).collect();
        texts.push(d.finish().unwrap());
        texts
    }

    #[test]
    fn half_a_character_is_held_back() {
        let t = byte_level();
        let tokens = t.encode("aé😀b", false).unwrap();
        assert_eq!(tokens.len(), 8);
        assert_eq!(stream(t, &[], &tokens), ["a", "", "é", "", "", "", "😀", "b", ""]);
    }

    #[test]
    fn an_unfinished_character_is_given_at_the_end() {
        let t = byte_level();
        let tokens = t.encode("é", false).unwrap();
        assert_eq!(stream(t, &[], &tokens[..1]), ["", "\u{fffd}"]);
    }

    #[test]
    fn the_first_space_after_a_prompt_is_kept() {
        let t = byte_fallback();
        let (prompt, space_a) = (t.encode("ab", false).unwrap(), t.token_to_id("▁a").unwrap());
        assert_eq!(t.decode(&[space_a], true).unwrap(), "a");
        assert_eq!(stream(t, &prompt, &[space_a]), [" a", ""]);
    }

    #[test]
    fn invalid_bytes_do_not_take_back_what_was_given() {
        let t = byte_fallback();
        let texts = stream(t, &[], &[0xC3, 0xA9, 0xF0, 0x9F, 257, 0xFF]);
        assert_eq!(
            (texts.concat().as_str(), &texts[1], texts[6].as_str()),
            ("é\u{fffd}\u{fffd}a\u{fffd}", &"é".to_string(), "\u{fffd}")
        );
    }

    #[test]
    fn some_special_tokens_are_kept_where_others_are_skipped() {
        let d = Detokenizer::new(Arc::new(byte_level()), &[256, 258], true, true).unwrap();
        let mut d = d.keeping([258].into()).unwrap();
        let tokens = byte_level().encode("a<s>b<sep></s>c<sep>", false).unwrap();
        let text: String = tokens.iter().map(|t| d.push(*t).unwrap()).collect();
        assert_eq!(text + &d.finish().unwrap(), "ab<sep>c<sep>");
    }

    #[test]
    fn long_runs_of_garbage_keep_the_window_short() {
        let mut d = Detokenizer::new(Arc::new(byte_level()), &[], true, true).unwrap();
        let continuation = byte_level().encode("é", false).unwrap()[1];
        for _ in 0..500 {
            d.push(continuation).unwrap();
        }
        assert!(d.window.len() <= LONG_WINDOW + 1);
    }

    proptest! {
        /// Any bytes at all, in any order.
        #[test]
        fn byte_level_streams_read_as_a_whole(prompt in proptest::collection::vec(0u32..259, 0..12), tokens in proptest::collection::vec(0u32..259, 0..300)) {
            let t = byte_level();
            let decode = |ids: &[u32]| t.decode(ids, true).unwrap();
            let (before, all) = (decode(&prompt), decode(&[&prompt[..], &tokens].concat()));
            prop_assume!(all.starts_with(&before) && !before.ends_with(char::REPLACEMENT_CHARACTER));
            prop_assert_eq!(stream(byte_level(), &prompt, &tokens).concat(), &all[before.len()..]);
        }

        #[test]
        fn byte_fallback_streams_read_as_a_whole(text in "[ab é😀]{0,40}", prompt in "[ab é]{0,9}") {
            let t = byte_fallback();
            let tokens = t.encode(&format!("{prompt}{text}"), false).unwrap();
            let all = t.decode(&tokens, true).unwrap();
            prop_assert_eq!(stream(byte_fallback(), &[], &tokens).concat(), all);
        }
    }
}

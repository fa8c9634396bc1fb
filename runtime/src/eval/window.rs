//! How a text is cut into windows.
//!
//! Invariants: every token of the text is scored exactly once, but for the first where nothing comes before it.

use std::ops::Range;

/// Tokens that are scored together, behind the tokens that begin a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// Which tokens of the text.
    tokens: Range<usize>,
    /// How many tokens stand before them.
    start: usize,
    /// First position, of the window with its start, whose token is scored here.
    from: usize,
}

impl Window {
    /// Its tokens behind `start`.
    pub(super) fn token_ids(&self, start: &[u32], text: &[u32]) -> Vec<u32> {
        [start, &text[self.tokens.clone()]].concat()
    }

    /// Whether the token at a position is scored here.
    pub(super) fn scores(&self, position: usize) -> bool {
        (self.from..self.start + self.tokens.len()).contains(&position)
    }

    /// How many tokens are scored here.
    pub(super) fn scored(&self) -> usize {
        (self.start + self.tokens.len()).saturating_sub(self.from)
    }
}

/// The windows of a text of `tokens` tokens: each has `ctx_size` with its start, and begins `stride` after the last.
///
/// # Errors
/// The start leaves no room, or the stride is zero.
pub(super) fn windows(start: &[u32], tokens: usize, ctx_size: usize, stride: usize) -> Result<Vec<Window>, String> {
    let room = ctx_size.saturating_sub(start.len());
    if room == 0 {
        return Err(format!(
            "--ctx-size {ctx_size} leaves no room behind the {} tokens that begin a text",
            start.len()
        ));
    }
    if stride == 0 {
        return Err("--stride must be at least 1".into());
    }
    let (mut all, mut done) = (vec![], 0);
    for begin in (0..tokens).step_by(stride.min(room)) {
        let end = (begin + room).min(tokens);
        // The first token of all has nothing that foretells it where a text begins with no token of its own.
        let from = (start.len() + done.max(begin) - begin).max(1);
        all.push(Window { tokens: begin..end, start: start.len(), from });
        done = end;
        if end == tokens {
            break;
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_token_is_scored_once(tokens in 0usize..60, start in 0usize..3, ctx in 1usize..20, stride in 1usize..25) {
            let begin = vec![7; start];
            let Ok(windows) = windows(&begin, tokens, ctx, stride) else {
                prop_assert!(ctx <= start);
                return Ok(());
            };
            let text: Vec<u32> = (100..100 + tokens as u32).collect();
            let mut scored = vec![];
            for w in &windows {
                let ids = w.token_ids(&begin, &text);
                prop_assert!(ids.len() <= ctx && ids.starts_with(&begin));
                let here: Vec<u32> = (0..ids.len()).filter(|p| w.scores(*p)).map(|p| ids[p]).collect();
                prop_assert_eq!(here.len(), w.scored());
                scored.extend(here);
            }
            // Without a start, the first token of a window that shares nothing with the last has nothing before it.
            let alone = |t: &u32| start == 0 && (*t as usize - 100).is_multiple_of(stride.min(ctx)) && {
                let at = *t as usize - 100;
                at == 0 || stride >= ctx
            };
            let expected: Vec<u32> = text.iter().copied().filter(|t| !alone(t)).collect();
            prop_assert_eq!(scored, expected);
        }
    }

    #[test]
    fn what_cannot_be_cut_is_refused() {
        assert_eq!(
            windows(&[1], 5, 1, 1).unwrap_err(),
            "--ctx-size 1 leaves no room behind the 1 tokens that begin a text"
        );
        assert_eq!(windows(&[], 5, 4, 0).unwrap_err(), "--stride must be at least 1");
    }
}

//! How much a model may think: behind so many tokens the end of its reasoning is written for it.
//!
//! Invariants: what is written depends on the sequence's own tokens alone.

use std::sync::Arc;

/// How a model marks what it thinks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thinking {
    /// Tokens that begin it.
    pub open: Vec<u32>,
    /// Tokens that end it.
    pub close: Vec<u32>,
    /// Answers begin with it though neither they nor their prompts open it.
    pub implicit: bool,
}

impl Thinking {
    /// Whether `prompt` leaves it open.
    fn begun(&self, prompt: &[u32]) -> bool {
        let last = |mark: &[u32]| prompt.windows(mark.len().max(1)).rposition(|window| window == mark);
        match (last(&self.open), last(&self.close)) {
            (Some(open), close) if close.is_none_or(|close| open > close) => true,
            // Line ends may follow where the prompt closes it itself.
            (_, Some(close)) => self.implicit && close + self.close.len() + 2 < prompt.len(),
            _ => self.implicit,
        }
    }
}

/// What one sequence has thought, and how much it may.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    marks: Arc<Thinking>,
    left: u32,
    within: bool,
}

impl Budget {
    /// Of an answer to `prompt`.
    pub(crate) fn new(marks: &Arc<Thinking>, tokens: u32, prompt: &[u32]) -> Budget {
        Budget { marks: marks.clone(), left: tokens, within: marks.begun(prompt) }
    }

    /// The token that must follow `output`: the next of those that end what is thought, where enough is.
    pub(crate) fn forced(&self, output: &[u32]) -> Option<u32> {
        let close = &self.marks.close;
        // The model may have begun to write the end itself.
        let written = (0..close.len()).rev().find(|n| output.ends_with(&close[..*n]))?;
        (self.within && self.left == 0).then(|| close[written])
    }

    /// Notes the last token of `output`.
    pub(crate) fn note(&mut self, output: &[u32]) {
        if !self.within {
            self.within = output.ends_with(&self.marks.open);
            return;
        }
        self.left = self.left.saturating_sub(1);
        self.within = !output.ends_with(&self.marks.close);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(implicit: bool) -> Arc<Thinking> {
        Arc::new(Thinking { open: vec![1, 2], close: vec![8, 9], implicit })
    }

    /// What a model that writes `wanted` comes to write.
    fn written(budget: u32, prompt: &[u32], wanted: &[u32]) -> Vec<u32> {
        let (mut budget, mut output) = (Budget::new(&marks(false), budget, prompt), vec![]);
        for token in wanted {
            let token = budget.forced(&output).unwrap_or(*token);
            output.push(token);
            budget.note(&output);
        }
        output
    }

    #[test]
    fn the_end_is_written_behind_so_many_tokens() {
        assert_eq!(written(2, &[5], &[1, 2, 3, 4, 5, 6, 7]), [1, 2, 3, 4, 8, 9, 7]);
        assert_eq!(written(2, &[1, 2], &[3, 4, 5, 6, 7]), [3, 4, 8, 9, 7]);
        assert_eq!(written(0, &[1, 2], &[3, 4, 5]), [8, 9, 5]);
        assert_eq!(written(9, &[1, 2], &[3, 8, 9, 5, 6]), [3, 8, 9, 5, 6], "it ends by itself");
        assert_eq!(written(2, &[1, 2], &[3, 8, 5, 6]), [3, 8, 9, 6], "an end that is begun is ended");
        assert_eq!(written(0, &[5], &[3, 4, 5]), [3, 4, 5], "nothing is thought");
    }

    #[test]
    fn what_is_thought_again_counts_too() {
        assert_eq!(written(3, &[1, 2], &[3, 8, 9, 4, 1, 2, 5, 6]), [3, 8, 9, 4, 1, 2, 8, 9]);
    }

    #[test]
    fn prompts_leave_it_open_or_not() {
        let begun = |implicit, prompt: &[u32]| marks(implicit).begun(prompt);
        assert!(begun(false, &[1, 2, 7]) && begun(false, &[1, 2, 8, 9, 5, 1, 2]) && begun(true, &[5, 6]));
        assert!(!begun(false, &[1, 2, 8, 9]) && !begun(false, &[5]) && !begun(true, &[5, 8, 9, 7]));
        assert!(begun(true, &[8, 9, 5, 5, 5]) && !begun(false, &[]));
    }
}

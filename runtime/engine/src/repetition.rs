//! Answers that repeat themselves, told by their last tokens.

use crate::params::{ParamError, check};
use serde::{Deserialize, Serialize};

/// Longest pattern, and most repetitions, that are looked for.
const MOST: u32 = 1024;

/// When an answer counts as repeating itself: its last tokens are one pattern, over and over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepetitionDetection {
    /// Tokens of the longest pattern; 0 looks for none.
    pub max_pattern_size: u32,
    /// Tokens of the shortest pattern; 0 is 1.
    #[serde(default)]
    pub min_pattern_size: u32,
    /// Times that the pattern must stand there, at least 2.
    pub min_count: u32,
}

impl RepetitionDetection {
    pub(crate) fn check(&self) -> Result<(), ParamError> {
        let RepetitionDetection { max_pattern_size: max, min_pattern_size: min, min_count: count } = *self;
        check(max <= MOST, "repetition_detection.max_pattern_size", max, format!("at most {MOST}"))?;
        check(min <= max, "repetition_detection.min_pattern_size", min, format!("at most max_pattern_size, {max}"))?;
        check((2..=MOST).contains(&count), "repetition_detection.min_count", count, format!("from 2 to {MOST}"))
    }

    /// Whether the tokens end in repetitions.
    pub(crate) fn finds(&self, tokens: &[u32]) -> bool {
        let sizes = self.min_pattern_size.max(1)..=self.max_pattern_size;
        sizes.map(|size| size as usize).any(|size| {
            let repeated = size * (self.min_count as usize - 1);
            let before = tokens.len().checked_sub(size + repeated);
            before.is_some_and(|at| tokens[at..at + repeated] == tokens[at + size..])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn repetitions_are_found_at_the_end_and_nowhere_else(
            tokens in proptest::collection::vec(0u32..3, 0..24), max in 0u32..6, min in 0u32..4, count in 2u32..5,
        ) {
            let detection = RepetitionDetection { max_pattern_size: max, min_pattern_size: min, min_count: count };
            let expected = (min.max(1)..=max).any(|size| {
                let pattern = &tokens[tokens.len().saturating_sub(size as usize)..];
                pattern.len() == size as usize && tokens.ends_with(&pattern.repeat(count as usize))
            });
            prop_assert_eq!(detection.finds(&tokens), expected);
        }
    }
}

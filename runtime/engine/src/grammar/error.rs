//! Why an answer cannot be made to follow a grammar.

/// Why an answer cannot be made to follow a grammar. Each message stands for itself; `param` names the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// No kind of grammar, or several.
    #[error(
        "structured output is asked for by {given}, but exactly one of json, regex, choice, grammar, json_object and \
         structural_tag can be followed"
    )]
    NotOne {
        /// The kinds that were given.
        given: String,
    },
    /// A part of a JSON schema that cannot be honoured.
    #[error("the JSON schema's keyword {keyword} at {path} cannot be honoured: {problem}")]
    Keyword {
        /// The keyword.
        keyword: String,
        /// Where it stands: a JSON pointer.
        path: String,
        /// Why not.
        problem: String,
    },
    /// The grammar is none.
    #[error("the {kind} cannot be followed: {problem}")]
    Invalid {
        /// Which kind of grammar.
        kind: &'static str,
        /// Why not.
        problem: String,
    },
    /// The tokens' bytes are not known, so no grammar can be followed.
    #[error("structured output needs {0}")]
    Vocabulary(String),
    /// The answer came to a point where the grammar took more than its share of time or memory, or could not go on.
    #[error("the answer cannot go on: {0}")]
    Stuck(String),
}

impl GrammarError {
    pub(crate) fn invalid(kind: &'static str, problem: impl Into<String>) -> GrammarError {
        GrammarError::Invalid { kind, problem: problem.into() }
    }

    pub(super) fn stuck(cause: impl std::fmt::Display) -> GrammarError {
        let told = first_line(&format!("{cause:#}"));
        GrammarError::Stuck(if told.contains("NoExtension") { "no token can follow".to_string() } else { told })
    }
}

/// What is worth telling of a message that goes on with the state of the one who failed.
pub(super) fn first_line(message: &str) -> String {
    let line = message.lines().find(|l| !l.trim().is_empty()).unwrap_or_default();
    let line = line.strip_prefix("panic: ").unwrap_or(line);
    line.chars().take(400).collect()
}

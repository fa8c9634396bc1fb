//! Why a compile failed: each message names what was found, what was expected, and the next step.

use crate::passes::{Diagnostics, PassBug};
use rvllm_artifact::Mismatch;
use std::{io, path::PathBuf};

/// How many mismatched tensors a message lists.
const LISTED: usize = 8;

/// Why a compile failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// MODEL is neither a directory nor looks like a hub id.
    #[error("no directory `{0}`, and no hub id (org/name) either · help: name a directory that holds config.json")]
    NoModel(String),
    /// A directory without a config.
    #[error("{}: no config.json · help: MODEL is a directory with config.json and safetensors files", .0.display())]
    NoConfig(PathBuf),
    /// A config that no family understands.
    #[error("{}: {source}", path.display())]
    Config {
        /// The config.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<rvllm_models::ConfigError>,
    },
    /// A config whose weights are quantised in a way that is not known.
    #[error("{}: {problem} · help: rvllm compile MODEL --quantize int4 quantises a checkpoint that is not", path.display())]
    Quantization {
        /// The config.
        path: PathBuf,
        /// What was found and what is supported.
        problem: String,
    },
    /// A GGUF file that no model can be made of.
    #[error("{}: {problem}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected.
        problem: String,
    },
    /// The hub did not help, and neither did the cache.
    #[error("hub model {id}: {problem} · help: {help}")]
    Hub {
        /// `org/name`.
        id: String,
        /// What happened.
        problem: String,
        /// What to try.
        help: &'static str,
    },
    /// A directory with a config and no weights.
    #[error(
        "{problem} · help: add --dummy-weights SEED for random weights, or --weights none to name a checkpoint at load"
    )]
    NoCheckpoint {
        /// What was looked for.
        problem: String,
    },
    /// The checkpoint is not one of this config.
    #[error("{}: the checkpoint does not fit its config.json\n{}", path.display(), list(mismatches))]
    Checkpoint {
        /// Its directory.
        path: PathBuf,
        /// Every tensor that is missing, unexpected or misshaped.
        mismatches: Vec<Mismatch>,
    },
    /// Options that contradict each other or the model.
    #[error("{0}")]
    Options(String),
    /// A target that is not known.
    #[error(transparent)]
    Target(#[from] rvllm_targets::UnknownTarget),
    /// The model does something for which there is no kernel.
    #[error("{stage}: {problems}")]
    Unsupported {
        /// The pass that found it.
        stage: &'static str,
        /// Each operation, with the model's line.
        problems: Diagnostics,
    },
    /// A pass broke the graph.
    #[error(transparent)]
    Bug(Box<PassBug>),
    /// Kernels that are not legal: a bug of the compiler.
    #[error("compiler bug: kernel {kernel} is not legal; please report it with this output\n{errors}")]
    KernelBug {
        /// Its symbol.
        kernel: String,
        /// What is wrong with it.
        errors: Diagnostics,
    },
    /// Object code could not be made.
    #[error("target {target}: {source}")]
    Codegen {
        /// The target.
        target: String,
        /// What the code generator said.
        source: Box<rvllm_mlir::Error>,
    },
    /// A file could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// Verb: `read`, `write`, `create` …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The checkpoint or the artifact.
    #[error(transparent)]
    Artifact(Box<rvllm_artifact::Error>),
    /// The caller asked to stop; nothing was left behind.
    #[error("interrupted; nothing was written")]
    Interrupted,
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl From<PassBug> for Error {
    fn from(bug: PassBug) -> Error {
        Error::Bug(Box::new(bug))
    }
}

impl From<rvllm_artifact::Error> for Error {
    fn from(error: rvllm_artifact::Error) -> Error {
        match error {
            rvllm_artifact::Error::Interrupted => Error::Interrupted,
            other => Error::Artifact(Box::new(other)),
        }
    }
}

impl Error {
    /// An [`Error::Io`], for `map_err`.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { action, path, source }
    }
}

fn list(mismatches: &[Mismatch]) -> String {
    let mut lines: Vec<String> = mismatches.iter().take(LISTED).map(|m| format!("  {m}")).collect();
    if mismatches.len() > LISTED {
        lines.push(format!("  and {} more", mismatches.len() - LISTED));
    }
    lines.join("\n")
}

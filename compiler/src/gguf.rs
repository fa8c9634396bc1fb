//! A GGUF file as a model directory: its metadata as the files that Hugging Face's checkpoints bring.
//!
//! Invariants:
//! - config.json is as strict as one that was written by hand: a key of the architecture that changes the computation
//!   and is not understood is an error;
//! - tokenizer.json and its like come from beside the file where they are there.

mod config;
mod tokenizer;

use crate::error::{Error, Result};
use rvllm_artifact::{Checkpoint, gguf::Gguf};
use serde_json::{Map, Value};
use std::{collections::BTreeMap, path::Path};

/// A file that its metadata do not make a model of.
pub(crate) fn refused(path: &Path, problem: impl Into<String>) -> Error {
    Error::Gguf { path: path.into(), problem: problem.into() }
}

/// The map of a JSON object.
fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// The files of a model directory that the metadata make; tokenizer.json only where it is `wanted`.
///
/// # Errors
/// The architecture, or a key of it, is not known; the tokenizer is of an unknown kind.
pub(crate) fn files(path: &Path, checkpoint: &Checkpoint, wanted: bool) -> Result<BTreeMap<&'static str, Vec<u8>>> {
    let Some(gguf) = checkpoint.gguf() else { return Ok(BTreeMap::new()) };
    let config = config::config(gguf, checkpoint).map_err(|problem| refused(path, problem))?;
    let mut files = BTreeMap::from([
        ("config.json", bytes(&config)),
        ("generation_config.json", bytes(&config::generation(gguf))),
        ("tokenizer_config.json", bytes(&tokenizer::config(gguf))),
    ]);
    if wanted {
        let tokenizer = tokenizer::tokenizer(gguf).map_err(|problem| refused(path, problem))?;
        files.insert("tokenizer.json", bytes(&tokenizer));
    }
    Ok(files)
}

fn bytes(json: &Value) -> Vec<u8> {
    json.to_string().into_bytes()
}

/// Ids of the tokens that end an answer, the principal one first.
fn ends(gguf: &Gguf) -> Vec<u64> {
    let ids = ["eos_token_id", "eot_token_id", "eom_token_id"].into_iter();
    let mut ends: Vec<u64> = ids.filter_map(|key| gguf.metadata.u64(&format!("tokenizer.ggml.{key}"))).collect();
    let mut seen = std::collections::BTreeSet::new();
    ends.retain(|id| seen.insert(*id));
    ends
}

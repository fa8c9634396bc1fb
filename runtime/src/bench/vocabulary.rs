//! Tokens for prompts: of a tokenizer at hand, else of the server's.

use super::client::Client;
use crate::error::Failure;
use anyhow::{Context, Result};
use hyper::Method;
use rand::{Rng, rngs::StdRng};
use rvllm_artifact::Artifact;
use rvllm_engine::Tokenizer;
use serde_json::{Value, json};
use std::{fs, path::Path, sync::Arc};

/// How often a random text is corrected until it has its length.
const CORRECTIONS: usize = 8;

/// Who turns text into tokens.
pub enum Vocabulary {
    /// A tokenizer of this process; the ids that random prompts are made of.
    Local(Arc<Tokenizer>, Vec<u32>),
    /// The server's `/tokenize` and `/detokenize`, for the model of this name.
    Remote(Client, String),
}

impl Vocabulary {
    /// Of a tokenizer.
    pub fn local(tokenizer: Arc<Tokenizer>) -> Vocabulary {
        let vocab = u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX);
        let plain = |id: &u32| !tokenizer.is_added(*id) && tokenizer.id_to_token(*id).is_some();
        let ids = (0..vocab).filter(plain).collect();
        Vocabulary::Local(tokenizer, ids)
    }

    /// Of the tokenizer in a file: `tokenizer.json`, a directory with one, or an artifact.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn open(path: &Path) -> Result<Vocabulary> {
        let file = if path.is_dir() { path.join("tokenizer.json") } else { path.to_path_buf() };
        let read = || fs::read(&file).with_context(|| format!("cannot read the tokenizer {}", file.display()));
        let bytes = match file.extension().is_some_and(|e| e == "json") {
            true => read()?,
            false => {
                let artifact = Artifact::open(&file)?;
                let missing = || Failure::usage(format!("{} holds no tokenizer", file.display()));
                artifact.entry("tokenizer.json").ok_or_else(missing)?.to_vec()
            }
        };
        Ok(Vocabulary::local(Arc::new(Tokenizer::from_bytes(&bytes)?)))
    }

    /// The tokens of a text, as a server counts them.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match self {
            Vocabulary::Local(tokenizer, _) => Ok(tokenizer.encode(text, true)?),
            Vocabulary::Remote(client, model) => {
                let body = json!({"model": model, "prompt": text});
                let answer = client.json(Method::POST, "/tokenize", Some(&body)).await.map_err(no_tokenizer)?;
                let ids = answer["tokens"].as_array().context("/tokenize answered without tokens")?;
                Ok(ids.iter().filter_map(Value::as_u64).map(|id| id as u32).collect())
            }
        }
    }

    async fn decode(&self, ids: &[u32]) -> Result<String> {
        match self {
            Vocabulary::Local(tokenizer, _) => Ok(tokenizer.decode(ids, true)?),
            Vocabulary::Remote(client, model) => {
                let body = json!({"model": model, "tokens": ids});
                let answer = client.json(Method::POST, "/detokenize", Some(&body)).await.map_err(no_tokenizer)?;
                Ok(answer["prompt"].as_str().context("/detokenize answered without a prompt")?.to_string())
            }
        }
    }

    /// This many random tokens.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn random(&self, len: usize, random: &mut StdRng) -> Result<Vec<u32>> {
        if len == 0 {
            return Ok(vec![]);
        }
        match self {
            Vocabulary::Local(_, ids) => {
                anyhow::ensure!(!ids.is_empty(), "the tokenizer has special tokens only");
                Ok((0..len).map(|_| ids[random.random_range(0..ids.len())]).collect())
            }
            Vocabulary::Remote(..) => {
                // A word is at least one token.
                let words: Vec<String> = (0..len).map(|_| word(random)).collect();
                let mut ids = self.encode(&words.join(" ")).await?;
                ids.truncate(len);
                Ok(ids)
            }
        }
    }

    /// A text of as many tokens as were drawn, and its tokens. Random tokens do not all survive being written and read
    /// again, so the text is corrected until it has its length.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn text_of(&self, drawn: Vec<u32>, random: &mut StdRng) -> Result<(String, Vec<u32>)> {
        let len = drawn.len();
        let mut text = self.decode(&drawn).await?;
        let mut ids = self.encode(&text).await?;
        for _ in 0..CORRECTIONS {
            if ids.len() == len {
                break;
            }
            if ids.len() < len {
                ids.extend(self.random(len - ids.len(), random).await?);
            }
            ids.truncate(len);
            text = self.decode(&ids).await?;
            ids = self.encode(&text).await?;
        }
        Ok((text, ids))
    }
}

fn word(random: &mut StdRng) -> String {
    let len = random.random_range(3..9);
    (0..len).map(|_| char::from(random.random_range(b'a'..=b'z'))).collect()
}

fn no_tokenizer(error: anyhow::Error) -> anyhow::Error {
    let told = crate::error::message(&error);
    Failure::new(told).help("name the model's tokenizer with --tokenizer DIR|FILE").into()
}

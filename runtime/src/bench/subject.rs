//! The engine that is measured in this process, and where its results go.

use super::write_whole;
use crate::{
    cli::{self, Named},
    error::note,
    model::Session,
};
use anyhow::Result;
use clap::Args;
use serde_json::Value;
use std::path::PathBuf;

/// What is measured
#[derive(Args, Clone, Debug)]
pub struct Subject {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group has no help of its own")]
    pub named: Named,
    /// Write the results as JSON
    #[arg(long, value_name = "FILE")]
    pub output_json: Option<PathBuf>,
    /// Print the results as JSON instead
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group has no help of its own")]
    pub engine: cli::Engine,
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group has no help of its own")]
    pub vllm: cli::vllm::Given<cli::vllm::Offline>,
}

impl Subject {
    /// Loads the model.
    ///
    /// # Errors
    /// There is none, or it does not load.
    pub fn open(&self) -> Result<Session> {
        self.vllm.tell();
        Session::open(self.named.name(), &self.engine, self.json)
    }

    /// Writes and prints the results.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn tell(&self, json: &Value, text: &str) -> Result<()> {
        if let Some(path) = &self.output_json {
            write_whole(path, format!("{json}\n").as_bytes())?;
            note(&format!("results are in {}", path.display()));
        }
        match self.json {
            true => println!("{json}"),
            false => print!("{text}"),
        }
        Ok(())
    }
}

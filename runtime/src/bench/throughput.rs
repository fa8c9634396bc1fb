//! `rvllm bench throughput`: all requests into the engine at once.

use super::{
    dataset::{Dataset, Sample},
    latency::params,
    subject::Subject,
    vocabulary::Vocabulary,
};
use crate::{error::Failure, interrupt, model::Session, progress::Progress};
use anyhow::{Context, Result};
use clap::Args;
use rvllm_engine::Engine;
use serde_json::{Value, json};
use std::{
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

/// `rvllm bench throughput`
#[derive(Args, Debug)]
pub struct Flags {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group has no help of its own")]
    pub subject: Subject,
    /// A tokenizer, where the artifact has none: a directory, tokenizer.json, or another artifact
    #[arg(long, value_name = "DIR|FILE")]
    pub tokenizer: Option<PathBuf>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group has no help of its own")]
    pub dataset: Dataset,
}

/// Runs the command.
///
/// # Errors
/// A flag is wrong, or the model does not load or compute.
pub fn run(flags: &Flags) -> Result<()> {
    let mut session = flags.subject.open()?;
    let vocabulary = vocabulary(flags, &session)?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let samples = runtime.block_on(flags.dataset.samples(&vocabulary))?;
    let mut progress = Progress::new(!flags.subject.json, samples.len(), 0);
    let results = Results::measure(&mut session.engine, &samples, &mut progress, interrupt::flag()?)?;
    progress.clear();
    flags.subject.tell(&results.json(), &results.text())
}

fn vocabulary(flags: &Flags, session: &Session) -> Result<Vocabulary> {
    match (&flags.tokenizer, session.engine.tokenizer()) {
        (Some(path), _) => Vocabulary::open(path),
        (None, Some(tokenizer)) => Ok(Vocabulary::local(tokenizer.clone())),
        (None, None) => {
            Err(Failure::usage("the artifact has no tokenizer").help("name one with --tokenizer DIR|FILE").into())
        }
    }
}

struct Results {
    elapsed: f64,
    requests: usize,
    prompt_tokens: u64,
    output_tokens: u64,
    cached_tokens: u64,
}

impl Results {
    fn measure(engine: &mut Engine, samples: &[Sample], progress: &mut Progress, stop: &AtomicBool) -> Result<Results> {
        let mut results =
            Results { elapsed: 0.0, requests: samples.len(), prompt_tokens: 0, output_tokens: 0, cached_tokens: 0 };
        let start = Instant::now();
        for (i, s) in samples.iter().enumerate() {
            let params = params(u32::try_from(s.output_len).unwrap_or(u32::MAX), 1);
            engine.add_request(i as u64, s.token_ids.clone(), params).with_context(|| format!("prompt {}", i + 1))?;
        }
        while engine.has_unfinished() {
            let outputs = engine.step()?;
            if stop.load(Ordering::Relaxed) {
                return Err(Failure::interrupted("interrupted").into());
            }
            let tokens: usize = outputs.iter().flat_map(|o| &o.sequences).map(|s| s.token_ids.len()).sum();
            let finished: Vec<_> = outputs.iter().filter_map(|o| o.finished).collect();
            progress.step(tokens, finished.len());
            for metrics in finished {
                results.prompt_tokens += u64::from(metrics.num_prompt_tokens);
                results.output_tokens += u64::from(metrics.num_generated_tokens);
                results.cached_tokens += u64::from(metrics.num_cached_tokens);
            }
        }
        results.elapsed = start.elapsed().as_secs_f64();
        Ok(results)
    }

    fn per_second(&self, n: u64) -> f64 {
        n as f64 / self.elapsed
    }

    fn text(&self) -> String {
        let total = self.prompt_tokens + self.output_tokens;
        format!(
            "Throughput: {:.2} requests/s, {:.2} total tokens/s, {:.2} output tokens/s\n\
             Total num prompt tokens:  {} ({} found computed)\nTotal num output tokens:  {}\n",
            self.per_second(self.requests as u64),
            self.per_second(total),
            self.per_second(self.output_tokens),
            self.prompt_tokens,
            self.cached_tokens,
            self.output_tokens,
        )
    }

    /// vLLM's keys, and ours for the two kinds of tokens.
    fn json(&self) -> Value {
        let total = self.prompt_tokens + self.output_tokens;
        json!({
            "elapsed_time": self.elapsed, "num_requests": self.requests, "total_num_tokens": total,
            "requests_per_second": self.per_second(self.requests as u64),
            "tokens_per_second": self.per_second(total),
            "total_input_tokens": self.prompt_tokens, "total_output_tokens": self.output_tokens,
            "output_tokens_per_second": self.per_second(self.output_tokens),
            "cached_tokens": self.cached_tokens,
        })
    }
}

//! `device-tests`: kernels and whole models on a GPU, against what is known to be right.

mod attention;
mod kernels;
mod models;
mod profile;

use anyhow::{Context, Result};
use clap::Parser;
use std::{path::PathBuf, process::ExitCode};

/// Tests that need a GPU
#[derive(Parser, Debug)]
struct Args {
    /// Kernel cases, made by `device-cases`
    #[arg(long, value_name = "FILE")]
    cases: Vec<PathBuf>,
    /// Compiled models
    #[arg(long, value_name = "FILE")]
    model: Vec<PathBuf>,
    /// Time steps of so many sequences of each model, kernel by kernel, instead of testing it
    #[arg(long, value_name = "N,N…", value_delimiter = ',')]
    profile: Vec<u32>,
    /// Time the attention kernels of each model over the shapes of FlashAttention 3, instead of testing it
    #[arg(long)]
    attention: bool,
    /// Tokens of each of these sequences
    #[arg(long, value_name = "N", default_value_t = 256)]
    context: u32,
    /// Also time steps that compute a prompt of so many tokens
    #[arg(long, value_name = "N,N…", value_delimiter = ',')]
    prefill: Vec<u32>,
    /// Random weights from this seed
    #[arg(long, value_name = "SEED")]
    dummy_weights: Option<u64>,
    /// Threads, on a CPU
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Only cases whose name contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// Launches of each case, which must all write the same bits
    #[arg(long, value_name = "N", default_value_t = 3)]
    repeat: usize,
    /// Print every case, not only those that fail
    #[arg(long)]
    verbose: bool,
    /// Which GPU
    #[arg(long, value_name = "N", default_value_t = 0)]
    device: u32,
    /// Succeed where there is no GPU
    #[arg(long)]
    allow_skip: bool,
}

/// What became of the tests.
#[derive(Debug, Default)]
struct Tally {
    passed: usize,
    failed: Vec<String>,
    skipped: Vec<String>,
}

impl Tally {
    fn add(&mut self, name: &str, result: Result<()>) {
        match result {
            Ok(()) => self.passed += 1,
            Err(error) => {
                println!("FAIL {name}: {error:#}");
                self.failed.push(name.to_string());
            }
        }
    }
}

fn run(args: &Args) -> Result<Tally> {
    let mut tally = Tally::default();
    for path in &args.cases {
        kernels::run(path, args, &mut tally).with_context(|| path.display().to_string())?;
    }
    for path in &args.model {
        let ran = match (args.attention, args.profile.is_empty() && args.prefill.is_empty()) {
            (true, _) => attention::run(path, args),
            (false, true) => models::run(path, args, &mut tally),
            (false, false) => profile::run(path, args),
        };
        ran.with_context(|| path.display().to_string())?;
    }
    Ok(tally)
}

fn main() -> ExitCode {
    let args = Args::parse();
    let tally = match run(&args) {
        Ok(tally) => tally,
        Err(error) => {
            eprintln!("device-tests: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    tally.skipped.iter().for_each(|what| println!("skipped: {what}"));
    println!("{} passed, {} failed, {} skipped", tally.passed, tally.failed.len(), tally.skipped.len());
    let skipped = !tally.skipped.is_empty() && !args.allow_skip;
    if !tally.failed.is_empty() || skipped { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

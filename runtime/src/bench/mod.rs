//! `rvllm bench`: how fast a server answers, and how fast an engine computes; vLLM's flags and vLLM's JSON keys.
//!
//! | module | what |
//! |---|---|
//! | [`serve`] | load on any OpenAI-compatible server: [`traffic`] over a [`client`] that speaks [`tls`] and reads [`sse`] |
//! | [`latency`], [`throughput`] | the engine in this process, a [`subject`] of flags |
//! | [`dataset`], [`vocabulary`] | what is asked |
//! | [`results`], [`stats`], [`html`] | what came of it |
//!
//! Invariants: a figure is printed, written as JSON and drawn from one place; failed requests are counted and shown, and
//! never part of a mean.

pub mod client;
pub mod dataset;
pub mod html;
pub mod latency;
pub mod results;
pub mod serve;
pub mod sse;
pub mod stats;
pub mod subject;
pub mod throughput;
pub mod tls;
pub mod traffic;
pub mod vocabulary;

use crate::error::Failure;
use anyhow::{Context, Result};
use clap::Subcommand;
use std::{fs, io::Write, path::Path};

/// What is measured
#[derive(Subcommand, Debug)]
pub enum Bench {
    /// Load a server, ours or any that speaks OpenAI's API: throughput, TTFT, TPOT, ITL, goodput
    Serve(Box<serve::Flags>),
    /// Time one batch of requests through the engine, over and over
    Latency(Box<latency::Flags>),
    /// Put all requests into the engine at once
    Throughput(Box<throughput::Flags>),
}

/// Runs the command.
///
/// # Errors
/// A flag is wrong, what is to be measured cannot be had, or every request failed.
pub fn run(bench: &Bench) -> Result<()> {
    match bench {
        Bench::Serve(flags) => serve::run(flags),
        Bench::Latency(flags) => latency::run(flags),
        Bench::Throughput(flags) => throughput::run(flags),
    }
}

/// Writes a result: beside, then renamed, so that none is half there.
///
/// # Errors
/// The file cannot be written.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let place = || format!("cannot write {}", path.display());
    fs::create_dir_all(dir).with_context(place)?;
    let name = path.file_name().with_context(place)?.to_string_lossy();
    let beside = dir.join(format!(".{name}.{}.tmp", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut file = fs::File::create(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    write().inspect_err(|_| drop(fs::remove_file(&beside))).with_context(place)
}

/// `KEY=VALUE` of a flag.
///
/// # Errors
/// There is no `=`.
pub fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("`{text}` is not KEY=VALUE"))?;
    Ok((key.trim().to_string(), value.trim().to_string()))
}

/// Percentiles of a flag: `50,99`.
///
/// # Errors
/// One is not from 0 to 100.
pub fn percentiles(text: &str) -> Result<Vec<f64>, Failure> {
    let one = |t: &str| t.trim().parse().ok().filter(|p: &f64| (0.0..=100.0).contains(p));
    let wrong = || Failure::usage(format!("`{text}` are no percentiles")).help("write 50,90,99");
    text.split(',').map(one).collect::<Option<Vec<f64>>>().ok_or_else(wrong)
}

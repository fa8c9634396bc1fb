//! What prefix caching costs where nothing repeats: random prompts, with it and without, in turn.
//! `cargo bench -p rvllm-benches --bench prefix_caching [-- ARTIFACT]`; the demo model, which `make demo` compiles, where
//! none is named.
//!
//! Two engines in one process answer the same prompts, one after the other, and the other way round in the next pair, so
//! that whatever else the machine does falls on both. The figure is the median of the pairs' ratios, by the wall clock; the
//! interval beside it holds the true median in 95 of 100 runs, whatever the distribution. With caching every round writes
//! blocks that have not been used for longest, without it those that have just been: so the pool is of a few rounds, all
//! of whose memory has been touched before anything is timed.

use anyhow::{Context, Result};
use rvllm_artifact::Artifact;
use rvllm_engine::{Engine, EngineOptions, SamplingParams, random};
use std::{path::PathBuf, time::Instant};

const PAIRS: usize = 41;
/// Ranks, from either end, of the interval: 41 pairs have fewer than 14 ratios on one side of the median in 2.2 % of runs.
const RANK: usize = 13;
const PROMPTS: u64 = 16;
const PROMPT: u64 = 512;
const TOKENS: u32 = 32;
/// Rounds whose blocks the pool holds: more than the processor's caches do.
const POOL: u64 = 4;
const GOAL: f64 = 0.01;

fn engine(artifact: &Artifact, caching: bool) -> Result<Engine> {
    let blocks = (PROMPT + u64::from(TOKENS)).div_ceil(u64::from(artifact.manifest().kv_cache.block_size));
    let options = EngineOptions {
        enable_prefix_caching: Some(caching),
        num_blocks: Some((POOL * PROMPTS * blocks) as u32),
        ..EngineOptions::default()
    };
    Ok(Engine::load(artifact, options)?)
}

/// Seconds that prompts which no other round has take.
fn round(engine: &mut Engine, round: u64) -> Result<f64> {
    let vocab = u64::from(engine.limits().vocab_size);
    let params = SamplingParams {
        temperature: 0.0,
        max_tokens: Some(TOKENS),
        ignore_eos: true,
        detokenize: false,
        ..SamplingParams::default()
    };
    let start = Instant::now();
    for id in 0..PROMPTS {
        let prompt = (0..PROMPT).map(|i| (random::word(round, id, i) % vocab) as u32).collect();
        engine.add_request(id, prompt, params.clone())?;
    }
    while engine.has_unfinished() {
        engine.step()?;
    }
    Ok(start.elapsed().as_secs_f64())
}

fn main() -> Result<()> {
    let named = std::env::args().skip(1).find(|a| !a.starts_with('-')).map(PathBuf::from);
    let path = named.unwrap_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/demo.rvllm")));
    let artifact = Artifact::open(&path).with_context(|| format!("{} · help: make demo", path.display()))?;
    let (mut with, mut without) = (engine(&artifact, true)?, engine(&artifact, false)?);
    let mut ratios = vec![];
    for pair in 0..PAIRS as u64 + POOL {
        let first = pair % 2 == 0;
        let before = if first { round(&mut with, pair)? } else { 0.0 };
        let plain = round(&mut without, pair)?;
        let cached = if first { before } else { round(&mut with, pair)? };
        // The first pairs touch the pool's memory for the first time, which the system then has to find.
        ratios.extend((pair >= POOL).then_some(cached / plain - 1.0));
    }
    ratios.sort_by(f64::total_cmp);
    let percent = |i: usize| 100.0 * ratios[i];
    let (low, median, high) = (percent(RANK), percent(PAIRS / 2), percent(PAIRS - 1 - RANK));
    let verdict = if ratios[PAIRS / 2] <= GOAL { "within" } else { "beyond" };
    println!(
        "{PROMPTS} random prompts of {PROMPT}, {TOKENS} out, {PAIRS} pairs: prefix caching costs {median:.2} % of the time"
    );
    println!("  ({low:.2} to {high:.2} %), {verdict} the goal of {:.0} %", 100.0 * GOAL);
    Ok(())
}

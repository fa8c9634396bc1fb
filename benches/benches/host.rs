//! What a step costs beside the model: scheduling, building the step, sampling and outputs, of 256 sequences that decode.
//! `cargo bench -p rvllm-benches --bench host`.
//!
//! The model is a stand-in that computes nothing: it returns rows of 128,256 logits, with maxima and sums of exponentials
//! of them and of their runs, and tokens drawn from them with their ranks and the most likely ones, as kernels leave them in memory; two sets of rows take turns, 263 MB together, so that what is read of
//! them comes from memory. Counted is all of [`Engine::step`]: which tokens of which sequences, the step's arrays, choosing
//! a token for each, noting it, and the list of outputs. Not counted are the kernels, text (which is made beside the engine)
//! and HTTP. `before` is what happens before the model is called, `after` what happens after.

use anyhow::{Context, Result};
use rvllm_engine::{
    Engine, EngineParts, Forward, Limits, MemoryTable, SamplingParams,
    block_pool::BlockId,
    device::DeviceError,
    draw,
    forward::{LOGITS_BLOCK, Logits},
    random,
    row::Blocks,
    step::Step,
};
use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

const SEQS: u32 = 256;
const VOCAB: u32 = 128_256;
const PROMPT: u32 = 128;
const WARM_UP: usize = 50;
const STEPS: usize = 500;
const GOAL_US: f64 = 150.0;

/// Rows of logits as a model leaves them.
struct Rows {
    logits: Vec<f32>,
    max: Vec<f32>,
    logsumexp: Vec<f32>,
    blocks: Blocks,
}

impl Rows {
    /// Log-probabilities that fall off with the rank's power of 1.5, with noise, in random order.
    fn new(seed: u64) -> Rows {
        let (mut logits, mut max, mut logsumexp) = (vec![], vec![], vec![]);
        for row in 0..u64::from(SEQS) {
            let logit = |id: u64| {
                let rank = 1 + random::word(seed, row, id) % u64::from(VOCAB);
                (5.0 - 1.5 * (rank as f64).ln() + random::uniform(seed, row + 1000, id)) as f32
            };
            let start = logits.len();
            logits.extend((0..u64::from(VOCAB)).map(logit));
            let this = &logits[start..];
            max.push(largest(this));
            logsumexp.push(this.iter().map(|l| f64::from(*l).exp()).sum::<f64>().ln() as f32);
        }
        Rows { logits, max, logsumexp, blocks: Blocks::default() }
    }

    /// Computes the runs' statistics for a temperature.
    fn set_temperature(&mut self, temperature: f32) {
        self.blocks.clear();
        for row in self.logits.chunks(VOCAB as usize) {
            self.blocks.push(row, Some(temperature));
        }
    }
}

fn largest(values: &[f32]) -> f32 {
    values.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

/// When the model was called, and when it returned.
type Calls = Arc<Mutex<Option<(Instant, Instant)>>>;

/// What kernels drew from the rows of each step, how they ranked it, and which tokens they found most likely.
type Drawn = Arc<Mutex<Vec<[Vec<f32>; 3]>>>;

struct NoModel {
    limits: Limits,
    /// Noted in a first run, and found in memory in the one that is timed.
    drawn: Drawn,
    draws: Vec<f32>,
    ranks: Vec<f32>,
    most_likely: Vec<f32>,
    rows: Arc<[Rows; 2]>,
    steps: usize,
    calls: Calls,
}

impl NoModel {
    fn logits(&self, count: usize) -> Logits<'_> {
        let (rows, vocab_size) = (&self.rows[self.steps % 2], VOCAB as usize);
        let blocks = vocab_size.div_ceil(LOGITS_BLOCK);
        Logits {
            vocab_size,
            logits: &rows.logits[..count * vocab_size],
            max: &rows.max[..count],
            logsumexp: &rows.logsumexp[..count],
            block_max: &rows.blocks.max[..count * blocks],
            block_sum: &rows.blocks.sum[..count * blocks],
            draws: &self.draws,
            ranks: &self.ranks,
            most_likely: &self.most_likely,
        }
    }

    /// What kernels draw, how they rank it, and what they find.
    fn draw(&self, step: &Step) -> [Vec<f32>; 3] {
        let [mut drawn, mut ranked, mut found] = [vec![], vec![], vec![]];
        for (i, numbers) in step.uniform.as_chunks().0.iter().enumerate() {
            let (row, temperature) = (self.logits(step.logits_indices.len()).row(i), step.temperature[i]);
            let draws = draw::draw(&row, temperature, numbers);
            let ranks = if step.ranked[i] > 0 { draw::rank(&row, temperature, &draws) } else { [0.0; _] };
            drawn.extend(draws);
            ranked.extend(ranks);
            found.extend(draw::top_k(&row, step.top_k[i]));
        }
        [drawn, ranked, found]
    }
}

impl Forward for NoModel {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn forward(&mut self, step: &Step) -> Result<Logits<'_>, DeviceError> {
        let start = Instant::now();
        self.steps += 1;
        if let Ok(mut all) = self.drawn.clone().lock() {
            if all.len() < self.steps {
                all.push(self.draw(step));
            }
            [self.draws, self.ranks, self.most_likely] = all[self.steps - 1].clone();
        }
        if let Ok(mut calls) = self.calls.lock() {
            *calls = Some((start, Instant::now()));
        }
        Ok(self.logits(step.logits_indices.len()))
    }

    fn copy_block(&mut self, _: BlockId, _: BlockId) -> Result<(), DeviceError> {
        Ok(())
    }
}

fn engine(rows: &Arc<[Rows; 2]>, calls: &Calls, drawn: &Drawn) -> Engine {
    let limits = Limits {
        vocab_size: VOCAB,
        max_model_len: 4096,
        max_num_seqs: SEQS,
        max_num_batched_tokens: 8192,
        max_logits: SEQS,
        query_tile: 16,
        block_size: 16,
        num_blocks: SEQS * 256,
    };
    Engine::new(EngineParts {
        forward: Box::new(NoModel {
            limits,
            drawn: drawn.clone(),
            draws: vec![],
            ranks: vec![],
            most_likely: vec![],
            rows: rows.clone(),
            steps: 0,
            calls: calls.clone(),
        }),
        tokenizer: None,
        eos_token_ids: vec![0],
        seed: Some(1),
        memory: MemoryTable::default(),
        threads: 1,
    })
}

/// Times of a step: all of it, before the model, and after.
#[derive(Clone, Copy)]
struct Times([Duration; 3]);

fn step(engine: &mut Engine, calls: &Calls) -> Result<Times> {
    let start = Instant::now();
    let outputs = engine.step()?;
    let end = Instant::now();
    assert!(!outputs.is_empty());
    let (called, returned) = calls.lock().ok().and_then(|c| *c).unwrap_or((end, end));
    Ok(Times([end - start - (returned - called), called - start, end - returned]))
}

/// Times of all steps.
fn run(params: &SamplingParams, rows: &Arc<[Rows; 2]>, drawn: &Drawn) -> Result<Vec<Times>> {
    let calls = Calls::default();
    let mut engine = engine(rows, &calls, drawn);
    for id in 0..u64::from(SEQS) {
        let prompt = (0..PROMPT).map(|i| (i * 31 + id as u32 * 7) % VOCAB).collect();
        engine.add_request(id, prompt, params.clone())?;
    }
    (0..WARM_UP + STEPS).map(|_| step(&mut engine, &calls)).collect()
}

fn measure(name: &str, params: &SamplingParams, rows: &mut Arc<[Rows; 2]>) -> Result<()> {
    let sets = Arc::get_mut(rows).context("rows are in use")?;
    sets.iter_mut().for_each(|rows| rows.set_temperature(params.drawn_at().unwrap_or(1e-30)));
    let drawn = Drawn::default();
    run(params, rows, &drawn)?;
    let mut times = run(params, rows, &drawn)?.split_off(WARM_UP);
    let mut at = |part: usize, fraction: f64| {
        times.sort_by_key(|t| t.0[part]);
        times[(fraction * (STEPS - 1) as f64) as usize].0[part].as_secs_f64() * 1e6
    };
    let (median, p90, before, after) = (at(0, 0.5), at(0, 0.9), at(1, 0.5), at(2, 0.5));
    let verdict = if median <= GOAL_US { "within" } else { "beyond" };
    println!(
        "  {name:<28} {median:>9.1} µs (p90 {p90:.1}; before {before:.1}, after {after:.1}), {verdict} {GOAL_US} µs"
    );
    Ok(())
}

/// Scheduling and building steps of prompts that repeat nothing, 16 of 512 tokens each, with prefix caching and without.
fn measure_prefill(rows: &Arc<[Rows; 2]>) -> Result<()> {
    const PROMPTS: u64 = 16;
    let calls = Calls::default();
    let drawn = [Drawn::default(), Drawn::default()];
    let mut engines = drawn.each_ref().map(|drawn| engine(rows, &calls, drawn));
    engines[0].set_prefix_caching(false);
    let params =
        SamplingParams { temperature: 0.0, max_tokens: Some(1), detokenize: false, ..SamplingParams::default() };
    let mut times = [vec![], vec![]];
    for round in 0..(WARM_UP + STEPS) as u64 {
        for (engine, times) in engines.iter_mut().zip(&mut times) {
            for id in 0..PROMPTS {
                let token = |i: u64| 1 + (random::word(round, id, i) % u64::from(VOCAB - 1)) as u32;
                engine.add_request(id, (0..512).map(token).collect(), params.clone())?;
            }
            times.push(step(engine, &calls)?.0[0]);
        }
    }
    let [without, with] = times.map(|mut times| {
        times.sort_unstable();
        times[times.len() / 2].as_secs_f64() * 1e6
    });
    println!("  prefill of {PROMPTS} × 512        {without:>9.1} µs, {with:.1} with prefix caching");
    Ok(())
}

fn main() -> Result<()> {
    let base = SamplingParams {
        max_tokens: Some(3000),
        ignore_eos: true,
        detokenize: false,
        seed: Some(1),
        ..SamplingParams::default()
    };
    let with = |temperature: f32, top_p: f32, top_k: i32| SamplingParams { temperature, top_p, top_k, ..base.clone() };
    let mut rows = Arc::new([Rows::new(1), Rows::new(2)]);
    println!("{SEQS} sequences that decode, {VOCAB} logits each, {STEPS} steps, medians, one thread");
    for (name, params) in [
        ("greedy", with(0.0, 1.0, 0)),
        ("temperature 1", with(1.0, 1.0, 0)),
        ("temperature 0.7", with(0.7, 1.0, 0)),
        ("temperature 0.6, top_p 0.9", with(0.6, 0.9, 0)),
        ("temperature 1, top_p 0.95", with(1.0, 0.95, 0)),
        ("temperature 1, min_p 0.05", SamplingParams { min_p: 0.05, ..with(1.0, 1.0, 0) }),
        ("0.7, top_p 0.8, top_k 20", with(0.7, 0.8, 20)),
        ("0.7, presence_penalty 1", SamplingParams { presence_penalty: 1.0, ..with(0.7, 1.0, 0) }),
        ("greedy, logprobs 5", SamplingParams { logprobs: Some(5), ..with(0.0, 1.0, 0) }),
    ] {
        measure(name, &params, &mut rows)?;
    }
    measure_prefill(&rows)
}

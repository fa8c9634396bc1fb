//! Whole steps of real models' shapes with random weights in bf16, int8 and int4: prefill of 512 tokens, decode at batch 1, 8, 16 and
//! 32, each beside its floor on this machine. `cargo bench -p rvllm-benches --bench step [-- SHAPE… WEIGHTS…]`. With the path of
//! llama.cpp's `llama-bench` in `RVLLM_LLAMA_BENCH`, each figure is also divided by the peer's on weights of as many bits (bf16, Q8_0,
//! Q4_0), the two measured in turn, run by run.
//!
//! Floors: a step reads every weight once, scales included, at the read bandwidth measured in the same run, and does two operations
//! per weight and token at the measured rate of dot products of its values (where the CPU has them); the longer of the two.

use anyhow::{Context, Result};
use rvllm_artifact::{Artifact, cpu};
use rvllm_benches::{
    ceiling,
    llama::{Format, Llama},
    median,
};
use rvllm_compiler::{
    Options,
    options::{DTypeChoice, QuantizeChoice},
    progress::Silent,
};
use rvllm_engine::{Engine, EngineOptions, SamplingParams};
use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    thread::available_parallelism,
    time::Instant,
};

const SHAPES: [&str; 2] = ["qwen2.5-0.5b", "llama-3.2-1b"];
const PREFILL: usize = 512;
const PROMPT: usize = 128;
const STEPS: u32 = 8;
const RUNS: usize = 5;
const BATCHES: [u64; 4] = [1, 8, 16, 32];

/// What weights are.
#[derive(Clone, Copy)]
struct Weights {
    name: &'static str,
    quantize: Option<QuantizeChoice>,
    /// As many bits of the peer's.
    peer: Format,
}

const WEIGHTS: [Weights; 3] = [
    Weights { name: "bf16", quantize: None, peer: Format::Bf16 },
    Weights { name: "int8", quantize: Some(QuantizeChoice::Int8), peer: Format::Q8_0 },
    Weights { name: "int4", quantize: Some(QuantizeChoice::Int4), peer: Format::Q4_0 },
];

struct Shape {
    engine: Engine,
    peer: Option<Llama>,
    vocab: u32,
    /// Bytes that a decode step reads.
    weight_bytes: f64,
    /// Weights that each token of a decode is multiplied with.
    parameters: f64,
    /// The same of a prefill, which makes logits of its last token alone.
    weights_per_token: f64,
}

fn artifact(shape: &str, weights: Weights) -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = root.join(format!("../target/{shape}-{}.rvllm", weights.name));
    let options = Options {
        output: Some(path.clone()),
        dtype: DTypeChoice::Bf16,
        quantize: weights.quantize,
        dummy_weights: Some(1),
        max_model_len: Some(4096),
        ..Options::new(root.join("shapes").join(shape).display().to_string())
    };
    let start = Instant::now();
    rvllm_compiler::compile(&options, &Silent)?;
    println!("{shape}, {}: compiled, weights and all, in {:.1} s", weights.name, start.elapsed().as_secs_f64());
    Ok(path)
}

/// Bytes of the weights that this machine's kernels read.
fn weight_bytes(artifact: &Artifact) -> Result<f64> {
    let plan = artifact.plan(artifact.target(&cpu::has_feature)?)?;
    Ok(plan.weights.iter().filter_map(|w| w.bytes()).sum::<u64>() as f64)
}

fn load(shape: &str, weights: Weights, threads: usize) -> Result<Shape> {
    let artifact = Artifact::open(&artifact(shape, weights)?)?;
    let model = &artifact.manifest().model;
    let (vocab, hidden) = (model.vocab_size, model.hidden_size);
    let parameters = model.parameters as f64;
    // the same prompts come again and again
    let options =
        EngineOptions { threads: Some(threads), enable_prefix_caching: Some(false), ..EngineOptions::default() };
    let engine = Engine::load(&artifact, options)?;
    let embedding = f64::from(vocab) * f64::from(hidden);
    Ok(Shape {
        engine,
        peer: peer(shape, weights, threads)?,
        vocab,
        weight_bytes: weight_bytes(&artifact)?,
        parameters,
        weights_per_token: parameters - embedding,
    })
}

impl Shape {
    fn request(&mut self, id: u64, prompt: usize, tokens: u32) -> Result<()> {
        let params = SamplingParams {
            temperature: 0.0,
            max_tokens: Some(tokens),
            ignore_eos: true,
            detokenize: false,
            ..SamplingParams::default()
        };
        let prompt = (0..prompt as u64).map(|i| ((i * 7919 + id * 104_729) % u64::from(self.vocab)) as u32).collect();
        Ok(self.engine.add_request(id, prompt, params)?)
    }

    fn finish(&mut self) -> Result<()> {
        while self.engine.has_unfinished() {
            self.engine.step()?;
        }
        Ok(())
    }

    /// Tokens per second of one prompt.
    fn prefill(&mut self) -> Result<f64> {
        self.request(0, PREFILL, 1)?;
        let start = Instant::now();
        self.finish()?;
        Ok(PREFILL as f64 / start.elapsed().as_secs_f64())
    }

    /// Tokens per second of `batch` sequences that all decode.
    fn decode(&mut self, batch: u64) -> Result<f64> {
        for id in 0..batch {
            self.request(id, PROMPT, STEPS + 4)?;
        }
        let mut decoding = HashSet::new();
        while decoding.len() < batch as usize {
            decoding.extend(self.engine.step()?.iter().filter(|o| !o.sequences.is_empty()).map(|o| o.request_id));
        }
        let start = Instant::now();
        for _ in 0..STEPS {
            self.engine.step()?;
        }
        let rate = batch as f64 * f64::from(STEPS) / start.elapsed().as_secs_f64();
        self.finish()?;
        Ok(rate)
    }

    /// Medians of what is measured here and of the peer, run by run in turn.
    fn medians(
        &mut self,
        ours: impl Fn(&mut Shape) -> Result<f64>,
        peers: impl Fn(&Llama) -> Result<f64>,
    ) -> Result<(f64, Option<f64>)> {
        let (mut rates, mut of_peer) = (vec![], vec![]);
        for _ in 0..RUNS {
            rates.push(ours(self)?);
            of_peer.extend(self.peer.as_ref().map(&peers).transpose()?);
        }
        let peer = (!of_peer.is_empty()).then(|| median(of_peer));
        Ok((median(rates), peer))
    }
}

/// llama.cpp with a model of this shape, where it is installed.
fn peer(shape: &str, weights: Weights, threads: usize) -> Result<Option<Llama>> {
    let Some(bench) = std::env::var_os("RVLLM_LLAMA_BENCH") else { return Ok(None) };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = root.join("shapes").join(shape).join("config.json");
    let model = root.join(format!("../target/{shape}-{}.gguf", weights.name));
    Llama::new(Path::new(&bench), &config, weights.peer, model, threads).map(Some)
}

/// Ceilings of this machine.
struct Ceilings {
    bandwidth: f64,
    /// Rate of dot products of what weights are, where the CPU has them.
    dots: Option<f64>,
}

impl Ceilings {
    fn new(weights: Weights, threads: usize) -> Ceilings {
        let dots = if weights.quantize.is_some() { ceiling::dot_i8(threads) } else { ceiling::dot_bf16(threads) };
        Ceilings { bandwidth: ceiling::read_bandwidth(threads), dots }
    }

    /// Tokens per second of steps of `tokens` tokens, each multiplied with `weights` weights.
    fn limit(&self, shape: &Shape, tokens: usize, weights: f64) -> f64 {
        let read = shape.weight_bytes / (self.bandwidth * 1e9);
        let work = self.dots.map_or(0.0, |d| 2.0 * weights * tokens as f64 / (d * 1e9));
        tokens as f64 / read.max(work)
    }
}

fn row(what: &str, tokens: usize, (rate, peer): (f64, Option<f64>), limit: f64) {
    let peer = peer.map_or(String::new(), |p| format!("  {:>6.2} times llama.cpp's {p:.1}", rate / p));
    println!("  {what} {tokens:>4}  {rate:>8.1} tokens/s  {:>5.0} % of {limit:.1}{peer}", 100.0 * rate / limit);
}

fn measure(name: &str, weights: Weights, threads: usize) -> Result<()> {
    let mut shape = load(name, weights, threads).with_context(|| format!("{name}, {}", weights.name))?;
    let ceilings = Ceilings::new(weights, threads);
    let peak = ceilings.dots.map_or("none".to_string(), |d| format!("{d:.0} GOP/s"));
    let (bytes, read) = (shape.weight_bytes / 1e6, ceilings.bandwidth);
    println!(
        "{name}, {}: {bytes:.0} MB of weights, {threads} threads, read {read:.1} GB/s, dot products {peak}",
        weights.name
    );
    let rates = shape.medians(Shape::prefill, |peer| peer.prefill(PREFILL))?;
    row("prefill", PREFILL, rates, ceilings.limit(&shape, PREFILL, shape.weights_per_token));
    for batch in BATCHES {
        let rate = shape.medians(|s| s.decode(batch), |peer| peer.decode(batch, PROMPT, STEPS))?;
        row("decode ", batch as usize, rate, ceilings.limit(&shape, batch as usize, shape.parameters));
    }
    Ok(())
}

fn main() -> Result<()> {
    let threads = available_parallelism()?.get();
    let asked: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let (shapes, weights): (Vec<String>, Vec<String>) =
        asked.into_iter().partition(|a| WEIGHTS.iter().all(|w| w.name != a));
    let wanted = |asked: &[String], name: &str| asked.is_empty() || asked.iter().any(|a| a == name);
    for shape in SHAPES.iter().filter(|s| wanted(&shapes, s)) {
        for weights in WEIGHTS.iter().filter(|w| wanted(&weights, w.name)) {
            measure(shape, *weights, threads)?;
        }
    }
    Ok(())
}

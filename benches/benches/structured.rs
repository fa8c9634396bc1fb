//! What structured output costs: the same prompts and lengths with and without a grammar, and how long a mask takes.
//! `cargo bench -p rvllm-benches --bench structured [-- ARTIFACT…]`; the demo model where none is named.
//!
//! Both sides draw exactly `TOKENS` tokens at temperature 1 for each of `batch` sequences, end tokens ignored. They take turns, so that
//! whatever else the machine does falls on both; the ratio is of the medians.

use anyhow::{Context, Result};
use rvllm_artifact::Artifact;
use rvllm_benches::median;
use rvllm_compiler::{Options, options::DTypeChoice, progress::Silent};
use rvllm_engine::{Engine, EngineOptions, SamplingParams, StructuredOutputs, grammar::Matcher};
use serde_json::json;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

const PROMPT: usize = 64;
const TOKENS: u32 = 96;
const RUNS: usize = 7;
const BATCHES: [u64; 3] = [1, 8, 32];

/// Grammars with no end before `TOKENS` tokens: a schema of nested objects and lists, free text in a string, and the same
/// with its characters counted, so that no state of the lexer comes twice.
fn forms() -> [(&'static str, StructuredOutputs); 3] {
    let item = json!({"type": "object", "additionalProperties": false, "required": ["id", "name", "tags", "at"], "properties": {
        "id": {"type": "integer"}, "name": {"type": "string", "maxLength": 30}, "kind": {"enum": ["a", "bb", "ccc"]},
        "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{1,12}$"}},
        "at": {"type": "string", "format": "date-time"}}});
    let list = json!({"type": "array", "items": item, "minItems": 1000});
    [
        ("objects", StructuredOutputs::json_schema(list)),
        (
            "a string",
            StructuredOutputs { regex: Some(r#""([^"\\]|\\["\\/bfnrt])*"#.into()), ..StructuredOutputs::default() },
        ),
        ("a string, counted", StructuredOutputs::json_schema(json!({"type": "string", "minLength": 20_000}))),
    ]
}

fn demo() -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = root.join("../target/demo-bench.rvllm");
    let options = Options {
        output: Some(path.clone()),
        dtype: DTypeChoice::Bf16,
        ..Options::new(root.join("../models/demo").display().to_string())
    };
    rvllm_compiler::compile(&options, &Silent)?;
    Ok(path)
}

/// Tokens per second of `batch` sequences.
fn rate(engine: &mut Engine, batch: u64, form: Option<&StructuredOutputs>) -> Result<f64> {
    let vocab = u64::from(engine.limits().vocab_size);
    let params = |seed: u64| SamplingParams {
        max_tokens: Some(TOKENS),
        ignore_eos: true,
        seed: Some(seed as i64),
        structured_outputs: form.cloned(),
        ..SamplingParams::default()
    };
    let start = Instant::now();
    for id in 0..batch {
        let prompt = (0..PROMPT as u64).map(|i| ((i * 7919 + id * 104_729) % vocab) as u32).collect();
        engine.add_request(id, prompt, params(id))?;
    }
    let mut tokens = 0;
    while engine.has_unfinished() {
        let outputs = engine.step()?;
        tokens += outputs.iter().flat_map(|o| &o.sequences).map(|s| s.token_ids.len()).sum::<usize>();
    }
    anyhow::ensure!(tokens as u64 == batch * u64::from(TOKENS), "both sides have the same lengths");
    Ok(tokens as f64 / start.elapsed().as_secs_f64())
}

/// Times of single masks, along answers that take every token by turns.
fn masks(engine: &Engine, form: &StructuredOutputs) -> Result<Vec<Duration>> {
    let grammar = engine.grammars().compile(form)?;
    let mut times = vec![];
    for seed in 0..20u64 {
        let mut matcher = Matcher::new(grammar.clone(), Arc::from([]));
        let mut output = vec![];
        for position in 0..u64::from(TOKENS) {
            let mask = matcher.mask()?.context("a grammar without end")?;
            let allowed: Vec<u32> = mask.tokens().filter(|id| !engine.eos_token_ids().contains(id)).collect();
            let token = allowed[(rvllm_engine::random::word(seed, 0, position) % allowed.len() as u64) as usize];
            output.push(token);
            let start = Instant::now();
            matcher.advance(token, &output);
            matcher.mask()?;
            times.push(start.elapsed());
        }
    }
    times.sort_unstable();
    Ok(times)
}

fn report(path: &Path) -> Result<()> {
    let artifact = Artifact::open(path)?;
    let options = EngineOptions { enable_prefix_caching: Some(false), ..EngineOptions::default() };
    let mut engine = Engine::load(&artifact, options)?;
    println!("{}, vocabulary of {}", path.display(), engine.limits().vocab_size);
    for (name, form) in forms() {
        let start = Instant::now();
        engine.grammars().compile(&form)?;
        let compiled = start.elapsed();
        let times = masks(&engine, &form)?;
        let at = |percent: usize| times[(times.len() - 1) * percent / 100];
        println!("{name}: compiled in {compiled:.1?}; mask p50 {:.1?} p99 {:.1?} max {:.1?}", at(50), at(99), at(100));
        for batch in BATCHES {
            let (mut free, mut bound) = (vec![], vec![]);
            for _ in 0..RUNS {
                free.push(rate(&mut engine, batch, None)?);
                bound.push(rate(&mut engine, batch, Some(&form))?);
            }
            let (free, bound) = (median(free), median(bound));
            println!("  batch {batch}: {free:.0} tokens/s free, {bound:.0} bound, ratio {:.3}", bound / free);
        }
    }
    Ok(())
}

fn main() -> Result<()> {
    let named: Vec<PathBuf> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).map(PathBuf::from).collect();
    let paths = if named.is_empty() { vec![demo()?] } else { named };
    paths.iter().try_for_each(|path| report(path))
}

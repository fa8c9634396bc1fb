//! Models whose checkpoints are quantised already: what kernels multiply with is what the checkpoint stores, and answers are
//! near those of the same numbers in f32.

use anyhow::{Context, Result, ensure};
use rvllm_artifact::gguf::blocks::Encoding;
use rvllm_compiler::{
    Options,
    options::{DTypeChoice, QuantizeChoice},
};
use rvllm_engine::{EngineOptions, SamplingParams};
use rvllm_tests::{
    gguf,
    model::{Compiled, answers, greedy, logprob, root},
    quantized::{self, Layout},
};
use safetensors::SafeTensors;
use std::{collections::BTreeSet, fs, path::Path};

/// Tokens that are scored.
const TOKENS: usize = 2000;
/// How much another perplexity activations of 8 bits may give.
const NEAR: f64 = 0.02;

fn demo() -> std::path::PathBuf {
    root().join("models/demo")
}

fn compile(model: &Path, change: impl FnOnce(&mut Options)) -> Result<Compiled> {
    let mut options = Options::new(model.display().to_string());
    change(&mut options);
    Compiled::with(options)
}

/// The demo in a layout, in a directory of its own.
fn checkpoint(layout: Layout, symmetric: bool) -> Result<tempfile::TempDir> {
    let dir = tempfile::tempdir()?;
    quantized::write(&demo(), layout, symmetric, dir.path())?;
    Ok(dir)
}

/// Perplexity of the first tokens of the held-out text.
fn perplexity(model: &Compiled) -> Result<f64> {
    let text = fs::read_to_string(root().join("tests/goldens/texts/books_heldout.txt"))?;
    let mut engine = model.engine(EngineOptions { threads: Some(2), ..EngineOptions::default() })?;
    let tokens = engine.tokenizer().context("the demo has a tokenizer")?.encode(&text, false)?;
    let params = SamplingParams { prompt_logprobs: Some(0), ..greedy(1) };
    let windows: Vec<&[u32]> = tokens[..TOKENS].chunks(500).collect();
    let requests: Vec<_> = windows.iter().map(|window| (window.to_vec(), params.clone())).collect();
    let (mut nll, mut count) = (0.0, 0);
    for (window, answer) in windows.iter().zip(answers(&mut engine, &requests)?) {
        for (token, at) in window.iter().zip(&answer.prompt_logprobs).filter_map(|(t, at)| Some((t, at.as_ref()?))) {
            nll -= f64::from(logprob(at, *token).context("every token of the prompt is scored")?);
            count += 1;
        }
    }
    Ok((nll / f64::from(count)).exp())
}

/// Names of the weights of `model` that end so, with their bytes.
fn weights(model: &Compiled, ends: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
    let file = model.artifact.entry("weights/model.safetensors").context("embedded weights")?;
    let tensors = SafeTensors::deserialize(file)?.tensors();
    let wanted = tensors.into_iter().filter(|(name, _)| ends.iter().any(|end| name.ends_with(end)));
    let mut all: Vec<_> = wanted.map(|(name, view)| (name, view.data().to_vec())).collect();
    all.sort();
    Ok(all)
}

/// The layers' weights of `ours` are those of `theirs`, byte for byte.
fn same_values(what: &str, ours: &Compiled, theirs: &Compiled) -> Result<()> {
    let layers = |model| -> Result<Vec<_>> {
        let all = weights(model, &[".values", ".scales", ".zeros"])?;
        Ok(all.into_iter().filter(|(name, _)| name.contains("layers.")).collect())
    };
    let (ours, theirs) = (layers(ours)?, layers(theirs)?);
    ensure!(!ours.is_empty(), "{what}: no weight is stored as values");
    let names = |all: &[(String, Vec<u8>)]| all.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    ensure!(names(&ours) == names(&theirs), "{what}: {:?}, not {:?}", names(&ours), names(&theirs));
    let differ = ours.iter().zip(&theirs).find(|(a, b)| a != b);
    ensure!(differ.is_none(), "{what}: {:?} differs", differ.map(|(a, _)| &a.0));
    Ok(())
}

/// As it is stored, and widened to f32: the perplexities are near.
fn near_widened(what: &str, model: &Path) -> Result<Compiled> {
    let stored = compile(model, |_| ())?;
    let widened = compile(model, |o| (o.as_stored, o.dtype) = (false, DTypeChoice::F32))?;
    ensure!(weights(&widened, &[".values"])?.is_empty(), "{what}: widened weights are no values");
    let (ours, theirs) = (perplexity(&stored)?, perplexity(&widened)?);
    println!("{what}: perplexity {ours:.4} as stored, {theirs:.4} widened to f32");
    ensure!((ours / theirs - 1.0).abs() < NEAR, "{what}: perplexity {ours} as stored, {theirs} widened");
    Ok(stored)
}

#[test]
fn symmetric_values_are_those_that_quantize_makes() -> Result<()> {
    let int4 = compile(&demo(), |o| o.quantize = Some(QuantizeChoice::Int4))?;
    for layout in [Layout::Gptq, Layout::Awq, Layout::Packed] {
        let dir = checkpoint(layout, true)?;
        let ours = compile(dir.path(), |_| ())?;
        same_values(&format!("{layout:?}"), &ours, &int4)?;
    }
    let dir = checkpoint(Layout::Int8, true)?;
    let int8 = compile(&demo(), |o| o.quantize = Some(QuantizeChoice::Int8))?;
    same_values("Int8", &compile(dir.path(), |_| ())?, &int8)
}

#[test]
fn e4m3_is_kept_for_hopper_and_widened_for_cpus() -> Result<()> {
    let dir = checkpoint(Layout::E4m3, true)?;
    let hopper = |o: &mut Options| o.targets = vec!["sm_90a".to_string()];
    let fp8 = compile(&demo(), |o| {
        hopper(o);
        o.quantize = Some(QuantizeChoice::Fp8);
    })?;
    same_values("E4m3", &compile(dir.path(), hopper)?, &fp8)?;
    widened_on_cpus("E4m3", dir.path())
}

/// On a CPU the numbers that e4m3 values stand for are multiplied with, and are near those before.
fn widened_on_cpus(what: &str, model: &Path) -> Result<()> {
    let widened = compile(model, |_| ())?;
    ensure!(weights(&widened, &[".values"])?.is_empty(), "{what}: CPUs multiply with no e4m3");
    let (ours, plain) = (perplexity(&widened)?, perplexity(&compile(&demo(), |_| ())?)?);
    println!("{what}: perplexity {ours:.4}, {plain:.4} before it was quantised");
    ensure!((ours / plain - 1.0).abs() < NEAR, "{what}: perplexity {ours}, {plain} before it was quantised");
    Ok(())
}

#[test]
fn blocks_of_e4m3_are_kept_for_hopper_and_widened_for_cpus() -> Result<()> {
    let hopper = |o: &mut Options| o.targets = vec!["sm_90a".to_string()];
    let dir = checkpoint(Layout::Fp8Blocks, true)?;
    let ours = compile(dir.path(), hopper)?;
    let other = checkpoint(Layout::FloatBlocks, true)?;
    same_values("FloatBlocks", &compile(other.path(), hopper)?, &ours)?;
    let file = fs::read(dir.path().join("model.safetensors"))?;
    kept_in_blocks(&ours, &SafeTensors::deserialize(&file)?)?;
    let plan = ours.artifact.plan(ours.artifact.target_named("sm_90a")?)?;
    let products = plan.kernels.iter().filter(|k| k.symbol.starts_with("gemm_")).map(|k| k.symbol.as_str());
    let products: Vec<&str> = products.filter(|name| !name.starts_with("gemm_bf16_l")).collect();
    ensure!(products.iter().all(|name| name.starts_with("gemm_f8e4m3g128_f32_")), "{products:?}");
    widened_on_cpus("Fp8Blocks", dir.path())
}

/// Every block's scale and values are in the layers' weights of `ours` as often as `file` has them.
fn kept_in_blocks(ours: &Compiled, file: &SafeTensors<'_>) -> Result<()> {
    let counts = |bytes: &[u8]| {
        bytes.iter().fold([0usize; 256], |mut counts, b| {
            counts[usize::from(*b)] += 1;
            counts
        })
    };
    let total = |all: &[(String, Vec<u8>)]| counts(&all.iter().flat_map(|(_, b)| b.clone()).collect::<Vec<_>>());
    let stored: Vec<_> =
        file.tensors().into_iter().filter(|(_, view)| view.dtype() == safetensors::Dtype::F8_E4M3).collect();
    let theirs: Vec<u8> = stored.iter().flat_map(|(_, view)| view.data().to_vec()).collect();
    let (mut found, wanted) = (total(&weights(ours, &[".values"])?), counts(&theirs));
    // what fills a last block up
    ensure!(found[0] >= wanted[0], "{} zeros, {} stored", found[0], wanted[0]);
    found[0] = wanted[0];
    ensure!(found == wanted, "values differ");
    let scales = |bytes: &[u8]| bytes.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect::<BTreeSet<_>>();
    let inverse = file.tensors().into_iter().filter(|(name, _)| name.ends_with("weight_scale_inv"));
    let wanted: BTreeSet<u32> = inverse.flat_map(|(_, view)| scales(view.data())).collect();
    let found: BTreeSet<u32> =
        weights(ours, &[".scales"])?.iter().flat_map(|(_, b)| scales(b)).filter(|b| *b != 0).collect();
    ensure!(found == wanted, "{} scales, {} stored", found.len(), wanted.len());
    Ok(())
}

#[test]
fn values_of_4_bits_are_kept_for_hopper_and_activations_too() -> Result<()> {
    let hopper = |o: &mut Options| o.targets = vec!["sm_90a".to_string()];
    let dir = checkpoint(Layout::Gptq, true)?;
    let int4 = compile(&demo(), |o| {
        hopper(o);
        o.quantize = Some(QuantizeChoice::Int4);
    })?;
    same_values("Gptq", &compile(dir.path(), hopper)?, &int4)?;
    let zeros = compile(checkpoint(Layout::Awq, false)?.path(), hopper)?;
    ensure!(!weights(&zeros, &[".zeros"])?.is_empty(), "AWQ has zeros");
    let plan = zeros.artifact.plan(zeros.artifact.target_named("sm_90a")?)?;
    let names: Vec<&str> = plan.kernels.iter().map(|k| k.symbol.as_str()).collect();
    ensure!(names.iter().any(|name| name.starts_with("gemm_u4g64z_")), "no product with zeros in {names:?}");
    ensure!(names.iter().all(|name| !name.starts_with("quantize_rows")), "activations are quantised in {names:?}");
    Ok(())
}

#[test]
fn answers_are_near_those_of_the_numbers_in_f32() -> Result<()> {
    for layout in [Layout::Gptq, Layout::Awq, Layout::Packed] {
        let dir = checkpoint(layout, false)?;
        let stored = near_widened(&format!("{layout:?} with zeros"), dir.path())?;
        ensure!(!weights(&stored, &[".zeros"])?.is_empty(), "{layout:?} has no zeros");
    }
    let dir = checkpoint(Layout::Int8, true)?;
    near_widened("Int8", dir.path()).map(|_| ())
}

#[test]
fn gguf_blocks_stay_as_they_are() -> Result<()> {
    let dir = tempfile::tempdir()?;
    type Of = fn(&str) -> Encoding;
    // runs' scales of two factors become one f16, and 5 and 6 bits 8
    let files: [(&str, Of, f64); 5] = [
        ("Q4_0", |_| Encoding::Q4_0, 1.05),
        ("Q8_0", |_| Encoding::Q8_0, 1.05),
        ("Q4_K_M", gguf::q4_k_m, 1.25),
        ("Q5_K", |name| if name.contains("embed_tokens") { Encoding::Q6K } else { Encoding::Q5K }, 1.6),
        ("Q6_K", |_| Encoding::Q6K, 1.4),
    ];
    for (encoding, of, most) in files {
        let path = dir.path().join(format!("{encoding}.gguf"));
        gguf::write(&demo(), of, &path)?;
        let stored = near_widened(encoding, &path)?;
        let file = rvllm_artifact::Checkpoint::open(&path)?;
        let header = file.gguf().context("a GGUF file")?.header_bytes();
        let theirs = fs::metadata(&path)?.len() as f64 - header as f64;
        let ours: usize =
            weights(&stored, &[""])?.iter().filter(|(name, _)| !name.contains("rope")).map(|w| w.1.len()).sum();
        println!("{encoding}: {ours} bytes packed, {theirs} in the file");
        ensure!(ours as f64 <= most * theirs, "{encoding}: {ours} bytes packed, {theirs} in the file");
    }
    Ok(())
}

#[test]
fn fewer_bits_can_be_asked_for_and_more_are_not_made_up() -> Result<()> {
    let dir = checkpoint(Layout::Int8, true)?;
    let kinds =
        |model: &Compiled| -> Result<usize> { Ok(weights(model, &[".values"])?.iter().map(|w| w.1.len()).sum()) };
    let as_stored = kinds(&compile(dir.path(), |_| ())?)?;
    let int4 = kinds(&compile(dir.path(), |o| o.quantize = Some(QuantizeChoice::Int4))?)?;
    ensure!(int4 < as_stored, "{int4} bytes of int4, {as_stored} as stored");
    let four = checkpoint(Layout::Gptq, true)?;
    let kept = compile(four.path(), |o| o.quantize = Some(QuantizeChoice::Int8))?;
    same_values("int8 on 4 bits", &kept, &compile(four.path(), |_| ())?)
}

//! Whole models against transformers' answers (`goldens/README.md`): every variant of the family in f32, the demo model
//! in f32 and bf16, and its perplexity on held-out text.

#[path = "../goldens/golden.rs"]
mod golden;

use anyhow::{Context, Result, ensure};
use golden::{Case, Golden, Greedy};
use rvllm_artifact::gguf::blocks::Encoding;
use rvllm_compiler::{
    Options,
    options::{DTypeChoice, KvCacheChoice, QuantizeChoice},
};
use rvllm_engine::{EngineOptions, Logprobs, SamplingParams};
use rvllm_tests::{
    launch,
    model::{Answer, Compiled, answers, command, greedy, logprob, root},
};
use serde::Deserialize;
use std::fs;

/// Tokens must be equal where the two most likely are at least this far apart.
const MARGIN: f64 = 1e-2;
/// Log-probabilities of an f32 build differ from transformers' by at most this.
const TOLERANCE: f64 = 2e-3;

fn read<T: for<'a> Deserialize<'a>>(path: &str) -> Result<T> {
    let text = fs::read(root().join(path)).with_context(|| path.to_string())?;
    serde_json::from_slice(&text).with_context(|| path.to_string())
}

fn close(what: &str, ours: f32, theirs: f64) -> Result<()> {
    ensure!((f64::from(ours) - theirs).abs() <= TOLERANCE, "{what}: {ours}, but transformers gives {theirs}");
    Ok(())
}

fn check_prompt(case: &Case, answer: &Answer) -> Result<()> {
    ensure!(answer.prompt_logprobs.len() == case.prompt.len(), "{} prompt logprobs", answer.prompt_logprobs.len());
    for (i, (ours, theirs)) in answer.prompt_logprobs.iter().zip(&case.prompt_logprobs).enumerate() {
        match (ours, theirs) {
            (None, None) => {}
            (Some(ours), Some(theirs)) => {
                let ours = logprob(ours, case.prompt[i]).context("the prompt's own token is reported")?;
                close(&format!("prompt token {i}"), ours, *theirs)?;
            }
            _ => anyhow::bail!("prompt token {i}: {ours:?} against {theirs:?}"),
        }
    }
    Ok(())
}

/// The tokens that transformers lists at a step, of which those at the end may have changed places with others.
fn check_top(step: usize, golden: &Greedy, ours: &Logprobs) -> Result<()> {
    let mut known = 0;
    for (id, theirs) in golden.top_ids[step].iter().zip(&golden.top_logprobs[step]) {
        if let Some(ours) = logprob(ours, *id) {
            close(&format!("step {step}, token {id}"), ours, *theirs)?;
            known += 1;
        }
    }
    ensure!(known >= 18, "step {step}: only {known} of the top 20 are reported");
    Ok(())
}

/// Compares what was decoded up to the first step whose margin is too small to demand the same token.
fn check_greedy(golden: &Greedy, answer: &Answer) -> Result<()> {
    for (step, token) in golden.tokens.iter().enumerate() {
        check_top(step, golden, &answer.logprobs[step])?;
        if golden.margins[step] < MARGIN {
            return Ok(());
        }
        let ours = answer.tokens[step];
        ensure!(ours == *token, "step {step}: token {ours}, but transformers chose {token}");
    }
    Ok(())
}

/// Compares every step of the continuation, which was given as a prompt: whatever the margins.
fn check_given(case: &Case, answer: &Answer) -> Result<()> {
    let steps = answer.prompt_logprobs.iter().skip(case.prompt.len());
    ensure!(steps.len() == case.greedy.tokens.len(), "{} steps have log-probabilities", steps.len());
    for (step, ours) in steps.enumerate() {
        check_top(step, &case.greedy, ours.as_ref().context("only the first token has none")?)?;
    }
    Ok(())
}

/// A prompt to be continued, and the prompt with its continuation.
fn requests(case: &Case) -> [(Vec<u32>, SamplingParams); 2] {
    let continued = SamplingParams { prompt_logprobs: Some(0), ..greedy(case.greedy.tokens.len() as u32) };
    let given = SamplingParams { prompt_logprobs: Some(20), ..greedy(1) };
    [(case.prompt.clone(), continued), ([&case.prompt[..], &case.greedy.tokens].concat(), given)]
}

fn check_variant(variant: &str) -> Result<()> {
    let dir = format!("tests/goldens/{variant}");
    let golden: Golden = read(&format!("{dir}/golden.json"))?;
    let model = Compiled::new(&dir, DTypeChoice::F32, "native", Some(golden.max_model_len))?;
    let mut engine = model.engine(EngineOptions { threads: Some(2), ..EngineOptions::default() })?;
    let ours = answers(&mut engine, &golden.cases.iter().flat_map(requests).collect::<Vec<_>>())?;
    for (case, ours) in golden.cases.iter().zip(ours.as_chunks::<2>().0) {
        let what = || format!("{variant}, prompt of {}", case.prompt.len());
        let [continued, given] = ours;
        check_prompt(case, continued).with_context(what)?;
        check_greedy(&case.greedy, continued).with_context(what)?;
        check_given(case, given).with_context(what)?;
    }
    Ok(())
}

#[test]
fn every_variant_answers_as_transformers() -> Result<()> {
    let mut variants: Vec<String> = vec![];
    for entry in fs::read_dir(root().join("tests/goldens"))? {
        let entry = entry?;
        if entry.path().join("golden.json").is_file() {
            variants.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    variants.sort();
    ensure!(variants.len() >= 10, "only {} variants", variants.len());
    let failures: Vec<String> =
        variants.iter().filter_map(|v| check_variant(v).err()).map(|e| format!("{e:#}")).collect();
    ensure!(failures.is_empty(), "{} of {} variants:\n{}", failures.len(), variants.len(), failures.join("\n"));
    Ok(())
}

#[derive(Deserialize)]
struct DemoGolden {
    prompts: Vec<DemoPrompt>,
    perplexity: std::collections::BTreeMap<String, Perplexity>,
}

#[derive(Deserialize)]
struct DemoPrompt {
    input_ids: Vec<u32>,
    greedy_ids: Vec<u32>,
    top1_top2_margins: Vec<f32>,
    first_logits_top20: FirstLogits,
}

#[derive(Deserialize)]
struct FirstLogits {
    ids: Vec<u32>,
    logits: Vec<f32>,
    logsumexp: f32,
}

#[derive(Deserialize)]
struct Perplexity {
    first8_window_nll: Vec<f64>,
}

fn demo(dtype: DTypeChoice) -> Result<(DemoGolden, Compiled)> {
    Ok((read("models/demo/goldens.json")?, Compiled::new("models/demo", dtype, "native", None)?))
}

/// First answers to all prompts of the demo's goldens, with their whole distribution at the first step.
fn demo_answers(golden: &DemoGolden, model: &Compiled) -> Result<Vec<Answer>> {
    let request = |p: &DemoPrompt| {
        (p.input_ids.clone(), SamplingParams { logprobs: Some(-1), ..greedy(p.greedy_ids.len() as u32) })
    };
    let mut engine = model.engine(EngineOptions { threads: Some(2), ..EngineOptions::default() })?;
    answers(&mut engine, &golden.prompts.iter().map(request).collect::<Vec<_>>())
}

#[test]
fn the_demo_in_f32_gives_transformers_tokens() -> Result<()> {
    let (golden, model) = demo(DTypeChoice::F32)?;
    for (i, (prompt, answer)) in golden.prompts.iter().zip(demo_answers(&golden, &model)?).enumerate() {
        let sure = prompt.top1_top2_margins.iter().position(|m| *m < 1e-3).unwrap_or(prompt.greedy_ids.len());
        ensure!(answer.tokens[..sure] == prompt.greedy_ids[..sure], "prompt {i}: {:?}", answer.tokens);
    }
    Ok(())
}

#[test]
fn the_demo_in_bf16_is_within_two_percent() -> Result<()> {
    let (golden, model) = demo(DTypeChoice::Bf16)?;
    for (i, (prompt, answer)) in golden.prompts.iter().zip(demo_answers(&golden, &model)?).enumerate() {
        let (l2, tv) = distance(&prompt.first_logits_top20, &answer)?;
        ensure!(l2 <= 0.02, "prompt {i}: relative L2 of the logits {l2}");
        ensure!(tv <= 0.02, "prompt {i}: total variation {tv}");
    }
    Ok(())
}

/// Weights of the same bits, the same tokens of a text, the same conversation: then it answers the same.
#[test]
fn the_demo_as_a_gguf_file_is_the_same_model() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("demo.gguf");
    rvllm_tests::gguf::write(&root().join("models/demo"), |_| Encoding::Bf16, &path)?;
    let (golden, theirs) = demo(DTypeChoice::Auto)?;
    let ours = Compiled::new(&path.display().to_string(), DTypeChoice::Auto, "native", None)?;
    let weights = |model: &Compiled| -> Vec<u8> {
        let names = model.artifact.entries().map(|e| e.0).filter(|name| name.starts_with("weights/"));
        names.filter_map(|name| model.artifact.entry(name)).flatten().copied().collect()
    };
    ensure!(!weights(&ours).is_empty() && weights(&ours) == weights(&theirs), "the weights differ");
    let (manifest, expected) = (&ours.artifact.manifest().model, &theirs.artifact.manifest().model);
    ensure!(manifest.eos_token_ids == expected.eos_token_ids && manifest.bos_token_id == expected.bos_token_id);
    let engines = [ours.engine(EngineOptions::default())?, theirs.engine(EngineOptions::default())?];
    let tokenizers = engines.each_ref().map(|e| e.tokenizer().cloned());
    let [Some(ours_t), Some(theirs_t)] = &tokenizers else { anyhow::bail!("one has no tokenizer") };
    let text = fs::read_to_string(root().join("tests/goldens/texts/books_heldout.txt"))?;
    let text: String = text.chars().take(20_000).collect();
    for text in [&text, " 12 345 don't\n\n\t<|end_of_text|>x", ""] {
        ensure!(ours_t.encode(text, true)? == theirs_t.encode(text, true)?, "{text:.80}");
    }
    for (prompt, answer) in golden.prompts.iter().zip(demo_answers(&golden, &ours)?).take(2) {
        ensure!(ours_t.decode(&answer.tokens, true)? == theirs_t.decode(&answer.tokens, true)?);
        ensure!(answer.tokens.len() == prompt.greedy_ids.len());
    }
    Ok(())
}

/// Relative L2 of the top twenty logits and total variation of the top twenty and the rest. Log-probabilities
/// give the logits up to a shift; theirs is undone with transformers' logsumexp.
fn distance(golden: &FirstLogits, answer: &Answer) -> Result<(f64, f64)> {
    let (mut diff, mut norm, mut tv, mut ours_mass, mut their_mass) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for (id, logit) in golden.ids.iter().zip(&golden.logits) {
        let ours = f64::from(logprob(&answer.logprobs[0], *id).context("all tokens are reported")?);
        let (theirs, lse) = (f64::from(*logit), f64::from(golden.logsumexp));
        diff += (ours + lse - theirs).powi(2);
        norm += theirs * theirs;
        tv += (ours.exp() - (theirs - lse).exp()).abs() / 2.0;
        ours_mass += ours.exp();
        their_mass += (theirs - lse).exp();
    }
    let rest: f64 = ours_mass - their_mass;
    Ok(((diff / norm).sqrt(), tv + rest.abs() / 2.0))
}

/// The protocol of `goldens/README.md` on the first eight windows, whose sum transformers gives.
#[test]
fn held_out_perplexity_equals_transformers() -> Result<()> {
    for dtype in [DTypeChoice::F32, DTypeChoice::Bf16] {
        let (golden, model) = demo(dtype)?;
        let (ours, theirs) = perplexities(&golden, &model)?;
        println!("{dtype:?}: perplexity {ours:.4}, transformers {theirs:.4}");
        ensure!((ours / theirs - 1.0).abs() <= 0.005, "{dtype:?}: perplexity {ours}, transformers {theirs}");
    }
    Ok(())
}

/// How much higher a quantised demo's perplexity may be: a model of rows of 256 elements has little to spare.
#[test]
fn held_out_perplexity_of_quantised_products_stays_near() -> Result<()> {
    for (choice, worse) in [(QuantizeChoice::Int8, 0.005), (QuantizeChoice::Int4, 0.1)] {
        for target in launch::targets() {
            let model = Compiled::with(Options {
                targets: vec![target.name.clone()],
                quantize: Some(choice),
                ..Options::new(root().join("models/demo").display().to_string())
            })?;
            let (ours, theirs) = perplexities(&read("models/demo/goldens.json")?, &model)?;
            println!("{choice} {}: perplexity {ours:.4}, transformers in f32 {theirs:.4}", target.name);
            ensure!((ours / theirs - 1.0).abs() <= worse, "{choice} {}: {ours}, not {theirs}", target.name);
        }
    }
    Ok(())
}

/// The same of caches with fewer bits than the model.
#[test]
fn held_out_perplexity_with_a_narrow_kv_cache_stays_near() -> Result<()> {
    use KvCacheChoice::{F16, Fp8, Int8};
    let (bf16, f32) = (DTypeChoice::Bf16, DTypeChoice::F32);
    for (dtype, choice, worse) in [(f32, F16, 2e-4), (f32, Int8, 2e-3), (bf16, Int8, 2e-3), (bf16, Fp8, 8e-3)] {
        let model = Compiled::with(Options {
            dtype,
            kv_cache_dtype: choice,
            ..Options::new(root().join("models/demo").display().to_string())
        })?;
        let (ours, theirs) = perplexities(&read("models/demo/goldens.json")?, &model)?;
        println!("{dtype:?} with a cache in {choice:?}: perplexity {ours:.4}, transformers in f32 {theirs:.4}");
        ensure!((ours / theirs - 1.0).abs() <= worse, "{dtype:?}, {choice:?}: {ours}, not {theirs}");
    }
    Ok(())
}

/// Ours and transformers' on the first eight windows.
fn perplexities(golden: &DemoGolden, model: &Compiled) -> Result<(f64, f64)> {
    let text = fs::read_to_string(root().join("tests/goldens/texts/books_heldout.txt"))?;
    let windows = &golden.perplexity["books_heldout"].first8_window_nll;
    let mut engine = model.engine(EngineOptions { threads: Some(2), ..EngineOptions::default() })?;
    let tokens = engine.tokenizer().context("the demo has a tokenizer")?.encode(&text, false)?;
    let params = SamplingParams { prompt_logprobs: Some(0), logprobs: Some(-1), ..greedy(1) };
    let bos = model.artifact.manifest().model.bos_token_id.context("the demo has a first token")?;
    let pieces: Vec<&[u32]> = tokens.chunks(1023).take(windows.len()).collect();
    let request = |piece: &&[u32]| ([&[bos], &piece[..piece.len() - 1]].concat(), params.clone());
    let ours = answers(&mut engine, &pieces.iter().map(request).collect::<Vec<_>>())?;
    let nll: f64 = pieces.iter().zip(&ours).map(|(piece, a)| -sum_logprobs(piece, a)).sum();
    let count: usize = pieces.iter().map(|piece| piece.len()).sum();
    Ok(((nll / count as f64).exp(), (windows.iter().sum::<f64>() / count as f64).exp()))
}

/// Of a window's piece: all but its last token are the prompt, whose length the model bounds; the last one's is read off
/// the distribution that follows.
fn sum_logprobs(piece: &[u32], answer: &Answer) -> f64 {
    let at = answer.prompt_logprobs.iter().flatten().chain(&answer.logprobs);
    piece.iter().zip(at).filter_map(|(token, at)| logprob(at, *token)).map(f64::from).sum()
}

/// The same protocol through the command, in f32 beside bf16, which is put into the artifact.
#[test]
fn the_command_reports_perplexity_and_divergence() -> Result<()> {
    let ((golden, exact), (_, rounded)) = (demo(DTypeChoice::F32)?, demo(DTypeChoice::Bf16)?);
    let text = root().join("tests/goldens/texts/books_heldout.txt");
    let eval = || -> Result<Vec<u8>> {
        let (model, reference) = (rounded.path.as_os_str(), exact.path.as_os_str());
        let args = ["--ctx-size", "1024", "--chunks", "8", "--store", "--json"];
        let mut command = command("rvllm")?;
        let output =
            command.args(["eval", "perplexity"]).arg(model).arg(&text).args(args).arg("--reference").arg(reference);
        let output = output.output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(output.stdout)
    };
    let first = eval()?;
    ensure!(first == eval()?, "the same twice is the same report");
    let report: serde_json::Value = serde_json::from_slice(&first)?;
    let windows = &golden.perplexity["books_heldout"].first8_window_nll;
    let theirs = (windows.iter().sum::<f64>() / 8184.0).exp();
    for ours in [&report["perplexity"], &report["reference"]["perplexity"]] {
        let ours = ours.as_f64().context("a perplexity")?;
        ensure!((ours / theirs - 1.0).abs() <= 0.005, "perplexity {ours}, transformers {theirs}");
    }
    let kl = report["reference"]["kl_divergence"]["mean"].as_f64().context("a divergence")?;
    ensure!(kl > 0.0 && kl < 1e-3, "bf16 is {kl} nats from f32");
    let stored = rvllm_artifact::Artifact::open(&rounded.path)?;
    stored.verify()?;
    ensure!(stored.entry("perplexity.json") == Some(&first[..]), "the artifact holds the report");
    Ok(())
}

//! Whole models on a GPU: an answer is the same bits alone and in company, in whatever chunks, when blocks are scarce, and
//! whether its launches were recorded or not. Goldens are what `rvllm verify` checks.

use crate::{Args, Tally};
use anyhow::{Result, ensure};
use rvllm_artifact::{Artifact, manifest::NVPTX};
use rvllm_engine::{DeviceChoice, Engine, EngineOptions, SamplingParams, WeightsOption};
use std::path::Path;

/// Which request is observed.
const SUBJECT: usize = 7;

/// Tokens with the bits of all log-probabilities, those of the prompt first.
type Bits = (Vec<u32>, Vec<(u32, u32)>);

/// How an engine differs from the one that is compared with.
type Change<'a> = &'a dyn Fn(&mut EngineOptions);

/// Runs the tests of an artifact.
pub(crate) fn run(path: &Path, args: &Args, tally: &mut Tally) -> Result<()> {
    let artifact = Artifact::open(path)?;
    ensure!(artifact.manifest().targets.iter().any(|t| t.arch == NVPTX), "no target for a GPU");
    let options = |change: Change<'_>| {
        let weights = args.dummy_weights.map_or(WeightsOption::Manifest, WeightsOption::Dummy);
        let device = DeviceChoice::Cuda(args.device);
        let mut options = EngineOptions { device, weights, ..EngineOptions::default() };
        change(&mut options);
        options
    };
    let alone = match Engine::load(&artifact, options(&|_| {})) {
        Ok(mut engine) => observe(&mut engine, false, &artifact)?,
        Err(error) => {
            tally.skipped.push(format!("{}: {error}", path.display()));
            return Ok(());
        }
    };
    let variants: [(&str, bool, Change<'_>); 6] = [
        ("again", false, &|_| {}),
        ("among 32 others", true, &|_| {}),
        ("without graphs", false, &|o| o.enforce_eager = true),
        ("without graphs, among 32 others", true, &|o| o.enforce_eager = true),
        ("in steps of at most 48 tokens", true, &|o| o.max_num_batched_tokens = Some(48)),
        ("when blocks are scarce", true, &|o| o.num_blocks = Some(scarce(&artifact))),
    ];
    for (what, company, change) in variants {
        let observed = Engine::load(&artifact, options(change)).map_err(anyhow::Error::from);
        let observed = observed.and_then(|mut engine| observe(&mut engine, company, &artifact));
        tally.add(&format!("{} {what}", path.display()), observed.and_then(|bits| same(&bits, &alone)));
    }
    let variants: [(&str, Change<'_>); 3] = [
        ("", &|_| {}),
        (", without graphs", &|o| o.enforce_eager = true),
        (", when blocks are scarce", &|o| o.num_blocks = Some(scarce(&artifact))),
    ];
    for (what, change) in variants {
        let name = format!("{} where only drawn tokens are read{what}", path.display());
        tally.add(&name, reads_of_rows(&artifact, options(change)));
    }
    Ok(())
}

/// Answers are the same tokens where whole rows of logits are brought to the host and where only drawn tokens are, which steps
/// take from those before them; and greedy ones are the most likely of the rows that were brought.
fn reads_of_rows(artifact: &Artifact, options: EngineOptions) -> Result<()> {
    let mut engine = Engine::load(artifact, options)?;
    for temperature in [0.0, 0.9] {
        let of = |logprobs| SamplingParams { temperature, logprobs, prompt_logprobs: None, seed: Some(3), ..params(0) };
        let whole = answers(&mut engine, artifact, &of(Some(1)))?;
        let drawn = answers(&mut engine, artifact, &of(None))?;
        let differ = whole.iter().zip(&drawn).filter(|(a, b)| a != b).count();
        ensure!(differ == 0, "{differ} of {} answers differ at temperature {temperature}", whole.len());
    }
    Ok(())
}

/// Answers to all prompts at once. Greedy tokens have rank 1 where ranks are told.
fn answers(engine: &mut Engine, artifact: &Artifact, params: &SamplingParams) -> Result<Vec<Vec<u32>>> {
    for i in 0..33 {
        engine.add_request(i, prompt(artifact, i as u32), params.clone())?;
    }
    let mut answers = vec![vec![]; 33];
    while engine.has_unfinished() {
        for output in engine.step()? {
            for s in output.sequences {
                let ranks = s.logprobs.iter().filter_map(|l| l.first()).map(|l| l.rank);
                ensure!(
                    params.temperature > 0.0 || ranks.clone().all(|rank| rank == 1),
                    "greedy tokens of other ranks"
                );
                answers[output.request_id as usize].extend(s.token_ids);
            }
        }
    }
    ensure!(answers.iter().all(|a| a.len() == 30), "every request answers");
    Ok(answers)
}

/// Blocks for some of the requests only.
fn scarce(artifact: &Artifact) -> u32 {
    let manifest = artifact.manifest();
    let longest = manifest.model.max_model_len.div_ceil(manifest.kv_cache.block_size);
    longest.max(40)
}

fn same(found: &Bits, expected: &Bits) -> Result<()> {
    ensure!(found.0 == expected.0, "tokens {:?} against {:?}", found.0, expected.0);
    let differ = found.1.iter().zip(&expected.1).filter(|(a, b)| a != b).count();
    ensure!(differ == 0 && found.1.len() == expected.1.len(), "{differ} log-probabilities differ in bits");
    Ok(())
}

fn params(i: u32) -> SamplingParams {
    let sampled =
        SamplingParams { temperature: 0.9, top_p: 0.95, seed: Some(i64::from(i)), ..SamplingParams::default() };
    let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    SamplingParams {
        max_tokens: Some(if i.is_multiple_of(2) { 30 } else { 40 }),
        ignore_eos: true,
        logprobs: Some(20),
        prompt_logprobs: Some(2),
        detokenize: false,
        ..if i.is_multiple_of(2) { greedy } else { sampled }
    }
}

fn prompt(artifact: &Artifact, i: u32) -> Vec<u32> {
    let vocab = artifact.manifest().model.vocab_size;
    (0..3 + (i * 37) % 150).map(|j| (i * 7919 + j * 104_729 + 13) % (vocab * 9 / 10)).collect()
}

/// The observed request's answer, among the others or alone.
fn observe(engine: &mut Engine, company: bool, artifact: &Artifact) -> Result<Bits> {
    for i in (0..33u32).filter(|i| company || *i as usize == SUBJECT) {
        engine.add_request(i.into(), prompt(artifact, i), params(i))?;
    }
    let (mut tokens, mut bits) = (vec![], vec![]);
    while engine.has_unfinished() {
        for output in engine.step()?.into_iter().filter(|o| o.request_id == SUBJECT as u64) {
            let prompt = output.prompt_logprobs.into_iter().flatten().flatten();
            let answer = output.sequences.into_iter().flat_map(|s| {
                tokens.extend(s.token_ids);
                s.logprobs
            });
            bits.extend(prompt.chain(answer).flatten().map(|l| (l.token_id, l.logprob.to_bits())));
        }
    }
    ensure!(tokens.len() == 40 && !bits.is_empty(), "the observed request answers with {} tokens", tokens.len());
    ensure!(bits.iter().all(|(_, b)| !f32::from_bits(*b).is_nan()), "a log-probability is NaN");
    Ok((tokens, bits))
}

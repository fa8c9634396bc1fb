//! Batch invariance: a request's tokens and log-probabilities are the same bits alone, in company, with any chunk size,
//! after a preemption, where its KV is found instead of computed, and with any number of threads. Two compiles give the
//! same bytes.

use anyhow::{Result, ensure};
use rvllm_compiler::{
    Options,
    options::{DTypeChoice, KvCacheChoice, QuantizeChoice},
};
use rvllm_engine::{Engine, EngineOptions, SamplingParams};
use rvllm_tests::model::{Answer, Compiled, answers, greedy, root};
use std::fs;

const SUBJECT: usize = 7;

/// Thirty-three requests of different lengths; some sample, some are greedy. Number [`SUBJECT`] is the one observed.
fn requests() -> Vec<(Vec<u32>, SamplingParams)> {
    (0..33u32).map(|i| (prompt(i, 3 + (i as usize * 37) % 150), params(i))).collect()
}

fn prompt(i: u32, len: usize) -> Vec<u32> {
    (0..len as u32).map(|j| (i * 7919 + j * 104_729 + 13) % 8000).collect()
}

fn params(i: u32) -> SamplingParams {
    let sampled = SamplingParams { temperature: 0.9, top_p: 0.95, seed: Some(i64::from(i)), ..greedy(100) };
    let params = if i.is_multiple_of(2) { greedy(80) } else { sampled };
    SamplingParams { prompt_logprobs: Some(2), ..params }
}

/// The observed request's answer among `company` others.
fn observe(model: &Compiled, options: EngineOptions, company: bool) -> Result<Answer> {
    let mut engine = model.engine(options)?;
    let all = requests();
    let chosen = if company { all } else { vec![all[SUBJECT].clone()] };
    let mut ours = answers(&mut engine, &chosen)?;
    Ok(ours.swap_remove(if company { SUBJECT } else { 0 }))
}

fn same(what: &str, a: &Answer, b: &Answer) -> Result<()> {
    ensure!(a.tokens == b.tokens, "{what}: tokens {:?} against {:?}", a.tokens, b.tokens);
    ensure!(bits(a) == bits(b), "{what}: log-probabilities differ in bits");
    Ok(())
}

fn bits(a: &Answer) -> Vec<(u32, u32)> {
    let prompt = a.prompt_logprobs.iter().flatten().flatten();
    prompt.chain(a.logprobs.iter().flatten()).map(|l| (l.token_id, l.logprob.to_bits())).collect()
}

fn options(threads: usize, tokens: Option<u32>, blocks: Option<u32>) -> EngineOptions {
    EngineOptions {
        threads: Some(threads),
        max_num_batched_tokens: tokens,
        num_blocks: blocks,
        ..EngineOptions::default()
    }
}

fn check(dtype: DTypeChoice, target: &str) -> Result<()> {
    check_model(&Compiled::new("models/demo", dtype, target, Some(512))?)
}

fn check_quantised(choice: QuantizeChoice) -> Result<()> {
    check_model(&Compiled::with(Options {
        quantize: Some(choice),
        max_model_len: Some(512),
        ..Options::new(root().join("models/demo").display().to_string())
    })?)
}

fn with_cache(kv_cache_dtype: KvCacheChoice) -> Result<Compiled> {
    Compiled::with(Options {
        kv_cache_dtype,
        max_model_len: Some(512),
        ..Options::new(root().join("models/demo").display().to_string())
    })
}

fn check_model(model: &Compiled) -> Result<()> {
    let alone = observe(model, options(1, None, None), false)?;
    ensure!(alone.tokens.len() == 100 && !bits(&alone).is_empty(), "the observed request answers");
    same("2 threads", &alone, &observe(model, options(2, None, None), false)?)?;
    for chunk in [33, 48, 100] {
        let what = format!("steps of at most {chunk} tokens");
        same(&what, &alone, &observe(model, options(2, Some(chunk), None), true)?)?;
    }
    same("among 32 others", &alone, &observe(model, options(2, None, None), true)?)?;
    same("among 32 others, 1 thread", &alone, &observe(model, options(1, None, None), true)?)?;
    let scarce = observe(model, options(2, None, Some(40)), true)?;
    same("when KV blocks are scarce", &alone, &scarce)?;
    let mut engine = model.engine(options(2, None, Some(40)))?;
    let preempted: u32 = answers(&mut engine, &requests())?.iter().map(|a| a.preemptions).sum();
    ensure!(preempted > 0, "40 blocks for 33 requests preempt some");
    Ok(())
}

#[test]
fn answers_do_not_depend_on_the_load_in_int8() -> Result<()> {
    check_quantised(QuantizeChoice::Int8)
}

#[test]
fn answers_do_not_depend_on_the_load_in_int4() -> Result<()> {
    check_quantised(QuantizeChoice::Int4)
}

#[test]
fn answers_do_not_depend_on_the_load_with_a_cache_in_int8() -> Result<()> {
    check_model(&with_cache(KvCacheChoice::Int8)?)
}

#[test]
fn answers_do_not_depend_on_the_load_with_a_cache_in_fp8() -> Result<()> {
    check_model(&with_cache(KvCacheChoice::Fp8)?)
}

#[test]
fn answers_do_not_depend_on_the_load_in_f32() -> Result<()> {
    check(DTypeChoice::F32, "native")
}

#[test]
fn answers_do_not_depend_on_the_load_in_bf16() -> Result<()> {
    check(DTypeChoice::Bf16, "native")
}

/// Alone, parts of the sequence are worked on apart; in company one after another, and in other query tiles while it is read.
#[test]
fn answers_to_a_long_request_do_not_depend_on_the_load() -> Result<()> {
    let model = Compiled::new("models/demo", DTypeChoice::Bf16, "native", Some(1024))?;
    let long = (prompt(SUBJECT as u32, 900), params(SUBJECT as u32));
    let mut all = requests();
    all[SUBJECT] = long.clone();
    let observe = |threads, tokens, requests: &[_]| -> Result<Answer> {
        let mut ours = answers(&mut model.engine(options(threads, tokens, None))?, requests)?;
        Ok(ours.swap_remove(if requests.len() > 1 { SUBJECT } else { 0 }))
    };
    let alone = observe(1, None, std::slice::from_ref(&long))?;
    ensure!(alone.tokens.len() == 100 && !bits(&alone).is_empty(), "the observed request answers");
    same("2 threads", &alone, &observe(2, None, std::slice::from_ref(&long))?)?;
    same("steps of at most 3 tokens", &alone, &observe(2, Some(3), std::slice::from_ref(&long))?)?;
    same("among 32 others", &alone, &observe(2, None, &all)?)?;
    same("among 32 others, steps of at most 48 tokens", &alone, &observe(2, Some(48), &all)?)
}

/// A preempted request's bits are those of one that never was: every request is compared, scarce against plenty.
#[test]
fn preemption_changes_no_bit() -> Result<()> {
    let model = Compiled::new("models/demo", DTypeChoice::Bf16, "native", Some(512))?;
    let run = |blocks| -> Result<Vec<Answer>> { answers(&mut model.engine(options(2, None, blocks))?, &requests()) };
    let (scarce, plenty) = (run(Some(40))?, run(None)?);
    ensure!(scarce.iter().any(|a| a.preemptions > 0), "some request is preempted");
    all_same("with scarce blocks", &scarce, &plenty)
}

fn all_same(what: &str, a: &[Answer], b: &[Answer]) -> Result<()> {
    ensure!(a.len() == b.len(), "{what}: {} answers against {}", a.len(), b.len());
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        same(&format!("{what}, request {i}, preempted {} times", a.preemptions), a, b)?;
    }
    Ok(())
}

/// Twelve requests with two beginnings, and ends of their own. None asks for log-probabilities of its prompt, which
/// would have it computed whole.
fn alike() -> Vec<(Vec<u32>, SamplingParams)> {
    let prompt = |i: u32| [prompt(100 + i % 2, 90), prompt(i, 1 + i as usize * 5)].concat();
    (0..12).map(|i| (prompt(i), SamplingParams { prompt_logprobs: None, ..params(i) })).collect()
}

/// Answers, and how many tokens of prompts were found instead of computed.
fn found(engine: &mut Engine, requests: &[(Vec<u32>, SamplingParams)]) -> Result<(Vec<Answer>, u64)> {
    let before = engine.stats().prefix_cache_hits;
    Ok((answers(engine, requests)?, engine.stats().prefix_cache_hits - before))
}

/// Each request's answer in an engine that has computed nothing else.
fn computed(model: &Compiled, requests: &[(Vec<u32>, SamplingParams)]) -> Result<Vec<Answer>> {
    let off = EngineOptions { enable_prefix_caching: Some(false), ..options(1, None, None) };
    let mut engine = model.engine(off)?;
    let alone = |request| Ok(answers(&mut engine, std::slice::from_ref(request))?.swap_remove(0));
    let all = requests.iter().map(alone).collect::<Result<_>>()?;
    ensure!(engine.stats().prefix_cache_hits == 0, "an engine without prefix caching finds nothing");
    Ok(all)
}

fn check_prefix_caching(model: &Compiled) -> Result<()> {
    let requests = alike();
    let alone = computed(model, &requests)?;
    for (what, chunk) in [("together", None), ("in chunks", Some(48))] {
        let mut engine = model.engine(options(2, chunk, None))?;
        let (first, shared) = found(&mut engine, &requests)?;
        all_same(&format!("{what}, beginnings found in each other"), &first, &alone)?;
        let (again, whole) = found(&mut engine, &requests)?;
        all_same(&format!("{what}, prompts found whole"), &again, &alone)?;
        ensure!(0 < shared && shared < whole, "{what}: {shared} tokens found at first, then {whole}");
    }
    check_scarce(model, &requests, &alone)
}

/// Where blocks are reused soon: some of what could be found is gone, and sequences are preempted.
fn check_scarce(model: &Compiled, requests: &[(Vec<u32>, SamplingParams)], alone: &[Answer]) -> Result<()> {
    let longest = 512 / model.artifact.manifest().kv_cache.block_size;
    let mut engine = model.engine(options(2, None, Some(longest + 1)))?;
    let (_, hits) = found(&mut engine, &[requests[11].clone()])?;
    let (again, whole) = found(&mut engine, &[requests[11].clone()])?;
    let evicting = (prompt(200, 480), SamplingParams { prompt_logprobs: None, ..params(0) });
    answers(&mut engine, &[evicting])?;
    let (after, rest) = found(&mut engine, &[requests[11].clone()])?;
    ensure!(
        hits == 0 && rest < whole,
        "found {hits} tokens at first, {whole} later, {rest} after others took the blocks"
    );
    all_same("the same again", &again, &alone[11..])?;
    all_same("after others took some of its blocks", &after, &alone[11..])?;
    let (preempted, hits) = found(&mut engine, requests)?;
    ensure!(
        hits > 0 && preempted.iter().any(|a| a.preemptions > 0),
        "blocks for one long sequence preempt some of 12, which find what is left"
    );
    all_same("under preemption", &preempted, alone)
}

#[test]
fn prefix_caching_changes_no_bit_in_f32() -> Result<()> {
    check_prefix_caching(&Compiled::new("models/demo", DTypeChoice::F32, "native", Some(512))?)
}

#[test]
fn prefix_caching_changes_no_bit_in_bf16() -> Result<()> {
    check_prefix_caching(&Compiled::new("models/demo", DTypeChoice::Bf16, "native", Some(512))?)
}

#[test]
fn prefix_caching_changes_no_bit_with_a_cache_in_int8() -> Result<()> {
    check_prefix_caching(&with_cache(KvCacheChoice::Int8)?)
}

#[test]
fn two_compiles_give_the_same_bytes() -> Result<()> {
    let elsewhere = tempfile::tempdir()?;
    let copy = elsewhere.path().join("demo");
    fs::create_dir(&copy)?;
    for entry in fs::read_dir(root().join("models/demo"))? {
        let entry = entry?;
        fs::copy(entry.path(), copy.join(entry.file_name()))?;
    }
    let first = Compiled::new("models/demo", DTypeChoice::Bf16, "native", None)?;
    let second = Compiled::new(&copy.display().to_string(), DTypeChoice::Bf16, "native", None)?;
    ensure!(fs::read(&first.path)? == fs::read(&second.path)?, "artifacts differ");
    Ok(())
}

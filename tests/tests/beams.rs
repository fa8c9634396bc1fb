//! Beam search on a real model and a real KV cache: the beams are those that its definition gives when each step of each
//! beam is a request of its own, with its log-probabilities.

use anyhow::{Result, ensure};
use rvllm_compiler::{
    Options,
    options::{DTypeChoice, KvCacheChoice},
};
use rvllm_engine::{Engine, EngineOptions, SamplingParams};
use rvllm_tests::model::{Compiled, answers, greedy, root};
use std::collections::BTreeMap;

const WIDTH: usize = 4;
const TOKENS: u32 = 12;

#[derive(Clone)]
struct Beam {
    tokens: Vec<u32>,
    cumulative: f64,
    ended: bool,
}

/// Every fifth token ends an answer.
fn stops() -> Vec<u32> {
    (0..8000).step_by(5).collect()
}

fn score(prompt: usize, beam: &Beam) -> f64 {
    beam.cumulative / (prompt + beam.tokens.len() - usize::from(beam.ended)) as f64
}

/// The likeliest tokens after each beam, with their log-probabilities.
fn likeliest(engine: &mut Engine, prompt: &[u32], beams: &[Beam]) -> Result<Vec<Vec<(u32, f64)>>> {
    let one = SamplingParams { logprobs: Some(2 * WIDTH as i32), ..greedy(1) };
    let requests: Vec<_> = beams.iter().map(|b| ([prompt, &b.tokens[..]].concat(), one.clone())).collect();
    let ranked = |logprobs: &rvllm_engine::Logprobs| {
        logprobs.iter().map(|l| (l.rank, (l.token_id, f64::from(l.logprob)))).collect::<BTreeMap<_, _>>()
    };
    Ok(answers(engine, &requests)?.iter().map(|a| ranked(&a.logprobs[0]).into_values().collect()).collect())
}

fn reference(engine: &mut Engine, prompt: &[u32]) -> Result<Vec<Beam>> {
    let (mut live, mut done) = (vec![Beam { tokens: vec![], cumulative: 0.0, ended: false }], vec![]);
    for _ in 0..TOKENS {
        let mut next = vec![];
        for (beam, tokens) in live.iter().zip(likeliest(engine, prompt, &live)?) {
            for (token, logprob) in tokens {
                let ended = token.is_multiple_of(5);
                let (tokens, cumulative) = ([&beam.tokens[..], &[token]].concat(), beam.cumulative + logprob);
                (if ended { &mut done } else { &mut next }).push(Beam { tokens, cumulative, ended });
            }
        }
        next.sort_by(|a, b| b.cumulative.total_cmp(&a.cumulative));
        next.truncate(WIDTH);
        live = next;
    }
    done.extend(live);
    done.sort_by(|a, b| score(prompt.len(), b).total_cmp(&score(prompt.len(), a)));
    done.truncate(WIDTH);
    Ok(done)
}

/// The tokens of each beam, the best first.
fn search(engine: &mut Engine, prompt: &[u32]) -> Result<Vec<Vec<u32>>> {
    let params = SamplingParams {
        n: WIDTH as u32,
        use_beam_search: true,
        stop_token_ids: stops(),
        logprobs: None,
        ..greedy(TOKENS)
    };
    engine.add_request(1, prompt.to_vec(), params)?;
    let mut beams = vec![];
    while engine.has_unfinished() {
        beams.extend(engine.step()?.into_iter().flat_map(|o| o.sequences).map(|s| s.token_ids));
    }
    Ok(beams)
}

#[test]
fn beams_of_the_demo_are_those_of_the_definition() -> Result<()> {
    check(&Compiled::new("models/demo", DTypeChoice::F32, "native", Some(256))?)
}

/// Blocks that beams part on are copied with their scales.
#[test]
fn beams_over_a_cache_of_values_are_those_of_the_definition() -> Result<()> {
    check(&Compiled::with(Options {
        dtype: DTypeChoice::F32,
        kv_cache_dtype: KvCacheChoice::Int8,
        max_model_len: Some(256),
        ..Options::new(root().join("models/demo").display().to_string())
    })?)
}

fn check(model: &Compiled) -> Result<()> {
    let options = |blocks| EngineOptions { threads: Some(2), num_blocks: blocks, ..EngineOptions::default() };
    let (mut engine, mut scarce) = (model.engine(options(None))?, model.engine(options(Some(20)))?);
    for (first, len) in [(11u32, 5usize), (400, 31), (2001, 17)] {
        let prompt: Vec<u32> = (0..len as u32).map(|i| (first + i * 613) % 8000).collect();
        let expected: Vec<Vec<u32>> = reference(&mut engine, &prompt)?.into_iter().map(|b| b.tokens).collect();
        let found = search(&mut engine, &prompt)?;
        ensure!(found == expected, "{found:?} against {expected:?}");
        ensure!(search(&mut scarce, &prompt)? == expected, "with few blocks");
    }
    Ok(())
}

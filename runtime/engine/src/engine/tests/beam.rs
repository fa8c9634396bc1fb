//! Beam search against a plain reading of its definition: every beam's whole softmax, no early end.

use super::*;

/// An answer of the reference.
#[derive(Clone, Debug)]
struct Beam {
    tokens: Vec<u32>,
    cumulative: f64,
    finish: Option<Finish>,
}

fn beams(n: u32) -> SamplingParams {
    SamplingParams { n, use_beam_search: true, ..SamplingParams::default() }
}

/// Log-probabilities after a history, of the logits that the parameters leave.
fn logprobs_after(prompt: &[u32], output: &[u32], p: &SamplingParams) -> Vec<f64> {
    let mut logits = logits_after(&[prompt, output].concat());
    let plain = p.min_tokens as usize <= output.len() && p.logit_bias.is_none();
    if output.len() < p.min_tokens as usize {
        [EOS, 256].iter().chain(&p.stop_token_ids).for_each(|id| logits[*id as usize] = f32::NEG_INFINITY);
    }
    p.logit_bias.iter().flatten().for_each(|(id, bias)| logits[*id as usize] += bias);
    let sum = logits.iter().map(|l| f64::from(*l).exp()).sum::<f64>().ln();
    let sum = if plain { f64::from(sum as f32) } else { sum };
    logits.iter().map(|l| (f64::from(*l) - sum).min(0.0)).collect()
}

fn end(tokens: &[u32], p: &SamplingParams) -> Option<Finish> {
    let (token, stop) = (*tokens.last().unwrap(), FinishReason::Stop);
    let by = |stop_reason| Some(Finish { reason: stop, stop_reason });
    if tokens.len() >= p.min_tokens as usize {
        match token {
            EOS if !p.ignore_eos => return by(None),
            256 if !p.ignore_eos => return by(Some(StopReason::Token(256))),
            _ if p.stop_token_ids.contains(&token) => return by(Some(StopReason::Token(token))),
            _ => {}
        }
    }
    // Stop strings of the tests are of ASCII letters, each of which is a token.
    let text: String = tokens.iter().map(|id| byte_level().decode(&[*id], true).unwrap()).collect();
    let last = byte_level().decode(&[token], true).unwrap();
    let found = p.stop.iter().find(|s| !last.is_empty() && text.ends_with(s.as_str()));
    found.filter(|_| tokens.len() > p.min_tokens as usize).and_then(|s| by(Some(StopReason::Text(s.as_str().into()))))
}

fn reference(prompt: &[u32], p: &SamplingParams) -> Vec<Beam> {
    let width = p.n as usize;
    let score = |b: &Beam| {
        let by_token = b
            .finish
            .as_ref()
            .is_some_and(|f| f.reason == FinishReason::Stop && !matches!(f.stop_reason, Some(StopReason::Text(_))));
        b.cumulative / ((prompt.len() + b.tokens.len() - usize::from(by_token)) as f64).powf(p.length_penalty.into())
    };
    let (mut live, mut done) = (vec![Beam { tokens: vec![], cumulative: 0.0, finish: None }], vec![]);
    for _ in 0..p.max_tokens.unwrap() {
        let mut next = vec![];
        for beam in &live {
            let logprobs = logprobs_after(prompt, &beam.tokens, p);
            let mut ids: Vec<usize> = (0..logprobs.len()).collect();
            ids.sort_by(|a, b| logprobs[*b].total_cmp(&logprobs[*a]));
            for id in ids.into_iter().take(2 * width) {
                let tokens = [&beam.tokens[..], &[id as u32]].concat();
                let finish = end(&tokens, p);
                let list = if finish.is_some() { &mut done } else { &mut next };
                list.push(Beam { tokens, cumulative: beam.cumulative + logprobs[id], finish });
            }
        }
        next.sort_by(|a, b| b.cumulative.total_cmp(&a.cumulative));
        next.truncate(width);
        live = next;
    }
    done.extend(live);
    done.sort_by(|a, b| score(b).total_cmp(&score(a)));
    done.truncate(width);
    done
}

fn check(prompt: &[u32], params: &SamplingParams, answers: &Answers) {
    let expected = reference(prompt, params);
    assert_eq!(answers.tokens.len(), expected.len());
    for (tokens, beam) in answers.tokens.values().zip(&expected) {
        assert_eq!(tokens, &beam.tokens, "{params:?}");
    }
    let length = Finish { reason: FinishReason::Length, stop_reason: None };
    for (finish, beam) in answers.finish.values().zip(&expected) {
        assert_eq!(finish, beam.finish.as_ref().unwrap_or(&length));
    }
}

fn any_beams() -> impl Strategy<Value = SamplingParams> {
    let length_penalty = prop_oneof![Just(1.0f32), -1.0f32..3.0];
    let kinds = (1u32..6, 1u32..10, length_penalty, 0u8..5, 0i32..2, any::<bool>());
    kinds.prop_map(|(n, max_tokens, length_penalty, kind, priority, logprobs)| SamplingParams {
        max_tokens: Some(max_tokens),
        length_penalty,
        ignore_eos: kind == 1,
        stop_token_ids: if kind == 2 { (0..40).collect() } else { vec![] },
        min_tokens: if kind == 2 { 2.min(max_tokens) } else { 0 },
        stop: if kind == 3 { ["a", "b", "e", "st", "C"].map(String::from).to_vec() } else { vec![] },
        logit_bias: (kind == 4).then(|| (0..90).map(|id| (id, (id % 7) as f32)).collect()),
        logprobs: logprobs.then_some(1),
        prompt_logprobs: (kind == 3).then_some(0),
        priority,
        ..beams(n)
    })
}

/// Room for the longest of the beams, and little more.
fn tight_limits() -> impl Strategy<Value = Limits> {
    any_limits().prop_map(|l| Limits { num_blocks: l.num_blocks.max(5 * 28u32.div_ceil(l.block_size)), ..l })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever shares its steps, however its beams are cut over steps and however often they are preempted.
    #[test]
    fn a_search_finds_what_its_definition_says(
        requests in proptest::collection::vec((any_prompt(), prop_oneof![2 => any_beams(), 1 => any_params()]), 1..6),
        arrivals in proptest::collection::vec(0usize..12, 6),
        limits in tight_limits(),
        prefix_caching: bool,
    ) {
        let mut engine = engine(limits);
        engine.set_prefix_caching(prefix_caching);
        let together = run(&mut engine, &requests, &arrivals[..requests.len()]);
        for (id, answers) in together.iter().enumerate() {
            prop_assert_eq!(answers, &alone(id, &requests));
            if requests[id].1.use_beam_search {
                check(&requests[id].0, &requests[id].1, answers);
            }
        }
        prop_assert_eq!((engine.stats().num_running, engine.stats().num_waiting), (0, 0));
        prop_assert_eq!(engine.stats().num_free_blocks, limits.num_blocks as usize);
    }
}

#[test]
fn beams_that_lose_their_blocks_are_computed_again() {
    let params = SamplingParams { max_tokens: Some(20), ignore_eos: true, logprobs: Some(1), ..beams(4) };
    let mut engine = engine(Limits { num_blocks: 24, ..limits() });
    let long = SamplingParams { max_tokens: Some(20), ignore_eos: true, ..greedy() };
    let prompt = |from: u32| (from..from + 24).collect();
    let requests = vec![(prompt(0), long.clone()), (prompt(100), long), (vec![5, 6, 7], params)];
    let answers = run(&mut engine, &requests, &[0, 0, 0]);
    assert!(engine.stats().num_preemptions >= 4, "all beams of the group at once");
    answers.iter().enumerate().for_each(|(id, a)| assert_eq!(a, &alone(id, &requests)));
    check(&requests[2].0, &requests[2].1, &answers[2]);
}

#[test]
fn a_search_that_is_decided_ends() {
    // Every answer may end at once, and a short one is better the less each token counts.
    let params =
        SamplingParams { max_tokens: Some(40), stop_token_ids: (0..VOCAB).collect(), length_penalty: 0.0, ..beams(3) };
    let mut engine = engine(limits());
    engine.add_request(0, vec![1], params.clone()).unwrap();
    let outputs = engine.step().unwrap();
    assert_eq!((outputs[0].sequences.len(), engine.has_unfinished()), (3, false));
    check(&[1], &params, &one(&[1], params.clone()));
}

#[test]
fn beams_share_the_blocks_of_their_prompt() {
    let mut engine = engine(limits());
    let params = SamplingParams { max_tokens: Some(8), ignore_eos: true, ..beams(5) };
    engine.add_request(0, (0..32).collect(), params).unwrap();
    engine.step().unwrap();
    assert_eq!((engine.stats().num_running, engine.stats().num_used_blocks()), (5, 8));
    engine.step().unwrap();
    assert!((8 + 1..=8 + 5).contains(&engine.stats().num_used_blocks()));
    assert_eq!(engine.abort(0).unwrap().sequences.len(), 5);
    assert_eq!(engine.stats().num_used_blocks(), 0);
}

#[test]
fn log_probabilities_of_beams_are_the_models() {
    let params = SamplingParams { max_tokens: Some(6), logprobs: Some(2), ..beams(3) };
    let answers = one(&[7, 8], params.clone());
    for (index, tokens) in &answers.tokens {
        let logprobs = &answers.logprobs[index];
        assert_eq!(logprobs.len(), tokens.len());
        for (i, (token, reported)) in tokens.iter().zip(logprobs).enumerate() {
            let expected = logprobs_after(&[7, 8], &tokens[..i], &params)[*token as usize];
            assert!(reported[0].token_id == *token && (f64::from(reported[0].logprob) - expected).abs() < 1e-5);
        }
    }
}

#[test]
fn a_search_for_which_there_is_no_room_is_refused() {
    let mut engine = engine(Limits { num_blocks: 20, ..limits() });
    let params = SamplingParams { max_tokens: Some(16), ..beams(4) };
    let message = engine.add_request(1, vec![1; 5], params.clone()).unwrap_err().to_string();
    assert!(message.starts_with("each of 4 beams may take 21 tokens"), "{message}");
    assert!(message.contains("has room for 20 of each"), "{message}");
    engine.add_request(1, vec![1; 4], params).unwrap();
    let open = SamplingParams { max_tokens: None, ignore_eos: true, ..beams(4) };
    assert_eq!(one(&[1; 4], open).tokens[&0].len(), 44);
}

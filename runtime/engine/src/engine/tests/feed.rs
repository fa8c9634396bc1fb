//! Steps that take tokens from the one before them: answers are what they are where the host chooses each token first.

use super::*;

/// Bounds under which steps are fed.
fn feeding(limits: Limits) -> Limits {
    Limits { num_blocks: limits.num_blocks / 4 * 4 + 5, ..limits }
}

/// An engine, and how many tokens its steps took from those before them.
fn counted(limits: Limits) -> (Engine, Arc<AtomicUsize>) {
    let forward = FakeForward::new(limits);
    let num_fed = forward.num_fed.clone();
    let mut engine = engine(limits);
    engine.forward = Box::new(forward);
    (engine, num_fed)
}

/// Mostly what the device decides.
fn any_fed() -> impl Strategy<Value = SamplingParams> {
    let kinds = (0u8..12, 1u32..4, 1u32..30, any::<bool>(), any::<bool>(), 0u32..3);
    kinds.prop_map(|(kind, n, max_tokens, greedy, ignore_eos, min_tokens)| SamplingParams {
        temperature: if greedy { 0.0 } else { 1.5 },
        n: if greedy { 1 } else { n },
        max_tokens: Some(max_tokens),
        logprobs: (kind == 0).then_some(2),
        top_k: if kind == 1 { 7 } else { 0 },
        repetition_penalty: if kind == 2 { 1.3 } else { 1.0 },
        stop: if kind < 5 { vec!["a".into(), "bc".into()] } else { vec![] },
        stop_token_ids: if kind > 7 { (0..40).collect() } else { vec![] },
        min_tokens: min_tokens.min(max_tokens),
        ignore_eos,
        ..SamplingParams::default()
    })
}

/// Runs as [`run`] does, and gives request i up before step `aborts[i]`.
fn run_and_abort(engine: &mut Engine, requests: &Requests, arrivals: &[usize], aborts: &[usize]) -> Vec<Answers> {
    let mut answers = vec![Answers::default(); requests.len()];
    for step in 0.. {
        for (id, (prompt, params)) in requests.iter().enumerate().filter(|(i, _)| arrivals[*i] == step) {
            engine.add_request(id as u64, prompt.clone(), params.clone()).unwrap();
        }
        let aborted = (0..requests.len()).filter(|i| aborts[*i] == step).filter_map(|id| engine.abort(id as u64));
        aborted.collect::<Vec<_>>().into_iter().for_each(|o| answers[o.request_id as usize].add(o));
        if !engine.has_unfinished() && arrivals.iter().all(|a| *a <= step) {
            break;
        }
        engine.step().unwrap().into_iter().for_each(|o| answers[o.request_id as usize].add(o));
        assert!(step < 20_000, "every request finishes");
    }
    answers
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]
    #[test]
    fn what_is_fed_yields_what_it_yields_alone(
        requests in proptest::collection::vec((any_prompt(), any_fed()), 1..7),
        arrivals in proptest::collection::vec(0usize..12, 7),
        aborts in proptest::collection::vec(0usize..60, 7),
        limits in any_limits(),
        prefix_caching in any::<bool>(),
    ) {
        let limits = feeding(limits);
        let mut engine = engine(limits);
        engine.set_prefix_caching(prefix_caching);
        let together = run_and_abort(&mut engine, &requests, &arrivals[..requests.len()], &aborts);
        for (id, answers) in together.iter().enumerate() {
            let alone = alone(id, &requests);
            let aborted = |f: &Finish| f.reason == FinishReason::Abort;
            prop_assert_eq!(answers.finished, 1);
            for (index, finish) in &answers.finish {
                let tokens = answers.tokens.get(index).map_or(&[][..], Vec::as_slice);
                if aborted(finish) {
                    prop_assert!(alone.tokens[index].starts_with(tokens));
                } else {
                    prop_assert_eq!(tokens, &alone.tokens[index][..]);
                    prop_assert_eq!((finish, &answers.text[index]), (&alone.finish[index], &alone.text[index]));
                    prop_assert_eq!(answers.logprobs.get(index), alone.logprobs.get(index));
                }
            }
        }
        // What has begun writes blocks that are free: whoever gets them writes them again.
        while !engine.begun.is_empty() {
            engine.step().unwrap();
        }
        prop_assert_eq!((engine.stats().num_running, engine.stats().num_waiting), (0, 0));
        prop_assert_eq!(engine.stats().num_free_blocks, limits.num_blocks as usize);
    }
}

/// Tokens that are fed while one request is answered.
fn fed_by(params: SamplingParams) -> (usize, Answers) {
    let requests = vec![(vec![1, 2, 3], params)];
    let (mut engine, num_fed) = counted(feeding(limits()));
    let answers = run(&mut engine, &requests, &[0]).remove(0);
    assert_eq!(answers, alone(0, &requests));
    (num_fed.load(Ordering::Relaxed), answers)
}

#[test]
fn every_token_but_the_last_is_fed_where_draws_decide() {
    for temperature in [0.0, 1.5] {
        let ten = SamplingParams { temperature, max_tokens: Some(10), ignore_eos: true, ..greedy() };
        let (num_fed, answers) = fed_by(ten);
        assert_eq!((num_fed, answers.tokens[&0].len()), (9, 10));
    }
}

#[test]
fn no_token_is_fed_that_the_host_chooses() {
    let ten = SamplingParams { max_tokens: Some(10), ignore_eos: true, ..greedy() };
    let hosts = [
        SamplingParams { logprobs: Some(1), ..ten.clone() },
        SamplingParams { repetition_penalty: 1.2, ..ten.clone() },
        SamplingParams { temperature: 1.0, top_k: 5, ..ten.clone() },
        SamplingParams { temperature: 1.0, top_p: 0.9, ..ten.clone() },
        SamplingParams { temperature: 1.0, min_p: 0.1, ..ten.clone() },
        SamplingParams { allowed_token_ids: Some((0..99).collect()), ..ten.clone() },
        SamplingParams { structured_outputs: Some(structured::any_json()), ..ten.clone() },
        SamplingParams { use_beam_search: true, n: 2, ..ten.clone() },
        SamplingParams { logit_bias: Some([(3, 1.0)].into()), ..ten.clone() },
        SamplingParams { min_tokens: 10, stop_token_ids: vec![3], ..ten },
    ];
    hosts.into_iter().for_each(|params| assert_eq!(fed_by(params).0, 0));
}

#[test]
fn a_block_is_found_whose_last_token_was_fed() {
    let limits = feeding(limits());
    let (mut engine, num_fed) = counted(limits);
    let params = SamplingParams { max_tokens: Some(20), ignore_eos: true, ..greedy() };
    let first = run(&mut engine, &vec![(vec![1, 2, 3], params.clone())], &[0]).remove(0);
    let prompt = [vec![1, 2, 3], first.tokens[&0].clone()].concat();
    engine.step().unwrap();
    let before = engine.stats().prefix_cache_hits;
    let requests = vec![(prompt, params)];
    assert_eq!(run(&mut engine, &requests, &[0])[0], alone(0, &requests));
    assert!(num_fed.load(Ordering::Relaxed) > 30);
    // Of 23 tokens the first 22 have been computed, in five full blocks.
    assert_eq!(engine.stats().prefix_cache_hits - before, 20);
}

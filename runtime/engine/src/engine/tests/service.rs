//! What a server needs of the engine: refusals, aborts, deadlines, counters.

use super::*;
use std::time::Duration;

#[test]
fn requests_that_can_never_run_are_refused() {
    let mut engine = engine(limits());
    let mut add = |prompt: Vec<u32>, params| engine.add_request(7, prompt, params).unwrap_err().to_string();
    assert_eq!(add(vec![], greedy()), "the prompt is empty · help: give at least one token");
    assert_eq!(add(vec![1, VOCAB], greedy()), "the prompt has token id 259, but the vocabulary has 259 tokens");
    assert!(
        add(vec![1; 48], greedy())
            .starts_with("the prompt has 48 tokens, but the model takes 48, one of the answer included")
    );
    assert!(add(vec![1], SamplingParams { top_p: 2.0, ..greedy() }).starts_with("top_p is 2"));
    engine.add_request(7, vec![1], greedy()).unwrap();
    assert!(matches!(engine.add_request(7, vec![1], greedy()), Err(EngineError::DuplicateRequest(7))));
}

#[test]
fn what_the_cache_has_no_room_for_is_refused() {
    let mut engine = engine(Limits { num_blocks: 5, ..limits() });
    let asking = |max_tokens| SamplingParams { max_tokens, ignore_eos: true, ..greedy() };
    let message = engine.add_request(1, vec![1; 12], asking(Some(9))).unwrap_err().to_string();
    assert!(
        message.starts_with(
            "the request may take 21 tokens, prompt and answer together, but the KV cache has room for 20"
        )
    );
    let fits = |prompt, max_tokens| (vec![1; prompt], asking(max_tokens));
    assert!(matches!(
        engine.add_request(1, vec![1; 20], asking(None)),
        Err(EngineError::NeverFits { tokens: 21, capacity: 20 })
    ));
    let answers = run(&mut engine, &vec![fits(12, Some(8)), fits(12, None), fits(19, None)], &[0, 0, 0]);
    let lengths: Vec<usize> = answers.iter().map(|a| a.tokens[&0].len()).collect();
    assert_eq!(lengths, [8, 8, 1]);
}

#[test]
fn an_aborted_request_frees_its_blocks() {
    let mut engine = engine(limits());
    engine
        .add_request(1, vec![1, 2, 3, 4, 5], SamplingParams { n: 2, ignore_eos: true, ..SamplingParams::default() })
        .unwrap();
    engine.add_request(2, vec![1], greedy()).unwrap();
    engine.step().unwrap();
    let output = engine.abort(1).unwrap();
    let reasons: Vec<_> = output.sequences.iter().map(|s| s.finish.as_ref().map(|f| f.reason.as_str())).collect();
    assert_eq!((reasons, output.finished.is_some()), (vec![Some("abort"); 2], true));
    assert_eq!(engine.abort(1), None);
    assert_eq!(engine.abort(2).unwrap().sequences.len(), 1);
    assert_eq!((engine.has_unfinished(), engine.stats().num_free_blocks), (false, 256));
    assert_eq!(engine.step().unwrap(), []);
}

#[test]
fn metrics_count_tokens_and_preemptions() {
    let mut engine = engine(Limits { num_blocks: 14, ..limits() });
    let long = SamplingParams { max_tokens: Some(40), ignore_eos: true, ..greedy() };
    (0..3).for_each(|id| engine.add_request(id, vec![1, 2, 3, id as u32], long.clone()).unwrap());
    let mut metrics = vec![];
    while engine.has_unfinished() {
        metrics.extend(engine.step().unwrap().into_iter().filter_map(|o| o.finished));
    }
    assert!(metrics.iter().all(|m| (m.num_prompt_tokens, m.num_generated_tokens) == (4, 40)));
    assert!(metrics.iter().all(|m| m.arrival <= m.first_scheduled.unwrap() && m.first_token.unwrap() <= m.finished));
    assert_eq!(metrics[0].num_preemptions, 0);
    assert!(metrics[2].num_preemptions > 0);
}

#[test]
fn a_request_past_its_deadline_is_given_up() {
    let mut engine = engine(Limits { max_num_seqs: 1, ..limits() });
    let long = SamplingParams { max_tokens: Some(30), ignore_eos: true, ..greedy() };
    (0..3).for_each(|id| engine.add_request(id, vec![1, 2], long.clone()).unwrap());
    let (past, future) = (Instant::now(), Instant::now() + Duration::from_secs(3600));
    assert!(engine.set_deadline(0, past) && engine.set_deadline(0, future));
    assert!(engine.set_deadline(1, past));
    assert!(!engine.set_deadline(9, past));
    let outputs = engine.step().unwrap();
    let ended: Vec<_> = outputs.iter().map(|o| (o.request_id, o.finished.is_some())).collect();
    assert_eq!(ended, [(1, true), (0, false)]);
    assert_eq!(outputs[0].sequences[0].finish.as_ref().map(|f| f.reason), Some(FinishReason::Abort));
    engine.set_deadline(0, past);
    let outputs = engine.step().unwrap();
    assert_eq!(outputs.iter().map(|o| o.request_id).collect::<Vec<_>>(), [0, 2]);
    engine.set_deadline(2, past);
    assert_eq!(engine.step().unwrap().len(), 1);
    assert!(!engine.has_unfinished() && engine.queue.deadlines.is_empty());
    assert_eq!(engine.stats().num_free_blocks, 256);
}

#[test]
fn a_request_that_finishes_in_time_leaves_no_deadline() {
    let mut engine = engine(limits());
    engine.add_request(4, vec![1], greedy()).unwrap();
    engine.add_request(5, vec![1], greedy()).unwrap();
    let future = Instant::now() + Duration::from_secs(3600);
    assert!(engine.set_deadline(4, future) && engine.set_deadline(5, future));
    engine.abort(5).unwrap();
    while engine.has_unfinished() {
        engine.step().unwrap();
    }
    assert!(engine.queue.deadlines.is_empty());
}

#[test]
fn stats_tell_queues_blocks_and_counters() {
    let mut engine = engine(Limits { max_num_seqs: 2, num_blocks: 20, ..limits() });
    assert_eq!(engine.stats(), Stats { num_blocks: 20, num_free_blocks: 20, ..Stats::default() });
    let params = SamplingParams { max_tokens: Some(40), ignore_eos: true, ..greedy() };
    (0..3).for_each(|id| engine.add_request(id, vec![id as u32; 5], params.clone()).unwrap());
    assert_eq!((engine.stats().num_running, engine.stats().num_waiting), (0, 3));
    engine.step().unwrap();
    let first = engine.stats();
    assert_eq!((first.num_running, first.num_waiting, first.num_used_blocks()), (2, 1, 4));
    assert_eq!((first.num_steps, first.num_scheduled_tokens, first.num_preemptions), (1, 10, 0));
    assert_eq!((first.kv_cache_usage(), first.prefix_cache_queries), (0.2, 8));
    while engine.has_unfinished() {
        engine.step().unwrap();
    }
    let last = engine.stats();
    assert_eq!((last.num_running, last.num_waiting, last.kv_cache_usage()), (0, 0, 0.0));
    assert!(last.num_preemptions > 0 && last.num_scheduled_tokens >= 3 * 44);
    assert_eq!((last.prefix_cache_queries, last.prefix_cache_hits), (12, 0));
}

#[test]
fn who_ends_while_the_next_step_runs_gets_nothing_more() {
    let mut engine = engine(Limits { num_blocks: 257, ..limits() });
    assert!(engine.forward.runs_ahead());
    let params = SamplingParams { n: 2, max_tokens: Some(6), ignore_eos: true, ..SamplingParams::default() };
    (0..2).for_each(|id| engine.add_request(id, vec![1, 2, 3], params.clone()).unwrap());
    engine.step().unwrap();
    assert!(!engine.begun.is_empty());
    engine.stop(0, 1, Finish { reason: FinishReason::Stop, stop_reason: None }).unwrap();
    engine.abort(1).unwrap();
    let mut answers = Answers::default();
    while engine.has_unfinished() {
        for output in engine.step().unwrap() {
            assert_eq!(output.request_id, 0);
            answers.add(output);
        }
    }
    assert_eq!((answers.tokens.len(), answers.tokens[&0].len(), answers.finished), (1, 5, 1));
    let stats = engine.stats();
    assert_eq!((stats.num_running, stats.num_waiting), (0, 0));
}

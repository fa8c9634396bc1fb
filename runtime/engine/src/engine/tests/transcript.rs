//! Text made beside the engine, however late it is read, is the text made in its steps.

use super::*;
use crate::text::Transcript;
use std::collections::{HashMap, VecDeque};

/// Runs requests whose outputs are read `lag` steps after they were computed.
fn run_beside(engine: &mut Engine, requests: &Requests, lag: usize) -> Vec<Answers> {
    engine.leave_text_to_caller();
    let mut transcripts = HashMap::new();
    let mut answers = vec![Answers::default(); requests.len()];
    for (id, (prompt, params)) in requests.iter().enumerate() {
        engine.add_request(id as u64, prompt.clone(), params.clone()).unwrap();
        transcripts.insert(id as u64, Transcript::new(Arc::new(byte_level()), &[EOS, 256], prompt, params).unwrap());
    }
    let mut late: VecDeque<Vec<Output>> = (0..lag).map(|_| vec![]).collect();
    while engine.has_unfinished() || late.iter().any(|outputs| !outputs.is_empty()) {
        let outputs = engine.step().unwrap();
        assert!(outputs.iter().flat_map(|o| &o.sequences).all(|s| s.text.is_empty()));
        late.push_back(outputs);
        for mut output in late.pop_front().unwrap() {
            let (id, transcript) = (output.request_id, transcripts.get_mut(&output.request_id).unwrap());
            for stopped in transcript.write(&mut output).unwrap() {
                engine.stop(id, stopped.index, stopped.finish);
            }
            let over = transcript.is_over() || output.finished.is_some();
            let answers = &mut answers[id as usize];
            if answers.finished == 0 {
                output.finished = output.finished.filter(|_| over);
                answers.add(output);
                answers.finished = u32::from(over);
            }
        }
    }
    answers
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn text_does_not_depend_on_when_it_is_read(
        requests in proptest::collection::vec((any_prompt(), any_params()), 1..5), lag in 0usize..9, limits in any_limits(),
    ) {
        let mut engine = engine(limits);
        let beside = run_beside(&mut engine, &requests, lag);
        for (id, answers) in beside.iter().enumerate() {
            prop_assert_eq!(answers, &alone(id, &requests));
        }
        prop_assert_eq!(engine.stats().num_free_blocks, limits.num_blocks as usize);
    }
}

#[test]
fn an_answer_is_stopped_once() {
    let mut engine = engine(limits());
    engine.leave_text_to_caller();
    let params = SamplingParams { n: 2, ignore_eos: true, seed: Some(1), ..SamplingParams::default() };
    engine.add_request(7, vec![1], params).unwrap();
    engine.step().unwrap();
    let finish = || Finish { reason: FinishReason::Stop, stop_reason: Some(StopReason::Text("x".into())) };
    assert_eq!(engine.stop(8, 0, finish()), None);
    assert_eq!(engine.stop(7, 2, finish()), None);
    let first = engine.stop(7, 0, finish()).unwrap();
    assert_eq!((first.finished, first.sequences[0].finish.clone()), (None, Some(finish())));
    assert_eq!(engine.stop(7, 0, finish()), None);
    assert!(engine.step().unwrap().iter().flat_map(|o| &o.sequences).all(|s| s.index == 1));
    assert!(engine.stop(7, 1, finish()).unwrap().finished.is_some());
    assert_eq!((engine.has_unfinished(), engine.stats().num_used_blocks()), (false, 0));
}

#[test]
fn an_answer_that_repeats_itself_ends() {
    let detection = crate::RepetitionDetection { max_pattern_size: 2, min_pattern_size: 0, min_count: 3 };
    let params =
        SamplingParams { allowed_token_ids: Some(vec![65]), repetition_detection: Some(detection), ..greedy() };
    let answers = one(&[1], params);
    let finish =
        Finish { reason: FinishReason::Repetition, stop_reason: Some(StopReason::Text("repetition_detected".into())) };
    assert_eq!((answers.tokens[&0].len(), &answers.finish[&0]), (3, &finish));
}

#[test]
fn named_tokens_are_reported_likely_or_not() {
    let params =
        SamplingParams { logprobs: Some(1), logprob_token_ids: vec![3, 200, 3], max_tokens: Some(2), ..greedy() };
    let answers = one(&[1, 2], params);
    for (i, at) in answers.logprobs[&0].iter().enumerate() {
        let history = [&[1, 2][..], &answers.tokens[&0][..i]].concat();
        let mut blocks = Blocks::default();
        let logits = logits_after(&history);
        let row = Row::of_changed(&logits, None, &mut blocks);
        for id in [3, 200] {
            let found: Vec<_> = at.iter().filter(|l| l.token_id == id).collect();
            assert_eq!((found.len(), found[0].rank), (1, row.rank(id)));
        }
    }
}

//! In which order requests are served, and who loses blocks.

use super::*;

fn long(priority: i32) -> SamplingParams {
    SamplingParams { max_tokens: Some(30), ignore_eos: true, priority, ..greedy() }
}

#[test]
fn a_priority_needs_its_policy() {
    let mut engine = engine(limits());
    engine.set_scheduling_policy(SchedulingPolicy::Fcfs);
    let message = engine.add_request(1, vec![1], long(2)).unwrap_err().to_string();
    assert_eq!(message, "priority is 2, but must be 0 unless the scheduling policy is priority (--scheduling-policy)");
    engine.add_request(1, vec![1], long(0)).unwrap();
}

#[test]
fn smaller_priorities_are_admitted_first() {
    let mut engine = engine(Limits { max_num_seqs: 1, ..limits() });
    for (id, priority) in [(0, 5), (1, 3), (2, 5), (3, -1)] {
        engine.add_request(id, vec![1, 2], long(priority)).unwrap();
    }
    let mut ended = vec![];
    while engine.has_unfinished() {
        ended.extend(engine.step().unwrap().iter().filter(|o| o.finished.is_some()).map(|o| o.request_id));
    }
    assert_eq!(ended, [3, 1, 0, 2]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// However requests come: the first in order that runs goes on in every step, those that lose their blocks come
    /// after all that keep them, and everybody finishes.
    #[test]
    fn nobody_starves_and_the_last_in_order_lose_their_blocks(
        requests in proptest::collection::vec((any_prompt(), any_params()), 1..8),
        arrivals in proptest::collection::vec(0usize..12, 8),
        limits in any_limits(),
    ) {
        let mut engine = engine(limits);
        let (mut finished, mut step, mut some_ended) = (0, 0, false);
        while finished < requests.len() {
            for (id, (prompt, params)) in requests.iter().enumerate().filter(|(i, _)| arrivals[*i] == step) {
                engine.add_request(id as u64, prompt.clone(), params.clone()).unwrap();
            }
            let ((before, _), computed) = (engine.queue.scheduler.keys(), engine.stats().num_scheduled_tokens);
            let outputs = engine.step().unwrap();
            finished += outputs.iter().filter(|o| o.finished.is_some()).count();
            // What had begun when somebody ended may have been for nobody else.
            let goes_on = engine.stats().num_scheduled_tokens > computed || some_ended;
            prop_assert!(before.is_empty() || goes_on, "somebody goes on");
            some_ended = outputs.iter().flat_map(|o| &o.sequences).any(|s| s.finish.is_some());
            let (running, waiting) = engine.queue.scheduler.keys();
            let (kept, lost) = (before.iter().filter(|k| running.contains(k)), before.iter().filter(|k| waiting.contains(k)));
            prop_assert!(kept.max().is_none_or(|last| lost.clone().all(|l| l > last)), "{:?} {:?}", running, waiting);
            prop_assert!(before.first().is_none_or(|first| !waiting.contains(first)), "the first keeps its blocks");
            step += 1;
            prop_assert!(step < 20_000);
        }
    }
}

#[test]
fn what_waits_is_not_admitted_to_be_preempted_at_once() {
    // Blocks of 4; eight requests of 20 tokens grow to 48. Without blocks to spare, each admission would soon be undone.
    let mut engine = engine(Limits { num_blocks: 40, max_num_seqs: 8, ..limits() });
    engine.set_prefix_caching(false);
    let params = SamplingParams { max_tokens: Some(28), ..long(0) };
    (0..8).for_each(|id| engine.add_request(id, vec![id as u32; 20], params.clone()).unwrap());
    while engine.has_unfinished() {
        engine.step().unwrap();
    }
    let stats = engine.stats();
    assert!(stats.num_preemptions <= 8, "{stats:?}");
    assert!(stats.num_scheduled_tokens < 2 * 8 * 47, "{stats:?}");
}

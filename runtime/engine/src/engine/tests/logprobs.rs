//! Log-probabilities by what is found where rows are computed: rows of which that is enough hold no numbers here.

use super::*;
use rvllm_artifact::plan::TOP_K;

/// Those of the token that follows, by definition; of equal tokens the smallest comes first.
fn expected(history: &[u32], token: u32, count: usize) -> Vec<(u32, f32, u32)> {
    let logits = logits_after(history);
    let logsumexp = logits.iter().map(|l| f64::from(*l).exp()).sum::<f64>().ln() as f32;
    let mut order: Vec<u32> = (0..VOCAB).collect();
    order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
    let of = |id: u32, rank: usize| (id, logits[id as usize] - logsumexp, rank as u32);
    let larger = logits.iter().filter(|l| **l > logits[token as usize]).count();
    let top = order.into_iter().take(count).enumerate().map(|(i, id)| of(id, i + 1)).collect::<Vec<_>>();
    let chosen = top.iter().find(|t| t.0 == token).copied().unwrap_or_else(|| of(token, larger + 1));
    [chosen].into_iter().chain(top.into_iter().filter(|t| t.0 != token)).collect()
}

proptest! {
    #[test]
    fn log_probabilities_are_those_of_the_whole_row(
        prompt in any_prompt(), count in 0i32..=TOP_K as i32 + 3, temperature in prop_oneof![Just(0.0f32), 0.3f32..2.0],
        top_k in prop_oneof![Just(0i32), 1i32..40], top_p in prop_oneof![Just(1.0f32), 0.3f32..1.0],
    ) {
        let params = SamplingParams {
            logprobs: Some(count), max_tokens: Some(6), ignore_eos: true, temperature, top_k, top_p, ..SamplingParams::default()
        };
        let answers = one(&prompt, params);
        let (tokens, logprobs) = (&answers.tokens[&0], &answers.logprobs[&0]);
        prop_assert_eq!((tokens.len(), logprobs.len()), (6, 6));
        for (i, (token, found)) in tokens.iter().zip(logprobs).enumerate() {
            let history = [&prompt[..], &tokens[..i]].concat();
            let found: Vec<_> = found.iter().map(|t| (t.token_id, t.logprob, t.rank)).collect();
            prop_assert_eq!(found, expected(&history, *token, count as usize));
        }
    }
}

#[test]
fn a_row_is_brought_only_for_what_is_not_found_beside_it() {
    let reads = |params: SamplingParams| {
        let mut engine = engine(limits());
        engine.add_request(0, vec![1, 2], SamplingParams { max_tokens: Some(4), ..params }).unwrap();
        let step = engine.prepare().unwrap().step;
        (step.reads[0], step.ranked[0], step.top_k[0])
    };
    let drawn = SamplingParams { logprobs: Some(5), ..SamplingParams::default() };
    let greedy = SamplingParams { temperature: 0.0, ..drawn.clone() };
    assert_eq!(reads(greedy), (Reads::Ranks, 1, 5));
    assert_eq!(reads(drawn.clone()), (Reads::Ranks, 1, 5));
    assert_eq!(reads(SamplingParams { top_p: 0.9, ..drawn.clone() }), (Reads::Ranks, DRAWS as i32, 5));
    assert_eq!(reads(SamplingParams { logprobs: Some(TOP_K as i32 + 1), ..drawn.clone() }), (Reads::All, 0, 0));
    assert_eq!(reads(SamplingParams { logprob_token_ids: vec![3], ..drawn.clone() }), (Reads::All, 0, 0));
    assert_eq!(reads(SamplingParams { prompt_logprobs: Some(1), ..drawn }).0, Reads::All);
}

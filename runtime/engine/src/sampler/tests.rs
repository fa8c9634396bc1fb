//! The sampler against a plain reading of its definition: full sorts and full softmaxes in f64.

use super::*;
use proptest::prelude::*;
use std::collections::HashMap;

fn sampler(params: SamplingParams) -> Sampler {
    with_rules(params, |_| {})
}

fn with_rules(params: SamplingParams, set: impl FnOnce(&mut SamplingRules)) -> Sampler {
    let mut rules = SamplingRules {
        params,
        seed: 1,
        bad_words: vec![],
        end_tokens: vec![],
        prompt_tokens: HashSet::new(),
        grammar: None,
        thinking: None,
    };
    set(&mut rules);
    Sampler::new(Arc::new(rules), 0)
}

fn sample(sampler: &mut Sampler, logits: &[f32]) -> u32 {
    let (mut blocks, temperature) = (Blocks::default(), Some(sampler.params().temperature).filter(|t| *t > 0.0));
    sampler.sample(&Row::of_changed(logits, temperature, &mut blocks), &mut Scratch::default()).unwrap()
}

/// Probabilities after min_p, top_k and top_p, by definition.
fn reference(logits: &[f32], p: &SamplingParams) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut w: Vec<f64> = logits.iter().map(|l| f64::from(((l - max) / p.temperature).exp())).collect();
    w.iter_mut().filter(|w| **w < f64::from(p.min_p)).for_each(|w| *w = 0.0);
    let mut order: Vec<usize> = (0..w.len()).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
    if p.top_k > 0 {
        let last = logits[order[(p.top_k as usize).min(order.len()) - 1]];
        (0..w.len()).filter(|i| logits[*i] < last).for_each(|i| w[i] = 0.0);
    }
    let total: f64 = order.iter().map(|i| w[*i]).sum();
    let mut before = 0.0;
    for i in order {
        let weight = w[i];
        if p.top_p < 1.0 && before >= f64::from(p.top_p) * total {
            w[i] = 0.0;
        }
        before += weight;
    }
    let total: f64 = w.iter().sum();
    w.iter().map(|w| w / total).collect()
}

proptest! {
    #[test]
    fn only_kept_tokens_are_chosen_and_all_of_them_can_be(
        logits in proptest::collection::vec(-6.0f32..6.0, 1..700), temperature in 0.2f32..2.0, top_k in 0i32..40,
        top_p in prop_oneof![Just(1.0f32), 0.05f32..1.0], min_p in prop_oneof![Just(0.0f32), 0.0f32..0.5],
    ) {
        let params = SamplingParams { temperature, top_k, top_p, min_p, ..SamplingParams::default() };
        let expected = reference(&logits, &params);
        let mut blocks = Blocks::default();
        let row = Row::of_changed(&logits, Some(temperature), &mut blocks);
        if top_k > 0 || top_p < 1.0 {
            let mut kept = crate::draw::tests::kept(&row, &params);
            kept.sort_unstable();
            let by_definition: Vec<usize> = (0..logits.len()).filter(|i| expected[*i] > 0.0).collect();
            // The sums are in different orders: a token on the very edge of top_p may fall on either side.
            prop_assert!(kept.len().abs_diff(by_definition.len()) <= 1, "{kept:?} against {by_definition:?}");
            prop_assert!(kept.iter().filter(|k| !by_definition.contains(k)).count() <= 1);
        }
        let mut s = sampler(params);
        for _ in 0..20 {
            prop_assert!(expected[sample(&mut s, &logits) as usize] > 0.0);
        }
    }
}

#[test]
fn frequencies_are_the_probabilities() {
    let logits: Vec<f32> = (0..600).map(|i| ((i * 7919) % 13) as f32 / 3.0).collect();
    let cases = [
        SamplingParams { temperature: 0.7, ..SamplingParams::default() },
        SamplingParams { top_k: 5, ..SamplingParams::default() },
        SamplingParams { top_p: 0.3, min_p: 0.1, ..SamplingParams::default() },
    ];
    for params in cases {
        let expected = reference(&logits, &params);
        let mut s = sampler(params);
        let mut by_value = HashMap::<u32, f64>::new();
        const DRAWS: u32 = 4000;
        for _ in 0..DRAWS {
            let token = sample(&mut s, &logits);
            *by_value.entry(logits[token as usize].to_bits()).or_default() += 1.0 / f64::from(DRAWS);
        }
        for (bits, frequency) in by_value {
            let p: f64 = (0..600).filter(|i| logits[*i].to_bits() == bits).map(|i| expected[i]).sum();
            assert!((p - frequency).abs() < 0.03, "{p} against {frequency}");
        }
    }
}

/// Penalties, biases and what is forbidden: tokens are drawn of all and accepted as often as they still weigh, or from the
/// changed row where none is.
#[test]
fn changed_rows_are_drawn_from_by_their_probabilities() {
    let logits: Vec<f32> = (0..600).map(|i| ((i * 7919) % 13) as f32 / 3.0).collect();
    let base = SamplingParams { temperature: 0.8, ..SamplingParams::default() };
    let bias = |by: f32| Some((0..600).step_by(3).map(|id| (id, by)).collect());
    let cases = [
        SamplingParams { presence_penalty: 1.5, frequency_penalty: 0.5, ..base.clone() },
        SamplingParams { repetition_penalty: 1.6, ..base.clone() },
        SamplingParams { repetition_penalty: 0.7, ..base.clone() },
        SamplingParams { logit_bias: bias(-2.0), min_tokens: 9, ..base.clone() },
        SamplingParams { logit_bias: bias(2.0), presence_penalty: 1.0, ..base.clone() },
        SamplingParams { presence_penalty: 1.0, top_k: 40, top_p: 0.9, ..base.clone() },
        SamplingParams { allowed_token_ids: Some((0..30).collect()), ..base.clone() },
    ];
    for params in cases {
        let (mut blocks, mut scratch, mut changed) = (Blocks::default(), Scratch::default(), vec![]);
        let row = Row::of_changed(&logits, Some(params.temperature), &mut blocks);
        let mut counts = vec![0u32; 600];
        const CHOICES: u32 = 20_000;
        for seed in 0..CHOICES {
            let set = |rules: &mut SamplingRules| {
                rules.seed = seed.into();
                rules.prompt_tokens = (0..600).step_by(7).collect();
                rules.end_tokens = vec![12, 25];
                rules.bad_words = vec![vec![1, 38], vec![7, 51]];
            };
            let mut s = with_rules(params.clone(), set);
            [13, 26, 26, 1].into_iter().for_each(|token| s.note(token));
            s.change(None, &logits, &mut changed);
            let drawn = draw::draw(&row, params.temperature, &s.numbers(0));
            let row = if seed % 2 == 0 { Row { draws: &drawn, ..row } } else { row };
            counts[s.next(None, &row, &mut scratch) as usize] += 1;
        }
        let (expected, changed) = (reference(&changed, &params), &changed);
        let of_value = |value: f32| (0..600).filter(move |i| changed[*i].to_bits() == value.to_bits());
        for value in changed.iter().copied() {
            let found: u32 = of_value(value).map(|i| counts[i]).sum();
            let wanted: f64 = of_value(value).map(|i| expected[i] * f64::from(CHOICES)).sum();
            assert!((f64::from(found) - wanted).abs() <= 6.0 * wanted.sqrt(), "{found}, not {wanted}: {params:?}");
        }
    }
}

#[test]
fn greedy_takes_the_first_of_equals() {
    let mut logits = vec![0.0; 600];
    (logits[555], logits[300]) = (2.0, 2.0);
    let mut s = sampler(SamplingParams { temperature: 0.0, ..SamplingParams::default() });
    assert_eq!(sample(&mut s, &logits), 300);
}

#[test]
fn a_choice_depends_on_seed_index_and_length_alone() {
    let logits: Vec<f32> = (0..400).map(|i| (i % 17) as f32 / 4.0).collect();
    let draw = |seed, index| -> Vec<u32> {
        let rules = with_rules(SamplingParams::default(), |r| r.seed = seed).rules;
        let mut s = Sampler::new(rules, index);
        (0..10).map(|_| sample(&mut s, &logits)).collect()
    };
    assert_eq!(draw(3, 0), draw(3, 0));
    assert_ne!(draw(3, 0), draw(4, 0));
    assert_ne!(draw(3, 0), draw(3, 1));
}

#[test]
fn changes_come_in_vllms_order() {
    let params = SamplingParams {
        temperature: 0.0,
        allowed_token_ids: Some(vec![0, 1, 2, 3]),
        logit_bias: Some([(3, 4.0)].into()),
        repetition_penalty: 2.0,
        frequency_penalty: 0.5,
        presence_penalty: 0.25,
        min_tokens: 3,
        ..SamplingParams::default()
    };
    let mut s = with_rules(params, |r| {
        r.end_tokens = vec![0];
        r.prompt_tokens = HashSet::from([1, 3]);
    });
    s.output = vec![2, 2];
    s.counts = FxHashMap::from_iter([(2, 2)]);
    let mut changed = vec![];
    s.change(None, &[9.0, -1.0, 8.0, 2.0, 50.0], &mut changed);
    // 0: end token; 1: -1 · 2; 2: 8 / 2 - 2 · 0.5 - 0.25; 3: (2 + 4) / 2; 4: not allowed
    assert_eq!(changed, [f32::NEG_INFINITY, -2.0, 2.75, 3.0, f32::NEG_INFINITY]);
    s.output = vec![2, 2, 2];
    s.change(None, &[9.0, -1.0, 8.0, 2.0, 50.0], &mut changed);
    assert_eq!(changed[0], 9.0);
}

#[test]
fn the_strongest_penalties_leave_numbers() {
    for repetition_penalty in [f32::MIN_POSITIVE, f32::MAX] {
        let params = SamplingParams { repetition_penalty, top_k: 3, ..SamplingParams::default() };
        let mut s = with_rules(params, |r| r.prompt_tokens = HashSet::from([0, 1, 2, 3]));
        for _ in 0..4 {
            assert!(sample(&mut s, &[9.0, 1e-3, -5.0, 0.0]) < 4);
        }
        let mut changed = vec![];
        s.change(None, &[9.0, -5.0, f32::NEG_INFINITY, 0.0], &mut changed);
        assert!(changed.iter().all(|l| l.is_finite() || *l == f32::NEG_INFINITY), "{changed:?}");
        assert_eq!(changed[2], f32::NEG_INFINITY, "what is forbidden stays so");
    }
}

#[test]
fn a_bad_word_is_never_completed() {
    let params = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let mut s = with_rules(params, |r| r.bad_words = vec![vec![1], vec![2, 3, 3]]);
    let chosen: Vec<u32> = [[0., 9., 8., 7.], [0., 9., 0., 7.], [6., 9., 0., 7.], [0., 9., 0., 7.]]
        .iter()
        .map(|logits| sample(&mut s, logits))
        .collect();
    assert_eq!(chosen, [2, 3, 0, 3]);
}

#[test]
fn where_all_is_forbidden_an_allowed_token_is_chosen() {
    let params = SamplingParams { allowed_token_ids: Some(vec![2]), ..SamplingParams::default() };
    let mut s = with_rules(params, |r| r.bad_words = vec![vec![2]]);
    assert_eq!(sample(&mut s, &[1.0, 2.0, 3.0]), 2);
}

#[test]
fn logprobs_are_of_the_row_and_name_each_token_once() {
    let logits = [1.0f32, 3.0, 2.0, 0.0];
    let logsumexp = logits.iter().map(|l| l.exp()).sum::<f32>().ln();
    let row = Row {
        logits: &logits,
        max: 3.0,
        logsumexp,
        block_max: &[3.0],
        block_sum: &[],
        draws: &[],
        ranks: &[],
        most_likely: [&[]; 2],
    };
    let of = |token, count| -> Vec<(u32, u32)> {
        logprobs(&row, token, count, &[]).iter().map(|t| (t.id, t.rank)).collect()
    };
    assert_eq!(of(2, 0), [(2, 2)]);
    assert_eq!(of(2, 2), [(2, 2), (1, 1)]);
    assert_eq!(of(3, 2), [(3, 4), (1, 1), (2, 2)]);
    assert_eq!(of(0, -1), [(0, 3), (1, 1), (2, 2), (3, 4)]);
    let sum: f32 = logprobs(&row, 0, -1, &[]).iter().map(|t| t.logprob.exp()).sum();
    assert!((sum - 1.0).abs() < 1e-6);
}

/// The token `0`; the other digits follow.
const ZERO: usize = 15;

/// Digits, of which the model likes none, and after one of them the end.
fn digits(params: SamplingParams) -> Sampler {
    let tokenizer = Arc::new(crate::tokenizer::fakes::byte_level());
    let compiler = crate::grammar::GrammarCompiler::new(Some(tokenizer), Arc::from([257]), 259);
    let form = crate::grammar::StructuredOutputs { regex: Some("[0-4][0-4]*".into()), ..Default::default() };
    let grammar = compiler.compile(&form).unwrap();
    with_rules(params, |rules| {
        rules.grammar = Some((grammar, Arc::from([])));
        rules.end_tokens = vec![257];
    })
}

/// Little likely, and each another.
fn unlikely_digits() -> Vec<f32> {
    (0..259).map(|id| if (ZERO..ZERO + 5).contains(&id) { (id - ZERO) as f32 / 2.0 - 40.0 } else { 0.0 }).collect()
}

#[test]
fn of_few_that_a_grammar_allows_each_is_chosen_as_often_as_it_weighs() {
    const DRAWS: usize = 20_000;
    let logits = unlikely_digits();
    let params = SamplingParams { temperature: 0.8, top_k: 4, ignore_eos: true, ..SamplingParams::default() };
    let mut s = digits(params);
    let mut counts = [0u32; 259];
    (0..DRAWS).for_each(|_| counts[sample(&mut s, &logits) as usize] += 1);
    assert_eq!(
        counts.iter().sum::<u32>(),
        counts[ZERO + 1..][..4].iter().sum::<u32>(),
        "top_k leaves four of the digits"
    );
    let weight = |id: usize| (f64::from(logits[id]) / 0.8).exp();
    let total: f64 = (ZERO + 1..ZERO + 5).map(weight).sum();
    for (id, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        let (found, expected) = (f64::from(*count), weight(id) / total * DRAWS as f64);
        assert!((found - expected).abs() < 6.0 * expected.sqrt(), "{id}: {found} against {expected}");
    }
}

#[test]
fn of_few_that_a_grammar_allows_the_likeliest_is_greedy_and_stop_tokens_are_allowed_with_the_end() {
    let (mut logits, four) = (unlikely_digits(), ZERO as u32 + 4);
    logits[100] = 9.0;
    let mut s = digits(SamplingParams { temperature: 0.0, ignore_eos: true, ..SamplingParams::default() });
    assert_eq!([sample(&mut s, &logits), sample(&mut s, &logits)], [four; 2]);
    let stops =
        SamplingParams { temperature: 0.0, stop_token_ids: vec![101], ignore_eos: true, ..SamplingParams::default() };
    let mut s = digits(stops);
    assert_eq!([sample(&mut s, &logits), sample(&mut s, &logits)], [four, 101], "nothing may end before it began");
}

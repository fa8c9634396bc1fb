//! The engine over a model that is a function of the token history, read back through block tables: a wrong slot, a
//! missing copy or a block given away too early changes the answer or fails at once.

use super::*;
use crate::{
    block_pool::BlockId,
    device::DeviceError,
    draw,
    forward::Logits,
    output::{Finish, FinishReason, Logprobs, StopReason},
    row::{Blocks, TokenLogit},
    tokenizer::fakes::byte_level,
};
use proptest::prelude::*;
use rvllm_artifact::plan::{DRAWS, RANK};
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicUsize, Ordering},
};

mod beam;
mod feed;
mod logprobs;
mod policy;
mod prefix_caching;
mod score;
mod service;
mod structured;
mod transcript;

const VOCAB: u32 = 259;
const EOS: u32 = 257;

/// A KV cache whose "keys" are the tokens themselves.
struct FakeForward {
    limits: Limits,
    cache: Vec<Option<u32>>,
    had: Computed,
    broken: bool,
    /// Steps that have begun, with what they yield.
    begun: VecDeque<(Step, Computed)>,
    /// Those of the step that began last.
    draws: Vec<f32>,
    /// Tokens that steps took from those before them.
    num_fed: Arc<AtomicUsize>,
}

/// What a step yields.
#[derive(Default)]
struct Computed {
    logits: Vec<f32>,
    blocks: Blocks,
    max: Vec<f32>,
    logsumexp: Vec<f32>,
    draws: Vec<f32>,
    ranks: Vec<f32>,
    most_likely: Vec<f32>,
}

impl FakeForward {
    fn new(limits: Limits) -> FakeForward {
        let cache = vec![None; (limits.num_blocks * limits.block_size) as usize];
        FakeForward {
            limits,
            cache,
            had: Computed::default(),
            broken: false,
            begun: VecDeque::new(),
            draws: vec![],
            num_fed: Arc::default(),
        }
    }

    fn check_bounds(&self, step: &Step) {
        let l = &self.limits;
        assert!((1..=l.max_num_batched_tokens as usize).contains(&step.num_tokens()));
        assert!((1..=l.max_num_seqs as usize).contains(&step.num_seqs()));
        assert!(step.logits_indices.len() <= l.max_logits as usize);
    }

    fn write(&mut self, step: &Step) {
        for (slot, token) in step.slot_mapping.iter().zip(&step.token_ids) {
            self.cache[*slot as usize] = Some(self.token(*token));
        }
    }

    /// A token of a step, which may be one that the step before chose.
    fn token(&self, id: i32) -> u32 {
        if id >= 0 {
            return id as u32;
        }
        assert!(self.feeds());
        self.num_fed.fetch_add(1, Ordering::Relaxed);
        self.draws[(-1 - id) as usize * DRAWS] as u32
    }

    /// Tokens up to and including the step's token `index`.
    fn history(&self, step: &Step, index: usize) -> Vec<u32> {
        let seq = step.query_start_loc.partition_point(|start| *start as usize <= index) - 1;
        let table = &step.block_table[seq * step.max_blocks..][..step.max_blocks];
        let bs = self.limits.block_size as usize;
        let slot = |p: usize| table[p / bs] as usize * bs + p % bs;
        (0..=step.positions[index] as usize).map(|p| self.cache[slot(p)].expect("the KV has been computed")).collect()
    }
}

impl FakeForward {
    /// Of a row that is not to be read, logits are no numbers.
    fn push_row(&self, step: &Step, i: usize, brought: bool, to: &mut Computed) {
        let (temperature, numbers) = (step.temperature[i], &step.uniform.as_chunks().0[i]);
        let logits = logits_after(&self.history(step, step.logits_indices[i] as usize));
        to.blocks.push(&logits, Some(temperature));
        let mut blocks = Blocks::default();
        let row = Row::of_changed(&logits, Some(temperature), &mut blocks);
        let draws = draw::draw(&row, temperature, numbers);
        to.draws.extend(draws);
        let is_ranked = |of: usize| of / RANK < step.ranked[i] as usize;
        let ranks = draw::rank(&row, temperature, &draws).into_iter().enumerate();
        to.ranks.extend(ranks.map(|(of, number)| if is_ranked(of) { number } else { 0.0 }));
        to.most_likely.extend(draw::top_k(&row, step.top_k[i]));
        to.max.push(row.max);
        let sum: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
        to.logsumexp.push(if self.broken { f32::NAN } else { sum.ln() as f32 });
        let whole = brought || step.reads.get(i).is_none_or(|reads| *reads == Reads::All);
        to.logits.extend(logits.iter().map(|l| if whole { *l } else { f32::NAN }));
    }

    fn compute(&self, step: &Step, brought: &[usize]) -> Computed {
        let mut computed = Computed::default();
        (0..step.logits_indices.len()).for_each(|row| self.push_row(step, row, brought.contains(&row), &mut computed));
        computed
    }

    /// What was had.
    fn logits(&self) -> Logits<'_> {
        let Computed { logits, max, logsumexp, blocks, draws, ranks, most_likely } = &self.had;
        let Blocks { max: block_max, sum: block_sum } = blocks;
        Logits { vocab_size: VOCAB as usize, logits, max, logsumexp, block_max, block_sum, draws, ranks, most_likely }
    }
}

/// Logits with ties and wide gaps.
fn logits_after(history: &[u32]) -> Vec<f32> {
    let hash = history.iter().fold(0, |h, t| random::word(h, 1, u64::from(*t)));
    (0..u64::from(VOCAB)).map(|v| (random::uniform(hash, 2, v) * 40.0).round() as f32 / 4.0).collect()
}

impl Forward for FakeForward {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Of half of all bounds.
    fn runs_ahead(&self) -> bool {
        self.limits.num_blocks % 2 == 1
    }

    /// Of half of those.
    fn feeds(&self) -> bool {
        self.limits.num_blocks % 4 == 1
    }

    /// Computes at once what a device computes in order.
    fn begin(&mut self, step: &Step) -> Result<(), DeviceError> {
        assert!(self.begun.len() <= usize::from(self.feeds()));
        self.check_bounds(step);
        self.write(step);
        let computed = self.compute(step, &[]);
        self.draws = computed.draws.clone();
        self.begun.push_back((step.clone(), computed));
        Ok(())
    }

    fn forward(&mut self, step: &Step) -> Result<Logits<'_>, DeviceError> {
        if self.begun.is_empty() {
            self.begin(step)?;
        }
        let (begun, computed) = self.begun.pop_front().unwrap();
        assert_eq!(begun, *step);
        self.had = computed;
        Ok(self.logits())
    }

    fn leaves_out(&self) -> bool {
        true
    }

    fn bring(&mut self, step: &Step, rows: &[usize]) -> Result<Logits<'_>, DeviceError> {
        assert!(self.begun.is_empty(), "the rows are those of the next step");
        self.had = self.compute(step, rows);
        Ok(self.logits())
    }

    fn copy_block(&mut self, from: BlockId, to: BlockId) -> Result<(), DeviceError> {
        let bs = self.limits.block_size as usize;
        let from = from as usize * bs;
        self.cache.copy_within(from..from + bs, to as usize * bs);
        Ok(())
    }
}

fn limits() -> Limits {
    Limits {
        vocab_size: VOCAB,
        max_model_len: 48,
        max_num_seqs: 8,
        max_num_batched_tokens: 64,
        max_logits: 64,
        query_tile: 4,
        block_size: 4,
        num_blocks: 256,
    }
}

fn engine(limits: Limits) -> Engine {
    let mut engine = Engine::new(EngineParts {
        forward: Box::new(FakeForward::new(limits)),
        tokenizer: Some(Arc::new(byte_level())),
        eos_token_ids: vec![EOS, 256],
        seed: Some(5),
        memory: MemoryTable::default(),
        threads: 1,
    });
    engine.set_scheduling_policy(SchedulingPolicy::Priority);
    engine
}

/// All that a request yielded, joined.
#[derive(Clone, Debug, Default, PartialEq)]
struct Answers {
    prompt_logprobs: Option<Vec<Option<Logprobs>>>,
    tokens: BTreeMap<u32, Vec<u32>>,
    text: BTreeMap<u32, String>,
    logprobs: BTreeMap<u32, Vec<Logprobs>>,
    finish: BTreeMap<u32, Finish>,
    finished: u32,
}

impl Answers {
    fn add(&mut self, output: Output) {
        assert_eq!(self.finished, 0, "nothing comes after the end");
        if let Some(logprobs) = output.prompt_logprobs {
            assert_eq!(self.prompt_logprobs.replace(logprobs), None, "the prompt's log-probabilities come once");
        }
        for s in output.sequences {
            assert!(!self.finish.contains_key(&s.index));
            self.tokens.entry(s.index).or_default().extend(s.token_ids);
            *self.text.entry(s.index).or_default() += &s.text;
            self.logprobs.entry(s.index).or_default().extend(s.logprobs);
            s.finish.map(|f| self.finish.insert(s.index, f));
        }
        self.finished += u32::from(output.finished.is_some());
    }
}

type Requests = Vec<(Vec<u32>, SamplingParams)>;

/// Adds request i before step `arrivals[i]`, and runs until all have finished.
fn run(engine: &mut Engine, requests: &Requests, arrivals: &[usize]) -> Vec<Answers> {
    let mut answers = vec![Answers::default(); requests.len()];
    for step in 0.. {
        for (id, (prompt, params)) in requests.iter().enumerate().filter(|(i, _)| arrivals[*i] == step) {
            engine.add_request(id as u64, prompt.clone(), params.clone()).unwrap();
        }
        if !engine.has_unfinished() && arrivals.iter().all(|a| *a <= step) {
            break;
        }
        for output in engine.step().unwrap() {
            answers[output.request_id as usize].add(output);
        }
        assert!(step < 20_000, "every request finishes");
    }
    answers
}

fn alone(id: usize, requests: &Requests) -> Answers {
    let mut engine = engine(limits());
    let (prompt, params) = requests[id].clone();
    engine.add_request(id as u64, prompt, params).unwrap();
    let mut answers = Answers::default();
    while engine.has_unfinished() {
        engine.step().unwrap().into_iter().for_each(|o| answers.add(o));
    }
    answers
}

fn one(prompt: &[u32], params: SamplingParams) -> Answers {
    alone(0, &vec![(prompt.to_vec(), params)])
}

fn greedy() -> SamplingParams {
    SamplingParams { temperature: 0.0, ..SamplingParams::default() }
}

fn any_params() -> impl Strategy<Value = SamplingParams> {
    let kinds = (0u8..5, 1u32..4, 1u32..30, any::<bool>(), any::<bool>(), 0i32..3, any::<bool>());
    kinds.prop_map(|(kind, n, max_tokens, prompt_logprobs, ignore_eos, priority, salted)| SamplingParams {
        temperature: if kind == 0 { 0.0 } else { 1.5 },
        n: if kind == 0 { 1 } else { n },
        max_tokens: Some(max_tokens),
        prompt_logprobs: prompt_logprobs.then_some(1),
        logprobs: (kind == 1).then_some(2),
        repetition_penalty: if kind == 2 { 1.3 } else { 1.0 },
        top_k: if kind == 3 { 7 } else { 0 },
        structured_outputs: (kind == 4).then(structured::any_json),
        stop: if kind == 3 { vec!["a".into(), "bc".into()] } else { vec![] },
        ignore_eos,
        priority,
        cache_salt: salted.then(|| "salt".into()),
        ..SamplingParams::default()
    })
}

/// One of three beginnings, as far as it goes, and an end of its own.
fn any_prompt() -> impl Strategy<Value = Vec<u32>> {
    let parts = (0u32..3, 0u32..14, proptest::collection::vec(0u32..VOCAB, 1..5));
    parts.prop_map(|(which, len, end)| (0..len).map(|i| 50 * which + i).chain(end).collect())
}

fn any_limits() -> impl Strategy<Value = Limits> {
    (1u32..20, 1u32..6, 1u32..12, 1u32..9, 0u32..20, 1u32..5).prop_map(
        |(tokens, seqs, more_rows, block_size, more, query_tile)| Limits {
            max_num_batched_tokens: tokens,
            max_num_seqs: seqs,
            max_logits: seqs + more_rows - 1,
            query_tile,
            block_size,
            num_blocks: limits().max_model_len.div_ceil(block_size) + more,
            ..limits()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    /// Whatever shares its steps or its beginning, however it is cut and however often it is preempted.
    #[test]
    fn a_request_yields_what_it_yields_alone(
        requests in proptest::collection::vec((any_prompt(), any_params()), 1..7),
        arrivals in proptest::collection::vec(0usize..12, 7),
        limits in any_limits(),
    ) {
        let mut engine = engine(limits);
        let together = run(&mut engine, &requests, &arrivals[..requests.len()]);
        for (id, answers) in together.iter().enumerate() {
            prop_assert_eq!(answers.finished, 1);
            prop_assert_eq!(answers.finish.len(), requests[id].1.n as usize);
            prop_assert_eq!(answers, &alone(id, &requests));
        }
        prop_assert_eq!((engine.stats().num_running, engine.stats().num_waiting), (0, 0));
        prop_assert_eq!(engine.stats().num_free_blocks, limits.num_blocks as usize);
    }
}

#[test]
fn greedy_tokens_are_the_models_most_likely() {
    let prompt = vec![1, 2, 3];
    let answers =
        one(&prompt, SamplingParams { ignore_eos: true, logprobs: Some(0), max_tokens: Some(20), ..greedy() });
    let mut history = prompt;
    for (token, logprobs) in answers.tokens[&0].iter().zip(&answers.logprobs[&0]) {
        let logits = logits_after(&history);
        let best = (0..VOCAB).map(|id| TokenLogit { id, logit: logits[id as usize] });
        let best = best.reduce(|a, b| if b.logit > a.logit { b } else { a }).unwrap();
        assert_eq!((*token, logprobs[0].token_id), (best.id, best.id));
        let sum: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
        assert_eq!(logprobs[0].logprob, best.logit - sum.ln() as f32);
        history.push(*token);
    }
    assert_eq!(answers.finish[&0], Finish { reason: FinishReason::Length, stop_reason: None });
    assert_eq!(answers.tokens[&0].len(), 20);
}

#[test]
fn prompt_logprobs_are_about_each_token_but_the_first() {
    let prompt = vec![9, 8, 7, 6];
    let answers = one(&prompt, SamplingParams { prompt_logprobs: Some(1), max_tokens: Some(1), ..greedy() });
    let reported = answers.prompt_logprobs.unwrap();
    assert_eq!(reported.len(), 4);
    assert_eq!(reported[0], None);
    for (i, entry) in reported.iter().enumerate().skip(1) {
        let entry = entry.as_ref().unwrap();
        let logits = logits_after(&prompt[..i]);
        let mut blocks = Blocks::default();
        assert_eq!(
            (entry[0].token_id, entry[0].rank),
            (prompt[i], Row::of_changed(&logits, None, &mut blocks).rank(prompt[i]))
        );
        assert_eq!(entry[1].rank, 1);
    }
}

/// The token that greedy decoding chooses first after a prompt.
fn first_after(prompt: &[u32]) -> u32 {
    one(prompt, SamplingParams { max_tokens: Some(1), ignore_eos: true, ..greedy() }).tokens[&0][0]
}

#[test]
fn stop_tokens_end_an_answer_and_leave_its_text() {
    let token = first_after(&[4]);
    let stop = SamplingParams { stop_token_ids: vec![token], ..greedy() };
    let answers = one(&[4], stop.clone());
    let finish = Finish { reason: FinishReason::Stop, stop_reason: Some(StopReason::Token(token)) };
    assert_eq!((&answers.tokens[&0], &answers.text[&0], &answers.finish[&0]), (&vec![token], &String::new(), &finish));
    let kept = one(&[4], SamplingParams { include_stop_str_in_output: true, ..stop.clone() });
    assert_ne!(kept.text[&0], "");
    let later = one(&[4], SamplingParams { min_tokens: 3, ..stop });
    assert!(later.tokens[&0].len() >= 3 && !later.tokens[&0][..3].contains(&token));
}

#[test]
fn the_models_end_token_has_no_stop_reason() {
    let bias = |id| SamplingParams { logit_bias: Some([(id, 100.0)].into()), max_tokens: Some(3), ..greedy() };
    assert_eq!(one(&[1], bias(EOS)).finish[&0], Finish { reason: FinishReason::Stop, stop_reason: None });
    let other = Finish { reason: FinishReason::Stop, stop_reason: Some(StopReason::Token(256)) };
    assert_eq!(one(&[1], bias(256)).finish[&0], other);
    let ignored = one(&[1], SamplingParams { ignore_eos: true, ..bias(EOS) });
    assert_eq!((ignored.tokens[&0].clone(), ignored.finish[&0].reason), (vec![EOS; 3], FinishReason::Length));
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    let t = byte_level();
    let (a, b) = (t.encode("a", false).unwrap()[0], t.encode("b", false).unwrap()[0]);
    let only = |ids: Vec<u32>, stop: &str| SamplingParams {
        allowed_token_ids: Some(ids),
        stop: vec![stop.into()],
        max_tokens: Some(9),
        ..greedy()
    };
    let answers = one(&[1], only(vec![a], "aaa"));
    let by = Finish { reason: FinishReason::Stop, stop_reason: Some(StopReason::Text("aaa".into())) };
    assert_eq!((&answers.tokens[&0], answers.text[&0].as_str(), &answers.finish[&0]), (&vec![a; 3], "", &by));
    assert_eq!(one(&[1], only(vec![b], "ba")).text[&0], "b".repeat(9));
}

#[test]
fn bad_words_are_not_written() {
    let t = byte_level();
    let a = t.encode("a", false).unwrap()[0];
    let params = SamplingParams { allowed_token_ids: Some(vec![a, 3]), bad_words: vec!["a".into()], ..greedy() };
    assert_eq!(one(&[1], params).tokens[&0], vec![3; 16]);
}

#[test]
fn answers_of_one_request_differ_and_repeat() {
    let params = SamplingParams { n: 3, seed: Some(11), ..SamplingParams::default() };
    let answers = one(&[1, 2, 3, 4, 5], params.clone());
    assert_ne!(answers.tokens[&0], answers.tokens[&1]);
    assert_ne!(answers.tokens[&1], answers.tokens[&2]);
    assert_eq!(answers, one(&[1, 2, 3, 4, 5], params));
}

#[test]
fn a_long_prompt_is_truncated_where_asked() {
    let long: Vec<u32> = (0..100).collect();
    let max = SamplingParams { max_tokens: None, ignore_eos: true, ..greedy() };
    let kept = one(&long, SamplingParams { truncate_prompt_tokens: Some(5), ..max.clone() });
    assert_eq!(kept, one(&long[95..], max.clone()));
    assert_eq!(kept.tokens[&0].len(), 43);
    assert_eq!(one(&long, SamplingParams { truncate_prompt_tokens: Some(-1), ..max }).tokens[&0].len(), 1);
}

#[test]
fn logits_that_are_not_finite_name_the_request() {
    let mut forward = FakeForward::new(limits());
    forward.broken = true;
    let mut engine = engine(limits());
    engine.forward = Box::new(forward);
    engine.add_request(3, vec![1, 2], greedy()).unwrap();
    let message = engine.step().unwrap_err().to_string();
    assert!(message.starts_with("request 3: the logits at position 1 are not finite"), "{message}");
}

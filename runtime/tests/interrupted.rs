//! Interrupted runs, with an engine that says what it is told: no finished answer is lost, and a resumed run ends as
//! an undisturbed one.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use anyhow::Result;
use rvllm::{
    drive::{Request, Steps, Tally, drive},
    generate::queue,
    input::Place,
    partial::{Header, Partial, VERSION},
    progress::Progress,
    sink::{JsonLines, Sink},
};
use rvllm_engine::{EngineError, Finish, FinishReason, Metrics, Output, RequestId, SamplingParams, SequenceOutput};
use std::{
    collections::VecDeque,
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

/// Answers a prompt with its own tokens, one a step; of several prompts the shortest is done first. Sets `stop` after
/// `stop_after` steps, and fails after `fail_after`.
struct Echo<'a> {
    running: VecDeque<(RequestId, Vec<u32>, usize)>,
    steps: usize,
    stop_after: usize,
    fail_after: usize,
    stop: &'a AtomicBool,
}

impl<'a> Echo<'a> {
    fn new(stop: &'a AtomicBool) -> Self {
        Echo { running: VecDeque::new(), steps: 0, stop_after: usize::MAX, fail_after: usize::MAX, stop }
    }
}

impl Steps for Echo<'_> {
    fn add_request(&mut self, id: RequestId, prompt: Vec<u32>, _: SamplingParams) -> Result<(), EngineError> {
        if prompt.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        self.running.push_back((id, prompt, 0));
        Ok(())
    }

    fn step(&mut self) -> Result<Vec<Output>, EngineError> {
        if self.steps == self.fail_after {
            return Err(EngineError::LogitsNotFinite { request: 0, position: 0 });
        }
        self.steps += 1;
        self.stop.store(self.steps >= self.stop_after, Ordering::Relaxed);
        let outputs = self.running.iter_mut().map(|(id, prompt, at)| {
            *at += 1;
            output(*id, prompt, *at)
        });
        let outputs = outputs.collect();
        self.running.retain(|(_, prompt, at)| *at < prompt.len());
        Ok(outputs)
    }

    fn has_unfinished(&self) -> bool {
        !self.running.is_empty()
    }

    fn abort(&mut self, id: RequestId) -> Option<Output> {
        self.running.retain(|(other, ..)| *other != id);
        None
    }
}

fn output(request_id: RequestId, prompt: &[u32], at: usize) -> Output {
    let token = prompt[at - 1];
    let done = at == prompt.len();
    let finish = done.then_some(Finish { reason: FinishReason::Length, stop_reason: None });
    let now = Instant::now();
    let metrics = Metrics {
        arrival: now,
        first_scheduled: Some(now),
        first_token: Some(now),
        finished: now,
        num_prompt_tokens: prompt.len() as u32,
        num_generated_tokens: at as u32,
        num_cached_tokens: 0,
        num_preemptions: 0,
    };
    let added =
        SequenceOutput { index: 0, token_ids: vec![token], text: format!("<{token}>"), logprobs: vec![], finish };
    let (sequences, finished) = (vec![added], done.then_some(metrics));
    Output { request_id, prompt_logprobs: None, sequences, so_far: metrics, finished }
}

/// Longer prompts first, so that answers finish in the reverse of the input's order.
fn requests() -> Vec<Request> {
    let request = |index: usize| Request {
        index,
        prompt: Some(format!("prompt {index}")),
        prompt_token_ids: (0..10 - index as u32).collect(),
        params: SamplingParams::default(),
    };
    (0..10).map(request).collect()
}

fn header() -> Header {
    let hash = String::new;
    Header { rvllm_partial: VERSION, total: 10, input: hash(), artifact: hash(), requests: hash() }
}

fn attempt(output: &Path, engine: impl FnOnce(&mut Echo<'_>), resume: bool) -> Result<(Tally, usize)> {
    let stop = AtomicBool::new(false);
    let mut echo = Echo::new(&stop);
    engine(&mut echo);
    let mut sink: Box<dyn Sink> = Box::new(Partial::open(output, &header(), resume)?);
    let remaining: Vec<Request> = requests().into_iter().filter(|r| !sink.has(r.index)).collect();
    queue(&mut echo, &remaining, Place::Line).unwrap();
    let tally = drive(&mut echo, &remaining, &mut *sink, &mut Progress::none(), &stop)?;
    match tally.interrupted {
        true => drop(sink.interrupt()?),
        false => sink.close()?,
    }
    Ok((tally, remaining.len()))
}

/// Lines without their times.
fn lines(path: &Path) -> Vec<serde_json::Value> {
    let parse = |line: &str| {
        let mut value: serde_json::Value = serde_json::from_str(line).unwrap();
        value.as_object_mut().unwrap().remove("metrics").unwrap();
        value
    };
    fs::read_to_string(path).unwrap().lines().map(parse).collect()
}

fn undisturbed(dir: &Path) -> Vec<serde_json::Value> {
    let output = dir.join("undisturbed.jsonl");
    attempt(&output, |_| {}, false).unwrap();
    lines(&output)
}

#[test]
fn a_resumed_run_ends_as_an_undisturbed_one() {
    let dir = tempfile::tempdir().unwrap();
    let expected = undisturbed(dir.path());
    assert_eq!(expected.len(), 10);
    assert_eq!(expected[9]["outputs"][0]["text"], "<0>");
    for steps in 1..10 {
        let output = dir.path().join(format!("{steps}.jsonl"));
        let (tally, asked) = attempt(&output, |e| e.stop_after = steps, false).unwrap();
        assert_eq!((tally.finished, asked, tally.interrupted), (steps, 10, true));
        assert!(!output.exists());
        let (tally, asked) = attempt(&output, |_| {}, true).unwrap();
        assert_eq!((tally.finished, asked), (10 - steps, 10 - steps));
        assert_eq!(lines(&output), expected);
        assert!(!dir.path().join(format!("{steps}.jsonl.partial")).exists());
    }
}

#[test]
fn a_failure_of_the_engine_loses_nothing_finished() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out.jsonl");
    assert!(attempt(&output, |e| e.fail_after = 4, false).unwrap_err().to_string().contains("not finite"));
    let (_, asked) = attempt(&output, |_| {}, true).unwrap();
    assert_eq!(asked, 6);
    assert_eq!(lines(&output), undisturbed(dir.path()));
}

#[test]
fn many_interruptions_add_up() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out.jsonl");
    let asked = [2, 4, 6, 8].map(|steps| attempt(&output, |e| e.stop_after = steps, true).unwrap().1);
    assert_eq!(asked, [10, 8, 6, 4]);
    attempt(&output, |_| {}, true).unwrap();
    assert_eq!(lines(&output), undisturbed(dir.path()));
}

#[test]
fn an_interruption_before_the_first_answer_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let sink: Box<dyn Sink> = Box::new(Partial::open(&dir.path().join("out.jsonl"), &header(), false).unwrap());
    assert_eq!(sink.interrupt().unwrap(), None);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn refused_prompts_are_named_by_their_lines() {
    let stop = AtomicBool::new(false);
    let mut empty = requests();
    empty[3].prompt_token_ids.clear();
    let bad = queue(&mut Echo::new(&stop), &empty, |index| Place::Line(index + 1)).unwrap_err();
    assert_eq!((bad.len(), bad[0].place), (1, Place::Line(4)));
    assert_eq!(bad[0].problem, "the prompt is empty; give at least one token");
}

#[test]
fn a_full_disk_is_told_with_what_is_kept() {
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let stop = AtomicBool::new(false);
    let mut echo = Echo::new(&stop);
    queue(&mut echo, &requests(), Place::Line).unwrap();
    let mut sink = JsonLines::new(full);
    let error = drive(&mut echo, &requests(), &mut sink, &mut Progress::none(), &stop).unwrap_err();
    assert_eq!(rvllm::error::message(&error), "cannot write the answers: No space left on device (os error 28)");
}

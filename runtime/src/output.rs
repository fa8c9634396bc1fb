//! Answers as they grow, and the JSON line that a finished one becomes.
//!
//! Invariants: the keys of a line and their meaning are vLLM's `RequestOutput`; times are seconds since 1970.

use rvllm_engine::{Finish, FinishReason, Logprobs, Metrics, Output, SequenceOutput, StopReason};
use serde::{Serialize, Serializer};
use std::{
    sync::OnceLock,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

/// The answer to one prompt, as far as it is known.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// One entry per token of the prompt, where asked for.
    pub prompt_logprobs: Option<Vec<Option<Logprobs>>>,
    /// The request's `n` sequences.
    pub sequences: Vec<Sequence>,
    /// Present when nothing more comes.
    pub metrics: Option<Metrics>,
}

/// One sequence of an answer.
#[derive(Clone, Debug, Default)]
pub struct Sequence {
    /// Its text.
    pub text: String,
    /// Its tokens.
    pub token_ids: Vec<u32>,
    /// One entry per token; empty where none were asked for.
    pub logprobs: Vec<Logprobs>,
    /// How it ended.
    pub finish: Option<Finish>,
}

impl Answer {
    /// Takes in what a step added.
    pub fn extend(&mut self, output: Output) {
        let Output { request_id: _, prompt_logprobs, sequences, finished, so_far: _ } = output;
        if prompt_logprobs.is_some() {
            self.prompt_logprobs = prompt_logprobs;
        }
        for added in sequences {
            self.extend_sequence(added);
        }
        self.metrics = finished.or(self.metrics);
    }

    fn extend_sequence(&mut self, added: SequenceOutput) {
        let SequenceOutput { index, token_ids, text, logprobs, finish } = added;
        let index = index as usize;
        if self.sequences.len() <= index {
            self.sequences.resize_with(index + 1, Sequence::default);
        }
        let sequence = &mut self.sequences[index];
        sequence.token_ids.extend(token_ids);
        sequence.text.push_str(&text);
        sequence.logprobs.extend(logprobs);
        sequence.finish = finish.or(sequence.finish.take());
    }

    /// The JSON line, without its line feed. `prompt` is null where the prompt was given as tokens.
    pub fn to_json(&self, index: usize, prompt: Option<&str>, prompt_token_ids: &[u32]) -> serde_json::Result<String> {
        let kept = self.metrics.map_or(prompt_token_ids.len(), |m| m.num_prompt_tokens as usize);
        let line = JsonAnswer {
            index,
            prompt,
            // Truncation keeps the last tokens.
            prompt_token_ids: &prompt_token_ids[prompt_token_ids.len().saturating_sub(kept)..],
            prompt_logprobs: self
                .prompt_logprobs
                .as_ref()
                .map(|all| all.iter().map(|p| p.as_ref().map(ById)).collect()),
            outputs: self.sequences.iter().enumerate().map(JsonSequence::new).collect(),
            metrics: self.metrics.map(JsonMetrics::new),
        };
        serde_json::to_string(&line)
    }
}

#[derive(Serialize)]
struct JsonAnswer<'a> {
    index: usize,
    prompt: Option<&'a str>,
    prompt_token_ids: &'a [u32],
    prompt_logprobs: Option<Vec<Option<ById<'a>>>>,
    outputs: Vec<JsonSequence<'a>>,
    metrics: Option<JsonMetrics>,
}

#[derive(Serialize)]
struct JsonSequence<'a> {
    index: usize,
    text: &'a str,
    token_ids: &'a [u32],
    logprobs: Option<Vec<ById<'a>>>,
    finish_reason: Option<&'static str>,
    stop_reason: Option<JsonStop<'a>>,
}

impl<'a> JsonSequence<'a> {
    fn new((index, sequence): (usize, &'a Sequence)) -> Self {
        let Sequence { text, token_ids, logprobs, finish } = sequence;
        JsonSequence {
            index,
            text,
            token_ids,
            logprobs: (!logprobs.is_empty()).then(|| logprobs.iter().map(ById).collect()),
            finish_reason: finish.as_ref().map(|f| FinishReason::as_str(f.reason)),
            stop_reason: finish.as_ref().and_then(|f| f.stop_reason.as_ref()).map(JsonStop::new),
        }
    }
}

#[derive(Serialize)]
#[serde(untagged)]
enum JsonStop<'a> {
    Token(u32),
    Text(&'a str),
}

impl<'a> JsonStop<'a> {
    fn new(reason: &'a StopReason) -> Self {
        match reason {
            StopReason::Token(id) => JsonStop::Token(*id),
            StopReason::Text(text) => JsonStop::Text(text),
        }
    }
}

/// `{"<id>": {"logprob", "rank", "decoded_token"}}`: the position's own token first, then the likeliest.
struct ById<'a>(&'a Logprobs);

#[derive(Serialize)]
struct JsonLogprob<'a> {
    logprob: f32,
    rank: u32,
    decoded_token: Option<&'a str>,
}

impl Serialize for ById<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.0.iter().map(|l| {
            (l.token_id, JsonLogprob { logprob: l.logprob, rank: l.rank, decoded_token: l.decoded_token.as_deref() })
        }))
    }
}

#[derive(Serialize)]
struct JsonMetrics {
    arrival_time: f64,
    first_scheduled_time: Option<f64>,
    first_token_time: Option<f64>,
    finished_time: f64,
    time_in_queue: Option<f64>,
    num_cached_tokens: u32,
    num_preemptions: u32,
}

impl JsonMetrics {
    fn new(metrics: Metrics) -> Self {
        JsonMetrics {
            arrival_time: seconds_since_1970(metrics.arrival),
            first_scheduled_time: metrics.first_scheduled.map(seconds_since_1970),
            first_token_time: metrics.first_token.map(seconds_since_1970),
            finished_time: seconds_since_1970(metrics.finished),
            time_in_queue: metrics.first_scheduled.map(|t| t.duration_since(metrics.arrival).as_secs_f64()),
            num_cached_tokens: metrics.num_cached_tokens,
            num_preemptions: metrics.num_preemptions,
        }
    }
}

/// One pair of clock readings serves all conversions, so that times of one run keep their distances.
fn seconds_since_1970(time: Instant) -> f64 {
    static CLOCKS: OnceLock<(Instant, f64)> = OnceLock::new();
    let (instant, unix) = CLOCKS.get_or_init(|| {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        (Instant::now(), unix.as_secs_f64())
    });
    match time.checked_duration_since(*instant) {
        Some(after) => unix + after.as_secs_f64(),
        None => unix - instant.duration_since(time).as_secs_f64(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rvllm_engine::Logprob;
    use serde_json::{Value, json};

    fn step(text: &str, id: u32, finish: Option<Finish>) -> Output {
        let logprob = Logprob { token_id: id, logprob: -0.5, rank: 1, decoded_token: Some(text.into()) };
        let sequence =
            SequenceOutput { index: 1, token_ids: vec![id], text: text.into(), logprobs: vec![vec![logprob]], finish };
        let (sequences, so_far) = (vec![sequence], metrics(0));
        Output { request_id: 4, prompt_logprobs: None, sequences, so_far, finished: None }
    }

    fn metrics(num_generated_tokens: u32) -> Metrics {
        let now = Instant::now();
        Metrics {
            arrival: now,
            first_scheduled: None,
            first_token: None,
            finished: now,
            num_prompt_tokens: 1,
            num_generated_tokens,
            num_cached_tokens: 0,
            num_preemptions: 0,
        }
    }

    #[test]
    fn a_line_has_the_fields_of_a_request_output() {
        let mut answer = Answer::default();
        answer.extend(Output { prompt_logprobs: Some(vec![None, Some(vec![])]), ..step("a", 7, None) });
        let stop = StopReason::Text("b".into());
        answer.extend(step("b", 8, Some(Finish { reason: FinishReason::Stop, stop_reason: Some(stop) })));
        let line: Value = serde_json::from_str(&answer.to_json(4, Some("p"), &[1, 2]).unwrap()).unwrap();
        let logprob = |t: &str| json!({"logprob": -0.5, "rank": 1, "decoded_token": t});
        assert_eq!(line["index"], 4);
        assert_eq!(line["prompt_logprobs"], json!([null, {}]));
        assert_eq!(line["outputs"][0]["logprobs"], Value::Null);
        let expected = json!({
            "index": 1, "text": "ab", "token_ids": [7, 8], "finish_reason": "stop", "stop_reason": "b",
            "logprobs": [{"7": logprob("a")}, {"8": logprob("b")}],
        });
        assert_eq!(line["outputs"][1], expected);
        let keys: Vec<&String> = line.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["index", "prompt", "prompt_token_ids", "prompt_logprobs", "outputs", "metrics"]);
    }

    #[test]
    fn times_keep_their_distances_and_truncated_prompts_their_end() {
        let arrival = Instant::now();
        let finished = arrival + std::time::Duration::from_secs(2);
        let metrics = Metrics {
            arrival,
            first_scheduled: Some(arrival),
            first_token: None,
            finished,
            num_prompt_tokens: 1,
            num_generated_tokens: 0,
            num_cached_tokens: 3,
            num_preemptions: 0,
        };
        let answer = Answer { metrics: Some(metrics), ..Answer::default() };
        let line: Value = serde_json::from_str(&answer.to_json(0, None, &[1, 2]).unwrap()).unwrap();
        let seconds = |key: &str| line["metrics"][key].as_f64().unwrap();
        assert!((seconds("finished_time") - seconds("arrival_time") - 2.0).abs() < 1e-3);
        assert_eq!((&line["prompt_token_ids"], &line["metrics"]["num_cached_tokens"]), (&json!([2]), &json!(3)));
    }
}

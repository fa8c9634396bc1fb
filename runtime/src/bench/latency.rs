//! `rvllm bench latency`: one batch of requests through the engine, over and over.

use super::{stats::Summary, subject::Subject};
use crate::{drive::Request, error::Failure, interrupt, model::Session};
use anyhow::Result;
use clap::Args;
use rand::{Rng, SeedableRng, rngs::StdRng};
use rvllm_engine::{Engine, SamplingParams};
use serde_json::{Map, Value, json};
use std::{sync::atomic::Ordering, time::Instant};

/// Percentiles, as vLLM chooses them.
const PERCENTILES: [f64; 6] = [10.0, 25.0, 50.0, 75.0, 90.0, 99.0];

/// `rvllm bench latency`
#[derive(Args, Debug)]
pub struct Flags {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group has no help of its own")]
    pub subject: Subject,
    /// Tokens of each prompt
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub input_len: usize,
    /// Tokens of each answer
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub output_len: u32,
    /// Requests of the batch
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub batch_size: usize,
    /// Answers to each prompt
    #[arg(short = 'n', long = "n", value_name = "N", default_value_t = 1)]
    pub n: u32,
    /// Batches before the first that counts
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub num_iters_warmup: usize,
    /// Batches that count
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub num_iters: usize,
}

/// Runs the command.
///
/// # Errors
/// A flag is wrong, or the model does not load or compute.
pub fn run(flags: &Flags) -> Result<()> {
    if flags.num_iters == 0 || flags.batch_size == 0 || flags.input_len == 0 {
        return Err(Failure::usage("--num-iters, --batch-size and --input-len must be at least 1").into());
    }
    // The same prompts every time: none may be found computed already.
    let mut subject = flags.subject.clone();
    (subject.engine.no_enable_prefix_caching, subject.engine.enable_prefix_caching) = (true, false);
    let mut session = subject.open()?;
    let requests = batch(flags, &session)?;
    let stop = interrupt::flag()?;
    let mut laps = vec![];
    for i in 0..flags.num_iters_warmup + flags.num_iters {
        let lap = Lap::run(&mut session.engine, &requests)?;
        if stop.load(Ordering::Relaxed) {
            return Err(Failure::interrupted("interrupted").into());
        }
        laps.extend((i >= flags.num_iters_warmup).then_some(lap));
    }
    let results = Results::of(flags, &laps);
    flags.subject.tell(&results.json(), &results.text())
}

fn batch(flags: &Flags, session: &Session) -> Result<Vec<Request>> {
    let limits = session.engine.limits();
    let most = limits.max_model_len as usize;
    if flags.input_len + flags.output_len as usize > most {
        let (input, output) = (flags.input_len, flags.output_len);
        let failure = Failure::usage(format!("{input} + {output} tokens do not fit the model's {most}"));
        return Err(failure.help("lower --input-len or --output-len").into());
    }
    let mut random = StdRng::seed_from_u64(0);
    let params = params(flags.output_len, flags.n);
    let mut token_ids = || (0..flags.input_len).map(|_| random.random_range(0..limits.vocab_size)).collect();
    let request = |index| Request { index, prompt: None, prompt_token_ids: token_ids(), params: params.clone() };
    Ok((0..flags.batch_size).map(request).collect())
}

/// Answers of exactly this length: greedy where there is one, past the end token.
pub fn params(output_len: u32, n: u32) -> SamplingParams {
    let temperature = if n > 1 { 1.0 } else { 0.0 };
    let max_tokens = Some(output_len);
    SamplingParams { n, temperature, max_tokens, ignore_eos: true, detokenize: false, ..SamplingParams::default() }
}

/// One batch, in seconds.
struct Lap {
    /// From the first request to the last token.
    latency: f64,
    /// Until the last of the requests had its first token.
    first_token: f64,
}

impl Lap {
    fn run(engine: &mut Engine, requests: &[Request]) -> Result<Lap> {
        let start = Instant::now();
        for r in requests {
            engine.add_request(r.index as u64, r.prompt_token_ids.clone(), r.params.clone())?;
        }
        let mut first_token = 0.0;
        while engine.has_unfinished() {
            for metrics in engine.step()?.iter().filter_map(|o| o.finished) {
                let first = metrics.first_token.map_or(0.0, |at| (at - start).as_secs_f64());
                first_token = f64::max(first_token, first);
            }
        }
        Ok(Lap { latency: start.elapsed().as_secs_f64(), first_token })
    }
}

/// What the batches came to.
struct Results {
    latency: Summary,
    latencies: Vec<f64>,
    /// Tokens of prompts a second, until the last first token.
    prefill: f64,
    /// Tokens generated a second after it.
    decode: f64,
    /// Seconds a step of the decode.
    tpot: f64,
}

impl Results {
    fn of(flags: &Flags, laps: &[Lap]) -> Results {
        let latencies: Vec<f64> = laps.iter().map(|l| l.latency).collect();
        let first: Vec<f64> = laps.iter().map(|l| l.first_token).collect();
        let rest: Vec<f64> = laps.iter().map(|l| l.latency - l.first_token).collect();
        let median = |sample: &[f64]| Summary::of(sample, &[]).median;
        let sequences = (flags.batch_size * flags.n as usize) as f64;
        let steps = f64::from(flags.output_len.saturating_sub(1));
        Results {
            latency: Summary::of(&latencies, &PERCENTILES),
            prefill: (flags.batch_size * flags.input_len) as f64 / median(&first),
            decode: if steps > 0.0 { sequences * steps / median(&rest) } else { 0.0 },
            tpot: if steps > 0.0 { median(&rest) / steps } else { 0.0 },
            latencies,
        }
    }

    fn text(&self) -> String {
        let mut text = format!("Avg latency: {} seconds\n", self.latency.mean);
        for (p, x) in &self.latency.percentiles {
            text += &format!("{p}% percentile latency: {x} seconds\n");
        }
        let (prefill, decode, tpot) = (self.prefill, self.decode, self.tpot * 1e3);
        text + &format!("Prefill: {prefill:.1} tokens/s · decode: {decode:.1} tokens/s, {tpot:.3} ms a step\n")
    }

    /// vLLM's keys, and ours for the two phases.
    fn json(&self) -> Value {
        let percentiles: Map<String, Value> =
            self.latency.percentiles.iter().map(|(p, x)| (p.to_string(), json!(x))).collect();
        json!({
            "avg_latency": self.latency.mean, "latencies": self.latencies, "percentiles": percentiles,
            "prefill_tokens_per_second": self.prefill, "decode_tokens_per_second": self.decode,
            "median_step_ms": self.tpot * 1e3,
        })
    }
}

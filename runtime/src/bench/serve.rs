//! `rvllm bench serve`: load on an OpenAI-compatible server.
//!
//! Invariants:
//! - a request leaves when the traffic says, or as soon as `--max-concurrency` lets it;
//! - the server is asked once before the clock starts, so that a wrong flag is told at once.

use super::{
    client::{Client, Outcome},
    dataset::{Dataset, Sample},
    html, pair, percentiles,
    results::{Conditions, Goals, Results},
    traffic::{Rate, departures},
    vocabulary::Vocabulary,
    write_whole,
};
use crate::{
    cli::vllm,
    error::{Failure, message, note},
    interrupt,
};
use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use hyper::Method;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{sync::Semaphore, task::JoinSet};

/// Which of OpenAI's APIs is asked.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// /v1/completions
    #[value(aliases = ["vllm", "rvllm", "sglang", "llama.cpp"])]
    Openai,
    /// /v1/chat/completions
    OpenaiChat,
}

impl Backend {
    fn path(self) -> &'static str {
        match self {
            Backend::Openai => "/v1/completions",
            Backend::OpenaiChat => "/v1/chat/completions",
        }
    }
}

/// How the request rate grows.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ramp {
    /// By the same amount each request
    Linear,
    /// By the same factor each request
    Exponential,
}

/// `rvllm bench serve`
#[derive(Args, Debug)]
pub struct Flags {
    /// Which API is asked
    #[arg(
        long,
        value_enum,
        default_value = "openai",
        value_name = "NAME",
        alias = "endpoint-type",
        help_heading = "Server"
    )]
    pub backend: Backend,
    /// The server's address, instead of --host and --port
    #[arg(long, value_name = "URL", help_heading = "Server")]
    pub base_url: Option<String>,
    /// The server's host
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", help_heading = "Server")]
    pub host: String,
    /// The server's port
    #[arg(long, value_name = "N", default_value_t = 8000, help_heading = "Server")]
    pub port: u16,
    /// The route [default: that of the backend]
    #[arg(long, value_name = "PATH", help_heading = "Server")]
    pub endpoint: Option<String>,
    /// The model to ask, and the directory of its tokenizer [default: the first that the server has]
    #[arg(long, value_name = "NAME", help_heading = "Server")]
    pub model: Option<String>,
    /// What the server calls the model, where it is another name
    #[arg(long, value_name = "NAME", help_heading = "Server")]
    pub served_model_name: Option<String>,
    /// The model's tokenizer: a directory, tokenizer.json, or an artifact [default: the model's, else the server's]
    #[arg(long, value_name = "DIR|FILE", help_heading = "Server")]
    pub tokenizer: Option<PathBuf>,
    /// A header of every request; repeatable. OPENAI_API_KEY is the key
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair, num_args = 1.., help_heading = "Server")]
    pub header: Vec<(String, String)>,
    /// Trust whatever certificate a server shows
    #[arg(long, help_heading = "Server")]
    pub insecure: bool,
    /// How long to wait for the server
    #[arg(long, value_name = "SECONDS", default_value_t = 0, help_heading = "Server")]
    pub ready_check_timeout_sec: u64,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group has no help of its own")]
    pub dataset: Dataset,

    /// Requests a second; inf sends all at once
    #[arg(long, value_name = "X", default_value_t = f64::INFINITY, help_heading = "Traffic")]
    pub request_rate: f64,
    /// Regularity of the times at which requests leave: 1 is a Poisson process, less is burstier
    #[arg(long, value_name = "X", default_value_t = 1.0, help_heading = "Traffic")]
    pub burstiness: f64,
    /// Most requests at a time [default: any number]
    #[arg(long, value_name = "N", help_heading = "Traffic")]
    pub max_concurrency: Option<usize>,
    /// Let the rate grow over the run
    #[arg(long, value_enum, value_name = "HOW", requires_all = ["ramp_up_start_rps", "ramp_up_end_rps"],
        help_heading = "Traffic")]
    pub ramp_up_strategy: Option<Ramp>,
    /// Requests a second at first
    #[arg(long, value_name = "X", help_heading = "Traffic")]
    pub ramp_up_start_rps: Option<f64>,
    /// Requests a second at last
    #[arg(long, value_name = "X", help_heading = "Traffic")]
    pub ramp_up_end_rps: Option<f64>,
    /// Requests before the clock starts
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Traffic")]
    pub num_warmups: usize,

    /// Go on after the model's end token, so that every answer has its length
    #[arg(long, help_heading = "Sampling")]
    pub ignore_eos: bool,
    /// Randomness: 0 is greedy
    #[arg(long, value_name = "X", default_value_t = 0.0, help_heading = "Sampling")]
    pub temperature: f64,
    /// Probability mass that is kept
    #[arg(long, value_name = "X", help_heading = "Sampling")]
    pub top_p: Option<f64>,
    /// Number of tokens that are kept
    #[arg(long, value_name = "N", help_heading = "Sampling")]
    pub top_k: Option<i64>,
    /// Least probability relative to the likeliest
    #[arg(long, value_name = "X", help_heading = "Sampling")]
    pub min_p: Option<f64>,
    /// Off at 0
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = "Sampling")]
    pub frequency_penalty: Option<f64>,
    /// Off at 0
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = "Sampling")]
    pub presence_penalty: Option<f64>,
    /// Off at 1
    #[arg(long, value_name = "X", help_heading = "Sampling")]
    pub repetition_penalty: Option<f64>,
    /// Log-probabilities of each token
    #[arg(long, value_name = "N", help_heading = "Sampling")]
    pub logprobs: Option<u32>,
    /// Fields that every request has beside these
    #[arg(long, value_name = "JSON", value_parser = crate::parsers::object, help_heading = "Sampling")]
    pub extra_body: Option<Map<String, Value>>,

    /// Of which times statistics are printed: ttft, tpot, itl, e2el
    #[arg(long, value_name = "LIST", default_value = "ttft,tpot,itl", help_heading = "Results")]
    pub percentile_metrics: String,
    /// Which percentiles
    #[arg(long, value_name = "LIST", default_value = "99", help_heading = "Results")]
    pub metric_percentiles: String,
    /// Requests that meet these times, in milliseconds, count as goodput: ttft:500 tpot:50 e2el:10000
    #[arg(long, value_name = "NAME:MS", num_args = 1.., help_heading = "Results")]
    pub goodput: Vec<String>,
    /// Write the results as JSON
    #[arg(long, help_heading = "Results")]
    pub save_result: bool,
    /// With the times and texts of each request
    #[arg(long, help_heading = "Results")]
    pub save_detailed: bool,
    /// Add the results to the file as a further line
    #[arg(long, help_heading = "Results")]
    pub append_result: bool,
    /// Where to write them [default: here]
    #[arg(long, value_name = "DIR", help_heading = "Results")]
    pub result_dir: Option<PathBuf>,
    /// Under which name [default: made of backend, rate, model and time]
    #[arg(long, value_name = "NAME", help_heading = "Results")]
    pub result_filename: Option<String>,
    /// Write a report with plots
    #[arg(long, value_name = "FILE.html", help_heading = "Results")]
    pub html: Option<PathBuf>,
    /// What to call the run
    #[arg(long, value_name = "TEXT", help_heading = "Results")]
    pub label: Option<String>,
    /// Facts to keep with the results; repeatable
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair, num_args = 1.., help_heading = "Results")]
    pub metadata: Vec<(String, String)>,
    /// Name requests: each gets this and its number
    #[arg(long, value_name = "TEXT", default_value = "bench-", help_heading = "Results")]
    pub request_id_prefix: String,
    /// Print the results as JSON instead
    #[arg(long, help_heading = "Results")]
    pub json: bool,
    /// No progress bar
    #[arg(long, help_heading = "Results")]
    pub disable_tqdm: bool,
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group has no help of its own")]
    pub vllm: vllm::Given<vllm::Client>,
}

/// Runs the command.
///
/// # Errors
/// A flag is wrong, the server cannot be reached or refuses, or no request succeeded.
pub fn run(flags: &Flags) -> Result<()> {
    flags.vllm.tell();
    let goals = Goals::parse(&flags.goodput)?;
    let percentiles = percentiles(&flags.metric_percentiles)?;
    super::results::check_metrics(&flags.percentile_metrics)?;
    let rate = rate(flags)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let results = runtime.block_on(measure(flags, rate, goals, percentiles))?;
    tell(flags, &results)?;
    match results.completed() {
        0 => Err(Failure::new(format!("no request succeeded: {}", results.first_error())).into()),
        _ => Ok(()),
    }
}

fn rate(flags: &Flags) -> Result<Rate, Failure> {
    let positive = |name: &str, x: f64| match x > 0.0 {
        true => Ok(x),
        false => Err(Failure::usage(format!("{name} is {x}, but must be above 0"))),
    };
    positive("--burstiness", flags.burstiness)?;
    let (start, end) = (flags.ramp_up_start_rps.unwrap_or(1.0), flags.ramp_up_end_rps.unwrap_or(1.0));
    let (start, end) = (positive("--ramp-up-start-rps", start)?, positive("--ramp-up-end-rps", end)?);
    match flags.ramp_up_strategy {
        Some(Ramp::Linear) => Ok(Rate::Linear(start, end)),
        Some(Ramp::Exponential) => Ok(Rate::Exponential(start, end)),
        None if flags.request_rate == f64::INFINITY => Ok(Rate::Unlimited),
        None => positive("--request-rate", flags.request_rate).map(Rate::Constant),
    }
}

async fn measure(flags: &Flags, rate: Rate, goals: Goals, percentiles: Vec<f64>) -> Result<Results> {
    let base = flags.base_url.clone().unwrap_or_else(|| format!("http://{}:{}", flags.host, flags.port));
    let key = std::env::var("OPENAI_API_KEY").ok();
    let client = Client::new(&base, &flags.header, key.as_deref(), flags.insecure)?;
    client.wait(Duration::from_secs(flags.ready_check_timeout_sec)).await?;
    let model = Model::find(flags, &client).await?;
    let vocabulary = vocabulary(flags, &client, &model)?;
    let samples = flags.dataset.samples(&vocabulary).await?;
    let prefix = flags.request_id_prefix.clone();
    let asker = Asker { client, path: path(flags), fields: Fields::of(flags), model: model.name.clone(), prefix };
    asker.check(&samples[0]).await?;
    asker.warm_up(&samples, flags.num_warmups).await;
    let times = departures(samples.len(), rate, flags.burstiness, flags.dataset.seed);
    let bar = Bar::new(samples.len(), !flags.disable_tqdm && !flags.json);
    let (outcomes, duration) = load(Arc::new(asker), samples, times, flags.max_concurrency, bar).await?;
    let conditions = Conditions {
        date: rvllm_engine::chat::time("%Y%m%d-%H%M%S"),
        backend: flags.backend.to_possible_value().map_or(String::new(), |v| v.get_name().to_string()),
        model: model.name,
        tokenizer: flags.tokenizer.as_ref().map_or(model.root, |t| t.display().to_string()),
        label: flags.label.clone(),
        metadata: flags.metadata.clone(),
        request_rate: match rate {
            Rate::Constant(rate) => Some(rate),
            _ => None,
        },
        burstiness: flags.burstiness,
        max_concurrency: flags.max_concurrency,
        goals,
        metrics: flags.percentile_metrics.split(',').map(|m| m.trim().to_string()).collect(),
        percentiles,
    };
    Ok(Results { conditions, duration, outcomes })
}

fn path(flags: &Flags) -> String {
    flags.endpoint.clone().unwrap_or_else(|| flags.backend.path().to_string())
}

/// The model that is asked.
struct Model {
    name: String,
    /// Where the server has it from, which may be a directory of this machine.
    root: String,
}

impl Model {
    async fn find(flags: &Flags, client: &Client) -> Result<Model> {
        let list = client.json(Method::GET, "/v1/models", None).await?;
        let named = flags.served_model_name.as_ref().or(flags.model.as_ref());
        let models = list["data"].as_array().map(Vec::as_slice).unwrap_or_default();
        let entry = match named {
            Some(name) => models.iter().find(|m| m["id"] == name.as_str()),
            None => models.first(),
        };
        let id = entry.and_then(|m| m["id"].as_str());
        let name = named.map(String::as_str).or(id).context("the server lists no model; name one with --model")?;
        let root = flags.model.as_deref().or(entry.and_then(|m| m["root"].as_str())).unwrap_or(name);
        Ok(Model { name: name.to_string(), root: root.to_string() })
    }
}

fn vocabulary(flags: &Flags, client: &Client, model: &Model) -> Result<Vocabulary> {
    if let Some(path) = &flags.tokenizer {
        return Vocabulary::open(path);
    }
    let root = Path::new(&model.root);
    if root.join("tokenizer.json").is_file() || (root.is_file() && root.extension().is_some_and(|e| e == "rvllm")) {
        return Vocabulary::open(root);
    }
    Ok(Vocabulary::Remote(client.clone(), model.name.clone()))
}

/// What of a request's body is the same in all.
struct Fields {
    chat: bool,
    fields: Map<String, Value>,
}

impl Fields {
    fn of(flags: &Flags) -> Fields {
        let numbers = [
            ("temperature", Some(json!(flags.temperature))),
            ("top_p", flags.top_p.map(Value::from)),
            ("top_k", flags.top_k.map(Value::from)),
            ("min_p", flags.min_p.map(Value::from)),
            ("frequency_penalty", flags.frequency_penalty.map(Value::from)),
            ("presence_penalty", flags.presence_penalty.map(Value::from)),
            ("repetition_penalty", flags.repetition_penalty.map(Value::from)),
            ("ignore_eos", flags.ignore_eos.then(|| json!(true))),
            ("stream", Some(json!(true))),
            ("stream_options", Some(json!({"include_usage": true}))),
        ];
        let mut fields: Map<String, Value> =
            numbers.into_iter().filter_map(|(name, value)| Some((name.to_string(), value?))).collect();
        let chat = flags.backend == Backend::OpenaiChat;
        if let Some(n) = flags.logprobs {
            let of_chat = [("logprobs".to_string(), json!(true)), ("top_logprobs".to_string(), json!(n))];
            let of_text = [("logprobs".to_string(), json!(n))];
            fields.extend(if chat { of_chat.to_vec() } else { of_text.to_vec() });
        }
        fields.extend(flags.extra_body.clone().unwrap_or_default());
        Fields { chat, fields }
    }

    fn body(&self, model: &str, sample: &Sample) -> Value {
        let own = match self.chat {
            true => json!({
                "model": model, "messages": [{"role": "user", "content": sample.prompt}],
                "max_completion_tokens": sample.output_len,
            }),
            false => json!({"model": model, "prompt": sample.prompt, "max_tokens": sample.output_len}),
        };
        let mut body = self.fields.clone();
        // What --extra-body says counts.
        for (name, value) in own.as_object().into_iter().flatten() {
            body.entry(name).or_insert(value.clone());
        }
        Value::Object(body)
    }
}

/// Sends requests to the server.
struct Asker {
    client: Client,
    path: String,
    fields: Fields,
    model: String,
    /// Of the requests' names.
    prefix: String,
}

impl Asker {
    async fn ask(&self, sample: &Sample, id: Option<&str>, epoch: Instant) -> Outcome {
        let body = self.fields.body(&self.model, sample);
        let mut outcome = self.client.stream(&self.path, &body, id, epoch).await;
        if outcome.prompt_tokens == 0 {
            outcome.prompt_tokens = sample.token_ids.len() as u64;
        }
        outcome
    }

    /// One request, so that a wrong flag is told before anything is measured.
    async fn check(&self, sample: &Sample) -> Result<()> {
        match self.ask(sample, None, Instant::now()).await.error {
            None => Ok(()),
            Some(error) => Err(Failure::new(format!("the first request failed: {error}")).into()),
        }
    }

    async fn warm_up(&self, samples: &[Sample], n: usize) {
        let now = Instant::now();
        let asked = samples.iter().cycle().take(n).map(|s| self.ask(s, None, now));
        futures_util::future::join_all(asked).await;
    }
}

/// The run: what became of each request, in the samples' order, and how many seconds it took.
async fn load(
    asker: Arc<Asker>,
    samples: Vec<Sample>,
    times: Vec<Duration>,
    most: Option<usize>,
    bar: Bar,
) -> Result<(Vec<Outcome>, f64)> {
    let stop = interrupt::flag()?;
    let gate = Arc::new(Semaphore::new(most.unwrap_or(Semaphore::MAX_PERMITS)));
    let (bar, epoch) = (Arc::new(bar), Instant::now());
    let outcomes = Arc::new(Mutex::new(vec![None; samples.len()]));
    let mut tasks = JoinSet::new();
    for (i, (sample, at)) in samples.into_iter().zip(times).enumerate() {
        tokio::time::sleep_until((epoch + at).into()).await;
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let (asker, gate, bar, outcomes) = (asker.clone(), gate.clone(), bar.clone(), outcomes.clone());
        tasks.spawn(async move {
            // The semaphore is never closed.
            let _permit = gate.acquire().await;
            let id = format!("{}{i}", asker.prefix);
            let outcome = asker.ask(&sample, Some(&id), epoch).await;
            bar.note(&outcome);
            outcomes.lock().unwrap_or_else(PoisonError::into_inner)[i] = Some(outcome);
        });
    }
    while !tasks.is_empty() && !stop.load(Ordering::Relaxed) {
        // Woken now and then, so that an interruption is noticed while nothing finishes.
        let _ = tokio::time::timeout(Duration::from_millis(200), tasks.join_next()).await;
    }
    let duration = epoch.elapsed().as_secs_f64();
    bar.clear();
    if stop.load(Ordering::Relaxed) {
        note("interrupted: the results are those of the requests that had finished");
    }
    let finished = std::mem::take(&mut *outcomes.lock().unwrap_or_else(PoisonError::into_inner));
    Ok((finished.into_iter().flatten().collect(), duration))
}

/// Live progress: requests, tokens a second, time to first token.
struct Bar {
    bar: ProgressBar,
    start: Instant,
    tokens: AtomicU64,
    failed: AtomicU64,
    /// Sum of the times to first token, in microseconds.
    ttft_us: AtomicU64,
}

impl Bar {
    fn new(n: usize, wanted: bool) -> Bar {
        let bar = if wanted { ProgressBar::new(n as u64) } else { ProgressBar::hidden() };
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} requests · {msg} · {eta} left");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(Duration::from_millis(500));
        let zero = || AtomicU64::new(0);
        Bar { bar, start: Instant::now(), tokens: zero(), failed: zero(), ttft_us: zero() }
    }

    fn note(&self, outcome: &Outcome) {
        let add = |sum: &AtomicU64, n: u64| sum.fetch_add(n, Ordering::Relaxed) + n;
        let failed = add(&self.failed, u64::from(outcome.error.is_some()));
        let tokens = add(&self.tokens, outcome.output_tokens);
        let ttft = add(&self.ttft_us, if outcome.error.is_none() { (outcome.ttft * 1e6) as u64 } else { 0 });
        self.bar.inc(1);
        let rate = tokens as f64 / self.start.elapsed().as_secs_f64();
        let mean = ttft as f64 / 1e3 / self.bar.position().saturating_sub(failed).max(1) as f64;
        let failures = if failed > 0 { format!(" · {failed} failed") } else { String::new() };
        self.bar.set_message(format!("{rate:.0} tokens/s · TTFT {mean:.1} ms{failures}"));
    }

    fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

fn tell(flags: &Flags, results: &Results) -> Result<()> {
    let json = results.json(flags.save_detailed);
    if flags.json {
        println!("{json}");
    } else {
        print!("{}", results.text());
    }
    if flags.save_result || flags.append_result {
        let path = file(flags, results);
        save(&path, &json, flags.append_result)?;
        note(&format!("results are in {}", path.display()));
    }
    if let Some(path) = &flags.html {
        write_whole(path, html::page(results).as_bytes())?;
        note(&format!("the report is {}", path.display()));
    }
    Ok(())
}

fn file(flags: &Flags, results: &Results) -> PathBuf {
    let c = &results.conditions;
    let name = flags.result_filename.clone().unwrap_or_else(|| {
        let rate = c.request_rate.map_or("inf".to_string(), |r| r.to_string());
        let concurrency = c.max_concurrency.map_or(String::new(), |n| format!("-concurrency{n}"));
        let model = c.model.rsplit('/').next().unwrap_or("model");
        format!("{}-{rate}qps{concurrency}-{model}-{}.json", c.label.as_ref().unwrap_or(&c.backend), c.date)
    });
    flags.result_dir.clone().unwrap_or_default().join(name)
}

fn save(path: &Path, json: &Value, append: bool) -> Result<()> {
    let before = match append {
        true if path.exists() => std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))
            .map(|t| format!("{}\n", t.trim_end()))?,
        _ => String::new(),
    };
    write_whole(path, format!("{before}{json}\n").as_bytes()).map_err(|e| anyhow::anyhow!(message(&e)))
}

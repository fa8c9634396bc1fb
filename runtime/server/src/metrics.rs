//! Prometheus metrics: `vllm:` under vLLM's names, labels and buckets, `rvllm:` what only this engine has, and those of
//! the HTTP layer.
//!
//! Invariants:
//! - names and buckets are an interface: dashboards, autoscalers and gateways read them, and a test lists them;
//! - a metric of something that this engine has not got is 0 where that is true, and absent where vLLM has it absent.

use crate::model::Served;
use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder, core::Collector,
};
use rvllm_engine::{FinishReason, Output, SamplingParams, Stats};
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

const TTFT: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];
const PER_TOKEN: &[f64] =
    &[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0];
const LATENCY: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
];
const STEP_TOKENS: &[f64] = &[1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];
const COUNTS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];
const HTTP: &[f64] = &[0.1, 0.5, 1.0];
const HTTP_FINE: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 7.5, 10.0, 30.0, 60.0,
];
const STEP: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Numbers of requests, tokens and blocks.
struct Counts {
    running: IntGauge,
    waiting: IntGauge,
    waiting_for_capacity: IntGauge,
    kv_cache_usage: Gauge,
    used_blocks: IntGauge,
    free_blocks: IntGauge,
    prefix_queries: IntCounter,
    prefix_hits: IntCounter,
    preemptions: IntCounter,
    prompt_tokens: IntCounter,
    prompt_tokens_by_source: IntCounterVec,
    prompt_tokens_cached: IntCounter,
    generation_tokens: IntCounter,
    success: IntCounterVec,
    steps: IntCounter,
}

/// Distributions over steps and requests.
struct Distributions {
    step_tokens: Histogram,
    step_time: Histogram,
    ttft: Histogram,
    inter_token: Histogram,
    per_output_token: Histogram,
    e2e: Histogram,
    queue: Histogram,
    inference: Histogram,
    prefill: Histogram,
    decode: Histogram,
    prompt_tokens: Histogram,
    computed_tokens: Histogram,
    cached_tokens: Histogram,
    generation_tokens: Histogram,
    max_generation_tokens: Histogram,
    n: Histogram,
    max_tokens: Histogram,
}

/// All metrics of a server.
pub struct Metrics {
    registry: Registry,
    counts: Counts,
    distributions: Distributions,
    http: Http,
}

/// What the HTTP layer counts.
struct Http {
    requests: IntCounterVec,
    durations: HistogramVec,
    fine_durations: Histogram,
    connections: IntGauge,
    refused: IntCounter,
}

/// Makes metrics that all have the labels of one engine.
struct Maker<'a> {
    registry: &'a Registry,
    labels: HashMap<String, String>,
}

impl Maker<'_> {
    /// A name of vLLM's; one of ours says so itself.
    fn opts(&self, name: &str, help: &str) -> Opts {
        let name = if name.starts_with("rvllm:") { name.to_string() } else { format!("vllm:{name}") };
        Opts::new(name, help).const_labels(self.labels.clone())
    }

    fn add<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> prometheus::Result<C> {
        let made = made?;
        self.registry.register(Box::new(made.clone()))?;
        Ok(made)
    }

    fn gauge(&self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        self.add(IntGauge::with_opts(self.opts(name, help)))
    }

    fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        self.add(IntCounter::with_opts(self.opts(name, help)))
    }

    fn counters(&self, name: &str, help: &str, label: &str, values: &[&str]) -> prometheus::Result<IntCounterVec> {
        let made = self.add(IntCounterVec::new(self.opts(name, help), &[label]))?;
        values.iter().for_each(|v| made.with_label_values(&[v]).inc_by(0));
        Ok(made)
    }

    /// Gauges that differ in one label.
    fn gauges<const N: usize>(
        &self,
        name: &str,
        help: &str,
        label: &str,
        values: [&str; N],
    ) -> prometheus::Result<[IntGauge; N]> {
        let made = self.add(IntGaugeVec::new(self.opts(name, help), &[label]))?;
        Ok(values.map(|v| made.with_label_values(&[v])))
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> prometheus::Result<Histogram> {
        let opts = HistogramOpts::from(self.opts(name, help)).buckets(buckets.to_vec());
        self.add(Histogram::with_opts(opts))
    }

    fn counts(&self) -> prometheus::Result<Counts> {
        let [waiting_for_capacity, _deferred] = self.gauges(
            "num_requests_waiting_by_reason",
            "Requests that wait, by what they wait for.",
            "reason",
            ["capacity", "deferred"],
        )?;
        let [used_blocks, free_blocks] =
            self.gauges("rvllm:kv_blocks", "Blocks of the KV cache.", "state", ["used", "free"])?;
        let usage = self.opts("kv_cache_usage_perc", "KV blocks in use; 1 is all.");
        let queries = "Tokens of prompts that were looked for in the prefix cache.";
        Ok(Counts {
            running: self.gauge("num_requests_running", "Sequences that run.")?,
            waiting: self.gauge("num_requests_waiting", "Sequences that wait.")?,
            waiting_for_capacity,
            kv_cache_usage: self.add(Gauge::with_opts(usage))?,
            used_blocks,
            free_blocks,
            prefix_queries: self.counter("prefix_cache_queries_total", queries)?,
            prefix_hits: self.counter("prefix_cache_hits_total", "Tokens of prompts found in the prefix cache.")?,
            preemptions: self.counter("num_preemptions_total", "Times that a sequence lost its blocks.")?,
            prompt_tokens: self.counter("prompt_tokens_total", "Tokens of prompts.")?,
            prompt_tokens_by_source: self.sources()?,
            prompt_tokens_cached: self.counter("prompt_tokens_cached_total", "Tokens of prompts that were cached.")?,
            generation_tokens: self.counter("generation_tokens_total", "Tokens generated.")?,
            success: self.successes()?,
            steps: self.counter("rvllm:engine_steps_total", "Steps computed.")?,
        })
    }

    fn sources(&self) -> prometheus::Result<IntCounterVec> {
        let values = ["local_compute", "local_cache_hit", "external_kv_transfer"];
        self.counters(
            "prompt_tokens_by_source_total",
            "Tokens of prompts, by where their KV came from.",
            "source",
            &values,
        )
    }

    fn successes(&self) -> prometheus::Result<IntCounterVec> {
        let values = ["stop", "length", "abort", "error"];
        self.counters("request_success_total", "Requests that finished, by how.", "finished_reason", &values)
    }

    fn distributions(&self, max_model_len: u32) -> prometheus::Result<Distributions> {
        let lengths = lengths(max_model_len);
        let latency = |name, help| self.histogram(name, help, LATENCY);
        let length = |name, help| self.histogram(name, help, &lengths);
        let per_token = |name, help| self.histogram(name, help, PER_TOKEN);
        Ok(Distributions {
            step_tokens: self.histogram("iteration_tokens_total", "Tokens of a step.", STEP_TOKENS)?,
            step_time: self.histogram("rvllm:engine_step_seconds", "Time of a step, scheduling to sampling.", STEP)?,
            ttft: self.histogram("time_to_first_token_seconds", "From arrival to first token.", TTFT)?,
            inter_token: per_token("inter_token_latency_seconds", "Between two tokens of an answer.")?,
            per_output_token: per_token("request_time_per_output_token_seconds", "Mean time per token of a request.")?,
            e2e: latency("e2e_request_latency_seconds", "From arrival to last token.")?,
            queue: latency("request_queue_time_seconds", "From arrival to the first step.")?,
            inference: latency("request_inference_time_seconds", "From the first step to last token.")?,
            prefill: latency("request_prefill_time_seconds", "From the first step to first token.")?,
            decode: latency("request_decode_time_seconds", "From first to last token.")?,
            prompt_tokens: length("request_prompt_tokens", "Tokens of a prompt.")?,
            computed_tokens: length("request_prefill_kv_computed_tokens", "Tokens of a prompt that were computed.")?,
            cached_tokens: length("rvllm:request_prefill_kv_cached_tokens", "Tokens of a prompt that were cached.")?,
            generation_tokens: length("request_generation_tokens", "Tokens generated for a request.")?,
            max_generation_tokens: length(
                "request_max_num_generation_tokens",
                "Tokens of a request's longest answer.",
            )?,
            n: self.histogram("request_params_n", "The parameter n.", COUNTS)?,
            max_tokens: length("request_params_max_tokens", "The parameter max_tokens.")?,
        })
    }

    /// Gauges that say what does not change, and counters of what this engine has not got.
    fn constants(&self, served: &Served) -> prometheus::Result<()> {
        let kv_bytes = served.artifact.kv_cache_tokens * served.memory.kv_bytes_per_token;
        let memory = [served.memory.weights_bytes, served.memory.arena_bytes, kv_bytes];
        let parts =
            self.gauges("rvllm:memory_bytes", "Where the memory goes.", "part", ["weights", "arena", "kv_cache"])?;
        parts.iter().zip(memory).for_each(|(gauge, bytes)| gauge.set(i64::try_from(bytes).unwrap_or(i64::MAX)));
        let capacity = self.gauge("rvllm:kv_cache_capacity_tokens", "Tokens that the KV cache holds.")?;
        capacity.set(i64::try_from(served.artifact.kv_cache_tokens).unwrap_or(i64::MAX));
        let states = ["awake", "weights_offloaded", "discard_all"];
        let [awake, ..] = self.gauges("engine_sleep_state", "Whether the engine is awake.", "sleep_state", states)?;
        awake.set(1);
        for (name, help) in [
            ("external_prefix_cache_queries_total", "Tokens that were looked for in caches of other engines: none."),
            ("external_prefix_cache_hits_total", "Tokens found in caches of other engines: none."),
            ("mm_cache_queries_total", "Items that were looked for in the multi-modal cache: none."),
            ("mm_cache_hits_total", "Items found in the multi-modal cache: none."),
        ] {
            self.counter(name, help)?;
        }
        self.cache_config(served)
    }

    /// vLLM's way to tell gateways of the KV cache: labels of a gauge that is 1.
    fn cache_config(&self, served: &Served) -> prometheus::Result<()> {
        let info = [
            ("block_size", served.memory.block_size.to_string()),
            ("num_gpu_blocks", served.limits.num_blocks.to_string()),
            ("num_cpu_blocks", "0".to_string()),
            ("cpu_offload_gb", "0".to_string()),
            ("cache_dtype", served.artifact.kv_cache_dtype.clone()),
            ("sliding_window", "None".to_string()),
        ];
        let labels = info.into_iter().map(|(k, v)| (k.to_string(), v));
        let opts = self.opts("cache_config_info", "How the KV cache is laid out.");
        let all = self.labels.clone().into_iter().chain(labels).collect();
        self.add(IntGauge::with_opts(opts.const_labels(all)))?.set(1);
        Ok(())
    }

    /// Not the engine's, so without its labels.
    fn http(&self) -> prometheus::Result<Http> {
        let requests = Opts::new("http_requests_total", "HTTP requests, by handler, method and status.");
        let help = "Time to the start of an answer.";
        let durations = HistogramOpts::new("http_request_duration_seconds", help).buckets(HTTP.to_vec());
        let fine = HistogramOpts::new("http_request_duration_highr_seconds", help).buckets(HTTP_FINE.to_vec());
        Ok(Http {
            requests: self.add(IntCounterVec::new(requests, &["handler", "method", "status"]))?,
            durations: self.add(HistogramVec::new(durations, &["handler", "method"]))?,
            fine_durations: self.add(Histogram::with_opts(fine))?,
            connections: self.gauge("rvllm:http_connections", "Connections that are open.")?,
            refused: self.counter("rvllm:requests_refused_total", "Requests refused because the queue was full.")?,
        })
    }
}

impl Metrics {
    /// The metrics of a server of this model.
    ///
    /// # Errors
    /// Two metrics have one name.
    pub fn new(served: &Served) -> Result<Metrics, prometheus::Error> {
        let registry = Registry::new();
        let labels = [("model_name", served.name()), ("engine", "0")].map(|(k, v)| (k.to_string(), v.to_string()));
        let maker = Maker { registry: &registry, labels: labels.into() };
        let counts = maker.counts()?;
        let distributions = maker.distributions(served.limits.max_model_len)?;
        maker.constants(served)?;
        let http = maker.http()?;
        #[cfg(target_os = "linux")]
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(Metrics { registry, counts, distributions, http })
    }

    /// Spans that were handed to the exporter of traces, by what became of them: there are none where nobody asks.
    ///
    /// # Errors
    /// It is asked for twice.
    pub fn spans(&self) -> Result<IntCounterVec, prometheus::Error> {
        let opts = Opts::new("rvllm:trace_spans_total", "Spans of traces, by what became of them.");
        let made = IntCounterVec::new(opts, &["outcome"])?;
        ["exported", "failed", "dropped"].iter().for_each(|o| made.with_label_values(&[o]).inc_by(0));
        self.registry.register(Box::new(made.clone()))?;
        Ok(made)
    }

    /// All of them, in Prometheus's text format.
    ///
    /// # Errors
    /// A metric cannot be written.
    pub fn text(&self) -> Result<String, prometheus::Error> {
        let mut text = vec![];
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// How the engine fares, and how it fared before.
    pub fn note_stats(&self, now: &Stats, before: &Stats) {
        let c = &self.counts;
        c.running.set(now.num_running as i64);
        c.waiting.set(now.num_waiting as i64);
        c.waiting_for_capacity.set(now.num_waiting as i64);
        c.used_blocks.set(now.num_used_blocks() as i64);
        c.free_blocks.set(now.num_free_blocks as i64);
        c.kv_cache_usage.set(now.kv_cache_usage());
        c.prefix_queries.inc_by(now.prefix_cache_queries - before.prefix_cache_queries);
        c.prefix_hits.inc_by(now.prefix_cache_hits - before.prefix_cache_hits);
        c.preemptions.inc_by(now.num_preemptions - before.num_preemptions);
        c.steps.inc_by(now.num_steps - before.num_steps);
        if now.num_steps > before.num_steps {
            let tokens = now.num_scheduled_tokens - before.num_scheduled_tokens;
            self.distributions.step_tokens.observe(tokens as f64);
        }
    }

    /// An HTTP request was answered.
    pub fn note_http(&self, handler: &str, method: &str, status: u16, took: Duration) {
        let class = ["1xx", "2xx", "3xx", "4xx"].get(usize::from(status / 100).wrapping_sub(1)).unwrap_or(&"5xx");
        self.http.requests.with_label_values(&[handler, method, class]).inc();
        self.http.durations.with_label_values(&[handler, method]).observe(took.as_secs_f64());
        self.http.fine_durations.observe(took.as_secs_f64());
        if status == 429 {
            self.http.refused.inc();
        }
    }

    /// A step was computed.
    pub fn note_step(&self, took: Duration) {
        self.distributions.step_time.observe(took.as_secs_f64());
    }

    /// Counts a connection for as long as what this returns is held.
    pub fn open_connection(&self) -> Connection {
        self.http.connections.inc();
        Connection(self.http.connections.clone())
    }
}

/// An open connection, as metrics count it.
pub struct Connection(IntGauge);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// 1, 2, 5, 10, 20, 50 … up to the longest sequence.
fn lengths(max_model_len: u32) -> Vec<f64> {
    let decades = (0..10).map(|p| 10u64.pow(p));
    let all = decades.flat_map(|d| [d, 2 * d, 5 * d]);
    all.take_while(|n| *n <= u64::from(max_model_len)).map(|n| n as f64).collect()
}

/// What is seen of one request as it is answered.
pub struct Observed {
    arrival: Instant,
    num_prompt_tokens: usize,
    /// Of each answer: its tokens, and when the last of them came.
    answers: Vec<(u64, Option<Instant>)>,
    max_tokens: Option<u32>,
    finish: Option<FinishReason>,
}

impl Observed {
    /// A request that has just been queued.
    pub fn new(num_prompt_tokens: usize, params: &SamplingParams) -> Observed {
        let answers = vec![(0, None); params.n as usize];
        Observed { arrival: Instant::now(), num_prompt_tokens, answers, max_tokens: params.max_tokens, finish: None }
    }

    /// Sees what a step added.
    pub fn see(&mut self, output: &Output, metrics: &Metrics) {
        let now = Instant::now();
        for sequence in &output.sequences {
            if !sequence.token_ids.is_empty() {
                self.see_tokens(sequence.index as usize, sequence.token_ids.len() as u64, now, metrics);
            }
            self.finish = sequence.finish.as_ref().map(|f| f.reason).or(self.finish);
        }
        if let Some(finished) = &output.finished {
            self.see_end(finished, metrics);
        }
    }

    fn see_tokens(&mut self, index: usize, tokens: u64, now: Instant, metrics: &Metrics) {
        let (c, d) = (&metrics.counts, &metrics.distributions);
        c.generation_tokens.inc_by(tokens);
        if self.answers.iter().all(|(_, last)| last.is_none()) {
            d.ttft.observe(now.duration_since(self.arrival).as_secs_f64());
            c.prompt_tokens.inc_by(self.num_prompt_tokens as u64);
        }
        let Some((count, last)) = self.answers.get_mut(index) else { return };
        *count += tokens;
        if let Some(before) = last.replace(now) {
            d.inter_token.observe(now.duration_since(before).as_secs_f64());
        }
    }

    fn see_end(&self, m: &rvllm_engine::Metrics, metrics: &Metrics) {
        let (c, d) = (&metrics.counts, &metrics.distributions);
        let cached = u64::from(m.num_cached_tokens);
        c.success.with_label_values(&[self.finish.unwrap_or(FinishReason::Abort).as_str()]).inc();
        let computed = u64::from(m.num_prompt_tokens).saturating_sub(cached);
        c.prompt_tokens_by_source.with_label_values(&["local_compute"]).inc_by(computed);
        c.prompt_tokens_by_source.with_label_values(&["local_cache_hit"]).inc_by(cached);
        c.prompt_tokens_cached.inc_by(cached);
        d.computed_tokens.observe(computed as f64);
        d.cached_tokens.observe(cached as f64);
        d.prompt_tokens.observe(m.num_prompt_tokens.into());
        d.generation_tokens.observe(m.num_generated_tokens.into());
        d.max_generation_tokens.observe(self.answers.iter().map(|(count, _)| *count).max().unwrap_or(0) as f64);
        d.n.observe(self.answers.len() as f64);
        if let Some(max_tokens) = self.max_tokens {
            d.max_tokens.observe(max_tokens.into());
        }
        self.see_times(m, d);
    }

    fn see_times(&self, m: &rvllm_engine::Metrics, d: &Distributions) {
        let seconds = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64();
        d.e2e.observe(seconds(m.arrival, m.finished));
        let Some(scheduled) = m.first_scheduled else { return };
        d.queue.observe(seconds(m.arrival, scheduled));
        d.inference.observe(seconds(scheduled, m.finished));
        let Some(first) = m.first_token else { return };
        d.prefill.observe(seconds(scheduled, first));
        d.decode.observe(seconds(first, m.finished));
        let longest = self.answers.iter().map(|(count, _)| *count).max().unwrap_or(0);
        if longest > 1 {
            d.per_output_token.observe(seconds(first, m.finished) / (longest - 1) as f64);
        }
    }
}

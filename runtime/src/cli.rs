//! The command line: commands, flags and their help. vLLM's names; `_` in a flag's name is read as `-`, as there.
//!
//! Invariants: no work is done here, and no flag is accepted that nothing reads.

pub mod config;
pub mod counts;
mod served;
pub mod vllm;

pub use served::{Named, Served};

use crate::{bench::Bench, eval::Eval, run_batch, sampling::Sampling};
use clap::{Args, Parser, Subcommand, ValueEnum};
use rvllm_engine::DeviceChoice;
use rvllm_server::{tls::CertReqs, traces::Uri};
use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    str::FromStr,
    sync::LazyLock,
};

/// Runs large language models that were compiled ahead of time
#[derive(Parser, Debug)]
#[command(name = "rvllm", version, long_version = LONG_VERSION.as_str(), max_term_width = 110)]
#[command(args_override_self = true)]
#[command(after_help = "A model is a directory or a hub id; an artifact is what `rvllm compile` makes of it.\n\
    Try: rvllm generate MODEL --prompt \"Once upon a time\"    rvllm run MODEL")]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The commands
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Compile a model into an artifact for given targets
    #[command(disable_help_flag = true)]
    Compile(PassedOn),
    /// Answer prompts, from the command line or from a file
    Generate(Box<Generate>),
    /// Chat in the terminal; with --serve the same as `rvllm serve`, whose flags it then takes
    Run(Box<Run>),
    /// Serve over HTTP, as OpenAI's clients expect it
    Serve(Box<Serve>),
    /// Answer a file of requests in OpenAI's batch format
    RunBatch(Box<run_batch::Flags>),
    /// Measure a server, or the engine alone
    #[command(subcommand, visible_alias = "benchmark")]
    Bench(Bench),
    /// Measure how well a model foretells a text
    #[command(subcommand)]
    Eval(Eval),
    /// Show what an artifact holds and what memory it needs
    Inspect(Inspect),
    /// Check an artifact: hashes, then its goldens on this machine
    Verify(Verify),
    /// Show what this machine is and which targets fit it
    #[command(disable_help_flag = true)]
    Targets(PassedOn),
}

/// Arguments for `rvllm-compile`, which has its own help.
#[derive(Args, Debug)]
pub struct PassedOn {
    /// Passed on to rvllm-compile; `--help` shows what it takes
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    pub args: Vec<OsString>,
}

/// `rvllm generate`
#[derive(Args, Debug)]
pub struct Generate {
    /// An artifact, or a model (directory or hub id), which is compiled into a cache first
    #[arg(value_name = "ARTIFACT|MODEL")]
    pub model: String,
    /// A prompt; repeatable
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true, help_heading = "Prompts")]
    pub prompt: Vec<String>,
    /// Prompts as JSON lines: `prompt` (text or token ids) or `messages`, and any sampling parameter by its name
    /// here with `_` for `-`; `-` is stdin
    #[arg(short, long, value_name = "FILE.jsonl", help_heading = "Prompts")]
    pub input: Option<PathBuf>,
    /// Put each --prompt through the model's chat template, as a user's message
    #[arg(long, help_heading = "Prompts")]
    pub chat: bool,
    /// Where defaults come from: auto is the checkpoint's generation_config.json, vllm neutral values, else a folder with
    /// such a file, or the file
    #[arg(long, default_value = "auto", value_name = "WHERE", help_heading = "Prompts")]
    pub generation_config: GenerationConfig,
    /// Write answers as JSON lines, in input order; `-` is stdout
    #[arg(short, long, value_name = "FILE.jsonl", help_heading = "Output")]
    pub output: Option<PathBuf>,
    /// Continue an interrupted run: keep the finished lines in OUTPUT.partial
    #[arg(long, requires = "output", help_heading = "Output")]
    pub resume: bool,
    /// Print JSON lines instead of text
    #[arg(long, conflicts_with = "output", help_heading = "Output")]
    pub json: bool,
    /// No progress bar, no closing line
    #[arg(short, long, help_heading = "Output")]
    pub quiet: bool,
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group has no help of its own")]
    pub sampling: Sampling,
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group has no help of its own")]
    pub engine: Engine,
}

/// Where sampling defaults come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GenerationConfig {
    /// generation_config.json of the checkpoint.
    Auto,
    /// Temperature 1, nothing cut off, no penalties.
    Vllm,
    /// A file, or a folder that has one of this name.
    At(PathBuf),
}

impl FromStr for GenerationConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(GenerationConfig::Auto),
            "vllm" => Ok(GenerationConfig::Vllm),
            path if Path::new(path).exists() => Ok(GenerationConfig::At(path.into())),
            path => Err(format!("`{path}` is neither auto nor vllm, and no folder or file")),
        }
    }
}

impl GenerationConfig {
    /// The text of the file, of which the checkpoint's is `own`.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(&self, own: Option<&[u8]>) -> io::Result<Option<Vec<u8>>> {
        match self {
            GenerationConfig::Auto => Ok(own.map(<[u8]>::to_vec)),
            GenerationConfig::Vllm => Ok(None),
            GenerationConfig::At(path) if path.is_dir() => fs::read(path.join("generation_config.json")).map(Some),
            GenerationConfig::At(path) => fs::read(path).map(Some),
        }
    }
}

/// `rvllm run`
#[derive(Args, Debug)]
pub struct Run {
    /// An artifact, or a model (directory or hub id), which is compiled into a cache first
    #[arg(value_name = "ARTIFACT|MODEL")]
    pub model: String,
    /// A system message to begin with
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Where defaults come from: auto is the checkpoint's generation_config.json, vllm neutral values, else a folder with
    /// such a file, or the file
    #[arg(long, default_value = "auto", value_name = "WHERE")]
    pub generation_config: GenerationConfig,
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group has no help of its own")]
    pub sampling: Sampling,
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group has no help of its own")]
    pub engine: Engine,
}

/// `rvllm serve`
#[derive(Args, Debug)]
pub struct Serve {
    /// An artifact, or a model (directory or hub id), which is compiled into a cache first
    #[arg(value_name = "ARTIFACT|MODEL", required_unless_present_any = ["model", "mock", "print_vllm_compat"])]
    pub artifact: Option<String>,
    /// The same, by vLLM's flag
    #[arg(long, value_name = "ARTIFACT|MODEL", conflicts_with = "artifact")]
    pub model: Option<String>,
    /// Serve an engine without a model, which says the same sentence over and over
    #[arg(long, conflicts_with_all = ["artifact", "model"])]
    pub mock: bool,
    /// Read flags from a YAML file, by their names; those given here count
    #[arg(long, value_name = "FILE.yaml")]
    pub config: Option<PathBuf>,
    /// List the flags of `vllm serve` and what becomes of each, and end
    #[arg(long)]
    pub print_vllm_compat: bool,
    /// Where defaults come from: auto is the checkpoint's generation_config.json, vllm neutral values, else a folder with
    /// such a file, or the file
    #[arg(long, default_value = "auto", value_name = "WHERE")]
    pub generation_config: GenerationConfig,
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group has no help of its own")]
    pub server: Server,
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group has no help of its own")]
    pub sampling: Sampling,
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group has no help of its own")]
    pub engine: Engine,
}

impl Serve {
    /// The artifact or model.
    pub fn name(&self) -> Option<&str> {
        self.artifact.as_deref().or(self.model.as_deref())
    }
}

/// How the server behaves.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Server")]
pub struct Server {
    /// Address to listen on; 0.0.0.0 is every one of this machine
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub host: String,
    /// Port to listen on; 0 is any free one
    #[arg(long, value_name = "N", default_value_t = 8000)]
    pub port: u16,
    /// A Unix socket to listen on; address and port are then ignored
    #[arg(long, value_name = "PATH")]
    pub uds: Option<PathBuf>,
    /// A key that requests must bring; repeatable. RVLLM_API_KEY and VLLM_API_KEY hold keys, too
    #[arg(long, value_name = "KEY", num_args = 1..)]
    pub api_key: Vec<String>,
    /// A file with a key a line; read again when it changes, and on SIGHUP
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group has no help of its own")]
    pub tls: Tls,
    /// Guard /metrics with the keys, too
    #[arg(long)]
    pub guard_metrics: bool,
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group has no help of its own")]
    pub served: Served,
    /// Prompts that may wait; more are told to try again later (429)
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub max_queue: usize,
    /// Most answers to a prompt, and most prompts of a request
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub max_n: u32,
    /// Most bytes of a request's body
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, default_value = "16MiB")]
    pub max_body_size: u64,
    /// Most bytes of the schema, expression, list or grammar that answers follow
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, default_value = "1MiB")]
    pub max_grammar_size: u64,
    /// Most connections at a time
    #[arg(long, value_name = "N", default_value_t = 4096)]
    pub max_connections: usize,
    /// Give a request up after this time [default: never]
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    pub request_timeout: Option<f64>,
    /// Time that requests have to finish after SIGTERM
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "30")]
    pub shutdown_timeout: f64,
    /// Origins whose pages may call the server; [] for none
    #[arg(long, value_name = "JSON", default_value = "[\"*\"]")]
    pub allowed_origins: String,
    /// Methods that they may use
    #[arg(long, value_name = "JSON", default_value = "[\"*\"]")]
    pub allowed_methods: String,
    /// Headers that they may send
    #[arg(long, value_name = "JSON", default_value = "[\"*\"]")]
    pub allowed_headers: String,
    /// Let them send credentials
    #[arg(long)]
    pub allow_credentials: bool,
    /// End every stream with its usage
    #[arg(long)]
    pub enable_force_include_usage: bool,
    /// No /docs and no /openapi.json
    #[arg(long)]
    pub disable_fastapi_docs: bool,
    /// Answer /tokenizer_info with the tokenizer's configuration and the chat template
    #[arg(long)]
    pub enable_tokenizer_info_endpoint: bool,
    /// The path under which a proxy shows the server: its routes are there, too
    #[arg(long, value_name = "PATH", value_parser = parse_root_path)]
    pub root_path: Option<String>,
    /// Tokens of an answer between the pieces of a stream, where requests do not say
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..))]
    pub stream_interval: i32,
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group has no help of its own")]
    pub watched: Watched,
    /// Time that a step of --mock takes, in microseconds
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub mock_step_us: u64,
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group has no help of its own")]
    pub vllm: vllm::Given<vllm::Frontend>,
}

/// How connections are encrypted.
#[derive(Args, Clone, Debug)]
pub struct Tls {
    /// The server's certificate chain in PEM form: https instead of http
    #[arg(long, value_name = "FILE")]
    pub ssl_certfile: Option<PathBuf>,
    /// The certificate's key, unencrypted [default: in the certificate's file]
    #[arg(long, value_name = "FILE", requires = "ssl_certfile")]
    pub ssl_keyfile: Option<PathBuf>,
    /// Roots of the certificates that clients bring
    #[arg(long, value_name = "FILE", requires_all = ["ssl_certfile", "ssl_cert_reqs"])]
    pub ssl_ca_certs: Option<PathBuf>,
    /// Whether clients bring certificates: 0 no, 1 they may, 2 they must [default: 0]
    #[arg(long, value_name = "N", value_parser = parse_cert_reqs, requires = "ssl_certfile")]
    pub ssl_cert_reqs: Option<CertReqs>,
    /// Read the files again when they change; SIGHUP does so in any case
    #[arg(long, requires = "ssl_certfile")]
    pub enable_ssl_refresh: bool,
}

/// What is told of requests.
#[derive(Args, Clone, Debug)]
pub struct Watched {
    /// Form of the log, which has a line a request
    #[arg(long, value_enum, default_value = "text", value_name = "FORM")]
    pub log_format: LogFormat,
    /// What the log has: requests are told of at info
    #[arg(long, value_enum, default_value = "info", value_name = "LEVEL")]
    pub uvicorn_log_level: LogLevel,
    /// No lines of log for requests
    #[arg(long)]
    pub disable_uvicorn_access_log: bool,
    /// Paths whose requests have no line of log, with commas between them
    #[arg(long, value_name = "PATHS", value_delimiter = ',')]
    pub disable_access_log_for_endpoints: Vec<String>,
    /// Send traces to a collector as OTLP over HTTP: http://HOST:4318/v1/traces. OTEL_SERVICE_NAME,
    /// OTEL_RESOURCE_ATTRIBUTES and OTEL_EXPORTER_OTLP_HEADERS are read
    #[arg(long, value_name = "URL", value_parser = rvllm_server::traces::endpoint)]
    pub otlp_traces_endpoint: Option<Uri>,
    /// Give the stages of a request spans of their own; all three mean the same
    #[arg(long, value_enum, value_name = "WHAT", value_delimiter = ',', requires = "otlp_traces_endpoint")]
    pub collect_detailed_traces: Vec<DetailedTraces>,
}

/// What the log has.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// What ends the server; the same as errors
    Critical,
    /// What fails
    Error,
    /// What should be looked at
    Warning,
    /// Requests, too
    Info,
    /// More
    Debug,
    /// All
    Trace,
}

/// vLLM's names of what takes part in a request.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum DetailedTraces {
    /// The model
    Model,
    /// Its workers
    Worker,
    /// Both
    All,
}

/// Form of the log.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// A line of text
    Text,
    /// A JSON object
    Json,
}

/// How the engine runs.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Engine")]
pub struct Engine {
    /// What runs the model: auto, cpu, cuda, or cuda:N for one of several GPUs [default: auto]
    #[arg(long, value_name = "DEVICE", value_parser = parse_device, default_value = "auto", hide_default_value = true)]
    pub device: DeviceChoice,
    /// Launch a GPU's kernels one by one, without graphs
    #[arg(long)]
    pub enforce_eager: bool,
    /// Threads of the CPU device, and of loading [default: one per core]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Where weights lie on a CPU with several memory nodes: auto is on the nodes of the threads that read them, off is
    /// where the system puts them
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    pub numa: Numa,
    /// Most sequences that run at a time [default: what the artifact allows]
    #[arg(long, value_name = "N")]
    pub max_num_seqs: Option<u32>,
    /// Most tokens of a step, such as 8192 or 8k [default: what the artifact allows]
    #[arg(long, value_name = "N", value_parser = counts::read)]
    pub max_num_batched_tokens: Option<u32>,
    /// Longest sequence, prompt and answer together, such as 16384 or 16K [default, -1 and auto: what the artifact allows]
    #[arg(long, value_name = "N", value_parser = counts::read_or_auto, allow_hyphen_values = true)]
    pub max_model_len: Option<counts::Length>,
    /// Memory of the KV cache: 2GiB, 500MB, or bytes
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub kv_cache_memory_bytes: Option<u64>,
    /// Share of a GPU's memory to use [default: 0.9]; on a CPU that which the KV cache may take of the memory that weights
    /// and arena leave [default: 0.5]
    #[arg(long, value_name = "X", conflicts_with = "kv_cache_memory_bytes")]
    pub gpu_memory_utilization: Option<f32>,
    /// Keep computed KV for prompts that begin alike; this is the default
    #[arg(long, overrides_with = "no_enable_prefix_caching")]
    pub enable_prefix_caching: bool,
    /// Compute every prompt whole
    #[arg(long, overrides_with = "enable_prefix_caching")]
    pub no_enable_prefix_caching: bool,
    /// Order of service: fcfs is by arrival, priority by what requests say (smaller first), then by arrival
    #[arg(long, value_name = "POLICY", value_enum, default_value_t)]
    pub scheduling_policy: SchedulingPolicy,
    /// The checkpoint's directory, for an artifact that does not hold its weights
    #[arg(long, value_name = "DIR")]
    pub weights_path: Option<PathBuf>,
    /// Random weights from this seed: measures without a checkpoint
    #[arg(long, value_name = "SEED", conflicts_with = "weights_path")]
    pub dummy_weights: Option<u64>,
    /// Element type when a model is compiled: auto, bf16, f32; also by vLLM's names
    #[arg(long, value_name = "TYPE", value_parser = parse_dtype)]
    pub dtype: Option<String>,
    /// Target to compile for, or to choose in an artifact [default: the best that fits this machine]
    #[arg(long, value_name = "NAME")]
    pub target: Option<String>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group has no help of its own")]
    pub vllm: vllm::Given<vllm::Engine>,
    /// Of requests that bring none: the flag is among those of sampling, and only a server gives it to the engine
    #[arg(skip)]
    pub seed: Option<i64>,
}

/// Where weights lie on a CPU with several memory nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Numa {
    /// On the nodes of the threads that read them.
    #[default]
    Auto,
    /// Where the system puts them.
    Off,
}

impl From<Numa> for rvllm_engine::Numa {
    fn from(numa: Numa) -> Self {
        match numa {
            Numa::Auto => Self::Auto,
            Numa::Off => Self::Off,
        }
    }
}

/// In which order requests are served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SchedulingPolicy {
    /// By arrival.
    #[default]
    Fcfs,
    /// By priority, then by arrival.
    Priority,
}

impl From<SchedulingPolicy> for rvllm_engine::SchedulingPolicy {
    fn from(policy: SchedulingPolicy) -> Self {
        match policy {
            SchedulingPolicy::Fcfs => Self::Fcfs,
            SchedulingPolicy::Priority => Self::Priority,
        }
    }
}

impl Engine {
    /// The longest sequence, where the flags say it.
    pub fn longest(&self) -> Option<u32> {
        self.max_model_len.and_then(|length| length.0)
    }

    /// Whether computed KV is kept, where the flags say so; the last of them counts.
    pub fn prefix_caching(&self) -> Option<bool> {
        match (self.enable_prefix_caching, self.no_enable_prefix_caching) {
            (false, false) => None,
            (enabled, _) => Some(enabled),
        }
    }
}

/// `rvllm inspect`
#[derive(Args, Debug)]
pub struct Inspect {
    /// The artifact
    #[arg(value_name = "ARTIFACT")]
    pub artifact: PathBuf,
    /// Show the launches, buffers and weights of each target's plan
    #[arg(long)]
    pub plan: bool,
    /// Show the kernels of each target
    #[arg(long)]
    pub kernels: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// What fits in this much memory; repeatable [default: 1, 2, 4, 8, 16 … GiB around the artifact's size]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub memory: Vec<u64>,
}

/// `rvllm verify`
#[derive(Args, Debug)]
pub struct Verify {
    /// The artifact
    #[arg(value_name = "ARTIFACT")]
    pub artifact: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group has no help of its own")]
    pub engine: Engine,
}

/// Reads Python's `ssl.CERT_NONE`, `CERT_OPTIONAL`, `CERT_REQUIRED`.
fn parse_cert_reqs(text: &str) -> Result<CertReqs, String> {
    let all = [("0", CertReqs::None), ("1", CertReqs::Optional), ("2", CertReqs::Required)];
    let found = all.into_iter().find(|(name, _)| *name == text).map(|(_, reqs)| reqs);
    found.ok_or_else(|| format!("`{text}` is none of 0 (no certificates), 1 (optional), 2 (required)"))
}

/// Reads a number of seconds, fractions too.
fn parse_seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|s: &f64| (0.0..=1e9).contains(s));
    seconds.ok_or_else(|| format!("`{text}` is no time; write seconds, such as 30 or 0.5"))
}

/// A path below which the routes are: `/llm`.
fn parse_root_path(text: &str) -> Result<String, String> {
    let path = text.trim_end_matches('/');
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.~/".contains(c);
    match path.is_empty() || (path.starts_with('/') && !path.contains("//") && path.chars().all(plain)) {
        true => Ok(path.to_string()),
        false => Err(format!("`{text}` is no path; write /llm, in letters, digits, -, _, . and ~")),
    }
}

/// Types by their names here and by PyTorch's.
fn parse_dtype(text: &str) -> Result<String, String> {
    let names = [("bfloat16", "bf16"), ("float16", "f16"), ("half", "f16"), ("float32", "f32"), ("float", "f32")];
    Ok(names.into_iter().find(|(theirs, _)| *theirs == text).map_or(text, |(_, ours)| ours).to_string())
}

/// `auto`, `cpu`, `cuda`, `cuda:1`.
fn parse_device(text: &str) -> Result<DeviceChoice, String> {
    match text.split_once(':').unwrap_or((text, "")) {
        ("auto", "") => Ok(DeviceChoice::Auto),
        ("cpu", "") => Ok(DeviceChoice::Cpu),
        ("cuda" | "gpu", "") => Ok(DeviceChoice::Cuda(0)),
        ("cuda" | "gpu", ordinal) => {
            ordinal.parse().map(DeviceChoice::Cuda).map_err(|_| format!("no number of a GPU: {ordinal}"))
        }
        _ => Err("expected auto, cpu, cuda or cuda:N".to_string()),
    }
}

/// Reads `16GiB`, `16G` (both binary), `16GB` (decimal), or bytes.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..split], text[split..].trim());
    let number: f64 = number.parse().map_err(|_| format!("`{text}` is no size; write 16GiB, 500MB or bytes"))?;
    let factor = unit_bytes(unit).ok_or_else(|| format!("`{unit}` is no unit of memory; use KiB, MiB, GiB, TiB"))?;
    Ok((number * factor) as u64)
}

fn unit_bytes(unit: &str) -> Option<f64> {
    let power = |c: char| "kmgt".find(c.to_ascii_lowercase()).map(|i| i as i32 + 1);
    match unit.chars().collect::<Vec<_>>()[..] {
        [] | ['b' | 'B'] => Some(1.0),
        [p] => power(p).map(|n| 1024f64.powi(n)),
        [p, 'i', 'B' | 'b'] => power(p).map(|n| 1024f64.powi(n)),
        [p, 'B' | 'b'] => power(p).map(|n| 1000f64.powi(n)),
        _ => None,
    }
}

/// Replaces `_` by `-` in the names of flags, as vLLM does: `--max_tokens=3` is `--max-tokens=3`.
/// What follows `--` is no flag, and what follows `compile` and `targets` is another program's.
pub fn normalize(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut args: Vec<OsString> = args.collect();
    serve_for_run(&mut args);
    let end = match args.get(1).and_then(|c| c.to_str()) {
        Some("compile" | "targets") => 0,
        _ => args.iter().position(|a| a == "--").unwrap_or(args.len()),
    };
    let (batch, vllm) = match args.get(1).and_then(|c| c.to_str()) {
        Some("serve") => (false, true),
        other => (true, matches!(other, Some("run-batch" | "bench" | "benchmark"))),
    };
    for arg in &mut args[..end] {
        let Some(flag) = arg.to_str() else { continue };
        match (flag.starts_with("--"), vllm.then(|| vllm::long(flag, batch)).flatten()) {
            (true, _) => *arg = dashed(flag).into(),
            (false, Some(long)) => *arg = long.into(),
            (false, None) => {}
        }
    }
    args
}

/// `rvllm run … --serve …` is `rvllm serve … …`.
fn serve_for_run(args: &mut Vec<OsString>) {
    let serve = args.iter().position(|a| a == "--serve");
    if let (Some(at), Some(true)) = (serve, args.get(1).map(|c| c == "run")) {
        args.remove(at);
        args[1] = "serve".into();
    }
}

fn dashed(flag: &str) -> String {
    match flag.split_once('=') {
        Some((name, value)) => format!("{}={value}", name.replace('_', "-")),
        None if flag.contains(char::is_whitespace) => flag.to_string(),
        None => flag.replace('_', "-"),
    }
}

/// How this binary was built.
static LONG_VERSION: LazyLock<String> = LazyLock::new(|| {
    format!(
        "{} ({})\nbuilt for {} ({}) with {}\nartifact format {}",
        env!("CARGO_PKG_VERSION"),
        env!("RVLLM_COMMIT"),
        env!("RVLLM_TARGET"),
        env!("RVLLM_PROFILE"),
        env!("RVLLM_RUSTC"),
        rvllm_artifact::manifest::FORMAT,
    )
});

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_last_of_repeated_flags_counts_and_lists_grow() {
        let args = "rvllm generate m -p a --seed 1 --stop x --seed 2 -p b --stop y";
        let Command::Generate(read) = Cli::parse_from(args.split(' ')).command else { panic!("generate") };
        assert_eq!((read.sampling.seed, read.prompt.len()), (Some(2), 2));
        assert_eq!(read.sampling.stop, Some(vec!["x".to_string(), "y".to_string()]));
    }

    #[test]
    fn defaults_come_from_a_file_too() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("generation_config.json");
        fs::write(&file, "{}").unwrap();
        let read = |from: &str| from.parse::<GenerationConfig>().map(|from| from.read(Some(b"own")).unwrap());
        assert_eq!((read("auto"), read("vllm")), (Ok(Some(b"own".to_vec())), Ok(None)));
        for path in [file.as_path(), dir.path()] {
            assert_eq!(read(path.to_str().unwrap()), Ok(Some(b"{}".to_vec())));
        }
        assert!(read("/no/where").unwrap_err().contains("neither auto nor vllm"));
    }

    #[test]
    fn weights_are_placed_unless_numa_is_off() {
        for (flags, numa) in [("run m", Numa::Auto), ("run m --numa auto", Numa::Auto), ("run m --numa=off", Numa::Off)]
        {
            let Ok(Command::Run(read)) = Cli::try_parse_from(format!("rvllm {flags}").split(' ')).map(|c| c.command)
            else {
                panic!("{flags}")
            };
            assert_eq!(read.engine.numa, numa, "{flags}");
        }
        assert!(Cli::try_parse_from(["rvllm", "serve", "m", "--numa", "distribute"]).is_err());
    }

    #[test]
    fn the_last_word_on_prefix_caching_counts() {
        let read = |flags: &str| {
            let args = format!("rvllm run m {flags}");
            let Command::Run(read) = Cli::parse_from(args.split_whitespace()).command else { panic!("run") };
            read.engine.prefix_caching()
        };
        let (on, off) = ("--enable-prefix-caching", "--no-enable-prefix-caching");
        assert_eq!((read(""), read(on), read(off)), (None, Some(true), Some(false)));
        assert_eq!((read(&format!("{on} {off}")), read(&format!("{off} {on}"))), (Some(false), Some(true)));
    }

    #[test]
    fn sizes_are_read_in_both_systems() {
        let sizes = ["16GiB", "16G", "16gb", "1.5K", "7", "7B"].map(|s| parse_bytes(s).unwrap());
        assert_eq!(sizes, [16 << 30, 16 << 30, 16_000_000_000, 1536, 7, 7]);
        for wrong in ["", "GiB", "16 elephants", "-1", "1.2.3G"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn underscores_in_flag_names_are_dashes() {
        let args =
            ["rvllm", "generate", "my_model", "--max_tokens=4", "--bad_words", "a_b", "--stop=--x_y", "--", "--a_b"];
        let read = normalize(args.iter().map(OsString::from));
        let want =
            ["rvllm", "generate", "my_model", "--max-tokens=4", "--bad-words", "a_b", "--stop=--x_y", "--", "--a_b"];
        assert_eq!(read, want.map(OsString::from));
        let compile = normalize(["rvllm", "compile", "--x_y"].iter().map(OsString::from));
        assert_eq!(compile[2], "--x_y");
        let short = normalize(["rvllm", "serve", "m", "-tp", "1", "-O3"].iter().map(OsString::from));
        assert_eq!(short[3..], ["--tensor-parallel-size", "1", "--optimization-level=3"].map(OsString::from));
    }
}

//! `rvllm serve`: an OpenAI-compatible server.
//!
//! Invariants: everything that can be refused is refused before the model is loaded; the start says, in one table, what
//! is served, in what memory, and where.

use crate::{
    cli::{self, GenerationConfig},
    encode,
    error::{Failure, note},
    log,
    model::{Session, dtype_name},
    parsers,
    sampling::Sampling,
    table::{columns, size},
};
use anyhow::Result;
use clap::CommandFactory;
use rvllm_artifact::{Artifact, cpu::has_feature, parsers::Parsers};
use rvllm_engine::Engine;
use rvllm_server::{
    App, Config, Cors, Ended, Served, config::Patience, listen::Address, mock, model::ArtifactCard, prompt::Encoder,
    serve, tls::TlsFiles, traces::TraceConfig,
};
use std::{
    env,
    io::{self, Write},
    time::{Duration, Instant},
};

/// Names of the mock engine's model.
const MOCK: &str = "mock";

/// Runs the command. `start` is when the program started.
///
/// # Errors
/// A flag is wrong, the model does not load, the address is taken, or the engine fails.
pub fn run(args: &cli::Serve, start: Instant) -> Result<()> {
    if args.print_vllm_compat {
        return list_flags();
    }
    args.server.vllm.tell();
    let config = config(&args.server)?;
    config.check()?;
    let log = log::start(args.server.watched.log_format, args.server.watched.uvicorn_log_level)?;
    let (engine, served) = if args.mock {
        mock(args)?
    } else {
        let Loaded { engine, served, .. } = load(&Source::of(args))?;
        (engine, served)
    };
    warn(&config);
    let summary = summary(&engine, &served);
    let (app, thread) = App::start(engine, served, config)?;
    let ended = serve::run(app, thread, |address| tell(&summary, address, start))?;
    drop(log);
    note(match ended {
        Ended::Drained => "all requests are answered; the server has ended",
        Ended::TimedOut => "requests that took too long were given up; the server has ended",
        Ended::Forced => "told to end twice: the server has ended at once",
    });
    Ok(())
}

/// Prints vLLM's flags and what becomes of each.
fn list_flags() -> Result<()> {
    let mut cli = cli::Cli::command();
    cli.build();
    let list = cli.find_subcommand("serve").map(cli::vllm::list).unwrap_or_default();
    Ok(io::stdout().write_all(list.as_bytes())?)
}

/// What is to be served, and how its defaults are made.
pub struct Source<'a> {
    /// An artifact or a model.
    pub root: &'a str,
    /// What requests call it, and how its chats are written and read.
    pub served: &'a cli::Served,
    /// Where sampling defaults come from.
    pub generation_config: &'a GenerationConfig,
    /// Sampling defaults.
    pub sampling: &'a Sampling,
    /// How the engine runs.
    pub engine: &'a cli::Engine,
    /// No word about what is compiled.
    pub quiet: bool,
}

impl<'a> Source<'a> {
    fn of(args: &'a cli::Serve) -> Source<'a> {
        Source {
            root: args.name().unwrap_or_default(),
            served: &args.server.served,
            generation_config: &args.generation_config,
            sampling: &args.sampling,
            engine: &args.engine,
            quiet: false,
        }
    }
}

/// What is served, loaded.
pub struct Loaded {
    /// The engine.
    pub engine: Engine,
    /// What the server says of it.
    pub served: Served,
    /// The artifact's manifest, which tells it from others.
    pub manifest: Vec<u8>,
}

/// Loads what is to be served.
///
/// # Errors
/// There is no such model, or it does not load.
pub fn load(source: &Source<'_>) -> Result<Loaded> {
    let engine = cli::Engine { seed: source.sampling.seed, ..source.engine.clone() };
    // A seed of every request would make all answers to a prompt the same; the engine draws theirs from it instead.
    let flags = Sampling { seed: None, ..source.sampling.clone() };
    let session = Session::open(source.root, &engine, source.quiet)?;
    let defaults = session.defaults(&flags, source.generation_config, None)?;
    let Session { artifact, engine } = session;
    let cli::Served { chat_template, parsers: flags, .. } = source.served;
    let template = match chat_template {
        Some(given) => Some(encode::template_from(&artifact, given)?),
        None => encode::read_template(&artifact)?,
    };
    let config = artifact.entry("tokenizer_config.json").map(<[u8]>::to_vec);
    let encoder = Encoder::new(engine.tokenizer().cloned(), template, config);
    let manifest = artifact.manifest();
    let card = ArtifactCard {
        file: artifact.file().to_string(),
        target: source.engine.target.clone().unwrap_or_else(|| running(&artifact, &engine)),
        dtype: dtype_name(manifest.model.dtype),
        kv_cache_dtype: dtype_name(manifest.kv_cache.dtype),
        ..ArtifactCard::default()
    };
    let served =
        Served::new(&engine, source.served.names(source.root), source.root.to_string(), encoder, defaults, card);
    let served = served.with_parsers(flags.over(parsers::of_artifact(&artifact, chat_template.as_deref())));
    let manifest = serde_json::to_vec(manifest)?;
    Ok(Loaded { engine, served, manifest })
}

/// The target that the engine runs, where none was named.
fn running(artifact: &Artifact, engine: &Engine) -> String {
    match &engine.memory().device {
        Some(device) => device.target.clone(),
        None => artifact.target(&has_feature).map(|t| t.name.clone()).unwrap_or_default(),
    }
}

fn mock(args: &cli::Serve) -> Result<(Engine, Served)> {
    let step = Duration::from_micros(args.server.mock_step_us);
    let mut limits = mock::limits();
    limits.max_model_len = args.engine.longest().unwrap_or(limits.max_model_len);
    limits.max_num_batched_tokens = args.engine.max_num_batched_tokens.unwrap_or(limits.max_num_batched_tokens);
    limits.max_num_seqs = args.engine.max_num_seqs.unwrap_or(limits.max_num_seqs);
    let mut engine = mock::engine(Box::new(mock::MockForward::new(limits, step)))?;
    engine.set_prefix_caching(args.engine.prefix_caching().unwrap_or(true));
    engine.set_scheduling_policy(args.engine.scheduling_policy.into());
    let encoder = mock::encoder(&engine);
    let card = ArtifactCard { target: MOCK.to_string(), ..ArtifactCard::default() };
    let defaults = Sampling { seed: None, ..args.sampling.clone() }.over(None, None)?;
    args.engine.vllm.tell();
    let served = Served::new(&engine, args.server.served.names(MOCK), MOCK.to_string(), encoder, defaults, card);
    Ok((engine, served.with_parsers(args.server.served.parsers.over(Parsers::default()))))
}

fn config(flags: &cli::Server) -> Result<Config> {
    Ok(Config {
        host: flags.host.clone(),
        port: flags.port,
        uds: flags.uds.clone(),
        tls: tls(&flags.tls),
        api_keys: keys(flags)?,
        api_key_file: flags.api_key_file.clone(),
        guard_metrics: flags.guard_metrics,
        max_queue: flags.max_queue,
        max_body_bytes: flags.max_body_size as usize,
        max_n: flags.max_n,
        max_grammar_bytes: flags.max_grammar_size as usize,
        max_connections: flags.max_connections,
        patience: Patience::default(),
        request_timeout: flags.request_timeout.map(Duration::from_secs_f64),
        shutdown_timeout: Duration::from_secs_f64(flags.shutdown_timeout),
        traces: traces(&flags.watched)?,
        unlogged: flags.watched.disable_access_log_for_endpoints.clone(),
        access_log: !flags.watched.disable_uvicorn_access_log,
        tokenizer_info: flags.enable_tokenizer_info_endpoint,
        root_path: flags.root_path.clone().unwrap_or_default(),
        stream_interval: flags.stream_interval,
        cors: cors(flags)?,
        docs: !flags.disable_fastapi_docs,
        force_include_usage: flags.enable_force_include_usage,
        ..flags.served.config()
    })
}

/// Keys of the flags and of the environment.
fn keys(flags: &cli::Server) -> Result<Vec<String>> {
    let of_environment = ["RVLLM_API_KEY", "VLLM_API_KEY"].into_iter().filter_map(|name| env::var(name).ok());
    let keys: Vec<String> = flags.api_key.iter().cloned().chain(of_environment).collect();
    if keys.iter().any(|k| k.trim().is_empty()) {
        return Err(Failure::usage("an API key is empty").help("leave it out to serve without keys").into());
    }
    Ok(keys)
}

fn tls(flags: &cli::Tls) -> Option<TlsFiles> {
    Some(TlsFiles {
        certfile: flags.ssl_certfile.clone()?,
        keyfile: flags.ssl_keyfile.clone(),
        ca_certs: flags.ssl_ca_certs.clone(),
        cert_reqs: flags.ssl_cert_reqs.unwrap_or_default(),
        refresh: flags.enable_ssl_refresh,
    })
}

fn traces(flags: &cli::Watched) -> Result<Option<TraceConfig>> {
    let Some(endpoint) = flags.otlp_traces_endpoint.clone() else { return Ok(None) };
    let detailed = !flags.collect_detailed_traces.is_empty();
    let config = TraceConfig::new(endpoint, detailed, |name| env::var(name).ok());
    Ok(Some(config.map_err(Failure::usage)?))
}

/// Lists come as JSON, as vLLM takes them. An empty list of origins is none.
fn cors(flags: &cli::Server) -> Result<Option<Cors>> {
    let list = |name: &str, text: &str| -> Result<Vec<String>> {
        serde_json::from_str(text)
            .map_err(|e| Failure::usage(format!("{name} is {text:?}, but must be a JSON list of texts: {e}")).into())
    };
    let cors = Cors {
        origins: list("--allowed-origins", &flags.allowed_origins)?,
        methods: list("--allowed-methods", &flags.allowed_methods)?,
        headers: list("--allowed-headers", &flags.allowed_headers)?,
        credentials: flags.allow_credentials,
    };
    Ok(Some(cors).filter(|c| !c.origins.is_empty()))
}

fn warn(config: &Config) {
    let local = ["127.0.0.1", "::1", "[::1]", "localhost"].contains(&config.host.as_str());
    if !local && config.uds.is_none() && !config.has_keys() {
        note(&format!(
            "warning: {} is open to the network, and no key is set · help: set --api-key or RVLLM_API_KEY",
            config.host
        ));
    }
}

/// The rows of the table that the start prints.
fn summary(engine: &Engine, served: &Served) -> Vec<Vec<String>> {
    let row = |name: &str, value: String| vec![name.to_string(), value];
    let (memory, limits, card) = (engine.memory(), engine.limits(), &served.artifact);
    let kv = card.kv_cache_tokens * memory.kv_bytes_per_token;
    let runs_on = match &memory.device {
        Some(device) => format!("{} ({}, {})", device.name, device.architecture, size(device.total_bytes)),
        None => format!("{} threads", engine.threads()),
    };
    let mut rows = vec![
        row("model", served.names.join(", ")),
        row("target", format!("{} {}, {runs_on}", card.target, card.dtype)),
        row("parsers", parsers_row(served)),
        row("weights", size(memory.weights_bytes)),
        row("arena", size(memory.arena_bytes)),
    ];
    if let Some(device) = &memory.device {
        rows.push(row("inputs, graphs", size(device.overhead_bytes)));
        rows.push(row("before loading", format!("{} were taken", size(device.taken_bytes))));
    }
    rows.extend([
        row("KV cache", format!("{} tokens in {}", card.kv_cache_tokens, size(kv))),
        row(
            "limits",
            format!(
                "{} tokens a sequence, {} sequences and {} tokens a step",
                limits.max_model_len, limits.max_num_seqs, limits.max_num_batched_tokens
            ),
        ),
    ]);
    rows
}

fn parsers_row(served: &Served) -> String {
    let Parsers { tool_call, reasoning } = served.notation.parsers();
    let name = |n: Option<&'static str>| n.unwrap_or("none");
    format!("{} for tool calls, {} for reasoning", name(tool_call.map(|p| p.name())), name(reasoning.map(|p| p.name())))
}

fn tell(rows: &[Vec<String>], address: &Address, start: Instant) {
    let ready = vec!["ready".to_string(), format!("after {:.3} s", start.elapsed().as_secs_f64())];
    let url = vec!["URL".to_string(), address.to_string()];
    note(columns(rows.iter().cloned().chain([ready, url])).trim_end());
}

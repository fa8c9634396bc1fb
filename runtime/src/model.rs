//! From what the user names to a loaded engine: an artifact as it is, a model through `rvllm-compile` and its cache.
//!
//! Invariants: nothing is compiled here; the compiler is another program, found beside this one.

use crate::{
    cli::{self, GenerationConfig},
    error::{FAILURE, Failure, note},
    parsers,
    sampling::Sampling,
};
use anyhow::{Context, Result};
use rvllm_artifact::{Artifact, plan::DType};
use rvllm_engine::{DeviceChoice, Engine, EngineError, EngineOptions, SamplingParams, WeightsOption, device::cuda};
use rvllm_server::notation::Notation;
use serde::Deserialize;
use serde_json::Value;
use std::{
    env,
    ffi::OsString,
    io::Read,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Name of the compiler's program.
const COMPILER: &str = "rvllm-compile";

/// A loaded artifact.
pub struct Session {
    /// The artifact.
    pub artifact: Artifact,
    /// The engine that runs it.
    pub engine: Engine,
}

impl Session {
    /// Loads an artifact, or a model that is compiled first.
    pub fn open(model: &str, options: &cli::Engine, quiet: bool) -> Result<Session> {
        Self::open_artifact(&resolve(model, options, quiet)?, options)
    }

    /// Loads an artifact.
    pub fn open_artifact(path: &Path, options: &cli::Engine) -> Result<Session> {
        Self::open_artifact_with(path, options, |_, _| ())
    }

    /// Loads an artifact with options that `change` has the last word on.
    pub fn open_artifact_with(
        path: &Path,
        options: &cli::Engine,
        change: impl FnOnce(&Artifact, &mut EngineOptions),
    ) -> Result<Session> {
        options.vllm.tell();
        let artifact = Artifact::open(path)?;
        check_dtype(&artifact, options.dtype.as_deref())?;
        let mut options = engine_options(options);
        change(&artifact, &mut options);
        let engine = Engine::load(&artifact, options).map_err(refused)?;
        Ok(Session { artifact, engine })
    }

    /// Sampling parameters of a request that says none: the flags over the checkpoint's, where `from` wants them, over
    /// the defaults, of which `max_tokens` is the caller's.
    pub fn defaults(
        &self,
        flags: &Sampling,
        from: &GenerationConfig,
        max_tokens: Option<u32>,
    ) -> Result<SamplingParams> {
        let config = from.read(self.artifact.entry("generation_config.json"));
        let config = config.with_context(|| format!("the defaults of {from:?} cannot be read"))?;
        let mut params = flags.over(config.as_deref(), max_tokens)?;
        if let Some(tokenizer) = self.engine.tokenizer() {
            let notation = Notation::new(parsers::of_artifact(&self.artifact, None), Some(tokenizer));
            params.thinking = notation.thinking(tokenizer)?;
        }
        Ok(params)
    }
}

/// The weights that the flags ask for.
pub fn weights_option(options: &cli::Engine) -> WeightsOption {
    match (&options.weights_path, options.dummy_weights) {
        (Some(path), _) => WeightsOption::Checkpoint(path.clone()),
        (None, Some(seed)) => WeightsOption::Dummy(seed),
        (None, None) => WeightsOption::Manifest,
    }
}

fn engine_options(options: &cli::Engine) -> EngineOptions {
    EngineOptions {
        target: options.target.clone(),
        device: options.device,
        enforce_eager: options.enforce_eager,
        threads: options.threads,
        numa: options.numa.into(),
        max_num_seqs: options.max_num_seqs,
        max_num_batched_tokens: options.max_num_batched_tokens,
        max_model_len: options.longest(),
        kv_cache_memory_bytes: options.kv_cache_memory_bytes,
        memory_utilization: options.gpu_memory_utilization,
        enable_prefix_caching: options.prefix_caching(),
        scheduling_policy: options.scheduling_policy.into(),
        weights: weights_option(options),
        seed: options.seed.map(|seed| seed as u64),
        ..EngineOptions::default()
    }
}

/// An option out of range is the caller's mistake; flags have vLLM's name for the share of memory.
fn refused(error: EngineError) -> anyhow::Error {
    match &error {
        EngineError::Option { .. } | EngineError::KvCacheTooSmall { .. } => {
            Failure::usage(error.to_string().replace("memory_utilization", "gpu_memory_utilization")).into()
        }
        _ => error.into(),
    }
}

fn check_dtype(artifact: &Artifact, wanted: Option<&str>) -> Result<()> {
    let has = dtype_name(artifact.manifest().model.dtype);
    match wanted.filter(|w| !["auto", has.as_str()].contains(w)) {
        None => Ok(()),
        Some(wanted) => {
            let failure = Failure::usage(format!("{} is compiled for {has}, not {wanted}", artifact.file()));
            Err(failure.help(format!("rvllm compile … --dtype {wanted}")).into())
        }
    }
}

/// A type's name, as flags and texts write it.
pub fn dtype_name(dtype: DType) -> String {
    match serde_json::to_value(dtype) {
        Ok(Value::String(name)) => name,
        _ => format!("{dtype:?}").to_lowercase(),
    }
}

/// What a name stands for.
#[derive(Debug, PartialEq, Eq)]
pub enum Named {
    /// An artifact's file.
    Artifact(PathBuf),
    /// A model: a directory, or a hub id.
    Model(String),
}

/// Tells artifacts from models: a file is an artifact unless it is GGUF, a directory or a hub id is a model.
///
/// # Errors
/// It looks like a path, but nothing is there.
pub fn tell(name: &str) -> Result<Named, Failure> {
    let path = Path::new(name);
    if path.is_dir() {
        return Ok(Named::Model(name.to_string()));
    }
    if path.exists() {
        return Ok(if is_gguf(path) { Named::Model(name.to_string()) } else { Named::Artifact(path.to_path_buf()) });
    }
    match is_hub_id(name) {
        true => Ok(Named::Model(name.to_string())),
        false => Err(Failure::usage(format!("no such file or directory: {name}"))
            .help("name an artifact, a model's directory, or a hub id such as Qwen/Qwen2.5-0.5B")),
    }
}

/// Whether a file begins as GGUF files do. One that cannot be read is taken for an artifact, whose opening says why.
fn is_gguf(path: &Path) -> bool {
    let mut start = [0; 4];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut start));
    read.is_ok() && start == rvllm_artifact::gguf::MAGIC
}

/// `name` or `owner/name`, in the hub's letters.
fn is_hub_id(name: &str) -> bool {
    let part = |p: &str| {
        let known = p.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        !p.is_empty() && known && !p.starts_with('.')
    };
    let parts: Vec<&str> = name.split('/').collect();
    parts.len() <= 2 && parts.into_iter().all(part) && !name.ends_with(".rvllm")
}

/// The artifact of a name: the file itself, or what the compiler made of the model.
///
/// # Errors
/// There is nothing of this name, or it cannot be compiled.
pub fn resolve(model: &str, options: &cli::Engine, quiet: bool) -> Result<PathBuf> {
    match tell(model)? {
        Named::Artifact(path) => Ok(path),
        Named::Model(name) => compile_into_cache(&name, options, quiet),
    }
}

/// What the compiler says of an artifact in its cache.
#[derive(Deserialize)]
struct Cached {
    path: PathBuf,
    /// Whether it was there already.
    cached: bool,
}

/// Runs the compiler on a model; while it works it shows its progress on stderr.
fn compile_into_cache(model: &str, options: &cli::Engine, quiet: bool) -> Result<PathBuf> {
    let program = find_compiler()?;
    let mut command = Command::new(&program);
    command.arg(model).args(["--cache", "--json"]).args(compile_flags(options)).stdout(Stdio::piped());
    if quiet {
        command.arg("--quiet");
    }
    let output = command.spawn().and_then(|child| child.wait_with_output());
    let output = output.with_context(|| format!("cannot run {}", program.display()))?;
    match output.status.code() {
        Some(0) => {
            let Cached { path, cached } = read_cached(&output.stdout)?;
            if !quiet {
                let done = if cached { "using" } else { "compiled" };
                let when = if cached { ", compiled before" } else { "" };
                note(&format!("{done} {}{when}", path.display()));
            }
            Ok(path)
        }
        Some(code) => Err(Failure::told(u8::try_from(code).unwrap_or(FAILURE)).into()),
        None => Err(Failure::new(format!("{} was killed while it compiled {model}", program.display())).into()),
    }
}

/// Targets that GPUs run, by their architecture.
const GPU_TARGETS: [(&str, &str); 1] = [("sm_90", "sm_90a")];

/// The target of the GPU that would run the model, where there is one that the compiler has a target for.
fn gpu_target(device: DeviceChoice) -> Option<String> {
    let ordinal = match device {
        DeviceChoice::Cpu => return None,
        DeviceChoice::Auto => 0,
        DeviceChoice::Cuda(ordinal) => ordinal,
    };
    let found = cuda::probe(ordinal, "a model was named").map(|facts| facts.architecture());
    let target = |found: String| GPU_TARGETS.into_iter().find(|(architecture, _)| *architecture == found);
    match (found.ok().and_then(target), device) {
        (Some((_, target)), _) => Some(target.to_string()),
        // The compiler then says that it knows no such target, or the engine that there is no such GPU.
        (None, DeviceChoice::Cuda(_)) => Some(GPU_TARGETS[0].1.to_string()),
        (None, _) => None,
    }
}

/// The flags that the compiler has to know, too.
fn compile_flags(options: &cli::Engine) -> Vec<String> {
    let flags = [
        ("--target", options.target.clone().or_else(|| gpu_target(options.device))),
        ("--dtype", options.dtype.clone()),
        ("--dummy-weights", options.dummy_weights.map(|seed| seed.to_string())),
    ];
    flags.into_iter().filter_map(|(name, value)| Some([name.to_string(), value?])).flatten().collect()
}

fn read_cached(stdout: &[u8]) -> Result<Cached> {
    let line = stdout.trim_ascii().rsplit(|b| *b == b'\n').next().unwrap_or_default();
    serde_json::from_slice(line).context("rvllm-compile did not say where the artifact is")
}

/// Becomes `rvllm-compile`, with a subcommand, where it has one, and these arguments.
///
/// # Errors
/// It is not found or cannot be run; else this does not return.
pub fn become_compiler(subcommand: Option<&str>, args: &[OsString]) -> Result<()> {
    let program = find_compiler()?;
    let error = Command::new(&program).args(subcommand).args(args).exec();
    Err(error).with_context(|| format!("cannot run {}", program.display()))
}

/// `RVLLM_COMPILE`, else beside this program, else on the PATH.
fn find_compiler() -> Result<PathBuf> {
    if let Some(program) = env::var_os("RVLLM_COMPILE") {
        return Ok(program.into());
    }
    let beside = env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(COMPILER)));
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path).map(|dir| dir.join(COMPILER)).collect::<Vec<_>>();
    let found = beside.into_iter().chain(on_path).find(|p| p.is_file());
    let missing = || {
        Failure::new(format!("{COMPILER} is neither beside rvllm nor on the PATH"))
            .help("install it, or name it with RVLLM_COMPILE; compiled artifacts run without it")
    };
    Ok(found.ok_or_else(missing)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_directories_and_hub_ids_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.rvllm");
        std::fs::write(&file, "").unwrap();
        let (dir, file) = (dir.path().to_str().unwrap().to_string(), file.to_str().unwrap().to_string());
        assert_eq!(tell(&file).unwrap(), Named::Artifact(file.clone().into()));
        assert_eq!(tell(&dir).unwrap(), Named::Model(dir.clone()));
        assert_eq!(tell("Qwen/Qwen2.5-0.5B").unwrap(), Named::Model("Qwen/Qwen2.5-0.5B".into()));
        for missing in ["nowhere.rvllm", "./nowhere", "/nowhere/at/all", "a/b/c", "", "../up"] {
            assert!(tell(missing).is_err(), "{missing}");
        }
    }

    #[test]
    fn the_compiler_says_last_where_the_artifact_is() {
        let cached =
            read_cached(b"note\n{\"path\": \"/cache/x.rvllm\", \"cached\": true, \"report\": null}\n").unwrap();
        assert_eq!((cached.path, cached.cached), (PathBuf::from("/cache/x.rvllm"), true));
        assert!(read_cached(b"\n").is_err());
    }
}

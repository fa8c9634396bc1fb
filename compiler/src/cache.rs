//! Artifacts by the content that they were compiled from: `$XDG_CACHE_HOME/rvllm/artifacts/NAME-KEY.TARGET.rvllm`.
//!
//! The key is a SHA-256 over everything that the artifact depends on: the compiler (by the sum of its own
//! executable), the options, the model's small files, and the checkpoint (sizes, headers, XXH3 of all bytes). Sums of
//! files are kept in `sums.json` by path, size and time of change, so that only the first run reads gigabytes.
//!
//! Invariants: a file in the cache is complete, as artifacts take their name when they are; a cache that cannot be
//! written to is an error, but one whose sums cannot be kept is only slower.

use crate::{
    compile::{compile_model, file_name, targets},
    error::{Error, Result},
    import::{self, Model},
    options::{Options, WeightsMode},
    progress::{Phase, Progress},
    report::Report,
};
use rvllm_targets::Target;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    time::{Instant, UNIX_EPOCH},
};
use xxhash_rust::xxh3::Xxh3;

/// Bytes read at a time.
const CHUNK: usize = 4 << 20;
/// Hexadecimal digits of the key in a file's name.
const KEY_DIGITS: usize = 16;

/// An artifact of the cache.
#[derive(Clone, Debug, PartialEq)]
pub struct Cached {
    /// Where it is.
    pub path: PathBuf,
    /// What was made; absent where it was there already.
    pub report: Option<Report>,
}

/// The artifact that `options` ask for, compiled where the cache lacks it. `options.output` is not used.
///
/// # Errors
/// Those of [`crate::compile`]; a cache directory that cannot be made.
pub fn compile_cached(options: &Options, progress: &dyn Progress) -> Result<Cached> {
    let start = Instant::now();
    let dir = directory()?;
    progress.phase(Phase::Model, 1);
    let targets = targets(&options.targets)?;
    let model = import::import(options)?;
    let key = key(options, &model, &targets, &dir, progress)?;
    let artifacts = dir.join("artifacts");
    fs::create_dir_all(&artifacts).map_err(Error::io("create", &artifacts))?;
    let name = model.name.rsplit('/').next().unwrap_or(&model.name);
    let path = artifacts.join(file_name(&format!("{name}-{key}"), &targets));
    if path.is_file() {
        return Ok(Cached { path, report: None });
    }
    let options = Options { output: Some(path.clone()), artifact: true, ..options.clone() };
    let report = compile_model(&options, &model, &targets, progress, start)?;
    Ok(Cached { path, report: Some(report) })
}

/// `$XDG_CACHE_HOME/rvllm`, or `~/.cache/rvllm`.
fn directory() -> Result<PathBuf> {
    let from = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = from("XDG_CACHE_HOME").filter(|p| p.is_absolute()).or_else(|| Some(from("HOME")?.join(".cache")));
    base.map(|b| b.join("rvllm")).ok_or_else(|| {
        Error::Options(
            "no cache directory: neither XDG_CACHE_HOME nor HOME is set · help: set one, or compile with -o".into(),
        )
    })
}

fn key(options: &Options, model: &Model, targets: &[Target], dir: &Path, progress: &dyn Progress) -> Result<String> {
    let mut hash = Hash(Sha256::new());
    let mut sums = Sums::open(dir.join("sums.json"));
    hash.add(env!("CARGO_PKG_VERSION").as_bytes());
    if let Ok(compiler) = std::env::current_exe() {
        hash.add(&sums.of(&compiler, progress)?.to_le_bytes());
    }
    hash.add(settings(options).as_bytes());
    hash.add(format!("{targets:?}").as_bytes());
    if targets.iter().any(|t| t.gpu.is_some()) {
        let assembler = rvllm_mlir::assembler().map_or("none", |a| &a.version);
        hash.add(assembler.as_bytes());
    }
    hash.add(model.name.as_bytes());
    for (name, bytes) in &model.files {
        hash.add(name.as_bytes());
        hash.add(bytes);
    }
    checkpoint(&mut hash, options, model, &mut sums, progress)?;
    sums.keep();
    Ok(hash.hex())
}

/// The checkpoint, as far as the artifact depends on it.
fn checkpoint(
    hash: &mut Hash,
    options: &Options,
    model: &Model,
    sums: &mut Sums,
    progress: &dyn Progress,
) -> Result<()> {
    let Some(checkpoint) = &model.checkpoint else { return Ok(()) };
    let files = checkpoint.files();
    progress.phase(Phase::Checksum, files.iter().map(|f| f.bytes).sum());
    for file in files {
        hash.add(file.name.as_bytes());
        hash.add(&file.bytes.to_le_bytes());
        hash.add(file.header_sha256.as_bytes());
        match options.weights {
            WeightsMode::Embed => hash.add(&sums.of(&checkpoint.path_of(&file), progress)?.to_le_bytes()),
            WeightsMode::External => hash.add(checkpoint.dir().display().to_string().as_bytes()),
            WeightsMode::None => {}
        }
    }
    Ok(())
}

/// The options that an artifact depends on and that nothing else of the key says.
fn settings(options: &Options) -> String {
    let Options {
        model: _,
        targets: _,
        output: _,
        dtype,
        kv_cache_dtype,
        quantize,
        as_stored,
        max_model_len,
        max_num_batched_tokens,
        max_num_seqs,
        max_logits,
        weights,
        dummy_weights,
        goldens: _,
        emit: _,
        artifact: _,
    } = options;
    let limits = (max_model_len, max_num_batched_tokens, max_num_seqs, max_logits);
    format!("{dtype:?} {kv_cache_dtype:?} {quantize:?} {as_stored} {limits:?} {weights:?} {dummy_weights:?}")
}

/// SHA-256 over parts; each part's length goes before it, so that no two lists of parts agree.
struct Hash(Sha256);

impl Hash {
    fn add(&mut self, part: &[u8]) {
        self.0.update((part.len() as u64).to_le_bytes());
        self.0.update(part);
    }

    fn hex(self) -> String {
        self.0.finalize().iter().take(KEY_DIGITS / 2).map(|b| format!("{b:02x}")).collect()
    }
}

/// Sums of files, by path, size and time of change.
struct Sums {
    path: PathBuf,
    known: Map<String, Value>,
}

impl Sums {
    fn open(path: PathBuf) -> Sums {
        let known = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        Sums { path, known }
    }

    fn of(&mut self, path: &Path, progress: &dyn Progress) -> Result<u64> {
        let stamp = stamp(path)?;
        let name = path.display().to_string();
        let known = self.known.get(&name).filter(|entry| entry["stamp"] == stamp);
        if let Some(sum) = known.and_then(|entry| entry["xxh3"].as_u64()) {
            return Ok(sum);
        }
        let sum = xxh3(path, progress)?;
        self.known.insert(name, json!({ "stamp": stamp, "xxh3": sum }));
        Ok(sum)
    }

    /// Keeps what was summed; a failure only costs the next run time.
    fn keep(&self) {
        let temporary = self.path.with_extension(format!("{}.tmp", std::process::id()));
        let text = Value::Object(self.known.clone()).to_string();
        let made = self.path.parent().map_or(Ok(()), fs::create_dir_all);
        let kept = made.and_then(|()| fs::write(&temporary, text)).and_then(|()| fs::rename(&temporary, &self.path));
        if kept.is_err() {
            let _ = fs::remove_file(&temporary);
        }
    }
}

/// Size and time of change.
fn stamp(path: &Path) -> Result<String> {
    let meta = fs::metadata(path).map_err(Error::io("open", path))?;
    let changed = meta.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    Ok(format!("{} {}", meta.len(), changed.as_nanos()))
}

fn xxh3(path: &Path, progress: &dyn Progress) -> Result<u64> {
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let (mut hash, mut chunk) = (Xxh3::new(), vec![0; CHUNK]);
    loop {
        let n = file.read(&mut chunk).map_err(Error::io("read", path))?;
        if n == 0 {
            return Ok(hash.digest());
        }
        if progress.cancelled() {
            return Err(Error::Interrupted);
        }
        hash.update(&chunk[..n]);
        progress.advance(n as u64);
    }
}

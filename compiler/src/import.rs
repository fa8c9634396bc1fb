//! MODEL: a directory, a hub id or a GGUF file, its config, its checkpoint and the files that go into the artifact as they are.
//!
//! Invariants:
//! - a checkpoint is used only after every tensor was compared with the graph's weights;
//! - small files are read with a bound on their size.

use crate::{
    error::{Error, Result},
    gguf, hub,
    options::{DTypeChoice, Options, WeightsMode},
};
use rvllm_artifact::{Checkpoint, DummySource, Source, parsers::Parsers, plan, quantized};
use rvllm_ir::{
    DType,
    graph::{Graph, Op, ValueId},
};
use rvllm_models::Architecture;
use std::{
    collections::BTreeMap,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

/// Files of a model directory that the artifact carries as they are.
pub(crate) const FILES: [&str; 5] =
    ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"];

/// Largest such file: the largest tokenizers are below 40 MB.
const MAX_FILE: u64 = 256 << 20;

/// An imported model.
pub(crate) struct Model {
    /// Directory or hub name.
    pub name: String,
    /// Where its files are.
    pub dir: PathBuf,
    /// What the config says.
    pub architecture: Box<dyn Architecture>,
    /// Element type of activations and weights.
    pub dtype: DType,
    /// Entries of the artifact: [`FILES`] that are there, then `goldens.json`.
    pub files: Vec<(String, Vec<u8>)>,
    /// The weights, where the compile needs any.
    pub checkpoint: Option<Checkpoint>,
    /// How its config says that weights are quantised.
    quantization: Option<quantized::config::Config>,
}

/// Finds and reads MODEL.
pub(crate) fn import(options: &Options) -> Result<Model> {
    if Path::new(&options.model).is_file() {
        return import_gguf(options, Path::new(&options.model));
    }
    let (name, dir) = locate(&options.model, reads_weights(options))?;
    let mut files = vec![];
    for file in FILES {
        files.extend(read(&dir.join(file))?.map(|bytes| (file.to_string(), bytes)));
    }
    files.extend(goldens(options, &dir)?.map(|bytes| ("goldens.json".to_string(), bytes)));
    let architecture = architecture(&dir, &files)?;
    let quantization = quantization(&dir, &files)?;
    let checkpoint = checkpoint(options, &dir)?;
    let dtype = choose_dtype(options.dtype, checkpoint.as_ref(), architecture.facts().dtype)?;
    Ok(Model { name, dir, architecture, dtype, files, checkpoint, quantization })
}

/// Reads a GGUF file, and the tokenizer's files beside it where they are.
fn import_gguf(options: &Options, path: &Path) -> Result<Model> {
    let path = path.canonicalize().map_err(Error::io("open", path))?;
    let checkpoint = Checkpoint::open(&path)?;
    let dir = path.parent().unwrap_or(Path::new("/")).to_path_buf();
    let tokenizer = read(&dir.join("tokenizer.json"))?;
    let mut made = gguf::files(&path, &checkpoint, tokenizer.is_none())?;
    let mut files = vec![];
    for file in FILES {
        let beside = match file {
            "config.json" | "generation_config.json" => None,
            _ if tokenizer.is_some() => read(&dir.join(file))?,
            _ => None,
        };
        files.extend(beside.or_else(|| made.remove(file)).map(|bytes| (file.to_string(), bytes)));
    }
    files.extend(goldens(options, &dir)?.map(|bytes| ("goldens.json".to_string(), bytes)));
    let architecture = architecture(&path, &files)?;
    let best = checkpoint.gguf().map(rvllm_artifact::gguf::preferred);
    let dtype = match (options.dtype, best) {
        (DTypeChoice::F32, _) | (DTypeChoice::Auto, Some(plan::DType::F32)) => DType::F32,
        _ => DType::Bf16,
    };
    let name = path.file_stem().map_or_else(|| "model".to_string(), |n| n.to_string_lossy().into_owned());
    let checkpoint = options.dummy_weights.is_none().then_some(checkpoint);
    Ok(Model { name, dir, architecture, dtype, files, checkpoint, quantization: None })
}

/// Whether the artifact is made of a checkpoint's weights, so that one has to be there.
fn reads_weights(options: &Options) -> bool {
    options.dummy_weights.is_none() && options.weights != WeightsMode::None
}

/// Name and directory of MODEL.
fn locate(model: &str, weights: bool) -> Result<(String, PathBuf)> {
    let path = Path::new(model);
    if path.is_dir() {
        let dir = path.canonicalize().map_err(Error::io("open", path))?;
        let name = dir.file_name().map_or_else(|| "model".to_string(), |n| n.to_string_lossy().into_owned());
        return Ok((name, dir));
    }
    match hub::is_id(model) && !path.exists() {
        true => Ok((model.to_string(), hub::fetch(model, weights)?)),
        false => Err(Error::NoModel(model.to_string())),
    }
}

/// A file's bytes; `None` where there is none.
fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(Error::io("open", path))?,
    };
    let mut bytes = vec![];
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    match bytes.len() as u64 > MAX_FILE {
        true => Err(Error::Options(format!("{} is larger than {MAX_FILE} bytes", path.display()))),
        false => Ok(Some(bytes)),
    }
}

fn goldens(options: &Options, dir: &Path) -> Result<Option<Vec<u8>>> {
    match &options.goldens {
        None => read(&dir.join("goldens.json")),
        Some(path) => match read(path)? {
            None => Err(Error::io("open", path)(std::io::ErrorKind::NotFound.into())),
            found => Ok(found),
        },
    }
}

fn architecture(dir: &Path, files: &[(String, Vec<u8>)]) -> Result<Box<dyn Architecture>> {
    let (name, bytes) = files.first().filter(|(n, _)| n == "config.json").ok_or_else(|| Error::NoConfig(dir.into()))?;
    rvllm_models::from_config(&String::from_utf8_lossy(bytes))
        .map_err(|source| Error::Config { path: dir.join(name), source: Box::new(source) })
}

/// How a config says that weights are quantised. A way that is not known is refused whatever becomes of the weights.
fn quantization(dir: &Path, files: &[(String, Vec<u8>)]) -> Result<Option<quantized::config::Config>> {
    let Some((name, bytes)) = files.first() else { return Ok(None) };
    let config = serde_json::from_slice(bytes).unwrap_or_default();
    let refused = |problem| Error::Quantization { path: dir.join(name), problem };
    quantized::config::Config::of(&config).map_err(refused)
}

/// The checkpoint, where weights come from one.
fn checkpoint(options: &Options, dir: &Path) -> Result<Option<Checkpoint>> {
    if options.dummy_weights.is_some() {
        return Ok(None);
    }
    let weights = [
        "model.safetensors",
        "model.safetensors.index.json",
        // which are told from nothing at all
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ];
    let any = weights.iter().any(|name| dir.join(name).is_file());
    match (any, options.weights) {
        (true, _) => Ok(Some(Checkpoint::open(dir)?)),
        (false, WeightsMode::None) => Ok(None),
        (false, WeightsMode::Embed | WeightsMode::External) => {
            let problem = format!("{}: neither {} nor {}", dir.display(), weights[0], weights[1]);
            Err(Error::NoCheckpoint { problem })
        }
    }
}

/// The checkpoint's own type decides before what the config says of it.
fn choose_dtype<'c>(choice: DTypeChoice, checkpoint: Option<&'c Checkpoint>, config: Option<DType>) -> Result<DType> {
    let plain = |c: &'c Checkpoint| c.names().find(|name| !c.is_quantized(name)).map(|name| c.tensor(name));
    let found = match checkpoint.and_then(plain) {
        Some(tensor) => Some(tensor?.dtype),
        None => config.map(crate::emit::dtype),
    };
    match (choice, found) {
        (DTypeChoice::Bf16, _) => Ok(DType::Bf16),
        (DTypeChoice::F32, _) | (DTypeChoice::Auto, Some(plan::DType::F32) | None) => Ok(DType::F32),
        (DTypeChoice::Auto, Some(plan::DType::Bf16 | plan::DType::F16)) => Ok(DType::Bf16),
        (DTypeChoice::Auto, Some(other)) => Err(Error::Options(format!(
            "the checkpoint is {other}, but weights are read from f32, f16 and bf16 · help: convert it, or name --dtype"
        ))),
    }
}

/// Shape of every checkpoint tensor that the graph reads.
pub(crate) fn tensors(graph: &Graph) -> BTreeMap<String, Vec<u64>> {
    let shape = |node| {
        let dims = &graph.tensor(ValueId { node, result: 0 }).dims;
        dims.iter().filter_map(|d| d.constant()).map(|n| n as u64).collect::<Vec<u64>>()
    };
    let read = |node| match &graph.node(node).op {
        Op::Weight(recipe) => recipe.sources().into_iter().next().map(|name| (name.to_string(), shape(node))),
        _ => None,
    };
    graph.order().into_iter().filter_map(read).collect()
}

impl Model {
    /// Compares the checkpoint with what the graph (before any pass) reads.
    pub(crate) fn check(&self, tensors: &BTreeMap<String, Vec<u64>>) -> Result<()> {
        let Some(checkpoint) = &self.checkpoint else { return Ok(()) };
        let expected: Vec<(String, Vec<u64>)> = tensors.iter().map(|(n, s)| (n.clone(), s.clone())).collect();
        let mismatches = checkpoint.check(&expected, &|key| {
            self.architecture.ignored(key) || key == rvllm_artifact::gguf::names::ROPE_FACTORS
        });
        match mismatches.is_empty() {
            true => Ok(()),
            false => Err(Error::Checkpoint { path: self.dir.clone(), mismatches }),
        }
    }

    /// How the checkpoint stores a tensor that may be multiplied with as it is stored, or would by its config where there is none.
    pub(crate) fn stored(&self, name: &str, tensors: &BTreeMap<String, Vec<u64>>) -> Option<quantized::Stored> {
        match (&self.checkpoint, self.quantization) {
            (Some(checkpoint), _) => checkpoint.stored(name),
            (None, Some(config)) => config.stored(*tensors.get(name)?.last()?),
            (None, None) => None,
        }
    }

    /// Random weights of these shapes.
    pub(crate) fn dummy(&self, seed: u64, tensors: &BTreeMap<String, Vec<u64>>) -> Result<DummySource> {
        Ok(DummySource::new(seed, crate::emit::dtype(self.dtype), tensors.clone())?)
    }

    /// Tokens that end an answer: generation_config.json's, else the config's.
    pub(crate) fn eos_token_ids(&self) -> Vec<u32> {
        let generation = self.file("generation_config.json").and_then(eos).unwrap_or_default();
        if generation.is_empty() { self.architecture.facts().eos_token_ids.clone() } else { generation }
    }

    /// How it writes tool calls and reasoning, as its chat template shows.
    pub(crate) fn parsers(&self) -> Parsers {
        Parsers::of_files(self.file("chat_template.jinja"), self.file("tokenizer_config.json"))
    }

    fn file(&self, name: &str) -> Option<&[u8]> {
        self.files.iter().find(|(n, _)| n == name).map(|(_, bytes)| bytes.as_slice())
    }
}

/// `eos_token_id` of a generation config: a number or a list.
fn eos(json: &[u8]) -> Option<Vec<u32>> {
    let config: serde_json::Value = serde_json::from_slice(json).ok()?;
    let ids = match config.get("eos_token_id")? {
        serde_json::Value::Array(ids) => ids.clone(),
        id => vec![id.clone()],
    };
    Some(ids.iter().filter_map(|id| u32::try_from(id.as_u64()?).ok()).collect())
}

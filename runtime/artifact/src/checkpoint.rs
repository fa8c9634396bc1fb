//! A checkpoint: a directory with one or several safetensors files, or one GGUF file, mapped.
//!
//! Matrices that are stored quantised are given out as the numbers that they stand for, and as parts: see [`crate::quantized`].
//!
//! The files must not be changed while they are mapped.

use crate::{
    error::{Error, Result},
    gguf::Gguf,
    header::{Header, hex},
    manifest::CheckpointFile,
    map,
    quantized::{Quantized, Stored, config::Config, layout::Files},
    source::{Source, TensorType},
};
use memmap2::Mmap;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    path::{Path, PathBuf},
};

/// Largest `model.safetensors.index.json` read.
const MAX_INDEX: u64 = 64 << 20;
/// Largest `config.json` read.
const MAX_CONFIG: u64 = 64 << 20;
/// Most files of a checkpoint.
const MAX_FILES: usize = 4096;

/// An open checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    files: Vec<OpenFile>,
    /// Index of the file that holds each tensor.
    tensors: BTreeMap<String, usize>,
    /// The matrices that some of them make.
    quantized: Quantized,
}

#[derive(Debug)]
struct OpenFile {
    name: String,
    place: String,
    map: Mmap,
    layout: Layout,
}

/// Where in a file which tensor lies.
#[derive(Debug)]
enum Layout {
    Safetensors(Header),
    Gguf(Box<Gguf>),
}

/// A tensor that is not as the model needs it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// The checkpoint lacks it.
    #[error("missing tensor {name}, expected {expected:?}")]
    Missing {
        /// Its name.
        name: String,
        /// Shape the model needs.
        expected: Vec<u64>,
    },
    /// The model has no use for it.
    #[error("unexpected tensor {name} of shape {found:?}")]
    Extra {
        /// Its name.
        name: String,
        /// Shape in the checkpoint.
        found: Vec<u64>,
    },
    /// Both have it, with different shapes.
    #[error("tensor {name} has shape {found:?}, expected {expected:?}")]
    Misshaped {
        /// Its name.
        name: String,
        /// Shape in the checkpoint.
        found: Vec<u64>,
        /// Shape the model needs.
        expected: Vec<u64>,
    },
}

impl Mismatch {
    /// The tensor's name.
    pub fn name(&self) -> &str {
        let (Mismatch::Missing { name, .. } | Mismatch::Extra { name, .. } | Mismatch::Misshaped { name, .. }) = self;
        name
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Opens a GGUF file, or `model.safetensors` or the files of `model.safetensors.index.json` of a directory.
    ///
    /// # Errors
    /// No such files (one message for `pytorch_model.bin`), a header that is not valid, or quantised matrices of a layout
    /// that is not known or whose tensors do not fit each other.
    pub fn open(dir: &Path) -> Result<Checkpoint> {
        if dir.is_file() {
            return Checkpoint::of_gguf(dir);
        }
        const SINGLE: &str = "model.safetensors";
        let index = dir.join("model.safetensors.index.json");
        if dir.join(SINGLE).is_file() {
            return Checkpoint::from_files(dir, &BTreeSet::from([SINGLE]))?.with_matrices();
        }
        if !index.is_file() {
            return Err(Error::Checkpoint { path: dir.into(), problem: nothing_in(dir).into() });
        }
        let Index { weight_map } = read_index(&index)?;
        let files: BTreeSet<&str> = weight_map.values().map(String::as_str).collect();
        let mut checkpoint = Checkpoint::from_files(dir, &files)?;
        for (tensor, file) in &weight_map {
            checkpoint.place(tensor, file)?;
        }
        checkpoint.with_matrices()
    }

    /// Finds the matrices that its config.json says are quantised.
    fn with_matrices(mut self) -> Result<Checkpoint> {
        let path = self.dir.join("config.json");
        if path.is_file() {
            let bytes = map::read_bounded(&path, MAX_CONFIG)?;
            // a config that is no JSON is for its own reader to refuse
            let config = serde_json::from_slice(&bytes).unwrap_or_default();
            let config = Config::of(&config).map_err(|problem| Error::Checkpoint { path, problem })?;
            let found = config.map(|config| Quantized::find(config, &self)).transpose();
            let wrong = |problem| Error::Checkpoint { path: self.dir.clone(), problem };
            self.quantized = found.map_err(wrong)?.unwrap_or_default();
        }
        Ok(self)
    }

    /// How the parts of a matrix are given out, where it is stored quantised and kernels can multiply with them.
    pub fn stored(&self, name: &str) -> Option<Stored> {
        match self.gguf() {
            Some(gguf) => gguf.stored(name),
            None => self.quantized.stored(name),
        }
    }

    /// Whether a matrix is stored quantised, in any layout.
    pub fn is_quantized(&self, name: &str) -> bool {
        let encoding = self.gguf().and_then(|gguf| gguf.encoding(name));
        encoding.is_some_and(|e| !e.is_plain()) || self.quantized.contains(name)
    }

    /// The keys and values of a GGUF file.
    pub fn gguf(&self) -> Option<&Gguf> {
        self.files.iter().find_map(|f| match &f.layout {
            Layout::Gguf(gguf) => Some(&**gguf),
            Layout::Safetensors(_) => None,
        })
    }

    fn of_gguf(path: &Path) -> Result<Checkpoint> {
        let (map, place) = (map::file(path)?, path.display().to_string());
        let layout = Layout::Gguf(Box::new(Gguf::read(&place, &map)?));
        let name = path.file_name().map_or_else(|| place.clone(), |n| n.to_string_lossy().into_owned());
        let tensors = layout.names().into_iter().map(|name| (name, 0)).collect();
        Ok(Checkpoint {
            dir: path.into(),
            files: vec![OpenFile { name, place, map, layout }],
            tensors,
            quantized: Quantized::default(),
        })
    }

    fn from_files(dir: &Path, names: &BTreeSet<&str>) -> Result<Checkpoint> {
        let wrong = |problem: String| Error::Checkpoint { path: dir.into(), problem };
        if names.is_empty() || names.len() > MAX_FILES {
            return Err(wrong(format!("its index names {} files, expected 1 to {MAX_FILES}", names.len())));
        }
        if let Some(name) = names.iter().find(|name| Path::new(name).file_name() != Some(name.as_ref())) {
            return Err(wrong(format!("its index names the file {name:?}, expected a name without a directory")));
        }
        let files = names.iter().map(|name| OpenFile::open(dir, name)).collect::<Result<Vec<_>>>()?;
        let all = files.iter().enumerate().flat_map(|(i, file)| file.layout.names().into_iter().map(move |n| (n, i)));
        Ok(Checkpoint { dir: dir.into(), tensors: all.collect(), files, quantized: Quantized::default() })
    }

    /// Takes a tensor from the file that the index names.
    fn place(&mut self, tensor: &str, file: &str) -> Result<()> {
        let at = self.files.iter().position(|f| f.name == file && f.layout.shape(tensor).is_some());
        let at = at.ok_or_else(|| Error::MissingTensor {
            place: self.dir.join(file).display().to_string(),
            tensor: format!("{tensor}, which the index places there"),
        })?;
        self.tensors.insert(tensor.to_string(), at);
        Ok(())
    }

    /// Its directory, or its file.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where a file of [`Checkpoint::files`] lies.
    pub fn path_of(&self, file: &CheckpointFile) -> PathBuf {
        if self.gguf().is_some() { self.dir.clone() } else { self.dir.join(&file.name) }
    }

    /// Names of all tensors, those of quantised matrices first.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let plain = self.tensors.keys().map(String::as_str).filter(|name| !self.quantized.consumes(name));
        self.quantized.names().chain(plain)
    }

    /// Its files with the sums of their headers, for [`crate::manifest::Weights::External`].
    pub fn files(&self) -> Vec<CheckpointFile> {
        let describe = |f: &OpenFile| CheckpointFile {
            name: f.name.clone(),
            bytes: f.map.len() as u64,
            header_sha256: f.layout.sha256(&f.map),
        };
        self.files.iter().map(describe).collect()
    }

    /// Checks that these are the files that an artifact was compiled from.
    ///
    /// # Errors
    /// [`Error::OtherCheckpoint`] names the first file that differs, and both values.
    pub fn verify(&self, expected: &[CheckpointFile]) -> Result<()> {
        let found = self.files();
        let list = |files: &[CheckpointFile]| files.iter().map(|f| f.name.clone()).collect::<Vec<_>>();
        let (ours, theirs) = (list(&found), list(expected));
        if ours != theirs {
            return Err(self.other("", "list of files", ours.join(", "), theirs.join(", ")));
        }
        for (found, expected) in found.into_iter().zip(expected) {
            if found.bytes != expected.bytes {
                let sizes = (format!("{} bytes", found.bytes), format!("{} bytes", expected.bytes));
                return Err(self.other(&found.name, "size", sizes.0, sizes.1));
            }
            if found.header_sha256 != expected.header_sha256 {
                let expected = expected.header_sha256.clone();
                return Err(self.other(&found.name, "SHA-256 of the header", found.header_sha256, expected));
            }
        }
        Ok(())
    }

    fn other(&self, file: &str, what: &'static str, found: String, expected: String) -> Error {
        Error::OtherCheckpoint { path: self.dir.join(file), what, found, expected }
    }

    /// Every missing, extra and misshaped tensor, sorted by name. `ignored` says which extra ones do not matter.
    pub fn check(&self, expected: &[(String, Vec<u64>)], ignored: &dyn Fn(&str) -> bool) -> Vec<Mismatch> {
        let expected: BTreeMap<&str, &Vec<u64>> = expected.iter().map(|(name, shape)| (name.as_str(), shape)).collect();
        let mut wrong: Vec<Mismatch> = expected.iter().filter_map(|(name, shape)| self.mismatch(name, shape)).collect();
        let extra =
            self.names().filter(|name| !expected.contains_key(name) && !ignored(name) && !self.adds_nothing(name));
        wrong.extend(
            extra.filter_map(|name| Some(Mismatch::Extra { name: name.to_string(), found: self.shape(name)? })),
        );
        wrong.sort_by(|a, b| a.name().cmp(b.name()));
        wrong
    }

    fn mismatch(&self, name: &str, expected: &[u64]) -> Option<Mismatch> {
        let (name, expected) = (name.to_string(), expected.to_vec());
        match self.shape(&name) {
            None => Some(Mismatch::Missing { name, expected }),
            Some(found) if found != expected => Some(Mismatch::Misshaped { name, found, expected }),
            Some(_) => None,
        }
    }

    fn shape(&self, name: &str) -> Option<Vec<u64>> {
        let matrix = self.quantized.tensor(name).map(|ty| ty.shape);
        matrix.or_else(|| self.file_of(name)?.layout.shape(name))
    }

    /// Whether a tensor is the bias of a quantised matrix and all zeros, which some quantisers write for every matrix.
    fn adds_nothing(&self, name: &str) -> bool {
        let stem = name.strip_suffix(".bias").filter(|stem| self.quantized.contains(&format!("{stem}.weight")));
        stem.is_some() && self.all(name).iter().all(|byte| *byte == 0)
    }

    fn file_of(&self, name: &str) -> Option<&OpenFile> {
        let whole = self.tensors.get(name).and_then(|i| self.files.get(*i));
        // a GGUF file's parts of tensors have names of their own
        whole.or_else(|| self.files.first().filter(|f| f.layout.has_part(name)))
    }

    fn missing(&self, name: &str) -> Error {
        Error::MissingTensor { place: self.dir.display().to_string(), tensor: name.to_string() }
    }
}

impl OpenFile {
    fn open(dir: &Path, name: &str) -> Result<OpenFile> {
        let path = dir.join(name);
        let (map, place) = (map::file(&path)?, path.display().to_string());
        let layout = Layout::Safetensors(Header::read(&place, &map)?);
        Ok(OpenFile { name: name.to_string(), place, map, layout })
    }
}

impl Layout {
    fn names(&self) -> Vec<String> {
        match self {
            Layout::Safetensors(header) => header.names(),
            Layout::Gguf(gguf) => gguf.names(),
        }
    }

    fn shape(&self, name: &str) -> Option<Vec<u64>> {
        match self {
            Layout::Safetensors(header) => header.shape(name),
            Layout::Gguf(gguf) => gguf.tensor(name).map(|ty| ty.shape),
        }
    }

    /// Whether a name is one of a part of a tensor.
    fn has_part(&self, name: &str) -> bool {
        matches!(self, Layout::Gguf(gguf) if gguf.tensor(name).is_some())
    }

    /// Type and shape; `Err` with the type's name where it is not known.
    fn tensor(&self, name: &str) -> Option<std::result::Result<TensorType, String>> {
        match self {
            Layout::Safetensors(header) => header.tensor(name),
            Layout::Gguf(gguf) => gguf.tensor(name).map(Ok),
        }
    }

    /// Where a tensor's bytes lie in its file.
    fn range(&self, name: &str) -> Option<Range<usize>> {
        match self {
            Layout::Safetensors(header) => header.range(name),
            Layout::Gguf(_) => None,
        }
    }

    /// SHA-256 of everything before the tensors' bytes, in hexadecimal.
    fn sha256(&self, file: &[u8]) -> String {
        match self {
            Layout::Safetensors(header) => header.sha256(file),
            Layout::Gguf(gguf) => hex(&Sha256::digest(&file[..gguf.header_bytes().min(file.len())])),
        }
    }

    fn bytes<'a>(&self, file: &'a [u8], name: &str, range: Range<u64>) -> Option<Cow<'a, [u8]>> {
        match self {
            Layout::Gguf(gguf) => gguf.bytes(file, name, range),
            Layout::Safetensors(header) => {
                let tensor = file.get(header.range(name)?)?;
                tensor.get(range.start as usize..range.end as usize).map(Cow::Borrowed)
            }
        }
    }
}

fn nothing_in(dir: &Path) -> &'static str {
    if !dir.is_dir() {
        return "no such directory, expected a checkpoint";
    }
    let torch = ["pytorch_model.bin", "pytorch_model.bin.index.json"].iter().any(|name| dir.join(name).is_file());
    if torch {
        "only pytorch_model.bin, but rvllm reads safetensors · help: save the model again with transformers' \
         save_pretrained(…, safe_serialization=True)"
    } else {
        "neither model.safetensors nor model.safetensors.index.json"
    }
}

fn read_index(path: &Path) -> Result<Index> {
    let bytes = map::read_bounded(path, MAX_INDEX)?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Json {
        file: path.display().to_string(),
        what: "index".into(),
        source,
    })
}

impl Files for Checkpoint {
    fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    fn ty(&self, name: &str) -> Option<TensorType> {
        self.file_of(name)?.layout.tensor(name)?.ok()
    }

    fn all(&self, name: &str) -> &[u8] {
        let bytes = self.file_of(name).and_then(|file| file.map.get(file.layout.range(name)?));
        bytes.unwrap_or_default()
    }
}

impl Source for Checkpoint {
    fn tensor(&self, name: &str) -> Result<TensorType> {
        if let Some(ty) = self.quantized.tensor(name) {
            return Ok(ty);
        }
        let file = self.file_of(name).ok_or_else(|| self.missing(name))?;
        let ty = file.layout.tensor(name).ok_or_else(|| self.missing(name))?;
        ty.map_err(|found| Error::UnknownDType { place: file.place.clone(), tensor: name.to_string(), found })
    }

    fn bytes(&self, name: &str, range: Range<u64>) -> Result<Cow<'_, [u8]>> {
        let damaged = |file: &str| Error::Damaged {
            file: file.to_string(),
            problem: format!("bytes {range:?} of tensor {name}, which has not as many"),
        };
        if self.quantized.tensor(name).is_some() {
            let bytes = self.quantized.bytes(name, range.clone(), self);
            return bytes.map(Cow::Owned).ok_or_else(|| damaged(&self.dir.display().to_string()));
        }
        let file = self.file_of(name).ok_or_else(|| self.missing(name))?;
        file.layout.bytes(&file.map, name, range.clone()).ok_or_else(|| damaged(&file.place))
    }
}

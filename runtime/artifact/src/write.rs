//! Writing an artifact: into a temporary file beside the destination, which takes its name when complete.
//!
//! Entries of a page or more begin on a page. Within a `weights/*.safetensors` entry every weight begins on a
//! multiple of 64 bytes: the header is padded with spaces, and since safetensors forbids holes, bytes between weights
//! are `u8` tensors of zeros named `padding.N`. Timestamps are fixed: the same inputs give the same bytes.
//!
//! The manifest, which comes first, holds the SHA-256 of all entries but the weights. Weights are streamed, so their
//! sum is the CRC-32 that every ZIP entry has: [`crate::Artifact::verify`] and `unzip -t` check it.

use crate::{
    error::{Error, Result},
    execute::{self, Rows},
    header::{self, hex},
    manifest::{FORMAT, Manifest},
    open::{Artifact, MANIFEST},
    plan::Weight,
    searched::Searched,
    source::{Source, TensorType},
};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufWriter, Seek, SeekFrom, Write},
    ops::ControlFlow,
    path::{Path, PathBuf},
};
use tempfile::NamedTempFile;
use zip::{CompressionMethod, DateTime, ZipWriter, result::ZipError, write::SimpleFileOptions};

/// Where weights begin in the file, and so in memory: a cache line, and the widest vector.
pub const ALIGNMENT: usize = 64;
/// Where large entries begin.
const PAGE: u16 = 4096;
/// Names of the zeros between weights, before their number.
const PADDING: &str = "padding.";
/// Bytes of a weight made at a time.
const CHUNK: usize = 16 << 20;

/// An artifact being written. Dropped before [`Writer::finish`] it leaves nothing behind.
pub struct Writer {
    path: PathBuf,
    /// Weights entries that the manifest names and that are not written yet.
    pending: Vec<String>,
    zip: ZipWriter<Temporary>,
}

impl Writer {
    /// Starts an artifact at `path` with its manifest and its small entries (plans, kernels, tokenizer …), in the
    /// order given. Fills `manifest.format` and `manifest.entries` in.
    ///
    /// # Errors
    /// The directory cannot be written to; two entries of one name.
    pub fn create(path: &Path, manifest: &Manifest, entries: &[(String, Vec<u8>)]) -> Result<Writer> {
        let sum = |(name, bytes): &(String, Vec<u8>)| (name.clone(), hex(&Sha256::digest(bytes)));
        let sums = entries.iter().map(sum).collect();
        let manifest = Manifest { format: FORMAT.into(), entries: sums, ..manifest.clone() };
        let json = serde_json::to_vec_pretty(&manifest).map_err(|source| Error::Json {
            file: path.display().to_string(),
            what: MANIFEST.into(),
            source,
        })?;
        let temporary = temporary(path).map_err(failed(path))?;
        let file = BufWriter::with_capacity(1 << 20, temporary);
        let zip = ZipWriter::new(Temporary { file, at: 0, lost: false });
        let mut writer = Writer { path: path.into(), pending: manifest.weights.embedded().to_vec(), zip };
        writer.entry(MANIFEST, &json)?;
        entries.iter().try_for_each(|(name, bytes)| writer.entry(name, bytes))?;
        Ok(writer)
    }

    fn entry(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.start(name, bytes.len() as u64)?;
        self.write(bytes)
    }

    fn start(&mut self, name: &str, bytes: u64) -> Result<()> {
        let alignment = if bytes >= u64::from(PAGE) { PAGE } else { 1 };
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .last_modified_time(DateTime::default())
            .unix_permissions(0o644)
            .large_file(bytes >= u64::from(u32::MAX))
            .with_alignment(alignment);
        self.zip.start_file(name, options).map_err(|e| self.failed(e.into()))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.zip.write_all(bytes).map_err(|e| self.failed(e))
    }

    fn failed(&self, source: io::Error) -> Error {
        failed(&self.path)(source)
    }

    /// Appends a `weights/*.safetensors` entry with the results of the weights' recipes, streamed. Weights of equal
    /// name must be equal, and are written once. `progress` receives the bytes written since the last call, and can
    /// break off.
    ///
    /// # Errors
    /// Those of the recipes; [`Error::Interrupted`] where `progress` broke off.
    pub fn weights(
        &mut self,
        entry: &str,
        weights: &[&Weight],
        source: &dyn Source,
        threads: usize,
        progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<()> {
        let weights = distinct(weights)?;
        weights.iter().try_for_each(|weight| check_recipe(weight, source))?;
        let layout = Layout::of(&weights)?;
        self.start(entry, layout.header.len() as u64 + layout.data_bytes)?;
        self.write(&layout.header)?;
        let searched = Searched::default();
        for (weight, padding) in weights.iter().zip(layout.padding) {
            let rows = Rows::sharing(&weight.recipe, source, Some(&searched))?;
            execute::chunks(rows, threads, CHUNK, &mut |bytes| {
                self.write(bytes)?;
                if progress(bytes.len() as u64).is_break() { Err(Error::Interrupted) } else { Ok(()) }
            })?;
            self.write(&[0; ALIGNMENT][..padding])?;
        }
        self.pending.retain(|name| name != entry);
        Ok(())
    }

    /// Appends a `weights/*.safetensors` entry that another artifact holds, as it is.
    fn copy(&mut self, entry: &str, bytes: &[u8]) -> Result<()> {
        self.start(entry, bytes.len() as u64)?;
        bytes.chunks(CHUNK).try_for_each(|chunk| self.write(chunk))?;
        self.pending.retain(|name| name != entry);
        Ok(())
    }

    /// Writes the directory, syncs and moves the file to its path. Returns its size.
    ///
    /// # Errors
    /// A weights entry that the manifest names is missing; the disk is full.
    pub fn finish(self) -> Result<u64> {
        let Writer { path, pending, zip } = self;
        if let Some(entry) = pending.into_iter().next() {
            return Err(Error::MissingEntry { file: path.display().to_string(), entry, needed_by: MANIFEST.into() });
        }
        let temporary = zip.finish().map_err(|e: ZipError| failed(&path)(e.into()))?;
        let file = temporary.file.into_inner().map_err(|e| failed(&path)(e.into_error()))?;
        file.as_file().sync_all().map_err(failed(&path))?;
        let file = file.persist(&path).map_err(|e| failed(&path)(e.error))?;
        sync_directory(&path).map_err(failed(&path))?;
        Ok(file.metadata().map_err(failed(&path))?.len())
    }
}

impl Artifact {
    /// Writes this artifact to `path`, which may be its own, with a small entry added or replaced. Returns its size.
    ///
    /// # Errors
    /// The file cannot be written, or the artifact lacks weights that its manifest names.
    pub fn with_entry(&self, name: &str, bytes: &[u8], path: &Path) -> Result<u64> {
        let weights = self.manifest().weights.embedded();
        let kept = |entry: &str| ![MANIFEST, name].contains(&entry) && !weights.iter().any(|w| w == entry);
        let names = self.entries().map(|(entry, _)| entry).filter(|entry| kept(entry));
        let kept = names.filter_map(|entry| Some((entry.to_string(), self.entry(entry)?.to_vec())));
        let entries: Vec<_> = kept.chain([(name.to_string(), bytes.to_vec())]).collect();
        let mut writer = Writer::create(path, self.manifest(), &entries)?;
        for entry in weights {
            self.entry(entry).map_or(Ok(()), |bytes| writer.copy(entry, bytes))?;
        }
        writer.finish()
    }
}

/// The file being written. After a failure, which is reported once, what follows goes nowhere: a ZIP writer that is
/// dropped writes its directory, and would complain on stderr that it cannot.
struct Temporary {
    file: BufWriter<NamedTempFile>,
    /// Where the next byte goes, or would go.
    at: u64,
    lost: bool,
}

impl Temporary {
    /// Acts on the file, or after a failure in appearance only.
    fn act<T>(
        &mut self,
        on_file: impl FnOnce(&mut BufWriter<NamedTempFile>) -> io::Result<T>,
        in_appearance: impl FnOnce(u64) -> T,
    ) -> io::Result<T> {
        if self.lost {
            return Ok(in_appearance(self.at));
        }
        on_file(&mut self.file).inspect_err(|e| self.lost = e.kind() != io::ErrorKind::Interrupted)
    }
}

impl Write for Temporary {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.act(|file| file.write(bytes), |_| bytes.len())?;
        self.at += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.act(Write::flush, |_| ())
    }
}

impl Seek for Temporary {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let moved = |at: u64| match to {
            SeekFrom::Start(at) => at,
            SeekFrom::Current(by) | SeekFrom::End(by) => at.saturating_add_signed(by),
        };
        self.at = self.act(|file| file.seek(to), moved)?;
        Ok(self.at)
    }
}

/// The system's own words: the temporary file's name tells the user nothing.
fn failed(path: &Path) -> impl Fn(io::Error) -> Error {
    move |source| Error::Io { action: "write", path: path.into(), source: innermost(source) }
}

/// The system's error inside of what libraries wrapped around it.
fn innermost(error: io::Error) -> io::Error {
    let (mut code, mut kind) = (error.raw_os_error(), error.kind());
    let mut cause = error.get_ref().map(|e| e as &(dyn std::error::Error + 'static));
    while let Some(e) = cause {
        if let Some(inner) = e.downcast_ref::<io::Error>() {
            (code, kind) = (inner.raw_os_error(), inner.kind());
        }
        cause = e.source();
    }
    match (code, kind) {
        (Some(code), _) => io::Error::from_raw_os_error(code),
        (None, io::ErrorKind::Other) => error,
        (None, kind) => kind.into(),
    }
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A file that vanishes unless it is given a name.
fn temporary(path: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".rvllm-").suffix(".tmp");
    #[cfg(unix)]
    // As any new file: the umask decides. The default would keep it from other users.
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(directory(path))
}

/// Makes the new name outlast a power failure.
fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(directory(path))?.sync_all()
}

/// Weights by name, the first of each; an error where two of one name differ.
fn distinct<'a>(weights: &[&'a Weight]) -> Result<Vec<&'a Weight>> {
    let mut seen: BTreeMap<&str, &Weight> = BTreeMap::new();
    let mut distinct = vec![];
    for weight in weights {
        if weight.name.starts_with(PADDING) {
            return Err(Error::Recipe(format!(
                "a weight named {}: {PADDING}N is kept for the space between",
                weight.name
            )));
        }
        match seen.insert(&weight.name, weight) {
            None => distinct.push(*weight),
            Some(first) if first == *weight => {}
            Some(_) => return Err(Error::Recipe(format!("two different weights named {}", weight.name))),
        }
    }
    Ok(distinct)
}

/// Checks that a weight's recipe makes what the weight says.
pub(crate) fn check_recipe(weight: &Weight, source: &dyn Source) -> Result<()> {
    let found = execute::infer(&weight.recipe, source)?;
    let expected = TensorType { dtype: weight.dtype, shape: weight.shape.clone() };
    if found == expected {
        return Ok(());
    }
    let (place, tensor) = ("recipe".to_string(), weight.name.clone());
    Err(Error::WrongTensor { place, tensor, found: found.to_string(), expected: expected.to_string() })
}

/// Header of a safetensors entry, and the zeros after each weight.
struct Layout {
    header: Vec<u8>,
    padding: Vec<usize>,
    data_bytes: u64,
}

impl Layout {
    fn of(weights: &[&Weight]) -> Result<Layout> {
        let (mut tensors, mut padding, mut at) = (vec![], vec![], 0);
        for (i, weight) in weights.iter().enumerate() {
            let (name, info) = placed(weight, at)?;
            let end = info.data_offsets.1;
            let zeros = end.next_multiple_of(ALIGNMENT) - end;
            tensors.push((name, info));
            padding.push(zeros);
            at = end + zeros;
            if zeros > 0 {
                let info = TensorInfo { dtype: Dtype::U8, shape: vec![zeros], data_offsets: (end, at) };
                tensors.push((format!("{PADDING}{i}"), info));
            }
        }
        let metadata = Metadata::new(None, tensors).map_err(|e| Error::Recipe(format!("weights: {e}")))?;
        Ok(Layout { header: encode(&metadata)?, padding, data_bytes: at as u64 })
    }
}

/// A weight whose bytes begin at `at`.
fn placed(weight: &Weight, at: usize) -> Result<(String, TensorInfo)> {
    let too_large = || Error::Recipe(format!("weight {} is larger than memory can be", weight.name));
    let ty = TensorType { dtype: weight.dtype, shape: weight.shape.clone() };
    let (dtype, shape) = header::stored(&ty).ok_or_else(too_large)?;
    let bytes = weight.bytes().and_then(|n| usize::try_from(n).ok());
    let end = bytes.and_then(|n| at.checked_add(n)).filter(|end| *end < usize::MAX / 2).ok_or_else(too_large)?;
    Ok((weight.name.clone(), TensorInfo { dtype, shape, data_offsets: (at, end) }))
}

/// Length and JSON, padded with spaces so that the data after it is aligned.
fn encode(metadata: &Metadata) -> Result<Vec<u8>> {
    let json = serde_json::to_vec(metadata).map_err(|source| Error::Json {
        file: "weights".into(),
        what: "safetensors header".into(),
        source,
    })?;
    let length = (8 + json.len()).next_multiple_of(ALIGNMENT) - 8;
    let mut header = (length as u64).to_le_bytes().to_vec();
    header.extend(&json);
    header.resize(8 + length, b' ');
    Ok(header)
}

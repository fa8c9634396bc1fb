//! Opening an artifact: mapped, every size and offset checked against the file before it is used.

use crate::{
    directory::{self, Entry, Problem},
    error::{Error, Result},
    header::{self, Header},
    manifest::{FORMAT, Manifest, Target, Weights},
    map,
    plan::{Plan, Weight},
    source::TensorType,
    write::ALIGNMENT,
};
use memmap2::Mmap;
use serde::{Deserialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
    path::Path,
    sync::Arc,
};

/// Name of the first entry.
pub(crate) const MANIFEST: &str = "manifest.json";
/// Largest manifest or plan read: thousands of launches take a few MiB.
const MAX_JSON: usize = 32 << 20;

/// An open artifact. What it hands out has been checked.
#[derive(Debug)]
pub struct Artifact {
    bytes: Bytes,
    manifest: Manifest,
    /// One for each target.
    plans: Vec<Plan>,
    /// Where embedded weights lie in the file.
    weights: HashMap<String, Range<usize>>,
}

/// The only field that every version of the manifest has.
#[derive(Deserialize)]
struct Format {
    format: String,
}

impl Artifact {
    /// Maps an artifact and checks all of it but the bytes of the weights (see [`Artifact::verify`]).
    ///
    /// The file must not be changed while it is mapped.
    ///
    /// # Errors
    /// Every [`Error`] but those of recipes and checkpoints.
    pub fn open(path: &Path) -> Result<Artifact> {
        Artifact::new(path.display().to_string(), map::file(path)?)
    }

    /// Opens an artifact that is in memory (copied to page-aligned memory); `name` stands for the file in messages.
    ///
    /// # Errors
    /// As [`Artifact::open`].
    pub fn from_bytes(name: &str, bytes: &[u8]) -> Result<Artifact> {
        let mut copy = map::anonymous(bytes.len())?;
        copy[..bytes.len()].copy_from_slice(bytes);
        let failed = |source| Error::Io { action: "protect", path: name.into(), source };
        Artifact::with_length(name.to_string(), copy.make_read_only().map_err(failed)?, bytes.len())
    }

    fn new(file: String, map: Mmap) -> Result<Artifact> {
        let length = map.len();
        Artifact::with_length(file, map, length)
    }

    /// The first `length` bytes of a map.
    fn with_length(file: String, map: Mmap, length: usize) -> Result<Artifact> {
        let bytes = Bytes::read(file, map, length)?;
        let manifest = bytes.manifest()?;
        bytes.check_entries(&manifest)?;
        let plans = manifest.targets.iter().map(|target| bytes.plan(&manifest, target)).collect::<Result<Vec<_>>>()?;
        let weights = bytes.weights(&manifest, &plans)?;
        Ok(Artifact { bytes, manifest, plans, weights })
    }

    /// Reads every entry, weights too, and compares its CRC-32 with the one written.
    ///
    /// # Errors
    /// [`Error::Checksum`] names the first entry that differs.
    pub fn verify(&self) -> Result<()> {
        self.bytes.entries.iter().try_for_each(|entry| self.bytes.check_crc32(entry))
    }

    /// File that it was opened from, for messages.
    pub fn file(&self) -> &str {
        &self.bytes.file
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The target that runs on this machine: of its architecture, with all features had; of several the one that
    /// uses most features, of equals the first.
    ///
    /// # Errors
    /// [`Error::NoTarget`] names what each target needs and what the machine lacks.
    pub fn target(&self, has_feature: &dyn Fn(&str) -> bool) -> Result<&Target> {
        let arch = std::env::consts::ARCH;
        let lacks = |t: &Target| t.features.iter().filter(|f| !has_feature(f)).cloned().collect::<Vec<_>>();
        let fitting = self.manifest.targets.iter().rev().filter(|t| t.arch == arch && lacks(t).is_empty());
        fitting.max_by_key(|t| t.features.len()).ok_or_else(|| {
            let ours = self.manifest.targets.iter().filter(|t| t.arch == arch);
            let missing = ours.map(|t| format!("lacks {}", lacks(t).join(", ")));
            let machine =
                [format!("this machine is {arch}")].into_iter().chain(missing).collect::<Vec<_>>().join(" and ");
            Error::NoTarget {
                file: self.file().into(),
                targets: self.manifest.targets.iter().map(needs).collect(),
                machine,
            }
        })
    }

    /// The target of this name.
    ///
    /// # Errors
    /// [`Error::UnknownTarget`] lists those there are.
    pub fn target_named(&self, name: &str) -> Result<&Target> {
        let targets = &self.manifest.targets;
        targets.iter().find(|t| t.name == name).ok_or_else(|| Error::UnknownTarget {
            file: self.file().into(),
            name: name.into(),
            has: targets.iter().map(|t| t.name.clone()).collect(),
        })
    }

    /// The checked plan of one of its targets.
    ///
    /// # Errors
    /// [`Error::UnknownTarget`]: a target of another artifact.
    pub fn plan(&self, target: &Target) -> Result<&Plan> {
        let target = self.target_named(&target.name)?;
        let index = self.manifest.targets.iter().position(|t| t.name == target.name);
        index.and_then(|i| self.plans.get(i)).ok_or_else(|| self.bytes.missing(&target.plan, "the manifest"))
    }

    /// The object code of one of its targets.
    ///
    /// # Errors
    /// [`Error::MissingEntry`]: a target of another artifact.
    pub fn kernels(&self, target: &Target) -> Result<&[u8]> {
        self.entry(&target.kernels).ok_or_else(|| self.bytes.missing(&target.kernels, &target.name))
    }

    /// An entry's bytes, if there is one of this name.
    pub fn entry(&self, name: &str) -> Option<&[u8]> {
        self.bytes.entry(name)
    }

    /// Names and sizes of all entries, in file order.
    pub fn entries(&self) -> impl Iterator<Item = (&str, u64)> {
        self.bytes.entries.iter().map(|e| (e.name.as_str(), e.range.len() as u64))
    }

    /// Bytes of an embedded weight, 64-byte aligned, if there is one of this name.
    pub fn weight(&self, name: &str) -> Option<&[u8]> {
        self.bytes.map.get(self.weights.get(name)?.clone())
    }

    /// The mapped file.
    pub(crate) fn map(&self) -> Arc<Mmap> {
        self.bytes.map.clone()
    }

    /// Where an embedded weight lies in the mapped file, if it is the one asked for.
    pub(crate) fn place(&self, weight: &str) -> Option<Range<usize>> {
        self.weights.get(weight).cloned()
    }
}

fn needs(target: &Target) -> String {
    let Target { name, arch, features, .. } = target;
    let features = if features.is_empty() { String::new() } else { format!(" with {}", features.join(", ")) };
    format!("artifact was compiled for {name} ({arch}{features})")
}

/// The mapped file with its directory.
#[derive(Debug)]
struct Bytes {
    file: String,
    map: Arc<Mmap>,
    entries: Vec<Entry>,
    /// Index of each entry.
    names: BTreeMap<String, usize>,
}

impl Bytes {
    fn read(file: String, map: Mmap, length: usize) -> Result<Bytes> {
        let entries = directory::read(&map[..length]).map_err(|problem| match problem {
            Problem::NotZip(found) => Error::NotAnArtifact { file: file.clone(), found },
            Problem::Wrong(problem) => Error::Damaged { file: file.clone(), problem },
        })?;
        let names = entries.iter().enumerate().map(|(i, e)| (e.name.clone(), i)).collect();
        Ok(Bytes { file, map: Arc::new(map), entries, names })
    }

    fn entry(&self, name: &str) -> Option<&[u8]> {
        self.map.get(self.entries.get(*self.names.get(name)?)?.range.clone())
    }

    fn required(&self, name: &str, needed_by: &str) -> Result<&[u8]> {
        self.entry(name).ok_or_else(|| self.missing(name, needed_by))
    }

    fn missing(&self, name: &str, needed_by: &str) -> Error {
        Error::MissingEntry { file: self.file.clone(), entry: name.into(), needed_by: needed_by.into() }
    }

    fn damaged(&self, problem: String) -> Error {
        Error::Damaged { file: self.file.clone(), problem }
    }

    fn invalid(&self, entry: &str) -> impl Fn(String) -> Error {
        move |problem| Error::Invalid { file: self.file.clone(), entry: entry.into(), problem }
    }

    fn check_crc32(&self, entry: &Entry) -> Result<()> {
        let (found, expected) = (crc32fast::hash(&self.map[entry.range.clone()]), entry.crc32);
        if found == expected {
            return Ok(());
        }
        let (found, expected) = (format!("{found:08x}"), format!("{expected:08x}"));
        Err(Error::Checksum { file: self.file.clone(), entry: entry.name.clone(), sum: "CRC-32", found, expected })
    }

    fn json<T: DeserializeOwned>(&self, entry: &str, bytes: &[u8]) -> Result<T> {
        if bytes.len() > MAX_JSON {
            return Err(self.damaged(format!("entry {entry}: {} bytes, expected at most {MAX_JSON}", bytes.len())));
        }
        serde_json::from_slice(bytes).map_err(|source| Error::Json {
            file: self.file.clone(),
            what: format!("entry {entry}"),
            source,
        })
    }

    /// The manifest: first its sum, then its version, then the rest.
    fn manifest(&self) -> Result<Manifest> {
        let Some(first) = self.entries.first().filter(|e| e.name == MANIFEST) else {
            let found = self.entries.first().map_or("nothing", |e| &e.name);
            let found = format!("a ZIP file that begins with {found}");
            return Err(Error::NotAnArtifact { file: self.file.clone(), found });
        };
        self.check_crc32(first)?;
        let bytes = &self.map[first.range.clone()];
        let Format { format } = self.json(MANIFEST, bytes)?;
        if !readable(&format) {
            return Err(Error::Version { file: self.file.clone(), found: format, expected: FORMAT });
        }
        let manifest: Manifest = self.json(MANIFEST, bytes)?;
        manifest.check().map_err(self.invalid(MANIFEST))?;
        Ok(manifest)
    }

    /// Checks that the manifest names exactly the entries there are, and the sums of all but the weights.
    fn check_entries(&self, manifest: &Manifest) -> Result<()> {
        for (name, expected) in &manifest.entries {
            let found = header::hex(&Sha256::digest(self.required(name, MANIFEST)?));
            if found != *expected {
                let (file, entry, expected) = (self.file.clone(), name.clone(), expected.clone());
                return Err(Error::Checksum { file, entry, sum: "SHA-256", found, expected });
            }
        }
        let embedded = |name: &String| manifest.weights.embedded().contains(name);
        let known = |name: &String| name == MANIFEST || manifest.entries.contains_key(name) || embedded(name);
        match self.names.keys().find(|name| !known(name)) {
            Some(name) => Err(self.damaged(format!("entry {name}, which the manifest does not name"))),
            None => Ok(()),
        }
    }

    fn plan(&self, manifest: &Manifest, target: &Target) -> Result<Plan> {
        let code_bytes = self.required(&target.kernels, &target.name)?.len() as u64;
        for name in [&target.kernels, &target.plan] {
            if !manifest.entries.contains_key(name) {
                return Err(self.damaged(format!("no SHA-256 of entry {name} of target {}", target.name)));
            }
        }
        let plan: Plan = self.json(&target.plan, self.required(&target.plan, &target.name)?)?;
        plan.check(manifest).map_err(self.invalid(&target.plan))?;
        plan.check_code(target, code_bytes).map_err(self.invalid(&target.plan))?;
        Ok(plan)
    }

    /// Places of the weights that the plans read, where they are embedded.
    fn weights(&self, manifest: &Manifest, plans: &[Plan]) -> Result<HashMap<String, Range<usize>>> {
        let Weights::Embed { files } = &manifest.weights else { return Ok(HashMap::new()) };
        let headers = files.iter().map(|file| self.header(file)).collect::<Result<Vec<_>>>()?;
        let mut places = HashMap::new();
        for weight in plans.iter().flat_map(|plan| &plan.weights) {
            places.insert(weight.name.clone(), self.place(&headers, weight)?);
        }
        Ok(places)
    }

    /// Header of a weights entry, and where the entry begins.
    fn header(&self, entry: &str) -> Result<(usize, Header)> {
        let bytes = self.required(entry, MANIFEST)?;
        let header = Header::read(&format!("{}: entry {entry}", self.file), bytes)?;
        let start = self.names.get(entry).and_then(|i| self.entries.get(*i)).map_or(0, |e| e.range.start);
        Ok((start, header))
    }

    fn place(&self, headers: &[(usize, Header)], weight: &Weight) -> Result<Range<usize>> {
        let at = headers.iter().find_map(|(start, header)| Some((start, header, header.range(&weight.name)?)));
        let missing = || Error::MissingTensor { place: self.file.clone(), tensor: weight.name.clone() };
        let (start, header, range) = at.ok_or_else(missing)?;
        let expected = TensorType { dtype: weight.dtype, shape: weight.shape.clone() };
        if !header.holds(&weight.name, &expected) {
            let found = header.describe(&weight.name);
            let (place, tensor) = (self.file.clone(), weight.name.clone());
            return Err(Error::WrongTensor { place, tensor, found, expected: expected.to_string() });
        }
        let range = start + range.start..start + range.end;
        if range.start % ALIGNMENT != 0 {
            let problem = format!("weight {} at byte {}, expected a multiple of {ALIGNMENT}", weight.name, range.start);
            return Err(self.damaged(problem));
        }
        Ok(range)
    }
}

/// Same major, older or equal minor.
fn readable(format: &str) -> bool {
    let parse = |version: &str| -> Option<(u32, u32)> {
        let (major, minor) = version.split_once('.')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    };
    matches!((parse(format), parse(FORMAT)), (Some(found), Some(ours)) if found.0 == ours.0 && found.1 <= ours.1)
}

//! `OUTPUT.partial`: finished lines of a run in the order in which they finished, until all are there.
//!
//! Invariants:
//! - a line is appended with one write when its request finishes, so whatever ends the program later cannot take it;
//! - the first line is a header that says which run it is, and only that run continues it;
//! - OUTPUT appears at once and whole (written beside, synced, renamed), and only then does the partial file go.

use crate::error::Failure;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

/// Which run a partial file belongs to. Hashes are SHA-256, in hex.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// Version of this layout.
    pub rvllm_partial: u32,
    /// Number of requests.
    pub total: usize,
    /// Hash of the prompts as they were given.
    pub input: String,
    /// Hash of the artifact and of the choice of weights.
    pub artifact: String,
    /// Hash of the requests that came out of it: tokens and sampling parameters.
    pub requests: String,
}

/// Version of the layout.
pub const VERSION: u32 = 1;

/// An open partial file.
pub struct Partial {
    output: PathBuf,
    path: PathBuf,
    file: File,
    /// Where each finished line lies: offset and length without its line feed.
    spans: BTreeMap<usize, (u64, usize)>,
    end: u64,
    total: usize,
    index_of: IndexOf,
}

/// Which request a finished line answers.
type IndexOf = Box<dyn Fn(&[u8]) -> Option<usize>>;

/// Only the key that says whose line it is.
#[derive(Deserialize)]
struct Index {
    index: usize,
}

impl Partial {
    /// Opens `OUTPUT.partial` for a run. With `resume` its finished lines count, and a torn last line is dropped.
    ///
    /// # Errors
    /// Another program writes it, it belongs to another run, or it is there and `resume` was not asked for.
    pub fn open(output: &Path, header: &Header, resume: bool) -> Result<Partial> {
        let index = |line: &[u8]| serde_json::from_slice::<Index>(line).ok().map(|l| l.index);
        Self::open_with(output, header, resume, Box::new(index))
    }

    /// The same for lines that say in another way which request they answer.
    ///
    /// # Errors
    /// Those of [`Partial::open`].
    pub fn open_with(output: &Path, header: &Header, resume: bool, index_of: IndexOf) -> Result<Partial> {
        // A link stays a link: what it points to is replaced.
        let output = fs::canonicalize(output).unwrap_or_else(|_| output.to_path_buf());
        let path = with_suffix(&output, ".partial");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        lock(&file, &path)?;
        let mut partial = Partial { output, path, file, spans: BTreeMap::new(), end: 0, total: header.total, index_of };
        let torn = partial.scan(header, resume)?;
        if torn {
            partial.file.set_len(partial.end).with_context(|| partial.cannot_write())?;
        }
        if partial.end == 0 {
            partial.append_bytes(&[serde_json::to_vec(header)?, b"\n".to_vec()].concat())?;
        }
        Ok(partial)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of finished lines.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether no line is finished.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Whether the line of a request is finished.
    pub fn has(&self, index: usize) -> bool {
        self.spans.contains_key(&index)
    }

    /// Appends a finished line.
    ///
    /// # Errors
    /// It cannot be written; what was there before stays whole.
    pub fn append(&mut self, index: usize, line: &str) -> Result<()> {
        let start = self.end;
        self.append_bytes(format!("{line}\n").as_bytes())?;
        self.spans.insert(index, (start, line.len()));
        Ok(())
    }

    /// Removes the file where it holds no finished line.
    pub fn abandon_empty(self) -> Result<()> {
        if self.is_empty() {
            fs::remove_file(&self.path).with_context(|| format!("cannot remove {}", self.path.display()))?;
        }
        Ok(())
    }

    /// Makes the finished lines survive a loss of power.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().with_context(|| self.cannot_write())
    }

    /// Writes OUTPUT in input order, and removes the partial file.
    ///
    /// # Errors
    /// It cannot be written; the partial file stays, and OUTPUT is what it was.
    pub fn finish(mut self) -> Result<()> {
        let sorted = with_suffix(&self.output, &format!(".{}.tmp", std::process::id()));
        let written = self.write_sorted(&sorted).and_then(|()| fs::rename(&sorted, &self.output));
        if let Err(error) = written {
            let _ = fs::remove_file(&sorted);
            let kept = format!("all {} answers are kept in {}", self.total, self.path.display());
            let failure = Failure::new(format!("cannot write {}: {error}; {kept}", self.output.display()));
            return Err(failure.help("make room, then run the same command with --resume").into());
        }
        sync_directory(&self.output);
        fs::remove_file(&self.path).with_context(|| format!("cannot remove {}", self.path.display()))
    }

    fn write_sorted(&mut self, to: &Path) -> io::Result<()> {
        let mut sorted = BufWriter::new(File::create_new(to)?);
        let mut line = vec![];
        for (start, length) in self.spans.values() {
            line.resize(length + 1, 0);
            self.file.seek(SeekFrom::Start(*start))?;
            self.file.read_exact(&mut line)?;
            sorted.write_all(&line)?;
        }
        sorted.into_inner().map_err(|e| e.into_error())?.sync_all()
    }

    /// Reads what is there. Returns whether something torn follows `end`.
    fn scan(&mut self, header: &Header, resume: bool) -> Result<bool> {
        let cannot_read = format!("cannot read {}", self.path.display());
        let mut reader = BufReader::new(self.file.try_clone().context(cannot_read.clone())?);
        let mut line = vec![];
        let mut number = 0;
        loop {
            line.clear();
            let read = reader.read_until(b'\n', &mut line).context(cannot_read.clone())?;
            if line.pop_if(|b| *b == b'\n').is_none() {
                if number == 0 && !may_be_header(&line) {
                    return Err(foreign(&self.path).into());
                }
                return self.may_continue(resume).map(|()| read > 0);
            }
            number += 1;
            match number {
                1 => check_header(&self.path, &line, header)?,
                _ => self.note_line(&line, number)?,
            }
            self.end += read as u64;
        }
    }

    fn may_continue(&self, resume: bool) -> Result<()> {
        if resume || self.spans.is_empty() {
            return Ok(());
        }
        let (path, n) = (self.path.display(), self.spans.len());
        let failure = Failure::usage(format!("{path} holds {n} finished answers of an interrupted run"));
        Err(failure.help("add --resume to continue it, or remove the file to start anew").into())
    }

    fn note_line(&mut self, line: &[u8], number: usize) -> Result<()> {
        let index = (self.index_of)(line).filter(|i| *i < self.total);
        let Some(index) = index else {
            let failure = Failure::new(format!("{}: line {number} is damaged", self.path.display()));
            return Err(failure.help("remove the line to have it computed again").into());
        };
        self.spans.entry(index).or_insert((self.end, line.len()));
        Ok(())
    }

    fn append_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.file.seek(SeekFrom::Start(self.end)).and_then(|_| self.file.write_all(bytes));
        if let Err(error) = written {
            let _ = self.file.set_len(self.end);
            let failure =
                Failure::new(format!("{}: {error}; {} finished answers are kept", self.cannot_write(), self.len()));
            return Err(failure.help("make room, then run the same command with --resume").into());
        }
        self.end += bytes.len() as u64;
        Ok(())
    }

    fn cannot_write(&self) -> String {
        format!("cannot write {}", self.path.display())
    }
}

fn check_header(path: &Path, line: &[u8], expected: &Header) -> Result<()> {
    let other = |what: &str| Failure::usage(format!("{} belongs to another run: {what}", path.display()));
    let found: Header = serde_json::from_slice(line).map_err(|_| foreign(path))?;
    let Header { rvllm_partial, total, input, artifact, requests } = &found;
    for (same, what) in [
        (*rvllm_partial == expected.rvllm_partial, "it has another layout"),
        (*total == expected.total && *input == expected.input, "the prompts have changed"),
        (*artifact == expected.artifact, "the artifact or its weights have changed"),
        (*requests == expected.requests, "the sampling parameters or the chat template have changed"),
    ] {
        if !same {
            return Err(other(what).help("remove it to start anew").into());
        }
    }
    Ok(())
}

/// Whether bytes without a line feed are the beginning of a header.
fn may_be_header(line: &[u8]) -> bool {
    let start = b"{\"rvllm_partial\":";
    line.starts_with(start) || start.starts_with(line)
}

fn foreign(path: &Path) -> Failure {
    Failure::usage(format!("{} was not written by rvllm generate", path.display())).help("choose another --output")
}

fn lock(file: &File, path: &Path) -> Result<()> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(Failure::new(format!("another rvllm is writing {}", path.display()))
            .help("wait for it, or end it")
            .into()),
        // A file system without locks: two runs into one file are then the caller's to avoid.
        Err(TryLockError::Error(_)) => Ok(()),
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// The rename itself survives a loss of power only when its directory is synced; not all file systems can.
fn sync_directory(path: &Path) {
    if let Some(directory) = path.parent().and_then(|d| File::open(d).ok()) {
        let _ = directory.sync_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error;

    fn header(input: &str) -> Header {
        let hash = |s: &str| s.to_string();
        Header { rvllm_partial: VERSION, total: 4, input: hash(input), artifact: hash("a"), requests: hash("r") }
    }

    fn line(index: usize) -> String {
        format!("{{\"index\":{index},\"text\":\"…\"}}")
    }

    fn message(result: Result<Partial>) -> String {
        error::message(&result.err().expect("refused"))
    }

    #[test]
    fn lines_are_put_in_order_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("out.jsonl");
        let mut partial = Partial::open(&output, &header("i"), false).unwrap();
        for index in [2, 0, 3, 1] {
            partial.append(index, &line(index)).unwrap();
        }
        partial.finish().unwrap();
        let expected: String = (0..4).map(|i| line(i) + "\n").collect();
        assert_eq!(fs::read_to_string(&output).unwrap(), expected);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_torn_line_is_dropped_and_the_rest_counts() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("out.jsonl");
        let mut partial = Partial::open(&output, &header("i"), false).unwrap();
        partial.append(2, &line(2)).unwrap();
        partial.append(1, &line(1)).unwrap();
        drop(partial);
        let path = dir.path().join("out.jsonl.partial");
        let whole = fs::read(&path).unwrap();
        let second = whole.len() - line(1).len() - 1;
        for cut in second..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let mut partial = Partial::open(&output, &header("i"), true).unwrap();
            assert!(partial.has(2) && !partial.has(1), "cut at {cut}");
            partial.append(1, &line(1)).unwrap();
            drop(partial);
            assert_eq!(fs::read(&path).unwrap(), whole);
        }
    }

    #[test]
    fn a_run_that_died_in_its_header_starts_anew() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("out.jsonl");
        fs::write(dir.path().join("out.jsonl.partial"), "{\"rvllm_par").unwrap();
        assert!(Partial::open(&output, &header("i"), false).unwrap().is_empty());
        assert!(Partial::open(&output, &header("i"), true).unwrap().is_empty());
    }

    #[test]
    fn another_run_is_told_by_what_changed() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("out.jsonl");
        drop(Partial::open(&output, &header("i"), false).unwrap());
        let changed = message(Partial::open(&output, &header("other"), true));
        assert!(changed.ends_with("belongs to another run: the prompts have changed"));
        let changed = message(Partial::open(&output, &Header { artifact: "b".into(), ..header("i") }, true));
        assert!(changed.ends_with("the artifact or its weights have changed"));
        let changed = message(Partial::open(&output, &Header { requests: "b".into(), ..header("i") }, true));
        assert!(changed.ends_with("the sampling parameters or the chat template have changed"));
    }

    #[test]
    fn finished_lines_are_never_overwritten_unasked() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("out.jsonl");
        let mut partial = Partial::open(&output, &header("i"), false).unwrap();
        partial.append(0, &line(0)).unwrap();
        assert!(message(Partial::open(&output, &header("i"), true)).starts_with("another rvllm is writing"));
        drop(partial);
        let refused = message(Partial::open(&output, &header("i"), false));
        assert!(refused.ends_with("holds 1 finished answers of an interrupted run"));
        for foreign in ["notes of mine\n", "notes of mine"] {
            fs::write(dir.path().join("out.jsonl.partial"), foreign).unwrap();
            let refused = message(Partial::open(&output, &header("i"), true));
            assert!(refused.ends_with("was not written by rvllm generate"));
        }
    }

    #[test]
    fn a_damaged_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("out.jsonl");
        let head = serde_json::to_string(&header("i")).unwrap();
        for damage in ["{\"index\":0,", "{\"index\":4}", "\u{0}\u{0}"] {
            fs::write(dir.path().join("out.jsonl.partial"), format!("{head}\n{damage}\n")).unwrap();
            assert!(message(Partial::open(&output, &header("i"), true)).ends_with("line 2 is damaged"), "{damage}");
        }
    }
}

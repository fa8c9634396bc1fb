//! Files that may change while the server runs: keys and certificates.
//!
//! Invariants: a file counts as changed once, when its time, length or inode is another; looking costs a system call.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// How often files are looked at.
pub const EVERY: Duration = Duration::from_secs(1);

/// Seconds, nanoseconds, length, inode; `None` for a file that is not there.
type Stamp = Option<(i64, i64, u64, u64)>;

/// What files were like when they were last looked at.
#[derive(Debug)]
pub struct Stamps {
    paths: Vec<PathBuf>,
    seen: Mutex<Vec<Stamp>>,
}

impl Stamps {
    /// Looks at these files.
    pub fn of(paths: Vec<PathBuf>) -> Stamps {
        let seen = Mutex::new(stamps(&paths));
        Stamps { paths, seen }
    }

    /// Whether one has changed since this was last asked.
    pub fn changed(&self) -> bool {
        let now = stamps(&self.paths);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *seen, now) != *seen
    }
}

fn stamps(paths: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |m: fs::Metadata| (m.mtime(), m.mtime_nsec(), m.len(), m.ino());
    paths.iter().map(|path| fs::metadata(path).ok().map(stamp)).collect()
}

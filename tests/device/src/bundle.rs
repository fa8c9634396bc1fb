//! The file of kernel cases: an index as JSON, then the bytes that it speaks of.
//!
//! Invariants: every range of an index lies in the file's bytes ([`Bundle::read`] checks it).

use anyhow::{Context, Result, ensure};
use rvllm_artifact::plan::{DType, Kernel};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    ops::Range,
    path::Path,
};

/// What a bundle holds, and where.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Index {
    /// Architecture of the code: `sm_90a`.
    pub architecture: String,
    /// Launches, in order.
    pub cases: Vec<Case>,
}

/// One launch of one kernel.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Case {
    /// What it is, for people.
    pub name: String,
    /// The kernel; its code's offset counts from the bundle's bytes.
    pub kernel: Kernel,
    /// Programs of the grid.
    pub programs: u64,
    /// Values of T, R, L, Q, M, P.
    pub symbols: [u32; 6],
    /// Memory of each parameter before the launch.
    pub tensors: Vec<Range<usize>>,
    /// Which tensors are written, and what is expected there.
    pub outputs: Vec<Expected>,
    /// How far a result may be off: relative to 1 + |expected|.
    pub tolerance: f32,
    /// Cases of one group write the same bits.
    pub group: Option<String>,
}

/// What a tensor holds after the launch.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Expected {
    /// Which parameter.
    pub tensor: usize,
    /// Element type in memory.
    pub dtype: DType,
    /// An f32 for each element in memory, in order; [`SKIPPED`] where there is nothing to compare.
    pub values: Range<usize>,
}

/// A NaN that stands for an element which belongs to no tensor: padding, columns of another view.
pub const SKIPPED: u32 = 0x7fc0_5eed;

/// An index with its bytes.
#[derive(Debug, Default)]
pub struct Bundle {
    /// What there is.
    pub index: Index,
    /// What it speaks of.
    pub bytes: Vec<u8>,
    /// Where bytes pushed before begin, by their hash.
    known: HashMap<u64, Vec<usize>>,
}

impl Bundle {
    /// Appends bytes, aligned for any use, unless they are there already; where they are.
    pub fn push(&mut self, bytes: &[u8]) -> Range<usize> {
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        let starts = self.known.entry(hasher.finish()).or_default();
        let there = starts.iter().find(|start| self.bytes[**start..].starts_with(bytes));
        if let Some(start) = there {
            return *start..*start + bytes.len();
        }
        self.bytes.resize(self.bytes.len().next_multiple_of(64), 0);
        let start = self.bytes.len();
        starts.push(start);
        self.bytes.extend_from_slice(bytes);
        start..self.bytes.len()
    }

    /// Writes the file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let index = serde_json::to_vec(&self.index)?;
        let length = (index.len() as u64).to_le_bytes();
        fs::write(path, [&length[..], &index, &self.bytes].concat())
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Reads a file.
    ///
    /// # Errors
    /// It is not one, or speaks of bytes that it does not have.
    pub fn read(path: &Path) -> Result<Bundle> {
        let file = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let (length, rest) = file.split_first_chunk::<8>().context("no length of the index")?;
        let (index, bytes) =
            rest.split_at_checked(u64::from_le_bytes(*length) as usize).context("the index is cut off")?;
        let index: Index = serde_json::from_slice(index).context("the index is none")?;
        let inside = |range: &Range<usize>| bytes.get(range.clone()).is_some();
        for case in &index.cases {
            let fits = case.tensors.iter().chain(case.outputs.iter().map(|o| &o.values)).all(inside);
            let known = case.outputs.iter().all(|o| o.tensor < case.tensors.len());
            ensure!(fits && known, "case {} speaks of bytes that are not there", case.name);
        }
        Ok(Bundle { index, bytes: bytes.to_vec(), ..Bundle::default() })
    }

    /// Some of its bytes as numbers.
    pub fn floats(&self, range: &Range<usize>) -> Vec<f32> {
        let bytes = self.bytes.get(range.clone()).unwrap_or_default();
        bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }
}

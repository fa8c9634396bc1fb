//! GGUF: metadata and tensors in one file, as llama.cpp writes and quantises them.
//! Specification: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.
//!
//! | module | what |
//! |---|---|
//! | [`metadata`] | the header's keys and values |
//! | [`blocks`] | blocks of quantised numbers, and what they stand for |
//! | [`names`] | the file's names of tensors, and Hugging Face's |
//! | `stored` | parts of blocks that kernels multiply with as they are |
//!
//! Invariants: a header that was read lies within its file; every tensor lies within its data and is whole blocks; a
//! tensor is given out under Hugging Face's name, in Hugging Face's order of rows, as f32, f16 or bf16.

pub mod blocks;
pub mod metadata;
pub mod names;
mod stored;

use crate::{
    error::{Error, Result},
    plan::DType,
    source::TensorType,
};
use blocks::Encoding;
use metadata::{Metadata, Reader};
use std::{borrow::Cow, collections::BTreeMap, ops::Range};

/// First bytes of a file.
pub const MAGIC: [u8; 4] = *b"GGUF";
/// Versions that are read: their headers are alike.
const VERSIONS: std::ops::RangeInclusive<u32> = 2..=3;
/// Alignment of tensors where the file names none.
const ALIGNMENT: u64 = 32;
/// Most dimensions of a tensor.
const MAX_DIMS: u32 = 4;
/// Fewest bytes of a tensor's entry: what the file's size bounds their number by.
const LEAST_ENTRY: u64 = 24;

/// The header of a file.
#[derive(Debug)]
pub struct Gguf {
    /// Its keys and values.
    pub metadata: Metadata,
    tensors: BTreeMap<String, Tensor>,
    /// Where the tensors' bytes begin.
    data: usize,
}

#[derive(Debug)]
struct Tensor {
    encoding: Encoding,
    /// Sizes, outermost first.
    shape: Vec<u64>,
    /// In the file.
    range: Range<usize>,
    /// Rows of a head whose two halves the file interleaves; 0 where rows are in order.
    interleaved: u64,
}

impl Gguf {
    /// Reads the header of a whole file; `place` stands for it in messages.
    ///
    /// # Errors
    /// It is no such file, of another version, damaged, or has tensors in an encoding that is not known.
    pub fn read(place: &str, file: &[u8]) -> Result<Gguf> {
        let mut reader = Reader::new(place, file);
        if reader.take(4)? != MAGIC {
            return Err(reader.damaged("it does not begin with GGUF"));
        }
        let version = reader.u32()?;
        if !VERSIONS.contains(&version) {
            return Err(reader.damaged(format!("GGUF version {version}, expected 2 or 3")));
        }
        let (tensors, keys) = (reader.u64()?, reader.u64()?);
        let metadata = Metadata::read(&mut reader, keys)?;
        if tensors > file.len() as u64 / LEAST_ENTRY {
            return Err(reader.damaged(format!("{tensors} tensors in {} bytes", file.len())));
        }
        let entries = (0..tensors).map(|_| Entry::read(&mut reader)).collect::<Result<Vec<_>>>()?;
        let alignment = metadata.u64("general.alignment").unwrap_or(ALIGNMENT);
        if !alignment.is_power_of_two() || alignment > 1 << 20 {
            return Err(reader.damaged(format!("an alignment of {alignment}, expected a power of two")));
        }
        let data = (reader.at() as u64).next_multiple_of(alignment) as usize;
        let mut gguf = Gguf { metadata, tensors: BTreeMap::new(), data };
        entries.into_iter().try_for_each(|entry| gguf.add(&reader, entry))?;
        Ok(gguf)
    }

    fn add(&mut self, reader: &Reader<'_>, entry: Entry) -> Result<()> {
        let Entry { name, shape, encoding, offset } = entry;
        let bytes = encoding.bytes(&shape).ok_or_else(|| {
            reader.damaged(format!("tensor {name} of shape {shape:?}, which is no number of {encoding} blocks"))
        })?;
        let start = (self.data as u64).checked_add(offset);
        let end = start.and_then(|s| s.checked_add(bytes)).filter(|end| *end <= reader.len() as u64);
        let (Some(start), Some(end)) = (start, end) else {
            let room = reader.len().saturating_sub(self.data);
            return Err(
                reader.damaged(format!("tensor {name} of {bytes} bytes at {offset}, in {room} bytes of tensors"))
            );
        };
        let interleaved = names::interleaved(&self.metadata, &name);
        let tensor = Tensor { encoding, shape, range: start as usize..end as usize, interleaved };
        let name = names::of_hugging_face(&name);
        match self.tensors.insert(name.clone(), tensor) {
            None => Ok(()),
            Some(_) => Err(reader.damaged(format!("tensor {name} twice"))),
        }
    }

    /// Names of all tensors, sorted: Hugging Face's where the tensor has one.
    pub fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    /// Type and shape under which a tensor is given out, or a part of one.
    pub fn tensor(&self, name: &str) -> Option<TensorType> {
        let Some(t) = self.tensors.get(name) else {
            return self.part(name).and_then(|(tensor, part)| tensor.part_type(part));
        };
        Some(TensorType { dtype: t.encoding.dtype(), shape: t.shape.clone() })
    }

    /// How a tensor is stored.
    pub fn encoding(&self, name: &str) -> Option<Encoding> {
        Some(self.tensors.get(name)?.encoding)
    }

    /// Length of everything before the tensors' bytes.
    pub fn header_bytes(&self) -> usize {
        self.data
    }

    /// Bytes `range` of a tensor as it is given out, or of a part of one; `None` where there is no such range.
    pub fn bytes<'a>(&self, file: &'a [u8], name: &str, range: Range<u64>) -> Option<Cow<'a, [u8]>> {
        let Some(tensor) = self.tensors.get(name) else {
            let (tensor, part) = self.part(name)?;
            return tensor.part_bytes(part, file.get(tensor.range.clone())?, range).map(Cow::Owned);
        };
        let stored = file.get(tensor.range.clone())?;
        match (tensor.encoding.is_plain(), tensor.interleaved) {
            (true, 0) => stored.get(range.start as usize..range.end as usize).map(Cow::Borrowed),
            (_, 0) => tensor.encoding.decode(stored, range).map(Cow::Owned),
            _ => tensor.rows_in_order(stored, range).map(Cow::Owned),
        }
    }
}

impl Tensor {
    /// A range of a tensor whose heads' halves are interleaved: row `j * half + i` of a head is the file's `2 i + j`.
    fn rows_in_order(&self, stored: &[u8], range: Range<u64>) -> Option<Vec<u8>> {
        let (rows, columns) = (*self.shape.first()?, self.shape.iter().skip(1).product::<u64>());
        let row_bytes = columns.checked_mul(self.encoding.dtype().bits() / 8).filter(|n| *n > 0)?;
        let (first, last) = (range.start / row_bytes, range.end.div_ceil(row_bytes).min(rows));
        let mut bytes = Vec::with_capacity((range.end - range.start) as usize);
        for row in first..last {
            let at = self.row_of(row) * row_bytes;
            let begin = range.start.saturating_sub(row * row_bytes);
            let end = (range.end - row * row_bytes).min(row_bytes);
            bytes.extend(self.encoding.decode(stored, at + begin..at + end)?);
        }
        Some(bytes)
    }

    fn row_of(&self, row: u64) -> u64 {
        let (head, within, half) = (row / self.interleaved, row % self.interleaved, self.interleaved / 2);
        head * self.interleaved + within % half * 2 + within / half
    }
}

/// A tensor as the header lists it.
struct Entry {
    name: String,
    shape: Vec<u64>,
    encoding: Encoding,
    offset: u64,
}

impl Entry {
    fn read(reader: &mut Reader<'_>) -> Result<Entry> {
        let name = reader.text()?;
        let dims = reader.u32()?;
        if dims > MAX_DIMS {
            return Err(reader.damaged(format!("tensor {name} of {dims} dimensions, expected at most {MAX_DIMS}")));
        }
        let mut shape = (0..dims).map(|_| reader.u64()).collect::<Result<Vec<_>>>()?;
        // The file names the fastest dimension first.
        shape.reverse();
        let (number, offset) = (reader.u32()?, reader.u64()?);
        let encoding = Encoding::of(number).ok_or_else(|| Error::UnknownDType {
            place: reader.place().to_string(),
            tensor: name.clone(),
            found: blocks::name_of(number),
        })?;
        Ok(Entry { name, shape, encoding, offset })
    }
}

/// The type in which weights of such a file are best computed: f32 where all its matrices are.
pub fn preferred(gguf: &Gguf) -> DType {
    let matrices = gguf.tensors.values().filter(|t| t.shape.len() > 1);
    let exact = matrices.clone().count() > 0 && matrices.clone().all(|t| t.encoding == Encoding::F32);
    if exact { DType::F32 } else { DType::Bf16 }
}

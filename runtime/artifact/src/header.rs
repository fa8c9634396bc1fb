//! The header of a safetensors file: 8 bytes of length, then JSON, then the tensors' bytes without holes.
//!
//! A header that was read lies within its file, names each tensor once, and its tensors cover the data exactly.

use crate::{
    error::{Error, Result},
    plan::DType,
    source::TensorType,
};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde::{Deserialize, Deserializer, de};
use sha2::{Digest, Sha256};
use std::{collections::BTreeMap, fmt, ops::Range};

/// Largest header read: a checkpoint of a million tensors has less.
const MAX_HEADER: u64 = 64 << 20;

/// Names, types, shapes and places of a file's tensors.
#[derive(Debug)]
pub(crate) struct Header {
    metadata: Metadata,
    /// Where the tensors' bytes begin.
    data: usize,
}

impl Header {
    /// Reads the header of a whole safetensors file; `place` stands for it in messages.
    pub(crate) fn read(place: &str, file: &[u8]) -> Result<Header> {
        let damaged = |problem: String| Error::Damaged { file: place.into(), problem };
        let length = file.first_chunk::<8>().map(|b| u64::from_le_bytes(*b));
        let length = length.ok_or_else(|| damaged(format!("{} bytes, expected a safetensors header", file.len())))?;
        let room = file.len() as u64 - 8;
        if length > room.min(MAX_HEADER) {
            let problem = format!(
                "a header of {length} bytes, expected at most {} of a file of {}",
                room.min(MAX_HEADER),
                file.len()
            );
            return Err(damaged(problem));
        }
        let data = 8 + length as usize;
        let entries: Entries = serde_json::from_slice(&file[8..data]).map_err(|source| Error::Json {
            file: place.into(),
            what: "safetensors header".into(),
            source,
        })?;
        let mut tensors: Vec<_> = entries.0.into_iter().collect();
        tensors.sort_by_key(|(_, info)| info.data_offsets);
        let metadata = Metadata::new(None, tensors).map_err(|e| damaged(format!("safetensors header: {e}")))?;
        match metadata.data_len() {
            n if n == file.len() - data => Ok(Header { metadata, data }),
            n => Err(damaged(format!("tensors of {n} bytes, but {} bytes after the header", file.len() - data))),
        }
    }

    /// Names of all tensors, in file order.
    pub(crate) fn names(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }

    /// Shape of a tensor and, where rvllm knows it, its type; `Err` with the type's name where not.
    pub(crate) fn tensor(&self, name: &str) -> Option<std::result::Result<TensorType, String>> {
        let info = self.metadata.info(name)?;
        Some(
            known(info.dtype)
                .ok_or_else(|| info.dtype.to_string())
                .map(|dtype| TensorType { dtype, shape: shape(info) }),
        )
    }

    /// Shape of a tensor.
    pub(crate) fn shape(&self, name: &str) -> Option<Vec<u64>> {
        self.metadata.info(name).map(shape)
    }

    /// Whether a tensor is stored as one of type `ty` is.
    pub(crate) fn holds(&self, name: &str, ty: &TensorType) -> bool {
        let found = self.metadata.info(name).map(|info| (info.dtype, info.shape.clone()));
        found.is_some() && found == stored(ty)
    }

    /// Shape and type of a tensor, for messages.
    pub(crate) fn describe(&self, name: &str) -> String {
        match self.tensor(name) {
            Some(Ok(ty)) => ty.to_string(),
            Some(Err(dtype)) => dtype,
            None => "missing".into(),
        }
    }

    /// Where a tensor's bytes lie in the file.
    pub(crate) fn range(&self, name: &str) -> Option<Range<usize>> {
        let (start, end) = self.metadata.info(name)?.data_offsets;
        Some(self.data + start..self.data + end)
    }

    /// SHA-256 of length and JSON of the header of `file`, in hexadecimal.
    pub(crate) fn sha256(&self, file: &[u8]) -> String {
        hex(&Sha256::digest(&file[..self.data]))
    }
}

/// Bytes in lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn shape(info: &TensorInfo) -> Vec<u64> {
    info.shape.iter().map(|d| *d as u64).collect()
}

fn known(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::Bf16,
        Dtype::F8_E4M3 => DType::F8e4m3,
        Dtype::F8_E5M2 => DType::F8e5m2,
        Dtype::I8 => DType::I8,
        Dtype::U8 => DType::U8,
        Dtype::I32 => DType::I32,
        _ => return None,
    })
}

/// How safetensors stores a weight: 4-bit elements, which it lacks, as their bytes.
pub(crate) fn stored(ty: &TensorType) -> Option<(Dtype, Vec<usize>)> {
    let dtype = match ty.dtype {
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::Bf16 => Dtype::BF16,
        DType::F8e4m3 => Dtype::F8_E4M3,
        DType::F8e5m2 => Dtype::F8_E5M2,
        DType::I8 => Dtype::I8,
        DType::U8 => Dtype::U8,
        DType::I32 => Dtype::I32,
        DType::U4 => return Some((Dtype::U8, vec![usize::try_from(ty.bytes()?).ok()?])),
    };
    Some((dtype, ty.shape.iter().map(|d| usize::try_from(*d).ok()).collect::<Option<_>>()?))
}

/// The header's object, each key once.
struct Entries(BTreeMap<String, TensorInfo>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Entries, D::Error> {
        deserializer.deserialize_map(EntriesVisitor)
    }
}

struct EntriesVisitor;

impl<'de> de::Visitor<'de> for EntriesVisitor {
    type Value = Entries;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> std::result::Result<Entries, A::Error> {
        let mut tensors = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<de::IgnoredAny>()?;
            } else if let Some(info) = tensors.insert(name.clone(), map.next_value()?) {
                let TensorInfo { shape, .. } = info;
                return Err(de::Error::custom(format!("tensor {name} appears twice, first of shape {shape:?}")));
            }
        }
        Ok(Entries(tensors))
    }
}

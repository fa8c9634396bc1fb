//! Parts of tensors in blocks that kernels can multiply with: values and scales, bit for bit.

use super::{Gguf, Tensor, blocks::Encoding};
use crate::{
    plan::DType,
    quantized::{Part, Stored},
    source::TensorType,
};
use std::ops::Range;

/// Columns of a block.
const BLOCK: u64 = 32;

impl Encoding {
    /// How blocks are given out that are a scale and signed values around zero; unsigned values lie around the middle of
    /// their range.
    fn stored(self) -> Option<Stored> {
        let values = match self {
            Encoding::Q4_0 => DType::U4,
            Encoding::Q8_0 => DType::U8,
            _ => return None,
        };
        Some(Stored { values, group: Some(BLOCK as u32), scales: DType::F16, zeros: false })
    }
}

impl Gguf {
    /// How the parts of a matrix are given out, where they are.
    pub fn stored(&self, name: &str) -> Option<Stored> {
        let tensor = self.tensors.get(name).filter(|t| t.shape.len() == 2)?;
        tensor.encoding.stored()
    }

    /// The matrix and the part that a name stands for, where it is no tensor's.
    pub(super) fn part(&self, name: &str) -> Option<(&Tensor, Part)> {
        let (base, part) = match name.rsplit_once('.')? {
            (base, "values") => (base, Part::Values),
            (base, "scales") => (base, Part::Scales),
            _ => return None,
        };
        self.stored(base)?;
        Some((self.tensors.get(base)?, part))
    }
}

impl Tensor {
    /// Type and shape of a part.
    pub(super) fn part_type(&self, part: Part) -> Option<TensorType> {
        let Stored { values, scales, .. } = self.encoding.stored()?;
        let [rows, columns] = self.shape[..] else { return None };
        Some(match part {
            Part::Values => TensorType { dtype: values, shape: vec![rows, columns] },
            _ => TensorType { dtype: scales, shape: vec![rows, columns / BLOCK] },
        })
    }

    /// Bytes `range` of a part, of a tensor's bytes; `None` where it ends before.
    pub(super) fn part_bytes(&self, part: Part, stored: &[u8], range: Range<u64>) -> Option<Vec<u8>> {
        let ty = self.part_type(part)?;
        let (rows, bytes) = (self.shape[0], ty.bytes()?);
        let row_bytes = (bytes / rows.max(1)).max(1);
        let wanted = range.start / row_bytes..range.end.div_ceil(row_bytes).min(rows);
        let mut made = Vec::with_capacity((wanted.end.saturating_sub(wanted.start) * row_bytes) as usize);
        let stored_row = (self.shape[1] / BLOCK * self.encoding.block_bytes()) as usize;
        for row in wanted.clone() {
            let row = if self.interleaved == 0 { row } else { self.row_of(row) } as usize;
            let blocks = stored.get(row * stored_row..(row + 1) * stored_row)?;
            blocks
                .chunks_exact(self.encoding.block_bytes() as usize)
                .for_each(|block| block_part(part, block, &mut made));
        }
        let skipped = (range.start - wanted.start * row_bytes) as usize;
        made.get(skipped..skipped + (range.end - range.start) as usize).map(<[u8]>::to_vec)
    }
}

/// A scale of 2 bytes, then 16 bytes of low and high nibbles, which are the two halves of the block, or 32 signed bytes.
fn block_part(part: Part, block: &[u8], out: &mut Vec<u8>) {
    let (scale, values) = block.split_at(2);
    match (part, values) {
        (Part::Scales, _) => out.extend(scale),
        (_, nibbles) if nibbles.len() == 16 => {
            let pairs = nibbles.as_chunks::<2>().0;
            out.extend(pairs.iter().map(|[a, b]| a & 15 | b << 4));
            out.extend(pairs.iter().map(|[a, b]| a >> 4 | b & 0xf0));
        }
        (_, bytes) => out.extend(bytes.iter().map(|q| q ^ 0x80)),
    }
}

//! Parts of tensors in blocks that kernels can multiply with: values, with scales and zeros of runs.
//!
//! Invariants:
//! - values are the file's, bit for bit, shifted so that the middle of their type's range stands for zero where runs have no
//!   offset; where a run's scale is too small for its zero to be a number, its values are 0;
//! - a scale of two factors is rounded once, to f16; the zero of a run with an offset is a fraction of it that gives the
//!   offset back, rounded to f16.

use super::{
    Gguf, Tensor,
    blocks::{Encoding, Run},
};
use crate::{
    plan::DType,
    quantized::{Part, Stored},
    source::TensorType,
};
use half::f16;
use std::ops::Range;

impl Encoding {
    /// How blocks are given out, where they are.
    fn stored(self) -> Option<Stored> {
        let values = match self {
            Encoding::F32 | Encoding::F16 | Encoding::Bf16 => return None,
            Encoding::Q4_0 | Encoding::Q4_1 | Encoding::Q4K => DType::U4,
            Encoding::Q5_0 | Encoding::Q5_1 | Encoding::Q5K | Encoding::Q6K | Encoding::Q8_0 => DType::U8,
        };
        let zeros = matches!(self, Encoding::Q4_1 | Encoding::Q5_1 | Encoding::Q4K | Encoding::Q5K);
        Some(Stored { values, group: Some(self.run() as u32), scales: DType::F16, zeros })
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
            (base, "zeros") => (base, Part::Zeros),
            _ => return None,
        };
        let stored = self.stored(base)?;
        (part != Part::Zeros || stored.zeros).then_some((self.tensors.get(base)?, part))
    }
}

impl Tensor {
    /// Type and shape of a part.
    pub(super) fn part_type(&self, part: Part) -> Option<TensorType> {
        let Stored { values, scales, .. } = self.encoding.stored()?;
        let [rows, columns] = self.shape[..] else { return None };
        let runs = vec![rows, columns / self.encoding.run() as u64];
        Some(match part {
            Part::Values => TensorType { dtype: values, shape: vec![rows, columns] },
            Part::Zeros => TensorType { dtype: DType::F16, shape: runs },
            _ => TensorType { dtype: scales, shape: runs },
        })
    }

    /// Bytes `range` of a part, of a tensor's bytes; `None` where it ends before.
    pub(super) fn part_bytes(&self, part: Part, stored: &[u8], range: Range<u64>) -> Option<Vec<u8>> {
        let ty = self.part_type(part)?;
        let (rows, bytes) = (self.shape[0], ty.bytes()?);
        let row_bytes = (bytes / rows.max(1)).max(1);
        let wanted = range.start / row_bytes..range.end.div_ceil(row_bytes).min(rows);
        let mut made = Vec::with_capacity((wanted.end.saturating_sub(wanted.start) * row_bytes) as usize);
        let stored_row = (self.shape[1] / self.encoding.block() * self.encoding.block_bytes()) as usize;
        for row in wanted.clone() {
            let row = if self.interleaved == 0 { row } else { self.row_of(row) } as usize;
            let blocks = stored.get(row * stored_row..(row + 1) * stored_row)?;
            let blocks = blocks.chunks_exact(self.encoding.block_bytes() as usize);
            blocks.for_each(|block| block_part(self.encoding, part, block, &mut made));
        }
        let skipped = (range.start - wanted.start * row_bytes) as usize;
        made.get(skipped..skipped + (range.end - range.start) as usize).map(<[u8]>::to_vec)
    }
}

/// A part of a block of an encoding that is given out.
fn block_part(encoding: Encoding, part: Part, block: &[u8], out: &mut Vec<u8>) {
    let Some(Stored { values: dtype, zeros, .. }) = encoding.stored() else { return };
    let apart = encoding.take_apart(block);
    let shift = if zeros { 0 } else { (1u8 << (dtype.bits() - 1)) - encoding.middle() };
    let values = &apart.values[..encoding.block() as usize];
    for (run, values) in apart.runs.iter().zip(values.chunks_exact(encoding.run())) {
        let Made { scale, zero, constant } = Made::of(*run);
        let value = |q: u8| if constant { 0 } else { q + shift };
        match part {
            Part::Scales => out.extend(scale.to_le_bytes()),
            Part::Zeros => out.extend(zero.to_le_bytes()),
            _ if dtype == DType::U4 => out.extend(values.as_chunks().0.iter().map(|[a, b]| value(*a) | value(*b) << 4)),
            _ => out.extend(values.iter().map(|q| value(*q))),
        }
    }
}

/// What the numbers of a run are made with: `(value - zero) * scale`.
struct Made {
    scale: f16,
    zero: f16,
    /// Whether all of them are one number, which value 0 stands for.
    constant: bool,
}

impl Made {
    fn of(run: Run) -> Made {
        let scale = f16::from_f32(run.scale);
        if run.offset == 0.0 {
            return Made { scale, zero: f16::ZERO, constant: false };
        }
        let zero = f16::from_f32(-run.offset / scale.to_f32());
        match zero.is_finite() {
            true => Made { scale, zero, constant: false },
            false => Made { scale: f16::from_f32(run.offset), zero: f16::NEG_ONE, constant: true },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_without_a_scale_is_its_offset() {
        let offset = f16::from_f32(-0.75);
        for scale in [0.0, 1e-7] {
            let mut block = vec![];
            block.extend(f16::from_f32(scale).to_le_bytes());
            block.extend(offset.to_le_bytes());
            block.extend([0x5a; 16]);
            let part = |part| {
                let mut made = vec![];
                block_part(Encoding::Q4_1, part, &block, &mut made);
                made
            };
            assert_eq!(part(Part::Values), [0; 16]);
            let [scale, zero] =
                [Part::Scales, Part::Zeros].map(|p| f16::from_le_bytes(part(p).try_into().unwrap()).to_f32());
            assert_eq!((0.0 - zero) * scale, offset.to_f32());
        }
    }
}

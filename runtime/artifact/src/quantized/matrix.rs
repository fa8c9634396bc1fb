//! One quantised matrix, read from the tensors of a checkpoint.
//!
//! Invariants: a matrix that was made has all its tensors, of the sizes that its shape asks for; rows are read one by one,
//! so that any range of them takes memory in proportion.

use super::{LARGEST_GROUP, Part, Stored, fields::Packing, group_given};
use crate::{convert::e4m3, plan::DType, source::TensorType};
use half::{bf16, f16};
use std::ops::Range;

/// Where tensors' bytes come from.
pub(super) trait Tensors {
    /// All bytes of a tensor of the checkpoint, which is there.
    fn all(&self, name: &str) -> &[u8];
}

/// The values of a matrix.
#[derive(Debug)]
pub(super) enum Values {
    /// Fields of a matrix `[N, K]`, or of its transpose.
    Packed { tensor: String, packing: Packing, transposed: bool },
    /// `[N, K]` of a type of 8 bits: i8 or e4m3.
    Bytes { tensor: String, dtype: DType },
}

/// A scale for each group of each row: `[N, groups]`, or its transpose.
#[derive(Debug)]
pub(super) struct Scales {
    pub(super) tensor: String,
    pub(super) dtype: DType,
    pub(super) transposed: bool,
    /// Rows that share one.
    pub(super) rows: u64,
}

/// A zero for each group of each row.
#[derive(Debug)]
pub(super) struct Zeros {
    pub(super) tensor: String,
    pub(super) packing: Packing,
    pub(super) transposed: bool,
    /// What is added to what is stored, which wraps around at the largest.
    pub(super) offset: u8,
}

/// A matrix.
#[derive(Debug)]
pub(super) struct Matrix {
    pub(super) rows: u64,
    pub(super) columns: u64,
    pub(super) bits: u32,
    /// Columns of a group as it is stored.
    pub(super) group: u64,
    pub(super) values: Values,
    pub(super) scales: Scales,
    pub(super) zeros: Option<Zeros>,
    /// The group of each column, where it is not the column's number over the group's columns.
    pub(super) order: Option<Vec<u32>>,
}

impl Matrix {
    /// How its parts are given out; `None` where only its numbers are.
    pub(super) fn stored(&self) -> Option<Stored> {
        if let Values::Bytes { dtype, .. } = self.values {
            let whole = Stored { values: dtype, group: None, scales: DType::F32, zeros: false };
            if self.group == self.columns {
                return Some(whole);
            }
            let group = group_given(self.group, self.columns).filter(|n| *n == LARGEST_GROUP)? as u32;
            return Some(Stored { group: Some(group), scales: self.scales.dtype, ..whole });
        }
        let group = group_given(self.group, self.columns).filter(|_| self.order.is_none())?;
        let values = if self.bits == 4 { DType::U4 } else { DType::U8 };
        Some(Stored { values, group: Some(group as u32), scales: self.scales.dtype, zeros: self.zeros.is_some() })
    }

    /// Type and shape of a part that it has.
    pub(super) fn part(&self, part: Part) -> Option<TensorType> {
        let (rows, columns) = (self.rows, self.columns);
        if part == Part::Numbers {
            return Some(TensorType { dtype: DType::F32, shape: vec![rows, columns] });
        }
        let stored = self.stored()?;
        let groups = stored.group.map(|group| columns / u64::from(group));
        let (dtype, shape) = match (part, groups) {
            (Part::Numbers | Part::Values, _) => (stored.values, vec![rows, columns]),
            (Part::Scales, Some(groups)) => (stored.scales, vec![rows, groups]),
            (Part::Scales, None) => (stored.scales, vec![rows]),
            (Part::Zeros, Some(groups)) if stored.zeros => (DType::F16, vec![rows, groups]),
            (Part::Zeros, _) => return None,
        };
        Some(TensorType { dtype, shape })
    }

    /// Bytes `range` of a part that it has.
    pub(super) fn bytes(&self, part: Part, range: Range<u64>, tensors: &dyn Tensors) -> Option<Vec<u8>> {
        let ty = self.part(part)?;
        let row_bytes = (ty.bytes()? / self.rows.max(1)).max(1);
        if range.end > ty.bytes()? {
            return None;
        }
        let rows = range.start / row_bytes..range.end.div_ceil(row_bytes);
        let mut made = Vec::with_capacity(((rows.end - rows.start) * row_bytes) as usize);
        for row in rows.clone() {
            self.row(part, row as usize, tensors, &mut made);
        }
        let skipped = (range.start - rows.start * row_bytes) as usize;
        made.get(skipped..skipped + (range.end - range.start) as usize).map(<[u8]>::to_vec)
    }

    fn row(&self, part: Part, row: usize, tensors: &dyn Tensors, out: &mut Vec<u8>) {
        match part {
            Part::Numbers => out.extend(self.numbers(row, tensors).into_iter().flat_map(f32::to_le_bytes)),
            Part::Values => self.stored_values(row, tensors, out),
            Part::Scales => self.stored_scales(row, tensors, out),
            Part::Zeros => {
                let zeros = self.given_groups().map(|group| f16::from_f32(f32::from(self.zero(row, group, tensors))));
                out.extend(zeros.flat_map(f16::to_le_bytes));
            }
        }
    }

    /// The values of a row, as they are: unsigned ones, or the bytes of signed ones.
    fn values(&self, row: usize, tensors: &dyn Tensors) -> Vec<u8> {
        let columns = self.columns as usize;
        match &self.values {
            Values::Bytes { tensor, .. } => tensors.all(tensor)[row * columns..][..columns].to_vec(),
            Values::Packed { tensor, packing, transposed } => {
                let bytes = tensors.all(tensor);
                let shape = if *transposed { [self.columns, self.rows] } else { [self.rows, self.columns] };
                let width = packing.words(shape)[1] as usize;
                let at = |column| if *transposed { (column, row) } else { (row, column) };
                (0..columns).map(at).map(|(row, column)| packing.field(bytes, width, row, column)).collect()
            }
        }
    }

    fn stored_values(&self, row: usize, tensors: &dyn Tensors, out: &mut Vec<u8>) {
        let values = self.values(row, tensors);
        match self.bits {
            4 => out.extend(values.as_chunks().0.iter().map(|[low, high]| low | high << 4)),
            _ => out.extend(values),
        }
    }

    fn stored_scales(&self, row: usize, tensors: &dyn Tensors, out: &mut Vec<u8>) {
        if self.stored().is_some_and(|s| s.group.is_none()) {
            return out.extend(self.scale(row, 0, tensors).to_le_bytes());
        }
        let (bytes, size) = (tensors.all(&self.scales.tensor), (self.scales.dtype.bits() / 8) as usize);
        for group in self.given_groups() {
            out.extend(&bytes[self.scale_at(row, group) * size..][..size]);
        }
    }

    /// The stored group of each group that is given out.
    fn given_groups(&self) -> impl Iterator<Item = usize> {
        let given = self.stored().and_then(|s| s.group).map_or(self.group, u64::from);
        let stored = self.group;
        (0..self.columns / given).map(move |i| (i * given / stored) as usize)
    }

    /// Number of groups of a row, as they are stored.
    pub(super) fn groups(&self) -> u64 {
        self.columns.div_ceil(self.group)
    }

    fn scale_at(&self, row: usize, group: usize) -> usize {
        let row = row / self.scales.rows as usize;
        match self.scales.transposed {
            true => group * self.rows as usize + row,
            false => row * self.groups() as usize + group,
        }
    }

    fn scale(&self, row: usize, group: usize, tensors: &dyn Tensors) -> f32 {
        let (bytes, at) = (tensors.all(&self.scales.tensor), self.scale_at(row, group));
        match self.scales.dtype {
            DType::F16 => f16::from_le_bytes(bytes.as_chunks().0[at]).to_f32(),
            DType::Bf16 => bf16::from_le_bytes(bytes.as_chunks().0[at]).to_f32(),
            _ => f32::from_le_bytes(bytes.as_chunks().0[at]),
        }
    }

    /// What stands for zero in a group of a row.
    fn zero(&self, row: usize, group: usize, tensors: &dyn Tensors) -> u8 {
        let Some(Zeros { tensor, packing, transposed, offset }) = &self.zeros else {
            return if matches!(self.values, Values::Bytes { .. }) { 0 } else { 1 << (self.bits - 1) };
        };
        let shape = if *transposed { [self.groups(), self.rows] } else { [self.rows, self.groups()] };
        let width = packing.words(shape)[1] as usize;
        let (i, j) = if *transposed { (group, row) } else { (row, group) };
        let largest = ((1u32 << packing.bits) - 1) as u8;
        packing.field(tensors.all(tensor), width, i, j).wrapping_add(*offset) & largest
    }

    /// The numbers of a row.
    fn numbers(&self, row: usize, tensors: &dyn Tensors) -> Vec<f32> {
        let groups = (0..self.groups() as usize)
            .map(|group| (self.scale(row, group, tensors), f32::from(self.zero(row, group, tensors))))
            .collect::<Vec<_>>();
        let as_number = match self.values {
            Values::Bytes { dtype: DType::F8e4m3, .. } => e4m3,
            Values::Bytes { .. } => |value: u8| f32::from(value.cast_signed()),
            Values::Packed { .. } => |value: u8| f32::from(value),
        };
        let number = |(column, value): (usize, u8)| {
            let group = self.order.as_ref().map_or(column / self.group as usize, |order| order[column] as usize);
            let (scale, zero) = groups[group];
            (as_number(value) - zero) * scale
        };
        self.values(row, tensors).into_iter().enumerate().map(number).collect()
    }
}

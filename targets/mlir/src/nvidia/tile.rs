//! Tiles in registers: elements as scalars, or what they are computed from.
//!
//! Invariants:
//! - a tile of bf16 or f16 is held as f32 that is still to be rounded: where it is stored, staged or widened again;
//! - a tile of one element is [`Data::Splat`].

use super::{Lower, place::Place};
use crate::{
    index::Index,
    text::{Elem, Ssa, Ty},
};
use rvllm_ir::types::DType;

/// A tile in registers.
#[derive(Clone, Debug)]
pub(crate) struct Tile {
    pub(crate) shape: Vec<usize>,
    pub(crate) dtype: DType,
    pub(crate) data: Data,
}

/// The elements of a tile.
#[derive(Clone, Debug)]
pub(crate) enum Data {
    /// The same in every element.
    Splat(Ssa),
    /// i32: `start + index / div`, along one axis of the tile.
    Ramp { start: Ssa, div: usize, axis: usize },
    /// One scalar per register of the place.
    Regs(Place, Vec<Ssa>),
}

impl Tile {
    /// Where its elements are, where they are in registers.
    pub(crate) fn place(&self) -> Option<Place> {
        match &self.data {
            Data::Regs(place, _) => Some(*place),
            Data::Splat(_) | Data::Ramp { .. } => None,
        }
    }
}

impl Lower<'_> {
    /// Indices of an element of a tile of this shape, from its row and column at `place`.
    pub(crate) fn tile_index(&mut self, place: Place, at: [Index; 2], shape: &[usize]) -> Vec<Index> {
        let (linear, [row, col], cols) = match place {
            Place::Runs([_, c]) | Place::Fragments([_, c]) => (None, at, c),
            Place::Slice { axis, .. } => (Some(at[1 - axis]), at, 0),
        };
        let last = shape.last().copied().unwrap_or(1);
        if linear.is_none() && last == cols {
            let mut index = self.split(row, &shape[..shape.len() - 1]);
            index.push(col);
            return index;
        }
        let linear = linear.unwrap_or_else(|| {
            let row = self.w.scale(row, cols);
            self.w.add(row, col)
        });
        self.split(linear, shape)
    }

    /// Indices of element number `linear` of a tensor of this shape; the first may lie past its end.
    fn split(&mut self, linear: Index, shape: &[usize]) -> Vec<Index> {
        let mut rest = linear;
        let mut index = vec![];
        for (d, n) in shape.iter().enumerate().rev() {
            if d == 0 || shape[..d].iter().all(|n| *n == 1) && rest.at_most(*n as i64 - 1) {
                index.push(rest);
                index.extend(std::iter::repeat_n(Index::constant(0), d));
                break;
            }
            index.push(self.w.rem(rest, *n));
            rest = self.w.div(rest, *n);
        }
        index.reverse();
        index
    }

    /// Number of registers of a place.
    pub(crate) fn registers(&mut self, place: Place) -> usize {
        let groups = self.groups(place);
        groups.width * groups.at.len()
    }

    /// The elements of a tile as registers of `place`.
    pub(crate) fn settle(&mut self, t: &Tile, place: Place) -> Vec<Ssa> {
        match &t.data {
            Data::Splat(v) => vec![*v; self.registers(place)],
            Data::Ramp { start, div, axis } => self.ramp(*start, *div, *axis, place, &t.shape),
            Data::Regs(found, regs) if self.same_registers(*found, place) => regs.clone(),
            Data::Regs(..) => self.convert(t, place),
        }
    }

    fn ramp(&mut self, start: Ssa, div: usize, axis: usize, place: Place, shape: &[usize]) -> Vec<Ssa> {
        let groups = self.groups(place);
        let mut regs = vec![];
        for at in groups.at {
            for i in 0..groups.width {
                let col = self.w.add_const(at[1], i);
                let row = if groups.width == 1 { at[0] } else { self.row_of_group(place, at[0], i) };
                let index = self.tile_index(place, [row, col], shape)[axis];
                let step = self.w.div(index, div);
                let step = self.w.ssa(step);
                let step = self.w.convert("arith.trunci", step, Ty::Scalar(Elem::I32));
                regs.push(self.w.binary("arith.addi", start, step));
            }
        }
        regs
    }

    /// Groups lie along columns: of a slice without columns the row counts.
    fn row_of_group(&mut self, place: Place, row: Index, i: usize) -> Index {
        match place {
            Place::Slice { axis: 1, .. } => self.w.add_const(row, i),
            _ => row,
        }
    }
}

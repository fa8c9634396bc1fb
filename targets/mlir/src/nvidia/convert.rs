//! A tile from one place to another, through shared memory, as a row-major matrix of 32-bit elements.

use super::{
    Lower,
    place::Place,
    shared::Region,
    tile::{Data, Tile},
};
use crate::{
    bounds::Cond,
    index::Index,
    text::{Elem, Ssa, Ty},
};
use rvllm_ir::types::DType;

impl Lower<'_> {
    /// The registers of `to`.
    pub(crate) fn convert(&mut self, t: &Tile, to: Place) -> Vec<Ssa> {
        let region = self.lay_out(t);
        self.read_region(region);
        let ty = match t.dtype {
            DType::I32 => Ty::Scalar(Elem::I32),
            _ => Ty::Scalar(Elem::F32),
        };
        let start = self.region_start(region);
        let last = Index::constant(to.elements() as i64 - 1);
        let mut regs = vec![];
        for e in self.linear_elements(to) {
            // registers past the tile's end may hold anything
            let e = if e.at_most(to.elements() as i64 - 1) {
                e
            } else {
                self.w.index(rvllm_ir::tile::IndexOp::Min, e, last)
            };
            let bytes = self.w.scale(e, 4);
            let p = self.w.at(start, bytes);
            regs.push(self.w.load(p, ty, 4));
        }
        regs
    }

    /// Writes a tile to shared memory, row-major.
    pub(crate) fn lay_out(&mut self, t: &Tile) -> Region {
        let place = t.place().unwrap_or(Place::Runs(super::place::matrix(&t.shape)));
        let n = place.elements();
        let regs = self.settle(t, place);
        let region = self.region(4 * n);
        self.write_region(region);
        let start = self.region_start(region);
        for (e, v) in self.linear_elements(place).into_iter().zip(regs) {
            let bytes = self.w.scale(e, 4);
            let p = self.w.at(start, bytes);
            let inside = self.linear_inside(place, e);
            self.under(inside, |l| l.w.store(v, p, 4));
        }
        region
    }

    /// Number of the element, in row-major order, of each register; past the end or clamped where there is none.
    fn linear_elements(&mut self, place: Place) -> Vec<Index> {
        let groups = self.groups(place);
        let mut elements = vec![];
        for [row, col] in groups.at {
            for i in 0..groups.width {
                elements.push(self.linear_element(place, row, col, i));
            }
        }
        elements
    }

    /// Of the fragments that stick out of the matrix, columns past its end count as an element past the end.
    fn linear_element(&mut self, place: Place, row: Index, col: Index, i: usize) -> Index {
        let col = self.w.add_const(col, i);
        let [rows, cols] = match place {
            Place::Runs(shape) | Place::Fragments(shape) => shape,
            Place::Slice { axis: 1, .. } => return row,
            Place::Slice { .. } => return col,
        };
        let start = self.w.scale(row, cols);
        let linear = self.w.add(start, col);
        match self.w.below(col, Index::constant(cols as i64)) {
            Cond::If(c) if rows > 1 => {
                let (inside, outside) = (self.w.ssa(linear), self.w.int((rows * cols) as i64));
                Index::value(self.w.select(c, inside, outside))
            }
            _ => linear,
        }
    }

    fn linear_inside(&mut self, place: Place, e: Index) -> Cond {
        self.w.below(e, Index::constant(place.elements() as i64))
    }

    /// What `body` writes happens only under the condition.
    pub(crate) fn under(&mut self, cond: Cond, body: impl FnOnce(&mut Self)) {
        match cond {
            Cond::Never => {}
            Cond::Always => body(self),
            Cond::If(c) => {
                self.w.begin_if(c);
                body(self);
                self.w.end();
            }
        }
    }

    /// A tile of these registers.
    pub(crate) fn tile_at(&self, shape: &[usize], dtype: DType, place: Place, regs: Vec<Ssa>) -> Tile {
        Tile { shape: shape.to_vec(), dtype, data: Data::Regs(place, regs) }
    }
}

//! Loads into registers, widened to f32: a group's elements with as few accesses as their addresses allow.

use super::{
    Lower,
    place::{Groups, Place},
    tile::{Data, Tile},
};
use crate::{
    Error,
    bounds::{Cond, Extent},
    index::Index,
    text::{Elem, Ssa, Ty},
};
use rvllm_ir::{
    tile::{MemLayout, Val},
    types::DType,
};

/// Bytes that L2 brings together.
const LINE_BYTES: usize = 128;

/// A tile in global memory.
pub(crate) struct Source<'a> {
    pub(crate) tensor: usize,
    pub(crate) origin: &'a [Index],
    pub(crate) shape: &'a [usize],
    pub(crate) extents: Vec<Extent>,
}

/// Where the groups of a place lie: the tile's dimension that a group runs along, and how many elements one access takes.
pub(crate) struct Access {
    pub(crate) groups: Groups,
    pub(crate) along: usize,
    pub(crate) vector: usize,
}

/// The element type in memory.
pub(crate) fn elem(dtype: DType) -> Elem {
    match dtype {
        DType::F32 => Elem::F32,
        DType::Bf16 => Elem::Bf16,
        DType::F16 => Elem::F16,
        DType::I32 => Elem::I32,
        other => Elem::int(other.bits()),
    }
}

impl<'a> Source<'a> {
    /// The tile's own dimension of one of the tensor's.
    fn own(&self, d: usize) -> Option<usize> {
        d.checked_sub(self.origin.len() - self.shape.len())
    }
}

impl Lower<'_> {
    pub(crate) fn source<'a>(&mut self, tensor: usize, origin: &'a [Index], shape: &'a [usize]) -> Source<'a> {
        let extents = self.extents(tensor, origin, shape);
        Source { tensor, origin, shape, extents }
    }

    /// How the groups of `place` are accessed.
    pub(crate) fn access(&mut self, s: &Source<'_>, place: Place) -> Access {
        let groups = self.groups(place);
        // a group runs along the last dimension that has more than one index
        let along = s.shape.iter().rposition(|n| *n > 1).unwrap_or(0);
        let adjacent = self.adjacent(s.tensor).and_then(|d| s.own(d));
        let whole = s.shape[along].is_multiple_of(groups.width);
        let vector = match adjacent == Some(along) && whole {
            true => self.vector(s.tensor, s.origin, groups.width),
            false => 1,
        };
        let vector =
            (1..=vector).rev().find(|v| vector.is_multiple_of(*v) && self.whole_runs(along, *v, s.shape, &s.extents));
        Access { groups, along, vector: vector.unwrap_or(1) }
    }

    /// Indices in the tile of element `i` of a group.
    pub(crate) fn group_index(
        &mut self,
        a: &Access,
        s: &Source<'_>,
        place: Place,
        at: [Index; 2],
        i: usize,
    ) -> Vec<Index> {
        let whole = s.shape[a.along].is_multiple_of(a.groups.width);
        if whole {
            let mut index = self.tile_index(place, at, s.shape);
            index[a.along] = self.w.add_const(index[a.along], i);
            return index;
        }
        let col = self.w.add_const(at[1], i);
        self.tile_index(place, [at[0], col], s.shape)
    }

    /// A tile in registers: f32, or i32 as it is.
    pub(crate) fn load_tile(&mut self, v: Val, tensor: usize, at: &[Index]) -> Result<Tile, Error> {
        let ty = self.kernel.tile(v).clone();
        if ty.shape.iter().all(|n| *n == 1) {
            let s = self.source(tensor, at, &ty.shape);
            let index = vec![Index::constant(0); ty.shape.len()];
            let regs = self.load_vector(&s, &index, 1);
            return Ok(Tile { shape: ty.shape, dtype: ty.dtype, data: Data::Splat(regs[0]) });
        }
        let place = self.wanted.get(&v).copied().unwrap_or(Place::of(&ty));
        let s = self.source(tensor, at, &ty.shape);
        self.bring_near(&s);
        let access = self.access(&s, place);
        let mut regs = vec![];
        for at in access.groups.at.clone() {
            for i in (0..access.groups.width).step_by(access.vector) {
                let index = self.group_index(&access, &s, place, at, i);
                regs.extend(self.load_vector(&s, &index, access.vector));
            }
        }
        Ok(self.tile_at(&ty.shape, ty.dtype, place, regs))
    }

    /// Adjacent elements, widened; zeros where they lie outside.
    fn load_vector(&mut self, s: &Source<'_>, index: &[Index], n: usize) -> Vec<Ssa> {
        let dtype = self.kernel.params[s.tensor].ty.dtype;
        let inside = self.within(index, s.shape, &s.extents);
        let at = self.indices_at(s.origin, index);
        let bytes = n * self.size(s.tensor);
        let ty = if n == 1 { Ty::Scalar(elem(dtype)) } else { Ty::Vector(n, elem(dtype)) };
        let raw = match inside {
            Cond::Never => self.w.zero(ty),
            Cond::Always => {
                let p = self.element(s.tensor, &at);
                self.w.load(p, ty, bytes)
            }
            Cond::If(c) => {
                let (p, origin) = (self.element(s.tensor, &at), self.element(s.tensor, s.origin));
                // the tile's origin is inside, so it can be read instead
                let p = self.w.select(c, p, origin);
                let value = self.w.load(p, ty, bytes);
                let zero = self.w.zero(ty);
                self.w.select(c, value, zero)
            }
        };
        self.widen(raw, n, dtype)
    }

    /// Has a run that is read ahead of the wait come to L2 meanwhile, a line by each thread: the assembler moves the loads
    /// themselves behind the wait.
    fn bring_near(&mut self, s: &Source<'_>) {
        let run: usize = s.shape.iter().product();
        let dense = matches!(self.kernel.params[s.tensor].layout, MemLayout::Strided { .. });
        let whole = s.shape.last() == Some(&run) && s.extents.iter().all(|e| matches!(e, Extent::All));
        if self.waited || !dense || !whole {
            return;
        }
        let lines = (run * self.size(s.tensor)).div_ceil(LINE_BYTES);
        let start = self.element(s.tensor, s.origin);
        let bytes = self.w.scale(self.thread, LINE_BYTES);
        let line = self.w.at(start, bytes);
        self.bring_lines(line, lines);
    }

    /// Each of the first threads its line.
    pub(crate) fn bring_lines(&mut self, line: Ssa, threads: usize) {
        let some = self.w.below(self.thread, Index::constant(threads as i64));
        self.under(some, |l| l.w.effect(&format!("nvvm.prefetch level = L2, {line} : !llvm.ptr<1>")));
    }

    /// The number of an E4M3 element: by way of f16, which holds all of them.
    pub(crate) fn e4m3_number(&mut self, v: Ssa) -> Ssa {
        let bits = self.w.convert("arith.extui", v, Ty::Scalar(Elem::I16));
        let halves = self.w.intrinsic("llvm.nvvm.e4m3x2.to.f16x2.rn", &[bits], Ty::Vector(2, Elem::F16));
        let low = self.w.extract(halves, 0);
        self.w.convert("arith.extf", low, Ty::Scalar(Elem::F32))
    }

    /// Elements as f32 numbers; i32 as it is.
    pub(crate) fn widen(&mut self, raw: Ssa, n: usize, dtype: DType) -> Vec<Ssa> {
        let mut out = vec![];
        for i in 0..n {
            let v = if n == 1 { raw } else { self.w.extract(raw, i) };
            out.push(match dtype {
                DType::Bf16 | DType::F16 => self.w.convert("arith.extf", v, Ty::Scalar(Elem::F32)),
                DType::F8e4m3 => self.e4m3_number(v),
                DType::I8 => self.w.convert("arith.sitofp", v, Ty::Scalar(Elem::F32)),
                _ => v,
            });
        }
        out
    }
}

//! Weights with a scale for each row and line of K: the sums of a line are scaled as they are added to the accumulators. Scales
//! come with the weights that they are of, through the ring.
//!
//! Invariant: a sum is `accumulator + sum of the line * scale`, rounded once, for lines in ascending order.

use super::{
    Lower,
    form::{M, WARPGROUP},
    ops::EVICT_FIRST,
    product::{Finder, Product},
};
use crate::text::{Elem, Ssa, Ty};
use rvllm_ir::{
    tile::{Access, FRAGMENT_ROWS, Inst, MapOp, MemLayout, Val},
    types::DType,
};

/// Rows of both operands up to which a stage has several lines of them.
const STAGE_ROWS: usize = 384;
/// Lines of a stage, at most.
const STAGE_LINES: usize = 4;

/// Lines of a stage where a line has so many rows of both operands.
pub(super) fn lines_together(rows: usize) -> usize {
    (STAGE_ROWS / rows.max(1)).clamp(1, STAGE_LINES)
}

impl Product<'_> {
    /// Whether the scales of lines, where there are some, lie in pieces of one column.
    pub(super) fn fits_scales(&self) -> bool {
        self.line_scales.is_none_or(|tensor| {
            let param = self.param(tensor);
            param.layout == MemLayout::Fragments { k: 1 }
                && param.access == Access::Weight
                && matches!(param.ty.dtype, DType::F32 | DType::F16 | DType::Bf16)
                && self.n.is_multiple_of(FRAGMENT_ROWS)
                && self.param(self.a).ty.dtype == DType::F8e4m3
        })
    }

    /// Bytes of the scales of so many lines of so many rows.
    pub(super) fn line_scale_bytes(&self, rows: usize, lines: usize) -> usize {
        self.line_scales.map_or(0, |tensor| rows * lines * self.param(tensor).ty.dtype.bits() / 8)
    }
}

impl Finder<'_, '_> {
    /// Where `out` adds a scaled sum to `acc`: the sum, and its scale.
    pub(super) fn scaled(&self, out: Val, acc: Val) -> Option<(Val, Val)> {
        let [into, scaled] = self.binary(MapOp::Add, out)?;
        let [sum, scale] = self.binary(MapOp::Mul, scaled)?;
        (into == acc).then_some((sum, scale))
    }

    /// The tensor of which `scale` has an element for each row of weights `b` and iteration `i`.
    pub(super) fn scales_of_line(&self, i: Val, b: Val, scale: Val) -> Option<usize> {
        let Inst::Broadcast(each, 0) = self.definitions.get(&scale)? else { return None };
        let Inst::Reshape(loaded) = self.definitions.get(each)? else { return None };
        let (Inst::Load { tensor, at }, Inst::Load { at: of_b, .. }) =
            (self.definitions.get(loaded)?, self.definitions.get(&b)?)
        else {
            return None;
        };
        let ((line, rows), (_, rows_of_b)) = (at.split_last()?, of_b.split_last()?);
        let shape = [self.kernel.tile(b).shape[0], 1];
        (*line == i && rows == rows_of_b && self.kernel.tile(*loaded).shape == shape).then_some(*tensor)
    }
}

/// Scales of a stage, as a thread of a consumer reads them.
pub(super) struct LineScales {
    /// Where those of the thread's first rows of weights begin.
    at: Ssa,
    /// Of a narrow form, by line: those of the upper and of the lower eight rows.
    narrow: Vec<[Ssa; 2]>,
}

impl Lower<'_> {
    /// Where a stage's scales begin.
    fn scales_of(&mut self, stage: Ssa) -> Ssa {
        let first = self.w.offset(self.shared, self.form.scales_at() as i64);
        let bytes = self.w.times(stage, self.form.scale_bytes);
        self.w.advance(first, bytes)
    }

    /// Bytes of a piece's scales in a stage.
    fn piece_bytes(&self) -> usize {
        self.form.scale_bytes / (self.form.weights / FRAGMENT_ROWS)
    }

    /// Brings the scales of a stage.
    pub(super) fn load_line_scales(&mut self, tensor: usize, column: Ssa, stage: Ssa, step: Ssa) {
        let (full, to) = (self.full(stage), self.scales_of(stage));
        let row = self.w.times(column, self.product.matrices());
        let first = self.w.over(row, FRAGMENT_ROWS);
        let policy = (!self.form.wide).then_some(EVICT_FIRST);
        let bytes = self.piece_bytes();
        for piece in 0..self.form.weights / FRAGMENT_ROWS {
            let from = self.piece_of(tensor, first, piece, step, bytes);
            let to = self.w.offset(to, (piece * bytes) as i64);
            self.w.copy_bytes(to, from, full, bytes, policy);
        }
    }

    /// The scales of a stage, where lines have some: of a narrow form they are read at once, and have come when they are needed.
    pub(super) fn line_scales(&mut self, stage: Ssa) -> Option<LineScales> {
        self.product.line_scales?;
        let first = self.scales_of(stage);
        if self.form.wide {
            let fourth = self.w.modulo(self.lane, 4);
            let bytes = self.w.times(fourth, 2 * self.scale_size());
            let at = self.w.advance(first, bytes);
            return Some(LineScales { at, narrow: vec![] });
        }
        let row = self.narrow_scale_row();
        let bytes = self.w.times(row, self.scale_size());
        let at = self.w.advance(first, bytes);
        let narrow = (0..self.form.lines).map(|line| self.narrow_scales(at, line)).collect();
        Some(LineScales { at, narrow })
    }

    fn scale_size(&self) -> usize {
        self.product.line_scales.map_or(0, |tensor| self.product.param(tensor).ty.dtype.bits() / 8)
    }

    /// Where a thread's first scale lies among those of the first line, in scales. Of one matrix a piece is two warps' rows; of
    /// two, the upper eight rows of four warps, or the lower.
    fn narrow_scale_row(&mut self) -> Ssa {
        let (group, warp) = (self.w.over(self.thread, WARPGROUP), self.w.over(self.thread, 32));
        let warp = self.w.modulo(warp, 4);
        let two = self.product.matrices() == 2;
        let piece = self.w.times(group, M / FRAGMENT_ROWS);
        let (piece, within) = if two {
            (piece, self.w.times(warp, 8))
        } else {
            let (half, odd) = (self.w.over(warp, 2), self.w.modulo(warp, 2));
            (self.w.sum(piece, half), self.w.times(odd, 16))
        };
        let before = self.w.times(piece, FRAGMENT_ROWS * self.form.lines);
        let eighth = self.w.over(self.lane, 4);
        let within = self.w.sum(within, eighth);
        self.w.sum(before, within)
    }

    fn narrow_scales(&mut self, at: Ssa, line: usize) -> [Ssa; 2] {
        let lower = if self.product.matrices() == 2 { self.form.lines * FRAGMENT_ROWS } else { 8 };
        let size = self.scale_size();
        [0, lower].map(|row| {
            let p = self.w.offset(at, ((line * FRAGMENT_ROWS + row) * size) as i64);
            let scale = self.w.load(p, Ty::Scalar(self.scale_elem()), size);
            self.as_number(scale, Ty::Scalar(Elem::F32))
        })
    }

    fn scale_elem(&self) -> Elem {
        match self.product.line_scales.map(|tensor| self.product.param(tensor).ty.dtype) {
            Some(DType::F16) => Elem::F16,
            Some(DType::Bf16) => Elem::Bf16,
            _ => Elem::F32,
        }
    }

    fn as_number(&mut self, scale: Ssa, ty: Ty) -> Ssa {
        if scale.ty == ty { scale } else { self.w.convert("arith.extf", scale, ty) }
    }

    /// The scales of a wide form's columns 8 `j` and on of a line that a thread has.
    fn wide_scales(&mut self, scales: &LineScales, line: usize, j: usize) -> [Ssa; 2] {
        let (matrix, row) = (j % self.product.matrices(), j / self.product.matrices() * 8);
        let piece = row / FRAGMENT_ROWS * self.product.matrices() + matrix;
        let at = (piece * self.form.lines + line) * FRAGMENT_ROWS + row % FRAGMENT_ROWS;
        let size = self.scale_size();
        let p = self.w.offset(scales.at, (at * size) as i64);
        let both = self.w.load(p, Ty::Vector(2, self.scale_elem()), 2 * size);
        let both = self.as_number(both, Ty::Vector(2, Elem::F32));
        [0, 1].map(|e| self.w.extract(both, e))
    }

    /// `sums + chain * scales`, where `chain` is the sums of line `line`.
    pub(super) fn add_scaled(&mut self, sums: Ssa, chain: Ssa, scales: &LineScales, line: usize) -> Ssa {
        let mut all = vec![];
        for j in 0..self.form.sums() / 4 {
            let four = match scales.narrow.get(line) {
                Some([upper, lower]) => [*upper, *upper, *lower, *lower],
                None => {
                    let [even, odd] = self.wide_scales(scales, line, j);
                    [even, odd, even, odd]
                }
            };
            for (e, scale) in four.into_iter().enumerate() {
                let [sum, of_line] = [sums, chain].map(|s| self.w.member(s, 4 * j + e));
                all.push(self.w.intrinsic("llvm.fma.f32", &[of_line, scale, sum], Ty::Scalar(Elem::F32)));
            }
        }
        self.w.structure(&all)
    }
}

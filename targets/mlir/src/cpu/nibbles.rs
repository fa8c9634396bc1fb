//! Products of i8 and values of 4 bits on AMX tiles: groups of k whose sums are scaled before they are added up.
//!
//! A lane of 32 bits of b holds eight k values of a column, so its low and its high halves of bytes are the lanes of two rows
//! of a tile: a line of 16 columns becomes two lines on the stack, once for all rows of a.
//!
//! Invariant: sums are those of the dot products on vectors, exactly, so a row's bits do not depend on which are taken.

use super::{
    Lower,
    amx::{LINE, Place, SIDE},
    integer::Integer,
    operand::View,
    tile::{LANES, Tile},
};
use crate::{
    bounds::Extent,
    text::{Elem, Ssa, Ty},
};
use rvllm_ir::types::DType;

/// k values of one instruction.
const DEPTH: usize = 64;
/// Rows of a from which on tiles are faster than dot products, which need no trip of the sums through memory.
const LEAST_ROWS: usize = 8;

/// How operands lie.
struct Operands {
    /// Bytes from a row of a to the next.
    a_row: usize,
    /// Bytes from eight k values of b to the next.
    b_step: usize,
    k: usize,
}

impl Lower<'_> {
    /// `a · bᵀ` on tiles for an accumulator of zeros, where the target has them, rows are many, and the operands lie so.
    pub(crate) fn mma_nibbles(&mut self, a: &View, b: &View, acc: &Tile) -> Option<Tile> {
        let o = self.nibble_operands(a, b)?;
        if !acc.vecs.iter().all(|v| *v == self.w.zero(v.ty)) {
            return None;
        }
        let (m, n) = (a.rows(), b.rows());
        let base = self.w.stack(m * n * 4);
        let lines = self.w.stack(o.k / 4 * LINE);
        for column in (0..n).step_by(SIDE) {
            self.spread(b, &o, column, lines);
            for row in (0..m).step_by(SIDE) {
                let rows = SIDE.min(m - row);
                let sum = self.sum_nibbles(a, &o, [row, rows], lines);
                let p = self.w.offset(base, ((row * n + column) * 4) as i64);
                let ([rows, bytes], stride) = (self.sizes(rows, LINE), self.w.int((n * 4) as i64));
                self.w.intrinsic_void("llvm.x86.tilestored64.internal", &[rows, bytes, p, stride, sum]);
            }
        }
        let load = |i: usize| {
            let p = self.w.offset(base, (i * LINE) as i64);
            self.w.load(p, Ty::Vector(LANES, Elem::I32), LINE)
        };
        Some(Tile { vecs: (0..m * n / LANES).map(load).collect(), ..acc.clone() })
    }

    fn nibble_operands(&self, a: &View, b: &View) -> Option<Operands> {
        let pair = a.dtype == DType::I8 && b.dtype == DType::U4;
        let shaped = a.shape.len() == 2 && a.rows() >= LEAST_ROWS && b.rows().is_multiple_of(SIDE);
        // rows of a past the step lie in padding; b's past its last lie in their panel
        let whole = |v: &View| matches!(v.extents.last(), Some(Extent::All));
        let inside = matches!(a.extents.first(), Some(Extent::All)) && b.rows() <= b.readable;
        let even = a.k() == b.k() && b.k().is_multiple_of(Integer::Nibbles.group());
        if !(self.target.amx_i8 && pair && shaped && whole(a) && whole(b) && inside && even) {
            return None;
        }
        let in_lines = (0..b.rows()).all(|r| {
            let first = b.row_distance(r / SIDE * SIDE);
            b.row_distance(r).zip(first).is_some_and(|(d, first)| d - first == (r % SIDE * 4) as i64)
        });
        a.k_distance(DEPTH)?;
        let b_step = b.step(Integer::Nibbles.group()).filter(|_| in_lines)?;
        Some(Operands { a_row: a.even_rows()?, b_step, k: a.k() })
    }

    /// Writes 16 columns of b as a tile wants them; asks for what a later iteration reads in their place.
    fn spread(&mut self, b: &View, o: &Operands, column: usize, lines: Ssa) {
        let distance = b.row_distance(column).unwrap_or(0);
        for group in 0..o.k / Integer::Nibbles.group() {
            let at = distance + (group * o.b_step) as i64;
            if let Some(ahead) = b.ahead {
                let p = self.w.offset(ahead, at);
                self.w.prefetch(p, 2);
            }
            let p = self.w.offset(b.address.base, at);
            let packed = self.w.load(p, Ty::Vector(LANES, Elem::I32), b.address.size);
            for (half, lanes) in self.b_integers(Integer::Nibbles, packed).into_iter().enumerate() {
                let p = self.w.offset(lines, ((2 * group + half) * LINE) as i64);
                self.w.store(lanes, p, LINE);
            }
        }
    }

    /// The sums over k of up to 16 rows of a with the columns that were spread.
    fn sum_nibbles(&mut self, a: &View, o: &Operands, [row, rows]: [usize; 2], lines: Ssa) -> Ssa {
        let [height, line] = self.sizes(rows, LINE);
        let mut sum = self.w.intrinsic("llvm.x86.tilezero.internal", &[height, line], Ty::Amx);
        for first in (0..o.k).step_by(DEPTH) {
            let bytes = DEPTH.min(o.k - first);
            let distance = row * o.a_row + a.k_distance(first).unwrap_or(0);
            let p = self.w.offset(a.address.base, distance as i64);
            let left = self.tile_load(Place { p, rows, bytes, stride: o.a_row });
            let p = self.w.offset(lines, (first / 4 * LINE) as i64);
            let right = self.tile_load(Place { p, rows: bytes / 4, bytes: LINE, stride: LINE });
            let [_, depth] = self.sizes(rows, bytes);
            let operands = [height, line, depth, sum, left, right];
            sum = self.w.intrinsic("llvm.x86.tdpbssd.internal", &operands, Ty::Amx);
        }
        sum
    }
}

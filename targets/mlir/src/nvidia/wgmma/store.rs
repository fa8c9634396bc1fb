//! The result's way out: from registers to rows in shared memory, from there to global memory in wide pieces (narrow tiles)
//! or by the copy engine (wide tiles).

use super::{
    Lower,
    epilogue::Pair,
    form::{BOX_BYTES, LINE_BYTES, M, WARPGROUP},
    ops::I32,
};
use crate::text::{Elem, Ssa, Ty};
use std::collections::HashMap;

/// Pairs of a thread whose loads are under way at once where not all are.
const TOGETHER: usize = 16;
/// What the swizzle exchanges in a line.
const PIECE: usize = 16;

/// Registers of a thread that may hold what the epilogue loads while the product is summed.
const AHEAD_REGISTERS: usize = 32;
/// Registers that a box takes for each tensor that the epilogue loads.
const BOX_REGISTERS: usize = 16;

/// What a thread of a consumer has of a tile.
pub(super) struct Tile {
    /// First row and column.
    pub(super) row: Ssa,
    pub(super) column: Ssa,
    /// Warpgroup of the CTA, and warp in it.
    pub(super) group: Ssa,
    pub(super) warp: Ssa,
}

impl Lower<'_> {
    fn meet_group(&mut self, tile: &Tile) {
        // barrier 0 is everybody's
        let id = self.w.plus(tile.group, 1);
        self.w.meet(id, WARPGROUP);
    }

    /// Two 16-bit elements in one register.
    fn packed(&mut self, v: Ssa) -> Ssa {
        self.w.op(I32, format_args!("llvm.bitcast {v} : {} to i32", v.ty))
    }

    // narrow tiles

    pub(super) fn store_narrow(&mut self, tile: &Tile, sums: Ssa, early: Option<&[Pair]>) {
        let base = self.narrow_base(tile);
        let half = self.form.weights < M && self.form.packed.is_none();
        if half {
            let has = self.w.is("ult", tile.warp, 2);
            self.w.begin_if(has);
        }
        let at = if self.form.out_bytes == 2 { self.matrix_lane(tile, base) } else { self.scalar_lane(tile, base) };
        let (places, mut done) = (self.narrow_places(), 0);
        while done < places.len() {
            let many = [4, 2, 1].into_iter().find(|n| done + n <= places.len()).unwrap_or(1);
            let pairs = match early {
                Some(early) => early[done..done + many].to_vec(),
                None => self.narrow_pairs(tile, &places[done..done + many]),
            };
            if early.is_none() && !half && done > 0 && done.is_multiple_of(TOGETHER) && !self.leaves().is_empty() {
                // the assembler begins all loads that no barrier keeps back
                self.meet_group(tile);
            }
            self.store_pairs(at, done, &pairs, sums);
            done += many;
        }
        if half {
            self.w.end();
        }
        self.meet_group(tile);
        self.copy_out(tile, base);
    }

    /// Pairs from number `first` on, into rows in shared memory; `at` is this lane's address for the first of all.
    fn store_pairs(&mut self, at: Ssa, first: usize, pairs: &[Pair], sums: Ssa) {
        let several = self.form.several;
        let mut values = vec![];
        for (i, pair) in pairs.iter().enumerate() {
            let place = ((first + i) / several, (first + i) % several);
            let sums = self.narrow_sums(place, sums);
            values.push(self.result(pair, &sums));
        }
        if self.form.out_bytes == 2 {
            // matrices of eight features and eight rows, transposed
            let regs: Vec<Ssa> = values.iter().map(|v| self.packed(*v)).collect();
            let p = self.w.offset(at, (first / several * 8 * self.form.out_pitch()) as i64);
            return self.w.store_matrices(p, &regs, true);
        }
        for (i, value) in values.into_iter().enumerate() {
            let (t, r) = ((first + i) / several, (first + i) % several);
            for e in 0..2 {
                let v = self.w.extract(value, e);
                let to = (8 * t + e) * self.form.out_pitch() + self.form.row_features * r * self.form.out_bytes;
                let p = self.w.offset(at, to as i64);
                self.w.store(v, p, self.form.out_bytes);
            }
        }
    }

    /// Where this warpgroup's part of the result lies in shared memory.
    fn narrow_base(&mut self, tile: &Tile) -> Ssa {
        let each = self.form.finished_rows() * self.form.out_pitch();
        let bytes = self.w.times(tile.group, each);
        let start = self.w.offset(self.shared, self.form.out_at as i64);
        self.w.advance(start, bytes)
    }

    /// Where a lane's row of the first matrices goes: lanes 8 i to 8 i + 7 have the rows of matrix i.
    fn matrix_lane(&mut self, tile: &Tile, base: Ssa) -> Ssa {
        let several = self.form.several;
        let (matrix, row) = (self.w.over(self.lane, 8), self.w.modulo(self.lane, 8));
        let (t, r) = (self.w.over(matrix, several), self.w.modulo(matrix, several));
        let t = self.w.times(t, 8);
        let row = self.w.sum(t, row);
        let row = self.w.times(row, self.form.out_pitch());
        let feature = self.w.times(tile.warp, 2 * self.form.warp_features);
        let r = self.w.times(r, 2 * self.form.row_features);
        let at = self.w.sum(row, feature);
        let at = self.w.sum(at, r);
        self.w.advance(base, at)
    }

    /// Where a lane's first element goes.
    fn scalar_lane(&mut self, tile: &Tile, base: Ssa) -> Ssa {
        let (eighth, fourth) = (self.w.over(self.lane, 4), self.w.modulo(self.lane, 4));
        let feature = self.w.times(tile.warp, self.form.warp_features);
        let feature = self.w.sum(feature, eighth);
        let feature = self.w.times(feature, self.form.out_bytes);
        let row = self.w.times(fourth, 2 * self.form.out_pitch());
        let at = self.w.sum(feature, row);
        self.w.advance(base, at)
    }

    /// Rows of this warpgroup from shared to global memory: those that the step has.
    fn copy_out(&mut self, tile: &Tile, base: Ssa) {
        let bytes = self.product.alignment(self.product.c);
        let pieces = self.form.features * self.form.out_bytes / bytes;
        let thread = self.w.modulo(self.thread, WARPGROUP);
        let feature = self.w.times(tile.group, self.form.features);
        let column = self.w.sum(tile.column, feature);
        let all = self.form.finished_rows() * pieces;
        for first in (0..all).step_by(WARPGROUP) {
            let piece = self.w.plus(thread, first);
            let (row, part) = (self.w.over(piece, pieces), self.w.modulo(piece, pieces));
            let here = self.w.sum(tile.row, row);
            let exists = self.w.is("ult", piece, all);
            let inside = self.w.compare("ult", here, self.rows);
            let part_columns = self.w.times(part, bytes / self.form.out_bytes);
            let column = self.w.sum(column, part_columns);
            let left = self.w.is("ult", column, self.product.columns());
            let all = self.w.binary("arith.andi", exists, inside);
            let all = self.w.binary("arith.andi", all, left);
            self.w.begin_if(all);
            self.copy_piece(base, [row, part], [here, column], bytes);
            self.w.end();
        }
    }

    fn copy_piece(&mut self, base: Ssa, [row, part]: [Ssa; 2], [to_row, to_column]: [Ssa; 2], bytes: usize) {
        let ty = if bytes < 4 { Ty::Scalar(Elem::I16) } else { Ty::Vector(bytes / 4, Elem::I32) };
        let (row, part) = (self.w.times(row, self.form.out_pitch()), self.w.times(part, bytes));
        let from = self.w.sum(row, part);
        let from = self.w.advance(base, from);
        let value = self.w.load(from, ty, bytes);
        let (row, column) = (self.w.wide(to_row), self.w.wide(to_column));
        let row = self.w.times(row, self.product.pitch(self.product.c));
        let at = self.w.sum(row, column);
        let at = self.w.times(at, self.form.out_bytes);
        let c = self.pointers[self.product.c];
        let to = self.w.advance(c, at);
        self.w.store(value, to, bytes);
    }

    // wide tiles

    /// Boxes of 64 rows that a warpgroup has of a tile.
    fn boxes(&self) -> usize {
        self.form.blocks() * self.boxes_across()
    }

    fn boxes_across(&self) -> usize {
        self.product.n / self.form.box_columns()
    }

    /// The pairs of the first boxes, with what the epilogue loads for them.
    pub(super) fn first_boxes(&mut self, tile: &Tile) -> Vec<Vec<Pair>> {
        (0..self.boxes_ahead()).map(|number| self.box_pairs(tile, number)).collect()
    }

    /// Boxes for which the epilogue's loads run ahead of the product: all, where they fit.
    fn boxes_ahead(&self) -> usize {
        if self.form.promotes {
            // sums of lines have those registers
            return 0;
        }
        let each = BOX_REGISTERS * self.leaves().len().max(1);
        // addresses of the stack have some
        let registers = if self.stack.is_some() { AHEAD_REGISTERS / 2 } else { AHEAD_REGISTERS };
        (registers / each).clamp(1, self.boxes())
    }

    /// The pairs of a box, column group by column group, upper rows first, with what the epilogue loads for them.
    fn box_pairs(&mut self, tile: &Tile, number: usize) -> Vec<Pair> {
        let [row, _] = self.box_origin(tile, number);
        let (eighth, fourth) = (self.w.over(self.lane, 4), self.w.modulo(self.lane, 4));
        let warp = self.w.times(tile.warp, 16);
        let row = self.w.sum(row, warp);
        let row = self.w.sum(row, eighth);
        let two = self.w.times(fourth, 2);
        let column = self.w.sum(tile.column, two);
        let first = number % self.boxes_across() * self.form.box_columns();
        let mut pairs = vec![];
        for (j, r) in (0..self.form.box_columns() / 8).flat_map(|j| [(j, 0), (j, 1)]) {
            let row = self.w.plus(row, 8 * r);
            let mut pair = Pair { row, column, shift: first + 8 * j, loaded: HashMap::new() };
            self.load_ahead(&mut pair);
            pairs.push(pair);
        }
        pairs
    }

    /// First row and column of a box.
    fn box_origin(&mut self, tile: &Tile, number: usize) -> [Ssa; 2] {
        let (block, across) = (number / self.boxes_across(), number % self.boxes_across());
        let share = self.w.times(tile.group, self.form.blocks() * M);
        let row = self.w.sum(tile.row, share);
        [self.w.plus(row, block * M), self.w.plus(tile.column, across * self.form.box_columns())]
    }

    /// Box after box: two are on their way while the next is computed, and what a later one needs is loaded.
    pub(super) fn store_wide(&mut self, tile: &Tile, sums: &[Ssa], mut ahead: Vec<Vec<Pair>>) {
        for number in 0..self.boxes() {
            let to = self.box_at(tile, number);
            while ahead.len() < self.boxes().min(number + 1 + self.boxes_ahead().max(1)) {
                let pairs = self.box_pairs(tile, ahead.len());
                ahead.push(pairs);
            }
            // the box two before used this half; where a tile has an odd number, the one before did
            let pending = if number == 0 && self.boxes() % 2 == 1 { 0 } else { 1 };
            self.await_box(tile, pending);
            self.fill_box(tile, to, &ahead[number], sums, number);
            self.w.fence_copies();
            self.meet_group(tile);
            self.send_box(tile, to, number);
        }
    }

    fn box_at(&mut self, tile: &Tile, number: usize) -> Ssa {
        let at = self.form.out_at + number % 2 * BOX_BYTES;
        let share = self.w.times(tile.group, 2 * BOX_BYTES);
        let start = self.w.offset(self.shared, at as i64);
        self.w.advance(start, share)
    }

    fn await_box(&mut self, tile: &Tile, pending: usize) {
        let leader = self.leads();
        self.w.begin_if(leader);
        self.w.await_reads(pending);
        self.w.end();
        self.meet_group(tile);
    }

    fn send_box(&mut self, tile: &Tile, from: Ssa, number: usize) {
        let Some(map) = self.c_map else { return };
        let [row, column] = self.box_origin(tile, number);
        let leader = self.leads();
        self.w.begin_if(leader);
        self.w.store_box(map, from, [column, row]);
        self.w.end();
    }

    /// Computes a box of the result and lays it out as the copy engine's 128-byte swizzle wants it.
    fn fill_box(&mut self, tile: &Tile, to: Ssa, pairs: &[Pair], sums: &[Ssa], number: usize) {
        let (block, across) = (number / self.boxes_across(), number % self.boxes_across());
        let groups = self.form.box_columns() / 8;
        let mut values = vec![];
        for (i, pair) in pairs.iter().enumerate() {
            let sums = self.wide_sums((across * groups + i / 2, i % 2), block, sums[block]);
            values.push(self.result(pair, &sums));
        }
        if self.form.out_bytes == 2 {
            self.box_matrices(tile, to, &values);
        } else {
            self.box_scalars(tile, to, &values);
        }
    }

    fn box_matrices(&mut self, tile: &Tile, to: Ssa, values: &[Ssa]) {
        let regs: Vec<Ssa> = values.iter().map(|v| self.packed(*v)).collect();
        let (row, half) = (self.w.modulo(self.lane, 16), self.w.over(self.lane, 16));
        let eighth = self.w.modulo(self.lane, 8);
        let warp = self.w.times(tile.warp, 16);
        let row = self.w.sum(warp, row);
        let row = self.w.times(row, LINE_BYTES);
        let piece = self.w.binary("arith.xori", half, eighth);
        let piece = self.w.times(piece, PIECE);
        let at = self.w.sum(row, piece);
        for (q, regs) in regs.chunks_exact(4).enumerate() {
            let at = self.w.xor(at, 2 * PIECE * q);
            let p = self.w.advance(to, at);
            self.w.store_matrices(p, regs, false);
        }
    }

    fn box_scalars(&mut self, tile: &Tile, to: Ssa, values: &[Ssa]) {
        let (eighth, fourth) = (self.w.over(self.lane, 4), self.w.modulo(self.lane, 4));
        let warp = self.w.times(tile.warp, 16);
        let row = self.w.sum(warp, eighth);
        let row = self.w.times(row, LINE_BYTES);
        let (piece, within) = (self.w.over(fourth, 2), self.w.modulo(fourth, 2));
        let piece = self.w.binary("arith.xori", piece, eighth);
        let (piece, within) = (self.w.times(piece, PIECE), self.w.times(within, PIECE / 2));
        let at = self.w.sum(row, piece);
        let at = self.w.sum(at, within);
        for (i, value) in values.iter().enumerate() {
            let (j, r) = (i / 2, i % 2);
            let at = self.w.xor(at, 2 * PIECE * j);
            let p = self.w.advance(to, at);
            let p = self.w.offset(p, (8 * r * LINE_BYTES) as i64);
            self.w.store(*value, p, PIECE / 2);
        }
    }
}

//! The producer: one thread that keeps the ring full.

use super::{
    Lower,
    form::{BLOCK_BYTES, LINE_BYTES, M},
    ops::{EVICT_FIRST, EVICT_LAST, I32},
    raster::Tiles,
};
use crate::text::{Ssa, Ty};

/// Registers that the threads of a producer warpgroup keep.
const REGISTERS: usize = 40;
/// The same where weights have scales, which have addresses of their own.
const REGISTERS_FOR_SCALES: usize = 56;

/// First row and first column of a tile.
type Origin = [Ssa; 2];

impl Lower<'_> {
    pub(super) fn produce(&mut self) {
        if self.form.moves_registers() {
            let some = if self.form.packed.is_some() { REGISTERS_FOR_SCALES } else { REGISTERS };
            self.w.resize_registers("decrease", some);
        }
        let leader = self.w.is("eq", self.thread, self.form.threads() - self.producers());
        self.w.begin_if(leader);
        let tiles = self.tiles();
        if self.form.wide {
            self.produce_many(tiles);
        } else {
            self.produce_one(tiles);
        }
        self.w.end();
        self.await_cluster();
    }

    fn producers(&self) -> usize {
        self.form.threads() - self.form.warpgroups * super::form::WARPGROUP
    }

    /// Stages of a CTA's first tile that are filled before anything is consumed.
    pub(super) fn ahead(&self) -> usize {
        self.form.stages.min(self.form.steps)
    }

    fn produce_one(&mut self, tiles: Tiles) {
        let (program, inside) = self.program(tiles);
        let origin = self.origin(&program);
        self.begin_tile(origin);
        self.w.effect("nvvm.griddepcontrol wait");
        self.rows_of_begun(origin);
        let steps = self.steps(inside);
        let (stage, parity) = self.after_begun();
        self.fill(origin, self.ahead(), steps, [stage, parity]);
    }

    /// Stages of work of a tile; of one that the step has no rows for, only those begun.
    pub(super) fn steps(&mut self, inside: Ssa) -> Ssa {
        let (all, begun) = (self.w.i32(self.form.steps), self.w.i32(self.ahead()));
        self.w.select(inside, all, begun)
    }

    fn produce_many(&mut self, tiles: Tiles) {
        let (first, step) = (self.w.special_register("ctaid.x"), self.w.special_register("nctaid.x"));
        let count = self.count(tiles);
        let program = self.program_of(tiles, first);
        let origin = self.origin(&program);
        let any = self.w.compare("ult", first, count);
        self.w.begin_if(any);
        self.begin_tile(origin);
        self.w.end();
        self.w.effect("nvvm.griddepcontrol wait");
        self.w.begin_if(any);
        self.rows_of_begun(origin);
        let (stage, parity) = self.after_begun();
        let steps = self.w.i32(self.form.steps);
        let ring = self.fill(origin, self.ahead(), steps, [stage, parity]);
        let second = self.w.sum(first, step);
        let open = self.w.begin_loop([second, count, step], &ring);
        let program = self.program_of(tiles, open.i);
        let origin = self.origin(&program);
        let ring = self.fill(origin, 0, steps, [open.carried[0], open.carried[1]]);
        self.w.end_loop(open, &ring);
        self.w.end();
    }

    /// Fills the ring with the first weights, which depend on nothing.
    fn begin_tile(&mut self, origin: Origin) {
        let bounds = [0, self.ahead(), 1].map(|n| self.w.i32(n));
        let open = self.w.begin_loop(bounds, &[]);
        self.announce(open.i);
        self.load_weights(origin, open.i, open.i);
        self.w.end_loop(open, &[]);
    }

    fn rows_of_begun(&mut self, origin: Origin) {
        let bounds = [0, self.ahead(), 1].map(|n| self.w.i32(n));
        let open = self.w.begin_loop(bounds, &[]);
        self.load_rows(origin, open.i, open.i);
        self.w.end_loop(open, &[]);
    }

    /// The stage to fill next, and the parity of the phase in which it was emptied.
    fn after_begun(&mut self) -> (Ssa, Ssa) {
        let (begun, stages) = (self.ahead(), self.form.stages);
        (self.w.i32(begun % stages), self.w.i32((begun / stages % 2) ^ 1))
    }

    /// Fills stages from step `from` of a tile on; hands back the next stage and its parity.
    fn fill(&mut self, origin: Origin, from: usize, steps: Ssa, ring: [Ssa; 2]) -> Vec<Ssa> {
        let bounds = [self.w.i32(from), steps, self.w.i32(1)];
        let open = self.w.begin_loop(bounds, &ring);
        let [stage, parity] = [open.carried[0], open.carried[1]];
        let empty = self.empty(stage);
        self.w.await_phase(empty, parity);
        self.announce(stage);
        self.load_weights(origin, stage, open.i);
        self.load_rows(origin, stage, open.i);
        let next = self.next_stage(stage, parity);
        self.w.end_loop(open, &next)
    }

    fn announce(&mut self, stage: Ssa) {
        let full = self.full(stage);
        self.w.expect(full, self.form.weight_bytes + self.form.scale_bytes + self.form.row_bytes());
    }

    /// The first line of a stage.
    fn line_of(&mut self, step: Ssa) -> Ssa {
        let step = self.step_of_all(step);
        self.w.times(step, self.form.lines)
    }

    /// A step of this CTA among those of all that share its tile.
    pub(super) fn step_of_all(&mut self, step: Ssa) -> Ssa {
        if self.form.ctas == 1 {
            return step;
        }
        let rank = self.rank();
        let before = self.w.times(rank, self.form.steps);
        self.w.sum(step, before)
    }

    fn load_weights(&mut self, [_, column]: Origin, stage: Ssa, step: Ssa) {
        if self.form.packed.is_some() {
            return self.load_packed(column, stage, step);
        }
        if let Some(scales) = self.product.line_scales {
            self.load_line_scales(scales, column, stage, step);
        }
        let (full, to) = (self.full(stage), self.weights_at(stage));
        let row = self.w.times(column, self.product.matrices());
        let block = self.w.over(row, M);
        let line = self.line_of(step);
        let whole = self.form.weights / M;
        let policy = (!self.form.wide).then_some(EVICT_FIRST);
        if whole == 0 {
            return self.load_half(row, block, line, to, full);
        }
        // a line of all blocks, then the next line; or, where each warpgroup has a block, all lines of it
        let runs = if self.form.wide { self.form.lines } else { 1 };
        let lines = self.form.lines / runs;
        for (run, b) in (0..runs).flat_map(|run| (0..whole).map(move |b| (run, b))) {
            let from = self.weight_block(block, b, line, run);
            let to = self.w.offset(to, ((run * whole + b) * lines * BLOCK_BYTES) as i64);
            self.w.copy_bytes(to, from, full, lines * BLOCK_BYTES, policy);
        }
    }

    /// Half a block of each line.
    fn load_half(&mut self, row: Ssa, block: Ssa, line: Ssa, to: Ssa, full: Ssa) {
        let half = self.w.modulo(row, M);
        let half = self.w.times(half, LINE_BYTES);
        for l in 0..self.form.lines {
            let from = self.weight_block(block, 0, line, l);
            let from = self.w.advance(from, half);
            let to = self.w.offset(to, (l * BLOCK_BYTES / 2) as i64);
            self.w.copy_bytes(to, from, full, BLOCK_BYTES / 2, Some(EVICT_FIRST));
        }
    }

    /// Where a block of weights is: of a tile past the last columns, the last one.
    fn weight_block(&mut self, first: Ssa, block: usize, line: Ssa, l: usize) -> Ssa {
        let [blocks, across] = self.stored_blocks();
        let mut block = self.w.plus(first, block);
        if !(blocks * M).is_multiple_of(self.form.weights) {
            let last = self.w.ints(I32, blocks as i64 - 1);
            block = self.w.binary("arith.minui", block, last);
        }
        let row = self.w.times(block, across);
        let line = self.w.plus(line, l);
        let at = self.w.sum(row, line);
        let at = self.w.wide(at);
        let bytes = self.w.times(at, BLOCK_BYTES);
        let base = self.pointers[self.product.b];
        self.w.advance(base, bytes)
    }

    /// Blocks of the weights along N and along K.
    fn stored_blocks(&self) -> [usize; 2] {
        let param = self.product.param(self.product.b);
        let dims: Vec<usize> = param.ty.dims.iter().filter_map(|d| d.constant()).collect();
        let across = dims.last().map_or(1, |k| k.div_ceil(self.product.line));
        [param.layout.len(&dims) / (across * self.product.line * M), across]
    }

    fn load_rows(&mut self, [row, _]: Origin, stage: Ssa, step: Ssa) {
        let (full, to) = (self.full(stage), self.rows_at(stage));
        let line = self.line_of(step);
        let column = self.w.times(line, self.product.line);
        let policy = (!self.form.wide).then_some(EVICT_LAST);
        for l in 0..self.form.lines {
            let column = self.w.plus(column, l * self.product.line);
            let to = self.w.offset(to, (l * self.form.rows * LINE_BYTES) as i64);
            debug_assert_eq!(to.ty, Ty::Shared);
            self.w.copy_box(to, self.a_map, full, &[column, row], policy);
        }
    }
}

//! The consumers: warpgroups that multiply what the ring holds, then finish their part of the result.

use super::{
    Lower, element,
    form::{BLOCK_BYTES, LINE_BYTES, M, WARPGROUP},
    raster::Tiles,
    store::Tile,
};
use crate::text::{Elem, Ssa, Ty};

/// Registers that the threads of a consumer warpgroup take: two of them and a producer share the 64 Ki of a multiprocessor.
const REGISTERS: usize = 232;
/// The same where the producer keeps some for scales. Either sum is what the CTA starts with: 168 a thread.
const REGISTERS_BESIDE_SCALES: usize = 224;
/// Bytes of the columns of K that one instruction takes.
const DEPTH_BYTES: usize = 32;
/// Accumulators of a thread that sums of lines may take at a time.
const LINE_SUMS: usize = 64;

/// Instructions of a line.
fn slices() -> std::ops::Range<usize> {
    0..LINE_BYTES / DEPTH_BYTES
}

impl Lower<'_> {
    pub(super) fn consume(&mut self) {
        self.await_cluster();
        let tiles = self.tiles();
        if self.form.moves_registers() {
            let all = if self.form.packed.is_some() { REGISTERS_BESIDE_SCALES } else { REGISTERS };
            self.w.resize_registers("increase", all);
        }
        if self.form.wide {
            self.consume_many(tiles);
        } else {
            self.consume_one(tiles);
        }
    }

    fn consume_one(&mut self, tiles: Tiles) {
        let (program, inside) = self.program(tiles);
        let steps = self.steps(inside);
        let origin = self.origin(&program);
        let tile = self.tile(origin);
        let tile = self.finished(tile);
        let early = self.early_pairs(&tile);
        let zero = self.w.i32(0);
        let (_, sums) = self.sum_all([zero, zero], steps);
        self.w.begin_if(inside);
        if self.form.ctas > 1 {
            self.join_halves(sums[0], |l, sums| l.store_narrow(&tile, sums, early.as_deref()));
        } else {
            self.store_narrow(&tile, sums[0], early.as_deref());
        }
        self.w.end();
    }

    fn consume_many(&mut self, tiles: Tiles) {
        let (first, step) = (self.w.special_register("ctaid.x"), self.w.special_register("nctaid.x"));
        let count = self.count(tiles);
        self.w.effect("nvvm.griddepcontrol wait");
        let zero = self.w.i32(0);
        let open = self.w.begin_loop([first, count, step], &[zero, zero]);
        let program = self.program_of(tiles, open.i);
        let origin = self.origin(&program);
        let tile = self.tile(origin);
        let pairs = self.first_boxes(&tile);
        let steps = self.w.i32(self.form.steps);
        let (ring, sums) = self.sum_all([open.carried[0], open.carried[1]], steps);
        self.store_wide(&tile, &sums, pairs);
        self.w.end_loop(open, &ring);
        let leader = self.leads();
        self.w.begin_if(leader);
        self.w.await_stores();
        self.w.end();
    }

    fn tile(&mut self, [row, column]: [Ssa; 2]) -> Tile {
        let group = self.w.over(self.thread, WARPGROUP);
        let warp = self.w.over(self.thread, 32);
        let warp = self.w.modulo(warp, 4);
        Tile { row, column, group, warp }
    }

    /// Whether this is the first thread of its warpgroup.
    pub(super) fn leads(&mut self) -> Ssa {
        let within = self.w.modulo(self.thread, WARPGROUP);
        self.w.is("eq", within, 0)
    }

    /// The sums of a tile over so many stages, from this stage and parity on; hands back the next ones and the accumulators.
    pub(super) fn sum(&mut self, ring: [Ssa; 2], steps: Ssa) -> (Vec<Ssa>, Vec<Ssa>) {
        if self.form.packed.is_some() {
            return self.sum_packed(ring, steps);
        }
        let ty = Ty::Struct(self.form.sums(), Elem::F32);
        let zero = self.w.nullary("llvm.mlir.zero", ty);
        let init: Vec<Ssa> = ring.into_iter().chain(vec![zero; self.form.blocks()]).collect();
        let bounds = [self.w.i32(0), steps, self.w.i32(1)];
        let open = self.w.begin_loop(bounds, &init);
        let [stage, parity] = [open.carried[0], open.carried[1]];
        let full = self.full(stage);
        self.w.await_phase(full, parity);
        let sums = self.multiply_stage(stage, &open.carried[2..]);
        self.release(stage);
        let yields: Vec<Ssa> = self.next_stage(stage, parity).into_iter().chain(sums).collect();
        let mut results = self.w.end_loop(open, &yields);
        let sums = results.split_off(2);
        (results, sums)
    }

    fn multiply_stage(&mut self, stage: Ssa, sums: &[Ssa]) -> Vec<Ssa> {
        let (weights, rows) = (self.weights_at(stage), self.rows_at(stage));
        let group = self.w.over(self.thread, WARPGROUP);
        let (m, n, m_share) = match self.form.wide {
            true => (rows, weights, self.form.rows / self.form.warpgroups * LINE_BYTES),
            false => (weights, rows, self.form.lines * BLOCK_BYTES),
        };
        let share = self.w.times(group, m_share);
        let m = self.w.advance(m, share);
        let (m, n) = (self.w.descriptor(m), self.w.descriptor(n));
        if self.form.promotes { self.sum_lines([m, n], stage, sums) } else { self.sum_chains([m, n], sums) }
    }

    /// One chain of sums for each accumulator.
    fn sum_chains(&mut self, operands: [Ssa; 2], sums: &[Ssa]) -> Vec<Ssa> {
        let mut sums = sums.to_vec();
        self.w.begin_products();
        for (line, k) in (0..self.form.lines).flat_map(|l| slices().map(move |k| (l, k))) {
            for (block, sum) in sums.iter_mut().enumerate() {
                *sum = self.multiply(operands, [line, block, k], *sum, false);
            }
        }
        self.w.await_products();
        sums
    }

    /// A chain of sums for each line of K, added to the accumulators, times its scales where it has some, once they are done.
    fn sum_lines(&mut self, operands: [Ssa; 2], stage: Ssa, sums: &[Ssa]) -> Vec<Ssa> {
        let mut sums = sums.to_vec();
        let scales = self.line_scales(stage);
        let any = self.w.nullary("llvm.mlir.undef", sums[0].ty);
        let all: Vec<(usize, usize)> =
            (0..self.form.lines).flat_map(|line| (0..self.form.blocks()).map(move |block| (line, block))).collect();
        for some in all.chunks((LINE_SUMS / self.form.sums()).max(1)) {
            self.w.begin_products();
            let chains: Vec<Ssa> = some
                .iter()
                .map(|(line, block)| {
                    slices().fold(any, |sum, k| self.multiply(operands, [*line, *block, k], sum, k == 0))
                })
                .collect();
            self.w.await_products();
            for ((line, block), chain) in some.iter().zip(chains) {
                sums[*block] = match &scales {
                    Some(scales) => self.add_scaled(sums[*block], chain, scales, *line),
                    None => self.w.add_members(sums[*block], chain),
                };
            }
        }
        if scales.is_some() {
            // other lanes read scales, too
            self.w.meet_warp();
        }
        sums
    }

    /// One instruction: slice `k` of a line of K, for a block of rows of the instruction's M.
    fn multiply(&mut self, [m, n]: [Ssa; 2], [line, block, k]: [usize; 3], sum: Ssa, fresh: bool) -> Ssa {
        let [m_line, n_line] = self.line_bytes();
        let m = self.w.behind(m, line * m_line + block * M * LINE_BYTES + k * DEPTH_BYTES);
        let n = self.w.behind(n, line * n_line + k * DEPTH_BYTES);
        let dtype = self.product.param(self.product.a).ty.dtype;
        let shape = [self.form.n(), DEPTH_BYTES * 8 / dtype.bits()];
        self.w.multiply([m, n], sum, fresh, shape, element(dtype))
    }

    /// Bytes from one line of K to the next, of the instruction's M operand and of its N operand.
    fn line_bytes(&self) -> [usize; 2] {
        let (rows, weights) = (self.form.rows * LINE_BYTES, self.form.weights * LINE_BYTES);
        if self.form.wide { [rows, weights] } else { [weights.min(BLOCK_BYTES), rows] }
    }

    /// Lets the producer fill a stage again.
    pub(super) fn release(&mut self, stage: Ssa) {
        let first = self.w.is("eq", self.lane, 0);
        self.w.begin_if(first);
        let empty = self.empty(stage);
        self.w.arrive(empty);
        self.w.end();
    }
}

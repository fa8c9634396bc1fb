//! Sums over K in two halves, where a product has few columns: each half is summed for itself, then the two are added. Two CTAs
//! of a cluster that share a tile of few rows have one half each, so that columns which are tiles for half of the
//! multiprocessors keep all of them busy; one CTA takes the halves in turn.
//!
//! Invariant: whether sums have halves depends on K, the columns and the types alone: tiles of any size give the same bits.

use super::{Lower, MULTIPROCESSORS, form::M, form::WARPGROUP, ops::I32, product::Product, store::Tile};
use crate::text::{Elem, Ssa, Ty};
use rvllm_ir::types::DType;

/// Columns up to which two CTAs a block of weights are no more than there are multiprocessors.
const COLUMNS: usize = M * MULTIPROCESSORS as usize / 2;
/// Columns of K from which on halves are worth adding.
const DEPTH: usize = 8192;
/// The same of weights of 4 bits: whoever multiplies makes numbers of them first, so that it is warps there must be more of.
const PACKED_COLUMNS: usize = 2 * COLUMNS;
const PACKED_DEPTH: usize = 2048;
/// Rows and columns up to which CTAs share a tile: more are enough work for one.
const SHARED: usize = 128;
/// Sums of a thread up to which those of the first half stay in registers beside those of the second.
const KEPT_SUMS: usize = 64;
/// Sums that one store takes to a CTA's memory, or to the stack.
const TOGETHER: usize = 4;
const BYTES: usize = 4;

/// Whether the sums of a product have halves.
pub(super) fn has_halves(p: &Product<'_>) -> bool {
    let numbers = matches!(p.param(p.a).ty.dtype, DType::Bf16 | DType::F16);
    let (columns, depth) = if p.groups.is_some() { (PACKED_COLUMNS, PACKED_DEPTH) } else { (COLUMNS, DEPTH) };
    let deep = p.depth.is_multiple_of(2) && p.depth * p.line >= depth;
    numbers && deep && p.matrices() == 1 && p.columns() <= columns
}

/// CTAs that share a tile of such a product.
pub(super) fn ctas(p: &Product<'_>) -> usize {
    if p.n.is_multiple_of(M) && p.n.max(p.m) <= SHARED { 2 } else { 1 }
}

impl Lower<'_> {
    /// This CTA's number in its cluster.
    pub(super) fn rank(&mut self) -> Ssa {
        let cta = self.w.special_register("ctaid.x");
        self.w.modulo(cta, self.form.ctas)
    }

    /// Arrives at the barrier of the cluster, through which others see no memory but that barriers are there.
    pub(super) fn arrive_in_cluster(&mut self) {
        if self.form.ctas > 1 {
            self.w.effect("nvvm.cluster.arrive.relaxed");
        }
    }

    /// Waits until all threads of the cluster have arrived.
    pub(super) fn await_cluster(&mut self) {
        if self.form.ctas > 1 {
            self.w.effect("nvvm.cluster.wait");
        }
    }

    /// The sums of all of K, of which this CTA takes so many stages.
    pub(super) fn sum_all(&mut self, ring: [Ssa; 2], steps: Ssa) -> (Vec<Ssa>, Vec<Ssa>) {
        if !self.form.halves || self.form.ctas > 1 {
            return self.sum(ring, steps);
        }
        // of a tile without rows the second sum has one stage: none would make the assembler wait for every product
        let all = self.w.is("eq", steps, self.form.steps);
        let (half, one) = (self.w.i32(self.form.steps / 2), self.w.i32(1));
        let rest = self.w.select(all, half, one);
        let some = self.w.binary("arith.subi", steps, rest);
        let (ring, first) = self.sum(ring, some);
        let first = self.put_by(first);
        let (ring, second) = self.sum([ring[0], ring[1]], rest);
        let sums = match first {
            Some(first) => first.iter().zip(second).map(|(a, b)| self.w.add_members(*a, b)).collect(),
            None => second,
        };
        (ring, sums)
    }

    /// The stack of a thread whose registers do not hold the sums of both halves.
    pub(super) fn reserve(&mut self) {
        let sums = self.form.blocks() * self.form.sums();
        if self.form.halves && self.form.ctas == 1 && sums > KEPT_SUMS {
            let n = self.w.i32(sums);
            self.stack = Some(
                self.w.op(Ty::Ptr, format_args!("llvm.alloca {n} x f32 {{alignment = 16 : i64}} : (i32) -> !llvm.ptr")),
            );
        }
    }

    /// The sums, or none where they were put on the stack.
    fn put_by(&mut self, sums: Vec<Ssa>) -> Option<Vec<Ssa>> {
        let Some(stack) = self.stack else { return Some(sums) };
        let all: Vec<Ssa> = sums.iter().flat_map(|s| self.members(*s)).collect();
        for (i, some) in all.chunks(TOGETHER).enumerate() {
            let value = self.w.vector_of(some);
            let p = self.w.offset(stack, (i * TOGETHER * BYTES) as i64);
            self.w.store_volatile(value, p);
        }
        None
    }

    /// A pair of sums of the second half, number `first` of block `block` and the next, with those of the first half that are on the
    /// stack.
    pub(super) fn with_first_half(&mut self, pair: Ssa, block: usize, first: usize) -> Ssa {
        let Some(stack) = self.stack else { return pair };
        let p = self.w.offset(stack, ((block * self.form.sums() + first) * BYTES) as i64);
        let theirs = self.w.load_volatile(p, pair.ty);
        self.w.binary("arith.addf", theirs, pair)
    }

    fn members(&mut self, sums: Ssa) -> Vec<Ssa> {
        (0..self.form.sums()).map(|i| self.w.member(sums, i)).collect()
    }

    /// The rows of a tile that this CTA finishes.
    pub(super) fn finished(&mut self, tile: Tile) -> Tile {
        if self.form.finished_rows() == self.form.rows {
            return tile;
        }
        let rank = self.rank();
        let before = self.w.times(rank, self.form.finished_rows());
        Tile { row: self.w.sum(tile.row, before), ..tile }
    }

    /// Adds the other CTA's sums to this one's, for the rows that this one finishes; `finish` is given the sums where it has any.
    pub(super) fn join_halves(&mut self, sums: Ssa, finish: impl FnOnce(&mut Self, Ssa)) {
        let (rank, sums) = (self.rank(), self.members(sums));
        let leads = self.w.is("eq", rank, 0);
        if self.form.finished_rows() == self.form.rows {
            self.w.begin_if(leads);
            let all = self.receive(&sums);
            finish(self, all);
            self.w.otherwise();
            self.send(&sums, rank);
            self.w.end();
            return;
        }
        let (lower, upper) = sums.split_at(sums.len() / 2);
        let pairs = || lower.iter().zip(upper);
        let sent: Vec<Ssa> = pairs().map(|(a, b)| self.w.select(leads, *b, *a)).collect();
        let own: Vec<Ssa> = pairs().map(|(a, b)| self.w.select(leads, *a, *b)).collect();
        self.send(&sent, rank);
        let all = self.receive(&own);
        finish(self, all);
    }

    /// Where this thread's sums come in.
    fn slots(&mut self) -> Ssa {
        let bytes = self.w.times(self.thread, TOGETHER * BYTES);
        let first = self.w.offset(self.shared, self.form.slots_at as i64);
        self.w.advance(first, bytes)
    }

    /// Bytes from a thread's sums to its next.
    fn pitch(&self) -> usize {
        self.form.warpgroups * WARPGROUP * TOGETHER * BYTES
    }

    /// The barrier that says all sums have come.
    pub(super) fn received(&mut self) -> Ssa {
        self.w.offset(self.shared, (self.form.slots_at - 16) as i64)
    }

    /// Announces what the other CTA will send.
    pub(super) fn expect_sums(&mut self) {
        let barrier = self.received();
        self.w.init_barrier(barrier, 1);
        self.w.expect(barrier, self.form.slot_bytes());
    }

    /// Sends sums to the same thread of the other CTA.
    fn send(&mut self, sums: &[Ssa], rank: Ssa) {
        let other = self.w.xor(rank, 1);
        let (slots, barrier) = (self.slots(), self.received());
        let (slots, barrier) = (self.w.address_of(slots, other), self.w.address_of(barrier, other));
        for (i, some) in sums.chunks(TOGETHER).enumerate() {
            let to = self.w.plus(slots, i * self.pitch());
            self.w.store_to_cta(to, some, barrier);
        }
    }

    /// The sums of both CTAs.
    fn receive(&mut self, sums: &[Ssa]) -> Ssa {
        let (barrier, first) = (self.received(), self.w.ints(I32, 0));
        self.w.await_phase(barrier, first);
        let slots = self.slots();
        let mut all = vec![];
        for (i, some) in sums.chunks(TOGETHER).enumerate() {
            let p = self.w.offset(slots, (i * self.pitch()) as i64);
            let theirs = self.w.load(p, Ty::Vector(TOGETHER, Elem::F32), TOGETHER * BYTES);
            for (lane, own) in some.iter().enumerate() {
                let other = self.w.extract(theirs, lane);
                all.push(self.w.binary("arith.addf", *own, other));
            }
        }
        self.w.structure(&all)
    }
}

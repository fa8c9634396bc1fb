//! Rings of shared memory between the thread that has the copy engine fill them and the warps that multiply.
//!
//! Invariants:
//! - both sides count what passes through a ring in the same order: a number says its slot and the phase of the slot's barriers;
//! - a slot is filled again only after a lane of every consumer warp said that it is done with it;
//! - a slot whose elements are widened where they lie is full once they are.

use super::super::{Lower, wgmma::ops::I32};
use super::find::Through;
use crate::text::Ssa;

/// Bytes of a barrier.
pub(crate) const BARRIER: usize = 8;

/// A ring's place in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ring {
    /// First slot.
    pub(crate) at: usize,
    pub(crate) slots: usize,
    pub(crate) slot_bytes: usize,
    /// First barrier: those that say a slot is full, those that say it is empty, and those that say that it was brought where
    /// that is not the same as full.
    pub(crate) barriers: usize,
    /// Where what passes beside the first slot's lines is, and its bytes in each.
    pub(crate) rows: usize,
    pub(crate) row_bytes: usize,
    pub(crate) widened: bool,
}

impl Ring {
    /// The same slots with their rows at `at` and their barriers behind them; and where those end.
    pub(crate) fn ending(self, at: usize) -> (Ring, usize) {
        let barriers = at + self.slots * self.row_bytes;
        let each = if self.widened { 3 } else { 2 };
        (Ring { rows: at, barriers, ..self }, barriers + each * BARRIER * self.slots)
    }
}

/// Where something is that passes through a ring.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    pub(crate) start: Ssa,
    /// What passes beside.
    pub(crate) rows: Ssa,
    /// What the copy engine arrives at.
    pub(crate) brought: Ssa,
    pub(crate) full: Ssa,
    pub(crate) empty: Ssa,
    /// Of the phase that fills it, 0 or 1.
    pub(crate) parity: Ssa,
}

impl Lower<'_> {
    fn ring(&self, through: Through) -> Ring {
        self.streams().rings[through as usize]
    }

    /// Slots of what innermost loops multiply.
    pub(crate) fn passing_slots(&self) -> usize {
        self.ring(Through::Passing).slots
    }

    /// The number of what passes next.
    pub(crate) fn passed(&self, through: Through) -> Ssa {
        self.streams().passed[through as usize]
    }

    /// So many have passed; both rings' numbers are carried together.
    pub(crate) fn set_passed(&mut self, numbers: &[Ssa]) {
        if let (Some(s), [kept, passing]) = (&mut self.streams, numbers) {
            s.passed = [*kept, *passing];
        }
    }

    /// Both rings' numbers.
    pub(crate) fn numbers(&self) -> Vec<Ssa> {
        self.streams().passed.to_vec()
    }

    /// Where number `n` passes.
    pub(crate) fn slot(&mut self, through: Through, n: Ssa) -> Slot {
        let Ring { at, slots, slot_bytes, barriers, rows, row_bytes, widened } = self.ring(through);
        let (slot, turn) = (self.w.modulo(n, slots), self.w.over(n, slots));
        let parity = self.w.modulo(turn, 2);
        let first = self.shared_at(at);
        let bytes = self.w.times(slot, slot_bytes);
        let start = self.w.advance(first, bytes);
        let barrier = self.shared_at(barriers);
        let bytes = self.w.times(slot, BARRIER);
        let full = self.w.advance(barrier, bytes);
        let empty = self.w.offset(full, (BARRIER * slots) as i64);
        if !widened {
            return Slot { start, rows: start, brought: full, full, empty, parity };
        }
        let brought = self.w.offset(empty, (BARRIER * slots) as i64);
        let first = self.shared_at(rows);
        let bytes = self.w.times(slot, row_bytes);
        let rows = self.w.advance(first, bytes);
        Slot { start, rows, brought, full, empty, parity }
    }

    /// Waits until the copy engine has brought the slot's contents.
    pub(crate) fn await_brought(&mut self, slot: Slot) {
        self.w.await_phase(slot.brought, slot.parity);
    }

    /// Waits until the slot is full.
    pub(crate) fn await_full(&mut self, slot: Slot) {
        self.w.await_phase(slot.full, slot.parity);
    }

    /// Waits until the slot is empty: at once in its first turn.
    pub(crate) fn await_empty(&mut self, slot: Slot) {
        let parity = self.w.xor(slot.parity, 1);
        self.w.await_phase(slot.empty, parity);
    }

    /// Says that this warp is done with a slot.
    pub(crate) fn release(&mut self, slot: Slot) {
        self.arrive_once(slot.empty);
    }

    /// Arrives at a barrier, once for the warp.
    pub(crate) fn arrive_once(&mut self, barrier: Ssa) {
        let lane = self.w.special_register("tid.x");
        let lane = self.w.modulo(lane, 32);
        let first = self.w.is("eq", lane, 0);
        self.w.begin_if(first);
        self.w.arrive(barrier);
        self.w.end();
    }

    /// Makes all barriers, for so many consumer warps and warps that widen.
    pub(crate) fn init_rings(&mut self, consumer_warps: usize, wideners: usize) {
        for through in [Through::Kept, Through::Passing] {
            let Ring { slots, barriers, widened, .. } = self.ring(through);
            let brought = widened.then_some(1);
            let arrivals = [Some(if widened { wideners } else { 1 }), Some(consumer_warps), brought];
            for (kind, arrivals) in arrivals.into_iter().flatten().enumerate() {
                for i in 0..slots {
                    let barrier = self.shared_at(barriers + BARRIER * (kind * slots + i));
                    self.w.init_barrier(barrier, arrivals);
                }
            }
        }
        self.w.fence_barriers();
    }

    /// Zero, as the number of what passes first.
    pub(crate) fn start_rings(&mut self) {
        let zero = self.w.ints(I32, 0);
        self.set_passed(&[zero, zero]);
    }
}

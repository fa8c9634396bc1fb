//! Shared memory of a CTA: regions at fixed offsets, and barriers between writes and reads of other threads.
//!
//! Invariants:
//! - a region is one use's own: no two tiles share bytes;
//! - between a write of a region and a read of it, and the other way round, every thread passes a barrier.

use super::Lower;
use crate::text::{Ssa, Ty, Writer};
use std::collections::HashSet;

/// The CTA's dynamic shared memory. There is no other, so that its alignment is the declared one.
pub(crate) const GLOBAL: &str =
    "llvm.mlir.global external @smem() {addr_space = 3 : i32, alignment = 1024 : i64} : !llvm.array<0 x i8>";

/// A part of shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Region {
    pub(crate) offset: usize,
}

/// What is laid out so far.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    base: Ssa,
    bytes: usize,
    /// Regions read, and written, since the last barrier.
    read: HashSet<Region>,
    written: HashSet<Region>,
}

impl Shared {
    pub(crate) fn new(w: &mut Writer) -> Shared {
        let base = w.nullary("llvm.mlir.addressof @smem", Ty::Shared);
        Shared { base, bytes: 0, read: HashSet::new(), written: HashSet::new() }
    }

    /// Bytes that a CTA needs.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Lower<'_> {
    /// A region of its own.
    pub(crate) fn region(&mut self, bytes: usize) -> Region {
        let offset = self.shared.bytes.next_multiple_of(128);
        self.shared.bytes = offset + bytes;
        Region { offset }
    }

    /// Where a region begins.
    pub(crate) fn region_start(&mut self, region: Region) -> Ssa {
        self.w.offset(self.shared.base, region.offset as i64)
    }

    /// Waits for all threads that hold tiles.
    pub(crate) fn barrier(&mut self) {
        match self.consumes() {
            true => self.meet_consumers(),
            false => self.w.effect("nvvm.barrier0"),
        }
        self.shared.read.clear();
        self.shared.written.clear();
    }

    /// Waits for all threads where something is not yet seen by all.
    pub(crate) fn settle_shared(&mut self) {
        if !self.shared.read.is_empty() || !self.shared.written.is_empty() {
            self.barrier();
        }
    }

    /// To be called before a region is written.
    pub(crate) fn write_region(&mut self, region: Region) {
        if self.shared.read.contains(&region) || self.shared.written.contains(&region) {
            self.barrier();
        }
        self.shared.written.insert(region);
    }

    /// To be called before a region is read.
    pub(crate) fn read_region(&mut self, region: Region) {
        if self.shared.written.contains(&region) {
            self.barrier();
        }
        self.shared.read.insert(region);
    }
}

//! Warps between the producer and the consumers: of elements of 8 bits, which lie as they are stored in the second half of a slot, they
//! make the slot's lines of 16-bit numbers, in the order that the tensor cores read.
//!
//! Invariants:
//! - a number is exactly the element's: an 8-bit element has no more digits than bf16;
//! - lines of the first half are written while nothing but elements is in the second, those of the second half once all elements
//!   are in registers;
//! - what is written is seen by the tensor cores before the slot is full.

use super::{
    super::{Lower, wgmma::ops::I32},
    Role,
    find::{LINE, LINE_BYTES, PATTERN, Stream},
};
use crate::text::{Elem, Ssa, Ty};
use rvllm_ir::types::DType;

/// The barrier of these warps.
const BARRIER: usize = 4;
/// Elements that a thread widens at once: as many numbers as one access of shared memory takes.
const PIECE: usize = 8;
/// Pieces whose elements are read while numbers of as many are written.
const BATCH: usize = 4;
/// Two bf16 numbers of a register.
const PAIR: Ty = Ty::Vector(2, Elem::Bf16);

/// A thread's share of a half of a slot's lines: pieces at one distance from each other.
struct Share {
    count: usize,
    /// The first piece's elements, and bytes from each to the next.
    from: Ssa,
    from_step: usize,
    /// The same of its numbers.
    to: Ssa,
    to_step: usize,
}

impl Lower<'_> {
    /// Whether statements are lowered for the warps that widen.
    pub(super) fn widens(&self) -> bool {
        self.streams().role == Role::Widener
    }

    /// Makes numbers of the elements in the slot of number `n`.
    pub(super) fn widen_slot(&mut self, stream: &Stream, n: Ssa) {
        let slot = self.slot(stream.through, n);
        self.await_brought(slot);
        let halves = [0, 1].map(|half| self.share_of(stream, slot.start, half));
        self.widen_as_read(&halves[0], stream.stored);
        self.widen_once_read(&halves[1], stream.stored);
        self.w.fence_copies();
        self.w.meet_warp();
        self.arrive_once(slot.full);
    }

    /// A thread's share of a half of the lines. Lines of neighbouring elements lie one behind the other; each is in a half of its own, or
    /// the one that there is has half of its rows in each.
    fn share_of(&mut self, stream: &Stream, start: Ssa, half: usize) -> Share {
        let threads = 32 * self.wideners();
        let row_bytes = stream.extents[0];
        let rows = stream.bytes() / 2 / LINE_BYTES;
        let first = if stream.lines() == 1 { half * rows * row_bytes } else { half * LINE };
        let thread = self.w.special_register("tid.x");
        let first_thread = self.w.i32(self.first_widener());
        let thread = self.w.binary("arith.subi", thread, first_thread);
        let (row, piece) = (self.w.over(thread, LINE / PIECE), self.w.modulo(thread, LINE / PIECE));
        let (of_row, of_piece) = (self.w.times(row, row_bytes), self.w.times(piece, PIECE));
        let within = self.w.sum(of_row, of_piece);
        let from = self.w.advance(start, within);
        let from = self.w.offset(from, (stream.bytes() / 2 + first) as i64);
        let phase = self.w.modulo(row, PATTERN);
        let swizzled = self.w.binary("arith.xori", piece, phase);
        let (of_row, of_piece) = (self.w.times(row, LINE_BYTES), self.w.times(swizzled, 2 * PIECE));
        let within = self.w.sum(of_row, of_piece);
        let to = self.w.advance(start, within);
        let to = self.w.offset(to, (half * stream.bytes() / 2) as i64);
        let step = threads * PIECE / LINE;
        Share { count: rows / step, from, from_step: step * row_bytes, to, to_step: step * LINE_BYTES }
    }

    /// Numbers that take no element's place.
    fn widen_as_read(&mut self, share: &Share, stored: DType) {
        let mut read: Vec<Ssa> = (0..share.count.min(BATCH)).map(|j| self.elements(share, j)).collect();
        for first in (0..share.count).step_by(BATCH) {
            let next = (first + BATCH).min(share.count)..(first + 2 * BATCH).min(share.count);
            let ahead = next.map(|j| self.elements(share, j)).collect();
            for (j, elements) in std::mem::replace(&mut read, ahead).into_iter().enumerate() {
                self.write_numbers(share, first + j, elements, stored);
            }
        }
    }

    /// Numbers that take the elements' place.
    fn widen_once_read(&mut self, share: &Share, stored: DType) {
        let elements: Vec<Ssa> = (0..share.count).map(|j| self.elements(share, j)).collect();
        let barrier = self.w.i32(BARRIER);
        self.w.meet(barrier, 32 * self.wideners());
        for (j, elements) in elements.into_iter().enumerate() {
            self.write_numbers(share, j, elements, stored);
        }
    }

    /// A piece's elements in two registers.
    fn elements(&mut self, share: &Share, piece: usize) -> Ssa {
        let p = self.w.offset(share.from, (piece * share.from_step) as i64);
        self.w.load(p, Ty::Vector(2, Elem::I32), PIECE)
    }

    fn write_numbers(&mut self, share: &Share, piece: usize, elements: Ssa, stored: DType) {
        let mut numbers = vec![];
        for word in [0, 1] {
            let word = self.w.extract(elements, word);
            numbers.extend([0, 1].map(|pair| self.pair_of(word, pair, stored)));
        }
        let numbers = self.w.vector_of(&numbers);
        let p = self.w.offset(share.to, (piece * share.to_step) as i64);
        self.w.store(numbers, p, 2 * PIECE);
    }

    /// Two neighbouring elements of a word as bf16 numbers.
    fn pair_of(&mut self, word: Ssa, pair: usize, stored: DType) -> Ssa {
        match stored {
            DType::I8 => self.pair_of_integers(word, pair),
            _ => self.pair_of_e4m3(word, pair),
        }
    }

    /// Sign, exponent and digits go where bf16 has them, which makes numbers 2^120 too small, those below the least exponent too.
    /// A NaN, which a cache has only of a token whose own numbers are none, becomes 480.
    fn pair_of_e4m3(&mut self, word: Ssa, pair: usize) -> Ssa {
        // each element under eight copies of its sign
        let spread = self.permuted(word, word, [0x9180, 0xb3a2][pair]);
        let four = self.w.i32(4);
        let shifted = self.w.binary("arith.shli", spread, four);
        let mask = self.w.ints(I32, 0x87f0_87f0_u32 as i32 as i64);
        let small = self.w.binary("arith.andi", shifted, mask);
        let small = self.w.retype(small, PAIR);
        let power = self.twice(0x7b80);
        let pair = self.w.binary("arith.mulf", small, power);
        self.w.retype(pair, I32)
    }

    /// The last seven bits are digits of 128 and more; the sign says whether that is 128 too much or 256.
    fn pair_of_integers(&mut self, word: Ssa, pair: usize) -> Ssa {
        let powers = self.w.ints(I32, 0x4343_4343);
        let both = self.permuted(word, powers, [0x4140, 0x4342][pair]);
        let [digits, excess] = [0xff7f_ff7f_u32, 0xff80_ff80].map(|mask| {
            let mask = self.w.ints(I32, i64::from(mask as i32));
            let bits = self.w.binary("arith.andi", both, mask);
            self.w.retype(bits, PAIR)
        });
        let pair = self.w.binary("arith.subf", digits, excess);
        self.w.retype(pair, I32)
    }

    /// A bf16 number of these bits in both halves of a register.
    fn twice(&mut self, bits: i64) -> Ssa {
        let both = self.w.ints(I32, bits << 16 | bits);
        self.w.retype(both, PAIR)
    }

    /// Bytes of two words as a selector says.
    fn permuted(&mut self, a: Ssa, b: Ssa, selector: usize) -> Ssa {
        let selector = self.w.i32(selector);
        self.w.intrinsic("llvm.nvvm.prmt", &[a, b, selector], I32)
    }
}

//! Products of integers on vectors, exact: groups of k values in 32-bit lanes, four bytes or eight values of 4 bits each.
//!
//! With 8-bit dot products four products are one instruction, which takes its first factors as unsigned: signed weights go
//! in with 128 added, and 128 times the sum of a row of a comes off at the end. Without, bytes are widened to pairs of 16
//! bits and multiplied by the instruction that adds neighbours, or lane by lane.

use super::{Lower, mma::Part, operand::View, tile::LANES};
use crate::{
    bounds::Cond,
    text::{Elem, Ssa, Ty},
};
use rvllm_ir::types::DType;
use rvllm_targets::Arch;

/// What a's i8 values are multiplied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Integer {
    /// i8.
    Signed,
    /// u8.
    Unsigned,
    /// Of 4 bits, unsigned.
    Nibbles,
}

/// Bytes of a that are summed up at a time.
const BYTES: usize = 4 * LANES;

impl Integer {
    /// The unit for these element types.
    pub(super) fn of(a: DType, b: DType) -> Option<Integer> {
        match (a, b) {
            (DType::I8, DType::I8) => Some(Integer::Signed),
            (DType::I8, DType::U8) => Some(Integer::Unsigned),
            (DType::I8, DType::U4) => Some(Integer::Nibbles),
            _ => None,
        }
    }

    /// k values of a 32-bit lane of b.
    pub(super) fn group(self) -> usize {
        match self {
            Integer::Signed | Integer::Unsigned => 4,
            Integer::Nibbles => 8,
        }
    }

    /// What keeps the first `n` values of a lane of a, where a part of a group can be taken.
    pub(super) fn keep(self, n: usize) -> Option<i64> {
        match self {
            Integer::Signed | Integer::Unsigned => Some((1 << (8 * n)) - 1),
            Integer::Nibbles => None,
        }
    }
}

impl Lower<'_> {
    /// One group of a row of a: four bytes in every lane, twice for values of 4 bits.
    pub(super) fn a_integers(&mut self, unit: Integer, a: &View, p: Ssa, inside: Cond, keep: Option<Ssa>) -> Vec<Ssa> {
        let mut lanes = vec![];
        for i in 0..unit.group() / 4 {
            let p = self.w.offset(p, 4 * i as i64);
            let mut lane = self.load_scalar(p, Ty::Scalar(Elem::I32), &a.address, inside);
            if let Some(keep) = keep {
                lane = self.w.binary("arith.andi", lane, keep);
            }
            lanes.push(self.w.splat(lane, LANES));
        }
        lanes
    }

    /// One group of 16 rows of b as bytes: those that a's lanes of the same place are multiplied with.
    pub(super) fn b_integers(&mut self, unit: Integer, lanes: Ssa) -> Vec<Ssa> {
        match unit {
            Integer::Unsigned => vec![lanes],
            Integer::Signed if self.target.dot_i8 => {
                let sign = self.w.ints(lanes.ty, 0x8080_8080_u32 as i32 as i64);
                vec![self.w.binary("arith.xori", lanes, sign)]
            }
            Integer::Signed => vec![lanes],
            Integer::Nibbles => {
                let (four, mask) = (self.w.ints(lanes.ty, 4), self.w.ints(lanes.ty, 0x0f0f_0f0f));
                let low = self.w.binary("arith.andi", lanes, mask);
                let high = self.w.binary("arith.shrui", lanes, four);
                vec![low, self.w.binary("arith.andi", high, mask)]
            }
        }
    }

    /// `sum` plus four products in each lane.
    pub(super) fn dot_integers(&mut self, unit: Integer, sum: Ssa, a: Ssa, b: Ssa) -> Ssa {
        if self.target.dot_i8 {
            let [a, b] = [a, b].map(|v| self.w.bitcast(v, Ty::Vector(BYTES, Elem::I8)));
            return self.w.intrinsic("llvm.x86.avx512.vpdpbusd.512", &[sum, b, a], sum.ty);
        }
        let (a, b) = (self.halves(a, true), self.halves(b, unit == Integer::Signed));
        a.into_iter().zip(b).fold(sum, |sum, (a, b)| {
            let products = self.add_pairs(a, b);
            self.w.binary("arith.addi", sum, products)
        })
    }

    /// Bytes 0 and 2, and bytes 1 and 3, of each lane as 16-bit values.
    fn halves(&mut self, lanes: Ssa, signed: bool) -> [Ssa; 2] {
        let wide = self.w.bitcast(lanes, Ty::Vector(2 * LANES, Elem::I16));
        let eight = self.w.ints(wide.ty, 8);
        let even = self.w.binary("arith.shli", wide, eight);
        let shift = if signed { "arith.shrsi" } else { "arith.shrui" };
        [even, wide].map(|v| self.w.binary(shift, v, eight))
    }

    /// Products of 16-bit values, each two neighbours added.
    fn add_pairs(&mut self, a: Ssa, b: Ssa) -> Ssa {
        let sums = Ty::Vector(LANES, Elem::I32);
        match (self.target.arch, self.target.requires.iter().any(|f| f == "avx512bw")) {
            (Arch::X86_64, true) => self.w.intrinsic("llvm.x86.avx512.pmaddw.d.512", &[a, b], sums),
            (Arch::X86_64, false) => {
                let half = |w: &mut crate::text::Writer, v, i| {
                    w.shuffle(v, v, &(i * LANES..(i + 1) * LANES).collect::<Vec<_>>())
                };
                let [low, high] = [0, 1].map(|i| {
                    let (a, b) = (half(&mut self.w, a, i), half(&mut self.w, b, i));
                    self.w.intrinsic("llvm.x86.avx2.pmadd.wd", &[a, b], Ty::Vector(LANES / 2, Elem::I32))
                });
                self.w.shuffle(low, high, &(0..LANES).collect::<Vec<_>>())
            }
            _ => {
                let [even, odd] = [0, 1].map(|first| {
                    let lanes: Vec<usize> = (0..LANES).map(|i| 2 * i + first).collect();
                    let [a, b] = [a, b].map(|v| {
                        let half = self.w.shuffle(v, v, &lanes);
                        self.w.convert("arith.extsi", half, sums)
                    });
                    self.w.binary("arith.muli", a, b)
                });
                self.w.binary("arith.addi", even, odd)
            }
        }
    }

    /// Takes off what 128 added to the values of b added to the sums of a part over `k`.
    pub(super) fn correct(&mut self, unit: Integer, part: &Part<'_>, k: usize, sums: Vec<Ssa>) -> Vec<Ssa> {
        if unit != Integer::Signed || !self.target.dot_i8 {
            return sums;
        }
        let each = part.chunks.len();
        let mut corrected = vec![];
        for (row, sums) in part.rows.clone().zip(sums.chunks_exact(each)) {
            let extra = self.row_sum(part, row, k);
            let seven = self.w.ints(extra.ty, 7);
            let extra = self.w.binary("arith.shli", extra, seven);
            let extra = self.w.splat(extra, LANES);
            corrected.extend(sums.iter().map(|sum| self.w.binary("arith.subi", *sum, extra)));
        }
        corrected
    }

    /// The sum of the first `k` values of a row of a.
    fn row_sum(&mut self, part: &Part<'_>, row: usize, k: usize) -> Ssa {
        let inside = self.view_row_inside(part.a, row);
        let start = self.w.at(part.a.address.base, part.a.address.rows[row]);
        let mut sum = self.w.zero(Ty::Vector(LANES, Elem::I32));
        if k >= BYTES {
            let [zero, end, one] = [0, k / BYTES, 1].map(|n| self.w.int(n as i64));
            let open = self.w.begin_loop([zero, end, one], &[sum]);
            let at = self.w.scale(crate::index::Index::value(open.i), BYTES);
            let p = self.w.at(start, at);
            let next = self.add_bytes(open.carried[0], p, BYTES, inside);
            sum = self.w.end_loop(open, &[next])[0];
        }
        if !k.is_multiple_of(BYTES) {
            let p = self.w.offset(start, (k / BYTES * BYTES) as i64);
            sum = self.add_bytes(sum, p, k % BYTES, inside);
        }
        self.w.op(Ty::Scalar(Elem::I32), format_args!("vector.reduction <add>, {sum} : {} into i32", sum.ty))
    }

    /// `sum` plus the first `n` of 64 bytes, four to a lane.
    fn add_bytes(&mut self, sum: Ssa, p: Ssa, n: usize, inside: Cond) -> Ssa {
        let ty = Ty::Vector(BYTES, Elem::I8);
        let mask = (n < BYTES).then(|| {
            let lanes: Vec<i64> = (0..BYTES).map(|i| i64::from(i < n)).collect();
            self.w.dense(Elem::I1, &lanes)
        });
        let bytes = match self.mask_under(inside, mask, BYTES) {
            None => self.w.load(p, ty, 1),
            Some(mask) => self.w.masked_load(p, mask, ty, 1),
        };
        let ones = self.w.ints(ty, 1);
        self.w.intrinsic("llvm.x86.avx512.vpdpbusd.512", &[sum, ones, bytes], sum.ty)
    }
}

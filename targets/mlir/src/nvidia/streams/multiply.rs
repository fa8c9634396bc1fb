//! Products of a warpgroup's 64 rows, and the elementwise operations that stand between them: the hardware's approximations
//! (2^-22 and two units in the last place), constants folded into one multiply-add, and no comparison that cannot fail.

use super::{
    super::{
        Lower, Value,
        operand::INSTRUCTION_K,
        place::Place,
        tile::{Data, Tile},
        wgmma::ops::DESCRIPTOR,
    },
    find::{DEPTH, LINE, LINE_BYTES, M, PATTERN},
    ring::Slot,
};
use crate::{
    Error, map,
    text::{Elem, Ssa, Ty},
};
use rvllm_ir::{
    tile::{Cmp, Inst, MapOp, Stmt, Val},
    types::DType,
};
use std::collections::HashMap;

const F32: Ty = Ty::Scalar(Elem::F32);
/// Descriptor of an operand whose lines are rows of k, without its address: bit 62 the 128-byte swizzle, 32 to 45 the distance of
/// groups of eight lines, both in 16 bytes. Bits 16 to 29 take that of the next 64 columns.
const TRANSPOSED: i64 = (1 << 62) | (((PATTERN * LINE_BYTES / 16) as i64) << 32);

fn element(dtype: DType) -> &'static str {
    if dtype == DType::F16 { "f16" } else { "bf16" }
}

impl Lower<'_> {
    /// An address as descriptors have it, known to be that of all lanes.
    fn shared_address(&mut self, p: Ssa) -> Ssa {
        let at = self.w.address(p);
        self.w.uniform(at)
    }

    /// Begins a product of two streams, the left of which is kept, the right in a slot.
    pub(super) fn begin_first(&mut self, s: &Stmt, right: Slot) -> Result<Vec<Ssa>, Error> {
        let Inst::Mma { a, b, acc } = s.inst else { return Err(self.unsupported("a product that is none")) };
        let (Some(left), Some(stream)) = (self.streamed(a), self.streamed(b)) else {
            return Err(self.unsupported("a product of what is not streamed"));
        };
        let kept = self.kept(left.operand).ok_or_else(|| self.misplaced(a, "an operand that is there"))?;
        let n = self.kernel.tile(acc).shape[1];
        let group = self.w.special_register("tid.x");
        let group = self.w.over(group, 2 * M);
        let rows = self.w.times(group, M * LINE_BYTES);
        let start = self.w.advance(kept.start, rows);
        let [a, b] = [start, right.start].map(|p| self.shared_address(p));
        let ty = Ty::Struct(n / 2, Elem::F32);
        let mut sums = self.w.nullary("llvm.mlir.zero", ty);
        let elem = element(left.dtype);
        for (line, k) in (0..left.lines()).flat_map(|l| (0..LINE / DEPTH).map(move |k| (l, k))) {
            let sides = [(a, left.line_bytes()), (b, stream.line_bytes())];
            let [a, b] =
                sides.map(|(at, line_bytes)| self.w.descriptor_at(at, DESCRIPTOR, line * line_bytes + k * 2 * DEPTH));
            sums = self.w.multiply([a, b], sums, false, [n, DEPTH], elem);
        }
        Ok((0..n / 2).map(|i| self.w.member(sums, i)).collect())
    }

    /// Begins a product of what was computed with a stream in a slot.
    pub(super) fn begin_second(&mut self, v: Val, right: Slot, (a, sums): (&[Ssa], &[Ssa])) -> Result<Vec<Ssa>, Error> {
        let stream = self.streamed(v).ok_or_else(|| self.misplaced(v, "what is streamed"))?;
        let (b, base) = (self.shared_address(right.start), TRANSPOSED | ((stream.line_bytes() / 16) as i64) << 16);
        let elem = element(stream.dtype);
        let mut sums = sums.to_vec();
        for (step, a) in a.chunks(4).enumerate() {
            let b = self.w.descriptor_at(b, base, step * INSTRUCTION_K * LINE_BYTES);
            sums = self.w.multiply_registers(a, b, &sums, elem);
        }
        Ok(sums)
    }

    /// Lowers an elementwise statement where that is cheaper than the exact operations; `false` where it is not.
    pub(super) fn approximate(&mut self, s: &Stmt) -> Result<bool, Error> {
        let tile = match &s.inst {
            Inst::Map(MapOp::Exp, args) => self.power(args[0])?,
            Inst::Map(MapOp::Div, args) => self.quotient(args[0], args[1])?,
            Inst::Select { cmp, a, b, x, y } => match self.choice(*cmp, [*a, *b], [*x, *y])? {
                Some(tile) => tile,
                None => return Ok(false),
            },
            _ => return Ok(false),
        };
        self.values.insert(s.results[0], Value::Tile(tile));
        Ok(true)
    }

    pub(super) fn definition(&self, v: Val) -> Option<&Inst> {
        self.streams().plan.definitions.get(&v).copied()
    }

    fn constant_of(&self, v: Val) -> Option<f32> {
        match self.definition(v) {
            Some(Inst::Full(c)) => Some(*c),
            _ => None,
        }
    }

    /// e to the power of x: of `y c - z`, one multiply-add an element, of which z's share is computed once a row; of anything else
    /// exactly 1 at 0.
    fn power(&mut self, x: Val) -> Result<Tile, Error> {
        let t = self.tile(x)?;
        let scaled = match self.definition(x) {
            Some(Inst::Map(MapOp::Sub, args)) => match self.definition(args[0]) {
                Some(Inst::Map(MapOp::Mul, of)) => self.constant_of(of[1]).map(|c| (of[0], c, args[1])),
                _ => None,
            },
            _ => None,
        };
        let log2e = std::f32::consts::LOG2_E;
        let Some((y, c, z)) = scaled else {
            let log2e = self.w.floats(F32, log2e);
            return Ok(self.on_each(&[t], |l, x| {
                let x = l.w.binary("arith.mulf", x[0], log2e);
                l.w.intrinsic("llvm.nvvm.ex2.approx.ftz.f", &[x], F32)
            }));
        };
        let (y, z) = (self.tile(y)?, self.tile(z)?);
        let (factor, negative) = (self.w.floats(F32, c * log2e), self.w.floats(F32, -log2e));
        let mut shares: HashMap<Ssa, Ssa> = HashMap::new();
        Ok(self.on_each(&[y, z], |l, x| {
            let share = *shares.entry(x[1]).or_insert_with(|| l.w.binary("arith.mulf", x[1], negative));
            let x = l.w.fma(x[0], factor, share);
            l.w.intrinsic("llvm.nvvm.ex2.approx.ftz.f", &[x], F32)
        }))
    }

    fn quotient(&mut self, a: Val, b: Val) -> Result<Tile, Error> {
        let (a, b) = (self.tile(a)?, self.tile(b)?);
        let mut inverses: HashMap<Ssa, Ssa> = HashMap::new();
        Ok(self.on_each(&[a, b], |l, x| {
            let inverse =
                *inverses.entry(x[1]).or_insert_with(|| l.w.intrinsic("llvm.nvvm.rcp.approx.ftz.f", &[x[1]], F32));
            l.w.binary("arith.mulf", x[0], inverse)
        }))
    }

    /// Element by element, at the place of the one that is hardest to move.
    fn on_each(&mut self, tiles: &[Tile], mut op: impl FnMut(&mut Self, &[Ssa]) -> Ssa) -> Tile {
        let first = &tiles[0];
        let place = tiles.iter().filter_map(Tile::place).max_by_key(|p| p.rank());
        let Some(place) = place else {
            let lanes: Vec<Ssa> = tiles.iter().flat_map(|t| self.settle(t, Place::Runs([1, 1]))).collect();
            let v = op(self, &lanes);
            return Tile { data: Data::Splat(v), ..first.clone() };
        };
        let regs: Vec<Vec<Ssa>> = tiles.iter().map(|t| self.settle(t, place)).collect();
        let out = (0..regs[0].len()).map(|i| op(self, &regs.iter().map(|r| r[i]).collect::<Vec<_>>())).collect();
        Tile { data: Data::Regs(place, out), ..first.clone() }
    }

    /// A choice between elements by two ramps: where all of a warp's would be the first, it is not made.
    fn choice(&mut self, cmp: Cmp, ramps: [Val; 2], [x, y]: [Val; 2]) -> Result<Option<Tile>, Error> {
        let [a, b] = [self.tile(ramps[0])?, self.tile(ramps[1])?];
        let (Some([_, most]), Some([least, _])) = (self.reach(&a), self.reach(&b)) else { return Ok(None) };
        let predicate = match cmp {
            Cmp::Le => "sle",
            Cmp::Lt => "slt",
            Cmp::Eq => return Ok(None),
        };
        let (x, y) = (self.tile(x)?, self.tile(y)?);
        let Some(place) = x.place() else { return Ok(None) };
        let regs = self.settle(&x, place);
        let all = self.w.compare(predicate, most, least);
        let types = vec![F32; regs.len()];
        let chosen = self.w.begin_choice(all, &types);
        self.w.give(&regs);
        self.w.otherwise();
        let [a, b, y] = [&a, &b, &y].map(|t| self.settle(t, place));
        let picked: Vec<Ssa> =
            (0..regs.len()).map(|i| map::select(&mut self.w, cmp, [a[i], b[i]], [regs[i], y[i]])).collect();
        self.w.give(&picked);
        self.w.end();
        Ok(Some(self.tile_at(&x.shape, x.dtype, place, chosen)))
    }

    /// The smallest and the largest of a ramp's elements in this warp's rows.
    fn reach(&mut self, t: &Tile) -> Option<[Ssa; 2]> {
        let Data::Ramp { start, div, axis } = t.data else { return None };
        let [_, cols] = t.shape[..] else { return None };
        if axis == 1 {
            return Some([start, self.w.plus(start, (cols - 1) / div)]);
        }
        let thread = self.w.special_register("tid.x");
        let warp = self.w.over(thread, 32);
        let row = self.w.times(warp, INSTRUCTION_K);
        Some([0, INSTRUCTION_K - 1].map(|r| {
            let row = self.w.plus(row, r);
            let step = self.w.over(row, div);
            self.w.sum(start, step)
        }))
    }
}

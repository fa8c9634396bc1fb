//! Matrix products on vectors: accumulators in registers, one element of a against 16 columns of b per instruction.
//!
//! Products are added in ascending k. With 16-bit dot products a pair of k values is one instruction; without, a pair is
//! two fused multiply-adds, the lower k first. So how an accumulator is cut into blocks changes no bit.

use super::{Lower, Value, integer::Integer, operand::View, tile::*};
use crate::{
    Error,
    bounds::Cond,
    index::Index,
    text::{Elem, Ssa, Ty},
};
use rvllm_ir::{tile::Val, types::DType};

/// How a group of k values is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    /// f32, one at a time.
    Single,
    /// bf16, one at a time.
    SingleBf16,
    /// Pairs of bf16, split into two f32 products.
    Pair,
    /// Pairs of bf16 in one instruction.
    Dot,
    /// Integers: see [`super::integer`].
    Integer(Integer),
}

impl Unit {
    fn group(self) -> usize {
        match self {
            Unit::Single | Unit::SingleBf16 => 1,
            Unit::Pair | Unit::Dot => 2,
            Unit::Integer(unit) => unit.group(),
        }
    }

    /// What one lane of a group is in memory.
    fn lane(self) -> Elem {
        match self {
            Unit::Single => Elem::F32,
            Unit::SingleBf16 => Elem::I16,
            Unit::Pair | Unit::Dot | Unit::Integer(_) => Elem::I32,
        }
    }
}

/// A block of the accumulator that stays in registers: rows of a against chunks of b's rows.
pub(super) struct Part<'v> {
    pub(super) a: &'v View,
    b: &'v View,
    unit: Unit,
    pub(super) rows: std::ops::Range<usize>,
    pub(super) chunks: Vec<(usize, usize)>,
    /// Whether b is prefetched along the way.
    fetch: bool,
}

/// Where a step over k stands.
#[derive(Clone, Copy)]
struct At {
    /// Bytes to the group, in a and in b.
    bytes: [Index; 2],
    /// Keeps of an `i32` lane what lies inside: for the last of an odd number of k values.
    keep: Option<Ssa>,
}

impl Lower<'_> {
    /// `acc + a · bᵀ`.
    pub(crate) fn mma(&mut self, a: &View, b: &View, acc: Val) -> Result<Value, Error> {
        let (a, b) = (&self.widened_operand(a, 0)?, &self.widened_operand(b, a.rows())?);
        if let Some(Value::Amx(acc)) = self.values.get(&acc) {
            let acc = acc.clone();
            return self.mma_amx(a, b, acc).map(Value::Amx);
        }
        if let Some(Value::Stored(acc)) = self.values.get(&acc) {
            let acc = *acc;
            return self.mma_stored(a, b, acc).map(Value::Stored);
        }
        let acc = self.tile(acc)?;
        if let Some(tile) = self.mma_tiled(a, b, &acc) {
            return Ok(Value::Tile(tile));
        }
        let unit = self.unit(a, b)?;
        let [m, n] = [a.rows(), b.rows()];
        let per_row = chunks(&[n]).len();
        let mut vecs = acc.vecs.clone();
        for rows in cut(m, self.accumulators()) {
            let columns = (self.accumulators() / rows.len()).max(1);
            for columns in cut(per_row, columns) {
                let fetch = rows.start == 0 && b.ahead.is_some();
                let chunks = chunks(&[n])[columns.clone()].to_vec();
                let part = Part { a, b, unit, rows: rows.clone(), chunks, fetch };
                let at: Vec<usize> = rows.clone().flat_map(|r| columns.clone().map(move |c| r * per_row + c)).collect();
                let sums: Vec<Ssa> = at.iter().map(|i| vecs[*i]).collect();
                for (i, sum) in at.iter().zip(self.multiply(&part, &sums)?) {
                    vecs[*i] = sum;
                }
            }
        }
        Ok(Value::Tile(Tile { vecs, ..acc }))
    }

    /// The operand as it is multiplied, for `rows` of the other: as it lies where each of its elements is then widened once.
    fn widened_operand(&mut self, view: &View, rows: usize) -> Result<View, Error> {
        let Some(to) = view.wide else { return Ok(view.clone()) };
        let once = (1..=self.accumulators()).contains(&rows) && !self.target.amx_bf16;
        if once && super::widen::in_lines(view) { Ok(view.clone()) } else { self.widen(view, to) }
    }

    /// Vectors of 16 that may accumulate at once, leaving registers for operands.
    fn accumulators(&self) -> usize {
        if self.target.requires.iter().any(|f| f == "avx512f") { 24 } else { 6 }
    }

    fn unit(&self, a: &View, b: &View) -> Result<Unit, Error> {
        let uniform = |g: usize| a.step(g).is_some() && b.step(g).is_some();
        let pairs = a.group().min(b.group()) == 2 && uniform(2);
        if let Some(unit) = Integer::of(a.dtype, b.dtype).filter(|unit| uniform(unit.group())) {
            return Ok(Unit::Integer(unit));
        }
        match a.dtype {
            DType::F32 if uniform(1) => Ok(Unit::Single),
            DType::Bf16 if pairs && self.target.dot_bf16 => Ok(Unit::Dot),
            DType::Bf16 if pairs => Ok(Unit::Pair),
            DType::Bf16 if uniform(1) => Ok(Unit::SingleBf16),
            other => Err(self.unsupported(format!("mma of {other} operands that lie so in memory"))),
        }
    }

    /// The sums of one part after all of k.
    fn multiply(&mut self, part: &Part<'_>, sums: &[Ssa]) -> Result<Vec<Ssa>, Error> {
        let group = part.unit.group();
        let depth = self.depth(part.a, part.b);
        let mut sums = self.widened(sums);
        if let Some(k) = depth.as_const() {
            let k = k as usize;
            sums = self.steps(part, Index::constant((k / group) as i64), None, sums)?;
            if !k.is_multiple_of(group) {
                let keep = match part.unit {
                    Unit::Integer(unit) => unit.keep(k % group).ok_or_else(|| self.ragged(part))?,
                    _ => 0xffff,
                };
                let keep = self.w.ints(Ty::Scalar(Elem::I32), keep);
                let at = self.at(part, Index::constant((k / group) as i64), Some(keep))?;
                sums = self.step(part, at, &sums);
            }
            if let Unit::Integer(unit) = part.unit {
                sums = self.correct(unit, part, k, sums);
            }
        } else if matches!(part.unit, Unit::Integer(_)) {
            return Err(self.ragged(part));
        } else {
            let up = self.w.add_const(depth, group - 1);
            let count = self.w.div(up, group);
            let odd = (!depth.is_multiple_of(group)).then_some(depth);
            sums = self.steps(part, count, odd, sums)?;
        }
        Ok(self.narrowed(part, &sums))
    }

    fn ragged(&self, part: &Part<'_>) -> Error {
        self.unsupported(format!("mma of integers {:?} over k that groups do not divide", part.b.shape))
    }

    fn widened(&mut self, sums: &[Ssa]) -> Vec<Ssa> {
        let widen = |v: &Ssa| {
            let fill = self.w.zero(v.ty);
            self.w.widen(*v, fill, LANES)
        };
        sums.iter().map(widen).collect()
    }

    fn narrowed(&mut self, part: &Part<'_>, sums: &[Ssa]) -> Vec<Ssa> {
        let widths = part.chunks.iter().map(|(_, w)| *w).cycle();
        sums.iter().zip(widths).map(|(v, w)| self.w.narrow(*v, w)).collect()
    }

    /// A loop over `count` groups; the last may be half inside where the depth is given.
    fn steps(
        &mut self,
        part: &Part<'_>,
        count: Index,
        depth: Option<Index>,
        sums: Vec<Ssa>,
    ) -> Result<Vec<Ssa>, Error> {
        match count.as_const() {
            Some(0) => return Ok(sums),
            Some(1) => {
                let at = self.at(part, Index::constant(0), None)?;
                return Ok(self.step(part, at, &sums));
            }
            _ => {}
        }
        let (zero, count, one) = (self.w.int(0), self.w.ssa(count), self.w.int(1));
        let open = self.w.begin_loop([zero, count, one], &sums);
        let keep = depth.map(|depth| self.keep(open.i, depth));
        let at = self.at(part, Index::value(open.i), keep)?;
        let next = self.step(part, at, &open.carried.clone());
        Ok(self.w.end_loop(open, &next))
    }

    /// All of a pair, or its lower half where the upper is past the depth.
    fn keep(&mut self, group: Ssa, depth: Index) -> Ssa {
        let upper = self.w.scale(Index::value(group), 2);
        let upper = self.w.add_const(upper, 1);
        let (upper, depth) = (self.w.ssa(upper), self.w.ssa(depth));
        let whole = self.w.compare("slt", upper, depth);
        let ty = Ty::Scalar(Elem::I32);
        let (all, low) = (self.w.ints(ty, -1), self.w.ints(ty, 0xffff));
        self.w.select(whole, all, low)
    }

    fn at(&mut self, part: &Part<'_>, group: Index, keep: Option<Ssa>) -> Result<At, Error> {
        let mut bytes = [Index::constant(0); 2];
        for (bytes, view) in bytes.iter_mut().zip([part.a, part.b]) {
            let step = view.step(part.unit.group()).ok_or_else(|| self.unsupported("an operand without a step"))?;
            *bytes = self.w.scale(group, step);
        }
        Ok(At { bytes, keep })
    }

    /// The sums after one group of k.
    fn step(&mut self, part: &Part<'_>, at: At, sums: &[Ssa]) -> Vec<Ssa> {
        let pb = self.w.at(part.b.address.base, at.bytes[1]);
        let columns: Vec<Vec<Ssa>> = part.chunks.iter().map(|c| self.b_lanes(part, pb, *c, at.keep)).collect();
        if part.fetch {
            self.fetch(part, at);
        }
        let pa = self.w.at(part.a.address.base, at.bytes[0]);
        let mut next = vec![];
        for (i, row) in part.rows.clone().enumerate() {
            let a = self.a_lanes(part, pa, row, at.keep);
            for (c, b) in columns.iter().enumerate() {
                let sum = sums[i * columns.len() + c];
                next.push(self.accumulate(part.unit, sum, &a, b));
            }
        }
        next
    }

    fn accumulate(&mut self, unit: Unit, sum: Ssa, a: &[Ssa], b: &[Ssa]) -> Ssa {
        if unit == Unit::Dot {
            return self.w.intrinsic("llvm.x86.avx512bf16.dpbf16ps.512", &[sum, a[0], b[0]], sum.ty);
        }
        if let Unit::Integer(unit) = unit {
            return a.iter().zip(b).fold(sum, |sum, (a, b)| self.dot_integers(unit, sum, *a, *b));
        }
        a.iter().zip(b).fold(sum, |sum, (a, b)| self.w.fma(*a, *b, sum))
    }

    /// One group of a row of a in every lane, as the unit takes it.
    fn a_lanes(&mut self, part: &Part<'_>, pa: Ssa, row: usize, keep: Option<Ssa>) -> Vec<Ssa> {
        let inside = self.view_row_inside(part.a, row);
        let p = self.w.at(pa, part.a.address.rows[row]);
        if let Unit::Integer(unit) = part.unit {
            return self.a_integers(unit, part.a, p, inside, keep);
        }
        let mut lane = self.load_scalar(p, Ty::Scalar(part.unit.lane()), &part.a.address, inside);
        if let Some(keep) = keep {
            lane = self.w.binary("arith.andi", lane, keep);
        }
        let lanes = self.w.splat(lane, LANES);
        self.split(part.unit, lanes)
    }

    pub(super) fn view_row_inside(&mut self, view: &View, row: usize) -> Cond {
        let index = row_indices(&view.shape).swap_remove(row);
        self.row_inside(&view.extents, &index)
    }

    /// One group of 16 rows of b, as the unit takes it.
    fn b_lanes(&mut self, part: &Part<'_>, pb: Ssa, chunk: (usize, usize), keep: Option<Ssa>) -> Vec<Ssa> {
        let lanes =
            if is_line(part, chunk) { self.b_line(part, pb, chunk) } else { self.b_gathered(part, pb, chunk, keep) };
        let fill = self.w.zero(lanes.ty);
        let lanes = self.w.widen(lanes, fill, LANES);
        self.split(part.unit, lanes)
    }

    fn b_line(&mut self, part: &Part<'_>, pb: Ssa, (first, width): (usize, usize)) -> Ssa {
        let p = self.w.at(pb, part.b.address.rows[first]);
        if let Some(to) = part.b.wide {
            return self.wide_line(part, p, width, to);
        }
        let ty = Ty::Vector(width, part.unit.lane());
        // what is past the tensor within a panel is zero in memory
        let inside = if first < part.b.readable { Cond::Always } else { self.view_row_inside(part.b, first) };
        match self.mask_under(inside, None, width) {
            None => self.w.load(p, ty, part.b.address.size),
            Some(mask) => self.w.masked_load(p, mask, ty, part.b.address.size),
        }
    }

    /// The same of elements that are widened.
    fn wide_line(&mut self, part: &Part<'_>, p: Ssa, width: usize, to: DType) -> Ssa {
        let ty = Ty::Vector(width * part.unit.group(), elem(part.b.dtype));
        let v = self.w.load(p, ty, part.b.address.size);
        let v = super::cast::widen(&mut self.w, v, part.b.dtype, to, self.target.looks_up_16_bit());
        self.w.bitcast(v, Ty::Vector(width, part.unit.lane()))
    }

    fn b_gathered(&mut self, part: &Part<'_>, pb: Ssa, (first, width): (usize, usize), keep: Option<Ssa>) -> Ssa {
        let mut lanes = vec![];
        for row in first..first + width {
            let inside = self.view_row_inside(part.b, row);
            let p = self.w.at(pb, part.b.address.rows[row]);
            let mut lane = self.load_scalar(p, Ty::Scalar(part.unit.lane()), &part.b.address, inside);
            if let Some(keep) = keep {
                lane = self.w.binary("arith.andi", lane, keep);
            }
            lanes.push(lane);
        }
        self.w.vector_of(&lanes)
    }

    /// Lanes from memory as what is multiplied.
    fn split(&mut self, unit: Unit, lanes: Ssa) -> Vec<Ssa> {
        match unit {
            Unit::Single => vec![lanes],
            Unit::Integer(unit) => self.b_integers(unit, lanes),
            Unit::SingleBf16 => vec![super::cast::to_f32(&mut self.w, lanes, DType::Bf16)],
            Unit::Dot => vec![self.w.bitcast(lanes, Ty::Vector(2 * LANES, Elem::Bf16))],
            Unit::Pair => {
                let (sixteen, high) = (self.w.ints(lanes.ty, 16), self.w.ints(lanes.ty, -65536));
                let even = self.w.binary("arith.shli", lanes, sixteen);
                let odd = self.w.binary("arith.andi", lanes, high);
                [even, odd].map(|v| self.w.bitcast(v, lanes.ty.with(Elem::F32))).to_vec()
            }
        }
    }

    /// Asks for the lines of b that a later iteration reads at this place.
    fn fetch(&mut self, part: &Part<'_>, at: At) {
        let Some(ahead) = part.b.ahead else { return };
        let p = self.w.at(ahead, at.bytes[1]);
        for chunk in part.chunks.iter().filter(|c| is_line(part, **c)) {
            let line = self.w.at(p, part.b.address.rows[chunk.0]);
            self.w.prefetch(line, 2);
        }
    }
}

/// Whether the rows of a chunk lie next to each other, group by group.
fn is_line(part: &Part<'_>, (first, width): (usize, usize)) -> bool {
    let size = part.b.group_bytes(part.unit.group()) as i64;
    let distances = (first..first + width).map(|r| part.b.row_distance(r)).collect::<Option<Vec<i64>>>();
    distances.is_some_and(|d| d.windows(2).all(|w| w[1] - w[0] == size))
}

/// `0..n` in equal runs of at most `most`.
fn cut(n: usize, most: usize) -> Vec<std::ops::Range<usize>> {
    let runs = n.div_ceil(most);
    (0..runs).map(|i| i * n / runs..(i + 1) * n / runs).collect()
}

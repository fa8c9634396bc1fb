//! Matrix products on AMX tiles: an accumulator that a pipeline carries stays in tile registers for the whole loop.
//!
//! A tile is 16 rows of 64 bytes. Of a it is read from rows as they lie; of b from a panel, whose 32-bit lanes of two or
//! four k values are what the instruction wants. A tail of k takes smaller tiles, with a copied to the stack and zero filled.

use super::{Lower, Value, operand::View, tile::*};
use crate::{
    Error,
    text::{Elem, Ssa, Ty},
};
use rvllm_ir::{
    tile::{Block, Inst, Layout, MemLayout, Val},
    types::{DType, Dim},
};

/// Rows of a tile, and its columns of f32.
pub(super) const SIDE: usize = 16;
/// k values of one instruction on bf16.
pub(super) const DEPTH: usize = 32;
/// Bytes of a tile's row.
pub(super) const LINE: usize = 64;
/// Tile registers.
const REGISTERS: usize = 8;

/// k values of one instruction on elements of this size.
pub(super) fn depth_of(v: &View) -> usize {
    LINE / v.address.size
}

/// k values of a 32-bit lane.
pub(super) fn lane_of(v: &View) -> usize {
    4 / v.address.size
}

/// The instruction for products of these.
pub(super) fn multiplication(a: DType, b: DType) -> &'static str {
    match (a, b) {
        (DType::I8, DType::I8) => "llvm.x86.tdpbssd.internal",
        (DType::I8, _) => "llvm.x86.tdpbsud.internal",
        _ => "llvm.x86.tdpbf16ps.internal",
    }
}

/// An accumulator `[m, n]` in tiles, row tiles outermost.
#[derive(Clone, Debug)]
pub(crate) struct Accumulator {
    pub(crate) m: usize,
    pub(crate) n: usize,
    /// f32 or i32.
    pub(crate) dtype: DType,
    pub(crate) tiles: Vec<Ssa>,
}

/// First index and size of each tile along `n` rows.
fn tiles(n: usize) -> Vec<(usize, usize)> {
    (0..n).step_by(SIDE).map(|r| (r, SIDE.min(n - r))).collect()
}

fn tile_count(m: usize, n: usize) -> usize {
    m.div_ceil(SIDE) * n / SIDE
}

/// Whether an instruction reads a tile, itself or in a nested loop.
pub(super) fn uses(inst: &Inst, v: Val) -> bool {
    match inst {
        Inst::Store { value, .. } => *value == v,
        Inst::Mma { a, b, acc } => [*a, *b, *acc].contains(&v),
        Inst::Map(_, args) | Inst::Concat(args, _) => args.contains(&v),
        Inst::Select { a, b, x, y, .. } => [*a, *b, *x, *y].contains(&v),
        Inst::ToIndex(a)
        | Inst::Cast(a)
        | Inst::Reduce(_, a, _)
        | Inst::Broadcast(a, _)
        | Inst::Reshape(a)
        | Inst::Stage(a) => *a == v,
        Inst::Pipeline { init, body, .. } => {
            init.contains(&v) || body.yields.contains(&v) || body.stmts.iter().any(|s| uses(&s.inst, v))
        }
        // no tile among their operands
        Inst::ProgramId(_) | Inst::Const(_) | Inst::Sym(_) | Inst::Index(..) => false,
        Inst::Read { .. } | Inst::Load { .. } | Inst::Full(_) | Inst::Iota { .. } => false,
    }
}

/// Part of an operand: `rows` rows of `bytes` bytes, `stride` bytes apart.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) p: Ssa,
    pub(super) rows: usize,
    pub(super) bytes: usize,
    pub(super) stride: usize,
}

impl Lower<'_> {
    /// Moves into tiles the carried accumulators that only feed a product of operands in memory.
    pub(crate) fn enter_amx(&mut self, body: &Block, carried: &mut [Value], peel: bool) -> Result<(), Error> {
        if !self.target.amx_bf16 {
            return Ok(());
        }
        let fits: Vec<usize> = (0..carried.len())
            .filter(|j| matches!(carried[*j], Value::Tile(_)) && self.fits_amx(body, *j, peel))
            .collect();
        let shape = |j: &usize| self.tile_type(body.params[j + 1]).map_or([0, 0], |t| [t.shape[0], t.shape[1]]);
        let accumulators: usize = fits.iter().map(shape).map(|[m, n]| tile_count(m, n)).sum();
        // all tiles of a and one of b are held beside them
        let operands = fits.iter().map(shape).map(|[m, _]| m.div_ceil(SIDE) + 1).max().unwrap_or(0);
        if accumulators + operands > REGISTERS {
            return Ok(());
        }
        for j in fits {
            if let Value::Tile(t) = &carried[j] {
                let t = t.clone();
                carried[j] = Value::Amx(self.tiles_of(&t));
            }
        }
        Ok(())
    }

    /// Whether a loop is better run once for each of its accumulators: all are only added to, and fit the registers one by
    /// one but not together.
    pub(crate) fn worked_apart(&self, body: &Block, peel: bool) -> bool {
        let count = body.yields.len();
        let needs = |j: usize| {
            let ty = self.tile_type(body.params[j + 1]).filter(|_| self.fits_amx(body, j, peel))?;
            let [m, n] = [ty.shape[0], ty.shape[1]];
            Some([tile_count(m, n), m.div_ceil(SIDE) + 1])
        };
        let Some(needs) = (0..count).map(needs).collect::<Option<Vec<_>>>() else { return false };
        let sums: usize = needs.iter().map(|[sums, _]| sums).sum();
        let most = needs.iter().map(|[_, operands]| *operands).max().unwrap_or(0);
        let alone = needs.iter().all(|[sums, operands]| sums + operands <= REGISTERS);
        self.target.amx_bf16 && count > 1 && alone && sums + most > REGISTERS
    }

    /// Whether carried value `j` is only the accumulator of one product whose operands are tiles in memory.
    pub(super) fn fits_amx(&self, body: &Block, j: usize, peel: bool) -> bool {
        let acc = body.params[j + 1];
        let Some(ty) = self.tile_type(acc) else { return false };
        let square = ty.layout == Layout::Acc && ty.shape.len() == 2 && ty.shape[1].is_multiple_of(SIDE);
        let mut users = body.stmts.iter().filter(|s| uses(&s.inst, acc));
        let (Some(user), None) = (users.next(), users.next()) else { return false };
        let Inst::Mma { a, b, acc: into } = user.inst else { return false };
        let products = |v: Val| self.loaded(body, v, peel).map(|tensor| self.kernel.params[tensor].ty.dtype);
        let unit = products(a).zip(products(b)).is_some_and(|(a, b)| self.multiplies(a, b));
        square
            && unit
            && into == acc
            && body.yields[j] == user.results[0]
            && self.is_tile_rows(body, a, peel)
            && self.is_tile_panel(body, b, peel)
    }

    /// Whether there is an instruction for products of these.
    fn multiplies(&self, a: DType, b: DType) -> bool {
        match (a, b) {
            (DType::Bf16, DType::Bf16) => true,
            (DType::I8, DType::I8 | DType::U8) => self.target.amx_i8,
            _ => false,
        }
    }

    /// The tensor that the body loads this operand from, where its k tail is known when compiling.
    fn loaded(&self, body: &Block, v: Val, peel: bool) -> Option<usize> {
        let load = body.stmts.iter().find(|s| s.results.contains(&v))?;
        let Inst::Load { tensor, .. } = load.inst else { return None };
        let ty = &self.kernel.params[tensor].ty;
        let shape = &self.kernel.tile(v).shape;
        let even = ty.last()?.is_multiple_of(*shape.last()?);
        let known = matches!(ty.dtype, DType::Bf16 | DType::I8 | DType::U8);
        (known && shape.len() == 2 && (even || peel)).then_some(tensor)
    }

    pub(super) fn is_tile_rows(&self, body: &Block, v: Val, peel: bool) -> bool {
        let Some(tensor) = self.loaded(body, v, peel) else { return false };
        let param = &self.kernel.params[tensor];
        let symbolic = |d: &Dim| d.constant().is_none();
        let lies = match param.layout {
            MemLayout::Strided { .. } => true,
            MemLayout::Panel { n, k } => n == SIDE && param.ty.dtype.bytes(k) == LINE,
            MemLayout::Blocks { .. } | MemLayout::Fragments { .. } => false,
        };
        lies && param.ty.rank() == 2 && symbolic(&param.ty.dims[0])
    }

    pub(super) fn is_tile_panel(&self, body: &Block, v: Val, peel: bool) -> bool {
        let Some(tensor) = self.loaded(body, v, peel) else { return false };
        let rows = self.kernel.tile(v).shape[0];
        match self.kernel.params[tensor].layout {
            MemLayout::Panel { n, k } => {
                let lane = self.kernel.params[tensor].ty.dtype.bits() * k == 32;
                lane && n.is_multiple_of(SIDE) && (n.is_multiple_of(rows) || rows.is_multiple_of(n))
            }
            MemLayout::Strided { .. } | MemLayout::Blocks { .. } | MemLayout::Fragments { .. } => false,
        }
    }

    pub(super) fn sizes(&mut self, rows: usize, bytes: usize) -> [Ssa; 2] {
        [rows, bytes].map(|n| self.w.ints(Ty::Scalar(Elem::I16), n as i64))
    }

    pub(super) fn tile_load(&mut self, at: Place) -> Ssa {
        let [rows, bytes] = self.sizes(at.rows, at.bytes);
        let stride = self.w.int(at.stride as i64);
        self.w.intrinsic("llvm.x86.tileloadd64.internal", &[rows, bytes, at.p, stride], Ty::Amx)
    }

    fn tiles_of(&mut self, t: &Tile) -> Accumulator {
        let (m, n) = (t.shape[0], t.shape[1]);
        let zero = t.vecs.iter().all(|v| *v == self.w.zero(v.ty));
        let from = if zero { None } else { Some(self.stage(t).address.base) };
        let mut out = vec![];
        for (r, rows) in tiles(m) {
            for (c, _) in tiles(n) {
                out.push(match from {
                    None => {
                        let sizes = self.sizes(rows, LINE);
                        self.w.intrinsic("llvm.x86.tilezero.internal", &sizes, Ty::Amx)
                    }
                    Some(base) => {
                        let p = self.w.offset(base, ((r * n + c) * 4) as i64);
                        self.tile_load(Place { p, rows, bytes: LINE, stride: n * 4 })
                    }
                });
            }
        }
        Accumulator { m, n, dtype: t.dtype, tiles: out }
    }

    /// What a pipeline carried, in registers again.
    pub(crate) fn leave_amx(&mut self, v: Value) -> Value {
        let Value::Amx(acc) = v else { return v };
        let (m, n) = (acc.m, acc.n);
        let base = self.w.stack(m * n * 4);
        let places = tiles(m).into_iter().flat_map(|r| tiles(n).into_iter().map(move |c| (r, c.0)));
        for (((r, rows), c), tile) in places.zip(&acc.tiles) {
            let p = self.w.offset(base, ((r * n + c) * 4) as i64);
            let ([rows, bytes], stride) = (self.sizes(rows, LINE), self.w.int((n * 4) as i64));
            self.w.intrinsic_void("llvm.x86.tilestored64.internal", &[rows, bytes, p, stride, *tile]);
        }
        let load = |i: usize| {
            let p = self.w.offset(base, (i * LINE) as i64);
            self.w.load(p, Ty::Vector(LANES, elem(acc.dtype)), LINE)
        };
        Value::Tile(Tile { shape: vec![m, n], dtype: acc.dtype, vecs: (0..m * n / LANES).map(load).collect() })
    }

    /// `acc + a · bᵀ` for operands that [`Lower::enter_amx`] found fit.
    pub(crate) fn mma_amx(&mut self, a: &View, b: &View, mut acc: Accumulator) -> Result<Accumulator, Error> {
        let depth = self.depth(a, b).as_const();
        let depth = depth.ok_or_else(|| self.unsupported("AMX tiles whose depth depends on the step"))? as usize;
        let columns = tiles(acc.n);
        let multiply = multiplication(a.dtype, b.dtype);
        for first in (0..depth).step_by(depth_of(a)) {
            let k = depth_of(a).min(depth - first);
            let places = tiles(acc.m).into_iter().map(|rows| self.a_place(a, rows, first, k));
            let places = places.collect::<Result<Vec<_>, _>>()?;
            let rows: Vec<Ssa> = places.iter().map(|at| self.tile_load(*at)).collect();
            for (j, (c, _)) in columns.iter().enumerate() {
                let column = self.b_tile(b, *c, first, k);
                for (i, (row, at)) in rows.iter().zip(&places).enumerate() {
                    let sum = &mut acc.tiles[i * columns.len() + j];
                    let [m, line] = self.sizes(at.rows, LINE);
                    *sum = self.w.intrinsic(multiply, &[m, line, line, *sum, *row, column], Ty::Amx);
                }
            }
        }
        Ok(acc)
    }

    /// 16 rows of b from the `first` k value on; prefetches the same place of a later iteration.
    fn b_tile(&mut self, b: &View, row: usize, first: usize, k: usize) -> Ssa {
        let lane = lane_of(b);
        let stride = b.step(lane).unwrap_or(LINE);
        let distance = b.row_distance(row).unwrap_or(0) + (first / lane * stride) as i64;
        let rows = k.div_ceil(lane);
        if let Some(ahead) = b.ahead {
            for line in 0..rows {
                let p = self.w.offset(ahead, distance + (line * stride) as i64);
                self.w.prefetch(p, 2);
            }
        }
        let p = self.w.offset(b.address.base, distance);
        let at = Place { p, rows, bytes: LINE, stride };
        let at = if k == depth_of(b) { at } else { self.zero_filled(at, rows, [depth_of(b), b.address.size]) };
        self.tile_load(at)
    }

    /// Rows of a from the `first` k value on.
    fn a_place(&mut self, a: &View, (row, rows): (usize, usize), first: usize, k: usize) -> Result<Place, Error> {
        let distance = |r: usize| a.row_distance(r);
        let stride = if a.rows() > 1 { distance(1).zip(distance(0)).map(|(b, a)| b - a) } else { Some(LINE as i64) };
        let (Some(start), Some(stride), Some(k_start)) = (distance(row), stride, a.k_distance(first)) else {
            return Err(self.unsupported("AMX tiles of rows at unknown distances"));
        };
        let p = self.w.offset(a.address.base, start + k_start as i64);
        let at = Place { p, rows, bytes: LINE, stride: stride as usize };
        Ok(if k == depth_of(a) { at } else { self.zero_filled(at, rows, [k, a.address.size]) })
    }

    /// A copy of 16 rows on the stack: of the first `rows` the first `width` values of `size` bytes, and zeros.
    fn zero_filled(&mut self, at: Place, rows: usize, [width, size]: [usize; 2]) -> Place {
        let (base, depth) = (self.w.stack(SIDE * LINE), LINE / size);
        let ty = Ty::Vector(depth, Elem::int(8 * size));
        let mask: Vec<i64> = (0..depth).map(|i| i64::from(i < width)).collect();
        let mask = self.w.dense(Elem::I1, &mask);
        for r in 0..SIDE {
            let row = if r < rows {
                let from = self.w.offset(at.p, (r * at.stride) as i64);
                self.w.masked_load(from, mask, ty, size)
            } else {
                self.w.zero(ty)
            };
            let to = self.w.offset(base, (r * LINE) as i64);
            self.w.store(row, to, LINE);
        }
        // b always fills 16 rows, a has as many as it had
        let rows = if width == depth { SIDE } else { at.rows };
        Place { p: base, rows, bytes: LINE, stride: LINE }
    }
}

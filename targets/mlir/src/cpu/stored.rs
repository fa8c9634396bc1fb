//! Accumulators too large for registers: they lie on the stack, tile by tile, and a product visits them by panels of b,
//! then by pairs of tiles of a's rows, so that a panel's part of b is read from L1 again and again.
//!
//! What later iterations read is asked for in even portions along the way. Products are added in ascending k, as
//! everywhere: a sum is stored and loaded again between iterations without a change.

use super::{
    Lower, Value,
    amx::*,
    operand::View,
    tile::{Tile, elem},
};
use crate::{
    Error,
    bounds::Extent,
    index::Index,
    text::{Ssa, Ty},
};
use rvllm_ir::{
    tile::{Block, IndexOp, Inst, Val},
    types::{DType, Dim},
};

/// Rows and columns of the four tiles that stay in registers.
const SQUARE: usize = 2 * SIDE;
/// Bytes of a tile.
const TILE: usize = SIDE * LINE;
/// Vectors of 16 beyond which a tile is not held in registers.
const MOST_VECTORS: usize = 256;

/// An accumulator `[m, n]` on the stack: panels of columns outermost, then pairs of row tiles, each of 2 by 2 tiles.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stored {
    base: Ssa,
    pub(crate) m: usize,
    pub(crate) n: usize,
    /// f32 or i32.
    dtype: DType,
    /// Rows that lie inside.
    pub(crate) rows: Index,
    /// Whether nothing was added to it yet, whatever memory holds.
    pub(crate) fresh: bool,
}

/// Where the operands of a product with a stored accumulator lie.
struct Blocks {
    a: Ssa,
    b: Ssa,
    /// The same of a later iteration.
    a_ahead: Option<Ssa>,
    b_ahead: Option<Ssa>,
    /// The instruction.
    multiply: &'static str,
    /// Bytes from row to row, from 16 rows to the next, and from an instruction's k values to the next, in a; the same in
    /// b, but of 32-bit lanes of k values, and columns.
    a_steps: [usize; 3],
    b_steps: [usize; 3],
    /// Instructions along k.
    depth: usize,
}

impl Lower<'_> {
    /// Whether a tile is too large for registers.
    pub(crate) fn is_large(&self, v: Val) -> bool {
        self.tile_type(v).is_some_and(|t| t.shape.iter().product::<usize>() > MOST_VECTORS * super::tile::LANES)
    }

    /// Room for carried value `j`, whose accumulator is large.
    pub(crate) fn stored(&mut self, body: &Block, j: usize, init: Val, peel: bool) -> Result<Value, Error> {
        let zero = self.kernel.body.stmts.iter().find(|s| s.results.contains(&init));
        let zero = zero.is_some_and(|s| s.inst == Inst::Full(0.0));
        let shape = self.tile_type(init).map(|t| t.shape.clone()).unwrap_or_default();
        let square = shape.iter().all(|d| d.is_multiple_of(SQUARE));
        if !(self.target.amx_bf16 && zero && square && self.fits_amx(body, j, peel)) {
            return Err(self.unsupported(format!("a tile {shape:?}, which is too large for registers")));
        }
        let (m, n) = (shape[0], shape[1]);
        let rows = self.rows_inside(body, body.params[j + 1], m)?;
        let dtype = self.kernel.tile(init).dtype;
        Ok(Value::Stored(Stored { base: self.w.stack(m * n * 4), m, n, dtype, rows, fresh: true }))
    }

    /// How many of an accumulator's `m` rows lie inside: as many as its a has.
    fn rows_inside(&mut self, body: &Block, acc: Val, m: usize) -> Result<Index, Error> {
        let product = body.stmts.iter().find_map(|s| match &s.inst {
            Inst::Mma { a, acc: into, .. } if *into == acc => Some(*a),
            _ => None,
        });
        let load = body.stmts.iter().find(|s| product.is_some_and(|a| s.results.contains(&a)));
        let Some(Inst::Load { tensor, at }) = load.map(|s| &s.inst) else {
            return Err(self.unsupported("a large product whose a is not loaded beside it"));
        };
        let (dim, first) = (self.kernel.params[*tensor].ty.dims[0], self.index(at[0])?);
        Ok(self.left(dim, first, m))
    }

    /// How many of `m` indices from `first` on lie inside a dimension.
    pub(crate) fn left(&mut self, dim: Dim, first: Index, m: usize) -> Index {
        let dim = self.dim(dim);
        let left = self.w.index(IndexOp::Sub, dim, first);
        self.w.index(IndexOp::Min, left, Index::constant(m as i64))
    }

    /// `acc + a · bᵀ` in memory.
    pub(crate) fn mma_stored(&mut self, a: &View, b: &View, acc: Stored) -> Result<Stored, Error> {
        let blocks = self.blocks(a, b)?;
        let columns = match b.extents.first() {
            Some(Extent::First(n)) => self.w.index(IndexOp::Min, *n, Index::constant(acc.n as i64)),
            _ => Index::constant(acc.n as i64),
        };
        let counts = [columns, acc.rows].map(|n| {
            let up = self.w.add_const(n, SQUARE - 1);
            let count = self.w.div(up, SQUARE);
            self.w.ssa(count)
        });
        let (zero, one) = (self.w.int(0), self.w.int(1));
        let panels = self.w.begin_loop([zero, counts[0], one], &[]);
        let pairs = self.w.begin_loop([zero, counts[1], one], &[]);
        let at = [Index::value(panels.i), Index::value(pairs.i)];
        self.square(&blocks, &acc, at);
        self.w.end_loop(pairs, &[]);
        self.w.end_loop(panels, &[]);
        Ok(Stored { fresh: false, ..acc })
    }

    fn blocks(&mut self, a: &View, b: &View) -> Result<Blocks, Error> {
        let (unit, lane) = (depth_of(a), lane_of(b));
        let depth = self.depth(a, b).as_const().map(|k| k as usize).filter(|k| k.is_multiple_of(unit));
        let apart = |v: &View, from: usize, to: usize| Some((v.row_distance(to)? - v.row_distance(from)?) as usize);
        let starts = a.row_distance(0).zip(b.row_distance(0));
        let of_a = apart(a, 0, 1).zip(apart(a, 0, SIDE)).zip(a.k_distance(unit));
        let of_b = b.step(lane).zip(apart(b, 0, SIDE)).zip(apart(b, 0, SQUARE).or(Some(0)));
        let (Some(depth), Some((a0, b0)), Some(((row, tile), k)), Some(((pair, half), panel))) =
            (depth, starts, of_a, of_b)
        else {
            return Err(self.unsupported("a large product of operands at unknown distances, or with a tail of k"));
        };
        let at = |w: &mut crate::text::Writer, p: Option<Ssa>, by: i64| p.map(|p| w.offset(p, by));
        Ok(Blocks {
            a: self.w.offset(a.address.base, a0),
            b: self.w.offset(b.address.base, b0),
            a_ahead: at(&mut self.w, a.ahead, a0),
            b_ahead: at(&mut self.w, b.ahead, b0),
            a_steps: [row, tile, k],
            b_steps: [pair, half, panel],
            multiply: multiplication(a.dtype, b.dtype),
            depth: depth / unit,
        })
    }

    /// Adds to one 2 by 2 tiles.
    fn square(&mut self, o: &Blocks, acc: &Stored, [panel, pair]: [Index; 2]) {
        let distance = |l: &mut Self, steps: [usize; 2]| {
            let (a, b) = (l.w.scale(panel, steps[0]), l.w.scale(pair, steps[1]));
            l.w.add(a, b)
        };
        let to_sums = distance(self, [acc.m * SQUARE * 4, 4 * TILE]);
        let sums_at = self.w.at(acc.base, to_sums);
        let (to_a, to_b) = (self.w.scale(pair, 2 * o.a_steps[1]), self.w.scale(panel, o.b_steps[2]));
        let (a, b) = (self.w.at(o.a, to_a), self.w.at(o.b, to_b));
        let full = |p, stride| Place { p, rows: SIDE, bytes: LINE, stride };
        let places: Vec<Place> = (0..4).map(|i| full(self.w.offset(sums_at, (i * TILE) as i64), LINE)).collect();
        let sizes = self.sizes(SIDE, LINE);
        let init: Vec<Ssa> = places
            .iter()
            .map(|at| match acc.fresh {
                true => self.w.intrinsic("llvm.x86.tilezero.internal", &sizes, Ty::Amx),
                false => self.tile_load(*at),
            })
            .collect();
        let bounds = [0, o.depth, 1].map(|n| self.w.int(n as i64));
        let steps = self.w.begin_loop(bounds, &init);
        let step = Index::value(steps.i);
        let (to_a, to_b) = (self.w.scale(step, o.a_steps[2]), self.w.scale(step, SIDE * o.b_steps[0]));
        let (a, b) = (self.w.at(a, to_a), self.w.at(b, to_b));
        let load = |l: &mut Self, p, by: usize, stride| {
            let p = l.w.offset(p, by as i64);
            l.tile_load(full(p, stride))
        };
        let b0 = load(self, b, 0, o.b_steps[0]);
        let a0 = load(self, a, 0, o.a_steps[0]);
        let b1 = load(self, b, o.b_steps[1], o.b_steps[0]);
        let a1 = load(self, a, o.a_steps[1], o.a_steps[0]);
        self.ask_for_b(o, acc, [panel, pair, step]);
        self.ask_for_a(o, acc, [panel, pair, step]);
        let [m, line] = sizes;
        let sums = steps.carried.clone();
        let products = [(a0, b0), (a0, b1), (a1, b0), (a1, b1)].into_iter().zip(sums);
        let next: Vec<Ssa> =
            products.map(|((a, b), sum)| self.w.intrinsic(o.multiply, &[m, line, line, sum, a, b], Ty::Amx)).collect();
        let sums = self.w.end_loop(steps, &next);
        let stride = self.w.int(LINE as i64);
        for (at, sum) in places.iter().zip(sums) {
            self.w.intrinsic_void("llvm.x86.tilestored64.internal", &[sizes[0], sizes[1], at.p, stride, sum]);
        }
    }

    /// Of the part of b that a later iteration reads of this panel, this step's portion.
    fn ask_for_b(&mut self, o: &Blocks, acc: &Stored, [panel, pair, step]: [Index; 3]) {
        let Some(ahead) = o.b_ahead else { return };
        // a panel's k step is two tiles: whole lines of it for each pair of row tiles
        let portion = (2 * TILE * SQUARE).div_ceil(acc.m).next_multiple_of(LINE);
        let to_panel = self.w.scale(panel, o.b_steps[2]);
        let p = self.w.at(ahead, to_panel);
        let before = self.w.scale(pair, o.depth);
        let number = self.w.add(before, step);
        let distance = self.w.scale(number, portion);
        let p = self.w.at(p, distance);
        self.ask_for_lines(p, portion);
    }

    /// The same of a: each panel asks for its share of the k steps of the pair's two tiles.
    fn ask_for_a(&mut self, o: &Blocks, acc: &Stored, [panel, pair, step]: [Index; 3]) {
        // only where the k steps of 16 rows lie next to each other
        let Some(ahead) = o.a_ahead.filter(|_| o.a_steps[2] == TILE && acc.n / SQUARE <= TILE / LINE) else { return };
        let portion = TILE / (acc.n / SQUARE).next_power_of_two();
        let to_pair = self.w.scale(pair, 2 * o.a_steps[1]);
        let before = self.w.scale(panel, o.depth);
        let number = self.w.add(before, step);
        let within = self.w.scale(number, portion);
        let distance = self.w.add(to_pair, within);
        let p = self.w.at(ahead, distance);
        self.ask_for_lines(p, portion);
        let p = self.w.offset(p, o.a_steps[1] as i64);
        self.ask_for_lines(p, portion);
    }

    fn ask_for_lines(&mut self, p: Ssa, bytes: usize) {
        for line in (0..bytes).step_by(LINE) {
            let p = self.w.offset(p, line as i64);
            self.w.prefetch(p, 2);
        }
    }

    /// Row `r` of a stored accumulator as a tile `[1, n]`.
    pub(crate) fn stored_row(&mut self, acc: &Stored, r: Index) -> Tile {
        let (pair, tile, row) = (self.w.div(r, SQUARE), self.w.div(r, SIDE), self.w.rem(r, SIDE));
        let tile = self.w.rem(tile, 2);
        let parts = [(pair, 4 * TILE), (tile, 2 * TILE), (row, LINE)];
        let p = parts.into_iter().fold(acc.base, |p, (i, bytes)| {
            let distance = self.w.scale(i, bytes);
            self.w.at(p, distance)
        });
        let load = |c: usize| {
            let distance = c / SQUARE * acc.m * SQUARE * 4 + c % SQUARE / SIDE * TILE;
            let p = self.w.offset(p, distance as i64);
            self.w.load(p, Ty::Vector(SIDE, elem(acc.dtype)), LINE)
        };
        Tile { shape: vec![1, acc.n], dtype: acc.dtype, vecs: (0..acc.n).step_by(SIDE).map(load).collect() }
    }
}

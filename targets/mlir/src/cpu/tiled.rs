//! Products of accumulators in vectors on AMX tiles: a trip through the stack on either side, which vectors take anyway
//! where there are many. Four tiles of sums at a time stay in registers for all of k.

use super::{
    Lower,
    address::{Address, Columns},
    amx::*,
    operand::View,
    tile::{LANES, Tile},
};
use crate::{
    bounds::Extent,
    index::Index,
    text::{Elem, Ssa, Ty},
};
use rvllm_ir::types::DType;

/// Operands whose tiles lie at constant distances.
struct Operands {
    a: Ssa,
    a_row: usize,
    b: Ssa,
    b_pair: usize,
    depth: usize,
}

impl Lower<'_> {
    /// `acc + a · bᵀ` on tiles, where the target has them and the operands lie so.
    pub(crate) fn mma_tiled(&mut self, a: &View, b: &View, acc: &Tile) -> Option<Tile> {
        let o = self.tiled_operands(a, b, acc)?;
        self.ask_for_all(b, &o);
        let (m, n) = (acc.shape[0], acc.shape[1]);
        let zero = acc.vecs.iter().all(|v| *v == self.w.floats(v.ty, 0.0));
        let sums = if zero { self.w.stack(m * n * 4) } else { self.stage(acc).address.base };
        for r in (0..m).step_by(2 * SIDE) {
            for c in (0..n).step_by(2 * SIDE) {
                self.part(&o, a, b, sums, [m, n, r, c], zero);
            }
        }
        let load = |i: usize| {
            let p = self.w.offset(sums, (i * LINE) as i64);
            self.w.load(p, Ty::Vector(LANES, Elem::F32), LINE)
        };
        Some(Tile { shape: vec![m, n], dtype: DType::F32, vecs: (0..m * n / LANES).map(load).collect() })
    }

    fn tiled_operands(&mut self, a: &View, b: &View, acc: &Tile) -> Option<Operands> {
        let whole = |v: &View| v.extents.iter().all(|e| matches!(e, Extent::All));
        let fits = self.target.amx_bf16 && a.dtype == DType::Bf16 && acc.shape.len() == 2;
        if !(fits && whole(a) && whole(b) && b.rows().is_multiple_of(SIDE)) {
            return None;
        }
        let depth = self.depth(a, b).as_const().map(|k| k as usize).filter(|k| k.is_multiple_of(DEPTH))?;
        let a_row = a.even_rows()?;
        let b_pair = b.step(2)?;
        a.k_distance(DEPTH)?;
        let columns_lie = (0..b.rows()).all(|r| {
            let first = b.row_distance(r / SIDE * SIDE);
            b.row_distance(r).zip(first).is_some_and(|(d, first)| d - first == (r % SIDE * 4) as i64)
        });
        columns_lie.then_some(Operands { a: a.address.base, a_row, b: b.address.base, b_pair, depth })
    }

    /// Up to 2 by 2 tiles of sums, from row `r` and column `c` on.
    fn part(&mut self, o: &Operands, a: &View, b: &View, sums_at: Ssa, [m, n, r, c]: [usize; 4], zero: bool) {
        let rows: Vec<[usize; 2]> =
            [r, r + SIDE].into_iter().filter(|r| *r < m).map(|r| [r, SIDE.min(m - r)]).collect();
        let columns: Vec<usize> = [c, c + SIDE].into_iter().filter(|c| *c < n).collect();
        let at = |r: usize, c: usize| ((r * n + c) * 4) as i64;
        let mut sums = vec![];
        for [r, count] in &rows {
            for c in &columns {
                let p = self.w.offset(sums_at, at(*r, *c));
                sums.push(if zero {
                    let sizes = self.sizes(*count, LINE);
                    self.w.intrinsic("llvm.x86.tilezero.internal", &sizes, Ty::Amx)
                } else {
                    self.tile_load(Place { p, rows: *count, bytes: LINE, stride: n * 4 })
                });
            }
        }
        for k in (0..o.depth).step_by(DEPTH) {
            let rows: Vec<(Ssa, usize)> =
                rows.iter().map(|[r, count]| (self.a_tile(o, a, [*r, *count, k]), *count)).collect();
            let columns: Vec<Ssa> = columns.iter().map(|c| self.columns_tile(o, b, *c, k)).collect();
            for (i, (row, count)) in rows.iter().enumerate() {
                for (j, column) in columns.iter().enumerate() {
                    let sum = &mut sums[i * columns.len() + j];
                    let [m, line] = self.sizes(*count, LINE);
                    *sum =
                        self.w.intrinsic("llvm.x86.tdpbf16ps.internal", &[m, line, line, *sum, *row, *column], Ty::Amx);
                }
            }
        }
        let stride = self.w.int((n * 4) as i64);
        for (i, [r, count]) in rows.iter().enumerate() {
            for (j, c) in columns.iter().enumerate() {
                let p = self.w.offset(sums_at, at(*r, *c));
                let [rows, bytes] = self.sizes(*count, LINE);
                let sum = sums[i * columns.len() + j];
                self.w.intrinsic_void("llvm.x86.tilestored64.internal", &[rows, bytes, p, stride, sum]);
            }
        }
    }

    fn a_tile(&mut self, o: &Operands, a: &View, [row, rows, k]: [usize; 3]) -> Ssa {
        let distance = row * o.a_row + a.k_distance(k).unwrap_or(0);
        let p = self.w.offset(o.a, distance as i64);
        self.tile_load(Place { p, rows, bytes: LINE, stride: o.a_row })
    }

    fn columns_tile(&mut self, o: &Operands, b: &View, column: usize, k: usize) -> Ssa {
        let distance = b.row_distance(column).unwrap_or(0) + (k / 2 * o.b_pair) as i64;
        let p = self.w.offset(o.b, distance);
        self.tile_load(Place { p, rows: SIDE, bytes: LINE, stride: o.b_pair })
    }

    /// Asks for what a later iteration reads in b's place.
    fn ask_for_all(&mut self, b: &View, o: &Operands) {
        let Some(ahead) = b.ahead else { return };
        for column in (0..b.rows()).step_by(SIDE) {
            for pair in 0..o.depth / 2 {
                let distance = b.row_distance(column).unwrap_or(0) + (pair * o.b_pair) as i64;
                let p = self.w.offset(ahead, distance);
                self.w.prefetch(p, 2);
            }
        }
    }

    /// An operand that tiles can read: the same, or a copy on the stack where its rows lie at uneven distances.
    pub(crate) fn with_even_rows(&mut self, v: View) -> View {
        let depth = v.k() * 2;
        let whole = v.extents.iter().all(|e| matches!(e, Extent::All)) && matches!(v.address.columns, Columns::Dense);
        let copies = self.target.amx_bf16 && v.dtype == DType::Bf16 && whole && depth.is_multiple_of(LINE);
        if !copies || v.even_rows().is_some() {
            return v;
        }
        let base = self.w.stack(v.rows() * depth);
        for r in 0..v.rows() {
            let from = self.w.at(v.address.base, v.address.rows[r]);
            for line in (0..depth).step_by(LINE) {
                let (from, to) = (self.w.offset(from, line as i64), self.w.offset(base, (r * depth + line) as i64));
                let x = self.w.load(from, Ty::Vector(DEPTH, Elem::I16), 2);
                self.w.store(x, to, LINE);
            }
        }
        let rows = (0..v.rows()).map(|r| Index::constant((r * depth) as i64)).collect();
        View { address: Address { base, rows, ..v.address }, ..v }
    }
}

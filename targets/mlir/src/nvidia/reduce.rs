//! Reductions, in an order that the shape alone fixes: a thread's own elements in ascending order, then threads of a warp by
//! halves, then warps in ascending order.

use super::{
    Lower,
    place::{Groups, Matrix, Place, Shape, Warps, matrix},
    tile::{Data, Tile},
};
use crate::{
    Error,
    bounds::Cond,
    index::Index,
    map,
    text::{Elem, Ssa, Ty},
};
use rvllm_ir::tile::ReduceOp;

/// Sums of a row that grow side by side where registers are scarce.
const CHAINS: usize = 4;

const F32: Ty = Ty::Scalar(Elem::F32);

fn neutral(op: ReduceOp) -> f32 {
    match op {
        ReduceOp::Sum => 0.0,
        ReduceOp::Max => f32::NEG_INFINITY,
    }
}

impl Lower<'_> {
    fn combine(&mut self, op: ReduceOp, a: Ssa, b: Ssa) -> Ssa {
        match op {
            ReduceOp::Sum => self.w.binary("arith.addf", a, b),
            // rows of a product hold no NaN that a maximum would have to keep
            ReduceOp::Max if self.consumes() => self.w.intrinsic("llvm.nvvm.fmax.f", &[a, b], F32),
            ReduceOp::Max => map::max(&mut self.w, a, b),
        }
    }

    /// The reduction of f32 `t` along `axis`, which disappears.
    pub(crate) fn reduce(&mut self, op: ReduceOp, t: &Tile, axis: usize) -> Result<Tile, Error> {
        let mut shape = t.shape.clone();
        let n = shape.remove(axis);
        let place = t.place().unwrap_or(Place::Runs(matrix(&t.shape)));
        let whole = shape.iter().all(|n| *n == 1);
        let last = axis == shape.len();
        // what becomes one number is every thread's
        let shared = whole && !matches!(t.data, Data::Splat(_));
        let data = match place {
            _ if n == 1 && !shared => self.reshaped(t, place),
            Place::Runs(_) | Place::Slice { .. } if whole => Data::Splat(self.reduce_all(op, t, place)),
            Place::Fragments(s) if last && matrix(&t.shape) == s => self.reduce_fragments(op, t, s),
            Place::Runs(s) if last && matrix(&t.shape) == s && self.threads_of_row(s).is_some() => {
                self.reduce_runs(op, t, s)
            }
            _ => self.reduce_far(op, t, axis, &shape),
        };
        Ok(Tile { shape, dtype: t.dtype, data })
    }

    /// The same elements, in registers.
    fn reshaped(&mut self, t: &Tile, place: Place) -> Data {
        match t.data {
            Data::Splat(v) => Data::Splat(v),
            _ => Data::Regs(place, self.settle(t, place)),
        }
    }

    /// Registers with the neutral element where the tile has none.
    fn padded(&mut self, op: ReduceOp, t: &Tile, place: Place) -> Vec<Ssa> {
        let regs = self.settle(t, place);
        let Groups { width, at } = self.groups(place);
        let fill = self.w.floats(F32, neutral(op));
        let mut out = vec![];
        for (i, v) in regs.into_iter().enumerate() {
            let inside = self.element_inside(place, at[i / width], i % width);
            out.push(match inside {
                Cond::Always => v,
                Cond::Never => fill,
                Cond::If(c) => self.w.select(c, v, fill),
            });
        }
        out
    }

    /// Whether element `i` of a group is one of the tile's.
    pub(crate) fn element_inside(&mut self, place: Place, [row, col]: [Index; 2], i: usize) -> Cond {
        let col = self.w.add_const(col, i);
        let limit = |n: usize| Index::constant(n as i64);
        match place {
            Place::Runs([rows, cols]) | Place::Fragments([rows, cols]) => {
                let row = self.w.below(row, limit(rows));
                let col = self.w.below(col, limit(cols));
                self.w.both(row, col)
            }
            Place::Slice { axis: 1, .. } => self.w.below(row, limit(place.elements())),
            Place::Slice { .. } => self.w.below(col, limit(place.elements())),
        }
    }

    /// Lanes of a warp onto each other: afterwards every lane of a group of `lanes` has the same.
    fn across_lanes(&mut self, op: ReduceOp, mut v: Ssa, lanes: usize) -> Ssa {
        let i32 = Ty::Scalar(Elem::I32);
        let mut distance = lanes / 2;
        while distance > 0 {
            let [all, by, clamp] = [-1, distance as i64, 31].map(|c| self.w.ints(i32, c));
            let other = self.w.intrinsic("llvm.nvvm.shfl.sync.bfly.f32", &[all, v, by, clamp], F32);
            v = self.combine(op, v, other);
            distance /= 2;
        }
        v
    }

    /// Everything to one number, which all threads have.
    fn reduce_all(&mut self, op: ReduceOp, t: &Tile, place: Place) -> Ssa {
        // of a slice, threads hold copies
        let place = if matches!(place, Place::Slice { .. }) { Place::Runs(matrix(&t.shape)) } else { place };
        let regs = self.padded(op, t, place);
        let own = self.tree(op, regs);
        let v = self.across_lanes(op, own, 32);
        let warps = self.threads / 32;
        let region = self.region(4 * warps);
        self.write_region(region);
        let start = self.region_start(region);
        let [warp, lane] = self.warp_lane();
        self.only_first_lane(lane, |l| {
            let bytes = l.w.scale(warp, 4);
            let p = l.w.at(start, bytes);
            l.w.store(v, p, 4);
        });
        self.read_region(region);
        let mut parts = vec![];
        for i in 0..warps {
            let p = self.w.offset(start, 4 * i as i64);
            parts.push(self.w.load(p, F32, 4));
        }
        self.tree(op, parts)
    }

    /// Neighbours first, so that few operations wait for each other.
    fn tree(&mut self, op: ReduceOp, mut parts: Vec<Ssa>) -> Ssa {
        while parts.len() > 1 {
            let pair = |p: &[Ssa]| if let [a, b] = p { self.combine(op, *a, *b) } else { p[0] };
            parts = parts.chunks(2).map(pair).collect();
        }
        parts[0]
    }

    /// Every fourth element after the other: a tree would hold half as many again in registers.
    fn chains(&mut self, op: ReduceOp, parts: Vec<Ssa>) -> Ssa {
        let chain = |first: usize| {
            let mut rest = parts.iter().skip(first).step_by(CHAINS).copied();
            let start = rest.next()?;
            Some(rest.fold(start, |sum, x| self.combine(op, sum, x)))
        };
        let sums = (0..CHAINS).filter_map(chain).collect();
        self.tree(op, sums)
    }

    fn only_first_lane(&mut self, lane: Index, body: impl FnOnce(&mut Self)) {
        let first = self.w.below(lane, Index::constant(1));
        self.under(first, body);
    }

    /// Rows of a matrix in runs, each within a warp.
    fn reduce_runs(&mut self, op: ReduceOp, t: &Tile, shape: Shape) -> Data {
        let place = Place::Runs(shape);
        let regs = self.padded(op, t, place);
        let width = self.groups(place).width;
        let threads = self.threads_of_row(shape).unwrap_or(1);
        let mut out = vec![];
        for group in regs.chunks(width) {
            let own = self.tree(op, group.to_vec());
            out.push(self.across_lanes(op, own, threads));
        }
        Data::Regs(Place::Slice { of: Matrix::Runs(shape), axis: 1 }, out)
    }

    /// Rows of fragments: the elements of one thread, the four threads of a row, the warps along columns.
    fn reduce_fragments(&mut self, op: ReduceOp, t: &Tile, shape: Shape) -> Data {
        // rows beyond the matrix's reach none of it
        let place = Place::Fragments(shape);
        let regs = if shape[1].is_multiple_of(8) { self.settle(t, place) } else { self.padded(op, t, place) };
        let warps = self.warps(shape);
        let of = Matrix::Fragments(shape);
        let rows = self.slice_registers(of, 1);
        let mut out = vec![];
        for row in 0..2 * warps.fragments[0] {
            let own = regs.iter().zip(&rows).filter(|(_, r)| **r == row).map(|(v, _)| *v).collect();
            let own = if self.consumes() { self.chains(op, own) } else { self.tree(op, own) };
            out.push(self.across_lanes(op, own, 4));
        }
        if warps.grid[1] > 1 {
            out = self.across_warps(op, &out, warps, shape);
        }
        Data::Regs(Place::Slice { of, axis: 1 }, out)
    }

    /// Row sums of the warps along columns, in ascending order: `[warps][rows]` in shared memory.
    fn across_warps(&mut self, op: ReduceOp, rows: &[Ssa], warps: Warps, shape: Shape) -> Vec<Ssa> {
        let pitch = 4 * 16 * warps.grid[0] * warps.fragments[0];
        let region = self.region(pitch * warps.grid[1]);
        self.write_region(region);
        let start = self.region_start(region);
        let place = Place::Slice { of: Matrix::Fragments(shape), axis: 1 };
        let at: Vec<Index> = self.groups(place).at.into_iter().map(|[row, _]| row).collect();
        let [_, column] = self.warp_at(warps);
        let offset = self.w.scale(column, pitch);
        let mine = self.w.at(start, offset);
        for (row, v) in at.iter().zip(rows) {
            let bytes = self.w.scale(*row, 4);
            let p = self.w.at(mine, bytes);
            self.w.store(*v, p, 4);
        }
        self.read_region(region);
        let mut out = vec![];
        for row in at {
            let bytes = self.w.scale(row, 4);
            let p = self.w.at(start, bytes);
            let part = |l: &mut Self, i: usize| {
                let p = l.w.offset(p, (i * pitch) as i64);
                l.w.load(p, F32, 4)
            };
            let parts = (0..warps.grid[1]).map(|i| part(self, i)).collect();
            out.push(self.tree(op, parts));
        }
        out
    }

    /// Any axis of any matrix: each element of the result walks its column in shared memory.
    fn reduce_far(&mut self, op: ReduceOp, t: &Tile, axis: usize, shape: &[usize]) -> Data {
        let region = self.lay_out(t);
        self.read_region(region);
        let start = self.region_start(region);
        let inner: usize = t.shape[axis + 1..].iter().product();
        let place = Place::Runs(matrix(shape));
        let Groups { width, at } = self.groups(place);
        let last = Index::constant(place.elements() as i64 - 1);
        let mut out = vec![];
        for [row, col] in at {
            for i in 0..width {
                let col = self.w.add_const(col, i);
                let row = self.w.scale(row, matrix(shape)[1]);
                let e = self.w.add(row, col);
                let e = self.w.index(rvllm_ir::tile::IndexOp::Min, e, last);
                out.push(self.walk(op, start, e, t.shape[axis], inner));
            }
        }
        Data::Regs(place, out)
    }

    /// Element `e` of the result: `n` elements, `inner` apart.
    fn walk(&mut self, op: ReduceOp, start: Ssa, e: Index, n: usize, inner: usize) -> Ssa {
        let outer = self.w.div(e, inner);
        let outer = self.w.scale(outer, n * inner);
        let within = self.w.rem(e, inner);
        let first = self.w.add(outer, within);
        let bytes = self.w.scale(first, 4);
        let first = self.w.at(start, bytes);
        let bounds = [0, n as i64, 1].map(|c| self.w.int(c));
        let fill = self.w.floats(F32, neutral(op));
        let open = self.w.begin_loop(bounds, &[fill]);
        let bytes = self.w.scale(Index::value(open.i), 4 * inner);
        let p = self.w.at(first, bytes);
        let v = self.w.load(p, F32, 4);
        let next = self.combine(op, open.carried[0], v);
        self.w.end_loop(open, &[next])[0]
    }
}

//! Reductions, in an order that the shape alone fixes: chunks of a row first, in ascending order and lane by lane, then
//! halves of the lanes onto each other.

use super::tile::{LANES, Tile, chunks, row_count, row_indices, row_without};
use crate::{
    map,
    text::{Ssa, Writer},
};
use rvllm_ir::tile::ReduceOp;

fn combine(w: &mut Writer, op: ReduceOp, a: Ssa, b: Ssa) -> Ssa {
    match op {
        ReduceOp::Sum => w.binary("arith.addf", a, b),
        ReduceOp::Max => map::max(w, a, b),
    }
}

fn neutral(op: ReduceOp) -> f32 {
    match op {
        ReduceOp::Sum => 0.0,
        ReduceOp::Max => f32::NEG_INFINITY,
    }
}

/// The reduction of f32 `t` along `axis`, which disappears.
pub(crate) fn reduce(w: &mut Writer, op: ReduceOp, t: &Tile, axis: usize) -> Tile {
    let mut shape = t.shape.clone();
    let n = shape.remove(axis);
    if axis < shape.len() {
        return reduce_rows(w, op, t, axis, n, shape);
    }
    let scalars: Vec<Ssa> = (0..row_count(&t.shape)).map(|r| reduce_lanes(w, op, t.row(r))).collect();
    w.tile_of(&shape, t.dtype, &scalars)
}

fn reduce_rows(w: &mut Writer, op: ReduceOp, t: &Tile, axis: usize, n: usize, shape: Vec<usize>) -> Tile {
    let mut vecs = vec![];
    for index in row_indices(&shape) {
        for c in 0..chunks(&shape).len() {
            let at = |i: usize| {
                let mut index = index.clone();
                index.insert(axis, i);
                t.row(row_without(&index, usize::MAX, &t.shape))[c]
            };
            vecs.push((1..n).fold(at(0), |sum, i| combine(w, op, sum, at(i))));
        }
    }
    Tile { shape, dtype: t.dtype, vecs }
}

fn reduce_lanes(w: &mut Writer, op: ReduceOp, row: &[Ssa]) -> Ssa {
    let width = if row.len() > 1 { LANES } else { row[0].ty.lanes().next_power_of_two() };
    let mut sum = pad(w, op, row[0], width);
    for v in &row[1..] {
        let v = pad(w, op, *v, width);
        sum = combine(w, op, sum, v);
    }
    let mut lanes = width;
    while lanes > 1 {
        lanes /= 2;
        let low = w.shuffle(sum, sum, &(0..lanes).collect::<Vec<_>>());
        let high = w.shuffle(sum, sum, &(lanes..2 * lanes).collect::<Vec<_>>());
        sum = combine(w, op, low, high);
    }
    w.extract(sum, 0)
}

fn pad(w: &mut Writer, op: ReduceOp, v: Ssa, lanes: usize) -> Ssa {
    let fill = w.floats(v.ty, neutral(op));
    w.widen(v, fill, lanes)
}

//! Which thread holds which elements of a tile: a function of the tile's shape and the CTA's threads alone.
//!
//! A tile is seen as a matrix of `rows` (the product of its leading dimensions) times `cols`. A thread holds *groups* of `width`
//! elements next to each other along a row; registers are the groups' elements in order.
//!
//! - [`Place::Runs`]: row-major runs of `width` elements, thread after thread, then again from the first thread.
//! - [`Place::Fragments`]: what `mma` accumulates in: fragments of 16 × 8 elements, warps along rows first.
//! - [`Place::Slice`]: what is left of such a matrix without its rows or its columns: each thread holds what it needs to
//!   combine it with the elements it has of the matrix, so that reductions and broadcasts stay in registers.

use super::Lower;
use crate::index::Index;
use rvllm_ir::{
    tile::{Block, IndexOp, Inst, Layout, TileType, Type, Val},
    types::DType,
};
use std::collections::HashMap;

/// Rows and columns of a tile's matrix.
pub(crate) type Shape = [usize; 2];

/// Where the elements of a tile are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Runs(Shape),
    Fragments(Shape),
    /// The matrix's elements along `axis` are one.
    Slice {
        of: Matrix,
        axis: usize,
    },
}

/// A matrix that a slice is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Matrix {
    Runs(Shape),
    Fragments(Shape),
}

impl Matrix {
    pub(crate) fn place(self) -> Place {
        match self {
            Matrix::Runs(s) => Place::Runs(s),
            Matrix::Fragments(s) => Place::Fragments(s),
        }
    }
}

/// A tile's shape as a matrix.
pub(crate) fn matrix(shape: &[usize]) -> Shape {
    match shape {
        [leading @ .., cols] => [leading.iter().product(), *cols],
        [] => [1, 1],
    }
}

impl Place {
    /// Where a tile of this type is unless something else is known.
    pub(crate) fn of(ty: &TileType) -> Place {
        let shape = matrix(&ty.shape);
        match ty.layout {
            Layout::Acc if ty.shape.len() > 1 => Place::Fragments(shape),
            _ => Place::Runs(shape),
        }
    }

    /// Without the matrix's elements along `axis`.
    pub(crate) fn slice(self, axis: usize) -> Option<Place> {
        match self {
            Place::Runs(s) => Some(Place::Slice { of: Matrix::Runs(s), axis }),
            Place::Fragments(s) => Some(Place::Slice { of: Matrix::Fragments(s), axis }),
            Place::Slice { .. } => None,
        }
    }

    /// How many elements the tile has.
    pub(crate) fn elements(self) -> usize {
        match self {
            Place::Runs([r, c]) | Place::Fragments([r, c]) => r * c,
            Place::Slice { of: Matrix::Runs(s) | Matrix::Fragments(s), axis } => s[1 - axis],
        }
    }

    /// What is preferred where two tiles of different places meet.
    pub(crate) fn rank(self) -> usize {
        match self {
            Place::Runs(_) => 0,
            Place::Slice { .. } => 1,
            Place::Fragments(_) => 2,
        }
    }
}

/// How the warps of a CTA share a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Warps {
    /// Warps along rows and along columns.
    pub(crate) grid: Shape,
    /// Fragments of one warp along each.
    pub(crate) fragments: Shape,
}

impl Warps {
    pub(crate) fn new(threads: usize, [rows, cols]: Shape) -> Warps {
        let warps = threads / 32;
        let along_rows = rows.div_ceil(16);
        let m = (1..=warps.min(along_rows)).rev().find(|n| n.is_power_of_two()).unwrap_or(1);
        let n = warps / m;
        Warps { grid: [m, n], fragments: [along_rows.div_ceil(m), cols.div_ceil(8).div_ceil(n)] }
    }
}

/// Elements of a group of [`Place::Runs`].
fn run(threads: usize, [rows, cols]: Shape) -> usize {
    let fits = |w: &usize| cols.is_multiple_of(*w) && w * threads <= (rows * cols).next_multiple_of(threads);
    [8, 4, 2].into_iter().find(fits).unwrap_or(1)
}

/// The groups of a tile that a thread holds.
pub(crate) struct Groups {
    /// Elements of a group.
    pub(crate) width: usize,
    /// Row and column of each group's first element; of a slice only what is left is meaningful.
    pub(crate) at: Vec<[Index; 2]>,
}

impl Lower<'_> {
    /// How warps share a matrix: along rows alone where warpgroups multiply, however few there are.
    pub(crate) fn warps(&self, shape: Shape) -> Warps {
        if !self.consumes() {
            return Warps::new(self.threads, shape);
        }
        let (warps, [rows, cols]) = (self.threads / 32, shape);
        Warps { grid: [warps, 1], fragments: [rows.div_ceil(16 * warps), cols.div_ceil(8)] }
    }

    /// Whether tiles at two places are in the same registers: what is left of matrices without their columns, where warps
    /// share rows alike.
    pub(crate) fn same_registers(&self, a: Place, b: Place) -> bool {
        let rows = |p: Place| match p {
            Place::Slice { of: Matrix::Fragments(s), axis: 1 } => Some((s[0], self.warps(s))),
            _ => None,
        };
        let alike = |(n, w): (usize, Warps), (m, v): (usize, Warps)| {
            n == m && w.grid == v.grid && w.grid[1] == 1 && w.fragments[0] == v.fragments[0]
        };
        a == b || rows(a).zip(rows(b)).is_some_and(|(a, b)| alike(a, b))
    }

    /// This thread's warp and its lane in it.
    pub(crate) fn warp_lane(&mut self) -> [Index; 2] {
        let warp = self.w.div(self.thread, 32).bounded(Some(self.threads as i64 / 32 - 1));
        [warp, self.w.rem(self.thread, 32)]
    }

    /// This thread's warp along rows and columns of a product.
    pub(crate) fn warp_at(&mut self, warps: Warps) -> [Index; 2] {
        let [warp, _] = self.warp_lane();
        let [m, n] = warps.grid;
        let row = self.w.index(IndexOp::Rem, warp, Index::constant(m as i64));
        let col = if n == 1 { Index::constant(0) } else { self.w.div(warp, m).bounded(Some(n as i64 - 1)) };
        [row, col]
    }

    /// The groups of this thread.
    pub(crate) fn groups(&mut self, place: Place) -> Groups {
        match place {
            Place::Runs(shape) => self.runs(shape),
            Place::Fragments(shape) => self.fragments(shape),
            Place::Slice { of: Matrix::Fragments(shape), axis } => self.fragment_slice(shape, axis),
            Place::Slice { of: Matrix::Runs(shape), axis } => self.run_slice(shape, axis),
        }
    }

    fn runs(&mut self, shape: Shape) -> Groups {
        let [rows, cols] = shape;
        let width = run(self.threads, shape);
        let turn = self.threads * width;
        let first = self.w.scale(self.thread, width);
        let at = (0..(rows * cols).div_ceil(turn)).map(|j| self.run_at(first, j * turn, shape, turn));
        Groups { width, at: at.collect() }
    }

    /// Row and column of element `first + offset`.
    fn run_at(&mut self, first: Index, offset: usize, [rows, cols]: Shape, turn: usize) -> [Index; 2] {
        if rows == 1 {
            return [Index::constant(0), self.w.add_const(first, offset)];
        }
        if turn.is_multiple_of(cols) {
            let (row, col) = (self.w.div(first, cols), self.w.rem(first, cols));
            return [self.w.add_const(row, offset / cols), col];
        }
        let e = self.w.add_const(first, offset);
        [self.w.div(e, cols), self.w.rem(e, cols)]
    }

    fn fragments(&mut self, shape: Shape) -> Groups {
        let rows = self.fragment_rows(shape);
        let cols = self.fragment_cols(shape);
        // fragment by fragment, its upper half before its lower
        let fragment = |halves: &[Index]| {
            let halves = halves.to_vec();
            cols.iter().flat_map(move |c| halves.clone().into_iter().map(|r| [r, *c])).collect::<Vec<_>>()
        };
        Groups { width: 2, at: rows.chunks(2).flat_map(fragment).collect() }
    }

    /// Rows that a thread has elements of: two of each fragment.
    fn fragment_rows(&mut self, shape: Shape) -> Vec<Index> {
        let warps = self.warps(shape);
        let [warp, _] = self.warp_at(warps);
        let [_, lane] = self.warp_lane();
        let quad = self.w.div(lane, 4);
        let first = self.w.scale(warp, 16 * warps.fragments[0]);
        let first = self.w.add(first, quad);
        (0..2 * warps.fragments[0]).map(|i| self.w.add_const(first, 8 * i)).collect()
    }

    /// First columns of the pairs that a thread has: one of each fragment.
    fn fragment_cols(&mut self, shape: Shape) -> Vec<Index> {
        let warps = self.warps(shape);
        let [_, warp] = self.warp_at(warps);
        let [_, lane] = self.warp_lane();
        let pair = self.w.rem(lane, 4);
        let pair = self.w.scale(pair, 2);
        let first = self.w.scale(warp, 8 * warps.fragments[1]);
        let first = self.w.add(first, pair);
        (0..warps.fragments[1]).map(|j| self.w.add_const(first, 8 * j)).collect()
    }

    fn fragment_slice(&mut self, shape: Shape, axis: usize) -> Groups {
        let zero = Index::constant(0);
        match axis {
            1 => Groups { width: 1, at: self.fragment_rows(shape).into_iter().map(|r| [r, zero]).collect() },
            _ => Groups { width: 2, at: self.fragment_cols(shape).into_iter().map(|c| [zero, c]).collect() },
        }
    }

    fn run_slice(&mut self, shape: Shape, axis: usize) -> Groups {
        let all = self.runs(shape);
        match axis {
            1 => Groups { width: 1, at: all.at },
            _ if self.runs_share_columns(shape) => Groups { width: all.width, at: all.at[..1].to_vec() },
            _ => all,
        }
    }

    /// Whether runs of two shapes with as many elements are in the same registers.
    pub(crate) fn same_runs(&self, a: Shape, b: Shape) -> bool {
        run(self.threads, a) == run(self.threads, b)
    }

    /// Whether all groups of a thread are in the same columns.
    fn runs_share_columns(&self, shape: Shape) -> bool {
        (self.threads * run(self.threads, shape)).is_multiple_of(shape[1])
    }

    /// Register of the slice that each register of the matrix combines with.
    pub(crate) fn slice_registers(&self, of: Matrix, axis: usize) -> Vec<usize> {
        match of {
            Matrix::Fragments(shape) => {
                let [m, n] = self.warps(shape).fragments;
                let register = |i: usize| {
                    let (fragment, within) = (i / 4, i % 4);
                    let (row, col) = (fragment / n * 2 + within / 2, fragment % n * 2 + within % 2);
                    if axis == 1 { row } else { col }
                };
                (0..4 * m * n).map(register).collect()
            }
            Matrix::Runs(shape) => {
                let width = run(self.threads, shape);
                let groups = (shape[0] * shape[1]).div_ceil(self.threads * width);
                let shared = self.runs_share_columns(shape);
                let register = |i: usize| match axis {
                    1 => i / width,
                    _ if shared => i % width,
                    _ => i,
                };
                (0..groups * width).map(register).collect()
            }
        }
    }

    /// Threads that hold elements of one row of a matrix in runs, where they are a power of two within a warp and each has one
    /// group of the row.
    pub(crate) fn threads_of_row(&self, shape: Shape) -> Option<usize> {
        let threads = shape[1] / run(self.threads, shape);
        (threads.is_power_of_two() && threads <= 32 && self.runs_share_columns(shape)).then_some(threads)
    }

    /// Places that loaded and computed rows and columns are broadcast to.
    pub(crate) fn wanted_places(&self) -> HashMap<Val, Place> {
        let mut wanted = HashMap::new();
        self.collect_wanted(&self.kernel.body, &mut wanted);
        wanted
    }

    fn collect_wanted(&self, block: &Block, wanted: &mut HashMap<Val, Place>) {
        for s in &block.stmts {
            match &s.inst {
                Inst::Pipeline { body, .. } => self.collect_wanted(body, wanted),
                Inst::Broadcast(v, axis) if self.is_row_or_column(*v) => {
                    let place = Place::of(self.kernel.tile(s.results[0])).slice(*axis);
                    wanted.extend(place.map(|p| (*v, p)));
                }
                _ => {}
            }
        }
    }

    fn is_row_or_column(&self, v: Val) -> bool {
        matches!(self.kernel.ty(v), Type::Tile(t) if t.shape.len() == 1 && t.dtype == DType::F32 && t.shape != [1])
    }
}

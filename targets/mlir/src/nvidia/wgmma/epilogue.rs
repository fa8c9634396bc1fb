//! What follows the product, on two accumulators at a time: those that a thread holds next to each other.
//!
//! Exponentials and quotients are the hardware's approximations (2^-22 and two units in the last place): the polynomials of
//! exact ones take as long as a tenth of the product.

use super::{Lower, ops::I32, store::Tile};
use crate::{
    map,
    text::{Elem, Ssa, Ty},
};
use rvllm_ir::{
    tile::{Inst, MapOp, Val},
    types::DType,
};
use std::collections::HashMap;

const PAIR: Ty = Ty::Vector(2, Elem::F32);
/// Pairs of a thread up to which what the epilogue loads is loaded before the product: more would take its registers.
const EARLY: usize = 16;

/// Two elements of the result: two rows of one column in a narrow form, two columns of one row in a wide one.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    /// Of the first; its column is `shift` after `column`, which pairs share, so that their addresses differ by constants.
    pub(super) row: Ssa,
    pub(super) column: Ssa,
    pub(super) shift: usize,
    /// What is already loaded for them, as it is in memory.
    pub(super) loaded: HashMap<Val, Ssa>,
}

fn memory_type(dtype: DType) -> Elem {
    match dtype {
        DType::Bf16 => Elem::Bf16,
        DType::F16 => Elem::F16,
        _ => Elem::F32,
    }
}

fn bytes(elem: Elem) -> usize {
    if elem == Elem::F32 { 4 } else { 2 }
}

impl Lower<'_> {
    /// Pairs of a narrow tile: of eight rows of the result `t`, and of features `r` where a thread has several.
    pub(super) fn narrow_places(&self) -> Vec<(usize, usize)> {
        let several = self.form.several;
        (0..self.form.finished_rows() / 8).flat_map(|t| (0..several).map(move |r| (t, r))).collect()
    }

    pub(super) fn narrow_pair(&mut self, tile: &Tile, (t, r): (usize, usize)) -> Pair {
        let warp = self.w.times(tile.warp, self.form.warp_features);
        let group = self.w.times(tile.group, self.form.features);
        let (eighth, fourth) = (self.w.over(self.lane, 4), self.w.modulo(self.lane, 4));
        let feature = self.w.sum(group, warp);
        let feature = self.w.sum(feature, eighth);
        let row = self.w.times(fourth, 2);
        let row = self.w.plus(row, 8 * t);
        let (row, column) = (self.w.sum(tile.row, row), self.w.sum(tile.column, feature));
        Pair { row, column, shift: self.form.row_features * r, loaded: HashMap::new() }
    }

    /// The sums of a narrow pair, by matrix.
    pub(super) fn narrow_sums(&mut self, (t, r): (usize, usize), sums: Ssa) -> Vec<Ssa> {
        let matrices = self.product.matrices();
        let sum = |g| {
            let first = 4 * t + 2 * if matrices == 1 { r } else { g };
            let pair = self.two(sums, first);
            self.with_first_half(pair, 0, first)
        };
        (0..matrices).map(sum).collect()
    }

    /// The sums of a wide pair of the eight columns `j` of a tile and rows `r` (upper or lower eight of 16) of a block, by matrix.
    pub(super) fn wide_sums(&mut self, (j, r): (usize, usize), block: usize, sums: Ssa) -> Vec<Ssa> {
        let matrices = self.product.matrices();
        let sum = |g| {
            let first = 4 * (j * matrices + g) + 2 * r;
            let pair = self.two(sums, first);
            self.with_first_half(pair, block, first)
        };
        (0..matrices).map(sum).collect()
    }

    fn two(&mut self, sums: Ssa, first: usize) -> Ssa {
        let both = [self.w.member(sums, first), self.w.member(sums, first + 1)];
        self.w.vector_of(&both)
    }

    /// What the epilogue loads.
    pub(super) fn leaves(&self) -> Vec<Val> {
        let loads = |i: &Inst| matches!(i, Inst::Load { .. } | Inst::Broadcast(..));
        let tile = |v: &Val| self.product.kernel.tile(*v).shape.len() == 2;
        let top = self.product.kernel.body.stmts.iter();
        top.filter(|s| loads(&s.inst)).flat_map(|s| s.results.iter().copied()).filter(tile).collect()
    }

    /// Loads what the epilogue needs at a pair.
    pub(super) fn load_ahead(&mut self, pair: &mut Pair) {
        for v in self.leaves() {
            let value = self.fetch(v, pair);
            pair.loaded.insert(v, value);
        }
    }

    /// A narrow tile's pairs where they are few, with what the epilogue loads. Where it reads what predecessors write, they are
    /// waited for.
    pub(super) fn early_pairs(&mut self, tile: &Tile) -> Option<Vec<Pair>> {
        let some = !self.leaves().is_empty();
        if some {
            self.w.effect("nvvm.griddepcontrol wait");
        }
        let early = some && self.narrow_places().len() <= EARLY;
        early.then(|| {
            let places = self.narrow_places();
            let mut pairs = self.narrow_pairs(tile, &places);
            pairs.iter_mut().for_each(|pair| self.load_ahead(pair));
            pairs
        })
    }

    /// Pairs of a narrow tile.
    pub(super) fn narrow_pairs(&mut self, tile: &Tile, places: &[(usize, usize)]) -> Vec<Pair> {
        places.iter().map(|place| self.narrow_pair(tile, *place)).collect()
    }

    /// The result at a pair with these sums.
    pub(super) fn result(&mut self, pair: &Pair, sums: &[Ssa]) -> Ssa {
        let mut known = self.product.sums.iter().copied().zip(sums.iter().copied()).collect();
        self.value(self.product.result, pair, &mut known)
    }

    fn value(&mut self, v: Val, pair: &Pair, known: &mut HashMap<Val, Ssa>) -> Ssa {
        if let Some(value) = known.get(&v) {
            return *value;
        }
        let value = match self.product.definitions[&v] {
            Inst::Full(c) => self.w.floats(PAIR, *c),
            Inst::Map(op, args) => {
                let args: Vec<Ssa> = args.iter().map(|a| self.value(*a, pair, known)).collect();
                self.map(*op, &args)
            }
            Inst::Select { cmp, a, b, x, y } => {
                let [a, b, x, y] = [a, b, x, y].map(|v| self.value(*v, pair, known));
                map::select(&mut self.w, *cmp, [a, b], [x, y])
            }
            Inst::Cast(of) => {
                let (of, to) = (self.value(*of, pair, known), memory_type(self.product.kernel.tile(v).dtype));
                let op = if to == Elem::F32 { "arith.extf" } else { "arith.truncf" };
                self.w.convert(op, of, PAIR.with(to))
            }
            _ => {
                let raw = pair.loaded.get(&v).copied();
                let raw = raw.unwrap_or_else(|| self.fetch(v, pair));
                self.widen(raw)
            }
        };
        known.insert(v, value);
        value
    }

    fn map(&mut self, op: MapOp, args: &[Ssa]) -> Ssa {
        match (op, args) {
            (MapOp::Exp, [x]) => {
                let log2e = self.w.floats(PAIR, std::f32::consts::LOG2_E);
                let x = self.w.binary("arith.mulf", *x, log2e);
                self.each("llvm.nvvm.ex2.approx.ftz.f", x)
            }
            (MapOp::Div, [a, b]) => {
                let inverse = self.each("llvm.nvvm.rcp.approx.ftz.f", *b);
                self.w.binary("arith.mulf", *a, inverse)
            }
            _ => map::map(&mut self.w, op, args),
        }
    }

    /// An intrinsic of one element on both.
    fn each(&mut self, name: &str, pair: Ssa) -> Ssa {
        let both = [0, 1].map(|i| {
            let x = self.w.extract(pair, i);
            self.w.intrinsic(name, &[x], Ty::Scalar(Elem::F32))
        });
        self.w.vector_of(&both)
    }

    /// What was loaded for a pair, in f32: two elements, or one for both.
    fn widen(&mut self, raw: Ssa) -> Ssa {
        match raw.ty {
            Ty::Scalar(_) => {
                let value = self.w.convert("arith.extf", raw, Ty::Scalar(Elem::F32));
                self.w.splat(value, 2)
            }
            _ => self.w.convert("arith.extf", raw, PAIR),
        }
    }

    fn fetch(&mut self, v: Val, pair: &Pair) -> Ssa {
        match self.product.definitions[&v] {
            Inst::Load { tensor, .. } => self.matrix(*tensor, pair),
            Inst::Broadcast(of, 0) => self.vector(*of, pair),
            Inst::Broadcast(of, _) => self.column(*of, pair),
            other => unreachable!("invariant: `Product::of` checks the epilogue, which has {other:?}"),
        }
    }

    /// Two elements of a matrix; past its last row or column, of its last.
    fn matrix(&mut self, tensor: usize, pair: &Pair) -> Ssa {
        let elem = memory_type(self.product.param(tensor).ty.dtype);
        if self.form.wide {
            let p = self.matrix_element(tensor, pair.row, pair, 2);
            return self.w.load(p, PAIR.with(elem), 2 * bytes(elem));
        }
        let next = self.w.plus(pair.row, 1);
        let both = [pair.row, next].map(|row| {
            let p = self.matrix_element(tensor, row, pair, 1);
            self.w.load(p, Ty::Scalar(elem), bytes(elem))
        });
        self.w.vector_of(&both)
    }

    fn matrix_element(&mut self, tensor: usize, row: Ssa, pair: &Pair, width: usize) -> Ssa {
        let row = self.last_row(row);
        let row = self.w.wide(row);
        let row = self.w.times(row, self.product.pitch(tensor));
        let (column, shift) = self.inside(pair, width);
        let column = self.w.wide(column);
        let at = self.w.sum(row, column);
        self.element(tensor, at, shift)
    }

    /// Two elements of a vector over columns; in a narrow form one, which is both's.
    fn vector(&mut self, of: Val, pair: &Pair) -> Ssa {
        let Inst::Load { tensor, at } = self.product.definitions[&of] else {
            unreachable!("invariant: `Product::of` takes broadcasts of loads alone")
        };
        let dims: Vec<usize> = self.product.param(*tensor).ty.dims.iter().filter_map(|d| d.constant()).collect();
        let outer = at[..at.len() - 1].iter().zip(&dims);
        let first = outer.fold(0, |sum, (v, d)| sum * d + self.index_constant(*v)) * dims.last().copied().unwrap_or(1);
        let elem = memory_type(self.product.param(*tensor).ty.dtype);
        let width = if self.form.wide { 2 } else { 1 };
        let (column, shift) = self.inside(pair, width);
        let at = self.w.wide(column);
        let p = self.element(*tensor, at, first + shift);
        let ty = if self.form.wide { PAIR.with(elem) } else { Ty::Scalar(elem) };
        self.w.load(p, ty, width * bytes(elem))
    }

    /// Two elements of a vector over rows; in a wide form one, which is both's.
    fn column(&mut self, of: Val, pair: &Pair) -> Ssa {
        let Inst::Load { tensor, .. } = self.product.definitions[&of] else {
            unreachable!("invariant: `Product::of` takes broadcasts of loads alone")
        };
        if self.form.wide {
            return self.row_element(*tensor, pair.row);
        }
        let next = self.w.plus(pair.row, 1);
        let both = [pair.row, next].map(|row| self.row_element(*tensor, row));
        self.w.vector_of(&both)
    }

    fn row_element(&mut self, tensor: usize, row: Ssa) -> Ssa {
        let elem = memory_type(self.product.param(tensor).ty.dtype);
        let row = self.last_row(row);
        let at = self.w.wide(row);
        let p = self.element(tensor, at, 0);
        self.w.load(p, Ty::Scalar(elem), bytes(elem))
    }

    fn index_constant(&self, v: Val) -> usize {
        match self.product.definitions[&v] {
            Inst::Const(c) => *c as usize,
            _ => 0,
        }
    }

    /// Where element number `at + shift` of a tensor is.
    fn element(&mut self, tensor: usize, at: Ssa, shift: usize) -> Ssa {
        let size = self.product.param(tensor).ty.dtype.bits() / 8;
        let by = self.w.times(at, size);
        let base = self.pointers[tensor];
        let first = self.w.advance(base, by);
        self.w.offset(first, (shift * size) as i64)
    }

    /// The row itself, or the step's last.
    fn last_row(&mut self, row: Ssa) -> Ssa {
        let (one, rows) = (self.w.i32(1), self.rows);
        let some = self.w.binary("arith.maxsi", rows, one);
        let last = self.w.binary("arith.subi", some, one);
        self.w.binary("arith.minsi", row, last)
    }

    /// A pair's column and its shift, or the last column from which on `width` columns are inside.
    fn inside(&mut self, pair: &Pair, width: usize) -> (Ssa, usize) {
        let columns = self.product.columns();
        if columns.is_multiple_of(self.product.n) {
            return (pair.column, pair.shift);
        }
        let column = self.w.plus(pair.column, pair.shift);
        let last = self.w.ints(I32, (columns - width) as i64);
        (self.w.binary("arith.minsi", column, last), 0)
    }
}

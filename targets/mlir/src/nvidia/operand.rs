//! Operands of `mma` in shared memory. Rows are 16 bytes further apart than they are long, so that the eight rows that a tensor
//! core's matrix load takes lie in different banks.
//!
//! Invariants:
//! - of 16-bit types, k is padded with zeros to whole instructions;
//! - rows that a product's fragments have beyond an operand's are read from inside the region and reach no element of the result.

use super::{
    Lower,
    load::{Source, elem},
    place::{Place, matrix},
    shared::Region,
    tile::{Data, Tile},
};
use crate::{
    Error,
    bounds::Cond,
    index::Index,
    text::{Elem, Ssa, Ty},
};
use rvllm_ir::types::DType;

/// k values of one tensor-core instruction on 16-bit types.
pub(crate) const INSTRUCTION_K: usize = 16;

/// A matrix `[rows, k]` that `mma` reads.
#[derive(Clone, Debug)]
pub(crate) struct Operand {
    pub(crate) shape: Vec<usize>,
    pub(crate) dtype: DType,
    pub(crate) data: Matrix,
    /// Whether the loop around it loads it.
    pub(crate) ahead: bool,
}

/// Where the matrix is.
#[derive(Clone, Debug)]
pub(crate) enum Matrix {
    Shared(View),
    /// Accumulators that may become fragments of another product.
    Registers(Tile),
}

/// A matrix in shared memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    pub(crate) region: Region,
    pub(crate) start: Ssa,
    pub(crate) form: Form,
}

/// How a matrix lies in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Form {
    pub(crate) rows: usize,
    pub(crate) k: usize,
    /// Whether the elements of a column, rather than of a row, are adjacent.
    pub(crate) columns: bool,
    /// Bytes of an element.
    pub(crate) size: usize,
}

impl Form {
    /// k with its padding.
    pub(crate) fn depth(self) -> usize {
        if self.size == 4 { self.k } else { self.k.next_multiple_of(INSTRUCTION_K) }
    }

    /// Lines, and elements of a line.
    fn lines(self) -> [usize; 2] {
        let rows = self.rows.next_multiple_of(8);
        if self.columns { [self.depth(), rows] } else { [self.rows, self.depth()] }
    }

    /// Bytes from one line to the next.
    pub(crate) fn pitch(self) -> usize {
        (self.lines()[1] * self.size).next_multiple_of(16) + 16
    }

    pub(crate) fn bytes(self) -> usize {
        self.lines()[0] * self.pitch()
    }
}

impl Lower<'_> {
    /// How a tile of a tensor lies once it is an operand.
    pub(crate) fn form(&self, tensor: usize, shape: &[usize]) -> Form {
        let [rows, k] = matrix(shape);
        let rank = self.kernel.params[tensor].ty.rank();
        let leading_ones = shape.len() >= 2 && shape[..shape.len() - 2].iter().all(|n| *n == 1);
        let columns = rank >= 2 && self.adjacent(tensor) == Some(rank - 2) && leading_ones;
        Form { rows, k, columns, size: self.size(tensor) }
    }

    /// A tile of a tensor as an operand, there when this returns.
    pub(crate) fn load_operand(&mut self, tensor: usize, at: &[Index], shape: &[usize]) -> Result<Operand, Error> {
        let form = self.form(tensor, shape);
        let region = self.region(form.bytes());
        self.write_region(region);
        let start = self.region_start(region);
        let view = View { region, start, form };
        self.pad(view);
        self.copy(tensor, at, shape, view);
        self.commit();
        self.await_copies(0);
        let dtype = self.kernel.params[tensor].ty.dtype;
        Ok(Operand { shape: shape.to_vec(), dtype, data: Matrix::Shared(view), ahead: false })
    }

    /// Ends a group of copies.
    pub(crate) fn commit(&mut self) {
        self.w.intrinsic_void("llvm.nvvm.cp.async.commit.group", &[]);
    }

    /// Waits until at most this many groups of this thread's copies are under way.
    pub(crate) fn await_copies(&mut self, groups: usize) {
        let n = self.w.ints(Ty::Scalar(Elem::I32), groups as i64);
        self.w.intrinsic_void("llvm.nvvm.cp.async.wait.group", &[n]);
    }

    /// Zeros behind the last k value.
    pub(crate) fn pad(&mut self, view: View) {
        let Form { rows, k, columns, size } = view.form;
        let missing = view.form.depth() - k;
        if missing == 0 {
            return;
        }
        let zero = self.w.zero(Ty::Scalar(Elem::int(8 * size)));
        self.each_turn(rows * missing, |l, q| {
            let row = l.w.div(q, missing);
            let behind = l.w.rem(q, missing);
            let behind = l.w.add_const(behind, k);
            let [line, within] = if columns { [behind, row] } else { [row, behind] };
            let p = l.line_element(view, line, within);
            l.w.store(zero, p, size);
        });
    }

    /// `n` pieces of work, thread after thread.
    fn each_turn(&mut self, n: usize, mut body: impl FnMut(&mut Self, Index)) {
        for first in (0..n).step_by(self.threads) {
            let q = self.w.add_const(self.thread, first);
            let inside = self.w.below(q, Index::constant(n as i64));
            self.under(inside, |l| body(l, q));
        }
    }

    /// Address of an element of a line.
    pub(crate) fn line_element(&mut self, view: View, line: Index, within: Index) -> Ssa {
        let line = self.w.scale(line, view.form.pitch());
        let within = self.w.scale(within, view.form.size);
        let bytes = self.w.add(line, within);
        self.w.at(view.start, bytes)
    }

    /// Begins to copy a tile into shared memory; what lies outside of the tensor becomes zero.
    pub(crate) fn copy(&mut self, tensor: usize, at: &[Index], shape: &[usize], view: View) {
        let s = self.source(tensor, at, shape);
        let Form { rows, k, columns, size } = view.form;
        let [lines, length] = if columns { [k, rows] } else { [rows, k] };
        let along = if columns { shape.len() - 2 } else { shape.len() - 1 };
        let adjacent = self.adjacent(tensor) == Some(along + at.len() - shape.len());
        let run = (16 / size).min(1 << length.trailing_zeros());
        let most = if adjacent { self.vector(tensor, at, run) } else { 1 };
        let n = (1..=most).rev().find(|n| most.is_multiple_of(*n) && self.whole_runs(along, *n, shape, &s.extents));
        let n = n.unwrap_or(1);
        let per_line = length / n;
        self.each_turn(lines * per_line, |l, q| {
            let line = l.w.div(q, per_line);
            let within = l.w.rem(q, per_line);
            let within = l.w.scale(within, n);
            let to = l.line_element(view, line, within);
            let [row, col] = if columns { [within, line] } else { [line, within] };
            let index = l.tile_index(Place::Runs([rows, k]), [row, col], shape);
            l.copy_piece(&s, &index, n, to);
        });
    }

    /// `n` adjacent elements.
    fn copy_piece(&mut self, s: &Source<'_>, index: &[Index], n: usize, to: Ssa) {
        let bytes = n * self.size(s.tensor);
        let inside = self.within(index, s.shape, &s.extents);
        let at = self.indices_at(s.origin, index);
        let from = self.element(s.tensor, &at);
        match bytes {
            4 | 8 | 16 => self.copy_async(to, from, bytes, inside),
            _ => self.copy_element(s, to, from, bytes, inside),
        }
    }

    fn copy_async(&mut self, to: Ssa, from: Ssa, bytes: usize, inside: Cond) {
        let cache = if bytes == 16 { "cg" } else { "ca" };
        let name = format!("llvm.nvvm.cp.async.{cache}.shared.global.{bytes}");
        let i32 = Ty::Scalar(Elem::I32);
        match inside {
            Cond::Always => self.w.intrinsic_void(&name, &[to, from]),
            Cond::Never => {
                let none = self.w.ints(i32, 0);
                self.w.intrinsic_void(&format!("{name}.s"), &[to, from, none]);
            }
            Cond::If(c) => {
                let (all, none) = (self.w.ints(i32, bytes as i64), self.w.ints(i32, 0));
                let count = self.w.select(c, all, none);
                self.w.intrinsic_void(&format!("{name}.s"), &[to, from, count]);
            }
        }
    }

    fn copy_element(&mut self, s: &Source<'_>, to: Ssa, from: Ssa, bytes: usize, inside: Cond) {
        let ty = Ty::Scalar(Elem::int(8 * bytes));
        let v = match inside {
            Cond::Always => self.w.load(from, ty, bytes),
            Cond::Never => self.w.zero(ty),
            Cond::If(c) => {
                let origin = self.element(s.tensor, s.origin);
                let p = self.w.select(c, from, origin);
                let v = self.w.load(p, ty, bytes);
                let zero = self.w.zero(ty);
                self.w.select(c, v, zero)
            }
        };
        self.w.store(v, to, bytes);
    }

    /// A copy of an operand in an element type that holds all of its numbers, element by element: products that threads of
    /// their own prepare are another lowering's.
    pub(crate) fn cast_operand(&mut self, operand: &Operand, to: DType) -> Result<Operand, Error> {
        let Matrix::Shared(from) = operand.data else {
            return Err(self.unsupported("another element type of an operand in registers"));
        };
        let size = to.bits() / 8;
        let form = Form { size, ..from.form };
        let region = self.region(form.bytes());
        self.read_region(from.region);
        self.write_region(region);
        let view = View { region, start: self.region_start(region), form };
        self.pad(view);
        let [lines, length] = if form.columns { [form.k, form.rows] } else { [form.rows, form.k] };
        let stored = Ty::Scalar(elem(operand.dtype));
        self.each_turn(lines * length, |l, q| {
            let (line, within) = (l.w.div(q, length), l.w.rem(q, length));
            let p = l.line_element(from, line, within);
            let element = l.w.load(p, stored, from.form.size);
            let number = l.widen(element, 1, operand.dtype);
            let number = l.narrow(&number, to);
            let p = l.line_element(view, line, within);
            l.w.store(number, p, size);
        });
        Ok(Operand { shape: operand.shape.clone(), dtype: to, data: Matrix::Shared(view), ahead: false })
    }

    /// A tile in registers as an operand: it stays there until a product needs it elsewhere.
    pub(crate) fn stage(&mut self, t: &Tile) -> Result<Operand, Error> {
        let data = Matrix::Registers(t.clone());
        Ok(Operand { shape: t.shape.clone(), dtype: t.dtype, data, ahead: false })
    }

    /// Other leading dimensions, same rows.
    pub(crate) fn reshape_operand(&self, operand: Operand, shape: &[usize]) -> Result<Operand, Error> {
        if operand.shape.last() != shape.last() {
            return Err(self.unsupported(format!("an operand {:?} reshaped to {shape:?}", operand.shape)));
        }
        let data = match operand.data {
            Matrix::Registers(t) => Matrix::Registers(Tile { shape: shape.to_vec(), ..t }),
            shared @ Matrix::Shared(_) => shared,
        };
        Ok(Operand { shape: shape.to_vec(), data, ..operand })
    }

    /// The matrix in shared memory.
    pub(crate) fn shared_view(&mut self, operand: &Operand) -> View {
        let tile = match &operand.data {
            Matrix::Shared(view) => return *view,
            Matrix::Registers(tile) => tile,
        };
        let [rows, k] = matrix(&operand.shape);
        let form = Form { rows, k, columns: false, size: operand.dtype.bits() / 8 };
        let region = self.region(form.bytes());
        self.write_region(region);
        let start = self.region_start(region);
        let view = View { region, start, form };
        self.pad(view);
        self.write_tile(tile, view);
        view
    }

    fn write_tile(&mut self, t: &Tile, view: View) {
        let place = match t.data {
            Data::Regs(place @ (Place::Runs(s) | Place::Fragments(s)), _) if s == matrix(&t.shape) => place,
            _ => Place::Runs(matrix(&t.shape)),
        };
        let regs = self.settle(t, place);
        let groups = self.groups(place);
        // a group is adjacent where the matrix is whole groups wide
        let whole = view.form.k.is_multiple_of(groups.width);
        let n = if whole { groups.width } else { 1 };
        let mut rest = &regs[..];
        for [row, col] in groups.at {
            for i in (0..groups.width).step_by(n) {
                let (items, tail) = rest.split_at(n);
                rest = tail;
                let inside = self.element_inside(place, [row, col], i);
                let col = self.w.add_const(col, i);
                let v = self.narrow(items, t.dtype);
                self.under(inside, |l| {
                    let p = l.line_element(view, row, col);
                    l.w.store(v, p, n * view.form.size);
                });
            }
        }
    }

    /// Accumulators that are this product's fragments of `a` as they are.
    pub(crate) fn fragments_of(&self, a: &Operand, product: [usize; 2]) -> Option<Vec<Ssa>> {
        let Matrix::Registers(tile) = &a.data else { return None };
        let shape = matrix(&a.shape);
        let (own, whole) = (self.warps(shape), self.warps(product));
        let same_rows = own.grid[0] == whole.grid[0] && own.grid[1] == 1 && own.fragments[0] == whole.fragments[0];
        match &tile.data {
            Data::Regs(Place::Fragments(s), regs) if *s == shape && same_rows && shape[1].is_multiple_of(16) => {
                Some(regs.clone())
            }
            _ => None,
        }
    }
}

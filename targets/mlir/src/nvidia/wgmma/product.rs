//! Finds the one shape of kernel that this lowering is for: a pipeline that sums products of two tensors' tiles, index
//! arithmetic before it, elementwise work and one store after it. Nothing is known of the kernel's name or purpose.

use super::{form::LINE_BYTES, packed::Groups, scaled::lines_together};
use rvllm_ir::{
    tile::{Access, Block, IndexOp, Inst, Kernel, Layout, MemLayout, Param, Stmt, Val},
    types::{DType, Dim},
};
use std::collections::HashMap;

/// Bytes that the copy engine takes together.
pub(super) const UNIT: usize = 16;

/// What a kernel multiplies.
#[derive(Clone, Debug)]
pub(super) struct Product<'k> {
    pub(super) kernel: &'k Kernel,
    /// What defines each value, at the top and in the pipeline.
    pub(super) definitions: HashMap<Val, &'k Inst>,
    /// Tensor of rows, `[M, K]`, and the first row.
    pub(super) a: usize,
    pub(super) row: Val,
    /// Tensor of weights, `[.., N, K]` in blocks, and the first column of the result.
    pub(super) b: usize,
    pub(super) col: Val,
    /// Where b has values of 4 bits: what makes numbers of them.
    pub(super) groups: Option<Groups>,
    /// Scales of the sums of each line of K, where there are some.
    pub(super) line_scales: Option<usize>,
    /// Rows and columns of the result's tile.
    pub(super) m: usize,
    pub(super) n: usize,
    /// Columns of K of a line of shared memory, which is a row of a block of weights.
    pub(super) line: usize,
    /// Columns of K that an iteration takes, and how many are summed in all, both in lines.
    pub(super) lines: usize,
    pub(super) depth: usize,
    /// How far loads run ahead.
    pub(super) stages: usize,
    /// What the pipeline gives: the product with each matrix of b, in order.
    pub(super) sums: Vec<Val>,
    /// The store: its tensor, and what it writes.
    pub(super) c: usize,
    pub(super) result: Val,
}

impl<'k> Product<'k> {
    /// The product that a kernel is, if it is one.
    pub(super) fn of(kernel: &'k Kernel) -> Option<Product<'k>> {
        let at = kernel.body.stmts.iter().position(|s| matches!(s.inst, Inst::Pipeline { .. }))?;
        let (before, rest) = kernel.body.stmts.split_at(at);
        let (pipeline, after) = rest.split_first()?;
        let Inst::Pipeline { lo, hi, stages, init, body } = &pipeline.inst else { return None };
        let statements = kernel.body.stmts.iter().chain(&body.stmts);
        let definitions: HashMap<Val, &Inst> =
            statements.flat_map(|s| s.results.iter().map(|r| (*r, &s.inst))).collect();
        let find = Finder { kernel, definitions: &definitions };
        if !before.iter().all(is_plain) || !init.iter().all(|v| find.is_zero(*v)) || find.constant(*lo) != Some(0) {
            return None;
        }
        let steps = usize::try_from(find.constant(*hi)?).ok()?;
        let loads = find.loads(body)?;
        let (c, result) = find.epilogue(after, &loads)?;
        let ([m, k], n) = (loads.a_shape, loads.n);
        let line = LINE_BYTES * 8 / kernel.params[loads.a].ty.dtype.bits();
        let depth = (steps * k).min(find.columns(loads.a)?).div_ceil(line);
        let weights = n * pipeline.results.len();
        let lines = if loads.scales.is_some() { lines_together(m + weights) } else { k / line };
        let product = Product {
            kernel,
            a: loads.a,
            row: loads.row,
            b: loads.b,
            col: loads.col,
            groups: loads.groups,
            line_scales: loads.scales,
            m,
            n,
            line,
            lines,
            depth,
            stages: *stages,
            sums: pipeline.results.clone(),
            c,
            result,
            definitions,
        };
        let whole = if loads.scales.is_some() { k == line } else { k % line == 0 };
        (whole && depth > 0 && product.fits_layouts()).then_some(product)
    }

    /// Matrices of b.
    pub(super) fn matrices(&self) -> usize {
        self.sums.len()
    }

    pub(super) fn param(&self, tensor: usize) -> &'k Param {
        &self.kernel.params[tensor]
    }

    /// Columns of the result.
    pub(super) fn columns(&self) -> usize {
        last(self.param(self.c)).unwrap_or(0)
    }

    /// Elements from one row of a matrix to the next.
    pub(super) fn pitch(&self, tensor: usize) -> usize {
        let param = self.param(tensor);
        match param.layout {
            MemLayout::Strided { row: Some(row) } => row,
            _ => last(param).unwrap_or(0),
        }
    }

    /// Bytes that divide every row's distance from the tensor's start, up to what the copy engine asks for.
    pub(super) fn alignment(&self, tensor: usize) -> usize {
        let bytes = self.pitch(tensor) * self.param(tensor).ty.dtype.bits() / 8;
        UNIT.min(1 << bytes.trailing_zeros())
    }

    /// Whether the layouts are those that the copy engine and the tensor cores read.
    fn fits_layouts(&self) -> bool {
        let (a, b, c) = (self.param(self.a), self.param(self.b), self.param(self.c));
        let stored = matches!(c.ty.dtype, DType::Bf16 | DType::F16 | DType::F32);
        if let Some(groups) = self.groups {
            return stored && self.alignment(self.a) == UNIT && groups.fit_layouts(self);
        }
        let blocks = matches!(b.layout, MemLayout::Blocks { k } if k == self.line) && b.access == Access::Weight;
        let known = matches!(a.ty.dtype, DType::Bf16 | DType::F16 | DType::F8e4m3) && a.ty.dtype == b.ty.dtype;
        blocks && known && stored && self.alignment(self.a) == UNIT && self.fits_scales()
    }
}

fn last(p: &Param) -> Option<usize> {
    p.ty.dims.last().and_then(|d| d.constant())
}

/// Index arithmetic and constants.
fn is_plain(s: &Stmt) -> bool {
    matches!(s.inst, Inst::ProgramId(_) | Inst::Const(_) | Inst::Index(..) | Inst::Full(_))
}

/// The loads of an iteration.
struct Loads {
    a: usize,
    row: Val,
    a_shape: [usize; 2],
    b: usize,
    col: Val,
    n: usize,
    groups: Option<Groups>,
    scales: Option<usize>,
}

pub(super) struct Finder<'f, 'k> {
    pub(super) kernel: &'k Kernel,
    pub(super) definitions: &'f HashMap<Val, &'k Inst>,
}

impl Finder<'_, '_> {
    pub(super) fn constant(&self, v: Val) -> Option<i64> {
        match self.definitions.get(&v) {
            Some(Inst::Const(c)) => Some(*c),
            _ => None,
        }
    }

    fn is_zero(&self, v: Val) -> bool {
        matches!(self.definitions.get(&v), Some(Inst::Full(c)) if c.to_bits() == 0)
    }

    fn columns(&self, tensor: usize) -> Option<usize> {
        last(&self.kernel.params[tensor])
    }

    /// Whether `v` is `of` times this constant.
    pub(super) fn is_scaled(&self, v: Val, of: Option<Val>, by: usize) -> bool {
        let Some(Inst::Index(IndexOp::Mul, x, y)) = self.definitions.get(&v) else { return false };
        let is = |x: Val, y: Val| of.is_none_or(|of| of == x) && self.constant(y) == Some(by as i64);
        is(*x, *y) || is(*y, *x)
    }

    /// What the iterations multiply: one tile of a with a tile of every matrix of b.
    fn loads(&self, body: &Block) -> Option<Loads> {
        let (i, carried) = body.params.split_first()?;
        let product = |(number, (out, acc)): (usize, (&Val, &Val))| {
            let scaled = self.scaled(*out, *acc);
            match self.definitions.get(&scaled.map_or(*out, |(sum, _)| sum)) {
                Some(Inst::Mma { a, b, acc: into }) if into == acc || scaled.is_some() && self.is_zero(*into) => {
                    let (matrix, mut loads) = self.operands(*i, *a, *b)?;
                    if let Some((_, scale)) = scaled {
                        loads.scales = Some(self.scales_of_line(*i, *b, scale)?);
                    }
                    (matrix == number && self.used_once(body, *out)).then_some((*a, loads))
                }
                _ => None,
            }
        };
        let pairs = body.yields.iter().zip(carried);
        let mut all = pairs.enumerate().map(product).collect::<Option<Vec<_>>>()?.into_iter();
        let (a, first) = all.next()?;
        let same = |(other, l): (Val, Loads)| {
            other == a
                && (l.b, l.col, l.n, l.groups, l.scales) == (first.b, first.col, first.n, first.groups, first.scales)
        };
        (all.all(same) && self.all_matrices(first.b, carried.len())).then_some(first)
    }

    /// Whether a sum is nothing but yielded: no second product takes it.
    fn used_once(&self, body: &Block, v: Val) -> bool {
        let reads = |s: &&Stmt| matches!(&s.inst, Inst::Mma { acc, .. } if *acc == v);
        body.stmts.iter().find(reads).is_none()
    }

    fn all_matrices(&self, b: usize, n: usize) -> bool {
        let dims = &self.kernel.params[b].ty.dims;
        let outer: Option<usize> = dims[..dims.len() - 2].iter().map(|d| d.constant()).product();
        outer == Some(n) && dims.len() <= 3
    }

    /// The loads of one product at iteration `i`, and which matrix of b it takes.
    fn operands(&self, i: Val, a: Val, b: Val) -> Option<(usize, Loads)> {
        let Inst::Load { tensor: ta, at: at_a } = self.definitions.get(&a)? else { return None };
        let (values, groups) = self.dequantized(i, b).map_or((b, None), |(values, groups)| (values, Some(groups)));
        let Inst::Load { tensor: tb, at: at_b } = self.definitions.get(&values)? else { return None };
        let (&[rows, k], &[n, _]) = (&self.kernel.tile(a).shape[..], &self.kernel.tile(b).shape[..]) else {
            return None;
        };
        let ([row, ka], [outer @ .., col, kb]) = (&at_a[..], &at_b[..]) else { return None };
        let matrix = match outer {
            [] => 0,
            [half] => usize::try_from(self.constant(*half)?).ok()?,
            _ => return None,
        };
        let strided = matches!(self.kernel.params[*ta].layout, MemLayout::Strided { .. });
        let symbolic = matches!(self.kernel.params[*ta].ty.dims.first(), Some(Dim::Sym(_)));
        let along = self.is_scaled(*ka, Some(i), k) && self.is_scaled(*kb, Some(i), k);
        let aligned = self.is_scaled(*col, None, n) && self.is_scaled(*row, None, rows);
        let loads = Loads { a: *ta, row: *row, a_shape: [rows, k], b: *tb, col: *col, n, groups, scales: None };
        (strided && symbolic && along && aligned).then_some((matrix, loads))
    }

    /// The store that ends the kernel, if all before it can be computed element by element.
    fn epilogue(&self, after: &[Stmt], loads: &Loads) -> Option<(usize, Val)> {
        let (store, work) = after.split_last()?;
        let Inst::Store { tensor, at, value, rows: None } = &store.inst else { return None };
        let shape = [loads.a_shape[0], loads.n];
        let here = at[..] == [loads.row, loads.col] && self.kernel.tile(*value).shape == shape;
        let dense = matches!(self.kernel.params[*tensor].layout, MemLayout::Strided { .. });
        let symbol = |t: usize| self.kernel.params[t].ty.dims.first().copied();
        let rows = symbol(*tensor) == symbol(loads.a);
        (here && dense && rows && work.iter().all(|s| self.is_elementwise(s, shape, loads)))
            .then_some((*tensor, *value))
    }

    fn is_elementwise(&self, s: &Stmt, shape: [usize; 2], loads: &Loads) -> bool {
        let [result] = s.results[..] else { return false };
        match &s.inst {
            Inst::Const(_) | Inst::Index(..) | Inst::Full(_) => true,
            Inst::Map(..) | Inst::Select { .. } | Inst::Cast(_) => self.kernel.tile(result).shape == shape,
            Inst::Broadcast(v, axis) => {
                let along = if *axis == 0 { loads.col } else { loads.row };
                matches!(self.definitions.get(v), Some(Inst::Load { at, .. }) if at.last() == Some(&along))
            }
            Inst::Load { tensor, at } => {
                let (ty, strided) = (self.kernel.tile(result), self.kernel.params[*tensor].layout == MemLayout::DENSE);
                let vector = ty.shape == [loads.n] && at.last() == Some(&loads.col) && self.fixed(&at[..at.len() - 1]);
                let column = ty.shape == [loads.a_shape[0]] && at[..] == [loads.row];
                let tile = ty.layout == Layout::Acc && ty.shape == shape && at[..] == [loads.row, loads.col];
                strided && (vector || column || tile)
            }
            _ => false,
        }
    }

    fn fixed(&self, at: &[Val]) -> bool {
        at.iter().all(|v| self.constant(*v).is_some())
    }
}

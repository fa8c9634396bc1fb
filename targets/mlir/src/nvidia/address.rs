//! Where elements lie in global memory, how much of a tile is inside its tensor, and how many adjacent elements one access may
//! take.
//!
//! Invariant: tensors start at multiples of 64 bytes; a view of columns starts a multiple of the greatest common divisor of its row
//! distance and its row length further.

use super::Lower;
use crate::{
    bounds::{Cond, Extent},
    index::Index,
    text::Ssa,
};
use rvllm_ir::{
    expr::Sym,
    tile::{BLOCK_GROUP, BLOCK_ROWS, IndexOp, MemLayout},
    types::Dim,
};

/// Bytes of the widest access.
const WIDEST: usize = 16;

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl Lower<'_> {
    fn dim(&mut self, dim: Dim) -> Index {
        self.expr(&dim.expr())
    }

    /// Bytes of an element.
    pub(crate) fn size(&self, tensor: usize) -> usize {
        self.kernel.params[tensor].ty.dtype.bits() / 8
    }

    /// Elements between consecutive indices of each dimension; those of a panel's last two are of its padded matrix.
    fn strides(&mut self, tensor: usize) -> Vec<Index> {
        let param = &self.kernel.params[tensor];
        let (dims, layout) = (param.ty.dims.clone(), param.layout);
        let mut stride = Index::constant(1);
        let mut strides = vec![stride; dims.len()];
        for d in (0..dims.len()).rev() {
            strides[d] = stride;
            let n = match (layout, dims.len() - d) {
                _ if d == 0 => Index::constant(1),
                (MemLayout::Panel { k, .. }, 1) => padded(dims[d], k),
                (MemLayout::Panel { n, .. }, 2) => padded(dims[d], n),
                _ => self.dim(dims[d]),
            };
            stride = self.w.mul(stride, n);
        }
        if let (MemLayout::Strided { row: Some(row) }, Some(first)) = (layout, strides.first_mut()) {
            *first = Index::constant(row as i64);
        }
        strides
    }

    /// Bytes from the tensor's start to an element.
    fn element_bytes(&mut self, tensor: usize, at: &[Index]) -> Index {
        let layout = self.kernel.params[tensor].layout;
        if let MemLayout::Blocks { k } = layout {
            let element = self.block_element(tensor, at, k);
            return self.w.scale(element, self.size(tensor));
        }
        let strides = self.strides(tensor);
        let inner = if matches!(layout, MemLayout::Panel { .. }) { 2 } else { 0 };
        let leading = at.len() - inner;
        let mut sum = Index::constant(0);
        for (i, stride) in at[..leading].iter().zip(strides) {
            let part = self.w.mul(*i, stride);
            sum = self.w.add(sum, part);
        }
        if let (MemLayout::Panel { n, k }, [i, j]) = (layout, &at[leading..]) {
            let within = self.panel_element(tensor, [*i, *j], n, k);
            sum = self.w.add(sum, within);
        }
        self.w.scale(sum, self.size(tensor))
    }

    /// Number of an element within its matrix of panels.
    fn panel_element(&mut self, tensor: usize, [i, j]: [Index; 2], n: usize, k: usize) -> Index {
        let depth = self.kernel.params[tensor].ty.last().unwrap_or(1).next_multiple_of(k);
        let panel = self.w.div(i, n);
        let panel = self.w.scale(panel, depth * n);
        let group = self.w.div(j, k);
        let group = self.w.scale(group, n * k);
        let row = self.w.rem(i, n);
        let row = self.w.scale(row, k);
        let within = self.w.rem(j, k);
        let sum = self.w.add(panel, group);
        let sum = self.w.add(sum, row);
        self.w.add(sum, within)
    }

    /// Number of an element in swizzled blocks of `k` columns, which the matrices of outer dimensions share.
    fn block_element(&mut self, tensor: usize, at: &[Index], k: usize) -> Index {
        let dims: Vec<usize> = self.kernel.params[tensor].ty.dims.iter().map(|d| d.constant().unwrap_or(1)).collect();
        let [outer @ .., _, cols] = &dims[..] else { return Index::constant(0) };
        let [leading @ .., r, c] = at else { return Index::constant(0) };
        let mut matrix = Index::constant(0);
        for (i, n) in leading.iter().zip(outer) {
            matrix = self.w.scale(matrix, *n);
            matrix = self.w.add(matrix, *i);
        }
        let group = self.w.div(*r, BLOCK_GROUP);
        let group = self.w.scale(group, outer.iter().product());
        let group = self.w.add(group, matrix);
        let first = self.w.scale(group, BLOCK_GROUP);
        let within = self.w.rem(*r, BLOCK_GROUP);
        let row = self.w.add(first, within);
        let block = self.w.div(row, BLOCK_ROWS);
        let block = self.w.scale(block, cols.div_ceil(k));
        let column = self.w.div(*c, k);
        let block = self.w.add(block, column);
        let line = self.w.scale(block, BLOCK_ROWS);
        let row = self.w.rem(row, BLOCK_ROWS);
        let line = self.w.add(line, row);
        let line = self.w.scale(line, k);
        let within = self.swizzled(row, *c, k);
        self.w.add(line, within)
    }

    /// Where column `c` of a row lies within its line of `k` elements.
    fn swizzled(&mut self, row: Index, c: Index, k: usize) -> Index {
        let piece = (k / BLOCK_GROUP).max(1);
        let c = self.w.rem(c, k);
        let (number, within) = (self.w.div(c, piece), self.w.rem(c, piece));
        let phase = self.w.rem(row, BLOCK_GROUP);
        let (number, phase) = (self.w.ssa(number), self.w.ssa(phase));
        let swizzled = Index::value(self.w.binary("arith.xori", number, phase)).bounded(Some(BLOCK_GROUP as i64 - 1));
        let swizzled = self.w.scale(swizzled, piece);
        self.w.add(swizzled, within)
    }

    /// Address of an element.
    pub(crate) fn element(&mut self, tensor: usize, at: &[Index]) -> Ssa {
        let bytes = self.element_bytes(tensor, at);
        self.w.at(self.pointers[tensor], bytes)
    }

    /// Indices in the tensor of an element of a tile at this origin.
    pub(crate) fn indices_at(&mut self, origin: &[Index], within: &[Index]) -> Vec<Index> {
        let skipped = origin.len() - within.len();
        let mut at = origin[..skipped].to_vec();
        for (o, i) in origin[skipped..].iter().zip(within) {
            at.push(self.w.add(*o, *i));
        }
        at
    }

    /// The dimension along which neighbours are adjacent in memory.
    pub(crate) fn adjacent(&self, tensor: usize) -> Option<usize> {
        let param = &self.kernel.params[tensor];
        let rank = param.ty.rank();
        match param.layout {
            MemLayout::Strided { .. } | MemLayout::Blocks { .. } => rank.checked_sub(1),
            MemLayout::Panel { n, k: 1 } => {
                let rows = param.ty.dims[rank - 2].constant()?;
                (rows <= n).then_some(rank - 2)
            }
            MemLayout::Panel { .. } | MemLayout::Fragments { .. } => None,
        }
    }

    /// Of a run of `run` elements along the adjacent dimension, how many one access may take: the origin and every other
    /// distance must be multiples of its size.
    pub(crate) fn vector(&mut self, tensor: usize, origin: &[Index], run: usize) -> usize {
        let Some(along) = self.adjacent(tensor) else { return 1 };
        let size = self.size(tensor);
        if let MemLayout::Blocks { k } = self.kernel.params[tensor].layout {
            let piece = (k / BLOCK_GROUP).max(1);
            let fits = |w: &usize| {
                [piece, run].iter().all(|n| n.is_multiple_of(*w))
                    && w * size <= WIDEST
                    && origin[along].is_multiple_of(*w)
            };
            return [16, 8, 4, 2].into_iter().find(fits).unwrap_or(1);
        }
        let strides = self.strides(tensor);
        let panel = matches!(self.kernel.params[tensor].layout, MemLayout::Panel { .. });
        let fits = |w: &usize| {
            let multiple = |d: usize| match d == along {
                true => origin[d].is_multiple_of(*w),
                // within a panel of all rows a column is a whole panel away
                false if panel && d + 1 == origin.len() => self.panel_rows(tensor).is_multiple_of(*w),
                false => strides[d].is_multiple_of(*w),
            };
            w * size <= WIDEST
                && run.is_multiple_of(*w)
                && self.base_alignment(tensor).is_multiple_of(w * size)
                && (0..origin.len()).all(multiple)
        };
        [16, 8, 4, 2].into_iter().find(fits).unwrap_or(1)
    }

    fn panel_rows(&self, tensor: usize) -> usize {
        match self.kernel.params[tensor].layout {
            MemLayout::Panel { n, .. } => n,
            MemLayout::Strided { .. } | MemLayout::Blocks { .. } | MemLayout::Fragments { .. } => 1,
        }
    }

    /// What certainly divides the address of a tensor.
    fn base_alignment(&self, tensor: usize) -> usize {
        let param = &self.kernel.params[tensor];
        match param.layout {
            MemLayout::Strided { row: Some(row) } => {
                let inner: usize = param.ty.dims[1..].iter().map(|d| d.constant().unwrap_or(1)).product();
                gcd(64, gcd(row, inner) * self.size(tensor))
            }
            _ => 64,
        }
    }

    /// How much of a tile lies inside its tensor: of the dimensions along tokens too, so that nothing is read or written past
    /// the step.
    pub(crate) fn extents(&mut self, tensor: usize, at: &[Index], shape: &[usize]) -> Vec<Extent> {
        let mut extents = self.w.static_extents(self.kernel, tensor, at, shape);
        let skipped = at.len() - shape.len();
        for (d, extent) in extents.iter_mut().enumerate() {
            let dim = self.kernel.params[tensor].ty.dims[skipped + d];
            if matches!(dim, Dim::Sym(Sym::T | Sym::L)) && shape[d] > 1 {
                let n = self.dim(dim);
                *extent = Extent::First(self.w.index(IndexOp::Sub, n, at[skipped + d]));
            }
        }
        extents
    }

    /// Whether an element of a tile is one of the tile's, and inside its tensor.
    pub(crate) fn within(&mut self, index: &[Index], shape: &[usize], extents: &[Extent]) -> Cond {
        let mut all = Cond::Always;
        for ((i, n), extent) in index.iter().zip(shape).zip(extents) {
            let one = self.w.below(*i, Index::constant(*n as i64));
            all = self.w.both(all, one);
            if let Extent::First(bound) = extent {
                let one = self.w.below(*i, *bound);
                all = self.w.both(all, one);
            }
        }
        all
    }

    /// Whether `run` adjacent elements along dimension `d` of a tile are inside together or not at all.
    pub(crate) fn whole_runs(&self, d: usize, run: usize, shape: &[usize], extents: &[Extent]) -> bool {
        let bounded = |n: &Index| n.is_multiple_of(run);
        shape[d].is_multiple_of(run) && !matches!(&extents[d], Extent::First(n) if !bounded(n))
    }
}

fn padded(dim: Dim, to: usize) -> Index {
    Index::constant(dim.constant().map_or(1, |n| n.next_multiple_of(to)) as i64)
}

//! Where the elements of a tile lie: a base pointer, one distance per row, and the distance of a column, for both memory
//! layouts; and how much of the tile lies inside the tensor.

use super::{Lower, tile};
use crate::{
    Error,
    bounds::{Cond, Extent},
    index::Index,
    text::{Ssa, Ty},
};
use rvllm_ir::{
    tile::{MemLayout, PAD_ROWS},
    types::Dim,
};

/// Where columns lie.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Columns {
    /// Next to each other.
    Dense,
    /// Groups of `k` next to each other, groups `stride` bytes apart; the tile starts with a group.
    Grouped { k: usize, stride: usize },
    /// The same, but the tile starts at this column.
    From { first: Index, k: usize, stride: usize },
}

/// Addresses of a tile.
#[derive(Clone, Debug)]
pub(crate) struct Address {
    pub(crate) base: Ssa,
    /// Bytes from the base to each row.
    pub(crate) rows: Vec<Index>,
    pub(crate) columns: Columns,
    /// Bytes of an element; 1 of those of 4 bits, which lie in panels only.
    pub(crate) size: usize,
}

impl Lower<'_> {
    pub(crate) fn dim(&mut self, dim: Dim) -> Index {
        match dim {
            Dim::Const(n) => Index::constant(n as i64),
            Dim::Sym(s) => self.symbol(s),
            Dim::SymPlusOne(s) => {
                let s = self.symbol(s);
                self.w.add_const(s, 1)
            }
        }
    }

    /// Elements between consecutive indices of each dimension; those of a panel's last two are not used.
    fn strides(&mut self, tensor: usize) -> Vec<Index> {
        let param = &self.kernel.params[tensor];
        let (dims, layout) = (param.ty.dims.clone(), param.layout);
        let mut stride = Index::constant(1);
        let mut strides = vec![stride; dims.len()];
        for d in (0..dims.len()).rev() {
            strides[d] = stride;
            let n = match (layout, dims.len() - d) {
                (MemLayout::Panel { k, .. }, 1) => self.padded(dims[d], k),
                (MemLayout::Panel { n, .. }, 2) => self.padded(dims[d], n),
                _ => self.dim_or_one(dims[d], d),
            };
            stride = self.w.mul(stride, n);
        }
        if let (MemLayout::Strided { row: Some(row) }, Some(first)) = (layout, strides.first_mut()) {
            *first = Index::constant(row as i64);
        }
        strides
    }

    /// The outermost size does not enter any stride.
    fn dim_or_one(&mut self, dim: Dim, d: usize) -> Index {
        if d == 0 { Index::constant(1) } else { self.dim(dim) }
    }

    fn padded(&mut self, dim: Dim, to: usize) -> Index {
        Index::constant(dim.constant().map_or(1, |n| n.next_multiple_of(to)) as i64)
    }

    /// Address of one element of a strided tensor.
    pub(crate) fn element(&mut self, tensor: usize, at: &[Index]) -> Ssa {
        let bytes = self.origin(tensor, at);
        self.w.at(self.pointers[tensor], bytes)
    }

    /// Bytes from the tensor's start to an origin, over the leading `at.len()` dimensions.
    fn origin(&mut self, tensor: usize, at: &[Index]) -> Index {
        let bits = self.kernel.params[tensor].ty.dtype.bits();
        let strides = self.strides(tensor);
        let mut sum = Index::constant(0);
        for (i, stride) in at.iter().zip(strides) {
            let step = if bits < 8 {
                let bits = self.w.scale(stride, bits);
                self.w.div(bits, 8)
            } else {
                self.w.scale(stride, bits / 8)
            };
            let part = self.w.mul(*i, step);
            sum = self.w.add(sum, part);
        }
        sum
    }

    /// Addresses of a tile of this shape at this origin, all of whose rows may be touched.
    pub(crate) fn address(&mut self, tensor: usize, at: &[Index], shape: &[usize]) -> Result<Address, Error> {
        let param = &self.kernel.params[tensor];
        let tiled = param.ty.dims[param.ty.rank() - shape.len()..].iter().zip(shape);
        if tiled.into_iter().any(|(dim, n)| dim.constant().is_none() && *n > PAD_ROWS + 1) {
            return Err(self.unsupported(format!("a tile {shape:?} with more rows than a buffer has to spare")));
        }
        self.place(tensor, at, shape)
    }

    /// The same where some rows may lie past a symbolic dimension's spare rows, and are left alone.
    pub(crate) fn place(&mut self, tensor: usize, at: &[Index], shape: &[usize]) -> Result<Address, Error> {
        let param = &self.kernel.params[tensor];
        let (layout, bits) = (param.layout, param.ty.dtype.bits());
        let size = (bits / 8).max(1);
        match layout {
            MemLayout::Strided { .. } if bits < 8 => Err(self.unsupported("elements of 4 bits that lie in no panel")),
            MemLayout::Strided { .. } => Ok(self.strided(tensor, at, shape, size)),
            MemLayout::Panel { n, k } => self.panel(tensor, at, shape, Panel { n, k, size, unit: k * bits / 8 }),
            MemLayout::Blocks { .. } | MemLayout::Fragments { .. } => {
                Err(self.unsupported("weights in the order of a GPU's matrix units"))
            }
        }
    }

    fn strided(&mut self, tensor: usize, at: &[Index], shape: &[usize], size: usize) -> Address {
        let base = self.element(tensor, at);
        let strides = self.strides(tensor);
        let covered = &strides[strides.len() - shape.len()..];
        let mut distance = |index: &Vec<usize>| {
            let mut sum = Index::constant(0);
            for (i, stride) in index.iter().zip(covered) {
                let part = self.w.scale(*stride, i * size);
                sum = self.w.add(sum, part);
            }
            sum
        };
        let rows = tile::row_indices(shape).iter().map(&mut distance).collect();
        Address { base, rows, columns: Columns::Dense, size }
    }

    fn panel(&mut self, tensor: usize, at: &[Index], shape: &[usize], p: Panel) -> Result<Address, Error> {
        let dims = &self.kernel.params[tensor].ty.dims;
        let Some(depth) = dims.last().and_then(|d| d.constant()) else {
            return Err(self.unsupported("a panel layout whose rows are not static"));
        };
        let outer = shape.len().saturating_sub(2);
        if shape[..outer].iter().any(|d| *d != 1) {
            return Err(self.unsupported("a tile of several matrices in a panel layout"));
        }
        let row_tile = if shape.len() < 2 { 1 } else { shape[shape.len() - 2] };
        let [leading @ .., i, j] = at else {
            return Err(self.unsupported("a panel layout of rank one"));
        };
        let bytes = self.origin(tensor, leading);
        let mut base = self.w.at(self.pointers[tensor], bytes);
        let whole = i.is_multiple_of(p.n) || (p.n.is_multiple_of(row_tile) && i.is_multiple_of(row_tile));
        let first = if whole {
            let bytes = self.panel_row(*i, depth, p);
            base = self.w.at(base, bytes);
            Index::constant(0)
        } else {
            *i
        };
        let mut rows = vec![];
        for r in 0..row_tile {
            let row = self.w.add_const(first, r);
            rows.push(self.panel_row(row, depth, p));
        }
        let stride = p.n * p.unit;
        let columns = if j.is_multiple_of(p.k) {
            let group = self.w.div(*j, p.k);
            let bytes = self.w.scale(group, stride);
            base = self.w.at(base, bytes);
            Columns::Grouped { k: p.k, stride }
        } else {
            Columns::From { first: *j, k: p.k, stride }
        };
        Ok(Address { base, rows, columns, size: p.size })
    }

    /// Bytes from the matrix's start to row `i` of its panel.
    fn panel_row(&mut self, i: Index, depth: usize, p: Panel) -> Index {
        let panel = self.w.div(i, p.n);
        let panel = self.w.scale(panel, depth.div_ceil(p.k) * p.n * p.unit);
        let row = self.w.rem(i, p.n);
        let row = self.w.scale(row, p.unit);
        self.w.add(panel, row)
    }

    /// Bytes from a row's start to columns `first..first + width` of the tile, where these lie next to each other.
    pub(crate) fn run(&mut self, a: &Address, first: usize, width: usize) -> Option<Index> {
        match a.columns {
            Columns::Dense => Some(self.column(a, first)),
            Columns::Grouped { k, .. } if first % k + width <= k => Some(self.column(a, first)),
            Columns::Grouped { .. } | Columns::From { .. } => None,
        }
    }

    /// Bytes from a row's start to column `c` of the tile.
    pub(crate) fn column(&mut self, a: &Address, c: usize) -> Index {
        match a.columns {
            Columns::Dense => Index::constant((c * a.size) as i64),
            Columns::Grouped { k, stride } => Index::constant((c / k * stride + c % k * a.size) as i64),
            Columns::From { first, k, stride } => {
                let c = self.w.add_const(first, c);
                let (group, within) = (self.w.div(c, k), self.w.rem(c, k));
                let (group, within) = (self.w.scale(group, stride), self.w.scale(within, a.size));
                self.w.add(group, within)
            }
        }
    }

    /// How much of a tile lies inside a tensor's static dimensions.
    pub(crate) fn extents(&mut self, tensor: usize, at: &[Index], shape: &[usize]) -> Vec<Extent> {
        self.w.static_extents(self.kernel, tensor, at, shape)
    }

    /// Whether the row with these leading indices lies inside.
    pub(crate) fn row_inside(&mut self, extents: &[Extent], index: &[usize]) -> Cond {
        let mut all = Cond::Always;
        for (extent, i) in extents.iter().zip(index) {
            let one = self.w.inside(*extent, *i);
            all = self.w.both(all, one);
        }
        all
    }

    /// Which of the lanes `first..first + width` lie inside; `None` for all of them.
    pub(crate) fn lane_mask(&mut self, extent: Extent, first: usize, width: usize) -> Option<Ssa> {
        let Extent::First(n) = extent else { return None };
        let lanes = (first..first + width).map(|l| l as i64);
        if let Some(n) = n.as_const() {
            let inside: Vec<i64> = lanes.map(|l| i64::from(l < n)).collect();
            return inside.contains(&0).then(|| self.w.dense(crate::text::Elem::I1, &inside));
        }
        let lanes = self.w.dense(crate::text::Elem::I64, &lanes.collect::<Vec<_>>());
        let n = self.w.ssa(n);
        let n = self.w.splat(n, width);
        Some(self.w.compare("slt", lanes, n))
    }

    /// A mask and a condition as one mask of `width` lanes; `None` for all.
    pub(crate) fn mask_under(&mut self, cond: Cond, mask: Option<Ssa>, width: usize) -> Option<Ssa> {
        let cond = match cond {
            Cond::Always => return mask,
            Cond::Never => return Some(self.w.zero(Ty::Vector(width, crate::text::Elem::I1))),
            Cond::If(c) => self.w.splat(c, width),
        };
        Some(mask.map_or(cond, |m| self.w.binary("arith.andi", cond, m)))
    }
}

/// A panel layout.
#[derive(Clone, Copy)]
struct Panel {
    n: usize,
    k: usize,
    /// Bytes of an element.
    size: usize,
    /// Bytes of the `k` adjacent elements of a row.
    unit: usize,
}

//! Operands of `mma`: views of memory, read where they lie. A tile in registers becomes one by a trip through the stack.

use super::{Lower, address::*, tile::*};
use crate::{Error, bounds::Extent, index::Index, text::Ssa};
use rvllm_ir::{tile::IndexOp, types::DType};

/// A matrix `[rows, k]` in memory.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) shape: Vec<usize>,
    pub(crate) dtype: DType,
    pub(crate) address: Address,
    /// Of rows and of k.
    pub(crate) extents: Vec<Extent>,
    /// Rows that share memory with row 0 for certain: as many as may be read whatever the extents are.
    pub(crate) readable: usize,
    /// Where a later iteration's tile begins: prefetched while this one is read.
    pub(crate) ahead: Option<Ssa>,
    /// The element type that a product multiplies it in, where that is wider than the one it lies in.
    pub(crate) wide: Option<DType>,
}

impl View {
    pub(crate) fn rows(&self) -> usize {
        row_count(&self.shape)
    }

    pub(crate) fn k(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Adjacent k values that one access takes, where that is uniform: up to a 32-bit lane.
    pub(crate) fn group(&self) -> usize {
        match self.address.columns {
            Columns::Dense => (4 / self.address.size).max(1),
            Columns::Grouped { k, .. } => k,
            Columns::From { .. } => 1,
        }
    }

    /// Bytes from one group of `group` k values to the next.
    pub(crate) fn step(&self, group: usize) -> Option<usize> {
        match self.address.columns {
            Columns::Dense => Some(group * self.address.size),
            Columns::Grouped { k, stride } if k == group => Some(stride),
            Columns::Grouped { .. } | Columns::From { .. } => None,
        }
    }

    /// Bytes of `group` adjacent k values.
    pub(crate) fn group_bytes(&self, group: usize) -> usize {
        self.dtype.bytes(group)
    }

    /// Bytes to the k value `first`, where that many before it are whole groups.
    pub(crate) fn k_distance(&self, first: usize) -> Option<usize> {
        match self.address.columns {
            Columns::Dense => Some(first * self.address.size),
            Columns::Grouped { k, stride } if first.is_multiple_of(k) => Some(first / k * stride),
            Columns::Grouped { .. } | Columns::From { .. } => None,
        }
    }

    /// Bytes from each row to the next, where all are the same.
    pub(crate) fn even_rows(&self) -> Option<usize> {
        let distances = (0..self.rows()).map(|r| self.row_distance(r)).collect::<Option<Vec<i64>>>()?;
        let step = distances.get(1).map_or(64, |second| second - distances[0]);
        let even = distances[0] == 0 && distances.windows(2).all(|w| w[1] - w[0] == step);
        usize::try_from(step).ok().filter(|_| even)
    }

    /// Constant distance of a row.
    pub(crate) fn row_distance(&self, r: usize) -> Option<i64> {
        self.address.rows[r].as_const()
    }
}

impl Lower<'_> {
    /// A tile of a tensor as an operand.
    pub(crate) fn view(&mut self, tensor: usize, at: &[Index], shape: &[usize]) -> Result<View, Error> {
        let address = self.place(tensor, at, shape)?;
        let extents = self.extents(tensor, at, shape);
        let readable = match self.kernel.params[tensor].layout {
            rvllm_ir::tile::MemLayout::Panel { n, .. } => n,
            rvllm_ir::tile::MemLayout::Strided { .. }
            | rvllm_ir::tile::MemLayout::Blocks { .. }
            | rvllm_ir::tile::MemLayout::Fragments { .. } => 1,
        };
        let dtype = self.kernel.params[tensor].ty.dtype;
        Ok(View { shape: shape.to_vec(), dtype, address, extents, readable, ahead: None, wide: None })
    }

    /// Other leading dimensions, same rows.
    pub(crate) fn reshape_view(&mut self, view: View, shape: &[usize]) -> Result<View, Error> {
        let whole = view.extents[..view.extents.len() - 1].iter().all(|e| matches!(e, Extent::All));
        if !whole || view.shape.last() != shape.last() {
            return Err(self.unsupported(format!("an operand {:?} reshaped to {shape:?}", view.shape)));
        }
        let last = view.extents.last().copied().unwrap_or(Extent::All);
        let mut extents = vec![Extent::All; shape.len()];
        *extents.last_mut().expect("invariant: an operand has a rank") = last;
        Ok(self.with_even_rows(View { shape: shape.to_vec(), extents, ..view }))
    }

    /// Writes a tile to the stack, row after row; an odd tail of 16-bit elements is followed by a zero.
    pub(crate) fn stage(&mut self, t: &Tile) -> View {
        let size = t.dtype.bits() / 8;
        let k = t.shape.last().copied().unwrap_or(1);
        let pitch = (k * size).next_multiple_of(4);
        let base = self.w.stack((pitch * row_count(&t.shape)).max(64));
        for r in 0..row_count(&t.shape) {
            let start = self.w.offset(base, (r * pitch) as i64);
            for ((first, _), v) in chunks(&t.shape).into_iter().zip(t.row(r).to_vec()) {
                let p = self.w.offset(start, (first * size) as i64);
                self.w.store(v, p, size);
            }
            if pitch > k * size {
                let zero = self.w.zero(crate::text::Ty::Scalar(elem(t.dtype)));
                let p = self.w.offset(start, (k * size) as i64);
                self.w.store(zero, p, size);
            }
        }
        let rows = (0..row_count(&t.shape)).map(|r| Index::constant((r * pitch) as i64)).collect();
        let address = Address { base, rows, columns: Columns::Dense, size };
        let extents = vec![Extent::All; t.shape.len()];
        let readable = row_count(&t.shape);
        View { shape: t.shape.clone(), dtype: t.dtype, address, extents, readable, ahead: None, wide: None }
    }

    /// How many k values of both operands lie inside.
    pub(crate) fn depth(&mut self, a: &View, b: &View) -> Index {
        let k = Index::constant(a.k() as i64);
        let mut depth = k;
        for view in [a, b] {
            if let Some(Extent::First(n)) = view.extents.last() {
                depth = self.w.index(IndexOp::Min, depth, *n);
            }
        }
        self.w.index(IndexOp::Max, depth, Index::constant(0))
    }
}

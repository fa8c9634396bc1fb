//! How much of a tile lies inside its tensor, as conditions that are decided here where they can be.

use crate::{
    index::Index,
    text::{Ssa, Writer},
};
use rvllm_ir::{
    tile::{IndexOp, Kernel},
    types::Dim,
};

/// How many indices of a tile's dimension lie inside the tensor.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Extent {
    All,
    /// The first so many: none where negative, all where it exceeds the tile.
    First(Index),
}

/// Whether something happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cond {
    Always,
    Never,
    If(Ssa),
}

impl Writer {
    /// Whether index `i` lies inside.
    pub(crate) fn inside(&mut self, extent: Extent, i: usize) -> Cond {
        let Extent::First(n) = extent else { return Cond::Always };
        self.below(Index::constant(i as i64), n)
    }

    /// `i < n`.
    pub(crate) fn below(&mut self, i: Index, n: Index) -> Cond {
        match (i.as_const(), n.as_const()) {
            (Some(i), Some(n)) if i < n => Cond::Always,
            (Some(_), Some(_)) => Cond::Never,
            (_, Some(n)) if i.at_most(n - 1) => Cond::Always,
            _ => {
                let (i, n) = (self.ssa(i), self.ssa(n));
                Cond::If(self.compare("slt", i, n))
            }
        }
    }

    pub(crate) fn both(&mut self, a: Cond, b: Cond) -> Cond {
        match (a, b) {
            (Cond::Always, other) | (other, Cond::Always) => other,
            (Cond::Never, _) | (_, Cond::Never) => Cond::Never,
            (Cond::If(a), Cond::If(b)) => Cond::If(self.binary("arith.andi", a, b)),
        }
    }

    /// How much of a tile lies inside a tensor's static dimensions. A tile that divides a dimension lies inside.
    pub(crate) fn static_extents(
        &mut self,
        kernel: &Kernel,
        tensor: usize,
        at: &[Index],
        shape: &[usize],
    ) -> Vec<Extent> {
        let dims = &kernel.params[tensor].ty.dims;
        let skipped = dims.len() - shape.len();
        let extent = |((dim, at), size): ((&Dim, &Index), &usize)| {
            let Dim::Const(n) = *dim else { return Extent::All };
            if n.is_multiple_of(*size) || at.at_most(n as i64 - *size as i64) {
                return Extent::All;
            }
            Extent::First(self.index(IndexOp::Sub, Index::constant(n as i64), *at))
        };
        dims[skipped..].iter().zip(&at[skipped..]).zip(shape).map(extent).collect()
    }
}

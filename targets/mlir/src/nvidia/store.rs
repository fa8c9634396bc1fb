//! Stores from registers, of what lies inside the tensor.

use super::{
    Lower,
    load::{Access, Source, elem},
    place::{Place, matrix},
    tile::{Data, Tile},
};
use crate::{
    Error,
    bounds::{Cond, Extent},
    index::Index,
    text::{Elem, Ssa, Ty},
};
use rvllm_ir::{tile::IndexOp, types::DType};

impl Lower<'_> {
    /// Writes a tile; of its dimension 0 only the first `rows` indices.
    pub(crate) fn store_tile(
        &mut self,
        tensor: usize,
        at: &[Index],
        t: &Tile,
        rows: Option<Index>,
    ) -> Result<(), Error> {
        let mut s = self.source(tensor, at, &t.shape);
        if let (Some(rows), Some(first)) = (rows, s.extents.first_mut()) {
            let bound = match *first {
                Extent::All => rows,
                Extent::First(n) => self.w.index(IndexOp::Min, n, rows),
            };
            *first = Extent::First(bound);
        }
        if t.shape.iter().all(|n| *n == 1) {
            self.store_one(&s, t);
            return Ok(());
        }
        let place = match t.data {
            Data::Regs(place, _) => place,
            _ => Place::Runs(matrix(&t.shape)),
        };
        let regs = self.settle(t, place);
        let access = self.access(&s, place);
        for row in rows_of(&access, place, &t.shape) {
            let mut vectors = vec![];
            for (group, i) in row {
                let index = self.group_index(&access, &s, place, access.groups.at[group], i);
                vectors.push((index, &regs[group * access.groups.width + i..][..access.vector]));
            }
            self.store_row(&s, &vectors, t.dtype);
        }
        Ok(())
    }

    /// Vectors of one row: what all ask for is asked once.
    fn store_row(&mut self, s: &Source<'_>, vectors: &[(Vec<Index>, &[Ssa])], dtype: DType) {
        let Some((first, _)) = vectors.first() else { return };
        let last = s.shape.len().saturating_sub(1);
        let inside = self.within(&first[..last], &s.shape[..last], &s.extents[..last]);
        let inside = self.w.both(inside, self.leads.unwrap_or(Cond::Always));
        self.under(inside, |l| {
            for (index, items) in vectors {
                let inside = l.within(&index[last..], &s.shape[last..], &s.extents[last..]);
                l.under(inside, |l| l.store_vector(s, index, items, dtype));
            }
        });
    }

    /// A tile of one element, which every thread has: the first writes it.
    fn store_one(&mut self, s: &Source<'_>, t: &Tile) {
        let v = self.settle(t, Place::Runs([1, 1]))[0];
        let first = self.w.below(self.thread, Index::constant(1));
        let index = vec![Index::constant(0); t.shape.len()];
        self.under(first, |l| l.store_row(s, &[(index, &[v])], t.dtype));
    }

    /// Adjacent elements, narrowed to the tensor's type.
    fn store_vector(&mut self, s: &Source<'_>, index: &[Index], items: &[Ssa], dtype: DType) {
        let at = self.indices_at(s.origin, index);
        let bytes = items.len() * self.size(s.tensor);
        let packed = self.narrow(items, dtype);
        let p = self.element(s.tensor, &at);
        self.w.store(packed, p, bytes);
    }

    /// f32 numbers as E4M3, two to an instruction, whose first operand is the higher.
    pub(crate) fn e4m3(&mut self, items: &[Ssa]) -> Ssa {
        let mut pairs = vec![];
        for pair in items.chunks(2) {
            let args = [pair[pair.len() - 1], pair[0]];
            pairs.push(self.w.intrinsic("llvm.nvvm.ff.to.e4m3x2.rn", &args, Ty::Scalar(Elem::I16)));
        }
        match (items.len(), &pairs[..]) {
            (1, [one]) => self.w.convert("arith.trunci", *one, Ty::Scalar(Elem::I8)),
            (_, [two]) => *two,
            _ => self.w.vector_of(&pairs),
        }
    }

    /// f32 numbers as 8-bit integers: the nearest, ties to even; past the last the last, and the least of what is no number.
    fn integers(&mut self, items: &[Ssa]) -> Ssa {
        let f32 = Ty::Scalar(Elem::F32);
        let [least, most] = [-128.0, 127.0].map(|c| self.w.floats(f32, c));
        let mut bytes = vec![];
        for v in items {
            let v = self.w.binary("arith.maxnumf", *v, least);
            let v = self.w.binary("arith.minnumf", v, most);
            let v = self.w.intrinsic("llvm.nvvm.f2i.rn", &[v], Ty::Scalar(Elem::I32));
            bytes.push(self.w.convert("arith.trunci", v, Ty::Scalar(Elem::I8)));
        }
        if let [one] = bytes[..] { one } else { self.w.vector_of(&bytes) }
    }

    /// Scalars as they are stored: f32 rounds to nearest even.
    pub(crate) fn narrow(&mut self, items: &[Ssa], dtype: DType) -> Ssa {
        match (items, dtype) {
            ([v], DType::Bf16 | DType::F16) => self.w.convert("arith.truncf", *v, Ty::Scalar(elem(dtype))),
            (_, DType::F8e4m3) => self.e4m3(items),
            (_, DType::I8) => self.integers(items),
            ([v], _) => *v,
            (_, DType::Bf16 | DType::F16) => {
                let wide = self.w.vector_of(items);
                self.w.convert("arith.truncf", wide, Ty::Vector(items.len(), elem(dtype)))
            }
            _ => self.w.vector_of(items),
        }
    }
}

/// Vectors, as numbers of groups and places in them, that have all indices but the last one in common: those of one row of a
/// matrix whose rows are, or are parts of, rows of the tile; else each by itself.
fn rows_of(access: &Access, place: Place, shape: &[usize]) -> Vec<Vec<(usize, usize)>> {
    let last = shape.last().copied().unwrap_or(1);
    let whole = match place {
        Place::Runs([_, cols]) | Place::Fragments([_, cols]) => last.is_multiple_of(cols),
        Place::Slice { .. } => false,
    };
    let mut rows: Vec<(Index, Vec<(usize, usize)>)> = vec![];
    for (group, [row, _]) in access.groups.at.iter().enumerate() {
        for i in (0..access.groups.width).step_by(access.vector) {
            match rows.iter_mut().find(|(known, _)| whole && known == row) {
                Some((_, vectors)) => vectors.push((group, i)),
                None => rows.push((*row, vec![(group, i)])),
            }
        }
    }
    rows.into_iter().map(|(_, vectors)| vectors).collect()
}

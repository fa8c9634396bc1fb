//! Stores from registers into both memory layouts, of what lies inside the tensor.

use super::{Lower, address::*, load::Lanes, tile::*};
use crate::{
    Error,
    bounds::{Cond, Extent},
    index::Index,
    text::{Elem, Ssa, Ty},
};
use rvllm_ir::tile::IndexOp;

/// Rows that are written under one condition.
struct Group {
    /// Per leading dimension that is checked: the index that decides for all of them.
    key: Vec<(usize, usize)>,
    rows: Vec<usize>,
}

impl Lower<'_> {
    /// Writes a tile; of its dimension 0 only the first `rows` indices.
    pub(crate) fn store_tile(
        &mut self,
        tensor: usize,
        at: &[Index],
        value: &Tile,
        rows: Option<Index>,
    ) -> Result<(), Error> {
        let address = self.address(tensor, at, &value.shape)?;
        let mut extents = self.extents(tensor, at, &value.shape);
        if let (Some(rows), Some(first)) = (rows, extents.first_mut()) {
            let bound = match *first {
                Extent::All => rows,
                Extent::First(n) => self.w.index(IndexOp::Min, n, rows),
            };
            *first = Extent::First(bound);
        }
        for group in self.groups(&extents, &value.shape) {
            let cond = self.group_inside(&extents, &group.key);
            self.under(cond, |l| {
                for r in &group.rows {
                    l.store_row(&address, *r, value, extents.last().copied().unwrap_or(Extent::All));
                }
            });
        }
        Ok(())
    }

    /// Rows that share their conditions: where the bound is a multiple of m, indices below the same multiple of m are
    /// inside together.
    fn groups(&self, extents: &[Extent], shape: &[usize]) -> Vec<Group> {
        let mut groups: Vec<Group> = vec![];
        for (r, index) in row_indices(shape).iter().enumerate() {
            let key = |(d, i): (usize, &usize)| match extents[d] {
                Extent::All => None,
                Extent::First(n) => {
                    let step = (1..=shape[d]).rev().find(|m| n.is_multiple_of(*m)).unwrap_or(1);
                    Some((d, i / step * step))
                }
            };
            let key: Vec<_> = index.iter().enumerate().filter_map(key).collect();
            match groups.last_mut() {
                Some(last) if last.key == key => last.rows.push(r),
                _ => groups.push(Group { key, rows: vec![r] }),
            }
        }
        groups
    }

    fn group_inside(&mut self, extents: &[Extent], key: &[(usize, usize)]) -> Cond {
        let mut all = Cond::Always;
        for (d, i) in key {
            let one = self.w.inside(extents[*d], *i);
            all = self.w.both(all, one);
        }
        all
    }

    /// What `body` writes happens only under the condition.
    fn under(&mut self, cond: Cond, body: impl FnOnce(&mut Self)) {
        match cond {
            Cond::Never => {}
            Cond::Always => body(self),
            Cond::If(c) => {
                self.w.begin_if(c);
                body(self);
                self.w.end();
            }
        }
    }

    fn store_row(&mut self, a: &Address, row: usize, value: &Tile, extent: Extent) {
        let start = self.w.at(a.base, a.rows[row]);
        for ((first, width), v) in chunks(&value.shape).into_iter().zip(value.row(row).to_vec()) {
            let lanes = Lanes { first, width, extent, row: Cond::Always };
            match self.run(a, first, width) {
                Some(distance) => self.store_run(start, distance, a.size, &lanes, v),
                None => self.store_groups(a, start, &lanes, v),
            }
        }
    }

    fn store_run(&mut self, start: Ssa, distance: Index, size: usize, lanes: &Lanes, v: Ssa) {
        let p = self.w.at(start, distance);
        match self.lane_mask(lanes.extent, lanes.first, lanes.width) {
            None => self.w.store(v, p, size),
            Some(mask) => self.w.masked_store(v, p, mask, size),
        }
    }

    fn store_groups(&mut self, a: &Address, start: Ssa, lanes: &Lanes, v: Ssa) {
        // a group that is only partly inside keeps its padding
        let group = if matches!(lanes.extent, Extent::All) { a.group(lanes) } else { 1 };
        let v = self.w.bitcast(v, Ty::Vector(lanes.width / group, Elem::int(group * a.size * 8)));
        for i in 0..lanes.width / group {
            let c = lanes.first + i * group;
            let cond = self.w.inside(lanes.extent, c);
            let item = self.w.extract(v, i);
            let column = self.column(a, c);
            self.under(cond, |l| {
                let p = l.w.at(start, column);
                l.w.store(item, p, a.size);
            });
        }
    }
}

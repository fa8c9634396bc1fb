//! Operands of fewer bits than what is multiplied: widened where a product reads them or, where it would widen an element
//! more than once, a copy on the stack in the wider type, which lies as the original does.
//!
//! Invariant: every element that a product multiplies is the original's number, exactly.

use super::{
    Lower,
    address::{Address, Columns},
    cast,
    operand::View,
    tile::{LANES, chunks},
};
use crate::{
    Error,
    bounds::Extent,
    index::Index,
    text::{Elem, Ssa, Ty},
};
use rvllm_ir::types::DType;

/// Bytes of a line of the cache, which one prefetch brings.
const LINE: i64 = 64;

/// A panel layout whose distances are known.
struct Panels {
    /// Adjacent k values of a row.
    k: usize,
    /// Bytes from a group of k values to the next.
    stride: usize,
    /// Bytes to each row.
    rows: Vec<i64>,
}

impl Lower<'_> {
    /// `view` in `to`, which holds all of its numbers.
    pub(crate) fn widen(&mut self, view: &View, to: DType) -> Result<View, Error> {
        let Some(panels) = panels(view) else {
            return Err(self.unsupported(format!("{} operands that lie in no whole panels", view.dtype)));
        };
        let ratio = to.bits() / view.dtype.bits();
        let groups = view.k().div_ceil(panels.k);
        let last = panels.rows.iter().max().copied().unwrap_or(0) as usize;
        let bytes = last + (groups - 1) * panels.stride + panels.k * view.address.size;
        let base = self.w.stack(bytes * ratio);
        let bounds = [0, groups as i64, 1].map(|n| self.w.int(n));
        let open = self.w.begin_loop(bounds, &[]);
        let at = self.w.scale(Index::value(open.i), panels.stride);
        let wide = self.w.scale(at, ratio);
        let (from, into) = (self.w.at(view.address.base, at), self.w.at(base, wide));
        let ahead = view.ahead.map(|ahead| self.w.at(ahead, at));
        self.widen_group(view, to, &panels, [from, into], ahead);
        self.w.end_loop(open, &[]);
        let rows = panels.rows.iter().map(|r| Index::constant(r * ratio as i64)).collect();
        let columns = Columns::Grouped { k: panels.k, stride: panels.stride * ratio };
        let address = Address { base, rows, columns, size: view.address.size * ratio };
        Ok(View { dtype: to, address, readable: view.rows(), ahead: None, wide: None, ..view.clone() })
    }

    /// One group of k values of every row; asks for the lines of the later one.
    fn widen_group(&mut self, view: &View, to: DType, panels: &Panels, [from, into]: [Ssa; 2], ahead: Option<Ssa>) {
        let ratio = (to.bits() / view.dtype.bits()) as i64;
        let unit = (panels.k * view.address.size) as i64;
        let mut asked = None;
        let mut row = 0;
        while row < panels.rows.len() {
            let first = panels.rows[row];
            let adjacent = |n: &usize| panels.rows.get(row + n) == Some(&(first + *n as i64 * unit));
            let n = 1 + (1..LANES).take_while(adjacent).count();
            let ty = Ty::Vector(n * panels.k, Elem::int(view.dtype.bits()));
            let (p, q) = (self.w.offset(from, first), self.w.offset(into, first * ratio));
            let v = self.w.load(p, ty, view.address.size);
            let v = cast::widen(&mut self.w, v, view.dtype, to, self.target.looks_up_16_bit());
            self.w.store(v, q, to.bits() / 8);
            if let Some(ahead) = ahead.filter(|_| asked != Some(first / LINE)) {
                let line = self.w.offset(ahead, first);
                self.w.prefetch(line, 2);
                asked = Some(first / LINE);
            }
            row += n;
        }
    }
}

/// Whether the rows of every vector of 16 lie next to each other, group by group.
pub(crate) fn in_lines(view: &View) -> bool {
    let Some(panels) = panels(view) else { return false };
    let unit = (panels.k * view.address.size) as i64;
    let adjacent = |(first, width): (usize, usize)| {
        panels.rows[first..first + width].windows(2).all(|pair| pair[1] - pair[0] == unit)
    };
    chunks(&[view.rows()]).into_iter().all(adjacent)
}

/// How the operand's panels lie; `None` where it lies otherwise, or where part of it lies outside of its tensor.
fn panels(view: &View) -> Option<Panels> {
    let Columns::Grouped { k, stride } = view.address.columns else { return None };
    let whole = view.extents.iter().all(|e| matches!(e, Extent::All));
    let rows = (0..view.rows()).map(|r| view.row_distance(r)).collect::<Option<Vec<i64>>>()?;
    (whole && view.shape.len() == 2).then_some(Panels { k, stride, rows })
}

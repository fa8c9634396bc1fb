//! Loads into registers, widened to f32, from both memory layouts.

use super::{Lower, Value, address::*, cast, tile::*};
use crate::{
    Error,
    bounds::{Cond, Extent},
    index::Index,
    text::{Elem, Ssa, Ty},
};
use rvllm_ir::{tile::MemLayout, types::DType};

/// Adjacent columns of a row, and which of them lie inside the tensor.
pub(crate) struct Lanes {
    pub(crate) first: usize,
    pub(crate) width: usize,
    pub(crate) extent: Extent,
    /// Whether the whole row does.
    pub(crate) row: Cond,
}

impl Lower<'_> {
    /// A tile in registers: f32, or i32 as it is.
    pub(crate) fn load_tile(&mut self, tensor: usize, at: &[Index], shape: &[usize]) -> Result<Value, Error> {
        let dtype = self.kernel.params[tensor].ty.dtype;
        let address = self.address(tensor, at, shape)?;
        let extents = self.extents(tensor, at, shape);
        if let Some(column) = self.load_column(tensor, &address, &extents, shape) {
            return Ok(Value::Tile(column));
        }
        let last = extents.last().copied().unwrap_or(Extent::All);
        let mut vecs = vec![];
        for (r, index) in row_indices(shape).iter().enumerate() {
            let row = self.row_inside(&extents, index);
            for (first, width) in chunks(shape) {
                let lanes = Lanes { first, width, extent: last, row };
                let raw = match dtype {
                    DType::U4 => self.load_nibbles(&address, r, &lanes)?,
                    _ => self.load_lanes(&address, r, &lanes, elem(dtype)),
                };
                vecs.push(cast::to_f32(&mut self.w, raw, dtype));
            }
        }
        let dtype = if dtype == DType::I32 { dtype } else { DType::F32 };
        Ok(Value::Tile(Tile { shape: shape.to_vec(), dtype, vecs }))
    }

    /// A column of a panel whose rows lie next to each other: whole vectors, taken apart.
    fn load_column(&mut self, tensor: usize, a: &Address, extents: &[Extent], shape: &[usize]) -> Option<Tile> {
        let param = &self.kernel.params[tensor];
        let (MemLayout::Panel { n, k: 1 }, [rows, 1], dtype) = (param.layout, shape, param.ty.dtype) else {
            return None;
        };
        let distances = a.rows.iter().map(|r| r.as_const()).collect::<Option<Vec<_>>>()?;
        let mut elements = vec![];
        for (first, width) in chunks(&[*rows]) {
            let adjacent = distances[first..first + width].windows(2).all(|w| w[1] - w[0] == a.size as i64);
            if !adjacent || !n.is_multiple_of(width) {
                return None;
            }
            // a panel that begins inside is there as a whole: zeros follow what is inside
            let inside = self.row_inside(extents, &[first / n * n]);
            let (p, ty) = (self.w.offset(a.base, distances[first]), Ty::Vector(width, elem(dtype)));
            let raw = match self.mask_under(inside, None, width) {
                None => self.w.load(p, ty, a.size),
                Some(mask) => self.w.masked_load(p, mask, ty, a.size),
            };
            let numbers = cast::to_f32(&mut self.w, raw, dtype);
            elements.extend((0..width).map(|lane| self.w.extract(numbers, lane)));
        }
        Some(self.w.tile_of(shape, DType::F32, &elements))
    }

    /// Values of 4 bits as bytes: eight of a 32-bit lane, whose low nibbles come first.
    fn load_nibbles(&mut self, a: &Address, row: usize, lanes: &Lanes) -> Result<Ssa, Error> {
        const GROUP: usize = 8;
        let whole = lanes.first.is_multiple_of(GROUP) && lanes.width.is_multiple_of(GROUP);
        if !whole || !matches!(a.columns, Columns::Grouped { k: GROUP, .. }) {
            return Err(self.unsupported("values of 4 bits that are not taken by eight"));
        }
        let start = self.w.at(a.base, a.rows[row]);
        let mut items = vec![];
        for c in (lanes.first..lanes.first + lanes.width).step_by(GROUP) {
            let inside = self.w.inside(lanes.extent, c);
            let inside = self.w.both(inside, lanes.row);
            let column = self.column(a, c);
            let p = self.w.at(start, column);
            let low = self.load_scalar(p, Ty::Scalar(Elem::I32), a, inside);
            let four = self.w.ints(low.ty, 4);
            let high = self.w.binary("arith.shrui", low, four);
            items.extend([low, high]);
        }
        let packed = self.w.vector_of(&items);
        let mask = self.w.ints(packed.ty, 0x0f0f_0f0f);
        let bytes = self.w.binary("arith.andi", packed, mask);
        Ok(self.w.bitcast(bytes, Ty::Vector(lanes.width, Elem::I8)))
    }

    fn load_lanes(&mut self, a: &Address, row: usize, lanes: &Lanes, elem: Elem) -> Ssa {
        let start = self.w.at(a.base, a.rows[row]);
        let ty = Ty::Vector(lanes.width, elem);
        match self.run(a, lanes.first, lanes.width) {
            Some(distance) => {
                let p = self.w.at(start, distance);
                let mask = self.lane_mask(lanes.extent, lanes.first, lanes.width);
                match self.mask_under(lanes.row, mask, lanes.width) {
                    None => self.w.load(p, ty, a.size),
                    Some(mask) => self.w.masked_load(p, mask, ty, a.size),
                }
            }
            None => {
                let group = a.group(lanes);
                let item = Ty::Scalar(Elem::int(group * a.size * 8));
                let mut items = vec![];
                for c in (lanes.first..lanes.first + lanes.width).step_by(group) {
                    let inside = self.w.inside(lanes.extent, c);
                    let inside = self.w.both(inside, lanes.row);
                    let column = self.column(a, c);
                    let p = self.w.at(start, column);
                    items.push(self.load_scalar(p, item, a, inside));
                }
                let packed = self.w.vector_of(&items);
                self.w.bitcast(packed, ty)
            }
        }
    }

    /// A scalar, or zero where it lies outside. The tile's origin is inside, so its address can be read instead.
    pub(crate) fn load_scalar(&mut self, p: Ssa, ty: Ty, a: &Address, inside: Cond) -> Ssa {
        match inside {
            Cond::Always => self.w.load(p, ty, a.size),
            Cond::Never => self.w.zero(ty),
            Cond::If(c) => {
                let column = self.column(a, 0);
                let origin = self.w.at(a.base, a.rows[0]);
                let origin = self.w.at(origin, column);
                let p = self.w.select(c, p, origin);
                let value = self.w.load(p, ty, a.size);
                let zero = self.w.zero(ty);
                self.w.select(c, value, zero)
            }
        }
    }
}

impl Address {
    /// How many columns of these lanes one access takes.
    pub(crate) fn group(&self, lanes: &Lanes) -> usize {
        match self.columns {
            Columns::Grouped { k, .. } if lanes.first.is_multiple_of(k) && lanes.width.is_multiple_of(k) => k,
            _ => 1,
        }
    }
}

//! Instructions on tiles in registers: each thread works on the elements it has.

use super::{
    Lower, exp,
    place::{Matrix, Place},
    tile::{Data, Tile},
};
use crate::{
    Error,
    index::Index,
    map,
    text::{Elem, Ssa, Ty},
};
use rvllm_ir::{
    tile::{IndexOp, Inst, MapOp, Stmt, TileType, Val},
    types::DType,
};

impl Lower<'_> {
    /// The tile that an instruction without memory gives.
    pub(crate) fn elementwise(&mut self, s: &Stmt) -> Result<Tile, Error> {
        let ty = self.kernel.tile(s.results[0]).clone();
        match &s.inst {
            Inst::Full(c) => Ok(self.full(*c, &ty)),
            Inst::Iota { start, div } => {
                let start = self.index(*start)?;
                let start = self.w.ssa(start);
                let start = self.w.convert("arith.trunci", start, Ty::Scalar(Elem::I32));
                Ok(Tile { shape: ty.shape, dtype: ty.dtype, data: Data::Ramp { start, div: *div, axis: 0 } })
            }
            Inst::Map(MapOp::Exp, args) => self.each(&ty, args, |l, x| exp::exp(&mut l.w, x[0])),
            Inst::Map(op, args) => self.each(&ty, args, |l, lanes| map::map(&mut l.w, *op, lanes)),
            Inst::Select { cmp, a, b, x, y } => {
                self.each(&ty, &[*a, *b, *x, *y], |l, v| map::select(&mut l.w, *cmp, [v[0], v[1]], [v[2], v[3]]))
            }
            Inst::Cast(v) => self.cast(*v, &ty),
            Inst::Reduce(op, v, axis) => {
                let t = self.tile(*v)?;
                self.reduce(*op, &t, *axis)
            }
            Inst::Broadcast(v, axis) => {
                let t = self.tile(*v)?;
                Ok(self.broadcast(&t, *axis, &ty))
            }
            Inst::Reshape(v) => {
                let t = self.tile(*v)?;
                Ok(self.reshape(&t, &ty))
            }
            _ => Err(self.unsupported("an instruction that is no tile")),
        }
    }

    fn full(&mut self, c: f32, ty: &TileType) -> Tile {
        let v = match ty.dtype {
            DType::I32 => self.w.ints(Ty::Scalar(Elem::I32), c as i64),
            _ => self.w.floats(Ty::Scalar(Elem::F32), c),
        };
        Tile { shape: ty.shape.clone(), dtype: ty.dtype, data: Data::Splat(v) }
    }

    /// Element by element, at the place of the operand that is hardest to move.
    fn each(
        &mut self,
        ty: &TileType,
        args: &[Val],
        mut op: impl FnMut(&mut Self, &[Ssa]) -> Ssa,
    ) -> Result<Tile, Error> {
        let tiles = args.iter().map(|v| self.tile(*v)).collect::<Result<Vec<_>, _>>()?;
        let splats: Option<Vec<Ssa>> =
            tiles.iter().map(|t| if let Data::Splat(v) = t.data { Some(v) } else { None }).collect();
        if let Some(lanes) = splats {
            let v = op(self, &lanes);
            return Ok(Tile { shape: ty.shape.clone(), dtype: ty.dtype, data: Data::Splat(v) });
        }
        let place = tiles.iter().filter_map(Tile::place).max_by_key(|p| p.rank()).unwrap_or(Place::of(ty));
        let regs: Vec<Vec<Ssa>> = tiles.iter().map(|t| self.settle(t, place)).collect();
        let one = |i: usize| op(self, &regs.iter().map(|r| r[i]).collect::<Vec<_>>());
        let out = (0..regs[0].len()).map(one).collect();
        Ok(self.tile_at(&ty.shape, ty.dtype, place, out))
    }

    /// Narrowing is put off until the elements are stored or widened again.
    fn cast(&mut self, v: Val, ty: &TileType) -> Result<Tile, Error> {
        let t = self.tile(v)?;
        match (t.dtype, ty.dtype) {
            (DType::I32, DType::F32) => {
                self.each(ty, &[v], |l, x| l.w.convert("arith.sitofp", x[0], Ty::Scalar(Elem::F32)))
            }
            (DType::Bf16, DType::F32) => self.each(ty, &[v], |l, x| l.rounded(x[0], Elem::Bf16)),
            (DType::F8e4m3, DType::F32) => self.each(ty, &[v], |l, x| {
                let bits = l.e4m3(x);
                l.e4m3_number(bits)
            }),
            (DType::I8, DType::F32) => self.each(ty, &[v], |l, x| {
                let byte = l.narrow(x, DType::I8);
                l.w.convert("arith.sitofp", byte, Ty::Scalar(Elem::F32))
            }),
            (DType::F16, DType::F32) => self.each(ty, &[v], |l, x| l.rounded(x[0], Elem::F16)),
            _ => Ok(Tile { dtype: ty.dtype, ..t }),
        }
    }

    /// An f32 rounded to a 16-bit type and widened again.
    fn rounded(&mut self, v: Ssa, to: Elem) -> Ssa {
        let narrow = self.w.convert("arith.truncf", v, Ty::Scalar(to));
        self.w.convert("arith.extf", narrow, Ty::Scalar(Elem::F32))
    }

    fn broadcast(&mut self, t: &Tile, axis: usize, ty: &TileType) -> Tile {
        let data = match &t.data {
            Data::Splat(v) => Data::Splat(*v),
            Data::Ramp { start, div, axis: along } => {
                Data::Ramp { start: *start, div: *div, axis: if axis <= *along { along + 1 } else { *along } }
            }
            Data::Regs(found, _) => {
                let place = self.broadcast_place(*found, axis, ty);
                self.broadcast_regs(t, axis, place, ty)
            }
        };
        Tile { shape: ty.shape.clone(), dtype: t.dtype, data }
    }

    /// A row or column that came out of a matrix goes back to the same one.
    fn broadcast_place(&self, found: Place, axis: usize, ty: &TileType) -> Place {
        let usual = Place::of(ty);
        match found {
            Place::Slice { of, axis: without } if without == axis && same_matrix(of, usual) => of.place(),
            _ => usual,
        }
    }

    fn broadcast_regs(&mut self, t: &Tile, axis: usize, place: Place, ty: &TileType) -> Data {
        let of = match place {
            Place::Fragments(s) => Matrix::Fragments(s),
            Place::Runs(s) => Matrix::Runs(s),
            Place::Slice { of, .. } => of,
        };
        // the new axis is the matrix's last, or its rows
        let removed = usize::from(axis == t.shape.len());
        if removed == 0 && t.shape.len() != 1 {
            return self.broadcast_far(t, axis, place, ty);
        }
        let axis = removed;
        let slice = Place::Slice { of, axis };
        let regs = self.settle(t, slice);
        Data::Regs(place, self.slice_registers(of, axis).into_iter().map(|r| regs[r]).collect())
    }

    /// A matrix repeated along a new leading or middle axis: every element is fetched from shared memory.
    fn broadcast_far(&mut self, t: &Tile, axis: usize, place: Place, ty: &TileType) -> Data {
        let region = self.lay_out(t);
        self.read_region(region);
        let start = self.region_start(region);
        let groups = self.groups(place);
        let mut regs = vec![];
        for [row, col] in groups.at {
            for i in 0..groups.width {
                let col = self.w.add_const(col, i);
                let mut index = self.tile_index(place, [row, col], &ty.shape);
                index.remove(axis);
                let bytes = self.clamped_offset(&index, &t.shape);
                let p = self.w.at(start, bytes);
                regs.push(self.w.load(p, Ty::Scalar(Elem::F32), 4));
            }
        }
        Data::Regs(place, regs)
    }

    /// Bytes to an element of a row-major tile of 32-bit elements; one past the end is taken for the last.
    fn clamped_offset(&mut self, index: &[Index], shape: &[usize]) -> Index {
        let mut sum = Index::constant(0);
        for (i, n) in index.iter().zip(shape) {
            let i = if i.at_most(*n as i64 - 1) {
                *i
            } else {
                self.w.index(IndexOp::Min, *i, Index::constant(*n as i64 - 1))
            };
            sum = self.w.scale(sum, *n);
            sum = self.w.add(sum, i);
        }
        self.w.scale(sum, 4)
    }

    fn reshape(&mut self, t: &Tile, ty: &TileType) -> Tile {
        let data = match &t.data {
            Data::Ramp { .. } => {
                let place = Place::Runs(super::place::matrix(&t.shape));
                Data::Regs(place, self.settle(t, place))
            }
            Data::Regs(Place::Runs(from), regs) if self.same_runs(*from, super::place::matrix(&ty.shape)) => {
                Data::Regs(Place::Runs(super::place::matrix(&ty.shape)), regs.clone())
            }
            other => other.clone(),
        };
        Tile { shape: ty.shape.clone(), dtype: t.dtype, data }
    }
}

/// Whether a place is of the matrix's shape: one of another kind has other elements in a thread, but the same matrix.
fn same_matrix(of: Matrix, place: Place) -> bool {
    let (Matrix::Runs(a) | Matrix::Fragments(a)) = of;
    matches!(place, Place::Runs(b) | Place::Fragments(b) if a == b)
}

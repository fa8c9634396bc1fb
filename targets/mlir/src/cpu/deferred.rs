//! Tiles too large for registers are not computed where they are written, but row by row where they are stored.
//!
//! Only what works on each row by itself can be deferred: loads, constants, elementwise operations, a row that is
//! repeated. Operands of what is deferred that fit registers are computed where they are written, as always.

use super::{
    Lower, Value,
    tile::{Tile, chunks},
};
use crate::{Error, index::Index};
use rvllm_ir::{
    tile::{Inst, Layout, PAD_ROWS, Stmt, Val},
    types::DType,
};

impl Lower<'_> {
    /// Whether a statement's result waits for its store.
    pub(crate) fn is_deferred(&self, s: &Stmt) -> bool {
        let [result] = s.results[..] else { return false };
        !matches!(s.inst, Inst::Pipeline { .. } | Inst::Mma { .. })
            && self.tile_type(result).is_some_and(|t| t.layout != Layout::Operand)
            && (self.is_large(result) || self.is_tall(&s.inst, result))
    }

    /// Whether a list along the rows of a large tile is loaded, which may stick out of its tensor.
    fn is_tall(&self, inst: &Inst, result: Val) -> bool {
        let Inst::Load { tensor, .. } = inst else { return false };
        let (Some(t), dims) = (self.tile_type(result), &self.kernel.params[*tensor].ty.dims) else { return false };
        t.shape.len() == 1 && t.shape[0] > PAD_ROWS + 1 && dims.last().is_some_and(|d| d.constant().is_none())
    }

    /// Whether a value is stored row by row.
    pub(crate) fn waits(&self, v: Val) -> bool {
        matches!(self.values.get(&v), Some(Value::Deferred | Value::Stored(_)))
    }

    /// Computes a deferred tile row by row, and stores each row.
    pub(crate) fn store_rows(&mut self, tensor: usize, at: &[Index], value: Val) -> Result<(), Error> {
        let shape = self.kernel.tile(value).shape.clone();
        let ([row, column], [m, _]) = (at, &shape[..]) else {
            return Err(self.unsupported(format!("a store of a tile {shape:?} that does not fit registers")));
        };
        let dim = self.kernel.params[tensor].ty.dims[0];
        let count = self.left(dim, *row, *m);
        let bounds = [Index::constant(0), count, Index::constant(1)].map(|i| self.w.ssa(i));
        let open = self.w.begin_loop(bounds, &[]);
        let r = Index::value(open.i);
        let outside = self.values.clone();
        self.row(value, r)?;
        let tile = self.tile(value)?;
        let row = self.w.add(*row, r);
        self.store_tile(tensor, &[row, *column], &tile, None)?;
        self.values = outside;
        self.w.end_loop(open, &[]);
        Ok(())
    }

    /// Makes a deferred value, and what it is computed from, tiles of row `r`.
    fn row(&mut self, v: Val, r: Index) -> Result<(), Error> {
        let tile = match self.values.get(&v) {
            Some(Value::Stored(acc)) => {
                let acc = *acc;
                self.stored_row(&acc, r)
            }
            Some(Value::Deferred) => {
                let kernel = self.kernel;
                let s = kernel.body.stmts.iter().find(|s| s.results.contains(&v));
                let s = s.ok_or_else(|| self.misplaced(v, "a tile of the kernel's own block"))?;
                for operand in s.inst.operands() {
                    self.row(operand, r)?;
                }
                self.row_of(s, r)?
            }
            _ => return Ok(()),
        };
        self.values.insert(v, Value::Tile(tile));
        Ok(())
    }

    /// One row of what a deferred statement computes.
    fn row_of(&mut self, s: &Stmt, r: Index) -> Result<Tile, Error> {
        let ty = self.kernel.tile(s.results[0]).clone();
        let shape = [&[1], &ty.shape[1..]].concat();
        match &s.inst {
            Inst::Full(c) => Ok(self.full(*c, &rvllm_ir::tile::TileType { shape, ..ty })),
            Inst::Load { tensor, at } => {
                let mut at = self.indices(at)?;
                let first = at.len() - shape.len();
                at[first] = self.w.add(at[first], r);
                match self.load_tile(*tensor, &at, &shape)? {
                    Value::Tile(t) => Ok(t),
                    _ => Err(self.unsupported("a load that is no tile")),
                }
            }
            Inst::Broadcast(v, 0) => {
                let t = self.tile(*v)?;
                Ok(Tile { shape, dtype: DType::F32, vecs: t.vecs })
            }
            Inst::Broadcast(v, 1) => {
                let t = self.tile(*v)?;
                let element = self.w.extract(t.vecs[0], 0);
                let vecs = chunks(&shape).iter().map(|(_, width)| self.w.splat(element, *width)).collect();
                Ok(Tile { shape, dtype: t.dtype, vecs })
            }
            Inst::Map(..) | Inst::Select { .. } | Inst::Cast(_) => self.elementwise(s),
            _ => Err(self.unsupported("an operation across the rows of a tile that does not fit registers")),
        }
    }
}

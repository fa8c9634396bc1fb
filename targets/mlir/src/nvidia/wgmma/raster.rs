//! Which tile a CTA works on. A kernel's programs may run in any order: the constant dimension of the grid is columns of
//! the result, the other rows.

use super::{Lower, form::RASTER, ops::I32, product::Product};
use crate::text::Ssa;
use rvllm_ir::expr::Expr;

/// The grid's dimension over columns and their number, and its dimension over rows and its extent.
pub(super) fn dimensions<'k>(p: &Product<'k>) -> Option<([usize; 2], usize, &'k Expr)> {
    match &p.kernel.grid[..] {
        [(_, Expr::Const(columns)), (_, rows)] => Some(([0, 1], usize::try_from(*columns).ok()?, rows)),
        [(_, rows), (_, Expr::Const(columns))] => Some(([1, 0], usize::try_from(*columns).ok()?, rows)),
        _ => None,
    }
}

/// Where a CTA's tiles are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tiles {
    /// Along columns.
    columns: usize,
    /// Along rows, in this step.
    rows: Ssa,
    /// Which dimensions of the grid those are.
    dims: [usize; 2],
}

impl Lower<'_> {
    pub(super) fn tiles(&mut self) -> Tiles {
        let ([column, row], columns, extent) = dimensions(&self.product).expect("invariant: `lower` checks the grid");
        let rows = self.extent(extent);
        Tiles { columns, rows, dims: [column, row] }
    }

    /// An extent of the grid: the only symbol is that of a's rows.
    fn extent(&mut self, e: &Expr) -> Ssa {
        match e {
            Expr::Const(c) => self.w.ints(I32, *c),
            Expr::Sym(_) => self.rows,
            Expr::Add(a, b) => {
                let (a, b) = (self.extent(a), self.extent(b));
                self.w.sum(a, b)
            }
            Expr::Mul(a, b) => {
                let (a, b) = (self.extent(a), self.extent(b));
                self.w.binary("arith.muli", a, b)
            }
            Expr::CeilDiv(a, d) => {
                let a = self.extent(a);
                let up = self.w.plus(a, *d as usize - 1);
                self.w.over(up, *d as usize)
            }
            Expr::Min(a, most) => {
                let (a, most) = (self.extent(a), self.w.ints(I32, *most));
                self.w.binary("arith.minui", a, most)
            }
        }
    }

    /// The program of a CTA that has one tile or a part of one, and whether the step has rows for it. Columns vary fastest: where a CTA of the
    /// first rows finds its weights does not depend on the step.
    pub(super) fn program(&mut self, tiles: Tiles) -> (Vec<Ssa>, Ssa) {
        let cta = self.w.special_register("ctaid.x");
        let cta = self.w.over(cta, self.form.ctas);
        let (column, row) = (self.w.modulo(cta, tiles.columns), self.w.over(cta, tiles.columns));
        let inside = self.w.compare("ult", row, tiles.rows);
        (place(tiles, column, row), inside)
    }

    /// The program of a tile: groups of [`RASTER`] row tiles, and in them rows fastest.
    pub(super) fn program_of(&mut self, tiles: Tiles, tile: Ssa) -> Vec<Ssa> {
        let group = self.w.over(tile, RASTER * tiles.columns);
        let within = self.w.modulo(tile, RASTER * tiles.columns);
        let first = self.w.times(group, RASTER);
        let left = self.w.binary("arith.subi", tiles.rows, first);
        let most = self.w.i32(RASTER);
        let height = self.w.binary("arith.minui", left, most);
        let (row, column) =
            (self.w.binary("arith.remui", within, height), self.w.binary("arith.divui", within, height));
        let row = self.w.sum(first, row);
        place(tiles, column, row)
    }

    /// Number of tiles.
    pub(super) fn count(&mut self, tiles: Tiles) -> Ssa {
        self.w.times(tiles.rows, tiles.columns)
    }
}

fn place(tiles: Tiles, column: Ssa, row: Ssa) -> Vec<Ssa> {
    let mut program = vec![column; 2];
    program[tiles.dims[1]] = row;
    program
}

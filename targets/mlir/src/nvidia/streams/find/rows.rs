//! Rows of numbers that pass beside what an innermost loop multiplies: one number for each of its rows, such as the scales of values.
//!
//! Invariant: what is found changes where the numbers are read, not which.

use super::{Plan, Stream};
use rvllm_ir::{
    tile::{Block, Inst, Kernel, Layout, MapOp, MemLayout, Stmt, Val},
    types::{DType, Dim},
};

/// Bytes of which the copy engine's pieces are multiples.
const PIECE: usize = 16;

/// Numbers that pass beside a stream, in as many parts.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) value: Val,
    pub(crate) tensor: usize,
    /// Where each part begins.
    pub(crate) parts: Vec<Vec<Val>>,
    /// Numbers of a part.
    pub(crate) part: usize,
}

impl Row {
    /// Bytes of a part.
    pub(crate) fn part_bytes(&self) -> usize {
        self.part * DType::F32.bits() / 8
    }

    pub(crate) fn bytes(&self) -> usize {
        self.parts.len() * self.part_bytes()
    }

    /// The row of these loads, if the copy engine can bring them.
    fn of(kernel: &Kernel, plan: &Plan<'_>, value: Val, loads: &[Val]) -> Option<Row> {
        let mut row: Option<Row> = None;
        for v in loads {
            let Inst::Load { tensor, at } = plan.definitions.get(v)? else { return None };
            let (param, &[part]) = (&kernel.params[*tensor], &kernel.tile(*v).shape[..]) else { return None };
            let whole = param.ty.dims.last() == Some(&Dim::Const(part)) && param.layout == MemLayout::DENSE;
            let fits = whole && param.ty.dtype == DType::F32 && (part * 4).is_multiple_of(PIECE);
            let row = row.get_or_insert(Row { value, tensor: *tensor, parts: vec![], part });
            (fits && (row.tensor, row.part) == (*tensor, part)).then(|| row.parts.push(at.clone()))?;
        }
        row
    }

    /// Whether it has a number for each row of a stream, and lies in the same places of its tensor.
    fn goes_with(&self, stream: &Stream) -> bool {
        let outermost = |at: &[Val]| at.first().copied();
        let same = |(own, of): (&Vec<Val>, &super::Part)| outermost(own) == of.at.last().copied();
        self.part == stream.part_rows()
            && self.parts.len() == stream.parts.len()
            && self.parts.iter().zip(&stream.parts).all(same)
    }
}

impl<'k> Plan<'k> {
    /// Gives each narrow stream of a block the rows beside it, the first row to the first stream; `None` where rows are joined that
    /// cannot be brought.
    pub(super) fn rows(&mut self, kernel: &'k Kernel, block: &'k Block) -> Option<()> {
        let own = |s: &Stream| block.stmts.iter().any(|b| b.results.first() == Some(&s.operand));
        let streams: Vec<usize> =
            (0..self.streams.len()).filter(|i| self.streams[*i].is_narrow() && own(&self.streams[*i])).collect();
        let rows: Vec<(&Stmt, Option<Row>)> = block.stmts.iter().filter_map(|s| self.row(kernel, block, s)).collect();
        for (j, (s, row)) in rows.into_iter().enumerate() {
            let stream = streams.get(j).map(|i| &mut self.streams[*i]);
            match (row, stream) {
                (Some(row), Some(stream)) if row.goes_with(stream) => stream.rows.push(row),
                _ => matches!(s.inst, Inst::Load { .. }).then_some(())?,
            }
        }
        Some(())
    }

    /// What a statement has of a row: one that is broadcast over the rows of a matrix.
    fn row(&self, kernel: &Kernel, block: &'k Block, s: &'k Stmt) -> Option<(&'k Stmt, Option<Row>)> {
        let v = *s.results.first()?;
        let loads = match &s.inst {
            Inst::Load { .. } => vec![v],
            Inst::Concat(parts, 0) => parts.clone(),
            _ => return None,
        };
        let tile = kernel.tile(v);
        let part_of_row = |s: &Stmt| matches!(&s.inst, Inst::Concat(parts, _) if parts.contains(&v));
        if tile.layout != Layout::Reg || tile.shape.len() != 1 || block.stmts.iter().any(part_of_row) {
            return None;
        }
        let scales = self.scales_columns(kernel, block, v);
        Some((s, scales.then(|| Row::of(kernel, self, v, &loads)).flatten()))
    }

    /// Whether a row is used for nothing but to scale the columns of matrices.
    fn scales_columns(&self, kernel: &Kernel, block: &Block, v: Val) -> bool {
        let uses = |v: Val| block.stmts.iter().filter(move |s| s.inst.operands().contains(&v));
        let scale = |of: Val| uses(of).all(|s| matches!(&s.inst, Inst::Map(MapOp::Mul, args) if args[0] != of));
        let broadcast = |s: &Stmt| {
            let over = |v: &Val| kernel.tile(*v).layout == Layout::Acc && scale(*v);
            matches!(s.inst, Inst::Broadcast(_, 0)) && s.results.iter().all(over)
        };
        uses(v).count() > 0 && uses(v).all(broadcast)
    }
}

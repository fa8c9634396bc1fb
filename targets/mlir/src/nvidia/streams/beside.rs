//! What passes beside the lines that products read, such as scales: consumers read it from the slot as they scale the columns of a
//! matrix with it.
//!
//! Invariant: a slot is released once all lanes of a warp have read what is beside.

use super::{
    super::{
        Lower, Value,
        place::{Matrix, Place},
    },
    consume::Turn,
    ring::Slot,
};
use crate::{
    Error,
    index::Index,
    text::{Elem, Ssa, Ty},
};
use rvllm_ir::{
    tile::{Inst, MapOp, Val},
    types::DType,
};

/// Bytes of a number.
const NUMBER: usize = 4;

impl Lower<'_> {
    /// Whether a value passes beside a stream.
    pub(super) fn passes_beside(&self, v: Val) -> bool {
        self.streams().plan.passing().any(|s| s.rows.iter().any(|row| row.value == v))
    }

    /// Notes where an iteration's rows are.
    pub(super) fn find_beside(&mut self, turn: &Turn<'_>, at: [Index; 2], first: Ssa) -> Result<(), Error> {
        for stream in turn.streams.iter().filter(|s| !s.rows.is_empty()) {
            let slot = self.stream_slot(turn, stream.operand, at, first)?;
            let mut before = 0;
            for row in &stream.rows {
                self.note_beside(row.value, (slot, before));
                before += row.bytes();
            }
        }
        Ok(())
    }

    fn note_beside(&mut self, v: Val, place: (Slot, usize)) {
        if let Some(s) = &mut self.streams {
            s.beside.insert(v, place);
        }
    }

    /// The row that a value is the broadcast of.
    pub(super) fn beside(&self, broadcast: Val) -> Option<Val> {
        match self.definition(broadcast) {
            Some(Inst::Broadcast(row, _)) => self.passes_beside(*row).then_some(*row),
            _ => None,
        }
    }

    /// The last statement that reads what passes beside the right side of a loop's first product.
    pub(super) fn last_beside(&self, turn: &Turn<'_>) -> Option<usize> {
        let Inst::Mma { b, .. } = turn.first[0].inst else { return None };
        let stream = self.streamed(b)?;
        let reads = |v: Val| self.beside(v).is_some_and(|row| stream.rows.iter().any(|r| r.value == row));
        turn.rest.iter().rposition(|s| matches!(&s.inst, Inst::Map(MapOp::Mul, of) if reads(of[1])))
    }

    /// A matrix times the row in its slot: each thread reads the numbers of its columns as it comes to them.
    pub(super) fn scale_beside(&mut self, of: &[Val], result: Val) -> Result<bool, Error> {
        let place = self.beside(of[1]).and_then(|row| self.streams().beside.get(&row).copied());
        let (slot, before) = place.ok_or_else(|| self.misplaced(of[1], "a row that passes"))?;
        let tile = self.tile(of[0])?;
        let &[rows, cols] = &tile.shape[..] else { return Err(self.misplaced(of[0], "a matrix")) };
        let fragments = Place::Fragments([rows, cols]);
        let numbers = self.settle(&tile, fragments);
        self.await_full(slot);
        // full by other threads' word; the copies say for themselves that they are there
        self.await_brought(slot);
        let start = self.w.offset(slot.rows, before as i64);
        let mut scaled = numbers.clone();
        let columns = self.slice_registers(Matrix::Fragments([rows, cols]), 0);
        let pairs = self.groups(Place::Slice { of: Matrix::Fragments([rows, cols]), axis: 0 });
        for (pair, [_, col]) in pairs.at.into_iter().enumerate() {
            let bytes = self.w.scale(col, NUMBER);
            let p = self.w.at(start, bytes);
            let scales = self.w.load(p, Ty::Vector(pairs.width, Elem::F32), pairs.width * NUMBER);
            let scales: Vec<Ssa> = (0..pairs.width).map(|i| self.w.extract(scales, i)).collect();
            for (i, column) in columns.iter().enumerate().filter(|(_, c)| **c / pairs.width == pair) {
                scaled[i] = self.w.binary("arith.mulf", numbers[i], scales[column % pairs.width]);
            }
        }
        let tile = self.tile_at(&[rows, cols], DType::F32, fragments, scaled);
        self.values.insert(result, Value::Tile(tile));
        Ok(true)
    }
}

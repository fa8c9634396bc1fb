//! The producer: one thread walks the program as its consumers do, but computes indices alone, and has the copy engine bring
//! every stream. It reads the tables that say where one iteration ahead.

use super::{
    super::{Lower, Value, spread},
    find::{LINE, LINE_BYTES, Part, Stream, Through},
    ring::Slot,
};
use crate::{
    Error,
    index::Index,
    text::{Elem, Ssa, Ty},
};
use rvllm_ir::tile::{Block, IndexOp, Inst, Stmt, Val};

impl Lower<'_> {
    pub(super) fn produce_block(&mut self, block: &Block) -> Result<(), Error> {
        block.stmts.iter().try_for_each(|s| self.produce(s))
    }

    fn produce(&mut self, s: &Stmt) -> Result<(), Error> {
        match &s.inst {
            Inst::ProgramId(_) | Inst::Const(_) | Inst::Sym(_) | Inst::Index(..) | Inst::Read { .. } => {
                let i = self.scalar(&s.inst)?;
                self.values.insert(s.results[0], Value::Index(i));
                Ok(())
            }
            Inst::Pipeline { lo, hi, body, .. } => self.produce_loop(s, [*lo, *hi], body),
            Inst::Load { .. } | Inst::Concat(..) => match self.streamed(s.results[0]) {
                Some(stream) => {
                    let n = self.passed(stream.through);
                    if self.brings(0) {
                        self.bring(&stream, n)?;
                    }
                    self.count_kept(&stream);
                    Ok(())
                }
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn produce_loop(&mut self, s: &Stmt, [lo, hi]: [Val; 2], body: &Block) -> Result<(), Error> {
        let passing = self.passing(body);
        let [lo, hi] = [self.index(lo)?, self.index(hi)?];
        if !passing.is_empty() {
            return self.produce_passing([lo, hi], body, &passing);
        }
        if spread::parts(self.kernel, s) == Some(self.cluster) {
            self.values.insert(body.params[0], Value::Index(self.rank));
            self.produce_block(body)?;
            let many = self.many(hi);
            self.w.begin_if(many);
            // the consumers' two: what they found is there, and is joined
            self.cluster_barrier();
            self.cluster_barrier();
            self.w.end();
            return Ok(());
        }
        let bounds = [self.w.ssa(lo), self.w.ssa(hi), self.w.int(1)];
        let numbers = self.numbers();
        let open = self.w.begin_loop(bounds, &numbers);
        self.values.insert(body.params[0], Value::Index(Index::value(open.i)));
        self.set_passed(&open.carried.clone());
        self.produce_block(body)?;
        let numbers = self.numbers();
        let numbers = self.w.end_loop(open, &numbers);
        self.set_passed(&numbers);
        Ok(())
    }

    /// What loops begin with, brought to L2: it is right to look at what a predecessor may still write, as nothing is kept of it.
    pub(super) fn look_ahead(&mut self, block: &Block) -> Result<(), Error> {
        for s in &block.stmts {
            match &s.inst {
                Inst::ProgramId(_) | Inst::Const(_) | Inst::Sym(_) | Inst::Index(..) | Inst::Read { .. } => {
                    let i = self.scalar(&s.inst)?;
                    self.values.insert(s.results[0], Value::Index(i));
                }
                Inst::Pipeline { lo, hi, body, .. } => self.look_into(s, [*lo, *hi], body)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// The first iteration of a loop, or of an innermost one as many as its ring holds.
    fn look_into(&mut self, s: &Stmt, [lo, hi]: [Val; 2], body: &Block) -> Result<(), Error> {
        let passing = self.passing(body);
        let (lo, hi) = (self.index(lo)?, self.index(hi)?);
        let spread = spread::parts(self.kernel, s) == Some(self.cluster);
        let first = if spread { self.rank } else { lo };
        let count = if passing.is_empty() { 1 } else { (self.passing_slots() / passing.len()).max(1) };
        let end = self.w.add_const(first, count);
        let end = self.w.index(IndexOp::Min, end, hi);
        let bounds = [self.w.ssa(first), self.w.ssa(end), self.w.int(1)];
        let open = self.w.begin_loop(bounds, &[]);
        let i = Index::value(open.i);
        self.values.insert(body.params[0], Value::Index(i));
        self.look_ahead(body)?;
        for (order, stream) in passing.iter().enumerate() {
            if self.brings(order) {
                self.bring_to_l2(stream)?;
            }
        }
        self.w.end_loop(open, &[]);
        Ok(())
    }

    fn bring_to_l2(&mut self, stream: &Stream) -> Result<(), Error> {
        let map = self.map_of(stream);
        self.by_leader(|l| {
            for part in &stream.parts {
                for (_, at) in l.boxes(stream, part)? {
                    l.w.prefetch_box(map, &at);
                }
            }
            Ok(())
        })
    }

    /// An innermost loop: entries of tables for the next iteration are read before this one's slots are waited for.
    fn produce_passing(&mut self, [lo, hi]: [Index; 2], body: &Block, passing: &[Stream]) -> Result<(), Error> {
        let first = self.passed(Through::Passing);
        let (from, to) = (self.w.ssa(lo), self.w.ssa(hi));
        let any = self.w.compare("slt", from, to);
        let reads = self.reads(body, passing);
        self.w.begin_if(any);
        let found = self.look_up_at(lo, body, &reads)?;
        let bounds = [from, to, self.w.int(1)];
        let open = self.w.begin_loop(bounds, &found);
        let i = Index::value(open.i);
        let next = self.w.add_const(i, 1);
        let last = self.w.index(IndexOp::Sub, hi, Index::constant(1));
        let next = self.w.index(IndexOp::Min, next, last);
        let later = self.look_up_at(next, body, &reads)?;
        self.indices_of(i, body)?;
        for (v, found) in reads.iter().zip(&open.carried) {
            self.values.insert(*v, Value::Index(Index::value(*found)));
        }
        self.dependents(body, &reads)?;
        for (order, stream) in passing.iter().enumerate() {
            if self.brings(order) {
                let n = self.stream_number(first, [lo, i], passing.len(), order);
                self.bring(stream, n)?;
            } else if self.widens() {
                let n = self.stream_number(first, [lo, i], passing.len(), order);
                self.widen_slot(stream, n);
            }
        }
        self.w.end_loop(open, &later);
        self.w.end();
        self.count_passed([lo, hi], passing.len());
        Ok(())
    }

    /// The indices of a body in iteration `i`.
    pub(super) fn indices_of(&mut self, i: Index, body: &Block) -> Result<(), Error> {
        self.values.insert(body.params[0], Value::Index(i));
        let scalar = |s: &&Stmt| matches!(s.inst, Inst::Const(_) | Inst::Sym(_) | Inst::Index(..) | Inst::Read { .. });
        for s in body.stmts.iter().filter(scalar) {
            let value = self.scalar(&s.inst)?;
            self.values.insert(s.results[0], Value::Index(value));
        }
        Ok(())
    }

    /// Indices computed from what was read, again.
    fn dependents(&mut self, body: &Block, reads: &[Val]) -> Result<(), Error> {
        for s in &body.stmts {
            if matches!(s.inst, Inst::Index(..)) && !reads.contains(&s.results[0]) {
                let value = self.scalar(&s.inst)?;
                self.values.insert(s.results[0], Value::Index(value));
            }
        }
        Ok(())
    }

    /// What a body reads of tables in iteration `i`.
    fn look_up_at(&mut self, i: Index, body: &Block, reads: &[Val]) -> Result<Vec<Ssa>, Error> {
        self.indices_of(i, body)?;
        let found = reads.iter().map(|v| self.index(*v)).collect::<Result<Vec<_>, _>>()?;
        Ok(found.into_iter().map(|i| self.w.ssa(i)).collect())
    }

    /// The number, from `first` on, of stream `order` of `count` in iteration `i` of a loop from `lo` on.
    pub(super) fn stream_number(&mut self, first: Ssa, [lo, i]: [Index; 2], count: usize, order: usize) -> Ssa {
        let done = self.w.index(IndexOp::Sub, i, lo);
        let done = self.narrow_index(done);
        let done = self.w.times(done, count);
        let n = self.w.sum(first, done);
        self.w.plus(n, order)
    }

    /// Counts what a loop's iterations passed.
    pub(super) fn count_passed(&mut self, [lo, hi]: [Index; 2], count: usize) {
        let trips = self.w.index(IndexOp::Sub, hi, lo);
        let trips = self.w.index(IndexOp::Max, trips, Index::constant(0));
        let trips = self.narrow_index(trips);
        let trips = self.w.times(trips, count);
        let [kept, passing] = [Through::Kept, Through::Passing].map(|t| self.passed(t));
        let passing = self.w.sum(passing, trips);
        self.set_passed(&[kept, passing]);
    }

    /// Counts one that is kept.
    pub(super) fn count_kept(&mut self, stream: &Stream) {
        let [kept, passing] = [Through::Kept, Through::Passing].map(|t| self.passed(t));
        if stream.through == Through::Kept {
            let kept = self.w.plus(kept, 1);
            self.set_passed(&[kept, passing]);
        }
    }

    fn narrow_index(&mut self, i: Index) -> Ssa {
        let v = self.w.ssa(i);
        self.w.convert("arith.trunci", v, Ty::Scalar(Elem::I32))
    }

    /// Fills the slot of number `n` with a stream: line by line, part after part, and what passes beside it.
    fn bring(&mut self, stream: &Stream, n: Ssa) -> Result<(), Error> {
        let slot = self.slot(stream.through, n);
        self.await_empty(slot);
        let map = self.map_of(stream);
        self.by_leader(|l| {
            l.w.expect(slot.brought, stream.copied());
            for (number, part) in stream.parts.iter().enumerate() {
                for (line, at) in l.boxes(stream, part)? {
                    let to = match stream.is_narrow() {
                        true => stream.bytes() / 2 + number * stream.part_bytes(),
                        false => line * stream.line_bytes() + number * stream.part_rows() * LINE_BYTES,
                    };
                    let to = l.w.offset(slot.start, to as i64);
                    l.w.copy_box(to, map, slot.brought, &at, None);
                }
            }
            l.bring_rows(stream, slot)
        })
    }

    fn bring_rows(&mut self, stream: &Stream, slot: Slot) -> Result<(), Error> {
        let mut to = slot.rows;
        for row in &stream.rows {
            for at in &row.parts {
                let at = self.indices(at)?;
                let from = self.element(row.tensor, &at);
                self.w.copy_bytes(to, from, slot.brought, row.part_bytes(), None);
                to = self.w.offset(to, row.part_bytes() as i64);
            }
        }
        Ok(())
    }

    /// By one lane of the warp.
    fn by_leader(&mut self, body: impl FnOnce(&mut Self) -> Result<(), Error>) -> Result<(), Error> {
        let lane = self.w.special_register("tid.x");
        let lane = self.w.modulo(lane, 32);
        let leads = self.w.is("eq", lane, 0);
        self.w.begin_if(leads);
        body(self)?;
        self.w.end();
        Ok(())
    }

    /// Where each line of a part begins; of a narrow one, where all do.
    fn boxes(&mut self, stream: &Stream, part: &Part) -> Result<Vec<(usize, Vec<Ssa>)>, Error> {
        let mut at = vec![];
        for v in &part.at {
            let i = self.index(*v)?;
            at.push(self.narrow_index(i));
        }
        if stream.is_narrow() {
            return Ok(vec![(0, at)]);
        }
        let mut boxes = vec![];
        for line in 0..stream.lines() {
            let mut at = at.clone();
            at[0] = self.w.plus(at[0], line * LINE);
            boxes.push((line, at));
        }
        Ok(boxes)
    }

    /// Entries of tables that say where the streams are which this thread brings.
    fn reads(&self, body: &Block, passing: &[Stream]) -> Vec<Val> {
        let own = passing.iter().enumerate().filter(|(order, _)| self.brings(*order));
        let lines = own.clone().flat_map(|(_, s)| s.parts.iter().flat_map(|p| &p.at));
        let rows = own.flat_map(|(_, s)| s.rows.iter().flat_map(|r| r.parts.iter().flatten()));
        let mut rest: Vec<Val> = lines.chain(rows).copied().collect();
        let mut found = vec![];
        while let Some(v) = rest.pop() {
            match body.stmts.iter().find(|s| s.results.contains(&v)) {
                Some(s) if matches!(s.inst, Inst::Read { .. }) => found.extend((!found.contains(&v)).then_some(v)),
                Some(s) => rest.extend(s.inst.operands()),
                None => {}
            }
        }
        found
    }
}

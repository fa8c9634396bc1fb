//! The consumers: every warpgroup works on 64 rows of the program, in the statements' order but for one thing: in an innermost
//! loop of a CTA that is alone on its multiprocessor, the product that takes what was computed runs while the next iteration's
//! is computed.
//!
//! Invariants:
//! - which products are under way changes no operation and no order of sums;
//! - a slot is released once no product that reads it is under way.

use super::{
    super::{Lower, Value, operand::Matrix, place::Place, shared::Region, spread},
    find::{Stream, Through},
    ring::Slot,
};
use crate::{
    Error,
    bounds::Cond,
    index::Index,
    text::{Elem, Ssa, Ty},
};
use rvllm_ir::{
    tile::{Block, Inst, MapOp, Stmt, Type, Val},
    types::DType,
};
use std::collections::HashSet;

/// Registers of a carried tile from which on it waits in shared memory while a loop further in runs.
const PARKED: usize = 16;
/// Bytes of one access to what is parked.
const PIECE: usize = 16;

/// The statements of an innermost loop.
pub(super) struct Turn<'k> {
    /// Products of streams alone.
    pub(super) first: Vec<&'k Stmt>,
    /// What is computed of them.
    pub(super) rest: Vec<&'k Stmt>,
    /// What is computed of the sums that the loop carries, before the product that adds to them.
    late: Vec<&'k Stmt>,
    /// That product: its left side, right side and sums.
    second: [Val; 3],
    /// Which carried value its result is.
    sums: usize,
    pub(super) streams: Vec<Stream>,
}

/// What one iteration leaves to the next.
struct Left {
    /// Carried values but the sums, register by register.
    carried: Vec<Ssa>,
    /// Left side of the product that is to come, and its sums.
    a: Vec<Ssa>,
    sums: Vec<Ssa>,
}

impl Lower<'_> {
    /// Lowers what streams change; `false` for a statement that they do not.
    pub(in crate::nvidia) fn consume(&mut self, s: &Stmt) -> Result<bool, Error> {
        match &s.inst {
            Inst::Load { .. } | Inst::Concat(..) if self.kernel_operand(s) => {
                if let Some(stream) = self.streamed(s.results[0]).filter(|stream| stream.through == Through::Kept) {
                    let n = self.passed(Through::Kept);
                    let slot = self.slot(Through::Kept, n);
                    self.await_full(slot);
                    self.keep(stream.operand, slot);
                    self.count_kept(&stream);
                }
                Ok(true)
            }
            Inst::Reshape(_) | Inst::Cast(_) if self.kernel_operand(s) => Ok(true),
            Inst::Load { .. } | Inst::Concat(..) if self.passes_beside(s.results[0]) => Ok(true),
            Inst::Broadcast(v, _) if self.passes_beside(*v) => Ok(true),
            Inst::Map(MapOp::Mul, of) if self.beside(of[1]).is_some() => self.scale_beside(of, s.results[0]),
            Inst::Pipeline { lo, hi, init, body, .. } => {
                let bounds = [self.index(*lo)?, self.index(*hi)?];
                let results = match spread::parts(self.kernel, s) {
                    Some(n) if n == self.cluster && self.leads.is_none() => self.spread(bounds[1], init, body)?,
                    _ if self.passing(body).is_empty() => self.consume_loop(bounds, init, body)?,
                    _ => self.consume_passing(bounds, init, body)?,
                };
                self.values.extend(s.results.iter().copied().zip(results));
                Ok(true)
            }
            _ => self.approximate(s),
        }
    }

    fn kernel_operand(&self, s: &Stmt) -> bool {
        self.kernel.tile(s.results[0]).layout == rvllm_ir::tile::Layout::Operand
    }

    /// A block, and the release of what was kept for it: after the last loop, so that the next program's is brought while this
    /// one ends.
    pub(super) fn consume_block(&mut self, block: &Block) -> Result<(), Error> {
        let last = last_loop(block);
        for (j, s) in block.stmts.iter().enumerate() {
            self.stmt(s)?;
            if Some(j) == last {
                self.release_kept(block);
            }
        }
        Ok(())
    }

    fn release_kept(&mut self, block: &Block) {
        for s in &block.stmts {
            if let Some(slot) = s.results.first().and_then(|v| self.kept(*v)) {
                self.release(slot);
            }
        }
    }

    /// Where a carried tile is: in fragments, or what is left of them without columns.
    fn carried_place(&self, v: Val) -> Option<Place> {
        let Type::Tile(ty) = self.kernel.ty(v) else { return None };
        match ty.shape[..] {
            [rows, cols] => Some(Place::Fragments([rows, cols])),
            [rows] => Place::Fragments([rows, 8]).slice(1),
            _ => None,
        }
    }

    pub(in crate::nvidia) fn carried_regs(&mut self, v: Val, value: &Value) -> Result<Vec<Ssa>, Error> {
        match (value, self.carried_place(v)) {
            (Value::Index(i), _) => Ok(vec![self.w.ssa(*i)]),
            (Value::Tile(t), Some(place)) => Ok(self.settle(t, place)),
            _ => Err(self.misplaced(v, "something that a pipeline can carry")),
        }
    }

    /// The value of these registers; takes them off the front of the list.
    pub(in crate::nvidia) fn carried_value(&mut self, v: Val, regs: &mut &[Ssa]) -> Value {
        let Some(place) = self.carried_place(v) else {
            let (first, rest) = (regs[0], &regs[1..]);
            *regs = rest;
            return Value::Index(Index::value(first));
        };
        let n = self.registers(place);
        let (own, rest) = regs.split_at(n);
        *regs = rest;
        let ty = self.kernel.tile(v).clone();
        Value::Tile(self.tile_at(&ty.shape, ty.dtype, place, own.to_vec()))
    }

    pub(in crate::nvidia) fn found(&self, v: Val) -> Result<Value, Error> {
        self.values.get(&v).cloned().ok_or_else(|| self.misplaced(v, "a value"))
    }

    // loops around others

    /// A loop that holds others, or no products: what it carries of many registers is parked while those run.
    fn consume_loop(&mut self, [lo, hi]: [Index; 2], init: &[Val], body: &Block) -> Result<Vec<Value>, Error> {
        let inner = body.stmts.iter().position(|s| matches!(s.inst, Inst::Pipeline { .. }));
        let mut regs = vec![];
        let mut parked: Vec<Option<(Region, usize)>> = vec![];
        for v in init {
            let value = self.found(*v)?;
            let own = self.carried_regs(*v, &value)?;
            if inner.is_some() && own.len() >= PARKED {
                let region = self.region(own.len() * 4 * self.working_threads());
                self.park(region, &own);
                parked.push(Some((region, own.len())));
            } else {
                regs.extend(own);
                parked.push(None);
            }
        }
        let carried: Vec<Ssa> = self.numbers().into_iter().chain(regs).collect();
        let bounds = [self.w.ssa(lo), self.w.ssa(hi), self.w.int(1)];
        let open = self.w.begin_loop(bounds, &carried);
        self.values.insert(body.params[0], Value::Index(Index::value(open.i)));
        let (numbers, mut rest) = open.carried.split_at(2);
        self.set_passed(numbers);
        for (v, _) in body.params[1..].iter().zip(&parked).filter(|(_, p)| p.is_none()) {
            let value = self.carried_value(*v, &mut rest);
            self.values.insert(*v, value);
        }
        for (j, s) in body.stmts.iter().enumerate() {
            self.stmt(s)?;
            if Some(j) == inner {
                self.unpark_all(&body.params[1..], &parked);
            }
            if Some(j) == last_loop(body) {
                self.release_kept(body);
            }
        }
        let mut yields = self.numbers();
        for (v, parked) in body.yields.iter().zip(&parked) {
            let value = self.found(*v)?;
            let own = self.carried_regs(*v, &value)?;
            match parked {
                Some((region, _)) => self.park(*region, &own),
                None => yields.extend(own),
            }
        }
        let results = self.w.end_loop(open, &yields);
        let (numbers, mut rest) = results.split_at(2);
        self.set_passed(numbers);
        let mut values = vec![];
        for (v, parked) in init.iter().zip(&parked) {
            values.push(match parked {
                Some(parked) => self.unpark(*v, *parked),
                None => self.carried_value(*v, &mut rest),
            });
        }
        Ok(values)
    }

    /// Threads that hold rows of the program.
    pub(in crate::nvidia) fn working_threads(&self) -> usize {
        let rows = self.streams.as_ref().map(|s| s.plan.rows.div_ceil(16));
        self.threads.min(rows.map_or(usize::MAX, |rows| 32 * rows))
    }

    fn parking(&mut self, region: Region, thread: Index) -> Ssa {
        let start = self.region_start(region);
        let bytes = self.w.scale(thread, PIECE);
        self.w.at(start, bytes)
    }

    /// Each thread's registers into shared memory.
    fn park(&mut self, region: Region, regs: &[Ssa]) {
        let working = self.working_threads();
        let has = self.w.below(self.thread, Index::constant(working as i64));
        self.under(has, |l| {
            let at = l.parking(region, l.thread);
            for (j, four) in regs.chunks(4).enumerate() {
                let v = l.w.vector_of(four);
                let p = l.w.offset(at, (j * working * PIECE) as i64);
                l.w.store(v, p, PIECE);
            }
        });
    }

    /// What was parked; zeros in threads that have no rows.
    fn unpark(&mut self, v: Val, (region, count): (Region, usize)) -> Value {
        let working = self.working_threads();
        let has = self.w.below(self.thread, Index::constant(working as i64));
        let regs = match has {
            Cond::If(has) => {
                let regs = self.w.begin_choice(has, &vec![Ty::Scalar(Elem::F32); count]);
                let found = self.parked(region, count);
                self.w.give(&found);
                self.w.otherwise();
                let zero = self.w.floats(Ty::Scalar(Elem::F32), 0.0);
                self.w.give(&vec![zero; count]);
                self.w.end();
                regs
            }
            _ => self.parked(region, count),
        };
        self.carried_value(v, &mut &regs[..])
    }

    fn parked(&mut self, region: Region, count: usize) -> Vec<Ssa> {
        let working = self.working_threads();
        let at = self.parking(region, self.thread);
        let mut regs = vec![];
        for j in 0..count / 4 {
            let p = self.w.offset(at, (j * working * PIECE) as i64);
            let four = self.w.load(p, Ty::Vector(4, Elem::F32), PIECE);
            regs.extend((0..4).map(|i| self.w.extract(four, i)).collect::<Vec<_>>());
        }
        regs
    }

    fn unpark_all(&mut self, params: &[Val], parked: &[Option<(Region, usize)>]) {
        for (v, parked) in params.iter().zip(parked) {
            if let Some(parked) = parked {
                let value = self.unpark(*v, *parked);
                self.values.insert(*v, value);
            }
        }
    }

    // loops of products

    /// A loop of products.
    fn consume_passing(&mut self, [lo, hi]: [Index; 2], init: &[Val], body: &Block) -> Result<Vec<Value>, Error> {
        let turn = self.turn(body)?;
        let mut given = vec![];
        for v in init {
            let value = self.found(*v)?;
            given.extend(self.carried_regs(*v, &value)?);
        }
        let (from, to) = (self.w.ssa(lo), self.w.ssa(hi));
        let any = self.w.compare("slt", from, to);
        let results = self.w.begin_choice(any, &given.iter().map(|v| v.ty).collect::<Vec<_>>());
        let first = self.passed(Through::Passing);
        let given_back = match self.streams().share.residents {
            1 => self.consume_overlapped(&turn, body, [lo, hi], first, &given)?,
            _ => self.consume_in_turn(&turn, body, [lo, hi], first, &given)?,
        };
        self.w.give(&given_back);
        self.w.otherwise();
        self.w.give(&given);
        self.w.end();
        self.count_passed([lo, hi], turn.streams.len());
        let mut rest = &results[..];
        Ok(body.params[1..].iter().map(|v| self.carried_value(*v, &mut rest)).collect())
    }

    /// Iterations one after the other: what one warpgroup waits for, the multiprocessor's other CTA makes up for, and both fit
    /// into its registers. Hands back all carried registers.
    fn consume_in_turn(
        &mut self,
        turn: &Turn<'_>,
        body: &Block,
        [lo, hi]: [Index; 2],
        first: Ssa,
        given: &[Ssa],
    ) -> Result<Vec<Ssa>, Error> {
        let bounds = [self.w.ssa(lo), self.w.ssa(hi), self.w.int(1)];
        let open = self.w.begin_loop(bounds, given);
        let i = Index::value(open.i);
        self.enter(body, &open.carried.clone());
        let left = self.front(turn, body, [lo, i], first, None)?;
        let sums = self.back(turn, [lo, i], first, &left)?;
        let yields = self.with_sums(body, turn, &left.carried, &sums);
        Ok(self.w.end_loop(open, &yields))
    }

    /// At least one iteration: its second product runs while the next one's first is computed. Hands back all carried registers.
    fn consume_overlapped(
        &mut self,
        turn: &Turn<'_>,
        body: &Block,
        [lo, hi]: [Index; 2],
        first: Ssa,
        given: &[Ssa],
    ) -> Result<Vec<Ssa>, Error> {
        self.enter(body, given);
        let left = self.front(turn, body, [lo, lo], first, None)?;
        let start = self.w.add_const(lo, 1);
        let bounds = [self.w.ssa(start), self.w.ssa(hi), self.w.int(1)];
        let init: Vec<Ssa> = [&left.carried[..], &left.a, &left.sums].concat();
        let open = self.w.begin_loop(bounds, &init);
        let i = Index::value(open.i);
        let came = left.split(&open.carried);
        self.enter_carried(body, turn, &came.carried);
        let left = self.front(turn, body, [lo, i], first, Some(came))?;
        let yields: Vec<Ssa> = [&left.carried[..], &left.a, &left.sums].concat();
        let last = self.w.end_loop(open, &yields);
        let left = left.split(&last);
        let behind = self.w.index(rvllm_ir::tile::IndexOp::Sub, hi, Index::constant(1));
        let sums = self.back(turn, [lo, behind], first, &left)?;
        Ok(self.with_sums(body, turn, &left.carried, &sums))
    }

    /// Sorts a body's statements.
    fn turn<'b>(&self, body: &'b Block) -> Result<Turn<'b>, Error> {
        let plan = &self.streams().plan;
        let none = || self.unsupported("a loop of products without one that adds to what the loop carries");
        let second = body.stmts.iter().find(|s| plan.staged(s)).ok_or_else(none)?;
        let Inst::Mma { a, b, acc } = second.inst else { return Err(none()) };
        let sums = body.yields.iter().position(|v| *v == second.results[0]).ok_or_else(none)?;
        let mut after: HashSet<Val> = [body.params[1 + sums]].into();
        let (mut first, mut rest, mut late) = (vec![], vec![], vec![]);
        for s in &body.stmts {
            if s.results == second.results {
                continue;
            }
            if s.inst.operands().iter().any(|v| after.contains(v)) {
                after.extend(&s.results);
                late.push(s);
            } else if matches!(s.inst, Inst::Mma { .. }) {
                first.push(s);
            } else if !is_scalar(s) {
                rest.push(s);
            }
        }
        let simple = late.iter().all(|s| matches!(s.inst, Inst::Map(..) | Inst::Select { .. } | Inst::Broadcast(..)));
        let other = body.yields.iter().enumerate().any(|(i, v)| i != sums && after.contains(v));
        if !simple || other || first.len() != 1 || !after.contains(&acc) {
            return Err(none());
        }
        Ok(Turn { first, rest, late, second: [a, b, acc], sums, streams: self.passing(body) })
    }

    /// Carried values as a body begins with them.
    fn enter(&mut self, body: &Block, mut regs: &[Ssa]) {
        for v in &body.params[1..] {
            let value = self.carried_value(*v, &mut regs);
            self.values.insert(*v, value);
        }
    }

    /// The same but for the sums.
    fn enter_carried(&mut self, body: &Block, turn: &Turn<'_>, mut regs: &[Ssa]) {
        for (j, v) in body.params[1..].iter().enumerate().filter(|(j, _)| *j != turn.sums) {
            debug_assert!(j != turn.sums);
            let value = self.carried_value(*v, &mut regs);
            self.values.insert(*v, value);
        }
    }

    /// All carried registers in order, from those of all but the sums, and those.
    fn with_sums(&mut self, body: &Block, turn: &Turn<'_>, mut carried: &[Ssa], sums: &[Ssa]) -> Vec<Ssa> {
        let mut all = vec![];
        for (j, v) in body.params[1..].iter().enumerate() {
            if j == turn.sums {
                all.extend(sums);
                continue;
            }
            let n = self.carried_place(*v).map_or(1, |place| self.registers(place));
            let (own, rest) = carried.split_at(n);
            all.extend(own);
            carried = rest;
        }
        all
    }

    /// One iteration up to its second product; before that is computed, the one of the iteration before is begun, and before the
    /// sums are touched, it is done.
    fn front(
        &mut self,
        turn: &Turn<'_>,
        body: &Block,
        [lo, i]: [Index; 2],
        first: Ssa,
        came: Option<Left>,
    ) -> Result<Left, Error> {
        self.indices_of(i, body)?;
        let keys = self.slot_of(turn, turn.first[0], [lo, i], first)?;
        self.find_beside(turn, [lo, i], first)?;
        self.await_full(keys);
        let came = came.map(|c| Left { a: self.w.pinned(&c.a), sums: self.w.pinned(&c.sums), ..c });
        self.take_turn();
        self.w.begin_products();
        let scores = self.begin_first(turn.first[0], keys)?;
        self.w.commit_products();
        let under_way = match &came {
            Some(came) => {
                let before = self.w.index(rvllm_ir::tile::IndexOp::Sub, i, Index::constant(1));
                let slot = self.stream_slot(turn, turn.second[1], [lo, before], first)?;
                self.await_full(slot);
                self.w.begin_products();
                let sums = self.begin_second(turn.second[1], slot, (&came.a, &came.sums))?;
                self.w.commit_products();
                Some((slot, sums))
            }
            None => None,
        };
        self.give_turn();
        self.w.await_groups(usize::from(under_way.is_some()));
        let scores = self.w.pinned(&scores);
        let last = self.last_beside(turn);
        if last.is_none() {
            self.release(keys);
        }
        let ty = self.kernel.tile(turn.first[0].results[0]).clone();
        let place = Place::Fragments([ty.shape[0], ty.shape[1]]);
        let tile = self.tile_at(&ty.shape, ty.dtype, place, scores);
        self.values.insert(turn.first[0].results[0], Value::Tile(tile));
        for (j, s) in turn.rest.iter().enumerate() {
            self.stmt(s)?;
            if Some(j) == last {
                self.w.meet_warp();
                self.release(keys);
            }
        }
        let (mut staged, dtype) = self.staged(turn.second[0])?;
        let mut carried = vec![];
        for (j, v) in body.yields.iter().enumerate().filter(|(j, _)| *j != turn.sums) {
            let value = self.found(*v)?;
            carried.extend(self.carried_regs(body.params[1 + j], &value)?);
        }
        if let Some((slot, sums)) = under_way {
            // computed while the product runs, not after it; but its registers are its own until it is done
            staged = self.w.pinned(&staged);
            carried = self.w.pinned(&carried);
            // a loop, left at once: within straight code the assembler moves the wait before all of it
            self.await_full(slot);
            self.w.await_groups(0);
            let sums = self.w.pinned(&sums);
            self.release(slot);
            let param = body.params[1 + turn.sums];
            let value = self.carried_value(param, &mut &sums[..]);
            self.values.insert(param, value);
        }
        let a = staged.chunks(2).map(|pair| self.pack(pair, dtype)).collect();
        turn.late.iter().try_for_each(|s| self.stmt(s))?;
        let sums = self.found(turn.second[2])?;
        let sums = self.carried_regs(body.params[1 + turn.sums], &sums)?;
        Ok(Left { carried, a, sums })
    }

    /// The last iteration's second product.
    fn back(&mut self, turn: &Turn<'_>, at: [Index; 2], first: Ssa, left: &Left) -> Result<Vec<Ssa>, Error> {
        let slot = self.stream_slot(turn, turn.second[1], at, first)?;
        self.await_full(slot);
        let left = Left { carried: vec![], a: self.w.pinned(&left.a), sums: self.w.pinned(&left.sums) };
        self.w.begin_products();
        let sums = self.begin_second(turn.second[1], slot, (&left.a, &left.sums))?;
        self.w.await_products();
        let sums = self.w.pinned(&sums);
        self.release(slot);
        Ok(sums)
    }

    /// Slot of the right side of a product.
    fn slot_of(&mut self, turn: &Turn<'_>, s: &Stmt, at: [Index; 2], first: Ssa) -> Result<Slot, Error> {
        let Inst::Mma { b, .. } = s.inst else { return Err(self.unsupported("a product that is none")) };
        self.stream_slot(turn, b, at, first)
    }

    pub(super) fn stream_slot(&mut self, turn: &Turn<'_>, v: Val, at: [Index; 2], first: Ssa) -> Result<Slot, Error> {
        let operand = self.streamed(v).map(|s| s.operand);
        let order = turn.streams.iter().position(|s| Some(s.operand) == operand);
        let order = order.ok_or_else(|| self.misplaced(v, "an operand that the loop streams"))?;
        let n = self.stream_number(first, at, turn.streams.len(), order);
        Ok(self.slot(Through::Passing, n))
    }

    /// A computed operand, not yet rounded to its type, as registers of the instruction, 16 columns after 16.
    fn staged(&mut self, v: Val) -> Result<(Vec<Ssa>, DType), Error> {
        let tile = match self.operand(v)?.data {
            Matrix::Registers(tile) => tile,
            Matrix::Shared(_) => return Err(self.misplaced(v, "what was computed")),
        };
        let place = Place::Fragments([tile.shape[0], tile.shape[1]]);
        Ok((self.settle(&tile, place), tile.dtype))
    }
}

impl Left {
    /// Registers of another iteration, in the same order.
    fn split(&self, regs: &[Ssa]) -> Left {
        let (carried, rest) = regs.split_at(self.carried.len());
        let (a, sums) = rest.split_at(self.a.len());
        Left { carried: carried.to_vec(), a: a.to_vec(), sums: sums.to_vec() }
    }
}

/// The last loop of a block: products of what the block keeps are in loops.
fn last_loop(block: &Block) -> Option<usize> {
    block.stmts.iter().rposition(|s| matches!(s.inst, Inst::Pipeline { .. }))
}

/// Whether a statement gives an index.
fn is_scalar(s: &Stmt) -> bool {
    matches!(s.inst, Inst::ProgramId(_) | Inst::Const(_) | Inst::Sym(_) | Inst::Index(..) | Inst::Read { .. })
}

//! `pipeline`: a loop that carries registers, and whose operands are copied into a ring of shared memory ahead of their use.
//!
//! Where carried values are is found by lowering: where the body hands back a value that is spread otherwise than it came in, the
//! loop is lowered anew with that.

use super::{
    Lower, Value,
    operand::{Matrix, Operand, View},
    place::Place,
    tile::{Data, Tile},
};
use crate::{Error, bounds::Cond, index::Index, text::Ssa};
use rvllm_ir::tile::{Block, IndexOp, Inst, Layout, Stmt, Type, Val};
use std::collections::HashMap;

/// How a carried value is held in a loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    Index,
    Splat,
    At(Place),
}

impl Held {
    fn of(v: &Value, usual: Place) -> Held {
        match v {
            Value::Index(_) | Value::Operand(_) => Held::Index,
            Value::Tile(Tile { data: Data::Splat(_), .. }) => Held::Splat,
            Value::Tile(Tile { data: Data::Ramp { .. }, .. }) => Held::At(usual),
            Value::Tile(Tile { data: Data::Regs(place, _), .. }) => Held::At(*place),
        }
    }

    /// What holds both.
    fn join(self, other: Held) -> Held {
        match (self, other) {
            (Held::At(a), Held::At(b)) if b.rank() > a.rank() => other,
            (Held::Splat, Held::At(_)) => other,
            _ => self,
        }
    }
}

/// An operand that is copied ahead of its use.
struct Ahead {
    result: Val,
    tensor: usize,
    at: Vec<Val>,
    view: View,
}

/// Lowerings of one loop until its values stay where they are: each moves one towards [`Place::Fragments`].
const ATTEMPTS: usize = 8;

impl Lower<'_> {
    /// Lowers a loop; hands back what the carried values are after it.
    pub(crate) fn pipeline(
        &mut self,
        [lo, hi]: [Val; 2],
        stages: usize,
        init: &[Val],
        body: &Block,
    ) -> Result<Vec<Value>, Error> {
        let bounds = [self.index(lo)?, self.index(hi)?];
        self.settle_loop(init, |l, values, held| l.iterate(bounds, stages, values, held, body))
    }

    /// Lowers a loop as often as it takes to find how its carried values are held: `lower` hands back what they are after the
    /// loop, and what the body yields.
    pub(crate) fn settle_loop(
        &mut self,
        init: &[Val],
        mut lower: impl FnMut(&mut Self, &[Value], &[Held]) -> Result<(Vec<Value>, Vec<Value>), Error>,
    ) -> Result<Vec<Value>, Error> {
        let usual = init.iter().map(|v| self.usual_place(*v)).collect::<Vec<_>>();
        let values = init.iter().map(|v| self.carriable(*v)).collect::<Result<Vec<_>, _>>()?;
        let mut held: Vec<Held> = values.iter().zip(&usual).map(|(v, p)| Held::of(v, *p)).collect();
        for _ in 0..ATTEMPTS {
            let mut attempt = self.clone();
            let (results, found) = lower(&mut attempt, &values, &held)?;
            let found: Vec<Held> = found.iter().zip(&usual).map(|(v, p)| Held::of(v, *p)).collect();
            let joined: Vec<Held> = held.iter().zip(&found).map(|(h, f)| h.join(*f)).collect();
            if joined == held {
                *self = attempt;
                return Ok(results);
            }
            held = joined;
        }
        Err(self.unsupported("a loop whose values keep moving between threads"))
    }

    fn usual_place(&self, v: Val) -> Place {
        match self.kernel.ty(v) {
            Type::Tile(t) => Place::of(t),
            Type::Index => Place::Runs([1, 1]),
        }
    }

    fn carriable(&self, v: Val) -> Result<Value, Error> {
        match self.values.get(&v) {
            Some(value @ (Value::Index(_) | Value::Tile(_))) => Ok(value.clone()),
            _ => Err(self.misplaced(v, "something that a pipeline can carry")),
        }
    }

    /// The loop, with the carried values held so: what they are after it, and what the body handed back.
    fn iterate(
        &mut self,
        [lo, hi]: [Index; 2],
        stages: usize,
        values: &[Value],
        held: &[Held],
        body: &Block,
    ) -> Result<(Vec<Value>, Vec<Value>), Error> {
        let mut init: Vec<Ssa> = values.iter().zip(held).flat_map(|(v, h)| self.parts(v, *h)).collect();
        let ahead = self.ahead(stages, body);
        self.settle_shared();
        self.begin_copies(&ahead, lo, hi, stages, body)?;
        let looked_up = looked_up(&ahead, body);
        let first = self.w.add_const(lo, stages - 1);
        let any = self.w.below(lo, hi);
        init.extend(self.look_up(&looked_up, first, hi, body, any)?);
        let bounds = [self.w.ssa(lo), self.w.ssa(hi), self.w.int(1)];
        let open = self.w.begin_loop(bounds, &init);
        let i = Index::value(open.i).bounded(hi.as_const().map(|n| n - 1));
        self.values.insert(body.params[0], Value::Index(i));
        let carried = open.carried.clone();
        let (carried, known) = carried.split_at(carried.len() - looked_up.len());
        let inside = self.rebuild(values, held, carried);
        self.values.extend(body.params[1..].iter().copied().zip(inside));
        let known = looked_up.iter().copied().zip(known.iter().map(|v| Index::value(*v))).collect();
        self.next_copies(&ahead, [i, lo, hi], stages, body, known)?;
        let next = self.w.add_const(i, stages);
        let later = self.look_up(&looked_up, next, hi, body, Cond::Always)?;
        self.block(body)?;
        let yields = self.yields(body)?;
        let mut parts: Vec<Ssa> = yields.iter().zip(held).flat_map(|(v, h)| self.parts(v, *h)).collect();
        parts.extend(later);
        self.settle_shared();
        let results = self.w.end_loop(open, &parts);
        for a in &ahead {
            self.read_region(a.view.region);
        }
        Ok((self.rebuild(values, held, &results), yields))
    }

    pub(crate) fn yields(&self, body: &Block) -> Result<Vec<Value>, Error> {
        let value = |v: &Val| self.values.get(v).cloned().ok_or_else(|| self.misplaced(*v, "a value"));
        body.yields.iter().map(value).collect()
    }

    /// SSA values of a carried value.
    pub(crate) fn parts(&mut self, v: &Value, held: Held) -> Vec<Ssa> {
        match (v, held) {
            (Value::Index(i), _) => vec![self.w.ssa(*i)],
            (Value::Tile(Tile { data: Data::Splat(v), .. }), Held::Splat) => vec![*v],
            (Value::Tile(t), Held::At(place)) => self.settle(t, place),
            // the attempt is thrown away: only the number counts
            (Value::Tile(Tile { data: Data::Regs(_, regs), .. }), _) => regs[..1].to_vec(),
            (Value::Tile(t), _) => self.settle(t, Place::Runs([1, 1])),
            (Value::Operand(_), _) => vec![],
        }
    }

    /// The carried values over other SSA values.
    pub(crate) fn rebuild(&mut self, like: &[Value], held: &[Held], parts: &[Ssa]) -> Vec<Value> {
        let mut rest = parts;
        let mut out = vec![];
        for (v, h) in like.iter().zip(held) {
            let n = if let Held::At(place) = h { self.registers(*place) } else { 1 };
            let (own, tail) = rest.split_at(n);
            rest = tail;
            out.push(match (v, h) {
                (Value::Tile(t), Held::At(place)) => Value::Tile(self.tile_at(&t.shape, t.dtype, *place, own.to_vec())),
                (Value::Tile(t), _) => Value::Tile(Tile { data: Data::Splat(own[0]), ..t.clone() }),
                _ => Value::Index(Index::value(own[0])),
            });
        }
        out
    }

    /// Operands of the body that can be copied ahead, with a ring of `stages` places each.
    fn ahead(&mut self, stages: usize, body: &Block) -> Vec<Ahead> {
        let mut found = vec![];
        for s in &body.stmts {
            let Inst::Load { tensor, at } = &s.inst else { continue };
            let ty = self.kernel.tile(s.results[0]);
            if stages < 2 || ty.layout != Layout::Operand || !at.iter().all(|v| self.foreseen(*v, body)) {
                continue;
            }
            let form = self.form(*tensor, &ty.shape.clone());
            let region = self.region(stages * form.bytes().next_multiple_of(128));
            let start = self.region_start(region);
            found.push(Ahead {
                result: s.results[0],
                tensor: *tensor,
                at: at.clone(),
                view: View { region, start, form },
            });
        }
        found
    }

    /// Fills the ring but for its last place.
    fn begin_copies(
        &mut self,
        ahead: &[Ahead],
        lo: Index,
        hi: Index,
        stages: usize,
        body: &Block,
    ) -> Result<(), Error> {
        if ahead.is_empty() {
            return Ok(());
        }
        for a in ahead {
            for slot in 0..stages {
                let view = self.place_in_ring(a.view, Index::constant(slot as i64));
                self.pad(view);
            }
        }
        for slot in 0..stages - 1 {
            let i = self.w.add_const(lo, slot);
            self.copy_iteration(ahead, i, hi, Index::constant(slot as i64), body, HashMap::new())?;
        }
        Ok(())
    }

    /// What an iteration reads of tables to know its operands' places: one iteration before its copies begin, so that nothing
    /// waits for it. Past the last iteration, what that reads; anything where there is not `any` iteration.
    fn look_up(&mut self, reads: &[Val], i: Index, hi: Index, body: &Block, any: Cond) -> Result<Vec<Ssa>, Error> {
        if reads.is_empty() {
            return Ok(vec![]);
        }
        let last = self.w.index(IndexOp::Sub, hi, Index::constant(1));
        let i = self.w.index(IndexOp::Min, i, last);
        let i = self.w.index(IndexOp::Max, i, Index::constant(0));
        let mut later = HashMap::from([(body.params[0], i)]);
        let mut out = vec![];
        for v in reads {
            let index = self.later(*v, body, &mut later, any)?;
            out.push(self.w.ssa(index));
        }
        Ok(out)
    }

    /// Waits for this iteration's operands and begins to copy those that the last place of the ring is free for.
    fn next_copies(
        &mut self,
        ahead: &[Ahead],
        [i, lo, hi]: [Index; 3],
        stages: usize,
        body: &Block,
        known: HashMap<Val, Index>,
    ) -> Result<(), Error> {
        if ahead.is_empty() {
            return Ok(());
        }
        self.await_copies(stages - 2);
        self.barrier();
        let done = self.w.index(IndexOp::Sub, i, lo);
        let later = self.w.add_const(done, stages - 1);
        let slot = self.w.rem(later, stages);
        let next = self.w.add_const(i, stages - 1);
        self.copy_iteration(ahead, next, hi, slot, body, known)?;
        let slot = self.w.rem(done, stages);
        for a in ahead {
            let view = self.place_in_ring(a.view, slot);
            let ty = self.kernel.tile(a.result).clone();
            let operand = Operand { shape: ty.shape, dtype: ty.dtype, data: Matrix::Shared(view), ahead: true };
            self.values.insert(a.result, Value::Operand(operand));
        }
        Ok(())
    }

    fn place_in_ring(&mut self, view: View, slot: Index) -> View {
        let bytes = self.w.scale(slot, view.form.bytes().next_multiple_of(128));
        let start = self.w.at(view.start, bytes);
        View { start, ..view }
    }

    /// Begins to copy what iteration `i` reads, where there is such an iteration.
    fn copy_iteration(
        &mut self,
        ahead: &[Ahead],
        i: Index,
        hi: Index,
        slot: Index,
        body: &Block,
        known: HashMap<Val, Index>,
    ) -> Result<(), Error> {
        let exists = self.w.below(i, hi);
        let mut result = Ok(());
        self.under(exists, |l| {
            let mut later = known;
            later.insert(body.params[0], i);
            for a in ahead {
                result = l.copy_later(a, slot, body, &mut later);
                if result.is_err() {
                    return;
                }
            }
        });
        self.commit();
        result
    }

    fn copy_later(
        &mut self,
        a: &Ahead,
        slot: Index,
        body: &Block,
        later: &mut HashMap<Val, Index>,
    ) -> Result<(), Error> {
        let at = a.at.iter().map(|v| self.later(*v, body, later, Cond::Always)).collect::<Result<Vec<_>, _>>()?;
        let view = self.place_in_ring(a.view, slot);
        let shape = self.kernel.tile(a.result).shape.clone();
        self.copy(a.tensor, &at, &shape, view);
        Ok(())
    }

    /// Whether an index value of the body is known ahead: it depends on nothing that is carried.
    fn foreseen(&self, v: Val, body: &Block) -> bool {
        if body.params[1..].contains(&v) {
            return false;
        }
        match definition(v, body) {
            Some(Stmt { inst: Inst::Index(_, a, b), .. }) => self.foreseen(*a, body) && self.foreseen(*b, body),
            Some(Stmt { inst: Inst::Read { at, .. }, .. }) => at.iter().all(|v| self.foreseen(*v, body)),
            Some(Stmt { inst: Inst::Const(_) | Inst::Sym(_) | Inst::ProgramId(_), .. }) | None => true,
            Some(_) => false,
        }
    }

    /// An index value as a later iteration has it; anything unless `valid`.
    fn later(&mut self, v: Val, body: &Block, later: &mut HashMap<Val, Index>, valid: Cond) -> Result<Index, Error> {
        if let Some(i) = later.get(&v) {
            return Ok(*i);
        }
        let value = match definition(v, body).map(|s| &s.inst) {
            Some(Inst::Index(op, a, b)) => {
                let (a, b) = (self.later(*a, body, later, valid)?, self.later(*b, body, later, valid)?);
                self.w.index(*op, a, b)
            }
            Some(Inst::Read { tensor, at }) => {
                let at = at.iter().map(|v| self.later(*v, body, later, valid)).collect::<Result<Vec<_>, _>>()?;
                let mut p = self.element(*tensor, &at);
                if let Cond::If(c) = valid {
                    p = self.w.select(c, p, self.pointers[*tensor]);
                }
                self.w.load_index(p)
            }
            Some(inst) => self.scalar(inst)?,
            None => self.index(v)?,
        };
        later.insert(v, value);
        Ok(value)
    }
}

/// The table entries that the places of operands depend on.
fn looked_up(ahead: &[Ahead], body: &Block) -> Vec<Val> {
    let mut found = vec![];
    let mut rest: Vec<Val> = ahead.iter().flat_map(|a| a.at.clone()).collect();
    while let Some(v) = rest.pop() {
        match definition(v, body) {
            Some(_) if found.contains(&v) => {}
            Some(s) if matches!(s.inst, Inst::Read { .. }) => found.push(v),
            Some(s) => rest.extend(s.inst.operands()),
            None => {}
        }
    }
    found
}

fn definition(v: Val, body: &Block) -> Option<&Stmt> {
    body.stmts.iter().find(|s| s.results.contains(&v))
}

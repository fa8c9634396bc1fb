//! `pipeline`: a loop that carries vectors, prefetches what later iterations read, and has its last iteration apart where
//! only that one meets a tensor's end.

use super::{Lower, Value, tile::Tile};
use crate::{Error, index::Index, text::Ssa};
use rvllm_ir::{
    tile::{Block, IndexOp, Inst, Layout, Stmt, Val},
    types::Dim,
};
use std::collections::{HashMap, HashSet};

impl Lower<'_> {
    /// Lowers a loop; hands back what the carried values are after it.
    pub(crate) fn pipeline(
        &mut self,
        [lo, hi]: [Val; 2],
        stages: usize,
        init: &[Val],
        body: &Block,
    ) -> Result<Vec<Value>, Error> {
        let bounds = [lo, hi];
        let (lo, hi) = (self.index(lo)?, self.index(hi)?);
        let peel = self.peels(lo, hi, body);
        if self.worked_apart(body, peel) {
            let part = |(j, v): (usize, &Val)| self.pipeline(bounds, stages, &[*v], &part_of(body, j));
            return Ok(init.iter().enumerate().map(part).collect::<Result<Vec<_>, _>>()?.concat());
        }
        let mut carried = vec![];
        for (j, v) in init.iter().enumerate() {
            carried.push(if self.is_large(*v) { self.stored(body, j, *v, peel)? } else { self.carriable(*v)? });
        }
        self.enter_amx(body, &mut carried, peel)?;
        let main = if peel { self.w.index(IndexOp::Sub, hi, Index::constant(1)) } else { hi };
        let lo = if carried.iter().any(|v| matches!(v, Value::Stored(_))) && lo.as_const() < main.as_const() {
            // of its own, as it finds nothing in memory
            carried = self.iteration_ahead(lo, hi, stages, &carried, body)?;
            self.w.add_const(lo, 1)
        } else {
            lo
        };
        if main.as_const().is_none() || lo.as_const() < main.as_const() {
            carried = self.iterate([lo, main], stages, carried, body)?;
        }
        if peel {
            carried = self.iteration(main, 1, &carried, body)?;
        }
        Ok(carried.into_iter().map(|v| self.leave_amx(v)).collect())
    }

    fn carriable(&self, v: Val) -> Result<Value, Error> {
        match self.values.get(&v) {
            Some(value @ (Value::Index(_) | Value::Tile(_))) => Ok(value.clone()),
            _ => Err(self.misplaced(v, "something that a pipeline can carry")),
        }
    }

    fn iterate(
        &mut self,
        [lo, hi]: [Index; 2],
        stages: usize,
        carried: Vec<Value>,
        body: &Block,
    ) -> Result<Vec<Value>, Error> {
        let init: Vec<Ssa> = carried.iter().flat_map(|v| self.parts(v)).collect();
        let bounds = [self.w.ssa(lo), self.w.ssa(hi), self.w.int(1)];
        let open = self.w.begin_loop(bounds, &init);
        let inside = rebuild(&carried, &open.carried);
        let i = Index::value(open.i).bounded(hi.as_const().map(|n| n - 1));
        self.values.insert(body.params[0], Value::Index(i));
        let yields = self.iteration_ahead(i, hi, stages, &inside, body)?;
        let yields: Vec<Ssa> = yields.iter().flat_map(|v| self.parts(v)).collect();
        let results = self.w.end_loop(open, &yields);
        Ok(rebuild(&carried, &results))
    }

    fn iteration_ahead(
        &mut self,
        i: Index,
        hi: Index,
        stages: usize,
        carried: &[Value],
        body: &Block,
    ) -> Result<Vec<Value>, Error> {
        self.enter(i, carried, body);
        for s in &body.stmts {
            self.stmt(s)?;
            if stages > 1 {
                self.look_ahead(s, body, [i, hi], stages - 1);
            }
        }
        self.yields(body)
    }

    /// One iteration outside of the loop.
    fn iteration(&mut self, i: Index, stages: usize, carried: &[Value], body: &Block) -> Result<Vec<Value>, Error> {
        self.iteration_ahead(i, i, stages, carried, body)
    }

    fn enter(&mut self, i: Index, carried: &[Value], body: &Block) {
        self.values.insert(body.params[0], Value::Index(i));
        self.values.extend(body.params[1..].iter().copied().zip(carried.iter().cloned()));
    }

    fn yields(&self, body: &Block) -> Result<Vec<Value>, Error> {
        let value = |v: &Val| self.values.get(v).cloned().ok_or_else(|| self.misplaced(*v, "a value"));
        body.yields.iter().map(value).collect()
    }

    /// SSA values of what is carried.
    fn parts(&mut self, v: &Value) -> Vec<Ssa> {
        match v {
            Value::Index(i) => vec![self.w.ssa(*i)],
            Value::Tile(t) => t.vecs.clone(),
            Value::Amx(a) => a.tiles.clone(),
            Value::Operand(_) | Value::Stored(_) | Value::Deferred => vec![],
        }
    }

    /// Whether the last iteration differs: the trip count is known, and some access whose place depends on the index
    /// does not divide its tensor.
    fn peels(&self, lo: Index, hi: Index, body: &Block) -> bool {
        let known = matches!((lo.as_const(), hi.as_const()), (Some(lo), Some(hi)) if lo < hi);
        let mut moving = HashSet::from([body.params[0]]);
        known && body.stmts.iter().any(|s| self.meets_end(s, &mut moving))
    }

    fn meets_end(&self, s: &Stmt, moving: &mut HashSet<Val>) -> bool {
        let (tensor, at, tile) = match &s.inst {
            Inst::Index(_, a, b) => {
                if moving.contains(a) || moving.contains(b) {
                    moving.extend(&s.results);
                }
                return false;
            }
            Inst::Load { tensor, at } => (*tensor, at, s.results[0]),
            Inst::Store { tensor, at, value, .. } => (*tensor, at, *value),
            _ => return false,
        };
        let dims = &self.kernel.params[tensor].ty.dims;
        let shape = &self.kernel.tile(tile).shape;
        let skipped = dims.len() - shape.len();
        let uneven = |((dim, at), size): ((&Dim, &Val), &usize)| {
            moving.contains(at) && dim.constant().is_some_and(|n| !n.is_multiple_of(*size))
        };
        dims[skipped..].iter().zip(&at[skipped..]).zip(shape).any(uneven)
    }

    /// Gives an operand just loaded the address of the one that `distance` iterations later reads.
    fn look_ahead(&mut self, s: &Stmt, body: &Block, [i, hi]: [Index; 2], distance: usize) {
        let Inst::Load { tensor, at } = &s.inst else { return };
        let ty = self.kernel.tile(s.results[0]);
        if ty.layout != Layout::Operand {
            return;
        }
        if !at.iter().any(|v| self.depends(*v, body)) {
            return;
        }
        let next = self.w.add_const(i, distance);
        let wraps = self.next_program_wraps(body, at);
        // an index past the end would read past a table
        let next = if at.iter().any(|v| self.reads(*v, body)) {
            let last = self.w.index(IndexOp::Sub, hi, Index::constant(1));
            self.w.index(IndexOp::Min, next, last)
        } else {
            next
        };
        let mut later = HashMap::from([(body.params[0], next)]);
        let at: Option<Vec<Index>> = at.iter().map(|v| self.later(*v, body, &mut later)).collect();
        let Some(at) = at else { return };
        let shape = ty.shape.clone();
        let Ok(address) = self.place(*tensor, &at, &shape) else { return };
        let ahead = match wraps.and_then(|at| self.place(*tensor, &at, &shape).ok()) {
            None => address.base,
            Some(first) => {
                let (next, hi) = (self.w.ssa(next), self.w.ssa(hi));
                let inside = self.w.compare("slt", next, hi);
                self.w.select(inside, address.base, first.base)
            }
        };
        if let Some(Value::Operand(view)) = self.values.get_mut(&s.results[0]) {
            view.ahead = Some(ahead);
        }
    }

    /// Where the next program's first iteration loads, for loops whose accumulators are in memory: they read so much in
    /// an iteration that the first of a program is worth asking for. The others run on from one program's end.
    fn next_program_wraps(&mut self, body: &Block, at: &[Val]) -> Option<Vec<Index>> {
        let stored = body.params.iter().any(|v| matches!(self.values.get(v), Some(Value::Stored(_))));
        if !stored {
            return None;
        }
        let mut known = HashMap::from([(body.params[0], Index::constant(0))]);
        at.iter().map(|v| self.of_next_program(*v, body, &mut known)).collect()
    }

    /// An index value as the next program has it; `None` where more than arithmetic on its place in the grid is needed.
    fn of_next_program(&mut self, v: Val, body: &Block, known: &mut HashMap<Val, Index>) -> Option<Index> {
        if let Some(i) = known.get(&v) {
            return Some(*i);
        }
        let kernel = self.kernel;
        let value = match self.definition(v, body).or_else(|| self.definition(v, &kernel.body))? {
            Inst::ProgramId(d) => self.next_program[*d],
            Inst::Const(c) => Index::constant(*c),
            Inst::Index(op, a, b) => {
                let (op, a, b) = (*op, *a, *b);
                let (a, b) = (self.of_next_program(a, body, known)?, self.of_next_program(b, body, known)?);
                self.w.index(op, a, b)
            }
            _ => return None,
        };
        known.insert(v, value);
        Some(value)
    }

    fn definition<'b>(&self, v: Val, body: &'b Block) -> Option<&'b Inst> {
        body.stmts.iter().find(|s| s.results.contains(&v)).map(|s| &s.inst)
    }

    fn depends(&self, v: Val, body: &Block) -> bool {
        v == body.params[0] || self.sources(v, body).iter().any(|v| self.depends(*v, body))
    }

    fn reads(&self, v: Val, body: &Block) -> bool {
        let read = matches!(self.definition(v, body), Some(Inst::Read { .. }));
        read || self.sources(v, body).iter().any(|v| self.reads(*v, body))
    }

    /// What an index value of the body is computed from.
    fn sources(&self, v: Val, body: &Block) -> Vec<Val> {
        match self.definition(v, body) {
            Some(Inst::Index(_, a, b)) => vec![*a, *b],
            Some(Inst::Read { at, .. }) => at.clone(),
            _ => vec![],
        }
    }

    /// An index value as a later iteration has it; `None` where that depends on what is carried.
    fn later(&mut self, v: Val, body: &Block, later: &mut HashMap<Val, Index>) -> Option<Index> {
        if let Some(i) = later.get(&v) {
            return Some(*i);
        }
        if body.params.contains(&v) {
            return None;
        }
        let value = match self.definition(v, body) {
            Some(Inst::Index(op, a, b)) => {
                let (a, b) = (self.later(*a, body, later)?, self.later(*b, body, later)?);
                self.w.index(*op, a, b)
            }
            Some(Inst::Read { tensor, at }) => {
                let at = at.iter().map(|v| self.later(*v, body, later)).collect::<Option<Vec<_>>>()?;
                let p = self.element(*tensor, &at);
                self.w.load_index(p)
            }
            _ => self.index(v).ok()?,
        };
        later.insert(v, value);
        Some(value)
    }
}

/// The part of a loop's body that carried value `j` needs, where it needs no other.
fn part_of(body: &Block, j: usize) -> Block {
    let mut needed = HashSet::from([body.yields[j]]);
    let mut stmts = vec![];
    for s in body.stmts.iter().rev() {
        if s.results.iter().any(|v| needed.contains(v)) {
            needed.extend(s.inst.operands());
            stmts.push(s.clone());
        }
    }
    stmts.reverse();
    Block { params: vec![body.params[0], body.params[j + 1]], stmts, yields: vec![body.yields[j]] }
}

/// The carried values over other SSA values.
fn rebuild(like: &[Value], parts: &[Ssa]) -> Vec<Value> {
    let mut rest = parts;
    let mut take = |n: usize| {
        let (head, tail) = rest.split_at(n);
        rest = tail;
        head.to_vec()
    };
    let one = |v: &Value| match v {
        Value::Index(_) => Value::Index(Index::value(take(1)[0])),
        Value::Tile(t) => Value::Tile(Tile { vecs: take(t.vecs.len()), ..t.clone() }),
        Value::Amx(a) => Value::Amx(super::amx::Accumulator { tiles: take(a.tiles.len()), ..a.clone() }),
        Value::Operand(_) | Value::Stored(_) | Value::Deferred => v.clone(),
    };
    like.iter().map(one).collect()
}

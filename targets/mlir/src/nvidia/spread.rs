//! Loops that a cluster of CTAs shares: of a loop whose iterations may all run ahead and hold a loop of their own, each CTA
//! works on one iteration; then the first joins what they found, in the loop's order.
//!
//! Invariants:
//! - the joining instructions are those that depend on carried values; all others belong to one iteration alone;
//! - the same instructions give the same values in the same threads as in a loop: no bit depends on how a loop is lowered;
//! - a CTA's memory is read while the CTA waits.

use super::{
    Lower, Value, any, for_each,
    tile::{Data, Tile},
};
use crate::{
    Error,
    index::Index,
    text::{Elem, Ssa, Ty},
};
use rvllm_ir::{
    tile::{Block, IndexOp, Inst, Kernel, Stmt, Val},
    types::DType,
};
use std::collections::HashSet;

/// CTAs that a cluster may have everywhere.
const MAX_CLUSTER: usize = 8;

/// CTAs that share each program of a kernel: the iterations of its first loop that is to be spread; 1 where there is none.
pub(crate) fn cluster(kernel: &Kernel) -> usize {
    let mut found = vec![];
    for_each(&kernel.body, &mut |s| found.extend(parts(kernel, s)));
    found.first().copied().unwrap_or(1)
}

/// Iterations, at most, of a loop that is to be spread.
pub(crate) fn parts(kernel: &Kernel, s: &Stmt) -> Option<usize> {
    let Inst::Pipeline { lo, hi, stages, body, .. } = &s.inst else { return None };
    let whole = constant(kernel, *lo) == Some(0) && most(kernel, *hi) == Some(*stages as i64);
    let nested = any(body, &|s| matches!(s.inst, Inst::Pipeline { .. }));
    let fits = (2..=MAX_CLUSTER).contains(stages) && stages.is_power_of_two();
    (whole && nested && fits && Parts::of(body).is_some()).then_some(*stages)
}

fn constant(kernel: &Kernel, v: Val) -> Option<i64> {
    match definition(kernel, v)? {
        Inst::Const(c) => Some(*c),
        _ => None,
    }
}

/// What an index is at most: a constant, or the smaller of something and one.
fn most(kernel: &Kernel, v: Val) -> Option<i64> {
    match definition(kernel, v)? {
        Inst::Index(IndexOp::Min, _, most) => constant(kernel, *most),
        _ => constant(kernel, v),
    }
}

fn definition(kernel: &Kernel, v: Val) -> Option<&Inst> {
    let mut found = None;
    for_each(&kernel.body, &mut |s| found = found.or(s.results.contains(&v).then_some(&s.inst)));
    found
}

/// The instructions of an iteration.
struct Parts<'k> {
    own: Vec<&'k Stmt>,
    joining: Vec<&'k Stmt>,
}

impl<'k> Parts<'k> {
    /// `None` where a joining instruction touches memory or loops.
    fn of(body: &'k Block) -> Option<Parts<'k>> {
        let mut carried: HashSet<Val> = body.params[1..].iter().copied().collect();
        let mut parts = Parts { own: vec![], joining: vec![] };
        for s in &body.stmts {
            if !s.inst.operands().iter().any(|v| carried.contains(v)) {
                parts.own.push(s);
                continue;
            }
            let simple = matches!(
                s.inst,
                Inst::Map(..) | Inst::Select { .. } | Inst::Broadcast(..) | Inst::Cast(_) | Inst::Reshape(_)
            );
            if !simple {
                return None;
            }
            carried.extend(&s.results);
            parts.joining.push(s);
        }
        Some(parts)
    }

    /// What joining reads of an iteration's own values, constants apart: those every CTA has.
    fn exchanged(&self, body: &Block) -> Vec<Val> {
        let mut seen = HashSet::new();
        let read = self.joining.iter().flat_map(|s| s.inst.operands()).chain(body.yields.iter().copied());
        let own = |v: &Val| {
            let made = self.own.iter().find(|s| s.results.contains(v));
            made.is_some_and(|s| !matches!(s.inst, Inst::Full(_) | Inst::Const(_)))
        };
        read.filter(|v| own(v) && seen.insert(*v)).collect()
    }
}

/// An iteration's value in the shared memory of its CTA.
struct Sent {
    value: Val,
    tile: Tile,
    first: usize,
    count: usize,
}

impl Lower<'_> {
    /// Lowers a loop of `n` iterations, at most one for each CTA; hands back what the carried values are after it, which only the
    /// first CTA has.
    pub(crate) fn spread(&mut self, n: Index, init: &[Val], body: &Block) -> Result<Vec<Value>, Error> {
        let Some(parts) = Parts::of(body) else { return Err(self.unsupported("a loop spread over CTAs")) };
        let rank = self.rank;
        self.values.insert(body.params[0], Value::Index(rank));
        for s in &parts.own {
            self.stmt(s)?;
        }
        let results = match n.as_const() {
            Some(_) => self.exchange(n, init, body, &parts)?,
            None => self.exchange_if_many(n, init, body, &parts)?,
        };
        self.leads = Some(self.w.below(rank, Index::constant(1)));
        Ok(results)
    }

    /// Whether more than one CTA of the cluster has an iteration of the loop.
    pub(crate) fn many(&mut self, n: Index) -> Ssa {
        let (n, one) = (self.w.ssa(n), self.w.int(1));
        self.w.compare("sgt", n, one)
    }

    /// Of one iteration, which is the first CTA's, nothing is exchanged.
    fn exchange_if_many(
        &mut self,
        n: Index,
        init: &[Val],
        body: &Block,
        parts: &Parts<'_>,
    ) -> Result<Vec<Value>, Error> {
        let many = self.many(n);
        let mut types = vec![];
        for v in init {
            let value = self.found(*v)?;
            types.extend(self.carried_regs(*v, &value)?.iter().map(|r| r.ty));
        }
        let values = self.values.clone();
        let results = self.w.begin_choice(many, &types);
        let joined = self.exchange(n, init, body, parts)?;
        self.give_carried(init, &joined)?;
        self.values = values;
        self.w.otherwise();
        for (param, v) in body.params[1..].iter().zip(init) {
            let value = self.found(*v)?;
            self.values.insert(*param, value);
        }
        parts.joining.iter().try_for_each(|s| self.stmt(s))?;
        let own = body.yields.iter().map(|v| self.found(*v)).collect::<Result<Vec<_>, _>>()?;
        self.give_carried(init, &own)?;
        self.w.end();
        let mut rest = &results[..];
        Ok(init.iter().map(|v| self.carried_value(*v, &mut rest)).collect())
    }

    fn give_carried(&mut self, like: &[Val], values: &[Value]) -> Result<(), Error> {
        let mut regs = vec![];
        for (v, value) in like.iter().zip(values) {
            regs.extend(self.carried_regs(*v, value)?);
        }
        self.w.give(&regs);
        Ok(())
    }

    /// Exchanges what the CTAs found; the first joins it.
    fn exchange(&mut self, n: Index, init: &[Val], body: &Block, parts: &Parts<'_>) -> Result<Vec<Value>, Error> {
        let exchanged = parts.exchanged(body);
        let (sent, start) = self.send(&exchanged)?;
        self.cluster_barrier();
        let first = self.w.below(self.rank, Index::constant(1));
        let (all, none) = (self.w.ssa(n), self.w.int(0));
        let trips = match first {
            crate::bounds::Cond::If(c) => self.w.select(c, all, none),
            _ => all,
        };
        let results = self.join(trips, init, body, parts, &sent, start)?;
        self.cluster_barrier();
        Ok(results)
    }

    /// Waits for the other CTAs of the cluster; what each wrote is then there for all.
    pub(crate) fn cluster_barrier(&mut self) {
        self.w.effect("nvvm.cluster.arrive {aligned}");
        self.w.effect("nvvm.cluster.wait {aligned}");
        self.settle_shared();
    }

    /// Writes values to shared memory, register by register, thread by thread of those that have rows.
    fn send(&mut self, values: &[Val]) -> Result<(Vec<Sent>, Ssa), Error> {
        let mut sent = vec![];
        let mut regs = vec![];
        for v in values {
            let tile = self.tile(*v)?;
            let own = match &tile.data {
                Data::Splat(v) => vec![*v],
                Data::Regs(_, regs) => regs.clone(),
                Data::Ramp { .. } => return Err(self.misplaced(*v, "a tile in registers")),
            };
            sent.push(Sent { value: *v, tile, first: regs.len(), count: own.len() });
            regs.extend(own);
        }
        let threads = self.working_threads();
        let region = self.region(4 * threads * regs.len());
        self.write_region(region);
        let start = self.region_start(region);
        let last = Index::constant(threads as i64 - 1);
        let thread = self.w.index(IndexOp::Min, self.thread, last);
        let bytes = self.w.scale(thread, 4);
        let mine = self.w.at(start, bytes);
        let works = self.w.below(self.thread, Index::constant(threads as i64));
        self.under(works, |l| {
            for (i, v) in regs.into_iter().enumerate() {
                let p = l.w.offset(mine, (4 * i * threads) as i64);
                l.w.store(v, p, 4);
            }
        });
        Ok((sent, mine))
    }

    /// What CTA `from` sent; anything in threads that have no rows.
    fn receive(&mut self, sent: &[Sent], start: Ssa, from: Ssa) {
        let threads = self.working_threads();
        let rank = self.w.convert("arith.trunci", from, Ty::Scalar(Elem::I32));
        let theirs = self.w.intrinsic("llvm.nvvm.mapa.shared.cluster", &[start, rank], Ty::Cluster);
        for s in sent {
            let elem = if s.tile.dtype == DType::I32 { Elem::I32 } else { Elem::F32 };
            let mut regs = vec![];
            for i in s.first..s.first + s.count {
                let p = self.w.offset(theirs, (4 * i * threads) as i64);
                regs.push(self.w.load(p, Ty::Scalar(elem), 4));
            }
            let data = match &s.tile.data {
                Data::Regs(place, _) => Data::Regs(*place, regs),
                _ => Data::Splat(regs[0]),
            };
            self.values.insert(s.value, Value::Tile(Tile { data, ..s.tile.clone() }));
        }
    }

    /// The joining instructions, for every CTA's values in turn.
    fn join(
        &mut self,
        trips: Ssa,
        init: &[Val],
        body: &Block,
        parts: &Parts<'_>,
        sent: &[Sent],
        start: Ssa,
    ) -> Result<Vec<Value>, Error> {
        self.settle_loop(init, |l, values, held| {
            let first: Vec<Ssa> = values.iter().zip(held).flat_map(|(v, h)| l.parts(v, *h)).collect();
            let bounds = [l.w.int(0), trips, l.w.int(1)];
            let open = l.w.begin_loop(bounds, &first);
            let inside = l.rebuild(values, held, &open.carried.clone());
            l.values.extend(body.params[1..].iter().copied().zip(inside));
            l.receive(sent, start, open.i);
            parts.joining.iter().try_for_each(|s| l.stmt(s))?;
            let yields = l.yields(body)?;
            let parts: Vec<Ssa> = yields.iter().zip(held).flat_map(|(v, h)| l.parts(v, *h)).collect();
            let results = l.w.end_loop(open, &parts);
            Ok((l.rebuild(values, held, &results), yields))
        })
    }
}

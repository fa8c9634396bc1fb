//! Tile IR to MLIR for NVIDIA GPUs: one CTA runs one program; see [`launch::GpuLaunch`] for the calling convention.
//!
//! Tiles in registers are spread over the CTA's threads ([`place`]); `operand` tiles lie in shared memory ([`operand`]), and `mma`
//! reads them there into the fragments of tensor-core instructions.
//!
//! Invariants:
//! - every product and sum is written as an explicit operation in an order that shapes alone fix; the same bits come out
//!   whatever the number of threads of another kernel, and whatever shares the launch;
//! - index values, and so every condition on a barrier's way, are the same in all threads of a CTA;
//! - code calls nothing outside itself, and keeps nothing in local memory.

pub(crate) mod assemble;
pub(crate) mod launch;

mod address;
mod convert;
mod elementwise;
mod exp;
mod load;
mod mma;
mod operand;
mod pipeline;
mod place;
mod reduce;
mod shared;
mod spread;
mod store;
mod streams;
mod tile;
mod wgmma;

use crate::{
    Error, Lowered,
    bounds::Cond,
    index::Index,
    text::{Elem, Ssa, Ty, Writer},
};
use launch::GpuLaunch;
use operand::Operand;
use place::Place;
use rvllm_ir::{
    diag::Loc,
    expr::{Expr, Sym},
    tile::{Block, IndexOp, Inst, Kernel, Layout, MemLayout, Stmt, Type, Val},
};
use rvllm_targets::Target;
use shared::Shared;
use std::{borrow::Cow, collections::HashMap};
use tile::Tile;

/// Warps of a CTA that multiplies matrices.
const MMA_WARPS: usize = 4;

/// Elements of a thread in kernels of elementwise work: a load of 16 bytes of a 16-bit type, two where [`MANY_THREADS`] remain. What
/// each thread does once a row (its address, the sum across threads) is shared by as many.
const ELEMENTS_PER_THREAD: [usize; 2] = [8, 16];

/// Threads that hide each other's waits; CTAs of as many are bounded in registers so that several fit a multiprocessor.
const MANY_THREADS: usize = 256;

/// Registers of a thread in such kernels.
const REGISTERS: usize = 48;

/// What a tile IR value became.
#[derive(Clone, Debug)]
enum Value {
    Index(Index),
    Tile(Tile),
    Operand(Operand),
}

/// One kernel being lowered.
#[derive(Clone)]
struct Lower<'a> {
    kernel: &'a Kernel,
    target: &'a Target,
    w: Writer,
    /// Start of each tensor.
    pointers: Vec<Ssa>,
    symbols: HashMap<Sym, Index>,
    /// This program's index along each grid dimension.
    program: Vec<Index>,
    values: HashMap<Val, Value>,
    /// Where values that are broadcast had better be from the start.
    wanted: HashMap<Val, Place>,
    threads: usize,
    /// This thread's index.
    thread: Index,
    shared: Shared,
    /// CTAs that share a program, and this one's number among them.
    cluster: usize,
    rank: Index,
    /// Whether this CTA has the program's results, once the cluster has joined them.
    leads: Option<Cond>,
    /// Whether the predecessors' results are there.
    waited: bool,
    /// The statement being lowered.
    loc: Option<Loc>,
    /// What only a kernel has whose operands the copy engine streams.
    streams: Option<Box<streams::Streams<'a>>>,
}

/// The MLIR module of a kernel, and how it is launched.
pub(crate) fn lower(kernel: &Kernel, target: &Target) -> Result<Lowered, Error> {
    let unsupported =
        |what: String| Error::Unsupported { kernel: kernel.name.clone(), target: target.name.clone(), what, loc: None };
    let gpu = target.gpu.as_ref().ok_or_else(|| unsupported("the bounds of a GPU".into()))?;
    if let Some(lowered) = wgmma::lower(kernel, gpu) {
        return Ok(lowered);
    }
    if kernel.params.iter().any(|p| matches!(p.layout, MemLayout::Fragments { .. })) {
        return Err(unsupported("weights of 4 bits in a product whose sizes are no warpgroups'".into()));
    }
    if let Some(lowered) = streams::lower(kernel, target, gpu) {
        return lowered;
    }
    let mut fitting = Cow::Borrowed(kernel);
    loop {
        let (lowered, bytes) = lower_by_warps(&fitting, target)?;
        if bytes <= gpu.shared_bytes as usize {
            return Ok(lowered);
        }
        let what = || format!("{bytes} bytes of shared memory, more than {}", gpu.shared_bytes);
        fitting = Cow::Owned(fewer_stages(&fitting).ok_or_else(|| unsupported(what()))?);
    }
}

/// The kernel with half the stages in each pipeline; `None` where no pipeline has more than one.
fn fewer_stages(kernel: &Kernel) -> Option<Kernel> {
    let mut kernel = kernel.clone();
    let mut fewer = false;
    for s in &mut kernel.body.stmts {
        if let Inst::Pipeline { stages, .. } = &mut s.inst {
            fewer |= *stages > 1;
            *stages = stages.div_ceil(2);
        }
    }
    fewer.then_some(kernel)
}

/// One program by all warps of a CTA, with fragments of one warp each; and the shared memory that it takes.
fn lower_by_warps(kernel: &Kernel, target: &Target) -> Result<(Lowered, usize), Error> {
    let threads = threads(kernel);
    let mut w = Writer::default();
    let pointers: Vec<Ssa> = kernel.params.iter().map(|_| w.fresh(Ty::Global)).collect();
    let step = w.fresh(Ty::Global);
    let mut lower = Lower {
        kernel,
        target,
        pointers,
        symbols: HashMap::new(),
        program: vec![],
        values: HashMap::new(),
        wanted: HashMap::new(),
        threads,
        thread: Index::constant(0),
        shared: Shared::new(&mut w),
        cluster: spread::cluster(kernel),
        rank: Index::constant(0),
        leads: None,
        w,
        waited: false,
        loc: None,
        streams: None,
    };
    lower.begin(step);
    lower.programs()?;
    let (bytes, cluster) = (lower.shared.bytes(), lower.cluster);
    let head = signature(kernel, &lower.pointers, step, &[], [threads, cluster, residents(kernel, target, threads)]);
    let launch = GpuLaunch {
        threads: threads as u32,
        shared_bytes: bytes as u32,
        cluster: cluster as u32,
        ctas_per_program: cluster as u32,
        max_ctas: None,
        registers: None,
        spill_bytes: None,
        tensor_maps: vec![],
    };
    let text = format!("module {{\n{}\n{}}}\n", shared::GLOBAL, lower.w.llvm_function(&head));
    Ok((Lowered { text, launch: Some(launch) }, bytes))
}

/// Name, parameters and bounds of the entry: threads of a CTA, CTAs of a cluster, and those that a multiprocessor is to hold. Only what no launch writes is declared free of aliases: the compiler may then
/// read it at any time, which for other tensors would be before the predecessors are done.
fn signature(
    kernel: &Kernel,
    pointers: &[Ssa],
    step: Ssa,
    maps: &[Ssa],
    [threads, cluster, residents]: [usize; 3],
) -> String {
    let mut params = vec![];
    for (p, pointer) in kernel.params.iter().zip(pointers) {
        let facts = if p.access.is_fixed() { " {llvm.noalias, llvm.readonly}" } else { "" };
        params.push(format!("{pointer}: !llvm.ptr<1>{facts}"));
    }
    params.push(format!("{step}: !llvm.ptr<1> {{llvm.noalias, llvm.readonly}}"));
    let map = "llvm.byval = !llvm.array<128 x i8>, llvm.align = 64 : i64, nvvm.grid_constant";
    params.extend(maps.iter().map(|m| format!("{m}: !llvm.ptr {{{map}}}")));
    let bounds = format!("nvvm.kernel, nvvm.maxntid = array<i32: {threads}, 1, 1>, nvvm.minctasm = {residents} : i32");
    let cluster = match cluster {
        1 => String::new(),
        n => format!(", nvvm.cluster_dim = array<i32: {n}, 1, 1>"),
    };
    format!("@{}({}) attributes {{{bounds}{cluster}}}", kernel.name, params.join(", "))
}

/// Threads of a CTA.
fn threads(kernel: &Kernel) -> usize {
    if any(&kernel.body, &|s| matches!(s.inst, Inst::Mma { .. })) {
        return 32 * mma_warps(kernel);
    }
    let elements = |v: &rvllm_ir::tile::ValInfo| match &v.ty {
        Type::Tile(t) => t.shape.iter().product(),
        Type::Index => 1,
    };
    let widest: usize = kernel.vals.iter().map(elements).max().unwrap_or(1);
    let [few, many] = ELEMENTS_PER_THREAD.map(|elements| widest / elements);
    many.max(few.min(MANY_THREADS)).next_power_of_two().clamp(64, 1024)
}

/// CTAs that a multiprocessor is to hold. Those of elementwise work wait for memory, so that bytes under way are what counts:
/// threads have registers for no more than their elements. Small CTAs do more a thread and keep theirs.
fn residents(kernel: &Kernel, target: &Target, threads: usize) -> usize {
    let multiplies = any(&kernel.body, &|s| matches!(s.inst, Inst::Mma { .. }));
    match &target.gpu {
        Some(gpu) if threads >= MANY_THREADS && !multiplies => (gpu.registers as usize / REGISTERS / threads).max(1),
        _ => 1,
    }
}

/// Warps that share products: along rows alone where rows are reduced, so that none needs another's columns, and the order
/// of a row's sum is the same whatever the number of rows.
fn mma_warps(kernel: &Kernel) -> usize {
    let reduced = |s: &Stmt| match &s.inst {
        Inst::Reduce(_, v, 1) if kernel.tile(*v).layout == Layout::Acc => Some(kernel.tile(*v).shape[0]),
        _ => None,
    };
    let mut rows = vec![];
    for_each(&kernel.body, &mut |s| rows.extend(reduced(s)));
    let fragments = rows.into_iter().min().map_or(MMA_WARPS, |n| n.div_ceil(16));
    (1..=fragments.min(MMA_WARPS)).rev().find(|n| n.is_power_of_two()).unwrap_or(1)
}

fn for_each<'k>(block: &'k Block, visit: &mut dyn FnMut(&'k Stmt)) {
    for s in &block.stmts {
        visit(s);
        if let Inst::Pipeline { body, .. } = &s.inst {
            for_each(body, visit);
        }
    }
}

/// Whether a statement of the block, or of a block inside, is such.
fn any(block: &Block, is: &dyn Fn(&Stmt) -> bool) -> bool {
    block.stmts.iter().any(|s| is(s) || matches!(&s.inst, Inst::Pipeline { body, .. } if any(body, is)))
}

impl Lower<'_> {
    fn unsupported(&self, what: impl Into<String>) -> Error {
        Error::Unsupported {
            kernel: self.kernel.name.clone(),
            target: self.target.name.clone(),
            what: what.into(),
            loc: self.loc.clone(),
        }
    }

    /// A special register as an index below `bound`.
    fn special(&mut self, name: &str, bound: Option<usize>) -> Index {
        let v = self.w.nullary(&format!("nvvm.read.ptx.sreg.{name}"), Ty::Scalar(Elem::I32));
        let v = self.w.convert("arith.extui", v, Ty::I64);
        Index::value(v).bounded(bound.map(|n| n as i64 - 1))
    }

    /// What every kernel begins with.
    fn begin(&mut self, step: Ssa) {
        self.w.effect("nvvm.griddepcontrol launch_dependents");
        self.thread = self.special("tid.x", Some(self.threads));
        for s in self.kernel.symbols() {
            let place = Sym::ALL.iter().position(|other| *other == s).unwrap_or(0);
            let p = self.w.offset(step, 4 * place as i64);
            let value = self.w.load_index(p);
            self.symbols.insert(s, value);
        }
        self.wanted = self.wanted_places();
    }

    /// Waits until the predecessors' results are there.
    fn wait(&mut self) {
        self.waited = true;
        self.w.effect("nvvm.griddepcontrol wait");
    }

    /// The body, for programs inside the grid.
    fn programs(&mut self) -> Result<(), Error> {
        let extents: Vec<Index> = self.kernel.grid.iter().map(|(_, e)| self.expr(e)).collect();
        let mut linear = self.special("ctaid.x", None);
        if self.cluster > 1 {
            let size = Index::constant(self.cluster as i64);
            self.rank = self.unsigned("arith.remui", linear, size).bounded(Some(self.cluster as i64 - 1));
            linear = self.unsigned("arith.divui", linear, size);
        }
        let mut total = Index::constant(1);
        for extent in &extents {
            total = self.w.mul(total, *extent);
        }
        self.program = self.decode(linear, &extents);
        if total.as_const().is_some() {
            return self.program_body();
        }
        let (linear, total) = (self.w.ssa(linear), self.w.ssa(total));
        let inside = self.w.compare("slt", linear, total);
        self.w.begin_if(inside);
        self.program_body()?;
        self.w.otherwise();
        self.wait();
        self.w.end();
        Ok(())
    }

    /// A kernel that never waited could end before its predecessors, and its dependents start too early.
    fn program_body(&mut self) -> Result<(), Error> {
        for s in &self.kernel.body.stmts {
            if !self.waited && self.awaits(s) {
                self.wait();
            }
            self.stmt(s)?;
        }
        if !self.waited {
            self.wait();
        }
        Ok(())
    }

    /// Whether a statement touches a tensor that a predecessor may write or read.
    fn awaits(&self, s: &Stmt) -> bool {
        let touches = |s: &Stmt| match &s.inst {
            Inst::Read { tensor, .. } | Inst::Load { tensor, .. } | Inst::Store { tensor, .. } => {
                !self.kernel.params[*tensor].access.is_fixed()
            }
            _ => false,
        };
        touches(s) || matches!(&s.inst, Inst::Pipeline { body, .. } if any(body, &touches))
    }

    /// Indices of a linear program number, in 32 bits; the last dimension varies fastest.
    fn decode(&mut self, linear: Index, extents: &[Index]) -> Vec<Index> {
        let mut rest = linear;
        let mut ids = vec![];
        for (d, extent) in extents.iter().enumerate().rev() {
            let bound = extent.as_const().map(|n| n - 1);
            if d == 0 {
                ids.push(rest.bounded(bound));
                continue;
            }
            let id = self.unsigned("arith.remui", rest, *extent);
            ids.push(id.bounded(bound));
            rest = self.unsigned("arith.divui", rest, *extent);
        }
        ids.reverse();
        ids
    }

    fn unsigned(&mut self, op: &str, a: Index, b: Index) -> Index {
        let [a, b] = [a, b].map(|i| {
            let v = self.w.ssa(i);
            self.w.convert("arith.trunci", v, Ty::Scalar(Elem::I32))
        });
        let v = self.w.binary(op, a, b);
        Index::value(self.w.convert("arith.extui", v, Ty::I64))
    }

    fn expr(&mut self, e: &Expr) -> Index {
        match e {
            Expr::Const(c) => Index::constant(*c),
            Expr::Sym(s) => self.symbols[s],
            Expr::Add(a, b) => {
                let (a, b) = (self.expr(a), self.expr(b));
                self.w.add(a, b)
            }
            Expr::Mul(a, b) => {
                let (a, b) = (self.expr(a), self.expr(b));
                self.w.mul(a, b)
            }
            Expr::CeilDiv(a, d) => {
                let a = self.expr(a);
                let up = self.w.index(IndexOp::Add, a, Index::constant(d - 1));
                self.w.index(IndexOp::Div, up, Index::constant(*d))
            }
            Expr::Min(a, most) => {
                let a = self.expr(a);
                self.w.index(IndexOp::Min, a, Index::constant(*most))
            }
        }
    }

    fn index(&self, v: Val) -> Result<Index, Error> {
        match self.values.get(&v) {
            Some(Value::Index(i)) => Ok(*i),
            _ => Err(self.misplaced(v, "an index")),
        }
    }

    fn indices(&self, vals: &[Val]) -> Result<Vec<Index>, Error> {
        vals.iter().map(|v| self.index(*v)).collect()
    }

    fn tile(&self, v: Val) -> Result<Tile, Error> {
        match self.values.get(&v) {
            Some(Value::Tile(t)) => Ok(t.clone()),
            _ => Err(self.misplaced(v, "a tile in registers")),
        }
    }

    fn operand(&self, v: Val) -> Result<Operand, Error> {
        match self.values.get(&v) {
            Some(Value::Operand(o)) => Ok(o.clone()),
            _ => Err(self.misplaced(v, "an operand")),
        }
    }

    fn misplaced(&self, v: Val, wanted: &str) -> Error {
        self.unsupported(format!("%{} where {wanted} is needed", self.kernel.vals[v.0 as usize].name))
    }

    fn block(&mut self, block: &Block) -> Result<(), Error> {
        block.stmts.iter().try_for_each(|s| self.stmt(s))
    }

    fn stmt(&mut self, s: &Stmt) -> Result<(), Error> {
        self.loc.clone_from(&s.loc);
        if self.consumes() && self.consume(s)? {
            return Ok(());
        }
        match &s.inst {
            Inst::Store { tensor, at, value, rows } => {
                let (at, value) = (self.indices(at)?, self.tile(*value)?);
                let rows = rows.map(|r| self.index(r)).transpose()?;
                self.store_tile(*tensor, &at, &value, rows)
            }
            Inst::Pipeline { lo, hi, stages, init, body } => {
                let results = match spread::parts(self.kernel, s) {
                    Some(n) if n == self.cluster && self.leads.is_none() => {
                        let n = self.index(*hi)?;
                        self.spread(n, init, body)?
                    }
                    _ => self.pipeline([*lo, *hi], *stages, init, body)?,
                };
                self.values.extend(s.results.iter().copied().zip(results));
                Ok(())
            }
            // loaded ahead by the pipeline around it
            Inst::Load { .. } if matches!(self.values.get(&s.results[0]), Some(Value::Operand(o)) if o.ahead) => Ok(()),
            _ => {
                let value = self.value(s)?;
                self.values.insert(s.results[0], value);
                Ok(())
            }
        }
    }

    /// The one result of an instruction.
    fn value(&mut self, s: &Stmt) -> Result<Value, Error> {
        match &s.inst {
            inst if *self.kernel.ty(s.results[0]) == Type::Index => self.scalar(inst).map(Value::Index),
            Inst::Load { tensor, at } => {
                let (at, ty) = (self.indices(at)?, self.kernel.tile(s.results[0]).clone());
                match ty.layout {
                    Layout::Operand => self.load_operand(*tensor, &at, &ty.shape).map(Value::Operand),
                    Layout::Reg | Layout::Acc => self.load_tile(s.results[0], *tensor, &at).map(Value::Tile),
                }
            }
            Inst::Mma { a, b, acc } => {
                let (a, b, acc) = (self.operand(*a)?, self.operand(*b)?, self.tile(*acc)?);
                self.mma(&a, &b, &acc).map(Value::Tile)
            }
            Inst::Stage(v) => {
                let t = self.tile(*v)?;
                self.stage(&t).map(Value::Operand)
            }
            Inst::Reshape(v) if self.kernel.tile(*v).layout == Layout::Operand => {
                let operand = self.operand(*v)?;
                self.reshape_operand(operand, &self.kernel.tile(s.results[0]).shape).map(Value::Operand)
            }
            Inst::Cast(v) if self.kernel.tile(*v).layout == Layout::Operand => {
                let operand = self.operand(*v)?;
                self.cast_operand(&operand, self.kernel.tile(s.results[0]).dtype).map(Value::Operand)
            }
            Inst::Concat(..) => Err(self.unsupported("operands side by side, but for those of warpgroups' products")),
            _ => self.elementwise(s).map(Value::Tile),
        }
    }

    fn scalar(&mut self, inst: &Inst) -> Result<Index, Error> {
        match inst {
            Inst::ProgramId(d) => Ok(self.program[*d]),
            Inst::Const(c) => Ok(Index::constant(*c)),
            Inst::Sym(s) => Ok(self.symbols[s]),
            Inst::Index(op, a, b) => {
                let (a, b) = (self.index(*a)?, self.index(*b)?);
                Ok(self.w.index(*op, a, b))
            }
            Inst::Read { tensor, at } => {
                let at = self.indices(at)?;
                let p = self.element(*tensor, &at);
                if !self.waited {
                    self.bring_lines(p, 1);
                }
                Ok(self.w.load_index(p))
            }
            Inst::ToIndex(v) => match self.tile(*v)?.data {
                tile::Data::Splat(number) => Ok(self.w.number_index(number)),
                _ => Err(self.misplaced(*v, "a tile of one element")),
            },
            _ => Err(self.unsupported("an instruction that is no index")),
        }
    }
}

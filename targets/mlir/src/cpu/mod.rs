//! Tile IR to MLIR for CPUs: a function per kernel that runs a range of programs one after another.
//!
//! Tiles become vectors in registers ([`tile`]); `operand` tiles stay where they are in memory and `mma` reads them there
//! ([`operand`]). Vectors have 16 lanes of f32 whatever the target: LLVM splits them where registers are narrower.
//!
//! Invariants:
//! - every product and sum is written as an explicit operation in a fixed order; nothing is contracted or reassociated
//!   later, so a program's result depends on the kernel, its numbers and the target alone;
//! - the order of sums of one accumulator element depends on k alone, never on the tile's shape;
//! - code calls nothing outside itself.

mod address;
mod amx;
mod cast;
mod deferred;
mod integer;
mod load;
mod mma;
mod operand;
mod pipeline;
mod reduce;
mod store;
mod stored;
mod tile;
mod tiled;
mod widen;

use crate::{
    Error,
    index::Index,
    map,
    text::{Elem, Ssa, Ty, Writer},
};
use operand::View;
use rvllm_ir::{
    diag::Loc,
    expr::{Expr, Sym},
    tile::{Block, IndexOp, Inst, Kernel, Layout, Stmt, TileType, Type, Val},
    types::DType,
};
use rvllm_targets::Target;
use std::collections::HashMap;
use tile::Tile;

/// Of every function. Object code links to nothing, so LLVM may not make calls of loops and stores: `memset` for zeros.
const ATTRIBUTES: &str = "passthrough = [\"nounwind\", \"no-builtins\"]";

/// What a tile IR value became.
#[derive(Clone, Debug)]
enum Value {
    Index(Index),
    Tile(Tile),
    Operand(View),
    /// An accumulator in AMX tiles: inside its pipeline only.
    Amx(amx::Accumulator),
    /// An accumulator in memory.
    Stored(stored::Stored),
    /// A tile that is computed where it is stored.
    Deferred,
}

/// One kernel being lowered.
struct Lower<'a> {
    kernel: &'a Kernel,
    target: &'a Target,
    w: Writer,
    /// Start of each tensor.
    pointers: Vec<Ssa>,
    symbols: HashMap<Sym, Ssa>,
    /// This program's index along each grid dimension.
    program: Vec<Index>,
    /// The same of the program that runs after this one.
    next_program: Vec<Index>,
    values: HashMap<Val, Value>,
    /// The statement being lowered.
    loc: Option<Loc>,
}

/// The MLIR module of a kernel: one public function of the kernel's name with the runtime's calling convention.
pub(crate) fn lower(kernel: &Kernel, target: &Target) -> Result<String, Error> {
    let mut lower = Lower {
        kernel,
        target,
        w: Writer::default(),
        pointers: vec![],
        symbols: HashMap::new(),
        program: vec![],
        next_program: vec![],
        values: HashMap::new(),
        loc: None,
    };
    let head = lower.signature();
    lower.programs()?;
    Ok(format!("module {{\n{}{}}}\n", entry(kernel), lower.w.function(&head)))
}

/// Name of the function that runs the programs.
fn inner_name(kernel: &Kernel) -> String {
    format!("{}.programs", kernel.name)
}

/// The public function: unpacks the arguments, so that the other's pointers can be declared free of aliases.
fn entry(kernel: &Kernel) -> String {
    let mut w = Writer::default();
    let [args, begin, end] = [Ty::Ptr, Ty::I64, Ty::I64].map(|ty| w.fresh(ty));
    let tensors = kernel.params.iter().map(|_| Ty::Ptr);
    let types: Vec<Ty> = tensors.chain(kernel.symbols().iter().map(|_| Ty::I64)).collect();
    let load = |(i, ty): (usize, &Ty)| {
        let p = w.offset(args, 8 * i as i64);
        w.load(p, *ty, 8)
    };
    let mut values: Vec<Ssa> = types.iter().enumerate().map(load).collect();
    values.extend([begin, end]);
    w.call(&inner_name(kernel), &values);
    let params = format!("{args}: !llvm.ptr {{llvm.noalias, llvm.readonly}}, {begin}: i64, {end}: i64");
    w.function(&format!("@{}({params}) attributes {{{ATTRIBUTES}}}", kernel.name))
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

    /// Declares the arguments: tensors, symbols, the range of programs.
    fn signature(&mut self) -> String {
        let mut params = vec![];
        for p in &self.kernel.params {
            let pointer = self.w.fresh(Ty::Ptr);
            self.pointers.push(pointer);
            let facts = if p.access.is_read_only() { " {llvm.noalias, llvm.readonly}" } else { "" };
            params.push(format!("{pointer}: !llvm.ptr{facts}"));
        }
        for s in self.kernel.symbols() {
            let value = self.w.fresh(Ty::I64);
            self.symbols.insert(s, value);
            params.push(format!("{value}: i64"));
        }
        let range = [self.w.fresh(Ty::I64), self.w.fresh(Ty::I64)];
        params.extend(range.iter().map(|v| format!("{v}: i64")));
        self.program = range.map(Index::value).to_vec();
        let linkage = "llvm.linkage = #llvm.linkage<internal>";
        format!("@{}({}) attributes {{{linkage}, {ATTRIBUTES}}}", inner_name(self.kernel), params.join(", "))
    }

    /// The loop over programs; on entry `program` holds the range.
    fn programs(&mut self) -> Result<(), Error> {
        let (begin, end) = (self.w.ssa(self.program[0]), self.w.ssa(self.program[1]));
        let extents: Vec<Index> = self.kernel.grid.iter().map(|(_, e)| self.expr(e)).collect();
        let one = self.w.int(1);
        let open = self.w.begin_loop([begin, end, one], &[]);
        self.program = self.decode(Index::value(open.i), &extents);
        let next = self.w.add_const(Index::value(open.i), 1);
        self.next_program = self.decode(next, &extents);
        self.block(&self.kernel.body)?;
        self.w.end_loop(open, &[]);
        Ok(())
    }

    /// Indices of a linear program number; the last dimension varies fastest.
    fn decode(&mut self, linear: Index, extents: &[Index]) -> Vec<Index> {
        let mut rest = linear;
        let mut ids = vec![];
        for (d, extent) in extents.iter().enumerate().rev() {
            let bound = extent.as_const().map(|n| n - 1);
            let id = if d == 0 { rest } else { self.w.index(IndexOp::Rem, rest, *extent) };
            ids.push(id.bounded(bound));
            rest = self.w.index(IndexOp::Div, rest, *extent);
        }
        ids.reverse();
        ids
    }

    fn symbol(&mut self, s: Sym) -> Index {
        Index::value(self.symbols[&s])
    }

    fn expr(&mut self, e: &Expr) -> Index {
        match e {
            Expr::Const(c) => Index::constant(*c),
            Expr::Sym(s) => self.symbol(*s),
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

    fn operand(&self, v: Val) -> Result<View, Error> {
        match self.values.get(&v) {
            Some(Value::Operand(view)) => Ok(view.clone()),
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
        match &s.inst {
            Inst::Store { tensor, at, value, rows: None } if self.waits(*value) => {
                let at = self.indices(at)?;
                self.store_rows(*tensor, &at, *value)
            }
            Inst::Store { tensor, at, value, rows } => {
                let (at, value) = (self.indices(at)?, self.tile(*value)?);
                let rows = rows.map(|r| self.index(r)).transpose()?;
                self.store_tile(*tensor, &at, &value, rows)
            }
            Inst::Pipeline { lo, hi, stages, init, body } => {
                let results = self.pipeline([*lo, *hi], *stages, init, body)?;
                self.values.extend(s.results.iter().copied().zip(results));
                Ok(())
            }
            _ => {
                let value = if self.is_deferred(s) { Value::Deferred } else { self.value(s)? };
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
                    Layout::Operand => self.view(*tensor, &at, &ty.shape).map(Value::Operand),
                    Layout::Reg | Layout::Acc => self.load_tile(*tensor, &at, &ty.shape),
                }
            }
            Inst::Mma { a, b, acc } => {
                let (a, b) = (self.operand(*a)?, self.operand(*b)?);
                self.mma(&a, &b, *acc)
            }
            Inst::Stage(v) => {
                let t = self.tile(*v)?;
                Ok(Value::Operand(self.stage(&t)))
            }
            Inst::Reshape(v) if self.kernel.tile(*v).layout == Layout::Operand => {
                let view = self.operand(*v)?;
                self.reshape_view(view, &self.kernel.tile(s.results[0]).shape.clone()).map(Value::Operand)
            }
            Inst::Cast(v) if self.kernel.tile(*v).layout == Layout::Operand => {
                let view = self.operand(*v)?;
                Ok(Value::Operand(View { wide: Some(self.kernel.tile(s.results[0]).dtype), ..view }))
            }
            Inst::Concat(..) => Err(self.unsupported("operands side by side: they lie wherever their tensors do")),
            _ => self.elementwise(s).map(Value::Tile),
        }
    }

    fn scalar(&mut self, inst: &Inst) -> Result<Index, Error> {
        match inst {
            Inst::ProgramId(d) => Ok(self.program[*d]),
            Inst::Const(c) => Ok(Index::constant(*c)),
            Inst::Sym(s) => Ok(self.symbol(*s)),
            Inst::Index(op, a, b) => {
                let (a, b) = (self.index(*a)?, self.index(*b)?);
                Ok(self.w.index(*op, a, b))
            }
            Inst::Read { tensor, at } => {
                let at = self.indices(at)?;
                let p = self.element(*tensor, &at);
                Ok(self.w.load_index(p))
            }
            Inst::ToIndex(v) => {
                let number = self.tile(*v)?.vecs[0];
                let number = self.w.extract(number, 0);
                Ok(self.w.number_index(number))
            }
            _ => Err(self.unsupported("an instruction that is no index")),
        }
    }

    /// Instructions on tiles in registers.
    fn elementwise(&mut self, s: &Stmt) -> Result<Tile, Error> {
        let ty = self.kernel.tile(s.results[0]).clone();
        match &s.inst {
            Inst::Full(c) => Ok(self.full(*c, &ty)),
            Inst::Iota { start, div } => {
                let start = self.index(*start)?;
                Ok(self.iota(start, *div, &ty))
            }
            Inst::Map(op, args) => {
                let args = args.iter().map(|v| self.tile(*v)).collect::<Result<Vec<_>, _>>()?;
                let lane = |i| map::map(&mut self.w, *op, &args.iter().map(|t| t.vecs[i]).collect::<Vec<_>>());
                Ok(Tile { vecs: (0..args[0].vecs.len()).map(lane).collect(), ..args[0].clone() })
            }
            Inst::Select { cmp, a, b, x, y } => {
                let [a, b, x, y] = [self.tile(*a)?, self.tile(*b)?, self.tile(*x)?, self.tile(*y)?];
                let lane = |i| map::select(&mut self.w, *cmp, [a.vecs[i], b.vecs[i]], [x.vecs[i], y.vecs[i]]);
                Ok(Tile { vecs: (0..x.vecs.len()).map(lane).collect(), ..x.clone() })
            }
            Inst::Cast(v) => {
                let t = self.tile(*v)?;
                Ok(self.cast(&t, ty.dtype))
            }
            Inst::Reduce(op, v, axis) => {
                let t = self.tile(*v)?;
                Ok(reduce::reduce(&mut self.w, *op, &t, *axis))
            }
            Inst::Broadcast(v, axis) => {
                let t = self.tile(*v)?;
                Ok(self.w.broadcast(&t, *axis, &ty.shape))
            }
            Inst::Reshape(v) => {
                let t = self.tile(*v)?;
                Ok(self.w.reshape(t, &ty.shape))
            }
            _ => Err(self.unsupported("an instruction that is no tile")),
        }
    }

    fn full(&mut self, c: f32, ty: &TileType) -> Tile {
        let constant = |t: &Ty| match ty.dtype {
            DType::I32 => self.w.ints(*t, c as i64),
            _ => self.w.floats(*t, c),
        };
        let vecs = Tile::types(&ty.shape, ty.dtype).iter().map(constant).collect();
        Tile { shape: ty.shape.clone(), dtype: ty.dtype, vecs }
    }

    fn iota(&mut self, start: Index, div: usize, ty: &TileType) -> Tile {
        let start = self.w.ssa(start);
        let start = self.w.convert("arith.trunci", start, Ty::Scalar(Elem::I32));
        let chunk = |(first, width): (usize, usize)| {
            let steps: Vec<i64> = (first..first + width).map(|i| (i / div) as i64).collect();
            let steps = self.w.dense(Elem::I32, &steps);
            let start = self.w.splat(start, width);
            self.w.binary("arith.addi", start, steps)
        };
        let vecs = tile::chunks(&ty.shape).into_iter().map(chunk).collect();
        Tile { shape: ty.shape.clone(), dtype: ty.dtype, vecs }
    }

    fn cast(&mut self, t: &Tile, to: DType) -> Tile {
        let native = self.target.dot_bf16;
        let vecs = t.vecs.iter().map(|v| cast::convert(&mut self.w, *v, t.dtype, to, native)).collect();
        Tile { shape: t.shape.clone(), dtype: to, vecs }
    }

    /// The type of a value that a pipeline carries.
    fn tile_type(&self, v: Val) -> Option<&TileType> {
        match self.kernel.ty(v) {
            Type::Tile(t) => Some(t),
            Type::Index => None,
        }
    }
}

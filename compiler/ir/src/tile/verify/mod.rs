//! What a legal kernel is. All errors are returned, each at the statement that made it.
//!
//! Invariants of a kernel without errors:
//! - the kernel, its parameters, grid dimensions and values have names that the text form can read, each unique
//!   among its kind; the kernel's is a symbol of object code;
//! - every value is defined once, before its uses, and used only in the block that defines it or within;
//! - parameters are f32, f16, bf16, f8e4m3, i8, u8, u4 or i32, rows of u4 whole bytes; a panel's two dimensions, a view's inner ones and those of blocks are static;
//! - origins have one index per tensor dimension; only `in` and `inout` are read, only `out` and `inout` stored to;
//!   `read` is the only way to an i32 tensor's elements;
//! - tiles have rank 0 to 3, no empty dimension and at most [`MAX_TILE`] elements; arithmetic is on f32 `reg` or `acc` tiles of one shape and one
//!   layout (a cast gives the f16, bf16, f8e4m3 and i8 ones that `store` and `stage` take); only `load`, `stage` and `reshape`
//!   make operands and only `mma` reads them;
//! - what a pipeline yields, carries and returns has one list of types.
//!
//! Not checked here, as it depends on data: bounds and the alignment of origins ([`super::interp`] does).

mod types;

use super::{Block, FRAGMENT_COLUMNS, Inst, Kernel, MemLayout, Param, Stmt, Val, print};
use crate::{
    diag::{Diagnostic, Loc},
    text::is_identifier,
    types::{DType, Dim},
};
use std::collections::HashSet;

/// Bytes of a line of [`MemLayout::Blocks`].
const BLOCK_LINE: usize = 128;

/// Most elements of a tile: far beyond what registers hold, so that a mistyped size is an error and not a crash.
pub const MAX_TILE: usize = 1 << 24;

/// Everything that is wrong with a kernel; nothing if it is legal.
pub fn verify(kernel: &Kernel) -> Vec<Diagnostic> {
    let mut v = Verifier { k: kernel, errors: vec![], defined: HashSet::new(), visible: HashSet::new() };
    v.names();
    kernel.params.iter().for_each(|p| v.param(p));
    if kernel.grid.is_empty() {
        v.error("a kernel has at least one grid dimension", &None);
    }
    if !kernel.body.params.is_empty() || !kernel.body.yields.is_empty() {
        v.error("a kernel's body takes and yields nothing", &None);
    }
    v.block(&kernel.body, &None);
    v.errors
}

struct Verifier<'k> {
    k: &'k Kernel,
    errors: Vec<Diagnostic>,
    /// Values defined so far, anywhere.
    defined: HashSet<Val>,
    /// Those whose block is still open.
    visible: HashSet<Val>,
}

impl Verifier<'_> {
    fn error(&mut self, message: impl Into<String>, loc: &Option<Loc>) {
        self.errors.push(Diagnostic::new(message, loc.clone()));
    }

    fn check(&mut self, result: Result<(), String>, loc: &Option<Loc>) {
        if let Err(message) = result {
            self.error(message, loc);
        }
    }

    fn names(&mut self) {
        let k = self.k;
        if !is_identifier(&k.name) || k.name.contains('.') {
            let name = &k.name;
            self.error(format!("kernel name `{name}` is no symbol: letters, digits and `_`, no digit first"), &None);
        }
        self.unique("parameter", k.params.iter().map(|p| p.name.as_str()));
        self.unique("grid dimension", k.grid.iter().map(|(name, _)| name.as_str()));
        self.unique("value", k.vals.iter().map(|v| v.name.as_str()));
    }

    fn unique<'n>(&mut self, kind: &str, names: impl Iterator<Item = &'n str>) {
        let mut seen = HashSet::new();
        for name in names {
            if !is_identifier(name) {
                self.error(format!("{kind} name `{name}` is no identifier"), &None);
            }
            if !seen.insert(name) {
                self.error(format!("two {kind}s are named `{name}`"), &None);
            }
        }
    }

    fn param(&mut self, p: &Param) {
        let name = &p.name;
        if p.ty.dtype == DType::F8e5m2 {
            let known = "f32, f16, bf16, f8e4m3, i8, u8, u4 or i32";
            self.error(format!("`{name}` has element type {}, not {known}", p.ty.dtype), &None);
        }
        if p.ty.dtype == DType::U4 && !whole_bytes(p) {
            self.error(format!("`{name}` is {}{}: rows of 4 bits must be whole bytes", p.ty, p.layout), &None);
        }
        if p.ty.dims.is_empty() || p.ty.dims.contains(&Dim::Const(0)) {
            self.error(format!("`{name}` has shape {}: rank 0 or an empty dimension", p.ty), &None);
        }
        self.check(mem_layout(p), &None);
    }

    /// A block; what it defines is not visible after it.
    fn block(&mut self, b: &Block, loc: &Option<Loc>) {
        let outer = self.visible.clone();
        b.params.iter().for_each(|p| self.define(*p, loc));
        b.stmts.iter().for_each(|s| self.statement(s));
        b.yields.iter().for_each(|y| self.used(*y, "yield", loc));
        self.visible = outer;
    }

    fn statement(&mut self, s: &Stmt) {
        let known = self.errors.len();
        s.inst.operands().into_iter().for_each(|v| self.used(v, word(&s.inst), &s.loc));
        if let Inst::Pipeline { body, .. } = &s.inst {
            self.block(body, &s.loc);
        }
        s.results.iter().for_each(|r| self.define(*r, &s.loc));
        // rules of types look values up: they need all of them to exist
        if self.errors.len() == known {
            let result = types::statement(self.k, s).map_err(|e| format!("`{}` {e}", word(&s.inst)));
            self.check(result, &s.loc);
        }
    }

    fn define(&mut self, v: Val, loc: &Option<Loc>) {
        let Some(info) = self.k.vals.get(v.0 as usize) else {
            return self.error(format!("value number {} is not in the kernel's table", v.0), loc);
        };
        if !self.defined.insert(v) {
            self.error(format!("`{}` is defined twice", info.name), loc);
        }
        self.visible.insert(v);
        self.check(types::legal(info), loc);
    }

    fn used(&mut self, v: Val, by: &str, loc: &Option<Loc>) {
        if self.visible.contains(&v) {
            return;
        }
        let name = print::name(self.k, v);
        let why = if self.defined.contains(&v) { "only in a block that has ended" } else { "nowhere above" };
        self.error(format!("`{by}` uses `{name}`, which is defined {why}"), loc);
    }
}

/// Whether rows of 4-bit elements begin with bytes: dense ones, and those of panels.
fn whole_bytes(p: &Param) -> bool {
    let columns = p.ty.last().unwrap_or(1);
    match p.layout {
        MemLayout::Strided { row } => columns.is_multiple_of(2) && row.is_none_or(|row| row.is_multiple_of(2)),
        MemLayout::Panel { k, .. } => k.is_multiple_of(2) && k > 0 && columns.is_multiple_of(k),
        MemLayout::Blocks { .. } => false,
        MemLayout::Fragments { k } => k == FRAGMENT_COLUMNS,
    }
}

fn mem_layout(p: &Param) -> Result<(), String> {
    let (name, rank) = (&p.name, p.ty.rank());
    let fixed = |dims: &[Dim]| dims.iter().try_fold(1usize, |n, d| Some(n.saturating_mul(d.constant()?)));
    match p.layout {
        MemLayout::Strided { row: None } => Ok(()),
        MemLayout::Strided { row: Some(row) } => match fixed(p.ty.dims.get(1..).unwrap_or_default()) {
            None => Err(format!("`{name}` is a view of {}: only its first dimension may be a symbol", p.ty)),
            Some(inner) if row < inner => {
                Err(format!("`{name}` has {row} elements from row to row, fewer than a row's {inner}"))
            }
            Some(_) => Ok(()),
        },
        MemLayout::Panel { n: 0, .. } | MemLayout::Panel { k: 0, .. } => Err(format!("`{name}` has an empty panel")),
        MemLayout::Panel { .. } if rank < 2 => Err(format!("`{name}` has rank {rank}: panels need two dimensions")),
        // of a matrix of activations, rows are as many as the step has
        MemLayout::Panel { .. } => match fixed(&p.ty.dims[if rank == 2 { 1 } else { rank - 2 }..]) {
            Some(_) => Ok(()),
            None => Err(format!("`{name}` is {}: the last two dimensions of panels are static", p.ty)),
        },
        MemLayout::Blocks { k } if k.saturating_mul(p.ty.dtype.bits()) != 8 * BLOCK_LINE => {
            Err(format!("`{name}` has lines of {k} {}, not of {BLOCK_LINE} bytes", p.ty.dtype))
        }
        MemLayout::Blocks { .. } if rank < 2 => Err(format!("`{name}` has rank {rank}: blocks need two dimensions")),
        MemLayout::Fragments { k } if k == 0 || p.ty.dtype.bits() == 8 => Err(format!(
            "`{name}` has pieces of {k} columns of {}: some columns of 4 bits, or of 16 and more",
            p.ty.dtype
        )),
        MemLayout::Fragments { .. } if rank < 2 => Err(format!("`{name}` has rank {rank}: pieces need two dimensions")),
        MemLayout::Blocks { .. } | MemLayout::Fragments { .. } => match fixed(&p.ty.dims) {
            Some(_) => Ok(()),
            None => Err(format!("`{name}` is {}: every dimension of blocks is static", p.ty)),
        },
    }
}

/// The instruction's word in text.
fn word(inst: &Inst) -> &'static str {
    match inst {
        Inst::ProgramId(_) => "program_id",
        Inst::Const(_) => "const",
        Inst::Sym(_) => "sym",
        Inst::Index(op, ..) => op.name(),
        Inst::Read { .. } => "read",
        Inst::ToIndex(_) => "to_index",
        Inst::Load { .. } => "load",
        Inst::Store { .. } => "store",
        Inst::Full(_) => "full",
        Inst::Iota { .. } => "iota",
        Inst::Mma { .. } => "mma",
        Inst::Map(op, _) => op.name(),
        Inst::Select { .. } => "select",
        Inst::Cast(_) => "cast",
        Inst::Reduce(op, ..) => op.name(),
        Inst::Broadcast(..) => "broadcast",
        Inst::Reshape(_) => "reshape",
        Inst::Stage(_) => "stage",
        Inst::Concat(..) => "concat",
        Inst::Pipeline { .. } => "pipeline",
    }
}

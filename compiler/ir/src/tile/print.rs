//! Writes a kernel as text; [`super::parse`] reads it back.
//!
//! One statement per line, in order, the type of every result written: `x = load a[i, j] : reg[1, 64]f32`.
//! What a pipeline carries is written where it enters: `init (p = a) : acc[8, 32]f32`.

use super::{Block, Inst, Kernel, MemLayout, Param, Stmt, Val};
use std::fmt;

impl fmt::Display for MemLayout {
    /// Nothing for a dense tensor, else ` stride<n>`, ` panel<n, k>`, ` blocks<k>` or ` fragments<k>`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MemLayout::Strided { row: None } => Ok(()),
            MemLayout::Strided { row: Some(row) } => write!(f, " stride<{row}>"),
            MemLayout::Panel { n, k } => write!(f, " panel<{n}, {k}>"),
            MemLayout::Blocks { k } => write!(f, " blocks<{k}>"),
            MemLayout::Fragments { k } => write!(f, " fragments<{k}>"),
        }
    }
}

impl fmt::Display for Param {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} {}{}", self.name, self.access.name(), self.ty, self.layout)
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let params: Vec<String> = self.params.iter().map(Param::to_string).collect();
        let grid: Vec<String> = self.grid.iter().map(|(name, extent)| format!("{name}: {extent}")).collect();
        writeln!(f, "kernel @{}({}) grid ({}) {{", self.name, params.join(", "), grid.join(", "))?;
        block(f, self, &self.body, 1)?;
        writeln!(f, "}}")
    }
}

fn block(f: &mut fmt::Formatter<'_>, k: &Kernel, b: &Block, depth: usize) -> fmt::Result {
    for s in &b.stmts {
        writeln!(f, "{:indent$}{}", "", statement(k, s), indent = 2 * depth)?;
        if let Inst::Pipeline { body, .. } = &s.inst {
            block(f, k, body, depth + 1)?;
            writeln!(f, "{:indent$}}}", "", indent = 2 * depth)?;
        }
    }
    match b.yields.is_empty() {
        true => Ok(()),
        false => writeln!(f, "{:indent$}yield {}", "", names(k, &b.yields), indent = 2 * depth),
    }
}

/// A value's name; its number where the kernel lacks it, so that a broken kernel can be shown.
pub(super) fn name(k: &Kernel, v: Val) -> String {
    k.vals.get(v.0 as usize).map_or_else(|| format!("<{}>", v.0), |info| info.name.clone())
}

fn names(k: &Kernel, vals: &[Val]) -> String {
    vals.iter().map(|v| name(k, *v)).collect::<Vec<_>>().join(", ")
}

fn types(k: &Kernel, vals: &[Val]) -> String {
    let ty = |v: &Val| k.vals.get(v.0 as usize).map_or_else(|| "?".to_string(), |info| info.ty.to_string());
    vals.iter().map(ty).collect::<Vec<_>>().join(", ")
}

/// One line of the text form, without its indentation; of a pipeline, its head.
pub fn statement(k: &Kernel, s: &Stmt) -> String {
    let results = if s.results.is_empty() { String::new() } else { format!("{} = ", names(k, &s.results)) };
    let inst = instruction(k, &s.inst);
    match &s.inst {
        Inst::Pipeline { .. } => format!("{results}{inst}"),
        _ if s.results.is_empty() => inst,
        _ => format!("{results}{inst} : {}", types(k, &s.results)),
    }
}

fn instruction(k: &Kernel, inst: &Inst) -> String {
    let n = |v: &Val| name(k, *v);
    match inst {
        Inst::ProgramId(dim) => format!("program_id {}", k.grid.get(*dim).map_or("?", |(name, _)| name)),
        Inst::Const(c) => format!("const {c}"),
        Inst::Sym(s) => format!("sym {s}"),
        Inst::Index(op, a, b) => format!("{} {}, {}", op.name(), n(a), n(b)),
        Inst::Read { tensor, at } => format!("read {}", place(k, *tensor, at)),
        Inst::ToIndex(v) => format!("to_index {}", n(v)),
        Inst::Load { tensor, at } => format!("load {}", place(k, *tensor, at)),
        Inst::Store { tensor, at, value, rows } => {
            let rows = rows.map(|r| format!(", rows = {}", n(&r))).unwrap_or_default();
            format!("store {}, {}{rows}", place(k, *tensor, at), n(value))
        }
        Inst::Full(c) => format!("full {c:?}"),
        Inst::Iota { start, div } => format!("iota {}, div = {div}", n(start)),
        Inst::Mma { a, b, acc } => format!("mma {}", names(k, &[*a, *b, *acc])),
        Inst::Map(op, args) => format!("{} {}", op.name(), names(k, args)),
        Inst::Select { cmp, a, b, x, y } => format!("select {} {}", cmp.name(), names(k, &[*a, *b, *x, *y])),
        Inst::Cast(v) => format!("cast {}", n(v)),
        Inst::Reduce(op, v, axis) => format!("{} {}, axis = {axis}", op.name(), n(v)),
        Inst::Broadcast(v, axis) => format!("broadcast {}, axis = {axis}", n(v)),
        Inst::Reshape(v) => format!("reshape {}", n(v)),
        Inst::Stage(v) => format!("stage {}", n(v)),
        Inst::Concat(parts, axis) => format!("concat [{}], axis = {axis}", names(k, parts)),
        Inst::Pipeline { lo, hi, stages, init, body } => pipeline(k, [*lo, *hi], *stages, init, body),
    }
}

fn place(k: &Kernel, tensor: usize, at: &[Val]) -> String {
    format!("{}[{}]", k.params.get(tensor).map_or("?", |p| &p.name), names(k, at))
}

fn pipeline(k: &Kernel, [lo, hi]: [Val; 2], stages: usize, init: &[Val], body: &Block) -> String {
    let (index, carried) = match body.params.split_first() {
        Some((i, carried)) => (name(k, *i), carried),
        None => ("?".to_string(), &[][..]),
    };
    let head = format!("pipeline {index} in {} .. {}, stages = {stages}", name(k, lo), name(k, hi));
    if init.is_empty() {
        return format!("{head} {{");
    }
    let pairs: Vec<String> =
        carried.iter().zip(init).map(|(p, v)| format!("{} = {}", name(k, *p), name(k, *v))).collect();
    format!("{head}, init ({}) : {} {{", pairs.join(", "), types(k, carried))
}

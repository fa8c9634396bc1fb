//! The reference interpreter: runs every program of a kernel's grid on logical tensors.
//!
//! It is the oracle of the compiled kernels, so it takes nothing on trust that the semantics leave open:
//! - elements past T or L are NaN when loaded, so that one that reaches a result shows;
//! - an origin that is negative, unaligned where alignment is asked for, or beyond the padding is an error;
//! - two programs that store to one element, or one that reads what another stores, are an error.
//!
//! Arithmetic is in f32 and rounds where a cast says so. Sums of `reduce_sum` are in f64; those of `mma` as
//! [`Accumulate`] says.

mod access;
mod tiles;

use super::{Block, Inst, Kernel, Stmt, Val, memory, memory::TensorData, verify};
use crate::{
    diag::Diagnostic,
    expr::Sym,
    tile::{IndexOp, TileType, memory::Elements},
    types::DType,
};
use access::{Access, Place};
use std::rc::Rc;

/// What `mma` adds up in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Accumulate {
    /// As kernels do, in ascending k.
    #[default]
    F32,
    /// Nearly exact, rounded once: to judge a kernel's own error.
    F64,
}

/// Runs a kernel: tensors in the order of its parameters, each of the shape that `symbols` gives its type.
///
/// The error is the first one: an illegal kernel, an argument that does not fit, or a breach of the rules above.
pub fn run(kernel: &Kernel, args: &mut [TensorData], symbols: &dyn Fn(Sym) -> i64) -> Result<(), Diagnostic> {
    run_with(kernel, args, symbols, Accumulate::F32)
}

/// [`run`] with a choice of what `mma` adds up in.
pub fn run_with(
    kernel: &Kernel,
    args: &mut [TensorData],
    symbols: &dyn Fn(Sym) -> i64,
    accumulate: Accumulate,
) -> Result<(), Diagnostic> {
    match verify::verify(kernel).into_iter().next() {
        None => check_args(kernel, args, symbols)?,
        Some(error) => return Err(error),
    }
    let tensors = args.iter_mut().zip(&kernel.params).map(|(data, param)| Access::new(data, param)).collect();
    let vals = vec![None; kernel.vals.len()];
    let mut machine = Machine { k: kernel, tensors, symbols, accumulate, program: vec![], vals };
    let extents: Vec<i64> = kernel.grid.iter().map(|(_, extent)| extent.eval(symbols)).collect();
    for number in 0..extents.iter().product() {
        machine.program = coordinates(&extents, number);
        machine.tensors.iter_mut().for_each(|t| t.program = number as u32 + 1);
        machine.block(&kernel.body)?;
    }
    Ok(())
}

/// Coordinates of a program in the grid; the last dimension varies fastest.
fn coordinates(extents: &[i64], mut number: i64) -> Vec<i64> {
    let mut at = vec![0; extents.len()];
    for (at, extent) in at.iter_mut().zip(extents).rev() {
        *at = number % extent;
        number /= extent;
    }
    at
}

fn check_args(k: &Kernel, args: &[TensorData], symbols: &dyn Fn(Sym) -> i64) -> Result<(), Diagnostic> {
    let error = |message: String| Err(Diagnostic::new(message, None));
    if args.len() != k.params.len() {
        return error(format!("`{}` takes {} tensors, not {}", k.name, k.params.len(), args.len()));
    }
    for (p, arg) in k.params.iter().zip(args) {
        let dims = memory::dims(&p.ty, symbols);
        if dims != arg.dims {
            return error(format!("`{}` is {} = {dims:?}, but the argument is {:?}", p.name, p.ty, arg.dims));
        }
        if (p.ty.dtype == DType::I32) != matches!(arg.elements, Elements::I32(_)) {
            return error(format!("`{}` is {}, but the argument is of another kind", p.name, p.ty));
        }
    }
    Ok(())
}

/// What a value holds.
#[derive(Clone, Debug)]
enum Value {
    Index(i64),
    F32(Rc<[f32]>),
    I32(Rc<[i32]>),
}

struct Machine<'a> {
    k: &'a Kernel,
    tensors: Vec<Access<'a>>,
    symbols: &'a dyn Fn(Sym) -> i64,
    accumulate: Accumulate,
    /// Coordinates of the running program.
    program: Vec<i64>,
    vals: Vec<Option<Value>>,
}

impl Machine<'_> {
    fn block(&mut self, b: &Block) -> Result<(), Diagnostic> {
        b.stmts.iter().try_for_each(|s| self.statement(s))
    }

    fn statement(&mut self, s: &Stmt) -> Result<(), Diagnostic> {
        if let Inst::Pipeline { lo, hi, init, body, .. } = &s.inst {
            return self.pipeline(s, [*lo, *hi], init, body);
        }
        let value = self.instruction(s).map_err(|e| Diagnostic::new(e, s.loc.clone()))?;
        if let (Some(value), [result]) = (value, &s.results[..]) {
            self.set(*result, value);
        }
        Ok(())
    }

    fn pipeline(&mut self, s: &Stmt, [lo, hi]: [Val; 2], init: &[Val], body: &Block) -> Result<(), Diagnostic> {
        let (lo, hi) = (self.index(lo), self.index(hi));
        let mut carried: Vec<Value> = init.iter().map(|v| self.get(*v).clone()).collect();
        for i in lo..hi {
            let entry = std::iter::once(Value::Index(i)).chain(carried);
            body.params.iter().zip(entry).for_each(|(p, v)| self.set(*p, v));
            self.block(body)?;
            carried = body.yields.iter().map(|v| self.get(*v).clone()).collect();
        }
        s.results.iter().zip(carried).for_each(|(r, v)| self.set(*r, v));
        Ok(())
    }

    fn set(&mut self, v: Val, value: Value) {
        self.vals[v.0 as usize] = Some(value);
    }

    fn get(&self, v: Val) -> &Value {
        self.vals[v.0 as usize].as_ref().expect("a verified kernel defines values before their uses")
    }

    fn index(&self, v: Val) -> i64 {
        match self.get(v) {
            Value::Index(i) => *i,
            _ => unreachable!("a verified kernel uses indices as indices"),
        }
    }

    fn indices(&self, vals: &[Val]) -> Vec<i64> {
        vals.iter().map(|v| self.index(*v)).collect()
    }

    fn numbers(&self, v: Val) -> &Rc<[f32]> {
        match self.get(v) {
            Value::F32(x) => x,
            _ => unreachable!("a verified kernel computes with tiles of numbers"),
        }
    }

    fn shape(&self, v: Val) -> &[usize] {
        &self.k.tile(v).shape
    }

    fn instruction(&mut self, s: &Stmt) -> Result<Option<Value>, String> {
        let tile = |m: &Self| m.k.tile(s.results[0]).clone();
        let value = match &s.inst {
            Inst::ProgramId(dim) => Value::Index(self.program[*dim]),
            Inst::Const(c) => Value::Index(*c),
            Inst::Sym(sym) => Value::Index((self.symbols)(*sym)),
            Inst::Index(op, a, b) => Value::Index(integer(*op, self.index(*a), self.index(*b))?),
            Inst::Read { tensor, at } => {
                let at = self.indices(at);
                Value::Index(self.tensors[*tensor].read(&at)?)
            }
            Inst::ToIndex(v) => Value::Index(whole(self.numbers(*v)[0])?),
            Inst::Load { tensor, at } => {
                let place = Place { at: self.indices(at), shape: tile(self).shape };
                Value::F32(self.tensors[*tensor].load(&place)?.into())
            }
            Inst::Store { tensor, at, value, rows } => {
                self.store(*tensor, at, *value, *rows)?;
                return Ok(None);
            }
            Inst::Full(c) => full(*c, &tile(self)),
            Inst::Iota { start, div } => self.iota(*start, *div, tile(self).shape[0])?,
            Inst::Mma { a, b, acc } => self.mma(*a, *b, *acc)?,
            Inst::Map(op, args) => self.map(*op, args),
            Inst::Select { cmp, a, b, x, y } => self.select(*cmp, [*a, *b], [*x, *y]),
            Inst::Cast(v) => self.cast(*v, tile(self).dtype),
            Inst::Reduce(op, v, axis) => self.reduce(*op, *v, *axis),
            Inst::Broadcast(v, axis) => self.broadcast(*v, *axis, tile(self).shape[*axis]),
            Inst::Reshape(v) | Inst::Stage(v) => self.get(*v).clone(),
            Inst::Concat(parts, axis) => self.concat(parts, *axis),
            Inst::Pipeline { .. } => return Ok(None),
        };
        Ok(Some(value))
    }

    fn store(&mut self, tensor: usize, at: &[Val], value: Val, rows: Option<Val>) -> Result<(), String> {
        let rows = rows.map_or(i64::MAX, |r| self.index(r));
        if rows <= 0 {
            return Ok(());
        }
        let place = Place { at: self.indices(at), shape: self.shape(value).to_vec() };
        match self.get(value).clone() {
            Value::F32(x) => self.tensors[tensor].store(&place, &x, rows),
            Value::I32(x) => self.tensors[tensor].store_integers(&place, &x, rows),
            Value::Index(_) => unreachable!("a verified kernel stores tiles"),
        }
    }
}

fn whole(x: f32) -> Result<i64, String> {
    let fits = x.fract() == 0.0 && x.abs() <= (1 << f32::MANTISSA_DIGITS) as f32;
    if fits { Ok(x as i64) } else { Err(format!("`to_index` of {x}, which is no whole number of at most 2^24")) }
}

fn full(c: f32, ty: &TileType) -> Value {
    let n = ty.shape.iter().product();
    match ty.dtype {
        DType::I32 => Value::I32(vec![c as i32; n].into()),
        _ => Value::F32(vec![c; n].into()),
    }
}

fn integer(op: IndexOp, a: i64, b: i64) -> Result<i64, String> {
    let result = match op {
        IndexOp::Add => a.checked_add(b),
        IndexOp::Sub => a.checked_sub(b),
        IndexOp::Mul => a.checked_mul(b),
        IndexOp::Div => a.checked_div(b),
        IndexOp::Rem => a.checked_rem(b),
        IndexOp::Min => Some(a.min(b)),
        IndexOp::Max => Some(a.max(b)),
    };
    result.ok_or_else(|| format!("`{}` of {a} and {b} has no value", op.name()))
}

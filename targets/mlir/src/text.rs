//! Writes MLIR text: SSA values that know their type, and one method per operation that the lowerings use.
//!
//! Invariants:
//! - constants and stack slots go to the function's entry, each once, so that they dominate every use;
//! - integers of addressing and control are `i64`, pointers are opaque, vectors have rank 1;
//! - no operation carries a fast-math flag: what is written is what is computed.

use std::{
    collections::HashMap,
    fmt::{self, Write as _},
};

/// Element types of scalars and vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Elem {
    I1,
    I8,
    I16,
    I32,
    I64,
    F32,
    F16,
    Bf16,
}

impl Elem {
    fn name(self) -> &'static str {
        match self {
            Elem::I1 => "i1",
            Elem::I8 => "i8",
            Elem::I16 => "i16",
            Elem::I32 => "i32",
            Elem::I64 => "i64",
            Elem::F32 => "f32",
            Elem::F16 => "f16",
            Elem::Bf16 => "bf16",
        }
    }

    fn is_float(self) -> bool {
        matches!(self, Elem::F32 | Elem::F16 | Elem::Bf16)
    }

    /// The integer of this many bits.
    pub(crate) fn int(bits: usize) -> Elem {
        match bits {
            8 => Elem::I8,
            16 => Elem::I16,
            32 => Elem::I32,
            _ => Elem::I64,
        }
    }
}

/// Type of an SSA value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Ty {
    Scalar(Elem),
    Vector(usize, Elem),
    /// A pointer into any memory.
    Ptr,
    /// A pointer into a GPU's global memory.
    Global,
    /// A pointer into the shared memory of a CTA.
    Shared,
    /// A pointer into the shared memory of a cluster's CTAs.
    Cluster,
    /// A structure of this many equal members.
    Struct(usize, Elem),
    Amx,
}

impl Ty {
    pub(crate) const I64: Ty = Ty::Scalar(Elem::I64);

    /// Number of lanes; 1 for what is no vector.
    pub(crate) fn lanes(self) -> usize {
        match self {
            Ty::Vector(n, _) => n,
            _ => 1,
        }
    }

    fn elem(self) -> Elem {
        match self {
            Ty::Scalar(e) | Ty::Vector(_, e) => e,
            Ty::Struct(_, e) => e,
            Ty::Ptr | Ty::Global | Ty::Shared | Ty::Cluster | Ty::Amx => Elem::I64,
        }
    }

    /// The same number of lanes of another element type.
    pub(crate) fn with(self, elem: Elem) -> Ty {
        match self {
            Ty::Vector(n, _) => Ty::Vector(n, elem),
            _ => Ty::Scalar(elem),
        }
    }
}

impl fmt::Display for Ty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ty::Scalar(e) => f.write_str(e.name()),
            Ty::Vector(n, e) => write!(f, "vector<{n}x{}>", e.name()),
            Ty::Ptr => f.write_str("!llvm.ptr"),
            Ty::Global => f.write_str("!llvm.ptr<1>"),
            Ty::Shared => f.write_str("!llvm.ptr<3>"),
            Ty::Cluster => f.write_str("!llvm.ptr<7>"),
            Ty::Struct(n, e) => write!(f, "!llvm.struct<({})>", list(std::iter::repeat_n(e.name(), *n))),
            Ty::Amx => f.write_str("!llvm.x86_amx"),
        }
    }
}

/// An SSA value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ssa {
    id: u32,
    pub(crate) ty: Ty,
}

impl fmt::Display for Ssa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "%{}", self.id)
    }
}

/// An open loop.
pub(crate) struct Loop {
    pub(crate) i: Ssa,
    pub(crate) carried: Vec<Ssa>,
    results: Vec<Ssa>,
}

/// The text of one function.
#[derive(Clone, Default)]
pub(crate) struct Writer {
    entry: String,
    body: String,
    next: u32,
    constants: HashMap<(Ty, Vec<i64>), Ssa>,
}

fn list<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    let mut out = String::new();
    for (i, item) in items.into_iter().enumerate() {
        if i > 0 {
            out.push_str(", ");
        }
        // writing to a string cannot fail
        let _ = write!(out, "{item}");
    }
    out
}

impl Writer {
    /// A new name; used for function arguments and by every operation.
    pub(crate) fn fresh(&mut self, ty: Ty) -> Ssa {
        self.next += 1;
        Ssa { id: self.next, ty }
    }

    pub(crate) fn line(&mut self, line: fmt::Arguments<'_>) {
        let _ = self.body.write_fmt(line);
        self.body.push('\n');
    }

    pub(crate) fn op(&mut self, ty: Ty, text: fmt::Arguments<'_>) -> Ssa {
        let r = self.fresh(ty);
        self.line(format_args!("{r} = {text}"));
        r
    }

    /// Everything written: entry first.
    pub(crate) fn finish(self) -> String {
        self.entry + &self.body
    }

    fn constant(&mut self, ty: Ty, key: Vec<i64>, text: &dyn Fn() -> String) -> Ssa {
        if let Some(v) = self.constants.get(&(ty, key.clone())) {
            return *v;
        }
        let r = self.fresh(ty);
        let _ = writeln!(self.entry, "{r} = arith.constant {} : {ty}", text());
        self.constants.insert((ty, key), r);
        r
    }

    /// An `i64` constant.
    pub(crate) fn int(&mut self, c: i64) -> Ssa {
        self.constant(Ty::I64, vec![c], &|| c.to_string())
    }

    /// The same integer in every lane.
    pub(crate) fn ints(&mut self, ty: Ty, c: i64) -> Ssa {
        let text = || if matches!(ty, Ty::Vector(..)) { format!("dense<{c}>") } else { c.to_string() };
        self.constant(ty, vec![c], &text)
    }

    /// The same f32 in every lane, bit by bit.
    pub(crate) fn floats(&mut self, ty: Ty, c: f32) -> Ssa {
        let bits = c.to_bits();
        let text =
            || if matches!(ty, Ty::Vector(..)) { format!("dense<0x{bits:08X}>") } else { format!("0x{bits:08X}") };
        self.constant(ty, vec![i64::from(bits)], &text)
    }

    /// Zero of a scalar or vector type.
    pub(crate) fn zero(&mut self, ty: Ty) -> Ssa {
        match ty.elem() {
            Elem::F32 => self.floats(ty, 0.0),
            e if e.is_float() => {
                let text = || if matches!(ty, Ty::Vector(..)) { "dense<0.0>" } else { "0.0" }.to_string();
                self.constant(ty, vec![0], &text)
            }
            _ => self.ints(ty, 0),
        }
    }

    /// A vector of these integers (0 and 1 for `i1`).
    pub(crate) fn dense(&mut self, elem: Elem, lanes: &[i64]) -> Ssa {
        let text = || match elem {
            Elem::I1 => format!("dense<[{}]>", list(lanes.iter().map(|l| *l != 0))),
            _ => format!("dense<[{}]>", list(lanes)),
        };
        // a one-element key means a splat: keep lists apart from it
        let key = std::iter::once(i64::MIN).chain(lanes.iter().copied()).collect();
        self.constant(Ty::Vector(lanes.len(), elem), key, &text)
    }

    /// Stack bytes that live as long as the function, aligned to a cache line.
    pub(crate) fn stack(&mut self, bytes: usize) -> Ssa {
        let n = self.int(bytes as i64);
        let r = self.fresh(Ty::Ptr);
        let _ = writeln!(self.entry, "{r} = llvm.alloca {n} x i8 {{alignment = 64 : i64}} : (i64) -> !llvm.ptr");
        r
    }

    /// `op a, b : type`.
    pub(crate) fn binary(&mut self, op: &str, a: Ssa, b: Ssa) -> Ssa {
        self.op(a.ty, format_args!("{op} {a}, {b} : {}", a.ty))
    }

    /// `op a : type`.
    pub(crate) fn unary(&mut self, op: &str, a: Ssa) -> Ssa {
        self.op(a.ty, format_args!("{op} {a} : {}", a.ty))
    }

    /// `op a : from to to`.
    pub(crate) fn convert(&mut self, op: &str, a: Ssa, to: Ty) -> Ssa {
        if a.ty == to {
            return a;
        }
        self.op(to, format_args!("{op} {a} : {} to {to}", a.ty))
    }

    /// Same bits, another type of the same size.
    pub(crate) fn bitcast(&mut self, a: Ssa, to: Ty) -> Ssa {
        let vectors = matches!(a.ty, Ty::Vector(..));
        self.convert(if vectors { "vector.bitcast" } else { "arith.bitcast" }, a, to)
    }

    /// Same bits, a scalar of a vector or the other way round.
    pub(crate) fn retype(&mut self, a: Ssa, to: Ty) -> Ssa {
        self.convert("llvm.bitcast", a, to)
    }

    /// `a * b + c`, rounded once.
    pub(crate) fn fma(&mut self, a: Ssa, b: Ssa, c: Ssa) -> Ssa {
        self.op(a.ty, format_args!("math.fma {a}, {b}, {c} : {}", a.ty))
    }

    /// `arith.cmpi` or `arith.cmpf`, by the operands' type.
    pub(crate) fn compare(&mut self, predicate: &str, a: Ssa, b: Ssa) -> Ssa {
        let op = if a.ty.elem().is_float() { "arith.cmpf" } else { "arith.cmpi" };
        self.op(a.ty.with(Elem::I1), format_args!("{op} {predicate}, {a}, {b} : {}", a.ty))
    }

    /// Lane by lane where the condition is a vector.
    pub(crate) fn select(&mut self, cond: Ssa, a: Ssa, b: Ssa) -> Ssa {
        match cond.ty {
            Ty::Vector(..) => self.op(a.ty, format_args!("arith.select {cond}, {a}, {b} : {}, {}", cond.ty, a.ty)),
            _ => self.op(a.ty, format_args!("arith.select {cond}, {a}, {b} : {}", a.ty)),
        }
    }

    /// A scalar in every lane.
    pub(crate) fn splat(&mut self, a: Ssa, lanes: usize) -> Ssa {
        let ty = Ty::Vector(lanes, a.ty.elem());
        self.op(ty, format_args!("vector.broadcast {a} : {} to {ty}", a.ty))
    }

    /// One lane.
    pub(crate) fn extract(&mut self, v: Ssa, lane: usize) -> Ssa {
        let elem = v.ty.elem();
        self.op(Ty::Scalar(elem), format_args!("vector.extract {v}[{lane}] : {} from {}", elem.name(), v.ty))
    }

    /// A vector of scalars.
    pub(crate) fn vector_of(&mut self, items: &[Ssa]) -> Ssa {
        let ty = Ty::Vector(items.len(), items[0].ty.elem());
        self.op(ty, format_args!("vector.from_elements {} : {ty}", list(items)))
    }

    /// Lanes of `a ++ b` in this order.
    pub(crate) fn shuffle(&mut self, a: Ssa, b: Ssa, lanes: &[usize]) -> Ssa {
        let ty = Ty::Vector(lanes.len(), a.ty.elem());
        self.op(ty, format_args!("vector.shuffle {a}, {b} [{}] : {}, {}", list(lanes), a.ty, b.ty))
    }

    /// `p` plus a constant number of bytes.
    pub(crate) fn offset(&mut self, p: Ssa, bytes: i64) -> Ssa {
        if bytes == 0 {
            return p;
        }
        self.op(p.ty, format_args!("llvm.getelementptr {p}[{bytes}] : ({}) -> {}, i8", p.ty, p.ty))
    }

    /// `p` plus a number of bytes.
    pub(crate) fn advance(&mut self, p: Ssa, bytes: Ssa) -> Ssa {
        let (to, by) = (p.ty, bytes.ty);
        self.op(to, format_args!("llvm.getelementptr {p}[{bytes}] : ({to}, {by}) -> {to}, i8"))
    }

    /// A load with an alignment in bytes.
    pub(crate) fn load(&mut self, p: Ssa, ty: Ty, align: usize) -> Ssa {
        self.op(ty, format_args!("llvm.load {p} {{alignment = {align} : i64}} : {} -> {ty}", p.ty))
    }

    /// A store with an alignment in bytes.
    pub(crate) fn store(&mut self, v: Ssa, p: Ssa, align: usize) {
        self.line(format_args!("llvm.store {v}, {p} {{alignment = {align} : i64}} : {}, {}", v.ty, p.ty));
    }

    /// Lanes whose mask is off are zero and not touched in memory.
    pub(crate) fn masked_load(&mut self, p: Ssa, mask: Ssa, ty: Ty, align: usize) -> Ssa {
        let zero = self.zero(ty);
        let types = format!("(!llvm.ptr, {}, {ty}) -> {ty}", mask.ty);
        self.op(ty, format_args!("llvm.intr.masked.load {p}, {mask}, {zero} {{alignment = {align} : i32}} : {types}"))
    }

    /// Lanes whose mask is off are not touched in memory.
    pub(crate) fn masked_store(&mut self, v: Ssa, p: Ssa, mask: Ssa, align: usize) {
        let types = format!("{}, {} into !llvm.ptr", v.ty, mask.ty);
        self.line(format_args!("llvm.intr.masked.store {v}, {p}, {mask} {{alignment = {align} : i32}} : {types}"));
    }

    /// Asks for the cache line at `p`; `hint` 3 is all levels, 2 is from L2 out.
    pub(crate) fn prefetch(&mut self, p: Ssa, hint: u8) {
        let attrs = format!("<{{cache = 1 : i32, hint = {hint} : i32, rw = 0 : i32}}>");
        self.line(format_args!("\"llvm.intr.prefetch\"({p}) {attrs} : (!llvm.ptr) -> ()"));
    }

    /// A target intrinsic with a result.
    pub(crate) fn intrinsic(&mut self, name: &str, args: &[Ssa], result: Ty) -> Ssa {
        let types = list(args.iter().map(|a| a.ty));
        self.op(result, format_args!("llvm.call_intrinsic \"{name}\"({}) : ({types}) -> {result}", list(args)))
    }

    /// A target intrinsic without one.
    pub(crate) fn intrinsic_void(&mut self, name: &str, args: &[Ssa]) {
        let types = list(args.iter().map(|a| a.ty));
        self.line(format_args!("llvm.call_intrinsic \"{name}\"({}) : ({types}) -> ()", list(args)));
    }

    /// One member of a structure.
    pub(crate) fn member(&mut self, s: Ssa, i: usize) -> Ssa {
        let Ty::Struct(_, elem) = s.ty else { return s };
        self.op(Ty::Scalar(elem), format_args!("llvm.extractvalue {s}[{i}] : {}", s.ty))
    }

    /// An operation without operands or results.
    pub(crate) fn effect(&mut self, op: &str) {
        self.line(format_args!("{op}"));
    }

    /// An operation without operands.
    pub(crate) fn nullary(&mut self, op: &str, ty: Ty) -> Ssa {
        self.op(ty, format_args!("{op} : {ty}"))
    }

    /// `for i in lo..hi step step`, carrying `init`; ended by [`Writer::end_loop`].
    pub(crate) fn begin_loop(&mut self, [lo, hi, step]: [Ssa; 3], init: &[Ssa]) -> Loop {
        let i = self.fresh(lo.ty);
        let carried: Vec<Ssa> = init.iter().map(|v| self.fresh(v.ty)).collect();
        let results: Vec<Ssa> = init.iter().map(|v| self.fresh(v.ty)).collect();
        let head = format!("scf.for {i} = {lo} to {hi} step {step}");
        if init.is_empty() {
            self.line(format_args!("{head} : {} {{", lo.ty));
        } else {
            let args = list(carried.iter().zip(init).map(|(c, v)| format!("{c} = {v}")));
            let types = list(init.iter().map(|v| v.ty));
            self.line(format_args!("{} = {head} iter_args({args}) -> ({types}) : {} {{", list(&results), lo.ty));
        }
        Loop { i, carried, results }
    }

    /// Ends the innermost loop: hands back what it carries after the last iteration.
    pub(crate) fn end_loop(&mut self, open: Loop, yields: &[Ssa]) -> Vec<Ssa> {
        if !yields.is_empty() {
            self.line(format_args!("scf.yield {} : {}", list(yields), list(yields.iter().map(|v| v.ty))));
        }
        self.end();
        open.results
    }

    /// What follows, up to [`Writer::end`], happens only under the condition.
    pub(crate) fn begin_if(&mut self, cond: Ssa) {
        self.line(format_args!("scf.if {cond} {{"));
    }

    /// [`Writer::begin_if`] with results of these types: both sides end with [`Writer::give`].
    pub(crate) fn begin_choice(&mut self, cond: Ssa, types: &[Ty]) -> Vec<Ssa> {
        let results: Vec<Ssa> = types.iter().map(|ty| self.fresh(*ty)).collect();
        if results.is_empty() {
            self.begin_if(cond);
        } else {
            self.line(format_args!("{} = scf.if {cond} -> ({}) {{", list(&results), list(types)));
        }
        results
    }

    /// What one side of the innermost `if` results in.
    pub(crate) fn give(&mut self, values: &[Ssa]) {
        if !values.is_empty() {
            self.line(format_args!("scf.yield {} : {}", list(values), list(values.iter().map(|v| v.ty))));
        }
    }

    /// What follows happens only where the condition of the innermost `if` does not hold.
    pub(crate) fn otherwise(&mut self) {
        self.line(format_args!("}} else {{"));
    }

    /// Ends an `if` or a function.
    pub(crate) fn end(&mut self) {
        self.line(format_args!("}}"));
    }

    /// A call of a function of the module, without a result.
    pub(crate) fn call(&mut self, callee: &str, args: &[Ssa]) {
        let types = list(args.iter().map(|a| a.ty));
        self.line(format_args!("func.call @{callee}({}) : ({types}) -> ()", list(args)));
    }

    /// Wraps what was written into a function that returns nothing.
    pub(crate) fn function(self, head: &str) -> String {
        format!("func.func {head} {{\n{}func.return\n}}\n", self.finish())
    }

    /// The same as a function of the LLVM dialect.
    pub(crate) fn llvm_function(self, head: &str) -> String {
        format!("llvm.func {head} {{\n{}llvm.return\n}}\n", self.finish())
    }
}

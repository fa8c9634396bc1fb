//! Type rules of each instruction. A message continues "`instruction` …".
//!
//! Invariant: only called on statements whose values all exist.

use super::MAX_TILE;
use crate::{
    tile::{Access, Block, Inst, Kernel, Layout, MapOp, Param, Stmt, TileType, Type, Val, ValInfo, print::name},
    types::DType,
};

type Rule = Result<(), String>;

fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Rule {
    if holds { Ok(()) } else { Err(otherwise()) }
}

/// Whether a value's type is one at all.
pub(super) fn legal(info: &ValInfo) -> Rule {
    let Type::Tile(t) = &info.ty else { return Ok(()) };
    let name = &info.name;
    ensure(t.shape.len() <= 3, || format!("`{name}` has rank {}, more than 3", t.shape.len()))?;
    ensure(!t.shape.contains(&0), || format!("`{name}` is {t}: an empty dimension"))?;
    let size = elements(t);
    ensure(size <= MAX_TILE, || format!("`{name}` has {size} elements, more than {MAX_TILE}"))?;
    let known = match t.layout {
        Layout::Operand => !matches!(t.dtype, DType::I32 | DType::F8e5m2),
        Layout::Reg | Layout::Acc => !matches!(t.dtype, DType::F8e5m2 | DType::U4 | DType::U8),
    };
    ensure(known, || format!("`{name}` is {t}: no such element type in this layout"))
}

fn elements(t: &TileType) -> usize {
    t.shape.iter().fold(1, |n, d| n.saturating_mul(*d))
}

/// Whether operands and results of a statement have the types that its instruction asks for.
pub(super) fn statement(k: &Kernel, s: &Stmt) -> Rule {
    let rules = Rules { k, s };
    match &s.inst {
        Inst::ProgramId(dim) => {
            ensure(*dim < k.grid.len(), || format!("names dimension {dim} of a grid of {}", k.grid.len()))?;
            rules.index_result()
        }
        Inst::Const(_) | Inst::Sym(_) => rules.index_result(),
        Inst::Index(_, a, b) => rules.indices(&[*a, *b]).and_then(|()| rules.index_result()),
        Inst::Read { tensor, at } => rules.read(*tensor, at),
        Inst::ToIndex(v) => rules.to_index(*v),
        Inst::Load { tensor, at } => rules.load(*tensor, at),
        Inst::Store { tensor, at, value, rows } => rules.store(*tensor, at, *value, *rows),
        Inst::Full(c) => rules.full(*c),
        Inst::Iota { start, div } => rules.iota(*start, *div),
        Inst::Mma { a, b, acc } => rules.mma(*a, *b, *acc),
        Inst::Map(op, args) => rules.map(*op, args),
        Inst::Select { a, b, x, y, .. } => rules.select([*a, *b], [*x, *y]),
        Inst::Cast(v) => rules.cast(*v),
        Inst::Reduce(_, v, axis) => rules.reduce(*v, *axis),
        Inst::Broadcast(v, axis) => rules.broadcast(*v, *axis),
        Inst::Reshape(v) => rules.reshape(*v),
        Inst::Stage(v) => rules.stage(*v),
        Inst::Concat(parts, axis) => rules.concat(parts, *axis),
        Inst::Pipeline { lo, hi, stages, init, body } => rules.pipeline([*lo, *hi], *stages, init, body),
    }
}

struct Rules<'k> {
    k: &'k Kernel,
    s: &'k Stmt,
}

impl<'k> Rules<'k> {
    fn result(&self) -> Result<&'k Type, String> {
        match self.s.results[..] {
            [r] => Ok(self.k.ty(r)),
            _ => Err(format!("has one result, not {}", self.s.results.len())),
        }
    }

    fn index_result(&self) -> Rule {
        let ty = self.result()?;
        ensure(*ty == Type::Index, || format!("gives an index, not {ty}"))
    }

    fn tile_result(&self) -> Result<&'k TileType, String> {
        match self.result()? {
            Type::Tile(t) => Ok(t),
            Type::Index => Err("gives a tile, not an index".into()),
        }
    }

    /// That the result is exactly this.
    fn gives(&self, layout: Layout, shape: &[usize], dtype: DType) -> Rule {
        let expected = TileType { layout, shape: shape.to_vec(), dtype };
        let found = self.result()?;
        ensure(*found == Type::Tile(expected.clone()), || format!("gives {expected}, not {found}"))
    }

    fn indices(&self, vals: &[Val]) -> Rule {
        match vals.iter().find(|v| *self.k.ty(**v) != Type::Index) {
            None => Ok(()),
            Some(v) => Err(format!("takes an index where `{}` is {}", name(self.k, *v), self.k.ty(*v))),
        }
    }

    fn tile(&self, v: Val) -> Result<&'k TileType, String> {
        match self.k.ty(v) {
            Type::Tile(t) => Ok(t),
            Type::Index => Err(format!("takes a tile where `{}` is an index", name(self.k, v))),
        }
    }

    /// A tile in `reg` or `acc`.
    fn computed(&self, v: Val) -> Result<&'k TileType, String> {
        let t = self.tile(v)?;
        ensure(t.layout != Layout::Operand, || format!("takes reg or acc where `{}` is {t}", name(self.k, v)))?;
        Ok(t)
    }

    fn to_index(&self, v: Val) -> Rule {
        let t = self.number(v)?;
        ensure(t.shape.is_empty(), || format!("takes one number where `{}` is {t}", name(self.k, v)))?;
        self.index_result()
    }

    /// A tile that arithmetic works on.
    fn number(&self, v: Val) -> Result<&'k TileType, String> {
        let t = self.computed(v)?;
        ensure(t.dtype == DType::F32, || format!("computes in f32, but `{}` is {t}", name(self.k, v)))?;
        Ok(t)
    }

    fn place(&self, tensor: usize, at: &[Val]) -> Result<&'k Param, String> {
        let p = self.k.params.get(tensor).ok_or_else(|| format!("names parameter number {tensor}"))?;
        let rank = p.ty.rank();
        ensure(at.len() == rank, || format!("gives {} origins to `{}` of rank {rank}", at.len(), p.name))?;
        self.indices(at)?;
        Ok(p)
    }

    fn readable(&self, tensor: usize, at: &[Val]) -> Result<&'k Param, String> {
        let p = self.place(tensor, at)?;
        ensure(p.access != Access::Out, || format!("reads `{}`, which is only written (out)", p.name))?;
        Ok(p)
    }

    fn read(&self, tensor: usize, at: &[Val]) -> Rule {
        let p = self.readable(tensor, at)?;
        ensure(p.ty.dtype == DType::I32, || format!("reads i32 tensors, but `{}` is {}", p.name, p.ty))?;
        self.index_result()
    }

    fn load(&self, tensor: usize, at: &[Val]) -> Rule {
        let p = self.readable(tensor, at)?;
        ensure(p.ty.dtype != DType::I32, || {
            format!("gives no tile of `{}`: i32 elements are taken by `read`", p.name)
        })?;
        let t = self.tile_result()?;
        ensure(t.shape.len() <= p.ty.rank(), || format!("gives {t} of `{}`, whose rank is {}", p.name, p.ty.rank()))?;
        let dtype = if t.layout == Layout::Operand { p.ty.dtype } else { DType::F32 };
        self.gives(t.layout, &t.shape, dtype)
    }

    fn store(&self, tensor: usize, at: &[Val], value: Val, rows: Option<Val>) -> Rule {
        let p = self.place(tensor, at)?;
        ensure(!p.access.is_read_only(), || format!("writes `{}`, which is only read ({})", p.name, p.access.name()))?;
        let t = self.computed(value)?;
        ensure(t.dtype == p.ty.dtype, || format!("writes {t} into `{}` of {}: cast it first", p.name, p.ty.dtype))?;
        ensure(t.shape.len() <= p.ty.rank(), || format!("writes {t} into `{}` of rank {}", p.name, p.ty.rank()))?;
        self.indices(&Vec::from_iter(rows))?;
        ensure(rows.is_none() || !t.shape.is_empty(), || "counts rows of a tile of rank 0".into())?;
        ensure(self.s.results.is_empty(), || "has no result".into())
    }

    fn full(&self, c: f32) -> Rule {
        ensure(!c.is_nan(), || "is given NaN".into())?;
        let t = self.tile_result()?;
        let layout = if t.layout == Layout::Operand { Layout::Reg } else { t.layout };
        ensure(t.dtype != DType::I32 || c.fract() == 0.0, || format!("makes no i32 of {c:?}"))?;
        self.gives(layout, &t.shape, if t.dtype == DType::I32 { DType::I32 } else { DType::F32 })
    }

    fn iota(&self, start: Val, div: usize) -> Rule {
        self.indices(&[start])?;
        ensure(div > 0, || "divides by 0".into())?;
        let t = self.tile_result()?;
        ensure(t.shape.len() == 1, || format!("gives rank 1, not {t}"))?;
        self.gives(Layout::Reg, &t.shape, DType::I32)
    }

    fn matrix(&self, v: Val, layout: Layout) -> Result<([usize; 2], DType), String> {
        match self.tile(v)? {
            TileType { layout: found, shape, dtype } if *found == layout && shape.len() == 2 => {
                Ok(([shape[0], shape[1]], *dtype))
            }
            t => Err(format!("takes {} of rank 2 where `{}` is {t}", layout.name(), name(self.k, v))),
        }
    }

    fn mma(&self, a: Val, b: Val, acc: Val) -> Rule {
        let ([m, ka], a_type) = self.matrix(a, Layout::Operand)?;
        let ([n, kb], b_type) = self.matrix(b, Layout::Operand)?;
        let (shape, acc_type) = self.matrix(acc, Layout::Acc)?;
        ensure(ka == kb, || format!("contracts a dim 1 ({ka}) with b dim 1 ({kb})"))?;
        let sum = match (a_type, b_type) {
            (DType::I8, DType::I8 | DType::U8 | DType::U4) => Some(DType::I32),
            (a, b) if a == b && a.is_float() => Some(DType::F32),
            _ => None,
        };
        let sum = sum.ok_or_else(|| format!("multiplies {a_type} with {b_type}"))?;
        ensure(shape == [m, n], || format!("adds [{m}, {n}] to an accumulator of {shape:?}"))?;
        ensure(acc_type == sum, || format!("accumulates in {sum}, not {acc_type}"))?;
        self.gives(Layout::Acc, &shape, sum)
    }

    /// That the tiles agree in layout, shape and element type.
    fn agree(&self, vals: &[Val]) -> Rule {
        let first = self.tile(vals[0])?;
        match vals.iter().find(|v| *self.k.ty(**v) != Type::Tile(first.clone())) {
            None => Ok(()),
            Some(v) => {
                let [a, b] = [vals[0], *v].map(|v| format!("`{}` ({})", name(self.k, v), self.k.ty(v)));
                Err(format!("takes tiles of one type, not {a} and {b}"))
            }
        }
    }

    fn map(&self, op: MapOp, args: &[Val]) -> Rule {
        ensure(args.len() == op.arity(), || format!("takes {} tiles, not {}", op.arity(), args.len()))?;
        let t = self.number(args[0])?;
        self.agree(args)?;
        self.gives(t.layout, &t.shape, t.dtype)
    }

    fn select(&self, compared: [Val; 2], chosen: [Val; 2]) -> Rule {
        let (c, t) = (self.computed(compared[0])?, self.number(chosen[0])?);
        ensure(matches!(c.dtype, DType::F32 | DType::I32), || format!("compares f32 or i32, not {c}"))?;
        self.agree(&compared)?;
        self.agree(&chosen)?;
        ensure((c.layout, &c.shape) == (t.layout, &t.shape), || {
            format!("compares {c} to choose between tiles of {t}")
        })?;
        self.gives(t.layout, &t.shape, t.dtype)
    }

    fn cast(&self, v: Val) -> Rule {
        let (t, to) = (self.tile(v)?, self.tile_result()?.dtype);
        if t.layout == Layout::Operand {
            return self.widen(v, t, to);
        }
        let known = matches!(
            (t.dtype, to),
            (DType::F32, DType::F16 | DType::Bf16 | DType::F8e4m3 | DType::I8)
                | (DType::F16 | DType::Bf16 | DType::F8e4m3 | DType::I8 | DType::I32, DType::F32)
        );
        ensure(known, || format!("turns {} into {to}, which no rule gives", t.dtype))?;
        self.gives(t.layout, &t.shape, to)
    }

    /// An operand in an element type that holds all of its numbers.
    fn widen(&self, v: Val, t: &TileType, to: DType) -> Rule {
        self.matrix(v, Layout::Operand)?;
        let exact = match t.dtype {
            DType::I8 | DType::F8e4m3 => matches!(to, DType::Bf16 | DType::F32),
            DType::F16 | DType::Bf16 => to == DType::F32,
            _ => false,
        };
        ensure(exact, || format!("turns an operand of {} into {to}, which is not exact", t.dtype))?;
        self.gives(Layout::Operand, &t.shape, to)
    }

    fn reduce(&self, v: Val, axis: usize) -> Rule {
        let t = self.number(v)?;
        ensure(axis < t.shape.len(), || format!("takes axis {axis} of {t}"))?;
        let mut shape = t.shape.clone();
        shape.remove(axis);
        self.gives(Layout::Reg, &shape, t.dtype)
    }

    fn broadcast(&self, v: Val, axis: usize) -> Rule {
        let (t, result) = (self.computed(v)?, self.tile_result()?);
        ensure(axis <= t.shape.len(), || format!("inserts axis {axis} into {t}"))?;
        let mut shape = t.shape.clone();
        shape.insert(axis, result.shape.get(axis).copied().unwrap_or(1));
        let layout = if result.layout == Layout::Operand { Layout::Reg } else { result.layout };
        self.gives(layout, &shape, t.dtype)
    }

    fn reshape(&self, v: Val) -> Rule {
        let (t, result) = (self.tile(v)?, self.tile_result()?);
        let [from, to] = [t, result].map(elements);
        ensure(from == to, || format!("makes {to} elements of {from}"))?;
        self.gives(t.layout, &result.shape, t.dtype)
    }

    fn stage(&self, v: Val) -> Rule {
        let t = self.computed(v)?;
        ensure(t.dtype.is_float(), || format!("makes no operand of {t}"))?;
        self.gives(Layout::Operand, &t.shape, t.dtype)
    }

    fn concat(&self, parts: &[Val], axis: usize) -> Rule {
        let Some(first) = parts.first() else { return Err("puts no tiles side by side".into()) };
        let t = self.tile(*first)?;
        let rows = t.layout == Layout::Reg && t.shape.len() == 1 && t.dtype.is_float();
        if !rows {
            self.matrix(*first, Layout::Operand)?;
        }
        self.agree(parts)?;
        let mut shape = t.shape.clone();
        ensure(axis < shape.len(), || format!("takes axis {axis} of {t}"))?;
        shape[axis] = shape[axis].saturating_mul(parts.len());
        self.gives(t.layout, &shape, t.dtype)
    }

    fn pipeline(&self, bounds: [Val; 2], stages: usize, init: &[Val], body: &Block) -> Rule {
        self.indices(&bounds)?;
        ensure(stages > 0, || "runs loads ahead by 0 stages; 1 is not at all".into())?;
        let Some((index, carried)) = body.params.split_first() else { return Err("has no index".into()) };
        self.indices(&[*index])?;
        self.same_types("carries", carried, init)?;
        self.same_types("yields", &body.yields, carried)?;
        self.same_types("returns", &self.s.results, carried)
    }

    fn same_types(&self, verb: &str, found: &[Val], expected: &[Val]) -> Rule {
        ensure(found.len() == expected.len(), || {
            format!("{verb} {} values where {} enter", found.len(), expected.len())
        })?;
        match found.iter().zip(expected).find(|(f, e)| self.k.ty(**f) != self.k.ty(**e)) {
            None => Ok(()),
            Some((f, e)) => {
                let (f, e) = (*f, *e);
                let found = format!("`{}` ({})", name(self.k, f), self.k.ty(f));
                Err(format!("{verb} {found} where `{}` is {}", name(self.k, e), self.k.ty(e)))
            }
        }
    }
}

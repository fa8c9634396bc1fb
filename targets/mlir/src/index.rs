//! Index values: folded where constant, with what is known of a value that is not: what divides it, and its largest
//! value. That decides which bounds need a check and which addresses are constant distances.

use crate::text::{Ssa, Ty, Writer};
use rvllm_ir::tile::IndexOp;

#[derive(Clone, Copy, Debug, PartialEq)]
enum At {
    Const(i64),
    Val(Ssa),
}

/// An `i64` with facts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Index {
    at: At,
    /// Divides the value; 0 for zero, which everything divides.
    multiple: i64,
    /// Upper bound, where known.
    max: Option<i64>,
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a.abs() } else { gcd(b, a % b) }
}

fn fold(op: IndexOp, a: i64, b: i64) -> Option<i64> {
    match op {
        IndexOp::Add => a.checked_add(b),
        IndexOp::Sub => a.checked_sub(b),
        IndexOp::Mul => a.checked_mul(b),
        IndexOp::Div => a.checked_div(b),
        IndexOp::Rem => a.checked_rem(b),
        IndexOp::Min => Some(a.min(b)),
        IndexOp::Max => Some(a.max(b)),
    }
}

pub(crate) fn operation(op: IndexOp) -> &'static str {
    match op {
        IndexOp::Add => "arith.addi",
        IndexOp::Sub => "arith.subi",
        IndexOp::Mul => "arith.muli",
        IndexOp::Div => "arith.divsi",
        IndexOp::Rem => "arith.remsi",
        IndexOp::Min => "arith.minsi",
        IndexOp::Max => "arith.maxsi",
    }
}

impl Index {
    pub(crate) fn constant(c: i64) -> Index {
        Index { at: At::Const(c), multiple: c.abs(), max: Some(c) }
    }

    /// A value of which nothing is known.
    pub(crate) fn value(v: Ssa) -> Index {
        Index { at: At::Val(v), multiple: 1, max: None }
    }

    pub(crate) fn bounded(self, max: Option<i64>) -> Index {
        Index { max, ..self }
    }

    pub(crate) fn as_const(self) -> Option<i64> {
        match self.at {
            At::Const(c) => Some(c),
            At::Val(_) => None,
        }
    }

    /// Whether `n` is known to divide it.
    pub(crate) fn is_multiple_of(self, n: usize) -> bool {
        self.multiple % n as i64 == 0
    }

    /// Whether it is known to be at most `n`.
    pub(crate) fn at_most(self, n: i64) -> bool {
        self.max.is_some_and(|max| max <= n)
    }

    fn multiple_of(op: IndexOp, a: Index, b: Index) -> i64 {
        match (op, b.as_const()) {
            (IndexOp::Mul, _) => a.multiple.saturating_mul(b.multiple),
            (IndexOp::Div, Some(d)) if d > 0 && a.multiple % d == 0 => a.multiple / d,
            (IndexOp::Div, _) => 1,
            (IndexOp::Add | IndexOp::Sub | IndexOp::Rem | IndexOp::Min | IndexOp::Max, _) => {
                gcd(a.multiple, b.multiple)
            }
        }
    }

    fn max_of(op: IndexOp, a: Index, b: Index) -> Option<i64> {
        match (op, b.as_const()) {
            (IndexOp::Add, _) => a.max?.checked_add(b.max?),
            (IndexOp::Sub, Some(c)) => a.max?.checked_sub(c),
            (IndexOp::Mul, Some(c)) if c >= 0 => a.max?.checked_mul(c),
            (IndexOp::Div, Some(c)) if c > 0 => Some(a.max? / c),
            (IndexOp::Rem, Some(c)) if c > 0 => Some(c - 1),
            (IndexOp::Min, _) => a.max.into_iter().chain(b.max).min(),
            (IndexOp::Max, _) => Some(a.max?.max(b.max?)),
            _ => None,
        }
    }
}

impl Writer {
    /// The value as SSA.
    pub(crate) fn ssa(&mut self, i: Index) -> Ssa {
        match i.at {
            At::Const(c) => self.int(c),
            At::Val(v) => v,
        }
    }

    /// Integer arithmetic, folded where it can be.
    pub(crate) fn index(&mut self, op: IndexOp, a: Index, b: Index) -> Index {
        if let (Some(x), Some(y)) = (a.as_const(), b.as_const())
            && let Some(c) = fold(op, x, y)
        {
            return Index::constant(c);
        }
        match (op, a.as_const(), b.as_const()) {
            (IndexOp::Add, Some(0), _) | (IndexOp::Mul, Some(1), _) => return b,
            (IndexOp::Add | IndexOp::Sub, _, Some(0)) | (IndexOp::Mul | IndexOp::Div, _, Some(1)) => return a,
            (IndexOp::Mul, Some(0), _) | (IndexOp::Mul, _, Some(0)) | (IndexOp::Rem, _, Some(1)) => {
                return Index::constant(0);
            }
            _ => {}
        }
        let (x, y) = (self.ssa(a), self.ssa(b));
        let at = At::Val(self.binary(operation(op), x, y));
        Index { at, multiple: Index::multiple_of(op, a, b), max: Index::max_of(op, a, b) }
    }

    pub(crate) fn add(&mut self, a: Index, b: Index) -> Index {
        self.index(IndexOp::Add, a, b)
    }

    pub(crate) fn add_const(&mut self, a: Index, c: usize) -> Index {
        self.index(IndexOp::Add, a, Index::constant(c as i64))
    }

    pub(crate) fn mul(&mut self, a: Index, b: Index) -> Index {
        self.index(IndexOp::Mul, a, b)
    }

    pub(crate) fn scale(&mut self, a: Index, c: usize) -> Index {
        self.index(IndexOp::Mul, a, Index::constant(c as i64))
    }

    pub(crate) fn div(&mut self, a: Index, c: usize) -> Index {
        self.index(IndexOp::Div, a, Index::constant(c as i64))
    }

    pub(crate) fn rem(&mut self, a: Index, c: usize) -> Index {
        self.index(IndexOp::Rem, a, Index::constant(c as i64))
    }

    /// `p` plus a number of bytes.
    pub(crate) fn at(&mut self, p: Ssa, bytes: Index) -> Ssa {
        match bytes.at {
            At::Const(c) => self.offset(p, c),
            At::Val(v) => self.advance(p, v),
        }
    }

    /// An `f32` that is a whole number as an index.
    pub(crate) fn number_index(&mut self, number: Ssa) -> Index {
        Index::value(self.convert("arith.fptosi", number, Ty::I64))
    }

    /// An `i32` in memory as an index.
    pub(crate) fn load_index(&mut self, p: Ssa) -> Index {
        let v = self.load(p, Ty::Scalar(crate::text::Elem::I32), 4);
        Index::value(self.convert("arith.extsi", v, Ty::I64))
    }
}

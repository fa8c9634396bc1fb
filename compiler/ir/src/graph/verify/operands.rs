//! Operands of an operation as its inference rule sees them: each accessor checks one fact and names the
//! operation, the operand and both sides where it does not hold.

use crate::{
    graph::ValueType,
    types::{DType, Dim, TensorType},
};

/// What an inference rule yields: result types, or the message.
pub(super) type Inferred = Result<Vec<ValueType>, String>;

/// The operands of operation `op`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operands<'a> {
    pub(super) op: &'a str,
    pub(super) types: &'a [&'a ValueType],
}

impl<'a> Operands<'a> {
    /// That there are `n` of them.
    pub(super) fn count(&self, n: usize) -> Result<(), String> {
        match self.types.len() {
            found if found == n => Ok(()),
            found => Err(format!("`{}` takes {n} operands, not {found}", self.op)),
        }
    }

    /// Operand `i`, a tensor.
    pub(super) fn tensor(&self, i: usize, name: &str) -> Result<&'a TensorType, String> {
        match self.types.get(i) {
            Some(ValueType::Tensor(t)) => Ok(t),
            Some(kv) => Err(format!("`{}` needs a tensor as {name}, not {kv}", self.op)),
            None => Err(format!("`{}` lacks operand {name}", self.op)),
        }
    }

    /// Operand `i`, a tensor of numbers of some rank.
    pub(super) fn ranked(&self, i: usize, name: &str, rank: usize) -> Result<&'a TensorType, String> {
        let t = self.numbers(i, name)?;
        if t.rank() == rank {
            return Ok(t);
        }
        Err(format!("`{}` needs {name} of rank {rank}, not {t}", self.op))
    }

    /// Operand `i`, a floating-point tensor of rank 1 or more.
    pub(super) fn numbers(&self, i: usize, name: &str) -> Result<&'a TensorType, String> {
        let t = self.tensor(i, name)?;
        let float = !matches!(t.dtype, DType::I8 | DType::U4 | DType::U8 | DType::I32);
        if float && t.rank() > 0 {
            return Ok(t);
        }
        Err(format!("`{}` needs floating-point {name} of rank 1 or more, not {t}", self.op))
    }

    /// Operand `i`, a `[_]i32`; its dimension.
    pub(super) fn indices(&self, i: usize, name: &str) -> Result<Dim, String> {
        let t = self.tensor(i, name)?;
        match t.dims.as_slice() {
            [n] if t.dtype == DType::I32 => Ok(*n),
            _ => Err(format!("`{}` needs {name} as [n]i32, not {t}", self.op)),
        }
    }

    /// That operand `i` is exactly `expected`.
    pub(super) fn exactly(&self, i: usize, name: &str, expected: &TensorType) -> Result<(), String> {
        let t = self.tensor(i, name)?;
        if t == expected { Ok(()) } else { Err(format!("`{}` needs {name} as {expected}, not {t}", self.op)) }
    }

    /// That operand `i` is the KV cache of `layer`.
    pub(super) fn kv(&self, i: usize, layer: usize) -> Result<(), String> {
        match self.types.get(i) {
            Some(ValueType::Kv(l)) if *l == layer => Ok(()),
            Some(other) => Err(format!("`{}` needs the cache kv<{layer}>, not {other}", self.op)),
            None => Err(format!("`{}` lacks the cache kv<{layer}>", self.op)),
        }
    }

    /// Static size of dimension `dim` of `t`.
    pub(super) fn size(&self, t: &TensorType, dim: usize, name: &str) -> Result<usize, String> {
        t.dims
            .get(dim)
            .and_then(|d| d.constant())
            .ok_or_else(|| format!("`{}` needs a static dim {dim} of {name}, not {t}", self.op))
    }

    /// Static size of the last dimension of `t`.
    pub(super) fn last(&self, t: &TensorType, name: &str) -> Result<usize, String> {
        self.size(t, t.rank().saturating_sub(1), name)
    }

    /// Types of `x·wᵀ` with an optional bias after the weight, in `out`.
    pub(super) fn product(&self, out: DType, bias: bool) -> Result<TensorType, String> {
        let (x, w) = (self.numbers(0, "x")?, self.ranked(1, "w", 2)?);
        let (k, kw) = (self.last(x, "x")?, self.size(w, 1, "w")?);
        if k != kw {
            return Err(format!("`{}` contracts x dim {} ({k}) with w dim 1 ({kw})", self.op, x.rank() - 1));
        }
        if x.dtype != w.dtype {
            return Err(format!("`{}` multiplies x of {} with w of {}", self.op, x.dtype, w.dtype));
        }
        if bias {
            self.exactly(2, "bias", &TensorType::new([w.dims[0]], w.dtype))?;
        }
        let mut dims = x.dims.clone();
        dims[x.rank() - 1] = w.dims[0];
        Ok(TensorType { dims, dtype: out })
    }
}

/// One tensor result.
pub(super) fn one(dims: impl IntoIterator<Item = Dim>, dtype: DType) -> Inferred {
    Ok(vec![ValueType::Tensor(TensorType::new(dims, dtype))])
}

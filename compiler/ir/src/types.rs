//! Element types, dimensions and tensor types, shared by both IRs.

use crate::expr::{Expr, Sym};
use std::fmt;

/// Element types. `i32` holds token ids, positions, block tables; the rest are numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16, round to nearest even.
    Bf16,
    /// FP8 E4M3 (finite only).
    F8e4m3,
    /// FP8 E5M2.
    F8e5m2,
    /// Signed 8-bit integer.
    I8,
    /// Unsigned 4-bit integer, two to a byte.
    U4,
    /// Unsigned byte.
    U8,
    /// Signed 32-bit integer.
    I32,
}

impl DType {
    /// Every element type.
    pub const ALL: [DType; 9] = [
        DType::F32,
        DType::F16,
        DType::Bf16,
        DType::F8e4m3,
        DType::F8e5m2,
        DType::I8,
        DType::U4,
        DType::U8,
        DType::I32,
    ];

    /// The name used in text and in artifacts.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
            DType::F8e4m3 => "f8e4m3",
            DType::F8e5m2 => "f8e5m2",
            DType::I8 => "i8",
            DType::U4 => "u4",
            DType::U8 => "u8",
            DType::I32 => "i32",
        }
    }

    /// The element type with this name.
    pub fn parse(name: &str) -> Option<DType> {
        DType::ALL.into_iter().find(|d| d.name() == name)
    }

    /// Size of one element in bits.
    pub fn bits(self) -> usize {
        match self {
            DType::F32 | DType::I32 => 32,
            DType::F16 | DType::Bf16 => 16,
            DType::F8e4m3 | DType::F8e5m2 | DType::I8 | DType::U8 => 8,
            DType::U4 => 4,
        }
    }

    /// Size of `n` elements in bytes, rounded up.
    pub fn bytes(self, n: usize) -> usize {
        (n * self.bits()).div_ceil(8)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A dimension: known at compile time, or a symbol of the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dim {
    /// Known at compile time.
    Const(usize),
    /// Known per step.
    Sym(Sym),
    /// A symbol plus one: the length of a prefix-sum array such as `query_start_loc[R+1]`.
    SymPlusOne(Sym),
}

impl Dim {
    /// The static size, if it is one.
    pub fn constant(self) -> Option<usize> {
        match self {
            Dim::Const(n) => Some(n),
            Dim::Sym(_) | Dim::SymPlusOne(_) => None,
        }
    }

    /// As an expression.
    pub fn expr(self) -> Expr {
        match self {
            Dim::Const(n) => Expr::Const(n as i64),
            Dim::Sym(s) => Expr::Sym(s),
            Dim::SymPlusOne(s) => Expr::Sym(s) + Expr::Const(1),
        }
    }
}

impl From<usize> for Dim {
    fn from(n: usize) -> Dim {
        Dim::Const(n)
    }
}

impl From<Sym> for Dim {
    fn from(s: Sym) -> Dim {
        Dim::Sym(s)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Const(n) => write!(f, "{n}"),
            Dim::Sym(s) => write!(f, "{s}"),
            Dim::SymPlusOne(s) => write!(f, "{s}+1"),
        }
    }
}

/// Shape and element type of a tensor: `[T, 4096]bf16`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorType {
    /// Sizes, outermost first.
    pub dims: Vec<Dim>,
    /// Element type.
    pub dtype: DType,
}

impl TensorType {
    /// A tensor type.
    pub fn new(dims: impl IntoIterator<Item = impl Into<Dim>>, dtype: DType) -> TensorType {
        TensorType { dims: dims.into_iter().map(Into::into).collect(), dtype }
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.dims.len()
    }

    /// The last dimension, where static.
    pub fn last(&self) -> Option<usize> {
        self.dims.last().and_then(|d| d.constant())
    }

    /// Number of elements, where every dimension is static.
    pub fn elements(&self) -> Option<usize> {
        self.dims.iter().map(|d| d.constant()).product()
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dims: Vec<String> = self.dims.iter().map(Dim::to_string).collect();
        write!(f, "[{}]{}", dims.join(", "), self.dtype)
    }
}

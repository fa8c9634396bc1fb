//! The words of the text form: one table per enumeration, read both ways.

use super::{Access, Cmp, IndexOp, Layout, MapOp, ReduceOp, TileType, Type};
use std::fmt;

/// Gives an enumeration its words: `name()`, and `parse()` as the inverse.
macro_rules! words {
    ($type:ident, $what:literal, $($variant:ident = $word:literal),+ $(,)?) => {
        impl $type {
            #[doc = concat!("The word for this ", $what, ".")]
            pub fn name(self) -> &'static str {
                match self {
                    $($type::$variant => $word,)+
                }
            }

            #[doc = concat!("The ", $what, " that this word names.")]
            pub fn parse(word: &str) -> Option<$type> {
                match word {
                    $($word => Some($type::$variant),)+
                    _ => None,
                }
            }
        }
    };
}

words!(Access, "access", In = "in", Weight = "weight", Step = "step", Out = "out", InOut = "inout");
words!(Layout, "tile layout", Reg = "reg", Acc = "acc", Operand = "operand");
words!(Cmp, "comparison", Lt = "lt", Le = "le", Eq = "eq");
words!(ReduceOp, "reduction", Sum = "reduce_sum", Max = "reduce_max");
words!(
    IndexOp,
    "index operation",
    Add = "add",
    Sub = "sub",
    Mul = "mul",
    Div = "div",
    Rem = "rem",
    Min = "min",
    Max = "max",
);
words!(
    MapOp,
    "elementwise operation",
    Add = "add",
    Sub = "sub",
    Mul = "mul",
    Div = "div",
    Max = "max",
    Min = "min",
    Neg = "neg",
    Exp = "exp",
    Log = "log",
    Rsqrt = "rsqrt",
    Tanh = "tanh",
);

impl fmt::Display for TileType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shape: Vec<String> = self.shape.iter().map(usize::to_string).collect();
        write!(f, "{}[{}]{}", self.layout.name(), shape.join(", "), self.dtype)
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Index => f.write_str("index"),
            Type::Tile(t) => t.fmt(f),
        }
    }
}

//! Weight recipes: how a weight that kernels read is made from the tensors of a checkpoint.
//!
//! The text form is the expression itself: `pack[32, 2](concat("q_proj.weight", "k_proj.weight"))`.

use crate::{
    rope::Rope,
    text::{Cursor, Read, Token},
    types::DType,
};
use std::fmt;

/// An expression over checkpoint tensors.
#[derive(Clone, Debug, PartialEq)]
pub enum Recipe {
    /// A tensor of the checkpoint, by its key.
    Tensor(String),
    /// Concatenation along dimension 0 (`merge linears`).
    Concat(Vec<Recipe>),
    /// Conversion of the element type, round to nearest even.
    Cast(DType, Box<Recipe>),
    /// What `[N, K]` is quantised to, row by row: see [`Part`] and [`crate::graph::Scales`].
    Quantize {
        /// Element type of the values.
        to: DType,
        /// Columns that share a scale; all of a row where absent.
        group: Option<usize>,
        /// What is made.
        part: Part,
        /// The `[N, K]` tensor.
        of: Box<Recipe>,
    },
    /// `[N, K]` into panels of `n` rows: see [`crate::tile::MemLayout::Panel`].
    Pack {
        /// Rows of one panel.
        n: usize,
        /// Adjacent k values that one lane holds (1 for f32, 2 for bf16).
        k: usize,
        /// The `[N, K]` tensor to pack.
        of: Box<Recipe>,
    },
    /// `[matrices * N, K]` into blocks that the matrices share: see [`crate::tile::MemLayout::Blocks`].
    Blocks {
        /// Columns of a block.
        k: usize,
        /// Matrices that lie one after the other in what is laid out.
        matrices: usize,
        /// The matrices.
        of: Box<Recipe>,
    },
    /// `[matrices * N, K]` into pieces that the matrices share: see [`crate::tile::MemLayout::Fragments`].
    Fragments {
        /// Columns of a piece.
        k: usize,
        /// Matrices that lie one after the other in what is laid out.
        matrices: usize,
        /// The matrices.
        of: Box<Recipe>,
    },
    /// `[positions, 2, dim/2]f32`: cosines, then sines, of every position below `positions`.
    RopeTable {
        /// Frequencies and scaling.
        rope: Rope,
        /// Number of positions: the compiled `max_model_len`.
        positions: usize,
    },
}

/// One of the two tensors that a matrix is quantised to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// `[N, K]` in the type asked for.
    Values,
    /// `[N]f32`, or `[N, K/group]`: f16 of integers, f32 of floats.
    Scales,
}

/// The element type of the scales that [`Recipe::Quantize`] makes: f16 for groups of integers, else f32.
pub fn scale_dtype(to: DType, group: Option<usize>) -> DType {
    if group.is_some() && !to.is_float() { DType::F16 } else { DType::F32 }
}

impl Recipe {
    /// The checkpoint tensor `name`, as it is.
    pub fn tensor(name: impl Into<String>) -> Recipe {
        Recipe::Tensor(name.into())
    }

    /// Keys of all checkpoint tensors it reads, in order.
    pub fn sources(&self) -> Vec<&str> {
        match self {
            Recipe::Tensor(name) => vec![name],
            Recipe::Concat(parts) => parts.iter().flat_map(Recipe::sources).collect(),
            Recipe::Cast(_, of)
            | Recipe::Quantize { of, .. }
            | Recipe::Pack { of, .. }
            | Recipe::Blocks { of, .. }
            | Recipe::Fragments { of, .. } => of.sources(),
            Recipe::RopeTable { .. } => vec![],
        }
    }
}

impl Recipe {
    /// Reads what [`Recipe`] prints.
    pub fn read(c: &mut Cursor<'_>) -> Read<Recipe> {
        if let Token::Str(_) = c.peek() {
            return Ok(Recipe::Tensor(c.string("a checkpoint key")?));
        }
        match c.peek() {
            Token::Ident("concat") => Recipe::read_concat(c),
            Token::Ident("cast") => Recipe::read_cast(c),
            Token::Ident("values") => Recipe::read_quantize(c, Part::Values),
            Token::Ident("scales") => Recipe::read_quantize(c, Part::Scales),
            Token::Ident("pack") => Recipe::read_pack(c),
            Token::Ident("blocks") => {
                let (k, matrices, of) = Recipe::read_shared(c, "the columns of a block")?;
                Ok(Recipe::Blocks { k, matrices, of })
            }
            Token::Ident("fragments") => {
                let (k, matrices, of) = Recipe::read_shared(c, "the columns of a piece")?;
                Ok(Recipe::Fragments { k, matrices, of })
            }
            Token::Ident("rope_table") => Recipe::read_rope_table(c),
            _ => {
                let known = "a checkpoint key, concat, cast, values, scales, pack, blocks, fragments or rope_table";
                Err(c.expected(&format!("a recipe ({known})")))
            }
        }
    }

    fn read_concat(c: &mut Cursor<'_>) -> Read<Recipe> {
        c.bump();
        c.expect('(')?;
        Ok(Recipe::Concat(c.list(')', |c| c.nested(Recipe::read))?))
    }

    fn read_cast(c: &mut Cursor<'_>) -> Read<Recipe> {
        c.bump();
        c.expect('[')?;
        let dtype = c.dtype()?;
        c.expect(']')?;
        Ok(Recipe::Cast(dtype, Recipe::read_inner(c)?))
    }

    fn read_quantize(c: &mut Cursor<'_>, part: Part) -> Read<Recipe> {
        c.bump();
        c.expect('[')?;
        let to = c.dtype()?;
        let group = match c.eat(',') {
            true => Some(c.number("the columns that share a scale")?),
            false => None,
        };
        c.expect(']')?;
        Ok(Recipe::Quantize { to, group, part, of: Recipe::read_inner(c)? })
    }

    fn read_pack(c: &mut Cursor<'_>) -> Read<Recipe> {
        c.bump();
        c.expect('[')?;
        let n = c.number("the rows of a panel")?;
        c.expect(',')?;
        let k = c.number("the adjacent k values of a panel")?;
        c.expect(']')?;
        Ok(Recipe::Pack { n, k, of: Recipe::read_inner(c)? })
    }

    /// Columns, matrices that share what is laid out, and what these are.
    fn read_shared(c: &mut Cursor<'_>, columns: &str) -> Read<(usize, usize, Box<Recipe>)> {
        c.bump();
        c.expect('[')?;
        let k = c.number(columns)?;
        c.expect(',')?;
        let matrices = c.number("the matrices that share it")?;
        c.expect(']')?;
        Ok((k, matrices, Recipe::read_inner(c)?))
    }

    fn read_inner(c: &mut Cursor<'_>) -> Read<Box<Recipe>> {
        c.expect('(')?;
        let inner = c.nested(Recipe::read)?;
        c.expect(')')?;
        Ok(Box::new(inner))
    }

    fn read_rope_table(c: &mut Cursor<'_>) -> Read<Recipe> {
        c.bump();
        c.expect('[')?;
        let positions = c.number("a number of positions")?;
        c.expect(']')?;
        c.expect('(')?;
        let mut attrs = c.attrs(')')?;
        let rope = Rope::read(&mut attrs)?;
        attrs.finish()?;
        Ok(Recipe::RopeTable { rope, positions })
    }
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Recipe::Tensor(name) => write!(f, "{name:?}"),
            Recipe::Concat(parts) => {
                let parts: Vec<String> = parts.iter().map(Recipe::to_string).collect();
                write!(f, "concat({})", parts.join(", "))
            }
            Recipe::Cast(dtype, of) => write!(f, "cast[{dtype}]({of})"),
            Recipe::Quantize { to, group, part, of } => {
                let part = if *part == Part::Values { "values" } else { "scales" };
                let group = group.map_or(String::new(), |n| format!(", {n}"));
                write!(f, "{part}[{to}{group}]({of})")
            }
            Recipe::Pack { n, k, of } => write!(f, "pack[{n}, {k}]({of})"),
            Recipe::Blocks { k, matrices, of } => write!(f, "blocks[{k}, {matrices}]({of})"),
            Recipe::Fragments { k, matrices, of } => write!(f, "fragments[{k}, {matrices}]({of})"),
            Recipe::RopeTable { rope, positions } => write!(f, "rope_table[{positions}]({rope})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_prints() {
        for text in [
            r#""model.embed_tokens.weight""#,
            r#"pack[32, 2](concat(cast[bf16]("q.weight"), "k.\"odd\".weight"))"#,
            r#"pack[32, 4](values[i8](concat("q.weight", "k.weight")))"#,
            r#"scales[u4, 32]("gate.weight")"#,
            r#"blocks[64, 2](concat("gate.weight", "up.weight"))"#,
            r#"fragments[64, 1](values[u4, 32]("down.weight"))"#,
            "rope_table[4096](dim = 64, theta = 10000.0)",
            "rope_table[128](dim = 64, theta = 500000.0, linear, factor = 4.0)",
        ] {
            assert_eq!(Recipe::read(&mut Cursor::new(text, "t")).unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let message = |text| Recipe::read(&mut Cursor::new(text, "t")).unwrap_err().message;
        assert!(message("merge(\"a\")").starts_with("expected a recipe"));
        assert_eq!(message("cast[bf17](\"a\")"), "expected an element type, found `bf17`");
        assert_eq!(message("rope_table[8](dim = 4, theta = 1e4, ntk)"), "unknown attribute `ntk`");
    }
}

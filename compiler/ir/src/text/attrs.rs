//! Attributes of an operation: `{eps = 1e-6, rows}`.

use super::{Read, Token};
use crate::{
    diag::{Diagnostic, Loc},
    types::DType,
};
use std::str::FromStr;

/// Attributes of an operation, taken by name; [`Attrs::finish`] refuses those that nobody took.
#[derive(Clone, Debug)]
pub struct Attrs<'a> {
    pub(super) items: Vec<(&'a str, Option<Token<'a>>)>,
    pub(super) loc: Loc,
}

impl<'a> Attrs<'a> {
    /// No attributes, of an operation at `loc`.
    pub fn none(loc: Loc) -> Attrs<'a> {
        Attrs { items: vec![], loc }
    }

    pub(crate) fn error(&self, message: String) -> Diagnostic {
        Diagnostic::new(message, Some(self.loc.clone()))
    }

    fn take(&mut self, key: &str) -> Option<Option<Token<'a>>> {
        let i = self.items.iter().position(|(k, _)| *k == key)?;
        Some(self.items.remove(i).1)
    }

    /// Whether the flag `key` is there.
    pub fn flag(&mut self, key: &str) -> Read<bool> {
        match self.take(key) {
            None => Ok(false),
            Some(None) => Ok(true),
            Some(Some(_)) => Err(self.error(format!("attribute `{key}` takes no value"))),
        }
    }

    /// The value of `key`, where it is there.
    pub fn optional<T: FromStr>(&mut self, key: &str) -> Read<Option<T>> {
        self.optional_with(key, |s| s.parse().ok())
    }

    /// The value of `key`.
    pub fn required<T: FromStr>(&mut self, key: &str) -> Read<T> {
        self.optional(key)?.ok_or_else(|| self.error(format!("attribute `{key}` is missing")))
    }

    /// The element type that is the value of `key`.
    pub fn required_dtype(&mut self, key: &str) -> Read<DType> {
        self.dtype(key)?.ok_or_else(|| self.error(format!("attribute `{key}` is missing")))
    }

    /// The element type that is the value of `key`, where it is there.
    pub fn dtype(&mut self, key: &str) -> Read<Option<DType>> {
        self.optional_with(key, DType::parse)
    }

    /// The value of `key` as `read` reads it, where it is there.
    pub fn optional_with<T>(&mut self, key: &str, read: impl Fn(&str) -> Option<T>) -> Read<Option<T>> {
        match self.take(key) {
            None => Ok(None),
            Some(Some(Token::Ident(s) | Token::Number(s))) => {
                read(s).map(Some).ok_or_else(|| self.error(format!("attribute `{key}` cannot be `{s}`")))
            }
            Some(Some(t)) => Err(self.error(format!("attribute `{key}` cannot be {t}"))),
            Some(None) => Err(self.error(format!("attribute `{key}` needs a value"))),
        }
    }

    /// That every attribute was taken.
    pub fn finish(self) -> Read<()> {
        match self.items.first() {
            None => Ok(()),
            Some((key, _)) => Err(self.error(format!("unknown attribute `{key}`"))),
        }
    }
}

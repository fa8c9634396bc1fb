//! Keys and values of a GGUF header.
//!
//! Invariants: nothing is allocated before the bytes that fill it are known to be there.

use crate::error::{Error, Result};
use std::collections::BTreeMap;

/// Deepest nesting of arrays.
const MAX_DEPTH: usize = 4;
/// Fewest bytes of a key with its value.
const LEAST_KEY: u64 = 13;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// An integer of any width.
    Integer(i128),
    /// A number.
    Number(f64),
    /// True or false.
    Bool(bool),
    /// UTF-8.
    Text(String),
    /// Values of one type.
    Array(Vec<Value>),
}

/// All keys.
#[derive(Clone, Debug, Default)]
pub struct Metadata(BTreeMap<String, Value>);

impl Metadata {
    /// Reads this many keys.
    ///
    /// # Errors
    /// One runs past the file, is of an unknown type, nested too deeply, or there twice.
    pub fn read(reader: &mut Reader<'_>, keys: u64) -> Result<Metadata> {
        reader.expect(keys, LEAST_KEY, "keys")?;
        let mut all = BTreeMap::new();
        for _ in 0..keys {
            let key = reader.text()?;
            let kind = reader.u32()?;
            let value = reader.value(kind, MAX_DEPTH)?;
            if all.insert(key.clone(), value).is_some() {
                return Err(reader.damaged(format!("key {key} twice")));
            }
        }
        Ok(Metadata(all))
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// All keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// An integer that is not negative.
    pub fn u64(&self, key: &str) -> Option<u64> {
        match self.get(key)? {
            Value::Integer(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }

    /// A number.
    pub fn number(&self, key: &str) -> Option<f64> {
        match self.get(key)? {
            Value::Integer(n) => Some(*n as f64),
            Value::Number(x) => Some(*x),
            _ => None,
        }
    }

    /// True or false.
    pub fn flag(&self, key: &str) -> Option<bool> {
        match self.get(key)? {
            Value::Bool(b) => Some(*b),
            _ => None,
        }
    }

    /// A text.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// An array.
    pub fn array(&self, key: &str) -> Option<&[Value]> {
        match self.get(key)? {
            Value::Array(values) => Some(values),
            _ => None,
        }
    }

    /// Name of the architecture: `llama`, `qwen2` …
    pub fn architecture(&self) -> &str {
        self.text("general.architecture").unwrap_or("")
    }

    /// The key of the architecture: `llama.block_count` for `block_count`.
    pub fn own(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture())
    }
}

/// Reads a header from its first byte to its last.
pub struct Reader<'a> {
    place: &'a str,
    file: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// A reader at the start of a file.
    pub fn new(place: &'a str, file: &'a [u8]) -> Reader<'a> {
        Reader { place, file, at: 0 }
    }

    /// What stands for the file in messages.
    pub fn place(&self) -> &str {
        self.place
    }

    /// Bytes read.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Bytes of the file.
    pub fn len(&self) -> usize {
        self.file.len()
    }

    /// Whether the file has no bytes.
    pub fn is_empty(&self) -> bool {
        self.file.is_empty()
    }

    /// The error for a file that contradicts itself.
    pub fn damaged(&self, problem: impl Into<String>) -> Error {
        let place = self.place.to_string();
        Error::Checkpoint { path: place.into(), problem: format!("damaged: {}", problem.into()) }
    }

    /// The next `n` bytes.
    ///
    /// # Errors
    /// The file ends before.
    pub fn take(&mut self, n: u64) -> Result<&'a [u8]> {
        let end = usize::try_from(n).ok().and_then(|n| self.at.checked_add(n));
        let bytes = end.and_then(|end| self.file.get(self.at..end));
        let bytes = bytes.ok_or_else(|| {
            self.damaged(format!("{n} bytes at {} of a header in a file of {}", self.at, self.file.len()))
        })?;
        self.at += bytes.len();
        Ok(bytes)
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N as u64)?);
        Ok(bytes)
    }

    /// An unsigned integer.
    ///
    /// # Errors
    /// The file ends before.
    pub fn u32(&mut self) -> Result<u32> {
        self.number().map(u32::from_le_bytes)
    }

    /// An unsigned integer.
    ///
    /// # Errors
    /// The file ends before.
    pub fn u64(&mut self) -> Result<u64> {
        self.number().map(u64::from_le_bytes)
    }

    /// A text with its length before it.
    ///
    /// # Errors
    /// The file ends before, or it is not UTF-8.
    pub fn text(&mut self) -> Result<String> {
        let length = self.u64()?;
        let bytes = self.take(length)?;
        let text = std::str::from_utf8(bytes).map_err(|e| self.damaged(format!("a text that is not UTF-8: {e}")))?;
        Ok(text.to_string())
    }

    /// Refuses a number of things that the rest of the file has no room for.
    fn expect(&self, n: u64, each: u64, what: &str) -> Result<()> {
        let room = (self.file.len() - self.at) as u64;
        if n > room / each {
            return Err(self.damaged(format!("{n} {what} in {room} bytes")));
        }
        Ok(())
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<Value> {
        Ok(match kind {
            0 => Value::Integer(u8::from_le_bytes(self.number()?).into()),
            1 => Value::Integer(i8::from_le_bytes(self.number()?).into()),
            2 => Value::Integer(u16::from_le_bytes(self.number()?).into()),
            3 => Value::Integer(i16::from_le_bytes(self.number()?).into()),
            4 => Value::Integer(u32::from_le_bytes(self.number()?).into()),
            5 => Value::Integer(i32::from_le_bytes(self.number()?).into()),
            6 => Value::Number(f32::from_le_bytes(self.number()?).into()),
            7 => Value::Bool(self.number::<1>()? != [0]),
            8 => Value::Text(self.text()?),
            9 => self.array(depth)?,
            10 => Value::Integer(u64::from_le_bytes(self.number()?).into()),
            11 => Value::Integer(i64::from_le_bytes(self.number()?).into()),
            12 => Value::Number(f64::from_le_bytes(self.number()?)),
            other => return Err(self.damaged(format!("a value of type {other}, expected 0 to 12"))),
        })
    }

    fn array(&mut self, depth: usize) -> Result<Value> {
        let below = depth.checked_sub(1).ok_or_else(|| self.damaged("arrays nested too deeply"))?;
        let (kind, n) = (self.u32()?, self.u64()?);
        self.expect(n, 1, "values")?;
        (0..n).map(|_| self.value(kind, below)).collect::<Result<Vec<_>>>().map(Value::Array)
    }
}

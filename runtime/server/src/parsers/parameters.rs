//! Reads tagged parameters, such as `<parameter=city>Paris</parameter></function>`, and writes them as a JSON object.
//!
//! Invariants:
//! - Text values stream as they are read; values of other declared types are written once they are whole.
//! - One line break on either side of a value belongs to the markup where the format's [`Tags::lines`] says so.

use std::sync::Arc;

use super::call::Call;
use super::json::{Fed, is_blank, push_escaped};
use super::marks::Marks;
use super::schemas::{Schemas, typed};

/// The tags of a format.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tags {
    /// The character with which the parameters begin.
    pub(super) begin: char,
    /// Whether `begin` belongs to what precedes the parameters; else it is the first of `key` and of `end`.
    pub(super) consumed: bool,
    /// Before a parameter's name.
    pub(super) key: &'static str,
    /// Between name and value; whitespace around its parts is skipped.
    pub(super) value: &'static [&'static str],
    /// After a value.
    pub(super) value_end: &'static str,
    /// After the last parameter.
    pub(super) end: &'static str,
    /// Values stand on lines of their own.
    pub(super) lines: bool,
}

impl Tags {
    /// Every tag.
    pub(super) fn all(&'static self) -> impl Iterator<Item = &'static str> {
        [self.key, self.value_end, self.end].into_iter().chain(self.value.iter().copied())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Begin,
    /// Between parameters.
    Between,
    Key,
    /// Before the part of [`Tags::value`] with this number.
    Part(usize),
    Value,
}

/// State of the reading.
#[derive(Debug)]
pub(super) struct Parameters {
    tags: &'static Tags,
    schemas: Arc<Schemas>,
    at: At,
    count: usize,
    held: String,
    key: String,
    types: Vec<String>,
    value: String,
    marks: Marks,
    /// Nothing of the value was read; a line break may still be markup.
    fresh: bool,
    line_break: bool,
}

impl Parameters {
    /// A reader before [`Tags::begin`].
    pub(super) fn new(tags: &'static Tags, schemas: Arc<Schemas>) -> Self {
        Self {
            tags,
            schemas,
            at: At::Begin,
            count: 0,
            held: String::new(),
            key: String::new(),
            types: Vec::new(),
            value: String::new(),
            marks: Marks::new(vec![tags.value_end]),
            fresh: true,
            line_break: false,
        }
    }

    /// Reads `c` into `call`, whose name is known.
    pub(super) fn push(&mut self, c: char, call: &mut Call) -> Fed {
        match self.at {
            At::Begin => self.begin(c, call),
            At::Between => self.between(c, call),
            At::Key => self.key(c, call),
            At::Part(number) => self.part(c, number, call),
            At::Value => self.value(c, call),
        }
    }

    fn begin(&mut self, c: char, call: &mut Call) -> Fed {
        self.at = At::Between;
        if self.tags.consumed { Fed::More } else { self.between(c, call) }
    }

    fn between(&mut self, c: char, call: &mut Call) -> Fed {
        if self.held.is_empty() && is_blank(c) {
            return Fed::More;
        }
        self.held.push(c);
        if self.held == self.tags.end {
            return self.close(call);
        }
        if self.held == self.tags.key {
            self.held.clear();
            self.key.clear();
            self.at = At::Key;
            return Fed::More;
        }
        self.prefix_of(&[self.tags.end, self.tags.key])
    }

    fn prefix_of(&mut self, marks: &[&str]) -> Fed {
        if marks.iter().any(|mark| mark.starts_with(&self.held)) {
            return Fed::More;
        }
        self.held.pop();
        Fed::Invalid
    }

    fn close(&mut self, call: &mut Call) -> Fed {
        call.arguments.push_str(if self.count == 0 { "{}" } else { "}" });
        call.committed = true;
        call.complete = true;
        Fed::Closed
    }

    /// Names never hold `<` or `>`, so the first part of [`Tags::value`] begins at either.
    fn key(&mut self, c: char, call: &mut Call) -> Fed {
        if !matches!(c, '<' | '>') {
            self.key.push(c);
            return Fed::More;
        }
        if self.key.trim().is_empty() {
            return Fed::Invalid;
        }
        self.part(c, 0, call)
    }

    fn open_key(&mut self, call: &mut Call) {
        let key = self.key.trim();
        call.committed = true;
        call.arguments.push_str(if self.count == 0 { "{" } else { ", " });
        call.arguments.push('"');
        key.chars().for_each(|c| push_escaped(&mut call.arguments, c, true));
        call.arguments.push_str("\": ");
        self.types = self.schemas.types(call.name.as_deref().unwrap_or_default(), key).to_vec();
        if self.is_text() {
            call.arguments.push('"');
        }
        self.count += 1;
    }

    fn is_text(&self) -> bool {
        self.types.iter().all(|declared| declared == "string")
    }

    fn part(&mut self, c: char, number: usize, call: &mut Call) -> Fed {
        self.at = At::Part(number);
        if self.held.is_empty() && is_blank(c) {
            return Fed::More;
        }
        self.held.push(c);
        let part = self.tags.value[number];
        if self.held != part {
            return self.prefix_of(&[part]);
        }
        self.held.clear();
        if number == 0 {
            self.open_key(call);
        }
        self.at = if number + 1 < self.tags.value.len() { At::Part(number + 1) } else { At::Value };
        self.fresh = true;
        Fed::More
    }

    fn value(&mut self, c: char, call: &mut Call) -> Fed {
        let mut plain = String::new();
        let end = self.marks.push(c, &mut plain).is_some();
        for c in plain.chars() {
            self.character(c, call);
        }
        if end {
            self.end_value(call);
        }
        Fed::More
    }

    fn character(&mut self, c: char, call: &mut Call) {
        let first = std::mem::take(&mut self.fresh);
        if self.tags.lines && c == '\n' && first {
            return;
        }
        if std::mem::take(&mut self.line_break) {
            self.write('\n', call);
        }
        if self.tags.lines && c == '\n' {
            self.line_break = true;
        } else {
            self.write(c, call);
        }
    }

    fn write(&mut self, c: char, call: &mut Call) {
        if self.is_text() {
            push_escaped(&mut call.arguments, c, true);
        } else {
            self.value.push(c);
        }
    }

    fn end_value(&mut self, call: &mut Call) {
        if self.is_text() {
            call.arguments.push('"');
        } else {
            call.arguments.push_str(&typed(&std::mem::take(&mut self.value), &self.types));
        }
        self.line_break = false;
        self.at = At::Between;
    }
}

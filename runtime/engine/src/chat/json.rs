//! JSON as Python's `json.dumps(…, ensure_ascii=False)` writes it: a space after each comma and colon.

use minijinja::{Error, ErrorKind, Value, value::Kwargs};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use std::io::{self, Write};

/// The filter `tojson`, with Python's `indent`.
pub(super) fn tojson(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    options.get::<Option<Value>>("ensure_ascii")?;
    options.get::<Option<Value>>("separators")?;
    options.get::<Option<Value>>("sort_keys")?;
    options.assert_all_used()?;
    let text = match indent {
        Some(n) => write(value, PrettyFormatter::with_indent(" ".repeat(n.min(64)).as_bytes())),
        None => write(value, Spaced),
    };
    text.map(Value::from_safe_string).map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))
}

/// A value on one line.
pub(super) fn text(value: &serde_json::Value) -> String {
    // JSON's own values can be written, and a buffer takes all.
    write(&Value::from_serialize(value), Spaced).unwrap_or_else(|_| value.to_string())
}

fn write(value: &Value, formatter: impl Formatter) -> Result<String, serde_json::Error> {
    let mut bytes = vec![];
    value.serialize(&mut Serializer::with_formatter(&mut bytes, formatter))?;
    String::from_utf8(bytes).map_err(serde::ser::Error::custom)
}

struct Spaced;

impl Spaced {
    fn separate<W: ?Sized + Write>(writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }
}

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        Spaced::separate(writer, first)
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        Spaced::separate(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

//! Structural tags: free text with parts that follow schemas, into Lark's notation.
//!
//! Taken are vLLM's older form (`structures` with `begin`, `schema`, `end`, and `triggers`) and, of the newer form, the
//! formats `triggered_tags`, `tags_with_separator`, `tag`, `sequence`, `or`, `const_string`, `json_schema`, `regex` and
//! `any_text`, the last of which must be all of a tag's content or the end of everything.
//!
//! Invariants: a format or a field that is not taken is refused by name; a trigger is always followed by the rest of a
//! tag's beginning.

use super::{
    error::GrammarError,
    request::{StructuredOutputs, lark_literal},
};
use llguidance::regex_to_lark;
use serde_json::{Map, Value, json};
use std::fmt::Write;

/// Deepest nesting of formats.
const DEEPEST: usize = 32;

fn invalid(problem: impl Into<String>) -> GrammarError {
    GrammarError::invalid("structural tag", problem)
}

/// The grammar of a structural tag in Lark's notation. `how` says how JSON is written.
///
/// # Errors
/// It is no structural tag, or of a form that is not taken.
pub(super) fn to_lark(text: &str, how: &StructuredOutputs) -> Result<String, GrammarError> {
    let tag: Value = serde_json::from_str(text).map_err(|e| invalid(format!("it is no JSON: {e}")))?;
    let mut rules = Rules { lark: String::new(), num_rules: 0, how };
    let start = match (tag.get("format"), tag.get("structures")) {
        (Some(format), None) => rules.format(format, 0, true)?,
        (None, Some(structures)) => rules.triggered(&older(structures, tag.get("triggers"))?, 0)?,
        _ => return Err(invalid("it needs either format or structures")),
    };
    Ok(format!("start: {start}\nTEXT: /(\\n|.)*/\n{}", rules.lark))
}

/// The older form in the words of the newer one.
fn older(structures: &Value, triggers: Option<&Value>) -> Result<Map<String, Value>, GrammarError> {
    let structures = structures.as_array().ok_or_else(|| invalid("structures must be a list"))?;
    let tag = |s: &Value| {
        let content = json!({"type": "json_schema", "json_schema": s.get("schema")});
        json!({"type": "tag", "begin": s.get("begin"), "content": content, "end": s.get("end")})
    };
    let tags: Vec<Value> = structures.iter().map(tag).collect();
    let triggers = triggers.cloned().ok_or_else(|| invalid("triggers are needed"))?;
    Ok(Map::from_iter([("tags".to_string(), tags.into()), ("triggers".to_string(), triggers)]))
}

struct Rules<'a> {
    lark: String,
    num_rules: usize,
    how: &'a StructuredOutputs,
}

/// A tag's parts.
struct Tag<'v> {
    begin: &'v str,
    content: &'v Value,
    end: &'v str,
}

impl<'v> Tag<'v> {
    fn read(tag: &'v Value) -> Result<Tag<'v>, GrammarError> {
        let text = |name: &str| {
            tag.get(name).and_then(Value::as_str).ok_or_else(|| invalid(format!("a tag's {name} must be a text")))
        };
        let content = tag.get("content").ok_or_else(|| invalid("a tag needs content"))?;
        Ok(Tag { begin: text("begin")?, content, end: text("end")? })
    }
}

fn list<'v>(format: &'v Map<String, Value>, name: &str) -> Result<&'v Vec<Value>, GrammarError> {
    let list = format.get(name).and_then(Value::as_array).filter(|l| !l.is_empty());
    list.ok_or_else(|| invalid(format!("{name} must be a list that is not empty")))
}

fn flag(format: &Map<String, Value>, name: &str) -> bool {
    format.get(name).and_then(Value::as_bool).unwrap_or(false)
}

impl Rules<'_> {
    /// Adds a rule and returns its name. `attributes` stand behind the name.
    fn rule(&mut self, attributes: &str, body: &str) -> String {
        let name = format!("r{}", self.num_rules);
        self.num_rules += 1;
        // Writing to a text does not fail.
        let _ = writeln!(self.lark, "{name}{attributes}: {body}");
        name
    }

    /// What stands for a format in a rule. `last` where nothing follows it.
    fn format(&mut self, format: &Value, depth: usize, last: bool) -> Result<String, GrammarError> {
        let map = format.as_object().ok_or_else(|| invalid("a format must be an object"))?;
        if depth > DEEPEST {
            return Err(invalid(format!("formats are nested deeper than {DEEPEST}")));
        }
        let text =
            |name: &str| map.get(name).and_then(Value::as_str).ok_or_else(|| invalid(format!("{name} must be a text")));
        match map.get("type").and_then(Value::as_str).unwrap_or_default() {
            "const_string" => text("value").map(lark_literal),
            "json_schema" => self.json(map.get("json_schema")),
            "regex" => Ok(self.rule("", &format!("/{}/", regex_to_lark(text("pattern")?, "")))),
            "any_text" if last => Ok("TEXT".to_string()),
            "any_text" => Err(invalid("any_text must be all of a tag's content, or come last")),
            "tag" => self.tag(&Tag::read(format)?, "", depth),
            "sequence" => self.sequence(map, depth, last),
            "or" => self.options(map, depth, last),
            "triggered_tags" if last => self.triggered(map, depth),
            "triggered_tags" => Err(invalid("triggered_tags must come last")),
            "tags_with_separator" => self.separated(map, depth),
            other => Err(invalid(format!(
                "formats of type {other:?} are not taken, but triggered_tags, tags_with_separator, tag, sequence, or, \
                 const_string, json_schema, regex and any_text are"
            ))),
        }
    }

    fn json(&mut self, schema: Option<&Value>) -> Result<String, GrammarError> {
        let schema = self.how.schema(schema.ok_or_else(|| invalid("a schema is needed"))?)?;
        Ok(self.rule("", &format!("%json {schema}")))
    }

    fn sequence(&mut self, map: &Map<String, Value>, depth: usize, last: bool) -> Result<String, GrammarError> {
        let elements = list(map, "elements")?;
        let part = |(i, e)| self.format(e, depth + 1, last && i + 1 == elements.len());
        let parts = elements.iter().enumerate().map(part).collect::<Result<Vec<_>, _>>()?;
        Ok(self.rule("", &parts.join(" ")))
    }

    fn options(&mut self, map: &Map<String, Value>, depth: usize, last: bool) -> Result<String, GrammarError> {
        let elements = list(map, "elements")?.iter();
        let parts = elements.map(|e| self.format(e, depth + 1, last)).collect::<Result<Vec<_>, _>>()?;
        Ok(self.rule("", &parts.join(" | ")))
    }

    /// A tag, of whose beginning `begun` has been written.
    fn tag(&mut self, tag: &Tag<'_>, begun: &str, depth: usize) -> Result<String, GrammarError> {
        let rest = tag.begin.strip_prefix(begun).unwrap_or(tag.begin);
        let begin = if rest.is_empty() { String::new() } else { lark_literal(rest) + " " };
        if tag.content.get("type").is_some_and(|t| t == "any_text") {
            if tag.end.is_empty() {
                return Err(invalid("a tag of any_text needs an end"));
            }
            let text = self.rule(&format!("[suffix={}]", lark_literal(tag.end)), "TEXT");
            return Ok(self.rule("", &format!("{begin}{text}")));
        }
        let content = self.format(tag.content, depth + 1, false)?;
        let end = if tag.end.is_empty() { String::new() } else { " ".to_string() + &lark_literal(tag.end) };
        Ok(self.rule("", &format!("{begin}{content}{end}")))
    }

    /// Free text in which a trigger begins a tag.
    fn triggered(&mut self, map: &Map<String, Value>, depth: usize) -> Result<String, GrammarError> {
        let tags = list(map, "tags")?.iter().map(Tag::read).collect::<Result<Vec<_>, _>>()?;
        let triggers = list(map, "triggers")?.iter().map(Value::as_str).collect::<Option<Vec<_>>>();
        let triggers = triggers.filter(|t| t.iter().all(|t| !t.is_empty()));
        let triggers = triggers.ok_or_else(|| invalid("triggers must be texts that are not empty"))?;
        if let Some(tag) = tags.iter().find(|tag| !triggers.iter().any(|t| tag.begin.starts_with(t))) {
            return Err(invalid(format!("the tag {:?} begins with no trigger", tag.begin)));
        }
        let mut options = vec![];
        for trigger in triggers {
            let begun = tags.iter().filter(|tag| tag.begin.starts_with(trigger));
            let bodies = begun.map(|tag| self.tag(tag, trigger, depth + 1)).collect::<Result<Vec<_>, _>>()?;
            if bodies.is_empty() {
                return Err(invalid(format!("no tag begins with the trigger {trigger:?}")));
            }
            let head = self.rule("[lazy]", &format!("TEXT {}", lark_literal(trigger)));
            options.push(self.rule("", &format!("{head} ({})", bodies.join(" | "))));
        }
        let tags = options.join(" | ");
        Ok(match (flag(map, "at_least_one"), flag(map, "stop_after_first")) {
            (true, true) => format!("({tags})"),
            (false, true) => format!("(({tags}) | TEXT)"),
            (true, false) => format!("({tags})+ TEXT"),
            (false, false) => format!("({tags})* TEXT"),
        })
    }

    fn separated(&mut self, map: &Map<String, Value>, depth: usize) -> Result<String, GrammarError> {
        let tags = list(map, "tags")?.iter();
        let tags = tags.map(|t| self.tag(&Tag::read(t)?, "", depth + 1)).collect::<Result<Vec<_>, _>>()?;
        let one = self.rule("", &tags.join(" | "));
        let separator = map.get("separator").and_then(Value::as_str);
        let separator = lark_literal(separator.ok_or_else(|| invalid("separator must be a text"))?);
        let some = match flag(map, "stop_after_first") {
            true => one,
            false => format!("{one} ({separator} {one})*"),
        };
        Ok(if flag(map, "at_least_one") { format!("({some})") } else { format!("({some})?") })
    }
}

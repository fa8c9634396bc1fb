//! JSON schemas before they are compiled: what cannot be honoured is refused by its keyword and its place.
//!
//! Invariants:
//! - an answer that follows a schema which passed is valid by that schema;
//! - what says nothing about validity is taken away, so that nothing else trips over it.

use super::error::GrammarError;
use llguidance::{derivre::RegexBuilder, regex_to_lark};
use serde_json::{Map, Value};

/// Keywords whose values are schemas by name.
const MAPS: &[&str] = &["properties", "patternProperties", "$defs", "definitions"];
/// Keywords whose values are a schema, or a list of them.
const SCHEMAS: &[&str] =
    &["items", "additionalItems", "additionalProperties", "prefixItems", "anyOf", "oneOf", "allOf"];
/// Keywords that constrain values in a way that no grammar here can.
const REFUSED: &[&str] = &[
    "not",
    "if",
    "contains",
    "propertyNames",
    "dependentRequired",
    "dependentSchemas",
    "dependencies",
    "unevaluatedItems",
    "unevaluatedProperties",
    "$dynamicRef",
    "$recursiveRef",
];
/// Keywords that say nothing about validity, or nothing without one of those above.
const SILENT: &[&str] = &[
    "then",
    "else",
    "minContains",
    "maxContains",
    "deprecated",
    "contentSchema",
    "$vocabulary",
    "$dynamicAnchor",
    "$recursiveAnchor",
    "x-guidance",
];
/// Formats of the standard (JSON Schema Validation 2020-12, §7.3) that can be followed.
const FORMATS: &[&str] =
    &["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "unknown"];
/// Formats of the standard that cannot.
const OTHER_FORMATS: &[&str] = &[
    "idn-email",
    "idn-hostname",
    "uri-reference",
    "iri",
    "iri-reference",
    "uri-template",
    "json-pointer",
    "relative-json-pointer",
    "regex",
];
const TYPES: &[&str] = &["null", "boolean", "object", "array", "number", "string", "integer"];
/// Keywords that take a count.
const COUNTS: &[&str] = &["minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"];
/// Pairs of which the first must not exceed the second.
const BOUNDS: &[(&str, &str)] =
    &[("minLength", "maxLength"), ("minItems", "maxItems"), ("minProperties", "maxProperties"), ("minimum", "maximum")];

/// A schema that can be compiled. `closed` adds `additionalProperties: false` where properties are named and nothing is
/// said about others.
///
/// # Errors
/// A keyword cannot be honoured.
pub fn checked(schema: Value, closed: bool) -> Result<Value, GrammarError> {
    let mut schema = match schema {
        Value::Bool(true) => Value::Object(Map::new()),
        Value::Object(_) => schema,
        other => return Err(GrammarError::invalid("JSON schema", format!("it is {}", excerpt(&other)))),
    };
    let root = schema.clone();
    Walk { root: &root, closed }.visit(&mut schema, "")?;
    Ok(schema)
}

/// Where `oneOf` stands in a schema, as JSON pointers.
pub fn places_of_one_of(schema: &Value) -> Vec<String> {
    let mut found = vec![];
    collect(schema, "", &mut found);
    found
}

fn collect(value: &Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let path = step(path, key);
                if key == "oneOf" && value.is_array() {
                    found.push(path.clone());
                }
                collect(value, &path, found);
            }
        }
        Value::Array(list) => (0..).zip(list).for_each(|(i, v)| collect(v, &format!("{path}/{i}"), found)),
        _ => {}
    }
}

/// A JSON pointer (RFC 6901) one step on.
fn step(path: &str, key: &str) -> String {
    format!("{path}/{}", key.replace('~', "~0").replace('/', "~1"))
}

fn excerpt(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() > 60 { text.chars().take(60).collect::<String>() + "…" } else { text }
}

fn refuse<T>(keyword: &str, path: &str, problem: impl Into<String>) -> Result<T, GrammarError> {
    let path = if path.is_empty() { "the root".to_string() } else { path.to_string() };
    Err(GrammarError::Keyword { keyword: keyword.to_string(), path, problem: problem.into() })
}

struct Walk<'a> {
    root: &'a Value,
    closed: bool,
}

impl Walk<'_> {
    fn visit(&self, schema: &mut Value, path: &str) -> Result<(), GrammarError> {
        let Value::Object(map) = schema else {
            return match schema {
                Value::Bool(_) => Ok(()),
                other => {
                    refuse(path.rsplit('/').next().unwrap_or(""), path, format!("{} is no schema", excerpt(other)))
                }
            };
        };
        self.take_silent(map);
        self.check_keywords(map, path)?;
        check_values(map, path)?;
        self.close(map);
        for (keyword, value) in map.iter_mut() {
            let here = step(path, keyword);
            if MAPS.contains(&keyword.as_str()) {
                self.visit_map(keyword, value, &here)?;
            } else if SCHEMAS.contains(&keyword.as_str()) {
                self.visit_list(value, &here)?;
            }
        }
        Ok(())
    }

    fn visit_map(&self, keyword: &str, value: &mut Value, path: &str) -> Result<(), GrammarError> {
        let Value::Object(map) = value else { return refuse(keyword, path, "it must be an object of schemas") };
        map.iter_mut().try_for_each(|(name, schema)| self.visit(schema, &step(path, name)))
    }

    fn visit_list(&self, value: &mut Value, path: &str) -> Result<(), GrammarError> {
        match value {
            Value::Array(list) => {
                (0..).zip(list).try_for_each(|(i, schema)| self.visit(schema, &format!("{path}/{i}")))
            }
            schema => self.visit(schema, path),
        }
    }

    fn take_silent(&self, map: &mut Map<String, Value>) {
        map.retain(|keyword, value| {
            let unknown_format = keyword == "format"
                && value.as_str().is_some_and(|f| !FORMATS.contains(&f) && !OTHER_FORMATS.contains(&f));
            let said_nothing = keyword == "uniqueItems" && value == &Value::Bool(false);
            !(SILENT.contains(&keyword.as_str()) || unknown_format || said_nothing)
        });
    }

    fn check_keywords(&self, map: &Map<String, Value>, path: &str) -> Result<(), GrammarError> {
        if let Some(keyword) = REFUSED.iter().find(|k| map.contains_key(**k)) {
            return refuse(keyword, path, "no grammar follows it");
        }
        if map.contains_key("uniqueItems") {
            return refuse("uniqueItems", path, "a grammar cannot tell items apart");
        }
        match map.get("$ref") {
            Some(Value::String(target)) => self.check_reference(target, path),
            Some(other) => refuse("$ref", path, format!("it is {}, but must be a text", excerpt(other))),
            None => Ok(()),
        }
    }

    fn check_reference(&self, target: &str, path: &str) -> Result<(), GrammarError> {
        let Some(fragment) = target.strip_prefix('#') else {
            return refuse("$ref", path, format!("{target:?} lies outside the schema"));
        };
        let plain = !fragment.contains('%') && (fragment.is_empty() || fragment.starts_with('/'));
        if plain && self.root.pointer(fragment).is_none() {
            return refuse("$ref", path, format!("{target:?} does not exist"));
        }
        Ok(())
    }

    fn close(&self, map: &mut Map<String, Value>) {
        let named = map.contains_key("properties") || map.contains_key("patternProperties");
        if self.closed && named && !map.contains_key("additionalProperties") {
            map.insert("additionalProperties".to_string(), Value::Bool(false));
        }
    }
}

fn check_values(map: &Map<String, Value>, path: &str) -> Result<(), GrammarError> {
    check_type(map, path)?;
    check_counts(map, path)?;
    check_bounds(map, path)?;
    check_lists(map, path)?;
    match map.get("format").and_then(Value::as_str) {
        Some(format) if OTHER_FORMATS.contains(&format) => {
            refuse("format", path, format!("{format:?} is not one of {}", FORMATS[..FORMATS.len() - 1].join(", ")))
        }
        _ => check_patterns(map, path),
    }
}

fn check_type(map: &Map<String, Value>, path: &str) -> Result<(), GrammarError> {
    let names: Vec<&Value> = match map.get("type") {
        None => return Ok(()),
        Some(Value::Array(list)) => list.iter().collect(),
        Some(one) => vec![one],
    };
    match names.iter().find(|n| n.as_str().is_none_or(|n| !TYPES.contains(&n))) {
        Some(name) => refuse("type", path, format!("{} is not one of {}", excerpt(name), TYPES.join(", "))),
        None if names.is_empty() => refuse("type", path, "the list is empty"),
        None => Ok(()),
    }
}

fn check_counts(map: &Map<String, Value>, path: &str) -> Result<(), GrammarError> {
    for keyword in COUNTS {
        match map.get(*keyword) {
            Some(value) if value.as_u64().is_none() => {
                return refuse(keyword, path, format!("{} is not a count", excerpt(value)));
            }
            _ => {}
        }
    }
    // Names of further properties may repeat, and a reader keeps one of each.
    let required = map.get("required").and_then(Value::as_array).map_or(0, Vec::len) as u64;
    match map.get("minProperties").and_then(Value::as_u64) {
        Some(least) if least > required.max(1) => {
            refuse("minProperties", path, "a grammar cannot tell names apart; list the properties as required")
        }
        _ => Ok(()),
    }
}

fn check_bounds(map: &Map<String, Value>, path: &str) -> Result<(), GrammarError> {
    for keyword in ["minimum", "maximum", "multipleOf"] {
        if let Some(value) = map.get(keyword).filter(|v| v.as_f64().is_none_or(|n| !n.is_finite())) {
            return refuse(keyword, path, format!("{} is not a number", excerpt(value)));
        }
    }
    if map.get("multipleOf").and_then(Value::as_f64).is_some_and(|n| n <= 0.0) {
        return refuse("multipleOf", path, "it must be above 0");
    }
    for (low, high) in BOUNDS {
        let number = |k: &str| map.get(k).and_then(Value::as_f64);
        if let (Some(l), Some(h)) = (number(low), number(high))
            && l > h
        {
            return refuse(low, path, format!("{l} is more than {high}, which is {h}"));
        }
    }
    Ok(())
}

fn check_lists(map: &Map<String, Value>, path: &str) -> Result<(), GrammarError> {
    for keyword in ["enum", "anyOf", "oneOf", "allOf"] {
        match map.get(keyword) {
            None => {}
            Some(Value::Array(list)) if !list.is_empty() => {}
            Some(_) => return refuse(keyword, path, "it must be a list that is not empty"),
        }
    }
    match map.get("required") {
        None => Ok(()),
        Some(Value::Array(list)) if list.iter().all(Value::is_string) => Ok(()),
        Some(_) => refuse("required", path, "it must be a list of names"),
    }
}

fn check_patterns(map: &Map<String, Value>, path: &str) -> Result<(), GrammarError> {
    if let Some(pattern) = map.get("pattern") {
        let Some(pattern) = pattern.as_str() else { return refuse("pattern", path, "it must be a text") };
        check_pattern(pattern).or_else(|problem| refuse("pattern", path, problem))?;
    }
    let patterns = map.get("patternProperties").and_then(Value::as_object);
    for pattern in patterns.into_iter().flat_map(Map::keys) {
        check_pattern(pattern).or_else(|problem| refuse("patternProperties", path, problem))?;
    }
    Ok(())
}

/// Whether a pattern is a regular expression that a grammar can hold: one without look-around and back-references.
fn check_pattern(pattern: &str) -> Result<(), String> {
    let made = RegexBuilder::new().mk_regex_for_serach(&regex_to_lark(pattern, "dw"));
    made.map(drop).map_err(|e| format!("{e:#}").lines().map(str::trim).collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn message(schema: Value) -> String {
        checked(schema, false).unwrap_err().to_string()
    }

    #[test]
    fn what_cannot_be_honoured_is_named_with_its_place() {
        for (schema, start) in [
            (json!({"not": {}}), "the JSON schema's keyword not at the root cannot be honoured: "),
            (
                json!({"properties": {"a/b": {"items": {"uniqueItems": true}}}}),
                "the JSON schema's keyword uniqueItems at /properties/a~1b/items cannot be honoured: ",
            ),
            (json!({"anyOf": [{}, {"type": "int"}]}), "the JSON schema's keyword type at /anyOf/1 cannot"),
            (json!({"$ref": "#/$defs/x"}), "the JSON schema's keyword $ref at the root cannot"),
            (json!({"$ref": "https://example.com/x"}), "the JSON schema's keyword $ref at the root cannot"),
            (json!({"items": {"pattern": "(?=a)b"}}), "the JSON schema's keyword pattern at /items cannot"),
            (json!({"format": "iri"}), "the JSON schema's keyword format at the root cannot"),
            (json!({"minLength": -1}), "the JSON schema's keyword minLength at the root cannot"),
            (json!({"minItems": 3, "maxItems": 2}), "the JSON schema's keyword minItems at the root cannot"),
            (json!({"minProperties": 2}), "the JSON schema's keyword minProperties at the root cannot"),
            (json!({"multipleOf": 0}), "the JSON schema's keyword multipleOf at the root cannot"),
            (json!({"enum": []}), "the JSON schema's keyword enum at the root cannot"),
            (json!({"properties": {"a": 3}}), "the JSON schema's keyword a at /properties/a cannot"),
            (json!([]), "the JSON schema cannot be followed: it is []"),
            (json!(false), "the JSON schema cannot be followed: it is false"),
        ] {
            let text = message(schema);
            assert!(text.starts_with(start), "{text}");
        }
    }

    #[test]
    fn what_says_nothing_is_taken_away() {
        let schema = json!({"uniqueItems": false, "format": "int32", "then": {}, "deprecated": true, "title": "x"});
        assert_eq!(checked(schema, false).unwrap(), json!({"title": "x"}));
        let names = json!({"properties": {"not": {"type": "null"}, "then": {}}});
        assert_eq!(checked(names.clone(), false).unwrap(), names);
        assert_eq!(checked(json!(true), false).unwrap(), json!({}));
    }

    #[test]
    fn closed_objects_have_no_further_properties() {
        let schema = json!({"properties": {"a": {"properties": {}}, "b": {"type": "object"}}});
        let expected = json!({
            "properties": {"a": {"properties": {}, "additionalProperties": false}, "b": {"type": "object"}},
            "additionalProperties": false
        });
        assert_eq!(checked(schema, true).unwrap(), expected);
    }

    #[test]
    fn places_are_pointers() {
        let schema = json!({"oneOf": [{"properties": {"a~": {"oneOf": []}}}]});
        assert_eq!(places_of_one_of(&schema), ["/oneOf", "/oneOf/0/properties/a~0/oneOf"]);
    }
}

//! Bodies to requests: every field is read by its type, refused by name, or reported as unknown.
//!
//! Invariants: a null is the same as an absent field, and `3.0` the same as `3` where an integer is read; the schema that `/openapi.json` shows is what is read here.

use super::{ApiError, number::integral, refused};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use utoipa::{
    PartialSchema,
    openapi::{RefOr, Schema, schema::Object},
};

/// A request that a body holds.
pub trait Request: Sized + PartialSchema {
    /// The fields that are read and that depend on other parts of the API, as [`part`]s of the body.
    ///
    /// # Errors
    /// A field has the wrong type.
    fn read(fields: &Value) -> Result<Self, ApiError>;

    /// Names of the fields that [`Request::read`] reads.
    fn names() -> &'static [String];
}

/// A request, and the fields of its body that nothing reads.
#[derive(Debug)]
pub struct Parsed<T> {
    /// The request.
    pub request: T,
    /// Fields that the API does not have.
    pub unknown: Vec<String>,
}

/// Reads a body.
///
/// # Errors
/// It is no JSON object; a field has the wrong type, or cannot be honoured; under `strict`, a field is unknown.
pub fn parse<T: Request>(body: &[u8], strict: bool) -> Result<Parsed<T>, ApiError> {
    let fields: Map<String, Value> = serde_json::from_slice(body)
        .map_err(|e| ApiError::bad_request(format!("the body is not a JSON object that can be read: {e}")))?;
    let given = fields.into_iter().filter(|(_, v)| !v.is_null());
    let fields: Map<String, Value> = given.map(|(name, value)| (name, integral(value))).collect();
    let unknown = unknown_fields::<T>(&fields)?;
    if let Some(name) = unknown.first().filter(|_| strict) {
        return Err(ApiError::field(name, format!("{name} is not a field of this request (--strict)")));
    }
    Ok(Parsed { request: T::read(&Value::Object(fields))?, unknown })
}

fn unknown_fields<T: Request>(fields: &Map<String, Value>) -> Result<Vec<String>, ApiError> {
    let mut unknown = vec![];
    for (name, value) in fields.iter().filter(|(name, _)| !T::names().contains(name)) {
        match refused::rule_of(name) {
            Some(rule) => rule.check(value)?,
            None => unknown.push(name.clone()),
        }
    }
    Ok(unknown)
}

/// A part of a request: reads the fields of `P` and leaves others alone.
///
/// # Errors
/// A field has the wrong type; its name is in the error.
pub fn part<P: DeserializeOwned>(fields: &Value) -> Result<P, ApiError> {
    serde_path_to_error::deserialize(fields).map_err(|e| {
        let path = e.path().to_string();
        let problem = e.into_inner().to_string();
        let missing = problem.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
        match (path.as_str(), missing) {
            (".", Some(name)) => ApiError::field(name, format!("{name} is missing")),
            (".", None) => ApiError::bad_request(problem),
            (path, _) => ApiError::field(path, format!("{path}: {problem}")),
        }
    })
}

/// Names of the fields of types whose schema is an object.
pub fn names(schemas: &[RefOr<Schema>]) -> Vec<String> {
    schemas.iter().filter_map(object).flat_map(|o| o.properties.keys().cloned()).collect()
}

/// One object with the fields of several.
pub fn merged(schemas: &[RefOr<Schema>], description: &str) -> RefOr<Schema> {
    let mut all = Object::new();
    for o in schemas.iter().filter_map(object) {
        all.properties.extend(o.properties.clone());
        all.required.extend(o.required.clone());
    }
    all.description = Some(description.to_string());
    RefOr::T(Schema::Object(all))
}

fn object(schema: &RefOr<Schema>) -> Option<&Object> {
    match schema {
        RefOr::T(Schema::Object(object)) => Some(object),
        _ => None,
    }
}

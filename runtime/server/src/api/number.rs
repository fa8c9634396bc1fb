//! Numbers of JSON, which has no integers and no widths, as the types that requests are read into.
//!
//! Invariants: a whole number is an integer however it is written; a number that is not zero never becomes zero, and
//! none becomes infinite.

use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::Value;

/// Whole numbers at most this large are exact as `f64`.
const MOST_EXACT: f64 = 9_007_199_254_740_992.0;

/// A field's value with whole numbers as integers, in it and in its lists. Objects are left alone: what they hold is
/// for others to read.
pub fn integral(value: Value) -> Value {
    match value {
        Value::Array(all) => all.into_iter().map(integral).collect(),
        Value::Number(n) => match n.as_f64().filter(|v| n.is_f64() && v.fract() == 0.0 && v.abs() <= MOST_EXACT) {
            Some(whole) => Value::from(whole as i64),
            None => Value::Number(n),
        },
        other => other,
    }
}

/// Reads an integer of an object within a request, however it is written.
///
/// # Errors
/// It is no whole number, or not one of the type's.
pub fn whole<'de, D: Deserializer<'de>, T: DeserializeOwned>(d: D) -> Result<T, D::Error> {
    T::deserialize(integral(Value::deserialize(d)?)).map_err(serde::de::Error::custom)
}

/// Reads a field that may be absent to the nearest number that is finite, and zero only where it says zero.
///
/// # Errors
/// It is no number.
pub fn float<'de, D: Deserializer<'de>>(d: D) -> Result<Option<f32>, D::Error> {
    Ok(Option::<f64>::deserialize(d)?.map(nearest))
}

fn nearest(value: f64) -> f32 {
    let near = value.clamp(f64::from(f32::MIN), f64::from(f32::MAX)) as f32;
    if near == 0.0 && value != 0.0 { f32::MIN_POSITIVE.copysign(near) } else { near }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn whole_numbers_are_integers() {
        let value = json!([1.0, -2.0, 2.5, [3.0, 1e300], {"a": 4.0}, "5.0", true]);
        assert_eq!(integral(value), json!([1, -2, 2.5, [3, 1e300], {"a": 4.0}, "5.0", true]));
    }

    #[test]
    fn numbers_keep_their_sign_and_stay_finite() {
        assert_eq!([nearest(1e300), nearest(-1e300)], [f32::MAX, f32::MIN]);
        assert_eq!([nearest(5e-324), nearest(-5e-324)], [f32::MIN_POSITIVE, -f32::MIN_POSITIVE]);
        assert_eq!([nearest(0.0), nearest(0.7)], [0.0, 0.7]);
    }
}

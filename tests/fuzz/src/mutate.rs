//! Mutations of bytes and of JSON.

use serde_json::{Value, json};

/// SplitMix64.
pub(crate) struct Random(u64);

impl Random {
    /// Numbers for one iteration of a seed.
    pub(crate) fn new(seed: u64, iteration: u64) -> Random {
        let mut random = Random(seed.wrapping_mul(0xd134_2543_de82_ef95) ^ iteration);
        random.next();
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    /// A number below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    /// One of several.
    pub(crate) fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

/// Numbers at which something overflows or ends.
const EDGES: [u64; 14] =
    [0, 1, 2, 7, 63, 64, 255, 4096, 65535, 65536, u32::MAX as u64, 1 << 32, i64::MAX as u64, u64::MAX];

/// Changes bytes in one to four ways.
pub(crate) fn bytes(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..=random.below(4) {
        if bytes.is_empty() {
            return;
        }
        let at = position(random, bytes.len());
        match random.below(8) {
            0 | 1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes[at] = random.next() as u8,
            3 => bytes.truncate(at),
            4 => splice(random, bytes, at),
            5 => drop(bytes.drain(at..(at + 1 + random.below(64)).min(bytes.len()))),
            6 => number(random, bytes, at, 4),
            _ => number(random, bytes, at, 8),
        }
    }
}

/// A place: half of the time near an end, where headers and directories lie.
fn position(random: &mut Random, length: usize) -> usize {
    match random.below(4) {
        0 => random.below(length.min(128)),
        1 => length - 1 - random.below(length.min(1024)),
        _ => random.below(length),
    }
}

/// Copies some bytes from elsewhere, over others or between them.
fn splice(random: &mut Random, bytes: &mut Vec<u8>, at: usize) {
    let from = position(random, bytes.len());
    let piece = bytes[from..(from + 1 + random.below(256)).min(bytes.len())].to_vec();
    let replaced = if random.below(2) == 0 { piece.len() } else { 0 };
    bytes.splice(at..(at + replaced).min(bytes.len()), piece);
}

/// Writes a number at which something may overflow, over as many bytes.
fn number(random: &mut Random, bytes: &mut [u8], at: usize, width: usize) {
    let value = match random.below(3) {
        0 => *random.one(&EDGES),
        1 => bytes.len() as u64,
        _ => random.below(bytes.len()) as u64,
    };
    let end = (at + width).min(bytes.len());
    bytes[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
}

/// Changes values of a JSON document in one or two places.
pub(crate) fn value(random: &mut Random, root: &mut Value) {
    for _ in 0..=random.below(2) {
        let (from, to) = (random.below(count(root)), random.below(count(root)));
        let other = nth(root, &mut from.clone()).cloned().unwrap_or(Value::Null);
        if let Some(at) = nth(root, &mut to.clone()) {
            change(random, at, other);
        }
    }
}

/// Values of a document, itself included.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(fields) => fields.values().map(count).sum(),
        _ => 0,
    }
}

/// The value that `n` others come before.
fn nth<'a>(value: &'a mut Value, n: &mut usize) -> Option<&'a mut Value> {
    if *n == 0 {
        return Some(value);
    }
    *n -= 1;
    match value {
        Value::Array(items) => items.iter_mut().find_map(|item| nth(item, n)),
        Value::Object(fields) => fields.values_mut().find_map(|item| nth(item, n)),
        _ => None,
    }
}

/// Mostly keeps the type, so that what checks values is reached.
fn change(random: &mut Random, at: &mut Value, other: Value) {
    let other_type = random.below(8) == 0;
    match at {
        _ if other_type => *at = any(random, at.take(), other),
        Value::Number(n) => *at = near(random, n.as_u64().unwrap_or(0)),
        Value::String(_) => *at = if other.is_string() { other } else { text(random) },
        Value::Array(items) => change_items(random, items),
        Value::Object(fields) => {
            let key = fields.keys().nth(random.below(fields.len())).cloned();
            if let Some(field) = key.and_then(|key| fields.get_mut(&key)) {
                change(random, field, other);
            }
        }
        Value::Null | Value::Bool(_) => *at = any(random, Value::Null, other),
    }
}

fn change_items(random: &mut Random, items: &mut Vec<Value>) {
    let (from, to) = (random.below(items.len()), random.below(items.len()));
    match random.below(3) {
        _ if items.is_empty() => {}
        0 => items.swap(from, to),
        1 => items.insert(to, items[from].clone()),
        _ => _ = items.remove(from),
    }
}

fn any(random: &mut Random, at: Value, other: Value) -> Value {
    match random.below(3) {
        0 => other,
        1 => wrapped(random, at),
        _ => scalar(random),
    }
}

fn near(random: &mut Random, n: u64) -> Value {
    match random.below(5) {
        0 => json!(n.wrapping_add(1)),
        1 => json!(n.wrapping_sub(1)),
        2 => json!(n.wrapping_mul(2)),
        3 => json!(-(n as i64).wrapping_abs()),
        _ => json!(*random.one(&EDGES)),
    }
}

/// The value inside others, up to a depth that readers refuse.
fn wrapped(random: &mut Random, mut value: Value) -> Value {
    let (times, way) = (*random.one(&[1, 1, 2, 14, 17, 60, 130]), random.below(5));
    for _ in 0..times {
        value = match way {
            0 => json!([value]),
            1 => json!({ "mul": [value, { "sym": "P" }] }),
            2 => json!({ "concat": [value] }),
            3 => json!({ "pack": { "n": 4096, "k": 4096, "of": value } }),
            _ => json!({ "cast": ["f32", value] }),
        };
    }
    value
}

fn text(random: &mut Random) -> Value {
    json!(*random.one(&[
        "T",
        "P",
        "bf16",
        "f32",
        "u4",
        "../x",
        "weights/model.safetensors",
        "1.0",
        "1.9",
        "",
        "\u{0}é"
    ]))
}

fn scalar(random: &mut Random) -> Value {
    match random.below(8) {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(1e308),
        3 => json!("x".repeat(*random.one(&[0, 1, 300, 70_000]))),
        4 => text(random),
        5 => json!([]),
        6 => json!(-1),
        _ => json!(*random.one(&EDGES)),
    }
}

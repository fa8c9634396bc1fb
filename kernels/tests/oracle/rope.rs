//! `rope_kv_write`: full and partial rotation, norms of heads, where tokens land in the cache.

use crate::{Numbers, Run, Symbols, assert_close, tolerance};
use rvllm_ir::DType;
use rvllm_kernels::{KvCache, KvLayout, RopeKvWrite, rope_kv_write};

const UNTOUCHED: f32 = 7.5;

fn spec(head_dim: usize, rope_dim: usize, dtype: DType, qk_norm: Option<f32>) -> RopeKvWrite {
    let layout = KvLayout::Panels { panel: 8, pair: 2 };
    let cache = KvCache { kv_heads: 2, head_dim, block_size: 4, dtype, stored: dtype, layout };
    let stride = Some(8 * head_dim);
    RopeKvWrite { heads: 4, cache, rope_dim, positions: 20, qk_norm, strides: [stride, stride, stride], head_block: 3 }
}

struct Inputs {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    table: Vec<f32>,
    q_norm: Vec<f32>,
    k_norm: Vec<f32>,
}

impl Inputs {
    fn new(s: &RopeKvWrite, t: usize) -> Inputs {
        let (mut numbers, d, kv) = (Numbers(5), s.cache.head_dim, s.cache.kv_heads);
        let dtype = s.cache.dtype;
        Inputs {
            q: numbers.take(t * s.heads * d, dtype),
            k: numbers.take(t * kv * d, dtype),
            v: numbers.take(t * kv * d, dtype),
            table: numbers.take(s.positions * s.rope_dim, DType::F32),
            q_norm: numbers.take(d, dtype),
            k_norm: numbers.take(d, dtype),
        }
    }

    /// One head, normed and rotated.
    fn head(&self, s: &RopeKvWrite, x: &[f32], weight: &[f32], position: usize) -> Vec<f32> {
        let mut x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        if let Some(eps) = s.qk_norm {
            let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
            let factor = 1.0 / (mean + f64::from(eps)).sqrt();
            x = x.iter().zip(weight).map(|(x, w)| x * factor * f64::from(*w)).collect();
        }
        let half = s.rope_dim / 2;
        let table = &self.table[position * s.rope_dim..][..s.rope_dim];
        for i in 0..half {
            let (cos, sin) = (f64::from(table[i]), f64::from(table[half + i]));
            (x[i], x[i + half]) = (x[i] * cos - x[i + half] * sin, x[i + half] * cos + x[i] * sin);
        }
        x.into_iter().map(|x| x as f32).collect()
    }

    fn heads(&self, s: &RopeKvWrite, x: &[f32], weight: &[f32], positions: &[i32]) -> Vec<f32> {
        let d = s.cache.head_dim;
        let row = x.len() / positions.len();
        let head = |(i, x): (usize, &[f32])| self.head(s, x, weight, positions[i * d / row] as usize);
        x.chunks(d).enumerate().flat_map(head).collect()
    }
}

fn check(s: &RopeKvWrite) {
    let positions = [3, 0, 19, 7];
    let slots = [6, -1, 11, 0];
    let (t, p, d, kv, size) = (4, 3, s.cache.head_dim, s.cache.kv_heads, s.cache.block_size);
    let inputs = Inputs::new(s, t);
    let mut run = Run::new(rope_kv_write("rope", s), Symbols { t, p, ..Symbols::default() });
    let cache = vec![UNTOUCHED; p * kv * size * d];
    run.set("q", &inputs.q).set("k", &inputs.k).set("v", &inputs.v).set("rope_table", &inputs.table);
    run.set("keys", &cache).set("values", &cache);
    if s.cache.scales().is_some() {
        run.set("key_scales", &cache[..p * kv * size]).set("value_scales", &cache[..p * kv * size]);
    }
    run.set_i32("positions", &positions).set_i32("slot_mapping", &slots);
    if s.qk_norm.is_some() {
        run.set("q_norm", &inputs.q_norm).set("k_norm", &inputs.k_norm);
    }
    run.go();

    let q = inputs.heads(s, &inputs.q, &inputs.q_norm, &positions);
    assert_close(run.get("q_out"), &q, tolerance(s.cache.dtype));
    let rotated = inputs.heads(s, &inputs.k, &inputs.k_norm, &positions);
    let (mut keys, mut values) = (cache.clone(), cache);
    for (t, slot) in slots.iter().enumerate().filter(|(_, slot)| **slot >= 0) {
        let (block, offset) = (*slot as usize / size, *slot as usize % size);
        for (h, i) in (0..kv).flat_map(|h| (0..d).map(move |i| (h, i))) {
            let (from, head) = ((t * kv + h) * d + i, block * kv + h);
            keys[(head * size + offset) * d + i] = rotated[from];
            values[(head * d + i) * size + offset] = inputs.v[from];
        }
    }
    if s.cache.scales().is_some() {
        return check_values(s, &run, [&keys, &values], &slots);
    }
    assert_close(run.get("keys"), &keys, tolerance(s.cache.stored));
    assert_close(
        run.get("values"),
        &values,
        if s.cache.stored == s.cache.dtype { 0.0 } else { tolerance(DType::Bf16) },
    );
}

/// That values times their scales are the numbers, as near as the type holds them, that a head's
/// largest is the type's, and that no other slot was touched.
fn check_values(s: &RopeKvWrite, run: &Run, expected: [&[f32]; 2], slots: &[i32]) {
    let (d, kv, size, most) = (s.cache.head_dim, s.cache.kv_heads, s.cache.block_size, s.cache.stored.largest());
    for (half, expected) in ["key", "value"].into_iter().zip(expected) {
        let (values, scales) = (run.get(&format!("{half}s")), run.get(&format!("{half}_scales")));
        for (head, scale) in scales.iter().enumerate() {
            let (matrix, token) = (head / size, head % size);
            let written = slots.contains(&((matrix / kv * size + token) as i32));
            let at = |i: usize| if half == "key" { head * d + i } else { (matrix * d + i) * size + token };
            let numbers: Vec<f32> = (0..d).map(|i| expected[at(i)]).collect();
            if !written {
                assert!((0..d).all(|i| values[at(i)] == UNTOUCHED) && *scale == UNTOUCHED, "{half} {head}");
                continue;
            }
            let largest = numbers.iter().fold(0.0f32, |a, x| a.max(x.abs()));
            assert_close(&[*scale], &[largest / most], 1e-5);
            let step = if s.cache.stored == DType::I8 { 0.51 / most } else { 1.0 / 16.0 };
            for (i, number) in numbers.iter().enumerate() {
                let error = (values[at(i)] * scale - number).abs();
                assert!(error <= step * largest, "{half} {head} {i}: {error} off {number}");
            }
        }
    }
}

#[test]
fn tokens_are_rotated_and_written_to_their_slots() {
    for dtype in [DType::F32, DType::Bf16] {
        for (head_dim, rope_dim) in [(8, 8), (16, 4), (10, 8), (12, 6), (6, 2)] {
            for qk_norm in [None, Some(1e-6)] {
                let s = spec(head_dim, rope_dim, dtype, qk_norm);
                for stored in [dtype, DType::I8, DType::F8e4m3, DType::Bf16] {
                    check(&RopeKvWrite { cache: KvCache { stored, ..s.cache }, ..s.clone() });
                }
            }
        }
    }
}

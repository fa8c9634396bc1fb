//! `paged_attention`: ragged batches of chunks and decodes, windows, grouped heads, and batch invariance.

use crate::{Numbers, Run, Symbols, assert_close, tolerance};
use rvllm_ir::{DType, tile::MemLayout};
use rvllm_kernels::{KvCache, KvLayout, PagedAttention, paged_attention};

fn spec(heads: usize, kv_heads: usize, dtype: DType) -> PagedAttention {
    let layout = KvLayout::Panels { panel: 8, pair: 2 };
    let cache = KvCache { kv_heads, head_dim: 6, block_size: 4, dtype, stored: dtype, layout };
    PagedAttention {
        heads,
        cache,
        scale: 0.4,
        window: None,
        softcap: None,
        query_tile: 3,
        pass: 3,
        blocks: 1,
        stages: 2,
        split: None,
        result: MemLayout::DENSE,
    }
}

/// A sequence: all its queries, keys and values as the cache holds them, with a scale for each token and KV head; of its
/// `len` tokens the step computes the last `queries`.
#[derive(Clone)]
struct Sequence {
    len: usize,
    queries: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    k_scales: Vec<f32>,
    v_scales: Vec<f32>,
}

impl Sequence {
    fn new(s: &PagedAttention, len: usize, queries: usize) -> Sequence {
        let (d, dtype, mut numbers) = (s.cache.head_dim, s.cache.dtype, Numbers(len as u64 * 77));
        let (heads, kv) = (len * s.heads, len * s.cache.kv_heads);
        let q = numbers.take(heads * d, dtype).iter().map(|x| dtype.round(x * 4.0)).collect();
        if s.cache.scales().is_none() {
            let [k, v] = [(); 2].map(|()| numbers.take(kv * d, s.cache.stored));
            return Sequence { len, queries, q, k, v, k_scales: vec![1.0; kv], v_scales: vec![1.0; kv] };
        }
        let most = s.cache.stored.largest();
        let mut values = || -> Vec<f32> {
            numbers.take(kv * d, DType::F32).iter().map(|x| s.cache.stored.saturate(x * most)).collect()
        };
        let (k, v) = (values(), values());
        let mut scales = || numbers.take(kv, DType::F32).iter().map(|x| x.abs() / most).collect();
        Sequence { len, queries, q, k, v, k_scales: scales(), v_scales: scales() }
    }

    /// The token's row of the result, `[H * D]`.
    fn expected(&self, s: &PagedAttention, t: usize) -> Vec<f32> {
        (0..s.heads).flat_map(|h| self.head(s, t, h)).collect()
    }

    fn head(&self, s: &PagedAttention, t: usize, h: usize) -> Vec<f32> {
        let (d, kv) = (s.cache.head_dim, s.cache.kv_heads);
        let g = h / (s.heads / kv);
        let q = &self.q[(t * s.heads + h) * d..][..d];
        let first = s.window.map_or(0, |w| (t + 1).saturating_sub(w));
        let score = |j: usize| {
            let k = &self.k[(j * kv + g) * d..][..d];
            let x = q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>();
            let x = x * f64::from(self.k_scales[j * kv + g]) * f64::from(s.scale);
            s.softcap.map_or(x, |c| f64::from(c) * (x / f64::from(c)).tanh())
        };
        let weights: Vec<f64> = (first..=t).map(|j| score(j).exp()).collect();
        let total: f64 = weights.iter().sum();
        let value = |j: usize, i: usize| f64::from(self.v[(j * kv + g) * d + i]) * f64::from(self.v_scales[j * kv + g]);
        let element = |i| weights.iter().zip(first..).map(|(w, j)| w / total * value(j, i)).sum::<f64>() as f32;
        (0..d).map(element).collect()
    }
}

/// The cache after all tokens of the sequences were written; blocks are handed out in a scattered order.
struct Cache {
    keys: Vec<f32>,
    values: Vec<f32>,
    key_scales: Vec<f32>,
    value_scales: Vec<f32>,
    table: Vec<i32>,
    columns: usize,
    blocks: usize,
}

impl Cache {
    fn new(s: &PagedAttention, sequences: &[Sequence]) -> Cache {
        let c = &s.cache;
        let need: Vec<usize> = sequences.iter().map(|x| x.len.div_ceil(c.block_size)).collect();
        let columns = need.iter().max().copied().unwrap_or(0) + 1;
        let blocks = need.iter().sum::<usize>() + 2;
        let n = blocks * c.kv_heads * c.block_size * c.head_dim;
        // what no token was written to: anything for keys, any finite number for values
        let mut cache = Cache {
            keys: vec![f32::NAN; n],
            values: vec![123.0; n],
            key_scales: vec![f32::NAN; n / c.head_dim],
            value_scales: vec![3.0; n / c.head_dim],
            table: vec![-1; columns * sequences.len()],
            columns,
            blocks,
        };
        let mut next = 0;
        for (i, x) in sequences.iter().enumerate() {
            for b in 0..need[i] {
                cache.table[i * columns + b] = (blocks - 1 - next) as i32;
                next += 1;
            }
            (0..x.len).for_each(|t| cache.write(s, i, x, t));
        }
        cache
    }

    fn write(&mut self, s: &PagedAttention, row: usize, x: &Sequence, t: usize) {
        let (d, kv, size) = (s.cache.head_dim, s.cache.kv_heads, s.cache.block_size);
        let block = self.table[row * self.columns + t / size] as usize;
        for (h, i) in (0..kv).flat_map(|h| (0..d).map(move |i| (h, i))) {
            let (from, head) = ((t * kv + h) * d + i, block * kv + h);
            self.keys[(head * size + t % size) * d + i] = x.k[from];
            self.values[(head * d + i) * size + t % size] = x.v[from];
        }
        for h in 0..kv {
            let to = (block * kv + h) * size + t % size;
            self.key_scales[to] = x.k_scales[t * kv + h];
            self.value_scales[to] = x.v_scales[t * kv + h];
        }
    }
}

/// The kernel's result for one step, a list of rows per sequence.
fn step(s: &PagedAttention, sequences: &[Sequence]) -> Vec<Vec<f32>> {
    let (mut loc, mut tile_seq, mut tile_start, mut q) = (vec![0], vec![], vec![], vec![]);
    for (i, x) in sequences.iter().enumerate() {
        let first = loc[i];
        for start in (0..x.queries).step_by(s.query_tile) {
            tile_seq.push(i as i32);
            tile_start.push(first + start as i32);
        }
        loc.push(first + x.queries as i32);
        let row = s.heads * s.cache.head_dim;
        q.extend_from_slice(&x.q[(x.len - x.queries) * row..]);
    }
    let lens: Vec<i32> = sequences.iter().map(|x| x.len as i32).collect();
    let cache = Cache::new(s, sequences);
    let (t, r) = (loc[sequences.len()] as usize, sequences.len());
    let symbols = Symbols { t, r, q: tile_seq.len(), m: cache.columns, p: cache.blocks, l: 0 };
    let mut run = Run::new(paged_attention("attention", s), symbols);
    run.set("q", &q).set("keys", &cache.keys).set("values", &cache.values);
    if s.cache.scales().is_some() {
        run.set("key_scales", &cache.key_scales).set("value_scales", &cache.value_scales);
    }
    run.set_i32("tile_seq", &tile_seq).set_i32("tile_start", &tile_start);
    run.set_i32("query_start_loc", &loc).set_i32("seq_lens", &lens).set_i32("block_table", &cache.table);
    let out = run.go().get("out");
    let row = s.heads * s.cache.head_dim;
    loc.windows(2).map(|w| out[w[0] as usize * row..w[1] as usize * row].to_vec()).collect()
}

fn check(s: &PagedAttention) {
    let lens = [(1, 1), (9, 1), (7, 7), (11, 4), (4, 4), (13, 5), (8, 1)];
    let sequences: Vec<Sequence> = lens.iter().map(|(len, queries)| Sequence::new(s, *len, *queries)).collect();
    for (x, found) in sequences.iter().zip(step(s, &sequences)) {
        let expected: Vec<f32> = (x.len - x.queries..x.len).flat_map(|t| x.expected(s, t)).collect();
        assert_close(&found, &expected, 2.0 * tolerance(s.cache.dtype));
    }
}

#[test]
fn ragged_steps_equal_a_plain_computation() {
    for dtype in [DType::F32, DType::Bf16] {
        for (heads, kv_heads) in [(4, 2), (3, 3), (4, 1)] {
            for window in [None, Some(1), Some(3), Some(6), Some(100)] {
                for softcap in [None, Some(2.0)] {
                    check(&PagedAttention { window, softcap, ..spec(heads, kv_heads, dtype) });
                }
            }
        }
    }
}

#[test]
fn caches_of_other_element_types_hold_the_same_numbers() {
    use DType::{Bf16, F8e4m3, F16, F32, I8};
    for (dtype, stored) in [(F32, F16), (F32, Bf16), (F32, I8), (F32, F8e4m3), (Bf16, I8), (Bf16, F8e4m3)] {
        for (window, softcap) in [(None, None), (Some(3), Some(2.0))] {
            let s = spec(4, 2, dtype);
            let cache = KvCache { stored, ..s.cache };
            check(&PagedAttention { cache, window, softcap, ..s });
        }
    }
}

#[test]
fn a_row_is_the_same_bits_in_any_company_and_any_chunking() {
    for (window, stored) in [(None, DType::Bf16), (Some(5), DType::Bf16), (None, DType::I8)] {
        let s = spec(4, 2, DType::Bf16);
        let s = PagedAttention { window, cache: KvCache { stored, ..s.cache }, ..s };
        let whole = Sequence::new(&s, 13, 13);
        let others = [Sequence::new(&s, 6, 2), Sequence::new(&s, 9, 1)];
        let alone = step(&s, std::slice::from_ref(&whole)).remove(0);
        let crowded = step(&s, &[others[0].clone(), whole.clone(), others[1].clone()]).remove(1);
        assert_eq!(crowded, alone);
        for query_tile in [1, 2, 5, 13] {
            let s = PagedAttention { query_tile, pass: query_tile.div_ceil(2), ..s.clone() };
            assert_eq!(step(&s, std::slice::from_ref(&whole)).remove(0), alone, "query_tile = {query_tile}");
        }
        let row = s.heads * s.cache.head_dim;
        for queries in 1..13 {
            let tail = step(&s, &[others[1].clone(), Sequence { queries, ..whole.clone() }]).remove(1);
            assert_eq!(tail, alone[(13 - queries) * row..], "the last {queries} tokens as one chunk");
        }
    }
}

//! `paged_attention`: ragged batches of chunks and decodes.

use super::{Case, activations, kv_layout, tolerance};
use crate::launch::{Launch, Numbers, Symbols};
use rvllm_ir::{DType, tile::PAD_ROWS};
use rvllm_kernels::{KvCache, PagedAttention, Split, paged_attention};
use rvllm_targets::Target;

/// Tokens with this step's, and this step's.
pub type Sequence = (usize, usize);

/// Decodes, whole prompts, chunks.
pub const SEQUENCES: [Sequence; 6] = [(1, 1), (70, 1), (7, 7), (35, 4), (32, 32), (100, 5)];

/// A kernel for heads, KV heads and head dimension.
pub fn spec(target: &Target, (heads, kv_heads, head_dim): (usize, usize, usize), dtype: DType) -> PagedAttention {
    let cache = KvCache { kv_heads, head_dim, block_size: target.block_size, dtype, layout: kv_layout(target, dtype) };
    let query_tile = (target.attention_rows / (heads / kv_heads)).clamp(1, PAD_ROWS);
    PagedAttention {
        heads,
        cache,
        scale: 0.4,
        window: None,
        softcap: None,
        query_tile,
        pass: query_tile,
        stages: 2,
        split: split(target),
        result: activations(target, dtype, heads * head_dim),
    }
}

/// How the target cuts sequences, with parts of one block, so that short sequences have several.
pub fn split(target: &Target) -> Option<Split> {
    target.gpu.as_ref().map(|gpu| Split { parts: gpu.kv_parts, blocks: 1, spread: false })
}

/// The kernel with all tokens of a tile at once, and one by one; where the target cuts sequences, also with its parts at once,
/// and with a third of the tokens: all write the same bits.
fn variants(s: &PagedAttention) -> Vec<(&'static str, PagedAttention)> {
    let Some(split) = s.split else {
        return vec![("", s.clone()), ("_pass", PagedAttention { pass: 1, ..s.clone() })];
    };
    let spread = Some(Split { spread: true, ..split });
    let pass = s.query_tile.div_ceil(3);
    vec![
        ("", s.clone()),
        ("_spread", PagedAttention { split: spread, ..s.clone() }),
        ("_pass", PagedAttention { pass, ..s.clone() }),
        ("_pass_spread", PagedAttention { pass, split: spread, ..s.clone() }),
    ]
}

/// A step of these sequences; a sequence's cache and queries depend on its number alone.
pub fn launch(name: &str, s: &PagedAttention, sequences: &[(u64, Sequence)]) -> Launch {
    let (mut loc, mut tile_seq, mut tile_start) = (vec![0], vec![], vec![]);
    for (i, (_, (_, queries))) in sequences.iter().enumerate() {
        for start in (0..*queries).step_by(s.query_tile) {
            tile_seq.push(i as i32);
            tile_start.push(loc[i] + start as i32);
        }
        loc.push(loc[i] + *queries as i32);
    }
    let need: Vec<usize> = sequences.iter().map(|(_, (len, _))| len.div_ceil(s.cache.block_size)).collect();
    let (m, p) = (need.iter().max().map_or(1, |n| n + 1), need.iter().sum::<usize>() + 1);
    let mut table = vec![-1; m * sequences.len()];
    let (mut keys, mut values, mut q) = (vec![], vec![], vec![]);
    let block = s.cache.kv_heads * s.cache.block_size * s.cache.head_dim;
    for (i, (seed, (_, queries))) in sequences.iter().enumerate() {
        let mut numbers = Numbers(seed + 1);
        for b in 0..need[i] {
            table[i * m + b] = (keys.len() / block) as i32;
            keys.extend(numbers.take(block, s.cache.dtype));
            values.extend(numbers.take(block, s.cache.dtype));
        }
        q.extend(Numbers(seed + 100).take(queries * s.heads * s.cache.head_dim, s.cache.dtype));
    }
    keys.resize(p * block, f32::NAN);
    values.resize(p * block, f32::NAN);
    let symbols = Symbols { t: loc[sequences.len()] as usize, r: sequences.len(), q: tile_seq.len(), m, p, l: 0 };
    let lens: Vec<i32> = sequences.iter().map(|(_, (len, _))| *len as i32).collect();
    let launch = Launch::new(paged_attention(name, s), symbols, 5);
    let launch = launch.set("q", q).set("keys", keys).set("values", values);
    let launch = launch.set_i32("tile_seq", &tile_seq).set_i32("tile_start", &tile_start);
    launch.set_i32("query_start_loc", &loc).set_i32("seq_lens", &lens).set_i32("block_table", &table)
}

/// [`SEQUENCES`], each with a seed of its own.
pub fn numbered() -> Vec<(u64, Sequence)> {
    SEQUENCES.iter().enumerate().map(|(i, s)| (i as u64 * 1000, *s)).collect()
}

/// Groups of heads and head dimensions, with and without window and cap.
pub fn cases(target: &Target) -> Vec<Case> {
    let mut cases = vec![];
    for dtype in [DType::F32, DType::Bf16] {
        for (i, heads) in [(4, 1, 64), (4, 2, 24), (3, 3, 6), (8, 2, 128)].into_iter().enumerate() {
            let (window, softcap) = if i % 2 == 0 { (None, None) } else { (Some(40), Some(2.0)) };
            let s = PagedAttention { window, softcap, ..spec(target, heads, dtype) };
            for (suffix, s) in variants(&s) {
                let launch = launch(&format!("attention_{dtype}_{i}{suffix}"), &s, &numbered());
                let group = Some(format!("attention_{dtype}_{i}"));
                cases.push(Case { group, ..Case::new(launch, 2.0 * tolerance(dtype)) });
            }
        }
    }
    cases
}

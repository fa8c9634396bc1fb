//! `paged_attention`: ragged batches of chunks and decodes.

use super::{Case, activations, kv_layout, tolerance};
use crate::launch::{Launch, Numbers, Symbols};
use rvllm_ir::{DType, tile::PAD_ROWS};
use rvllm_kernels::{KvCache, PagedAttention, Split, Spread, join_parts, paged_attention};
use rvllm_targets::Target;

/// Tokens with this step's, and this step's.
pub type Sequence = (usize, usize);

/// Decodes, whole prompts, chunks.
pub const SEQUENCES: [Sequence; 6] = [(1, 1), (70, 1), (7, 7), (35, 4), (32, 32), (100, 5)];

/// A kernel for heads, KV heads and head dimension.
pub fn spec(target: &Target, (heads, kv_heads, head_dim): (usize, usize, usize), dtype: DType) -> PagedAttention {
    let (block_size, layout) = (target.block_size, kv_layout(target, dtype));
    let cache = KvCache { kv_heads, head_dim, block_size, dtype, stored: dtype, layout };
    let group = heads / kv_heads;
    let span = target.gpu.as_ref().filter(|_| dtype.bits() == 16 && [64, 128].contains(&head_dim));
    let (query_tile, blocks) = match span {
        Some(gpu) => (gpu.kv_span_rows / group, gpu.kv_span / target.block_size),
        None => ((target.attention_rows / group).clamp(1, PAD_ROWS), 1),
    };
    PagedAttention {
        heads,
        cache,
        scale: 0.4,
        window: None,
        softcap: None,
        query_tile,
        pass: query_tile,
        blocks,
        stages: 2,
        split: split(target),
        result: activations(target, dtype, heads * head_dim),
    }
}

/// How the target cuts sequences, with parts of one iteration, so that short sequences have several.
pub fn split(target: &Target) -> Option<Split> {
    let of = |parts, room| Some(Split { parts, iterations: 1, spread: Spread::InTurn, room });
    match (&target.gpu, &target.kv_split) {
        (Some(gpu), _) => of(gpu.kv_parts, 0),
        // few, so that a part has several runs
        (None, Some(_)) => of(3, TOKENS),
        (None, None) => None,
    }
}

/// Most tokens of a step.
const TOKENS: usize = 64;

/// The kernel with all tokens of a tile at once, and one by one; where programs share memory, also with its parts at once,
/// and with a third of the tokens: all write the same bits.
fn variants(s: &PagedAttention) -> Vec<(&'static str, PagedAttention)> {
    let Some(split) = s.split.filter(|split| split.room == 0) else {
        return vec![("", s.clone()), ("_pass", PagedAttention { pass: 1, ..s.clone() })];
    };
    let spread = Some(Split { spread: Spread::Together, ..split });
    let pass = s.query_tile.div_ceil(3);
    vec![
        ("", s.clone()),
        ("_spread", PagedAttention { split: spread, ..s.clone() }),
        ("_pass", PagedAttention { pass, ..s.clone() }),
        ("_pass_spread", PagedAttention { pass, split: spread, ..s.clone() }),
    ]
}

/// What a step's lists say: for each of its sequences, which of the cached ones it is, its tokens with this step's, and the
/// first and the number of this step's.
type Listed = (usize, usize, usize, usize);

/// A step of these sequences; a sequence's cache and queries depend on its number alone.
pub fn launch(name: &str, s: &PagedAttention, sequences: &[(u64, Sequence)]) -> Launch {
    let mut first = 0;
    let listed = sequences.iter().enumerate().map(|(i, (_, (len, queries)))| {
        first += queries;
        (i, *len, first - queries, *queries)
    });
    step(name, s, sequences, &listed.collect::<Vec<_>>())
}

/// The same queries over the same cache, each token as the last of a sequence of its own.
fn one_by_one(name: &str, s: &PagedAttention, sequences: &[(u64, Sequence)]) -> Launch {
    let mut listed = vec![];
    for (i, (_, (len, queries))) in sequences.iter().enumerate() {
        listed.extend((0..*queries).map(|t| (i, len - queries + t + 1)));
    }
    let listed: Vec<Listed> = listed.into_iter().enumerate().map(|(t, (i, len))| (i, len, t, 1)).collect();
    step(name, s, sequences, &listed)
}

fn step(name: &str, s: &PagedAttention, sequences: &[(u64, Sequence)], listed: &[Listed]) -> Launch {
    let (mut loc, mut tile_seq, mut tile_start) = (vec![0], vec![], vec![]);
    for (i, (_, _, first, queries)) in listed.iter().enumerate() {
        for start in (0..*queries).step_by(s.query_tile) {
            tile_seq.push(i as i32);
            tile_start.push((first + start) as i32);
        }
        loc.push((first + queries) as i32);
    }
    let need: Vec<usize> = sequences.iter().map(|(_, (len, _))| len.div_ceil(s.cache.block_size)).collect();
    let (m, p) = (need.iter().max().map_or(1, |n| n + 1), need.iter().sum::<usize>() + 1);
    let mut tables = vec![vec![-1; m]; sequences.len()];
    let (mut keys, mut values, mut scales, mut q) = (vec![], vec![], [vec![], vec![]], vec![]);
    let block = s.cache.kv_heads * s.cache.block_size * s.cache.head_dim;
    let most = s.cache.stored.largest();
    for (i, (seed, (_, queries))) in sequences.iter().enumerate() {
        let mut numbers = Numbers(seed + 1);
        for entry in tables[i].iter_mut().take(need[i]) {
            *entry = (keys.len() / block) as i32;
            keys.extend(stored(&mut numbers, block, s.cache.stored));
            values.extend(stored(&mut numbers, block, s.cache.stored));
            for scales in &mut scales {
                scales.extend(numbers.take(block / s.cache.head_dim, DType::F32).iter().map(|x| x.abs() / most));
            }
        }
        q.extend(Numbers(seed + 100).take(queries * s.heads * s.cache.head_dim, s.cache.dtype));
    }
    keys.resize(p * block, f32::NAN);
    values.resize(p * block, f32::NAN);
    let t = loc[listed.len()] as usize;
    let symbols = Symbols { t, r: listed.len(), q: tile_seq.len(), m, p, l: 0 };
    let lens: Vec<i32> = listed.iter().map(|(_, len, _, _)| *len as i32).collect();
    let table: Vec<i32> = listed.iter().flat_map(|(i, ..)| tables[*i].clone()).collect();
    let launch = Launch::new(paged_attention(name, s), symbols, 5);
    let mut launch = launch.set("q", q).set("keys", keys).set("values", values);
    if s.cache.scales().is_some() {
        for (name, mut scales) in ["key_scales", "value_scales"].into_iter().zip(scales) {
            scales.resize(p * block / s.cache.head_dim, f32::NAN);
            launch = launch.set(name, scales);
        }
    }
    let launch = launch.set_i32("tile_seq", &tile_seq).set_i32("tile_start", &tile_start);
    launch.set_i32("query_start_loc", &loc).set_i32("seq_lens", &lens).set_i32("block_table", &table)
}

/// The same step with parts worked on apart; and what then joins them, given what that wrote.
pub fn apart(name: &str, s: &PagedAttention, sequences: &[(u64, Sequence)]) -> (Launch, PagedAttention) {
    let split = s.split.map(|split| Split { spread: Spread::Apart, ..split });
    let s = PagedAttention { pass: 1, split, ..s.clone() };
    (launch(name, &s, sequences), s)
}

/// Joins what the step of [`apart`] wrote.
pub fn joined(name: &str, s: &PagedAttention, of: &Launch, written: &[Vec<f32>]) -> Launch {
    let mut join = Launch::new(join_parts(name, s), of.symbols, 5);
    for (i, param) in join.kernel.params.iter().enumerate() {
        if let Some(known) = of.kernel.params.iter().position(|p| p.name == param.name) {
            join.args[i] = of.args[known].clone();
        }
    }
    join.set("part_sums", written[1].clone()).set("part_weights", written[2].clone())
}

/// Numbers in -1..1 in this type; where it needs a scale, values of all of its range.
pub(super) fn stored(numbers: &mut Numbers, n: usize, dtype: DType) -> Vec<f32> {
    match dtype.largest() {
        most if most.is_finite() => numbers.take(n, DType::F32).iter().map(|x| dtype.saturate(x * most)).collect(),
        _ => numbers.take(n, dtype),
    }
}

/// Element types of what is computed with and of the cache, where the latter has fewer bits.
pub fn narrow_caches() -> Vec<(DType, DType)> {
    use DType::{Bf16, F8e4m3, F16, F32, I8};
    let values = [(F32, I8), (F32, F8e4m3), (Bf16, I8), (Bf16, F8e4m3)];
    let rounded = [(F32, Bf16), (F32, F16)];
    [&values[..], &rounded].concat()
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
    cases.extend(narrow_cases(target));
    if target.gpu.is_some() {
        cases.extend([DType::Bf16, DType::F8e4m3, DType::I8].into_iter().flat_map(|stored| span_cases(target, stored)));
    }
    cases
}

/// Caches of fewer bits.
fn narrow_cases(target: &Target) -> Vec<Case> {
    let mut cases = vec![];
    for (dtype, stored) in narrow_caches() {
        for (i, heads) in [(4, 1, 64), (3, 3, 6), (8, 2, 128)].into_iter().enumerate() {
            let window = (i == 1).then_some(40);
            let s = spec(target, heads, dtype);
            let s = PagedAttention { window, cache: KvCache { stored, ..s.cache }, ..s };
            let group = format!("attention_{dtype}_{stored}_{i}");
            for (suffix, s) in variants(&s) {
                let launch = launch(&format!("{group}{suffix}"), &s, &numbered());
                cases.push(Case { group: Some(group.clone()), ..Case::new(launch, 2.0 * tolerance(dtype)) });
            }
        }
    }
    cases
}

/// Contexts of many spans and of all parts more than once, where products are warpgroups'.
const SPANS: [Sequence; 6] = [(1, 1), (1100, 1), (130, 130), (1161, 9), (128, 3), (257, 2)];

/// The same bits for a token in a tile of its prompt and as a decode, in each variant: heads of one and two lines, groups that
/// fill a warpgroup's rows and that do not, a window, a cap.
fn span_cases(target: &Target, stored: DType) -> Vec<Case> {
    let numbered: Vec<(u64, Sequence)> = SPANS.iter().enumerate().map(|(i, s)| (i as u64 * 1000, *s)).collect();
    let kinds = [
        ((4, 1, 128), None, None),
        ((7, 1, 128), Some(300), None),
        ((2, 2, 64), None, Some(3.0)),
        ((16, 1, 64), Some(129), Some(2.0)),
    ];
    let mut cases = vec![];
    for (i, (heads, window, softcap)) in kinds.into_iter().enumerate() {
        let s = PagedAttention { window, softcap, ..spec(target, heads, DType::Bf16) };
        let s = PagedAttention { cache: KvCache { stored, ..s.cache }, ..s };
        let group = format!("attention_span_{stored}_{i}");
        for (suffix, s) in variants(&s) {
            let name = format!("{group}{suffix}");
            for launch in [launch(&name, &s, &numbered), one_by_one(&name, &s, &numbered)] {
                cases.push(Case { group: Some(group.clone()), ..Case::new(launch, 2.0 * tolerance(DType::Bf16)) });
            }
        }
    }
    cases
}

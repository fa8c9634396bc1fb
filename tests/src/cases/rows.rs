//! Kernels that work row by row: `embed`, `rms_norm`, `logit_stats`, `draw`, `rank`, `rope_kv_write`.

use super::{Case, activations, kv_layout, panel, tolerance};
use crate::launch::{Launch, Numbers, Symbols};
use rvllm_ir::{
    DType, Sym,
    graph::{Quantize, op::DRAWS},
    tile::MemLayout,
};
use rvllm_kernels::{Draw, Embed, Feed, KvCache, LogitStats, QuantizeRows, Quantized, RmsNorm, RopeKvWrite};
use rvllm_targets::Target;

/// Tables dense and packed.
pub fn embed(target: &Target) -> Vec<Case> {
    let mut launches = vec![];
    for (i, (vocab, hidden)) in [(7, 5), (40, 64), (70, 200), (33, 96)].into_iter().enumerate() {
        for dtype in [DType::F32, DType::Bf16] {
            for (layout, table) in [("dense", MemLayout::DENSE), ("panel", panel(target, dtype))] {
                let s = Embed {
                    vocab,
                    hidden,
                    dtype,
                    values: None,
                    table,
                    chunk: target.row_chunk.min(hidden.next_power_of_two()),
                };
                let kernel = rvllm_kernels::embed(&format!("embed_{layout}_{dtype}_{i}"), &s);
                let launch = Launch::new(kernel, Symbols { t: 5, ..Symbols::default() }, 1);
                launches.push(Case::new(launch.set_i32("token_ids", &[2, 0, vocab as i32 - 1, 2, 6]), 0.0));
            }
        }
    }
    launches
}

/// Tables of values in panels.
pub fn embed_values(target: &Target) -> Vec<Case> {
    let mut cases = vec![];
    let panel = |k| target.panel.map_or(MemLayout::DENSE, |n| MemLayout::Panel { n, k });
    for (i, (vocab, hidden)) in [(7, 32), (40, 64), (33, 160)].into_iter().enumerate() {
        for (weight, group) in [(DType::I8, None), (DType::U4, Some(32))] {
            let values = Some(Quantized {
                weight,
                group,
                scales: panel(1),
                scale: DType::F16,
                zeros: false,
                weight_only: false,
            });
            let chunk = target.row_chunk.min(hidden);
            let table = panel(32 / weight.bits());
            let s = Embed { vocab, hidden, dtype: DType::Bf16, values, table, chunk };
            let kernel = rvllm_kernels::embed(&format!("embed_{weight}_{i}"), &s);
            let launch = Launch::new(kernel, Symbols { t: 5, ..Symbols::default() }, 1);
            let launch = launch.set_i32("token_ids", &[2, 0, vocab as i32 - 1, 2, 6]);
            let numbers = launch.args[0].numbers().iter().map(|x| (x.abs() * weight.largest()).round()).collect();
            cases.push(Case::new(launch.set("table", numbers), 0.0));
        }
    }
    cases
}

/// Rows as values: of a view, and of a norm.
pub fn quantize_rows(target: &Target) -> Vec<Case> {
    let mut cases = vec![];
    let (to, groups, next) = match target.panel {
        Some(_) => (DType::I8, &[None, Some(32)][..], 1.0),
        None => (DType::F8e4m3, &[None][..], 0.08),
    };
    for (i, n) in [32usize, 96, 256].into_iter().enumerate() {
        for (j, group) in groups.iter().copied().enumerate() {
            let how = Quantize { to, group };
            let chunk = target.row_chunk.min(n.next_power_of_two());
            let x = MemLayout::Strided { row: Some(n + 5) };
            let s = QuantizeRows {
                m: Sym::T,
                n,
                dtype: DType::Bf16,
                x,
                how,
                values: activations(target, DType::I8, n),
                chunk,
            };
            let kernel = rvllm_kernels::quantize_rows(&format!("quantize_{i}_{j}"), &s);
            let launch = Launch::new(kernel, Symbols { t: 5, ..Symbols::default() }, 7);
            let mut numbers = launch.args[0].numbers().to_vec();
            numbers[..n].fill(0.0);
            numbers[n] = DType::Bf16.round(-3e38);
            cases.push(Case::new(launch.set("x", numbers), 1e-6));
            let dtype = DType::Bf16;
            let s = RmsNorm {
                n,
                dtype,
                x,
                normed: MemLayout::DENSE,
                eps: 1e-5,
                residual: j == 1,
                rows: j == 0,
                quantize: Some(how),
                chunk,
            };
            let kernel = rvllm_kernels::rms_norm(&format!("norm_values_{i}_{j}"), &s);
            let mut launch = Launch::new(kernel, Symbols { t: 5, l: 3, ..Symbols::default() }, 2);
            if s.rows {
                launch = launch.set_i32("indices", &[4, 0, 4]);
            }
            // a value that lies between two may go either way where the norm is summed in another order
            cases.push(Case::new(launch, next));
        }
    }
    cases
}

/// With and without residual and chosen rows.
pub fn rms_norm(target: &Target) -> Vec<Case> {
    let mut launches = vec![];
    for (i, n) in [7, 64, 200, 256].into_iter().enumerate() {
        for dtype in [DType::F32, DType::Bf16] {
            for (residual, rows) in [(false, false), (true, false), (false, true), (true, true)] {
                let x = MemLayout::Strided { row: Some(n + 5) };
                let s = RmsNorm {
                    n,
                    dtype,
                    x,
                    normed: activations(target, dtype, n),
                    eps: 1e-5,
                    residual,
                    rows,
                    quantize: None,
                    chunk: target.row_chunk.min(n.next_power_of_two()),
                };
                let kernel = rvllm_kernels::rms_norm(&format!("norm_{dtype}_{i}_{residual}_{rows}"), &s);
                let mut launch = Launch::new(kernel, Symbols { t: 5, l: 3, ..Symbols::default() }, 2);
                if rows {
                    launch = launch.set_i32("indices", &[4, 0, 4]);
                }
                launches.push(Case::new(launch, tolerance(dtype)));
            }
        }
    }
    launches
}

/// Ordinary and extreme rows.
pub fn logit_stats() -> Vec<Case> {
    let mut launches = vec![];
    let whole = [(5, 1), (256, 1), (700, 1), (1024, 1), (1024, 4), (700, 2), (5000, 8)].map(|(v, r)| (v, r, 1));
    for (vocab, runs, parts) in whole.into_iter().chain([(5, 1, 8), (5000, 4, 2), (40_000, 16, 8)]) {
        let name = format!("stats_{vocab}_{runs}_{parts}");
        let kernel = rvllm_kernels::logit_stats(&name, &LogitStats { vocab, runs, parts });
        let launch = Launch::new(kernel, Symbols { l: 4, ..Symbols::default() }, 3);
        let launch = launch.set("temperature", vec![1.0, 0.1, 0.7, 2.0]);
        let mut logits: Vec<f32> = launch.args[0].numbers().iter().map(|x| x * 30.0).collect();
        logits[vocab..2 * vocab].fill(-200.0);
        logits[2 * vocab] = 1e4;
        logits[3 * vocab + 1] = f32::NEG_INFINITY;
        launches.push(Case::new(launch.set("logits", logits), 1e-6));
    }
    launches
}

/// Tokens of ordinary and extreme rows, at numbers that no rounding moves to another token.
pub fn draw() -> Vec<Case> {
    let mut launches = vec![];
    for vocab in [5usize, 256, 700, 5000, 40_000, 128_256] {
        let (blocks, rows) = (vocab.div_ceil(256), 4);
        let kernel = rvllm_kernels::draw(&format!("draw_{vocab}"), &Draw { vocab });
        let mut launch = Launch::new(kernel, Symbols { l: rows, ..Symbols::default() }, 3);
        // Whole numbers of halves and their logs, so that sums are exact in any order.
        let weight = |i: usize| [1.0f32, 2.0, 4.0][i * 7 % 3];
        let logits: Vec<f32> = (0..rows * vocab).map(|i| weight(i).ln()).collect();
        let sum = |b: usize| -> f32 { (b * 256..(b * 256 + 256).min(vocab)).map(weight).sum::<f32>() / 4.0 };
        let uniform = (0..rows * 2 * DRAWS).map(|i| (i * 37 % 101) as f32 / 101.0 + 0.001);
        launch = launch.set("logits", logits).set("max", vec![4f32.ln(); rows]);
        let max = launch.args[2].numbers().iter().map(|_| 4f32.ln()).collect();
        launch = launch.set("block_max", max);
        launch = launch.set("block_sum", (0..rows).flat_map(|_| (0..blocks).map(sum)).collect());
        launch = launch.set("temperature", vec![1.0, 1.0, 1.0, 1e-30]).set("uniform", uniform.collect());
        launches.push(Case::new(launch, 1e-6));
    }
    launches
}

/// Tokens of a step of which some are taken from the step before.
pub fn feed() -> Vec<Case> {
    let rows = 5;
    let kernel = rvllm_kernels::feed("feed", &Feed { vocab: 700, rows });
    let launch = Launch::new(kernel, Symbols { t: 7, ..Symbols::default() }, 3);
    let draws = (0..rows * DRAWS).map(|i| (i * 97) as f32).collect();
    let ids = [3, -1, 699, -5, 0, -2, -3];
    vec![Case::new(launch.set("draws", draws).set_i32("token_ids", &ids), 0.0)]
}

/// Tokens of ordinary rows, some of which are ranked.
pub fn rank() -> Vec<Case> {
    let mut launches = vec![];
    for vocab in [5usize, 256, 700, 5000, 40_000] {
        let rows = 4;
        let kernel = rvllm_kernels::rank(&format!("rank_{vocab}"), &Draw { vocab });
        let launch = Launch::new(kernel, Symbols { l: rows, ..Symbols::default() }, 3);
        let logits: Vec<f32> = launch.args[0].numbers().iter().map(|x| (x * 24.0).round() / 4.0 - 2.0).collect();
        let largest = |x: &[f32]| x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let max: Vec<f32> = logits.chunks(vocab).map(largest).collect();
        let block_max = logits.chunks(vocab).flat_map(|row| row.chunks(256).map(largest)).collect();
        let draws = (0..rows * DRAWS).map(|i| (i * 7919 % vocab) as f32).collect();
        let launch = launch.set("max", max).set("block_max", block_max).set("logits", logits).set("draws", draws);
        let launch = launch.set("temperature", vec![1.0, 0.3, 0.7, 2.0]).set_i32("ranked", &[DRAWS as i32, 3, 0, 1]);
        launches.push(Case::new(launch, 1e-5));
    }
    launches
}

/// The most likely tokens of rows of few values, so that many are equal, and of rows that forbid almost everything.
pub fn top_k() -> Vec<Case> {
    let mut launches = vec![];
    for vocab in [5usize, 256, 700, 5000, 40_000, 128_256] {
        let rows = 5;
        let kernel = rvllm_kernels::top_k(&format!("top_k_{vocab}"), &Draw { vocab });
        let launch = Launch::new(kernel, Symbols { l: rows, ..Symbols::default() }, 3);
        let mut logits: Vec<f32> = launch.args[0].numbers().iter().map(|x| (x * 24.0).round() / 4.0 - 2.0).collect();
        logits[vocab..2 * vocab].fill(1.5);
        logits[2 * vocab..][..vocab - 2].fill(f32::NEG_INFINITY);
        let largest = |x: &[f32]| x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let block_max = logits.chunks(vocab).flat_map(|row| row.chunks(256).map(largest)).collect();
        let launch = launch.set("block_max", block_max).set("logits", logits);
        launches.push(Case::new(launch.set_i32("top_k", &[32, 20, 3, 0, 7]), 0.0));
    }
    launches
}

/// Rotations of whole and part heads, with and without norms.
pub fn rope_kv_write(target: &Target) -> Vec<Case> {
    let same = [DType::F32, DType::Bf16].map(|dtype| (dtype, dtype));
    let mut launches = vec![];
    for (i, (head_dim, rope_dim)) in [(64, 64), (16, 4), (10, 8), (12, 6), (128, 128)].into_iter().enumerate() {
        for (dtype, stored) in same.into_iter().chain(super::attention::narrow_caches()) {
            for qk_norm in [None, Some(1e-6)] {
                let block_size = target.block_size;
                let layout = kv_layout(target, dtype);
                let cache = KvCache { kv_heads: 2, head_dim, block_size, dtype, stored, layout };
                let stride = Some(8 * head_dim);
                let strides = [stride, stride, stride];
                let s = RopeKvWrite {
                    heads: 4,
                    cache,
                    rope_dim,
                    positions: 20,
                    qk_norm,
                    strides,
                    head_block: target.head_block,
                };
                let kernel =
                    rvllm_kernels::rope_kv_write(&format!("rope_{dtype}_{stored}_{i}_{}", qk_norm.is_some()), &s);
                let launch = Launch::new(kernel, Symbols { t: 4, p: 3, ..Symbols::default() }, 4);
                let launch = launch.set_i32("positions", &[3, 0, 19, 7]);
                let n = 3 * cache.kv_heads * block_size * head_dim;
                let [keys, values] = [1, 2].map(|seed| super::attention::stored(&mut Numbers(seed), n, stored));
                let launch = launch.set("keys", keys).set("values", values);
                // no number lies so near the middle between two values that another order of sums decides
                let tolerance = if cache.scales().is_some() { tolerance(DType::F32) } else { tolerance(stored) };
                let launch = launch.set_i32("slot_mapping", &[6, -1, 2 * block_size as i32 + 3, 0]);
                launches.push(Case::new(launch, tolerance));
            }
        }
    }
    launches
}

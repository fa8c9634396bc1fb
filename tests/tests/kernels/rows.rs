//! Kernels that work row by row: `embed`, `rms_norm`, `logit_stats`, `rope_kv_write`.

use crate::{panel, tolerance};
use rvllm_ir::{DType, tile::MemLayout};
use rvllm_kernels::{Embed, KvCache, LogitStats, RmsNorm, RopeKvWrite, embed, logit_stats, rms_norm, rope_kv_write};
use rvllm_targets::Target;
use rvllm_tests::launch::{Code, Launch, Symbols, assert_close, assert_same, targets};

/// Compiles all kernels at once, then compares every launch with the interpreter.
fn check(target: &Target, launches: &[(Launch, f32)]) {
    let kernels: Vec<_> = launches.iter().map(|(l, _)| l.kernel.clone()).collect();
    let code = Code::new(&kernels, target);
    for (launch, tolerance) in launches {
        let what = format!("{} {}", target.name, launch.kernel.name);
        let found = launch.whole(&code);
        assert_close(&what, &found, &launch.interpreted(), *tolerance);
        let halves = [(1, launch.programs()), (0, 1)];
        assert_same(&what, &launch.compiled(&code, &halves), &found);
    }
}

#[test]
fn embed_copies_rows_of_strided_and_packed_tables() {
    for target in targets() {
        let mut launches = vec![];
        for (i, (vocab, hidden)) in [(7, 5), (40, 64), (70, 200), (33, 96)].into_iter().enumerate() {
            for dtype in [DType::F32, DType::Bf16] {
                for (layout, table) in [("dense", MemLayout::DENSE), ("panel", panel(&target, dtype))] {
                    let s = Embed { vocab, hidden, dtype, table, chunk: target.row_chunk };
                    let kernel = embed(&format!("embed_{layout}_{dtype}_{i}"), &s);
                    let launch = Launch::new(kernel, Symbols { t: 5, ..Symbols::default() }, 1);
                    launches.push((launch.set_i32("token_ids", &[2, 0, vocab as i32 - 1, 2, 6]), 0.0));
                }
            }
        }
        check(&target, &launches);
    }
}

#[test]
fn rms_norm_with_and_without_residual_and_rows() {
    for target in targets() {
        let mut launches = vec![];
        for (i, n) in [7, 64, 200, 256].into_iter().enumerate() {
            for dtype in [DType::F32, DType::Bf16] {
                for (residual, rows) in [(false, false), (true, false), (false, true), (true, true)] {
                    let x = MemLayout::Strided { row: Some(n + 5) };
                    let s = RmsNorm { n, dtype, x, eps: 1e-5, residual, rows, chunk: target.row_chunk };
                    let kernel = rms_norm(&format!("norm_{dtype}_{i}_{residual}_{rows}"), &s);
                    let mut launch = Launch::new(kernel, Symbols { t: 5, l: 3, ..Symbols::default() }, 2);
                    if rows {
                        launch = launch.set_i32("indices", &[4, 0, 4]);
                    }
                    launches.push((launch, tolerance(dtype)));
                }
            }
        }
        check(&target, &launches);
    }
}

#[test]
fn logit_stats_of_ordinary_and_extreme_rows() {
    for target in targets() {
        let mut launches = vec![];
        for vocab in [5, 256, 700, 1024] {
            let kernel = logit_stats(&format!("stats_{vocab}"), &LogitStats { vocab });
            let launch = Launch::new(kernel, Symbols { l: 4, ..Symbols::default() }, 3);
            let mut logits: Vec<f32> = launch.args[0].numbers().iter().map(|x| x * 30.0).collect();
            logits[vocab..2 * vocab].fill(-200.0);
            logits[2 * vocab] = 1e4;
            logits[3 * vocab + 1] = f32::NEG_INFINITY;
            launches.push((launch.set("logits", logits), 1e-6));
        }
        check(&target, &launches);
    }
}

#[test]
fn rope_rotates_and_writes_panels() {
    for target in targets() {
        let mut launches = vec![];
        for (i, (head_dim, rope_dim)) in [(64, 64), (16, 4), (10, 8), (12, 6), (128, 128)].into_iter().enumerate() {
            for dtype in [DType::F32, DType::Bf16] {
                for qk_norm in [None, Some(1e-6)] {
                    let block_size = target.block_size;
                    let cache =
                        KvCache { kv_heads: 2, head_dim, block_size, dtype, layout: crate::kv_layout(&target, dtype) };
                    let stride = Some(8 * head_dim);
                    let strides = [stride, stride, stride];
                    let s = RopeKvWrite { heads: 4, cache, rope_dim, positions: 20, qk_norm, strides };
                    let kernel = rope_kv_write(&format!("rope_{dtype}_{i}_{}", qk_norm.is_some()), &s);
                    let launch = Launch::new(kernel, Symbols { t: 4, p: 3, ..Symbols::default() }, 4);
                    let launch = launch.set_i32("positions", &[3, 0, 19, 7]);
                    launches.push((
                        launch.set_i32("slot_mapping", &[6, -1, 2 * block_size as i32 + 3, 0]),
                        tolerance(dtype),
                    ));
                }
            }
        }
        check(&target, &launches);
    }
}

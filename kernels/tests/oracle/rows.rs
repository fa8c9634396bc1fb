//! Kernels that work row by row: `embed`, `rms_norm`, `logit_stats`, `draw`, `rank`.

use crate::{Numbers, Run, Symbols, TensorData, assert_close, tolerance};
use rvllm_ir::{
    DType,
    graph::op::{DRAWS, RANK, TOP_K},
    tile::MemLayout,
};
use rvllm_kernels::{Draw, Embed, Feed, LogitStats, RmsNorm, draw, embed, feed, logit_stats, rank, rms_norm, top_k};

#[test]
fn embed_copies_rows() {
    for (vocab, hidden, chunk) in [(7, 5, 4), (3, 16, 8), (9, 3, 64)] {
        for (dtype, table) in [(DType::F32, MemLayout::DENSE), (DType::Bf16, MemLayout::Panel { n: 4, k: 2 })] {
            let s = Embed { vocab, hidden, dtype, values: None, table, chunk };
            let ids = [2, 0, 1, 2];
            let rows = Numbers(1).take(vocab * hidden, dtype);
            let mut run = Run::new(embed("embed", &s), Symbols { t: 4, ..Symbols::default() });
            run.set("table", &rows).set_i32("token_ids", &ids).go();
            let expected: Vec<f32> =
                ids.iter().flat_map(|i| &rows[*i as usize * hidden..][..hidden]).copied().collect();
            assert_eq!(run.get("out"), expected);
        }
    }
}

/// `(normed, sum)` of one row.
fn norm_row(s: &RmsNorm, x: &[f32], residual: Option<&[f32]>, weight: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let sum: Vec<f32> = match residual {
        Some(r) => x.iter().zip(r).map(|(x, r)| s.dtype.round(x + r)).collect(),
        None => x.to_vec(),
    };
    let mean = sum.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / s.n as f64;
    let factor = 1.0 / (mean + f64::from(s.eps)).sqrt();
    let normed = sum.iter().zip(weight).map(|(x, w)| (f64::from(*x) * factor * f64::from(*w)) as f32).collect();
    (normed, sum)
}

fn check_rms_norm(s: &RmsNorm) {
    let (t, indices) = (5, [4, 0, 4]);
    let rows: Vec<usize> = if s.rows { indices.iter().map(|i| *i as usize).collect() } else { (0..t).collect() };
    let mut numbers = Numbers(2);
    let x = numbers.take(t * s.n, s.dtype);
    let residual = numbers.take(t * s.n, s.dtype);
    let weight = numbers.take(s.n, s.dtype);
    let mut run = Run::new(rms_norm("norm", s), Symbols { t, l: 3, ..Symbols::default() });
    run.set("x", &x).set("weight", &weight);
    if s.residual {
        run.set("residual", &residual);
    }
    if s.rows {
        run.set_i32("indices", &indices);
    }
    run.go();
    let expected: Vec<_> = rows
        .iter()
        .map(|row| {
            let at = row * s.n..(row + 1) * s.n;
            norm_row(s, &x[at.clone()], s.residual.then(|| &residual[at]), &weight)
        })
        .collect();
    let normed: Vec<f32> = expected.iter().flat_map(|(n, _)| n).copied().collect();
    assert_close(run.get("normed"), &normed, tolerance(s.dtype));
    if s.residual {
        let sum: Vec<f32> = expected.iter().flat_map(|(_, s)| s).copied().collect();
        assert_eq!(run.get("sum"), sum, "the sum is rounded once and is what the norm is of");
    }
}

#[test]
fn rms_norm_of_every_form() {
    for dtype in [DType::F32, DType::Bf16] {
        for (n, chunk) in [(13, 4), (16, 16), (3, 8)] {
            for (residual, rows) in [(false, false), (true, false), (false, true), (true, true)] {
                let x = MemLayout::Strided { row: residual.then_some(n + 3) };
                check_rms_norm(&RmsNorm {
                    n,
                    dtype,
                    x,
                    normed: MemLayout::DENSE,
                    eps: 1e-5,
                    residual,
                    rows,
                    quantize: None,
                    chunk,
                });
            }
        }
    }
}

#[test]
fn logit_stats_equal_a_plain_computation() {
    let whole = [(1, 1), (100, 1), (256, 1), (600, 1), (600, 2), (600, 8), (1024, 4)].map(|(v, r)| (v, r, 1));
    for (vocab, runs, parts) in whole.into_iter().chain([(100, 1, 2), (600, 1, 2), (600, 1, 8), (5000, 4, 2)]) {
        let temperatures = [0.1, 1.0, 0.7, 2.0, 0.01];
        let l = temperatures.len();
        let logits: Vec<f32> = Numbers(3).take(l * vocab, DType::F32).iter().map(|x| x * 40.0 - 50.0).collect();
        let kernel = logit_stats("stats", &LogitStats { vocab, runs, parts });
        let mut run = Run::new(kernel, Symbols { l, ..Symbols::default() });
        run.set("logits", &logits).set("temperature", &temperatures).go();
        let largest = |x: &[f32]| x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let rows: Vec<&[f32]> = logits.chunks(vocab).collect();
        let max: Vec<f32> = rows.iter().map(|r| largest(r)).collect();
        let block_max: Vec<f32> = rows.iter().flat_map(|r| r.chunks(256).map(largest)).collect();
        let sum = |r: &&[f32]| r.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln() as f32;
        let logsumexp: Vec<f32> = rows.iter().map(sum).collect();
        assert_eq!(run.get("max"), max);
        assert_eq!(run.get("block_max"), block_max);
        assert_close(run.get("logsumexp"), &logsumexp, 1e-6);
        let weight = |x: f32, max: f32, t: f32| (f64::from(x - max) / f64::from(t)).exp();
        let weigh = |b: &[f32], t: f32| b.iter().map(|x| weight(*x, largest(b), t)).sum::<f64>() as f32;
        let block_sum: Vec<f32> =
            rows.iter().zip(temperatures).flat_map(|(r, t)| r.chunks(256).map(move |b| weigh(b, t))).collect();
        assert_close(run.get("block_sum"), &block_sum, 1e-5);
    }
}

/// Runs `draw` on rows of logits, whose statistics `logit_stats` computes.
fn drawn(vocab: usize, logits: &[f32], temperatures: &[f32], uniform: &[f32]) -> Vec<usize> {
    let l = temperatures.len();
    let stats = logit_stats("stats", &LogitStats { vocab, runs: 1, parts: 1 });
    let mut stats = Run::new(stats, Symbols { l, ..Symbols::default() });
    stats.set("logits", logits).set("temperature", temperatures).go();
    let mut run = Run::new(draw("draw", &Draw { vocab }), Symbols { l, ..Symbols::default() });
    for name in ["max", "block_max", "block_sum"] {
        run.set(name, stats.get(name));
    }
    run.set("logits", logits).set("temperature", temperatures).set("uniform", uniform).go();
    run.get("draws").iter().map(|id| *id as usize).collect()
}

/// Weights of logits, relative to the largest.
fn weights(logits: &[f32], temperature: f32) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter().map(|l| (f64::from(l - max) / f64::from(temperature)).exp()).collect()
}

/// How far a fraction lies outside of weight `i` of all that are put one after the other.
fn distance(weights: &[f64], i: usize, fraction: f32) -> f64 {
    let total: f64 = weights.iter().sum();
    let start = weights[..i].iter().sum::<f64>() / total;
    let end = start + weights[i] / total;
    (start - f64::from(fraction)).max(f64::from(fraction) - end).max(0.0)
}

#[test]
fn tokens_of_the_step_before_take_their_places() {
    let mut run = Run::new(feed("feed", &Feed { vocab: 100, rows: 3 }), Symbols { t: 6, ..Symbols::default() });
    let draws: Vec<f32> = (0..3 * DRAWS).map(|i| i as f32 * 5.0).collect();
    run.set("draws", &draws).set_i32("token_ids", &[7, -1, 0, -3, -2, 99]).go();
    let first = |row: usize| (row * DRAWS * 5).min(99) as i32;
    assert_eq!(run.args[1], TensorData::i32(&[6], vec![7, first(0), 0, first(2), first(1), 99]));
}

#[test]
fn draws_lie_where_their_numbers_point_to() {
    for vocab in [1, 5, 100, 256, 257, 600, 5000, 9000] {
        let temperatures = [1.0, 0.1, 0.7, 2.0];
        let mut numbers = Numbers(5);
        let mut logits: Vec<f32> = numbers.take(4 * vocab, DType::F32).iter().map(|x| x * 8.0).collect();
        logits[vocab / 2] = 9.0;
        logits[2 * vocab..][..vocab - 1].fill(f32::NEG_INFINITY);
        let uniform: Vec<f32> =
            numbers.take(4 * 2 * DRAWS, DType::F32).iter().map(|x| (x + 1.0).fract().abs()).collect();
        let found = drawn(vocab, &logits, &temperatures, &uniform);
        for (i, id) in found.into_iter().enumerate() {
            let weights = weights(&logits[i / DRAWS * vocab..][..vocab], temperatures[i / DRAWS]);
            let blocks: Vec<f64> = weights.chunks(256).map(|block| block.iter().sum()).collect();
            let block = weights.chunks(256).nth(id / 256).unwrap();
            assert!(weights[id] > 0.0, "token {id} of {vocab} in row {}", i / DRAWS);
            assert!(distance(&blocks, id / 256, uniform[2 * i]) < 1e-6, "block of token {id} of {vocab}");
            assert!(distance(block, id % 256, uniform[2 * i + 1]) < 1e-6, "token {id} of {vocab}");
        }
    }
}

/// Numbers at both ends, no temperature to speak of, and rows that forbid everything.
#[test]
fn draws_at_the_edges_are_tokens() {
    for vocab in [1, 300, 700] {
        let mut logits: Vec<f32> = Numbers(6).take(4 * vocab, DType::F32);
        let (first, second) = (vocab / 3, 2 * vocab / 3);
        [first, second].into_iter().for_each(|i| logits[i] = 2.0);
        logits[vocab..2 * vocab].fill(f32::NEG_INFINITY);
        logits[2 * vocab..3 * vocab].fill(-1e30);
        logits[3 * vocab..].fill(f32::NAN);
        let ends = [[0.0; 2 * DRAWS], [1.0 - f32::EPSILON / 2.0; 2 * DRAWS]];
        for (uniform, expected) in ends.iter().zip([first, second]) {
            let found = drawn(vocab, &logits, &[1e-30; 4], &uniform.repeat(4));
            assert!(found[..DRAWS].iter().all(|id| *id == expected), "{found:?} of {vocab}");
            assert!(found.iter().all(|id| *id < vocab), "{found:?} of {vocab}");
        }
    }
}

#[test]
fn ranks_are_those_of_a_plain_count() {
    for vocab in [1, 5, 256, 600, 5000, 9000] {
        let (temperatures, ranked) = ([1.0, 0.1, 0.7, 2.0, 1.0], [DRAWS as i32, DRAWS as i32, 2, 1, 0]);
        let l = ranked.len();
        let mut numbers = Numbers(7);
        // Of few values, so that many are equal.
        let mut logits: Vec<f32> =
            numbers.take(l * vocab, DType::F32).iter().map(|x| (x * 12.0).round() / 2.0).collect();
        if vocab > 1 {
            logits[vocab + vocab / 2] = f32::NEG_INFINITY;
        }
        let draws: Vec<f32> = (0..l * DRAWS).map(|i| (i * 7919 % vocab) as f32).collect();
        let stats = logit_stats("stats", &LogitStats { vocab, runs: 1, parts: 1 });
        let mut stats = Run::new(stats, Symbols { l, ..Symbols::default() });
        stats.set("logits", &logits).set("temperature", &temperatures).go();
        let mut run = Run::new(rank("rank", &Draw { vocab }), Symbols { l, ..Symbols::default() });
        for name in ["max", "block_max", "block_sum"] {
            run.set(name, stats.get(name));
        }
        run.set("logits", &logits)
            .set("temperature", &temperatures)
            .set("draws", &draws)
            .set_i32("ranked", &ranked)
            .go();
        for (i, found) in run.get("ranks").chunks(RANK).enumerate() {
            let (row, id) = (&logits[i / DRAWS * vocab..][..vocab], draws[i] as usize);
            let weights = weights(row, temperatures[i / DRAWS]);
            let precedes = |j: &usize| row[*j] > row[id] || row[*j] == row[id] && *j < id;
            let before = (0..vocab).filter(precedes).map(|j| weights[j]).sum::<f64>();
            let larger = row.iter().filter(|l| **l > row[id]).count();
            let expected = [row[id], larger as f32, before as f32, weights.iter().sum::<f64>() as f32];
            let expected = if i % DRAWS < ranked[i / DRAWS] as usize { expected } else { [0.0; RANK] };
            assert_eq!(found[..2], expected[..2], "token {id} of {vocab}");
            assert_close(&found[2..], &expected[2..], 1e-5);
        }
    }
}

#[test]
fn the_most_likely_tokens_are_those_of_a_sort() {
    for vocab in [1, 5, 256, 600, 5000, 9000] {
        let counts = [TOP_K as i32, 20, 5, 1, 0];
        let l = counts.len();
        // Of few values, so that many are equal.
        let mut logits: Vec<f32> =
            Numbers(7).take(l * vocab, DType::F32).iter().map(|x| (x * 12.0).round() / 2.0).collect();
        logits[2 * vocab..][..vocab - 1].fill(f32::NEG_INFINITY);
        let largest = |x: &[f32]| x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let block_max: Vec<f32> = logits.chunks(vocab).flat_map(|row| row.chunks(256).map(largest)).collect();
        let mut run = Run::new(top_k("top_k", &Draw { vocab }), Symbols { l, ..Symbols::default() });
        run.set("logits", &logits).set("block_max", &block_max).set_i32("top_k", &counts).go();
        let found = run.get("most_likely").to_vec();
        for ((found, row), count) in found.chunks(2 * TOP_K).zip(logits.chunks(vocab)).zip(counts) {
            let mut order: Vec<usize> = (0..vocab).collect();
            order.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
            order.truncate(count as usize);
            let of = |i: usize, f: fn(usize, &[f32]) -> f32| order.get(i).map_or(0.0, |id| f(*id, row));
            let ids: Vec<f32> = (0..TOP_K).map(|i| of(i, |id, _| id as f32)).collect();
            let values: Vec<f32> = (0..TOP_K).map(|i| of(i, |id, row| row[id])).collect();
            assert_eq!(found[..TOP_K], ids, "{count} of {vocab}");
            assert_eq!(found[TOP_K..], values, "{count} of {vocab}");
        }
    }
}

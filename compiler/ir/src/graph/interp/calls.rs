//! Kernel calls: the tensor operations that they stand for, without rounding in between.

use super::{
    Error, KvState, Tensor,
    attention::{self, Ragged, index},
    math, ops, quantize,
};
use crate::graph::{
    Attention, Call, Epilogue, Quantize, Scales,
    op::{DRAWS, RANK, STATS_BLOCK, TOP_K},
};

/// Results of `call`; as [`ops::evaluate`]: the graph is legal, KV operands are left out.
pub(super) fn evaluate(call: &Call, operands: &[&Tensor], kv: &mut KvState) -> Result<Vec<Tensor>, Error> {
    match call {
        Call::Embed { values: None } => Ok(vec![ops::gather(operands[0], operands[1])?]),
        Call::Embed { values: Some(how) } => {
            let table = quantize::numbers(operands[0], how.group.unwrap_or(operands[0].last()), operands[2], None);
            Ok(vec![ops::gather(&table, operands[1])?])
        }
        Call::RmsNorm { eps, residual, rows, quantize } => rms_norm(operands, *eps, *residual, *rows, *quantize),
        Call::QuantizeRows(how) => Ok(quantize::rows(operands[0], *how)),
        Call::Gemm { epilogue, scales, .. } => Ok(vec![gemm(operands, *epilogue, *scales)]),
        Call::RopeKvWrite { attention, qk_norm, rope_dim } => {
            rope_kv_write(attention, *qk_norm, *rope_dim, operands, kv)
        }
        Call::PagedAttention(attention) => paged_attention(attention, operands, kv),
        Call::LogitStats => Ok(logit_stats(operands[0], operands[1].floats())),
        Call::TopK => Ok(vec![top_k(operands[0], operands[2].ints())]),
        Call::Rank => Ok(vec![rank(operands[0], operands[4].floats(), operands[5].floats(), operands[6].ints())]),
        Call::Draw => Ok(vec![draw(operands[0], operands[4].floats(), operands[5].floats())]),
    }
}

fn rms_norm(
    operands: &[&Tensor],
    eps: f32,
    residual: bool,
    rows: bool,
    quantize: Option<Quantize>,
) -> Result<Vec<Tensor>, Error> {
    let weight = 1 + usize::from(residual);
    let mut sum = operands[0].clone();
    if residual {
        sum = ops::zip(&sum, operands[1], |x, r| x + r);
    }
    if rows {
        sum = ops::rows(&sum, operands[weight + 1])?;
    }
    let normed = Tensor::f32(&sum.dims, math::rms_norm(sum.floats(), operands[weight].floats(), eps));
    let mut results = match quantize {
        Some(how) => quantize::rows(&normed, how),
        None => vec![normed],
    };
    results.extend(residual.then_some(sum));
    Ok(results)
}

fn gemm(operands: &[&Tensor], e: Epilogue, scales: Scales) -> Tensor {
    let (numbers, scale) = operands.split_at(operands.len() - scales.operands());
    let bias = e.bias.then(|| operands[2]);
    let (x, w) = (numbers[0], numbers[1]);
    let mut y = match scales {
        Scales::None => ops::linear(x, w, bias),
        Scales::WeightOnly { group, zeros } => {
            let w = quantize::numbers(w, group, scale[0], zeros.then(|| scale[1]));
            ops::linear(x, &w, bias)
        }
        Scales::Rows | Scales::Groups(_) | Scales::GroupsWithZeros(_) | Scales::FloatGroups(_) => {
            let x = quantize::numbers(x, x.last(), scale[0], None);
            let zeros = matches!(scales, Scales::GroupsWithZeros(_)).then(|| scale[3]);
            let w = quantize::numbers(w, scales.group().unwrap_or(w.last()), scale[1], zeros);
            ops::linear(&x, &w, bias)
        }
    };
    if e.silu_mul {
        y = silu_mul(&y);
    }
    if e.residual {
        y = ops::zip(&y, operands[2 + usize::from(e.bias)], |y, r| y + r);
    }
    y
}

/// `[.., 2n] -> [.., n]`: gates, then ups.
fn silu_mul(y: &Tensor) -> Tensor {
    let n = y.last() / 2;
    let row = |row: &[f32]| (0..n).map(|i| math::silu(row[i]) * row[n + i]).collect::<Vec<f32>>();
    let mut dims = y.dims.clone();
    dims[y.dims.len() - 1] = n;
    Tensor::f32(&dims, y.floats().chunks_exact((2 * n).max(1)).flat_map(row).collect())
}

fn rope_kv_write(
    a: &Attention,
    qk_norm: Option<f32>,
    rope_dim: usize,
    operands: &[&Tensor],
    kv: &mut KvState,
) -> Result<Vec<Tensor>, Error> {
    let [q, k, v, table, positions, slots] = [0, 1, 2, 3, 4, 5].map(|i| operands[i]);
    let rows = table_rows(table, positions)?;
    let prepare = |x: &Tensor, heads: usize, norm: usize| {
        let mut x = x.floats().to_vec();
        if let Some(eps) = qk_norm {
            x = math::rms_norm(&x, operands[norm].floats(), eps);
        }
        math::rotate(&mut x, heads, a.head_dim, rope_dim, &rows);
        x
    };
    let (queries, keys) = (prepare(q, a.heads, 6), prepare(k, a.kv_heads, 7));
    kv.write(a, &keys, v.floats(), slots.ints())?;
    Ok(vec![Tensor::f32(&[q.dims[0], a.heads, a.head_dim], queries)])
}

/// The `[2, dim/2]` of each position.
fn table_rows<'t>(table: &'t Tensor, positions: &Tensor) -> Result<Vec<&'t [f32]>, Error> {
    let n = table.row_len();
    let row = |p: &i32| index("position", *p, table.dims[0]).map(|p| &table.floats()[p * n..(p + 1) * n]);
    positions.ints().iter().map(row).collect()
}

fn paged_attention(a: &Attention, operands: &[&Tensor], kv: &mut KvState) -> Result<Vec<Tensor>, Error> {
    let [tile_seq, tile_start, query_start_loc, seq_lens, block_table] = [1, 2, 3, 4, 5].map(|i| operands[i].ints());
    let ragged = Ragged { query_start_loc, seq_lens, block_table };
    let queries = ragged.tiled(tile_seq, tile_start)?;
    let out = attention::attend(a, operands[0].floats(), &queries, &ragged, kv)?;
    Ok(vec![Tensor::f32(&[operands[0].dims[0], a.heads * a.head_dim], out)])
}

fn logit_stats(logits: &Tensor, temperature: &[f32]) -> Vec<Tensor> {
    let (l, v) = (logits.dims[0], logits.last());
    let rows = || logits.floats().chunks_exact(v.max(1));
    let (max, logsumexp) = rows().map(math::max_and_logsumexp).unzip();
    let blocks = rows().zip(temperature).flat_map(|(row, t)| row.chunks(STATS_BLOCK).map(move |b| block_stats(b, *t)));
    let (block_max, block_sum) = blocks.unzip();
    let blocks = [l, v.div_ceil(STATS_BLOCK)];
    let [max, logsumexp] = [max, logsumexp].map(|values| Tensor::f32(&[l], values));
    vec![max, logsumexp, Tensor::f32(&blocks, block_max), Tensor::f32(&blocks, block_sum)]
}

/// A block's largest logit, and the sum of exponentials of what the others lie below it.
fn block_stats(block: &[f32], temperature: f32) -> (f32, f32) {
    let max = math::max_and_logsumexp(block).0;
    let weight = |logit: &f32| (f64::from(logit - max) / f64::from(temperature)).exp();
    (max, if max == f32::NEG_INFINITY { 0.0 } else { block.iter().map(weight).sum::<f64>() as f32 })
}

/// Tokens by the definition: of all weights of a row, whatever its blocks' statistics are.
fn draw(logits: &Tensor, temperature: &[f32], uniform: &[f32]) -> Tensor {
    let rows = logits.floats().chunks_exact(logits.last().max(1)).zip(temperature);
    let token = |row: &[f32], t: f32, numbers: &[f32]| {
        let max = math::max_and_logsumexp(row).0;
        let weights: Vec<f64> = row.iter().map(|l| (f64::from(l - max) / f64::from(t)).exp()).collect();
        let blocks: Vec<f64> = weights.chunks(STATS_BLOCK).map(|block| block.iter().sum()).collect();
        let block = math::place(&blocks, numbers[0]) * STATS_BLOCK;
        let end = (block + STATS_BLOCK).min(row.len());
        (block + math::place(&weights[block..end], numbers[1])) as f32
    };
    let drawn = rows.zip(uniform.chunks_exact(2 * DRAWS));
    let ids = drawn.flat_map(|((row, t), numbers)| numbers.chunks_exact(2).map(move |pair| token(row, *t, pair)));
    Tensor::f32(&[logits.dims[0], DRAWS], ids.collect())
}

fn rank(logits: &Tensor, temperature: &[f32], draws: &[f32], ranked: &[i32]) -> Tensor {
    let mut ranks = vec![];
    let rows = logits.floats().chunks_exact(logits.last().max(1)).zip(temperature);
    for (((row, t), draws), ranked) in rows.zip(draws.chunks_exact(DRAWS)).zip(ranked) {
        let max = math::max_and_logsumexp(row).0;
        let weight = |l: f32| (f64::from(l - max) / f64::from(*t)).exp();
        for (i, id) in (0..).zip(draws) {
            let (id, logit) = (*id as usize, row[*id as usize]);
            let comes_before = |(i, l): &(usize, &f32)| **l > logit || **l == logit && *i < id;
            let before: f64 = row.iter().enumerate().filter(comes_before).map(|(_, l)| weight(*l)).sum();
            let likelier = row.iter().filter(|l| **l > logit).count() as f32;
            let found = [logit, likelier, before as f32, row.iter().map(|l| weight(*l)).sum::<f64>() as f32];
            ranks.extend(if i < *ranked { found } else { [0.0; RANK] });
        }
    }
    Tensor::f32(&[logits.dims[0], RANK * DRAWS], ranks)
}

fn top_k(logits: &Tensor, top_k: &[i32]) -> Tensor {
    let mut most_likely = vec![];
    for (row, count) in logits.floats().chunks_exact(logits.last().max(1)).zip(top_k) {
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
        let found = &order[..TOP_K.min(row.len()).min(usize::try_from(*count).unwrap_or(0))];
        let zeros = || std::iter::repeat_n(0.0, TOP_K - found.len());
        most_likely.extend(found.iter().map(|id| *id as f32).chain(zeros()));
        most_likely.extend(found.iter().map(|id| row[*id]).chain(zeros()));
    }
    Tensor::f32(&[logits.dims[0], 2 * TOP_K], most_likely)
}

//! Result types of kernel calls.

use super::{
    infer::{gather, queries},
    operands::{Inferred, Operands, one},
};
use crate::{
    expr::Sym,
    graph::{
        Attention, Call, Dequantize, Epilogue, Quantize, Scales, ValueType,
        op::{DRAWS, RANK, STATS_BLOCK, TOP_K},
    },
    types::{DType, Dim, TensorType},
};

pub(super) fn infer(call: &Call, o: Operands<'_>) -> Inferred {
    match call {
        Call::Embed { values: None } => gather(o),
        Call::Embed { values: Some(how) } => embed_values(o, *how),
        Call::RmsNorm { residual, rows, quantize, .. } => rms_norm(o, *residual, *rows, *quantize),
        Call::QuantizeRows(how) => o.count(1).and_then(|()| quantized(o, o.numbers(0, "x")?, *how)),
        Call::Gemm { epilogue, scales, out } => gemm(o, *epilogue, *scales, *out),
        Call::RopeKvWrite { attention, qk_norm, rope_dim } => rope_kv_write(o, attention, qk_norm.is_some(), *rope_dim),
        Call::PagedAttention(attention) => paged_attention(o, attention),
        Call::LogitStats => logit_stats(o),
        Call::Draw => draw(o),
        Call::Rank => rank(o),
        Call::TopK => top_k(o),
    }
}

fn embed_values(o: Operands<'_>, how: Dequantize) -> Inferred {
    o.count(3)?;
    let (table, ids) = (o.tensor(0, "table")?, o.indices(1, "ids")?);
    let [v, Dim::Const(h)] = table.dims[..] else {
        return Err(format!("`{}` needs a table [V, H] of values, not {table}", o.op));
    };
    let fits = match how.group {
        None => {
            o.exactly(2, "table_scale", &TensorType::new([v], DType::F32))?;
            matches!(table.dtype, DType::I8 | DType::F8e4m3)
        }
        Some(group) => {
            let groups = Dim::Const(groups(o, h, group)?);
            o.exactly(2, "table_scale", &TensorType::new([v, groups], DType::F16))?;
            matches!(table.dtype, DType::U4 | DType::U8)
        }
    };
    match fits {
        true => one([ids, Dim::Const(h)], how.out),
        false => Err(format!("`{}` reads no values of {}", o.op, table.dtype)),
    }
}

fn rms_norm(o: Operands<'_>, residual: bool, rows: bool, quantize: Option<Quantize>) -> Inferred {
    let weight = 1 + usize::from(residual);
    o.count(weight + 1 + usize::from(rows))?;
    let x = o.numbers(0, "x")?;
    if residual {
        o.exactly(1, "residual", x)?;
    }
    o.exactly(weight, "weight", &TensorType::new([o.last(x, "x")?], x.dtype))?;
    let mut y = x.clone();
    if rows {
        y.dims[0] = o.indices(weight + 1, "indices")?;
    }
    let mut results = match quantize {
        Some(how) => quantized(o, &y, how)?,
        None => vec![ValueType::Tensor(y.clone())],
    };
    results.extend(residual.then_some(ValueType::Tensor(y)));
    Ok(results)
}

/// What rows of `x` are quantised to.
fn quantized(o: Operands<'_>, x: &TensorType, how: Quantize) -> Inferred {
    let Quantize { to, group } = how;
    if !matches!(to, DType::I8 | DType::F8e4m3) {
        return Err(format!("`{}` quantises to i8 or f8e4m3, not {to}", o.op));
    }
    let columns = o.last(x, "x")?;
    let rows = &x.dims[..x.rank() - 1];
    let tensor = |dims: Vec<Dim>, dtype| ValueType::Tensor(TensorType::new(dims, dtype));
    let mut results = vec![tensor(x.dims.clone(), to), tensor(rows.to_vec(), DType::F32)];
    if let Some(group) = group {
        let groups = groups(o, columns, group)?;
        results.push(tensor([rows, &[Dim::Const(groups)]].concat(), DType::F32));
    }
    Ok(results)
}

/// How many groups `columns` are.
fn groups(o: Operands<'_>, columns: usize, group: usize) -> Result<usize, String> {
    match group > 0 && columns.is_multiple_of(group) {
        true => Ok(columns / group),
        false => Err(format!("`{}` cannot cut {columns} columns into groups of {group}", o.op)),
    }
}

fn gemm(o: Operands<'_>, e: Epilogue, scales: Scales, out: DType) -> Inferred {
    let residual = 2 + usize::from(e.bias);
    let end = residual + usize::from(e.residual);
    o.count(end + scales.operands())?;
    let mut y = match scales {
        Scales::None => o.product(out, e.bias)?,
        _ => scaled_product(o, e.bias, scales, end, out)?,
    };
    if e.silu_mul {
        let n = o.last(&y, "the product")?;
        if n % 2 != 0 {
            return Err(format!("`{}` needs gates and ups in pairs, but w dim 0 is {n}", o.op));
        }
        let last = y.rank() - 1;
        y.dims[last] = Dim::Const(n / 2);
    }
    if e.residual {
        o.exactly(residual, "residual", &y)?;
    }
    Ok(vec![ValueType::Tensor(y)])
}

/// Type of the product of values, whose scales begin with operand `at`.
fn scaled_product(o: Operands<'_>, bias: bool, scales: Scales, at: usize, out: DType) -> Result<TensorType, String> {
    let (x, w) = (o.tensor(0, "x")?, o.tensor(1, "w")?);
    let (2.., [n, Dim::Const(kw)]) = (x.rank(), &w.dims[..]) else {
        return Err(format!("`{}` needs values x [.., K] and w [N, K], not {x} and {w}", o.op));
    };
    let k = o.last(x, "x")?;
    if k != *kw {
        return Err(format!("`{}` contracts x dim {} ({k}) with w dim 1 ({kw})", o.op, x.rank() - 1));
    }
    let rows = &x.dims[..x.rank() - 1];
    if !matches!(scales, Scales::WeightOnly { .. }) {
        o.exactly(at, "x_scale", &TensorType::new(rows.iter().copied(), DType::F32))?;
    }
    let fits = match scales {
        Scales::None => false,
        Scales::Rows => {
            o.exactly(at + 1, "w_scale", &TensorType::new([*n], DType::F32))?;
            x.dtype == w.dtype && matches!(x.dtype, DType::I8 | DType::F8e4m3)
        }
        Scales::Groups(group) | Scales::GroupsWithZeros(group) => {
            let groups = Dim::Const(groups(o, k, group)?);
            group_scales(o, at + 1, [*n, groups])?;
            o.exactly(at + 2, "x_sums", &TensorType::new(rows.iter().copied().chain([groups]), DType::F32))?;
            if matches!(scales, Scales::GroupsWithZeros(_)) {
                o.exactly(at + 3, "w_zero", &TensorType::new([*n, groups], DType::F16))?;
            }
            x.dtype == DType::I8 && matches!(w.dtype, DType::U4 | DType::U8)
        }
        Scales::FloatGroups(group) => {
            let groups = Dim::Const(groups(o, k, group)?);
            group_scales(o, at + 1, [*n, groups])?;
            x.dtype == w.dtype && w.dtype == DType::F8e4m3
        }
        Scales::WeightOnly { group, zeros } => {
            let groups = Dim::Const(groups(o, k, group)?);
            group_scales(o, at, [*n, groups])?;
            if zeros {
                o.exactly(at + 1, "w_zero", &TensorType::new([*n, groups], DType::F16))?;
            }
            matches!(x.dtype, DType::Bf16 | DType::F16) && w.dtype == DType::U4
        }
    };
    if !fits {
        return Err(format!("`{}` multiplies values x of {} with w of {}", o.op, x.dtype, w.dtype));
    }
    if bias {
        let b = o.ranked(2, "bias", 1)?;
        o.exactly(2, "bias", &TensorType::new([*n], b.dtype))?;
    }
    let dims = rows.iter().copied().chain([*n]);
    Ok(TensorType::new(dims, out))
}

/// The scales of a weight's groups: in f16, bf16 or f32.
fn group_scales(o: Operands<'_>, at: usize, shape: [Dim; 2]) -> Result<(), String> {
    let scale = o.ranked(at, "w_scale", 2)?.dtype;
    let scale = if matches!(scale, DType::Bf16 | DType::F32) { scale } else { DType::F16 };
    o.exactly(at, "w_scale", &TensorType::new(shape, scale))
}

fn rope_kv_write(o: Operands<'_>, a: &Attention, norm: bool, rope_dim: usize) -> Inferred {
    o.count(if norm { 9 } else { 7 })?;
    let q = o.ranked(0, "q", 2)?;
    let (t, dtype) = (q.dims[0], q.dtype);
    let columns = |heads: usize| TensorType::new([t, heads.saturating_mul(a.head_dim).into()], dtype);
    o.exactly(0, "q", &columns(a.heads))?;
    o.exactly(1, "k", &columns(a.kv_heads))?;
    o.exactly(2, "v", &columns(a.kv_heads))?;
    rope_table(o, a, rope_dim)?;
    o.exactly(4, "positions", &TensorType::new([t], DType::I32))?;
    o.exactly(5, "slot_mapping", &TensorType::new([t], DType::I32))?;
    o.kv(6, a.layer)?;
    for (i, name) in if norm { &[(7, "q_norm"), (8, "k_norm")][..] } else { &[] } {
        o.exactly(*i, name, &TensorType::new([a.head_dim], dtype))?;
    }
    let q = TensorType::new([t, a.heads.into(), a.head_dim.into()], dtype);
    Ok(vec![ValueType::Tensor(q), ValueType::Kv(a.layer)])
}

fn rope_table(o: Operands<'_>, a: &Attention, rope_dim: usize) -> Result<(), String> {
    if !rope_dim.is_multiple_of(2) || rope_dim > a.head_dim {
        return Err(format!("`{}` rotates {rope_dim} elements of heads of {}", o.op, a.head_dim));
    }
    let table = o.ranked(3, "rope_table", 3)?;
    let positions = o.size(table, 0, "rope_table")?;
    o.exactly(3, "rope_table", &TensorType::new([positions, 2, rope_dim / 2], DType::F32))
}

fn paged_attention(o: Operands<'_>, a: &Attention) -> Inferred {
    o.count(7)?;
    let q = queries(o, a)?;
    o.kv(1, a.layer)?;
    let ints = |dims: &[Dim]| TensorType::new(dims.iter().copied(), DType::I32);
    o.exactly(2, "tile_seq", &ints(&[Sym::Q.into()]))?;
    o.exactly(3, "tile_start", &ints(&[Sym::Q.into()]))?;
    o.exactly(4, "query_start_loc", &ints(&[Dim::SymPlusOne(Sym::R)]))?;
    o.exactly(5, "seq_lens", &ints(&[Sym::R.into()]))?;
    o.exactly(6, "block_table", &ints(&[Sym::R.into(), Sym::M.into()]))?;
    one([q.dims[0], a.heads.saturating_mul(a.head_dim).into()], q.dtype)
}

fn logit_stats(o: Operands<'_>) -> Inferred {
    o.count(2)?;
    let x = o.ranked(0, "logits", 2)?;
    if x.dtype != DType::F32 {
        return Err(format!("`{}` needs logits in f32, not {x}", o.op));
    }
    o.exactly(1, "temperature", &TensorType::new([Sym::L], DType::F32))?;
    let blocks = o.last(x, "logits")?.div_ceil(STATS_BLOCK);
    let row = ValueType::Tensor(TensorType::new([x.dims[0]], DType::F32));
    let blocks = ValueType::Tensor(TensorType::new([x.dims[0], blocks.into()], DType::F32));
    Ok(vec![row.clone(), row, blocks.clone(), blocks])
}

/// The number of rows of logits, and the type of what each has of its blocks.
fn blocks(o: Operands<'_>) -> Result<(Dim, TensorType), String> {
    let x = o.ranked(0, "logits", 2)?;
    if x.dtype != DType::F32 {
        return Err(format!("`{}` needs logits in f32, not {x}", o.op));
    }
    let (rows, blocks) = (x.dims[0], o.last(x, "logits")?.div_ceil(STATS_BLOCK));
    Ok((rows, TensorType::new([rows, Dim::Const(blocks)], DType::F32)))
}

/// The number of rows, after logits, max, block_max, block_sum and temperature.
fn weights(o: Operands<'_>) -> Result<Dim, String> {
    let (rows, blocks) = blocks(o)?;
    o.exactly(1, "max", &TensorType::new([rows], DType::F32))?;
    o.exactly(2, "block_max", &blocks)?;
    o.exactly(3, "block_sum", &blocks)?;
    o.exactly(4, "temperature", &TensorType::new([Sym::L], DType::F32))?;
    Ok(rows)
}

fn draw(o: Operands<'_>) -> Inferred {
    o.count(6)?;
    let rows = weights(o)?;
    o.exactly(5, "uniform", &TensorType::new([Sym::L.into(), Dim::Const(2 * DRAWS)], DType::F32))?;
    one([rows, Dim::Const(DRAWS)], DType::F32)
}

fn rank(o: Operands<'_>) -> Inferred {
    o.count(7)?;
    let rows = weights(o)?;
    o.exactly(5, "draws", &TensorType::new([rows, Dim::Const(DRAWS)], DType::F32))?;
    o.exactly(6, "ranked", &TensorType::new([Sym::L], DType::I32))?;
    one([rows, Dim::Const(RANK * DRAWS)], DType::F32)
}

fn top_k(o: Operands<'_>) -> Inferred {
    o.count(3)?;
    let (rows, blocks) = blocks(o)?;
    o.exactly(1, "block_max", &blocks)?;
    o.exactly(2, "top_k", &TensorType::new([Sym::L], DType::I32))?;
    one([rows, Dim::Const(2 * TOP_K)], DType::F32)
}

//! Reads one operation: its word, operands and attributes.

use crate::{
    diag::Loc,
    graph::{Attention, Call, Dequantize, Epilogue, Input, Op, Parallel, Quantize, Scales},
    recipe::Recipe,
    rope::Rope,
    text::{Attrs, Cursor, Read, Token},
};

/// Name and place of an operand.
pub(super) type Operand<'a> = (&'a str, Loc);

pub(super) fn operand<'a>(c: &mut Cursor<'a>) -> Read<Operand<'a>> {
    let loc = c.loc();
    Ok((c.ident("a value")?, loc))
}

/// `word operand, … {attributes}` or `call @kernel(operand, …) {attributes}`.
pub(super) fn operation<'a>(c: &mut Cursor<'a>) -> Read<(Op, Vec<Operand<'a>>)> {
    match c.peek() {
        Token::Ident("input") => Ok((input(c)?, vec![])),
        Token::Ident("weight") => {
            c.bump();
            Ok((Op::Weight(Recipe::read(c)?), vec![]))
        }
        Token::Ident("call") => call(c),
        _ => tensor_op(c),
    }
}

fn input(c: &mut Cursor<'_>) -> Read<Op> {
    c.bump();
    let unknown = c.expected("the name of a step input");
    let name = c.ident("the name of a step input")?;
    Input::parse(name).map(Op::Input).ok_or(unknown)
}

fn attributes<'a>(c: &mut Cursor<'a>) -> Read<Attrs<'a>> {
    if c.eat('{') { c.attrs('}') } else { Ok(Attrs::none(c.loc())) }
}

fn tensor_op<'a>(c: &mut Cursor<'a>) -> Read<(Op, Vec<Operand<'a>>)> {
    let unknown = |c: &Cursor<'_>, word| c.error(format!("unknown operation `{word}`"));
    let at = c.clone();
    let word = c.ident("an operation")?;
    let operands = c.separated(operand)?;
    let mut attrs = attributes(c)?;
    let op = match word {
        "gather" => Op::Gather,
        "linear" => Op::Linear { parallel: parallel(&mut attrs)?, out: attrs.dtype("out")? },
        "add" => Op::Add,
        "mul" => Op::Mul,
        "silu" => Op::Silu,
        "rms_norm" => Op::RmsNorm { eps: attrs.required("eps")? },
        "split_heads" => Op::SplitHeads { heads: attrs.required("heads")? },
        "merge_heads" => Op::MergeHeads,
        "slice" => Op::Slice { start: attrs.required("start")?, len: attrs.required("len")? },
        "rope" => Op::Rope(Rope::read(&mut attrs)?),
        "attend" => Op::Attend(attention(&mut attrs)?),
        "rows" => Op::Rows,
        _ => return Err(unknown(&at, word)),
    };
    attrs.finish()?;
    Ok((op, operands))
}

fn call<'a>(c: &mut Cursor<'a>) -> Read<(Op, Vec<Operand<'a>>)> {
    c.bump();
    c.expect('@')?;
    let at = c.loc();
    let kernel = c.ident("a kernel")?;
    c.expect('(')?;
    let operands = c.list(')', operand)?;
    let mut attrs = attributes(c)?;
    let call = match kernel {
        "embed" => embed(&mut attrs)?,
        "rms_norm" => rms_norm(&mut attrs)?,
        "quantize_rows" => Call::QuantizeRows(quantize(&mut attrs)?.ok_or_else(|| missing_to(at))?),
        "gemm" => gemm(&mut attrs)?,
        "rope_kv_write" => rope_kv_write(&mut attrs)?,
        "paged_attention" => Call::PagedAttention(attention(&mut attrs)?),
        "logit_stats" => Call::LogitStats,
        "draw" => Call::Draw,
        "rank" => Call::Rank,
        "top_k" => Call::TopK,
        _ => return Err(crate::Diagnostic::new(format!("unknown kernel @{kernel}"), Some(at))),
    };
    attrs.finish()?;
    Ok((Op::Call(call), operands))
}

fn parallel(a: &mut Attrs<'_>) -> Read<Parallel> {
    let read = |s: &str| match s {
        "cols" => Some(Parallel::Cols),
        "rows" => Some(Parallel::Rows),
        _ => None,
    };
    Ok(a.optional_with("parallel", read)?.unwrap_or_default())
}

fn attention(a: &mut Attrs<'_>) -> Read<Attention> {
    Ok(Attention {
        layer: a.required("layer")?,
        heads: a.required("heads")?,
        kv_heads: a.required("kv_heads")?,
        head_dim: a.required("head_dim")?,
        scale: a.required("scale")?,
        window: a.optional("window")?,
        softcap: a.optional("softcap")?,
    })
}

fn rms_norm(a: &mut Attrs<'_>) -> Read<Call> {
    let (eps, residual, rows) = (a.required("eps")?, a.flag("residual")?, a.flag("rows")?);
    Ok(Call::RmsNorm { eps, residual, rows, quantize: quantize(a)? })
}

fn missing_to(at: Loc) -> crate::Diagnostic {
    crate::Diagnostic::new("attribute `to` is missing", Some(at))
}

/// A table of numbers, or of values where `scales` is there.
fn embed(a: &mut Attrs<'_>) -> Read<Call> {
    let group = match scales(a)? {
        Scales::None => return Ok(Call::Embed { values: None }),
        scales => scales.group(),
    };
    Ok(Call::Embed { values: Some(Dequantize { group, out: a.required_dtype("out")? }) })
}

/// How rows are quantised, where `to` is there.
fn quantize(a: &mut Attrs<'_>) -> Read<Option<Quantize>> {
    let Some(to) = a.dtype("to")? else { return Ok(None) };
    Ok(Some(Quantize { to, group: a.optional("group")? }))
}

/// `rows`, or the columns that share a scale.
fn scales(a: &mut Attrs<'_>) -> Read<Scales> {
    let read = |s: &str| match s {
        "rows" => Some(Scales::Rows),
        columns => columns.parse().ok().map(Scales::Groups),
    };
    Ok(a.optional_with("scales", read)?.unwrap_or_default())
}

/// The same, where each group may have a zero.
fn scales_and_zeros(a: &mut Attrs<'_>) -> Read<Scales> {
    match (scales(a)?, a.flag("zeros")?, a.flag("weight_only")?, a.flag("floats")?) {
        (Scales::Groups(group), zeros, true, false) => Ok(Scales::WeightOnly { group, zeros }),
        (Scales::Groups(columns), true, false, false) => Ok(Scales::GroupsWithZeros(columns)),
        (Scales::Groups(columns), false, false, true) => Ok(Scales::FloatGroups(columns)),
        (scales, false, false, false) => Ok(scales),
        (Scales::Groups(_), ..) => {
            Err(a.error("attribute `floats` goes with neither `zeros` nor `weight_only`".to_string()))
        }
        (_, zeros, weight_only, _) => {
            let flag = if zeros {
                "zeros"
            } else if weight_only {
                "weight_only"
            } else {
                "floats"
            };
            Err(a.error(format!("attribute `{flag}` needs groups: `scales = COLUMNS`")))
        }
    }
}

fn gemm(a: &mut Attrs<'_>) -> Read<Call> {
    let epilogue = Epilogue { bias: a.flag("bias")?, silu_mul: a.flag("silu_mul")?, residual: a.flag("residual")? };
    Ok(Call::Gemm { epilogue, scales: scales_and_zeros(a)?, out: a.required_dtype("out")? })
}

fn rope_kv_write(a: &mut Attrs<'_>) -> Read<Call> {
    Ok(Call::RopeKvWrite {
        attention: attention(a)?,
        qk_norm: a.optional("qk_norm")?,
        rope_dim: a.required("rope_dim")?,
    })
}

//! Conversions between element types. Widening is exact; narrowing rounds to nearest even, and a NaN stays one.

use crate::{
    map,
    text::{Elem, Ssa, Ty, Writer},
};
use rvllm_ir::types::DType;

fn is_vector_of(v: Ssa, elem: Elem) -> bool {
    matches!(v.ty, Ty::Vector(_, e) if e == elem)
}

/// Bits of a 16-bit float (`i16` lanes) and bytes (`i8` lanes) as f32; f32 and i32 as they are.
pub(crate) fn to_f32(w: &mut Writer, v: Ssa, dtype: DType) -> Ssa {
    match dtype {
        DType::Bf16 if is_vector_of(v, Elem::I16) => {
            let wide = w.convert("arith.extui", v, v.ty.with(Elem::I32));
            let sixteen = w.ints(wide.ty, 16);
            let bits = w.binary("arith.shli", wide, sixteen);
            w.bitcast(bits, v.ty.with(Elem::F32))
        }
        DType::F16 => {
            let half = w.bitcast(v, v.ty.with(Elem::F16));
            w.convert("arith.extf", half, v.ty.with(Elem::F32))
        }
        DType::I8 | DType::U8 | DType::U4 => {
            let extend = if dtype == DType::I8 { "arith.extsi" } else { "arith.extui" };
            let wide = w.convert(extend, v, v.ty.with(Elem::I32));
            w.convert("arith.sitofp", wide, v.ty.with(Elem::F32))
        }
        _ => v,
    }
}

/// f32 as the bits of bf16; `native` where one instruction does it.
pub(crate) fn to_bf16(w: &mut Writer, v: Ssa, native: bool) -> Ssa {
    if native {
        let half = w.convert("arith.truncf", v, v.ty.with(Elem::Bf16));
        return w.bitcast(half, v.ty.with(Elem::I16));
    }
    let ints = v.ty.with(Elem::I32);
    let bits = w.bitcast(v, ints);
    let sixteen = w.ints(ints, 16);
    let high = w.binary("arith.shrui", bits, sixteen);
    let one = w.ints(ints, 1);
    let odd = w.binary("arith.andi", high, one);
    let half = w.ints(ints, 0x7fff);
    let bias = w.binary("arith.addi", odd, half);
    let rounded = w.binary("arith.addi", bits, bias);
    let rounded = w.binary("arith.shrui", rounded, sixteen);
    // the carry could turn a NaN into an infinity: keep its head and make it quiet
    let quiet = w.ints(ints, 0x40);
    let nan = w.binary("arith.ori", high, quiet);
    let is_nan = w.compare("uno", v, v);
    let chosen = w.select(is_nan, nan, rounded);
    w.convert("arith.trunci", chosen, v.ty.with(Elem::I16))
}

/// Adding it rounds an f32 to an integer, whose two's complement is then in the low bits.
const ROUND: f32 = 12_582_912.0; // 1.5 · 2^23

/// f32 as the nearest i8; what is too large becomes the largest, a NaN the smallest.
fn to_i8(w: &mut Writer, v: Ssa) -> Ssa {
    let [least, most, round] = [-128.0, 127.0, ROUND].map(|c| w.floats(v.ty, c));
    let v = map::max(w, v, least);
    let v = map::min(w, v, most);
    let rounded = w.binary("arith.addf", v, round);
    let bits = w.bitcast(rounded, v.ty.with(Elem::I32));
    w.convert("arith.trunci", bits, v.ty.with(Elem::I8))
}

/// One vector to another element type.
pub(crate) fn convert(w: &mut Writer, v: Ssa, from: DType, to: DType, native_bf16: bool) -> Ssa {
    match (from, to) {
        (DType::I32, DType::F32) => w.convert("arith.sitofp", v, v.ty.with(Elem::F32)),
        (DType::F32, DType::Bf16) => to_bf16(w, v, native_bf16),
        (DType::F32, DType::I8) => to_i8(w, v),
        (DType::F32, DType::F16) => {
            let half = w.convert("arith.truncf", v, v.ty.with(Elem::F16));
            w.bitcast(half, v.ty.with(Elem::I16))
        }
        (_, DType::F32) => to_f32(w, v, from),
        _ => v,
    }
}

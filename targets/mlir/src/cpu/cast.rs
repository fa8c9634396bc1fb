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
        DType::F8e4m3 => e4m3_to_f32(w, v),
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

/// Bits of e4m3 as f32: those of an f16 with a smaller bias of the exponent, so that subnormal numbers are widened too.
fn e4m3_to_f32(w: &mut Writer, v: Ssa) -> Ssa {
    let wide = w.convert("arith.extsi", v, v.ty.with(Elem::I16));
    // what was extended is the sign: once where an f16 has it, and once where the shift leaves it beside the exponent
    let [signed, rest, seven] = [-0x4080, 0x3f80, 7].map(|c| w.ints(wide.ty, c));
    let shifted = w.binary("arith.shli", wide, seven);
    let bits = w.binary("arith.andi", shifted, signed);
    let magnitude = w.binary("arith.andi", bits, rest);
    let half = w.bitcast(bits, v.ty.with(Elem::F16));
    let number = w.convert("arith.extf", half, v.ty.with(Elem::F32));
    let (bias, nan) = (w.floats(number.ty, 256.0), w.floats(number.ty, f32::NAN));
    let number = w.binary("arith.mulf", number, bias);
    let is_nan = w.compare("eq", magnitude, rest);
    w.select(is_nan, nan, number)
}

/// f32 as the nearest e4m3; what is too large becomes the largest.
fn to_e4m3(w: &mut Writer, v: Ssa) -> Ssa {
    let ints = v.ty.with(Elem::I32);
    let size = w.unary("math.absf", v);
    let largest = w.floats(v.ty, DType::F8e4m3.largest());
    let is_nan = w.compare("uno", v, v);
    let size = map::min(w, size, largest);
    // to nearest even: half a step less an odd one, in the bits that go
    let bits = w.bitcast(size, ints);
    let [gone, one, half, bias] = [20, 1, 0x7_ffff, 120 << 3].map(|c| w.ints(ints, c));
    let odd = w.binary("arith.shrui", bits, gone);
    let odd = w.binary("arith.andi", odd, one);
    let normal = w.binary("arith.addi", bits, half);
    let normal = w.binary("arith.addi", normal, odd);
    let normal = w.binary("arith.shrui", normal, gone);
    let normal = w.binary("arith.subi", normal, bias);
    // a number whose last bit is worth the smallest one
    let (step, least) = (w.floats(v.ty, 16384.0), w.floats(v.ty, 1.0 / 64.0));
    let sum = w.binary("arith.addf", size, step);
    let (sum, none) = (w.bitcast(sum, ints), w.bitcast(step, ints));
    let subnormal = w.binary("arith.subi", sum, none);
    let small = w.compare("olt", size, least);
    let magnitude = w.select(small, subnormal, normal);
    let nan = w.ints(ints, 0x7f);
    let magnitude = w.select(is_nan, nan, magnitude);
    let sign = w.bitcast(v, ints);
    let [down, top] = [24, 0x80].map(|c| w.ints(ints, c));
    let sign = w.binary("arith.shrui", sign, down);
    let sign = w.binary("arith.andi", sign, top);
    let bits = w.binary("arith.ori", sign, magnitude);
    w.convert("arith.trunci", bits, v.ty.with(Elem::I8))
}

/// f32 as bf16 where that is exact: what goes is zero.
fn exactly_bf16(w: &mut Writer, v: Ssa) -> Ssa {
    let lanes = v.ty.lanes();
    let halves = w.bitcast(v, Ty::Vector(2 * lanes, Elem::I16));
    w.shuffle(halves, halves, &(0..lanes).map(|i| 2 * i + 1).collect::<Vec<_>>())
}

/// Lanes of a vector of 16-bit elements that one instruction looks up in a table.
const TABLE_LANES: usize = 32;

/// Bits of a number of e4m3 without its sign as those of bf16.
fn e4m3_as_bf16(bits: u32) -> i64 {
    let (exponent, mantissa) = (bits >> 3, (bits & 7) as f32);
    let number = match (exponent, bits & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 512.0,
        _ => (1.0 + mantissa / 8.0) * (exponent as f32 - 7.0).exp2(),
    };
    i64::from(number.to_bits() >> 16)
}

/// Bits of e4m3 as those of bf16, from a table of the numbers without their signs: two lookups among 64 each.
fn e4m3_to_bf16(w: &mut Writer, v: Ssa) -> Ssa {
    let index = w.convert("arith.extsi", v, v.ty.with(Elem::I16));
    let mut quarter = |first: u32| {
        let bits: Vec<i64> = (first..first + TABLE_LANES as u32).map(e4m3_as_bf16).collect();
        w.dense(Elem::I16, &bits)
    };
    let table = [0, 32, 64, 96].map(&mut quarter);
    let mut look_up = |of: &[Ssa]| w.intrinsic("llvm.x86.avx512.vpermi2var.hi.512", &[of[0], index, of[1]], index.ty);
    let (small, large) = (look_up(&table[..2]), look_up(&table[2..]));
    let [zero, upper, top] = [0, 0x40, -0x8000].map(|c| w.ints(index.ty, c));
    let upper = w.binary("arith.andi", index, upper);
    let is_small = w.compare("eq", upper, zero);
    let number = w.select(is_small, small, large);
    let sign = w.binary("arith.andi", index, top);
    w.binary("arith.ori", number, sign)
}

/// One vector in an element type that holds all of its numbers; `tables` where instructions look up 16-bit elements.
pub(crate) fn widen(w: &mut Writer, v: Ssa, from: DType, to: DType, tables: bool) -> Ssa {
    if (from, to, v.ty.lanes()) == (DType::F8e4m3, DType::Bf16, TABLE_LANES) && tables {
        return e4m3_to_bf16(w, v);
    }
    let number = to_f32(w, v, from);
    if to == DType::Bf16 { exactly_bf16(w, number) } else { number }
}

/// One vector to another element type.
pub(crate) fn convert(w: &mut Writer, v: Ssa, from: DType, to: DType, native_bf16: bool) -> Ssa {
    match (from, to) {
        (DType::I32, DType::F32) => w.convert("arith.sitofp", v, v.ty.with(Elem::F32)),
        (DType::F32, DType::Bf16) => to_bf16(w, v, native_bf16),
        (DType::F32, DType::I8) => to_i8(w, v),
        (DType::F32, DType::F8e4m3) => to_e4m3(w, v),
        (DType::F32, DType::F16) => {
            let half = w.convert("arith.truncf", v, v.ty.with(Elem::F16));
            w.bitcast(half, v.ty.with(Elem::I16))
        }
        (_, DType::F32) => to_f32(w, v, from),
        _ => v,
    }
}

//! Elementwise operations in f32: one vector instruction each, or a polynomial where the hardware has none. Nothing here
//! calls a library.

use crate::text::{Elem, Ssa, Writer};
use rvllm_ir::tile::{Cmp, MapOp};

/// Larger of two; `b` where either is a NaN.
pub(crate) fn max(w: &mut Writer, a: Ssa, b: Ssa) -> Ssa {
    let greater = w.compare("ogt", a, b);
    w.select(greater, a, b)
}

/// Smaller of two; `b` where either is a NaN.
pub(crate) fn min(w: &mut Writer, a: Ssa, b: Ssa) -> Ssa {
    let less = w.compare("olt", a, b);
    w.select(less, a, b)
}

/// One vector of an elementwise operation.
pub(crate) fn map(w: &mut Writer, op: MapOp, args: &[Ssa]) -> Ssa {
    match (op, args) {
        (MapOp::Add, [a, b]) => w.binary("arith.addf", *a, *b),
        (MapOp::Sub, [a, b]) => w.binary("arith.subf", *a, *b),
        (MapOp::Mul, [a, b]) => w.binary("arith.mulf", *a, *b),
        (MapOp::Div, [a, b]) => w.binary("arith.divf", *a, *b),
        (MapOp::Max, [a, b]) => max(w, *a, *b),
        (MapOp::Min, [a, b]) => min(w, *a, *b),
        (MapOp::Neg, [a, ..]) => w.unary("arith.negf", *a),
        (MapOp::Exp, [a, ..]) => exp(w, *a),
        (MapOp::Log, [a, ..]) => log(w, *a),
        (MapOp::Rsqrt, [a, ..]) => rsqrt(w, *a),
        (MapOp::Tanh, [a, ..]) => tanh(w, *a),
        // the verifier checks arities
        (_, rest) => rest[0],
    }
}

/// One vector of a select.
pub(crate) fn select(w: &mut Writer, cmp: Cmp, [a, b]: [Ssa; 2], [x, y]: [Ssa; 2]) -> Ssa {
    let float = a.ty == a.ty.with(Elem::F32);
    let predicate = match (cmp, float) {
        (Cmp::Lt, true) => "olt",
        (Cmp::Le, true) => "ole",
        (Cmp::Eq, true) => "oeq",
        (Cmp::Lt, false) => "slt",
        (Cmp::Le, false) => "sle",
        (Cmp::Eq, false) => "eq",
    };
    let cond = w.compare(predicate, a, b);
    w.select(cond, x, y)
}

fn rsqrt(w: &mut Writer, a: Ssa) -> Ssa {
    let root = w.unary("math.sqrt", a);
    let one = w.floats(a.ty, 1.0);
    w.binary("arith.divf", one, root)
}

/// `c[0] + x (c[1] + x (c[2] + …))`.
fn polynomial(w: &mut Writer, x: Ssa, c: &[f32]) -> Ssa {
    let (last, rest) = c.split_last().expect("invariant: a polynomial has coefficients");
    let mut sum = w.floats(x.ty, *last);
    for c in rest.iter().rev() {
        let c = w.floats(x.ty, *c);
        sum = w.fma(sum, x, c);
    }
    sum
}

/// Adding it rounds an f32 to an integer, whose two's complement is then in the low bits.
const ROUND: f32 = 12_582_912.0; // 1.5 · 2^23

/// ln 2 in two parts, the first with few enough bits that a small integer times it is exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// Coefficients of `(exp(r) - 1 - r) / r²` on |r| ≤ ln 2 / 2 (Cephes `expf`).
const EXP: [f32; 6] = [0.5, 0.166_666_66, 0.041_665_796, 0.008_333_452, 0.001_398_199_9, 0.000_198_756_91];

/// `2^n r` by Cody and Waite: exact at 0, 0 at -inf, infinite where it overflows. At most 2 ulp.
fn exp(w: &mut Writer, x: Ssa) -> Ssa {
    let (lowest, highest) = (w.floats(x.ty, -104.0), w.floats(x.ty, 89.0));
    // a NaN fails both comparisons and passes through
    let below = w.compare("olt", x, lowest);
    let x = w.select(below, lowest, x);
    let above = w.compare("ogt", x, highest);
    let x = w.select(above, highest, x);
    let (log2e, round) = (w.floats(x.ty, std::f32::consts::LOG2_E), w.floats(x.ty, ROUND));
    let shifted = w.fma(x, log2e, round);
    let n = w.binary("arith.subf", shifted, round);
    let (high, low) = (w.floats(x.ty, -LN2_HIGH), w.floats(x.ty, -LN2_LOW));
    let r = w.fma(n, high, x);
    let r = w.fma(n, low, r);
    let tail = polynomial(w, r, &EXP);
    let square = w.binary("arith.mulf", r, r);
    let p = w.fma(tail, square, r);
    let one = w.floats(x.ty, 1.0);
    let p = w.binary("arith.addf", p, one);
    scale_by_power(w, p, shifted)
}

/// `p · 2^n`, where `shifted` is n + [`ROUND`]: in two steps, so that subnormal and infinite results come out right.
fn scale_by_power(w: &mut Writer, p: Ssa, shifted: Ssa) -> Ssa {
    let ints = p.ty.with(Elem::I32);
    let bits = w.bitcast(shifted, ints);
    let zero = w.ints(ints, i64::from(ROUND.to_bits()));
    let n = w.binary("arith.subi", bits, zero);
    let one = w.ints(ints, 1);
    let half = w.binary("arith.shrsi", n, one);
    let rest = w.binary("arith.subi", n, half);
    let p = times_power(w, p, half);
    times_power(w, p, rest)
}

fn times_power(w: &mut Writer, p: Ssa, n: Ssa) -> Ssa {
    let (bias, mantissa) = (w.ints(n.ty, 127), w.ints(n.ty, 23));
    let biased = w.binary("arith.addi", n, bias);
    let bits = w.binary("arith.shli", biased, mantissa);
    let power = w.bitcast(bits, p.ty);
    w.binary("arith.mulf", p, power)
}

/// Coefficients of `(tanh(x) - x) / x³` in x² on |x| ≤ 0.625 (Cephes `tanhf`).
const TANH: [f32; 5] = [-0.333_332_8, 0.133_314_42, -0.053_739_715, 0.020_639_088, -0.005_704_988_7];

/// A polynomial near 0, `1 - 2 / (exp(2|x|) + 1)` elsewhere.
fn tanh(w: &mut Writer, x: Ssa) -> Ssa {
    let square = w.binary("arith.mulf", x, x);
    let tail = polynomial(w, square, &TANH);
    let cube = w.binary("arith.mulf", square, x);
    let near = w.fma(tail, cube, x);
    let size = w.unary("math.absf", x);
    let double = w.binary("arith.addf", size, size);
    let e = exp(w, double);
    let (one, two) = (w.floats(x.ty, 1.0), w.floats(x.ty, 2.0));
    let denominator = w.binary("arith.addf", e, one);
    let part = w.binary("arith.divf", two, denominator);
    let far = w.binary("arith.subf", one, part);
    let far = copy_sign(w, far, x);
    let bound = w.floats(x.ty, 0.625);
    let small = w.compare("olt", size, bound);
    w.select(small, near, far)
}

fn copy_sign(w: &mut Writer, size: Ssa, sign: Ssa) -> Ssa {
    let ints = size.ty.with(Elem::I32);
    let (bits, from) = (w.bitcast(size, ints), w.bitcast(sign, ints));
    let mask = w.ints(ints, i64::from(i32::MIN));
    let sign = w.binary("arith.andi", from, mask);
    let bits = w.binary("arith.ori", bits, sign);
    w.bitcast(bits, size.ty)
}

/// Coefficients of `(ln(1 + f) - f + f²/2) / f³` on √½ - 1 ≤ f ≤ √2 - 1 (Cephes `logf`).
const LOG: [f32; 9] = [
    0.333_333_3,
    -0.249_999_94,
    0.200_007_14,
    -0.166_680_57,
    0.142_493_23,
    -0.124_201_41,
    0.116_769_984,
    -0.115_146_1,
    0.070_376_836,
];

/// `n ln 2 + ln(1 + f)`; -inf at 0, infinite at infinity, a NaN below zero.
fn log(w: &mut Writer, x: Ssa) -> Ssa {
    let ints = x.ty.with(Elem::I32);
    // subnormals become normal by a factor 2^23
    let (normal, factor) = (w.floats(x.ty, f32::MIN_POSITIVE), w.floats(x.ty, 8_388_608.0));
    let subnormal = w.compare("olt", x, normal);
    let scaled = w.binary("arith.mulf", x, factor);
    let y = w.select(subnormal, scaled, x);
    let (shift, none) = (w.floats(x.ty, -23.0), w.floats(x.ty, 0.0));
    let shift = w.select(subnormal, shift, none);
    // y = 2^n m with √½ ≤ m < √2
    let bits = w.bitcast(y, ints);
    let root = w.ints(ints, i64::from(std::f32::consts::FRAC_1_SQRT_2.to_bits()));
    let above = w.binary("arith.subi", bits, root);
    let mantissa = w.ints(ints, 23);
    let n = w.binary("arith.shrsi", above, mantissa);
    let power = w.binary("arith.shli", n, mantissa);
    let m = w.binary("arith.subi", bits, power);
    let m = w.bitcast(m, x.ty);
    let n = w.convert("arith.sitofp", n, x.ty);
    let n = w.binary("arith.addf", n, shift);
    let one = w.floats(x.ty, 1.0);
    let f = w.binary("arith.subf", m, one);
    let sum = log1p(w, f, n);
    log_at_ends(w, x, sum)
}

/// `n ln 2 + ln(1 + f)`.
fn log1p(w: &mut Writer, f: Ssa, n: Ssa) -> Ssa {
    let tail = polynomial(w, f, &LOG);
    let square = w.binary("arith.mulf", f, f);
    let cube = w.binary("arith.mulf", square, f);
    let small = w.binary("arith.mulf", tail, cube);
    let low = w.floats(f.ty, LN2_LOW);
    let small = w.fma(n, low, small);
    let half = w.floats(f.ty, -0.5);
    let small = w.fma(square, half, small);
    let sum = w.binary("arith.addf", f, small);
    let high = w.floats(f.ty, LN2_HIGH);
    w.fma(n, high, sum)
}

fn log_at_ends(w: &mut Writer, x: Ssa, sum: Ssa) -> Ssa {
    let (zero, infinity) = (w.floats(x.ty, 0.0), w.floats(x.ty, f32::INFINITY));
    let lowest = w.floats(x.ty, f32::NEG_INFINITY);
    let is_zero = w.compare("oeq", x, zero);
    let sum = w.select(is_zero, lowest, sum);
    // infinity and NaN are themselves
    let finite = w.compare("olt", x, infinity);
    let sum = w.select(finite, sum, x);
    let nan = w.floats(x.ty, f32::NAN);
    let negative = w.compare("olt", x, zero);
    w.select(negative, nan, sum)
}

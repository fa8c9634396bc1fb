//! e to a power by the GPU's power of two.

use crate::text::{Elem, Ssa, Ty, Writer};

/// log2 e, rounded, and what rounding left.
const LOG2E: [f32; 2] = [std::f32::consts::LOG2_E, 1.925_963_5e-8];

/// Powers up to this one are finite, and so is every number on the way there.
const LARGEST: f32 = 88.7227;

/// Powers below this one round to 0.
const SMALLEST: f32 = -104.0;

/// e to the power x: the instruction's 2 ulp and a rounding; exactly 1 at 0, 0 at -inf, infinite from [`LARGEST`] on.
pub(crate) fn exp(w: &mut Writer, x: Ssa) -> Ssa {
    let f32 = Ty::Scalar(Elem::F32);
    let [high, low, ln2] = [LOG2E[0], LOG2E[1], std::f32::consts::LN_2].map(|c| w.floats(f32, c));
    // x log2 e = t + rest: 2^t is exact to the instruction, and 2^rest is 1 + rest ln 2
    let t = w.binary("arith.mulf", x, high);
    let negative = w.unary("arith.negf", t);
    let rest = w.fma(x, high, negative);
    let rest = w.fma(x, low, rest);
    let rest = w.binary("arith.mulf", rest, ln2);
    let power = w.intrinsic("llvm.nvvm.ex2.approx.f32", &[t], f32);
    let e = w.fma(power, rest, power);
    let [most, least, infinity, none] = [LARGEST, SMALLEST, f32::INFINITY, 0.0].map(|c| w.floats(f32, c));
    let over = w.compare("ogt", x, most);
    let e = w.select(over, infinity, e);
    let under = w.compare("olt", x, least);
    w.select(under, none, e)
}

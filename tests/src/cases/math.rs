//! Elementwise functions over wide ranges, and conversions.

use super::Case;
use crate::launch::{Launch, Symbols};
use rvllm_ir::{
    DType, TensorType,
    tile::{Kernel, KernelBuilder, MapOp},
};

/// Elements of a launch.
pub const N: usize = 4096;

/// An elementwise function.
pub fn map_kernel(name: &str, op: MapOp) -> Kernel {
    let mut k = KernelBuilder::new(name);
    let x = k.input("x", TensorType::new([N], DType::F32));
    let y = k.output("y", TensorType::new([N], DType::F32));
    let i = k.grid("i", (N / 16) as i64);
    let at = k.scale(i, 16);
    let t = k.load(x, &[at], &[16]);
    let t = k.map(op, &[t]);
    k.store(y, &[at], t);
    k.finish()
}

/// A conversion from f32.
pub fn cast_kernel(name: &str, dtype: DType) -> Kernel {
    let mut k = KernelBuilder::new(name);
    let x = k.input("x", TensorType::new([N], DType::F32));
    let y = k.output("y", TensorType::new([N], dtype));
    let i = k.grid("i", (N / 16) as i64);
    let at = k.scale(i, 16);
    let t = k.load(x, &[at], &[16]);
    k.store(y, &[at], t);
    k.finish()
}

/// Evenly spread inputs, the first of them special.
pub fn between(lo: f32, hi: f32, special: &[f32]) -> Vec<f32> {
    let step = |i: usize| lo + (hi - lo) * (i as f32 / N as f32);
    let mut inputs: Vec<f32> = (0..N).map(step).collect();
    inputs[..special.len()].copy_from_slice(special);
    inputs
}

/// Functions within some units in the last place, conversions exact.
pub fn cases() -> Vec<Case> {
    let functions = [
        (MapOp::Exp, between(-104.0, 89.0, &[0.0, -0.0, f32::NEG_INFINITY, -1e30, 1e-30])),
        (MapOp::Log, between(1e-3, 4.0, &[1.0, f32::MIN_POSITIVE, 0.5, 2.0])),
        (MapOp::Tanh, between(-10.0, 10.0, &[0.0, -0.0, 1e-20, 20.0, -100.0])),
        (MapOp::Rsqrt, between(1e-6, 100.0, &[1.0, 4.0])),
    ];
    let launch = |kernel, inputs| Launch::new(kernel, Symbols::default(), 0).set("x", inputs);
    let function =
        |(op, inputs)| Case::new(launch(map_kernel(&format!("map_{op:?}").to_lowercase(), op), inputs), 4e-6);
    let cast =
        |dtype: DType| Case::new(launch(cast_kernel(&format!("cast_{dtype}"), dtype), between(-3.0, 7.0, &[])), 0.0);
    functions.into_iter().map(function).chain([DType::Bf16, DType::F16].into_iter().map(cast)).collect()
}

//! Elementwise functions over wide ranges against f64, and conversions bit by bit.

use rvllm_ir::{DType, tile::MapOp};
use rvllm_tests::{
    cases::math::{N, between, cast_kernel, map_kernel},
    launch::{Code, Launch, Symbols, targets},
};

/// Units in the last place between an f32 and what it should be.
fn ulps(found: f32, exact: f64) -> f64 {
    let expected = exact as f32;
    if expected == found || (expected.is_nan() && found.is_nan()) {
        return 0.0;
    }
    let ulp = f64::from(f32::from_bits(expected.abs().to_bits().max(1) + 1)) - f64::from(expected.abs());
    (f64::from(found) - exact).abs() / ulp.max(f64::from(f32::from_bits(1)))
}

fn check(op: MapOp, exact: fn(f64) -> f64, inputs: Vec<f32>, bound: f64) {
    assert_eq!(inputs.len(), N);
    for target in targets() {
        let launch = Launch::new(map_kernel("map", op), Symbols::default(), 0).set("x", inputs.clone());
        let code = Code::new(std::slice::from_ref(&launch.kernel), &target);
        let found = launch.whole(&code).remove(0);
        for (x, y) in inputs.iter().zip(found) {
            let error = ulps(y, exact(f64::from(*x)));
            assert!(error <= bound, "{}: {op:?}({x:e}) = {y:e}, {error} ulp off", target.name);
        }
    }
}

#[test]
fn exp_is_within_two_ulp_and_exact_at_its_ends() {
    let special =
        [0.0, -0.0, f32::NEG_INFINITY, f32::INFINITY, f32::NAN, 88.72, 89.5, -87.4, -103.9, -104.5, -1e30, 1e-30];
    check(MapOp::Exp, f64::exp, between(-104.0, 89.0, &special), 2.0);
    check(MapOp::Exp, f64::exp, between(-2.0, 2.0, &[]), 2.0);
}

#[test]
fn log_is_within_two_ulp() {
    let special = [1.0, f32::INFINITY, 0.0, f32::NAN, 1e-40, f32::MIN_POSITIVE, f32::MAX, 0.5, 2.0, -1.0];
    check(MapOp::Log, f64::ln, between(1e-3, 4.0, &special), 2.0);
    check(MapOp::Log, f64::ln, between(1.0, 1e6, &[]), 2.0);
}

#[test]
fn tanh_is_within_two_ulp() {
    let special = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e-20, 0.625, -0.625, 20.0, -100.0];
    check(MapOp::Tanh, f64::tanh, between(-10.0, 10.0, &special), 2.0);
    check(MapOp::Tanh, f64::tanh, between(-0.7, 0.7, &[]), 2.0);
}

#[test]
fn rsqrt_is_two_correct_roundings() {
    for target in targets() {
        let inputs = between(1e-6, 100.0, &[1.0, 4.0, f32::INFINITY, 0.0]);
        let launch = Launch::new(map_kernel("map", MapOp::Rsqrt), Symbols::default(), 0).set("x", inputs.clone());
        let code = Code::new(std::slice::from_ref(&launch.kernel), &target);
        let expected: Vec<f32> = inputs.iter().map(|x| 1.0 / x.sqrt()).collect();
        assert_eq!(launch.whole(&code)[0], expected, "{}", target.name);
    }
}

#[test]
fn narrowing_rounds_to_nearest_even() {
    // ties both ways, a carry into the exponent, overflow, NaNs, negative numbers; subnormals are left out: hardware
    // conversion to bf16 flushes them
    let special = [
        0x3f80_8000,
        0x3f81_8000,
        0x3f80_8001,
        0x3f7f_ffff,
        0x7f7f_ffff,
        0xff80_0000,
        0x7fc0_0001,
        0x7f80_0001,
        0xffff_ffff,
        0x8000_0000,
        0xc049_0fdb,
    ];
    let special: Vec<f32> = special.into_iter().map(f32::from_bits).collect();
    for target in targets() {
        for dtype in [DType::Bf16, DType::F16] {
            let inputs = between(-3.0, 7.0, &special);
            let launch = Launch::new(cast_kernel("cast", dtype), Symbols::default(), 0).set("x", inputs.clone());
            let code = Code::new(std::slice::from_ref(&launch.kernel), &target);
            let found = launch.whole(&code).remove(0);
            for (x, y) in inputs.iter().zip(found) {
                let expected = dtype.round(*x);
                let same = y.to_bits() == expected.to_bits() || (y.is_nan() && expected.is_nan());
                assert!(same, "{}: {x:e} became {y:e} in {dtype}, not {expected:e}", target.name);
            }
        }
    }
}

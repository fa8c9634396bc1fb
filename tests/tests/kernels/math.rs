//! Elementwise functions over wide ranges against f64, and conversions bit by bit.

use rvllm_ir::{
    DType, TensorType,
    tile::{Access, Kernel, KernelBuilder, MapOp, MemLayout},
};
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

/// Products of the identity, `rows` times, with 32 rows of 16 numbers of e4m3 that are multiplied in bf16.
fn widening_kernel(rows: usize) -> Kernel {
    let mut k = KernelBuilder::new(format!("widen_{rows}"));
    let a = k.input("a", TensorType::new([rows, 16], DType::Bf16));
    let panel = MemLayout::Panel { n: 32, k: 2 };
    let b = k.tensor("b", TensorType::new([32, 16], DType::F8e4m3), panel, Access::In);
    let y = k.output("y", TensorType::new([rows, 32], DType::F32));
    k.grid("one", 1);
    let at = [0, 0].map(|i| k.index(i));
    let (a, b) = (k.load_operand(a, &at, &[rows, 16]), k.load_operand(b, &at, &[32, 16]));
    let (b, zero) = (k.cast(b, DType::Bf16), k.zeros(&[rows, 32]));
    let product = k.mma(a, b, zero);
    k.store(y, &at, product);
    k.finish()
}

#[test]
fn every_number_of_e4m3_is_widened_exactly_where_it_is_read_and_in_a_copy() {
    // twice 254 numbers, and NaN nowhere, as the identity's zeros would spread it
    let number = |i: usize| {
        let code = if i % 128 == 127 { 0 } else { i % 128 };
        let (exponent, mantissa) = (code as i32 >> 3, (code & 7) as f32 / 8.0);
        let size = if exponent == 0 { mantissa / 64.0 } else { (1.0 + mantissa) * ((exponent - 7) as f32).exp2() };
        if i % 256 < 128 { size } else { -size }
    };
    let numbers: Vec<f32> = (0..512).map(number).collect();
    for target in targets() {
        for rows in [16, 32] {
            let identity = (0..rows * 16).map(|i| if i / 16 % 16 == i % 16 { 1.0 } else { 0.0 });
            let launch = Launch::new(widening_kernel(rows), Symbols::default(), 0);
            let launch = launch.set("a", identity.collect()).set("b", numbers.clone());
            let found = launch.whole(&Code::new(std::slice::from_ref(&launch.kernel), &target)).remove(0);
            let expected: Vec<f32> = (0..rows * 32).map(|i| numbers[i % 32 * 16 + i / 32 % 16]).collect();
            assert_eq!(found, expected, "{} {rows}", target.name);
        }
    }
}

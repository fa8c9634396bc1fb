//! `gemm`: every schedule row of every target, tails of all dimensions, each epilogue; and what batch invariance needs:
//! same bits whichever row and whichever split of the programs.

use rvllm_ir::{DType, tile::Kernel};
use rvllm_targets::Target;
use rvllm_tests::{
    cases::{
        gemm::{ROWS, SHAPES, launch, quantized, quantized_launch, stored, variants},
        sum_tolerance,
    },
    launch::{Code, Launch, Symbols, assert_close, assert_same, tried},
};

/// The programs in uneven pieces, the last first.
fn pieces(programs: u64) -> Vec<(u64, u64)> {
    let cut = (programs / 3).max(1).min(programs);
    vec![(cut, programs), (0, cut), (cut, cut)]
}

fn check(
    target: &Target,
    code: &Code,
    tolerance: impl Fn(&Launch) -> f32,
    kernels: &[Kernel],
    launch: fn(&Kernel, usize) -> Launch,
) {
    for t in ROWS {
        let launch = launch(&kernels[0], t);
        let expected = launch.interpreted();
        let first = launch.whole(code);
        let tolerance = tolerance(&launch);
        assert_close(&format!("{} {} T={t}", target.name, launch.kernel.name), &first, &expected, tolerance);
        for kernel in kernels {
            let launch = launch.with(kernel);
            let what = format!("{} {} T={t}", target.name, kernel.name);
            assert_same(&what, &launch.whole(code), &first);
            assert_same(&what, &launch.compiled(code, &pieces(launch.programs())), &first);
        }
    }
}

#[test]
fn every_variant_equals_the_interpreter_and_each_other_bit_for_bit() {
    for target in tried() {
        for dtype in [DType::F32, DType::Bf16] {
            let shapes = variants(&target, dtype);
            let code = Code::new(&shapes.concat(), &target);
            shapes.iter().for_each(|kernels| {
                check(&target, &code, |l| sum_tolerance(dtype, l.args[0].dims[1]), kernels, launch)
            });
        }
    }
}

#[test]
fn products_of_values_equal_the_interpreter_and_each_other_bit_for_bit() {
    for target in tried() {
        for dtype in [DType::I8, DType::U4] {
            let shapes = quantized(&target, dtype);
            let code = Code::new(&shapes.concat(), &target);
            shapes.iter().for_each(|kernels| check(&target, &code, |_| 1e-5, kernels, quantized_launch));
        }
    }
}

#[test]
fn products_with_weights_as_checkpoints_store_them_equal_the_interpreter() {
    for target in tried() {
        let shapes = stored(&target);
        let code = Code::new(&shapes.concat(), &target);
        shapes.iter().for_each(|kernels| check(&target, &code, |_| 1e-5, kernels, quantized_launch));
    }
}

#[test]
fn a_row_does_not_depend_on_the_others() {
    for target in tried() {
        let kernels = variants(&target, DType::Bf16).swap_remove(1);
        let code = Code::new(&kernels, &target);
        let many = Launch::new(kernels[0].clone(), Symbols { t: 13, ..Symbols::default() }, 3);
        let (n, k) = (SHAPES[1].0, SHAPES[1].1);
        let a = many.args[0].numbers()[5 * k..6 * k].to_vec();
        let weight = many.args[1].numbers().to_vec();
        for kernel in &kernels {
            let together = many.with(kernel).whole(&code);
            let one = Launch::new(kernel.clone(), Symbols { t: 1, ..Symbols::default() }, 0);
            let alone = one.set("a", a.clone()).set("weight", weight.clone()).whole(&code);
            assert_same(&format!("{} {}", target.name, kernel.name), &alone, &[together[0][5 * n..6 * n].to_vec()]);
        }
    }
}

//! Kernels that work row by row: `embed`, `rms_norm`, `logit_stats`, `draw`, `rank`, `rope_kv_write`.

use rvllm_targets::Target;
use rvllm_tests::{
    cases::{Case, rows},
    launch::{Code, assert_close, assert_same, targets, tried},
};

/// Compiles all kernels at once, then compares every launch with the interpreter.
fn check(target: &Target, cases: &[Case]) {
    let kernels: Vec<_> = cases.iter().map(|c| c.launch.kernel.clone()).collect();
    let code = Code::new(&kernels, target);
    for Case { launch, tolerance, .. } in cases {
        let what = format!("{} {}", target.name, launch.kernel.name);
        let found = launch.whole(&code);
        assert_close(&what, &found, &launch.interpreted(), *tolerance);
        let halves = [(1, launch.programs()), (0, 1)];
        assert_same(&what, &launch.compiled(&code, &halves), &found);
    }
}

#[test]
fn embed_copies_rows_of_strided_and_packed_tables() {
    tried().iter().for_each(|target| check(target, &rows::embed(target)));
}

#[test]
fn rms_norm_with_and_without_residual_and_rows() {
    tried().iter().for_each(|target| check(target, &rows::rms_norm(target)));
}

#[test]
fn embed_reads_values() {
    targets().iter().for_each(|target| check(target, &rows::embed_values(target)));
}

#[test]
fn rows_and_norms_as_values() {
    targets().iter().for_each(|target| check(target, &rows::quantize_rows(target)));
}

#[test]
fn logit_stats_of_ordinary_and_extreme_rows() {
    tried().iter().for_each(|target| check(target, &rows::logit_stats()));
}

#[test]
fn tokens_are_drawn_by_their_numbers_ranked_and_found() {
    tried().iter().for_each(|target| check(target, &[rows::draw(), rows::rank(), rows::top_k()].concat()));
}

#[test]
fn tokens_of_the_step_before_take_their_places() {
    targets().iter().for_each(|target| check(target, &rows::feed()));
}

#[test]
fn rope_rotates_and_writes_panels() {
    tried().iter().for_each(|target| check(target, &rows::rope_kv_write(target)));
}

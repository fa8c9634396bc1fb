//! `paged_attention`: ragged batches of chunks and decodes.

use rvllm_ir::DType;
use rvllm_tests::{
    cases::{
        Case,
        attention::{cases, launch, spec},
    },
    launch::{Code, assert_close, assert_same, tried},
};
use std::collections::HashMap;

#[test]
fn ragged_steps_equal_the_interpreter() {
    for target in tried() {
        let launches = cases(&target);
        let kernels: Vec<_> = launches.iter().map(|c| c.launch.kernel.clone()).collect();
        let code = Code::new(&kernels, &target);
        let mut groups = HashMap::new();
        for Case { launch, tolerance, group } in &launches {
            let what = format!("{} {}", target.name, launch.kernel.name);
            let found = launch.whole(&code);
            assert_close(&what, &found, &launch.interpreted(), *tolerance);
            assert_same(&what, groups.entry(group).or_insert_with(|| found.clone()), &found);
        }
    }
}

#[test]
fn a_sequence_is_the_same_bits_in_any_company_and_any_chunk() {
    for target in tried() {
        let s = spec(&target, (8, 2, 64), DType::Bf16);
        let row = s.heads * s.cache.head_dim;
        let one = launch("attention", &s, &[(7000, (70, 9))]);
        let code = Code::new(std::slice::from_ref(&one.kernel), &target);
        let alone = one.whole(&code).remove(0);
        let crowd = [(0, (33, 5)), (7000, (70, 9)), (2000, (100, 1))];
        let crowded = launch("attention", &s, &crowd).whole(&code).remove(0);
        assert_same(&target.name, &[crowded[5 * row..14 * row].to_vec()], std::slice::from_ref(&alone));
        // the last tokens as a chunk of their own
        for queries in 1..9 {
            let tail = launch("attention", &s, &[(7000, (70, queries))]);
            let q = one.args[0].numbers()[(9 - queries) * row..].to_vec();
            let found = tail.set("q", q).whole(&code).remove(0);
            assert_same(&format!("{} {queries}", target.name), &[found], &[alone[(9 - queries) * row..].to_vec()]);
        }
    }
}

//! `paged_attention`: ragged batches of chunks and decodes.

use rvllm_ir::DType;
use rvllm_kernels::{KvCache, PagedAttention, Split, Spread, join_parts, paged_attention};
use rvllm_mlir::{asm, assembler, compile};
use rvllm_targets::Target;
use rvllm_tests::{
    cases::{
        Case,
        attention::{Sequence, apart, cases, joined, launch, numbered, spec},
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

/// What is computed of some sequences with parts in turn is the same bits with parts apart, in any order, and near what the
/// interpreter computes.
fn parts_apart_equal_parts_in_turn(what: &str, target: &Target, s: &PagedAttention, sequences: &[(u64, Sequence)]) {
    let in_turn = launch("in_turn", s, sequences);
    let (apart, of_apart) = apart("apart", s, sequences);
    let kernels = [in_turn.kernel.clone(), apart.kernel.clone(), join_parts("join", &of_apart)];
    let code = Code::new(&kernels, target);
    let expected = in_turn.whole(&code);
    let programs = apart.programs();
    let backwards: Vec<(u64, u64)> = (0..programs).rev().map(|i| (i, i + 1)).collect();
    let states = apart.compiled(&code, &backwards);
    let tolerance = if s.cache.dtype == DType::F32 { 2e-5 } else { 2e-2 };
    assert_close(what, &states, &apart.interpreted(), tolerance);
    let one = s.split.unwrap().iterations * s.blocks;
    let found = if apart.symbols.m <= one {
        states[..1].to_vec()
    } else {
        let join = joined("join", &of_apart, &apart, &states);
        let found = join.whole(&code);
        assert_close(what, &found, &join.interpreted(), tolerance);
        found
    };
    assert_same(what, &found, &expected[..1]);
}

#[test]
fn parts_of_a_sequence_that_are_worked_on_apart_join_to_the_same_bits() {
    let kinds = [
        (DType::F32, (3, 3, 6), Some(40), None),
        (DType::Bf16, (4, 1, 64), None, None),
        (DType::Bf16, (4, 2, 24), Some(40), Some(2.0)),
    ];
    for target in tried() {
        for (i, (dtype, heads, window, softcap)) in kinds.into_iter().enumerate() {
            let s = PagedAttention { window, softcap, ..spec(&target, heads, dtype) };
            let what = format!("{} {i}", target.name);
            parts_apart_equal_parts_in_turn(&what, &target, &s, &numbered());
        }
        // one part each
        let s = spec(&target, (4, 2, 64), DType::Bf16);
        let split = s.split.map(|split| Split { iterations: 2, ..split });
        let short = [(3000, (20, 1)), (4000, (5, 3))];
        parts_apart_equal_parts_in_turn(&target.name, &target, &PagedAttention { split, ..s }, &short);
    }
}

/// Kernels of prefill, decode and parts at once over caches of as many and of fewer bits, on Hopper.
fn on_hopper(stored: DType) -> Vec<(String, PagedAttention)> {
    let target = hopper();
    let mut all = vec![];
    for (i, heads) in [(32, 8, 128), (16, 8, 64), (28, 4, 128)].into_iter().enumerate() {
        let s = spec(&target, heads, DType::Bf16);
        let s = PagedAttention { cache: KvCache { stored, ..s.cache }, ..s };
        let group = heads.0 / heads.1;
        let decode = PagedAttention { pass: (16 / group).max(1), stages: 4, ..s.clone() };
        let split = s.split.map(|split| Split { spread: Spread::Together, ..split });
        let spread = PagedAttention { split, ..decode.clone() };
        let named = |(variant, s)| (format!("attention_{stored}_{i}_{variant}"), s);
        all.extend([s, decode, spread].into_iter().enumerate().map(named));
    }
    all
}

fn hopper() -> Target {
    rvllm_targets::find("sm_90a", &|_| false).unwrap()
}

/// Without a GPU: what shows in the code for Hopper.
#[test]
fn both_products_are_warpgroups_and_the_copy_engine_brings_what_they_read() {
    let target = hopper();
    for stored in [DType::Bf16, DType::F8e4m3, DType::I8] {
        for (name, s) in on_hopper(stored) {
            let kernel = paged_attention(&name, &s);
            let text = asm(&kernel, &target).unwrap();
            let product = format!("wgmma.mma_async.sync.aligned.m64n{}k16.f32.bf16.bf16", s.cache.head_dim);
            assert!(text.contains("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16"), "{name}: scores");
            assert!(text.contains(&format!("{product} {{")), "{name}: values");
            assert!(text.contains("cp.async.bulk.tensor.4d"), "{name}: blocks of the cache");
            let scales = text.contains("cp.async.bulk.shared::cluster.global.mbarrier");
            assert_eq!(scales, stored != DType::Bf16, "{name}: scales");
            assert!(!text.contains("mma.sync"), "{name}: products of single warps");
            let object = compile(std::slice::from_ref(&kernel), &target).unwrap();
            let launch = object.parts[0].launch.as_ref().unwrap();
            assert_eq!(launch.tensor_maps.len(), 3, "{name}");
            if assembler().is_some() {
                // numbers of a program, outside of the loops of products; its sums and scores alone take 64 times as much
                let most = if stored == DType::Bf16 { 8 } else { 112 };
                assert!(launch.spill_bytes.unwrap() <= most, "{name}: {:?}", launch.spill_bytes);
            }
        }
    }
}

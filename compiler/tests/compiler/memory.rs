//! The arena, for any program: what is live together is apart.

use crate::common;
use anyhow::Result;
use proptest::prelude::*;
use rvllm_compiler::{
    passes::{
        plan_memory::{ALIGN, Memory, Place, plan_memory},
        select::select,
    },
    program::{Arg, Buffer, Launch, Limits, Program},
};
use rvllm_ir::{DType, Dim, Sym, TensorType, tile::PAD_ROWS};

const LIMITS: Limits = Limits { max_model_len: 8, max_num_batched_tokens: 5, max_num_seqs: 2, max_logits: 3 };

/// Buffers of some columns over T or L, and launches that touch some of them.
fn programs() -> impl Strategy<Value = Program> {
    let buffer = (1usize..200, prop::bool::ANY).prop_map(|(n, tokens)| {
        let rows = if tokens { Sym::T } else { Sym::L };
        let ty = TensorType::new([Dim::Sym(rows), Dim::Const(n)], DType::Bf16);
        Buffer { name: format!("b{n}"), ty }
    });
    prop::collection::vec(buffer, 1..24).prop_flat_map(|buffers| {
        let ids = prop::collection::vec(0..buffers.len(), 0..4);
        let outputs = prop::array::uniform8(0..buffers.len());
        let program = (Just(buffers), prop::collection::vec(ids, 1..16), outputs);
        program.prop_map(|(buffers, launches, outputs)| Program {
            buffers,
            launches: launches.into_iter().map(launch).collect(),
            outputs,
            ..Program::default()
        })
    })
}

fn launch(ids: Vec<usize>) -> Launch {
    let args = ids.into_iter().map(|id| Arg::Buffer { id, offset: 0 }).collect();
    Launch { name: "launch".into(), args, variants: vec![] }
}

/// Buffers that are live in some launch together share no byte, and all lie in the arena.
fn check_apart(memory: &Memory) {
    for (i, a) in memory.places.iter().enumerate() {
        assert_eq!(a.offset % ALIGN, 0);
        assert!(a.offset + a.bytes <= memory.arena_bytes);
        let together = |b: &&Place| a.live[0].max(b.live[0]) <= a.live[1].min(b.live[1]);
        for b in memory.places[i + 1..].iter().filter(together) {
            assert!(a.offset + a.bytes <= b.offset || b.offset + b.bytes <= a.offset, "{a:?} and {b:?}");
        }
    }
}

/// Every launch lies within the lifetime of what it touches, and outputs live to the end.
fn check_live(program: &Program, memory: &Memory) {
    for (i, launch) in program.launches.iter().enumerate() {
        for arg in &launch.args {
            if let Arg::Buffer { id, .. } = arg {
                let [first, last] = memory.places[*id].live;
                assert!((first..=last).contains(&(i as u32)), "buffer {id} in launch {i}");
            }
        }
    }
    let end = program.launches.len() as u32 - 1;
    assert!(program.outputs.iter().all(|id| memory.places[*id].live[1] == end));
}

/// Bytes that are live in the launch that needs most: no plan takes less.
fn most_live(program: &Program, memory: &Memory) -> u64 {
    let live = |at: u32| memory.places.iter().filter(move |p| p.live[0] <= at && at <= p.live[1]);
    (0..program.launches.len() as u32).map(|at| live(at).map(|p| p.bytes).sum()).max().unwrap_or(0)
}

proptest! {
    #[test]
    fn what_is_live_together_is_apart(program in programs()) {
        let memory = plan_memory(&program, &LIMITS);
        check_apart(&memory);
        check_live(&program, &memory);
        let sum: u64 = memory.places.iter().map(|p| p.bytes.next_multiple_of(ALIGN)).sum();
        prop_assert!(most_live(&program, &memory) <= memory.arena_bytes && memory.arena_bytes <= sum);
    }

    #[test]
    fn sizes_hold_the_largest_step_and_its_padding(program in programs()) {
        for (buffer, place) in program.buffers.iter().zip(plan_memory(&program, &LIMITS).places) {
            let rows = match buffer.ty.dims[0] {
                Dim::Sym(Sym::T) => LIMITS.max_num_batched_tokens,
                _ => LIMITS.max_logits,
            };
            // whole panels of 16 rows
            let rows = (rows + PAD_ROWS).next_multiple_of(16);
            prop_assert_eq!(place.bytes as usize, rows * buffer.ty.last().unwrap() * 2);
        }
    }
}

#[test]
fn the_arena_of_every_golden_is_close_to_what_is_live_at_once() -> Result<()> {
    let target = rvllm_targets::find("x86-64-v4", &|_| false)?;
    for dir in common::goldens()? {
        let model = common::model(&dir)?;
        let [_, _, fused] = model.graphs(DType::Bf16)?;
        let program = select(&fused, &target, &model.limits(), None)?;
        let memory = plan_memory(&program, &model.limits());
        check_apart(&memory);
        check_live(&program, &memory);
        let least = most_live(&program, &memory);
        assert!(memory.arena_bytes <= least + least / 4 + 1024, "{}: {} of {least}", dir.display(), memory.arena_bytes);
    }
    Ok(())
}

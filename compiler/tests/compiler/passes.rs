//! A graph means the same before and after each pass: interpreted on every golden, prompts and decodes in one batch.

use crate::common;
use anyhow::{Context, Result};
use half::f16;
use rvllm_compiler::{
    options::QuantizeChoice,
    passes::{
        check as pass_check,
        quantize::{Wanted, quantize},
    },
};
use rvllm_ir::{
    DType,
    graph::{Call, Graph, Op, ValueId, interp::Tensor},
};
use std::{path::Path, sync::Arc};

const BLOCK_SIZE: usize = 8;
const QUERY_TILE: usize = 2;
/// Of logits in f32, relative to the largest: sums are in another order.
const TOLERANCE: f32 = 1e-5;

fn same(before: &[Vec<Arc<Tensor>>], after: &[Vec<Arc<Tensor>>], pass: &str) {
    for (before, after) in before.iter().zip(after) {
        let found = common::difference(after[0].floats(), before[0].floats());
        assert!(found < TOLERANCE, "{pass} changes logits by {found}");
    }
}

/// Max, logsumexp, and the maxima and sums of blocks of 256 are those of the logits; numbers of 0 draw the first token, as
/// every one weighs something; of the most likely tokens the first has the largest logit.
fn statistics(outputs: &[Arc<Tensor>]) {
    let [logits, max, logsumexp, block_max, block_sum, draws, _, most_likely] = outputs else {
        panic!("{} outputs", outputs.len())
    };
    let blocks = block_max.last();
    assert!(draws.floats().iter().all(|id| *id == 0.0));
    let found = most_likely.floats().chunks(most_likely.last()).map(|row| row[most_likely.last() / 2]);
    assert_eq!(found.collect::<Vec<_>>(), max.floats());
    for (i, row) in logits.floats().chunks(logits.last()).enumerate() {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|x| f64::from(x - largest).exp()).sum();
        assert_eq!(max.floats()[i], largest);
        assert!((f64::from(logsumexp.floats()[i]) - (f64::from(largest) + sum.ln())).abs() < 1e-4);
        for (b, block) in row.chunks(256).enumerate() {
            let largest = block.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(block_max.floats()[i * blocks + b], largest);
            let sum: f64 = block.iter().map(|x| f64::from(x - largest).exp()).sum();
            assert!((f64::from(block_sum.floats()[i * blocks + b]) - sum).abs() < 1e-4);
        }
    }
}

/// Of logits, relative to the largest, where products are quantised: these models have rows of a few dozen elements.
const QUANTISED: [(QuantizeChoice, f32); 2] = [(QuantizeChoice::Int8, 0.1), (QuantizeChoice::Int4, 0.6)];

/// Values and scales that an artifact's recipe makes are those that the interpreter computes with.
fn same_weights(model: &common::Model, graph: &Graph) -> Result<()> {
    let tensors = model.tensors()?;
    for n in graph.order() {
        let (Op::Weight(recipe), value) = (&graph.node(n).op, ValueId { node: n, result: 0 }) else { continue };
        let ty = graph.tensor(value);
        let expected = tensors.weight(recipe, ty)?;
        let made = model.made(&rvllm_compiler::emit_recipe(recipe))?;
        let found: Vec<f32> = match ty.dtype {
            DType::I8 => made.iter().map(|b| f32::from(b.cast_signed())).collect(),
            DType::U4 => made.iter().flat_map(|b| [b & 15, b >> 4].map(f32::from)).collect(),
            DType::F16 => made.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            _ => continue,
        };
        assert_eq!(found, expected.floats(), "{recipe}");
    }
    Ok(())
}

#[test]
fn quantised_products_stay_near_and_their_weights_are_those_of_the_recipes() -> Result<()> {
    for (choice, tolerance) in QUANTISED {
        for dir in common::goldens()? {
            let model = common::model(&dir)?;
            let [_, _, fused] = model.graphs(DType::F32)?;
            let Ok(quantised) = quantize(
                fused.clone(),
                Wanted { choice: Some(choice), stored: &|_| None, kept: true, weight_only: false },
            ) else {
                continue;
            };
            let quantised = pass_check("quantize", quantised)?;
            same_weights(&model, &quantised)?;
            let steps = model.steps(BLOCK_SIZE, QUERY_TILE);
            let [before, after] = [&fused, &quantised].map(|g| model.interpret(g, &steps, BLOCK_SIZE));
            for (before, after) in before?.iter().zip(after?) {
                let found = common::difference(after[0].floats(), before[0].floats());
                assert!(found > 0.0 && found < tolerance, "{choice} changes logits of {} by {found}", dir.display());
            }
        }
    }
    Ok(())
}

fn check(dir: &Path) -> Result<()> {
    let model = common::model(dir)?;
    let [graph, merged, fused] = model.graphs(DType::F32)?;
    let steps = model.steps(BLOCK_SIZE, QUERY_TILE);
    let before = model.interpret(&graph, &steps, BLOCK_SIZE)?;
    same(&before, &model.interpret(&merged, &steps, BLOCK_SIZE)?, "merge_linear");
    let after = model.interpret(&fused, &steps, BLOCK_SIZE)?;
    same(&before, &after, "fuse");
    after.iter().for_each(|outputs| statistics(outputs));
    Ok(())
}

#[test]
fn passes_keep_the_meaning_of_every_golden() -> Result<()> {
    for dir in common::goldens()? {
        check(&dir).with_context(|| dir.display().to_string())?;
    }
    Ok(())
}

fn calls(graph: &Graph) -> Vec<Call> {
    let call = |n| match &graph.node(n).op {
        Op::Call(call) => Some(call.clone()),
        _ => None,
    };
    graph.order().into_iter().filter_map(call).collect()
}

/// A layer is eight launches: norm, qkv, rope and KV write, attention, o with residual, norm, gate·up, down with
/// residual; around them the embedding, the last norm of chosen rows, logits, their statistics, what is drawn and its ranks, and
/// the most likely.
#[test]
fn every_golden_fuses_into_eight_calls_a_layer() -> Result<()> {
    for dir in common::goldens()? {
        let model = common::model(&dir)?;
        let [_, _, fused] = model.graphs(DType::Bf16)?;
        let layers = model.architecture.facts().num_hidden_layers;
        assert_eq!(calls(&fused).len(), 8 * layers + 7, "{}\n{fused}", dir.display());
        let residuals =
            calls(&fused).iter().filter(|c| matches!(c, Call::Gemm { epilogue, .. } if epilogue.residual)).count();
        let gated =
            calls(&fused).iter().filter(|c| matches!(c, Call::Gemm { epilogue, .. } if epilogue.silu_mul)).count();
        assert_eq!((residuals, gated), (2 * layers, layers), "{}", dir.display());
    }
    Ok(())
}

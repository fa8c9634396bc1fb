//! Where a step's time goes: every kernel of a step of decodes, beside the bytes of weights and KV that it has to read.

use crate::Args;
use anyhow::{Result, ensure};
use rvllm_artifact::{
    Artifact,
    plan::{self, Arg, Plan},
};
use rvllm_engine::{
    DeviceChoice, EngineOptions, Limits,
    device::cuda::{CudaDevice, Overlap},
    executor::Executor,
    forward::Forward,
    load::cuda_executor,
    step::Step,
};
use std::{collections::BTreeMap, path::Path, time::Instant};

/// Steps that a median is of.
const REPEATS: usize = 20;

/// Times steps of so many sequences, each with `args.context` tokens.
pub(crate) fn run(path: &Path, args: &Args) -> Result<()> {
    let artifact = Artifact::open(path)?;
    let options = EngineOptions { device: DeviceChoice::Cuda(args.device), ..EngineOptions::default() };
    let mut executor = cuda_executor(&artifact, &options)?;
    println!("{}: {:?}", path.display(), executor.device().gpu().facts());
    for seqs in &args.profile {
        one(&mut executor, &artifact, *seqs, args.context)?;
    }
    Ok(())
}

fn one(executor: &mut Executor<CudaDevice>, artifact: &Artifact, seqs: u32, context: u32) -> Result<()> {
    let limits = *executor.limits();
    let step = decodes(&limits, seqs, context)?;
    let list = executor.list(&step)?;
    let times = executor.device_mut().time(&step, &list, REPEATS)?;
    let (launched, host) = whole_steps(executor, &step)?;
    println!(
        "\n{seqs} sequences of {context} tokens: {launched:.1} µs a step, of which the host {host:.1} µs before it waits"
    );
    print!("launches as a graph:");
    for (what, overlap) in [
        ("one after the other", Overlap::None),
        ("streams overlapping", Overlap::Streams),
        ("all overlapping", Overlap::All),
    ] {
        print!(" {:.1} µs {what};", executor.device_mut().time_graph(&step, &list, overlap, REPEATS)?);
    }
    println!();
    let plan = executor.plan();
    let kv = u64::from(seqs) * u64::from(context) * 2 * kv_row(artifact);
    let mut rows: BTreeMap<&str, (usize, f32, u64)> = BTreeMap::new();
    for (launch, (time, ran)) in plan.launches.iter().zip(times.iter().zip(&list.launches)) {
        let row = rows.entry(&plan.kernels[ran.kernel].symbol).or_default();
        *row = (row.0 + 1, row.1 + time, row.2 + bytes(plan, launch, kv));
    }
    let mut rows: Vec<_> = rows.into_iter().collect();
    rows.sort_by(|a, b| b.1.1.total_cmp(&a.1.1));
    println!("{:>9} {:>5} {:>9} {:>9}  kernel", "µs", "times", "µs each", "GB/s");
    for (symbol, (count, time, bytes)) in rows {
        println!("{time:9.1} {count:5} {:9.2} {:9.0}  {symbol}", time / count as f32, bytes as f32 / time / 1e3);
    }
    println!("{:9.1} {:5}  all", times.iter().sum::<f32>(), times.len());
    Ok(())
}

/// Microseconds of a step as the engine runs it, and of the host's part: medians.
fn whole_steps(executor: &mut Executor<CudaDevice>, step: &Step) -> Result<(f64, f64)> {
    let mut times = vec![];
    for _ in 0..=REPEATS {
        let start = Instant::now();
        executor.forward(step)?;
        let host = executor.device().host_time().as_secs_f64();
        times.push((start.elapsed().as_secs_f64() * 1e6, host * 1e6));
    }
    times.remove(0);
    times.sort_by(|a, b| a.0.total_cmp(&b.0));
    Ok(times[times.len() / 2])
}

/// Bytes of one token's K, or V, of one layer.
fn kv_row(artifact: &Artifact) -> u64 {
    let kv = &artifact.manifest().kv_cache;
    kv.k_bytes / u64::from(kv.block_size.max(1))
}

/// Bytes that a launch has to read: whole weights, but for tables of which a row is picked, and the KV of all sequences.
fn bytes(plan: &Plan, launch: &plan::Launch, kv: u64) -> u64 {
    let picks = launch.args.iter().any(|a| matches!(a, Arg::Input(plan::Input::TokenIds | plan::Input::Positions)));
    let attends = launch.args.iter().any(|a| matches!(a, Arg::Input(plan::Input::BlockTable)));
    let weights = launch.args.iter().filter_map(|arg| match arg {
        Arg::Weight(i) if !picks => plan.weights.get(*i as usize).and_then(plan::Weight::bytes),
        _ => None,
    });
    weights.sum::<u64>() + if attends { kv } else { 0 }
}

/// A step in which each sequence gets its last token.
fn decodes(limits: &Limits, seqs: u32, context: u32) -> Result<Step> {
    let blocks = context.div_ceil(limits.block_size);
    ensure!(
        seqs <= limits.max_num_seqs && seqs <= limits.max_logits,
        "steps have at most {} sequences",
        limits.max_num_seqs
    );
    ensure!(context <= limits.max_model_len, "sequences have at most {} tokens", limits.max_model_len);
    ensure!(seqs * blocks <= limits.num_blocks, "the KV cache has {} blocks", limits.num_blocks);
    let all = 0..seqs as i32;
    let (blocks, block_size) = (blocks as i32, limits.block_size as i32);
    let last = context as i32 - 1;
    Ok(Step {
        token_ids: all.clone().map(|i| (i * 7919 + 13) % limits.vocab_size as i32).collect(),
        positions: vec![last; seqs as usize],
        slot_mapping: all.clone().map(|i| (i * blocks + last / block_size) * block_size + last % block_size).collect(),
        query_start_loc: (0..=seqs as i32).collect(),
        seq_lens: vec![context as i32; seqs as usize],
        block_table: (0..seqs as i32 * blocks).collect(),
        logits_indices: all.clone().collect(),
        tile_seq: all.clone().collect(),
        tile_start: all.collect(),
        max_blocks: blocks as usize,
        ..Step::default()
    })
}

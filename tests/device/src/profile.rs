//! Where a step's time goes: every kernel of a step of decodes or of a prompt, beside the bytes of weights and KV that it has to read.

use crate::Args;
use anyhow::{Result, ensure};
use rvllm_artifact::{
    Artifact,
    manifest::NVPTX,
    plan::{self, Arg, DRAWS, Plan},
};
use rvllm_engine::{
    DeviceChoice, EngineOptions, Limits,
    device::{Device, LaunchList, cuda::CudaDevice},
    executor::Executor,
    forward::{Forward, Reads},
    load::{WeightsOption, cpu_executor, cuda_executor},
    step::Step,
};
use std::{collections::BTreeMap, path::Path, time::Instant};

/// Steps that a median is of.
const REPEATS: usize = 20;
/// The same on a CPU, where steps are long.
const CPU_REPEATS: usize = 5;

/// Times steps of so many sequences, each with `args.context` tokens, and of prompts, on what the artifact is for.
pub(crate) fn run(path: &Path, args: &Args) -> Result<()> {
    let artifact = Artifact::open(path)?;
    let on_gpu = artifact.manifest().targets.iter().any(|t| t.arch == NVPTX);
    let device = if on_gpu { DeviceChoice::Cuda(args.device) } else { DeviceChoice::Cpu };
    let weights = args.dummy_weights.map_or(WeightsOption::Manifest, WeightsOption::Dummy);
    let options = EngineOptions { device, weights, threads: args.threads, ..EngineOptions::default() };
    if !on_gpu {
        return on_cpu(path, args, &artifact, &options);
    }
    let mut executor = cuda_executor(&artifact, &options)?;
    println!("{}: {:?}", path.display(), executor.device().gpu().facts());
    for (what, mut step) in steps(args, executor.limits())? {
        on_gpu_step(&mut executor, &artifact, &what, &mut step)?;
    }
    Ok(())
}

/// The steps asked for, with what they are.
fn steps(args: &Args, limits: &Limits) -> Result<Vec<(String, Step)>> {
    let prefills = args.prefill.iter().map(|n| Ok((format!("a prompt of {n} tokens"), prefill(limits, *n)?)));
    let decodes = args.profile.iter().map(|n| {
        let what = format!("{n} sequences of {} tokens", args.context);
        Ok((what, decodes(limits, *n, args.context)?))
    });
    prefills.chain(decodes).collect()
}

fn on_cpu(path: &Path, args: &Args, artifact: &Artifact, options: &EngineOptions) -> Result<()> {
    let mut executor = cpu_executor(artifact, options)?;
    println!("{}: {} threads", path.display(), executor.device().threads());
    touch(&mut executor, args)?;
    for (what, step) in steps(args, executor.limits())? {
        executor.forward(&step)?;
        let mut times = vec![];
        for _ in 0..CPU_REPEATS {
            let start = Instant::now();
            executor.forward(&step)?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        times.sort_by(f64::total_cmp);
        let step_ms = times[times.len() / 2];
        let rate = step.num_tokens() as f64 / step_ms * 1e3;
        println!("\n{what}: {step_ms:.2} ms a step, {rate:.1} tokens/s");
        let list = executor.list(&step)?;
        let times = executor.device_mut().time(&step, list.clone(), CPU_REPEATS)?;
        table(executor.plan(), artifact, &step, &list, [&times, &[]]);
    }
    Ok(())
}

/// Writes to every block that steps of decodes read: what never was written lies in one page of zeros, which is always near.
fn touch<D: Device>(executor: &mut Executor<D>, args: &Args) -> Result<()> {
    let limits = *executor.limits();
    let blocks = args.profile.iter().max().map_or(0, |n| n * args.context.div_ceil(limits.block_size));
    ensure!(blocks <= limits.num_blocks, "the KV cache has {} blocks", limits.num_blocks);
    let most = limits.max_num_batched_tokens.min(limits.max_model_len);
    for first in (0..blocks).step_by(most as usize) {
        let tokens = most.min(blocks - first);
        let slots = (first..first + tokens).map(|block| (block * limits.block_size) as i32).collect();
        executor.forward(&Step { slot_mapping: slots, ..prefill(&limits, tokens)? })?;
    }
    Ok(())
}

fn on_gpu_step(executor: &mut Executor<CudaDevice>, artifact: &Artifact, what: &str, step: &mut Step) -> Result<()> {
    let list = executor.list(step)?;
    let times = executor.device_mut().time(step, &list, REPEATS)?;
    println!("\n{what}, µs a step, and of that the host's before it waits:");
    for (what, reads) in [("drawn tokens read", Reads::Draws), ("all logits read", Reads::All)] {
        step.reads = vec![reads; step.logits_indices.len()];
        let (launched, host) = whole_steps(executor, step)?;
        println!("{launched:9.1} {host:5.1}  {what}");
    }
    let graph = executor.device_mut().time_graph(step, &list, REPEATS)?;
    println!("launches as a graph: {graph:.1} µs");
    let within = within_step(executor, step, &list, graph)?;
    table(executor.plan(), artifact, step, &list, [&times, &within]);
    Ok(())
}

/// What the step takes less without each launch's kernel, shared among the launches of that kernel.
fn within_step(executor: &mut Executor<CudaDevice>, step: &Step, list: &LaunchList, whole: f32) -> Result<Vec<f32>> {
    let mut kernels: BTreeMap<usize, f32> = BTreeMap::new();
    list.launches.iter().for_each(|l| *kernels.entry(l.kernel).or_default() += 1.0);
    for (kernel, share) in &mut kernels {
        let others = without(list, *kernel);
        *share = (whole - executor.device_mut().time_graph(step, &others, REPEATS)?) / *share;
    }
    Ok(list.launches.iter().map(|l| kernels[&l.kernel]).collect())
}

/// A step without the launches of one kernel: its results are not those of the model, its time is.
fn without(list: &LaunchList, kernel: usize) -> LaunchList {
    let launches = list.launches.iter().filter(|l| l.kernel != kernel).cloned().collect();
    LaunchList { args: list.args.clone(), launches }
}

/// Kernels by the time that they take alone, and within a step where that is known.
fn table(plan: &Plan, artifact: &Artifact, step: &Step, list: &LaunchList, [times, within]: [&[f32]; 2]) {
    let tokens: i64 = step.seq_lens.iter().map(|n| i64::from(*n)).sum();
    let kv = tokens as u64 * 2 * kv_row(artifact);
    let mut rows: BTreeMap<&str, (usize, f32, u64, f32)> = BTreeMap::new();
    let within = within.iter().copied().chain(std::iter::repeat(f32::NAN));
    let mut launches = plan.launches.iter();
    for (within, (time, ran)) in within.zip(times.iter().zip(&list.launches)) {
        // those that have nothing to do in this step are not listed
        let runs = |launch: &&plan::Launch| launch.variants.iter().any(|v| v.kernel as usize == ran.kernel);
        let Some(launch) = launches.find(runs) else { break };
        let row = rows.entry(&plan.kernels[ran.kernel].symbol).or_default();
        *row = (row.0 + 1, row.1 + time, row.2 + bytes(plan, launch, kv), within);
    }
    let mut rows: Vec<_> = rows.into_iter().collect();
    rows.sort_by(|a, b| b.1.1.total_cmp(&a.1.1));
    println!("{:>9} {:>5} {:>9} {:>9} {:>9} {:>9}  kernel", "µs", "times", "µs each", "in step", "GB/s", "GFLOP/s");
    for (symbol, (count, time, bytes, within)) in rows {
        // two operations per token and 16-bit weight
        let work =
            if symbol.starts_with("gemm") { bytes as f32 * rows_of(symbol, step) as f32 / time / 1e3 } else { 0.0 };
        println!(
            "{time:9.1} {count:5} {:9.2} {within:9.2} {:9.1} {work:9.0}  {symbol}",
            time / count as f32,
            bytes as f32 / time / 1e3
        );
    }
    println!("{:9.1} {:5}  all", times.iter().sum::<f32>(), times.len());
}

/// Rows that a product computes: the last one's are those of logits.
fn rows_of(symbol: &str, step: &Step) -> usize {
    if symbol.contains("_l") { step.logits_indices.len() } else { step.num_tokens() }
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

/// Bytes of one token's K, or V, of one layer, scales included.
fn kv_row(artifact: &Artifact) -> u64 {
    let kv = &artifact.manifest().kv_cache;
    (kv.k_bytes + kv.scale_bytes) / u64::from(kv.block_size.max(1))
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
        temperature: vec![1.0; seqs as usize],
        uniform: vec![0.5; 2 * DRAWS * seqs as usize],
        ranked: vec![0; seqs as usize],
        top_k: vec![0; seqs as usize],
        tile_seq: all.clone().collect(),
        tile_start: all.collect(),
        max_blocks: blocks as usize,
        ..Step::default()
    })
}

/// A step that computes a prompt, whose last token samples.
fn prefill(limits: &Limits, tokens: u32) -> Result<Step> {
    ensure!(tokens <= limits.max_num_batched_tokens, "steps have at most {} tokens", limits.max_num_batched_tokens);
    let blocks = tokens.div_ceil(limits.block_size);
    ensure!(tokens > 0 && blocks <= limits.num_blocks, "the KV cache has {} blocks", limits.num_blocks);
    let all = 0..tokens as i32;
    let tiles = all.clone().step_by(limits.query_tile as usize);
    Ok(Step {
        token_ids: all.clone().map(|i| (i * 7919 + 13) % limits.vocab_size as i32).collect(),
        positions: all.clone().collect(),
        slot_mapping: all.collect(),
        query_start_loc: vec![0, tokens as i32],
        seq_lens: vec![tokens as i32],
        block_table: (0..blocks as i32).collect(),
        logits_indices: vec![tokens as i32 - 1],
        temperature: vec![1.0],
        uniform: vec![0.5; 2 * DRAWS],
        ranked: vec![0],
        top_k: vec![0],
        tile_seq: vec![0; tiles.len()],
        tile_start: tiles.collect(),
        max_blocks: blocks as usize,
        ..Step::default()
    })
}

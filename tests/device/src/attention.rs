//! A model's attention kernels over the shapes at which FlashAttention 3 was measured beside them: 32 query heads, 8 heads of
//! keys and values of 128 elements, causal. Each launch of a decode reads another part of the cache, so that none finds its
//! keys in L2.
//!
//! Invariants: the kernel of a step is the one that the plan chooses for it; times are medians of graphs of many launches.

use crate::Args;
use anyhow::{Context, Result, ensure};
use rvllm_artifact::{
    Artifact,
    manifest::{KvCache, NVPTX},
    plan::{Arg, Input, Plan, Sym, Variant},
};
use rvllm_engine::device::cuda::{DeviceMemory, Event, Gpu, LoadedKernel, Ready, Stream};
use std::path::Path;

/// Query heads, and those of keys and values.
const HEADS: [u64; 2] = [32, 8];
/// Elements of a head.
const HEAD_DIM: u64 = 128;
/// Sequences, tokens of each, and what FlashAttention 3 reached: TFLOP/s.
const PREFILL: [(u32, u32, f64); 4] = [(1, 2048, 496.0), (8, 2048, 564.0), (1, 8192, 708.0), (2, 8192, 694.0)];
/// Sequences, tokens of each, and what FlashAttention 3 took with pages of 16 tokens: µs.
const DECODE: [(u32, u32, f64); 5] =
    [(1, 8192, 17.6), (8, 2048, 25.1), (32, 2048, 71.3), (128, 2048, 259.0), (256, 256, 98.0)];
/// What an H200 reaches: dense bf16 products in TFLOP/s, reads of memory in GB/s.
const CEILING: [f64; 2] = [790.0, 4592.0];
/// Bytes that launches go through before they read the same again: several times L2.
const ROTATED: u64 = 256 << 20;
/// Launches of a graph, and graphs that a median is of.
const LAUNCHES: usize = 12;
const REPEATS: usize = 7;

/// A step of equal sequences.
#[derive(Clone, Copy, Debug)]
struct Shape {
    seqs: u32,
    context: u32,
    /// Tokens of each sequence that the step computes: the last.
    queries: u32,
}

/// Times all shapes.
pub(crate) fn run(path: &Path, args: &Args) -> Result<()> {
    let artifact = Artifact::open(path)?;
    let kv = &artifact.manifest().kv_cache;
    let heads = [u64::from(kv.num_kv_heads), u64::from(kv.head_dim)] == [HEADS[1], HEAD_DIM] && kv.dtype.bits() <= 16;
    ensure!(heads, "{} has other heads than the shapes that are known", path.display());
    let bench = Bench::new(&artifact, args)?;
    println!("{}: {:?}", path.display(), bench.gpu.facts());
    println!("{:>5} {:>7} {:>9} {:>9} {:>8} {:>8}  kernel", "seqs", "tokens", "µs", "TFLOP/s", "of FA3", "ceiling");
    for (seqs, context, known) in PREFILL {
        let (time, kernel) = bench.time(Shape { seqs, context, queries: context })?;
        let pairs = f64::from(seqs) * f64::from(context).powi(2) / 2.0;
        let rate = 4.0 * pairs * (HEADS[0] * HEAD_DIM) as f64 / time / 1e6;
        print_row(seqs, context, [time, rate, rate / known, rate / CEILING[0]], &kernel);
    }
    println!("{:>5} {:>7} {:>9} {:>9} {:>8} {:>8}  kernel", "seqs", "tokens", "µs", "KV GB/s", "of FA3", "ceiling");
    for (seqs, context, known) in DECODE {
        let (time, kernel) = bench.time(Shape { seqs, context, queries: 1 })?;
        let rate = (u64::from(seqs) * u64::from(context) * bench.kv_bytes()) as f64 / time / 1e3;
        print_row(seqs, context, [time, rate, known / time, rate / CEILING[1]], &kernel);
    }
    Ok(())
}

fn print_row(seqs: u32, context: u32, [time, rate, known, ceiling]: [f64; 4], kernel: &str) {
    println!("{seqs:5} {context:7} {time:9.1} {rate:9.0} {known:8.2} {ceiling:8.2}  {kernel}");
}

struct Bench<'a> {
    gpu: Gpu,
    stream: Stream,
    plan: &'a Plan,
    kernels: Vec<LoadedKernel>,
    variants: &'a [Variant],
    kv: &'a KvCache,
}

impl<'a> Bench<'a> {
    fn new(artifact: &'a Artifact, args: &Args) -> Result<Bench<'a>> {
        let target = artifact.manifest().targets.iter().find(|t| t.arch == NVPTX).context("no target for a GPU")?;
        let (plan, code) = (artifact.plan(target)?, artifact.kernels(target)?);
        let gpu = Gpu::open(args.device, "attention")?;
        let kernels = plan.kernels.iter().map(|k| LoadedKernel::new(&gpu, k, code)).collect::<Result<_, _>>()?;
        let attends = |args: &[Arg]| args.iter().any(|a| matches!(a, Arg::Input(Input::BlockTable)));
        let launch = plan.launches.iter().find(|l| attends(&l.args)).context("the plan has no attention")?;
        let (stream, kv) = (Stream::new(&gpu)?, &artifact.manifest().kv_cache);
        Ok(Bench { gpu, stream, plan, kernels, variants: &launch.variants, kv })
    }

    /// Bytes of a block's keys, values, and scales of each where there are some.
    fn block_bytes(&self) -> [u64; 4] {
        [self.kv.k_bytes, self.kv.v_bytes, self.kv.scale_bytes, self.kv.scale_bytes]
    }

    /// Bytes of a token's keys and values.
    fn kv_bytes(&self) -> u64 {
        self.block_bytes().iter().sum::<u64>() / u64::from(self.kv.block_size)
    }

    /// Microseconds of a launch, and the kernel's name.
    fn time(&self, shape: Shape) -> Result<(f64, String)> {
        let per_seq = shape.context.div_ceil(self.kv.block_size);
        let blocks = u64::from(shape.seqs * per_seq);
        let bytes = u64::from(shape.seqs) * u64::from(shape.context) * self.kv_bytes();
        let copies = ROTATED.div_ceil(bytes).max(1);
        let tokens = u64::from(shape.seqs * shape.queries);
        let q = self.random(tokens * HEADS[0] * HEAD_DIM * 2, "queries")?;
        let out = DeviceMemory::new(&self.gpu, q.bytes(), "the result")?;
        let cache = self.block_bytes().into_iter().filter(|bytes| *bytes > 0);
        let cache = cache.map(|bytes| self.random(copies * blocks * bytes, "the cache")).collect::<Result<Vec<_>>>()?;
        let tiles = self.tiles(shape);
        let symbols = [tokens as u32, shape.seqs, 0, tiles.len() as u32, per_seq, (copies * blocks) as u32];
        let variant = self.variant(&symbols);
        let kernel = &self.kernels[variant.kernel as usize];
        let starts: Vec<i32> = (0..=shape.seqs).map(|s| (s * shape.queries) as i32).collect();
        let mut lists = vec![self.list(&symbols.map(|s| s as i32))?];
        lists.push(self.list(&tiles.iter().map(|t| t[0]).collect::<Vec<_>>())?);
        lists.push(self.list(&tiles.iter().map(|t| t[1]).collect::<Vec<_>>())?);
        lists.push(self.list(&starts)?);
        lists.push(self.list(&vec![shape.context as i32; shape.seqs as usize])?);
        let mut ready = vec![];
        for copy in 0..copies as usize {
            let first = copy as u64 * blocks;
            lists.push(self.list(&(first..first + blocks).map(|b| b as i32).collect::<Vec<_>>())?);
            let [step, seq, start, loc, lens] = [0, 1, 2, 3, 4].map(|i| lists[i].address());
            let table = lists[5 + copy].address();
            let mut tensors = vec![q.address()];
            tensors.extend(cache.iter().map(DeviceMemory::address));
            tensors.extend([seq, start, loc, lens, table, out.address()]);
            let value = |sym: Sym| u64::from(symbols[sym as usize]);
            let programs = variant.grid.iter().try_fold(1, |n: u64, e| n.checked_mul(e.eval(&value)?));
            ready.push(kernel.ready(&tensors, step, programs.context("a grid that overflows")?, &value)?);
        }
        Ok((self.median(&ready)?, kernel.symbol().to_string()))
    }

    /// Sequence and first token of each query tile, those with the longest context first.
    fn tiles(&self, shape: Shape) -> Vec<[i32; 2]> {
        let starts = (0..shape.queries).step_by(self.plan.query_tile as usize).rev();
        starts.flat_map(|at| (0..shape.seqs).map(move |s| [s as i32, (s * shape.queries + at) as i32])).collect()
    }

    fn variant(&self, symbols: &[u32; 6]) -> &Variant {
        let holds = |v: &&Variant| v.at_most.is_none_or(|(sym, most)| symbols[sym as usize] <= most);
        self.variants.iter().find(holds).unwrap_or(&self.variants[self.variants.len() - 1])
    }

    fn list(&self, values: &[i32]) -> Result<DeviceMemory> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let mut memory = DeviceMemory::new(&self.gpu, bytes.len() as u64, "a list")?;
        memory.write(0, &bytes)?;
        Ok(memory)
    }

    /// Numbers of size about 1, the same every time.
    fn random(&self, bytes: u64, what: &str) -> Result<DeviceMemory> {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // a sum of parts of a number is close to normal
            let parts: f32 = (0..4).map(|i| (state >> (16 * i) & 0xffff) as f32 / 65536.0 - 0.5).sum();
            half::bf16::from_f32(1.7 * parts).to_le_bytes()
        };
        let chunk: Vec<u8> = (0..(8 << 20)).flat_map(|_| next()).collect();
        let mut memory = DeviceMemory::new(&self.gpu, bytes, what)?;
        for at in (0..bytes).step_by(chunk.len()) {
            memory.write(at, &chunk[..chunk.len().min((bytes - at) as usize)])?;
        }
        Ok(memory)
    }

    fn median(&self, ready: &[Ready]) -> Result<f64> {
        let launches = LAUNCHES.next_multiple_of(ready.len());
        let graph =
            self.stream.record(|| (0..launches).try_for_each(|i| ready[i % ready.len()].launch(&self.stream)))?;
        let (start, end) = (Event::new(&self.gpu)?, Event::new(&self.gpu)?);
        let mut times = vec![];
        for _ in 0..=REPEATS {
            self.stream.mark(&start)?;
            self.stream.replay(&graph)?;
            self.stream.mark(&end)?;
            self.stream.synchronize()?;
            times.push(1e3 * f64::from(end.milliseconds_since(&start)?) / launches as f64);
        }
        times.remove(0);
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() / 2])
    }
}

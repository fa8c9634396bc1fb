//! A GPU with a plan's kernels, weights, arena and KV cache: what the executor drives.
//!
//! A step is one copy of its inputs, the replay of a graph (or, for steps beyond the largest bucket, launches one by one),
//! and copies of what is read of its outputs. The host waits for the last of these. Meanwhile another step may be given to the
//! stream: steps bring their inputs from, and their outputs to, two places on the host in turn.
//!
//! Invariants:
//! - addresses that [`Device::address`] gives stay valid while the device lives;
//! - all work goes through one stream, in order; the host touches the pinned memory of a step only when it was waited for;
//! - memory that kernels read before they write it was zeroed: no NaN of another program is ever multiplied by zero.

use super::{
    error::CudaError,
    gpu::{DeviceMemory, Gpu, Pinned},
    kernel::{LoadedKernel, Ready},
    stream::{Event, Graph, Stream},
    weights::DeviceWeights,
};
use crate::{
    block_pool::BlockId,
    device::{
        Device, DeviceError, LaunchList, Launches,
        layout::{CacheLayout, INPUTS, InputLayout, InputRange, PADDING, Part, padding},
    },
    executor::Symbols,
    forward::{LOGITS_BLOCK, Limits, Reads},
    step::Step,
};
use rvllm_artifact::{
    manifest::KvCache,
    plan::{Arg, DRAWS, Plan, RANK, TOP_K},
};
use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

/// Bytes of the symbols, before the inputs.
const SYMBOLS: u64 = 64;
/// Steps of more tokens than this launch kernel by kernel: their kernels run far longer than a launch takes.
const LARGEST_BUCKET: u32 = 512;
/// Bytes of GPU memory that one launch of a graph takes, rounded up from what drivers were seen to take.
const GRAPH_LAUNCH: u64 = 8 << 10;

/// Numbers of tokens for which launches are recorded: fine where a step costs least, and wherever the plan takes other
/// kernels.
pub(crate) fn buckets(plan: &Plan, most_tokens: u32) -> Vec<u32> {
    let fine = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, LARGEST_BUCKET];
    let variants = plan.launches.iter().flat_map(|launch| &launch.variants);
    let bounds = variants.filter_map(|v| v.at_most).map(|(_, most)| most);
    let mut buckets: Vec<u32> = fine.into_iter().chain(bounds).filter(|n| *n > 0 && *n <= LARGEST_BUCKET).collect();
    buckets.iter_mut().for_each(|n| *n = (*n).min(most_tokens));
    buckets.sort_unstable();
    buckets.dedup();
    buckets
}

/// Bytes of GPU memory beside weights, arena and KV cache: inputs, and the graphs of all buckets.
pub(crate) fn overhead_bytes(plan: &Plan, limits: &Limits) -> u64 {
    let launches = (buckets(plan, limits.max_num_batched_tokens).len() * plan.launches.len()) as u64;
    launches * GRAPH_LAUNCH + layout(plan, limits, limits.max_num_batched_tokens).bytes
}

fn layout(plan: &Plan, limits: &Limits, tokens: u32) -> InputLayout {
    let max_blocks = limits.max_model_len.div_ceil(limits.block_size);
    InputLayout::new(plan, tokens as usize, max_blocks, SYMBOLS)
}

/// A GPU with everything that a plan needs.
pub struct CudaDevice {
    /// First, as it waits for what uses the others.
    stream: Stream,
    graphs: Vec<Graph>,
    buckets: Vec<u32>,
    /// Of each bucket, then of the largest steps.
    layouts: Vec<InputLayout>,
    plan: Arc<Plan>,
    limits: Limits,
    kernels: Vec<LoadedKernel>,
    weights: DeviceWeights,
    arena: DeviceMemory,
    cache: DeviceMemory,
    cache_layout: CacheLayout,
    inputs: DeviceMemory,
    /// Of steps in turn.
    places: [HostPlace; 2],
    outputs: HostOutputs,
    /// Steps that were given to the stream, and those of them that were waited for.
    given: usize,
    had: usize,
    /// Whether of the step that was given last nothing but what was drawn is read.
    reads_draws: bool,
    host_time: Duration,
}

/// What the host keeps of a step.
struct HostPlace {
    staged: Pinned,
    /// When its outputs are there.
    done: Event,
}

impl CudaDevice {
    /// Provides memory for a plan whose kernels and weights are loaded. `graphs` is false for a device that launches
    /// every step kernel by kernel.
    ///
    /// # Errors
    /// The GPU has not enough memory, or failed.
    pub fn new(
        plan: Arc<Plan>,
        kernels: Vec<LoadedKernel>,
        weights: DeviceWeights,
        kv_cache: &KvCache,
        limits: Limits,
        graphs: bool,
    ) -> Result<CudaDevice, DeviceError> {
        let gpu = weights.gpu().clone();
        let stream = Stream::new(&gpu)?;
        let cache_layout = CacheLayout::new(kv_cache, limits.num_blocks);
        let cache_bytes =
            cache_layout.bytes().ok_or_else(|| DeviceError::Plan("the KV cache's size overflows".into()))?;
        let buckets = if graphs { buckets(&plan, limits.max_num_batched_tokens) } else { vec![] };
        let largest = limits.max_num_batched_tokens;
        let layouts: Vec<_> = buckets.iter().chain([&largest]).map(|tokens| layout(&plan, &limits, *tokens)).collect();
        let input_bytes = layouts.iter().map(|l| l.bytes).max().unwrap_or(SYMBOLS);
        let zeroed = |bytes, what: &str| -> Result<DeviceMemory, CudaError> {
            let memory = DeviceMemory::new(&gpu, bytes, what)?;
            stream.fill(&memory, 0, bytes, 0).map(|()| memory)
        };
        let place = || -> Result<HostPlace, CudaError> {
            Ok(HostPlace { staged: Pinned::new(&gpu, input_bytes as usize)?, done: Event::new(&gpu)? })
        };
        Ok(CudaDevice {
            graphs: vec![],
            buckets,
            layouts,
            kernels,
            weights,
            arena: zeroed(plan.arena_bytes, "the arena")?,
            cache: zeroed(cache_bytes, "the KV cache")?,
            cache_layout,
            inputs: zeroed(input_bytes, "the step's inputs")?,
            places: [place()?, place()?],
            outputs: HostOutputs::new(&gpu, &plan, &limits)?,
            given: 0,
            had: 0,
            reads_draws: true,
            host_time: Duration::ZERO,
            plan,
            limits,
            stream,
        })
    }

    /// The GPU.
    pub fn gpu(&self) -> &Gpu {
        self.stream.gpu()
    }

    /// How long the host took for the last step before it waited for the GPU.
    pub fn host_time(&self) -> Duration {
        self.host_time
    }

    /// Microseconds of each launch of a step, one after the other: the median of `repeats` steps. Events between them keep
    /// them from overlapping.
    ///
    /// # Errors
    /// The GPU failed.
    pub fn time(&mut self, step: &Step, list: &LaunchList, repeats: usize) -> Result<Vec<f32>, DeviceError> {
        let ready = self.ready(list)?;
        let events: Vec<Event> = (0..=ready.len()).map(|_| Event::new(self.gpu())).collect::<Result<_, _>>()?;
        let mut times = vec![vec![]; ready.len()];
        for _ in 0..=repeats {
            self.bring_inputs(step, None)?;
            self.stream.mark(&events[0])?;
            for (launch, end) in ready.iter().zip(&events[1..]) {
                launch.launch(&self.stream)?;
                self.stream.mark(end)?;
            }
            self.stream.synchronize()?;
            for (i, times) in times.iter_mut().enumerate() {
                times.push(1e3 * events[i + 1].milliseconds_since(&events[i])?);
            }
        }
        // The first step finds caches cold.
        Ok(times.into_iter().map(|mut times| median(&mut times[1..])).collect())
    }

    /// Microseconds of a step's launches as a graph: the median of `repeats` replays.
    ///
    /// # Errors
    /// The GPU failed.
    pub fn time_graph(&mut self, step: &Step, list: &LaunchList, repeats: usize) -> Result<f32, DeviceError> {
        let ready = self.ready(list)?;
        let stream = &self.stream;
        let graph = stream.record(|| ready.iter().try_for_each(|launch| launch.launch(stream)))?;
        let (start, end) = (Event::new(self.gpu())?, Event::new(self.gpu())?);
        self.bring_inputs(step, None)?;
        let mut times = vec![];
        for _ in 0..=repeats {
            self.stream.mark(&start)?;
            self.stream.replay(&graph)?;
            self.stream.mark(&end)?;
            self.stream.synchronize()?;
            times.push(1e3 * end.milliseconds_since(&start)?);
        }
        Ok(median(&mut times[1..]))
    }

    /// The place of the step that was waited for last.
    fn last_had(&self) -> usize {
        self.had.saturating_sub(1) % self.places.len()
    }

    fn layout(&self, bucket: Option<usize>) -> &InputLayout {
        let last = self.layouts.len() - 1;
        &self.layouts[bucket.unwrap_or(last).min(last)]
    }

    fn buffer_address(&self, id: u32, offset: u64) -> Option<u64> {
        let start = self.plan.buffers.get(id as usize)?.offset.checked_add(offset)?;
        (start <= self.plan.arena_bytes).then(|| self.arena.address() + start)
    }

    fn cache_address(&self, layer: u32, part: Part) -> Option<u64> {
        Some(self.cache.address() + self.cache_layout.offset(layer, part)?)
    }

    /// A list's launches with everything known.
    fn ready(&self, list: &LaunchList) -> Result<Vec<Ready>, DeviceError> {
        let most = Symbols::most(&self.limits, self.limits.max_num_batched_tokens);
        let ready = |launch: &crate::device::Launch| {
            let missing = || DeviceError::Plan(format!("there is no kernel {}", launch.kernel));
            let kernel = self.kernels.get(launch.kernel).ok_or_else(missing)?;
            let tensors = self.plan.kernels.get(launch.kernel).map_or(0, |k| k.tensors as usize);
            let tensors = list.args.get(launch.args.clone()).and_then(|args| args.get(..tensors));
            let tensors = tensors.ok_or_else(missing)?;
            Ok(kernel.ready(tensors, self.inputs.address(), launch.programs, &|sym| most.get(sym))?)
        };
        list.launches.iter().map(ready).collect()
    }

    /// Puts symbols and inputs in their places, and gives the stream the copy of them.
    fn bring_inputs(&mut self, step: &Step, bucket: Option<usize>) -> Result<(), DeviceError> {
        let symbols = Symbols::of(step, self.limits.num_blocks);
        let layout = self.layout(bucket).clone();
        let place = self.given % self.places.len();
        let bytes = self.places[place].staged.bytes_mut();
        write(bytes, 0, &symbols.0.map(|n| n as i32));
        let mut end = SYMBOLS as usize;
        for input in INPUTS {
            let (values, InputRange { offset, capacity }) = (step.input(input), layout.range(input));
            if values.len() > capacity {
                return Err(DeviceError::StepTooLarge { input, values: values.len(), capacity });
            }
            write(bytes, offset as usize, values);
            end = offset as usize + 4 * values.len();
            write(bytes, end, &[padding(input); PADDING]);
            end += 4 * PADDING;
        }
        Ok(self.stream.upload(&self.places[place].staged, 0..end, &self.inputs, 0)?)
    }
}

fn median(values: &mut [f32]) -> f32 {
    values.sort_unstable_by(f32::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// Writes integers from byte `at` on; what does not fit is left out, of which callers make sure that there is nothing.
fn write(bytes: &mut [u8], at: usize, values: &[i32]) {
    for (place, value) in bytes[at..].as_chunks_mut().0.iter_mut().zip(values) {
        *place = value.to_le_bytes();
    }
}

impl Device for CudaDevice {
    fn buckets(&self) -> &[u32] {
        &self.buckets
    }

    fn address(&self, arg: &Arg, bucket: Option<usize>) -> Result<u64, DeviceError> {
        let address = match *arg {
            Arg::Buffer { id, offset } => self.buffer_address(id, offset),
            Arg::Weight(i) => self.weights.address(i as usize),
            Arg::Input(input) => Some(self.inputs.address() + self.layout(bucket).range(input).offset),
            Arg::KeyCache(layer) => self.cache_address(layer, Part::Keys),
            Arg::ValueCache(layer) => self.cache_address(layer, Part::Values),
            Arg::KeyScales(layer) => self.cache_address(layer, Part::KeyScales),
            Arg::ValueScales(layer) => self.cache_address(layer, Part::ValueScales),
        };
        address.ok_or_else(|| DeviceError::Plan(format!("there is no {arg:?}")))
    }

    fn record(&mut self, list: &LaunchList) -> Result<(), DeviceError> {
        let ready = self.ready(list)?;
        let stream = &self.stream;
        let graph = stream.record(|| ready.iter().try_for_each(|launch| launch.launch(stream)))?;
        self.graphs.push(graph);
        Ok(())
    }

    fn run(&mut self, step: &Step, launches: Launches) -> Result<(), DeviceError> {
        let start = Instant::now();
        let running = self.given - self.had;
        if running >= self.places.len() || (running > 0 && !self.reads_draws) {
            return Err(DeviceError::Plan(format!("{running} steps run whose outputs were not waited for")));
        }
        let bucket = match &launches {
            Launches::Recorded(bucket) => Some(*bucket),
            Launches::List(_) => None,
        };
        self.bring_inputs(step, bucket)?;
        match launches {
            Launches::Recorded(bucket) => {
                let graph = self.graphs.get(bucket);
                let missing = || DeviceError::Plan(format!("nothing was recorded for bucket {bucket}"));
                self.stream.replay(graph.ok_or_else(missing)?)?;
            }
            Launches::List(list) => {
                let ready = self.ready(&list)?;
                ready.iter().try_for_each(|launch| launch.launch(&self.stream))?;
            }
        }
        self.host_time = start.elapsed();
        let place = self.given % self.places.len();
        self.outputs.fetch(place, &self.stream, &self.arena, step)?;
        self.stream.mark(&self.places[place].done)?;
        self.given += 1;
        self.reads_draws = step.reads.iter().all(|reads| *reads == Reads::Draws);
        Ok(())
    }

    fn runs_ahead(&self) -> bool {
        true
    }

    fn feeds(&self) -> bool {
        true
    }

    fn wait(&mut self) -> Result<(), DeviceError> {
        if self.had < self.given {
            self.places[self.had % self.places.len()].done.synchronize()?;
            self.had += 1;
        }
        Ok(())
    }

    fn leaves_out(&self) -> bool {
        true
    }

    fn bring(&mut self, rows: &[usize]) -> Result<(), DeviceError> {
        rows.iter().try_for_each(|row| self.outputs.fetch_all(&self.stream, &self.arena, *row..row + 1))?;
        Ok(self.stream.synchronize()?)
    }

    fn read(&self, buffer: u32, len: usize) -> Result<&[f32], DeviceError> {
        let wrong = || DeviceError::Plan(format!("output {buffer} has no {len} f32 elements"));
        self.outputs.read(self.last_had(), buffer, len).ok_or_else(wrong)
    }

    fn copy_block(&mut self, from: BlockId, to: BlockId) -> Result<(), DeviceError> {
        for copy in self.cache_layout.copies(from, to) {
            let missing = || DeviceError::Plan(format!("no KV block {from} or {to}"));
            let [from, to, bytes] = copy.ok_or_else(missing)?;
            self.stream.copy(&self.cache, from, to, bytes)?;
        }
        Ok(())
    }
}

/// Buffer, where it begins in the arena and on the host, f32 elements of a row.
type OutputPart = (u32, u64, usize, usize);

/// Rows next to each other of which something holds.
fn runs(rows: usize, holds: impl Fn(usize) -> bool) -> impl Iterator<Item = Range<usize>> {
    let mut next = 0;
    std::iter::from_fn(move || {
        let start = (next..rows).find(|row| holds(*row))?;
        next = (start..rows).find(|row| !holds(*row)).unwrap_or(rows);
        Some(start..next)
    })
}

/// The plan's outputs on the host: of what is drawn, which is read of every row, those of two steps. Of the others one is enough: a
/// step that another one follows while it runs has nothing else read.
struct HostOutputs {
    memory: Pinned,
    /// By the place of the step.
    drawn: [[OutputPart; 3]; 2],
    others: [OutputPart; 4],
    most_likely: Option<OutputPart>,
}

impl HostOutputs {
    fn new(gpu: &Gpu, plan: &Plan, limits: &Limits) -> Result<HostOutputs, DeviceError> {
        let vocab = limits.vocab_size as usize;
        let outputs = &plan.outputs;
        let blocks = vocab.div_ceil(LOGITS_BLOCK);
        let [max, logsumexp] = [outputs.max, outputs.logsumexp].map(|id| (id, 1));
        let [block_max, block_sum] = [outputs.block_max, outputs.block_sum].map(|id| (id, blocks));
        let [draws, ranks] = [(outputs.draws, DRAWS), (outputs.ranks, RANK * DRAWS)];
        let mut end = 0;
        let mut part = |(id, columns): (u32, usize)| {
            let buffer = plan.buffers.get(id as usize);
            let buffer = buffer.ok_or_else(|| DeviceError::Plan(format!("there is no output buffer {id}")))?;
            let part: OutputPart = (id, buffer.offset, end, columns);
            end = (end + 4 * columns * limits.max_logits as usize).next_multiple_of(64);
            Ok::<_, DeviceError>(part)
        };
        let mut drawn = || Ok::<_, DeviceError>([part(max)?, part(logsumexp)?, part(draws)?]);
        let drawn = [drawn()?, drawn()?];
        let others = [part(ranks)?, part(block_max)?, part(block_sum)?, part((outputs.logits, vocab))?];
        let most_likely = outputs.most_likely.map(|id| part((id, 2 * TOP_K))).transpose()?;
        Ok(HostOutputs { memory: Pinned::new(gpu, end)?, drawn, others, most_likely })
    }

    /// Brings what the step reads of its rows: of all what was drawn and the statistics of the whole row.
    fn fetch(&mut self, place: usize, stream: &Stream, arena: &DeviceMemory, step: &Step) -> Result<(), CudaError> {
        let rows = step.logits_indices.len();
        let [ranks, block_max, block_sum, _] = self.others;
        for part in self.drawn[place] {
            self.fetch_rows(stream, arena, part, 0..rows)?;
        }
        if let Some(most_likely) = self.most_likely {
            let asked = |row: usize| step.top_k.get(row).is_some_and(|count| *count > 0);
            runs(rows, asked).try_for_each(|rows| self.fetch_rows(stream, arena, most_likely, rows))?;
        }
        let reads = |row: usize| step.reads.get(row).copied().unwrap_or_default();
        for ranked in runs(rows, |row| reads(row) == Reads::Ranks) {
            for part in [ranks, block_max, block_sum] {
                self.fetch_rows(stream, arena, part, ranked.clone())?;
            }
        }
        runs(rows, |row| reads(row) == Reads::All).try_for_each(|rows| self.fetch_all(stream, arena, rows))
    }

    /// Brings all of some rows.
    fn fetch_all(&mut self, stream: &Stream, arena: &DeviceMemory, rows: Range<usize>) -> Result<(), CudaError> {
        self.others.into_iter().try_for_each(|part| self.fetch_rows(stream, arena, part, rows.clone()))
    }

    fn fetch_rows(
        &mut self,
        stream: &Stream,
        arena: &DeviceMemory,
        part: OutputPart,
        rows: Range<usize>,
    ) -> Result<(), CudaError> {
        let (_, from, to, columns) = part;
        let [start, end] = [rows.start, rows.end].map(|row| 4 * columns * row);
        stream.download(arena, from + start as u64, &mut self.memory, to + start..to + end)
    }

    fn read(&self, place: usize, buffer: u32, len: usize) -> Option<&[f32]> {
        let mut parts = self.drawn[place].into_iter().chain(self.others).chain(self.most_likely);
        let (_, _, at, _) = parts.find(|(id, ..)| *id == buffer)?;
        self.memory.floats(at, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rvllm_artifact::plan::{self, Input, Outputs, Sym, Variant};

    fn plan(bounds: &[u32]) -> Plan {
        let variant = |n: &u32| Variant { at_most: Some((Sym::T, *n)), kernel: 0, grid: vec![] };
        let variants = bounds.iter().map(variant).collect();
        Plan {
            max_num_batched_tokens: 2048,
            max_num_seqs: 4,
            max_logits: 8,
            query_tile: 4,
            arena_bytes: 0,
            buffers: vec![],
            weights: vec![],
            kernels: vec![],
            launches: vec![plan::Launch { name: "x".into(), args: vec![], variants }],
            outputs: Outputs {
                logits: 0,
                max: 0,
                logsumexp: 0,
                block_max: 0,
                block_sum: 0,
                draws: 0,
                ranks: 0,
                most_likely: None,
            },
            feeds: false,
        }
    }

    #[test]
    fn buckets_end_where_the_plan_takes_other_kernels() {
        let all = buckets(&plan(&[12, 128, 1000]), 2048);
        assert_eq!((all[..6].to_vec(), *all.last().unwrap()), (vec![1, 2, 4, 8, 12, 16], 512));
        assert_eq!(buckets(&plan(&[]), 20), [1, 2, 4, 8, 16, 20]);
    }

    #[test]
    fn inputs_of_a_small_bucket_lie_close_together() {
        let limits = Limits {
            vocab_size: 300,
            max_model_len: 4096,
            max_num_seqs: 4,
            max_num_batched_tokens: 2048,
            max_logits: 8,
            query_tile: 4,
            block_size: 32,
            num_blocks: 100,
        };
        let (small, large) = (layout(&plan(&[]), &limits, 1), layout(&plan(&[]), &limits, 2048));
        assert!(small.range(Input::BlockTable).offset < 4096 && large.range(Input::BlockTable).offset > 5 * 4 * 2048);
        assert_eq!(small.range(Input::TokenIds), InputRange { offset: SYMBOLS, capacity: 1 });
        assert_eq!(small.range(Input::BlockTable).capacity, 128);
        assert_eq!(large.range(Input::BlockTable).capacity, 4 * 128);
    }
}

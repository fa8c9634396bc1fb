//! Chains of products on Hopper's tensor cores (attention): a producer thread walks a kernel's loops ahead of the consumer
//! warpgroups and has the copy engine fill rings of shared memory with what they multiply, through tables where the kernel
//! says so; what one product gave goes to the next in registers; everything else is lowered as for warps.
//!
//! [`find`] says which kernels, [`ring`] how both sides agree on slots, [`produce`] and [`consume`] are the sides, [`multiply`] the
//! instructions; where elements are stored in 8 bits, [`widen`] stands between the sides. CTAs of kernels without clusters stay and take programs in turn, so that the producer runs into the next
//! program while the consumers finish one.
//!
//! Invariants:
//! - a row's elements are the same operations in the same order whatever the number of warpgroups, of slots and of CTAs;
//! - rows beyond the program's take part in products, and reach no row of it;
//! - every copy into shared memory is waited for before the CTA leaves.

mod beside;
mod consume;
pub(crate) mod find;
mod multiply;
mod produce;
mod ring;
mod widen;

use super::{
    Lower, Value,
    launch::{GpuLaunch, Swizzle, TensorMap},
    shared, signature,
};
use crate::{
    Error, Lowered,
    index::Index,
    text::{Elem, Ssa, Ty, Writer},
};
use find::{LINE, M, PATTERN, Plan, Stream, Through};
use ring::{Ring, Slot};
use rvllm_ir::tile::{Block, IndexOp, Kernel, Val};
use rvllm_targets::{Gpu, Target};
use std::collections::HashMap;

/// Bytes of shared memory that every CTA takes beyond its own.
const RESERVED: usize = 1024;
/// CTAs of one consumer warpgroup that share a multiprocessor: while one waits for what it reads next, the other works.
const RESIDENTS: usize = 2;
/// Multiprocessors of the largest Hopper: CTAs that are of use where each runs many programs, over those that share one.
const MULTIPROCESSORS: u32 = 132;
/// Threads of a warpgroup.
const WARPGROUP: usize = 128;
/// Registers of a producer's threads and of a consumer's where two consumer warpgroups take theirs from a third: together no
/// more than three warpgroups are launched with, 168 a thread, or the last waits for ever.
const REGISTERS: [usize; 2] = [56, 224];
const _: () = assert!(REGISTERS[0] + 2 * REGISTERS[1] <= 3 * 168);
/// The same of one consumer warpgroup of a CTA that shares a multiprocessor: 128 a thread of two warpgroups.
const SHARED_REGISTERS: [usize; 2] = [64, 192];
const _: () = assert!(SHARED_REGISTERS[0] + SHARED_REGISTERS[1] <= 2 * 128);
/// Threads, of a warp each, that share out the streams: the instructions about one copy take a good part of its time.
const PRODUCERS: usize = 2;
/// Barrier of the first warpgroup's turn; the second's follows. Below are those of all threads and of all consumers.
const FIRST_TURN: usize = 2;
/// Warps that widen what passes: those that a producer warpgroup has to spare.
const WIDENERS: usize = 4 - PRODUCERS;
/// Bytes of which what passes beside slots begins at a multiple.
const ROW_ALIGNMENT: usize = 16;
/// Slots of the passing ring, at least: one iteration's left and right.
const MIN_SLOTS: usize = 2;

/// What the lowering of a streaming kernel knows beside [`Lower`]'s own.
#[derive(Clone, Debug)]
pub(crate) struct Streams<'k> {
    plan: Plan<'k>,
    /// By [`Through`].
    rings: [Ring; 2],
    /// Numbers of what passes each ring next.
    passed: [Ssa; 2],
    /// Tensor map of each tensor and box.
    maps: Vec<(usize, Vec<usize>, Ssa)>,
    /// Slots of what is kept, by its value.
    kept: HashMap<Val, Slot>,
    /// The same of rows beside what passes in this iteration, and bytes of the slot's rows before them.
    beside: HashMap<Val, (Slot, usize)>,
    role: Role,
    share: Share,
}

/// Whose part of a kernel is being lowered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// The thread that brings every stream whose turn is this number, of [`PRODUCERS`].
    Producer(usize),
    /// The warps that make 16-bit numbers of what was brought.
    Widener,
    Consumer,
}

/// Consumer warpgroups, one for each 64 rows.
fn groups(plan: &Plan<'_>) -> usize {
    plan.rows.div_ceil(M)
}

/// Registers of a producer's threads and of a consumer's, where they move between warpgroups.
fn registers(groups: usize, share: Share) -> Option<[usize; 2]> {
    match (groups, share.residents) {
        (1, 1) => None,
        (1, _) => Some(SHARED_REGISTERS),
        _ => Some(REGISTERS),
    }
}

/// Threads of a CTA: a whole producer warpgroup where registers move.
fn threads(plan: &Plan<'_>, share: Share) -> usize {
    let others = if registers(groups(plan), share).is_some() { 4 } else { PRODUCERS + wideners(plan) };
    WARPGROUP * groups(plan) + 32 * others
}

/// Warps that widen what passes.
fn wideners(plan: &Plan<'_>) -> usize {
    if plan.widens() { WIDENERS } else { 0 }
}

/// Slots of the passing ring, at least. Where an iteration's second product runs while the next one's right side is waited for, as it
/// is for what passes beside it, one more.
fn least_slots(plan: &Plan<'_>, share: Share) -> usize {
    MIN_SLOTS + usize::from(share.residents == 1 && plan.passing().any(|s| !s.rows.is_empty()))
}

/// What a CTA has of a multiprocessor.
#[derive(Clone, Copy, Debug)]
struct Share {
    /// CTAs that share it.
    residents: usize,
    /// Bytes of shared memory of each.
    bytes: usize,
}

impl Share {
    /// Shares of the kernel's CTAs, best first.
    fn of(kernel: &Kernel, plan: &Plan<'_>, gpu: &Gpu) -> Vec<Share> {
        let whole = gpu.shared_bytes as usize;
        let alone = Share { residents: 1, bytes: whole };
        if groups(plan) > 1 || super::spread::cluster(kernel) > 1 {
            return vec![alone];
        }
        vec![Share { residents: RESIDENTS, bytes: (whole + RESERVED) / RESIDENTS - RESERVED }, alone]
    }
}

/// The MLIR of a kernel that streams; `None` for any other, and where shared memory does not hold what it takes.
pub(super) fn lower(kernel: &Kernel, target: &Target, gpu: &Gpu) -> Option<Result<Lowered, Error>> {
    let plan = Plan::of(kernel)?;
    let slot = plan.passing().map(Stream::bytes).max()?;
    for share in Share::of(kernel, &plan, gpu) {
        let least = least_slots(&plan, share);
        let most = (plan.stages * MIN_SLOTS).max(least);
        for slots in (least..=most.min(share.bytes / slot)).rev() {
            match lower_with(kernel, target, &plan, slots, share) {
                Ok(Some(lowered)) => return Some(Ok(lowered)),
                Ok(None) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }
    None
}

/// The same with so many slots; `None` where they do not fit.
fn lower_with(
    kernel: &Kernel,
    target: &Target,
    plan: &Plan<'_>,
    slots: usize,
    share: Share,
) -> Result<Option<Lowered>, Error> {
    let mut w = Writer::default();
    let pointers: Vec<Ssa> = kernel.params.iter().map(|_| w.fresh(Ty::Global)).collect();
    let step = w.fresh(Ty::Global);
    let mut maps: Vec<(usize, Vec<usize>, Ssa)> = vec![];
    for s in &plan.streams {
        if !maps.iter().any(|(tensor, extents, _)| (*tensor, extents) == (s.tensor, &s.extents)) {
            maps.push((s.tensor, s.extents.clone(), w.fresh(Ty::Ptr)));
        }
    }
    let shared = shared::Shared::new(&mut w);
    let zero = w.ints(super::wgmma::ops::I32, 0);
    let (rings, reserved) = rings(plan, slots, share);
    let streams = Streams {
        plan: plan.clone(),
        rings,
        passed: [zero; 2],
        maps: maps.clone(),
        kept: HashMap::new(),
        beside: HashMap::new(),
        role: Role::Consumer,
        share,
    };
    let mut lower = Lower {
        kernel,
        target,
        w,
        pointers,
        symbols: HashMap::new(),
        program: vec![],
        values: HashMap::new(),
        wanted: HashMap::new(),
        threads: WARPGROUP * groups(plan),
        thread: Index::constant(0),
        shared,
        cluster: super::spread::cluster(kernel),
        rank: Index::constant(0),
        leads: None,
        waited: true,
        loc: None,
        streams: Some(Box::new(streams)),
    };
    lower.region(reserved);
    lower.begin(step);
    lower.roles()?;
    let (bytes, cluster, threads) = (lower.shared.bytes(), lower.cluster, threads(plan, share));
    if bytes > share.bytes {
        return Ok(None);
    }
    let names: Vec<Ssa> = maps.iter().map(|(_, _, map)| *map).collect();
    let head = signature(kernel, &lower.pointers, step, &names, [threads, cluster, share.residents]);
    let launch = GpuLaunch {
        threads: threads as u32,
        shared_bytes: bytes as u32,
        cluster: cluster as u32,
        ctas_per_program: cluster as u32,
        max_ctas: (cluster == 1).then_some(MULTIPROCESSORS * share.residents as u32),
        registers: None,
        spill_bytes: None,
        tensor_maps: maps.iter().map(|(tensor, extents, _)| tensor_map(kernel, *tensor, extents)).collect(),
    };
    let text = format!("module {{\n{}\n{}}}\n", shared::GLOBAL, lower.w.llvm_function(&head));
    Ok(Some(Lowered { text, launch: Some(launch) }))
}

/// Where the rings are: what is kept, what passes, what passes beside it, barriers; and the end.
fn rings(plan: &Plan<'_>, slots: usize, share: Share) -> ([Ring; 2], usize) {
    let largest = |through: Through| {
        let all = plan.streams.iter().filter(|s| s.through == through);
        all.map(Stream::bytes).max().unwrap_or(0).next_multiple_of(PATTERN * find::LINE_BYTES)
    };
    let (kept, passing) = (largest(Through::Kept), largest(Through::Passing));
    // two would leave little for what passes: of many rows, and beside another CTA where it is slow to get ready
    let scarce = groups(plan) > 1 || plan.widens() && share.residents > 1;
    let all_kept = if scarce { 1 } else { 2 };
    let start = all_kept * kept;
    let ring = Ring { at: 0, slots: all_kept, slot_bytes: kept, barriers: 0, rows: 0, row_bytes: 0, widened: false };
    let (kept, end) = ring.ending(start + slots * passing);
    let row_bytes = plan.passing().map(Stream::row_bytes).max().unwrap_or(0);
    let ring = Ring { at: start, slots, slot_bytes: passing, row_bytes, widened: plan.widens(), ..ring };
    let (passing, end) = ring.ending(end.next_multiple_of(ROW_ALIGNMENT));
    ([kept, passing], end)
}

/// A tensor in boxes of lines, or as it is stored where threads make lines of it.
fn tensor_map(kernel: &Kernel, tensor: usize, extents: &[usize]) -> TensorMap {
    let param = &kernel.params[tensor];
    let narrow = param.ty.dtype.bits() == 8;
    let rest = extents[1..].iter().map(|n| *n as u32);
    TensorMap {
        tensor: tensor as u32,
        dtype: param.ty.dtype,
        dims: find::extents(param),
        strides: find::strides(param),
        block: [if narrow { extents[0] } else { LINE } as u32].into_iter().chain(rest).collect(),
        swizzle: if narrow { Swizzle::None } else { Swizzle::B128 },
    }
}

impl<'a> Lower<'a> {
    fn streams(&self) -> &Streams<'a> {
        self.streams.as_ref().expect("invariant: only kernels that stream come here")
    }

    /// Whether statements are lowered for the consumers of a kernel that streams.
    pub(crate) fn consumes(&self) -> bool {
        self.streams.as_ref().is_some_and(|s| s.role == Role::Consumer)
    }

    /// Whether the stream of this turn in its block is brought by the thread whose part is being lowered.
    fn brings(&self, turn: usize) -> bool {
        self.streams().role == Role::Producer(turn % PRODUCERS)
    }

    fn streamed(&self, v: Val) -> Option<Stream> {
        self.streams().plan.stream(v).cloned()
    }

    fn kept(&self, v: Val) -> Option<Slot> {
        self.streams().kept.get(&v).copied()
    }

    fn keep(&mut self, v: Val, slot: Slot) {
        if let Some(s) = &mut self.streams {
            s.kept.insert(v, slot);
        }
    }

    fn map_of(&self, stream: &Stream) -> Ssa {
        let same =
            |(tensor, extents, _): &&(usize, Vec<usize>, Ssa)| (*tensor, extents) == (stream.tensor, &stream.extents);
        self.streams().maps.iter().find(same).expect("invariant: every stream has its map").2
    }

    /// Streams that pass in a body.
    fn passing(&self, body: &Block) -> Vec<Stream> {
        let own = body
            .stmts
            .iter()
            .filter_map(|s| self.streams().plan.streams.iter().find(|o| s.results.first() == Some(&o.operand)));
        own.filter(|s| s.through == Through::Passing).cloned().collect()
    }

    /// Waits for all consumers.
    pub(crate) fn meet_consumers(&mut self) {
        let one = self.w.i32(1);
        self.w.meet(one, self.threads);
    }

    /// An address in shared memory.
    fn shared_at(&mut self, at: usize) -> Ssa {
        self.region_start(shared::Region { offset: at })
    }

    /// Makes barriers, then parts the threads.
    fn roles(&mut self) -> Result<(), Error> {
        let consumers = self.threads;
        let thread = self.w.special_register("tid.x");
        let first = self.w.is("eq", thread, 0);
        self.w.begin_if(first);
        self.init_rings(consumers / 32, self.wideners());
        let maps: Vec<Ssa> = self.streams().maps.iter().map(|(_, _, map)| *map).collect();
        maps.into_iter().for_each(|map| self.w.prefetch_map(map));
        self.w.end();
        self.w.effect("nvvm.barrier0");
        let values = self.values.clone();
        let produces = self.w.is("uge", thread, consumers);
        self.w.begin_if(produces);
        self.resize("decrease", 0);
        for producer in 0..PRODUCERS {
            self.act(Role::Producer(producer));
            let warp = self.w.over(thread, 32);
            let own = self.w.is("eq", warp, consumers / 32 + producer);
            self.w.begin_if(own);
            self.fetch_ahead()?;
            self.values.clone_from(&values);
            // consumers begin with what this thread brings, and write after it
            self.wait();
            self.each_program(|l| l.produce_block(&l.kernel.body))?;
            self.w.end();
            self.values.clone_from(&values);
        }
        self.widening_role(thread, &values)?;
        self.w.otherwise();
        self.act(Role::Consumer);
        self.resize("increase", 1);
        self.first_turn();
        self.each_program(|l| l.consume_block(&l.kernel.body))?;
        self.w.end();
        Ok(())
    }

    /// The part of the warps behind the producers.
    fn widening_role(&mut self, thread: Ssa, values: &HashMap<Val, Value>) -> Result<(), Error> {
        if self.wideners() == 0 {
            return Ok(());
        }
        self.act(Role::Widener);
        let own = self.w.is("uge", thread, self.first_widener());
        self.w.begin_if(own);
        // the step's tensors say how long loops are
        self.wait();
        self.each_program(|l| l.produce_block(&l.kernel.body))?;
        self.w.end();
        self.values.clone_from(values);
        Ok(())
    }

    /// Warps that widen.
    fn wideners(&self) -> usize {
        wideners(&self.streams().plan)
    }

    /// The first thread of those.
    fn first_widener(&self) -> usize {
        WARPGROUP * groups(&self.streams().plan) + 32 * PRODUCERS
    }

    /// Whether two warpgroups take turns: while one's products run, the other computes.
    fn alternates(&self) -> bool {
        self.threads == 2 * WARPGROUP
    }

    /// The barrier of a warpgroup's turn.
    fn turn_of(&mut self, other: usize) -> Ssa {
        let thread = self.w.special_register("tid.x");
        let group = self.w.over(thread, WARPGROUP);
        let group = self.w.xor(group, other);
        self.w.plus(group, FIRST_TURN)
    }

    /// Waits until the products of the other warpgroup are begun.
    fn take_turn(&mut self) {
        if self.alternates() {
            let own = self.turn_of(0);
            self.w.meet(own, 2 * WARPGROUP);
        }
    }

    fn give_turn(&mut self) {
        if self.alternates() {
            let other = self.turn_of(1);
            self.w.arrive_at(other, 2 * WARPGROUP);
        }
    }

    /// The first warpgroup's turn comes first.
    fn first_turn(&mut self) {
        if self.alternates() {
            let thread = self.w.special_register("tid.x");
            let second = self.w.is("uge", thread, WARPGROUP);
            self.w.begin_if(second);
            let first = self.w.i32(FIRST_TURN);
            self.w.arrive_at(first, 2 * WARPGROUP);
            self.w.end();
        }
    }

    fn act(&mut self, role: Role) {
        if let Some(s) = &mut self.streams {
            s.role = role;
        }
    }

    fn resize(&mut self, action: &str, role: usize) {
        let Streams { plan, share, .. } = self.streams();
        if let Some(registers) = registers(groups(plan), *share) {
            self.w.resize_registers(action, registers[role]);
        }
    }

    /// Brings near what the first program begins with, while the predecessors still run.
    fn fetch_ahead(&mut self) -> Result<(), Error> {
        let (extents, total) = self.grid();
        let first = self.first_program();
        let inside = self.w.compare("ult", first, total);
        self.w.begin_if(inside);
        self.program_at(first, &extents);
        self.look_ahead(&self.kernel.body)?;
        self.w.end();
        Ok(())
    }

    /// The grid's extents, and how many programs it has.
    fn grid(&mut self) -> (Vec<Index>, Ssa) {
        let extents: Vec<Index> = self.kernel.grid.iter().map(|(_, e)| self.expr(e)).collect();
        let mut total = Index::constant(1);
        for extent in &extents {
            total = self.w.mul(total, *extent);
        }
        let total = self.w.ssa(total);
        (extents, self.w.convert("arith.trunci", total, Ty::Scalar(Elem::I32)))
    }

    /// The number of this CTA's first program; its own number in its cluster is known afterwards.
    fn first_program(&mut self) -> Ssa {
        let cta = self.w.special_register("ctaid.x");
        if self.cluster == 1 {
            return cta;
        }
        let rank = self.w.modulo(cta, self.cluster);
        let rank = self.w.wide(rank);
        self.rank = Index::value(rank).bounded(Some(self.cluster as i64 - 1));
        self.w.over(cta, self.cluster)
    }

    /// Runs `body` for every program of this CTA. Of a cluster that is one; a CTA that stays takes one of each round of as many as
    /// there are CTAs, every other round backwards: programs that are listed by falling work are shared out evenly.
    fn each_program(&mut self, body: impl FnOnce(&mut Self) -> Result<(), Error>) -> Result<(), Error> {
        self.start_rings();
        let (extents, total) = self.grid();
        let cta = self.first_program();
        if self.cluster > 1 {
            let inside = self.w.compare("ult", cta, total);
            self.w.begin_if(inside);
            self.program_at(cta, &extents);
            body(self)?;
            self.w.end();
            return Ok(());
        }
        let ctas = self.w.special_register("nctaid.x");
        let [trips, backwards] = self.rounds(total, cta, ctas);
        let bounds = [self.w.i32(0), trips, self.w.i32(1)];
        let numbers = self.numbers();
        let open = self.w.begin_loop(bounds, &numbers);
        self.set_passed(&open.carried.clone());
        let odd = self.w.modulo(open.i, 2);
        let odd = self.w.is("ne", odd, 0);
        let within = self.w.select(odd, backwards, cta);
        let before = self.w.binary("arith.muli", open.i, ctas);
        let linear = self.w.sum(before, within);
        self.program_at(linear, &extents);
        body(self)?;
        let numbers = self.numbers();
        let numbers = self.w.end_loop(open, &numbers);
        self.set_passed(&numbers);
        Ok(())
    }

    /// How many rounds this CTA takes part in, and its place in a round taken backwards.
    fn rounds(&mut self, total: Ssa, cta: Ssa, ctas: Ssa) -> [Ssa; 2] {
        let last = self.w.binary("arith.subi", ctas, cta);
        let one = self.w.i32(1);
        let backwards = self.w.binary("arith.subi", last, one);
        let whole = self.w.binary("arith.divui", total, ctas);
        let left = self.w.binary("arith.remui", total, ctas);
        let odd = self.w.modulo(whole, 2);
        let odd = self.w.is("ne", odd, 0);
        let place = self.w.select(odd, backwards, cta);
        let more = self.w.compare("ult", place, left);
        let more = self.w.convert("arith.extui", more, Ty::Scalar(Elem::I32));
        [self.w.sum(whole, more), backwards]
    }

    /// The program of a number: dimensions of constant extent vary fastest, as programs may run in any order.
    fn program_at(&mut self, linear: Ssa, extents: &[Index]) {
        let fixed = |d: &usize| matches!(self.kernel.grid[*d].1, rvllm_ir::expr::Expr::Const(_));
        let (mut order, rest): (Vec<usize>, Vec<usize>) = (0..extents.len()).partition(fixed);
        order.extend(rest);
        let mut left = Index::value(self.w.wide(linear));
        let mut program = vec![Index::constant(0); extents.len()];
        for (n, d) in order.iter().enumerate() {
            if n + 1 == order.len() {
                program[*d] = left;
                break;
            }
            let id = self.w.index(IndexOp::Rem, left, extents[*d]);
            program[*d] = id.bounded(extents[*d].as_const().map(|n| n - 1));
            left = self.w.index(IndexOp::Div, left, extents[*d]);
        }
        self.program = program;
    }
}

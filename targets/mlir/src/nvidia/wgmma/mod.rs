//! Products of matrices on Hopper's tensor cores: a producer thread keeps a ring of shared memory full with the copy engine,
//! consumer warpgroups multiply what lies there (`wgmma`), accumulators never leave registers, and whatever elementwise work
//! follows is done on them before the result leaves through shared memory.
//!
//! [`product`] finds the shape in tile IR, [`form`] chooses sizes, [`produce`] loads, [`consume`] multiplies, [`epilogue`]
//! computes the rest and [`store`] writes; [`split`] has sums in two halves, [`scaled`] has a scale for each line of K, [`packed`] makes numbers of weights of 4 bits in the registers of those that multiply. Weights do not depend on other kernels: the ring is filled with them before the
//! predecessors' results are waited for.
//!
//! Invariants:
//! - an element of the result is one chain of sums over ascending K in steps of 16 ([`split`]: or one for each half of K), or of
//!   8-bit elements of 32 for every line of K and a sum of these, whatever the form, so that the same row gives the same bits in
//!   every bucket;
//! - what a row past the actual ones holds reaches no other row, and no address depends on it;
//! - every copy into shared memory is waited for before the CTA leaves.

mod consume;
mod epilogue;
mod form;
pub(super) mod ops;
mod packed;
mod produce;
mod product;
mod raster;
mod scaled;
mod split;
mod store;

use super::{
    launch::{GpuLaunch, Swizzle, TensorMap},
    shared, signature,
};
use crate::{
    Lowered,
    text::{Ssa, Ty, Writer},
};
use form::Form;
use ops::I32;
use product::Product;
use rvllm_ir::{
    expr::{Expr, Sym},
    tile::{Inst, Kernel, Val},
    types::{DType, Dim},
};
use rvllm_targets::Gpu;
use std::collections::HashMap;

/// CTAs that are of use where each runs many tiles: one per multiprocessor of the largest Hopper.
const MULTIPROCESSORS: u32 = 132;

/// One kernel being written.
struct Lower<'k> {
    product: Product<'k>,
    form: Form,
    w: Writer,
    /// Start of each tensor.
    pointers: Vec<Ssa>,
    /// How the copy engine sees a, and c where it writes it.
    a_map: Ssa,
    c_map: Option<Ssa>,
    shared: Ssa,
    thread: Ssa,
    lane: Ssa,
    /// Rows that the step has.
    rows: Ssa,
    /// Where a thread puts sums that its registers do not hold.
    stack: Option<Ssa>,
}

/// The MLIR of a kernel that is a product of matrices with sizes that the tensor cores have; `None` for any other.
pub(super) fn lower(kernel: &Kernel, gpu: &Gpu) -> Option<Lowered> {
    let product = Product::of(kernel)?;
    let form = Form::of(&product, gpu.shared_bytes as usize)?;
    let mut w = Writer::default();
    let pointers: Vec<Ssa> = kernel.params.iter().map(|_| w.fresh(Ty::Global)).collect();
    let step = w.fresh(Ty::Global);
    let a_map = w.fresh(Ty::Ptr);
    let c_map = form.wide.then(|| w.fresh(Ty::Ptr));
    let maps: Vec<Ssa> = [a_map].into_iter().chain(c_map).collect();
    w.effect("nvvm.griddepcontrol launch_dependents");
    let shared = w.nullary("llvm.mlir.addressof @smem", Ty::Shared);
    let thread = w.special_register("tid.x");
    let lane = w.modulo(thread, 32);
    let symbol = Sym::ALL.iter().position(|s| Some(*s) == row_symbol(&product)).unwrap_or(0);
    let at = w.offset(step, 4 * symbol as i64);
    let rows = w.load(at, I32, 4);
    let mut lower = Lower { product, form, w, pointers, a_map, c_map, shared, thread, lane, rows, stack: None };
    lower.reserve();
    lower.begin();
    lower.roles();
    let launch = lower.launch();
    let head = signature(kernel, &lower.pointers, step, &maps, [launch.threads as usize, launch.cluster as usize, 1]);
    let text = format!("module {{\n{}\n{}}}\n", shared::GLOBAL, lower.w.llvm_function(&head));
    Some(Lowered { text, launch: Some(launch) })
}

fn row_symbol(p: &Product<'_>) -> Option<Sym> {
    match p.param(p.a).ty.dims.first() {
        Some(Dim::Sym(s)) => Some(*s),
        _ => None,
    }
}

impl Lower<'_> {
    /// Barriers that say a stage is full, then those that say it is empty.
    fn full(&mut self, stage: Ssa) -> Ssa {
        let bytes = self.w.times(stage, 8);
        let first = self.w.offset(self.shared, self.form.barriers_at as i64);
        self.w.advance(first, bytes)
    }

    fn empty(&mut self, stage: Ssa) -> Ssa {
        let full = self.full(stage);
        self.w.offset(full, 8 * self.form.stages as i64)
    }

    /// Where a stage's weights begin.
    fn weights_at(&mut self, stage: Ssa) -> Ssa {
        let bytes = self.w.times(stage, self.form.weight_bytes);
        self.w.advance(self.shared, bytes)
    }

    /// Where a stage's rows begin.
    fn rows_at(&mut self, stage: Ssa) -> Ssa {
        let first = self.w.offset(self.shared, self.form.rows_at as i64);
        let bytes = self.w.times(stage, self.form.row_bytes());
        self.w.advance(first, bytes)
    }

    /// The stage after, and the parity of its phase.
    fn next_stage(&mut self, stage: Ssa, parity: Ssa) -> [Ssa; 2] {
        let next = self.w.plus(stage, 1);
        let wraps = self.w.is("eq", next, self.form.stages);
        let first = self.w.i32(0);
        let next = self.w.select(wraps, first, next);
        let flip = self.w.convert("arith.extui", wraps, I32);
        [next, self.w.binary("arith.xori", parity, flip)]
    }

    fn begin(&mut self) {
        let first = self.w.is("eq", self.thread, 0);
        self.w.begin_if(first);
        for stage in 0..self.form.stages {
            let full = self.w.offset(self.shared, (self.form.barriers_at + 8 * stage) as i64);
            let empty = self.w.offset(full, 8 * self.form.stages as i64);
            self.w.init_barrier(full, 1);
            // one lane of each consumer warp
            self.w.init_barrier(empty, 4 * self.form.warpgroups);
        }
        if self.form.ctas > 1 {
            self.expect_sums();
        }
        self.w.fence_barriers();
        for map in [self.a_map].into_iter().chain(self.c_map) {
            self.w.prefetch_map(map);
        }
        self.w.end();
        self.arrive_in_cluster();
        self.w.effect("nvvm.barrier0");
    }

    fn roles(&mut self) {
        let consumers = self.form.warpgroups * form::WARPGROUP;
        let produces = self.w.is("uge", self.thread, consumers);
        self.w.begin_if(produces);
        self.produce();
        self.w.otherwise();
        self.consume();
        self.w.end();
    }

    fn launch(&self) -> GpuLaunch {
        let (p, f) = (&self.product, &self.form);
        let mut maps = vec![tensor_map(p, p.a, [p.line, f.rows])];
        if f.wide {
            maps.push(tensor_map(p, p.c, [f.box_columns(), form::M]));
        }
        GpuLaunch {
            threads: f.threads() as u32,
            shared_bytes: f.bytes as u32,
            cluster: f.ctas as u32,
            ctas_per_program: f.ctas as u32,
            max_ctas: f.wide.then_some(MULTIPROCESSORS),
            registers: None,
            spill_bytes: None,
            tensor_maps: maps,
        }
    }

    /// Index values of the kernel, given the program's place in its grid.
    fn indices(&mut self, program: &[Ssa]) -> HashMap<Val, Ssa> {
        let mut known = HashMap::new();
        for s in &self.product.kernel.body.stmts {
            let value = match &s.inst {
                Inst::ProgramId(d) => program[*d],
                Inst::Const(c) => self.w.ints(I32, *c),
                Inst::Index(op, a, b) => match (known.get(a), known.get(b)) {
                    (Some(a), Some(b)) => self.w.binary(crate::index::operation(*op), *a, *b),
                    _ => continue,
                },
                _ => continue,
            };
            known.insert(s.results[0], value);
        }
        known
    }

    /// First row and first column of the tile of a program.
    fn origin(&mut self, program: &[Ssa]) -> [Ssa; 2] {
        let known = self.indices(program);
        [known[&self.product.row], known[&self.product.col]]
    }
}

/// Rows of a tensor in boxes of so many columns and rows.
fn tensor_map(p: &Product<'_>, tensor: usize, [columns, rows]: [usize; 2]) -> TensorMap {
    let param = p.param(tensor);
    let bytes = param.ty.dtype.bits() / 8;
    let constant = |n: usize| Expr::Const(n as i64);
    TensorMap {
        tensor: tensor as u32,
        dtype: param.ty.dtype,
        dims: param.ty.dims.iter().rev().map(|d| d.expr()).collect(),
        strides: vec![constant(p.pitch(tensor) * bytes)],
        block: vec![columns as u32, rows as u32],
        swizzle: Swizzle::B128,
    }
}

/// The instruction's name of an operand's elements.
fn element(dtype: DType) -> &'static str {
    match dtype {
        DType::F16 => "f16",
        DType::F8e4m3 => "e4m3",
        _ => "bf16",
    }
}

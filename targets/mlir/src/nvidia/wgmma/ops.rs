//! Hopper's own operations, and 32-bit integers to address with. Inline PTX stands only where LLVM has no operation.

use super::form::LINE_BYTES;
use crate::text::{Elem, Ssa, Ty, Writer};

pub(super) const I32: Ty = Ty::Scalar(Elem::I32);

/// L2 keeps it no longer than it must: weights of a step of few rows, read once.
pub(super) const EVICT_FIRST: i64 = 0x12F0_0000_0000_0000;
/// L2 keeps it as long as it can: rows that every CTA reads.
pub(super) const EVICT_LAST: i64 = 0x14F0_0000_0000_0000;

/// A matrix operand in shared memory, K-major with 128-byte swizzle, without its address: bits 62 and up the swizzle, 32 to
/// 45 the distance of groups of eight rows, 16 to 29 one (not used with a swizzle); addresses and distances in 16 bytes, so that eight lines are half their bytes.
const DESCRIPTOR: i64 = (1 << 62) | ((LINE_BYTES as i64 / 2) << 32) | (1 << 16);

/// Nanoseconds that a thread may sleep before it looks at a barrier again.
const PATIENCE: i64 = 10_000_000;

impl Writer {
    pub(super) fn i32(&mut self, c: usize) -> Ssa {
        self.ints(I32, c as i64)
    }

    fn with(&mut self, op: &str, a: Ssa, c: usize) -> Ssa {
        let c = self.ints(a.ty, c as i64);
        self.binary(op, a, c)
    }

    pub(super) fn plus(&mut self, a: Ssa, c: usize) -> Ssa {
        if c == 0 { a } else { self.with("arith.addi", a, c) }
    }

    pub(super) fn times(&mut self, a: Ssa, c: usize) -> Ssa {
        if c == 1 { a } else { self.with("arith.muli", a, c) }
    }

    /// Quotient of a number that is not negative.
    pub(super) fn over(&mut self, a: Ssa, c: usize) -> Ssa {
        if c == 1 { a } else { self.with("arith.divui", a, c) }
    }

    /// Remainder of a number that is not negative.
    pub(super) fn modulo(&mut self, a: Ssa, c: usize) -> Ssa {
        self.with("arith.remui", a, c)
    }

    pub(super) fn xor(&mut self, a: Ssa, c: usize) -> Ssa {
        if c == 0 { a } else { self.with("arith.xori", a, c) }
    }

    pub(super) fn sum(&mut self, a: Ssa, b: Ssa) -> Ssa {
        self.binary("arith.addi", a, b)
    }

    pub(super) fn is(&mut self, predicate: &str, a: Ssa, c: usize) -> Ssa {
        let c = self.ints(a.ty, c as i64);
        self.compare(predicate, a, c)
    }

    /// To 64 bits, for global addresses.
    pub(super) fn wide(&mut self, a: Ssa) -> Ssa {
        self.convert("arith.extui", a, Ty::I64)
    }

    pub(super) fn special_register(&mut self, name: &str) -> Ssa {
        self.nullary(&format!("nvvm.read.ptx.sreg.{name}"), I32)
    }

    // barriers in shared memory

    /// A barrier that completes when so many threads arrived, and the bytes announced have.
    pub(super) fn init_barrier(&mut self, barrier: Ssa, arrivals: usize) {
        let n = self.i32(arrivals);
        self.effect(&format!("nvvm.mbarrier.init {barrier}, {n} : !llvm.ptr<3>, i32"));
    }

    pub(super) fn fence_barriers(&mut self) {
        self.effect("nvvm.fence.mbarrier.init");
    }

    /// Arrives, and announces bytes that the copy engine will bring.
    pub(super) fn expect(&mut self, barrier: Ssa, bytes: usize) {
        let n = self.i32(bytes);
        self.effect(&format!("nvvm.mbarrier.arrive.expect_tx {barrier}, {n} : !llvm.ptr<3>, i32"));
    }

    pub(super) fn arrive(&mut self, barrier: Ssa) {
        self.op(Ty::I64, format_args!("nvvm.mbarrier.arrive {barrier} : !llvm.ptr<3> -> i64"));
    }

    /// Waits for the phase of this parity to complete.
    pub(super) fn await_phase(&mut self, barrier: Ssa, parity: Ssa) {
        let ticks = self.ints(I32, PATIENCE);
        self.effect(&format!("nvvm.mbarrier.try_wait.parity {barrier}, {parity}, {ticks} : !llvm.ptr<3>, i32, i32"));
    }

    /// Waits for the other threads of a group that has barrier `id` to itself.
    pub(super) fn meet(&mut self, id: Ssa, threads: usize) {
        let n = self.i32(threads);
        self.effect(&format!("nvvm.barrier id = {id} number_of_threads = {n}"));
    }

    // the copy engine

    fn cluster_address(&mut self, p: Ssa) -> Ssa {
        let ty = Ty::Cluster;
        self.op(ty, format_args!("llvm.addrspacecast {p} : !llvm.ptr<3> to {ty}"))
    }

    /// Bytes next to each other, from global to shared memory.
    pub(super) fn copy_bytes(&mut self, to: Ssa, from: Ssa, barrier: Ssa, bytes: usize, policy: Option<i64>) {
        let (to, n) = (self.cluster_address(to), self.i32(bytes));
        let hint = self.policy(policy);
        self.effect(&format!(
            "nvvm.cp.async.bulk.shared.cluster.global {to}, {from}, {barrier}, {n}{hint} : !llvm.ptr<7>, !llvm.ptr<1>"
        ));
    }

    /// A box of a tensor, to shared memory; `at` is innermost first.
    pub(super) fn copy_box(&mut self, to: Ssa, map: Ssa, barrier: Ssa, at: [Ssa; 2], policy: Option<i64>) {
        let to = self.cluster_address(to);
        let [x, y] = at;
        let hint = self.policy(policy);
        self.effect(&format!(
            "nvvm.cp.async.bulk.tensor.shared.cluster.global {to}, {map}, {barrier}, box[{x}, {y}]{hint} : \
             !llvm.ptr<7>, !llvm.ptr"
        ));
    }

    fn policy(&mut self, policy: Option<i64>) -> String {
        policy.map_or(String::new(), |p| {
            let hint = self.int(p);
            format!(" l2_cache_hint = {hint}")
        })
    }

    /// A box from shared memory to a tensor, in a group of its own.
    pub(super) fn store_box(&mut self, map: Ssa, from: Ssa, [x, y]: [Ssa; 2]) {
        self.effect(&format!(
            "nvvm.cp.async.bulk.tensor.global.shared.cta {map}, {from}, box[{x}, {y}] : !llvm.ptr, !llvm.ptr<3>"
        ));
        self.effect("nvvm.cp.async.bulk.commit.group");
    }

    /// Waits until at most `pending` of this thread's groups of stores still read shared memory.
    pub(super) fn await_reads(&mut self, pending: usize) {
        self.effect(&format!("nvvm.cp.async.bulk.wait_group {pending} {{read}}"));
    }

    /// Waits until this thread's groups of stores are done.
    pub(super) fn await_stores(&mut self) {
        self.effect("nvvm.cp.async.bulk.wait_group 0");
    }

    /// Makes this thread's writes of shared memory visible to the copy engine.
    pub(super) fn fence_copies(&mut self) {
        self.effect("nvvm.fence.proxy {kind = #nvvm.proxy_kind<async.shared>, space = #nvvm.shared_space<cta>}");
    }

    pub(super) fn prefetch_map(&mut self, map: Ssa) {
        self.effect(&format!("nvvm.prefetch tensormap, {map} : !llvm.ptr"));
    }

    // matrices

    /// Descriptor of an operand at `p`.
    pub(super) fn descriptor(&mut self, p: Ssa) -> Ssa {
        let at = self.op(I32, format_args!("llvm.ptrtoint {p} : !llvm.ptr<3> to i32"));
        let at = self.with("arith.shrui", at, 4);
        let at = self.wide(at);
        let base = self.int(DESCRIPTOR);
        self.binary("arith.ori", at, base)
    }

    /// The descriptor of what lies so many bytes behind.
    pub(super) fn behind(&mut self, descriptor: Ssa, bytes: usize) -> Ssa {
        self.plus(descriptor, bytes >> 4)
    }

    /// `sums + a bᵀ`, or the product alone where `fresh` and `sums` is any value, for 64 rows of a, n of b and k columns of
    /// both, which are 32 bytes; not done before [`Writer::await_products`].
    pub(super) fn multiply(&mut self, [a, b]: [Ssa; 2], sums: Ssa, fresh: bool, [n, k]: [usize; 2], elem: &str) -> Ssa {
        let ty = sums.ty;
        let out = if fresh { "zero" } else { "one" };
        self.op(
            ty,
            format_args!(
                "nvvm.wgmma.mma_async {a}, {b}, {sums}, #nvvm.shape<m = 64, n = {n}, k = {k}>, \
                 D[<f32>, #nvvm.wgmma_scale_out<{out}>], A[<{elem}>, #nvvm.wgmma_scale_in<one>, <row>], \
                 B[<{elem}>, #nvvm.wgmma_scale_in<one>, <col>] : {ty} -> {ty}"
            ),
        )
    }

    /// The sums of the members of two structures.
    pub(super) fn add_members(&mut self, a: Ssa, b: Ssa) -> Ssa {
        let Ty::Struct(n, _) = a.ty else { return self.binary("arith.addf", a, b) };
        let mut sums = a;
        for i in 0..n {
            let both = [self.member(a, i), self.member(b, i)];
            let sum = self.binary("arith.addf", both[0], both[1]);
            sums = self.op(a.ty, format_args!("llvm.insertvalue {sum}, {sums}[{i}] : {}", a.ty));
        }
        sums
    }

    pub(super) fn begin_products(&mut self) {
        self.effect("nvvm.wgmma.fence.aligned");
    }

    pub(super) fn await_products(&mut self) {
        self.effect("nvvm.wgmma.commit.group.sync.aligned");
        self.effect("nvvm.wgmma.wait.group.sync.aligned 0");
    }

    /// Gives registers to the other warpgroups, or takes theirs.
    pub(super) fn resize_registers(&mut self, action: &str, registers: usize) {
        self.effect(&format!("nvvm.setmaxregister {action} {registers}"));
    }

    /// 8 × 8 matrices of 16-bit elements from the registers of a warp to rows in shared memory; lane 8 i + j has the address
    /// of row j of matrix i.
    pub(super) fn store_matrices(&mut self, p: Ssa, regs: &[Ssa], transposed: bool) {
        let layout = if transposed { "col" } else { "row" };
        let list = regs.iter().map(|r| r.to_string()).collect::<Vec<_>>().join(", ");
        let types = vec!["i32"; regs.len()].join(", ");
        self.effect(&format!(
            "nvvm.stmatrix {p}, {list} {{layout = #nvvm.mma_layout<{layout}>, \
             shape = #nvvm.ld_st_matrix_shape<m = 8, n = 8>, eltType = #nvvm.ld_st_matrix_elt_type<b16>}} : \
             !llvm.ptr<3>, {types}"
        ));
    }
}

//! Hopper's own operations, and 32-bit integers to address with. Inline PTX stands only where LLVM has no operation.

use super::form::LINE_BYTES;
use crate::text::{Elem, Ssa, Ty, Writer};

pub(in crate::nvidia) const I32: Ty = Ty::Scalar(Elem::I32);

/// L2 keeps it no longer than it must: weights of a step of few rows, read once.
pub(in crate::nvidia) const EVICT_FIRST: i64 = 0x12F0_0000_0000_0000;
/// L2 keeps it as long as it can: rows that every CTA reads.
pub(in crate::nvidia) const EVICT_LAST: i64 = 0x14F0_0000_0000_0000;

/// A matrix operand in shared memory, K-major with 128-byte swizzle, without its address: bits 62 and up the swizzle, 32 to
/// 45 the distance of groups of eight rows, 16 to 29 one (not used with a swizzle); addresses and distances in 16 bytes, so that eight lines are half their bytes.
pub(in crate::nvidia) const DESCRIPTOR: i64 = (1 << 62) | ((LINE_BYTES as i64 / 2) << 32) | (1 << 16);

/// The bits of an address that a descriptor takes.
const ADDRESS: usize = 0x3ffff;

/// Nanoseconds that a thread may sleep before it looks at a barrier again.
const PATIENCE: i64 = 10_000_000;

impl Writer {
    pub(in crate::nvidia) fn i32(&mut self, c: usize) -> Ssa {
        self.ints(I32, c as i64)
    }

    fn with(&mut self, op: &str, a: Ssa, c: usize) -> Ssa {
        let c = self.ints(a.ty, c as i64);
        self.binary(op, a, c)
    }

    pub(in crate::nvidia) fn plus(&mut self, a: Ssa, c: usize) -> Ssa {
        if c == 0 { a } else { self.with("arith.addi", a, c) }
    }

    pub(in crate::nvidia) fn times(&mut self, a: Ssa, c: usize) -> Ssa {
        if c == 1 { a } else { self.with("arith.muli", a, c) }
    }

    /// Quotient of a number that is not negative.
    pub(in crate::nvidia) fn over(&mut self, a: Ssa, c: usize) -> Ssa {
        if c == 1 { a } else { self.with("arith.divui", a, c) }
    }

    /// Remainder of a number that is not negative.
    pub(in crate::nvidia) fn modulo(&mut self, a: Ssa, c: usize) -> Ssa {
        self.with("arith.remui", a, c)
    }

    pub(in crate::nvidia) fn xor(&mut self, a: Ssa, c: usize) -> Ssa {
        if c == 0 { a } else { self.with("arith.xori", a, c) }
    }

    pub(in crate::nvidia) fn sum(&mut self, a: Ssa, b: Ssa) -> Ssa {
        self.binary("arith.addi", a, b)
    }

    pub(in crate::nvidia) fn is(&mut self, predicate: &str, a: Ssa, c: usize) -> Ssa {
        let c = self.ints(a.ty, c as i64);
        self.compare(predicate, a, c)
    }

    /// To 64 bits, for global addresses.
    pub(in crate::nvidia) fn wide(&mut self, a: Ssa) -> Ssa {
        self.convert("arith.extui", a, Ty::I64)
    }

    pub(in crate::nvidia) fn special_register(&mut self, name: &str) -> Ssa {
        self.nullary(&format!("nvvm.read.ptx.sreg.{name}"), I32)
    }

    // barriers in shared memory

    /// A barrier that completes when so many threads arrived, and the bytes announced have.
    pub(in crate::nvidia) fn init_barrier(&mut self, barrier: Ssa, arrivals: usize) {
        let n = self.i32(arrivals);
        self.effect(&format!("nvvm.mbarrier.init {barrier}, {n} : !llvm.ptr<3>, i32"));
    }

    pub(in crate::nvidia) fn fence_barriers(&mut self) {
        self.effect("nvvm.fence.mbarrier.init");
    }

    /// Arrives, and announces bytes that the copy engine will bring.
    pub(in crate::nvidia) fn expect(&mut self, barrier: Ssa, bytes: usize) {
        let n = self.i32(bytes);
        self.effect(&format!("nvvm.mbarrier.arrive.expect_tx {barrier}, {n} : !llvm.ptr<3>, i32"));
    }

    pub(in crate::nvidia) fn arrive(&mut self, barrier: Ssa) {
        self.op(Ty::I64, format_args!("nvvm.mbarrier.arrive {barrier} : !llvm.ptr<3> -> i64"));
    }

    /// Waits for the phase of this parity to complete.
    pub(in crate::nvidia) fn await_phase(&mut self, barrier: Ssa, parity: Ssa) {
        let ticks = self.ints(I32, PATIENCE);
        self.effect(&format!("nvvm.mbarrier.try_wait.parity {barrier}, {parity}, {ticks} : !llvm.ptr<3>, i32, i32"));
    }

    /// Waits for the other threads of a group that has barrier `id` to itself.
    pub(in crate::nvidia) fn meet(&mut self, id: Ssa, threads: usize) {
        let n = self.i32(threads);
        self.effect(&format!("nvvm.barrier id = {id} number_of_threads = {n}"));
    }

    /// Waits for the other threads of the warp, and sees what they wrote and that they have read.
    pub(in crate::nvidia) fn meet_warp(&mut self) {
        let all = self.ints(I32, -1);
        self.effect(&format!("nvvm.bar.warp.sync {all} : i32"));
    }

    /// Arrives at barrier `id` of so many threads, and does not wait.
    pub(in crate::nvidia) fn arrive_at(&mut self, id: Ssa, threads: usize) {
        let n = self.i32(threads);
        self.effect(&format!("nvvm.barrier.arrive id = {id} number_of_threads = {n}"));
    }

    // a thread's own memory: what is volatile stays there

    pub(super) fn store_volatile(&mut self, value: Ssa, p: Ssa) {
        self.effect(&format!("llvm.store volatile {value}, {p} {{alignment = 8 : i64}} : {}, {}", value.ty, p.ty));
    }

    pub(super) fn load_volatile(&mut self, p: Ssa, ty: Ty) -> Ssa {
        self.op(ty, format_args!("llvm.load volatile {p} {{alignment = 8 : i64}} : {} -> {ty}", p.ty))
    }

    // other CTAs of the cluster

    /// The address of the same place in the shared memory of CTA `rank`.
    pub(super) fn address_of(&mut self, p: Ssa, rank: Ssa) -> Ssa {
        let theirs = self.intrinsic("llvm.nvvm.mapa.shared.cluster", &[p, rank], Ty::Cluster);
        self.op(I32, format_args!("llvm.ptrtoint {theirs} : {} to i32", Ty::Cluster))
    }

    /// Four f32 to an address of another CTA, whose barrier counts their bytes.
    pub(super) fn store_to_cta(&mut self, to: Ssa, values: &[Ssa], barrier: Ssa) {
        let names = values.iter().map(Ssa::to_string).collect::<Vec<_>>().join(", ");
        self.effect(&format!(
            "llvm.inline_asm has_side_effects asm_dialect = att \
             \"st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [$0], {{$1, $2, $3, $4}}, [$5];\", \
             \"r,f,f,f,f,r\" {to}, {names}, {barrier} : (i32, f32, f32, f32, f32, i32) -> ()"
        ));
    }

    // the copy engine

    fn cluster_address(&mut self, p: Ssa) -> Ssa {
        let ty = Ty::Cluster;
        self.op(ty, format_args!("llvm.addrspacecast {p} : !llvm.ptr<3> to {ty}"))
    }

    /// Bytes next to each other, from global to shared memory.
    pub(in crate::nvidia) fn copy_bytes(
        &mut self,
        to: Ssa,
        from: Ssa,
        barrier: Ssa,
        bytes: usize,
        policy: Option<i64>,
    ) {
        let (to, n) = (self.cluster_address(to), self.i32(bytes));
        let hint = self.policy(policy);
        self.effect(&format!(
            "nvvm.cp.async.bulk.shared.cluster.global {to}, {from}, {barrier}, {n}{hint} : !llvm.ptr<7>, !llvm.ptr<1>"
        ));
    }

    /// A box of a tensor, to shared memory; `at` is innermost first.
    pub(in crate::nvidia) fn copy_box(&mut self, to: Ssa, map: Ssa, barrier: Ssa, at: &[Ssa], policy: Option<i64>) {
        let to = self.cluster_address(to);
        let at = at.iter().map(Ssa::to_string).collect::<Vec<_>>().join(", ");
        let hint = self.policy(policy);
        self.effect(&format!(
            "nvvm.cp.async.bulk.tensor.shared.cluster.global {to}, {map}, {barrier}, box[{at}]{hint} : \
             !llvm.ptr<7>, !llvm.ptr"
        ));
    }

    /// A box of a tensor, to L2.
    pub(in crate::nvidia) fn prefetch_box(&mut self, map: Ssa, at: &[Ssa]) {
        let at = at.iter().map(Ssa::to_string).collect::<Vec<_>>().join(", ");
        self.effect(&format!("nvvm.cp.async.bulk.tensor.prefetch {map}, box[{at}] : !llvm.ptr"));
    }

    fn policy(&mut self, policy: Option<i64>) -> String {
        policy.map_or(String::new(), |p| {
            let hint = self.int(p);
            format!(" l2_cache_hint = {hint}")
        })
    }

    /// A box from shared memory to a tensor, in a group of its own.
    pub(in crate::nvidia) fn store_box(&mut self, map: Ssa, from: Ssa, [x, y]: [Ssa; 2]) {
        self.effect(&format!(
            "nvvm.cp.async.bulk.tensor.global.shared.cta {map}, {from}, box[{x}, {y}] : !llvm.ptr, !llvm.ptr<3>"
        ));
        self.effect("nvvm.cp.async.bulk.commit.group");
    }

    /// Waits until at most `pending` of this thread's groups of stores still read shared memory.
    pub(in crate::nvidia) fn await_reads(&mut self, pending: usize) {
        self.effect(&format!("nvvm.cp.async.bulk.wait_group {pending} {{read}}"));
    }

    /// Waits until this thread's groups of stores are done.
    pub(in crate::nvidia) fn await_stores(&mut self) {
        self.effect("nvvm.cp.async.bulk.wait_group 0");
    }

    /// Makes this thread's writes of shared memory visible to the copy engine.
    pub(in crate::nvidia) fn fence_copies(&mut self) {
        self.effect("nvvm.fence.proxy {kind = #nvvm.proxy_kind<async.shared>, space = #nvvm.shared_space<cta>}");
    }

    pub(in crate::nvidia) fn prefetch_map(&mut self, map: Ssa) {
        self.effect(&format!("nvvm.prefetch tensormap, {map} : !llvm.ptr"));
    }

    // matrices

    /// Descriptor of an operand at `p`.
    pub(in crate::nvidia) fn descriptor(&mut self, p: Ssa) -> Ssa {
        self.descriptor_with(p, DESCRIPTOR)
    }

    /// A descriptor that is this one but for the address. In a cluster an address says which CTA's memory it is of, too.
    pub(in crate::nvidia) fn descriptor_with(&mut self, p: Ssa, base: i64) -> Ssa {
        let at = self.address(p);
        self.descriptor_at(at, base, 0)
    }

    /// What a descriptor has of an address: 32 bits, to which distances are added in 16 bytes.
    pub(in crate::nvidia) fn address(&mut self, p: Ssa) -> Ssa {
        let at = self.op(I32, format_args!("llvm.ptrtoint {p} : !llvm.ptr<3> to i32"));
        let at = self.with("arith.andi", at, ADDRESS);
        self.with("arith.shrui", at, 4)
    }

    /// The descriptor of what lies so many bytes behind that.
    pub(in crate::nvidia) fn descriptor_at(&mut self, at: Ssa, base: i64, bytes: usize) -> Ssa {
        // one addition of 32 bits beside a constant: what is above is not the address's
        let low = self.plus(at, (base & i64::from(u32::MAX)) as usize + (bytes >> 4));
        let low = self.wide(low);
        let high = self.int(base >> 32 << 32);
        self.binary("arith.ori", low, high)
    }

    /// The number that the warp's first lane has: the assembler keeps what is computed of it once for all lanes.
    pub(in crate::nvidia) fn uniform(&mut self, v: Ssa) -> Ssa {
        let [all, first, clamp] = [-1, 0, 31].map(|c| self.ints(I32, c));
        self.intrinsic("llvm.nvvm.shfl.sync.idx.i32", &[all, v, first, clamp], I32)
    }

    /// The descriptor of what lies so many bytes behind.
    pub(in crate::nvidia) fn behind(&mut self, descriptor: Ssa, bytes: usize) -> Ssa {
        self.plus(descriptor, bytes >> 4)
    }

    /// `sums + a bᵀ`, or the product alone where `fresh` and `sums` is any value, for 64 rows of a, n of b and k columns of
    /// both, which are 32 bytes; not done before [`Writer::await_products`].
    pub(in crate::nvidia) fn multiply(
        &mut self,
        [a, b]: [Ssa; 2],
        sums: Ssa,
        fresh: bool,
        [n, k]: [usize; 2],
        elem: &str,
    ) -> Ssa {
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

    /// A structure of these members.
    pub(super) fn structure(&mut self, members: &[Ssa]) -> Ssa {
        let ty = Ty::Struct(members.len(), Elem::F32);
        let empty = self.nullary("llvm.mlir.undef", ty);
        let insert = |all, (i, m): (usize, &Ssa)| self.op(ty, format_args!("llvm.insertvalue {m}, {all}[{i}] : {ty}"));
        members.iter().enumerate().fold(empty, insert)
    }

    /// The sums of the members of two structures.
    pub(in crate::nvidia) fn add_members(&mut self, a: Ssa, b: Ssa) -> Ssa {
        let Ty::Struct(n, _) = a.ty else { return self.binary("arith.addf", a, b) };
        let mut sums = a;
        for i in 0..n {
            let both = [self.member(a, i), self.member(b, i)];
            let sum = self.binary("arith.addf", both[0], both[1]);
            sums = self.op(a.ty, format_args!("llvm.insertvalue {sum}, {sums}[{i}] : {}", a.ty));
        }
        sums
    }

    pub(in crate::nvidia) fn begin_products(&mut self) {
        self.effect("nvvm.wgmma.fence.aligned");
    }

    pub(in crate::nvidia) fn await_products(&mut self) {
        self.commit_products();
        self.await_groups(0);
    }

    /// Makes a group of the products begun since the last.
    pub(in crate::nvidia) fn commit_products(&mut self) {
        self.effect("nvvm.wgmma.commit.group.sync.aligned");
    }

    /// Waits until at most `pending` groups of products are under way.
    pub(in crate::nvidia) fn await_groups(&mut self, pending: usize) {
        self.effect(&format!("nvvm.wgmma.wait.group.sync.aligned {pending}"));
    }

    /// The same values, which nothing that is computed from them may come before: products write their sums, and read their
    /// registers, behind the compiler's back.
    pub(in crate::nvidia) fn pinned(&mut self, values: &[Ssa]) -> Vec<Ssa> {
        let class = if values[0].ty == I32 { "r" } else { "f" };
        let outputs = values.iter().map(|_| format!("={class}"));
        let tied = (0..values.len()).map(|i| i.to_string());
        let constraints: Vec<String> = outputs.chain(tied).collect();
        self.assembly("", &constraints, values, values.len())
    }

    /// `sums + a b` for 64 rows of a, in registers, 16 of k, and n columns of b, whose lines are rows of k; not done before
    /// [`Writer::await_groups`]. LLVM has the instruction with both operands in shared memory alone.
    pub(in crate::nvidia) fn multiply_registers(&mut self, a: &[Ssa], b: Ssa, sums: &[Ssa], elem: &str) -> Vec<Ssa> {
        self.registers_with(a, b, sums, elem, true)
    }

    /// The same with `bᵀ`: its lines are rows of n.
    pub(super) fn multiply_registers_by_rows(&mut self, a: &[Ssa], b: Ssa, sums: &[Ssa], elem: &str) -> Vec<Ssa> {
        self.registers_with(a, b, sums, elem, false)
    }

    fn registers_with(&mut self, a: &[Ssa], b: Ssa, sums: &[Ssa], elem: &str, transposed: bool) -> Vec<Ssa> {
        let n = sums.len();
        let transposed = u32::from(transposed);
        let names = |range: std::ops::Range<usize>| range.map(|i| format!("${i}")).collect::<Vec<_>>().join(", ");
        let text = format!(
            "{{ .reg .pred p; setp.ne.b32 p, 1, 0; wgmma.mma_async.sync.aligned.m64n{}k16.f32.{elem}.{elem} {{{}}}, \
             {{{}}}, ${}, p, 1, 1, {transposed}; }}",
            2 * n,
            names(0..n),
            names(2 * n..2 * n + a.len()),
            2 * n + a.len(),
        );
        let outputs = sums.iter().map(|_| "=f".to_string());
        let tied = (0..n).map(|i| i.to_string());
        let registers = a.iter().map(|_| "r".to_string());
        let constraints: Vec<String> = outputs.chain(tied).chain(registers).chain(["l".to_string()]).collect();
        let args = [sums, a, &[b]].concat();
        self.assembly(&text, &constraints, &args, n)
    }

    /// `bits & mask | ones` as one instruction, which the assembler does not make of two with constants.
    pub(super) fn select_or(&mut self, bits: Ssa, mask: Ssa, ones: i64) -> Ssa {
        let constraints = ["=r", "r", "r"].map(str::to_string);
        let text = format!("lop3.b32 $0, $1, $2, {ones}, 0xEA;");
        self.assembly(&text, &constraints, &[bits, mask], 1)[0]
    }

    /// Inline assembly with `outputs` results of the first argument's type.
    fn assembly(&mut self, text: &str, constraints: &[String], args: &[Ssa], outputs: usize) -> Vec<Ssa> {
        let of = args[0].ty;
        let elem = if of == I32 { Elem::I32 } else { Elem::F32 };
        let result = if outputs == 1 { of } else { Ty::Struct(outputs, elem) };
        let join = |parts: Vec<String>| parts.join(", ");
        let types = join(args.iter().map(|a| a.ty.to_string()).collect());
        let names = join(args.iter().map(Ssa::to_string).collect());
        let all = self.op(
            result,
            format_args!(
                "llvm.inline_asm has_side_effects asm_dialect = att \"{text}\", \"{}\" {names} : ({types}) -> {result}",
                constraints.join(",")
            ),
        );
        (0..outputs).map(|i| self.member(all, i)).collect()
    }

    /// Gives registers to the other warpgroups, or takes theirs.
    pub(in crate::nvidia) fn resize_registers(&mut self, action: &str, registers: usize) {
        self.effect(&format!("nvvm.setmaxregister {action} {registers}"));
    }

    /// 8 × 8 matrices of 16-bit elements from the registers of a warp to rows in shared memory; lane 8 i + j has the address
    /// of row j of matrix i.
    pub(in crate::nvidia) fn store_matrices(&mut self, p: Ssa, regs: &[Ssa], transposed: bool) {
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

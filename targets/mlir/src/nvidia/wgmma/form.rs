//! How a product is spread over a multiprocessor: which operand is the instruction's M, how many warpgroups multiply, what
//! lies where in shared memory. A function of the kernel's numbers alone.
//!
//! Whatever the form, an element of the result is summed over K in one order: forms give the same bits.

use super::{
    packed::Packed,
    product::{Product, UNIT},
    split::{ctas, has_halves},
};
use rvllm_ir::types::DType;

/// Bytes of a line of shared memory.
pub(super) const LINE_BYTES: usize = 128;
/// Rows of the instruction's M, and of a block of weights.
pub(super) const M: usize = 64;
/// Rows of M of a warp that lie next to each other in a thread's registers.
const GROUP: usize = 8;
/// Bytes of a block of weights.
pub(super) const BLOCK_BYTES: usize = M * LINE_BYTES;
/// Largest N of the instruction.
const MAX_N: usize = 256;
/// Rows of the result from which on they are the instruction's M.
const WIDE: usize = 128;
/// Consumer warpgroups of a wide form.
const WIDE_WARPGROUPS: usize = 2;
/// Accumulator registers of a thread, at most.
const MAX_SUMS: usize = 128;
/// The same, where sums of a line have accumulators of their own.
const MAX_ALL_SUMS: usize = 192;
/// Threads of a warpgroup.
pub(super) const WARPGROUP: usize = 128;
/// Bytes that rows of a narrow form's result are apart beyond their length: neighbouring rows fall into other banks.
const PAD: usize = 16;
/// Bytes of a box that the copy engine stores: 64 lines.
pub(super) const BOX_BYTES: usize = M * LINE_BYTES;
/// Row tiles that neighbouring CTAs of a persistent kernel share, so that what they read of both operands stays in L2.
pub(super) const RASTER: usize = 16;

/// Sizes and places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Form {
    /// Rows of the result are the instruction's M (tiles of many rows); otherwise weights are (few rows).
    pub(super) wide: bool,
    /// The sums of each line of K are added to the accumulators as f32. Why: of products of 8-bit numbers the tensor cores add
    /// up few bits.
    pub(super) promotes: bool,
    /// The sums over each half of K are added at the end.
    pub(super) halves: bool,
    /// CTAs of a cluster that share a tile, each of which has a half of K.
    pub(super) ctas: usize,
    /// Warpgroups that multiply.
    pub(super) warpgroups: usize,
    /// Rows of weights of a tile, over all matrices.
    pub(super) weights: usize,
    /// Rows of the result of a tile.
    pub(super) rows: usize,
    /// Lines of K of a stage, and stages of work of a tile.
    pub(super) lines: usize,
    pub(super) steps: usize,
    /// Stages of the ring.
    pub(super) stages: usize,
    /// Bytes of an element of the result.
    pub(super) out_bytes: usize,
    /// Columns of the result that one warpgroup of a narrow form has.
    pub(super) features: usize,
    /// Columns of the result from one warp of a narrow form's to the next one's, and between those of a thread's rows of M.
    pub(super) warp_features: usize,
    pub(super) row_features: usize,
    /// How weights of 4 bits come.
    pub(super) packed: Option<Packed>,
    /// Columns of the result that a thread of a narrow form has for a row of it.
    pub(super) several: usize,
    /// Bytes of weights of a stage, and of their scales.
    pub(super) weight_bytes: usize,
    pub(super) scale_bytes: usize,
    /// Where rows, the result, and the barriers begin; and the end.
    pub(super) rows_at: usize,
    pub(super) out_at: usize,
    pub(super) barriers_at: usize,
    /// Where sums of the other CTA come in, behind their barrier.
    pub(super) slots_at: usize,
    pub(super) bytes: usize,
}

impl Form {
    /// The form of a product where `shared` bytes are to be had; `None` where no instruction has its sizes.
    pub(super) fn of(p: &Product<'_>, shared: usize) -> Option<Form> {
        let weights = p.n * p.matrices();
        // the copy engine stores whole units
        let halves = has_halves(p);
        let ctas = if halves { ctas(p) } else { 1 };
        let wide = p.m >= WIDE && p.alignment(p.c) == UNIT && p.groups.is_none() && ctas == 1;
        let (sums, fits) =
            if wide { (wide_sums(p.m, weights), is_wide(p, weights)) } else { (p.m / 2, is_narrow(p, weights)) };
        let promotes = p.param(p.a).ty.dtype == DType::F8e4m3;
        let line_sums = if wide { weights / 2 } else { p.m / 2 };
        if !fits || sums > MAX_SUMS || (promotes && sums + line_sums > MAX_ALL_SUMS) {
            return None;
        }
        let warpgroups = if wide { WIDE_WARPGROUPS } else { weights.div_ceil(M) };
        // a stage never reaches past the last line
        let depth = if halves { p.depth / 2 } else { p.depth };
        let whole = |l: &usize| depth.is_multiple_of(*l) && p.groups.is_none_or(|g| g.are_whole(*l * p.line));
        let lines = (1..=p.lines).rev().find(whole)?;
        let packed = p.groups.map(|groups| Packed::of(p, groups, lines));
        let out_bytes = p.param(p.c).ty.dtype.bits() / 8;
        let features = M.min(weights) / p.matrices();
        let finished = finished_rows(p.m, ctas);
        let out = if wide { warpgroups * 2 * BOX_BYTES } else { warpgroups * finished * (features * out_bytes + PAD) };
        let slots = if ctas > 1 { 16 + finished * weights * 4 } else { 0 };
        let weight_bytes = packed.as_ref().map_or(lines * LINE_BYTES * weights, |of| of.value_bytes(weights));
        let scale_bytes = packed.as_ref().map_or(p.line_scale_bytes(weights, lines), |of| of.scale_bytes(weights));
        let stage = weight_bytes + lines * LINE_BYTES * p.m + scale_bytes;
        // half a block of weights is read as a whole one, whatever lies behind it
        let behind = if weights < M && packed.is_none() { BLOCK_BYTES / 2 } else { 0 };
        let room = shared.checked_sub(out + slots + behind)?;
        let steps = p.depth / lines / ctas;
        let stages = p.stages.min(room / (stage + 16));
        let stages = if wide { stages } else { stages.min(steps) };
        let rows_at = stages * weight_bytes;
        let several = if p.matrices() == 1 && (packed.is_none() || weights >= M) { 2 } else { 1 };
        let warp_features = if packed.is_some() { GROUP } else { GROUP * several };
        let row_features = if packed.is_some() { M / 2 } else { GROUP };
        let out_at = (stages * stage).next_multiple_of(1024);
        let barriers_at = (out_at + out).next_multiple_of(16);
        // a stage of weights of 4 bits is released when the next one is there
        let fewest = if packed.is_some() && steps > 1 { 2 } else { 1 };
        (stages >= fewest).then_some(Form {
            wide,
            promotes,
            halves,
            ctas,
            warpgroups,
            weights,
            rows: p.m,
            lines,
            steps,
            stages,
            out_bytes,
            features,
            warp_features,
            row_features,
            several,
            packed,
            weight_bytes,
            scale_bytes,
            rows_at,
            out_at,
            barriers_at,
            slots_at: (barriers_at + 16 * stages + 16).next_multiple_of(16),
            bytes: (barriers_at + 16 * stages + slots).max(rows_at + behind),
        })
    }

    /// Where a stage's scales begin, before those of the next.
    pub(super) fn scales_at(&self) -> usize {
        self.rows_at + self.stages * self.row_bytes()
    }

    /// Bytes of rows of a stage.
    pub(super) fn row_bytes(&self) -> usize {
        self.lines * LINE_BYTES * self.rows
    }

    /// Rows of a tile that one CTA finishes: both have some where that is whole groups of eight, otherwise the first has all.
    pub(super) fn finished_rows(&self) -> usize {
        finished_rows(self.rows, self.ctas)
    }

    /// Bytes of sums that the other CTA sends.
    pub(super) fn slot_bytes(&self) -> usize {
        self.finished_rows() * self.weights * 4
    }

    /// The instruction's N.
    pub(super) fn n(&self) -> usize {
        if self.wide { self.weights } else { self.rows }
    }

    /// Instructions of one warpgroup that share a slice of K.
    pub(super) fn blocks(&self) -> usize {
        if self.wide { self.rows / (M * WIDE_WARPGROUPS) } else { 1 }
    }

    /// Accumulators of a thread for one instruction.
    pub(super) fn sums(&self) -> usize {
        self.n() / 2
    }

    /// Whether registers move from the producer to consumers.
    pub(super) fn moves_registers(&self) -> bool {
        self.wide || (self.packed.is_some() && self.warpgroups == WIDE_WARPGROUPS && self.sums() > MAX_SUMS / 2)
    }

    /// Threads of a CTA: a whole producer warpgroup where registers move between warpgroups.
    pub(super) fn threads(&self) -> usize {
        WARPGROUP * self.warpgroups + if self.moves_registers() { WARPGROUP } else { 32 }
    }

    /// Bytes from a row of a narrow form's result in shared memory to the next.
    pub(super) fn out_pitch(&self) -> usize {
        self.features * self.out_bytes + PAD
    }

    /// Columns of a box of the result.
    pub(super) fn box_columns(&self) -> usize {
        LINE_BYTES / self.out_bytes
    }
}

fn finished_rows(rows: usize, ctas: usize) -> usize {
    if rows.is_multiple_of(8 * ctas) { rows / ctas } else { rows }
}

fn wide_sums(m: usize, weights: usize) -> usize {
    m / (M * WIDE_WARPGROUPS) * weights / 2
}

/// Whole boxes of columns, whole blocks of weights.
fn is_wide(p: &Product<'_>, weights: usize) -> bool {
    let columns = LINE_BYTES * 8 / p.param(p.c).ty.dtype.bits();
    let sizes = p.m.is_multiple_of(M * WIDE_WARPGROUPS) && p.m <= 256 && weights.is_multiple_of(M) && weights <= MAX_N;
    sizes && p.n.is_multiple_of(columns)
}

/// At most two matrices, whose rows the same thread has; whole blocks of weights or half of one.
fn is_narrow(p: &Product<'_>, weights: usize) -> bool {
    let blocks = (weights.is_multiple_of(M) && weights <= 4 * M) || (weights == M / 2 && p.matrices() == 1);
    p.m.is_multiple_of(8) && p.matrices() <= 2 && blocks
}

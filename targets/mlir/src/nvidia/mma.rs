//! Matrix products: tensor-core instructions of 16 × 8 × 16 on 16-bit types, fused multiply-adds on f32.
//!
//! k is taken in ascending order, 16 values an instruction (or one a multiply-add), whatever the tile's shape: how an accumulator
//! is cut into tiles changes no bit.

use super::{
    Lower,
    operand::{INSTRUCTION_K, Operand, View},
    place::{Place, Warps, matrix},
    tile::Tile,
};
use crate::{
    Error,
    index::Index,
    text::{Elem, Ssa, Ty},
};
use rvllm_ir::{tile::IndexOp, types::DType};

const I32: Ty = Ty::Scalar(Elem::I32);

/// Where the fragments of `a` come from.
enum Source {
    Registers(Vec<Ssa>),
    /// Addresses that this lane gives of each fragment's first k values.
    Shared(Vec<Ssa>, View),
}

impl Lower<'_> {
    /// `acc + a · bᵀ`.
    pub(crate) fn mma(&mut self, a: &Operand, b: &Operand, acc: &Tile) -> Result<Tile, Error> {
        let shape = matrix(&acc.shape);
        let place = Place::Fragments(shape);
        let sums = self.settle(acc, place);
        let sums = match a.dtype {
            DType::Bf16 | DType::F16 => self.tensor_cores(a, b, sums, shape),
            DType::F32 => self.multiply_add(a, b, sums, shape),
            other => return Err(self.unsupported(format!("mma of {other} operands"))),
        };
        Ok(self.tile_at(&acc.shape, acc.dtype, place, sums))
    }

    fn tensor_cores(&mut self, a: &Operand, b: &Operand, mut sums: Vec<Ssa>, shape: [usize; 2]) -> Vec<Ssa> {
        let warps = self.warps(shape);
        let source = match self.fragments_of(a, shape) {
            Some(regs) => Source::Registers(regs),
            None => {
                let view = self.shared_view(a);
                self.read_region(view.region);
                Source::Shared(self.a_addresses(view, warps), view)
            }
        };
        let view = self.shared_view(b);
        self.read_region(view.region);
        let columns = self.b_addresses(view, warps);
        let k = matrix(&a.shape)[1];
        for step in 0..k.div_ceil(INSTRUCTION_K) {
            let bs: Vec<[Ssa; 2]> = columns.iter().flat_map(|p| self.b_fragments(view, *p, step)).collect();
            for i in 0..warps.fragments[0] {
                let fa = self.a_fragment(&source, a.dtype, i, step, k);
                for (j, fb) in bs.iter().take(warps.fragments[1]).enumerate() {
                    let first = 4 * (i * warps.fragments[1] + j);
                    let next = self.instruction(a.dtype, &fa, fb, &sums[first..first + 4]);
                    sums[first..first + 4].copy_from_slice(&next);
                }
            }
        }
        sums
    }

    fn instruction(&mut self, dtype: DType, a: &[Ssa], b: &[Ssa], sums: &[Ssa]) -> Vec<Ssa> {
        let result = Ty::Struct(4, Elem::F32);
        let d = if dtype == DType::Bf16 {
            let args = [a, b, sums].concat();
            self.w.intrinsic("llvm.nvvm.mma.m16n8k16.row.col.bf16", &args, result)
        } else {
            // of f16 the intrinsic takes pairs as vectors
            let pairs: Vec<Ssa> = a.iter().chain(b).map(|v| self.w.retype(*v, Ty::Vector(2, Elem::F16))).collect();
            let args = [&pairs[..], sums].concat();
            self.w.intrinsic("llvm.nvvm.mma.m16n8k16.row.col.f32.f32", &args, result)
        };
        (0..4).map(|i| self.w.member(d, i)).collect()
    }

    fn a_fragment(&mut self, source: &Source, dtype: DType, i: usize, step: usize, k: usize) -> Vec<Ssa> {
        match source {
            Source::Shared(addresses, view) => {
                let distance = if view.form.columns { INSTRUCTION_K * view.form.pitch() } else { INSTRUCTION_K * 2 };
                let p = self.w.offset(addresses[i], (step * distance) as i64);
                self.load_matrices(p, view.form.columns)
            }
            Source::Registers(regs) => {
                // two fragments of the accumulator side by side are one of a
                let fragment = i * k.div_ceil(8) + 2 * step;
                let [left, right] = [fragment, fragment + 1].map(|f| &regs[4 * f..4 * f + 4]);
                let pairs = [&left[..2], &left[2..], &right[..2], &right[2..]];
                pairs.map(|p| self.pack(p, dtype)).to_vec()
            }
        }
    }

    /// Two numbers as one register of 16-bit elements.
    pub(crate) fn pack(&mut self, items: &[Ssa], dtype: DType) -> Ssa {
        let pair = self.narrow(items, dtype);
        self.w.retype(pair, I32)
    }

    /// Four 8 × 8 matrices, whose rows' addresses the lanes give; `transposed` where lines are columns.
    fn load_matrices(&mut self, p: Ssa, transposed: bool) -> Vec<Ssa> {
        let trans = if transposed { ".trans" } else { "" };
        let name = format!("llvm.nvvm.ldmatrix.sync.aligned.m8n8.x4{trans}.b16.p3");
        let loaded = self.w.intrinsic(&name, &[p], Ty::Struct(4, Elem::I32));
        (0..4).map(|i| self.w.member(loaded, i)).collect()
    }

    /// The fragments of two neighbouring groups of eight columns.
    fn b_fragments(&mut self, view: View, p: Ssa, step: usize) -> [[Ssa; 2]; 2] {
        let distance = if view.form.columns { INSTRUCTION_K * view.form.pitch() } else { INSTRUCTION_K * 2 };
        let p = self.w.offset(p, (step * distance) as i64);
        let m = self.load_matrices(p, view.form.columns);
        [[m[0], m[1]], [m[2], m[3]]]
    }

    /// What a lane's index says of the four matrices that the lanes address: the line within a matrix, and which half of the
    /// fragment the matrix is in, first and second.
    fn lane_parts(&mut self) -> [Index; 3] {
        let [_, lane] = self.warp_lane();
        let line = self.w.rem(lane, 8);
        let eighth = self.w.div(lane, 8);
        let first = self.w.rem(eighth, 2);
        let second = self.w.div(lane, 16);
        [line, self.w.scale(first, 8), self.w.scale(second, 8)]
    }

    /// One address per fragment of a: its matrices are upper left, lower left, upper right, lower right.
    fn a_addresses(&mut self, view: View, warps: Warps) -> Vec<Ssa> {
        let [warp, _] = self.warp_at(warps);
        let first = self.w.scale(warp, 16 * warps.fragments[0]);
        let [line, lower, right] = self.lane_parts();
        let (row, k) = match view.form.columns {
            true => (lower, self.w.add(line, right)),
            false => (self.w.add(line, lower), right),
        };
        let first = self.w.add(first, row);
        (0..warps.fragments[0]).map(|i| self.matrix_line(view, first, 16 * i, k)).collect()
    }

    /// One address per two groups of eight columns: the matrices are both halves of k of one, then of the other.
    fn b_addresses(&mut self, view: View, warps: Warps) -> Vec<Ssa> {
        let [_, warp] = self.warp_at(warps);
        let first = self.w.scale(warp, 8 * warps.fragments[1]);
        let [line, half, other] = self.lane_parts();
        let (row, k) = match view.form.columns {
            true => (other, self.w.add(line, half)),
            false => (self.w.add(line, other), half),
        };
        let first = self.w.add(first, row);
        (0..warps.fragments[1].div_ceil(2)).map(|i| self.matrix_line(view, first, 16 * i, k)).collect()
    }

    /// Address of eight elements: of row `first + offset` from `k` on, or of column `k` from that row on.
    fn matrix_line(&mut self, view: View, first: Index, offset: usize, k: Index) -> Ssa {
        let row = self.w.add_const(first, offset);
        let last = if view.form.columns { view.form.rows.next_multiple_of(8) - 8 } else { view.form.rows - 1 };
        let row = self.at_most(row, last);
        let [line, within] = if view.form.columns { [k, row] } else { [row, k] };
        self.line_element(view, line, within)
    }

    fn at_most(&mut self, i: Index, last: usize) -> Index {
        if i.at_most(last as i64) { i } else { self.w.index(IndexOp::Min, i, Index::constant(last as i64)) }
    }

    /// One multiply-add per element and k value.
    fn multiply_add(&mut self, a: &Operand, b: &Operand, sums: Vec<Ssa>, shape: [usize; 2]) -> Vec<Ssa> {
        let [va, vb] = [a, b].map(|o| {
            let view = self.shared_view(o);
            self.read_region(view.region);
            view
        });
        let groups = self.groups(Place::Fragments(shape)).at;
        let k = matrix(&a.shape)[1];
        let bounds = [0, k as i64, 1].map(|c| self.w.int(c));
        let open = self.w.begin_loop(bounds, &sums);
        let i = Index::value(open.i);
        let mut next = vec![];
        for (g, [row, col]) in groups.into_iter().enumerate() {
            let x = self.number(va, row, i);
            for c in 0..2 {
                let col = self.w.add_const(col, c);
                let y = self.number(vb, col, i);
                next.push(self.w.fma(x, y, open.carried[2 * g + c]));
            }
        }
        self.w.end_loop(open, &next)
    }

    /// Element `[row, k]` of an f32 operand.
    fn number(&mut self, view: View, row: Index, k: Index) -> Ssa {
        let row = self.at_most(row, view.form.rows - 1);
        let [line, within] = if view.form.columns { [k, row] } else { [row, k] };
        let p = self.line_element(view, line, within);
        self.w.load(p, Ty::Scalar(Elem::F32), 4)
    }
}

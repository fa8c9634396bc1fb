//! Weights of 4 bits with scales for groups of K. They are streamed as they are stored; a thread that multiplies reads its
//! share of a line in one piece, makes numbers of it in registers, and gives those to the instruction as its M operand.
//!
//! Invariants: a number has the bits that the kernel's arithmetic gives it; the order of sums is that of any other weights.

use super::{
    Lower,
    form::{LINE_BYTES, M, WARPGROUP},
    ops::{EVICT_FIRST, I32},
    product::{Finder, Product},
};
use crate::text::{Elem, Ssa, Ty};
use rvllm_ir::{
    tile::{Access, FRAGMENT_COLUMNS, FRAGMENT_ROWS, IndexOp, Inst, MapOp, MemLayout, Val},
    types::DType,
};

/// Bytes of a piece: 32 rows of a line of K.
const PIECE_BYTES: usize = FRAGMENT_ROWS * FRAGMENT_COLUMNS / 2;
/// Bytes of a piece that a thread has.
const THREAD_BYTES: usize = PIECE_BYTES / WARPGROUP;
/// Bytes of K of one instruction, of 16-bit elements.
const DEPTH_BYTES: usize = 32;
/// Instructions of a line.
const SLICES: usize = LINE_BYTES / DEPTH_BYTES;
/// What numbers of bf16 are made times: 2⁻³³. Sums of their products are f32, whose powers of two have room for that.
const SMALLER: f32 = f32::from_bits((127 - 33) << 23);
/// Rows of the result from which on neighbouring CTAs read the same weights again.
const REREAD: usize = 128;

/// What makes numbers of values: a scale, and a zero or one for all, of so many columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Groups {
    scales: usize,
    zeros: Option<usize>,
    columns: usize,
    /// Stands for zero where no group has a zero of its own.
    middle: i64,
}

impl Groups {
    /// Whether so many columns of K are whole groups, or equal parts of one.
    pub(super) fn are_whole(self, columns: usize) -> bool {
        columns.is_multiple_of(self.columns) || self.columns.is_multiple_of(columns)
    }

    /// Groups next to each other of a row of the scales: those of a line.
    fn adjacent(self) -> usize {
        (FRAGMENT_COLUMNS / self.columns).max(1)
    }

    /// Whether values, scales and zeros lie in pieces, of types that this lowering knows.
    pub(super) fn fit_layouts(self, p: &Product<'_>) -> bool {
        let lies = |tensor: usize, k: usize, of: &[DType]| {
            let param = p.param(tensor);
            param.layout == MemLayout::Fragments { k } && param.access == Access::Weight && of.contains(&param.ty.dtype)
        };
        // a thread's word is of half a line
        let half = FRAGMENT_COLUMNS / 2;
        (self.columns == half || self.columns.is_multiple_of(FRAGMENT_COLUMNS))
            && matches!(p.param(p.a).ty.dtype, DType::Bf16 | DType::F16)
            && lies(p.b, FRAGMENT_COLUMNS, &[DType::U4])
            && lies(self.scales, self.adjacent(), &[DType::F16, DType::Bf16, DType::F32])
            && self.zeros.is_none_or(|zeros| lies(zeros, self.adjacent(), &[DType::F16]))
    }
}

/// How a stage's weights lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Packed {
    groups: Groups,
    lines: usize,
    /// Bytes of a piece's scales, and of its zeros, in a stage.
    each: [usize; 2],
}

impl Packed {
    /// Stages of so many lines.
    pub(super) fn of(p: &Product<'_>, groups: Groups, lines: usize) -> Packed {
        let count = (lines * FRAGMENT_COLUMNS / groups.columns).max(1) * FRAGMENT_ROWS;
        let bytes = |tensor: usize| count * p.param(tensor).ty.dtype.bits() / 8;
        Packed { groups, lines, each: [bytes(groups.scales), groups.zeros.map_or(0, bytes)] }
    }

    /// Stages that share scales.
    fn sharing(&self) -> usize {
        (self.groups.columns / (self.lines * FRAGMENT_COLUMNS)).max(1)
    }

    /// Bytes of a stage's values, of so many rows.
    pub(super) fn value_bytes(&self, rows: usize) -> usize {
        rows / FRAGMENT_ROWS * self.lines * PIECE_BYTES
    }

    /// Bytes of a stage's scales and zeros: for each piece its scales, then its zeros.
    pub(super) fn scale_bytes(&self, rows: usize) -> usize {
        rows / FRAGMENT_ROWS * self.each.iter().sum::<usize>()
    }
}

impl Finder<'_, '_> {
    /// The values that an operand of iteration `i` is made of, and how.
    pub(super) fn dequantized(&self, i: Val, operand: Val) -> Option<(Val, Groups)> {
        let &[_, k] = &self.kernel.tile(operand).shape[..] else { return None };
        let Inst::Stage(rounded) = self.definitions.get(&operand)? else { return None };
        let Inst::Cast(number) = self.definitions.get(rounded)? else { return None };
        let [difference, scale] = self.binary(MapOp::Mul, *number)?;
        // a difference with a group's own zero is rounded
        let exact = self.rounded(difference).unwrap_or(difference);
        let [values, zero] = self.binary(MapOp::Sub, exact)?;
        let (scales, columns) = self.each_of_groups(i, values, scale)?;
        let (zeros, middle) = match self.definitions.get(&zero)? {
            Inst::Full(middle) if exact == difference => (None, *middle),
            _ => (Some(self.each_of_groups(i, values, zero).filter(|(_, of)| *of == columns)?.0), 0.0),
        };
        let known = middle.fract() == 0.0 && (0.0..16.0).contains(&middle) && (zeros.is_none() || exact != difference);
        let groups = Groups { scales, zeros, columns, middle: middle as i64 };
        (known && groups.are_whole(k)).then_some((values, groups))
    }

    pub(super) fn binary(&self, op: MapOp, v: Val) -> Option<[Val; 2]> {
        match self.definitions.get(&v)? {
            Inst::Map(found, args) if *found == op => args[..].try_into().ok(),
            _ => None,
        }
    }

    /// What was cast to another type and back to this.
    fn rounded(&self, v: Val) -> Option<Val> {
        let Inst::Cast(narrow) = self.definitions.get(&v)? else { return None };
        match self.definitions.get(narrow)? {
            Inst::Cast(of) => Some(*of),
            _ => None,
        }
    }

    /// The tensor of which `v` is an element for each group of the columns of `values`, and how many those are.
    fn each_of_groups(&self, i: Val, values: Val, v: Val) -> Option<(usize, usize)> {
        let Inst::Reshape(spread) = self.definitions.get(&v)? else { return None };
        let Inst::Broadcast(each, 2) = self.definitions.get(spread)? else { return None };
        let loaded = self.rounded(*each)?;
        let (Inst::Load { tensor, at }, Inst::Load { at: of_values, .. }) =
            (self.definitions.get(&loaded)?, self.definitions.get(&values)?)
        else {
            return None;
        };
        let (&[_, groups], &[_, k]) = (&self.kernel.tile(loaded).shape[..], &self.kernel.tile(values).shape[..]) else {
            return None;
        };
        let ((first, rows), (_, rows_of_values)) = (at.split_last()?, of_values.split_last()?);
        let columns = match self.definitions.get(first)? {
            Inst::Index(IndexOp::Div, column, by) if groups == 1 && self.is_scaled(*column, Some(i), k) => {
                usize::try_from(self.constant(*by)?).ok()?
            }
            _ => self.is_scaled(*first, Some(i), groups).then_some(k / groups)?,
        };
        (rows == rows_of_values && columns > 0).then_some((*tensor, columns))
    }
}

/// Where a thread's part of a stage lies.
struct Part {
    /// Its values in the first line of each of its pieces.
    values: Vec<Ssa>,
    /// The same of scales, and of zeros where there are some.
    scales: Vec<Ssa>,
    zeros: Vec<Ssa>,
}

impl Lower<'_> {
    fn packed_form(&self) -> &Packed {
        self.form.packed.as_ref().expect("invariant: only weights of 4 bits are asked for theirs")
    }

    /// Pieces of a tile.
    fn pieces(&self) -> usize {
        self.form.weights / FRAGMENT_ROWS
    }

    /// Where a piece's scales of a stage begin.
    fn piece_scales(&mut self, stage: Ssa, piece: usize) -> Ssa {
        let [scales, zeros] = self.packed_form().each;
        let all = self.packed_form().scale_bytes(self.form.weights);
        let first = self.w.offset(self.shared, (self.form.scales_at() + piece * (scales + zeros)) as i64);
        let bytes = self.w.times(stage, all);
        self.w.advance(first, bytes)
    }

    /// Brings the values, scales and zeros of a stage.
    pub(super) fn load_packed(&mut self, column: Ssa, stage: Ssa, step: Ssa) {
        let (full, values_at) = (self.full(stage), self.weights_at(stage));
        let Packed { groups, lines, each } = self.packed_form().clone();
        let step = self.step_of_all(step);
        let of_scales = self.w.over(step, self.packed_form().sharing());
        let row = self.w.times(column, self.product.matrices());
        let first = self.w.over(row, FRAGMENT_ROWS);
        let policy = (self.form.rows < REREAD).then_some(EVICT_FIRST);
        for piece in 0..self.pieces() {
            let from = self.piece_of(self.product.b, first, piece, step, lines * PIECE_BYTES);
            let to = self.w.offset(values_at, (piece * lines * PIECE_BYTES) as i64);
            self.w.copy_bytes(to, from, full, lines * PIECE_BYTES, policy);
            let mut to = self.piece_scales(stage, piece);
            for (tensor, bytes) in [Some(groups.scales), groups.zeros].into_iter().flatten().zip(each) {
                let from = self.piece_of(tensor, first, piece, of_scales, bytes);
                self.w.copy_bytes(to, from, full, bytes, policy);
                to = self.w.offset(to, bytes as i64);
            }
        }
    }

    /// Where a stage's part of a piece is, of so many bytes: of a tile past the last columns, of the last piece.
    pub(super) fn piece_of(&mut self, tensor: usize, first: Ssa, piece: usize, step: Ssa, bytes: usize) -> Ssa {
        let param = self.product.param(tensor);
        let dims: Vec<usize> = param.ty.dims.iter().filter_map(|d| d.constant()).collect();
        let MemLayout::Fragments { k } = param.layout else {
            unreachable!("invariant: `Groups::fit_layouts` checks the layout")
        };
        let columns = dims.last().map_or(0, |n| n.next_multiple_of(k));
        let pieces = param.layout.len(&dims) / (columns * FRAGMENT_ROWS);
        let row_bytes = param.ty.dtype.bytes(columns * FRAGMENT_ROWS);
        // where all pieces are there, they have addresses that differ by constants
        let (mut row, mut behind) = (first, piece * row_bytes);
        if !pieces.is_multiple_of(self.pieces()) {
            let (number, last) = (self.w.plus(first, piece), self.w.ints(I32, pieces as i64 - 1));
            (row, behind) = (self.w.binary("arith.minui", number, last), 0);
        }
        let row = self.w.wide(row);
        let row = self.w.times(row, row_bytes);
        let step = self.w.wide(step);
        let within = self.w.times(step, bytes);
        let at = self.w.sum(row, within);
        let base = self.pointers[tensor];
        let at = self.w.advance(base, at);
        self.w.offset(at, behind as i64)
    }

    /// The sums of a tile over so many stages, from this stage and parity on; hands back the next ones and the accumulators.
    ///
    /// Products are under way from one stage into the next, and those of a line while numbers of the next are made.
    pub(super) fn sum_packed(&mut self, [stage, parity]: [Ssa; 2], steps: Ssa) -> (Vec<Ssa>, Vec<Ssa>) {
        let zero = self.w.floats(Ty::Scalar(Elem::F32), 0.0);
        let init: Vec<Ssa> = [stage, parity, stage].into_iter().chain(vec![zero; self.form.sums()]).collect();
        let bounds = [self.w.i32(0), steps, self.w.i32(1)];
        let open = self.w.begin_loop(bounds, &init);
        let [stage, parity, before] = [open.carried[0], open.carried[1], open.carried[2]];
        let full = self.full(stage);
        self.w.await_phase(full, parity);
        let part = self.part(stage);
        // the registers of a line are its products' until those are done
        self.w.await_groups(self.form.lines - 1);
        let first = self.line_operands(&part, 0);
        let first = self.w.pinned(&first);
        self.w.await_groups(0);
        let later = self.w.is("ne", open.i, 0);
        self.w.begin_if(later);
        self.release(before);
        self.w.end();
        let sums = self.multiply_packed(stage, &part, first, &open.carried[3..]);
        let yields: Vec<Ssa> = self.next_stage(stage, parity).into_iter().chain([stage]).chain(sums).collect();
        let mut results = self.w.end_loop(open, &yields);
        self.w.await_groups(0);
        if self.form.halves && self.form.ctas == 1 {
            // the sums of the other half come from the same ring
            self.release(results[2]);
        }
        let sums = self.w.pinned(&results.split_off(3));
        let sums = self.as_meant(sums);
        let sums = self.w.structure(&sums);
        (results, vec![sums])
    }

    fn multiply_packed(&mut self, stage: Ssa, part: &Part, first: Vec<Ssa>, sums: &[Ssa]) -> Vec<Ssa> {
        let rows = self.rows_at(stage);
        let rows = self.w.descriptor(rows);
        let dtype = self.product.param(self.product.a).ty.dtype;
        let (mut sums, mut operands) = (sums.to_vec(), first);
        for line in 0..self.form.lines {
            if line > 0 {
                let made = self.line_operands(part, line);
                operands = self.w.pinned(&made);
            }
            self.w.begin_products();
            for (slice, a) in operands.chunks(4).enumerate() {
                let b = self.w.behind(rows, line * self.form.rows * LINE_BYTES + slice * DEPTH_BYTES);
                sums = self.w.multiply_registers_by_rows(a, b, &sums, super::element(dtype));
            }
            self.w.commit_products();
        }
        sums
    }

    fn part(&mut self, stage: Ssa) -> Part {
        let Packed { groups, lines, each } = self.packed_form().clone();
        let thread = self.w.modulo(self.thread, WARPGROUP);
        let group = self.w.over(self.thread, WARPGROUP);
        let mine = M.min(self.form.weights) / FRAGMENT_ROWS;
        let first = self.weights_at(stage);
        let share = self.w.times(group, mine * lines * PIECE_BYTES);
        let values = self.w.advance(first, share);
        let within = self.w.times(thread, THREAD_BYTES);
        let values = self.w.advance(values, within);
        let row = self.w.over(thread, WARPGROUP / FRAGMENT_ROWS);
        let scales = self.piece_scales(stage, 0);
        let share = self.w.times(group, mine * (each[0] + each[1]));
        let scales = self.w.advance(scales, share);
        let mut part = Part { values: vec![], scales: vec![], zeros: vec![] };
        for piece in 0..mine {
            part.values.push(self.w.offset(values, (piece * lines * PIECE_BYTES) as i64));
            let mut at = self.w.offset(scales, (piece * (each[0] + each[1])) as i64);
            for (tensor, to, bytes) in
                [(Some(groups.scales), &mut part.scales, each[0]), (groups.zeros, &mut part.zeros, each[1])]
            {
                let Some(tensor) = tensor else { continue };
                let bits = self.product.param(tensor).ty.dtype.bits();
                let of_row = self.w.times(row, groups.adjacent() * bits / 8);
                to.push(self.w.advance(at, of_row));
                at = self.w.offset(at, bytes as i64);
            }
        }
        part
    }

    /// The operands of a line's instructions: registers of the upper eight rows and of the lower, of the first eight columns,
    /// then of the others.
    fn line_operands(&mut self, part: &Part, line: usize) -> Vec<Ssa> {
        let pieces: Vec<Vec<Ssa>> = (0..part.values.len()).map(|piece| self.numbers(part, piece, line)).collect();
        let none = self.w.i32(0);
        let of = |piece: usize, i: usize| pieces.get(piece).map_or(none, |numbers| numbers[i]);
        (0..SLICES).flat_map(|s| [of(0, 2 * s), of(1, 2 * s), of(0, 2 * s + 1), of(1, 2 * s + 1)]).collect()
    }

    /// Numbers of a thread's part of a line of a piece, two to a register.
    fn numbers(&mut self, part: &Part, piece: usize, line: usize) -> Vec<Ssa> {
        let at = self.w.offset(part.values[piece], (line * PIECE_BYTES) as i64);
        let words = self.w.load(at, Ty::Vector(2, Elem::I32), THREAD_BYTES);
        let groups = self.packed_form().groups;
        let scales = self.each_of_words(groups.scales, part.scales[piece], line);
        let zeros = groups.zeros.map(|zeros| self.each_of_words(zeros, part.zeros[piece], line));
        let recipe = self.recipe(scales, zeros);
        (0..2).flat_map(|word| self.word_numbers(words, word, &recipe)).collect()
    }

    /// What the groups of a line have one of, for each of a thread's two words.
    fn each_of_words(&mut self, tensor: usize, at: Ssa, line: usize) -> Ssa {
        let (groups, dtype) = (self.packed_form().groups, self.product.param(tensor).ty.dtype);
        let bytes = groups.adjacent() * dtype.bits() / 8;
        let run = line * FRAGMENT_COLUMNS / (groups.columns * groups.adjacent());
        let at = self.w.offset(at, (run * FRAGMENT_ROWS * bytes) as i64);
        let from = match dtype {
            DType::F16 => Elem::F16,
            DType::Bf16 => Elem::Bf16,
            _ => Elem::F32,
        };
        let ty = if groups.adjacent() == 1 { Ty::Scalar(from) } else { Ty::Vector(2, from) };
        let mut each = self.w.load(at, ty, bytes);
        let elem = self.elem();
        if from != elem {
            each = self.w.convert("arith.extf", each, ty.with(Elem::F32));
            each = self.w.convert("arith.truncf", each, ty.with(elem));
        }
        if groups.adjacent() == 1 { self.w.splat(each, 2) } else { each }
    }

    fn elem(&self) -> Elem {
        if self.product.param(self.product.a).ty.dtype == DType::F16 { Elem::F16 } else { Elem::Bf16 }
    }

    /// How values of a group become numbers.
    ///
    /// bf16: the last eight bits count its smallest numbers, 2⁻¹³³, so that a value in them is a number already; one fma with
    /// 2¹⁰⁰ scales gives what is wanted 2⁻³³ times. f16 has no room for that: values or-ed into the last bits of 1024 are that
    /// plus the value.
    fn recipe(&mut self, scale: Ssa, zero: Option<Ssa>) -> Recipe {
        let middle = self.packed_form().groups.middle;
        if self.elem() == Elem::F16 {
            return Recipe {
                power: Some(0x6400),
                factors: [self.twice(0x3c00), self.twice(0x2c00)],
                // -1024 and -64, whose last bits are ones and sixteenths
                addends: [self.twice(0xe400 | middle), self.twice(0xd400 | middle << 4)],
                zero,
                scale: Some(scale),
            };
        }
        // 2^100 and 2^96
        let large = [self.twice(0x7180), self.twice(0x6f80)];
        if zero.is_none() && (middle == 0 || middle.count_ones() == 1) {
            let factors = large.map(|by| self.w.binary("arith.mulf", scale, by));
            let least = self.twice(0x8000 | middle);
            let addend = self.w.binary("arith.mulf", factors[0], least);
            return Recipe { power: None, factors, addends: [addend; 2], zero: None, scale: None };
        }
        let addend = match zero {
            Some(zero) => {
                // -2^-33
                let small = self.twice(0xaf00);
                self.w.binary("arith.mulf", zero, small)
            }
            None => {
                let least = self.twice(0x8000 | middle);
                self.w.binary("arith.mulf", large[0], least)
            }
        };
        Recipe { power: None, factors: large, addends: [addend; 2], zero: None, scale: Some(scale) }
    }

    /// These bits in both halves of a register.
    fn twice(&mut self, half: i64) -> Ssa {
        let bits = self.w.ints(I32, half << 16 | half);
        self.w.retype(bits, Ty::Vector(2, self.elem()))
    }

    /// The numbers of a word's values, by pairs that are sixteen bits apart.
    fn word_numbers(&mut self, words: Ssa, word: usize, recipe: &Recipe) -> Vec<Ssa> {
        let ty = Ty::Vector(2, self.elem());
        let values = self.w.extract(words, word);
        let mut of_word = |v: Ssa| self.w.shuffle(v, v, &[word, word]);
        let (factors, addends) = (recipe.factors.map(&mut of_word), recipe.addends.map(&mut of_word));
        let (zero, scale) = (recipe.zero.map(&mut of_word), recipe.scale.map(&mut of_word));
        let mut numbers = vec![];
        for pair in 0..4 {
            let shift = self.w.i32(8 * (pair / 2));
            let bits = if pair < 2 { values } else { self.w.binary("arith.shrui", values, shift) };
            // four bits up a value is sixteen times as much
            let high = pair % 2;
            let mask = self.w.ints(I32, 0x000f_000f << (4 * high));
            let bits = match recipe.power {
                Some(power) => self.w.select_or(bits, mask, power << 16 | power),
                None => self.w.binary("arith.andi", bits, mask),
            };
            let value = self.w.retype(bits, ty);
            let mut number = self.w.fma(value, factors[high], addends[high]);
            if let Some(zero) = zero {
                number = self.w.binary("arith.subf", number, zero);
            }
            if let Some(scale) = scale {
                number = self.w.binary("arith.mulf", number, scale);
            }
            numbers.push(self.w.retype(number, I32));
        }
        numbers
    }

    /// Sums of numbers as they were made, as they are meant.
    fn as_meant(&mut self, sums: Vec<Ssa>) -> Vec<Ssa> {
        if self.elem() == Elem::F16 {
            return sums;
        }
        let by = self.w.floats(Ty::Scalar(Elem::F32), SMALLER.recip());
        sums.into_iter().map(|sum| self.w.binary("arith.mulf", sum, by)).collect()
    }
}

/// How values of a thread's two words become numbers: `((bits | power) × factor + addend - zero) × scale`, with a factor and an
/// addend for values in the last four bits of a half, and for those above them. Vectors have an element a word.
struct Recipe {
    power: Option<i64>,
    factors: [Ssa; 2],
    addends: [Ssa; 2],
    zero: Option<Ssa>,
    scale: Option<Ssa>,
}

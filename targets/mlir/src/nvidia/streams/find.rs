//! Which operands of a kernel the copy engine can bring, and whether warpgroups can multiply all of them.
//!
//! Nothing is known of the kernel's name or purpose: it is one whose products take their right side from memory, and of which
//! one takes what another gave as its left side. Of loops, the innermost hold the products. What passes may have elements of 8 bits
//! that a cast makes 16-bit numbers of; and beside it pass rows that go with its lines ([`rows`]).

use rows::Row;
use rvllm_ir::{
    tile::{Block, Inst, Kernel, Layout, MemLayout, Param, Stmt, Val},
    types::{DType, Dim},
};
use std::collections::HashMap;

mod rows;

/// Bytes of a line of shared memory that the copy engine's swizzle and the tensor cores share.
pub(crate) const LINE_BYTES: usize = 128;
/// Elements of it.
pub(crate) const LINE: usize = LINE_BYTES / 2;
/// Lines of the swizzle's pattern.
pub(crate) const PATTERN: usize = 8;
/// Rows of a warpgroup's product.
pub(crate) const M: usize = 64;
/// k of one instruction.
pub(crate) const DEPTH: usize = 16;
/// Rows of a kernel, at most: two warpgroups'.
const MAX_ROWS: usize = 2 * M;
/// Columns of a product, at most: half of the registers of sums that a thread can have of two.
const MAX_COLUMNS: usize = 128;
/// Lines that threads widen together are a multiple of this.
const WIDENED_LINES: usize = 32;
/// Extent of a box, at most.
const MAX_BOX: usize = 256;

/// Which ring of shared memory an operand passes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Through {
    /// One buffer: it is read by all products of loops further in.
    Kept,
    /// The ring of what an innermost loop multiplies.
    Passing,
}

/// An operand that the copy engine brings.
#[derive(Clone, Debug)]
pub(crate) struct Stream {
    /// The value that products read.
    pub(crate) operand: Val,
    /// What it is made of, in order: parts of one tensor, as many rows each.
    pub(crate) parts: Vec<Part>,
    pub(crate) tensor: usize,
    /// Element type of the tensor, and of what products read.
    pub(crate) stored: DType,
    pub(crate) dtype: DType,
    /// What passes beside it.
    pub(crate) rows: Vec<Row>,
    /// Extents of a part's box, innermost first; the innermost is that of all its lines.
    pub(crate) extents: Vec<usize>,
    /// Whether its lines are rows of k: the tensor cores read it transposed.
    pub(crate) transposed: bool,
    pub(crate) through: Through,
}

/// One load.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    /// Origin, innermost dimension first.
    pub(crate) at: Vec<Val>,
}

impl Stream {
    /// Lines next to each other: elements of the innermost dimension.
    pub(crate) fn lines(&self) -> usize {
        self.extents[0] / LINE
    }

    /// Rows of a part.
    pub(crate) fn part_rows(&self) -> usize {
        self.extents[1..].iter().product()
    }

    /// Bytes from one line of all rows to the next.
    pub(crate) fn line_bytes(&self) -> usize {
        (self.part_rows() * self.parts.len()).next_multiple_of(PATTERN) * LINE_BYTES
    }

    /// Bytes of shared memory, but for its rows.
    pub(crate) fn bytes(&self) -> usize {
        self.lines() * self.line_bytes()
    }

    /// Whether its elements are brought as they are stored, to be made 16-bit numbers of.
    pub(crate) fn is_narrow(&self) -> bool {
        self.stored.bits() == 8
    }

    /// Bytes of a part as it is stored.
    pub(crate) fn part_bytes(&self) -> usize {
        self.part_rows() * self.extents[0] * self.stored.bits() / 8
    }

    /// Bytes of what passes beside it.
    pub(crate) fn row_bytes(&self) -> usize {
        self.rows.iter().map(Row::bytes).sum()
    }

    /// Bytes that the copy engine brings.
    pub(crate) fn copied(&self) -> usize {
        self.parts.len() * self.part_bytes() + self.row_bytes()
    }

    /// Whether threads can widen it where it lies, line after line: see [`super::widen`].
    fn can_widen(&self) -> bool {
        let rows = self.part_rows() * self.parts.len();
        self.through == Through::Passing
            && self.lines() <= 2
            && (rows * self.lines()).is_multiple_of(WIDENED_LINES)
            && self.part_bytes().is_multiple_of(LINE_BYTES)
    }
}

/// What a kernel streams.
#[derive(Clone, Debug)]
pub(crate) struct Plan<'k> {
    pub(crate) streams: Vec<Stream>,
    /// Stream of each value that products read, under all its names.
    pub(crate) names: HashMap<Val, usize>,
    /// What defines each value.
    pub(crate) definitions: HashMap<Val, &'k Inst>,
    /// Rows of every product.
    pub(crate) rows: usize,
    /// Iterations that loads of the innermost loops run ahead.
    pub(crate) stages: usize,
}

impl<'k> Plan<'k> {
    /// The plan of a kernel that is such a one.
    pub(crate) fn of(kernel: &'k Kernel) -> Option<Plan<'k>> {
        let mut plan = Plan { streams: vec![], names: HashMap::new(), definitions: HashMap::new(), rows: 0, stages: 1 };
        plan.define(&kernel.body);
        plan.block(kernel, &kernel.body, false)?;
        let mut products = vec![];
        super::super::for_each(&kernel.body, &mut |s| products.extend(matches!(s.inst, Inst::Mma { .. }).then_some(s)));
        let chained = products.iter().any(|s| plan.staged(s));
        let fits = products.iter().all(|s| plan.multiplies(kernel, s));
        let wide = plan.streams.iter().all(|s| matches!(s.dtype, DType::Bf16 | DType::F16));
        let widened = plan.passing().filter(|s| s.is_narrow()).count();
        let alike = widened == 0 || widened == plan.passing().count();
        (chained && fits && wide && alike).then_some(plan)
    }

    /// What innermost loops multiply.
    pub(crate) fn passing(&self) -> impl Iterator<Item = &Stream> {
        self.streams.iter().filter(|s| s.through == Through::Passing)
    }

    /// Whether what passes is brought as it is stored, and widened.
    pub(crate) fn widens(&self) -> bool {
        self.streams.iter().any(Stream::is_narrow)
    }

    fn define(&mut self, block: &'k Block) {
        for s in &block.stmts {
            self.definitions.extend(s.results.iter().map(|r| (*r, &s.inst)));
            if let Inst::Pipeline { body, .. } = &s.inst {
                self.define(body);
            }
        }
    }

    /// Finds the streams of a block and of those inside; `None` where an operand cannot be one.
    fn block(&mut self, kernel: &'k Kernel, block: &'k Block, looped: bool) -> Option<()> {
        let joined: Vec<&Vec<Val>> =
            block.stmts.iter().filter_map(|s| if let Inst::Concat(p, _) = &s.inst { Some(p) } else { None }).collect();
        let innermost = !block.stmts.iter().any(|s| matches!(s.inst, Inst::Pipeline { .. }));
        let through = if looped && innermost { Through::Passing } else { Through::Kept };
        for s in &block.stmts {
            match &s.inst {
                Inst::Load { .. } | Inst::Concat(..) if kernel.tile(s.results[0]).layout != Layout::Operand => {}
                Inst::Load { .. } if joined.iter().any(|p| p.contains(&s.results[0])) => {}
                Inst::Load { .. } => {
                    self.add(stream(kernel, &self.definitions, s.results[0], &[s.results[0]], through)?)
                }
                Inst::Concat(parts, axis) => {
                    let stream = stream(kernel, &self.definitions, s.results[0], parts, through)?;
                    let whole = stream.part_rows().is_multiple_of(PATTERN) && *axis == usize::from(stream.transposed);
                    whole.then(|| self.add(stream))?;
                }
                Inst::Reshape(v) => {
                    let known = self.names.get(v).copied();
                    self.names.extend(known.map(|i| (s.results[0], i)));
                }
                Inst::Cast(v) => {
                    if let Some(i) = self.names.get(v).copied() {
                        self.streams[i].dtype = kernel.tile(s.results[0]).dtype;
                        self.names.insert(s.results[0], i);
                    }
                }
                Inst::Pipeline { stages, body, .. } => {
                    self.stages = self.stages.max(*stages);
                    self.block(kernel, body, true)?;
                }
                _ => {}
            }
        }
        self.rows(kernel, block)
    }

    fn add(&mut self, stream: Stream) {
        self.names.insert(stream.operand, self.streams.len());
        self.streams.push(stream);
    }

    /// The stream that a value is.
    pub(crate) fn stream(&self, v: Val) -> Option<&Stream> {
        self.names.get(&v).map(|i| &self.streams[*i])
    }

    /// Whether a product's left side is what was computed.
    pub(crate) fn staged(&self, s: &Stmt) -> bool {
        matches!(&s.inst, Inst::Mma { a, .. } if matches!(self.definitions.get(a), Some(Inst::Stage(_))))
    }

    /// Whether warpgroups have the product: of streams, or of what was computed with one.
    fn multiplies(&mut self, kernel: &Kernel, s: &Stmt) -> bool {
        let Inst::Mma { a, b, acc } = &s.inst else { return false };
        let [rows, cols] = [0, 1].map(|d| kernel.tile(*acc).shape[d]);
        let k = kernel.tile(*a).shape[1];
        let Some(right) = self.stream(*b) else { return false };
        let left = match self.stream(*a) {
            Some(left) => !left.transposed && !right.transposed && left.through == Through::Kept && self.empty(*acc),
            None => self.staged(s) && right.transposed && right.part_rows() * right.parts.len() == k,
        };
        let typed = [a, b].iter().all(|v| kernel.tile(**v).dtype.bits() == 16);
        let fits = typed && right.through == Through::Passing && k.is_multiple_of(DEPTH) && cols.is_multiple_of(LINE);
        let same = self.rows == 0 || self.rows == rows;
        self.rows = rows;
        left && fits && same && rows <= MAX_ROWS && cols <= MAX_COLUMNS
    }

    fn empty(&self, acc: Val) -> bool {
        matches!(self.definitions.get(&acc), Some(Inst::Full(c)) if c.to_bits() == 0)
    }
}

/// The stream of these loads, if the copy engine can bring them and the tensor cores read them.
fn stream(
    kernel: &Kernel,
    definitions: &HashMap<Val, &Inst>,
    operand: Val,
    loads: &[Val],
    through: Through,
) -> Option<Stream> {
    let place = |v: &Val| match definitions.get(v) {
        Some(Inst::Load { tensor, at }) => Some((*tensor, at)),
        _ => None,
    };
    let (tensor, _) = place(loads.first()?)?;
    let param = &kernel.params[tensor];
    let (order, transposed) = memory_order(param)?;
    let shape = &kernel.tile(loads[0]).shape;
    let skipped = param.ty.rank() - shape.len();
    let extents: Vec<usize> = order.iter().map(|d| d.checked_sub(skipped).map_or(1, |d| shape[d])).collect();
    let mut parts = vec![];
    for v in loads {
        let (other, at) = place(v)?;
        let fits = other == tensor && kernel.tile(*v).shape == *shape;
        fits.then(|| parts.push(Part { at: order.iter().map(|d| at[*d]).collect() }))?;
    }
    let stored = param.ty.dtype;
    let known = matches!(stored, DType::Bf16 | DType::F16 | DType::F8e4m3 | DType::I8);
    let lines = param.ty.dims[order[0]] == Dim::Const(extents[0]) && extents[0].is_multiple_of(LINE);
    let boxes = extents[1..].iter().all(|n| *n <= MAX_BOX) && (2..=5).contains(&extents.len());
    let stream = Stream { operand, parts, tensor, stored, dtype: stored, rows: vec![], extents, transposed, through };
    (known && lines && boxes && (!stream.is_narrow() || stream.can_widen())).then_some(stream)
}

/// A tensor's dimensions as they lie in memory, innermost first, and whether the last two changed places.
fn memory_order(param: &Param) -> Option<(Vec<usize>, bool)> {
    let rank = param.ty.rank();
    let mut order: Vec<usize> = (0..rank).rev().collect();
    match param.layout {
        MemLayout::Strided { .. } => Some((order, false)),
        MemLayout::Panel { n, k: 1 } if rank >= 2 && param.ty.dims[rank - 2] == Dim::Const(n) => {
            order.swap(0, 1);
            Some((order, true))
        }
        _ => None,
    }
}

/// Bytes from one index to the next of each dimension but the innermost, as multiples of symbols; innermost first.
pub(crate) fn strides(param: &Param) -> Vec<rvllm_ir::expr::Expr> {
    use rvllm_ir::expr::Expr;
    let Some((order, _)) = memory_order(param) else { return vec![] };
    let size = param.ty.dtype.bits() / 8;
    let mut bytes = Expr::Const(size as i64);
    let mut strides = vec![];
    for d in &order[..order.len() - 1] {
        bytes = match (bytes, param.ty.dims[*d].expr()) {
            (Expr::Const(a), Expr::Const(b)) => Expr::Const(a * b),
            (a, b) => Expr::Mul(a.into(), b.into()),
        };
        strides.push(bytes.clone());
    }
    if let (MemLayout::Strided { row: Some(row) }, Some(last)) = (param.layout, strides.last_mut()) {
        *last = Expr::Const((row * size) as i64);
    }
    strides
}

/// Extents of a tensor as it lies in memory, innermost first.
pub(crate) fn extents(param: &Param) -> Vec<rvllm_ir::expr::Expr> {
    let order = memory_order(param).map_or(vec![], |(order, _)| order);
    order.iter().map(|d| param.ty.dims[*d].expr()).collect()
}

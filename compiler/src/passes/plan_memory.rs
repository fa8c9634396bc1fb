//! Gives every buffer its place in one arena; buffers that are never live together share bytes.
//!
//! Offsets are found greedily, each buffer into the smallest gap between those already placed that are live with it:
//! once with the largest first ("Efficient Memory Management for Deep Neural Net Inference", arXiv:2001.03288, algorithm
//! 3), once with those that are live earliest first; the smaller arena is taken.
//!
//! Invariants:
//! - two buffers whose launches overlap share no byte;
//! - offsets are multiples of [`ALIGN`]; sizes hold the largest step and the padding rows of token dimensions.

use crate::program::{Arg, Limits, Program};
use rvllm_ir::{Dim, TensorType, tile::PAD_ROWS};
use std::ops::Range;

/// Alignment of buffers: a cache line, and the widest vector.
pub const ALIGN: u64 = 64;

/// Where buffers lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Size of the arena.
    pub arena_bytes: u64,
    /// One for every buffer of the program.
    pub places: Vec<Place>,
}

/// Where one buffer lies, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Byte offset in the arena.
    pub offset: u64,
    /// Size at the largest step, padding rows included.
    pub bytes: u64,
    /// First and last launch that touch it.
    pub live: [u32; 2],
}

impl Place {
    /// Whether both are live in some launch.
    pub fn meets(&self, other: &Place) -> bool {
        self.live[0] <= other.live[1] && other.live[0] <= self.live[1]
    }

    fn range(&self) -> Range<u64> {
        self.offset..self.offset + self.bytes.next_multiple_of(ALIGN)
    }
}

/// Places the buffers of `program` for steps within `limits`.
pub fn plan_memory(program: &Program, limits: &Limits) -> Memory {
    let sizes = program.buffers.iter().map(|b| bytes(&b.ty, limits));
    let places: Vec<Place> =
        sizes.zip(lifetimes(program)).map(|(bytes, live)| Place { offset: 0, bytes, live }).collect();
    let by_size = place(&places, |p| (u64::MAX - p.bytes, u64::from(p.live[0])));
    let by_time = place(&places, |p| (u64::from(p.live[0]), u64::MAX - p.bytes));
    if by_time.arena_bytes < by_size.arena_bytes { by_time } else { by_size }
}

/// Places buffers one after another, by rising `key`.
fn place(places: &[Place], key: impl Fn(&Place) -> (u64, u64)) -> Memory {
    let mut order: Vec<usize> = (0..places.len()).collect();
    order.sort_by_key(|i| (key(&places[*i]), *i));
    let mut places = places.to_vec();
    let mut placed: Vec<Place> = vec![];
    for i in order {
        places[i].offset = best_fit(&placed, &places[i]);
        placed.push(places[i]);
    }
    Memory { arena_bytes: placed.iter().map(|p| p.range().end).max().unwrap_or(0), places }
}

/// First and last launch that touch each buffer; outputs are read after the last.
fn lifetimes(program: &Program) -> Vec<[u32; 2]> {
    let mut live: Vec<Option<[u32; 2]>> = vec![None; program.buffers.len()];
    let end = (program.launches.len() as u32).saturating_sub(1);
    let touches = program.launches.iter().enumerate().flat_map(|(i, launch)| {
        launch.args.iter().filter_map(move |arg| match arg {
            Arg::Buffer { id, .. } => Some((*id, i as u32)),
            _ => None,
        })
    });
    for (id, at) in touches.chain(program.outputs.iter().map(|id| (*id, end))) {
        let [first, _] = live[id].unwrap_or([at, at]);
        live[id] = Some([first, at]);
    }
    live.into_iter().map(Option::unwrap_or_default).collect()
}

/// Rows that a panel of activations may have: buffers hold whole panels.
const PANEL_ROWS: u64 = 16;

/// Size of a tensor at the largest step; token dimensions have padding rows.
fn bytes(ty: &TensorType, limits: &Limits) -> u64 {
    let rows = |d: &Dim| match d {
        Dim::Const(n) => *n as u64,
        symbolic => (limits.largest(symbolic) + PAD_ROWS as u64).next_multiple_of(PANEL_ROWS),
    };
    let elements: u64 = ty.dims.iter().map(rows).product();
    (elements * ty.dtype.bits() as u64).div_ceil(8)
}

/// The start of the smallest gap that takes `new` between the buffers that are live with it, or their end.
fn best_fit(placed: &[Place], new: &Place) -> u64 {
    let mut taken: Vec<Range<u64>> = placed.iter().filter(|p| p.meets(new)).map(Place::range).collect();
    taken.sort_by_key(|r| r.start);
    let mut end = 0;
    let mut best: Option<Range<u64>> = None;
    for range in taken {
        let gap = end..range.start.max(end);
        let size = |r: &Range<u64>| r.end - r.start;
        if size(&gap) >= new.bytes && best.as_ref().is_none_or(|b| size(&gap) < size(b)) {
            best = Some(gap);
        }
        end = end.max(range.end);
    }
    best.map_or(end, |gap| gap.start)
}

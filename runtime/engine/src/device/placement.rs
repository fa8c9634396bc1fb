//! Which memory node each page of the weights lies on: that of the thread that reads it.
//!
//! Each member of the team runs one contiguous part of a product's programs, and those go through the weight in the order
//! in which it lies: a member reads about the same part of its bytes. Gates and ups lie one after the other and a
//! program reads a tile of both, so a member reads the same part of each half. Other weights are read by every member, or
//! a row at a time by any: they are placed alike, which spreads them.
//!
//! Pages are the system's base pages, not huge ones: weights of a few MiB have parts for several nodes too. A huge page
//! lies on one node, so those are lost only where two nodes meet, a few in each weight.
//!
//! Invariants:
//! - placing changes no bytes; what the system refuses lies where it puts it;
//! - a page that several members read goes to the one that reads its middle, so that none is favoured.

use super::nodes::Node;
use rvllm_artifact::{plan::Weight, recipe::Recipe};
use std::ops::Range;

/// A weight's bytes: as many parts of the same size one after the other, of each of which every member reads its share.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Extent {
    bytes: Range<usize>,
    halves: usize,
}

/// Memory that is to lie on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Run {
    bytes: Range<usize>,
    node: Node,
}

/// Has memory that was not touched yet come from the nodes that read it; `places` are those of `weights` in it, in order,
/// and `nodes` those of the team's members. Whether the system took any of it.
pub(crate) fn place(memory: &mut [u8], weights: &[Weight], places: &[Range<usize>], nodes: &[Node]) -> bool {
    let extent = |(weight, bytes): (&Weight, &Range<usize>)| Extent { bytes: bytes.clone(), halves: halves(weight) };
    let extents: Vec<Extent> = weights.iter().zip(places).map(extent).collect();
    let runs = plan(&extents, nodes, page_bytes());
    // All are tried: a node without memory is refused, the others are not.
    runs.iter().filter(|run| memory.get_mut(run.bytes.clone()).is_some_and(|bytes| prefer(bytes, run.node))).count() > 0
}

/// Gates and ups are packed one by one, so that each starts a panel; nothing else is.
fn halves(weight: &Weight) -> usize {
    match &weight.recipe {
        Recipe::Concat(parts) if parts.iter().all(|part| matches!(part, Recipe::Pack { .. })) => parts.len(),
        _ => 1,
    }
}

/// Runs from the first byte to the last weight's end, in whole pages, neighbours on different nodes; none where one node
/// would have all. Extents ascend.
fn plan(weights: &[Extent], nodes: &[Node], page: usize) -> Vec<Run> {
    let end = weights.last().map_or(0, |weight| weight.bytes.end);
    let mut starts: Vec<(usize, Node)> = vec![];
    for (at, node) in weights.iter().flat_map(|weight| reads(weight, nodes)) {
        let at = if starts.is_empty() { 0 } else { first_page(at, page) };
        if at >= end {
            break;
        }
        // who reads no page's middle gets none
        starts.pop_if(|(start, _)| *start == at);
        if starts.last().is_none_or(|(_, before)| *before != node) {
            starts.push((at, node));
        }
    }
    let ends = starts.iter().skip(1).map(|(start, _)| *start).chain([end]);
    let runs = starts.iter().zip(ends).map(|((start, node), end)| Run { bytes: *start..end, node: *node });
    if starts.len() > 1 { runs.collect() } else { vec![] }
}

/// Where each member's reads of a weight begin, ascending.
fn reads<'a>(weight: &'a Extent, nodes: &'a [Node]) -> impl Iterator<Item = (usize, Node)> + 'a {
    let part = |n: usize, i: usize, of: usize| (n as u128 * i as u128 / of as u128) as usize;
    let bytes = weight.bytes.len() / weight.halves.max(1);
    (0..weight.halves).flat_map(move |half| {
        let start = weight.bytes.start + half * bytes;
        nodes.iter().enumerate().map(move |(i, node)| (start + part(bytes, i, nodes.len()), *node))
    })
}

/// The first page whose middle is at `at` or behind it.
fn first_page(at: usize, page: usize) -> usize {
    at.saturating_sub(page / 2).next_multiple_of(page)
}

fn page_bytes() -> usize {
    // SAFETY: the call takes a number and touches no memory of this process.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).unwrap_or(4096).max(1)
}

/// Asks for pages of `memory` to come from `node` while it has any, when they are touched.
fn prefer(memory: &mut [u8], node: Node) -> bool {
    let bits = libc::c_ulong::BITS as usize;
    let mut mask = vec![0 as libc::c_ulong; usize::from(node) / bits + 1];
    mask[usize::from(node) / bits] = 1 << (usize::from(node) % bits);
    // The system takes one off the number of bits.
    let (bits, flags) = (mask.len() * bits + 1, 0);
    let (start, len) = (memory.as_mut_ptr(), memory.len());
    // SAFETY: the policy of a range that is borrowed exclusively says where new pages come from, and changes no contents;
    // `mask` is readable for as many bits as is said, less one, and a range that is no whole pages is refused.
    unsafe { libc::syscall(libc::SYS_mbind, start, len, libc::MPOL_PREFERRED, mask.as_ptr(), bits, flags) == 0 }
}

#[cfg(test)]
mod tests;

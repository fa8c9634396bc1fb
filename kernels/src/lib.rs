//! Kernels: each algorithm written once, in tile IR, for every target.
//!
//! A kernel is a function of a small struct of numbers (shapes, element types, memory layouts, tile sizes) and
//! a name; [`Spec`] is the table of all of them, which the compiler fills from a graph's `Call` and a schedule.
//!
//! Invariants:
//! - parameters are in the order of the `Call`'s operands, then its results; a KV cache is two parameters
//!   (keys, values; four with key_scales, value_scales) at its operand's place and none among the results;
//! - no instruction, target or device is named here;
//! - what a row of a result holds depends on that row's inputs alone, bit for bit: never on the grid, on the
//!   symbols or on what else is in its tile (batch invariance).

pub mod draw;
pub mod embed;
pub mod feed;
pub mod gemm;
pub mod kv_cache;
pub mod logit_stats;
pub mod paged_attention;
pub mod quantize_rows;
pub mod rms_norm;
pub mod rope_kv_write;
pub mod top_k;

pub use draw::{Draw, draw, rank};
pub use embed::{Embed, embed};
pub use feed::{Feed, feed};
pub use gemm::{Gemm, Quantized, gemm};
pub use kv_cache::{KvCache, KvLayout};
pub use logit_stats::{LogitStats, logit_stats};
pub use paged_attention::{
    PagedAttention, paged_attention,
    parts::{Split, Spread, join_parts, part_states},
};
pub use quantize_rows::{QuantizeRows, quantize_rows};
pub use rms_norm::{RmsNorm, rms_norm};
pub use rope_kv_write::{RopeKvWrite, rope_kv_write};
pub use top_k::top_k;

use rvllm_ir::tile::Kernel;

/// A kernel and all its numbers.
#[derive(Clone, Debug, PartialEq)]
pub enum Spec {
    /// `Call::Embed`.
    Embed(Embed),
    /// `Call::RmsNorm`.
    RmsNorm(RmsNorm),
    /// `Call::QuantizeRows`.
    QuantizeRows(QuantizeRows),
    /// `Call::Gemm`.
    Gemm(Gemm),
    /// `Call::RopeKvWrite`.
    RopeKvWrite(RopeKvWrite),
    /// `Call::PagedAttention`.
    PagedAttention(PagedAttention),
    /// The rest of `Call::PagedAttention` where it works on parts apart.
    JoinParts(PagedAttention),
    /// `Call::LogitStats`.
    LogitStats(LogitStats),
    /// `Call::Draw`.
    Draw(Draw),
    /// `Call::Rank`.
    Rank(Draw),
    /// `Call::TopK`.
    TopK(Draw),
    /// Of no call: the first launch of a program that takes tokens from the step before.
    Feed(Feed),
}

impl Spec {
    /// The kernel, whose symbol in the object code is `name`.
    pub fn kernel(&self, name: &str) -> Kernel {
        match self {
            Spec::Embed(s) => embed(name, s),
            Spec::RmsNorm(s) => rms_norm(name, s),
            Spec::QuantizeRows(s) => quantize_rows(name, s),
            Spec::Gemm(s) => gemm(name, s),
            Spec::RopeKvWrite(s) => rope_kv_write(name, s),
            Spec::PagedAttention(s) => paged_attention(name, s),
            Spec::JoinParts(s) => join_parts(name, s),
            Spec::LogitStats(s) => logit_stats(name, s),
            Spec::Draw(s) => draw(name, s),
            Spec::Rank(s) => rank(name, s),
            Spec::TopK(s) => top_k(name, s),
            Spec::Feed(s) => feed(name, s),
        }
    }
}

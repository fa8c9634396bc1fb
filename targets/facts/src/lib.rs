//! What each target is, and the schedule tables: data (`data/*.toml`), read once, checked when read.
//!
//! Invariants:
//! - facts and measured numbers only: no code of this crate depends on which target it describes;
//! - schedules say numbers (tile sizes, stages), never what a kernel computes;
//! - every row states where its numbers come from.

use serde::Deserialize;

/// Instruction set family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arch {
    /// x86-64.
    X86_64,
    /// 64-bit Arm.
    Aarch64,
    /// NVIDIA's virtual instruction set, 64 bit.
    Nvptx64,
}

impl Arch {
    /// Rust's name (`std::env::consts::ARCH`).
    pub fn name(self) -> &'static str {
        match self {
            Arch::X86_64 => "x86_64",
            Arch::Aarch64 => "aarch64",
            Arch::Nvptx64 => "nvptx64",
        }
    }
}

/// A target: what code may use, and how data lies.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Name as given to `--target`.
    pub name: String,
    /// Other names that `--target` takes.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// One line for `rvllm targets`.
    pub description: String,
    /// Instruction set family.
    pub arch: Arch,
    /// LLVM triple.
    pub triple: String,
    /// LLVM `-mcpu`.
    pub cpu: String,
    /// LLVM feature string added to the CPU's (`+avx512bf16,…`).
    #[serde(default)]
    pub llvm_features: String,
    /// Features a machine must have, by Rust's names.
    pub requires: Vec<String>,
    /// Whether 16-bit dot products of pairs exist (`vdpbf16ps`).
    #[serde(default)]
    pub dot_bf16: bool,
    /// Whether 8-bit dot products of four exist (`vpdpbusd`).
    #[serde(default)]
    pub dot_i8: bool,
    /// Whether AMX tiles of bf16 exist.
    #[serde(default)]
    pub amx_bf16: bool,
    /// Whether AMX tiles of i8 exist.
    #[serde(default)]
    pub amx_i8: bool,
    /// Rows of a weight panel: see the tile IR's `MemLayout::Panel`. Where absent, weights are dense and row-major, and
    /// the KV cache holds whole tokens next to each other.
    pub panel: Option<usize>,
    /// What only a GPU has.
    pub gpu: Option<Gpu>,
    /// Tokens of a KV block.
    pub block_size: usize,
    /// Query rows (tokens × heads of a group) that one attention program aims at.
    pub attention_rows: usize,
    /// How attention cuts sequences; not at all, or as `gpu` says, where absent.
    pub kv_split: Option<KvSplit>,
    /// Schedule rows of `gemm`, by rising `at_most`; the last has none.
    pub gemm: Vec<GemmRow>,
    /// Most columns per iteration of row-wise kernels.
    pub row_chunk: usize,
    /// Most heads that one iteration rotates.
    #[serde(default = "one")]
    pub head_block: usize,
}

fn one() -> usize {
    1
}

/// Bounds of a GPU's multiprocessor.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gpu {
    /// Sequences of a step where nobody says how many.
    pub max_num_seqs: usize,
    /// Tokens of a step, likewise.
    pub max_num_batched_tokens: usize,
    /// Shared memory that one CTA can have, in bytes.
    pub shared_bytes: u32,
    /// Registers (32 bits) that one thread can have.
    pub max_registers: u32,
    /// Registers of a multiprocessor.
    pub registers: u32,
    /// Threads that a multiprocessor holds at once.
    pub max_threads: u32,
    /// Threads that run in step.
    pub warp: u32,
    /// Tokens of the KV cache that attention visits at once where warpgroups multiply: 16-bit heads of whole lines.
    pub kv_span: usize,
    /// Query rows that one attention program then aims at.
    pub kv_span_rows: usize,
    /// Parts that attention deals the blocks of a sequence out to, each of which a CTA can work on.
    pub kv_parts: usize,
    /// Neighbouring blocks of one part.
    pub kv_part_blocks: usize,
    /// Programs of attention below which its parts are worked on at once.
    pub kv_spread_programs: usize,
    /// Tokens of a step up to which attention's query tiles hold few tokens: those of a step that mostly decodes.
    pub decode_tokens: usize,
    /// Query rows that attention then works on at once.
    pub decode_rows: usize,
    /// Where the numbers come from.
    pub source: String,
}

/// How a CPU's attention cuts sequences, so that few of them use all cores.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KvSplit {
    /// Parts that the blocks of a sequence are dealt out to.
    pub parts: usize,
    /// Neighbouring blocks of one part.
    pub run_blocks: usize,
    /// Programs of attention (KV heads times query tiles) up to which parts have programs of their own.
    pub programs: usize,
    /// Where the numbers come from.
    pub source: String,
}

/// A schedule row of `gemm`: which numbers for which problem.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GemmRow {
    /// Element type of the weight: `f32`, `bf16`, or that of quantised values, `i8`, `u4` or `f8e4m3`.
    pub dtype: String,
    /// Whether for gate·up products (two accumulators).
    #[serde(default)]
    pub gated: bool,
    /// For results of more columns than this.
    #[serde(default)]
    pub above_n: usize,
    /// For results of at most this many columns.
    pub up_to_n: Option<usize>,
    /// For sums over more than this many elements, and
    #[serde(default)]
    pub above_k: usize,
    /// For sums over a multiple of this many elements; of rows of one kind, those of the largest such numbers are used.
    #[serde(default = "any_depth")]
    pub k_unit: usize,
    /// For at most this many rows (tokens); the last row of a kind has none.
    pub at_most: Option<usize>,
    /// Rows of the accumulator tile.
    pub block_m: usize,
    /// Columns of the accumulator tile: a multiple or the whole of a panel.
    pub block_n: usize,
    /// k per iteration.
    pub block_k: usize,
    /// How many iterations loads run ahead.
    pub stages: usize,
    /// Where the numbers come from.
    pub source: String,
}

fn any_depth() -> usize {
    1
}

impl GemmRow {
    fn is_for(&self, dtype: &str, gated: bool, [n, k]: [usize; 2]) -> bool {
        let columns = n > self.above_n && self.up_to_n.is_none_or(|most| n <= most);
        let sums = k > self.above_k && k.is_multiple_of(self.k_unit);
        self.dtype == dtype && self.gated == gated && columns && sums
    }
}

/// The tables, in the order in which they are listed to users: most specific first per architecture.
const TABLES: [&str; 6] = [
    include_str!("../data/sapphirerapids.toml"),
    include_str!("../data/znver4.toml"),
    include_str!("../data/x86-64-v4.toml"),
    include_str!("../data/x86-64-v3.toml"),
    include_str!("../data/aarch64.toml"),
    include_str!("../data/sm_90a.toml"),
];

/// What is wrong with a target's name.
#[derive(Debug, thiserror::Error)]
#[error("unknown target `{name}` · help: one of {known}, or native")]
pub struct UnknownTarget {
    name: String,
    known: String,
}

/// Every target.
pub fn all() -> Vec<Target> {
    TABLES.iter().map(|t| toml::from_str(t).expect("built-in target tables parse: checked by a test")).collect()
}

/// The target of this name or alias; `native` is the first whose architecture is this one and whose features `has`.
pub fn find(name: &str, has: &dyn Fn(&str) -> bool) -> Result<Target, UnknownTarget> {
    let wanted = |t: &Target| {
        if name == "native" { t.runs_here(has) } else { t.name == name || t.aliases.iter().any(|a| a == name) }
    };
    all().into_iter().find(wanted).ok_or_else(|| UnknownTarget {
        name: name.to_string(),
        known: all().into_iter().map(|t| t.name).collect::<Vec<_>>().join(", "),
    })
}

impl Target {
    /// Schedule rows of products of `dtype` with `n` columns that are sums over `k`, by rising `at_most`; the last has none.
    pub fn gemm_rows(&self, dtype: &str, gated: bool, n: usize, k: usize) -> Vec<&GemmRow> {
        let rows: Vec<&GemmRow> = self.gemm.iter().filter(|r| r.is_for(dtype, gated, [n, k])).collect();
        let most = rows.iter().map(|r| (r.k_unit, r.above_k)).max();
        rows.into_iter().filter(|r| Some((r.k_unit, r.above_k)) == most).collect()
    }

    /// Rows of a matrix of activations, and columns of so many bits, that its matrix unit reads as one run of memory.
    pub fn activation_panel(&self, bits: usize) -> Option<[usize; 2]> {
        match bits {
            8 => self.amx_i8.then_some([16, 64]),
            16 => self.amx_bf16.then_some([16, 32]),
            _ => None,
        }
    }

    /// Whether an instruction looks up the 16-bit elements of a vector in a table of two (AVX-512's `vpermi2w`).
    pub fn looks_up_16_bit(&self) -> bool {
        self.requires.iter().any(|f| f == "avx512bw")
    }

    /// Whether this machine can run its code; `has` says whether the CPU has a feature (by Rust's name).
    pub fn runs_here(&self, has: &dyn Fn(&str) -> bool) -> bool {
        self.arch.name() == std::env::consts::ARCH && self.requires.iter().all(|f| has(f))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn tables_parse_and_end_in_an_unbounded_row_for_every_number_of_columns() {
        for target in super::all() {
            let bounds = target.gemm.iter().flat_map(|r| [r.above_n, r.above_n + 1, r.up_to_n.unwrap_or(usize::MAX)]);
            for (n, k) in bounds.filter(|n| *n > 0).flat_map(|n| [(n, 7), (n, 64), (n, 1 << 16)]) {
                let dtypes = match (target.panel, k) {
                    (Some(_), _) => &["f32", "bf16", "i8", "u4"][..],
                    (None, 64 | 65536) => &["f32", "bf16", "f8e4m3", "u4"],
                    // rows that are no whole units of 16 bytes
                    _ => &["f32", "bf16"],
                };
                for (dtype, gated) in dtypes.iter().flat_map(|d| [(*d, false), (*d, true)]) {
                    let rows = target.gemm_rows(dtype, gated, n, k).into_iter();
                    let bounds: Vec<usize> = rows.map(|r| r.at_most.unwrap_or(usize::MAX)).collect();
                    let rise = bounds.is_sorted_by(|a, b| a < b) && bounds.last() == Some(&usize::MAX);
                    assert!(rise, "{} {dtype} {gated} {n} {k}: {bounds:?}", target.name);
                }
            }
        }
    }
}

//! What `select` makes of a graph for one target: kernels, buffers, weights with their layouts, and launches, in the
//! compiler's types. `emit` turns it into the artifact's plan.
//!
//! Invariants:
//! - launches are in an order in which every argument is written before it is read;
//! - kernels are distinct, and symbols are unique and depend on the program alone.

use rvllm_ir::{
    DType, Dim, Expr, Sym, TensorType,
    graph::Input,
    recipe::Recipe,
    tile::{BLOCK_ROWS, FRAGMENT_ROWS, Kernel, MemLayout},
};
use std::fmt;

/// Bounds of what one step, and one sequence, may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest sequence, prompt and answer together.
    pub max_model_len: usize,
    /// Most tokens of a step.
    pub max_num_batched_tokens: usize,
    /// Most sequences of a step.
    pub max_num_seqs: usize,
    /// Most rows of logits of a step.
    pub max_logits: usize,
}

impl Limits {
    /// The largest value of a dimension of a buffer. Buffers have token or logits rows; a query tile holds at least
    /// a token, so tokens bound every other symbol that could appear.
    pub fn largest(&self, dim: &Dim) -> u64 {
        let n = match dim {
            Dim::Const(n) => *n,
            Dim::Sym(s) => self.rows(*s),
            Dim::SymPlusOne(s) => self.rows(*s) + 1,
        };
        n as u64
    }

    /// The largest number of rows that a step has along `s`.
    pub fn rows(&self, s: Sym) -> usize {
        match s {
            Sym::L => self.max_logits,
            Sym::R => self.max_num_seqs,
            Sym::T | Sym::Q | Sym::M | Sym::P => self.max_num_batched_tokens,
        }
    }
}

/// The program of one target.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Program {
    /// Every kernel, in the order of first use.
    pub kernels: Vec<Kernel>,
    /// Every tensor that launches write.
    pub buffers: Vec<Buffer>,
    /// Every weight that launches read, in the order of first use.
    pub weights: Vec<Weight>,
    /// In order.
    pub launches: Vec<Launch>,
    /// Buffers of logits, max, logsumexp, block_max, block_sum, draws, ranks, most_likely.
    pub outputs: [usize; 8],
    /// Whether the first launch takes tokens from the step before: see [`rvllm_kernels::feed()`].
    pub feeds: bool,
    /// Tokens of a query tile.
    pub query_tile: usize,
    /// Shape of the KV cache: the same in all layers.
    pub kv_cache: Option<KvCache>,
}

/// Shape of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvCache {
    /// Layers that have one.
    pub layers: usize,
    /// Heads, block size and layout of one layer's.
    pub layer: rvllm_kernels::KvCache,
}

impl KvCache {
    /// Bytes of one block of K, and of V, of one layer, padding included.
    pub fn block_bytes(&self) -> [u64; 2] {
        let c = &self.layer;
        let bytes = |layout: MemLayout, dims: [usize; 2]| c.stored.bytes(c.kv_heads * layout.len(&dims)) as u64;
        [bytes(c.keys_layout(), [c.block_size, c.head_dim]), bytes(c.values_layout(), [c.head_dim, c.block_size])]
    }

    /// Bytes of the scales of one block of K, and of V, of one layer; 0 where the cache has none.
    pub fn scale_bytes(&self) -> u64 {
        let c = &self.layer;
        c.scales().map_or(0, |ty| ty.dtype.bytes(c.kv_heads * c.block_size) as u64)
    }
}

/// A tensor in the arena.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// The graph value that lies there.
    pub name: String,
    /// Its type.
    pub ty: TensorType,
}

/// A weight as kernels read it.
#[derive(Clone, Debug, PartialEq)]
pub struct Weight {
    /// Its name: the key in the artifact.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Dimensions as stored: after packing.
    pub shape: Vec<usize>,
    /// How it is made.
    pub recipe: Recipe,
}

/// One launch.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// The graph value that it computes.
    pub name: String,
    /// Arguments in the kernels' order: all variants take the same.
    pub args: Vec<Arg>,
    /// Choices, by rising bound.
    pub variants: Vec<Variant>,
}

/// A kernel under a condition; its grid is the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant {
    /// Holds when the symbol is at most the number; always where absent.
    pub at_most: Option<(Sym, usize)>,
    /// Index into the program's kernels; nothing is launched where absent.
    pub kernel: Option<usize>,
}

/// A tensor argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arg {
    /// A buffer, from this byte on.
    Buffer {
        /// Index into the program's buffers.
        id: usize,
        /// Bytes before the first element of a view.
        offset: usize,
    },
    /// A weight: index into the program's weights.
    Weight(usize),
    /// A step input that is a tensor.
    Input(Input),
    /// The K blocks of a layer.
    KeyCache(usize),
    /// The V blocks of a layer.
    ValueCache(usize),
    /// The scales of a layer's K blocks.
    KeyScales(usize),
    /// The scales of a layer's V blocks.
    ValueScales(usize),
}

/// `[N, K]` in `layout`: the shape of what is stored.
pub fn stored_shape(dims: &[usize], layout: MemLayout) -> Vec<usize> {
    match (layout, dims) {
        (MemLayout::Panel { n, k }, [outer @ .., rows, cols]) => {
            outer.iter().copied().chain([rows.div_ceil(n), cols.div_ceil(k), n, k]).collect()
        }
        (MemLayout::Blocks { k }, [.., _, cols]) => {
            let blocks = layout.len(dims) / (cols.next_multiple_of(k) * BLOCK_ROWS);
            vec![blocks, cols.div_ceil(k), BLOCK_ROWS, k]
        }
        (MemLayout::Fragments { k }, [.., _, cols]) => {
            let pieces = layout.len(dims) / (cols.next_multiple_of(k) * FRAGMENT_ROWS);
            vec![pieces, cols.div_ceil(k), FRAGMENT_ROWS, k]
        }
        _ => dims.to_vec(),
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "query_tile {}", self.query_tile)?;
        if let Some(c) = &self.kv_cache {
            let [k, v] = c.block_bytes();
            let scales = match c.scale_bytes() {
                0 => String::new(),
                bytes => format!(" {} with scale_bytes {bytes}", c.layer.stored),
            };
            writeln!(f, "kv_cache layers {} k_bytes {k} v_bytes {v}{scales}", c.layers)?;
        }
        for w in &self.weights {
            writeln!(f, "weight {}: {:?}{} = {}", w.name, w.shape, w.dtype, w.recipe)?;
        }
        for launch in &self.launches {
            self.fmt_launch(launch, f)?;
        }
        let outputs = self.outputs.map(|id| self.buffers[id].name.as_str());
        writeln!(f, "outputs {}", outputs.join(", "))
    }
}

impl Program {
    fn fmt_launch(&self, launch: &Launch, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let args: Vec<String> = launch.args.iter().map(|a| self.arg(a)).collect();
        writeln!(f, "launch {}({})", launch.name, args.join(", "))?;
        for v in &launch.variants {
            let condition = v.at_most.map_or(String::new(), |(s, n)| format!(" if {s} <= {n}"));
            let Some(kernel) = v.kernel.map(|i| &self.kernels[i]) else {
                writeln!(f, "  nothing{condition}")?;
                continue;
            };
            let grid: Vec<String> = kernel.grid.iter().map(|(_, e): &(String, Expr)| e.to_string()).collect();
            writeln!(f, "  @{}[{}]{condition}", kernel.name, grid.join(", "))?;
        }
        Ok(())
    }

    fn arg(&self, arg: &Arg) -> String {
        match arg {
            Arg::Buffer { id, offset: 0 } => format!("%{}", self.buffers[*id].name),
            Arg::Buffer { id, offset } => format!("%{}+{offset}", self.buffers[*id].name),
            Arg::Weight(id) => format!("weight {}", self.weights[*id].name),
            Arg::Input(input) => format!("input {}", input.name()),
            Arg::KeyCache(layer) => format!("keys {layer}"),
            Arg::ValueCache(layer) => format!("values {layer}"),
            Arg::KeyScales(layer) => format!("key_scales {layer}"),
            Arg::ValueScales(layer) => format!("value_scales {layer}"),
        }
    }
}

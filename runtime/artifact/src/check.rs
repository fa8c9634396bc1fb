//! What has to hold of a manifest and a plan before anything is allocated or launched: every index in range, every
//! size inside what holds it, all arithmetic without overflow at the largest step.

use crate::{
    gpu,
    manifest::{KvCache, Manifest, NVPTX, Target},
    plan::{Arg, Buffer, DRAWS, Expr, Input, Kernel, Launch, Outputs, Plan, RANK, Sym, TOP_K, Variant, Weight},
    recipe::Recipe,
};
use std::collections::BTreeSet;

/// Largest arena, weight or cache block: 16 TiB.
const MAX_BYTES: u64 = 1 << 44;
/// Longest sequence and most tokens of a step.
const MAX_TOKENS: u32 = 1 << 24;
/// Deepest nesting of an expression.
const MAX_DEPTH: usize = 16;
/// Most dimensions of a grid.
const MAX_GRID: usize = 4;
/// Most programs of a launch.
const MAX_PROGRAMS: u64 = 1 << 40;
/// Where buffers and weights begin.
const ALIGNMENT: u64 = 64;
/// Largest page that an arena is rounded up to.
const MAX_PAGE: u64 = 2 << 20;
/// Logits of a run of `Outputs::block_max` and `Outputs::block_sum`.
const BLOCK: u64 = 256;

type Check = Result<(), String>;

fn require(holds: bool, problem: impl FnOnce() -> String) -> Check {
    if holds { Ok(()) } else { Err(problem()) }
}

fn within(what: &str, value: impl Into<u64>, least: u64, most: u64) -> Check {
    let value = value.into();
    require((least..=most).contains(&value), || format!("{what} is {value}, expected {least} to {most}"))
}

impl Manifest {
    /// Checks sizes and names.
    ///
    /// # Errors
    /// The first field that is wrong, what it is and what was expected.
    pub fn check(&self) -> Result<(), String> {
        let model = &self.model;
        within("model.vocab_size", model.vocab_size, 1, 1 << 30)?;
        within("model.hidden_size", model.hidden_size, 1, 1 << 24)?;
        within("model.num_hidden_layers", model.num_hidden_layers, 1, 1 << 16)?;
        within("model.max_model_len", model.max_model_len, 1, u64::from(MAX_TOKENS))?;
        check_cache(&self.kv_cache)?;
        require(!self.targets.is_empty(), || "targets is empty, expected at least one".into())?;
        let mut names = BTreeSet::new();
        let twice = self.targets.iter().find(|t| !names.insert(&t.name));
        require(twice.is_none(), || format!("two targets named {}", twice.map_or("", |t| &t.name)))?;
        let listed = self.weights.embedded().iter().find(|f| self.entries.contains_key(*f));
        require(listed.is_none(), || format!("{} is listed as weights and as an entry", listed.map_or("", |f| f)))
    }
}

fn check_cache(cache: &KvCache) -> Check {
    within("kv_cache.block_size", cache.block_size, 1, 1 << 16)?;
    within("kv_cache.num_layers", cache.num_layers, 1, 1 << 16)?;
    let extents = [cache.block_size, cache.num_kv_heads, cache.head_dim].map(u64::from);
    let bits = extents.into_iter().try_fold(cache.dtype.bits(), |n, d| n.checked_mul(d));
    let least = bits.map_or(u64::MAX, |bits| bits.div_ceil(8));
    within("kv_cache.k_bytes", cache.k_bytes, least.max(1), MAX_BYTES)?;
    within("kv_cache.v_bytes", cache.v_bytes, least.max(1), MAX_BYTES)?;
    if cache.scale_bytes > 0 {
        let scales = 4 * u64::from(cache.block_size) * u64::from(cache.num_kv_heads);
        within("kv_cache.scale_bytes", cache.scale_bytes, scales.max(1), MAX_BYTES)?;
    }
    within("kv_cache's bytes of a block", cache.bytes_per_block(), 1, MAX_BYTES)
}

impl Plan {
    /// Checks that whatever step within its bounds is run, every index, offset, extent and size of the plan is in range.
    /// What a kernel reads and writes of its arguments is the kernel's own: it is code.
    ///
    /// # Errors
    /// The first part that is wrong, what it is and what was expected.
    pub fn check(&self, manifest: &Manifest) -> Result<(), String> {
        within("max_num_batched_tokens", self.max_num_batched_tokens, 1, u64::from(MAX_TOKENS))?;
        within("max_num_seqs", self.max_num_seqs, 1, u64::from(MAX_TOKENS))?;
        within("max_logits", self.max_logits, 1, u64::from(MAX_TOKENS))?;
        within("query_tile", self.query_tile, 1, u64::from(MAX_TOKENS))?;
        self.check_arena()?;
        self.check_weights(manifest)?;
        for kernel in &self.kernels {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.$".contains(&b);
            let named = !kernel.symbol.is_empty() && kernel.symbol.bytes().all(plain);
            require(named, || format!("kernel symbol {:?}, expected letters, digits and _ . $", kernel.symbol))?;
            self.check_maps(manifest, kernel).map_err(|problem| format!("kernel {}: {problem}", kernel.symbol))?;
        }
        self.launches.iter().try_for_each(|launch| {
            self.check_launch(manifest, launch).map_err(|problem| format!("launch {}: {problem}", launch.name))
        })?;
        self.check_outputs(manifest)
    }

    /// Checks that the kernels are what the target's architecture runs, and lie in its object code.
    ///
    /// # Errors
    /// As [`Plan::check`].
    pub fn check_code(&self, target: &Target, code_bytes: u64) -> Result<(), String> {
        let on_gpu = target.arch == NVPTX;
        self.kernels.iter().try_for_each(|kernel| {
            let checked = match &kernel.gpu {
                Some(gpu) if on_gpu => gpu.check(kernel.tensors, code_bytes),
                None if !on_gpu => Ok(()),
                Some(_) => Err(format!("a launch on a GPU, but the target is {}", target.arch)),
                None => Err("no launch on a GPU, which is the target".into()),
            };
            checked.map_err(|problem| format!("kernel {}: {problem}", kernel.symbol))
        })
    }

    fn check_maps(&self, manifest: &Manifest, kernel: &Kernel) -> Check {
        let most = |sym| self.most(manifest, sym);
        kernel.gpu.iter().flat_map(|gpu| &gpu.tensor_maps).try_for_each(|map| {
            map.extents.iter().chain(&map.strides).try_for_each(|size| check_expr(size, MAX_DEPTH))?;
            map.largest(&most).map(|_| ())
        })
    }

    fn check_arena(&self) -> Check {
        within("arena_bytes", self.arena_bytes, 0, MAX_BYTES)?;
        self.buffers.iter().try_for_each(|buffer| self.check_buffer(buffer))?;
        let used = self.buffers.iter().map(|b| b.offset + b.bytes).max().unwrap_or(0);
        within("arena_bytes", self.arena_bytes, used, used.next_multiple_of(MAX_PAGE))
    }

    fn check_buffer(&self, buffer: &Buffer) -> Check {
        let Buffer { name, offset, bytes, live: [first, last] } = buffer;
        let end = offset.checked_add(*bytes).filter(|end| *end <= self.arena_bytes);
        require(end.is_some(), || {
            format!("buffer {name}: {bytes} bytes at {offset} of an arena of {}", self.arena_bytes)
        })?;
        require(offset % ALIGNMENT == 0, || {
            format!("buffer {name}: offset {offset}, expected a multiple of {ALIGNMENT}")
        })?;
        require(first <= last && (*last as usize) < self.launches.len(), || {
            format!("buffer {name}: live from launch {first} to {last} of {}", self.launches.len())
        })
    }

    fn check_weights(&self, manifest: &Manifest) -> Check {
        let mut names = BTreeSet::new();
        for weight in &self.weights {
            require(names.insert(&weight.name), || format!("two weights named {}", weight.name))?;
            check_weight(manifest, weight).map_err(|problem| format!("weight {}: {problem}", weight.name))?;
        }
        let total = self.weights.iter().try_fold(0u64, |n, w| n.checked_add(w.bytes()?)).unwrap_or(u64::MAX);
        within("the weights' bytes", total, 0, MAX_BYTES)
    }

    fn check_launch(&self, manifest: &Manifest, launch: &Launch) -> Check {
        launch.args.iter().try_for_each(|arg| self.check_arg(manifest, arg))?;
        let Some((last, others)) = launch.variants.split_last() else { return Err("no variants".into()) };
        require(last.at_most.is_none(), || "its last variant has a condition, expected none".into())?;
        require(others.iter().all(|v| v.at_most.is_some()), || "a variant without condition before the last".into())?;
        launch.variants.iter().try_for_each(|variant| self.check_variant(manifest, launch, variant))
    }

    fn check_arg(&self, manifest: &Manifest, arg: &Arg) -> Check {
        match arg {
            Arg::Buffer { id, offset } => {
                let buffer = self.buffers.get(*id as usize);
                let buffer = buffer.ok_or_else(|| format!("buffer {id} of {}", self.buffers.len()))?;
                require(*offset < buffer.bytes, || {
                    format!("byte {offset} of buffer {}, which has {}", buffer.name, buffer.bytes)
                })
            }
            Arg::Weight(id) => {
                require((*id as usize) < self.weights.len(), || format!("weight {id} of {}", self.weights.len()))
            }
            Arg::KeyCache(layer) | Arg::ValueCache(layer) => {
                let layers = manifest.kv_cache.num_layers;
                require(*layer < layers, || format!("cache of layer {layer} of {layers}"))
            }
            Arg::KeyScales(layer) | Arg::ValueScales(layer) => {
                let layers = manifest.kv_cache.num_layers;
                require(*layer < layers, || format!("scales of the cache of layer {layer} of {layers}"))?;
                require(manifest.kv_cache.scale_bytes > 0, || {
                    "scales of a cache whose kv_cache.scale_bytes is 0".into()
                })
            }
            Arg::Input(
                Input::TokenIds
                | Input::Positions
                | Input::SlotMapping
                | Input::QueryStartLoc
                | Input::SeqLens
                | Input::BlockTable
                | Input::LogitsIndices
                | Input::Temperature
                | Input::Uniform
                | Input::Ranked
                | Input::TopK
                | Input::TileSeq
                | Input::TileStart,
            ) => Ok(()),
        }
    }

    fn check_variant(&self, manifest: &Manifest, launch: &Launch, variant: &Variant) -> Check {
        let kernel = self.kernels.get(variant.kernel as usize);
        let kernel = kernel.ok_or_else(|| format!("kernel {} of {}", variant.kernel, self.kernels.len()))?;
        require(kernel.tensors as usize == launch.args.len(), || {
            format!("{} arguments, but kernel {} takes {}", launch.args.len(), kernel.symbol, kernel.tensors)
        })?;
        within("its number of grid dimensions", variant.grid.len() as u64, 1, MAX_GRID as u64)?;
        let most = |sym| self.most(manifest, sym);
        let extents = variant.grid.iter().map(|extent| {
            check_expr(extent, MAX_DEPTH)?;
            extent.eval(&most).ok_or_else(|| format!("grid {extent:?} overflows"))
        });
        let extents = extents.collect::<Result<Vec<u64>, String>>()?;
        // An extent of zero must not hide another that overflows.
        let programs = extents.iter().try_fold(1u64, |n, extent| n.checked_mul((*extent).max(1)));
        let one_each = kernel.gpu.as_ref().filter(|gpu| gpu.max_ctas.is_none());
        let most = one_each.map_or(MAX_PROGRAMS, |gpu| gpu::MAX_CTAS / u64::from(gpu.ctas_per_program.max(1)));
        within("its number of programs", programs.unwrap_or(u64::MAX), 1, most)
    }

    /// The largest value of a symbol: that of P is what slots, which are i32, can number.
    pub fn most(&self, manifest: &Manifest, sym: Sym) -> u64 {
        let [tokens, seqs] = [self.max_num_batched_tokens, self.max_num_seqs].map(u64::from);
        match sym {
            Sym::T => tokens,
            Sym::R => seqs,
            Sym::L => u64::from(self.max_logits),
            Sym::Q => seqs + tokens.div_ceil(u64::from(self.query_tile)),
            Sym::M => u64::from(manifest.model.max_model_len).div_ceil(u64::from(manifest.kv_cache.block_size)),
            Sym::P => i32::MAX as u64 / u64::from(manifest.kv_cache.block_size.max(1)),
        }
    }

    fn check_outputs(&self, manifest: &Manifest) -> Check {
        let Outputs { logits, max, logsumexp, block_max, block_sum, draws, ranks, most_likely } = self.outputs;
        let (rows, vocab) = (u64::from(self.max_logits), u64::from(manifest.model.vocab_size));
        let columns = [(logits, vocab, "logits"), (max, 1, "max"), (logsumexp, 1, "logsumexp")];
        let blocks = vocab.div_ceil(BLOCK);
        let blocks = [(block_max, blocks, "block_max"), (block_sum, blocks, "block_sum")];
        let draws = [(draws, DRAWS as u64, "draws"), (ranks, (RANK * DRAWS) as u64, "ranks")];
        let most_likely = most_likely.map(|id| (id, 2 * TOP_K as u64, "most_likely"));
        for (id, columns, what) in columns.into_iter().chain(blocks).chain(draws).chain(most_likely) {
            let buffer = self.buffers.get(id as usize);
            let buffer = buffer.ok_or_else(|| format!("output {what} is buffer {id} of {}", self.buffers.len()))?;
            let least = (rows * columns).saturating_mul(4);
            require(buffer.bytes >= least, || {
                format!("output {what}: buffer {} of {} bytes, expected at least {least}", buffer.name, buffer.bytes)
            })?;
        }
        Ok(())
    }
}

fn check_weight(manifest: &Manifest, weight: &Weight) -> Check {
    within("its bytes", weight.bytes().unwrap_or(u64::MAX), 1, MAX_BYTES)?;
    weight.recipe.check()?;
    check_positions(manifest, &weight.recipe)
}

/// A rotary table is as long as the longest sequence, not longer: nothing else bounds what it takes to make it.
fn check_positions(manifest: &Manifest, recipe: &Recipe) -> Check {
    match recipe {
        Recipe::RopeTable { positions, .. } => {
            within("positions of its rope table", *positions, 1, u64::from(manifest.model.max_model_len))
        }
        Recipe::Cast(_, of)
        | Recipe::Quantize { of, .. }
        | Recipe::Pack { of, .. }
        | Recipe::Blocks { of, .. }
        | Recipe::Fragments { of, .. } => check_positions(manifest, of),
        Recipe::Concat(parts) => parts.iter().try_for_each(|part| check_positions(manifest, part)),
        Recipe::Tensor(_) => Ok(()),
    }
}

fn check_expr(expr: &Expr, depth: usize) -> Check {
    let below = depth.checked_sub(1).ok_or_else(|| format!("an expression nested deeper than {MAX_DEPTH}"))?;
    match expr {
        Expr::Const(c) => require(*c >= 0, || format!("constant {c} in a grid, expected none below 0")),
        Expr::Sym(_) => Ok(()),
        Expr::Add(a, b) | Expr::Mul(a, b) => check_expr(a, below).and_then(|()| check_expr(b, below)),
        Expr::CeilDiv(a, d) => {
            require(*d > 0, || format!("division by {d} in a grid, expected a positive divisor"))?;
            check_expr(a, below)
        }
        Expr::Min(a, most) => {
            require(*most >= 0, || format!("bound {most} in a grid, expected none below 0"))?;
            check_expr(a, below)
        }
    }
}

//! The numbers of each call's kernels, and the kernels' names.

use super::{Choice, Selection, layout::pair};
use crate::{emit, passes::bucket::bucket};
use petgraph::stable_graph::NodeIndex;
use rvllm_artifact::quantized::Stored;
use rvllm_ir::{
    DType, Dim, Sym, TensorType,
    graph::{Attention, Call, Dequantize, Epilogue, Quantize, Scales, ValueId},
    tile::{MemLayout, PAD_ROWS},
};
use rvllm_kernels::{
    Draw, Embed, Gemm, KvCache, KvLayout, LogitStats, PagedAttention, QuantizeRows, Quantized, RmsNorm, RopeKvWrite,
    Spec, Split, Spread,
};
use rvllm_targets::{GemmRow, Target};

/// Runs of logits that a CTA of `logit_stats` looks at together on a GPU (16 elements for each of 512 threads), and parts of a
/// row, each a CTA's: one alone reads half a megabyte in 20 µs. For more of them 256 rows take longer.
const ROW_ON_GPU: [usize; 2] = [32, 4];
/// Blocks that attention's loads run ahead: the next block's keys arrive while this one's are multiplied.
const ATTENTION_STAGES: usize = 2;

/// The same where a block is multiplied with few rows, and its way from memory is what takes time.
const DECODE_STAGES: usize = 4;

/// Tokens of a step up to which a CPU works on one token of a query tile at a time: steps that mostly decode.
const DECODE_TOKENS: usize = 128;

/// Columns that may share a scale of a weight of 4 bits on a GPU.
const WEIGHT_ONLY_GROUPS: [u32; 3] = [32, 64, 128];
/// Columns that share a scale of a weight in e4m3: those whose sums are added to the accumulators together.
const FLOAT_GROUP: u32 = 128;

impl Selection<'_> {
    /// What `call` at node `n` launches, by rising bound; the last has none.
    pub(super) fn choices(&mut self, n: NodeIndex, call: &Call) -> Result<Vec<Choice>, String> {
        let spec = match call {
            Call::Gemm { epilogue, scales, out } => return self.gemm(n, *epilogue, *scales, *out),
            Call::Embed { values } => self.embed(n, *values)?,
            Call::RmsNorm { .. } => self.rms_norm(n, call)?,
            Call::QuantizeRows(how) => self.quantize_rows(n, *how)?,
            Call::RopeKvWrite { attention, qk_norm, rope_dim } => {
                self.rope_kv_write(n, attention, *qk_norm, *rope_dim)?
            }
            Call::PagedAttention(attention) => return self.paged_attention(n, attention),
            Call::LogitStats => {
                self.rows_along(n, 0, Sym::L)?;
                let vocab = self.columns(self.operand(n, 0)?)?;
                let [runs, parts] = if self.target.gpu.is_some() { ROW_ON_GPU } else { [1, 1] };
                Spec::LogitStats(LogitStats { vocab, runs, parts })
            }
            Call::Rank => Spec::Rank(Draw { vocab: self.columns(self.operand(n, 0)?)? }),
            Call::TopK => Spec::TopK(Draw { vocab: self.columns(self.operand(n, 0)?)? }),
            Call::Draw => Spec::Draw(Draw { vocab: self.columns(self.operand(n, 0)?)? }),
        };
        Ok(vec![(None, spec)])
    }

    fn tensor(&self, n: NodeIndex, i: usize) -> Result<&TensorType, String> {
        self.operand(n, i).map(|v| self.graph.tensor(v))
    }

    /// Kernels other than products are made for rows along one symbol.
    fn rows_along(&self, n: NodeIndex, i: usize, rows: Sym) -> Result<(), String> {
        let ty = self.tensor(n, i)?;
        match ty.dims.first() {
            Some(Dim::Sym(s)) if *s == rows => Ok(()),
            _ => Err(format!("`{}` reads rows along {rows}, but operand {i} is {ty}", self.name(n))),
        }
    }

    fn columns(&self, value: ValueId) -> Result<usize, String> {
        let info = self.graph.result(value);
        self.graph.tensor(value).last().ok_or_else(|| format!("`{}` is {}, without static columns", info.name, info.ty))
    }

    /// Columns per iteration of a row of `n`.
    fn chunk(&self, n: usize) -> usize {
        self.target.row_chunk.min(n.next_power_of_two())
    }

    fn embed(&self, n: NodeIndex, values: Option<Dequantize>) -> Result<Spec, String> {
        self.rows_along(n, 1, Sym::T)?;
        let table = self.operand(n, 0)?;
        let ty = self.graph.tensor(table);
        let vocab = ty.dims[0].constant().ok_or_else(|| format!("table {ty} is not static"))?;
        Ok(Spec::Embed(Embed {
            vocab,
            hidden: self.columns(table)?,
            dtype: values.map_or(ty.dtype, |how| how.out),
            values: values.map(|how| self.quantized_as(ty.dtype, how.group, n, 2)).transpose()?,
            table: self.weight_layout(table),
            chunk: self.chunk(self.columns(table)?).next_multiple_of(values.and_then(|how| how.group).unwrap_or(1)),
        }))
    }

    fn rms_norm(&self, n: NodeIndex, call: &Call) -> Result<Spec, String> {
        let Call::RmsNorm { eps, residual, rows, quantize } = *call else {
            return Err(format!("`{}` is no norm", self.name(n)));
        };
        self.rows_along(n, 0, Sym::T)?;
        let x = self.operand(n, 0)?;
        Ok(Spec::RmsNorm(RmsNorm {
            n: self.columns(x)?,
            dtype: self.graph.tensor(x).dtype,
            x: self.strided(x),
            normed: self.activation_layout(ValueId { node: n, result: 0 }),
            eps,
            residual,
            rows,
            quantize,
            chunk: self.groups_chunk(self.columns(x)?, quantize),
        }))
    }

    fn quantize_rows(&self, n: NodeIndex, how: Quantize) -> Result<Spec, String> {
        let x = self.operand(n, 0)?;
        let ty = self.graph.tensor(x);
        let (Dim::Sym(m), 2) = (ty.dims[0], ty.rank()) else {
            return Err(format!("`{}` quantises {ty}, which is not a matrix of rows of a step", self.name(n)));
        };
        let columns = self.columns(x)?;
        let chunk = self.groups_chunk(columns, Some(how));
        let values = self.activation_layout(ValueId { node: n, result: 0 });
        let (dtype, x) = (ty.dtype, self.strided(x));
        Ok(Spec::QuantizeRows(QuantizeRows { m, n: columns, dtype, x, how, values, chunk }))
    }

    /// Columns per iteration of a row of `n`: whole groups where values are summed up in groups.
    fn groups_chunk(&self, n: usize, quantize: Option<Quantize>) -> usize {
        let group = quantize.and_then(|how| how.group).unwrap_or(1);
        self.chunk(n).next_multiple_of(group)
    }

    /// One variant for each bucket of rows.
    fn gemm(&self, n: NodeIndex, epilogue: Epilogue, scales: Scales, out: DType) -> Result<Vec<Choice>, String> {
        let (a, weight) = (self.operand(n, 0)?, self.operand(n, 1)?);
        let ty = self.graph.tensor(a);
        let (Dim::Sym(m), 2) = (ty.dims[0], ty.rank()) else {
            return Err(format!("`{}` multiplies {ty}, which is not a matrix of rows of a step", self.name(n)));
        };
        let mut numbers = self.gemm_of(n, m, a, weight, epilogue, out)?;
        numbers.quantized = self.quantized(n, epilogue, scales)?;
        let dtype = numbers.quantized.map_or(numbers.dtype, schedule);
        let buckets = bucket(self.target, dtype, epilogue.silu_mul, [numbers.n, numbers.k], self.limits.rows(m));
        if buckets.is_empty() {
            let (target, gated) = (&self.target.name, if epilogue.silu_mul { "gated " } else { "" });
            return Err(format!("target {target} has no schedule for {gated}matrix products of {dtype}"));
        }
        Ok(buckets.iter().map(|b| (b.at_most.map(|n| (m, n)), Spec::Gemm(tiled(&numbers, b.row)))).collect())
    }

    /// How the operands of a product are quantised.
    fn quantized(&self, n: NodeIndex, epilogue: Epilogue, scales: Scales) -> Result<Option<Quantized>, String> {
        if scales == Scales::None {
            return Ok(None);
        }
        let weight_only = matches!(scales, Scales::WeightOnly { .. });
        let integers = matches!(scales, Scales::Groups(_) | Scales::GroupsWithZeros(_));
        if integers && self.target.gpu.is_some() {
            return Err(format!(
                "target {} multiplies 4-bit weights with activations of 16 bits, a CPU with those of 8 · help: compile for \
                 one of them at a time",
                self.target.name
            ));
        }
        let of_weight = scales.of_weight();
        let first = epilogue.operands() + of_weight.first().unwrap_or(&1);
        let quantized = self.quantized_as(self.tensor(n, 1)?.dtype, scales.group(), n, first)?;
        Ok(Some(Quantized { zeros: of_weight.len() > 1, weight_only, ..quantized }))
    }

    /// Values whose scales are operand `i`.
    fn quantized_as(&self, weight: DType, group: Option<usize>, n: NodeIndex, i: usize) -> Result<Quantized, String> {
        let scales = self.operand(n, i)?;
        let scale = self.graph.tensor(scales).dtype;
        Ok(Quantized { weight, group, scales: self.weight_layout(scales), scale, zeros: false, weight_only: false })
    }

    /// A product without its tile sizes.
    fn gemm_of(
        &self,
        n: NodeIndex,
        m: Sym,
        a: ValueId,
        weight: ValueId,
        epilogue: Epilogue,
        out: DType,
    ) -> Result<Gemm, String> {
        Ok(Gemm {
            m,
            n: self.columns(ValueId { node: n, result: 0 })?,
            k: self.columns(a)?,
            dtype: if epilogue.bias { self.tensor(n, 2)?.dtype } else { self.graph.tensor(a).dtype },
            quantized: None,
            a: self.matrix(a),
            weight: self.weight_layout(weight),
            out,
            result: self.activation_layout(ValueId { node: n, result: 0 }),
            epilogue,
            block_m: 0,
            block_n: 0,
            block_k: 0,
            stages: 0,
        })
    }

    fn cache(&self, attention: &Attention, dtype: DType) -> KvCache {
        KvCache {
            kv_heads: attention.kv_heads,
            head_dim: attention.head_dim,
            block_size: self.target.block_size,
            dtype,
            stored: self.stored.unwrap_or(dtype),
            // not the target's panel: the targets of an artifact share one cache, whatever their registers' width
            layout: match self.target.panel {
                Some(_) => KvLayout::Panels { panel: self.target.block_size, pair: pair(dtype) },
                None => KvLayout::Tokens,
            },
        }
    }

    fn rope_kv_write(
        &mut self,
        n: NodeIndex,
        attention: &Attention,
        qk_norm: Option<f32>,
        rope_dim: usize,
    ) -> Result<Spec, String> {
        self.rows_along(n, 0, Sym::T)?;
        let cache = self.cache(attention, self.tensor(n, 0)?.dtype);
        self.kv_cache(cache)?;
        let table = self.tensor(n, 3)?;
        let positions = table.dims[0].constant().ok_or_else(|| format!("table {table} is not static"))?;
        let strides = [self.operand(n, 0)?, self.operand(n, 1)?, self.operand(n, 2)?].map(|v| self.row(v));
        Ok(Spec::RopeKvWrite(RopeKvWrite {
            heads: attention.heads,
            cache,
            rope_dim,
            positions,
            qk_norm,
            strides,
            head_block: self.target.head_block,
        }))
    }

    /// Variants for few query tiles, whose parts are worked on at once or apart, and for steps that mostly decode.
    fn paged_attention(&mut self, n: NodeIndex, a: &Attention) -> Result<Vec<Choice>, String> {
        let cache = self.cache(a, self.tensor(n, 0)?.dtype);
        let span = self.span(&cache);
        let query_tile = self.query_tile(a, span)?;
        let spec = PagedAttention {
            heads: a.heads,
            cache,
            scale: a.scale,
            window: a.window,
            softcap: a.softcap,
            query_tile,
            pass: query_tile,
            blocks: span.unwrap_or(1),
            stages: ATTENTION_STAGES,
            split: None,
            result: self.activation_layout(ValueId { node: n, result: 0 }),
        };
        let Some(gpu) = &self.target.gpu else { return Ok(self.attention_on_cpu(spec)) };
        let iterations = (gpu.kv_part_blocks / spec.blocks).max(1);
        let split = |spread| Some(Split { parts: gpu.kv_parts, iterations, spread, room: 0 });
        let tiles = (gpu.kv_spread_programs / a.kv_heads).max(1);
        let pass = (gpu.decode_rows * a.kv_heads / a.heads).clamp(1, query_tile);
        let variant = |spread, pass, stages| {
            Spec::PagedAttention(PagedAttention { split: split(spread), pass, stages, ..spec.clone() })
        };
        Ok(vec![
            (Some((Sym::Q, tiles)), variant(Spread::Together, pass, DECODE_STAGES)),
            (Some((Sym::T, gpu.decode_tokens)), variant(Spread::InTurn, pass, DECODE_STAGES)),
            (None, variant(Spread::InTurn, query_tile, ATTENTION_STAGES)),
        ])
    }

    /// On a CPU programs share nothing, so parts that are worked on at once are programs', and their states lie in memory.
    fn attention_on_cpu(&self, spec: PagedAttention) -> Vec<Choice> {
        let tiles = self
            .target
            .kv_split
            .as_ref()
            .map_or(0, |of| (of.programs / spec.cache.kv_heads).clamp(1, DECODE_TOKENS / spec.query_tile));
        let most = self.limits.max_model_len.div_ceil(spec.cache.block_size);
        let split = self.target.kv_split.as_ref().filter(|of| most > of.run_blocks).map(|of| Split {
            parts: of.parts,
            iterations: of.run_blocks,
            spread: Spread::InTurn,
            room: tiles * spec.query_tile,
        });
        let spec = PagedAttention { split, ..spec };
        let apart = split.map(|split| PagedAttention {
            pass: 1,
            split: Some(Split { spread: Spread::Apart, ..split }),
            ..spec.clone()
        });
        let decode = (spec.query_tile > 1).then(|| PagedAttention { pass: 1, ..spec.clone() });
        let apart = apart.map(|s| (Some((Sym::Q, tiles)), Spec::PagedAttention(s)));
        let decode = decode.map(|s| (Some((Sym::T, DECODE_TOKENS)), Spec::PagedAttention(s)));
        apart.into_iter().chain(decode).chain([(None, Spec::PagedAttention(spec))]).collect()
    }

    /// Blocks that an iteration visits together where warpgroups multiply them: those of 16-bit heads of one or two lines, which may be
    /// stored in 8 bits.
    fn span(&self, cache: &KvCache) -> Option<usize> {
        let gpu = self.target.gpu.as_ref()?;
        let fits = cache.dtype.bits() == 16 && [64, 128].contains(&cache.head_dim);
        let blocks = gpu.kv_span / cache.block_size;
        (fits && blocks > 0 && gpu.kv_span.is_multiple_of(cache.block_size)).then_some(blocks)
    }

    /// Tokens of a query tile: as many as fill the rows that the target aims at. The step lists tiles once for all
    /// layers, so layers agree.
    fn query_tile(&mut self, a: &Attention, span: Option<usize>) -> Result<usize, String> {
        let group = a.heads / a.kv_heads;
        let tile = match (&self.target.gpu, span) {
            // the copy engine keeps to the step's tokens
            (Some(gpu), Some(_)) => (gpu.kv_span_rows / group).max(1),
            _ => (self.target.attention_rows / group).clamp(1, PAD_ROWS),
        };
        match self.program.query_tile {
            0 => self.program.query_tile = tile,
            known if known != tile => {
                return Err(format!("layer {} has query tiles of {tile} tokens, an earlier one {known}", a.layer));
            }
            _ => {}
        }
        Ok(tile)
    }
}

fn tiled(numbers: &Gemm, row: &GemmRow) -> Gemm {
    let GemmRow {
        block_m,
        block_n,
        block_k,
        stages,
        dtype: _,
        gated: _,
        above_n: _,
        up_to_n: _,
        above_k: _,
        k_unit: _,
        at_most: _,
        source: _,
    } = row;
    Gemm { block_m: *block_m, block_n: *block_n, block_k: *block_k, stages: *stages, ..numbers.clone() }
}

/// A kernel's name in object code: its numbers, as far as they tell kernels of one model apart.
pub(super) fn symbol(spec: &Spec) -> String {
    match spec {
        Spec::Embed(s) => {
            let values = s.values.map_or(String::new(), |q| format!("_{}", weight_name(q)));
            format!("embed_{}{values}_v{}_h{}", s.dtype, s.vocab, s.hidden)
        }
        Spec::RmsNorm(s) => {
            let (sum, rows) = (flag(s.residual, "_res"), flag(s.rows, "_rows"));
            let values = s.quantize.map_or(String::new(), values);
            format!("rms_norm_{}_n{}{sum}{rows}{values}{}", s.dtype, s.n, view(s.x))
        }
        Spec::QuantizeRows(s) => {
            let m = s.m.name().to_lowercase();
            format!("quantize_rows_{}_{m}_n{}{}{}", s.dtype, s.n, values(s.how), view(s.x))
        }
        Spec::Gemm(s) => gemm_symbol(s),
        Spec::RopeKvWrite(s) => {
            let (c, norm) = (&s.cache, flag(s.qk_norm.is_some(), "_norm"));
            format!("rope_kv_write_{}_h{}_kv{}_d{}{norm}{}", c.dtype, s.heads, c.kv_heads, c.head_dim, stored(c))
        }
        Spec::PagedAttention(s) => {
            let (c, window) = (&s.cache, s.window.map_or(String::new(), |w| format!("_w{w}")));
            let spread = s.split.map_or("", |split| spread(split.spread));
            let pass = if s.pass < s.query_tile { format!("_pass{}", s.pass) } else { String::new() };
            let (heads, kv_heads, d) = (s.heads, c.kv_heads, c.head_dim);
            format!("paged_attention_{}_h{heads}_kv{kv_heads}_d{d}{window}{pass}{spread}{}", c.dtype, stored(c))
        }
        Spec::JoinParts(s) => {
            format!("join_parts_{}_h{}_kv{}_d{}", s.cache.dtype, s.heads, s.cache.kv_heads, s.cache.head_dim)
        }
        Spec::LogitStats(s) => format!("logit_stats_v{}", s.vocab),
        Spec::Draw(s) => format!("draw_v{}", s.vocab),
        Spec::Feed(s) => format!("feed_v{}_l{}", s.vocab, s.rows),
        Spec::Rank(s) => format!("rank_v{}", s.vocab),
        Spec::TopK(s) => format!("top_k_v{}", s.vocab),
    }
}

fn spread(of: Spread) -> &'static str {
    match of {
        Spread::InTurn => "",
        Spread::Together => "_spread",
        Spread::Apart => "_apart",
    }
}

fn gemm_symbol(s: &Gemm) -> String {
    let Epilogue { bias, silu_mul, residual } = s.epilogue;
    let epilogue = [flag(bias, "_bias"), flag(silu_mul, "_silu"), flag(residual, "_res")].concat();
    let dtype = match s.quantized {
        None => s.dtype.to_string(),
        Some(q) => weight_name(q),
    };
    let out = if s.quantized.is_none() && s.out == s.dtype { String::new() } else { format!("_{}", s.out) };
    let (m, rows) = (s.m.name().to_lowercase(), s.block_m);
    format!("gemm_{dtype}_{m}{rows}_n{}_k{}{epilogue}{out}{}", s.n, s.k, view(s.a))
}

fn weight_name(q: Quantized) -> String {
    let Quantized { weight, group, scales: _, scale, zeros, weight_only: _ } = q;
    let scale = if group.is_some() && scale != DType::F16 { format!("_{scale}") } else { String::new() };
    let group = group.map_or(String::new(), |n| format!("g{n}"));
    format!("{weight}{group}{scale}{}", flag(zeros, "z"))
}

/// The element type whose schedule rows a product of values has: groups of integers are walked in one way, whatever their bits.
fn schedule(q: Quantized) -> DType {
    schedule_of(q.weight, q.group.is_some())
}

fn schedule_of(weight: DType, groups: bool) -> DType {
    if groups && !weight.is_float() { DType::U4 } else { weight }
}

/// Whether a target has numbers for products with weights that are stored so.
pub(crate) fn has_schedule(target: &Target, stored: Stored) -> bool {
    let values = emit::ir_dtype(stored.values);
    let dtype = schedule_of(values, stored.group.is_some());
    let pieces = |group: u32| match values {
        DType::F8e4m3 => group == FLOAT_GROUP,
        _ => values == DType::U4 && WEIGHT_ONLY_GROUPS.contains(&group),
    };
    if target.gpu.is_some() && stored.group.is_some_and(|group| !pieces(group)) {
        return false;
    }
    let rows = |gated| target.gemm_rows(dtype.name(), gated, 64, 64);
    [false, true].into_iter().all(|gated| !rows(gated).is_empty())
}

fn values(how: Quantize) -> String {
    format!("_{}{}", how.to, how.group.map_or(String::new(), |n| format!("g{n}")))
}

/// Marks a cache of another element type.
fn stored(cache: &KvCache) -> String {
    if cache.stored == cache.dtype { String::new() } else { format!("_{}", cache.stored) }
}

fn flag(on: bool, text: &'static str) -> &'static str {
    if on { text } else { "" }
}

/// Marks operands that are views.
fn view(layout: MemLayout) -> String {
    match layout {
        MemLayout::Strided { row: Some(row) } => format!("_row{row}"),
        MemLayout::Strided { row: None }
        | MemLayout::Panel { .. }
        | MemLayout::Blocks { .. }
        | MemLayout::Fragments { .. } => String::new(),
    }
}

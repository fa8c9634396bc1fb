//! From the compiler's types to the artifact's: every struct and enum is taken apart exhaustively, so that a field
//! added on either side does not compile until it is emitted.

pub(crate) mod gpu;

use crate::{
    passes::plan_memory::{Memory, Place},
    program::{self, Limits, Program},
};
use rvllm_artifact::{gpu::GpuKernel, manifest, plan, recipe};
use rvllm_ir::{
    DType, Expr, Sym,
    graph::Input,
    recipe::{Part, Recipe},
    tile::Kernel,
};
use std::collections::BTreeMap;

/// The plan of a placed program.
///
/// `gpu` says for each kernel how a GPU launches it; it is shorter, or empty, where none does.
pub fn plan(program: &Program, memory: &Memory, limits: &Limits, gpu: Vec<Option<GpuKernel>>) -> plan::Plan {
    let Program { kernels, buffers, weights, launches, outputs, feeds, query_tile, kv_cache: _ } = program;
    let Limits { max_model_len: _, max_num_batched_tokens, max_num_seqs, max_logits } = *limits;
    let Memory { arena_bytes, places } = memory;
    let [logits, max, logsumexp, block_max, block_sum, draws, ranks, most_likely] = outputs.map(int);
    plan::Plan {
        max_num_batched_tokens: int(max_num_batched_tokens),
        max_num_seqs: int(max_num_seqs),
        max_logits: int(max_logits),
        query_tile: int(*query_tile),
        arena_bytes: *arena_bytes,
        buffers: buffers.iter().zip(places).map(|(b, p)| buffer(b, p)).collect(),
        weights: weights.iter().map(weight).collect(),
        kernels: kernels.iter().zip(gpu.into_iter().chain(std::iter::repeat(None))).map(kernel).collect(),
        launches: launches.iter().map(|l| launch(l, kernels)).collect(),
        outputs: plan::Outputs {
            logits,
            max,
            logsumexp,
            block_max,
            block_sum,
            draws,
            ranks,
            most_likely: Some(most_likely),
        },
        feeds: *feeds,
    }
}

/// Sizes and indices of a plan: bounded by a model's, which fit 32 bits.
fn int(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn buffer(buffer: &program::Buffer, place: &Place) -> plan::Buffer {
    let program::Buffer { name, ty: _ } = buffer;
    let Place { offset, bytes, live } = *place;
    plan::Buffer { name: name.clone(), offset, bytes, live }
}

fn weight(weight: &program::Weight) -> plan::Weight {
    let program::Weight { name, dtype: of, shape, recipe } = weight;
    let shape = shape.iter().map(|n| *n as u64).collect();
    plan::Weight { name: name.clone(), dtype: dtype(*of), shape, recipe: self::recipe(recipe) }
}

pub(crate) fn kernel((kernel, gpu): (&Kernel, Option<GpuKernel>)) -> plan::Kernel {
    plan::Kernel {
        symbol: kernel.name.clone(),
        tensors: int(kernel.params.len()),
        symbols: kernel.symbols().into_iter().map(symbol).collect(),
        gpu,
    }
}

fn launch(launch: &program::Launch, kernels: &[Kernel]) -> plan::Launch {
    let program::Launch { name, args, variants } = launch;
    plan::Launch {
        name: name.clone(),
        args: args.iter().map(arg).collect(),
        variants: variants.iter().map(|v| variant(v, variants, kernels)).collect(),
    }
}

/// What launches nothing has no programs of the kernel that another of the launch's variants has.
fn variant(variant: &program::Variant, of_launch: &[program::Variant], kernels: &[Kernel]) -> plan::Variant {
    let program::Variant { at_most, kernel } = *variant;
    let at_most = at_most.map(|(s, n)| (symbol(s), int(n)));
    match kernel {
        Some(kernel) => {
            let grid = kernels[kernel].grid.iter().map(|(_, extent)| expr(extent)).collect();
            plan::Variant { at_most, kernel: int(kernel), grid }
        }
        None => {
            let kernel = of_launch.iter().find_map(|v| v.kernel).unwrap_or_default();
            plan::Variant { at_most, kernel: int(kernel), grid: vec![plan::Expr::Const(0)] }
        }
    }
}

fn arg(arg: &program::Arg) -> plan::Arg {
    match *arg {
        program::Arg::Buffer { id, offset } => plan::Arg::Buffer { id: int(id), offset: offset as u64 },
        program::Arg::Weight(id) => plan::Arg::Weight(int(id)),
        // `select` passes a cache as its two halves, never as one input.
        program::Arg::Input(Input::Kv(layer)) | program::Arg::KeyCache(layer) => plan::Arg::KeyCache(int(layer)),
        program::Arg::Input(Input::TokenIds) => plan::Arg::Input(plan::Input::TokenIds),
        program::Arg::Input(Input::Positions) => plan::Arg::Input(plan::Input::Positions),
        program::Arg::Input(Input::SlotMapping) => plan::Arg::Input(plan::Input::SlotMapping),
        program::Arg::Input(Input::QueryStartLoc) => plan::Arg::Input(plan::Input::QueryStartLoc),
        program::Arg::Input(Input::SeqLens) => plan::Arg::Input(plan::Input::SeqLens),
        program::Arg::Input(Input::BlockTable) => plan::Arg::Input(plan::Input::BlockTable),
        program::Arg::Input(Input::LogitsIndices) => plan::Arg::Input(plan::Input::LogitsIndices),
        program::Arg::Input(Input::Temperature) => plan::Arg::Input(plan::Input::Temperature),
        program::Arg::Input(Input::Uniform) => plan::Arg::Input(plan::Input::Uniform),
        program::Arg::Input(Input::Ranked) => plan::Arg::Input(plan::Input::Ranked),
        program::Arg::Input(Input::TopK) => plan::Arg::Input(plan::Input::TopK),
        program::Arg::Input(Input::TileSeq) => plan::Arg::Input(plan::Input::TileSeq),
        program::Arg::Input(Input::TileStart) => plan::Arg::Input(plan::Input::TileStart),
        program::Arg::ValueCache(layer) => plan::Arg::ValueCache(int(layer)),
        program::Arg::KeyScales(layer) => plan::Arg::KeyScales(int(layer)),
        program::Arg::ValueScales(layer) => plan::Arg::ValueScales(int(layer)),
    }
}

/// An element type.
pub(crate) fn dtype(of: DType) -> plan::DType {
    match of {
        DType::F32 => plan::DType::F32,
        DType::F16 => plan::DType::F16,
        DType::Bf16 => plan::DType::Bf16,
        DType::F8e4m3 => plan::DType::F8e4m3,
        DType::F8e5m2 => plan::DType::F8e5m2,
        DType::I8 => plan::DType::I8,
        DType::U4 => plan::DType::U4,
        DType::U8 => plan::DType::U8,
        DType::I32 => plan::DType::I32,
    }
}

/// The element type that an artifact's stands for.
pub(crate) fn ir_dtype(of: plan::DType) -> DType {
    match of {
        plan::DType::F32 => DType::F32,
        plan::DType::F16 => DType::F16,
        plan::DType::Bf16 => DType::Bf16,
        plan::DType::F8e4m3 => DType::F8e4m3,
        plan::DType::F8e5m2 => DType::F8e5m2,
        plan::DType::I8 => DType::I8,
        plan::DType::U4 => DType::U4,
        plan::DType::U8 => DType::U8,
        plan::DType::I32 => DType::I32,
    }
}

fn symbol(of: Sym) -> plan::Sym {
    match of {
        Sym::T => plan::Sym::T,
        Sym::R => plan::Sym::R,
        Sym::L => plan::Sym::L,
        Sym::Q => plan::Sym::Q,
        Sym::M => plan::Sym::M,
        Sym::P => plan::Sym::P,
    }
}

fn expr(of: &Expr) -> plan::Expr {
    let boxed = |e: &Expr| Box::new(expr(e));
    match of {
        Expr::Const(c) => plan::Expr::Const(*c),
        Expr::Sym(s) => plan::Expr::Sym(symbol(*s)),
        Expr::Add(a, b) => plan::Expr::Add(boxed(a), boxed(b)),
        Expr::Mul(a, b) => plan::Expr::Mul(boxed(a), boxed(b)),
        Expr::CeilDiv(a, d) => plan::Expr::CeilDiv(boxed(a), *d),
        Expr::Min(a, most) => plan::Expr::Min(boxed(a), *most),
    }
}

/// A recipe; rotary tables carry their frequencies, so that the runtime needs to know no scaling.
pub fn recipe(of: &Recipe) -> recipe::Recipe {
    let boxed = |r: &Recipe| Box::new(recipe(r));
    match of {
        Recipe::Tensor(name) => recipe::Recipe::Tensor(name.clone()),
        Recipe::Concat(parts) => recipe::Recipe::Concat(parts.iter().map(recipe).collect()),
        Recipe::Cast(to, of) => recipe::Recipe::Cast(dtype(*to), boxed(of)),
        Recipe::Quantize { to, group, part: of_both, of } => {
            recipe::Recipe::Quantize { to: dtype(*to), group: group.map(int), part: part(*of_both), of: boxed(of) }
        }
        Recipe::Pack { n, k, of } => recipe::Recipe::Pack { n: int(*n), k: int(*k), of: boxed(of) },
        Recipe::Blocks { k, matrices, of } => {
            recipe::Recipe::Blocks { k: int(*k), matrices: int(*matrices), of: boxed(of) }
        }
        Recipe::Fragments { k, matrices, of } => {
            recipe::Recipe::Fragments { k: int(*k), matrices: int(*matrices), of: boxed(of) }
        }
        Recipe::RopeTable { rope, positions } => recipe::Recipe::RopeTable {
            inv_freq: rope.inv_freq(*positions),
            factor: rope.attention_factor(),
            positions: int(*positions),
        },
    }
}

fn part(of: Part) -> recipe::Part {
    match of {
        Part::Values => recipe::Part::Values,
        Part::Scales => recipe::Part::Scales,
    }
}

/// The manifest's entry of a KV cache.
pub(crate) fn kv_cache(cache: &program::KvCache) -> manifest::KvCache {
    let rvllm_kernels::KvCache { kv_heads, head_dim, block_size, dtype: _, stored: of, layout: _ } = cache.layer;
    let [k_bytes, v_bytes] = cache.block_bytes();
    manifest::KvCache {
        block_size: int(block_size),
        num_layers: int(cache.layers),
        num_kv_heads: int(kv_heads),
        head_dim: int(head_dim),
        dtype: dtype(of),
        k_bytes,
        v_bytes,
        scale_bytes: cache.scale_bytes(),
    }
}

/// The manifest's entry of a target.
pub(crate) fn target(target: &rvllm_targets::Target) -> manifest::Target {
    let name = &target.name;
    let (features, suffix) = match target.gpu {
        Some(_) => (vec![target.cpu.clone()], "bin"),
        None => (target.requires.clone(), "so"),
    };
    manifest::Target {
        name: name.clone(),
        arch: target.arch.name().to_string(),
        features,
        plan: format!("plans/{name}.json"),
        kernels: format!("kernels/{name}.{suffix}"),
    }
}

/// Renames weights that two targets store differently under one name, so that a name means one thing in the
/// artifact: the later target's gets the target's name appended.
pub(crate) fn unify_weights(plans: &mut [(String, plan::Plan)]) {
    let mut known: BTreeMap<String, plan::Weight> = BTreeMap::new();
    for (target, plan) in plans {
        for weight in &mut plan.weights {
            if known.get(&weight.name).is_some_and(|w| w != weight) {
                weight.name = format!("{}.{target}", weight.name);
            }
            known.entry(weight.name.clone()).or_insert_with(|| weight.clone());
        }
    }
}

//! Plans, run byte by byte: the launches of a plan on one arena, with weights made by its recipes and kernels run by
//! the tile interpreter, give what the model's graph gives. So offsets, lifetimes, views, layouts, recipes, variants
//! and the order of launches are right together.

use crate::common::{self, Model};
use anyhow::{Context, Result, bail};
use rvllm_artifact::plan::{Arg, Input as Step, Plan, Sym as PlanSym};
use rvllm_compiler::{
    emit_plan,
    passes::{plan_memory::plan_memory, select::select},
    program::Program,
};
use rvllm_ir::{
    DType, Sym,
    graph::{Input, interp::StepInputs},
    tile::{
        Access, Kernel, Param, interp,
        memory::{Elements, TensorData, dims, pack, unpack},
    },
};

const BLOCKS: usize = 4;

/// A plan with its memory.
struct Machine<'a> {
    program: &'a Program,
    plan: &'a Plan,
    arena: Vec<u8>,
    weights: Vec<Vec<u8>>,
    /// Keys, then values, then the scales of either, of each layer.
    kv: Vec<[Vec<u8>; 4]>,
}

impl<'a> Machine<'a> {
    fn new(model: &Model, program: &'a Program, plan: &'a Plan) -> Result<Machine<'a>> {
        let cache = program.kv_cache.context("no KV cache")?;
        let ([k, v], scales) = (cache.block_bytes(), cache.scale_bytes());
        let layer = [k, v, scales, scales].map(|n| vec![0; n as usize * BLOCKS]);
        let weights = plan.weights.iter().map(|w| {
            let bytes = model.made(&w.recipe)?;
            anyhow::ensure!(w.bytes() == Some(bytes.len() as u64), "{} is {:?}, made {}", w.name, w.shape, bytes.len());
            Ok(bytes)
        });
        Ok(Machine {
            program,
            plan,
            // Not zero: what a launch reads must have been written.
            arena: vec![0xff; plan.arena_bytes as usize],
            weights: weights.collect::<Result<_>>()?,
            kv: vec![layer; cache.layers],
        })
    }

    /// The bytes that an argument starts at.
    fn bytes(&mut self, arg: &Arg) -> &mut [u8] {
        match arg {
            Arg::Buffer { id, offset } => {
                let buffer = &self.plan.buffers[*id as usize];
                let end = buffer.offset + buffer.bytes;
                &mut self.arena[(buffer.offset + offset) as usize..end as usize]
            }
            Arg::Weight(id) => &mut self.weights[*id as usize],
            Arg::KeyCache(layer) => &mut self.kv[*layer as usize][0],
            Arg::ValueCache(layer) => &mut self.kv[*layer as usize][1],
            Arg::KeyScales(layer) => &mut self.kv[*layer as usize][2],
            Arg::ValueScales(layer) => &mut self.kv[*layer as usize][3],
            Arg::Input(_) => &mut [],
        }
    }

    fn load(&mut self, arg: &Arg, param: &Param, step: &StepInputs) -> Result<TensorData> {
        let dims = dims(&param.ty, &|s| symbol(step, s));
        if let Arg::Input(input) = arg {
            let tensor = step.tensor(graph_input(*input)).context("input")?;
            let elements = match param.ty.dtype {
                DType::F32 => Elements::F32(tensor.floats().to_vec()),
                _ => Elements::I32(tensor.ints().to_vec()),
            };
            return Ok(TensorData { dims, elements });
        }
        if param.access == Access::Out {
            return Ok(TensorData::zeros(&param.ty, &|s| symbol(step, s)));
        }
        Ok(unpack(self.bytes(arg), &dims, param.ty.dtype, param.layout)?)
    }

    fn store(&mut self, arg: &Arg, param: &Param, value: &TensorData) -> Result<()> {
        let packed = pack(value, param.ty.dtype, param.layout)?;
        let bytes = self.bytes(arg);
        anyhow::ensure!(packed.len() <= bytes.len(), "{} takes {} of {} bytes", param.name, packed.len(), bytes.len());
        bytes[..packed.len()].copy_from_slice(&packed);
        Ok(())
    }

    fn launch(&mut self, args: &[Arg], kernel: &Kernel, step: &StepInputs) -> Result<()> {
        let mut tensors: Vec<TensorData> =
            args.iter().zip(&kernel.params).map(|(a, p)| self.load(a, p, step)).collect::<Result<_>>()?;
        interp::run(kernel, &mut tensors, &|s| symbol(step, s))?;
        for ((arg, param), value) in args.iter().zip(&kernel.params).zip(&tensors) {
            if !param.access.is_read_only() {
                self.store(arg, param, value)?;
            }
        }
        Ok(())
    }

    /// Logits, and their largest of each row.
    fn step(&mut self, step: &StepInputs) -> Result<[Vec<f32>; 2]> {
        let plan = self.plan;
        for launch in &plan.launches {
            let holds =
                |at_most: Option<(PlanSym, u32)>| at_most.is_none_or(|(s, n)| plan_symbol(step, s) <= i64::from(n));
            let variant = launch.variants.iter().find(|v| holds(v.at_most)).context("no variant holds")?;
            let kernel = &self.program.kernels[variant.kernel as usize];
            self.launch(&launch.args, kernel, step).with_context(|| format!("{} @{}", launch.name, kernel.name))?;
        }
        let rows = step.logits_indices.len();
        let read = |machine: &mut Self, id: u32, n: usize| {
            let bytes = machine.bytes(&Arg::Buffer { id, offset: 0 });
            bytes.as_chunks().0.iter().take(n).map(|b| f32::from_le_bytes(*b)).collect()
        };
        let vocab = self.program.buffers[plan.outputs.logits as usize].ty.last().context("vocab")?;
        Ok([read(self, plan.outputs.logits, rows * vocab), read(self, plan.outputs.max, rows)])
    }
}

fn symbol(step: &StepInputs, s: Sym) -> i64 {
    if s == Sym::P { BLOCKS as i64 } else { step.symbol(s) as i64 }
}

fn plan_symbol(step: &StepInputs, s: PlanSym) -> i64 {
    match s {
        PlanSym::T => symbol(step, Sym::T),
        PlanSym::L => symbol(step, Sym::L),
        PlanSym::Q => symbol(step, Sym::Q),
        PlanSym::M => symbol(step, Sym::M),
        other => panic!("buckets are over T, L, Q and M, not {other:?}"),
    }
}

fn graph_input(input: Step) -> Input {
    match input {
        Step::TokenIds => Input::TokenIds,
        Step::Positions => Input::Positions,
        Step::SlotMapping => Input::SlotMapping,
        Step::QueryStartLoc => Input::QueryStartLoc,
        Step::SeqLens => Input::SeqLens,
        Step::BlockTable => Input::BlockTable,
        Step::LogitsIndices => Input::LogitsIndices,
        Step::Temperature => Input::Temperature,
        Step::Uniform => Input::Uniform,
        Step::Ranked => Input::Ranked,
        Step::TopK => Input::TopK,
        Step::TileSeq => Input::TileSeq,
        Step::TileStart => Input::TileStart,
    }
}

fn check(model: &Model, target: &str, dtype: DType, stored: Option<DType>, tolerance: f32) -> Result<()> {
    let target = rvllm_targets::find(target, &|_| false)?;
    let [_, _, fused] = model.graphs(dtype)?;
    let [graph, ..] = model.graphs(DType::F32)?;
    let program = select(&fused, &target, &model.limits(), stored)?;
    let plan = emit_plan(&program, &plan_memory(&program, &model.limits()), &model.limits(), vec![]);
    let steps = model.steps(target.block_size, program.query_tile);
    let expected = model.interpret(&graph, &steps, target.block_size)?;
    let mut machine = Machine::new(model, &program, &plan)?;
    for (step, expected) in steps.iter().zip(&expected) {
        let [logits, max] = machine.step(step)?;
        let found = common::difference(&logits, expected[0].floats());
        if found > tolerance {
            bail!("logits differ by {found}, more than {tolerance}");
        }
        let row = |i: usize| &logits[i * expected[0].last()..][..expected[0].last()];
        let largest = |i| row(i).iter().copied().fold(f32::NEG_INFINITY, f32::max);
        assert!(max.iter().enumerate().all(|(i, m)| *m == largest(i)));
    }
    Ok(())
}

#[test]
fn the_plan_of_every_golden_computes_its_graph() -> Result<()> {
    for dir in common::goldens()? {
        check(&common::model(&dir)?, "x86-64-v4", DType::F32, None, 1e-5).with_context(|| dir.display().to_string())?;
    }
    Ok(())
}

#[test]
fn plans_with_caches_of_fewer_bits_round_what_is_cached() -> Result<()> {
    for (stored, tolerance) in [(DType::Bf16, 4e-2), (DType::F16, 1e-2), (DType::I8, 4e-2), (DType::F8e4m3, 0.2)] {
        check(&common::golden("llama-odd")?, "x86-64-v4", DType::F32, Some(stored), tolerance).context(stored)?;
    }
    for (stored, tolerance) in [(DType::I8, 6e-2), (DType::F8e4m3, 0.2)] {
        check(&common::golden("qwen3")?, "znver4", DType::Bf16, Some(stored), tolerance).context(stored)?;
    }
    Ok(())
}

#[test]
fn plans_in_bf16_round_and_do_no_more() -> Result<()> {
    for name in ["llama-odd", "llama-tied", "qwen3", "mistral-window"] {
        check(&common::golden(name)?, "znver4", DType::Bf16, None, 4e-2).context(name)?;
    }
    Ok(())
}

//! The driver: model → graph → passes → programs → object code → artifact.
//!
//! Invariants:
//! - the artifact depends on the model's bytes and on the options alone: no path, time or order of threads is in it
//!   (but for the checkpoint's path with `external` weights, which is its purpose);
//! - a compile that fails or is stopped leaves no file.

use crate::{
    codegen::{self, ObjectCode},
    emit,
    error::{Error, Result},
    import::{self, Model},
    kv_cache,
    limits::limits,
    options::{Options, Stage, WeightsMode},
    passes::{
        check,
        fuse::fuse,
        merge_linear::merge_linear,
        plan_memory::plan_memory,
        quantize::{Wanted, quantize},
        select::{has_schedule, select},
    },
    program::{Limits, Program},
    progress::{Phase, Progress},
    report::{Report, TargetReport, products, widened},
};
use rvllm_artifact::{
    Source, Writer,
    cpu::has_feature,
    manifest,
    plan::{Plan, Weight},
    quantized::Stored,
};
use rvllm_ir::{DType, graph::Graph};
use rvllm_targets::Target;
use std::{
    collections::{BTreeMap, HashSet},
    ops::ControlFlow,
    path::PathBuf,
    thread::available_parallelism,
    time::Instant,
};

/// Entry of the weights.
const WEIGHTS: &str = "weights/model.safetensors";

/// Compiles a model.
///
/// # Errors
/// Whatever is wrong with the model, the options or this machine: see [`Error`]. No file is left behind.
pub fn compile(options: &Options, progress: &dyn Progress) -> Result<Report> {
    let start = Instant::now();
    progress.phase(Phase::Model, 1);
    let targets = targets(&options.targets)?;
    compile_model(options, &import::import(options)?, &targets, progress, start)
}

/// Compiles an imported model.
pub(crate) fn compile_model(
    options: &Options,
    model: &Model,
    targets: &[Target],
    progress: &dyn Progress,
    start: Instant,
) -> Result<Report> {
    contradictions(options)?;
    let limits = limits(options, model.architecture.facts(), targets)?;
    progress.phase(Phase::Graph, 1);
    let compilation = Compilation::new(options, model, targets, limits, progress)?;
    let lowered = targets.iter().map(|t| compilation.lower(t)).collect::<Result<Vec<_>>>()?;
    let written = match options.artifact {
        true => Some(compilation.write(lowered.as_slice())?),
        false => None,
    };
    Ok(compilation.report(&lowered, written, start))
}

/// The targets of these names, each once.
pub fn targets(names: &[String]) -> Result<Vec<Target>> {
    let mut targets: Vec<Target> = vec![];
    for name in names {
        let target = rvllm_targets::find(name, &has_feature)?;
        if !targets.contains(&target) {
            targets.push(target);
        }
    }
    match targets.is_empty() {
        true => Err(Error::Options("no target · help: --target native".to_string())),
        false => Ok(targets),
    }
}

fn contradictions(options: &Options) -> Result<()> {
    match (options.weights, options.dummy_weights) {
        (WeightsMode::External, Some(_)) => Err(Error::Options(
            "--weights external names a checkpoint, but --dummy-weights has none · help: use --weights embed or none"
                .to_string(),
        )),
        _ => Ok(()),
    }
}

/// Where an artifact goes when the options do not say.
pub(crate) fn file_name(model: &str, targets: &[Target]) -> String {
    let model = model.rsplit('/').next().unwrap_or(model);
    let targets: Vec<&str> = targets.iter().map(|t| t.name.as_str()).collect();
    format!("{model}.{}.rvllm", targets.join("+"))
}

/// A model in kernel calls, on its way to targets.
struct Compilation<'a> {
    options: &'a Options,
    model: &'a Model,
    limits: Limits,
    /// Element type of the KV cache, where it is not the model's.
    stored: Option<DType>,
    progress: &'a dyn Progress,
    fused: Graph,
    /// Shapes of the checkpoint's tensors.
    tensors: BTreeMap<String, Vec<u64>>,
}

/// A target's program with its plan.
struct Lowered {
    target: Target,
    program: Program,
    plan: Plan,
    /// Object code; empty where only dumps were asked for.
    object: Vec<u8>,
}

impl<'a> Compilation<'a> {
    fn new(
        options: &'a Options,
        model: &'a Model,
        targets: &[Target],
        limits: Limits,
        progress: &'a dyn Progress,
    ) -> Result<Self> {
        let stored = kv_cache::stored(options.kv_cache_dtype, model.dtype)?;
        let graph = check("the model", model.architecture.build(model.dtype))?;
        let tensors = import::tensors(&graph);
        model.check(&tensors)?;
        dump(options, progress, Stage::Graph, &graph)?;
        let fused = fused(graph, options, (model, &tensors), targets, limits.max_model_len)?;
        dump(options, progress, Stage::Fused, &fused)?;
        Ok(Compilation { options, model, limits, stored, progress, fused, tensors })
    }

    fn lower(&self, target: &Target) -> Result<Lowered> {
        let program = select(&self.fused, target, &self.limits, self.stored)
            .map_err(|problems| Error::Unsupported { stage: "select", problems })?;
        codegen::check(&program.kernels)?;
        codegen::dump(&program.kernels, target, &self.options.emit, self.progress)?;
        let memory = plan_memory(&program, &self.limits);
        self.progress.phase(Phase::Kernels, program.kernels.len() as u64);
        let code = match self.options.artifact {
            true => codegen::object_code(&program.kernels, target, self.progress)?,
            false => ObjectCode::default(),
        };
        let ObjectCode { bytes: object, gpu } = code;
        let plan = emit::plan(&program, &memory, &self.limits, gpu);
        Ok(Lowered { target: target.clone(), program, plan, object })
    }

    /// Writes the artifact; its path and size.
    fn write(&self, lowered: &[Lowered]) -> Result<(PathBuf, u64)> {
        let plans = unified(lowered);
        let manifest = self.manifest(lowered)?;
        let entries = self.entries(lowered, &plans);
        let targets: Vec<Target> = lowered.iter().map(|l| l.target.clone()).collect();
        let path = self.options.output.clone().unwrap_or_else(|| file_name(&self.model.name, &targets).into());
        let mut writer = Writer::create(&path, &manifest, &entries)?;
        if self.options.weights == WeightsMode::Embed {
            self.write_weights(&mut writer, &plans)?;
        }
        if self.progress.cancelled() {
            return Err(Error::Interrupted);
        }
        let bytes = writer.finish()?;
        Ok((path, bytes))
    }

    fn write_weights(&self, writer: &mut Writer, plans: &[Plan]) -> Result<()> {
        let weights = distinct(plans);
        self.progress.phase(Phase::Weights, weights.iter().filter_map(|w| w.bytes()).sum());
        let dummy = self.options.dummy_weights.map(|seed| self.model.dummy(seed, &self.tensors)).transpose()?;
        let source: &dyn Source = match (&self.model.checkpoint, &dummy) {
            (_, Some(dummy)) => dummy,
            (Some(checkpoint), None) => checkpoint,
            (None, None) => return Err(Error::NoCheckpoint { problem: self.model.dir.display().to_string() }),
        };
        let mut advance = |n| {
            self.progress.advance(n);
            if self.progress.cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let threads = available_parallelism().map_or(1, usize::from);
        Ok(writer.weights(WEIGHTS, &weights, source, threads, &mut advance)?)
    }

    fn entries(&self, lowered: &[Lowered], plans: &[Plan]) -> Vec<(String, Vec<u8>)> {
        let mut entries = vec![];
        for (lowered, plan) in lowered.iter().zip(plans) {
            let target = emit::target(&lowered.target);
            let json = serde_json::to_vec(plan).expect("invariant: a plan has string keys and finite numbers");
            entries.extend([(target.plan, json), (target.kernels, lowered.object.clone())]);
        }
        entries.extend(self.model.files.iter().cloned());
        entries
    }

    fn manifest(&self, lowered: &[Lowered]) -> Result<manifest::Manifest> {
        Ok(manifest::Manifest {
            format: manifest::FORMAT.to_string(),
            compiler: format!("rvllm {}", env!("CARGO_PKG_VERSION")),
            model: self.facts(),
            kv_cache: one_kv_cache(lowered)?,
            weights: self.weights(),
            tensors: self.tensors.clone(),
            targets: lowered.iter().map(|l| emit::target(&l.target)).collect(),
            entries: BTreeMap::new(),
        })
    }

    fn facts(&self) -> manifest::Model {
        let facts = self.model.architecture.facts();
        manifest::Model {
            name: self.model.name.clone(),
            architecture: facts.architecture.to_string(),
            dtype: emit::dtype(self.model.dtype),
            parameters: self.parameters(),
            vocab_size: facts.vocab_size as u32,
            hidden_size: facts.hidden_size as u32,
            num_hidden_layers: facts.num_hidden_layers as u32,
            max_model_len: self.limits.max_model_len as u32,
            bos_token_id: facts.bos_token_id,
            eos_token_ids: self.model.eos_token_ids(),
            parsers: Some(self.model.parsers()),
        }
    }

    fn weights(&self) -> manifest::Weights {
        match (self.options.weights, self.options.dummy_weights, &self.model.checkpoint) {
            (WeightsMode::Embed, ..) => manifest::Weights::Embed { files: vec![WEIGHTS.to_string()] },
            (_, Some(seed), _) => manifest::Weights::Dummy { seed },
            (WeightsMode::External, None, Some(checkpoint)) => {
                manifest::Weights::External { path: checkpoint.dir().display().to_string(), files: checkpoint.files() }
            }
            _ => manifest::Weights::None,
        }
    }

    fn parameters(&self) -> u64 {
        let elements = |shape: &Vec<u64>| shape.iter().fold(1, |n: u64, d| n.saturating_mul(*d));
        self.tensors.values().map(elements).fold(0, u64::saturating_add)
    }

    fn report(&self, lowered: &[Lowered], written: Option<(PathBuf, u64)>, start: Instant) -> Report {
        let (artifact, bytes) = written.map_or((None, 0), |(path, bytes)| (Some(path), bytes));
        let cache = lowered.first().and_then(|l| l.program.kv_cache.as_ref()).map(emit::kv_cache);
        Report {
            artifact,
            bytes,
            model: self.model.name.clone(),
            dtype: self.model.dtype.name(),
            parameters: self.parameters(),
            weight_bytes: distinct(&unified(lowered)).iter().filter_map(|w| w.bytes()).sum(),
            products: products(&self.fused),
            widened: widened(&self.fused, self.model.checkpoint.as_ref()),
            kv_bytes_per_token: cache.map_or(0, |c| c.bytes_per_block() / u64::from(c.block_size)),
            limits: self.limits,
            targets: lowered.iter().map(target_report).collect(),
            elapsed: start.elapsed(),
        }
    }
}

fn target_report(lowered: &Lowered) -> TargetReport {
    TargetReport {
        name: lowered.target.name.clone(),
        kernels: lowered.plan.kernels.len(),
        launches: lowered.plan.launches.len(),
        kernel_bytes: lowered.object.len() as u64,
        arena_bytes: lowered.plan.arena_bytes,
        assembler: lowered.target.gpu.as_ref().map(|_| assembler()),
    }
}

/// What assembles a GPU's code on this machine.
fn assembler() -> String {
    match rvllm_mlir::assembler() {
        Some(tool) => format!("ptxas {}", tool.version),
        None => {
            "no ptxas found: PTX, which the driver compiles at load · help: install CUDA's nvcc or the Python package \
                 nvidia-cuda-nvcc, or set RVLLM_PTXAS"
                .to_string()
        }
    }
}

/// The model in kernel calls, its products quantised where that is asked for, or where the checkpoint is and every target has
/// kernels for it.
fn fused(
    graph: Graph,
    options: &Options,
    (model, tensors): (&Model, &BTreeMap<String, Vec<u64>>),
    targets: &[Target],
    max_model_len: usize,
) -> Result<Graph> {
    let unsupported = |stage| move |problems| Error::Unsupported { stage, problems };
    let kept = kept(options, (model, tensors), targets);
    let merged = check("merge_linear", merge_linear(graph, &kept))?;
    let fused = check("fuse", fuse(merged, max_model_len).map_err(unsupported("fuse"))?)?;
    let weight_only = targets.iter().all(|target| target.gpu.is_some());
    let wanted = Wanted { choice: options.quantize, stored: &kept, kept: model.checkpoint.is_some(), weight_only };
    Ok(check("quantize", quantize(fused, wanted).map_err(unsupported("quantize"))?)?)
}

/// How the checkpoint stores a tensor, where every target has kernels that multiply with it as it is.
fn kept<'a>(
    options: &'a Options,
    (model, tensors): (&'a Model, &'a BTreeMap<String, Vec<u64>>),
    targets: &'a [Target],
) -> impl Fn(&str) -> Option<Stored> + 'a {
    let gpus = targets.iter().filter(|target| target.gpu.is_some()).count();
    // CPUs and GPUs multiply weights in groups with other activations
    let alike = move |stored: &Stored| stored.group.is_none() || gpus == 0 || gpus == targets.len();
    let can = move |stored: &Stored| alike(stored) && targets.iter().all(|target| has_schedule(target, *stored));
    move |name| model.stored(name, tensors).filter(can).filter(|_| options.as_stored)
}

/// The targets' plans, with one meaning for each weight's name.
fn unified(lowered: &[Lowered]) -> Vec<Plan> {
    let mut plans: Vec<(String, Plan)> = lowered.iter().map(|l| (l.target.name.clone(), l.plan.clone())).collect();
    emit::unify_weights(&mut plans);
    plans.into_iter().map(|(_, plan)| plan).collect()
}

/// Every weight once, in the order in which launches use them.
fn distinct(plans: &[Plan]) -> Vec<&Weight> {
    let mut seen = HashSet::new();
    plans.iter().flat_map(|p| &p.weights).filter(|w| seen.insert(w.name.as_str())).collect()
}

/// The one KV cache of all targets.
fn one_kv_cache(lowered: &[Lowered]) -> Result<manifest::KvCache> {
    let mut caches =
        lowered.iter().filter_map(|l| Some((&l.target.name, emit::kv_cache(l.program.kv_cache.as_ref()?))));
    let (first, cache) =
        caches.next().ok_or_else(|| Error::Options("a model without attention has no KV cache to describe".into()))?;
    match caches.find(|(_, other)| *other != cache) {
        None => Ok(cache),
        Some((other, _)) => Err(Error::Options(format!(
            "targets {first} and {other} lay the KV cache out differently · help: compile an artifact for each"
        ))),
    }
}

fn dump(options: &Options, progress: &dyn Progress, stage: Stage, graph: &Graph) -> Result<()> {
    match options.emit.contains(&stage) {
        true => {
            progress.dump(stage, &graph.name, &graph.to_string()).map_err(Error::io("write the dump of", &graph.name))
        }
        false => Ok(()),
    }
}

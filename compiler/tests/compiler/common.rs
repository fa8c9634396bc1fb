//! Models of the repository, their weights, and a step to run them on.

use anyhow::{Context, Result};
use rvllm_artifact::{
    Checkpoint as Files, Source,
    execute::{execute, infer},
    plan,
    recipe::Recipe,
};
use rvllm_compiler::{
    passes::{check, fuse::fuse, merge_linear::merge_linear},
    program::Limits,
};
use rvllm_ir::{
    DType,
    graph::{
        Graph,
        interp::{Checkpoint, KvState, Sequence, StepInputs, Tensor, run},
    },
};
use rvllm_models::{Architecture, from_config};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Blocks of two sequences, not in order.
const BLOCKS: [[u32; 2]; 2] = [[3, 1], [0, 2]];
/// Tokens of the prefill of each sequence, then of a decode.
const TOKENS: [&[&[u32]]; 2] = [&[&[5, 1, 9, 3, 7], &[2]], &[&[4, 4], &[8]]];

/// A checkpoint of the repository.
pub(crate) struct Model {
    pub(crate) architecture: Box<dyn Architecture>,
    pub(crate) files: Files,
}

/// Directories below `tests/goldens` that hold a checkpoint, sorted.
pub(crate) fn goldens() -> Result<Vec<PathBuf>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens");
    let entries = fs::read_dir(root)?.map(|e| e.map(|e| e.path()));
    let mut dirs: Vec<PathBuf> = entries.collect::<std::io::Result<_>>()?;
    dirs.retain(|p| p.join("config.json").exists());
    dirs.sort();
    anyhow::ensure!(dirs.len() >= 10, "only {} goldens", dirs.len());
    Ok(dirs)
}

/// The golden of this name.
pub(crate) fn golden(name: &str) -> Result<Model> {
    model(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens").join(name))
}

/// The model of a directory.
pub(crate) fn model(dir: &Path) -> Result<Model> {
    let architecture = from_config(&fs::read_to_string(dir.join("config.json"))?).context("config")?;
    Ok(Model { architecture, files: Files::open(dir)? })
}

impl Model {
    /// Bounds of a step that hold the test's steps.
    pub(crate) fn limits(&self) -> Limits {
        let max_model_len = self.architecture.facts().max_position_embeddings.min(96);
        Limits { max_model_len, max_num_batched_tokens: 40, max_num_seqs: 4, max_logits: 16 }
    }

    /// The graph as the model builds it, merged, and fused.
    pub(crate) fn graphs(&self, dtype: DType) -> Result<[Graph; 3]> {
        let graph = check("build", self.architecture.build(dtype))?;
        let merged = check("merge_linear", merge_linear(graph.clone(), &|_| None))?;
        let fused = check("fuse", fuse(merged.clone(), self.limits().max_model_len)?)?;
        Ok([graph, merged, fused])
    }

    /// All tensors, in f32.
    pub(crate) fn tensors(&self) -> Result<Checkpoint> {
        self.files.names().map(|name| Ok((name.to_string(), self.tensor(name)?))).collect()
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        let recipe = Recipe::Cast(plan::DType::F32, Box::new(Recipe::Tensor(name.to_string())));
        let shape: Vec<usize> = self.files.tensor(name)?.shape.iter().map(|n| *n as usize).collect();
        let bytes = self.made(&recipe)?;
        Ok(Tensor::f32(&shape, bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()))
    }

    /// What a recipe makes of the checkpoint.
    pub(crate) fn made(&self, recipe: &Recipe) -> Result<Vec<u8>> {
        let ty = infer(recipe, &self.files)?;
        let mut bytes = vec![0; ty.bytes().context("size")? as usize];
        execute(recipe, &self.files, 1, &mut bytes)?;
        Ok(bytes)
    }

    /// The steps of the test: two sequences, first their prompts, then one token each.
    pub(crate) fn steps(&self, block_size: usize, query_tile: usize) -> Vec<StepInputs> {
        (0..2).map(|i| self.step(i, block_size, query_tile)).collect()
    }

    fn step(&self, i: usize, block_size: usize, query_tile: usize) -> StepInputs {
        let sequences: Vec<Sequence<'_>> = TOKENS
            .iter()
            .zip(&BLOCKS)
            .map(|(steps, blocks)| Sequence {
                token_ids: steps[i],
                num_computed_tokens: steps[..i].iter().map(|s| s.len()).sum(),
                blocks,
            })
            .collect();
        let step = StepInputs::ragged(&sequences, block_size, query_tile).with_all_logits();
        StepInputs { max_model_len: self.limits().max_model_len, ..step }
    }

    /// Outputs of a graph for every step.
    pub(crate) fn interpret(
        &self,
        graph: &Graph,
        steps: &[StepInputs],
        block_size: usize,
    ) -> Result<Vec<Vec<Arc<Tensor>>>> {
        let tensors = self.tensors()?;
        let mut kv = KvState::new(4, block_size, DType::F32);
        steps.iter().map(|s| Ok(run(graph, &|r, ty| tensors.weight(r, ty), s, &mut kv)?)).collect()
    }
}

/// Largest difference relative to the largest magnitude.
pub(crate) fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let scale = b.iter().fold(f32::MIN_POSITIVE, |m, x| m.max(x.abs()));
    a.iter().zip(b).map(|(a, b)| if a.is_finite() { (a - b).abs() } else { f32::INFINITY }).fold(0.0, f32::max) / scale
}

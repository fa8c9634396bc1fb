//! Weights at load: mapped from the artifact, or made by recipes from a checkpoint or a seed.

use crate::{
    checkpoint::Checkpoint,
    dummy::DummySource,
    error::{Error, Result},
    execute::{self, Rows},
    manifest::{Manifest, Weights},
    map,
    open::Artifact,
    plan::{Plan, Weight},
    searched::Searched,
    source::Source,
    write::{ALIGNMENT, check_recipe},
};
use memmap2::{Mmap, MmapMut};
use std::{ops::Range, path::Path, sync::Arc};

/// Where to take weights from.
#[derive(Clone, Copy, Debug)]
pub enum WeightsFrom<'a> {
    /// What the manifest says.
    Manifest,
    /// This checkpoint: `--weights-path`.
    Checkpoint(&'a Path),
    /// Random, from this seed: `--dummy-weights`.
    Dummy(u64),
}

/// The weights of a plan, in memory.
#[derive(Debug)]
pub struct LoadedWeights {
    memory: Memory,
    /// Place of each of the plan's weights.
    places: Vec<Range<usize>>,
}

#[derive(Debug)]
enum Memory {
    File(Arc<Mmap>),
    Anonymous(MmapMut),
}

impl LoadedWeights {
    /// Loads all weights of `plan`, a plan of `artifact`, on `threads` threads.
    ///
    /// # Errors
    /// The artifact has no weights and none are named; the checkpoint is another one, or its tensors do not fit.
    pub fn load(artifact: &Artifact, plan: &Plan, from: WeightsFrom<'_>, threads: usize) -> Result<LoadedWeights> {
        let manifest = artifact.manifest();
        match (from, &manifest.weights) {
            (WeightsFrom::Manifest, Weights::Embed { .. }) => LoadedWeights::mapped(artifact, plan),
            (WeightsFrom::Manifest, Weights::None) => Err(Error::NoWeights { file: artifact.file().into() }),
            (WeightsFrom::Manifest, Weights::External { path, .. }) => {
                LoadedWeights::made(plan, &checkpoint(Path::new(path), manifest)?, threads)
            }
            (WeightsFrom::Checkpoint(path), _) => LoadedWeights::made(plan, &checkpoint(path, manifest)?, threads),
            (WeightsFrom::Manifest, Weights::Dummy { seed }) => LoadedWeights::random(plan, manifest, *seed, threads),
            (WeightsFrom::Dummy(seed), _) => LoadedWeights::random(plan, manifest, seed, threads),
        }
    }

    fn mapped(artifact: &Artifact, plan: &Plan) -> Result<LoadedWeights> {
        let missing =
            |weight: &Weight| Error::MissingTensor { place: artifact.file().into(), tensor: weight.name.clone() };
        let place = |weight: &Weight| artifact.place(&weight.name).ok_or_else(|| missing(weight));
        let places = plan.weights.iter().map(place).collect::<Result<_>>()?;
        Ok(LoadedWeights { memory: Memory::File(artifact.map()), places })
    }

    fn random(plan: &Plan, manifest: &Manifest, seed: u64, threads: usize) -> Result<LoadedWeights> {
        let source = DummySource::new(seed, manifest.model.dtype, manifest.tensors.clone())?;
        LoadedWeights::made(plan, &source, threads)
    }

    /// Runs all recipes into anonymous memory: one queue of jobs over all weights, so that no thread waits for the
    /// largest.
    fn made(plan: &Plan, source: &dyn Source, threads: usize) -> Result<LoadedWeights> {
        plan.weights.iter().try_for_each(|weight| check_recipe(weight, source))?;
        let searched = Searched::default();
        let rows = plan.weights.iter().map(|w| Rows::sharing(&w.recipe, source, Some(&searched)));
        let rows = rows.collect::<Result<Vec<_>>>()?;
        let places = layout(&plan.weights)?;
        let mut memory = map::anonymous(places.last().map_or(0, |place| place.end))?;
        let (mut jobs, mut rest, mut at) = (vec![], &mut memory[..], 0);
        for (rows, place) in rows.iter().zip(&places) {
            let (bytes, tail) = rest.split_at_mut(place.end - at);
            rows.split_all(&mut bytes[place.start - at..], &mut jobs)?;
            (rest, at) = (tail, place.end);
        }
        execute::run(jobs, threads)?;
        Ok(LoadedWeights { memory: Memory::Anonymous(memory), places })
    }

    /// Bytes of the plan's weight `index`, 64-byte aligned, for as long as this lives.
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        let memory: &[u8] = match &self.memory {
            Memory::File(map) => map,
            Memory::Anonymous(map) => map,
        };
        memory.get(self.places.get(index)?.clone())
    }

    /// Bytes of anonymous memory: 0 where the weights are mapped from the artifact.
    pub fn resident_bytes(&self) -> u64 {
        match &self.memory {
            Memory::File(_) => 0,
            Memory::Anonymous(map) => map.len() as u64,
        }
    }
}

/// A checkpoint with the tensors, and if the artifact was compiled from one the very headers, that it needs.
pub(crate) fn checkpoint(path: &Path, manifest: &Manifest) -> Result<Checkpoint> {
    let checkpoint = Checkpoint::open(path)?;
    if let Weights::External { files, .. } = &manifest.weights {
        checkpoint.verify(files)?;
    }
    let expected: Vec<_> = manifest.tensors.iter().map(|(name, shape)| (name.clone(), shape.clone())).collect();
    match checkpoint.check(&expected, &|_| true) {
        wrong if wrong.is_empty() => Ok(checkpoint),
        wrong => {
            let problem = wrong.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            Err(Error::Checkpoint { path: path.into(), problem })
        }
    }
}

/// Places one after the other, each aligned.
fn layout(weights: &[Weight]) -> Result<Vec<Range<usize>>> {
    let mut at = 0usize;
    let place = |weight: &Weight| {
        let start = at.checked_next_multiple_of(ALIGNMENT)?;
        at = start.checked_add(usize::try_from(weight.bytes()?).ok()?)?;
        Some(start..at)
    };
    let places: Option<Vec<_>> = weights.iter().map(place).collect();
    places.ok_or_else(|| Error::Recipe("weights are larger than memory can be".into()))
}

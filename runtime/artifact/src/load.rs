//! Weights at load: mapped from the artifact, or made by recipes from a checkpoint or a seed.
//!
//! Invariants: where weights are placed changes which memory they lie in, never their bytes.

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
use std::{
    ops::Range,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

/// Bytes that a thread copies at a time.
const COPY_BYTES: usize = 4 << 20;

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

/// Chooses which memory weights get: called with memory that nobody has touched yet and the place of each of the plan's
/// weights in it. It changes no byte, and says whether there was a choice.
pub type Placing<'a> = dyn Fn(&mut [u8], &[Range<usize>]) -> bool + 'a;

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
        LoadedWeights::load_placed(artifact, plan, from, threads, None)
    }

    /// As [`LoadedWeights::load`], in memory of `placing`'s choice. What the artifact holds is then copied from it; where
    /// `placing` has no choice or memory does not suffice, it stays mapped.
    ///
    /// # Errors
    /// As [`LoadedWeights::load`].
    pub fn load_placed(
        artifact: &Artifact,
        plan: &Plan,
        from: WeightsFrom<'_>,
        threads: usize,
        placing: Option<&Placing<'_>>,
    ) -> Result<LoadedWeights> {
        let manifest = artifact.manifest();
        let made = |source: &dyn Source| LoadedWeights::made(plan, source, threads, placing);
        let random = |seed| made(&DummySource::new(seed, manifest.model.dtype, manifest.tensors.clone())?);
        match (from, &manifest.weights) {
            (WeightsFrom::Manifest, Weights::Embed { .. }) => {
                let mapped = LoadedWeights::mapped(artifact, plan)?;
                Ok(placing.and_then(|placing| mapped.copied(threads, placing)).unwrap_or(mapped))
            }
            (WeightsFrom::Manifest, Weights::None) => Err(Error::NoWeights { file: artifact.file().into() }),
            (WeightsFrom::Manifest, Weights::External { path, .. }) => made(&checkpoint(Path::new(path), manifest)?),
            (WeightsFrom::Checkpoint(path), _) => made(&checkpoint(path, manifest)?),
            (WeightsFrom::Manifest, Weights::Dummy { seed }) => random(*seed),
            (WeightsFrom::Dummy(seed), _) => random(seed),
        }
    }

    fn mapped(artifact: &Artifact, plan: &Plan) -> Result<LoadedWeights> {
        let missing =
            |weight: &Weight| Error::MissingTensor { place: artifact.file().into(), tensor: weight.name.clone() };
        let place = |weight: &Weight| artifact.place(&weight.name).ok_or_else(|| missing(weight));
        let places = plan.weights.iter().map(place).collect::<Result<_>>()?;
        Ok(LoadedWeights { memory: Memory::File(artifact.map()), places })
    }

    /// A copy in memory of `placing`'s choice, if it has one.
    fn copied(&self, threads: usize, placing: &Placing<'_>) -> Option<LoadedWeights> {
        let places = layout(self.places.iter().map(|place| Some(place.len())))?;
        let mut memory = map::anonymous(places.last()?.end).ok()?;
        if !placing(&mut memory, &places) {
            return None;
        }
        let from = (0..places.len()).map(|i| self.get(i)).collect::<Option<Vec<_>>>()?;
        copy(from.into_iter().zip(parts(&mut memory, &places)), threads);
        Some(LoadedWeights { memory: Memory::Anonymous(memory), places })
    }

    /// Runs all recipes into anonymous memory: one queue of jobs over all weights, so that no thread waits for the
    /// largest.
    fn made(plan: &Plan, source: &dyn Source, threads: usize, placing: Option<&Placing<'_>>) -> Result<LoadedWeights> {
        plan.weights.iter().try_for_each(|weight| check_recipe(weight, source))?;
        let searched = Searched::default();
        let rows = plan.weights.iter().map(|w| Rows::sharing(&w.recipe, source, Some(&searched)));
        let rows = rows.collect::<Result<Vec<_>>>()?;
        let sizes = plan.weights.iter().map(|weight| usize::try_from(weight.bytes()?).ok());
        let places = layout(sizes).ok_or_else(|| Error::Recipe("weights are larger than memory can be".into()))?;
        let mut memory = map::anonymous(places.last().map_or(0, |place| place.end))?;
        if let Some(placing) = placing {
            placing(&mut memory, &places);
        }
        let mut jobs = vec![];
        for (rows, bytes) in rows.iter().zip(parts(&mut memory, &places)) {
            rows.split_all(bytes, &mut jobs)?;
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

/// Places of so many bytes one after the other, each aligned; `None` where they are too large.
fn layout(sizes: impl Iterator<Item = Option<usize>>) -> Option<Vec<Range<usize>>> {
    let mut at = 0usize;
    let place = |size: Option<usize>| {
        let start = at.checked_next_multiple_of(ALIGNMENT)?;
        at = start.checked_add(size?)?;
        Some(start..at)
    };
    sizes.map(place).collect()
}

/// The bytes of each of `places`, which [`layout`] gave.
fn parts<'a>(memory: &'a mut [u8], places: &[Range<usize>]) -> Vec<&'a mut [u8]> {
    let (mut rest, mut at) = (memory, 0);
    let part = |place: &Range<usize>| {
        let (bytes, tail) = std::mem::take(&mut rest).split_at_mut(place.end - at);
        let bytes = &mut bytes[place.start - at..];
        (rest, at) = (tail, place.end);
        bytes
    };
    places.iter().map(part).collect()
}

/// Copies each pair, of the same length, on `threads` threads.
fn copy<'a>(pairs: impl Iterator<Item = (&'a [u8], &'a mut [u8])> + Send, threads: usize) {
    let chunks = Mutex::new(pairs.flat_map(|(from, to)| from.chunks(COPY_BYTES).zip(to.chunks_mut(COPY_BYTES))));
    let next = || chunks.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        while let Some((from, to)) = next() {
            to.copy_from_slice(from);
        }
    };
    std::thread::scope(|scope| {
        (1..threads).for_each(|_| drop(scope.spawn(work)));
        work();
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_whole_on_any_number_of_threads() {
        let from: Vec<Vec<u8>> = [0, 1, COPY_BYTES, 2 * COPY_BYTES + 77]
            .map(|len| (0..len).map(|i| (i * 7 + i / 251) as u8).collect())
            .into();
        for threads in [0, 1, 3] {
            let places = layout(from.iter().map(|bytes| Some(bytes.len()))).unwrap();
            let mut memory = vec![0; places.last().unwrap().end];
            copy(from.iter().map(Vec::as_slice).zip(parts(&mut memory, &places)), threads);
            assert!(places.iter().zip(&from).all(|(place, bytes)| memory[place.clone()] == bytes[..]));
        }
    }

    #[test]
    fn what_no_memory_holds_has_no_layout() {
        assert_eq!(layout([Some(65), Some(0), Some(3)].into_iter()), Some(vec![0..65, 128..128, 128..131]));
        assert_eq!(layout([Some(1), Some(usize::MAX)].into_iter()), None);
        assert_eq!(layout([Some(1), None].into_iter()), None);
    }
}

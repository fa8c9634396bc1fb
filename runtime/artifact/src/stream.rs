//! Weights on their way to a device's own memory: handed out piece by piece, in the plan's order, from wherever they come.
//!
//! Invariants: memory is bounded whatever the size of the weights; every byte comes once and in order, but for random
//! weights, of which only the beginning comes (see [`Piece`]).

use crate::{
    dummy::DummySource,
    error::{Error, Result},
    execute::{self, Rows},
    load::{WeightsFrom, checkpoint},
    manifest::Weights,
    open::Artifact,
    plan::{Plan, Weight},
    source::Source,
    write::check_recipe,
};
use std::{ops::ControlFlow, path::Path};

/// Bytes made, or read, at a time.
const PIECE: usize = 64 << 20;
/// Bytes made of a random weight; its receiver repeats them.
const RANDOM: u64 = 8 << 20;

/// Some bytes of a weight.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'a> {
    /// Which of the plan's weights.
    pub weight: usize,
    /// Where in the weight they belong.
    pub offset: u64,
    /// The bytes. Those of random weights end before the weight does: the receiver repeats what it got, as nobody could
    /// tell, and making tens of gigabytes of random numbers takes longer than moving them.
    pub bytes: &'a [u8],
}

/// Receives pieces; breaks off where it cannot go on.
pub type Sink<'a> = dyn FnMut(Piece<'_>) -> ControlFlow<()> + 'a;

/// Hands out all weights of `plan`, a plan of `artifact`. Recipes run on `threads` threads.
///
/// # Errors
/// The artifact has no weights and none are named; the checkpoint is another one, or its tensors do not fit;
/// [`Error::Interrupted`] where `sink` broke off.
pub fn stream(
    artifact: &Artifact,
    plan: &Plan,
    from: WeightsFrom<'_>,
    threads: usize,
    sink: &mut Sink<'_>,
) -> Result<()> {
    let manifest = artifact.manifest();
    let random = |seed| DummySource::new(seed, manifest.model.dtype, manifest.tensors.clone());
    match (from, &manifest.weights) {
        (WeightsFrom::Manifest, Weights::Embed { .. }) => embedded(artifact, plan, sink),
        (WeightsFrom::Manifest, Weights::None) => Err(Error::NoWeights { file: artifact.file().into() }),
        (WeightsFrom::Manifest, Weights::External { path, .. }) => {
            made(plan, &checkpoint(Path::new(path), manifest)?, threads, None, sink)
        }
        (WeightsFrom::Checkpoint(path), _) => made(plan, &checkpoint(path, manifest)?, threads, None, sink),
        (WeightsFrom::Manifest, Weights::Dummy { seed }) => made(plan, &random(*seed)?, threads, Some(RANDOM), sink),
        (WeightsFrom::Dummy(seed), _) => made(plan, &random(seed)?, threads, Some(RANDOM), sink),
    }
}

fn embedded(artifact: &Artifact, plan: &Plan, sink: &mut Sink<'_>) -> Result<()> {
    for (weight, Weight { name, .. }) in plan.weights.iter().enumerate() {
        let missing = || Error::MissingTensor { place: artifact.file().into(), tensor: name.clone() };
        for (i, bytes) in artifact.weight(name).ok_or_else(missing)?.chunks(PIECE).enumerate() {
            hand(sink, Piece { weight, offset: (i * PIECE) as u64, bytes })?;
        }
    }
    Ok(())
}

/// Runs the recipes; of those that read tensors, `most` bytes where that is less.
fn made(plan: &Plan, source: &dyn Source, threads: usize, most: Option<u64>, sink: &mut Sink<'_>) -> Result<()> {
    plan.weights.iter().try_for_each(|weight| check_recipe(weight, source))?;
    for (index, weight) in plan.weights.iter().enumerate() {
        let most = most.filter(|_| !weight.recipe.sources().is_empty());
        let mut offset = 0;
        let mut piece = |bytes: &[u8]| {
            hand(sink, Piece { weight: index, offset, bytes })?;
            offset += bytes.len() as u64;
            Ok(())
        };
        match most {
            None => execute::execute_chunks(&weight.recipe, source, threads, PIECE, &mut piece)?,
            Some(most) => piece(&Rows::resolve(&weight.recipe, source)?.first(most, threads)?)?,
        }
    }
    Ok(())
}

fn hand(sink: &mut Sink<'_>, piece: Piece<'_>) -> Result<()> {
    if sink(piece).is_break() { Err(Error::Interrupted) } else { Ok(()) }
}

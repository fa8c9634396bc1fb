//! Which of an artifact's targets runs, and on what.

use super::{DeviceChoice, EngineOptions};
use crate::{
    device::cuda::{CudaError, Gpu},
    error::EngineError,
};
use rvllm_artifact::{
    Artifact,
    cpu::has_feature,
    manifest::{NVPTX, Target},
};

/// A target with what runs it.
pub(super) enum Chosen<'a> {
    /// This CPU.
    Cpu(&'a Target),
    /// A GPU.
    Cuda(&'a Target, Gpu),
}

/// The target named, if this machine can run it, else the best: one of a GPU where there is one, then this CPU's.
pub(super) fn choose<'a>(artifact: &'a Artifact, options: &EngineOptions) -> Result<Chosen<'a>, EngineError> {
    if let Some(name) = &options.target {
        return named(artifact, name, options.device);
    }
    let on_gpu = match options.device {
        DeviceChoice::Cpu => None,
        DeviceChoice::Auto => on_gpu(artifact, 0),
        DeviceChoice::Cuda(ordinal) => Some(on_gpu(artifact, ordinal).unwrap_or_else(|| Err(no_gpu_code(artifact)))),
    };
    match on_gpu {
        None => Ok(Chosen::Cpu(artifact.target(&has_feature)?)),
        Some(Ok((target, gpu))) => Ok(Chosen::Cuda(target, gpu)),
        Some(Err(error)) if options.device != DeviceChoice::Auto => Err(error),
        Some(Err(error)) => match artifact.target(&has_feature) {
            Ok(target) => Ok(Chosen::Cpu(target)),
            Err(_) => Err(error),
        },
    }
}

/// The artifact's target for a GPU, and the GPU; `None` where it has none.
fn on_gpu(artifact: &Artifact, ordinal: u32) -> Option<Result<(&Target, Gpu), EngineError>> {
    let targets: Vec<&Target> = artifact.manifest().targets.iter().filter(|t| t.arch == NVPTX).collect();
    let first = targets.first()?;
    Some(open(first, ordinal).and_then(|gpu| {
        let fits = targets.iter().find(|t| gpu.facts().runs(architecture(t)));
        fits.map(|target| (*target, gpu.clone())).ok_or_else(|| wrong_architecture(first, &gpu))
    }))
}

fn named<'a>(artifact: &'a Artifact, name: &str, device: DeviceChoice) -> Result<Chosen<'a>, EngineError> {
    let target = artifact.target_named(name)?;
    if target.arch == NVPTX {
        let ordinal = if let DeviceChoice::Cuda(ordinal) = device { ordinal } else { 0 };
        let gpu = open(target, ordinal)?;
        let runs = gpu.facts().runs(architecture(target));
        return if runs { Ok(Chosen::Cuda(target, gpu)) } else { Err(wrong_architecture(target, &gpu)) };
    }
    let lacking: Vec<&str> = target.features.iter().map(String::as_str).filter(|f| !has_feature(f)).collect();
    let here = std::env::consts::ARCH;
    if target.arch == here && lacking.is_empty() {
        return Ok(Chosen::Cpu(target));
    }
    let lacks = if target.arch == here { format!("lacks {}", lacking.join(", ")) } else { format!("is {here}") };
    let allowed = format!("a target that this machine can run, which {lacks}");
    Err(EngineError::Option { name: "target", value: name.to_string(), allowed })
}

/// `sm_90a`.
fn architecture(target: &Target) -> &str {
    target.features.first().map_or(&target.name, |f| f)
}

fn open(target: &Target, ordinal: u32) -> Result<Gpu, EngineError> {
    let needs = format!("artifact was compiled for {}", target.name);
    Gpu::open(ordinal, &needs).map_err(|e| EngineError::Device(e.into()))
}

fn wrong_architecture(target: &Target, gpu: &Gpu) -> EngineError {
    let facts = gpu.facts();
    let error = CudaError::WrongArchitecture {
        compiled: target.name.clone(),
        ordinal: facts.ordinal,
        found: facts.architecture(),
        name: facts.name.clone(),
    };
    EngineError::Device(error.into())
}

fn no_gpu_code(artifact: &Artifact) -> EngineError {
    let has: Vec<&str> = artifact.manifest().targets.iter().map(|t| t.name.as_str()).collect();
    let allowed = format!("cpu or auto: {} was compiled for {}", artifact.file(), has.join(", "));
    EngineError::Option { name: "device", value: "cuda".to_string(), allowed }
}

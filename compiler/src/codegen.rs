//! Kernels of one target to object code, and the dumps of every stage on the way.

use crate::{
    emit,
    error::{Error, Result},
    options::Stage,
    passes::Diagnostics,
    progress::{Progress, Silent},
};
use rvllm_artifact::{
    gpu::{Code, CodeFormat, GpuKernel},
    plan,
};
use rvllm_ir::tile::{Kernel, verify::verify};
use rvllm_mlir::Object;
use rvllm_targets::{Gpu, Target};
use std::thread::available_parallelism;

/// Kernels that a core compiles between two looks at whether to stop.
const BATCH: usize = 4;
/// Where code of a GPU's kernel begins: an ELF file is read in place.
const PART_ALIGNMENT: usize = 64;

/// Checks every kernel: one that is not legal is a bug of the compiler.
pub(crate) fn check(kernels: &[Kernel]) -> Result<()> {
    kernels.iter().try_for_each(|kernel| match verify(kernel) {
        errors if errors.is_empty() => Ok(()),
        errors => Err(Error::KernelBug { kernel: kernel.name.clone(), errors: Diagnostics(errors) }),
    })
}

/// Dumps the stages that were asked for, kernel by kernel.
pub(crate) fn dump(kernels: &[Kernel], target: &Target, stages: &[Stage], progress: &dyn Progress) -> Result<()> {
    for kernel in kernels {
        for stage in stages {
            let name = format!("{}.{}", target.name, kernel.name);
            if let Some(text) = text(kernel, target, *stage)? {
                progress.dump(*stage, &name, &text).map_err(Error::io("write the dump of", name))?;
            }
        }
    }
    Ok(())
}

/// A kernel at a stage; `None` at the stages of graphs.
fn text(kernel: &Kernel, target: &Target, stage: Stage) -> Result<Option<String>> {
    let text = match stage {
        Stage::Graph | Stage::Fused => return Ok(None),
        Stage::Tile => Ok(kernel.to_string()),
        Stage::Mlir => rvllm_mlir::mlir_text(kernel, target),
        Stage::Llvm => rvllm_mlir::llvm_ir(kernel, target),
        Stage::Asm => rvllm_mlir::asm(kernel, target),
    };
    text.map(Some).map_err(failed(target))
}

/// Object code of a target, as the artifact holds it.
#[derive(Debug, Default)]
pub(crate) struct ObjectCode {
    /// A shared object that exports every kernel under its name; for a GPU the kernels' code, one after the other.
    pub(crate) bytes: Vec<u8>,
    /// How a GPU launches each kernel; empty for a CPU.
    pub(crate) gpu: Vec<Option<GpuKernel>>,
}

/// Compiles every kernel.
pub(crate) fn object_code(kernels: &[Kernel], target: &Target, progress: &dyn Progress) -> Result<ObjectCode> {
    let mut object = Object { parts: vec![] };
    let batch = BATCH * available_parallelism().map_or(1, usize::from);
    for kernels in kernels.chunks(batch) {
        if progress.cancelled() {
            return Err(Error::Interrupted);
        }
        object.parts.extend(rvllm_mlir::compile(kernels, target).map_err(failed(target))?.parts);
        progress.advance(kernels.len() as u64);
    }
    match &target.gpu {
        Some(gpu) => Ok(concatenate(&object, gpu)),
        None => {
            let bytes = rvllm_mlir::link(&object, target).map_err(failed(target))?;
            Ok(ObjectCode { bytes, gpu: vec![] })
        }
    }
}

/// Kernels as a plan for a GPU lists them, and their object code.
///
/// # Errors
/// A kernel that does not lower, or one for a CPU.
pub fn gpu_kernels(kernels: &[Kernel], target: &Target) -> Result<(Vec<plan::Kernel>, Vec<u8>)> {
    check(kernels)?;
    let ObjectCode { bytes, gpu } = object_code(kernels, target, &Silent)?;
    Ok((kernels.iter().zip(gpu).map(emit::kernel).collect(), bytes))
}

/// The parts one after the other, each on a cache line; text ends with a zero byte.
pub(crate) fn concatenate(object: &Object, gpu: &Gpu) -> ObjectCode {
    let mut code = ObjectCode::default();
    for part in &object.parts {
        code.bytes.resize(code.bytes.len().next_multiple_of(PART_ALIGNMENT), 0);
        let offset = code.bytes.len() as u64;
        let format = if part.bytes.starts_with(b"\x7fELF") { CodeFormat::Cubin } else { CodeFormat::Ptx };
        code.bytes.extend(&part.bytes);
        if format == CodeFormat::Ptx {
            code.bytes.push(0);
        }
        let place = Code { format, offset, bytes: code.bytes.len() as u64 - offset };
        code.gpu.push(part.launch.as_ref().map(|launch| emit::gpu::kernel(launch, place, gpu)));
    }
    code
}

fn failed(target: &Target) -> impl FnOnce(rvllm_mlir::Error) -> Error {
    let target = target.name.clone();
    move |source| Error::Codegen { target, source: Box::new(source) }
}

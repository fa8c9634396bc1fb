//! Tile IR to object code through MLIR and LLVM, in process: the only crate that names melior.
//!
//! ```text
//! kernel ── cpu ────► MLIR text ── pipeline ──► LLVM dialect ──► LLVM IR ──► O3 ──► object ── link ──► shared object
//!        └─ nvidia ─► MLIR text ── pipeline ──► LLVM dialect ──► LLVM IR ──► O3 ──► PTX ── assemble ──► cubin
//! ```
//!
//! Each stage of one kernel can be had as text: [`mlir_text`], [`after_passes`], [`llvm_ir`], [`asm`].
//!
//! Invariants:
//! - the result depends on the kernel and the target alone: same bytes on every run, on any number of threads, from any
//!   directory;
//! - a kernel that the verifier accepts lowers, or [`Error::Unsupported`] says what this target lacks; MLIR or LLVM
//!   refusing our text is [`Error::Internal`], a bug of this crate;
//! - `unsafe` is in [`pipeline`] alone, where LLVM's C interface is called.

mod bounds;
mod cpu;
mod index;
mod link;
mod map;
mod nvidia;
mod pipeline;
mod text;

pub use link::link;
pub use nvidia::{
    assemble::{Assembler, assembler},
    launch::{GpuLaunch, Swizzle, TensorMap},
};
pub use pipeline::{after_passes, asm, llvm_ir};

use rvllm_ir::{diag::Loc, tile::Kernel};
use rvllm_targets::{Arch, Target};
use std::{
    num::NonZero,
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

/// What went wrong, by whose fault it is.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel asks for what this lowering does not have.
    #[error("kernel `{kernel}` needs {what}, which the lowering for {target} does not have{}", at(loc))]
    Unsupported {
        /// Kernel.
        kernel: String,
        /// Target.
        target: String,
        /// What is missing.
        what: String,
        /// The kernel's line.
        loc: Option<Loc>,
    },
    /// A bug of this crate: MLIR or LLVM refused what it wrote.
    #[error("kernel `{kernel}`: {stage} failed, which is a bug of the compiler: {message}")]
    Internal {
        /// Kernel.
        kernel: String,
        /// What was being done.
        stage: &'static str,
        /// The diagnostics, each with the line of the text it is about.
        message: String,
    },
    /// The LLVM that this was built with lacks the target.
    #[error("LLVM does not know target `{triple}`: {message} · help: build against an LLVM with that backend")]
    NoBackend {
        /// LLVM triple.
        triple: String,
        /// LLVM's message.
        message: String,
    },
    /// Code of a GPU is loaded kernel by kernel.
    #[error("kernels of {target} are not linked: a device loads each by itself")]
    NotLinked {
        /// Target.
        target: String,
    },
    /// No linker on this machine.
    #[error("no linker found for {target}: tried {tried} · help: install lld, or set RVLLM_LD to a linker")]
    NoLinker {
        /// Target.
        target: String,
        /// What was looked for.
        tried: String,
    },
    /// The linker failed.
    #[error("linker {} failed: {message}", linker.display())]
    Link {
        /// The program.
        linker: PathBuf,
        /// What it wrote.
        message: String,
    },
    /// Files for the linker or the assembler.
    #[error("temporary files of the linker or the assembler: {0}")]
    Io(#[from] std::io::Error),
}

fn at(loc: &Option<Loc>) -> String {
    loc.as_ref().map_or(String::new(), |l| format!("\n  --> {l}"))
}

/// Object code of kernels, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// One per kernel.
    pub parts: Vec<Part>,
}

/// Object code of one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// For a CPU an ELF relocatable file. For an NVIDIA GPU a cubin, or PTX where this machine has no [`assembler`].
    pub bytes: Vec<u8>,
    /// How a GPU launches it; absent for a CPU.
    pub launch: Option<GpuLaunch>,
}

/// A kernel in MLIR.
struct Lowered {
    text: String,
    launch: Option<GpuLaunch>,
}

fn lower(kernel: &Kernel, target: &Target) -> Result<Lowered, Error> {
    match target.arch {
        Arch::X86_64 | Arch::Aarch64 => Ok(Lowered { text: cpu::lower(kernel, target)?, launch: None }),
        Arch::Nvptx64 => nvidia::lower(kernel, target),
    }
}

/// MLIR text of a kernel, as it is handed to the passes.
pub fn mlir_text(kernel: &Kernel, target: &Target) -> Result<String, Error> {
    Ok(lower(kernel, target)?.text)
}

/// How a GPU launches a kernel, but for what the assembler tells; `None` on a CPU.
pub fn launch(kernel: &Kernel, target: &Target) -> Result<Option<GpuLaunch>, Error> {
    Ok(lower(kernel, target)?.launch)
}

/// Compiles kernels, on all cores. The first failing kernel's error is returned.
pub fn compile(kernels: &[Kernel], target: &Target) -> Result<Object, Error> {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(kernels.len().max(1));
    let next = AtomicUsize::new(0);
    let done = Mutex::new(vec![]);
    let work = || {
        let session = pipeline::Session::new();
        while let Some((i, kernel)) = take(&next, kernels) {
            let object = session.part(kernel, target);
            done.lock().unwrap_or_else(PoisonError::into_inner).push((i, object));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(i, _)| *i);
    let parts = done.into_iter().map(|(_, object)| object).collect::<Result<Vec<_>, _>>()?;
    Ok(Object { parts })
}

fn take<'k>(next: &AtomicUsize, kernels: &'k [Kernel]) -> Option<(usize, &'k Kernel)> {
    let i = next.fetch_add(1, Ordering::Relaxed);
    kernels.get(i).map(|k| (i, k))
}

//! Devices: memory at fixed addresses and kernels over it. The trait is as wide as the executor needs.

mod affinity;
mod cpu;
pub mod cuda;
mod layout;
mod map;
mod nodes;
mod placement;

pub use affinity::{available_cores, physical_cores};
pub use cpu::{CpuDevice, CpuSize};
pub use nodes::{Node, Numa};
pub(crate) use placement::place;

use crate::{block_pool::BlockId, step::Step, team::Team};
use rvllm_artifact::plan::{Arg, Input};
use std::{ops::Range, sync::Arc};

/// Why a device cannot do what a plan asks for.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The operating system refused.
    #[error("cannot {action}: {reason}")]
    System {
        /// What was tried.
        action: String,
        /// What it said.
        reason: String,
    },
    /// The object code lacks a kernel of the plan.
    #[error("the object code has no kernel {symbol} · help: compile the artifact again")]
    MissingKernel {
        /// Its symbol.
        symbol: String,
    },
    /// A GPU, or its driver.
    #[error(transparent)]
    Cuda(#[from] cuda::CudaError),
    /// A plan that this runtime cannot follow.
    #[error("plan: {0} · help: compile the artifact again")]
    Plan(String),
    /// A step beyond what buffers were made for.
    #[error("the step has {values} values of {input:?}, but there is room for {capacity}")]
    StepTooLarge {
        /// Which.
        input: Input,
        /// How many the step has.
        values: usize,
        /// How many fit.
        capacity: usize,
    },
}

/// One launch with everything known: `programs` programs of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// Index into the plan's kernels.
    pub kernel: usize,
    /// Its arguments, in [`LaunchList::args`]: addresses of tensors, then values of symbols.
    pub args: Range<usize>,
    /// Size of the linearised grid.
    pub programs: u64,
}

/// The launches of a step, in order; each sees what those before it wrote.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LaunchList {
    /// Arguments of all launches: addresses of tensors, then values of symbols.
    pub args: Vec<u64>,
    /// The launches.
    pub launches: Vec<Launch>,
}

/// What a step runs.
#[derive(Clone, Debug)]
pub enum Launches {
    /// These.
    List(Arc<LaunchList>),
    /// The list that [`Device::record`] was given for this bucket.
    Recorded(usize),
}

/// Memory and kernels of one plan.
pub trait Device: Send {
    /// Numbers of tokens, rising: a step of at most so many runs launches that were recorded for just so many, of
    /// which those beyond its own end return at once. None where every step runs a list of its own.
    fn buckets(&self) -> &[u32] {
        &[]
    }

    /// The threads that compute, where they are this machine's.
    fn team(&mut self) -> Option<&mut Team> {
        None
    }

    /// Where a tensor argument lies in the steps of a bucket, or in those of none, for as long as the device lives.
    ///
    /// # Errors
    /// The plan names what it does not have.
    fn address(&self, arg: &Arg, bucket: Option<usize>) -> Result<u64, DeviceError>;

    /// Takes the launches of the next bucket.
    ///
    /// # Errors
    /// The device failed, or has no buckets.
    fn record(&mut self, _list: &LaunchList) -> Result<(), DeviceError> {
        Err(DeviceError::Plan("the device records no launches".to_string()))
    }

    /// Sets a step's inputs and runs its launches; where the device [`Device::runs_ahead`], without waiting for them.
    ///
    /// # Errors
    /// There is no room for so many values; the device failed.
    fn run(&mut self, step: &Step, launches: Launches) -> Result<(), DeviceError>;

    /// Whether the host goes on while launches run.
    fn runs_ahead(&self) -> bool {
        false
    }

    /// Whether a step may run before the one before it was waited for, and take tokens from it: see [`Step::token_ids`].
    fn feeds(&self) -> bool {
        false
    }

    /// Waits for the first of the steps, two at most, that [`Device::run`] left running.
    ///
    /// # Errors
    /// The device failed.
    fn wait(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Whether [`Device::read`] gives no more of a row of logits than the step says is read.
    fn leaves_out(&self) -> bool {
        false
    }

    /// Brings all of some rows of logits that the last step computed, which was waited for, where [`Device::read`] would not give them.
    ///
    /// # Errors
    /// The device failed.
    fn bring(&mut self, _rows: &[usize]) -> Result<(), DeviceError> {
        Ok(())
    }

    /// The first `len` elements of one of the plan's outputs, as the step that was waited for last left them: those that the step says are
    /// read.
    ///
    /// # Errors
    /// It has fewer.
    fn read(&self, buffer: u32, len: usize) -> Result<&[f32], DeviceError>;

    /// Copies the KV of a block, in all layers.
    ///
    /// # Errors
    /// The device failed.
    fn copy_block(&mut self, from: BlockId, to: BlockId) -> Result<(), DeviceError>;
}

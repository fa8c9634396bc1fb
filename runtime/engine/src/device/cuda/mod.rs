//! NVIDIA GPUs, through the driver's interface, which is loaded where there is one: one binary serves machines with
//! and without.

mod error;
mod gpu;
mod kernel;
mod stream;

pub use error::CudaError;
pub use gpu::{DeviceMemory, Facts, Gpu, Pinned};
pub use kernel::{LoadedKernel, Ready};
pub use stream::{Event, Graph, Stream};

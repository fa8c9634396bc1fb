//! NVIDIA GPUs, through the driver's interface, which is loaded where there is one: one binary serves machines with
//! and without.

mod device;
mod error;
mod gpu;
mod kernel;
mod stream;
mod weights;

pub use device::CudaDevice;
pub(crate) use device::overhead_bytes;
pub use error::CudaError;
pub use gpu::{DeviceMemory, Facts, Gpu, Pinned, probe};
pub use kernel::{LoadedKernel, Ready};
pub use stream::{Event, Graph, Stream};
pub use weights::DeviceWeights;
pub(crate) use weights::weights_bytes;

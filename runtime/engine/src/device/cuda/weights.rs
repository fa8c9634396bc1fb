//! A plan's weights in GPU memory: streamed through two page-locked buffers, one filled while the other is copied.

use super::{
    error::CudaError,
    gpu::{DeviceMemory, Gpu, Pinned},
    stream::{Event, Stream},
};
use crate::error::EngineError;
use rvllm_artifact::{
    Artifact, WeightsFrom,
    plan::Plan,
    stream::{Piece, stream},
};
use std::ops::ControlFlow;

/// Bytes of a page-locked buffer.
const BUFFER: usize = 32 << 20;
/// Where weights begin: as far as any copy engine or cache line asks for.
const ALIGNMENT: u64 = 1024;
/// Fewest bytes worth a thread's start.
const THREAD_BYTES: usize = 1 << 20;

/// Weights in one allocation.
#[derive(Debug)]
pub struct DeviceWeights {
    memory: DeviceMemory,
    /// Offset of each of the plan's weights.
    offsets: Vec<u64>,
}

/// Offsets of all weights, and the bytes of all.
fn offsets(plan: &Plan) -> (Vec<u64>, u64) {
    let mut end = 0u64;
    let offset = |weight: &rvllm_artifact::plan::Weight| {
        let start = end.next_multiple_of(ALIGNMENT);
        // Checked with the plan.
        end = start + weight.bytes().unwrap_or(0);
        start
    };
    (plan.weights.iter().map(offset).collect(), end)
}

/// Bytes of GPU memory that a plan's weights take.
pub(crate) fn weights_bytes(plan: &Plan) -> u64 {
    offsets(plan).1
}

impl DeviceWeights {
    /// Loads all weights of `plan`, a plan of `artifact`; recipes and copies to page-locked memory run on `threads`
    /// threads.
    ///
    /// # Errors
    /// As [`stream`]; the GPU has not enough memory, or failed.
    pub fn load(
        gpu: &Gpu,
        artifact: &Artifact,
        plan: &Plan,
        from: WeightsFrom<'_>,
        threads: usize,
    ) -> Result<DeviceWeights, EngineError> {
        let (offsets, bytes) = offsets(plan);
        let memory = DeviceMemory::new(gpu, bytes, "the weights").map_err(device)?;
        let mut upload = Upload::new(gpu, threads).map_err(device)?;
        let mut failed = None;
        let mut received = vec![0u64; plan.weights.len()];
        let mut sink = |piece: Piece<'_>| {
            received[piece.weight] = piece.offset + piece.bytes.len() as u64;
            match upload.put(&memory, offsets[piece.weight] + piece.offset, piece.bytes) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            }
        };
        let streamed = stream(artifact, plan, from, threads, &mut sink);
        if let Some(error) = failed {
            return Err(device(error));
        }
        streamed?;
        for ((weight, offset), received) in plan.weights.iter().zip(&offsets).zip(received) {
            upload.repeat(&memory, *offset, received, weight.bytes().unwrap_or(0)).map_err(device)?;
        }
        upload.stream.synchronize().map_err(device)?;
        Ok(DeviceWeights { memory, offsets })
    }

    /// Where a weight lies.
    pub fn address(&self, index: usize) -> Option<u64> {
        Some(self.memory.address() + self.offsets.get(index)?)
    }

    /// Bytes of all.
    pub fn bytes(&self) -> u64 {
        self.memory.bytes()
    }

    /// The GPU that they are on.
    pub fn gpu(&self) -> &Gpu {
        self.memory.gpu()
    }
}

fn device(error: CudaError) -> EngineError {
    EngineError::Device(error.into())
}

/// The two buffers and what is on its way.
struct Upload {
    stream: Stream,
    buffers: [(Pinned, Event); 2],
    next: usize,
    threads: usize,
}

impl Upload {
    fn new(gpu: &Gpu, threads: usize) -> Result<Upload, CudaError> {
        let buffer = || Ok((Pinned::new(gpu, BUFFER)?, Event::new(gpu)?));
        Ok(Upload { stream: Stream::new(gpu)?, buffers: [buffer()?, buffer()?], next: 0, threads })
    }

    /// Copies bytes to `to` of `memory`; returns as soon as the last of them are in a buffer.
    fn put(&mut self, memory: &DeviceMemory, to: u64, bytes: &[u8]) -> Result<(), CudaError> {
        for (i, part) in bytes.chunks(BUFFER).enumerate() {
            let (pinned, event) = &mut self.buffers[self.next];
            event.synchronize()?;
            copy(part, &mut pinned.bytes_mut()[..part.len()], self.threads);
            self.stream.upload(pinned, 0..part.len(), memory, to + (i * BUFFER) as u64)?;
            self.stream.mark(event)?;
            self.next = 1 - self.next;
        }
        Ok(())
    }

    /// Fills a weight of `bytes` bytes with copies of its first `received`.
    fn repeat(&self, memory: &DeviceMemory, at: u64, received: u64, bytes: u64) -> Result<(), CudaError> {
        let mut have = received;
        while have > 0 && have < bytes {
            let more = have.min(bytes - have);
            self.stream.copy(memory, at, at + have, more)?;
            have += more;
        }
        Ok(())
    }
}

/// Copies on several threads: one alone reads a file's pages slower than the bus moves them.
fn copy(from: &[u8], to: &mut [u8], threads: usize) {
    let part = from.len().div_ceil(threads.max(1)).max(THREAD_BYTES);
    std::thread::scope(|scope| {
        let mut parts = from.chunks(part).zip(to.chunks_mut(part));
        let first = parts.next();
        for (from, to) in parts {
            scope.spawn(move || to.copy_from_slice(from));
        }
        if let Some((from, to)) = first {
            to.copy_from_slice(from);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::copy;

    #[test]
    fn copies_are_whole_whatever_the_threads() {
        let from: Vec<u8> = (0..(3 << 20) + 17).map(|i| (i * 31 % 251) as u8).collect();
        for threads in [0, 1, 3, 64] {
            let mut to = vec![0; from.len()];
            copy(&from, &mut to, threads);
            assert!(to == from, "{threads} threads");
        }
        copy(&[], &mut [], 4);
    }
}

//! One ordered line of work for a GPU: copies, launches, and recorded lists of launches.
//!
//! Invariants:
//! - a stream waits for its work before it is dropped, so what it was handed by reference can be freed after it;
//! - host memory handed to a copy is not touched until [`Stream::synchronize`] or a waited-for [`Event`] comes after it.

use super::{
    error::{Context, CudaError},
    gpu::{DeviceMemory, Gpu, Pinned},
};
use cudarc::driver::{result, sys};
use std::{ffi::c_void, ops::Range};

/// Work in order.
#[derive(Debug)]
pub struct Stream {
    gpu: Gpu,
    stream: sys::CUstream,
}

// SAFETY: a stream belongs to the process, not to a thread; `&mut` or the driver's own lock orders calls.
unsafe impl Send for Stream {}

impl Stream {
    /// A new one, which waits for no other.
    ///
    /// # Errors
    /// The driver failed.
    pub fn new(gpu: &Gpu) -> Result<Stream, CudaError> {
        gpu.bind()?;
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking).context("make a stream")?;
        Ok(Stream { gpu: gpu.clone(), stream })
    }

    /// The GPU that it is of.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    pub(super) fn handle(&self) -> sys::CUstream {
        self.stream
    }

    /// Waits for all work that it was given.
    ///
    /// # Errors
    /// Some of it failed.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.gpu.bind()?;
        // SAFETY: the stream is this value's own.
        unsafe { result::stream::synchronize(self.stream) }.context("run the step on the GPU")
    }

    /// Copies a range of host memory to `to` of `memory`, in order.
    ///
    /// # Errors
    /// A range that does not lie in its memory; the driver failed.
    pub fn upload(&self, from: &Pinned, range: Range<usize>, memory: &DeviceMemory, to: u64) -> Result<(), CudaError> {
        let bytes = from.bytes().get(range.clone()).filter(|b| memory.holds(to, b.len() as u64));
        let bytes = bytes.ok_or_else(|| outside(range))?;
        self.gpu.bind()?;
        // SAFETY: both ranges lie in their memory; the host's is page-locked and, by contract, left alone meanwhile.
        unsafe { result::memcpy_htod_async(memory.address() + to, bytes, self.stream) }.context("copy to the GPU")
    }

    /// Copies from `at` of `memory` to a range of host memory, in order.
    ///
    /// # Errors
    /// As [`Stream::upload`].
    pub fn download(
        &self,
        memory: &DeviceMemory,
        at: u64,
        into: &mut Pinned,
        range: Range<usize>,
    ) -> Result<(), CudaError> {
        let bytes = into.bytes_mut().get_mut(range.clone()).filter(|b| memory.holds(at, b.len() as u64));
        let bytes = bytes.ok_or_else(|| outside(range))?;
        self.gpu.bind()?;
        // SAFETY: as in `upload`.
        unsafe { result::memcpy_dtoh_async(bytes, memory.address() + at, self.stream) }.context("copy from the GPU")
    }

    /// Copies `len` bytes within a GPU's memory, in order.
    ///
    /// # Errors
    /// As [`Stream::upload`].
    pub fn copy(&self, memory: &DeviceMemory, from: u64, to: u64, len: u64) -> Result<(), CudaError> {
        if !(memory.holds(from, len) && memory.holds(to, len)) {
            return Err(outside(from as usize..from.saturating_add(len) as usize));
        }
        self.gpu.bind()?;
        let (from, to) = (memory.address() + from, memory.address() + to);
        // SAFETY: both ranges lie in the memory, which nothing else writes while the stream works.
        unsafe { result::memcpy_dtod_async(to, from, len as usize, self.stream) }.context("copy within the GPU")
    }

    /// Sets `len` bytes, in order.
    ///
    /// # Errors
    /// As [`Stream::upload`].
    pub fn fill(&self, memory: &DeviceMemory, from: u64, len: u64, byte: u8) -> Result<(), CudaError> {
        if !memory.holds(from, len) {
            return Err(outside(from as usize..from.saturating_add(len) as usize));
        }
        self.gpu.bind()?;
        // SAFETY: the range lies in the memory.
        unsafe { result::memset_d8_async(memory.address() + from, byte, len as usize, self.stream) }
            .context("fill GPU memory")
    }

    /// Records what `record` gives the stream, without running it.
    ///
    /// # Errors
    /// Those of `record`; the driver failed.
    pub fn record(&self, record: impl FnOnce() -> Result<(), CudaError>) -> Result<Graph, CudaError> {
        self.gpu.bind()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is this value's own, and recording ends below whatever `record` does.
        unsafe { result::stream::begin_capture(self.stream, mode) }.context("begin to record launches")?;
        let recorded = record();
        // SAFETY: recording began above, on this thread.
        let graph = unsafe { result::stream::end_capture(self.stream) }.context("record launches");
        recorded?;
        Graph::new(&self.gpu, graph?, self.stream)
    }

    /// Runs a recorded list, in order.
    ///
    /// # Errors
    /// The driver failed.
    pub fn replay(&self, graph: &Graph) -> Result<(), CudaError> {
        self.gpu.bind()?;
        // SAFETY: the graph lives as long as `graph`, whose owner drops it after this stream's work.
        unsafe { result::graph::launch(graph.exec, self.stream) }.context("launch the step's graph")
    }

    /// Notes the time at which the work so far is done.
    ///
    /// # Errors
    /// The driver failed.
    pub fn mark(&self, event: &Event) -> Result<(), CudaError> {
        self.gpu.bind()?;
        // SAFETY: both handles are live.
        unsafe { result::event::record(event.event, self.stream) }.context("record an event")
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.synchronize().is_ok() {
            // SAFETY: the stream is this value's own, and idle.
            let _ = unsafe { result::stream::destroy(self.stream) };
        }
    }
}

fn outside(range: Range<usize>) -> CudaError {
    let reason = format!("bytes {} to {} are not in it", range.start, range.end);
    CudaError::Call { action: "reach memory".to_string(), reason }
}

/// A list of launches that the GPU runs at one call.
#[derive(Debug)]
pub struct Graph {
    gpu: Gpu,
    exec: sys::CUgraphExec,
    nodes: usize,
}

// SAFETY: as for `Stream`.
unsafe impl Send for Graph {}

impl Graph {
    fn new(gpu: &Gpu, graph: sys::CUgraph, stream: sys::CUstream) -> Result<Graph, CudaError> {
        let (mut exec, mut nodes): (sys::CUgraphExec, usize) = (std::ptr::null_mut(), 0);
        // SAFETY: `graph` was just recorded; the calls write the count and the handle.
        let made = unsafe {
            let _ = sys::cuGraphGetNodes(graph, std::ptr::null_mut(), &mut nodes);
            sys::cuGraphInstantiateWithFlags(&mut exec, graph, 0).result()
        };
        // SAFETY: an instance does not need the graph that it was made from.
        let _ = unsafe { result::graph::destroy(graph) };
        made.context("make a graph of launches")?;
        let graph = Graph { gpu: gpu.clone(), exec, nodes };
        // SAFETY: both handles are live. So the first replay costs what every other does.
        unsafe { result::graph::upload(exec, stream) }.context("upload a graph of launches")?;
        Ok(graph)
    }

    /// Number of launches.
    pub fn len(&self) -> usize {
        self.nodes
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.nodes == 0
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.gpu.bind().is_ok() {
            // SAFETY: the handle is this value's own; the driver keeps a running one until it is done.
            let _ = unsafe { result::graph::exec_destroy(self.exec) };
        }
    }
}

/// A point in a stream's work, with its time.
#[derive(Debug)]
pub struct Event {
    gpu: Gpu,
    event: sys::CUevent,
}

// SAFETY: as for `Stream`.
unsafe impl Send for Event {}

impl Event {
    /// A new one.
    ///
    /// # Errors
    /// The driver failed.
    pub fn new(gpu: &Gpu) -> Result<Event, CudaError> {
        gpu.bind()?;
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).context("make an event")?;
        Ok(Event { gpu: gpu.clone(), event })
    }

    /// Waits until the work before it is done.
    ///
    /// # Errors
    /// Some of it failed.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.gpu.bind()?;
        // SAFETY: the handle is live.
        unsafe { result::event::synchronize(self.event) }.context("wait for the GPU")
    }

    /// Milliseconds from `start` to this, both waited for.
    ///
    /// # Errors
    /// One of them was not recorded or is not done.
    pub fn milliseconds_since(&self, start: &Event) -> Result<f32, CudaError> {
        self.gpu.bind()?;
        // SAFETY: both handles are live.
        unsafe { result::event::elapsed(start.event, self.event) }.context("read the time of an event")
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.gpu.bind().is_ok() {
            // SAFETY: the handle is this value's own.
            let _ = unsafe { result::event::destroy(self.event) };
        }
    }
}

/// Pointers to parameters, as a launch takes them.
pub(super) type Parameters = Vec<*mut c_void>;

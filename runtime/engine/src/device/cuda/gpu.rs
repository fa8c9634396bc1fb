//! A GPU with its context, and memory on both sides: the driver's handles as values that free what they hold.
//!
//! Invariants:
//! - nothing is called before the driver's library is known to be there and recent enough: without it the bindings panic;
//! - every call is made with the GPU's context current to the calling thread, so that values may move between threads.

use super::error::{Context, CudaError, OLDEST_DRIVER, reason};
use cudarc::driver::{
    result,
    sys::{self, CUdevice_attribute as Attribute},
};
use std::{ptr::NonNull, sync::Arc};

/// A GPU. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Gpu(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    device: sys::CUdevice,
    context: sys::CUcontext,
    facts: Facts,
}

// SAFETY: a context belongs to the process, and may be current to any thread.
unsafe impl Send for Inner {}
// SAFETY: the driver's calls on a context are thread-safe; the fields are never written.
unsafe impl Sync for Inner {}

/// What a GPU is.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// Its number, of those that the process sees.
    pub ordinal: u32,
    /// `NVIDIA H200`.
    pub name: String,
    /// Compute capability: major, minor.
    pub capability: (u32, u32),
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Most bytes of shared memory of a CTA.
    pub shared_bytes: u64,
    /// Bytes of memory.
    pub total_bytes: u64,
    /// CUDA version of the driver: 1000 × major + 10 × minor.
    pub driver: i32,
}

impl Facts {
    /// `sm_90`.
    pub fn architecture(&self) -> String {
        format!("sm_{}{}", self.capability.0, self.capability.1)
    }

    /// Whether it runs code compiled for `architecture` (`sm_80`, `sm_90a`): a suffix ties code to the very capability,
    /// else to the same major and an older or equal minor.
    pub fn runs(&self, architecture: &str) -> bool {
        let Some(rest) = architecture.strip_prefix("sm_") else { return false };
        let digits = rest.trim_end_matches(|c: char| c.is_ascii_lowercase());
        let (Ok(number), exact) = (digits.parse::<u32>(), digits.len() < rest.len()) else { return false };
        let (major, minor) = (number / 10, number % 10);
        self.capability.0 == major && if exact { self.capability.1 == minor } else { self.capability.1 >= minor }
    }
}

impl Gpu {
    /// Opens a GPU of those that the driver sees (`CUDA_VISIBLE_DEVICES` applies). `needs` says why, for messages:
    /// `artifact was compiled for sm_90a`.
    ///
    /// # Errors
    /// There is no driver, it is too old, or sees no such GPU.
    pub fn open(ordinal: u32, needs: &str) -> Result<Gpu, CudaError> {
        let (device, facts) = find(ordinal, needs)?;
        // SAFETY: the device was just given by the driver; the context is released when the last clone is dropped.
        let context = unsafe { result::primary_ctx::retain(device) }.context("open a context on the GPU")?;
        let gpu = Gpu(Arc::new(Inner { device, context, facts }));
        gpu.bind()?;
        Ok(gpu)
    }

    /// What it is.
    pub fn facts(&self) -> &Facts {
        &self.0.facts
    }

    /// Bytes that are free now, on the whole GPU.
    ///
    /// # Errors
    /// The driver failed.
    pub fn free_bytes(&self) -> Result<u64, CudaError> {
        self.bind()?;
        let (free, _) = result::mem_get_info().context("ask the GPU for its free memory")?;
        Ok(free as u64)
    }

    /// Waits for all that was asked of the GPU.
    ///
    /// # Errors
    /// The driver failed, or something that was asked for did.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.bind()?;
        result::ctx::synchronize().context("wait for the GPU")
    }

    /// Makes its context current to this thread.
    pub(super) fn bind(&self) -> Result<(), CudaError> {
        // SAFETY: the context is retained as long as `self` lives.
        unsafe { result::ctx::set_current(self.0.context) }.context("make the GPU's context current")
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: `open` retained it once. A failure leaves the context to the end of the process.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// What a GPU is, of those that the driver sees, without taking any of its memory; `needs` as for [`Gpu::open`].
///
/// # Errors
/// As [`Gpu::open`].
pub fn probe(ordinal: u32, needs: &str) -> Result<Facts, CudaError> {
    Ok(find(ordinal, needs)?.1)
}

fn find(ordinal: u32, needs: &str) -> Result<(sys::CUdevice, Facts), CudaError> {
    let driver = driver(needs)?;
    let count = u32::try_from(result::device::get_count().context("count GPUs")?).unwrap_or(0);
    if ordinal >= count {
        return Err(match count {
            0 => CudaError::NoDevice { reason: String::new() },
            _ => CudaError::NoSuchDevice { ordinal, count },
        });
    }
    let device = result::device::get(ordinal as i32).context("open the GPU")?;
    Ok((device, facts(device, ordinal, driver).context("read what the GPU is")?))
}

/// Loads and starts the driver; its version.
fn driver(needs: &str) -> Result<i32, CudaError> {
    // SAFETY: loading the driver's library runs its initialisers, which any program that uses the GPU runs.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::NoDriver { needs: needs.to_string() });
    }
    let mut found = 0;
    // SAFETY: the call writes one integer, and needs no initialisation.
    unsafe { sys::cuDriverGetVersion(&mut found) }.result().context("ask the driver for its version")?;
    if found < OLDEST_DRIVER {
        return Err(CudaError::OldDriver { found, needed: OLDEST_DRIVER });
    }
    match result::init() {
        Ok(()) => Ok(found),
        Err(e) if e.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE => Err(CudaError::NoDevice { reason: String::new() }),
        Err(e) => Err(CudaError::NoDevice { reason: reason(e) }),
    }
}

fn facts(device: sys::CUdevice, ordinal: u32, driver: i32) -> Result<Facts, result::DriverError> {
    // SAFETY: the device was given by the driver.
    let attribute = |a| unsafe { result::device::get_attribute(device, a) }.map(|v| v.max(0) as u32);
    Ok(Facts {
        ordinal,
        name: result::device::get_name(device)?,
        capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?.into(),
        // SAFETY: as above.
        total_bytes: unsafe { result::device::total_mem(device) }? as u64,
        driver,
    })
}

/// Memory of a GPU.
#[derive(Debug)]
pub struct DeviceMemory {
    gpu: Gpu,
    address: u64,
    bytes: u64,
}

impl DeviceMemory {
    /// `bytes` bytes for `what`, of any contents, 256-byte aligned.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`].
    pub fn new(gpu: &Gpu, bytes: u64, what: &str) -> Result<DeviceMemory, CudaError> {
        gpu.bind()?;
        // SAFETY: the context is current; the memory is freed when the value is dropped.
        match unsafe { result::malloc_sync(bytes.max(1) as usize) } {
            Ok(address) => Ok(DeviceMemory { gpu: gpu.clone(), address, bytes }),
            Err(e) if e.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Err(CudaError::OutOfMemory {
                what: what.to_string(),
                needed: bytes,
                free: gpu.free_bytes()?,
                total: gpu.facts().total_bytes,
                help: "",
            }),
            Err(e) => Err(e).context(&format!("get {bytes} bytes of GPU memory for {what}")),
        }
    }

    /// Where it begins.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The GPU that it is of.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Whether `len` bytes from `offset` on lie in it.
    pub(super) fn holds(&self, offset: u64, len: u64) -> bool {
        offset.checked_add(len).is_some_and(|end| end <= self.bytes)
    }

    /// Copies bytes there, and waits.
    ///
    /// # Errors
    /// They reach beyond its end; the driver failed.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), CudaError> {
        self.check(offset, bytes.len() as u64)?;
        self.gpu.bind()?;
        // SAFETY: the range lies in this memory, which nothing that is safe to call reads meanwhile.
        unsafe { result::memcpy_htod_sync(self.address + offset, bytes) }.context("copy to the GPU")
    }

    /// Copies bytes from there, after what the GPU was asked for in order on other streams too.
    ///
    /// # Errors
    /// As [`DeviceMemory::write`].
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), CudaError> {
        self.check(offset, bytes.len() as u64)?;
        self.gpu.synchronize()?;
        // SAFETY: the range lies in this memory, and the GPU is idle.
        unsafe { result::memcpy_dtoh_sync(bytes, self.address + offset) }.context("copy from the GPU")
    }

    fn check(&self, offset: u64, len: u64) -> Result<(), CudaError> {
        if self.holds(offset, len) {
            return Ok(());
        }
        let reason = format!("{len} bytes at {offset} of {}", self.bytes);
        Err(CudaError::Call { action: "reach GPU memory".to_string(), reason })
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if self.gpu.bind().is_ok() {
            // SAFETY: the address was given by the driver to this value. A failure leaves it to the end of the process.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

/// Host memory that the GPU copies from and to by itself: page-locked.
#[derive(Debug)]
pub struct Pinned {
    gpu: Gpu,
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the memory belongs to this value alone; it is no thread's own.
unsafe impl Send for Pinned {}

impl Pinned {
    /// `bytes` zeroed bytes.
    ///
    /// # Errors
    /// The system locks no more memory.
    pub fn new(gpu: &Gpu, bytes: usize) -> Result<Pinned, CudaError> {
        gpu.bind()?;
        let action = format!("lock {bytes} bytes of host memory");
        // SAFETY: the context is current; the memory is freed when the value is dropped.
        let start = unsafe { result::malloc_host(bytes.max(1), 0) }.context(&action)?;
        let missing = || CudaError::Call { action: action.clone(), reason: "the driver gave none".to_string() };
        let start = NonNull::new(start.cast::<u8>()).ok_or_else(missing)?;
        // SAFETY: the driver gave `bytes` bytes from there on.
        unsafe { start.write_bytes(0, bytes.max(1)) };
        Ok(Pinned { gpu: gpu.clone(), start, bytes })
    }

    /// Its contents. The caller waits for copies to it first.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the range is this value's own and initialised; copies by the GPU are waited for by contract of
        // `Stream`, whose methods take it.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }

    /// Its contents, to change. The caller waits for copies from it first.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; `&mut self` makes this the only borrow.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }

    /// `len` numbers from byte `offset` on; `None` where they are not in it or not aligned.
    pub fn floats(&self, offset: usize, len: usize) -> Option<&[f32]> {
        let bytes = self.bytes().get(offset..offset.checked_add(len.checked_mul(4)?)?)?;
        // SAFETY: every bit pattern is an f32.
        let (before, floats, after) = unsafe { bytes.align_to::<f32>() };
        (before.is_empty() && after.is_empty()).then_some(floats)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.gpu.synchronize().is_ok() {
            // SAFETY: the driver gave the memory to this value, and no copy is under way.
            let _ = unsafe { result::free_host(self.start.as_ptr().cast()) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(capability: (u32, u32)) -> Facts {
        Facts {
            ordinal: 0,
            name: "NVIDIA H200".into(),
            capability,
            multiprocessors: 132,
            shared_bytes: 232_448,
            total_bytes: 150_000_000_000,
            driver: 13000,
        }
    }

    #[test]
    fn code_runs_on_its_architecture() {
        let runs = |capability, architecture: &str| facts(capability).runs(architecture);
        assert!(runs((9, 0), "sm_90a") && runs((9, 0), "sm_90") && runs((8, 6), "sm_80") && runs((12, 0), "sm_120a"));
        assert!(
            !runs((10, 0), "sm_90a") && !runs((8, 0), "sm_90") && !runs((8, 0), "sm_86") && !runs((10, 3), "sm_100a")
        );
        assert!(!runs((9, 0), "gfx942") && !runs((9, 0), "sm_") && !runs((9, 0), "sm_a"));
        assert_eq!(facts((12, 1)).architecture(), "sm_121");
    }
}

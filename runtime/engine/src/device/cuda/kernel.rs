//! Kernels on a GPU: code loaded, launches with everything known.
//!
//! Invariants:
//! - a kernel was checked against the GPU: its architecture, its shared memory;
//! - a [`Ready`] launch owns its parameters and its code, so that it can be recorded and replayed at any time.

use super::{
    error::{Context, CudaError},
    gpu::Gpu,
    stream::{Parameters, Stream},
};
use cudarc::driver::{
    result,
    sys::{self, CUfunction_attribute as Attribute, CUlaunchAttributeID as Id},
};
use rvllm_artifact::{
    gpu::{CodeFormat, GpuKernel, Swizzle, TensorMap},
    plan::{DType, Kernel, Sym},
};
use std::{ffi::CString, sync::Arc};

/// A kernel's code on a GPU. Clones are the same one.
#[derive(Clone, Debug)]
pub struct LoadedKernel(Arc<Loaded>);

#[derive(Debug)]
struct Loaded {
    gpu: Gpu,
    module: sys::CUmodule,
    function: sys::CUfunction,
    symbol: String,
    launch: GpuKernel,
}

// SAFETY: modules and functions belong to the context, not to a thread.
unsafe impl Send for Loaded {}
// SAFETY: the driver's calls on them are thread-safe; the fields are never written.
unsafe impl Sync for Loaded {}

impl LoadedKernel {
    /// Loads a kernel of a plan from its target's object code.
    ///
    /// # Errors
    /// The code is not of this GPU, is newer than the driver, lacks the kernel, or takes more than the GPU has.
    pub fn new(gpu: &Gpu, kernel: &Kernel, object_code: &[u8]) -> Result<LoadedKernel, CudaError> {
        let wrong = |reason: &str| CudaError::Call { action: format!("load {}", kernel.symbol), reason: reason.into() };
        let launch = kernel.gpu.clone().ok_or_else(|| wrong("it is a kernel for a CPU"))?;
        let range = launch.code.offset as usize..launch.code.offset.saturating_add(launch.code.bytes) as usize;
        let code = object_code.get(range).ok_or_else(|| wrong("the object code ends before it"))?;
        let symbol = CString::new(kernel.symbol.as_str()).map_err(|_| wrong("its symbol has a zero byte"))?;
        gpu.bind()?;
        let module = load(gpu, &kernel.symbol, launch.code.format, code)?;
        // SAFETY: the module was just loaded.
        let found = unsafe { result::module::get_function(module, symbol) };
        let action = format!("find kernel {} in the object code", kernel.symbol);
        let function = found.context(&action).inspect_err(|_| {
            // SAFETY: nothing uses the module.
            let _ = unsafe { result::module::unload(module) };
        })?;
        let symbol = kernel.symbol.clone();
        let loaded = LoadedKernel(Arc::new(Loaded { gpu: gpu.clone(), module, function, symbol, launch }));
        loaded.0.reserve_shared_memory()?;
        Ok(loaded)
    }

    /// Its symbol.
    pub fn symbol(&self) -> &str {
        &self.0.symbol
    }

    /// How it is launched.
    pub fn launch(&self) -> &GpuKernel {
        &self.0.launch
    }

    /// Registers and bytes of local memory of a thread, as the driver loaded it.
    ///
    /// # Errors
    /// The driver failed.
    pub fn resources(&self) -> Result<(u32, u32), CudaError> {
        self.0.gpu.bind()?;
        let registers = self.0.attribute(Attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)?;
        Ok((registers, self.0.attribute(Attribute::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?))
    }

    /// A launch of `programs` programs over tensors at these addresses, with the symbols at `symbols`. `most` gives a
    /// symbol's largest value, which tensor maps are made for.
    ///
    /// # Errors
    /// The plan gives other tensors than the kernel takes; a tensor map that the driver refuses.
    pub fn ready(
        &self,
        tensors: &[u64],
        symbols: u64,
        programs: u64,
        most: &dyn Fn(Sym) -> u64,
    ) -> Result<Ready, CudaError> {
        let launch = &self.0.launch;
        let maps = launch.tensor_maps.iter().map(|map| self.0.encode(map, tensors, most)).collect::<Result<_, _>>()?;
        let ctas = programs.saturating_mul(launch.ctas_per_program.into());
        let ctas = launch.max_ctas.map_or(ctas, |most| ctas.min(most.into()));
        // The extent of a grid is a whole number of clusters.
        let ctas = ctas.checked_next_multiple_of(launch.cluster.into()).and_then(|n| u32::try_from(n).ok());
        let ctas = ctas.ok_or_else(|| self.0.failed(format!("{programs} programs are more than a grid holds")))?;
        let addresses = tensors.iter().copied().chain([symbols]).collect();
        Ok(Ready { kernel: self.clone(), ctas, addresses, maps })
    }
}

impl Loaded {
    fn failed(&self, reason: String) -> CudaError {
        CudaError::Call { action: format!("launch {}", self.symbol), reason }
    }

    fn attribute(&self, attribute: Attribute) -> Result<u32, CudaError> {
        let mut value = 0;
        // SAFETY: the function is loaded; the call writes one integer.
        unsafe { sys::cuFuncGetAttribute(&mut value, attribute, self.function) }
            .result()
            .context(&format!("read what kernel {} takes", self.symbol))?;
        Ok(value.max(0) as u32)
    }

    /// Lets launches have the shared memory that the plan says; more than 48 KiB has to be asked for.
    fn reserve_shared_memory(&self) -> Result<(), CudaError> {
        let declared = self.attribute(Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?;
        let needed = u64::from(self.launch.shared_bytes) + u64::from(declared);
        let facts = self.gpu.facts();
        if needed > facts.shared_bytes {
            let (kernel, name) = (self.symbol.clone(), facts.name.clone());
            return Err(CudaError::SharedMemory { kernel, needed, most: facts.shared_bytes, name });
        }
        let (attribute, bytes) =
            (Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, self.launch.shared_bytes as i32);
        // SAFETY: the function is loaded; the attribute is one of a function's.
        unsafe { result::function::set_function_attribute(self.function, attribute, bytes) }
            .context(&format!("give kernel {} {bytes} bytes of shared memory", self.symbol))?;
        if self.launch.cluster > 8 {
            let attribute = Attribute::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED;
            // SAFETY: as above.
            unsafe { result::function::set_function_attribute(self.function, attribute, 1) }
                .context(&format!("allow kernel {} a large cluster", self.symbol))?;
        }
        Ok(())
    }

    fn encode(&self, map: &TensorMap, tensors: &[u64], most: &dyn Fn(Sym) -> u64) -> Result<Map, CudaError> {
        let address = tensors.get(map.tensor as usize).copied();
        let address = address.ok_or_else(|| self.failed(format!("there is no tensor {}", map.tensor)))?;
        let (extents, strides) = map.largest(most).map_err(|problem| self.failed(problem))?;
        let ones = vec![1u32; extents.len()];
        let mut encoded = Map(sys::CUtensorMap_st { opaque: [0; 16] });
        // SAFETY: the pointers are to arrays as long as the number of dimensions says (checked with the plan); the call
        // writes the map and reads nothing of the tensor.
        let call = unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut encoded.0,
                data_type(map.dtype),
                extents.len() as u32,
                address as *mut _,
                extents.as_ptr(),
                strides.as_ptr(),
                map.tile.as_ptr(),
                ones.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle(map.swizzle),
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        let action = format!("make a tensor map of kernel {} (extents {extents:?}, {map:?})", self.symbol);
        call.result().context(&action)?;
        Ok(encoded)
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        if self.gpu.bind().is_ok() {
            // SAFETY: the module is this value's own; streams wait for their work before what they run is dropped.
            let _ = unsafe { result::module::unload(self.module) };
        }
    }
}

fn load(gpu: &Gpu, symbol: &str, format: CodeFormat, code: &[u8]) -> Result<sys::CUmodule, CudaError> {
    let loaded = match format {
        // SAFETY: the image is the artifact's: an ELF file, whose headers say where it ends.
        CodeFormat::Cubin => unsafe { result::module::load_data(code.as_ptr().cast()) },
        CodeFormat::Ptx => {
            let text = code.split(|b| *b == 0).next().unwrap_or_default().to_vec();
            let text = CString::new(text).unwrap_or_default();
            // SAFETY: the text ends with a zero byte.
            unsafe { result::module::load_data(text.as_ptr().cast()) }
        }
    };
    loaded.or_else(|e| match e.0 {
        sys::CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => {
            Err(CudaError::NewPtx { kernel: symbol.to_string(), driver: gpu.facts().driver })
        }
        _ => Err(e).context(&format!("load kernel {symbol}")),
    })
}

fn data_type(dtype: DType) -> sys::CUtensorMapDataType {
    use sys::CUtensorMapDataType as T;
    match dtype {
        DType::F32 => T::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        DType::F16 => T::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        DType::Bf16 => T::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        DType::I32 => T::CU_TENSOR_MAP_DATA_TYPE_INT32,
        DType::F8e4m3 | DType::F8e5m2 | DType::I8 | DType::U4 | DType::U8 => T::CU_TENSOR_MAP_DATA_TYPE_UINT8,
    }
}

fn swizzle(swizzle: Swizzle) -> sys::CUtensorMapSwizzle {
    use sys::CUtensorMapSwizzle as S;
    match swizzle {
        Swizzle::None => S::CU_TENSOR_MAP_SWIZZLE_NONE,
        Swizzle::B32 => S::CU_TENSOR_MAP_SWIZZLE_32B,
        Swizzle::B64 => S::CU_TENSOR_MAP_SWIZZLE_64B,
        Swizzle::B128 => S::CU_TENSOR_MAP_SWIZZLE_128B,
    }
}

/// A tensor map as a parameter: 64-byte aligned.
#[derive(Clone, Copy, Debug)]
struct Map(sys::CUtensorMap_st);

/// A launch with everything known.
#[derive(Clone, Debug)]
pub struct Ready {
    kernel: LoadedKernel,
    ctas: u32,
    /// Of the tensors, then of the symbols.
    addresses: Vec<u64>,
    maps: Vec<Map>,
}

impl Ready {
    /// CTAs of the launch.
    pub fn ctas(&self) -> u32 {
        self.ctas
    }

    /// The kernel.
    pub fn kernel(&self) -> &LoadedKernel {
        &self.kernel
    }

    /// Gives it to a stream. It begins while the launch before it, if that is the stream's last work, still runs: kernels wait
    /// themselves before they touch what others write or read.
    ///
    /// # Errors
    /// The driver refuses it.
    pub fn launch(&self, stream: &Stream) -> Result<(), CudaError> {
        if self.ctas == 0 {
            return Ok(());
        }
        let Loaded { gpu, function, symbol, launch, .. } = &*self.kernel.0;
        gpu.bind()?;
        let mut attributes = attributes(launch.cluster);
        let config = sys::CUlaunchConfig {
            gridDimX: self.ctas,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: launch.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared_bytes,
            hStream: stream.handle(),
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        };
        let mut parameters = self.parameters();
        // SAFETY: the kernel is one of the plan's, launched as the plan's format says, with one parameter for each that
        // it has: the driver copies them now. What the code does with the memory at these addresses is the artifact's
        // promise: running an artifact is running a program.
        unsafe { sys::cuLaunchKernelEx(&config, *function, parameters.as_mut_ptr(), std::ptr::null_mut()) }
            .result()
            .or_else(|e| Err(e).context(&format!("launch {symbol}")))
    }

    fn parameters(&self) -> Parameters {
        let addresses = self.addresses.iter().map(|a| std::ptr::from_ref(a).cast_mut().cast());
        let maps = self.maps.iter().map(|m| std::ptr::from_ref(m).cast_mut().cast());
        addresses.chain(maps).collect()
    }
}

fn attributes(cluster: u32) -> Vec<sys::CUlaunchAttribute> {
    let attribute = |id, value| sys::CUlaunchAttribute { id, pad: [0; 4], value };
    let value = sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 };
    let mut attributes = vec![attribute(Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, value)];
    if cluster > 1 {
        let extent = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: cluster, y: 1, z: 1 };
        let value = sys::CUlaunchAttributeValue { clusterDim: extent };
        attributes.push(attribute(Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, value));
    }
    attributes
}

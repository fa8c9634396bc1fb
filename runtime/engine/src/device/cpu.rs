//! The CPU: kernels from the artifact's shared object, memory from the system, a team of threads.
//!
//! Invariants:
//! - addresses that [`Device::address`] gives stay valid while the device lives;
//! - kernels run only within [`Device::run`], which borrows the device exclusively;
//! - each member of the team runs one contiguous part of each launch's programs, so who computes what never depends on
//!   timing, and what is computed never depends on who.

use super::{
    Device, DeviceError, Launch, LaunchList, Launches, affinity,
    layout::{CacheLayout, INPUTS, InputLayout, InputRange, PADDING, Part, padding},
    map::Map,
};
use crate::{
    block_pool::BlockId,
    step::Step,
    team::{Member, Team},
};
use libloading::os::unix::Library;
use rvllm_artifact::{
    LoadedWeights,
    manifest::KvCache,
    plan::{Arg, Input, Plan},
};
use std::{
    ffi::CString,
    fs::{File, OpenOptions},
    io::{self, Write},
    os::{
        fd::{AsRawFd, FromRawFd},
        unix::fs::OpenOptionsExt,
    },
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

/// See [`rvllm_artifact::plan::Kernel`].
type KernelFn = unsafe extern "C" fn(args: *const u64, begin: u64, end: u64);

/// A CPU with a plan's kernels, weights, arena and KV cache.
pub struct CpuDevice {
    plan: Arc<Plan>,
    kernels: Arc<[KernelFn]>,
    weights: LoadedWeights,
    arena: Map,
    cache: Map,
    cache_layout: CacheLayout,
    inputs: Map,
    input_layout: InputLayout,
    team: Team,
    /// The code that `kernels` points into.
    _library: Loaded,
}

impl CpuDevice {
    /// Loads object code and provides memory. `features` are the target's; `max_blocks` is the longest block table.
    ///
    /// # Errors
    /// The system refuses, or the object code lacks a kernel.
    pub fn new(
        plan: Arc<Plan>,
        object_code: &[u8],
        features: &[String],
        weights: LoadedWeights,
        kv_cache: &KvCache,
        size: CpuSize,
    ) -> Result<CpuDevice, DeviceError> {
        if features.iter().any(|f| f.starts_with("amx")) {
            request_amx()?;
        }
        let library = load_library(object_code)?;
        let kernels = plan.kernels.iter().map(|k| kernel(&library.library, &k.symbol)).collect::<Result<_, _>>()?;
        let cache_layout = CacheLayout::new(kv_cache, size.num_blocks);
        let cache_bytes =
            cache_layout.bytes().ok_or_else(|| DeviceError::Plan("the KV cache's size overflows".into()))?;
        let input_layout = InputLayout::new(&plan, plan.max_num_batched_tokens as usize, size.max_blocks, 0);
        Ok(CpuDevice {
            kernels,
            weights,
            arena: Map::new(plan.arena_bytes, "the arena")?,
            cache: Map::new(cache_bytes, "the KV cache")?,
            cache_layout,
            inputs: Map::new(input_layout.bytes, "the step's inputs")?,
            input_layout,
            team: team(size.threads)?,
            plan,
            _library: library,
        })
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        self.team.len()
    }

    /// Bytes of weights in anonymous memory.
    pub fn weights_resident_bytes(&self) -> u64 {
        self.weights.resident_bytes()
    }

    /// Microseconds of each of a step's launches, from when all members start it until all have ended: medians of
    /// `repeats` steps after one.
    ///
    /// # Errors
    /// There is no room for so many inputs.
    pub fn time(&mut self, step: &Step, list: LaunchList, repeats: usize) -> Result<Vec<f32>, DeviceError> {
        INPUTS.into_iter().try_for_each(|input| self.write(input, step.input(input)))?;
        let times = Arc::new(Mutex::new(vec![vec![]; list.launches.len()]));
        let (kernels, seen) = (self.kernels.clone(), times.clone());
        self.team.run(Arc::new(move |member| {
            for _ in 0..=repeats {
                for (i, launch) in list.launches.iter().enumerate() {
                    member.barrier();
                    let start = Instant::now();
                    run_launch(&kernels, &list, launch, member);
                    member.barrier();
                    if member.index() == 0 {
                        let mut times = seen.lock().unwrap_or_else(PoisonError::into_inner);
                        times[i].push(start.elapsed().as_secs_f32() * 1e6);
                    }
                }
            }
        }));
        let mut times = times.lock().unwrap_or_else(PoisonError::into_inner);
        // the first step finds caches cold
        Ok(times.iter_mut().map(|times| median(&mut times[1..])).collect())
    }

    fn buffer_address(&self, id: u32, offset: u64) -> Option<u64> {
        let buffer = self.plan.buffers.get(id as usize)?;
        let start = buffer.offset.checked_add(offset)?;
        (start <= self.plan.arena_bytes).then(|| self.arena.address() + start)
    }

    fn cache_address(&self, layer: u32, part: Part) -> Option<u64> {
        Some(self.cache.address() + self.cache_layout.offset(layer, part)?)
    }

    fn write(&mut self, input: Input, values: &[i32]) -> Result<(), DeviceError> {
        let InputRange { offset, capacity } = self.input_layout.range(input);
        let too_large = DeviceError::StepTooLarge { input, values: values.len(), capacity };
        let Some(room) = self.inputs.integers(offset, values.len() + PADDING).filter(|_| values.len() <= capacity)
        else {
            return Err(too_large);
        };
        room[..values.len()].copy_from_slice(values);
        room[values.len()..].fill(padding(input));
        Ok(())
    }
}

/// What a [`CpuDevice`] is made for.
#[derive(Clone, Copy, Debug)]
pub struct CpuSize {
    /// Blocks of the KV cache.
    pub num_blocks: u32,
    /// Most blocks of one sequence.
    pub max_blocks: u32,
    /// Threads that compute, the caller included.
    pub threads: usize,
}

impl Device for CpuDevice {
    fn address(&self, arg: &Arg, _bucket: Option<usize>) -> Result<u64, DeviceError> {
        let address = match *arg {
            Arg::Buffer { id, offset } => self.buffer_address(id, offset),
            Arg::Weight(i) => self.weights.get(i as usize).map(|bytes| bytes.as_ptr() as u64),
            Arg::Input(input) => Some(self.inputs.address() + self.input_layout.range(input).offset),
            Arg::KeyCache(layer) => self.cache_address(layer, Part::Keys),
            Arg::ValueCache(layer) => self.cache_address(layer, Part::Values),
            Arg::KeyScales(layer) => self.cache_address(layer, Part::KeyScales),
            Arg::ValueScales(layer) => self.cache_address(layer, Part::ValueScales),
        };
        address.ok_or_else(|| DeviceError::Plan(format!("there is no {arg:?}")))
    }

    fn team(&mut self) -> Option<&mut Team> {
        Some(&mut self.team)
    }

    fn run(&mut self, step: &Step, launches: Launches) -> Result<(), DeviceError> {
        INPUTS.into_iter().try_for_each(|input| self.write(input, step.input(input)))?;
        let Launches::List(list) = launches else {
            return Err(DeviceError::Plan("a CPU has no recorded launches".to_string()));
        };
        let kernels = self.kernels.clone();
        self.team.run(Arc::new(move |member| run_part(&kernels, &list, member)));
        Ok(())
    }

    fn read(&self, buffer: u32, len: usize) -> Result<&[f32], DeviceError> {
        let floats = self.plan.buffers.get(buffer as usize).and_then(|b| self.arena.floats(b.offset, len));
        floats.ok_or_else(|| DeviceError::Plan(format!("buffer {buffer} has no {len} f32 elements")))
    }

    fn copy_block(&mut self, from: BlockId, to: BlockId) -> Result<(), DeviceError> {
        let mut copies = self.cache_layout.copies(from, to);
        let copied = copies.try_for_each(|copy| copy.and_then(|[from, to, bytes]| self.cache.copy(from, to, bytes)));
        copied.ok_or_else(|| DeviceError::Plan(format!("no KV block {from} or {to}")))
    }
}

/// One member's part of every launch.
fn run_part(kernels: &[KernelFn], list: &LaunchList, member: Member<'_>) {
    for launch in &list.launches {
        run_launch(kernels, list, launch, member);
        member.barrier();
    }
}

/// One member's part of a launch.
fn run_launch(kernels: &[KernelFn], list: &LaunchList, launch: &Launch, member: Member<'_>) {
    let (args, part) = (&list.args[launch.args.clone()], member.part(launch.programs));
    if !part.is_empty() {
        // SAFETY: the kernel is one of the plan's, called as the plan's format says: `args` has the addresses that
        // `CpuDevice::address` gave and the symbols' values, the programs lie in the grid, and members' parts
        // write different elements. That the code does no more than the plan says is the artifact's promise:
        // running an artifact is running a program.
        unsafe { kernels[launch.kernel](args.as_ptr(), part.start, part.end) };
    }
}

/// The middle of some times; 0 of none.
fn median(times: &mut [f32]) -> f32 {
    times.sort_by(f32::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(0.0)
}

fn team(threads: usize) -> Result<Team, DeviceError> {
    let cores = affinity::physical_cores();
    let place = move |index: usize| {
        if let Some(core) = cores.get(index).filter(|_| threads <= cores.len()) {
            affinity::bind(core);
        }
    };
    Team::new(threads, place).map_err(|e| system("start threads", &e))
}

/// Asks the kernel to let this process use AMX's tile registers.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn request_amx() -> Result<(), DeviceError> {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers and touches no memory of this process.
    let failed = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) } != 0;
    if failed { Err(system("get permission to use AMX", &io::Error::last_os_error())) } else { Ok(()) }
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn request_amx() -> Result<(), DeviceError> {
    Err(DeviceError::Plan("AMX is a feature of x86-64 Linux".to_string()))
}

/// Object code in memory.
struct Loaded {
    library: Library,
    /// Open as long as the code is loaded: the loader knows it by this descriptor's path, and would hand out this code
    /// again for another file with the same number.
    _file: File,
}

/// Loads a shared object from memory: through an anonymous file, so that no file system has to allow execution.
fn load_library(object_code: &[u8]) -> Result<Loaded, DeviceError> {
    let mut file = anonymous_file().map_err(|e| system("make a file for kernels", &e))?;
    file.write_all(object_code).map_err(|e| system("write kernels", &e))?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    // SAFETY: the object comes from an artifact, whose code the user chose to run; it has no constructors that rely on
    // anything of this process.
    let library = unsafe { Library::new(path) };
    let library = library.map_err(|e| DeviceError::System {
        action: "load the artifact's kernels".to_string(),
        reason: e.to_string(),
    })?;
    Ok(Loaded { library, _file: file })
}

/// A file without a name: in memory, else, where the system forbids to execute such, in the folder for temporary files.
fn anonymous_file() -> io::Result<File> {
    let name = c"rvllm-kernels";
    // SAFETY: `name` is a C string that lives through the call.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return OpenOptions::new().read(true).write(true).custom_flags(libc::O_TMPFILE).open(std::env::temp_dir());
    }
    // SAFETY: the descriptor was just made and belongs to nobody else.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn kernel(library: &Library, symbol: &str) -> Result<KernelFn, DeviceError> {
    let missing = || DeviceError::MissingKernel { symbol: symbol.to_string() };
    let name = CString::new(symbol).map_err(|_| missing())?;
    // SAFETY: the plan says that the symbol is a function of this type; the pointer is used while the library is open.
    let found = unsafe { library.get::<KernelFn>(name.as_bytes_with_nul()) };
    found.map(|f| *f).map_err(|_| missing())
}

fn system(action: &str, error: &io::Error) -> DeviceError {
    DeviceError::System { action: action.to_string(), reason: error.to_string() }
}

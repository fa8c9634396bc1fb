//! Launches of one kernel, compiled or interpreted, on the same bytes.
//!
//! Invariants: whatever a kernel must not depend on is NaN: outputs before they are written, the spare rows of a buffer,
//! what lies behind a weight.

#![expect(clippy::unwrap_used, reason = "what fails here is the test that launches")]

use crate::tiles;
use rvllm_ir::{
    DType, Sym,
    tile::{
        Access, Kernel, PAD_ROWS, interp,
        memory::{Elements, TensorData, dims, pack, unpack},
        verify::verify,
    },
};

use rvllm_mlir::{Object, Part, compile, link};
use rvllm_targets::Target;
use std::io::Write;

/// Values of the step's symbols.
#[derive(Clone, Copy, Debug, Default)]
#[expect(missing_docs, reason = "the symbols' letters")]
pub struct Symbols {
    pub t: usize,
    pub r: usize,
    pub l: usize,
    pub q: usize,
    pub m: usize,
    pub p: usize,
}

impl Symbols {
    /// The value of one.
    pub fn value(&self, s: Sym) -> i64 {
        let value = match s {
            Sym::T => self.t,
            Sym::R => self.r,
            Sym::L => self.l,
            Sym::Q => self.q,
            Sym::M => self.m,
            Sym::P => self.p,
        };
        value as i64
    }
}

/// A fixed sequence of numbers in -1..1.
#[derive(Debug)]
pub struct Numbers(pub u64);

impl Numbers {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// `n` of them, as `dtype` holds them.
    pub fn take(&mut self, n: usize, dtype: DType) -> Vec<f32> {
        (0..n).map(|_| dtype.round(self.next())).collect()
    }
}

/// Arguments of one launch. Inputs are random unless set, outputs NaN until they are written.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The kernel.
    pub kernel: Kernel,
    /// Symbols of the step.
    pub symbols: Symbols,
    /// One tensor per parameter.
    pub args: Vec<TensorData>,
}

impl Launch {
    /// Random inputs, integers 0. Panics on an illegal kernel.
    pub fn new(kernel: Kernel, symbols: Symbols, seed: u64) -> Launch {
        assert_eq!(verify(&kernel), [], "{kernel}");
        let mut numbers = Numbers(seed);
        let args = kernel.params.iter().map(|p| {
            let dims = dims(&p.ty, &|s| symbols.value(s));
            let n = dims.iter().product();
            match (p.access, p.ty.dtype) {
                (Access::Out, _) => TensorData::f32(&dims, vec![f32::NAN; n]),
                (_, DType::I32) => TensorData::i32(&dims, vec![0; n]),
                (_, dtype) => TensorData::f32(&dims, numbers.take(n, dtype)),
            }
        });
        Launch { args: args.collect(), kernel, symbols }
    }

    fn position(&self, name: &str) -> usize {
        self.kernel.params.iter().position(|p| p.name == name).unwrap_or_else(|| panic!("no parameter {name}"))
    }

    /// Sets a tensor of numbers by its name.
    pub fn set(mut self, name: &str, x: Vec<f32>) -> Launch {
        let i = self.position(name);
        assert_eq!(self.args[i].numbers().len(), x.len(), "{name}");
        self.args[i].elements = Elements::F32(x);
        self
    }

    /// Sets a tensor of integers by its name.
    pub fn set_i32(mut self, name: &str, x: &[i32]) -> Launch {
        let i = self.position(name);
        let dims = self.args[i].dims.clone();
        assert_eq!(dims.iter().product::<usize>(), x.len(), "{name}");
        self.args[i] = TensorData::i32(&dims, x.to_vec());
        self
    }

    /// The same arguments for another kernel of the same parameters.
    pub fn with(&self, kernel: &Kernel) -> Launch {
        Launch { kernel: kernel.clone(), ..self.clone() }
    }

    /// Number of programs of the grid.
    pub fn programs(&self) -> u64 {
        self.kernel.grid.iter().map(|(_, e)| e.eval(&|s| self.symbols.value(s)) as u64).product()
    }

    /// What every written tensor holds after the interpreter ran.
    pub fn interpreted(&self) -> Vec<Vec<f32>> {
        let (mut args, symbols) = (self.args.clone(), self.symbols);
        interp::run(&self.kernel, &mut args, &|s| symbols.value(s)).unwrap_or_else(|e| panic!("{e}"));
        self.written().map(|i| values(&args[i])).collect()
    }

    /// Numbers of the tensors that the kernel writes.
    pub fn written(&self) -> impl Iterator<Item = usize> + '_ {
        let out = |i: &usize| !self.kernel.params[*i].access.is_read_only();
        (0..self.kernel.params.len()).filter(out)
    }

    /// A tensor's bytes, then NaNs: in the spare rows of a buffer, and behind a weight. Aligned as the runtime aligns.
    fn lines(&self, i: usize) -> Vec<Line> {
        let (p, data) = (&self.kernel.params[i], &self.args[i]);
        let mut bytes = pack(data, p.ty.dtype, p.layout).unwrap();
        let row = bytes.len() / data.dims.first().copied().unwrap_or(1).max(1);
        bytes.resize((bytes.len() + row * PAD_ROWS + 64).next_multiple_of(64), 0xff);
        bytes.as_chunks().0.iter().map(|line| Line(*line)).collect()
    }

    /// A tensor's bytes in memory, as the runtime hands them over.
    pub fn bytes(&self, i: usize) -> Vec<u8> {
        self.lines(i).iter().flat_map(|line| line.0).collect()
    }

    /// The arguments in memory, as the runtime hands them over.
    pub fn prepare(&self) -> Prepared {
        let mut buffers: Vec<Vec<Line>> = (0..self.args.len()).map(|i| self.lines(i)).collect();
        let mut args: Vec<u64> = buffers.iter_mut().map(|b| b.as_mut_ptr() as u64).collect();
        args.extend(self.kernel.symbols().iter().map(|s| self.symbols.value(*s) as u64));
        Prepared { name: self.kernel.name.clone(), buffers, args, programs: self.programs() }
    }

    /// What every written tensor holds after the compiled kernel ran its programs in these ranges.
    pub fn compiled(&self, code: &Code, ranges: &[(u64, u64)]) -> Vec<Vec<f32>> {
        let mut prepared = self.prepare();
        ranges.iter().for_each(|r| prepared.run(code, *r));
        let read = |i: usize| {
            let p = &self.kernel.params[i];
            let bytes: Vec<u8> = prepared.buffers[i].iter().flat_map(|line| line.0).collect();
            values(&unpack(&bytes, &self.args[i].dims, p.ty.dtype, p.layout).unwrap())
        };
        self.written().map(read).collect()
    }

    /// [`Launch::compiled`] in one range.
    pub fn whole(&self, code: &Code) -> Vec<Vec<f32>> {
        self.compiled(code, &[(0, self.programs())])
    }
}

/// What a tensor holds, integers as numbers.
fn values(of: &TensorData) -> Vec<f32> {
    match &of.elements {
        Elements::F32(x) => x.clone(),
        Elements::I32(x) => x.iter().map(|i| *i as f32).collect(),
    }
}

/// A cache line.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Line([u8; 64]);

/// Arguments of one launch in memory.
#[derive(Debug)]
pub struct Prepared {
    name: String,
    buffers: Vec<Vec<Line>>,
    args: Vec<u64>,
    /// Number of programs of the grid.
    pub programs: u64,
}

impl Prepared {
    /// Runs a range of programs.
    pub fn run(&mut self, code: &Code, (begin, end): (u64, u64)) {
        code.call(&self.name, &self.args, begin, end.min(self.programs));
    }
}

/// Loaded object code.
#[derive(Debug)]
pub struct Code {
    library: libloading::Library,
    /// Removed when dropped.
    _file: tempfile::NamedTempFile,
}

impl Code {
    /// Compiles, links and loads.
    pub fn new(kernels: &[Kernel], target: &Target) -> Code {
        let object = if runs_here(target) {
            compile(kernels, target).unwrap_or_else(|e| panic!("{}: {e}", target.name))
        } else {
            let dir = tempfile::tempdir().unwrap();
            let part = |k: &Kernel| Part { bytes: tiles::object(k, target, dir.path()), launch: None };
            Object { parts: kernels.iter().map(part).collect() }
        };
        let bytes = link(&object, target).unwrap_or_else(|e| panic!("{}: {e}", target.name));
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&bytes).unwrap();
        // SAFETY: code that this crate just made; it has no initialisers
        let library = unsafe { libloading::Library::new(file.path()) }.unwrap();
        Code { library, _file: file }
    }

    fn call(&self, name: &str, args: &[u64], begin: u64, end: u64) {
        type Function = unsafe extern "C" fn(*const u64, u64, u64);
        // SAFETY: every kernel has this signature, and the arguments are laid out as it expects
        unsafe {
            let function = self.library.get::<Function>(name).unwrap();
            function(args.as_ptr(), begin, end);
        }
    }
}

/// Targets whose code runs on this machine.
pub fn targets() -> Vec<Target> {
    let all: Vec<Target> = rvllm_targets::all().into_iter().filter(runs_here).collect();
    assert!(!all.is_empty(), "no target runs on this machine");
    all
}

fn runs_here(target: &Target) -> bool {
    target.runs_here(&has)
}

/// Targets whose code can be tried on this machine: AMX without AMX, too.
pub fn tried() -> Vec<Target> {
    let amx = rvllm_targets::all().into_iter().filter(|t| t.amx_bf16 && !runs_here(t) && tiles::can_emulate());
    targets().into_iter().chain(amx).collect()
}

/// Whether code that needs this feature runs: AMX also needs the operating system's leave.
fn has(feature: &str) -> bool {
    rvllm_artifact::cpu::has_feature(feature) && (!feature.starts_with("amx") || amx_allowed())
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn amx_allowed() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: asks for a permission, touches no memory
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn amx_allowed() -> bool {
    false
}

/// Panics where results differ by more than `tolerance * (1 + |expected|)`.
#[track_caller]
pub fn assert_close(what: &str, found: &[Vec<f32>], expected: &[Vec<f32>], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (t, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found.len(), expected.len(), "{what}");
        for (i, (f, e)) in found.iter().zip(expected).enumerate() {
            let close = (f - e).abs() <= tolerance * (1.0 + e.abs()) || f.to_bits() == e.to_bits();
            assert!(close || (f.is_nan() && e.is_nan()), "{what}: result {t}, element {i}: {f}, not {e}");
        }
    }
}

/// Panics where results differ in a bit.
#[track_caller]
pub fn assert_same(what: &str, found: &[Vec<f32>], expected: &[Vec<f32>]) {
    let bits = |r: &[Vec<f32>]| r.iter().map(|t| t.iter().map(|x| x.to_bits()).collect()).collect::<Vec<Vec<u32>>>();
    assert!(bits(found) == bits(expected), "{what}: not the same bits");
}

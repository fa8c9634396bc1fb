//! PTX to a cubin by `ptxas`, where this machine has one.
//!
//! Invariants: the result depends on the PTX and on the assembler alone: its input has a fixed name, and carries no line
//! information.

use crate::Error;
use rvllm_ir::tile::Kernel;
use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// Environment variable that names the assembler.
const OVERRIDE: &str = "RVLLM_PTXAS";

/// The assembler and what it says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assembler {
    /// The program.
    pub path: PathBuf,
    /// Its release: `13.0.88`.
    pub version: String,
}

/// What the assembler made of a kernel.
pub(crate) struct Assembled {
    pub(crate) cubin: Vec<u8>,
    pub(crate) registers: u32,
    pub(crate) spill_bytes: u32,
}

/// The assembler of this machine: `RVLLM_PTXAS`, on the `PATH`, below `CUDA_HOME`, or in the Python package
/// `nvidia-cuda-nvcc` of `VIRTUAL_ENV` or of the system's Python.
pub fn assembler() -> Option<&'static Assembler> {
    static FOUND: OnceLock<Option<Assembler>> = OnceLock::new();
    FOUND.get_or_init(find).as_ref()
}

fn find() -> Option<Assembler> {
    if let Some(named) = std::env::var_os(OVERRIDE) {
        return identify(PathBuf::from(named));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|dir| dir.join("ptxas"));
    let toolkits = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os).map(PathBuf::from);
    let toolkits = toolkits.chain([PathBuf::from("/usr/local/cuda")]).map(|dir| dir.join("bin/ptxas"));
    let known = on_path.chain(toolkits).chain(packaged()).find(|p| p.is_file());
    known.and_then(identify)
}

/// Where the Python package puts it: `…/lib/python3.N/site-packages/nvidia/{cu13,cuda_nvcc}/bin/ptxas`.
fn packaged() -> Vec<PathBuf> {
    let prefixes = std::env::var_os("VIRTUAL_ENV").map(PathBuf::from).into_iter();
    let prefixes = prefixes.chain(["/usr/local".into(), "/usr".into()]);
    let libraries = prefixes.flat_map(|p| children(&p.join("lib")));
    let packages = libraries.flat_map(|lib| [lib.join("site-packages"), lib.join("dist-packages")]);
    packages.flat_map(|p| children(&p.join("nvidia"))).map(|p| p.join("bin/ptxas")).collect()
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|e| e.path()).collect();
    paths.sort();
    paths
}

fn identify(path: PathBuf) -> Option<Assembler> {
    let output = Command::new(&path).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.split_once(", V")?.1.split_whitespace().next()?.to_string();
    Some(Assembler { path, version })
}

/// Assembles a kernel's PTX for `cpu`.
pub(crate) fn assemble(tool: &Assembler, kernel: &Kernel, ptx: &[u8], cpu: &str) -> Result<Assembled, Error> {
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("kernel.ptx"), ptx)?;
    let output = Command::new(&tool.path)
        .args(["-v", "-arch", cpu, "kernel.ptx", "-o", "kernel.cubin"])
        .current_dir(dir.path())
        .output()?;
    let log = [output.stdout, output.stderr].map(|s| String::from_utf8_lossy(&s).into_owned()).concat();
    if !output.status.success() {
        let message = log.trim().to_string();
        return Err(Error::Internal { kernel: kernel.name.clone(), stage: "assembling PTX", message });
    }
    // the assembler makes every product of such a kernel wait for the one before
    debug_assert!(!log.contains("defining accumulator registers"), "{}: {log}", kernel.name);
    let cubin = std::fs::read(dir.path().join("kernel.cubin"))?;
    let spilled = number_before(&log, " bytes spill stores").max(number_before(&log, " bytes spill loads"));
    Ok(Assembled { cubin, registers: number_before(used(&log), " registers"), spill_bytes: spilled })
}

/// What the assembler says of a kernel's registers; warnings speak of registers, too.
fn used(log: &str) -> &str {
    log.find(": Used ").map_or("", |i| &log[i..])
}

/// The number that stands right before `what`; 0 where it does not occur.
fn number_before(log: &str, what: &str) -> u32 {
    let before = log.find(what).map_or("", |i| &log[..i]);
    let digits = before.rfind(|c: char| !c.is_ascii_digit()).map_or(before, |i| &before[i + 1..]);
    digits.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn reads_the_assemblers_report() {
        let log = "ptxas info    : (C7511) Potential Performance Loss: insufficient registers\nptxas info    : Function properties for gemm\n    0 bytes stack frame, 12 bytes spill stores, 16 bytes \
                   spill loads\nptxas info    : Used 168 registers, used 2 barriers\n";
        assert_eq!(super::number_before(super::used(log), " registers"), 168);
        assert_eq!(super::number_before(log, " bytes spill stores"), 12);
        assert_eq!(super::number_before(log, " bytes spill loads"), 16);
        assert_eq!(super::number_before(log, " bytes stack frame"), 0);
        assert_eq!(super::number_before(super::used(""), " registers"), 0);
    }
}

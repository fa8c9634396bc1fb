//! Object files to one shared object, by the linker found on this machine.
//!
//! Invariants: the result has no build id, no paths and no undefined symbols; inputs are linked in order under fixed
//! names, so that same objects and same linker give same bytes.

use crate::{Error, Object};
use rvllm_targets::Target;
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// Environment variable that names the linker.
const OVERRIDE: &str = "RVLLM_LD";

/// How a linker is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flavor {
    /// `ld`'s command line.
    Ld,
    /// The same behind `-flavor gnu`.
    RustLld,
    /// A C compiler that calls `ld`.
    Cc,
}

/// Links to a shared object.
pub fn link(object: &Object, target: &Target) -> Result<Vec<u8>, Error> {
    if target.gpu.is_some() {
        return Err(Error::NotLinked { target: target.name.clone() });
    }
    let (linker, flavor) = find(target)?;
    let dir = tempfile::tempdir()?;
    let names: Vec<String> = (0..object.parts.len()).map(|i| format!("{i}.o")).collect();
    for (name, part) in names.iter().zip(&object.parts) {
        std::fs::write(dir.path().join(name), &part.bytes)?;
    }
    let output = Command::new(&linker).args(arguments(flavor)).args(&names).current_dir(dir.path()).output()?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).trim().to_string();
        return Err(Error::Link { linker, message });
    }
    Ok(std::fs::read(dir.path().join("out.so"))?)
}

fn arguments(flavor: Flavor) -> &'static [&'static str] {
    match flavor {
        Flavor::Ld => &["-shared", "--no-undefined", "--build-id=none", "-s", "-o", "out.so"],
        Flavor::RustLld => &["-flavor", "gnu", "-shared", "--no-undefined", "--build-id=none", "-s", "-o", "out.so"],
        Flavor::Cc => &["-shared", "-nostdlib", "-Wl,--no-undefined", "-Wl,--build-id=none", "-s", "-o", "out.so"],
    }
}

fn flavor(linker: &Path) -> Flavor {
    let name = linker.file_name().map_or(String::new(), |n| n.to_string_lossy().into_owned());
    if name.contains("rust-lld") {
        Flavor::RustLld
    } else if name.starts_with("ld") || name.contains("-ld") || name.contains("lld") {
        Flavor::Ld
    } else {
        Flavor::Cc
    }
}

/// `RVLLM_LD`, else lld, else rustc's own lld, else this machine's C compiler for this machine's architecture.
fn find(target: &Target) -> Result<(PathBuf, Flavor), Error> {
    if let Some(named) = std::env::var_os(OVERRIDE) {
        let linker = on_path(Path::new(&named)).unwrap_or_else(|| named.into());
        let flavor = flavor(&linker);
        return Ok((linker, flavor));
    }
    let lld = ["ld.lld-22", "ld.lld"].iter().find_map(|n| on_path(Path::new(n)));
    let native = target.arch.name() == std::env::consts::ARCH;
    let cc = || native.then(|| on_path(Path::new("cc"))).flatten();
    let linker = lld.or_else(rust_lld).or_else(cc);
    linker.map(|l| (l.clone(), flavor(&l))).ok_or_else(|| Error::NoLinker {
        target: target.name.clone(),
        tried: "ld.lld-22, ld.lld, rust-lld, cc".to_string(),
    })
}

fn on_path(name: &Path) -> Option<PathBuf> {
    if name.components().count() > 1 {
        return std::path::absolute(name).ok().filter(|p| p.is_file());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|p| p.is_file())
}

/// The linker that comes with the Rust toolchain.
fn rust_lld() -> Option<PathBuf> {
    let output = Command::new("rustc").args(["--print", "target-libdir"]).output().ok()?;
    let libdir = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    let linker = libdir.parent()?.join("bin").join("rust-lld");
    linker.is_file().then_some(linker)
}

//! AMX code on machines without AMX: its LLVM IR with calls of functions here where tile instructions stand.
//!
//! Tiles become vectors, so loops carry them as they carry tiles; everything else is compiled as it is. What is not
//! tried is LLVM's choice of registers for tiles, and the instructions themselves.

#![expect(clippy::unwrap_used, reason = "what fails here is the test that launches")]

use rvllm_ir::tile::Kernel;
use rvllm_mlir::llvm_ir;
use rvllm_targets::Target;
use std::{fmt::Write, path::Path, process::Command};

/// Rows of a tile, and their bytes.
const ROWS: usize = 16;
const BYTES: usize = 64;
/// What a tile is instead.
const VECTOR: &str = "<256 x i32>";

type Tile = [[u8; BYTES]; ROWS];

/// The names of LLVM's code generator.
const COMPILERS: [&str; 2] = ["llc-22", "llc"];

/// Whether code for this target, which runs here but for its tiles, can be tried.
pub fn can_emulate() -> bool {
    compiler().is_some()
}

fn compiler() -> Option<&'static str> {
    COMPILERS.into_iter().find(|name| {
        let found = Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success());
        found && rvllm_artifact::cpu::has_feature("avx512bf16")
    })
}

/// Object code of a kernel whose tiles are emulated.
pub fn object(kernel: &Kernel, target: &Target, dir: &Path) -> Vec<u8> {
    let ir = emulated(&llvm_ir(kernel, target).unwrap_or_else(|e| panic!("{}: {e}", target.name)));
    let (from, to) = (dir.join("kernel.ll"), dir.join("kernel.o"));
    std::fs::write(&from, ir).unwrap();
    let mut llc = Command::new(compiler().unwrap());
    llc.args(["-O1", "-mcpu=x86-64-v4", "-mattr=+avx512bf16,+avx512vnni", "-relocation-model=pic", "-filetype=obj"]);
    let output = llc.arg(&from).arg("-o").arg(&to).output().unwrap();
    assert!(output.status.success(), "{}: {}", kernel.name, String::from_utf8_lossy(&output.stderr));
    std::fs::read(to).unwrap()
}

/// LLVM IR that calls this process where it had tile instructions.
fn emulated(ir: &str) -> String {
    let lines = ir.lines().filter(|l| !(l.starts_with("declare") && l.contains("@llvm.x86.t")));
    let mut out: String = lines.flat_map(|l| [l, "\n"]).collect();
    out = out.replace("x86_amx", VECTOR);
    for name in ["tilezero", "tileloadd64", "tilestored64", "tdpbf16ps", "tdpbssd"] {
        out = out.replace(&format!("@llvm.x86.{name}.internal"), &format!("@emulated_{name}"));
    }
    let address = |f: *const ()| f as usize;
    let (load, store) = (address(load as *const ()), address(store as *const ()));
    let _ = write!(
        out,
        "define internal {VECTOR} @emulated_tilezero(i16 %m, i16 %n) {{ ret {VECTOR} zeroinitializer }}
define internal {VECTOR} @emulated_tileloadd64(i16 %m, i16 %n, ptr %p, i64 %s) {{
  %t = alloca {VECTOR}, align 64
  call void inttoptr (i64 {load} to ptr)(ptr %t, i16 %m, i16 %n, ptr %p, i64 %s)
  %v = load {VECTOR}, ptr %t, align 64
  ret {VECTOR} %v
}}
define internal void @emulated_tilestored64(i16 %m, i16 %n, ptr %p, i64 %s, {VECTOR} %v) {{
  %t = alloca {VECTOR}, align 64
  store {VECTOR} %v, ptr %t, align 64
  call void inttoptr (i64 {store} to ptr)(ptr %t, i16 %m, i16 %n, ptr %p, i64 %s)
  ret void
}}
"
    );
    out + &product("tdpbf16ps", address(dot_bf16 as *const ())) + &product("tdpbssd", address(dot_i8 as *const ()))
}

fn product(name: &str, function: usize) -> String {
    format!(
        "define internal {VECTOR} @emulated_{name}(i16 %m, i16 %n, i16 %k, {VECTOR} %c, {VECTOR} %a, {VECTOR} %b) {{
  %t = alloca [3 x {VECTOR}], align 64
  %pa = getelementptr i8, ptr %t, i64 1024
  %pb = getelementptr i8, ptr %t, i64 2048
  store {VECTOR} %c, ptr %t, align 64
  store {VECTOR} %a, ptr %pa, align 64
  store {VECTOR} %b, ptr %pb, align 64
  call void inttoptr (i64 {function} to ptr)(ptr %t, ptr %pa, ptr %pb, i16 %m, i16 %n, i16 %k)
  %v = load {VECTOR}, ptr %t, align 64
  ret {VECTOR} %v
}}
"
    )
}

/// `tileloadd`.
extern "C" fn load(tile: *mut Tile, rows: u16, bytes: u16, p: *const u8, stride: usize) {
    // SAFETY: emulated code passes a tile of its stack and the memory that the instruction would read
    unsafe {
        let mut loaded = [[0; BYTES]; ROWS];
        for (r, row) in loaded.iter_mut().take(rows.into()).enumerate() {
            std::ptr::copy_nonoverlapping(p.add(r * stride), row.as_mut_ptr(), bytes.into());
        }
        *tile = loaded;
    }
}

/// `tilestored`.
extern "C" fn store(tile: *const Tile, rows: u16, bytes: u16, p: *mut u8, stride: usize) {
    // SAFETY: emulated code passes a tile of its stack and the memory that the instruction would write
    unsafe {
        for (r, row) in (*tile).iter().take(rows.into()).enumerate() {
            std::ptr::copy_nonoverlapping(row.as_ptr(), p.add(r * stride), bytes.into());
        }
    }
}

/// `tdpbf16ps`: sums of even and of odd elements, each flushed and rounded as the instruction does, but for the fusing of
/// their products.
extern "C" fn dot_bf16(c: *mut [[f32; ROWS]; ROWS], a: *const Tile, b: *const Tile, m: u16, n: u16, k: u16) {
    // SAFETY: emulated code passes three tiles of its stack
    let (c, a, b) = unsafe { (&mut *c, &*a, &*b) };
    let number = |t: &Tile, r: usize, i: usize| {
        f32::from_bits(u32::from(u16::from_le_bytes([t[r][2 * i], t[r][2 * i + 1]])) << 16)
    };
    for (row, sums) in c.iter_mut().enumerate().take(m.into()) {
        for (column, sum) in sums.iter_mut().enumerate().take(usize::from(n) / 4) {
            for pair in 0..usize::from(k) / 4 {
                for half in 0..2 {
                    *sum = number(a, row, 2 * pair + half).mul_add(number(b, pair, 2 * column + half), *sum);
                }
            }
        }
    }
}

/// `tdpbssd`.
extern "C" fn dot_i8(c: *mut [[i32; ROWS]; ROWS], a: *const Tile, b: *const Tile, m: u16, n: u16, k: u16) {
    // SAFETY: emulated code passes three tiles of its stack
    let (c, a, b) = unsafe { (&mut *c, &*a, &*b) };
    for (row, sums) in c.iter_mut().enumerate().take(m.into()) {
        for (column, sum) in sums.iter_mut().enumerate().take(usize::from(n) / 4) {
            for i in 0..usize::from(k) {
                *sum += i32::from(a[row][i] as i8) * i32::from(b[i / 4][4 * column + i % 4] as i8);
            }
        }
    }
}

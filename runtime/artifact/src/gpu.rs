//! What a plan says of a kernel for a GPU: where its code lies, how it is launched, what it takes of a multiprocessor.
//!
//! A GPU kernel is `.entry SYMBOL` with these parameters, in order: one 64-bit device address per tensor, the device
//! address of the step's symbols (six i32: T, R, L, Q, M, P), then one 128-byte tensor map, by value, for each of
//! [`GpuKernel::tensor_maps`]. It is launched as a line of CTAs: [`GpuKernel::ctas_per_program`] for each program of its
//! grid, or [`GpuKernel::max_ctas`] where that is less, in which case each takes several programs. Symbols are read
//! from memory, so that a launch recorded for the largest step of a bucket serves every step of it: CTAs past the
//! actual extents return. Launches overlap: a kernel waits for its predecessor itself before it touches what that wrote, and
//! every CTA waits before it returns.

use crate::plan::{DType, Expr, Sym};
use serde::{Deserialize, Serialize};

/// Most threads of a CTA.
const MAX_THREADS: u64 = 1024;
/// Most shared memory of a CTA of any GPU so far, and some room.
const MAX_SHARED: u64 = 1 << 20;
/// Most CTAs of a cluster.
const MAX_CLUSTER: u64 = 16;
/// Most CTAs of a launch.
pub(crate) const MAX_CTAS: u64 = i32::MAX as u64;
/// Most tensor maps of a kernel: parameters end at 32,764 bytes.
const MAX_MAPS: usize = 64;
/// Most dimensions of a tensor map.
const MAX_RANK: usize = 5;
/// Largest extent of a tensor map.
const MAX_EXTENT: u64 = 1 << 32;
/// Largest stride of a tensor map.
const MAX_STRIDE: u64 = 1 << 40;
/// Largest extent of a box.
const MAX_BOX: u64 = 256;

/// How code is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CodeFormat {
    /// Machine code of one architecture: an ELF file.
    Cubin,
    /// NVIDIA's assembly text, which the driver compiles when it is loaded.
    Ptx,
}

/// Where a kernel's code lies in the target's object code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Code {
    /// What it is.
    pub format: CodeFormat,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub bytes: u64,
}

/// How a kernel is launched on a GPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuKernel {
    /// Its code.
    pub code: Code,
    /// Threads of a CTA.
    pub threads: u32,
    /// Bytes of shared memory that a launch asks for; what the code declares itself comes on top.
    pub shared_bytes: u32,
    /// CTAs of a cluster; 1 where there is none.
    pub cluster: u32,
    /// CTAs of a program; 1 but where a cluster shares one.
    pub ctas_per_program: u32,
    /// Most CTAs of a launch; as many as all programs take where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ctas: Option<u32>,
    /// Registers of a thread, where the assembler told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registers: Option<u32>,
    /// Bytes of registers that a thread spills to memory, where the assembler told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spill_bytes: Option<u32>,
    /// CTAs that a multiprocessor holds at once, as far as registers, threads and shared memory go; for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub occupancy: Option<u32>,
    /// Tensor maps, in the order of the parameters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tensor_maps: Vec<TensorMap>,
}

/// How elements of a box are placed in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names say it: bytes of a row in which 16-byte pieces change places")]
pub enum Swizzle {
    None,
    B32,
    B64,
    B128,
}

/// A tensor as the copy engine sees it: dimensions innermost first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorMap {
    /// Which of the kernel's tensors.
    pub tensor: u32,
    /// Element type.
    pub dtype: DType,
    /// Extents; symbols stand for their largest values.
    pub extents: Vec<Expr>,
    /// Bytes between neighbours in every dimension but the innermost, likewise.
    pub strides: Vec<Expr>,
    /// Extents of the box that one instruction moves.
    #[serde(rename = "box")]
    pub tile: Vec<u32>,
    /// Placement in shared memory.
    pub swizzle: Swizzle,
}

fn within(what: &str, value: impl Into<u64>, least: u64, most: u64) -> Result<(), String> {
    let value = value.into();
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(format!("{what} is {value}, expected {least} to {most}"))
}

impl GpuKernel {
    /// Checks what the driver would be asked for: `tensors` is the number of the kernel's tensors, `code_bytes` the
    /// size of the target's object code.
    pub(crate) fn check(&self, tensors: u32, code_bytes: u64) -> Result<(), String> {
        let Code { format: _, offset, bytes } = self.code;
        let end = offset.checked_add(bytes).filter(|end| *end <= code_bytes && bytes > 0);
        end.ok_or_else(|| format!("code of {bytes} bytes at {offset} of {code_bytes}"))?;
        within("threads", self.threads, 1, MAX_THREADS)?;
        within("shared_bytes", self.shared_bytes, 0, MAX_SHARED)?;
        within("cluster", self.cluster, 1, MAX_CLUSTER)?;
        within("ctas_per_program", self.ctas_per_program, 1, MAX_CLUSTER)?;
        within("max_ctas", self.max_ctas.unwrap_or(1), 1, MAX_CTAS)?;
        within("registers", self.registers.unwrap_or(0), 0, 1 << 16)?;
        within("the number of tensor maps", self.tensor_maps.len() as u64, 0, MAX_MAPS as u64)?;
        self.tensor_maps
            .iter()
            .enumerate()
            .try_for_each(|(i, map)| map.check(tensors).map_err(|problem| format!("tensor map {i}: {problem}")))
    }
}

impl TensorMap {
    /// Checks sizes; that extents have values is the plan's check.
    fn check(&self, tensors: u32) -> Result<(), String> {
        let rank = self.extents.len();
        within("tensor", self.tensor, 0, u64::from(tensors.saturating_sub(1)))?;
        within("the number of dimensions", rank as u64, 1, MAX_RANK as u64)?;
        if self.strides.len() + 1 != rank || self.tile.len() != rank {
            let (strides, tile) = (self.strides.len(), self.tile.len());
            return Err(format!("{rank} extents with {strides} strides and a box of {tile} dimensions"));
        }
        if self.dtype.bits() < 8 {
            return Err(format!("elements of type {}, expected whole bytes", self.dtype));
        }
        self.tile.iter().try_for_each(|extent| within("an extent of the box", *extent, 1, MAX_BOX))
    }

    /// Extents and strides where `most` gives each symbol's largest value.
    ///
    /// # Errors
    /// Which is out of range.
    pub fn largest(&self, most: &dyn Fn(Sym) -> u64) -> Result<(Vec<u64>, Vec<u64>), String> {
        let value = |what: &str, of: &Expr, range: [u64; 2]| {
            let value = of.eval(most).ok_or_else(|| format!("{what} {of:?} overflows"))?;
            within(what, value, range[0], range[1]).map(|()| value)
        };
        let extents = self.extents.iter().map(|e| value("an extent", e, [1, MAX_EXTENT])).collect::<Result<_, _>>()?;
        let stride = |e: &Expr| match value("a stride", e, [16, MAX_STRIDE - 1])? {
            stride if stride % 16 == 0 => Ok(stride),
            stride => Err(format!("a stride of {stride} bytes, expected a multiple of 16")),
        };
        Ok((extents, self.strides.iter().map(stride).collect::<Result<_, _>>()?))
    }
}

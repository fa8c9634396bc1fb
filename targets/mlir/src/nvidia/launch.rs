//! What launching a kernel on a GPU takes, beside the grid of its plan.

use rvllm_ir::{expr::Expr, types::DType};

/// How one kernel is launched: a one-dimensional grid of CTAs.
///
/// # Calling convention
/// `.entry NAME(pointer per tensor in the kernel's order, pointer to the step's symbols, tensor maps)`: the symbols are an
/// `i32[6]` in device memory in `Sym::ALL`'s order, so that a captured graph serves every step of its bucket; each tensor
/// map is `.param .align 64 .b8[128]`. A CTA runs the program of its linear index, the last grid dimension fastest, and leaves where
/// that lies past the grid of the actual symbols: a grid may be launched at a bucket's upper bound.
///
/// Every kernel lets its dependents start at once and waits for its predecessors before it touches a tensor that is no weight, so
/// kernels of one stream may be launched with programmatic stream serialization.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuLaunch {
    /// Threads of a CTA.
    pub threads: u32,
    /// Dynamic shared memory of a CTA, in bytes.
    pub shared_bytes: u32,
    /// CTAs of a cluster; 1 for none.
    pub cluster: u32,
    /// CTAs of a program; 1 but where a cluster shares one.
    pub ctas_per_program: u32,
    /// Most CTAs that are useful: fewer than programs where a CTA runs several one after another. One CTA per program where absent.
    pub max_ctas: Option<u32>,
    /// Registers of a thread, as the assembler reports them; absent in PTX.
    pub registers: Option<u32>,
    /// Bytes that a thread spills, as the assembler reports them; absent in PTX.
    pub spill_bytes: Option<u32>,
    /// Tensor maps, in the order of the parameters.
    pub tensor_maps: Vec<TensorMap>,
}

/// How the copy engine sees a tensor: what `cuTensorMapEncodeTiled` takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// Number of the tensor parameter whose pointer it starts at.
    pub tensor: u32,
    /// Element type.
    pub dtype: DType,
    /// Sizes in elements, innermost first.
    pub dims: Vec<Expr>,
    /// Bytes between indices of each dimension but the innermost.
    pub strides: Vec<Expr>,
    /// Elements of the box along each dimension.
    pub block: Vec<u32>,
    /// How the box lies in shared memory.
    pub swizzle: Swizzle,
}

/// Which bytes of a box's rows are exchanged in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Swizzle {
    /// As they are.
    None,
    /// Within 32 bytes.
    B32,
    /// Within 64 bytes.
    B64,
    /// Within 128 bytes.
    B128,
}

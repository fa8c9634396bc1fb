//! Compiled kernels against the tile interpreter, on every target that this machine can run.

#![expect(clippy::unwrap_used, reason = "what fails here is a test")]

mod attention;
mod gemm;
mod math;
mod object;
mod rows;
mod wgmma;

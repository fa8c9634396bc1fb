//! Tests that need a GPU, made where the compiler is and run where the GPU is: kernels with their arguments and what the
//! tile interpreter makes of them, in one file.

pub mod bundle;
pub mod compare;

//! The tests that no crate could hold alone, and what they share.
//!
//! - [`filetest`]: programs as text with expectations beside them (`filetests/**/*.rir`);
//! - [`cases`]: launches of every kernel over odd shapes;
//! - [`commands`]: what a filetest can ask for, one file each;
//! - [`gguf`]: a GGUF file of a checkpoint;
//! - [`launch`]: compiled and interpreted kernels on the same bytes;
//! - [`model`]: whole models compiled for this machine, and their answers;
//! - [`quantized`]: a checkpoint with quantised matrices.

pub mod cases;
pub mod commands;
pub mod filetest;
pub mod gguf;
pub mod launch;
pub mod model;
pub mod quantized;
pub mod tiles;

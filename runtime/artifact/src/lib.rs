//! The artifact format, shared by the compiler, which writes it, and the runtime, which maps it.
//!
//! One file, `NAME.TARGET.rvllm`: a stored (uncompressed) ZIP64 whose entries are page-aligned.
//!
//! | entry | what |
//! |---|---|
//! | `manifest.json` | [`manifest::Manifest`]: first entry, format version first |
//! | `plans/<target>.json` | [`plan::Plan`]: buffers, launches, weights |
//! | `kernels/<target>.so`, `.bin` | object code of every kernel of the plan: a shared object on a CPU, one piece for each kernel on a GPU |
//! | `weights/*.safetensors` | weights after their recipes, as kernels read them (`--weights embed`) |
//! | `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja`, `generation_config.json`, `config.json` | as in the checkpoint |
//! | `goldens.json` | expected outputs for `rvllm verify`, where the checkpoint brings them |
//!
//! | to | use |
//! |---|---|
//! | write | [`Writer::create`] (manifest and small entries), [`Writer::weights`] (streamed), [`Writer::finish`] |
//! | open | [`Artifact::open`], [`Artifact::target`], [`Artifact::plan`], [`Artifact::kernels`], [`Artifact::entry`]; [`Artifact::verify`] reads the weights too |
//! | load weights | [`LoadedWeights::load`], [`LoadedWeights::load_placed`], [`LoadedWeights::get`]; [`stream::stream`] to a device of its own memory |
//! | read a checkpoint | [`Checkpoint::open`], [`Checkpoint::check`], [`Checkpoint::files`]; [`DummySource`] is a random one |
//! | run a recipe | [`execute::infer`], [`execute::execute`], [`execute::execute_chunks`] over a [`Source`] |
//!
//! Invariants:
//! - this crate owns the format: no other crate's types are `Serialize` into it;
//! - a reader takes the same major version and older minors, and reads the version before anything else;
//! - an artifact is untrusted bytes: opening one never panics, and never allocates more than its size allows.
//!   (Its kernels are code: run only artifacts that you would run programs of.)
//! - the same inputs give the same bytes.

pub mod amount;
mod block;
mod check;
pub mod checkpoint;
mod convert;
pub mod cpu;
mod directory;
pub mod dummy;
pub mod error;
pub mod execute;
mod fragment;
pub mod gguf;
pub mod gpu;
mod header;
pub mod load;
pub mod manifest;
mod map;
pub mod open;
mod panel;
pub mod parsers;
pub mod plan;
mod quantize;
pub mod quantized;
pub mod recipe;
mod searched;
pub mod source;
pub mod stream;
pub mod write;

pub use checkpoint::{Checkpoint, Mismatch};
pub use dummy::DummySource;
pub use error::{Error, Result, explain};
pub use load::{LoadedWeights, Placing, WeightsFrom};
pub use open::Artifact;
pub use source::{Source, TensorType};
pub use write::Writer;

//! What a filetest can ask for: one row and one file each.

mod asm;
mod bucket;
mod fuse;
mod interp;
mod lower;
mod merge;
mod mlir;
mod parse;
mod passes;
mod plan;
mod quantize;
mod run;
mod select;
mod verify;

use crate::filetest::{Check, Command};

/// Every command.
pub const COMMANDS: &[Command] = &[
    Command { name: "parse", check: Check::Holds(parse::check) },
    Command { name: "verify", check: Check::Errors(verify::errors) },
    Command { name: "interp", check: Check::Output(interp::run) },
    Command { name: "merge", check: Check::Output(merge::run) },
    Command { name: "fuse", check: Check::Output(fuse::run) },
    Command { name: "quantize", check: Check::Output(quantize::run) },
    Command { name: "bucket", check: Check::Output(bucket::run) },
    Command { name: "select", check: Check::Output(select::run) },
    Command { name: "plan", check: Check::Output(plan::run) },
    Command { name: "lower", check: Check::Patterns(lower::run) },
    Command { name: "mlir", check: Check::Patterns(mlir::run) },
    Command { name: "asm", check: Check::Patterns(asm::run) },
    Command { name: "run", check: Check::Holds(run::check) },
];

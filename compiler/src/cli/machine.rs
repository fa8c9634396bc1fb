//! `rvllm targets`: what this machine is, and which targets run on it.

use rvllm_artifact::cpu::has_feature;
use rvllm_targets::Target;
use serde_json::json;
use std::{io::Write, thread::available_parallelism};

/// Prints the targets, those of this architecture first.
pub(super) fn show(json: bool) -> anyhow::Result<()> {
    let native = rvllm_targets::find("native", &has_feature).ok();
    let mut out = std::io::stdout().lock();
    if json {
        let targets: Vec<_> = rvllm_targets::all().iter().map(describe).collect();
        let native = native.map(|t| t.name);
        let machine = json!({ "arch": std::env::consts::ARCH, "cpu": cpu(), "cores": cores(), "native": native });
        return Ok(writeln!(out, "{:#}", json!({ "machine": machine, "targets": targets }))?);
    }
    writeln!(out, "this machine: {}, {} cores, {}", cpu(), cores(), std::env::consts::ARCH)?;
    for target in rvllm_targets::all() {
        let is_native = native.as_ref() == Some(&target);
        writeln!(out, "  {:16} {:38} {}", target.name, target.description, verdict(&target, is_native))?;
    }
    Ok(())
}

fn describe(target: &Target) -> serde_json::Value {
    json!({
        "name": target.name,
        "description": target.description,
        "arch": target.arch.name(),
        "features": target.requires,
        "runs_here": target.runs_here(&has_feature),
        "missing": missing(target),
    })
}

fn verdict(target: &Target, is_native: bool) -> String {
    match (is_native, target.runs_here(&has_feature)) {
        _ if target.gpu.is_some() => match rvllm_mlir::assembler() {
            Some(tool) => format!("needs such a GPU; compiles here, with ptxas {}", tool.version),
            None => "needs such a GPU; compiles here, to PTX, as there is no ptxas".to_string(),
        },
        (true, _) => "runs here (native)".to_string(),
        (false, true) => "runs here".to_string(),
        (false, false) if target.arch.name() != std::env::consts::ARCH => format!("needs {}", target.arch.name()),
        (false, false) => format!("needs {}", missing(target).join(", ")),
    }
}

/// Features that this machine lacks.
fn missing(target: &Target) -> Vec<&str> {
    target.requires.iter().map(String::as_str).filter(|f| !has_feature(f)).collect()
}

fn cores() -> usize {
    available_parallelism().map_or(1, usize::from)
}

/// The processor's name, where the system tells it.
fn cpu() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| "unknown CPU".to_string(), |(_, name)| name.trim().to_string())
}

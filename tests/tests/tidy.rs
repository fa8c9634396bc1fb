//! The rules of the house, each a test: who may import whom, where words and `unsafe` may stand, how files look.
//!
//! A rule that turns out wrong is changed here and in README.md's architecture section, in one commit.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace").to_path_buf()
}

/// Files that git tracks or would track, relative to the root, in order.
fn files() -> Vec<String> {
    let out = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git runs");
    let list = String::from_utf8(out.stdout).expect("file names are UTF-8");
    list.lines().filter(|f| root().join(f).is_file()).map(str::to_string).collect()
}

/// Rust sources below a folder, with their text.
fn sources(below: &str) -> Vec<(String, String)> {
    files()
        .into_iter()
        .filter(|f| f.starts_with(below) && f.ends_with(".rs"))
        .map(|f| {
            let text = fs::read_to_string(root().join(&f)).expect("source is readable UTF-8");
            (f, text)
        })
        .collect()
}

/// Lines of code that contain one of `words`, as `file:line: text`.
fn lines_with(sources: &[(String, String)], words: &[&str]) -> Vec<String> {
    let mut hits = vec![];
    for (file, text) in sources {
        for (i, line) in text.lines().enumerate() {
            let lower = line.to_lowercase();
            if words.iter().any(|w| lower.contains(w)) {
                hits.push(format!("{file}:{}: {}", i + 1, line.trim()));
            }
        }
    }
    hits
}

fn none(what: &str, hits: Vec<String>) {
    assert!(hits.is_empty(), "{what}:\n{}", hits.join("\n"));
}

/// Direct normal and build dependencies of each workspace package, by name; those of its tests too where `dev`.
fn dependencies(dev: bool) -> BTreeMap<String, BTreeSet<String>> {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo metadata runs");
    let meta: serde_json::Value = serde_json::from_slice(&out.stdout).expect("cargo metadata prints JSON");
    let packages = meta["packages"].as_array().expect("metadata lists packages");
    packages
        .iter()
        .map(|p| {
            let normal = p["dependencies"].as_array().into_iter().flatten().filter(|d| dev || d["kind"] != "dev");
            let names = normal.filter_map(|d| d["name"].as_str()).map(str::to_string).collect();
            (p["name"].as_str().unwrap_or_default().to_string(), names)
        })
        .collect()
}

/// Packages of the workspace that `package` reaches, itself included.
fn reached(package: &str) -> BTreeSet<String> {
    let all = dependencies(false);
    let (mut seen, mut work) = (BTreeSet::new(), vec![package.to_string()]);
    while let Some(p) = work.pop() {
        if let Some(deps) = all.get(&p).filter(|_| seen.insert(p.clone())) {
            work.extend(deps.iter().cloned());
        }
    }
    seen
}

#[test]
fn the_runtime_never_compiles() {
    let allowed = ["rvllm", "rvllm-artifact", "rvllm-engine", "rvllm-server"].map(String::from).into();
    assert_eq!(reached("rvllm"), allowed, "the runtime imports the artifact format, the engine and the server only");
}

#[test]
fn only_the_mlir_crate_names_llvm() {
    for (package, deps) in dependencies(true) {
        let llvm: Vec<&String> =
            deps.iter().filter(|d| ["melior", "mlir-sys", "llvm-sys"].contains(&d.as_str())).collect();
        assert!(package == "rvllm-mlir" || llvm.is_empty(), "{package} depends on {llvm:?}");
    }
}

#[test]
fn ir_models_and_kernels_are_tested_without_llvm() {
    let all = dependencies(true);
    for package in ["rvllm-ir", "rvllm-models", "rvllm-kernels"] {
        let lead: Vec<&String> = all[package].iter().filter(|d| reached(d).contains("rvllm-mlir")).collect();
        assert!(lead.is_empty(), "{package} or its tests reach LLVM through {lead:?}");
    }
}

#[test]
fn crates_import_only_what_the_plan_allows() {
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("rvllm-ir", &[][..]),
        ("rvllm-targets", &[]),
        ("rvllm-artifact", &[]),
        ("rvllm-models", &["rvllm-ir"]),
        ("rvllm-kernels", &["rvllm-ir"]),
        ("rvllm-mlir", &["rvllm-ir", "rvllm-targets"]),
        ("rvllm-engine", &["rvllm-artifact"]),
        ("rvllm-server", &["rvllm-artifact", "rvllm-engine"]),
        ("rvllm", &["rvllm-artifact", "rvllm-engine", "rvllm-server"]),
        ("rvllm-device-tests", &["rvllm-artifact", "rvllm-engine"]),
    ]);
    let all = dependencies(false);
    for (package, may) in allowed {
        let ours: Vec<&String> = all[package].iter().filter(|d| d.starts_with("rvllm")).collect();
        let wrong: Vec<_> = ours.into_iter().filter(|d| !may.contains(&d.as_str())).collect();
        assert!(wrong.is_empty(), "{package} imports {wrong:?}");
    }
}

#[test]
fn models_know_no_hardware_and_no_schedule() {
    let words = ["sm_", "avx", "amx", "cuda", "rocm", "gpu", "cpu", "prefill", "decode(", "qkv_proj", "fused"];
    none("models/ says what a network computes, nothing else", lines_with(&sources("models/src"), &words));
}

#[test]
fn kernels_know_no_instruction_set() {
    let words = ["sm_", "gfx", "wgmma", "mfma", "amx", "avx", "zmm", "vdpbf16", "x86", "aarch64", "cuda"];
    none("kernels/ states algorithms, targets/ choose instructions", lines_with(&sources("kernels/src"), &words));
}

#[test]
fn ir_types_are_not_serializable() {
    none(
        "the artifact crate owns the format",
        lines_with(&sources("compiler/ir/src"), &["serde::", "serde_json", "derive(serialize"]),
    );
}

#[test]
fn unsafe_stands_only_at_the_edges() {
    let edges = [
        "targets/mlir/src/pipeline.rs",
        "runtime/engine/src/device/",
        "runtime/artifact/src/map.rs",
        "tests/",
        "benches/src/",
    ];
    let inside: Vec<(String, String)> =
        sources("").into_iter().filter(|(f, _)| !edges.iter().any(|e| f.starts_with(e))).collect();
    none(
        "`unsafe` belongs to device backends, FFI and memory maps",
        lines_with(&inside, &["unsafe {", "unsafe fn", "unsafe impl"]),
    );
}

#[test]
fn every_file_opens_with_what_it_is() {
    let bare = sources("").into_iter().filter(|(_, text)| !text.starts_with("//!")).map(|(f, _)| f).collect();
    none("every file opens with `//!`: what it is and its invariants", bare);
}

#[test]
fn nothing_is_left_to_be_written() {
    let marks = [
        "to be written",
        concat!("to", "do!"),
        concat!("unimple", "mented!"),
        concat!("FIX", "ME"),
        concat!("XX", "X:"),
    ];
    let marks: Vec<String> = marks.iter().map(|m| m.to_lowercase()).collect();
    let marks: Vec<&str> = marks.iter().map(String::as_str).collect();
    let others: Vec<_> = sources("").into_iter().filter(|(f, _)| f != "tests/tests/tidy.rs").collect();
    none("unfinished work does not land", lines_with(&others, &marks));
}

#[test]
fn files_and_functions_stay_readable() {
    let mut hits = vec![];
    for (file, text) in sources("") {
        let lines = text.lines().count();
        if lines > 800 {
            hits.push(format!("{file}: {lines} lines; split files over 800"));
        }
        hits.extend(long_functions(&file, &text, 100));
    }
    none("split what is too long to read", hits);
}

/// Functions of more than `limit` lines, found by the indentation that rustfmt gives their braces.
fn long_functions(file: &str, text: &str, limit: usize) -> Vec<String> {
    let mut hits = vec![];
    let mut open: Option<(usize, usize, String)> = None;
    for (i, line) in text.lines().enumerate() {
        let indent = line.len() - line.trim_start().len();
        match &open {
            None if is_fn(line) && !line.trim_end().ends_with('}') && !line.trim_end().ends_with(';') => {
                open = Some((i, indent, line.trim().to_string()));
            }
            Some((start, at, name)) if indent == *at && line.trim_start().starts_with('}') => {
                if i - start + 1 > limit {
                    hits.push(format!("{file}:{}: {} lines: {name}", start + 1, i - start + 1));
                }
                open = None;
            }
            _ => {}
        }
    }
    hits
}

fn is_fn(line: &str) -> bool {
    let mut words = line.split_whitespace();
    words.find(|w| !["pub", "pub(crate)", "pub(super)", "const", "async", "unsafe", "extern", "\"C\""].contains(w))
        == Some("fn")
}

#[test]
fn names_say_what_things_are() {
    let vague = ["Manager", "Helper", "Util", "Base"];
    let mut hits = vec![];
    for (file, text) in sources("") {
        for (i, line) in text.lines().enumerate() {
            let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
            let named = words.position(|w| ["struct", "enum", "trait", "type"].contains(&w)).and_then(|_| words.next());
            if named.is_some_and(|n| vague.iter().any(|v| n.ends_with(v))) {
                hits.push(format!("{file}:{}: {}", i + 1, line.trim()));
            }
        }
    }
    none("no Manager, Helper, Util, Base", hits);
}

#[test]
fn the_top_level_is_fixed() {
    let allowed = [
        "Cargo.toml",
        "Cargo.lock",
        "LICENSE",
        "Makefile",
        "README.md",
        "compiler",
        "runtime",
        "kernels",
        "models",
        "targets",
        "tests",
        "benches",
    ];
    let tops: BTreeSet<String> = files().iter().filter_map(|f| f.split('/').next()).map(str::to_string).collect();
    let extra = tops.into_iter().filter(|t| !t.starts_with('.') && !allowed.contains(&t.as_str())).collect();
    none("the nine top-level entries are fixed", extra);
}

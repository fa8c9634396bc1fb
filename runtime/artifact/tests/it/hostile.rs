//! Bad files and the message that each gets: nothing panics, nothing is allocated by a claimed size.

use crate::model::*;
use rvllm_artifact::{
    Artifact, Checkpoint, Error, LoadedWeights, Mismatch, Source, WeightsFrom,
    manifest::{Manifest, Target, Weights},
    plan::{Arg, Buffer, DType, Expr, Plan, Sym},
    recipe::Recipe,
};
use std::{fs, io::Write, path::Path};
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

/// Message without the help, which must be there where `helped`.
#[track_caller]
fn refused(bytes: &[u8], expected: &str) {
    let message = open(bytes).expect_err("a bad artifact is refused").to_string();
    let (problem, help) = message.split_once(" · help: ").unwrap_or((&message, ""));
    assert_eq!(problem, format!("tiny.rvllm: {expected}"));
    assert!(!help.is_empty() || problem.contains(" at line "), "no next step: {message}");
}

#[track_caller]
fn refused_containing(bytes: &[u8], part: &str) {
    let message = open(bytes).expect_err("a bad artifact is refused").to_string();
    assert!(message.starts_with("tiny.rvllm: ") && message.contains(part), "{message}");
}

fn find(bytes: &[u8], what: &[u8]) -> usize {
    bytes.windows(what.len()).position(|w| w == what).expect("it is there")
}

/// Where the directory's record of an entry begins.
fn central(bytes: &[u8], name: &str) -> usize {
    let at = bytes.windows(name.len()).rposition(|w| w == name.as_bytes()).expect("the directory names it");
    at - 46
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// A stored ZIP file of these entries.
fn zip_of(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(std::io::Cursor::new(vec![]));
    for (name, bytes) in entries {
        zip.start_file(*name, SimpleFileOptions::default().compression_method(CompressionMethod::Stored)).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// The model with another manifest and plan, with the sums that fit them.
fn altered(change: impl FnOnce(&mut Manifest, &mut Plan)) -> Vec<u8> {
    let (mut manifest, mut plan) = (manifest(embedded()), plan());
    change(&mut manifest, &mut plan);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.rvllm");
    let mut writer = rvllm_artifact::Writer::create(&path, &manifest, &entries(&plan)).unwrap();
    let stored = crate::model::weights();
    let stored: Vec<_> = stored.iter().collect();
    for entry in manifest.weights.embedded() {
        let go_on = &mut |_| std::ops::ControlFlow::Continue(());
        writer.weights(entry, &stored, &source(1), 1, go_on).unwrap();
    }
    writer.finish().unwrap();
    fs::read(&path).unwrap()
}

fn manifest_json(format: &str) -> Vec<u8> {
    let mut manifest = manifest(embedded());
    manifest.format = format.into();
    serde_json::to_vec(&manifest).unwrap()
}

#[test]
fn files_that_are_no_artifacts() {
    refused(b"", "0 bytes, expected an artifact");
    refused(&[7; 1000], "no ZIP file, expected an artifact");
    refused(&zip_of(&[]), "a ZIP file that begins with nothing, expected an artifact");
    refused(
        &zip_of(&[("word/document.xml", b"<a/>")]),
        "a ZIP file that begins with word/document.xml, expected an artifact",
    );
    refused(&zip_of(&[("x", b""), ("manifest.json", b"{}")]), "a ZIP file that begins with x, expected an artifact");
    let error = Artifact::open(Path::new("/nonexistent.rvllm")).unwrap_err().to_string();
    assert!(error.starts_with("cannot open /nonexistent.rvllm: "), "{error}");
    assert_eq!(Artifact::open(Path::new("/")).unwrap_err().to_string(), "cannot open /: not a file");
}

#[test]
fn every_truncation_is_refused() {
    let bytes = artifact(embedded());
    refused(&bytes[..bytes.len() - 1], "a truncated file, expected an artifact");
    refused(&bytes[..bytes.len() / 2], "a truncated file, expected an artifact");
    for length in (0..bytes.len()).step_by(41) {
        assert!(matches!(open(&bytes[..length]), Err(Error::NotAnArtifact { .. })), "{length}");
    }
}

#[test]
fn versions_that_it_cannot_read() {
    let of = |format: &str| zip_of(&[("manifest.json", &manifest_json(format))]);
    refused(&of("3.0"), "artifact format 3.0, but this rvllm reads 2.3");
    refused(&of("2.4"), "artifact format 2.4, but this rvllm reads 2.3");
    refused(&of("1.1"), "artifact format 1.1, but this rvllm reads 2.3");
    refused(&of("one"), "artifact format one, but this rvllm reads 2.3");
    let future = br#"{"format": "7.3", "unheard_of": [1, 2]}"#;
    refused(&zip_of(&[("manifest.json", future)]), "artifact format 7.3, but this rvllm reads 2.3");
    let message = open(&of("2.0")).unwrap_err().to_string();
    assert!(!message.contains("artifact format"), "{message}");
}

#[test]
fn json_that_is_something_else() {
    let of = |json: &str| zip_of(&[("manifest.json", json.as_bytes())]);
    refused(&of("{}"), "entry manifest.json: missing field `format` at line 1 column 2");
    refused_containing(&of("\u{fffd}"), "entry manifest.json: expected value at line 1");
    refused_containing(&of(r#"{"format": "2.0"}"#), "entry manifest.json: missing field `compiler`");
    refused_containing(&of(&"[".repeat(1 << 20)), "entry manifest.json: ");
    let deep = format!(r#"{{"format": "2.0", "compiler": {}"#, "[".repeat(1 << 20));
    refused_containing(&of(&deep), "entry manifest.json: EOF while parsing a list");
    let large = format!(r#"{{"format": "2.0"}}{}"#, " ".repeat(33 << 20));
    refused(&of(&large), "damaged: entry manifest.json: 34603025 bytes, expected at most 33554432");
}

#[test]
fn flipped_bytes_are_found() {
    let valid = artifact(embedded());
    let flipped = |at: usize| {
        let mut bytes = valid.clone();
        bytes[at] ^= 0x10;
        bytes
    };
    refused_containing(&flipped(find(&valid, b"tiny")), "entry manifest.json: CRC-32 is ");
    refused_containing(&flipped(find(&valid, &[0x91; 64])), "entry kernels/wide.so: SHA-256 is ");
    refused_containing(&flipped(find(&valid, b"max_num_batched_tokens")), "entry plans/plain.json: SHA-256 is ");
    let rope_end = central(&valid, "manifest.json") - 20;
    let artifact = open(&flipped(rope_end)).unwrap();
    let error = artifact.verify().unwrap_err().to_string();
    assert!(error.contains("entry weights/model.safetensors: CRC-32 is ") && error.contains(", expected "), "{error}");
}

#[test]
fn every_flipped_byte_outside_the_padding_is_found_by_verify() {
    let valid = artifact(embedded());
    let ranges: Vec<_> = zip_entries(&valid);
    for range in ranges {
        for at in range.step_by(97) {
            let mut bytes = valid.clone();
            bytes[at] ^= 1;
            assert!(open(&bytes).and_then(|a| a.verify()).is_err(), "byte {at}");
        }
    }
}

fn zip_entries(bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut zip = zip::ZipArchive::new(std::io::Cursor::new(bytes)).unwrap();
    let range = |file: zip::read::ZipFile<'_, _>| {
        let start = file.data_start().unwrap() as usize;
        start..start + file.size() as usize
    };
    (0..zip.len()).map(|i| range(zip.by_index(i).unwrap())).collect()
}

#[test]
fn hostile_directories() {
    let valid = artifact(embedded());
    let (end, at) = (valid.len() - 22, central(&valid, "tokenizer.json"));
    let with = |at: usize, value: &[u8]| {
        let mut bytes = valid.clone();
        put(&mut bytes, at, value);
        bytes
    };
    let claims = |n: u16| [n.to_le_bytes(), n.to_le_bytes()].concat();
    refused(&with(end + 8, &claims(9999)), "damaged: 9999 entries, expected at most 4096");
    refused(&with(end + 8, &claims(200)), "damaged: a directory shorter than its number of entries");
    refused(&with(end + 8, &claims(u16::MAX)), "damaged: a ZIP64 file without its locator");
    refused_containing(&with(end + 8, &claims(3)), "but its 3 entries take ");
    refused(&with(end + 4, &[1]), "damaged: a ZIP file in several parts");
    refused_containing(&with(end + 16, &[0xff; 3]), "damaged: a directory of ");
    refused(&with(at + 10, &[8]), "damaged: entry tokenizer.json: compressed or encrypted, expected stored");
    refused(&with(at + 8, &[1]), "damaged: entry tokenizer.json: compressed or encrypted, expected stored");
    refused(&with(at + 24, &[9]), "damaged: entry tokenizer.json: 2 bytes for 9, expected stored");
    refused_containing(
        &with(at + 20, &[0, 0, 0, 0x70, 0, 0, 0, 0x70]),
        "damaged: entry tokenizer.json: 1879048192 bytes at byte ",
    );
    refused_containing(&with(at + 42, &[0xfe; 4]), "damaged: entry tokenizer.json: 2 bytes at byte 4278124286 of ");
    refused_containing(&with(at + 42, &[1, 0, 0, 0]), "damaged: entry tokenizer.json: no header at byte 1");
    refused(&with(at + 42, &[0; 4]), "damaged: entry tokenizer.json: another name in its header");
    refused_containing(&with(at + 46, b"../etc/passwd"), "damaged: an entry named \"../etc/passwdn\"");
    refused_containing(&with(at + 46, b"/"), "damaged: an entry named \"/okenizer.json\"");
    refused_containing(&with(at + 46, &[0]), "damaged: an entry named \"\\0okenizer.json\"");
}

#[test]
fn overlapping_entries() {
    let valid = artifact(embedded());
    let at = central(&valid, "kernels/plain.so");
    let mut bytes = valid.clone();
    let next = u32::from_le_bytes(valid[central(&valid, "kernels/wide.so") + 42..][..4].try_into().unwrap());
    let size = (next + 9 - zip_entries(&valid)[3].start as u32).to_le_bytes();
    put(&mut bytes, at + 20, &[size, size].concat());
    refused(&bytes, "damaged: entries kernels/plain.so and kernels/wide.so overlap");
    let again = zip_of(&[("manifest.json", b"{}"), ("tokenizer.json", b"1"), ("tokenizer.jsoN", b"2")]);
    let mut twice = again.clone();
    while let Some(at) = twice.windows(14).position(|w| w == b"tokenizer.jsoN") {
        put(&mut twice, at, b"tokenizer.json");
    }
    refused(&twice, "damaged: two entries named tokenizer.json");
    refused_containing(&[b"MZ", &valid[..]].concat(), "damaged: a directory of ");
}

#[test]
fn entries_that_do_not_fit_the_manifest() {
    let json = manifest_json("2.0");
    let alone = zip_of(&[("manifest.json", &json), ("config.json", b"{}")]);
    refused(&alone, "damaged: entry config.json, which the manifest does not name");
    let listed = |m: &mut Manifest| _ = m.entries.insert("config.json".into(), "00".into());
    let mut manifest = manifest(Weights::None);
    (manifest.format, _) = ("2.0".into(), listed(&mut manifest));
    let json = serde_json::to_vec(&manifest).unwrap();
    refused(&zip_of(&[("manifest.json", &json)]), "no entry config.json, which manifest.json names");
    refused_containing(
        &zip_of(&[("manifest.json", &json), ("config.json", b"{}")]),
        "entry config.json: SHA-256 is 44136f",
    );
    let no_plan = altered(|m, _| m.targets[1].plan = "plans/none.json".into());
    refused(&no_plan, "damaged: no SHA-256 of entry plans/none.json of target wide");
    let no_kernels = altered(|m, _| m.targets[1].kernels = "kernels/none.so".into());
    refused(&no_kernels, "no entry kernels/none.so, which wide names");
    let as_weights = altered(|m, _| m.targets[0].kernels = WEIGHTS.into());
    refused(&as_weights, "damaged: no SHA-256 of entry weights/model.safetensors of target plain");
}

/// A change to the manifest and the complaint about it.
type ManifestCase = (fn(&mut Manifest), &'static str);

#[test]
fn manifests_with_bad_sizes() {
    let cases: &[ManifestCase] = &[
        (|m| m.model.vocab_size = 0, "model.vocab_size is 0, expected 1 to 1073741824"),
        (|m| m.model.max_model_len = u32::MAX, "model.max_model_len is 4294967295, expected 1 to 16777216"),
        (|m| m.kv_cache.block_size = 0, "kv_cache.block_size is 0, expected 1 to 65536"),
        (|m| m.kv_cache.k_bytes = 255, "kv_cache.k_bytes is 255, expected 256 to 17592186044416"),
        (|m| m.kv_cache.head_dim = u32::MAX, "kv_cache.k_bytes is 256, expected 137438953440 to 17592186044416"),
        (|m| m.kv_cache.scale_bytes = 15, "kv_cache.scale_bytes is 15, expected 64 to 17592186044416"),
        (
            |m| m.kv_cache.scale_bytes = 1 << 44,
            "kv_cache's bytes of a block is 70368744178688, expected 1 to 17592186044416",
        ),
        (|m| m.kv_cache.v_bytes = u64::MAX, "kv_cache.v_bytes is 18446744073709551615, expected 256 to 17592186044416"),
        (|m| m.targets.clear(), "targets is empty, expected at least one"),
        (|m| m.targets[1].name = "plain".into(), "two targets named plain"),
    ];
    for (change, expected) in cases {
        refused(&altered(|m, _| change(m)), &format!("entry manifest.json: {expected}"));
    }
}

/// A change to the plan and the complaint about it.
type PlanCase = (fn(&mut Plan), &'static str);

#[track_caller]
fn plans(cases: &[PlanCase]) {
    for (change, expected) in cases {
        refused(&altered(|_, p| change(p)), &format!("entry plans/plain.json: {expected}"));
    }
}

#[test]
fn plans_with_bad_buffers() {
    plans(&[
        (|p| p.max_num_seqs = 0, "max_num_seqs is 0, expected 1 to 16777216"),
        (|p| p.query_tile = 0, "query_tile is 0, expected 1 to 16777216"),
        (|p| p.arena_bytes = 1 << 50, "arena_bytes is 1125899906842624, expected 0 to 17592186044416"),
        (|p| p.arena_bytes = 1 << 40, "arena_bytes is 1099511627776, expected 5632 to 2097152"),
        (|p| p.arena_bytes = 2048, "buffer logits: 1600 bytes at 2048 of an arena of 2048"),
        (|p| p.buffers[0].offset = u64::MAX, "buffer x: 1536 bytes at 18446744073709551615 of an arena of 8192"),
        (|p| p.buffers[0].offset = 32, "buffer x: offset 32, expected a multiple of 64"),
        (|p| p.buffers[0].live = [1, 0], "buffer x: live from launch 1 to 0 of 2"),
        (|p| p.buffers[0].live = [0, 2], "buffer x: live from launch 0 to 2 of 2"),
        (|p| p.outputs.max = 8, "output max is buffer 8 of 8"),
        (|p| p.outputs.draws = 5, "output draws: buffer block_sum of 32 bytes, expected at least 256"),
        (|p| p.max_logits = 9, "output logits: buffer logits of 1600 bytes, expected at least 1800"),
        (|p| p.outputs.block_max = u32::MAX, "output block_max is buffer 4294967295 of 8"),
    ]);
}

#[test]
fn plans_with_bad_launches() {
    plans(&[
        (|p| p.launches[1].variants.clear(), "launch head: no variants"),
        (
            |p| p.launches[1].variants[0].at_most = Some((Sym::T, 4)),
            "launch head: its last variant has a condition, expected none",
        ),
        (|p| p.launches[0].variants[0].at_most = None, "launch embed: a variant without condition before the last"),
        (|p| p.launches[0].variants[1].kernel = 2, "launch embed: kernel 2 of 2"),
        (|p| p.launches[0].variants[1].kernel = 1, "launch embed: 3 arguments, but kernel head_1 takes 4"),
        (|p| p.launches[0].args[1] = Arg::Weight(5), "launch embed: weight 5 of 5"),
        (|p| p.launches[0].args[1] = Arg::KeyCache(2), "launch embed: cache of layer 2 of 2"),
        (|p| p.launches[0].args[1] = Arg::ValueScales(2), "launch embed: scales of the cache of layer 2 of 2"),
        (
            |p| p.launches[0].args[1] = Arg::KeyScales(1),
            "launch embed: scales of a cache whose kv_cache.scale_bytes is 0",
        ),
        (|p| p.launches[0].args[2] = Arg::Buffer { id: 9, offset: 0 }, "launch embed: buffer 9 of 8"),
        (
            |p| p.launches[0].args[2] = Arg::Buffer { id: 0, offset: 1536 },
            "launch embed: byte 1536 of buffer x, which has 1536",
        ),
        (|p| p.kernels[0].symbol = "a\0b".into(), "kernel symbol \"a\\0b\", expected letters, digits and _ . $"),
    ]);
}

fn grid(plan: &mut Plan, extent: Expr) {
    plan.launches[1].variants[0].grid = vec![extent, Expr::Const(0)];
}

fn nested(depth: usize, leaf: Expr) -> Expr {
    (0..depth).fold(leaf, |e, _| Expr::Mul(Box::new(e), Box::new(Expr::Const(i64::MAX))))
}

#[test]
fn plans_with_bad_grids() {
    plans(&[
        (|p| grid(p, Expr::Const(-1)), "launch head: constant -1 in a grid, expected none below 0"),
        (
            |p| grid(p, Expr::CeilDiv(Box::new(Expr::Sym(Sym::T)), 0)),
            "launch head: division by 0 in a grid, expected a positive divisor",
        ),
        (
            |p| grid(p, Expr::Min(Box::new(Expr::Sym(Sym::T)), -1)),
            "launch head: bound -1 in a grid, expected none below 0",
        ),
        (|p| grid(p, nested(16, Expr::Sym(Sym::T))), "launch head: an expression nested deeper than 16"),
        (
            |p| grid(p, Expr::Const(1 << 41)),
            "launch head: its number of programs is 2199023255552, expected 1 to 1099511627776",
        ),
        (
            |p| p.launches[1].variants[0].grid.clear(),
            "launch head: its number of grid dimensions is 0, expected 1 to 4",
        ),
    ]);
    refused_containing(&altered(|_, p| grid(p, nested(2, Expr::Sym(Sym::P)))), " overflows");
    refused_containing(&altered(|_, p| grid(p, nested(100, Expr::Sym(Sym::T)))), "recursion limit exceeded");
}

#[test]
fn plans_with_bad_weights() {
    let huge = "its bytes is 18446744073709551615, expected 1 to 17592186044416";
    plans(&[
        (|p| p.weights[1].name = "embed".into(), "two weights named embed"),
        (|p| p.weights[1].shape = vec![0], "weight norm: its bytes is 0, expected 1 to 17592186044416"),
        (
            |p| {
                let Recipe::RopeTable { positions, .. } = &mut p.weights[4].recipe else { panic!("rope is a table") };
                *positions = u32::MAX;
            },
            "weight rope: positions of its rope table is 4294967295, expected 1 to 64",
        ),
        (
            |p| p.weights[3].recipe = Recipe::Pack { n: 1 << 30, k: 2, of: Box::new(Recipe::Tensor("a".into())) },
            "weight head: pack[1073741824, 2], expected 1 to 4096 each",
        ),
    ]);
    let overflow = altered(|_, p| p.weights[1].shape = vec![u64::MAX, 3]);
    refused(&overflow, &format!("entry plans/plain.json: weight norm: {huge}"));
}

#[test]
fn weights_that_are_not_those_of_the_plan() {
    let message = |change: fn(&mut Plan)| open(&altered(|_, p| change(p))).unwrap_err().to_string();
    assert_eq!(message(|p| p.weights[0].name = "other".into()), "tiny.rvllm: no tensor other");
    assert_eq!(
        message(|p| p.weights[0].shape = vec![51, 24]),
        "tiny.rvllm: tensor embed is [50, 24]bf16, expected [51, 24]bf16"
    );
    assert_eq!(
        message(|p| p.weights[0].dtype = DType::F16),
        "tiny.rvllm: tensor embed is [50, 24]bf16, expected [50, 24]f16"
    );
}

#[test]
fn machines_that_no_target_fits() {
    let bytes = altered(|m, _| _ = m.targets.remove(0));
    let artifact = open(&bytes).unwrap();
    let arch = std::env::consts::ARCH;
    assert_eq!(
        artifact.target(&|feature| feature == "fma").unwrap_err().to_string(),
        format!(
            "tiny.rvllm: artifact was compiled for wide ({arch} with avx2, fma), but this machine is {arch} and lacks avx2 \
             · help: rvllm compile … --target native"
        )
    );
    let foreign = altered(|m, _| m.targets.iter_mut().for_each(|t| t.arch = "s390x".into()));
    let message = open(&foreign).unwrap().target(&|_| true).unwrap_err().to_string();
    assert!(message.contains(&format!("compiled for plain (s390x); artifact was compiled for wide (s390x with avx2, fma), but this machine is {arch} ·")), "{message}");
    assert_eq!(
        artifact.target_named("sm_90a").unwrap_err().to_string(),
        "tiny.rvllm: no target sm_90a; it has wide · help: rvllm compile … --target sm_90a"
    );
    let other = Target { name: "other".into(), ..artifact.manifest().targets[0].clone() };
    assert!(artifact.plan(&other).is_err());
}

/// Opens a checkpoint of one file with these bytes, and gives the message without the directory.
fn safetensors_message(bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    let message = Checkpoint::open(dir.path()).unwrap_err().to_string();
    message.replace(&format!("{}/", dir.path().display()), "")
}

fn header(json: &str, data: usize) -> Vec<u8> {
    [&(json.len() as u64).to_le_bytes(), json.as_bytes(), &vec![0; data]].concat()
}

#[test]
fn hostile_safetensors() {
    let cases = [
        (vec![1, 2, 3], "damaged: 3 bytes, expected a safetensors header"),
        (
            u64::MAX.to_le_bytes().to_vec(),
            "damaged: a header of 18446744073709551615 bytes, expected at most 0 of a file of 8",
        ),
        (header("{}", 9), "damaged: tensors of 0 bytes, but 9 bytes after the header"),
        (
            header("[]", 0),
            "safetensors header: invalid type: sequence, expected an object of tensors at line 1 column 0",
        ),
        (header(&"[".repeat(9999), 0), "safetensors header: invalid type: sequence, expected an object of tensors"),
        (header(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,9]}}"#, 9), "damaged: safetensors header: "),
        (header(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#, 12), "damaged: safetensors header: "),
        (
            header(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 7),
            "damaged: tensors of 8 bytes, but 7 bytes",
        ),
        (
            header(r#"{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}"#, 8),
            "safetensors header: invalid value: integer `-2`",
        ),
        (
            header(r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,0]}}"#, 0),
            "damaged: safetensors header: ",
        ),
        (
            header(r#"{"a":{"dtype":"F33","shape":[2],"data_offsets":[0,8]}}"#, 8),
            "safetensors header: unknown variant `F33`",
        ),
        (
            header(
                r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#,
                1,
            ),
            "safetensors header: tensor a appears twice, first of shape [2]",
        ),
        (
            header(
                r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#,
                3,
            ),
            "damaged: safetensors header: ",
        ),
    ];
    for (bytes, expected) in cases {
        let message = safetensors_message(&bytes);
        assert!(message.starts_with(&format!("model.safetensors: {expected}")), "{message}");
    }
}

fn index_message(index: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.safetensors"), safetensors(&source(1), &NAMES)).unwrap();
    fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    let message = Checkpoint::open(dir.path()).unwrap_err().to_string();
    message.replace(&format!("{}", dir.path().display()), "DIR")
}

#[test]
fn hostile_indices() {
    assert_eq!(
        index_message(r#"{"weight_map": {"x": "../../etc/passwd"}}"#),
        "DIR: its index names the file \"../../etc/passwd\", expected a name without a directory"
    );
    assert_eq!(index_message(r#"{"weight_map": {}}"#), "DIR: its index names 0 files, expected 1 to 4096");
    assert_eq!(
        index_message(r#"{"weight_map": {"x": "a.safetensors"}}"#),
        "DIR/a.safetensors: no tensor x, which the index places there"
    );
    assert!(index_message(r#"{"weight_map": {"x": "b.safetensors"}}"#).starts_with("cannot open DIR/b.safetensors: "));
    assert!(index_message("{").starts_with("DIR/model.safetensors.index.json: index: EOF while parsing"));
}

#[test]
fn directories_that_are_no_checkpoints() {
    let dir = tempfile::tempdir().unwrap();
    let message = |dir: &Path| Checkpoint::open(dir).unwrap_err().to_string();
    assert!(message(dir.path()).ends_with(": neither model.safetensors nor model.safetensors.index.json"));
    fs::write(dir.path().join("pytorch_model.bin"), "").unwrap();
    assert!(
        message(dir.path()).contains(": only pytorch_model.bin, but rvllm reads safetensors · help: save the model")
    );
    assert_eq!(message(Path::new("/nonexistent")), "/nonexistent: no such directory, expected a checkpoint");
}

#[test]
fn tensors_that_the_model_does_not_expect() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint(dir.path(), 1);
    let expected = [("q.weight", vec![40, 25]), ("lm_head.weight", vec![50, 24]), ("k.weight", vec![8, 24])];
    let expected = expected.map(|(name, shape)| (name.to_string(), shape));
    let found: Vec<String> =
        checkpoint.check(&expected, &|name| name == "model.norm.weight").iter().map(Mismatch::to_string).collect();
    assert_eq!(
        found,
        [
            "missing tensor lm_head.weight, expected [50, 24]",
            "unexpected tensor model.embed_tokens.weight of shape [50, 24]",
            "tensor q.weight has shape [40, 24], expected [40, 25]",
        ]
    );
    assert!(checkpoint.tensor("x").unwrap_err().to_string().ends_with(": no tensor x"));
    assert!(checkpoint.bytes("k.weight", 0..9999).is_err());
    let dir = tempfile::tempdir().unwrap();
    let json = r#"{"a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}"#;
    fs::write(dir.path().join("model.safetensors"), header(json, 8)).unwrap();
    let error = Checkpoint::open(dir.path()).unwrap().tensor("a").unwrap_err().to_string();
    assert!(error.ends_with("tensor a is I64, expected one of f32, f16, bf16, f8e4m3, f8e5m2, i8, u8, i32"), "{error}");
}

fn load_error(artifact: &[u8], from: WeightsFrom<'_>) -> String {
    let artifact = open(artifact).unwrap();
    let plan = artifact.plan(artifact.target_named("plain").unwrap()).unwrap();
    LoadedWeights::load(&artifact, plan, from, 2).unwrap_err().to_string()
}

#[test]
fn checkpoints_that_the_artifact_was_not_compiled_from() {
    let (dir, path) = (tempfile::tempdir().unwrap(), "/nonexistent".to_string());
    let files = checkpoint(dir.path(), 1).files();
    let external = |files| artifact(Weights::External { path: path.clone(), files });
    let load = |files| load_error(&external(files), WeightsFrom::Checkpoint(dir.path()));
    let with = |change: fn(&mut rvllm_artifact::manifest::CheckpointFile)| {
        let mut files = files.clone();
        change(&mut files[0]);
        files
    };
    assert!(load_error(&external(files.clone()), WeightsFrom::Manifest).starts_with("/nonexistent: no such directory"));
    let bytes = files[0].bytes;
    let message = load(with(|f| f.bytes += 1));
    assert!(
        message.contains(&format!("size is {bytes} bytes, but the artifact was compiled from {} bytes", bytes + 1)),
        "{message}"
    );
    let message = load(with(|f| f.header_sha256 = "00".into()));
    assert!(message.contains("SHA-256 of the header is ") && message.contains("compiled from 00 · help:"), "{message}");
    let message = load(with(|f| f.name = "x".into()));
    assert!(message.contains("list of files is model.safetensors, but the artifact was compiled from x"), "{message}");
    assert!(
        load_error(&artifact(Weights::None), WeightsFrom::Manifest).starts_with("tiny.rvllm: compiled without weights")
    );
}

#[test]
fn checkpoints_that_do_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("model.safetensors"), safetensors(&source(1), &NAMES[..3])).unwrap();
    let message = load_error(&artifact(Weights::None), WeightsFrom::Checkpoint(dir.path()));
    assert!(message.ends_with(": missing tensor model.norm.weight, expected [24]"), "{message}");
    let mut bytes = safetensors(&source(1), &NAMES);
    let last = bytes.len() - 2;
    put(&mut bytes, last, &half::bf16::INFINITY.to_le_bytes());
    fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    let message = load_error(&artifact(Weights::None), WeightsFrom::Checkpoint(dir.path()));
    assert!(message.contains("is not a finite bf16"), "{message}");
    let wrong = altered(|m, p| {
        m.weights = Weights::Dummy { seed: 1 };
        p.weights[2].shape = vec![3, 12, 32];
    });
    assert_eq!(
        load_error(&wrong, WeightsFrom::Manifest),
        "recipe: tensor qk is [3, 12, 16, 2]bf16, expected [3, 12, 32]bf16"
    );
}

#[test]
fn a_buffer_may_share_bytes_and_end_with_the_arena() {
    let reused = Buffer { name: "y".into(), offset: 0, bytes: 8192, live: [1, 1] };
    open(&altered(|_, p| p.buffers.push(reused))).unwrap();
}

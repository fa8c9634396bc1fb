//! What is written is read back, byte for byte the same each time, by us and by others.

use crate::model::*;
use rvllm_artifact::{
    Artifact, Checkpoint, LoadedWeights, Source, WeightsFrom, Writer, execute,
    manifest::{FORMAT, Manifest, Weights},
    parsers::ToolParser,
    plan::Weight,
};
use std::{
    fs,
    io::Read,
    ops::{ControlFlow, Range},
    path::Path,
    sync::Mutex,
};

#[test]
fn what_was_written_is_read() {
    let bytes = artifact(embedded());
    let artifact = open(&bytes).unwrap();
    assert_eq!(artifact.manifest().format, FORMAT);
    assert_eq!(artifact.manifest().targets, manifest(embedded()).targets);
    let target = artifact.target_named("wide").unwrap();
    assert_eq!(artifact.plan(target).unwrap(), &plan());
    assert_eq!(artifact.kernels(target).unwrap(), [0x91; 5000]);
    assert_eq!(artifact.entry("tokenizer.json"), Some(&b"{}"[..]));
    assert_eq!(artifact.entry("config.json"), None);
    let names: Vec<_> = artifact.entries().map(|(name, _)| name).collect();
    assert_eq!((names[0], names[6]), ("manifest.json", WEIGHTS));
    artifact.verify().unwrap();
}

#[test]
fn a_manifest_may_say_nothing_of_parsers() {
    let bytes = artifact(embedded());
    let written = open(&bytes).unwrap().manifest().clone();
    assert_eq!(written.model.parsers.map(|p| p.tool_call), Some(Some(ToolParser::Hermes)));
    let mut silent = serde_json::to_value(&written).unwrap();
    silent["model"].as_object_mut().unwrap().remove("parsers");
    let silent: Manifest = serde_json::from_value(silent).unwrap();
    assert_eq!(silent.model.parsers, None);
}

#[test]
fn weights_are_what_their_recipes_make_and_aligned() {
    let artifact = open(&artifact(embedded())).unwrap();
    for weight in weights() {
        let mut expected = vec![0; weight.bytes().unwrap() as usize];
        execute::execute(&weight.recipe, &source(1), 1, &mut expected).unwrap();
        let found = artifact.weight(&weight.name).unwrap();
        assert_eq!(found, expected, "{}", weight.name);
        assert_eq!(found.as_ptr().addr() % 64, 0, "{}", weight.name);
    }
}

#[test]
fn big_entries_begin_on_a_page() {
    let artifact = open(&artifact(embedded())).unwrap();
    for name in ["kernels/plain.so", "kernels/wide.so", WEIGHTS] {
        assert_eq!(artifact.entry(name).unwrap().as_ptr().addr() % 4096, 0, "{name}");
    }
}

#[test]
fn the_same_inputs_give_the_same_bytes() {
    let first = artifact(embedded());
    std::thread::sleep(std::time::Duration::from_millis(2100));
    assert_eq!(artifact(embedded()), first, "ZIP times have a resolution of two seconds");
}

#[test]
fn other_zip_readers_agree() {
    let bytes = artifact(embedded());
    let ours = open(&bytes).unwrap();
    let mut theirs = zip::ZipArchive::new(std::io::Cursor::new(&bytes)).unwrap();
    assert_eq!(theirs.len(), ours.entries().count());
    for i in 0..theirs.len() {
        let mut file = theirs.by_index(i).unwrap();
        let (name, mut content) = (file.name().unwrap().into_owned(), vec![]);
        file.read_to_end(&mut content).unwrap();
        assert_eq!(Some(&content[..]), ours.entry(&name));
    }
}

#[test]
fn other_safetensors_readers_agree() {
    let artifact = open(&artifact(embedded())).unwrap();
    let file = safetensors::SafeTensors::deserialize(artifact.entry(WEIGHTS).unwrap()).unwrap();
    for weight in weights() {
        assert_eq!(Some(file.tensor(&weight.name).unwrap().data()), artifact.weight(&weight.name));
    }
}

/// The file with its end record in the form that sizes over 4 GiB need.
fn as_zip64(bytes: &[u8]) -> Vec<u8> {
    let (rest, end) = bytes.split_at(bytes.len() - 22);
    let field = |at: usize, n: usize| end[at..at + n].iter().rev().fold(0u64, |v, b| v << 8 | u64::from(*b));
    let wide = [field(10, 2), field(10, 2), field(12, 4), field(16, 4)].map(u64::to_le_bytes).concat();
    let versions = [45u16, 45].map(u16::to_le_bytes).concat();
    let record = [b"PK\x06\x06", &44u64.to_le_bytes()[..], &versions, &[0; 8], &wide].concat();
    let locator = [b"PK\x06\x07", &[0; 4][..], &(rest.len() as u64).to_le_bytes(), &1u32.to_le_bytes()].concat();
    let end = [&end[..8], &[0xff; 12], &end[20..]].concat();
    [rest, &record, &locator, &end].concat()
}

#[test]
fn a_zip64_file_is_read() {
    let bytes = as_zip64(&artifact(embedded()));
    assert_eq!(zip::ZipArchive::new(std::io::Cursor::new(&bytes)).unwrap().len(), 7);
    open(&bytes).unwrap().verify().unwrap();
}

fn load(artifact: &Artifact, from: WeightsFrom<'_>) -> Vec<Vec<u8>> {
    let plan = artifact.plan(artifact.target_named("plain").unwrap()).unwrap();
    let loaded = LoadedWeights::load(artifact, plan, from, 2).unwrap();
    assert_eq!(loaded.get(plan.weights.len()), None);
    let all = (0..plan.weights.len()).map(|i| loaded.get(i).unwrap());
    all.inspect(|w| assert_eq!(w.as_ptr().addr() % 64, 0)).map(<[u8]>::to_vec).collect()
}

#[test]
fn weights_are_the_same_from_wherever_they_are_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint(dir.path(), 1);
    let path = dir.path().display().to_string();
    let external = open(&artifact(Weights::External { path, files: checkpoint.files() })).unwrap();
    let (none, dummy) = (open(&artifact(Weights::None)).unwrap(), open(&artifact(Weights::Dummy { seed: 1 })).unwrap());
    let expected = load(&open(&artifact(embedded())).unwrap(), WeightsFrom::Manifest);
    assert_eq!(load(&external, WeightsFrom::Manifest), expected);
    assert_eq!(load(&external, WeightsFrom::Checkpoint(dir.path())), expected);
    assert_eq!(load(&none, WeightsFrom::Checkpoint(dir.path())), expected);
    assert_eq!(load(&none, WeightsFrom::Dummy(1)), expected);
    assert_eq!(load(&dummy, WeightsFrom::Manifest), expected);
    assert_ne!(load(&dummy, WeightsFrom::Dummy(2)), expected);
}

#[test]
fn loaded_weights_outlive_their_artifact() {
    let artifact = open(&artifact(embedded())).unwrap();
    let plan = artifact.plan(artifact.target_named("plain").unwrap()).unwrap().clone();
    let loaded = LoadedWeights::load(&artifact, &plan, WeightsFrom::Manifest, 1).unwrap();
    let expected = artifact.weight("qk").unwrap().to_vec();
    drop(artifact);
    assert_eq!((loaded.get(2), loaded.resident_bytes()), (Some(&expected[..]), 0));
}

#[test]
fn placed_weights_are_the_same_bytes_in_memory_that_was_chosen() {
    let (embedded, dummy) =
        (open(&artifact(embedded())).unwrap(), open(&artifact(Weights::Dummy { seed: 1 })).unwrap());
    let expected = load(&embedded, WeightsFrom::Manifest);
    for (artifact, made, choice) in
        [(&embedded, false, true), (&embedded, false, false), (&dummy, true, true), (&dummy, true, false)]
    {
        let plan = artifact.plan(artifact.target_named("plain").unwrap()).unwrap();
        let seen = Mutex::new(vec![]);
        let placing = |memory: &mut [u8], places: &[Range<usize>]| {
            assert!(memory.as_ptr().addr().is_multiple_of(4096) && memory.iter().all(|byte| *byte == 0));
            assert_eq!(places.last().unwrap().end, memory.len());
            seen.lock().unwrap().push((memory.as_ptr().addr(), places.to_vec()));
            choice
        };
        let loaded = LoadedWeights::load_placed(artifact, plan, WeightsFrom::Manifest, 3, Some(&placing)).unwrap();
        let [(start, places)] = &seen.lock().unwrap()[..] else { panic!("memory is chosen once") };
        let there = (0..places.len()).map(|i| loaded.get(i).unwrap().as_ptr().addr() == start + places[i].start);
        let anonymous = made || choice;
        assert!(there.clone().all(|there| there == anonymous));
        assert_eq!(loaded.resident_bytes(), if anonymous { places.last().unwrap().end as u64 } else { 0 });
        let found: Vec<Vec<u8>> = (0..places.len()).map(|i| loaded.get(i).unwrap().to_vec()).collect();
        assert_eq!(found, expected);
    }
}

#[test]
fn the_target_with_most_features_runs() {
    let artifact = open(&artifact(embedded())).unwrap();
    let name = |has: &dyn Fn(&str) -> bool| artifact.target(has).unwrap().name.clone();
    assert_eq!(name(&|_| true), "wide");
    assert_eq!(name(&|feature| feature == "avx2"), "plain");
}

fn files(dir: &Path) -> Vec<String> {
    fs::read_dir(dir).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn an_interrupted_artifact_leaves_nothing_and_the_old_one_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.rvllm");
    fs::write(&path, "old").unwrap();
    let (plan, manifest) = (plan(), manifest(embedded()));
    let weights: Vec<&Weight> = plan.weights.iter().collect();
    let mut writer = Writer::create(&path, &manifest, &entries(&plan)).unwrap();
    assert_eq!(files(dir.path()).len(), 2, "the temporary lies beside its destination");
    let error = writer.weights(WEIGHTS, &weights, &source(1), 1, &mut |_| ControlFlow::Break(())).unwrap_err();
    assert_eq!(error.to_string(), "interrupted");
    drop(writer);
    assert_eq!((files(dir.path()), fs::read(&path).unwrap()), (vec!["tiny.rvllm".to_string()], b"old".to_vec()));
}

#[test]
fn an_artifact_without_its_weights_is_not_finished() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.rvllm");
    let error = Writer::create(&path, &manifest(embedded()), &entries(&plan())).unwrap().finish().unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("no entry weights/model.safetensors, which manifest.json names · help: compile it again"),
        "{error}"
    );
    assert!(files(dir.path()).is_empty());
}

#[test]
fn a_directory_that_is_not_there_is_named() {
    let error = Writer::create(Path::new("/nonexistent/x.rvllm"), &manifest(embedded()), &[]).err().unwrap();
    assert!(error.to_string().starts_with("cannot write /nonexistent/x.rvllm: "), "{error}");
}

#[test]
fn a_sharded_checkpoint_reads_as_a_whole_one() {
    let (dir, whole) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let whole = checkpoint(whole.path(), 1);
    for (name, tensors) in [("a.safetensors", &NAMES[..2]), ("b.safetensors", &NAMES[2..])] {
        fs::write(dir.path().join(name), safetensors(&source(1), tensors)).unwrap();
    }
    let index =
        r#"{"metadata": {}, "weight_map": {"q.weight": "a.safetensors", "model.norm.weight": "b.safetensors"}}"#;
    fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    let sharded = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(sharded.names().collect::<Vec<_>>(), whole.names().collect::<Vec<_>>());
    assert_eq!(sharded.files().len(), 2);
    for name in NAMES {
        assert_eq!(sharded.tensor(name).unwrap(), whole.tensor(name).unwrap());
        assert_eq!(sharded.bytes(name, 8..32).unwrap(), whole.bytes(name, 8..32).unwrap());
    }
}

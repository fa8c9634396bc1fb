//! Whole compiles: what an artifact holds, that it depends on its inputs alone, and what bad inputs are told.

use anyhow::{Context, Result};
use rvllm_artifact::{Artifact, manifest::Weights};
use rvllm_compiler::{
    Error, Options, Progress, compile,
    options::{DTypeChoice, WeightsMode},
    progress::{Phase, Silent},
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};
use tempfile::TempDir;

const GOLDEN: &str = "llama-odd";

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens").join(name)
}

/// A copy of a golden in a directory of its own.
fn copy(into: &TempDir) -> Result<PathBuf> {
    let dir = into.path().join(GOLDEN);
    fs::create_dir(&dir)?;
    for file in ["config.json", "model.safetensors"] {
        fs::copy(golden(GOLDEN).join(file), dir.join(file))?;
    }
    Ok(dir)
}

/// Changes a key of a config.
fn edit(dir: &Path, key: &str, value: serde_json::Value) -> Result<()> {
    let path = dir.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path)?)?;
    config[key] = value;
    Ok(fs::write(path, config.to_string())?)
}

fn options(model: &Path, output: &Path) -> Options {
    Options { targets: vec!["x86-64-v4".into()], output: Some(output.into()), ..Options::new(model.to_string_lossy()) }
}

/// The error of a compile that leaves nothing behind.
fn refused(options: &Options) -> Error {
    let error = compile(options, &Silent).expect_err("the compile is refused");
    let directory = options.output.as_deref().and_then(Path::parent).expect("the test names an output");
    let files = fs::read_dir(directory).into_iter().flatten().flatten();
    assert_eq!(files.filter(|f| f.path().is_file()).count(), 0, "files are left after: {error}");
    error
}

#[test]
fn the_same_model_gives_the_same_bytes_from_any_directory() -> Result<()> {
    let dirs = [TempDir::new()?, TempDir::new()?];
    let mut artifacts = vec![];
    for (i, dir) in dirs.iter().enumerate() {
        let output = dir.path().join(format!("{i}.rvllm"));
        compile(&options(&copy(dir)?, &output), &Silent)?;
        artifacts.push(fs::read(output)?);
    }
    assert!(artifacts[0] == artifacts[1]);
    Ok(())
}

#[test]
fn an_artifact_holds_every_target_and_each_weight_once() -> Result<()> {
    let dir = TempDir::new()?;
    let output = dir.path().join("all.rvllm");
    let targets: Vec<String> =
        ["x86-64-v3", "x86-64-v4", "znver4", "sapphirerapids", "aarch64"].map(String::from).into();
    let options = Options { targets: targets.clone(), ..options(&golden(GOLDEN), &output) };
    let report = compile(&options, &Silent)?;
    let artifact = Artifact::open(&output)?;
    assert_eq!(report.bytes, fs::metadata(&output)?.len());
    assert_eq!(report.targets.len(), 5);
    let cache = &artifact.manifest().kv_cache;
    assert_eq!(report.kv_bytes_per_token, cache.bytes_per_block() / u64::from(cache.block_size));
    assert_eq!(artifact.manifest().model.name, GOLDEN);
    for name in &targets {
        let plan = artifact.plan(artifact.target_named(name)?)?;
        let launches = report.targets.iter().find(|t| t.name == *name).context("a report of the target")?.launches;
        assert_eq!(plan.launches.len(), launches);
    }
    Ok(())
}

#[test]
fn a_gpu_has_larger_steps_where_nobody_says_how_large() -> Result<()> {
    let dir = TempDir::new()?;
    let output = dir.path().join("a.rvllm");
    let limits = |target: &str, max_num_seqs| -> Result<[u32; 3]> {
        let targets = vec![target.to_string()];
        compile(&Options { targets, max_num_seqs, ..options(&golden(GOLDEN), &output) }, &Silent)?;
        let artifact = Artifact::open(&output)?;
        let plan = artifact.plan(artifact.target_named(target)?)?;
        Ok([plan.max_num_seqs, plan.max_logits, plan.max_num_batched_tokens])
    };
    assert_eq!(limits("sm_90a", None)?, [512, 512, 8192]);
    assert_eq!(limits("sm_90a", Some(8))?, [8, 256, 8192]);
    assert_eq!(limits("x86-64-v3", None)?, [256, 256, 512]);
    Ok(())
}

#[test]
fn weights_stay_where_they_are_told_to() -> Result<()> {
    let dir = TempDir::new()?;
    let output = dir.path().join("a.rvllm");
    let compiled = |weights, dummy_weights| -> Result<Weights> {
        compile(&Options { weights, dummy_weights, ..options(&golden(GOLDEN), &output) }, &Silent)?;
        Ok(Artifact::open(&output)?.manifest().weights.clone())
    };
    assert!(matches!(compiled(WeightsMode::Embed, None)?, Weights::Embed { .. }));
    assert!(matches!(compiled(WeightsMode::Embed, Some(3))?, Weights::Embed { .. }));
    assert_eq!(compiled(WeightsMode::None, None)?, Weights::None);
    assert_eq!(compiled(WeightsMode::None, Some(3))?, Weights::Dummy { seed: 3 });
    let Weights::External { path, files } = compiled(WeightsMode::External, None)? else { panic!("not external") };
    assert_eq!(Path::new(&path), golden(GOLDEN).canonicalize()?);
    assert_eq!(files.len(), 1);
    Ok(())
}

#[test]
fn a_checkpoint_of_another_shape_is_refused_with_both_shapes() -> Result<()> {
    let (dir, out) = (TempDir::new()?, TempDir::new()?);
    let model = copy(&dir)?;
    edit(&model, "intermediate_size", 80.into())?;
    let message = refused(&options(&model, &out.path().join("a.rvllm"))).to_string();
    assert!(message.contains("model.layers.0.mlp.down_proj.weight has shape [36, 84], expected [36, 80]"), "{message}");
    assert!(message.ends_with("and 1 more"), "{message}");
    edit(&model, "intermediate_size", 84.into())?;
    edit(&model, "attention_bias", true.into())?;
    let message = refused(&options(&model, &out.path().join("a.rvllm"))).to_string();
    assert!(message.contains("missing tensor model.layers.0.self_attn.k_proj.bias, expected [12]"), "{message}");
    Ok(())
}

#[test]
fn a_config_alone_needs_random_weights() -> Result<()> {
    let (dir, out) = (TempDir::new()?, TempDir::new()?);
    let model = copy(&dir)?;
    fs::remove_file(model.join("model.safetensors"))?;
    let options = options(&model, &out.path().join("a.rvllm"));
    let message = refused(&options).to_string();
    assert!(message.contains("--dummy-weights SEED"), "{message}");
    let report = compile(&Options { dummy_weights: Some(1), ..options }, &Silent)?;
    assert!(report.weight_bytes > report.parameters);
    Ok(())
}

#[test]
fn bad_options_name_what_is_possible() -> Result<()> {
    let out = TempDir::new()?;
    let good = options(&golden(GOLDEN), &out.path().join("a.rvllm"));
    let message = |options: Options| refused(&options).to_string();
    let long = message(Options { max_model_len: Some(129), ..good.clone() });
    assert_eq!(long, "--max-model-len 129 is longer than the model's 128 positions");
    assert!(
        message(Options { max_num_seqs: Some(0), ..good.clone() }).starts_with("--max-num-seqs is 0, expected 1 to")
    );
    assert!(message(Options { targets: vec!["z80".into()], ..good.clone() }).contains("one of sapphirerapids"));
    assert!(
        message(Options { model: "no/such/model".into(), ..good.clone() }).contains("no directory `no/such/model`")
    );
    let both = Options { weights: WeightsMode::External, dummy_weights: Some(1), ..good.clone() };
    assert!(message(both).contains("--weights external names a checkpoint"));
    let nowhere = Options { output: Some(out.path().join("no/such/dir/a.rvllm")), ..good };
    assert!(refused(&nowhere).to_string().contains("no/such/dir"));
    Ok(())
}

/// Stops when a phase begins.
struct StopAt(Phase, std::sync::atomic::AtomicBool);

impl Progress for StopAt {
    fn phase(&self, phase: Phase, _total: u64) {
        self.1.fetch_or(phase == self.0, std::sync::atomic::Ordering::SeqCst);
    }

    fn cancelled(&self) -> bool {
        self.1.load(std::sync::atomic::Ordering::SeqCst)
    }
}

/// Odd sizes have tails of every kind, for which LLVM must not call what no library brings.
#[test]
fn every_target_links_in_both_types() -> Result<()> {
    let out = TempDir::new()?;
    for target in rvllm_targets::all().into_iter().filter(|t| t.gpu.is_none()) {
        for dtype in [DTypeChoice::Bf16, DTypeChoice::F32] {
            let path = out.path().join(format!("{}.{dtype:?}.rvllm", target.name));
            let targets = vec![target.name.clone()];
            let options = Options { targets, dtype, weights: WeightsMode::None, ..options(&golden(GOLDEN), &path) };
            compile(&options, &Silent).with_context(|| format!("{} in {dtype:?}", target.name))?;
            let artifact = Artifact::open(&path)?;
            assert!(artifact.kernels(artifact.target_named(&target.name)?)?.starts_with(b"\x7fELF"), "{}", target.name);
        }
    }
    Ok(())
}

#[test]
fn a_stopped_compile_leaves_nothing() -> Result<()> {
    for phase in [Phase::Kernels, Phase::Weights] {
        let out = TempDir::new()?;
        let error = compile(&options(&golden(GOLDEN), &out.path().join("a.rvllm")), &StopAt(phase, false.into()));
        assert!(matches!(error, Err(Error::Interrupted)), "{phase}: {error:?}");
        assert_eq!(fs::read_dir(out.path())?.count(), 0, "{phase}");
    }
    Ok(())
}

/// Runs the command with a cache of its own.
fn command(cache: &TempDir, args: &[&str]) -> Result<Output> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rvllm-compile"));
    Ok(command
        .env("XDG_CACHE_HOME", cache.path())
        .env("HF_HUB_OFFLINE", "1")
        .current_dir(cache.path())
        .args(args)
        .output()?)
}

fn last_line(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().last().unwrap_or_default().to_string()
}

#[test]
fn the_cache_is_keyed_by_content() -> Result<()> {
    let (cache, dir) = (TempDir::new()?, TempDir::new()?);
    let model = copy(&dir)?;
    let name = model.to_string_lossy();
    let args = [&*name, "--target", "x86-64-v4", "--cache"];
    let first = last_line(&command(&cache, &args)?);
    Artifact::open(Path::new(&first))?;
    let json = command(&cache, &[args.as_slice(), &["--json"]].concat())?;
    let again: serde_json::Value = serde_json::from_slice(&json.stdout)?;
    assert_eq!((again["path"].as_str(), again["cached"].as_bool()), (Some(first.as_str()), Some(true)));
    let mut bytes = fs::read(model.join("model.safetensors"))?;
    *bytes.last_mut().context("bytes")? ^= 1;
    fs::write(model.join("model.safetensors"), bytes)?;
    assert_ne!(last_line(&command(&cache, &args)?), first);
    let other = [args.as_slice(), &["--max-num-seqs", "8"]].concat();
    assert_ne!(last_line(&command(&cache, &other)?), first);
    Ok(())
}

#[test]
fn dumps_go_to_stdout_and_write_no_artifact() -> Result<()> {
    let dir = TempDir::new()?;
    let model = golden(GOLDEN);
    let args = [&*model.to_string_lossy(), "--target", "x86-64-v3", "--emit", "graph,fused,tile"];
    let output = command(&dir, &args)?;
    let text = String::from_utf8(output.stdout)?;
    for part in [
        "// graph: llama\ngraph @llama",
        "// fused: llama\n",
        "call @paged_attention",
        "// tile: x86-64-v3.gemm_f32_t1",
    ] {
        assert!(text.contains(part), "no `{part}` in\n{text}");
    }
    assert_eq!(fs::read_dir(dir.path())?.count(), 0);
    Ok(())
}

#[test]
fn a_hub_id_that_is_not_cached_says_so_offline() -> Result<()> {
    let output = command(&TempDir::new()?, &["no-such-org/no-such-model"])?;
    let message = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(1));
    assert!(message.contains("hub model no-such-org/no-such-model: not in the hub's cache"), "{message}");
    Ok(())
}

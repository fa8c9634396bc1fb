//! A model compiled for this machine, and requests run through the engine to their end.

use anyhow::{Context, Result, ensure};
use rvllm_artifact::Artifact;
use rvllm_engine::{Engine, EngineOptions, Logprobs, SamplingParams};
use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// The workspace's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// A model compiled into a directory that goes when this does.
pub struct Compiled {
    /// The artifact.
    pub artifact: Artifact,
    /// Where it lies.
    pub path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Compiled {
    /// Compiles the checkpoint below the workspace's root for `target`.
    pub fn new(
        model: &str,
        dtype: rvllm_compiler::options::DTypeChoice,
        target: &str,
        max_model_len: Option<usize>,
    ) -> Result<Compiled> {
        Compiled::with(rvllm_compiler::Options {
            targets: vec![target.to_string()],
            dtype,
            max_model_len,
            ..rvllm_compiler::Options::new(root().join(model).display().to_string())
        })
    }

    /// Compiles what `options` say, but for where the artifact goes.
    pub fn with(options: rvllm_compiler::Options) -> Result<Compiled> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("model.rvllm");
        let options = rvllm_compiler::Options { output: Some(path.clone()), ..options };
        rvllm_compiler::compile(&options, &rvllm_compiler::progress::Silent)
            .with_context(|| format!("compiling {}", options.model))?;
        let artifact = Artifact::open(&path)?;
        Ok(Compiled { artifact, path, _dir: dir })
    }

    /// An engine on it.
    pub fn engine(&self, options: EngineOptions) -> Result<Engine> {
        Ok(Engine::load(&self.artifact, options)?)
    }
}

/// The command beside the test binaries: `cargo test --workspace` builds it.
pub fn command(name: &str) -> Result<Command> {
    let exe = env::current_exe()?;
    let dir = exe.parent().and_then(Path::parent).context("test binaries lie in target/PROFILE/deps")?;
    let path = dir.join(name);
    ensure!(path.is_file(), "{} is missing · help: cargo build -p rvllm -p rvllm-compiler", path.display());
    Ok(Command::new(path))
}

/// The whole answer of one sequence.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// One per token.
    pub logprobs: Vec<Logprobs>,
    /// One per token of the prompt, `None` first.
    pub prompt_logprobs: Vec<Option<Logprobs>>,
    /// Its text.
    pub text: String,
    /// How often the request was preempted.
    pub preemptions: u32,
}

/// Runs all requests at once; answers in their order (the first sequence of each).
pub fn answers(engine: &mut Engine, requests: &[(Vec<u32>, SamplingParams)]) -> Result<Vec<Answer>> {
    for (id, (prompt, params)) in requests.iter().enumerate() {
        engine.add_request(id as u64, prompt.clone(), params.clone())?;
    }
    let mut all = vec![Answer::default(); requests.len()];
    while engine.has_unfinished() {
        for output in engine.step()? {
            let answer = &mut all[output.request_id as usize];
            answer.prompt_logprobs.extend(output.prompt_logprobs.into_iter().flatten());
            answer.preemptions = output.finished.map_or(answer.preemptions, |m| m.num_preemptions);
            for sequence in output.sequences.into_iter().filter(|s| s.index == 0) {
                answer.tokens.extend(sequence.token_ids);
                answer.logprobs.extend(sequence.logprobs);
                answer.text.push_str(&sequence.text);
            }
        }
    }
    Ok(all)
}

/// Greedy parameters for exactly `tokens` tokens with the top twenty log-probabilities.
pub fn greedy(tokens: u32) -> SamplingParams {
    SamplingParams {
        temperature: 0.0,
        max_tokens: Some(tokens),
        ignore_eos: true,
        logprobs: Some(20),
        detokenize: false,
        ..SamplingParams::default()
    }
}

/// Log-probability that `at` reports for a token.
pub fn logprob(at: &Logprobs, token: u32) -> Option<f32> {
    at.iter().find(|l| l.token_id == token).map(|l| l.logprob)
}

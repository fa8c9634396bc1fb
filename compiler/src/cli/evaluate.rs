//! `--eval-text`: scores the artifact that was just written, with `rvllm eval perplexity`, and keeps the report in it.
//!
//! Why another program: this one compiles and holds no engine. Everything that can be told to be missing is told before the
//! model is compiled.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::{
    env,
    fs::File,
    path::{Path, PathBuf},
    process::{Command, ExitCode, ExitStatus, Stdio},
};

/// Name of the program that scores.
const RUNTIME: &str = "rvllm";

/// A text to be scored.
#[derive(Debug)]
pub(super) struct Evaluation {
    program: PathBuf,
    text: PathBuf,
    /// What the artifact is compared with, and the flags of both.
    args: Vec<String>,
}

impl Evaluation {
    /// Scoring of `text`, compared with the model `reference` where there is one; both are of the element type `dtype`.
    ///
    /// # Errors
    /// The text cannot be read, or there is no program to score it with.
    pub(super) fn new(text: &Path, reference: Option<&str>, dtype: Option<&str>) -> Result<Evaluation> {
        let is_file = File::open(text).and_then(|file| file.metadata()).map(|m| m.is_file());
        if !is_file.with_context(|| format!("cannot read {}, which --eval-text names", text.display()))? {
            bail!("--eval-text {} is no file · help: name a text in UTF-8", text.display());
        }
        let args = [("--reference", reference), ("--dtype", dtype)];
        let args = args.into_iter().filter_map(|(flag, value)| Some([flag.to_string(), value?.to_string()]));
        Ok(Evaluation { program: find_runtime()?, text: text.into(), args: args.flatten().collect() })
    }

    /// Scores the artifact; the report goes to stdout.
    pub(super) fn show(&self, artifact: &Path) -> Result<ExitCode> {
        let status = self.command(artifact)?.status().with_context(|| self.cannot_run())?;
        Ok(exit_code(status))
    }

    /// Scores the artifact; the report, or the exit code of a failure that was told.
    pub(super) fn report(&self, artifact: &Path) -> Result<Result<Value, ExitCode>> {
        let child = self.command(artifact)?.arg("--json").stdout(Stdio::piped()).spawn();
        let output = child.and_then(|child| child.wait_with_output()).with_context(|| self.cannot_run())?;
        if !output.status.success() {
            return Ok(Err(exit_code(output.status)));
        }
        Ok(Ok(serde_json::from_slice(&output.stdout).context("rvllm eval perplexity printed no report")?))
    }

    fn command(&self, artifact: &Path) -> Result<Command> {
        let mut command = Command::new(&self.program);
        command.args(["eval", "perplexity"]).arg(artifact).arg(&self.text).arg("--store").args(&self.args);
        // the reference is compiled by this very compiler
        command.env("RVLLM_COMPILE", env::current_exe().context("cannot tell where rvllm-compile is")?);
        Ok(command)
    }

    fn cannot_run(&self) -> String {
        format!("cannot run {}", self.program.display())
    }
}

fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    code.map_or(ExitCode::FAILURE, ExitCode::from)
}

/// `RVLLM`, else beside this program, else on the PATH.
fn find_runtime() -> Result<PathBuf> {
    if let Some(program) = env::var_os("RVLLM") {
        return Ok(program.into());
    }
    let beside = env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(RUNTIME)));
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path).map(|dir| dir.join(RUNTIME)).collect::<Vec<_>>();
    beside.into_iter().chain(on_path).find(|p| p.is_file()).context(
        "--eval-text scores with rvllm, which is neither beside rvllm-compile nor on the PATH · help: install it, or name it \
         with RVLLM",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_text_is_told_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let missing = Evaluation::new(&dir.path().join("text.txt"), None, None).unwrap_err();
        assert!(format!("{missing:#}").contains("which --eval-text names"), "{missing:#}");
        let directory = Evaluation::new(dir.path(), None, None).unwrap_err();
        assert!(directory.to_string().contains("is no file"), "{directory}");
    }
}

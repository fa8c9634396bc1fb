//! The command: `rvllm compile`, which the `rvllm` binary runs as `rvllm-compile`.
//!
//! Invariants:
//! - results go to stdout, progress and errors to stderr;
//! - the exit code is 0, 1 for a failed compile, 2 for wrong arguments, 130 when interrupted.

mod evaluate;
mod machine;
mod show;
mod watch;

use crate::{
    Error, Options,
    cache::compile_cached,
    options::{DTypeChoice, KvCacheChoice, QuantizeChoice, Stage, WeightsMode},
    report::Report,
};
use clap::{Args, Parser, Subcommand, ValueEnum};
use evaluate::Evaluation;
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};
use watch::Watch;

/// Compile a model ahead of time into one artifact.
///
/// The artifact holds the kernels of every target, the execution plan, the weights as kernels read them, and the
/// tokenizer: everything that `rvllm generate` and `rvllm run` need.
#[derive(Debug, Parser)]
#[command(name = "rvllm compile", bin_name = "rvllm compile", version)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    compile: Compile,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What this machine is, and which targets run on it.
    Targets {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
struct Compile {
    /// Directory with config.json and safetensors, or hub id (org/name).
    #[arg(required = true)]
    model: Option<String>,
    /// Targets, comma separated; `rvllm targets` lists them.
    #[arg(long, value_name = "T[,T2]", value_delimiter = ',', default_value = "native")]
    target: Vec<String>,
    /// Artifact to write [default: NAME.TARGET.rvllm].
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Element type of activations and weights; auto is bf16 for checkpoints in bf16 or f16, f32 for those in f32.
    #[arg(long, value_enum, default_value_t = DTypeArg::Auto)]
    dtype: DTypeArg,
    /// Element type of the KV cache; auto is that of activations. fp8 (e4m3) and int8 have a scale for each token and KV head, half
    /// the bytes of bf16 and a little more; bf16 and f16 halve the cache of a model in f32.
    #[arg(long, value_enum, default_value_t = KvCacheArg::Auto)]
    kv_cache_dtype: KvCacheArg,
    /// Quantise the weights of all matrix products and the activations that they meet: int8 has a scale for each output,
    /// int4 an f16 scale for 32 inputs of an output (4.5 bits a weight), both with int8 activations, but int4 on GPUs with
    /// activations as they are; fp8, for GPUs, has e4m3
    /// weights with a scale for each output and e4m3 activations, and leaves the product that gives logits as it is.
    /// Activations have a scale for each token. Weights that the checkpoint stores with as few bits stay as they are. Without
    /// this flag, products with weights that are stored quantised are computed so; with none, such weights are widened.
    #[arg(long, value_enum, value_name = "SCHEME")]
    quantize: Option<QuantizeArg>,
    /// Longest sequence, prompt and answer together [default: the model's max_position_embeddings].
    #[arg(long, value_name = "N")]
    max_model_len: Option<usize>,
    /// Most tokens of a step; the arena grows with it [default: max-model-len, but 512 to 2048;
    /// on GPUs 8192].
    #[arg(long, value_name = "N")]
    max_num_batched_tokens: Option<usize>,
    /// Most sequences of a step [default: 256, on GPUs 512].
    #[arg(long, value_name = "N")]
    max_num_seqs: Option<usize>,
    /// Most rows of logits of a step [default: max-num-seqs, at least 256, but on CPUs fewer for large
    /// vocabularies].
    #[arg(long, value_name = "N")]
    max_logits: Option<usize>,
    /// Where the weights go: into the artifact; left in the checkpoint, whose absolute path the artifact keeps; or
    /// nowhere.
    #[arg(long, value_enum, default_value_t = WeightsArg::Embed)]
    weights: WeightsArg,
    /// Random weights from this seed instead of a checkpoint's, for measuring.
    #[arg(long, value_name = "SEED")]
    dummy_weights: Option<u64>,
    /// Expected outputs for `rvllm verify` [default: the model's goldens.json].
    #[arg(long, value_name = "FILE")]
    goldens: Option<PathBuf>,
    /// Score the artifact on this text after compiling, with `rvllm eval perplexity`, and keep the report in it; with
    /// --quantize in comparison with the model as it is, which is compiled into the cache.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["cache", "dummy_weights"])]
    eval_text: Option<PathBuf>,
    /// Dump stages: graph, fused, tile, mlir, llvm, asm. Without -o no artifact is written.
    #[arg(long, value_name = "STAGE[,STAGE]", value_delimiter = ',')]
    emit: Vec<Stage>,
    /// Directory for the dumps, one file each [default: all to stdout].
    #[arg(long, value_name = "DIR", requires = "emit")]
    emit_dir: Option<PathBuf>,
    /// Compile into the cache, keyed by content, unless it is there; the last line of the output is the path.
    #[arg(long, conflicts_with_all = ["output", "emit"])]
    cache: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Show no progress.
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DTypeArg {
    Auto,
    Bf16,
    F32,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum KvCacheArg {
    Auto,
    #[value(alias = "bfloat16")]
    Bf16,
    #[value(alias = "float16")]
    F16,
    #[value(alias = "float32")]
    F32,
    #[value(aliases = ["fp8_e4m3", "fp8_per_token_head"])]
    Fp8,
    #[value(alias = "int8_per_token_head")]
    Int8,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum QuantizeArg {
    Int8,
    Int4,
    Fp8,
    None,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum WeightsArg {
    Embed,
    External,
    None,
}

impl Compile {
    fn options(&self) -> Options {
        Options {
            model: self.model.clone().unwrap_or_default(),
            targets: self.target.clone(),
            output: self.output.clone(),
            dtype: match self.dtype {
                DTypeArg::Auto => DTypeChoice::Auto,
                DTypeArg::Bf16 => DTypeChoice::Bf16,
                DTypeArg::F32 => DTypeChoice::F32,
            },
            kv_cache_dtype: match self.kv_cache_dtype {
                KvCacheArg::Auto => KvCacheChoice::Auto,
                KvCacheArg::Bf16 => KvCacheChoice::Bf16,
                KvCacheArg::F16 => KvCacheChoice::F16,
                KvCacheArg::F32 => KvCacheChoice::F32,
                KvCacheArg::Fp8 => KvCacheChoice::Fp8,
                KvCacheArg::Int8 => KvCacheChoice::Int8,
            },
            quantize: self.quantize.and_then(|choice| match choice {
                QuantizeArg::Int8 => Some(QuantizeChoice::Int8),
                QuantizeArg::Int4 => Some(QuantizeChoice::Int4),
                QuantizeArg::Fp8 => Some(QuantizeChoice::Fp8),
                QuantizeArg::None => None,
            }),
            as_stored: !matches!(self.quantize, Some(QuantizeArg::None)),
            max_model_len: self.max_model_len,
            max_num_batched_tokens: self.max_num_batched_tokens,
            max_num_seqs: self.max_num_seqs,
            max_logits: self.max_logits,
            weights: match self.weights {
                WeightsArg::Embed => WeightsMode::Embed,
                WeightsArg::External => WeightsMode::External,
                WeightsArg::None => WeightsMode::None,
            },
            dummy_weights: self.dummy_weights,
            goldens: self.goldens.clone(),
            emit: self.emit.clone(),
            artifact: self.emit.is_empty() || self.output.is_some(),
        }
    }

    fn run(&self) -> anyhow::Result<ExitCode> {
        let evaluation = self.evaluation()?;
        let watch = Watch::new(self.quiet, self.emit_dir.clone())?;
        let options = self.options();
        if self.cache {
            let cached = compile_cached(&options, &watch)?;
            watch.clear();
            show::cached(&cached, self.json)?;
            return Ok(ExitCode::SUCCESS);
        }
        let report = crate::compile(&options, &watch)?;
        watch.clear();
        match (evaluation, &report.artifact) {
            (Some(evaluation), Some(artifact)) => self.evaluated(&report, &evaluation, artifact),
            _ => self.show(&report, None),
        }
    }

    /// What `--eval-text` asks for.
    fn evaluation(&self) -> anyhow::Result<Option<Evaluation>> {
        let Some(text) = &self.eval_text else { return Ok(None) };
        if !self.options().artifact || !matches!(self.weights, WeightsArg::Embed | WeightsArg::External) {
            anyhow::bail!("--eval-text scores an artifact with weights · help: write one with -o and --weights embed");
        }
        let reference = self.options().quantize.and(self.model.as_deref());
        let dtype = self.dtype.to_possible_value().filter(|_| !matches!(self.dtype, DTypeArg::Auto));
        Evaluation::new(text, reference, dtype.as_ref().map(|d| d.get_name())).map(Some)
    }

    fn evaluated(&self, report: &Report, evaluation: &Evaluation, artifact: &Path) -> anyhow::Result<ExitCode> {
        if self.json {
            let scored = evaluation.report(artifact)?;
            self.show(report, scored.as_ref().ok())?;
            return Ok(scored.err().unwrap_or(ExitCode::SUCCESS));
        }
        self.show(report, None)?;
        evaluation.show(artifact)
    }

    /// Prints what came of a compile, unless dumps go where it would.
    fn show(&self, report: &Report, evaluation: Option<&serde_json::Value>) -> anyhow::Result<ExitCode> {
        if self.emit.is_empty() || self.emit_dir.is_some() {
            show::report(report, evaluation, self.json)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Some(Command::Targets { json }) => machine::show(json).map(|()| ExitCode::SUCCESS),
        None => cli.compile.run(),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            let (message, help) = rvllm_artifact::explain(error.as_ref());
            eprintln!("error: {message}");
            help.iter().for_each(|help| eprintln!("help: {help}"));
            ExitCode::from(if matches!(error.downcast_ref(), Some(Error::Interrupted)) { 130 } else { 1 })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn dumps_alone_write_no_artifact() {
        let options =
            |args: &[&str]| Cli::try_parse_from([&["rvllm-compile"], args].concat()).unwrap().compile.options();
        assert!(options(&["m"]).artifact);
        assert!(!options(&["m", "--emit", "graph,asm"]).artifact);
        assert!(options(&["m", "--emit", "tile", "-o", "a.rvllm"]).artifact);
        assert_eq!(options(&["m", "--target", "x86-64-v3,native"]).targets, ["x86-64-v3", "native"]);
    }

    #[test]
    fn targets_need_no_model() {
        assert!(Cli::try_parse_from(["rvllm-compile", "targets", "--json"]).is_ok());
        assert!(Cli::try_parse_from(["rvllm-compile"]).is_err());
    }
}

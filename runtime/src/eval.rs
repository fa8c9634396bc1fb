//! `rvllm eval perplexity`: how well a model foretells a text, and how far its distributions are from another model's.
//!
//! The text is tokenised once, cut into windows, and each window is scored alone, behind the tokens with which the
//! tokenizer begins a text. With a stride below the window's size windows overlap, and each token is scored once, in
//! the first window that holds it.
//!
//! - perplexity: `exp` of the mean negative log-likelihood of the scored tokens;
//! - divergence: Kullback–Leibler, of the reference's distribution from the model's, in nats, over the whole vocabulary.
//!
//! Invariants: the same model, text and flags give the same report, byte for byte: it names no file and no time.

mod divergence;
mod report;
mod window;

use crate::{
    bench::write_whole,
    cli,
    error::{Failure, note},
    interrupt,
    model::{self, Session},
};
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use divergence::Divergence;
use indicatif::{ProgressBar, ProgressStyle};
pub use report::ENTRY;
use report::{Compared, Report, Score};
use rvllm_artifact::Artifact;
use rvllm_engine::{Engine, Scored, Scoring};
use std::{
    collections::VecDeque,
    fs,
    path::{Path, PathBuf},
    sync::atomic::Ordering,
};
use window::{Window, windows};

/// Longest window that is chosen by itself.
const CTX_SIZE: usize = 2048;

/// `rvllm eval`
#[derive(Subcommand, Debug)]
pub enum Eval {
    /// Score a text: perplexity, and the divergence from another model
    Perplexity(Box<Perplexity>),
}

/// `rvllm eval perplexity`
#[derive(Args, Debug)]
pub struct Perplexity {
    /// An artifact, or a model (directory or hub id), which is compiled into a cache first
    #[arg(value_name = "ARTIFACT|MODEL")]
    pub model: String,
    /// The text, in UTF-8
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Compare with this one, of the same vocabulary: the model before it was quantised
    #[arg(long, value_name = "ARTIFACT|MODEL")]
    pub reference: Option<String>,
    /// Tokens of a window [default: the model's length, at most 2048]
    #[arg(short, long, value_name = "N")]
    pub ctx_size: Option<usize>,
    /// Tokens from one window to the next; fewer give each scored token more before it [default: the window's]
    #[arg(long, value_name = "N")]
    pub stride: Option<usize>,
    /// Score this many windows at most
    #[arg(long, value_name = "N")]
    pub chunks: Option<usize>,
    /// Write the report as JSON
    #[arg(short, long, value_name = "FILE.json")]
    pub output: Option<PathBuf>,
    /// Put the report into the artifact, where `rvllm inspect` shows it
    #[arg(long)]
    pub store: bool,
    /// Print the report as JSON instead
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group has no help of its own")]
    pub engine: cli::Engine,
}

/// Runs the command.
///
/// # Errors
/// A flag is wrong, the text cannot be read, or a model does not load or compute.
pub fn run(eval: &Eval) -> Result<()> {
    let Eval::Perplexity(args) = eval;
    let text = fs::read_to_string(&args.file).with_context(|| format!("cannot read {}", args.file.display()))?;
    let path = model::resolve(&args.model, &args.engine, args.json)?;
    if args.store && matches!(model::tell(&args.model)?, model::Named::Model(_)) {
        return Err(Failure::usage("--store wants an artifact").help("rvllm compile MODEL -o FILE first").into());
    }
    let report = report(args, &text, &path)?;
    let json = serde_json::to_string_pretty(&report)? + "\n";
    if let Some(output) = &args.output {
        write_whole(output, json.as_bytes())?;
        note(&format!("the report is in {}", output.display()));
    }
    if args.store {
        Artifact::open(&path)?.with_entry(ENTRY, json.as_bytes(), &path)?;
        note(&format!("the report is in {} as {}", path.display(), ENTRY));
    }
    print!("{}", if args.json { json } else { report.to_string() });
    Ok(())
}

/// Scores `text` with the artifact at `path`, and with the reference where there is one.
fn report(args: &Perplexity, text: &str, path: &Path) -> Result<Report> {
    let ctx_size = ctx_size(args, path)?;
    let mut session = open(path, &args.engine, ctx_size)?;
    let reference = args.reference.as_ref().map(|name| model::resolve(name, &args.engine, args.json)).transpose()?;
    let mut reference = reference.map(|path| open(&path, &args.engine, ctx_size)).transpose()?;
    if let Some(reference) = &reference {
        check_same_vocabulary(&session, reference)?;
    }
    let tokenizer = session.engine.tokenizer().context("the artifact has no tokenizer, so no text can be scored")?;
    let (start, tokens) = (tokenizer.encode("", true)?, tokenizer.encode(text, false)?);
    let stride = args.stride.unwrap_or(usize::MAX);
    let all = windows(&start, tokens.len(), ctx_size, stride).map_err(Failure::usage)?;
    let windows = &all[..all.len().min(args.chunks.unwrap_or(usize::MAX))];
    if windows.iter().all(|w| w.scored() == 0) {
        return Err(Failure::usage(format!("{} has no token to score", args.file.display())).into());
    }
    let bar = bar(windows.len(), !args.json);
    let (mut score, mut compared) = (Score::default(), Compared::default());
    let stop = interrupt::flag()?;
    for window in windows {
        let ids = window.token_ids(&start, &tokens);
        match &mut reference {
            None => score_window(&mut session.engine, window, &ids, &mut score)?,
            Some(other) => {
                compare_window([&mut session.engine, &mut other.engine], window, &ids, &mut score, &mut compared)?;
            }
        }
        if stop.load(Ordering::Relaxed) {
            return Err(Failure::interrupted("interrupted").into());
        }
        bar.inc(1);
        bar.set_message(format!("perplexity {:.4}", score.perplexity()));
    }
    bar.finish_and_clear();
    let text = report::Text::new(text, tokens.len(), ctx_size, stride.min(ctx_size - start.len()), windows.len());
    Ok(Report::new(&session.artifact, text, &score, reference.as_ref().map(|r| (&r.artifact, &compared))))
}

/// One sequence at a time needs no larger KV cache.
fn open(path: &Path, options: &cli::Engine, ctx_size: usize) -> Result<Session> {
    Session::open_artifact_with(path, options, |artifact, options| {
        let block_size = artifact.manifest().kv_cache.block_size as usize;
        options.num_blocks = Some(ctx_size.div_ceil(block_size) as u32);
        options.max_model_len = Some(ctx_size as u32);
        options.kv_cache_memory_bytes = None;
    })
}

fn ctx_size(args: &Perplexity, path: &Path) -> Result<usize> {
    let compiled = Artifact::open(path)?.manifest().model.max_model_len as usize;
    let most = args.engine.longest().map_or(compiled, |n| compiled.min(n as usize));
    match args.ctx_size {
        None => Ok(most.min(CTX_SIZE)),
        Some(n) if (2..=most).contains(&n) => Ok(n),
        Some(n) => Err(Failure::usage(format!("--ctx-size {n}, but the model takes 2 to {most} tokens")).into()),
    }
}

fn check_same_vocabulary(session: &Session, reference: &Session) -> Result<()> {
    let of = |s: &Session| s.engine.tokenizer().map(|t| t.encode("The same text, 12 tokens?\n", true)).transpose();
    let sizes = [session, reference].map(|s| s.artifact.manifest().model.vocab_size);
    if sizes[0] == sizes[1] && of(session)? == of(reference)? {
        return Ok(());
    }
    let [ours, theirs] = [session, reference].map(|s| s.artifact.manifest().model.name.clone());
    let what = format!("{ours} and {theirs} do not share a vocabulary ({} and {} tokens)", sizes[0], sizes[1]);
    Err(Failure::usage(what).help("--reference is the same model in another form").into())
}

fn score_window(engine: &mut Engine, window: &Window, ids: &[u32], score: &mut Score) -> Result<()> {
    let mut scoring = engine.score(ids)?;
    while let Some(Scored { first, rows, logits }) = scoring.next_rows()? {
        for i in (0..rows).filter(|i| window.scores(first + i + 1)) {
            let row = logits.row(i);
            score.add(row.logits[ids[first + i + 1] as usize] - row.logsumexp);
        }
    }
    Ok(())
}

fn compare_window(
    [engine, reference]: [&mut Engine; 2],
    window: &Window,
    ids: &[u32],
    score: &mut Score,
    compared: &mut Compared,
) -> Result<()> {
    let (mut scoring, mut reference) = (engine.score(ids)?, Ahead { scoring: reference.score(ids)?, rows: [].into() });
    while let Some(Scored { first, rows, logits }) = scoring.next_rows()? {
        for i in 0..rows {
            let theirs = reference.next()?;
            if !window.scores(first + i + 1) {
                continue;
            }
            let (row, token) = (logits.row(i), ids[first + i + 1] as usize);
            score.add(row.logits[token] - row.logsumexp);
            compared.add(theirs.logits[token] - theirs.logsumexp, Divergence::of(&theirs, &row));
        }
    }
    Ok(())
}

/// A row, held while the other model gets to its position.
struct Held {
    logits: Vec<f32>,
    logsumexp: f32,
}

/// The reference's rows, at most one chunk ahead of the model's.
struct Ahead<'e> {
    scoring: Scoring<'e>,
    rows: VecDeque<Held>,
}

impl Ahead<'_> {
    fn next(&mut self) -> Result<Held> {
        if self.rows.is_empty() {
            let Scored { rows, logits, .. } = self.scoring.next_rows()?.context("the reference has scored all")?;
            let held = |i| Held { logits: logits.row(i).logits.to_vec(), logsumexp: logits.row(i).logsumexp };
            self.rows.extend((0..rows).map(held));
        }
        self.rows.pop_front().context("the reference gave no row")
    }
}

fn bar(windows: usize, wanted: bool) -> ProgressBar {
    // Drawn on stderr, and only where that is a terminal.
    let bar = if wanted { ProgressBar::new(windows as u64) } else { ProgressBar::hidden() };
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} windows · {msg} · {eta} left");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

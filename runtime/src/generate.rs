//! `rvllm generate`: prompts in, answers out.
//!
//! Invariants:
//! - every prompt is read, turned into tokens and checked before the first one is answered;
//! - nothing is written before that, and nothing that was finished is lost after.

use crate::{
    cli,
    destination::Destination,
    drive::{Request, Steps, Tally, drive},
    encode::Encoder,
    error::{Failure, message, note},
    fingerprint::{self, Hash},
    input::{self, BadLine, Line, Prompt},
    interrupt,
    model::Session,
    progress::Progress,
    sink::{Kept, Sink},
};
use anyhow::Result;
use rvllm_engine::SamplingParams;
use std::{panic, thread, time::Instant};

/// `max_tokens` where neither a flag, a line nor the checkpoint says one.
const MAX_TOKENS: u32 = 256;
/// Prompts below which turning them into tokens is not worth another thread.
const PROMPTS_PER_THREAD: usize = 32;

/// Runs the command. `start` is when the program started.
pub fn run(args: &cli::Generate, start: Instant) -> Result<()> {
    let given = Given::read(args)?;
    let destination = Destination::of(args)?;
    let mut session = Session::open(&args.model, &args.engine, args.quiet)?;
    let defaults = session.defaults(&args.sampling, &args.generation_config, Some(MAX_TOKENS))?;
    let requests = prepare(&session, &given, &defaults)?;
    let header = fingerprint::header(&session.artifact, &args.engine, given.hash.clone(), &requests)?;
    let mut sink = destination.open(&header, args.resume, || given.headings())?;
    let total = requests.len();
    let remaining: Vec<Request> = requests.into_iter().filter(|r| !sink.has(r.index)).collect();
    if let Err(bad) = queue(&mut session.engine, &remaining, |index| given.lines[index].place) {
        sink.interrupt()?;
        return Err(input::refuse(&given.source, &bad).into());
    }
    let wanted = !args.quiet && destination.leaves_the_terminal_free();
    let mut progress = Progress::new(wanted, total, total - remaining.len());
    let tally = drive(&mut session.engine, &remaining, &mut *sink, &mut progress, interrupt::flag()?);
    progress.clear();
    let tally = close(tally, sink, total)?;
    if !args.quiet {
        note(&tally.line(start));
    }
    Ok(())
}

/// Ends a run: what has finished is whole, and what has not can be taken up again.
fn close(tally: Result<Tally>, sink: Box<dyn Sink>, total: usize) -> Result<Tally> {
    match tally {
        Ok(tally) if !tally.interrupted => sink.close().map(|()| tally),
        Ok(_) => Err(interrupted(sink.interrupt()?, total).into()),
        Err(error) => {
            // The first failure is the one to tell; what the sink holds is on its way to the disk already.
            let _ = sink.interrupt();
            Err(error)
        }
    }
}

fn interrupted(kept: Option<Kept>, total: usize) -> Failure {
    match kept {
        Some(Kept { answers, path }) => {
            let path = path.display();
            Failure::interrupted(format!("interrupted: {answers} of {total} answers are in {path}"))
                .help("the same command with --resume computes the others")
        }
        None => Failure::interrupted("interrupted"),
    }
}

/// The prompts as they were given.
struct Given {
    lines: Vec<Line>,
    /// Of all prompts, as the user wrote them.
    hash: String,
    /// What messages call them.
    source: String,
}

impl Given {
    fn read(args: &cli::Generate) -> Result<Given> {
        let mut lines = input::from_flags(&args.prompt, args.chat);
        let mut hash = Hash::default();
        args.prompt.iter().for_each(|p| hash.add(p.as_bytes()));
        let source = args.input.as_ref().map_or("--prompt".into(), |path| path.display().to_string());
        if let Some(path) = &args.input {
            let bytes = input::read(path)?;
            hash.add(&bytes);
            lines.extend(input::parse(&bytes).map_err(|bad| input::refuse(&source, &bad))?);
        }
        if lines.is_empty() {
            return Err(Failure::usage("there is no prompt").help("give --prompt TEXT or --input FILE.jsonl").into());
        }
        Ok(Given { lines, hash: hash.hex(), source })
    }

    /// A heading for each answer, where there are several.
    fn headings(&self) -> Option<Vec<String>> {
        let heading = |line: &Line| format!("--- {}: {} ---", line.place, excerpt(&line.prompt));
        (self.lines.len() > 1).then(|| self.lines.iter().map(heading).collect())
    }
}

fn excerpt(prompt: &Prompt) -> String {
    let text = match prompt {
        Prompt::Text(text) => text,
        Prompt::Messages(messages) => messages.last().and_then(|m| m["content"].as_str()).unwrap_or("a conversation"),
        Prompt::TokenIds(ids) => return format!("{} tokens", ids.len()),
    };
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(60).collect();
    if line.len() < text.len() { line + "…" } else { line }
}

/// Turns all prompts into requests.
fn prepare(session: &Session, given: &Given, defaults: &SamplingParams) -> Result<Vec<Request>> {
    let messages = given.lines.iter().any(|l| matches!(l.prompt, Prompt::Messages(_)));
    let encoder = Encoder::new(&session.artifact, session.engine.tokenizer(), messages)?;
    let results = in_parallel(&given.lines, |index, line| {
        prepare_one(index, line, &encoder, defaults)
            .map_err(|e| BadLine { place: line.place, problem: message(&e).replace(" · help:", ";") })
    });
    let (mut good, mut bad) = (vec![], vec![]);
    for result in results {
        match result {
            Ok(request) => good.push(request),
            Err(line) => bad.push(line),
        }
    }
    if bad.is_empty() { Ok(good) } else { Err(input::refuse(&given.source, &bad).into()) }
}

fn prepare_one(index: usize, line: &Line, encoder: &Encoder, defaults: &SamplingParams) -> Result<Request> {
    let params = defaults.overridden(&line.sampling)?;
    let (prompt, prompt_token_ids) = encoder.encode(&line.prompt)?;
    Ok(Request { index, prompt, prompt_token_ids, params })
}

/// `f` of each item and its index, in order.
fn in_parallel<T: Sync, R: Send>(items: &[T], f: impl Fn(usize, &T) -> R + Sync) -> Vec<R> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let size = items.len().div_ceil(threads).max(PROMPTS_PER_THREAD);
    let part = |(p, part): (usize, &[T])| -> Vec<R> {
        part.iter().enumerate().map(|(i, item)| f(p * size + i, item)).collect()
    };
    thread::scope(|scope| {
        let part = &part;
        let threads: Vec<_> = items.chunks(size).enumerate().map(|p| scope.spawn(move || part(p))).collect();
        threads.into_iter().flat_map(|t| t.join().unwrap_or_else(|p| panic::resume_unwind(p))).collect()
    })
}

/// Hands requests to the engine, which checks each.
///
/// # Errors
/// All that it refuses.
pub fn queue(
    engine: &mut dyn Steps,
    requests: &[Request],
    place: impl Fn(usize) -> input::Place,
) -> Result<(), Vec<BadLine>> {
    let mut bad = vec![];
    for r in requests {
        if let Err(e) = engine.add_request(r.index as u64, r.prompt_token_ids.clone(), r.params.clone()) {
            bad.push(BadLine { place: place(r.index), problem: e.to_string().replace(" · help:", ";") });
        }
    }
    if bad.is_empty() { Ok(()) } else { Err(bad) }
}

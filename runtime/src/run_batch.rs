//! `rvllm run-batch`: a file of requests in OpenAI's batch format through the server's routes, without a server.
//!
//! Invariants:
//! - every line of the input is read and checked before the first is answered;
//! - a request that is refused is answered with its error, as a server would, and counts as finished;
//! - a finished answer survives whatever ends the program: `--resume` computes the others.

use crate::{
    cli,
    error::{Failure, note},
    fingerprint::Hash,
    input, interrupt,
    partial::{Header, Partial, VERSION},
    serve::{self, Loaded, Source},
};
use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rvllm_server::{
    App, Config,
    local::{Answer, Local},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::task::JoinSet;

/// Requests under way beyond what the engine runs at a time, so that it never waits for one.
const AHEAD: usize = 2;
/// Most bytes of one request.
const MOST_BODY: usize = 256 << 20;
/// Routes that a batch may use.
const ROUTES: [&str; 2] = ["/v1/chat/completions", "/v1/completions"];

/// `rvllm run-batch`
#[derive(clap::Args, Debug)]
pub struct Flags {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group has no help of its own")]
    pub named: cli::Named,
    /// Requests, one a line: custom_id, method, url, body
    #[arg(short, long, value_name = "FILE.jsonl")]
    pub input_file: PathBuf,
    /// Answers, one a line, in the requests' order
    #[arg(short, long, value_name = "FILE.jsonl")]
    pub output_file: PathBuf,
    /// Continue an interrupted run: keep the finished lines in OUTPUT.partial
    #[arg(long)]
    pub resume: bool,
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group has no help of its own")]
    pub served: cli::Served,
    /// Where defaults come from: auto is the checkpoint's generation_config.json, vllm neutral values, else a folder with
    /// such a file, or the file
    #[arg(long, default_value = "auto", value_name = "WHERE")]
    pub generation_config: cli::GenerationConfig,
    /// No progress bar, no closing line
    #[arg(short, long)]
    pub quiet: bool,
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group has no help of its own")]
    pub sampling: crate::sampling::Sampling,
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group has no help of its own")]
    pub engine: cli::Engine,
    /// Read flags from a YAML file, by their names; those given here count
    #[arg(long, value_name = "FILE.yaml")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group has no help of its own")]
    pub vllm: cli::vllm::Given<cli::vllm::Frontend>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group has no help of its own")]
    pub vllm_batch: cli::vllm::Given<cli::vllm::Batch>,
}

/// A line of the input.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    custom_id: String,
    method: String,
    url: String,
    body: Map<String, Value>,
}

/// Runs the command.
///
/// # Errors
/// The input is malformed, the model does not load, the output cannot be written, or the engine fails.
pub fn run(flags: &Flags) -> Result<()> {
    flags.vllm.tell();
    flags.vllm_batch.tell();
    let bytes = input::read(&flags.input_file)?;
    let lines = read(&bytes, &flags.input_file.display().to_string())?;
    let Loaded { engine, served, manifest } = serve::load(&Source {
        root: flags.named.name(),
        served: &flags.served,
        generation_config: &flags.generation_config,
        sampling: &flags.sampling,
        engine: &flags.engine,
        quiet: flags.quiet,
    })?;
    let at_a_time = engine.limits().max_num_seqs as usize * AHEAD;
    let mut partial = open(flags, &bytes, &lines, &manifest)?;
    let config = Config { max_queue: usize::MAX, max_body_bytes: MOST_BODY, ..flags.served.config() };
    let (app, thread) = App::start(engine, served, config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let answered = runtime.block_on(answer_all(flags, &app, &lines, &mut partial, at_a_time));
    runtime.shutdown_background();
    drop(app);
    // Its failures are told through the app.
    let _ = thread.join();
    close(answered, partial, flags, lines.len())
}

fn close(answered: Result<Tally>, partial: Partial, flags: &Flags, total: usize) -> Result<()> {
    let kept = format!("{} of {total} answers are in {}", partial.len(), partial.path().display());
    match answered {
        Ok(tally) if !tally.interrupted => {
            partial.finish()?;
            for (what, requests) in &tally.ignored {
                note(&format!("warning: {requests} of the requests: {} · help: --strict refuses them", told(what)));
            }
            if !flags.quiet {
                note(&format!("{total} requests answered, {} of them refused", tally.refused));
            }
            Ok(())
        }
        Ok(_) => {
            partial.sync()?;
            partial.abandon_empty()?;
            let failure = Failure::interrupted(format!("interrupted: {kept}"));
            Err(failure.help("the same command with --resume computes the others").into())
        }
        Err(error) => {
            partial.sync()?;
            Err(error.context(kept))
        }
    }
}

/// The text of a `Warning` header: `299 rvllm "…"`.
fn told(warning: &str) -> &str {
    warning.split('"').nth(1).unwrap_or(warning)
}

/// All lines, or all that is wrong with them.
fn read(bytes: &[u8], source: &str) -> Result<Vec<Line>> {
    let text = std::str::from_utf8(bytes).with_context(|| format!("{source} is not UTF-8"))?;
    let (mut lines, mut seen, mut bad) = (vec![], HashMap::new(), vec![]);
    for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        let checked = serde_json::from_str(line).map_err(|e| e.to_string()).and_then(check);
        let twice = |l: Line| match seen.insert(l.custom_id.clone(), i + 1) {
            None => Ok(l),
            Some(first) => Err(format!("custom_id `{}` is that of line {first}, too", l.custom_id)),
        };
        match checked.and_then(twice) {
            Ok(line) => lines.push(line),
            Err(problem) => bad.push(format!("line {}: {problem}", i + 1)),
        }
    }
    match (bad.len(), lines.len()) {
        (0, 0) => Err(Failure::usage(format!("{source} has no request")).into()),
        (0, _) => Ok(lines),
        (n, _) => {
            let shown = bad[..n.min(8)].join("\n  ");
            let more = if n > 8 { format!("\n  and {} more", n - 8) } else { String::new() };
            Err(Failure::usage(format!("{source}: {n} of its lines are no requests:\n  {shown}{more}")).into())
        }
    }
}

fn check(line: Line) -> Result<Line, String> {
    if line.method != "POST" {
        return Err(format!("method is `{}`, but must be POST", line.method));
    }
    if !ROUTES.contains(&line.url.as_str()) {
        return Err(format!("url is `{}`, but must be one of {}", line.url, ROUTES.join(", ")));
    }
    Ok(line)
}

/// The answers that are finished, of this run and of the one that it resumes.
fn open(flags: &Flags, bytes: &[u8], lines: &[Line], manifest: &[u8]) -> Result<Partial> {
    let mut input = Hash::default();
    input.add(bytes);
    let mut artifact = Hash::default();
    artifact.add(manifest);
    artifact.add(format!("{:?}", crate::model::weights_option(&flags.engine)).as_bytes());
    let mut requests = Hash::default();
    requests.add(format!("{:?} {:?} {:?}", flags.sampling, flags.generation_config, flags.served).as_bytes());
    let header = Header {
        rvllm_partial: VERSION,
        total: lines.len(),
        input: input.hex(),
        artifact: artifact.hex(),
        requests: requests.hex(),
    };
    let by_id: HashMap<String, usize> = lines.iter().enumerate().map(|(i, l)| (l.custom_id.clone(), i)).collect();
    Partial::open_with(
        &flags.output_file,
        &header,
        flags.resume,
        Box::new(move |line| {
            let answer: Finished = serde_json::from_slice(line).ok()?;
            by_id.get(&answer.custom_id).copied()
        }),
    )
}

/// Only the key that says whose answer a line is.
#[derive(Deserialize)]
struct Finished {
    custom_id: String,
}

#[derive(Default)]
struct Tally {
    refused: usize,
    /// Of what was ignored: how many requests have it.
    ignored: BTreeMap<String, usize>,
    interrupted: bool,
}

/// Answers what is not finished, so many at a time.
async fn answer_all(
    flags: &Flags,
    app: &Arc<App>,
    lines: &[Line],
    partial: &mut Partial,
    at_a_time: usize,
) -> Result<Tally> {
    let (stop, local) = (interrupt::flag()?, Local::new(app));
    let bar = bar(flags.quiet, lines.len(), partial.len());
    let remaining: Vec<usize> = (0..lines.len()).filter(|i| !partial.has(*i)).collect();
    let (mut tasks, mut next, mut tally) = (JoinSet::new(), remaining.into_iter(), Tally::default());
    loop {
        while tasks.len() < at_a_time
            && let Some(i) = next.next()
        {
            let (local, line) = (local.clone(), lines[i].clone());
            tasks.spawn(async move { (i, answer(&local, &line).await) });
        }
        if stop.load(Ordering::Relaxed) {
            return Ok(Tally { interrupted: true, ..tally });
        }
        // Woken now and then, so that an interruption is noticed while nothing finishes.
        match tokio::time::timeout(Duration::from_millis(200), tasks.join_next()).await {
            Err(_) => {}
            Ok(None) => break,
            Ok(Some(done)) => {
                let (i, answer) = done.context("a request's task has ended")?;
                anyhow::ensure!(app.engine().is_alive(), "{}", app.engine().failure());
                tally.refused += usize::from(answer.status != 200);
                answer.warning.iter().for_each(|what| *tally.ignored.entry(what.clone()).or_default() += 1);
                partial.append(i, &written(&lines[i], &answer).to_string())?;
                bar.inc(1);
            }
        }
    }
    bar.finish_and_clear();
    Ok(tally)
}

async fn answer(local: &Local, line: &Line) -> Answer {
    if line.body.get("stream").is_some_and(|s| ![Value::Null, Value::Bool(false)].contains(s)) {
        let message = "a batch has no streams · help: leave `stream` out";
        let body = json!({"error": {"message": message, "type": "BadRequestError", "param": "stream", "code": 400}});
        return Answer { status: 400, request_id: String::new(), warning: None, body: body.to_string().into_bytes() };
    }
    // A map always serializes.
    local.post(&line.url, serde_json::to_vec(&line.body).unwrap_or_default()).await
}

/// A line of the output.
fn written(line: &Line, answer: &Answer) -> Value {
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or(Value::Null);
    json!({
        "id": format!("batch_req_{}", answer.request_id),
        "custom_id": line.custom_id,
        "response": {"status_code": answer.status, "request_id": answer.request_id, "body": body},
        "error": if answer.status == 200 { Value::Null } else { body["error"].clone() },
    })
}

fn bar(quiet: bool, total: usize, done: usize) -> ProgressBar {
    let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr_with_hz(5) };
    let bar = ProgressBar::with_draw_target(Some(total as u64), target);
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} requests · {eta} left");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_position(done as u64);
    bar.reset_eta();
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x"}}"#;

    fn problem(text: &str) -> String {
        read(text.as_bytes(), "in.jsonl").unwrap_err().to_string()
    }

    #[test]
    fn lines_are_checked_all_at_once() {
        assert_eq!(read(format!("{GOOD}\n\n").as_bytes(), "in.jsonl").unwrap().len(), 1);
        let other = GOOD.replace("/v1/completions", "/v1/embeddings").replace("\"a\"", "\"b\"");
        let all = problem(&format!("{GOOD}\n{GOOD}\n{other}\n{{}}\n"));
        assert!(all.starts_with("in.jsonl: 3 of its lines are no requests"), "{all}");
        assert!(all.contains("line 2: custom_id `a` is that of line 1, too"), "{all}");
        assert!(all.contains("line 3: url is `/v1/embeddings`"), "{all}");
        assert!(all.contains("line 4: missing field"), "{all}");
        assert!(problem("\n").contains("has no request"));
    }

    #[test]
    fn refusals_are_errors_and_answers_are_not() {
        let line: Line = serde_json::from_str(GOOD).unwrap();
        let answer = |status, body: Value| Answer {
            status,
            request_id: "r".into(),
            warning: None,
            body: body.to_string().into_bytes(),
        };
        let good = written(&line, &answer(200, json!({"id": "x"})));
        assert_eq!((&good["error"], &good["response"]["body"]["id"]), (&Value::Null, &json!("x")));
        let bad = written(&line, &answer(400, json!({"error": {"message": "no"}})));
        assert_eq!((&bad["error"]["message"], &bad["response"]["status_code"]), (&json!("no"), &json!(400)));
    }
}

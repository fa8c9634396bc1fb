//! The thread that owns the engine: takes jobs, computes steps, hands out what they add.
//!
//! Invariants:
//! - it waits for jobs only while it has none, and never for a reader: a job's channel holds all that the job can yield;
//! - it makes no text: readers do, and tell it which answers a stop string has ended;
//! - a job whose reader has gone is given up before the next step;
//! - when it ends, every channel closes; one that closes before its job has finished tells of a failure.

use crate::{
    config::Config,
    metrics::{Metrics, Observed},
};
use rvllm_engine::{
    Decode, Engine, EngineError, Grammar, GrammarCompiler, GrammarError, Output, RequestId, SamplingParams, Stats,
    StructuredOutputs, TokenizerError, Transcript, text::Stopped,
};
use std::{
    collections::BTreeMap,
    io,
    panic::{self, AssertUnwindSafe},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc as sync_mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::timeout,
};

/// Stack of the engine's thread: lexers of nested expressions recurse.
const STACK: usize = 64 << 20;

/// Outputs of a job, each with the index of its prompt.
pub type Outputs = mpsc::Receiver<(usize, Output)>;

/// Prompts to answer with the same parameters.
pub struct Job {
    /// In tokens.
    pub prompts: Vec<Vec<u32>>,
    /// How.
    pub params: SamplingParams,
}

impl Job {
    /// Outputs that it can yield: one a token and answer at most, and an end for each prompt.
    fn most_outputs(&self, max_model_len: u32) -> usize {
        let tokens = self.params.max_tokens.unwrap_or(max_model_len).min(max_model_len) as usize;
        self.prompts.len() * (tokens * self.params.n as usize + 1) + 1
    }
}

/// Why a job was not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The queue is full.
    #[error("{waiting} requests are running or waiting already, and no more than {most} may · help: try again later")]
    Full {
        /// Requests in the engine.
        waiting: usize,
        /// Most that may be.
        most: usize,
    },
    /// More prompts than the queue could ever hold.
    #[error("{prompts} prompts are more than the server takes at a time, which is {most}")]
    TooMany {
        /// Prompts of the job.
        prompts: usize,
        /// Most that may be.
        most: usize,
    },
    /// The server is ending.
    #[error("the server is shutting down")]
    Ending,
    /// The engine has failed.
    #[error("the engine has failed: {0}")]
    Failed(String),
    /// The engine refuses the job.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The form that answers must have cannot be followed.
    #[error("{error}")]
    Form {
        /// The field that asks for it.
        param: &'static str,
        /// Why not.
        error: GrammarError,
    },
    /// The form that answers must have takes too long to compile.
    #[error("{param} takes more than {} s to compile · help: make it smaller", COMPILE_TIME.as_secs())]
    SlowForm {
        /// The field that asks for it.
        param: &'static str,
    },
    /// The form that answers must have is too large.
    #[error("{param} has {bytes} bytes, but at most {most} are taken (--max-grammar-size)")]
    LargeForm {
        /// The field that asks for it.
        param: &'static str,
        /// Its size.
        bytes: usize,
        /// Most that may be.
        most: usize,
    },
}

/// Forms that are compiled at a time: each may take a second, and those who wait for a tokenizer need threads, too.
const MOST_COMPILING: usize = 2;
/// Time that a form has to be compiled.
const COMPILE_TIME: Duration = Duration::from_secs(10);

struct Submission {
    job: Job,
    grammar: Option<Arc<Grammar>>,
    permit: OwnedSemaphorePermit,
    deadline: Option<Instant>,
    reply: oneshot::Sender<Result<Outputs, EngineError>>,
}

/// What the thread and those who ask it share.
struct Shared {
    failure: OnceLock<String>,
    ending: AtomicBool,
    give_up: AtomicBool,
    running: AtomicUsize,
    waiting: AtomicUsize,
}

/// An answer whose text has ended.
type Stop = (RequestId, Stopped);

/// The way to the engine's thread.
pub struct EngineHandle {
    submissions: mpsc::Sender<Submission>,
    stops: sync_mpsc::Sender<Stop>,
    decoder: Option<Arc<dyn Decode>>,
    eos_token_ids: Arc<[u32]>,
    admission: Arc<Semaphore>,
    most: usize,
    timeout: Option<Duration>,
    shared: Arc<Shared>,
    grammars: Arc<GrammarCompiler>,
    compiling: Arc<Semaphore>,
    max_grammar_bytes: usize,
}

impl EngineHandle {
    /// Starts the thread. It ends when this handle is dropped and all jobs have finished. `decoder` makes the text of
    /// what it yields.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn start(
        mut engine: Engine,
        decoder: Option<Arc<dyn Decode>>,
        config: &Config,
        metrics: Arc<Metrics>,
    ) -> io::Result<(EngineHandle, JoinHandle<()>)> {
        engine.leave_text_to_caller();
        let eos_token_ids = engine.eos_token_ids().clone();
        let most = config.max_queue.saturating_add(engine.limits().max_num_seqs as usize).min(Semaphore::MAX_PERMITS);
        // Every submission holds a permit, so the channel never makes anyone wait.
        let (submissions, received) = mpsc::channel(most.min(1 << 16));
        // Every stop is of an answer that runs, and there are only so many.
        let (stops, stopped) = sync_mpsc::channel();
        let shared = Arc::new(Shared {
            failure: OnceLock::new(),
            ending: AtomicBool::new(false),
            give_up: AtomicBool::new(false),
            running: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
        });
        let (grammars, compiling) = (engine.grammars().clone(), Arc::new(Semaphore::new(MOST_COMPILING)));
        let jobs = EngineLoop {
            engine,
            received,
            stopped,
            tracked: BTreeMap::new(),
            next_id: 0,
            stats: Stats::default(),
            metrics,
            shared: shared.clone(),
        };
        let thread = thread::Builder::new()
            .name("rvllm-engine".to_string())
            .stack_size(STACK)
            .spawn(move || jobs.run_caught())?;
        let (admission, timeout) = (Arc::new(Semaphore::new(most)), config.request_timeout);
        let max_grammar_bytes = config.max_grammar_bytes;
        let handle = EngineHandle {
            submissions,
            stops,
            decoder,
            eos_token_ids,
            admission,
            most,
            timeout,
            shared,
            grammars,
            compiling,
            max_grammar_bytes,
        };
        Ok((handle, thread))
    }

    /// What makes the text of a prompt's answers, where text is wanted.
    ///
    /// # Errors
    /// The decoder refuses the prompt.
    pub fn transcript(&self, prompt: &[u32], params: &SamplingParams) -> Result<Option<Transcript>, TokenizerError> {
        let decoder = self.decoder.as_ref().filter(|_| params.detokenize);
        decoder.map(|d| Transcript::new(d.clone(), &self.eos_token_ids, prompt, params)).transpose()
    }

    /// Ends an answer in whose text a stop string was found.
    pub fn stop(&self, id: RequestId, stopped: Stopped) {
        // Where the thread has ended there is nothing to stop.
        let _ = self.stops.send((id, stopped));
    }

    /// Hands a job over; its outputs come through the channel, without text. Dropping that gives the job up, as does the
    /// end of `timeout` or of the server's own.
    ///
    /// # Errors
    /// The queue is full, the engine refuses the job, or there is no engine any more.
    pub async fn submit(&self, job: Job, timeout: Option<Duration>) -> Result<Outputs, Refusal> {
        self.check()?;
        let permit = self.admit(job.prompts.len())?;
        let (reply, replied) = oneshot::channel();
        let timeout = [timeout, self.timeout].into_iter().flatten().min();
        let deadline = timeout.map(|t| Instant::now() + t);
        let grammar = match &job.params.structured_outputs {
            Some(form) => Some(self.compile(form).await?),
            None => None,
        };
        let submission = Submission { job, grammar, permit, deadline, reply };
        self.submissions.send(submission).await.map_err(|_| self.failure())?;
        Ok(replied.await.map_err(|_| self.failure())??)
    }

    /// The grammar of a form: the one kept, or one compiled where it holds up nobody.
    async fn compile(&self, form: &StructuredOutputs) -> Result<Arc<Grammar>, Refusal> {
        let param = form.param.unwrap_or("structured_outputs");
        let (bytes, most) = (form.num_bytes(), self.max_grammar_bytes);
        if bytes > most {
            return Err(Refusal::LargeForm { param, bytes, most });
        }
        if let Some(found) = self.grammars.find(form) {
            return Ok(found);
        }
        // The semaphore is never closed.
        let permit = self.compiling.clone().acquire_owned().await;
        let (grammars, form) = (self.grammars.clone(), form.clone());
        let compiled = tokio::task::spawn_blocking(move || {
            // One that takes too long goes on to its end, and nobody else's in its place.
            let _permit = permit;
            grammars.compile(&form)
        });
        match timeout(COMPILE_TIME, compiled).await {
            Ok(Ok(compiled)) => compiled.map_err(|error| Refusal::Form { param, error }),
            Ok(Err(_)) => Err(Refusal::Failed("a thread that compiles grammars has ended".into())),
            Err(_) => Err(Refusal::SlowForm { param }),
        }
    }

    fn admit(&self, prompts: usize) -> Result<OwnedSemaphorePermit, Refusal> {
        let most = self.most;
        let count = u32::try_from(prompts).ok().filter(|n| *n as usize <= most);
        let count = count.ok_or(Refusal::TooMany { prompts, most })?;
        let full = |_| Refusal::Full { waiting: self.num_unfinished(), most };
        self.admission.clone().try_acquire_many_owned(count).map_err(full)
    }

    fn check(&self) -> Result<(), Refusal> {
        match self.shared.failure.get() {
            Some(_) => Err(self.failure()),
            None if self.shared.ending.load(Ordering::Relaxed) => Err(Refusal::Ending),
            None => Ok(()),
        }
    }

    /// Why channels closed too early.
    pub fn failure(&self) -> Refusal {
        Refusal::Failed(self.shared.failure.get().cloned().unwrap_or_else(|| "its thread has ended".to_string()))
    }

    /// Whether steps can still be computed.
    pub fn is_alive(&self) -> bool {
        self.shared.failure.get().is_none()
    }

    /// Whether another prompt would be taken now.
    pub fn is_ready(&self) -> bool {
        self.check().is_ok() && self.admission.available_permits() > 0
    }

    /// Prompts accepted and not yet answered.
    pub fn num_unfinished(&self) -> usize {
        self.most.saturating_sub(self.admission.available_permits())
    }

    /// Sequences that run, and sequences that wait, as of the last step.
    pub fn num_running_and_waiting(&self) -> (usize, usize) {
        (self.shared.running.load(Ordering::Relaxed), self.shared.waiting.load(Ordering::Relaxed))
    }

    /// Takes no more jobs.
    pub fn end(&self) {
        self.shared.ending.store(true, Ordering::Relaxed);
    }

    /// Gives up all jobs before the next step.
    pub fn give_up(&self) {
        self.shared.give_up.store(true, Ordering::Relaxed);
    }
}

/// A prompt that is being answered.
struct Tracked {
    sender: mpsc::Sender<(usize, Output)>,
    /// Index of the prompt in its job.
    prompt: usize,
    observed: Observed,
    /// Makes room in the queue when it goes.
    _permit: OwnedSemaphorePermit,
}

struct EngineLoop {
    engine: Engine,
    received: mpsc::Receiver<Submission>,
    stopped: sync_mpsc::Receiver<Stop>,
    tracked: BTreeMap<RequestId, Tracked>,
    next_id: RequestId,
    /// As of the last step.
    stats: Stats,
    metrics: Arc<Metrics>,
    shared: Arc<Shared>,
}

impl EngineLoop {
    fn run_caught(mut self) {
        let shared = self.shared.clone();
        let failure = match panic::catch_unwind(AssertUnwindSafe(|| self.run())) {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "a panic in the engine's thread".to_string(),
        };
        tracing::error!(error = failure, "the engine has failed");
        // Set before the channels close, so that whoever sees one closed finds the reason.
        let _ = shared.failure.set(failure);
    }

    fn run(&mut self) -> Result<(), EngineError> {
        loop {
            if !self.engine.has_unfinished() {
                match self.received.blocking_recv() {
                    Some(submission) => self.take(submission),
                    None => return Ok(()),
                }
            }
            self.take_received();
            self.abort_those_over();
            if self.engine.has_unfinished() {
                self.step()?;
            }
            self.note_load();
        }
    }

    fn take_received(&mut self) {
        while let Ok(submission) = self.received.try_recv() {
            self.take(submission);
        }
    }

    fn take(&mut self, submission: Submission) {
        let Submission { job, grammar, permit, deadline, reply } = submission;
        if reply.is_closed() {
            return;
        }
        let (sender, outputs) = mpsc::channel(job.most_outputs(self.engine.max_model_len()));
        // The reader may go meanwhile; then the next step finds its channel closed.
        let _ = reply.send(self.add(job, grammar, permit, deadline, sender).map(|()| outputs));
    }

    /// Adds all prompts, or none.
    fn add(
        &mut self,
        job: Job,
        grammar: Option<Arc<Grammar>>,
        mut permit: OwnedSemaphorePermit,
        deadline: Option<Instant>,
        sender: mpsc::Sender<(usize, Output)>,
    ) -> Result<(), EngineError> {
        let first = self.next_id;
        for (prompt, token_ids) in job.prompts.into_iter().enumerate() {
            let (id, num_tokens) = (self.next_id, token_ids.len());
            if let Err(error) = self.engine.add_compiled(id, token_ids, job.params.clone(), grammar.clone()) {
                (first..id).for_each(|id| self.forget(id));
                return Err(error);
            }
            self.next_id += 1;
            deadline.map(|d| self.engine.set_deadline(id, d));
            let one = permit.split(1).expect("a job holds one permit for each of its prompts");
            let observed = Observed::new(num_tokens, &job.params);
            self.tracked.insert(id, Tracked { sender: sender.clone(), prompt, observed, _permit: one });
        }
        Ok(())
    }

    fn forget(&mut self, id: RequestId) {
        self.engine.abort(id);
        self.tracked.remove(&id);
    }

    fn abort_those_over(&mut self) {
        let all = self.shared.give_up.load(Ordering::Relaxed);
        let over = |t: &Tracked| all || t.sender.is_closed();
        let ids: Vec<RequestId> = self.tracked.iter().filter(|(_, t)| over(t)).map(|(id, _)| *id).collect();
        // Whoever says that an answer has ended may go at once: that is heard before it is given up.
        self.take_stops();
        for id in ids {
            if let Some(output) = self.engine.abort(id) {
                self.hand_out(output);
            }
        }
    }

    fn take_stops(&mut self) {
        while let Ok((id, Stopped { index, finish })) = self.stopped.try_recv() {
            if let Some(output) = self.engine.stop(id, index, finish) {
                self.hand_out(output);
            }
        }
    }

    fn step(&mut self) -> Result<(), EngineError> {
        let took = self.engine.compute()?;
        self.metrics.note_step(took);
        // Who came meanwhile is in the next step, which may begin before this one's answers go out.
        self.take_received();
        self.engine.run_ahead()?;
        self.engine.take_outputs()?.into_iter().for_each(|output| self.hand_out(output));
        Ok(())
    }

    fn hand_out(&mut self, output: Output) {
        let (id, finished) = (output.request_id, output.finished.is_some());
        let Some(tracked) = self.tracked.get_mut(&id) else { return };
        tracked.observed.see(&output, &self.metrics);
        // A closed channel is found before the next step.
        let _ = tracked.sender.try_send((tracked.prompt, output));
        if finished {
            self.tracked.remove(&id);
        }
    }

    fn note_load(&mut self) {
        let stats = self.engine.stats();
        self.shared.running.store(stats.num_running, Ordering::Relaxed);
        self.shared.waiting.store(stats.num_waiting, Ordering::Relaxed);
        self.metrics.note_stats(&stats, &std::mem::replace(&mut self.stats, stats));
    }
}

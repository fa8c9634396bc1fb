//! Requests in, deltas out: schedules a step, computes it, chooses tokens, and reports what is new.
//!
//! Invariants:
//! - what a request yields depends on itself alone: its prompt, its parameters, its seed;
//! - a request is refused when it is added, or finishes; none is dropped;
//! - every finished request has been reported as finished exactly once;
//! - `deadlines` has an entry for each request with a deadline, and no other;
//! - nothing of a step waits for text: where the caller reads it elsewhere, outputs have tokens alone.

mod ahead;
mod score;

pub use score::{Scored, Scoring};

use crate::{
    admission::{capacity, check_fits, check_prompt, truncate},
    beam::Turn,
    error::EngineError,
    forward::{Forward, Limits, Logits, Reads, Row},
    grammar::{
        Grammar, GrammarCompiler,
        workers::{MaskWorkers, share_out},
    },
    memory::MemoryTable,
    output::{Finish, Logprobs, Metrics, Output, RequestId, SequenceOutput},
    params::{ParamError, SamplingParams, check},
    random,
    request::{Request, Rules},
    sampler::{SamplingRules, Scratch},
    scheduler::{Scheduler, SchedulingPolicy},
    sequence::{Sequence, SequenceKey},
    stats::Stats,
    step::Step,
    text::{Text, Transcript},
    thinking::Budget,
    tokenizer::Tokenizer,
};
use ahead::UnderWay;
use rustc_hash::FxHashMap;
use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

/// What an engine is made of; [`Engine::load`] makes it from an artifact.
pub struct EngineParts {
    /// The model.
    pub forward: Box<dyn Forward>,
    /// Its tokenizer, if text is wanted.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// Tokens that end an answer, the principal one first.
    pub eos_token_ids: Vec<u32>,
    /// Seed of the requests that bring none; drawn for each where absent.
    pub seed: Option<u64>,
    /// Where the memory goes.
    pub memory: MemoryTable,
    /// Threads that compute.
    pub threads: usize,
}

/// Runs requests in steps. Not shared between threads: one thread owns it and calls [`Engine::step`].
pub struct Engine {
    forward: Box<dyn Forward>,
    tokenizer: Option<Arc<Tokenizer>>,
    eos_token_ids: Arc<[u32]>,
    seed: Option<u64>,
    memory: MemoryTable,
    threads: usize,
    num_arrived: u64,
    policy: SchedulingPolicy,
    /// Of requests that want text; `None` where the caller makes it.
    transcripts: Option<FxHashMap<RequestId, Transcript>>,
    /// Memory of a step that was had.
    spare: Step,
    /// Steps that have begun, in order.
    begun: VecDeque<UnderWay>,
    queue: Queue,
    grammars: Arc<GrammarCompiler>,
    mask_workers: MaskWorkers,
}

/// The requests and what is scheduled of them.
struct Queue {
    scheduler: Scheduler,
    requests: FxHashMap<RequestId, Request>,
    deadlines: BTreeSet<(Instant, RequestId)>,
    scratch: Scratch,
    outputs: Vec<Output>,
}

/// What a row of logits is about.
#[derive(Clone, Copy, Debug)]
struct RowUse {
    request_id: RequestId,
    key: SequenceKey,
    /// Of the token in its sequence.
    position: usize,
    /// Whether the next token is chosen from it.
    samples: bool,
    /// Whether the token at `position` is not known yet, so that the answer is longer than is known.
    fed: bool,
}

impl Engine {
    /// An engine of its parts.
    pub fn new(parts: EngineParts) -> Engine {
        let EngineParts { forward, tokenizer, eos_token_ids, seed, memory, threads } = parts;
        let scheduler = Scheduler::new(*forward.limits());
        let (requests, deadlines, scratch) = (FxHashMap::default(), BTreeSet::new(), Scratch::default());
        let queue = Queue { scheduler, requests, deadlines, scratch, outputs: vec![] };
        let eos_token_ids: Arc<[u32]> = eos_token_ids.into();
        let vocab_size = forward.limits().vocab_size;
        let grammars = Arc::new(GrammarCompiler::new(tokenizer.clone(), eos_token_ids.clone(), vocab_size));
        let mask_workers = MaskWorkers::default();
        Engine {
            forward,
            tokenizer,
            eos_token_ids,
            seed,
            memory,
            threads,
            num_arrived: 0,
            policy: SchedulingPolicy::default(),
            transcripts: Some(FxHashMap::default()),
            spare: Step::default(),
            begun: VecDeque::new(),
            queue,
            grammars,
            mask_workers,
        }
    }

    /// Whether sequences find the KV of tokens that others computed; they do unless told otherwise. Answers are the
    /// same bits either way.
    pub fn set_prefix_caching(&mut self, enabled: bool) {
        self.queue.scheduler.set_prefix_caching(enabled);
    }

    /// In which order requests are served; [`SchedulingPolicy::Fcfs`] unless told otherwise.
    pub fn set_scheduling_policy(&mut self, policy: SchedulingPolicy) {
        self.policy = policy;
    }

    /// In which order requests are served.
    pub fn scheduling_policy(&self) -> SchedulingPolicy {
        self.policy
    }

    /// Leaves text to the caller, who makes it with a [`Transcript`] of each request and tells the engine of stop strings
    /// with [`Engine::stop`]. Counts for requests that are added from now on.
    pub fn leave_text_to_caller(&mut self) {
        self.transcripts = None;
    }

    /// Queues a request. `params` are validated here, and their grammar is compiled, where they have one.
    ///
    /// # Errors
    /// The prompt is empty, too long or has unknown tokens; a parameter is out of range; its grammar cannot be followed;
    /// the id is in use; the KV cache has no room for it even alone.
    pub fn add_request(
        &mut self,
        id: RequestId,
        prompt_token_ids: Vec<u32>,
        params: SamplingParams,
    ) -> Result<(), EngineError> {
        let grammar = params.structured_outputs.as_ref().map(|s| self.grammars.compile(s)).transpose()?;
        self.add_compiled(id, prompt_token_ids, params, grammar)
    }

    /// Queues a request whose `grammar` has been compiled already, by [`Engine::grammars`].
    ///
    /// # Errors
    /// See [`Engine::add_request`].
    pub fn add_compiled(
        &mut self,
        id: RequestId,
        prompt_token_ids: Vec<u32>,
        mut params: SamplingParams,
        grammar: Option<Arc<Grammar>>,
    ) -> Result<(), EngineError> {
        let limits = *self.forward.limits();
        if self.queue.requests.contains_key(&id) {
            return Err(EngineError::DuplicateRequest(id));
        }
        params.validate(limits.vocab_size, limits.max_model_len)?;
        self.check_policy(&params)?;
        let prompt = truncate(prompt_token_ids, &params, &limits);
        check_prompt(&prompt, &limits)?;
        check_fits(prompt.len(), &params, &limits)?;
        let key = SequenceKey { priority: params.priority, arrival: self.num_arrived, index: 0 };
        let mut sequence = Sequence::new(key, id, prompt.clone(), params.prompt_logprobs.is_some());
        sequence.beam = params.use_beam_search;
        sequence.cache_salt = params.cache_salt.as_deref().map(Arc::from);
        let (transcript, seeker) = self.texts(&prompt, &params)?;
        let rules = self.rules(id, &prompt, params, grammar)?;
        self.queue.requests.insert(id, Request::new(key, rules, prompt, seeker));
        self.queue.scheduler.add(sequence);
        self.num_arrived += 1;
        if let (Some(transcripts), Some(transcript)) = (&mut self.transcripts, transcript) {
            transcripts.insert(id, transcript);
        }
        Ok(())
    }

    /// Gives a request up: its unfinished sequences finish with reason `abort` in the output returned. `None` where
    /// there is no such request.
    pub fn abort(&mut self, id: RequestId) -> Option<Output> {
        self.transcripts.as_mut().and_then(|t| t.remove(&id));
        self.queue.abort(id)
    }

    /// Ends answer `index` of a request, in whose text a stop string was found. Its `finish` is in the output returned,
    /// which ends the request where that was its last answer. `None` where there is no such answer, or it has ended.
    pub fn stop(&mut self, id: RequestId, index: u32, finish: Finish) -> Option<Output> {
        let (so_far, finished) = self.queue.stop(id, index)?;
        let finish = Some(finish);
        let ended = SequenceOutput { index, token_ids: vec![], text: String::new(), logprobs: vec![], finish };
        Some(Output { request_id: id, prompt_logprobs: None, sequences: vec![ended], so_far, finished })
    }

    /// Gives a request up in the first step after `deadline`: its unfinished sequences finish with reason `abort` in
    /// that step's outputs. A later call counts instead of an earlier one. False where there is no such request.
    pub fn set_deadline(&mut self, id: RequestId, deadline: Instant) -> bool {
        self.queue.set_deadline(id, deadline)
    }

    /// Computes one step, begins the next where the device computes on its own, and returns what the step added.
    ///
    /// # Errors
    /// The device failed or the logits are not finite: the engine cannot go on.
    pub fn step(&mut self) -> Result<Vec<Output>, EngineError> {
        self.compute()?;
        self.run_ahead()?;
        self.take_outputs()
    }

    /// Computes one step: the one that has begun, else the next. Hands back how long it took since it began.
    ///
    /// # Errors
    /// See [`Engine::step`].
    pub fn compute(&mut self) -> Result<Duration, EngineError> {
        let mut current = self.first()?;
        if current.step.num_tokens() == 0 {
            self.spare = current.step;
            return Ok(current.start.elapsed());
        }
        self.feed(&mut current)?;
        let UnderWay { start, step, uses, advanced } = current;
        let leaves_out = self.forward.leaves_out();
        let logits = self.forward.forward(&step)?;
        let needed = if leaves_out { self.queue.needed(&uses, &step, &logits) } else { vec![] };
        let logits = if needed.is_empty() { logits } else { self.forward.bring(&step, &needed)? };
        if !advanced {
            self.queue.scheduler.advance();
        }
        for (i, row_use) in uses.iter().enumerate() {
            self.queue.take_row(row_use, &logits.row_with_top(i, step.top_k[i]))?;
        }
        self.begun.iter_mut().for_each(|next| next.start = Instant::now());
        self.spare = step;
        let masks = &mut self.queue.scratch.masks;
        match self.forward.team() {
            Some(team) => share_out(team, masks),
            None => self.mask_workers.submit(masks),
        }
        Ok(start.elapsed())
    }

    /// What came since the last call: of requests past their deadline, then of the others in order of service.
    ///
    /// # Errors
    /// Tokens are no text.
    pub fn take_outputs(&mut self) -> Result<Vec<Output>, EngineError> {
        let mut outputs = std::mem::take(&mut self.queue.outputs);
        let Some(transcripts) = &mut self.transcripts else { return Ok(outputs) };
        for output in &mut outputs {
            let Some(transcript) = transcripts.get_mut(&output.request_id) else { continue };
            for stopped in transcript.write(output)? {
                let ended = self.queue.stop(output.request_id, stopped.index);
                output.finished = output.finished.or(ended.and_then(|(_, finished)| finished));
            }
            if output.finished.is_some() {
                transcripts.remove(&output.request_id);
            }
        }
        Ok(outputs)
    }

    /// Fills the next step.
    fn prepare(&mut self) -> Result<UnderWay, EngineError> {
        let start = Instant::now();
        self.queue.abort_overdue(start);
        for copy in self.queue.scheduler.schedule() {
            self.forward.copy_block(copy.from, copy.to)?;
        }
        self.queue.note_scheduled();
        let limits = *self.forward.limits();
        let mut step = std::mem::take(&mut self.spare);
        step.fill(self.queue.scheduler.scheduled(), limits.block_size as usize, limits.query_tile as usize);
        let uses = self.queue.row_uses();
        step.reads.extend(uses.iter().map(|row_use| self.queue.reads(row_use)));
        self.queue.draw(&uses, &mut step);
        Ok(UnderWay { start, step, uses, advanced: false })
    }

    /// Whether a further step has something to do.
    pub fn has_unfinished(&self) -> bool {
        !self.queue.requests.is_empty()
    }

    /// How it fares: queues, blocks, counters.
    pub fn stats(&self) -> Stats {
        self.queue.scheduler.stats()
    }

    /// The artifact's tokenizer, if it has one.
    pub fn tokenizer(&self) -> Option<&Arc<Tokenizer>> {
        self.tokenizer.as_ref()
    }

    /// Tokens that end an answer, the principal one first.
    pub fn eos_token_ids(&self) -> &Arc<[u32]> {
        &self.eos_token_ids
    }

    /// Where the memory goes.
    pub fn memory(&self) -> &MemoryTable {
        &self.memory
    }

    /// The bounds of a step, and of a sequence.
    pub fn limits(&self) -> &Limits {
        self.forward.limits()
    }

    /// Longest sequence, prompt and answer together.
    pub fn max_model_len(&self) -> u32 {
        self.limits().max_model_len
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Turns what requests ask for into grammars, on any thread.
    pub fn grammars(&self) -> &Arc<GrammarCompiler> {
        &self.grammars
    }

    fn check_policy(&self, params: &SamplingParams) -> Result<(), ParamError> {
        let ok = params.priority == 0 || self.policy == SchedulingPolicy::Priority;
        check(ok, "priority", params.priority, "0 unless the scheduling policy is priority (--scheduling-policy)")
    }

    /// What makes a request's text, where that is done here, and what looks for stop strings for its beams.
    fn texts(
        &self,
        prompt: &[u32],
        params: &SamplingParams,
    ) -> Result<(Option<Transcript>, Option<Text>), EngineError> {
        if !params.detokenize {
            return Ok((None, None));
        }
        let tokenizer = self.tokenizer.as_ref().ok_or(EngineError::NoTokenizer("detokenize"))?;
        let transcript = || Transcript::new(tokenizer.clone(), &self.eos_token_ids, prompt, params);
        let seeker = || Text::new(tokenizer.clone(), &self.eos_token_ids, prompt, params);
        let seeks = params.use_beam_search && !params.stop.is_empty();
        Ok((self.transcripts.as_ref().map(|_| transcript()).transpose()?, seeks.then(seeker).transpose()?))
    }

    fn rules(
        &self,
        id: RequestId,
        prompt: &[u32],
        params: SamplingParams,
        grammar: Option<Arc<Grammar>>,
    ) -> Result<Rules, EngineError> {
        let most = capacity(&params, self.limits()) - prompt.len();
        Ok(Rules {
            max_tokens: params.max_tokens.map_or(most, |m| most.min(m as usize)),
            eos_token_ids: if params.ignore_eos { [].into() } else { self.eos_token_ids.clone() },
            sampling: Arc::new(self.sampling_rules(id, prompt, params, grammar)?),
        })
    }

    fn sampling_rules(
        &self,
        id: RequestId,
        prompt: &[u32],
        params: SamplingParams,
        grammar: Option<Arc<Grammar>>,
    ) -> Result<SamplingRules, EngineError> {
        let after = params.structured_outputs.as_ref().map(|s| Arc::from(s.after.as_slice()));
        let drawn = || self.seed.map_or_else(random::seed_from_system, |seed| random::word(seed, 0, id));
        let repeats = params.repetition_penalty != 1.0;
        Ok(SamplingRules {
            seed: params.seed.map_or_else(drawn, |seed| seed as u64),
            bad_words: self.bad_words(&params.bad_words)?,
            end_tokens: self.eos_token_ids.iter().chain(&params.stop_token_ids).copied().collect(),
            prompt_tokens: if repeats { prompt.iter().copied().collect() } else { Default::default() },
            grammar: grammar.map(|g| (g, after.unwrap_or_default())),
            thinking: match (&params.thinking, params.thinking_token_budget) {
                (Some(marks), Some(tokens)) => Some(Budget::new(marks, tokens, prompt)),
                _ => None,
            },
            params,
        })
    }

    /// Each word as it is written at the start of a text and, where that is another single spelling, after a space.
    fn bad_words(&self, words: &[String]) -> Result<Vec<Vec<u32>>, EngineError> {
        let mut all: Vec<Vec<u32>> = vec![];
        for word in words {
            let tokenizer = self.tokenizer.as_ref().ok_or(EngineError::NoTokenizer("bad_words"))?;
            let word = word.trim_start();
            let (plain, spaced) = (tokenizer.encode(word, false)?, tokenizer.encode(&format!(" {word}"), false)?);
            let differs = spaced.len() == plain.len() && spaced.first() != plain.first();
            all.extend([Some(plain), differs.then_some(spaced)].into_iter().flatten());
        }
        let vocab_size = self.limits().vocab_size;
        all.retain(|ids| !ids.is_empty() && ids.iter().all(|id| *id < vocab_size));
        Ok(all)
    }
}

impl Queue {
    fn abort(&mut self, id: RequestId) -> Option<Output> {
        let mut request = self.remove(id)?;
        let (sequences, metrics) = request.abort();
        for sequence in &sequences {
            self.scheduler.remove(request.key_of(sequence.index));
        }
        let finished = Some(metrics);
        Some(Output { request_id: id, prompt_logprobs: None, sequences, so_far: metrics, finished })
    }

    /// Ends an answer: the request's metrics by now, and at its end where that was its last.
    fn stop(&mut self, id: RequestId, index: u32) -> Option<(Metrics, Option<Metrics>)> {
        let request = self.requests.get_mut(&id)?;
        if !request.stop(index) {
            return None;
        }
        self.scheduler.remove(request.key_of(index));
        let (so_far, finished) = (request.metrics(), request.finished());
        if finished.is_some() {
            self.remove(id);
        }
        Some((so_far, finished))
    }

    fn abort_overdue(&mut self, now: Instant) {
        while let Some((_, id)) = self.deadlines.first().copied().filter(|(deadline, _)| *deadline <= now) {
            let output = self.abort(id);
            self.outputs.extend(output);
        }
    }

    fn set_deadline(&mut self, id: RequestId, deadline: Instant) -> bool {
        let Some(request) = self.requests.get_mut(&id) else { return false };
        if let Some(earlier) = request.deadline.replace(deadline) {
            self.deadlines.remove(&(earlier, id));
        }
        self.deadlines.insert((deadline, id))
    }

    fn remove(&mut self, id: RequestId) -> Option<Request> {
        let request = self.requests.remove(&id)?;
        if let Some(deadline) = request.deadline {
            self.deadlines.remove(&(deadline, id));
        }
        Some(request)
    }

    fn note_scheduled(&mut self) {
        let now = Instant::now();
        for id in self.scheduler.preempted() {
            self.requests.entry(*id).and_modify(Request::note_preempted);
        }
        for sequence in self.scheduler.scheduled() {
            self.requests.entry(sequence.request_id).and_modify(|r| r.note_scheduled(sequence, now));
        }
    }

    /// What each row of the step's logits is about, in order.
    fn row_uses(&self) -> Vec<RowUse> {
        let uses = |s: &Sequence| {
            let (request_id, key, samples, last) = (s.request_id, s.key, s.samples(), s.token_ids.len() - 1);
            let fed = s.fed_by.is_some();
            let row = move |position| {
                let is_last = position == last;
                RowUse { request_id, key, position, samples: samples && is_last, fed: fed && is_last }
            };
            s.rows(s.num_scheduled_tokens).map(row)
        };
        self.scheduler.scheduled().flat_map(uses).collect()
    }

    fn reads(&self, row_use: &RowUse) -> Reads {
        let request = self.requests.get(&row_use.request_id).filter(|_| row_use.samples);
        request.map_or(Reads::All, Request::reads)
    }

    /// How tokens are drawn from each row.
    fn draw(&self, uses: &[RowUse], step: &mut Step) {
        for (row, row_use) in step.rows().zip(uses) {
            if let Some(request) = self.requests.get(&row_use.request_id).filter(|_| row_use.samples) {
                request.draw(row_use.key.index, row_use.fed, row);
            }
        }
    }

    /// The rows of which ranks do not tell what is chosen.
    fn needed(&self, uses: &[RowUse], step: &Step, logits: &Logits<'_>) -> Vec<usize> {
        let ranked = uses.iter().enumerate().filter(|(i, _)| step.reads[*i] == Reads::Ranks);
        let undecided = |(i, row_use): &(usize, &RowUse)| {
            let request = self.requests.get(&row_use.request_id);
            request
                .is_some_and(|request| request.needs_all(row_use.key.index, &logits.row_with_top(*i, step.top_k[*i])))
        };
        ranked.filter(undecided).map(|(i, _)| i).collect()
    }

    fn take_row(&mut self, row_use: &RowUse, row: &Row<'_>) -> Result<(), EngineError> {
        let RowUse { request_id, key, position, samples, fed: _ } = *row_use;
        if !(row.logsumexp.is_finite() && row.max.is_finite()) {
            return Err(EngineError::LogitsNotFinite { request: request_id, position });
        }
        // Whoever ended while the step ran has left the queue.
        if self.scheduler.sequence_mut(key).is_none() {
            return Ok(());
        }
        let Some(request) = self.requests.get_mut(&request_id) else { return Ok(()) };
        if !samples {
            request.add_prompt_logprobs(position, row);
            return Ok(());
        }
        if request.searches() {
            return self.search(request_id, key, row);
        }
        let indices = request.start_answers(key.index);
        indices.clone().filter(|i| *i != key.index).for_each(|i| self.scheduler.fork(key, i));
        // What was drawn is for one sequence: those that begin together draw by their own numbers.
        let row = if indices.len() == 1 { *row } else { Row { draws: &[], ranks: &[], ..*row } };
        indices.into_iter().for_each(|index| self.extend(request_id, index, &row));
        Ok(())
    }

    /// Takes a beam's logits; where they complete a turn, the request's sequences become the next beams.
    fn search(&mut self, id: RequestId, key: SequenceKey, row: &Row<'_>) -> Result<(), EngineError> {
        let Some(request) = self.requests.get_mut(&id) else { return Ok(()) };
        let (turn, finished) = request.offer(key.index, row, &mut self.scratch)?;
        let so_far = request.metrics();
        match turn {
            Turn::Waits => {}
            Turn::Goes(next) => self.scheduler.branch(key, &next),
            Turn::Ends(answers) => {
                let mut prompt_logprobs = request.take_prompt_logprobs();
                self.scheduler.branch(key, &[]);
                self.remove(id);
                answers.into_iter().for_each(|a| self.report(id, a, prompt_logprobs.take(), so_far, finished));
            }
        }
        Ok(())
    }

    /// Chooses the next token of a sequence, and ends it where it is done.
    fn extend(&mut self, id: RequestId, index: u32, row: &Row<'_>) {
        let Some(request) = self.requests.get_mut(&id) else { return };
        let key = request.key_of(index);
        let output = request.choose(index, row, &mut self.scratch);
        if output.finish.is_some() {
            self.scheduler.remove(key);
        } else if let Some(sequence) = self.scheduler.sequence_mut(key) {
            sequence.add_tokens(&output.token_ids);
        }
        let (so_far, finished) = (request.metrics(), request.finished());
        let prompt_logprobs = request.take_prompt_logprobs();
        if finished.is_some() {
            self.remove(id);
        }
        self.report(id, output, prompt_logprobs, so_far, finished);
    }

    /// Adds to the request's output of this step. A request's sequences follow each other.
    fn report(
        &mut self,
        request_id: RequestId,
        output: SequenceOutput,
        prompt_logprobs: Option<Vec<Option<Logprobs>>>,
        so_far: Metrics,
        finished: Option<Metrics>,
    ) {
        if self.outputs.last().is_none_or(|o| o.request_id != request_id) {
            let (sequences, finished) = (vec![], None);
            self.outputs.push(Output { request_id, prompt_logprobs: None, sequences, so_far, finished });
        }
        if let Some(last) = self.outputs.last_mut() {
            last.prompt_logprobs = last.prompt_logprobs.take().or(prompt_logprobs);
            last.finished = finished;
            last.sequences.push(output);
        }
    }
}

#[cfg(test)]
mod tests;

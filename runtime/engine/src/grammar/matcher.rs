//! Which tokens may come next in one sequence.
//!
//! A mask is wanted when a token is chosen, and known as soon as the token before is: it is computed by the workers,
//! beside the forward between the two. Whoever needs one that no worker has begun computes it.
//!
//! Invariants:
//! - a mask is a function of the grammar and of the tokens since it began;
//! - a copy that fails is tried again with a fresh lexer and the sequence's own tokens before the sequence is given up,
//!   so that what others asked of the copy decides nothing.

use super::{compiler::Grammar, error::GrammarError};
use crate::softmax;
use llguidance::{
    TokenParser, panic_utils,
    toktrie::{SimpleVob, TokenId},
};
use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

/// So many tokens are listed, as looking at each takes less time than changing a row.
const FEW: usize = 256;

/// Tokens that may come next.
#[derive(Debug)]
pub struct Mask {
    allowed: SimpleVob,
    /// All of them in order, where they are at most [`FEW`].
    few: Option<Vec<u32>>,
    accepting: bool,
}

impl Mask {
    pub(super) fn compute(parser: &mut TokenParser) -> Result<Mask, GrammarError> {
        let computed = panic_utils::catch_unwind(AssertUnwindSafe(|| {
            let allowed = parser.compute_mask()?;
            let few = (allowed.num_set() <= FEW).then(|| allowed.iter().collect());
            Ok(Mask { allowed, few, accepting: parser.is_accepting() })
        }));
        computed.map_err(GrammarError::stuck)
    }

    /// Whether a token may come next.
    pub fn allows(&self, token: u32) -> bool {
        (token as usize) < self.allowed.len() && self.allowed.is_allowed(token)
    }

    /// Whether the answer may end here.
    pub fn is_accepting(&self) -> bool {
        self.accepting
    }

    /// The tokens, in order.
    pub fn tokens(&self) -> impl Iterator<Item = u32> + '_ {
        self.allowed.iter()
    }

    /// The tokens in order, where they are few.
    pub(crate) fn few(&self) -> Option<&[u32]> {
        self.few.as_deref()
    }

    /// Fills `kept` with the logits of these tokens, and negative infinity for all others.
    pub fn keep(&self, logits: &[f32], kept: &mut Vec<f32>) {
        kept.clear();
        kept.resize(logits.len(), f32::NEG_INFINITY);
        softmax::keep(self.allowed.as_slice(), logits, kept);
    }
}

/// A mask to be computed.
pub struct Job {
    progress: Mutex<Progress>,
    done: Condvar,
}

enum Progress {
    Waiting(Box<TokenParser>),
    Running,
    Done(Box<TokenParser>, Result<Arc<Mask>, GrammarError>),
    Taken,
}

impl Job {
    fn new(parser: Box<TokenParser>) -> Arc<Job> {
        Arc::new(Job { progress: Mutex::new(Progress::Waiting(parser)), done: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Computes the mask, if nobody has begun to.
    pub(super) fn run(&self) {
        let mut progress = self.lock();
        if !matches!(*progress, Progress::Waiting(_)) {
            return;
        }
        let Progress::Waiting(mut parser) = std::mem::replace(&mut *progress, Progress::Running) else { return };
        drop(progress);
        let mask = Mask::compute(&mut parser);
        *self.lock() = Progress::Done(parser, mask.map(Arc::new));
        self.done.notify_all();
    }

    /// Where the mask is done: computed here, or waited for.
    fn done(&self) -> MutexGuard<'_, Progress> {
        self.run();
        let progress = self.lock();
        self.done.wait_while(progress, |p| matches!(p, Progress::Running)).unwrap_or_else(PoisonError::into_inner)
    }

    /// The state that it leads to; `None` where it failed.
    fn take(&self) -> Option<State> {
        match std::mem::replace(&mut *self.done(), Progress::Taken) {
            Progress::Done(parser, Ok(mask)) => Some(State::Known(parser, mask)),
            _ => None,
        }
    }

    /// The same for a second sequence.
    fn share(&self) -> Option<State> {
        match &*self.done() {
            Progress::Done(parser, Ok(mask)) => Some(State::Known(parser.clone(), mask.clone())),
            _ => None,
        }
    }
}

enum State {
    /// Nothing is asked of the answer until these tokens have come.
    Free(Arc<[u32]>),
    Known(Box<TokenParser>, Arc<Mask>),
    Computing(Arc<Job>),
    /// Nothing may follow.
    Ended,
    Failed(GrammarError),
}

/// Where one sequence is in a grammar.
pub struct Matcher {
    grammar: Arc<Grammar>,
    copy: usize,
    /// Since the grammar began.
    tokens: Vec<u32>,
    state: State,
}

impl std::fmt::Debug for Matcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Matcher").field("tokens", &self.tokens).finish_non_exhaustive()
    }
}

impl Matcher {
    /// Before the first token of an answer. The grammar begins behind the tokens `after`; at once, where there are none.
    pub fn new(grammar: Arc<Grammar>, after: Arc<[u32]>) -> Matcher {
        let state = State::Free(after);
        let mut matcher = Matcher { grammar, copy: 0, tokens: vec![], state };
        if matches!(&matcher.state, State::Free(after) if after.is_empty()) {
            matcher.begin();
        }
        matcher
    }

    fn begin(&mut self) {
        let (parser, copy) = self.grammar.start();
        self.copy = copy;
        self.state = State::Known(Box::new(parser), self.grammar.first.clone());
    }

    /// Which tokens may come next; `None` where all may. Waits for it where it is not known yet.
    ///
    /// # Errors
    /// The answer cannot go on.
    pub fn mask(&mut self) -> Result<Option<Arc<Mask>>, GrammarError> {
        self.settle();
        match &self.state {
            State::Known(_, mask) => Ok(Some(mask.clone())),
            State::Failed(error) => Err(error.clone()),
            State::Free(_) | State::Ended | State::Computing(_) => Ok(None),
        }
    }

    fn settle(&mut self) {
        if let State::Computing(job) = &self.state {
            let known = job.take();
            self.state = known.unwrap_or_else(|| self.again());
        }
    }

    /// The state after the sequence's tokens, by a fresh lexer.
    fn again(&self) -> State {
        self.grammar.renew(self.copy);
        let mut parser = Box::new(self.grammar.fresh());
        let mask = consume(&mut parser, &self.tokens).and_then(|_| Mask::compute(&mut parser));
        match mask {
            Ok(mask) => State::Known(parser, Arc::new(mask)),
            Err(error) => State::Failed(error),
        }
    }

    /// Takes the token that was chosen; `output` are all tokens of the answer, it included. Returns the work that the
    /// next mask is, to be done beside the forward.
    pub fn advance(&mut self, token: u32, output: &[u32]) -> Option<Arc<Job>> {
        self.settle();
        match &self.state {
            State::Free(after) => {
                if output.ends_with(after) {
                    self.begin();
                }
                None
            }
            State::Known(..) => self.consume(token),
            State::Computing(_) | State::Ended | State::Failed(_) => None,
        }
    }

    fn consume(&mut self, token: u32) -> Option<Arc<Job>> {
        let State::Known(mut parser, _) = std::mem::replace(&mut self.state, State::Ended) else { return None };
        self.tokens.push(token);
        match consume(&mut parser, &[token]) {
            Ok(true) => None,
            Ok(false) => {
                let job = Job::new(parser);
                self.state = State::Computing(job.clone());
                Some(job)
            }
            Err(_) => {
                self.state = self.again();
                None
            }
        }
    }

    /// Ends it: the answer is over.
    pub fn end(&mut self) {
        self.state = State::Ended;
    }

    /// Whether nothing may follow.
    pub fn has_ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }
}

/// Whether nothing may follow after these tokens.
fn consume(parser: &mut TokenParser, tokens: &[TokenId]) -> Result<bool, GrammarError> {
    let consumed = panic_utils::catch_unwind(AssertUnwindSafe(|| {
        for token in tokens {
            parser.consume_token(*token)?;
        }
        parser.check_stop()
    }));
    consumed.map_err(GrammarError::stuck)
}

impl Clone for Matcher {
    /// A sequence that goes on from here by itself.
    fn clone(&self) -> Matcher {
        let state = match &self.state {
            State::Free(after) => State::Free(after.clone()),
            State::Known(parser, mask) => State::Known(parser.clone(), mask.clone()),
            State::Computing(job) => job.share().unwrap_or_else(|| self.again()),
            State::Ended => State::Ended,
            State::Failed(error) => State::Failed(error.clone()),
        };
        Matcher { grammar: self.grammar.clone(), copy: self.copy, tokens: self.tokens.clone(), state }
    }
}

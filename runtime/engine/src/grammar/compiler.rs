//! Requests to grammars, kept for the next request that brings the same.
//!
//! Compiling runs on a thread of its own, whose stack suffices for grammars nested as deep as is taken. A grammar is
//! followed by several copies of its lexer, so that sequences of one grammar do not wait for one another; a copy learns
//! from all sequences that use it, and starts again when it has grown large or has failed.
//!
//! Invariants:
//! - the cache is bounded, in grammars and in bytes of what they were made from;
//! - what a copy has learnt changes how long an answer takes, never which tokens may come next.

use super::{
    error::{GrammarError, first_line},
    matcher::Mask,
    request::StructuredOutputs,
    schema, vocabulary,
};
use crate::tokenizer::Tokenizer;
use llguidance::{
    ParserFactory, TokenParser,
    api::{GrammarInit, ParserLimits},
    earley::SlicedBiasComputer,
    panic_utils,
    toktrie::InferenceCapabilities,
};
use std::{
    collections::HashMap,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
};

/// Most grammars that are kept.
const MOST_GRAMMARS: usize = 256;
/// Most bytes of the requests whose grammars are kept.
const MOST_BYTES: usize = 32 << 20;
/// Bytes of a lexer's tables above which a copy starts again.
const MOST_LEARNT: usize = 32 << 20;
/// Stack of the thread that compiles.
const STACK: usize = 256 << 20;
/// Copies of a grammar's lexer.
pub(super) const COPIES: usize = 4;

/// Bounds of a grammar and of one question to it. A mask takes about 20 ms at most.
fn limits() -> ParserLimits {
    ParserLimits { max_lexer_states: 50_000, verbose_errors: false, ..ParserLimits::default() }
}

/// A grammar that answers can follow.
pub struct Grammar {
    /// As it was compiled; nothing is learnt by it.
    pristine: Mutex<TokenParser>,
    copies: [Mutex<TokenParser>; COPIES],
    next: AtomicUsize,
    /// Which tokens may come first.
    pub(super) first: Arc<Mask>,
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammar").finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a panic left behind is replaced by whoever meets it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Grammar {
    fn new(mut parser: TokenParser) -> Result<Grammar, GrammarError> {
        parser.start_without_prompt();
        let mut probe = parser.deep_clone();
        let first = Mask::compute(&mut probe)?;
        let copies = std::array::from_fn(|_| Mutex::new(parser.deep_clone()));
        Ok(Grammar { pristine: Mutex::new(parser), copies, next: AtomicUsize::new(0), first: Arc::new(first) })
    }

    /// A parser at the grammar's start, and which copy of the lexer it uses.
    pub(super) fn start(&self) -> (TokenParser, usize) {
        let copy = self.next.fetch_add(1, Ordering::Relaxed) % COPIES;
        let mut parser = lock(&self.copies[copy]);
        let learnt = panic_utils::catch_unwind(AssertUnwindSafe(|| Ok(parser.parser.lexer_stats().num_bytes)));
        if learnt.map_or(true, |bytes| bytes > MOST_LEARNT) {
            *parser = self.fresh();
        }
        (parser.clone(), copy)
    }

    /// A parser at the grammar's start that shares nothing.
    pub(super) fn fresh(&self) -> TokenParser {
        lock(&self.pristine).deep_clone()
    }

    /// Makes a copy that has failed start again.
    pub(super) fn renew(&self, copy: usize) {
        *lock(&self.copies[copy]) = self.fresh();
    }
}

struct Kept {
    text: String,
    grammar: Arc<Grammar>,
    used: u64,
}

/// Turns requests into grammars for the tokens of one model.
pub struct GrammarCompiler {
    tokenizer: Option<Arc<Tokenizer>>,
    eos_token_ids: Arc<[u32]>,
    vocab_size: u32,
    /// Made for the first request that needs it.
    factory: OnceLock<Result<ParserFactory, GrammarError>>,
    kept: Mutex<HashMap<u128, Kept>>,
    clock: AtomicU64,
}

impl GrammarCompiler {
    /// A compiler for the tokens below `vocab_size`, the ends of answers among them named.
    pub fn new(tokenizer: Option<Arc<Tokenizer>>, eos_token_ids: Arc<[u32]>, vocab_size: u32) -> GrammarCompiler {
        let (factory, kept, clock) = (OnceLock::new(), Mutex::new(HashMap::new()), AtomicU64::new(0));
        GrammarCompiler { tokenizer, eos_token_ids, vocab_size, factory, kept, clock }
    }

    /// The grammar of a request, if it is kept.
    pub fn find(&self, request: &StructuredOutputs) -> Option<Arc<Grammar>> {
        self.find_text(&request.text())
    }

    /// The grammar of a request: the one kept, or a new one. May take as long as a second.
    ///
    /// # Errors
    /// It cannot be followed.
    pub fn compile(&self, request: &StructuredOutputs) -> Result<Arc<Grammar>, GrammarError> {
        let text = request.text();
        if let Some(found) = self.find_text(&text) {
            return Ok(found);
        }
        let compiled = thread::scope(|scope| {
            let thread = thread::Builder::new().stack_size(STACK);
            let spawned = thread.spawn_scoped(scope, || self.compile_new(request));
            let refused = |e| GrammarError::Stuck(format!("there is no thread to compile the grammar on: {e}"));
            let panicked = |_| GrammarError::invalid("grammar", "it is too complex");
            spawned.map_err(refused)?.join().map_err(panicked)?
        })?;
        self.keep(text, &compiled);
        Ok(compiled)
    }

    fn compile_new(&self, request: &StructuredOutputs) -> Result<Arc<Grammar>, GrammarError> {
        let kind = request.kind()?;
        let factory = self.factory.get_or_init(|| self.factory()).as_ref().map_err(Clone::clone)?;
        let grammar = GrammarInit::Serialized(request.to_grammar()?);
        let parser = factory.create_parser_from_init_default(grammar);
        let parser = parser.map_err(|e| refused(kind, request, &format!("{e:#}")))?;
        let grammar = Grammar::new(parser).map_err(|e| match e {
            GrammarError::Stuck(why) => GrammarError::invalid(kind_words(kind), format!("from its start, {why}")),
            other => other,
        })?;
        Ok(Arc::new(grammar))
    }

    fn factory(&self) -> Result<ParserFactory, GrammarError> {
        let tokenizer = self.tokenizer.as_ref().ok_or_else(|| GrammarError::Vocabulary("a tokenizer".to_string()))?;
        let environment = vocabulary::environment(tokenizer, &self.eos_token_ids, self.vocab_size)?;
        let slices = SlicedBiasComputer::general_slices();
        let made = panic_utils::catch_unwind(AssertUnwindSafe(|| {
            ParserFactory::new(&environment, InferenceCapabilities::default(), &slices)
        }));
        let mut factory = made.map_err(|e| GrammarError::Vocabulary(format!("a tokenizer that can be read: {e}")))?;
        factory.quiet();
        *factory.limits_mut() = limits();
        Ok(factory)
    }

    fn find_text(&self, text: &str) -> Option<Arc<Grammar>> {
        let now = self.clock.fetch_add(1, Ordering::Relaxed);
        let mut all = lock(&self.kept);
        // Two texts of one hash can be made on purpose.
        let kept = all.get_mut(&hash(text)).filter(|k| k.text == text)?;
        kept.used = now;
        Some(kept.grammar.clone())
    }

    fn keep(&self, text: String, grammar: &Arc<Grammar>) {
        let used = self.clock.fetch_add(1, Ordering::Relaxed);
        let mut all = lock(&self.kept);
        all.insert(hash(&text), Kept { text, grammar: grammar.clone(), used });
        let bytes = |all: &HashMap<u128, Kept>| all.values().map(|k| k.text.len()).sum::<usize>();
        while all.len() > 1 && (all.len() > MOST_GRAMMARS || bytes(&all) > MOST_BYTES) {
            let oldest = all.iter().min_by_key(|(_, k)| k.used).map(|(hash, _)| *hash);
            oldest.and_then(|hash| all.remove(&hash));
        }
    }

    /// Grammars that are kept.
    pub fn num_kept(&self) -> usize {
        lock(&self.kept).len()
    }
}

fn hash(text: &str) -> u128 {
    xxhash_rust::xxh3::xxh3_128(text.as_bytes())
}

/// A message of the compiler's, with the keyword and its place where they can be told.
fn refused(kind: &'static str, request: &StructuredOutputs, message: &str) -> GrammarError {
    let one_of = message.contains("oneOf constraints are not supported");
    let places = request.json.as_ref().filter(|_| one_of).map(schema::places_of_one_of).unwrap_or_default();
    if places.is_empty() {
        return GrammarError::invalid(kind_words(kind), first_line(message));
    }
    let problem = "what its options have in common must not fulfil it, but they cannot be told apart; use anyOf, or give \
                   each a required property of its own value";
    GrammarError::Keyword { keyword: "oneOf".into(), path: places.join(" or "), problem: problem.into() }
}

fn kind_words(kind: &'static str) -> &'static str {
    match kind {
        "json" | "json_object" => "JSON schema",
        "regex" => "regular expression",
        "choice" => "choice",
        "structural_tag" => "structural tag",
        _ => "grammar",
    }
}

//! `rvllm run`: a conversation in the terminal.
//!
//! Invariants:
//! - Ctrl-C ends the answer, not the program; Ctrl-D ends the program;
//! - a conversation that outgrows the model loses its oldest turns, never the system message, and that is said;
//! - where stdin is no terminal, each line of it is a turn, and stdout has the answers only.

use crate::{
    cli,
    drive::{Request, Tally, drive},
    encode::Encoder,
    error::{Failure, message, note},
    input::Prompt,
    interrupt,
    model::Session,
    output::Answer,
    progress::Progress,
    sink::Sink,
    terminal::{Read, Source},
};
use anyhow::{Context, Result};
use rvllm_engine::{SamplingParams, SequenceOutput};
use serde_json::{Value, json};
use std::{
    io::{self, Write},
    sync::atomic::Ordering,
    time::Instant,
};

const HELP: &str = "\
/help          this text
/reset         forget the conversation (the system message stays)
/system TEXT   set the system message and forget the conversation; without TEXT, none
/stats         speed of the last answer, size of the conversation
/exit          end, as Ctrl-D does
A line that ends with \\ goes on in the next. Ctrl-C stops an answer.";

/// Runs the command. `start` is when the program started.
pub fn run(args: &cli::Run, start: Instant) -> Result<()> {
    let session = Session::open(&args.model, &args.engine, false)?;
    let params = session.defaults(&args.sampling, &args.generation_config, None)?;
    let encoder = Encoder::new(&session.artifact, session.engine.tokenizer(), true)?;
    let mut source = Source::new();
    let mut chat =
        Chat { session, encoder, params, conversation: Conversation::new(args.system.clone()), last: None, turn: 0 };
    chat.greet(&source);
    loop {
        match source.read()? {
            Read::End => return Ok(()),
            Read::Interrupted => note("(Ctrl-D or /exit ends)"),
            Read::Text(text) if text.trim().is_empty() => {}
            Read::Text(text) => {
                if !chat.hear(&text, start)? {
                    return Ok(());
                }
            }
        }
    }
}

/// The turns so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    system: Option<String>,
    turns: Vec<Value>,
}

impl Conversation {
    /// No turns yet.
    pub fn new(system: Option<String>) -> Self {
        Self { system, turns: vec![] }
    }

    /// All messages, as a chat template takes them.
    pub fn messages(&self) -> Vec<Value> {
        let system = self.system.iter().map(|text| json!({"role": "system", "content": text}));
        system.chain(self.turns.iter().cloned()).collect()
    }

    /// Adds a message of the user or the assistant.
    pub fn say(&mut self, role: &str, content: &str) {
        self.turns.push(json!({"role": role, "content": content}));
    }

    /// Drops the oldest turns, a question with its answer, until what `count` measures is at most `limit`.
    /// Returns how many messages went.
    ///
    /// # Errors
    /// The last message alone is over the limit, or cannot be measured; the conversation is then as it was before it.
    pub fn fit(&mut self, limit: usize, count: impl FnMut(&[Value]) -> Result<usize>) -> Result<usize> {
        let before = self.turns.clone();
        let fitted = self.shrink(limit, count).map(|()| before.len() - self.turns.len());
        if fitted.is_err() {
            self.turns = before;
            self.turns.pop();
        }
        fitted
    }

    fn shrink(&mut self, limit: usize, mut count: impl FnMut(&[Value]) -> Result<usize>) -> Result<()> {
        loop {
            let tokens = count(&self.messages())?;
            match self.turns.len() {
                _ if tokens <= limit => return Ok(()),
                0 | 1 => {
                    let text = format!("this message has {tokens} tokens with its template, but {limit} fit");
                    return Err(Failure::new(text).into());
                }
                n => drop(self.turns.drain(..n.min(3) - 1)),
            }
        }
    }
}

struct Chat {
    session: Session,
    encoder: Encoder,
    params: SamplingParams,
    conversation: Conversation,
    last: Option<Tally>,
    turn: usize,
}

impl Chat {
    fn greet(&self, source: &Source) {
        if source.is_terminal() {
            note(&format!("{} · /help for help, Ctrl-D ends", self.session.artifact.manifest().model.name));
        }
        if !self.encoder.has_template() {
            note("this model has no chat template: each line is continued as it stands, without a history");
        }
    }

    /// A line of the user's. Returns whether to go on.
    fn hear(&mut self, text: &str, start: Instant) -> Result<bool> {
        let (command, rest) = text.trim().split_once(char::is_whitespace).unwrap_or((text.trim(), ""));
        match command {
            "/exit" | "/quit" | "/bye" => return Ok(false),
            "/help" => note(HELP),
            "/reset" => self.conversation.turns.clear(),
            "/system" => {
                let system = Some(rest.trim().to_string()).filter(|s| !s.is_empty());
                self.conversation = Conversation::new(system);
            }
            "/stats" => self.tell_stats(start),
            other if other.starts_with('/') && !other[1..].contains('/') => {
                note(&format!("no command {other}; /help lists them"));
            }
            _ => self.answer(text)?,
        }
        Ok(true)
    }

    fn tell_stats(&self, start: Instant) {
        match &self.last {
            Some(tally) => note(&tally.line(start)),
            None => note("no answer yet"),
        }
        let prompt = Prompt::Messages(self.conversation.messages());
        let size = self.encoder.has_template().then(|| self.encoder.encode(&prompt).ok()).flatten();
        if let Some((_, ids)) = size {
            let (turns, most) = (self.conversation.turns.len(), self.session.engine.max_model_len());
            note(&format!("conversation: {turns} messages, {} of {most} tokens", ids.len()));
        }
    }

    /// Answers; what the user can put right is told, and the conversation goes on.
    fn answer(&mut self, text: &str) -> Result<()> {
        let prompt_token_ids = match self.prompt(text) {
            Ok(ids) => ids,
            Err(error) => {
                note(&format!("error: {}", message(&error)));
                return Ok(());
            }
        };
        self.turn += 1;
        let request = Request { index: self.turn, prompt: None, prompt_token_ids, params: self.params.clone() };
        if let Err(error) =
            self.session.engine.add_request(self.turn as u64, request.prompt_token_ids.clone(), request.params.clone())
        {
            note(&format!("error: {error}"));
            self.conversation.turns.pop();
            return Ok(());
        }
        self.stream(&request)
    }

    /// The tokens to continue.
    fn prompt(&mut self, text: &str) -> Result<Vec<u32>> {
        if !self.encoder.has_template() {
            return Ok(self.encoder.encode(&Prompt::Text(text.to_string()))?.1);
        }
        self.conversation.say("user", text);
        let limit = self.limit();
        let encoder = &self.encoder;
        let encode = |messages: &[Value]| Ok(encoder.encode(&Prompt::Messages(messages.to_vec()))?.1);
        let dropped = self.conversation.fit(limit, |messages| encode(messages).map(|ids| ids.len()))?;
        if dropped > 0 {
            note(&format!("(the conversation is full: its {dropped} oldest messages are forgotten)"));
        }
        encode(&self.conversation.messages())
    }

    /// Most tokens of a prompt: the answer keeps a quarter of the model's length, unless it needs less.
    fn limit(&self) -> usize {
        let most = self.session.engine.max_model_len();
        let answer = self.params.max_tokens.unwrap_or(most).min(most / 4).max(1);
        most.saturating_sub(answer) as usize
    }

    fn stream(&mut self, request: &Request) -> Result<()> {
        let stop = interrupt::flag()?;
        stop.store(false, Ordering::Relaxed);
        let mut speech = Speech { text: String::new() };
        let engine = &mut self.session.engine;
        let mut tally = drive(engine, std::slice::from_ref(request), &mut speech, &mut Progress::none(), stop)?;
        if tally.interrupted {
            let given_up = engine.abort(request.index as u64).and_then(|output| output.finished);
            given_up.iter().for_each(|metrics| tally.count(metrics));
            stop.store(false, Ordering::Relaxed);
        }
        writeln!(io::stdout()).context("cannot write the answer")?;
        if self.encoder.has_template() {
            self.conversation.say("assistant", &speech.text);
        }
        self.last = Some(tally);
        Ok(())
    }
}

/// Prints an answer as it grows, and keeps it.
struct Speech {
    text: String,
}

impl Sink for Speech {
    fn grow(&mut self, _: usize, added: &SequenceOutput) -> Result<()> {
        if added.index > 0 {
            return Ok(());
        }
        self.text.push_str(&added.text);
        let mut out = io::stdout().lock();
        out.write_all(added.text.as_bytes()).and_then(|()| out.flush()).context("cannot write the answer")
    }

    fn finish(&mut self, _: usize, _: Option<&str>, _: &[u32], _: &Answer) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation() -> Conversation {
        let mut c = Conversation::new(Some("sys".into()));
        for turn in 0..3 {
            c.say("user", &format!("q{turn}"));
            c.say("assistant", &format!("a{turn}"));
        }
        c.say("user", "q3");
        c
    }

    fn texts(c: &Conversation) -> Vec<String> {
        c.messages().iter().map(|m| m["content"].as_str().unwrap().to_string()).collect()
    }

    #[test]
    fn the_oldest_turns_go_first_and_the_system_message_stays() {
        let mut c = conversation();
        assert_eq!(c.fit(8, |m| Ok(m.len())).unwrap(), 0);
        assert_eq!(c.fit(5, |m| Ok(m.len())).unwrap(), 4);
        assert_eq!(texts(&c), ["sys", "q2", "a2", "q3"]);
        assert_eq!(c.fit(2, |m| Ok(m.len())).unwrap(), 2);
        assert_eq!(texts(&c), ["sys", "q3"]);
    }

    #[test]
    fn a_message_that_cannot_be_asked_is_taken_back() {
        let mut before = conversation();
        before.turns.pop();
        for refuse in [false, true] {
            let mut c = conversation();
            let count = |_: &[Value]| if refuse { Err(anyhow::anyhow!("no")) } else { Ok(100) };
            assert!(c.fit(5, count).is_err());
            assert_eq!(c, before);
        }
    }
}

//! Reads the harmony format of gpt-oss: messages of a header, `<|message|>` and a body, each on a channel.
//!
//! `analysis` is reasoning; `commentary` and `final` are content; a message to a recipient is a tool call, whichever
//! half of the header names it (`assistant to=functions.f<|channel|>commentary` or `<|channel|>commentary
//! to=functions.f`). Built-in tools on the analysis channel (`python`, `browser.search`) stay reasoning.
//!
//! The prompt ends with `<|start|>assistant`, so a text begins inside of a header. Text without any header is content.

use super::json::{Fed, Json};
use super::marks::Marks;
use super::sink::Sink;

const START: &str = "<|start|>";
const CHANNEL: &str = "<|channel|>";
const CONSTRAIN: &str = "<|constrain|>";
const MESSAGE: &str = "<|message|>";
/// All markers; the last three end a message.
pub(super) const MARKS: [&str; 7] = [START, CHANNEL, CONSTRAIN, MESSAGE, "<|end|>", "<|call|>", "<|return|>"];

/// A header of more bytes than this is not one.
const MAX_HEADER: usize = 1024;

#[derive(Debug)]
enum At {
    /// Inside of a header, as far as one can tell.
    Header,
    Reasoning,
    Content,
    /// A call that has not begun its arguments.
    Recipient(String),
    Arguments(Json),
}

/// State of the reading.
#[derive(Debug)]
pub(super) struct Harmony {
    at: At,
    /// A header, markers included.
    raw: String,
    tools: bool,
    marks: Marks,
}

impl Harmony {
    /// A reader of what follows `<|start|>assistant`. Without `tools`, calls are content, markup included.
    pub(super) fn new(tools: bool) -> Self {
        Self { at: At::Header, raw: String::new(), tools, marks: Marks::new(MARKS.to_vec()) }
    }

    /// Reads `text`.
    pub(super) fn push(&mut self, text: &str, sink: &mut Sink) {
        let mut plain = String::new();
        for c in text.chars() {
            let mark = self.marks.push(c, &mut plain);
            plain.drain(..).for_each(|c| self.character(c, sink));
            if let Some(mark) = mark {
                self.mark(mark, sink);
            }
        }
    }

    /// Ends the text.
    pub(super) fn finish(&mut self, sink: &mut Sink) {
        self.marks.flush().chars().for_each(|c| self.character(c, sink));
        match std::mem::replace(&mut self.at, At::Content) {
            At::Arguments(json) => break_off(json, sink),
            _ => sink.content(&std::mem::take(&mut self.raw)),
        }
    }

    fn character(&mut self, c: char, sink: &mut Sink) {
        match &mut self.at {
            At::Header => self.header(c, sink),
            At::Reasoning => sink.reasoning(c.encode_utf8(&mut [0; 4])),
            At::Content => sink.content(c.encode_utf8(&mut [0; 4])),
            At::Recipient(name) => {
                if c == '{' {
                    sink.start(std::mem::take(name), None);
                    self.raw.clear();
                    self.at = At::Arguments(Json::new());
                    self.arguments(c, sink);
                } else {
                    self.raw.push(c);
                    if !c.is_whitespace() {
                        self.refuse(sink);
                    }
                }
            }
            At::Arguments(_) => self.arguments(c, sink),
        }
    }

    fn header(&mut self, c: char, sink: &mut Sink) {
        self.raw.push(c);
        let text = self.raw.trim_start();
        let viable = text.contains("<|") || text.starts_with("to=") || "to=".starts_with(text);
        if !viable || self.raw.len() > MAX_HEADER {
            self.refuse(sink);
        }
    }

    /// What was held is content, and so is what follows.
    fn refuse(&mut self, sink: &mut Sink) {
        sink.content(&std::mem::take(&mut self.raw));
        self.at = At::Content;
    }

    fn arguments(&mut self, c: char, sink: &mut Sink) {
        let At::Arguments(json) = &mut self.at else { return };
        let mut out = String::new();
        let fed = json.push(c, &mut out);
        sink.arguments(&out);
        match fed {
            Fed::More => {}
            Fed::Closed => {
                sink.end(true);
                self.at = At::Content;
            }
            Fed::Invalid | Fed::ClosedBefore => {
                sink.end(false);
                sink.content(json.held());
                sink.content(c.encode_utf8(&mut [0; 4]));
                self.at = At::Content;
            }
        }
    }

    fn mark(&mut self, mark: &'static str, sink: &mut Sink) {
        match (&self.at, mark) {
            (At::Header, CHANNEL | CONSTRAIN) => self.raw.push_str(mark),
            (At::Header, MESSAGE) => self.message(sink),
            (_, START | CHANNEL) => {
                self.end_message(sink);
                self.raw.push_str(mark);
                self.at = At::Header;
            }
            (_, MESSAGE | CONSTRAIN) => mark.chars().for_each(|c| self.character(c, sink)),
            _ => self.end_message(sink),
        }
    }

    /// A header is whole: the body follows.
    fn message(&mut self, sink: &mut Sink) {
        self.raw.push_str(MESSAGE);
        self.at = match destination(&self.raw) {
            At::Recipient(_) if !self.tools => return self.refuse(sink),
            // nothing names a channel: not a header
            At::Header => return self.refuse(sink),
            At::Recipient(name) => At::Recipient(name),
            at => {
                self.raw.clear();
                at
            }
        };
    }

    fn end_message(&mut self, sink: &mut Sink) {
        match std::mem::replace(&mut self.at, At::Content) {
            At::Arguments(json) => break_off(json, sink),
            At::Recipient(name) => {
                self.raw.clear();
                sink.start(name, None);
                sink.arguments("{}");
                sink.end(true);
            }
            _ => sink.content(&std::mem::take(&mut self.raw)),
        }
    }
}

fn break_off(mut json: Json, sink: &mut Sink) {
    let mut rest = String::new();
    json.write_word(&mut rest);
    sink.arguments(&rest);
    sink.end(false);
}

/// Where the body after `header` goes; [`At::Header`] when the header says nothing.
fn destination(header: &str) -> At {
    let (mut channel, mut recipient) = (None, None);
    for (position, part) in header.split(CHANNEL).enumerate() {
        let text = part.replace("<|", " <|").replace("|>", "|> ");
        let mut words = text.split_whitespace().filter(|word| !word.starts_with("<|")).peekable();
        if position > 0 {
            channel = words.next_if(|word| !word.starts_with("to=")).map(str::to_owned);
        }
        recipient = words.find_map(|word| word.strip_prefix("to=").map(str::to_owned)).or(recipient);
    }
    let analysis = channel.as_deref() == Some("analysis");
    match recipient.as_deref().map(|name| (name.strip_prefix("functions."), name)) {
        Some((Some(function), _)) if !function.is_empty() => At::Recipient(function.to_owned()),
        Some((None, name)) if !analysis && !name.is_empty() => At::Recipient(name.to_owned()),
        _ if analysis => At::Reasoning,
        _ if channel.is_some() || header.starts_with(START) => At::Content,
        _ => At::Header,
    }
}

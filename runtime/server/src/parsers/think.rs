//! Splits text that begins with tagged reasoning, such as `<think>…</think>`, into reasoning and the rest.
//!
//! Invariants:
//! - Reasoning stands only at the beginning; tags in the rest are left to it.
//! - A text begins inside reasoning when its prompt ends with the opening tag, outside when the prompt ends with the
//!   closing tag, and as the model's family does when the prompt has neither. An opening tag of its own always opens.

use super::marks::Marks;

/// The tags around reasoning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tags {
    open: &'static str,
    close: &'static str,
}

impl Tags {
    /// Both tags.
    pub(super) fn both(self) -> [&'static str; 2] {
        [self.open, self.close]
    }
}

/// `<think>…</think>`: most families.
pub(super) const THINK: Tags = Tags { open: "<think>", close: "</think>" };
/// `[THINK]…[/THINK]`: Mistral.
pub(super) const MISTRAL_THINK: Tags = Tags { open: "[THINK]", close: "[/THINK]" };

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Start,
    Inside,
    Outside,
}

/// State of the split.
#[derive(Debug)]
pub(super) struct Think {
    tags: Tags,
    at: At,
    inside: bool,
    /// Whitespace at the very beginning.
    blanks: String,
    /// The beginning of what may be a tag, after `blanks`.
    tag: String,
    marks: Marks,
}

/// Text of each kind that became certain.
#[derive(Debug, Default)]
pub(super) struct Split {
    /// To be appended to the reasoning; precedes `rest`.
    pub(super) reasoning: String,
    /// To be appended to the text after the reasoning.
    pub(super) rest: String,
}

impl Think {
    /// A split of the text that follows `prompt`. `inside`: the family's models begin with reasoning without saying so.
    /// `enders`: markers of calls, which end the reasoning too, and remain in the rest.
    pub(super) fn new(tags: Tags, prompt: &str, inside: bool, enders: Vec<&'static str>) -> Self {
        let tail = prompt.trim_end();
        let inside = tail.ends_with(tags.open) || (inside && !tail.ends_with(tags.close));
        let marks = Marks::new([tags.close].into_iter().chain(enders).collect());
        Self { tags, at: At::Start, inside, blanks: String::new(), tag: String::new(), marks }
    }

    /// Reads `text`.
    pub(super) fn push(&mut self, text: &str) -> Split {
        let mut split = Split::default();
        for c in text.chars() {
            self.step(c, &mut split);
        }
        split
    }

    /// Ends the text.
    pub(super) fn finish(&mut self) -> Split {
        let mut split = Split::default();
        self.leave_start(&mut split);
        split.reasoning.push_str(&self.marks.flush());
        split
    }

    fn step(&mut self, c: char, split: &mut Split) {
        match self.at {
            At::Start => self.start(c, split),
            At::Inside => self.inside(c, split),
            At::Outside => split.rest.push(c),
        }
    }

    fn start(&mut self, c: char, split: &mut Split) {
        if self.tag.is_empty() && c.is_whitespace() {
            self.blanks.push(c);
            return;
        }
        self.tag.push(c);
        if self.tag == self.tags.open {
            self.at = At::Inside;
        } else if !self.tags.open.starts_with(&self.tag) {
            self.leave_start(split);
        }
    }

    /// The text does not begin with a tag.
    fn leave_start(&mut self, split: &mut Split) {
        if self.at != At::Start {
            return;
        }
        self.at = if self.inside { At::Inside } else { At::Outside };
        let held = std::mem::take(&mut self.blanks) + &std::mem::take(&mut self.tag);
        for c in held.chars() {
            self.step(c, split);
        }
    }

    fn inside(&mut self, c: char, split: &mut Split) {
        if let Some(mark) = self.marks.push(c, &mut split.reasoning) {
            self.at = At::Outside;
            if mark != self.tags.close {
                split.rest.push_str(mark);
            }
        }
    }
}

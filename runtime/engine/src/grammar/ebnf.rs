//! EBNF as xgrammar and llama.cpp (GBNF) write it, into Lark's notation.
//!
//! Rules that cannot reach themselves become terminals, which lexers read quickly: a terminal takes as much text as it
//! can. The others stay rules.
//!
//! Invariants: what is not of the notation is refused with its place; nesting is bounded, so that no reader of a grammar
//! runs out of stack.

use super::{error::GrammarError, request::lark_literal};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

/// Deepest nesting of brackets in a grammar.
const DEEPEST: usize = 200;
/// Most repetitions that are counted.
const MOST_REPEATS: u32 = 100_000;

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Name(String),
    Defines,
    Literal(String),
    /// As a regular expression's class.
    Class(String),
    Open,
    Close,
    Or,
    Repeat(u32, Option<u32>),
}

#[derive(Debug)]
enum Expr {
    Literal(String),
    Class(String),
    Name(String),
    All(Vec<Expr>),
    Any(Vec<Expr>),
    Repeat(Box<Expr>, u32, Option<u32>),
}

type Rules = BTreeMap<String, Expr>;

fn invalid(problem: impl Into<String>) -> GrammarError {
    GrammarError::invalid("grammar", problem)
}

/// Whether a grammar is EBNF: its rules are defined by `::=`, which Lark does not have.
pub fn is_ebnf(grammar: &str) -> bool {
    grammar.lines().any(|line| {
        let name = line.trim_start().split_once("::=").map(|(name, _)| name.trim());
        name.is_some_and(|n| !n.is_empty() && n.chars().all(is_name))
    })
}

/// Refuses a grammar in Lark's notation whose brackets are nested too deeply.
///
/// # Errors
/// They are.
pub fn check_nesting(grammar: &str) -> Result<(), GrammarError> {
    let mut depth = 0usize;
    for c in grammar.chars() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            // Brackets of a terminal's text need not close: what is open ends with the line.
            '\n' => depth = 0,
            _ => {}
        }
        if depth > DEEPEST {
            return Err(invalid(format!("brackets are nested deeper than {DEEPEST}")));
        }
    }
    Ok(())
}

/// The grammar in Lark's notation. Its first symbol is `root`.
///
/// # Errors
/// It is not of the notation, names a rule that it lacks, or has no `root`.
pub fn to_lark(grammar: &str) -> Result<String, GrammarError> {
    let rules = Parser { tokens: Lexer::new(grammar).tokens()?, at: 0 }.rules()?;
    check_names(&rules)?;
    let terminals = terminals(&rules);
    let mut lark = format!("start: {}\n", name("root", &terminals));
    for (rule, expr) in &rules {
        let mut body = String::new();
        write_expr(expr, &terminals, &mut body);
        let _ = writeln!(lark, "{}: {body}", name(rule, &terminals));
    }
    Ok(lark)
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '-' || c == '.'
}

struct Lexer<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Lexer<'a> {
    fn new(text: &'a str) -> Lexer<'a> {
        Lexer { text, at: 0 }
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn bump(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn wrong(&self, what: &str) -> GrammarError {
        let line = self.text[..self.at.min(self.text.len())].matches('\n').count() + 1;
        invalid(format!("line {line}: {what}"))
    }

    fn tokens(mut self) -> Result<Vec<Token>, GrammarError> {
        let mut tokens = vec![];
        while let Some(c) = self.peek() {
            match c {
                '#' => self.skip(|c| c != '\n'),
                c if c.is_whitespace() => self.skip(char::is_whitespace),
                _ => tokens.push(self.token(c)?),
            }
        }
        Ok(tokens)
    }

    fn skip(&mut self, of: impl Fn(char) -> bool) {
        self.at += self.rest().find(|c| !of(c)).unwrap_or(self.rest().len());
    }

    fn token(&mut self, first: char) -> Result<Token, GrammarError> {
        if self.rest().starts_with("::=") {
            self.at += 3;
            return Ok(Token::Defines);
        }
        if first.is_ascii_alphabetic() || first == '_' {
            let start = self.at;
            self.skip(is_name);
            return Ok(Token::Name(self.text[start..self.at].to_string()));
        }
        self.bump();
        match first {
            '"' => self.literal(),
            '[' => self.class(),
            '{' => self.counts(),
            '.' => Ok(Token::Class("[\\x{0}-\\x{10FFFF}]".to_string())),
            '(' if self.peek() == Some('=') => Err(self.wrong("look-ahead `(= …)` cannot be followed")),
            '(' => Ok(Token::Open),
            ')' => Ok(Token::Close),
            '|' => Ok(Token::Or),
            '*' => Ok(Token::Repeat(0, None)),
            '+' => Ok(Token::Repeat(1, None)),
            '?' => Ok(Token::Repeat(0, Some(1))),
            other => Err(self.wrong(&format!("{other:?} is not of the notation"))),
        }
    }

    fn literal(&mut self) -> Result<Token, GrammarError> {
        let mut text = String::new();
        loop {
            match self.bump() {
                Some('"') => return Ok(Token::Literal(text)),
                Some('\\') => text.push(self.escape()?),
                Some('\n') | None => return Err(self.wrong("a text in quotes does not end")),
                Some(c) => text.push(c),
            }
        }
    }

    fn class(&mut self) -> Result<Token, GrammarError> {
        let mut class = String::from("[");
        if self.peek() == Some('^') {
            self.bump();
            class.push('^');
        }
        let mut empty = true;
        loop {
            let c = match self.bump() {
                Some(']') if empty => return Err(self.wrong("a class of characters is empty")),
                Some(']') => return Ok(Token::Class(class + "]")),
                Some('-') if !empty && self.peek() != Some(']') => {
                    class.push('-');
                    continue;
                }
                Some('\\') => self.escape()?,
                Some(c) => c,
                None => return Err(self.wrong("a class of characters does not end")),
            };
            empty = false;
            let _ = write!(class, "\\x{{{:X}}}", u32::from(c));
        }
    }

    fn escape(&mut self) -> Result<char, GrammarError> {
        let c = self.bump().ok_or_else(|| self.wrong("a backslash ends the grammar"))?;
        let digits = match c {
            'n' => return Ok('\n'),
            'r' => return Ok('\r'),
            't' => return Ok('\t'),
            'x' => 2,
            'u' => 4,
            'U' => 8,
            other if other.is_ascii_alphanumeric() => return Err(self.wrong(&format!("\\{other} is no escape"))),
            other => return Ok(other),
        };
        let hex = self.rest().get(..digits).and_then(|h| u32::from_str_radix(h, 16).ok());
        let c = hex.and_then(char::from_u32).ok_or_else(|| self.wrong(&format!("\\{c} needs {digits} hex digits")))?;
        self.at += digits;
        Ok(c)
    }

    /// `{2}`, `{2,}`, `{,5}`, `{2,5}`, behind the brace.
    fn counts(&mut self) -> Result<Token, GrammarError> {
        let wrong = |l: &Self| l.wrong("a repetition is written {2}, {2,} or {2,5}");
        let end = self.rest().find('}').ok_or_else(|| wrong(self))?;
        let inner = &self.rest()[..end];
        let number = |t: &str| t.trim().parse::<u32>().ok().filter(|n| *n <= MOST_REPEATS);
        let token = match inner.split_once(',') {
            None => number(inner).map(|n| Token::Repeat(n, Some(n))),
            Some((low, high)) => {
                let low = if low.trim().is_empty() { Some(0) } else { number(low) };
                match (low, high.trim().is_empty()) {
                    (Some(low), true) => Some(Token::Repeat(low, None)),
                    (Some(low), false) => number(high).filter(|h| *h >= low).map(|h| Token::Repeat(low, Some(h))),
                    (None, _) => None,
                }
            }
        };
        let token = token.ok_or_else(|| wrong(self))?;
        self.at += end + 1;
        Ok(token)
    }
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    /// Whether a rule begins here.
    fn is_rule(&self) -> bool {
        matches!(self.peek(), Some(Token::Name(_))) && self.tokens.get(self.at + 1) == Some(&Token::Defines)
    }

    fn rules(mut self) -> Result<Rules, GrammarError> {
        let mut rules = Rules::new();
        while self.at < self.tokens.len() {
            let Some(Token::Name(name)) = self.peek().cloned().filter(|_| self.is_rule()) else {
                return Err(invalid("a rule is written `name ::= …`"));
            };
            self.at += 2;
            let body = self.any(0)?;
            if rules.insert(name.clone(), body).is_some() {
                return Err(invalid(format!("the rule {name} is defined twice")));
            }
            if self.peek().is_some() && !self.is_rule() {
                return Err(invalid(format!("the rule {name} has a bracket too many")));
            }
        }
        Ok(rules)
    }

    fn any(&mut self, depth: usize) -> Result<Expr, GrammarError> {
        if depth > DEEPEST {
            return Err(invalid(format!("brackets are nested deeper than {DEEPEST}")));
        }
        let mut options = vec![self.all(depth)?];
        while self.peek() == Some(&Token::Or) {
            self.at += 1;
            options.push(self.all(depth)?);
        }
        Ok(Expr::Any(options))
    }

    fn all(&mut self, depth: usize) -> Result<Expr, GrammarError> {
        let mut parts = vec![];
        while let Some(token) = self.peek().cloned() {
            let part = match token {
                Token::Name(_) if self.is_rule() => break,
                Token::Name(name) => Expr::Name(name),
                Token::Literal(text) => Expr::Literal(text),
                Token::Class(class) => Expr::Class(class),
                Token::Open => {
                    self.at += 1;
                    let inner = self.any(depth + 1)?;
                    if self.peek() != Some(&Token::Close) {
                        return Err(invalid("a bracket is not closed"));
                    }
                    inner
                }
                Token::Repeat(low, high) => {
                    let Some(last) = parts.pop() else { return Err(invalid("there is nothing to repeat")) };
                    Expr::Repeat(Box::new(last), low, high)
                }
                Token::Close | Token::Or => break,
                Token::Defines => return Err(invalid("`::=` must follow the name of a rule")),
            };
            self.at += 1;
            parts.push(part);
        }
        Ok(Expr::All(parts))
    }
}

fn names<'a>(expr: &'a Expr, found: &mut BTreeSet<&'a str>) {
    match expr {
        Expr::Literal(_) | Expr::Class(_) => {}
        Expr::Name(name) => {
            found.insert(name);
        }
        Expr::All(parts) | Expr::Any(parts) => parts.iter().for_each(|p| names(p, found)),
        Expr::Repeat(part, ..) => names(part, found),
    }
}

fn check_names(rules: &Rules) -> Result<(), GrammarError> {
    if !rules.contains_key("root") {
        return Err(invalid("there is no rule root to begin with"));
    }
    let mut used = BTreeSet::new();
    rules.values().for_each(|e| names(e, &mut used));
    match used.iter().find(|n| !rules.contains_key(**n)) {
        Some(name) => Err(invalid(format!("there is no rule {name}"))),
        None => Ok(()),
    }
}

/// Rules that reach neither themselves nor a rule that does: taken away, leaves first, as long as there are any.
fn terminals(rules: &Rules) -> BTreeSet<String> {
    let mut uses: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut users: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (rule, expr) in rules {
        let used = uses.entry(rule).or_default();
        names(expr, used);
        used.iter().for_each(|u| users.entry(u).or_default().push(rule));
    }
    let mut ready: Vec<&str> = uses.iter().filter(|(_, used)| used.is_empty()).map(|(rule, _)| *rule).collect();
    let mut found = BTreeSet::new();
    while let Some(rule) = ready.pop() {
        found.insert(rule.to_string());
        for user in users.get(rule).into_iter().flatten() {
            if let Some(used) = uses.get_mut(user)
                && used.remove(rule)
                && used.is_empty()
            {
                ready.push(user);
            }
        }
    }
    found
}

/// Lark tells terminals by capitals; a prefix keeps names apart from its own words.
fn name(rule: &str, terminals: &BTreeSet<String>) -> String {
    // `a-b` and `a_b` are two rules.
    let plain: String = rule
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_string() } else { format!("_{:x}_", u32::from(c)) })
        .collect();
    let cases: String = rule.chars().map(|c| if c.is_ascii_uppercase() { '1' } else { '0' }).collect();
    let cases = if cases.contains('1') { format!("_{cases}") } else { String::new() };
    match terminals.contains(rule) {
        true => format!("T_{}{cases}", plain.to_ascii_uppercase()),
        false => format!("r_{}{cases}", plain.to_ascii_lowercase()),
    }
}

fn write_expr(expr: &Expr, terminals: &BTreeSet<String>, out: &mut String) {
    match expr {
        Expr::Literal(text) => out.push_str(&lark_literal(text)),
        Expr::Class(class) => {
            let _ = write!(out, "/{class}/");
        }
        Expr::Name(rule) => out.push_str(&name(rule, terminals)),
        Expr::All(parts) if parts.is_empty() => out.push_str("\"\""),
        Expr::All(parts) => write_list(parts, " ", terminals, out),
        Expr::Any(parts) => {
            out.push('(');
            write_list(parts, " | ", terminals, out);
            out.push(')');
        }
        Expr::Repeat(part, low, high) => {
            out.push('(');
            write_expr(part, terminals, out);
            out.push(')');
            let _ = match (low, high) {
                (0, None) => write!(out, "*"),
                (1, None) => write!(out, "+"),
                (0, Some(1)) => write!(out, "?"),
                (low, None) => write!(out, "{{{low},}}"),
                (low, Some(high)) => write!(out, "{{{low},{high}}}"),
            };
        }
    }
}

fn write_list(parts: &[Expr], between: &str, terminals: &BTreeSet<String>, out: &mut String) {
    for (i, part) in parts.iter().enumerate() {
        if i > 0 {
            out.push_str(between);
        }
        write_expr(part, terminals, out);
    }
}

//! The lexer and the common grammar of both IRs' text form (`.rir`).
//!
//! Identifiers are letters, digits, `_` and `.`, and start with a letter or `_`; `;` starts a comment that
//! ends with the line; lines matter only for recovery: a reader that fails in a statement goes on with the
//! next line ([`Cursor::recover`]).
//!
//! Invariants:
//! - reading never panics, whatever the text: every failure is a [`Diagnostic`] with file and line;
//! - what [`crate::types`], [`crate::expr`] print is what [`Cursor::tensor_type`], [`Cursor::expr`] read.

mod attrs;
mod lex;
#[cfg(test)]
mod tests;

pub use attrs::Attrs;
pub use lex::{Token, is_identifier};

use crate::{
    diag::{Diagnostic, Loc},
    expr::{Expr, Sym},
    types::{DType, Dim, TensorType},
};
use std::str::FromStr;

/// Result of one step of a reader.
pub type Read<T> = Result<T, Diagnostic>;

/// Nested expressions and recipes deeper than this are refused, so that no text overflows the stack.
const MAX_DEPTH: usize = 64;

/// A place in a text, and the grammar that both IRs share.
#[derive(Clone, Debug)]
pub struct Cursor<'a> {
    file: &'a str,
    tokens: Vec<(Token<'a>, u32)>,
    at: usize,
    last_line: u32,
    depth: usize,
}

impl<'a> Cursor<'a> {
    /// At the start of `text`, which is named `file` in diagnostics.
    pub fn new(text: &'a str, file: &'a str) -> Cursor<'a> {
        let (mut tokens, mut last_line) = (vec![], 1);
        for (i, line) in text.lines().enumerate() {
            last_line = i as u32 + 1;
            let mut rest = line.trim_start();
            while !rest.is_empty() && !rest.starts_with(';') {
                let (token, len) = lex::lex(rest);
                tokens.push((token, last_line));
                rest = rest[len..].trim_start();
            }
        }
        Cursor { file, tokens, at: 0, last_line, depth: 0 }
    }

    /// The next token.
    pub fn peek(&self) -> Token<'a> {
        self.peek_at(0)
    }

    /// The token `n` after the next.
    pub fn peek_at(&self, n: usize) -> Token<'a> {
        self.tokens.get(self.at + n).map_or(Token::End, |(t, _)| *t)
    }

    /// Whether every token was read.
    pub fn done(&self) -> bool {
        self.at >= self.tokens.len()
    }

    /// The next token, read.
    pub fn bump(&mut self) -> Token<'a> {
        let token = self.peek();
        self.at += 1;
        token
    }

    /// Line of the next token.
    pub fn line(&self) -> u32 {
        self.tokens.get(self.at).map_or(self.last_line, |(_, line)| *line)
    }

    /// Place of the next token.
    pub fn loc(&self) -> Loc {
        Loc { file: self.file.to_string(), line: self.line() }
    }

    /// Whether the next token stands on the same line as the one before it.
    pub fn same_line(&self) -> bool {
        let before = self.at.checked_sub(1).and_then(|i| self.tokens.get(i));
        !self.done() && before.is_some_and(|(_, line)| *line == self.line())
    }

    /// Skips what is left of the lines up to `line`: where to go on after an error in a statement that starts there.
    pub fn recover(&mut self, line: u32) {
        while !self.done() && self.line() <= line {
            self.at += 1;
        }
    }

    /// What is wrong at the next token.
    pub fn expected(&self, what: &str) -> Diagnostic {
        self.error(format!("expected {what}, found {}", self.peek()))
    }

    /// A diagnostic at the next token.
    pub fn error(&self, message: impl Into<String>) -> Diagnostic {
        Diagnostic::new(message, Some(self.loc()))
    }

    /// Reads `c` where it is next.
    pub fn eat(&mut self, c: char) -> bool {
        self.eat_token(Token::Punct(c))
    }

    /// Reads the keyword where it is next.
    pub fn eat_keyword(&mut self, word: &str) -> bool {
        self.peek() == Token::Ident(word) && self.eat_token(self.peek())
    }

    /// Reads `token` where it is next.
    pub fn eat_token(&mut self, token: Token<'_>) -> bool {
        let found = self.peek() == token;
        self.at += usize::from(found);
        found
    }

    /// Reads `c`.
    pub fn expect(&mut self, c: char) -> Read<()> {
        if self.eat(c) { Ok(()) } else { Err(self.expected(&format!("`{c}`"))) }
    }

    /// Reads a keyword.
    pub fn keyword(&mut self, word: &str) -> Read<()> {
        if self.eat_keyword(word) { Ok(()) } else { Err(self.expected(&format!("`{word}`"))) }
    }

    /// An identifier; `what` names it in the error.
    pub fn ident(&mut self, what: &str) -> Read<&'a str> {
        match self.peek() {
            Token::Ident(s) => {
                self.at += 1;
                Ok(s)
            }
            _ => Err(self.expected(what)),
        }
    }

    /// A number of type `T`; `what` names it in the error. `inf` and `nan` are floats.
    pub fn number<T: FromStr>(&mut self, what: &str) -> Read<T> {
        let (Token::Number(s) | Token::Ident(s)) = self.peek() else { return Err(self.expected(what)) };
        let value = s.parse().map_err(|_| self.expected(what))?;
        self.at += 1;
        Ok(value)
    }

    /// A string, unescaped.
    pub fn string(&mut self, what: &str) -> Read<String> {
        let Token::Str(raw) = self.peek() else { return Err(self.expected(what)) };
        let text = lex::unescape(raw).ok_or_else(|| self.error(format!("unknown escape in \"{raw}\"")))?;
        self.at += 1;
        Ok(text)
    }

    /// `item, item, … close`, maybe empty, with the closing character read.
    pub fn list<T>(&mut self, close: char, mut item: impl FnMut(&mut Self) -> Read<T>) -> Read<Vec<T>> {
        let mut items = vec![];
        if self.eat(close) {
            return Ok(items);
        }
        loop {
            items.push(item(self)?);
            if !self.eat(',') {
                self.expect(close)?;
                return Ok(items);
            }
        }
    }

    /// `item, item, …`: at least one.
    pub fn separated<T>(&mut self, mut item: impl FnMut(&mut Self) -> Read<T>) -> Read<Vec<T>> {
        let mut items = vec![item(self)?];
        while self.eat(',') {
            items.push(item(self)?);
        }
        Ok(items)
    }

    /// `inner`, one level deeper; an error past the deepest level.
    pub fn nested<T>(&mut self, inner: impl FnOnce(&mut Self) -> Read<T>) -> Read<T> {
        if self.depth == MAX_DEPTH {
            return Err(self.error(format!("nested deeper than {MAX_DEPTH} levels")));
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }

    /// `bf16`.
    pub fn dtype(&mut self) -> Read<DType> {
        let Token::Ident(name) = self.peek() else { return Err(self.expected("an element type")) };
        let dtype = DType::parse(name).ok_or_else(|| self.expected("an element type"))?;
        self.at += 1;
        Ok(dtype)
    }

    /// A symbol of the step.
    pub fn sym(&mut self) -> Read<Sym> {
        let Token::Ident(name) = self.peek() else { return Err(self.expected("a symbol")) };
        let names = Sym::ALL.map(Sym::name).join(" ");
        let sym = Sym::parse(name).ok_or_else(|| self.expected(&format!("a symbol ({names})")))?;
        self.at += 1;
        Ok(sym)
    }

    /// `4096`, `T` or `R+1`.
    pub fn dim(&mut self) -> Read<Dim> {
        if let Token::Number(_) = self.peek() {
            return Ok(Dim::Const(self.number("a dimension")?));
        }
        let sym = self.sym()?;
        if !self.eat('+') {
            return Ok(Dim::Sym(sym));
        }
        match self.number::<usize>("`1`")? {
            1 => Ok(Dim::SymPlusOne(sym)),
            n => Err(self.error(format!("a dimension is a number, a symbol or a symbol + 1, not {sym}+{n}"))),
        }
    }

    /// `[T, 4096]bf16`.
    pub fn tensor_type(&mut self) -> Read<TensorType> {
        self.expect('[')?;
        let dims = self.list(']', Self::dim)?;
        Ok(TensorType { dims, dtype: self.dtype()? })
    }

    /// An expression as [`Expr`] prints it; `*` binds closer than `+`.
    pub fn expr(&mut self) -> Read<Expr> {
        let mut sum = self.product()?;
        while self.eat('+') {
            sum = Expr::Add(Box::new(sum), Box::new(self.product()?));
        }
        Ok(sum)
    }

    fn product(&mut self) -> Read<Expr> {
        let mut product = self.factor()?;
        while self.eat('*') {
            product = Expr::Mul(Box::new(product), Box::new(self.factor()?));
        }
        Ok(product)
    }

    fn factor(&mut self) -> Read<Expr> {
        if let Token::Number(_) = self.peek() {
            return Ok(Expr::Const(self.number("an integer")?));
        }
        if self.eat('(') {
            let inner = self.nested(Self::expr)?;
            self.expect(')')?;
            return Ok(inner);
        }
        if self.eat_keyword("ceil") {
            return self.ceil();
        }
        if self.eat_keyword("min") {
            return self.min();
        }
        Ok(Expr::Sym(self.sym()?))
    }

    fn ceil(&mut self) -> Read<Expr> {
        self.expect('(')?;
        let dividend = self.nested(Self::expr)?;
        self.expect('/')?;
        let divisor: i64 = self.number("a divisor")?;
        if divisor < 1 {
            return Err(self.error(format!("divisor {divisor} is not positive")));
        }
        self.expect(')')?;
        Ok(Expr::CeilDiv(Box::new(dividend), divisor))
    }

    fn min(&mut self) -> Read<Expr> {
        self.expect('(')?;
        let of = self.nested(Self::expr)?;
        self.expect(',')?;
        let most: i64 = self.number("a bound")?;
        if most < 0 {
            return Err(self.error(format!("bound {most} is negative")));
        }
        self.expect(')')?;
        Ok(Expr::Min(Box::new(of), most))
    }

    /// `key = value, flag, … close`, with the closing character read.
    pub fn attrs(&mut self, close: char) -> Read<Attrs<'a>> {
        let loc = self.loc();
        let items = self.list(close, |c| {
            let key = c.ident("an attribute")?;
            let value = if c.eat('=') { Some(c.bump()) } else { None };
            Ok((key, value))
        })?;
        Ok(Attrs { items, loc })
    }
}

//! Integer expressions over the step's symbols: grids, sizes, predicates.

use std::fmt;

/// A quantity that only a step knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Sym {
    /// Tokens in the step.
    T,
    /// Sequences in the step.
    R,
    /// Rows of logits asked for: one per sequence that samples, more for prompt log-probabilities.
    L,
    /// Query tiles: runs of at most `query_tile` tokens of one sequence, the work list of ragged attention.
    Q,
    /// Columns of the block table (blocks of the longest sequence).
    M,
    /// Blocks in the KV pool.
    P,
}

impl Sym {
    /// Every symbol, in the order in which kernels receive them.
    pub const ALL: [Sym; 6] = [Sym::T, Sym::R, Sym::L, Sym::Q, Sym::M, Sym::P];

    /// The letter used in text.
    pub fn name(self) -> &'static str {
        match self {
            Sym::T => "T",
            Sym::R => "R",
            Sym::L => "L",
            Sym::Q => "Q",
            Sym::M => "M",
            Sym::P => "P",
        }
    }

    /// The symbol with this letter.
    pub fn parse(name: &str) -> Option<Sym> {
        Sym::ALL.into_iter().find(|s| s.name() == name)
    }
}

impl fmt::Display for Sym {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An integer expression over symbols. All values are non-negative.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Expr {
    /// A constant.
    Const(i64),
    /// A symbol of the step.
    Sym(Sym),
    /// Sum.
    Add(Box<Expr>, Box<Expr>),
    /// Product.
    Mul(Box<Expr>, Box<Expr>),
    /// `a` divided by the constant, rounded up.
    CeilDiv(Box<Expr>, i64),
    /// `a`, or the constant where that is less.
    Min(Box<Expr>, i64),
}

impl Expr {
    /// The value where `symbols` gives each symbol's.
    pub fn eval(&self, symbols: &dyn Fn(Sym) -> i64) -> i64 {
        match self {
            Expr::Const(c) => *c,
            Expr::Sym(s) => symbols(*s),
            Expr::Add(a, b) => a.eval(symbols) + b.eval(symbols),
            Expr::Mul(a, b) => a.eval(symbols) * b.eval(symbols),
            Expr::CeilDiv(a, d) => (a.eval(symbols) + d - 1) / d,
            Expr::Min(a, most) => a.eval(symbols).min(*most),
        }
    }

    /// `self / d`, rounded up; folded where constant.
    pub fn ceil_div(self, d: i64) -> Expr {
        match self {
            Expr::Const(c) => Expr::Const((c + d - 1) / d),
            e if d == 1 => e,
            e => Expr::CeilDiv(Box::new(e), d),
        }
    }

    /// `self`, but at most `most`; folded where constant.
    pub fn at_most(self, most: i64) -> Expr {
        match self {
            Expr::Const(c) => Expr::Const(c.min(most)),
            e => Expr::Min(Box::new(e), most),
        }
    }
}

impl std::ops::Add for Expr {
    type Output = Expr;
    fn add(self, other: Expr) -> Expr {
        match (self, other) {
            (Expr::Const(a), Expr::Const(b)) => Expr::Const(a + b),
            (Expr::Const(0), e) | (e, Expr::Const(0)) => e,
            (a, b) => Expr::Add(Box::new(a), Box::new(b)),
        }
    }
}

impl std::ops::Mul for Expr {
    type Output = Expr;
    fn mul(self, other: Expr) -> Expr {
        match (self, other) {
            (Expr::Const(a), Expr::Const(b)) => Expr::Const(a * b),
            (Expr::Const(1), e) | (e, Expr::Const(1)) => e,
            (a, b) => Expr::Mul(Box::new(a), Box::new(b)),
        }
    }
}

impl From<i64> for Expr {
    fn from(c: i64) -> Expr {
        Expr::Const(c)
    }
}

impl From<Sym> for Expr {
    fn from(s: Sym) -> Expr {
        Expr::Sym(s)
    }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expr::Const(c) => write!(f, "{c}"),
            Expr::Sym(s) => write!(f, "{s}"),
            Expr::Add(a, b) => write!(f, "({a} + {b})"),
            Expr::Mul(a, b) => write!(f, "({a} * {b})"),
            Expr::CeilDiv(a, d) => write!(f, "ceil({a} / {d})"),
            Expr::Min(a, most) => write!(f, "min({a}, {most})"),
        }
    }
}

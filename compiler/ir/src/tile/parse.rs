//! Reads a kernel from text: the inverse of its [`std::fmt::Display`].
//!
//! A statement that cannot be read is reported and skipped; its results stay known, so that one mistake is one
//! error. Values are defined before they are used. What was read is not verified: see [`super::verify`].

use super::{
    Access, Block, Cmp, IndexOp, Inst, Kernel, Layout, MapOp, MemLayout, Param, ReduceOp, Stmt, TileType, Type, Val,
    ValInfo,
};
use crate::{
    diag::{Diagnostic, Loc},
    text::{Cursor, Read, Token},
};
use std::collections::HashMap;

/// The only kernel of `text`, which is named `file` in diagnostics; or everything that cannot be read.
pub fn parse(text: &str, file: &str) -> Result<Kernel, Vec<Diagnostic>> {
    let mut cursor = Cursor::new(text, file);
    let kernel = kernel(&mut cursor)?;
    if !cursor.done() {
        return Err(vec![cursor.expected("the end of the text after the kernel")]);
    }
    Ok(kernel)
}

/// The kernel at the cursor: `kernel @name(…) grid (…) { … }`.
pub fn kernel(c: &mut Cursor<'_>) -> Result<Kernel, Vec<Diagnostic>> {
    let kernel = header(c).map_err(|e| vec![e])?;
    let mut reader = Reader { kernel, values: HashMap::new(), errors: vec![] };
    reader.kernel.body = reader.block(c, vec![]);
    if reader.errors.is_empty() { Ok(reader.kernel) } else { Err(reader.errors) }
}

fn header(c: &mut Cursor<'_>) -> Read<Kernel> {
    c.keyword("kernel")?;
    c.expect('@')?;
    let name = c.ident("the kernel's name")?.to_string();
    c.expect('(')?;
    let params = c.list(')', param)?;
    c.keyword("grid")?;
    c.expect('(')?;
    let grid = c.list(')', |c| {
        let name = c.ident("a grid dimension's name")?.to_string();
        c.expect(':')?;
        Ok((name, c.expr()?))
    })?;
    c.expect('{')?;
    Ok(Kernel { name, params, grid, ..Kernel::default() })
}

fn param(c: &mut Cursor<'_>) -> Read<Param> {
    let name = c.ident("a parameter's name")?.to_string();
    c.expect(':')?;
    let access = word(c, "`in`, `weight`, `step`, `out` or `inout`", Access::parse)?;
    let ty = c.tensor_type()?;
    Ok(Param { name, ty, layout: mem_layout(c)?, access })
}

fn mem_layout(c: &mut Cursor<'_>) -> Read<MemLayout> {
    if c.eat_keyword("stride") {
        c.expect('<')?;
        let row = Some(c.number("a distance in elements")?);
        c.expect('>')?;
        return Ok(MemLayout::Strided { row });
    }
    if c.eat_keyword("panel") {
        c.expect('<')?;
        let n = c.number("rows of a panel")?;
        c.expect(',')?;
        let k = c.number("adjacent k values")?;
        c.expect('>')?;
        return Ok(MemLayout::Panel { n, k });
    }
    if c.eat_keyword("blocks") {
        c.expect('<')?;
        let k = c.number("columns of a block")?;
        c.expect('>')?;
        return Ok(MemLayout::Blocks { k });
    }
    if c.eat_keyword("fragments") {
        c.expect('<')?;
        let k = c.number("columns of a piece")?;
        c.expect('>')?;
        return Ok(MemLayout::Fragments { k });
    }
    Ok(MemLayout::DENSE)
}

/// The next identifier as `parse` reads it; `what` names it in the error.
fn word<T>(c: &mut Cursor<'_>, what: &str, parse: impl Fn(&str) -> Option<T>) -> Read<T> {
    let Token::Ident(name) = c.peek() else { return Err(c.expected(what)) };
    let value = parse(name).ok_or_else(|| c.expected(what))?;
    c.bump();
    Ok(value)
}

fn value_type(c: &mut Cursor<'_>) -> Read<Type> {
    if c.eat_keyword("index") {
        return Ok(Type::Index);
    }
    let layout = word(c, "`index`, `reg`, `acc` or `operand`", Layout::parse)?;
    c.expect('[')?;
    let shape = c.list(']', |c| c.number("a size"))?;
    Ok(Type::Tile(TileType { layout, shape, dtype: c.dtype()? }))
}

/// `, key = value`.
fn attribute<T: std::str::FromStr>(c: &mut Cursor<'_>, key: &str) -> Read<T> {
    c.expect(',')?;
    c.keyword(key)?;
    c.expect('=')?;
    c.number(&format!("the value of `{key}`"))
}

/// A carried value's name and type.
type Carried<'a> = (&'a str, Type);

struct Reader<'a> {
    kernel: Kernel,
    values: HashMap<&'a str, Val>,
    errors: Vec<Diagnostic>,
}

impl<'a> Reader<'a> {
    /// Statements up to the closing brace, which is read.
    fn block(&mut self, c: &mut Cursor<'a>, params: Vec<Val>) -> Block {
        let mut block = Block { params, ..Block::default() };
        while !c.eat('}') {
            if c.done() {
                self.errors.push(c.expected("`}`"));
                break;
            }
            let line = c.line();
            if let Err(e) = self.statement(c, &mut block) {
                self.errors.push(e);
                skip(c, line);
            }
        }
        block
    }

    fn statement(&mut self, c: &mut Cursor<'a>, block: &mut Block) -> Read<()> {
        let loc = c.loc();
        let is_result = matches!(c.peek_at(1), Token::Punct('=' | ','));
        let (results, inst) = match c.peek() {
            Token::Ident("yield") if !is_result => return self.yields(c, block),
            Token::Ident("store") if !is_result => (vec![], self.store(c)?),
            Token::Ident("pipeline") if !is_result => self.pipeline(c, &[])?,
            _ => self.definition(c)?,
        };
        block.stmts.push(Stmt { results, inst, loc: Some(loc) });
        Ok(())
    }

    /// `a, b = instruction : type, type`. Where that cannot be read, the names are defined all the same.
    fn definition(&mut self, c: &mut Cursor<'a>) -> Read<(Vec<Val>, Inst)> {
        let loc = c.loc();
        let names = c.separated(|c| c.ident("a result's name, `store`, `pipeline` or `yield`"))?;
        if let Some(name) = names.iter().find(|n| self.values.contains_key(*n)) {
            return Err(Diagnostic::new(format!("`{name}` is defined twice"), Some(loc)));
        }
        let read = self.right_side(c, &names, loc);
        if read.is_err() {
            for name in names {
                self.define(name, Type::Index);
            }
        }
        read
    }

    fn right_side(&mut self, c: &mut Cursor<'a>, names: &[&'a str], loc: Loc) -> Read<(Vec<Val>, Inst)> {
        c.expect('=')?;
        if c.peek() == Token::Ident("pipeline") {
            return self.pipeline(c, names);
        }
        let op = c.ident("an instruction")?;
        let inst = self.instruction(c, op, &loc)?;
        c.expect(':')?;
        let types = c.separated(value_type)?;
        let inst = match (inst, &types[..]) {
            // one word names the operation on indices and on tiles: the result's type says which it is
            (Inst::Map(_, args), [Type::Index]) => index_op(op, &args, loc.clone())?,
            (inst, _) => inst,
        };
        if names.len() != types.len() {
            let message = format!("{} results are named but {} types are written", names.len(), types.len());
            return Err(Diagnostic::new(message, Some(loc)));
        }
        Ok((names.iter().zip(types).map(|(n, ty)| self.define(n, ty)).collect(), inst))
    }

    fn define(&mut self, name: &'a str, ty: Type) -> Val {
        let v = Val(self.kernel.vals.len() as u32);
        self.kernel.vals.push(ValInfo { name: name.to_string(), ty });
        self.values.insert(name, v);
        v
    }

    fn value(&self, c: &mut Cursor<'a>) -> Read<Val> {
        let e = c.loc();
        let name = c.ident("a value")?;
        let unknown = || Diagnostic::new(format!("`{name}` is not defined above"), Some(e));
        self.values.get(name).copied().ok_or_else(unknown)
    }

    /// `value, value, …`, as many as asked for.
    fn operands<const N: usize>(&self, c: &mut Cursor<'a>) -> Read<[Val; N]> {
        let mut operands = [Val(0); N];
        for (i, operand) in operands.iter_mut().enumerate() {
            if i > 0 {
                c.expect(',')?;
            }
            *operand = self.value(c)?;
        }
        Ok(operands)
    }

    fn instruction(&self, c: &mut Cursor<'a>, op: &str, loc: &Loc) -> Read<Inst> {
        Ok(match op {
            "program_id" => Inst::ProgramId(self.grid_dim(c)?),
            "const" => Inst::Const(c.number("an integer")?),
            "sym" => Inst::Sym(c.sym()?),
            "read" => {
                let (tensor, at) = self.place(c)?;
                Inst::Read { tensor, at }
            }
            "to_index" => Inst::ToIndex(self.value(c)?),
            "load" => {
                let (tensor, at) = self.place(c)?;
                Inst::Load { tensor, at }
            }
            "full" => Inst::Full(c.number("a number")?),
            "iota" => Inst::Iota { start: self.value(c)?, div: attribute(c, "div")? },
            "mma" => {
                let [a, b, acc] = self.operands(c)?;
                Inst::Mma { a, b, acc }
            }
            "select" => {
                let cmp = word(c, "`lt`, `le` or `eq`", Cmp::parse)?;
                let [a, b, x, y] = self.operands(c)?;
                Inst::Select { cmp, a, b, x, y }
            }
            "cast" => Inst::Cast(self.value(c)?),
            "broadcast" => Inst::Broadcast(self.value(c)?, attribute(c, "axis")?),
            "reshape" => Inst::Reshape(self.value(c)?),
            "stage" => Inst::Stage(self.value(c)?),
            "concat" => {
                c.expect('[')?;
                Inst::Concat(c.list(']', |c| self.value(c))?, attribute(c, "axis")?)
            }
            _ => self.named(c, op, loc)?,
        })
    }

    /// Instructions whose word is that of an operation: reductions, elementwise and index operations.
    fn named(&self, c: &mut Cursor<'a>, op: &str, loc: &Loc) -> Read<Inst> {
        if let Some(reduce) = ReduceOp::parse(op) {
            return Ok(Inst::Reduce(reduce, self.value(c)?, attribute(c, "axis")?));
        }
        if let Some(map) = MapOp::parse(op) {
            return Ok(Inst::Map(map, c.separated(|c| self.value(c))?));
        }
        if IndexOp::parse(op).is_some() {
            return index_op(op, &c.separated(|c| self.value(c))?, loc.clone());
        }
        Err(Diagnostic::new(format!("unknown instruction `{op}`"), Some(loc.clone())))
    }

    fn grid_dim(&self, c: &mut Cursor<'a>) -> Read<usize> {
        word(c, "a grid dimension", |name| self.kernel.grid.iter().position(|(n, _)| n == name))
    }

    /// `tensor[at, at]`.
    fn place(&self, c: &mut Cursor<'a>) -> Read<(usize, Vec<Val>)> {
        let tensor = word(c, "a parameter", |name| self.kernel.params.iter().position(|p| p.name == name))?;
        c.expect('[')?;
        Ok((tensor, c.list(']', |c| self.value(c))?))
    }

    /// `store tensor[at, at], value, rows = value`.
    fn store(&self, c: &mut Cursor<'a>) -> Read<Inst> {
        c.keyword("store")?;
        let (tensor, at) = self.place(c)?;
        c.expect(',')?;
        let value = self.value(c)?;
        let mut rows = None;
        if c.eat(',') {
            c.keyword("rows")?;
            c.expect('=')?;
            rows = Some(self.value(c)?);
        }
        Ok(Inst::Store { tensor, at, value, rows })
    }

    fn yields(&self, c: &mut Cursor<'a>, block: &mut Block) -> Read<()> {
        if !block.yields.is_empty() {
            return Err(c.error("a block yields once"));
        }
        c.keyword("yield")?;
        block.yields = c.separated(|c| self.value(c))?;
        Ok(())
    }

    /// `pipeline i in lo .. hi, stages = n, init (p = v, …) : type, … { … }`; the results' types are the carried values'.
    fn pipeline(&mut self, c: &mut Cursor<'a>, results: &[&'a str]) -> Read<(Vec<Val>, Inst)> {
        let loc = c.loc();
        c.keyword("pipeline")?;
        let index = c.ident("the loop's index")?;
        c.keyword("in")?;
        let lo = self.value(c)?;
        c.expect('.')?;
        c.expect('.')?;
        let hi = self.value(c)?;
        let stages = attribute(c, "stages")?;
        let (init, carried) = self.carried(c)?;
        c.expect('{')?;
        let names = carried.iter().map(|(name, _)| *name).chain([index]);
        if let Some(name) = names.into_iter().find(|n| self.values.contains_key(n)) {
            return Err(c.error(format!("`{name}` is defined twice")));
        }
        let mut params = vec![self.define(index, Type::Index)];
        params.extend(carried.iter().map(|(name, ty)| self.define(name, ty.clone())));
        let body = c.nested(|c| Ok(self.block(c, params)))?;
        if results.len() != carried.len() {
            let message = format!("{} results are named but {} values are carried", results.len(), carried.len());
            return Err(Diagnostic::new(message, Some(loc)));
        }
        let results = results.iter().zip(carried).map(|(name, (_, ty))| self.define(name, ty)).collect();
        Ok((results, Inst::Pipeline { lo, hi, stages, init, body }))
    }

    /// `, init (p = v, …) : type, …`, where it is there: the values on entry, then names and types within.
    fn carried(&self, c: &mut Cursor<'a>) -> Read<(Vec<Val>, Vec<Carried<'a>>)> {
        if !c.eat(',') {
            return Ok((vec![], vec![]));
        }
        c.keyword("init")?;
        c.expect('(')?;
        let pairs = c.list(')', |c| {
            let name = c.ident("a carried value's name")?;
            c.expect('=')?;
            Ok((name, self.value(c)?))
        })?;
        c.expect(':')?;
        let types = c.separated(value_type)?;
        if types.len() != pairs.len() {
            let message = format!("{} values are carried but {} types are written", pairs.len(), types.len());
            return Err(c.error(message));
        }
        let (names, init): (Vec<&str>, Vec<Val>) = pairs.into_iter().unzip();
        Ok((init, names.into_iter().zip(types).collect()))
    }
}

fn index_op(op: &str, args: &[Val], loc: Loc) -> Read<Inst> {
    match (IndexOp::parse(op), args) {
        (Some(op), [a, b]) => Ok(Inst::Index(op, *a, *b)),
        (Some(_), _) => Err(Diagnostic::new(format!("`{op}` takes 2 indices, not {}", args.len()), Some(loc))),
        (None, _) => Err(Diagnostic::new(format!("`{op}` is no operation on indices"), Some(loc))),
    }
}

/// Goes on after an error in the statement that starts in `line`: past the line, and past the block that it opens.
fn skip(c: &mut Cursor<'_>, line: u32) {
    let mut open = 0usize;
    while !c.done() && (c.line() <= line || open > 0) {
        match c.bump() {
            Token::Punct('{') => open += 1,
            Token::Punct('}') => open = open.saturating_sub(1),
            _ => {}
        }
    }
}

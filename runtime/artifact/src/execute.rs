//! Recipes, executed: rows of the result are independent, so that any range of them can be made alone, in
//! bounded memory, by any thread, with the same bytes.
//!
//! A row is what one index of dimension 0 selects: a row of a matrix, a panel of a packed one, a position of a
//! rotary table. Casts are moved to the tensors they reach, so that a packed row is made in one pass.

use crate::{
    block, convert,
    error::{Error, Result},
    fragment, panel,
    plan::DType,
    quantize::{self, Scheme},
    recipe::{Part, Recipe},
    searched::{Matrix, Searched},
    source::{Source, TensorType},
};
use std::{
    ops::Range,
    sync::{Arc, Mutex, atomic::AtomicBool, atomic::Ordering},
};

/// Bytes that a thread makes at a time.
const JOB_BYTES: u64 = 1 << 20;
/// Times that a search for scales reads a number, about.
const READS_OF_SEARCH: u64 = 16;

/// Type and shape of what a recipe makes.
///
/// # Errors
/// A tensor is missing, or shapes or types do not fit the recipe.
pub fn infer(recipe: &Recipe, source: &dyn Source) -> Result<TensorType> {
    Ok(Rows::resolve(recipe, source)?.ty)
}

/// Runs a recipe into `out`, which is as long as the result ([`infer`]), on `threads` threads.
///
/// # Errors
/// As [`infer`]; [`Error::NotFinite`] names the tensor that holds a NaN or an infinity.
pub fn execute(recipe: &Recipe, source: &dyn Source, threads: usize, out: &mut [u8]) -> Result<()> {
    let rows = Rows::resolve(recipe, source)?;
    let mut jobs = vec![];
    rows.split(0..rows.len(), out, &mut jobs)?;
    run(jobs, threads)
}

/// Runs a recipe and hands its bytes to `sink` in order, about `chunk_bytes` at a time (at least one row).
///
/// # Errors
/// As [`execute`], and those of `sink`.
pub fn execute_chunks(
    recipe: &Recipe,
    source: &dyn Source,
    threads: usize,
    chunk_bytes: usize,
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    chunks(Rows::resolve(recipe, source)?, threads, chunk_bytes, sink)
}

/// All rows in order, about `chunk_bytes` at a time.
pub(crate) fn chunks(
    rows: Rows<'_>,
    threads: usize,
    chunk_bytes: usize,
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let step = (chunk_bytes as u64 / rows.row_bytes.max(1)).clamp(1, rows.len().max(1));
    let mut buffer = vec![0; (step * rows.row_bytes) as usize];
    for start in (0..rows.len()).step_by(step as usize) {
        let range = start..rows.len().min(start + step);
        let chunk = &mut buffer[..((range.end - range.start) * rows.row_bytes) as usize];
        let mut jobs = vec![];
        rows.split(range, chunk, &mut jobs)?;
        run(jobs, threads)?;
        sink(chunk)?;
    }
    Ok(())
}

/// A recipe whose types are known, as rows that can be made one by one.
pub(crate) struct Rows<'a> {
    pub(crate) ty: TensorType,
    row_bytes: u64,
    node: Node<'a>,
}

enum Node<'a> {
    /// A tensor of type `stored`, through each cast in order.
    Tensor {
        source: &'a dyn Source,
        name: &'a str,
        stored: DType,
        casts: Vec<DType>,
    },
    /// f32, through each cast in order.
    RopeTable {
        inv_freq: &'a [f32],
        factor: f32,
        casts: Vec<DType>,
    },
    Concat(Vec<Rows<'a>>),
    /// Of rows in f32.
    Quantize {
        scheme: Scheme,
        part: Part,
        of: Box<Rows<'a>>,
        /// Scales that its other part is made with, too.
        shared: Option<Arc<Matrix>>,
    },
    Pack {
        n: u64,
        k: u64,
        of: Box<Rows<'a>>,
    },
    Blocks {
        matrices: u64,
        of: Box<Rows<'a>>,
    },
    Fragments {
        matrices: u64,
        of: Box<Rows<'a>>,
    },
}

impl<'a> Rows<'a> {
    /// Types of all parts of a recipe, checked.
    pub(crate) fn resolve(recipe: &'a Recipe, source: &'a dyn Source) -> Result<Rows<'a>> {
        Rows::sharing(recipe, source, None)
    }

    /// The same, with scales that several recipes need searched for once.
    pub(crate) fn sharing(recipe: &'a Recipe, source: &'a dyn Source, searched: Option<&Searched>) -> Result<Rows<'a>> {
        recipe.check().map_err(Error::Recipe)?;
        Rows::through(recipe, source, searched, vec![])
    }

    /// A recipe through each of `casts`.
    fn through(
        recipe: &'a Recipe,
        source: &'a dyn Source,
        searched: Option<&Searched>,
        mut casts: Vec<DType>,
    ) -> Result<Rows<'a>> {
        match recipe {
            Recipe::Tensor(name) => Rows::tensor(name, source, casts),
            Recipe::Cast(dtype, of) => {
                casts.insert(0, *dtype);
                Rows::through(of, source, searched, casts)
            }
            Recipe::Concat(parts) => {
                let parts = parts.iter().map(|part| Rows::through(part, source, searched, casts.clone()));
                Rows::concat(parts.collect::<Result<_>>()?)
            }
            Recipe::Quantize { to, group, part, of } => {
                let scheme = Scheme { to: *to, group: group.map(u64::from) };
                let numbers = Rows::through(of, source, searched, vec![DType::F32])?;
                let shared = match (&**of, searched) {
                    (Recipe::Tensor(name), Some(searched)) if scheme.searches() => {
                        Some(searched.matrix(name, scheme, numbers.len()))
                    }
                    _ => None,
                };
                let rows = Rows::quantize(scheme, *part, numbers, shared)?;
                cast_type(rows.ty.dtype, &casts)?;
                Ok(rows)
            }
            Recipe::Pack { n, k, of } => {
                Rows::pack(u64::from(*n), u64::from(*k), Rows::through(of, source, searched, casts)?)
            }
            Recipe::Blocks { k, matrices, of } => {
                Rows::blocks(u64::from(*k), u64::from(*matrices), Rows::through(of, source, searched, casts)?)
            }
            Recipe::Fragments { k, matrices, of } => {
                Rows::fragments(u64::from(*k), u64::from(*matrices), Rows::through(of, source, searched, casts)?)
            }
            Recipe::RopeTable { inv_freq, factor, positions } => {
                let shape = vec![u64::from(*positions), 2, inv_freq.len() as u64];
                let dtype = cast_type(DType::F32, &casts)?;
                Rows::new(TensorType { dtype, shape }, Node::RopeTable { inv_freq, factor: *factor, casts })
            }
        }
    }

    fn tensor(name: &'a str, source: &'a dyn Source, casts: Vec<DType>) -> Result<Rows<'a>> {
        let TensorType { dtype: stored, shape } = source.tensor(name)?;
        let dtype = cast_type(stored, &casts)?;
        Rows::new(TensorType { dtype, shape }, Node::Tensor { source, name, stored, casts })
    }

    fn concat(parts: Vec<Rows<'a>>) -> Result<Rows<'a>> {
        let [first, rest @ ..] = &parts[..] else { return Err(Error::Recipe("concat of nothing".into())) };
        let mut ty = first.ty.clone();
        for part in rest {
            let fits = !ty.shape.is_empty() && part.ty.dtype == ty.dtype && part.ty.shape.get(1..) == ty.shape.get(1..);
            if !fits {
                return Err(Error::Recipe(format!("concat of {} and {}", first.ty, part.ty)));
            }
            ty.shape[0] = ty.shape[0].checked_add(part.ty.shape[0]).ok_or_else(|| too_large(&ty))?;
        }
        Rows::new(ty, Node::Concat(parts))
    }

    fn quantize(scheme: Scheme, part: Part, of: Rows<'a>, shared: Option<Arc<Matrix>>) -> Result<Rows<'a>> {
        let [rows, columns] = of.ty.shape[..] else {
            return Err(Error::Recipe(format!("quantisation of {}, expected two dimensions", of.ty)));
        };
        let group = scheme.group.unwrap_or(columns);
        if group == 0 || !columns.is_multiple_of(group) {
            return Err(Error::Recipe(format!("quantisation of {}, expected a multiple of {group} columns", of.ty)));
        }
        let ty = match (part, scheme.group) {
            (Part::Values, _) => TensorType { dtype: scheme.to, shape: vec![rows, columns] },
            (Part::Scales, None) => TensorType { dtype: DType::F32, shape: vec![rows] },
            (Part::Scales, Some(_)) => {
                let dtype = if scheme.searches() { DType::F16 } else { DType::F32 };
                TensorType { dtype, shape: vec![rows, columns / group] }
            }
        };
        Rows::new(ty, Node::Quantize { scheme, part, of: Box::new(of), shared })
    }

    fn pack(n: u64, k: u64, of: Rows<'a>) -> Result<Rows<'a>> {
        let [rows, columns] = of.ty.shape[..] else {
            return Err(Error::Recipe(format!("pack of {}, expected two dimensions", of.ty)));
        };
        if of.ty.dtype == DType::U4 && (!k.is_multiple_of(2) || !columns.is_multiple_of(k)) {
            let expected = format!("whole runs of {k} columns, an even number");
            return Err(Error::Recipe(format!("pack of {}, expected {expected}", of.ty)));
        }
        let ty = TensorType { dtype: of.ty.dtype, shape: vec![rows.div_ceil(n), columns.div_ceil(k), n, k] };
        Rows::new(ty, Node::Pack { n, k, of: Box::new(of) })
    }

    fn blocks(k: u64, matrices: u64, of: Rows<'a>) -> Result<Rows<'a>> {
        let refused = |expected: &str| Error::Recipe(format!("blocks of {}, expected {expected}", of.ty));
        let [rows, columns] = of.ty.shape[..] else { return Err(refused("two dimensions")) };
        if of.ty.dtype == DType::U4 {
            return Err(refused("whole bytes"));
        }
        if rows % matrices != 0 {
            return Err(refused(&format!("{matrices} matrices of as many rows")));
        }
        let stored = (rows / matrices).div_ceil(block::GROUP as u64).checked_mul(block::GROUP as u64 * matrices);
        let blocks = stored.ok_or_else(|| too_large(&of.ty))?.div_ceil(block::ROWS as u64);
        let ty = TensorType { dtype: of.ty.dtype, shape: vec![blocks, columns.div_ceil(k), block::ROWS as u64, k] };
        Rows::new(ty, Node::Blocks { matrices, of: Box::new(of) })
    }

    fn fragments(k: u64, matrices: u64, of: Rows<'a>) -> Result<Rows<'a>> {
        let refused = |expected: &str| Error::Recipe(format!("fragments of {}, expected {expected}", of.ty));
        let [rows, columns] = of.ty.shape[..] else { return Err(refused("two dimensions")) };
        if of.ty.dtype == DType::U4 && k != fragment::COLUMNS as u64 {
            return Err(refused(&format!("pieces of {} columns, not of {k}", fragment::COLUMNS)));
        }
        if rows % matrices != 0 {
            return Err(refused(&format!("{matrices} matrices of as many rows")));
        }
        let pieces = (rows / matrices).div_ceil(fragment::ROWS as u64).checked_mul(matrices);
        let pieces = pieces.ok_or_else(|| too_large(&of.ty))?;
        let ty = TensorType { dtype: of.ty.dtype, shape: vec![pieces, columns.div_ceil(k), fragment::ROWS as u64, k] };
        Rows::new(ty, Node::Fragments { matrices, of: Box::new(of) })
    }

    fn new(ty: TensorType, node: Node<'a>) -> Result<Rows<'a>> {
        ty.bytes().ok_or_else(|| too_large(&ty))?;
        let row = TensorType { dtype: ty.dtype, shape: ty.shape.iter().skip(1).copied().collect() };
        let bits = row.elements().and_then(|n| n.checked_mul(ty.dtype.bits())).ok_or_else(|| too_large(&ty))?;
        if bits % 8 != 0 {
            return Err(Error::Recipe(format!("rows of {ty} are no whole bytes")));
        }
        Ok(Rows { ty, row_bytes: bits / 8, node })
    }

    /// Number of rows.
    fn len(&self) -> u64 {
        self.ty.shape.first().copied().unwrap_or(1)
    }

    /// Elements of a row.
    fn row_elements(&self) -> u64 {
        self.row_bytes * 8 / self.ty.dtype.bits()
    }

    /// Cuts the making of `range` into jobs; `out` holds exactly these rows.
    pub(crate) fn split<'s>(&'s self, range: Range<u64>, out: &'s mut [u8], jobs: &mut Vec<Job<'s>>) -> Result<()> {
        let bytes = (range.end - range.start) * self.row_bytes;
        if out.len() as u64 != bytes {
            return Err(Error::Recipe(format!("rows {range:?} of {} take {bytes} bytes, got {}", self.ty, out.len())));
        }
        if bytes == 0 {
            return Ok(());
        }
        let step = (JOB_BYTES / self.row_bytes).max(1);
        for (start, out) in range.step_by(step as usize).zip(out.chunks_mut((step * self.row_bytes) as usize)) {
            jobs.push(Job { rows: self, start, out });
        }
        Ok(())
    }

    /// Cuts the making of all rows into jobs.
    pub(crate) fn split_all<'s>(&'s self, out: &'s mut [u8], jobs: &mut Vec<Job<'s>>) -> Result<()> {
        self.split(0..self.len(), out, jobs)
    }

    /// The first rows: as many as take about `bytes` bytes, or whose making does, at least one, at most all.
    pub(crate) fn first(&self, bytes: u64, threads: usize) -> Result<Vec<u8>> {
        let rows = (bytes / self.made_for_row().max(1)).clamp(1, self.len().max(1)).min(self.len());
        let mut out = vec![0; (rows * self.row_bytes) as usize];
        let mut jobs = vec![];
        self.split(0..rows, &mut out, &mut jobs)?;
        run(jobs, threads)?;
        Ok(out)
    }

    /// Bytes of a row, or of what it is made of where those are more: a row's scale is made of all its numbers, and where scales
    /// are searched for, these are read many times.
    fn made_for_row(&self) -> u64 {
        let of = match &self.node {
            Node::Quantize { scheme, of, .. } if scheme.searches() => of.made_for_row().saturating_mul(READS_OF_SEARCH),
            Node::Tensor { .. } | Node::RopeTable { .. } => 0,
            Node::Concat(parts) => parts.iter().map(Rows::made_for_row).max().unwrap_or(0),
            Node::Quantize { of, .. }
            | Node::Pack { of, .. }
            | Node::Blocks { of, .. }
            | Node::Fragments { of, .. } => of.made_for_row().saturating_mul(of.len()) / self.len().max(1),
        };
        self.row_bytes.max(of)
    }

    /// Makes the rows from `start` on that `out` has room for.
    fn fill(&self, start: u64, out: &mut [u8]) -> Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        let rows = start..start + out.len() as u64 / self.row_bytes;
        match &self.node {
            Node::Tensor { source, name, stored, casts } => {
                let elements = rows.start * self.row_elements()..rows.end * self.row_elements();
                fill_tensor(*source, name, *stored, casts, elements, out)
            }
            Node::RopeTable { inv_freq, factor, casts } => {
                let table = rows.flat_map(|position| rope_row(position, inv_freq, *factor));
                let table: Vec<u8> = table.flat_map(f32::to_le_bytes).collect();
                cast_through(DType::F32, casts, &table, out);
                Ok(())
            }
            Node::Concat(parts) => fill_concat(parts, rows, out),
            Node::Quantize { scheme, part, of, shared } => {
                self.fill_quantized((*scheme, *part), of, shared.as_deref(), rows, out)
            }
            Node::Pack { n, k, of } => self.fill_panels(*n, *k, of, rows, out),
            Node::Blocks { matrices, of } => self.fill_blocks(*matrices, of, rows, out),
            Node::Fragments { matrices, of } => self.fill_fragments(*matrices, of, rows, out),
        }
    }

    /// Row `i` of a result of blocks is a block row: 64 stored rows over all columns.
    fn fill_blocks(&self, matrices: u64, of: &Rows<'_>, blocks: Range<u64>, out: &mut [u8]) -> Result<()> {
        let line = (self.ty.shape[3] * self.ty.dtype.bits() / 8) as usize;
        let each = of.len() / matrices;
        let mut buffer = vec![0; block::GROUP * of.row_bytes as usize];
        for (number, out) in blocks.zip(out.chunks_exact_mut(self.row_bytes as usize)) {
            out.fill(0);
            for group in 0..block::ROWS / block::GROUP {
                let stored = number * (block::ROWS / block::GROUP) as u64 + group as u64;
                let (matrix, first) = (stored % matrices, stored / matrices * block::GROUP as u64);
                let rows = each.saturating_sub(first).min(block::GROUP as u64);
                let dense = &mut buffer[..(rows * of.row_bytes) as usize];
                if !dense.is_empty() {
                    of.fill(matrix * each + first, dense)?;
                    block::place(dense, of.row_bytes as usize, group, line, out);
                }
            }
        }
        Ok(())
    }

    /// Row `i` of a result of pieces is 32 rows of one matrix over all columns.
    fn fill_fragments(&self, matrices: u64, of: &Rows<'_>, pieces: Range<u64>, out: &mut [u8]) -> Result<()> {
        let unit = (self.ty.shape[3] * self.ty.dtype.bits() / 8) as usize;
        let each = of.len() / matrices;
        let mut buffer = vec![0; fragment::ROWS * of.row_bytes as usize];
        for (number, out) in pieces.zip(out.chunks_exact_mut(self.row_bytes as usize)) {
            let (matrix, first) = (number % matrices, number / matrices * fragment::ROWS as u64);
            let rows = each.saturating_sub(first).min(fragment::ROWS as u64);
            let dense = &mut buffer[..(rows * of.row_bytes) as usize];
            out.fill(0);
            of.fill(matrix * each + first, dense)?;
            panel::pack(dense, of.row_bytes as usize, fragment::ROWS, unit, out);
            if self.ty.dtype == DType::U4 {
                out.chunks_exact_mut(fragment::ROWS * unit).for_each(fragment::deal);
            }
        }
        Ok(())
    }

    fn fill_quantized(
        &self,
        (scheme, part): (Scheme, Part),
        of: &Rows<'_>,
        shared: Option<&Matrix>,
        rows: Range<u64>,
        out: &mut [u8],
    ) -> Result<()> {
        let mut buffer = vec![0; of.row_bytes as usize];
        let mut numbers = |row| of.fill(row, &mut buffer).map(|()| quantize::numbers(&buffer));
        let refused = |problem: String| Error::Recipe(format!("{}: {problem}", of.ty));
        for (row, out) in rows.zip(out.chunks_exact_mut(self.row_bytes as usize)) {
            let Some(shared) = shared else {
                quantize::row(scheme, part, &numbers(row)?, out).map_err(refused)?;
                continue;
            };
            let mut read = if part == Part::Values { Some(numbers(row)?) } else { None };
            let scales = shared.scales(row, || {
                let numbers = match read.take() {
                    Some(read) => read,
                    None => numbers(row)?,
                };
                let scales = quantize::search(scheme, &numbers).map_err(refused);
                read = Some(numbers);
                scales
            })?;
            quantize::scaled(scheme, part, read.as_deref().unwrap_or_default(), &scales, out);
        }
        Ok(())
    }

    fn fill_panels(&self, n: u64, k: u64, of: &Rows<'_>, panels: Range<u64>, out: &mut [u8]) -> Result<()> {
        let unit = k as usize * self.ty.dtype.bits() as usize / 8;
        let mut buffer = vec![0; (n.min(of.len()) * of.row_bytes) as usize];
        for (panel, out) in panels.zip(out.chunks_exact_mut(self.row_bytes as usize)) {
            let rows = n.min(of.len() - panel * n);
            let dense = &mut buffer[..(rows * of.row_bytes) as usize];
            of.fill(panel * n, dense)?;
            if self.ty.dtype == DType::U4 {
                panel::deal(dense, unit);
            }
            panel::pack(dense, of.row_bytes as usize, n as usize, unit, out);
        }
        Ok(())
    }
}

fn too_large(ty: &TensorType) -> Error {
    Error::Recipe(format!("{ty} is larger than memory can be"))
}

fn cast_type(from: DType, casts: &[DType]) -> Result<DType> {
    casts.iter().try_fold(from, |from, to| {
        convert::castable(from, *to).then_some(*to).ok_or_else(|| Error::Recipe(format!("no cast from {from} to {to}")))
    })
}

/// Elements `range` of a tensor, checked to be finite before and after the casts.
fn fill_tensor(
    source: &dyn Source,
    name: &str,
    stored: DType,
    casts: &[DType],
    range: Range<u64>,
    out: &mut [u8],
) -> Result<()> {
    let byte = |element: u64| element * stored.bits() / 8;
    let data = source.bytes(name, byte(range.start)..byte(range.end))?;
    let check = |dtype: DType, bytes: &[u8]| match convert::first_not_finite(dtype, bytes) {
        Some(i) => Err(Error::NotFinite { tensor: name.into(), index: range.start + i as u64, dtype }),
        None => Ok(()),
    };
    check(stored, &data)?;
    cast_through(stored, casts, &data, out);
    check(casts.last().copied().unwrap_or(stored), out)
}

fn cast_through(stored: DType, casts: &[DType], data: &[u8], out: &mut [u8]) {
    match casts {
        [] => out.copy_from_slice(data),
        [to] => convert::cast(stored, *to, data, out),
        [to, rest @ ..] => {
            let elements = data.len() * 8 / stored.bits() as usize;
            let mut between = vec![0; elements * to.bits() as usize / 8];
            convert::cast(stored, *to, data, &mut between);
            cast_through(*to, rest, &between, out);
        }
    }
}

fn fill_concat(parts: &[Rows<'_>], rows: Range<u64>, mut out: &mut [u8]) -> Result<()> {
    let mut first = 0;
    for part in parts {
        let (start, end) = (rows.start.max(first), rows.end.min(first + part.len()));
        if start < end {
            let (head, tail) = out.split_at_mut(((end - start) * part.row_bytes) as usize);
            part.fill(start - first, head)?;
            out = tail;
        }
        first += part.len();
    }
    Ok(())
}

/// Cosines, then sines, of one position: an f32 product, as transformers computes it.
fn rope_row(position: u64, inv_freq: &[f32], factor: f32) -> impl Iterator<Item = f32> {
    let angles: Vec<(f64, f64)> = inv_freq.iter().map(|f| f64::from(position as f32 * f).sin_cos()).collect();
    let part = move |angles: Vec<(f64, f64)>, sine: bool| {
        angles.into_iter().map(move |(sin, cos)| if sine { sin } else { cos } as f32 * factor)
    };
    part(angles.clone(), false).chain(part(angles, true))
}

/// Some rows to be made, and where.
pub(crate) struct Job<'s> {
    rows: &'s Rows<'s>,
    start: u64,
    out: &'s mut [u8],
}

/// Runs jobs on up to `threads` threads; of several errors, that of the first job.
pub(crate) fn run(jobs: Vec<Job<'_>>, threads: usize) -> Result<()> {
    let threads = threads.clamp(1, jobs.len().max(1));
    let (jobs, failed) = (Mutex::new(jobs.into_iter().enumerate()), AtomicBool::new(false));
    let work = || {
        while !failed.load(Ordering::Relaxed) {
            let next = jobs.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
            let Some((i, job)) = next else { break };
            if let Err(error) = job.rows.fill(job.start, job.out) {
                failed.store(true, Ordering::Relaxed);
                return Some((i, error));
            }
        }
        None
    };
    let errors = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut errors: Vec<_> = work().into_iter().collect();
        for thread in others {
            errors.extend(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        errors
    });
    errors.into_iter().min_by_key(|(i, _)| *i).map_or(Ok(()), |(_, error)| Err(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dummy::DummySource;

    #[test]
    fn the_first_rows_take_little_to_make() {
        let source = DummySource::new(1, DType::Bf16, [("x".to_string(), vec![3000, 256])].into()).unwrap();
        let of = || Box::new(Recipe::Tensor("x".into()));
        let quantize = |part| Recipe::Quantize { to: DType::F8e4m3, group: None, part, of: of() };
        let pieces = Recipe::Fragments { k: 32, matrices: 1, of: Box::new(quantize(Part::Values)) };
        let found = |recipe: &Recipe| {
            let first = Rows::resolve(recipe, &source).unwrap().first(1 << 18, 1).unwrap();
            let mut whole = vec![];
            let mut keep = |bytes: &[u8]| {
                whole.extend_from_slice(bytes);
                Ok(())
            };
            execute_chunks(recipe, &source, 1, 1 << 20, &mut keep).unwrap();
            assert!(whole.starts_with(&first));
            first.len()
        };
        // 2 bytes a number as it is stored, 4 while it is quantised
        assert_eq!(found(&of()), 512 * 512);
        assert_eq!(found(&quantize(Part::Values)), 256 * 256);
        assert_eq!(found(&quantize(Part::Scales)), 256 * 4);
        assert_eq!(found(&pieces), 256 * 256);
    }
}

//! Which tensors of a checkpoint are which part of a quantised matrix.
//!
//! Invariants: every tensor of a matrix is there and of the shape that the others ask for, or the checkpoint is refused, by
//! the tensor's name; groups that `g_idx` names are groups that there are.

use super::{
    Part, Stored,
    config::Config,
    fields::{Along, Packing},
    matrix::{Matrix, Scales, Tensors, Values, Zeros},
};
use crate::{plan::DType, source::TensorType};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

/// The tensors of a checkpoint as its files have them.
pub(crate) trait Files {
    /// Names of all tensors.
    fn names(&self) -> Vec<&str>;
    /// Type and shape of a tensor of a known type.
    fn ty(&self, name: &str) -> Option<TensorType>;
    /// All bytes of a tensor; none where it is missing.
    fn all(&self, name: &str) -> &[u8];
}

struct Bytes<'a, F>(&'a F);

impl<F: Files> Tensors for Bytes<'_, F> {
    fn all(&self, name: &str) -> &[u8] {
        self.0.all(name)
    }
}

/// The quantised matrices of a checkpoint.
#[derive(Debug, Default)]
pub(crate) struct Quantized {
    /// By the names of the tensors that they stand for.
    matrices: BTreeMap<String, Matrix>,
    /// The matrix and the part that a name stands for.
    parts: BTreeMap<String, (String, Part)>,
    /// The tensors that they are made of.
    consumed: BTreeSet<String>,
}

impl Quantized {
    /// Finds the matrices of a checkpoint of this layout.
    ///
    /// # Errors
    /// One whose tensors are missing or do not fit each other.
    pub(crate) fn find(config: Config, files: &impl Files) -> Result<Quantized, String> {
        let mut quantized = Quantized::default();
        let main = match config {
            Config::Gptq { .. } | Config::Awq { .. } => ".qweight",
            Config::Packed { .. } => ".weight_packed",
            Config::Int8 | Config::E4m3 { .. } => ".weight",
        };
        // these have the name of those that are not quantised
        let only = match config {
            Config::Int8 => Some(DType::I8),
            Config::E4m3 { .. } => Some(DType::F8e4m3),
            _ => None,
        };
        for name in files.names() {
            let stem = name.strip_suffix(main);
            let one = || only.is_none_or(|dtype| files.ty(name).is_some_and(|ty| ty.dtype == dtype));
            let Some(stem) = stem.filter(|_| one()) else { continue };
            let mut module = Module { stem, files, used: vec![name.to_string()] };
            let matrix = match config {
                Config::Gptq { bits, group, zero_offset } => module.gptq(bits, group, zero_offset)?,
                Config::Awq { group } => module.awq(group)?,
                Config::Packed { bits, group, symmetric } => module.packed(bits, group, symmetric)?,
                Config::Int8 => module.int8()?,
                Config::E4m3 { block } => module.e4m3(block)?,
            };
            let used = module.used;
            quantized.add(stem, matrix, used);
        }
        Ok(quantized)
    }

    fn add(&mut self, stem: &str, matrix: Matrix, used: Vec<String>) {
        let name = format!("{stem}.weight");
        let parts = Part::ALL.into_iter().filter(|part| matrix.part(*part).is_some());
        self.parts.extend(parts.map(|part| (part.name(&name), (name.clone(), part))));
        self.consumed.extend(used);
        self.matrices.insert(name, matrix);
    }

    /// Names of the matrices.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.matrices.keys().map(String::as_str)
    }

    /// Whether a tensor of the files is given out as a part of a matrix only.
    pub(crate) fn consumes(&self, name: &str) -> bool {
        self.consumed.contains(name)
    }

    /// Whether there is a matrix of this name.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.matrices.contains_key(name)
    }

    /// How the parts of a matrix are given out, where they are.
    pub(crate) fn stored(&self, name: &str) -> Option<Stored> {
        self.matrices.get(name)?.stored()
    }

    /// Type and shape of a matrix's part, by its name.
    pub(crate) fn tensor(&self, name: &str) -> Option<TensorType> {
        let (matrix, part) = self.parts.get(name)?;
        self.matrices.get(matrix)?.part(*part)
    }

    /// Bytes `range` of a matrix's part, by its name.
    pub(crate) fn bytes(&self, name: &str, range: Range<u64>, files: &impl Files) -> Option<Vec<u8>> {
        let (matrix, part) = self.parts.get(name)?;
        self.matrices.get(matrix)?.bytes(*part, range, &Bytes(files))
    }
}

/// The tensors of one module.
struct Module<'a, F> {
    stem: &'a str,
    files: &'a F,
    /// Those that were looked at.
    used: Vec<String>,
}

impl<F: Files> Module<'_, F> {
    fn name(&self, kind: &str) -> String {
        format!("{}.{kind}", self.stem)
    }

    /// A tensor's name, with its type and shape, where it is there; it is the matrix's from then on.
    fn find(&mut self, kind: &str) -> Option<(String, TensorType)> {
        let name = self.name(kind);
        let ty = self.files.ty(&name)?;
        self.used.push(name.clone());
        Some((name, ty))
    }

    /// A tensor of one of these types and of two dimensions.
    fn two(&mut self, kind: &str, dtypes: &[DType]) -> Result<(String, DType, [u64; 2]), String> {
        let (name, ty) = self.find(kind).ok_or_else(|| format!("missing tensor {}", self.name(kind)))?;
        let names: Vec<String> = dtypes.iter().map(DType::to_string).collect();
        match ty.shape[..] {
            [a, b] if dtypes.contains(&ty.dtype) => Ok((name, ty.dtype, [a, b])),
            _ => Err(format!("tensor {name} is {ty}, expected two dimensions of {}", names.join(" or "))),
        }
    }

    /// A tensor of exactly this shape.
    fn shaped(&mut self, kind: &str, dtypes: &[DType], shape: [u64; 2]) -> Result<(String, DType), String> {
        match self.two(kind, dtypes)? {
            (name, dtype, found) if found == shape => Ok((name, dtype)),
            (name, _, found) => Err(format!("tensor {name} has shape {found:?}, expected {shape:?}")),
        }
    }

    /// Columns of a group of a matrix of so many.
    fn group(&self, group: Option<u64>, columns: u64) -> Result<u64, String> {
        match group.unwrap_or(columns) {
            0 => Err(format!("{} has no columns", self.stem)),
            group => Ok(group.min(columns)),
        }
    }

    fn gptq(&mut self, bits: u32, group: Option<u64>, zero_offset: u8) -> Result<Matrix, String> {
        let packing = Packing::new(bits, Along::Rows);
        let (tensor, _, [words, rows]) = self.two("qweight", &[DType::I32])?;
        let columns = words.checked_mul(packing.each()).ok_or_else(|| format!("tensor {tensor} is too large"))?;
        let group = self.group(group, columns)?;
        let zeros = Packing::new(bits, Along::Columns);
        let mut matrix = self.transposed([rows, columns], group, (tensor, packing), (zeros, zero_offset))?;
        matrix.order = self.order("g_idx", &matrix)?;
        Ok(matrix)
    }

    fn awq(&mut self, group: Option<u64>) -> Result<Matrix, String> {
        let packing = Packing::interleaved();
        let (tensor, _, [columns, words]) = self.two("qweight", &[DType::I32])?;
        let rows = words.checked_mul(packing.each()).ok_or_else(|| format!("tensor {tensor} is too large"))?;
        let group = self.group(group, columns)?;
        self.transposed([rows, columns], group, (tensor, packing), (packing, 0))
    }

    /// A matrix whose values, zeros and scales are transposed.
    fn transposed(
        &mut self,
        [rows, columns]: [u64; 2],
        group: u64,
        (tensor, packing): (String, Packing),
        (zeros, offset): (Packing, u8),
    ) -> Result<Matrix, String> {
        let shape = [columns.div_ceil(group), rows];
        let (scales, dtype) = self.shaped("scales", &[DType::F16, DType::Bf16, DType::F32], shape)?;
        let (stored_zeros, _) = self.shaped("qzeros", &[DType::I32], zeros.words(shape))?;
        let middle = self.all_middle(&stored_zeros, zeros, offset);
        Ok(Matrix {
            rows,
            columns,
            bits: packing.bits,
            group,
            values: Values::Packed { tensor, packing, transposed: true },
            scales: Scales { tensor: scales, dtype, transposed: true, rows: 1 },
            zeros: (!middle).then_some(Zeros { tensor: stored_zeros, packing: zeros, transposed: true, offset }),
            order: None,
        })
    }

    /// Whether all fields of a tensor, with an offset added, are the middle of their range: symmetric values need no zeros.
    fn all_middle(&self, tensor: &str, packing: Packing, offset: u8) -> bool {
        let field = (1u32 << (packing.bits - 1)) - u32::from(offset);
        let word = (0..32).step_by(packing.bits as usize).fold(0, |word, shift| word | field << shift);
        self.files.all(tensor).as_chunks().0.iter().all(|found| *found == word.to_le_bytes())
    }

    /// The groups of columns, where a tensor says so and they are not in order.
    fn order(&mut self, kind: &str, matrix: &Matrix) -> Result<Option<Vec<u32>>, String> {
        let Some((name, ty)) = self.find(kind) else { return Ok(None) };
        if ty.shape != [matrix.columns] || ty.dtype != DType::I32 {
            return Err(format!("tensor {name} is {ty}, expected [{}]i32", matrix.columns));
        }
        let order: Vec<u32> = self.files.all(&name).as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        let groups = matrix.groups();
        if let Some(wrong) = order.iter().find(|group| u64::from(**group) >= groups) {
            return Err(format!("tensor {name} names group {}, but there are {groups}", wrong.cast_signed()));
        }
        let in_order =
            order.iter().zip(0..).all(|(group, column): (&u32, u64)| u64::from(*group) == column / matrix.group);
        Ok((!in_order).then_some(order))
    }

    fn packed(&mut self, bits: u32, group: Option<u64>, symmetric: bool) -> Result<Matrix, String> {
        let packing = Packing::new(bits, Along::Columns);
        let [rows, columns] = self.packed_shape()?;
        let (tensor, _) = self.shaped("weight_packed", &[DType::I32], packing.words([rows, columns]))?;
        let group = self.group(group, columns)?;
        let scales = self.row_scales(rows, columns.div_ceil(group))?;
        let zeros = self.packed_zeros(symmetric, [rows, columns.div_ceil(group)], bits)?;
        let values = Values::Packed { tensor, packing, transposed: false };
        let mut matrix = Matrix { rows, columns, bits, group, values, scales, zeros, order: None };
        matrix.order = self.order("weight_g_idx", &matrix)?;
        Ok(matrix)
    }

    /// `weight_shape`, two integers of 32 or 64 bits.
    fn packed_shape(&mut self) -> Result<[u64; 2], String> {
        let name = self.name("weight_shape");
        let bytes = self.files.all(&name);
        let wide = |b: &[u8; 8]| i64::from_le_bytes(*b);
        let shape = match bytes.len() {
            16 => bytes.as_chunks().0.iter().map(wide).collect(),
            8 => bytes.as_chunks().0.iter().map(|b| i64::from(i32::from_le_bytes(*b))).collect(),
            _ => vec![],
        };
        self.used.push(name.clone());
        match shape[..] {
            [rows, columns] if rows > 0 && columns > 0 => Ok([rows as u64, columns as u64]),
            _ => Err(format!("tensor {name} of {} bytes is no shape, expected two sizes", bytes.len())),
        }
    }

    /// `weight_scale`: `[N, groups]`, or one for all.
    fn row_scales(&mut self, rows: u64, groups: u64) -> Result<Scales, String> {
        let (tensor, ty) =
            self.find("weight_scale").ok_or_else(|| format!("missing tensor {}", self.name("weight_scale")))?;
        let known = matches!(ty.dtype, DType::F16 | DType::Bf16 | DType::F32);
        let one = rows != 1 && groups == 1 && matches!(ty.shape[..], [] | [1] | [1, 1]);
        let each = ty.shape == [rows, groups] || groups == 1 && ty.shape == [rows];
        match known && (one || each) {
            true => Ok(Scales { tensor, dtype: ty.dtype, transposed: false, rows: if one { rows } else { 1 } }),
            false => Err(format!("tensor {tensor} is {ty}, expected [{rows}, {groups}] of f16, bf16 or f32")),
        }
    }

    fn packed_zeros(&mut self, symmetric: bool, shape: [u64; 2], bits: u32) -> Result<Option<Zeros>, String> {
        if symmetric {
            self.find("weight_zero_point");
            return Ok(None);
        }
        let packing = Packing::new(bits, Along::Rows);
        let (tensor, _) = self.shaped("weight_zero_point", &[DType::I32], packing.words(shape))?;
        Ok(Some(Zeros { tensor, packing, transposed: false, offset: 0 }))
    }

    fn int8(&mut self) -> Result<Matrix, String> {
        let (tensor, _, [rows, columns]) = self.two("weight", &[DType::I8])?;
        let group = self.group(None, columns)?;
        let scales = self.row_scales(rows, 1)?;
        self.find("weight_zero_point");
        let values = Values::Bytes { tensor, dtype: DType::I8 };
        Ok(Matrix { rows, columns, bits: 8, group, values, scales, zeros: None, order: None })
    }

    /// Scales of blocks are called `weight_scale_inv` by Transformers: numbers are values times these, too.
    fn e4m3(&mut self, block: Option<[u64; 2]>) -> Result<Matrix, String> {
        let (tensor, _, [rows, columns]) = self.two("weight", &[DType::F8e4m3])?;
        let group = self.group(block.map(|[_, columns]| columns), columns)?;
        let scales = match block {
            None => self.row_scales(rows, 1)?,
            Some([n, _]) => self.block_scales([rows.div_ceil(n), columns.div_ceil(group)], n)?,
        };
        // scales of activations, which kernels choose for each token
        self.find("input_scale");
        let values = Values::Bytes { tensor, dtype: DType::F8e4m3 };
        Ok(Matrix { rows, columns, bits: 8, group, values, scales, zeros: None, order: None })
    }

    fn block_scales(&mut self, shape: [u64; 2], rows: u64) -> Result<Scales, String> {
        let kind =
            if self.files.ty(&self.name("weight_scale_inv")).is_some() { "weight_scale_inv" } else { "weight_scale" };
        let (tensor, dtype) = self.shaped(kind, &[DType::F16, DType::Bf16, DType::F32], shape)?;
        Ok(Scales { tensor, dtype, transposed: false, rows })
    }
}

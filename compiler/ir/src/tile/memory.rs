//! Tensors as values, and how those values lie in memory.
//!
//! [`TensorData`] holds logical elements in row-major order, whatever the [`MemLayout`]; [`pack`] and [`unpack`] go to
//! and from the bytes that compiled kernels see (little-endian).

use super::{BLOCK_GROUP, BLOCK_ROWS, FRAGMENT_COLUMNS, FRAGMENT_ROWS, MemLayout};
use crate::{
    e4m3_bits, e4m3_number,
    expr::Sym,
    types::{DType, TensorType},
};
use half::{bf16, f16};

/// Elements of a tensor: numbers as f32, whatever their type in memory, or integers.
#[derive(Clone, Debug, PartialEq)]
pub enum Elements {
    /// Of tensors of floating-point numbers and of small integers.
    F32(Vec<f32>),
    /// Of i32 tensors.
    I32(Vec<i32>),
}

/// A tensor's value.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorData {
    /// Sizes, outermost first.
    pub dims: Vec<usize>,
    /// Row-major; as many as the dimensions say.
    pub elements: Elements,
}

/// What does not fit when a tensor is laid out.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum LayoutError {
    /// The caller's fault: elements and element type are of two kinds.
    #[error("elements of {found} cannot be stored as {wanted}")]
    Elements {
        /// What the tensor holds.
        found: &'static str,
        /// What it was to become.
        wanted: DType,
    },
    /// The caller's fault: too few bytes.
    #[error("a tensor of shape {dims:?} takes {needed} bytes, but there are {found}")]
    Bytes {
        /// The shape.
        dims: Vec<usize>,
        /// What it takes.
        needed: usize,
        /// What was given.
        found: usize,
    },
    /// The caller's fault: panels or blocks of a tensor of rank 0 or 1.
    #[error("panels and blocks need two dimensions, but the shape is {dims:?}")]
    Rank {
        /// The shape.
        dims: Vec<usize>,
    },
}

impl TensorData {
    /// A tensor of numbers. Panics where their count is not the shape's.
    #[track_caller]
    pub fn f32(dims: &[usize], elements: Vec<f32>) -> TensorData {
        assert_eq!(elements.len(), dims.iter().product::<usize>(), "shape {dims:?}");
        TensorData { dims: dims.to_vec(), elements: Elements::F32(elements) }
    }

    /// A tensor of integers. Panics where their count is not the shape's.
    #[track_caller]
    pub fn i32(dims: &[usize], elements: Vec<i32>) -> TensorData {
        assert_eq!(elements.len(), dims.iter().product::<usize>(), "shape {dims:?}");
        TensorData { dims: dims.to_vec(), elements: Elements::I32(elements) }
    }

    /// Zeros of a tensor type, where `symbols` gives each symbol's value.
    pub fn zeros(ty: &TensorType, symbols: &dyn Fn(Sym) -> i64) -> TensorData {
        let dims = dims(ty, symbols);
        let n = dims.iter().product();
        let elements = match ty.dtype {
            DType::I32 => Elements::I32(vec![0; n]),
            _ => Elements::F32(vec![0.0; n]),
        };
        TensorData { dims, elements }
    }

    /// The numbers. Panics on integers.
    #[track_caller]
    pub fn numbers(&self) -> &[f32] {
        match &self.elements {
            Elements::F32(x) => x,
            Elements::I32(_) => panic!("a tensor of integers is asked for its numbers"),
        }
    }
}

/// Sizes of a tensor type, where `symbols` gives each symbol's value.
pub fn dims(ty: &TensorType, symbols: &dyn Fn(Sym) -> i64) -> Vec<usize> {
    ty.dims.iter().map(|d| usize::try_from(d.expr().eval(symbols)).unwrap_or(0)).collect()
}

impl MemLayout {
    /// Elements that a tensor of this shape takes, padding included.
    pub fn len(&self, dims: &[usize]) -> usize {
        match (*self, dims) {
            (MemLayout::Strided { row: Some(row) }, [first, inner @ ..]) => match first {
                0 => 0,
                n => (n - 1) * row + inner.iter().product::<usize>(),
            },
            (MemLayout::Panel { n, k }, [outer @ .., rows, cols]) => {
                outer.iter().product::<usize>() * rows.next_multiple_of(n) * cols.next_multiple_of(k)
            }
            (MemLayout::Blocks { k }, [outer @ .., rows, cols]) => {
                let rows = outer.iter().product::<usize>() * rows.next_multiple_of(BLOCK_GROUP);
                rows.next_multiple_of(BLOCK_ROWS) * cols.next_multiple_of(k)
            }
            (MemLayout::Fragments { k }, [outer @ .., rows, cols]) => {
                outer.iter().product::<usize>() * rows.next_multiple_of(FRAGMENT_ROWS) * cols.next_multiple_of(k)
            }
            _ => dims.iter().product(),
        }
    }

    /// Where an element lies, counted in elements from the first.
    pub fn offset(&self, dims: &[usize], index: &[usize]) -> usize {
        let dense = |dims: &[usize], index: &[usize]| dims.iter().zip(index).fold(0, |at, (d, i)| at * d + i);
        match (*self, dims, index) {
            (MemLayout::Strided { row: Some(row) }, [_, dims @ ..], [first, index @ ..]) => {
                first * row + dense(dims, index)
            }
            (MemLayout::Panel { n, k }, [outer @ .., rows, cols], [at @ .., r, c]) => {
                let (panels, groups) = (rows.div_ceil(n), cols.div_ceil(k));
                let panel = dense(outer, at) * panels + r / n;
                ((panel * groups + c / k) * n + r % n) * k + c % k
            }
            (MemLayout::Blocks { k }, [outer @ .., _, cols], [at @ .., r, c]) => {
                let matrices = outer.iter().product::<usize>();
                let row = (r / BLOCK_GROUP * matrices + dense(outer, at)) * BLOCK_GROUP + r % BLOCK_GROUP;
                let block = row / BLOCK_ROWS * cols.div_ceil(k) + c / k;
                let (piece, row) = ((k / BLOCK_GROUP).max(1), row % BLOCK_ROWS);
                let swizzled = (c % k / piece) ^ (row % BLOCK_GROUP);
                (block * BLOCK_ROWS + row) * k + swizzled * piece + c % piece
            }
            (MemLayout::Fragments { k }, [outer @ .., _, cols], [at @ .., r, c]) => {
                let matrices = outer.iter().product::<usize>();
                let run = r / FRAGMENT_ROWS * matrices + dense(outer, at);
                ((run * cols.div_ceil(k) + c / k) * FRAGMENT_ROWS + r % FRAGMENT_ROWS) * k + c % k
            }
            _ => dense(dims, index),
        }
    }
}

/// The index of element number `i` of a tensor in row-major order.
pub(super) fn index_of(dims: &[usize], mut i: usize) -> Vec<usize> {
    let mut index = vec![0; dims.len()];
    for (at, d) in index.iter_mut().zip(dims).rev() {
        *at = i % d;
        i /= d;
    }
    index
}

fn check_rank(layout: MemLayout, dims: &[usize]) -> Result<(), LayoutError> {
    match layout {
        MemLayout::Panel { .. } | MemLayout::Blocks { .. } | MemLayout::Fragments { .. } if dims.len() < 2 => {
            Err(LayoutError::Rank { dims: dims.to_vec() })
        }
        _ => Ok(()),
    }
}

/// The bytes of a tensor: rounded to `dtype`, laid out, zeros where the layout pads.
pub fn pack(t: &TensorData, dtype: DType, layout: MemLayout) -> Result<Vec<u8>, LayoutError> {
    check_rank(layout, &t.dims)?;
    if let (Elements::F32(x), DType::U4) = (&t.elements, dtype) {
        return Ok(pack_nibbles(x, &t.dims, layout));
    }
    let size = dtype.bytes(1);
    let mut bytes = vec![0; layout.len(&t.dims) * size];
    let mut put = |i: usize, element: &[u8]| {
        let at = layout.offset(&t.dims, &index_of(&t.dims, i)) * size;
        bytes[at..at + size].copy_from_slice(element);
    };
    match (&t.elements, dtype) {
        (Elements::F32(x), DType::F32) => x.iter().enumerate().for_each(|(i, x)| put(i, &x.to_le_bytes())),
        (Elements::F32(x), DType::F16) => {
            x.iter().enumerate().for_each(|(i, x)| put(i, &f16::from_f32(*x).to_le_bytes()));
        }
        (Elements::F32(x), DType::Bf16) => {
            x.iter().enumerate().for_each(|(i, x)| put(i, &bf16::from_f32(*x).to_le_bytes()));
        }
        (Elements::F32(x), DType::I8) => x.iter().enumerate().for_each(|(i, x)| put(i, &(*x as i8).to_le_bytes())),
        (Elements::F32(x), DType::F8e4m3) => x.iter().enumerate().for_each(|(i, x)| put(i, &[e4m3_bits(*x)])),
        (Elements::F32(x), DType::U8) => x.iter().enumerate().for_each(|(i, x)| put(i, &[*x as u8])),
        (Elements::I32(x), DType::I32) => x.iter().enumerate().for_each(|(i, x)| put(i, &x.to_le_bytes())),
        (Elements::F32(_), wanted) => return Err(LayoutError::Elements { found: "f32", wanted }),
        (Elements::I32(_), wanted) => return Err(LayoutError::Elements { found: "i32", wanted }),
    }
    Ok(bytes)
}

/// Byte and shift of a 4-bit element: see [`MemLayout::Panel`] and [`MemLayout::Fragments`]; dense ones lie in pairs.
fn nibble(layout: MemLayout, offset: usize) -> (usize, u32) {
    if let MemLayout::Fragments { .. } = layout {
        let place = fragment(offset);
        return (place / 2, if place.is_multiple_of(2) { 0 } else { 4 });
    }
    let run = if let MemLayout::Panel { k, .. } = layout { k.max(2) } else { 2 };
    let within = offset % run;
    (offset / run * (run / 2) + within % (run / 2), if within < run / 2 { 0 } else { 4 })
}

/// Where the element of 4 bits at an offset lies, in half bytes.
fn fragment(offset: usize) -> usize {
    let piece = FRAGMENT_ROWS * FRAGMENT_COLUMNS;
    let (row, c) = (offset % piece / FRAGMENT_COLUMNS, offset % FRAGMENT_COLUMNS);
    let (slice, half, four, e) = (c / 16, c / 8 % 2, c / 2 % 4, c % 2);
    offset / piece * piece + (4 * row + four) * 16 + slice / 2 * 8 + 4 * e + 2 * (slice % 2) + half
}

fn pack_nibbles(x: &[f32], dims: &[usize], layout: MemLayout) -> Vec<u8> {
    let mut bytes = vec![0; DType::U4.bytes(layout.len(dims))];
    for (i, x) in x.iter().enumerate() {
        let (byte, shift) = nibble(layout, layout.offset(dims, &index_of(dims, i)));
        bytes[byte] |= (*x as u8 & 15) << shift;
    }
    bytes
}

/// The tensor that [`pack`] made these bytes of; bytes past it are left alone.
pub fn unpack(bytes: &[u8], dims: &[usize], dtype: DType, layout: MemLayout) -> Result<TensorData, LayoutError> {
    check_rank(layout, dims)?;
    let size = dtype.bytes(1);
    let needed = dtype.bytes(layout.len(dims));
    if bytes.len() < needed {
        return Err(LayoutError::Bytes { dims: dims.to_vec(), needed, found: bytes.len() });
    }
    let n = dims.iter().product();
    if dtype == DType::U4 {
        let element = |i| {
            let (byte, shift) = nibble(layout, layout.offset(dims, &index_of(dims, i)));
            f32::from(bytes[byte] >> shift & 15)
        };
        return Ok(TensorData { dims: dims.to_vec(), elements: Elements::F32((0..n).map(element).collect()) });
    }
    let at = |i: usize| &bytes[layout.offset(dims, &index_of(dims, i)) * size..][..size];
    let word = |i: usize| at(i).iter().rev().fold(0u32, |w, b| w << 8 | u32::from(*b));
    let numbers = |decode: fn(u32) -> f32| Elements::F32((0..n).map(|i| decode(word(i))).collect());
    let elements = match dtype {
        DType::F32 => numbers(f32::from_bits),
        DType::F16 => numbers(|w| f16::from_bits(w as u16).to_f32()),
        DType::Bf16 => numbers(|w| bf16::from_bits(w as u16).to_f32()),
        DType::I8 => numbers(|w| f32::from((w as u8).cast_signed())),
        DType::U8 => numbers(|w| f32::from(w as u8)),
        DType::F8e4m3 => numbers(|w| e4m3_number(w as u8)),
        DType::I32 => Elements::I32((0..n).map(|i| word(i) as i32).collect()),
        wanted => return Err(LayoutError::Elements { found: "unsupported size", wanted }),
    };
    Ok(TensorData { dims: dims.to_vec(), elements })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCKS: MemLayout = MemLayout::Blocks { k: 64 };

    fn iota(dims: &[usize]) -> TensorData {
        TensorData::f32(dims, (0..dims.iter().product()).map(|i| i as f32).collect())
    }

    #[test]
    fn panels_hold_pairs_of_k_side_by_side_and_pad_with_zeros() {
        let t = iota(&[3, 3]);
        let bytes = pack(&t, DType::F32, MemLayout::Panel { n: 2, k: 2 }).unwrap();
        let flat = unpack(&bytes, &[16], DType::F32, MemLayout::DENSE).unwrap();
        let expected = [0., 1., 3., 4., 2., 0., 5., 0., 6., 7., 0., 0., 8., 0., 0., 0.];
        assert_eq!(flat.numbers(), expected);
    }

    #[test]
    fn what_is_packed_unpacks() {
        for layout in [MemLayout::DENSE, MemLayout::Strided { row: Some(23) }, MemLayout::Panel { n: 4, k: 2 }, BLOCKS]
        {
            for dtype in [DType::F32, DType::Bf16, DType::F16] {
                let t = iota(&[2, 3, 5]);
                let bytes = pack(&t, dtype, layout).unwrap();
                assert_eq!(unpack(&bytes, &t.dims, dtype, layout).unwrap(), t, "{layout:?} {dtype}");
            }
        }
    }

    #[test]
    fn offsets_are_distinct_and_inside() {
        for (layout, dims) in [
            (MemLayout::Panel { n: 4, k: 2 }, [2, 7, 5]),
            (BLOCKS, [3, 45, 70]),
            (MemLayout::Fragments { k: 2 }, [3, 45, 7]),
        ] {
            let n = dims.iter().product();
            let offsets: std::collections::HashSet<usize> =
                (0..n).map(|i| layout.offset(&dims, &index_of(&dims, i))).collect();
            assert_eq!(offsets.len(), n);
            assert!(offsets.into_iter().all(|o| o < layout.len(&dims)));
        }
    }

    #[test]
    fn blocks_swizzle_lines_and_interleave_matrices_by_eight_rows() {
        let at = |index: [usize; 3]| BLOCKS.offset(&[2, 40, 130], &index);
        assert_eq!(at([0, 0, 9]), 9);
        // row 3: piece 1 lies where piece 2 would
        assert_eq!(at([0, 3, 9]), 3 * 64 + 2 * 8 + 1);
        // the second matrix follows after eight rows, the next eight rows of the first after it
        assert_eq!([at([1, 0, 0]), at([0, 8, 0])], [8 * 64, 16 * 64]);
        // the next columns are the next block, the next 64 rows lie behind all columns
        assert_eq!([at([0, 0, 64]), at([0, 32, 0])], [64 * 64, 3 * 64 * 64]);
        assert_eq!(BLOCKS.len(&[2, 40, 130]), 2 * 3 * 64 * 64);
    }

    #[test]
    fn pieces_of_nibbles_are_in_the_order_of_a_matrix_operand() {
        const LAYOUT: MemLayout = MemLayout::Fragments { k: 64 };
        let dims = [2, 40, 96];
        // 40 rows take 64 of each matrix, 96 columns two pieces
        assert_eq!(LAYOUT.len(&dims), 2 * 64 * 128);
        let at = |index: [usize; 3]| {
            let (byte, shift) = nibble(LAYOUT, LAYOUT.offset(&dims, &index));
            2 * byte + shift as usize / 4
        };
        // thread 32 w + 4 r + c of row 8 w + r, columns 16 s + 8 h + 2 c + e
        assert_eq!(at([0, 8 + 3, 2 * 2 + 1]), (32 + 4 * 3 + 2) * 16 + 4);
        assert_eq!(at([0, 0, 3 * 16 + 8]), 8 + 2 + 1);
        // the next columns, then the other matrix, then the next rows
        assert_eq!([at([0, 0, 64]), at([1, 0, 0]), at([0, 32, 0])], [2048, 2 * 2048, 4 * 2048]);
        let t = TensorData::f32(&dims, (0..2 * 40 * 96).map(|i| (i * 7 % 16) as f32).collect());
        let bytes = pack(&t, DType::U4, LAYOUT).unwrap();
        assert_eq!(unpack(&bytes, &dims, DType::U4, LAYOUT).unwrap(), t);
    }

    #[test]
    fn misfits_are_errors() {
        let t = TensorData::i32(&[2], vec![1, 2]);
        assert_eq!(
            pack(&t, DType::F32, MemLayout::DENSE).unwrap_err().to_string(),
            "elements of i32 cannot be stored as f32"
        );
        let short = unpack(&[0; 7], &[2], DType::F32, MemLayout::DENSE).unwrap_err();
        assert_eq!(short.to_string(), "a tensor of shape [2] takes 8 bytes, but there are 7");
        assert!(pack(&t, DType::I32, MemLayout::Panel { n: 2, k: 1 }).is_err());
    }
}

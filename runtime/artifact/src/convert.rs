//! Element types, converted and checked: little-endian bytes in, little-endian bytes out, round to nearest even.

use crate::plan::DType;
use half::{f16, slice::HalfFloatSliceExt};

/// Elements converted at a time, through f32 on the stack.
const BLOCK: usize = 512;

/// Whether [`cast`] converts between the two.
pub(crate) fn castable(from: DType, to: DType) -> bool {
    let float = |d| matches!(d, DType::F32 | DType::F16 | DType::Bf16);
    from == to || float(from) && float(to)
}

/// Converts finite elements; `out` is as long as the result. The types are [`castable`].
pub(crate) fn cast(from: DType, to: DType, input: &[u8], out: &mut [u8]) {
    if from == to {
        return out.copy_from_slice(input);
    }
    let (read, written) = (width(from), width(to));
    let mut values = [0f32; BLOCK];
    for (input, out) in input.chunks(BLOCK * read).zip(out.chunks_mut(BLOCK * written)) {
        let values = &mut values[..input.len() / read];
        load(from, input, values);
        store(to, values, out);
    }
}

/// Index of the first NaN or infinity; none in integers.
pub(crate) fn first_not_finite(dtype: DType, bytes: &[u8]) -> Option<usize> {
    let width = width(dtype);
    let block = bytes.chunks(BLOCK * width).position(|block| any_not_finite(dtype, block))?;
    let bad = bytes[block * BLOCK * width..].chunks_exact(width).position(|element| any_not_finite(dtype, element))?;
    Some(block * BLOCK + bad)
}

/// Size of an element in bytes; 4-bit ones count as pairs.
fn width(dtype: DType) -> usize {
    dtype.bits().div_ceil(8) as usize
}

fn any_not_finite(dtype: DType, bytes: &[u8]) -> bool {
    match dtype {
        DType::F32 => any(bytes, |b| u32::from_le_bytes(b) & 0x7f80_0000 == 0x7f80_0000),
        DType::F16 => any(bytes, |b| u16::from_le_bytes(b) & 0x7c00 == 0x7c00),
        DType::Bf16 => any(bytes, |b| u16::from_le_bytes(b) & 0x7f80 == 0x7f80),
        DType::F8e4m3 => any(bytes, |[b]| b & 0x7f == 0x7f),
        DType::F8e5m2 => any(bytes, |[b]| b & 0x7c == 0x7c),
        DType::I8 | DType::U4 | DType::U8 | DType::I32 => false,
    }
}

/// `Iterator::any` without its early exit, which keeps loops scalar.
fn any<const N: usize>(bytes: &[u8], bad: impl Fn([u8; N]) -> bool) -> bool {
    bytes.as_chunks().0.iter().fold(false, |any, element| any | bad(*element))
}

fn load(dtype: DType, bytes: &[u8], values: &mut [f32]) {
    match dtype {
        DType::F16 => load_f16(bytes, values),
        DType::Bf16 => each(bytes, values, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
        _ => each(bytes, values, f32::from_le_bytes),
    }
}

fn each<const N: usize>(bytes: &[u8], values: &mut [f32], f: impl Fn([u8; N]) -> f32) {
    for (value, element) in values.iter_mut().zip(bytes.as_chunks().0) {
        *value = f(*element);
    }
}

/// Whole blocks at a time: the F16C instructions are chosen once a slice.
fn load_f16(bytes: &[u8], values: &mut [f32]) {
    let mut halves = [f16::ZERO; BLOCK];
    for (half, element) in halves.iter_mut().zip(bytes.as_chunks().0) {
        *half = f16::from_le_bytes(*element);
    }
    halves[..values.len()].convert_to_f32_slice(values);
}

/// Rounds values into `out`: f32, f16 or bf16.
pub(crate) fn store_all(dtype: DType, values: &[f32], out: &mut [u8]) {
    for (values, out) in values.chunks(BLOCK).zip(out.chunks_mut(BLOCK * width(dtype))) {
        store(dtype, values, out);
    }
}

fn store(dtype: DType, values: &[f32], out: &mut [u8]) {
    match dtype {
        DType::F16 => store_f16(values, out),
        DType::Bf16 => put(values, out, |v| bf16_bits(v).to_le_bytes()),
        _ => put(values, out, f32::to_le_bytes),
    }
}

fn put<const N: usize>(values: &[f32], out: &mut [u8], f: impl Fn(f32) -> [u8; N]) {
    for (element, value) in out.as_chunks_mut().0.iter_mut().zip(values) {
        *element = f(*value);
    }
}

fn store_f16(values: &[f32], out: &mut [u8]) {
    let mut halves = [f16::ZERO; BLOCK];
    halves[..values.len()].convert_from_f32_slice(values);
    for (element, half) in out.as_chunks_mut().0.iter_mut().zip(halves) {
        *element = half.to_le_bytes();
    }
}

/// Bits of the nearest bfloat16, ties to even, of a finite value.
fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// Smallest normal number of E4M3.
const E4M3_NORMAL: f32 = 1.0 / 64.0;
/// A number whose neighbours are as far apart as E4M3's below its smallest normal one.
const E4M3_STEPS: f32 = (1 << 14) as f32;

/// Bits of the nearest E4M3 element, ties to even, of a finite value; past the largest the largest.
pub(crate) fn e4m3_bits(value: f32) -> u8 {
    let magnitude = value.abs().min(448.0);
    let bits = magnitude.to_bits();
    let normal = ((bits + 0x7ffff + (bits >> 20 & 1)) >> 20).wrapping_sub((127 - 7) << 3);
    let below = (magnitude + E4M3_STEPS).to_bits() - E4M3_STEPS.to_bits();
    let element = if magnitude < E4M3_NORMAL { below } else { normal };
    element as u8 | (value.to_bits() >> 24) as u8 & 0x80
}

/// The number of an E4M3 element.
pub(crate) fn e4m3(bits: u8) -> f32 {
    let (exponent, fraction) = (bits >> 3 & 15, f32::from(bits & 7));
    let magnitude = match (exponent, bits & 7) {
        (15, 7) => f32::NAN,
        (0, _) => fraction / 512.0,
        _ => (8.0 + fraction) * 2f32.powi(i32::from(exponent) - 10),
    };
    if bits & 0x80 == 0 { magnitude } else { -magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn casted(from: DType, to: DType, input: &[u8]) -> Vec<u8> {
        let mut out = vec![0; input.len() / width(from) * width(to)];
        cast(from, to, input, &mut out);
        out
    }

    proptest! {
        #[test]
        fn casts_are_those_of_half(values in prop::collection::vec(-1e5f32..1e5, 1..1500)) {
            let f32s: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let f16s: Vec<u8> = values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
            let bf16s: Vec<u8> = values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
            prop_assert_eq!(&casted(DType::F32, DType::Bf16, &f32s), &bf16s);
            prop_assert_eq!(&casted(DType::F32, DType::F16, &f32s), &f16s);
            let widened: Vec<u8> = bf16s.as_chunks().0.iter().flat_map(|b| half::bf16::from_le_bytes(*b).to_f32().to_le_bytes()).collect();
            prop_assert_eq!(casted(DType::Bf16, DType::F32, &bf16s), widened);
        }
    }

    #[test]
    fn every_half_survives_widening() {
        let finite = |b: &u16| b & 0x7c00 != 0x7c00;
        let halves: Vec<u8> = (0..=u16::MAX).filter(finite).flat_map(u16::to_le_bytes).collect();
        assert_eq!(casted(DType::F32, DType::F16, &casted(DType::F16, DType::F32, &halves)), halves);
    }

    #[test]
    fn e4m3_is_rounded_to_nearest_even_and_saturates() {
        // the numbers of all elements of one sign, ascending
        let number = |bits: u8| match bits >> 3 {
            0 => f32::from(bits) / 512.0,
            exponent => f32::from(8 + (bits & 7)) * 2f32.powi(i32::from(exponent) - 10),
        };
        for bits in 0..0x7e {
            let (low, high) = (number(bits), number(bits + 1));
            let even = bits + (bits & 1);
            assert_eq!([low, (low + high) / 2.0, high].map(e4m3_bits), [bits, even, bits + 1]);
            assert_eq!([e4m3(bits), e4m3(bits | 0x80)], [low, -low]);
            let between = [0.49, 0.51].map(|at| e4m3_bits(-(low + (high - low) * at)));
            assert_eq!(between, [bits | 0x80, (bits + 1) | 0x80]);
        }
        assert_eq!([460.0, 1e30, -1e30, 1e-30].map(e4m3_bits), [0x7e, 0x7e, 0xfe, 0]);
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan());
    }

    #[test]
    fn the_first_not_finite_element_is_found() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = vec![f32::MAX; 2000];
            values[1234] = bad;
            values[1500] = bad;
            let f32s: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            assert_eq!(first_not_finite(DType::F32, &f32s), Some(1234));
            assert_eq!(first_not_finite(DType::F32, &f32s[..1234 * 4]), None);
        }
        let largest = [0x7bff_u16, 0xfbff, 0x7f80].map(u16::to_le_bytes).concat();
        assert_eq!(first_not_finite(DType::F16, &largest), Some(2));
        assert_eq!(first_not_finite(DType::Bf16, &largest), Some(2));
        assert_eq!(first_not_finite(DType::F8e4m3, &[0x7e, 0xff]), Some(1));
        assert_eq!(first_not_finite(DType::F8e5m2, &[0x7b, 0x7c]), Some(1));
        assert_eq!(first_not_finite(DType::I8, &[0xff; 99]), None);
    }
}

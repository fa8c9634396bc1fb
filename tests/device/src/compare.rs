//! Bytes that a kernel wrote against what the interpreter expects.

use crate::bundle::SKIPPED;
use half::{bf16, f16};
use rvllm_artifact::plan::DType;

/// Elements of memory as numbers; integers as the bits of a float, so that they are compared exactly by value.
pub fn numbers(bytes: &[u8], dtype: DType) -> Vec<f32> {
    match dtype {
        DType::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        DType::Bf16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        DType::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        DType::I32 => bytes.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b) as f32).collect(),
        DType::F8e4m3 => bytes.iter().map(|b| e4m3(*b)).collect(),
        DType::I8 => bytes.iter().map(|b| f32::from(b.cast_signed())).collect(),
        DType::F8e5m2 | DType::U4 | DType::U8 => bytes.iter().map(|b| f32::from(*b)).collect(),
    }
}

/// The number of an element of E4M3.
fn e4m3(bits: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f32::from(bits & 7));
    let magnitude = match (exponent, bits & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 512.0,
        _ => (8.0 + mantissa) * 2f32.powi(exponent - 10),
    };
    magnitude.copysign(if bits & 0x80 == 0 { 1.0 } else { -1.0 })
}

/// How much differs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Difference {
    /// Elements compared.
    pub compared: usize,
    /// Elements further off than allowed.
    pub wrong: usize,
    /// First of these: index, found, expected.
    pub first: Option<(usize, f32, f32)>,
    /// Largest difference, relative to 1 + |expected|.
    pub largest: f32,
}

/// Compares as many elements as are expected; one that was not found is wrong, whatever is expected.
pub fn compare(found: &[f32], expected: &[f32], tolerance: f32) -> Difference {
    let mut difference = Difference::default();
    for (i, expected) in expected.iter().enumerate().filter(|(_, e)| e.to_bits() != SKIPPED) {
        let written = found.get(i).copied();
        difference.compared += 1;
        if written.is_some_and(|found| found == *expected || (found.is_nan() && expected.is_nan())) {
            continue;
        }
        let found = written.unwrap_or(f32::NAN);
        let off = (found - expected).abs() / (1.0 + expected.abs());
        difference.largest = if off.is_nan() { f32::INFINITY } else { difference.largest.max(off) };
        // A NaN is further off than anything.
        if !off.le(&tolerance) {
            difference.wrong += 1;
            difference.first = difference.first.or(Some((i, found, *expected)));
        }
    }
    difference
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_skipped_and_nan_is_wrong() {
        let expected = [1.0, f32::from_bits(SKIPPED), 3.0, f32::NAN];
        assert_eq!(compare(&[1.0, 7.0, 3.0, f32::NAN], &expected, 0.0).wrong, 0);
        let wrong = compare(&[1.0, 7.0, f32::NAN, 0.0], &expected, 0.5);
        assert_eq!((wrong.compared, wrong.wrong), (3, 2));
        assert_eq!(compare(&[1.1], &expected, 0.1).wrong, 2);
    }

    #[test]
    fn elements_are_read_as_their_type() {
        assert_eq!(numbers(&[0x80, 0x3f, 0x00, 0xc0], DType::Bf16), [1.0, -2.0]);
        assert_eq!(numbers(&[0x00, 0x3c], DType::F16), [1.0]);
        assert_eq!(numbers(&[0x7e, 0xb8, 0x01, 0x08], DType::F8e4m3), [448.0, -1.0, 1.0 / 512.0, 1.0 / 64.0]);
        assert_eq!(numbers(&[255, 255, 255, 255], DType::I32), [-1.0]);
        assert_eq!(numbers(&[0, 127, 129, 255], DType::I8), [0.0, 127.0, -127.0, -1.0]);
    }
}

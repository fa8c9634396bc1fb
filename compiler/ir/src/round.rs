//! Rounding to the element types that hold fewer bits than f32, for both interpreters.
//!
//! Sources: IEEE 754 (binary16), bfloat16 as truncated binary32, OCP 8-bit floating point (E4M3, E5M2).

use crate::types::DType;

/// A binary floating-point format, to nearest even.
struct Format {
    /// Bits after the binary point.
    mantissa: i32,
    /// Exponent of the smallest normal number.
    min_exponent: i32,
    /// Largest finite number.
    max: f64,
    /// What larger ones become.
    overflow: f64,
}

const F16: Format = Format { mantissa: 10, min_exponent: -14, max: 65504.0, overflow: f64::INFINITY };
/// Finite only: what is too large is not a number.
const F8E4M3: Format = Format { mantissa: 3, min_exponent: -6, max: 448.0, overflow: f64::NAN };
const F8E5M2: Format = Format { mantissa: 2, min_exponent: -14, max: 57344.0, overflow: f64::INFINITY };

impl Format {
    fn round(&self, x: f32) -> f32 {
        if x == 0.0 || x.is_nan() {
            return x;
        }
        let x = f64::from(x);
        let exponent = ((x.to_bits() >> 52) & 0x7ff) as i32 - 1023;
        let quantum = f64::from(exponent.max(self.min_exponent) - self.mantissa).exp2();
        let rounded = (x / quantum).round_ties_even() * quantum;
        let rounded = if rounded.abs() > self.max { self.overflow.copysign(x) } else { rounded };
        rounded as f32
    }
}

/// Exact while the exponent is f32's: only the low half of the significand goes.
fn round_bf16(x: f32) -> f32 {
    if x.is_nan() {
        return x;
    }
    let bits = x.to_bits();
    let half = 0x7fff + ((bits >> 16) & 1);
    f32::from_bits(bits.wrapping_add(half) & 0xffff_0000)
}

impl DType {
    /// Whether elements are floating-point numbers.
    pub fn is_float(self) -> bool {
        match self {
            DType::F32 | DType::F16 | DType::Bf16 | DType::F8e4m3 | DType::F8e5m2 => true,
            DType::I8 | DType::U4 | DType::U8 | DType::I32 => false,
        }
    }

    /// Largest magnitude that quantisation to this type uses: symmetric for signed integers. Infinite where the type needs
    /// no scale.
    pub fn largest(self) -> f32 {
        match self {
            DType::I8 => 127.0,
            DType::U4 => 15.0,
            DType::U8 => 255.0,
            DType::F8e4m3 => F8E4M3.max as f32,
            DType::F8e5m2 => F8E5M2.max as f32,
            DType::F32 | DType::F16 | DType::Bf16 | DType::I32 => f32::INFINITY,
        }
    }

    /// The nearest element to `x`, ties to even; past the largest the largest. NaN becomes the smallest integer, and stays
    /// NaN in a floating-point type.
    pub fn saturate(self, x: f32) -> f32 {
        let integer = |least: f32| if x > least { x.round_ties_even().clamp(least, self.largest()) } else { least };
        match self {
            DType::I8 => integer(-128.0),
            DType::U4 | DType::U8 => integer(0.0),
            DType::F8e4m3 | DType::F8e5m2 => self.round(x.clamp(-self.largest(), self.largest())),
            DType::F32 | DType::F16 | DType::Bf16 | DType::I32 => self.round(x),
        }
    }

    /// `x` as a floating-point element of this type holds it: to nearest even; past the largest finite number
    /// infinite, or NaN where the type has no infinity. Integer types leave it as it is.
    pub fn round(self, x: f32) -> f32 {
        match self {
            DType::Bf16 => round_bf16(x),
            DType::F16 => F16.round(x),
            DType::F8e4m3 => F8E4M3.round(x),
            DType::F8e5m2 => F8E5M2.round(x),
            DType::F32 | DType::I8 | DType::U4 | DType::U8 | DType::I32 => x,
        }
    }
}

/// Bits of the nearest E4M3 element to `x`, ties to even; past the largest the largest.
pub fn e4m3_bits(x: f32) -> u8 {
    if x.is_nan() {
        return 0x7f;
    }
    let rounded = DType::F8e4m3.saturate(x);
    let (sign, x) = (u8::from(x.is_sign_negative()) << 7, f64::from(rounded.abs()));
    // in steps of the smallest number, of which there are eight to the first normal one
    let exponent = x.max(SMALLEST_NORMAL).log2().floor() as i32;
    let steps = (x * f64::from(F8E4M3.mantissa - exponent).exp2()) as u8;
    let normal = ((exponent - F8E4M3.min_exponent) as u8) << F8E4M3.mantissa;
    sign | (normal + steps)
}

/// Smallest normal number of E4M3.
const SMALLEST_NORMAL: f64 = 1.0 / 64.0;

/// The number that these bits of an E4M3 element stand for.
pub fn e4m3_number(bits: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f32::from(bits & 7));
    let magnitude = match (exponent, bits & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * 2f32.powi(F8E4M3.min_exponent - F8E4M3.mantissa),
        _ => (mantissa + 8.0) * 2f32.powi(exponent - 1 + F8E4M3.min_exponent - F8E4M3.mantissa),
    };
    if bits & 0x80 == 0 { magnitude } else { -magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_even() {
        assert_eq!(DType::Bf16.round(1.0 + 1.0 / 256.0), 1.0);
        assert_eq!(DType::Bf16.round(1.0 + 3.0 / 256.0), 1.0 + 4.0 / 256.0);
        assert_eq!(DType::F16.round(2049.0), 2048.0);
        assert_eq!(DType::F16.round(2051.0), 2052.0);
        assert_eq!(DType::F8e4m3.round(17.0), 16.0);
        assert_eq!(DType::F8e5m2.round(4.5), 4.0);
        assert_eq!(DType::F32.round(0.1), 0.1);
    }

    #[test]
    fn extremes() {
        assert_eq!(DType::F16.round(65519.0), 65504.0);
        assert_eq!(DType::F16.round(65520.0), f32::INFINITY);
        assert_eq!(DType::F16.round(-1e30), f32::NEG_INFINITY);
        assert_eq!(DType::F16.round(6e-8), 2f32.powi(-24));
        assert_eq!(DType::F16.round(2e-8), 0.0);
        assert_eq!(DType::Bf16.round(f32::MAX), f32::INFINITY);
        assert_eq!(DType::F8e4m3.round(448.0), 448.0);
        assert!(DType::F8e4m3.round(1000.0).is_nan());
        assert_eq!(DType::F8e5m2.round(1e9), f32::INFINITY);
        assert!(DType::Bf16.round(f32::NAN).is_nan() && DType::F16.round(f32::NAN).is_nan());
        assert_eq!(DType::Bf16.round(f32::INFINITY), f32::INFINITY);
    }

    #[test]
    fn every_e4m3_element_survives_and_others_round_as_numbers_do() {
        for bits in (0..=255u8).filter(|bits| bits & 0x7f != 0x7f) {
            assert_eq!(e4m3_bits(e4m3_number(bits)), bits);
        }
        for i in 0..40_000 {
            let x = (i as f32 - 20_000.0) * 0.0237;
            assert_eq!(e4m3_number(e4m3_bits(x)), DType::F8e4m3.saturate(x), "{x}");
        }
        assert!(e4m3_number(e4m3_bits(f32::NAN)).is_nan() && e4m3_number(0xff).is_nan());
        assert_eq!([448.0, 2f32.powi(-9), 2f32.powi(-6), -1.0].map(e4m3_bits), [0x7e, 0x01, 0x08, 0xb8]);
    }

    #[test]
    fn saturation_ends_at_the_largest() {
        let integers = [0.5, 1.5, -2.5, 126.6, 1e9, -1e9, f32::NAN].map(|x| DType::I8.saturate(x));
        assert_eq!(integers, [0.0, 2.0, -2.0, 127.0, 127.0, -128.0, -128.0]);
        assert_eq!([-1.0, 7.4, 99.0].map(|x| DType::U4.saturate(x)), [0.0, 7.0, 15.0]);
        assert_eq!([449.0, -1e30, 17.0].map(|x| DType::F8e4m3.saturate(x)), [448.0, -448.0, 16.0]);
        assert!(DType::F8e4m3.saturate(f32::NAN).is_nan());
    }
}

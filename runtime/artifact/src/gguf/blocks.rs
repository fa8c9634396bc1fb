//! Blocks of quantised numbers, as ggml lays them out, and the f32 numbers that they stand for.
//! Source of the layouts: <https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h>.
//!
//! Invariants: products are formed in f32 in the order in which ggml's reference forms them, so the numbers are its bits.

use crate::plan::DType;
use half::f16;
use std::{fmt, ops::Range};

/// How a tensor's numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "ggml's names")]
pub enum Encoding {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

/// Every encoding, with ggml's number and name, numbers of a block, bytes of a block.
const ALL: [(Encoding, u32, &str, u64, u64); 11] = [
    (Encoding::F32, 0, "F32", 1, 4),
    (Encoding::F16, 1, "F16", 1, 2),
    (Encoding::Q4_0, 2, "Q4_0", 32, 18),
    (Encoding::Q4_1, 3, "Q4_1", 32, 20),
    (Encoding::Q5_0, 6, "Q5_0", 32, 22),
    (Encoding::Q5_1, 7, "Q5_1", 32, 24),
    (Encoding::Q8_0, 8, "Q8_0", 32, 34),
    (Encoding::Q4K, 12, "Q4_K", 256, 144),
    (Encoding::Q5K, 13, "Q5_K", 256, 176),
    (Encoding::Q6K, 14, "Q6_K", 256, 210),
    (Encoding::Bf16, 30, "BF16", 1, 2),
];

/// Numbers of ggml's encodings that are not read, for messages.
const OTHERS: [(u32, &str); 20] = [
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
];

/// ggml's name of a number.
pub fn name_of(number: u32) -> String {
    let other = OTHERS.iter().find(|o| o.0 == number).map(|o| o.1);
    let known = ALL.iter().find(|e| e.1 == number).map(|e| e.2);
    known.or(other).map_or_else(|| format!("ggml type {number}"), str::to_string)
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().2)
    }
}

impl Encoding {
    /// The encoding of ggml's number.
    pub fn of(number: u32) -> Option<Encoding> {
        ALL.iter().find(|e| e.1 == number).map(|e| e.0)
    }

    fn row(self) -> &'static (Encoding, u32, &'static str, u64, u64) {
        // Every variant has its row: a test counts them.
        ALL.iter().find(|e| e.0 == self).unwrap_or(&ALL[0])
    }

    /// Numbers of a block.
    pub fn block(self) -> u64 {
        self.row().3
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> u64 {
        self.row().4
    }

    /// The type in which its numbers are given out.
    pub fn dtype(self) -> DType {
        match self {
            Encoding::F16 => DType::F16,
            Encoding::Bf16 => DType::Bf16,
            _ => DType::F32,
        }
    }

    /// Whether the bytes are numbers as they are.
    pub fn is_plain(self) -> bool {
        self.block() == 1
    }

    /// Bytes of a tensor; `None` where its rows are not whole blocks, or on overflow.
    pub fn bytes(self, shape: &[u64]) -> Option<u64> {
        let columns = *shape.last().unwrap_or(&1);
        let elements = shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d))?;
        // Offsets of numbers as f32 must be numbers, too.
        elements.checked_mul(4)?;
        columns.is_multiple_of(self.block()).then(|| (elements / self.block()).checked_mul(self.block_bytes()))?
    }

    /// Bytes `range` of the numbers as they are given out; `None` where the tensor ends before.
    pub fn decode(self, stored: &[u8], range: Range<u64>) -> Option<Vec<u8>> {
        if self.is_plain() {
            return stored.get(range.start as usize..range.end as usize).map(<[u8]>::to_vec);
        }
        let (first, end) = (range.start / 4 / self.block(), range.end.div_ceil(4).div_ceil(self.block()));
        let blocks = stored.get((first * self.block_bytes()) as usize..(end * self.block_bytes()) as usize)?;
        let mut numbers = vec![0f32; ((end - first) * self.block()) as usize];
        let pairs =
            blocks.chunks_exact(self.block_bytes() as usize).zip(numbers.chunks_exact_mut(self.block() as usize));
        pairs.for_each(|(block, out)| self.decode_block(block, out));
        let skipped = (range.start - first * self.block() * 4) as usize;
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        bytes.get(skipped..skipped + (range.end - range.start) as usize).map(<[u8]>::to_vec)
    }

    fn decode_block(self, block: &[u8], out: &mut [f32]) {
        let (apart, middle) = (self.take_apart(block), f32::from(self.middle()));
        for (i, numbers) in out.chunks_mut(self.run()).enumerate() {
            let Run { scale, offset } = apart.runs[i];
            let values = &apart.values[i * self.run()..];
            numbers.iter_mut().zip(values).for_each(|(x, q)| *x = (f32::from(*q) - middle) * scale + offset);
        }
    }

    /// Numbers of a run: those that share a scale.
    pub(super) fn run(self) -> usize {
        if self == Encoding::Q6K { 16 } else { 32 }
    }

    /// The value that stands for a run's offset.
    pub(super) fn middle(self) -> u8 {
        match self {
            Encoding::Q4_0 => 8,
            Encoding::Q5_0 => 16,
            Encoding::Q6K => 32,
            Encoding::Q8_0 => 128,
            _ => 0,
        }
    }

    /// The values of a block of quantised numbers and what its runs are made with.
    pub(super) fn take_apart(self, block: &[u8]) -> Apart {
        let mut apart = Apart { values: [0; 256], runs: [Run { scale: 0.0, offset: NOTHING }; 16] };
        let Apart { values, runs } = &mut apart;
        match self {
            Encoding::F32 | Encoding::F16 | Encoding::Bf16 => {}
            Encoding::Q4_0 => nibbles(&block[2..], values),
            Encoding::Q4_1 => nibbles(&block[4..], values),
            Encoding::Q5_0 => fifths(&block[2..], values),
            Encoding::Q5_1 => fifths(&block[4..], values),
            Encoding::Q8_0 => values.iter_mut().zip(&block[2..]).for_each(|(x, q)| *x = q ^ 0x80),
            Encoding::Q4K => super_block(&block[16..], None, values),
            Encoding::Q5K => super_block(&block[48..], Some(&block[16..48]), values),
            Encoding::Q6K => sixths(block, values),
        }
        match self {
            Encoding::Q4K | Encoding::Q5K => scales_and_mins(block, runs),
            Encoding::Q6K => sixteen_scales(block, runs),
            Encoding::Q4_1 | Encoding::Q5_1 => runs[0] = Run { scale: half(block, 0), offset: half(block, 2) },
            _ => runs[0].scale = half(block, 0),
        }
        apart
    }
}

/// What changes no number, and no sign of zero, when it is added.
const NOTHING: f32 = -0.0;

/// A block taken apart: its numbers are `(value - middle) * scale + offset`.
pub(super) struct Apart {
    /// As many as the block has numbers.
    pub(super) values: [u8; 256],
    /// As many as the block has runs.
    pub(super) runs: [Run; 16],
}

/// What the numbers of a run are made with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) scale: f32,
    pub(super) offset: f32,
}

fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// 32 values of 4 bits: low nibbles, then high ones.
fn nibbles(quants: &[u8], out: &mut [u8]) {
    for (i, q) in quants[..16].iter().enumerate() {
        (out[i], out[i + 16]) = (q & 15, q >> 4);
    }
}

/// 32 values of 5 bits: 32 fifth bits, then low nibbles and high ones.
fn fifths(bytes: &[u8], out: &mut [u8]) {
    let high = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    nibbles(&bytes[4..], out);
    out[..32].iter_mut().enumerate().for_each(|(i, q)| *q |= (((high >> i) & 1) as u8) << 4);
}

/// 256 values of 4 bits, or of 5 where their fifth bits are given.
fn super_block(quants: &[u8], fifths: Option<&[u8]>, out: &mut [u8]) {
    for (j, run) in out.chunks_exact_mut(32).enumerate() {
        for (l, q) in run.iter_mut().enumerate() {
            let byte = quants[j / 2 * 32 + l];
            let low = if j % 2 == 0 { byte & 15 } else { byte >> 4 };
            *q = low | fifths.map_or(0, |bits| ((bits[l] >> j) & 1) << 4);
        }
    }
}

/// Eight scales and minima of 6 bits, times a scale of each kind.
fn scales_and_mins(block: &[u8], runs: &mut [Run]) {
    let (d, least, packed) = (half(block, 0), half(block, 2), &block[4..16]);
    for (j, run) in runs[..8].iter_mut().enumerate() {
        let (scale, min) = match j {
            0..4 => (packed[j] & 63, packed[j + 4] & 63),
            _ => ((packed[j + 4] & 15) | ((packed[j - 4] >> 6) << 4), (packed[j + 4] >> 4) | ((packed[j] >> 6) << 4)),
        };
        *run = Run { scale: d * f32::from(scale), offset: -(least * f32::from(min)) };
    }
}

/// 256 values of 6 bits: low nibbles, then high bits.
fn sixths(block: &[u8], out: &mut [u8]) {
    for (half, run) in out.chunks_exact_mut(128).enumerate() {
        let (low, high) = (&block[half * 64..], &block[128 + half * 32..]);
        for (i, q) in run.iter_mut().enumerate() {
            let (quarter, l) = (i / 32, i % 32);
            let byte = low[l + quarter % 2 * 32];
            let nibble = if quarter < 2 { byte & 15 } else { byte >> 4 };
            *q = nibble | (((high[l] >> (2 * quarter)) & 3) << 4);
        }
    }
}

/// Sixteen signed scales, times their scale.
fn sixteen_scales(block: &[u8], runs: &mut [Run]) {
    let d = half(block, 208);
    runs.iter_mut().zip(&block[192..208]).for_each(|(run, scale)| run.scale = d * f32::from(*scale as i8));
}

//! Small integers packed into 32-bit words: a matrix of 4- or 8-bit fields, several adjacent ones of a column or of a row to
//! a word.

/// Which fields of a matrix share a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Along {
    /// Adjacent ones of a column.
    Rows,
    /// Adjacent ones of a row.
    Columns,
}

/// Places, in a word, of eight adjacent 4-bit fields.
const IN_ORDER: [u8; 8] = [0, 1, 2, 3, 4, 5, 6, 7];
/// As AWQ's kernels want them: place `i` holds field `[0, 2, 4, 6, 1, 3, 5, 7][i]`.
const INTERLEAVED: [u8; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// How fields are packed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packing {
    /// Bits of a field: 4 or 8.
    pub(super) bits: u32,
    pub(super) along: Along,
    /// Places of fields in a word.
    order: &'static [u8; 8],
}

impl Packing {
    pub(super) fn new(bits: u32, along: Along) -> Packing {
        Packing { bits, along, order: &IN_ORDER }
    }

    /// AWQ's, of 4 bits.
    pub(super) fn interleaved() -> Packing {
        Packing { bits: 4, along: Along::Columns, order: &INTERLEAVED }
    }

    /// Fields of a word.
    pub(super) fn each(self) -> u64 {
        u64::from(32 / self.bits)
    }

    /// Words of a matrix: rows, and columns.
    pub(super) fn words(self, [rows, columns]: [u64; 2]) -> [u64; 2] {
        match self.along {
            Along::Rows => [rows.div_ceil(self.each()), columns],
            Along::Columns => [rows, columns.div_ceil(self.each())],
        }
    }

    /// The field at a row and a column, of little-endian words, `width` to a row; 0 past the bytes.
    pub(super) fn field(self, bytes: &[u8], width: usize, row: usize, column: usize) -> u8 {
        let each = self.each() as usize;
        let (word, place) = match self.along {
            Along::Rows => (row / each * width + column, row % each),
            Along::Columns => (row * width + column / each, column % each),
        };
        let word = bytes.as_chunks::<4>().0.get(word).map_or(0, |word| u32::from_le_bytes(*word));
        let shift = u32::from(self.order[place]) * self.bits;
        (word >> shift & ((1 << self.bits) - 1)) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_each_layout_puts_them() {
        let bytes: Vec<u8> = [0x7654_3210u32, 0xfedc_ba98].iter().flat_map(|w| w.to_le_bytes()).collect();
        let row = |packing: Packing| (0..8).map(|i| packing.field(&bytes, 2, 0, i)).collect::<Vec<u8>>();
        assert_eq!(row(Packing::new(4, Along::Columns)), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(row(Packing::interleaved()), [0, 4, 1, 5, 2, 6, 3, 7]);
        let columns = Packing::new(4, Along::Rows);
        assert_eq!([columns.field(&bytes, 2, 3, 0), columns.field(&bytes, 2, 3, 1)], [3, 11]);
        assert_eq!(Packing::new(8, Along::Rows).field(&bytes, 2, 1, 1), 0xba);
        assert_eq!(columns.field(&bytes, 2, 8, 0), 0, "past the bytes");
        assert_eq!(columns.words([20, 6]), [3, 6]);
    }
}

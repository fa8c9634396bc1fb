//! Fragments: pieces of a matrix of 4-bit values, in the order in which a warpgroup's threads hold them as a matrix
//! instruction's operand.

/// Rows of a piece.
pub(crate) const ROWS: usize = 32;
/// Columns of a piece.
pub(crate) const COLUMNS: usize = 64;
/// Bytes of a piece.
const BYTES: usize = ROWS * COLUMNS / 2;

/// Deals the half bytes of a piece, whose rows lie one after the other, low half bytes first: of row `8 w + r` the columns
/// `16 s + 8 h + 2 c + e` go to the 16 half bytes of thread `32 w + 4 r + c`, there to number `8 (s / 2) + 4 e + 2 (s % 2) + h`.
pub(crate) fn deal(piece: &mut [u8]) {
    let mut dealt = [0u8; BYTES];
    for (row, from) in piece.chunks_exact(COLUMNS / 2).enumerate() {
        for (pair, byte) in from.iter().enumerate() {
            let (slice, half, c) = (pair / 8, pair / 4 % 2, pair % 4);
            let number = slice / 2 * 8 + 2 * (slice % 2) + half;
            let thread = &mut dealt[(4 * row + c) * 8..][..8];
            for (place, value) in [(number, byte & 15), (number + 4, byte >> 4)] {
                thread[place / 2] |= value << (4 * (place % 2));
            }
        }
    }
    piece.copy_from_slice(&dealt);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_goes_to_its_thread() {
        let value = |row: usize, column: usize| (row * 5 + column * 3 + row * column) as u8 & 15;
        let mut piece: Vec<u8> = (0..BYTES)
            .map(|i| (i / (COLUMNS / 2), i % (COLUMNS / 2) * 2))
            .map(|(row, column)| value(row, column) | value(row, column + 1) << 4)
            .collect();
        deal(&mut piece);
        for (row, column) in (0..ROWS).flat_map(|r| (0..COLUMNS).map(move |c| (r, c))) {
            let (s, h, c, e) = (column / 16, column / 8 % 2, column / 2 % 4, column % 2);
            let thread = 4 * row + c;
            // the same, wherever the word's halves are
            let word = u32::from_le_bytes(piece[thread * 8 + s / 2 * 4..][..4].try_into().unwrap());
            let found = word >> (16 * e + 4 * (2 * (s % 2) + h)) & 15;
            assert_eq!(found, u32::from(value(row, column)), "row {row} column {column}");
        }
    }
}

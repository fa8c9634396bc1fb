//! Blocks: rows of a matrix into the swizzled blocks that a copy engine leaves in shared memory as they are,
//! `[ceil(K/k)][64][k]` for one row of blocks.

/// Rows of a block.
pub(crate) const ROWS: usize = 64;
/// Adjacent rows of one matrix, and pieces of a row that are permuted among themselves.
pub(crate) const GROUP: usize = 8;

/// Places dense rows of `row_bytes` bytes, at most [`GROUP`] of them, as group number `group` of a row of blocks whose
/// rows have `line` bytes. What they do not cover stays as it is.
pub(crate) fn place(dense: &[u8], row_bytes: usize, group: usize, line: usize, blocks: &mut [u8]) {
    let piece = line / GROUP;
    for (r, row) in dense.chunks_exact(row_bytes).enumerate() {
        for (block, columns) in blocks.chunks_exact_mut(ROWS * line).zip(row.chunks(line)) {
            let to = &mut block[(group * GROUP + r) * line..][..line];
            for (p, from) in columns.chunks(piece).enumerate() {
                to[(p ^ r) * piece..][..from.len()].copy_from_slice(from);
            }
        }
    }
}

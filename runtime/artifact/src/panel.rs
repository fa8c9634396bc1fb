//! Packing: rows of a matrix into the panel that kernels read, `[ceil(K/k)][n][k]`, zero padded.

/// Groups copied at a time from one row, so that both sides stay in the first-level cache.
const BLOCK: usize = 16;

/// Packs dense rows of `row_bytes` bytes, at most `n` of them, into one panel; a unit is `k` elements.
pub(crate) fn pack(dense: &[u8], row_bytes: usize, n: usize, unit: usize, panel: &mut [u8]) {
    if row_bytes == 0 {
        return;
    }
    let whole = row_bytes / unit;
    if dense.len() < n * row_bytes || whole * unit < row_bytes {
        panel.fill(0);
    }
    match unit {
        1 => transpose::<1>(dense, row_bytes, n, panel),
        2 => transpose::<2>(dense, row_bytes, n, panel),
        4 => transpose::<4>(dense, row_bytes, n, panel),
        8 => transpose::<8>(dense, row_bytes, n, panel),
        _ => copy_units(dense, row_bytes, n, unit, panel),
    }
    let tail = whole * unit..row_bytes;
    if tail.is_empty() {
        return;
    }
    for (r, row) in dense.chunks_exact(row_bytes).enumerate() {
        let tail = &row[tail.clone()];
        panel[(whole * n + r) * unit..][..tail.len()].copy_from_slice(tail);
    }
}

/// Deals the nibbles of each run of `unit` bytes anew: of its numbers, which lie low nibble first, the first half goes
/// to the low nibbles and the second half to the high ones.
pub(crate) fn deal(dense: &mut [u8], unit: usize) {
    let mut numbers = vec![0; 2 * unit];
    for run in dense.chunks_exact_mut(unit) {
        for (pair, byte) in numbers.as_chunks_mut().0.iter_mut().zip(&*run) {
            *pair = [byte & 15, byte >> 4];
        }
        let (low, high) = numbers.split_at(unit);
        run.iter_mut().zip(low.iter().zip(high)).for_each(|(byte, (low, high))| *byte = low | high << 4);
    }
}

fn transpose<const UNIT: usize>(dense: &[u8], row_bytes: usize, n: usize, panel: &mut [u8]) {
    let (units, groups) = (panel.as_chunks_mut::<UNIT>().0, row_bytes / UNIT);
    for first in (0..groups).step_by(BLOCK) {
        let block = first * UNIT..groups.min(first + BLOCK) * UNIT;
        for (r, row) in dense.chunks_exact(row_bytes).enumerate() {
            let columns = units[first * n + r..].iter_mut().step_by(n);
            for (to, from) in columns.zip(row[block.clone()].as_chunks::<UNIT>().0) {
                *to = *from;
            }
        }
    }
}

fn copy_units(dense: &[u8], row_bytes: usize, n: usize, unit: usize, panel: &mut [u8]) {
    for (r, row) in dense.chunks_exact(row_bytes).enumerate() {
        for (g, from) in row.chunks_exact(unit).enumerate() {
            panel[(g * n + r) * unit..][..unit].copy_from_slice(from);
        }
    }
}

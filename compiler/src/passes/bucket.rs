//! For which numbers of rows a matrix product has a kernel of its own.
//!
//! Buckets are over the rows of one step (tokens, or rows of logits) and nothing else: paged attention takes
//! sequence lengths and the number of sequences as data, so that no shape is ever missing at run time.
//!
//! Invariants: bounds rise, the last bucket has none, and no two neighbours have the same numbers.

use rvllm_ir::DType;
use rvllm_targets::{GemmRow, Target};

/// A schedule row, for at most this many rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bucket<'t> {
    /// Largest number of rows; any number where absent.
    pub at_most: Option<usize>,
    /// The numbers.
    pub row: &'t GemmRow,
}

/// The buckets of products with weights of `dtype` and `n` columns over `k` whose steps have at most `max_rows` rows; empty where the target's table has
/// no numbers for `dtype`.
pub fn bucket(target: &Target, dtype: DType, gated: bool, [n, k]: [usize; 2], max_rows: usize) -> Vec<Bucket<'_>> {
    let mut buckets: Vec<Bucket<'_>> = vec![];
    for row in target.gemm_rows(dtype.name(), gated, n, k) {
        let at_most = row.at_most.filter(|n| *n < max_rows);
        match buckets.last_mut() {
            Some(last) if same_numbers(last.row, row) => last.at_most = at_most,
            _ => buckets.push(Bucket { at_most, row }),
        }
        if at_most.is_none() {
            break;
        }
    }
    buckets
}

fn same_numbers(a: &GemmRow, b: &GemmRow) -> bool {
    (a.block_m, a.block_n, a.block_k, a.stages) == (b.block_m, b.block_n, b.block_k, b.stages)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(max_rows: usize) -> Vec<Option<usize>> {
        let target = rvllm_targets::find("x86-64-v4", &|_| false).unwrap();
        bucket(&target, DType::F32, false, [64, 64], max_rows).iter().map(|b| b.at_most).collect()
    }

    #[test]
    fn the_last_bucket_takes_every_larger_step() {
        assert_eq!(bounds(2048).last(), Some(&None));
        assert!(bounds(2048).len() > 1);
    }

    #[test]
    fn rows_beyond_the_largest_step_are_left_out() {
        assert_eq!(bounds(1), [None]);
        assert!(bounds(2).len() <= 2);
    }

    #[test]
    fn a_table_without_the_element_type_gives_no_bucket() {
        let target = rvllm_targets::find("x86-64-v4", &|_| false).unwrap();
        assert_eq!(bucket(&target, DType::F8e5m2, false, [64, 64], 8), []);
    }
}

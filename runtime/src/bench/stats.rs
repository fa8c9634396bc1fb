//! Mean, deviation and percentiles, as numpy computes them: vLLM's results are made with it.

/// Numbers that describe a sample. All zero where it is empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// Arithmetic mean.
    pub mean: f64,
    /// 50th percentile.
    pub median: f64,
    /// Population standard deviation.
    pub std: f64,
    /// `(p, value)` for each percentile asked for.
    pub percentiles: Vec<(f64, f64)>,
}

impl Summary {
    /// Of a sample, with these percentiles in 0..=100.
    pub fn of(sample: &[f64], percentiles: &[f64]) -> Summary {
        let mut sorted = sample.to_vec();
        sorted.sort_by(f64::total_cmp);
        let mean = mean(sample);
        let squares: Vec<f64> = sample.iter().map(|x| (x - mean).powi(2)).collect();
        Summary {
            mean,
            median: percentile(&sorted, 50.0),
            std: self::mean(&squares).sqrt(),
            percentiles: percentiles.iter().map(|p| (*p, percentile(&sorted, *p))).collect(),
        }
    }
}

/// Arithmetic mean; 0 of nothing.
pub fn mean(sample: &[f64]) -> f64 {
    if sample.is_empty() { 0.0 } else { sample.iter().sum::<f64>() / sample.len() as f64 }
}

/// The `p`-th percentile (0..=100) of a sorted sample, linear between neighbours; 0 of nothing.
pub fn percentile(sorted: &[f64], p: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let rank = p.clamp(0.0, 100.0) / 100.0 * last as f64;
    let (low, high) = (rank.floor() as usize, rank.ceil() as usize);
    sorted[low] + (sorted[high] - sorted[low]) * (rank - low as f64)
}

/// A percentile in a name: `99`, `99.9`.
pub fn percentile_name(p: f64) -> String {
    format!("p{p}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_numpys() {
        // numpy 2: mean, std, percentile([50, 90, 99]) of [4, 1, 3, 2, 10].
        let s = Summary::of(&[4.0, 1.0, 3.0, 2.0, 10.0], &[90.0, 99.0]);
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} {b}");
        near(s.mean, 4.0);
        near(s.median, 3.0);
        near(s.std, 10f64.sqrt());
        near(s.percentiles[0].1, 7.6);
        near(s.percentiles[1].1, 9.76);
    }

    #[test]
    fn nothing_has_zeros() {
        assert_eq!(Summary::of(&[], &[99.0]), Summary { percentiles: vec![(99.0, 0.0)], ..Summary::default() });
    }

    #[test]
    fn names_are_short() {
        assert_eq!(["p99", "p99.9"], [99.0, 99.9].map(percentile_name)[..]);
    }
}

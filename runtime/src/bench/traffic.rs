//! When requests leave: constant, Poisson or bursty arrivals, and ramps, as vLLM's load generator makes them.

use rand::{SeedableRng, rngs::StdRng};
use rand_distr::{Distribution, Gamma};
use std::time::Duration;

/// Seconds that no run lasts.
const FOREVER: f64 = 1e9;

/// How the rate changes over the run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rate {
    /// All at once.
    Unlimited,
    /// This many requests a second.
    Constant(f64),
    /// From the first rate to the second, by the same amount each request.
    Linear(f64, f64),
    /// From the first rate to the second, by the same factor each request.
    Exponential(f64, f64),
}

impl Rate {
    /// Requests a second when the `i`-th of `n` leaves.
    fn at(self, i: usize, n: usize) -> f64 {
        let progress = i as f64 / n.saturating_sub(1).max(1) as f64;
        match self {
            Rate::Unlimited => f64::INFINITY,
            Rate::Constant(rate) => rate,
            Rate::Linear(start, end) => start + (end - start) * progress,
            Rate::Exponential(start, end) => start * (end / start).powf(progress),
        }
    }
}

/// When each of `n` requests leaves, counted from the start of the run.
///
/// Intervals are drawn from a gamma distribution of shape `burstiness` whose mean is one over the rate: 1 is a Poisson
/// process, less is burstier, more is steadier. At a constant rate they are scaled so that the last request leaves when
/// the rate says.
pub fn departures(n: usize, rate: Rate, burstiness: f64, seed: u64) -> Vec<Duration> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut interval = |i: usize| {
        let rate = rate.at(i, n);
        // A shape and a scale that are not positive are refused before; an endless rate has no interval.
        Gamma::new(burstiness, 1.0 / (rate * burstiness)).map_or(0.0, |gamma| gamma.sample(&mut random))
    };
    let mut at = 0.0;
    let times: Vec<f64> = (0..n)
        .map(|i| {
            at += if rate == Rate::Unlimited { 0.0 } else { interval(i) };
            at
        })
        .collect();
    let scale = match (rate, times.last()) {
        (Rate::Constant(rate), Some(last)) if *last > 0.0 => n as f64 / rate / last,
        _ => 1.0,
    };
    times.into_iter().map(|t| Duration::from_secs_f64((t * scale).clamp(0.0, FOREVER))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gaps(times: &[Duration]) -> Vec<f64> {
        times.windows(2).map(|w| (w[1] - w[0]).as_secs_f64()).collect()
    }

    #[test]
    fn unlimited_requests_leave_at_once() {
        assert_eq!(departures(3, Rate::Unlimited, 1.0, 0), [Duration::ZERO; 3]);
    }

    #[test]
    fn a_constant_rate_is_met_exactly_and_repeatably() {
        let times = departures(500, Rate::Constant(50.0), 1.0, 7);
        assert!((times[499].as_secs_f64() - 10.0).abs() < 1e-6);
        assert_eq!(times, departures(500, Rate::Constant(50.0), 1.0, 7));
        assert_ne!(times, departures(500, Rate::Constant(50.0), 1.0, 8));
    }

    #[test]
    fn burstiness_is_the_shape_of_the_gaps() {
        // The squared coefficient of variation of a gamma distribution is one over its shape.
        for shape in [0.25, 1.0, 16.0] {
            let gaps = gaps(&departures(20_000, Rate::Constant(10.0), shape, 1));
            let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
            let variance = gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
            let ratio = variance / mean.powi(2) * shape;
            assert!((0.85..1.15).contains(&ratio), "{shape}: {ratio}");
        }
    }

    #[test]
    fn ramps_run_from_one_rate_to_the_other() {
        for rate in [Rate::Linear(1.0, 100.0), Rate::Exponential(1.0, 100.0)] {
            let gaps = gaps(&departures(2000, rate, 1e6, 0));
            assert!((gaps[0] - 1.0).abs() < 0.1 && (gaps[1998] - 0.01).abs() < 0.001, "{rate:?}");
        }
        assert!((Rate::Linear(1.0, 3.0).at(1, 3) - 2.0).abs() < 1e-9);
        assert!((Rate::Exponential(1.0, 4.0).at(1, 3) - 2.0).abs() < 1e-9);
    }
}

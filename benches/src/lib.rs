//! What benches divide by: this machine's read bandwidth and arithmetic rates, measured in the same run.
//!
//! Invariants: a figure is a median of several runs; threads are as many as the bench under test uses.

pub mod ceiling;
pub mod http;
pub mod llama;
pub mod server;

/// Median of a few figures.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

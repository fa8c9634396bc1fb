//! Ceilings of this CPU: bytes per second from memory, floating-point operations per second from registers.

use crate::median;
use std::{hint::black_box, thread, time::Instant};

const RUNS: usize = 7;
/// Far more than any cache holds, split over the threads.
const BYTES: usize = 1 << 30;

/// GB/s that `threads` threads read from memory in one pass each over its own part of 1 GiB.
pub fn read_bandwidth(threads: usize) -> f64 {
    let memory = vec![1u64; BYTES / 8];
    let pass = || {
        let start = Instant::now();
        thread::scope(|s| {
            for part in memory.chunks(memory.len().div_ceil(threads)) {
                s.spawn(move || black_box(sum(part)));
            }
        });
        BYTES as f64 / start.elapsed().as_secs_f64() / 1e9
    };
    median((0..RUNS).map(|_| pass()).collect())
}

/// Independent sums, so that loads and not additions are what takes time.
fn sum(part: &[u64]) -> u64 {
    let mut sums = [0u64; 32];
    for line in part.chunks_exact(32) {
        for (s, x) in sums.iter_mut().zip(line) {
            *s = s.wrapping_add(*x);
        }
    }
    sums.iter().fold(0, |a, b| a.wrapping_add(*b))
}

/// GFLOP/s of bf16 dot products (`vdpbf16ps`) on `threads` threads; `None` where the CPU has none.
#[cfg(target_arch = "x86_64")]
pub fn dot_bf16(threads: usize) -> Option<f64> {
    let has = std::is_x86_feature_detected!("avx512bf16") && std::is_x86_feature_detected!("avx512f");
    has.then(|| median((0..RUNS).map(|_| on_all(threads, x86::dots)).collect()))
}

/// GFLOP/s of bf16 dot products on `threads` threads; `None` where the CPU has none.
#[cfg(not(target_arch = "x86_64"))]
pub fn dot_bf16(_threads: usize) -> Option<f64> {
    None
}

/// Billions of operations per second of 8-bit dot products (`vpdpbusd`) on `threads` threads; `None` where the CPU has none.
#[cfg(target_arch = "x86_64")]
pub fn dot_i8(threads: usize) -> Option<f64> {
    let has = std::is_x86_feature_detected!("avx512vnni") && std::is_x86_feature_detected!("avx512f");
    has.then(|| median((0..RUNS).map(|_| on_all(threads, x86::integer_dots)).collect()))
}

/// Billions of operations per second of 8-bit dot products on `threads` threads; `None` where the CPU has none.
#[cfg(not(target_arch = "x86_64"))]
pub fn dot_i8(_threads: usize) -> Option<f64> {
    None
}

/// GFLOP/s of `work`, which returns how many operations it did, on each of `threads` threads.
#[cfg(target_arch = "x86_64")]
fn on_all(threads: usize, work: fn() -> f64) -> f64 {
    let start = Instant::now();
    let done: f64 = thread::scope(|s| {
        let all: Vec<_> = (0..threads).map(|_| s.spawn(work)).collect();
        all.into_iter().filter_map(|t| t.join().ok()).sum()
    });
    done / start.elapsed().as_secs_f64() / 1e9
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! Loops that keep the multipliers busy.

    use std::{arch::x86_64::*, hint::black_box};

    const STEPS: usize = 4_000_000;
    const CHAINS: usize = 16;

    /// Runs independent chains of `vdpbf16ps`; returns floating-point operations done.
    pub(super) fn dots() -> f64 {
        // SAFETY: the caller found avx512f and avx512bf16.
        unsafe { chains() };
        (STEPS * CHAINS * 64) as f64
    }

    /// Runs independent chains of `vpdpbusd`; returns operations done.
    pub(super) fn integer_dots() -> f64 {
        // SAFETY: the caller found avx512f and avx512vnni.
        unsafe { integer_chains() };
        (STEPS * CHAINS * 128) as f64
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    fn integer_chains() {
        let (a, b) = (black_box(_mm512_set1_epi8(3)), black_box(_mm512_set1_epi8(5)));
        let mut sums = [_mm512_setzero_si512(); CHAINS];
        for _ in 0..STEPS {
            for s in &mut sums {
                *s = _mm512_dpbusd_epi32(*s, a, b);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn chains() {
        let x = black_box(_mm512_set1_ps(1.0));
        let (a, b) = (_mm512_cvtne2ps_pbh(x, x), _mm512_cvtne2ps_pbh(black_box(x), x));
        let mut sums = [_mm512_setzero_ps(); CHAINS];
        for _ in 0..STEPS {
            for s in &mut sums {
                *s = _mm512_dpbf16_ps(*s, a, b);
            }
        }
        black_box(sums);
    }
}

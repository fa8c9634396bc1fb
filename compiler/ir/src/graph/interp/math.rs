//! Arithmetic on slices: f32 in, f32 out, unrounded; sums in f64.

/// Independent sums of a dot product, enough to keep a core's adders busy.
const LANES: usize = 8;

/// Σ a·b.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; LANES];
    let (heads, tails) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f64 = heads.remainder().iter().zip(tails.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in heads.zip(tails) {
        for i in 0..LANES {
            sums[i] += x[i] * y[i];
        }
    }
    sums.iter().sum::<f64>() + rest
}

/// Which of the weights, put one after the other, lies at this fraction of them all; the last that weighs anything, where
/// rounding leaves none.
pub(super) fn place(weights: &[f64], fraction: f32) -> usize {
    let target = f64::from(fraction) * weights.iter().sum::<f64>();
    let mut sum = 0.0;
    let reached = |w: &f64| {
        sum += w;
        sum > target
    };
    weights.iter().position(reached).or(weights.iter().rposition(|w| *w > 0.0)).unwrap_or(0)
}

pub(super) fn widen(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

/// `x [M, K] · w [N, K]ᵀ = [M, N]`.
pub(super) fn matmul(x: &[f32], w: &[f32], k: usize) -> Vec<f32> {
    let (x, n) = (widen(x), w.len().checked_div(k).unwrap_or(0));
    let m = x.len().checked_div(k).unwrap_or(0);
    let mut y = vec![0.0; m * n];
    for (j, row) in w.chunks_exact(k.max(1)).enumerate() {
        let row = widen(row);
        for (i, x) in x.chunks_exact(k.max(1)).enumerate() {
            y[i * n + j] = dot(x, &row) as f32;
        }
    }
    y
}

/// Adds `bias [N]` to each row of `y [M, N]`.
pub(super) fn add_bias(y: &mut [f32], bias: &[f32]) {
    for row in y.chunks_exact_mut(bias.len().max(1)) {
        row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
    }
}

pub(super) fn silu(x: f32) -> f32 {
    let x = f64::from(x);
    (x / (1.0 + (-x).exp())) as f32
}

/// Each row of `x [.., D]` times `w [D]` over its root mean square.
pub(super) fn rms_norm(x: &[f32], w: &[f32], eps: f32) -> Vec<f32> {
    x.chunks_exact(w.len().max(1)).flat_map(|row| rms_norm_row(row, w, eps)).collect()
}

fn rms_norm_row<'a>(row: &'a [f32], w: &'a [f32], eps: f32) -> impl Iterator<Item = f32> + 'a {
    let squares: f64 = row.iter().map(|x| f64::from(*x).powi(2)).sum();
    let scale = (1.0 / (squares / row.len() as f64 + f64::from(eps)).sqrt()) as f32;
    row.iter().zip(w).map(move |(x, w)| x * scale * w)
}

/// Rotates the first `dim` elements of every head of `x [T, H, D]`; `row(t)` is the `[2, dim/2]` of cosines and sines of
/// token t. Element i rotates with element `i + dim/2`.
pub(super) fn rotate<R: AsRef<[f32]>>(x: &mut [f32], heads: usize, d: usize, dim: usize, rows: &[R]) {
    for (token, row) in x.chunks_exact_mut((heads * d).max(1)).zip(rows) {
        let (cos, sin) = row.as_ref().split_at(dim / 2);
        for head in token.chunks_exact_mut(d) {
            for i in 0..dim / 2 {
                let (a, b) = (head[i], head[i + dim / 2]);
                head[i] = a * cos[i] - b * sin[i];
                head[i + dim / 2] = b * cos[i] + a * sin[i];
            }
        }
    }
}

/// Largest element, and the logarithm of the sum of exponentials.
pub(super) fn max_and_logsumexp(row: &[f32]) -> (f32, f32) {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|x| (f64::from(*x) - f64::from(max)).exp()).sum();
    (max, (f64::from(max) + sum.ln()) as f32)
}

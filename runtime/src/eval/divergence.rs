//! How far one distribution is from another.

use super::Held;
use rvllm_engine::forward::Row;

/// At one position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Divergence {
    /// Σ p·ln(p/q) over the vocabulary, p the reference's: in nats.
    pub(super) kl: f64,
    /// Whether both think the same token the most likely.
    pub(super) same_top: bool,
}

impl Divergence {
    /// Of the model's `q` from the reference's `p`.
    pub(super) fn of(p: &Held, q: &Row<'_>) -> Divergence {
        let term = |(p_logit, q_logit): (&f32, &f32)| {
            let (ln_p, ln_q) = (f64::from(p_logit - p.logsumexp), f64::from(q_logit - q.logsumexp));
            ln_p.exp() * (ln_p - ln_q)
        };
        // Below zero by rounding alone.
        let kl = p.logits.iter().zip(q.logits).map(term).sum::<f64>().max(0.0);
        Divergence { kl, same_top: first_largest(&p.logits) == q.argmax() as usize }
    }
}

fn first_largest(logits: &[f32]) -> usize {
    let larger = |best: usize, i: usize| if logits[i] > logits[best] { i } else { best };
    (1..logits.len()).fold(0, larger)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(logits: &[f32]) -> Held {
        Held { logits: logits.to_vec(), logsumexp: logits.iter().map(|l| l.exp()).sum::<f32>().ln() }
    }

    #[test]
    fn it_is_that_of_the_definition() {
        let (p, q) = (held(&[1.0, 2.0, 0.5]), held(&[1.5, 0.0, 1.5]));
        let row = Row {
            logits: &q.logits,
            max: 1.5,
            logsumexp: q.logsumexp,
            block_max: &[1.5],
            block_sum: &[],
            draws: &[],
            ranks: &[],
            most_likely: [&[]; 2],
        };
        let prob = |h: &Held| h.logits.iter().map(|l| f64::from(l - h.logsumexp).exp()).collect::<Vec<_>>();
        let expected: f64 = prob(&p).iter().zip(prob(&q)).map(|(p, q)| p * (p / q).ln()).sum();
        let found = Divergence::of(&p, &row);
        assert!((found.kl - expected).abs() < 1e-6, "{found:?}, expected {expected}");
        assert!(!found.same_top);
        assert_eq!(Divergence::of(&q, &row), Divergence { kl: 0.0, same_top: true });
    }
}

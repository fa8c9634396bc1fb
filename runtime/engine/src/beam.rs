//! Beam search: of all answers looked at, the likeliest.
//!
//! Each turn every beam offers its `2 * width` likeliest next tokens. Those that end an answer end it; of the others the
//! `width` likeliest go on. The best `width` of all answers that ended, with those that `max_tokens` cut, are the result.
//!
//! Invariants:
//! - a turn is taken when every beam has offered, in whichever steps they were computed;
//! - ties go to the earlier beam, then to the likelier and smaller token, so equal requests have equal results;
//! - the search ends as soon as no beam can come to stand among the best, and not earlier.

use crate::{
    error::EngineError,
    forward::Row,
    output::{Finish, FinishReason, SequenceOutput, StopReason},
    request::{Rules, report},
    row::TokenLogit,
    sampler::{self, RankedToken, Sampler, Scratch},
    text::Text,
};
use std::{mem, sync::Arc};

/// What a beam's logits lead to.
pub(crate) enum Turn {
    /// Other beams have not been computed yet.
    Waits,
    /// The next beams: which beam each continues, and with which token.
    Goes(Vec<(u32, u32)>),
    /// The answers, the best first.
    Ends(Vec<SequenceOutput>),
}

/// A token that may follow a beam.
#[derive(Clone)]
struct Offer {
    token: u32,
    /// Log-probability of the beam with the token.
    cumulative: f64,
    /// Present where the token ends the answer.
    finish: Option<Finish>,
    text: Option<Text>,
    logprobs: Option<Arc<Vec<RankedToken>>>,
}

/// An answer that goes on.
#[derive(Clone)]
struct Beam {
    /// Its tokens.
    sampler: Sampler,
    /// Sum of the tokens' log-probabilities.
    cumulative: f64,
    /// Present where there are stop strings to look for.
    text: Option<Text>,
    logprobs: Vec<Arc<Vec<RankedToken>>>,
    /// Present where its last token has been computed.
    offers: Option<Vec<Offer>>,
}

/// An answer that has ended.
struct Ended {
    score: f64,
    tokens: Vec<u32>,
    logprobs: Vec<Arc<Vec<RankedToken>>>,
    finish: Finish,
}

/// The beams of a request.
pub(crate) struct BeamSearch {
    num_prompt_tokens: usize,
    live: Vec<Beam>,
    /// The best first.
    ended: Vec<Ended>,
}

impl BeamSearch {
    /// One beam, which has no token yet. `seeker` continues the prompt, where there are stop strings to look for.
    pub(crate) fn new(rules: &Rules, num_prompt_tokens: usize, seeker: Option<Text>) -> BeamSearch {
        let root = Beam {
            sampler: Sampler::new(rules.sampling.clone(), 0),
            cumulative: 0.0,
            text: seeker,
            logprobs: vec![],
            offers: None,
        };
        BeamSearch { num_prompt_tokens, live: vec![root], ended: vec![] }
    }

    /// Forgets what was offered in this turn: all beams are computed again.
    pub(crate) fn forget_offers(&mut self) {
        self.live.iter_mut().for_each(|b| b.offers = None);
    }

    /// Takes the logits after the last token of beam `index`.
    pub(crate) fn offer(
        &mut self,
        rules: &Rules,
        index: u32,
        row: &Row<'_>,
        scratch: &mut Scratch,
    ) -> Result<Turn, EngineError> {
        let Some(beam) = self.live.get_mut(index as usize) else { return Ok(Turn::Waits) };
        beam.offers = Some(beam.offers(rules, row, scratch)?);
        if self.live.iter().any(|b| b.offers.is_none()) {
            return Ok(Turn::Waits);
        }
        let next = self.turn(rules);
        Ok(if next.is_empty() { Turn::Ends(self.answers()) } else { Turn::Goes(next) })
    }

    fn turn(&mut self, rules: &Rules) -> Vec<(u32, u32)> {
        let mut parents = mem::take(&mut self.live);
        let num_tokens = parents.first().map_or(0, |b| b.sampler.output().len()) + 1;
        let mut going: Vec<(usize, Offer)> = vec![];
        for (p, parent) in parents.iter_mut().enumerate() {
            for offer in parent.offers.take().unwrap_or_default() {
                match offer.finish.clone() {
                    Some(finish) => self.end(parent.clone().with(offer), finish, rules),
                    None => going.push((p, offer)),
                }
            }
        }
        going.sort_by(|(_, a), (_, b)| b.cumulative.total_cmp(&a.cumulative));
        going.truncate(rules.sampling.params.n as usize);
        let next = going.iter().map(|(p, offer)| (*p as u32, offer.token)).collect();
        let stuck = going.is_empty() && self.ended.is_empty();
        self.live = match stuck {
            // Nothing may follow: the answers are what they are.
            true => parents,
            false => going.into_iter().map(|(p, offer)| parents[p].clone().with(offer)).collect(),
        };
        if stuck || num_tokens >= rules.max_tokens {
            let cut = Finish { reason: FinishReason::Length, stop_reason: None };
            mem::take(&mut self.live).into_iter().for_each(|beam| self.end(beam, cut.clone(), rules));
        }
        if self.is_decided(rules) { vec![] } else { next }
    }

    fn end(&mut self, beam: Beam, finish: Finish, rules: &Rules) {
        let Beam { sampler, cumulative, logprobs, .. } = beam;
        let tokens = sampler.output().to_vec();
        let by_text = matches!(finish.stop_reason, Some(StopReason::Text(_)));
        let end_token = usize::from(finish.reason == FinishReason::Stop && !by_text);
        let score = score(cumulative, self.num_prompt_tokens + tokens.len() - end_token, rules);
        let at = self.ended.partition_point(|e| e.score >= score);
        self.ended.insert(at, Ended { score, tokens, logprobs, finish });
        self.ended.truncate(rules.sampling.params.n as usize);
    }

    /// Whether no beam can come to stand among the best. A beam only gets less likely; what it is divided by is between
    /// that of its present length and that of the longest.
    fn is_decided(&self, rules: &Rules) -> bool {
        if self.ended.len() < rules.sampling.params.n as usize {
            return self.live.is_empty();
        }
        let worst = self.ended.last().map_or(f64::NEG_INFINITY, |e| e.score);
        let longest = self.num_prompt_tokens + rules.max_tokens;
        let best = |b: &Beam| {
            let shortest = self.num_prompt_tokens + b.sampler.output().len();
            score(b.cumulative, shortest, rules).max(score(b.cumulative, longest, rules))
        };
        self.live.iter().all(|b| best(b) <= worst)
    }

    fn answers(&mut self) -> Vec<SequenceOutput> {
        let answer = |(index, ended): (u32, Ended)| {
            let Ended { tokens, logprobs, finish, .. } = ended;
            let logprobs = logprobs.into_iter().map(|l| report(Arc::unwrap_or_clone(l))).collect();
            SequenceOutput { index, token_ids: tokens, text: String::new(), logprobs, finish: Some(finish) }
        };
        (0..).zip(mem::take(&mut self.ended)).map(answer).collect()
    }
}

impl Beam {
    /// The likeliest tokens that may follow, likeliest first.
    fn offers(&self, rules: &Rules, row: &Row<'_>, scratch: &mut Scratch) -> Result<Vec<Offer>, EngineError> {
        let params = &rules.sampling.params;
        let changed = self.sampler.changed(None, row, &mut scratch.changed);
        let (from, logsumexp) = match &changed {
            Some(changed) => (changed, log_sum_exp(changed)),
            None => (row, f64::from(row.logsumexp)),
        };
        let reported = params.logprobs.map(|count| row.top(usize::try_from(count).unwrap_or(row.logits.len())));
        let possible = from.top(2 * params.n as usize).into_iter().filter(|t| t.logit > f32::NEG_INFINITY);
        let offer = |t: TokenLogit| {
            // Rounding must not make a token likelier than certain.
            let logprob = (f64::from(t.logit) - logsumexp).min(0.0);
            let logprobs =
                reported.as_ref().map(|top| Arc::new(sampler::ranked(row, t.id, top, &params.logprob_token_ids)));
            self.offer(rules, t.id, logprob, logprobs)
        };
        possible.map(offer).collect()
    }

    fn offer(
        &self,
        rules: &Rules,
        token: u32,
        logprob: f64,
        logprobs: Option<Arc<Vec<RankedToken>>>,
    ) -> Result<Offer, EngineError> {
        let finish = rules.finish(token, self.sampler.output().len() + 1);
        let mut finish = finish.filter(|f| f.reason == FinishReason::Stop);
        let mut text = self.text.clone();
        if let Some(text) = &mut text {
            text.push(token, &mut finish)?;
        }
        Ok(Offer { token, cumulative: self.cumulative + logprob, finish, text, logprobs })
    }

    fn with(mut self, offer: Offer) -> Beam {
        let Offer { token, cumulative, text, logprobs, .. } = offer;
        self.sampler.note(token);
        self.logprobs.extend(logprobs);
        Beam { cumulative, text, offers: None, ..self }
    }
}

fn score(cumulative: f64, num_tokens: usize, rules: &Rules) -> f64 {
    let score = cumulative / (num_tokens as f64).powf(f64::from(rules.sampling.params.length_penalty));
    // Certain, and divided by nothing.
    score.max(f64::NEG_INFINITY)
}

/// Of a row whose statistics are not known.
fn log_sum_exp(row: &Row<'_>) -> f64 {
    let max = f64::from(row.max);
    max + row.logits.iter().map(|l| (f64::from(*l) - max).exp()).sum::<f64>().ln()
}

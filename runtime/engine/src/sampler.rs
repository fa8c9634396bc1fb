//! From a row of logits to a token and its log-probabilities, in vLLM's order: grammar, allowed tokens, bad words,
//! minimum length, bias, penalties; then temperature, min_p, top_k, top_p, and the choice.
//!
//! Invariants:
//! - a choice depends on the row, the sequence's own tokens, the seed, the sequence's index and its length alone;
//! - log-probabilities are of the row as the model computed it;
//! - a token of zero probability is never chosen, and where a grammar leaves none but such, it decides.

use crate::{
    draw::{self, Lines, Numbers, Weights},
    forward::{Reads, Row},
    grammar::{
        Grammar, GrammarError,
        matcher::{Job, Mask, Matcher},
    },
    params::SamplingParams,
    random,
    row::{Blocks, TokenLogit},
    thinking::Budget,
};
use rustc_hash::FxHashMap;
use rvllm_artifact::plan::{DRAWS, TOP_K};
use std::{collections::HashSet, sync::Arc};

/// Draws of tokens that penalties may have made less likely. Each reads a run of the row, and changing the row all of it.
const MANY_DRAWS: usize = 5 * DRAWS;

/// A token of a row with its log-probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RankedToken {
    /// The token.
    pub id: u32,
    /// Logit less the log of the sum of exponentials.
    pub logprob: f32,
    /// 1 for the most likely.
    pub rank: u32,
}

/// What a request's sequences share.
#[derive(Debug)]
pub struct SamplingRules {
    /// The validated parameters.
    pub params: SamplingParams,
    /// The request's seed: the parameter's, or a drawn one.
    pub seed: u64,
    /// Token sequences of which the last token is not chosen after the others.
    pub bad_words: Vec<Vec<u32>>,
    /// Tokens not chosen before `min_tokens`.
    pub end_tokens: Vec<u32>,
    /// Tokens of the prompt, where the repetition penalty needs them.
    pub prompt_tokens: HashSet<u32>,
    /// What answers follow, and the tokens behind which it begins.
    pub grammar: Option<(Arc<Grammar>, Arc<[u32]>)>,
    /// How much they may think.
    pub(crate) thinking: Option<Budget>,
}

/// Memory kept between rows, and the masks that the next rows need.
#[derive(Default)]
pub struct Scratch {
    pub(crate) changed: Changed,
    lines: Lines,
    /// To be computed beside the forward.
    pub masks: Vec<Arc<Job>>,
}

/// Memory for a changed row.
#[derive(Default)]
pub struct Changed {
    /// Of its tokens, where it is not one of all.
    ids: Vec<u32>,
    logits: Vec<f32>,
    blocks: Blocks,
}

/// Chooses the tokens of one sequence.
#[derive(Clone, Debug)]
pub struct Sampler {
    rules: Arc<SamplingRules>,
    index: u32,
    output: Vec<u32>,
    /// How often the output has each token, where a penalty needs that.
    counts: FxHashMap<u32, u32>,
    matcher: Option<Matcher>,
    thinking: Option<Budget>,
}

impl Sampler {
    /// The sampler of the request's sequence `index`.
    pub fn new(rules: Arc<SamplingRules>, index: u32) -> Sampler {
        let matcher = rules.grammar.as_ref().map(|(grammar, after)| Matcher::new(grammar.clone(), after.clone()));
        let thinking = rules.thinking.clone();
        Sampler { rules, index, output: vec![], counts: FxHashMap::default(), matcher, thinking }
    }

    /// Tokens chosen so far.
    pub fn output(&self) -> &[u32] {
        &self.output
    }

    /// Chooses the next token and notes it.
    ///
    /// # Errors
    /// No token can follow the grammar.
    pub fn sample(&mut self, row: &Row<'_>, scratch: &mut Scratch) -> Result<u32, GrammarError> {
        let mask = self.matcher.as_mut().map_or(Ok(None), Matcher::mask)?;
        let mask = mask.as_deref();
        let forced = self.thinking.as_ref().and_then(|budget| budget.forced(&self.output));
        let forced = forced.filter(|token| mask.is_none_or(|mask| mask.allows(*token)));
        let token = forced.unwrap_or_else(|| self.next(mask, row, scratch));
        self.note(token);
        self.follow(token, mask.is_some_and(Mask::is_accepting), scratch);
        Ok(token)
    }

    /// The next token, of those that `mask` has.
    fn next(&self, mask: Option<&Mask>, row: &Row<'_>, scratch: &mut Scratch) -> u32 {
        let u = match self.of_unchanged(mask, row, &mut scratch.lines, self.number(0)) {
            Ok(token) => return token,
            Err(u) => u,
        };
        if let Some(token) = mask.and_then(|mask| self.of_few(mask, row, scratch, u)) {
            return token;
        }
        match (self.changed(mask, row, &mut scratch.changed), mask) {
            (Some(changed), Some(mask)) if changed.max == f32::NEG_INFINITY => likeliest_allowed(mask, row),
            (changed, _) => self.choose(&changed.unwrap_or(*row), &mut scratch.lines, u),
        }
    }

    /// A token by the row as it is, where that is right: most tokens that a model likes are grammatical, and few have been
    /// chosen before. Else the random number for a choice from the changed row.
    fn of_unchanged(&self, mask: Option<&Mask>, row: &Row<'_>, lines: &mut Lines, u: f64) -> Result<u32, f64> {
        match self.params().is_greedy() {
            _ if mask.is_none() && !self.changes_logits() => Ok(self.choose(row, lines, u)),
            _ if self.raises_logits() => Err(u),
            true => {
                let id = most_likely(row);
                (self.lowered(mask, row, id) == 0.0).then_some(id).ok_or(u)
            }
            false => Weights::new(row, self.params()).choose_accepted(lines, u, self.most_draws(mask), |id| {
                f64::from(-self.lowered(mask, row, id) / self.params().temperature).exp()
            }),
        }
    }

    /// A token of a row of those alone that a grammar allows, where they are few and nothing else changes the row.
    fn of_few(&self, mask: &Mask, row: &Row<'_>, scratch: &mut Scratch, u: f64) -> Option<u32> {
        let few = mask.few().filter(|_| !self.changes_logits())?;
        let Scratch { changed: Changed { ids, logits, blocks }, lines, .. } = scratch;
        ids.clear();
        ids.extend(few.iter().filter(|id| self.permits(mask, **id)));
        if mask.is_accepting() {
            ids.extend(&self.params().stop_token_ids);
            ids.sort_unstable();
            ids.dedup();
        }
        logits.clear();
        logits.extend(ids.iter().map(|id| row.logits[*id as usize]));
        let row = Row::of_changed(logits, self.params().drawn_at(), blocks);
        (row.max > f32::NEG_INFINITY).then(|| ids[self.choose(&row, lines, u) as usize])
    }

    /// What [`Sampler::change`] makes of one logit.
    fn changed_logit(&self, mask: Option<&Mask>, id: u32, logit: f32) -> f32 {
        let p = self.params();
        let permitted = mask.is_none_or(|mask| self.permits(mask, id));
        let allowed = p.allowed_token_ids.as_ref().is_none_or(|ids| ids.contains(&id));
        let too_early = self.below_min_tokens() && self.rules.end_tokens.contains(&id);
        if !permitted || !allowed || too_early || self.completed_words().any(|last| last == id) {
            return f32::NEG_INFINITY;
        }
        let biases = p.logit_bias.iter().flatten().filter(|(of, _)| **of == id);
        self.penalized(id, biases.fold(logit, |logit, (_, bias)| logit + bias))
    }

    /// What [`Sampler::change`] takes from one logit. The logit is read where that depends on it.
    fn lowered(&self, mask: Option<&Mask>, row: &Row<'_>, id: u32) -> f32 {
        let logit = if self.params().repetition_penalty == 1.0 { 0.0 } else { row.logits[id as usize] };
        logit - self.changed_logit(mask, id, logit)
    }

    /// How many draws are worth trying before the row is changed: more where tokens are only made less likely than where a
    /// grammar may leave none that the model likes.
    fn most_draws(&self, mask: Option<&Mask>) -> usize {
        if mask.is_none() && self.params().allowed_token_ids.is_none() { MANY_DRAWS } else { DRAWS }
    }

    /// Whether some logits may become larger.
    fn raises_logits(&self) -> bool {
        let p = self.params();
        let biased = p.logit_bias.iter().flatten().any(|(_, bias)| *bias > 0.0);
        biased || p.repetition_penalty < 1.0 || p.frequency_penalty < 0.0 || p.presence_penalty < 0.0
    }

    /// Whether a token may come next where nothing but a grammar forbids any: as [`Sampler::keep_grammatical`] has it.
    fn permits(&self, mask: &Mask, id: u32) -> bool {
        let p = self.params();
        let ends = p.ignore_eos && self.rules.end_tokens.contains(&id);
        mask.allows(id) && !ends || mask.is_accepting() && p.stop_token_ids.contains(&id)
    }

    /// The random numbers by which tokens are drawn from the row of the choice after `skipped` others.
    pub fn numbers(&self, skipped: usize) -> Numbers {
        if self.params().is_greedy() { [0.0; _] } else { draw::numbers(self.number(skipped)) }
    }

    /// The random number of the choice after `skipped` others.
    fn number(&self, skipped: usize) -> f64 {
        random::uniform(self.rules.seed, u64::from(self.index), (self.output.len() + skipped) as u64)
    }

    /// Whether [`Sampler::sample`] takes the first token drawn from the next row, whatever that is.
    pub fn takes_first_draw(&self) -> bool {
        self.thinking.is_none() && self.reads() == Reads::Draws
    }

    /// The row with bias, penalties and what must not be chosen, the tokens outside of `mask` too; `None` where that is
    /// the row as it is.
    pub fn changed<'a>(&self, mask: Option<&Mask>, row: &Row<'_>, memory: &'a mut Changed) -> Option<Row<'a>> {
        if mask.is_none() && !self.changes_logits() {
            return None;
        }
        let Changed { logits, blocks, .. } = memory;
        self.change(mask, row.logits, logits);
        Some(Row::of_changed(logits, self.params().drawn_at(), blocks))
    }

    /// Notes the next token, which somebody else chose.
    pub fn note(&mut self, token: u32) {
        self.output.push(token);
        if let Some(budget) = &mut self.thinking {
            budget.note(&self.output);
        }
        if self.penalizes() {
            *self.counts.entry(token).or_default() += 1;
        }
    }

    /// Whether the grammar lets nothing follow.
    pub fn has_ended(&self) -> bool {
        self.matcher.as_ref().is_some_and(Matcher::has_ended)
    }

    fn follow(&mut self, token: u32, accepting: bool, scratch: &mut Scratch) {
        let Some(matcher) = &mut self.matcher else { return };
        if accepting && self.rules.end_tokens.contains(&token) {
            return matcher.end();
        }
        scratch.masks.extend(matcher.advance(token, &self.output));
    }

    /// What [`Sampler::sample`] will read of the next row, and what the log-probabilities of its choice will.
    pub fn reads(&self) -> Reads {
        // Whatever else comes to change rows has to be asked here: in a row that is not read, most logits are missing.
        let SamplingRules { params, seed: _, bad_words: _, end_tokens: _, prompt_tokens: _, grammar, thinking } =
            &*self.rules;
        match () {
            () if grammar.is_some() || self.changes_logits() => Reads::All,
            () if params.logprobs.is_some() && (self.top_k().is_none() || thinking.is_some()) => Reads::All,
            () if params.logprobs.is_some() => Reads::Ranks,
            () if params.is_greedy() || params.leaves_everything() => Reads::Draws,
            () => Reads::Ranks,
        }
    }

    /// Whether [`Sampler::sample`] needs all of a row of which it was said that it reads ranks.
    pub fn needs_all(&self, row: &Row<'_>) -> bool {
        let p = self.params();
        let is_reported =
            || p.logprobs.is_none() || row.has_found(self.top_k().unwrap_or(0)) && row.rank_of_drawn(0).is_some();
        let is_decided = || p.is_greedy() && !row.draws.is_empty() || Weights::new(row, p).is_decided();
        !(is_reported() && is_decided())
    }

    /// How many of the tokens drawn from the next row are to be ranked.
    pub fn ranked(&self) -> usize {
        let p = self.params();
        match self.reads() {
            Reads::Ranks if p.is_greedy() || p.leaves_everything() => 1,
            Reads::Ranks => DRAWS,
            Reads::All | Reads::Draws => 0,
        }
    }

    /// How many of the most likely tokens of a row log-probabilities ask for; `None` where they ask for more, or others, than are
    /// found where rows are computed.
    pub fn top_k(&self) -> Option<usize> {
        let p = self.params();
        let count = usize::try_from(p.logprobs.unwrap_or(0)).ok();
        count.filter(|count| *count <= TOP_K && p.logprob_token_ids.is_empty())
    }

    fn params(&self) -> &SamplingParams {
        &self.rules.params
    }

    fn below_min_tokens(&self) -> bool {
        self.output.len() < self.params().min_tokens as usize
    }

    fn changes_logits(&self) -> bool {
        let p = self.params();
        p.allowed_token_ids.is_some()
            || p.logit_bias.is_some()
            || !self.rules.bad_words.is_empty()
            || self.below_min_tokens()
            || self.penalizes()
    }

    fn penalizes(&self) -> bool {
        let p = self.params();
        p.repetition_penalty != 1.0 || p.frequency_penalty != 0.0 || p.presence_penalty != 0.0
    }

    fn change(&self, mask: Option<&Mask>, logits: &[f32], changed: &mut Vec<f32>) {
        changed.clear();
        match mask {
            Some(mask) => self.keep_grammatical(mask, logits, changed),
            None => self.keep_allowed(logits, changed),
        }
        self.completed_words().for_each(|last| changed[last as usize] = f32::NEG_INFINITY);
        if self.below_min_tokens() {
            self.rules.end_tokens.iter().for_each(|id| changed[*id as usize] = f32::NEG_INFINITY);
        }
        for (id, bias) in self.params().logit_bias.iter().flatten() {
            changed[*id as usize] += bias;
        }
        self.penalize(changed);
    }

    fn keep_allowed(&self, logits: &[f32], changed: &mut Vec<f32>) {
        let Some(allowed) = &self.params().allowed_token_ids else { return changed.extend_from_slice(logits) };
        changed.resize(logits.len(), f32::NEG_INFINITY);
        allowed.iter().for_each(|id| changed[*id as usize] = logits[*id as usize]);
    }

    /// What the grammar and `allowed_token_ids` both allow, and the request's own stop tokens where the answer may end.
    fn keep_grammatical(&self, mask: &Mask, logits: &[f32], changed: &mut Vec<f32>) {
        let p = self.params();
        mask.keep(logits, changed);
        if p.ignore_eos {
            self.rules.end_tokens.iter().for_each(|id| changed[*id as usize] = f32::NEG_INFINITY);
        }
        if mask.is_accepting() {
            p.stop_token_ids.iter().for_each(|id| changed[*id as usize] = logits[*id as usize]);
        }
        if let Some(allowed) = &p.allowed_token_ids {
            let allowed: HashSet<u32> = allowed.iter().copied().collect();
            let others = mask.tokens().chain(p.stop_token_ids.iter().copied()).filter(|id| !allowed.contains(id));
            others.for_each(|id| changed[id as usize] = f32::NEG_INFINITY);
        }
    }

    /// The tokens that would complete a bad word.
    fn completed_words(&self) -> impl Iterator<Item = u32> {
        let completed = |word: &Vec<u32>| {
            word.split_last().filter(|(_, before)| self.output.ends_with(before)).map(|(last, _)| *last)
        };
        self.rules.bad_words.iter().filter_map(completed)
    }

    fn penalize(&self, logits: &mut [f32]) {
        let repeated = self.params().repetition_penalty != 1.0;
        let of_prompt = self.rules.prompt_tokens.iter().filter(|id| repeated && !self.counts.contains_key(id));
        for id in self.counts.keys().chain(of_prompt) {
            logits[*id as usize] = self.penalized(*id, logits[*id as usize]);
        }
    }

    /// The repetition penalty (Keskar et al., "CTRL", 2019) sees prompt and output; the others see the output.
    fn penalized(&self, id: u32, logit: f32) -> f32 {
        let (p, count) = (self.params(), self.counts.get(&id));
        let repeats = p.repetition_penalty != 1.0 && (count.is_some() || self.rules.prompt_tokens.contains(&id));
        // An overflow would make infinities, whose differences are no numbers; what is forbidden stays so.
        let logit = match logit {
            l if !repeats || l == f32::NEG_INFINITY => l,
            l if l > 0.0 => (l / p.repetition_penalty).min(f32::MAX),
            l => (l * p.repetition_penalty).max(f32::MIN),
        };
        count.map_or(logit, |count| logit - p.frequency_penalty * *count as f32 - p.presence_penalty)
    }

    fn choose(&self, row: &Row<'_>, lines: &mut Lines, u: f64) -> u32 {
        let p = self.params();
        if p.is_greedy() || row.max == f32::NEG_INFINITY {
            return self.most_likely(row);
        }
        Weights::new(row, p).choose(lines, u)
    }

    /// Greedy. Where everything is forbidden, the first allowed token.
    fn most_likely(&self, row: &Row<'_>) -> u32 {
        let allowed = self.params().allowed_token_ids.as_ref().and_then(|ids| ids.first());
        match allowed {
            Some(id) if row.max == f32::NEG_INFINITY => *id,
            _ => most_likely(row),
        }
    }
}

/// The most likely token: at no temperature to speak of, the first that was drawn.
fn most_likely(row: &Row<'_>) -> u32 {
    row.drawn(0).unwrap_or_else(|| row.argmax())
}

/// The most likely of the tokens that a grammar allows, whatever else forbids them.
fn likeliest_allowed(mask: &Mask, row: &Row<'_>) -> u32 {
    let mut kept = vec![];
    mask.keep(row.logits, &mut kept);
    let best = Row::of_changed(&kept, None, &mut Blocks::default()).argmax();
    if mask.allows(best) { best } else { mask.tokens().next().unwrap_or(best) }
}

/// The log-probability of `token`, then those of the `count` most likely (-1 is all) and of `named` ones, without
/// repetition.
pub fn logprobs(row: &Row<'_>, token: u32, count: i32, named: &[u32]) -> Vec<RankedToken> {
    ranked(row, token, &row.top(usize::try_from(count).unwrap_or(row.logits.len())), named)
}

/// The log-probability of `token`, then those of the others of `top`, the most likely in order, and of `named` ones.
pub fn ranked(row: &Row<'_>, token: u32, top: &[TokenLogit], named: &[u32]) -> Vec<RankedToken> {
    let of = |id: u32, logit: f32, rank| RankedToken { id, logprob: logit - row.logsumexp, rank };
    let found = (1..).zip(top).find(|(_, t)| t.id == token).map(|(rank, t)| (t.logit, rank));
    let (logit, rank) = found.unwrap_or_else(|| row.standing(token));
    let mut all = vec![of(token, logit, rank)];
    all.extend((1..).zip(top).filter(|(_, t)| t.id != token).map(|(rank, t)| of(t.id, t.logit, rank)));
    if named.is_empty() {
        return all;
    }
    let others: Vec<u32> = named.iter().copied().filter(|id| all.iter().all(|t| t.id != *id)).collect();
    all.extend(others.iter().zip(row.ranks(&others)).map(|(id, rank)| of(*id, row.logits[*id as usize], rank)));
    all
}

#[cfg(test)]
mod tests;

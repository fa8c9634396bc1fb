//! Answers that follow a grammar: whatever the model would say, and whatever else shares its steps.

use super::*;
use crate::grammar::{GrammarError, StructuredOutputs};
use serde_json::{Value, json};

pub(super) fn any_json() -> StructuredOutputs {
    StructuredOutputs { disable_any_whitespace: true, ..StructuredOutputs::json_schema(schema()) }
}

fn schema() -> Value {
    json!({
        "type": "object", "additionalProperties": false, "required": ["a"],
        "properties": {"a": {"enum": [1, 22, "x"]}, "b": {"type": "string", "maxLength": 3}}
    })
}

fn wild(structured_outputs: StructuredOutputs) -> SamplingParams {
    SamplingParams {
        temperature: 2.0,
        max_tokens: None,
        structured_outputs: Some(structured_outputs),
        ..SamplingParams::default()
    }
}

fn regex(pattern: &str) -> StructuredOutputs {
    StructuredOutputs { regex: Some(pattern.into()), ..StructuredOutputs::default() }
}

fn stopped() -> Finish {
    Finish { reason: FinishReason::Stop, stop_reason: None }
}

fn text_of(prompt: u32, params: SamplingParams) -> String {
    let answers = one(&[prompt], params);
    assert_eq!(answers.finish[&0], stopped());
    answers.text[&0].clone()
}

#[test]
fn every_answer_fulfils_the_schema() {
    for prompt in 0..40 {
        let text = text_of(prompt, wild(any_json()));
        let value: Value = serde_json::from_str(&text).unwrap();
        assert!([json!(1), json!(22), json!("x")].contains(&value["a"]), "{text}");
        let b = value.get("b").map(|b| b.as_str().unwrap().chars().count());
        assert!(b.unwrap_or(0) <= 3 && value.as_object().unwrap().len() <= 2, "{text}");
    }
}

#[test]
fn an_answer_ends_where_nothing_can_follow() {
    for prompt in 0..10 {
        assert_eq!(text_of(prompt, SamplingParams { max_tokens: Some(3), ..wild(regex("abc")) }), "abc");
    }
    let choice = StructuredOutputs { choice: Some(vec!["ja".into(), "nein".into()]), ..StructuredOutputs::default() };
    let texts: std::collections::BTreeSet<String> = (0..30).map(|p| text_of(p, wild(choice.clone()))).collect();
    assert_eq!(texts.into_iter().collect::<Vec<_>>(), ["ja", "nein"]);
}

#[test]
fn the_models_end_comes_only_where_the_grammar_accepts() {
    let likely = SamplingParams { logit_bias: Some([(EOS, 100.0)].into()), ..wild(regex("(ab)+")) };
    for prompt in 0..10 {
        assert_eq!(text_of(prompt, likely.clone()), "ab");
        let longer = SamplingParams { min_tokens: 5, ..likely.clone() };
        assert_eq!(text_of(prompt, longer), "ababab");
        let endless = SamplingParams { ignore_eos: true, max_tokens: Some(9), ..likely.clone() };
        assert_eq!(one(&[prompt], endless).text[&0], "ababababa");
        assert_eq!(text_of(prompt, SamplingParams { ignore_eos: true, ..wild(regex("a{6}")) }), "aaaaaa");
    }
}

#[test]
fn other_parameters_work_within_the_grammar() {
    let a = byte_level().encode("a", false).unwrap()[0];
    for prompt in 0..10 {
        let letters = wild(regex("[abc]{4}"));
        let allowed = SamplingParams { allowed_token_ids: Some(vec![a, 3, EOS]), ..letters.clone() };
        assert_eq!(text_of(prompt, allowed), "aaaa");
        let bad = SamplingParams { bad_words: vec!["b".into(), "c".into()], ..letters.clone() };
        assert_eq!(text_of(prompt, bad), "aaaa");
        let stop = SamplingParams { stop: vec!["aa".into()], ..wild(regex("a{4}")) };
        assert_eq!(one(&[prompt], stop).text[&0], "");
        let none_left = SamplingParams { allowed_token_ids: Some(vec![3]), ..letters.clone() };
        assert!(text_of(prompt, none_left).chars().all(|c| "abc".contains(c)));
        let token = SamplingParams { stop_token_ids: vec![256], logit_bias: Some([(256, 100.0)].into()), ..letters };
        let answers = one(&[prompt], token.clone());
        assert_eq!((answers.tokens[&0].len(), &answers.finish[&0]), (4, &stopped()));
        let open = SamplingParams { structured_outputs: Some(regex("[abc]{2,4}")), ..token };
        let finish = Finish { reason: FinishReason::Stop, stop_reason: Some(StopReason::Token(256)) };
        assert_eq!(one(&[prompt], open).finish[&0], finish);
    }
}

#[test]
fn logprobs_are_of_the_model_not_of_the_grammar() {
    let free = one(&[5], SamplingParams { logprobs: Some(2), max_tokens: Some(1), ..greedy() });
    let bound = one(&[5], SamplingParams { logprobs: Some(2), temperature: 0.0, ..wild(regex("[xyz]")) });
    let of = |a: &Answers, rank| a.logprobs[&0][0].iter().find(|l| l.rank == rank).map(|l| l.logprob);
    assert_eq!((of(&free, 1), of(&free, 2)), (of(&bound, 1), of(&bound, 2)));
}

#[test]
fn answers_of_one_request_follow_the_grammar_each() {
    let answers = one(&[7], SamplingParams { n: 6, ..wild(regex("[a-z]{3}-[0-9]{2}")) });
    let texts: std::collections::BTreeSet<&String> = answers.text.values().collect();
    assert!(texts.len() > 1 && texts.iter().all(|t| t.len() == 6 && t.as_bytes()[3] == b'-'), "{texts:?}");
}

#[test]
fn a_grammar_may_begin_behind_tokens() {
    let mark = 258;
    let after = StructuredOutputs { after: vec![mark], ..regex("ok") };
    let params = SamplingParams { allowed_token_ids: Some(vec![mark, 3]), ..wild(after) };
    let answers = one(&[9], params);
    let begins = answers.tokens[&0].iter().position(|t| *t == mark).unwrap();
    assert_eq!(answers.tokens[&0].len(), begins + 3);
    assert!(answers.text[&0].ends_with("ok"));
}

#[test]
fn a_grammar_that_cannot_be_followed_is_refused() {
    let mut engine = engine(limits());
    let refused = |e: EngineError| match e {
        EngineError::Grammar(g) => g,
        other => panic!("{other}"),
    };
    let none = StructuredOutputs::default();
    assert!(matches!(refused(engine.add_request(1, vec![1], wild(none)).unwrap_err()), GrammarError::NotOne { .. }));
    let two = StructuredOutputs { json: Some(json!({})), ..regex("a") };
    assert!(matches!(refused(engine.add_request(1, vec![1], wild(two)).unwrap_err()), GrammarError::NotOne { .. }));
    for pattern in ["(", "a(?=b)", "(a)\\1"] {
        let error = refused(engine.add_request(1, vec![1], wild(regex(pattern))).unwrap_err());
        assert!(matches!(error, GrammarError::Invalid { kind: "regular expression", .. }), "{error}");
    }
    assert!(!engine.has_unfinished());
}

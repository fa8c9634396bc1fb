//! What is refused, and by which name.

use crate::client::{Server, post};
use axum::{body::Body, http::Request};
use rvllm_server::Config;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

fn with(mut base: Value, name: &str, value: Value) -> Value {
    base[name] = value;
    base
}

#[tokio::test]
async fn fields_that_cannot_be_honoured_are_named() {
    let s = Server::new(Config::default());
    let completion = json!({"prompt": "a"});
    for (name, value) in [
        ("prompt", json!(3)),
        ("prompt", json!([])),
        ("prompt", json!([["a"]])),
        ("n", json!(0)),
        ("n", json!(129)),
        ("n", json!("two")),
        ("best_of", json!(0)),
        ("temperature", json!(-1)),
        ("temperature", json!("hot")),
        ("top_p", json!(0)),
        ("logprobs", json!(21)),
        ("logprobs", json!(-1)),
        ("prompt_logprobs", json!(-1)),
        ("max_tokens", json!(0)),
        ("max_tokens", json!(256)),
        ("max_tokens", json!(-1)),
        ("suffix", json!("x")),
        ("use_beam_search", json!("yes")),
        ("priority", json!(1)),
        ("stream_interval", json!(0)),
        ("logprob_token_ids", json!([1])),
        ("repetition_detection", json!({"max_pattern_size": 4})),
        ("length_penalty", json!(2)),
        ("prompt_embeds", json!("AAAA")),
        ("logit_bias", json!({"999": 1})),
        ("stop", json!(vec!["x"; 100_000])),
        ("stop", json!([""])),
        ("stop", json!("x".repeat(70_000))),
        ("truncate_prompt_tokens", json!(0)),
        ("cache_salt", json!("")),
        ("stream_options", json!({"include_usage": true})),
        ("request_id", json!("a b")),
    ] {
        let answer = s.complete(with(completion.clone(), name, value.clone())).await;
        assert_eq!(answer.error(), (400, name.to_string()), "{name}: {value}");
    }
}

#[tokio::test]
async fn chats_name_what_they_refuse() {
    let s = Server::new(Config::default());
    let chat = json!({"messages": [{"role": "user", "content": "a"}]});
    for (name, value) in [
        ("messages", json!([])),
        ("messages", json!("a")),
        ("reasoning_effort", json!("utmost")),
        ("thinking_token_budget", json!(9)),
        ("top_logprobs", json!(2)),
        ("prompt_logprobs", json!(-1)),
        ("max_completion_tokens", json!(0)),
        ("max_completion_tokens", json!(256)),
        ("modalities", json!(["text", "audio"])),
        ("audio", json!({})),
        ("store", json!(true)),
        ("chat_template", json!("{% for")),
        ("continue_final_message", json!(true)),
    ] {
        let (status, param) = s.chat(with(chat.clone(), name, value.clone())).await.error();
        assert_eq!((status, param.as_str()), (400, name), "{value}");
    }
    let function = json!({"type": "function", "function": {"name": "f"}});
    for (name, value, param) in [
        ("tools", json!([{"type": "function"}]), "tools[0]"),
        ("tools", json!([function, function]), "tools[1].function.name"),
        ("tools", json!([function]), "tools"),
        ("tool_choice", json!("required"), "tools"),
        ("functions", json!([{}]), "functions[0]"),
    ] {
        let answer = s.chat(with(chat.clone(), name, value.clone())).await;
        assert_eq!(answer.error(), (400, param.to_string()), "{value}");
    }
    assert_eq!(s.chat(json!({})).await.error(), (400, "messages".into()));
    for (name, value) in [
        ("user", json!("me")),
        ("metadata", json!({"a": "b"})),
        ("store", json!(false)),
        ("tools", json!([])),
        ("tool_choice", json!("none")),
        ("include_reasoning", json!(false)),
        ("reasoning_effort", json!("none")),
        ("length_penalty", json!(1.0)),
        ("stop", Value::Null),
        ("modalities", json!(["text"])),
    ] {
        let answer = s.chat(with(chat.clone(), name, value)).await;
        assert_eq!((answer.status.as_u16(), answer.headers.get("warning")), (200, None), "{name}: {}", answer.text);
    }
}

#[tokio::test]
async fn unknown_fields_are_told_of_or_refused() {
    let request = json!({"prompt": "a", "temprature": 1, "x\"y": 2});
    let answer = Server::new(Config::default()).complete(request.clone()).await;
    assert_eq!(answer.headers["warning"], "299 rvllm \"ignored unknown fields: temprature,x?y\"");
    let strict = Server::new(Config { strict: true, ..Config::default() });
    assert_eq!(strict.complete(request).await.error(), (400, "temprature".into()));
}

#[tokio::test]
async fn a_request_that_can_never_fit_says_by_how_much() {
    let s = Server::new(Config::default());
    let answer = s.complete(json!({"prompt": "a".repeat(200), "max_tokens": 100})).await;
    let message = answer.json()["error"]["message"].as_str().unwrap().to_string();
    assert_eq!(answer.status.as_u16(), 400);
    assert!(message.starts_with("This model's maximum context length is 256 tokens. However, you requested 300 tokens (200 in the prompt, 100 in the completion)."), "{message}");
    let answer = s.chat(json!({"messages": [{"role": "user", "content": "a".repeat(300)}]})).await;
    assert_eq!(answer.status.as_u16(), 400);
}

#[tokio::test]
async fn texts_that_are_far_too_long_are_refused_at_once() {
    let s = Server::new(Config::default());
    let text = "word ".repeat(3_000_000);
    let begin = Instant::now();
    let answer = s.complete(json!({"prompt": [text.clone()]})).await;
    assert_eq!(answer.error(), (400, "prompt".into()));
    assert!(answer.text.contains("you requested more than 512 tokens in the prompt"), "{}", answer.text);
    let answer = s.chat(json!({"messages": [{"role": "user", "content": text}]})).await;
    assert_eq!(answer.error(), (400, "messages".into()));
    // The mock spells each byte, and would take long for fifteen million.
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    let cut = s.complete(json!({"prompt": "word ".repeat(10_000), "truncate_prompt_tokens": 3, "max_tokens": 1})).await;
    assert_eq!(cut.json()["usage"]["prompt_tokens"], 3);
}

#[tokio::test]
async fn answers_are_no_longer_than_the_server_gives() {
    let s = Server::new(Config { max_output_tokens: Some(5), ..Config::default() });
    let messages = json!([{"role": "user", "content": "a"}]);
    for field in ["max_tokens", "max_completion_tokens"] {
        let answer = s.chat(json!({"messages": messages, field: 6})).await;
        assert_eq!(answer.error(), (400, field.into()));
    }
    assert_eq!(s.complete(json!({"prompt": "a", "max_tokens": 6})).await.error(), (400, "max_tokens".into()));
    for answer in [s.chat(json!({"messages": messages})).await, s.complete(json!({"prompt": "a"})).await] {
        assert_eq!(answer.json()["usage"]["completion_tokens"], 5);
        assert_eq!(answer.json()["choices"][0]["finish_reason"], "length");
    }
    let api = s.get("/openapi.json").await.json();
    let schemas = &api["components"]["schemas"];
    assert_eq!((&schemas["AnswerTokens"]["maximum"], &schemas["PositiveTokens"]["maximum"]), (&json!(5), &json!(5)));
}

#[tokio::test]
async fn alternatives_are_as_many_as_the_server_gives() {
    let s = Server::new(Config { max_logprobs: 30, ..Config::default() });
    let asks =
        |count: i32| json!({"prompt": "a", "max_tokens": 1, "logprobs": count, "return_tokens_as_token_ids": true});
    let answer = s.complete(asks(30)).await.json();
    assert_eq!(answer["choices"][0]["logprobs"]["top_logprobs"][0].as_object().unwrap().len(), 30);
    assert_eq!(s.complete(asks(31)).await.error(), (400, "logprobs".into()));
    let all = s.complete(asks(-1)).await;
    assert!(all.text.contains("--max-logprobs -1"), "{}", all.text);
}

#[tokio::test]
async fn bodies_are_bounded_and_typed() {
    let s = Server::new(Config { max_body_bytes: 10_000, ..Config::default() });
    let deep = format!("{{\"prompt\": {}", "[".repeat(1000));
    for (body, status) in
        [(String::new(), 400), ("[]".into(), 400), ("{".into(), 400), (deep, 400), ("x".repeat(10_001), 413)]
    {
        assert_eq!(s.post("/v1/completions", body).await.error().0, status);
    }
    let untyped = Request::post("/v1/completions").body(Body::from("{\"prompt\": \"a\"}")).unwrap();
    assert_eq!(s.answer(untyped).await.error().0, 415);
    assert_eq!(s.get("/v1/completions").await.error().0, 405);
    assert_eq!(s.get("/nowhere").await.error().0, 404);
    assert_eq!(s.complete(json!({"model": "gpt-4", "prompt": "a"})).await.error(), (404, "model".into()));
    let large = Server::new(Config::default());
    let deep = format!("{{\"prompt\": {}{}}}", "[".repeat(1_000_000), "]".repeat(1_000_000));
    assert_eq!(large.answer(post("/v1/completions", deep)).await.error().0, 400);
}

//! Every field that vLLM documents: known on its route, and honoured or refused by its name.

use crate::client::Server;
use axum::{body::Body, http::Request};
use rvllm_server::Config;
use serde_json::{Value, json};

/// What a value that asks for something gets.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    /// It is honoured.
    Honoured,
    /// It is a label, which changes no answer.
    Label,
    /// It is refused by its name.
    Refused,
}
use Fate::{Honoured, Label, Refused};

/// Fields of both routes, each with a value that asks for something.
fn shared() -> Vec<(&'static str, Value, Fate)> {
    vec![
        ("model", json!("alias"), Honoured),
        ("frequency_penalty", json!(0.5), Honoured),
        ("presence_penalty", json!(0.5), Honoured),
        ("repetition_penalty", json!(1.2), Honoured),
        ("logit_bias", json!({"97": 1}), Honoured),
        ("n", json!(2), Honoured),
        ("seed", json!(7), Honoured),
        ("stop", json!(["fox"]), Honoured),
        ("stream", json!(true), Honoured),
        ("temperature", json!(0.5), Honoured),
        ("top_p", json!(0.9), Honoured),
        ("top_k", json!(5), Honoured),
        ("min_p", json!(0.1), Honoured),
        ("user", json!("me"), Label),
        ("use_beam_search", json!(true), Honoured),
        ("stop_token_ids", json!([97]), Honoured),
        ("include_stop_str_in_output", json!(true), Honoured),
        ("ignore_eos", json!(true), Honoured),
        ("min_tokens", json!(2), Honoured),
        ("skip_special_tokens", json!(false), Honoured),
        ("spaces_between_special_tokens", json!(false), Honoured),
        ("truncate_prompt_tokens", json!(3), Honoured),
        ("truncation_side", json!("right"), Honoured),
        ("prompt_logprobs", json!(1), Honoured),
        ("logprob_token_ids", json!([97]), Honoured),
        ("allowed_token_ids", json!([97, 98]), Honoured),
        ("bad_words", json!(["fox"]), Honoured),
        ("thinking_token_budget", json!(5), Refused),
        ("repetition_detection", json!({"max_pattern_size": 3, "min_count": 2}), Honoured),
        ("watermarking", json!({}), Refused),
        ("echo", json!(true), Honoured),
        ("add_special_tokens", json!(false), Honoured),
        ("response_format", json!({"type": "text"}), Honoured),
        ("structured_outputs", json!({"choice": ["a", "b"]}), Honoured),
        ("guided_choice", json!(["a", "b"]), Honoured),
        ("guided_regex", json!("a+"), Honoured),
        ("guided_json", json!({"type": "object"}), Honoured),
        ("priority", json!(3), Refused),
        ("request_id", json!("mine"), Honoured),
        ("session_id", json!("s"), Refused),
        ("return_tokens_as_token_ids", json!(true), Honoured),
        ("return_token_ids", json!(true), Honoured),
        ("return_token_offsets", json!(true), Refused),
        ("return_prompt_text", json!(true), Honoured),
        ("cache_salt", json!("salt"), Honoured),
        ("kv_transfer_params", json!({"a": 1}), Refused),
        ("ec_transfer_params", json!({"a": 1}), Refused),
        ("vllm_xargs", json!({"a": 1}), Refused),
        ("stream_interval", json!(4), Honoured),
        ("routed_experts_prompt_start", json!(1), Refused),
        ("return_mm_kwargs", json!(true), Refused),
        ("mm_processor_kwargs", json!({"a": 1}), Refused),
    ]
}

fn of_chats() -> Vec<(&'static str, Value, Fate)> {
    let function = json!([{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]);
    vec![
        ("logprobs", json!(true), Honoured),
        ("max_tokens", json!(3), Honoured),
        ("max_completion_tokens", json!(3), Honoured),
        ("reasoning_effort", json!("low"), Honoured),
        ("include_reasoning", json!(false), Honoured),
        // The mock's template shows no way of calling tools; those of `tools.rs` do.
        ("tools", function, Refused),
        ("tool_choice", json!("none"), Honoured),
        ("parallel_tool_calls", json!(false), Honoured),
        ("add_generation_prompt", json!(false), Honoured),
        ("documents", json!([{"text": "a"}]), Honoured),
        ("chat_template", json!("{{ messages[0].content }}"), Honoured),
        ("chat_template_kwargs", json!({"a": 1}), Honoured),
        ("media_io_kwargs", json!({"a": 1}), Refused),
        ("metadata", json!({"a": "b"}), Label),
        ("store", json!(true), Refused),
        ("service_tier", json!("flex"), Refused),
        ("modalities", json!(["audio"]), Refused),
    ]
}

fn of_completions() -> Vec<(&'static str, Value, Fate)> {
    vec![
        ("max_tokens", json!(3), Honoured),
        ("logprobs", json!(2), Honoured),
        ("suffix", json!("end"), Refused),
        ("prompt_embeds", json!("AAAA"), Refused),
    ]
}

async fn check(path: &str, base: Value, fields: Vec<(&str, Value, Fate)>) {
    // Under --strict an unknown field would be refused, by its name as well: fates tell one from the other.
    for strict in [false, true] {
        let server = Server::new(Config { strict, ..Config::default() });
        for (name, value, fate) in &fields {
            let mut body = base.clone();
            body[*name] = value.clone();
            // Several answers differ only where they are drawn.
            if *name == "n" {
                body["temperature"] = json!(1);
            }
            // Tokens are named for the sake of their log-probabilities.
            if *name == "logprob_token_ids" {
                body["logprobs"] = if path.contains("chat") { json!(true) } else { json!(1) };
            }
            let answer = server.post(path, body).await;
            match fate {
                Refused => assert_eq!(answer.error(), (400, name.to_string()), "{path}: {name}"),
                Honoured | Label => assert_eq!(answer.status.as_u16(), 200, "{path}: {name}: {}", answer.text),
            }
            assert_eq!(answer.headers.get("warning"), None, "{path}: {name} is unknown");
        }
    }
}

#[tokio::test]
async fn chats_know_every_field() {
    let base = json!({"messages": [{"role": "user", "content": "abc"}], "max_tokens": 4});
    check("/v1/chat/completions", base, [shared(), of_chats()].concat()).await;
}

#[tokio::test]
async fn completions_know_every_field() {
    let base = json!({"prompt": "abc", "max_tokens": 4});
    check("/v1/completions", base, [shared(), of_completions()].concat()).await;
}

#[tokio::test]
async fn prefixes_are_shared_by_those_with_the_same_salt() {
    let s = Server::new(Config::default());
    let mut cached = vec![];
    for salt in [json!(null), json!("a"), json!("a"), json!("b"), json!(null)] {
        let json = s.complete(json!({"prompt": "x".repeat(40), "max_tokens": 1, "cache_salt": salt})).await.json();
        cached.push(json["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap());
    }
    assert_eq!(cached, [0, 0, 32, 0, 32]);
}

#[tokio::test]
async fn usage_comes_with_every_chunk_where_asked_for() {
    let s = Server::new(Config::default());
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let request = json!({"prompt": "abc", "max_tokens": 5, "stream": true, "stream_options": options});
    let events = s.complete(request).await.events();
    let counts: Vec<u64> = events.iter().map(|e| e["usage"]["completion_tokens"].as_u64().unwrap()).collect();
    assert!(
        counts.is_sorted() && counts.last() == Some(&5) && events.last().unwrap()["choices"] == json!([]),
        "{counts:?}"
    );
}

#[tokio::test]
async fn whole_numbers_are_integers_however_they_are_written() {
    let s = Server::new(Config::default());
    let answer =
        s.post("/v1/completions", r#"{"prompt": [97.0, 98], "max_tokens": 3.0, "stop_token_ids": [1e1]}"#).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["usage"]["completion_tokens"]), (200, &json!(3)));
    assert_eq!(s.complete(json!({"prompt": [97.5]})).await.error(), (400, "prompt".into()));
    assert_eq!(s.complete(json!({"prompt": "a", "max_tokens": 3.5})).await.error(), (400, "max_tokens".into()));
}

#[tokio::test]
async fn methods_are_as_http_has_them() {
    let s = Server::new(Config::default());
    let send = async |method: &str, path: &str| {
        s.answer(Request::builder().method(method).uri(path).body(Body::empty()).unwrap()).await
    };
    for path in ["/health", "/ping", "/v1/models", "/version", "/"] {
        let answer = send("HEAD", path).await;
        assert_eq!((answer.status.as_u16(), answer.text.as_str()), (200, ""), "{path}");
    }
    assert_eq!(send("POST", "/ping").await.status.as_u16(), 200);
    for (path, allowed) in [("/v1/models", "GET,HEAD"), ("/v1/completions", "POST"), ("/tokenize", "POST")] {
        let answer = send("DELETE", path).await;
        assert_eq!((answer.error().0, answer.headers["allow"].to_str().unwrap()), (405, allowed), "{path}");
    }
    assert_eq!(send("GET", "/v1/embeddings").await.error().0, 404);
}

#[tokio::test]
async fn models_are_told_as_vllm_tells_them() {
    let card = Server::new(Config::default()).get("/v1/models/mock").await.json();
    let permission = &card["permission"][0];
    assert_eq!((&card["object"], &card["parent"], &card["root"]), (&json!("model"), &Value::Null, &json!("root")));
    assert!(permission["id"].as_str().unwrap().starts_with("modelperm-"));
    for (name, value) in
        [("allow_sampling", true), ("allow_logprobs", true), ("allow_view", true), ("is_blocking", false)]
    {
        assert_eq!(permission[name], value, "{name}");
    }
    assert_eq!((&permission["object"], &permission["organization"]), (&json!("model_permission"), &json!("*")));
}

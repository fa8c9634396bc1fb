//! What requests are answered.

use crate::client::{Server, said};
use rvllm_engine::SamplingParams;
use rvllm_server::{Config, api::sampling::Sampling, mock};
use serde_json::{Value, json};
use utoipa::PartialSchema;

fn server() -> Server {
    Server::new(Config::default())
}

fn texts(answer: &Value) -> Vec<&str> {
    answer["choices"].as_array().unwrap().iter().map(|c| c["text"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_completion_has_what_openai_says() {
    let answer = server().complete(json!({"model": "alias", "prompt": "hello", "max_tokens": 7})).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let json = answer.json();
    assert_eq!(texts(&json), [said(5, 7)]);
    assert_eq!((&json["object"], &json["model"]), (&json!("text_completion"), &json!("alias")));
    let choice = &json["choices"][0];
    assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("length"), &Value::Null));
    let usage = json!({"prompt_tokens": 5, "total_tokens": 12, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 0}});
    assert_eq!(json["usage"], usage);
    let id = answer.headers["x-request-id"].to_str().unwrap();
    assert_eq!(json["id"], format!("cmpl-{id}"));
}

#[tokio::test]
async fn prompts_come_in_four_forms() {
    let s = server();
    for (prompt, lengths) in [
        (json!("abc"), vec![3]),
        (json!(["abc", "defgh"]), vec![3, 5]),
        (json!([97, 98]), vec![2]),
        (json!([[97], [98, 99, 100]]), vec![1, 3]),
    ] {
        let json = s.complete(json!({"prompt": prompt})).await.json();
        let expected: Vec<String> = lengths.into_iter().map(|n| said(n, 16)).collect();
        assert_eq!(texts(&json), expected);
        let indices: Vec<u64> =
            json["choices"].as_array().unwrap().iter().map(|c| c["index"].as_u64().unwrap()).collect();
        assert_eq!(indices, (0..expected.len() as u64).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn pieces_joined_are_the_whole() {
    let s = server();
    let request = json!({"prompt": ["ab", "c"], "n": 2, "temperature": 1.0, "seed": 3, "max_tokens": 20, "logprobs": 2,
        "echo": true, "return_token_ids": true, "stop": "fox"});
    let whole = s.complete(request.clone()).await.json();
    let mut streamed = request;
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({"include_usage": true});
    let events = s.complete(streamed).await.events();
    let (last, pieces) = events.split_last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]["total_tokens"]), (&json!([]), &whole["usage"]["total_tokens"]));
    for choice in whole["choices"].as_array().unwrap() {
        let mine = || pieces.iter().map(|p| &p["choices"][0]).filter(|c| c["index"] == choice["index"]);
        let text: String = mine().map(|c| c["text"].as_str().unwrap()).collect();
        let join = |path: &str| -> Vec<Value> {
            mine().filter_map(|c| c.pointer(path)?.as_array()).flatten().cloned().collect()
        };
        assert_eq!(choice["text"], text);
        for path in
            ["/token_ids", "/logprobs/tokens", "/logprobs/text_offset", "/logprobs/top_logprobs", "/prompt_token_ids"]
        {
            assert_eq!(choice.pointer(path).unwrap(), &Value::Array(join(path)), "{path}");
        }
        let finish: Vec<&Value> = mine().map(|c| &c["finish_reason"]).filter(|f| !f.is_null()).collect();
        assert_eq!(finish, [&choice["finish_reason"]]);
    }
}

#[tokio::test]
async fn logprobs_and_echo_are_about_each_token() {
    let json = server().complete(json!({"prompt": "He", "max_tokens": 2, "logprobs": 1, "echo": true})).await.json();
    let choice = &json["choices"][0];
    assert_eq!(choice["text"], format!("He{}", said(2, 2)));
    let logprobs = &choice["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["H", "e", &said(2, 1), &said(3, 1)]));
    assert_eq!((&logprobs["text_offset"], &logprobs["token_logprobs"][0]), (&json!([0, 1, 2, 3]), &Value::Null));
    let (unlikely, likely) =
        (logprobs["token_logprobs"][1].as_f64().unwrap(), logprobs["token_logprobs"][2].as_f64().unwrap());
    assert!(unlikely < -15.0 && (-0.01..=0.0).contains(&likely), "{unlikely} {likely}");
    assert_eq!(logprobs["top_logprobs"][1].as_object().unwrap().len(), 2, "the token itself and the likeliest");
}

#[tokio::test]
async fn echo_alone_scores_a_prompt() {
    let request = json!({"prompt": "He", "max_tokens": 0, "logprobs": 0, "echo": true});
    let json = server().complete(request).await.json();
    assert_eq!((&json["choices"][0]["text"], &json["usage"]["completion_tokens"]), (&json!("He"), &json!(0)));
    assert_eq!(json["choices"][0]["logprobs"]["tokens"], json!(["H", "e"]));
}

#[tokio::test]
async fn the_best_of_several_is_the_likeliest() {
    let s = server();
    let request = |n: u32, best: u32| json!({"prompt": "ab", "n": n, "best_of": best, "temperature": 8.0, "seed": 1, "ignore_eos": true, "max_tokens": 6, "logprobs": 0});
    let mean = |c: &Value| {
        c["logprobs"]["token_logprobs"].as_array().unwrap().iter().map(|l| l.as_f64().unwrap()).sum::<f64>()
    };
    let all = s.complete(request(6, 6)).await.json();
    let best = s.complete(request(1, 6)).await.json();
    let likeliest = all["choices"].as_array().unwrap().iter().map(mean).fold(f64::NEG_INFINITY, f64::max);
    assert_eq!(best["choices"].as_array().unwrap().len(), 1);
    assert!((mean(&best["choices"][0]) - likeliest).abs() < 1e-9);
    assert_eq!(best["usage"]["completion_tokens"], 36);
}

#[tokio::test]
async fn a_chat_goes_through_the_template() {
    let s = server();
    let messages = json!([{"role": "user", "content": [{"type": "text", "text": "hi"}]}]);
    let request = json!({"messages": messages, "max_completion_tokens": 5, "logprobs": true, "top_logprobs": 2,
        "return_token_ids": true, "return_prompt_text": true});
    let json = s.chat(request.clone()).await.json();
    let choice = &json["choices"][0];
    // <s>user: hi</s><s>assistant: : three special tokens among 6 + 2 + 11 bytes.
    assert_eq!(json["prompt_text"], "<s>user: hi</s><s>assistant: ");
    let prompt = json["prompt_token_ids"].as_array().unwrap().len();
    assert_eq!((prompt, &json["usage"]["prompt_tokens"]), (22, &json!(22)));
    assert_eq!(choice["message"], json!({"role": "assistant", "content": said(22, 5)}));
    assert_eq!(choice["logprobs"]["content"].as_array().unwrap().len(), 5);
    let first = &choice["logprobs"]["content"][0];
    assert_eq!(
        (first["token"].as_str().unwrap(), &first["top_logprobs"][0]["token"]),
        (said(22, 1).as_str(), &first["token"])
    );
    assert_eq!(first["top_logprobs"].as_array().unwrap().len(), 2);

    let mut streamed = request;
    streamed["stream"] = json!(true);
    let events = s.chat(streamed).await.events();
    assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let text: String = events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, said(22, 5));
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "length");
    assert!(events.iter().all(|e| e["object"] == "chat.completion.chunk" && e.get("usage").is_none()));
}

#[tokio::test]
async fn a_chat_may_bring_its_template_and_continue_its_last_message() {
    let s = server();
    let messages = json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": "So"}]);
    let json = s
        .post(
            "/tokenize",
            json!({"messages": messages, "chat_template": "{{ x }}{{ messages[0].content }}",
        "chat_template_kwargs": {"x": "yy"}}),
        )
        .await
        .json();
    assert_eq!((&json["tokens"], &json["count"]), (&json!([121, 121, 113]), &json!(3)));
    let open = json!({"messages": messages, "add_generation_prompt": false, "continue_final_message": true, "echo": true, "max_tokens": 2,
        "return_prompt_text": true});
    let json = s.chat(open).await.json();
    assert!(json["prompt_text"].as_str().unwrap().ends_with("assistant: So"), "{json}");
    assert!(json["choices"][0]["message"]["content"].as_str().unwrap().starts_with("So"));
}

#[tokio::test]
async fn stops_say_what_stopped() {
    let s = server();
    let json = s.complete(json!({"prompt": "a", "stop": ["brown"], "max_tokens": 60})).await.json();
    assert_eq!(
        (&json["choices"][0]["finish_reason"], &json["choices"][0]["stop_reason"]),
        (&json!("stop"), &json!("brown"))
    );
    assert_eq!(texts(&json), ["he quick "]);
    let json = s.complete(json!({"prompt": "a", "stop_token_ids": [113], "max_tokens": 60})).await.json();
    assert_eq!(json["choices"][0]["stop_reason"], 113);
    let json = s.complete(json!({"prompt": "a", "logit_bias": {"257": 100}, "max_tokens": 60})).await.json();
    assert_eq!(
        (&json["choices"][0]["finish_reason"], &json["choices"][0]["stop_reason"]),
        (&json!("stop"), &Value::Null)
    );
}

#[tokio::test]
async fn prompts_are_truncated_at_either_end() {
    let s = server();
    for (side, kept) in [("left", "de"), ("right", "ab")] {
        let request =
            json!({"prompt": "abcde", "truncate_prompt_tokens": 2, "truncation_side": side, "return_token_ids": true});
        let json = s.complete(request).await.json();
        let ids: Vec<u64> = kept.bytes().map(u64::from).collect();
        assert_eq!(json["choices"][0]["prompt_token_ids"], json!(ids), "{side}");
    }
}

#[tokio::test]
async fn text_becomes_tokens_and_text_again() {
    let s = server();
    let json = s.post("/tokenize", json!({"prompt": "é<sep>", "return_token_strs": true})).await.json();
    assert_eq!((&json["tokens"], &json["max_model_len"]), (&json!([195, 169, 258]), &json!(256)));
    assert_eq!(json["token_strs"][2], "<sep>");
    let json = s.post("/detokenize", json!({"tokens": [195, 169, 258]})).await.json();
    assert_eq!(json["prompt"], "é<sep>");
}

#[tokio::test]
async fn models_and_small_routes() {
    let s = server();
    let json = s.get("/v1/models").await.json();
    let ids: Vec<&str> = json["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!((ids, &json["data"][0]["max_model_len"]), (vec!["mock", "alias"], &json!(256)));
    assert_eq!(json["data"][0]["artifact"]["kv_cache_tokens"], 64 * 16);
    assert_eq!(s.get("/v1/models/alias").await.json()["id"], "alias");
    assert_eq!(s.get("/v1/models/other").await.error(), (404, "model".into()));
    assert_eq!(s.get("/version").await.json()["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(s.get("/load").await.json(), json!({"server_load": 0, "running": 0, "waiting": 0}));
    assert_eq!((s.get("/health").await.status, s.get("/ready").await.status), (200.into_status(), 200.into_status()));
    assert!(s.get("/").await.text.contains("<title>") && s.get("/docs").await.text.contains("openapi.json"));
}

trait IntoStatus {
    fn into_status(self) -> axum::http::StatusCode;
}

impl IntoStatus for u16 {
    fn into_status(self) -> axum::http::StatusCode {
        axum::http::StatusCode::from_u16(self).unwrap()
    }
}

#[test]
fn every_sampling_parameter_of_the_engine_is_a_field() {
    let mut fields = rvllm_server::api::request::names(&[Sampling::schema()]);
    // Each kind of request has its own rules for these; text is always wanted.
    fields.extend(
        ["max_tokens", "logprobs", "truncate_prompt_tokens", "detokenize", "structured_outputs"].map(String::from),
    );
    fields.sort();
    let mut params = SamplingParams::names();
    params.sort();
    assert_eq!(fields, params);
    assert!(mock::TEXT.is_ascii());
}

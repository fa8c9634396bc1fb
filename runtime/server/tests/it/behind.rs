//! What platforms ask for: SageMaker's route, a proxy's path, the tokenizer's configuration, and the server's own interval.

use crate::client::{Server, post};
use rvllm_server::Config;
use serde_json::json;

#[tokio::test]
async fn invocations_are_completions_and_chats() {
    let s = Server::new(Config { api_keys: vec!["k".into()], ..Config::default() });
    assert_eq!(s.post("/invocations", json!({"prompt": "a"})).await.status, 401);
    let s = Server::new(Config::default());
    let text = s.post("/invocations", json!({"prompt": "a", "max_tokens": 2, "x": 1})).await;
    assert_eq!((text.json()["object"].as_str(), text.headers.contains_key("warning")), (Some("text_completion"), true));
    let messages = json!([{"role": "user", "content": "a"}]);
    let chat = s.post("/invocations", json!({"messages": messages, "max_tokens": 2})).await;
    assert_eq!(chat.json()["object"], "chat.completion");
    for (body, status) in [("{", 400), ("[]", 400), ("{\"messages\": []}", 400), ("{}", 400)] {
        assert_eq!(s.post("/invocations", body).await.error().0, status, "{body}");
    }
    let small = Server::new(Config { max_body_bytes: 10, ..Config::default() });
    assert_eq!(small.post("/invocations", "{\"prompt\": \"a\"}").await.error().0, 413);
}

#[tokio::test]
async fn routes_are_under_the_path_of_a_proxy_too() {
    let keys = vec!["k".to_string()];
    let s = Server::new(Config { root_path: "/llm/a".into(), api_keys: keys, ..Config::default() });
    for (path, status) in [("/llm/a/health", 200), ("/health", 200), ("/llm/a/v1/models", 401), ("/v1/models", 401)] {
        assert_eq!(s.get(path).await.status.as_u16(), status, "{path}");
    }
    let open = Server::new(Config { root_path: "/llm/a".into(), ..Config::default() });
    let answer = open.answer(post("/llm/a/v1/completions", json!({"prompt": "a", "max_tokens": 1}))).await;
    assert_eq!((answer.status.as_u16(), answer.headers.contains_key("x-request-id")), (200, true));
    assert_eq!(open.get("/openapi.json").await.json()["servers"][0]["url"], "/llm/a");
    for page in ["/llm/a", "/llm/a/", "/llm/a?x=y", "/"] {
        assert!(open.get(page).await.text.starts_with("<!doctype html>"), "{page}");
    }
    assert_eq!(open.get("/llm/ab").await.error().0, 404);
    assert_eq!(open.get("/llm/a/nowhere").await.error().0, 404);
    assert_eq!(open.get("/elsewhere/health").await.error().0, 404);
}

#[tokio::test]
async fn the_tokenizers_configuration_is_told_where_asked_for() {
    assert_eq!(Server::new(Config::default()).get("/tokenizer_info").await.error().0, 404);
    let s = Server::new(Config { tokenizer_info: true, ..Config::default() });
    let info = s.get("/tokenizer_info").await.json();
    assert!(info["chat_template"].as_str().unwrap().contains("messages"), "{info}");
}

#[tokio::test]
async fn pieces_are_as_long_as_the_server_says_where_requests_do_not() {
    let s = Server::new(Config { stream_interval: 4, ..Config::default() });
    let asks = |interval| json!({"prompt": "a", "max_tokens": 9, "stream": true, "stream_interval": interval});
    let pieces = |answer: crate::client::Answer| answer.events().len();
    assert_eq!(pieces(s.complete(asks(json!(null))).await), 3);
    assert_eq!(pieces(s.complete(asks(json!(1))).await), 9);
}

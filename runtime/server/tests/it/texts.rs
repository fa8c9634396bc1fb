//! Text is made beside the engine: what fails there fails alone, and what is asked of it is honoured.

use crate::client::{Server, limits, post, said};
use rvllm_engine::{Decode, Engine, Tokenizer, TokenizerError};
use rvllm_server::{Config, mock};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

/// A decoder that panics at the tokens of `~`.
struct Faulty(Arc<Tokenizer>);

impl Decode for Faulty {
    fn decode(&self, token_ids: &[u32], skip_special_tokens: bool) -> Result<String, TokenizerError> {
        assert!(!token_ids.contains(&u32::from(b'~')), "an injected fault");
        self.0.decode(token_ids, skip_special_tokens)
    }

    fn is_added(&self, id: u32) -> bool {
        self.0.is_added(id)
    }

    fn is_special(&self, id: u32) -> bool {
        self.0.is_special(id)
    }
}

#[tokio::test]
async fn a_panic_in_one_requests_text_fails_that_request_alone() {
    let forward = mock::MockForward::new(limits(), Duration::from_millis(2));
    let engine: Engine = mock::engine(Box::new(forward)).unwrap();
    let tokenizer = engine.tokenizer().unwrap().clone();
    let (s, _) = Server::with_decoder(Config::default(), engine, Arc::new(Faulty(tokenizer)));
    // After some tokens, `~` is all that may be said.
    let faulty = |stream: bool| {
        json!({"prompt": "a", "max_tokens": 50, "stream": stream,
        "logit_bias": {"126": 19.0}, "frequency_penalty": 2.0})
    };
    let good = |i: usize| json!({"prompt": "x".repeat(i + 1), "max_tokens": 60});
    let goods = async { futures_util::future::join_all((0..3).map(|i| s.complete(good(i)))).await };
    let (failed, streamed, answers) = tokio::join!(s.complete(faulty(false)), s.complete(faulty(true)), goods);
    assert_eq!(failed.error(), (500, String::new()));
    let events = streamed.events();
    assert!(events.len() > 1 && events.last().unwrap()["error"]["code"] == 500, "{events:?}");
    for (i, answer) in answers.iter().enumerate() {
        assert_eq!(answer.json()["choices"][0]["text"], said(i + 1, 60));
    }
    let prompt = json!({"prompt": "~", "max_tokens": 2});
    assert_eq!(s.complete(prompt).await.error().0, 500);
    s.idle().await;
    assert_eq!((s.get("/health").await.status.as_u16(), s.get("/ready").await.status.as_u16()), (200, 200));
    assert_eq!(s.complete(good(0)).await.status, 200);
}

#[tokio::test]
async fn usage_ends_where_the_text_does() {
    let s = Server::slow(Config::default());
    let request = json!({"prompt": "a", "stop": ["brown"], "max_tokens": 200, "return_token_ids": true, "logprobs": 0});
    let json = s.complete(request).await.json();
    let choice = &json["choices"][0];
    assert_eq!((&choice["text"], &choice["stop_reason"]), (&json!("he quick "), &json!("brown")));
    assert_eq!(json["usage"]["completion_tokens"], 14);
    assert_eq!(choice["token_ids"].as_array().unwrap().len(), 14);
    assert_eq!(choice["logprobs"]["tokens"].as_array().unwrap().len(), 14);
    s.idle().await;
    let metrics = s.get("/metrics").await.text;
    let stopped = |l: &str| l.starts_with("vllm:request_success_total{") && l.contains("\"stop\"") && l.ends_with(" 1");
    assert!(metrics.lines().any(stopped), "{metrics}");
}

#[tokio::test]
async fn a_client_says_how_long_it_waits() {
    let s = Server::slow(Config { request_timeout: Some(Duration::from_secs(60)), ..Config::default() });
    let timed = |stream: bool, time: &str| {
        let body = json!({"prompt": "a", "max_tokens": 200, "ignore_eos": true, "stream": stream});
        let mut request = post("/v1/completions", body);
        request.headers_mut().insert("x-request-timeout", time.parse().unwrap());
        request
    };
    assert_eq!(s.answer(timed(false, "0.06")).await.error().0, 408);
    let events = s.answer(timed(true, "0.06")).await.events();
    assert!(events.len() > 1 && events.last().unwrap()["error"]["code"] == 408);
    assert_eq!(s.answer(timed(false, "1e9")).await.status, 200);
    for wrong in ["soon", "0", "-1", "nan", "inf"] {
        assert_eq!(s.answer(timed(false, wrong)).await.error(), (400, "x-request-timeout".into()), "{wrong}");
    }
    s.idle().await;
}

#[tokio::test]
async fn pieces_of_a_stream_hold_as_many_tokens_as_asked_for() {
    let s = Server::new(Config::default());
    let request =
        json!({"prompt": "a", "max_tokens": 12, "stream": true, "stream_interval": 5, "return_token_ids": true});
    let events = s.complete(request).await.events();
    let sizes: Vec<usize> = events.iter().map(|e| e["choices"][0]["token_ids"].as_array().unwrap().len()).collect();
    assert_eq!(sizes, [1, 5, 5, 1]);
    let text: String = events.iter().map(|e| e["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(text, said(1, 12));
}

#[tokio::test]
async fn named_tokens_have_their_log_probabilities() {
    let s = Server::new(Config { max_logprobs: -1, ..Config::default() });
    let chat = json!({"messages": [{"role": "user", "content": "q"}], "max_tokens": 2, "logprobs": true, "top_logprobs": 1,
        "logprob_token_ids": [65, 66], "return_tokens_as_token_ids": true});
    let json = s.chat(chat.clone()).await.json();
    let top = json["choices"][0]["logprobs"]["content"][0]["top_logprobs"].as_array().unwrap().clone();
    let names: Vec<&Value> = top.iter().map(|t| &t["token"]).collect();
    assert_eq!(names.len(), 3);
    assert!(names.contains(&&json!("token_id:65")) && names.contains(&&json!("token_id:66")), "{names:?}");
    let mut all = chat;
    all["top_logprobs"] = json!(-1);
    let json = s.chat(all).await.json();
    assert_eq!(json["choices"][0]["logprobs"]["content"][0]["top_logprobs"].as_array().unwrap().len(), 259);
}

#[tokio::test]
async fn an_answer_that_repeats_itself_ends() {
    let s = Server::new(Config::default());
    let request = json!({"prompt": "a", "max_tokens": 100, "allowed_token_ids": [65],
        "repetition_detection": {"max_pattern_size": 1, "min_count": 4}});
    let json = s.complete(request).await.json();
    let choice = &json["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("AAAA"), &json!("repetition")));
    assert_eq!(choice["stop_reason"], "repetition_detected");
}

//! Beam search over HTTP.

use crate::client::{Server, said};
use rvllm_server::Config;
use serde_json::{Value, json};

fn choices(answer: &Value) -> Vec<Value> {
    answer["choices"].as_array().unwrap().clone()
}

/// The sum of a choice's log-probabilities.
fn likelihood(choice: &Value) -> f64 {
    choice["logprobs"]["token_logprobs"].as_array().unwrap().iter().map(|l| l.as_f64().unwrap()).sum()
}

#[tokio::test]
async fn beams_come_with_the_best_first() {
    let s = Server::new(Config::default());
    let request =
        json!({"prompt": "ab", "n": 3, "use_beam_search": true, "temperature": 0, "max_tokens": 6, "logprobs": 0});
    let answer = s.complete(request.clone()).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let json = answer.json();
    let all = choices(&json);
    assert_eq!(all.iter().map(|c| c["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(all[0]["text"], said(2, 6));
    let sums: Vec<f64> = all.iter().map(likelihood).collect();
    assert!(sums[0] > -0.1 && sums.windows(2).all(|w| w[0] >= w[1]), "{sums:?}");
    assert_eq!(json["usage"]["completion_tokens"], 18);
    assert_eq!(s.complete(request).await.json().named_as(&json), json);
}

/// Answers differ in their names and times alone.
trait Named {
    fn named_as(self, of: &Value) -> Value;
}

impl Named for Value {
    fn named_as(mut self, of: &Value) -> Value {
        for name in ["id", "created", "usage"] {
            self[name] = of[name].clone();
        }
        self
    }
}

#[tokio::test]
async fn a_stream_has_each_beam_whole() {
    let s = Server::new(Config::default());
    let mut request = json!({"messages": [{"role": "user", "content": "q"}], "n": 2, "use_beam_search": true,
        "max_tokens": 5, "length_penalty": 0.5});
    let whole = choices(&s.chat(request.clone()).await.json());
    request["stream"] = json!(true);
    let events = s.chat(request).await.events();
    for choice in &whole {
        let mine = events.iter().map(|e| &e["choices"][0]).filter(|c| c["index"] == choice["index"]);
        let texts: Vec<&str> = mine.filter_map(|c| c["delta"]["content"].as_str()).filter(|t| !t.is_empty()).collect();
        assert_eq!(texts, [choice["message"]["content"].as_str().unwrap()]);
    }
}

#[tokio::test]
async fn of_more_beams_the_best_are_given() {
    let s = Server::new(Config::default());
    let request = |n: u32, best_of: u32| json!({"prompt": "ab", "n": n, "best_of": best_of, "use_beam_search": true, "max_tokens": 4});
    let (two, four) = (s.complete(request(2, 4)).await.json(), s.complete(request(4, 4)).await.json());
    assert_eq!(choices(&two), choices(&four)[..2]);
}

#[tokio::test]
async fn what_beams_cannot_do_is_named() {
    let s = Server::new(Config::default());
    let wide = json!({"prompt": "a".repeat(100), "n": 100, "use_beam_search": true, "max_tokens": 100});
    assert_eq!(s.complete(wide).await.error(), (400, "n".into()));
    assert_eq!(s.complete(json!({"prompt": "a", "length_penalty": 2})).await.error(), (400, "length_penalty".into()));
    let stopped = json!({"prompt": "a", "n": 2, "use_beam_search": true, "stop": "brown", "max_tokens": 60});
    let json = s.complete(stopped).await.json();
    assert_eq!(
        (&json["choices"][0]["text"], &json["choices"][0]["stop_reason"]),
        (&json!("he quick "), &json!("brown"))
    );
}

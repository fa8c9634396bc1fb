//! Answers that have a form: by every name that asks for one, at once and in pieces, and what is refused.

use crate::client::Server;
use rvllm_server::Config;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

fn completion(name: &str, value: Value) -> Value {
    json!({"prompt": "a", "max_tokens": 200, name: value})
}

fn chat(name: &str, value: Value) -> Value {
    json!({"messages": [{"role": "user", "content": "a"}], name: value})
}

/// A name, what it asks for, and whether a text has that form.
type Form = (&'static str, Value, fn(&str) -> bool);

fn forms() -> Vec<Form> {
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer", "maximum": 9, "minimum": 0}},
        "required": ["a"], "additionalProperties": false});
    fn is_a(text: &str) -> bool {
        serde_json::from_str::<Value>(text).is_ok_and(|v| v["a"].as_u64().is_some_and(|a| a < 10))
    }
    fn digits(text: &str) -> bool {
        text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit())
    }
    fn chosen(text: &str) -> bool {
        text == "ja" || text == "nein"
    }
    let named =
        |schema: &Value| json!({"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": schema}});
    vec![
        ("response_format", named(&schema), is_a),
        ("response_format", json!({"type": "text"}), |_| true),
        ("structured_outputs", json!({"json": schema}), is_a),
        ("structured_outputs", json!({"json": schema.to_string(), "disable_any_whitespace": true}), is_a),
        ("structured_outputs", json!({"regex": "[0-9]{5}"}), digits),
        ("structured_outputs", json!({"choice": ["ja", "nein"]}), chosen),
        ("structured_outputs", json!({"grammar": "start: /[0-9]{5}/"}), digits),
        ("structured_outputs", json!({"grammar": "root ::= [0-9]{5}"}), digits),
        ("guided_json", schema, is_a),
        ("guided_regex", json!("[0-9]{5}"), digits),
        ("guided_choice", json!(["ja", "nein"]), chosen),
        ("guided_grammar", json!("root ::= [0-9]{5}"), digits),
    ]
}

#[tokio::test]
async fn every_name_gives_the_form_it_asks_for() {
    let s = Server::new(Config::default());
    for (name, value, holds) in forms() {
        let answer = s.complete(completion(name, value.clone())).await.json();
        let choice = &answer["choices"][0];
        assert!(holds(choice["text"].as_str().unwrap()), "{value}: {choice}");
        let whole = s.chat(chat(name, value.clone())).await.json();
        let text = whole["choices"][0]["message"]["content"].as_str().unwrap().to_string();
        assert!(holds(&text), "{value}: {whole}");
        let mut request = chat(name, value);
        request["stream"] = json!(true);
        let events = s.chat(request).await.events();
        let deltas = events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str());
        assert_eq!(deltas.collect::<String>(), text);
    }
}

#[tokio::test]
async fn an_answer_that_has_its_form_has_stopped() {
    let s = Server::new(Config::default());
    let answer = s
        .complete(json!({"prompt": ["a", "b"], "n": 2, "temperature": 1, "max_tokens": 5,
        "structured_outputs": {"regex": "x{5}"}, "logprobs": 1}))
        .await
        .json();
    for choice in answer["choices"].as_array().unwrap() {
        assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("xxxxx"), &json!("stop")));
        assert_eq!(choice["logprobs"]["tokens"].as_array().unwrap().len(), 5);
    }
    assert_eq!(answer["choices"].as_array().unwrap().len(), 4);
}

#[tokio::test]
async fn forms_that_cannot_be_followed_are_refused_by_name() {
    let s = Server::new(Config::default());
    for (name, value, words) in [
        ("response_format", json!({"type": "yaml"}), "of type \"yaml\""),
        ("response_format", json!({"type": "json_schema"}), "needs json_schema.schema"),
        ("response_format", json!({"type": "structural_tag"}), "needs either format or structures"),
        ("structured_outputs", json!({}), "asked for by none"),
        ("structured_outputs", json!({"json": {}, "regex": "a"}), "asked for by json and regex"),
        ("structured_outputs", json!({"json": {"items": {"not": {}}}}), "keyword not at /items"),
        ("structured_outputs", json!({"json": {"pattern": "(a)\\1"}}), "keyword pattern at the root"),
        ("structured_outputs", json!({"json": "{"}), "it is no JSON"),
        ("structured_outputs", json!({"regex": "("}), "regular expression"),
        ("structured_outputs", json!({"grammar": "root ::= x"}), "there is no rule x"),
        ("structured_outputs", json!({"choice": []}), "the list is empty"),
        ("guided_json", json!({"uniqueItems": true}), "keyword uniqueItems"),
        ("guided_decoding_backend", json!("mine"), "none of auto"),
    ] {
        for answer in [s.complete(completion(name, value.clone())).await, s.chat(chat(name, value.clone())).await] {
            assert_eq!(answer.error(), (400, name.to_string()), "{value}");
            let message = answer.json()["error"]["message"].as_str().unwrap().to_string();
            assert!(message.contains(words), "{message}");
        }
    }
    let mut two = completion("guided_regex", json!("a"));
    two["structured_outputs"] = json!({"regex": "b"});
    assert_eq!(s.complete(two).await.error(), (400, "guided_regex".into()));
    s.idle().await;
}

#[tokio::test]
async fn the_older_options_say_how_json_is_written() {
    let s = Server::new(Config::default());
    let mut request = completion("guided_json", json!({"enum": [[1, 2]]}));
    request["guided_decoding_backend"] = json!("xgrammar:disable-any-whitespace,no-fallback");
    assert_eq!(s.complete(request.clone()).await.json()["choices"][0]["text"], "[1,2]");
    request["guided_decoding_backend"] = json!("auto");
    request["guided_whitespace_pattern"] = json!("_");
    let text = s.complete(request).await.json()["choices"][0]["text"].as_str().unwrap().replace('_', "");
    assert_eq!(text, "[1,2]");
}

/// Grammars made to take long, or much memory, or all of a stack.
fn hostile() -> Vec<Value> {
    let choices: Vec<String> = (0..100_000).map(|i| format!("choice {i:06}")).collect();
    let wide: serde_json::Map<String, Value> =
        (0..8000).map(|i| (format!("property {i}"), json!({"type": "string", "maxLength": i}))).collect();
    let product = json!({"allOf": vec![json!({"anyOf": (0..20).map(|i| json!({"properties": {format!("p{i}"): {"enum": [i]}}})).collect::<Vec<_>>()}); 12]});
    let nested = (0..100).fold(json!({}), |inner, _| json!({"items": inner}));
    let loops = json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}});
    let mutual = json!({"anyOf": [{"$ref": "#"}, {"$ref": "#"}]});
    vec![
        json!({"choice": choices}),
        json!({"regex": "(a*)*(a*)*(a*)*b"}),
        json!({"regex": "(.*a.{0,200}){50}"}),
        json!({"regex": "((((a{1,100}){1,100}){1,100}){1,100}){1,100}"}),
        json!({"regex": "(?:a?){2000}a{2000}"}),
        json!({"regex": "(".repeat(50_000)}),
        json!({"regex": "x".repeat(400_000)}),
        json!({"json": {"properties": wide}}),
        json!({"json": product}),
        json!({"json": nested}),
        json!({"json": loops}),
        json!({"json": mutual}),
        json!({"json": {"maxItems": 4_000_000_000u64, "minItems": 3_000_000_000u64}}),
        json!({"json": {"maxLength": 4_000_000_000u64, "type": "string"}}),
        json!({"grammar": "root ::= root root | \"a\" | \"\""}),
        json!({"grammar": format!("root ::= {}", "(\"a\" | \"b\") ".repeat(20_000))}),
        json!({"grammar": "root ::= a{100000}\na ::= b{100000}\nb ::= \"x\"{100000}"}),
        json!({"grammar": format!("start: {}", "(".repeat(150))}),
        json!({"grammar": "start: start start start | /a/ |"}),
    ]
}

#[tokio::test]
async fn hostile_forms_are_answered_and_hold_up_nobody() {
    let s = Server::new(Config::default());
    for value in hostile() {
        let (excerpt, start) = (value.to_string().chars().take(80).collect::<String>(), Instant::now());
        let mut request = completion("structured_outputs", value);
        request["max_tokens"] = json!(20);
        let asked = s.complete(request);
        let other = async {
            let start = Instant::now();
            s.complete(json!({"prompt": "a", "max_tokens": 5})).await.json();
            start.elapsed()
        };
        let (answer, others) = tokio::join!(asked, other);
        assert!([200, 400].contains(&answer.status.as_u16()), "{excerpt}: {}", answer.text);
        assert!(start.elapsed() < Duration::from_secs(30), "{excerpt}: {:?}", start.elapsed());
        assert!(others < Duration::from_secs(10), "{excerpt}: another request took {others:?}");
    }
    s.idle().await;
}

#[tokio::test]
async fn large_forms_are_refused_by_their_size() {
    let s = Server::new(Config { max_grammar_bytes: 1000, ..Config::default() });
    let answer = s.complete(completion("guided_choice", json!(vec!["x"; 1000]))).await;
    assert_eq!(answer.error(), (400, "guided_choice".into()));
    assert!(answer.text.contains("--max-grammar-size"));
}

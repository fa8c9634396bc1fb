//! Keys, origins, names.

use crate::client::Server;
use axum::{body::Body, http::Request};
use base64::{Engine, engine::general_purpose::STANDARD};
use rvllm_server::{Config, Cors};

fn request(method: &str, path: &str, authorization: Option<&str>) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path);
    if let Some(value) = authorization {
        request = request.header("authorization", value);
    }
    request.body(Body::empty()).unwrap()
}

#[tokio::test]
async fn every_route_but_probes_needs_a_key() {
    let keys = vec!["one".to_string(), "two".to_string()];
    let s = Server::new(Config { api_keys: keys.clone(), tokenizer_info: true, ..Config::default() });
    let basic = format!("Basic {}", STANDARD.encode("me:two"));
    let mut guarded = vec![("GET", "/nowhere"), ("POST", "/v1/models"), ("GET", "/")];
    for (path, methods) in
        s.answer(request("GET", "/openapi.json", Some("Bearer one"))).await.json()["paths"].as_object().unwrap()
    {
        let open = ["/health", "/ping", "/ready", "/metrics"].contains(&path.as_str());
        for method in methods.as_object().unwrap().keys() {
            let method = method.to_uppercase();
            if open {
                assert_eq!(s.answer(request(&method, path, None)).await.status, 200, "{path}");
            } else {
                guarded.push((if method == "GET" { "GET" } else { "POST" }, Box::leak(path.clone().into_boxed_str())));
            }
        }
    }
    assert!(guarded.len() >= 12);
    for (method, path) in guarded {
        for wrong in [None, Some("Bearer three"), Some("Bearer "), Some("one")] {
            let answer = s.answer(request(method, path, wrong)).await;
            assert_eq!(answer.error().0, 401, "{method} {path} {wrong:?}");
            assert!(answer.headers.contains_key("www-authenticate"));
        }
        for right in ["Bearer one", "Bearer two", basic.as_str()] {
            assert_ne!(s.answer(request(method, path, Some(right))).await.status, 401, "{method} {path} {right}");
        }
    }
    let closed = Server::new(Config { api_keys: keys, guard_metrics: true, ..Config::default() });
    assert_eq!(closed.get("/metrics").await.status, 401);
}

#[tokio::test]
async fn other_origins_are_let_in_where_configured() {
    let all = |v: &str| vec![v.to_string()];
    let cors = Cors { origins: all("http://a.example"), methods: all("*"), headers: all("*"), credentials: false };
    let s = Server::new(Config { cors: Some(cors), api_keys: all("k"), ..Config::default() });
    let preflight = |origin: &str| {
        Request::builder()
            .method("OPTIONS")
            .uri("/v1/chat/completions")
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .body(Body::empty())
            .unwrap()
    };
    let allowed = s.answer(preflight("http://a.example")).await;
    assert_eq!(
        (allowed.status.as_u16(), &allowed.headers["access-control-allow-origin"]),
        (200, &"http://a.example".parse().unwrap())
    );
    assert!(!s.answer(preflight("http://b.example")).await.headers.contains_key("access-control-allow-origin"));
    let closed = Server::new(Config::default());
    assert!(!closed.get("/health").await.headers.contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn requests_keep_their_names() {
    let s = Server::new(Config::default());
    let named = |id: &str| Request::get("/version").header("x-request-id", id).body(Body::empty()).unwrap();
    assert_eq!(s.answer(named("my-id")).await.headers["x-request-id"], "my-id");
    let long = "a".repeat(129);
    let given = s.answer(named(&long)).await.headers["x-request-id"].to_str().unwrap().to_string();
    assert!(given != long && given.len() == 32);
}

//! `/openapi.json` tells what this server takes.

use crate::client::Server;
use rvllm_server::Config;
use serde_json::{Value, json};

async fn described(config: Config) -> Value {
    let server = Server::new(config);
    serde_json::from_str(server.0.openapi()).unwrap()
}

#[tokio::test]
async fn bounds_are_the_served_models() {
    let api = described(Config { max_n: 7, ..Config::default() }).await;
    let of = |component: &str, bound: &str| api["components"]["schemas"][component][bound].clone();
    assert_eq!(of("ModelName", "enum"), json!(["mock", "alias"]));
    assert_eq!(of("TokenId", "maximum"), 258);
    assert_eq!(of("NumTokens", "maximum"), 256);
    assert_eq!(of("PositiveTokens", "minimum"), 1);
    assert_eq!(of("NumAnswers", "maximum"), 7);
    assert_eq!(of("Prompts", "oneOf")[1]["maxItems"], 7);
    assert_eq!(of("Seed", "minimum"), -1);
    for (component, bound) in
        [("ContentPart", "oneOf"), ("TruncatedLength", "anyOf"), ("Texts", "oneOf"), ("Word", "pattern")]
    {
        assert!(of(component, "type") != Value::Null || of(component, "oneOf") != Value::Null, "{component} is used");
        assert_ne!(of(component, bound), Value::Null, "{component}");
    }
    assert!(of("LogitBias", "propertyNames")["pattern"].as_str().unwrap().ends_with("|258)$"));
    assert_eq!(of("ChatRequest", "properties")["audio"]["type"], "null", "what is refused is told, too");
    assert_eq!(of("ChatRequest", "additionalProperties"), true);
    assert_eq!(api["components"].get("securitySchemes"), None);
    for path in ["/v1/completions", "/v1/chat/completions"] {
        let header = &api["paths"][path]["post"]["parameters"][0];
        assert_eq!((&header["in"], &header["schema"]["type"]), (&json!("header"), &json!(["number"])), "{path}");
    }
    assert_eq!(api["paths"]["/tokenize"]["post"].get("parameters"), None);
}

#[tokio::test]
async fn keys_and_strictness_are_told() {
    let api = described(Config { api_keys: vec!["k".into()], strict: true, ..Config::default() }).await;
    assert_eq!(api["components"]["schemas"]["TokenizeText"]["additionalProperties"], false);
    for (path, operations) in api["paths"].as_object().unwrap() {
        let open = ["/health", "/ping", "/ready", "/metrics"].contains(&path.as_str());
        for (method, operation) in operations.as_object().unwrap() {
            assert_eq!(operation.get("security").is_none(), open, "{method} {path}");
            assert_eq!(operation["responses"].get("401").is_none(), open, "{method} {path}");
        }
    }
}

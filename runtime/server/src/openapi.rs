//! `/openapi.json`, from the types that read requests, and `/docs`, which shows it.
//!
//! Invariants: it tells of this server: the names and bounds of the model that is served, whether a key is needed,
//! whether unknown fields are refused.

use crate::{
    api::{self, bounds, refused},
    config::Config,
    model::Served,
    routes,
};
use serde_json::{Value, json};
use utoipa::OpenApi;

/// The page at `/docs`.
pub const PAGE: &str = include_str!("docs.html");
/// The name of the key in the description.
const KEY: &str = "api_key";
/// Components of the schema that are whole bodies.
const REQUESTS: [&str; 5] = ["ChatRequest", "CompletionRequest", "DetokenizeRequest", "TokenizeChat", "TokenizeText"];

#[derive(OpenApi)]
#[openapi(
    info(title = "rvllm", description = "An OpenAI-compatible server."),
    paths(
        routes::health,
        routes::ready,
        routes::version,
        routes::load,
        routes::metrics,
        routes::models,
        routes::model,
        routes::tokenize,
        routes::detokenize,
        routes::completion,
        routes::chat_completion
    ),
    components(schemas(api::error::ErrorBody))
)]
struct Api;

/// The description of a server's API. `is_open` tells of the paths that need no key.
pub fn describe(served: &Served, config: &Config, is_open: impl Fn(&str) -> bool) -> String {
    // Types of the description have string keys and finite numbers, so each can be written.
    let mut api = serde_json::to_value(Api::openapi()).unwrap_or_default();
    bounds::complete(&mut api, served, config);
    add_further(&mut api, config);
    REQUESTS.iter().for_each(|name| tell_refusals(&mut api, name, config.strict));
    operations(&mut api).for_each(|(_, operation)| {
        tell_events(operation);
        tell_headers(operation);
    });
    if !config.root_path.is_empty() {
        api["servers"] = json!([{"url": config.root_path}]);
    }
    if config.has_keys() {
        need_key(&mut api, is_open);
    }
    api.to_string()
}

/// Adds the routes that are others by a further name, or that a flag opens.
fn add_further(api: &mut Value, config: &Config) {
    let health = api["paths"]["/health"]["get"].clone();
    let named = |mut operation: Value, id: &str, text: &str| {
        (operation["operationId"], operation["summary"]) = (id.into(), text.into());
        operation
    };
    let ping = |id: &str| named(health.clone(), id, "SageMaker's name of /health.");
    let pings = json!({"get": ping("ping"), "post": ping("ping_by_post")});
    let mut invocations = named(
        api["paths"]["/v1/chat/completions"]["post"].clone(),
        "invocations",
        "SageMaker's route: continues a conversation where the body has messages, else prompts.",
    );
    let either = |chat: &str, text: &str| {
        let kind = |name: &str| json!({"$ref": format!("#/components/schemas/{name}")});
        json!({"anyOf": [kind(chat), kind(text)]})
    };
    invocations["requestBody"]["content"]["application/json"]["schema"] = either("ChatRequest", "CompletionRequest");
    let answers = &mut invocations["responses"]["200"]["content"];
    answers["application/json"]["schema"] = either("ChatCompletion", "Completion");
    let paths = &mut api["paths"];
    paths["/ping"] = pings;
    paths["/invocations"] = json!({"post": invocations});
    if config.tokenizer_info {
        let answer = json!({"description": "tokenizer_config.json", "content": {"application/json": {"schema": {"type": "object"}}}});
        let told = json!({"responses": {"200": answer}});
        let summary = "The tokenizer's configuration, with the chat template that is used.";
        paths["/tokenizer_info"] = json!({"get": named(told, "tokenizer_info", summary)});
    }
}

/// Adds the fields that are taken only where they ask for nothing, and says whether there may be others.
fn tell_refusals(api: &mut Value, request: &str, strict: bool) {
    let Some(schema) = api.pointer_mut(&format!("/components/schemas/{request}")) else { return };
    if let Some(fields) = schema["properties"].as_object_mut() {
        for (name, taken) in refused::schemas() {
            fields.entry(name).or_insert(taken);
        }
    }
    schema["additionalProperties"] = json!(!strict);
}

/// Says which routes need a key, and what they answer without one.
fn need_key(api: &mut Value, is_open: impl Fn(&str) -> bool) {
    api["components"]["securitySchemes"] = json!({KEY: {"type": "http", "scheme": "bearer"}});
    let refused = json!({"description": "no key, or a wrong one", "content": {"application/json":
        {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}});
    for (_, operation) in operations(api).filter(|(path, _)| !is_open(path)) {
        operation["security"] = json!([{KEY: []}]);
        operation["responses"]["401"] = refused.clone();
    }
}

/// Each operation with its path.
fn operations(api: &mut Value) -> impl Iterator<Item = (&str, &mut Value)> {
    let paths = api["paths"].as_object_mut().into_iter().flatten();
    paths.flat_map(|(path, all)| all.as_object_mut().into_iter().flatten().map(move |(_, o)| (path.as_str(), o)))
}

/// Says that headers are given or not: there is none that is null.
fn tell_headers(operation: &mut Value) {
    let parameters = operation.get_mut("parameters").and_then(Value::as_array_mut);
    for parameter in parameters.into_iter().flatten().filter(|p| p["in"] == "header") {
        if let Some(types) = parameter["schema"]["type"].as_array_mut() {
            types.retain(|t| t != "null");
        }
    }
}

/// Says what the events of a stream are: the answer's pieces, an error, and the end.
fn tell_events(operation: &mut Value) {
    let Some(answers) = operation.pointer_mut("/responses/200/content") else { return };
    let piece = answers["application/json"]["schema"].clone();
    if let Some(stream) = answers.get_mut("text/event-stream") {
        let any = json!({"anyOf": [piece, {"$ref": "#/components/schemas/ErrorBody"}]});
        let json = json!({"type": "string", "contentMediaType": "application/json", "contentSchema": any});
        let data = json!({"anyOf": [{"const": "[DONE]"}, json]});
        stream["schema"] = json!({"type": "object", "required": ["data"], "properties": {"data": data}});
    }
}

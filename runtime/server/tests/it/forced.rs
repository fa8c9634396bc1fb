//! Calls that a model must make, and arguments that must follow a schema, whatever the model would say.

use crate::script::{Scripted, TEMPLATE};
use rvllm_artifact::parsers::{Parsers, ReasoningParser, ToolParser};
use rvllm_server::Config;
use serde_json::{Value, json};

/// A function whose arguments can be only one thing.
fn tool(name: &str, city: &str, strict: bool) -> Value {
    let parameters = json!({"type": "object", "properties": {"city": {"enum": [city]}}, "required": ["city"],
        "additionalProperties": false});
    json!({"type": "function", "function": {"name": name, "parameters": parameters, "strict": strict}})
}

fn request(choice: Value) -> Value {
    json!({"messages": [{"role": "user", "content": "q"}], "tools": [tool("f", "Bern", false), tool("g", "Chur", false)],
        "tool_choice": choice, "max_tokens": 400})
}

fn named(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name}})
}

/// Function and arguments of each call.
fn calls(message: &Value) -> Vec<(String, Value)> {
    let call = |c: &Value| {
        let text = |name: &str| c["function"][name].as_str().unwrap().to_string();
        (text("name"), serde_json::from_str(&text("arguments")).unwrap_or_else(|e| panic!("{e}: {message}")))
    };
    message["tool_calls"].as_array().unwrap_or_else(|| panic!("no calls: {message}")).iter().map(call).collect()
}

fn families() -> Vec<(Parsers, &'static [&'static str])> {
    let of = |tool_call| Parsers { tool_call: Some(tool_call), reasoning: None };
    vec![
        (Parsers::default(), &[]),
        (of(ToolParser::Hermes), &[]),
        (of(ToolParser::Hermes), &["<tool_call>", "</tool_call>"]),
        (of(ToolParser::Llama3Json), &["<|python_tag|>"]),
        (of(ToolParser::Mistral), &["[TOOL_CALLS]"]),
        (of(ToolParser::Mistral), &["[TOOL_CALLS]", "[ARGS]"]),
        (
            of(ToolParser::DeepseekV3),
            &[
                "<｜tool▁calls▁begin｜>",
                "<｜tool▁call▁begin｜>",
                "<｜tool▁sep｜>",
                "<｜tool▁call▁end｜>",
                "<｜tool▁calls▁end｜>",
            ],
        ),
        (of(ToolParser::Jamba), &[]),
        (of(ToolParser::Phi4Mini), &[]),
        (of(ToolParser::Qwen3Coder), &["<tool_call>"]),
        (of(ToolParser::Pythonic), &[]),
        (of(ToolParser::Openai), &["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>", "<|constrain|>"]),
    ]
}

#[tokio::test]
async fn a_model_that_must_call_does_so_in_every_notation() {
    for (parsers, markup) in families() {
        let s = Scripted::new(parsers, markup);
        let name = format!("{:?} {markup:?}", parsers.tool_call);
        let mut required = request(json!("required"));
        required["parallel_tool_calls"] = json!(false);
        let answer = s.chat(&required, "I would rather not.").await;
        assert_eq!(answer.status, 200, "{name}: {}", answer.text);
        let choice = answer.json()["choices"][0].clone();
        let calls_made = calls(&choice["message"]);
        let city = if calls_made[0].0 == "f" { "Bern" } else { "Chur" };
        assert_eq!((calls_made.len(), &calls_made[0].1), (1, &json!({"city": city})), "{name}: {choice}");
        assert_eq!((&choice["finish_reason"], &choice["message"]["content"]), (&json!("tool_calls"), &Value::Null));
        let one = s.chat(&request(named("g")), "No.").await.json()["choices"][0].clone();
        assert_eq!(calls(&one["message"]), [("g".to_string(), json!({"city": "Chur"}))], "{name}: {one}");
        assert_eq!(one["finish_reason"], "stop", "{name}");
        let (message, finish) = s.stream(&request(named("g")), "No.").await;
        assert_eq!(
            (calls(&message), finish),
            (vec![("g".to_string(), json!({"city": "Chur"}))], json!("stop")),
            "{name}"
        );
    }
}

#[tokio::test]
async fn several_calls_may_be_required() {
    let s = Scripted::new(Parsers::default(), &[]);
    let text = "[{\"name\": \"f\", \"parameters\": {\"city\": \"Bern\"}}, {\"name\": \"g\", \"parameters\": {\"city\": \"Chur\"}}]";
    let whole = s.chat(&request(json!("required")), text).await.json()["choices"][0].clone();
    let both = [("f".to_string(), json!({"city": "Bern"})), ("g".to_string(), json!({"city": "Chur"}))];
    assert_eq!((calls(&whole["message"]), &whole["finish_reason"]), (both.to_vec(), &json!("tool_calls")), "{whole}");
    let (streamed, finish) = s.stream(&request(json!("required")), text).await;
    assert_eq!((calls(&streamed), finish), (both.to_vec(), json!("tool_calls")));
}

#[tokio::test]
async fn a_model_thinks_before_it_must_call() {
    let parsers = Parsers { tool_call: Some(ToolParser::Hermes), reasoning: Some(ReasoningParser::Qwen3) };
    let open = format!("{TEMPLATE}<think>");
    for (markup, template, text, thought) in [
        (&["<think>", "</think>"][..], open.as_str(), "Hm, no.</think>No.", json!("Hm, no.")),
        (&[], open.as_str(), "Hm, no.</think>No.", json!("Hm, no.")),
        (&["<think>", "</think>"], TEMPLATE, "<think>Hm, no.</think>No.", json!("Hm, no.")),
        (&[], TEMPLATE, "<think>Hm, no.</think>No.", json!("Hm, no.")),
    ] {
        let s = Scripted::with(parsers, markup, template, Config::default());
        let choice = s.chat(&request(named("f")), text).await.json()["choices"][0].clone();
        let message = &choice["message"];
        assert_eq!(
            (&message["reasoning"], calls(message)),
            (&thought, vec![("f".into(), json!({"city": "Bern"}))]),
            "{choice}"
        );
    }
}

#[tokio::test]
async fn strict_arguments_follow_their_schema_where_the_model_chooses() {
    let call = |name: &str| {
        format!("Sure. <tool_call>\n{{\"name\": \"{name}\", \"arguments\": {{\"city\": \"Paris\"}}}}\n</tool_call>")
    };
    for markup in [&["<tool_call>", "</tool_call>", "<other>"][..], &[]] {
        let s = Scripted::new(Parsers { tool_call: Some(ToolParser::Hermes), reasoning: None }, markup);
        let mut auto = request(json!("auto"));
        auto["tools"] = json!([tool("f", "Bern", true), tool("g", "Chur", false)]);
        let held = s.chat(&auto, &call("f")).await.json()["choices"][0].clone();
        assert_eq!(calls(&held["message"]), [("f".to_string(), json!({"city": "Bern"}))], "{held}");
        assert_eq!(held["message"]["content"], "Sure.");
        let free = s.chat(&auto, &call("g")).await.json()["choices"][0].clone();
        assert_eq!(calls(&free["message"]), [("g".to_string(), json!({"city": "Paris"}))], "{free}");
        let text = s.chat(&auto, "Just <text>.").await.json()["choices"][0].clone();
        assert_eq!((&text["message"]["content"], &text["finish_reason"]), (&json!("Just <text>."), &json!("stop")));
    }
    let s = Scripted::new(Parsers { tool_call: Some(ToolParser::Pythonic), reasoning: None }, &[]);
    let mut auto = request(json!("auto"));
    auto["tools"] = json!([tool("g", "Chur", false), tool("f", "Bern", true)]);
    assert_eq!(s.chat(&auto, "").await.error(), (400, "tools[1].function.strict".into()));
}

#[tokio::test]
async fn forms_that_cannot_be_followed_are_named() {
    let s = Scripted::new(Parsers::default(), &[]);
    let mut bad = request(json!("required"));
    bad["tools"][1]["function"]["parameters"] = json!({"type": "object", "properties": {"a": {"type": "strin"}}});
    assert_eq!(s.chat(&bad, "").await.error(), (400, "tools[1].function.parameters".into()));
    let mut both = request(json!("required"));
    both["response_format"] = json!({"type": "json_object"});
    assert_eq!(s.chat(&both, "").await.error(), (400, "response_format".into()));
}

#[tokio::test]
async fn a_form_begins_behind_what_is_thought() {
    let parsers = Parsers { tool_call: None, reasoning: Some(ReasoningParser::Qwen3) };
    let s = Scripted::with(parsers, &["<think>", "</think>"], &format!("{TEMPLATE}<think>"), Config::default());
    let chat = json!({"messages": [{"role": "user", "content": "q"}], "structured_outputs": {"choice": ["ja"]}});
    let message = s.chat(&chat, "Hm.</think>nein").await.json()["choices"][0]["message"].clone();
    assert_eq!((&message["reasoning"], &message["content"]), (&json!("Hm."), &json!("ja")));
}

//! Tool calls and reasoning as clients see them, for each family of models.

use crate::script::{Scripted, TEMPLATE, join};
use rvllm_artifact::parsers::{Parsers, ReasoningParser, ToolParser};
use rvllm_server::Config;
use serde_json::{Value, json};
use std::collections::HashSet;

fn parsers(tool_call: ToolParser, reasoning: Option<ReasoningParser>) -> Parsers {
    Parsers { tool_call: Some(tool_call), reasoning }
}

fn weather() -> Value {
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}});
    json!({"type": "function", "function": {"name": "get_weather", "description": "The weather.", "parameters": parameters}})
}

fn time() -> Value {
    json!({"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}})
}

fn request() -> Value {
    json!({"messages": [{"role": "user", "content": "Rain?"}], "tools": [weather(), time()]})
}

/// The message without the ids of its calls, and those.
fn without_ids(mut message: Value) -> (Value, Vec<String>) {
    let mut ids = vec![];
    for call in message.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten() {
        ids.push(call.as_object_mut().unwrap().shift_remove("id").unwrap().as_str().unwrap().to_string());
    }
    (message, ids)
}

fn called(name: &str, arguments: &str) -> Value {
    json!({"type": "function", "function": {"name": name, "arguments": arguments}})
}

/// What a family writes: its parsers, the special tokens of its markup, a text with two calls, and what comes before.
struct Family {
    parsers: Parsers,
    markup: &'static [&'static str],
    text: &'static str,
    reasoning: &'static str,
    content: &'static str,
}

fn families() -> Vec<Family> {
    use ReasoningParser::{DeepseekR1, OpenaiGptoss, Qwen3};
    let family = |tool, reasoning, markup, text, thought, content| Family {
        parsers: parsers(tool, reasoning),
        markup,
        text,
        reasoning: thought,
        content,
    };
    vec![
        family(
            ToolParser::Hermes,
            Some(Qwen3),
            &["<|im_end|>"],
            "<think>\nRain, é.\n</think>\n\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Bern\", \"days\": 2}}\n</tool_call>\n<tool_call>\n{\"name\": \"get_time\", \"arguments\": {}}\n</tool_call>",
            "\nRain, é.\n",
            "",
        ),
        family(
            ToolParser::Hermes,
            None,
            &["<tool_call>", "</tool_call>"],
            "Let me look.<tool_call>{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Bern\", \"days\": 2}}</tool_call><tool_call>{\"name\": \"get_time\", \"arguments\": {}}</tool_call>",
            "",
            "Let me look.",
        ),
        family(
            ToolParser::Qwen3Coder,
            None,
            &["<tool_call>", "</tool_call>"],
            "Look:\n<tool_call>\n<function=get_weather>\n<parameter=city>\nBern\n</parameter>\n<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=get_time>\n</function>\n</tool_call>",
            "",
            "Look:",
        ),
        family(
            ToolParser::Llama3Json,
            None,
            &["<|python_tag|>", "<|eom_id|>"],
            "<|python_tag|>{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Bern\", \"days\": 2}}; {\"name\": \"get_time\", \"parameters\": {}}",
            "",
            "",
        ),
        family(
            ToolParser::Mistral,
            None,
            &["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"],
            "[TOOL_CALLS]get_weather[ARGS]{\"city\": \"Bern\", \"days\": 2}[TOOL_CALLS]get_time[ARGS]{}",
            "",
            "",
        ),
        family(
            ToolParser::Pythonic,
            None,
            &["<|python_start|>", "<|python_end|>"],
            "[get_weather(city=\"Bern\", days=2), get_time()]",
            "",
            "",
        ),
        family(
            ToolParser::DeepseekV3,
            Some(DeepseekR1),
            &[
                "<｜tool▁calls▁begin｜>",
                "<｜tool▁call▁begin｜>",
                "<｜tool▁sep｜>",
                "<｜tool▁call▁end｜>",
                "<｜tool▁calls▁end｜>",
            ],
            "Rain.</think>Checking.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{\"city\": \"Bern\", \"days\": 2}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_time\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            "Rain.",
            "Checking.",
        ),
        family(
            ToolParser::Openai,
            Some(OpenaiGptoss),
            &["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>", "<|constrain|>"],
            "<|channel|>analysis<|message|>Rain.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{\"city\": \"Bern\", \"days\": 2}<|call|><|start|>assistant<|channel|>commentary to=functions.get_time<|message|>{}",
            "Rain.",
            "",
        ),
    ]
}

#[tokio::test]
async fn every_familys_calls_stream_as_they_come_at_once() {
    for family in families() {
        let s = Scripted::new(family.parsers, family.markup);
        let answer = s.chat(&request(), family.text).await;
        let name = format!("{:?}", family.parsers.tool_call);
        assert_eq!(answer.status, 200, "{name}: {}", answer.text);
        let json = answer.json();
        let (message, ids) = without_ids(json["choices"][0]["message"].clone());
        assert_eq!(json["choices"][0]["finish_reason"], "tool_calls", "{name}");
        let arguments = message["tool_calls"][0]["function"]["arguments"].as_str().unwrap().to_string();
        assert_eq!(serde_json::from_str::<Value>(&arguments).unwrap(), json!({"city": "Bern", "days": 2}), "{name}");
        let mut expected = json!({"role": "assistant", "content": Value::Null,
            "tool_calls": [called("get_weather", &arguments), called("get_time", "{}")]});
        if !family.content.is_empty() {
            expected["content"] = family.content.into();
        }
        if !family.reasoning.is_empty() {
            expected["reasoning"] = family.reasoning.into();
            expected["reasoning_content"] = family.reasoning.into();
        }
        assert_eq!(message, expected, "{name}");
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), 2, "{name}: {ids:?}");
        let length = if family.parsers.tool_call == Some(ToolParser::Mistral) { 9 } else { 29 };
        assert!(ids.iter().all(|id| id.len() == length), "{name}: {ids:?}");
        let (streamed, finish) = s.stream(&request(), family.text).await;
        assert_eq!((without_ids(streamed).0, finish), (expected, json!("tool_calls")), "{name}");
    }
}

#[tokio::test]
async fn arguments_stream_as_they_are_written() {
    for family in families().into_iter().filter(|f| f.parsers.tool_call != Some(ToolParser::Pythonic)) {
        let s = Scripted::new(family.parsers, family.markup);
        let mut streamed = request();
        streamed["stream"] = json!(true);
        let events = s.chat(&streamed, family.text).await.events();
        let pieces = events.iter().filter(|e| e["choices"][0]["delta"]["tool_calls"][0]["index"] == 0).count();
        assert!(pieces >= 6, "{:?}: {pieces} pieces", family.parsers.tool_call);
    }
}

#[tokio::test]
async fn only_the_first_call_is_given_where_one_is_asked_for() {
    for family in families() {
        let s = Scripted::new(family.parsers, family.markup);
        let mut one = request();
        one["parallel_tool_calls"] = json!(false);
        let (message, finish) = s.stream(&one, family.text).await;
        let calls = message["tool_calls"].as_array().unwrap();
        assert_eq!((calls.len(), &calls[0]["function"]["name"]), (1, &json!("get_weather")));
        let whole = s.chat(&one, family.text).await.json();
        assert_eq!(
            without_ids(whole["choices"][0]["message"].clone()).0["tool_calls"],
            without_ids(message).0["tool_calls"]
        );
        assert_eq!((&whole["choices"][0]["finish_reason"], finish), (&json!("tool_calls"), json!("tool_calls")));
    }
}

#[tokio::test]
async fn markup_is_text_where_no_call_is_wanted() {
    let s = Scripted::new(parsers(ToolParser::Hermes, Some(ReasoningParser::Qwen3)), &["<tool_call>", "</tool_call>"]);
    let text = "<think>Hm.</think>See <tool_call>{\"name\": \"f\"}</tool_call>";
    for tools in [json!({"tool_choice": "none"}), json!({"tools": []})] {
        let mut none = request();
        none.as_object_mut().unwrap().extend(tools.as_object().unwrap().clone());
        let json = s.chat(&none, text).await.json();
        // The special tokens are left out of the text, as everywhere.
        let expected = json!({"role": "assistant", "content": "See {\"name\": \"f\"}", "reasoning": "Hm.", "reasoning_content": "Hm."});
        assert_eq!(json["choices"][0]["message"], expected);
        assert_eq!(json["choices"][0]["finish_reason"], "stop");
        none["skip_special_tokens"] = json!(false);
        let (shown, _) = s.stream(&none, text).await;
        assert_eq!(shown["content"], "See <tool_call>{\"name\": \"f\"}</tool_call>");
    }
}

#[tokio::test]
async fn tools_are_in_the_prompt_unless_told_otherwise() {
    let hermes = parsers(ToolParser::Hermes, None);
    let mut none = request();
    none["tool_choice"] = json!("none");
    none["return_prompt_text"] = json!(true);
    let shown = Scripted::new(hermes, &[]).chat(&none, "No.").await.json();
    let text = shown["prompt_text"].as_str().unwrap();
    assert!(
        text.starts_with("[[{\"type\": \"function\", \"function\": {\"name\": \"get_weather\", \"description\""),
        "{text}"
    );
    let config = Config { exclude_tools_when_none: true, ..Config::default() };
    let hidden = Scripted::with(hermes, &[], TEMPLATE, config).chat(&none, "").await.json();
    assert_eq!(hidden["prompt_text"], "<s>user: Rain?</s><s>assistant: ");
}

#[tokio::test]
async fn a_round_of_tools_goes_back_into_the_prompt() {
    let s = Scripted::new(parsers(ToolParser::Hermes, None), &[]);
    let text = "<tool_call>{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Bern\"}}</tool_call>";
    let message = s.chat(&request(), text).await.json()["choices"][0]["message"].clone();
    let mut next = request();
    let result = json!({"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "wet"});
    next["messages"].as_array_mut().unwrap().extend([message, result]);
    next["return_prompt_text"] = json!(true);
    let json = s.chat(&next, "It rains.").await.json();
    assert_eq!(json["choices"][0]["message"], json!({"role": "assistant", "content": "It rains."}));
    let prompt = json["prompt_text"].as_str().unwrap();
    assert!(
        prompt.ends_with("<s>assistant: (get_weather {\"city\": \"Bern\"})</s><s>tool: wet</s><s>assistant: "),
        "{prompt}"
    );
}

#[tokio::test]
async fn the_older_names_are_answered_in_their_words() {
    let s = Scripted::new(parsers(ToolParser::Hermes, None), &[]);
    let old = json!({"messages": request()["messages"], "functions": [weather()["function"]]});
    let text = "<tool_call>{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Bern\"}}</tool_call>";
    let json = s.chat(&old, text).await.json();
    let expected = json!({"role": "assistant", "content": null, "function_call": {"name": "get_weather", "arguments": "{\"city\": \"Bern\"}"}});
    assert_eq!(
        (&json["choices"][0]["message"], &json["choices"][0]["finish_reason"]),
        (&expected, &json!("function_call"))
    );
    assert_eq!(s.stream(&old, text).await, (expected, json!("function_call")));
}

#[tokio::test]
async fn reasoning_is_counted_and_may_be_left_out() {
    let reasons = Parsers { tool_call: None, reasoning: Some(ReasoningParser::Qwen3) };
    let s = Scripted::new(reasons, &["<think>", "</think>"]);
    let mut chat = json!({"messages": [{"role": "user", "content": "q"}]});
    let text = "<think>abcd</think>so";
    let json = s.chat(&chat, text).await.json();
    assert_eq!(json["usage"]["completion_tokens_details"], json!({"reasoning_tokens": 4}));
    // two tags, and the end
    assert_eq!(json["usage"]["completion_tokens"], 4 + 2 + 2 + 1);
    chat["include_reasoning"] = json!(false);
    chat["n"] = json!(2);
    chat["temperature"] = json!(0.1);
    chat["stream_options"] = json!({"include_usage": true});
    chat["stream"] = json!(true);
    let events = s.chat(&chat, text).await.events();
    for index in 0..2 {
        assert_eq!(join(&events, index), (json!({"role": "assistant", "content": "so"}), json!("stop")));
    }
    assert_eq!(events.last().unwrap()["usage"]["completion_tokens_details"], json!({"reasoning_tokens": 8}));
}

#[tokio::test]
async fn reasoning_may_begin_in_the_prompt_or_be_switched_off_there() {
    let reasons = Parsers { tool_call: None, reasoning: Some(ReasoningParser::Qwen3) };
    let template = "{{ messages[0].content }}{% if reasoning_effort %}[{{ reasoning_effort }}]{% endif %}\
        {% if enable_thinking is defined and not enable_thinking %}<think></think>{% else %}<think>{% endif %}";
    let thinking = json!({"chat_template_kwargs": {"enable_thinking": true}});
    let off = json!({"chat_template_kwargs": {"enable_thinking": false}});
    let config = || Config {
        chat_template_kwargs: off["chat_template_kwargs"].as_object().unwrap().clone(),
        ..Config::default()
    };
    for (config, fields, content) in [
        (Config::default(), json!({}), Value::Null),
        (Config::default(), off.clone(), json!("abc")),
        (config(), json!({}), json!("abc")),
        (config(), thinking, Value::Null),
    ] {
        let s = Scripted::with(reasons, &[], template, config);
        let mut chat = json!({"messages": [{"role": "user", "content": "q"}]});
        chat.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        // /tokenize does not know the server's defaults: the prompt's length is what they make it
        let json = s.chat(&chat, "abc").await.json();
        let message = &json["choices"][0]["message"];
        assert_eq!(message["content"].is_null(), content.is_null(), "{fields}: {json}");
    }
    let s = Scripted::with(reasons, &[], template, Config::default());
    let effort =
        json!({"messages": [{"role": "user", "content": "q"}], "reasoning_effort": "none", "return_prompt_text": true});
    assert_eq!(s.server.chat(effort).await.json()["prompt_text"], "q[none]<think></think>");
}

#[tokio::test]
async fn calls_that_break_off_end_as_the_answer_does() {
    let s = Scripted::new(parsers(ToolParser::Hermes, None), &["<tool_call>"]);
    let mut cut = request();
    cut["max_tokens"] = json!(60);
    let text = "<tool_call>{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Bern, where the river bends around the town\"}}";
    let json = s.chat(&cut, text).await.json();
    let call = &json["choices"][0]["message"]["tool_calls"][0]["function"];
    assert_eq!((&json["choices"][0]["finish_reason"], &call["name"]), (&json!("length"), &json!("get_weather")));
    assert!(call["arguments"].as_str().unwrap().starts_with("{\"city\": \"Be"), "{call}");
    let (streamed, finish) = s.stream(&cut, text).await;
    assert_eq!((&streamed["tool_calls"][0]["function"], finish), (call, json!("length")));
    // what is no call is text, and a call of an unknown function is the client's to refuse
    let broken = "<tool_call>{\"name\": 3}</tool_call>";
    let json = s.chat(&request(), broken).await.json();
    assert_eq!(
        (&json["choices"][0]["message"]["content"], &json["choices"][0]["finish_reason"]),
        (&json!(broken), &json!("stop"))
    );
    let unknown = "<tool_call>{\"name\": \"dance\", \"arguments\": {}}</tool_call>";
    let json = s.chat(&request(), unknown).await.json();
    assert_eq!(json["choices"][0]["message"]["tool_calls"][0]["function"]["name"], "dance");
}

#[tokio::test]
async fn models_without_a_notation_are_not_asked_to_choose() {
    let s = Scripted::new(Parsers::default(), &[]);
    assert_eq!(s.chat(&request(), "").await.error(), (400, "tools".into()));
    let mut none = request();
    none["tool_choice"] = json!("none");
    assert_eq!(s.chat(&none, "ok").await.json()["choices"][0]["message"]["content"], "ok");
}

#[tokio::test]
async fn reasoning_ends_where_its_budget_does() {
    let reasons = Parsers { tool_call: None, reasoning: Some(ReasoningParser::Qwen3) };
    let s = Scripted::with(reasons, &[], "{{ messages[0].content }}<think>", Config::default());
    let chat = json!({"messages": [{"role": "user", "content": "q"}], "thinking_token_budget": 3});
    // What it would have thought while the mark was written is lost.
    let json = s.chat(&chat, "abcdefghijkXYZ").await.json();
    let (message, usage) = (&json["choices"][0]["message"], &json["usage"]["completion_tokens_details"]);
    assert_eq!((&message["reasoning"], &message["content"]), (&json!("abc"), &json!("XYZ")), "{json}");
    assert!(usage["reasoning_tokens"].as_u64().is_some_and(|n| n >= 3), "{json}");
    let silent = Scripted::with(Parsers::default(), &[], "{{ messages[0].content }}", Config::default());
    let refused = silent.chat(&chat, "abc").await.error();
    assert_eq!(refused, (400, "thinking_token_budget".to_string()));
}

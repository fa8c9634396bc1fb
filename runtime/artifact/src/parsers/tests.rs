//! Choice of parsers by template and by name.

use super::{Parsers, ReasoningParser, ToolParser};
use serde_json::json;

#[test]
fn templates_choose_by_their_markers() {
    let hermes = "{{- '<|im_start|>system\\n<tool_call>\\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\\n</tool_call>' }}";
    let cases = [
        (hermes.to_owned(), Some(ToolParser::Hermes), None),
        (
            format!("{hermes}{{{{ '<think>\\n\\n</think>\\n\\n' }}}}"),
            Some(ToolParser::Hermes),
            Some(ReasoningParser::Qwen3),
        ),
        ("<tool_call>\\n<function=example>\\n<parameter=a>".to_owned(), Some(ToolParser::Qwen3Coder), None),
        ("{{ '[TOOL_CALLS] [' }}".to_owned(), Some(ToolParser::Mistral), None),
        ("[THINK]{{ x }}[/THINK][TOOL_CALLS]".to_owned(), Some(ToolParser::Mistral), Some(ReasoningParser::Mistral)),
        ("<|header_start|>{\"name\": f, \"parameters\": {}}".to_owned(), Some(ToolParser::Llama3Json), None),
        (
            "<|start_header_id|>{{ '{\"name\": \"' }}{{ '\"parameters\": ' }}".to_owned(),
            Some(ToolParser::Llama3Json),
            None,
        ),
        ("<|start_header_id|>[func_name1(params_name1=x)]".to_owned(), Some(ToolParser::Pythonic), None),
        (
            "<｜Assistant｜><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{{ '<think>\\n' }}</think>".to_owned(),
            Some(ToolParser::DeepseekV3),
            Some(ReasoningParser::DeepseekR1),
        ),
        (
            "{% if thinking %}<｜Assistant｜><think>{% else %}</think>{% endif %}<｜tool▁call▁begin｜>".to_owned(),
            Some(ToolParser::DeepseekV3),
            Some(ReasoningParser::DeepseekV3),
        ),
        (
            "<|start|>assistant<|channel|>final<|message|>".to_owned(),
            Some(ToolParser::Openai),
            Some(ReasoningParser::OpenaiGptoss),
        ),
        (
            "<tool_call>{name}<arg_key>k</arg_key></tool_call> <think></think> arguments".to_owned(),
            Some(ToolParser::Glm45),
            Some(ReasoningParser::Qwen3),
        ),
        ("{{ '<|im_start|>' + message['content'] }}".to_owned(), None, None),
    ];
    for (template, tool, reasoning) in cases {
        assert_eq!(Parsers::of_template(&template), Parsers { tool_call: tool, reasoning }, "{template}");
    }
}

#[test]
fn names_are_those_of_vllm() {
    for name in ToolParser::names() {
        let parser: ToolParser = name.parse().unwrap();
        assert_eq!(parser.name().parse(), Ok(parser));
    }
    for name in ReasoningParser::names() {
        let parser: ReasoningParser = name.parse().unwrap();
        assert_eq!(parser.name().parse(), Ok(parser));
    }
    assert_eq!("llama3_json".parse(), Ok(ToolParser::Llama3Json));
    let error = "hermez".parse::<ToolParser>().unwrap_err().to_string();
    assert!(error.starts_with("unknown tool call parser `hermez`; known are hermes, "), "{error}");
}

#[test]
fn files_choose_as_their_templates_do() {
    let listed = json!({"chat_template": [
        {"name": "default", "template": "{{ x }}"}, {"name": "tool_use", "template": "[TOOL_CALLS]"}]});
    let (listed, text) = (listed.to_string(), json!({"chat_template": "<think>"}).to_string());
    let of =
        |template: Option<&str>, config: &str| Parsers::of_files(template.map(str::as_bytes), Some(config.as_bytes()));
    assert_eq!(of(None, &listed), Parsers { tool_call: Some(ToolParser::Mistral), reasoning: None });
    assert_eq!(of(None, &text), Parsers { tool_call: None, reasoning: Some(ReasoningParser::Qwen3) });
    assert_eq!(of(Some("{{ x }}"), &text), Parsers::default());
    assert_eq!((of(None, "[1"), Parsers::of_files(None, None)), (Parsers::default(), Parsers::default()));
}

#[test]
fn parsers_are_written_by_name() {
    let parsers = Parsers { tool_call: Some(ToolParser::Hermes), reasoning: Some(ReasoningParser::Qwen3) };
    let written = serde_json::to_value(parsers).unwrap();
    assert_eq!(written, json!({"tool_call": "hermes", "reasoning": "qwen3"}));
    assert_eq!(serde_json::from_value::<Parsers>(written).unwrap(), parsers);
    let unknown = serde_json::from_value::<Parsers>(json!({"tool_call": "hermez"})).unwrap_err().to_string();
    assert!(unknown.starts_with("unknown tool call parser `hermez`"), "{unknown}");
}

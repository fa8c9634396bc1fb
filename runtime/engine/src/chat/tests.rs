//! Templates as models have them, and templates that nobody should have.

use super::*;
use serde_json::json;

fn render(template: &str, conversation: &Conversation<'_>) -> Result<String, ChatError> {
    ChatTemplate::new(Some(template), None)?.render(conversation)
}

fn say(template: &str) -> String {
    let messages = [json!({"role": "user", "content": " Hi <b> "})];
    render(template, &Conversation { messages: &messages, add_generation_prompt: true, ..Conversation::default() })
        .unwrap_or_else(|e| e.to_string())
}

#[test]
fn a_chatml_template_is_rendered_with_the_models_tokens() {
    let config = json!({
        "bos_token": {"content": "<s>"}, "eos_token": "</s>",
        "chat_template": "{{- bos_token }}\n{%- for message in messages %}\n    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n"
    });
    let template = ChatTemplate::new(None, Some(config.to_string().as_bytes())).unwrap();
    let messages = [json!({"role": "system", "content": "Be brief."}), json!({"role": "user", "content": "Hi"})];
    let text =
        template.render(&Conversation { messages: &messages, add_generation_prompt: true, ..Conversation::default() });
    assert_eq!(
        text.unwrap(),
        "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    );
}

#[test]
fn pythons_methods_work() {
    assert_eq!(say("{{ messages[0]['content'].strip().upper().split(' ')[0] }}"), "HI");
    assert_eq!(say("{% for k, v in messages[0].items() %}{{ k }},{% endfor %}"), "role,content,");
    assert_eq!(say("{% for m in messages %}{% if m.role == 'user' %}{% break %}{% endif %}no{% endfor %}yes"), "yes");
    assert_eq!(
        say("{% if tools is none and documents is none and not enable_thinking is defined %}none{% endif %}"),
        "none"
    );
    assert_eq!(
        say("{% set ns = namespace(n=0) %}{% for i in range(3) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}"),
        "3"
    );
    assert_eq!(say("{{ strftime_now('%Y')|int > 2024 }}"), "True");
}

#[test]
fn json_is_written_as_python_writes_it() {
    assert_eq!(say("{{ messages[0] | tojson }}"), r#"{"role": "user", "content": " Hi <b> "}"#);
    assert_eq!(
        say("{{ {'a': [1, 'é'], 'b': {}} | tojson(indent=2) }}"),
        "{\n  \"a\": [\n    1,\n    \"é\"\n  ],\n  \"b\": {}\n}"
    );
}

#[test]
fn a_templates_own_refusal_is_passed_on() {
    let message = say("{{ raise_exception('roles must alternate') }}");
    assert_eq!(message, "the chat template refuses the conversation: roles must alternate (line 1)");
}

#[test]
fn hostile_templates_are_stopped() {
    let long = say("{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}");
    assert!(long.contains("it does more than 20000000 steps"), "{long}");
    let deep = say("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}");
    assert!(deep.contains("recursion"), "{deep}");
    assert!(say("{% include '/etc/passwd' %}").starts_with("the chat template refuses"));
    assert!(say("{% if %}").starts_with("chat template: "));
    assert!(say(&"{{ [".repeat(20000)).starts_with("chat template: "));
}

#[test]
fn a_model_without_a_template_says_so() {
    for config in [None, Some(&b"{}"[..])] {
        assert!(matches!(ChatTemplate::new(None, config), Err(ChatError::NoTemplate)));
    }
    assert!(matches!(ChatTemplate::new(None, Some(b"[1]")), Err(ChatError::Config(_))));
}

#[test]
fn tools_choose_their_own_template() {
    let config = json!({"chat_template": [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "{{ tools[0].name }}{{ mood }}"}]});
    let template = ChatTemplate::new(None, Some(config.to_string().as_bytes())).unwrap();
    let (tools, variables) = ([json!({"name": "clock"})], json!({"mood": "!"}));
    let with_tools = Conversation { tools: Some(&tools), variables: variables.as_object(), ..Conversation::default() };
    assert_eq!(template.render(&with_tools).unwrap(), "clock!");
    assert_eq!(template.render(&Conversation::default()).unwrap(), "plain");
}

#[test]
fn a_message_without_content_has_what_the_template_reads() {
    let called = [json!({"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f"}}]})];
    let said = |template: &str| {
        render(template, &Conversation { messages: &called, ..Conversation::default() })
            .unwrap_or_else(|e| e.to_string())
    };
    assert_eq!(said("{% for m in messages %}[{{ m['content'] + '!' }}]{% endfor %}"), "[!]");
    assert_eq!(said("{% for m in messages %}{% if m['content'] is none %}calls{% endif %}{% endfor %}"), "calls");
}

#[test]
fn arguments_are_objects_or_texts_as_the_template_reads_them() {
    let call = json!({"function": {"name": "f", "arguments": {"city": "Zürich", "n": [1, 2]}}});
    let called = [json!({"role": "assistant", "content": "", "tool_calls": [call]})];
    let said = |template: &str| {
        render(template, &Conversation { messages: &called, ..Conversation::default() })
            .unwrap_or_else(|e| e.to_string())
    };
    let written = r#"f{"city": "Zürich", "n": [1, 2]}"#;
    let name = "{% set c = messages[0].tool_calls[0].function %}";
    assert_eq!(said(&format!("{name}{{{{ c.name }}}}{{{{ c.arguments | tojson }}}}")), written);
    assert_eq!(said(&format!("{name}{{{{ c.name + c['arguments'] }}}}")), written);
    let neither = said(&format!("{name}{{{{ c.arguments + 1 }}}}{{{{ raise_exception('no') }}}}"));
    assert!(neither.contains("map"), "{neither}");
}

#[test]
fn a_round_of_tools_reads_as_transformers_writes_it() {
    // Qwen 2.5's template, shortened to what tools need.
    let template = r#"{%- if tools %}
    {{- '<|im_start|>system\n# Tools\n<tools>' }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\n</tools><|im_end|>\n" }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "assistant" and message.tool_calls %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\n<tool_call>\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' }}
        {{- message.content }}
        {{- '\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}"#;
    let tools = [json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}})];
    let call =
        |n: u32| json!({"id": format!("c{n}"), "type": "function", "function": {"name": "f", "arguments": {"n": n}}});
    let messages = [
        json!({"role": "user", "content": "go"}),
        json!({"role": "assistant", "content": null, "tool_calls": [call(1), call(2)]}),
        json!({"role": "tool", "tool_call_id": "c1", "content": "one"}),
        json!({"role": "tool", "tool_call_id": "c2", "content": "two"}),
    ];
    let conversation = Conversation {
        messages: &messages,
        add_generation_prompt: true,
        tools: Some(&tools),
        ..Conversation::default()
    };
    let expected = "<|im_start|>system\n# Tools\n<tools>\n\
        {\"type\": \"function\", \"function\": {\"name\": \"f\", \"parameters\": {\"type\": \"object\"}}}\n</tools><|im_end|>\n\
        <|im_start|>user\ngo<|im_end|>\n<|im_start|>assistant\n\
        <tool_call>\n{\"name\": \"f\", \"arguments\": {\"n\": 1}}\n</tool_call>\n\
        <tool_call>\n{\"name\": \"f\", \"arguments\": {\"n\": 2}}\n</tool_call><|im_end|>\n\
        <|im_start|>user\n<tool_response>\none\n</tool_response>\n<tool_response>\ntwo\n</tool_response><|im_end|>\n\
        <|im_start|>assistant\n";
    assert_eq!(render(template, &conversation).unwrap(), expected);
}

//! Chooses parsers by the markers in a chat template.

use super::names::{ReasoningParser, ToolParser};

/// The first row all of whose markers occur in the template decides; more telling rows stand first.
const TOOLS: [(&[&str], ToolParser); 15] = [
    (&["<|channel|>", "<|message|>"], ToolParser::Openai),
    (&["<｜tool▁call▁begin｜>"], ToolParser::DeepseekV3),
    (&["<|tool_call_begin|>"], ToolParser::KimiK2),
    (&["<tool_call>", "<arg_key>"], ToolParser::Glm45),
    (&["<function=", "<parameter="], ToolParser::Qwen3Coder),
    (&["<tool_calls>"], ToolParser::Jamba),
    (&["<tool_call>", "arguments"], ToolParser::Hermes),
    (&["[TOOL_CALLS]"], ToolParser::Mistral),
    (&["<function_calls>", "<functions>"], ToolParser::Olmo3),
    (&["functools["], ToolParser::Phi4Mini),
    (&["<|python_start|>"], ToolParser::Pythonic),
    (&["[func_name1("], ToolParser::Pythonic),
    (&["<|python_tag|>"], ToolParser::Llama3Json),
    (&["<|start_header_id|>", "\"parameters\""], ToolParser::Llama3Json),
    (&["<|header_start|>", "\"parameters\""], ToolParser::Llama3Json),
];

/// As [`TOOLS`].
const REASONING: [(&[&str], ReasoningParser); 7] = [
    (&["<|channel|>", "<|message|>"], ReasoningParser::OpenaiGptoss),
    // V3.1 reasons on demand: its template has a switch
    (&["<｜Assistant｜>", "</think>", "thinking"], ReasoningParser::DeepseekV3),
    (&["<｜Assistant｜>", "<think>"], ReasoningParser::DeepseekR1),
    // the tags are cut from past answers only: the model opens its reasoning itself, if it reasons
    (&["<｜Assistant｜>", "</think>"], ReasoningParser::DeepseekV3),
    (&["[THINK]"], ReasoningParser::Mistral),
    (&["<think>"], ReasoningParser::Qwen3),
    (&["</think>"], ReasoningParser::Qwen3),
];

/// The notations of tool calls and of reasoning that a model with this chat template writes, as far as it shows them.
///
/// The reasoning parser is safe for models that merely know the tags: without an open `<think>` in the prompt or at the
/// beginning of the text, [`ReasoningParser::Qwen3`] leaves all text as content.
pub(super) fn detect(template: &str) -> (Option<ToolParser>, Option<ReasoningParser>) {
    (first(&TOOLS, template), first(&REASONING, template))
}

fn first<T: Copy>(rows: &[(&[&str], T)], template: &str) -> Option<T> {
    rows.iter().find(|(markers, _)| markers.iter().all(|marker| template.contains(marker))).map(|&(_, parser)| parser)
}

//! The parsers by vLLM's names.

use serde::{Deserialize, Serialize};

/// A notation of tool calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
pub enum ToolParser {
    /// Hermes 2/3, Qwen 2.5, Qwen 3, Granite 4.
    Hermes,
    /// Qwen3-Coder, Qwen3.5.
    Qwen3Coder,
    /// Llama 3.1 to 3.3 and 4, JSON.
    Llama3Json,
    /// Mistral, all tokenizer versions.
    Mistral,
    /// Llama 3.2 and 4, ToolACE: Python calls.
    Pythonic,
    /// OLMo 3.
    Olmo3,
    /// DeepSeek V3, R1 and V3.1.
    DeepseekV3,
    /// Kimi K2.
    KimiK2,
    /// GLM-4.5 to 4.7.
    Glm45,
    /// Jamba.
    Jamba,
    /// Phi-4-mini.
    Phi4Mini,
    /// gpt-oss: harmony.
    Openai,
}

/// A notation of reasoning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
pub enum ReasoningParser {
    /// `<think>` written by the model or its prompt; a call ends the reasoning too.
    Qwen3,
    /// Text begins inside reasoning unless the prompt closed it.
    DeepseekR1,
    /// DeepSeek V3.1: reasoning only after an open `<think>`.
    DeepseekV3,
    /// Magistral, Ministral 3: `[THINK]…[/THINK]` written by the model or its prompt.
    Mistral,
    /// gpt-oss: harmony.
    OpenaiGptoss,
}

/// A parser's name that is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown {kind} parser `{name}`; known are {known}")]
pub struct UnknownParser {
    kind: &'static str,
    name: String,
    known: String,
}

const TOOL_PARSERS: [(&str, ToolParser); 20] = [
    ("hermes", ToolParser::Hermes),
    ("qwen3", ToolParser::Hermes),
    ("granite4", ToolParser::Hermes),
    ("qwen3_coder", ToolParser::Qwen3Coder),
    ("qwen3_xml", ToolParser::Qwen3Coder),
    ("llama3_json", ToolParser::Llama3Json),
    ("llama4_json", ToolParser::Llama3Json),
    ("mistral", ToolParser::Mistral),
    ("pythonic", ToolParser::Pythonic),
    ("llama4_pythonic", ToolParser::Pythonic),
    ("olmo3", ToolParser::Olmo3),
    ("deepseek_v3", ToolParser::DeepseekV3),
    ("deepseek_v31", ToolParser::DeepseekV3),
    ("kimi_k2", ToolParser::KimiK2),
    ("glm45", ToolParser::Glm45),
    ("glm47", ToolParser::Glm45),
    ("jamba", ToolParser::Jamba),
    ("phi4_mini_json", ToolParser::Phi4Mini),
    ("openai", ToolParser::Openai),
    ("gpt-oss", ToolParser::Openai),
];

const REASONING_PARSERS: [(&str, ReasoningParser); 8] = [
    ("qwen3", ReasoningParser::Qwen3),
    ("deepseek_r1", ReasoningParser::DeepseekR1),
    ("deepseek_v3", ReasoningParser::DeepseekV3),
    ("glm45", ReasoningParser::Qwen3),
    ("kimi_k2", ReasoningParser::Qwen3),
    ("mistral", ReasoningParser::Mistral),
    ("openai_gptoss", ReasoningParser::OpenaiGptoss),
    ("gpt-oss", ReasoningParser::OpenaiGptoss),
];

fn named<T: Copy>(kind: &'static str, table: &[(&'static str, T)], name: &str) -> Result<T, UnknownParser> {
    let found = table.iter().find(|(known, _)| *known == name).map(|&(_, parser)| parser);
    found.ok_or_else(|| {
        let known: Vec<&str> = table.iter().map(|&(known, _)| known).collect();
        UnknownParser { kind, name: name.to_owned(), known: known.join(", ") }
    })
}

fn name_of<T: PartialEq>(table: &[(&'static str, T)], parser: &T) -> &'static str {
    table
        .iter()
        .find(|(_, known)| known == parser)
        .map(|&(name, _)| name)
        .expect("invariant: every parser is in its table")
}

impl std::str::FromStr for ToolParser {
    type Err = UnknownParser;

    fn from_str(name: &str) -> Result<Self, UnknownParser> {
        named("tool call", &TOOL_PARSERS, name)
    }
}

impl std::str::FromStr for ReasoningParser {
    type Err = UnknownParser;

    fn from_str(name: &str) -> Result<Self, UnknownParser> {
        named("reasoning", &REASONING_PARSERS, name)
    }
}

impl TryFrom<String> for ToolParser {
    type Error = UnknownParser;

    fn try_from(name: String) -> Result<Self, UnknownParser> {
        name.parse()
    }
}

impl TryFrom<String> for ReasoningParser {
    type Error = UnknownParser;

    fn try_from(name: String) -> Result<Self, UnknownParser> {
        name.parse()
    }
}

impl From<ToolParser> for &'static str {
    fn from(parser: ToolParser) -> &'static str {
        parser.name()
    }
}

impl From<ReasoningParser> for &'static str {
    fn from(parser: ReasoningParser) -> &'static str {
        parser.name()
    }
}

impl ToolParser {
    /// vLLM's name, the first where there are several.
    pub fn name(self) -> &'static str {
        name_of(&TOOL_PARSERS, &self)
    }

    /// Every name that is understood, for help and errors.
    pub fn names() -> impl Iterator<Item = &'static str> {
        TOOL_PARSERS.iter().map(|&(name, _)| name)
    }
}

impl ReasoningParser {
    /// vLLM's name, the first where there are several.
    pub fn name(self) -> &'static str {
        name_of(&REASONING_PARSERS, &self)
    }

    /// Every name that is understood, for help and errors.
    pub fn names() -> impl Iterator<Item = &'static str> {
        REASONING_PARSERS.iter().map(|&(name, _)| name)
    }
}

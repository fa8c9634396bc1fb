//! The notations of tool calls as tables: places in the markup, and what may follow at each.
//!
//! Place 0 is content: its edges are the markers that open calls. At every other place whitespace is skipped and one
//! of the edges must match. Edges of a place are told apart by their first character, or are markers none of which is a
//! prefix of another.

use super::parameters::Tags;
use rvllm_artifact::parsers::ToolParser;

/// What an edge reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pattern {
    /// A marker that belongs to the call that follows.
    Open(&'static str),
    /// A marker that belongs to the calls before it.
    Close(&'static str),
    /// Name of a function.
    Name,
    /// `functions.NAME:NUMBER`, which names the function and is the call's identity.
    QualifiedName,
    /// Identity of a call.
    Id,
    /// `{"name": …, "arguments": {…}}`
    Object,
    /// `{…}`
    Arguments,
    /// `(key=literal, …)`
    Keywords,
    /// Tagged parameters.
    Parameters(&'static Tags),
}

/// A pattern and the place after it.
pub(super) type Edge = (Pattern, usize);

/// One notation.
#[derive(Debug)]
pub(super) struct Grammar {
    /// Where text begins: 0, or a place for notations that may do without an opening marker.
    pub(super) start: usize,
    /// Edges of each place.
    pub(super) places: &'static [&'static [Edge]],
    /// Markers that are dropped from the content that follows a call broken off, the outermost last.
    pub(super) closers: &'static [&'static str],
    /// An object without arguments is not a call.
    pub(super) need_arguments: bool,
    /// Identities have Mistral's nine characters.
    pub(super) short_ids: bool,
}

use Pattern::{Arguments, Close, Id, Keywords, Name, Object, Open, Parameters, QualifiedName};

const PLAIN: Grammar = Grammar { start: 0, places: &[&[]], closers: &[], need_arguments: false, short_ids: false };

/// `<tool_call>{"name": …, "arguments": {…}}</tool_call>`: Hermes 2/3, Qwen 2.5 and 3, Granite 4.
pub(super) const HERMES: Grammar = Grammar {
    places: &[&[(Open("<tool_call>"), 1)], &[(Object, 2)], &[(Close("</tool_call>"), 0)]],
    closers: &["</tool_call>"],
    ..PLAIN
};

/// `{"name": …, "parameters": {…}}; …`, after `<|python_tag|>` or as the first text: Llama 3.1 to 3.3, Llama 4.
pub(super) const LLAMA3_JSON: Grammar = Grammar {
    start: 2,
    places: &[
        &[(Open("<|python_tag|>"), 1)],
        &[(Object, 3)],
        &[(Open("<|python_tag|>"), 1), (Object, 3)],
        &[(Open(";"), 1), (Open("<|python_tag|>"), 1), (Object, 3)],
    ],
    need_arguments: true,
    ..PLAIN
};

/// `[TOOL_CALLS] [{"name": …, "arguments": {…}}, …]` before tokenizer v11; since then
/// `[TOOL_CALLS]name[ARGS]{…}` for each call, in v11 with `[CALL_ID]id` before `[ARGS]`.
pub(super) const MISTRAL: Grammar = Grammar {
    places: &[
        &[(Open("[TOOL_CALLS]"), 1)],
        &[(Open("["), 2), (Name, 4), (Object, 0)],
        &[(Object, 3)],
        &[(Open(","), 2), (Close("]"), 0)],
        &[(Open("[ARGS]"), 5), (Open("[CALL_ID]"), 6), (Arguments, 0)],
        &[(Arguments, 0)],
        &[(Id, 7)],
        &[(Open("[ARGS]"), 5)],
    ],
    short_ids: true,
    ..PLAIN
};

/// `[name(key=literal), …]` as the whole text: Llama 3.2, ToolACE. Llama 4 may wrap it in `<|python_start|>` and
/// `<|python_end|>`.
pub(super) const PYTHONIC: Grammar = Grammar {
    start: 1,
    places: &[
        &[(Open("<|python_start|>"), 1)],
        &[(Open("<|python_start|>"), 1), (Open("["), 2)],
        &[(Name, 3)],
        &[(Keywords, 4)],
        &[(Open(","), 5), (Close("]"), 6)],
        &[(Name, 3), (Close("]"), 6)],
        &[(Close("<|python_end|>"), 0)],
    ],
    closers: &["<|python_end|>"],
    ..PLAIN
};

/// `<function_calls>` with one `name(key=literal)` a line: OLMo 3.
pub(super) const OLMO3: Grammar = Grammar {
    places: &[
        &[(Open("<function_calls>"), 1)],
        &[(Name, 2)],
        &[(Keywords, 3)],
        &[(Name, 2), (Close("</function_calls>"), 0)],
    ],
    closers: &["</function_calls>"],
    ..PLAIN
};

/// Each call between `<｜tool▁call▁begin｜>` and `<｜tool▁call▁end｜>`: in V3 and R1 `function<｜tool▁sep｜>name` and a
/// fenced block of JSON, since V3.1 `name<｜tool▁sep｜>` and the arguments. Both are read.
pub(super) const DEEPSEEK: Grammar = Grammar {
    places: &[
        &[(Open("<｜tool▁calls▁begin｜>"), 1), (Open("<｜tool▁call▁begin｜>"), 2)],
        &[(Open("<｜tool▁call▁begin｜>"), 2)],
        &[(Name, 3)],
        &[(Open("<｜tool▁sep｜>"), 4)],
        &[(Name, 5), (Arguments, 7)],
        &[(Open("```json"), 6), (Arguments, 7)],
        &[(Arguments, 7)],
        &[(Close("```"), 8), (Close("<｜tool▁call▁end｜>"), 9)],
        &[(Close("<｜tool▁call▁end｜>"), 9)],
        &[(Open("<｜tool▁call▁begin｜>"), 2), (Close("<｜tool▁calls▁end｜>"), 0)],
    ],
    closers: &["<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"],
    ..PLAIN
};

/// `<|tool_call_begin|>functions.name:0<|tool_call_argument_begin|>{…}<|tool_call_end|>` in a section: Kimi K2.
pub(super) const KIMI_K2: Grammar = Grammar {
    places: &[
        &[(Open("<|tool_calls_section_begin|>"), 1), (Open("<|tool_call_begin|>"), 2)],
        &[(Open("<|tool_call_begin|>"), 2)],
        &[(QualifiedName, 3)],
        &[(Open("<|tool_call_argument_begin|>"), 4)],
        &[(Arguments, 5)],
        &[(Close("<|tool_call_end|>"), 6)],
        &[(Open("<|tool_call_begin|>"), 2), (Close("<|tool_calls_section_end|>"), 0)],
    ],
    closers: &["<|tool_call_end|>", "<|tool_calls_section_end|>"],
    ..PLAIN
};

/// `<tool_calls>[{"name": …, "arguments": {…}}, …]</tool_calls>`: Jamba 1.5.
pub(super) const JAMBA: Grammar = Grammar {
    places: &[
        &[(Open("<tool_calls>"), 1)],
        &[(Open("["), 2)],
        &[(Object, 3)],
        &[(Open(","), 2), (Close("]"), 4)],
        &[(Close("</tool_calls>"), 0)],
    ],
    closers: &["</tool_calls>"],
    ..PLAIN
};

/// `functools[{"name": …, "arguments": {…}}, …]`: Phi-4-mini.
pub(super) const PHI4_MINI: Grammar =
    Grammar { places: &[&[(Open("functools["), 1)], &[(Object, 2)], &[(Open(","), 1), (Close("]"), 0)]], ..PLAIN };

const QWEN_TAGS: Tags = Tags {
    begin: '>',
    consumed: true,
    key: "<parameter=",
    value: &[">"],
    value_end: "</parameter>",
    end: "</function>",
    lines: true,
};

/// `<tool_call><function=name><parameter=key>value</parameter></function></tool_call>`: Qwen3-Coder, Qwen3.5.
pub(super) const QWEN3_CODER: Grammar = Grammar {
    places: &[
        &[(Open("<tool_call>"), 1), (Open("<function="), 2)],
        &[(Open("<function="), 2)],
        &[(Name, 3)],
        &[(Parameters(&QWEN_TAGS), 4)],
        &[(Close("</tool_call>"), 0), (Open("<function="), 2)],
    ],
    closers: &["</function>", "</tool_call>"],
    ..PLAIN
};

const GLM_TAGS: Tags = Tags {
    begin: '<',
    consumed: false,
    key: "<arg_key>",
    value: &["</arg_key>", "<arg_value>"],
    value_end: "</arg_value>",
    end: "</tool_call>",
    lines: false,
};

/// `<tool_call>name<arg_key>key</arg_key><arg_value>value</arg_value></tool_call>`: GLM-4.5 to 4.7.
pub(super) const GLM45: Grammar = Grammar {
    places: &[&[(Open("<tool_call>"), 1)], &[(Name, 2)], &[(Parameters(&GLM_TAGS), 0)]],
    closers: &["</tool_call>"],
    ..PLAIN
};

/// What `tool_choice: required` makes a model write: `[{"name": …, "parameters": {…}}, …]`.
pub(super) const REQUIRED: Grammar = Grammar {
    start: 1,
    places: &[&[], &[(Open("["), 2)], &[(Object, 3)], &[(Open(","), 2), (Close("]"), 0)]],
    ..PLAIN
};

/// What a named `tool_choice` makes a model write: the arguments alone.
pub(super) const NAMED: Grammar = Grammar { start: 1, places: &[&[], &[(Arguments, 0)]], ..PLAIN };

/// A notation as a table; none for harmony, which carries reasoning too.
pub(super) fn of(parser: ToolParser) -> Option<&'static Grammar> {
    match parser {
        ToolParser::Hermes => Some(&HERMES),
        ToolParser::Qwen3Coder => Some(&QWEN3_CODER),
        ToolParser::Llama3Json => Some(&LLAMA3_JSON),
        ToolParser::Mistral => Some(&MISTRAL),
        ToolParser::Pythonic => Some(&PYTHONIC),
        ToolParser::Olmo3 => Some(&OLMO3),
        ToolParser::DeepseekV3 => Some(&DEEPSEEK),
        ToolParser::KimiK2 => Some(&KIMI_K2),
        ToolParser::Glm45 => Some(&GLM45),
        ToolParser::Jamba => Some(&JAMBA),
        ToolParser::Phi4Mini => Some(&PHI4_MINI),
        ToolParser::Openai => None,
    }
}

impl Grammar {
    /// Every marker of the notation, some more than once.
    pub(super) fn markers(&'static self) -> impl Iterator<Item = &'static str> {
        let edges = self.places.iter().flat_map(|place| place.iter());
        let of_edge = |(pattern, _): &Edge| -> Vec<&'static str> {
            match *pattern {
                Open(mark) | Close(mark) => vec![mark],
                Parameters(tags) => tags.all().collect(),
                Name | QualifiedName | Id | Object | Arguments | Keywords => vec![],
            }
        };
        edges.flat_map(of_edge).chain(self.closers.iter().copied())
    }

    /// The markers that open calls in content.
    pub(super) fn openers(&self) -> impl Iterator<Item = (&'static str, usize)> {
        self.places[0].iter().filter_map(|&(pattern, go)| match pattern {
            Open(mark) => Some((mark, go)),
            _ => None,
        })
    }
}

//! Which parsers read answers: the flags, what the artifact records, what the chat template shows.

use crate::encode::template_text;
use clap::Args;
use rvllm_artifact::{
    Artifact,
    parsers::{Parsers, ReasoningParser, ToolParser, UnknownParser},
};
use serde_json::{Map, Value};
use std::{path::Path, str::FromStr};

/// The parser that stands for none.
const NONE: &str = "none";

/// How answers are read.
#[derive(Args, Clone, Copy, Debug, Default)]
#[group(id = "ParserFlags")]
pub struct Flags {
    /// How the model writes tool calls: hermes, qwen3, qwen3_coder, llama3_json, mistral, pythonic, deepseek_v3, openai …,
    /// or none [default: as its chat template shows]
    #[arg(long, value_name = "NAME", value_parser = chosen::<ToolParser>)]
    pub tool_call_parser: Option<Chosen<ToolParser>>,
    /// How it writes reasoning: qwen3, deepseek_r1, openai_gptoss …, or none [default: as its chat template shows]
    #[arg(long, value_name = "NAME", value_parser = chosen::<ReasoningParser>)]
    pub reasoning_parser: Option<Chosen<ReasoningParser>>,
    /// Let models choose to call tools; this is the default
    #[arg(long)]
    pub enable_auto_tool_choice: bool,
    /// Refused: parsers are built in
    #[arg(long, value_name = "FILE", value_parser = no_plugin, hide = true)]
    tool_parser_plugin: Option<Never>,
}

/// What a flag chose: a parser, or that there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen<P>(Option<P>);

/// No flag has this value.
#[derive(Clone, Copy, Debug)]
enum Never {}

fn chosen<P: FromStr<Err = UnknownParser>>(name: &str) -> Result<Chosen<P>, UnknownParser> {
    match name {
        NONE => Ok(Chosen(None)),
        name => name.parse().map(|parser| Chosen(Some(parser))),
    }
}

fn no_plugin(_: &str) -> Result<Never, String> {
    let known: Vec<&str> = ToolParser::names().collect();
    Err(format!("parsers are built in and not loaded; --tool-call-parser takes {}, or none", known.join(", ")))
}

/// Reads a JSON object.
pub fn object(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|e| format!("it must be a JSON object: {e}"))
}

impl Flags {
    /// These over what is known of the model.
    pub fn over(&self, known: Parsers) -> Parsers {
        Parsers {
            tool_call: self.tool_call_parser.map_or(known.tool_call, |chosen| chosen.0),
            reasoning: self.reasoning_parser.map_or(known.reasoning, |chosen| chosen.0),
        }
    }
}

/// What an artifact's chat template, or one that is given instead of it, shows. Artifacts of format 1.0 do not record it.
pub fn of_artifact(artifact: &Artifact, template: Option<&Path>) -> Parsers {
    if let Some(text) = template.and_then(|given| template_text(given).ok()) {
        return Parsers::of_template(&text);
    }
    let seen = || Parsers::of_files(artifact.entry("chat_template.jinja"), artifact.entry("tokenizer_config.json"));
    artifact.manifest().model.parsers.unwrap_or_else(seen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        flags: Flags,
    }

    fn read(line: &str) -> Result<Flags, String> {
        let words = std::iter::once("rvllm").chain(line.split_whitespace());
        Command::try_parse_from(words).map(|c| c.flags).map_err(|e| e.to_string())
    }

    #[test]
    fn flags_choose_over_what_is_known() {
        let known = Parsers { tool_call: Some(ToolParser::Hermes), reasoning: Some(ReasoningParser::Qwen3) };
        assert_eq!(read("--enable-auto-tool-choice").unwrap().over(known), known);
        let chosen = read("--tool-call-parser qwen3_xml --reasoning-parser none").unwrap().over(known);
        assert_eq!(chosen, Parsers { tool_call: Some(ToolParser::Qwen3Coder), reasoning: None });
        assert_eq!(
            read("--reasoning-parser gpt-oss").unwrap().over(known).reasoning,
            Some(ReasoningParser::OpenaiGptoss)
        );
    }

    #[test]
    fn unknown_names_list_the_known() {
        let error = read("--tool-call-parser hermez").map(|_| ()).unwrap_err();
        assert!(error.contains("`hermez`; known are hermes, qwen3"), "{error}");
        let error = read("--tool-parser-plugin x.py").map(|_| ()).unwrap_err();
        assert!(error.contains("parsers are built in"), "{error}");
        assert!(object("[1]").is_err() && object("{\"a\": 1}").is_ok());
    }
}

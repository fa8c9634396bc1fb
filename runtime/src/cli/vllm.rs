//! Flags of `vllm serve` that nothing here reads: each is told of with its reason, and none is passed over in silence.
//!
//! Invariants:
//! - a flag that asks for what happens anyway is taken; one that has nothing to act on is taken, and a note says so; any
//!   other is refused, with what to do instead;
//! - a flag stands either here or among those that are read, never in both.

mod table;

use crate::{error::note, table::columns};
use clap::{Arg, ArgAction, ArgMatches, Command, Error, FromArgMatches, builder::ValueParser, error::ErrorKind};
use std::marker::PhantomData;
pub use table::{Batch, Client, Engine, Frontend, Offline};

/// How a flag is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// `--flag`, `--flag=true`, and the name of its opposite, `--no-flag`.
    Switch(&'static str),
    /// `--flag VALUE`.
    Value,
    /// `--flag VALUE VALUE …`.
    Values,
}

/// What becomes of a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Whatever it says, there is nothing for it to act on.
    NoEffect,
    /// These values ask for what happens anyway; others are refused.
    Only(&'static [&'static str]),
    /// As [`Fate::Only`]: the compiler has decided it.
    Compiled(&'static [&'static str]),
    /// Every value is refused.
    Refused,
}

/// A flag of vLLM's that nothing here reads.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    name: &'static str,
    form: Form,
    fate: Fate,
    /// Why, and what to do instead.
    why: &'static str,
}

/// A part of vLLM's flags.
pub trait Table: Clone + Send + Sync + 'static {
    /// Its rules.
    const RULES: &'static [Rule];
}

/// The flags of a table that were given and have no effect.
#[derive(Clone, Debug)]
pub struct Given<T> {
    idle: Vec<&'static Rule>,
    table: PhantomData<T>,
}

impl<T> Default for Given<T> {
    fn default() -> Self {
        Given { idle: vec![], table: PhantomData }
    }
}

impl<T> Given<T> {
    /// Says on stderr which flags have no effect, and why.
    pub fn tell(&self) {
        self.idle.iter().for_each(|rule| note(&format!("note: --{} has no effect: {}", rule.name, rule.why)));
    }
}

impl Rule {
    fn args(&'static self) -> Vec<Arg> {
        let arg = Arg::new(self.name).long(self.name).hide(true).action(ArgAction::Append);
        let arg = arg.value_parser(ValueParser::string()).allow_hyphen_values(true);
        match self.form {
            Form::Value => vec![arg.num_args(1)],
            Form::Values => vec![arg.num_args(1..).allow_hyphen_values(false)],
            Form::Switch(no) => {
                let on = arg.num_args(0..=1).require_equals(true).default_missing_value("true");
                vec![on, Arg::new(no).long(no).hide(true).action(ArgAction::SetTrue)]
            }
        }
    }

    /// The values that it was given; of a switch, `true` or `false`.
    fn given(&self, matches: &ArgMatches) -> Vec<String> {
        let mut values: Vec<String> = matches.get_many(self.name).into_iter().flatten().cloned().collect();
        if let Form::Switch(no) = self.form {
            values.iter_mut().for_each(|v| *v = v.to_lowercase());
            values.extend(matches.get_flag(no).then(|| "false".to_string()));
        }
        values
    }

    /// Whether it was given, so that its having no effect is to be told.
    fn check(&self, matches: &ArgMatches) -> Result<bool, Error> {
        let values = self.given(matches);
        let refused = match self.fate {
            Fate::NoEffect => None,
            Fate::Only(taken) | Fate::Compiled(taken) => values.iter().find(|v| !taken.contains(&v.as_str())),
            Fate::Refused => values.first(),
        };
        match refused {
            None => Ok(self.fate == Fate::NoEffect && !values.is_empty()),
            Some(value) => Err(Error::raw(ErrorKind::InvalidValue, self.refusal(value))),
        }
    }

    fn refusal(&self, value: &str) -> String {
        let given = match (self.form, value) {
            (Form::Switch(no), "false") => format!("--{no}"),
            (Form::Switch(_), _) => format!("--{}", self.name),
            _ => format!("--{} {value}", self.name),
        };
        let taken = match self.fate {
            Fate::Only(taken) | Fate::Compiled(taken) if !matches!(self.form, Form::Switch(_)) && !taken.is_empty() => {
                format!(", or give it as {}", taken.join(", "))
            }
            _ => String::new(),
        };
        format!("{given} cannot be honoured: {}\n\n  help: leave it out{taken}\n", self.why)
    }

    fn row(&self) -> Vec<String> {
        let fate = match (self.fate, self.form) {
            (Fate::NoEffect, _) => "no effect",
            (Fate::Only(&["true"]), Form::Switch(_)) => "always so",
            (Fate::Compiled(_), _) => "fixed at compile",
            (Fate::Only(_) | Fate::Refused, _) => "refused",
        };
        let taken = match self.fate {
            Fate::Only(taken) | Fate::Compiled(taken) if !matches!(self.form, Form::Switch(_)) && !taken.is_empty() => {
                format!("; taken as {}", taken.join(", "))
            }
            _ => String::new(),
        };
        vec![format!("--{}", self.name), fate.to_string(), format!("{}{taken}", self.why)]
    }
}

impl<T: Table> FromArgMatches for Given<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut given = Given::default();
        for rule in T::RULES {
            if rule.check(matches)? {
                given.idle.push(rule);
            }
        }
        Ok(given)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Given::from_arg_matches(matches)?;
        Ok(())
    }
}

impl<T: Table> clap::Args for Given<T> {
    fn augment_args(command: Command) -> Command {
        command.args(T::RULES.iter().flat_map(Rule::args))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Given::<T>::augment_args(command)
    }
}

/// Every flag of `vllm serve` that is known here, with what becomes of it. `serve` is our command.
pub fn list(serve: &Command) -> String {
    let read = serve.get_arguments().filter(|arg| !arg.is_hide_set() && table::READ.contains(&arg.get_id().as_str()));
    let help = |arg: &Arg| arg.get_help().map(ToString::to_string).unwrap_or_default();
    let read =
        read.map(|arg| vec![format!("--{}", arg.get_long().unwrap_or_default()), "honoured".to_string(), help(arg)]);
    let rules = Frontend::RULES.iter().chain(Engine::RULES).map(Rule::row);
    let mut rows: Vec<Vec<String>> = read.chain(rules).collect();
    rows.sort();
    columns(rows.into_iter())
}

/// vLLM's short flags of more than one letter, and the level behind `-O`, as long ones. `-q` is ours where `quiet`.
pub fn long(flag: &str, quiet: bool) -> Option<String> {
    let named = |name: &str| Some(format!("--{name}"));
    match flag {
        "-tp" => named("tensor-parallel-size"),
        "-pp" => named("pipeline-parallel-size"),
        "-dp" => named("data-parallel-size"),
        "-ep" => named("enable-expert-parallel"),
        "-asc" => named("api-server-count"),
        "-O" | "-cc" => named("compilation-config"),
        "-q" if !quiet => named("quantization"),
        _ => flag
            .strip_prefix("-O")
            .filter(|level| !level.is_empty())
            .map(|level| format!("--optimization-level={level}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command as Ours};
    use clap::{CommandFactory, Parser};
    use std::collections::BTreeSet;

    fn serve(flags: &str) -> Result<Vec<&'static str>, String> {
        let line = format!("rvllm serve m {flags}");
        let args = crate::cli::normalize(line.split_whitespace().map(Into::into));
        match Cli::try_parse_from(args).map_err(|e| e.to_string())?.command {
            Ours::Serve(serve) => {
                let (server, engine) = (&serve.server.vllm.idle, &serve.engine.vllm.idle);
                Ok(server.iter().chain(engine).map(|rule| rule.name).collect())
            }
            _ => panic!("serve"),
        }
    }

    #[test]
    fn what_happens_anyway_is_taken_in_silence() {
        let flags = "-tp 1 --pipeline_parallel_size=1 --enable-chunked-prefill --enable-chunked-prefill=True --runner auto \
            --enable-prompt-tokens-details --no-enable-lora --load-format auto --quantization awq -q gptq";
        assert_eq!(serve(flags), Ok(vec![]));
    }

    #[test]
    fn what_has_no_effect_is_told() {
        let flags = "--trust-remote-code --block-size 16 --limit-mm-per-prompt image=2 --api-server-count=4 -O3";
        let told = ["api-server-count", "limit-mm-per-prompt", "optimization-level", "block-size", "trust-remote-code"];
        let given = serve(flags).unwrap();
        assert_eq!(given.iter().collect::<BTreeSet<_>>(), told.iter().collect());
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_reason() {
        for (flags, message) in [
            ("-tp 8", "--tensor-parallel-size 8 cannot be honoured: a server runs on one device"),
            ("--enable-lora", "--enable-lora cannot be honoured: LoRA adapters"),
            ("--lora-modules a=b c=d", "--lora-modules a=b cannot be honoured"),
            ("--no-enable-chunked-prefill", "--no-enable-chunked-prefill cannot be honoured"),
            ("--enable-chunked-prefill=false", "--no-enable-chunked-prefill cannot be honoured"),
            ("--quantization fp8", "leave it out, or give it as awq"),
            ("--kv-cache-dtype fp8", "rvllm compile --kv-cache-dtype"),
            ("--speculative-config {}", "there is no speculative decoding"),
            ("--enable-everything", "unexpected argument"),
        ] {
            let error = serve(flags).unwrap_err();
            assert!(error.contains(message), "{flags}: {error}");
        }
    }

    #[test]
    fn command_lines_of_vllm_are_read() {
        for line in [
            "serve --model m --host 0.0.0.0 --port 8000 --dtype bfloat16 --max-model-len 8k --gpu-memory-utilization 0.95 \
             --tensor-parallel-size 1 --enable-auto-tool-choice --tool-call-parser hermes --trust-remote-code \
             --disable-log-requests --served-model-name a b --enable-prefix-caching --swap-space 4 --max-num-seqs 64",
            "run --serve m --max_num_batched_tokens=2048 --no-enable-prefix-caching --max-logprobs 5",
            "run-batch -i in.jsonl -o out.jsonl --model m --enable-prompt-tokens-details --url http://0.0.0.0 --port 8000",
            "bench serve --endpoint-type openai --model m --dataset-name random --random-input-len 8 --trust-remote-code",
            "bench latency --model m --input-len 8 --output-len 8 --batch-size 2 --disable-detokenize --num-iters 3 -tp 1",
            "bench throughput --backend vllm --async-engine --model m --dataset-name random --num-prompts 3 --load-format auto",
        ] {
            let args = crate::cli::normalize(format!("rvllm {line}").split_whitespace().map(Into::into));
            assert!(Cli::try_parse_from(args).is_ok(), "{line}");
        }
    }

    #[test]
    fn every_flag_is_read_or_has_a_rule() {
        let mut cli = Cli::command();
        cli.build();
        let serve = cli.find_subcommand("serve").unwrap();
        let ids: BTreeSet<&str> = serve.get_arguments().map(|arg| arg.get_id().as_str()).collect();
        let rules = Frontend::RULES.iter().chain(Engine::RULES);
        let names: BTreeSet<&str> = rules.clone().map(|rule| rule.name).collect();
        assert_eq!(names.len(), rules.clone().count(), "a flag has two rules");
        for field in table::READ {
            assert!(ids.contains(field), "{field} is not read");
            assert!(!names.contains(field.replace('_', "-").as_str()), "{field} is read, and has a rule");
        }
        let text = list(serve);
        assert_eq!(text.lines().count(), table::READ.len() + names.len());
        let line = |flag: &str| text.lines().find(|line| line.trim_start().starts_with(flag)).unwrap();
        assert!(line("--port ").contains("honoured") && line("--trust-remote-code ").contains("no effect"));
        assert!(line("--kv-cache-dtype ").contains("fixed at compile"));
    }
}

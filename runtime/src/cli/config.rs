//! `--config FILE`: flags from a YAML file, by their names, under those of the command line.
//!
//! Invariants: a flag of the command line counts alone, whatever the file says of it; what a file says goes through the same parser as what is typed.

use crate::error::Failure;
use clap::Command;
use serde_json::{Map, Value};
use std::{ffi::OsString, fs};
use yaml_rust2::{Yaml, YamlLoader};

/// The flag.
const FLAG: &str = "--config";
/// Largest file that is read.
const MAX_BYTES: u64 = 1 << 20;

/// The command line with the flags of the file that it names put before its own, which then count. `cli` is the whole
/// command, whose subcommands tell which flags there are.
///
/// # Errors
/// The file cannot be read, or is no YAML mapping.
pub fn expand(mut args: Vec<OsString>, cli: &Command) -> Result<Vec<OsString>, Failure> {
    let Some(command) = args.get(1).and_then(|name| cli.find_subcommand(name.to_str()?)) else { return Ok(args) };
    if !command.get_arguments().any(|arg| arg.get_long() == Some(&FLAG[2..])) {
        return Ok(args);
    }
    let Some(file) = take(&mut args)? else { return Ok(args) };
    let typed: Vec<String> = args[2..].iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let given = |name: &str| if name == "model" { names_model(&typed) } else { is_given(&typed, name) };
    let flags = read(&file)?.into_iter().filter(|(name, _)| !given(name));
    let flags: Vec<OsString> =
        flags.flat_map(|(name, value)| written(&name, &value, command)).map(Into::into).collect();
    args.splice(2..2, flags);
    Ok(args)
}

/// Whether a command line names a model itself, as vLLM tells: first of all, or by the flag.
fn names_model(args: &[String]) -> bool {
    args.first().is_some_and(|arg| !arg.starts_with('-')) || is_given(args, "model")
}

/// Whether a flag or its opposite is on a command line.
fn is_given(args: &[String], name: &str) -> bool {
    let plain = name.trim_start_matches("no-");
    let is = |arg: &String| {
        let flag = arg.split('=').next().unwrap_or_default();
        flag.strip_prefix("--").is_some_and(|flag| flag.trim_start_matches("no-") == plain)
    };
    args.iter().any(is)
}

/// Takes the flag off the command line.
fn take(args: &mut Vec<OsString>) -> Result<Option<String>, Failure> {
    let text = |arg: &OsString| arg.to_string_lossy().into_owned();
    let end = args.iter().position(|arg| arg == "--").unwrap_or(args.len());
    let Some(at) = args[..end].iter().map(text).position(|arg| arg == FLAG || arg.starts_with("--config=")) else {
        return Ok(None);
    };
    let arg = text(&args.remove(at));
    match arg.split_once('=') {
        Some((_, file)) => Ok(Some(file.to_string())),
        None if at < args.len() => Ok(Some(text(&args.remove(at)))),
        None => Err(Failure::usage("--config needs a file")),
    }
}

/// The entries of a file, in its order.
fn read(file: &str) -> Result<Vec<(String, Value)>, Failure> {
    let wrong = |problem: String| Failure::usage(format!("{file} cannot be used: {problem}"));
    let size = fs::metadata(file).map_err(|e| wrong(e.to_string()))?.len();
    if size > MAX_BYTES {
        return Err(wrong(format!("it has {size} bytes, but at most {MAX_BYTES} are read")));
    }
    let text = fs::read_to_string(file).map_err(|e| wrong(e.to_string()))?;
    let documents = YamlLoader::load_from_str(&text).map_err(|e| wrong(e.to_string()))?;
    match documents.into_iter().next() {
        Some(Yaml::Hash(entries)) => {
            let entry = |(name, value): (Yaml, Yaml)| Some((name.into_string()?.replace('_', "-"), json(value)));
            let read: Option<Vec<_>> = entries.into_iter().map(entry).collect();
            read.ok_or_else(|| wrong("the names of its entries must be texts".to_string()))
        }
        None | Some(Yaml::Null) => Ok(vec![]),
        Some(_) => Err(wrong("it must hold flags by their names, as `port: 8000`".to_string())),
    }
}

fn json(yaml: Yaml) -> Value {
    match yaml {
        Yaml::Boolean(value) => value.into(),
        Yaml::Integer(value) => value.into(),
        Yaml::Real(text) => text.parse::<f64>().map_or(Value::String(text), Value::from),
        Yaml::String(text) => text.into(),
        Yaml::Array(all) => all.into_iter().map(json).collect(),
        Yaml::Hash(all) => {
            all.into_iter().filter_map(|(k, v)| Some((k.into_string()?, json(v)))).collect::<Map<_, _>>().into()
        }
        Yaml::Alias(_) | Yaml::Null | Yaml::BadValue => Value::Null,
    }
}

/// An entry as it is typed. A false one is the flag's opposite where it has one, and nothing where it has none.
fn written(name: &str, value: &Value, command: &Command) -> Vec<String> {
    let opposite = format!("no-{name}");
    let has = |long: &str| command.get_arguments().any(|arg| arg.get_long() == Some(long));
    match value {
        Value::Null => vec![],
        Value::Bool(true) => vec![format!("--{name}")],
        Value::Bool(false) if has(&opposite) => vec![format!("--{opposite}")],
        Value::Bool(false) if has(name) => vec![],
        Value::Bool(false) => vec![format!("--{name}")],
        Value::Array(all) => all.iter().map(|value| format!("--{name}={}", plain(value))).collect(),
        value => vec![format!("--{name}={}", plain(value))],
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Serve};
    use clap::{CommandFactory, Parser};

    fn with(yaml: &str, args: &str) -> Result<Serve, String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.yaml");
        fs::write(&file, yaml).unwrap();
        let args = args.replace("FILE", file.to_str().unwrap());
        let args = expand(args.split(' ').map(Into::into).collect(), &Cli::command()).map_err(|e| e.to_string())?;
        match Cli::try_parse_from(args).map_err(|e| e.to_string())?.command {
            crate::cli::Command::Serve(serve) => Ok(*serve),
            _ => panic!("serve"),
        }
    }

    #[test]
    fn a_file_is_read_under_the_command_line() {
        let yaml = "model: m.rvllm\nport: 9000\nhost: \"0.0.0.0\"\nserved_model_name: [a, b]\nenable-prefix-caching: false\n\
            allowed-origins: '[\"x\"]'\nstrict: true\nuvicorn-log-level: debug\ndefault-chat-template-kwargs:\n  thinking: false\n\
            enable-force-include-usage: false\ntensor-parallel-size: 1\n";
        let read = with(yaml, "rvllm serve --config FILE --port 9001").unwrap();
        assert_eq!((read.name(), read.server.port, read.server.host.as_str()), (Some("m.rvllm"), 9001, "0.0.0.0"));
        assert_eq!(read.server.served.served_model_name, ["a", "b"]);
        assert_eq!((read.engine.prefix_caching(), read.server.served.strict), (Some(false), true));
        assert!(!read.server.enable_force_include_usage);
        assert_eq!(read.server.served.default_chat_template_kwargs.unwrap()["thinking"], false);
        let named =
            with(yaml, "rvllm serve other.rvllm --config=FILE --served-model-name c --enable-prefix-caching").unwrap();
        assert_eq!(
            (&named.server.served.served_model_name[..], named.engine.prefix_caching()),
            (&["c".to_string()][..], Some(true))
        );
        assert_eq!((named.name(), named.server.port), (Some("other.rvllm"), 9000));
    }

    #[test]
    fn what_a_file_cannot_say_is_told() {
        for (yaml, problem) in [
            ("- a", "it must hold flags by their names"),
            ("a: [", "cannot be used"),
            ("nonsense: 1", "unexpected argument '--nonsense'"),
            ("nonsense: false", "unexpected argument '--nonsense'"),
            ("tensor-parallel-size: 2", "--tensor-parallel-size 2 cannot be honoured"),
            ("enable-chunked-prefill: false", "--no-enable-chunked-prefill cannot be honoured"),
        ] {
            let error = with(yaml, "rvllm serve m --config FILE").unwrap_err();
            assert!(error.contains(problem), "{yaml}: {error}");
        }
        assert!(with("", "rvllm serve m --config FILE.not").unwrap_err().contains("cannot be used"));
    }
}

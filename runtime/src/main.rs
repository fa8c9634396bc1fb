//! The `rvllm` command: runs models that were compiled ahead of time.

use clap::{CommandFactory, Parser};
use rvllm::{
    bench, chat,
    cli::{self, Cli, Command},
    error, eval, generate, inspect, model, run_batch, serve, verify,
};
use std::{env, process::ExitCode, time::Instant};

fn main() -> ExitCode {
    let start = Instant::now();
    let args = match cli::config::expand(cli::normalize(env::args_os()), &Cli::command()) {
        Ok(args) => args,
        Err(failure) => return ExitCode::from(error::report(&failure.into())),
    };
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(told) => {
            // A closed stdout is the reader's choice.
            let _ = told.print();
            return ExitCode::from(if told.use_stderr() { error::USAGE } else { 0 });
        }
    };
    match run(cli.command, start) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => ExitCode::from(error::report(&error)),
    }
}

fn run(command: Command, start: Instant) -> anyhow::Result<()> {
    match command {
        Command::Compile(passed) => model::become_compiler(None, &passed.args),
        Command::Targets(passed) => model::become_compiler(Some("targets"), &passed.args),
        Command::Generate(args) => generate::run(&args, start),
        Command::Run(args) => chat::run(&args, start),
        Command::Serve(args) => serve::run(&args, start),
        Command::RunBatch(flags) => run_batch::run(&flags),
        Command::Bench(bench) => bench::run(&bench),
        Command::Eval(eval) => eval::run(&eval),
        Command::Inspect(args) => inspect::run(&args),
        Command::Verify(args) => verify::run(&args),
    }
}

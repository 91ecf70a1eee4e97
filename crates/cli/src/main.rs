//! The `regatta` binary: arguments, configuration, wiring, exit codes and error text.
//!
//! It is the only place that prints and that reads the environment. It decides nothing about a run: the brains are in
//! `model`, and everything that it shows is read from the run's facts.

mod args;
mod config;
mod error;
mod exit;
mod face;
mod filter;
mod list;
mod listing;
mod out;
mod project;
mod run;
mod show;
mod signals;
mod status;
mod surroundings;
mod worker;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Args, Command, LogFormat};
use crate::error::CliError;
use crate::exit::Exit;

/// Threads of the run's runtime: one for the dispatcher's side, one for the worker's. Tests have threads of their own.
const RUN_THREADS: usize = 2;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Nothing can be done when not even this can be printed.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage.into() } else { Exit::Passed.into() };
        }
    };
    let (color, log_format) = (args.color, args.log_format);
    match start(args) {
        Ok(exit) => exit.into(),
        Err(error) => {
            // An error is said even where the log is off.
            if log_format == LogFormat::Json && tracing::enabled!(tracing::Level::ERROR) {
                error.log();
            } else {
                error.print(color.on_stderr());
            }
            error.exit.into()
        }
    }
}

fn start(args: Args) -> Result<Exit, CliError> {
    surroundings::start_logs(&args)?;
    let threads = if matches!(args.command, Command::Run(_)) { RUN_THREADS } else { 1 };
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(threads).enable_all().build();
    let runtime = runtime.map_err(|error| {
        CliError::from_error(Exit::Fault, "no thread can be started", &error)
            .hint("look at the limit of processes (ulimit -u)")
    })?;
    let color = args.color;
    runtime.block_on(async {
        match args.command {
            Command::Run(run) => Box::pin(run::run(run, color)).await,
            Command::List(list) => list::list(&list),
            Command::Worker(worker) => Box::pin(worker::work(worker)).await,
            Command::Status(status) => Box::pin(status::status(status, color)).await,
            Command::Show(show) => show::show(&show, color),
        }
    })
}

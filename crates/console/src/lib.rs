//! What a Celery application's own binary shows: its arguments, its lines and tables, its records, its logs.
//!
//! An application is an [`App`] and the workers that it is split into; [`main`] makes a command-line program of it, with
//! `dispatch`, `worker`, `status` and `setup`. This crate knows no task and no broker beyond `regatta-celery`.

#![warn(missing_docs)]

mod args;
mod broker;
mod collect;
mod color;
mod dispatch;
mod error;
mod live;
mod log;
mod name;
mod progress;
mod record;
mod setup;
mod show;
mod signals;
mod status;
mod worker;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};
use regatta_celery::{App, BrokerUrl};

use self::args::{Args, Command, Format, LookArgs};
pub use self::broker::{BrokerArgs, BrokerArgsError};
pub use self::color::Color;
pub use self::live::Live;
pub use self::log::log;
pub use self::name::{host, node_name};
pub use self::record::{Execution, Record, SCHEMA, Statistics};
pub use self::status::{Expected, STATUS_SCHEMA, Status, StatusArgs, status};

/// One worker of an application: its name, and the queue that is its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crew {
    /// The worker's name.
    pub worker: &'static str,
    /// The only queue that it consumes.
    pub queue: &'static str,
}

/// The exit code of an interrupted dispatch, as shells have it for SIGINT (128 and the signal's number).
const INTERRUPTED: u8 = 130;

/// Runs the application as a program: reads the arguments and does what they say. The exit code is 0 only when all of
/// it went well, 2 for wrong arguments, 130 after an interruption, and otherwise 1.
pub fn main(app: &App, crew: &[Crew]) -> ExitCode {
    let name = app.name().to_owned();
    let matches = Args::command().display_name(name.clone()).bin_name(name.clone()).get_matches();
    let args = match Args::from_arg_matches(&matches) {
        Ok(args) => args,
        Err(error) => error.exit(),
    };
    log::start(&args.log, args.command.default_level(), &name.replace('-', "_"));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(async {
            match &args.command {
                Command::Dispatch(given) => Box::pin(dispatch::run(app, crew, given, args.color)).await,
                Command::Worker(given) => Box::pin(worker::run(app, crew, given)).await,
                Command::Status(given) => Box::pin(look(app, crew, given, args.color.on_stdout())).await,
                Command::Setup(given) => Box::pin(setup::run(crew, given, args.color)).await,
            }
        }),
        Err(error) => Err(error::ConsoleError::Runtime(error)),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            match args.log.log_format {
                Format::Human => show::error(&error),
                Format::Json => tracing::error!(message = %error, causes = show::causes(&error).join(": ")),
            }
            if matches!(error, error::ConsoleError::Interrupted) {
                ExitCode::from(INTERRUPTED)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

/// Where the broker is, when one inside this process makes no sense.
fn outside(args: &BrokerArgs) -> Result<BrokerUrl, error::ConsoleError> {
    let url = args.url()?;
    if url.is_embedded() { Err(error::ConsoleError::NeedsBroker) } else { Ok(url) }
}

/// `status` of the application's own queues and workers, unless others are named.
async fn look(app: &App, crew: &[Crew], given: &LookArgs, color: bool) -> Result<bool, error::ConsoleError> {
    let mut wanted = given.status.clone();
    if wanted.queues.is_empty() && wanted.workers.is_empty() {
        let expected =
            |one: &Crew| Expected { worker: one.worker.to_owned(), queue: Some(one.queue.to_owned()) };
        wanted.workers = crew.iter().map(expected).collect();
    }
    let (url, options) = (outside(&given.broker)?, given.broker.options("status"));
    let start = format!("{} worker --queue", app.name());
    let found = Box::pin(status(&url, options, &wanted, &start)).await;
    found.print(given.format == Format::Json, color).map_err(error::ConsoleError::Output)?;
    Ok(found.is_ok())
}

//! The arguments.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use regatta_celery::{queue_name, worker_name};

use crate::broker::BrokerArgs;
use crate::color::Color;
use crate::status::StatusArgs;

#[derive(Debug, Parser)]
#[command(version, about = "Tasks, queues and isolated workers", long_about = None)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// When to use colours; the variable `NO_COLOR` is honoured.
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto)]
    pub(crate) color: Color,
    #[command(flatten)]
    pub(crate) log: LogArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Send every task and show the results.
    Dispatch(DispatchArgs),
    /// Run one worker until it is told to stop (SIGTERM or SIGINT; a second one ends it at once).
    Worker(WorkerArgs),
    /// Say whether the broker, the queues and the workers are well; exit code 0 only when all are.
    Status(LookArgs),
    /// Declare the queues and exchanges, with an administrator's rights.
    Setup(SetupArgs),
}

impl Command {
    pub(crate) fn default_level(&self) -> Level {
        if matches!(self, Self::Worker(_)) { Level::Info } else { Level::Warn }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Lines and tables.
    Human,
    /// One JSON record.
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Debug, clap::Args)]
pub(crate) struct LogArgs {
    /// The form of the log on the standard error stream.
    #[arg(long, global = true, value_enum, default_value_t = Format::Human)]
    pub(crate) log_format: Format,
    /// How much is logged [default: info for a worker, else warn].
    #[arg(long, global = true, value_enum)]
    pub(crate) log_level: Option<Level>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DispatchArgs {
    #[command(flatten)]
    pub(crate) broker: BrokerArgs,
    /// How often to send each task.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) count: u32,
    /// How long each task waits before it answers, in seconds.
    #[arg(long, default_value = "0", value_parser = seconds)]
    pub(crate) wait: Duration,
    /// The slots of each worker inside this process (with the embedded broker).
    #[arg(long, default_value_t = 1, value_parser = slots)]
    pub(crate) slots: usize,
    /// How long to wait for all results, in seconds.
    #[arg(long, default_value = "60", value_parser = seconds)]
    pub(crate) timeout: Duration,
    /// Where the record of the dispatch goes.
    #[arg(long, default_value = "results")]
    pub(crate) results: PathBuf,
    /// What the standard output shows.
    #[arg(long, value_enum, default_value_t = Format::Human)]
    pub(crate) format: Format,
}

#[derive(Debug, clap::Args)]
pub(crate) struct WorkerArgs {
    #[command(flatten)]
    pub(crate) broker: BrokerArgs,
    /// The queue to consume.
    #[arg(long, value_parser = queue_name)]
    pub(crate) queue: String,
    /// The worker's name [default: the one that owns the queue].
    #[arg(long, value_parser = worker_name)]
    pub(crate) name: Option<String>,
    /// How many tasks it runs at a time.
    #[arg(long, default_value_t = 1, value_parser = slots)]
    pub(crate) slots: usize,
}

#[derive(Debug, clap::Args)]
pub(crate) struct LookArgs {
    #[command(flatten)]
    pub(crate) broker: BrokerArgs,
    // Without queues and workers, all of the application are looked at.
    #[command(flatten)]
    pub(crate) status: StatusArgs,
    /// What the standard output shows.
    #[arg(long, value_enum, default_value_t = Format::Human)]
    pub(crate) format: Format,
}

#[derive(Debug, clap::Args)]
pub(crate) struct SetupArgs {
    #[command(flatten)]
    pub(crate) broker: BrokerArgs,
}

pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

fn slots(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=1024) => Ok(count),
        _ => Err("not a number from 1 to 1024".to_owned()),
    }
}

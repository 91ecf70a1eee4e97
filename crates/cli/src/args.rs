//! The command line, as it is typed.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use regatta_celery::{queue_name, worker_name};
use regatta_console::{BrokerArgs, Color, StatusArgs};

use crate::config::{RETRIES_MAX, SLOTS_MAX, possible};

/// Runs a project's tests, spread over workers, and ends with one proven verdict per test.
#[derive(Debug, Parser)]
#[command(name = "regatta", version, propagate_version = true)]
#[command(
    after_help = "Exit codes: 0 all passed, 1 tests failed, 2 usage or configuration, 3 something could not be \
                        judged, 4 no tests found, 130 interrupted."
)]
pub(crate) struct Args {
    /// When to colour.
    #[arg(long, global = true, default_value = "auto", value_name = "WHEN")]
    pub(crate) color: Color,
    /// How logs are written (to standard error).
    #[arg(long, global = true, default_value = "human", value_name = "FORMAT")]
    pub(crate) log_format: LogFormat,
    /// Which logs are written, such as `info` or `regatta_worker=debug`.
    #[arg(long, global = true, env = "REGATTA_LOG", value_name = "FILTER")]
    pub(crate) log: Option<String>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// A span of time in which something can happen, as in `regatta.toml`.
fn limit(text: &str) -> Result<Duration, String> {
    let limit = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    possible(limit).map_err(str::to_owned)
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run tests.
    Run(RunArgs),
    /// List tests.
    List(ListArgs),
    /// Take batches of tests from queues, and run them.
    Worker(WorkerArgs),
    /// Say how the broker, its queues and the workers are; exit code 0 only when all is well, else 3.
    Status(LookArgs),
    /// Show the end of an earlier run again.
    Show(ShowArgs),
}

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// A line for people.
    Human,
    /// A JSON object a line.
    Json,
}

/// How results are written to standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Human,
    /// Every fact as a JSON object on a line, as in `events.jsonl`.
    Json,
}

/// Which tree, and which tests of it.
#[derive(Debug, ClapArgs)]
pub(crate) struct Selection {
    /// Only tests whose name contains this, or matches it as a whole where it has `*` or `?`. Several: any of them.
    #[arg(value_name = "PATTERN")]
    pub(crate) patterns: Vec<String>,
    /// The same as PATTERN.
    #[arg(long, value_name = "PATTERN")]
    pub(crate) filter: Vec<String>,
    /// Not tests whose name contains or matches this.
    #[arg(long, value_name = "PATTERN")]
    pub(crate) exclude: Vec<String>,
    /// Only this suite.
    #[arg(long, value_name = "NAME")]
    pub(crate) suite: Vec<String>,
    /// Only tests that failed, or could not be judged, when they were last run.
    #[arg(long)]
    pub(crate) failed: bool,
    #[command(flatten)]
    pub(crate) place: Place,
}

impl Selection {
    /// Whether only some tests of the suites are asked for.
    pub(crate) fn is_filtered(&self) -> bool {
        self.failed
            || [&self.patterns, &self.filter, &self.exclude].iter().any(|patterns| !patterns.is_empty())
    }
}

/// Where the project is.
#[derive(Debug, ClapArgs)]
pub(crate) struct Place {
    /// The project's folder.
    #[arg(short = 'C', long, value_name = "DIR", default_value = ".")]
    pub(crate) tree: PathBuf,
    /// The configuration; `regatta.toml` in the project's folder if there is one.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// `regatta run`.
#[derive(Debug, ClapArgs)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) selection: Selection,
    #[command(flatten)]
    pub(crate) broker: BrokerArgs,
    /// How many tests run at a time here; over a broker, how many slots are expected to work. Default: the cores.
    #[arg(short = 'j', long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(SLOTS_MAX)))]
    pub(crate) workers: Option<u16>,
    /// How often a failed test is tried again.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=i64::from(RETRIES_MAX)))]
    pub(crate) retries: Option<u32>,
    /// Stop after the first test that failed for good.
    #[arg(long)]
    pub(crate) fail_fast: bool,
    /// The limit for each test, such as `30s` or `5m`.
    #[arg(long, value_name = "SPAN", value_parser = limit)]
    pub(crate) timeout: Option<Duration>,
    /// Write the run's files into this folder, over what a run left there; `.regatta/runs/<id>` otherwise.
    #[arg(long, value_name = "DIR")]
    pub(crate) results: Option<PathBuf>,
    /// What goes to standard output.
    #[arg(long, default_value = "human", value_name = "FORMAT")]
    pub(crate) format: Format,
    /// A line for every test, not only for those that are not as they should be.
    #[arg(short, long)]
    pub(crate) verbose: bool,
}

/// `regatta list`.
#[derive(Debug, ClapArgs)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    pub(crate) selection: Selection,
    /// What goes to standard output: `suite name` lines, or JSON objects.
    #[arg(long, default_value = "human", value_name = "FORMAT")]
    pub(crate) format: Format,
}

/// `regatta worker`.
#[derive(Debug, ClapArgs)]
pub(crate) struct WorkerArgs {
    /// The queues to take batches from.
    #[arg(
        short = 'Q',
        long = "queues",
        value_name = "QUEUE",
        value_delimiter = ',',
        default_value = "regatta",
        value_parser = queue_name
    )]
    pub(crate) queues: Vec<String>,
    /// Its name at the broker; made from the host's name and the process id otherwise.
    #[arg(long, value_name = "NAME", value_parser = worker_name)]
    pub(crate) name: Option<String>,
    /// How many tests run at a time. Default: the cores.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(SLOTS_MAX)))]
    pub(crate) slots: Option<u16>,
    #[command(flatten)]
    pub(crate) broker: BrokerArgs,
    #[command(flatten)]
    pub(crate) place: Place,
}

/// `regatta status`.
#[derive(Debug, ClapArgs)]
pub(crate) struct LookArgs {
    #[command(flatten)]
    pub(crate) broker: BrokerArgs,
    // Without queues and workers, the queue `regatta` is looked at.
    #[command(flatten)]
    pub(crate) status: StatusArgs,
    /// What goes to standard output: tables, or one JSON object.
    #[arg(long, default_value = "human", value_name = "FORMAT")]
    pub(crate) format: Format,
}

/// `regatta show`.
#[derive(Debug, ClapArgs)]
pub(crate) struct ShowArgs {
    /// The run's id or the folder of its files; the newest otherwise.
    #[arg(value_name = "RUN")]
    pub(crate) run: Option<String>,
    /// The project's folder.
    #[arg(short = 'C', long, value_name = "DIR", default_value = ".")]
    pub(crate) tree: PathBuf,
}

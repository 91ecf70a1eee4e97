//! The log, on the standard error stream.

use tracing_subscriber::EnvFilter;

use crate::args::{Format, Level, LogArgs};
use crate::live::LogOutput;

/// Starts logging. Other crates than ours are never heard below `warn`, and the AMQP client not at all: it would tell the
/// login's frames, and what it calls an error, such as a question for a queue that isn't there, our own side judges.
pub(crate) fn start(args: &LogArgs, default: Level, app: &str) {
    let level = match args.log_level.unwrap_or(default) {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    };
    let others = if level == "error" { "error" } else { "warn" };
    let filter = EnvFilter::new(format!(
        "{others},lapin=off,regatta_celery={level},regatta_console={level},{app}={level}"
    ));
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(LogOutput::default);
    // A log that is there already is the caller's own, and stays.
    let _already_there = match args.log_format {
        Format::Human => log.try_init(),
        Format::Json => {
            log.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init()
        }
    };
}

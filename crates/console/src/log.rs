//! The log, on the standard error stream.

use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use crate::args::{Format, Level, LogArgs};
use crate::live::LogOutput;

/// What carries the bytes between us and the broker. At their lowest levels these crates write down frames, and the
/// login's frame holds the password; what they call an error, such as a question for a queue that isn't there, our own
/// side judges.
const CARRIERS: [&str; 6] = ["lapin", "amq_protocol", "async_rs", "tcp_stream", "rustls", "mio"];

/// Starts logging for an application on this crate. Other crates than ours are never heard below `warn`.
pub(crate) fn start(args: &LogArgs, default: Level, app: &str) {
    let level = match args.log_level.unwrap_or(default) {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    };
    let others = if level == "error" { "error" } else { "warn" };
    log(
        EnvFilter::new(format!("{others},regatta_celery={level},regatta_console={level},{app}={level}")),
        args.log_format == Format::Json,
    );
}

/// Starts logging what `filter` lets pass, to standard error; as JSON, one object a line, or for people. Whatever the
/// filter says, nothing is heard of those who carry our bytes. A log that is there already is the caller's own, and
/// stays.
pub fn log(filter: EnvFilter, json: bool) {
    let text = fmt::layer().with_ansi(false).with_writer(LogOutput::default);
    let layer = if json {
        text.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed()
    } else {
        text.boxed()
    };
    let layer = layer.with_filter(filter).with_filter(filter_fn(|event| !is_carrier(event.target())));
    let _already_there = tracing_subscriber::registry().with(layer).try_init();
}

fn is_carrier(target: &str) -> bool {
    let krate = target.split("::").next().unwrap_or_default();
    let of = |carrier: &str| {
        krate.strip_prefix(carrier).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
    };
    CARRIERS.iter().any(|carrier| of(carrier))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crate_that_carries_bytes_is_known_by_the_first_word_of_its_target() {
        for (target, heard) in [
            ("lapin::channel", false),
            ("lapin", false),
            ("amq_protocol_tcp", false),
            ("regatta_celery::worker", true),
            ("lapinist", true),
        ] {
            assert_eq!(!is_carrier(target), heard, "{target}");
        }
    }
}

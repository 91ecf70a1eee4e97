//! What processes print, as records carry it.

use regatta_model::{Outcome, Output, Record};

use crate::seam::{Ended, Exit};

/// The longest reason, in characters.
const MESSAGE_MAX: usize = 1_000;

/// Both outputs as one text.
pub(crate) fn output(stdout: &[u8], stderr: &[u8], bytes_omitted: u64) -> Output {
    let stdout = String::from_utf8_lossy(stdout);
    let stderr = String::from_utf8_lossy(stderr);
    let text = match (stdout.trim().is_empty(), stderr.trim().is_empty()) {
        (_, true) => stdout.into_owned(),
        (true, false) => stderr.into_owned(),
        (false, false) => format!("{}\n--- stderr ---\n{stderr}", stdout.trim_end()),
    };
    Output { text, bytes_omitted }
}

/// A record of a process that did not end as its framework ends: killed for time, by a signal, or too early.
pub(crate) fn unclean(ended: &Ended, words: impl FnOnce() -> String) -> Record {
    let (outcome, message) = match ended.exit {
        Exit::TimedOut { limit } => {
            (Outcome::TimedOut, format!("ran longer than its limit ({} s)", limit.as_secs_f64()))
        }
        Exit::Signal(signal) => (Outcome::Crashed, signal_words(signal)),
        Exit::Cancelled => (Outcome::Crashed, "was killed since its batch was cancelled".to_owned()),
        Exit::Code(_) => (Outcome::Crashed, words()),
    };
    let mut record = record(outcome, ended);
    record.message = Some(message);
    record
}

/// A record with the times and the output of its process.
pub(crate) fn record(outcome: Outcome, ended: &Ended) -> Record {
    let duration_us = u64::try_from(ended.duration.as_micros()).unwrap_or(u64::MAX);
    let output = output(&ended.stdout, &ended.stderr, ended.bytes_omitted);
    Record { output, ..Record::new(outcome, ended.started, duration_us) }
}

/// A signal for people.
pub(crate) fn signal_words(signal: i32) -> String {
    // The numbers that are the same on every Linux.
    let name = match signal {
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL: perhaps it took too much memory",
        11 => "SIGSEGV",
        15 => "SIGTERM",
        _ => return format!("was killed by signal {signal}"),
    };
    format!("was killed by signal {signal} ({name})")
}

/// A reason within its limit, in one piece.
pub(crate) fn message(text: &str) -> String {
    text.trim().chars().take(MESSAGE_MAX).collect()
}

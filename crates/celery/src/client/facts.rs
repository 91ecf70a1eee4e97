//! What a worker of this crate says about an execution besides its result.

use std::time::{Duration, SystemTime};

use crate::transport::{Headers, Value};

/// Names the worker, in the headers of a result message.
pub(crate) const WORKER_HEADER: &str = "worker";
/// When the execution began: seconds since 1970, as a double.
pub(crate) const STARTED_HEADER: &str = "started";
/// When it ended, likewise.
pub(crate) const FINISHED_HEADER: &str = "finished";
/// How many retries came before it.
pub(crate) const RETRIES_HEADER: &str = "retries";

/// Who ran a task, when, and the how-many-th try it was.
///
/// A Rust worker puts them into the result's message headers `worker` (text), `started` and `finished` (seconds since
/// 1970, double) and `retries` (integer). Celery leaves a result's headers empty and never reads them, so its body
/// stays exactly as Celery writes it. A Python worker tells `worker` and `retries` in the body if its
/// `result_extended` is on; they are taken from there.
///
/// The times are the worker's own wall clock: good for showing, not for ordering across machines.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct Facts {
    /// The worker's name (`name@host`).
    pub worker: Option<String>,
    /// When the execution began.
    pub started: Option<SystemTime>,
    /// When it ended.
    pub finished: Option<SystemTime>,
    /// How many retries came before this try; 0 for the first.
    pub retries: Option<u32>,
}

impl Facts {
    /// How long the execution took.
    pub fn run_time(&self) -> Option<Duration> {
        self.finished?.duration_since(self.started?).ok()
    }

    pub(crate) fn read(headers: &Headers) -> Self {
        let time = |name| match headers.get(name) {
            Some(Value::Double(seconds)) => Duration::try_from_secs_f64(*seconds)
                .ok()
                .and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since)),
            _ => None,
        };
        Self {
            worker: headers.get(WORKER_HEADER).and_then(Value::as_str).map(str::to_owned),
            started: time(STARTED_HEADER),
            finished: time(FINISHED_HEADER),
            retries: headers
                .get(RETRIES_HEADER)
                .and_then(Value::as_i64)
                .and_then(|count| u32::try_from(count).ok()),
        }
    }

    pub(crate) fn write(&self, headers: &mut Headers) {
        let seconds = |time: SystemTime| {
            Value::Double(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64())
        };
        if let Some(worker) = &self.worker {
            headers.insert(WORKER_HEADER, Value::from(worker.as_str()));
        }
        if let Some(started) = self.started {
            headers.insert(STARTED_HEADER, seconds(started));
        }
        if let Some(finished) = self.finished {
            headers.insert(FINISHED_HEADER, seconds(finished));
        }
        if let Some(retries) = self.retries {
            headers.insert(RETRIES_HEADER, Value::from(i64::from(retries)));
        }
    }
}

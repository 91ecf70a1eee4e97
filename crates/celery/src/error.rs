//! What can go wrong with a task, seen from its handler ([`TaskError`]), from its caller ([`TaskFailure`],
//! [`SendError`]) and from the process that runs a worker ([`WorkerError`]).

use std::fmt;
use std::time::Duration;

use serde_json::Value;

use crate::client::Facts;
use crate::transport::{PublishError, TransportError};
use crate::wire::{JsonError, RawJson, ResultMessage};

/// How a handler ends without a result.
///
/// Every [`std::error::Error`] turns into a [`TaskError::failed`] by `?`, under the name of its type. That is why this
/// type doesn't implement [`std::error::Error`] itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskError {
    pub(crate) kind: ErrorKind,
    pub(crate) exc_type: String,
    pub(crate) exc_module: String,
    pub(crate) message: String,
    pub(crate) traceback: Option<String>,
}

/// What shall become of the task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ErrorKind {
    /// `FAILURE`, after the retries that the task's policy allows.
    Failed,
    /// `FAILURE`, whatever the policy says.
    Fatal,
    /// The handler itself asks for a retry, after this long or after what the policy says.
    Retry(Option<Duration>),
    /// The task isn't for this worker: `FAILURE`, and the message is dead-lettered.
    Refused,
}

/// The module that failures of Rust handlers carry in `exc_module`. Python doesn't import it: a Python caller sees
/// `celery.exceptions.<exc_type>`.
pub(crate) const MODULE: &str = "rust";

/// Celery's own module of exceptions, for those that Python callers know by class.
pub(crate) const CELERY_MODULE: &str = "celery.exceptions";

impl TaskError {
    fn new(kind: ErrorKind, exc_type: &str, message: impl Into<String>) -> Self {
        let (exc_type, exc_module) = (exc_type.to_owned(), MODULE.to_owned());
        Self { kind, exc_type, exc_module, message: message.into(), traceback: None }
    }

    /// The task failed. It is retried as its policy says; without one, or when the tries are used up, the caller gets
    /// `FAILURE` with this message.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Failed, "TaskError", message)
    }

    /// The task failed and a retry can't help: `FAILURE` at once.
    pub fn fatal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Fatal, "TaskError", message)
    }

    /// Asks for a retry after the delay that the task's policy says
    /// ([`Retry::default`](crate::Retry) where it has none).
    pub fn retry(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Retry(None), "TaskError", message)
    }

    /// Asks for a retry after `delay`. The policy still limits how many there may be.
    pub fn retry_in(delay: Duration, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Retry(Some(delay)), "TaskError", message)
    }

    /// This worker must not run the task: the caller gets `FAILURE` (`Reject`) with the reason and the message is
    /// dead-lettered.
    pub fn refused(reason: impl Into<String>) -> Self {
        Self { exc_module: CELERY_MODULE.to_owned(), ..Self::new(ErrorKind::Refused, "Reject", reason) }
    }

    /// The same error under another exception name, which is what callers see (`exc_type`).
    #[must_use]
    pub fn named(mut self, exc_type: impl Into<String>) -> Self {
        self.exc_type = exc_type.into();
        self
    }

    /// The same error with an exception name out of a Python module, such as `ValueError` of `builtins`.
    #[must_use]
    pub fn python(mut self, exc_type: impl Into<String>, exc_module: impl Into<String>) -> Self {
        self.exc_type = exc_type.into();
        self.exc_module = exc_module.into();
        self
    }

    /// The message.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The exception name that callers see.
    pub fn exc_type(&self) -> &str {
        &self.exc_type
    }
}

impl fmt::Display for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.exc_type, self.message)
    }
}

impl<E: std::error::Error + Send + Sync + 'static> From<E> for TaskError {
    fn from(error: E) -> Self {
        let mut causes = Vec::new();
        let mut source = error.source();
        while let Some(cause) = source {
            causes.push(format!("caused by: {cause}"));
            source = cause.source();
        }
        let mut failed = Self::failed(error.to_string()).named(type_name::<E>());
        failed.traceback = (!causes.is_empty()).then(|| causes.join("\n"));
        failed
    }
}

/// `ParseIntError` for `core::num::error::ParseIntError`.
fn type_name<T>() -> &'static str {
    let full = std::any::type_name::<T>();
    let plain = full.split('<').next().unwrap_or(full);
    plain.rsplit("::").next().unwrap_or(plain)
}

/// Why a caller has no result of its task.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum TaskFailure {
    /// The task ended in `FAILURE`.
    #[error("task {id} failed: {error}")]
    Remote {
        /// The task's id.
        id: String,
        /// What the worker said.
        error: Box<RemoteError>,
        /// Who ran it and when.
        facts: Box<Facts>,
    },
    /// The task was revoked, or was too old when a worker came to it.
    #[error("task {id} was revoked: {reason}")]
    Revoked {
        /// The task's id.
        id: String,
        /// What the worker said, such as `terminated` or `expired`.
        reason: String,
    },
    /// Nothing came back in time. The task may still be queued or at work.
    #[error(
        "no result of task {id} after {waited:?} (its last known state is {last}); look whether a worker consumes its queue"
    )]
    Timeout {
        /// The task's id.
        id: String,
        /// How long the caller waited.
        waited: Duration,
        /// The last state that a worker told.
        last: String,
    },
    /// The reply queue was lost with the connection and declared anew: a result that was on its way is gone, one that
    /// comes later still arrives. Waiting again is allowed.
    #[error(
        "the reply queue of task {id} was lost with the broker connection; a result sent meanwhile is gone"
    )]
    ReplyLost {
        /// The task's id.
        id: String,
    },
    /// The result isn't what the caller asked for.
    #[error("task {id} succeeded, but its result isn't of the expected type")]
    Decode {
        /// The task's id.
        id: String,
        /// What doesn't fit.
        #[source]
        source: JsonError,
    },
    /// What the worker told of the task can't be read: it came in another serializer, or malformed.
    #[error("what a worker told of task {id} can't be read: {reason}")]
    Unreadable {
        /// The task's id.
        id: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The client was closed while the caller waited.
    #[error("the client was closed before task {id} had a result")]
    Closed {
        /// The task's id.
        id: String,
    },
}

/// An exception as Celery carries it across the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteError {
    /// The exception's class name, such as `ValueError`.
    pub exc_type: String,
    /// The module that the class lives in.
    pub exc_module: String,
    /// Its message: the arguments of the exception, joined by commas.
    pub message: String,
    /// The traceback, when the worker sent one.
    pub traceback: Option<String>,
}

impl TaskError {
    /// The exception as Celery's results carry it.
    pub(crate) fn to_wire(&self) -> RawJson {
        crate::emitter::json(&serde_json::json!({
            "exc_type": self.exc_type,
            "exc_message": [self.message],
            "exc_module": self.exc_module,
        }))
    }
}

impl RemoteError {
    /// Reads the exception of a result that isn't a success. What isn't in Celery's form is shown as it came.
    pub fn read(message: &ResultMessage) -> Self {
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let traceback = message.traceback.clone();
        match message.result.to::<Value>() {
            Ok(Value::Object(exception)) => {
                let of = |name: &str| exception.get(name).map(text).unwrap_or_default();
                let shown = match exception.get("exc_message") {
                    Some(Value::Array(args)) => args.iter().map(text).collect::<Vec<_>>().join(", "),
                    Some(Value::Null) | None => String::new(),
                    Some(other) => text(other),
                };
                Self { exc_type: of("exc_type"), exc_module: of("exc_module"), message: shown, traceback }
            }
            _ => Self {
                exc_type: message.status.as_str().to_owned(),
                exc_module: String::new(),
                message: message.result.as_str().to_owned(),
                traceback,
            },
        }
    }
}

impl fmt::Display for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.message.is_empty() {
            f.write_str(&self.exc_type)
        } else {
            write!(f, "{}: {}", self.exc_type, self.message)
        }
    }
}

/// Why a task could not be sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// An argument can't be written as JSON.
    #[error("an argument of task {task} can't be written as JSON")]
    Encode {
        /// The task's name.
        task: String,
        /// Why.
        #[source]
        source: JsonError,
    },
    /// The arguments of a task are neither a list nor an object.
    #[error("{what} of task {task} must be {expected}")]
    Shape {
        /// The task's name.
        task: String,
        /// Which part.
        what: &'static str,
        /// What it must be.
        expected: &'static str,
    },
    /// A header is larger than one frame can carry.
    #[error("the headers of task {task} take {bytes} bytes; more than {limit} don't fit in one frame")]
    TooLarge {
        /// The task's name.
        task: String,
        /// Their size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The broker didn't take the message.
    #[error("task {task} was not taken by the broker")]
    Publish {
        /// The task's name.
        task: String,
        /// Why.
        #[source]
        source: PublishError,
    },
    /// The topology that the message needs isn't there.
    #[error("the queue of task {task} could not be made ready")]
    Topology {
        /// The task's name.
        task: String,
        /// Why.
        #[source]
        source: TransportError,
    },
}

/// Why a client could not start, or could not ask the workers.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The broker refused or failed.
    #[error("{doing}")]
    Transport {
        /// What the client was doing.
        doing: String,
        /// Why it failed.
        #[source]
        source: TransportError,
    },
    /// A control request was not taken by the broker.
    #[error("the control request {method} was not taken by the broker")]
    Publish {
        /// The request's method.
        method: String,
        /// Why.
        #[source]
        source: PublishError,
    },
}

/// Why a worker could not start or could not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// An option makes no sense.
    #[error("worker {worker}: {reason}")]
    Options {
        /// The worker's name.
        worker: String,
        /// What is wrong with which option.
        reason: String,
    },
    /// A queue, an exchange or a binding could not be made ready.
    #[error("worker {worker} can't get {what} ready{hint}")]
    Topology {
        /// The worker's name.
        worker: String,
        /// The entity.
        what: String,
        /// What to do, beginning with a separator; empty when there is nothing to say.
        hint: String,
        /// The broker's own words.
        #[source]
        source: TransportError,
    },
    /// All consumers were ended by the broker, and what was in hand is finished.
    #[error(
        "worker {worker} has nothing to consume any more: its queues were deleted or the broker was closed"
    )]
    NothingToConsume {
        /// The worker's name.
        worker: String,
    },
    /// A queue could not be consumed.
    #[error("worker {worker} can't consume queue {queue}{hint}")]
    Consume {
        /// The worker's name.
        worker: String,
        /// The queue.
        queue: String,
        /// What to do, beginning with a separator; empty when there is nothing to say.
        hint: String,
        /// The broker's own words.
        #[source]
        source: TransportError,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_error_becomes_a_failure_under_its_own_name() {
        let error = TaskError::from("x".parse::<i32>().unwrap_err());
        assert_eq!(error.exc_type(), "ParseIntError");
        assert_eq!(error.message(), "invalid digit found in string");
        assert_eq!(error.kind, ErrorKind::Failed);
    }
}

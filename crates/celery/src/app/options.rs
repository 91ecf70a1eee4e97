//! What can be said about one task.

use std::time::Duration;

use crate::retry::Retry;

/// The options of one task. All times of a message itself (Celery's `time_limit`) go before those here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TaskOptions {
    pub(crate) queue: Option<String>,
    pub(crate) retry: Option<Retry>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) soft_timeout: Option<Duration>,
    pub(crate) ignore_result: bool,
    pub(crate) blocking: bool,
}

impl TaskOptions {
    /// No route, no retry, no time limit.
    pub fn new() -> Self {
        Self::default()
    }

    /// The queue that the task goes to, as [`App::route`](crate::App::route) says it.
    #[must_use]
    pub fn queue(mut self, queue: impl Into<String>) -> Self {
        self.queue = Some(queue.into());
        self
    }

    /// How failures are retried. Without a policy only an explicit
    /// [`TaskError::retry`](crate::TaskError::retry) is, by [`Retry::CELERY`].
    #[must_use]
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = Some(retry);
        self
    }

    /// The hard time limit: the execution ends there with a `FAILURE` (`TimeLimitExceeded`), which no retry follows.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// The soft time limit: [`Context::soft_limit`](crate::Context::soft_limit) fires there, and the handler decides.
    #[must_use]
    pub fn soft_timeout(mut self, timeout: Duration) -> Self {
        self.soft_timeout = Some(timeout);
        self
    }

    /// No result is published unless the caller asks for one.
    #[must_use]
    pub fn ignore_result(mut self) -> Self {
        self.ignore_result = true;
        self
    }

    /// The handler's future may block its thread for long. It runs on a thread of the runtime's blocking pool, which
    /// costs a thread switch for each task. For a plain function, [`App::blocking_task`](crate::App::blocking_task)
    /// says the same.
    #[must_use]
    pub fn blocking(mut self) -> Self {
        self.blocking = true;
        self
    }
}

//! What an ended execution comes to. Pure: the randomness comes in, and nothing here publishes.

use std::time::Duration;

use crate::app::Ended;
use crate::error::{CELERY_MODULE, ErrorKind, TaskError};
use crate::retry::Retry;
use crate::wire::RawJson;

/// How an execution ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The handler returned.
    Returned(Ended),
    /// The handler panicked.
    Panicked(String),
    /// It passed its hard time limit.
    TimedOut(Duration),
    /// It was interrupted on request.
    Terminated,
}

/// What follows from it.
#[derive(Debug, PartialEq)]
pub(crate) enum Conclusion {
    /// Publish the result, then acknowledge.
    Succeed(RawJson),
    /// Publish the task again, to come back after the delay, then the state `RETRY`, then acknowledge.
    Retry(TaskError, Duration),
    /// Publish the failure, then acknowledge.
    Fail(TaskError),
    /// Publish the failure, dead-letter the message.
    Refuse(TaskError),
    /// Publish `REVOKED`, then acknowledge.
    Revoke(&'static str),
}

/// Decides. `policy` is the task's own, `retries` how many came before, `random` uniform in `0.0..1.0`.
pub(crate) fn conclude(end: End, policy: Option<Retry>, retries: u32, random: f64) -> Conclusion {
    let error = match end {
        End::Returned(Ok(result)) => return Conclusion::Succeed(result),
        End::Returned(Err(error)) => error,
        End::Panicked(message) => TaskError::failed(message).named("Panic"),
        End::TimedOut(limit) => {
            let limit = limit.as_secs_f64().to_string();
            return Conclusion::Fail(
                TaskError::fatal(limit).python("TimeLimitExceeded", "billiard.exceptions"),
            );
        }
        End::Terminated => return Conclusion::Revoke("terminated"),
    };
    match error.kind {
        ErrorKind::Refused => Conclusion::Refuse(error),
        ErrorKind::Fatal => Conclusion::Fail(error),
        ErrorKind::Failed => match policy.and_then(|policy| policy.delay(retries, random)) {
            Some(delay) => Conclusion::Retry(error, delay),
            None => Conclusion::Fail(error),
        },
        ErrorKind::Retry(asked) => match policy.unwrap_or_default().delay(retries, random) {
            Some(delay) => Conclusion::Retry(error, asked.unwrap_or(delay)),
            None => Conclusion::Fail(error),
        },
    }
}

/// The failure of a task whose name nobody registered here.
pub(crate) fn not_registered(name: &str) -> TaskError {
    TaskError::refused(name).python("NotRegistered", CELERY_MODULE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_becomes_one_conclusion() {
        let one = || RawJson::of(&1).unwrap();
        let failed = || TaskError::failed("no");
        let seconds = Duration::from_secs;
        let policy = Retry::max(2).backoff(seconds(4), seconds(60));
        let table = [
            ("result", End::Returned(Ok(one())), Some(policy), 0, Conclusion::Succeed(one())),
            ("no policy", End::Returned(Err(failed())), None, 0, Conclusion::Fail(failed())),
            ("first", End::Returned(Err(failed())), Some(policy), 0, Conclusion::Retry(failed(), seconds(2))),
            (
                "second",
                End::Returned(Err(failed())),
                Some(policy),
                1,
                Conclusion::Retry(failed(), seconds(4)),
            ),
            ("used up", End::Returned(Err(failed())), Some(policy), 2, Conclusion::Fail(failed())),
            (
                "panic",
                End::Panicked("ouch".to_owned()),
                Some(policy),
                0,
                Conclusion::Retry(TaskError::failed("ouch").named("Panic"), seconds(2)),
            ),
            (
                "fatal",
                End::Returned(Err(TaskError::fatal("x"))),
                Some(policy),
                0,
                Conclusion::Fail(TaskError::fatal("x")),
            ),
            (
                "asked",
                End::Returned(Err(TaskError::retry("x"))),
                None,
                2,
                Conclusion::Retry(TaskError::retry("x"), seconds(180)),
            ),
            (
                "asked, with a delay",
                End::Returned(Err(TaskError::retry_in(seconds(7), "x"))),
                Some(policy),
                0,
                Conclusion::Retry(TaskError::retry_in(seconds(7), "x"), seconds(7)),
            ),
            (
                "asked too often",
                End::Returned(Err(TaskError::retry("x"))),
                Some(Retry::NEVER),
                0,
                Conclusion::Fail(TaskError::retry("x")),
            ),
            (
                "refused",
                End::Returned(Err(TaskError::refused("x"))),
                Some(policy),
                0,
                Conclusion::Refuse(TaskError::refused("x")),
            ),
            (
                "time limit",
                End::TimedOut(Duration::from_millis(1500)),
                Some(policy),
                0,
                Conclusion::Fail(TaskError::fatal("1.5").python("TimeLimitExceeded", "billiard.exceptions")),
            ),
            ("terminated", End::Terminated, Some(policy), 0, Conclusion::Revoke("terminated")),
        ];
        for (name, end, policy, retries, expected) in table {
            assert_eq!(conclude(end, policy, retries, 0.5), expected, "{name}");
        }
    }
}

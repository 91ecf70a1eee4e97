//! One task in hand: from the start of its handler to the settlement of its delivery.

use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use futures::FutureExt;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::app::{Arguments, Registered};
use crate::client::Facts;
use crate::context::Context;
use crate::transport::{Envelope, PublishError, Settler};
use crate::wire::{RawJson, State, TaskMessage};
use crate::worker::conclude::{Conclusion, End, conclude};
use crate::worker::hands::Hands;
use crate::worker::slots::{Key, Settlement};

/// A task in hand. Shared between its execution, its handler's [`Context`] and the remote control that shows it.
pub(crate) struct Execution {
    pub(crate) id: Arc<str>,
    pub(crate) name: String,
    pub(crate) retries: u32,
    pub(crate) queue: Arc<str>,
    pub(crate) redelivered: bool,
    /// Whether its result is wanted when the caller says nothing about that.
    pub(crate) ignores_by_default: bool,
    /// The message without its arguments.
    pub(crate) message: TaskMessage,
    /// The delivery as it came, from which a retry is published.
    pub(crate) envelope: Envelope,
    /// Not after this time.
    pub(crate) expires: Option<SystemTime>,
    /// Fires on termination.
    pub(crate) revoked: CancellationToken,
    /// Fires when it is revoked without termination while it runs.
    pub(crate) unwanted: CancellationToken,
    /// Fires at the soft time limit.
    pub(crate) soft: CancellationToken,
    pub(crate) started: OnceLock<SystemTime>,
    pub(crate) hands: Arc<Hands>,
}

impl Execution {
    /// The how-many-th try it is, from 1.
    pub(crate) fn attempt(&self) -> u32 {
        self.retries.saturating_add(1)
    }

    pub(crate) fn worker_name(&self) -> &str {
        &self.hands.options.name
    }

    /// Where its result goes, if anybody wants it.
    pub(crate) fn reply_to(&self) -> Option<&str> {
        self.message.reply_to.as_deref().filter(|reply_to| !reply_to.is_empty())
    }

    /// Publishes a state before the result.
    pub(crate) async fn tell(&self, state: State, meta: RawJson) -> Result<(), PublishError> {
        self.hands.tell(self, state, meta).await
    }

    /// What is said of it beside its result.
    pub(crate) fn facts(&self, finished: Option<SystemTime>) -> Facts {
        Facts {
            worker: Some(self.worker_name().to_owned()),
            started: self.started.get().copied(),
            finished,
            retries: Some(self.retries),
        }
    }

    /// The hard and the soft time limit: the message's own before the task's.
    fn limits(&self, task: &Registered) -> (Option<Duration>, Option<Duration>) {
        let own = |seconds: Option<f64>| {
            seconds
                .filter(|seconds| *seconds > 0.0)
                .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        };
        let (hard, soft) = self.message.timelimit;
        let hard = own(hard).or(task.options.timeout);
        let hard = match (hard, self.hands.options.max_timeout) {
            (Some(hard), Some(most)) => Some(hard.min(most)),
            (hard, most) => hard.or(most),
        };
        (hard, own(soft).or(task.options.soft_timeout))
    }
}

impl fmt::Debug for Execution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Execution").field("id", &self.id).field("name", &self.name).finish_non_exhaustive()
    }
}

/// An accepted delivery: what its execution needs besides what everybody may see of it.
pub(crate) struct Accepted {
    pub(crate) key: Key,
    pub(crate) execution: Arc<Execution>,
    pub(crate) task: Arc<Registered>,
    pub(crate) arguments: Arguments,
    pub(crate) settler: Settler,
}

/// What is left to do when an execution ended.
pub(crate) enum Ran {
    /// Its slot is free; what follows from it is to be published, and its delivery to be settled.
    Ended(Box<Ending>),
    /// Nothing: its delivery is settled already.
    Settled(Settlement),
}

/// An ended execution whose end nobody knows yet.
pub(crate) struct Ending {
    pub(crate) execution: Arc<Execution>,
    pub(crate) conclusion: Conclusion,
    pub(crate) settler: Settler,
}

/// Runs an accepted delivery to its end. It publishes nothing of the end itself: thousands of short tasks a second would each wake a
/// thread for it, and the worker's loop does it for all that ended meanwhile.
pub(crate) async fn run(accepted: Accepted) -> (Key, Ran) {
    let key = accepted.key;
    // A panic here would be our own; the slot must come back even then. The unsettled delivery goes back by itself.
    let whole = AssertUnwindSafe(run_inner(accepted)).catch_unwind().await;
    (key, whole.unwrap_or(Ran::Settled(Settlement::GivenBack)))
}

async fn run_inner(accepted: Accepted) -> Ran {
    let Accepted { key: _, execution, task, arguments, settler } = accepted;
    let now = SystemTime::now();
    if execution.expires.is_some_and(|expires| expires <= now) {
        return Ran::Ended(Box::new(Ending {
            execution,
            conclusion: Conclusion::Revoke("expired"),
            settler,
        }));
    }
    let _first = execution.started.set(now);
    execution.hands.started(&execution).await;
    let handler = handler(&execution, &task, arguments);
    let mut handler = pin!(handler);
    let (hard, soft) = execution.limits(&task);
    let end = drive(&execution, handler.as_mut(), hard, soft).await;
    let interrupted = matches!(end, End::TimedOut(_) | End::Terminated);
    if interrupted {
        execution.revoked.cancel();
    }
    let conclusion = conclude(end, task.options.retry, execution.retries, fastrand::f64());
    if interrupted && task.blocking {
        // The thread can't be ended. The caller gets its answer now; the slot is free when the thread returns.
        let settlement = execution.hands.finish(&execution, conclusion, settler).await;
        let _too_late = handler.await;
        return Ran::Settled(settlement);
    }
    Ran::Ended(Box::new(Ending { execution, conclusion, settler }))
}

/// Publishes what follows from an ended execution, and settles its delivery.
pub(crate) async fn finish(ending: Ending) -> Settlement {
    let Ending { execution, conclusion, settler } = ending;
    let whole =
        AssertUnwindSafe(execution.hands.finish(&execution, conclusion, settler)).catch_unwind().await;
    // As with the execution itself.
    whole.unwrap_or(Settlement::GivenBack)
}

/// The handler's own run, with its panics caught.
fn handler(
    execution: &Arc<Execution>,
    task: &Arc<Registered>,
    arguments: Arguments,
) -> impl Future<Output = End> + Send + 'static {
    let (context, task) = (Context::new(Arc::clone(execution)), Arc::clone(task));
    // What the handler logs is then found by the same fields as what we log.
    let span = tracing::info_span!(
        "task",
        worker = execution.worker_name(),
        task = execution.name,
        task_id = &*execution.id,
        queue = &*execution.queue,
        attempt = execution.attempt()
    );
    // The handler's first part, before its future, may panic as well; so it is called inside.
    let called = async move { (task.handler)(context, arguments).await }.instrument(span);
    AssertUnwindSafe(called).catch_unwind().map(|ended| match ended {
        Ok(ended) => End::Returned(ended),
        Err(panic) => End::Panicked(panic_message(panic.as_ref())),
    })
}

async fn drive(
    execution: &Execution,
    mut handler: impl Future<Output = End> + Unpin,
    hard: Option<Duration>,
    soft: Option<Duration>,
) -> End {
    // Most tasks have no limit and many end at once: no timer is made for those.
    if hard.is_none() && soft.is_none() {
        return tokio::select! {
            biased;
            end = &mut handler => end,
            () = execution.revoked.cancelled() => End::Terminated,
        };
    }
    let mut hard_limit = pin!(after(hard));
    let mut soft_limit = pin!(after(soft));
    loop {
        tokio::select! {
            biased;
            end = &mut handler => return end,
            () = execution.revoked.cancelled() => return End::Terminated,
            () = &mut hard_limit => return End::TimedOut(hard.unwrap_or_default()),
            () = &mut soft_limit, if !execution.soft.is_cancelled() => execution.soft.cancel(),
        }
    }
}

async fn after(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "the handler panicked".to_owned())
}

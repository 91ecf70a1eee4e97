//! The Celery task `regatta.batch`: an order is understood, given to a slot, and what happens is told.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures::future::{BoxFuture, FutureExt, OptionFuture};
use regatta_adapters::Adapter;
use regatta_celery::transport::PublishError;
use regatta_celery::{App, Context, TaskError, UpdateError};
use regatta_model::{
    BatchEnd, BatchOrder, BatchReport, Fault, FaultKind, Lease as LeaseNumber, PROTOCOL, Progress, REFUSED,
    SuiteName, TASK_NAME, TeardownFailed, Time, WorkerName,
};
use regatta_sandbox::Cancel;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;

use crate::execute::time;
use crate::gate::Gate;
use crate::hold::HoldOff;
use crate::lease::{Command, Input, Lease};
use crate::outbox::Outbox;
use crate::pool::Pool;
use crate::run::{Ahead, WorkerConfig};
use crate::slot::{Assignment, Ground, cannot_run};

/// The Celery state under which a worker tells what happens in a batch.
pub const PROGRESS: &str = "PROGRESS";

/// How long a batch must have waited for its worker to ask whether somebody wants it before a test is started. The answer
/// takes a round trip to the broker, which doesn't count beside such a wait, but would beside a short test.
const ASKED_AFTER: Duration = Duration::from_secs(1);

/// What runs the batches of one worker: its slots and the suites that it knows. Cheap to clone.
#[derive(Clone)]
pub struct BatchTask {
    inner: Arc<Inner>,
}

struct Inner {
    pool: Pool,
    adapters: HashMap<SuiteName, Arc<dyn Adapter>>,
    own: bool,
    hold: HoldOff,
    /// Fires when it shall take no more.
    quiet: CancellationToken,
}

/// The task's arguments. The order is read in two steps, since one of another version may not read at all.
#[derive(Deserialize)]
struct Arguments {
    order: Box<RawValue>,
}

/// What orders of every version have.
#[derive(Deserialize)]
struct Head {
    protocol: u32,
    lease: LeaseNumber,
}

impl BatchTask {
    /// Starts the slots. No pause outlives `quiet`.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn start(config: &WorkerConfig, quiet: CancellationToken) -> std::io::Result<Self> {
        let ground = Ground {
            tree: config.tree.clone(),
            fence: config.fence.clone(),
            gate: Gate::of_cores(),
            worker: WorkerName(config.name.clone()),
            slots: config.slots,
            kill: Cancel::new().map_err(std::io::Error::other)?,
        };
        let pool = Pool::start(&ground)?;
        if let Some(Ahead { run, slots }) = &config.ahead {
            for adapter in config.adapters.iter().filter(|adapter| adapter.starts_ahead()) {
                (0..*slots).for_each(|_| pool.start_ahead(run, adapter));
            }
        }
        let adapters = config.adapters.iter().map(|adapter| (adapter.suite().name, Arc::clone(adapter)));
        let hold = HoldOff::default();
        let adapters = adapters.collect();
        Ok(Self { inner: Arc::new(Inner { pool, adapters, own: config.own, hold, quiet }) })
    }

    /// Registers the task.
    #[must_use]
    pub fn register(&self, app: App) -> App {
        let task = self.clone();
        app.task(TASK_NAME, move |context: Context, arguments: Arguments| {
            let task = task.clone();
            async move { task.run(context, &arguments.order).await }
        })
    }

    /// Ends the slots, and in good order every process that they keep; gives what went wrong. Blocks until all of them
    /// are gone; batches in hand must have been dropped before.
    #[must_use]
    pub fn close(&self) -> Vec<TeardownFailed> {
        self.inner.pool.join()
    }

    /// Ends every process that the slots keep at once, also while [`BatchTask::close`] waits for them.
    pub fn kill(&self) {
        self.inner.pool.kill();
    }

    async fn run(&self, context: Context, order: &RawValue) -> Result<BatchReport, TaskError> {
        let head: Head = serde_json::from_str(order.get())
            .map_err(|error| TaskError::fatal(format!("the order can't be read: {error}")))?;
        let worker = WorkerName(context.worker_name().to_owned());
        let outbox = Arc::new(Outbox::default());
        let end = self.run_order(context.clone(), &head, order, &worker, &outbox).await;
        let report = BatchReport { lease: head.lease, worker, end };
        match &report.end {
            BatchEnd::Faulted(fault) if fault.kind == FaultKind::CannotRun && !outbox.had_result() => {
                self.hold_off(&context, &report).await;
            }
            BatchEnd::Done | BatchEnd::Faulted(_) => self.inner.hold.worked(),
            BatchEnd::Returned | BatchEnd::Cancelled => {}
        }
        Ok(report)
    }

    /// Tells at once that a batch is refused, and keeps its slot from taking another for a while.
    async fn hold_off(&self, context: &Context, report: &BatchReport) {
        // Who is alone leaves nothing to others. And nobody may wait for a pause to hear of a refusal.
        if self.inner.own || context.update_state(REFUSED, report).await.is_err() {
            return;
        }
        let pause = self.inner.hold.refused();
        let unwanted = context.unwanted();
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = self.inner.quiet.cancelled() => {}
            () = unwanted.cancelled() => {}
        }
    }

    async fn run_order(
        &self,
        context: Context,
        head: &Head,
        order: &RawValue,
        worker: &WorkerName,
        outbox: &Arc<Outbox>,
    ) -> BatchEnd {
        if context.redelivered() {
            // Its first holder may be at work on it. Whether it is, and what then, the dispatcher knows alone.
            return BatchEnd::Returned;
        }
        if head.protocol != PROTOCOL {
            return BatchEnd::Faulted(other_version(head.protocol));
        }
        let order: BatchOrder = match serde_json::from_str(order.get()) {
            Ok(order) => order,
            Err(error) => return BatchEnd::Faulted(cannot_run(format!("the order can't be read: {error}"))),
        };
        let Some(adapter) = self.inner.adapters.get(&order.suite).map(Arc::clone) else {
            return BatchEnd::Faulted(self.unknown(&order.suite));
        };
        if is_old(order.sent, time(SystemTime::now())) && !is_wanted(&context, &order, worker).await {
            tracing::info!(batch = context.task_id(), run = %order.run, "its run is over; it is not run");
            return BatchEnd::Returned;
        }
        match Cancel::new().and_then(|cancel| Ok((KillOnDrop(cancel), Cancel::new()?))) {
            Ok((cancel, unwanted)) => {
                let assignment = Assignment {
                    order,
                    adapter,
                    cancel: cancel.0.clone(),
                    unwanted,
                    outbox: Arc::clone(outbox),
                };
                self.tell(context, assignment, cancel, worker).await
            }
            Err(error) => BatchEnd::Faulted(cannot_run(error.with_causes())),
        }
    }

    /// Gives the batch to a slot and tells what happens, until its end or that of its lease.
    ///
    /// When the task is revoked with termination, Celery's side drops this future, which kills what runs, and tells the
    /// dispatcher `REVOKED`: a cancel is a cancel for every Celery peer that looks. Revoked without, it ends after the
    /// test that runs.
    async fn tell(
        &self,
        context: Context,
        assignment: Assignment,
        _kill: KillOnDrop,
        worker: &WorkerName,
    ) -> BatchEnd {
        let (outbox, unwanted) = (Arc::clone(&assignment.outbox), assignment.unwanted.clone());
        let order = &assignment.order;
        let mut lease = Lease::new(Instant::now(), Duration::from_millis(order.beat_ms), self.inner.own);
        let mut voice = Voice { context, lease: order.lease, worker: worker.clone(), unconfirmed: None };
        let revoked = voice.context.unwanted();
        let mut end = pin!(self.inner.pool.run(assignment).fuse());
        let mut publishing = OptionFuture::from(None);
        loop {
            let wake = tokio::time::sleep_until(lease.wake_at(outbox.waiting()).into());
            let input = tokio::select! {
                biased;
                Some(told) = &mut publishing => {
                    publishing = OptionFuture::from(None);
                    voice.told(told)
                }
                end = &mut end => Input::Ended(end),
                () = revoked.cancelled(), if !unwanted.is_killed() => {
                    unwanted.kill();
                    Input::Tick
                }
                () = outbox.rung() => Input::Tick,
                () = wake => Input::Tick,
            };
            match lease.on(Instant::now(), outbox.waiting(), input) {
                None => {}
                Some(Command::Publish) => publishing = OptionFuture::from(Some(voice.publish(&outbox))),
                Some(Command::Finish(end)) => return end,
            }
        }
    }

    fn unknown(&self, suite: &SuiteName) -> Fault {
        let mut known: Vec<&str> = self.inner.adapters.keys().map(|name| name.0.as_str()).collect();
        known.sort_unstable();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        cannot_run(format!(
            "there is no suite {suite} in this worker's tree (it knows {known}); give the worker the same tree and \
             configuration as the run has"
        ))
    }
}

/// Whether a batch has waited for so long that its run may be over, or by another clock seems to come from the future.
fn is_old(sent: Time, now: Time) -> bool {
    now.since(sent).max(sent.since(now)) >= ASKED_AFTER
}

/// Whether anybody wants the results of a batch: its first beat finds a queue. Any other trouble with the broker is left to
/// the lease.
async fn is_wanted(context: &Context, order: &BatchOrder, worker: &WorkerName) -> bool {
    let beat = Progress { lease: order.lease, worker: worker.clone(), facts: Vec::new() };
    let told = context.update_state(PROGRESS, &beat);
    let told = tokio::time::timeout(Duration::from_millis(order.beat_ms), told).await;
    !matches!(told, Ok(Err(UpdateError::Publish { source: PublishError::Unroutable { .. }, .. })))
}

/// Ends a batch's processes when the batch is dropped, for whatever reason.
struct KillOnDrop(Cancel);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        self.0.kill();
    }
}

/// What tells the dispatcher.
struct Voice {
    context: Context,
    lease: LeaseNumber,
    worker: WorkerName,
    /// What was published last, until the broker has confirmed it.
    unconfirmed: Option<Arc<Progress>>,
}

impl Voice {
    fn publish(&mut self, outbox: &Outbox) -> BoxFuture<'static, Result<(), String>> {
        let (lease, worker) = (self.lease, self.worker.clone());
        let fresh = || Arc::new(Progress { lease, worker, facts: outbox.take() });
        let progress = Arc::clone(self.unconfirmed.get_or_insert_with(fresh));
        let context = self.context.clone();
        async move { context.update_state(PROGRESS, &*progress).await.map_err(|error| error.to_string()) }
            .boxed()
    }

    fn told(&mut self, told: Result<(), String>) -> Input {
        match told {
            Ok(()) => {
                self.unconfirmed = None;
                Input::Confirmed
            }
            Err(error) => {
                tracing::warn!(
                    batch = self.context.task_id(),
                    error,
                    "what happened could not be told; trying again"
                );
                Input::Failed
            }
        }
    }
}

fn other_version(theirs: u32) -> Fault {
    let older = if theirs > PROTOCOL { "worker" } else { "dispatcher" };
    cannot_run(format!(
        "the run speaks version {theirs} of the batch protocol and this worker version {PROTOCOL}; bring the {older} up to \
         the version of the other"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_old_by_either_clock() {
        let now = Time::default().after(Duration::from_secs(1_000));
        let s = |s: f64| Time::default().after(Duration::from_secs_f64(s));
        for (sent, expected) in [
            (now, false),
            (s(999.1), false),
            (s(999.0), true),
            (s(1_000.9), false),
            (s(1_001.0), true),
            (Time(0), true),
        ] {
            assert_eq!(is_old(sent, now), expected, "{sent:?}");
        }
    }
}

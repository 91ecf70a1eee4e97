//! One slot: a thread that runs batches one after the other, each from its first item to its last.
//!
//! The thread lives as long as the worker, for two reasons: what the kernel kills with us it kills with this thread
//! (see `regatta_sandbox`), and a test costs no thread of its own. Runners, and with them warm processes, are kept
//! from batch to batch.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use regatta_adapters::{Adapter, AdapterError, Ended, Exit, Place, Runner, TestProcess};
use regatta_model::{
    BatchEnd, BatchOrder, Digest, Fact, Fault, FaultKind, Item, OrderItem, Outcome, Record, RunId, SuiteName,
    TeardownFailed, Token, WorkerName,
};
use regatta_sandbox::{Cancel, Fence};

use crate::execute::{execute, time};
use crate::gate::Gate;
use crate::outbox::Outbox;
use crate::warm::{Failed, Warm};

/// How many suites a slot keeps runners of, the last used ones. A warm process takes memory while it waits.
pub(crate) const RUNNERS_MAX: usize = 4;

/// How long a process waits for its next batch before it is ended. A run's end is not told to a fleet's workers; what
/// its tests shared must go nevertheless.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// The variable that tells a process the number of its slot.
const SLOT_VAR: &str = "REGATTA_SLOT";

/// The variable that tells a process the name of its worker.
const WORKER_VAR: &str = "REGATTA_WORKER";

/// How many failed teardowns a slot remembers.
const FAILED_MAX: usize = 64;

/// The longest limit of a test, whatever an order says: a week.
const TIMEOUT_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// What every batch of this worker runs within.
#[derive(Debug, Clone)]
pub(crate) struct Ground {
    /// The tree that the suites are in.
    pub(crate) tree: PathBuf,
    /// The limits of each process. The time-out comes with the batch.
    pub(crate) fence: Fence,
    /// Where its slots' processes start.
    pub(crate) gate: Arc<Gate>,
    /// Whose slots they are.
    pub(crate) worker: WorkerName,
    /// How many they are.
    pub(crate) slots: usize,
    /// Fires when nothing is to end in good order any more.
    pub(crate) kill: Cancel,
}

/// A batch for a slot.
pub(crate) struct Assignment {
    pub(crate) order: BatchOrder,
    pub(crate) adapter: Arc<dyn Adapter>,
    pub(crate) cancel: Cancel,
    /// Fires when no further test of the batch shall begin.
    pub(crate) unwanted: Cancel,
    pub(crate) outbox: Arc<Outbox>,
}

/// What tells one runner from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RunnerKey {
    /// A process that was started for one run has imported what the tree was then.
    pub(crate) run: RunId,
    pub(crate) suite: SuiteName,
    pub(crate) prepared: Option<Digest>,
}

impl RunnerKey {
    pub(crate) fn of(order: &BatchOrder) -> Self {
        Self { run: order.run.clone(), suite: order.suite.clone(), prepared: order.prepared.clone() }
    }

    /// Of a runner that starts before its suite is listed.
    pub(crate) fn ahead(run: &RunId, adapter: &dyn Adapter) -> Self {
        Self { run: run.clone(), suite: adapter.suite().name, prepared: None }
    }
}

/// What runs a suite's tests here.
enum Hand {
    Each(Box<dyn TestProcess>),
    Warm(Box<Warm>),
}

/// A hand that waits for its next batch.
struct Kept {
    key: RunnerKey,
    hand: Hand,
    since: Instant,
}

/// A slot's state between batches.
pub(crate) struct Slot {
    ground: Ground,
    /// From 0.
    number: usize,
    /// The last used one is last.
    kept: Vec<Kept>,
    /// What could not be taken down in good order, so far.
    failed: Vec<TeardownFailed>,
}

/// How facts leave, and whether anybody still wants them.
pub(crate) struct Sink<'a> {
    outbox: &'a Outbox,
    cancel: &'a Cancel,
    unwanted: &'a Cancel,
}

impl Sink<'_> {
    pub(crate) fn say(&self, fact: Fact) {
        self.outbox.push(fact, || !self.cancel.is_killed());
    }

    pub(crate) fn cancel(&self) -> &Cancel {
        self.cancel
    }

    pub(crate) fn unwanted(&self) -> &Cancel {
        self.unwanted
    }

    /// Whether no further test shall begin. One that runs may end.
    pub(crate) fn is_over(&self) -> bool {
        self.cancel.is_killed() || self.unwanted.is_killed()
    }
}

impl Slot {
    /// Its processes learn from their environment which slot they run in: what is there once on a machine, such as a port,
    /// can be chosen by it.
    pub(crate) fn new(mut ground: Ground, number: usize) -> Self {
        let vars = [(SLOT_VAR, number.to_string()), (WORKER_VAR, ground.worker.0.clone())];
        ground.fence.env = ground.fence.env.with(vars.map(|(name, value)| (name.into(), value.into())));
        Self { ground, number, kept: Vec::new(), failed: Vec::new() }
    }

    /// How long it may wait for a batch before [`Slot::let_go`] has something to do; none for as long as it likes.
    pub(crate) fn patience(&self) -> Option<Duration> {
        let oldest = self.kept.iter().map(|kept| kept.since).min()?;
        Some((oldest + IDLE_MAX).saturating_duration_since(Instant::now()))
    }

    /// Ends the processes that have waited too long.
    pub(crate) fn let_go(&mut self) {
        let now = Instant::now();
        let (idle, kept) =
            std::mem::take(&mut self.kept).into_iter().partition(|kept| kept.since + IDLE_MAX <= now);
        self.kept = kept;
        self.finish(idle);
    }

    /// Ends all processes in good order. Gives what went wrong then, and before.
    pub(crate) fn end(mut self) -> Vec<TeardownFailed> {
        let all = std::mem::take(&mut self.kept);
        self.finish(all);
        self.failed
    }

    fn finish(&mut self, hands: Vec<Kept>) {
        for Kept { key, hand, .. } in hands {
            let Hand::Warm(mut warm) = hand else { continue };
            if let Some(failed) = warm.finish(&self.ground.kill) {
                self.note(&key, failed);
            }
        }
    }

    fn note(&mut self, key: &RunnerKey, (message, output): Failed) {
        let (suite, worker) = (key.suite.clone(), self.ground.worker.clone());
        tracing::error!(%worker, %suite, run = %key.run, message, "a suite's process did not end in good order");
        if self.failed.len() < FAILED_MAX {
            self.failed.push(TeardownFailed { suite, worker, message, output });
        }
    }

    /// Starts a suite's warm process before there is a batch for it. What goes wrong is said by the first batch.
    pub(crate) fn start_ahead(&mut self, run: &RunId, adapter: &dyn Adapter) {
        let key = RunnerKey::ahead(run, adapter);
        let Ok(mut hand) = self.hand(&key, adapter) else { return };
        if let Hand::Warm(warm) = &mut hand {
            warm.start_ahead(&self.ground.fence);
        }
        self.keep(key, hand);
    }

    /// Runs a batch to its end.
    pub(crate) fn run(&mut self, assignment: &Assignment) -> BatchEnd {
        let key = RunnerKey::of(&assignment.order);
        let mut hand = match self.hand(&key, assignment.adapter.as_ref()) {
            Ok(hand) => hand,
            Err(error) => return BatchEnd::Faulted(cannot_run(error.to_string())),
        };
        let sink =
            Sink { outbox: &assignment.outbox, cancel: &assignment.cancel, unwanted: &assignment.unwanted };
        let timeout = Duration::from_millis(assignment.order.test_timeout_ms).min(TIMEOUT_MAX);
        let fence = Fence { timeout, ..self.ground.fence.clone() };
        let end = match &mut hand {
            Hand::Each(runner) => run_each(runner.as_ref(), &assignment.order.items, &fence, &sink),
            Hand::Warm(warm) => {
                let end = warm.run(&assignment.order.items, &fence, &sink);
                warm.take_failed().into_iter().for_each(|failed| self.note(&key, failed));
                end
            }
        };
        self.keep(key, hand);
        if assignment.cancel.is_killed() { BatchEnd::Cancelled } else { end }
    }

    /// Drops all runners and ends their processes.
    pub(crate) fn forget(&mut self) {
        self.kept.clear();
    }

    fn keep(&mut self, key: RunnerKey, hand: Hand) {
        self.kept.push(Kept { key, hand, since: Instant::now() });
    }

    /// Takes the runner for a batch out of those that are kept, or makes it.
    fn hand(&mut self, key: &RunnerKey, adapter: &dyn Adapter) -> Result<Hand, AdapterError> {
        if let Some(at) = self.kept.iter().position(|kept| kept.key == *key) {
            return Ok(self.kept.remove(at).hand);
        }
        if self.kept.len() >= RUNNERS_MAX {
            let oldest = self.kept.remove(0);
            self.finish(vec![oldest]);
        }
        let place = Place { tree: &self.ground.tree, slot: self.number, slots: self.ground.slots };
        Ok(match adapter.runner(place, key.prepared.as_ref())? {
            Runner::Each(runner) => Hand::Each(runner),
            Runner::Warm(session) => Hand::Warm(Box::new(Warm::new(session, Arc::clone(&self.ground.gate)))),
        })
    }
}

/// One process for each test. What can't be run doesn't keep the rest from running; the batch ends with the fault.
fn run_each(runner: &dyn TestProcess, items: &[OrderItem], fence: &Fence, sink: &Sink<'_>) -> BatchEnd {
    let mut fault = None;
    for OrderItem { token, item, .. } in items {
        if sink.is_over() {
            return BatchEnd::Cancelled;
        }
        if let Err(message) = run_one(runner, item, *token, fence, sink) {
            tracing::warn!(?item, message, "a test can't be run");
            fault.get_or_insert(message);
        }
    }
    fault.map_or(BatchEnd::Done, |message| BatchEnd::Faulted(cannot_run(message)))
}

fn run_one(
    runner: &dyn TestProcess,
    item: &Item,
    token: Token,
    fence: &Fence,
    sink: &Sink<'_>,
) -> Result<(), String> {
    let test = match item {
        Item::Test(test) => test.clone(),
        Item::Unit(unit) => return Err(format!("{unit} is a unit, and this suite has none; list it again")),
    };
    if let Some(record) = runner.known(&test, time(SystemTime::now())) {
        sink.say(Fact::Finished { test, token, record });
        return Ok(());
    }
    let invocation = runner.invocation(&test).map_err(|error| error.to_string())?;
    sink.say(Fact::Started { test: test.clone(), token });
    let ended = execute(&invocation, fence, sink.cancel()).map_err(|error| error.with_causes())?;
    if ended.exit == Exit::Cancelled {
        return Ok(());
    }
    let mut record = runner.judge(&test, &ended);
    note_leaks(&mut record, ended.leaked);
    sink.say(Fact::Finished { test, token, record });
    Ok(())
}

/// A test that leaves processes behind did what it should; but whoever wonders about the machine wants to know.
fn note_leaks(record: &mut Record, leaked: usize) {
    if leaked > 0 && record.message.is_none() {
        let processes = if leaked == 1 { "1 process".to_owned() } else { format!("{leaked} processes") };
        record.message = Some(format!("left {processes} behind, which had to be killed"));
    }
}

/// The end of a process from the moment at which a test began in it.
pub(crate) fn since(ended: Ended, started: SystemTime, began: Instant) -> Ended {
    Ended { started: time(started), duration: began.elapsed(), ..ended }
}

/// The record of a unit whose process ended while it was collected.
pub(crate) fn errored(record: Record) -> Record {
    match record.outcome {
        // Nothing ran that could have crashed; it could not be set up.
        Outcome::Crashed => Record { outcome: Outcome::Errored, ..record },
        Outcome::Passed | Outcome::Failed | Outcome::Errored | Outcome::Skipped | Outcome::TimedOut => record,
    }
}

pub(crate) fn cannot_run(message: String) -> Fault {
    Fault { kind: FaultKind::CannotRun, message }
}

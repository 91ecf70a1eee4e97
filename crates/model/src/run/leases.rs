//! Leases: who is believed to work on what, and what becomes of a batch that nobody works on any more.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{BEATS_MISSED_MAX, Batch, Command, GRACE, Run, sorted};
use crate::{BatchId, CancelReason, Fault, FaultKind, Item, Lane, RunEvent, SuiteName, Time};

/// How long a broker's queue may be seen without a consumer before the run says so. One look may fall into the moment
/// in which a worker connects anew.
const NOBODY_SAID_AFTER: Duration = Duration::from_secs(4);

/// How often a batch may come back that nobody had begun, before one of its tests is suspected. Whoever stops or restarts
/// workers gives back what waits in their hands, and no test is to blame; one that ended its worker before the first word
/// would go on for ever.
pub(super) const RETURNS_MAX: u32 = 8;

/// How often the dispatcher looks in the time of a beat while it waits for others.
const LOOKS_PER_BEAT: u32 = 2;

/// A queue without a consumer.
#[derive(Debug)]
pub(super) struct Nobody {
    since: Time,
    said: bool,
}

/// The broker is out of reach.
#[derive(Debug)]
pub(super) struct BrokerLost {
    reason: String,
    /// When the run ends without it; none when that has happened.
    pub(super) give_up_at: Option<Time>,
}

impl Run {
    fn beat(&self) -> Duration {
        Duration::from_millis(self.order.policy.beat_ms)
    }

    pub(super) fn lease_time(&self) -> Duration {
        self.beat() * BEATS_MISSED_MAX
    }

    /// When to look at the latest, so that a longer time between two looks was none in which the dispatcher was awake.
    pub(super) fn look_at(&self) -> Option<Time> {
        let leases = self.batches.values().any(|batch| batch.deadline.is_some());
        let queues = !self.nobody.is_empty() || !self.somebody.is_empty();
        (leases || queues || self.broker_lost.is_some())
            .then(|| self.looked.after(self.beat() / LOOKS_PER_BEAT))
    }

    /// Notices that the dispatcher itself was stopped, or its machine suspended or far too busy. What others said
    /// meanwhile may still wait to be taken in, so their silence begins now. A time of less than a beat is no matter: it
    /// leaves whoever lives enough of his lease.
    pub(super) fn look(&mut self, now: Time) {
        let looked = std::mem::replace(&mut self.looked, now);
        if now.since(looked) <= self.beat() {
            return;
        }
        let (lease, give_up) = (self.lease_time(), self.give_up_after());
        self.wait_anew(now, lease);
        if let Some(lost) = self.broker_lost.as_mut().filter(|lost| lost.give_up_at.is_some()) {
            lost.give_up_at = Some(now.after(give_up));
        }
    }

    /// Every lease runs anew, and so does every wait for somebody who works.
    fn wait_anew(&mut self, now: Time, lease: Duration) {
        self.somebody.clear();
        for nobody in self.nobody.values_mut() {
            nobody.since = now;
        }
        for batch in self.batches.values_mut().filter(|batch| batch.deadline.is_some()) {
            batch.deadline = Some(now.after(lease));
        }
    }

    pub(super) fn expire_leases(&mut self, now: Time) {
        if self.broker_lost.is_some() {
            return;
        }
        let expired: Vec<BatchId> = self
            .batches
            .iter()
            .filter(|(_, batch)| batch.deadline.is_some_and(|deadline| deadline <= now))
            .map(|(id, _)| id.clone())
            .collect();
        for id in expired {
            let worker = self.batches.get(&id).and_then(|batch| batch.worker.clone());
            let name = worker.map_or_else(|| "a worker".to_owned(), |worker| worker.to_string());
            let reason = format!("{name} missed {BEATS_MISSED_MAX} beats");
            let fault = Fault {
                kind: FaultKind::WorkerLost,
                message: format!(
                    "{reason} while it ran this test, as others did before; look at that worker's log and memory"
                ),
            };
            self.lose(&id, &reason, &fault);
            // Should it still live: it needn't go on.
            self.commands.push(Command::Revoke { batch: id, terminate: true });
        }
    }

    /// A batch came back from the broker: its holder's connection broke. The holder may live and go on, so it keeps
    /// the lease for one more beat; where nobody had begun, the batch goes to others at once.
    pub(super) fn returned(&mut self, now: Time, id: &BatchId) {
        let soon = now.after(self.beat() + GRACE);
        let Some(batch) = self.batches.get_mut(id) else { return };
        if batch.worker.is_some() {
            batch.deadline = Some(batch.deadline.map_or(soon, |deadline| deadline.min(soon)));
            return;
        }
        let (suite, open) = (batch.lane.suite.clone(), sorted(&batch.open));
        let mut suspect = None;
        for item in open {
            let at = (suite.clone(), item);
            let Some(subject) = self.subjects.get_mut(&at) else { continue };
            subject.returns += 1;
            if subject.returns > RETURNS_MAX && suspect.is_none() {
                suspect = Some(at.1);
            }
        }
        let reason = "its worker stopped or lost its connection before it began";
        let fault = Fault {
            kind: FaultKind::WorkerLost,
            message:
                "workers stopped or lost their connection each time before they began; look at their logs"
                    .into(),
        };
        self.take_back(id, reason, &fault, |item| suspect.as_ref() == Some(item));
    }

    /// Takes a batch away from its worker. Only the test that ran is suspected.
    pub(super) fn lose(&mut self, id: &BatchId, reason: &str, fault: &Fault) {
        let Some(batch) = self.batches.get(id) else { return };
        let suspect = batch.running.clone().or_else(|| batch.open.iter().min().cloned());
        self.take_back(id, reason, fault, |item| suspect.as_ref() == Some(item));
    }

    pub(super) fn broker_down(&mut self, now: Time, reason: String) {
        if self.broker_lost.is_none() {
            let give_up_at = Some(now.after(self.give_up_after()));
            self.broker_lost = Some(BrokerLost { reason: reason.clone(), give_up_at });
            self.record(RunEvent::BrokerLost { reason });
        }
    }

    /// Ends the run when its broker has been away for as long as a queue may have no worker.
    pub(super) fn broker_overdue(&mut self, now: Time) {
        let Some(lost) = self.broker_lost.as_mut().filter(|lost| lost.give_up_at.is_some_and(|at| at <= now))
        else {
            return;
        };
        lost.give_up_at = None;
        let reason = lost.reason.clone();
        let fault = Fault {
            kind: FaultKind::CannotRun,
            message: format!(
                "the broker was out of reach for {} s ({reason}); see to it, and run these again",
                self.give_up_after().as_secs()
            ),
        };
        self.end_now(CancelReason::BrokerLost, &fault);
    }

    fn give_up_after(&self) -> Duration {
        Duration::from_millis(self.order.nobody_after_ms)
    }

    /// While the broker was away nobody could beat or begin anything.
    pub(super) fn broker_up(&mut self, now: Time) {
        if self.broker_lost.take().is_none() {
            return;
        }
        self.record(RunEvent::BrokerBack);
        self.wait_anew(now, self.lease_time() + GRACE * 10);
    }

    pub(super) fn queue_seen(&mut self, now: Time, queue: &str, consumers: u32, ready: u32) {
        if consumers > 0 {
            self.somebody_works(queue);
            return self.send_unbegun(now, queue, consumers, ready);
        }
        self.somebody.remove(queue);
        let give_up = self.give_up_after();
        let nobody = self.nobody.entry(queue.to_owned()).or_insert(Nobody { since: now, said: false });
        let span = now.since(nobody.since);
        if span >= NOBODY_SAID_AFTER && !std::mem::replace(&mut nobody.said, true) {
            let for_ms = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
            self.record(RunEvent::NobodyWorks { queue: queue.to_owned(), for_ms });
        }
        if span >= give_up {
            let message = format!(
                "nobody worked on queue {queue} for {} s; start `regatta worker -Q {queue}` on this tree",
                give_up.as_secs()
            );
            self.give_up_queue(queue, &Fault { kind: FaultKind::NobodyWorks, message });
        }
    }

    /// Gives up what waits for a queue. What somebody has in work goes on under its lease, and so do other queues.
    pub(super) fn give_up_queue(&mut self, queue: &str, fault: &Fault) {
        let unstarted = |batch: &Batch| batch.lane.queue == queue && batch.worker.is_none();
        let out: Vec<BatchId> =
            (self.batches.iter()).filter(|(_, batch)| unstarted(batch)).map(|(id, _)| id.clone()).collect();
        self.give_up_planned(fault, |lane| lane.queue == queue);
        for batch in out {
            self.commands.push(Command::Revoke { batch: batch.clone(), terminate: true });
            self.abandon(&batch, fault);
        }
    }

    /// Gives up what is planned for some lanes, and the retries that wait for them.
    pub(super) fn give_up_planned(&mut self, fault: &Fault, of: impl Fn(&Lane) -> bool) {
        let mut planned = self.plan.drain(&of);
        let (due, kept) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|(_, at)| self.suite(&at.0).is_some_and(|suite| of(&suite.lane(&at.1))));
        let due: BTreeMap<(Time, u64), (SuiteName, Item)> = due;
        self.waiting = kept;
        planned.extend(due.into_values());
        for at in planned {
            self.forgo(&at, fault);
        }
    }

    /// Somebody consumes from this queue, or began a batch of it.
    pub(super) fn somebody_works(&mut self, queue: &str) {
        if self.nobody.remove(queue).is_some_and(|nobody| nobody.said) {
            self.record(RunEvent::SomebodyWorks { queue: queue.to_owned() });
        }
    }

    /// A queue that has nothing of this run any more isn't looked at. What was seen there says nothing when it is used
    /// again.
    pub(super) fn forget_unused_queues(&mut self) {
        if !self.nobody.is_empty() {
            let used = self.queues();
            self.nobody.retain(|queue, _| used.contains(queue));
        }
    }
}

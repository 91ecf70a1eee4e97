//! Batches that could not be run at all: what that costs their tests, and how long their lane rests.
//!
//! A broken worker takes batches faster than all good ones together, so a lane rests after such a batch, to leave the
//! others time, and a test pays for a refusal only when nobody is left who may see it otherwise: whoever else brought
//! results of the lane, or is at work on it, has refused that test too. The lane is given up when nobody brings a result.

use std::collections::HashSet;
use std::time::Duration;

use super::{Run, sorted};
use crate::{BatchId, Fault, FaultKind, Item, Lane, Lease, RunEvent, Time, WorkerName};

/// Rounds of batches in a row that could not be run, without a result between, after which a lane is given up. The lane
/// rests after each, twice as long each time: with the usual back-off of 200 ms this takes 25 s.
const ROUNDS_MAX: u32 = 8;

/// A lane whose last batches could not be run.
#[derive(Debug)]
pub(super) struct Trouble {
    /// Rounds in a row.
    rounds: u32,
    /// The newest lease when the last round was counted. Batches that were out by then are of that round: one broken
    /// worker may have had all of them.
    newest: Lease,
    /// Until when nothing of the lane is handed out; none when that is over.
    rests_until: Option<Time>,
}

impl Run {
    /// A batch could not be run, or what is open in it could not: all of that is tried again after a rest, unless it
    /// was lost too often.
    pub(super) fn cannot_run(&mut self, now: Time, id: &BatchId, reason: &str, fault: &Fault) {
        let Some(batch) = self.batches.get(id) else { return };
        let (lane, lease) = (batch.lane.clone(), batch.lease);
        let charged = self.refused(id);
        let rounds = self.rest(now, &lane, lease);
        self.take_back(id, reason, fault, |item| charged.contains(item));
        if rounds >= ROUNDS_MAX {
            self.give_up_planned(fault, |planned| *planned == lane);
        }
    }

    pub(super) fn batch_failed(&mut self, now: Time, id: &BatchId, reason: &str) {
        let fault = Fault { kind: FaultKind::CannotRun, message: reason.to_owned() };
        self.cannot_run(now, id, reason, &fault);
    }

    pub(super) fn publish_failed(&mut self, now: Time, id: &BatchId, reason: &str) {
        let fault = Fault {
            kind: FaultKind::CannotRun,
            message: format!("its batch could not be published: {reason}"),
        };
        self.cannot_run(now, id, &format!("batch {id} could not be published: {reason}"), &fault);
    }

    /// Ends a batch: what is open in it goes to others, unless it was lost too often. What is charged counts a loss.
    pub(super) fn take_back(
        &mut self,
        id: &BatchId,
        reason: &str,
        fault: &Fault,
        charged: impl Fn(&Item) -> bool,
    ) {
        let Some(batch) = self.batches.get(id) else { return };
        let suite = batch.lane.suite.clone();
        let worker = batch.worker.clone();
        let open = sorted(&batch.open);
        let (batch, tests, reason) = (id.clone(), open.len(), reason.to_owned());
        // One that gave a batch back before it began may just have been told to stop.
        self.record(if fault.kind == FaultKind::WorkerLost && worker.is_some() {
            RunEvent::WorkerLost { worker, batch, tests, reason }
        } else {
            RunEvent::BatchFaulted { worker, batch, tests, reason }
        });
        for item in open {
            let at = (suite.clone(), item);
            let losses_max = self.order.policy.losses_max;
            let Some(subject) = self.subjects.get_mut(&at) else { continue };
            if charged(&at.1) {
                subject.losses += 1;
            }
            let too_often = subject.losses > losses_max;
            if self.cancelled.is_some() {
                self.forgo(&at, fault);
            } else if too_often {
                self.fault(&at, fault);
            } else {
                self.plan_subject(&at, true);
            }
        }
        self.batches.remove(id);
    }

    /// Lets a lane rest, and says how many rounds in a row could not be run.
    fn rest(&mut self, now: Time, lane: &Lane, lease: Lease) -> u32 {
        let policy = &self.order.policy;
        let newest = Lease(self.serial);
        let fresh = Trouble { rounds: 0, newest: Lease(0), rests_until: None };
        let trouble = self.troubles.entry(lane.clone()).or_insert(fresh);
        if lease > trouble.newest {
            let doublings = trouble.rounds.min(31);
            let rest_ms = policy.backoff_ms.saturating_mul(1 << doublings).min(policy.backoff_max_ms);
            trouble.rounds += 1;
            trouble.newest = newest;
            trouble.rests_until = Some(now.after(Duration::from_millis(rest_ms)));
        }
        trouble.rounds
    }

    /// Notes who refused what is open in a batch, and gives the items that nobody is left for. What isn't charged ends
    /// all the same: somebody takes it some time, or the lane is given up.
    fn refused(&mut self, id: &BatchId) -> HashSet<Item> {
        let Some(batch) = self.batches.get(id) else { return HashSet::new() };
        // Where nobody took it nobody refused it.
        let Some(worker) = &batch.worker else { return batch.open.clone() };
        let lane = &batch.lane;
        let at_work = self.batches.values().filter(|other| other.lane == *lane);
        let able: HashSet<&WorkerName> = (at_work.filter_map(|other| other.worker.as_ref()))
            .chain(self.good_workers.get(lane).into_iter().flatten())
            .collect();
        let mut charged = HashSet::new();
        for item in &batch.open {
            let at = (lane.suite.clone(), item.clone());
            let Some(subject) = self.subjects.get_mut(&at) else { continue };
            if !subject.refused_by.contains(worker) {
                subject.refused_by.push(worker.clone());
            }
            if able.iter().all(|able| subject.refused_by.contains(able)) {
                charged.insert(at.1);
            }
        }
        charged
    }

    /// A worker runs this lane's batches. A rest goes on to its end, or a broken worker would have what comes next.
    pub(super) fn lane_works(&mut self, lane: &Lane, worker: &WorkerName) {
        if !self.good_workers.get(lane).is_some_and(|good| good.contains(worker)) {
            self.good_workers.entry(lane.clone()).or_default().insert(worker.clone());
        }
        if let Some(trouble) = self.troubles.get_mut(lane) {
            trouble.rounds = 0;
        }
    }

    pub(super) fn rests(&self, lane: &Lane) -> bool {
        self.troubles.get(lane).is_some_and(|trouble| trouble.rests_until.is_some())
    }

    /// When the next rest is over.
    pub(super) fn rest_ends_at(&self) -> Option<Time> {
        self.troubles.values().filter_map(|trouble| trouble.rests_until).min()
    }

    pub(super) fn end_rests(&mut self, now: Time) {
        for trouble in self.troubles.values_mut() {
            trouble.rests_until = trouble.rests_until.filter(|until| *until > now);
        }
    }
}

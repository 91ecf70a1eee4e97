//! What workers report, and what becomes of it: recorded, retried, late.

use std::collections::HashSet;
use std::time::Duration;

use super::{Open, Run, Stage, Subject, cancelled_fault, item_name, sorted};
use crate::{
    BatchEnd, BatchId, BatchReport, CancelReason, Fact, Fault, FaultKind, Item, Outcome, Progress, Record,
    RunEvent, SuiteName, TestId, Time, Token, Unit, WorkerName,
};

impl Run {
    pub(super) fn progress(&mut self, now: Time, id: &BatchId, progress: Progress) {
        if self.batches.get(id).is_none_or(|batch| batch.lease != progress.lease) {
            return self.late(progress);
        }
        self.hear(now, id, &progress.worker);
        for fact in progress.facts {
            self.fact(now, id, &progress.worker, fact);
        }
    }

    /// A sign of life: the lease runs anew.
    fn hear(&mut self, now: Time, id: &BatchId, worker: &WorkerName) {
        let lease = self.lease_time();
        let Some(batch) = self.batches.get_mut(id) else { return };
        batch.deadline = Some(now.after(lease));
        let queue = batch.lane.queue.clone();
        if batch.worker.is_none() {
            batch.worker = Some(worker.clone());
            self.somebody_works(&queue);
            self.record(RunEvent::BatchStarted { batch: id.clone(), worker: worker.clone() });
        }
        self.heard_from(now, &queue);
    }

    fn fact(&mut self, now: Time, id: &BatchId, worker: &WorkerName, fact: Fact) {
        match fact {
            Fact::Collected { unit, tests } => self.collected(id, unit, tests),
            Fact::Started { test, token } => self.started(id, worker, test, token),
            Fact::Finished { test, token, record } => self.ended(now, id, worker, test, token, record),
            Fact::UnitFinished { unit } => self.unit_finished(id, worker, unit),
        }
    }

    fn collected(&mut self, id: &BatchId, unit: String, tests: Vec<String>) {
        let Some(batch) = self.batches.get_mut(id) else { return };
        let suite = batch.lane.suite.clone();
        let item = Item::Unit(unit.clone());
        let Some(open) =
            self.subjects.get(&(suite.clone(), item.clone())).and_then(|subject| subject.open(id))
        else {
            return self.collected_by_name(id, &Unit { suite, name: unit }, tests);
        };
        batch.open.remove(&item);
        let unit = Unit { suite: suite.clone(), name: unit };
        let mut fresh = Vec::new();
        for name in tests {
            let at = (suite.clone(), Item::Test(name.clone()));
            let known = self.subjects.get(&at);
            if known
                .is_some_and(|subject| subject.stage == Stage::Done || matches!(subject.stage, Stage::Out(_)))
            {
                continue;
            }
            if known.is_none() {
                self.open_subjects += 1;
            }
            let (attempt, losses) = known.map_or((1, 0), |subject| (subject.attempt, subject.losses));
            let stage = Stage::Out(open.clone());
            let subject = Subject { attempt, losses, ..Subject::new(stage, Some(unit.clone())) };
            self.subjects.insert(at.clone(), subject);
            batch.open.insert(at.1);
            fresh.push(name);
        }
        let at = (suite, Item::Unit(unit.name.clone()));
        self.record(RunEvent::UnitCollected { unit, tests: fresh, token: open.token, batch: id.clone() });
        // From here on its tests are answered for by name; a lost batch hands them on by name too.
        self.done(&at);
    }

    /// A unit was collected for some of its tests. What was remembered of it is compared with what it holds: a list may
    /// come from elsewhere than its file, and a test that nobody asks for must not be missed.
    fn collected_by_name(&mut self, id: &BatchId, unit: &Unit, tests: Vec<String>) {
        let asked = |item: &Item| {
            let subject = self.subjects.get(&(unit.suite.clone(), item.clone()));
            subject.is_some_and(|subject| subject.unit.as_ref() == Some(unit))
        };
        let of_this_batch = self.batches.get(id).is_some_and(|batch| batch.open.iter().any(asked));
        if !of_this_batch || !self.remembered.contains(unit) {
            return;
        }
        let there: HashSet<&str> = tests.iter().map(String::as_str).collect();
        let runs = |item: &Item| self.batches.values().any(|batch| batch.running.as_ref() == Some(item));
        let untried = |item: &Item, subject: &Subject| {
            let in_hand = match subject.stage {
                Stage::Planned => true,
                Stage::Out(_) => !runs(item) && (!subject.gone || subject.open(id).is_some()),
                Stage::Waiting | Stage::Done => false,
            };
            subject.unit.as_ref() == Some(unit) && subject.attempt == 1 && in_hand
        };
        let gone: Vec<(SuiteName, Item)> = (self.subjects.iter())
            .filter(|(at, subject)| untried(&at.1, subject) && !there.contains(item_name(&at.1)))
            .map(|(at, _)| at.clone())
            .collect();
        let fresh: Vec<(SuiteName, Item)> = (tests.iter())
            .map(|name| (unit.suite.clone(), Item::Test(name.clone())))
            .filter(|at| !self.subjects.contains_key(at))
            .collect();
        let mut back = false;
        for name in &tests {
            // Processes may not agree: what one of them has is answered for.
            let known = self.subjects.get_mut(&(unit.suite.clone(), Item::Test(name.clone())));
            back |= known.is_some_and(|subject| std::mem::take(&mut subject.gone));
        }
        if gone.is_empty() && fresh.is_empty() && !back {
            return;
        }
        self.record(RunEvent::UnitChanged { unit: unit.clone(), tests });
        for at in gone {
            let Some(subject) = self.subjects.get_mut(&at) else { continue };
            if matches!(subject.stage, Stage::Out(_)) && subject.open(id).is_none() {
                // Whoever has it may have collected the unit before it changed, and bring its result.
                subject.gone = true;
                continue;
            }
            self.forget(&at);
            if let Some(batch) = self.batches.get_mut(id) {
                batch.open.remove(&at.1);
            }
        }
        for (suite, item) in fresh {
            self.admit(suite, item, Some(unit.clone()));
        }
    }

    fn started(&mut self, id: &BatchId, worker: &WorkerName, test: String, token: Token) {
        let Some(batch) = self.batches.get_mut(id) else { return };
        let at = (batch.lane.suite.clone(), Item::Test(test));
        let Some(subject) = self.subjects.get_mut(&at).filter(|subject| subject.is_open(id, token)) else {
            return;
        };
        subject.gone = false;
        batch.running = Some(at.1.clone());
        let event = RunEvent::AttemptStarted {
            test: TestId { suite: at.0, name: item_name(&at.1).to_owned() },
            attempt: subject.attempt,
            worker: worker.clone(),
        };
        self.record(event);
    }

    fn ended(
        &mut self,
        now: Time,
        id: &BatchId,
        worker: &WorkerName,
        test: String,
        token: Token,
        record: Record,
    ) {
        let Some(batch) = self.batches.get_mut(id) else { return };
        let (lane, lease) = (batch.lane.clone(), batch.lease);
        let at = (lane.suite.clone(), Item::Test(test.clone()));
        let of_unit = batch.units.get(&test) == Some(&token);
        if of_unit && !self.subjects.contains_key(&at) {
            self.admit_unit_result(id, &at, token);
        }
        let Some(batch) = self.batches.get_mut(id) else { return };
        let Some(subject) = self.subjects.get_mut(&at).filter(|subject| subject.is_open(id, token)) else {
            return self.late_result(&at, lease, worker, token, record);
        };
        subject.gone = false;
        let attempt = subject.attempt;
        let in_unit = subject.unit.as_ref().map(|unit| unit.name.clone());
        let took = Duration::from_micros(record.duration_us);
        batch.open.remove(&at.1);
        batch.running = None;
        if let Some(unit) = in_unit {
            *batch.unit_took.entry(unit).or_default() += took;
        }
        self.plan.test_took(&lane, took);
        self.lane_works(&lane, worker);
        let outcome = record.outcome;
        let test = TestId { suite: lane.suite, name: test };
        let batch = id.clone();
        let worker = worker.clone();
        self.record(RunEvent::AttemptFinished { test, attempt, token, batch, lease, worker, record });
        match outcome {
            Outcome::Passed => self.done(&at),
            // A skip after a failure is no pass, and the test is not to run any more.
            Outcome::Skipped if attempt > 1 => self.failed_for_good(&at),
            Outcome::Skipped => self.done(&at),
            Outcome::Failed | Outcome::Errored | Outcome::TimedOut | Outcome::Crashed => {
                self.failed(now, &at, attempt);
            }
        }
    }

    /// A unit that can't be collected (an error, a skip of the whole module) is reported under its own name, as a test
    /// that nobody could list.
    fn admit_unit_result(&mut self, id: &BatchId, at: &(SuiteName, Item), token: Token) {
        let unit = (at.0.clone(), Item::Unit(item_name(&at.1).to_owned()));
        self.open_subjects += 1;
        let stage = Stage::Out(Open { token, batch: id.clone() });
        let subject = Subject::new(stage, None);
        self.subjects.insert(at.clone(), subject);
        if let Some(batch) = self.batches.get_mut(id) {
            batch.open.remove(&unit.1);
        }
        self.done(&unit);
    }

    fn failed(&mut self, now: Time, at: &(SuiteName, Item), attempt: u32) {
        let policy = self.order.policy.clone();
        // A unit's own error can't be tried again as a test: there is no test of that name to ask for.
        let is_unit = self.subjects.contains_key(&(at.0.clone(), Item::Unit(item_name(&at.1).to_owned())));
        if self.cancelled.is_some() || attempt > policy.retries || is_unit {
            return self.failed_for_good(at);
        }
        let doublings = attempt.saturating_sub(1).min(31);
        let delay_ms = policy.backoff_ms.saturating_mul(1 << doublings).min(policy.backoff_max_ms);
        let test = TestId { suite: at.0.clone(), name: item_name(&at.1).to_owned() };
        self.record(RunEvent::RetryScheduled { test, attempt: attempt + 1, delay_ms });
        if let Some(subject) = self.subjects.get_mut(at) {
            subject.stage = Stage::Waiting;
            subject.attempt = attempt + 1;
        }
        let serial = self.next_serial();
        self.waiting.insert((now.after(Duration::from_millis(delay_ms)), serial), at.clone());
    }

    fn failed_for_good(&mut self, at: &(SuiteName, Item)) {
        self.done(at);
        if self.order.policy.fail_fast {
            self.cancel(CancelReason::FailFast, &cancelled_fault());
        }
    }

    fn unit_finished(&mut self, id: &BatchId, worker: &WorkerName, unit: String) {
        let Some(batch) = self.batches.get_mut(id) else { return };
        let (lane, item) = (batch.lane.clone(), Item::Unit(unit));
        let took = batch.unit_took.remove(item_name(&item)).unwrap_or_default();
        batch.open.remove(&item);
        self.plan.unit_took(&lane, took);
        self.lane_works(&lane, worker);
        self.done(&(lane.suite, item));
    }

    pub(super) fn report(&mut self, now: Time, id: &BatchId, report: BatchReport) {
        if self.batches.get(id).is_none_or(|batch| batch.lease != report.lease) {
            if report.end == BatchEnd::Cancelled {
                self.held_by_somebody(now, id);
            }
            return;
        }
        match report.end {
            BatchEnd::Returned => self.returned(now, id),
            BatchEnd::Done => {
                self.hear(now, id, &report.worker);
                let fault = Fault {
                    kind: FaultKind::NotReported,
                    message: format!("{} ended its batch without a record of it", report.worker),
                };
                self.close(id, &report.worker, &fault);
            }
            BatchEnd::Cancelled => {
                let message = match self.cancelled {
                    Some(_) => "the run stopped before it had a result".to_owned(),
                    None => format!("somebody revoked batch {id}"),
                };
                self.close(id, &report.worker, &Fault { kind: FaultKind::Cancelled, message });
            }
            BatchEnd::Faulted(fault) => {
                self.hear(now, id, &report.worker);
                let reason = format!("{}: {}", report.worker, fault.message);
                if fault.kind == FaultKind::WorkerLost {
                    // It ran, and then the worker could tell nobody for too long.
                    self.lose(id, &reason, &fault);
                } else {
                    self.cannot_run(now, id, &reason, &fault);
                }
            }
        }
    }

    /// Ends a batch whose worker has said all; what is open in it gets the fault.
    fn close(&mut self, id: &BatchId, worker: &WorkerName, fault: &Fault) {
        let Some(batch) = self.batches.get(id) else { return };
        let suite = batch.lane.suite.clone();
        for item in sorted(&batch.open) {
            let at = (suite.clone(), item);
            if self.cancelled.is_some() {
                self.forgo(&at, fault);
            } else {
                self.fault(&at, fault);
            }
        }
        self.batches.remove(id);
        self.record(RunEvent::BatchEnded { batch: id.clone(), worker: worker.clone() });
    }

    // Results that no longer count.

    fn late(&mut self, progress: Progress) {
        for fact in progress.facts {
            let Fact::Finished { test, token, record } = fact else { continue };
            let Some(suite) = self.suite_of(&test) else { continue };
            self.late_result(&(suite, Item::Test(test)), progress.lease, &progress.worker, token, record);
        }
    }

    /// The suite of a late test: its batch is gone, so by the only suite that knows the name.
    fn suite_of(&self, test: &str) -> Option<SuiteName> {
        let item = Item::Test(test.to_owned());
        let mut suites = self.order.suites.iter().map(|suite| &suite.suite.name);
        suites.find(|name| self.subjects.contains_key(&((*name).clone(), item.clone()))).cloned()
    }

    fn late_result(
        &mut self,
        at: &(SuiteName, Item),
        lease: crate::Lease,
        worker: &WorkerName,
        token: Token,
        record: Record,
    ) {
        if !self.subjects.contains_key(at) {
            return;
        }
        let test = TestId { suite: at.0.clone(), name: item_name(&at.1).to_owned() };
        self.record(RunEvent::LateResult { test, token, lease, worker: worker.clone(), record });
    }
}

impl Subject {
    pub(super) fn new(stage: Stage, unit: Option<Unit>) -> Self {
        Self { stage, unit, attempt: 1, losses: 0, returns: 0, refused_by: Vec::new(), gone: false }
    }

    fn open(&self, batch: &BatchId) -> Option<Open> {
        match &self.stage {
            Stage::Out(open) if open.batch == *batch => Some(open.clone()),
            Stage::Out(_) | Stage::Planned | Stage::Waiting | Stage::Done => None,
        }
    }

    fn is_open(&self, batch: &BatchId, token: Token) -> bool {
        self.open(batch).is_some_and(|open| open.token == token)
    }
}

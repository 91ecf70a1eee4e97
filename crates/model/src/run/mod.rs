//! `Run`: the state of one run. Facts come in, facts to record and requests to the hands go out.
//!
//! It answers for exactly one verdict per test whatever happens to workers and broker: every test is in one of the
//! states of [`Stage`], every batch that is out has a lease, and a result counts only with the token of the attempt
//! that is open. It must not know how anything is published, stored or shown; time comes in with the event.

#[cfg(test)]
mod chaos;
mod faults;
mod input;
mod leases;
mod results;
#[cfg(test)]
mod tests;
mod unbegun;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

pub use input::{Command, Input, Knowledge, Known, Route, RunOrder, SuiteOrder, Units};

use crate::{
    BatchId, BatchOrder, CancelReason, Digest, Fault, FaultKind, Item, Lane, Lease, Listed, OrderItem,
    PROTOCOL, Plan, RunEvent, SuiteName, TeardownFailed, TestId, Time, Together, Token, Unit, Work,
    WorkerName,
};

/// The longest time for which a batch that was given back waits for its old holder, beyond one beat.
const GRACE: Duration = Duration::from_secs(1);

/// Missed beats after which a worker is given up.
const BEATS_MISSED_MAX: u32 = 3;

/// The most batches that wait at a queue without a worker, beyond what is in work.
const SPARE_MIN: usize = 2;

/// Where a test, or a unit that nobody has collected, is on its way to a verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Stage {
    /// In the plan, or held until its suite is prepared: will be handed out.
    Planned,
    /// In a batch that is out: ends by a result, or with the batch.
    Out(Open),
    /// Failed, and waits for its retry: will be planned when its time comes.
    Waiting,
    /// Has its verdict; whatever else comes is late.
    Done,
}

/// The attempt that is open.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Open {
    token: Token,
    batch: BatchId,
}

#[derive(Debug)]
struct Subject {
    stage: Stage,
    unit: Option<Unit>,
    attempt: u32,
    losses: u32,
    /// How often it was in a batch that came back before anybody had begun it.
    returns: u32,
    /// Who could not run it.
    refused_by: Vec<WorkerName>,
    /// Its unit was collected without it while it was out in another batch: it is forgotten when that ends without a
    /// word of it.
    gone: bool,
}

/// A batch that is out.
#[derive(Debug)]
struct Batch {
    lease: Lease,
    lane: Lane,
    /// When it was handed out.
    sent: Time,
    /// The batch that asked for the same before it and was not begun, where there was one.
    instead_of: Option<BatchId>,
    /// How often the same was sent before, and not heard of.
    unheard: u32,
    /// Who works on it; none while it waits at its queue.
    worker: Option<WorkerName>,
    /// When its lease is over; it runs from the first sign of a worker.
    deadline: Option<Time>,
    /// What is still to be reported.
    open: HashSet<Item>,
    /// What was started last and not reported.
    running: Option<Item>,
    /// The tokens of the units that it was asked to collect.
    units: HashMap<String, Token>,
    /// The time of the tests that were reported for each unit.
    unit_took: HashMap<String, Duration>,
}

/// The worker that is there for this run alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OwnWorker {
    /// It works, and is released when all tests are judged.
    Works,
    /// It ends its processes; the run ends when it has.
    Released,
    /// There is none, or no more.
    Gone,
}

/// One run's state. Owned by exactly one dispatcher.
#[derive(Debug)]
pub struct Run {
    order: RunOrder,
    plan: Plan,
    subjects: HashMap<(SuiteName, Item), Subject>,
    /// Subjects that are not done, so that the end is known without a walk.
    open_subjects: usize,
    batches: BTreeMap<BatchId, Batch>,
    /// Retries that wait: when, and which.
    waiting: BTreeMap<(Time, u64), (SuiteName, Item)>,
    prepared: HashMap<SuiteName, Option<Digest>>,
    listing: HashSet<SuiteName>,
    /// Units that are run as a whole by the names that an earlier run found in them.
    remembered: HashSet<Unit>,
    held: HashMap<SuiteName, Vec<Item>>,
    nobody: HashMap<String, leases::Nobody>,
    /// Queues that have consumers.
    somebody: HashMap<String, unbegun::Somebody>,
    /// Lanes whose last batches could not be run.
    troubles: HashMap<Lane, faults::Trouble>,
    /// Who brought results of a lane.
    good_workers: HashMap<Lane, HashSet<WorkerName>>,
    /// When it last looked: the time of the last input.
    looked: Time,
    /// None while it can be reached.
    broker_lost: Option<leases::BrokerLost>,
    own_worker: OwnWorker,
    cancelled: Option<CancelReason>,
    finished: bool,
    serial: u64,
    commands: Vec<Command>,
}

impl Run {
    /// A run that has not begun; its first input should follow at once.
    #[must_use]
    pub fn new(order: RunOrder) -> Self {
        let own_worker = if order.own_worker { OwnWorker::Works } else { OwnWorker::Gone };
        let listing = order.suites.iter().map(|suite| suite.suite.name.clone()).collect();
        Self {
            order,
            plan: Plan::default(),
            subjects: HashMap::new(),
            open_subjects: 0,
            batches: BTreeMap::new(),
            waiting: BTreeMap::new(),
            prepared: HashMap::new(),
            listing,
            remembered: HashSet::new(),
            held: HashMap::new(),
            nobody: HashMap::new(),
            somebody: HashMap::new(),
            troubles: HashMap::new(),
            good_workers: HashMap::new(),
            looked: Time::default(),
            broker_lost: None,
            own_worker,
            cancelled: None,
            finished: false,
            serial: 0,
            commands: Vec::new(),
        }
    }

    /// Whether everything has its verdict and [`Command::Finish`] was given.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// The queues on which batches are out or waiting, whose consumers should be looked at.
    #[must_use]
    pub fn queues(&self) -> Vec<String> {
        let mut queues: Vec<String> = self.batches.values().map(|batch| batch.lane.queue.clone()).collect();
        queues.extend(self.plan.queues().map(String::from));
        queues.sort();
        queues.dedup();
        queues
    }

    /// When the next input is due at the latest ([`Input::Tick`]); none while only outside news can change anything.
    #[must_use]
    pub fn wake_at(&self) -> Option<Time> {
        if self.finished {
            return None;
        }
        let retry = self.waiting.keys().next().map(|key| key.0);
        let lease = self.batches.values().filter_map(|batch| batch.deadline).min();
        let rest = self.rest_ends_at();
        // No lease ends while nobody can beat.
        let next = self.broker_lost.as_ref().map_or(lease, |lost| lost.give_up_at);
        retry.into_iter().chain(rest).chain(next).chain(self.look_at()).min()
    }

    /// Takes in one input, and gives back what is to be done, in order. Facts are to be written down before whatever
    /// follows them is done.
    #[must_use]
    pub fn on(&mut self, now: Time, input: Input) -> Vec<Command> {
        if self.finished {
            return Vec::new();
        }
        self.look(now);
        match input {
            Input::Started => self.start(),
            Input::Listed { tests, units, remembered } => {
                self.remembered.extend(remembered);
                self.listed(tests, units);
            }
            Input::Prepared { suite, digest } => self.release(&suite, Some(digest)),
            Input::ListingEnded { suite, fault } => self.listing_ended(suite, fault),
            Input::Progress { batch, progress } => self.progress(now, &batch, progress),
            Input::Report { batch, report } => self.report(now, &batch, report),
            Input::BatchFailed { batch, reason } => self.batch_failed(now, &batch, &reason),
            Input::PublishFailed { batch, reason } => self.publish_failed(now, &batch, &reason),
            Input::QueueSeen { queue, consumers, ready } => self.queue_seen(now, &queue, consumers, ready),
            Input::BrokerLost { reason } => self.broker_down(now, reason),
            Input::BrokerBack => self.broker_up(now),
            Input::Released { failed } => self.worker_gone(failed),
            // Without a broker nothing will be heard of what runs.
            Input::Interrupt if self.broker_lost.is_some() => {
                self.end_now(CancelReason::Interrupted, &cancelled_fault());
            }
            Input::Interrupt => self.cancel(CancelReason::Interrupted, &cancelled_fault()),
            Input::Kill => self.kill(),
            Input::Tick => self.expire_leases(now),
        }
        self.retries_due(now);
        self.end_rests(now);
        self.broker_overdue(now);
        self.hand_out(now);
        self.forget_unused_queues();
        self.finish_when_done();
        std::mem::take(&mut self.commands)
    }

    fn start(&mut self) {
        self.record(RunEvent::RunStarted {
            run: self.order.run.clone(),
            schema: crate::EVENTS_SCHEMA,
            regatta: self.order.regatta.clone(),
            tree: self.order.tree.clone(),
            broker: self.order.broker.clone(),
            suites: self.order.suites.iter().map(|suite| suite.suite.clone()).collect(),
            filtered: self.order.filtered,
            policy: self.order.policy.clone(),
        });
    }

    fn record(&mut self, event: RunEvent) {
        self.commands.push(Command::Record(event));
    }

    fn suite(&self, name: &SuiteName) -> Option<&SuiteOrder> {
        self.order.suites.iter().find(|suite| suite.suite.name == *name)
    }

    // What there is to run.

    fn listed(&mut self, tests: Vec<Listed>, units: Vec<Unit>) {
        let fresh: Vec<Listed> =
            tests.into_iter().filter(|listed| !self.subjects.contains_key(&key(&listed.test))).collect();
        let fresh_units: Vec<Unit> = units
            .into_iter()
            .filter(|unit| !self.subjects.contains_key(&(unit.suite.clone(), Item::Unit(unit.name.clone()))))
            .collect();
        self.record(RunEvent::Listed { tests: fresh.clone(), units: fresh_units.clone() });
        for listed in fresh {
            self.admit(listed.test.suite, Item::Test(listed.test.name), listed.unit);
        }
        for unit in fresh_units {
            self.admit(unit.suite, Item::Unit(unit.name), None);
        }
    }

    fn admit(&mut self, suite: SuiteName, item: Item, unit: Option<Unit>) {
        let at = (suite, item);
        let subject = Subject::new(Stage::Planned, unit);
        if self.subjects.insert(at.clone(), subject).is_none() {
            self.open_subjects += 1;
        }
        let held = self.suite(&at.0).is_some_and(|suite| suite.held) && !self.prepared.contains_key(&at.0);
        if self.cancelled.is_some() {
            self.fault(&at, &cancelled_fault());
        } else if held {
            self.held.entry(at.0).or_default().push(at.1);
        } else {
            self.plan_subject(&at, false);
        }
    }

    fn release(&mut self, suite: &SuiteName, digest: Option<Option<Digest>>) {
        self.prepared.entry(suite.clone()).or_insert_with(|| digest.flatten());
        for item in self.held.remove(suite).unwrap_or_default() {
            self.plan_subject(&(suite.clone(), item), false);
        }
    }

    fn listing_ended(&mut self, suite: SuiteName, fault: Option<Fault>) {
        self.release(&suite, None);
        if self.listing.remove(&suite) {
            self.record(RunEvent::ListingEnded { suite, fault });
        }
    }

    fn plan_subject(&mut self, at: &(SuiteName, Item), urgent: bool) {
        let Some(suite) = self.suite(&at.0) else { return };
        let lane = suite.lane(&at.1);
        let units = suite.units;
        let known_unit = |unit: &Unit| self.order.known.units.get(unit).copied();
        let known = self.order.known.of(&at.0, &at.1);
        let Some(subject) = self.subjects.get_mut(at) else { return };
        if subject.gone {
            return self.forget(at);
        }
        subject.stage = Stage::Planned;
        // Of a file that hasn't changed the tests are known. This one may hold a new one.
        let changed = matches!(at.1, Item::Unit(_));
        let work = Work {
            item: at.1.clone(),
            attempt: subject.attempt,
            together: subject.unit.clone().filter(|_| units != Units::Free).map(|unit| Together {
                whole: units == Units::Whole,
                shared: Duration::from_micros(known_unit(&unit).map_or(0, |known| known.shared_us)),
                unit,
            }),
            expected: known.as_ref().map(|known| Duration::from_micros(known.p90_us)),
            urgent: urgent || changed || known.is_some_and(|known| known.failed_last),
        };
        self.plan.add(&lane, work);
    }

    fn retries_due(&mut self, now: Time) {
        while let Some(entry) = self.waiting.first_entry().filter(|entry| entry.key().0 <= now) {
            let at = entry.remove();
            self.plan_subject(&at, true);
        }
    }

    // Handing out.

    fn hand_out(&mut self, now: Time) {
        if self.cancelled.is_some() || self.broker_lost.is_some() {
            return;
        }
        let queues: Vec<String> = self.plan.queues().map(String::from).collect();
        for queue in queues {
            loop {
                let (started, unstarted) = self.out(&queue);
                let slots = self.order.slots_hint.max(started).max(1);
                let spare = SPARE_MIN.max(started / 2).max(slots.saturating_sub(started));
                let next = self.plan.next_lane(&queue, |lane| !self.rests(lane));
                let Some(lane) = next.filter(|_| unstarted < spare) else { break };
                let work = self.plan.take(&lane, slots);
                self.send(now, lane, work);
            }
        }
    }

    /// How many batches of a queue are in work, and how many wait there.
    fn out(&self, queue: &str) -> (usize, usize) {
        let of_queue = self.batches.values().filter(|batch| batch.lane.queue == queue);
        of_queue.fold((0, 0), |(started, unstarted), batch| match batch.worker {
            Some(_) => (started + 1, unstarted),
            None => (started, unstarted + 1),
        })
    }

    fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    /// Sends a batch; gives its id unless there is nothing to ask for.
    fn send(&mut self, now: Time, lane: Lane, work: Vec<Work>) -> Option<BatchId> {
        let lease = Lease(self.next_serial());
        let batch = BatchId(format!("{}.{}", self.order.run, lease.0));
        let mut items = Vec::with_capacity(work.len());
        for work in work {
            let token = Token(self.next_serial());
            if let Some(subject) = self.subjects.get_mut(&(lane.suite.clone(), work.item.clone())) {
                subject.stage = Stage::Out(Open { token, batch: batch.clone() });
                items.push(OrderItem { token, attempt: work.attempt, item: work.item });
            }
        }
        if items.is_empty() {
            // All of it is gone from the files where it was.
            return None;
        }
        let policy = &self.order.policy;
        let order = BatchOrder {
            protocol: PROTOCOL,
            run: self.order.run.clone(),
            lease,
            sent: now,
            suite: lane.suite.clone(),
            prepared: self.prepared.get(&lane.suite).cloned().flatten(),
            test_timeout_ms: policy.test_timeout_ms,
            beat_ms: policy.beat_ms,
            items,
        };
        let state = Batch {
            lease,
            lane: lane.clone(),
            sent: now,
            instead_of: None,
            unheard: 0,
            worker: None,
            deadline: None,
            open: order.items.iter().map(|item| item.item.clone()).collect(),
            running: None,
            units: units_of(&order.items),
            unit_took: HashMap::new(),
        };
        self.batches.insert(batch.clone(), state);
        self.record(RunEvent::BatchSent {
            batch: batch.clone(),
            lease,
            suite: lane.suite,
            queue: lane.queue.clone(),
            items: order.items.iter().map(|item| (item.item.clone(), item.attempt, item.token)).collect(),
        });
        self.commands.push(Command::Publish { batch: batch.clone(), queue: lane.queue, order });
        Some(batch)
    }

    // Ends.

    fn done(&mut self, at: &(SuiteName, Item)) {
        if let Some(subject) = self.subjects.get_mut(at)
            && subject.stage != Stage::Done
        {
            subject.stage = Stage::Done;
            self.open_subjects -= 1;
        }
    }

    /// A test that there isn't any more, and nobody has tried.
    fn forget(&mut self, at: &(SuiteName, Item)) {
        if self.subjects.remove(at).is_some() {
            self.open_subjects -= 1;
        }
    }

    fn fault(&mut self, at: &(SuiteName, Item), fault: &Fault) {
        let Some(subject) = self.subjects.get(at).filter(|subject| subject.stage != Stage::Done) else {
            return;
        };
        if subject.gone {
            return self.forget(at);
        }
        let open = match &subject.stage {
            Stage::Out(open) => Some(open.clone()),
            Stage::Planned | Stage::Waiting | Stage::Done => None,
        };
        let worker = open.as_ref().and_then(|open| self.batches.get(&open.batch)?.worker.clone());
        let event = RunEvent::AttemptFaulted {
            test: TestId { suite: at.0.clone(), name: item_name(&at.1).to_owned() },
            attempt: subject.attempt,
            token: open.as_ref().map_or(Token(0), |open| open.token),
            batch: open.map(|open| open.batch),
            worker,
            fault: fault.clone(),
        };
        self.record(event);
        self.done(at);
    }

    /// Stops handing out. What is in work goes on to the end of the running test, or is ended at once.
    fn cancel(&mut self, reason: CancelReason, fault: &Fault) {
        if let Some(already) = self.cancelled {
            // Whoever stops a run that stops by itself is told that he did.
            if already == CancelReason::FailFast && reason == CancelReason::Interrupted {
                self.cancelled = Some(reason);
                self.record(RunEvent::Cancelled { reason });
            }
            return;
        }
        self.cancelled = Some(reason);
        self.record(RunEvent::Cancelled { reason });
        self.give_up_planned(fault, |_| true);
        for (suite, items) in std::mem::take(&mut self.held) {
            for item in items {
                self.forgo(&(suite.clone(), item), fault);
            }
        }
        let out: Vec<(BatchId, bool)> =
            self.batches.iter().map(|(id, batch)| (id.clone(), batch.worker.is_some())).collect();
        for (batch, started) in out {
            self.commands.push(Command::Revoke { batch: batch.clone(), terminate: false });
            if !started {
                self.abandon(&batch, fault);
            }
        }
    }

    fn kill(&mut self) {
        self.end_now(CancelReason::Interrupted, &cancelled_fault());
        self.own_worker = OwnWorker::Gone;
    }

    /// Gives up everything that is open, whoever is at work on it.
    fn end_now(&mut self, reason: CancelReason, fault: &Fault) {
        // Those too that somebody may just have begun, before they are given up.
        for batch in self.batches.keys() {
            self.commands.push(Command::Revoke { batch: batch.clone(), terminate: true });
        }
        self.cancel(reason, fault);
        for batch in self.batches.keys().cloned().collect::<Vec<_>>() {
            self.abandon(&batch, fault);
        }
        for suite in std::mem::take(&mut self.listing) {
            self.record(RunEvent::ListingEnded { suite, fault: Some(fault.clone()) });
        }
    }

    /// Gives up a test that will not be tried: it keeps the outcome that it has, or gets the fault.
    fn forgo(&mut self, at: &(SuiteName, Item), fault: &Fault) {
        if self.subjects.get(at).is_some_and(|subject| subject.attempt > 1) {
            self.done(at);
        } else {
            self.fault(at, fault);
        }
    }

    /// Ends a batch that will not be heard of again; what is open in it is given up.
    fn abandon(&mut self, id: &BatchId, fault: &Fault) {
        let Some(batch) = self.batches.get(id) else { return };
        let suite = batch.lane.suite.clone();
        for item in sorted(&batch.open) {
            self.forgo(&(suite.clone(), item), fault);
        }
        self.batches.remove(id);
    }

    fn finish_when_done(&mut self) {
        let idle = self.batches.is_empty() && self.open_subjects == 0;
        if !idle || !self.listing.is_empty() && self.cancelled.is_none() {
            return;
        }
        match self.own_worker {
            OwnWorker::Works => {
                self.own_worker = OwnWorker::Released;
                self.commands.push(Command::Release);
            }
            OwnWorker::Released => {}
            OwnWorker::Gone => {
                self.finished = true;
                self.record(RunEvent::RunFinished);
                self.commands.push(Command::Finish);
            }
        }
    }

    fn worker_gone(&mut self, failed: Vec<TeardownFailed>) {
        self.own_worker = OwnWorker::Gone;
        for failed in failed {
            self.record(RunEvent::TeardownFailed(failed));
        }
    }
}

fn key(test: &TestId) -> (SuiteName, Item) {
    (test.suite.clone(), Item::Test(test.name.clone()))
}

fn units_of(items: &[OrderItem]) -> HashMap<String, Token> {
    let units = items.iter().filter_map(|item| match &item.item {
        Item::Unit(name) => Some((name.clone(), item.token)),
        Item::Test(_) => None,
    });
    units.collect()
}

fn item_name(item: &Item) -> &str {
    match item {
        Item::Test(name) | Item::Unit(name) => name,
    }
}

fn sorted(items: &HashSet<Item>) -> Vec<Item> {
    let mut items: Vec<Item> = items.iter().cloned().collect();
    items.sort();
    items
}

fn cancelled_fault() -> Fault {
    Fault { kind: FaultKind::Cancelled, message: "the run stopped before it had a result".into() }
}

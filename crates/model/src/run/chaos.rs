//! Goal: whatever workers and broker do, and in whatever order, the run ends with exactly one verdict per test, and an
//! undisturbed test has exactly one attempt. Method: random stories; an adversary loses, freezes, returns, repeats and
//! reorders, then is calm for long enough.

use std::collections::HashMap;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::{
    BatchEnd, BatchReport, Fact, Outcome, Policy, Progress, Record, RunRecord, Stamped, Suite, Verdict,
};

#[derive(Debug, Clone, Copy)]
enum Move {
    /// A worker takes the n-th batch that waits and says so.
    Begin(usize),
    /// The n-th batch in work reports the next of its tests.
    Report(usize, bool),
    /// The n-th batch in work ends as done, whatever is open in it.
    End(usize),
    /// The n-th batch in work is never heard of again, though its messages may still come (`Late`).
    Freeze(usize),
    /// Something that a frozen worker said arrives after all.
    Late(usize),
    /// The broker gave the n-th batch to a second worker.
    Return(usize),
    /// The worker can't run it.
    Fault(usize),
    /// The n-th batch that waits can't be published after all.
    Refuse(usize),
    /// Somebody who is no worker takes the n-th batch that waits, and says nothing.
    Swallow(usize),
    /// Somebody looks at the queue.
    Look(u32),
    /// Time passes, and the dispatcher looks whenever it asked to be woken.
    Wait(u64),
    /// Time passes while the dispatcher is stopped.
    Sleep(u64),
    BrokerLost,
    BrokerBack,
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let n = 0..4_usize;
    let one = prop_oneof![
        4 => n.clone().prop_map(Move::Begin),
        8 => (n.clone(), prop::bool::weighted(0.8)).prop_map(|(n, good)| Move::Report(n, good)),
        2 => n.clone().prop_map(Move::End),
        1 => n.clone().prop_map(Move::Freeze),
        2 => n.clone().prop_map(Move::Late),
        1 => n.clone().prop_map(Move::Return),
        1 => n.clone().prop_map(Move::Fault),
        1 => n.clone().prop_map(Move::Refuse),
        1 => n.prop_map(Move::Swallow),
        2 => prop_oneof![Just(0), Just(0), Just(1)].prop_map(Move::Look),
        3 => (0..4_000_u64).prop_map(Move::Wait),
        1 => Just(Move::Wait(61_000)),
        1 => (0..10_000_u64).prop_map(Move::Sleep),
        1 => Just(Move::BrokerLost),
        1 => Just(Move::BrokerBack),
    ];
    prop::collection::vec(one, 0..120)
}

/// A batch somewhere in the world, with what is still to be said of it.
#[derive(Debug)]
struct Held {
    batch: BatchId,
    order: BatchOrder,
    left: Vec<(String, Token)>,
}

struct World {
    run: Run,
    now: Time,
    record: RunRecord,
    waiting: Vec<Held>,
    working: Vec<Held>,
    frozen: Vec<Held>,
    attempts: HashMap<TestId, Vec<u32>>,
}

const TESTS_PER_UNIT: usize = 3;

impl World {
    fn new(tests: usize, units: usize, retries: u32) -> Self {
        let policy = Policy {
            retries,
            backoff_ms: 50,
            backoff_max_ms: 200,
            fail_fast: false,
            test_timeout_ms: 1_000,
            beat_ms: 500,
            losses_max: 2,
        };
        let suite = Suite { name: "s".into(), adapter: "pytest".into() };
        let order = RunOrder {
            run: "r".into(),
            regatta: String::new(),
            tree: String::new(),
            broker: String::new(),
            suites: vec![SuiteOrder {
                suite,
                queue: "q".into(),
                routes: Vec::new(),
                units: Units::Together,
                held: false,
            }],
            filtered: false,
            policy,
            slots_hint: 2,
            known: Knowledge::default(),
            nobody_after_ms: 5_000,
            own_worker: false,
        };
        let mut world = Self {
            run: Run::new(order),
            now: Time(1),
            record: RunRecord::default(),
            waiting: Vec::new(),
            working: Vec::new(),
            frozen: Vec::new(),
            attempts: HashMap::new(),
        };
        world.on(Input::Started);
        let tests =
            (0..tests).map(|n| Listed { test: TestId::new("s", format!("t{n}")), unit: None }).collect();
        let units = (0..units).map(|n| Unit { suite: "s".into(), name: format!("u{n}") }).collect();
        world.on(Input::Listed { tests, units, remembered: Vec::new() });
        world.on(Input::ListingEnded { suite: "s".into(), fault: None });
        world
    }

    fn on(&mut self, input: Input) {
        for command in self.run.on(self.now, input) {
            match command {
                Command::Record(event) => {
                    if let RunEvent::AttemptFinished { test, attempt, .. }
                    | RunEvent::AttemptFaulted { test, attempt, .. } = &event
                    {
                        self.attempts.entry(test.clone()).or_default().push(*attempt);
                    }
                    self.record.apply(&Stamped { at: self.now, event });
                }
                Command::Publish { batch, order, .. } => {
                    self.waiting.push(Held { batch, order, left: Vec::new() });
                }
                Command::Revoke { .. } | Command::Release | Command::Finish => {}
            }
        }
    }

    fn say(&mut self, held: &Held, facts: Vec<Fact>) {
        let progress = Progress { lease: held.order.lease, worker: "w".into(), facts };
        self.on(Input::Progress { batch: held.batch.clone(), progress });
    }

    fn end(&mut self, held: &Held, end: BatchEnd) {
        let report = BatchReport { lease: held.order.lease, worker: "w".into(), end };
        self.on(Input::Report { batch: held.batch.clone(), report });
    }

    fn begin(&mut self, at: usize) {
        let mut held = self.waiting.remove(at);
        self.say(&held, Vec::new());
        for item in held.order.items.clone() {
            match item.item {
                Item::Test(name) => held.left.push((name, item.token)),
                Item::Unit(unit) => {
                    let tests: Vec<String> = (0..TESTS_PER_UNIT).map(|n| format!("{unit}::{n}")).collect();
                    held.left.extend(tests.iter().map(|test| (test.clone(), item.token)));
                    self.say(&held, vec![Fact::Collected { unit: unit.clone(), tests }]);
                    self.say(&held, vec![Fact::UnitFinished { unit }]);
                }
            }
        }
        self.working.push(held);
    }

    fn report(&mut self, mut held: Held, good: bool) -> Held {
        if let Some((test, token)) = held.left.pop() {
            let outcome = if good { Outcome::Passed } else { Outcome::Failed };
            self.say(&held, vec![Fact::Started { test: test.clone(), token }]);
            self.say(&held, vec![Fact::Finished { test, token, record: Record::new(outcome, self.now, 10) }]);
        }
        held
    }

    fn step(&mut self, next: Move) {
        match next {
            Move::Begin(n) if n < self.waiting.len() => self.begin(n),
            Move::Report(n, good) if n < self.working.len() => {
                let held = self.working.remove(n);
                let held = self.report(held, good);
                self.working.push(held);
            }
            Move::End(n) if n < self.working.len() => {
                let held = self.working.remove(n);
                self.end(&held, BatchEnd::Done);
            }
            Move::Freeze(n) if n < self.working.len() => {
                let held = self.working.remove(n);
                self.frozen.push(held);
            }
            Move::Late(n) if n < self.frozen.len() => {
                let held = self.frozen.remove(n);
                let held = self.report(held, true);
                self.frozen.push(held);
            }
            Move::Return(n) if n < self.working.len() => {
                let held = self.working.remove(n);
                self.end(&held, BatchEnd::Returned);
                self.working.push(held);
            }
            Move::Fault(n) if n < self.working.len() => {
                let held = self.working.remove(n);
                let fault = Fault { kind: FaultKind::CannotRun, message: "no".into() };
                self.end(&held, BatchEnd::Faulted(fault));
            }
            Move::Refuse(n) if n < self.waiting.len() => {
                let batch = self.waiting.remove(n).batch;
                self.on(Input::PublishFailed { batch, reason: "no".into() });
            }
            Move::Swallow(n) if n < self.waiting.len() => drop(self.waiting.remove(n)),
            Move::Look(consumers) => {
                let ready = u32::try_from(self.waiting.len()).unwrap();
                self.on(Input::QueueSeen { queue: "q".into(), consumers, ready });
            }
            Move::Wait(ms) => {
                let until = self.now.after(Duration::from_millis(ms));
                while self.now < until {
                    self.now = self.run.wake_at().map_or(until, |at| at.clamp(self.now, until));
                    self.on(Input::Tick);
                }
            }
            Move::Sleep(ms) => self.now = self.now.after(Duration::from_millis(ms)),
            Move::BrokerLost => self.on(Input::BrokerLost { reason: String::new() }),
            Move::BrokerBack => self.on(Input::BrokerBack),
            _ => {}
        }
    }

    /// The adversary rests: every batch that waits is run to its end, and time goes on.
    fn calm(&mut self) {
        self.on(Input::BrokerBack);
        for _ in 0..2_000 {
            if self.run.is_finished() {
                return;
            }
            while let Some(held) = self.working.pop() {
                let mut held = held;
                while !held.left.is_empty() {
                    held = self.report(held, true);
                }
                self.end(&held, BatchEnd::Done);
            }
            if self.waiting.is_empty() {
                self.step(Move::Wait(1_000));
                self.step(Move::Look(1));
            } else {
                self.begin(0);
            }
        }
        panic!("the run did not end: {:?}", self.run);
    }
}

proptest! {
    #[test]
    fn exactly_one_verdict_per_test(moves in moves(), tests in 0..12_usize, units in 0..4_usize, retries in 0..3_u32) {
        let mut world = World::new(tests, units, retries);
        for next in moves {
            world.step(next);
        }
        world.calm();
        let totals = world.record.totals();
        prop_assert_eq!(totals.pending, 0);
        prop_assert!(totals.tests >= tests);
        for (test, attempts) in &world.attempts {
            let numbers: Vec<u32> = (1..=u32::try_from(attempts.len()).unwrap()).collect();
            prop_assert_eq!(attempts, &numbers, "attempts of {} are counted once each", test);
            prop_assert!(attempts.len() <= retries as usize + 1);
        }
        for n in 0..units {
            let unit = TestId::new("s", format!("u{n}"));
            if world.record.test(&unit).is_none() {
                for at in 0..TESTS_PER_UNIT {
                    let test = TestId::new("s", format!("u{n}::{at}"));
                    prop_assert!(world.record.test(&test).and_then(crate::TestRecord::verdict).is_some());
                }
            }
        }
        let judged = [Verdict::Passed, Verdict::Flaky, Verdict::Failed, Verdict::Unjudged];
        prop_assert!(world.record.tests.iter().all(|test| test.verdict().is_some_and(|verdict| judged.contains(&verdict))));
    }
}

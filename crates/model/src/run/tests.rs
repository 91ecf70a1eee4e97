//! Tables: events in, commands out, time passed in. Each test reads as a story of one run.

mod leases;
mod trouble;

use std::time::Duration;

use super::*;
use crate::{
    BatchEnd, BatchReport, Fact, Outcome, Policy, Progress, Record, RunRecord, Stamped, Suite, Verdict,
};

/// A run under test, with the fold that everybody else sees.
struct Story {
    run: Run,
    now: Time,
    record: RunRecord,
    events: Vec<RunEvent>,
    sent: Vec<(BatchId, BatchOrder)>,
    revoked: Vec<(BatchId, bool)>,
    released: bool,
}

const BEAT_MS: u64 = 1_000;

fn policy() -> Policy {
    Policy {
        retries: 0,
        backoff_ms: 100,
        backoff_max_ms: 300,
        fail_fast: false,
        test_timeout_ms: 60_000,
        beat_ms: BEAT_MS,
        losses_max: 1,
    }
}

impl Story {
    fn new(policy: Policy) -> Self {
        let suite = Suite { name: "s".into(), adapter: "pytest".into() };
        let suite =
            SuiteOrder { suite, queue: "q".into(), routes: Vec::new(), units: Units::Together, held: false };
        let order = RunOrder {
            run: "r".into(),
            regatta: "0".into(),
            tree: "tree".into(),
            broker: "embedded".into(),
            suites: vec![suite],
            filtered: false,
            policy,
            slots_hint: 1,
            known: Knowledge::default(),
            nobody_after_ms: 60_000,
            own_worker: false,
        };
        Self::of(order)
    }

    /// The same, with a worker of the run's own.
    fn with_own_worker() -> Self {
        let order = Self::new(policy()).run.order;
        Self::of(RunOrder { own_worker: true, ..order })
    }

    fn of(order: RunOrder) -> Self {
        let (events, sent, revoked) = (Vec::new(), Vec::new(), Vec::new());
        let mut story = Self {
            run: Run::new(order),
            now: Time(1_000_000),
            record: RunRecord::default(),
            events,
            sent,
            revoked,
            released: false,
        };
        story.on(Input::Started);
        story
    }

    fn on(&mut self, input: Input) {
        for command in self.run.on(self.now, input) {
            match command {
                Command::Record(event) => {
                    self.record.apply(&Stamped { at: self.now, event: event.clone() });
                    self.events.push(event);
                }
                Command::Publish { batch, order, .. } => self.sent.push((batch, order)),
                Command::Revoke { batch, terminate } => self.revoked.push((batch, terminate)),
                Command::Release => self.released = true,
                Command::Finish => {}
            }
        }
    }

    /// Time passes while the dispatcher is awake: it looks whenever it asked to be woken.
    fn wait(&mut self, ms: u64) {
        let until = self.now.after(Duration::from_millis(ms));
        while self.now < until {
            self.now = self.run.wake_at().map_or(until, |at| at.clamp(self.now, until));
            self.on(Input::Tick);
        }
    }

    /// Time passes while the dispatcher is stopped, or its machine suspended.
    fn sleep(&mut self, ms: u64) {
        self.now = self.now.after(Duration::from_millis(ms));
    }

    fn list(&mut self, tests: &[&str], units: &[&str]) {
        let tests = tests.iter().map(|name| Listed { test: TestId::new("s", *name), unit: None }).collect();
        let units = units.iter().map(|name| Unit { suite: "s".into(), name: (*name).into() }).collect();
        self.on(Input::Listed { tests, units, remembered: Vec::new() });
        self.on(Input::ListingEnded { suite: "s".into(), fault: None });
    }

    /// Takes the oldest batch that was sent.
    fn take(&mut self) -> (BatchId, BatchOrder) {
        assert!(!self.sent.is_empty(), "no batch was sent");
        self.sent.remove(0)
    }

    fn say(&mut self, batch: &(BatchId, BatchOrder), worker: &str, facts: Vec<Fact>) {
        let progress = Progress { lease: batch.1.lease, worker: worker.into(), facts };
        self.on(Input::Progress { batch: batch.0.clone(), progress });
    }

    fn end(&mut self, batch: &(BatchId, BatchOrder), worker: &str, end: BatchEnd) {
        let report = BatchReport { lease: batch.1.lease, worker: worker.into(), end };
        self.on(Input::Report { batch: batch.0.clone(), report });
    }

    /// A worker that reports each test of a batch with one outcome and ends it.
    fn work(&mut self, batch: &(BatchId, BatchOrder), worker: &str, outcome: Outcome) {
        let facts =
            batch.1.items.iter().map(|item| finished(item_name(&item.item), item.token, outcome)).collect();
        self.say(batch, worker, facts);
        self.end(batch, worker, BatchEnd::Done);
    }

    fn verdict(&self, name: &str) -> Option<Verdict> {
        self.record.test(&TestId::new("s", name)).and_then(crate::TestRecord::verdict)
    }

    fn attempts(&self, name: &str) -> usize {
        self.record.test(&TestId::new("s", name)).map_or(0, |test| test.attempts.len())
    }

    fn saw(&self, what: impl Fn(&RunEvent) -> bool) -> bool {
        self.events.iter().any(what)
    }
}

fn finished(test: &str, token: Token, outcome: Outcome) -> Fact {
    Fact::Finished { test: test.into(), token, record: Record::new(outcome, Time(1), 1_000) }
}

#[test]
fn a_run_without_tests_ends_at_once() {
    let mut story = Story::new(policy());
    story.list(&[], &[]);
    assert!(story.run.is_finished());
    assert_eq!(story.record.totals().tests, 0);
}

#[test]
fn a_suite_in_which_nothing_was_found_is_told_from_one_that_a_filter_left_without() {
    for filtered in [false, true] {
        let mut order = Story::new(policy()).run.order;
        let named = |name: &str| Suite { name: name.into(), adapter: "pytest".into() };
        for name in ["empty", "hollow"] {
            let suite = SuiteOrder { suite: named(name), ..order.suites[0].clone() };
            order.suites.push(suite);
        }
        order.filtered = filtered;
        let mut story = Story::of(order);
        story.list(&["a"], &[]);
        story.on(Input::ListingEnded { suite: "empty".into(), fault: None });
        let units = vec![Unit { suite: "hollow".into(), name: "f.py".into() }];
        story.on(Input::Listed { tests: Vec::new(), units, remembered: Vec::new() });
        story.on(Input::ListingEnded { suite: "hollow".into(), fault: None });
        let (first, second) = (story.take(), story.take());
        let (tests, unit) = if first.1.suite.0 == "s" { (first, second) } else { (second, first) };
        story.work(&tests, "w", Outcome::Passed);
        let nothing = Fact::Collected { unit: "f.py".into(), tests: Vec::new() };
        story.say(&unit, "w", vec![nothing, Fact::UnitFinished { unit: "f.py".into() }]);
        story.end(&unit, "w", BatchEnd::Done);
        assert!(story.run.is_finished());
        let empty: Vec<&str> = story.record.suites_empty().map(|suite| suite.0.as_str()).collect();
        assert_eq!(empty, ["empty", "hollow"]);
        assert_eq!(story.record.filtered, filtered);
    }
}

#[test]
fn every_listed_test_gets_the_verdict_of_its_record() {
    let mut story = Story::new(policy());
    story.list(&["a", "b", "c"], &[]);
    while !story.sent.is_empty() {
        let batch = story.take();
        story.work(&batch, "w", Outcome::Passed);
    }
    assert!(story.run.is_finished());
    assert_eq!(story.record.totals().passed, 3);
    assert!(story.record.finished);
}

#[test]
fn a_unit_that_has_changed_comes_before_what_takes_long() {
    let known = |ms: u64| Known { p90_us: ms * 1_000, ..Known::default() };
    let mut order = Story::new(policy()).run.order;
    let unit = Unit { suite: "s".into(), name: "edited.py".into() };
    order.known.units.insert(unit.clone(), known(10));
    order.known.tests.insert(TestId::new("s", "long.py::a"), known(60_000));
    let mut story = Story::of(order);
    let long = Listed { test: TestId::new("s", "long.py::a"), unit: None };
    // Listing knows what an unchanged file holds; this one may hold something new.
    story.on(Input::Listed { tests: vec![long], units: vec![unit], remembered: Vec::new() });
    story.on(Input::ListingEnded { suite: "s".into(), fault: None });
    let first = story.take().1.items;
    assert_eq!(first.iter().map(|item| item_name(&item.item)).collect::<Vec<_>>(), ["edited.py"]);
}

#[test]
fn a_remembered_unit_that_holds_other_tests_now_is_run_as_it_is() {
    let unit = Unit { suite: "s".into(), name: "u".into() };
    let listed = |name: &str| Listed { test: TestId::new("s", name), unit: Some(unit.clone()) };
    for whole in [true, false] {
        let mut story = Story::new(policy());
        let tests = ["u::a", "u::b", "u::c"].map(listed).to_vec();
        let remembered = if whole { vec![unit.clone()] } else { Vec::new() };
        story.on(Input::Listed { tests, units: Vec::new(), remembered });
        story.on(Input::ListingEnded { suite: "s".into(), fault: None });
        let tests = vec!["u::a".to_owned(), "u::new".to_owned()];
        while !story.sent.is_empty() {
            let batch = story.take();
            let there = |item: &&OrderItem| tests.iter().any(|test| test == item_name(&item.item));
            let outcome = |test: &str| if test == "u::a" { Outcome::Passed } else { Outcome::Failed };
            let done = batch.1.items.iter().filter(there).map(|item| {
                let test = item_name(&item.item);
                finished(test, item.token, outcome(test))
            });
            let collected = Fact::Collected { unit: "u".into(), tests: tests.clone() };
            story.say(&batch, "w", std::iter::once(collected).chain(done).collect());
            story.end(&batch, "w", BatchEnd::Done);
        }
        assert!(story.run.is_finished());
        let totals = story.record.totals();
        if whole {
            assert_eq!((totals.tests, totals.passed, totals.failed), (2, 1, 1), "the new one is not missed");
            assert_eq!(story.verdict("u::new"), Some(Verdict::Failed));
            assert!(
                story.saw(
                    |event| matches!(event, RunEvent::UnitChanged { tests: told, .. } if *told == tests)
                )
            );
        } else {
            assert_eq!(story.verdict("u::new"), None, "only what was asked for by name");
            assert_eq!(totals.tests, 3);
        }
    }
}

/// How a batch comes to its end.
type End = fn(&mut Story, &(BatchId, BatchOrder));

#[test]
fn what_is_gone_from_a_unit_is_gone_from_batches_that_are_out_too() {
    let unit = Unit { suite: "s".into(), name: "u".into() };
    // How the other batch ends, and whether its test counts.
    let ends: [(End, bool); 7] = [
        (|story, batch| story.end(batch, "w2", BatchEnd::Done), false),
        (|story, batch| story.end(batch, "w2", BatchEnd::Returned), false),
        (|story, _| story.on(Input::Kill), false),
        (
            |story, batch| {
                story.say(batch, "w2", Vec::new());
                story.wait(3 * BEAT_MS);
            },
            false,
        ),
        (
            |story, batch| {
                let there = item_name(&batch.1.items[0].item).to_owned();
                story.say(batch, "w2", vec![Fact::Collected { unit: "u".into(), tests: vec![there] }]);
                story.work(batch, "w2", Outcome::Failed);
            },
            true,
        ),
        // It had collected the unit before.
        (|story, batch| story.work(batch, "w2", Outcome::Failed), true),
        // It finds the same, and answers nevertheless for what it was asked for.
        (
            |story, batch| {
                story.say(
                    batch,
                    "w2",
                    vec![Fact::Collected { unit: "u".into(), tests: vec!["u::a".into()] }],
                );
                story.work(batch, "w2", Outcome::Failed);
            },
            false,
        ),
    ];
    for (end, counts) in ends {
        let mut story = Story::new(policy());
        let listed = |name: &str| Listed { test: TestId::new("s", name), unit: Some(unit.clone()) };
        let tests = vec![listed("u::a"), listed("u::b")];
        story.on(Input::Listed { tests, units: Vec::new(), remembered: vec![unit.clone()] });
        story.on(Input::ListingEnded { suite: "s".into(), fault: None });
        let (first, other) = (story.take(), story.take());
        let (kept, gone) = (item_name(&first.1.items[0].item), item_name(&other.1.items[0].item));
        let collected = Fact::Collected { unit: "u".into(), tests: vec![kept.to_owned()] };
        story.say(&first, "w", vec![collected, finished(kept, first.1.items[0].token, Outcome::Passed)]);
        story.end(&first, "w", BatchEnd::Done);
        end(&mut story, &other);
        assert!(story.run.is_finished());
        assert_eq!(story.verdict(kept), Some(Verdict::Passed));
        assert_eq!(story.verdict(gone), counts.then_some(Verdict::Failed));
        assert_eq!(story.record.totals().tests, 1 + usize::from(counts));
    }
}

#[test]
fn the_runs_own_worker_is_released_when_all_is_judged_and_waited_for() {
    let mut story = Story::with_own_worker();
    story.list(&["a"], &[]);
    let batch = story.take();
    assert!(!story.released);
    story.work(&batch, "w", Outcome::Passed);
    assert!(story.released && !story.run.is_finished());
    let failed = TeardownFailed {
        suite: "s".into(),
        worker: "w".into(),
        message: "the database would not go".into(),
        output: crate::Output::default(),
    };
    story.on(Input::Released { failed: vec![failed.clone()] });
    assert!(story.run.is_finished());
    assert_eq!(story.record.teardowns_failed, [failed]);
    assert_eq!(story.events.last(), Some(&RunEvent::RunFinished));
}

#[test]
fn a_killed_run_waits_for_no_worker() {
    for judged in [false, true] {
        let mut story = Story::with_own_worker();
        story.list(&["a"], &[]);
        let batch = story.take();
        if judged {
            story.work(&batch, "w", Outcome::Passed);
        }
        story.on(Input::Interrupt);
        assert!(!story.run.is_finished());
        story.on(Input::Kill);
        assert!(story.run.is_finished());
    }
}

#[test]
fn what_was_asked_for_and_not_reported_is_a_fault() {
    let mut story = Story::new(policy());
    story.list(&["a"], &[]);
    let batch = story.take();
    story.end(&batch, "w", BatchEnd::Done);
    assert_eq!(story.verdict("a"), Some(Verdict::Unjudged));
    assert!(story.saw(
        |event| matches!(event, RunEvent::AttemptFaulted { fault, .. } if fault.kind == FaultKind::NotReported)
    ));
    assert!(story.run.is_finished());
}

#[test]
fn a_failed_test_is_tried_again_after_a_growing_wait_and_is_flaky_when_it_passes() {
    let mut story = Story::new(Policy { retries: 2, ..policy() });
    story.list(&["a"], &[]);
    let first = story.take();
    story.work(&first, "w", Outcome::Failed);
    assert!(story.sent.is_empty(), "the retry waits");
    story.wait(99);
    assert!(story.sent.is_empty(), "for 100 ms");
    story.wait(1);
    let second = story.take();
    assert_eq!(second.1.items[0].attempt, 2);
    story.work(&second, "w", Outcome::Failed);
    story.wait(199);
    assert!(story.sent.is_empty(), "twice as long the second time");
    story.wait(1);
    let third = story.take();
    story.work(&third, "w", Outcome::Passed);
    assert_eq!(story.verdict("a"), Some(Verdict::Flaky));
    assert_eq!(story.attempts("a"), 3);
    assert!(story.run.is_finished());
}

#[test]
fn a_test_that_keeps_failing_fails_after_its_last_retry() {
    let mut story = Story::new(Policy { retries: 1, ..policy() });
    story.list(&["a"], &[]);
    let first = story.take();
    story.work(&first, "w", Outcome::Crashed);
    story.wait(100);
    let second = story.take();
    story.work(&second, "w", Outcome::TimedOut);
    assert_eq!(story.verdict("a"), Some(Verdict::Failed));
    assert!(story.run.is_finished());
}

#[test]
fn a_failed_test_that_is_skipped_at_its_retry_has_failed_for_good() {
    let mut story = Story::new(Policy { retries: 5, fail_fast: true, ..policy() });
    story.list(&["a", "b"], &[]);
    let first = story.take();
    story.work(&first, "w", Outcome::Failed);
    let other = story.take();
    story.work(&other, "w", Outcome::Skipped);
    assert_eq!(story.verdict("b"), Some(Verdict::Skipped));
    story.wait(100);
    let second = story.take();
    story.work(&second, "w", Outcome::Skipped);
    assert_eq!((story.verdict("a"), story.attempts("a")), (Some(Verdict::Failed), 2));
    assert!(story.saw(|event| matches!(event, RunEvent::Cancelled { reason: CancelReason::FailFast })));
    assert!(story.run.is_finished());
}

#[test]
fn tests_of_a_unit_join_the_run_when_it_is_collected() {
    let mut story = Story::new(policy());
    story.list(&[], &["f.py"]);
    let batch = story.take();
    let token = batch.1.items[0].token;
    story.say(
        &batch,
        "w",
        vec![Fact::Collected { unit: "f.py".into(), tests: vec!["f.py::a".into(), "f.py::b".into()] }],
    );
    assert_eq!(story.record.totals().pending, 2);
    story.say(&batch, "w", vec![finished("f.py::a", token, Outcome::Passed)]);
    story.end(&batch, "w", BatchEnd::Done);
    assert_eq!(story.verdict("f.py::a"), Some(Verdict::Passed));
    assert_eq!(story.verdict("f.py::b"), Some(Verdict::Unjudged), "collected, not reported");
    assert!(story.run.is_finished());
}

#[test]
fn a_unit_that_nobody_collected_is_not_reported() {
    let mut story = Story::new(policy());
    story.list(&[], &["f.py"]);
    let batch = story.take();
    story.end(&batch, "w", BatchEnd::Done);
    assert_eq!(story.verdict("f.py"), Some(Verdict::Unjudged));
    assert!(story.run.is_finished());
}

#[test]
fn a_unit_may_be_reported_under_its_own_name() {
    for collected_first in [false, true] {
        let mut story = Story::new(Policy { retries: 3, ..policy() });
        story.list(&[], &["f.py"]);
        let batch = story.take();
        let token = batch.1.items[0].token;
        if collected_first {
            story.say(&batch, "w", vec![Fact::Collected { unit: "f.py".into(), tests: Vec::new() }]);
        }
        story.say(&batch, "w", vec![finished("f.py", token, Outcome::Errored)]);
        story.end(&batch, "w", BatchEnd::Done);
        assert_eq!(story.verdict("f.py"), Some(Verdict::Failed));
        assert!(story.run.is_finished(), "collected first: {collected_first}");
    }
}

#[test]
fn fail_fast_lets_what_runs_end_and_every_test_has_one_verdict() {
    let mut story = Story::new(Policy { fail_fast: true, ..policy() });
    let names: Vec<String> = (0..100).map(|n| format!("t{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    story.list(&names, &[]);
    let batch = story.take();
    let item = &batch.1.items[0];
    story.say(&batch, "w", vec![finished(item_name(&item.item), item.token, Outcome::Failed)]);
    assert!(story.revoked.iter().any(|(id, terminate)| *id == batch.0 && !*terminate));
    let last = &batch.1.items[1];
    story.say(&batch, "w", vec![finished(item_name(&last.item), last.token, Outcome::Passed)]);
    story.end(&batch, "w", BatchEnd::Cancelled);
    assert!(story.run.is_finished());
    let totals = story.record.totals();
    let counts = (totals.tests, totals.failed, totals.passed, totals.unjudged, totals.pending);
    assert_eq!(counts, (100, 1, 1, 98, 0));
}

#[test]
fn a_run_that_stops_for_a_failure_and_then_for_a_signal_was_interrupted() {
    let signals: [&[Input]; 3] =
        [&[Input::Kill], &[Input::Interrupt], &[Input::Interrupt, Input::Interrupt, Input::Kill]];
    for signals in signals {
        let mut story = Story::new(Policy { fail_fast: true, ..policy() });
        story.list(&["a", "b", "c"], &[]);
        let (bad, long) = (story.take(), story.take());
        story.say(&long, "w2", Vec::new());
        story.work(&bad, "w1", Outcome::Failed);
        assert_eq!(story.record.cancelled, Some(CancelReason::FailFast));
        for signal in signals {
            story.on(signal.clone());
        }
        if matches!(signals, [Input::Interrupt]) {
            assert!(!story.run.is_finished(), "one batch is in work");
            story.work(&long, "w2", Outcome::Failed);
        }
        assert!(story.run.is_finished());
        assert_eq!(story.record.cancelled, Some(CancelReason::Interrupted));
        let said = |event: &&RunEvent| matches!(event, RunEvent::Cancelled { .. });
        assert_eq!(story.events.iter().filter(said).count(), 2, "each reason once");
        assert_eq!(story.record.totals().pending, 0);
    }
}

#[test]
fn an_interrupt_lets_what_runs_end_and_a_second_one_does_not_wait() {
    let mut story = Story::new(policy());
    story.list(&["a", "b", "c"], &[]);
    let batch = story.take();
    story.say(&batch, "w", Vec::new());
    story.on(Input::Interrupt);
    assert!(!story.run.is_finished(), "one batch is in work");
    assert!(story.revoked.contains(&(batch.0.clone(), false)));
    story.on(Input::Kill);
    assert!(story.revoked.contains(&(batch.0.clone(), true)));
    assert!(story.run.is_finished());
    assert_eq!(story.record.totals().unjudged, 3);
}

#[test]
fn nobody_works_is_said_and_in_the_end_given_up() {
    let mut story = Story::new(policy());
    story.list(&["a"], &[]);
    let seen = |consumers| Input::QueueSeen { queue: "q".into(), consumers, ready: 0 };
    story.on(seen(0));
    assert!(!story.saw(|event| matches!(event, RunEvent::NobodyWorks { .. })), "it may be a reconnect");
    story.wait(4_000);
    story.on(seen(0));
    assert!(story.saw(|event| matches!(event, RunEvent::NobodyWorks { .. })));
    story.on(seen(1));
    assert!(story.saw(|event| matches!(event, RunEvent::SomebodyWorks { .. })));
    story.on(seen(0));
    story.wait(60_000);
    story.on(seen(0));
    assert!(story.run.is_finished());
    assert_eq!(story.verdict("a"), Some(Verdict::Unjudged));
}

#[test]
fn a_worker_that_can_not_run_a_batch_leaves_it_to_others_until_it_is_a_fault() {
    let mut story = Story::new(Policy { losses_max: 1, ..policy() });
    story.list(&["a"], &[]);
    for _ in 0..2 {
        let batch = story.take();
        let fault = Fault { kind: FaultKind::CannotRun, message: "no python".into() };
        story.end(&batch, "w", BatchEnd::Faulted(fault));
        story.wait(100);
    }
    assert!(story.run.is_finished());
    let test = story.record.test(&TestId::new("s", "a")).expect("listed");
    assert!(format!("{:?}", test.attempts).contains("no python"));
}

#[test]
fn a_held_suite_goes_out_when_it_is_prepared_and_names_the_manifest() {
    let mut story = Story::new(policy());
    story.run.order.suites[0].held = true;
    let tests = vec![Listed { test: TestId::new("s", "a"), unit: None }];
    story.on(Input::Listed { tests, units: Vec::new(), remembered: Vec::new() });
    assert!(story.sent.is_empty());
    story.on(Input::Prepared { suite: "s".into(), digest: Some("d1".into()) });
    assert_eq!(story.take().1.prepared, Some("d1".into()));
}

#[test]
fn more_batches_go_out_as_workers_join() {
    let mut story = Story::new(policy());
    let names: Vec<String> = (0..500).map(|n| format!("t{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    story.list(&names, &[]);
    assert_eq!(story.sent.len(), SPARE_MIN);
    for (n, batch) in std::mem::take(&mut story.sent).iter().enumerate() {
        story.say(batch, &format!("w{n}"), Vec::new());
    }
    assert_eq!(story.sent.len(), SPARE_MIN, "each that began made room for another");
}

#[test]
fn the_first_result_with_the_right_token_wins() {
    let mut story = Story::new(policy());
    story.list(&["a"], &[]);
    let batch = story.take();
    let token = batch.1.items[0].token;
    story.say(&batch, "w", vec![finished("a", Token(token.0 + 100), Outcome::Failed)]);
    assert_eq!(story.verdict("a"), None, "a foreign token does not count");
    story.say(
        &batch,
        "w",
        vec![finished("a", token, Outcome::Passed), finished("a", token, Outcome::Failed)],
    );
    story.end(&batch, "w", BatchEnd::Done);
    assert_eq!(story.verdict("a"), Some(Verdict::Passed));
    assert_eq!((story.attempts("a"), story.record.late.len()), (1, 2));
}

//! The fold of a run's events into its record: every test with every attempt. Reporters, the store and the exit code
//! all read this one fold.

use std::collections::{HashMap, HashSet};

use serde::Serialize;

use crate::{
    Attempt, CancelReason, Fault, Judgement, Output, Record, RunEvent, RunId, Stamped, Suite, SuiteName,
    TeardownFailed, TestId, Time, Unit, Verdict, WorkerName,
};

/// How many bytes of output a record holds in all, of attempts that went well and of those that didn't. What is beyond is
/// left out, and is in the stream of facts; a suite that prints without measure must not take the dispatcher's memory.
const GOOD_OUTPUT_BYTES_MAX: usize = 64 << 20;
const BAD_OUTPUT_BYTES_MAX: usize = 256 << 20;

/// A test and all its attempts.
#[derive(Debug, Clone, Serialize)]
pub struct TestRecord {
    /// Which test.
    #[serde(flatten)]
    pub test: TestId,
    /// The unit in which it is.
    pub unit: Option<Unit>,
    /// Attempts in order.
    pub attempts: Vec<Attempt>,
}

impl TestRecord {
    /// What its attempts come to; none while there is none.
    #[must_use]
    pub fn verdict(&self) -> Option<Verdict> {
        Verdict::of(&self.attempts)
    }
}

/// Counts of verdicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Totals {
    /// Every test that the run answers for.
    pub tests: usize,
    /// Passed at the first attempt.
    pub passed: usize,
    /// Passed after failing.
    pub flaky: usize,
    /// Failed for good.
    pub failed: usize,
    /// Not to run.
    pub skipped: usize,
    /// Could not be judged.
    pub unjudged: usize,
    /// No attempt has ended yet.
    pub pending: usize,
}

/// The record of a run, folded from its events.
#[derive(Debug, Clone, Default)]
pub struct RunRecord {
    /// The run's id, once it has started.
    pub run: Option<RunId>,
    /// When the first event happened.
    pub started: Time,
    /// When the last event happened.
    pub updated: Time,
    /// Whether the last event was the run's last.
    pub finished: bool,
    /// The tree.
    pub tree: String,
    /// The broker.
    pub broker: String,
    /// The suites.
    pub suites: Vec<Suite>,
    /// Whether only some of their tests were asked for.
    pub filtered: bool,
    /// Tests in the order in which they were listed.
    pub tests: Vec<TestRecord>,
    /// Units that nobody has collected yet.
    pub units_open: Vec<Unit>,
    /// Faults of whole suites.
    pub listing_faults: Vec<Fault>,
    /// What could not be taken down in good order after the tests.
    pub teardowns_failed: Vec<TeardownFailed>,
    /// Workers that were seen, in the order of their first batch.
    pub workers: Vec<WorkerName>,
    /// What happened to workers that were given up.
    pub losses: Vec<String>,
    /// Why batches could not be run.
    pub batches_faulted: Vec<String>,
    /// Late results, as `(test, worker)`.
    pub late: Vec<(TestId, WorkerName)>,
    /// Why it stopped handing out, when it did.
    pub cancelled: Option<CancelReason>,
    index: HashMap<TestId, usize>,
    good_output_bytes: usize,
    bad_output_bytes: usize,
}

impl RunRecord {
    /// Takes in the next event.
    pub fn apply(&mut self, stamped: &Stamped) {
        if self.started == Time::default() {
            self.started = stamped.at;
        }
        self.updated = stamped.at;
        match &stamped.event {
            RunEvent::RunStarted { run, tree, broker, suites, filtered, .. } => {
                self.run = Some(run.clone());
                self.tree.clone_from(tree);
                self.broker.clone_from(broker);
                self.suites.clone_from(suites);
                self.filtered = *filtered;
            }
            RunEvent::Listed { tests, units } => {
                for listed in tests {
                    self.test_mut(&listed.test, listed.unit.as_ref());
                }
                self.units_open.extend(units.iter().cloned());
            }
            RunEvent::ListingEnded { fault, .. } => self.listing_faults.extend(fault.clone()),
            RunEvent::BatchStarted { worker, .. } => self.see(worker),
            RunEvent::UnitCollected { unit, tests, .. } => {
                self.units_open.retain(|open| open != unit);
                for name in tests {
                    let test = TestId { suite: unit.suite.clone(), name: name.clone() };
                    self.test_mut(&test, Some(unit));
                }
            }
            RunEvent::UnitChanged { unit, tests } => self.changed(unit, tests),
            RunEvent::AttemptFinished { .. } | RunEvent::AttemptFaulted { .. } => {
                self.attempted(&stamped.event);
            }
            RunEvent::LateResult { test, worker, .. } => self.late.push((test.clone(), worker.clone())),
            RunEvent::WorkerLost { reason, .. } => self.losses.push(reason.clone()),
            RunEvent::BatchFaulted { reason, .. } => self.batches_faulted.push(reason.clone()),
            RunEvent::TeardownFailed(failed) => self.teardowns_failed.push(failed.clone()),
            RunEvent::Cancelled { reason } => self.cancelled = Some(*reason),
            RunEvent::RunFinished => self.finished = true,
            RunEvent::BatchSent { .. }
            | RunEvent::AttemptStarted { .. }
            | RunEvent::RetryScheduled { .. }
            | RunEvent::BatchEnded { .. }
            | RunEvent::BrokerLost { .. }
            | RunEvent::BrokerBack
            | RunEvent::NobodyWorks { .. }
            | RunEvent::SomebodyWorks { .. } => {}
        }
    }

    fn changed(&mut self, unit: &Unit, tests: &[String]) {
        let there: HashSet<&String> = tests.iter().collect();
        self.tests.retain(|test| {
            test.unit.as_ref() != Some(unit) || there.contains(&test.test.name) || !test.attempts.is_empty()
        });
        self.index = self.tests.iter().enumerate().map(|(at, test)| (test.test.clone(), at)).collect();
        for name in tests {
            let test = TestId { suite: unit.suite.clone(), name: name.clone() };
            self.test_mut(&test, Some(unit));
        }
    }

    fn attempted(&mut self, event: &RunEvent) {
        match event {
            RunEvent::AttemptFinished { test, attempt, token, batch, lease, worker, record } => {
                self.units_open.retain(|open| open.suite != test.suite || open.name != test.name);
                let attempt = Attempt {
                    number: *attempt,
                    token: *token,
                    batch: batch.clone(),
                    lease: *lease,
                    worker: Some(worker.clone()),
                    judgement: Judgement::Outcome(record.outcome),
                    record: Some(self.kept(record)),
                };
                self.test_mut(test, None).attempts.push(attempt);
            }
            RunEvent::AttemptFaulted { test, attempt, token, batch, worker, fault } => {
                self.units_open.retain(|open| open.suite != test.suite || open.name != test.name);
                let attempt = Attempt {
                    number: *attempt,
                    token: *token,
                    batch: batch.clone().unwrap_or_else(|| "".into()),
                    lease: crate::Lease(0),
                    worker: worker.clone(),
                    judgement: Judgement::Fault(fault.clone()),
                    record: None,
                };
                self.test_mut(test, None).attempts.push(attempt);
            }
            _ => {}
        }
    }

    /// What is kept of a worker's record: all but an output for which there is no more room.
    fn kept(&mut self, record: &Record) -> Record {
        let (held, most) = if record.outcome.is_good() {
            (&mut self.good_output_bytes, GOOD_OUTPUT_BYTES_MAX)
        } else {
            (&mut self.bad_output_bytes, BAD_OUTPUT_BYTES_MAX)
        };
        let bytes = record.output.text.len();
        if *held + bytes <= most {
            *held += bytes;
            return record.clone();
        }
        let omitted = record.output.bytes_omitted + u64::try_from(bytes).unwrap_or(u64::MAX);
        let text = "[left out of this record, which holds too much output already; it is in events.jsonl]\n";
        let output = Output { text: text.to_owned(), bytes_omitted: omitted };
        Record {
            native: record.native.clone(),
            message: record.message.clone(),
            output,
            phases: record.phases.clone(),
            ..Record::new(record.outcome, record.started, record.duration_us)
        }
    }

    /// The record of one test, if the run answers for it.
    #[must_use]
    pub fn test(&self, test: &TestId) -> Option<&TestRecord> {
        self.index.get(test).map(|&at| &self.tests[at])
    }

    /// The suites of which no test is known: none was listed, and none was found in their units.
    pub fn suites_empty(&self) -> impl Iterator<Item = &SuiteName> {
        let names = self.suites.iter().map(|suite| &suite.name);
        names.filter(|name| !self.tests.iter().any(|test| test.test.suite == **name))
    }

    /// Counts the verdicts.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let mut totals = Totals { tests: self.tests.len(), ..Totals::default() };
        for test in &self.tests {
            match test.verdict() {
                None => totals.pending += 1,
                Some(Verdict::Passed) => totals.passed += 1,
                Some(Verdict::Flaky) => totals.flaky += 1,
                Some(Verdict::Failed) => totals.failed += 1,
                Some(Verdict::Skipped) => totals.skipped += 1,
                Some(Verdict::Unjudged) => totals.unjudged += 1,
            }
        }
        totals
    }

    fn see(&mut self, worker: &WorkerName) {
        if !self.workers.contains(worker) {
            self.workers.push(worker.clone());
        }
    }

    fn test_mut(&mut self, test: &TestId, unit: Option<&Unit>) -> &mut TestRecord {
        let at = *self.index.entry(test.clone()).or_insert_with(|| {
            self.tests.push(TestRecord { test: test.clone(), unit: unit.cloned(), attempts: Vec::new() });
            self.tests.len() - 1
        });
        &mut self.tests[at]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Lease, Outcome, Token};

    #[test]
    fn outputs_beyond_all_measure_are_left_out_and_failures_keep_their_own_room() {
        let mut record = RunRecord::default();
        let mut finish = |n: u64, outcome, bytes: usize| {
            let output = Output { text: "x".repeat(bytes), bytes_omitted: 1 };
            let said = Record { output, ..Record::new(outcome, Time(1), 1) };
            let event = RunEvent::AttemptFinished {
                test: TestId::new("s", n.to_string()),
                attempt: 1,
                token: Token(n),
                batch: "b".into(),
                lease: Lease(1),
                worker: "w".into(),
                record: said,
            };
            record.apply(&Stamped { at: Time(n), event });
            let kept = &record.tests.last().unwrap().attempts[0].record.as_ref().unwrap().output;
            (kept.text.len() == bytes, kept.bytes_omitted)
        };
        let half = GOOD_OUTPUT_BYTES_MAX / 2;
        assert_eq!(finish(1, Outcome::Passed, half), (true, 1));
        assert_eq!(finish(2, Outcome::Passed, half), (true, 1));
        assert_eq!(finish(3, Outcome::Passed, 100), (false, 101));
        assert_eq!(finish(4, Outcome::Passed, 0), (true, 1));
        assert_eq!(finish(5, Outcome::Failed, 100), (true, 1));
    }
}

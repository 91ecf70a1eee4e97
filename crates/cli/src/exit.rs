//! Exit codes, and how a run's record becomes one.

use std::process::ExitCode;

use regatta_model::{CancelReason, FaultKind, Judgement, RunRecord, Verdict};

/// How `regatta` ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Every test passed (flaky ones in the end), or was skipped.
    Passed = 0,
    /// A test failed, or what tests shared could not be taken down in good order; and everything could be judged.
    Failed = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// Something could not be judged: a fault of the set-up, not of a test.
    Fault = 3,
    /// There was no test, or none in a suite of which all were asked for.
    NoTests = 4,
    /// The user stopped it.
    Interrupted = 130,
}

impl Exit {
    /// Its number.
    pub(crate) fn code(self) -> u8 {
        self as u8
    }

    /// What a run's record comes to. What could not be judged weighs more than what failed: a red test is an answer.
    pub(crate) fn of(record: &RunRecord) -> Self {
        if record.cancelled == Some(CancelReason::Interrupted) {
            return Self::Interrupted;
        }
        let totals = record.totals();
        let stopped_on_purpose = record.cancelled == Some(CancelReason::FailFast);
        let unjudged = record.tests.iter().any(|test| {
            match test.verdict() {
            None => !stopped_on_purpose,
            Some(Verdict::Unjudged) => !stopped_on_purpose || !test.attempts.iter().all(|attempt| {
                matches!(&attempt.judgement, Judgement::Fault(fault) if fault.kind == FaultKind::Cancelled)
            }),
            Some(_) => false,
        }
        });
        let open = !stopped_on_purpose && !record.units_open.is_empty();
        if unjudged || open || !record.listing_faults.is_empty() || !record.finished {
            Self::Fault
        } else if totals.failed > 0 || !record.teardowns_failed.is_empty() {
            Self::Failed
        } else if totals.tests == 0 || !record.filtered && record.suites_empty().next().is_some() {
            Self::NoTests
        } else {
            Self::Passed
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        exit.code().into()
    }
}

#[cfg(test)]
mod tests {
    use regatta_model::{Attempt, Fault, Lease, Outcome, Suite, TestId, TestRecord, Token};

    use super::*;

    fn record(judgements: &[Judgement], cancelled: Option<CancelReason>) -> RunRecord {
        let attempt = |judgement: &Judgement| Attempt {
            number: 1,
            token: Token(1),
            batch: "b".into(),
            lease: Lease(1),
            worker: None,
            judgement: judgement.clone(),
            record: None,
        };
        let mut record = RunRecord::default();
        record.finished = true;
        record.cancelled = cancelled;
        record.tests = (judgements.iter().enumerate())
            .map(|(n, judgement)| TestRecord {
                test: TestId::new("s", n.to_string()),
                unit: None,
                attempts: vec![attempt(judgement)],
            })
            .collect();
        record
    }

    #[test]
    fn a_record_comes_to_one_code() {
        let fault = |kind| Judgement::Fault(Fault { kind, message: String::new() });
        let passed = Judgement::Outcome(Outcome::Passed);
        let skipped = Judgement::Outcome(Outcome::Skipped);
        let failed = Judgement::Outcome(Outcome::Failed);
        let crashed = Judgement::Outcome(Outcome::Crashed);
        let lost = fault(FaultKind::NotReported);
        let cancelled = fault(FaultKind::Cancelled);
        let table = [
            (vec![], None, Exit::NoTests),
            (vec![passed.clone()], None, Exit::Passed),
            (vec![skipped], None, Exit::Passed),
            (vec![passed.clone(), failed.clone()], None, Exit::Failed),
            (vec![crashed], None, Exit::Failed),
            (vec![failed.clone(), lost.clone()], None, Exit::Fault),
            (vec![failed.clone(), cancelled.clone()], Some(CancelReason::FailFast), Exit::Failed),
            (vec![failed.clone(), lost], Some(CancelReason::FailFast), Exit::Fault),
            (vec![failed, cancelled], Some(CancelReason::Interrupted), Exit::Interrupted),
            (vec![passed.clone(), fault(FaultKind::NobodyWorks)], None, Exit::Fault),
            (vec![passed, fault(FaultKind::CannotRun)], Some(CancelReason::BrokerLost), Exit::Fault),
        ];
        for (judgements, reason, exit) in table {
            assert_eq!(Exit::of(&record(&judgements, reason)), exit, "{judgements:?} {reason:?}");
        }
    }

    #[test]
    fn a_suite_without_tests_is_no_pass_unless_only_some_were_asked_for() {
        let passed = [Judgement::Outcome(Outcome::Passed)];
        let failed = [Judgement::Outcome(Outcome::Failed)];
        let table = [
            (&passed, false, Exit::NoTests),
            (&passed, true, Exit::Passed),
            (&failed, false, Exit::Failed),
            (&failed, true, Exit::Failed),
        ];
        for (judgements, filtered, exit) in table {
            let mut record = record(judgements, None);
            let suite = |name: &str| Suite { name: name.into(), adapter: "pytest".into() };
            record.suites = vec![suite("s"), suite("empty")];
            record.filtered = filtered;
            assert_eq!(Exit::of(&record), exit, "{judgements:?} {filtered}");
        }
    }
}

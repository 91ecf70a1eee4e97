//! `junit.xml`: every attempt, as Surefire and cargo-nextest write reruns.
//!
//! A flaky test is a test case that passed, with a `flakyFailure` (or `flakyError`) for each bad attempt. A failed one
//! has its first bad attempt as `failure` (or `error`) and a `rerunFailure` for each later one. What a bad attempt
//! printed is the body of its `failure`, and the `stackTrace` of the others, which Surefire's schema
//! (`surefire-test-report.xsd`) demands. `failure` is what a test said; `error` is everything else: set-up, time-out,
//! crash, and our own faults. Characters that XML can't hold are left out: every text goes through [`xml`].

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use chrono::{DateTime, FixedOffset};
use quick_junit::{
    NonSuccessKind, Property, Report, TestCase, TestCaseStatus, TestRerun, TestSuite, XmlString,
};
use regatta_model::{
    Attempt, FaultKind, Judgement, Outcome, Output, RunRecord, Suite, TeardownFailed, TestRecord, Time,
    Verdict,
};

/// Writes a run's record as JUnit.
///
/// # Errors
/// When the writer fails.
pub fn write_junit(out: &mut dyn Write, record: &RunRecord) -> io::Result<()> {
    let mut report = Report::new("regatta");
    report.set_timestamp(moment(record.started));
    report.set_time(record.updated.since(record.started));
    for suite in &record.suites {
        let mut cases: BTreeMap<&str, Vec<TestCase>> = BTreeMap::new();
        for test in record.tests.iter().filter(|test| test.test.suite == suite.name) {
            cases.entry(suite_name(suite, test)).or_default().push(test_case(test));
        }
        let failed = record.teardowns_failed.iter().filter(|failed| failed.suite == suite.name);
        let failed: Vec<TestCase> = failed.map(teardown_case).collect();
        if !failed.is_empty() || cases.is_empty() {
            cases.entry(&suite.name.0).or_default().extend(failed);
        }
        for (name, cases) in cases {
            let mut written = TestSuite::new(xml(name));
            written.set_timestamp(moment(record.started));
            written.add_property(Property::new("run", xml(record.run.as_ref().map_or("", |run| &run.0))));
            written.add_property(Property::new("suite", xml(&suite.name.0)));
            written.add_property(Property::new("adapter", xml(&suite.adapter)));
            written.add_test_cases(cases);
            report.add_test_suite(written);
        }
    }
    report.serialize(out).map_err(io::Error::other)
}

/// Whoever reads JUnit of Cargo knows cargo-nextest's: a suite for each test binary.
fn suite_name<'a>(suite: &'a Suite, test: &'a TestRecord) -> &'a str {
    match &test.unit {
        Some(unit) if suite.adapter == "cargo" => &unit.name,
        _ => &suite.name.0,
    }
}

fn test_case(test: &TestRecord) -> TestCase {
    // Its unit is the class; that needn't be said twice.
    let inside = test.unit.as_ref().and_then(|unit| test.test.name.strip_prefix(unit.name.as_str()));
    let inside = inside.and_then(|rest| rest.strip_prefix("::").or_else(|| rest.strip_prefix('$')));
    let name = xml(inside.unwrap_or(&test.test.name));
    let mut case = match test.verdict() {
        Some(Verdict::Passed | Verdict::Flaky) => {
            let mut status = TestCaseStatus::success();
            status.add_reruns(test.attempts.iter().filter(|attempt| is_bad(attempt)).map(rerun));
            TestCase::new(name, status)
        }
        Some(Verdict::Skipped) => {
            let mut status = TestCaseStatus::skipped();
            let record = test.attempts.last().and_then(|attempt| attempt.record.as_ref());
            if let Some(reason) = record.and_then(|record| record.message.as_ref().or(record.native.as_ref()))
            {
                status.set_message(xml(reason));
            }
            TestCase::new(name, status)
        }
        Some(Verdict::Failed | Verdict::Unjudged) => TestCase::new(name, bad(test)),
        None => {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
            status.set_type("not_run").set_message("the run ended before this test had a result");
            TestCase::new(name, status)
        }
    };
    case.set_classname(xml(test.unit.as_ref().map_or(&test.test.suite.0, |unit| &unit.name)));
    if let Some(attempt) = shown(test) {
        if let Some(record) = &attempt.record {
            case.set_timestamp(moment(record.started));
            case.set_time(Duration::from_micros(record.duration_us));
            // What a bad attempt printed is its body, and stands there alone.
            if !is_bad(attempt) && !record.output.text.is_empty() {
                case.set_system_out(xml(&record.output.text));
            }
        }
        if let Some(worker) = &attempt.worker {
            case.add_property(Property::new("worker", xml(&worker.0)));
        }
    }
    case
}

/// What failed after all tests has no name of its own, and a tool that counts must not miss it.
fn teardown_case(failed: &TeardownFailed) -> TestCase {
    let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
    status.set_type("teardown_failed").set_message(xml(&failed.message));
    status.set_description(xml(body(Some(&failed.output), &failed.message)));
    let mut case = TestCase::new(xml(&format!("teardown on {}", failed.worker)), status);
    case.set_classname(xml(&failed.suite.0));
    case
}

/// The attempt that the test case itself shows: the one that passed, or the first bad one.
fn shown(test: &TestRecord) -> Option<&Attempt> {
    match test.verdict()? {
        Verdict::Failed | Verdict::Unjudged => test.attempts.iter().find(|attempt| is_bad(attempt)),
        Verdict::Passed | Verdict::Flaky | Verdict::Skipped => test.attempts.last(),
    }
}

fn bad(test: &TestRecord) -> TestCaseStatus {
    let mut bad = test.attempts.iter().filter(|attempt| is_bad(attempt));
    let Some(first) = bad.next() else { return TestCaseStatus::non_success(NonSuccessKind::Error) };
    let (kind, word, message) = words(first);
    let mut status = TestCaseStatus::non_success(kind);
    status.set_type(word).set_message(xml(message));
    status.set_description(xml(body(output(first), message)));
    status.add_reruns(bad.map(rerun));
    status
}

fn rerun(attempt: &Attempt) -> TestRerun {
    let (kind, word, message) = words(attempt);
    let mut rerun = TestRerun::new(kind);
    rerun.set_type(word).set_message(xml(message));
    rerun.set_stack_trace(xml(body(output(attempt), message)));
    if let Some(record) = &attempt.record {
        rerun.set_timestamp(moment(record.started));
        rerun.set_time(Duration::from_micros(record.duration_us));
    }
    rerun
}

/// What tools show of a failure: frameworks print what went wrong among what the test prints, and nothing tells one from
/// the other for sure. So it is all of that, or the one line that there is.
fn body<'a>(output: Option<&'a Output>, message: &'a str) -> &'a str {
    output.map(|output| output.text.as_str()).filter(|text| !text.trim().is_empty()).unwrap_or(message)
}

fn output(attempt: &Attempt) -> Option<&Output> {
    attempt.record.as_ref().map(|record| &record.output)
}

/// A text of the run as one that XML can hold. The JUnit writer's own text leaves out escape sequences and control
/// characters, and lets these two through, which XML 1.0 has no `Char` for either
/// (<https://www.w3.org/TR/xml/#charsets>); the surrogates, its third gap, are in no text of ours.
fn xml(text: &str) -> XmlString {
    text.replace(['\u{fffe}', '\u{ffff}'], "").into()
}

/// The only use of this clock library: the JUnit writer takes its type. A moment beyond it is the epoch.
fn moment(time: Time) -> DateTime<FixedOffset> {
    let micros = i64::try_from(time.0).unwrap_or_default();
    DateTime::from_timestamp_micros(micros).unwrap_or_default().fixed_offset()
}

fn is_bad(attempt: &Attempt) -> bool {
    !matches!(attempt.judgement, Judgement::Outcome(Outcome::Passed | Outcome::Skipped))
}

fn words(attempt: &Attempt) -> (NonSuccessKind, &'static str, &str) {
    let said = attempt.record.as_ref().and_then(|record| record.message.as_deref()).unwrap_or_default();
    match &attempt.judgement {
        Judgement::Outcome(outcome) => match outcome {
            Outcome::Failed => (NonSuccessKind::Failure, "failed", said),
            Outcome::Errored => (NonSuccessKind::Error, "errored", said),
            Outcome::TimedOut => (NonSuccessKind::Error, "timed_out", said),
            Outcome::Crashed => (NonSuccessKind::Error, "crashed", said),
            Outcome::Passed | Outcome::Skipped => (NonSuccessKind::Failure, "", said),
        },
        Judgement::Fault(fault) => (NonSuccessKind::Error, fault_word(fault.kind), &fault.message),
    }
}

/// The word for a fault in files.
pub(crate) fn fault_word(kind: FaultKind) -> &'static str {
    match kind {
        FaultKind::NotReported => "not_reported",
        FaultKind::WorkerLost => "worker_lost",
        FaultKind::CannotRun => "cannot_run",
        FaultKind::NobodyWorks => "nobody_works",
        FaultKind::Cancelled => "cancelled",
    }
}

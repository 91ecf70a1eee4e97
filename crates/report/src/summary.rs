//! The end of a run for people: failures in full, flaky tests with all attempts, what could not be judged, the slowest,
//! and the totals. Pure.

use std::fmt::Write;
use std::time::Duration;

use regatta_model::{
    Attempt, FaultKind, Judgement, Outcome, Output, RunRecord, TeardownFailed, TestRecord, Time, Verdict,
};

use crate::progress::{cancel_words, outcome_word, title};
use crate::style::{Paint, Style};
use crate::text::{clean, name, span};

/// How many tests of one kind are listed with their output; the files have all of them.
const DETAILED_MAX: usize = 50;

/// How many lines of output are shown for each; the last ones.
const OUTPUT_LINES_MAX: usize = 200;

/// How many slow tests are listed, and from which duration a test is worth it.
const SLOWEST_MAX: usize = 5;
const SLOW_FROM: Duration = Duration::from_millis(100);

/// How a summary is written.
#[derive(Debug, Clone)]
pub struct SummaryOptions {
    /// Colours.
    pub style: Style,
    /// Where the run's files are, for people.
    pub folder: String,
}

/// A summary, as text.
#[derive(Debug)]
pub struct Summary<'a> {
    record: &'a RunRecord,
    options: &'a SummaryOptions,
    out: String,
}

/// A moment as RFC 3339, in UTC.
pub(crate) fn exact_time(time: Time) -> String {
    let moment = i64::try_from(time.0).ok().and_then(|us| jiff::Timestamp::from_microsecond(us).ok());
    moment.unwrap_or_default().to_string()
}

impl<'a> Summary<'a> {
    /// Writes it.
    #[must_use]
    pub fn render(record: &'a RunRecord, options: &'a SummaryOptions) -> String {
        let mut summary = Self { record, options, out: String::new() };
        summary.failures();
        summary.flaky();
        summary.unjudged();
        summary.slowest();
        summary.incidents();
        summary.totals();
        summary.out
    }

    fn paint(&self, paint: Paint, text: &str) -> String {
        self.options.style.paint(paint, text)
    }

    fn line(&mut self, text: &str) {
        self.out.push_str(text);
        self.out.push('\n');
    }

    fn heading(&mut self, text: &str) {
        let text = self.paint(Paint::Strong, text);
        self.out.push('\n');
        self.line(&text);
    }

    fn of(&self, verdict: Verdict) -> Vec<&'a TestRecord> {
        self.record.tests.iter().filter(|test| test.verdict() == Some(verdict)).collect()
    }

    fn more(&mut self, shown: usize, all: usize) {
        if all > shown {
            self.line(&format!("… and {} more, all of them in run.json", all - shown));
        }
    }

    fn failures(&mut self) {
        let failed = self.of(Verdict::Failed);
        if failed.is_empty() && self.record.teardowns_failed.is_empty() {
            return;
        }
        self.heading("Failures");
        for failed in &self.record.teardowns_failed {
            self.teardown(failed);
        }
        for test in failed.iter().take(DETAILED_MAX) {
            for attempt in &test.attempts {
                self.attempt(test, attempt);
            }
        }
        self.more(DETAILED_MAX, failed.len());
    }

    /// What no test can be blamed for.
    fn teardown(&mut self, failed: &TeardownFailed) {
        let head = self.paint(Paint::Bad, &format!("{:>10}", "TEARDOWN"));
        self.line(&format!("{head} what tests of {} shared, on {}", failed.suite, failed.worker));
        self.message(&failed.message);
        self.output(&failed.output);
    }

    fn flaky(&mut self) {
        let flaky = self.of(Verdict::Flaky);
        if flaky.is_empty() {
            return;
        }
        self.heading("Flaky: passed after failing");
        for test in flaky.iter().take(DETAILED_MAX) {
            for attempt in &test.attempts {
                self.attempt(test, attempt);
            }
            self.where_it_failed(test);
        }
        self.more(DETAILED_MAX, flaky.len());
    }

    /// Whether the test or a worker is the likelier culprit.
    fn where_it_failed(&mut self, test: &TestRecord) {
        let workers = |good: bool| {
            let outcome = move |attempt: &&Attempt| match attempt.judgement {
                Judgement::Outcome(outcome) => outcome.is_good() == good,
                Judgement::Fault(_) => false,
            };
            test.attempts
                .iter()
                .filter(outcome)
                .filter_map(|attempt| attempt.worker.as_ref())
                .collect::<Vec<_>>()
        };
        let (bad, good) = (workers(false), workers(true));
        if let (Some(bad), Some(good)) = (bad.first(), good.first())
            && bad != good
        {
            self.line(&format!("    it failed on {bad} and passed on {good}: look at the worker too"));
        }
    }

    fn attempt(&mut self, test: &TestRecord, attempt: &Attempt) {
        let many = if test.attempts.len() > 1 {
            format!(" (attempt {} of {})", attempt.number, test.attempts.len())
        } else {
            String::new()
        };
        let place = attempt.worker.as_ref().map(|worker| format!(" on {worker}")).unwrap_or_default();
        match (&attempt.judgement, &attempt.record) {
            (Judgement::Outcome(outcome), Some(record)) => {
                let (word, paint) = outcome_word(*outcome);
                let head = self.paint(paint, &format!("{word:>10}"));
                let took = span(Duration::from_micros(record.duration_us));
                self.line(&format!("{head} [{took:>8}] {}{many}{place}", title(&test.test)));
                if *outcome != Outcome::Passed {
                    self.message(record.message.as_deref().unwrap_or_default());
                }
                if !outcome.is_good() {
                    self.output(&record.output);
                }
            }
            (Judgement::Fault(fault), _) => {
                let head = self.paint(Paint::Fault, &format!("{:>10}", "FAULT"));
                self.line(&format!("{head} [   -    ] {}{many}{place}", title(&test.test)));
                self.message(&fault.message);
            }
            (Judgement::Outcome(_), None) => {}
        }
    }

    fn message(&mut self, message: &str) {
        for line in clean(message, self.options.style.color).lines() {
            self.line(&format!("    {line}"));
        }
    }

    fn output(&mut self, output: &Output) {
        let text = clean(&output.text, self.options.style.color);
        let lines: Vec<&str> = text.trim_end().lines().collect();
        let left_out = lines.len().saturating_sub(OUTPUT_LINES_MAX);
        if left_out > 0 {
            // Where something was cut, the text says so at that place, which may be among the lines before.
            let kept = match output.bytes_omitted {
                0 => "all of them in run.json".to_owned(),
                omitted => format!("in run.json but for {omitted} bytes that were too many to keep"),
            };
            self.line(&format!("    | … {left_out} lines before, {kept}"));
        }
        for line in &lines[left_out..] {
            self.line(format!("    | {line}").trim_end());
        }
    }

    fn unjudged(&mut self) {
        let faults: Vec<_> = self.of(Verdict::Unjudged);
        let never_run = |test: &&&TestRecord| {
            test.attempts.iter().all(|attempt| {
                matches!(&attempt.judgement, Judgement::Fault(fault) if fault.kind == FaultKind::Cancelled)
            })
        };
        let cancelled = faults.iter().filter(never_run).count();
        let pending = self.record.tests.iter().filter(|test| test.verdict().is_none()).count();
        let judged_not = faults.len() - cancelled;
        if judged_not > 0 || !self.record.listing_faults.is_empty() {
            self.heading("Not judged: this is no verdict about the tests");
            for fault in &self.record.listing_faults {
                let head = self.paint(Paint::Fault, &format!("{:>10}", "FAULT"));
                let text = clean(&fault.message, false);
                let mut lines = text.lines();
                self.line(&format!("{head} {}", lines.next().unwrap_or_default()));
                lines.for_each(|line| self.line(&format!("    | {line}")));
            }
            for test in faults.iter().filter(|test| !never_run(test)).take(DETAILED_MAX) {
                self.fault(test);
            }
            self.more(DETAILED_MAX, judged_not);
        }
        if cancelled + pending > 0 {
            self.out.push('\n');
            let open = cancelled + pending;
            let tests = if open == 1 { "1 test was" } else { &format!("{open} tests were") };
            self.line(&format!("{tests} not run to their end."));
        }
        for unit in &self.record.units_open {
            self.line(&format!("{} {} was not collected.", unit.suite, name(&unit.name)));
        }
    }

    fn fault(&mut self, test: &TestRecord) {
        for attempt in &test.attempts {
            let Judgement::Fault(fault) = &attempt.judgement else { continue };
            let word = crate::junit::fault_word(fault.kind).replace('_', " ").to_uppercase();
            let head = self.paint(Paint::Fault, &format!("{word:>10}"));
            let place = attempt.worker.as_ref().map(|worker| format!(" on {worker}")).unwrap_or_default();
            self.line(&format!("{head} {}{place}", title(&test.test)));
            self.message(&fault.message);
        }
    }

    fn slowest(&mut self) {
        let took = |test: &TestRecord| {
            let all = test.attempts.iter().filter_map(|attempt| attempt.record.as_ref());
            Duration::from_micros(all.map(|record| record.duration_us).max().unwrap_or_default())
        };
        let mut slow: Vec<_> = self.record.tests.iter().map(|test| (took(test), test)).collect();
        slow.retain(|(took, _)| *took >= SLOW_FROM);
        slow.sort_by_key(|(took, _)| std::cmp::Reverse(*took));
        if slow.is_empty() {
            return;
        }
        self.heading("Slowest");
        for (took, test) in slow.iter().take(SLOWEST_MAX) {
            self.line(&format!("{:>10} {}", span(*took), title(&test.test)));
        }
    }

    fn incidents(&mut self) {
        let (lost, faulted) = (&self.record.losses, &self.record.batches_faulted);
        if lost.is_empty() && faulted.is_empty() && self.record.late.is_empty() {
            return;
        }
        self.heading("Incidents");
        for (word, reasons) in [("worker lost", lost), ("batch not run", faulted)] {
            // A worker holds several batches, and a broken one breaks each alike.
            for (reason, times) in counted(reasons) {
                let times = if times > 1 { format!(" ({times} batches)") } else { String::new() };
                self.line(&format!("    {word}: {}{times}", clean(reason, false)));
            }
        }
        let late = self.record.late.len();
        for (test, worker) in self.record.late.iter().take(DETAILED_MAX) {
            let test = title(test);
            self.line(&format!("    late result, which changed nothing: {test} on {worker}"));
        }
        self.more(DETAILED_MAX, late);
    }

    fn totals(&mut self) {
        let totals = self.record.totals();
        let took = span(self.record.updated.since(self.record.started));
        self.out.push('\n');
        let bad = totals.failed > 0 || !self.record.teardowns_failed.is_empty();
        let fault = totals.unjudged + totals.pending > 0 || !self.record.listing_faults.is_empty();
        let empty = !self.record.filtered && self.record.suites_empty().next().is_some();
        let (paint, word) = match (bad, fault) {
            _ if totals.tests == 0 && !fault => (Paint::Odd, "No tests"),
            (false, false) if empty => (Paint::Odd, "Incomplete"),
            (true, _) => (Paint::Bad, "Failed"),
            (false, true) => (Paint::Fault, "Not all judged"),
            (false, false) => (Paint::Good, "Passed"),
        };
        let tests = if totals.tests == 1 { "test" } else { "tests" };
        let mut text = format!("{}: {} {tests} in {took}", self.paint(paint, word), totals.tests);
        let parts = [
            (totals.passed, "passed"),
            (totals.flaky, "flaky"),
            (totals.failed, "failed"),
            (totals.skipped, "skipped"),
            (totals.unjudged, "not judged"),
            (totals.pending, "pending"),
        ];
        let parts = parts.iter().filter(|(count, _)| *count > 0);
        let parts: Vec<String> = parts.map(|(count, word)| format!("{count} {word}")).collect();
        if !parts.is_empty() {
            let _ = write!(text, ": {}", parts.join(", "));
        }
        self.line(&text);
        // A filter may leave a suite none, and of one that could not be listed nobody knows.
        if totals.tests > 0 && empty && self.record.listing_faults.is_empty() {
            for suite in self.record.suites_empty() {
                self.line(&self.paint(Paint::Odd, &format!("Suite {suite} has no tests.")));
            }
        }
        if let Some(reason) = self.record.cancelled {
            self.line(&format!("Stopped early: {}.", cancel_words(reason)));
        }
        if totals.failed + totals.unjudged > 0 {
            self.line("Run only these again: regatta run --failed");
        }
        let folder = format!("Record: {}", self.options.folder);
        let folder = self.paint(Paint::Dim, &folder);
        self.line(&folder);
    }
}

/// Each reason once, in the order of their first time, and how often it was given.
fn counted(reasons: &[String]) -> Vec<(&str, usize)> {
    let mut counted: Vec<(&str, usize)> = Vec::new();
    for reason in reasons {
        match counted.iter_mut().find(|(known, _)| known == reason) {
            Some((_, times)) => *times += 1,
            None => counted.push((reason, 1)),
        }
    }
    counted
}

//! A run in progress: what is said for good as facts come in, and what a live view shows at a moment. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use regatta_model::{
    CancelReason, Fault, FaultKind, Outcome, Record, RunEvent, Stamped, TestId, Time, WorkerName,
};

use crate::style::{Paint, Style};
use crate::text::{clean, name, span};

/// How many running tests a live view names.
const RUNNING_LINES_MAX: usize = 8;

/// How wide the bar is, in characters.
const BAR_WIDTH: usize = 24;

/// Which tests get a line of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verbosity {
    /// Those that are not as they should be.
    Notable,
    /// All.
    Every,
}

/// The last word on a test so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Last {
    Listed,
    Passed { flaky: bool },
    Bad,
    Skipped,
    Fault,
}

/// The state of a run as its facts tell it.
#[derive(Debug)]
pub struct Progress {
    style: Style,
    verbosity: Verbosity,
    expected_us: HashMap<TestId, u64>,
    tests: HashMap<TestId, Last>,
    counts: Counts,
    running: BTreeMap<(Time, TestId), (WorkerName, u32)>,
    units_open: usize,
    listing: usize,
    /// What the tests without a result are expected to take, as far as anybody knows.
    left_us: u64,
    started: Time,
    last_plain: Time,
    /// Why batches were not run, as far as it was said.
    told: HashSet<String>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    done: usize,
    passed: usize,
    flaky: usize,
    bad: usize,
    skipped: usize,
    faults: usize,
}

impl Progress {
    /// A run that has not begun. `expected_us` is what earlier runs say of the tests' durations.
    #[must_use]
    pub fn new(style: Style, verbosity: Verbosity, expected_us: HashMap<TestId, u64>) -> Self {
        Self {
            style,
            verbosity,
            expected_us,
            tests: HashMap::new(),
            counts: Counts::default(),
            running: BTreeMap::new(),
            units_open: 0,
            listing: 0,
            left_us: 0,
            started: Time::default(),
            last_plain: Time::default(),
            told: HashSet::new(),
        }
    }

    /// Takes in the next fact, and answers the lines that it is worth.
    pub fn on(&mut self, fact: &Stamped) -> Vec<String> {
        match &fact.event {
            RunEvent::RunStarted { run, broker, suites, .. } => {
                (self.started, self.last_plain, self.listing) = (fact.at, fact.at, suites.len());
                let suites: Vec<&str> = suites.iter().map(|suite| suite.name.0.as_str()).collect();
                let head = self.style.paint(Paint::Strong, &format!("Run {run}"));
                vec![format!("{head}: {} on {broker}", suites.join(", "))]
            }
            RunEvent::Listed { tests, units } => {
                self.units_open += units.len();
                tests.iter().for_each(|listed| self.list(&listed.test));
                Vec::new()
            }
            RunEvent::ListingEnded { suite, fault } => {
                self.listing = self.listing.saturating_sub(1);
                fault.iter().map(|fault| self.fault_line("FAULT", &suite.0, fault)).collect()
            }
            RunEvent::UnitCollected { unit, tests, .. } => {
                self.units_open = self.units_open.saturating_sub(1);
                for name in tests {
                    self.list(&TestId { suite: unit.suite.clone(), name: name.clone() });
                }
                Vec::new()
            }
            RunEvent::UnitChanged { unit, tests } => {
                let there: HashSet<&str> = tests.iter().map(String::as_str).collect();
                let inside = format!("{}::", unit.name);
                let gone = |test: &TestId| {
                    test.suite == unit.suite
                        && test.name.starts_with(&inside)
                        && !there.contains(test.name.as_str())
                };
                let is_open = |last: &Last| *last == Last::Listed;
                self.tests.retain(|test, last| !is_open(last) || !gone(test));
                for name in tests {
                    self.list(&TestId { suite: unit.suite.clone(), name: name.clone() });
                }
                Vec::new()
            }
            RunEvent::AttemptStarted { test, attempt, worker } => {
                self.running.insert((fact.at, test.clone()), (worker.clone(), *attempt));
                Vec::new()
            }
            RunEvent::AttemptFinished { test, attempt, record, worker, .. } => {
                self.stop(test);
                self.finished(test, *attempt, record, worker)
            }
            RunEvent::AttemptFaulted { test, fault, .. } => {
                self.stop(test);
                self.set(test, Last::Fault);
                if fault.kind == FaultKind::Cancelled {
                    // Whoever stopped the run knows; the summary counts them.
                    return Vec::new();
                }
                vec![self.fault_line("FAULT", &title(test), fault)]
            }
            other => self.notice(other),
        }
    }

    /// Facts that are about workers, the broker and the run as a whole.
    fn notice(&mut self, event: &RunEvent) -> Vec<String> {
        let style = self.style;
        let odd = |text: String| vec![format!("{} {text}", style.paint(Paint::Odd, "      NOTE"))];
        match event {
            RunEvent::RetryScheduled { test, attempt, delay_ms } => {
                let delay = span(Duration::from_millis(*delay_ms));
                let test = title(test);
                odd(format!("{test} will be tried again in {delay} (attempt {attempt})"))
            }
            RunEvent::LateResult { test, worker, .. } => {
                let test = title(test);
                odd(format!("a result of {test} from {worker} came too late and changes nothing"))
            }
            RunEvent::WorkerLost { worker, tests, reason, .. } => {
                let worker = worker.as_ref().map_or("a worker", |worker| worker.0.as_str());
                odd(format!("{worker} was lost ({reason}); {}", go_on(*tests)))
            }
            RunEvent::BatchFaulted { tests, reason, .. } => {
                // A broken worker breaks each batch alike, and the summary counts them.
                if !self.told.insert(reason.clone()) {
                    return Vec::new();
                }
                odd(format!("a batch was not run ({}); {}", clean(reason, false), go_on(*tests)))
            }
            RunEvent::BrokerLost { reason } => odd(format!("the broker is lost ({reason}); waiting for it")),
            RunEvent::BrokerBack => odd("the broker is back".to_owned()),
            RunEvent::NobodyWorks { queue, for_ms } => odd(format!(
                "nobody works on queue {queue} for {}; start a worker: regatta worker -Q {queue} --broker URL",
                span(Duration::from_millis(*for_ms))
            )),
            RunEvent::SomebodyWorks { queue } => odd(format!("somebody works on queue {queue} now")),
            RunEvent::TeardownFailed(failed) => odd(format!(
                "{} did not end in good order on {}: {}",
                failed.suite,
                failed.worker,
                clean(&failed.message, false)
            )),
            RunEvent::Cancelled { reason } => {
                let mut lines = odd(format!("no more tests are handed out: {}", cancel_words(*reason)));
                if *reason == CancelReason::Interrupted && !self.running.is_empty() {
                    lines.extend(odd("these run to their end; Ctrl-C again ends them at once:".to_owned()));
                    let running = self.running.keys().take(RUNNING_LINES_MAX);
                    lines.extend(running.map(|(_, test)| format!("           {}", title(test))));
                }
                lines
            }
            _ => Vec::new(),
        }
    }

    fn finished(&mut self, test: &TestId, attempt: u32, record: &Record, worker: &WorkerName) -> Vec<String> {
        let again = attempt > 1;
        let flaky = again && record.outcome == Outcome::Passed;
        self.set(
            test,
            match record.outcome {
                Outcome::Passed => Last::Passed { flaky },
                Outcome::Skipped if again => Last::Bad,
                Outcome::Skipped => Last::Skipped,
                Outcome::Failed | Outcome::Errored | Outcome::TimedOut | Outcome::Crashed => Last::Bad,
            },
        );
        if record.outcome.is_good() && !again && self.verbosity == Verbosity::Notable {
            return Vec::new();
        }
        let (word, paint) = if flaky { ("FLAKY", Paint::Odd) } else { outcome_word(record.outcome) };
        let head = self.style.paint(paint, &format!("{word:>10}"));
        let took = span(Duration::from_micros(record.duration_us));
        let more = if again { format!(" (attempt {attempt})") } else { String::new() };
        let place = self.style.paint(Paint::Dim, &format!("on {worker}"));
        let test = title(test);
        vec![format!("{head} [{took:>8}] {test}{more} {place}")]
    }

    fn fault_line(&self, word: &str, subject: &str, fault: &Fault) -> String {
        let head = self.style.paint(Paint::Fault, &format!("{word:>10}"));
        let message = clean(fault.message.lines().next().unwrap_or_default(), false);
        format!("{head} [   -    ] {subject}: {message}")
    }

    fn list(&mut self, test: &TestId) {
        if !self.tests.contains_key(test) {
            self.tests.insert(test.clone(), Last::Listed);
            self.left_us += self.expected_us.get(test).copied().unwrap_or_default();
        }
    }

    fn stop(&mut self, test: &TestId) {
        self.running.retain(|(_, running), _| running != test);
    }

    fn set(&mut self, test: &TestId, last: Last) {
        let before = self.tests.insert(test.clone(), last).unwrap_or(Last::Listed);
        let expected = self.expected_us.get(test).copied().unwrap_or_default();
        if before == Last::Listed {
            self.counts.done += 1;
            self.left_us = self.left_us.saturating_sub(expected);
        } else {
            *self.count(before) -= 1;
        }
        *self.count(last) += 1;
    }

    fn count(&mut self, last: Last) -> &mut usize {
        match last {
            // Only what has a result is counted; listed tests are the rest.
            Last::Listed => &mut self.counts.done,
            Last::Passed { flaky: false } => &mut self.counts.passed,
            Last::Passed { flaky: true } => &mut self.counts.flaky,
            Last::Bad => &mut self.counts.bad,
            Last::Skipped => &mut self.counts.skipped,
            Last::Fault => &mut self.counts.faults,
        }
    }

    /// The line that a pipe gets now and then; none when the last one is younger than `every`.
    pub fn plain_line(&mut self, now: Time, every: Duration) -> Option<String> {
        if self.started == Time::default() || now.since(self.last_plain) < every {
            return None;
        }
        self.last_plain = now;
        let (took, counts) = (span(now.since(self.started)), self.counts_text());
        Some(format!("{:>10} {took} {}{counts}", "...", self.done_text()))
    }

    /// What a live view shows at this moment: a bar, and the tests that run longest.
    #[must_use]
    pub fn draw(&self, now: Time) -> Vec<String> {
        if self.started == Time::default() {
            return Vec::new();
        }
        let total = self.tests.len().max(1);
        let filled = (self.counts.done * BAR_WIDTH / total).min(BAR_WIDTH);
        let bar = format!("{}{}", "█".repeat(filled), "░".repeat(BAR_WIDTH - filled));
        let took = span(now.since(self.started));
        let eta = self.eta(now).map(|eta| format!(", about {} left", span(eta))).unwrap_or_default();
        let mut lines = vec![format!("{bar} {}{}  {took}{eta}", self.done_text(), self.counts_text())];
        for ((since, test), (worker, attempt)) in self.running.iter().take(RUNNING_LINES_MAX) {
            let more = if *attempt > 1 { format!(" (attempt {attempt})") } else { String::new() };
            let place = self.style.paint(Paint::Dim, &worker.0);
            let test = title(test);
            lines.push(format!("  {:>8}  {test}{more}  {place}", span(now.since(*since))));
        }
        let hidden = self.running.len().saturating_sub(RUNNING_LINES_MAX);
        if hidden > 0 {
            lines.push(format!("            and {hidden} more"));
        }
        lines
    }

    /// What is left by expectation, over the slots that are busy now.
    fn eta(&self, now: Time) -> Option<Duration> {
        let slots = u64::try_from(self.running.len()).ok().filter(|&slots| slots > 0)?;
        if self.listing > 0 || self.units_open > 0 || self.left_us == 0 {
            return None;
        }
        let spent: u64 = self
            .running
            .keys()
            .map(|(since, test)| {
                let ran = u64::try_from(now.since(*since).as_micros()).unwrap_or(u64::MAX);
                ran.min(self.expected_us.get(test).copied().unwrap_or_default())
            })
            .sum();
        Some(Duration::from_micros(self.left_us.saturating_sub(spent) / slots))
    }

    fn done_text(&self) -> String {
        let open = match self.units_open {
            0 if self.listing == 0 => String::new(),
            0 => "+".to_owned(),
            units => format!(" and {units} files to collect"),
        };
        format!("{} of {} tests{open}", self.counts.done, self.tests.len())
    }

    fn counts_text(&self) -> String {
        let counts = [
            (self.counts.bad, "failed", Paint::Bad),
            (self.counts.faults, "not judged", Paint::Fault),
            (self.counts.flaky, "flaky", Paint::Odd),
            (self.counts.skipped, "skipped", Paint::Dim),
        ];
        let shown = counts.into_iter().filter(|(count, ..)| *count > 0);
        shown.map(|(count, word, paint)| self.style.paint(paint, &format!(", {count} {word}"))).collect()
    }
}

/// A test as a line names it.
pub(crate) fn title(test: &TestId) -> String {
    name(&test.to_string()).into_owned()
}

/// The word for an outcome, and its colour.
pub(crate) fn outcome_word(outcome: Outcome) -> (&'static str, Paint) {
    match outcome {
        Outcome::Passed => ("PASS", Paint::Good),
        Outcome::Failed => ("FAIL", Paint::Bad),
        Outcome::Errored => ("ERROR", Paint::Bad),
        Outcome::Skipped => ("SKIP", Paint::Dim),
        Outcome::TimedOut => ("TIMEOUT", Paint::Bad),
        Outcome::Crashed => ("CRASH", Paint::Bad),
    }
}

/// Why a run stopped handing out, in words.
pub(crate) fn cancel_words(reason: CancelReason) -> &'static str {
    match reason {
        CancelReason::FailFast => "a test failed, and the run was to stop then",
        CancelReason::Interrupted => "it was interrupted",
        CancelReason::BrokerLost => "the broker was out of reach for too long",
    }
}

fn go_on(tests: usize) -> String {
    if tests == 1 { "1 test is tried again".to_owned() } else { format!("{tests} tests are tried again") }
}

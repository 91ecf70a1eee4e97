//! What one attempt came to: an outcome of the test, or a fault of ours; and the verdict that attempts fold into.

use serde::{Deserialize, Serialize};

use crate::{BatchId, Lease, Time, Token, WorkerName};

/// What the *test* did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// A positive record of this very test came back, and its process ended as its framework ends.
    Passed,
    /// The framework says that it failed.
    Failed,
    /// It could not be set up or torn down, or its file could not be collected.
    Errored,
    /// The framework says that it was not to run, or failed as expected (`native` tells which).
    Skipped,
    /// It ran longer than its limit, and its process tree was killed.
    TimedOut,
    /// Its process ended without the framework's clean end: a signal, an early exit, no summary.
    Crashed,
}

impl Outcome {
    /// Whether nothing is wrong with the test.
    #[must_use]
    pub fn is_good(self) -> bool {
        matches!(self, Self::Passed | Self::Skipped)
    }
}

/// Why *we* could not judge a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// It was asked for, its batch came back, and no record names it.
    NotReported,
    /// The worker that held it stopped beating, or its delivery came back, more often than allowed.
    WorkerLost,
    /// The worker could not start what runs it (program or image missing, tree differs, disk full).
    CannotRun,
    /// Nobody worked on its queue until the run gave that queue up.
    NobodyWorks,
    /// The run was cancelled before it had a result.
    Cancelled,
}

/// A fault and its explanation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Which kind it is.
    pub kind: FaultKind,
    /// What happened, to what, and what to do next: one or two sentences.
    pub message: String,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Judgement {
    /// The test did something.
    Outcome(Outcome),
    /// We could not tell.
    Fault(Fault),
}

/// Captured output, cut in the middle when it is over its limit.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Output {
    /// The text; bytes that are not UTF-8 are replaced.
    pub text: String,
    /// How many bytes were left out where the text says so; 0 when it is whole.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub bytes_omitted: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// One phase of a test, such as pytest's setup, call and teardown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    /// The framework's word for it.
    pub name: String,
    /// How long it took, in microseconds.
    pub duration_us: u64,
}

/// What a worker reports about one attempt of one test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// What the test did.
    pub outcome: Outcome,
    /// The framework's own word where it says more than `outcome`: `xfailed`, `xpassed`, `ignored`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub native: Option<String>,
    /// The reason in a line: the assertion, the skip's reason, the signal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Everything worth reading: traceback, captured output.
    #[serde(default)]
    pub output: Output,
    /// Phases in order; empty when the framework has none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub phases: Vec<Phase>,
    /// When it began, by the worker's clock.
    pub started: Time,
    /// How long it took, in microseconds.
    pub duration_us: u64,
    /// How much of that went into setting up what other tests share (fixtures of a class, a module or a package), in
    /// microseconds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub shared_us: u64,
}

impl Record {
    /// A record with an outcome and times, and nothing else.
    #[must_use]
    pub fn new(outcome: Outcome, started: Time, duration_us: u64) -> Self {
        Self {
            outcome,
            native: None,
            message: None,
            output: Output::default(),
            phases: Vec::new(),
            started,
            duration_us,
            shared_us: 0,
        }
    }
}

/// One try of a test case in a run, as the run's record keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// 1 for the first.
    pub number: u32,
    /// Its token.
    pub token: Token,
    /// The batch that asked for it, and the lease of that batch.
    pub batch: BatchId,
    /// The lease under which it was reported.
    pub lease: Lease,
    /// Who ran it; none when nobody did.
    pub worker: Option<WorkerName>,
    /// How it ended.
    pub judgement: Judgement,
    /// What the worker said of it; none for a fault.
    pub record: Option<Record>,
}

/// What all attempts of a test come to. Derived, never stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It passed at the first attempt.
    Passed,
    /// It passed after it had failed.
    Flaky,
    /// Its last attempt failed, errored, timed out or crashed; or was skipped after one that did, which proves nothing.
    Failed,
    /// It was not to run.
    Skipped,
    /// No attempt has an outcome: a fault.
    Unjudged,
}

impl Verdict {
    /// Folds attempts, in order. None while there is no attempt.
    #[must_use]
    pub fn of(attempts: &[Attempt]) -> Option<Self> {
        let mut outcomes = attempts.iter().filter_map(|attempt| match attempt.judgement {
            Judgement::Outcome(outcome) => Some(outcome),
            Judgement::Fault(_) => None,
        });
        let Some(first) = outcomes.next() else {
            return (!attempts.is_empty()).then_some(Self::Unjudged);
        };
        let (last, failed_before) =
            outcomes.fold((first, false), |(last, failed), next| (next, failed || !last.is_good()));
        Some(match last {
            Outcome::Passed if failed_before => Self::Flaky,
            Outcome::Passed => Self::Passed,
            Outcome::Skipped if failed_before => Self::Failed,
            Outcome::Skipped => Self::Skipped,
            Outcome::Failed | Outcome::Errored | Outcome::TimedOut | Outcome::Crashed => Self::Failed,
        })
    }
}

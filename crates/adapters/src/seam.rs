//! The seam that every framework fills: listing as a sequence of invocations, and running either by one process per
//! test or by a warm process per slot.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use regatta_model::{Digest, Item, Listed, Record, Time, Unit, Units};

/// A command to run, described but not executed. The caller adds its own fence, limits and environment policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    /// The program: a path, or a name to be found on `PATH`.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Where it runs.
    pub cwd: PathBuf,
    /// Variables to set over the worker's base environment.
    pub env: Vec<(String, String)>,
    /// Variables to set where the inherited environment has none of the name, and `env` neither.
    pub env_defaults: Vec<(String, String)>,
    /// What to write to its standard input; then it is closed.
    pub stdin: Vec<u8>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By a signal that nobody of ours sent.
    Signal(i32),
    /// We killed it since its time was over.
    TimedOut {
        /// How long it might have taken; how long it took is more, and is told beside it.
        limit: Duration,
    },
    /// We killed it since its batch was cancelled.
    Cancelled,
}

/// What came back from an [`Invocation`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// How it ended.
    pub exit: Exit,
    /// Captured standard output, cut at the sandbox's limit.
    pub stdout: Vec<u8>,
    /// Captured standard error, cut at the sandbox's limit.
    pub stderr: Vec<u8>,
    /// Bytes of both that were left out.
    pub bytes_omitted: u64,
    /// When it began.
    pub started: Time,
    /// How long it took.
    pub duration: Duration,
    /// Processes that it left behind and that were killed.
    pub leaked: usize,
}

/// What went wrong in an adapter. Each message says to what, and what to do next.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// The project's own build or listing failed. The text is the tool's own output.
    #[error("{what} failed:\n{output}")]
    ListingFailed {
        /// The command, for people.
        what: String,
        /// Its output.
        output: String,
    },
    /// A program is not installed.
    #[error("{program} is not there: {hint}")]
    Missing {
        /// The program.
        program: String,
        /// What to install.
        hint: String,
    },
    /// A file can't be read or understood.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The tree on this machine is not the one that was prepared.
    #[error("{0}")]
    NotPrepared(String),
}

/// What a listing wants or has next.
#[derive(Debug)]
pub enum ListingStep {
    /// Run this, and give the end to [`Listing::ended`]. Several may be asked for before the first ends.
    Run(Invocation),
    /// These tests and units are there. More may follow.
    Found {
        /// Tests known by name.
        tests: Vec<Listed>,
        /// Units whose tests are found while they run.
        units: Vec<Unit>,
    },
    /// That is all. `prepared` is the digest of a manifest that was written into the tree for workers, if any.
    Done {
        /// The manifest's digest.
        prepared: Option<Digest>,
    },
}

/// A listing in progress: a state machine that is fed with ended processes.
pub trait Listing: Send {
    /// What to do next.
    ///
    /// # Errors
    /// When the suite can't be listed at all; the message is for the user.
    fn next(&mut self) -> Result<ListingStep, AdapterError>;

    /// Takes the end of the invocation that was asked for last.
    ///
    /// # Errors
    /// When it failed in a way that leaves nothing to list.
    fn ended(&mut self, ended: &Ended) -> Result<(), AdapterError>;
}

/// What came of [`Adapter::conclusion`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conclusion {
    /// A report, for people.
    pub text: String,
    /// Why the run fails, though its tests may not have; in one line.
    pub failed: Option<String>,
}

/// One suite's adapter, ready for one tree. Made for what was recognised, or from the configuration.
pub trait Adapter: Send + Sync {
    /// The suite that it lists.
    fn suite(&self) -> regatta_model::Suite;

    /// Begins to list (building first where tests are built).
    fn list(&self) -> Box<dyn Listing>;

    /// The digest of what a unit's list of tests depends on (its file), so that the list can be remembered.
    fn unit_digest(&self, unit: &Unit) -> Option<Digest>;

    /// What to run to name the tests of units without running them; none where there is no such way.
    fn naming(&self, units: &[Unit]) -> Option<Invocation> {
        let _ = units;
        None
    }

    /// The tests of those units that could be named, when [`Adapter::naming`] ended so; none when it can't be told, and
    /// fewer units should be tried at once.
    fn names(&self, units: &[Unit], ended: &Ended) -> Option<HashMap<Unit, Vec<String>>> {
        let _ = (units, ended);
        None
    }

    /// How firmly tests of a unit stay together, unless the configuration says otherwise.
    fn units(&self) -> Units {
        Units::Free
    }

    /// Whether the runner needs nothing of the listing, and a worker may start it before there is a test for it.
    fn starts_ahead(&self) -> bool {
        false
    }

    /// What to run once the tests of a run that began at `begun` have all run here, to make one of what its processes left.
    /// To be asked when the suite is listed.
    fn conclusion(&self, begun: Time) -> Option<Invocation> {
        let _ = begun;
        None
    }

    /// What came of [`Adapter::conclusion`].
    fn concluded(&self, ended: &Ended) -> Conclusion {
        let _ = ended;
        Conclusion::default()
    }

    /// What the user is to know at the end of a run. To be asked when the suite is listed.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }

    /// How this slot runs the suite's tests. `prepared` is what the dispatcher's listing ended with.
    ///
    /// # Errors
    /// When the tree here isn't the prepared one, or a program is missing.
    fn runner(&self, place: Place<'_>, prepared: Option<&Digest>) -> Result<Runner, AdapterError>;
}

/// Where tests run.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The worker's tree.
    pub tree: &'a Path,
    /// The number of its slot, from 0. Of the tests that a worker runs at a time, no two have the same.
    pub slot: usize,
    /// How many slots it has.
    pub slots: usize,
}

/// How tests run.
pub enum Runner {
    /// Each test in a process of its own.
    Each(Box<dyn TestProcess>),
    /// Many tests in one warm process per slot, over a record channel.
    Warm(Box<dyn WarmSession>),
}

/// A runner with one process per test.
pub trait TestProcess: Send {
    /// What to run for one test.
    ///
    /// # Errors
    /// When no such test is known here.
    fn invocation(&self, test: &str) -> Result<Invocation, AdapterError>;

    /// The record of a test that needs no process, such as one that its framework was told to ignore. Ask before
    /// [`TestProcess::invocation`]; whoever doesn't ask gets the same outcome from a process.
    fn known(&self, test: &str, now: Time) -> Option<Record> {
        let _ = (test, now);
        None
    }

    /// What the test did, by all that came back.
    fn judge(&self, test: &str, ended: &Ended) -> Record;
}

/// A runner with a warm process. The caller starts [`WarmSession::invocation`] with two pipes: requests, one line each,
/// on the descriptor that `REGATTA_REQUEST_FD` names, and records, one line each, on `REGATTA_RECORD_FD`. One request is
/// outstanding at a time. When requests end, the process takes down what tests shared, says [`WarmFact::TornDown`], and
/// ends with exit status 0 when its session ended well, whatever its tests did.
pub trait WarmSession: Send {
    /// What to start.
    fn invocation(&self) -> Invocation;

    /// The line that asks for items (without the newline). The process answers with records that end in
    /// [`WarmFact::RequestDone`].
    fn request(&self, items: &[Item]) -> Vec<u8>;

    /// Reads one record line.
    ///
    /// # Errors
    /// When the line isn't a record: the process must then be ended and what was asked counts as crashed.
    fn record(&mut self, line: &[u8]) -> Result<Vec<WarmFact>, AdapterError>;

    /// The record of a test that was running when the process ended, was killed for time, or sent nonsense.
    fn crashed(&self, test: &str, ended: &Ended) -> Record;
}

/// What a warm process reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WarmFact {
    /// It can take requests.
    Ready,
    /// A unit was collected and has these tests.
    Collected {
        /// The unit's name.
        unit: String,
        /// Names of tests.
        tests: Vec<String>,
    },
    /// A test begins.
    Started {
        /// The test's name.
        test: String,
    },
    /// A test ended.
    Finished {
        /// The test's name.
        test: String,
        /// What it did.
        record: Record,
    },
    /// All of a unit is reported.
    UnitFinished {
        /// The unit's name.
        unit: String,
    },
    /// The whole request is done.
    RequestDone,
    /// There are no more requests, and what tests shared is taken down.
    TornDown {
        /// What went wrong, in one line.
        error: Option<String>,
    },
}

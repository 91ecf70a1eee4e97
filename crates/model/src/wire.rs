//! The payloads that cross the wire between dispatcher and workers, as JSON inside Celery messages.
//!
//! A batch is the Celery task [`TASK_NAME`]; its only keyword argument `order` is a [`BatchOrder`]. While it runs, the
//! worker publishes state updates (`PROGRESS`, a [`Progress`]) and at the end the task's result (a [`BatchReport`]),
//! all to [`RESULTS_EXCHANGE`]; a worker that will take no other for a while says that end in advance ([`REFUSED`]). No
//! payload carries a command line: it names a suite and tests.

use serde::{Deserialize, Serialize};

use crate::{Digest, Fault, Lease, Record, RunId, SuiteName, Time, Token, WorkerName};

/// The version of these payloads. A worker refuses an order of another version.
pub const PROTOCOL: u32 = 1;

/// The Celery task that runs a batch.
pub const TASK_NAME: &str = "regatta.batch";

/// The Celery state under which a worker tells a [`BatchReport`] before its task's end: it could run nothing of the batch,
/// and its slot rests.
pub const REFUSED: &str = "REFUSED";

/// The topic exchange to which workers publish; its routing keys are `<broker user>.<run id>`.
pub const RESULTS_EXCHANGE: &str = "regatta.results";

/// What one batch asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchOrder {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// The run.
    pub run: RunId,
    /// The batch's fencing number.
    pub lease: Lease,
    /// When it was handed out, by the dispatcher's clock.
    #[serde(default)]
    pub sent: Time,
    /// The suite that every item belongs to.
    pub suite: SuiteName,
    /// The digest of the manifest that the dispatcher's adapter prepared in the tree, for suites that are built once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prepared: Option<Digest>,
    /// The limit for each test, in milliseconds.
    pub test_timeout_ms: u64,
    /// How often the worker must say that it lives, in milliseconds.
    pub beat_ms: u64,
    /// What to run, in order.
    pub items: Vec<OrderItem>,
}

/// One thing to run in a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderItem {
    /// The attempt's token. For a unit, the token of each test found in it.
    pub token: Token,
    /// Which attempt this is: 1 for the first.
    pub attempt: u32,
    /// What it is.
    #[serde(flatten)]
    pub item: Item,
}

/// A named test, or a unit whose tests nobody has listed yet.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Item {
    /// A test, by its framework's name.
    Test(String),
    /// A unit: collect it, report what is in it, run all of it.
    Unit(String),
}

/// What a worker says while a batch runs. Several may travel in one message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The lease that it works under.
    pub lease: Lease,
    /// Who speaks.
    pub worker: WorkerName,
    /// Facts in the order in which they happened; empty for a bare beat.
    pub facts: Vec<Fact>,
}

/// One fact about a batch in work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "fact")]
pub enum Fact {
    /// A unit was collected: these tests are in it, and will be run unless the batch ends early.
    Collected {
        /// The unit's name.
        unit: String,
        /// Its tests in their order, by name.
        tests: Vec<String>,
    },
    /// A test begins now.
    Started {
        /// The test's name.
        test: String,
        /// Its token.
        token: Token,
    },
    /// A test ended.
    Finished {
        /// The test's name.
        test: String,
        /// Its token.
        token: Token,
        /// What it did.
        record: Record,
    },
    /// A unit's tests are all reported. Without it the unit itself counts as not reported.
    UnitFinished {
        /// The unit's name.
        unit: String,
    },
}

/// The result of the batch's task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchReport {
    /// The lease that it worked under.
    pub lease: Lease,
    /// Who speaks.
    pub worker: WorkerName,
    /// How the batch ended for the worker.
    pub end: BatchEnd,
}

/// How a batch ended for its worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchEnd {
    /// Everything that it could report is reported.
    Done,
    /// It was not run, since this delivery had been given out before: only the dispatcher may decide to run it again.
    Returned,
    /// It was cancelled (Celery's `revoke`).
    Cancelled,
    /// The worker could not run it, or part of it.
    Faulted(Fault),
}

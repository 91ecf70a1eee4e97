//! The facts of a run, in the past tense, in the order of its life. Everything that a person or a file sees is a
//! reader of this one stream; `events.jsonl` is the stream, one [`Stamped`] event a line.

use serde::{Deserialize, Serialize};

use crate::{
    BatchId, Fault, Item, Lease, Output, Record, RunId, SuiteName, TestId, Time, Token, Unit, WorkerName,
};

/// The version of this stream's schema, in its first event.
pub const EVENTS_SCHEMA: u32 = 1;

/// An event and when it happened, by the dispatcher's clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamped {
    /// When.
    pub at: Time,
    /// What.
    #[serde(flatten)]
    pub event: RunEvent,
}

/// A suite as its adapter recognised it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suite {
    /// Its name.
    pub name: SuiteName,
    /// Its adapter: `pytest`, `cargo`, `commands`.
    pub adapter: String,
}

/// A test case that an adapter listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Which test.
    pub test: TestId,
    /// The unit in which it is.
    pub unit: Option<Unit>,
}

/// What a run was asked to do about failures and time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// How often a failed test is tried again; 0 for never.
    pub retries: u32,
    /// The wait before the first retry, in milliseconds; doubled for each further one.
    pub backoff_ms: u64,
    /// The longest wait before a retry, in milliseconds.
    pub backoff_max_ms: u64,
    /// Stop handing out after the first test that failed for good.
    pub fail_fast: bool,
    /// The limit for each test, in milliseconds.
    pub test_timeout_ms: u64,
    /// How often a worker must say that it lives, in milliseconds; it is lost after three misses.
    pub beat_ms: u64,
    /// How often a test may be lost with its worker before it is a fault.
    pub losses_max: u32,
}

/// Why a run stopped handing out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CancelReason {
    /// A test failed for good and the run was asked to stop then.
    FailFast,
    /// The user interrupted it.
    Interrupted,
    /// The broker was out of reach for longer than allowed.
    BrokerLost,
}

/// What tests shared and what could not be taken down in good order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TeardownFailed {
    /// Of which suite.
    pub suite: SuiteName,
    /// Where.
    pub worker: WorkerName,
    /// What went wrong, in one line.
    pub message: String,
    /// What was printed meanwhile.
    #[serde(default)]
    pub output: Output,
}

/// A fact about a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum RunEvent {
    /// The first event: what is run, where and how.
    RunStarted {
        /// The run's id.
        run: RunId,
        /// The version of this stream's schema.
        schema: u32,
        /// Regatta's version.
        regatta: String,
        /// The tree's path.
        tree: String,
        /// The broker without its password: `embedded` or `amqp://user@host/vhost`.
        broker: String,
        /// The suites.
        suites: Vec<Suite>,
        /// Whether only some of their tests were asked for.
        #[serde(default)]
        filtered: bool,
        /// The policy.
        policy: Policy,
    },
    /// A suite was listed, wholly or in part. What is listed is what the run answers for.
    Listed {
        /// Tests that are known by name.
        tests: Vec<Listed>,
        /// Units whose tests are found while they run.
        units: Vec<Unit>,
    },
    /// A suite will list no more.
    ListingEnded {
        /// Which suite.
        suite: SuiteName,
        /// What went wrong, where something did; the rest of the suite is run nevertheless.
        fault: Option<Fault>,
    },
    /// A batch was handed out. Written before it is published.
    BatchSent {
        /// The batch.
        batch: BatchId,
        /// Its lease.
        lease: Lease,
        /// The suite of all its items.
        suite: SuiteName,
        /// The queue that it was sent to.
        queue: String,
        /// The items with their attempt numbers and tokens.
        items: Vec<(Item, u32, Token)>,
    },
    /// A batch began on a worker.
    BatchStarted {
        /// The batch.
        batch: BatchId,
        /// Who works on it.
        worker: WorkerName,
    },
    /// A unit was collected; its tests are part of the run from now on.
    UnitCollected {
        /// The unit.
        unit: Unit,
        /// The names of its tests.
        tests: Vec<String>,
        /// Their token.
        token: Token,
        /// The batch.
        batch: BatchId,
    },
    /// A unit whose tests were remembered was collected, and holds others now: new ones are part of the run from now on,
    /// and those that are gone are no longer, unless they were tried already.
    UnitChanged {
        /// The unit.
        unit: Unit,
        /// The names of all its tests.
        tests: Vec<String>,
    },
    /// An attempt began.
    AttemptStarted {
        /// The test.
        test: TestId,
        /// Which attempt.
        attempt: u32,
        /// Where.
        worker: WorkerName,
    },
    /// An attempt ended with an outcome that counts.
    AttemptFinished {
        /// The test.
        test: TestId,
        /// Which attempt.
        attempt: u32,
        /// Its token.
        token: Token,
        /// The batch.
        batch: BatchId,
        /// The batch's lease.
        lease: Lease,
        /// Where.
        worker: WorkerName,
        /// What it did.
        record: Record,
    },
    /// A result arrived that no longer counts. It changes nothing.
    LateResult {
        /// The test.
        test: TestId,
        /// The token that it came with.
        token: Token,
        /// The lease that it came under.
        lease: Lease,
        /// From whom.
        worker: WorkerName,
        /// What it says.
        record: Record,
    },
    /// A failed test will be tried again after a wait.
    RetryScheduled {
        /// The test.
        test: TestId,
        /// The attempt that is to come.
        attempt: u32,
        /// The wait, in milliseconds.
        delay_ms: u64,
    },
    /// An attempt ended without an outcome, for good.
    AttemptFaulted {
        /// The test; for a unit that was never collected, the unit's name.
        test: TestId,
        /// Which attempt.
        attempt: u32,
        /// Its token.
        token: Token,
        /// The batch, when there was one.
        batch: Option<BatchId>,
        /// Where, when it was somewhere.
        worker: Option<WorkerName>,
        /// Why.
        fault: Fault,
    },
    /// A batch ended.
    BatchEnded {
        /// The batch.
        batch: BatchId,
        /// Who worked on it.
        worker: WorkerName,
    },
    /// A worker was given up: its tests go to others.
    WorkerLost {
        /// Who; none when a batch was lost before any worker spoke.
        worker: Option<WorkerName>,
        /// The batch that it held.
        batch: BatchId,
        /// How many tests go to others.
        tests: usize,
        /// What was noticed.
        reason: String,
    },
    /// A batch could not be run, by nobody's death: its tests are tried again, or keep the fault.
    BatchFaulted {
        /// Who had it; none when it never came to a worker.
        worker: Option<WorkerName>,
        /// The batch.
        batch: BatchId,
        /// How many tests were open in it.
        tests: usize,
        /// Why.
        reason: String,
    },
    /// The broker could not be reached; leases wait, for a while.
    BrokerLost {
        /// What was noticed.
        reason: String,
    },
    /// The broker is back; every lease runs anew.
    BrokerBack,
    /// Nobody consumes from a queue that has this run's batches.
    NobodyWorks {
        /// The queue.
        queue: String,
        /// For how long, in milliseconds.
        for_ms: u64,
    },
    /// Somebody consumes from the queue again.
    SomebodyWorks {
        /// The queue.
        queue: String,
    },
    /// The run stopped handing out.
    Cancelled {
        /// Why.
        reason: CancelReason,
    },
    /// All tests have their results, and what they shared (fixtures of a whole session) could not be taken down in good
    /// order: it failed, or its process ended while no test ran.
    TeardownFailed(TeardownFailed),
    /// The last event.
    RunFinished,
}

//! What goes into a run and what comes out of it.

use std::collections::HashMap;

use crate::{
    BatchId, BatchOrder, BatchReport, Digest, Fault, Glob, Item, Lane, Listed, Policy, Progress, RunEvent,
    RunId, Suite, SuiteName, TeardownFailed, TestId, Unit,
};

/// What one run is asked to do.
#[derive(Debug, Clone)]
pub struct RunOrder {
    /// The run's id.
    pub run: RunId,
    /// Regatta's version.
    pub regatta: String,
    /// The tree's path.
    pub tree: String,
    /// The broker, for people; without a password.
    pub broker: String,
    /// The suites.
    pub suites: Vec<SuiteOrder>,
    /// Whether only some of their tests are asked for. Otherwise each suite should have some.
    pub filtered: bool,
    /// What to do about failures and time.
    pub policy: Policy,
    /// How many slots are expected to work on each queue.
    pub slots_hint: usize,
    /// What earlier runs taught.
    pub known: Knowledge,
    /// For how long a queue may have no worker before what waits there is given up, and for how long the broker may be
    /// out of reach before the run is, in milliseconds.
    pub nobody_after_ms: u64,
    /// Whether a worker of the run's own is to be released before the run ends ([`Command::Release`]).
    pub own_worker: bool,
}

/// One suite of a run and where its batches go.
#[derive(Debug, Clone)]
pub struct SuiteOrder {
    /// The suite.
    pub suite: Suite,
    /// The queue for what no route names.
    pub queue: String,
    /// Routes; the first that matches counts.
    pub routes: Vec<Route>,
    /// How firmly tests of a unit stay together.
    pub units: Units,
    /// Nothing is handed out before the suite is prepared (built).
    pub held: bool,
}

/// How tests of a unit are handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Units {
    /// Each test by itself: a unit costs nothing.
    Free,
    /// Together, since a worker must load the unit to run any of them; a long unit is cut.
    Together,
    /// A unit is never cut: its tests build on each other.
    Whole,
}

impl SuiteOrder {
    /// Every queue that its batches may go to.
    pub fn queues(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.queue.as_str()).chain(self.routes.iter().map(|route| route.queue.as_str()))
    }

    /// The lane of an item.
    pub(crate) fn lane(&self, item: &Item) -> Lane {
        let (Item::Test(name) | Item::Unit(name)) = item;
        let route = self.routes.iter().find(|route| route.pattern.is_match(name));
        let queue = route.map_or(&self.queue, |route| &route.queue);
        Lane { queue: queue.clone(), suite: self.suite.name.clone() }
    }
}

/// Tests whose name matches go to this queue.
#[derive(Debug, Clone)]
pub struct Route {
    /// A pattern on the test's (or unit's) name.
    pub pattern: Glob,
    /// The queue.
    pub queue: String,
}

/// What earlier runs taught about one test or unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Known {
    /// The time that nine of ten attempts stayed below, in microseconds. For a test it is without what it set up for
    /// others, too.
    pub p90_us: u64,
    /// For a unit: the longest time that one of its tests spent on setting up what others share, in microseconds.
    pub shared_us: u64,
    /// Its last verdict was not good.
    pub failed_last: bool,
}

/// What earlier runs taught.
#[derive(Debug, Clone, Default)]
pub struct Knowledge {
    /// About tests.
    pub tests: HashMap<TestId, Known>,
    /// About whole units.
    pub units: HashMap<Unit, Known>,
}

impl Knowledge {
    pub(crate) fn of(&self, suite: &SuiteName, item: &Item) -> Option<Known> {
        match item {
            Item::Test(name) => self.tests.get(&TestId { suite: suite.clone(), name: name.clone() }).copied(),
            Item::Unit(name) => self.units.get(&Unit { suite: suite.clone(), name: name.clone() }).copied(),
        }
    }
}

/// Everything that can change a run.
#[derive(Debug, Clone)]
pub enum Input {
    /// The run begins: the first input.
    Started,
    /// A part of a suite was listed.
    Listed {
        /// Tests known by name.
        tests: Vec<Listed>,
        /// Units whose tests are found while they run.
        units: Vec<Unit>,
        /// Units of which `tests` has all that an earlier run found in them. Should they hold others by now, the run
        /// answers for those.
        remembered: Vec<Unit>,
    },
    /// A suite is built, and workers will find this manifest in the tree.
    Prepared {
        /// Which suite.
        suite: SuiteName,
        /// The manifest's digest.
        digest: Option<Digest>,
    },
    /// A suite will list no more.
    ListingEnded {
        /// Which suite.
        suite: SuiteName,
        /// What went wrong.
        fault: Option<Fault>,
    },
    /// A worker said something of a batch.
    Progress {
        /// The batch.
        batch: BatchId,
        /// What it said.
        progress: Progress,
    },
    /// A worker ended a batch.
    Report {
        /// The batch.
        batch: BatchId,
        /// How.
        report: BatchReport,
    },
    /// A batch's task failed as a task (refused, revoked by somebody, malformed): nobody runs it.
    BatchFailed {
        /// The batch.
        batch: BatchId,
        /// Why.
        reason: String,
    },
    /// A batch could not be published.
    PublishFailed {
        /// The batch.
        batch: BatchId,
        /// Why.
        reason: String,
    },
    /// A queue was looked at.
    QueueSeen {
        /// The queue.
        queue: String,
        /// How many consume from it.
        consumers: u32,
        /// How many messages wait there, whoever sent them; not those that a consumer has.
        ready: u32,
    },
    /// The dispatcher lost its broker.
    BrokerLost {
        /// What was noticed.
        reason: String,
    },
    /// The broker is back, with its topology.
    BrokerBack,
    /// The run's own worker has ended all its processes in good order, or what went wrong then.
    Released {
        /// What could not be taken down.
        failed: Vec<TeardownFailed>,
    },
    /// Stop handing out; what runs may end.
    Interrupt,
    /// End everything now.
    Kill,
    /// Time went on.
    Tick,
}

/// What a run asks of its hands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Write this fact down, before anything that follows is done.
    Record(RunEvent),
    /// Publish this batch, confirmed.
    Publish {
        /// Its id: the Celery task's id.
        batch: BatchId,
        /// To which queue.
        queue: String,
        /// Its payload.
        order: BatchOrder,
    },
    /// Tell whoever has this batch to stop: after the running test, or now.
    Revoke {
        /// The batch.
        batch: BatchId,
        /// Now.
        terminate: bool,
    },
    /// All tests are judged: the run's own worker may end, and [`Input::Released`] shall say how it went.
    Release,
    /// The run is over.
    Finish,
}

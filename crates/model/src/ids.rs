//! Names and numbers that identify things, as newtypes, so that one can't be passed for another.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }
    };
}

text_id! {
    /// One invocation of `regatta run`. Sorts by start time: `20261124-083201-4f2a`.
    RunId
}
text_id! {
    /// The name of a suite, unique in one tree: `pytest`, `cargo`, or what `regatta.toml` calls it.
    SuiteName
}
text_id! {
    /// One published batch; the id of its Celery task.
    BatchId
}
text_id! {
    /// The Celery node name of a worker: `regatta-1@host`.
    WorkerName
}
text_id! {
    /// The digest of a file's content, in lower-case hexadecimal.
    Digest
}

/// A test case: its suite and the name by which its framework knows it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TestId {
    /// The suite that lists it.
    pub suite: SuiteName,
    /// The framework's own name, such as `tests/test_a.py::test_b[1]` or `itertools$quick merge_order`.
    pub name: String,
}

impl TestId {
    /// Names a test case.
    pub fn new(suite: impl Into<SuiteName>, name: impl Into<String>) -> Self {
        Self { suite: suite.into(), name: name.into() }
    }
}

impl fmt::Display for TestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.suite, self.name)
    }
}

/// A part of a suite that can be collected by itself, such as a Python test file or a test binary.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Unit {
    /// The suite that it belongs to.
    pub suite: SuiteName,
    /// Its name in the suite; for files, the path relative to the tree with `/` between parts.
    pub name: String,
}

/// The fencing number of a batch's lease. A report that carries an older one is late and changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lease(pub u64);

/// The token of one attempt. A result counts only with the token of the attempt that is open; the first one wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(pub u64);

/// A moment: microseconds since the Unix epoch. The caller's clock never runs backwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Time(pub u64);

impl Time {
    /// The moment that is `span` later.
    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_micros()).unwrap_or(u64::MAX)))
    }

    /// The span since `earlier`; zero when `earlier` is in fact later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

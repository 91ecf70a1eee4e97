//! Regatta's words as types, and its brains.
//!
//! Everything that crosses a border is spelled here once: what a suite and a test case are, what a worker reports,
//! the facts of a run, and how facts fold into verdicts. The brains ([`Plan`], [`Run`]) are state machines.
//!
//! This crate must not know I/O, clocks, randomness, async, a broker, a process or a database: time and ids come in
//! with the event.

mod attempt;
mod event;
mod fold;
mod glob;
mod ids;
mod plan;
mod run;
mod wire;

pub use attempt::{Attempt, Fault, FaultKind, Judgement, Outcome, Output, Phase, Record, Verdict};
pub use event::{CancelReason, EVENTS_SCHEMA, Listed, Policy, RunEvent, Stamped, Suite, TeardownFailed};
pub use fold::{RunRecord, TestRecord, Totals};
pub use glob::Glob;
pub use ids::{BatchId, Digest, Lease, RunId, SuiteName, TestId, Time, Token, Unit, WorkerName};
pub use plan::{Lane, Plan, Together, Work};
pub use run::{Command, Input, Knowledge, Known, Route, Run, RunOrder, SuiteOrder, Units};
pub use wire::{
    BatchEnd, BatchOrder, BatchReport, Fact, Item, OrderItem, PROTOCOL, Progress, REFUSED, RESULTS_EXCHANGE,
    TASK_NAME,
};

//! Regatta's words as types, and its brains.
//!
//! Everything that crosses a border is spelled here once: what a suite and a test case are, what a worker reports,
//! the facts of a run, and how facts fold into verdicts.
//!
//! This crate must not know I/O, clocks, randomness, async, a broker, a process or a database: time and ids come in
//! with the event.

mod attempt;
mod event;
mod fold;
mod ids;
mod wire;

pub use attempt::{Attempt, Fault, FaultKind, Judgement, Outcome, Output, Phase, Record, Verdict};
pub use event::{CancelReason, Listed, Policy, RunEvent, Stamped, Suite};
pub use fold::{RunRecord, TestRecord, Totals};
pub use ids::{BatchId, Digest, Lease, RunId, SuiteName, TestId, Time, Token, Unit, WorkerName};
pub use wire::{
    BatchEnd, BatchOrder, BatchReport, Fact, Item, OrderItem, PROTOCOL, Progress, RESULTS_EXCHANGE, TASK_NAME,
};

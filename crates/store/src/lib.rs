//! What is kept of a run: its folder of files, and the history that teaches the next run.
//!
//! [`Store`] is one SQLite file with one writing process at a time; it is a help, never a condition: a run goes on
//! without it. [`RunFolder`] holds the files of one run. This crate must not know brokers, workers or terminals, and
//! it is the only place with SQL.

mod folder;
mod migrations;
mod queries;
mod store;

pub use folder::{EVENTS_FILE, FLUSH_BYTES, JUNIT_FILE, Ledger, RUN_FILE, RunFolder, State, read_events};
pub use store::{ATTEMPTS_KEPT_MAX, RUNS_KEPT_MAX, Store, StoreError, UNSEEN_RUNS_MAX};

//! `run.json`: the summary and every test with every attempt. Its schema is described in `docs/files.md`.

use std::io::{self, Write};

use regatta_model::{
    CancelReason, Fault, RunRecord, Suite, TeardownFailed, TestId, TestRecord, Time, Totals, Unit, Verdict,
    WorkerName,
};
use serde::Serialize;

use crate::summary::exact_time;

/// The version of the schema of `run.json`. It grows when something is removed or changes its meaning.
pub const RUN_SCHEMA: u32 = 1;

#[derive(Serialize)]
struct Document<'a> {
    schema: u32,
    regatta: &'a str,
    run: &'a str,
    tree: &'a str,
    broker: &'a str,
    started: String,
    started_us: Time,
    duration_us: u64,
    finished: bool,
    cancelled: Option<CancelReason>,
    exit_code: u8,
    totals: Totals,
    suites: &'a [Suite],
    workers: &'a [WorkerName],
    workers_lost: &'a [String],
    batches_faulted: &'a [String],
    listing_faults: &'a [Fault],
    teardowns_failed: &'a [TeardownFailed],
    late: Vec<Late<'a>>,
    units_open: &'a [Unit],
    tests: Vec<Test<'a>>,
}

#[derive(Serialize)]
struct Late<'a> {
    #[serde(flatten)]
    test: &'a TestId,
    worker: &'a WorkerName,
}

#[derive(Serialize)]
struct Test<'a> {
    verdict: Option<Verdict>,
    #[serde(flatten)]
    record: &'a TestRecord,
}

/// Writes a run's record as JSON.
///
/// # Errors
/// When the writer fails.
pub fn write_run(out: &mut dyn Write, record: &RunRecord, regatta: &str, exit_code: u8) -> io::Result<()> {
    let document = Document {
        schema: RUN_SCHEMA,
        regatta,
        run: record.run.as_ref().map_or("", |run| &run.0),
        tree: &record.tree,
        broker: &record.broker,
        started: exact_time(record.started),
        started_us: record.started,
        duration_us: record.updated.0.saturating_sub(record.started.0),
        finished: record.finished,
        cancelled: record.cancelled,
        exit_code,
        totals: record.totals(),
        suites: &record.suites,
        workers: &record.workers,
        workers_lost: &record.losses,
        batches_faulted: &record.batches_faulted,
        listing_faults: &record.listing_faults,
        teardowns_failed: &record.teardowns_failed,
        late: record.late.iter().map(|(test, worker)| Late { test, worker }).collect(),
        units_open: &record.units_open,
        tests: record.tests.iter().map(|record| Test { verdict: record.verdict(), record }).collect(),
    };
    serde_json::to_writer(&mut *out, &document)?;
    out.write_all(b"\n")
}

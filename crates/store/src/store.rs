//! The history: runs, attempts, durations, and the tests that each unit held.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use regatta_model::{Digest, Judgement, Knowledge, Known, Outcome, RunRecord, TestId, Unit};
use rusqlite::{Connection, OptionalExtension, params};

use crate::{migrations, queries};

/// How many runs are kept.
pub const RUNS_KEPT_MAX: usize = 100;

/// How many of its newest attempts are kept of each test, however long ago they were. What is older says little, and
/// reading it takes time.
pub const ATTEMPTS_KEPT_MAX: usize = 10;

/// For how many runs in a row a test may not be among what was run, before it is forgotten.
pub const UNSEEN_RUNS_MAX: usize = 1_000;

/// How long a second process waits for the one that writes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no history.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A newer Regatta wrote it.
    #[error(
        "{path} was written by a newer regatta (version {found}, this one knows {known}); update this one"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: usize,
        /// The newest that is known here.
        known: usize,
    },
    /// It can't be opened, read or written.
    #[error(
        "{path} can't be used ({source}); if it is damaged, remove it: only remembered durations are lost"
    )]
    Unusable {
        /// The file.
        path: PathBuf,
        /// SQLite's words.
        #[source]
        source: rusqlite::Error,
    },
}

/// The history of one tree, open.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    db: Connection,
}

impl Store {
    /// Opens the file, or makes it.
    ///
    /// # Errors
    /// When it is damaged, newer than this program, or can't be written.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let unusable = |source| StoreError::Unusable { path: path.to_owned(), source };
        let mut db = Connection::open(path).map_err(unusable)?;
        let prepare = |db: &mut Connection| {
            db.busy_timeout(BUSY_TIMEOUT)?;
            // A lost run of durations after a power cut is no loss; waiting for the disk at each commit is.
            db.execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; PRAGMA foreign_keys = ON;",
            )?;
            migrations::migrate(db)?;
            migrations::version(db)
        };
        let found = prepare(&mut db).map_err(unusable)?;
        let known = migrations::newest();
        if found > known {
            return Err(StoreError::Newer { path: path.to_owned(), found, known });
        }
        Ok(Self { path: path.to_owned(), db })
    }

    /// What earlier runs teach: for each test the time below which nine of ten good attempts stayed (of all attempts
    /// where none was good), and whether it was bad when it was last run; for each unit the sum, and what its tests share.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn knowledge(&self) -> Result<Knowledge, StoreError> {
        self.read_knowledge().map_err(|source| self.unusable(source))
    }

    fn read_knowledge(&self) -> rusqlite::Result<Knowledge> {
        let mut histories: HashMap<i64, History> = HashMap::new();
        let mut attempts = self.db.prepare(queries::ALL_ATTEMPTS)?;
        let mut rows = attempts.query([])?;
        while let Some(row) = rows.next()? {
            let history = histories.entry(row.get(0)?).or_default();
            history.add(row.get(1)?, row.get_ref(2)?.as_str()?, row.get(3)?, row.get(4)?);
        }
        let mut knowledge = Knowledge::default();
        let mut tests = self.db.prepare(queries::ALL_TESTS)?;
        let mut rows = tests.query([])?;
        while let Some(row) = rows.next()? {
            let Some(history) = histories.remove(&row.get(0)?) else { continue };
            let (suite, name): (String, String) = (row.get(1)?, row.get(2)?);
            let shared_us = history.shared_us;
            let known = history.known();
            if let Some(unit) = row.get::<_, Option<String>>(3)? {
                let unit = Unit { suite: suite.as_str().into(), name: unit };
                let whole = knowledge.units.entry(unit).or_default();
                whole.p90_us += known.p90_us;
                whole.shared_us = whole.shared_us.max(shared_us);
                whole.failed_last |= known.failed_last;
            }
            knowledge.tests.insert(TestId::new(suite.as_str(), name), known);
        }
        Ok(knowledge)
    }

    /// The tests that a unit held when its digest was this one; none when nobody remembers.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn unit_tests(&self, unit: &Unit, digest: &Digest) -> Result<Option<Vec<String>>, StoreError> {
        let read = || {
            let mut query = self.db.prepare_cached(queries::UNIT_TESTS)?;
            query
                .query_row(params![unit.suite.0, unit.name, digest.0], |row| row.get::<_, String>(0))
                .optional()
        };
        let text = read().map_err(|source| self.unusable(source))?;
        // What can't be read was not written by us: as if nobody remembered.
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
    }

    /// Remembers which tests a unit with this digest holds.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn remember_units(&mut self, units: &[(Unit, Digest, Vec<String>)]) -> Result<(), StoreError> {
        let write = |db: &mut Connection| {
            let transaction = db.transaction()?;
            let mut remember = transaction.prepare(queries::REMEMBER_UNIT)?;
            for (unit, digest, tests) in units {
                let tests = serde_json::to_string(tests).expect("a list of texts is always JSON");
                remember.execute(params![unit.suite.0, unit.name, digest.0, tests])?;
            }
            drop(remember);
            transaction.commit()
        };
        write(&mut self.db).map_err(|source| self.unusable(source))
    }

    /// Keeps a run, and forgets the oldest runs beyond [`RUNS_KEPT_MAX`], attempts beyond [`ATTEMPTS_KEPT_MAX`], and tests
    /// that were not seen in the last [`UNSEEN_RUNS_MAX`] runs.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn keep(&mut self, record: &RunRecord) -> Result<(), StoreError> {
        keep(&mut self.db, record).map_err(|source| self.unusable(source))
    }

    /// Forgets the tests that a run, kept before, would have had if they were still there: all of its suites were asked for
    /// and listed, and every unit was collected. What a unit held that could not be collected this time stays.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn forget_gone(&mut self, record: &RunRecord) -> Result<(), StoreError> {
        forget_gone(&mut self.db, record).map_err(|source| self.unusable(source))
    }

    fn unusable(&self, source: rusqlite::Error) -> StoreError {
        StoreError::Unusable { path: self.path.clone(), source }
    }
}

fn keep(db: &mut Connection, record: &RunRecord) -> rusqlite::Result<()> {
    let Some(run) = &record.run else { return Ok(()) };
    let transaction = db.transaction()?;
    transaction
        .execute(queries::INSERT_RUN, params![run.0, record.started.0, record.updated.0, record.finished])?;
    let id = transaction.last_insert_rowid();
    {
        let mut upsert = transaction.prepare(queries::UPSERT_TEST)?;
        let mut insert = transaction.prepare(queries::INSERT_ATTEMPT)?;
        let mut prune = transaction.prepare(queries::PRUNE_ATTEMPTS)?;
        for test in &record.tests {
            if test.attempts.is_empty() {
                continue;
            }
            let unit = test.unit.as_ref().map(|unit| unit.name.as_str());
            let subject: i64 =
                upsert.query_row(params![test.test.suite.0, test.test.name, unit, id], |row| row.get(0))?;
            for attempt in &test.attempts {
                let took = attempt.record.as_ref().map(|record| record.duration_us);
                let shared = attempt.record.as_ref().map_or(0, |record| record.shared_us);
                let worker = attempt.worker.as_ref().map(|worker| worker.0.as_str());
                insert.execute(params![
                    id,
                    subject,
                    attempt.number,
                    word(&attempt.judgement),
                    took,
                    worker,
                    shared
                ])?;
            }
            prune.execute(params![subject, ATTEMPTS_KEPT_MAX])?;
        }
        transaction.execute(queries::PRUNE_RUNS, [RUNS_KEPT_MAX])?;
        transaction.execute(queries::PRUNE_TESTS, params![id, UNSEEN_RUNS_MAX])?;
    }
    transaction.commit()
}

fn forget_gone(db: &mut Connection, record: &RunRecord) -> rusqlite::Result<()> {
    let whole = record.finished
        && record.cancelled.is_none()
        && record.listing_faults.is_empty()
        && record.units_open.is_empty();
    let Some(run) = record.run.as_ref().filter(|_| whole) else { return Ok(()) };
    // A unit that could not be collected is reported under its own name.
    let names: HashSet<&TestId> = record.tests.iter().map(|test| &test.test).collect();
    let transaction = db.transaction()?;
    {
        let mut unseen = transaction.prepare(queries::UNSEEN_TESTS)?;
        let mut delete = transaction.prepare(queries::DELETE_TEST)?;
        for suite in &record.suites {
            let rows =
                unseen.query_map(params![suite.name.0, run.0], |row| Ok((row.get(0)?, row.get(1)?)))?;
            let rows: Vec<(i64, Option<String>)> = rows.collect::<Result<_, _>>()?;
            for (id, unit) in rows {
                let unit = unit.map(|unit| TestId { suite: suite.name.clone(), name: unit });
                if !unit.is_some_and(|unit| names.contains(&unit)) {
                    delete.execute([id])?;
                }
            }
        }
    }
    transaction.commit()
}

fn word(judgement: &Judgement) -> &'static str {
    match judgement {
        Judgement::Outcome(Outcome::Passed) => "passed",
        Judgement::Outcome(Outcome::Failed) => "failed",
        Judgement::Outcome(Outcome::Errored) => "errored",
        Judgement::Outcome(Outcome::Skipped) => "skipped",
        Judgement::Outcome(Outcome::TimedOut) => "timed_out",
        Judgement::Outcome(Outcome::Crashed) => "crashed",
        Judgement::Fault(_) => "fault",
    }
}

/// What is known of one test, oldest attempt first.
#[derive(Debug, Default)]
struct History {
    good: Vec<u64>,
    bad: Vec<u64>,
    failed_last: bool,
    /// What it set up for others when it last did.
    shared_us: u64,
}

impl History {
    fn add(&mut self, number: u32, judgement: &str, duration_us: Option<u64>, shared_us: u64) {
        // A skip after a failure is no pass.
        let good = judgement == "passed" || judgement == "skipped" && number == 1;
        let list = if good { &mut self.good } else { &mut self.bad };
        list.extend(duration_us.map(|took| took.saturating_sub(shared_us)));
        if shared_us > 0 {
            self.shared_us = shared_us;
        }
        self.failed_last = !good;
    }

    fn known(self) -> Known {
        // A failing run often ends early or late: it says little about the next good one.
        let mut durations = if self.good.is_empty() { self.bad } else { self.good };
        durations.sort_unstable();
        let at = (durations.len() * 9).div_ceil(10).saturating_sub(1);
        let p90_us = durations.get(at).copied().unwrap_or_default();
        Known { p90_us, failed_last: self.failed_last, ..Known::default() }
    }
}

#[cfg(test)]
mod tests;

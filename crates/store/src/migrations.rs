//! The schema, as steps that are only ever appended to. `PRAGMA user_version` counts those that were taken.

use rusqlite::{Connection, TransactionBehavior};

/// Every step, oldest first. A step that was released is never changed.
const STEPS: [&str; 2] = [
    "
    CREATE TABLE runs (
        id INTEGER PRIMARY KEY,
        run TEXT NOT NULL UNIQUE,
        started_us INTEGER NOT NULL,
        ended_us INTEGER NOT NULL,
        finished INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE tests (
        id INTEGER PRIMARY KEY,
        suite TEXT NOT NULL,
        name TEXT NOT NULL,
        unit TEXT,
        UNIQUE (suite, name)
    ) STRICT;
    CREATE TABLE attempts (
        run INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
        test INTEGER NOT NULL REFERENCES tests (id),
        number INTEGER NOT NULL,
        judgement TEXT NOT NULL,
        duration_us INTEGER,
        worker TEXT,
        PRIMARY KEY (run, test, number)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE units (
        suite TEXT NOT NULL,
        name TEXT NOT NULL,
        digest TEXT NOT NULL,
        tests TEXT NOT NULL,
        PRIMARY KEY (suite, name)
    ) STRICT, WITHOUT ROWID;
",
    "ALTER TABLE attempts ADD COLUMN shared_us INTEGER NOT NULL DEFAULT 0;",
];

/// Which version this program writes.
pub(crate) fn newest() -> usize {
    STEPS.len()
}

/// The version of an open file.
pub(crate) fn version(db: &Connection) -> rusqlite::Result<usize> {
    db.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Takes the steps that are missing, all or none.
pub(crate) fn migrate(db: &mut Connection) -> rusqlite::Result<()> {
    if version(db)? >= newest() {
        return Ok(());
    }
    // Immediately: somebody else may be doing the same.
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let taken = version(&transaction)?;
    for step in STEPS.iter().skip(taken) {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "user_version", newest())?;
    transaction.commit()
}

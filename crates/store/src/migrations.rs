//! The schema, as steps that are only ever appended to. `PRAGMA user_version` counts those that were taken.

use rusqlite::{Connection, TransactionBehavior};

/// Every step, oldest first. A step that was released is never changed.
pub(crate) const STEPS: [&str; 3] = [
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
    // Attempts belong to their test and not to a run, and there are no more than the newest ten of each.
    "
    CREATE TABLE latest (
        test INTEGER NOT NULL REFERENCES tests (id) ON DELETE CASCADE,
        run INTEGER NOT NULL,
        number INTEGER NOT NULL,
        judgement TEXT NOT NULL,
        duration_us INTEGER,
        worker TEXT,
        shared_us INTEGER NOT NULL,
        PRIMARY KEY (test, run, number)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO latest SELECT test, run, number, judgement, duration_us, worker, shared_us FROM (
        SELECT *, row_number() OVER (PARTITION BY test ORDER BY run DESC, number DESC) AS age FROM attempts
    ) WHERE age <= 10;
    DROP TABLE attempts;
    ALTER TABLE latest RENAME TO attempts;
    ALTER TABLE tests ADD COLUMN seen INTEGER NOT NULL DEFAULT 0;
    UPDATE tests SET seen = coalesce((SELECT max(run) FROM attempts WHERE test = tests.id), 0);
",
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

//! Every query by its name.

/// Inserts a run. 1 name, 2 start, 3 end, 4 whether it finished.
pub(crate) const INSERT_RUN: &str =
    "INSERT INTO runs (run, started_us, ended_us, finished) VALUES (?1, ?2, ?3, ?4)";

/// Finds or inserts a test and answers its id. 1 suite, 2 name, 3 unit.
pub(crate) const UPSERT_TEST: &str = "INSERT INTO tests (suite, name, unit) VALUES (?1, ?2, ?3)
    ON CONFLICT (suite, name) DO UPDATE SET unit = coalesce(excluded.unit, unit) RETURNING id";

/// Inserts an attempt. 1 run, 2 test, 3 number, 4 judgement, 5 duration, 6 worker, 7 the part of the duration that set up
/// what others share.
pub(crate) const INSERT_ATTEMPT: &str = "INSERT OR IGNORE INTO attempts
    (run, test, number, judgement, duration_us, worker, shared_us) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";

/// The tests of every attempt of the newest runs, oldest first. 1 how many runs.
pub(crate) const RECENT_ATTEMPTS: &str =
    "SELECT test, number, judgement, duration_us, shared_us FROM attempts
    WHERE run >= coalesce((SELECT id FROM runs ORDER BY id DESC LIMIT 1 OFFSET ?1 - 1), 0)
    ORDER BY run, test, number";

/// All tests.
pub(crate) const ALL_TESTS: &str = "SELECT id, suite, name, unit FROM tests";

/// Remembers the tests of a unit. 1 suite, 2 name, 3 digest, 4 JSON array of names.
pub(crate) const REMEMBER_UNIT: &str = "INSERT OR REPLACE INTO units (suite, name, digest, tests)
    VALUES (?1, ?2, ?3, ?4)";

/// The tests of a unit that has this digest. 1 suite, 2 name, 3 digest.
pub(crate) const UNIT_TESTS: &str = "SELECT tests FROM units WHERE suite = ?1 AND name = ?2 AND digest = ?3";

/// Deletes all runs but the newest. 1 how many stay.
pub(crate) const PRUNE_RUNS: &str =
    "DELETE FROM runs WHERE id NOT IN (SELECT id FROM runs ORDER BY id DESC LIMIT ?1)";

/// Deletes tests that no kept run knows.
pub(crate) const PRUNE_TESTS: &str = "DELETE FROM tests WHERE id NOT IN (SELECT DISTINCT test FROM attempts)";

//! Every query by its name.

/// Inserts a run. 1 name, 2 start, 3 end, 4 whether it finished.
pub(crate) const INSERT_RUN: &str =
    "INSERT INTO runs (run, started_us, ended_us, finished) VALUES (?1, ?2, ?3, ?4)";

/// Finds or inserts a test and answers its id. 1 suite, 2 name, 3 unit, 4 the run that has it.
pub(crate) const UPSERT_TEST: &str = "INSERT INTO tests (suite, name, unit, seen) VALUES (?1, ?2, ?3, ?4)
    ON CONFLICT (suite, name) DO UPDATE SET unit = coalesce(excluded.unit, unit), seen = excluded.seen
    RETURNING id";

/// Inserts an attempt. 1 run, 2 test, 3 number, 4 judgement, 5 duration, 6 worker, 7 the part of the duration that set up
/// what others share.
pub(crate) const INSERT_ATTEMPT: &str = "INSERT OR IGNORE INTO attempts
    (run, test, number, judgement, duration_us, worker, shared_us) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";

/// Deletes a test's attempts but the newest. 1 test, 2 how many stay.
pub(crate) const PRUNE_ATTEMPTS: &str = "DELETE FROM attempts WHERE test = ?1 AND (run, number) <= (
        SELECT run, number FROM attempts WHERE test = ?1 ORDER BY run DESC, number DESC LIMIT 1 OFFSET ?2)";

/// All attempts of all tests, of each test oldest first.
pub(crate) const ALL_ATTEMPTS: &str =
    "SELECT test, number, judgement, duration_us, shared_us FROM attempts ORDER BY test, run, number";

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

/// Deletes tests that the newest runs did not have, with their attempts. 1 the newest run, 2 how many runs.
pub(crate) const PRUNE_TESTS: &str = "DELETE FROM tests WHERE seen <= ?1 - ?2";

/// The tests of a suite that a run did not have. 1 suite, 2 the run's name.
pub(crate) const UNSEEN_TESTS: &str =
    "SELECT id, unit FROM tests WHERE suite = ?1 AND seen < (SELECT id FROM runs WHERE run = ?2)";

/// Deletes a test with its attempts. 1 its id.
pub(crate) const DELETE_TEST: &str = "DELETE FROM tests WHERE id = ?1";

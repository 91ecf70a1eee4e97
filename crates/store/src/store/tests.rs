use regatta_model::{Attempt, CancelReason, Lease, Record, Suite, TestRecord, Time, Token};

use super::*;

fn run(name: &str, tests: &[(&str, &[(Outcome, u64)])]) -> RunRecord {
    let tests = tests.iter().map(|(test, attempts)| TestRecord {
        test: TestId::new("s", *test),
        unit: Some(Unit { suite: "s".into(), name: "file".into() }),
        attempts: (1..)
            .zip(*attempts)
            .map(|(number, (outcome, took))| attempt(number, *outcome, *took))
            .collect(),
    });
    let mut record = RunRecord::default();
    record.run = Some(name.into());
    record.tests = tests.collect();
    record
}

fn attempt(number: u32, outcome: Outcome, took: u64) -> Attempt {
    Attempt {
        number,
        token: Token(1),
        batch: "b".into(),
        lease: Lease(1),
        worker: Some("w@h".into()),
        judgement: Judgement::Outcome(outcome),
        record: Some(Record::new(outcome, Time(0), took)),
    }
}

fn open(folder: &tempfile::TempDir) -> Store {
    Store::open(&folder.path().join("store.db")).unwrap()
}

#[test]
fn the_next_run_learns_durations_of_good_attempts_and_what_failed_last() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(&folder);
    for (n, took) in (0..).zip([10, 20, 30, 40, 50, 60, 70, 80, 90, 1000]) {
        let late: &[_] =
            if n == 9 { &[(Outcome::Failed, 5), (Outcome::Passed, 7)] } else { &[(Outcome::Failed, 3)] };
        store.keep(&run(&format!("r{n}"), &[("a", &[(Outcome::Passed, took)]), ("b", late)])).unwrap();
    }
    store.keep(&run("r10", &[("c", &[(Outcome::TimedOut, 44)])])).unwrap();
    drop(store);
    let known = open(&folder).knowledge().unwrap();
    assert_eq!(known.tests[&TestId::new("s", "a")], Known { p90_us: 90, failed_last: false, shared_us: 0 });
    assert_eq!(known.tests[&TestId::new("s", "b")], Known { p90_us: 7, failed_last: false, shared_us: 0 });
    assert_eq!(known.tests[&TestId::new("s", "c")], Known { p90_us: 44, failed_last: true, shared_us: 0 });
    let unit = Unit { suite: "s".into(), name: "file".into() };
    assert_eq!(known.units[&unit], Known { p90_us: 141, failed_last: true, shared_us: 0 });
}

#[test]
fn what_is_known_of_a_test_outlives_any_number_of_runs_of_others() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(&folder);
    let a = TestId::new("s", "a");
    for (n, took) in (0..).zip([900, 900, 10, 20, 30, 40, 50, 60, 70, 80, 90]) {
        store.keep(&run(&format!("a{n:02}"), &[("a", &[(Outcome::Passed, took)])])).unwrap();
    }
    store.keep(&run("bad", &[("a", &[(Outcome::Failed, 5)])])).unwrap();
    for n in 0..RUNS_KEPT_MAX + 10 {
        store.keep(&run(&format!("b{n:03}"), &[("b", &[(Outcome::Passed, 1)])])).unwrap();
    }
    // Its own oldest attempts have no say any more.
    assert_eq!(store.knowledge().unwrap().tests[&a], Known { p90_us: 90, failed_last: true, shared_us: 0 });
    assert_eq!(count(&store, "attempts"), 2 * ATTEMPTS_KEPT_MAX, "of each test");
    for n in 0..UNSEEN_RUNS_MAX {
        store.keep(&run(&format!("c{n:04}"), &[("b", &[(Outcome::Passed, 1)])])).unwrap();
    }
    assert!(!store.knowledge().unwrap().tests.contains_key(&a), "everything has its limit");
    assert_eq!(count(&store, "attempts"), ATTEMPTS_KEPT_MAX);
}

#[test]
fn what_a_whole_run_does_not_find_is_forgotten_unless_its_file_is_broken() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(&folder);
    let whole = |name: &str, tests: &[(&str, &[(Outcome, u64)])]| {
        let mut record = run(name, tests);
        record.finished = true;
        record.suites = vec![Suite { name: "s".into(), adapter: "pytest".into() }];
        record
    };
    let passed: &[_] = &[(Outcome::Passed, 1)];
    let mut other = whole("r0", &[("elsewhere", passed)]);
    other.tests[0].test.suite = "other".into();
    store.keep(&other).unwrap();
    let both = whole("r1", &[("a", passed), ("b", &[(Outcome::Failed, 1)])]);
    store.keep(&both).unwrap();
    let names = |store: &Store| {
        let known = store.knowledge().unwrap();
        let mut names: Vec<String> = known.tests.into_keys().map(|test| test.name).collect();
        names.sort();
        names
    };
    let mut forget = |record: RunRecord, expected: &[&str]| {
        store.keep(&record).unwrap();
        store.forget_gone(&record).unwrap();
        assert_eq!(names(&store), expected);
    };
    let mut broken = whole("r2", &[("file", &[(Outcome::Errored, 1)])]);
    broken.tests[0].unit = None;
    forget(broken, &["a", "b", "elsewhere", "file"]);
    let mut stopped = whole("r3", &[("a", passed)]);
    stopped.cancelled = Some(CancelReason::FailFast);
    forget(stopped, &["a", "b", "elsewhere", "file"]);
    forget(whole("r4", &[("a", passed)]), &["a", "elsewhere"]);
    assert_eq!(count(&store, "attempts"), 4);
}

#[test]
fn a_history_of_the_first_version_is_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let db = Connection::open(&path).unwrap();
    db.execute_batch(migrations::STEPS[0]).unwrap();
    db.pragma_update(None, "user_version", 1).unwrap();
    db.execute_batch(
        "INSERT INTO tests (id, suite, name, unit) VALUES (7, 's', 'a', 'file'), (8, 's', 'b', NULL);
         WITH n (n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM n WHERE n < 100)
         INSERT INTO runs SELECT n, 'r' || n, 0, 0, 1 FROM n;
         INSERT INTO attempts SELECT id, 7, 1, 'passed', id, 'w' FROM runs;
         INSERT INTO attempts VALUES (3, 8, 1, 'failed', 5, 'w');",
    )
    .unwrap();
    drop(db);
    let mut store = open(&folder);
    let known = store.knowledge().unwrap();
    assert_eq!(known.tests[&TestId::new("s", "a")], Known { p90_us: 99, failed_last: false, shared_us: 0 });
    assert_eq!(known.tests[&TestId::new("s", "b")], Known { p90_us: 5, failed_last: true, shared_us: 0 });
    assert_eq!(count(&store, "attempts"), ATTEMPTS_KEPT_MAX + 1);
    store.keep(&run("new", &[("b", &[(Outcome::Passed, 6)])])).unwrap();
    assert!(!store.knowledge().unwrap().tests[&TestId::new("s", "b")].failed_last);
}

fn count(store: &Store, table: &str) -> usize {
    store.db.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
}

#[test]
fn a_failed_test_that_was_skipped_at_its_retry_failed_last_until_it_is_run_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(&folder);
    let failed_last = |store: &Store| store.knowledge().unwrap().tests[&TestId::new("s", "a")].failed_last;
    store.keep(&run("r1", &[("a", &[(Outcome::Failed, 5), (Outcome::Skipped, 0)])])).unwrap();
    assert!(failed_last(&store));
    store.keep(&run("r2", &[("a", &[(Outcome::Skipped, 0)])])).unwrap();
    assert!(!failed_last(&store));
}

#[test]
fn nine_of_ten_attempts_stay_below() {
    let mut history = History::default();
    (1..=10).for_each(|took| history.add(1, "passed", Some(took), 0));
    assert_eq!(history.known().p90_us, 9);
}

#[test]
fn what_a_test_sets_up_for_others_is_its_units_and_not_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(&folder);
    let mut first = run("r1", &[("a", &[(Outcome::Passed, 110)]), ("b", &[(Outcome::Passed, 10)])]);
    first.tests[0].attempts[0].record.as_mut().unwrap().shared_us = 100;
    store.keep(&first).unwrap();
    // The other way round.
    let mut second = run("r2", &[("a", &[(Outcome::Passed, 12)]), ("b", &[(Outcome::Passed, 95)])]);
    second.tests[1].attempts[0].record.as_mut().unwrap().shared_us = 80;
    store.keep(&second).unwrap();
    let known = store.knowledge().unwrap();
    assert_eq!(known.tests[&TestId::new("s", "a")].p90_us, 12);
    assert_eq!(known.tests[&TestId::new("s", "b")].p90_us, 15);
    let unit = Unit { suite: "s".into(), name: "file".into() };
    assert_eq!(known.units[&unit], Known { p90_us: 27, failed_last: false, shared_us: 100 });
}

#[test]
fn a_unit_is_remembered_under_its_digest_alone() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(&folder);
    let unit = Unit { suite: "s".into(), name: "file".into() };
    let names = vec!["a".to_owned(), "b".to_owned()];
    store.remember_units(&[(unit.clone(), "d1".into(), names.clone())]).unwrap();
    assert_eq!(store.unit_tests(&unit, &"d1".into()).unwrap(), Some(names));
    assert_eq!(store.unit_tests(&unit, &"d2".into()).unwrap(), None);
}

#[test]
fn old_runs_are_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(&folder);
    for n in 0..RUNS_KEPT_MAX + 20 {
        store.keep(&run(&format!("r{n:03}"), &[])).unwrap();
    }
    let newest = "SELECT count(*), min(run), max(run) FROM runs";
    let newest = store.db.query_row(newest, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
    assert_eq!(newest.unwrap(), (RUNS_KEPT_MAX, "r020".to_owned(), "r119".to_owned()));
}

#[test]
fn a_newer_or_damaged_file_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    open(&folder).db.pragma_update(None, "user_version", 99).unwrap();
    let error = Store::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::Newer { found: 99, .. }), "{error}");
    let damaged = folder.path().join("damaged.db");
    std::fs::write(&damaged, "this is no database, but it is long enough to be read as one. ".repeat(40))
        .unwrap();
    let error = Store::open(&damaged).unwrap_err();
    assert!(matches!(error, StoreError::Unusable { .. }), "{error}");
    assert!(error.to_string().contains("remove it"), "{error}");
}

//! A project full of traps, listed and run as a worker would, and compared with what plain pytest says of it.

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the message")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use regatta_adapters::{
    Adapter, Ended, Exit, Invocation, ListingStep, Place, Pytest, PytestConfig, Runner, WarmFact, WarmSession,
};
use regatta_model::{Item, Outcome, Record, Time};

/// Crashes in these end plain pytest too, so it can't be asked about them.
const CRASHING: [&str; 2] = ["test_crash.py", "test_import_exits.py"];

fn command(invocation: &Invocation, wrap: &[&str]) -> Command {
    let mut command = match wrap {
        [] => Command::new(&invocation.program),
        [shell, words @ ..] => {
            let mut command = Command::new(shell);
            command.args(words).arg(&invocation.program);
            command
        }
    };
    command.args(&invocation.args).current_dir(&invocation.cwd).env("PYTHONDONTWRITEBYTECODE", "1");
    command.envs(invocation.env.iter().map(|(name, value)| (name, value)));
    command
}

fn ended(exit: Exit) -> Ended {
    let (stdout, stderr) = (Vec::new(), Vec::new());
    Ended { exit, stdout, stderr, bytes_omitted: 0, started: Time(1), duration: Duration::ZERO, leaked: 0 }
}

fn exit(status: std::process::ExitStatus) -> Exit {
    use std::os::unix::process::ExitStatusExt;
    status.code().map_or_else(|| Exit::Signal(status.signal().unwrap_or(0)), Exit::Code)
}

/// A copy of the project: nothing that runs may write into the repository.
fn project() -> (tempfile::TempDir, Pytest) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/nasty");
    let copy = tempfile::tempdir().unwrap();
    let copied = Command::new("cp").arg("-r").arg(from.join(".")).arg(copy.path()).status().unwrap();
    assert!(copied.success());
    let python = Some(regatta_testbed::python());
    let pytest = Pytest::new(PytestConfig { python, ..PytestConfig::new(copy.path()) });
    (copy, pytest)
}

fn units(pytest: &Pytest) -> Vec<String> {
    let mut listing = pytest.list();
    let mut found = Vec::new();
    loop {
        match listing.next().unwrap() {
            ListingStep::Run(invocation) => {
                let output = command(&invocation, &[]).output().unwrap();
                let ended =
                    Ended { stdout: output.stdout, stderr: output.stderr, ..ended(exit(output.status)) };
                listing.ended(&ended).unwrap();
            }
            ListingStep::Found { units, .. } => found.extend(units.into_iter().map(|unit| unit.name)),
            ListingStep::Done { .. } => return found,
        }
    }
}

struct Warm {
    session: Box<dyn WarmSession>,
    process: Option<(Child, ChildStdin, BufReader<ChildStdout>)>,
}

impl Warm {
    fn new(pytest: &Pytest, tree: &Path) -> Self {
        Self::at(pytest, Place { tree, slot: 3, slots: 4 })
    }

    fn at(pytest: &Pytest, place: Place<'_>) -> Self {
        let Runner::Warm(session) = pytest.runner(place, None).unwrap() else { panic!("a warm process") };
        Self { session, process: None }
    }

    /// Asks for items; gives records in their order, and the test in which the process ended when it did.
    fn ask(&mut self, items: &[Item]) -> (Vec<(String, Record)>, Option<String>) {
        if self.process.is_none() {
            let shell = "exec 3<&0 4>&1 </dev/null >/dev/null 2>&1; exec \"$@\"";
            let mut command = command(&self.session.invocation(), &["sh", "-c", shell, "sh"]);
            command.env("REGATTA_REQUEST_FD", "3").env("REGATTA_RECORD_FD", "4");
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
            self.process = Some((child, stdin, BufReader::new(stdout)));
        }
        let request = self.session.request(items);
        let (_, requests, records) = self.process.as_mut().unwrap();
        requests.write_all(&[request.as_slice(), b"\n"].concat()).unwrap();
        let mut finished = Vec::new();
        let mut running = None;
        let mut line = Vec::new();
        while records.read_until(b'\n', &mut line).unwrap() > 0 {
            for fact in self.session.record(&line).unwrap() {
                match fact {
                    WarmFact::RequestDone => return (finished, None),
                    WarmFact::Started { test } => running = Some(test),
                    WarmFact::Finished { test, record } => {
                        assert_eq!(running.take().as_ref(), Some(&test));
                        finished.push((test, record));
                    }
                    WarmFact::Ready
                    | WarmFact::Collected { .. }
                    | WarmFact::UnitFinished { .. }
                    | WarmFact::TornDown { .. } => {}
                }
            }
            line.clear();
        }
        let (mut child, ..) = self.process.take().unwrap();
        let exit = exit(child.wait().unwrap());
        let test = running.unwrap_or_default();
        finished.push((test.clone(), self.session.crashed(&test, &ended(exit))));
        (finished, Some(test))
    }
}

fn word(record: &Record) -> String {
    let outcome = serde_json::to_value(record.outcome).unwrap();
    record.native.clone().unwrap_or_else(|| outcome.as_str().unwrap().to_owned())
}

fn plain(tree: &Path) -> BTreeMap<String, String> {
    let results = tree.join("plain.jsonl");
    let mut pytest = Command::new(regatta_testbed::python());
    pytest.args(["-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=--doctest-modules"]);
    pytest.args(["--continue-on-collection-errors", "-p", "every_result"]);
    pytest.args(CRASHING.map(|name| format!("--ignore={name}"))).current_dir(tree);
    let peers = regatta_testbed::workspace().join("xtask/peers");
    pytest.env("PYTHONPATH", peers).env("EVERY_RESULT", &results).env("PYTHONHASHSEED", "0");
    pytest.env("PYTHONDONTWRITEBYTECODE", "1").stdout(Stdio::null()).stderr(Stdio::null());
    assert_eq!(pytest.status().unwrap().code(), Some(1));
    let mut said: BTreeMap<String, String> = BTreeMap::new();
    for line in std::fs::read_to_string(results).unwrap().lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        said.insert(line["test"].as_str().unwrap().into(), line["outcome"].as_str().unwrap().into());
    }
    said
}

#[test]
fn a_project_of_traps_has_the_verdicts_of_plain_pytest() {
    let (tree, pytest) = project();
    let mut warm = Warm::new(&pytest, tree.path());
    let units: Vec<String> =
        units(&pytest).into_iter().filter(|unit| !CRASHING.contains(&unit.as_str())).collect();
    let items: Vec<Item> = units.iter().cloned().map(Item::Unit).collect();
    let (records, crashed) = warm.ask(&items);
    assert_eq!(crashed, None);
    let ours: BTreeMap<String, String> =
        records.iter().map(|(test, record)| (test.clone(), word(record))).collect();
    assert_eq!(ours.len(), records.len(), "one record for each test");
    let mut theirs = plain(tree.path());
    // The plugin that asks pytest sees the report of the test itself, which passed; pytest fails the run for a subtest.
    let subtests = "test_unittest.py::Case::test_subtests";
    assert_eq!(
        (theirs.insert(subtests.into(), "failed".into()), &*ours[subtests]),
        (Some("passed".into()), "failed")
    );
    assert_eq!(ours, theirs);

    // The same tests by name, last first, in the same process: what is shared is set up anew where it has to be.
    let names: Vec<Item> = ours.keys().rev().cloned().map(Item::Test).collect();
    let (again, crashed) = warm.ask(&names);
    assert_eq!((again.len(), crashed), (ours.len(), None));
    let missing = [Item::Test("test_output.py::no_such".into()), Item::Test("no_such.py::test".into())];
    assert_eq!(warm.ask(&missing), (Vec::new(), None), "nothing is said of what isn't there");
}

#[test]
fn tracebacks_name_the_plugins_own_lines_and_a_project_sees_none_of_its_modules() {
    let (tree, pytest) = project();
    let test = "import sys\n\ndef test_frames():\n    frame = sys._getframe()\n    while frame:\n\
        \x20       print(frame.f_code.co_filename, frame.f_lineno, sep='|')\n        frame = frame.f_back\n\
        \x20   print([name for name in sys.modules if 'regatta' in name])\n";
    std::fs::write(tree.path().join("test_frames.py"), test).unwrap();
    let (records, _) = Warm::new(&pytest, tree.path()).ask(&[Item::Unit("test_frames.py".into())]);
    let text = &records[0].1.output.text;
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/pytest/plugin");
    for (file, code) in [
        ("plugin.py", "pytest_runtest_protocol("),
        ("plugin.py", "self.answer("),
        ("process.py", "pytest.main("),
        ("loader.py", ".main()"),
    ] {
        let source = std::fs::read_to_string(sources.join(file)).unwrap();
        let line = source.lines().position(|line| line.contains(code)).unwrap() + 1;
        assert!(text.lines().any(|frame| frame == format!("<regatta/{file}>|{line}")), "{file}: {text}");
    }
    assert_eq!(text.lines().last(), Some("[]"), "{text}");
}

/// As xdist's documentation has it: what is made once is kept beside the folders of all workers. What an earlier run left
/// must not be found there.
const FOR_XDIST: &str = r#"
import os
import pytest

@pytest.fixture(scope="session")
def database(worker_id, tmp_path_factory):
    made = tmp_path_factory.getbasetemp().parent / "made"
    assert not made.exists()
    made.write_text(worker_id)
    return f"database-{worker_id}"

def test_slot(database, tmp_path, pytestconfig):
    assert database == "database-gw3"
    assert tmp_path.parent.name == "popen-gw3"
    assert os.environ["PYTEST_XDIST_WORKER"] == "gw3"
    assert os.environ["PYTEST_XDIST_WORKER_COUNT"] == "4"
    assert not hasattr(pytestconfig, "workerinput")
"#;

#[test]
fn what_was_written_for_xdist_finds_its_slot() {
    let (tree, pytest) = project();
    std::fs::write(tree.path().join("test_slot.py"), FOR_XDIST).unwrap();
    let own = "import pytest\n\n@pytest.fixture\ndef worker_id():\n    return 'own'\n\n\
        def test_own(worker_id):\n    assert worker_id == 'own'\n";
    std::fs::write(tree.path().join("test_own.py"), own).unwrap();
    for _ in 0..2 {
        let mut warm = Warm::new(&pytest, tree.path());
        let (records, crashed) =
            warm.ask(&["test_slot.py", "test_own.py"].map(|name| Item::Unit(name.into())));
        assert_eq!(crashed, None);
        for (test, record) in records {
            assert_eq!(record.outcome, Outcome::Passed, "{test}: {}", record.output.text);
        }
    }
}

#[test]
fn processes_share_no_file_that_the_options_of_pytest_name() {
    let (tree, _) = project();
    let write = |name: &str, text: &str| std::fs::write(tree.path().join(name), text).unwrap();
    write("pytest.ini", "[pytest]\naddopts = --basetemp=temp --junitxml=report.xml\n");
    write(
        "test_kept.py",
        "import os\n\nKEPT = []\n\ndef test_first(tmp_path):\n    KEPT.append(tmp_path / str(os.getpid()))\n    \
         KEPT[0].write_text('mine')\n\ndef test_second(tmp_path):\n    assert KEPT[0].read_text() == 'mine'\n",
    );
    let python = Some(regatta_testbed::python());
    let pytest = Pytest::new(PytestConfig { python, ..PytestConfig::new(tree.path()) });
    let mut slots = [0, 1].map(|slot| Warm::at(&pytest, Place { tree: tree.path(), slot, slots: 2 }));
    for (slot, test) in [(0, "first"), (1, "first"), (0, "second"), (1, "second")] {
        for (test, record) in slots[slot].ask(&[Item::Test(format!("test_kept.py::test_{test}"))]).0 {
            assert_eq!(record.outcome, Outcome::Passed, "{test} {slot}: {}", record.output.text);
        }
    }
    for (mut child, requests, mut records) in slots.into_iter().filter_map(|slot| slot.process) {
        drop(requests);
        std::io::copy(&mut records, &mut std::io::sink()).unwrap();
        assert!(child.wait().unwrap().success());
    }
    assert!(tree.path().join("temp/popen-gw1").exists());
    assert!(!tree.path().join("report.xml").exists(), "a part of the tests looks like all of them");
}

#[test]
fn a_process_that_comes_back_to_a_file_knows_its_fixtures_once() {
    let (tree, pytest) = project();
    let write = |name: &str, text: &str| std::fs::write(tree.path().join(name), text).unwrap();
    std::fs::create_dir(tree.path().join("again")).unwrap();
    write("again/conftest.py", "import pytest\n@pytest.fixture\ndef count():\n    return []\n");
    write(
        "again/test_again.py",
        r#"import pytest

@pytest.fixture
def count(count):
    return [*count, "module"]

@pytest.fixture(autouse=True)
def count_all(count):
    count.append("every")

def test_module(count):
    assert count == ["module", "every"]

class TestClass:
    @pytest.fixture
    def count(self, count):
        return [*count, "class"]

    def setup_method(self):
        self.set_up = getattr(self, "set_up", 0) + 1

    def test_class(self, count):
        assert (count, self.set_up) == (["module", "class", "every"], 1)
"#,
    );
    write("again/test_other.py", "def test_other():\n    pass\n");
    let mut warm = Warm::new(&pytest, tree.path());
    for unit in ["again/test_again.py", "again/test_other.py"].repeat(2) {
        for (test, record) in warm.ask(&[Item::Unit(unit.into())]).0 {
            assert_eq!(record.outcome, Outcome::Passed, "{test}: {}", record.output.text);
        }
    }
}

#[test]
fn an_attempt_knows_nothing_of_those_before_it() {
    let (tree, _) = project();
    let test = r#"import unittest
import pytest

ATTEMPTS = {}

def attempt(name):
    ATTEMPTS[name] = ATTEMPTS.get(name, 0) + 1
    print("attempt", ATTEMPTS[name])
    return ATTEMPTS[name]

@pytest.fixture(scope="session")
def shared():
    assert attempt("shared") == 2

def test_output():
    assert attempt("output") == 2

def test_marker(request):
    marked = request.node.get_closest_marker("seen")
    request.node.add_marker("seen")
    assert attempt("marker") == 2 and not marked

def test_shared(shared):
    pass

def test_subtests(subtests):
    good = attempt("subtests") == 2
    for number in range(2):
        with subtests.test(number=number):
            assert good

class TestInstance:
    seen = 0

    def test_own(self):
        self.seen += 1
        assert attempt("instance") == 2 and self.seen == 1

class Case(unittest.TestCase):
    def test_case(self):
        good = attempt("case") == 2
        for number in range(2):
            with self.subTest(number=number):
                assert good
"#;
    std::fs::write(tree.path().join("test_again.py"), test).unwrap();
    let named =
        ["test_output", "test_marker", "test_shared", "test_subtests", "TestInstance", "Case::test_case"];
    for paths in [Vec::new(), named.map(|name| format!("test_again.py::{name}")).to_vec()] {
        let python = Some(regatta_testbed::python());
        let pytest = Pytest::new(PytestConfig { python, paths, ..PytestConfig::new(tree.path()) });
        let mut warm = Warm::new(&pytest, tree.path());
        let (first, _) = warm.ask(&[Item::Unit("test_again.py".into())]);
        assert_eq!(first.len(), 6);
        for (test, record) in first {
            assert!(matches!(record.outcome, Outcome::Failed | Outcome::Errored), "{test}: {record:?}");
            let (second, _) = warm.ask(&[Item::Test(test.clone())]);
            assert_eq!((second.len(), second[0].1.outcome), (1, Outcome::Passed), "{test}: {second:?}");
            let text = &second[0].1.output.text;
            let said: Vec<&str> = text.lines().filter(|line| line.contains("attempt")).collect();
            assert_eq!(said, ["attempt 2"], "{test}");
        }
    }
}

#[test]
fn a_crash_is_no_pass_and_keeps_what_was_printed() {
    let (tree, pytest) = project();
    let mut warm = Warm::new(&pytest, tree.path());
    let (records, crashed) = warm.ask(&[Item::Unit("test_crash.py".into())]);
    assert_eq!(crashed.as_deref(), Some("test_crash.py::test_exits_at_once"));
    let (_, record) = records.last().unwrap();
    assert_eq!(record.outcome, Outcome::Crashed);
    assert_eq!(record.output.text.trim(), "partial words");
    let rest = ["test_between", "test_segfault"].map(|test| Item::Test(format!("test_crash.py::{test}")));
    let (records, crashed) = warm.ask(&rest);
    assert_eq!(crashed.as_deref(), Some("test_crash.py::test_segfault"));
    assert_eq!(records[0].1.outcome, Outcome::Passed);
    assert!(records[1].1.message.as_ref().unwrap().contains("SIGSEGV"));
    let (_, crashed) = warm.ask(&[Item::Unit("test_import_exits.py".into())]);
    assert_eq!(crashed.as_deref(), Some(""), "no test had begun");
}

#[test]
fn a_process_that_ends_in_a_teardown_keeps_what_came_before_it() {
    let (tree, pytest) = project();
    let test = r#"import os
import pytest

@pytest.fixture
def shared():
    print("set up")
    yield
    print("torn down", flush=True)
    os._exit(3)

def test_fails(shared):
    print("called")
    assert False, "the real reason"

def test_ends():
    os._exit(4)

def test_between():
    print("of another")

def test_ends_too():
    os._exit(5)
"#;
    std::fs::write(tree.path().join("test_ends.py"), test).unwrap();
    let mut warm = Warm::new(&pytest, tree.path());
    let mut ask = |names: &[&str]| {
        let items = names.iter().map(|name| Item::Test(format!("test_ends.py::{name}")));
        let (records, crashed) = warm.ask(&items.collect::<Vec<_>>());
        assert!(crashed.is_some());
        let (_, record) = records.into_iter().next_back().unwrap();
        assert_eq!(record.outcome, Outcome::Crashed);
        record.output.text
    };
    let text = ask(&["test_fails"]);
    for words in ["E       AssertionError: the real reason", "set up", "called", "torn down"] {
        assert_eq!(text.lines().filter(|line| *line == words).count(), 1, "{words}: {text}");
    }
    assert_eq!(ask(&["test_ends"]), "");
    assert_eq!(ask(&["test_between", "test_ends_too"]), "");
}

#[test]
fn a_doctest_that_fails_says_why_in_a_line() {
    let (tree, pytest) = project();
    let docs = [
        (">>> 1 + 2\n4", "expected 4, got 3"),
        (">>> print('a\\nb')\na\nc", "expected a c, got a b"),
        (">>> 5", "expected nothing, got 5"),
        (">>> None\n5", "expected 5, got nothing"),
        (">>> 1 / 0\n5", "ZeroDivisionError('division by zero')"),
    ];
    let functions = docs.iter().enumerate().map(|(at, (doc, _))| {
        let doc = doc.replace('\n', "\n    ");
        format!("def f{at}():\n    r\"\"\"\n    {doc}\n    \"\"\"\n\n")
    });
    std::fs::write(tree.path().join("docs.py"), functions.collect::<String>()).unwrap();
    let (records, _) = Warm::new(&pytest, tree.path()).ask(&[Item::Unit("docs.py".into())]);
    let said: Vec<&str> = records.iter().filter_map(|(_, record)| record.message.as_deref()).collect();
    assert_eq!(said, docs.map(|(_, words)| words));
}

#[test]
fn a_broken_project_says_why_it_cannot_be_listed() {
    let (tree, pytest) = project();
    std::fs::write(
        PathBuf::from(tree.path()).join("conftest.py"),
        "raise RuntimeError('broken at its root')",
    )
    .unwrap();
    let mut listing = pytest.list();
    let Ok(ListingStep::Run(invocation)) = listing.next() else { panic!("one command") };
    let output = command(&invocation, &[]).output().unwrap();
    let ended = Ended { stdout: output.stdout, stderr: output.stderr, ..ended(exit(output.status)) };
    let error = listing.ended(&ended).unwrap_err().to_string();
    assert!(error.contains("broken at its root"), "{error}");
}

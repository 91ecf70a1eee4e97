//! pytest and Cargo projects as they are, without configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::project::Project;

const FRUIT: &str = "
import os
import pytest

def test_apple():
    assert True

@pytest.mark.parametrize('count', [1, 2, 3])
def test_pears(count):
    print('hello')
    assert count < 3

def test_plum():
    pytest.skip('not ripe')
";

#[test]
fn pytest_is_recognised_and_a_filter_names_single_tests() {
    let project = Project::new(&[("test_fruit.py", FRUIT)]);
    // Nothing is remembered yet: the filter has to ask.
    project.python(&["run", "pears[1]"]).expect(0);
    assert_eq!(project.verdicts(), ["test_fruit.py::test_pears[1] passed"]);
    project.python(&["run"]).expect(1);
    let all = [
        "test_fruit.py::test_apple passed",
        "test_fruit.py::test_pears[1] passed",
        "test_fruit.py::test_pears[2] passed",
        "test_fruit.py::test_pears[3] failed",
        "test_fruit.py::test_plum skipped",
    ];
    assert_eq!(project.verdicts(), all);
    let listed = project.python(&["list"]).expect(0);
    assert_eq!(listed.stdout.lines().count(), all.len());
}

#[test]
fn a_filter_chooses_the_same_whether_the_tests_are_remembered_or_not() {
    let test = "import pytest\n@pytest.mark.parametrize('value', ['1.5::x', '2'])\ndef test_p(value): pass\n";
    let project = Project::new(&[("test_v.py", test)]);
    let fresh = project.python(&["list", "1.5::x"]).expect(0);
    assert_eq!(fresh.stdout, "pytest test_v.py::test_p[1.5::x]\n");
    project.python(&["run"]).expect(0);
    assert_eq!(project.python(&["list", "1.5::x"]).expect(0).stdout, fresh.stdout);
}

#[test]
fn a_file_that_cannot_be_collected_is_no_test_in_a_list() {
    let project = Project::new(&[
        ("regatta.toml", "list-timeout = \"10s\"\n[suite.u]\nadapter = \"pytest\"\n"),
        ("test_bad.py", "import nothing_of_that_name\ndef test_a(): pass\n"),
        ("test_good.py", "def test_a(): pass\n"),
    ]);
    let listed = project.python(&["list"]).expect(3);
    let mut lines: Vec<&str> = listed.stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["u test_bad.py", "u test_good.py::test_a"]);
    let said = "error: listed as files, since their tests could not be collected: u test_bad.py\n";
    assert!(listed.stderr.starts_with(said), "{}", listed.stderr);
    project.write("test_bad.py", "import time\ntime.sleep(300)\n");
    let listed = project.python(&["list"]).expect(3);
    assert!(listed.stderr.starts_with(said) && listed.stderr.contains("list-timeout"), "{}", listed.stderr);
    project.python(&["list", "--exclude", "bad"]).expect(0);
}

#[test]
fn a_file_that_skips_itself_is_listed_before_a_run_as_after_it() {
    let project = Project::new(&[
        ("test_good.py", "def test_a(): pass\n"),
        ("test_skipped.py", "import pytest\npytest.importorskip('nothing_of_that_name')\n"),
    ]);
    let lines = "pytest test_good.py::test_a\npytest test_skipped.py\n";
    assert_eq!(project.python(&["list"]).expect(0).stdout, lines);
    project.python(&["run", "test_skipped.py", "--exclude", "good"]).expect(0);
    assert_eq!(project.verdicts(), ["test_skipped.py skipped"]);
    assert_eq!(project.python(&["list"]).expect(0).stdout, lines);
}

#[test]
fn files_that_no_process_can_collect_together_are_listed() {
    // Of one name, and no folder is a package.
    let project = Project::new(&[
        ("a/test_x.py", "def test_a(): pass\n"),
        ("b/test_x.py", "def test_b(): pass\n"),
        ("c/test_x.py", "def test_c(): pass\n"),
    ]);
    let expected = "pytest a/test_x.py::test_a\npytest b/test_x.py::test_b\npytest c/test_x.py::test_c\n";
    assert_eq!(project.python(&["list"]).expect(0).stdout, expected);
}

#[test]
fn a_name_that_could_speak_to_a_terminal_is_shown_as_text() {
    let project = Project::new(&[("test_\u{1b}[31m.py", "def test_a(): pass\n")]);
    let listed = project.python(&["list"]).expect(0);
    assert_eq!(listed.stdout, "pytest test_\\u{1b}[31m.py::test_a\n");
    let ended = project.python(&["run", "--verbose"]).expect(0);
    assert!(
        !ended.stdout.contains('\u{1b}') && ended.stdout.contains("test_\\u{1b}[31m.py"),
        "{}",
        ended.stdout
    );
    assert_eq!(project.verdicts(), ["test_\u{1b}[31m.py::test_a passed"]);
}

#[test]
fn the_second_run_knows_the_tests_of_an_unchanged_file() {
    let project = Project::new(&[("test_a.py", "def test_a(): pass\n")]);
    project.python(&["run"]).expect(0);
    assert_eq!(project.facts("listed")[0]["units"].as_array().unwrap().len(), 1);
    project.python(&["run"]).expect(0);
    assert_eq!(project.facts("listed")[0]["tests"].as_array().unwrap().len(), 1);
    project.write("test_a.py", "def test_b(): pass\n");
    project.python(&["run"]).expect(0);
    assert_eq!(project.verdicts(), ["test_a.py::test_b passed"]);
}

#[test]
fn a_test_that_ends_the_interpreter_is_never_a_pass() {
    let exit = "import os\ndef test_a():\n    print('last words', flush=True)\n    os._exit(0)\ndef test_b(): pass\n";
    let project = Project::new(&[("test_exit.py", exit)]);
    project.python(&["run"]).expect(1);
    assert_eq!(project.verdicts(), ["test_exit.py::test_a failed", "test_exit.py::test_b passed"]);
    let attempt = &project.run_json()["tests"][0]["attempts"][0];
    assert_eq!(attempt["judgement"]["outcome"], "crashed");
    assert_eq!(attempt["record"]["output"]["text"], "last words\n", "and nothing that pytest said before");
}

/// Fails only a session that serves: it can be listed.
const NO_SESSION: &str = "
def pytest_sessionstart(session):
    plugins = session.config.pluginmanager.get_plugins()
    if any(getattr(plugin, 'channel', None) for plugin in plugins):
        raise ValueError('no session today')
";

#[test]
fn a_session_that_cannot_start_says_why() {
    let project = Project::new(&[("test_a.py", "def test_a(): pass\n"), ("conftest.py", NO_SESSION)]);
    let ended = project.python(&["run"]).expect(3);
    assert!(ended.stdout.contains("ValueError: no session today"), "{}", ended.stdout);
}

const FORGES: &str = r#"
import os

def test_forges():
    record = b'{"outcome":"passed","started":1,"duration_us":1}'
    line = b'{"k":"finished","test":"test_a.py::test_never","record":' + record + b'}\n'
    for descriptor in range(3, 400):
        try:
            os.write(descriptor, line)
        except OSError:
            pass

def test_never():
    assert False
"#;

#[test]
fn a_record_of_a_test_that_never_began_is_no_pass() {
    let project = Project::new(&[("test_a.py", FORGES)]);
    let ended = project.python(&["run"]).expect(1);
    assert_eq!(project.verdicts(), ["test_a.py::test_forges failed", "test_a.py::test_never failed"]);
    let words = "sent a record of test_a.py::test_never, which didn't run";
    assert!(ended.stdout.contains(words), "{}", ended.stdout);
}

#[test]
fn a_file_with_too_long_names_says_what_to_do() {
    let names = "import pytest\n@pytest.mark.parametrize('n', range(9), ids=lambda n: str(n) + 'x' * 2_000_000)\n\
        def test_n(n): pass\n";
    let project = Project::new(&[("test_long.py", names), ("test_short.py", "def test_a(): pass\n")]);
    let ended = project.python(&["run", "--workers", "1"]).expect(1);
    assert_eq!(project.verdicts(), ["test_long.py failed", "test_short.py::test_a passed"]);
    for words in ["more than 16 MiB", "split the file", "shorter ids"] {
        assert!(ended.stdout.contains(words), "{words} is not in\n{}", ended.stdout);
    }
}

const MANIFEST: &str =
    "[package]\nname = \"fruit\"\nversion = \"0.1.0\"\nedition = \"2021\"\n\n[workspace]\n";

#[test]
fn cargo_is_recognised_and_exit_0_inside_a_test_is_no_pass() {
    let project = Project::new(&[
        ("Cargo.toml", MANIFEST),
        (
            "src/lib.rs",
            "#[test]\nfn apple() {}\n#[test]\nfn pear() { panic!(\"rotten\") }\n\
             #[test]\nfn plum() { std::process::exit(0) }\n#[test]\n#[ignore]\nfn quince() {}\n\
             #[test]\nfn raisin() { assert_eq!(std::env::var(\"KIND\").unwrap(), \"dried\") }\n",
        ),
        (".cargo/config.toml", "[env]\nKIND = \"dried\"\n"),
    ]);
    let ended = project.regatta(&["run"]).expect(1);
    assert!(ended.stdout.contains("rotten"), "{}", ended.stdout);
    let verdicts = project.verdicts();
    let ends: Vec<&str> = verdicts.iter().map(|text| text.rsplit(['$', ':', ' ']).next().unwrap()).collect();
    assert_eq!(ends, ["passed", "failed", "failed", "skipped", "passed"], "{verdicts:?}");
}

/// Suites and their test cases, each with its class, its name and whether it failed.
fn cases_of_junit(file: &Path) -> BTreeMap<String, BTreeSet<(String, String, bool)>> {
    let report = quick_junit::Report::deserialize(std::fs::read(file).unwrap().as_slice()).unwrap();
    let suites = report.test_suites.into_iter().map(|suite| {
        let cases = suite.test_cases.into_iter().map(|case| {
            let failed = matches!(case.status, quick_junit::TestCaseStatus::NonSuccess { .. });
            (case.classname.unwrap().to_string(), case.name.to_string(), failed)
        });
        (suite.name.to_string(), cases.collect())
    });
    suites.collect()
}

#[test]
fn junit_of_cargo_has_the_suites_and_names_of_nextest() {
    let tests = "#[cfg(test)]\nmod tests {\n    #[test]\n    fn apple() {}\n    #[test]\n    fn pear() { panic!() }\n}\n";
    let project = Project::new(&[
        ("Cargo.toml", MANIFEST),
        ("src/lib.rs", tests),
        ("src/bin/press.rs", &format!("fn main() {{}}\n{tests}")),
        ("tests/basket.rs", "#[test]\nfn full() {}\n"),
        (".config/nextest.toml", "[profile.default.junit]\npath = \"junit.xml\"\n"),
    ]);
    project.regatta(&["run"]).expect(1);
    let ours = cases_of_junit(&project.run_folder().join("junit.xml"));
    let nextest = project.program("cargo", &["nextest", "run", "--no-fail-fast"]).output().unwrap();
    let file = project.path().join("target/nextest/default/junit.xml");
    assert!(file.exists(), "cargo-nextest, which `make install` installs, wrote none: {nextest:?}");
    assert_eq!(ours, cases_of_junit(&file));
    let names: Vec<&String> = ours.keys().collect();
    assert_eq!(names, ["fruit", "fruit::basket", "fruit::bin/press"]);
}

const REBUILDS: &str = r#"
fn rebuild() {
    let binary = std::env::current_exe().unwrap();
    let new = binary.with_extension("new");
    std::fs::copy(&binary, &new).unwrap();
    // It would run as before.
    std::io::Write::write_all(&mut std::fs::File::options().append(true).open(&new).unwrap(), b"anew").unwrap();
    std::fs::rename(&new, &binary).unwrap();
}

#[test]
fn one() { rebuild() }

#[test]
fn other() { rebuild() }
"#;

#[test]
fn a_binary_that_was_rebuilt_in_mid_run_gives_no_verdict() {
    let project = Project::new(&[("Cargo.toml", MANIFEST), ("src/lib.rs", REBUILDS)]);
    let ended = project.regatta(&["run", "--workers", "1"]).expect(3);
    assert!(ended.stdout.contains("was rebuilt under this run"), "{}", ended.stdout);
    // Whichever is second.
    let passed = project.verdicts().iter().filter(|verdict| verdict.ends_with(" passed")).count();
    let unjudged = project.verdicts().iter().filter(|verdict| verdict.ends_with(" unjudged")).count();
    assert_eq!((passed, unjudged), (1, 1));
}

#[test]
fn a_project_that_does_not_build_is_a_fault() {
    let project = Project::new(&[("Cargo.toml", MANIFEST), ("src/lib.rs", "fn broken( {}\n")]);
    let ended = project.regatta(&["run"]).expect(3);
    assert!(ended.stdout.contains("src/lib.rs:1"), "{}", ended.stdout);
}

const SHARED: &str = "
import os, pytest

@pytest.fixture(scope='session')
def database():
    yield os.getpid()
    with open('down', 'a') as file:
        file.write(f'{os.getpid()}\\n')
    if os.path.exists('stuck'):
        print('it would not go')
        raise ValueError('the database is stuck')
";

const USING: &str = "
def test_one(database):
    with open('up', 'a') as file:
        file.write(f'{database}\\n')
";

#[test]
fn what_a_session_shares_is_taken_down_in_every_process_and_its_failure_fails_the_run() {
    let project = Project::new(&[("conftest.py", SHARED), ("test_a.py", USING), ("test_b.py", USING)]);
    let pids = |name: &str| {
        let text = std::fs::read_to_string(project.path().join(name)).unwrap();
        text.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>()
    };
    project.python(&["run", "--workers", "2"]).expect(0);
    assert_eq!(pids("up"), pids("down"));

    project.write("stuck", "");
    let ended = project.python(&["run", "--workers", "1"]).expect(1);
    for words in
        ["TEARDOWN", "ValueError: the database is stuck", "in database", "Failed: 2 tests", "2 passed"]
    {
        assert!(ended.stdout.contains(words), "{words} is not in\n{}", ended.stdout);
    }
    let failed = &project.run_json()["teardowns_failed"][0];
    assert_eq!(failed["message"], "ValueError: the database is stuck");
    assert_eq!(project.facts("teardown_failed").len(), 1);
    assert_eq!(project.facts("run_finished").len(), 1);
}

const MIXED: &str = "
import os

def test_good(): pass

def test_bad(): assert os.path.exists('mended')

def test_flaky():
    if not os.path.exists('seen'):
        open('seen', 'w').close()
        assert False
";

#[test]
fn a_session_that_ends_badly_fails_the_run_whatever_its_tests_did() {
    let finish = "def pytest_sessionfinish(session):";
    let ends = [
        ("import os\ndef pytest_unconfigure(): os._exit(9)".to_owned(), "Code(9)", ""),
        (format!("{finish}\n    raise RuntimeError('no report')"), "Code(1)", "RuntimeError: no report"),
        (format!("{finish} session.exitstatus = 1"), "Code(1)", ""),
        // As a threshold of coverage does.
        (
            "import pytest\n@pytest.hookimpl(hookwrapper=True)\ndef pytest_runtestloop(session):\n    yield\n    \
             session.testsfailed += 1\n\
             def pytest_terminal_summary(terminalreporter): terminalreporter.write('too little is covered')"
                .to_owned(),
            "Code(1)",
            "too little is covered",
        ),
    ];
    let project = Project::new(&[("test_a.py", MIXED)]);
    let run = || {
        let _ = std::fs::remove_file(project.path().join("seen"));
        project.python(&["run", "--workers", "1", "--retries", "1"])
    };
    // What tests did alone is theirs.
    run().expect(1);
    assert_eq!(project.facts("teardown_failed").len(), 0);
    project.write("mended", "");
    let well = run().expect(0);
    assert!(well.stdout.contains("1 flaky"), "{}", well.stdout);
    for (conftest, code, said) in ends {
        project.write("conftest.py", &conftest);
        let ended = run().expect(1);
        for words in ["TEARDOWN", code, said, "2 passed", "1 flaky"] {
            assert!(ended.stdout.contains(words), "{words} is not in\n{}", ended.stdout);
        }
        assert_eq!(project.facts("teardown_failed").len(), 1, "{conftest}");
    }
}

const CASES: &str = "
import pytest
from cases import CASES

@pytest.mark.parametrize('case', CASES)
def test_case(case):
    assert case < 3
";

#[test]
fn a_list_that_comes_from_elsewhere_is_not_taken_from_memory() {
    let project = Project::new(&[("test_a.py", CASES), ("cases.py", "CASES = [1, 2]")]);
    project.python(&["run"]).expect(0);
    // The file is the same, and holds another test.
    project.write("cases.py", "CASES = [2, 3]");
    // In one process: each tells what its tests miss.
    project.python(&["run", "-j", "1"]).expect(1);
    let expected = ["test_a.py::test_case[2] passed", "test_a.py::test_case[3] failed"];
    assert_eq!(project.verdicts(), expected);
    assert_eq!(project.facts("unit_changed").len(), 1);
    project.python(&["run"]).expect(1);
    assert_eq!(project.facts("unit_changed").len(), 0, "it is remembered");
    // The file is the same, and can't be collected any more.
    project.write("cases.py", "raise ValueError('no cases today')");
    let ended = project.python(&["run"]).expect(1);
    assert_eq!(project.verdicts(), ["test_a.py failed"]);
    assert!(ended.stdout.contains("no cases today"), "{}", ended.stdout);
    project.write("cases.py", "CASES = [2]");
    project.python(&["run"]).expect(0);
    assert_eq!(project.verdicts(), ["test_a.py::test_case[2] passed"]);
}

#[test]
fn a_filter_holds_whatever_the_project_says_and_whatever_is_broken_beside() {
    let two = "def test_one(): pass\ndef test_two(): assert False\n";
    for options in ["", "-q", "-v", "-qq --strict-markers"] {
        let project = Project::new(&[
            ("pytest.ini", &format!("[pytest]\naddopts = {options}\n")),
            ("test_a.py", two),
            ("sub/test_b.py", two),
        ]);
        project.python(&["run", "--filter", "*test_one"]).expect(0);
        let expected = ["sub/test_b.py::test_one passed", "test_a.py::test_one passed"];
        assert_eq!(project.verdicts(), expected, "{options}");
        // A file that can't be named is run, to tell what is wrong with it, and takes no other along.
        project.write("test_c.py", "import nowhere\n");
        project.write("test_d.py", "import os\nos._exit(0)\n");
        project.python(&["run", "--filter", "*test_one"]).expect(1);
        let expected = [
            "sub/test_b.py::test_one passed",
            "test_a.py::test_one passed",
            "test_c.py failed",
            "test_d.py failed",
        ];
        assert_eq!(project.verdicts(), expected, "{options}");
    }
}

/// Takes a test away from whoever serves, but not from whoever only names tests.
const AWAY: &str = "
def pytest_collection_modifyitems(config, items):
    plugins = config.pluginmanager.get_plugins()
    if any(getattr(plugin, 'channel', None) for plugin in plugins):
        items[:] = [item for item in items if item.name != 'test_away']
";

#[test]
fn what_was_asked_for_and_not_reported_is_no_pass_and_is_named() {
    let project =
        Project::new(&[("test_a.py", "def test_a(): pass\ndef test_away(): pass\n"), ("conftest.py", AWAY)]);
    let ended = project.python(&["run", "--filter", "*::test_a*"]).expect(3);
    assert_eq!(project.verdicts(), ["test_a.py::test_a passed", "test_a.py::test_away unjudged"]);
    let fault = &project.run_json()["tests"][1]["attempts"][0]["judgement"]["fault"];
    assert_eq!(fault["kind"], "not_reported");
    let named = "NOT REPORTED pytest test_a.py::test_away";
    assert!(ended.stdout.contains(named), "{}", ended.stdout);
}

const BASE: &str = "class Base:\n    def test_old(self): pass\n";
const MORE: &str = "    def test_new(self): assert self.good\n";

#[test]
fn a_filter_and_a_list_find_what_no_earlier_run_saw() {
    let class = |good| format!("from base import Base\nclass TestIt(Base):\n    good = {good}\n");
    let project = Project::new(&[
        ("base.py", BASE),
        ("test_bad.py", &class("False")),
        ("test_good.py", &class("True")),
        ("test_other.py", "def test_other(): pass\n"),
    ]);
    project.python(&["run"]).expect(0);
    // None of the test files changes.
    project.write("base.py", &format!("{BASE}{MORE}"));
    let both = ["test_bad.py::TestIt::test_new failed", "test_good.py::TestIt::test_new passed"];
    for arguments in [["--filter", "test_new"], ["--filter", "*new"], ["--exclude", "other"]] {
        project.python(&[&["run"], &arguments[..]].concat()).expect(1);
        let new: Vec<String> =
            project.verdicts().into_iter().filter(|verdict| verdict.contains("new")).collect();
        assert_eq!(new, both, "{arguments:?}");
    }
    project.python(&["run", "test_bad.py::TestIt::test_new"]).expect(1);
    let listed = project.python(&["list"]).expect(0).stdout;
    let expected = "pytest test_bad.py::TestIt::test_old\npytest test_bad.py::TestIt::test_new\n\
                    pytest test_good.py::TestIt::test_old\npytest test_good.py::TestIt::test_new\n\
                    pytest test_other.py::test_other\n";
    assert_eq!(listed, expected);
    // Those that are gone are no fault.
    project.write("base.py", BASE);
    let gone = project.python(&["run", "--failed"]).expect(4);
    assert!(gone.stderr.contains("what failed last time is not there any more"), "{}", gone.stderr);
    assert_eq!(project.python(&["list", "--filter", "*new"]).expect(4).stdout, "");
    project.python(&["run", "--exclude", "other"]).expect(0);
}

#[test]
fn a_class_that_cannot_be_collected_is_missed_by_no_filter() {
    let broken = "import pytest\nclass TestBad:\n    @pytest.mark.parametrize('x', [1])\n    def test_red(self): pass\n";
    let project = Project::new(&[("test_a.py", broken), ("test_b.py", "def test_red(): pass\n")]);
    project.python(&["run", "test_red"]).expect(1);
    assert_eq!(project.verdicts(), ["test_a.py::TestBad failed", "test_b.py::test_red passed"]);
}

#[test]
fn fixtures_of_conftest_files_are_found_wherever_they_stand() {
    let conftest = |name: &str, more: &str| {
        format!("import pytest\n@pytest.fixture{more}\ndef {name}(): return '{name}'\n")
    };
    let auto = "import pytest\n@pytest.fixture(autouse=True)\ndef set_up(monkeypatch): monkeypatch.setenv('SET', 'up')\n";
    let project = Project::new(&[
        ("conftest.py", &conftest("root", "")),
        ("tests/conftest.py", &format!("{}{auto}", conftest("tests", "(scope='session')"))),
        ("tests/test_a.py", "import os\ndef test_a(root, tests): assert os.environ['SET'] == 'up'\n"),
        ("tests/deep/conftest.py", &conftest("deep", "(scope='package')")),
        (
            "tests/deep/test_b.py",
            "import os\ndef test_b(root, tests, deep): assert os.environ['SET'] == 'up'\n",
        ),
        ("other/conftest.py", &conftest("other", "")),
        ("other/test_c.py", "import os\ndef test_c(root, other): assert 'SET' not in os.environ\n"),
    ]);
    for arguments in [&["run"][..], &["run"], &["run", "--filter", "*test_*"]] {
        project.python(arguments).expect(0);
        assert_eq!(project.verdicts().len(), 3, "{arguments:?}");
    }
}

#[test]
fn junit_can_be_read_whatever_a_test_prints() {
    let project =
        Project::new(&[("test_a.py", "def test_a():\n    print('\\ufffe \\uffff <&> \\0')\n    assert 0\n")]);
    project.python(&["run"]).expect(1);
    let read =
        "import sys, xml.etree.ElementTree as tree\nprint(tree.parse(sys.argv[1]).getroot().get('failures'))";
    let mut python = std::process::Command::new(regatta_testbed::python());
    let read = python.args(["-c", read]).arg(project.run_folder().join("junit.xml")).output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&read.stdout).trim(),
        "1",
        "{}",
        String::from_utf8_lossy(&read.stderr)
    );
}

const ENDS: &str = "
import multiprocessing, os, signal, time
import pytest

def helper():
    time.sleep(1000)

def test_hangs():
    helper()

def test_leaves():
    pytest.exit('that is enough', 0)

def test_ends_a_child(capfd):
    child = multiprocessing.get_context('fork').Process(target=helper)
    child.start()
    child.terminate()
    child.join()
    assert capfd.readouterr().err == ''

def test_has_a_handler_of_its_own():
    told = []
    before = signal.signal(signal.SIGTERM, lambda *_: told.append(1))
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    os.kill(os.getpid(), signal.SIGTERM)
    signal.signal(signal.SIGTERM, before)
    assert told == [1]
";

#[test]
fn a_pytest_test_that_hangs_says_where_it_was_and_one_that_leaves_says_why() {
    let project = Project::new(&[("test_it.py", ENDS)]);
    let ended = project.python(&["run", "-j", "1", "--timeout", "5s"]).expect(1);
    for words in
        ["limit (5 s)", "line 6 in helper", "line 9 in test_hangs", "Exit: that is enough", "test_it.py:12"]
    {
        assert!(ended.stdout.contains(words), "{words} is not in\n{}", ended.stdout);
    }
    let expected = [
        "test_ends_a_child passed",
        "test_hangs failed",
        "test_has_a_handler_of_its_own passed",
        "test_leaves failed",
    ];
    let expected = expected.map(|test| format!("test_it.py::{test}"));
    assert_eq!(project.verdicts(), expected);
}

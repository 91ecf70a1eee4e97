//! Ctrl-C, once and twice; SIGTERM and SIGHUP.

use std::time::Instant;

use nix::sys::signal::Signal;

use crate::project::{DEADLINE, Project, Running, somebody_runs};

fn started(project: &Project) -> Running {
    let mut run = Running::start(project.command(&["run", "-j", "1", "--format", "json"]));
    run.wait_for("\"attempt_started\"");
    run
}

#[test]
fn the_first_signal_lets_what_runs_end_and_hands_out_no_more() {
    let wait = "touch begun; while test ! -e go; do sleep 0.05; done";
    let project = Project::of_commands(&[("first", wait), ("second", wait)]);
    let mut run = started(&project);
    run.signal(Signal::SIGINT);
    run.wait_for("\"cancelled\"");
    project.write("go", "");
    run.wait().expect(130);
    let mut verdicts = project.verdicts();
    verdicts.sort_by_key(|text| text.split(' ').nth(1).map(str::to_owned));
    assert!(verdicts[0].ends_with("passed") && verdicts[1].ends_with("unjudged"), "{verdicts:?}");
}

/// Fixtures that say when they are taken down, and a test's last words: `until_nobody_asks` ends when the worker has
/// closed the pipe on which its process reads requests (the plugin's descriptors begin at 200).
const SHARING: &str = "
import os, pathlib, select, stat
import pytest

def say(word):
    with open('down', 'a') as down:
        down.write(word + ' ')

@pytest.fixture(scope='session', autouse=True)
def session():
    yield
    say('session')
    assert not pathlib.Path('stuck').exists(), 'it is stuck'

@pytest.fixture(scope='module', autouse=True)
def module():
    yield
    say('module')

@pytest.fixture
def until_nobody_asks():
    poll = select.poll()
    for fd in range(200, 300):
        try:
            if stat.S_ISFIFO(os.fstat(fd).st_mode):
                poll.register(fd, 0)
        except OSError:
            pass
    def wait():
        while not any(flags & select.POLLHUP for _, flags in poll.poll()):
            pass
    return wait
";

#[test]
fn the_first_signal_stops_a_batch_after_the_test_that_runs_and_takes_down_what_it_shared() {
    let tests = "import os\n\ndef run(wait):\n    if os.path.exists('waiting'): wait()\n
def test_a(until_nobody_asks): run(until_nobody_asks)
def test_b(until_nobody_asks): run(until_nobody_asks)
def test_c(until_nobody_asks): run(until_nobody_asks)
";
    // A run asks for a whole file, or for the tests that an earlier run found in it.
    for remembered in [false, true] {
        let project = Project::new(&[("conftest.py", SHARING), ("test_it.py", tests)]);
        let down = project.path().join("down");
        if remembered {
            project.python(&["run", "-j", "1"]).expect(0);
            std::fs::remove_file(&down).unwrap();
        }
        project.write("waiting", "");
        let mut run = Running::start(project.python_command(&["run", "-j", "1", "--format", "json"]));
        run.wait_for("\"attempt_started\"");
        run.signal(Signal::SIGINT);
        run.wait().expect(130);
        let verdicts = project.verdicts().join(" ");
        assert_eq!(verdicts.matches(" passed").count(), 1, "{verdicts}");
        assert_eq!(verdicts.matches(" unjudged").count(), 2, "{verdicts}");
        assert_eq!(std::fs::read_to_string(&down).unwrap(), "module session ");
        assert_eq!(project.facts("teardown_failed").len(), 0);
    }
}

#[test]
fn a_run_that_stops_at_the_first_failure_takes_down_what_was_shared_and_says_what_went_wrong() {
    let tests =
        "def test_a(): assert 0\ndef test_b(until_nobody_asks): until_nobody_asks()\ndef test_c(): pass\n";
    let project = Project::new(&[("conftest.py", SHARING), ("test_it.py", tests), ("stuck", "")]);
    let ended = project.python(&["run", "-j", "1", "--fail-fast"]).expect(1);
    let verdicts = project.verdicts();
    // Whether another one had begun when the failure was known is a matter of microseconds.
    let second = ["test_it.py::test_b passed", "test_it.py::test_b unjudged"];
    assert!(second.contains(&verdicts[1].as_str()), "{verdicts:?}");
    assert_eq!([&verdicts[0], &verdicts[2]], ["test_it.py::test_a failed", "test_it.py::test_c unjudged"]);
    assert_eq!(std::fs::read_to_string(project.path().join("down")).unwrap(), "module session ");
    assert!(ended.stdout.contains("AssertionError: it is stuck"), "{}", ended.stdout);
    assert_eq!(project.facts("teardown_failed").len(), 1);
}

/// The test stops the run, as Ctrl-Z and a suspended machine do, for longer than a lease lasts, and goes on for a while.
#[test]
fn a_run_that_was_stopped_goes_on_where_it_was() {
    let project = Project::of_commands(&[("a", "sh freeze.sh")]);
    let script = "until test -s pid; do sleep 0.05; done
        kill -STOP $(cat pid); sleep 8; kill -CONT $(cat pid); sleep 1; echo >> ran\n";
    project.write("freeze.sh", script);
    let run = started(&project);
    project.write("pid", &run.id().to_string());
    run.wait().expect(0);
    let record = project.run_json();
    assert_eq!(record["workers_lost"].as_array().unwrap().len(), 0, "{record}");
    assert_eq!(std::fs::read_to_string(project.path().join("ran")).unwrap(), "\n", "it ran once");
}

#[test]
fn a_signal_is_the_end_of_a_run_that_stops_for_a_failure() {
    let bad = "until test -e go; do sleep 0.05; done; false";
    let project = Project::of_commands(&[("bad", bad), ("long", "sleep 1000")]);
    let mut run = Running::start(project.command(&["run", "-j", "2", "--fail-fast", "--format", "json"]));
    run.wait_for("\"attempt_started\"");
    run.wait_for("\"attempt_started\"");
    project.write("go", "");
    run.wait_for("\"fail_fast\"}");
    run.signal(Signal::SIGTERM);
    run.wait().expect(130);
    assert_eq!(project.run_json()["cancelled"], "interrupted");
}

#[test]
fn the_second_signal_kills_at_once_and_nothing_is_left() {
    let seconds = "86400.25";
    let project = Project::of_commands(&[("a", &format!("setsid sleep {seconds} & sleep {seconds}"))]);
    let mut run = started(&project);
    run.signal(Signal::SIGINT);
    run.wait_for("\"cancelled\"");
    run.signal(Signal::SIGINT);
    run.wait().expect(130);
    assert!(!somebody_runs(seconds));
    assert_eq!(project.verdicts(), ["a unjudged"]);
}

#[test]
fn a_signal_that_kill_may_follow_ends_all_at_once_and_every_file_is_written() {
    let seconds = "86400.75";
    for signal in [Signal::SIGTERM, Signal::SIGHUP] {
        let project = Project::of_commands(&[("a", &format!("sleep {seconds}")), ("b", "true")]);
        let run = started(&project);
        run.signal(signal);
        run.wait().expect(130);
        assert!(!somebody_runs(seconds));
        assert_eq!(project.verdicts(), ["a unjudged", "b unjudged"], "{signal}");
        assert_eq!(project.run_json()["cancelled"], "interrupted");
        assert!(project.run_folder().join("junit.xml").exists());
    }
}

/// Starts a program on a terminal of its own, and closes the terminal when somebody says something in `begun`.
const CLOSED: &str = "
import os, pty, sys
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
open('begun').read()
os.close(terminal)
print('exit', os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
";

#[test]
fn a_terminal_that_is_closed_ends_the_run_and_every_file_is_written() {
    let project = Project::of_commands(&[("a", "echo > begun; sleep 86400.875")]);
    nix::unistd::mkfifo(&project.path().join("begun"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let python = regatta_testbed::python().display().to_string();
    let arguments = ["-c", CLOSED, env!("CARGO_BIN_EXE_regatta"), "run"];
    let ended = Running::start(project.program(&python, &arguments)).wait().expect(0);
    assert_eq!(ended.stdout, "exit 130\n");
    assert_eq!(project.verdicts(), ["a unjudged"]);
    assert_eq!(project.run_json()["exit_code"], 130);
    assert!(project.run_folder().join("junit.xml").exists());
}

#[test]
fn whoever_is_started_to_outlive_its_terminal_does() {
    let project = Project::of_commands(&[("a", "while test ! -e go; do sleep 0.05; done")]);
    let arguments = [env!("CARGO_BIN_EXE_regatta"), "run", "--format", "json"];
    let mut run = Running::start(project.program("nohup", &arguments));
    run.wait_for("\"attempt_started\"");
    run.signal(Signal::SIGHUP);
    project.write("go", "");
    run.wait().expect(0);
}

#[test]
fn whoever_stops_a_run_learns_what_still_runs_and_how_to_end_it() {
    let project = Project::of_commands(&[("first", "while test ! -e go; do sleep 0.05; done")]);
    let mut run = Running::start(project.command(&["run", "-j", "1"]));
    run.wait_for("Run ");
    let deadline = Instant::now() + DEADLINE;
    while !project.ledger().contains("attempt_started") {
        assert!(Instant::now() < deadline, "the test never began");
        std::thread::yield_now();
    }
    run.signal(Signal::SIGINT);
    run.wait_for("Ctrl-C again ends them at once");
    run.wait_for("smoke first");
    project.write("go", "");
    run.wait().expect(130);
}

#[test]
fn what_a_killed_run_left_among_temporary_files_goes_with_the_next() {
    let test = "import os, time\ndef test_a():\n    while not os.path.exists('go'): time.sleep(0.01)\n";
    let project = Project::new(&[("test_a.py", test), ("tmp/other", "")]);
    let run = || {
        let mut command = project.python_command(&["run", "-j", "1", "--format", "json"]);
        command.env("TMPDIR", project.path().join("tmp"));
        let mut run = Running::start(command);
        run.wait_for("\"attempt_started\"");
        run
    };
    let ours = || {
        let names = std::fs::read_dir(project.path().join("tmp")).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("regatta-")).collect::<Vec<_>>()
    };
    let killed = run();
    killed.signal(Signal::SIGKILL);
    killed.wait();
    let left = ours();
    assert_eq!(left.len(), 1, "nobody was there to remove it");
    let next = run();
    assert!(!ours().contains(&left[0]), "{:?}", ours());
    project.write("go", "");
    next.wait().expect(0);
    assert_eq!(ours(), [""; 0]);
    assert!(project.path().join("tmp/other").exists());
}

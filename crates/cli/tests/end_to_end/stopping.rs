//! Ctrl-C, once and twice; and SIGTERM.

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

#[test]
fn the_first_signal_stops_a_batch_after_the_test_that_runs() {
    let wait =
        "import os, time\n\ndef wait():\n    while not os.path.exists('go'):\n        time.sleep(0.05)\n";
    let tests = "from wait import wait\n\ndef test_a(): wait()\ndef test_b(): wait()\ndef test_c(): wait()\n";
    let project = Project::new(&[("wait.py", wait), ("test_it.py", tests), ("pytest.ini", "[pytest]\n")]);
    let mut run = Running::start(project.python_command(&["run", "-j", "1", "--format", "json"]));
    run.wait_for("\"attempt_started\"");
    run.signal(Signal::SIGINT);
    run.wait_for("\"cancelled\"");
    project.write("go", "");
    run.wait().expect(130);
    assert_eq!(
        project.verdicts(),
        ["test_it.py::test_a passed", "test_it.py::test_b unjudged", "test_it.py::test_c unjudged"]
    );
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
fn a_service_manager_s_signal_kills_at_once_and_every_file_is_written() {
    let seconds = "86400.75";
    let project = Project::of_commands(&[("a", &format!("sleep {seconds}")), ("b", "true")]);
    let run = started(&project);
    run.signal(Signal::SIGTERM);
    run.wait().expect(130);
    assert!(!somebody_runs(seconds));
    assert_eq!(project.verdicts(), ["a unjudged", "b unjudged"]);
    assert_eq!(project.run_json()["cancelled"], "interrupted");
    assert!(project.run_folder().join("junit.xml").exists());
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

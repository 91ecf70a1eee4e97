//! Verdicts and exit codes, on commands.

use nix::sys::signal::Signal;

use crate::project::{Project, Running, somebody_runs};

#[test]
fn all_passed_is_0_and_leaves_its_files() {
    let project = Project::of_commands(&[("a", "true"), ("b", "echo hi")]);
    let ended = project.regatta(&["run"]).expect(0);
    assert!(ended.stdout.contains("2 tests") && ended.stdout.contains("2 passed"), "{}", ended.stdout);
    assert_eq!(project.verdicts(), ["a passed", "b passed"]);
    let run = project.run_json();
    assert_eq!((run["schema"].as_u64(), run["exit_code"].as_u64()), (Some(1), Some(0)));
    assert_eq!(run["tests"][1]["attempts"][0]["record"]["output"]["text"], "hi\n");
    assert_eq!(project.facts("run_finished").len(), 1);
    assert!(project.path().join(".regatta/.gitignore").exists());
}

#[test]
fn a_failure_is_1_and_is_shown_in_full() {
    let project = Project::of_commands(&[("good", "true"), ("bad", "echo oh no; exit 3")]);
    let ended = project.regatta(&["run"]).expect(1);
    assert!(ended.stdout.contains("| oh no") && ended.stdout.contains("exit status 3"), "{}", ended.stdout);
    assert!(!ended.stdout.contains('\u{1b}'), "a pipe gets no colours");
    assert_eq!(project.verdicts(), ["bad failed", "good passed"]);
}

#[test]
fn colours_come_when_they_are_asked_for() {
    let project = Project::of_commands(&[("bad", "exit 3")]);
    let ended = project.regatta(&["run", "--color", "always"]).expect(1);
    assert!(ended.stdout.contains("\u{1b}[31"), "{}", ended.stdout);
    project.regatta(&["show", "--color", "always", "--log", "debug"]).expect(1);
}

#[test]
fn flaky_is_0_with_every_attempt_on_record() {
    let project = Project::of_commands(&[("flaky", "test -e seen || { touch seen; exit 1; }")]);
    let ended = project.regatta(&["run", "--retries", "2"]).expect(0);
    assert!(ended.stdout.contains("attempt 2 of 2"), "{}", ended.stdout);
    assert_eq!(project.verdicts(), ["flaky flaky"]);
    let file = std::fs::read(project.run_folder().join("junit.xml")).unwrap();
    let junit = quick_junit::Report::deserialize(file.as_slice()).unwrap();
    let case = &junit.test_suites[0].test_cases[0];
    let quick_junit::TestCaseStatus::Success { flaky_runs } = &case.status else { panic!("{case:?}") };
    assert_eq!(flaky_runs.len(), 1);
}

#[test]
fn time_out_ends_the_whole_tree_and_keeps_what_was_printed() {
    let seconds = "86400.125";
    let project =
        Project::of_commands(&[("slow", &format!("setsid sleep {seconds} & echo partial; sleep {seconds}"))]);
    let ended = project.regatta(&["run", "--timeout", "550ms"]).expect(1);
    assert!(ended.stdout.contains("ran longer than its limit (0.55 s)"), "{}", ended.stdout);
    let run = project.run_json();
    let attempt = &run["tests"][0]["attempts"][0];
    assert_eq!(attempt["judgement"]["outcome"], "timed_out");
    assert_eq!(attempt["record"]["output"]["text"], "partial\n");
    assert!(!somebody_runs(seconds));
}

#[test]
fn fail_fast_hands_out_no_more_and_is_1() {
    let commands: Vec<(String, &str)> =
        (0..200).map(|n| (format!("t{n}"), if n == 0 { "exit 1" } else { "sleep 0.1" })).collect();
    let commands: Vec<(&str, &str)> = commands.iter().map(|(name, run)| (name.as_str(), *run)).collect();
    let project = Project::of_commands(&commands);
    let ended = project.regatta(&["run", "--fail-fast", "-j", "1"]).expect(1);
    assert!(ended.stdout.contains("were not run to their end"), "{}", ended.stdout);
    assert_eq!(project.run_json()["cancelled"], "fail_fast");
}

#[test]
fn a_suite_without_tests_is_4_unless_a_filter_left_it_none() {
    let project = Project::new(&[
        (
            "regatta.toml",
            "[suite.smoke]\nadapter = \"commands\"\nfile = \"list.txt\"\n\
             [suite.moved]\nadapter = \"commands\"\nfile = \"empty.txt\"\n",
        ),
        ("list.txt", "one: true\n"),
        ("empty.txt", "# all of them have moved\n"),
    ]);
    let ended = project.regatta(&["run"]).expect(4);
    let last = "Incomplete: 1 test in ";
    assert!(ended.stdout.contains(last) && !ended.stdout.contains("Passed"), "{}", ended.stdout);
    assert!(ended.stdout.contains("Suite moved has no tests."), "{}", ended.stdout);
    assert!(ended.stderr.contains("error: no tests were found in suite moved"), "{}", ended.stderr);
    assert_eq!(project.run_json()["exit_code"], 4);
    project.regatta(&["show"]).expect(4);
    let listed = project.regatta(&["list"]).expect(4);
    assert_eq!(listed.stdout, "smoke one\n");
    assert!(listed.stderr.contains("error: no tests were found in suite moved"), "{}", listed.stderr);
    project.regatta(&["list", "one"]).expect(0);
    for filtered in [&["run", "one"][..], &["run", "--exclude", "two"], &["run", "--suite", "smoke"]] {
        let ended = project.regatta(filtered).expect(0);
        assert!(ended.stdout.contains("Passed: 1 test in "), "{}", ended.stdout);
        assert!(!ended.stdout.contains("has no tests"), "{}", ended.stdout);
    }
    project.regatta(&["show"]).expect(0);
    project.write("list.txt", "one: false\n");
    project.regatta(&["run"]).expect(1);
    project.regatta(&["run", "--failed"]).expect(1);
}

#[test]
fn filters_choose_and_none_left_is_4() {
    let project = Project::of_commands(&[("a one", "true"), ("a two", "true"), ("b[1]", "true")]);
    project.regatta(&["run", "b[1]"]).expect(0);
    assert_eq!(project.verdicts(), ["b[1] passed"]);
    let listed = project.regatta(&["list", "--filter", "a *", "--exclude", "two"]).expect(0);
    assert_eq!(listed.stdout, "smoke a one\n");
    for command in ["run", "list"] {
        let ended = project.regatta(&[command, "nothing like it"]).expect(4);
        assert!(ended.stderr.contains("error: no tests were found\n"), "{}", ended.stderr);
    }
    Project::new(&[]).regatta(&["run"]).expect(4);
}

#[test]
fn a_question_mark_is_one_character_in_a_filter_and_in_a_route() {
    let project = Project::of_commands(&[("t-é", "true"), ("t-xy", "true")]);
    assert_eq!(project.regatta(&["list", "t-?"]).expect(0).stdout, "smoke t-é\n");
    assert_eq!(project.regatta(&["list", "t-??"]).expect(0).stdout, "smoke t-xy\n");
    let suite = std::fs::read_to_string(project.path().join("regatta.toml")).unwrap();
    let route = "[[suite.smoke.route]]\ntests = \"t-?\"\nqueue = \"letters\"\n";
    project.write("regatta.toml", &format!("{suite}{route}"));
    project.regatta(&["run"]).expect(0);
    let sent = project.facts("batch_sent");
    let to_letters = sent.iter().find(|fact| fact["queue"] == "letters").expect("é is a letter");
    assert_eq!(to_letters["items"][0][0]["test"], "t-é");
}

#[test]
fn json_is_the_ledger_itself() {
    let project = Project::of_commands(&[("a", "true"), ("b", "false")]);
    let ended = project.regatta(&["run", "--format", "json"]).expect(1);
    let ledger = std::fs::read_to_string(project.run_folder().join("events.jsonl")).unwrap();
    assert_eq!(ended.stdout, ledger);
}

#[test]
fn the_next_run_begins_with_what_failed_and_can_be_only_that() {
    let project =
        Project::of_commands(&[("a", "true"), ("b", "sleep 0.3"), ("c", "exit 1"), ("d", "sleep 0.1")]);
    project.regatta(&["run"]).expect(1);
    project.regatta(&["run", "-j", "1"]).expect(1);
    // As they were handed out: what is under way at once may overtake.
    let batches = project.facts("batch_sent");
    let items = batches.iter().flat_map(|fact| fact["items"].as_array().unwrap());
    let order: Vec<&str> = items.map(|item| item[0]["test"].as_str().unwrap()).collect();
    assert_eq!(order, ["c", "b", "d", "a"]);
    let results = project.path().join("results");
    project.regatta(&["run", "--failed", "--results", "results"]).expect(1);
    let run: serde_json::Value =
        serde_json::from_slice(&std::fs::read(results.join("run.json")).unwrap()).unwrap();
    assert_eq!(run["totals"]["tests"], 1);
    let shown = project.regatta(&["show", "results"]).expect(1);
    assert!(shown.stdout.contains("1 test in"), "{}", shown.stdout);
}

#[test]
fn a_damaged_history_is_said_and_is_no_hindrance() {
    let project = Project::of_commands(&[("a", "true")]);
    project.write(".regatta/store.db", &"no database at all, whatever it may look like. ".repeat(50));
    let ended = project.regatta(&["run"]).expect(0);
    assert!(ended.stderr.contains("goes on without history"), "{}", ended.stderr);
}

#[test]
fn output_that_cannot_be_written_is_3_and_a_reader_that_left_is_nothing() {
    let project = Project::of_commands(&[("a", "true")]);
    for arguments in [&["run", "--format", "json"][..], &["run"], &["list"], &["show"]] {
        let full = std::fs::File::create("/dev/full").unwrap();
        let mut command = project.command(arguments);
        let ended = command.stdout(full).output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(3), "{arguments:?}: {said}");
        assert!(said.contains("error: the standard output can't be written"), "{arguments:?}: {said}");
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let ended = project.command(arguments).stdout(writer).output().unwrap();
        assert_eq!(ended.status.code(), Some(0), "{arguments:?}: {ended:?}");
    }
    assert_eq!(project.verdicts(), ["a passed"]);
}

#[test]
fn a_run_that_could_not_start_leaves_nothing_and_takes_nothing_away() {
    let project = Project::of_commands(&[("a", "true")]);
    project.regatta(&["run", "--results", "results"]).expect(0);
    project.regatta(&["run"]).expect(0);
    let runs = || std::fs::read_dir(project.path().join(".regatta/runs")).unwrap().count();
    let nobody = "amqp://127.0.0.1:1";
    project.regatta(&["run", "--broker", nobody]).expect(3);
    project.regatta(&["run", "--broker", nobody, "--results", "results"]).expect(3);
    assert_eq!(runs(), 1);
    project.regatta(&["show", "results"]).expect(0);
    // What a process left that was killed before its first fact.
    std::fs::create_dir_all(project.path().join(".regatta/runs/20991231-235959-empty")).unwrap();
    let shown = project.regatta(&["show"]).expect(0);
    assert!(shown.stdout.contains("1 test in"), "{}", shown.stdout);
}

#[test]
fn a_folder_for_results_is_one_runs_at_a_time_and_a_dead_ones_is_free() {
    let project = Project::of_commands(&[("a", "until test -e go; do sleep 0.01; done")]);
    let arguments = ["run", "--results", "results"];
    let mut killed = Running::start(project.command(&arguments));
    killed.wait_for("Run ");
    killed.signal(Signal::SIGKILL);
    killed.wait();
    let mut first = Running::start(project.command(&arguments));
    first.wait_for("Run ");
    let second = project.regatta(&arguments).expect(2);
    for words in ["results is in use", "another run writes there", "wait for its end", "--results DIR"] {
        assert!(second.stderr.contains(words), "{words} is not in\n{}", second.stderr);
    }
    project.write("go", "");
    first.wait().expect(0);
    let ledger = std::fs::read_to_string(project.path().join("results/events.jsonl")).unwrap();
    assert_eq!(ledger.matches("\"run_started\"").count(), 1);
    project.regatta(&arguments).expect(0);
}

#[test]
fn nothing_that_failed_is_said_and_is_4() {
    let project = Project::of_commands(&[("a", "true"), ("b", "test -e good")]);
    for command in ["run", "list"] {
        let ended = project.regatta(&[command, "--failed"]).expect(4);
        assert!(ended.stderr.starts_with("error: no earlier run is known here"), "{}", ended.stderr);
    }
    project.regatta(&["run"]).expect(1);
    assert_eq!(project.regatta(&["list", "--failed"]).expect(0).stdout, "smoke b\n");
    project.write("good", "");
    project.regatta(&["run", "--failed"]).expect(0);
    for command in ["run", "list"] {
        let ended = project.regatta(&[command, "--failed"]).expect(4);
        assert_eq!(
            ended.stderr,
            "error: nothing failed last time\nhint: without --failed all tests are run\n"
        );
    }
}

#[test]
fn what_failed_is_remembered_while_others_are_run_and_until_it_is_gone() {
    let project = Project::of_commands(&[("a", "true"), ("b", "false")]);
    project.regatta(&["run"]).expect(1);
    for _ in 0..11 {
        project.regatta(&["run", "a"]).expect(0);
    }
    assert_eq!(project.regatta(&["list", "--failed"]).expect(0).stdout, "smoke b\n");
    project.write("list.txt", "a: true\n");
    project.regatta(&["run", "a"]).expect(0);
    let ended = project.regatta(&["list", "--failed"]).expect(4);
    assert!(
        !ended.stderr.contains("nothing failed last time"),
        "a filter says nothing of b: {}",
        ended.stderr
    );
    project.regatta(&["run"]).expect(0);
    let ended = project.regatta(&["list", "--failed"]).expect(4);
    assert!(ended.stderr.contains("nothing failed last time"), "{}", ended.stderr);
}

#[test]
fn a_path_that_a_shell_completes_is_a_pattern() {
    let project = Project::of_commands(&[("t/a::x", "true"), ("t/b::x", "true"), ("./own", "true")]);
    project.write("t/a", "");
    let absolute = project.path().join("t/a").display().to_string();
    std::os::unix::fs::symlink(project.path(), project.path().join("link")).unwrap();
    let through_link = project.path().join("link/t/a::x").display().to_string();
    for pattern in ["./t/a", "./t/a::*", &absolute, &format!("{absolute}*"), &through_link] {
        let listed = project.regatta(&["list", pattern]);
        assert_eq!(listed.stdout, "smoke t/a::x\n", "{pattern}");
    }
    assert_eq!(project.regatta(&["list", "./own*"]).expect(0).stdout, "smoke ./own\n");
    let others = project.regatta(&["list", "--exclude", "./t/a", "t/*"]).expect(0);
    assert_eq!(others.stdout, "smoke t/b::x\n");
}

#[test]
fn a_file_that_cannot_be_written_keeps_no_other_from_being() {
    let project = Project::of_commands(&[("a", "true")]);
    project.write("results/.run.json.unfinished/file", "in the way");
    let ended = project.regatta(&["run", "--results", "results"]).expect(3);
    assert!(ended.stdout.contains("1 passed") && ended.stderr.contains("can't be written"), "{ended:?}");
    assert!(project.path().join("results/junit.xml").exists());
}

#[test]
fn a_full_disk_ends_the_run_and_what_is_known_is_shown() {
    // What a process that may write no larger file gets (EFBIG), as from a disk that is full (ENOSPC).
    let project = Project::of_commands(&[("a", "true"), ("b", "seq 9999"), ("c", "sleep 86400.5")]);
    let binary = env!("CARGO_BIN_EXE_regatta");
    let limited = format!("trap \"\" XFSZ; ulimit -f 32; exec {binary} run -j 1");
    let ended = Running::start(project.program("sh", &["-c", &limited])).wait().expect(3);
    assert!(ended.stdout.contains("1 passed"), "{ended:?}");
    assert!(ended.stderr.contains("ledger"), "{ended:?}");
    assert_eq!(project.verdicts(), ["a passed", "b -", "c -"]);
    project.regatta(&["show"]).expect(3);
    let files = std::fs::read_dir(project.run_folder()).unwrap();
    let mut names: Vec<_> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["events.jsonl", "junit.xml", "run.json"]);
}

#[test]
fn whoever_only_looks_leaves_nothing_behind() {
    let project = Project::of_commands(&[("a", "true")]);
    project.regatta(&["list"]).expect(0);
    for arguments in [&["show"][..], &["show", "20991231-235959-empty"]] {
        let ended = project.regatta(arguments).expect(2);
        assert!(ended.stderr.starts_with("error: there are no runs in ."), "{}", ended.stderr);
    }
    assert!(!project.path().join(".regatta").exists());
}

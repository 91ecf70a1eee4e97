//! What is wrong in `regatta.toml` is shown where it is.

use crate::project::Project;

fn wrong(text: &str) -> String {
    let project = Project::new(&[("regatta.toml", text)]);
    let ended = project.regatta(&["run", "--config", "regatta.toml"]).expect(2);
    assert_eq!(ended.stdout, "");
    ended.stderr.trim_end().lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

#[test]
fn an_unknown_key_and_what_was_meant() {
    insta::assert_snapshot!(wrong("workers = 2\nretrys = 1\n"), @r#"
    error: regatta.toml says something that regatta doesn't understand
      × unknown key `retrys`, expected one of `retries`, `backoff`, `backoff-max`, `timeout`, `list-timeout`, `workers`, `fail-fast`, `give-up-after`, `env`, `suite`
       ╭─[regatta.toml:2:1]
     1 │ workers = 2
     2 │ retrys = 1
       · ───┬──
       ·    ╰── here
       ╰────
      help: did you mean `retries`?
    "#);
}

#[test]
fn an_unknown_key_of_a_suite() {
    insta::assert_snapshot!(wrong("[suite.unit]\nadapter = \"pytest\"\npath = [\"t\"]\n"), @r#"
    error: regatta.toml says something that regatta doesn't understand
      × unknown key `path`, expected one of `adapter`, `paths`, `args`, `python`, `split-files`, `manifest`, `env`, `file`, `test`, `queue`, `route`
       ╭─[regatta.toml:3:1]
     2 │ adapter = "pytest"
     3 │ path = ["t"]
       · ──┬─
       ·   ╰── here
       ╰────
      help: did you mean `paths`?
    "#);
}

#[test]
fn a_wrong_type_and_a_wrong_word() {
    insta::assert_snapshot!(wrong("retries = \"two\"\n"), @r#"
    error: regatta.toml says something that regatta doesn't understand
      × invalid type: string "two", expected a whole number, not below 0
       ╭─[regatta.toml:1:11]
     1 │ retries = "two"
       ·           ──┬──
       ·             ╰── here
       ╰────
    "#);
    insta::assert_snapshot!(wrong("[suite.unit]\nadapter = \"nose\"\n"), @r#"
    error: regatta.toml says something that regatta doesn't understand
      × unknown word `nose`, expected one of `pytest`, `cargo`, `commands`
       ╭─[regatta.toml:2:11]
     1 │ [suite.unit]
     2 │ adapter = "nose"
       ·           ───┬──
       ·              ╰── here
       ╰────
    "#);
}

#[test]
fn a_span_of_time() {
    insta::assert_snapshot!(wrong("timeout = \"soon\"\n"), @r#"
    error: regatta.toml says something that regatta doesn't understand
      × "soon" is no span of time such as "30s" (expected number at 0)
       ╭─[regatta.toml:1:11]
     1 │ timeout = "soon"
       ·           ───┬──
       ·              ╰── here
       ╰────
    "#);
}

#[test]
fn no_toml_at_all() {
    insta::assert_snapshot!(wrong("retries = \n"), @r#"
    error: regatta.toml says something that regatta doesn't understand
      × string values must be quoted, expected literal string
       ╭─[regatta.toml:1:11]
     1 │ retries =
       ·           ▲
       ·           ╰── here
       ╰────
    "#);
}

#[test]
fn a_key_of_another_adapter() {
    insta::assert_snapshot!(wrong("[suite.unit]\nadapter = \"cargo\"\npaths = [\"t\"]\n"), @r#"
    error: regatta.toml says something that regatta doesn't understand
      × `paths` says nothing to the adapter cargo
       ╭─[regatta.toml:3:1]
     2 │ adapter = "cargo"
     3 │ paths = ["t"]
       · ──┬──
       ·   ╰── here
       ╰────
      help: remove it, or choose another adapter
    "#);
}

#[test]
fn arguments_that_no_test_binary_would_get() {
    insta::assert_snapshot!(wrong("[suite.c]\nadapter = \"cargo\"\nargs = [\"--release\", \"--\", \"--ignored\"]\n"), @r#"
    error: regatta.toml says something that regatta doesn't understand
      × what follows `--` is for test binaries, which get their arguments from regatta alone
       ╭─[regatta.toml:3:22]
     2 │ adapter = "cargo"
     3 │ args = ["--release", "--", "--ignored"]
       ·                      ──┬─
       ·                        ╰── here
       ╰────
      help: choose tests with --filter and --exclude; ignored tests can't be asked for
    "#);
}

#[test]
fn whatever_is_wrong_is_shown_where_it_is() {
    let suite = "[suite.s]\nadapter = \"commands\"\n";
    let test = |name: &str| format!("[[suite.s.test]]\nname = \"{name}\"\nrun = \"true\"\n");
    let table = [
        ("workers = 1025\n".to_owned(), "1:11", "expected a number from 1 to 1024"),
        ("retries = 101\n".to_owned(), "1:11", "expected a number from 0 to 100"),
        ("[suite.\"\"]\nadapter = \"pytest\"\n".to_owned(), "1:8", "a suite needs a name"),
        ("[env]\nA = \"b\"\n\"A=B\" = \"x\"\n".to_owned(), "3:1", "can't name a variable"),
        ("[env]\n\"\" = \"x\"\n".to_owned(), "2:1", "can't name a variable"),
        ("[env]\nA = \"\\u0000\"\n".to_owned(), "2:5", "can't hold NUL"),
        (format!("{suite}file = \"l\"\nenv = {{ \"=\" = \"\" }}\n"), "4:9", "can't name a variable"),
        (format!("{suite}file = \"l\"\n"), "3:8", "No such file"),
        (suite.to_owned(), "1:8", "needs either `file` or"),
        (
            format!("{suite}file = \"l\"\n{}", test("a")),
            "1:8",
            "`file` or `[[suite.NAME.test]]`, and not both",
        ),
        (
            "[suite.s]\nadapter = \"pytest\"\npaths = [\".\", \"no/t.py::a\"]\n".to_owned(),
            "3:15",
            "no/t.py is not there",
        ),
        ("[suite.s]\nadapter = \"pytest\"\npython = \"no/py\"\n".to_owned(), "3:10", "no/py is not there"),
        (
            "[suite.s]\nadapter = \"cargo\"\nmanifest = \"no/Cargo.toml\"\n".to_owned(),
            "3:12",
            "no/Cargo.toml is not there",
        ),
        (
            "[suite.s]\nadapter = \"cargo\"\nargs = [\"--test\", \"a\", \"--release\", \"b\"]\n".to_owned(),
            "3:37",
            "the name of a test",
        ),
        ("[suite.s]\nadapter = \"cargo\"\nargs = [\"a::b\"]\n".to_owned(), "3:9", "the name of a test"),
        (format!("{suite}{}{}", test("a"), test("a")), "7:8", "two commands are called \"a\""),
        (format!("{suite}{}", test(" ")), "4:8", "a command needs a name"),
        (format!("{suite}{}", test("a\\nb\\u001b[31m")), "4:8", "a name, without control characters"),
        (format!("{suite}queue = \"\"\n{}", test("a")), "3:9", "has 1 to 200 bytes"),
        ("[suite.s]\nadapter = \"pytest\"\npython = \"\"\n".to_owned(), "3:10", "a path can't be empty"),
        (format!("{suite}queue = \"amq.x\"\n{}", test("a")), "3:9", "the broker's own"),
        // Columns count characters, and a mark at the beginning is none.
        ("env = { \"é\" = \"a\", \"=\" = \"\" }\n".to_owned(), "1:20", "can't name a variable"),
        ("env = { \"éé\" = 1 }\n".to_owned(), "1:16", "expected a string"),
        ("\u{feff}retrys = 1\n".to_owned(), "1:1", "did you mean `retries`?"),
        ("\u{feff}[suite.\"\"]\nadapter = \"pytest\"\n".to_owned(), "1:8", "a suite needs a name"),
        (
            format!(
                "{suite}{}[[suite.s.route]]\ntests = \"*\"\nqueue = \"{}\"\n",
                test("a"),
                "q".repeat(201)
            ),
            "8:9",
            "has 1 to 200 bytes",
        ),
    ];
    for (text, place, words) in table {
        let said = wrong(&text);
        assert!(said.contains(&format!("[regatta.toml:{place}]")) && said.contains(words), "{text}{said}");
    }
    let project =
        Project::new(&[("regatta.toml", &format!("{suite}file = \"l\"\n")), ("l", "a: true\nb true\n")]);
    let said = project.regatta(&["list"]).expect(2).stderr;
    assert!(said.contains("regatta.toml:3:8]") && said.contains("line 2: \"b true\""), "{said}");
}

#[test]
fn a_suite_that_nobody_asked_for_may_lack_its_files() {
    let project = Project::new(&[(
        "regatta.toml",
        "[suite.p]\nadapter = \"pytest\"\npython = \"no/py\"\n[suite.c]\nadapter = \"commands\"\n\
             [[suite.c.test]]\nname = \"a\"\nrun = \"true\"\n",
    )]);
    project.regatta(&["list", "--suite", "c"]).expect(0);
    for arguments in [&["list"][..], &["run", "--suite", "p"]] {
        assert!(project.regatta(arguments).expect(2).stderr.contains("regatta.toml:3:10"));
    }
}

#[test]
fn what_is_empty_says_nothing() {
    let project = Project::of_commands(&[("a", "true")]);
    assert!(project.regatta(&["list", "--exclude", ""]).expect(0).stdout.contains("smoke a"));
    for variable in ["REGATTA_BROKER", "REGATTA_BROKER_PASSWORD_FILE"] {
        let mut run = project.command(&["run"]);
        let ended = run.env(variable, "").output().unwrap();
        assert_eq!(ended.status.code(), Some(0), "{variable}: {ended:?}");
    }
}

#[test]
fn a_folder_that_is_a_file_and_a_ledger_that_can_not_be_read() {
    let project = Project::of_commands(&[("a", "true")]);
    let said = project.regatta(&["run", "-C", "list.txt"]).expect(2).stderr;
    assert!(said.contains("list.txt is no folder"), "{said}");
    for (ledger, words) in [
        ("nonsense\n", "can't be read"),
        ("{\"at\":1,\"event\":\"run_started\",\"schema\":99}\n", "newer regatta"),
    ] {
        project.write("kept/events.jsonl", ledger);
        let said = project.regatta(&["show", "kept"]).expect(2).stderr;
        assert!(said.contains(words) && !said.contains("there is no run"), "{said}");
    }
}

#[test]
fn usage_errors_are_2() {
    let project = Project::new(&[]);
    for arguments in
        [&["run", "--workers", "0"][..], &["walk"], &["run", "--broker", "http://a"], &["worker"]]
    {
        project.regatta(arguments).expect(2);
    }
    project.regatta(&["--help"]).expect(0);
    for (arguments, words) in [
        (["--queues", ""], "the name of a queue has 1 to 200 bytes"),
        (["--queues", "regatta,amq.x"], "the broker's own"),
        (["--name", "a b"], "no white space"),
    ] {
        let worker = [&["worker", "--broker", "amqp://localhost"], &arguments[..]].concat();
        let said = project.regatta(&worker).expect(2).stderr;
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn without_a_command_it_says_what_it_is_for() {
    let said = Project::new(&[]).regatta(&[]).expect(2).stderr;
    assert!(said.starts_with("Runs a project's tests, spread over workers"), "{said}");
}

#[test]
fn a_log_filter_that_says_nothing_is_an_error_with_what_to_do() {
    let project = Project::of_commands(&[("a", "true")]);
    for filter in ["x=[", "regatta=loud", "info,a=b=c"] {
        let ended = project.regatta(&["list", "--log", filter]).expect(2);
        let begin = format!("error: the log filter {filter:?} can't be used\ncaused by: ");
        assert!(ended.stderr.starts_with(&begin) && ended.stdout.is_empty(), "{ended:?}");
        assert!(ended.stderr.contains("hint: a level"), "{}", ended.stderr);
        let mut command = project.command(&["list"]);
        let from_variable = command.env("REGATTA_LOG", filter).output().unwrap();
        assert_eq!(from_variable.status.code(), Some(2));
    }
    for filter in ["", "off", "regatta_worker=debug,warn"] {
        project.regatta(&["list", "--log", filter]).expect(0);
    }
}

#[test]
fn nothing_to_work_with_and_no_time() {
    for (text, words) in [
        ("workers = 0\n", "expected a number from 1 to 1024"),
        ("timeout = \"0s\"\n", "nothing can be done in no time"),
        ("list-timeout = \"999us\"\n", "nothing can be done in no time"),
        (
            "[suite.s]\nadapter = \"commands\"\n[[suite.s.test]]\nname = \"a\"\nrun = \"true && false\"\n",
            "&& means something to a shell",
        ),
    ] {
        let said = wrong(text);
        assert!(said.contains(words) && said.contains("regatta.toml:"), "{said}");
    }
}

#[test]
fn no_time_is_refused_on_the_command_line_too() {
    let project = Project::of_commands(&[("a", "true")]);
    for span in ["0s", "0ms", "999us"] {
        let ended = project.regatta(&["run", "--timeout", span]).expect(2);
        assert!(ended.stderr.contains("nothing can be done in no time"), "{}", ended.stderr);
    }
    project.regatta(&["run", "--timeout", "1m"]).expect(0);
}

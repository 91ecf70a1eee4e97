//! One recorded stream of facts, read by every reporter.

use std::collections::HashMap;

use regatta_model::{
    CancelReason, Fault, FaultKind, Judgement, Lease, Listed, Outcome, Output, Policy, Record, RunEvent,
    RunRecord, Stamped, Suite, TeardownFailed, TestId, Time, Token, Unit,
};

use crate::{Progress, Style, Summary, SummaryOptions, Verbosity, write_junit, write_run};

const BEGAN: u64 = 1_763_971_200_000_000;

fn test(name: &str) -> TestId {
    TestId::new("unit", name)
}

fn finished(
    name: &str,
    attempt: u32,
    worker: &str,
    outcome: Outcome,
    took_ms: u64,
    output: &str,
) -> RunEvent {
    let message = (!outcome.is_good()).then(|| format!("{name} did not do it"));
    let output = Output { text: output.to_owned(), bytes_omitted: 0 };
    let record = Record { message, output, ..Record::new(outcome, Time(BEGAN), took_ms * 1_000) };
    RunEvent::AttemptFinished {
        test: test(name),
        attempt,
        token: Token(u64::from(attempt)),
        batch: "b1".into(),
        lease: Lease(1),
        worker: worker.into(),
        record,
    }
}

fn not_run(batch: &str) -> RunEvent {
    let (worker, reason) = (Some("w2@h".into()), "w2@h: no python here".to_owned());
    RunEvent::BatchFaulted { worker, batch: batch.into(), tests: 1, reason }
}

/// A failure that stays, a flaky test, a crash's output full of escapes, a lost worker, and a test nobody reported.
fn facts() -> Vec<Stamped> {
    let policy = Policy {
        retries: 1,
        backoff_ms: 200,
        backoff_max_ms: 1_000,
        fail_fast: false,
        test_timeout_ms: 60_000,
        beat_ms: 1_000,
        losses_max: 2,
    };
    let names = ["good", "bad", "flaky", "skipped", "lost", "slow"];
    let listed = names.map(|name| Listed { test: test(name), unit: None });
    let fault =
        Fault { kind: FaultKind::NotReported, message: "its batch ended without a word of it".to_owned() };
    let events = vec![
        RunEvent::RunStarted {
            run: "20251124-080000-abcd".into(),
            schema: 1,
            regatta: "0.1.0".to_owned(),
            tree: "project".to_owned(),
            broker: "the embedded broker".to_owned(),
            suites: vec![Suite { name: "unit".into(), adapter: "commands".to_owned() }],
            filtered: false,
            policy,
        },
        RunEvent::Listed { tests: listed.to_vec(), units: Vec::new() },
        RunEvent::ListingEnded { suite: "unit".into(), fault: None },
        RunEvent::AttemptStarted { test: test("slow"), attempt: 1, worker: "w2@h".into() },
        finished("good", 1, "w1@h", Outcome::Passed, 5, ""),
        finished("bad", 1, "w1@h", Outcome::Failed, 7, "one <&> \u{1b}[31mtwo\u{1b}[0m\u{0}\n"),
        RunEvent::RetryScheduled { test: test("bad"), attempt: 2, delay_ms: 200 },
        finished("flaky", 1, "w1@h", Outcome::Failed, 7, ""),
        finished("skipped", 1, "w1@h", Outcome::Skipped, 0, ""),
        RunEvent::WorkerLost {
            worker: Some("w3@h".into()),
            batch: "b2".into(),
            tests: 2,
            reason: "3 beats missed".to_owned(),
        },
        not_run("b3"),
        not_run("b4"),
        finished("bad", 2, "w2@h", Outcome::Crashed, 9, "\u{1b}[2Jthree\n"),
        finished("flaky", 2, "w2@h", Outcome::Passed, 8, ""),
        RunEvent::AttemptFaulted {
            test: test("lost"),
            attempt: 1,
            token: Token(9),
            batch: Some("b1".into()),
            worker: Some("w1@h".into()),
            fault,
        },
        RunEvent::NobodyWorks { queue: "q".to_owned(), for_ms: 10_000 },
        finished("slow", 1, "w2@h", Outcome::Passed, 1_500, ""),
        RunEvent::RunFinished,
    ];
    (0..).zip(events).map(|(n, event)| Stamped { at: Time(BEGAN + n * 100_000), event }).collect()
}

fn record(facts: &[Stamped]) -> RunRecord {
    let mut record = RunRecord::default();
    facts.iter().for_each(|fact| record.apply(fact));
    record
}

fn plain(verbosity: Verbosity) -> String {
    let mut progress = Progress::new(Style { color: false }, verbosity, HashMap::new());
    facts().iter().flat_map(|fact| progress.on(fact)).map(|line| line + "\n").collect()
}

#[test]
fn what_is_notable_gets_a_line() {
    insta::assert_snapshot!(plain(Verbosity::Notable), @r#"
    Run 20251124-080000-abcd: unit on the embedded broker
          FAIL [  0.007s] unit bad on w1@h
          NOTE unit bad will be tried again in 0.200s (attempt 2)
          FAIL [  0.007s] unit flaky on w1@h
          NOTE w3@h was lost (3 beats missed); 2 tests are tried again
          NOTE a batch was not run (w2@h: no python here); 1 test is tried again
         CRASH [  0.009s] unit bad (attempt 2) on w2@h
         FLAKY [  0.008s] unit flaky (attempt 2) on w2@h
         FAULT [   -    ] unit lost: its batch ended without a word of it
          NOTE nobody works on queue q for 10.0s; start a worker: regatta worker -Q q --broker URL
    "#);
    assert_eq!(plain(Verbosity::Every).lines().count(), plain(Verbosity::Notable).lines().count() + 3);
}

#[test]
fn the_live_view_shows_how_far_it_is_and_what_runs() {
    let expected = HashMap::from([(test("slow"), 2_000_000)]);
    let mut progress = Progress::new(Style { color: false }, Verbosity::Notable, expected);
    for fact in &facts()[..9] {
        progress.on(fact);
    }
    insta::assert_snapshot!(progress.draw(Time(BEGAN + 1_300_000)).join("\n"), @r#"
    ████████████████░░░░░░░░ 4 of 6 tests, 2 failed, 1 skipped  1.300s, about 1.000s left
        1.000s  unit slow  w2@h
    "#);
}

#[test]
fn the_summary_tells_all_that_is_not_as_it_should_be() {
    let options = SummaryOptions { style: Style { color: false }, folder: ".regatta/runs/x".to_owned() };
    insta::assert_snapshot!(Summary::render(&record(&facts()), &options), @r#"

    Failures
          FAIL [  0.007s] unit bad (attempt 1 of 2) on w1@h
        bad did not do it
        | one <&> two
         CRASH [  0.009s] unit bad (attempt 2 of 2) on w2@h
        bad did not do it
        | three

    Flaky: passed after failing
          FAIL [  0.007s] unit flaky (attempt 1 of 2) on w1@h
        flaky did not do it
          PASS [  0.008s] unit flaky (attempt 2 of 2) on w2@h
        it failed on w1@h and passed on w2@h: look at the worker too

    Not judged: this is no verdict about the tests
    NOT REPORTED unit lost on w1@h
        its batch ended without a word of it

    Slowest
        1.500s unit slow

    Incidents
        worker lost: 3 beats missed
        batch not run: w2@h: no python here (2 batches)

    Failed: 6 tests in 1.700s: 2 passed, 1 flaky, 1 failed, 1 skipped, 1 not judged
    Run only these again: regatta run --failed
    Record: .regatta/runs/x
    "#);
}

#[test]
fn a_name_is_one_line_wherever_a_terminal_shows_it() {
    let style = Style { color: false };
    let shown = |facts: &[Stamped]| {
        let mut progress = Progress::new(style, Verbosity::Every, HashMap::new());
        let mut lines: Vec<String> = Vec::new();
        for fact in facts {
            lines.extend(progress.on(fact));
            lines.extend(progress.draw(fact.at));
        }
        let mut record = record(facts);
        let open = record.tests[0].test.clone();
        record.units_open.push(Unit { suite: open.suite.clone(), name: open.name.clone() });
        record.late.push((open, "w".into()));
        let options = SummaryOptions { style, folder: String::new() };
        lines.join("\n") + &Summary::render(&record, &options)
    };
    let mut plain = facts();
    let late = Record::new(Outcome::Passed, Time(BEGAN), 1);
    let late = RunEvent::LateResult {
        test: test("good"),
        token: Token(1),
        lease: Lease(1),
        worker: "w".into(),
        record: late,
    };
    plain.push(Stamped { at: Time(BEGAN), event: late });
    let begin = |name: &str| serde_json::to_string(&test(name)).unwrap();
    let mut odd = serde_json::to_string(&plain).unwrap();
    for name in ["good", "bad", "flaky", "skipped", "lost", "slow"] {
        let (plain, odd_one) = (begin(name), begin(&format!("\u{1b}[2J\n{name}")));
        odd = odd.replace(plain.trim_matches(['{', '}']), odd_one.trim_matches(['{', '}']));
    }
    let odd: Vec<Stamped> = serde_json::from_str(&odd).unwrap();
    let (plain, odd) = (shown(&plain), shown(&odd));
    assert!(!odd.contains('\u{1b}'), "{odd}");
    assert_eq!(odd.replace("\\u{1b}[2J\\n", ""), plain);
}

#[test]
fn what_is_not_in_run_json_is_not_said_to_be_there() {
    let options = SummaryOptions { style: Style { color: false }, folder: String::new() };
    for (lines, omitted, said) in [
        (201, 0, Some("    | … 1 lines before, all of them in run.json")),
        (203, 7, Some("    | … 3 lines before, in run.json but for 7 bytes that were too many to keep")),
        (200, 7, None),
    ] {
        let mut record = record(&facts());
        let bad = &mut record.tests[1].attempts[0].record.as_mut().unwrap().output;
        *bad = Output { text: "a line\n".repeat(lines), bytes_omitted: omitted };
        let text = Summary::render(&record, &options);
        assert_eq!(text.lines().find(|line| line.contains("before")), said, "{text}");
    }
}

#[test]
fn a_run_that_was_stopped_counts_what_it_did_not_run() {
    let mut facts = facts();
    facts.truncate(9);
    let reason = CancelReason::FailFast;
    facts.push(Stamped { at: Time(BEGAN + 900_000), event: RunEvent::Cancelled { reason } });
    let options = SummaryOptions { style: Style { color: false }, folder: ".regatta/runs/x".to_owned() };
    let text = Summary::render(&record(&facts), &options);
    assert!(text.contains("2 tests were not run to their end."), "{text}");
    assert!(text.contains("Stopped early: a test failed, and the run was to stop then."), "{text}");
}

#[test]
fn junit_has_every_attempt_and_is_valid() {
    let mut out = Vec::new();
    write_junit(&mut out, &record(&facts())).unwrap();
    let text = String::from_utf8(out).unwrap();
    quick_junit::Report::deserialize(text.as_bytes()).unwrap();
    insta::assert_snapshot!(text, @r#"
    <?xml version="1.0" encoding="UTF-8"?>
    <testsuites name="regatta" tests="6" skipped="1" failures="1" errors="1" timestamp="2025-11-24T08:00:00.000+00:00" time="1.700">
        <testsuite name="unit" tests="6" skipped="1" errors="1" failures="1" timestamp="2025-11-24T08:00:00.000+00:00">
            <properties>
                <property name="run" value="20251124-080000-abcd"/>
                <property name="suite" value="unit"/>
                <property name="adapter" value="commands"/>
            </properties>
            <testcase name="good" classname="unit" timestamp="2025-11-24T08:00:00.000+00:00" time="0.005">
                <properties>
                    <property name="worker" value="w1@h"/>
                </properties>
            </testcase>
            <testcase name="bad" classname="unit" timestamp="2025-11-24T08:00:00.000+00:00" time="0.007">
                <properties>
                    <property name="worker" value="w1@h"/>
                </properties>
                <failure message="bad did not do it" type="failed">one &lt;&amp;&gt; two
    </failure>
                <rerunError timestamp="2025-11-24T08:00:00.000+00:00" time="0.009" message="bad did not do it" type="crashed">
                    <stackTrace>three
    </stackTrace>
                </rerunError>
            </testcase>
            <testcase name="flaky" classname="unit" timestamp="2025-11-24T08:00:00.000+00:00" time="0.008">
                <properties>
                    <property name="worker" value="w2@h"/>
                </properties>
                <flakyFailure timestamp="2025-11-24T08:00:00.000+00:00" time="0.007" message="flaky did not do it" type="failed">
                    <stackTrace>flaky did not do it</stackTrace>
                </flakyFailure>
            </testcase>
            <testcase name="skipped" classname="unit" timestamp="2025-11-24T08:00:00.000+00:00" time="0.000">
                <properties>
                    <property name="worker" value="w1@h"/>
                </properties>
                <skipped/>
            </testcase>
            <testcase name="lost" classname="unit">
                <properties>
                    <property name="worker" value="w1@h"/>
                </properties>
                <error message="its batch ended without a word of it" type="not_reported">its batch ended without a word of it</error>
            </testcase>
            <testcase name="slow" classname="unit" timestamp="2025-11-24T08:00:00.000+00:00" time="1.500">
                <properties>
                    <property name="worker" value="w2@h"/>
                </properties>
            </testcase>
        </testsuite>
    </testsuites>
    "#);
}

#[test]
fn a_failure_is_in_every_report_though_its_retry_was_skipped() {
    let mut skip = finished("bad", 2, "w2@h", Outcome::Skipped, 0, "");
    if let RunEvent::AttemptFinished { record, .. } = &mut skip {
        record.message = Some("no network".to_owned());
    }
    let mut facts = facts();
    facts.truncate(2);
    let events = [finished("bad", 1, "w1@h", Outcome::Failed, 7, "refused\n"), skip, RunEvent::RunFinished];
    facts.extend(events.map(|event| Stamped { at: Time(BEGAN + 100_000), event }));
    let mut progress = Progress::new(Style { color: false }, Verbosity::Notable, HashMap::new());
    let lines: Vec<String> = facts.iter().flat_map(|fact| progress.on(fact)).collect();
    insta::assert_snapshot!(lines[1..].join("\n"), @r#"
          FAIL [  0.007s] unit bad on w1@h
          SKIP [  0.000s] unit bad (attempt 2) on w2@h
    "#);
    let live = progress.draw(Time(BEGAN + 100_000)).join("\n");
    assert!(live.contains("1 of 6 tests+, 1 failed"), "{live}");
    let record = record(&facts);
    let options = SummaryOptions { style: Style { color: false }, folder: String::new() };
    let text = Summary::render(&record, &options);
    insta::assert_snapshot!(text.split("\n\n5 tests").next().unwrap(), @r#"

    Failures
          FAIL [  0.007s] unit bad (attempt 1 of 2) on w1@h
        bad did not do it
        | refused
          SKIP [  0.000s] unit bad (attempt 2 of 2) on w2@h
        no network
    "#);
    let mut out = Vec::new();
    write_junit(&mut out, &record).unwrap();
    let text = String::from_utf8(out).unwrap();
    let case = text.split("<testcase ").find(|case| case.starts_with("name=\"bad\"")).unwrap();
    insta::assert_snapshot!(case, @r#"
    name="bad" classname="unit" timestamp="2025-11-24T08:00:00.000+00:00" time="0.007">
                <properties>
                    <property name="worker" value="w1@h"/>
                </properties>
                <failure message="bad did not do it" type="failed">refused
    </failure>
            </testcase>
    "#);
}

/// The production `Char` of XML 1.0: <https://www.w3.org/TR/xml/#charsets>.
fn is_xml_char(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..='\u{10ffff}')
}

#[test]
fn junit_holds_only_characters_of_xml_wherever_a_text_comes_from() {
    // The control characters come last: an escape sequence takes what follows it along.
    let odd: String = "\u{fffd}\u{fffe}\u{ffff}\u{10ffff}\u{7f}".chars().chain('\0'..=' ').collect();
    let mut record = record(&facts());
    record.teardowns_failed.push(TeardownFailed {
        suite: "unit".into(),
        worker: "w".into(),
        message: String::new(),
        output: Output { text: "down".to_owned(), bytes_omitted: 0 },
    });
    let add = |text: &mut String| text.push_str(&odd);
    record.run.iter_mut().for_each(|run| add(&mut run.0));
    for suite in &mut record.suites {
        add(&mut suite.name.0);
        add(&mut suite.adapter);
    }
    for failed in &mut record.teardowns_failed {
        for text in [&mut failed.suite.0, &mut failed.worker.0, &mut failed.message, &mut failed.output.text]
        {
            add(text);
        }
    }
    for test in &mut record.tests {
        add(&mut test.test.suite.0);
        test.unit = Some(Unit { suite: test.test.suite.clone(), name: test.test.name.clone() + &odd });
        add(&mut test.test.name);
        for attempt in &mut test.attempts {
            attempt.worker.iter_mut().for_each(|worker| add(&mut worker.0));
            if let Judgement::Fault(fault) = &mut attempt.judgement {
                add(&mut fault.message);
            }
            if let Some(record) = &mut attempt.record {
                add(record.message.get_or_insert_default());
                add(&mut record.output.text);
            }
        }
    }
    let mut out = Vec::new();
    write_junit(&mut out, &record).unwrap();
    let text = String::from_utf8(out).unwrap();
    let odd: Vec<char> = text.chars().filter(|c| !is_xml_char(*c)).collect();
    assert!(odd.is_empty(), "{odd:?}");
    assert_eq!(quick_junit::Report::deserialize(text.as_bytes()).unwrap().tests, 7);
}

#[test]
fn run_json_has_every_test_with_every_attempt() {
    let mut out = Vec::new();
    write_run(&mut out, &record(&facts()), "0.1.0", 3).unwrap();
    let run: serde_json::Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(run["started"], "2025-11-24T08:00:00Z");
    assert_eq!((run["schema"].as_u64(), run["duration_us"].as_u64()), (Some(1), Some(1_700_000)));
    let verdicts: Vec<_> =
        run["tests"].as_array().unwrap().iter().map(|test| test["verdict"].as_str()).collect();
    let expected = ["passed", "failed", "flaky", "skipped", "unjudged", "passed"].map(Some);
    assert_eq!(verdicts, expected);
    assert_eq!(run["tests"][1]["attempts"][1]["judgement"]["outcome"], "crashed");
    assert_eq!(run["tests"][4]["attempts"][0]["judgement"]["fault"]["kind"], "not_reported");
    assert_eq!(run["workers_lost"][0], "3 beats missed");
}

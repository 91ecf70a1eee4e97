//! Batches through a whole worker: embedded broker, real processes.

use regatta_celery::WorkerEnd;
use regatta_celery::wire::State;
use regatta_model::{BatchEnd, BatchReport, Fact, Fault, FaultKind, Lease, Progress, REFUSED, Record, Time};

use regatta_worker::{Ahead, WorkerConfig};

use crate::ground::{Ground, PATIENCE, RUN, now, order, say};

fn record_of<'a>(facts: &'a [Fact], name: &str) -> &'a Record {
    let record = facts.iter().find_map(|fact| match fact {
        Fact::Finished { test, record, .. } if test == name => Some(record),
        _ => None,
    });
    record.unwrap_or_else(|| panic!("no record of {name} in {facts:?}"))
}

fn fault(end: &BatchEnd) -> &Fault {
    match end {
        BatchEnd::Faulted(fault) => fault,
        other => panic!("{other:?} is no fault"),
    }
}

#[tokio::test]
async fn each_test_in_a_process_of_its_own() {
    let mut ground = Ground::new().await;
    let working = ground.work("regatta-1@here", 1);
    let tests = ["echo hi", "ignored", "exit 1", "kill -9 $$", "sleep 1000 & true"];
    let (facts, report) = ground.batch(&order("scripts", &tests)).await;
    let expected = [
        "started echo hi",
        "passed echo hi",
        "skipped ignored",
        "started exit 1",
        "failed exit 1",
        "started kill -9 $$",
        "crashed kill -9 $$",
        "started sleep 1000 & true",
        "passed sleep 1000 & true",
    ];
    assert_eq!(say(&facts), expected);
    assert_eq!(
        (&report.end, report.lease, report.worker.0.as_str()),
        (&BatchEnd::Done, Lease(7), "regatta-1@here")
    );
    assert_eq!(record_of(&facts, "echo hi").output.text, "hi\n");
    let leaky = record_of(&facts, "sleep 1000 & true").message.as_deref();
    assert_eq!(leaky, Some("left 1 process behind, which had to be killed"));
    working.quiet.cancel();
    assert_eq!(working.end().await, WorkerEnd::Quiet);
}

#[tokio::test]
async fn a_test_that_takes_too_long_is_killed_alone() {
    let mut ground = Ground::new().await;
    let _working = ground.work("regatta-1@here", 1);
    for suite in ["scripts", "peer"] {
        let mut order = order(suite, &["true", "echo partial; sleep 1000", "true ."]);
        order["test_timeout_ms"] = 300.into();
        let (facts, report) = ground.batch(&order).await;
        let expected = [
            "started true",
            "passed true",
            "started echo partial; sleep 1000",
            "timedout echo partial; sleep 1000",
            "started true .",
            "passed true .",
        ];
        assert_eq!(say(&facts), expected, "{suite}");
        assert_eq!(report.end, BatchEnd::Done);
        let record = record_of(&facts, "echo partial; sleep 1000");
        assert_eq!(record.output.text, "partial\n", "{suite}");
        assert!((300_000..5_000_000).contains(&record.duration_us), "{suite}: {record:?}");
    }
}

#[tokio::test]
async fn a_batch_of_a_run_that_is_over_is_not_run() {
    is_not_run_when_its_run_is_over(Ground::new().await).await;
}

pub(crate) async fn is_not_run_when_its_run_is_over(ground: Ground) {
    ground.end_run().await;
    // It waited, and the run's end was told to nobody.
    let mut order = order("scripts", &["touch executed"]);
    order["sent"] = 1.into();
    ground.send(&order).await;
    let working = ground.work("regatta-1@here", 1);
    let taken = async {
        while !ground.is_idle().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, taken).await.expect("it is taken");
    working.quiet.cancel();
    assert_eq!(working.end().await, WorkerEnd::Quiet);
    assert!(ground.is_idle().await, "it is gone from the queue");
    assert!(!ground.tree.path().join("executed").exists());
}

#[tokio::test]
async fn a_batch_that_waited_for_long_is_run_when_somebody_wants_it() {
    let mut ground = Ground::new().await;
    let _working = ground.work("regatta-1@here", 1);
    let day = std::time::Duration::from_secs(86_400);
    for sent in [Time(0), now(), now().after(day)] {
        let mut order = order("scripts", &["true"]);
        order["sent"] = sent.0.into();
        let (facts, report) = ground.batch(&order).await;
        assert_eq!((facts.len(), report.end), (2, BatchEnd::Done), "sent {sent:?}");
    }
}

#[tokio::test]
async fn a_worker_that_refused_leaves_what_comes_next_to_others_and_rests_no_longer_than_it_is_wanted() {
    let mut ground = Ground::new().await;
    let bad = ground.work("bad@here", 1);
    let mut refused = String::new();
    // The third time it rests for two seconds.
    for _ in 0..3 {
        let id = ground.send(&order("elsewhere", &["true"])).await;
        loop {
            let message = ground.next().await;
            if message.task_id == id {
                assert_eq!(message.status, State::Custom(REFUSED.into()), "it is said before the pause");
                assert!(
                    fault(&message.result.to::<BatchReport>().unwrap().end).message.contains("elsewhere")
                );
                break;
            }
            assert_eq!((message.task_id, message.status), (refused, State::Success));
            refused = String::new();
        }
        refused = id;
    }
    let good = ground.work("good@here", 1);
    for _ in 0..3 {
        let (_, report) = ground.batch(&order("scripts", &["true"])).await;
        assert_eq!((report.end, report.worker.0.as_str()), (BatchEnd::Done, "good@here"));
    }
    bad.quiet.cancel();
    let ended = std::time::Instant::now();
    assert_eq!(bad.end().await, WorkerEnd::Quiet);
    assert!(ended.elapsed().as_millis() < 1_000, "{:?}", ended.elapsed());
    good.kill.cancel();
}

#[tokio::test]
async fn what_cannot_be_run_is_a_fault_that_says_why() {
    let mut ground = Ground::new().await;
    let _working = ground.work_alone("regatta-1@here", 1);
    let plain = || order("scripts", &["true"]);
    let with = |key: &str, value: serde_json::Value| {
        let mut order = plain();
        order[key] = value;
        order
    };
    let table = [
        (with("protocol", 99.into()), "bring the worker up to the version"),
        (with("protocol", 0.into()), "bring the dispatcher up to the version"),
        (
            with("suite", "elsewhere".into()),
            "there is no suite elsewhere in this worker's tree (it knows peer, scripts)",
        ),
        (with("items", "nonsense".into()), "the order can't be read"),
        (with("prepared", "abc".into()), "no manifest abc"),
        (order("scripts", &["no such program"]), "no-such-program is not there"),
        (order("scripts", &["no such test"]), "no such test!"),
        (order("scripts", &["u unit"]), "is a unit, and this suite has none"),
        (order("scripts", &["panic"]), "the adapter of scripts panicked"),
    ];
    for (order, expected) in table {
        let (_, report) = ground.batch(&order).await;
        let fault = fault(&report.end);
        assert_eq!(fault.kind, FaultKind::CannotRun);
        assert!(fault.message.contains(expected), "{}", fault.message);
    }
    let (facts, report) = ground.batch(&order("scripts", &["no such program", "true"])).await;
    assert_eq!(say(&facts)[1..], ["started true", "passed true"], "the rest is run");
    fault(&report.end);
    for key in ["beat_ms", "test_timeout_ms"] {
        for extreme in [0, u64::MAX] {
            let (facts, report) = ground.batch(&with(key, extreme.into())).await;
            assert_eq!((facts.len(), report.end), (2, BatchEnd::Done), "{key} {extreme}");
        }
    }
    let (_, report) = ground.batch(&plain()).await;
    assert_eq!(report.end, BatchEnd::Done, "the slot lives on");
}

#[tokio::test]
async fn a_warm_process_is_kept_over_batches_and_replaced_when_it_ends() {
    let mut ground = Ground::new().await;
    let _working = ground.work("regatta-1@here", 1);
    let tree = ground.tree.path().to_owned();
    let pids =
        || std::fs::read_to_string(tree.join("pids")).unwrap().lines().map(str::to_owned).collect::<Vec<_>>();
    let note = "echo $$ >> pids";
    let (facts, _) = ground.batch(&order("peer", &[note, "u true|false"])).await;
    let unit = ["collected u true|false: true, false", "started true", "passed true", "started false"];
    assert_eq!(say(&facts)[2..6], unit);
    assert_eq!(say(&facts)[6..], ["failed false", "done u true|false"]);
    ground.batch(&order("peer", &[note])).await;
    assert_eq!(pids()[0], pids()[1], "one process for both batches");

    let crash = "echo last words; kill -9 $$";
    let (facts, report) = ground
        .batch(&order("peer", &[&format!("u {note}|{crash}|{note} "), "exit 3", &format!("{note}; true")]))
        .await;
    assert_eq!(report.end, BatchEnd::Done);
    let crashes: Vec<_> = say(&facts).into_iter().filter(|line| line.starts_with("crashed")).collect();
    assert_eq!(crashes, [format!("crashed {crash}"), "crashed exit 3".into()]);
    assert_eq!(record_of(&facts, crash).output.text, "last words\n");
    assert!(say(&facts).contains(&format!("done u {note}|{crash}|{note} ")), "{facts:?}");
    let pids = pids();
    assert_eq!(pids[1], pids[2]);
    assert!(pids[2] != pids[3] && pids[3] != pids[4], "a new process after each crash: {pids:?}");
}

#[tokio::test]
async fn what_tests_shared_is_taken_down_when_the_worker_ends() {
    let mut ground = Ground::new().await;
    for stuck in [false, true] {
        let working = ground.work("regatta-1@here", 1);
        ground.batch(&order("peer", &[if stuck { "touch stuck" } else { "true" }])).await;
        working.quiet.cancel();
        let worked = working.worked().await;
        assert_eq!(worked.end, WorkerEnd::Quiet);
        let failed: Vec<_> = worked
            .teardowns_failed
            .iter()
            .map(|failed| (&*failed.suite.0, &*failed.worker.0, &*failed.message, &*failed.output.text))
            .collect();
        let expected = ("peer", "regatta-1@here", "the database is stuck", "would not go\n");
        assert_eq!(failed, if stuck { vec![expected] } else { vec![] });
    }
}

#[tokio::test]
async fn a_process_that_ends_while_no_test_runs_is_told_whenever_that_is() {
    let mut ground = Ground::new().await;
    let working = ground.work("regatta-1@here", 1);
    let tree = ground.tree.path().to_owned();
    // Between two batches: by a signal, by an exit, and one that speaks unasked and has to go.
    let note = "rm -f said; echo $$ > pid";
    for (first, signal) in [
        (note.to_owned(), "KILL"),
        (format!("{note}; trap 'echo last words; exit 0' TERM"), "TERM"),
        (format!("{note}; trap 'say hello; touch said' USR1"), "USR1"),
    ] {
        ground.batch(&order("peer", &[&first])).await;
        let pid = std::fs::read_to_string(tree.join("pid")).unwrap().trim().to_owned();
        let sent = std::process::Command::new("kill").args(["-s", signal, &pid]).status().unwrap();
        assert!(sent.success());
        let stat = format!("/proc/{pid}/stat");
        let over = async {
            while !tree.join("said").exists() && !std::fs::read_to_string(&stat).unwrap().contains(") Z ") {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, over).await.expect("it takes the signal");
    }
    // Between two tests of one batch.
    let (facts, report) = ground.batch(&order("peer", &["t() { exit 3; }", "true"])).await;
    assert_eq!(say(&facts)[1..], ["passed t() { exit 3; }", "started true", "passed true"]);
    assert_eq!(report.end, BatchEnd::Done);
    working.quiet.cancel();
    let failed = working.worked().await.teardowns_failed;
    let told: Vec<_> = failed.iter().map(|failed| (&*failed.message, &*failed.output.text)).collect();
    let expected = [
        ("its process was ended by signal 9 while no test ran", ""),
        (
            "its process ended with exit status 0 while no test ran, and nobody had asked it to",
            "last words\n",
        ),
        ("its process spoke and nobody had asked it anything, and was ended", ""),
        ("its process ended with exit status 3 while no test ran, and nobody had asked it to", ""),
    ];
    assert_eq!(told, expected);
}

#[tokio::test]
async fn a_process_that_was_started_ahead_takes_the_first_batch_and_its_failure_is_the_batchs() {
    let mut ground = Ground::new().await;
    let tree = ground.tree.path().to_owned();
    let note = "echo $$ >> pids";
    for broken in [false, true] {
        let ahead = Some(Ahead { run: RUN.into(), slots: 1 });
        if broken {
            std::fs::write(tree.join("broken"), "").unwrap();
        }
        let working = ground.work_as(WorkerConfig { own: true, ahead, ..ground.config("regatta-1@here", 1) });
        let (facts, report) = ground.batch(&order("peer", &[note])).await;
        if broken {
            assert!(fault(&report.end).message.contains("no module"), "{report:?}");
        } else {
            assert_eq!(say(&facts).last().unwrap(), &format!("passed {note}"));
            let pids = std::fs::read_to_string(tree.join("pids")).unwrap();
            let begun = std::fs::read_to_string(tree.join("begun")).unwrap();
            assert_eq!(pids, begun, "no other process was started");
        }
        working.quiet.cancel();
        working.end().await;
    }
}

#[tokio::test]
async fn a_warm_process_that_ends_without_a_test_blames_its_unit_or_the_machine() {
    let mut ground = Ground::new().await;
    let _working = ground.work_alone("regatta-1@here", 1);
    let (facts, report) = ground.batch(&order("peer", &["true", "u crash", "true ."])).await;
    let expected = ["started true", "passed true", "errored u crash", "started true .", "passed true ."];
    assert_eq!(say(&facts), expected);
    assert_eq!(report.end, BatchEnd::Done);

    std::fs::write(ground.tree.path().join("broken"), "").unwrap();
    ground.batch(&order("peer", &["exit 1"])).await;
    let (facts, report) = ground.batch(&order("peer", &["true"])).await;
    assert_eq!(facts, []);
    let fault = fault(&report.end);
    assert_eq!(fault.kind, FaultKind::CannotRun);
    assert!(fault.message.contains("no module"), "{}", fault.message);
}

#[tokio::test]
async fn nonsense_from_a_warm_process_is_a_crash() {
    let mut ground = Ground::new().await;
    let _working = ground.work("regatta-1@here", 1);
    let nonsense = "echo nonsense >&$REGATTA_RECORD_FD; sleep 1000";
    let (facts, report) = ground.batch(&order("peer", &[nonsense, "true"])).await;
    assert_eq!(say(&facts)[1..], [&format!("crashed {nonsense}"), "started true", "passed true"]);
    assert_eq!(record_of(&facts, nonsense).message.as_deref(), Some("\"nonsense\" is no record"));
    assert_eq!(report.end, BatchEnd::Done);
}

#[tokio::test]
async fn facts_come_while_a_test_runs_and_beats_while_nothing_happens() {
    let mut ground = Ground::new().await;
    let working = ground.work("regatta-1@here", 1);
    let mut order = order("scripts", &["true", "sleep 1000"]);
    order["beat_ms"] = 100.into();
    ground.send(&order).await;
    let mut facts = Vec::new();
    let mut beats = 0;
    while facts.len() < 3 || beats < 3 {
        let progress: Progress = ground.next().await.result.to().unwrap();
        assert_eq!(progress.lease, Lease(7));
        beats += usize::from(progress.facts.is_empty());
        facts.extend(progress.facts);
    }
    assert_eq!(say(&facts), ["started true", "passed true", "started sleep 1000"]);
    working.kill.cancel();
    assert_eq!(working.end().await, WorkerEnd::Killed);
}

#[tokio::test]
async fn a_batch_that_comes_again_is_given_back_unrun() {
    let mut ground = Ground::new().await;
    let working = ground.work("regatta-1@here", 1);
    let id = ground.send(&order("scripts", &["echo >> began; sleep 1000"])).await;
    assert_eq!(ground.next().await.status, State::Custom(regatta_worker::PROGRESS.into()));
    working.kill.cancel();
    working.end().await;
    let _other = ground.work("regatta-2@here", 1);
    let (facts, report) = ground.follow(&id).await;
    assert_eq!((facts, report.end), (vec![], BatchEnd::Returned));
    assert_eq!(report.worker.0, "regatta-2@here");
}

#[tokio::test]
async fn a_revoked_batch_is_killed_and_its_slot_free() {
    let mut ground = Ground::new().await;
    let _working = ground.work("regatta-1@here", 1);
    for suite in ["scripts", "peer"] {
        let id = ground.send(&order(suite, &["sleep 1000"])).await;
        let progress: Progress = loop {
            let progress: Progress = ground.next().await.result.to().unwrap();
            if !progress.facts.is_empty() {
                break progress;
            }
        };
        assert_eq!(say(&progress.facts), ["started sleep 1000"]);
        ground.client.revoke(&id, true).await.unwrap();
        let end = ground.next().await;
        assert_eq!((end.task_id, end.status), (id, State::Revoked), "{suite}");
        let (facts, _) = ground.batch(&order(suite, &["true"])).await;
        assert_eq!(say(&facts), ["started true", "passed true"], "{suite}");
    }
}

#[tokio::test]
async fn a_killed_worker_leaves_no_process() {
    for suite in ["scripts", "peer"] {
        let ground = Ground::new().await;
        let working = ground.work("regatta-1@here", 1);
        let mut sleeper = ground.sleeper();
        ground.send(&order(suite, &[sleeper.script])).await;
        sleeper.await_begin().await;
        working.kill.cancel();
        assert_eq!(working.end().await, WorkerEnd::Killed);
        sleeper.await_end().await;
    }
}

#[tokio::test]
async fn slots_run_side_by_side() {
    let mut ground = Ground::new().await;
    let _working = ground.work("regatta-1@here", 2);
    // Each ends only when the other has begun.
    let meet =
        |mine: &str, theirs: &str| format!("touch {mine}; while ! [ -e {theirs} ]; do sleep 0.01; done");
    ground.send(&order("scripts", &[&meet("a", "b")])).await;
    ground.send(&order("scripts", &[&meet("b", "a")])).await;
    let mut done = 0;
    while done < 2 {
        done += usize::from(ground.next().await.status == State::Success);
    }
}

#[tokio::test]
async fn tests_that_run_at_the_same_time_know_their_slots() {
    let mut ground = Ground::new().await;
    let _working = ground.work("regatta-1@here", 2);
    for suite in ["scripts", "peer"] {
        // Each ends only when the other has begun.
        let test = |own: &str| {
            format!(
                "touch {suite}-$REGATTA_SLOT; until [ -e {suite}-0 ] && [ -e {suite}-1 ]; do sleep 0.01; done; \
                 echo {own} >/dev/null; echo $REGATTA_SLOT $REGATTA_WORKER >> {suite}"
            )
        };
        ground.send(&order(suite, &[&test("a")])).await;
        ground.send(&order(suite, &[&test("b")])).await;
        let mut done = 0;
        while done < 2 {
            done += usize::from(ground.next().await.status == State::Success);
        }
        let said = std::fs::read_to_string(ground.tree.path().join(suite)).unwrap();
        let mut said: Vec<&str> = said.lines().collect();
        said.sort_unstable();
        assert_eq!(said, ["0 regatta-1@here", "1 regatta-1@here"], "{suite}");
    }
}

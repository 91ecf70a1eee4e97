//! Real processes that behave badly, and what is left of them.

#![expect(clippy::unwrap_used, reason = "the whole file is a test")]

mod ground;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use regatta_sandbox::{BaseEnv, Cancel, Command, End, Event, Fence, SandboxError, Session, Why, run};

use crate::ground::{PATIENCE, Trace, fence, sh};

/// Sandboxes of one process know of each other; a test that counts what one of them left is alone.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn cancel() -> Cancel {
    Cancel::new().unwrap()
}

/// A fence with little time.
fn tight(timeout_ms: u64) -> Fence {
    Fence { timeout: Duration::from_millis(timeout_ms), grace: Duration::from_millis(100), ..fence() }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn output_input_and_ends() {
    let _alone = alone();
    let table = [
        ("echo out; echo err >&2", "", End::Code(0), "out\n", "err\n"),
        ("exit 3", "", End::Code(3), "", ""),
        ("kill -9 $$", "", End::Signal(9), "", ""),
        ("kill -TERM $$", "", End::Signal(15), "", ""),
        ("cat", "", End::Code(0), "", ""),
        ("cat; echo .", "hello", End::Code(0), "hello.\n", ""),
        ("exec <&-; echo early", "nobody reads this", End::Code(0), "early\n", ""),
    ];
    for (script, stdin, end, stdout, stderr) in table {
        let command = Command { stdin: stdin.into(), ..sh(script) };
        let finished = run(&command, &fence(), &cancel()).unwrap();
        assert_eq!(finished.end, end, "{script}");
        assert_eq!(text(&finished.stdout.bytes), stdout, "{script}");
        assert_eq!(text(&finished.stderr.bytes), stderr, "{script}");
        assert_eq!(finished.leaked, 0, "{script}");
    }
    let large = vec![b'x'; 3 << 20];
    let fence = Fence { output_bytes: 8 << 20, ..fence() };
    let finished = run(&Command { stdin: large.clone(), ..sh("cat") }, &fence, &cancel()).unwrap();
    assert!(finished.stdout.bytes == large, "more than the pipes hold goes through");
}

#[test]
fn what_cannot_be_started_says_why() {
    let _alone = alone();
    let start = |program: &str, cwd: &str| {
        let command = Command { program: program.into(), cwd: cwd.into(), ..Command::default() };
        run(&command, &fence(), &cancel()).unwrap_err()
    };
    assert!(matches!(start("no-such-program", "/"), SandboxError::NotFound { .. }));
    assert!(matches!(start("/no/such/program", "/"), SandboxError::NotFound { .. }));
    assert!(matches!(start("", "/"), SandboxError::NotFound { .. }));
    assert!(matches!(start("true", "/no/such/folder"), SandboxError::Cwd { .. }));
    assert!(matches!(start("/etc/passwd", "/"), SandboxError::Exec { .. }));
    assert!(matches!(start("tr\0ue", "/"), SandboxError::Nul { .. } | SandboxError::NotFound { .. }));
}

#[test]
fn it_sees_the_environment_that_it_was_given_and_no_descriptor_of_ours() {
    let _alone = alone();
    let base = [("PATH", env!("PATH")), ("KEPT", "base"), ("SET", "base")].map(|(n, v)| (n.into(), v.into()));
    let fence = Fence { env: BaseEnv::new(base), ..fence() };
    assert!(!format!("{fence:?}").contains("base"), "values may be secrets");
    let pairs = |text: &str| -> Vec<(String, String)> {
        let pairs = text.split(' ').map(|pair| pair.split_once('=').unwrap());
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    };
    let command = Command {
        env: pairs("SET=first SET=own"),
        env_defaults: pairs("KEPT=default SET=default ELSE=default"),
        ..sh("env | grep -c ^SET=; echo $KEPT $SET $ELSE; echo /proc/self/fd/*")
    };
    let finished = run(&command, &fence, &cancel()).unwrap();
    let fds = ["0", "1", "2", "3"].map(|fd| format!("/proc/self/fd/{fd}")).join(" ");
    let said = text(&finished.stdout.bytes);
    let [once, values, second] = *said.lines().collect::<Vec<_>>() else { panic!("{said}") };
    assert_eq!((once, values), ("1", "base own default"));
    assert!(fds.starts_with(second.trim()), "{second}; the last may be the shell's own, to read the folder");
}

#[test]
fn a_time_out_ends_the_whole_tree_and_keeps_what_it_said() {
    let _alone = alone();
    let mut trace = Trace::new();
    let script = "
        echo partial
        setsid sh -c 'trap \"\" TERM; echo >&9; while :; do sleep 1; done' &
        (setsid sh -c 'echo >&9; sleep 1000' &)
        env -i PATH=\"$PATH\" setsid sh -c 'echo >&9; sleep 1000' &
        trap '' TERM
        while :; do sleep 1; done";
    let finished = run(&trace.script(script), &tight(400), &cancel()).unwrap();
    assert_eq!(finished.end, End::TimedOut);
    assert_eq!(text(&finished.stdout.bytes), "partial\n");
    assert!(finished.duration >= Duration::from_millis(400));
    assert!(trace.has_ended(), "nothing is left when it returns");
}

#[test]
fn what_still_has_its_parent_is_ended_beside_another_sandbox_too() {
    let _alone = alone();
    // Nothing but its parent tells whose it is, and that one ends on SIGTERM, or is killed.
    let script = "env -i PATH=\"$PATH\" setsid sh -c 'echo >&9; sleep 1000; :' & while :; do sleep 1; done";
    let (neighbours, cancelled) = (cancel(), cancel());
    let (mut neighbour, mut late, mut unwanted) = (Trace::new(), Trace::new(), Trace::new());
    let beside = neighbour.script("echo >&9; sleep 1000");
    let (too_late, not_wanted) = (late.script(script), unwanted.script(script));
    std::thread::scope(|scope| {
        let beside = scope.spawn(|| run(&beside, &fence(), &neighbours).unwrap());
        neighbour.await_bytes(1);
        let timed_out = run(&too_late, &tight(400), &cancel()).unwrap();
        let left = !late.has_ended();
        let running = scope.spawn(|| run(&not_wanted, &fence(), &cancelled).unwrap());
        unwanted.await_bytes(1);
        cancelled.kill();
        let ended = running.join().unwrap();
        let left_too = !unwanted.has_ended();
        // Only then, since the last sandbox ends whatever there is.
        neighbours.kill();
        beside.join().unwrap();
        assert_eq!((timed_out.end, left), (End::TimedOut, false), "{timed_out:?}");
        assert_eq!((ended.end, left_too), (End::Cancelled, false), "{ended:?}");
        assert!(timed_out.leaked >= 1 && ended.leaked >= 1, "{timed_out:?} {ended:?}");
    });
}

#[test]
fn whoever_ends_on_sigterm_may_say_so() {
    let _alone = alone();
    let fence = Fence { grace: PATIENCE, ..tight(200) };
    let finished = run(&sh("trap 'echo bye; exit 0' TERM; sleep 1000 & wait"), &fence, &cancel()).unwrap();
    assert_eq!((finished.end, text(&finished.stdout.bytes)), (End::TimedOut, "bye\n".into()));
    assert!(finished.duration < PATIENCE);
}

#[test]
fn endless_output_is_cut_in_the_middle_and_never_blocks() {
    let _alone = alone();
    let fence = Fence { output_bytes: 1000, ..tight(300) };
    let finished = run(&sh("echo first; yes"), &fence, &cancel()).unwrap();
    assert_eq!(finished.end, End::TimedOut);
    assert!(finished.stdout.omitted > 100_000, "it was read all the time: {}", finished.stdout.omitted);
    assert!(finished.stdout.bytes.len() < 1100);
    assert!(text(&finished.stdout.bytes).starts_with("first\ny\n"));
}

#[test]
fn what_is_left_behind_is_counted_and_killed() {
    let _alone = alone();
    let table = [
        ("holds its output", "sh -c 'sleep 1000; true' & echo hi"),
        ("is a daemon", "(setsid sh -c 'sleep 1000; true' >/dev/null 2>&1 &); echo hi"),
        ("hides", "(env -i setsid \"$(command -v sh)\" -c '/bin/sleep 1000; :' >/dev/null 2>&1 &); echo hi"),
    ];
    for (what, script) in table {
        let mut trace = Trace::new();
        let began = Instant::now();
        let finished = run(&trace.script(script), &fence(), &cancel()).unwrap();
        assert_eq!(finished.end, End::Code(0), "{what}");
        assert_eq!(text(&finished.stdout.bytes), "hi\n", "{what}");
        assert!(finished.leaked >= 1, "{what}: {finished:?}");
        assert!(began.elapsed() < PATIENCE, "{what}: nobody waited for it");
        assert!(trace.has_ended(), "{what}");
    }
}

#[test]
fn a_child_that_is_about_to_end_is_no_leak() {
    let _alone = alone();
    let mut trace = Trace::new();
    let finished = run(&trace.script("(sleep 0.02; echo late) & echo hi"), &fence(), &cancel()).unwrap();
    assert_eq!((text(&finished.stdout.bytes), finished.leaked), ("hi\nlate\n".into(), 0));
    assert!(trace.has_ended());
}

#[test]
fn cancel_ends_it_from_another_thread_and_for_good() {
    let _alone = alone();
    let mut trace = Trace::new();
    let cancel = cancel();
    let command = trace.script("trap '' TERM; setsid sleep 1000 & echo >&9; sleep 1000; sleep 1000");
    std::thread::scope(|scope| {
        let running = scope.spawn(|| run(&command, &fence(), &cancel).unwrap());
        trace.await_bytes(1);
        cancel.kill();
        assert_eq!(running.join().unwrap().end, End::Cancelled);
    });
    assert!(trace.has_ended());
    assert!(cancel.is_killed());
    assert_eq!(run(&sh("sleep 1000"), &fence(), &cancel).unwrap().end, End::Cancelled);
}

#[test]
fn a_neighbour_is_not_touched_and_sweeps_what_nobody_owns() {
    let _alone = alone();
    let (mut busy, mut hidden) = (Trace::new(), Trace::new());
    let cancel = cancel();
    let command = busy.script("(setsid sh -c 'echo >&9; sleep 1000; true' &); echo >&9; sleep 1000");
    std::thread::scope(|scope| {
        let neighbour = scope.spawn(|| run(&command, &fence(), &cancel).unwrap());
        busy.await_bytes(2);
        let hide = "(env -i setsid \"$(command -v sh)\" -c '/bin/sleep 1000; :' >/dev/null 2>&1 &)";
        let finished = run(&hidden.script(hide), &fence(), &Cancel::new().unwrap()).unwrap();
        assert_eq!((finished.end, finished.leaked), (End::Code(0), 0));
        assert!(!busy.has_ended(), "the daemon of a neighbour lives on");
        assert!(!hidden.has_ended(), "it might be the neighbour's");
        cancel.kill();
        assert!(neighbour.join().unwrap().leaked >= 2);
    });
    busy.await_end();
    hidden.await_end();
}

#[test]
fn one_that_always_becomes_another_program_is_found_beside_a_neighbour() {
    let _alone = alone();
    let cancel = cancel();
    std::thread::scope(|scope| {
        let neighbour = scope.spawn(|| run(&sh("sleep 1000"), &fence(), &cancel).unwrap());
        // While a process becomes another program, the kernel shows nothing of its environment.
        let again = "again='exec setsid -w sh -c \"$again\"'; export again; (setsid sh -c \"$again\" &); echo >&9; sleep 1000";
        for round in 0..20 {
            let mut trace = Trace::new();
            let (one, command) = (Cancel::new().unwrap(), trace.script(again));
            let running = scope.spawn({
                let one = one.clone();
                move || run(&command, &fence(), &one).unwrap()
            });
            trace.await_bytes(1);
            one.kill();
            assert_eq!(running.join().unwrap().end, End::Cancelled);
            assert!(trace.has_ended(), "round {round}: it lives on");
        }
        cancel.kill();
        neighbour.join().unwrap();
    });
}

#[test]
fn children_that_are_no_sandbox_are_left_alone() {
    let _alone = alone();
    let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let mut ended = std::process::Command::new("sh").args(["-c", "exit 7"]).spawn().unwrap();
    run(&sh("sleep 1000 & true"), &tight(2000), &cancel()).unwrap();
    assert_eq!(ended.wait().unwrap().code(), Some(7), "nobody else reaped it");
    assert!(child.try_wait().unwrap().is_none(), "nobody killed it");
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Answers each request line with `got <line>`; `die`, `hang` and `noise` do what they say.
const PEER: &str = r#"
    while read -r line <&"$REGATTA_REQUEST_FD"; do
        case "$line" in
            die) echo last words >&2; exit 5;;
            hang) sleep 1000;;
            noise) echo noise;;
        esac
        echo "got $line" >&"$REGATTA_RECORD_FD"
    done"#;

fn deadline() -> Option<Instant> {
    Some(Instant::now() + PATIENCE)
}

fn line(text: &str) -> Event {
    Event::Line(text.into())
}

#[test]
fn a_session_answers_line_by_line() {
    let _alone = alone();
    let cancel = cancel();
    let mut trace = Trace::new();
    let mut session = Session::start(&trace.script(PEER), &fence()).unwrap();
    for request in ["one", "two", "noise"] {
        session.send(request.as_bytes());
        assert_eq!(session.wait(&cancel, deadline()), line(&format!("got {request}")));
    }
    let large = "x".repeat(300 << 10);
    session.send(large.as_bytes());
    assert_eq!(session.wait(&cancel, deadline()), line(&format!("got {large}")), "more than a pipe holds");
    session.forget_output();
    session.send(b"die");
    assert_eq!(session.wait(&cancel, deadline()), Event::Ended);
    let finished = session.end(Why::Ended);
    assert_eq!((finished.end, text(&finished.stderr.bytes)), (End::Code(5), "last words\n".into()));
    assert_eq!(text(&finished.stdout.bytes), "", "the noise is forgotten");
    assert!(trace.has_ended());
}

#[test]
fn a_session_has_a_deadline_that_moves_and_ends_in_every_way() {
    let _alone = alone();
    for (why, end) in [(Why::TimedOut, End::TimedOut), (Why::Cancelled, End::Cancelled)] {
        let mut trace = Trace::new();
        let cancel = cancel();
        let mut session = Session::start(&trace.script(PEER), &tight(0)).unwrap();
        session.send(b"one\nhang");
        assert_eq!(session.wait(&cancel, deadline()), line("got one"));
        let soon = Some(Instant::now() + Duration::from_millis(50));
        assert_eq!(session.wait(&cancel, soon), Event::DeadlinePassed);
        cancel.kill();
        assert_eq!(session.wait(&cancel, deadline()), Event::Cancelled);
        assert_eq!(session.end(why).end, end);
        assert!(trace.has_ended(), "{why:?}");
    }
    let mut trace = Trace::new();
    let mut session = Session::start(&trace.script(PEER), &fence()).unwrap();
    session.send(b"one");
    session.wait(&cancel(), deadline());
    session.no_more_requests();
    assert_eq!(session.wait(&cancel(), deadline()), Event::Ended, "it ends by itself");
    assert_eq!(session.end(Why::Ended).end, End::Code(0));
    let mut session = Session::start(&trace.script(PEER), &fence()).unwrap();
    session.send(b"one\nhang");
    session.wait(&cancel(), deadline());
    drop(session);
    assert!(trace.has_ended(), "dropped");
}

//! How one test of a libtest binary went, by its exit status and its closing line.
//!
//! The exit status alone proves nothing: it is 0 for a test that isn't there and for one that calls `exit(0)`. The
//! closing line comes only from a harness that got to its end. A test's output stands between the two parts of its own
//! line (`test NAME ... ` and `ok`), since nothing is captured: what a crash leaves behind is then never lost.

use std::sync::LazyLock;

use regatta_model::{Outcome, Record};
use regex::Regex;

use crate::seam::{Ended, Exit};
use crate::text;

/// libtest's word for a test that isn't run unless asked for.
pub(super) const IGNORED: &str = "ignored";

/// How many lines of a panic's message are kept as the reason.
const PANIC_LINES_MAX: usize = 8;

#[expect(clippy::expect_used, reason = "fixed patterns, compiled by every test")]
mod patterns {
    use super::{LazyLock, Regex};

    /// The closing line of a run.
    pub(super) static RESULT: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"(?m)^test result: (?:ok|FAILED)\. (\d+) passed; (\d+) failed; (\d+) ignored;")
            .expect("a fixed pattern")
    });

    /// The head of a panic's message; the message follows (since Rust 1.73).
    pub(super) static PANIC: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"(?m)^thread '.*' (?:\(\d+\) )?panicked at (.+):$").expect("a fixed pattern")
    });

    /// The head and message of a panic before Rust 1.73.
    pub(super) static OLD_PANIC: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"(?ms)^thread '[^\n]*' panicked at '(.*)', (\S+:\d+:\d+)$").expect("a fixed pattern")
    });
}

/// What a test of a harness did.
pub(super) fn judge_test(path: &str, ended: &Ended) -> Record {
    let stdout = String::from_utf8_lossy(&ended.stdout);
    let closing = patterns::RESULT.captures_iter(&stdout).last();
    let Exit::Code(code) = ended.exit else { return text::unclean(ended, String::new) };
    let Some(closing) = closing else {
        return text::unclean(ended, || {
            format!("ended with exit status {code} before its harness could say how it went")
        });
    };
    let count = |group: usize| closing[group].parse::<u64>().unwrap_or(u64::MAX);
    let before = closing.get(0).map_or("", |closing| &stdout[..closing.start()]).trim_end();
    match (code, count(1), count(2), count(3)) {
        (0, 1, 0, 0) if before.ends_with("ok") => {
            let mut record = text::record(Outcome::Passed, ended);
            record.output = text::output(spoken(path, before).as_bytes(), &ended.stderr, ended.bytes_omitted);
            record
        }
        (0, 0, 0, 1) => Record { native: Some(IGNORED.to_owned()), ..text::record(Outcome::Skipped, ended) },
        (0, 0, 0, 0) => {
            let message = Some(format!("its binary has no test {path}: it is not the one that was listed"));
            Record { message, ..text::record(Outcome::Errored, ended) }
        }
        (code, _, failed, _) if code != 0 && failed > 0 => {
            let message = reason(&stdout, &String::from_utf8_lossy(&ended.stderr));
            Record { message, ..text::record(Outcome::Failed, ended) }
        }
        (code, passed, failed, _) => text::unclean(ended, || {
            format!("exit status {code} doesn't go with {passed} passed and {failed} failed tests")
        }),
    }
}

/// What a whole binary did that isn't a harness: all that it says is its exit status.
pub(super) fn judge_status(ended: &Ended) -> Record {
    match ended.exit {
        Exit::Code(0) => text::record(Outcome::Passed, ended),
        Exit::Code(code) => {
            let stderr = String::from_utf8_lossy(&ended.stderr);
            let message = panic(&stderr).unwrap_or_else(|| format!("ended with exit status {code}"));
            Record { message: Some(message), ..text::record(Outcome::Failed, ended) }
        }
        Exit::Signal(_) | Exit::TimedOut | Exit::Cancelled => text::unclean(ended, String::new),
    }
}

/// What a test that passed said by itself, without the harness's words around it.
fn spoken<'a>(path: &str, before: &'a str) -> &'a str {
    let inner = before.trim_start().strip_prefix("running 1 test").unwrap_or(before).trim_start();
    let own_line = inner.strip_prefix("test ").and_then(|rest| rest.strip_prefix(path));
    // `test NAME - should panic ... ` for some.
    let said = own_line.and_then(|rest| rest.split_once(" ... ")).map_or(inner, |(_, said)| said);
    said.strip_suffix("ok").unwrap_or(said).trim_end()
}

/// The reason of a failure, in the words of whoever knows: the panic, the error that the test returned, or the harness.
fn reason(stdout: &str, stderr: &str) -> Option<String> {
    // Without a panic of its own the harness says why it failed: `note: test did not panic as expected at …`.
    let note = || stdout.lines().find_map(|line| line.strip_prefix("note: ").map(text::message));
    let error = || {
        stderr
            .lines()
            .chain(stdout.lines())
            .find_map(|line| line.starts_with("Error: ").then(|| text::message(line)))
    };
    panic(stderr).or_else(|| panic(stdout)).or_else(error).or_else(note)
}

/// The last panic's message and place.
fn panic(said: &str) -> Option<String> {
    if let Some(found) = patterns::PANIC.captures_iter(said).last() {
        let after = &said[found.get(0).map_or(0, |head| head.end())..];
        let ends = |line: &str| line.starts_with("note: ") || line.starts_with("stack backtrace:");
        let lines =
            after.trim_start_matches('\n').lines().take_while(|line| !ends(line)).take(PANIC_LINES_MAX);
        let words = lines.collect::<Vec<_>>().join("\n");
        return Some(text::message(&format!("{} ({})", words.trim(), &found[1])));
    }
    let found = patterns::OLD_PANIC.captures(said)?;
    Some(text::message(&format!("{} ({})", &found[1], &found[2])))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use regatta_model::Time;

    use super::*;

    fn ended(exit: Exit, stdout: &str, stderr: &str) -> Ended {
        Ended {
            exit,
            stdout: stdout.as_bytes().to_vec(),
            stderr: stderr.as_bytes().to_vec(),
            bytes_omitted: 0,
            started: Time(1),
            duration: Duration::from_millis(3),
            leaked: 0,
        }
    }

    const OK: &str =
        "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 4 filtered out; finished in 0.00s\n\n";
    const FAILED: &str = "test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 4 filtered out; finished in 0.00s\n\n";

    #[test]
    fn a_pass_is_proven_by_status_and_closing_line() {
        let own = |word: &str| format!("\nrunning 1 test\ntest a::b ... {word}\n\n");
        let none = OK.replace("1 passed", "0 passed");
        let ignored = none.replace("0 ignored", "1 ignored");
        let two = OK.replace("1 passed", "2 passed");
        let table = [
            (0, own("ok") + OK, Outcome::Passed),
            (0, own("some words\nok") + OK + "a grandchild's words\n", Outcome::Passed),
            (0, own("test result: nonsense\nok") + OK, Outcome::Passed),
            (0, own("early"), Outcome::Crashed),
            (0, String::new(), Outcome::Crashed),
            (0, own(OK), Outcome::Crashed),
            (0, none, Outcome::Errored),
            (0, own("ignored") + &ignored, Outcome::Skipped),
            (0, own("ok") + &two, Outcome::Crashed),
            (1, own("ok") + OK, Outcome::Crashed),
            (0, own("FAILED") + FAILED, Outcome::Crashed),
            (101, own("FAILED") + FAILED, Outcome::Failed),
            (101, own("no end"), Outcome::Crashed),
        ];
        for (code, stdout, expected) in table {
            let record = judge_test("a::b", &ended(Exit::Code(code), &stdout, ""));
            assert_eq!(record.outcome, expected, "{code} {stdout}");
        }
        let signal = judge_test("a::b", &ended(Exit::Signal(6), &(own("ok") + OK), ""));
        assert_eq!(signal.outcome, Outcome::Crashed, "whatever was said before");
        let late = judge_test("a::b", &ended(Exit::TimedOut, &own("partial"), ""));
        assert_eq!(late.outcome, Outcome::TimedOut);
        assert!(late.output.text.contains("partial"));
    }

    #[test]
    fn the_harness_is_not_part_of_what_a_test_says() {
        for (line, expected) in [
            ("test a::b ... ok", ""),
            ("test a::b ... one\ntwo\nok", "one\ntwo"),
            ("test a::b - should panic ... ok", ""),
        ] {
            let stdout = format!("\nrunning 1 test\n{line}\n\n{OK}");
            assert_eq!(judge_test("a::b", &ended(Exit::Code(0), &stdout, "")).output.text, expected);
        }
    }

    #[test]
    fn reasons_are_found_where_they_stand() {
        let panic = "noise\nthread 'a::b' (1234) panicked at src/lib.rs:3:5:\nassertion failed\n  left: 1\n right: 2\n\
                     note: run with `RUST_BACKTRACE=1`\n";
        for (stdout, stderr, expected) in [
            ("", panic, Some("assertion failed\n  left: 1\n right: 2 (src/lib.rs:3:5)")),
            ("", "thread 'x' panicked at a.rs:1:2:\nboom\nstack backtrace:\n 0: x", Some("boom (a.rs:1:2)")),
            ("", "thread 'x' panicked at 'old\nway', a.rs:1:2\nnote: x", Some("old\nway (a.rs:1:2)")),
            ("", "Error: \"no\"\n", Some("Error: \"no\"")),
            (
                "note: test did not panic as expected at a.rs:1:2\n",
                "",
                Some("test did not panic as expected at a.rs:1:2"),
            ),
            ("", "nothing", None),
        ] {
            assert_eq!(reason(stdout, stderr).as_deref(), expected);
        }
    }

    #[test]
    fn a_binary_of_its_own_kind_is_judged_by_status() {
        for (exit, expected) in [
            (Exit::Code(0), Outcome::Passed),
            (Exit::Code(2), Outcome::Failed),
            (Exit::Signal(11), Outcome::Crashed),
            (Exit::TimedOut, Outcome::TimedOut),
        ] {
            assert_eq!(judge_status(&ended(exit, "", "")).outcome, expected);
        }
    }
}

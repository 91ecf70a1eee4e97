//! How one test of a libtest binary went, by its exit status and its harness's log.
//!
//! The exit status alone proves nothing: it is 0 for a test that isn't there and for one that calls `exit(0)`. Nor do
//! words on standard output, which a test, its threads and its children share with the harness. The log (`--logfile`) is
//! a file that only the harness knows; it names the test, and is written after the test returned. Where a harness keeps
//! none, the closing line on standard output has to do.
//!
//! A test's output stands between the two parts of its own line (`test NAME ... ` and `ok`), since nothing is captured:
//! what a crash leaves behind is then never lost.

use std::borrow::Cow;
use std::sync::LazyLock;

use regatta_model::{Outcome, Record};
use regex::Regex;

use crate::seam::{Ended, Exit};
use crate::text;

/// libtest's word for a test that isn't run unless asked for.
pub(super) const IGNORED: &str = "ignored";

/// How many lines of a panic's message are kept as the reason.
const PANIC_LINES_MAX: usize = 8;

/// What libtest says where a test was to panic with other words, or with words at all.
const WRONG_PANIC: [&str; 2] = ["panic did not contain expected string", "expected panic with string value"];

/// What libtest says about the option that makes it keep a log (1.95 does), without a line's end.
const LOG_WARNING: &[u8] = b"warning: `--logfile` is deprecated";

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

/// What a test did whose harness kept this log.
pub(super) fn judge_logged(path: &str, log: &str, ended: &Ended) -> Record {
    let ended = &*without_warning(ended);
    let Exit::Code(code) = ended.exit else { return text::unclean(ended, String::new) };
    let stdout = String::from_utf8_lossy(&ended.stdout);
    let closing = patterns::RESULT.captures_iter(&stdout).last();
    // One line. A child that was started with the same arguments writes to the same file, and the harness over it.
    let passed = log
        .strip_prefix("ok ")
        .and_then(|log| log.strip_prefix(path))
        .is_some_and(|log| log.starts_with('\n'));
    if passed && code == 0 {
        let before =
            closing.as_ref().and_then(|closing| closing.get(0)).map(|closing| &stdout[..closing.start()]);
        return pass(path, before.unwrap_or(&stdout), ended);
    }
    if log.starts_with("failed") && code != 0 {
        return failure(&stdout, ended);
    }
    if log.starts_with(IGNORED) && code == 0 {
        return skip(ended);
    }
    if !log.is_empty() {
        let said = log.split(' ').next().unwrap_or_default();
        return text::unclean(ended, || {
            format!("ended with exit status {code} after its harness said: {said}")
        });
    }
    match closing.map(|closing| counts(&closing)) {
        Some([0, 0, 0]) if code == 0 => vanished(path, ended),
        _ => too_early(code, ended),
    }
}

/// What a test did whose harness keeps no log.
pub(super) fn judge_closing(path: &str, ended: &Ended) -> Record {
    let Exit::Code(code) = ended.exit else { return text::unclean(ended, String::new) };
    let stdout = String::from_utf8_lossy(&ended.stdout);
    let Some(closing) = patterns::RESULT.captures_iter(&stdout).last() else { return too_early(code, ended) };
    let before = closing.get(0).map_or("", |closing| &stdout[..closing.start()]).trim_end();
    match (code, counts(&closing)) {
        (0, [1, 0, 0]) if before.ends_with("ok") => pass(path, before, ended),
        (0, [0, 0, 1]) => skip(ended),
        (0, [0, 0, 0]) => vanished(path, ended),
        (code, [_, failed, _]) if code != 0 && failed > 0 => failure(&stdout, ended),
        (code, [passed, failed, _]) => text::unclean(ended, || {
            format!("exit status {code} doesn't go with {passed} passed and {failed} failed tests")
        }),
    }
}

/// Tests that passed, failed and were ignored.
fn counts(closing: &regex::Captures<'_>) -> [u64; 3] {
    [1, 2, 3].map(|group| closing[group].parse().unwrap_or(u64::MAX))
}

fn without_warning(ended: &Ended) -> Cow<'_, Ended> {
    match ended.stderr.strip_prefix(LOG_WARNING) {
        Some(stderr) => Cow::Owned(Ended {
            stderr: stderr.strip_prefix(b"\n").unwrap_or(stderr).to_vec(),
            ..ended.clone()
        }),
        None => Cow::Borrowed(ended),
    }
}

fn pass(path: &str, before: &str, ended: &Ended) -> Record {
    let mut record = text::record(Outcome::Passed, ended);
    record.output =
        text::output(spoken(path, before.trim_end()).as_bytes(), &ended.stderr, ended.bytes_omitted);
    record
}

fn skip(ended: &Ended) -> Record {
    Record { native: Some(IGNORED.to_owned()), ..text::record(Outcome::Skipped, ended) }
}

fn failure(stdout: &str, ended: &Ended) -> Record {
    let message = reason(stdout, &String::from_utf8_lossy(&ended.stderr));
    Record { message, ..text::record(Outcome::Failed, ended) }
}

fn vanished(path: &str, ended: &Ended) -> Record {
    let message = Some(format!("its binary has no test {path}: it is not the one that was listed"));
    Record { message, ..text::record(Outcome::Errored, ended) }
}

fn too_early(code: i32, ended: &Ended) -> Record {
    text::unclean(ended, || format!("ended with exit status {code} before its harness could say how it went"))
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
        Exit::Signal(_) | Exit::TimedOut { .. } | Exit::Cancelled => text::unclean(ended, String::new),
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
    let note = note(stdout);
    // The panic that was expected and came with other words is not what failed.
    let wrong_panic = note.clone().filter(|note| WRONG_PANIC.iter().any(|begin| note.starts_with(begin)));
    let error = || {
        stderr
            .lines()
            .chain(stdout.lines())
            .find_map(|line| line.starts_with("Error: ").then(|| text::message(line)))
    };
    wrong_panic.or_else(|| panic(stderr)).or_else(|| panic(stdout)).or_else(error).or(note)
}

/// Why the harness itself says that a test failed: `note: test did not panic as expected at …`, and the lines that go on.
fn note(stdout: &str) -> Option<String> {
    let mut lines = stdout.lines().skip_while(|line| !line.starts_with("note: "));
    let first = lines.next()?.strip_prefix("note: ")?;
    let more = lines.take_while(|line| line.starts_with(' ')).take(PANIC_LINES_MAX).map(str::trim);
    Some(text::message(&std::iter::once(first).chain(more).collect::<Vec<_>>().join("\n")))
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
    fn without_a_log_a_pass_is_proven_by_status_and_closing_line() {
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
            let record = judge_closing("a::b", &ended(Exit::Code(code), &stdout, ""));
            assert_eq!(record.outcome, expected, "{code} {stdout}");
        }
        let signal = judge_closing("a::b", &ended(Exit::Signal(6), &(own("ok") + OK), ""));
        assert_eq!(signal.outcome, Outcome::Crashed, "whatever was said before");
        let late =
            judge_closing("a::b", &ended(Exit::TimedOut { limit: Duration::ZERO }, &own("partial"), ""));
        assert_eq!(late.outcome, Outcome::TimedOut);
        assert!(late.output.text.contains("partial"));
    }

    #[test]
    fn a_pass_is_proven_by_status_and_log() {
        let own = |word: &str| format!("\nrunning 1 test\ntest a::b ... {word}\n\n");
        let none = OK.replace("1 passed", "0 passed");
        let table = [
            (0, "ok a::b\n", own("ok") + OK, Outcome::Passed),
            (0, "ok a::b\n", own("a thread's wordsok") + "more" + OK + "and more", Outcome::Passed),
            (0, "ok a::b\n", String::new(), Outcome::Passed),
            (0, "ok a::b\n::b\n", own("a child with the same arguments failed\nok") + OK, Outcome::Passed),
            (0, "", own("ok") + OK, Outcome::Crashed),
            (0, "ok a::b", own("ok") + OK, Outcome::Crashed),
            (0, "ok a::bc\n", own("ok") + OK, Outcome::Crashed),
            (0, "ok a\n", own("ok") + OK, Outcome::Crashed),
            (0, "failed a::b\n", own("ok") + OK, Outcome::Crashed),
            (1, "ok a::b\n", own("ok") + OK, Outcome::Crashed),
            (0, "", none, Outcome::Errored),
            (0, "ignored a::b\n", own("ignored"), Outcome::Skipped),
            (0, "ignored: slow a::b\n", own("ignored"), Outcome::Skipped),
            (101, "failed a::b\n", own("noise") + "noise" + FAILED, Outcome::Failed),
            (
                101,
                "failed: panic did not contain expected string a::b\n",
                own("FAILED") + FAILED,
                Outcome::Failed,
            ),
            (101, "", own("FAILED") + FAILED, Outcome::Crashed),
        ];
        for (code, log, stdout, expected) in table {
            let record = judge_logged("a::b", log, &ended(Exit::Code(code), &stdout, ""));
            assert_eq!(record.outcome, expected, "{code} {log} {stdout}");
        }
        let signal = judge_logged("a::b", "ok a::b\n", &ended(Exit::Signal(6), &(own("ok") + OK), ""));
        assert_eq!(signal.outcome, Outcome::Crashed, "whatever was said before");
    }

    #[test]
    fn what_libtest_says_about_its_log_is_not_part_of_what_a_test_says() {
        let warning = String::from_utf8_lossy(LOG_WARNING);
        for (stderr, expected) in [
            (warning.to_string(), ""),
            (format!("{warning}\n"), ""),
            (format!("{warning}its own"), "its own"),
            ("its own".to_owned(), "its own"),
        ] {
            let record = judge_logged("a::b", "ok a::b\n", &ended(Exit::Code(0), "", &stderr));
            assert_eq!(record.output.text, expected);
        }
    }

    #[test]
    fn the_harness_is_not_part_of_what_a_test_says() {
        for (line, expected) in [
            ("test a::b ... ok", ""),
            ("test a::b ... one\ntwo\nok", "one\ntwo"),
            ("test a::b - should panic ... ok", ""),
        ] {
            let stdout = format!("\nrunning 1 test\n{line}\n\n{OK}");
            assert_eq!(judge_closing("a::b", &ended(Exit::Code(0), &stdout, "")).output.text, expected);
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
            (
                "test a::b - should panic ... FAILED\n\nfailures:\n\n---- a::b stdout ----\n\
                 note: panic did not contain expected string\n      panic message: \"boom\"\n \
                 expected substring: \"bang\"\n\nfailures:\n",
                panic,
                Some(
                    "panic did not contain expected string\npanic message: \"boom\"\nexpected substring: \"bang\"",
                ),
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
            (Exit::TimedOut { limit: Duration::ZERO }, Outcome::TimedOut),
        ] {
            assert_eq!(judge_status(&ended(exit, "", "")).outcome, expected);
        }
    }
}

//! What a test runner said of each test of a suite, in words that runners can be compared by: a map from the test's name
//! to `passed`, `failed`, `errored`, `skipped`, `xfailed`, …; and the differences between two such maps.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

/// How many differences are named; the number of all is always said.
const NAMED_MAX: usize = 20;

/// A runner's verdicts.
pub type Verdicts = BTreeMap<String, String>;

/// What the event stream of one run says.
#[derive(Debug, Default)]
pub struct Story {
    /// The last judgement of each test.
    pub verdicts: Verdicts,
    /// Tests that have more than one judgement that counts, although nothing was to be retried.
    pub doubled: Vec<String>,
    /// Tests with a fault, and the fault's words.
    pub faults: Vec<String>,
    /// How many workers were given up.
    pub workers_lost: usize,
    /// How often the broker was lost.
    pub brokers_lost: usize,
    /// How many results came too late to count.
    pub late: usize,
    /// Queues on which nobody worked, as they were announced.
    pub nobody: Vec<String>,
    /// From the first event to the first test's end, in microseconds.
    pub first_result_us: Option<u64>,
    /// The stream has its last event.
    pub finished: bool,
}

/// Reads a run's event stream, one JSON object a line.
///
/// # Errors
/// When a line isn't an event.
pub fn story(stream: &str) -> anyhow::Result<Story> {
    let mut story = Story::default();
    let mut began = None;
    for line in stream.lines().filter(|line| !line.trim().is_empty()) {
        let event: Value = serde_json::from_str(line).with_context(|| format!("not an event: {line}"))?;
        let name = || event["test"]["name"].as_str().unwrap_or_default().to_owned();
        let at = event["at"].as_u64().unwrap_or_default();
        let began = *began.get_or_insert(at);
        match event["event"].as_str().context("an event without a name")? {
            "attempt_finished" => {
                story.first_result_us.get_or_insert(at.saturating_sub(began));
                let record = &event["record"];
                let said = record["native"].as_str().or(record["outcome"].as_str()).unwrap_or("?");
                if story.verdicts.insert(name(), said.to_owned()).is_some() {
                    story.doubled.push(name());
                }
            }
            "attempt_faulted" => {
                let said = event["fault"]["kind"].as_str().unwrap_or("?").to_owned();
                story.faults.push(format!(
                    "{}: {}",
                    name(),
                    event["fault"]["message"].as_str().unwrap_or("?")
                ));
                if story.verdicts.insert(name(), said).is_some() {
                    story.doubled.push(name());
                }
            }
            "worker_lost" => story.workers_lost += 1,
            "broker_lost" => story.brokers_lost += 1,
            "late_result" => story.late += 1,
            "nobody_works" => story.nobody.push(event["queue"].as_str().unwrap_or("?").to_owned()),
            "run_finished" => story.finished = true,
            _ => {}
        }
    }
    Ok(story)
}

/// Reads the stream of the only run in a project's `.regatta/runs`.
///
/// # Errors
/// When there is no run, or more than one.
pub fn story_of(project: &Path) -> anyhow::Result<Story> {
    let runs = project.join(".regatta/runs");
    let entries = std::fs::read_dir(&runs).with_context(|| format!("{} can't be read", runs.display()))?;
    let found: Vec<_> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path().join("events.jsonl"))
        .filter(|path| path.is_file())
        .collect();
    let [stream] = found.as_slice() else { bail!("{} holds {} runs, not one", runs.display(), found.len()) };
    story(&std::fs::read_to_string(stream)?)
}

/// Reads the lines of `peers/every_result.py`.
///
/// # Errors
/// When a line isn't one of its.
pub fn of_pytest(lines: &str) -> anyhow::Result<Verdicts> {
    lines
        .lines()
        .map(|line| {
            let said: Value = serde_json::from_str(line).with_context(|| format!("not a result: {line}"))?;
            let text = |key: &str| said[key].as_str().unwrap_or_default().to_owned();
            Ok((text("test"), text("outcome")))
        })
        .collect()
}

/// Reads cargo-nextest's own lines, `PASS [   0.004s] ( 12/444) itertools::quick merge`, under the names that Regatta has:
/// `itertools::quick$merge`.
#[must_use]
pub fn of_nextest(lines: &str) -> Verdicts {
    let words = [("PASS", "passed"), ("FAIL", "failed"), ("SKIP", "skipped"), ("SIGABRT", "crashed")];
    lines
        .lines()
        .filter_map(|line| {
            let (word, rest) = line.trim().split_once(' ')?;
            let (_, said) = words.iter().find(|(known, _)| *known == word)?;
            let after = rest.rsplit_once([')', ']'])?.1;
            Some((after.trim().replacen(' ', "$", 1), (*said).to_owned()))
        })
        .collect()
}

/// How two runners' verdicts compare.
#[derive(Debug)]
pub struct Comparison {
    /// One line that counts.
    pub summary: String,
    /// One line for each difference, up to a limit.
    pub differences: Vec<String>,
    /// How many differences there are.
    pub count: usize,
}

/// Compares what `ours` says with what `theirs` says, test by test.
#[must_use]
pub fn compare(theirs: &Verdicts, ours: &Verdicts) -> Comparison {
    let mut differences = Vec::new();
    for (name, said) in theirs {
        match ours.get(name) {
            Some(same) if same == said => {}
            Some(other) => differences.push(format!("{name}: {said}, here {other}")),
            None => differences.push(format!("{name}: {said}, here missing")),
        }
    }
    let extra = ours.keys().filter(|name| !theirs.contains_key(*name));
    differences.extend(extra.map(|name| format!("{name}: unknown there, here {}", ours[name])));
    let count = differences.len();
    differences.truncate(NAMED_MAX);
    Comparison { summary: counts(ours), differences, count }
}

/// `6209 results: 6000 passed, 200 skipped, 9 xfailed`.
#[must_use]
pub fn counts(verdicts: &Verdicts) -> String {
    let mut by_word: BTreeMap<&str, usize> = BTreeMap::new();
    for said in verdicts.values() {
        *by_word.entry(said).or_default() += 1;
    }
    let parts: Vec<String> = by_word.iter().map(|(word, count)| format!("{count} {word}")).collect();
    format!("{} results: {}", verdicts.len(), parts.join(", "))
}

/// Fails unless a run's story is whole: ended, and with exactly one judgement for each test.
///
/// # Errors
/// Naming what is wrong with it.
pub fn expect_whole(story: &Story) -> anyhow::Result<()> {
    ensure!(story.finished, "the event stream has no last event");
    ensure!(story.doubled.is_empty(), "more than one verdict for {}", story.doubled.join(", "));
    ensure!(story.faults.is_empty(), "faults:\n{}", story.faults.join("\n"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdicts(pairs: &[(&str, &str)]) -> Verdicts {
        pairs.iter().map(|(name, said)| ((*name).to_owned(), (*said).to_owned())).collect()
    }

    #[test]
    fn differences_are_named_in_both_directions() {
        let theirs = verdicts(&[("a", "passed"), ("b", "failed"), ("c", "passed")]);
        let ours = verdicts(&[("a", "passed"), ("b", "passed"), ("d", "passed")]);
        let comparison = compare(&theirs, &ours);
        assert_eq!(
            comparison.differences,
            ["b: failed, here passed", "c: passed, here missing", "d: unknown there, here passed"]
        );
        assert_eq!(comparison.summary, "3 results: 3 passed");
    }

    #[test]
    fn a_stream_is_folded_and_a_second_verdict_is_noticed() {
        let finished = |name: &str, outcome: &str, at: u64| {
            format!(
                r#"{{"at":{at},"event":"attempt_finished","test":{{"suite":"s","name":"{name}"}},"record":{{"outcome":"{outcome}"}}}}"#
            )
        };
        let stream = [
            r#"{"at":5,"event":"run_started"}"#.to_owned(),
            finished("a", "passed", 9),
            finished("b", "failed", 10),
            finished("a", "passed", 11),
            r#"{"at":12,"event":"worker_lost"}"#.to_owned(),
            r#"{"at":12,"event":"run_finished"}"#.to_owned(),
        ];
        let story = story(&stream.join("\n")).expect("these are events");
        assert_eq!(story.verdicts, verdicts(&[("a", "passed"), ("b", "failed")]));
        assert_eq!((story.first_result_us, story.workers_lost, story.finished), (Some(4), 1, true));
        assert!(
            expect_whole(&story)
                .is_err_and(|error| error.to_string().contains("more than one verdict for a"))
        );
    }

    #[test]
    fn nextest_lines_are_read() {
        let lines =
            "        PASS [   0.004s] (  1/444) itertools::quick merge\n  FAIL [ 1.0s] itertools x::y\nnoise";
        let wanted = verdicts(&[("itertools::quick$merge", "passed"), ("itertools$x::y", "failed")]);
        assert_eq!(of_nextest(lines), wanted);
    }
}

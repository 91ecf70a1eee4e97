//! The warm process: requests as the plugin reads them, records as it writes them, and what is left of one that is gone.

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use regatta_model::{Item, Outcome, Output, Phase, Record, Time};
use serde::Deserialize;

use super::PytestConfig;
use super::folder::Folder;
use crate::seam::{AdapterError, Ended, Exit, Invocation, Place, WarmFact, WarmSession};
use crate::text;

/// How much of the output of a killed test is kept: its last part.
const KEPT_MAX: u64 = 256 * 1024;

/// A line of the record channel.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case", tag = "k")]
enum Line {
    Ready,
    Collected {
        unit: String,
        tests: Vec<String>,
    },
    Started {
        test: String,
    },
    /// What the test that runs has said so far.
    Said {
        output: Output,
    },
    Finished {
        test: String,
        record: Told,
    },
    UnitDone {
        unit: String,
    },
    Done,
    End {
        error: Option<String>,
    },
}

/// What the plugin says of a test: a [`Record`] of which the most may be missing.
#[derive(Deserialize)]
struct Told {
    outcome: Outcome,
    native: Option<String>,
    message: Option<String>,
    #[serde(default)]
    output: Output,
    #[serde(default)]
    phases: Vec<Phase>,
    started: Time,
    duration_us: u64,
    #[serde(default)]
    shared_us: u64,
}

impl From<Told> for Record {
    fn from(told: Told) -> Self {
        let Told { outcome, native, message, output, phases, started, duration_us, shared_us } = told;
        Self { outcome, native, message, output, phases, started, duration_us, shared_us }
    }
}

pub(super) struct PytestSession {
    config: Arc<PytestConfig>,
    tree: PathBuf,
    /// What tells it its slot, as pytest-xdist tells its workers theirs: suites that were written for it choose ports and
    /// databases by it.
    slot: [(String, String); 2],
    /// Where pytest captures output, so that it outlives a killed process. None when there is no place for it.
    folder: Option<Folder>,
    /// What the test that runs has said in phases that are over, of which pytest's capture has nothing left.
    said: Output,
}

impl PytestSession {
    pub(super) fn new(config: Arc<PytestConfig>, place: Place<'_>) -> Self {
        let slot = [
            ("PYTEST_XDIST_WORKER".to_owned(), format!("gw{}", place.slot)),
            ("PYTEST_XDIST_WORKER_COUNT".to_owned(), place.slots.to_string()),
        ];
        Self { config, tree: place.tree.to_owned(), slot, folder: Folder::new(), said: Output::default() }
    }

    /// What the test that ran last had printed into pytest's capture.
    fn captured(&self, name: &str) -> (Vec<u8>, u64) {
        self.folder.as_ref().and_then(|folder| tail(&folder.path().join(name)).ok()).unwrap_or_default()
    }
}

/// The end of a file, and how many bytes come before it; the end begins with a line about them.
fn tail(path: &Path) -> std::io::Result<(Vec<u8>, u64)> {
    let mut file = std::fs::File::open(path)?;
    let before = file.metadata()?.len().saturating_sub(KEPT_MAX);
    file.seek(SeekFrom::Start(before))?;
    let mut bytes = match before {
        0 => Vec::new(),
        _ => format!("[... {before} bytes left out ...]\n").into_bytes(),
    };
    file.take(KEPT_MAX).read_to_end(&mut bytes)?;
    Ok((bytes, before))
}

impl WarmSession for PytestSession {
    fn invocation(&self) -> Invocation {
        let folder = self.folder.as_ref().map(Folder::path);
        let mut invocation = self.config.invocation(&self.tree, folder);
        // Of two with one name the last counts: the suite's own configuration has its way.
        invocation.env.splice(0..0, self.slot.iter().cloned());
        invocation
    }

    fn request(&self, items: &[Item]) -> Vec<u8> {
        let pair = |item: &Item| match item {
            Item::Test(name) => serde_json::json!(["test", name]),
            Item::Unit(name) => serde_json::json!(["unit", name]),
        };
        let items: Vec<serde_json::Value> = items.iter().map(pair).collect();
        serde_json::json!({ "items": items }).to_string().into_bytes()
    }

    fn record(&mut self, line: &[u8]) -> Result<Vec<WarmFact>, AdapterError> {
        let line = serde_json::from_slice(line).map_err(|error| {
            let head: String = String::from_utf8_lossy(line).chars().take(200).collect();
            AdapterError::NotPrepared(format!(
                "pytest's record channel said what isn't a record ({error}): {head}"
            ))
        })?;
        Ok(vec![match line {
            Line::Ready => WarmFact::Ready,
            Line::Collected { unit, tests } => WarmFact::Collected { unit, tests },
            Line::Started { test } => {
                self.said = Output::default();
                WarmFact::Started { test }
            }
            Line::Said { output } => {
                self.said = output;
                return Ok(Vec::new());
            }
            Line::Finished { test, record } => WarmFact::Finished { test, record: record.into() },
            Line::UnitDone { unit } => WarmFact::UnitFinished { unit },
            Line::Done => WarmFact::RequestDone,
            Line::End { error } => WarmFact::TornDown { error },
        }])
    }

    fn crashed(&self, _test: &str, ended: &Ended) -> Record {
        let (mut stdout, before) = self.captured("stdout");
        let (mut stderr, before_too) = self.captured("stderr");
        stdout.extend_from_slice(&ended.stdout);
        stderr.extend_from_slice(&ended.stderr);
        let omitted = ended.bytes_omitted + before + before_too;
        let mut record = text::unclean(ended, || match ended.exit {
            Exit::Code(code) => format!("the Python process ended with exit status {code} while this ran"),
            Exit::Signal(_) | Exit::TimedOut { .. } | Exit::Cancelled => String::new(),
        });
        record.output = text::output(&stdout, &stderr, omitted + self.said.bytes_omitted);
        let before = self.said.text.trim_end();
        if !before.is_empty() {
            record.output.text = format!("{before}\n{}", record.output.text);
        }
        record
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::Duration;

    use super::*;

    fn session() -> PytestSession {
        of(PytestConfig::new(Path::new("/tree")))
    }

    fn of(config: PytestConfig) -> PytestSession {
        let place = Place { tree: Path::new("/tree"), slot: 2, slots: 4 };
        PytestSession::new(Arc::new(config), place)
    }

    #[test]
    fn it_is_told_its_slot_as_an_xdist_worker_unless_the_suite_says_otherwise() {
        let said = |config: PytestConfig| {
            let vars = of(config).invocation().env.into_iter();
            vars.filter(|(name, _)| name.starts_with("PYTEST_XDIST")).collect::<HashMap<_, _>>()
        };
        let mut config = PytestConfig::new(Path::new("/tree"));
        let mut expected = HashMap::from(
            [("PYTEST_XDIST_WORKER", "gw2"), ("PYTEST_XDIST_WORKER_COUNT", "4")]
                .map(|(name, value)| (name.to_owned(), value.to_owned())),
        );
        assert_eq!(said(config.clone()), expected);
        config.env.push(("PYTEST_XDIST_WORKER".into(), "gw7".into()));
        expected.insert("PYTEST_XDIST_WORKER".into(), "gw7".into());
        assert_eq!(said(config), expected);
    }

    #[test]
    fn lines_of_the_channel_are_facts() {
        let finished = r#"{"k":"finished","test":"a::b","record":{"outcome":"skipped","native":"xfailed","started":5,
            "duration_us":7,"shared_us":2,"phases":[{"name":"call","duration_us":3}],"output":{"text":"t"}}}"#;
        let record = Record {
            native: Some("xfailed".into()),
            phases: vec![Phase { name: "call".into(), duration_us: 3 }],
            output: Output { text: "t".into(), bytes_omitted: 0 },
            shared_us: 2,
            ..Record::new(Outcome::Skipped, Time(5), 7)
        };
        for (line, expected) in [
            (r#"{"k":"ready"}"#, vec![WarmFact::Ready]),
            (r#"{"k":"done"}"#, vec![WarmFact::RequestDone]),
            (r#"{"k":"started","test":"a"}"#, vec![WarmFact::Started { test: "a".into() }]),
            (r#"{"k":"unit_done","unit":"a"}"#, vec![WarmFact::UnitFinished { unit: "a".into() }]),
            (
                r#"{"k":"collected","unit":"a","tests":["x","y"]}"#,
                vec![WarmFact::Collected { unit: "a".into(), tests: vec!["x".into(), "y".into()] }],
            ),
            (finished, vec![WarmFact::Finished { test: "a::b".into(), record }]),
            (r#"{"k":"end","error":null}"#, vec![WarmFact::TornDown { error: None }]),
            (r#"{"k":"end","error":"x"}"#, vec![WarmFact::TornDown { error: Some("x".into()) }]),
        ] {
            assert_eq!(session().record(line.as_bytes()).unwrap(), expected);
        }
        for nonsense in ["", "{}", r#"{"k":"finished","test":"a","record":{"outcome":"fine"}}"#, "\u{fffd}"] {
            assert!(session().record(nonsense.as_bytes()).is_err(), "{nonsense}");
        }
    }

    #[test]
    fn requests_carry_names_whatever_is_in_them() {
        let items = [Item::Test("a.py::t[x\ny \"é\"]".into()), Item::Unit("b.py".into())];
        let line = session().request(&items);
        assert!(!line.contains(&b'\n'));
        let back: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(back["items"][0][1], "a.py::t[x\ny \"é\"]");
        assert_eq!(back["items"][1][0], "unit");
    }

    #[test]
    fn what_a_killed_test_had_printed_is_kept() {
        let session = session();
        std::fs::write(session.folder.as_ref().unwrap().path().join("stdout"), "half a line").unwrap();
        let ended = Ended {
            exit: Exit::Code(0),
            stdout: b" and raw".to_vec(),
            stderr: b"fault".to_vec(),
            bytes_omitted: 0,
            started: Time(1),
            duration: Duration::from_millis(2),
            leaked: 0,
        };
        let record = session.crashed("a", &ended);
        assert_eq!(record.outcome, Outcome::Crashed, "exit status 0 in the midst of a test is no pass");
        assert_eq!(record.output.text, "half a line and raw\n--- stderr ---\nfault");
        let late = session.crashed("a", &Ended { exit: Exit::TimedOut { limit: Duration::ZERO }, ..ended });
        assert_eq!(late.outcome, Outcome::TimedOut);
    }

    #[test]
    fn what_is_too_much_is_said_where_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stdout");
        for (more, begin) in [(0, "xx"), (3, "[... 3 bytes left out ...]\nxx")] {
            std::fs::write(&path, "x".repeat(usize::try_from(KEPT_MAX + more).unwrap())).unwrap();
            let (bytes, before) = tail(&path).unwrap();
            assert!(bytes.starts_with(begin.as_bytes()), "{more}");
            assert_eq!(before, more);
        }
    }
}

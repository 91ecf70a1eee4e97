//! `regatta.toml`: what it may say, and errors that show where it is wrong.

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::time::Duration;

use miette::{GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteDiagnostic, NamedSource, Report};
use regatta_adapters::split_command;
use serde::{Deserialize, Deserializer};

use crate::error::CliError;
use crate::exit::Exit;

/// The file's name in the project's folder.
pub(crate) const FILE: &str = "regatta.toml";

/// The most edits between a wrong key and the one that was meant.
const TYPO_EDITS_MAX: usize = 2;

/// The shortest limit that is taken.
const LIMIT_MIN: Duration = Duration::from_millis(1);

/// The whole file. Every key may be left out.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Config {
    /// How often a failed test is tried again.
    pub(crate) retries: Option<u32>,
    /// The wait before the first retry; doubled for each further one.
    #[serde(default, deserialize_with = "span")]
    pub(crate) backoff: Option<Duration>,
    /// The longest wait before a retry.
    #[serde(default, deserialize_with = "span")]
    pub(crate) backoff_max: Option<Duration>,
    /// The limit for each test.
    #[serde(default, deserialize_with = "limit")]
    pub(crate) timeout: Option<Duration>,
    /// The limit for listing (and building) a suite.
    #[serde(default, deserialize_with = "limit")]
    pub(crate) list_timeout: Option<Duration>,
    /// Slots.
    pub(crate) workers: Option<NonZeroU16>,
    /// Stop after the first test that failed for good.
    pub(crate) fail_fast: Option<bool>,
    /// For how long a queue may have no worker before the run gives up.
    #[serde(default, deserialize_with = "span")]
    pub(crate) give_up_after: Option<Duration>,
    /// Variables for every test.
    #[serde(default)]
    pub(crate) env: BTreeMap<String, String>,
    /// Suites by name; what is recognised if there is none.
    #[serde(default)]
    pub(crate) suite: BTreeMap<String, SuiteConfig>,
}

/// Which framework.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// pytest.
    Pytest,
    /// Cargo.
    Cargo,
    /// A list of commands.
    Commands,
}

/// One suite.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct SuiteConfig {
    /// Its framework.
    pub(crate) adapter: Kind,
    /// pytest: files and folders.
    #[serde(default)]
    pub(crate) paths: Vec<String>,
    /// pytest and Cargo: more arguments.
    #[serde(default)]
    pub(crate) args: Vec<String>,
    /// pytest: the interpreter.
    pub(crate) python: Option<PathBuf>,
    /// Cargo: the manifest.
    pub(crate) manifest: Option<PathBuf>,
    /// Variables for the suite's tests.
    #[serde(default)]
    pub(crate) env: BTreeMap<String, String>,
    /// Commands: a file of `name: command` lines.
    pub(crate) file: Option<PathBuf>,
    /// Commands, one by one.
    #[serde(default)]
    pub(crate) test: Vec<CommandConfig>,
    /// The queue of its batches.
    pub(crate) queue: Option<String>,
    /// Queues for some of its tests.
    #[serde(default)]
    pub(crate) route: Vec<RouteConfig>,
}

/// One command.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CommandConfig {
    /// Its name.
    pub(crate) name: String,
    /// What to run, in words.
    #[serde(deserialize_with = "words")]
    pub(crate) run: Vec<String>,
}

/// Where some tests go.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RouteConfig {
    /// A pattern on the whole name, with `*` and `?`.
    pub(crate) tests: String,
    /// Their queue.
    pub(crate) queue: String,
}

fn span<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(from)?;
    let wrong =
        |error| serde::de::Error::custom(format!("{text:?} is no span of time such as \"30s\" ({error})"));
    humantime::parse_duration(&text).map(Some).map_err(wrong)
}

/// A span of time in which something can happen.
fn limit<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    let limit = span(from)?;
    limit.map(possible).transpose().map_err(serde::de::Error::custom)
}

/// Refuses a limit that nothing could keep: limits are kept and sent in whole milliseconds.
pub(crate) fn possible(limit: Duration) -> Result<Duration, &'static str> {
    if limit < LIMIT_MIN {
        return Err("nothing can be done in no time (less than 1ms); leave it out for the usual limit");
    }
    Ok(limit)
}

fn words<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    split_command(&String::deserialize(from)?).map_err(serde::de::Error::custom)
}

impl Config {
    /// Reads a file.
    pub(crate) fn read(path: &Path) -> Result<Self, CliError> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            CliError::from_error(
                Exit::Usage,
                format!("the configuration {} can't be read", path.display()),
                &error,
            )
        })?;
        Self::parse(&path.display().to_string(), &text)
    }

    fn parse(name: &str, text: &str) -> Result<Self, CliError> {
        toml::from_str(text).map_err(|error| {
            let error = ConfigError::new(&error);
            CliError::usage(format!(
                "{name} says something that regatta doesn't understand\n{}",
                error.show(name, text)
            ))
        })
    }
}

/// What is wrong, and where.
struct ConfigError {
    message: String,
    help: Option<String>,
    span: Option<std::ops::Range<usize>>,
}

impl ConfigError {
    fn new(error: &toml::de::Error) -> Self {
        let message = error.message().trim().to_owned();
        // Names stand in backticks: the wrong one first, then those that would be right.
        let mut names = message.split('`').skip(1).step_by(2);
        let help = names.next().filter(|_| message.starts_with("unknown")).and_then(|wrong| {
            let near = names.map(|name| (edits(wrong, name), name)).min()?;
            (near.0 <= TYPO_EDITS_MAX).then(|| format!("did you mean `{}`?", near.1))
        });
        Self { message, help, span: error.span() }
    }

    /// The message, with the place and the lines around it.
    fn show(&self, name: &str, text: &str) -> String {
        let mut diagnostic = MietteDiagnostic::new(self.message.clone());
        diagnostic.help.clone_from(&self.help);
        if let Some(span) = self.span.clone() {
            diagnostic = diagnostic.with_label(LabeledSpan::at(span, "here"));
        }
        let report = Report::new(diagnostic).with_source_code(NamedSource::new(name, text.to_owned()));
        let mut shown = String::new();
        let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor());
        match handler.render_report(&mut shown, report.as_ref()) {
            Ok(()) => shown.trim_end().to_owned(),
            Err(_) => self.message.clone(),
        }
    }
}

/// How many characters must be changed, added or removed to make `b` of `a` (Levenshtein 1965).
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = i;
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = corner + usize::from(x != *y);
            corner = row[j + 1];
            row[j + 1] = change.min(corner + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_counted() {
        for (a, b, count) in
            [("", "abc", 3), ("retrys", "retries", 2), ("timeout", "timeout", 0), ("ab", "ba", 2)]
        {
            assert_eq!(edits(a, b), count, "{a} {b}");
        }
    }

    #[test]
    fn spans_and_suites_are_read() {
        let config = Config::parse(
            FILE,
            "timeout = \"90s\"\nretries = 2\n[suite.unit]\nadapter = \"pytest\"\npaths = [\"t\"]\n\
             [[suite.unit.route]]\ntests = \"*gpu*\"\nqueue = \"gpu\"\n",
        )
        .unwrap();
        assert_eq!(config.timeout, Some(Duration::from_secs(90)));
        assert_eq!(config.suite["unit"].route[0].queue, "gpu");
    }
}

//! `regatta.toml`: what it may say, and errors that show where it is wrong.

mod check;
mod source;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::Duration;

use regatta_adapters::split_command;
use regatta_celery::queue_name;
use serde::de::{Error, Unexpected};
use serde::{Deserialize, Deserializer};

use crate::error::CliError;
use crate::exit::Exit;

pub(crate) use source::{Source, Step};

/// The file's name in the project's folder.
pub(crate) const FILE: &str = "regatta.toml";

/// The most slots that one machine may have: each is a thread.
pub(crate) const SLOTS_MAX: u16 = 1_024;

/// The most retries of a test.
pub(crate) const RETRIES_MAX: u32 = 100;

/// The shortest limit that is taken.
const LIMIT_MIN: Duration = Duration::from_millis(1);

/// The whole file. Every key may be left out.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Config {
    /// How often a failed test is tried again.
    #[serde(default, deserialize_with = "retries")]
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
    #[serde(default, deserialize_with = "slots")]
    pub(crate) workers: Option<u16>,
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
    /// The file itself.
    #[serde(skip)]
    pub(crate) source: Source,
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
    #[serde(default, deserialize_with = "some_path")]
    pub(crate) python: Option<PathBuf>,
    /// pytest: whether tests of one file may be spread.
    pub(crate) split_files: Option<bool>,
    /// Cargo: the manifest.
    #[serde(default, deserialize_with = "some_path")]
    pub(crate) manifest: Option<PathBuf>,
    /// Variables for the suite's tests.
    #[serde(default)]
    pub(crate) env: BTreeMap<String, String>,
    /// Commands: a file of `name: command` lines.
    #[serde(default, deserialize_with = "some_path")]
    pub(crate) file: Option<PathBuf>,
    /// Commands, one by one.
    #[serde(default)]
    pub(crate) test: Vec<CommandConfig>,
    /// The queue of its batches.
    #[serde(default, deserialize_with = "some_queue")]
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
    #[serde(deserialize_with = "queue")]
    pub(crate) queue: String,
}

fn span<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(from)?;
    let wrong = |error| D::Error::custom(format!("{text:?} is no span of time such as \"30s\" ({error})"));
    humantime::parse_duration(&text).map(Some).map_err(wrong)
}

/// A span of time in which something can happen.
fn limit<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    let limit = span(from)?;
    limit.map(possible).transpose().map_err(D::Error::custom)
}

/// Refuses a limit that nothing could keep: limits are kept and sent in whole milliseconds.
pub(crate) fn possible(limit: Duration) -> Result<Duration, &'static str> {
    if limit < LIMIT_MIN {
        return Err("nothing can be done in no time (less than 1ms); leave it out for the usual limit");
    }
    Ok(limit)
}

fn words<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    split_command(&String::deserialize(from)?).map_err(D::Error::custom)
}

/// A number that is not above a limit.
fn at_most<'de, N, D>(from: D, least: N, most: N) -> Result<Option<N>, D::Error>
where
    N: Deserialize<'de> + PartialOrd + Display + Into<u64> + Copy,
    D: Deserializer<'de>,
{
    let number = N::deserialize(from)?;
    if number < least || number > most {
        let expected = format!("a number from {least} to {most}");
        return Err(D::Error::invalid_value(Unexpected::Unsigned(number.into()), &expected.as_str()));
    }
    Ok(Some(number))
}

fn retries<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    at_most(from, 0, RETRIES_MAX)
}

fn slots<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u16>, D::Error> {
    at_most(from, 1, SLOTS_MAX)
}

/// The name of a queue, as a worker can have it.
fn queue<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    queue_name(&String::deserialize(from)?).map_err(D::Error::custom)
}

fn some_path<'de, D: Deserializer<'de>>(from: D) -> Result<Option<PathBuf>, D::Error> {
    let path = PathBuf::deserialize(from)?;
    if path.as_os_str().is_empty() {
        return Err(D::Error::custom("a path can't be empty; remove the key, or name what is meant"));
    }
    Ok(Some(path))
}

fn some_queue<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    queue(from).map(Some)
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// When it can't be read, or says something that makes no sense; with the place then.
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
        // Some editors begin every file with this mark (U+FEFF); it is no part of what the file says.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let source = Source { name: name.to_owned(), text: text.to_owned() };
        match toml::from_str(text) {
            Ok(config) => {
                let config = Self { source, ..config };
                config.check()?;
                Ok(config)
            }
            Err(error) => Err(source.misunderstood(&error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

//! What is to run, within what, and what came of it.

use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::Captured;

/// A command to run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Command {
    /// The program: a path, or a name to be found on the `PATH` of its own environment.
    pub program: PathBuf,
    /// Its arguments, without the program's name.
    pub args: Vec<String>,
    /// Where it runs.
    pub cwd: PathBuf,
    /// Variables over those of [`Fence::env`]. Of two with one name the last counts.
    pub env: Vec<(String, String)>,
    /// Variables for where neither has one of the name.
    pub env_defaults: Vec<(String, String)>,
    /// What to write to its standard input, which is closed then. Empty for `/dev/null`.
    pub stdin: Vec<u8>,
}

/// The limits of one command.
#[derive(Debug, Clone)]
pub struct Fence {
    /// How long it may run.
    pub timeout: Duration,
    /// How long it may take to end by itself after SIGTERM.
    pub grace: Duration,
    /// How many bytes of each of its two outputs are kept; more is cut out of the middle.
    pub output_bytes: usize,
    /// The environment that it starts from.
    pub env: BaseEnv,
}

impl Fence {
    /// How long a process may take to end after SIGTERM, unless said otherwise.
    pub const GRACE: Duration = Duration::from_secs(2);
    /// How many bytes of each output are kept, unless said otherwise.
    pub const OUTPUT_BYTES: usize = 1 << 20;

    /// A fence with the usual grace and output limit.
    #[must_use]
    pub fn new(timeout: Duration, env: BaseEnv) -> Self {
        Self { timeout, grace: Self::GRACE, output_bytes: Self::OUTPUT_BYTES, env }
    }
}

/// The variables that every command starts with. Made once, cheap to clone. Its `Debug` shows no value.
#[derive(Clone, Default)]
pub struct BaseEnv {
    entries: Arc<Vec<Entry>>,
}

/// One variable, as `execve` wants it.
#[derive(Clone)]
pub(crate) struct Entry {
    /// `NAME=value`.
    pub(crate) text: CString,
    /// The length of the name.
    name: usize,
}

impl Entry {
    /// None for what no environment can hold: an empty name, a NUL, an `=` in the name.
    pub(crate) fn new(name: OsString, value: OsString) -> Option<Self> {
        let mut text = name.into_vec();
        let length = text.len();
        if text.is_empty() || text.contains(&b'=') {
            return None;
        }
        text.push(b'=');
        text.extend(value.into_vec());
        Some(Self { text: CString::new(text).ok()?, name: length })
    }

    pub(crate) fn name(&self) -> &[u8] {
        &self.text.as_bytes()[..self.name]
    }

    pub(crate) fn value(&self) -> &[u8] {
        &self.text.as_bytes()[self.name + 1..]
    }
}

impl BaseEnv {
    /// Takes these variables, such as `std::env::vars_os()`; filter them for an allow-list.
    pub fn new(vars: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let entries = vars.into_iter().filter_map(|(name, value)| Entry::new(name, value));
        Self { entries: Arc::new(entries.collect()) }
    }

    /// The same with these variables, in the place of those that have their names.
    #[must_use]
    pub fn with(&self, vars: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let added: Vec<Entry> =
            vars.into_iter().filter_map(|(name, value)| Entry::new(name, value)).collect();
        let is_new = |entry: &&Entry| added.iter().all(|added| added.name() != entry.name());
        let kept: Vec<Entry> = self.entries.iter().filter(is_new).cloned().collect();
        Self { entries: Arc::new(kept.into_iter().chain(added).collect()) }
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }
}

impl std::fmt::Debug for BaseEnv {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = self.entries.iter().map(|entry| String::from_utf8_lossy(entry.name()));
        f.debug_list().entries(names).finish()
    }
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By itself, with this code.
    Code(i32),
    /// By a signal that we did not send.
    Signal(i32),
    /// We killed it, since its time was over.
    TimedOut,
    /// We killed it, since it was cancelled or no longer needed.
    Cancelled,
}

/// What came of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// How it ended.
    pub end: End,
    /// What it wrote to standard output, up to [`Fence::output_bytes`].
    pub stdout: Captured,
    /// What it wrote to standard error, up to [`Fence::output_bytes`].
    pub stderr: Captured,
    /// When it began, by the wall clock.
    pub started: SystemTime,
    /// How long it ran, by the monotonic clock.
    pub duration: Duration,
    /// How many processes it left behind; they are dead now.
    pub leaked: usize,
}

/// Why a command could not be run.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// There is no such program.
    #[error("program {program} is not there; install it, or mend the name or the PATH of its environment")]
    NotFound {
        /// The program as it was asked for.
        program: PathBuf,
    },
    /// The working directory can't be entered.
    #[error("{program} can't be started in {cwd}")]
    Cwd {
        /// The program.
        program: PathBuf,
        /// The directory.
        cwd: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The system would not execute the program.
    #[error("{program} can't be executed")]
    Exec {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A text holds a NUL byte, which no command line can.
    #[error("{what} of {program} contains a NUL byte")]
    Nul {
        /// The program.
        program: PathBuf,
        /// Which text.
        what: &'static str,
    },
    /// The system refused what a sandbox needs.
    #[error("the system refused {what} for a sandbox; look at the limits of processes and open files")]
    System {
        /// What was asked of it.
        what: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl SandboxError {
    /// The error and its causes in one line, as a record or a fault has it.
    #[must_use]
    pub fn with_causes(&self) -> String {
        let causes = std::iter::successors(std::error::Error::source(self), |error| error.source());
        causes.fold(self.to_string(), |text, cause| format!("{text}: {cause}"))
    }
}

impl SandboxError {
    pub(crate) fn system(what: &'static str) -> impl FnOnce(nix::Error) -> Self {
        move |errno| Self::System { what, source: errno.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_and_its_causes_are_one_line() {
        let source = std::io::Error::other("no leave");
        let error = SandboxError::Exec { program: "a".into(), source };
        assert_eq!(error.with_causes(), "a can't be executed: no leave");
        assert_eq!(SandboxError::NotFound { program: "b".into() }.with_causes().matches(": ").count(), 0);
    }

    #[test]
    fn variables_take_the_place_of_their_names() {
        let vars = |vars: &[(&str, &str)]| -> Vec<(OsString, OsString)> {
            vars.iter().map(|&(name, value)| (name.into(), value.into())).collect()
        };
        let base = BaseEnv::new(vars(&[("A", "1"), ("AB", "2"), ("B", "3")]));
        let env = base.with(vars(&[("A", "4"), ("C", "5"), ("", "no name")]));
        let texts = |env: &BaseEnv| -> Vec<String> {
            env.entries().iter().map(|entry| entry.text.to_str().unwrap().to_owned()).collect()
        };
        assert_eq!(texts(&env), ["AB=2", "B=3", "A=4", "C=5"]);
        assert_eq!(texts(&base), ["A=1", "AB=2", "B=3"]);
    }
}

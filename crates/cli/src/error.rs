//! What is said when a command can't do its work: `error:`, `caused by:`, `hint:`.

use std::error::Error;
use std::io::Write;

use regatta_model::SuiteName;
use regatta_report::{Paint, Style};

use crate::exit::Exit;

/// An error for a person, with the exit code that it comes to.
#[derive(Debug)]
pub(crate) struct CliError {
    /// How the process ends.
    pub(crate) exit: Exit,
    text: String,
    causes: Vec<String>,
    hints: Vec<String>,
}

impl CliError {
    /// An error without a cause.
    pub(crate) fn new(exit: Exit, text: impl Into<String>) -> Self {
        Self { exit, text: text.into(), causes: Vec::new(), hints: Vec::new() }
    }

    /// An error of the command line or the configuration.
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self::new(Exit::Usage, text)
    }

    /// An error with everything that caused it.
    pub(crate) fn from_error(exit: Exit, text: impl Into<String>, error: &(dyn Error + 'static)) -> Self {
        let causes = std::iter::successors(Some(error), |error| (*error).source());
        let mut causes: Vec<String> = causes.map(ToString::to_string).collect();
        // Some messages hold that of their source.
        causes.dedup_by(|later, earlier| earlier.contains(later.as_str()));
        Self { causes, ..Self::new(exit, text) }
    }

    /// There is nothing to run: at all (of what failed last time, where only that was asked for), or in a suite of which all
    /// tests were asked for.
    pub(crate) fn no_tests(suite: Option<&SuiteName>, failed: bool) -> Self {
        match suite {
            _ if failed => Self::new(Exit::NoTests, "no tests were found")
                .hint("what failed last time is not there any more, or no pattern means it")
                .hint("without --failed all tests are run"),
            Some(suite) => Self::new(Exit::NoTests, format!("no tests were found in suite {suite}"))
                .hint("regatta list shows what there is; --suite NAME takes only the suites that it names"),
            None => Self::new(Exit::NoTests, "no tests were found")
                .hint("regatta list shows what there is; a pattern with * or ? must match the whole name"),
        }
    }

    /// Says what to do next.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Writes it to the log.
    pub(crate) fn log(&self) {
        let (causes, hints) = (self.causes.join(": "), self.hints.join("; "));
        tracing::error!(message = self.text, causes, hints);
    }

    /// Writes it to standard error.
    pub(crate) fn print(&self, color: bool) {
        let style = Style { color };
        let mut text = format!("{} {}\n", style.paint(Paint::Bad, "error:"), self.text);
        for cause in &self.causes {
            text += &format!("{} {cause}\n", style.paint(Paint::Strong, "caused by:"));
        }
        for hint in &self.hints {
            text += &format!("{} {hint}\n", style.paint(Paint::Good, "hint:"));
        }
        // There is nobody left to tell.
        let _ = std::io::stderr().write_all(text.as_bytes());
    }
}

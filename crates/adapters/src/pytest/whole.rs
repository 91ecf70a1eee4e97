//! What the project asks of a whole session: told by the process that lists, and made true by one at the end of the run.

use regatta_model::Time;
use serde::Deserialize;

use super::PytestConfig;
use super::listing::between_marks;
use crate::seam::{Conclusion, Ended, Exit, Invocation};
use crate::text;

/// What the process that lists has seen.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Whole {
    /// Whether each process leaves a file of what it covered.
    coverage: bool,
    /// Options that have no effect.
    missed: Vec<String>,
}

/// The answer of the process at the end.
#[derive(Deserialize)]
struct Answer {
    text: String,
    failed: Option<String>,
}

impl Whole {
    /// What to run at the end of a run that began then.
    pub(super) fn conclusion(&self, config: &PytestConfig, begun: Time) -> Option<Invocation> {
        // Elsewhere nobody knows whose files lie where.
        if !self.coverage || config.elsewhere {
            return None;
        }
        let mut invocation = config.invocation(&config.tree, None);
        let seconds = format!("{}.{:06}", begun.0 / 1_000_000, begun.0 % 1_000_000);
        invocation.env.push(("REGATTA_PYTEST_CONCLUDE".to_owned(), seconds));
        Some(invocation)
    }

    pub(super) fn notes(&self, config: &PytestConfig) -> Vec<String> {
        let mut notes = Vec::new();
        if !self.missed.is_empty() {
            let missed = self.missed.join(" and ");
            notes.push(format!("pytest's {missed} was not followed: run.json and junit.xml have all tests"));
        }
        if self.coverage && config.elsewhere {
            let files = "each process left a file of what it covered, beside the project's own on its worker";
            notes.push(format!("{files}: coverage combine && coverage report --fail-under=…"));
        }
        notes
    }
}

pub(super) fn concluded(ended: &Ended) -> Conclusion {
    let answer = between_marks(&ended.stdout).and_then(|mut answers: Vec<Answer>| answers.pop());
    match answer.filter(|_| ended.exit == Exit::Code(0)) {
        Some(Answer { text, failed }) => Conclusion { text, failed },
        None => Conclusion {
            text: text::output(&ended.stdout, &ended.stderr, ended.bytes_omitted).text,
            failed: Some("what its processes covered could not be made into one".to_owned()),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_run_here_is_concluded_and_one_elsewhere_says_how() {
        let config = |elsewhere| PytestConfig { elsewhere, ..PytestConfig::new(Path::new("/tree")) };
        let whole = |coverage, missed: &[&str]| Whole {
            coverage,
            missed: missed.iter().map(|&name| name.to_owned()).collect(),
        };
        for (whole, elsewhere, concludes, said) in [
            (whole(false, &[]), false, false, ""),
            (whole(false, &[]), true, false, ""),
            (whole(true, &[]), false, true, ""),
            (whole(true, &[]), true, false, "coverage combine && coverage report"),
            (whole(true, &["--html", "--junitxml"]), false, true, "--html and --junitxml"),
        ] {
            let config = config(elsewhere);
            let conclusion = whole.conclusion(&config, Time(1_000_002));
            let notes = whole.notes(&config).join("\n");
            assert_eq!(conclusion.is_some(), concludes, "{whole:?}");
            assert!(notes.contains(said) && notes.is_empty() == said.is_empty(), "{notes}");
            if let Some(conclusion) = conclusion {
                let since = ("REGATTA_PYTEST_CONCLUDE".to_owned(), "1.000002".to_owned());
                assert!(conclusion.env.contains(&since), "{:?}", conclusion.env);
            }
        }
    }
}

//! Listing: one process that walks the project's folders as pytest does and prints the files between two marks.

use std::path::PathBuf;
use std::sync::Arc;

use regatta_model::Unit;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::whole::Whole;
use super::{Learnt, PytestConfig, SOURCES};
use crate::digest;
use crate::seam::{AdapterError, Ended, Exit, Listing, ListingStep};
use crate::text;

/// The marks of `plugin/plugin.py`.
const BEGIN: &str = "<<regatta-units>>";
const END: &str = "<<regatta-units-end>>";

/// pytest's exit status when it found no tests. The list process says so by itself only when a plugin ends it early.
const NO_TESTS: i32 = 5;

/// A line of the list.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Root(PathBuf),
    Whole(Whole),
    Unit(String),
}

enum State {
    Fresh,
    Asked,
    Found(Vec<Unit>),
    Told,
}

pub(super) struct PytestListing {
    config: Arc<PytestConfig>,
    learnt: Arc<Learnt>,
    state: State,
}

impl PytestListing {
    pub(super) fn new(config: Arc<PytestConfig>, learnt: Arc<Learnt>) -> Self {
        Self { config, learnt, state: State::Fresh }
    }

    fn failed(&self, ended: &Ended) -> AdapterError {
        let output = text::output(&ended.stdout, &ended.stderr, ended.bytes_omitted).text;
        let python = self.config.interpreter(&self.config.tree);
        let how = match ended.exit {
            Exit::Code(code) => format!("exit status {code}"),
            Exit::Signal(signal) => text::signal_words(signal),
            Exit::TimedOut { .. } => "it took too long".to_owned(),
            Exit::Cancelled => "it was cancelled".to_owned(),
        };
        let what = format!("listing the tests of {} with {} ({how})", self.config.suite, python.display());
        AdapterError::ListingFailed { what, output: output.trim().to_owned() }
    }
}

impl Listing for PytestListing {
    fn next(&mut self) -> Result<ListingStep, AdapterError> {
        match std::mem::replace(&mut self.state, State::Told) {
            State::Fresh => {
                self.state = State::Asked;
                Ok(ListingStep::Run(self.config.invocation(&self.config.tree, None)))
            }
            State::Asked => {
                let what = format!("listing the tests of {}", self.config.suite);
                Err(AdapterError::ListingFailed { what, output: "its process never ended".to_owned() })
            }
            State::Found(units) => Ok(ListingStep::Found { tests: Vec::new(), units }),
            State::Told => {
                let tree = self.config.elsewhere.then_some(&self.config.tree);
                Ok(ListingStep::Done { prepared: tree.and_then(|tree| digest::of_tree(tree, SOURCES)) })
            }
        }
    }

    fn ended(&mut self, ended: &Ended) -> Result<(), AdapterError> {
        if ended.exit == Exit::Code(NO_TESTS) {
            self.state = State::Found(Vec::new());
            return Ok(());
        }
        let lines = if ended.exit == Exit::Code(0) { between_marks(&ended.stdout) } else { None };
        let Some(lines) = lines else { return Err(self.failed(ended)) };
        let mut units = Vec::new();
        for line in lines {
            match line {
                // Listing again gives the same.
                Line::Root(root) => drop(self.learnt.root.set(root)),
                Line::Whole(whole) => drop(self.learnt.whole.set(whole)),
                Line::Unit(name) => units.push(Unit { suite: self.config.suite.clone(), name }),
            }
        }
        self.state = State::Found(units);
        Ok(())
    }
}

/// The whole list in what a process printed; none when a part of it is missing.
pub(super) fn between_marks<L: DeserializeOwned>(stdout: &[u8]) -> Option<Vec<L>> {
    let text = std::str::from_utf8(stdout.get(position(stdout, BEGIN)?..)?).ok()?;
    let list = text.strip_prefix(BEGIN)?.split_once(END)?.0;
    list.lines().filter(|line| !line.is_empty()).map(|line| serde_json::from_str(line).ok()).collect()
}

fn position(bytes: &[u8], mark: &str) -> Option<usize> {
    bytes.windows(mark.len()).rposition(|window| window == mark.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_stands_between_its_marks_whatever_is_around() {
        let names = |text: &str| {
            between_marks(text.as_bytes()).map(|lines: Vec<Line>| {
                let name = |line| match line {
                    Line::Root(root) => root.display().to_string(),
                    Line::Unit(unit) => unit,
                    Line::Whole(whole) => format!("{whole:?}"),
                };
                lines.into_iter().map(name).collect::<Vec<_>>().join(" ")
            })
        };
        let list = "{\"root\": \"/r\"}\n{\"unit\": \"a.py\"}\n";
        let whole = format!("noise\n{BEGIN}\n{list}{END}\nmore");
        assert_eq!(names(&whole).as_deref(), Some("/r a.py"));
        assert_eq!(names(&format!("x{BEGIN}\n{END}\n")).as_deref(), Some(""));
        assert_eq!(names("nothing"), None);
        assert_eq!(names(&format!("{BEGIN}\n{list}")), None, "cut at its end");
        assert_eq!(
            names(&format!("{BEGIN}\n{{\"unit\": \"a.\n[… cut …]\n{END}\n")),
            None,
            "cut in its middle"
        );
    }
}

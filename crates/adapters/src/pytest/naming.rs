//! Naming the tests of files without running them: one process that collects the files and prints, between the two marks,
//! what each of them holds.

use std::collections::HashMap;

use regatta_model::Unit;
use serde::Deserialize;

use super::PytestConfig;
use super::listing::between_marks;
use crate::seam::{Ended, Exit, Invocation};

/// A line of the answer.
#[derive(Deserialize)]
struct Line {
    unit: String,
    /// None for a file that can't be collected.
    tests: Option<Vec<String>>,
}

/// What to run. The files' names travel by standard input: they may be many.
pub(super) fn invocation(config: &PytestConfig, units: &[Unit]) -> Invocation {
    let names: Vec<&String> = units.iter().map(|unit| &unit.name).collect();
    let mut invocation = config.invocation(&config.tree, None);
    invocation.env.push(("REGATTA_PYTEST_NAME".to_owned(), "1".to_owned()));
    invocation.stdin = serde_json::json!(names).to_string().into_bytes();
    invocation
}

/// The tests of each file that could be collected; none when the process didn't come to its end.
pub(super) fn names(units: &[Unit], ended: &Ended) -> Option<HashMap<Unit, Vec<String>>> {
    if ended.exit != Exit::Code(0) {
        return None;
    }
    let lines: Vec<Line> = between_marks(&ended.stdout)?;
    let by_name: HashMap<&String, &Unit> = units.iter().map(|unit| (&unit.name, unit)).collect();
    let named = lines.into_iter().filter_map(|line| {
        let unit = *by_name.get(&line.unit)?;
        Some((unit.clone(), line.tests?))
    });
    Some(named.collect())
}

//! Names the tests of units before they are run, for a listing or a filter that has to know them.

use std::collections::HashMap;

use regatta_adapters::{Ended, Exit, Invocation, PytestConfig};
use regatta_model::Unit;

/// How a suite's units are collected without running anything.
#[derive(Debug, Clone)]
pub(crate) struct Collect {
    invocation: Invocation,
}

impl Collect {
    /// pytest's own `--collect-only -q`: one test's name a line, then an empty line and a summary.
    pub(crate) fn pytest(config: &PytestConfig) -> Self {
        let python = config.python.clone().unwrap_or_else(|| {
            let places = [".venv/bin/python", "venv/bin/python"].map(|place| config.tree.join(place));
            places.into_iter().find(|python| python.exists()).unwrap_or_else(|| "python3".into())
        });
        let own = python.is_relative() && python.components().count() > 1;
        let mut args: Vec<String> =
            ["-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "--color=no"]
                .map(String::from)
                .into();
        args.extend(config.args.iter().cloned());
        let mut env = vec![("PYTHONHASHSEED".to_owned(), "0".to_owned())];
        env.extend(config.env.iter().cloned());
        let program = if own { config.tree.join(python) } else { python };
        Self { invocation: Invocation { program, args, cwd: config.tree.clone(), env, stdin: Vec::new() } }
    }

    /// What to run.
    pub(crate) fn invocation(&self, units: &[Unit]) -> Invocation {
        let mut invocation = self.invocation.clone();
        invocation.args.extend(units.iter().map(|unit| unit.name.clone()));
        invocation
    }
}

/// pytest's exit status when it found no tests.
const NO_TESTS: i32 = 5;

/// The tests of each unit; none when it could not be told, so that the units are run to find out.
pub(crate) fn collected(units: &[Unit], ended: &Ended) -> Option<HashMap<Unit, Vec<String>>> {
    if !matches!(ended.exit, Exit::Code(0 | NO_TESTS)) || ended.bytes_omitted > 0 {
        return None;
    }
    let text = String::from_utf8_lossy(&ended.stdout);
    let mut tests: HashMap<Unit, Vec<String>> = units.iter().map(|unit| (unit.clone(), Vec::new())).collect();
    let suite = units.first()?.suite.clone();
    for line in text.lines().take_while(|line| !line.is_empty()) {
        let (file, _) = line.split_once("::")?;
        tests.get_mut(&Unit { suite: suite.clone(), name: file.to_owned() })?.push(line.to_owned());
    }
    Some(tests)
}

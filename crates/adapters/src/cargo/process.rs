//! One test, one process.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use regatta_model::{Outcome, Record, Time};

use super::CargoConfig;
use super::configuration::Variable;
use super::judge::{IGNORED, judge_closing, judge_logged, judge_status};
use super::log::Log;
use super::prepared::{Binary, Prepared};
use super::verified::Verified;
use crate::seam::{AdapterError, Ended, Invocation, TestProcess};

/// Where the dynamic linker looks for shared libraries.
const LIBRARY_PATH: &str = "LD_LIBRARY_PATH";

/// What starts a binary. `folders` are those of shared libraries. `variables`, of cargo's own configuration, never replace
/// what cargo sets itself; what the suite's configuration sets has the last word.
pub(super) fn invocation(
    config: &CargoConfig,
    tree: &Path,
    binary: &Binary,
    args: Vec<String>,
    folders: Vec<String>,
    variables: &[Variable],
) -> Invocation {
    let (forced, defaults): (Vec<&Variable>, _) = variables.iter().partition(|variable| variable.force);
    let at = |variable: &Variable| (variable.name.clone(), variable.value.at(tree));
    let mut env: Vec<(String, String)> = forced.into_iter().map(at).collect();
    env.extend(binary.env.iter().map(|(name, value)| (name.clone(), value.at(tree))));
    let folders: Vec<String> = folders.into_iter().chain(config.library_path.clone()).collect();
    env.push((LIBRARY_PATH.to_owned(), folders.join(":")));
    env.extend(config.env.iter().cloned());
    Invocation {
        program: PathBuf::from(binary.path.at(tree)),
        args,
        cwd: PathBuf::from(binary.cwd.at(tree)),
        env,
        env_defaults: defaults.into_iter().map(at).collect(),
        stdin: Vec::new(),
    }
}

pub(super) struct CargoTest {
    config: Arc<CargoConfig>,
    tree: PathBuf,
    prepared: Prepared,
    verified: Arc<Verified>,
    /// Of the test that runs.
    log: Mutex<Option<Log>>,
}

/// The binary and the path in a test's name.
fn split(test: &str) -> (&str, Option<&str>) {
    test.split_once('$').map_or((test, None), |(binary, path)| (binary, Some(path)))
}

impl CargoTest {
    pub(super) fn new(
        config: Arc<CargoConfig>,
        tree: &Path,
        prepared: Prepared,
        verified: Arc<Verified>,
    ) -> Self {
        Self { config, tree: tree.to_owned(), prepared, verified, log: Mutex::default() }
    }

    /// The binary of a test, and whether the test is ignored.
    fn find(&self, test: &str) -> Option<(&Binary, bool)> {
        let (id, path) = split(test);
        let binary = self.prepared.binaries.get(id)?;
        match (&binary.tests, path) {
            (None, None) => Some((binary, false)),
            (Some(tests), Some(path)) => tests.get(path).map(|ignored| (binary, *ignored)),
            (None, Some(_)) | (Some(_), None) => None,
        }
    }
}

impl TestProcess for CargoTest {
    fn invocation(&self, test: &str) -> Result<Invocation, AdapterError> {
        let Some((binary, _)) = self.find(test) else {
            return Err(AdapterError::NotPrepared(format!("{test} is not among the tests that were built")));
        };
        let program = PathBuf::from(binary.path.at(&self.tree));
        self.verified.expect(&program, &binary.digest)?;
        let mut args = match split(test).1 {
            Some(path) => vec!["--exact".to_owned(), path.to_owned(), "--nocapture".to_owned()],
            None => Vec::new(),
        };
        let log = binary.logs.then(Log::new).transpose()?;
        args.extend(log.iter().flat_map(Log::args));
        *self.log.lock().unwrap_or_else(PoisonError::into_inner) = log;
        let folders = self.prepared.library_path.iter().map(|place| place.at(&self.tree)).collect();
        let variables = &self.prepared.variables;
        Ok(invocation(&self.config, &self.tree, binary, args, folders, variables))
    }

    fn known(&self, test: &str, now: Time) -> Option<Record> {
        let (_, ignored) = self.find(test)?;
        ignored.then(|| Record { native: Some(IGNORED.to_owned()), ..Record::new(Outcome::Skipped, now, 0) })
    }

    fn judge(&self, test: &str, ended: &Ended) -> Record {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner).take();
        match (split(test).1, log) {
            (Some(path), Some(log)) => judge_logged(path, &log.read(), ended),
            (Some(path), None) => judge_closing(path, ended),
            (None, _) => judge_status(ended),
        }
    }
}

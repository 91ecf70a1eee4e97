//! One test, one process.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use regatta_model::{Outcome, Record, Time};

use super::CargoConfig;
use super::judge::{IGNORED, judge_status, judge_test};
use super::prepared::{Binary, Prepared};
use super::verified::Verified;
use crate::seam::{AdapterError, Ended, Invocation, TestProcess};

/// Where the dynamic linker looks for shared libraries.
pub(super) const LIBRARY_PATH: &str =
    if cfg!(target_os = "macos") { "DYLD_FALLBACK_LIBRARY_PATH" } else { "LD_LIBRARY_PATH" };

pub(super) struct CargoTest {
    config: Arc<CargoConfig>,
    tree: PathBuf,
    prepared: Prepared,
    verified: Arc<Verified>,
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
        Self { config, tree: tree.to_owned(), prepared, verified }
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
        let mut env: Vec<(String, String)> =
            binary.env.iter().map(|(name, value)| (name.clone(), value.at(&self.tree))).collect();
        let folders = self.prepared.library_path.iter().map(|place| place.at(&self.tree));
        let folders: Vec<String> = folders.chain(self.config.library_path.clone()).collect();
        env.push((LIBRARY_PATH.to_owned(), folders.join(":")));
        env.extend(self.config.env.iter().cloned());
        let args = match split(test).1 {
            Some(path) => vec!["--exact".to_owned(), path.to_owned(), "--nocapture".to_owned()],
            None => Vec::new(),
        };
        Ok(Invocation {
            program,
            args,
            cwd: PathBuf::from(binary.cwd.at(&self.tree)),
            env,
            stdin: Vec::new(),
        })
    }

    fn known(&self, test: &str, now: Time) -> Option<Record> {
        let (_, ignored) = self.find(test)?;
        ignored.then(|| Record { native: Some(IGNORED.to_owned()), ..Record::new(Outcome::Skipped, now, 0) })
    }

    fn judge(&self, test: &str, ended: &Ended) -> Record {
        match split(test).1 {
            Some(path) => judge_test(path, ended),
            None => judge_status(ended),
        }
    }
}

//! The file that a listing leaves in the tree for workers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use regatta_model::{Digest, SuiteName};
use serde::{Deserialize, Serialize};

use super::configuration::Variable;
use crate::digest;
use crate::seam::AdapterError;

/// The version of the file's schema. A worker refuses another one.
const VERSION: u32 = 3;

/// Stands for the tree at the beginning of a path, wherever the tree is.
const TREE: &str = "{tree}";

/// What was built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Prepared {
    /// The version of the schema.
    pub(super) version: u32,
    /// Where test binaries find shared libraries, in order.
    pub(super) library_path: Vec<Place>,
    /// What cargo's own configuration sets for every process.
    pub(super) variables: Vec<Variable>,
    /// Test binaries by their names.
    pub(super) binaries: BTreeMap<String, Binary>,
}

/// One test binary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Binary {
    pub(super) path: Place,
    /// The digest of its content.
    pub(super) digest: Digest,
    /// Its package's folder.
    pub(super) cwd: Place,
    pub(super) env: Vec<(String, Place)>,
    /// Its tests, and whether each is ignored. None when it can't list and is one test.
    pub(super) tests: Option<BTreeMap<String, bool>>,
    /// Whether its harness keeps a log as libtest does, in which each test that ended is named.
    pub(super) logs: bool,
}

/// A text that may begin with the tree's path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Place(String);

impl Place {
    /// Makes it independent of where the tree is.
    pub(super) fn new(tree: &Path, text: &str) -> Self {
        match text.strip_prefix(&*tree.to_string_lossy()) {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => Self(format!("{TREE}{rest}")),
            _ => Self(text.to_owned()),
        }
    }

    /// The text for a tree that is here.
    pub(super) fn at(&self, tree: &Path) -> String {
        match self.0.strip_prefix(TREE) {
            Some(rest) => format!("{}{rest}", tree.display()),
            None => self.0.clone(),
        }
    }
}

impl Prepared {
    pub(super) fn new(
        library_path: Vec<Place>,
        variables: Vec<Variable>,
        binaries: BTreeMap<String, Binary>,
    ) -> Self {
        Self { version: VERSION, library_path, variables, binaries }
    }

    /// Writes it into the tree. Whoever reads at the same time finds the old file or the new one.
    pub(super) fn write(&self, tree: &Path, suite: &SuiteName) -> Result<Digest, AdapterError> {
        let path = place(tree, suite);
        let wrong =
            |error: std::io::Error| AdapterError::File { path: path.clone(), reason: error.to_string() };
        let text = serde_json::to_vec_pretty(self).map_err(|error| wrong(error.into()))?;
        let folder = path.parent().unwrap_or(tree);
        std::fs::create_dir_all(folder).map_err(wrong)?;
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(wrong)?;
        std::io::Write::write_all(&mut file, &text).map_err(wrong)?;
        file.persist(&path).map_err(|error| wrong(error.error))?;
        Ok(digest::of_bytes(&text))
    }

    /// Reads what was prepared for a suite, when it is what the dispatcher said.
    pub(super) fn read(
        tree: &Path,
        suite: &SuiteName,
        wanted: Option<&Digest>,
    ) -> Result<Self, AdapterError> {
        let path = place(tree, suite);
        let Some(wanted) = wanted else {
            return Err(AdapterError::NotPrepared(format!("suite {suite} was not built: list it first")));
        };
        let text = std::fs::read(&path).map_err(|error| {
            AdapterError::NotPrepared(format!(
                "{}: {error}: this worker needs the tree in which suite {suite} was built",
                path.display()
            ))
        })?;
        if digest::of_bytes(&text) != *wanted {
            return Err(AdapterError::NotPrepared(format!(
                "{} isn't what was built for this run: share the tree, or bring it up to date",
                path.display()
            )));
        }
        let wrong = |reason: String| AdapterError::File { path: path.clone(), reason };
        let prepared: Self = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
        if prepared.version != VERSION {
            return Err(wrong(format!(
                "has version {}, not {VERSION}: use the same Regatta",
                prepared.version
            )));
        }
        Ok(prepared)
    }
}

fn place(tree: &Path, suite: &SuiteName) -> PathBuf {
    let plain = |c: char| if c.is_alphanumeric() || matches!(c, '-' | '_') { c } else { '-' };
    let name: String = suite.0.chars().map(plain).collect();
    tree.join(".regatta/prepared").join(format!("{name}.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_move_with_the_tree() {
        for (text, elsewhere) in [
            ("/tree", "/other"),
            ("/tree/target/debug", "/other/target/debug"),
            ("/treehouse", "/treehouse"),
            ("/usr/lib", "/usr/lib"),
            ("1.0", "1.0"),
        ] {
            let place = Place::new(Path::new("/tree"), text);
            assert_eq!(place.at(Path::new("/other")), elsewhere);
            assert_eq!(place.at(Path::new("/tree")), text);
        }
    }

    #[test]
    fn only_what_was_prepared_is_read() {
        let tree = tempfile::tempdir().unwrap();
        let suite = SuiteName::from("a/b");
        let prepared = Prepared::new(vec![Place::new(tree.path(), "/lib")], Vec::new(), BTreeMap::new());
        let digest = prepared.write(tree.path(), &suite).unwrap();
        assert!(tree.path().join(".regatta/prepared/a-b.json").is_file());
        assert_eq!(Prepared::read(tree.path(), &suite, Some(&digest)).unwrap(), prepared);
        for (suite, digest, words) in [
            (&suite, None, "was not built"),
            (&suite, Some(Digest::from("0")), "isn't what was built for this run"),
            (&SuiteName::from("other"), Some(digest), "needs the tree"),
        ] {
            let error = Prepared::read(tree.path(), suite, digest.as_ref()).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}

//! The `[env]` of cargo's own configuration: what cargo sets for every process that it starts, and so for tests.
//!
//! It is read as cargo reads it, which tells it to nobody (`cargo config get` isn't stable): from the `.cargo` of the
//! folder in which cargo is started and of each folder above, then from cargo's home; the nearest file that says
//! something of a variable counts. See <https://doc.rust-lang.org/cargo/reference/config.html#env>. Not read: what a
//! file includes, and `--config` among cargo's arguments.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::prepared::Place;
use crate::seam::AdapterError;

/// A variable of cargo's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Variable {
    pub(super) name: String,
    pub(super) value: Place,
    /// Whether it is set where the environment has one of this name too.
    pub(super) force: bool,
}

/// What we need of a configuration file.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    env: BTreeMap<String, Said>,
}

/// What a file says of a variable.
#[derive(Deserialize)]
#[serde(untagged)]
enum Said {
    Value(String),
    Table { value: Option<String>, force: Option<bool>, relative: Option<bool> },
}

/// What all files say of a variable, the nearest first.
#[derive(Default)]
struct Merged {
    /// The text, and the folder that it is relative to if it is a path.
    value: Option<(String, PathBuf)>,
    force: Option<bool>,
    relative: Option<bool>,
}

/// The variables that cargo sets when it is started in `tree` and has its home in `home`.
///
/// # Errors
/// When a file can't be read or isn't a configuration.
pub(super) fn variables(tree: &Path, home: Option<&Path>) -> Result<Vec<Variable>, AdapterError> {
    let folders = tree.ancestors().map(|folder| folder.join(".cargo"));
    let folders = folders.chain(home.map(|home| tree.join(home)));
    let mut all: BTreeMap<String, Merged> = BTreeMap::new();
    for folder in folders {
        // Where both are, cargo takes the old name.
        let files = ["config", "config.toml"].map(|name| folder.join(name));
        let Some(path) = files.into_iter().find(|path| path.is_file()) else { continue };
        let root = folder.parent().unwrap_or(&folder);
        for (name, said) in read(&path)?.env {
            let merged = all.entry(name).or_default();
            let (value, force, relative) = match said {
                Said::Value(value) => (Some(value), None, None),
                Said::Table { value, force, relative } => (value, force, relative),
            };
            merged.value = merged.value.take().or(value.map(|value| (value, root.to_owned())));
            merged.force = merged.force.or(force);
            merged.relative = merged.relative.or(relative);
        }
    }
    let variable = |(name, merged): (String, Merged)| {
        let (value, root) = merged.value?;
        let path = || root.join(&value).to_string_lossy().into_owned();
        let value = if merged.relative == Some(true) { path() } else { value };
        Some(Variable { name, value: Place::new(tree, &value), force: merged.force == Some(true) })
    };
    Ok(all.into_iter().filter_map(variable).collect())
}

fn read(path: &Path) -> Result<File, AdapterError> {
    let wrong = |reason: String| AdapterError::File { path: path.to_owned(), reason };
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    toml::from_str(&text).map_err(|error| wrong(error.message().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_file_counts_and_paths_are_relative_to_its_folder() {
        let above = tempfile::tempdir().unwrap();
        let (tree, home) = (above.path().join("tree"), above.path().join("home"));
        let write = |path: &str, text: &str| {
            let path = above.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write(
            "tree/.cargo/config.toml",
            "[build]\njobs = 1\n[env]\nNEAR = 'tree'\nFORCED = { value = 'x', force = true }\n\
             PLACE = { value = 'data/x', relative = true }\nBOTH = { value = 'tree' }\n",
        );
        write(
            ".cargo/config.toml",
            "[env]\nNEAR = 'above'\nABOVE = { value = 'x', relative = true }\n\
             BOTH = { value = 'above', force = true, relative = false }\n",
        );
        write(
            "home/config",
            "[env]\nABOVE = 'home'\nHOME_ONLY = 'home'\nAT_HOME = { value = 'x', relative = true }\n",
        );
        write("home/config.toml", "[env]\nHOME_ONLY = 'not read'\n");
        let said = |elsewhere: &str| {
            let all = variables(&tree, Some(&home)).unwrap();
            let said = all.iter().map(|variable| {
                let force = if variable.force { " (forced)" } else { "" };
                format!("{}={}{force}", variable.name, variable.value.at(Path::new(elsewhere)))
            });
            said.collect::<Vec<_>>()
        };
        let above = above.path().display();
        let expected = [
            &format!("ABOVE={above}/x"),
            &format!("AT_HOME={above}/x"),
            "BOTH=tree (forced)",
            "FORCED=x (forced)",
            "HOME_ONLY=home",
            "NEAR=tree",
            "PLACE=/elsewhere/data/x",
        ];
        assert_eq!(said("/elsewhere"), expected);
    }

    #[test]
    fn what_is_no_configuration_is_named() {
        let tree = tempfile::tempdir().unwrap();
        assert_eq!(variables(tree.path(), None).unwrap(), []);
        std::fs::create_dir(tree.path().join(".cargo")).unwrap();
        std::fs::write(tree.path().join(".cargo/config.toml"), "[env").unwrap();
        let error = variables(tree.path(), None).unwrap_err().to_string();
        assert!(error.contains(".cargo/config.toml"), "{error}");
    }
}

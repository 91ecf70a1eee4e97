//! What frameworks a tree's files speak of.

use std::path::Path;

/// How many folder entries are looked at in search of a Python test file.
const ENTRIES_MAX: usize = 20_000;

/// A framework that can be recognised. Commands can't: somebody has to say them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framework {
    /// pytest: its configuration, a `conftest.py`, or a file that it would collect.
    Pytest,
    /// Cargo: a `Cargo.toml`.
    Cargo,
}

/// The frameworks of a tree.
#[must_use]
pub fn detect(tree: &Path) -> Vec<Framework> {
    let mut found = Vec::new();
    if tree.join("Cargo.toml").is_file() {
        found.push(Framework::Cargo);
    }
    if is_pytest(tree) {
        found.push(Framework::Pytest);
    }
    found
}

fn is_pytest(tree: &Path) -> bool {
    let has = |name: &str| tree.join(name).is_file();
    let says = |name: &str, section: &str| {
        std::fs::read_to_string(tree.join(name))
            .is_ok_and(|text| text.lines().any(|line| line.trim_start().starts_with(section)))
    };
    ["pytest.ini", ".pytest.ini", "pytest.toml", ".pytest.toml", "conftest.py"].into_iter().any(has)
        || says("pyproject.toml", "[tool.pytest")
        || says("tox.ini", "[pytest]")
        || says("setup.cfg", "[tool:pytest]")
        || has_test_file(tree)
}

/// Whether there is a file of pytest's default names, not too deep and not in a place where others keep theirs.
fn has_test_file(tree: &Path) -> bool {
    let mut folders = vec![tree.to_owned()];
    let mut left = ENTRIES_MAX;
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            left -= 1;
            if left == 0 {
                return false;
            }
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let Ok(kind) = entry.file_type() else { continue };
            let foreign = name.starts_with('.')
                || matches!(&*name, "target" | "node_modules" | "venv" | "build" | "dist" | "__pycache__");
            // A folder with a pyvenv.cfg is an environment, whatever its name.
            if kind.is_dir() && !foreign && !entry.path().join("pyvenv.cfg").exists() {
                folders.push(entry.path());
            } else if kind.is_file()
                && (name.starts_with("test_") && name.ends_with(".py") || name.ends_with("_test.py"))
            {
                return true;
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frameworks_are_known_by_their_files() {
        use Framework::{Cargo, Pytest};
        type Files = &'static [(&'static str, &'static str)];
        let table: &[(Files, &[Framework])] = &[
            (&[], &[]),
            (&[("main.py", "")], &[]),
            (&[("pytest.ini", "")], &[Pytest]),
            (&[("pyproject.toml", "[project]\nname = 'x'\n")], &[]),
            (&[("pyproject.toml", "[tool.pytest.ini_options]\n")], &[Pytest]),
            (&[("tox.ini", "[tox]\n\n[pytest]\n")], &[Pytest]),
            (&[("setup.cfg", "[tool:pytest]\n")], &[Pytest]),
            (&[("a/b/test_x.py", "")], &[Pytest]),
            (&[("a/x_test.py", "")], &[Pytest]),
            (&[("node_modules/p/test_x.py", "")], &[]),
            (&[("env/pyvenv.cfg", ""), ("env/lib/test_x.py", "")], &[]),
            (&[("Cargo.toml", "[workspace]\n"), ("conftest.py", "")], &[Cargo, Pytest]),
        ];
        for (files, expected) in table {
            let tree = tempfile::tempdir().unwrap();
            for (name, text) in *files {
                let path = tree.path().join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }
            assert_eq!(detect(tree.path()), *expected, "{files:?}");
        }
    }
}

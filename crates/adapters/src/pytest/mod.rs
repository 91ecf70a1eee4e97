//! pytest: files are listed without importing them, and run by a warm process that collects each when it is first asked
//! for.
//!
//! The process runs the modules in `plugin/`, which are part of this binary and reach the interpreter through its
//! environment, so that nothing is written into the tree. `PYTHONHASHSEED` is fixed, since tests that are parametrised by a set must have
//! the same names in every process; a configuration that sets it has its way.
//!
//! What it can't do: an `addopts` line that asks for a choice over the whole run (`--lf`, `-x`, `-n`, `--splits`) has no
//! meaning for a part of it and is taken back or applies file by file, and so are files of all tests (`--junitxml`). What
//! pytest-cov measures is made one by a process of its own at the end. Fixtures of a session are set up once in each
//! process, and torn down when it ends; that a test of another file is then named for their failure isn't possible.

mod folder;
mod listing;
mod naming;
mod session;
mod whole;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use regatta_model::{Digest, Suite, SuiteName, Time, Unit, Units};

use crate::digest;
use crate::seam::{Adapter, AdapterError, Conclusion, Ended, Invocation, Listing, Place, Runner};
use listing::PytestListing;
use session::PytestSession;
use whole::Whole;

/// Makes modules of [`PLUGIN`].
const LOADER: &str = include_str!("plugin/loader.py");

/// The plugin's modules, each after those that it imports. The last has the process's `main`.
const PLUGIN: [(&str, &str); 8] = [
    ("channel", include_str!("plugin/channel.py")),
    ("record", include_str!("plugin/record.py")),
    ("fixtures", include_str!("plugin/fixtures.py")),
    ("tree", include_str!("plugin/tree.py")),
    ("slot", include_str!("plugin/slot.py")),
    ("whole", include_str!("plugin/whole.py")),
    ("plugin", include_str!("plugin/plugin.py")),
    ("process", include_str!("plugin/process.py")),
];

/// What the interpreter runs: the source that its environment holds. It is taken out of the environment at once.
const BOOTSTRAP: &str =
    "import os; exec(compile(os.environ.pop('REGATTA_PYTEST_LOADER'), '<regatta/loader.py>', 'exec'))";

/// The files that must be the same wherever tests run.
const SOURCES: &str = ".py";

/// Files of the tree's root that may change what a file's tests are.
const SETTINGS: [&str; 7] =
    ["pytest.ini", ".pytest.ini", "pytest.toml", ".pytest.toml", "pyproject.toml", "tox.ini", "setup.cfg"];

/// The variable from which pytest takes options.
const ADDOPTS: &str = "PYTEST_ADDOPTS";

/// What pytest-xdist's `--dist` is asked for where tests of a file must not be spread (pytest-xdist, "Running tests across
/// multiple CPUs").
const DIST_WHOLE: [&str; 3] = ["loadfile", "loadscope", "loadgroup"];

/// Whether options, as they stand in pytest's settings of any form, ask pytest-xdist not to spread a file's tests.
fn asks_for_whole_files(settings: &str) -> bool {
    let lines = settings.lines().filter(|line| !line.trim_start().starts_with(['#', ';']));
    let words =
        lines.flat_map(|line| line.split(|next: char| next.is_whitespace() || "=\"',[]".contains(next)));
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    words.windows(2).any(|pair| pair[0] == "--dist" && DIST_WHOLE.contains(&pair[1]))
}

/// What a pytest suite is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PytestConfig {
    /// The suite's name.
    pub suite: SuiteName,
    /// The folder in which pytest is started.
    pub tree: PathBuf,
    /// The interpreter: a path, relative to the tree where it is one, or a name on `PATH`. None for the tree's `.venv` or
    /// `venv`, or else `python3`.
    pub python: Option<PathBuf>,
    /// Options for pytest, such as `-m`, `not slow`.
    pub args: Vec<String>,
    /// Files and folders; none for what the project's own configuration says.
    pub paths: Vec<String>,
    /// Variables to set.
    pub env: Vec<(String, String)>,
    /// Whether workers have trees of their own, which must be compared with the one that was listed.
    pub elsewhere: bool,
}

impl PytestConfig {
    /// A suite named `pytest` as it is without configuration.
    #[must_use]
    pub fn new(tree: &Path) -> Self {
        Self {
            suite: "pytest".into(),
            tree: tree.to_owned(),
            python: None,
            args: Vec::new(),
            paths: Vec::new(),
            env: Vec::new(),
            elsewhere: false,
        }
    }

    fn interpreter(&self, tree: &Path) -> PathBuf {
        match &self.python {
            Some(python) if python.is_relative() && python.components().count() > 1 => tree.join(python),
            Some(python) => python.clone(),
            None => [".venv/bin/python", "venv/bin/python"]
                .into_iter()
                .map(|place| tree.join(place))
                .find(|python| python.exists())
                .unwrap_or_else(|| PathBuf::from("python3")),
        }
    }

    /// The command of both modes; with the descriptors in its environment it serves, without them it lists.
    fn invocation(&self, tree: &Path, folder: Option<&Path>) -> Invocation {
        let arguments: Vec<&String> = self.args.iter().chain(&self.paths).collect();
        let arguments = serde_json::Value::from(arguments.into_iter().cloned().collect::<Vec<String>>());
        let mut env = vec![("PYTHONHASHSEED".to_owned(), "0".to_owned())];
        env.retain(|(name, _)| self.env.iter().all(|(set, _)| set != name));
        env.extend(self.env.iter().cloned());
        env.push(("REGATTA_PYTEST_LOADER".to_owned(), LOADER.to_owned()));
        env.push(("REGATTA_PYTEST_PLUGIN".to_owned(), serde_json::json!(PLUGIN).to_string()));
        env.push(("REGATTA_PYTEST_ARGS".to_owned(), arguments.to_string()));
        if let Some(folder) = folder {
            env.push(("REGATTA_PYTEST_FOLDER".to_owned(), folder.to_string_lossy().into_owned()));
        }
        Invocation {
            program: self.interpreter(tree),
            args: vec!["-c".to_owned(), BOOTSTRAP.to_owned()],
            cwd: tree.to_owned(),
            env,
            env_defaults: Vec::new(),
            stdin: Vec::new(),
        }
    }
}

/// A pytest suite.
#[derive(Debug, Clone)]
pub struct Pytest {
    config: Arc<PytestConfig>,
    learnt: Arc<Learnt>,
}

/// What is known once the suite was listed.
#[derive(Debug, Default)]
struct Learnt {
    /// pytest's root folder, from which it names files.
    root: OnceLock<PathBuf>,
    /// What is asked of a whole session.
    whole: OnceLock<Whole>,
}

impl Pytest {
    /// Makes the suite.
    #[must_use]
    pub fn new(config: PytestConfig) -> Self {
        Self { config: Arc::new(config), learnt: Arc::default() }
    }
}

impl Adapter for Pytest {
    fn suite(&self) -> Suite {
        Suite { name: self.config.suite.clone(), adapter: "pytest".to_owned() }
    }

    fn list(&self) -> Box<dyn Listing> {
        Box::new(PytestListing::new(Arc::clone(&self.config), Arc::clone(&self.learnt)))
    }

    /// The digest of the file, of every `conftest.py` above it, of pytest's settings, and of the suite's own. What a file
    /// imports isn't in it, and may change its tests nevertheless (a base class, a table of cases): the process tells
    /// what a file holds when it collects it, also for tests that are asked for by name.
    fn unit_digest(&self, unit: &Unit) -> Option<Digest> {
        let root = self.learnt.root.get().unwrap_or(&self.config.tree);
        let file = root.join(&unit.name);
        if !file.is_file() {
            return None;
        }
        let above = file.ancestors().skip(1).take_while(|folder| folder.starts_with(root));
        let conftests = above.map(|folder| folder.join("conftest.py"));
        let settings = SETTINGS.iter().map(|name| root.join(name));
        let others = conftests.chain(settings).filter(|path| path.is_file());
        let files: Vec<PathBuf> = std::iter::once(file.clone()).chain(others).collect();
        let PytestConfig { suite: _, tree: _, python, args, paths, env, elsewhere: _ } = &*self.config;
        let ours = format!("{python:?} {args:?} {paths:?} {env:?}");
        let theirs = digest::of_files(&files).ok()?;
        Some(digest::of_bytes(format!("{ours} {theirs}").as_bytes()))
    }

    fn naming(&self, units: &[Unit]) -> Option<Invocation> {
        Some(naming::invocation(&self.config, units))
    }

    fn names(&self, units: &[Unit], ended: &Ended) -> Option<HashMap<Unit, Vec<String>>> {
        naming::names(units, ended)
    }

    /// A file is loaded as a whole. Whoever asks pytest-xdist to keep files, classes or groups in one process has tests that
    /// build on each other, or share what is dear.
    fn units(&self) -> Units {
        let PytestConfig { tree, args, env, .. } = &*self.config;
        let files = SETTINGS.iter().filter_map(|name| std::fs::read_to_string(tree.join(name)).ok());
        let addopts = env.iter().filter(|(name, _)| name == ADDOPTS).map(|(_, value)| value.clone());
        let theirs = std::env::var(ADDOPTS).ok();
        let texts = files.chain(addopts).chain(theirs).chain([args.join(" ")]);
        if texts.into_iter().any(|text| asks_for_whole_files(&text)) { Units::Whole } else { Units::Together }
    }

    fn starts_ahead(&self) -> bool {
        true
    }

    fn conclusion(&self, begun: Time) -> Option<Invocation> {
        self.learnt.whole.get()?.conclusion(&self.config, begun)
    }

    fn concluded(&self, ended: &Ended) -> Conclusion {
        whole::concluded(ended)
    }

    fn notes(&self) -> Vec<String> {
        self.learnt.whole.get().map(|whole| whole.notes(&self.config)).unwrap_or_default()
    }

    fn runner(&self, place: Place<'_>, prepared: Option<&Digest>) -> Result<Runner, AdapterError> {
        let tree = place.tree;
        let differs = |listed: &&Digest| digest::of_tree(tree, SOURCES).as_ref() != Some(listed);
        if prepared.filter(differs).is_some() {
            return Err(AdapterError::NotPrepared(format!(
                "the Python files in {} are not those of the run; bring this worker's tree to the same commit",
                tree.display()
            )));
        }
        Ok(Runner::Warm(Box::new(PytestSession::new(Arc::clone(&self.config), place))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_stay_whole_where_xdist_is_asked_to_keep_them() {
        for (settings, whole) in [
            ("[pytest]\naddopts = -n 2 --dist loadfile\n", true),
            ("[pytest]\naddopts =\n    -n auto\n    --dist=loadscope\n", true),
            ("[tool.pytest.ini_options]\naddopts = [\"-n\", \"2\", \"--dist\", \"loadgroup\"]\n", true),
            ("addopts = \"--dist=loadfile\"", true),
            ("[pytest]\naddopts = -n 2 --dist load\n", false),
            ("# addopts = --dist loadfile\n; --dist loadfile\n", false),
            ("loadfile --dist", false),
            ("", false),
        ] {
            assert_eq!(asks_for_whole_files(settings), whole, "{settings}");
        }
    }

    #[test]
    fn the_interpreter_is_the_trees_own_when_it_has_one() {
        let tree = tempfile::tempdir().unwrap();
        let mut config = PytestConfig::new(tree.path());
        assert_eq!(config.interpreter(tree.path()), Path::new("python3"));
        std::fs::create_dir_all(tree.path().join(".venv/bin")).unwrap();
        std::fs::write(tree.path().join(".venv/bin/python"), "").unwrap();
        assert_eq!(config.interpreter(tree.path()), tree.path().join(".venv/bin/python"));
        config.python = Some("env/bin/python".into());
        assert_eq!(config.interpreter(tree.path()), tree.path().join("env/bin/python"));
        config.python = Some("pypy3".into());
        assert_eq!(config.interpreter(tree.path()), Path::new("pypy3"));
    }

    #[test]
    fn a_configured_hash_seed_has_its_way() {
        let seeds = |config: &PytestConfig| -> Vec<String> {
            let env = config.invocation(Path::new("/tree"), None).env;
            env.into_iter().filter(|(name, _)| name == "PYTHONHASHSEED").map(|(_, seed)| seed).collect()
        };
        let mut config = PytestConfig::new(Path::new("/tree"));
        assert_eq!(seeds(&config), ["0"]);
        config.env.push(("PYTHONHASHSEED".into(), "random".into()));
        assert_eq!(seeds(&config), ["random"]);
    }

    #[test]
    fn a_digest_follows_the_file_its_conftests_and_the_settings() {
        let tree = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(tree.path().join(name), text).unwrap();
        std::fs::create_dir_all(tree.path().join("a/b")).unwrap();
        write("a/b/test_x.py", "1");
        let pytest = Pytest::new(PytestConfig::new(tree.path()));
        let digest =
            || pytest.unit_digest(&Unit { suite: "pytest".into(), name: "a/b/test_x.py".into() }).unwrap();
        let mut seen = vec![digest()];
        assert_eq!(digest(), seen[0]);
        for (name, text) in
            [("a/b/test_x.py", "2"), ("a/conftest.py", ""), ("conftest.py", "x"), ("pytest.ini", "[pytest]")]
        {
            write(name, text);
            assert!(!seen.contains(&digest()), "{name}");
            seen.push(digest());
        }
        write("a/test_other.py", "x");
        assert_eq!(digest(), seen[4]);
        let unit = |name: &str| Unit { suite: "pytest".into(), name: name.into() };
        assert_eq!(pytest.unit_digest(&unit("none.py")), None);
        let mut config = PytestConfig::new(tree.path());
        config.args = vec!["-k".into(), "one".into()];
        assert_ne!(Pytest::new(config).unit_digest(&unit("a/b/test_x.py")), Some(digest()), "a choice");
    }
}

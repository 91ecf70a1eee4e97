//! A project: its tree, what its configuration says, and its suites.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use regatta_adapters::{
    Adapter, AdapterError, Cargo, CargoConfig, Commands, CommandsConfig, Framework, Pytest, PytestConfig,
    detect,
};
use regatta_model::{Glob, Knowledge, Route, SuiteOrder, TestId, Units};

use crate::args::{Place, Selection};
use crate::config::{Config, FILE, Kind, Step, SuiteConfig};
use crate::error::CliError;
use crate::exit::Exit;
use crate::filter::Filter;

/// The queue for what no configuration routes elsewhere.
pub(crate) const QUEUE: &str = "regatta";

/// One suite, and what the run has to know of it.
pub(crate) struct Suite {
    /// What lists and runs it.
    pub(crate) adapter: Arc<dyn Adapter>,
    /// Where its batches go.
    pub(crate) order: SuiteOrder,
}

/// Where tests run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trees {
    /// In the tree that is listed.
    One,
    /// In the trees of workers, which may differ from it.
    Many,
}

/// A project.
pub(crate) struct Project {
    /// Its folder, absolute.
    pub(crate) tree: PathBuf,
    /// Its configuration; empty where there is none.
    pub(crate) config: Config,
    /// Its suites, by name.
    pub(crate) suites: Vec<Suite>,
}

impl Project {
    /// Reads the configuration, or recognises what is there.
    pub(crate) fn open(place: &Place, trees: Trees) -> Result<Self, CliError> {
        let tree = place.tree.canonicalize().map_err(|error| {
            CliError::from_error(
                Exit::Usage,
                format!("the folder {} can't be entered", place.tree.display()),
                &error,
            )
        })?;
        if !tree.is_dir() {
            return Err(CliError::usage(format!("{} is no folder", place.tree.display())));
        }
        let file = place.config.clone().or_else(|| Some(tree.join(FILE)).filter(|file| file.exists()));
        let config = file.as_deref().map(Config::read).transpose()?.unwrap_or_default();
        let mut suites = Vec::new();
        for (name, suite) in &config.suite {
            suites.push(configured(&tree, &config, name, suite, trees)?);
        }
        if config.suite.is_empty() {
            suites.extend(detect(&tree).into_iter().map(|framework| recognised(&tree, framework, trees)));
        }
        Ok(Self { tree, config, suites })
    }

    /// Leaves only the suites that were asked for, and sees that what the configuration names for them is there.
    pub(crate) fn select(&mut self, names: &[String]) -> Result<(), CliError> {
        for name in names {
            if !self.suites.iter().any(|suite| suite.order.suite.name.0 == *name) {
                let known: Vec<&str> =
                    self.suites.iter().map(|suite| suite.order.suite.name.0.as_str()).collect();
                return Err(CliError::usage(format!("there is no suite {name:?} here"))
                    .hint(format!("there are: {}", known.join(", "))));
            }
        }
        self.suites.retain(|suite| names.is_empty() || names.contains(&suite.order.suite.name.0));
        self.suites
            .iter()
            .try_for_each(|suite| self.config.check_files(&self.tree, &suite.order.suite.name.0))
    }

    /// Whether a suite may hold no tests: a filter leaves some out, and what was only recognised was nobody's wish.
    pub(crate) fn is_filtered(&self, selection: &Selection) -> bool {
        selection.is_filtered() || self.config.suite.is_empty()
    }

    /// The filter of a command line.
    pub(crate) fn filter(&self, selection: &Selection, known: &Knowledge) -> Result<Filter, CliError> {
        let include: Vec<String> = self.spelled(selection.patterns.iter().chain(&selection.filter));
        // A shell's variable that is not set leaves out nothing, as it takes all in `--filter`.
        let exclude = selection.exclude.iter().filter(|pattern| !pattern.is_empty());
        let filter = Filter::new(&include, &self.spelled(exclude));
        if !selection.failed {
            return Ok(filter);
        }
        if known.tests.is_empty() {
            return Err(CliError::new(
                Exit::NoTests,
                "no earlier run is known here, and no test that failed in it",
            )
            .hint("without --failed all tests are run"));
        }
        let here = |test: &TestId| self.suites.iter().any(|suite| suite.order.suite.name == test.suite);
        let failed = known.tests.iter().filter(|(test, known)| known.failed_last && here(test));
        let failed: HashSet<_> = failed.map(|(test, _)| test.clone()).collect();
        if failed.is_empty() {
            return Err(CliError::new(Exit::NoTests, "nothing failed last time")
                .hint("without --failed all tests are run"));
        }
        Ok(filter.only(failed))
    }

    /// Patterns as they were typed, and where one begins as a path that a shell completes, as names begin too: `./tests`
    /// and `/the/tree/tests` are `tests`.
    fn spelled<'a>(&self, patterns: impl IntoIterator<Item = &'a String>) -> Vec<String> {
        let inside = |pattern: &String| {
            if let Some(inside) = pattern.strip_prefix("./") {
                return Some(inside.to_owned());
            }
            let (path, name) = pattern.split_at(pattern.find("::").unwrap_or(pattern.len()));
            // The tree's path has no links in it; what is typed may have.
            let path = Path::new(path);
            let real = path.is_absolute().then(|| path.canonicalize().unwrap_or_else(|_| path.to_owned()))?;
            Some(real.strip_prefix(&self.tree).ok()?.to_str()?.to_owned() + name)
        };
        patterns.into_iter().flat_map(|pattern| [Some(pattern.clone()), inside(pattern)]).flatten().collect()
    }

    /// What to say when there is nothing to run.
    pub(crate) fn nothing_here(&self) -> CliError {
        CliError::new(Exit::NoTests, format!("no tests were recognised in {}", self.tree.display()))
            .hint("pytest and Cargo projects are recognised; go to the project's folder or name it with -C")
            .hint(format!("for anything else, list commands in {FILE}: see docs/files.md"))
    }
}

fn recognised(tree: &Path, framework: Framework, trees: Trees) -> Suite {
    let order = |adapter: &dyn Adapter, kind| SuiteOrder {
        suite: adapter.suite(),
        queue: QUEUE.to_owned(),
        routes: Vec::new(),
        units: adapter.units(),
        held: is_held(kind, trees),
    };
    match framework {
        Framework::Pytest => {
            let config = PytestConfig { elsewhere: trees == Trees::Many, ..PytestConfig::new(tree) };
            let adapter = Arc::new(Pytest::new(config));
            Suite { order: order(adapter.as_ref(), Kind::Pytest), adapter }
        }
        Framework::Cargo => {
            let adapter = Arc::new(Cargo::new(cargo_config(tree)));
            Suite { order: order(adapter.as_ref(), Kind::Cargo), adapter }
        }
    }
}

/// Whether nothing of a suite can be handed out before it is known what workers must find in their trees.
fn is_held(kind: Kind, trees: Trees) -> bool {
    kind == Kind::Cargo || kind == Kind::Pytest && trees == Trees::Many
}

fn cargo_config(tree: &Path) -> CargoConfig {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let library_path = std::env::var("LD_LIBRARY_PATH").ok();
    CargoConfig { home, library_path, ..CargoConfig::new(tree) }
}

fn configured(
    tree: &Path,
    whole: &Config,
    name: &str,
    config: &SuiteConfig,
    trees: Trees,
) -> Result<Suite, CliError> {
    let suite: regatta_model::SuiteName = name.into();
    let env: Vec<_> = pairs(&config.env);
    let adapter: Arc<dyn Adapter> = match config.adapter {
        Kind::Pytest => {
            let pytest = PytestConfig {
                suite,
                tree: tree.to_owned(),
                python: config.python.clone(),
                args: config.args.clone(),
                paths: config.paths.clone(),
                env,
                elsewhere: trees == Trees::Many,
            };
            Arc::new(Pytest::new(pytest))
        }
        Kind::Cargo => {
            let (manifest, args) = (config.manifest.clone(), config.args.clone());
            Arc::new(Cargo::new(CargoConfig { suite, manifest, args, env, ..cargo_config(tree) }))
        }
        Kind::Commands => {
            let key = if config.file.is_some() { "file" } else { "test" };
            let path = [Step::Key("suite"), Step::Key(name), Step::Key(key)];
            let wrong = |error: AdapterError| whole.source.wrong_value(&path, error.to_string());
            let commands = if let Some(file) = &config.file {
                Commands::from_file(suite, tree, file, env)
            } else {
                let commands = config.test.iter().map(|test| (test.name.clone(), test.run.clone())).collect();
                Commands::new(CommandsConfig { suite, tree: tree.to_owned(), commands, env })
            };
            Arc::new(commands.map_err(wrong)?)
        }
    };
    let routes = config
        .route
        .iter()
        .map(|route| Route { pattern: Glob::new(&route.tests), queue: route.queue.clone() });
    let units = match config.split_files {
        Some(true) => Units::Together,
        Some(false) => Units::Whole,
        None => adapter.units(),
    };
    let order = SuiteOrder {
        suite: adapter.suite(),
        queue: config.queue.clone().unwrap_or_else(|| QUEUE.to_owned()),
        routes: routes.collect(),
        units,
        held: is_held(config.adapter, trees),
    };
    Ok(Suite { adapter, order })
}

/// Variables as pairs.
pub(crate) fn pairs(env: &BTreeMap<String, String>) -> Vec<(String, String)> {
    env.iter().map(|(name, value)| (name.clone(), value.clone())).collect()
}

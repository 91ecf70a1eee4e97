//! What `regatta.toml` may not say though each value for itself could stand there.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use super::{Config, Kind, Step, SuiteConfig};
use crate::error::CliError;

impl Config {
    /// Refuses what makes no sense together, before anything is begun.
    pub(super) fn check(&self) -> Result<(), CliError> {
        self.check_variables(&[], &self.env)?;
        for (name, suite) in &self.suite {
            let path = [Step::Key("suite"), Step::Key(name)];
            if name.trim().is_empty() || name.contains(char::is_control) {
                let message = "a suite needs a name, without control characters".to_owned();
                return Err(self.source.wrong_key(&path, message, None));
            }
            self.check_keys(&path, suite)?;
            self.check_arguments(&path, suite)?;
            self.check_variables(&path, &suite.env)?;
            self.check_commands(&path, suite)?;
        }
        Ok(())
    }

    /// Refuses keys that say nothing to this adapter.
    fn check_keys(&self, path: &[Step<'_>], suite: &SuiteConfig) -> Result<(), CliError> {
        let set = [
            ("paths", !suite.paths.is_empty(), [Kind::Pytest].as_slice()),
            ("python", suite.python.is_some(), &[Kind::Pytest]),
            ("split-files", suite.split_files.is_some(), &[Kind::Pytest]),
            ("args", !suite.args.is_empty(), &[Kind::Pytest, Kind::Cargo]),
            ("manifest", suite.manifest.is_some(), &[Kind::Cargo]),
            ("file", suite.file.is_some(), &[Kind::Commands]),
            ("test", !suite.test.is_empty(), &[Kind::Commands]),
        ];
        let odd = set.into_iter().find(|(_, is_set, kinds)| *is_set && !kinds.contains(&suite.adapter));
        let Some((key, _, _)) = odd else { return Ok(()) };
        let adapter = format!("{:?}", suite.adapter).to_lowercase();
        let message = format!("`{key}` says nothing to the adapter {adapter}");
        let help = "remove it, or choose another adapter".to_owned();
        Err(self.source.wrong_key(&[path, &[Step::Key(key)]].concat(), message, Some(help)))
    }

    /// Refuses arguments that would change nothing: what follows `--` is for test binaries, and `cargo test` starts none here.
    fn check_arguments(&self, path: &[Step<'_>], suite: &SuiteConfig) -> Result<(), CliError> {
        if suite.adapter != Kind::Cargo {
            return Ok(());
        }
        if let Some(at) = test_name(&suite.args) {
            let path = [path, &[Step::Key("args"), Step::At(at)]].concat();
            let message = "this would be the name of a test, which is not taken here".to_owned();
            let help = "choose tests with --filter and --exclude".to_owned();
            return Err(self.source.wrong_key(&path, message, Some(help)));
        }
        let Some(at) = suite.args.iter().position(|argument| argument == "--") else { return Ok(()) };
        let path = [path, &[Step::Key("args"), Step::At(at)]].concat();
        let message =
            "what follows `--` is for test binaries, which get their arguments from regatta alone".to_owned();
        let help = "choose tests with --filter and --exclude; ignored tests can't be asked for".to_owned();
        Err(self.source.wrong_key(&path, message, Some(help)))
    }

    /// Refuses files of a suite that aren't there. Suites that nobody asked for may lack theirs.
    pub(crate) fn check_files(&self, tree: &Path, name: &str) -> Result<(), CliError> {
        let Some(suite) = self.suite.get(name) else { return Ok(()) };
        // A program of one word is looked for on the `PATH`.
        let python = suite.python.iter().filter(|python| python.components().count() > 1);
        let named = (python.map(|path| (vec![Step::Key("python")], path.as_path())))
            .chain(suite.manifest.iter().map(|path| (vec![Step::Key("manifest")], path.as_path())))
            .chain(suite.paths.iter().enumerate().map(|(at, path)| {
                let file = path.split_once("::").map_or(path.as_str(), |(file, _)| file);
                (vec![Step::Key("paths"), Step::At(at)], Path::new(file))
            }));
        for (key, path) in named {
            if !tree.join(path).exists() {
                let place = [&[Step::Key("suite"), Step::Key(name)], key.as_slice()].concat();
                return Err(self.source.wrong_value(&place, format!("{} is not there", path.display())));
            }
        }
        Ok(())
    }

    /// Refuses names that no process can be given, and values with a NUL (POSIX: `name=value`, ended by NUL).
    fn check_variables(&self, path: &[Step<'_>], env: &BTreeMap<String, String>) -> Result<(), CliError> {
        for (name, value) in env {
            let path = [path, &[Step::Key("env"), Step::Key(name)]].concat();
            if name.is_empty() || name.contains(['=', '\0']) {
                let message = format!("{name:?} can't name a variable: it is empty, or holds `=` or NUL");
                return Err(self.source.wrong_key(&path, message, None));
            }
            if value.contains('\0') {
                let message = "a variable can't hold NUL".to_owned();
                return Err(self.source.wrong_value(&path, message));
            }
        }
        Ok(())
    }

    /// Refuses a list of commands without, or with two, of what makes it.
    fn check_commands(&self, path: &[Step<'_>], suite: &SuiteConfig) -> Result<(), CliError> {
        if suite.adapter == Kind::Commands && suite.file.is_some() != suite.test.is_empty() {
            let message =
                "a suite of commands needs either `file` or `[[suite.NAME.test]]`, and not both".to_owned();
            return Err(self.source.wrong_key(path, message, None));
        }
        let mut names = HashSet::new();
        for (at, test) in suite.test.iter().enumerate() {
            let path = [path, &[Step::Key("test"), Step::At(at), Step::Key("name")]].concat();
            if test.name.trim().is_empty() || test.name.contains(char::is_control) {
                let message = "a command needs a name, without control characters".to_owned();
                return Err(self.source.wrong_value(&path, message));
            }
            if !names.insert(&test.name) {
                let message = format!("two commands are called {:?}: give each its own name", test.name);
                return Err(self.source.wrong_value(&path, message));
            }
        }
        Ok(())
    }
}

/// Options of `cargo test` that no value follows.
const FLAGS: [&str; 19] = [
    "--all",
    "--all-features",
    "--all-targets",
    "--benches",
    "--bins",
    "--examples",
    "--frozen",
    "--lib",
    "--locked",
    "--no-default-features",
    "--no-fail-fast",
    "--offline",
    "--quiet",
    "--release",
    "--tests",
    "--verbose",
    "--workspace",
    "-q",
    "-r",
];

/// Which argument `cargo test` would take for the name of a test: one that is no option, nor may be the value of one.
fn test_name(args: &[String]) -> Option<usize> {
    let own = args.iter().position(|argument| argument == "--").unwrap_or(args.len());
    (0..own).find(|&at| {
        let before = at.checked_sub(1).map(|before| args[before].as_str());
        let is_value = before.is_some_and(|before| {
            before.starts_with('-') && !before.contains('=') && !FLAGS.contains(&before)
        });
        !args[at].starts_with('-') && !is_value
    })
}

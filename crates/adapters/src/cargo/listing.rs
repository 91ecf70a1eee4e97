//! Listing: build, ask cargo and rustc for what a test's environment needs, then ask each binary for its tests.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use regatta_model::{Listed, TestId, Unit};

use super::CargoConfig;
use super::configuration::{self, Variable};
use super::log::Log;
use super::messages::{Artifact, BuildScript, Message, Metadata, Package, Target};
use super::prepared::{Binary, Place, Prepared};
use super::process::invocation;
use crate::digest;
use crate::seam::{AdapterError, Ended, Exit, Invocation, Listing, ListingStep};
use crate::text;

/// What is asked for now.
enum Step {
    Build,
    Metadata,
    Rustc,
    /// The binaries, one after the other: all tests, then the ignored ones.
    Binaries,
    Done,
}

pub(super) struct CargoListing {
    config: Arc<CargoConfig>,
    step: Step,
    artifacts: Vec<Artifact>,
    scripts: Vec<BuildScript>,
    metadata: Option<Metadata>,
    library_path: Vec<String>,
    /// Of cargo's own configuration.
    variables: Vec<Variable>,
    waiting: VecDeque<Asked>,
    ready: BTreeMap<String, Binary>,
    found: Option<Vec<Listed>>,
}

/// A binary that is being listed.
struct Asked {
    id: String,
    binary: Binary,
    /// It says in its manifest that it has no harness.
    own_harness: bool,
    /// In which its harness should say the same, to tell whether it keeps a log.
    log: Option<Log>,
    all: Option<Vec<String>>,
}

impl CargoListing {
    pub(super) fn new(config: Arc<CargoConfig>) -> Self {
        Self {
            config,
            step: Step::Build,
            artifacts: Vec::new(),
            scripts: Vec::new(),
            metadata: None,
            library_path: Vec::new(),
            variables: Vec::new(),
            waiting: VecDeque::new(),
            ready: BTreeMap::new(),
            found: None,
        }
    }

    fn cargo(&self, words: &[&str], more: &[String]) -> Invocation {
        let mut args: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        if let Some(manifest) = &self.config.manifest {
            args.extend(["--manifest-path".to_owned(), manifest.display().to_string()]);
        }
        args.extend(more.iter().cloned());
        self.tool(&self.config.cargo, args)
    }

    fn tool(&self, program: &Path, args: Vec<String>) -> Invocation {
        Invocation {
            program: program.to_owned(),
            args,
            cwd: self.config.tree.clone(),
            env: self.config.env.clone(),
            env_defaults: Vec::new(),
            stdin: Vec::new(),
        }
    }

    fn built(&mut self, ended: &Ended) -> Result<(), AdapterError> {
        expect_whole("cargo test --no-run", ended)?;
        for line in ended.stdout.split(|&byte| byte == b'\n').filter(|line| line.starts_with(b"{")) {
            match serde_json::from_slice(line) {
                Ok(Message::CompilerArtifact(artifact)) => self.artifacts.push(artifact),
                Ok(Message::BuildScriptExecuted(script)) => self.scripts.push(script),
                // A build script may print a line that looks like a message.
                Ok(Message::Other) | Err(_) => {}
            }
        }
        Ok(())
    }

    fn described(&mut self, ended: &Ended) -> Result<(), AdapterError> {
        expect_whole("cargo metadata", ended)?;
        let metadata =
            serde_json::from_slice(&ended.stdout).map_err(|error| AdapterError::ListingFailed {
                what: "reading cargo metadata".to_owned(),
                output: error.to_string(),
            })?;
        self.metadata = Some(metadata);
        Ok(())
    }

    /// The toolchain's libraries are known; with them, all that the binaries need.
    fn located(&mut self, ended: &Ended) -> Result<(), AdapterError> {
        expect_whole("rustc --print", ended)?;
        let said = String::from_utf8_lossy(&ended.stdout);
        let mut lines = said.lines();
        let sysroot = lines.next().unwrap_or_default().to_owned();
        let target_libraries = lines.next().map(str::to_owned);
        let Some(metadata) = self.metadata.take() else { return Ok(()) };
        self.variables = configuration::variables(&self.config.tree, self.config.home.as_deref())?;
        let tests: Vec<&Artifact> = self.artifacts.iter().filter(|artifact| artifact.profile.test).collect();
        self.library_path = library_path(&self.scripts, &metadata, &tests);
        self.library_path.extend(target_libraries);
        self.library_path.push(format!("{sysroot}/lib"));
        let cargo = format!("{sysroot}/bin/cargo");
        for artifact in tests {
            let Some(path) = &artifact.executable else { continue };
            let package = metadata.packages.iter().find(|package| package.id == artifact.package_id);
            let Some(package) = package else { continue };
            let asked = self.asked(artifact, path, package, &cargo)?;
            if self.waiting.iter().any(|other| other.id == asked.id) {
                return Err(AdapterError::ListingFailed {
                    what: "listing".to_owned(),
                    output: format!(
                        "two test binaries are called {}: select one with `-p name@version`",
                        asked.id
                    ),
                });
            }
            self.waiting.push_back(asked);
        }
        Ok(())
    }

    fn asked(
        &self,
        artifact: &Artifact,
        path: &Path,
        package: &Package,
        cargo: &str,
    ) -> Result<Asked, AdapterError> {
        let tree = &self.config.tree;
        let mut env = vec![("CARGO".to_owned(), cargo.to_owned())];
        env.extend(package.env());
        for script in self.scripts.iter().filter(|script| script.package_id == package.id) {
            env.push(("OUT_DIR".to_owned(), script.out_dir.display().to_string()));
            env.extend(script.env.iter().cloned());
        }
        if artifact.target.kind.iter().any(|kind| kind == "test" || kind == "bench") {
            let is_bin = |other: &&Artifact| {
                other.package_id == package.id && !other.profile.test && other.target.kind == ["bin"]
            };
            for bin in self.artifacts.iter().filter(is_bin) {
                if let Some(path) = &bin.executable {
                    env.push((format!("CARGO_BIN_EXE_{}", bin.target.name), path.display().to_string()));
                }
            }
        }
        let digest = digest::of_file(path)
            .map_err(|error| AdapterError::File { path: path.to_owned(), reason: error.to_string() })?;
        let folder = package.manifest_path.parent().unwrap_or(tree);
        let own_harness = own_harness(package, &artifact.target);
        Ok(Asked {
            id: package.binary_id(&artifact.target),
            own_harness,
            // A harness of one's own may know the option and mean something else by it.
            log: if own_harness { None } else { Some(Log::new()?) },
            binary: Binary {
                path: Place::new(tree, &path.to_string_lossy()),
                digest,
                cwd: Place::new(tree, &folder.to_string_lossy()),
                env: env.into_iter().map(|(name, value)| (name, Place::new(tree, &value))).collect(),
                tests: None,
                logs: false,
            },
            all: None,
        })
    }

    fn ask(&self, asked: &Asked) -> Invocation {
        let tree = &self.config.tree;
        let mut args = vec!["--list".to_owned(), "--format".to_owned(), "terse".to_owned()];
        if asked.all.is_some() {
            args.push("--ignored".to_owned());
        }
        args.extend(asked.log.iter().flat_map(Log::args));
        let folders = self.library_path.iter().cloned();
        invocation(&self.config, tree, &asked.binary, args, folders.collect(), &self.variables)
    }

    /// A binary said something: first all of its tests, then the ignored ones.
    fn listed(&mut self, ended: &Ended) -> Result<(), AdapterError> {
        let Some(mut asked) = self.waiting.pop_front() else { return Ok(()) };
        let names =
            if ended.exit == Exit::Code(0) && ended.bytes_omitted == 0 { names(&ended.stdout) } else { None };
        let log = asked.log.take();
        match (names, asked.all.take()) {
            // It may not know of logs.
            (None, None) if log.is_some() => self.waiting.push_front(asked),
            (Some(all), None) if !(asked.own_harness && all.is_empty()) => {
                asked.binary.logs = log.is_some_and(|log| logs(&log.read(), &all));
                asked.all = Some(all);
                self.waiting.push_front(asked);
            }
            (Some(ignored), Some(all)) => {
                let flag = |name: String| (name.clone(), ignored.contains(&name));
                asked.binary.tests = Some(all.into_iter().map(flag).collect());
                self.keep(asked);
            }
            // Without a harness it need not know how to list: it is one test then.
            _ if asked.own_harness => self.keep(asked),
            _ => return Err(failed(&format!("listing the tests of {}", asked.id), ended)),
        }
        Ok(())
    }

    fn keep(&mut self, asked: Asked) {
        let suite = &self.config.suite;
        let id = &asked.id;
        let test = |name: String| Listed {
            test: TestId { suite: suite.clone(), name },
            unit: Some(Unit { suite: suite.clone(), name: id.clone() }),
        };
        self.found = Some(match &asked.binary.tests {
            Some(tests) => tests.keys().map(|path| test(format!("{id}${path}"))).collect(),
            None => vec![test(id.clone())],
        });
        self.ready.insert(asked.id, asked.binary);
    }
}

impl Listing for CargoListing {
    fn next(&mut self) -> Result<ListingStep, AdapterError> {
        if let Some(tests) = self.found.take() {
            return Ok(ListingStep::Found { tests, units: Vec::new() });
        }
        Ok(match self.step {
            Step::Build => {
                let words = ["test", "--no-run", "--message-format", "json-render-diagnostics"];
                ListingStep::Run(self.cargo(&words, &self.config.args))
            }
            Step::Metadata => {
                ListingStep::Run(self.cargo(&["metadata", "--no-deps", "--format-version", "1"], &[]))
            }
            Step::Rustc => {
                let args = ["--print", "sysroot", "--print", "target-libdir"].map(str::to_owned).to_vec();
                ListingStep::Run(self.tool(&self.rustc(), args))
            }
            Step::Binaries => match self.waiting.front() {
                Some(asked) => ListingStep::Run(self.ask(asked)),
                None => {
                    self.step = Step::Done;
                    return self.next();
                }
            },
            Step::Done => {
                let place = |folder: &String| Place::new(&self.config.tree, folder);
                let library_path = self.library_path.iter().map(place).collect();
                let variables = self.variables.clone();
                let prepared = Prepared::new(library_path, variables, self.ready.clone());
                ListingStep::Done { prepared: Some(prepared.write(&self.config.tree, &self.config.suite)?) }
            }
        })
    }

    fn ended(&mut self, ended: &Ended) -> Result<(), AdapterError> {
        match self.step {
            Step::Build => {
                self.built(ended)?;
                self.step = Step::Metadata;
            }
            Step::Metadata => {
                self.described(ended)?;
                self.step = Step::Rustc;
            }
            Step::Rustc => {
                self.located(ended)?;
                self.step = Step::Binaries;
            }
            Step::Binaries => self.listed(ended)?,
            Step::Done => {}
        }
        Ok(())
    }
}

impl CargoListing {
    /// rustc stands beside a cargo that is named by its path.
    fn rustc(&self) -> PathBuf {
        let beside = self.config.cargo.parent().map(|folder| folder.join("rustc"));
        beside.filter(|rustc| rustc.is_file()).unwrap_or_else(|| PathBuf::from("rustc"))
    }
}

/// Where a test binary finds shared libraries, in cargo's order: what build scripts linked inside the target folder, then
/// the folders of the binaries themselves.
fn library_path(scripts: &[BuildScript], metadata: &Metadata, tests: &[&Artifact]) -> Vec<String> {
    let mut folders: Vec<String> = Vec::new();
    let mut add = |folder: &Path| {
        let folder = folder.display().to_string();
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    };
    for path in scripts.iter().flat_map(|script| &script.linked_paths) {
        let path = Path::new(path.split_once('=').map_or(path.as_str(), |(_, path)| path));
        if path.starts_with(&metadata.target_directory) {
            add(path);
        }
    }
    // A binary lies in `deps` or `examples` of its profile's folder.
    for folder in tests.iter().filter_map(|test| test.executable.as_ref()?.parent()?.parent()) {
        add(&folder.join("deps"));
        add(folder);
    }
    folders
}

/// Whether the manifest says `harness = false` for a target.
fn own_harness(package: &Package, target: &Target) -> bool {
    let Ok(text) = std::fs::read_to_string(&package.manifest_path) else { return false };
    let Ok(manifest) = text.parse::<toml::Table>() else { return false };
    let kind = target.table();
    let says = |table: &toml::Value| table.get("harness").and_then(toml::Value::as_bool) == Some(false);
    match manifest.get(kind) {
        Some(toml::Value::Array(targets)) => targets.iter().any(|table| {
            says(table) && table.get("name").and_then(toml::Value::as_str) == Some(&target.name)
        }),
        Some(table) => says(table),
        None => false,
    }
}

/// The names in a terse list; none when it isn't one.
fn names(stdout: &[u8]) -> Option<Vec<String>> {
    let text = std::str::from_utf8(stdout).ok()?;
    let name = |line: &str| {
        let (name, kind) = line.rsplit_once(": ")?;
        matches!(kind, "test" | "benchmark").then(|| name.to_owned())
    };
    text.lines().filter(|line| !line.trim().is_empty()).map(name).collect()
}

/// Whether a harness wrote its tests (`test NAME`) to its log too.
fn logs(log: &str, tests: &[String]) -> bool {
    let first = log.lines().next().and_then(|line| line.split_once(' '));
    first.is_some_and(|(_, name)| tests.iter().any(|test| test == name))
}

fn expect_whole(what: &str, ended: &Ended) -> Result<(), AdapterError> {
    if ended.exit != Exit::Code(0) {
        return Err(failed(what, ended));
    }
    if ended.bytes_omitted > 0 {
        let output =
            format!("{} bytes of its output were cut: raise the limit on output", ended.bytes_omitted);
        return Err(AdapterError::ListingFailed { what: what.to_owned(), output });
    }
    Ok(())
}

fn failed(what: &str, ended: &Ended) -> AdapterError {
    let how = match ended.exit {
        Exit::Code(code) => format!("exit status {code}"),
        Exit::Signal(signal) => text::signal_words(signal),
        Exit::TimedOut { .. } => "it took too long".to_owned(),
        Exit::Cancelled => "it was cancelled".to_owned(),
    };
    // Messages for machines stand on standard output; what is for people is on standard error.
    let stderr = String::from_utf8_lossy(&ended.stderr);
    AdapterError::ListingFailed { what: format!("{what} ({how})"), output: stderr.trim().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terse_list_is_all_names_or_nothing() {
        for (text, expected) in [
            ("", Some(vec![])),
            ("a: test\nb::c: test\n\nd: benchmark\n", Some(vec!["a", "b::c", "d"])),
            ("odd: name: test\n", Some(vec!["odd: name"])),
            ("hello\na: test\n", None),
            ("\u{1b}[0m", None),
        ] {
            let found = names(text.as_bytes());
            assert_eq!(found, expected.map(|names| names.into_iter().map(str::to_owned).collect()), "{text}");
        }
    }

    #[test]
    fn a_harness_that_keeps_no_log_is_asked_again_without_and_has_none() {
        let ended = |code, stdout: &str| Ended {
            exit: Exit::Code(code),
            stdout: stdout.as_bytes().to_vec(),
            stderr: Vec::new(),
            bytes_omitted: 0,
            started: regatta_model::Time(1),
            duration: std::time::Duration::ZERO,
            leaked: 0,
        };
        for (code, said, asked_again) in [(0, "a: test\n", false), (101, "unrecognized option", true)] {
            let mut listing = CargoListing::new(Arc::new(CargoConfig::new(Path::new("/tree"))));
            listing.step = Step::Binaries;
            let place = || Place::new(Path::new("/tree"), "/tree");
            let (digest, env) = ("0".into(), Vec::new());
            let binary = Binary { path: place(), digest, cwd: place(), env, tests: None, logs: false };
            let (id, log) = ("fruit".to_owned(), Some(Log::new().unwrap()));
            listing.waiting.push_back(Asked { id, binary, own_harness: false, log, all: None });
            let with_log = |listing: &mut CargoListing| match listing.next().unwrap() {
                ListingStep::Run(invocation) => invocation.args.iter().any(|arg| arg == "--logfile"),
                other => panic!("{other:?}"),
            };
            assert!(with_log(&mut listing));
            listing.ended(&ended(code, said)).unwrap();
            assert!(!with_log(&mut listing));
            if asked_again {
                listing.ended(&ended(0, "a: test\n")).unwrap();
                assert!(!with_log(&mut listing));
            }
            listing.ended(&ended(0, "")).unwrap();
            assert!(!listing.ready["fruit"].logs);
            assert_eq!(listing.ready["fruit"].tests, Some(BTreeMap::from([("a".to_owned(), false)])));
        }
    }

    #[test]
    fn a_target_without_a_harness_is_found_whatever_its_kind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("Cargo.toml");
        std::fs::write(
            &path,
            "[lib]\ncrate-type = ['rlib']\nharness = false\n[[test]]\nname = 'own'\nharness = false\n\
             [[test]]\nname = 'usual'\n[[bin]]\nname = 'own'\n",
        )
        .unwrap();
        let package = serde_json::json!({"id": "p", "name": "p", "version": "1.0.0", "manifest_path": path});
        let package: Package = serde_json::from_value(package).unwrap();
        for (kind, name, expected) in [
            ("lib", "p", true),
            ("rlib", "p", true),
            ("proc-macro", "p", true),
            ("test", "own", true),
            ("test", "usual", false),
            ("bin", "own", false),
        ] {
            let target = Target { name: name.into(), kind: vec![kind.into()] };
            assert_eq!(own_harness(&package, &target), expected, "{kind} {name}");
        }
    }

    #[test]
    fn a_log_names_what_was_listed() {
        let tests = ["a::b".to_owned(), "c".to_owned()];
        for (log, expected) in [
            ("test a::b\ntest c\n", true),
            ("benchmark c\n", true),
            ("", false),
            ("a::b: test\n", false),
            ("test other\n", false),
        ] {
            assert_eq!(logs(log, &tests), expected, "{log}");
        }
    }
}

//! Cargo: builds once, lists the tests of every test binary, and runs each test in a process of its own, with the
//! working directory and the environment that cargo gives.
//!
//! A test's name is `<binary>$<path>`, with the binary's name as cargo-nextest has it: `itertools$size_hint::mul`,
//! `itertools::quick$merge`, `regatta-cli::bin/regatta$args::help`. A binary with its own harness that can't list is one
//! test, named by its binary alone and judged by its exit status, as cargo does.
//!
//! What the listing finds is written to `.regatta/prepared/<suite>.json` in the tree, so that a worker needs no cargo.
//! Places in the tree are kept relative to it. A worker uses it only when its digest is the one that it was told, and a
//! binary only when it has the content that was listed, which is looked at before each test.
//!
//! What it can't do: documentation tests (rustdoc neither lists nor names them), a `runner` of the cargo configuration or
//! an `[env]` in a file that it includes, and libraries of an `LD_LIBRARY_PATH` that isn't in [`CargoConfig::library_path`].

mod configuration;
mod judge;
mod listing;
mod log;
mod messages;
mod prepared;
mod process;
mod verified;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use regatta_model::{Digest, Suite, SuiteName, Unit};

use crate::seam::{Adapter, AdapterError, Listing, Place, Runner};
use listing::CargoListing;
use prepared::Prepared;
use process::CargoTest;
use verified::Verified;

/// What a Cargo suite is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CargoConfig {
    /// The suite's name.
    pub suite: SuiteName,
    /// The folder in which cargo is started, and that workers share.
    pub tree: PathBuf,
    /// The program; `cargo` by default.
    pub cargo: PathBuf,
    /// The manifest, relative to the tree; none for what cargo finds there.
    pub manifest: Option<PathBuf>,
    /// Options for `cargo test`: `--workspace`, `--features`, `--release`, `--test`, ….
    pub args: Vec<String>,
    /// Variables to set for cargo and for tests.
    pub env: Vec<(String, String)>,
    /// Cargo's own folder (`CARGO_HOME`, or else `.cargo` in the user's home), whose configuration holds for all projects.
    pub home: Option<PathBuf>,
    /// What the caller's environment has as `LD_LIBRARY_PATH`, to go on after what cargo puts before it.
    pub library_path: Option<String>,
}

impl CargoConfig {
    /// A suite named `cargo` as it is without configuration.
    #[must_use]
    pub fn new(tree: &Path) -> Self {
        Self {
            suite: "cargo".into(),
            tree: tree.to_owned(),
            cargo: PathBuf::from("cargo"),
            manifest: None,
            args: Vec::new(),
            env: Vec::new(),
            home: None,
            library_path: None,
        }
    }
}

/// A Cargo suite.
#[derive(Debug, Clone)]
pub struct Cargo {
    config: Arc<CargoConfig>,
    verified: Arc<Verified>,
}

impl Cargo {
    /// Makes the suite.
    #[must_use]
    pub fn new(config: CargoConfig) -> Self {
        Self { config: Arc::new(config), verified: Arc::default() }
    }
}

impl Adapter for Cargo {
    fn suite(&self) -> Suite {
        Suite { name: self.config.suite.clone(), adapter: "cargo".to_owned() }
    }

    fn list(&self) -> Box<dyn Listing> {
        Box::new(CargoListing::new(Arc::clone(&self.config)))
    }

    fn unit_digest(&self, _unit: &Unit) -> Option<Digest> {
        None
    }

    fn runner(&self, place: Place<'_>, prepared: Option<&Digest>) -> Result<Runner, AdapterError> {
        let tree = place.tree;
        let prepared = Prepared::read(tree, &self.config.suite, prepared)?;
        let test = CargoTest::new(Arc::clone(&self.config), tree, prepared, Arc::clone(&self.verified));
        Ok(Runner::Each(Box::new(test)))
    }
}

//! The laboratory under `target/lab`: the built binaries, a Python environment with the peers at fixed versions, and
//! copies of two real projects, networkx and itertools.
//!
//! Everything is made when it is first needed and kept; `cargo clean` takes it away.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use crate::process::{command, finish};

/// The peers, and the Python project whose suite is run.
const PYTHON_PACKAGES: [&str; 5] =
    ["celery==5.7.0", "networkx==3.6.1", "pytest==9.2.0", "pytest-xdist==3.8.0", "setuptools"];

/// The Rust project whose suite is run.
const ITERTOOLS: &str = "0.15.0";

/// The longest that an installation or a build may take.
const SETUP_MAX: Duration = Duration::from_secs(1_800);

/// How much a harness does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Everything, with the binaries that users have.
    Whole,
    /// A small part, with the binaries that tests have built already: shows that all of it works.
    Quick,
}

/// The laboratory.
#[derive(Debug)]
pub struct Lab {
    root: PathBuf,
    folder: PathBuf,
}

impl Lab {
    /// Opens the laboratory of the workspace at `root`.
    ///
    /// # Errors
    /// When its folder can't be made.
    pub fn open(root: &Path) -> anyhow::Result<Self> {
        let folder = root.join("target/lab");
        std::fs::create_dir_all(&folder).with_context(|| format!("{} can't be made", folder.display()))?;
        Ok(Self { root: root.to_owned(), folder })
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The workspace.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Builds a binary of the workspace, in release form unless it is for something quick, and gives its path.
    ///
    /// # Errors
    /// When it doesn't build.
    pub fn binary(&self, package: &str, name: &str, scale: Scale) -> anyhow::Result<PathBuf> {
        match scale {
            Scale::Whole => Ok(self.build(package, name, &["--release"])?.join("release").join(name)),
            Scale::Quick => self.test_binary(package, name),
        }
    }

    /// The same in the form that tests use, which `cargo test` has built already.
    ///
    /// # Errors
    /// When it doesn't build.
    pub fn test_binary(&self, package: &str, name: &str) -> anyhow::Result<PathBuf> {
        Ok(self.build(package, name, &[])?.join("debug").join(name))
    }

    fn build(&self, package: &str, name: &str, arguments: &[&str]) -> anyhow::Result<PathBuf> {
        let mut build = command("cargo", &self.root);
        build.args(["build", "--locked", "--package", package, "--bin", name]).args(arguments);
        let target =
            std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| self.root.join("target"), PathBuf::from);
        build.env("CARGO_TARGET_DIR", &target);
        finish(build, SETUP_MAX)?.expect_code(&format!("cargo build of {name}"), &[0])?;
        Ok(target)
    }

    /// The Python environment with the peers, made when it isn't there.
    ///
    /// # Errors
    /// When Python or its `venv` is missing, or a package can't be installed.
    pub fn python(&self) -> anyhow::Result<Python> {
        static MAKING: Mutex<()> = Mutex::new(());
        let _one = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
        let home = self.folder.join("python");
        let python = Python { home: home.clone() };
        let stamp = home.join("packages.txt");
        let wanted = PYTHON_PACKAGES.join("\n");
        if std::fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
            return Ok(python);
        }
        let mut make = command("python3", &self.folder);
        make.args(["-m", "venv"]).arg(&home);
        finish(make, SETUP_MAX)?.expect_code("python3 -m venv (python3-venv is needed)", &[0])?;
        let mut install = command(python.program("python"), &self.folder);
        install.args(["-m", "pip", "install", "--quiet"]).args(PYTHON_PACKAGES);
        finish(install, SETUP_MAX)?.expect_code("pip install", &[0])?;
        std::fs::write(&stamp, wanted)?;
        Ok(python)
    }

    /// A fresh copy of networkx, with its tests and nothing else, named by `purpose`.
    ///
    /// # Errors
    /// When it can't be copied.
    pub fn networkx(&self, purpose: &str) -> anyhow::Result<PathBuf> {
        let home = self.python()?.home;
        let installed = std::fs::read_dir(home.join("lib"))?
            .filter_map(Result::ok)
            .map(|entry| entry.path().join("site-packages/networkx"))
            .find(|path| path.is_dir())
            .context("networkx isn't in the laboratory's Python environment: delete target/lab/python")?;
        let copy = self.folder.join(format!("networkx-{purpose}"));
        replace(&copy)?;
        copy_tree(&installed, &copy.join("networkx"))?;
        // The mark of a pytest project at its root, which the installed package lacks.
        std::fs::write(copy.join("pytest.ini"), "[pytest]\n")?;
        Ok(copy)
    }

    /// A copy of itertools from the Rust registry, named by `purpose`. What was built in it is kept.
    ///
    /// # Errors
    /// When it can't be fetched or copied.
    pub fn itertools(&self, purpose: &str) -> anyhow::Result<PathBuf> {
        let copy = self.folder.join(format!("itertools-{purpose}"));
        if copy.join("Cargo.toml").is_file() {
            return Ok(copy);
        }
        let fetch = self.folder.join("fetch");
        std::fs::create_dir_all(&fetch)?;
        let manifest = format!(
            "[package]\nname = \"fetch\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[lib]\npath = \"lib.rs\"\n\n\
             [dependencies]\nitertools = \"={ITERTOOLS}\"\n\n[workspace]\n"
        );
        std::fs::write(fetch.join("Cargo.toml"), manifest)?;
        std::fs::write(fetch.join("lib.rs"), "")?;
        let mut metadata = command("cargo", &fetch);
        metadata.args(["metadata", "--format-version", "1"]);
        let metadata = finish(metadata, SETUP_MAX)?.expect_code("cargo metadata for itertools", &[0])?;
        let metadata: serde_json::Value = serde_json::from_str(&metadata.stdout)?;
        let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
        let found = packages.iter().find(|package| package["name"] == "itertools");
        let manifest = found.and_then(|package| package["manifest_path"].as_str()).context("no itertools")?;
        let source = Path::new(manifest).parent().context("a manifest lies in a folder")?;
        copy_tree(source, &copy)?;
        // It lies inside our workspace's folder and isn't part of it.
        let manifest = copy.join("Cargo.toml");
        let text = std::fs::read_to_string(&manifest)?;
        std::fs::write(&manifest, format!("{text}\n[workspace]\n"))?;
        Ok(copy)
    }
}

/// A Python environment.
#[derive(Debug, Clone)]
pub struct Python {
    home: PathBuf,
}

impl Python {
    /// A program of the environment.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.home.join("bin").join(name)
    }

    /// Lets a command see the environment as if it were activated.
    pub fn activate(&self, command: &mut Command) {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::iter::once(self.home.join("bin")).chain(std::env::split_paths(&path));
        if let Ok(path) = std::env::join_paths(folders) {
            command.env("PATH", path);
        }
        command.env("VIRTUAL_ENV", &self.home).env("PYTHONDONTWRITEBYTECODE", "1");
    }
}

/// Removes a folder when it is there.
fn replace(folder: &Path) -> anyhow::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{} can't be removed", folder.display()))
        }
        _ => Ok(()),
    }
}

fn copy_tree(from: &Path, to: &Path) -> anyhow::Result<()> {
    ensure!(from.is_dir(), "{} isn't a folder", from.display());
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (kind, name) = (entry.file_type()?, entry.file_name());
        if kind.is_dir() {
            if name != "__pycache__" {
                copy_tree(&entry.path(), &to.join(name))?;
            }
        } else if kind.is_file() {
            std::fs::copy(entry.path(), to.join(name))?;
        } else {
            bail!("{} is neither a file nor a folder", entry.path().display());
        }
    }
    Ok(())
}

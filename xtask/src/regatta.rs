//! How the harnesses call the built `regatta`: as a user does, from outside.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::lab::{Lab, Python, Scale};
use crate::process::command;

/// The part of networkx that is run quickly: for `--filter`, and as pytest's argument.
pub const NETWORKX_PART: [&str; 2] = ["networkx/utils/*", "networkx/utils"];

/// The part of itertools that is run quickly: for `--filter`, and as nextest's argument.
pub const ITERTOOLS_PART: [&str; 2] = ["*zip*", "zip"];

/// The queue on which test batches go when a project says nothing else.
pub const QUEUE: &str = "regatta";

/// A project's folder and what is needed to run it.
#[derive(Debug, Clone)]
pub struct Project {
    /// Its folder.
    pub folder: PathBuf,
    /// The Python environment that it needs, if it is a Python project.
    pub python: Option<Python>,
    /// Which tests are meant, as `--filter` has it; all where there is none.
    pub filter: Option<&'static str>,
}

/// What a run prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Show {
    /// Every event as a line of JSON, for a harness that waits for one.
    Events,
    /// What a person sees who pipes it.
    Text,
}

/// The built binary.
#[derive(Debug, Clone)]
pub struct Regatta {
    /// Where it is.
    pub binary: PathBuf,
}

impl Regatta {
    /// Builds it.
    ///
    /// # Errors
    /// When it doesn't build.
    pub fn build(lab: &Lab, scale: Scale) -> anyhow::Result<Self> {
        Ok(Self { binary: lab.binary("regatta-cli", "regatta", scale)? })
    }

    fn command(&self, project: &Project) -> Command {
        let mut command = command(&self.binary, &project.folder);
        // What a user has set for Regatta must not reach a measurement.
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("REGATTA_"))
        {
            command.env_remove(name);
        }
        if let Some(python) = &project.python {
            python.activate(&mut command);
        }
        command
    }

    /// `regatta run` on the embedded broker.
    #[must_use]
    pub fn run_embedded(&self, project: &Project, slots: usize, show: Show) -> Command {
        let mut run = self.command(project);
        let format = if show == Show::Events { "json" } else { "human" };
        run.args(["run", "--format", format, "--workers", &slots.to_string()]);
        run.args(project.filter.iter().flat_map(|filter| ["--filter", filter]));
        run
    }

    /// `regatta run` over RabbitMQ; its workers are started by others.
    #[must_use]
    pub fn run_on(&self, project: &Project, broker: &str, slots: usize) -> Command {
        let mut run = self.command(project);
        run.args(["run", "--format", "json", "--broker", broker, "--workers", &slots.to_string()]);
        run.args(project.filter.iter().flat_map(|filter| ["--filter", filter]));
        run
    }

    /// `regatta worker` with one slot.
    #[must_use]
    pub fn worker(&self, project: &Project, broker: &str, name: &str) -> Command {
        self.worker_with(project, broker, name, 1)
    }

    /// `regatta worker` with as many slots as asked.
    #[must_use]
    pub fn worker_with(&self, project: &Project, broker: &str, name: &str, slots: usize) -> Command {
        let mut worker = self.command(project);
        worker.args(["worker", "-Q", QUEUE, "--broker", broker, "--name", name]);
        worker.args(["--slots", &slots.to_string()]);
        worker
    }
}

/// Forgets what earlier runs of a project left, so that a harness sees its own run alone.
///
/// # Errors
/// When something is there that can't be removed.
pub fn forget_runs(folder: &Path) -> std::io::Result<()> {
    remove(&folder.join(".regatta"))
}

/// Forgets the records of earlier runs, and keeps what was learnt from them.
///
/// # Errors
/// When something is there that can't be removed.
pub fn forget_records(folder: &Path) -> std::io::Result<()> {
    remove(&folder.join(".regatta/runs"))
}

fn remove(folder: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

//! Faults in mid-run: a worker or the broker killed or frozen, or no worker left. Each run must end with exactly one
//! verdict per test, the same as undisturbed, and say what was lost.
//!
//! `cargo xtask faults` does it to the networkx suite; `xtask/tests/faults.rs` to a small one, in every test run.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;
use regatta_testbed::Node;

use crate::compare::plain_pytest;
use crate::lab::{Lab, Scale};
use crate::process::Running;
use crate::regatta::{Project, Regatta, forget_runs};
use crate::say::line;
use crate::verdicts::{Story, Verdicts, compare, expect_whole, story_of};

/// Within what time a run must say that nobody works on its queue.
const NOBODY_MAX: Duration = Duration::from_secs(10);

/// Every fault, by name.
pub const FAULTS: [(&str, Fault); 4] = [
    ("worker-killed", worker_killed),
    ("broker-killed", broker_killed),
    ("worker-frozen", worker_frozen),
    ("nobody-works", nobody_works),
];

/// Disturbs a run, and says how it went.
pub type Fault = fn(&Scene) -> anyhow::Result<String>;

/// Runs every fault on networkx, or the one named, and tells whether all went as they must.
///
/// # Errors
/// When something can't be started.
pub fn run(root: &Path, only: Option<&str>) -> anyhow::Result<bool> {
    let names: Vec<&str> = FAULTS.iter().map(|(name, _)| *name).collect();
    ensure!(only.is_none_or(|only| names.contains(&only)), "no such fault; there are {}", names.join(", "));
    let scene = Scene::networkx(&Lab::open(root)?)?;
    let mut good = true;
    for (name, fault) in FAULTS.into_iter().filter(|(name, _)| only.is_none_or(|only| only == *name)) {
        match fault(&scene) {
            Ok(said) => line(&format!("{name:<14} ok    {said}")),
            Err(error) => {
                good = false;
                line(&format!("{name:<14} WRONG {error:#}"));
            }
        }
    }
    Ok(good)
}

/// A suite, what it says undisturbed, and when to strike.
#[derive(Debug)]
pub struct Scene {
    regatta: Regatta,
    project: Project,
    undisturbed: Verdicts,
    /// After how many finished tests the fault strikes: well into the run, far from its end.
    strike_after: usize,
    /// The longest that one run may take, faults included.
    run_max: Duration,
}

impl Scene {
    /// The networkx suite.
    ///
    /// # Errors
    /// When it, or what runs it, can't be had.
    pub fn networkx(lab: &Lab) -> anyhow::Result<Self> {
        Ok(Self {
            regatta: Regatta::build(lab, Scale::Whole)?,
            project: Project { folder: lab.networkx("faults")?, python: Some(lab.python()?), filter: None },
            undisturbed: plain_pytest(lab, Scale::Whole)?,
            strike_after: 500,
            run_max: Duration::from_secs(900),
        })
    }

    /// Forty commands of a fifth of a second, every tenth of which fails, in `folder`.
    ///
    /// # Errors
    /// When the folder can't be written to.
    pub fn commands(binary: PathBuf, folder: PathBuf) -> anyhow::Result<Self> {
        let mut configuration = String::from("[suite.small]\nadapter = \"commands\"\n");
        let mut undisturbed = Verdicts::new();
        for n in 0..40 {
            let (code, said) = if n % 10 == 3 { (1, "failed") } else { (0, "passed") };
            let name = format!("t{n:02}");
            let run = format!("sh -c 'sleep 0.2; exit {code}'");
            // Writing to a string can't fail.
            let _ = writeln!(configuration, "[[suite.small.test]]\nname = \"{name}\"\nrun = \"{run}\"");
            undisturbed.insert(name, said.to_owned());
        }
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("regatta.toml"), configuration)?;
        let project = Project { folder, python: None, filter: None };
        Ok(Self {
            regatta: Regatta { binary },
            project,
            undisturbed,
            strike_after: 6,
            run_max: Duration::from_secs(90),
        })
    }

    fn worker(&self, node: &Node, name: &str) -> anyhow::Result<Running> {
        Running::start(self.regatta.worker(&self.project, &node.url(), name))
    }

    /// Starts the run, and waits until it is in full swing.
    fn underway(&self, node: &Node) -> anyhow::Result<Running> {
        forget_runs(&self.project.folder)?;
        let mut run = Running::start(self.regatta.run_on(&self.project, &node.url(), 2))?;
        let mut finished = 0;
        run.wait_for(self.run_max, |line| {
            finished += usize::from(line.contains("\"attempt_finished\""));
            finished == self.strike_after
        })?;
        Ok(run)
    }

    /// The end of a run that was disturbed: as if it had not been.
    fn as_undisturbed(&self, run: Running) -> anyhow::Result<Story> {
        run.finish(self.run_max)?.expect_code("regatta run", &[0, 1])?;
        let story = story_of(&self.project.folder)?;
        expect_whole(&story)?;
        let comparison = compare(&self.undisturbed, &story.verdicts);
        ensure!(
            comparison.count == 0,
            "{} differences:\n{}",
            comparison.count,
            comparison.differences.join("\n")
        );
        Ok(story)
    }
}

fn worker_killed(scene: &Scene) -> anyhow::Result<String> {
    let node = Node::start();
    let (one, two) = (scene.worker(&node, "one")?, scene.worker(&node, "two")?);
    let run = scene.underway(&node)?;
    one.signal(Signal::SIGKILL)?;
    let story = scene.as_undisturbed(run)?;
    drop((one, two));
    ensure!(story.workers_lost > 0, "the run didn't say that a worker was lost");
    Ok(format!("{} verdicts, same; {} worker lost", story.verdicts.len(), story.workers_lost))
}

fn broker_killed(scene: &Scene) -> anyhow::Result<String> {
    let mut node = Node::start();
    let workers = (scene.worker(&node, "one")?, scene.worker(&node, "two")?);
    let run = scene.underway(&node)?;
    node.kill_and_restart();
    let story = scene.as_undisturbed(run)?;
    drop(workers);
    ensure!(story.brokers_lost > 0, "the run didn't say that the broker was lost");
    Ok(format!("{} verdicts, same; broker lost {} time", story.verdicts.len(), story.brokers_lost))
}

fn worker_frozen(scene: &Scene) -> anyhow::Result<String> {
    let node = Node::start();
    let (one, two) = (scene.worker(&node, "one")?, scene.worker(&node, "two")?);
    let mut run = scene.underway(&node)?;
    one.signal(Signal::SIGSTOP)?;
    run.wait_for(scene.run_max, |line| line.contains("\"worker_lost\""))
        .context("the frozen worker was not given up")?;
    one.signal(Signal::SIGCONT)?;
    let story = scene.as_undisturbed(run)?;
    drop((one, two));
    Ok(format!("{} verdicts, same; {} late results changed nothing", story.verdicts.len(), story.late))
}

fn nobody_works(scene: &Scene) -> anyhow::Result<String> {
    let node = Node::start();
    let workers = (scene.worker(&node, "one")?, scene.worker(&node, "two")?);
    let mut run = scene.underway(&node)?;
    drop(workers);
    let stopped = std::time::Instant::now();
    run.wait_for(NOBODY_MAX, |line| line.contains("\"nobody_works\""))
        .context("the run didn't say in time that nobody works on its queue")?;
    let after = stopped.elapsed();
    let worker = scene.worker(&node, "three")?;
    let story = scene.as_undisturbed(run)?;
    drop(worker);
    Ok(format!(
        "said after {:.1} s; {} verdicts, same, once a worker came",
        after.as_secs_f64(),
        story.verdicts.len()
    ))
}

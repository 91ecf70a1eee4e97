//! `cargo xtask faults`: the networkx suite over RabbitMQ, with a worker or the broker killed or frozen in mid-run. Each
//! run must end with exactly one verdict per test, the same as undisturbed, and say what was lost.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;

use crate::compare::plain_pytest;
use crate::lab::Lab;
use crate::node::Node;
use crate::process::Running;
use crate::regatta::{Project, Regatta, forget_runs};
use crate::say::line;
use crate::verdicts::{Story, Verdicts, compare, expect_whole, story_of};

/// The longest that one run may take, faults included.
const RUN_MAX: Duration = Duration::from_secs(900);

/// After how many finished tests the fault strikes: well into the run, far from its end.
const STRIKE_AFTER: usize = 500;

/// Within what time a run must say that nobody works on its queue.
const NOBODY_MAX: Duration = Duration::from_secs(10);

/// Runs every fault, or the one named, and tells whether all went as they must.
///
/// # Errors
/// When something can't be started, or a run didn't end as it must.
pub fn run(root: &Path, only: Option<&str>) -> anyhow::Result<bool> {
    let lab = Lab::open(root)?;
    let scene = Scene {
        regatta: Regatta::build(&lab)?,
        project: Project { folder: lab.networkx("faults")?, python: Some(lab.python()?) },
        plain: plain_pytest(&lab)?,
    };
    let faults: [(&str, Fault); 4] = [
        ("worker-killed", worker_killed),
        ("broker-killed", broker_killed),
        ("worker-frozen", worker_frozen),
        ("nobody-works", nobody_works),
    ];
    let mut good = true;
    for (name, fault) in faults.into_iter().filter(|(name, _)| only.is_none_or(|only| only == *name)) {
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

/// Disturbs a run, and says how it went.
type Fault = fn(&Scene) -> anyhow::Result<String>;

struct Scene {
    regatta: Regatta,
    project: Project,
    plain: Verdicts,
}

impl Scene {
    fn worker(&self, node: &Node, name: &str) -> anyhow::Result<Running> {
        Running::start(self.regatta.worker(&self.project, node.url(), name))
    }

    /// Starts the run, and waits until it is in full swing.
    fn underway(&self, node: &Node) -> anyhow::Result<Running> {
        forget_runs(&self.project.folder)?;
        let mut run = Running::start(self.regatta.run_on(&self.project, node.url(), 2))?;
        let mut finished = 0;
        run.wait_for(RUN_MAX, |line| {
            finished += usize::from(line.contains("\"attempt_finished\""));
            finished == STRIKE_AFTER
        })?;
        Ok(run)
    }

    /// The end of a run that was disturbed: as if it had not been.
    fn undisturbed(&self, run: Running) -> anyhow::Result<Story> {
        run.finish(RUN_MAX)?.expect_code("regatta run", &[0, 1])?;
        let story = story_of(&self.project.folder)?;
        expect_whole(&story)?;
        let comparison = compare(&self.plain, &story.verdicts);
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
    let node = Node::start()?;
    let (one, two) = (scene.worker(&node, "one")?, scene.worker(&node, "two")?);
    let run = scene.underway(&node)?;
    one.signal(Signal::SIGKILL)?;
    let story = scene.undisturbed(run)?;
    drop((one, two));
    ensure!(story.workers_lost > 0, "the run didn't say that a worker was lost");
    Ok(format!("{} verdicts, same; {} worker lost", story.verdicts.len(), story.workers_lost))
}

fn broker_killed(scene: &Scene) -> anyhow::Result<String> {
    let mut node = Node::start()?;
    let workers = (scene.worker(&node, "one")?, scene.worker(&node, "two")?);
    let run = scene.underway(&node)?;
    node.kill_and_restart()?;
    let story = scene.undisturbed(run)?;
    drop(workers);
    ensure!(story.brokers_lost > 0, "the run didn't say that the broker was lost");
    Ok(format!("{} verdicts, same; broker lost {} time", story.verdicts.len(), story.brokers_lost))
}

fn worker_frozen(scene: &Scene) -> anyhow::Result<String> {
    let node = Node::start()?;
    let (one, two) = (scene.worker(&node, "one")?, scene.worker(&node, "two")?);
    let mut run = scene.underway(&node)?;
    one.signal(Signal::SIGSTOP)?;
    run.wait_for(RUN_MAX, |line| line.contains("\"worker_lost\""))
        .context("the frozen worker was not given up")?;
    one.signal(Signal::SIGCONT)?;
    let story = scene.undisturbed(run)?;
    drop((one, two));
    Ok(format!("{} verdicts, same; {} late results changed nothing", story.verdicts.len(), story.late))
}

fn nobody_works(scene: &Scene) -> anyhow::Result<String> {
    let node = Node::start()?;
    let workers = (scene.worker(&node, "one")?, scene.worker(&node, "two")?);
    let mut run = scene.underway(&node)?;
    drop(workers);
    let stopped = std::time::Instant::now();
    run.wait_for(NOBODY_MAX, |line| line.contains("\"nobody_works\""))
        .context("the run didn't say in time that nobody works on its queue")?;
    let after = stopped.elapsed();
    let worker = scene.worker(&node, "three")?;
    let story = scene.undisturbed(run)?;
    drop(worker);
    Ok(format!(
        "said after {:.1} s; {} verdicts, same, once a worker came",
        after.as_secs_f64(),
        story.verdicts.len()
    ))
}

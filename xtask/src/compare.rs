//! `cargo xtask compare`: real suites, verdict for verdict.
//!
//! networkx under plain pytest and itertools under cargo-nextest are the measure. Each is run by `regatta` embedded, and
//! over a RabbitMQ node of its own with two workers; for itertools one of the two lives in a container on a Debian base,
//! with the tree mounted read-only.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use regatta_testbed::Node;

use crate::container::{Base, Container};
use crate::lab::{Lab, Scale};
use crate::process::{Running, command, finish};
use crate::regatta::{ITERTOOLS_PART, NETWORKX_PART, Project, Regatta, Show, forget_records, forget_runs};
use crate::say::line;
use crate::verdicts::{Verdicts, compare, counts, expect_whole, of_nextest, of_pytest, story_of};

/// The longest that one run of a suite may take.
const RUN_MAX: Duration = Duration::from_secs(900);

/// Slots in embedded runs, and workers of one slot in the others.
const SLOTS: usize = 2;

/// Runs every comparison, prints a table, and tells whether there was no difference.
///
/// # Errors
/// When a runner can't be run at all.
pub fn run(root: &Path, only: Option<&str>, scale: Scale) -> anyhow::Result<bool> {
    let lab = Lab::open(root)?;
    let regatta = Regatta::build(&lab, scale)?;
    let mut table = Table { same: true };
    if only.is_none_or(|only| only == "networkx") {
        networkx(&lab, &regatta, scale, &mut table)?;
    }
    if only.is_none_or(|only| only == "itertools") {
        itertools(&lab, &regatta, scale, &mut table)?;
    }
    line(if table.same { "no difference" } else { "there are differences" });
    Ok(table.same)
}

struct Table {
    same: bool,
}

impl Table {
    fn reference(&mut self, suite: &str, runner: &str, verdicts: &Verdicts) {
        line(&format!("{suite:<10} {runner:<32} {}", counts(verdicts)));
    }

    fn row(&mut self, suite: &str, way: &str, theirs: &Verdicts, ours: &Verdicts) {
        let comparison = compare(theirs, ours);
        let said =
            if comparison.count == 0 { "same".to_owned() } else { format!("{} differ", comparison.count) };
        line(&format!("{suite:<10} {way:<32} {}  {said}", comparison.summary));
        for difference in &comparison.differences {
            line(&format!("    {difference}"));
        }
        self.same &= comparison.count == 0;
    }
}

fn networkx(lab: &Lab, regatta: &Regatta, scale: Scale, table: &mut Table) -> anyhow::Result<()> {
    let plain = plain_pytest(lab, scale)?;
    table.reference("networkx", "plain pytest", &plain);
    let filter = (scale == Scale::Quick).then_some(NETWORKX_PART[0]);
    let project = Project { folder: lab.networkx("regatta")?, python: Some(lab.python()?), filter };
    table.row("networkx", "embedded, 2 slots", &plain, &embedded(regatta, &project)?);
    // The second run hands out remembered tests instead of whole files.
    table.row("networkx", "embedded, 2 slots, remembered", &plain, &again(regatta, &project)?);
    let node = Node::start();
    let workers = ["one", "two"].map(|name| Running::start(regatta.worker(&project, &node.url(), name)));
    let ours = spread(regatta, &project, &node.url());
    drop(workers.into_iter().collect::<anyhow::Result<Vec<_>>>()?);
    table.row("networkx", "RabbitMQ, 2 workers", &plain, &ours?);
    Ok(())
}

fn itertools(lab: &Lab, regatta: &Regatta, scale: Scale, table: &mut Table) -> anyhow::Result<()> {
    let filter = (scale == Scale::Quick).then_some(ITERTOOLS_PART[0]);
    let project = Project { folder: lab.itertools("regatta")?, python: None, filter };
    let theirs = nextest(&project, scale)?;
    table.reference("itertools", "cargo-nextest", &theirs);
    table.row("itertools", "embedded, 2 slots", &theirs, &embedded(regatta, &project)?);
    let node = Node::start();
    let worker = Running::start(regatta.worker(&project, &node.url(), "host"))?;
    let base = Base::debian(lab)?;
    let container = Container::worker(&base, regatta, &project, &node.url(), "container")?;
    let ours = spread(regatta, &project, &node.url());
    drop((worker, container));
    table.row("itertools", "RabbitMQ, 1 worker, 1 container", &theirs, &ours?);
    Ok(())
}

/// What plain pytest says, by a plugin that isn't ours to run tests by.
///
/// # Errors
/// When pytest can't run the suite.
pub fn plain_pytest(lab: &Lab, scale: Scale) -> anyhow::Result<Verdicts> {
    let python = lab.python()?;
    let folder = lab.networkx("plain")?;
    let results = lab.folder().join("plain.jsonl");
    let mut pytest = command(python.program("python"), &folder);
    python.activate(&mut pytest);
    pytest.args(["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "every_result"]);
    pytest.env("PYTHONPATH", lab.root().join("xtask/peers")).env("EVERY_RESULT", &results);
    if scale == Scale::Quick {
        pytest.arg(NETWORKX_PART[1]);
    }
    finish(pytest, RUN_MAX)?.expect_code("pytest", &[0, 1])?;
    of_pytest(&std::fs::read_to_string(&results).context("pytest left no results")?)
}

fn nextest(project: &Project, scale: Scale) -> anyhow::Result<Verdicts> {
    let mut nextest = command("cargo", &project.folder);
    nextest.args(["nextest", "run", "--no-fail-fast", "--color", "never"]);
    nextest.env_remove("CARGO_TARGET_DIR");
    match scale {
        Scale::Whole => nextest.args(["--status-level", "all"]),
        // What isn't meant would be shown as skipped.
        Scale::Quick => nextest.args(["--status-level", "pass", ITERTOOLS_PART[1]]),
    };
    let done = finish(nextest, RUN_MAX)?;
    let done =
        done.expect_code("cargo nextest (install it with `cargo install cargo-nextest`)", &[0, 100])?;
    Ok(of_nextest(&done.stderr))
}

fn embedded(regatta: &Regatta, project: &Project) -> anyhow::Result<Verdicts> {
    forget_runs(&project.folder)?;
    again(regatta, project)
}

fn again(regatta: &Regatta, project: &Project) -> anyhow::Result<Verdicts> {
    judged(project, || {
        finish(regatta.run_embedded(project, SLOTS, Show::Text), RUN_MAX)?
            .expect_code("regatta run", &[0, 1])?;
        Ok(())
    })
}

fn spread(regatta: &Regatta, project: &Project, broker: &str) -> anyhow::Result<Verdicts> {
    forget_runs(&project.folder)?;
    judged(project, || {
        finish(regatta.run_on(project, broker, SLOTS), RUN_MAX)?.expect_code("regatta run", &[0, 1])?;
        Ok(())
    })
}

/// Runs, and reads the run's own record: whole, and one verdict for each test.
fn judged(project: &Project, run: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Verdicts> {
    forget_records(&project.folder)?;
    run()?;
    let story = story_of(&project.folder)?;
    expect_whole(&story)?;
    Ok(story.verdicts)
}

//! Rows about whole suites: command tests, networkx and itertools.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::ensure;
use nix::sys::resource::{UsageWho, getrusage};

use super::Bench;
use super::measure::{Better, Reach, Row, Side};
use crate::process::{Finished, command, finish};
use crate::regatta::{ITERTOOLS_PART, NETWORKX_PART, Project, Show, forget_records, forget_runs};
use crate::verdicts::{expect_whole, story_of};

/// The longest that one run may take.
const RUN_MAX: Duration = Duration::from_secs(900);

/// How many tests the suites have.
const NETWORKX_TESTS: usize = 6_209;
const ITERTOOLS_TESTS: usize = 444;

fn seconds(done: &Finished) -> f64 {
    done.wall.as_secs_f64()
}

/// Runs a whole suite with Regatta, on what earlier runs taught. One that judged less than all of its tests is no
/// measurement.
fn whole_run(bench: &Bench, project: &Project, slots: usize, tests: usize) -> anyhow::Result<f64> {
    forget_records(&project.folder)?;
    let run = bench.regatta()?.run_embedded(project, slots, Show::Text);
    let done = finish(run, RUN_MAX)?.expect_code("regatta run", &[0, 1])?;
    let story = story_of(&project.folder)?;
    expect_whole(&story)?;
    let judged = story.verdicts.len();
    ensure!(judged > 0 && (bench.is_quick() || judged == tests), "{judged} of {tests} tests were judged");
    Ok(seconds(&done))
}

/// 10,000 commands, all output and results kept, against `xargs` that keeps nothing.
pub(super) fn commands(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let count = if bench.is_quick() { 500 } else { 10_000 };
    let folder = bench.lab.folder().join("commands");
    std::fs::create_dir_all(&folder)?;
    let tests: Vec<String> =
        (0..count).map(|n| format!("[[suite.commands.test]]\nname = \"t{n}\"\nrun = \"true\"\n")).collect();
    std::fs::write(
        folder.join("regatta.toml"),
        format!("[suite.commands]\nadapter = \"commands\"\n\n{}", tests.join("\n")),
    )?;
    let project = Project { folder: folder.clone(), python: None, filter: None };
    let (mut ours, mut theirs) = (Side::default(), Side::default());
    for _ in 0..bench.rounds {
        forget_runs(&folder)?;
        ours.add(whole_run(bench, &project, 2, count)?);
        let mut xargs = command("sh", &folder);
        xargs.args(["-c", &format!("seq {count} | xargs -P2 -n1 true")]);
        theirs.add(seconds(&finish(xargs, RUN_MAX)?.expect_code("xargs", &[0])?));
    }
    Ok(vec![Row {
        work: "10,000 × true as command tests, 2 slots (s)",
        better: Better::Less,
        regatta: ours,
        peer: ("xargs -P2", theirs),
        limit: Side::default(),
        reach: vec![Reach::OfPeer(1.3)],
    }])
}

fn networkx(bench: &Bench, purpose: &str) -> anyhow::Result<Project> {
    let filter = bench.is_quick().then_some(NETWORKX_PART[0]);
    Ok(Project { folder: bench.lab.networkx(purpose)?, python: Some(bench.python.clone()), filter })
}

fn pytest(bench: &Bench, folder: &Path, arguments: &[&str]) -> Command {
    let mut pytest = command(bench.python.program("python"), folder);
    bench.python.activate(&mut pytest);
    pytest.args(["-m", "pytest", "-q", "-p", "no:cacheprovider"]).args(arguments);
    if bench.is_quick() {
        pytest.arg(NETWORKX_PART[1]);
    }
    pytest
}

/// The wall time of the whole suite at two slots: the first run, which knows nothing, and the second.
pub(super) fn networkx_wall(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let project = networkx(bench, "bench")?;
    let (mut first, mut second) = (Side::default(), Side::default());
    let (mut xdist, mut half_plain) = (Side::default(), Side::default());
    for _ in 0..bench.rounds {
        forget_runs(&project.folder)?;
        for side in [&mut first, &mut second] {
            side.add(whole_run(bench, &project, 2, NETWORKX_TESTS)?);
        }
        let done = finish(pytest(bench, &project.folder, &["-n", "2"]), RUN_MAX)?;
        xdist.add(seconds(&done.expect_code("pytest -n 2", &[0, 1])?));
        let done = finish(pytest(bench, &project.folder, &["-p", "no:xdist"]), RUN_MAX)?;
        half_plain.add(seconds(&done.expect_code("pytest", &[0, 1])?) / 2.0);
    }
    let row = |work, regatta| Row {
        work,
        better: Better::Less,
        regatta,
        peer: ("xdist -n 2", xdist.clone()),
        limit: half_plain.clone(),
        reach: vec![Reach::OfPeer(0.95)],
    };
    Ok(vec![
        row("networkx, 2 slots, wall, first run (s)", first),
        row("networkx, 2 slots, wall, remembered (s)", second),
    ])
}

/// The time to the first test's result, at two and at eight slots.
pub(super) fn networkx_first(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let project = networkx(bench, "bench")?;
    let mut rows = Vec::new();
    let works = [
        (2, "networkx, first result after, 2 slots (s)", "xdist -n 2"),
        (8, "networkx, first result after, 8 slots (s)", "xdist -n 8"),
    ];
    for (slots, work, peer) in works {
        let (mut ours, mut theirs) = (Side::default(), Side::default());
        for _ in 0..bench.rounds {
            forget_runs(&project.folder)?;
            ours.add(first_result(bench.regatta()?.run_embedded(&project, slots, Show::Events), |line| {
                line.contains("\"attempt_finished\"")
            })?);
            let workers = slots.to_string();
            theirs.add(first_result(pytest(bench, &project.folder, &["-vv", "-n", &workers]), |line| {
                ["PASSED", "FAILED", "SKIPPED", "XFAIL"].iter().any(|word| line.contains(word))
            })?);
        }
        rows.push(Row {
            work,
            better: Better::Less,
            regatta: ours,
            peer: (peer, theirs),
            limit: Side::default(),
            reach: vec![Reach::Number(1.5)],
        });
    }
    Ok(rows)
}

/// Seconds from the start to the first line that tells of a result. The run is then killed with all its workers, which
/// would take the processor from whoever is measured next: how fast a peer stops isn't measured, and xdist with many
/// workers takes longer than its start.
fn first_result(mut command: Command, tells: impl FnMut(&str) -> bool) -> anyhow::Result<f64> {
    command.process_group(0);
    let mut running = crate::process::Running::start(command)?;
    running.wait_for(RUN_MAX, tells)?;
    let after = running.began().elapsed();
    running.kill_group(RUN_MAX)?;
    Ok(after.as_secs_f64())
}

/// The processor time of everything at eight slots on however many cores there are.
pub(super) fn networkx_cpu(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let project = networkx(bench, "bench")?;
    let (mut ours, mut theirs, mut plain) = (Side::default(), Side::default(), Side::default());
    for _ in 0..bench.rounds {
        forget_runs(&project.folder)?;
        ours.add(processor_seconds(|| whole_run(bench, &project, 8, NETWORKX_TESTS))?);
        for (side, arguments) in [(&mut theirs, ["-n", "8"]), (&mut plain, ["-p", "no:xdist"])] {
            let pytest = pytest(bench, &project.folder, &arguments);
            side.add(processor_seconds(|| finish(pytest, RUN_MAX)?.expect_code("pytest", &[0, 1]))?);
        }
    }
    Ok(vec![Row {
        work: "networkx, 8 slots, processor time (s)",
        better: Better::Less,
        regatta: ours,
        peer: ("xdist -n 8", theirs),
        limit: plain,
        reach: vec![Reach::OfLimit(1.15)],
    }])
}

/// Processor time of what is run, and of all its descendants that were waited for.
fn processor_seconds<T>(run: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<f64> {
    let spent = || -> anyhow::Result<f64> {
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
        let seconds = |time: nix::sys::time::TimeVal| {
            Duration::from_secs(time.tv_sec().unsigned_abs()).as_secs_f64()
                + Duration::from_micros(time.tv_usec().unsigned_abs()).as_secs_f64()
        };
        Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
    };
    let before = spent()?;
    run()?;
    Ok(spent()? - before)
}

/// The wall time of itertools' suite, when everything is built.
pub(super) fn itertools(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let filter = bench.is_quick().then_some(ITERTOOLS_PART[0]);
    let project = Project { folder: bench.lab.itertools("bench")?, python: None, filter };
    let nextest = || {
        let mut nextest = command("cargo", &project.folder);
        nextest.args(["nextest", "run", "--no-fail-fast", "--test-threads", "2"]);
        if bench.is_quick() {
            nextest.arg(ITERTOOLS_PART[1]);
        }
        nextest
    };
    let regatta = || whole_run(bench, &project, 2, ITERTOOLS_TESTS);
    // Both build once, unmeasured.
    finish(nextest(), RUN_MAX)?.expect_code("cargo nextest", &[0, 100])?;
    regatta()?;
    let (mut ours, mut theirs) = (Side::default(), Side::default());
    for _ in 0..bench.rounds {
        ours.add(regatta()?);
        theirs.add(seconds(&finish(nextest(), RUN_MAX)?.expect_code("cargo nextest", &[0, 100])?));
    }
    Ok(vec![Row {
        work: "itertools, 2 slots, wall, already built (s)",
        better: Better::Less,
        regatta: ours,
        peer: ("nextest", theirs),
        limit: Side::default(),
        reach: vec![Reach::OfPeer(1.0)],
    }])
}

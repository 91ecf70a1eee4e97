//! Rows about tasks that do nothing, over a RabbitMQ node of the benchmark's own: Regatta's Celery, Python's Celery, and
//! the AMQP client alone.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use regatta_testbed::Node;

use super::Bench;
use super::measure::{Better, Reach, Row, Side};
use crate::process::{Running, command, finish};
use crate::regatta::Project;

/// The longest that one measurement may take.
const MEASURE_MAX: Duration = Duration::from_secs(300);

/// The longest that a worker may take to be ready.
const READY_MAX: Duration = Duration::from_secs(60);

/// Python's pools that can run two tasks at once.
const POOLS: [&str; 2] = ["prefork", "threads"];

/// The binaries and the peer that this group calls.
struct Callers<'a> {
    bench: &'a Bench,
    bare: PathBuf,
    noop: PathBuf,
}

impl<'a> Callers<'a> {
    fn build(bench: &'a Bench) -> anyhow::Result<Self> {
        let (bare, noop) = (bench.binary("bare_amqp")?, bench.binary("noop")?);
        Ok(Self { bench, bare, noop })
    }

    fn rust(&self, binary: &Path, arguments: &[&str]) -> Command {
        let mut rust = command(binary, self.bench.lab.folder());
        rust.args(arguments);
        rust
    }

    fn python(&self, node: &Node, program: &str, arguments: &[&str]) -> Command {
        let folder = self.bench.lab.root().join("xtask/peers");
        let mut python = command(self.bench.python.program(program), &folder);
        self.bench.python.activate(&mut python);
        python.args(arguments).env("NOOP_BROKER", node.url().replace("/%2f", "//"));
        python
    }

    fn ready(&self, binary: &Path, node: &Node) -> anyhow::Result<Running> {
        let mut worker = Running::start(self.rust(binary, &["worker", &node.url()]))?;
        worker.wait_for(READY_MAX, |line| line == "ready")?;
        Ok(worker)
    }

    fn celery_worker(&self, node: &Node, pool: &str) -> anyhow::Result<Running> {
        let arguments = [
            "-A",
            "noop",
            "worker",
            "-c",
            "2",
            "-P",
            pool,
            "--without-gossip",
            "--without-mingle",
            "-l",
            "warning",
        ];
        Running::start(self.python(node, "celery", &arguments))
    }
}

fn number(command: Command) -> anyhow::Result<f64> {
    let done = finish(command, MEASURE_MAX)?.expect_code("the measurement", &[0])?;
    done.stdout.trim().parse().with_context(|| format!("not a number: {}", done.stdout))
}

/// What is measured of each side, and with how many tasks.
struct Ask {
    measure: &'static str,
    /// What else is measured of ours, in the same turns.
    also: Option<&'static str>,
    ours: &'static str,
    python: &'static str,
}

/// Regatta, the limit, each of Python's pools and what else is asked of Regatta, in turns: `[regatta, limit, prefork,
/// threads, also]`.
fn measure(bench: &Bench, ask: &Ask) -> anyhow::Result<[Side; 5]> {
    let callers = Callers::build(bench)?;
    let node = Node::start();
    let mut sides: [Side; 5] = std::array::from_fn(|_| Side::default());
    // More than elsewhere: these are over in seconds, and differ the more.
    for _ in 0..bench.rounds * 2 - 1 {
        let ours = [(0, &callers.noop, Some(ask.measure)), (1, &callers.bare, Some(ask.measure))];
        for (side, binary, measure) in ours.into_iter().chain([(4, &callers.noop, ask.also)]) {
            let Some(measure) = measure else { continue };
            let worker = callers.ready(binary, &node)?;
            sides[side].add(number(callers.rust(binary, &[measure, &node.url(), ask.ours]))?);
            drop(worker);
        }
        for (side, pool) in POOLS.iter().enumerate() {
            let worker = callers.celery_worker(&node, pool)?;
            sides[2 + side].add(number(callers.python(
                &node,
                "python",
                &["noop.py", ask.measure, ask.python],
            ))?);
            worker.interrupt(READY_MAX)?;
        }
    }
    Ok(sides)
}

/// Python's better pool.
fn best(better: Better, prefork: Side, threads: Side) -> (&'static str, Side) {
    let ahead = match better {
        Better::More => threads.median() > prefork.median(),
        Better::Less => threads.median() < prefork.median(),
    };
    if ahead { ("threads -c 2", threads) } else { ("prefork -c 2", prefork) }
}

/// Tasks per second: published, run, result published, settled after its confirm.
pub(super) fn throughput(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let ask = if bench.is_quick() {
        Ask { measure: "throughput", also: Some("throughput-whole"), ours: "5000", python: "500" }
    } else {
        Ask { measure: "throughput", also: Some("throughput-whole"), ours: "60000", python: "6000" }
    };
    let [brief, limit, prefork, threads, whole] = measure(bench, &ask)?;
    let better = Better::More;
    let peer = best(better, prefork, threads);
    let row =
        |work, regatta, reach| Row { work, better, regatta, peer: peer.clone(), limit: limit.clone(), reach };
    Ok(vec![
        row(
            "no-op tasks over RabbitMQ, confirmed, late (1/s)",
            brief,
            vec![Reach::OfPeer(10.0), Reach::OfLimit(0.8)],
        ),
        row("the same, with headers that say nothing (1/s)", whole, vec![Reach::OfPeer(10.0)]),
    ])
}

/// One task's way there and back, with nothing else on the way.
pub(super) fn roundtrip(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let tasks = if bench.is_quick() { "200" } else { "2000" };
    let [regatta, limit, prefork, threads, _] =
        measure(bench, &Ask { measure: "roundtrip", also: None, ours: tasks, python: tasks })?;
    let better = Better::Less;
    Ok(vec![Row {
        work: "one task's round trip, median (µs)",
        better,
        regatta,
        peer: best(better, prefork, threads),
        limit,
        reach: vec![Reach::OfPeer(0.5)],
    }])
}

/// How soon a worker is ready, and what it holds of memory when it idles: the product's own worker with its own adapters
/// and queues, in a folder with one command test.
pub(super) fn worker(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let callers = Callers::build(bench)?;
    let folder = bench.lab.folder().join("idle");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(
        folder.join("regatta.toml"),
        "[suite.idle]\nadapter = \"commands\"\n\n[[suite.idle.test]]\nname = \"nothing\"\nrun = \"true\"\n",
    )?;
    let project = Project { folder, python: None, filter: None };
    let node = Node::start();
    let mut sides: [Side; 4] = std::array::from_fn(|_| Side::default());
    for _ in 0..bench.rounds {
        let worker = errors_as_output(&bench.regatta()?.worker_with(&project, &node.url(), "idle", 2));
        let mut worker = Running::start(worker)?;
        worker.wait_for(READY_MAX, |line| line.contains(" ready "))?;
        sides[0].add(worker.began().elapsed().as_secs_f64());
        sides[1].add(resident_megabytes(worker.id())?);
        worker.interrupt(READY_MAX)?;
        let arguments = ["-A", "noop", "worker", "-c", "2", "-P", "prefork", "-l", "info"];
        let mut worker = Running::start(errors_as_output(&callers.python(&node, "celery", &arguments)))?;
        worker.wait_for(READY_MAX, |line| line.contains(" ready."))?;
        sides[2].add(worker.began().elapsed().as_secs_f64());
        sides[3].add(resident_megabytes(worker.id())?);
        worker.interrupt(READY_MAX)?;
    }
    let [ready, memory, ready_python, memory_python] = sides;
    let row = |work, regatta, theirs, mark| Row {
        work,
        better: Better::Less,
        regatta,
        peer: ("prefork -c 2", theirs),
        limit: Side::default(),
        reach: vec![Reach::Number(mark)],
    };
    Ok(vec![
        row("worker ready after (s)", ready, ready_python, 0.1),
        row("worker idle at 2 slots, resident (MB)", memory, memory_python, 15.0),
    ])
}

/// The same command with its log, which says when it is ready and goes to standard error, on standard output.
fn errors_as_output(command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$@\" 2>&1", "sh"]).arg(command.get_program()).args(command.get_args());
    if let Some(folder) = command.get_current_dir() {
        shell.current_dir(folder);
    }
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell.stdin(std::process::Stdio::null());
    shell
}

/// Resident memory of a process and all its descendants.
fn resident_megabytes(root: i32) -> anyhow::Result<f64> {
    let mut waiting = vec![root];
    let mut kilobytes = 0.0;
    while let Some(id) = waiting.pop() {
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).context("the worker is gone")?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = resident.and_then(|text| text.split_whitespace().next()?.parse::<f64>().ok());
        kilobytes += number.unwrap_or_default();
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        waiting.extend(children.split_whitespace().filter_map(|child| child.parse::<i32>().ok()));
    }
    Ok(kilobytes / 1024.0)
}

//! The Python peers: a client that takes commands, a worker, and Celery's own tools.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};

use serde_json::Value;
use tokio::sync::mpsc;

use crate::support::{DEADLINE, rabbitmq_url};

/// How many lines of a peer's output may wait to be read.
const LINES: usize = 10_000;

fn peers() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/peers")
}

/// A Python command that finds the peer and the broker.
fn python(queue: &str) -> Command {
    let mut command = Command::new(regatta_testbed::python());
    command.current_dir(peers());
    command.env("PEER_BROKER", rabbitmq_url()).env("PEER_QUEUE", queue).env("PYTHONUNBUFFERED", "1");
    command.env("PYTHONDONTWRITEBYTECODE", "1").env("C_FORCE_ROOT", "1");
    command
}

/// A process whose output comes line by line. Dropping it kills it.
struct Process {
    child: Child,
    lines: mpsc::Receiver<String>,
    seen: Vec<String>,
}

impl Process {
    fn start(mut command: Command) -> Self {
        let (sender, lines) = mpsc::channel(LINES);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let outputs: [Box<dyn std::io::Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for output in outputs {
            let sender = sender.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    if sender.blocking_send(line).is_err() {
                        break;
                    }
                }
            });
        }
        Self { child, lines, seen: Vec::new() }
    }

    /// The next line that satisfies `wanted`.
    async fn line(&mut self, wanted: impl Fn(&str) -> bool) -> String {
        loop {
            match tokio::time::timeout(DEADLINE, self.lines.recv()).await {
                Ok(Some(line)) => {
                    self.seen.push(line.clone());
                    if wanted(&line) {
                        return line;
                    }
                }
                Ok(None) => panic!("the peer ended: {:#?}", self.seen),
                Err(_) => panic!("the peer didn't say what it should: {:#?}", self.seen),
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

/// A Python client that does what it is told.
pub(crate) struct Peer {
    process: Process,
    stdin: ChildStdin,
}

impl Peer {
    pub(crate) async fn start() -> Self {
        let mut command = python("python");
        command.arg("peer.py");
        let mut process = Process::start(command);
        let stdin = process.child.stdin.take().unwrap();
        process.line(|line| line.contains("\"ready\"")).await;
        Self { process, stdin }
    }

    pub(crate) async fn ask(&mut self, command: &Value) -> Value {
        writeln!(self.stdin, "{command}").unwrap();
        let line = self.process.line(|line| line.starts_with('{')).await;
        let answer: Value = serde_json::from_str(&line).unwrap();
        assert!(answer.get("broken").is_none(), "the peer couldn't do {command}: {answer}");
        answer
    }
}

/// A Celery worker in Python, called after its queue: `python@peer`.
pub(crate) struct PythonWorker {
    _process: Process,
}

impl PythonWorker {
    pub(crate) async fn start(queue: &str) -> Self {
        Self::writing(queue, "json").await
    }

    /// One that writes its results in this serializer.
    pub(crate) async fn writing(queue: &str, serializer: &str) -> Self {
        let mut command = python(queue);
        command.env("PEER_RESULT_SERIALIZER", serializer);
        command.args(["-m", "celery", "-A", "peer", "worker", "-Q", queue]);
        // Two workers of one name would want the same exclusive queue.
        command.args(["-n", &format!("{queue}@peer")]);
        command.args(["--pool", "solo", "--loglevel", "INFO", "--without-gossip", "--without-mingle"]);
        let mut process = Process::start(command);
        process.line(|line| line.contains("ready.")).await;
        Self { _process: process }
    }
}

/// Runs one of Celery's tools to its end and gives what it says.
pub(crate) async fn celery(arguments: &[&str]) -> String {
    let mut command = python("python");
    command.args(["-m", "celery", "-A", "peer"]).args(arguments);
    let mut process = Process::start(command);
    while let Some(line) = tokio::time::timeout(DEADLINE, process.lines.recv()).await.expect("the tool hangs")
    {
        process.seen.push(line);
    }
    process.seen.join("\n")
}

/// `celery events --dump`, running.
pub(crate) struct EventDump {
    process: Process,
}

impl EventDump {
    pub(crate) async fn start() -> Self {
        let mut command = python("python");
        command.args(["-m", "celery", "-A", "peer", "events", "--dump"]);
        let mut process = Process::start(command);
        process.line(|line| line.contains("starting capture")).await;
        Self { process }
    }

    /// Waits until each of the texts was in a line, in any order.
    pub(crate) async fn wait_for(&mut self, texts: &[&str]) {
        let mut missing: Vec<&str> = texts.to_vec();
        while !missing.is_empty() {
            let line = self.process.line(|_| true).await;
            missing.retain(|text| !line.contains(text));
        }
    }
}

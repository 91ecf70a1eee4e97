//! A project in a temporary folder, and the binary in it.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// The longest that anything here may take, on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) struct Project {
    folder: tempfile::TempDir,
}

/// How the binary ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Project {
    pub(crate) fn new(files: &[(&str, &str)]) -> Self {
        let project = Self { folder: tempfile::tempdir().unwrap() };
        files.iter().for_each(|(name, text)| project.write(name, text));
        project
    }

    /// A project of commands: names and what `sh -c` runs.
    pub(crate) fn of_commands(commands: &[(&str, &str)]) -> Self {
        let tests = commands.iter().map(|(name, command)| format!("{name}: sh -c '{command}'\n"));
        let list: String = tests.collect();
        Self::new(&[
            ("regatta.toml", "[suite.smoke]\nadapter = \"commands\"\nfile = \"list.txt\"\n"),
            ("list.txt", &list),
        ])
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        self.program(env!("CARGO_BIN_EXE_regatta"), arguments)
    }

    /// Any program in the project's folder, in the surroundings that the binary gets.
    pub(crate) fn program(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.path()).args(arguments).stdin(Stdio::null());
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            let of_cargo = name.starts_with("CARGO") && name != "CARGO_HOME";
            if name.starts_with("REGATTA_") || name.starts_with("RUST_") || of_cargo {
                command.env_remove(name);
            }
        }
        command
    }

    /// With the peers' Python on the `PATH`.
    pub(crate) fn python(&self, arguments: &[&str]) -> Ended {
        Running::start(self.python_command(arguments)).wait()
    }

    pub(crate) fn python_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(arguments);
        let bin = regatta_testbed::python().parent().unwrap().to_owned();
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", bin.display()));
        command
    }

    pub(crate) fn regatta(&self, arguments: &[&str]) -> Ended {
        Running::start(self.command(arguments)).wait()
    }

    /// The files of the newest run.
    pub(crate) fn run_folder(&self) -> PathBuf {
        let runs = std::fs::read_dir(self.path().join(".regatta/runs")).unwrap();
        runs.map(|entry| entry.unwrap().path())
            .max_by_key(|path| std::fs::metadata(path).unwrap().modified().unwrap())
            .unwrap()
    }

    pub(crate) fn run_json(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.run_folder().join("run.json")).unwrap()).unwrap()
    }

    /// The newest run's stream of facts, as far as it is written.
    pub(crate) fn ledger(&self) -> String {
        std::fs::read_to_string(self.run_folder().join("events.jsonl")).unwrap()
    }

    /// The facts of the newest run of a kind.
    pub(crate) fn facts(&self, kind: &str) -> Vec<Value> {
        let text = self.ledger();
        let facts = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        facts.filter(|fact| fact["event"] == kind).collect()
    }

    /// `name verdict` of every test of the newest run.
    pub(crate) fn verdicts(&self) -> Vec<String> {
        let run = self.run_json();
        let tests = run["tests"].as_array().unwrap().iter();
        let mut all: Vec<String> = tests
            .map(|test| {
                format!("{} {}", test["name"].as_str().unwrap(), test["verdict"].as_str().unwrap_or("-"))
            })
            .collect();
        all.sort();
        all
    }
}

impl Ended {
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }
}

/// The binary while it runs; killed when dropped.
pub(crate) struct Running {
    child: Child,
    lines: Receiver<String>,
    stderr: Option<std::thread::JoinHandle<String>>,
    seen: String,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (told, lines) = sync_channel(100_000);
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if told.send(line).is_err() {
                    return;
                }
            }
        });
        let mut pipe = child.stderr.take().unwrap();
        let stderr = std::thread::spawn(move || {
            let mut text = Vec::new();
            pipe.read_to_end(&mut text).unwrap();
            String::from_utf8_lossy(&text).into_owned()
        });
        Self { child, lines, stderr: Some(stderr), seen: String::new() }
    }

    /// Waits for a line of standard output that holds `text`.
    pub(crate) fn wait_for(&mut self, text: &str) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else { panic!("no {text:?} in:\n{}", self.seen) };
            self.seen += &format!("{line}\n");
            if line.contains(text) {
                return line;
            }
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    pub(crate) fn wait(mut self) -> Ended {
        let deadline = Instant::now() + DEADLINE;
        while let Ok(line) = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            self.seen += &format!("{line}\n");
        }
        assert!(Instant::now() < deadline, "it never ended:\n{}", self.seen);
        let code = self.child.wait().unwrap().code();
        let stderr = self.stderr.take().unwrap().join().unwrap();
        Ended { code, stdout: std::mem::take(&mut self.seen), stderr }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether any process has this text in its command line.
pub(crate) fn somebody_runs(text: &str) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let own = std::process::id().to_string();
    processes.filter(|entry| entry.file_name().to_string_lossy() != own.as_str()).any(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).replace('\0', " ").contains(text)
    })
}

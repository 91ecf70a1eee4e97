//! Processes that the harnesses start: with a deadline on every wait, and killed when their handle is dropped.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

/// How many lines may wait to be read; then the process waits.
const LINES_WAITING_MAX: usize = 100_000;

/// How a finished command went.
#[derive(Debug)]
pub struct Finished {
    /// Its exit status.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// From its start to its end.
    pub wall: Duration,
}

impl Finished {
    /// Fails with the command's own words unless its exit code is one of `codes`.
    ///
    /// # Errors
    /// When it ended otherwise.
    pub fn expect_code(self, what: &str, codes: &[i32]) -> anyhow::Result<Self> {
        if self.status.code().is_some_and(|code| codes.contains(&code)) {
            return Ok(self);
        }
        bail!("{what} ended with {}\n{}\n{}", self.status, tail(&self.stdout), tail(&self.stderr))
    }
}

/// The last lines of a text, for messages.
#[must_use]
pub fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// A command that starts in `folder`, free of what cargo tells its own children.
#[must_use]
pub fn command(program: impl AsRef<Path>, folder: &Path) -> Command {
    let mut command = Command::new(program.as_ref());
    command.current_dir(folder).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if (name.starts_with("CARGO") && name != "CARGO_HOME") || name.starts_with("RUST_") {
            command.env_remove(name);
        }
    }
    command
}

/// Runs a command to its end.
///
/// # Errors
/// When it can't be started, or isn't done after `limit`.
pub fn finish(command: Command, limit: Duration) -> anyhow::Result<Finished> {
    Running::start(command)?.finish(limit)
}

/// A process with its output as lines.
#[derive(Debug)]
pub struct Running {
    child: Child,
    what: String,
    began: Instant,
    lines: Receiver<String>,
    stderr: Receiver<String>,
    seen: Vec<String>,
}

impl Running {
    /// Starts a command.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start(mut command: Command) -> anyhow::Result<Self> {
        let what = command.get_program().to_string_lossy().into_owned();
        let began = Instant::now();
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("{what} can't be started"))?;
        let stdout = child.stdout.take().context("no standard output")?;
        let mut errors = child.stderr.take().context("no standard error")?;
        let (line_in, lines) = sync_channel(LINES_WAITING_MAX);
        std::thread::spawn(move || {
            let mut reader = BufReader::new(stdout);
            let mut bytes = Vec::new();
            while reader.read_until(b'\n', &mut bytes).is_ok_and(|read| read > 0) {
                let line = String::from_utf8_lossy(&bytes).trim_end_matches('\n').to_owned();
                bytes.clear();
                if line_in.send(line).is_err() {
                    break;
                }
            }
        });
        let (errors_in, stderr) = sync_channel(1);
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            // What could be read is worth keeping even when the rest could not.
            let _ = errors.read_to_end(&mut bytes);
            let _ = errors_in.send(String::from_utf8_lossy(&bytes).into_owned());
        });
        Ok(Self { child, what, began, lines, stderr, seen: Vec::new() })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> i32 {
        i32::try_from(self.child.id()).expect("process ids are small")
    }

    /// When it was started.
    #[must_use]
    pub fn began(&self) -> Instant {
        self.began
    }

    /// Reads on until a line satisfies `wanted`, and gives that line.
    ///
    /// # Errors
    /// When the output ends or `limit` is over before that.
    pub fn wait_for(
        &mut self,
        limit: Duration,
        mut wanted: impl FnMut(&str) -> bool,
    ) -> anyhow::Result<String> {
        let deadline = Instant::now() + limit;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if wanted(&line) {
                        return Ok(line);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    bail!("{}: still waiting after {limit:?}; last lines:\n{}", self.what, self.last())
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let said = self.stderr.recv_timeout(Duration::from_secs(1)).unwrap_or_default();
                    bail!("{}: its output ended; last lines:\n{}\n{}", self.what, self.last(), tail(&said))
                }
            }
        }
    }

    fn last(&self) -> String {
        tail(&self.seen.join("\n"))
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill(Pid::from_raw(self.id()), signal)
            .with_context(|| format!("{} can't be sent {signal}", self.what))
    }

    /// Asks it to stop as Ctrl-C does, again when that isn't enough, and waits for its end.
    ///
    /// # Errors
    /// When it doesn't end within `limit` after the second time; it is killed then.
    pub fn interrupt(self, limit: Duration) -> anyhow::Result<Finished> {
        // It may have ended by itself just now.
        let _ = self.signal(Signal::SIGINT);
        let _ = self.signal(Signal::SIGINT);
        self.finish(limit)
    }

    /// Kills it with the process group that it leads, and waits until nobody holds its outputs any more.
    ///
    /// # Errors
    /// When it is gone already, or somebody holds its standard output after `limit`.
    pub fn kill_group(self, limit: Duration) -> anyhow::Result<()> {
        killpg(Pid::from_raw(self.id()), Signal::SIGKILL)
            .with_context(|| format!("the group of {} can't be killed", self.what))?;
        self.finish(limit).map(drop)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it isn't done after `limit`; it is killed then.
    pub fn finish(mut self, limit: Duration) -> anyhow::Result<Finished> {
        let deadline = Instant::now() + limit;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    bail!("{}: not done after {limit:?}; last lines:\n{}", self.what, self.last())
                }
            }
        }
        let status = self.child.wait()?;
        let wall = self.began.elapsed();
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_secs(1));
        let stderr = self.stderr.recv_timeout(left).unwrap_or_default();
        let mut stdout = std::mem::take(&mut self.seen).join("\n");
        stdout.push('\n');
        Ok(Finished { status, stdout, stderr, wall })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended, and been waited for, already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = command("sh", Path::new("."));
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_line_is_waited_for_and_the_rest_is_kept() {
        let mut running =
            Running::start(shell("echo one; echo two; echo three >&2; exit 3")).expect("sh starts");
        let line = running.wait_for(Duration::from_secs(20), |line| line == "two").expect("it says so");
        assert_eq!(line, "two");
        let done = running.finish(Duration::from_secs(20)).expect("it ends");
        assert_eq!(
            (done.status.code(), done.stdout.as_str(), done.stderr.as_str()),
            (Some(3), "one\ntwo\n", "three\n")
        );
    }

    #[test]
    fn a_limit_ends_the_wait_and_the_process() {
        let mut running = Running::start(shell("exec sleep 600")).expect("sh starts");
        let id = running.id();
        assert!(running.wait_for(Duration::from_millis(10), |_| true).is_err());
        drop(running);
        assert!(kill(Pid::from_raw(id), None).is_err(), "the process is gone with its handle");
    }
}

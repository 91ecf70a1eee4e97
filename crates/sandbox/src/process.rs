//! One process with its outputs, from its start until nothing of it is left. Both [`run`](crate::run()) and
//! [`Session`](crate::Session) are made of it.

use std::io::{ErrorKind, PipeReader, Read, pipe};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use crate::capture::Capture;
use crate::command::{Command, End, Fence, Finished};
use crate::descent::hold;
use crate::family::{Mine, Stat, await_one, strays, sweep, until};
use crate::host::Host;
use crate::spawn::{Spawned, Streams, spawn};
use crate::{Cancel, SandboxError};

/// How long after the main process's end we wait for those that it left, and for the end of its outputs.
pub const LEAK_TIMEOUT: Duration = Duration::from_millis(100);

/// How much is read at a time: the capacity of a pipe.
pub(crate) const PIECE_BYTES: usize = 64 << 10;

/// Another descriptor to wait for.
pub(crate) type Extra<'a> = (BorrowedFd<'a>, PollFlags);

/// Why [`Process::wait`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wake {
    /// The main process has ended; its outputs may hold more.
    Ended,
    /// The cancel handle was used.
    Cancelled,
    /// The deadline has passed.
    Deadline,
    /// An extra descriptor is ready.
    Extra,
}

pub(crate) struct Process {
    host: &'static Host,
    token: String,
    spawned: Spawned,
    stdout: Output,
    stderr: Output,
    grace: Duration,
    started: SystemTime,
    began: Instant,
    reaped: bool,
}

/// One output: its pipe until it ends, and what is kept of it.
struct Output {
    pipe: Option<PipeReader>,
    capture: Capture,
}

impl Process {
    /// Starts it. `stdin` and `extra` are its ends of pipes that the caller holds.
    pub(crate) fn start(
        command: &Command,
        fence: &Fence,
        stdin: Option<BorrowedFd<'_>>,
        extra: Option<[BorrowedFd<'_>; 2]>,
    ) -> Result<Self, SandboxError> {
        let host = Host::get()?;
        let (stdout, stdout_theirs) = Output::new(fence.output_bytes)?;
        let (stderr, stderr_theirs) = Output::new(fence.output_bytes)?;
        let streams = Streams {
            stdin: stdin.unwrap_or(host.null()),
            stdout: stdout_theirs.as_fd(),
            stderr: stderr_theirs.as_fd(),
            extra,
        };
        let (token, entry) = host.enter();
        let (started, began) = (SystemTime::now(), Instant::now());
        let spawned = spawn(command, &fence.env, entry, &streams).inspect_err(|_| host.leave(&token))?;
        host.started(&token, spawned.pid);
        let grace = fence.grace;
        Ok(Self { host, token, spawned, stdout, stderr, grace, started, began, reaped: false })
    }

    pub(crate) fn began(&self) -> Instant {
        self.began
    }

    pub(crate) fn grace(&self) -> Duration {
        self.grace
    }

    /// Waits for the end, the cancel handle, an extra descriptor or the deadline, and takes in the outputs meanwhile.
    pub(crate) fn wait(
        &mut self,
        cancel: Option<&Cancel>,
        extra: &[Extra<'_>],
        deadline: Option<Instant>,
    ) -> Wake {
        const CANCEL: usize = 1;
        loop {
            let mut fds = Vec::with_capacity(4 + extra.len());
            fds.push(PollFd::new(self.spawned.pidfd.as_fd(), PollFlags::POLLIN));
            // Stands where nothing is to be watched, so that places have fixed meanings.
            let quiet = || PollFd::new(self.host.null(), PollFlags::empty());
            fds.push(cancel.map_or_else(quiet, |cancel| PollFd::new(cancel.fd(), PollFlags::POLLIN)));
            for output in [&self.stdout, &self.stderr] {
                let pipe = output.pipe.as_ref();
                fds.push(pipe.map_or_else(quiet, |pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
            }
            fds.extend(extra.iter().map(|(fd, flags)| PollFd::new(*fd, *flags)));
            let ready = match poll(&mut fds, until(deadline)) {
                Ok(ready) => ready,
                Err(nix::Error::EINTR) => continue,
                // Out of memory in the kernel: the next try may do.
                Err(_) => 0,
            };
            let is_ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(true)).collect();
            drop(fds);
            for (output, ready) in [&mut self.stdout, &mut self.stderr].into_iter().zip(&is_ready[2..]) {
                if *ready {
                    output.read();
                }
            }
            if is_ready[CANCEL] {
                return Wake::Cancelled;
            }
            if is_ready[4..].contains(&true) {
                return Wake::Extra;
            }
            if is_ready[0] {
                return Wake::Ended;
            }
            if ready == 0 && deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Wake::Deadline;
            }
        }
    }

    /// Takes in what the outputs have now.
    pub(crate) fn read_output(&mut self) {
        self.stdout.read();
        self.stderr.read();
    }

    /// Forgets what was taken in.
    pub(crate) fn forget_output(&mut self) {
        self.stdout.capture.take();
        self.stderr.capture.take();
    }

    /// After its own end: waits for what it left, ends that, and reaps all.
    pub(crate) fn settle(mut self) -> Finished {
        let deadline = Instant::now() + LEAK_TIMEOUT;
        let mut duration = self.began.elapsed();
        let mut leaked = 0;
        loop {
            self.read_output();
            let strays = strays(self.mine());
            if strays.is_empty() && self.stdout.pipe.is_none() && self.stderr.pipe.is_none() {
                break;
            }
            if Instant::now() >= deadline {
                leaked = sweep(self.mine(), &self.spawned.pidfd, &strays, Vec::new());
                break;
            }
            if strays.is_empty() {
                // Somebody holds an output and isn't ours to see yet: a child of one that is about to end.
                self.await_output(deadline);
            } else {
                await_one(&strays, deadline);
            }
        }
        let end = match self.reap() {
            Ok(WaitStatus::Exited(_, code)) => End::Code(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => End::Signal(signal as i32),
            // It can't be: the process had ended, and nobody else may reap it.
            Ok(_) | Err(_) => End::Signal(Signal::SIGKILL as i32),
        };
        duration = duration.min(self.began.elapsed());
        self.finished(end, duration, leaked)
    }

    /// Ends it: SIGTERM and its grace where it is `polite`, then SIGKILL to all of it. `end` is what is to be said.
    pub(crate) fn end(mut self, end: End, polite: bool, cancel: Option<&Cancel>) -> Finished {
        let mut held = Vec::new();
        if polite {
            // Some may lose their parent to the first signal.
            hold(self.spawned.pid, &mut held);
            let _ = killpg(self.spawned.pid, Signal::SIGTERM);
            let deadline = Instant::now() + self.grace;
            self.wait(cancel, &[], Some(deadline));
        }
        let duration = self.began.elapsed();
        let leaked = sweep(self.mine(), &self.spawned.pidfd, &[], held);
        self.read_output();
        let _ = self.reap();
        self.finished(end, duration, leaked)
    }

    fn finished(mut self, end: End, duration: Duration, leaked: usize) -> Finished {
        let (stdout, stderr) = (self.stdout.capture.take(), self.stderr.capture.take());
        Finished { end, stdout, stderr, started: self.started, duration, leaked }
    }

    fn mine(&self) -> Mine<'_> {
        Mine { host: self.host, token: &self.token, root: self.spawned.pid }
    }

    fn await_output(&self, deadline: Instant) {
        let pipes = [&self.stdout, &self.stderr].map(|output| output.pipe.as_ref());
        let pipes = pipes.into_iter().flatten();
        let mut fds: Vec<PollFd<'_>> =
            pipes.map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)).collect();
        let _ = poll(&mut fds, until(Some(deadline)));
    }

    /// Reaps the main process. One that has not ended though it was killed is left for later: the kernel can't end it,
    /// and a slot must not wait for that.
    fn reap(&mut self) -> nix::Result<WaitStatus> {
        self.reaped = true;
        let status = loop {
            match waitpid(self.spawned.pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => {
                    if let Some(stat) = Stat::of(self.spawned.pid) {
                        self.host.give_up(&stat);
                    }
                    break Ok(WaitStatus::StillAlive);
                }
                Err(nix::Error::EINTR) => {}
                status => break status,
            }
        };
        self.host.leave(&self.token);
        status
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.reaped {
            sweep(self.mine(), &self.spawned.pidfd, &[], Vec::new());
            let _ = self.reap();
        }
    }
}

impl Output {
    /// The output, and the end that the process gets.
    fn new(limit: usize) -> Result<(Self, OwnedFd), SandboxError> {
        let (ours, theirs) = open_pipe()?;
        nonblocking(ours.as_fd())?;
        Ok((Self { pipe: Some(ours), capture: Capture::new(limit) }, theirs.into()))
    }

    /// Takes in what is there.
    fn read(&mut self) {
        while let Some(pipe) = &mut self.pipe {
            let full = with_piece(|piece| match pipe.read(piece) {
                Ok(0) => None,
                Ok(length) => {
                    self.capture.push(&piece[..length]);
                    Some(true)
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => Some(true),
                Err(error) if error.kind() == ErrorKind::WouldBlock => Some(false),
                Err(_) => None,
            });
            match full {
                None => self.pipe = None,
                Some(true) => {}
                Some(false) => return,
            }
        }
    }
}

pub(crate) fn open_pipe() -> Result<(PipeReader, std::io::PipeWriter), SandboxError> {
    pipe().map_err(|source| SandboxError::System { what: "a pipe", source })
}

/// Makes our end of a pipe return at once; the other end isn't touched by it.
pub(crate) fn nonblocking(fd: BorrowedFd<'_>) -> Result<(), SandboxError> {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(SandboxError::system("a pipe's mode")).map(drop)
}

/// Lends this thread's buffer, which is too large for a stack and too often used to be made each time.
pub(crate) fn with_piece<R>(use_it: impl FnOnce(&mut [u8]) -> R) -> R {
    thread_local! {
        static PIECE: std::cell::RefCell<Vec<u8>> = std::cell::RefCell::new(vec![0; PIECE_BYTES]);
    }
    PIECE.with_borrow_mut(|piece| use_it(piece))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BaseEnv;

    #[test]
    fn a_process_that_does_not_end_holds_nobody_up_and_is_reaped_when_it_has() {
        let env = BaseEnv::new(std::env::vars_os().filter(|(name, _)| name == "PATH"));
        let fence = Fence::new(Duration::from_secs(20), env);
        let start = |seconds: &str| {
            let command = Command {
                program: "sleep".into(),
                args: vec![seconds.into()],
                cwd: "/".into(),
                ..Command::default()
            };
            Process::start(&command, &fence, None, None).unwrap()
        };
        // As if it had been killed, and the kernel could not end it.
        let mut stuck = start("1000");
        assert_eq!(stuck.reap(), Ok(WaitStatus::StillAlive));
        let pid = stuck.spawned.pid;
        drop(stuck);
        let mut next = start("0");
        assert_eq!(next.wait(None, &[], None), Wake::Ended);
        assert_eq!(next.settle().leaked, 0, "nobody waits for it again");
        let stat = Stat::of(pid).unwrap();
        assert!(!stat.zombie);
        nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
        await_one(&[stat], Instant::now() + Duration::from_secs(20));
        let mut last = start("0");
        assert_eq!(last.wait(None, &[], None), Wake::Ended);
        last.settle();
        assert_eq!(Stat::of(pid), None, "it was reaped");
    }
}

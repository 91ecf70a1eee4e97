//! Processes that can be watched: whatever holds the write end of a [`Trace`] is alive.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use regatta_sandbox::{BaseEnv, Command, Fence};

/// Longer than anything here may take on a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A FIFO that a whole tree of processes inherits. It ends when the last of them is dead.
pub(crate) struct Trace {
    _folder: tempfile::TempDir,
    path: PathBuf,
    read: File,
}

impl Trace {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace");
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        let read = nix::fcntl::open(&path, OFlag::O_RDONLY | OFlag::O_NONBLOCK, Mode::empty()).unwrap();
        Self { _folder: folder, path, read: read.into() }
    }

    /// A shell script in which descriptor 9 is the trace, for it and all that it starts.
    pub(crate) fn script(&self, script: &str) -> Command {
        sh(&format!("exec 9>'{}'; {script}", self.path.display()))
    }

    /// Waits until so many bytes were written.
    pub(crate) fn await_bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < count {
            assert!(self.piece(&mut bytes), "everything died after {bytes:?}");
        }
        bytes
    }

    /// Waits until nothing of the tree is alive; panics when something is after all patience.
    pub(crate) fn await_end(&mut self) {
        let mut bytes = Vec::new();
        while self.piece(&mut bytes) {}
    }

    /// Whether nothing of the tree is alive now. Not to be asked before it began.
    pub(crate) fn has_ended(&mut self) -> bool {
        let mut bytes = [0; 4096];
        loop {
            match self.read.read(&mut bytes) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(_) => return false,
            }
        }
    }

    fn piece(&mut self, bytes: &mut Vec<u8>) -> bool {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "something is still alive, or silent; it said {bytes:?}");
            let mut fds = [PollFd::new(self.read.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::try_from(left).unwrap()).unwrap();
            let mut piece = [0; 4096];
            match self.read.read(&mut piece) {
                Ok(length) => {
                    bytes.extend_from_slice(&piece[..length]);
                    return length > 0;
                }
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
            }
        }
    }
}

/// A shell script.
pub(crate) fn sh(script: &str) -> Command {
    let args = ["-c", script].map(str::to_owned).into();
    Command { program: "sh".into(), args, cwd: "/".into(), ..Command::default() }
}

/// A fence with plenty of time.
pub(crate) fn fence() -> Fence {
    Fence::new(PATIENCE, env())
}

/// `PATH` alone.
pub(crate) fn env() -> BaseEnv {
    BaseEnv::new(std::env::vars_os().filter(|(name, _)| name == "PATH"))
}

//! What this process is to all its sandboxes: the adopter of their orphans, and the one who knows which are alive.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid, getsid};

use crate::SandboxError;
use crate::command::Entry;
use crate::family::Stat;
use crate::warden::Warden;

/// The variable by which a sandbox's descendants are told when nothing else tells them.
pub(crate) const TOKEN_NAME: &str = "REGATTA_SANDBOX";

/// One per process, made with the first sandbox.
pub(crate) struct Host {
    /// The session that this process is in: adopted orphans of a sandbox are never in it.
    pub(crate) session: Pid,
    warden: Warden,
    null: File,
    /// The list of the main thread's children, among them all orphans that we adopted. None where the kernel doesn't
    /// keep it (`CONFIG_PROC_CHILDREN`).
    children: Option<File>,
    /// The first part of every token: this process, and the moment when it began, since numbers come again.
    prefix: String,
    serial: AtomicU64,
    active: Mutex<Vec<Active>>,
    /// What could not be ended in time, by number and beginning.
    given_up: Mutex<Vec<(Pid, u64)>>,
}

/// A sandbox that isn't done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Active {
    /// The value of its token.
    pub(crate) token: String,
    /// Its main process, which leads its session and group; none while it is being started.
    pub(crate) root: Option<Pid>,
}

impl Host {
    /// The host; on the first call this process becomes a child subreaper and gets its warden.
    pub(crate) fn get() -> Result<&'static Self, SandboxError> {
        static HOST: OnceLock<Host> = OnceLock::new();
        static MAKING: Mutex<()> = Mutex::new(());
        if let Some(host) = HOST.get() {
            return Ok(host);
        }
        let _one = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(host) = HOST.get() {
            return Ok(host);
        }
        let host = Self::new()?;
        Ok(HOST.get_or_init(|| host))
    }

    fn new() -> Result<Self, SandboxError> {
        let null = File::options().read(true).write(true).open("/dev/null");
        let null = null.map_err(|source| SandboxError::System { what: "/dev/null", source })?;
        nix::sys::prctl::set_child_subreaper(true).map_err(SandboxError::system("the care of orphans"))?;
        let pid = getpid();
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let prefix = format!("{pid}-{:x}-", since.as_micros());
        let warden = Warden::start(&prefix)?;
        let session = getsid(None).map_err(SandboxError::system("its session"))?;
        let children = File::open(format!("/proc/self/task/{pid}/children")).ok();
        let (serial, active, given_up) = (AtomicU64::new(0), Mutex::default(), Mutex::default());
        Ok(Self { session, warden, null, children, prefix, serial, active, given_up })
    }

    pub(crate) fn null(&self) -> BorrowedFd<'_> {
        self.null.as_fd()
    }

    pub(crate) fn warden(&self) -> Pid {
        self.warden.pid()
    }

    pub(crate) fn children(&self) -> Option<&File> {
        self.children.as_ref()
    }

    /// Whether a token is of this process.
    pub(crate) fn is_ours(&self, token: &str) -> bool {
        token.starts_with(&self.prefix)
    }

    /// Enters a sandbox that is about to be started: its token, and the variable that carries it.
    pub(crate) fn enter(&self) -> (String, Entry) {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let token = format!("{}{serial}", self.prefix);
        let entry = Entry::new(TOKEN_NAME.into(), token.clone().into());
        self.active().push(Active { token: token.clone(), root: None });
        (token, entry.expect("the name and the value are plain ASCII"))
    }

    /// It was started.
    pub(crate) fn started(&self, token: &str, root: Pid) {
        self.warden.watch(root);
        if let Some(active) = self.active().iter_mut().find(|active| active.token == token) {
            active.root = Some(root);
        }
    }

    /// It is done, and its main process reaped or given up.
    pub(crate) fn leave(&self, token: &str) {
        let mut active = self.active();
        let Some(at) = active.iter().position(|active| active.token == token) else { return };
        if let Some(root) = active.swap_remove(at).root {
            self.warden.forget(root);
        }
    }

    /// All others that aren't done.
    pub(crate) fn others(&self, token: &str) -> Vec<Active> {
        self.active().iter().filter(|active| active.token != token).cloned().collect()
    }

    /// Nobody waits for this child of ours any more: it was killed, and the kernel has not ended it.
    pub(crate) fn give_up(&self, stat: &Stat) {
        let mut given_up = self.given_up();
        if !given_up.contains(&(stat.pid, stat.began_ticks)) {
            given_up.push((stat.pid, stat.began_ticks));
        }
    }

    pub(crate) fn has_given_up(&self, stat: &Stat) -> bool {
        self.given_up().contains(&(stat.pid, stat.began_ticks))
    }

    /// Reaps those that have ended after all. Nobody else does, so that their numbers stay theirs until then.
    pub(crate) fn reap_given_up(&self) {
        self.given_up().retain(|&(pid, began_ticks)| {
            let same = Stat::of(pid).is_some_and(|stat| stat.began_ticks == began_ticks);
            same && matches!(waitpid(pid, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive))
        });
    }

    fn given_up(&self) -> MutexGuard<'_, Vec<(Pid, u64)>> {
        self.given_up.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn active(&self) -> MutexGuard<'_, Vec<Active>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! The process that ends what is left when this process is killed.
//!
//! The kernel kills a sandbox's main process when our thread ends, but not its children. A dead process can't sweep;
//! so a second one, forked with the first sandbox, waits on a pipe for our end (however it comes), and then kills
//! whatever is in a session or group of a sandbox that was alive, carries a token of ours, or descends from such a
//! process. It holds nothing open but that pipe, lives in a session of its own, and is deaf to signals, so that what
//! ends a terminal's group doesn't end it first.
//!
//! What escapes: a process that, before we are killed by SIGKILL, left its session *and* cleared its environment *and*
//! lost its parent. Nothing but a process namespace or a container holds that one. (While we live, it
//! is ended with its sandbox when it still had its parent then, and else by the last sandbox that is alive.)

#![expect(unsafe_code, reason = "fork and a page that two processes share have no safe form")]

use std::collections::HashSet;
use std::io::{Read, pipe};
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, pthread_sigmask};
use nix::unistd::{ForkResult, Pid, fork, getpid, setsid};

use crate::SandboxError;
use crate::family::{Stat, all, token_of};

/// How many sandboxes are watched by number at a time; those beyond are found by their tokens alone.
const ROOTS_MAX: usize = 1024;

/// How long the last sweep may take.
const SWEEP_MAX: Duration = Duration::from_secs(10);

/// The warden, seen from the process that it outlives.
pub(crate) struct Warden {
    pid: Pid,
    roots: Roots,
    /// Never written; that it closes is the message.
    _alive: std::io::PipeWriter,
}

/// The main processes of living sandboxes, in memory that both processes see. 0 where there is none.
#[derive(Clone, Copy)]
struct Roots(&'static [AtomicI32]);

impl Warden {
    pub(crate) fn start(prefix: &str) -> Result<Self, SandboxError> {
        let roots = Roots::new()?;
        let (mut ended, alive) = pipe().map_err(|source| SandboxError::System { what: "a pipe", source })?;
        // SAFETY: the child calls the kernel and the allocator alone, which both glibc and musl keep usable after a
        // fork of a threaded process, touches no lock of ours, never returns from this block and can't unwind.
        match unsafe { fork() }.map_err(SandboxError::system("a warden process"))? {
            ForkResult::Parent { child } => Ok(Self { pid: child, roots, _alive: alive }),
            ForkResult::Child => {
                let _ = catch_unwind(AssertUnwindSafe(|| {
                    detach(ended.as_raw_fd());
                    // Whatever comes, it comes when every writer is gone.
                    while ended
                        .read(&mut [0])
                        .is_err_and(|error| error.kind() == std::io::ErrorKind::Interrupted)
                    {
                    }
                    sweep(roots, prefix);
                }));
                // SAFETY: leaves without running anything of the process that we are a copy of.
                unsafe { libc::_exit(0) }
            }
        }
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    pub(crate) fn watch(&self, root: Pid) {
        self.roots.replace(0, root.as_raw());
    }

    pub(crate) fn forget(&self, root: Pid) {
        self.roots.replace(root.as_raw(), 0);
    }
}

impl Roots {
    fn new() -> Result<Self, SandboxError> {
        let bytes = NonZeroUsize::new(ROOTS_MAX * size_of::<AtomicI32>()).expect("both factors are positive");
        let flags = MapFlags::MAP_SHARED;
        // SAFETY: a new mapping at an address of the kernel's choice; nothing else is there.
        let page =
            unsafe { mmap_anonymous(None, bytes, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) };
        let page: NonNull<AtomicI32> = page.map_err(SandboxError::system("a shared page"))?.cast();
        // SAFETY: the mapping is that long, zeroed (a valid AtomicI32), page-aligned, and never unmapped.
        Ok(Self(unsafe { std::slice::from_raw_parts(page.as_ptr(), ROOTS_MAX) }))
    }

    fn replace(self, old: i32, new: i32) {
        let exchange = |root: &AtomicI32| {
            root.load(Ordering::Relaxed) == old
                && root.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        let _ = self.0.iter().any(exchange);
    }

    fn all(self) -> HashSet<Pid> {
        let roots = self.0.iter().map(|root| root.load(Ordering::Acquire));
        roots.filter(|&root| root != 0).map(Pid::from_raw).collect()
    }
}

/// Lets go of everything that the forked process shares with its parent.
fn detach(pipe: libc::c_int) {
    let _ = setsid();
    let _ = pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::all()), None);
    let _ = nix::sys::prctl::set_name(c"regatta-warden");
    let pipe = libc::c_uint::try_from(pipe).unwrap_or(0);
    // SAFETY: closes descriptors of this process alone; what owned them lives in the parent's memory and is never
    // dropped here. The broker's connections must not stay open through us.
    unsafe {
        if pipe > 0 {
            libc::syscall(libc::SYS_close_range, 0, pipe - 1, 0);
        }
        libc::syscall(libc::SYS_close_range, pipe + 1, libc::c_uint::MAX, 0);
    }
}

/// Kills until nothing is left.
fn sweep(roots: Roots, prefix: &str) {
    let (roots, us) = (roots.all(), getpid());
    let deadline = Instant::now() + SWEEP_MAX;
    loop {
        let all = all();
        let victims =
            victims(&all, &roots, us, |pid| token_of(pid).is_some_and(|token| token.starts_with(prefix)));
        if victims.is_empty() || Instant::now() >= deadline {
            return;
        }
        for pid in victims {
            let _ = kill(pid, Signal::SIGKILL);
        }
        std::thread::yield_now();
    }
}

/// Those that live and belong to a sandbox: by session, group, token, or a parent that does.
fn victims(all: &[Stat], roots: &HashSet<Pid>, us: Pid, has_token: impl Fn(Pid) -> bool) -> HashSet<Pid> {
    let living = || all.iter().filter(|stat| !stat.zombie && stat.pid != us);
    let belongs =
        |stat: &&Stat| roots.contains(&stat.session) || roots.contains(&stat.group) || has_token(stat.pid);
    let mut victims: HashSet<Pid> = living().filter(belongs).map(|stat| stat.pid).collect();
    loop {
        let descends = |stat: &&Stat| victims.contains(&stat.parent) && !victims.contains(&stat.pid);
        let more: Vec<Pid> = living().filter(descends).map(|stat| stat.pid).collect();
        if more.is_empty() {
            return victims;
        }
        victims.extend(more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::Environ;

    #[test]
    fn who_belongs_to_a_sandbox() {
        let stat = |(pid, parent, group, session, zombie)| Stat {
            pid: Pid::from_raw(pid),
            parent: Pid::from_raw(parent),
            group: Pid::from_raw(group),
            session: Pid::from_raw(session),
            zombie,
            began_ticks: 0,
            environ: Environ::Some,
        };
        let all: Vec<Stat> = [
            (10, 1, 10, 10, false),  // a sandbox's main process
            (11, 10, 11, 10, false), // its child, in a group of its own
            (12, 1, 12, 12, false),  // a daemon with the token
            (13, 12, 13, 13, false), // the daemon's child, in a session of its own
            (14, 13, 14, 14, false), // and its child
            (15, 10, 10, 10, true),  // ended
            (16, 1, 16, 16, false),  // a stranger
            (99, 1, 99, 99, false),  // the warden, which has the token too
        ]
        .map(stat)
        .into();
        let roots = HashSet::from([Pid::from_raw(10)]);
        let has_token = |pid: Pid| [12, 99].contains(&pid.as_raw());
        let mut found: Vec<i32> =
            victims(&all, &roots, Pid::from_raw(99), has_token).iter().map(|pid| pid.as_raw()).collect();
        found.sort_unstable();
        assert_eq!(found, [10, 11, 12, 13, 14]);
    }
}

//! A sandbox's living descendants outside of its session, held before their parents are ended.
//!
//! While a process's parent lives, the chain of parents tells whose it is; when the parent is ended, it becomes our
//! child, and without a session or a token of its sandbox nobody could tell any more. So whoever is about to end a
//! sandbox holds them first, by descriptors that never come to mean another process, and stops them until there are no
//! more: one with a signal to take makes no child, and what it has made has a parent to be found by.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::family::{Stat, all, until};
use crate::spawn::{pidfd_open, pidfd_signal};

/// How many processes are held at a time; each takes a descriptor. What is beyond is told by its token at most.
const HELD_MAX: usize = 256;

/// How often it is looked for more: once for each generation that was made meanwhile.
const LOOKS_MAX: u32 = 16;

/// A process that can be ended whatever becomes of its number.
pub(crate) struct Held {
    pub(crate) pid: Pid,
    pidfd: OwnedFd,
}

impl Held {
    pub(crate) fn new(stat: &Stat) -> Option<Self> {
        let pidfd = pidfd_open(stat.pid).ok()?;
        // Another one may have got the number before the descriptor was made.
        let same = Stat::of(stat.pid).is_some_and(|now| now.began_ticks == stat.began_ticks);
        same.then_some(Self { pid: stat.pid, pidfd })
    }

    pub(crate) fn kill(&self) {
        self.signal(Signal::SIGKILL);
    }

    fn signal(&self, signal: Signal) {
        // One that has ended needs none, and one that isn't ours to end is waited for.
        let _ = pidfd_signal(self.pidfd.as_fd(), signal);
    }

    pub(crate) fn has_ended(&self) -> bool {
        await_any([self.pidfd.as_fd()], PollTimeout::ZERO)
    }
}

/// Holds the descendants of a sandbox's main process, and of those that are held, that are outside of its session.
pub(crate) fn hold(root: Pid, held: &mut Vec<Held>) {
    let alive = Stat::of(root).is_some_and(|stat| !stat.zombie);
    let mut parents: Vec<Pid> = held.iter().filter(|held| !held.has_ended()).map(|held| held.pid).collect();
    if !alive && parents.is_empty() {
        // Nobody has children any more.
        return;
    }
    parents.push(root);
    let more: Vec<Held> = outside(&all(), root, parents).into_iter().filter_map(Held::new).collect();
    held.extend(more.into_iter().take(HELD_MAX.saturating_sub(held.len())));
}

/// The same for good: stops all that is held, and holds what it had made until then.
pub(crate) fn stop_and_hold(root: Pid, held: &mut Vec<Held>) {
    for _ in 0..LOOKS_MAX {
        held.iter().for_each(|held| held.signal(Signal::SIGSTOP));
        let before = held.len();
        hold(root, held);
        if held.len() == before {
            return;
        }
    }
}

/// Waits until one of these has ended, or until `deadline`.
pub(crate) fn await_held(held: &[Held], deadline: Instant) {
    await_any(held.iter().map(|held| held.pidfd.as_fd()), until(Some(deadline)));
}

fn await_any<'a>(pidfds: impl IntoIterator<Item = BorrowedFd<'a>>, timeout: PollTimeout) -> bool {
    let mut fds: Vec<PollFd<'_>> =
        pidfds.into_iter().map(|pidfd| PollFd::new(pidfd, PollFlags::POLLIN)).collect();
    poll(&mut fds, timeout).is_ok_and(|ended| ended > 0)
}

/// Those that live, descend from one of `parents` and aren't in the session of `root`.
fn outside(all: &[Stat], root: Pid, mut parents: Vec<Pid>) -> Vec<&Stat> {
    let mut children: HashMap<Pid, Vec<&Stat>> = HashMap::new();
    for stat in all.iter().filter(|stat| !stat.zombie) {
        children.entry(stat.parent).or_default().push(stat);
    }
    let mut seen: HashSet<Pid> = parents.iter().copied().collect();
    let mut outside = Vec::new();
    while let Some(parent) = parents.pop() {
        for child in children.get(&parent).into_iter().flatten() {
            if seen.insert(child.pid) {
                parents.push(child.pid);
                outside.extend((child.session != root).then_some(*child));
            }
        }
    }
    outside
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::Environ;

    #[test]
    fn whoever_left_the_session_is_found_by_its_parents() {
        let stat = |(pid, parent, session, zombie)| Stat {
            pid: Pid::from_raw(pid),
            parent: Pid::from_raw(parent),
            group: Pid::from_raw(session),
            session: Pid::from_raw(session),
            zombie,
            began_ticks: 0,
            environ: Environ::Some,
        };
        let all: Vec<Stat> = [
            (10, 1, 10, false),  // the main process
            (11, 10, 10, false), // a child in its session
            (12, 11, 12, false), // which has one outside
            (13, 12, 12, false), // and that has one too
            (14, 11, 14, true),  // ended
            (15, 1, 15, false),  // somebody else's
            (18, 15, 15, false), // with a child
            (16, 17, 16, false), // descend from each other
            (17, 16, 16, false),
        ]
        .map(stat)
        .into();
        let found = |root| {
            let mut pids: Vec<i32> = outside(&all, Pid::from_raw(root), vec![Pid::from_raw(root)])
                .iter()
                .map(|stat| stat.pid.as_raw())
                .collect();
            pids.sort_unstable();
            pids
        };
        assert_eq!(found(10), [12, 13]);
        assert_eq!(found(15), [0; 0]);
        assert_eq!(found(17), [16]);
        let (root, held) = (Pid::from_raw(10), Pid::from_raw(15));
        assert_eq!(outside(&all, root, vec![held, root]).len(), 3, "and what one has that is held");
    }

    #[test]
    fn a_held_process_is_ended_and_its_end_is_seen() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = Pid::from_raw(child.id().try_into().unwrap());
        let stat = Stat::of(pid).unwrap();
        assert!(Held::new(&Stat { began_ticks: stat.began_ticks + 1, ..stat }).is_none(), "of another one");
        let held = Held::new(&stat).unwrap();
        assert!(!held.has_ended());
        held.kill();
        let patience = Instant::now() + std::time::Duration::from_secs(20);
        await_held(std::slice::from_ref(&held), patience);
        assert!(held.has_ended());
        child.wait().unwrap();
        held.kill();
    }
}

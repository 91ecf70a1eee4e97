//! Which processes belong to a sandbox, by what the kernel says in `/proc`, and how all of them are ended.
//!
//! This process is a child subreaper: whoever loses its parent below us becomes our child, however it left its group
//! and session. So after a sandbox's main process has ended, all that it left lives in trees whose roots are children
//! of ours, which the kernel lists in one file. Several sandboxes share that list; an orphan is told by its session, by
//! the token in its environment, and where it has neither, it is ended by the last sandbox that is alive.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, getpid};

use crate::descent::{Held, await_held, stop_and_hold};
use crate::host::{Active, Host, TOKEN_NAME};
use crate::spawn::pidfd_open;

/// How long a sweep may take: a process that the kernel can't end (a hanging disk) must not hold a slot for ever.
const SWEEP_MAX: Duration = Duration::from_secs(5);

/// How long one round of a sweep waits for what it killed.
const ROUND_MAX: Duration = Duration::from_millis(100);

/// From this round on whole groups are killed: what is still there forks faster than it is listed.
const ROUNDS_BEFORE_GROUPS: u32 = 3;

/// How long a process that is becoming another program is waited for, until it has an environment.
const EXECUTE_MAX: Duration = Duration::from_secs(1);

/// How often it is looked at meanwhile.
const EXECUTE_LOOK: Duration = Duration::from_millis(1);

/// The sandbox that asks.
#[derive(Clone, Copy)]
pub(crate) struct Mine<'a> {
    pub(crate) host: &'a Host,
    pub(crate) token: &'a str,
    /// Its main process; not reaped, so that its number is still its own.
    pub(crate) root: Pid,
}

/// What `/proc/<pid>/stat` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) pid: Pid,
    pub(crate) parent: Pid,
    pub(crate) group: Pid,
    pub(crate) session: Pid,
    pub(crate) zombie: bool,
    /// When it began, in clock ticks since the machine did. With the number it names one process for good.
    pub(crate) began_ticks: u64,
    pub(crate) environ: Environ,
}

/// What a process's memory says of its environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Environ {
    /// It was started with none.
    Empty,
    /// There is one, or there will be: a program that is being executed has no place for it yet.
    Some,
}

impl Stat {
    pub(crate) fn of(pid: Pid) -> Option<Self> {
        Self::parse(pid, &std::fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    /// `pid (name) state ppid pgrp session …`; the name may hold blanks and parentheses.
    fn parse(pid: Pid, text: &[u8]) -> Option<Self> {
        let end = text.iter().rposition(|&byte| byte == b')')?;
        let rest = std::str::from_utf8(text.get(end + 1..)?).ok()?;
        let mut fields = rest.split_ascii_whitespace();
        let state = fields.next()?;
        let mut number = || fields.next()?.parse().ok().map(Pid::from_raw);
        let (parent, group, session) = (number()?, number()?, number()?);
        // When it began is field 22, where the environment begins and ends are 50 and 51; that was number 6.
        let began_ticks = fields.nth(15).and_then(|ticks| ticks.parse().ok()).unwrap_or_default();
        let place = (fields.nth(27), fields.next());
        let environ = match place {
            (Some(begin), Some(end)) if begin == end && end != "0" => Environ::Empty,
            _ => Environ::Some,
        };
        let zombie = matches!(state, "Z" | "X");
        Some(Self { pid, parent, group, session, zombie, began_ticks, environ })
    }
}

/// Every process that can be seen.
pub(crate) fn all() -> Vec<Stat> {
    let Ok(folder) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = folder.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| Stat::of(Pid::from_raw(pid))).collect()
}

/// What the kernel shows of a process's environment: none of one that has ended or isn't ours to look into.
///
/// From the moment when a process executes another program until that has its stack, the kernel shows an empty
/// environment (`environ_read` in its `fs/proc/base.c`); a process that was swept in that moment would be nobody's.
fn environ_of(pid: Pid) -> Option<Vec<u8>> {
    let deadline = Instant::now() + EXECUTE_MAX;
    loop {
        let environ = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
        let stat = Stat::of(pid).filter(|stat| !stat.zombie)?;
        if !environ.is_empty() || stat.environ == Environ::Empty || Instant::now() >= deadline {
            return Some(environ);
        }
        await_one(&[stat], Instant::now() + EXECUTE_LOOK);
    }
}

/// The token in a process's environment.
pub(crate) fn token_of(pid: Pid) -> Option<String> {
    let environ = environ_of(pid)?;
    let name = format!("{TOKEN_NAME}=");
    let value = environ.split(|&byte| byte == 0).find_map(|entry| entry.strip_prefix(name.as_bytes()))?;
    Some(String::from_utf8_lossy(value).into_owned())
}

/// The children of our main thread, which is who adopts.
fn adopted(host: &Host) -> Vec<Pid> {
    let Some(file) = host.children() else {
        let us = getpid();
        return all().iter().filter(|stat| stat.parent == us).map(|stat| stat.pid).collect();
    };
    let mut text = Vec::new();
    let mut piece = [0; 512];
    while let Ok(length @ 1..) = file.read_at(&mut piece, text.len() as u64) {
        text.extend_from_slice(&piece[..length]);
    }
    let text = String::from_utf8_lossy(&text);
    text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).collect()
}

/// The processes that the sandbox's main process left behind, by the roots of their trees. To be asked when it has
/// ended. Orphans that have ended are reaped on the way.
pub(crate) fn strays(mine: Mine<'_>) -> Vec<Stat> {
    mine.host.reap_given_up();
    let children = adopted(mine.host);
    let unknown = |pid: &Pid| *pid != mine.root && *pid != mine.host.warden();
    let children: Vec<Pid> = children.into_iter().filter(unknown).collect();
    if children.is_empty() {
        return Vec::new();
    }
    // Asked after the list was read: whoever is in the list and was started as a sandbox is known by now.
    let others = mine.host.others(mine.token);
    let mut strays = Vec::new();
    for pid in children {
        if others.iter().any(|other| other.root == Some(pid)) {
            continue;
        }
        let Some(stat) = Stat::of(pid).filter(|stat| stat.session != mine.host.session) else { continue };
        if mine.host.has_given_up(&stat) {
            continue;
        }
        if stat.zombie {
            // What another thread starts at this moment is to be reaped there.
            if others.iter().all(|other| other.root.is_some()) {
                let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
            }
        } else if is_mine(mine, &stat, &others) {
            strays.push(stat);
        }
    }
    strays
}

fn is_mine(mine: Mine<'_>, stat: &Stat, others: &[Active]) -> bool {
    if stat.session == mine.root {
        return true;
    }
    if others.iter().any(|other| other.root == Some(stat.session)) {
        return false;
    }
    match token_of(stat.pid) {
        Some(token) if token == mine.token => true,
        Some(token) if others.iter().any(|other| other.token == token) => false,
        // Of a sandbox that is done, which should have ended it.
        Some(token) if mine.host.is_ours(&token) => true,
        Some(_) | None => others.is_empty(),
    }
}

/// Waits until one of these processes has ended, or until `deadline`.
pub(crate) fn await_one(strays: &[Stat], deadline: Instant) {
    let pidfds: Vec<OwnedFd> = strays.iter().filter_map(|stat| pidfd_open(stat.pid).ok()).collect();
    if pidfds.len() < strays.len() {
        return; // One has ended already.
    }
    let mut fds: Vec<PollFd<'_>> =
        pidfds.iter().map(|pidfd| PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)).collect();
    let _ = poll(&mut fds, until(Some(deadline)));
}

/// The time until a deadline as `poll` wants it, rounded up.
pub(crate) fn until(deadline: Option<Instant>) -> PollTimeout {
    let Some(deadline) = deadline else { return PollTimeout::NONE };
    let left = deadline.saturating_duration_since(Instant::now());
    let ms = left.as_micros().div_ceil(1000).min(i32::MAX.unsigned_abs().into());
    PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX)
}

/// Kills the sandbox's main process with its group, waits for its end (without reaping it), then kills all that it
/// leaves behind and what is held. Returns how many of those there were, with those that were `seen` before.
pub(crate) fn sweep(mine: Mine<'_>, pidfd: &OwnedFd, seen: &[Stat], mut held: Vec<Held>) -> usize {
    // Who is stopped leaves no session.
    let _ = killpg(mine.root, Signal::SIGSTOP);
    stop_and_hold(mine.root, &mut held);
    let _ = killpg(mine.root, Signal::SIGKILL);
    held.iter().for_each(Held::kill);
    let mut killed: BTreeSet<Pid> = seen.iter().map(|stat| stat.pid).collect();
    killed.extend(held.iter().map(|held| held.pid));
    let deadline = Instant::now() + SWEEP_MAX;
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    while Instant::now() < deadline {
        if poll(&mut fds, until(Some(deadline))).is_ok() {
            break;
        }
    }
    for round in 0.. {
        let strays = strays(mine);
        held.retain(|held| !held.has_ended());
        if strays.is_empty() && held.is_empty() {
            break;
        }
        if Instant::now() >= deadline {
            strays.iter().for_each(|stray| mine.host.give_up(stray));
            break;
        }
        let news = strays.iter().filter(|stray| held.iter().all(|held| held.pid != stray.pid));
        let news: Vec<Held> = news.filter_map(Held::new).collect();
        if !news.is_empty() {
            held.extend(news);
            stop_and_hold(mine.root, &mut held);
        }
        killed.extend(held.iter().map(|held| held.pid));
        held.iter().for_each(Held::kill);
        for stray in &strays {
            killed.insert(stray.pid);
            let _ = kill(stray.pid, Signal::SIGKILL);
            // A group from outside our namespace has no number; 0 would be our own.
            if round >= ROUNDS_BEFORE_GROUPS && stray.group.as_raw() > 1 {
                let _ = killpg(stray.group, Signal::SIGKILL);
            }
        }
        if held.is_empty() {
            await_one(&strays, Instant::now() + ROUND_MAX);
        } else {
            await_held(&held, Instant::now() + ROUND_MAX);
        }
    }
    killed.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stat_line_is_read_whatever_the_name() {
        let pid = Pid::from_raw;
        let stat = |zombie, began_ticks, environ| {
            let (parent, group, session) = (pid(1), pid(5), pid(4));
            Some(Stat { pid: pid(7), parent, group, session, zombie, began_ticks, environ })
        };
        // Fields 7 to 21, then the beginning, fields 23 to 49, then the environment's begin and end, then the exit code.
        let long =
            |place: &str| format!("7 (cat) S 1 5 4{} 300{} {place} 0", " 8".repeat(15), " 8".repeat(27));
        let table = [
            ("7 (cat) S 1 5 4 0 -1", stat(false, 0, Environ::Some)),
            ("7 (a) b (c)) Z 1 5 4 0 -1", stat(true, 0, Environ::Some)),
            (&long("0 0"), stat(false, 300, Environ::Some)),
            (&long("700 900"), stat(false, 300, Environ::Some)),
            (&long("900 900"), stat(false, 300, Environ::Empty)),
            ("7 (\u{fffd}) R 1 5", None),
            ("", None),
        ];
        for (text, expected) in table {
            assert_eq!(Stat::parse(pid(7), text.as_bytes()), expected, "{text}");
        }
        let own = Stat::of(getpid()).expect("we are there");
        assert_eq!((own.pid, own.zombie), (getpid(), false));
    }
}

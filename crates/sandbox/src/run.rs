//! One command from its start to its end.

use std::io::Write;
use std::os::fd::AsFd;

use nix::poll::PollFlags;

use crate::process::{Process, Wake, nonblocking, open_pipe};
use crate::{Cancel, Command, End, Fence, Finished, SandboxError};

/// Runs `command` within `fence` and returns when nothing of it is left. Blocks its thread.
///
/// # Errors
/// When it can't be started. Whatever it does once it runs is a [`Finished`].
pub fn run(command: &Command, fence: &Fence, cancel: &Cancel) -> Result<Finished, SandboxError> {
    if command.stdin.is_empty() {
        return Ok(watch(Process::start(command, fence, None, None)?, fence, cancel));
    }
    let (theirs, mut ours) = open_pipe()?;
    nonblocking(ours.as_fd())?;
    let mut process = Process::start(command, fence, Some(theirs.as_fd()), None)?;
    drop(theirs);
    let mut rest = command.stdin.as_slice();
    let deadline = process.began().checked_add(fence.timeout);
    while !rest.is_empty() {
        match process.wait(Some(cancel), &[(ours.as_fd(), PollFlags::POLLOUT)], deadline) {
            Wake::Extra => match ours.write(rest) {
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                // It doesn't want to read more.
                Err(_) => break,
            },
            Wake::Ended | Wake::Cancelled | Wake::Deadline => break,
        }
    }
    drop(ours);
    Ok(watch(process, fence, cancel))
}

fn watch(mut process: Process, fence: &Fence, cancel: &Cancel) -> Finished {
    // Later than the clock can say is never.
    let deadline = process.began().checked_add(fence.timeout);
    match process.wait(Some(cancel), &[], deadline) {
        Wake::Ended | Wake::Extra => process.settle(),
        Wake::Cancelled => process.end(End::Cancelled, false, None),
        Wake::Deadline => process.end(End::TimedOut, true, Some(cancel)),
    }
}

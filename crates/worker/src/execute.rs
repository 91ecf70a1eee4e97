//! An adapter's invocation as a sandboxed command, and its end in the adapter's words.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use regatta_adapters::{Ended, Exit, Invocation};
use regatta_model::Time;
use regatta_sandbox::{Cancel, Command, End, Fence, Finished, SandboxError};

/// Runs an invocation within `fence`, until nothing of it is left. Blocks its thread, which must outlive it: call it
/// from a thread of your own or of a blocking pool.
///
/// # Errors
/// When it can't be started: the program is missing, its directory too, or the system is out of processes.
pub fn execute(invocation: &Invocation, fence: &Fence, cancel: &Cancel) -> Result<Ended, SandboxError> {
    regatta_sandbox::run(&command(invocation), fence, cancel).map(|finished| ended(finished, fence.timeout))
}

pub(crate) fn command(invocation: &Invocation) -> Command {
    Command {
        program: invocation.program.clone(),
        args: invocation.args.clone(),
        cwd: invocation.cwd.clone(),
        env: invocation.env.clone(),
        env_defaults: invocation.env_defaults.clone(),
        stdin: invocation.stdin.clone(),
    }
}

/// An end in the adapter's words; `limit` is what it had to keep.
pub(crate) fn ended(finished: Finished, limit: Duration) -> Ended {
    Ended {
        exit: match finished.end {
            End::Code(code) => Exit::Code(code),
            End::Signal(signal) => Exit::Signal(signal),
            End::TimedOut => Exit::TimedOut { limit },
            End::Cancelled => Exit::Cancelled,
        },
        bytes_omitted: finished.stdout.omitted + finished.stderr.omitted,
        stdout: finished.stdout.bytes,
        stderr: finished.stderr.bytes,
        started: time(finished.started),
        duration: finished.duration,
        leaked: finished.leaked,
    }
}

/// A moment of the wall clock as reports carry it.
pub(crate) fn time(moment: SystemTime) -> Time {
    Time::default().after(moment.duration_since(UNIX_EPOCH).unwrap_or_default())
}

//! Runs one command within limits, and ends all of it.
//!
//! It knows no tests, no queues and no async: calls block, and are meant for long-lived threads. [`run`] takes a
//! command from start to end; a [`Session`] is a warm process that is asked line by line. Whatever a command leaves
//! behind is found and killed: in its process group, in sessions of its own, daemons, and when this very process is
//! killed too.
//!
//! # Who ends whom
//!
//! | what happens | who ends the tree |
//! | --- | --- |
//! | the main process ends | what it left is adopted by us (we are a *child subreaper*), seen by one read of `/proc`, given [`LEAK_TIMEOUT`] to end, then swept |
//! | time-out, cancel, drop | SIGTERM to the group and a grace (time-out), SIGKILL to the group, then the sweep: everything whose chain of parents leads to the sandbox |
//! | this process is killed | the kernel kills the main process (`PR_SET_PDEATHSIG`), the warden the rest: see the `warden` module |
//!
//! # Why our own spawn
//!
//! The standard library spawns by `posix_spawn` only without `pre_exec`; with it, it forks, which copies the page
//! tables of the whole worker, and it can set neither a session nor a parent-death signal otherwise. Measured for
//! `true` with both outputs piped, one thread, two cores, a process of 64 MB: `posix_spawn` 0.29 ms, fork with
//! `pre_exec` 1.1 ms, our `clone(CLONE_VM | CLONE_VFORK)` 0.28 ms, of which the program's own life is most.
//! So the death signal and the session cost nothing; they are worth one page of unsafe code.
//!
//! A death signal is tied to the *thread* that spawned. That is why [`Session`] isn't `Send`, and why the caller's
//! threads must live as long as what they run.

mod cancel;
mod capture;
mod command;
mod family;
mod host;
mod process;
mod run;
mod session;
mod spawn;
mod warden;

pub use cancel::Cancel;
pub use capture::{Capture, Captured};
pub use command::{BaseEnv, Command, End, Fence, Finished, SandboxError};
pub use process::LEAK_TIMEOUT;
pub use run::run;
pub use session::{Event, LINE_BYTES_MAX, Session, Why};

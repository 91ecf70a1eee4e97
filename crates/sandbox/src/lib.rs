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
//! | time-out, cancel, drop | SIGTERM to the group and a grace (time-out), SIGKILL to the group and to all its living descendants, then the sweep: everything that is the sandbox's by its session or token, with its descendants; see the `descent` module |
//! | this process is killed | the kernel kills the main process (`PR_SET_PDEATHSIG`), the warden the rest: see the `warden` module |
//!
//! # Why our own spawn
//!
//! A session and a parent-death signal need code between fork and exec. The standard library allows that by `pre_exec`
//! alone, and then it forks, which copies the page tables of the whole worker. Measured for `true` with both outputs
//! piped, against the standard library's `posix_spawn` (which can set neither): fork with `pre_exec` takes 1.5 times as
//! long from a process of 8 MB, 4 times from one of 64 MB, 30 times from one of 512 MB; our
//! `clone(CLONE_VM | CLONE_VFORK)` takes as long as `posix_spawn` from each, about half a millisecond, most of which is
//! the program's own. So the death signal and the session cost nothing; they are worth a file of unsafe code.
//!
//! A death signal is tied to the *thread* that spawned. That is why [`Session`] isn't `Send`, and why the caller's
//! threads must live as long as what they run.

mod cancel;
mod capture;
mod command;
mod descent;
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

//! The hands of one machine: a batch comes in, its tests run in sandboxes, what they did goes out, the batch is settled.
//!
//! [`run`] consumes queues and does just that, over RabbitMQ or embedded in the process of a dispatcher; [`execute`] runs
//! a single command of an adapter, for whoever lists. What decides is pure: the `lease` module says what is published
//! when and when to give up, the `asking` module what is still to be asked of a warm process. The rest carries.
//!
//! This crate must not know how a framework's output reads (that is the adapter's), how a delivery is settled (that is
//! `celery`'s), what a verdict is, or where results are kept; and it never takes a command line out of a message.

mod asking;
mod batch;
mod execute;
mod gate;
mod hold;
mod lease;
mod outbox;
mod pool;
mod run;
mod slot;
mod warm;

pub use batch::{BatchTask, PROGRESS};
pub use execute::execute;
pub use regatta_sandbox::{BaseEnv, Cancel, Fence, SandboxError};
pub use run::{Ahead, RunError, Worked, WorkerConfig, run};

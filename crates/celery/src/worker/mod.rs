//! The worker: deliveries in, executions, results out, settled.
//!
//! [`Worker::run`] is one loop that only carries things: [`intake`] says what a delivery is, [`slots`] what to do with
//! it, [`execution`] runs it in a task of its own, [`conclude`] decides what its end means, and [`hands`] publishes,
//! through [`outbox`], and settles.

mod aside;
mod callers;
mod conclude;
mod execution;
mod follow;
mod hands;
mod intake;
mod options;
mod outbox;
mod remote;
mod round;
mod signature;
mod slots;
mod start;
#[cfg(test)]
mod tests;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub(crate) use self::aside::ensure;
pub(crate) use self::execution::Execution;
pub use self::options::{
    DeadLetter, HEARTBEAT, MAX_PREFETCH, Phase, Prefetch, ResultRoute, WorkerEnd, WorkerOptions,
};
pub(crate) use self::remote::{CONTROL_EXCHANGE, MESSAGE_TTL, QUEUE_EXPIRY, REPLY_EXCHANGE};
use crate::app::App;
use crate::error::WorkerError;
use crate::transport::Broker;

/// A worker that isn't running yet. See [`App::worker`].
#[derive(Debug)]
#[must_use = "a worker does nothing before it is run"]
pub struct Worker {
    app: App,
    broker: Broker,
    options: WorkerOptions,
    phase: watch::Sender<Phase>,
}

impl Worker {
    pub(crate) fn new(app: App, broker: Broker, options: WorkerOptions) -> Self {
        Self { app, broker, options, phase: watch::channel(Phase::Starting).0 }
    }

    /// Tells where the worker is in its life.
    pub fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Works until `quiet` or `kill` fires or remote control asks for the shutdown.
    ///
    /// `quiet` takes no more: what runs is finished and settled, what only waits goes back to its queue. `kill` ends at
    /// once: executions are dropped, and all that is unsettled goes back. Losing the broker is no end: the worker goes
    /// on with what it has, and consumes again when the broker is back. Dropping the future kills.
    ///
    /// # Errors
    /// When an option makes no sense, or the broker refuses the queues or exchanges that the worker needs.
    pub async fn run(
        self,
        quiet: CancellationToken,
        kill: CancellationToken,
    ) -> Result<WorkerEnd, WorkerError> {
        let mut round = start::start(self).await?;
        let end = round.work(&quiet, &kill).await;
        round.leave().await;
        end
    }
}

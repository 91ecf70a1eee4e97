//! Publishes what follows from tasks: results, following steps, retries. A task that was executed is in hand until that is
//! done, and would be executed again if it were given back; so a broker that can't take a message now is asked again.

use std::future::Future;
use std::pin::{Pin, pin};
use std::time::Duration;

use tokio::sync::watch;

use crate::transport::{Broker, PublishError, Publishing, Queue};
use crate::worker::aside::ensure;
use crate::worker::options::Phase;

/// How long a message is offered to a broker that doesn't take it. After that time RabbitMQ takes an unsettled delivery
/// back by itself (`consumer_timeout`, 30 minutes).
const PATIENCE: Duration = Duration::from_secs(1800);

/// The same for a worker that leaves.
const PATIENCE_QUIET: Duration = Duration::from_secs(30);

/// The time between two tries.
const AGAIN: Duration = Duration::from_secs(1);

/// The way to the broker for what must not be lost.
#[derive(Debug)]
pub(crate) struct Outbox {
    pub(crate) broker: Broker,
    /// A worker that leaves is less patient.
    pub(crate) phase: watch::Receiver<Phase>,
}

impl Outbox {
    /// Publishes, and waits until the broker has it. It is published again only where the broker refused it for now, or
    /// its connection is gone: under an alarm the broker has it and doesn't read it yet, and would read each copy.
    pub(crate) async fn publish(&self, publishing: impl Fn() -> Publishing) -> Result<(), PublishError> {
        let mut patience = pin!(self.patience());
        loop {
            match self.broker.publish_until(publishing(), patience.as_mut()).await {
                Err(error) if is_passing(&error) => pause(patience.as_mut(), error).await?,
                done => return done,
            }
        }
    }

    /// Makes sure that the queue of a message is there.
    pub(crate) async fn ready(&self, queue: &Queue) -> Result<(), PublishError> {
        let mut patience = pin!(self.patience());
        loop {
            let error = match ensure(&self.broker, queue.clone()).await {
                Ok(()) => return Ok(()),
                Err(error) if error.is_refusal() => return Err(error.into()),
                Err(error) if error.is_passing() => error.into(),
                // A connection that is lost meanwhile is no word of the broker's about the queue.
                Err(error) => {
                    PublishError::Lost { routing_key: queue.name().to_owned(), reason: error.to_string() }
                }
            };
            pause(patience.as_mut(), error).await?;
        }
    }

    /// Ends when it was tried for long enough.
    async fn patience(&self) {
        let mut phase = self.phase.clone();
        let leaves = async move {
            match phase.wait_for(|phase| *phase == Phase::Quiet).await {
                Ok(_) => {}
                // The worker is gone, and this with it.
                Err(_) => return,
            }
            tokio::time::sleep(PATIENCE_QUIET).await;
        };
        let _either = tokio::time::timeout(PATIENCE, leaves).await;
    }
}

/// Waits before the next try; the error comes back when there shall be none.
async fn pause(
    patience: Pin<&mut impl Future<Output = ()>>,
    error: PublishError,
) -> Result<(), PublishError> {
    tracing::warn!(%error, "a message is not at the broker; it is tried again");
    tokio::select! {
        () = patience => Err(error),
        () = tokio::time::sleep(AGAIN) => Ok(()),
    }
}

/// Whether a later try may help.
fn is_passing(error: &PublishError) -> bool {
    match error {
        PublishError::Lost { .. } | PublishError::Refused { .. } => true,
        PublishError::Transport(error) => error.is_passing(),
        // The first is for whoever knows the queue. The second says that the patience is at its end.
        PublishError::Unroutable { .. } | PublishError::Unconfirmed { .. } => false,
    }
}

/// Whether no later try can help: the broker has said no, or can't be told at all (a message is too large, a name too
/// long).
pub(crate) fn is_final(error: &PublishError) -> bool {
    matches!(error, PublishError::Transport(error) if !error.is_passing())
}

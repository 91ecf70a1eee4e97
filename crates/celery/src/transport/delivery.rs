//! A message coming in, and its one settlement.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::{Stream, StreamExt};

use super::{Properties, amqp, embedded};

/// A delivery without the right to settle it.
#[derive(Debug, Clone)]
pub struct Envelope {
    /// The exchange that it was published to.
    pub exchange: String,
    /// Its routing key.
    pub routing_key: String,
    /// The queue that it came out of.
    pub queue: Arc<str>,
    /// Whether it was delivered before, perhaps to somebody who died.
    pub redelivered: bool,
    /// What travelled beside the body.
    pub properties: Properties,
    /// The body.
    pub body: Bytes,
}

/// A message coming in. It must be settled, or goes back to its queue.
#[must_use = "a delivery that isn't settled goes back to its queue"]
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(super) envelope: Envelope,
    pub(super) settler: Settler,
}

impl Delivery {
    /// Parts what it says from the right to settle it.
    pub(crate) fn split(self) -> (Envelope, Settler) {
        (self.envelope, self.settler)
    }
}

/// What shall become of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settle {
    /// It is done.
    Ack,
    /// Back to its queue.
    Requeue,
    /// Away, to where its queue sends what nobody could run.
    DeadLetter,
}

/// Why a delivery could not be settled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SettleError {
    /// The connection that it came on is gone, and with it the claim: the broker delivers it again.
    #[error("the delivery was lost with its connection: {reason}")]
    Lost {
        /// What was noticed.
        reason: String,
    },
}

/// The right to settle one delivery, once.
#[must_use = "a delivery that isn't settled goes back to its queue"]
pub(crate) struct Settler {
    pub(super) kind: SettlerKind,
}

pub(super) enum SettlerKind {
    /// Settled when it was handed out.
    NoAck,
    Embedded(embedded::Claim),
    Amqp(amqp::Claim),
}

impl Settler {
    /// Settles.
    pub(crate) async fn settle(self, how: Settle) -> Result<(), SettleError> {
        match self.kind {
            SettlerKind::NoAck => Ok(()),
            SettlerKind::Embedded(claim) => claim.settle(how),
            SettlerKind::Amqp(claim) => claim.settle(how).await,
        }
    }
}

impl fmt::Debug for Settler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            SettlerKind::NoAck => "Settler(no ack)",
            SettlerKind::Embedded(_) => "Settler(embedded)",
            SettlerKind::Amqp(_) => "Settler(amqp)",
        })
    }
}

/// What a consumer tells.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly all are deliveries; a box for each costs more")]
pub(crate) enum Incoming {
    /// A message came in.
    Delivery(Delivery),
    /// The channel or its connection is gone. What came on it and isn't settled can't be settled any more: the broker
    /// delivers it again. [`Incoming::Renewed`] follows, or the end.
    Lost,
    /// It consumes again, on a new channel. A queue that lives no longer than its consumer was made anew.
    Renewed,
}

/// A stream of what comes in. It ends only with [`Consumer::cancel`] or the broker's close.
#[derive(Debug)]
pub(crate) struct Consumer {
    pub(super) kind: ConsumerKind,
}

#[derive(Debug)]
pub(super) enum ConsumerKind {
    Embedded(embedded::Subscription),
    Amqp(amqp::Subscription),
}

impl Consumer {
    /// The next delivery, for whoever needn't know what became of the earlier ones; `None` after the end.
    pub(crate) async fn next(&mut self) -> Option<Delivery> {
        loop {
            if let Incoming::Delivery(delivery) = StreamExt::next(self).await? {
                return Some(delivery);
            }
        }
    }

    /// Stops new deliveries. Those that came stay valid.
    pub(crate) fn cancel(&self) {
        match &self.kind {
            ConsumerKind::Embedded(subscription) => subscription.cancel(),
            ConsumerKind::Amqp(subscription) => subscription.cancel(),
        }
    }
}

impl Stream for Consumer {
    type Item = Incoming;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Incoming>> {
        match &mut self.kind {
            ConsumerKind::Embedded(subscription) => {
                subscription.poll_next(context).map(|delivery| delivery.map(Incoming::Delivery))
            }
            ConsumerKind::Amqp(subscription) => subscription.poll_next(context),
        }
    }
}

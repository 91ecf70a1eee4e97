//! Where results come in: the client's own reply queue, or a named one that the caller reads itself.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;

use crate::client::facts::Facts;
use crate::client::pending::Pending;
use crate::error::ClientError;
use crate::transport::{
    Binding, Broker, Consume, Consumer, Incoming, Queue, Settle, SettleError, Settler, Topology,
};
use crate::wire::{Refusal, ResultMessage};

/// How many unsettled results a caller that reads its own reply queue holds at most.
pub const REPLIES_PREFETCH: u16 = 256;

/// A reply queue that the caller reads itself, bound to the exchange that workers publish their results to
/// ([`ResultRoute::Exchange`](crate::ResultRoute::Exchange)).
#[derive(Debug, Clone)]
pub struct ReplyRoute {
    /// The exchange, which must exist; empty for the default exchange, where the queue's name is the address.
    pub exchange: String,
    /// The queue, which is declared.
    pub queue: Queue,
    /// What binds it, such as `*.<run id>`.
    pub binding_key: String,
    /// What tasks carry as `reply_to`: the last part of the workers' routing key, such as the run's id.
    pub reply_to: String,
}

/// The results in a queue that the caller reads itself, in order. It survives reconnects.
#[derive(Debug)]
pub struct Replies {
    consumer: Consumer,
}

impl Replies {
    pub(crate) async fn open(broker: &Broker, route: ReplyRoute) -> Result<(String, Self), ClientError> {
        let binding = (!route.exchange.is_empty())
            .then(|| Binding::new(&route.exchange, route.queue.name(), &route.binding_key));
        let consumer = own_queue(broker, route.queue, binding, false).await?;
        Ok((route.reply_to, Self { consumer }))
    }

    /// The next result; `None` when the broker was closed.
    pub async fn next(&mut self) -> Option<Reply> {
        let delivery = self.consumer.next().await?;
        let (envelope, settler) = delivery.split();
        let facts = Facts::read(&envelope.properties.headers);
        let message = ResultMessage::decode(&envelope.properties, &envelope.body);
        Some(Reply {
            message,
            facts,
            user: envelope.properties.user_id.clone(),
            routing_key: envelope.routing_key.to_string(),
            redelivered: envelope.redelivered,
            body: envelope.body,
            settler,
        })
    }

    /// Stops the coming of results. Those that came stay valid.
    pub fn cancel(&self) {
        self.consumer.cancel();
    }
}

/// One result or state update, still unsettled: the broker gives it again until [`Reply::accept`].
#[must_use = "a reply that isn't accepted is delivered again"]
#[derive(Debug)]
pub struct Reply {
    /// What it says, or why it can't be read.
    pub message: Result<ResultMessage, Refusal>,
    /// Who ran the task and when.
    pub facts: Facts,
    /// The broker's user who published it, when the publisher says so; the broker checks it.
    pub user: Option<String>,
    /// The routing key that it came under, `<key prefix>.<reply_to>`.
    pub routing_key: String,
    /// Whether it may have been seen before.
    pub redelivered: bool,
    /// Its body as it came.
    pub body: Bytes,
    settler: Settler,
}

impl Reply {
    /// Says that the result is kept: the broker may forget it.
    ///
    /// # Errors
    /// When the connection that it came on is gone: it will come again.
    pub async fn accept(self) -> Result<(), SettleError> {
        self.settler.settle(Settle::Ack).await
    }
}

/// Declares a reply queue and consumes it.
pub(crate) async fn own_queue(
    broker: &Broker,
    queue: Queue,
    binding: Option<Binding>,
    no_ack: bool,
) -> Result<Consumer, ClientError> {
    let name = queue.name().to_owned();
    let mut topology = Topology::default().queue(queue);
    if let Some(binding) = binding {
        topology = topology.binding(binding);
    }
    broker.declare(&topology).await.map_err(|source| ClientError::Transport {
        doing: format!("the reply queue {name} could not be declared"),
        source,
    })?;
    let prefetch = if no_ack { 0 } else { REPLIES_PREFETCH };
    let tag = format!("replies-{name}");
    broker.consume(Consume { queue: name.clone(), prefetch, no_ack, exclusive: false, tag }).await.map_err(
        |source| ClientError::Transport {
            doing: format!("the reply queue {name} could not be consumed"),
            source,
        },
    )
}

/// Reads the client's own reply queue for as long as the client lives.
pub(crate) async fn read(mut consumer: Consumer, pending: Arc<Pending>) {
    while let Some(incoming) = StreamExt::next(&mut consumer).await {
        let delivery = match incoming {
            Incoming::Delivery(delivery) => delivery,
            // Whoever sends his task again then, sends it to a queue that is there.
            Incoming::Renewed => {
                pending.reply_lost();
                continue;
            }
            Incoming::Lost => continue,
        };
        let (envelope, _settled_by_no_ack) = delivery.split();
        match ResultMessage::decode(&envelope.properties, &envelope.body) {
            Ok(message) => {
                let facts = Facts::read(&envelope.properties.headers);
                let id = message.task_id.clone();
                if !pending.deliver(message, facts) {
                    tracing::debug!(task = id, "a result came that nobody waits for");
                }
            }
            Err(refusal) => {
                let id = refusal.id.as_deref();
                if !id.is_some_and(|id| pending.unreadable(id, &refusal.reason)) {
                    tracing::warn!(task = id, reason = %refusal.reason, "a malformed result was thrown away");
                }
            }
        }
    }
    pending.close();
}

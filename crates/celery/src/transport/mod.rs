//! The narrow seam between Celery's protocol and what moves its bytes: a publisher that waits for a confirm, and a
//! stream of deliveries that are settled exactly once.
//!
//! Two transports stand behind it: [`Broker::embedded`] (in this process, nothing durable) and [`Broker::connect`]
//! (RabbitMQ by AMQP 0-9-1). Nothing outside this module may know which one it has, and nothing here may know what a
//! body means.

mod amqp;
#[cfg(test)]
mod contract;
mod delivery;
mod embedded;
mod error;
mod properties;
mod topology;
mod url;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

pub(crate) use self::delivery::{Consumer, Delivery, Incoming, Settle, Settler};
pub use self::delivery::{Envelope, SettleError};
pub use self::error::{PublishError, TransportError};
pub(crate) use self::properties::UNREADABLE_HEADER;
pub use self::properties::{Headers, Properties, Value};
pub use self::topology::{Binding, Exchange, ExchangeKind, Queue, Topology};
pub use self::url::{BrokerUrl, UrlError};

/// A message going out.
#[derive(Debug, Clone)]
pub struct Publishing {
    /// The exchange; empty for the default one, where the routing key is a queue's name.
    pub exchange: Arc<str>,
    /// The routing key.
    pub routing_key: String,
    /// What travels beside the body.
    pub properties: Properties,
    /// The body.
    pub body: Bytes,
    /// Whether a message that no queue takes is an error.
    pub mandatory: bool,
}

/// What to consume, and how much at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consume {
    /// The queue.
    pub queue: String,
    /// How many deliveries may be unsettled; 0 for as many as the transport holds.
    pub prefetch: u16,
    /// Deliveries count as settled when they are handed out.
    pub no_ack: bool,
    /// Nobody else may consume.
    pub exclusive: bool,
    /// The consumer's name at the broker; made unique by the transport.
    pub tag: String,
}

/// How full a queue is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueDepth {
    /// Messages that wait.
    pub ready: u32,
    /// Who consumes.
    pub consumers: u32,
}

/// Whether there is a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// There is; the number counts connections.
    Up {
        /// 1 for the first connection; a delivery of an older generation can't be settled any more.
        generation: u64,
    },
    /// There is none; the supervisor tries to make one.
    Down {
        /// What was noticed.
        reason: String,
    },
}

/// How to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectOptions {
    /// A file with the certificates (PEM) that sign the broker's, beside the usual ones.
    pub ca_file: Option<PathBuf>,
    /// What the broker's own tools show as the connection's name.
    pub client_name: String,
    /// How often both sides say that they live; a silent peer is given up after twice as long.
    pub heartbeat: Duration,
    /// The limit for every single wait for the broker.
    pub timeout: Duration,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            ca_file: None,
            client_name: "regatta".to_owned(),
            heartbeat: Duration::from_secs(10),
            timeout: Duration::from_secs(30),
        }
    }
}

/// A broker. Cheap to clone; the connection goes with the last clone.
#[derive(Clone)]
pub struct Broker {
    kind: Kind,
}

/// A prefetch that several consumers share. See [`Broker::consume_sharing`].
#[derive(Debug, Clone, Default)]
pub(crate) struct Share(Arc<amqp::Lane>);

impl Share {
    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

#[derive(Clone)]
enum Kind {
    Embedded(Arc<embedded::Hub>),
    Amqp(Arc<amqp::Amqp>),
}

impl Broker {
    /// A broker inside this process. Clones share it; nothing outlives the process.
    pub fn embedded() -> Self {
        Self { kind: Kind::Embedded(Arc::new(embedded::Hub::new())) }
    }

    /// Connects. `memory://` gives an embedded broker of its own.
    ///
    /// # Errors
    /// When the first connection fails; later losses are mended by the supervisor.
    pub async fn connect(url: &BrokerUrl, options: ConnectOptions) -> Result<Self, TransportError> {
        if url.is_embedded() {
            return Ok(Self::embedded());
        }
        Ok(Self { kind: Kind::Amqp(amqp::Amqp::connect(url.clone(), options).await?) })
    }

    /// Declares exchanges, queues and bindings, and remembers them: they are declared anew after every reconnect, and a
    /// queue also when its consumer finds it gone.
    ///
    /// # Errors
    /// When the broker refuses, for lack of a right or since the entity exists with other properties.
    pub async fn declare(&self, topology: &Topology) -> Result<(), TransportError> {
        match &self.kind {
            Kind::Embedded(hub) => hub.declare(topology),
            Kind::Amqp(amqp) => amqp.declare(topology).await,
        }
    }

    /// Looks at a queue without making it.
    ///
    /// # Errors
    /// When it isn't there ([`TransportError::is_no_queue`]) or may not be looked at.
    pub async fn declare_passive(&self, queue: &str) -> Result<QueueDepth, TransportError> {
        match &self.kind {
            Kind::Embedded(hub) => hub.depth(queue),
            Kind::Amqp(amqp) => amqp.depth(queue).await,
        }
    }

    /// Deletes a queue with what is in it. A queue that isn't there is no error.
    ///
    /// # Errors
    /// When the broker refuses.
    pub async fn delete_queue(&self, queue: &str) -> Result<(), TransportError> {
        match &self.kind {
            Kind::Embedded(hub) => {
                hub.delete_queue(queue);
                Ok(())
            }
            Kind::Amqp(amqp) => amqp.delete_queue(queue).await,
        }
    }

    /// Publishes, and waits until the broker has taken the message over.
    ///
    /// # Errors
    /// Anything but a true acknowledgement. [`PublishError::may_have_arrived`] says whether it could be there anyway.
    pub async fn publish(&self, publishing: Publishing) -> Result<(), PublishError> {
        match &self.kind {
            Kind::Embedded(hub) => hub.publish(publishing),
            Kind::Amqp(amqp) => amqp.publish(publishing, tokio::time::sleep(amqp.timeout())).await,
        }
    }

    /// The same, and waits for the confirm until `enough` ends.
    pub(crate) async fn publish_until(
        &self,
        publishing: Publishing,
        enough: impl Future<Output = ()>,
    ) -> Result<(), PublishError> {
        match &self.kind {
            Kind::Embedded(hub) => hub.publish(publishing),
            Kind::Amqp(amqp) => amqp.publish(publishing, enough).await,
        }
    }

    /// Consumes a queue. The consumer survives reconnects, and tells of them.
    pub(crate) async fn consume(&self, spec: Consume) -> Result<Consumer, TransportError> {
        match &self.kind {
            Kind::Embedded(hub) => hub.consume(&spec, None),
            Kind::Amqp(amqp) => amqp.consume(spec, None).await,
        }
    }

    /// Consumes a queue beside others: what is unsettled of all consumers of the same `share`, which have the same
    /// prefetch, counts together. They must be cancelled together. RabbitMQ can't do it for quorum queues: there each
    /// consumer has the prefetch for itself.
    pub(crate) async fn consume_sharing(
        &self,
        share: &Share,
        spec: Consume,
    ) -> Result<Consumer, TransportError> {
        match &self.kind {
            Kind::Embedded(hub) => hub.consume(&spec, Some(share)),
            Kind::Amqp(amqp) => amqp.consume(spec, Some(Arc::clone(&share.0))).await,
        }
    }

    /// Whether there is a connection, now and later.
    pub fn link(&self) -> watch::Receiver<Link> {
        match &self.kind {
            Kind::Embedded(hub) => hub.link(),
            Kind::Amqp(amqp) => amqp.link(),
        }
    }

    /// Where it is; shown without its password.
    pub fn url(&self) -> &BrokerUrl {
        match &self.kind {
            Kind::Embedded(hub) => hub.url(),
            Kind::Amqp(amqp) => amqp.url(),
        }
    }

    /// Closes the connections, for all clones: consumers end, and with them workers and the waiting of handles. What is
    /// unsettled goes back to its queue.
    pub async fn close(&self) {
        match &self.kind {
            Kind::Embedded(hub) => hub.close(),
            Kind::Amqp(amqp) => amqp.close().await,
        }
    }
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Broker({})", self.url())
    }
}

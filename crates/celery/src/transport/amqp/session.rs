//! One life of the two connections, from their opening to the first error of either.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::{Stream, StreamExt};
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::protocol::AMQPError;
use lapin::tcp::OwnedTLSConfig;
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{Channel, Confirmation, Connection, ConnectionProperties, ErrorKind, Event};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::super::topology::{Declaration, ExchangeKind, Queue};
use super::super::{Binding, BrokerUrl, ConnectOptions, Publishing, QueueDepth, Topology, TransportError};
use super::convert::name;
use super::publisher::{Publishers, Unsent};
use super::socket;

/// The largest frame, in bytes; RabbitMQ's own proposal is 131,072. The client holds 32 frames in each direction of each
/// of the two connections: with that proposal, 16 MB in a worker that idles. Larger bodies travel in several frames.
const FRAME_MAX: u32 = 32_768;

/// Two connections and what runs on them.
pub(super) struct Session {
    pub(super) generation: u64,
    broker: String,
    timeout: Duration,
    publishing: Connection,
    consuming: Connection,
    publishers: Publishers,
    /// Why it is lost, once it is.
    lost: watch::Receiver<Option<String>>,
    /// Why the broker blocks publishers, while it does.
    blocked: Arc<Mutex<Option<String>>>,
    _watchers: [AbortOnDropHandle<()>; 2],
}

impl Session {
    pub(super) async fn open(
        url: &BrokerUrl,
        options: &ConnectOptions,
        generation: u64,
    ) -> Result<Arc<Self>, TransportError> {
        let publishing = connect(url, options, "publish").await?;
        let consuming = connect(url, options, "consume").await?;
        let (tell, lost) = watch::channel(None);
        let tell = Arc::new(tell);
        let blocked = Arc::new(Mutex::new(None));
        let watchers = [&publishing, &consuming].map(|connection| {
            let events = connection.events_listener();
            AbortOnDropHandle::new(tokio::spawn(listen(events, Arc::clone(&tell), Arc::clone(&blocked))))
        });
        let broker = url.to_string();
        let timeout = options.timeout;
        let publishers = Publishers::default();
        Ok(Arc::new(Self {
            generation,
            broker,
            timeout,
            publishing,
            consuming,
            publishers,
            lost,
            blocked,
            _watchers: watchers,
        }))
    }

    /// Publishes, and waits for the confirm.
    pub(super) async fn publish(&self, publishing: &Publishing) -> Result<Confirmation, Unsent> {
        self.publishers.publish(&self.publishing, publishing).await
    }

    /// A new channel on the consuming connection.
    pub(super) async fn channel(&self, what: &str) -> Result<Channel, TransportError> {
        within(self.timeout, what, self.consuming.create_channel()).await
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Waits for the loss, and says why.
    pub(super) async fn lost(&self) -> String {
        let mut lost = self.lost.clone();
        match lost.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => "the connection ended".to_owned(),
        }
    }

    /// Why it is lost, if it is.
    pub(super) fn lost_because(&self) -> Option<String> {
        self.lost.borrow().clone()
    }

    /// Why publishers are blocked, if they are.
    pub(super) fn blocked(&self) -> Option<String> {
        self.blocked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Declares, up to the first refusal. A channel of its own: a refusal closes it.
    pub(super) async fn declare(&self, topology: &Topology) -> Result<(), TransportError> {
        let channel = self.channel("a declaration").await?;
        for declaration in topology.declarations() {
            declare(self.timeout, &channel, &declaration).await?;
        }
        close(channel, self.timeout).await;
        Ok(())
    }

    /// Declares what an older session declared. What the broker refuses now (a right was taken away, somebody else made
    /// it in another form) is said and left out: whoever needs it meets the refusal, and nobody else loses the broker.
    pub(super) async fn declare_anew(&self, topology: &Topology) -> Result<(), TransportError> {
        let mut channel = self.channel("a declaration").await?;
        for declaration in topology.declarations() {
            match declare(self.timeout, &channel, &declaration).await {
                Ok(()) => {}
                Err(error) if error.is_refusal() => {
                    tracing::warn!(broker = self.broker, %error, "what was declared before is refused now");
                    channel = self.channel("a declaration").await?;
                }
                Err(error) => return Err(error),
            }
        }
        close(channel, self.timeout).await;
        Ok(())
    }

    pub(super) async fn depth(&self, queue: &str) -> Result<QueueDepth, TransportError> {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let what = format!("looking at queue {queue}");
        let queue = name(queue)?;
        let channel = self.channel("a look at a queue").await?;
        let looked = channel.queue_declare(queue, options, FieldTable::default());
        let seen = within(self.timeout, &what, looked).await?;
        close(channel, self.timeout).await;
        Ok(QueueDepth { ready: seen.message_count(), consumers: seen.consumer_count() })
    }

    pub(super) async fn delete_queue(&self, queue: &str) -> Result<(), TransportError> {
        let what = format!("deleting queue {queue}");
        let queue = name(queue)?;
        let channel = self.channel("a deletion").await?;
        let deleted = channel.queue_delete(queue, QueueDeleteOptions::default());
        let deleted = within(self.timeout, &what, deleted).await;
        match deleted {
            Ok(_) => close(channel, self.timeout).await,
            Err(error) if error.is_no_queue() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    pub(super) async fn close(&self) {
        for connection in [&self.publishing, &self.consuming] {
            // A connection that is lost already, or a broker that doesn't answer, is closed enough.
            let _closed =
                tokio::time::timeout(Duration::from_secs(2), connection.close(200, "done".into())).await;
        }
    }
}

async fn close(channel: Channel, timeout: Duration) {
    // Its work is done; should the broker not answer, the channel goes with the connection.
    let _closed = tokio::time::timeout(timeout, channel.close(200, "done".into())).await;
}

async fn connect(
    url: &BrokerUrl,
    options: &ConnectOptions,
    role: &str,
) -> Result<Connection, TransportError> {
    let tls = tls(options)?;
    let uri = AMQPUri {
        scheme: if url.is_tls() { AMQPScheme::AMQPS } else { AMQPScheme::AMQP },
        authority: AMQPAuthority {
            userinfo: AMQPUserInfo { username: url.user().to_owned(), password: url.password().to_owned() },
            host: url.host().to_owned(),
            port: url.port(),
        },
        vhost: url.vhost().to_owned(),
        query: AMQPQueryString {
            frame_max: Some(FRAME_MAX),
            heartbeat: Some(u16::try_from(options.heartbeat.as_secs()).unwrap_or(u16::MAX)),
            connection_timeout: Some(u64::try_from(options.timeout.as_millis()).unwrap_or(u64::MAX)),
            ..AMQPQueryString::default()
        },
    };
    let name = LongString::from(format!("{} ({role})", options.client_name));
    let properties = ConnectionProperties::default().with_connection_name(name);
    let connecting = socket::connect(uri, properties, tls, FRAME_MAX);
    match tokio::time::timeout(options.timeout, connecting).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err(refused(url, &error)),
        Err(_) => {
            Err(TransportError::Timeout { what: format!("connecting to {url}"), waited: options.timeout })
        }
    }
}

fn tls(options: &ConnectOptions) -> Result<OwnedTLSConfig, TransportError> {
    let Some(path) = &options.ca_file else { return Ok(OwnedTLSConfig::default()) };
    let read = std::fs::read_to_string(path);
    let chain = read.map_err(|error| TransportError::Other {
        what: format!("reading the certificates in {}", path.display()),
        reason: error.to_string(),
    })?;
    Ok(OwnedTLSConfig { identity: None, cert_chain: Some(chain) })
}

/// Why a connection could not be made. RabbitMQ closes the socket without a word when a login fails and the client
/// doesn't know its extension for that.
fn refused(url: &BrokerUrl, error: &lapin::Error) -> TransportError {
    let broker = url.to_string();
    if let ErrorKind::ProtocolError(words) = error.kind() {
        let reason = words.get_message().as_str().to_owned();
        return match words.get_id() {
            403 => TransportError::LoginRefused { broker, reason },
            530 => TransportError::AccessRefused { what: format!("opening {url}"), reason },
            _ => TransportError::Unreachable { broker, reason },
        };
    }
    unreachable_at(url, error)
}

fn unreachable_at(url: &BrokerUrl, error: &lapin::Error) -> TransportError {
    TransportError::Unreachable { broker: url.to_string(), reason: error.to_string() }
}

/// The broker's words about something that it refused.
pub(super) fn from_broker(what: String, words: &AMQPError) -> TransportError {
    let reason = words.get_message().as_str().to_owned();
    match words.get_id() {
        403 => TransportError::AccessRefused { what, reason },
        404 => TransportError::NotFound { what, reason },
        405 | 406 => TransportError::Mismatch { what, reason },
        540 => TransportError::Unsupported { what, reason },
        _ => TransportError::Other { what, reason },
    }
}

/// Waits for the broker, but not for ever.
pub(super) async fn within<T>(
    timeout: Duration,
    what: &str,
    answer: impl Future<Output = lapin::Result<T>>,
) -> Result<T, TransportError> {
    match tokio::time::timeout(timeout, answer).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(match error.kind() {
            ErrorKind::ProtocolError(words) => from_broker(what.to_owned(), words),
            _ => TransportError::Other { what: what.to_owned(), reason: error.to_string() },
        }),
        Err(_) => Err(TransportError::Timeout { what: what.to_owned(), waited: timeout }),
    }
}

/// Listens to what a connection says of itself.
async fn listen(
    events: impl Stream<Item = Event> + Send,
    lost: Arc<watch::Sender<Option<String>>>,
    blocked: Arc<Mutex<Option<String>>>,
) {
    let mut events = std::pin::pin!(events);
    let set = |reason: Option<String>| *blocked.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    while let Some(event) = events.next().await {
        match event {
            // A channel's own error (a queue that isn't there, a right that lacks) ends that channel alone.
            Event::Error(error) if error.is_amqp_soft_error() => {}
            Event::Error(error) => {
                lost.send_if_modified(|lost| {
                    let first = lost.is_none();
                    lost.get_or_insert_with(|| error.to_string());
                    first
                });
                return;
            }
            Event::ConnectionBlocked(reason) => {
                tracing::warn!(reason, "the broker blocks publishers");
                set(Some(reason));
            }
            Event::ConnectionUnblocked => set(None),
            _ => {}
        }
    }
    lost.send_if_modified(|lost| {
        let first = lost.is_none();
        lost.get_or_insert_with(|| "the connection ended".to_owned());
        first
    });
}

async fn declare(
    timeout: Duration,
    channel: &Channel,
    declaration: &Declaration<'_>,
) -> Result<(), TransportError> {
    let what = declaration.to_string();
    match declaration {
        Declaration::Exchange(exchange) => {
            let options =
                ExchangeDeclareOptions { durable: exchange.durable, ..ExchangeDeclareOptions::default() };
            let kind = match exchange.kind {
                ExchangeKind::Direct => lapin::ExchangeKind::Direct,
                ExchangeKind::Topic => lapin::ExchangeKind::Topic,
                ExchangeKind::Fanout => lapin::ExchangeKind::Fanout,
            };
            let named = name(&exchange.name)?;
            within(timeout, &what, channel.exchange_declare(named, kind, options, FieldTable::default()))
                .await
        }
        Declaration::Queue(queue) => {
            let options = QueueDeclareOptions {
                durable: queue.durable,
                exclusive: queue.exclusive,
                auto_delete: queue.auto_delete,
                ..QueueDeclareOptions::default()
            };
            let named = name(&queue.name)?;
            within(timeout, &what, channel.queue_declare(named, options, arguments(queue))).await.map(drop)
        }
        Declaration::Binding(Binding { exchange, queue, routing_key }) => {
            let (queue, exchange, key) = (name(queue)?, name(exchange)?, name(routing_key)?);
            let options = QueueBindOptions::default();
            within(timeout, &what, channel.queue_bind(queue, exchange, key, options, FieldTable::default()))
                .await
        }
    }
}

fn arguments(queue: &Queue) -> FieldTable {
    let mut arguments = FieldTable::default();
    let mut set = |name: &str, value: AMQPValue| {
        arguments.insert(name.into(), value);
    };
    let ms = |span: Duration| AMQPValue::LongLongInt(i64::try_from(span.as_millis()).unwrap_or(i64::MAX));
    let text = |text: &str| AMQPValue::LongString(LongString::from(text.as_bytes()));
    if queue.quorum {
        set("x-queue-type", text("quorum"));
    }
    if let Some(limit) = queue.delivery_limit {
        set("x-delivery-limit", AMQPValue::LongLongInt(limit.into()));
    }
    if let Some(most) = queue.max_priority {
        set("x-max-priority", AMQPValue::LongInt(most.into()));
    }
    if let Some(ttl) = queue.ttl {
        set("x-message-ttl", ms(ttl));
    }
    if let Some(expires) = queue.expires {
        set("x-expires", ms(expires));
    }
    if let Some((exchange, key)) = &queue.dead_letter {
        set("x-dead-letter-exchange", text(exchange));
        set("x-dead-letter-routing-key", text(key));
    }
    arguments
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session({}, generation {})", self.broker, self.generation)
    }
}

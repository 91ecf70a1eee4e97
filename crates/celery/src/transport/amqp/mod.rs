//! RabbitMQ. Our own supervisor rebuilds connections, topology and consumers after any error; the client's recovery
//! stays off, because it hides that a delivery was lost.
//!
//! There are two connections: a broker that is short of memory or disk blocks the publishing one as a whole, and the
//! other must still be able to consume and settle. Every wait for the broker has a limit.

mod acks;
mod convert;
mod lane;
mod publisher;
mod session;
mod sieve;
mod socket;
mod subscription;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use lapin::Confirmation;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub(super) use self::lane::Lane;
use self::publisher::Unsent;
use self::session::Session;
pub(super) use self::subscription::{Claim, Subscription};
use super::delivery::ConsumerKind;
use super::{
    BrokerUrl, ConnectOptions, Consume, Consumer, Link, PublishError, Publishing, QueueDepth, Topology,
    TransportError,
};

/// The first wait before a new try to connect; doubled up to [`RECONNECT_MAX`], each with full jitter.
const RECONNECT_MIN: Duration = Duration::from_millis(100);

/// The longest wait before a new try to connect.
const RECONNECT_MAX: Duration = Duration::from_secs(5);

/// A connection that was lost sooner may be lost again for the same reason: the waits go on growing.
const SETTLED: Duration = Duration::from_secs(10);

/// The waits between tries to connect.
struct Backoff {
    most: Duration,
}

impl Backoff {
    fn new() -> Self {
        Self { most: RECONNECT_MIN }
    }

    /// The longest that the next wait may be.
    fn next(&mut self) -> Duration {
        let next = self.most;
        self.most = (self.most * 2).min(RECONNECT_MAX);
        next
    }

    /// A connection was made, and lost after so long.
    fn lost_after(&mut self, lived: Duration) {
        if lived >= SETTLED {
            *self = Self::new();
        }
    }
}

/// A broker reached by AMQP.
pub(super) struct Amqp {
    url: BrokerUrl,
    options: ConnectOptions,
    topology: Mutex<Topology>,
    session: RwLock<Option<Arc<Session>>>,
    link: watch::Sender<Link>,
    closed: CancellationToken,
}

impl Amqp {
    pub(super) async fn connect(
        url: BrokerUrl,
        options: ConnectOptions,
    ) -> Result<Arc<Self>, TransportError> {
        let session = Session::open(&url, &options, 1).await?;
        let (link, _) = watch::channel(Link::Up { generation: 1 });
        let amqp = Arc::new(Self {
            url,
            options,
            topology: Mutex::default(),
            session: RwLock::new(Some(Arc::clone(&session))),
            link,
            closed: CancellationToken::new(),
        });
        tokio::spawn(supervise(Arc::downgrade(&amqp), session, amqp.closed.clone()));
        Ok(amqp)
    }

    pub(super) fn url(&self) -> &BrokerUrl {
        &self.url
    }

    pub(super) fn link(&self) -> watch::Receiver<Link> {
        self.link.subscribe()
    }

    /// The session of now, or the next one, if it comes in time.
    async fn session(&self, what: &str) -> Result<Arc<Session>, TransportError> {
        if let Some(session) = self.session_now() {
            return Ok(session);
        }
        let mut link = self.link.subscribe();
        let up = async {
            loop {
                if let Some(session) = self.session_now() {
                    return Some(session);
                }
                link.changed().await.ok()?;
            }
        };
        let down = || match &*self.link.borrow() {
            Link::Down { reason } => reason.clone(),
            Link::Up { .. } => "the connection was closed".to_owned(),
        };
        tokio::select! {
            biased;
            () = self.closed.cancelled() => Err(self.unreachable("the broker was closed by this program")),
            session = tokio::time::timeout(self.options.timeout, up) => match session {
                Ok(Some(session)) => Ok(session),
                Ok(None) | Err(_) => Err(self.unreachable(&format!("{} ({what} waited for it)", down()))),
            },
        }
    }

    /// The session that follows one that is lost.
    async fn session_after(&self, lost: &Session, what: &str) -> Result<Arc<Session>, TransportError> {
        let mut link = self.link.subscribe();
        let later = |link: &Link| matches!(link, Link::Up { generation } if *generation > lost.generation);
        // Should it not come in time, the wait for any session says why.
        drop(tokio::time::timeout(self.options.timeout, link.wait_for(later)).await);
        self.session(what).await
    }

    fn session_now(&self) -> Option<Arc<Session>> {
        self.session.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn unreachable(&self, reason: &str) -> TransportError {
        TransportError::Unreachable { broker: self.url.to_string(), reason: reason.to_owned() }
    }

    pub(super) async fn declare(&self, topology: &Topology) -> Result<(), TransportError> {
        let session = self.session("a declaration").await?;
        session.declare(topology).await?;
        self.topology.lock().unwrap_or_else(PoisonError::into_inner).merge(topology);
        Ok(())
    }

    /// What this program declared to make a queue, if it did.
    fn declared(&self, queue: &str) -> Option<Topology> {
        self.topology.lock().unwrap_or_else(PoisonError::into_inner).of(queue)
    }

    pub(super) async fn depth(&self, queue: &str) -> Result<QueueDepth, TransportError> {
        self.session("a look at a queue").await?.depth(queue).await
    }

    pub(super) async fn delete_queue(&self, queue: &str) -> Result<(), TransportError> {
        self.topology.lock().unwrap_or_else(PoisonError::into_inner).forget(queue);
        self.session("a deletion").await?.delete_queue(queue).await
    }

    /// The limit for every single wait for the broker.
    pub(super) fn timeout(&self) -> Duration {
        self.options.timeout
    }

    pub(super) async fn publish(
        &self,
        publishing: Publishing,
        enough: impl Future<Output = ()>,
    ) -> Result<(), PublishError> {
        let session = self.session("a publishing").await?;
        let began = Instant::now();
        let lost = |reason| PublishError::Lost { routing_key: publishing.routing_key.clone(), reason };
        let sent = tokio::select! {
            biased;
            sent = session.publish(&publishing) => Some(sent),
            reason = session.lost() => return Err(lost(reason)),
            () = enough => None,
        };
        let confirmation = match sent {
            Some(Ok(confirmation)) => confirmation,
            Some(Err(Unsent::Refused(refused))) => return Err(refused.into()),
            Some(Err(Unsent::Lost(error))) => {
                return Err(lost(session.lost_because().unwrap_or_else(|| error.to_string())));
            }
            None => {
                let hint = session.blocked().map(|reason| format!(": it blocks publishers ({reason})"));
                let (routing_key, hint) = (publishing.routing_key, hint.unwrap_or_default());
                let waited = Duration::from_secs(began.elapsed().as_secs());
                return Err(PublishError::Unconfirmed { routing_key, waited, hint });
            }
        };
        let Publishing { exchange, routing_key, .. } = publishing;
        match confirmation {
            Confirmation::Ack(None) => Ok(()),
            Confirmation::Ack(Some(_)) | Confirmation::Nack(Some(_)) => {
                Err(PublishError::Unroutable { exchange: exchange.to_string(), routing_key })
            }
            Confirmation::Nack(None) | Confirmation::NotRequested => {
                Err(PublishError::Refused { routing_key })
            }
        }
    }

    pub(super) async fn consume(
        self: &Arc<Self>,
        spec: Consume,
        lane: Option<Arc<Lane>>,
    ) -> Result<Consumer, TransportError> {
        let subscription = Subscription::open(self, spec, lane).await?;
        Ok(Consumer { kind: ConsumerKind::Amqp(subscription) })
    }

    pub(super) async fn close(&self) {
        self.closed.cancel();
        let session = self.session.write().unwrap_or_else(PoisonError::into_inner).take();
        self.link.send_replace(Link::Down { reason: "closed by this program".to_owned() });
        if let Some(session) = session {
            session.close().await;
        }
    }
}

impl Drop for Amqp {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}

/// Keeps a session up for as long as somebody holds the broker.
async fn supervise(amqp: Weak<Amqp>, mut session: Arc<Session>, closed: CancellationToken) {
    let mut generation = 1;
    let mut backoff = Backoff::new();
    loop {
        let since = Instant::now();
        let reason = tokio::select! {
            () = closed.cancelled() => return session.close().await,
            reason = session.lost() => reason,
        };
        drop(session);
        backoff.lost_after(since.elapsed());
        let Some(owner) = amqp.upgrade() else { return };
        tracing::warn!(broker = %owner.url, reason, "the connection to the broker was lost; connecting anew");
        let old = owner.session.write().unwrap_or_else(PoisonError::into_inner).take();
        owner.link.send_replace(Link::Down { reason });
        if let Some(old) = old {
            old.close().await;
        }
        drop(owner);
        generation += 1;
        let Some(next) = reconnect(&amqp, generation, &mut backoff, &closed).await else { return };
        session = next;
    }
}

/// Tries until it works. None when nobody wants it any more.
async fn reconnect(
    amqp: &Weak<Amqp>,
    generation: u64,
    backoff: &mut Backoff,
    closed: &CancellationToken,
) -> Option<Arc<Session>> {
    loop {
        let pause = backoff.next().mul_f64(fastrand::f64());
        tokio::select! {
            () = closed.cancelled() => return None,
            () = tokio::time::sleep(pause) => {}
        }
        let owner = amqp.upgrade()?;
        let opened = async {
            let session = Session::open(&owner.url, &owner.options, generation).await?;
            let topology = owner.topology.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Err(error) = session.declare_anew(&topology).await {
                session.close().await;
                return Err(error);
            }
            Ok(session)
        };
        match opened.await {
            Ok(session) => {
                owner.session.write().unwrap_or_else(PoisonError::into_inner).replace(Arc::clone(&session));
                owner.link.send_replace(Link::Up { generation });
                tracing::info!(broker = %owner.url, generation, "connected to the broker again");
                return Some(session);
            }
            Err(error) => {
                tracing::debug!(%error, "no connection yet");
                owner.link.send_replace(Link::Down { reason: error.to_string() });
            }
        }
    }
}

//! A consumer that survives: it subscribes, yields what comes, and subscribes again on the next session. It tells of both,
//! since a channel can go while its connection stays, and whoever holds deliveries must know which he lost.

use std::fmt;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use lapin::Acker;
use lapin::Channel;
use lapin::message::Delivery as Received;
use lapin::options::{
    BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions, BasicRejectOptions,
};
use lapin::types::FieldTable;
use tokio_util::sync::CancellationToken;

use super::super::delivery::SettlerKind;
use super::super::{
    Consume, Delivery, Envelope, Incoming, Link, Settle, SettleError, Settler, TransportError,
};
use super::acks::{Acks, Lots};
use super::convert::{from_properties, name};
use super::session::{Session, within};
use super::{Amqp, Lane};

/// The wait before a new try to subscribe on a session that is up (its queue was deleted, say).
const RESUBSCRIBE: Duration = Duration::from_millis(500);

/// The longest that one try to subscribe anew may take. A quorum queue that recovers from its broker's death has no
/// leader yet; a channel that asks it to deliver then hangs in the broker (seen with 3.10.8), and a new channel a
/// little later doesn't.
const RESUBSCRIBE_MAX: Duration = Duration::from_secs(3);

/// A consumer of a RabbitMQ queue.
pub(in super::super) struct Subscription {
    incoming: BoxStream<'static, Incoming>,
    cancelled: CancellationToken,
}

impl Subscription {
    /// With a lane, the prefetch is that of all its consumers together. All of them must end together: what one of them
    /// leaves unread counts until the lane's channel is closed.
    pub(super) async fn open(
        amqp: &Arc<Amqp>,
        spec: Consume,
        lane: Option<Arc<Lane>>,
    ) -> Result<Self, TransportError> {
        let session = amqp.session("a consumer").await?;
        let first = match Stream::open(&session, &spec, lane.as_deref()).await {
            // It took the connection along.
            Err(TransportError::Unsupported { reason, .. }) if lane.is_some() => {
                tracing::info!(
                    queue = spec.queue,
                    reason,
                    "each queue is consumed with a prefetch of its own"
                );
                let session = amqp.session_after(&session, "a consumer").await?;
                Stream::open(&session, &spec, lane.as_deref()).await?
            }
            opened => opened?,
        };
        // The broker's close is a cancellation of all its consumers.
        let cancelled = amqp.closed.child_token();
        let source = Source {
            amqp: Arc::downgrade(amqp),
            queue: spec.queue.as_str().into(),
            spec,
            lane,
            current: Some(first),
            cancelled: cancelled.clone(),
            ending: false,
        };
        // Polled by whoever reads it, without a task between: thousands of deliveries a second would wake it each.
        let incoming = stream::unfold(source, |mut source| async move {
            let incoming = source.next().await?;
            Some((incoming, source))
        });
        Ok(Self { incoming: incoming.fuse().boxed(), cancelled })
    }

    pub(in super::super) fn cancel(&self) {
        self.cancelled.cancel();
    }

    pub(in super::super) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Incoming>> {
        self.incoming.poll_next_unpin(context)
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Subscription")
    }
}

/// A subscription on one session.
struct Stream {
    generation: u64,
    timeout: Duration,
    channel: Channel,
    consumer: lapin::Consumer,
    acks: Acks,
}

impl Stream {
    async fn open(session: &Session, spec: &Consume, lane: Option<&Lane>) -> Result<Self, TransportError> {
        let what = format!("consuming queue {}", spec.queue);
        let timeout = session.timeout();
        let queue = name(&spec.queue)?;
        let tag = name(&format!("{}-{:08x}", spec.tag, fastrand::u32(..)))?;
        let lane = lane.filter(|lane| !lane.is_apart());
        let (channel, acks) = match lane {
            Some(lane) => {
                // A queue that isn't there must not cost the others their channel.
                session.depth(&spec.queue).await?;
                lane.channel(session, spec.prefetch, &what).await?
            }
            None => {
                let channel = session.channel(&what).await?;
                if spec.prefetch > 0 {
                    let qos = channel.basic_qos(spec.prefetch, BasicQosOptions::default());
                    within(timeout, &what, qos).await?;
                }
                (channel.clone(), Acks::of(channel, timeout, Lots::UpTo))
            }
        };
        let options = BasicConsumeOptions {
            no_ack: spec.no_ack,
            exclusive: spec.exclusive,
            ..BasicConsumeOptions::default()
        };
        let consuming = channel.basic_consume(queue, tag, options, FieldTable::default());
        let consumer = within(timeout, &what, consuming).await;
        if let (Some(lane), Err(error)) = (lane, &consumer)
            && (error.is_refusal() || matches!(error, TransportError::Unsupported { .. }))
        {
            lane.part();
        }
        let consumer = consumer?;
        Ok(Self { generation: session.generation, timeout, channel, consumer, acks })
    }

    fn delivery(&self, received: Received, queue: &Arc<str>, no_ack: bool) -> Delivery {
        let Received { delivery_tag, exchange, routing_key, redelivered, properties, data, acker } = received;
        let envelope = Envelope {
            exchange: exchange.as_str().to_owned(),
            routing_key: routing_key.as_str().to_owned(),
            queue: Arc::clone(queue),
            redelivered,
            properties: from_properties(&properties),
            body: Bytes::from(data),
        };
        let kind = if no_ack {
            SettlerKind::NoAck
        } else {
            self.acks.delivered(delivery_tag);
            let (timeout, generation) = (self.timeout, self.generation);
            let claim = Held { tag: delivery_tag, acker, acks: self.acks.clone() };
            SettlerKind::Amqp(Claim { held: Some(claim), timeout, generation })
        };
        Delivery { envelope, settler: Settler { kind } }
    }

    async fn cancel(&self) {
        // Unanswered, the consumer goes with its channel.
        let cancelled = self.channel.basic_cancel(self.consumer.tag(), BasicCancelOptions::default());
        let _answered = tokio::time::timeout(self.timeout, cancelled).await;
    }
}

/// What a subscription reads from.
struct Source {
    amqp: Weak<Amqp>,
    spec: Consume,
    lane: Option<Arc<Lane>>,
    queue: Arc<str>,
    current: Option<Stream>,
    cancelled: CancellationToken,
    /// The broker sends no more; what it sent before is still read, so that it can be given back.
    ending: bool,
}

impl Source {
    /// What comes next, on whatever session; none after the end.
    async fn next(&mut self) -> Option<Incoming> {
        loop {
            let Some(current) = &mut self.current else {
                if self.ending {
                    return None;
                }
                tokio::select! {
                    () = self.cancelled.cancelled() => return None,
                    next = self.next_stream() => self.current = Some(next?),
                }
                return Some(Incoming::Renewed);
            };
            let received = tokio::select! {
                biased;
                () = self.cancelled.cancelled(), if !self.ending => {
                    // What the channel still holds goes back with it.
                    if self.amqp.upgrade().is_none_or(|amqp| amqp.closed.is_cancelled()) {
                        return None;
                    }
                    self.ending = true;
                    current.cancel().await;
                    continue;
                }
                received = current.consumer.next() => received,
            };
            match received {
                // The broker gives it to somebody else already; only what counts as settled is still ours.
                Some(Ok(_)) if !self.spec.no_ack && !current.channel.status().connected() => continue,
                Some(Ok(received)) => {
                    let delivery = current.delivery(received, &self.queue, self.spec.no_ack);
                    return Some(Incoming::Delivery(delivery));
                }
                Some(Err(error)) => {
                    tracing::debug!(queue = self.spec.queue, %error, "a consumer was interrupted");
                }
                None => tracing::debug!(queue = self.spec.queue, "a consumer ended"),
            }
            self.current = None;
            if !self.ending {
                return Some(Incoming::Lost);
            }
        }
    }

    /// Consumes on a session, and makes the queue again when it is gone and was declared by this program. It goes
    /// when it is deleted, when it lived by its last consumer, or when it was held exclusively by a connection whose end
    /// the broker noticed later than we: the supervisor's declaration was refused then (405), since the queue was
    /// still there.
    async fn open_anew(&self, session: &Session) -> Result<Stream, TransportError> {
        match Stream::open(session, &self.spec, self.lane.as_deref()).await {
            Err(error) if error.is_no_queue() => {
                let declared = self.amqp.upgrade().and_then(|amqp| amqp.declared(&self.spec.queue));
                let Some(topology) = declared else { return Err(error) };
                session.declare(&topology).await?;
                Stream::open(session, &self.spec, self.lane.as_deref()).await
            }
            opened => opened,
        }
    }

    /// The stream on the next session, or on this one when only the channel was lost.
    async fn next_stream(&self) -> Option<Stream> {
        let mut warned = false;
        loop {
            let mut link = self.amqp.upgrade()?.link();
            let up = link.wait_for(|link| matches!(link, Link::Up { .. })).await;
            up.ok()?;
            let session = self.amqp.upgrade()?.session_now();
            if let Some(session) = session {
                let opened = tokio::time::timeout(RESUBSCRIBE_MAX, self.open_anew(&session)).await;
                if let (Err(_), Some(lane)) = (&opened, &self.lane) {
                    lane.close().await;
                }
                let waited = RESUBSCRIBE_MAX;
                let late = |_| Err(TransportError::Timeout { what: "subscribing anew".to_owned(), waited });
                match opened.unwrap_or_else(late) {
                    Ok(stream) => return Some(stream),
                    Err(error) if !warned => {
                        warned = true;
                        tracing::warn!(queue = self.spec.queue, %error, "a consumer can't be renewed yet");
                    }
                    Err(error) => {
                        tracing::debug!(queue = self.spec.queue, %error, "a consumer can't be renewed yet");
                    }
                }
            }
            tokio::time::sleep(RESUBSCRIBE).await;
        }
    }
}

/// The claim on one delivery. It keeps the channel that the delivery came on.
pub(in super::super) struct Claim {
    held: Option<Held>,
    timeout: Duration,
    generation: u64,
}

struct Held {
    tag: u64,
    acker: Acker,
    acks: Acks,
}

impl Held {
    /// Gives it back or away. The client says `false` when the channel or connection is gone.
    async fn refuse(&self, requeue: bool) -> lapin::Result<bool> {
        let done = if requeue {
            self.acker.nack(BasicNackOptions { multiple: false, requeue: true }).await
        } else {
            self.acker.reject(BasicRejectOptions { requeue: false }).await
        };
        // Only now: an acknowledgement of several that overtook it would have taken it along.
        self.acks.settled(self.tag);
        done
    }
}

impl Claim {
    /// Settles. Only a true answer counts.
    pub(in super::super) async fn settle(mut self, how: Settle) -> Result<(), SettleError> {
        let Some(held) = self.held.take() else { return Ok(()) };
        let requeue = match how {
            Settle::Ack => {
                let acked = held.acks.ack(held.tag).await;
                return acked.map_err(|reason| SettleError::Lost { reason });
            }
            Settle::Requeue => true,
            Settle::DeadLetter => false,
        };
        let reason = match tokio::time::timeout(self.timeout, held.refuse(requeue)).await {
            Ok(Ok(true)) => return Ok(()),
            Ok(Ok(false)) => format!("connection {} is gone", self.generation),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {:?}", self.timeout),
        };
        Err(SettleError::Lost { reason })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let (Some(held), Ok(runtime)) = (self.held.take(), tokio::runtime::Handle::try_current()) else {
            return;
        };
        let timeout = self.timeout;
        runtime.spawn(async move {
            // On a connection that is gone it went back by itself.
            let _settled = tokio::time::timeout(timeout, held.refuse(true)).await;
        });
    }
}

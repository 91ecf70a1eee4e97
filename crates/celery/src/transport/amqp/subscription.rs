//! A consumer that survives: one task subscribes, forwards, and subscribes again on the next session.

use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use lapin::Acker;
use lapin::Channel;
use lapin::message::Delivery as Received;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
    BasicRejectOptions,
};
use lapin::types::FieldTable;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::super::delivery::SettlerKind;
use super::super::{Consume, Delivery, Envelope, Link, Settle, SettleError, Settler, TransportError};
use super::Amqp;
use super::convert::{from_properties, short};
use super::session::{Session, within};

/// How many deliveries wait for a reader when the prefetch doesn't say.
const UNLIMITED: usize = 1_024;

/// The wait before a new try to subscribe on a session that is up (its queue was deleted, say).
const RESUBSCRIBE: Duration = Duration::from_millis(500);

/// The longest that one try to subscribe anew may take. A quorum queue that recovers from its broker's death has no
/// leader yet; a channel that asks it to deliver then hangs in the broker (seen with 3.10.8), and a new channel a
/// little later doesn't.
const RESUBSCRIBE_MAX: Duration = Duration::from_secs(3);

/// A consumer of a RabbitMQ queue.
#[derive(Debug)]
pub(in super::super) struct Subscription {
    deliveries: mpsc::Receiver<Delivery>,
    cancelled: CancellationToken,
}

impl Subscription {
    pub(super) async fn open(amqp: &Arc<Amqp>, spec: Consume) -> Result<Self, TransportError> {
        let session = amqp.session("a consumer").await?;
        let first = Stream::open(&session, &spec).await?;
        let room = if spec.prefetch == 0 { UNLIMITED } else { usize::from(spec.prefetch) };
        let (sender, deliveries) = mpsc::channel(room);
        let cancelled = CancellationToken::new();
        let task = Forward { amqp: Arc::downgrade(amqp), spec, sender, cancelled: cancelled.clone() };
        tokio::spawn(task.run(first));
        Ok(Self { deliveries, cancelled })
    }

    pub(in super::super) fn cancel(&self) {
        self.cancelled.cancel();
    }

    pub(in super::super) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Delivery>> {
        self.deliveries.poll_recv(context)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.cancelled.cancel();
    }
}

/// A subscription on one session.
struct Stream {
    generation: u64,
    timeout: Duration,
    channel: Channel,
    consumer: lapin::Consumer,
}

impl Stream {
    async fn open(session: &Session, spec: &Consume) -> Result<Self, TransportError> {
        let what = format!("consuming queue {}", spec.queue);
        let timeout = session.timeout();
        let channel = session.channel(&what).await?;
        if spec.prefetch > 0 {
            within(timeout, &what, channel.basic_qos(spec.prefetch, BasicQosOptions::default())).await?;
        }
        let options = BasicConsumeOptions {
            no_ack: spec.no_ack,
            exclusive: spec.exclusive,
            ..BasicConsumeOptions::default()
        };
        let tag = format!("{}-{:08x}", spec.tag, fastrand::u32(..));
        let consuming =
            channel.basic_consume(short(&spec.queue), short(&tag), options, FieldTable::default());
        let consumer = within(timeout, &what, consuming).await?;
        Ok(Self { generation: session.generation, timeout, channel, consumer })
    }

    async fn cancel(&self) {
        // Unanswered, the consumer goes with its channel.
        let cancelled = self.channel.basic_cancel(self.consumer.tag(), BasicCancelOptions::default());
        let _answered = tokio::time::timeout(self.timeout, cancelled).await;
    }
}

/// The task behind a subscription.
struct Forward {
    amqp: Weak<Amqp>,
    spec: Consume,
    sender: mpsc::Sender<Delivery>,
    cancelled: CancellationToken,
}

impl Forward {
    async fn run(self, first: Stream) {
        let mut stream = Some(first);
        loop {
            if let Some(mut current) = stream.take()
                && self.forward(&mut current).await
            {
                current.cancel().await;
                return;
            }
            tokio::select! {
                () = self.cancelled.cancelled() => return,
                next = self.next_stream() => match next {
                    Some(next) => stream = Some(next),
                    None => return,
                },
            }
        }
    }

    /// Forwards until the stream ends (false) or nobody wants more (true).
    async fn forward(&self, stream: &mut Stream) -> bool {
        let channel = Arc::new(stream.channel.clone());
        let queue: Arc<str> = self.spec.queue.as_str().into();
        loop {
            let received = tokio::select! {
                biased;
                () = self.cancelled.cancelled() => return true,
                received = stream.consumer.next() => received,
            };
            let delivery = match received {
                Some(Ok(received)) => self.delivery(received, &queue, &channel, stream),
                Some(Err(error)) => {
                    tracing::debug!(queue = self.spec.queue, %error, "a consumer was interrupted");
                    return false;
                }
                None => {
                    tracing::debug!(queue = self.spec.queue, "a consumer ended");
                    return false;
                }
            };
            tokio::select! {
                biased;
                () = self.cancelled.cancelled() => return true,
                sent = self.sender.send(delivery) => if sent.is_err() {
                    return true;
                },
            }
        }
    }

    fn delivery(
        &self,
        received: Received,
        queue: &Arc<str>,
        channel: &Arc<Channel>,
        stream: &Stream,
    ) -> Delivery {
        let Received { exchange, routing_key, redelivered, properties, data, acker, .. } = received;
        let envelope = Envelope {
            exchange: exchange.as_str().to_owned(),
            routing_key: routing_key.as_str().to_owned(),
            queue: Arc::clone(queue),
            redelivered,
            properties: from_properties(&properties),
            body: Bytes::from(data),
        };
        let kind = if self.spec.no_ack {
            SettlerKind::NoAck
        } else {
            let (timeout, generation) = (stream.timeout, stream.generation);
            SettlerKind::Amqp(Claim { acker: Some(acker), channel: Arc::clone(channel), timeout, generation })
        };
        Delivery { envelope, settler: Settler { kind } }
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
                let opened = tokio::time::timeout(RESUBSCRIBE_MAX, Stream::open(&session, &self.spec)).await;
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
    acker: Option<Acker>,
    channel: Arc<Channel>,
    timeout: Duration,
    generation: u64,
}

impl Claim {
    /// Settles. Only a true answer counts: the client says `false` when the channel or connection is gone.
    pub(in super::super) async fn settle(mut self, how: Settle) -> Result<(), SettleError> {
        let Some(acker) = self.acker.take() else { return Ok(()) };
        let settled = async {
            match how {
                Settle::Ack => acker.ack(BasicAckOptions::default()).await,
                Settle::Requeue => acker.nack(BasicNackOptions { multiple: false, requeue: true }).await,
                Settle::DeadLetter => acker.reject(BasicRejectOptions { requeue: false }).await,
            }
        };
        let reason = match tokio::time::timeout(self.timeout, settled).await {
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
        let (Some(acker), Ok(runtime)) = (self.acker.take(), tokio::runtime::Handle::try_current()) else {
            return;
        };
        let channel = Arc::clone(&self.channel);
        let timeout = self.timeout;
        runtime.spawn(async move {
            let back = acker.nack(BasicNackOptions { multiple: false, requeue: true });
            // On a connection that is gone it went back by itself.
            let _settled = tokio::time::timeout(timeout, back).await;
            drop(channel);
        });
    }
}

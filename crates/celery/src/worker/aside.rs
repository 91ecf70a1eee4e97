//! The queues beside a task queue: `<queue>.retry.<ms>`, where a task waits without being held, and `<queue>.dead`,
//! where messages lie that could not be run.
//!
//! A delay queue has a TTL, and dead-letters what it expires through the default exchange to the task queue. So the
//! wait survives the worker's death, and the task comes back to whichever worker is there. Both kinds are made when
//! first needed. A worker without the right to make them needs them made before: `configure` on
//! `<queue>\.(retry\..*|dead)`, `read` on `<queue>\.retry\..*` and `write` on `amq.default` are what RabbitMQ asks for.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::clock::iso;
use crate::error::ErrorKind;
use crate::retry::{delay_step, exact_step};
use crate::transport::{
    Broker, Envelope, Properties, PublishError, Publishing, Queue, Topology, TransportError, Value,
};
use crate::wire::TaskMessage;
use crate::worker::execution::Execution;
use crate::worker::hands::dead_letter_headers;
use crate::worker::outbox::Outbox;

/// How much longer than its TTL an unused delay queue lives.
const EXPIRY_MARGIN: Duration = Duration::from_secs(600);

/// How long a queue that was made ready is trusted to be there. Well below [`EXPIRY_MARGIN`]: RabbitMQ deletes an
/// unused queue with all that is in it, publishing to it isn't use, and declaring it is.
const TRUSTED_FOR: Duration = Duration::from_secs(240);

/// Headers that the broker itself added on the way. To publish them again would make RabbitMQ see a dead-letter cycle
/// and drop the message (rabbitmq-server 9867, 10111).
const BROKER_HEADERS: [&str; 9] = [
    "x-death",
    "x-first-death-exchange",
    "x-first-death-queue",
    "x-first-death-reason",
    "x-last-death-exchange",
    "x-last-death-queue",
    "x-last-death-reason",
    "x-delivery-count",
    "x-acquired-count",
];

/// The header that says how often a task was put aside since it came too early. By it, a delivery that comes again is told
/// from the same task out of a delay queue.
const WAITS_HEADER: &str = "eta-waits";

/// Knows which of these queues are there.
#[derive(Debug, Default)]
pub(crate) struct Aside {
    ready: Mutex<HashMap<String, Instant>>,
}

impl Aside {
    /// Publishes a task as its own retry, as Celery does it: the same id, one retry more, the earliest time, and
    /// itself as the parent. A delay that the handler asked for is kept, as an ETA is; a back-off may be longer.
    pub(crate) async fn retry(
        &self,
        outbox: &Outbox,
        execution: &Execution,
        asked: ErrorKind,
        delay: Duration,
        now: SystemTime,
    ) -> Result<(), PublishError> {
        let step = match asked {
            ErrorKind::Retry(Some(_)) => exact_step(delay),
            _ => delay_step(delay),
        };
        let eta = iso(now + delay);
        let (mut properties, body) = again(&execution.envelope)?;
        properties.headers.insert("retries", Value::from(i64::from(execution.retries) + 1));
        properties.headers.insert("eta", Value::from(eta.as_str()));
        properties.headers.insert("parent_id", Value::from(&*execution.id));
        self.publish(outbox, delay_queue(&execution.queue, step), properties, body).await
    }

    /// Publishes a task that came too early, to come back after `delay`. It counts how often that was.
    pub(crate) async fn postpone(
        &self,
        outbox: &Outbox,
        envelope: &Envelope,
        delay: Duration,
    ) -> Result<(), PublishError> {
        let (mut properties, body) = again(envelope)?;
        properties.headers.insert(WAITS_HEADER, Value::from(i64::from(waits(envelope)) + 1));
        self.publish(outbox, delay_queue(&envelope.queue, exact_step(delay)), properties, body).await
    }

    /// Publishes a message that can't be run to where somebody can look at it.
    pub(crate) async fn dead_letter(
        &self,
        outbox: &Outbox,
        envelope: &Envelope,
        reason: &str,
    ) -> Result<(), PublishError> {
        let queue = &envelope.queue;
        let mut properties = envelope.properties.clone();
        let user = properties.user_id.clone();
        strip(&mut properties);
        for (name, value) in dead_letter_headers(queue, reason, user.as_deref(), SystemTime::now()) {
            properties.headers.insert(name, value);
        }
        self.publish(outbox, Queue::celery(&dead_queue_name(queue)), properties, envelope.body.clone()).await
    }

    async fn publish(
        &self,
        outbox: &Outbox,
        queue: Queue,
        properties: Properties,
        body: bytes::Bytes,
    ) -> Result<(), PublishError> {
        let routing_key = queue.name().to_owned();
        if !self.is_ready(&routing_key) {
            outbox.ready(&queue).await?;
            self.lock().insert(routing_key.clone(), Instant::now());
        }
        let publishing = || Publishing {
            exchange: "".into(),
            routing_key: routing_key.clone(),
            properties: properties.clone(),
            body: body.clone(),
            mandatory: true,
        };
        let mut published = outbox.publish(publishing).await;
        if matches!(published, Err(PublishError::Unroutable { .. })) {
            // Somebody deleted it.
            outbox.ready(&queue).await?;
            published = outbox.publish(publishing).await;
        }
        if published.is_err() {
            self.lock().remove(&routing_key);
        }
        published
    }

    fn is_ready(&self, queue: &str) -> bool {
        self.lock().get(queue).is_some_and(|since| since.elapsed() < TRUSTED_FOR)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Instant>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How often a task was put aside before.
pub(crate) fn waits(envelope: &Envelope) -> u32 {
    let waits = envelope.properties.headers.get(WAITS_HEADER).and_then(Value::as_i64);
    waits.and_then(|waits| u32::try_from(waits).ok()).unwrap_or(0)
}

/// Where messages of `queue` lie that could not be run.
pub(crate) fn dead_queue_name(queue: &str) -> String {
    format!("{queue}.dead")
}

/// Where tasks of `queue` wait for `step` milliseconds.
fn delay_queue(queue: &str, step: u64) -> Queue {
    let ttl = Duration::from_millis(step);
    Queue::celery(&format!("{queue}.retry.{step}"))
        .ttl(ttl)
        .expires(ttl + EXPIRY_MARGIN)
        .dead_letter("", queue)
}

/// A delivery as a publishing: the same bytes, without what was for the way here.
fn again(envelope: &Envelope) -> Result<(Properties, bytes::Bytes), PublishError> {
    let mut properties = envelope.properties.clone();
    let mut body = envelope.body.clone();
    if properties.headers.get("task").is_none() {
        // Protocol 1 has no headers to change; it goes on as protocol 2.
        if let Ok(message) = TaskMessage::decode(&envelope.properties, &envelope.body) {
            (properties, body) = message.encode();
        }
    }
    strip(&mut properties);
    Ok((properties, body))
}

/// Takes off what must not be published again: what the broker added; the sender's user, since the broker refuses a name
/// that isn't its connection's (RabbitMQ, "Validated User-ID"); and the expiry as a property, which would end the wait
/// early, or a dead letter's life. RabbitMQ's own dead-lettering takes it off too; the header `expires` stays and counts.
/// And the queues that were sent a copy (`CC`, RabbitMQ's "Sender-selected Distribution"): they have it.
fn strip(properties: &mut Properties) {
    properties.user_id = None;
    properties.expiration = None;
    properties.headers.remove("CC");
    for name in BROKER_HEADERS {
        properties.headers.remove(name);
    }
}

/// Makes sure that a queue is there: looks first, since looking takes no right to make it.
pub(crate) async fn ensure(broker: &Broker, queue: Queue) -> Result<(), TransportError> {
    match broker.declare_passive(queue.name()).await {
        Ok(_) => Ok(()),
        Err(error) if error.is_no_queue() => broker.declare(&Topology::default().queue(queue)).await,
        Err(error) => Err(error),
    }
}

//! Questions to the workers over Celery's remote control, and commands that want no answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::sync::{Mutex, broadcast};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::client::Inner;
use crate::error::ClientError;
use crate::transport::{Binding, Broker, Consume, Exchange, Queue, Topology, TransportError};
use crate::wire::{ControlReply, ControlRequest, ReplyAddress};
use crate::worker::{CONTROL_EXCHANGE, MESSAGE_TTL, QUEUE_EXPIRY, REPLY_EXCHANGE};

/// How many answers may wait for those who asked.
const ANSWERS_LIMIT: usize = 1024;

/// What to ask the workers, or tell them.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Inspect {
    /// Whether they live: `{"ok": "pong"}`.
    Ping,
    /// Their numbers: tasks by name, slots, uptime, process id.
    Stats,
    /// The tasks that run.
    Active,
    /// The tasks that were received and wait for a slot.
    Reserved,
    /// The names of the tasks that they know.
    Registered,
    /// The queues that they consume.
    ActiveQueues,
    /// The ids that they won't run.
    Revoked,
    /// Don't run these; with `terminate`, end them where they run.
    Revoke {
        /// The tasks' ids.
        ids: Vec<String>,
        /// Also when they run already.
        terminate: bool,
    },
    /// Finish what runs and end.
    Shutdown,
}

impl Inspect {
    fn method(&self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Stats => "stats",
            Self::Active => "active",
            Self::Reserved => "reserved",
            Self::Registered => "registered",
            Self::ActiveQueues => "active_queues",
            Self::Revoked => "revoked",
            Self::Revoke { .. } => "revoke",
            Self::Shutdown => "shutdown",
        }
    }

    fn arguments(&self) -> Map<String, Value> {
        let arguments = match self {
            Self::Revoke { ids, terminate } => {
                json!({"task_id": ids, "terminate": terminate, "signal": "SIGTERM"})
            }
            _ => json!({}),
        };
        match arguments {
            Value::Object(arguments) => arguments,
            _ => Map::new(),
        }
    }
}

/// What one worker said.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The worker's name.
    pub node: String,
    /// Its answer, in the form that Celery documents for the question.
    pub value: Value,
}

impl Answer {
    /// Whether the worker is the one that `name` means: `one@here`, or `one` for any host.
    pub fn is_of(&self, name: &str) -> bool {
        is_called(&self.node, name)
    }
}

/// The client's ear for answers: one queue for all questions, made by the first.
pub(crate) struct ControlReplies {
    address: ReplyAddress,
    answers: broadcast::Sender<Arc<ControlReply>>,
    _reader: AbortOnDropHandle<()>,
    /// Celery's logical time, as far as this client knows.
    clock: Mutex<u64>,
}

impl ControlReplies {
    async fn open(broker: &Broker) -> Result<Self, TransportError> {
        let oid = uuid::Uuid::new_v4().to_string();
        let queue = format!("{oid}.{REPLY_EXCHANGE}");
        let topology = exchanges()
            .queue(Queue::transient(&queue).exclusive().auto_delete().expires(QUEUE_EXPIRY).ttl(MESSAGE_TTL))
            .binding(Binding::new(REPLY_EXCHANGE, &queue, &oid));
        broker.declare(&topology).await?;
        let tag = queue.clone();
        let mut consumer =
            broker.consume(Consume { queue, prefetch: 0, no_ack: true, exclusive: false, tag }).await?;
        let (answers, _) = broadcast::channel(ANSWERS_LIMIT);
        let sender = answers.clone();
        let reader = tokio::spawn(async move {
            while let Some(delivery) = consumer.next().await {
                let (envelope, _settled_by_no_ack) = delivery.split();
                match ControlReply::decode(&envelope.properties, &envelope.body) {
                    // Nobody may be asking any more.
                    Ok(reply) => drop(sender.send(Arc::new(reply))),
                    Err(refusal) => {
                        tracing::warn!(reason = %refusal.reason, "a malformed answer was thrown away");
                    }
                }
            }
        });
        let address = ReplyAddress { exchange: REPLY_EXCHANGE.to_owned(), routing_key: oid };
        Ok(Self { address, answers, _reader: AbortOnDropHandle::new(reader), clock: Mutex::new(0) })
    }
}

fn exchanges() -> Topology {
    Topology::default()
        .exchange(Exchange::fanout(CONTROL_EXCHANGE))
        .exchange(Exchange::direct(REPLY_EXCHANGE))
}

/// Asks and collects the answers, by the workers' names.
pub(crate) async fn ask(
    inner: &Inner,
    inspect: &Inspect,
    nodes: &[String],
    timeout: Duration,
) -> Result<Vec<Answer>, ClientError> {
    let opened = inner.control.get_or_try_init(|| ControlReplies::open(&inner.broker)).await;
    let control = opened.map_err(|source| ClientError::Transport {
        doing: "the queue for the workers' answers could not be made ready".to_owned(),
        source,
    })?;
    let deadline = Instant::now() + timeout;
    let mut answers = control.answers.subscribe();
    let ticket = uuid::Uuid::new_v4().to_string();
    let clock = *control.clock.lock().await + 1;
    let mut request = request(inspect, &ticket, clock);
    // Celery's destinations are whole node names; where a host is missing, everybody is asked.
    let whole = !nodes.is_empty() && nodes.iter().all(|name| name.contains('@'));
    request.destination = whole.then(|| nodes.to_vec());
    request.reply_to = Some(control.address.clone());
    publish(inner, &request).await?;
    let mut found: BTreeMap<String, Value> = BTreeMap::new();
    while nodes.is_empty() || nodes.iter().any(|name| !found.keys().any(|node| is_called(node, name))) {
        let reply = match tokio::time::timeout_at(deadline, answers.recv()).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(broadcast::error::RecvError::Lagged(_))) => continue,
            Ok(Err(broadcast::error::RecvError::Closed)) | Err(_) => break,
        };
        if reply.ticket == ticket {
            let mut clock = control.clock.lock().await;
            *clock = reply.clock.max(*clock);
            let meant = |node: &str| nodes.is_empty() || nodes.iter().any(|name| is_called(node, name));
            let answers = reply.nodes.iter().filter(|(node, _)| meant(node));
            found.extend(answers.map(|(node, value)| (node.clone(), value.clone())));
        }
    }
    Ok(found.into_iter().map(|(node, value)| Answer { node, value }).collect())
}

/// Whether `name`, with or without a host, means this node.
fn is_called(node: &str, name: &str) -> bool {
    node == name || node.split_once('@').is_some_and(|(before, _)| before == name)
}

/// Sends a command that wants no answer.
pub(crate) async fn tell(inner: &Inner, inspect: &Inspect) -> Result<(), ClientError> {
    let declared = inner.broker.declare(&exchanges()).await;
    declared.map_err(|source| ClientError::Transport {
        doing: "the exchange of remote control could not be made ready".to_owned(),
        source,
    })?;
    publish(inner, &request(inspect, &uuid::Uuid::new_v4().to_string(), 1)).await
}

fn request(inspect: &Inspect, ticket: &str, clock: u64) -> ControlRequest {
    ControlRequest {
        method: inspect.method().to_owned(),
        arguments: inspect.arguments(),
        destination: None,
        pattern: None,
        matcher: None,
        ticket: ticket.to_owned(),
        reply_to: None,
        clock: Some(clock),
    }
}

async fn publish(inner: &Inner, request: &ControlRequest) -> Result<(), ClientError> {
    let published = inner.broker.publish(request.publishing(CONTROL_EXCHANGE)).await;
    published.map_err(|source| ClientError::Publish { method: request.method.clone(), source })
}

//! What the hands hold at the broker: batches going out, results coming in, and looks at how it is there.

use std::future::pending;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use futures::stream::{FuturesUnordered, StreamExt};
use regatta_celery::transport::{Broker, Exchange, Link, Queue, QueueDepth, Topology, TransportError};
use regatta_celery::wire::{ResultMessage, State};
use regatta_celery::{Client, ClientOptions, RemoteError, Replies, Reply, ReplyRoute, SendError, Task};
use regatta_model::{
    BatchEnd, BatchId, BatchOrder, BatchReport, Input, Lease, Progress, REFUSED, RESULTS_EXCHANGE, RunOrder,
    TASK_NAME, WorkerName,
};
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use crate::DispatchError;

/// How often the queues of a run are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How often a batch is published anew when the broker doesn't confirm it.
const PUBLISH_TRIES: u32 = 5;

/// The wait between two such tries while there is a connection.
const PUBLISH_PAUSE: Duration = Duration::from_millis(500);

/// How much longer a run's queue of results outlives its dispatcher's last sign than the run itself would go on without
/// its broker. After that nobody will come for it, and workers don't run its batches any more.
const RESULTS_SPARE: Duration = Duration::from_secs(60);

/// The longest time for which a queue of results waits, whatever the run says: a week.
const RESULTS_EXPIRY_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Makes a run's queues, and opens both directions.
///
/// # Errors
/// When the broker refuses; the text says what.
pub(crate) async fn open(broker: &Broker, order: &RunOrder) -> Result<(Batches, Results), DispatchError> {
    let exchange = Topology::default().exchange(Exchange::topic(RESULTS_EXCHANGE).durable());
    broker.declare(&exchange).await.map_err(DispatchError::broker)?;
    for queue in queues(order) {
        make_queue(broker, queue).await.map_err(DispatchError::broker)?;
    }
    let name = format!("regatta.run.{}", order.run);
    let route = ReplyRoute {
        exchange: RESULTS_EXCHANGE.to_owned(),
        queue: Queue::celery(&name).expires(results_expiry(order)),
        binding_key: format!("#.{}", order.run),
        reply_to: order.run.0.clone(),
    };
    let options =
        ClientOptions { name: "regatta".to_owned(), declare_queues: false, ..ClientOptions::default() };
    let (client, replies) =
        Client::with_reply(broker, options, route).await.map_err(DispatchError::broker)?;
    let batches = Batches { client, sending: FuturesUnordered::new() };
    Ok((batches, Results { replies, broker: broker.clone(), name }))
}

fn results_expiry(order: &RunOrder) -> Duration {
    Duration::from_millis(order.nobody_after_ms).saturating_add(RESULTS_SPARE).min(RESULTS_EXPIRY_MAX)
}

fn queues(order: &RunOrder) -> Vec<&str> {
    let mut queues: Vec<&str> = order.suites.iter().flat_map(regatta_model::SuiteOrder::queues).collect();
    queues.sort_unstable();
    queues.dedup();
    queues
}

/// A queue that somebody has made in his own way is used as it is. Ours is classic and durable: a quorum queue of
/// RabbitMQ 3.10 that recovers from its broker's death lets consumers hang for longer than a run waits.
async fn make_queue(broker: &Broker, queue: &str) -> Result<(), TransportError> {
    match broker.declare_passive(queue).await {
        Err(error) if error.is_no_queue() => {
            match broker.declare(&Topology::default().queue(Queue::celery(queue))).await {
                // Somebody was faster, in his own way.
                Err(TransportError::Mismatch { .. }) => Ok(()),
                made => made,
            }
        }
        Err(error) => Err(error),
        Ok(_) => Ok(()),
    }
}

/// Batches on their way out.
pub(crate) struct Batches {
    client: Client,
    /// Polled by the dispatcher's own loop, and begun in the order in which they were asked for: what is urgent was
    /// planned first, and must be first in its queue.
    sending: FuturesUnordered<BoxFuture<'static, Option<Input>>>,
}

impl Batches {
    /// Publishes a batch. A failure comes back by [`Batches::next_failure`].
    pub(crate) fn publish(&mut self, batch: &BatchId, queue: &str, order: &BatchOrder) {
        let client = self.client.clone();
        let (batch, queue, order) = (batch.clone(), queue.to_owned(), order.clone());
        let sending = async move {
            let reason = send(&client, &batch, &queue, &order).await.err()?;
            Some(Input::PublishFailed { batch, reason })
        };
        self.sending.push(sending.boxed());
    }

    /// Tells whoever has a batch to stop. Nobody answers, and a worker that doesn't hear it is fenced by the lease.
    pub(crate) fn revoke(&mut self, batch: BatchId, terminate: bool) {
        let client = self.client.clone();
        let revoking = async move {
            if let Err(error) = client.revoke(&batch.0, terminate).await {
                tracing::debug!(batch = %batch, %error, "a batch could not be revoked");
            }
            None
        };
        self.sending.push(revoking.boxed());
    }

    /// The next batch that could not be published; waits for ever while there is none.
    pub(crate) async fn next_failure(&mut self) -> Option<Input> {
        loop {
            match self.sending.next().await {
                Some(Some(failure)) => return Some(failure),
                Some(None) => {}
                None => pending().await,
            }
        }
    }

    /// Waits for what is on its way, such as a last revocation, but not for a broker that is gone.
    pub(crate) async fn flush(&mut self) {
        let all = async { while self.sending.next().await.is_some() {} };
        // The run is over; what the broker didn't take by now changes nothing.
        let _late = tokio::time::timeout(LOOK_EVERY, all).await;
    }
}

async fn send(client: &Client, batch: &BatchId, queue: &str, order: &BatchOrder) -> Result<(), String> {
    let mut link = client.broker().link();
    for attempt in 1.. {
        let task = Task::new(TASK_NAME).id(batch.0.clone()).queue(queue).kwarg("order", order);
        let Err(error) = client.post(task).await else { return Ok(()) };
        let hopeless = match &error {
            SendError::Publish { source, .. } => {
                !source.may_have_arrived()
                    && !matches!(source, regatta_celery::transport::PublishError::Transport(_))
            }
            _ => true,
        };
        if hopeless || attempt >= PUBLISH_TRIES {
            return Err(chain(&error));
        }
        // Its lease decides should both copies arrive.
        tracing::warn!(batch = %batch, error = chain(&error), "a batch is published again");
        tokio::time::sleep(PUBLISH_PAUSE).await;
        if link.wait_for(|link| matches!(link, Link::Up { .. })).await.is_err() {
            return Err("the broker was closed".to_owned());
        }
    }
    Ok(())
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Results on their way in.
pub(crate) struct Results {
    replies: Replies,
    broker: Broker,
    name: String,
}

/// Something that a worker said, still to be accepted.
pub(crate) struct Heard {
    pub(crate) input: Option<Input>,
    reply: Reply,
}

impl Heard {
    /// Lets the broker forget it: it is in the ledger.
    pub(crate) fn accept(self) {
        // One that comes again, since this acceptance was lost, counts once all the same.
        tokio::spawn(async move {
            if let Err(error) = self.reply.accept().await {
                tracing::debug!(%error, "a result will come again");
            }
        });
    }
}

impl Results {
    /// The next thing that a worker says; none when the broker was closed.
    pub(crate) async fn next(&mut self) -> Option<Heard> {
        let reply = self.replies.next().await?;
        let input = match &reply.message {
            Ok(message) => read(message, reply.facts.worker.as_deref()),
            Err(refusal) => Err(refusal.reason.clone()),
        };
        let input =
            input.inspect_err(|reason| tracing::warn!(reason, "a result can't be read and was dropped"));
        Some(Heard { input: input.ok(), reply })
    }

    /// Takes the run's queue of results away.
    pub(crate) async fn close(self) {
        self.replies.cancel();
        let deleted = tokio::time::timeout(LOOK_EVERY, self.broker.delete_queue(&self.name)).await;
        if !matches!(deleted, Ok(Ok(()))) {
            tracing::debug!(queue = self.name, "the queue of results goes by its own expiry");
        }
    }
}

fn read(message: &ResultMessage, worker: Option<&str>) -> Result<Input, String> {
    let batch = BatchId(message.task_id.clone());
    let wrong =
        |what: &str, error: &dyn std::error::Error| format!("{what} of batch {}: {error}", message.task_id);
    match &message.status {
        state if *state == State::Success || *state == State::from(REFUSED) => {
            let report: BatchReport = message.result.to().map_err(|error| wrong("the report", &error))?;
            Ok(Input::Report { batch, report })
        }
        State::Failure => {
            let reason = RemoteError::read(message).to_string();
            Ok(Input::BatchFailed { batch, reason })
        }
        State::Revoked => {
            let lease = message.task_id.rsplit('.').next().and_then(|number| number.parse().ok());
            let lease =
                Lease(lease.ok_or_else(|| format!("batch {} has no lease in its id", message.task_id))?);
            let worker = WorkerName(worker.unwrap_or("a worker").to_owned());
            Ok(Input::Report { batch, report: BatchReport { lease, worker, end: BatchEnd::Cancelled } })
        }
        _ => {
            let progress: Progress = message.result.to().map_err(|error| wrong("the progress", &error))?;
            Ok(Input::Progress { batch, progress })
        }
    }
}

/// Tells when the connection is lost and when it is back.
pub(crate) async fn watch_link(broker: Broker, news: mpsc::Sender<Input>) {
    let mut link = broker.link();
    let mut up = true;
    while link.changed().await.is_ok() {
        let now = link.borrow_and_update().clone();
        let input = match now {
            Link::Down { reason } if up => Input::BrokerLost { reason },
            Link::Up { .. } if !up => Input::BrokerBack,
            Link::Down { .. } | Link::Up { .. } => continue,
        };
        up = matches!(input, Input::BrokerBack);
        if news.send(input).await.is_err() {
            return;
        }
    }
}

/// Looks now and then whether somebody consumes from the queues of the run.
pub(crate) async fn watch_queues(
    broker: Broker,
    queues: watch::Receiver<Vec<String>>,
    news: mpsc::Sender<Input>,
) {
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let now = queues.borrow().clone();
        for queue in now {
            let QueueDepth { consumers, ready } = match broker.declare_passive(&queue).await {
                Ok(depth) => depth,
                Err(error) if error.is_no_queue() => QueueDepth { consumers: 0, ready: 0 },
                // The link says more about a broker that doesn't answer.
                Err(_) => continue,
            };
            if news.send(Input::QueueSeen { queue, consumers, ready }).await.is_err() {
                return;
            }
        }
    }
}

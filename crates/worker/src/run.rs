//! A worker's life: its queues, its slots, its end.

use std::path::PathBuf;
use std::sync::Arc;

use regatta_adapters::Adapter;
use regatta_celery::transport::{Broker, Exchange, Queue, Topology, TransportError};
use regatta_celery::{App, Prefetch, ResultRoute, WorkerEnd, WorkerError, WorkerOptions};
use regatta_model::{RESULTS_EXCHANGE, RunId, TeardownFailed};
use regatta_sandbox::Fence;
use tokio_util::sync::CancellationToken;

use crate::BatchTask;

/// What a worker is told when it starts.
#[derive(Clone)]
pub struct WorkerConfig {
    /// Its Celery node name, such as `regatta-1@host`, unique among all workers of the virtual host.
    pub name: String,
    /// The queues that it takes batches from.
    pub queues: Vec<String>,
    /// The tree that its suites are in.
    pub tree: PathBuf,
    /// The suites that it can run.
    pub adapters: Vec<Arc<dyn Adapter>>,
    /// How many batches it runs at a time, at least 1.
    pub slots: usize,
    /// Whether it is a run's own worker, in the process of its dispatcher: it is stopped and goes on together with whoever
    /// holds its leases, so they don't end by its silence. Any other leaves what comes next to others when it has
    /// refused a batch.
    pub own: bool,
    /// What to start before there is a test for it. A run's own worker does so while the suite is listed; a worker of a
    /// fleet may never get a test of a suite that it knows.
    pub ahead: Option<Ahead>,
    /// The limits of every process, and the environment that it starts with. The time-out is of no account: it comes
    /// with each batch.
    pub fence: Fence,
}

/// Slots that start warm processes at once.
#[derive(Debug, Clone)]
pub struct Ahead {
    /// For which run.
    pub run: RunId,
    /// How many of each suite.
    pub slots: usize,
}

/// How a worker ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worked {
    /// Why.
    pub end: WorkerEnd,
    /// What its tests shared and what could not be taken down in good order.
    pub teardowns_failed: Vec<TeardownFailed>,
}

/// Why a worker could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// There is no thread left.
    #[error("the slots' threads can't be started; look at the limit of processes")]
    Threads(#[source] std::io::Error),
    /// A queue isn't there and can't be made, or the broker is out of reach.
    #[error("queue {queue} is not ready for a worker")]
    Queue {
        /// The queue.
        queue: String,
        /// The broker's words.
        #[source]
        source: TransportError,
    },
    /// The Celery side ended with an error.
    #[error(transparent)]
    Worker(#[from] WorkerError),
}

/// The first part of the routing key where the broker knows no users.
const NO_USER: &str = "local";

/// Works on batches until `quiet` (finish what is in hand) or `kill` (end all processes now) fires, or remote control
/// asks for the shutdown. What tests shared is taken down then, unless `kill` fires; when it returns, no process of a test
/// is left. Dropping the future kills too, but doesn't
/// wait for that.
///
/// # Errors
/// When the broker doesn't give the worker what it needs, or the system no threads.
pub async fn run(
    broker: &Broker,
    config: WorkerConfig,
    quiet: CancellationToken,
    kill: CancellationToken,
) -> Result<Worked, RunError> {
    for queue in &config.queues {
        let ready = make_ready(broker, queue).await;
        ready.map_err(|source| RunError::Queue { queue: queue.clone(), source })?;
    }
    let batches = BatchTask::start(&config, quiet.clone()).map_err(RunError::Threads)?;
    let app = batches.register(App::new("regatta"));
    let user = broker.url().user();
    let key_prefix = if user.is_empty() { NO_USER } else { user }.to_owned();
    let options = WorkerOptions {
        prefetch: Prefetch::Slots,
        results: ResultRoute::Exchange { exchange: RESULTS_EXCHANGE.to_owned(), key_prefix },
        ..WorkerOptions::new(config.name, config.queues).slots(config.slots)
    };
    let end = app.worker(broker, options).run(quiet, kill.clone()).await;
    // Whatever ended the worker, its batches are dropped now, and their processes are dying.
    if !matches!(end, Ok(WorkerEnd::Quiet | WorkerEnd::Asked)) {
        batches.kill();
    }
    let closing = batches.clone();
    let mut closed = tokio::task::spawn_blocking(move || closing.close());
    let closed = tokio::select! {
        closed = &mut closed => closed,
        () = kill.cancelled() => {
            batches.kill();
            closed.await
        }
    };
    let teardowns_failed = closed.unwrap_or_else(|error| {
        tracing::error!(%error, "the slots could not be ended");
        Vec::new()
    });
    Ok(Worked { end: end?, teardowns_failed })
}

/// Sees to a queue and the exchange of results. A worker of a fleet may declare neither: the set-up did. Where nothing
/// is set up, as on the embedded broker, it makes them as the dispatcher does.
async fn make_ready(broker: &Broker, queue: &str) -> Result<(), TransportError> {
    match broker.declare_passive(queue).await {
        Ok(_) => {}
        Err(error) if error.is_no_queue() => {
            let made = broker.declare(&Topology::default().queue(Queue::celery(queue))).await;
            // Somebody was faster, in his own way.
            made.or_else(
                |error| if matches!(error, TransportError::Mismatch { .. }) { Ok(()) } else { Err(error) },
            )?;
        }
        Err(error) => return Err(error),
    }
    let exchange = Topology::default().exchange(Exchange::topic(RESULTS_EXCHANGE).durable());
    match broker.declare(&exchange).await {
        Err(error) if !error.is_access_refused() => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

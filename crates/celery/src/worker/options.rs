//! What a worker is told when it starts.

use std::time::Duration;

use crate::app::DEFAULT_QUEUE;
use crate::name::{queue_name, worker_name};

/// How often a worker says on the event exchange that it lives. Celery calls a worker dead after twice this time.
pub const HEARTBEAT: Duration = Duration::from_secs(2);

/// The most deliveries that a worker may hold, whatever is asked: AMQP's own limit for a prefetch.
pub const MAX_PREFETCH: u16 = u16::MAX;

/// How many deliveries a worker holds at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Prefetch {
    /// As many as it has slots: no task waits behind another one that runs while a neighbour idles.
    #[default]
    Slots,
    /// So many. More than the slots hide the way to the broker, for tasks that take less than a millisecond.
    Fixed(u16),
}

impl Prefetch {
    /// The number for a worker with `slots` slots; at least 1.
    pub fn of(self, slots: usize) -> u16 {
        match self {
            Self::Slots => u16::try_from(slots).unwrap_or(MAX_PREFETCH).max(1),
            Self::Fixed(count) => count.max(1),
        }
    }
}

/// Where results and state updates go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ResultRoute {
    /// To the queue that the message names in `reply_to`, through the default exchange: Celery's `rpc://`. It takes
    /// the right to write to the default exchange, and with it to every queue of the virtual host.
    #[default]
    Reply,
    /// To a named topic exchange, under the routing key `<key_prefix>.<reply_to>`. With `key_prefix` the worker's own
    /// user name, RabbitMQ's topic permissions (`^{username}\..*$`) keep one worker from writing in another's name.
    Exchange {
        /// The exchange, which must exist.
        exchange: String,
        /// The first part of the routing key.
        key_prefix: String,
    },
}

/// What becomes of messages that can't be run: malformed ones, unknown tasks, tasks out of the wrong queue. And of tasks
/// that ran and whose end the broker will never take: not even a short `FAILURE` can be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeadLetter {
    /// They are published, confirmed, to the queue `<queue>.dead` with the header `dead-letter-reason`, and then
    /// acknowledged. Where the worker's user has no right to do that, they are rejected as with [`DeadLetter::Broker`].
    ///
    /// Celery declares its queues without a dead-letter exchange, and a queue that Python peers share must be declared
    /// with the same arguments or their declaration fails; so the broker itself can't do it there.
    #[default]
    Queue,
    /// They are rejected, and the queue's own dead-letter exchange takes them: for queues that were declared with one.
    Broker,
}

/// The options of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerOptions {
    /// Its name, `name@host`, unique among all workers of the virtual host.
    pub name: String,
    /// The queues that it consumes. Those that don't exist are declared as Celery declares them.
    pub queues: Vec<String>,
    /// How many tasks it runs at a time.
    pub slots: usize,
    /// How many deliveries it holds, in all its queues together. RabbitMQ counts so for classic queues alone; of several
    /// queues among which there is a quorum queue, it holds so many of each.
    pub prefetch: Prefetch,
    /// Where results go.
    pub results: ResultRoute,
    /// Whether it tells of every task on the event exchange, as `celery worker -E` does. Remote control can switch it.
    pub events: bool,
    /// How often it says that it lives; `None` for never, and then it sends no events at all.
    pub heartbeat: Option<Duration>,
    /// Whether it answers remote control (`celery inspect`, `celery control`).
    pub remote_control: bool,
    /// Whether it publishes the state `STARTED` when a task begins.
    pub track_started: bool,
    /// What becomes of messages that can't be run.
    pub dead_letter: DeadLetter,
    /// The longest time limit that one task may have; `None` for no limit.
    pub max_timeout: Option<Duration>,
}

impl Default for WorkerOptions {
    /// `celery@localhost` on [`DEFAULT_QUEUE`], with one slot.
    fn default() -> Self {
        Self {
            name: "celery@localhost".to_owned(),
            queues: vec![DEFAULT_QUEUE.to_owned()],
            slots: 1,
            prefetch: Prefetch::Slots,
            results: ResultRoute::Reply,
            events: false,
            heartbeat: Some(HEARTBEAT),
            remote_control: true,
            track_started: false,
            dead_letter: DeadLetter::Queue,
            max_timeout: None,
        }
    }
}

impl WorkerOptions {
    /// A worker called `name` on `queues`, with one slot.
    pub fn new(name: impl Into<String>, queues: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { name: name.into(), queues: queues.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// The same with so many slots.
    #[must_use]
    pub fn slots(mut self, slots: usize) -> Self {
        self.slots = slots;
        self
    }

    /// What is wrong with them.
    pub(crate) fn check(&self) -> Result<(), String> {
        worker_name(&self.name).map_err(|error| error.to_string())?;
        if self.queues.is_empty() {
            return Err("it has no queue to consume; name at least one".to_owned());
        }
        for queue in &self.queues {
            queue_name(queue).map_err(|error| format!("queue {queue:?}: {error}"))?;
        }
        if self.slots == 0 {
            return Err("it has no slot; give it at least one".to_owned());
        }
        Ok(())
    }
}

/// Why a worker's run ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerEnd {
    /// It was told to be quiet and has finished and settled all that it had in hand.
    Quiet,
    /// It was killed: what it had in hand goes back to the queues.
    Killed,
    /// Remote control asked for the shutdown; all that it had in hand is finished and settled.
    Asked,
}

/// Where a worker is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It declares and subscribes.
    Starting,
    /// It consumes.
    Ready,
    /// It takes no more, and finishes what it has.
    Quiet,
}

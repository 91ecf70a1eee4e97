//! A worker's voice on the event exchange: that it lives, and what becomes of each task.
//!
//! Events are worth less than tasks: they are never waited for. What doesn't fit into the queue here is dropped and
//! counted, and a publish that fails is only logged.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use crate::clock::{LogicalClock, utc_offset_hours};
use crate::transport::{Broker, Exchange, Link, Topology};
use crate::wire::{Event, RawJson};

/// The exchange that Celery's monitors listen to.
pub(crate) const EVENT_EXCHANGE: &str = "celeryev";

/// How many events may wait for their publishing.
const QUEUE_LIMIT: usize = 4096;

/// How many events one message carries at most; as many as Celery puts into one.
const BATCH_LIMIT: usize = 24;

/// How long an event waits for others to share its message.
const LINGER: Duration = Duration::from_millis(50);

/// The numbers in a heartbeat.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Pulse {
    pub(crate) active: usize,
    pub(crate) processed: u64,
}

/// Hands events to the task that publishes them.
#[derive(Debug)]
pub(crate) struct Emitter {
    sender: mpsc::Sender<Event>,
    tasks: AtomicBool,
    dropped: AtomicU64,
    hostname: Arc<str>,
    clock: Arc<LogicalClock>,
}

/// The exchange, as Celery declares it.
pub(crate) fn topology() -> Topology {
    Topology::default().exchange(Exchange::topic(EVENT_EXCHANGE).durable())
}

impl Emitter {
    /// The emitter, and what its publishing task reads.
    pub(crate) fn new(
        hostname: Arc<str>,
        clock: Arc<LogicalClock>,
        tasks: bool,
    ) -> (Self, mpsc::Receiver<Event>) {
        let (sender, receiver) = mpsc::channel(QUEUE_LIMIT);
        let (tasks, dropped) = (AtomicBool::new(tasks), AtomicU64::new(0));
        (Self { sender, tasks, dropped, hostname, clock }, receiver)
    }

    /// Whether somebody wants to hear of tasks.
    pub(crate) fn tells_of_tasks(&self) -> bool {
        self.tasks.load(Ordering::Relaxed)
    }

    /// Switches the events of tasks. True when that changed something.
    pub(crate) fn switch_tasks(&self, on: bool) -> bool {
        self.tasks.swap(on, Ordering::Relaxed) != on
    }

    /// Tells something of a task, if somebody wants to hear it.
    pub(crate) fn task(
        &self,
        kind: &'static str,
        id: &str,
        fields: impl FnOnce() -> Vec<(&'static str, RawJson)>,
    ) {
        if self.tells_of_tasks() {
            let mut event = self.event(kind);
            event.uuid = Some(id.to_owned());
            event.fields = fields().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
            self.send(event);
        }
    }

    /// Tells something of the worker itself.
    pub(crate) fn worker(&self, kind: &'static str, pulse: Pulse, freq: Duration) {
        let mut event = self.event(kind);
        let field = |name: &str, value: RawJson| (name.to_owned(), value);
        event.fields = vec![
            field("freq", json(&freq.as_secs_f64())),
            field("active", json(&pulse.active)),
            field("processed", json(&pulse.processed)),
            field("loadavg", json(&load_average())),
            field("sw_ident", json(&IDENT)),
            field("sw_ver", json(&env!("CARGO_PKG_VERSION"))),
            field("sw_sys", json(&"Linux")),
        ];
        self.send(event);
    }

    fn event(&self, kind: &'static str) -> Event {
        Event {
            kind: kind.to_owned(),
            uuid: None,
            hostname: self.hostname.to_string(),
            clock: self.clock.tick(),
            timestamp: crate::clock::seconds(SystemTime::now()),
            utcoffset: utc_offset_hours(),
            pid: std::process::id(),
            fields: Vec::new(),
        }
    }

    fn send(&self, event: Event) {
        if self.sender.try_send(event).is_err() {
            let before = self.dropped.fetch_add(1, Ordering::Relaxed);
            if before.is_power_of_two() || before == 0 {
                tracing::warn!(
                    dropped = before + 1,
                    "events are dropped: the broker doesn't take them fast enough"
                );
            }
        }
    }
}

/// The name by which Celery's tools show this software.
pub(crate) const IDENT: &str = "regatta-celery";

/// One value as JSON; `null` for what can't be written, which numbers and texts always can.
pub(crate) fn json(value: &impl serde::Serialize) -> RawJson {
    RawJson::of(value).unwrap_or_else(|_| RawJson::null())
}

/// The load averages over 1, 5 and 15 minutes; zeros where the system doesn't tell.
fn load_average() -> [f64; 3] {
    let mut load = [0.0; 3];
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    for (slot, word) in load.iter_mut().zip(text.split_whitespace()) {
        *slot = word.parse().unwrap_or(0.0);
    }
    load
}

/// Publishes events and heartbeats until the emitter is dropped, then what is left.
pub(crate) async fn publish(
    broker: Broker,
    emitter: std::sync::Weak<Emitter>,
    mut events: mpsc::Receiver<Event>,
    pulse: watch::Receiver<Pulse>,
    beat: Duration,
) {
    let mut link = broker.link();
    let mut ticks = tokio::time::interval(beat);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.reset();
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            received = events.recv_many(&mut batch, BATCH_LIMIT) => {
                if received == 0 {
                    break;
                }
                if batch.len() < BATCH_LIMIT && batch.iter().all(Event::is_of_task) {
                    linger(&mut events, &mut batch).await;
                }
                flush(&broker, &mut batch).await;
            }
            _ = ticks.tick() => {
                let Some(emitter) = emitter.upgrade() else { continue };
                if matches!(*link.borrow_and_update(), Link::Up { .. }) {
                    emitter.worker("worker-heartbeat", *pulse.borrow(), beat);
                }
            }
        }
    }
}

async fn linger(events: &mut mpsc::Receiver<Event>, batch: &mut Vec<Event>) {
    let fill = async {
        while batch.len() < BATCH_LIMIT {
            match events.recv().await {
                Some(event) => batch.push(event),
                None => break,
            }
        }
    };
    // The time running out is the usual end; the batch keeps what came.
    let _elapsed = tokio::time::timeout(LINGER, fill).await;
}

async fn flush(broker: &Broker, batch: &mut Vec<Event>) {
    let (tasks, workers): (Vec<Event>, Vec<Event>) = batch.drain(..).partition(Event::is_of_task);
    let mut publishings: Vec<_> = workers.iter().map(|event| event.publishing(EVENT_EXCHANGE)).collect();
    if !tasks.is_empty() {
        publishings.push(Event::publishing_many(EVENT_EXCHANGE, &tasks));
    }
    for publishing in publishings {
        if let Err(error) = broker.publish(publishing).await {
            tracing::debug!(%error, "events were not published");
        }
    }
}

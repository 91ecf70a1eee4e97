//! How a worker gets ready: its topology, looking before making, and its consumers.

use std::sync::{Arc, Mutex};

use futures::stream::SelectAll;
use tokio::sync::watch;

use crate::clock::LogicalClock;
use crate::emitter::{self, Emitter, Pulse};
use crate::error::WorkerError;
use crate::transport::{Broker, Consume, Queue, Share, TransportError};
use crate::worker::aside::{Aside, ensure};
use crate::worker::hands::Hands;
use crate::worker::outbox::Outbox;
use crate::worker::remote::Pidbox;
use crate::worker::round::{Round, Voice};
use crate::worker::{Worker, WorkerOptions};

pub(crate) async fn start(worker: Worker) -> Result<Round, WorkerError> {
    let Worker { app, broker, options, phase } = worker;
    let outbox = Outbox { broker: broker.clone(), phase: phase.subscribe() };
    options.check().map_err(|reason| WorkerError::Options { worker: options.name.clone(), reason })?;
    for queue in &options.queues {
        let made = ensure(&broker, Queue::celery(queue)).await;
        made.map_err(|source| topology_error(&options, format!("queue {queue}"), source))?;
    }
    let clock = Arc::new(LogicalClock::default());
    let voice = voice(&broker, &options, &clock).await?;
    let pidbox =
        match options.remote_control {
            true => {
                let opened = Pidbox::open(&broker, &options.name).await;
                Some(opened.map_err(|source| {
                    topology_error(&options, "its remote control queue".to_owned(), source)
                })?)
            }
            false => None,
        };
    let emitter = voice.as_ref().map(|voice| Arc::clone(&voice.emitter));
    let hands = Arc::new(Hands {
        app,
        outbox,
        options,
        clock,
        emitter,
        aside: Aside::default(),
        callers: Mutex::default(),
    });
    let mut consumers = SelectAll::new();
    let (share, is_alone) = (Share::default(), hands.options.queues.len() == 1);
    for queue in &hands.options.queues {
        let spec = Consume {
            queue: queue.clone(),
            prefetch: hands.options.prefetch.of(hands.options.slots),
            no_ack: false,
            exclusive: false,
            tag: format!("{}-{queue}", hands.options.name),
        };
        let consumer = match is_alone {
            true => broker.consume(spec).await,
            false => broker.consume_sharing(&share, spec).await,
        };
        consumers.push(consumer.map_err(|source| WorkerError::Consume {
            worker: hands.options.name.clone(),
            queue: queue.clone(),
            hint: hint(&hands.options.name, &source),
            source,
        })?);
    }
    Ok(Round::new(hands, consumers, voice, pidbox, phase))
}

/// Opens the event exchange, unless the worker is to be silent.
async fn voice(
    broker: &Broker,
    options: &WorkerOptions,
    clock: &Arc<LogicalClock>,
) -> Result<Option<Voice>, WorkerError> {
    let Some(beat) = options.heartbeat else { return Ok(None) };
    let declared = broker.declare(&emitter::topology()).await;
    declared
        .map_err(|source| topology_error(options, format!("exchange {}", emitter::EVENT_EXCHANGE), source))?;
    let (emitter, events) = Emitter::new(options.name.as_str().into(), Arc::clone(clock), options.events);
    let emitter = Arc::new(emitter);
    let (pulse, seen) = watch::channel(Pulse::default());
    let task = tokio::spawn(emitter::publish(broker.clone(), Arc::downgrade(&emitter), events, seen, beat));
    Ok(Some(Voice { emitter, pulse, beat, task }))
}

fn topology_error(options: &WorkerOptions, what: String, source: TransportError) -> WorkerError {
    let hint = hint(&options.name, &source);
    WorkerError::Topology { worker: options.name.clone(), what, hint, source }
}

/// What to do about a refusal.
fn hint(worker: &str, error: &TransportError) -> String {
    if error.is_access_refused() {
        let user = worker.split('@').next().unwrap_or(worker);
        format!(
            ": its broker user lacks the permission that the broker names below; run the set-up that grants {user} its rights"
        )
    } else {
        String::new()
    }
}

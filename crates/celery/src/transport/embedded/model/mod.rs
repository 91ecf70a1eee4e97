//! What a broker is, as a state machine: publishings and settlements in, deliveries out, time passed in. It follows
//! RabbitMQ's semantics as far as this crate uses them.

mod death;
mod line;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::line::{Line, Message, Place};
use super::super::topology::topic_matches;
use super::super::{
    Consume, Envelope, ExchangeKind, PublishError, Publishing, Queue, QueueDepth, Settle, Share, Topology,
    TransportError,
};

/// How many deliveries a consumer without a prefetch may hold.
const UNLIMITED: usize = 65_536;

/// How many messages a queue holds; a publishing beyond is refused, as by `x-overflow: reject-publish`.
const QUEUE_MAX: usize = 4_000_000;

struct QueueState {
    spec: Queue,
    name: Arc<str>,
    line: Line,
    /// Who consumes, the next one first.
    consumers: VecDeque<u64>,
    had_consumer: bool,
    unused_since: Instant,
}

/// A pattern and the queue that it leads to.
type Bound = (String, Arc<str>);

struct ConsumerState {
    queue: Arc<str>,
    capacity: usize,
    held: usize,
    exclusive: bool,
    /// What all consumers of the same share hold counts for each of them.
    share: Option<Share>,
    /// The serial of its last delivery.
    served: u64,
}

struct Unsettled {
    queue: Arc<str>,
    consumer: u64,
    place: Place,
    message: Message,
}

/// What follows from a change.
#[derive(Debug)]
pub(super) enum Effect {
    /// This consumer gets this.
    Deliver { consumer: u64, tag: u64, envelope: Box<Envelope> },
    /// This consumer gets nothing more.
    End { consumer: u64 },
}

/// A broker's state.
#[derive(Default)]
pub(super) struct Model {
    exchanges: HashMap<String, (ExchangeKind, Vec<Bound>)>,
    queues: HashMap<Arc<str>, QueueState>,
    consumers: HashMap<u64, ConsumerState>,
    unsettled: HashMap<u64, Unsettled>,
    serial: u64,
    effects: Vec<Effect>,
    due: Option<Instant>,
}

impl Model {
    /// What is to be done now.
    pub(super) fn effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// When [`Model::tick`] should be called at the latest.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due
    }

    fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    fn due_at(&mut self, at: Instant) {
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    pub(super) fn declare(&mut self, now: Instant, topology: &Topology) -> Result<(), TransportError> {
        let mismatch =
            |what: String| TransportError::Mismatch { what, reason: "declared differently before".into() };
        for exchange in &topology.exchanges {
            let known = self.exchanges.entry(exchange.name.clone()).or_insert((exchange.kind, Vec::new()));
            if known.0 != exchange.kind {
                return Err(mismatch(format!("exchange {}", exchange.name)));
            }
        }
        for queue in &topology.queues {
            match self.queues.get(queue.name.as_str()) {
                Some(known) if known.spec != *queue => return Err(mismatch(format!("queue {}", queue.name))),
                Some(_) => {}
                None => self.add_queue(now, queue),
            }
        }
        for binding in &topology.bindings {
            let what = format!("binding of queue {} to exchange {}", binding.queue, binding.exchange);
            let Some((name, _)) = self.queues.get_key_value(binding.queue.as_str()) else {
                return Err(TransportError::NotFound { what, reason: "no such queue".into() });
            };
            let bound = (binding.routing_key.clone(), Arc::clone(name));
            let Some((_, bindings)) = self.exchanges.get_mut(&binding.exchange) else {
                return Err(TransportError::NotFound { what, reason: "no such exchange".into() });
            };
            if !bindings.contains(&bound) {
                bindings.push(bound);
            }
        }
        Ok(())
    }

    fn add_queue(&mut self, now: Instant, queue: &Queue) {
        let name: Arc<str> = queue.name.as_str().into();
        let state = QueueState {
            spec: queue.clone(),
            name: Arc::clone(&name),
            line: Line::default(),
            consumers: VecDeque::new(),
            had_consumer: false,
            unused_since: now,
        };
        self.queues.insert(name, state);
        if let Some(expires) = queue.expires {
            self.due_at(now + expires);
        }
    }

    pub(super) fn depth(&self, queue: &str) -> Result<QueueDepth, TransportError> {
        let state = self.queues.get(queue).ok_or_else(|| no_queue(queue))?;
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Ok(QueueDepth { ready: count(state.line.len()), consumers: count(state.consumers.len()) })
    }

    pub(super) fn delete_queue(&mut self, queue: &str) {
        let Some(state) = self.queues.remove(queue) else { return };
        for (_, bindings) in self.exchanges.values_mut() {
            bindings.retain(|(_, bound)| *bound != state.name);
        }
        for consumer in state.consumers {
            self.consumers.remove(&consumer);
            self.effects.push(Effect::End { consumer });
        }
        self.unsettled.retain(|_, unsettled| unsettled.queue != state.name);
    }

    pub(super) fn publish(&mut self, now: Instant, publishing: Publishing) -> Result<(), PublishError> {
        let Publishing { exchange, routing_key, mandatory, .. } = &publishing;
        let Some(queues) = self.route(exchange, routing_key) else {
            let what = format!("publishing to exchange {exchange:?} with routing key {routing_key:?}");
            return Err(TransportError::NotFound { what, reason: "no such exchange".to_owned() }.into());
        };
        if queues.is_empty() && *mandatory {
            let (exchange, routing_key) = (exchange.to_string(), publishing.routing_key);
            return Err(PublishError::Unroutable { exchange, routing_key });
        }
        let full =
            |queue: &Arc<str>| self.queues.get(queue).is_some_and(|state| state.line.len() >= QUEUE_MAX);
        if queues.iter().any(full) {
            return Err(PublishError::Refused { routing_key: publishing.routing_key });
        }
        let exchange = Arc::clone(exchange);
        self.spread(
            now,
            &queues,
            Message { exchange, publishing, redelivered: false, returns: 0, expires: None },
        );
        Ok(())
    }

    /// The queues that take a message; none when there is no such exchange.
    fn route(&self, exchange: &str, key: &str) -> Option<Vec<Arc<str>>> {
        if exchange.is_empty() {
            let named = self.queues.get_key_value(key).map(|(name, _)| Arc::clone(name));
            return Some(named.into_iter().collect());
        }
        let (kind, bindings) = self.exchanges.get(exchange)?;
        let takes = |pattern: &str| match kind {
            ExchangeKind::Direct => pattern == key,
            ExchangeKind::Topic => topic_matches(pattern, key),
            ExchangeKind::Fanout => true,
        };
        let mut queues: Vec<Arc<str>> = Vec::new();
        for (pattern, queue) in bindings {
            if takes(pattern) && !queues.contains(queue) {
                queues.push(Arc::clone(queue));
            }
        }
        Some(queues)
    }

    fn spread(&mut self, now: Instant, queues: &[Arc<str>], message: Message) {
        let Some((last, rest)) = queues.split_last() else { return };
        for queue in rest {
            self.enqueue(now, queue, message.clone());
        }
        self.enqueue(now, last, message);
    }

    fn enqueue(&mut self, now: Instant, queue: &str, mut message: Message) {
        let serial = self.next_serial();
        let Some(state) = self.queues.get_mut(queue) else { return };
        let own = message.publishing.properties.expiration.as_deref().and_then(|text| text.parse().ok());
        let ttl = own.map(Duration::from_millis).into_iter().chain(state.spec.ttl).min();
        message.expires = ttl.map(|ttl| now + ttl);
        let priority =
            message.publishing.properties.priority.unwrap_or(0).min(state.spec.max_priority.unwrap_or(0));
        let expires = message.expires;
        state.line.insert(Place::new(priority, serial), message);
        if let Some(expires) = expires {
            self.due_at(expires);
        }
        self.pump(now, queue);
    }

    /// Hands out what a queue has to whoever may have more.
    pub(super) fn pump(&mut self, now: Instant, queue: &str) {
        self.expire(now, queue);
        let Some(state) = self.queues.get_mut(queue) else { return };
        loop {
            let has_room = |id: &u64| {
                let consumer = self.consumers.get(id);
                consumer.is_some_and(|consumer| held(&self.consumers, consumer) < consumer.capacity)
            };
            let Some(at) = state.consumers.iter().position(has_room) else { return };
            let Some((place, message)) = state.line.take_first() else { return };
            // The one that gets it goes to the end of the line.
            let Some(id) = state.consumers.remove(at) else { return };
            state.consumers.push_back(id);
            self.serial += 1;
            let tag = self.serial;
            if let Some(consumer) = self.consumers.get_mut(&id) {
                consumer.held += 1;
                consumer.served = tag;
            }
            let envelope = Envelope {
                exchange: message.exchange.to_string(),
                routing_key: message.publishing.routing_key.clone(),
                queue: Arc::clone(&state.name),
                redelivered: message.redelivered,
                properties: message.publishing.properties.clone(),
                body: message.publishing.body.clone(),
            };
            self.effects.push(Effect::Deliver { consumer: id, tag, envelope: Box::new(envelope) });
            self.unsettled
                .insert(tag, Unsettled { queue: Arc::clone(&state.name), consumer: id, place, message });
        }
    }

    /// Hands out what may be had now that a consumer holds less: by those who share with it too, and of these the one
    /// first that was served longest ago, so that no queue starves behind another.
    fn pump_beside(&mut self, now: Instant, consumer: u64, queue: &str) {
        let share = self.consumers.get(&consumer).and_then(|state| state.share.clone());
        let Some(share) = share else { return self.pump(now, queue) };
        let shares = |state: &&ConsumerState| state.share.as_ref().is_some_and(|other| other.is(&share));
        let mut line: Vec<(u64, Arc<str>)> = self
            .consumers
            .values()
            .filter(shares)
            .map(|state| (state.served, Arc::clone(&state.queue)))
            .collect();
        line.sort_unstable();
        for (_, queue) in line {
            self.pump(now, &queue);
        }
    }

    pub(super) fn consume(&mut self, spec: &Consume, share: Option<&Share>) -> Result<u64, TransportError> {
        let id = self.next_serial();
        let state = self.queues.get_mut(spec.queue.as_str()).ok_or_else(|| no_queue(&spec.queue))?;
        let taken =
            state.consumers.iter().any(|id| self.consumers.get(id).is_some_and(|other| other.exclusive));
        if taken || spec.exclusive && !state.consumers.is_empty() {
            let reason = "somebody consumes it exclusively".to_owned();
            return Err(TransportError::AccessRefused {
                what: format!("consuming queue {}", spec.queue),
                reason,
            });
        }
        let capacity = if spec.prefetch == 0 { UNLIMITED } else { usize::from(spec.prefetch) };
        let queue = Arc::clone(&state.name);
        let (exclusive, share) = (spec.exclusive, share.cloned());
        self.consumers.insert(id, ConsumerState { queue, capacity, held: 0, exclusive, share, served: 0 });
        state.consumers.push_back(id);
        state.had_consumer = true;
        Ok(id)
    }

    /// A consumer wants nothing more; what it holds stays its own.
    pub(super) fn cancel(&mut self, now: Instant, id: u64) {
        let Some(consumer) = self.consumers.remove(&id) else { return };
        self.effects.push(Effect::End { consumer: id });
        let Some(state) = self.queues.get_mut(&consumer.queue) else { return };
        state.consumers.retain(|other| *other != id);
        state.unused_since = now;
        let (alone, spec) = (state.consumers.is_empty(), &state.spec);
        let expires = spec.expires.filter(|_| alone);
        if alone && (spec.auto_delete || spec.exclusive) {
            self.delete_queue(&consumer.queue);
        } else if let Some(expires) = expires {
            self.due_at(now + expires);
        }
    }

    /// Nobody wants anything more.
    pub(super) fn cancel_all(&mut self, now: Instant) {
        let all: Vec<u64> = self.consumers.keys().copied().collect();
        for id in all {
            self.cancel(now, id);
        }
    }

    /// A delivery that counts as settled when it is read was read.
    pub(super) fn taken(&mut self, now: Instant, consumer: u64, tag: u64) {
        self.unsettled.remove(&tag);
        let Some(state) = self.consumers.get_mut(&consumer) else { return };
        state.held = state.held.saturating_sub(1);
        let queue = Arc::clone(&state.queue);
        self.pump_beside(now, consumer, &queue);
    }

    /// Settles. False when the claim is gone.
    pub(super) fn settle(&mut self, now: Instant, tag: u64, how: Settle) -> bool {
        let Some(Unsettled { queue, consumer, place, mut message }) = self.unsettled.remove(&tag) else {
            return false;
        };
        if let Some(state) = self.consumers.get_mut(&consumer) {
            state.held = state.held.saturating_sub(1);
        }
        match how {
            Settle::Ack => {}
            Settle::DeadLetter => self.bury(now, &queue, message, death::REJECTED),
            Settle::Requeue => {
                message.redelivered = true;
                message.returns += 1;
                let state = self.queues.get_mut(&queue);
                let limit = state.as_ref().and_then(|state| state.spec.delivery_limit);
                if limit.is_some_and(|limit| message.returns > limit) {
                    self.bury(now, &queue, message, death::DELIVERY_LIMIT);
                } else if let Some(state) = state {
                    state.line.insert(place, message);
                }
            }
        }
        self.pump_beside(now, consumer, &queue);
        true
    }

    /// Sends what has outlived its time where the queue sends the dead.
    fn expire(&mut self, now: Instant, queue: &str) {
        let Some(state) = self.queues.get_mut(queue) else { return };
        for message in state.line.take_expired(now) {
            self.bury(now, queue, message, death::EXPIRED);
        }
    }

    /// Sends a message where its queue sends the dead, if anywhere.
    fn bury(&mut self, now: Instant, queue: &str, mut message: Message, reason: &'static str) {
        let dead_letter = self.queues.get(queue).and_then(|state| state.spec.dead_letter.clone());
        let Some((exchange, key)) = dead_letter else { return };
        let Some(mut queues) = self.route(&exchange, &key) else { return };
        death::record(&mut message, queue, reason);
        queues.retain(|queue| !death::is_cycle(&message, queue));
        message.exchange = exchange.as_str().into();
        message.publishing.routing_key = key;
        (message.redelivered, message.returns) = (false, 0);
        self.spread(now, &queues, message);
    }

    /// Lets go of what has expired.
    pub(super) fn tick(&mut self, now: Instant) {
        self.due = None;
        let names: Vec<Arc<str>> = self.queues.keys().cloned().collect();
        for queue in &names {
            let Some(state) = self.queues.get(queue) else { continue };
            let unused = state.spec.expires.filter(|_| state.consumers.is_empty());
            if unused.is_some_and(|expires| state.unused_since + expires <= now) {
                self.delete_queue(queue);
            } else {
                self.pump(now, queue);
            }
        }
        // Only now: what expired may have gone on into a queue that was looked at before.
        let due = self.queues.values().flat_map(|state| {
            let unused = state.spec.expires.filter(|_| state.consumers.is_empty());
            state.line.next_expiry().into_iter().chain(unused.map(|expires| state.unused_since + expires))
        });
        self.due = due.min();
    }
}

/// What counts against a consumer's capacity.
fn held(consumers: &HashMap<u64, ConsumerState>, consumer: &ConsumerState) -> usize {
    let Some(share) = &consumer.share else { return consumer.held };
    let shares = |other: &&ConsumerState| other.share.as_ref().is_some_and(|other| other.is(share));
    consumers.values().filter(shares).map(|other| other.held).sum()
}

fn no_queue(queue: &str) -> TransportError {
    TransportError::NotFound { what: format!("queue {queue}"), reason: "no such queue".to_owned() }
}

#[cfg(test)]
mod tests;

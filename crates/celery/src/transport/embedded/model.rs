//! What a broker is, as a state machine: publishings and settlements in, deliveries out, time passed in. It follows
//! RabbitMQ's semantics as far as this crate uses them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::topology::topic_matches;
use super::super::{
    Consume, Envelope, ExchangeKind, Headers, PublishError, Publishing, Queue, QueueDepth, Settle, Topology,
    TransportError, Value,
};

/// How many deliveries a consumer without a prefetch may hold.
const UNLIMITED: usize = 65_536;

/// How many messages a queue holds; a publishing beyond is refused, as by `x-overflow: reject-publish`.
const QUEUE_MAX: usize = 4_000_000;

/// How many times a message may be dead-lettered; more is a cycle.
const DEATHS_MAX: u32 = 1_000;

/// The place of a message in its queue: the higher priority first, then as published.
type Place = (Reverse<u8>, u64);

#[derive(Debug, Clone)]
struct Message {
    exchange: Arc<str>,
    publishing: Publishing,
    redelivered: bool,
    returns: u32,
    deaths: u32,
    expires: Option<Instant>,
}

struct QueueState {
    spec: Queue,
    name: Arc<str>,
    messages: BTreeMap<Place, Message>,
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
            messages: BTreeMap::new(),
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
        Ok(QueueDepth { ready: count(state.messages.len()), consumers: count(state.consumers.len()) })
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
        let queues = self.route(&publishing.exchange, &publishing.routing_key);
        if queues.is_empty() && publishing.mandatory {
            let (exchange, routing_key) = (publishing.exchange.to_string(), publishing.routing_key);
            return Err(PublishError::Unroutable { exchange, routing_key });
        }
        let full =
            |queue: &Arc<str>| self.queues.get(queue).is_some_and(|state| state.messages.len() >= QUEUE_MAX);
        if queues.iter().any(full) {
            return Err(PublishError::Refused { routing_key: publishing.routing_key });
        }
        let exchange = Arc::clone(&publishing.exchange);
        let message =
            Message { exchange, publishing, redelivered: false, returns: 0, deaths: 0, expires: None };
        self.spread(now, &queues, message);
        Ok(())
    }

    fn route(&self, exchange: &str, key: &str) -> Vec<Arc<str>> {
        if exchange.is_empty() {
            return self.queues.get_key_value(key).map(|(name, _)| Arc::clone(name)).into_iter().collect();
        }
        let Some((kind, bindings)) = self.exchanges.get(exchange) else { return Vec::new() };
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
        queues
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
        state.messages.insert((Reverse(priority), serial), message);
        if let Some(expires) = expires {
            self.due_at(expires);
        }
        self.pump(now, queue);
    }

    /// Hands out what a queue has to whoever may have more.
    pub(super) fn pump(&mut self, now: Instant, queue: &str) {
        let Some(state) = self.queues.get_mut(queue) else { return };
        while !state.messages.is_empty() {
            let has_room =
                |id: &u64| self.consumers.get(id).is_some_and(|consumer| consumer.held < consumer.capacity);
            let Some(at) = state.consumers.iter().position(has_room) else { return };
            // The one that gets it goes to the end of the line.
            let Some(id) = state.consumers.remove(at) else { return };
            state.consumers.push_back(id);
            let Some((place, message)) = state.messages.pop_first() else { return };
            if message.expires.is_some_and(|expires| expires <= now) {
                state.messages.insert(place, message);
                self.due = Some(now);
                return;
            }
            self.serial += 1;
            let tag = self.serial;
            if let Some(consumer) = self.consumers.get_mut(&id) {
                consumer.held += 1;
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

    pub(super) fn consume(&mut self, spec: &Consume) -> Result<u64, TransportError> {
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
        self.consumers.insert(id, ConsumerState { queue, capacity, held: 0, exclusive: spec.exclusive });
        state.consumers.push_back(id);
        state.had_consumer = true;
        Ok(id)
    }

    /// A consumer wants nothing more; what it holds stays its own.
    pub(super) fn cancel(&mut self, id: u64) {
        let Some(consumer) = self.consumers.remove(&id) else { return };
        self.effects.push(Effect::End { consumer: id });
        let Some(state) = self.queues.get_mut(&consumer.queue) else { return };
        state.consumers.retain(|other| *other != id);
        state.unused_since = Instant::now();
        let (alone, spec) = (state.consumers.is_empty(), &state.spec);
        let expires = spec.expires.filter(|_| alone);
        if alone && (spec.auto_delete || spec.exclusive) {
            self.delete_queue(&consumer.queue);
        } else if let Some(expires) = expires {
            let at = state.unused_since + expires;
            self.due_at(at);
        }
    }

    /// A delivery that counts as settled when it is read was read.
    pub(super) fn taken(&mut self, now: Instant, consumer: u64, tag: u64) {
        self.unsettled.remove(&tag);
        let Some(state) = self.consumers.get_mut(&consumer) else { return };
        state.held = state.held.saturating_sub(1);
        let queue = Arc::clone(&state.queue);
        self.pump(now, &queue);
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
            Settle::DeadLetter => self.bury(now, &queue, message, "rejected"),
            Settle::Requeue => {
                message.redelivered = true;
                message.returns += 1;
                let state = self.queues.get_mut(&queue);
                let limit = state.as_ref().and_then(|state| state.spec.delivery_limit);
                if limit.is_some_and(|limit| message.returns > limit) {
                    self.bury(now, &queue, message, "delivery_limit");
                } else if let Some(state) = state {
                    state.messages.insert(place, message);
                }
            }
        }
        self.pump(now, &queue);
        true
    }

    /// Sends a message where its queue sends the dead, if anywhere.
    fn bury(&mut self, now: Instant, queue: &str, mut message: Message, reason: &str) {
        let Some((exchange, key)) = self.queues.get(queue).and_then(|state| state.spec.dead_letter.clone())
        else {
            return;
        };
        message.deaths += 1;
        if message.deaths > DEATHS_MAX {
            return;
        }
        let mut death = Headers::default();
        death.insert("queue", queue);
        death.insert("reason", reason);
        death.insert("count", i64::from(message.deaths));
        death.insert("exchange", &*message.exchange);
        let properties = &mut message.publishing.properties;
        properties.headers.insert("x-death", Value::List(vec![Value::Table(death)]));
        properties.expiration = None;
        message.exchange = exchange.as_str().into();
        message.publishing.routing_key.clone_from(&key);
        (message.redelivered, message.returns) = (false, 0);
        let queues = self.route(&exchange, &key);
        self.spread(now, &queues, message);
    }

    /// Lets go of what has expired.
    pub(super) fn tick(&mut self, now: Instant) {
        self.due = None;
        let mut dead = Vec::new();
        let mut unused = Vec::new();
        let mut due: Option<Instant> = None;
        let mut later = |at: Instant| due = Some(due.map_or(at, |due| due.min(at)));
        for state in self.queues.values_mut() {
            let expired: Vec<Place> = state
                .messages
                .iter()
                .filter_map(|(place, message)| {
                    let expires = message.expires?;
                    if expires > now {
                        later(expires);
                    }
                    (expires <= now).then_some(*place)
                })
                .collect();
            let gone = expired.into_iter().filter_map(|place| state.messages.remove(&place));
            dead.extend(gone.map(|message| (Arc::clone(&state.name), message)));
            if let Some(expires) = state.spec.expires.filter(|_| state.consumers.is_empty()) {
                let at = state.unused_since + expires;
                if at <= now {
                    unused.push(Arc::clone(&state.name));
                } else {
                    later(at);
                }
            }
        }
        if let Some(at) = due {
            self.due_at(at);
        }
        for (queue, message) in dead {
            self.bury(now, &queue, message, "expired");
        }
        for queue in unused {
            self.delete_queue(&queue);
        }
        let names: Vec<Arc<str>> = self.queues.keys().cloned().collect();
        for queue in names {
            self.pump(now, &queue);
        }
    }
}

fn no_queue(queue: &str) -> TransportError {
    TransportError::NotFound { what: format!("queue {queue}"), reason: "no such queue".to_owned() }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::super::{Binding, Exchange, Properties};
    use super::*;

    fn publishing(exchange: &str, key: &str, body: &str) -> Publishing {
        let body = Bytes::copy_from_slice(body.as_bytes());
        let properties = Properties::default();
        Publishing { exchange: exchange.into(), routing_key: key.into(), properties, body, mandatory: true }
    }

    fn spec(queue: &str, prefetch: u16) -> Consume {
        Consume { queue: queue.into(), prefetch, no_ack: false, exclusive: false, tag: "t".into() }
    }

    /// The model with a clock and a memory of what was delivered.
    struct World {
        model: Model,
        now: Instant,
    }

    impl World {
        fn new(topology: &Topology) -> Self {
            let mut world = Self { model: Model::default(), now: Instant::now() };
            world.model.declare(world.now, topology).unwrap();
            world
        }

        fn put(&mut self, key: &str, body: &str) {
            self.model.publish(self.now, publishing("", key, body)).unwrap();
        }

        fn consume(&mut self, queue: &str, prefetch: u16) -> u64 {
            let id = self.model.consume(&spec(queue, prefetch)).unwrap();
            self.model.pump(self.now, queue);
            id
        }

        /// What was delivered since: consumer, tag, body, redelivered.
        fn got(&mut self) -> Vec<(u64, u64, String, bool)> {
            let deliveries = self.model.effects().into_iter().filter_map(|effect| match effect {
                Effect::Deliver { consumer, tag, envelope } => {
                    let body = String::from_utf8(envelope.body.to_vec()).unwrap();
                    Some((consumer, tag, body, envelope.redelivered))
                }
                Effect::End { .. } => None,
            });
            deliveries.collect()
        }

        fn bodies(&mut self) -> Vec<String> {
            self.got().into_iter().map(|got| got.2).collect()
        }

        fn wait(&mut self, ms: u64) {
            self.now += Duration::from_millis(ms);
            self.model.tick(self.now);
        }
    }

    #[test]
    fn a_consumer_holds_no_more_than_its_prefetch_and_gets_the_next_when_it_settles() {
        let mut world = World::new(&Topology::default().queue(Queue::celery("q")));
        for body in ["a", "b", "c"] {
            world.put("q", body);
        }
        world.consume("q", 2);
        let got = world.got();
        assert_eq!(got.len(), 2);
        assert!(world.model.settle(world.now, got[0].1, Settle::Ack));
        assert_eq!(world.bodies(), ["c"]);
        assert!(!world.model.settle(world.now, got[0].1, Settle::Ack), "once only");
    }

    #[test]
    fn what_is_requeued_keeps_its_place_and_is_marked() {
        let mut world = World::new(&Topology::default().queue(Queue::celery("q")));
        world.put("q", "a");
        world.put("q", "b");
        world.consume("q", 1);
        let (_, tag, body, redelivered) = world.got().remove(0);
        assert_eq!((body.as_str(), redelivered), ("a", false));
        world.model.settle(world.now, tag, Settle::Requeue);
        let (_, _, body, redelivered) = world.got().remove(0);
        assert_eq!((body.as_str(), redelivered), ("a", true));
    }

    #[test]
    fn consumers_take_turns_and_one_that_leaves_keeps_what_it_holds() {
        let mut world = World::new(&Topology::default().queue(Queue::celery("q")));
        let first = world.consume("q", 2);
        let second = world.consume("q", 2);
        for body in ["a", "b", "c", "d"] {
            world.put("q", body);
        }
        let got = world.got();
        let turns: Vec<u64> = got.iter().map(|got| got.0).collect();
        assert_eq!(turns, [first, second, first, second]);
        world.model.cancel(first);
        world.put("q", "e");
        assert!(world.model.settle(world.now, got[0].1, Settle::Requeue));
        assert!(world.bodies().is_empty(), "the second one's hands are full");
        assert!(world.model.settle(world.now, got[1].1, Settle::Ack));
        assert_eq!(world.bodies(), ["a"]);
    }

    #[test]
    fn priorities_go_first_where_the_queue_has_them() {
        for (queue, expected) in
            [(Queue::celery("q").max_priority(5), ["y", "x"]), (Queue::celery("q"), ["x", "y"])]
        {
            let mut world = World::new(&Topology::default().queue(queue));
            for (body, priority) in [("x", 0), ("y", 9)] {
                let mut publishing = publishing("", "q", body);
                publishing.properties.priority = Some(priority);
                world.model.publish(world.now, publishing).unwrap();
            }
            world.consume("q", 9);
            assert_eq!(world.bodies(), expected);
        }
    }

    #[test]
    fn exchanges_route_and_what_nobody_takes_is_returned() {
        let topology = Topology::default()
            .exchange(Exchange::topic("t"))
            .exchange(Exchange::fanout("f"))
            .exchange(Exchange::direct("d"))
            .queue(Queue::celery("a"))
            .queue(Queue::celery("b"))
            .binding(Binding::new("t", "a", "#.run"))
            .binding(Binding::new("f", "a", ""))
            .binding(Binding::new("f", "b", ""))
            .binding(Binding::new("d", "b", "k"));
        let mut world = World::new(&topology);
        let table = [("t", "w.run", 1, 0), ("f", "x", 1, 1), ("d", "k", 0, 1), ("", "a", 1, 0)];
        for (exchange, key, in_a, in_b) in table {
            let before = (world.model.depth("a").unwrap().ready, world.model.depth("b").unwrap().ready);
            world.model.publish(world.now, publishing(exchange, key, "x")).unwrap();
            let after = (world.model.depth("a").unwrap().ready, world.model.depth("b").unwrap().ready);
            assert_eq!((after.0 - before.0, after.1 - before.1), (in_a, in_b), "{exchange} {key}");
        }
        for (exchange, key) in [("t", "w.other"), ("d", "x"), ("nowhere", "x"), ("", "c")] {
            let error = world.model.publish(world.now, publishing(exchange, key, "x")).unwrap_err();
            assert!(matches!(error, PublishError::Unroutable { .. }), "{exchange} {key}: {error}");
        }
    }

    #[test]
    fn what_expires_goes_where_the_queue_sends_the_dead() {
        let delay = Queue::celery("q.retry").ttl(Duration::from_millis(100)).dead_letter("", "q");
        let mut world = World::new(&Topology::default().queue(Queue::celery("q")).queue(delay));
        world.put("q.retry", "a");
        world.consume("q", 1);
        world.wait(99);
        assert!(world.bodies().is_empty());
        assert!(world.model.next_due().is_some());
        world.wait(1);
        assert_eq!(world.bodies(), ["a"]);
    }

    #[test]
    fn a_message_that_comes_back_too_often_is_dead_lettered() {
        let queue = Queue::quorum("q", 2).dead_letter("", "dead");
        let mut world = World::new(&Topology::default().queue(queue).queue(Queue::celery("dead")));
        world.put("q", "a");
        world.consume("q", 1);
        for _ in 0..3 {
            let tag = world.got().remove(0).1;
            world.model.settle(world.now, tag, Settle::Requeue);
        }
        assert!(world.got().is_empty());
        assert_eq!(world.model.depth("dead").unwrap().ready, 1);
    }

    #[test]
    fn queues_go_with_their_last_consumer_or_their_time() {
        let topology = Topology::default()
            .queue(Queue::transient("own").exclusive().auto_delete())
            .queue(Queue::celery("brief").expires(Duration::from_millis(50)));
        let mut world = World::new(&topology);
        let id = world.consume("own", 1);
        world.model.cancel(id);
        assert!(world.model.depth("own").unwrap_err().is_no_queue());
        world.wait(49);
        assert!(world.model.depth("brief").is_ok());
        world.wait(1);
        assert!(world.model.depth("brief").unwrap_err().is_no_queue());
    }

    #[test]
    fn a_queue_is_declared_the_same_way_each_time() {
        let mut world = World::new(&Topology::default().queue(Queue::celery("q")));
        let other = Topology::default().queue(Queue::celery("q").max_priority(3));
        let error = world.model.declare(world.now, &other).unwrap_err();
        assert!(matches!(error, TransportError::Mismatch { .. }));
    }

    #[test]
    fn exclusive_consumers_are_alone() {
        let mut world = World::new(&Topology::default().queue(Queue::celery("q")));
        world.consume("q", 1);
        let exclusive = Consume { exclusive: true, ..spec("q", 1) };
        assert!(world.model.consume(&exclusive).unwrap_err().is_access_refused());
    }
}

//! What the model does, as tables of events.

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
        let id = self.model.consume(&spec(queue, prefetch), None).unwrap();
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
fn queues_that_share_a_prefetch_of_one_take_turns() {
    let queues = ["a", "b", "c"];
    let mut world =
        World::new(&queues.iter().fold(Topology::default(), |all, name| all.queue(Queue::celery(name))));
    let share = Share::default();
    for queue in queues {
        for _ in 0..3 {
            world.put(queue, queue);
        }
        world.model.consume(&spec(queue, 1), Some(&share)).unwrap();
        world.model.pump(world.now, queue);
    }
    let mut turns = String::new();
    while let [(_, tag, queue, _)] = &world.got()[..] {
        turns.push_str(queue);
        assert!(world.model.settle(world.now, *tag, Settle::Ack));
    }
    assert_eq!(turns, "abcabcabc");
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
    world.model.cancel(world.now, first);
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
    for (exchange, key) in [("t", "w.other"), ("d", "x"), ("", "c")] {
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
    world.model.cancel(world.now, id);
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
    assert!(world.model.consume(&exclusive, None).unwrap_err().is_access_refused());
}

//! What every transport does, each sentence as one test, run over both of them: on the embedded broker, and on a RabbitMQ
//! of the tests' own.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use regatta_testbed::{shared_node, unique};

use super::{
    Binding, Broker, BrokerUrl, ConnectOptions, Consume, Consumer, Delivery, Exchange, Headers, Properties,
    PublishError, Publishing, Queue, Settle, Share, Topology, TransportError, Value,
};

/// Generous: nothing here takes a tenth of it on an idle machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// Runs an async test on a runtime of one thread, within the deadline.
pub(super) fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ended = runtime.block_on(async { tokio::time::timeout(DEADLINE, test).await });
    runtime.shutdown_background();
    ended.expect("the test takes longer than its deadline")
}

/// Runs each of the named tests on each transport.
macro_rules! on_both {
    ($($test:ident),+ $(,)?) => {
        mod embedded {
            $(#[test] fn $test() { super::run(super::$test(super::Broker::embedded())); })+
        }
        mod rabbitmq {
            $(#[test] fn $test() { super::run(async { super::$test(super::rabbitmq_broker().await).await }); })+
        }
    };
}

on_both!(
    a_message_arrives_as_it_was_sent_and_is_gone_once_acknowledged,
    a_consumer_holds_no_more_than_its_prefetch,
    what_is_given_back_keeps_its_place_and_is_marked,
    what_is_dropped_unsettled_goes_back,
    what_counts_as_settled_when_handed_out_does_not_come_again,
    a_cancelled_consumer_ends_and_what_it_holds_stays_its_own,
    the_higher_priority_goes_first,
    exchanges_route_by_their_kind,
    what_no_queue_takes_is_an_error_only_when_it_must_arrive,
    an_exchange_that_is_not_there_is_an_error,
    what_expires_goes_where_the_queue_sends_the_dead,
    what_goes_round_without_a_consumer_ends,
    what_is_sent_away_tells_of_its_past,
    what_comes_back_too_often_is_sent_away,
    a_queue_goes_with_its_last_consumer,
    a_queue_that_is_not_there_is_an_error_but_its_deletion_is_none,
    a_queue_is_declared_the_same_way_each_time,
    an_exclusive_consumer_is_alone,
    a_closed_broker_ends_its_consumers,
    consumers_that_share_a_prefetch_hold_no_more_between_them,
);

async fn rabbitmq_broker() -> Broker {
    let url: BrokerUrl = shared_node().url().parse().unwrap();
    Broker::connect(&url, ConnectOptions::default()).await.unwrap()
}

async fn declared(broker: &Broker, queue: Queue) -> String {
    let name = queue.name().to_owned();
    broker.declare(&Topology::default().queue(queue)).await.unwrap();
    name
}

fn message(exchange: &str, key: &str, body: &str) -> Publishing {
    let body = Bytes::copy_from_slice(body.as_bytes());
    let properties = Properties::json(1);
    Publishing { exchange: exchange.into(), routing_key: key.into(), properties, body, mandatory: true }
}

async fn put(broker: &Broker, queue: &str, bodies: &[&str]) {
    for body in bodies {
        broker.publish(message("", queue, body)).await.unwrap();
    }
}

fn spec(queue: &str, prefetch: u16) -> Consume {
    Consume { queue: queue.into(), prefetch, no_ack: false, exclusive: false, tag: "contract".into() }
}

async fn next(consumer: &mut Consumer) -> Delivery {
    consumer.next().await.expect("a delivery")
}

fn body(delivery: &Delivery) -> String {
    String::from_utf8(delivery.envelope.body.to_vec()).unwrap()
}

/// The next delivery's body, acknowledged.
async fn take(consumer: &mut Consumer) -> String {
    let delivery = next(consumer).await;
    let text = body(&delivery);
    delivery.split().1.settle(Settle::Ack).await.unwrap();
    text
}

/// Whether nothing comes. A message that would come wrongly is overtaken by nothing: one that is sent after it, and
/// arrives by another queue, shows that the broker had its time.
async fn nothing_comes(broker: &Broker, consumer: &mut Consumer) -> bool {
    let marker = declared(broker, Queue::celery(&unique("marker")).auto_delete()).await;
    let mut markers = broker.consume(spec(&marker, 1)).await.unwrap();
    put(broker, &marker, &["marker"]).await;
    tokio::select! {
        biased;
        came = consumer.next() => came.is_none(),
        _marker = take(&mut markers) => true,
    }
}

/// Waits until a queue has so many messages that nobody holds.
async fn until_ready(broker: &Broker, queue: &str, ready: u32) {
    while broker.declare_passive(queue).await.unwrap().ready != ready {
        tokio::task::yield_now().await;
    }
}

async fn a_message_arrives_as_it_was_sent_and_is_gone_once_acknowledged(broker: Broker) {
    let queue = declared(&broker, Queue::celery(&unique("q"))).await;
    let mut sent = message("", &queue, "\u{e9}\0[]");
    let table: Headers = [("n".to_owned(), Value::Int(1))].into_iter().collect();
    let values = [
        ("null", Value::Null),
        ("bool", true.into()),
        ("small", 7.into()),
        ("large", i64::MAX.into()),
        ("double", 0.5.into()),
        ("text", "\u{2603}".into()),
        ("bytes", Value::Bytes(vec![0, 255])),
        ("time", Value::Timestamp(1_700_000_000)),
        ("decimal", Value::Decimal { scale: 2, value: 314 }),
        ("list", Value::List(vec![Value::Null, "x".into(), Value::List(vec![])])),
        ("table", Value::Table(table)),
    ];
    for (name, value) in values {
        sent.properties.headers.insert(name, value);
    }
    sent.properties.correlation_id = Some("c".into());
    sent.properties.reply_to = Some("r".into());
    sent.properties.message_id = Some("m".into());
    sent.properties.timestamp = Some(1_700_000_000);
    sent.properties.kind = Some("k".into());
    sent.properties.app_id = Some("a".into());
    broker.publish(sent.clone()).await.unwrap();
    let mut consumer = broker.consume(spec(&queue, 1)).await.unwrap();
    let (got, settler) = next(&mut consumer).await.split();
    assert_eq!((&got.properties, &got.body), (&sent.properties, &sent.body));
    assert_eq!((&*got.exchange, &*got.routing_key, &*got.queue), ("", &*queue, &*queue));
    assert!(!got.redelivered);
    settler.settle(Settle::Ack).await.unwrap();
    drop(consumer);
    until_ready(&broker, &queue, 0).await;
    let mut again = broker.consume(spec(&queue, 1)).await.unwrap();
    assert!(nothing_comes(&broker, &mut again).await);
}

async fn a_consumer_holds_no_more_than_its_prefetch(broker: Broker) {
    let queue = declared(&broker, Queue::celery(&unique("q"))).await;
    put(&broker, &queue, &["a", "b", "c"]).await;
    let mut consumer = broker.consume(spec(&queue, 2)).await.unwrap();
    let (first, _second) = (next(&mut consumer).await, next(&mut consumer).await);
    assert!(nothing_comes(&broker, &mut consumer).await);
    assert_eq!(broker.declare_passive(&queue).await.unwrap().ready, 1);
    first.split().1.settle(Settle::Ack).await.unwrap();
    assert_eq!(body(&next(&mut consumer).await), "c");
}

async fn what_is_given_back_keeps_its_place_and_is_marked(broker: Broker) {
    let queue = declared(&broker, Queue::celery(&unique("q"))).await;
    put(&broker, &queue, &["a", "b"]).await;
    let mut consumer = broker.consume(spec(&queue, 1)).await.unwrap();
    let first = next(&mut consumer).await;
    assert_eq!((body(&first), first.envelope.redelivered), ("a".into(), false));
    first.split().1.settle(Settle::Requeue).await.unwrap();
    let again = next(&mut consumer).await;
    assert_eq!((body(&again), again.envelope.redelivered), ("a".into(), true));
}

async fn what_is_dropped_unsettled_goes_back(broker: Broker) {
    let queue = declared(&broker, Queue::celery(&unique("q"))).await;
    put(&broker, &queue, &["read", "unread"]).await;
    let mut consumer = broker.consume(spec(&queue, 2)).await.unwrap();
    drop(next(&mut consumer).await);
    consumer.cancel();
    while let Some(delivery) = consumer.next().await {
        drop(delivery);
    }
    drop(consumer);
    until_ready(&broker, &queue, 2).await;
}

async fn what_counts_as_settled_when_handed_out_does_not_come_again(broker: Broker) {
    let queue = declared(&broker, Queue::celery(&unique("q"))).await;
    put(&broker, &queue, &["a", "b"]).await;
    let mut consumer = broker.consume(Consume { no_ack: true, ..spec(&queue, 1) }).await.unwrap();
    let both = (body(&next(&mut consumer).await), body(&next(&mut consumer).await));
    assert_eq!(both, ("a".into(), "b".into()));
    drop(consumer);
    let mut again = broker.consume(spec(&queue, 1)).await.unwrap();
    assert!(nothing_comes(&broker, &mut again).await);
}

async fn a_cancelled_consumer_ends_and_what_it_holds_stays_its_own(broker: Broker) {
    let queue = declared(&broker, Queue::celery(&unique("q"))).await;
    put(&broker, &queue, &["a", "b"]).await;
    let mut consumer = broker.consume(spec(&queue, 1)).await.unwrap();
    let held = next(&mut consumer).await;
    consumer.cancel();
    assert!(consumer.next().await.is_none());
    assert_eq!(broker.declare_passive(&queue).await.unwrap().ready, 1, "only what nobody holds");
    held.split().1.settle(Settle::Ack).await.unwrap();
    let mut other = broker.consume(spec(&queue, 2)).await.unwrap();
    assert_eq!(take(&mut other).await, "b");
    assert!(nothing_comes(&broker, &mut other).await);
}

async fn the_higher_priority_goes_first(broker: Broker) {
    let queue = declared(&broker, Queue::celery(&unique("q")).max_priority(5)).await;
    // What is above the queue's highest counts as that.
    for (text, priority) in [("none", None), ("low", Some(1)), ("beyond", Some(200)), ("high", Some(5))] {
        let mut sent = message("", &queue, text);
        sent.properties.priority = priority;
        broker.publish(sent).await.unwrap();
    }
    let mut consumer = broker.consume(spec(&queue, 1)).await.unwrap();
    for expected in ["beyond", "high", "low", "none"] {
        assert_eq!(take(&mut consumer).await, expected);
    }
}

async fn exchanges_route_by_their_kind(broker: Broker) {
    let (topic, fanout, direct) = (unique("topic"), unique("fanout"), unique("direct"));
    let (a, b) = (unique("a"), unique("b"));
    let topology = Topology::default()
        .exchange(Exchange::topic(&topic))
        .exchange(Exchange::fanout(&fanout))
        .exchange(Exchange::direct(&direct))
        .queue(Queue::celery(&a))
        .queue(Queue::celery(&b))
        .binding(Binding::new(&topic, &a, "#.run"))
        .binding(Binding::new(&topic, &b, "*.run"))
        .binding(Binding::new(&fanout, &a, ""))
        .binding(Binding::new(&fanout, &b, ""))
        .binding(Binding::new(&direct, &b, "k"));
    broker.declare(&topology).await.unwrap();
    let table = [
        (&topic, "v.w.run", &[&a][..]),
        (&topic, "w.run", &[&a, &b]),
        (&topic, "run", &[&a]),
        (&fanout, "x", &[&a, &b]),
        (&direct, "k", &[&b]),
    ];
    let mut in_a = broker.consume(spec(&a, 9)).await.unwrap();
    let mut in_b = broker.consume(spec(&b, 9)).await.unwrap();
    for (exchange, key, queues) in table {
        let text = format!("{exchange} {key}");
        broker.publish(message(exchange, key, &text)).await.unwrap();
        for queue in queues {
            let consumer = if **queue == a { &mut in_a } else { &mut in_b };
            assert_eq!(take(consumer).await, text);
        }
    }
    assert!(nothing_comes(&broker, &mut in_a).await);
    assert!(nothing_comes(&broker, &mut in_b).await);
}

async fn what_no_queue_takes_is_an_error_only_when_it_must_arrive(broker: Broker) {
    let direct = unique("direct");
    broker.declare(&Topology::default().exchange(Exchange::direct(&direct))).await.unwrap();
    for exchange in ["", &direct] {
        let sent = message(exchange, "nowhere", "x");
        let error = broker.publish(sent.clone()).await.unwrap_err();
        assert!(matches!(error, PublishError::Unroutable { .. }), "{exchange:?}: {error}");
        assert!(!error.may_have_arrived());
        broker.publish(Publishing { mandatory: false, ..sent }).await.unwrap();
    }
}

async fn an_exchange_that_is_not_there_is_an_error(broker: Broker) {
    let exchange = unique("nowhere");
    for mandatory in [true, false] {
        let error =
            broker.publish(Publishing { mandatory, ..message(&exchange, "k", "x") }).await.unwrap_err();
        assert!(matches!(&error, PublishError::Transport(error) if error.is_no_queue()), "{error}");
        assert!(!error.may_have_arrived() && error.to_string().contains(&exchange), "{error}");
    }
}

async fn what_expires_goes_where_the_queue_sends_the_dead(broker: Broker) {
    let queue = declared(&broker, Queue::celery(&unique("q"))).await;
    let brief = Queue::celery(&unique("brief")).ttl(Duration::from_millis(20)).dead_letter("", &queue);
    let long = Queue::celery(&unique("long")).dead_letter("", &queue);
    let (brief, long) = (declared(&broker, brief).await, declared(&broker, long).await);
    let mut consumer = broker.consume(spec(&queue, 1)).await.unwrap();
    put(&broker, &brief, &["by its queue"]).await;
    assert_eq!(take(&mut consumer).await, "by its queue");
    let mut own = message("", &long, "by its own");
    own.properties.expiration = Some("20".into());
    broker.publish(own).await.unwrap();
    let (got, settler) = next(&mut consumer).await.split();
    assert_eq!(got.body, "by its own");
    assert_eq!(got.properties.expiration, None, "it would expire again");
    assert_eq!(past(&got.properties.headers), [("expired".into(), long, 1)]);
    settler.settle(Settle::Ack).await.unwrap();
}

async fn what_goes_round_without_a_consumer_ends(broker: Broker) {
    let (one, other) = (unique("one"), unique("other"));
    let brief = |name, to| Queue::celery(name).ttl(Duration::from_millis(1)).dead_letter("", to);
    declared(&broker, brief(&one, &other)).await;
    declared(&broker, brief(&other, &one)).await;
    put(&broker, &one, &["x"]).await;
    until_ready(&broker, &one, 0).await;
    until_ready(&broker, &other, 0).await;
}

/// Reason, queue and count of each death, the newest first.
fn past(headers: &Headers) -> Vec<(String, String, i64)> {
    let Some(Value::List(deaths)) = headers.get("x-death") else { return Vec::new() };
    let death = |death: &Value| {
        let Value::Table(death) = death else { panic!("not a table: {death:?}") };
        let text = |name| death.get(name).and_then(Value::as_str).unwrap().to_owned();
        (text("reason"), text("queue"), death.get("count").and_then(Value::as_i64).unwrap())
    };
    deaths.iter().map(death).collect()
}

async fn what_is_sent_away_tells_of_its_past(broker: Broker) {
    let (queue, wait) = (unique("q"), unique("wait"));
    declared(&broker, Queue::celery(&queue).dead_letter("", &wait)).await;
    declared(&broker, Queue::celery(&wait).ttl(Duration::from_millis(1)).dead_letter("", &queue)).await;
    put(&broker, &queue, &["x"]).await;
    let mut consumer = broker.consume(spec(&queue, 1)).await.unwrap();
    for round in 0..3 {
        let (got, settler) = next(&mut consumer).await.split();
        let expected =
            [("expired".to_owned(), wait.clone(), round), ("rejected".to_owned(), queue.clone(), round)];
        assert_eq!(past(&got.properties.headers), if round == 0 { &[][..] } else { &expected });
        let first = got.properties.headers.get("x-first-death-queue").and_then(Value::as_str);
        assert_eq!(first, (round > 0).then_some(&*queue));
        settler.settle(Settle::DeadLetter).await.unwrap();
    }
}

async fn what_comes_back_too_often_is_sent_away(broker: Broker) {
    let dead = declared(&broker, Queue::celery(&unique("dead"))).await;
    let queue = declared(&broker, Queue::quorum(&unique("q"), 2).dead_letter("", &dead)).await;
    put(&broker, &queue, &["x"]).await;
    let mut consumer = broker.consume(spec(&queue, 1)).await.unwrap();
    for _ in 0..3 {
        next(&mut consumer).await.split().1.settle(Settle::Requeue).await.unwrap();
    }
    let mut consumer = broker.consume(spec(&dead, 1)).await.unwrap();
    let (got, settler) = next(&mut consumer).await.split();
    assert_eq!(past(&got.properties.headers), [("delivery_limit".into(), queue, 1)]);
    settler.settle(Settle::Ack).await.unwrap();
}

async fn a_queue_goes_with_its_last_consumer(broker: Broker) {
    let queue = declared(&broker, Queue::transient(&unique("own")).auto_delete()).await;
    let first = broker.consume(spec(&queue, 1)).await.unwrap();
    let mut second = broker.consume(spec(&queue, 1)).await.unwrap();
    drop(first);
    put(&broker, &queue, &["x"]).await;
    assert_eq!(take(&mut second).await, "x");
    second.cancel();
    assert!(second.next().await.is_none());
    while broker.declare_passive(&queue).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

async fn a_queue_that_is_not_there_is_an_error_but_its_deletion_is_none(broker: Broker) {
    let queue = unique("nowhere");
    assert!(broker.declare_passive(&queue).await.unwrap_err().is_no_queue());
    let error = broker.consume(spec(&queue, 1)).await.unwrap_err();
    assert!(error.is_no_queue() && error.to_string().contains(&queue), "{error}");
    broker.delete_queue(&queue).await.unwrap();
}

async fn a_queue_is_declared_the_same_way_each_time(broker: Broker) {
    let queue = declared(&broker, Queue::celery(&unique("q"))).await;
    declared(&broker, Queue::celery(&queue)).await;
    let other = Topology::default().queue(Queue::celery(&queue).max_priority(3));
    let error = broker.declare(&other).await.unwrap_err();
    assert!(
        matches!(error, TransportError::Mismatch { .. }) && error.to_string().contains(&queue),
        "{error}"
    );
}

async fn an_exclusive_consumer_is_alone(broker: Broker) {
    let queue = declared(&broker, Queue::celery(&unique("q"))).await;
    let exclusive = Consume { exclusive: true, ..spec(&queue, 1) };
    let _alone = broker.consume(exclusive.clone()).await.unwrap();
    for refused in [exclusive, spec(&queue, 1)] {
        let error = broker.consume(refused).await.unwrap_err();
        assert!(error.is_access_refused() && error.to_string().contains(&queue), "{error}");
    }
}

async fn a_closed_broker_ends_its_consumers(broker: Broker) {
    let queue = declared(&broker, Queue::celery(&unique("q"))).await;
    put(&broker, &queue, &["x"]).await;
    let mut reads = broker.consume(spec(&queue, 1)).await.unwrap();
    let held = next(&mut reads).await;
    let mut waits = broker.consume(spec(&queue, 1)).await.unwrap();
    let (ended, ()) = tokio::join!(waits.next(), broker.close());
    assert!(ended.is_none() && reads.next().await.is_none());
    assert!(waits.next().await.is_none(), "whoever asks once more gets the same answer");
    drop(held);
}

async fn consumers_that_share_a_prefetch_hold_no_more_between_them(broker: Broker) {
    let (a, b) = (unique("a"), unique("b"));
    for queue in [&a, &b] {
        declared(&broker, Queue::celery(queue)).await;
        put(&broker, queue, &["1", "2", "3"]).await;
    }
    let share = Share::default();
    let mut in_a = broker.consume_sharing(&share, spec(&a, 2)).await.unwrap();
    let mut in_b = broker.consume_sharing(&share, spec(&b, 2)).await.unwrap();
    let mut held: Vec<Delivery> = vec![next(&mut in_a).await, next(&mut in_a).await];
    assert!(nothing_comes(&broker, &mut in_b).await, "two are held");
    let mut came = Vec::new();
    while came.len() < 6 {
        let (envelope, settler) = held.remove(0).split();
        came.push((envelope.queue.to_string(), envelope.body));
        settler.settle(Settle::Ack).await.unwrap();
        if came.len() < 5 {
            held.push(tokio::select! {
                from_a = in_a.next() => from_a.unwrap(),
                from_b = in_b.next() => from_b.unwrap(),
            });
        }
    }
    came.sort();
    let all = [&a, &b].into_iter().flat_map(|queue| ["1", "2", "3"].map(|body| (queue.clone(), body.into())));
    assert_eq!(came, all.collect::<Vec<_>>());
}

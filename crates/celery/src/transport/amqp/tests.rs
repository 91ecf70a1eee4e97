//! What only a broker over a network can do to us: refuse, close, block, freeze, die.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use regatta_testbed::{Node, shared_node, unique};

use super::super::contract::run;
use super::super::{
    Broker, BrokerUrl, ConnectOptions, Consume, Exchange, Incoming, Link, Properties, PublishError,
    Publishing, Queue, Settle, SettleError, Share, Topology, TransportError,
};

/// A limit for answers that never come: short, since a test waits for it to pass.
const IMPATIENT: Duration = Duration::from_secs(2);

async fn connect(url: &str, options: ConnectOptions) -> Result<Broker, TransportError> {
    Broker::connect(&url.parse::<BrokerUrl>().unwrap(), options).await
}

fn impatient() -> ConnectOptions {
    ConnectOptions { timeout: IMPATIENT, ..ConnectOptions::default() }
}

fn message(exchange: &str, key: &str, size: usize) -> Publishing {
    let (body, properties) = (Bytes::from(vec![b'x'; size]), Properties::json(2));
    Publishing { exchange: exchange.into(), routing_key: key.into(), properties, body, mandatory: true }
}

fn spec(queue: &str) -> Consume {
    Consume { queue: queue.into(), prefetch: 1, no_ack: false, exclusive: false, tag: "t".into() }
}

async fn declare(broker: &Broker, queue: Queue) {
    broker.declare(&Topology::default().queue(queue)).await.unwrap();
}

async fn until_generation(broker: &Broker, wanted: u64) {
    let mut link = broker.link();
    let up = |link: &Link| matches!(link, Link::Up { generation } if *generation >= wanted);
    link.wait_for(up).await.unwrap();
}

#[test]
fn connections_that_are_lost_at_once_are_tried_ever_more_seldom() {
    let mut backoff = super::Backoff::new();
    let mut waits = |lived: u64| {
        backoff.lost_after(Duration::from_secs(lived));
        backoff.next().as_millis()
    };
    assert_eq!([0; 8].map(&mut waits), [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    assert_eq!([9, 60, 0].map(&mut waits), [5000, 100, 200]);
}

#[test]
fn a_refused_login_says_so_and_not_the_password() {
    run(async {
        let node = shared_node();
        let url = node.url_of("guest", "wr0ng-secret");
        let error = connect(&url, ConnectOptions::default()).await.unwrap_err();
        let words = format!("{error} {error:?}");
        assert!(matches!(error, TransportError::LoginRefused { .. }), "{error}");
        assert!(words.contains("guest") && !words.contains("wr0ng-secret"), "{words}");
    });
}

#[test]
fn a_virtual_host_that_is_not_there_or_not_ours_is_named() {
    run(async {
        let node = shared_node();
        let user = unique("nobody");
        node.ctl(&["add_user", &user, "pass"]);
        for (url, expected) in
            [(node.url().replace("%2f", "nowhere"), "nowhere"), (node.url_of(&user, "pass"), &*user)]
        {
            let error = connect(&url, ConnectOptions::default()).await.unwrap_err();
            assert!(error.is_access_refused(), "{error}");
            assert!(error.to_string().contains(expected), "{error}");
        }
    });
}

#[test]
fn a_port_where_nobody_listens_is_unreachable() {
    run(async {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let error = connect(&format!("amqp://127.0.0.1:{free}"), impatient()).await.unwrap_err();
        assert!(matches!(error, TransportError::Unreachable { .. }), "{error}");
        assert!(error.to_string().contains(&free.to_string()), "{error}");
    });
}

#[test]
fn tls_is_trusted_by_the_authority_that_is_given_and_by_no_other() {
    run(async {
        let node = Node::start_with_tls();
        let (url, ca) = node.tls();
        let with = |ca_file| ConnectOptions { ca_file, ..impatient() };
        let broker = connect(&url, with(Some(ca))).await.unwrap();
        let queue = unique("q");
        declare(&broker, Queue::celery(&queue)).await;
        broker.publish(message("", &queue, 100_000)).await.unwrap();
        let mut consumer = broker.consume(spec(&queue)).await.unwrap();
        let (got, settler) = consumer.next().await.unwrap().split();
        assert_eq!(got.body.len(), 100_000);
        settler.settle(Settle::Ack).await.unwrap();

        let error = connect(&url, with(None)).await.unwrap_err();
        assert!(error.to_string().contains("certificate"), "{error}");
        let other = Node::start_with_tls();
        let error = connect(&url, with(Some(other.tls().1))).await.unwrap_err();
        assert!(error.to_string().contains("certificate"), "{error}");
        let missing = std::path::PathBuf::from("/nowhere/ca.pem");
        let error = connect(&url, with(Some(missing))).await.unwrap_err();
        assert!(error.to_string().contains("/nowhere/ca.pem"), "{error}");
    });
}

#[test]
fn a_refused_publishing_takes_no_other_along() {
    run(async {
        let node = shared_node();
        let (user, queue) = (unique("writer"), unique("q"));
        let (closed, open) = (unique("closed"), unique("open"));
        node.add_user(&user, "pass", "", &format!("^(amq\\.default|{open})$"), "");
        let owner = connect(&node.url(), ConnectOptions::default()).await.unwrap();
        let exchanges =
            Topology::default().exchange(Exchange::fanout(&closed)).exchange(Exchange::fanout(&open));
        owner.declare(&exchanges).await.unwrap();
        declare(&owner, Queue::celery(&queue)).await;
        let broker = connect(&node.url_of(&user, "pass"), ConnectOptions::default()).await.unwrap();
        for _ in 0..20 {
            let (good, refused, unknown, open) = tokio::join!(
                futures::future::join_all((0..50).map(|_| broker.publish(message("", &queue, 10)))),
                broker.publish(message(&closed, "k", 10)),
                broker.publish(message("nowhere", "k", 10)),
                broker.publish(Publishing { mandatory: false, ..message(&open, "k", 10) }),
            );
            assert!(good.iter().all(Result::is_ok), "{good:?}");
            open.unwrap();
            for (error, names) in [(refused.unwrap_err(), &closed), (unknown.unwrap_err(), &"nowhere".into())]
            {
                assert!(matches!(&error, PublishError::Transport(error) if error.is_refusal()), "{error}");
                assert!(!error.may_have_arrived() && error.to_string().contains(names), "{error}");
            }
        }
        assert_eq!(
            broker.link().borrow().clone(),
            Link::Up { generation: 1 },
            "no connection was lost for it"
        );
    });
}

#[test]
fn a_publishing_that_is_refused_for_what_it_is_ends_alone() {
    run(async {
        let broker = connect(&shared_node().url(), ConnectOptions::default()).await.unwrap();
        let queue = unique("q");
        declare(&broker, Queue::celery(&queue)).await;
        let with = |change: fn(&mut Properties)| {
            let mut sent = message("", &queue, 10);
            change(&mut sent.properties);
            sent
        };
        let refused = [
            (with(|properties| properties.user_id = Some("somebody".into())), "somebody"),
            (with(|properties| properties.expiration = Some("soon".into())), "soon"),
            // Nothing but that it is alone tells whose refusal this is.
            (with(|properties| drop(properties.headers.insert("CC", 7_i64))), "CC"),
        ];
        broker.publish(message("", &queue, 10)).await.unwrap();
        for (sent, words) in refused {
            let beside = if words == "CC" { 0 } else { 50 };
            let (error, others) = tokio::join!(
                broker.publish(sent),
                futures::future::join_all((0..beside).map(|_| broker.publish(message("", &queue, 10)))),
            );
            let error = error.unwrap_err();
            assert!(matches!(&error, PublishError::Transport(error) if !error.is_passing()), "{error:?}");
            assert!(!error.may_have_arrived() && error.to_string().contains(words), "{error}");
            for other in others {
                let lost = other.err();
                assert!(lost.as_ref().is_none_or(PublishError::may_have_arrived), "{lost:?}");
            }
        }
    });
}

#[test]
fn an_exchange_that_goes_away_leaves_it_open_whether_its_last_messages_arrived() {
    run(async {
        let node = shared_node();
        let broker = connect(&node.url(), ConnectOptions::default()).await.unwrap();
        let (exchange, queue) = (unique("x"), unique("q"));
        let bound = Topology::default()
            .exchange(Exchange::direct(&exchange))
            .queue(Queue::celery(&queue))
            .binding(super::super::Binding::new(&exchange, &queue, "k"));
        broker.declare(&bound).await.unwrap();
        broker.publish(message(&exchange, "k", 1)).await.unwrap();
        node.ctl(&["eval", &format!(
            "rabbit_exchange:delete(rabbit_misc:r(<<\"/\">>, exchange, <<\"{exchange}\">>), false, <<\"t\">>)."
        )]);
        let error = broker.publish(message(&exchange, "k", 1)).await.unwrap_err();
        assert!(error.may_have_arrived(), "the channel has carried messages: {error}");
        let error = broker.publish(message(&exchange, "k", 1)).await.unwrap_err();
        assert!(!error.may_have_arrived(), "a new channel carried nothing else: {error}");
    });
}

#[test]
fn a_name_that_amqp_cannot_carry_is_refused_before_it_leaves() {
    run(async {
        let broker = connect(&shared_node().url(), ConnectOptions::default()).await.unwrap();
        let long = "q".repeat(300);
        let errors = [
            broker.publish(message("", &long, 1)).await.unwrap_err().to_string(),
            broker.declare_passive(&long).await.unwrap_err().to_string(),
            broker.declare(&Topology::default().queue(Queue::celery(&long))).await.unwrap_err().to_string(),
            broker.consume(spec(&long)).await.unwrap_err().to_string(),
        ];
        for error in errors {
            assert!(error.contains("255"), "{error}");
        }
    });
}

#[test]
fn a_broker_that_blocks_publishers_is_not_waited_for_for_ever() {
    run(async {
        let node = Node::start();
        let broker = connect(&node.url(), impatient()).await.unwrap();
        let queue = unique("q");
        declare(&broker, Queue::celery(&queue)).await;
        broker.publish(message("", &queue, 1)).await.unwrap();
        node.ctl(&["set_vm_memory_high_watermark", "absolute", "1"]);
        // The broker says that it blocks when it next reads from a publisher.
        let error = loop {
            match broker.publish(message("", &queue, 1)).await {
                Ok(()) => {}
                Err(error) => break error,
            }
        };
        assert!(error.may_have_arrived() && error.to_string().contains("it blocks publishers"), "{error}");
        let mut consumer = broker.consume(spec(&queue)).await.unwrap();
        let settled = consumer.next().await.unwrap().split().1.settle(Settle::Ack).await;
        assert_eq!(settled, Ok(()), "the other connection still works");
        node.ctl(&["set_vm_memory_high_watermark", "0.4"]);
        while broker.publish(message("", &queue, 1)).await.is_err() {}
    });
}

#[test]
fn a_frozen_broker_is_noticed_and_found_again() {
    run(async {
        let node = Node::start();
        let options = ConnectOptions { heartbeat: Duration::from_secs(1), ..impatient() };
        let broker = connect(&node.url(), options).await.unwrap();
        let queue = unique("q");
        declare(&broker, Queue::celery(&queue)).await;
        node.freeze();
        let error = broker.publish(message("", &queue, 1)).await.unwrap_err();
        assert!(error.may_have_arrived(), "{error}");
        broker.link().wait_for(|link| matches!(link, Link::Down { .. })).await.unwrap();
        node.thaw();
        until_generation(&broker, 2).await;
        broker.publish(message("", &queue, 1)).await.unwrap();
    });
}

#[test]
fn a_killed_broker_takes_claims_along_and_gives_the_messages_again() {
    run(async {
        let mut node = Node::start();
        let broker = connect(&node.url(), impatient()).await.unwrap();
        let queue = unique("q");
        declare(&broker, Queue::celery(&queue)).await;
        for size in 1..=5 {
            broker.publish(message("", &queue, size)).await.unwrap();
        }
        let mut consumer = broker.consume(Consume { prefetch: 5, ..spec(&queue) }).await.unwrap();
        let held = consumer.next().await.unwrap();
        // The other four wait in this process, unread, when their connection dies.
        while broker.declare_passive(&queue).await.unwrap().ready > 0 {
            tokio::task::yield_now().await;
        }
        node.kill();
        broker.link().wait_for(|link| matches!(link, Link::Down { .. })).await.unwrap();
        node.kill_and_restart();
        let mut sizes = Vec::new();
        for _ in 0..5 {
            let (got, settler) = consumer.next().await.unwrap().split();
            settler.settle(Settle::Ack).await.expect("what died unread isn't handed out");
            sizes.push(got.body.len());
        }
        assert_eq!(sizes, [1, 2, 3, 4, 5]);
        let lost = held.split().1.settle(Settle::Ack).await;
        assert!(matches!(lost, Err(SettleError::Lost { .. })), "{lost:?}");
    });
}

#[test]
fn what_may_not_be_declared_any_more_does_not_cost_the_connection() {
    run(async {
        let node = Node::start();
        node.add_user("w", "pass", ".*", ".*", ".*");
        let broker = connect(&node.url_of("w", "pass"), impatient()).await.unwrap();
        for queue in ["closed", "open"] {
            declare(&broker, Queue::transient(queue)).await;
        }
        node.ctl(&["set_permissions", "-p", "/", "w", "^open$", ".*", ".*"]);
        // Rights are looked at anew on a new connection.
        node.ctl(&["close_all_connections", "for the test"]);
        until_generation(&broker, 2).await;
        broker.publish(message("", "open", 1)).await.unwrap();
    });
}

/// Lets a node close the channel of whoever holds a delivery for longer than a second.
fn hurry_consumers(node: &Node) {
    node.ctl(&[
        "eval",
        "application:set_env(rabbit, consumer_timeout, 1000), application:set_env(rabbit, channel_tick_interval, 100).",
    ]);
}

#[test]
fn a_channel_that_is_closed_is_told_of_though_its_connection_stays() {
    run(async {
        let node = Node::start();
        hurry_consumers(&node);
        let broker = connect(&node.url(), impatient()).await.unwrap();
        let queue = unique("q");
        declare(&broker, Queue::celery(&queue)).await;
        broker.publish(message("", &queue, 1)).await.unwrap();
        let mut consumer = broker.consume(spec(&queue)).await.unwrap();
        let held = consumer.next().await.unwrap();
        let told = [StreamExt::next(&mut consumer).await, StreamExt::next(&mut consumer).await];
        assert!(matches!(told, [Some(Incoming::Lost), Some(Incoming::Renewed)]), "{told:?}");
        assert!(held.split().1.settle(Settle::Ack).await.is_err(), "it went with its channel");
        let (again, settler) = consumer.next().await.unwrap().split();
        assert!(again.redelivered);
        settler.settle(Settle::Ack).await.unwrap();
        assert_eq!(*broker.link().borrow(), Link::Up { generation: 1 });
    });
}

#[test]
fn a_declared_queue_that_its_consumer_finds_gone_is_made_again_with_its_bindings() {
    run(async {
        let node = shared_node();
        let (broker, other) = (
            connect(&node.url(), impatient()).await.unwrap(),
            connect(&node.url(), impatient()).await.unwrap(),
        );
        let (exchange, queue) = (unique("x"), unique("q"));
        let bound = Topology::default()
            .exchange(Exchange::fanout(&exchange))
            .queue(Queue::transient(&queue).auto_delete())
            .binding(super::super::Binding::new(&exchange, &queue, ""));
        broker.declare(&bound).await.unwrap();
        let mut consumer = broker.consume(spec(&queue)).await.unwrap();
        other.delete_queue(&queue).await.unwrap();
        let told = [StreamExt::next(&mut consumer).await, StreamExt::next(&mut consumer).await];
        assert!(matches!(told, [Some(Incoming::Lost), Some(Incoming::Renewed)]), "{told:?}");
        broker.publish(message(&exchange, "", 7)).await.unwrap();
        assert_eq!(consumer.next().await.unwrap().split().0.body.len(), 7);
    });
}

#[test]
fn exchanges_that_were_written_to_long_ago_keep_no_channel() {
    run(async {
        let node = Node::start();
        let broker = connect(&node.url(), ConnectOptions::default()).await.unwrap();
        for _ in 0..80 {
            let exchange = unique("x");
            broker.declare(&Topology::default().exchange(Exchange::fanout(&exchange))).await.unwrap();
            let sent = Publishing { mandatory: false, ..message(&exchange, "", 1) };
            broker.publish(sent).await.unwrap();
            let refused = broker.publish(message(&unique("nowhere"), "", 1)).await.unwrap_err();
            assert!(refused.is_refusal(), "{refused}");
        }
        let open = node.ctl(&["list_channels", "pid"]).lines().count();
        assert!((60..=70).contains(&open), "{open} channels");
    });
}

#[test]
fn a_queue_that_is_gone_leaves_those_that_share_a_prefetch_with_it_alone() {
    run(async {
        let node = shared_node();
        let owner = connect(&node.url(), impatient()).await.unwrap();
        let broker = connect(&node.url(), impatient()).await.unwrap();
        let (stays, goes) = (unique("stays"), unique("goes"));
        for queue in [&stays, &goes] {
            declare(&owner, Queue::celery(queue)).await;
        }
        let share = Share::default();
        let mut staying = broker.consume_sharing(&share, spec(&stays)).await.unwrap();
        let mut going = broker.consume_sharing(&share, spec(&goes)).await.unwrap();
        owner.delete_queue(&goes).await.unwrap();
        assert!(matches!(StreamExt::next(&mut going).await, Some(Incoming::Lost)));
        // It is tried anew for as long as it isn't there.
        let mut renewed = tokio::spawn(async move { (StreamExt::next(&mut going).await, going) });
        for _ in 0..3 {
            tokio::time::timeout(Duration::from_millis(600), &mut renewed).await.unwrap_err();
            broker.publish(message("", &stays, 1)).await.unwrap();
            match StreamExt::next(&mut staying).await {
                Some(Incoming::Delivery(got)) => got.split().1.settle(Settle::Ack).await.unwrap(),
                other => panic!("{other:?}"),
            }
        }
        declare(&owner, Queue::celery(&goes)).await;
        let (renewed, mut going) = renewed.await.unwrap();
        assert!(matches!(renewed, Some(Incoming::Renewed)), "{renewed:?}");
        broker.publish(message("", &goes, 1)).await.unwrap();
        going.next().await.unwrap().split().1.settle(Settle::Ack).await.unwrap();
    });
}

//! What only a broker over a network can do to us: refuse, close, block, freeze, die.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use regatta_testbed::{Node, unique};

use super::super::{
    Broker, BrokerUrl, ConnectOptions, Consume, Exchange, Link, Properties, PublishError, Publishing, Queue,
    Settle, SettleError, Topology, TransportError,
};

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ended = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), test).await });
    ended.expect("the test takes longer than its deadline");
}

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

//! The same worker over RabbitMQ, and what it does when RabbitMQ falls silent.

use regatta_celery::transport::{Broker, ConnectOptions};
use regatta_model::BatchEnd;
use regatta_testbed::Node;

use crate::batches::is_not_run_when_its_run_is_over;
use crate::ground::{Ground, order, say};

async fn ground(node: &Node) -> Ground {
    let url = node.url().parse().unwrap();
    Ground::on(Broker::connect(&url, ConnectOptions::default()).await.unwrap()).await
}

#[tokio::test]
async fn a_batch_of_a_run_that_is_over_is_not_run_over_rabbitmq_either() {
    let node = tokio::task::spawn_blocking(Node::start).await.unwrap();
    is_not_run_when_its_run_is_over(ground(&node).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_over_rabbitmq_and_a_worker_that_cannot_tell_kills_what_it_runs() {
    let node = tokio::task::spawn_blocking(Node::start).await.unwrap();
    let mut ground = ground(&node).await;
    let _working = ground.work("regatta-1@here", 1);
    for suite in ["scripts", "peer"] {
        let mut order = order(suite, &["true", "exit 1", "true ."]);
        order["sent"] = 1.into();
        let (facts, report) = ground.batch(&order).await;
        let said = say(&facts);
        assert_eq!(
            (said.len(), said[1].as_str(), &report.end),
            (6, "passed true", &BatchEnd::Done),
            "{suite}"
        );
    }

    let mut sleeper = ground.sleeper();
    let mut order = order("scripts", &[sleeper.script]);
    order["beat_ms"] = 200.into();
    order["test_timeout_ms"] = 1_000_000.into();
    ground.send(&order).await;
    sleeper.await_begin().await;
    node.freeze();
    sleeper.await_end().await;
    node.thaw();
}

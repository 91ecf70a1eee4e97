//! What workers and clients make of losses that only a broker over a network brings.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::{client, options, run, start};
use regatta_celery::{App, Broker, BrokerUrl, ConnectOptions, Context, Inspect, Prefetch, Task, TaskError};
use regatta_testbed::Node;
use tokio::sync::Semaphore;

async fn connect(url: &str) -> Broker {
    Broker::connect(&url.parse::<BrokerUrl>().unwrap(), ConnectOptions::default()).await.unwrap()
}

#[test]
fn a_task_that_waits_while_its_channel_is_closed_runs_once() {
    run(async {
        let node = Node::start();
        // Whoever holds a delivery for longer than a second loses his channel, and keeps his connection.
        node.ctl(&["eval", "application:set_env(rabbit, consumer_timeout, 1000), application:set_env(rabbit, channel_tick_interval, 100)."]);
        let broker = connect(&node.url()).await;
        let (may_end, executions) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
        let shared = (Arc::clone(&may_end), Arc::clone(&executions));
        let app = App::new("test").task("gated", move |context: Context, (): ()| {
            let (may_end, executions) = shared.clone();
            async move {
                executions.fetch_add(1, Ordering::SeqCst);
                may_end.acquire().await.map(|permit| permit.forget())?;
                Ok::<_, TaskError>(context.redelivered())
            }
        });
        let mut options = options("channels").slots(1);
        (options.prefetch, options.remote_control) = (Prefetch::Fixed(2), true);
        let worker = start(&app, &broker, options).await;
        let client = client(&broker).await;
        let mut runs = client.send(Task::new("gated").queue("channels")).await.unwrap();
        let mut waits = client.send(Task::new("gated").queue("channels")).await.unwrap();
        let node_names = ["channels@test".to_owned()];
        let reserved = async || {
            let asked = client.inspect(Inspect::Reserved, &node_names, Duration::from_secs(5));
            asked.await.unwrap().pop().map(|answer| answer.value).unwrap_or_default()
        };
        let again = loop {
            let reserved = reserved().await;
            if reserved.to_string().contains("\"redelivered\":true") {
                break reserved;
            }
        };
        assert_eq!(again.as_array().map(Vec::len), Some(1), "the copy of before is dropped: {again}");
        may_end.add_permits(2);
        assert!(!runs.get::<bool>().await.unwrap().value);
        assert!(waits.get::<bool>().await.unwrap().value, "it ran as it came the second time");
        worker.quiet().await;
        assert_eq!(executions.load(Ordering::SeqCst), 2);
    });
}

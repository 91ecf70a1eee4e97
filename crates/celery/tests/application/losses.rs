//! What workers and clients make of losses that only a broker over a network brings.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::{client, options, run, start};
use regatta_celery::transport::Link;
use regatta_celery::{
    App, Broker, BrokerUrl, ConnectOptions, Context, Inspect, Prefetch, Task, TaskError, Update,
};
use regatta_testbed::Node;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

/// How a connection that goes over a [`Way`] is.
#[derive(Clone, Copy, PartialEq)]
enum Half {
    /// Whole.
    Whole,
    /// The client has lost it, and the node doesn't know.
    Open,
    /// The node knows too.
    Closed,
}

/// A way to a node on which connections can be half open, as after a cable was pulled. Those that are made after the
/// first change are whole.
struct Way {
    port: u16,
    half: watch::Sender<Half>,
}

impl Way {
    async fn to(node: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let half = watch::channel(Half::Whole).0;
        let changes = half.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let halves = (*changes.borrow() == Half::Whole).then(|| changes.subscribe());
                tokio::spawn(pass(client, node, halves));
            }
        });
        Self { port, half }
    }
}

/// Carries one connection; without changes, for as long as it lasts.
async fn pass(mut client: TcpStream, node: u16, halves: Option<watch::Receiver<Half>>) {
    let mut node = TcpStream::connect(("127.0.0.1", node)).await.unwrap();
    let Some(mut halves) = halves else {
        return drop(tokio::io::copy_bidirectional(&mut client, &mut node).await);
    };
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut client, &mut node) => return,
        _ = halves.wait_for(|half| *half != Half::Whole) => {}
    }
    drop(client);
    drop(halves.wait_for(|half| *half == Half::Closed).await);
}

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

#[test]
fn a_client_and_a_workers_ear_come_back_after_a_half_open_connection() {
    run(async {
        let node = regatta_testbed::shared_node();
        let way = Way::to(node.port()).await;
        let broker = connect(&format!("amqp://guest:guest@127.0.0.1:{}/%2f", way.port)).await;
        let app = App::new("test").task("echo", |_: Context, x: u64| async move { Ok::<_, TaskError>(x) });
        let mut options = options("half_open");
        options.remote_control = true;
        let _worker = start(&app, &broker, options).await;
        let (near, far) = (client(&broker).await, client(&connect(&node.url()).await).await);
        let mut unanswered = near.send(Task::new("echo").queue("half_open.nobody")).await.unwrap();
        way.half.send_replace(Half::Open);
        let mut link = broker.link();
        link.wait_for(|link| *link == Link::Up { generation: 2 }).await.unwrap();
        // Only now does the node let go of the queues that the old connection held exclusively.
        way.half.send_replace(Half::Closed);
        let update = unanswered.next_update().await;
        assert!(matches!(update, Some(Update::ReplyLost)), "{update:?}");
        let mut echo = near.send(Task::new("echo").queue("half_open").arg(&7)).await.unwrap();
        assert_eq!(echo.get::<u64>().await.unwrap().value, 7);
        let name = ["half_open@test".to_owned()];
        while far.inspect(Inspect::Ping, &name, Duration::from_secs(1)).await.unwrap().is_empty() {}
    });
}
